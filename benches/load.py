#!/usr/bin/env python3
"""Drives a running Mainstay at a fixed rate and judges it against the SLO.

    python3 benches/load.py                                        a server of its own, 2,000 requests a second
    python3 benches/load.py --url http://host:8080/v1/score --rate 500 --seconds 60
    python3 benches/load.py --saturate                             how many a second it can do

The load is open: a request is due when the clock says so, whatever became of those before it, and its latency counts from
then, so a server that stalls cannot hide what it kept waiting (coordinated omission). Exactly rate x seconds requests are
sent and every one is judged. Needs Python 3.9, cargo, and nothing else: the load generator is oha, built on first use.

Exit code: 0 PASS, 1 FAIL, 2 bad usage or nothing to measure.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import customers

ROOT = customers.ROOT
TARGET = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
TOOLS = TARGET / "tools"
OHA_VERSION = "1.16.0"
# An answer later than this is an error: nobody waits for it.
TIMEOUT_SECS = 10
# A share of requests that may fail, and of the rate that must be reached.
ERRORS_MAX = 0.001
RATE_MIN = 0.99
WARM_UP_SECS = 2


class Unusable(Exception):
    """Nothing can be measured; the text says what to do."""


def main() -> int:
    asked = arguments()
    try:
        oha = load_generator()
        bodies = TARGET / "load" / "bodies.ndjson"
        bodies.parent.mkdir(parents=True, exist_ok=True)
        drawn = customers.bodies(asked.bundle, asked.customers, asked.seed)
        bodies.write_text("".join(f"{body}\n" for body in drawn))
        with contextlib.nullcontext(asked.url) if asked.url else own_server() as url:
            try_one(url, bodies)
            if asked.saturate:
                return saturate(oha, url, bodies, asked)
            return judge(oha, url, bodies, asked)
    except (Unusable, OSError, KeyError) as problem:
        print(f"load: {problem}", file=sys.stderr)
        return 2


def arguments() -> argparse.Namespace:
    def positive(kind):
        def read(text):
            number = kind(text)
            if not 0 < number < math.inf:
                raise ValueError
            return number

        read.__name__ = f"positive {kind.__name__}"
        return read

    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--url", help="where to POST; without it a release build is started on free ports and stopped")
    parser.add_argument("--rate", type=positive(int), default=2_000, help="requests a second")
    parser.add_argument("--seconds", type=positive(int), default=30, help="how long")
    parser.add_argument("--connections", type=positive(int), default=64, help="connections, kept alive")
    parser.add_argument("--slo-ms", type=positive(float), default=100.0, help="what the p99 must be below")
    parser.add_argument("--saturate", action="store_true", help="no rate: as many as the connections can do, no verdict")
    parser.add_argument("--bundle", type=pathlib.Path, default=customers.BUNDLE, help="whose customers to draw")
    parser.add_argument("--customers", type=positive(int), default=customers.COUNT, help="how many different ones")
    parser.add_argument("--seed", type=int, default=customers.SEED)
    asked = parser.parse_args()
    if asked.url and urllib.parse.urlsplit(asked.url).scheme not in ("http", "https"):
        parser.error(f"--url {asked.url}: expected http://HOST:PORT/v1/score")
    return asked


# --- what is needed --------------------------------------------------------------------------------------------------


def load_generator() -> pathlib.Path:
    """The pinned oha, built into target/tools when it is not there. It does not build without its TLS."""
    oha = TOOLS / "bin" / "oha"
    if not oha.exists() or f"oha {OHA_VERSION}" != output([oha, "--version"]).strip():
        note(f"building oha {OHA_VERSION} into {TOOLS}: some minutes, once")
        install = ["cargo", "install", "oha", "--version", OHA_VERSION, "--locked"]
        run(install + ["--root", TOOLS])
    return oha


@contextlib.contextmanager
def own_server():
    """A release build of this repository on free ports; gives the URL, and stops the server by SIGTERM."""
    run([ROOT / "scripts" / "fetch-onnxruntime.sh"], stdout=subprocess.DEVNULL)
    run(["cargo", "build", "--release", "--locked", "--quiet"])
    listen = ["--set", "http.listen=127.0.0.1:0", "--set", "admin.listen=127.0.0.1:0"]
    environment = {"MAINSTAY__RUNTIME__LIBRARY": str(ROOT / "target" / "onnxruntime" / "libonnxruntime.so")}
    # A ledger on the disk of the build: a temporary directory is often memory, which would flatter it.
    with tempfile.TemporaryDirectory(prefix="ledger-", dir=TARGET) as ledger:
        server = subprocess.Popen(
            [TARGET / "release" / "mainstay", "serve", *listen],
            cwd=ROOT,
            env={**os.environ, **environment, "MAINSTAY__LEDGER__DIR": ledger},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield f"http://{ready(server)}/v1/score"
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def ready(server: subprocess.Popen) -> str:
    """The address in the log line that says ready."""
    told = []
    for line in server.stderr:
        told.append(line)
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            fields = {**event, **event.get("fields", {})}
            if fields.get("message") == "ready":
                # Whatever else it logs has to be read, or the pipe fills and the server waits for us.
                threading.Thread(target=lambda: [None for _ in server.stderr], daemon=True).start()
                return fields["http"]
    raise Unusable("the server did not start:\n" + "".join(told))


def try_one(url: str, bodies: pathlib.Path) -> None:
    """One request, so that a wrong address or contract is told in words and not in percentages."""
    with bodies.open("rb") as lines:
        body = lines.readline().rstrip()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_SECS).close()
    except urllib.error.HTTPError as refused:
        raise Unusable(f"{url} answered {refused.code}: {refused.read(2_000).decode(errors='replace')}") from None
    except (OSError, ValueError) as failed:
        raise Unusable(f"{url}: {failed}") from None


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(oha: pathlib.Path, url: str, bodies: pathlib.Path, connections: int, load: list, timeout=None) -> dict:
    """What oha measured, or nothing when it was not done after `timeout` seconds."""
    command = [oha, "--no-tui", "--output-format", "json", "-m", "POST", "-T", "application/json"]
    command += ["-Z", bodies, "-c", str(connections), "-t", f"{TIMEOUT_SECS}s", *load, url]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {}
    if done.returncode != 0:
        raise Unusable(f"oha failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def warm_up(oha: pathlib.Path, url: str, bodies: pathlib.Path, connections: int) -> None:
    """A gentle start: caches, allocators and the CPU's clock are not what is measured."""
    measure(oha, url, bodies, min(connections, 8), ["-q", "200", "-z", f"{WARM_UP_SECS}s"])


def judge(oha: pathlib.Path, url: str, bodies: pathlib.Path, asked: argparse.Namespace) -> int:
    requests = asked.rate * asked.seconds
    note(f"{url}: {asked.rate} requests a second for {asked.seconds} s on {asked.connections} connections")
    warm_up(oha, url, bodies, asked.connections)
    load = ["-q", str(asked.rate), "-n", str(requests), "--latency-correction"]
    # A server that cannot keep up is given twice the time to show by how much, then it has failed.
    begun = time.monotonic()
    found = measure(oha, url, bodies, asked.connections, load, timeout=2 * asked.seconds + 2 * TIMEOUT_SECS)
    if not found:
        print(f"FAIL   {requests} requests were not answered within {time.monotonic() - begun:.0f} s")
        return 1

    good, failures = outcomes(found)
    errors = requests - good
    achieved = good / found["summary"]["total"]
    # A request that was never answered has no latency here; a share of them that could hide behind it fails the run itself.
    latency = {name: (found["latencyPercentiles"][name] or math.inf) * 1e3 for name in ("p50", "p99", "p99.9")}
    slowest = found["summary"]["slowest"] * 1e3

    print(f"p50    {latency['p50']:10.3f} ms")
    print(f"p99    {latency['p99']:10.3f} ms")
    print(f"p99.9  {latency['p99.9']:10.3f} ms")
    print(f"max    {slowest:10.3f} ms")
    print(f"rate   {achieved:10.1f} /s of {asked.rate} asked")
    print(f"errors {errors:10} of {requests}{failures}")
    broken = []
    if not latency["p99"] < asked.slo_ms:
        broken.append(f"p99 {latency['p99']:.3f} ms is not below {asked.slo_ms:g} ms")
    if errors > requests * ERRORS_MAX:
        broken.append(f"errors are over {ERRORS_MAX:.1%}")
    if achieved < asked.rate * RATE_MIN:
        broken.append(f"the rate is below {RATE_MIN:.0%} of {asked.rate}")
    print(f"FAIL   {'; '.join(broken)}" if broken else f"PASS   p99 < {asked.slo_ms:g} ms")
    return 1 if broken else 0


def saturate(oha: pathlib.Path, url: str, bodies: pathlib.Path, asked: argparse.Namespace) -> int:
    note(f"{url}: as many as {asked.connections} connections can do for {asked.seconds} s")
    warm_up(oha, url, bodies, asked.connections)
    found = measure(oha, url, bodies, asked.connections, ["-z", f"{asked.seconds}s"])
    good, failures = outcomes(found)
    print(f"rate   {good / found['summary']['total']:10.1f} /s, answered well{failures}")
    p50 = found["latencyPercentiles"]["p50"] * 1e3
    print(f"p50    {p50:10.3f} ms, of a closed loop: not what a caller at a rate sees")
    return 0


def outcomes(found: dict):
    """How many were answered with 2xx, and what became of the others, in words."""
    statuses = found["statusCodeDistribution"]
    good = sum(count for status, count in statuses.items() if status.startswith("2"))
    failed = {status: count for status, count in statuses.items() if not status.startswith("2")}
    # Those in flight when a closed loop ends are cut off by us.
    failed.update((text, n) for text, n in found["errorDistribution"].items() if "due to deadline" not in text)
    return good, "".join(f"; {text}: {count}" for text, count in failed.items())


# --- other programs --------------------------------------------------------------------------------------------------


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def output(command: list) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def run(command: list, **how) -> None:
    if subprocess.run(command, cwd=ROOT, check=False, **how).returncode != 0:
        raise Unusable(f"`{' '.join(map(str, command))}` failed")


if __name__ == "__main__":
    sys.exit(main())
