#!/usr/bin/env python3
"""Mainstay beside what one would take instead, with the same model, encoding and answer, one after the other on the same machine.

    python3 benches/peers/run.py [--rounds N] [--seconds N] [--binary PATH] [--only NAME]

For each: requests a second and processor time a request at saturation, p50 alone, rows a second in batches of 1,000, resident memory
after that, and seconds from the start to the first right answer. Mainstay is measured with its ledger, as it is delivered, and without,
since no peer has one. Medians of the rounds; exit code 1 when a figure falls short of its aim. Needs Node.js; packages are installed
into target/peers on first use.
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "benches"), str(ROOT / "scripts")]
import customers
import load
from evidence import claim, failures, info
from server import built

BUNDLE = ROOT / "models" / "telco-churn" / "1.0.0"
HERE, TOOLS = Path(__file__).resolve().parent, ROOT / "target" / "peers"
BATCH_ROWS, CONNECTIONS, START_SECS = 1_000, 64, 60
FIGURES = {"requests/s": 0, "cpu us": 1, "p50 ms": 3, "rows/s": 0, "MiB": 0, "start s": 3}
# What we aim at, as a ratio to the best peer.
AIMS = {"requests/s": 2.0, "cpu us": 1 / 3, "rows/s": 2.0, "MiB": 1 / 3, "start s": 1 / 4}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def fastapi():
    python = TOOLS / "fastapi" / "bin" / "python"
    if not python.exists():
        info(f"installing FastAPI into {TOOLS}: once")
        subprocess.run([sys.executable, "-m", "venv", TOOLS / "fastapi"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", HERE / "requirements.txt"], check=True)
    return lambda port, _: ([python, "-m", "uvicorn", "fastapi_app:app", "--port", port, "--workers", 2, "--loop", "uvloop", "--http", "httptools",
                             "--no-access-log", "--log-level", "warning"], {})


def fastify():
    place = TOOLS / "fastify"
    if not (place / "node_modules" / "fastify").exists():
        info(f"installing fastify into {TOOLS}: once")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "fastify" / "package.json", place)
        # Its script would fetch libraries for graphics cards; the one for processors is in the package.
        subprocess.run(["npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=place, check=True)
    shutil.copy(HERE / "fastify" / "app.js", place)
    return lambda port, _: (["node", place / "app.js"], {"PORT": str(port), "PROCESSES": "2"})


def mainstay(program, promise):
    serve = '[{name = "telco-churn", version = "1.0.0"}]'
    library = ROOT / "target" / "onnxruntime" / "libonnxruntime.so"

    def command(port, directory):
        settings = {"http.listen": f"127.0.0.1:{port}", "admin.listen": "127.0.0.1:0", "models.serve": serve, "ledger.promise": promise,
                    "ledger.dir": directory, "log.level": "warn", "drain.delay_ms": 0}
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        return [program, "serve", *words], {"MAINSTAY__RUNTIME__LIBRARY": str(library)}

    return lambda: command


@contextlib.contextmanager
def running(command, cwd):
    """A server, the port that it answers on, and the seconds to its first right answer."""
    port, body = free_port(), next(customers.bodies(BUNDLE, 1, 1))
    with tempfile.TemporaryDirectory(prefix="peer-", dir=TOOLS) as directory:
        words, environment = command(port, directory)
        begun = time.perf_counter()
        process = subprocess.Popen([str(word) for word in words], cwd=cwd, env=os.environ | {"BUNDLE": str(BUNDLE)} | environment,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            while not answers(port, body):
                if process.poll() is not None or time.perf_counter() - begun > START_SECS:
                    raise RuntimeError(f"{words[0]} does not answer")
                time.sleep(0.002)
            yield port, process.pid, time.perf_counter() - begun
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(port, body):
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("POST", "/v1/score", body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status == 200 and 0 < json.loads(response.read())["score"] < 1
    return False


def members(session):
    """The processes of a session, as (pid, fields of stat behind the name)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                yield int(stat.parent.name), fields


def cpu_secs(session):
    return sum(int(fields[11]) + int(fields[12]) for _, fields in members(session)) / os.sysconf("SC_CLK_TCK")


def resident(session):
    """MiB, what processes share counted once."""
    total = 0
    for pid, _ in members(session):
        with contextlib.suppress(OSError):
            total += next(int(line.split()[1]) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    return total / 1024


def measure(command, cwd, oha, files, seconds):
    with running(command, cwd) as (port, session, start):
        url = f"http://127.0.0.1:{port}/v1/score"
        load.measure(oha, url, files["single"], 8, ["-q", "500", "-z", "2s"])
        alone = load.measure(oha, url, files["single"], 1, ["-z", "2s"])
        before = cpu_secs(session)
        found = load.measure(oha, url, files["single"], CONNECTIONS, ["-z", f"{seconds}s"])
        good, failed = load.outcomes(found)
        used = cpu_secs(session) - before
        batches = load.measure(oha, f"{url}/batch", files["batch"], 2, ["-z", f"{seconds}s"])
        good_batches, failed_batches = load.outcomes(batches)
        if failed or failed_batches:
            claim(False, f"{words_of(command)}: not every request was answered{failed}{failed_batches}")
        return {"requests/s": good / found["summary"]["total"], "cpu us": used / good * 1e6, "p50 ms": alone["latencyPercentiles"]["p50"] * 1e3,
                "rows/s": good_batches * BATCH_ROWS / batches["summary"]["total"], "MiB": resident(session), "start s": start}


def words_of(command):
    return Path(str(command(0, "")[0][0])).name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--binary", type=Path, help="a Mainstay that is built already")
    parser.add_argument("--oha", type=Path, help="an oha that is built already")
    parser.add_argument("--only", action="append", help="this one; may be repeated")
    asked = parser.parse_args()
    TOOLS.mkdir(parents=True, exist_ok=True)
    oha = asked.oha or load.load_generator()
    program = asked.binary.resolve() if asked.binary else Path(built()[0])
    bodies = list(customers.bodies(BUNDLE, 2_000, 5))
    files = {"single": TOOLS / "single.ndjson", "batch": TOOLS / "batch.ndjson"}
    files["single"].write_text("".join(f"{body}\n" for body in bodies))
    files["batch"].write_text("".join(f"[{','.join(bodies[at:at + BATCH_ROWS])}]\n" for at in range(0, len(bodies), BATCH_ROWS)))
    all_of_them = {"mainstay": mainstay(program, "committed"), "mainstay, no ledger": mainstay(program, "off"), "fastify": fastify, "fastapi": fastapi}
    commands = {name: made() for name, made in all_of_them.items() if not asked.only or name in asked.only}
    rounds = {name: [] for name in commands}
    for number in range(asked.rounds):
        for name, command in commands.items():
            rounds[name].append(measure(command, HERE if name == "fastapi" else ROOT, oha, files, asked.seconds))
            info(f"round {number + 1}: {name}: " + ", ".join(f"{figure} {value:,.{FIGURES[figure]}f}" for figure, value in rounds[name][-1].items()))
    medians = {name: {figure: statistics.median(one[figure] for one in found) for figure in FIGURES} for name, found in rounds.items()}
    print("\n| | " + " | ".join(FIGURES) + " |\n|---|" + "---|" * len(FIGURES))
    for name, found in medians.items():
        print(f"| {name} | " + " | ".join(f"{found[figure]:,.{digits}f}" for figure, digits in FIGURES.items()) + " |")
    peers = [found for name, found in medians.items() if not name.startswith("mainstay")]
    for name in [name for name in medians if name.startswith("mainstay") and peers]:
        for figure, aim in AIMS.items():
            best = (max if aim > 1 else min)(peer[figure] for peer in peers)
            ratio = medians[name][figure] / best
            claim(ratio >= aim if aim > 1 else ratio <= aim, f"{name}: {figure} {ratio:.2f} times the best peer's (aim {'>=' if aim > 1 else '<='} {aim:.2f})")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
