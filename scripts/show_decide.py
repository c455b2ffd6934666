#!/usr/bin/env python3
"""The evidence for decisions: the laws hold, money is spent well and never beyond what there is, reasons are exact, and explaining costs
little. `make show-decide` runs it.

    python3 scripts/show_decide.py --data DIRECTORY [--quick] [--only STEP] [--binary PATH]

One line per claim with its figure; exit code 1 if one falls short. Steps: laws, live, knapsack, golden, readme, speed, shap. DIRECTORY
holds telco_customer_churn.csv and golden/ (models/train/README.md). Python 3.11; knapsack installs the trainer's packages, shap its own,
and speed builds oha, each on first use.
"""

import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import evidence
from evidence import Client, claim, info
from ledger_load import customers, load, oha
from server import ROOT, running
from show_score import customers as published

TELCO, MLC = "models/telco-churn/1.0.0", "models/mlc-churn/1.0.0"
VALUE = "models/policy/value.toml"
# Law: the tests that hold it, each with thousands of drawn cases or 16 threads of its own.
LAWS = {
    "every score has exactly one tier, and tiers rise with the score": [
        "domain::policy::document::tests::every_score_has_exactly_one_tier"],
    "spend is never over the budget, 16 threads at once": [
        "engine::account::tests::sixteen_threads_never_spend_more_than_the_budget", "spend::never_more_is_spent_than_there_is"],
    "arms are nested as shares grow": ["domain::policy::experiment::tests::who_is_in_stays_where_it_is_as_shares_grow"],
    "the holdout is sticky, grows, and is independent of the arm": [
        "domain::policy::holdout::tests::it_is_sticky_grows_and_is_independent_of_the_arms"],
    "contributions and base sum up to the log-odds of the score": [
        "domain::reason::linear::tests::contributions_and_base_sum_up_to_the_margin",
        "domain::reason::shapley::tests::finds_what_is_known_and_sums_up",
        "domain::reason::tests::points_sum_up_to_score_less_base"],
    "a model's estimate of uplift replaces score x effectiveness": [
        "domain::policy::assessment::tests::an_estimate_stands_for_score_times_effectiveness",
        "uplift::an_estimate_stands_for_score_times_effectiveness", "uplift::each_model_estimates_by_itself"],
    "the knapsack is exact on small inputs and within half a percent on large ones": [
        "domain::policy::allocation::tests::small_inputs_are_exact",
        "domain::policy::allocation::tests::odd_amounts_are_exact_too",
        "domain::policy::allocation::tests::large_inputs_are_within_half_a_percent"],
}
SUM_MAX, GOLDEN_MAX = 1e-5, 1e-5
GAP_MAX = 0.005
RATE, PAIRS, PAIR_SECS, P99_RATIO_MAX = 2_000, 7, 8, 1.5
SHAP_US_MAX = 40.0
SHAP = ["shap==0.51.0", "onnx==1.23.2", "numpy==2.4.6"]


class Place(evidence.Place):
    """With the published data."""

    def __init__(self, options, program, directory):
        super().__init__(program, directory, options.quick)
        self.data, self.oha = options.data, options.oha

    def serve(self, **settings):
        return running(self.command(), environment=evidence.environment(settings), ledger=self.fresh())


def cargo_test(*words):
    """The output of tests that have to pass, and how many ran."""
    command = ["cargo", "test", "--locked", "--lib", "--test", "it", "--", "--exact", "--nocapture", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    passed = sum(int(count) for count in re.findall(r"(\d+) passed", done.stdout))
    return done.returncode == 0, passed, done.stdout + done.stderr


def venv(name, packages):
    """A Python with `packages`, of the build's own."""
    python = ROOT / "target" / "tools" / name / "bin" / "python"
    if not python.exists():
        info(f"installing {', '.join(packages)} into {python.parent.parent}: once")
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
    return python


# --- laws ------------------------------------------------------------------------------------------------------------


def laws(place):
    for law, tests in LAWS.items():
        good, passed, output = cargo_test(*tests)
        if not claim(good and passed == len(tests), f"laws: {law}: {passed} of {len(tests)} tests pass"):
            info(output[-2_000:])


def live(place):
    """The same laws on every published customer, as the service answers."""
    card = json.loads((ROOT / TELCO / "manifest.json").read_text())
    _, rows = published(place.data / "telco_customer_churn.csv", card, "customerID")
    with place.serve() as server:
        client = Client(server.http)
        answers = [client.json("POST", "/v1/score?top=15", row) for row in rows[:: 20 if place.quick else 1]]
    parts = [(answer["base"], answer["reasons"], answer["score"]) for answer in answers]
    odds = max(abs(base["log_odds"] + sum(reason["log_odds"] for reason in reasons) - math.log(score / (1 - score)))
               for base, reasons, score in parts)
    points = max(abs(base["score"] + sum(reason["points"] for reason in reasons) / 100 - score) for base, reasons, score in parts)
    claim(max(odds, points) <= SUM_MAX, f"live: {len(answers)} customers: base and reasons are the score to {odds:.1e} in log-odds, "
          f"{points:.1e} in probability (at most {SUM_MAX})")
    order = ["low", "medium", "high"]
    ranked = [order.index(answer["tier"]) for answer in sorted(answers, key=lambda answer: answer["score"])]
    counts = ", ".join(f"{ranked.count(at)} {tier}" for at, tier in enumerate(order))
    claim(ranked == sorted(ranked), f"live: the tier never falls as the score rises: {counts}")


# --- money -----------------------------------------------------------------------------------------------------------


def knapsack(place):
    """Budgets of batches against what an exact solver finds, from the scores that were answered and the policy read anew."""
    python = ROOT / ".venv-train" / "bin" / "python"
    subprocess.run(["make", "--silent", ".venv-train/done"], cwd=ROOT, check=True)
    policy = tomllib.loads((ROOT / VALUE).read_text())
    drawn = random.Random(29)
    rows = [json.loads(body) for body in customers.bodies(ROOT / TELCO, 200 if place.quick else 1_000, 29)]
    for row in rows:
        row["context"] = {"clv": round(min(drawn.lognormvariate(6.5, 0.9), 100_000), 2), "region": drawn.choice(["EU", "US", "other"]),
                          "days_since_contact": drawn.randrange(90), "opt_out": drawn.random() < 0.1}
    serve = f'[{{name = "telco-churn", version = "1.0.0", policy = "{VALUE}"}}]'
    for share in (0.01, 0.05, 0.2, 0.6):
        with place.serve(models__serve=serve) as server:
            client = Client(server.http)
            scores = [answer["score"] for answer in client.json("POST", "/v1/score/batch?budget=0", rows)["results"]]
            offers = [offered(policy, row, score) for row, score in zip(rows, scores)]
            budget = round(share * sum(max((cost for cost, _ in row), default=0) for row in offers), 2)
            answer = client.json("POST", f"/v1/score/batch?budget={budget}", rows)
        found = answer["allocation"]
        spent = sum(result["intervention"]["cost"] for result in answer["results"])
        value = sum(result["intervention"]["expected_value"] for result in answer["results"])
        asked = json.dumps({"budget": budget, "rows": [[offer for offer in row if offer[1] > 0] for row in offers]})
        exact = json.loads(subprocess.run([python, ROOT / "scripts" / "knapsack_exact.py"], input=asked, check=True, capture_output=True, text=True).stdout)
        claim(spent <= budget + 1e-9 and value >= (1 - GAP_MAX) * exact["optimum"] and found["upper_bound"] >= exact["optimum"] * (1 - 1e-9),
              f"knapsack: {len(rows)} rows, {budget:,.2f} USD: spent {spent:,.2f}, value {value:,.2f} is {value / exact['optimum']:.5f} of the "
              f"solver's {exact['optimum']:,.2f}{'' if exact['proved'] else ' (not proved)'} (at least {1 - GAP_MAX}); bound told {found['upper_bound']:,.2f}")


def offered(policy, row, score):
    """(cost, expected value) of what this customer may be offered by the bundled policy, written down anew from its document."""
    features, context = row["features"], row["context"]
    loyal = features["tenure"] >= 24 and context["clv"] >= 2000
    allowed = policy["segments"][1]["offers"] if loyal else policy["interventions"]
    found = []
    for name in allowed:
        offer = policy["interventions"][name]
        rule = offer["eligible"]["context"]
        since = int(re.match(r"\[(\d+), \)", rule["days_since_contact"])[1])
        if context["days_since_contact"] >= since and not context["opt_out"] and context["region"] in rule.get("region", [context["region"]]):
            found.append((offer["cost"], score * offer["expected_effectiveness"] * context["clv"] - offer["cost"]))
    return found


# --- reasons ---------------------------------------------------------------------------------------------------------


def golden(place):
    _, _, output = cargo_test("model::trees::tests::agrees_with_the_libraries_on_real_customers",
                              "reasons::contributions_are_those_of_the_libraries_that_trained_the_models")
    found = re.findall(r"(telco_\w+): (\d+) rows, greatest difference (\S+)", output)
    for model, rows, difference in found:
        claim(int(rows) == 220 and float(difference) <= GOLDEN_MAX,
              f"golden: {model}: {rows} rows, at most {difference} from the library's TreeSHAP (limit {GOLDEN_MAX})")
    claim(len(found) == 2, f"golden: {len(found)} of 2 models compared")


def shap(place):
    """Ours by criterion, theirs by the same number of rows, drawn the same way from the same bundle."""
    python = venv("shap", SHAP)
    subprocess.run(["cargo", "bench", "--locked", "--bench", "decide", "--", "^explain/"], cwd=ROOT, check=True, capture_output=True)
    criterion = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "criterion" / "explain"
    for bundle in (TELCO, MLC):
        name = bundle.split("/")[1]
        estimates = json.loads((criterion / name / "new" / "estimates.json").read_text())
        ours = estimates["median"]["point_estimate"] / 1e3
        done = subprocess.run([python, ROOT / "scripts" / "shap_reference.py", ROOT / bundle], check=True, capture_output=True, text=True)
        theirs = json.loads(done.stdout)
        claim(ours <= SHAP_US_MAX, f"shap: {name}: {ours:.1f} us a row (at most {SHAP_US_MAX}); the shap package {theirs['us']:.0f} us, "
              f"{theirs['us'] / ours:.0f} times as long; {theirs['trees']} trees")


# --- what it costs ---------------------------------------------------------------------------------------------------


def speed(place):
    """The p99 of a decision by expected value with three reasons against that of the same without reasons, by turns."""
    seconds, pairs = (3, 2) if place.quick else (PAIR_SECS, PAIRS)
    for bundle in (TELCO, MLC):
        name = bundle.split("/")[1]
        policy = VALUE if bundle == TELCO else "models/policy/default.toml"
        plain = list(customers.bodies(ROOT / bundle, 2_000, 7))
        files = {}
        for kind, drawn in (("plain", plain), ("explained", [f'{body[:-1]},"explain":true}}' for body in plain])):
            files[kind] = place.fresh() / "bodies.ndjson"
            files[kind].write_text("".join(f"{body}\n" for body in drawn))
        serve = f'[{{name = "{name}", version = "1.0.0", policy = "{policy}"}}]'
        with place.serve(models__serve=serve) as server:
            p99, p50 = {"plain": [], "explained": []}, {"plain": [], "explained": []}
            for kind in files:
                oha(place, server.http, 2, 8, 500, files[kind])
            for pair in range(pairs):
                for kind in sorted(files, reverse=pair % 2 == 0):
                    found, good, failed = oha(place, server.http, seconds, 64, RATE, files[kind])
                    if good != RATE * seconds:
                        claim(False, f"speed: {name}: {good} of {RATE * seconds} answered{failed}")
                    p99[kind].append(found["latencyPercentiles"]["p99"] * 1e3)
                    p50[kind].append(found["latencyPercentiles"]["p50"] * 1e3)
        ratios = sorted(explained / usual for explained, usual in zip(p99["explained"], p99["plain"]))
        middle = {kind: (statistics.median(p50[kind]), statistics.median(p99[kind])) for kind in files}
        claim(statistics.median(ratios) <= P99_RATIO_MAX,
              f"speed: {name}: p99 explained / plain {statistics.median(ratios):.2f}, the median of {pairs} pairs "
              f"({ratios[0]:.2f} to {ratios[-1]:.2f}; at most {P99_RATIO_MAX}); {RATE}/s, ms: "
              + ", ".join(f"{kind} p50 {middle[kind][0]:.3f} p99 {middle[kind][1]:.3f}" for kind in ("plain", "explained")))


# --- as a reader copies it -------------------------------------------------------------------------------------------


def readme(place):
    """The commands of the README, run as they stand there; only the addresses are those of this check."""
    section = (ROOT / "README.md").read_text().split("## Decide by expected value", 1)[1]
    commands = re.search(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[1]
    with place.serve() as server:
        # Somebody has to have been decided on for `policy simulate` to have something to look at.
        client = Client(server.http)
        for body in customers.bodies(ROOT / TELCO, 200, 3):
            client.json("POST", "/v1/score", json.loads(body))
        environment = evidence.environment({"admin__listen": server.admin})
        commands = commands.replace("127.0.0.1:8080", server.http).replace("target/release/mainstay", str(place.program))
        done = subprocess.run(["bash", "-e", "-c", commands], cwd=ROOT, env=environment, capture_output=True, text=True)
        claim(done.returncode == 0, f"readme: its commands end with {done.returncode} {done.stderr[-500:]}")
        answers = [line for line in done.stdout.splitlines() if line.startswith('{"decision_id"')]
        answer = json.loads(answers[-1][: answers[-1].rindex("}") + 1]) if answers else {}
        shown = {"segment": any(rule.startswith("segment:") for rule in answer.get("rules", [])), "reasons": bool(answer.get("reasons")),
                 "expected value": "expected_value" in answer.get("intervention", {}),
                 "budget": client_budget(server.admin)}
        claim(all(shown.values()), f"readme: the answer shows {', '.join(name for name, is_there in shown.items() if is_there)}; "
              f"missing: {', '.join(name for name, is_there in shown.items() if not is_there) or 'nothing'}")


def client_budget(address):
    slots = Client(address).json("GET", "/v1/slots/telco-churn")
    return bool(slots.get("budget"))


STEPS = {"laws": laws, "live": live, "knapsack": knapsack, "golden": golden, "readme": readme, "speed": speed, "shap": shap}


def place(options, program, directory):
    options.oha = options.oha or load.load_generator()
    return Place(options, program, directory)


if __name__ == "__main__":
    more = [
        ("--data", {"type": Path, "required": True, "help": "directory of the published data"}),
        ("--oha", {"type": Path, "help": "an oha that is built already"}),
    ]
    sys.exit(evidence.main("show-decide", __doc__, STEPS, place, more))
