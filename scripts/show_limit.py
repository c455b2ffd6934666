#!/usr/bin/env python3
"""The evidence at the limit: the bound, overload, faults, deadlines, a cold start, growth, a soak, and both versions of HTTP. `make
show-limit` runs it; `make peers`, `make slow` and `make fuzz` show the rest.

    python3 scripts/show_limit.py [--only STEP]... [--minutes N] [--quick] [--binary PATH] [--load PATH]

One line per claim with its figure; exit code 1 if one falls short. The server and its load share this machine, so figures of speed are
ratios of one run: let nothing else run meanwhile. The load is benches/overload.rs, built on first use; --load names one that is built
already. Nothing is needed but Python 3.9 or newer; the step h2 fetches the Python package h2 into target/h2 on first use.
"""

import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from evidence import TIMEOUT_SECS, Client, Place, claim, environment, info, main
from limit_faults import Others, faults, until
from limit_h2 import h2
from server import ROOT, Failed, running

GOODPUT_MIN, P99_MAX_MS = 0.9, 100
OVERLOAD = 3
# Connections of the callers' pools: as many as backends keep, and far more than a worker should answer at a time.
POOLS = (256, 4096)
COLD_MAX_SECS, RESIDENT_MAX_MIB = 0.2, 80
COLD_ROUNDS = 5
# The share of what is asked in a soak that has to be answered.
SOAK_ANSWERED_MIN = 0.99
# What memory may grow by in the second half of a soak, as a share of what it was.
SOAK_GROWTH_MAX = 0.05
# Rows of a batch whose caller goes away.
GONE_ROWS = 150_000
# Files of connections to the ledger that readers leave for the next one.
KEPT_MAX = 8
CUSTOMER = (ROOT / "tests/data/customer.json").read_bytes()


class Limit(Place):
    """What the steps are given."""

    def __init__(self, options, program, directory):
        super().__init__(program, directory, options.quick)
        self.minutes = 0.5 if options.quick else options.minutes
        self._load = options.load
        self.bodies = directory / "bodies.ndjson"
        with open(self.bodies, "wb") as file:
            subprocess.run([sys.executable, ROOT / "benches/customers.py", "--count", "2000"], stdout=file, check=True)
        # For thousands of connections at a time.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def serve(self, **settings):
        """A server for the length of a `with` block."""
        return running(self.command(), environment=environment(settings), ledger=self.fresh())

    def load(self, server, connections, seconds, rate=0):
        """What came of a load: see benches/overload.rs."""
        if not self._load:
            self._load = built()
        words = {"http": server.http, "bodies": self.bodies, "connections": connections, "seconds": seconds, "rate": rate}
        command = [self._load, *(str(part) for name, value in words.items() for part in (f"--{name}", value))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + TIMEOUT_SECS, check=True)
        return json.loads(done.stdout)


def built():
    """The load, built."""
    command = ["cargo", "bench", "--bench", "overload", "--no-run", "--locked", "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    made = (json.loads(line) for line in lines if line.startswith("{"))
    return next(one["executable"] for one in made if one.get("executable") and one["target"]["name"] == "overload")


def resident_mib(server):
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


def descriptors(server):
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def overload(place):
    """Three times the peak, due whatever becomes of it: what is answered, and how late after it was due. Thousands of connections cost
    something themselves: how much is told, and the claim is the same."""
    seconds = 3 if place.quick else 10
    for connections in POOLS:
        with place.serve() as server:
            place.load(server, 256, 2)  # so that nothing is cold
            peak = place.load(server, 256, seconds)
            rate = OVERLOAD * int(peak["answered_per_sec"])
            most = peak if connections == 256 else place.load(server, connections, seconds)
            with Others(server, ("GET", "/readyz"), 0.05) as health:
                found = place.load(server, connections, seconds, rate)
            metrics = Client(server.admin).ask("GET", "/metrics")[2].decode()
        name = f"overload, {connections} connections"
        info(f"{name}: peak {peak['answered_per_sec']:.0f}/s on 256 connections, {most['answered_per_sec']:.0f}/s on {connections}; {json.dumps(found)}")
        ratio = found["answered_per_sec"] / peak["answered_per_sec"]
        claim(ratio >= GOODPUT_MIN, f"{name}: {rate}/s due, {found['answered_per_sec']:.0f}/s answered: {ratio:.2f} of the peak (at least {GOODPUT_MIN})")
        p99 = found["answered_ms"]["p99"] or float("inf")
        claim(p99 < P99_MAX_MS, f"{name}: p99 of what was answered {p99:.1f} ms after it was due (under {P99_MAX_MS})")
        others = sum(found[key] for key in ("refused_per_sec", "given_up_per_sec"))
        claim(found["failed"] == 0, f"{name}: the other {others:.0f}/s were refused with 503, or given up by their callers; {found['failed']} failed {found['failures']}")
        claim(health.all_answered(), f"{name}: /readyz on new connections meanwhile: {health.text()}")
        claim("mainstay_panics_total 0" in metrics, f"{name}: no panic")


def metric(server, name):
    for line in Client(server.admin).ask("GET", "/metrics")[2].decode().splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[-1])
    return 0.0


def records(server):
    return metric(server, "mainstay_ledger_records_total")


def asking(server, headers, body, path="/v1/score/batch", media_type="application/json"):
    """A connection with one request written on it, or its beginning."""
    stream = socket.create_connection(server.http.split(":"), timeout=TIMEOUT_SECS)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    stream.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {media_type}\r\nconnection: close\r\n{head}\r\n".encode() + body)
    return stream


def read(stream):
    """Status and body of the one answer."""
    parts = []
    while part := stream.recv(1 << 20):
        parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    return int(head[9:12]), body


def deadline(place):
    """Work whose caller is late, or gone, is dropped before it is decided; what is on record is answered."""
    rows = json.dumps([json.loads(CUSTOMER)] * 10_000).encode()
    with place.serve() as server:
        before = records(server)
        started = asking(server, {"content-length": 400, "x-request-timeout-ms": 100}, b"{", "/v1/score")
        begun = time.monotonic()
        status, body = read(started)
        taken = (time.monotonic() - begun) * 1e3
        claim(status == 504 and b"deadline_exceeded" in body and records(server) == before, f"deadline: a body that comes too late for its caller: {status} after {taken:.0f} ms of 100, nothing on record")
        client = Client(server.http)
        begun = time.monotonic()
        whole = client.json("POST", "/v1/score/batch", json.loads(rows))["results"]
        full_ms = (time.monotonic() - begun) * 1e3
        claim(all("decision_id" in row for row in whole), f"deadline: 10,000 rows without a deadline: all decided, in {full_ms:.0f} ms")
        # How much of that is the service's is looked for by halves.
        mixed, too_few_ms, enough_ms = None, 0, full_ms
        for _ in range(12):
            before = records(server)
            timeout_ms = max(1, int((too_few_ms + enough_ms) / 2))
            status, body = read(asking(server, {"content-length": len(rows), "x-request-timeout-ms": timeout_ms}, rows))
            results = json.loads(body).get("results", [])
            decided = sum("decision_id" in row for row in results)
            late = sum(row.get("code") == "deadline_exceeded" for row in results)
            claim(records(server) - before == decided and (not results or decided + late == len(whole)), f"deadline: the same in {timeout_ms} ms: {status}, {decided} rows decided and as many on record, {late} too late")
            mixed = 0 < decided < len(whole)
            if mixed:
                break
            too_few_ms, enough_ms = (too_few_ms, timeout_ms) if decided else (timeout_ms, enough_ms)
        claim(mixed, "deadline: one was cut in the middle")
    # So many that the caller can go before they are done.
    many, rows = GONE_ROWS, json.dumps([json.loads(CUSTOMER)] * GONE_ROWS).encode()
    with place.serve(limits__batch_rows_max=many, limits__batch_body_bytes_max=len(rows), limits__intake_bytes_max=4 * len(rows)) as server:
        before = records(server)
        gone = asking(server, {"content-length": len(rows)}, rows)
        begun = until(lambda: records(server) > before, pause=0)
        gone.close()
        noticed = until(lambda: metric(server, "mainstay_http_requests_abandoned_total") >= 1, pause=0)
        time.sleep(0.5)
        made = records(server) - before
        claim(begun and noticed and 0 < made < many, f"deadline: the caller of {many:,} rows went away: {made:,.0f} were decided by then, and no more")


def first_answers(server):
    """How long after the process was begun both models have answered."""
    for path in ("/v1/score", "/v1/models/mlc-churn/score"):
        body = CUSTOMER if path == "/v1/score" else MLC
        status, _, text = Client(server.http).ask("POST", path, body)
        if status != 200:
            raise AssertionError(f"{path}: {status} {text[:300]}")


# What is known of the bundled model, as it is read from the record up to now.
KPIS = "/v1/insight/kpis?model=telco-churn&window=30d"
MLC = json.dumps({"customer_id": "C-1", "features": json.loads((ROOT / "models/mlc-churn/1.0.0/golden.json").read_text())["rows"][0]["features"]}).encode()


def cold(place):
    """From nothing to the first right answer of both models; and what is held in memory after a load."""
    times = []
    for _ in range(COLD_ROUNDS):
        begun = time.monotonic()
        with place.serve() as server:
            first_answers(server)
            times.append(time.monotonic() - begun)
    times.sort()
    # Others may be busy beside it: what it takes is the least.
    claim(times[0] <= COLD_MAX_SECS, f"cold: both models answered {times[0]:.3f} s after the start, the least of {COLD_ROUNDS} (the greatest {times[-1]:.3f}; at most {COLD_MAX_SECS})")
    # The measures read what is on record every second, so that what they take is seen too.
    with place.serve(insight__refresh_secs=1) as server:
        first_answers(server)
        idle, sizes, stop = resident_mib(server), [], threading.Event()

        def look():
            while not stop.wait(0.05):
                sizes.append(resident_mib(server))

        thread = threading.Thread(target=look)
        thread.start()
        try:
            found = place.load(server, 64, 3 if place.quick else 20)
            measured = until(lambda: Client(server.admin).json("GET", KPIS)["basis"]["records_behind"] == 0, TIMEOUT_SECS)
            time.sleep(3)  # the service's own looks come every second
        finally:
            stop.set()
            thread.join()
        claim(measured, f"cold: the measures have read all {records(server):.0f} records")
        most = max(sizes)
        claim(most <= RESIDENT_MAX_MIB, f"cold: {most:.0f} MiB resident at most during {found['answered_per_sec']:.0f} requests/s and while they are measured (at most {RESIDENT_MAX_MIB}), {idle:.0f} before, {sizes[-1]:.0f} at the end")


def soak(place):
    """Half of saturation, with swaps and scrapes: memory and descriptors stay as they are."""
    with place.serve() as server:
        peak = place.load(server, 64, 3)
        before = descriptors(server)
        seconds = int(place.minutes * 60)
        rate = int(peak["answered_per_sec"] / 2)
        if rate == 0:  # which would ask for as much as can be answered
            raise Failed("nothing was answered")
        admin = Client(server.admin)
        stop, swaps, samples = threading.Event(), [], []
        errors = []

        def work():
            """Swaps the model to and fro, and scrapes."""
            versions = ["1.1.0", "1.0.0"]
            while not stop.wait(2):
                try:
                    version = versions[len(swaps) % 2]
                    for verb, body in (("stage", {"version": version}), ("promote", {"force": True}), ("retire", {})):
                        admin.json("POST", f"/v1/slots/telco-churn/{verb}", {"by": "soak", "why": "soak", **body})
                    swaps.append(version)
                    admin.ask("GET", "/metrics")
                except Exception as error:  # told below
                    errors.append(repr(error))
                    return

        pause = max(1, seconds / 60)

        def look():
            while not stop.wait(pause):
                try:
                    samples.append((resident_mib(server), descriptors(server)))
                except OSError as error:  # told below
                    errors.append(repr(error))
                    return

        threads = [threading.Thread(target=work), threading.Thread(target=look)]
        for thread in threads:
            thread.start()
        try:
            found = place.load(server, 64, seconds, rate)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        admin.close()
        time.sleep(1)
        left = descriptors(server)
    info(f"soak: {place.minutes} minutes at {rate}/s; {json.dumps(found)}; resident MiB {[round(mib) for mib, _ in samples]}")
    claim(not errors and swaps, f"soak: {len(swaps)} swaps under load {errors}")
    claim(found["failed"] == 0, f"soak: {found['failed']} requests failed {found['failures']}")
    share = found["answered_per_sec"] / rate
    claim(share >= SOAK_ANSWERED_MIN, f"soak: {found['answered_per_sec']:.0f}/s answered with 200 of {rate}/s asked: {share:.3f} (at least {SOAK_ANSWERED_MIN})")
    claim(len(samples) >= seconds / pause / 2, f"soak: memory and descriptors were looked at {len(samples)} times")
    half = len(samples) // 2
    first, last = (max(mib for mib, _ in part) for part in (samples[:half], samples[half:]))
    claim(last <= first * (1 + SOAK_GROWTH_MAX), f"soak: at most {first:.0f} MiB resident in the first half, {last:.0f} in the second (growth of {SOAK_GROWTH_MAX:.0%} at most)")
    most = max(count for _, count in samples)
    claim(left <= before + KEPT_MAX, f"soak: {left} descriptors at the end, {before} before (at most {KEPT_MAX} more: readers of the ledger that are kept), {most} at most")


def by(*command):
    """A step that another command shows: its lines are told, and it has to end with 0."""

    def step(place):
        more = ["--quick"] if place.quick else []
        ran = subprocess.run([sys.executable, *command, "--binary", place.program, *more], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for line in ran.stdout.splitlines():
            info(line)
        claim(ran.returncode == 0, f"{command[0]} ends with {ran.returncode}")

    return step


STEPS = {
    "bound": by("benches/bound.py"), "overload": overload, "faults": faults, "deadline": deadline, "cold": cold,
    "growth": by("benches/growth.py"), "soak": soak, "h2": h2,
}
MORE = [
    ("--minutes", {"type": float, "default": 30, "help": "how long the soak takes (30)"}),
    ("--load", {"type": Path, "help": "benches/overload.rs, built already"}),
]

if __name__ == "__main__":
    sys.exit(main("show-limit", __doc__, STEPS, Limit, MORE))
