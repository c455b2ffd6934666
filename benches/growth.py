#!/usr/bin/env python3
"""How cost grows: with features and trees of a model, rows of a batch, models in service, and connections.

    python3 benches/growth.py [--quick] [--binary PATH] [--only TABLE]

Each table is a cost at some sizes, and the greatest local exponent: by which power of the size the cost grew between two of them (1 is
linear). Exit code 1 when one grows faster than linearly, by more than the machine's noise (EXPONENT_MAX), or when the path of a request
is not independent of how many models are loaded or how many connections stand idle (RATIO_MAX). Costs of a request are processor time
of the server, which what else runs on the machine moves least; each is the least of some rounds. Needs Python 3.9, cargo, and nothing
else.
"""

import argparse
import contextlib
import http.client
import json
import math
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benches"), str(ROOT / "scripts")]
import customers
from server import built, running

BUNDLE = ROOT / "models" / "telco-churn" / "1.0.0"
CRITERION = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "criterion"
FEATURES, TREES = (10, 100, 500), (10, 100, 300, 1_000, 5_000)
ROWS, MODELS, CONNECTIONS = (1, 10, 100, 1_000, 10_000, 100_000), (1, 10, 50), (1, 10, 100, 1_000, 10_000)
# A cost that grows faster than its size to this power, between any two sizes, is not linear.
EXPONENT_MAX = 1.15
# What the path of a request may cost at the largest size, as a multiple of that at the least.
RATIO_MAX = 1.25
fallen = []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"forests": forests, "rows": rows, "models": models, "connections": connections}
    parser.add_argument("--only", choices=tables, action="append", help="this table; may be repeated")
    parser.add_argument("--quick", action="store_true", help="smaller numbers, to work on this")
    parser.add_argument("--binary", type=Path, help="a server that is built already")
    asked = parser.parse_args()
    command = [asked.binary.resolve(), "serve"] if asked.binary else built()
    os.environ.setdefault("MAINSTAY__RUNTIME__LIBRARY", str(ROOT / "target" / "onnxruntime" / "libonnxruntime.so"))
    # Both ends of every connection take a descriptor, and the server inherits this.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for name in asked.only or tables:
        tables[name](command, asked.quick)
    print(f"\n{len(fallen)} fell short: {', '.join(fallen)}" if fallen else "\nevery cost grows at most linearly")
    return 1 if fallen else 0


# --- tables ----------------------------------------------------------------------------------------------------------


def forests(_, quick):
    """The native evaluator on generated forests, by Criterion: a lone row, and a row of a run of 512."""
    effort = ["--warm-up-time", "0.2", "--measurement-time", "0.5"] if quick else ["--warm-up-time", "1", "--measurement-time", "3"]
    bench = ["cargo", "bench", "--quiet", "--bench", "decide", "--", "growth", *effort]
    subprocess.run(bench, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)

    def median_us(what, kind, size):
        estimates = json.loads((CRITERION / f"growth_{what}" / kind / str(size) / "new" / "estimates.json").read_text())
        return estimates["median"]["point_estimate"] / 1e3

    for what, sizes in (("features", FEATURES), ("trees", TREES)):
        for kind, per in (("single", 1), ("batch-512", 512)):
            table(f"{what}: us a row, {kind}", sizes, [median_us(what, kind, size) / per for size in sizes])


def rows(command, quick):
    """One JSON batch of so many rows."""
    sizes = ROWS[:-1] if quick else ROWS
    drawn = list(customers.bodies(BUNDLE, 2_000, customers.SEED))
    settings = {"LEDGER__PROMISE": "off", "LIMITS__BATCH_ROWS_MAX": max(sizes), "LIMITS__BATCH_BODY_BYTES_MAX": 1 << 28}
    with serving(command, settings) as server:
        costs = []
        for size in sizes:
            body = ("[" + ",".join(drawn[at % len(drawn)] for at in range(size)) + "]").encode()
            rounds = 3 if size > 1_000 else 10
            # A batch of few rows takes less than a tick of the clock: many are one measurement.
            times = max(1, 3_000 // size) if not quick else max(1, 300 // size)
            costs.append(least(rounds, lambda: ask(server, "/v1/score/batch", [body] * times)) / times)
        table("batch: us of processor time, by rows", sizes, costs)


def models(command, quick):
    """A request to the default model, with more and more of them in service."""
    sizes = MODELS[:2] if quick else MODELS
    requests = 2_000 if quick else 10_000
    drawn = [body.encode() for body in customers.bodies(BUNDLE, 2_000, customers.SEED)]
    costs, resident = [], []
    with tempfile.TemporaryDirectory() as place:
        names = [f"telco-churn-{number:02}" for number in range(max(sizes))]
        for name in names:
            copy = Path(place) / name / "1.0.0"
            shutil.copytree(BUNDLE, copy)
            card = json.loads((copy / "manifest.json").read_text())
            (copy / "manifest.json").write_text(json.dumps(card | {"name": name}))
        for size in sizes:
            serve = ", ".join(f'{{ name = "{name}", version = "1.0.0" }}' for name in names[:size])
            with serving(command, {"LEDGER__PROMISE": "off", "MODELS__DIR": place, "MODELS__SERVE": f"[{serve}]"}) as server:
                bodies = [drawn[at % len(drawn)] for at in range(requests)]
                costs.append(least(5, lambda: ask(server, "/v1/score", bodies)) / requests)
                resident.append(kib(server))
    table("models in service: us of processor time a request to one of them", sizes, costs, flat=True)
    table("models in service: KiB of resident memory", sizes, resident)


def connections(command, quick):
    """A request on one of so many open connections, which all are asked by turns."""
    sizes = CONNECTIONS[:-1] if quick else CONNECTIONS
    requests = 2_000 if quick else 10_000
    drawn = [body.encode() for body in customers.bodies(BUNDLE, 2_000, customers.SEED)]
    costs, resident = [], []
    settings = {"LEDGER__PROMISE": "off", "SERVER__CONNECTIONS_MAX": max(sizes) + 1_000, "SERVER__HEAD_TIMEOUT_MS": 3_600_000}
    for size in sizes:
        with serving(command, settings) as server, contextlib.ExitStack() as opened:
            host, port = server.http.rsplit(":", 1)
            all_of_them = [opened.enter_context(contextlib.closing(socket.create_connection((host, int(port))))) for _ in range(size)]
            # Each is known to be served before anything is measured.
            count = max(requests, size)
            by_turns(all_of_them, drawn, count)
            costs.append(least(3, lambda: by_turns(all_of_them, drawn, count, server)) / count)
            resident.append(kib(server))
    table("connections: us of processor time a request", sizes, costs, flat=True)
    table("connections: KiB of resident memory", sizes, resident)


def table(title, sizes, costs, flat=False):
    """Prints it with its verdict."""
    points = list(zip(sizes, costs))
    exponents = [math.log(after[1] / before[1]) / math.log(after[0] / before[0]) for before, after in zip(points, points[1:])]
    steepest = max(exponents)
    holds, verdict = steepest <= EXPONENT_MAX, f"grows by at most the power {steepest:.2f}"
    if flat:
        ratio = costs[-1] / costs[0]
        holds, verdict = ratio <= RATIO_MAX, f"at the largest {ratio:.2f} times the least"
    print(f"\n{title}")
    print("".join(f"{size:>12,}" for size in sizes))
    print("".join(f"{cost:>12,.3g}" if cost < 1_000 else f"{cost:>12,.0f}" for cost in costs))
    print(f"{'PASS' if holds else 'FAIL'}  {verdict}", flush=True)
    if not holds:
        fallen.append(title)


# --- measuring -------------------------------------------------------------------------------------------------------


def serving(command, settings):
    return running(command, environment=os.environ | {f"MAINSTAY__{key}": str(value) for key, value in settings.items()})


def least(rounds, measured):
    return min(measured() for _ in range(rounds))


def processor_us(server):
    """What the server has used of processors, threads that have ended included. A tick of `stat` is 10 ms; this is the clock below it."""
    # As clock_getcpuclockid(3) makes it; Python has no name for that.
    return time.clock_gettime_ns(~server.process.pid << 3 | 2) / 1e3


def kib(server):
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def ask(server, path, bodies):
    """Microseconds of the server's processor time for `bodies`, one after the other on one connection."""
    connection = http.client.HTTPConnection(server.http, timeout=300)
    before = processor_us(server)
    for body in bodies:
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise SystemExit(f"growth: {path} was answered with {response.status}")
    used = processor_us(server) - before
    connection.close()
    return used


def by_turns(opened, bodies, count, server=None):
    """The same for `count` requests, on one connection after the other."""
    head = "POST /v1/score HTTP/1.1\r\nhost: growth\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
    requests = [head.format(len(body)).encode() + body for body in bodies]
    before = processor_us(server) if server else 0
    for number in range(count):
        connection = opened[number % len(opened)]
        connection.sendall(requests[number % len(requests)])
        answer = connection.recv(65_536)
        # An answer is some 700 bytes: it comes as a whole.
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"growth: answered with {answer[:80]!r}")
    return processor_us(server) - before if server else 0


if __name__ == "__main__":
    sys.exit(main())
