#!/usr/bin/env python3
"""The service against the bound: the least that axum and serde_json can do with the same requests, an answer of the same size, over
real sockets, on the same two cores as the load.

    python3 benches/bound.py [--quick] [--only STEP] [--binary PATH] [--bound PATH] [--oha PATH]

One line per claim with its figure; exit code 1 if one falls short. Steps: requests (saturation, and the p50 at half of it), rows (the
evaluator alone, and batches as JSON and in columns, without a claim). Servers are measured by turns; figures are medians.
"""

import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benches"), str(ROOT / "scripts")]
import customers
import evidence
import load
from evidence import claim, environment, info
from server import Failed, running

# Least shares of the bound's saturation, and what the p50 at half of the own saturation may be: times the bound's, and milliseconds more.
SHARE_RECORDED, SHARE_OFF, P50_OFF, P50_RECORDED_MS = 0.5, 0.65, 3.0, 1.0
# Enough connections to keep both cores busy while some wait for a commit.
CONNECTIONS, CORES = 128, 2
ROWS_AIM, BATCH_ROWS = 1_000_000, 10_000
ARROW = "application/vnd.apache.arrow.stream"
SERVERS = ("bound", "off", "committed")


class Place(evidence.Place):
    """The program under check, the bound, the load, and its bodies."""

    def __init__(self, program, bound, oha, directory, quick):
        super().__init__(program, directory, quick)
        self.bound, self.oha = bound, oha
        self.bodies = list(customers.bodies(customers.BUNDLE, 2_000, 7))
        self.rows = directory / "rows.ndjson"
        self.rows.write_text("".join(f"{body}\n" for body in self.bodies))

    def serve(self, promise):
        """The service as it is delivered, but for its promise."""
        settings = {"ledger__promise": promise, "log__level": "info"}
        return running(self.command(), environment=environment(settings), ledger=self.fresh())

    @contextlib.contextmanager
    def address(self, name, size):
        """Where the server `name` listens; the bound answers `size` bytes."""
        if name != "bound":
            with self.serve(name) as server:
                yield server.http
            return
        process = subprocess.Popen([self.bound, "serve", str(size)], stdout=subprocess.PIPE, text=True)
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()
            process.wait()

    def answer_size(self):
        """Bytes of the body of an answer."""
        with self.serve("off") as server:
            connection = http.client.HTTPConnection(server.http, timeout=10)
            connection.request("POST", "/v1/score", self.bodies[0], {"content-type": "application/json"})
            return len(connection.getresponse().read())

    def ask(self, address, seconds, rate=None):
        """Requests a second, and the p50 in ms: of a closed loop, or from when each was due at `rate`."""
        how = ["-z", f"{seconds}s"] if rate is None else ["-q", str(rate), "-n", str(rate * seconds), "--latency-correction"]
        found = load.measure(self.oha, f"http://{address}/v1/score", self.rows, CONNECTIONS, how, timeout=3 * seconds + 30)
        if not found:
            raise Failed(f"the load was not done after {3 * seconds + 30} s")
        good, failed = load.outcomes(found)
        if failed:
            raise Failed(f"not every request was answered{failed}")
        return good / found["summary"]["total"], found["latencyPercentiles"]["p50"] * 1e3


# --- requests --------------------------------------------------------------------------------------------------------


def requests(place):
    rounds, seconds = (1, 2) if place.quick else (3, 4)
    size = place.answer_size()
    saturation, p50 = {name: [] for name in SERVERS}, {name: [] for name in SERVERS}
    for number in range(rounds):
        # By turns, so that whatever the machine does in time is on all sides.
        for name in SERVERS[number % 3 :] + SERVERS[: number % 3]:
            with place.address(name, size) as address:
                # A new ledger first grows its log, and makes a key for every customer.
                place.ask(address, 1)
                saturation[name].append(place.ask(address, seconds)[0])
                rate = int(saturation[name][-1] / 2)
                p50[name].append(place.ask(address, seconds, rate)[1])
            info(f"requests: round {number + 1}, {name}: {saturation[name][-1]:,.0f}/s, p50 {p50[name][-1]:.3f} ms at {rate:,}/s")
    middle = {name: (statistics.median(saturation[name]), statistics.median(p50[name])) for name in SERVERS}
    for name, least in (("committed", SHARE_RECORDED), ("off", SHARE_OFF)):
        # Within a round, so that both sides had the same neighbours.
        share = statistics.median(ours / bound for ours, bound in zip(saturation[name], saturation["bound"]))
        claim(share >= least, f"requests: ledger {name}: {middle[name][0]:,.0f}/s, {share:.2f} of the bound's {middle['bound'][0]:,.0f}/s (at least {least})")
    ratio = statistics.median(ours / bound for ours, bound in zip(p50["off"], p50["bound"]))
    claim(ratio <= P50_OFF, f"requests: ledger off: p50 {middle['off'][1]:.3f} ms at half of saturation, {ratio:.2f} times the bound's (at most {P50_OFF})")
    more = statistics.median(ours - bound for ours, bound in zip(p50["committed"], p50["bound"]))
    claim(more <= P50_RECORDED_MS, f"requests: ledger committed: p50 {middle['committed'][1]:.3f} ms at half of saturation, {more:.3f} ms more than the bound's (at most {P50_RECORDED_MS})")
    with place.address("committed", size) as address:
        alone = load.measure(place.oha, f"http://{address}/v1/score", place.rows, 1, ["-z", "2s"])
        info(f"requests: ledger committed: p50 {alone['latencyPercentiles']['p50'] * 1e3:.3f} ms of a caller alone")


# --- rows ------------------------------------------------------------------------------------------------------------


def rows(place):
    seconds = 2 if place.quick else 4
    scored = float(subprocess.run([place.bound, "rows", str(seconds)], cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    claim(scored >= ROWS_AIM, f"rows: the evaluator scores {scored:,.0f} rows/s of telco-churn in runs of 512 on {CORES} cores (at least {ROWS_AIM:,})")
    columns = place.directory / "columns.arrow"
    subprocess.run([place.bound, "columns", columns, str(BATCH_ROWS)], cwd=ROOT, check=True, capture_output=True)
    array = f"[{','.join((place.bodies * 5)[:BATCH_ROWS])}]".encode()
    for promise in ("off", "committed"):
        with place.serve(promise) as server:
            for media_type, body in (("application/json", array), (ARROW, columns.read_bytes())):
                info(f"rows: ledger {promise}: {batches(place, server.http, media_type, body, seconds):,.0f} rows/s as {media_type}, {BATCH_ROWS:,} a request")


def batches(place, address, media_type, body, seconds):
    """Rows a second of two callers at a time."""
    file = place.directory / "batch"
    file.write_bytes(body)
    command = [place.oha, "--no-tui", "--output-format", "json", "-m", "POST", "-T", media_type, "-D", file, "-c", "2", "-w", "-z"]
    for length in (1, seconds):
        done = subprocess.run([*command, f"{length}s", f"http://{address}/v1/score/batch"], capture_output=True, text=True, timeout=120, check=True)
    good, failed = load.outcomes(json.loads(done.stdout))
    if failed:
        raise Failed(f"not every batch was answered{failed}")
    return good * BATCH_ROWS / json.loads(done.stdout)["summary"]["total"]


# --- building --------------------------------------------------------------------------------------------------------


def bound_built():
    command = ["cargo", "bench", "--bench", "bound", "--no-run", "--locked", "--message-format=json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = [event for event in events if event.get("target", {}).get("name") == "bound" and event.get("executable")]
    return Path(found[-1]["executable"])


def place(options, program, directory):
    bound = options.bound.resolve() if options.bound else bound_built()
    oha = options.oha.resolve() if options.oha else load.load_generator()
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    # All that is started from here on has these cores and no others.
    os.sched_setaffinity(0, cores)
    return Place(program, bound, oha, directory, options.quick)


if __name__ == "__main__":
    more = [("--bound", {"type": Path, "help": "a bound that is built already"}), ("--oha", {"type": Path, "help": "an oha that is built already"})]
    sys.exit(evidence.main("bound", __doc__, {"requests": requests, "rows": rows}, place, more))
