#!/usr/bin/env python3
"""The evidence for slots and rollouts: a swap costs nothing, a bad challenger goes by itself, a good one stays, and no kill leaves
the slots in between. `make show-swap` runs it.

    python3 scripts/show_swap.py [--quick] [--only STEP] [--binary PATH]

One line per claim with its figure; exit code 1 if one falls short. Steps: swaps, stages, faults, good, kills. Standard library and
the load of benches/swap, which is built on first use.
"""

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import evidence
import swap_kills
import swap_trials
from evidence import Client, claim, info
from ledger_load import customers
from server import ROOT, Failed, Server

MODEL, SLOTS = "telco-churn", "/v1/slots/telco-churn"
ROWS, SEED = 2_000, 17
# The faults of 9.0.3 and 9.0.4 show at a tenure of 41 or 42: at one customer in fifty.
FAULTY_EVERY, FAULTY_TENURES = 50, (41, 42)
SWAPS, PAIRS, EVERY_MS = 500, 10, 100
TAIL_MAX, FLIP_MAX_US, GROWTH_MAX = 2.0, 1_000, 0.05
# A median over this is a queue, and no latency.
BACKLOG_MS = 100
SETTLED = 10
STAGES, LOOK_SECS = 60, 0.3
LOAD_SHARE = 0.5


class Place(evidence.Place):
    """The program under check, its load, bundles good and faulty in one place, and a directory on a real disk for ledgers."""

    def __init__(self, program, generator, directory, quick):
        super().__init__(program, directory, quick)
        self.generator = generator
        self.models = directory / "models"
        shutil.copytree(ROOT / "models" / MODEL, self.models / MODEL)
        shutil.copytree(ROOT / "models" / "mlc-churn", self.models / "mlc-churn")
        shutil.copytree(ROOT / "tests" / "data" / "bundles" / MODEL, self.models / MODEL, dirs_exist_ok=True)
        self.rows = directory / "rows.ndjson"
        self.rows.write_text("".join(f"{json.dumps(row, separators=(',', ':'))}\n" for row in rows()))

    def settings(self, champion):
        serve = f'[{{name = "{MODEL}", version = "{champion}"}}, {{name = "mlc-churn", version = "1.0.0"}}]'
        settings = {"models.dir": self.models, "models.serve": serve, "rollouts.arm_header": "true"}
        return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]

    def start(self, champion, ledger):
        return Running(Server([self.program, "serve", *self.settings(champion)], ledger=ledger))

    def load(self, server, mode, **options):
        """The load on a server, as a command."""
        words = [f"--{key.replace('_', '-')}={value}".split("=") for key, value in options.items()]
        command = [self.generator, mode, "--http", server.http, "--rows", self.rows]
        return [*command, *(word for pair in words for word in pair)]

    def measured(self, server, mode, **options):
        """What the load found, once it has ended."""
        done = subprocess.run(self.load(server, mode, **options), capture_output=True, text=True, timeout=900)
        if done.returncode != 0:
            raise Failed(f"the load ended with {done.returncode}: {done.stderr.strip()[:1_000]}")
        return json.loads(done.stdout)


class Running:
    """A server for a `with` block, whose moves are made by name."""

    def __init__(self, server):
        self.server, self.http = server, server.http
        self.admin, self._is_killed = Client(server.admin), False

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.admin.close()
        if kind or self._is_killed:
            return self.server.kill()
        code = self.server.stop()
        if code != 0:
            raise Failed(f"the server ended with {code}: {''.join(self.server.output[-10:])}")

    def kill(self):
        self._is_killed = True
        self.server.kill()

    def move(self, verb, **body):
        return self.admin.json("POST", f"{SLOTS}/{verb}", {"by": "show-swap", **body})

    def slots(self):
        return self.admin.json("GET", SLOTS)

    def history(self, limit=20):
        return self.admin.json("GET", f"{SLOTS}/history?limit={limit}")["moves"]


def rows():
    for number, body in enumerate(customers.bodies(customers.BUNDLE, ROWS, SEED)):
        row = json.loads(body)
        tenure = row["features"]["tenure"]
        if number % FAULTY_EVERY == 0:
            row["features"]["tenure"] = FAULTY_TENURES[number // FAULTY_EVERY % 2]
        elif tenure in FAULTY_TENURES:
            row["features"]["tenure"] = tenure + 2
        yield row


# --- swaps -----------------------------------------------------------------------------------------------------------


def swaps(place):
    count, pairs = (60, 2) if place.quick else (SWAPS, PAIRS)
    with place.start("1.0.0", place.fresh()) as running:
        running.move("stage", version="1.1.0")
        runs = [place.measured(running, "saturate", seconds=3 if place.quick else 5) for _ in range(3)]
        rate = int(statistics.median(run["per_second"] for run in runs) * LOAD_SHARE)
        told = ", ".join(f"{run['per_second']:,.0f}" for run in runs)
        info(f"swaps: saturation of server and load on the same cores: {told} a second; the load is {rate:,} a second")
        options = {"admin": running.server.admin, "pid": running.server.process.pid, "rate": rate}
        found = place.measured(running, "swaps", **options, pairs=pairs, swaps=count, every_ms=EVERY_MS)
    claim_answers("swaps", found)
    made, learnt = found["swaps"], found["learnt"]
    text = f"{len(made['moves_ms'])} of {count} were made, promote and roll back in turn, {EVERY_MS} ms apart"
    claim(len(made["moves_ms"]) == count and not made["refused"], f"swaps: {text}{of_refused(made['refused'])}")
    versions = {name: seen["answers"] for name, seen in found["load"]["versions"].items()}
    text = f"{versions} answers; {learnt['differing']} of {learnt['rows']} rows have another score in each"
    claim(min(versions.values()) > 0 and learnt["differing"] > learnt["rows"] // 2, f"swaps: {text}")
    text = f"{found['load']['stale']} answers came from the other version once a swap was answered"
    claim(found["load"]["stale"] == 0, f"swaps: {text}")
    claim_tail(found["load"]["parts"], pairs)
    flips = sorted(made["flips_us"])
    text = f"{statistics.median(flips):.2f} us at the median, p99 {flips[len(flips) * 99 // 100]:.2f}, at most {flips[-1]:.2f} us"
    # The longest of hundreds is that of a thread that was put to sleep in the middle: no request waits for a flip.
    claim(flips[len(flips) * 99 // 100] < FLIP_MAX_US, f"swaps: the flip itself took {text} (p99 below {FLIP_MAX_US} us)")
    moves = sorted(made["moves_ms"])
    info(f"swaps: a whole move, journalled, took {statistics.median(moves):.1f} ms at the median, {moves[-1]:.1f} ms at most")
    claim_flat("swaps", made["resident"])


def of_refused(refused):
    return f"; refused: {refused[:3]}" if refused else ""


def claim_answers(step, found):
    """No request failed, none was forgotten, and every score belongs to the version that it names."""
    seen = found["load"]
    text = f"{seen['failed']} failed and {seen['unanswered']} unanswered of {seen['requests']:,} requests; {seen['wrong']} scores"
    text = f"{text} do not belong to the version that they name{of_refused(list(seen['others'].items()))}"
    claim(seen["failed"] == seen["unanswered"] == seen["wrong"] == 0 < seen["requests"], f"{step}: {text}")


def claim_tail(parts, pairs):
    quiet, swapping = ([part for part in parts if part["name"] == name] for name in ("quiet", "swapping"))
    ratios = []
    for before, during in zip(quiet, swapping):
        ratios.append(during["p999_ms"] / before["p999_ms"])
        info(f"swaps: without {tail(before)}; with {tail(during)}: {ratios[-1]:.2f}")
    late = sum(part["p50_ms"] > BACKLOG_MS for part in quiet)
    if late:
        info(f"swaps: the machine did not carry the load by itself in {late} of {len(quiet)} blocks without swaps: others use it")
    median = statistics.median(ratios)
    text = f"{median:.2f} times the one without, median of {len(ratios)} pairs ({min(ratios):.2f} to {max(ratios):.2f})"
    claim(len(ratios) == pairs and median <= TAIL_MAX, f"swaps: p99.9 with swaps is {text}; at most {TAIL_MAX}")


def tail(part):
    return f"p50 {part['p50_ms']:.2f}, p99 {part['p99_ms']:.2f}, p99.9 {part['p999_ms']:.2f} ms"


def claim_flat(step, resident):
    """What is freed goes back after a second, so memory swings: what grows is the most of it."""
    later = resident[SETTLED:]
    half = len(later) // 2
    first, last = max(later[:half]), max(later[half:])
    text = f"at most {first >> 20} MiB in the first half after {SETTLED}, {last >> 20} MiB in the second (from {min(later) >> 20}, at the end {later[-1] >> 20})"
    claim(last <= first * (1 + GROWTH_MAX), f"{step}: resident memory was {text}: growth of {last / first - 1:.1%} (at most {GROWTH_MAX:.0%})")


def stages(place):
    """Loading and leaving too: a model that has left must be given back."""
    count = 20 if place.quick else STAGES
    with place.start("1.0.0", place.fresh()) as running:
        running.move("stage", version="1.1.0")
        resident, took = [], []
        # The caches of the ledger fill with load, and are not what is looked at.
        place.measured(running, "saturate", seconds=5)
        with swap_trials.Watching(place, running, rate=1_000) as watching:
            for number in range(count):
                # What has left is given back at the next look at the slots.
                time.sleep(LOOK_SECS)
                running.move("retire")
                begun = time.monotonic()
                running.move("stage", version=("1.2.0", "1.1.0")[number % 2])
                took.append((time.monotonic() - begun) * 1e3)
                resident.append(resident_of(running.server.process.pid))
            found = watching.end()
    claim_answers("stages", found)
    whole = found["load"]
    text = f"{count} times retire and stage under 1,000/s: {statistics.median(took):.0f} ms at the median, {max(took):.0f} ms at most"
    info(f"stages: {text}; p99 of customers {whole['p99_ms']:.2f}, p99.9 {whole['p999_ms']:.2f} ms")
    claim_flat("stages", resident)


def resident_of(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


# --- all of it -------------------------------------------------------------------------------------------------------


STEPS = {"swaps": swaps, "stages": stages, "faults": swap_trials.faults, "good": swap_trials.good, "kills": swap_kills.kills}


def load_built():
    """The load of benches/swap, built."""
    command = ["cargo", "bench", "--bench", "swap", "--no-run", "--locked", "--message-format=json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = [event for event in events if event.get("target", {}).get("name") == "swap" and event.get("executable")]
    return Path(found[-1]["executable"])


def place(options, program, directory):
    generator = options.generator.resolve() if options.generator else load_built()
    return Place(program, generator, directory, options.quick)


if __name__ == "__main__":
    more = [("--generator", {"type": Path, "help": "a load that is built already"})]
    sys.exit(evidence.main("show-swap", __doc__, STEPS, place, more))
