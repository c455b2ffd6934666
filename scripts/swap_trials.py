"""Challengers on trial under load: the faulty ones go by themselves, the good one stays."""

import datetime
import json
import statistics
import subprocess
import time

from evidence import claim, info
from server import Failed

CHAMPION = "1.2.0"
# Which guardrail has to find what.
FAULTS = {
    "9.0.3-erring": {"error_rate"},
    "9.0.2-slow": {"latency"},
    "9.0.1-shifted": {"score_drift", "tier_mix"},
    "9.0.4-nan": {"non_finite", "error_rate"},
}
GOOD = "9.0.0-good"
RATE = 4_000
# So many that hardly a customer comes twice: one that comes often would count as often.
CUSTOMERS = 1_000_000
SHADOW = [{"exposure": "shadow", "share": 1.0, "bake_secs": 2}]
CANARY = [{"exposure": "canary", "share": share, "bake_secs": 1} for share in (0.05, 0.25, 0.5, 1.0)]
PLANS = {"shadow": SHADOW, "canary": CANARY}
TRIAL_SECS_MAX, GOOD_SECS_MAX = 45, 60
# The service looks at its rollouts four times a second.
TICK_MS_MAX = 1_000
P99_MAX_MS = 100
RUNS, RUNS_QUICK = 20, 3


class Watching:
    """The load for a `with` block: begun once it has learnt the scores of both models."""

    def __init__(self, place, running, rate=RATE):
        command = place.load(running, "watch", rate=rate, customers=CUSTOMERS)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"the load did not begin: {self._process.stderr.read()[:1_000]}")
        self.learnt = json.loads(line)["learnt"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def mark(self, name):
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()

    def end(self):
        told, complaint = self._process.communicate(timeout=60)
        if self._process.returncode != 0:
            raise Failed(f"the load ended with {self._process.returncode}: {complaint.strip()[:1_000]}")
        return json.loads(told)


class Trial:
    """One rollout of the staged model from its start to its end, under load."""

    def __init__(self, place, running, version, steps, seconds):
        running.move("stage", version=version)
        self.verdicts, self.fallbacks, self.dropped, self.step, self.passed_ms = [], 0, 0, 0, None
        with Watching(place, running) as watching:
            self.learnt = watching.learnt
            time.sleep(1)
            watching.mark("trial")
            running.move("start", steps=steps)
            self._follow(running, len(steps), seconds)
            watching.mark("after")
            time.sleep(1.2)
            self.load = watching.end()["load"]
        moves = running.history()
        self.begun_ms = unix_ms(next(move for move in moves if move["verb"] == "start")["at"])
        self.end = running.slots()["last_rollout"]
        self.ended_ms = unix_ms(self.end["at"])
        self.result = moves[0]["result"]
        self.of_version = self.load["versions"][version]
        self.part = next(part for part in self.load["parts"] if part["name"] == "trial")
        self.before = next(part for part in self.load["parts"] if part["name"] == "start")

    def _follow(self, running, steps, seconds):
        """Until it has ended, or passed at its last step, or time is up: then it is aborted."""
        end = time.monotonic() + seconds
        while rollout := running.slots().get("rollout"):
            self.fallbacks, self.dropped = rollout["fallbacks"], rollout["samples_dropped"]
            self.step, self.verdict, self.guardrails = rollout["step"], rollout["verdict"], rollout["guardrails"]
            baked = unix_ms(rollout["step_since"]) / 1e3 + rollout["steps"][-1]["bake_secs"] < time.time()
            is_through = self.step == steps and self.verdict == "pass" and baked
            if is_through or time.monotonic() > end:
                self.passed_ms = time.time() * 1e3 if is_through else None
                running.move("abort")
            time.sleep(0.05)

    @property
    def failing(self):
        return {reading["guardrail"] for reading in self.end["guardrails"] if reading["verdict"] == "fail"}


def unix_ms(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1e3


# --- faulty ----------------------------------------------------------------------------------------------------------


def faults(place):
    with place.start(CHAMPION, place.fresh()) as running:
        for version, guardrails in FAULTS.items():
            for kind, steps in PLANS.items():
                fault(place, running, version, guardrails, kind, steps)
        champion = next(slot for slot in running.slots()["slots"] if slot.get("role") == "champion")
        claim(champion["version"] == CHAMPION, f"faults: the champion is {champion['version']} as before")


def fault(place, running, version, guardrails, kind, steps):
    trial, name = Trial(place, running, version, steps, TRIAL_SECS_MAX), f"faults: {version} in {kind}"
    seen, found = trial.of_version, trial.failing
    is_out = trial.end["end"] == "rolled_back" and trial.end["version"] == version and bool(found & guardrails)
    since_ms = seen["first_unix_ms"] if kind == "canary" and seen["answers"] else trial.begun_ms
    text = f"{trial.end['end']} by {', '.join(sorted(found)) or 'nothing'} at step {trial.end['step']} of {len(steps)}"
    claim(is_out, f"{name}: {text}, {(trial.ended_ms - since_ms) / 1e3:.1f} s after it could first be seen")
    for reading in trial.end["guardrails"]:
        if reading["verdict"] == "fail":
            info(f"{name}: {reading['guardrail']}: {reading['figures']}")
    load, answers = trial.load, seen["answers"]
    text = f"{load['failed']} errors seen by clients, {load['unanswered']} unanswered, {load['wrong']} wrong scores"
    text = f"{text} of {load['requests']:,} requests; it answered {answers:,}, the champion in its place {trial.fallbacks} or a few more"
    claim(load["failed"] == load["unanswered"] == load["wrong"] == 0, f"{name}: {text}{unlike(load['others'])}")
    if kind == "canary" and answers:
        late_ms = seen["last_unix_ms"] - trial.ended_ms
        claim(late_ms < TICK_MS_MAX, f"{name}: its last answer came {late_ms:+.0f} ms after the rollback on record (below {TICK_MS_MAX})")
    if kind == "shadow":
        claim(answers == 0, f"{name}: it answered {answers} customers; {trial.dropped} samples were dropped")
    part, before = trial.part, trial.before
    text = f"p99 of clients {part['p99_ms']:.2f} ms until then, {before['p99_ms']:.2f} ms before; p99.9 {part['p999_ms']:.2f} ms"
    claim(part["p99_ms"] < P99_MAX_MS, f"{name}: {text} (below {P99_MAX_MS} ms)")


def unlike(others):
    return f": {others}" if others else ""


# --- good ------------------------------------------------------------------------------------------------------------


def good(place):
    runs = RUNS_QUICK if place.quick else RUNS
    with place.start(CHAMPION, place.fresh()) as running:
        for kind, steps in PLANS.items():
            passed, kept, errors, took, told = 0, 0, 0, [], []
            for number in range(1, runs + 1):
                trial = Trial(place, running, GOOD, steps, GOOD_SECS_MAX)
                kept += trial.end["end"] != "rolled_back"
                passed += trial.passed_ms is not None
                errors += trial.load["failed"] + trial.load["unanswered"] + trial.load["wrong"]
                if trial.end["end"] == "rolled_back":
                    told.append(f"run {number}: {trial.result}")
                elif trial.passed_ms is None:
                    held = [f"{one['guardrail']}: {one['figures']}" for one in trial.guardrails if one["verdict"] != "pass"]
                    text = f"{kind} run {number} did not pass: {trial.verdict} at step {trial.step}"
                    info(f"good: {text}: {' / '.join(held)}")
                else:
                    took.append((trial.passed_ms - trial.begun_ms) / 1e3)
            text = f"{kept} of {runs} runs in {kind} ({len(steps)} steps) were not rolled back"
            claim(kept == runs, f"good: {text}{unlike(told)}")
            slowest = f", after {statistics.median(took):.1f} s at the median, {max(took):.1f} s at most" if took else ""
            # One that holds for ever is not rolled back either.
            text = f"{passed} of {runs} came to the verdict pass at the last step within {GOOD_SECS_MAX} s{slowest}"
            claim(passed == runs, f"good: {kind}: {text}")
            claim(errors == 0, f"good: {kind}: {errors} requests failed, were unanswered, or had a wrong score")
