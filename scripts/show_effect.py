#!/usr/bin/env python3
"""The evidence for what came of decisions: intervals that hold the truth, drift that is found and not imagined, fairness as it can be
counted by hand, and alerts that arrive. `make show-effect` runs it.

    python3 scripts/show_effect.py [--quick] [--only STEP] [--binary PATH]

One line per claim with its figure; exit code 1 if one falls short. Steps: months (100 simulated months with known effects), drift,
guardrail, retraining, cost (of monitoring; builds oha on first use), rules, alerts (a real Prometheus and Alertmanager, fetched on first
use), dashboards. Standard library.
"""

import http.server
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

from pathlib import Path

import effect_retraining
import evidence
from effect_month import Month, true_reduction
from evidence import Client, claim, info
from ledger_load import load, oha
from server import ROOT, Failed, Server

MONTHS, CUSTOMERS, HELD_MIN, FALSE_ALARMS_MAX = 100, 4_000, 93, 5
DRIFTED = "tenure"
# How many times as often the customers of a challenger that harms leave, how many are decided on, and how often that is tried.
HARM, CANARY_CUSTOMERS, CANARIES = 2.0, 3_000, 4
# After so long without a word a customer stayed: a month, in small.
MATURITY_SECS = 15
# The share of its throughput that monitoring may cost a service, and how that is measured.
COST_MAX, PAIRS, PAIR_SECS = 0.05, 7, 8
ALERT_SECS = 150
DEPLOY = ROOT / "deploy"


class Place(evidence.Place):
    def __init__(self, program, directory, quick, generator):
        super().__init__(program, directory, quick)
        self._generator = generator

    @property
    def oha(self):
        """The load generator, built when it is wanted first."""
        self._generator = self._generator or load.load_generator()
        return self._generator

    def serve(self, policy, ledger=None, environment=None, **settings):
        ledger = ledger or self.fresh()
        path = ledger / "policy.toml"
        path.write_text(policy)
        serve = f'[{{name = "telco-churn", version = "1.0.0", policy = "{path}"}}]'
        words = {"models.serve": serve, "insight.maturity_days": "0", "drain.delay_ms": "0", **settings}
        words = [word for key, value in words.items() for word in ("--set", f"{key}={value}")]
        return Server([*self.command(), *words], ledger=ledger, environment=environment)


def policy(held_out):
    unbounded, _ = (ROOT / "models" / "policy" / "value.toml").read_text().split("# What interventions may cost together")
    # Without capacities: what is offered late in a month is what is offered early, so that there is one truth.
    unbounded = re.sub(r"^capacity = .*\n", "", unbounded, flags=re.MULTILINE)
    return f"{unbounded}\n[holdout]\nshare = {held_out}\n"


def insight(server, what, window="1h"):
    return Client(server.admin).json("GET", f"/v1/insight/{what}?window={window}")


def figure(answer, name):
    return next((one["estimate"] for one in answer["overall"]["tree"] if one["name"] == name), None)


# --- what interventions did ------------------------------------------------------------------------------------------


def months(place):
    """Many months, each a service of its own: how often the interval holds the truth, how often drift is imagined, groups by hand."""
    count, size = (8, 2_000) if place.quick else (MONTHS, CUSTOMERS)
    lived, intervals, alarms, parity_worst = [], [], [], 0.0
    for seed in range(count):
        server = place.serve(policy(0.3))
        try:
            month = Month(seed, size)
            month.decide(server.http)
            month.live(server.http)
            reduction = figure(insight(server, "kpis"), "churn_reduction")
            intervals.append((reduction["low"], reduction["high"], reduction["value"]))
            drift = insight(server, "drift")["versions"][0]
            alarms.append([one["feature"] for one in drift["features"] if one["verdict"] in ("warn", "alarm")])
            parity_worst = max(parity_worst, parity_difference(month, insight(server, "fairness")))
        finally:
            server.stop()
        lived.append(month)
        month.rows = []
    truth = true_reduction(lived)
    held = sum(low <= truth <= high for low, high, _ in intervals)
    need = HELD_MIN if count == MONTHS else count - 2
    widths = sorted(high - low for low, high, _ in intervals)
    middle = sorted(value for _, _, value in intervals)[count // 2]
    claim(held >= need, f"months: the interval of the churn reduction holds the truth ({truth:.4f}) in {held} of {count} months of {size} customers (at least {need}); "
          f"median figure {middle:.4f}, median width {widths[count // 2]:.3f}")
    false = sum(bool(names) for names in alarms)
    claim(false <= FALSE_ALARMS_MAX, f"months: drift of any of 15 features told in {false} of {count} clean months (at most {FALSE_ALARMS_MAX})")
    claim(parity_worst <= 1e-9, f"months: parity ratios are those counted by hand, to {parity_worst:.1e}")


def parity_difference(month, answer):
    rates = month.selection()
    best = max(rates.values())
    groups = next(one for one in answer["overall"]["offers"] if one["attribute"] == "group")["groups"]
    return max(abs(group["parity"]["value"] - rates[group["group"]] / best) for group in groups if group.get("parity"))


def drift(place):
    """Longer tenures from some moment on: is that feature named, and first?"""
    def shift(features, drawn):
        features[DRIFTED] = min(features[DRIFTED] + drawn.randrange(10, 30), 120)

    server = place.serve(policy(0.1))
    try:
        sent = 0
        while sent < 20_000:
            month = Month(1_000 + sent, 500, shift)
            month.decide(server.http)
            sent += 500
            answer = insight(server, "drift")["versions"][0]
            top = next(iter(answer["drifting"]), None)
            if top:
                break
    finally:
        server.stop()
    worst = answer["features"][0]
    told = f"PSI {worst['psi']:.3f}, {worst['verdict']}"
    claim(top == DRIFTED, f"drift: {DRIFTED} is named first after {sent} customers: {told}")


# --- what follows from it --------------------------------------------------------------------------------------------


def guardrail(place):
    """Canaries whose customers leave more often, and such whose do not, told by outcomes alone: which of them are promoted?"""
    count, size = 1 if place.quick else CANARIES, CANARY_CUSTOMERS
    for harm, expected in ((HARM, "rolled_back"), (1.0, "promoted")):
        ends, took, figures = [], [], ""
        for seed in range(count):
            end, seconds, figures = canary(place, 2_000 + seed, size, harm)
            ends.append(end)
            took.append(seconds)
        text = f"{ends.count(expected)} of {count} {expected}, {max(took):.1f} s after the last outcome at most; {figures}"
        who = f"leave {harm} times as often" if harm > 1 else "leave as often"
        claim(ends == [expected] * count, f"guardrail: challengers whose customers {who}: {text}")


def canary(place, seed, size, harm):
    """How one canary of half of the customers ends, how long after the last outcome, and what its guardrail of churn says."""
    # Nothing but outcomes is to decide: a slow machine is not, and there is one step, which waits until it is known who left.
    settings = {"insight.maturity_days": f"{MATURITY_SECS / 86_400:.9f}", "insight.refresh_secs": "1", "rollouts.promote": "true",
                "rollouts.limits.latency_floor_us": "1000000", "rollouts.limits.outcomes_min": str(size // 4),
                "rollouts.shadow.share": "1.0", "rollouts.shadow_queue_max": "8192",
                "rollouts.limits.requests_min": "100", "rollouts.limits.error_margin": "0.05", "rollouts.limits.tier_shift_max": "0.5", "rollouts.limits.psi_max": "1.0"}
    server = place.serve(policy(0.1), **settings)
    try:
        admin = Client(server.admin)
        admin.json("POST", "/v1/slots/telco-churn/stage", {"by": "ops", "version": "1.1.0"})
        steps = [{"exposure": "canary", "share": 0.5, "bake_secs": 1}]
        admin.json("POST", "/v1/slots/telco-churn/start", {"by": "ops", "why": "to know", "steps": steps})
        month = Month(seed, size)
        decided = time.monotonic()
        month.decide(server.http)
        slots = admin.json("GET", "/v1/slots/telco-churn")
        if not slots.get("rollout"):
            raise Failed(f"the rollout ended before any outcome: {slots.get('last_rollout')}")
        month.live(server.http, lambda decision: harm if decision["model"]["arm"] == "challenger" else 1)
        begun = time.monotonic()
        if begun - decided > MATURITY_SECS:
            raise Failed(f"outcomes were told {begun - decided:.0f} s after the first decision, later than they count: the machine is too busy")
        while slots.get("rollout") and time.monotonic() - begun < 60:
            time.sleep(0.1)
            slots = admin.json("GET", "/v1/slots/telco-churn")
        last = slots.get("last_rollout") or {"end": "none within a minute", **(slots["rollout"] or {})}
        churn = next((one for one in last.get("guardrails", []) if one["guardrail"] == "churn"), {})
        waits = [f"{one['guardrail']}: {one['figures']}" for one in last.get("guardrails", []) if one["verdict"] == "hold"]
        waits = f"; waits for {' / '.join(waits)}" if slots.get("rollout") else ""
        return last["end"], time.monotonic() - begun, f"churn {churn.get('verdict')}: {churn.get('figures')}{waits}"
    finally:
        server.stop()


def cost(place):
    """The same service with monitoring and without it, saturated, by turns."""
    pairs, seconds, warm_up = (2, 3, 2) if place.quick else (PAIRS, PAIR_SECS, 3)
    bodies = place.directory / "cost.ndjson"
    rows = Month(7, 2_000).rows
    for row in rows:
        row["context"]["features_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    bodies.write_text("".join(f"{json.dumps(row, separators=(',', ':'))}\n" for row in rows))

    def saturated(is_on):
        ledger = place.fresh()
        # Twelve times as often as by default, so that what is measured beside the requests is in every run.
        server = place.serve(policy(0.1), ledger, **{"insight.enabled": str(is_on).lower(), "insight.refresh_secs": "5"})
        try:
            oha(place, server.http, warm_up, 128, None, bodies)
            found, good, failed = oha(place, server.http, seconds, 128, None, bodies)
        finally:
            server.stop()
            shutil.rmtree(ledger)
        if failed:
            raise Failed(f"insight.enabled {is_on}: {failed}")
        return good / found["summary"]["total"]

    ratios = []
    for pair in range(pairs):
        # By turns, so that whatever the machine does in time is on both sides.
        found = {is_on: saturated(is_on) for is_on in ((True, False) if pair % 2 else (False, True))}
        ratios.append(found[True] / found[False])
        info(f"cost: insight on {found[True]:,.0f}/s, off {found[False]:,.0f}/s: {ratios[-1]:.3f}")
    median = statistics.median(ratios)
    claim(median >= 1 - COST_MAX, f"cost: with what is monitored {median:.3f} of the saturation without it (insight.enabled), median of {pairs} pairs "
          f"({min(ratios):.3f} to {max(ratios):.3f}; at least {1 - COST_MAX}); counters of requests are in both")


# --- alerts ----------------------------------------------------------------------------------------------------------


def rules(place):
    done = subprocess.run(["make", "--silent", "alerts"], cwd=ROOT, capture_output=True, text=True)
    tests = len(re.findall(r"^  - name:", "".join(path.read_text() for path in (DEPLOY / "prometheus" / "tests").glob("*.yml")), re.MULTILINE))
    claim(done.returncode == 0, f"rules: promtool and amtool have no complaint, {tests} unit tests pass {done.stderr[-300:]}")
    done = subprocess.run([sys.executable, DEPLOY / "grafana" / "dashboards.py", "--check"], capture_output=True, text=True)
    claim(done.returncode == 0, f"rules: the committed dashboards are those of their script: {done.stdout.strip()}")


class Watched:
    """A service that is watched by the Prometheus and the Alertmanager of `deploy/`, and a receiver of what they tell."""

    def __init__(self, place):
        self.directory = place.fresh()
        self.received = []
        received = self.received

        class Receiver(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                received.extend((self.path, alert) for alert in body["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        threading.Thread(target=self.receiver.serve_forever, daemon=True).start()
        models = self.directory / "models"
        models.symlink_to(ROOT / "models")
        serve = '[{name = "telco-churn", version = "1.0.0"}]'
        words = {"models.serve": serve, "insight.refresh_secs": "1", "insight.maturity_days": "0"}
        command = [*place.command(), *(word for key, value in words.items() for word in ("--set", f"{key}={value}"))]
        self.server = Server(command, ledger=place.fresh())
        self.prometheus, self.alertmanager = free_port(), free_port()
        self.processes = []
        self.start()

    def start(self):
        """The committed files, but for addresses and for how often things are looked at."""
        text = (DEPLOY / "alertmanager" / "alertmanager.yml").read_text()
        text = text.replace("http://127.0.0.1:9099", f"http://127.0.0.1:{self.receiver.server_port}").replace("group_wait: 30s", "group_wait: 1s")
        (self.directory / "alertmanager.yml").write_text(text)
        text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
        text = text.replace("127.0.0.1:8081", self.server.admin).replace("127.0.0.1:9093", f"127.0.0.1:{self.alertmanager}").replace("15s", "1s")
        for path in (DEPLOY / "prometheus").glob("*.rules.yml"):
            (self.directory / path.name).write_text(path.read_text().replace("interval: 30s", "interval: 1s"))
        (self.directory / "prometheus.yml").write_text(text)
        programs = (
            ("alertmanager", f"--config.file={self.directory}/alertmanager.yml", f"--storage.path={self.directory}/alertmanager",
             f"--web.listen-address=127.0.0.1:{self.alertmanager}", "--cluster.listen-address="),
            ("prometheus", f"--config.file={self.directory}/prometheus.yml", f"--storage.tsdb.path={self.directory}/prometheus",
             f"--web.listen-address=127.0.0.1:{self.prometheus}"),
        )
        for words in programs:
            log = (self.directory / f"{words[0]}.log").open("w")
            self.processes.append(subprocess.Popen([ROOT / "scripts" / "promtool.sh", *words], stdout=log, stderr=log, start_new_session=True))

    def query(self, expression):
        url = f"http://127.0.0.1:{self.prometheus}/api/v1/query?query={urllib.parse.quote(expression)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refused:
            return json.load(refused)
        except OSError as failed:
            return {"status": "error", "error": str(failed)}

    def until(self, expected, seconds):
        """The seconds until `expected` has something, else None."""
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            if expected():
                return time.monotonic() - begun
            time.sleep(0.2)
        return None

    def alert(self, name):
        return [(path, alert) for path, alert in self.received if alert["labels"]["alertname"] == name and alert["status"] == "firing"]

    def stop(self):
        for process in self.processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.server.kill()
        self.receiver.shutdown()


def free_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def alerts(place):
    """Breaks something and waits for the webhook: scores that fail, then a service that is gone."""
    watched = Watched(place)
    try:
        if watched.until(lambda: watched.query("up").get("data", {}).get("result"), 60) is None:
            raise Failed((watched.directory / "prometheus.log").read_text()[-1_000:])
        good = Month(5, 200)
        good.decide(watched.server.http)
        claim(not watched.received, f"alerts: nothing is told of a healthy service ({len(watched.received)} alerts)")
        watched.server.kill()
        took = watched.until(lambda: watched.alert("MainstayDown"), ALERT_SECS)
        path = watched.alert("MainstayDown")[0][0] if took else None
        claim(took is not None and path == "/pages", f"alerts: a killed service is a page at the webhook after {took or ALERT_SECS:.0f} s (the rule waits for 60)")
    finally:
        watched.stop()


def dashboards(place):
    """Every expression on the dashboards and in the rules, asked of a real Prometheus over a real exposition."""
    watched = Watched(place)
    try:
        lived = Month(6, 500)
        lived.decide(watched.server.http)
        lived.live(watched.server.http)
        client = Client(watched.server.http)
        for row in lived.rows[:50]:
            client.json("POST", "/v1/score", row)
        if watched.until(lambda: watched.query('mainstay_kpi{kpi="churn_rate"}').get("data", {}).get("result"), 60) is None:
            raise Failed("no key figures arrived")
        time.sleep(5)
        known = set(watched_names(watched))
        wrong, empty, asked = [], [], 0
        for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
            for panel in json.loads(path.read_text())["panels"]:
                for target in panel["targets"]:
                    asked += 1
                    expression = target["expr"].replace("$__rate_interval", "30s").replace("$model", ".*")
                    answer = watched.query(expression)
                    if answer["status"] != "success":
                        wrong.append(f"{panel['title']}: {answer.get('error')}")
                    elif not answer["data"]["result"]:
                        empty.append(panel["title"])
        claim(not wrong, f"dashboards: {asked} expressions are understood {'; '.join(wrong)}")
        info(f"dashboards: nothing to show yet on a fresh service for: {', '.join(sorted(set(empty))) or 'none'}")
        texts = [path.read_text() for path in [*(DEPLOY / "grafana" / "dashboards").glob("*.json"), *(DEPLOY / "prometheus").glob("*.rules.yml")]]
        named = {name for text in texts for name in re.findall(r"\b(mainstay_\w+)", text)}
        unknown = sorted(name for name in named if name not in known and name not in SELDOM)
        claim(not unknown, f"dashboards: {len(named)} metrics are named, and the service exposes them {', '.join(unknown)}")
    finally:
        watched.stop()


# What is only there once something happened, or is set: a rollback, a budget, a broken guardrail, a target, a receiver.
SELDOM = {"mainstay_rollout_moves_total", "mainstay_rollout_guardrail", "mainstay_budget_amount", "mainstay_budget_spent",
          "mainstay_budget_elapsed_ratio", "mainstay_problems_total", "mainstay_kpi_standing", "mainstay_retraining_undelivered",
          "mainstay_retraining_tries_total"}


def watched_names(watched):
    with urllib.request.urlopen(f"http://127.0.0.1:{watched.prometheus}/api/v1/label/__name__/values", timeout=10) as answer:
        return json.load(answer)["data"]


STEPS = {"months": months, "drift": drift, "guardrail": guardrail, "retraining": effect_retraining.step, "cost": cost, "rules": rules,
         "alerts": alerts, "dashboards": dashboards}


def place(options, program, directory):
    return Place(program, directory, options.quick, options.oha)


if __name__ == "__main__":
    more = [("--oha", {"type": Path, "help": "an oha that is built already"})]
    sys.exit(evidence.main("show-effect", __doc__, STEPS, place, more))
