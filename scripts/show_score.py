#!/usr/bin/env python3
"""The evidence: what Mainstay promises, proved from a fresh clone with the published data. `make show-score` runs it.

    python3 scripts/show_score.py --data DIRECTORY [--fresh-build]

One line per claim with its figure; exit code 1 if one falls short. DIRECTORY holds telco_customer_churn.csv and
mlc_churn.csv (models/train/README.md); it is read and never copied. Standard library only.
"""

import argparse
import csv
import http.client
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

from evidence import claim, failures
from holdout import holdout
from server import ROOT, Failed, running

CONNECTIONS = 4
BATCH_ROWS = 1000
DIFFERENCE_MAX = 1e-5
AUC_MIN, PRECISION_MIN, TOP = 0.80, 0.60, 0.2
# The tiers as they were asked for; the server's own policy is checked against them, not believed.
TIERS = {
    "high": (lambda score: score > 0.8, 50, 0.4),
    "medium": (lambda score: 0.5 <= score <= 0.8, 10, 0.2),
    "low": (lambda score: score < 0.5, 0.5, 0.05),
}

class Client:
    """Keep-alive connections, used in turn."""

    def __init__(self, address, connections=1):
        self.address = address
        self._connections = [http.client.HTTPConnection(address, timeout=60) for _ in range(connections)]
        self._turn = 0

    def ask(self, method, path, body=None, media_type="application/json"):
        """Status and text of the answer."""
        self._turn = (self._turn + 1) % len(self._connections)
        connection = self._connections[self._turn]
        connection.request(method, path, body, {"content-type": media_type} if body else {})
        response = connection.getresponse()
        return response.status, response.read()

    def json(self, method, path, body=None):
        status, text = self.ask(method, path, None if body is None else json.dumps(body).encode())
        if status != 200:
            raise Failed(f"{method} {path} was answered with {status}: {text[:500].decode(errors='replace')}")
        return json.loads(text)

    def stream(self, path, lines):
        """The answers to NDJSON. Sent by a thread: the server answers while it reads, and would wait for us to read too."""
        body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        connection = http.client.HTTPConnection(self.address, timeout=60)
        connection.putrequest("POST", path)
        connection.putheader("content-type", "application/x-ndjson")
        connection.putheader("content-length", str(len(body)))
        connection.endheaders()
        sender = threading.Thread(target=connection.send, args=(body,), daemon=True)
        sender.start()
        response = connection.getresponse()
        answers = [json.loads(line) for line in response.read().splitlines()]
        sender.join()
        connection.close()
        return answers


def customers(path, card, id_column):
    """The rows as a caller sends them: only what the dictionary names, numbers as numbers, blanks as null."""
    kinds = {feature["name"]: feature["type"] for feature in card["features"]}
    read = {"integer": int, "number": float, "category": str}
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sent = []
    for number, row in enumerate(rows):
        features = {name: read[kind](row[name]) if row[name].strip() else None for name, kind in kinds.items()}
        sent.append({"customer_id": row[id_column] if id_column else f"row-{number}", "features": features})
    return rows, sent


def reference(checkout, name):
    with open(checkout / f"models/train/scores/{name}.csv", newline="", encoding="utf-8") as file:
        return [float(row["score"]) for row in csv.DictReader(file)]


def auc(left, scores):
    """Area under the ROC curve by the rank sum; ties count half."""
    order = sorted(range(len(scores)), key=scores.__getitem__)
    ranks, start = [0.0] * len(order), 0
    while start < len(order):
        end = start
        while end < len(order) and scores[order[end]] == scores[order[start]]:
            end += 1
        for place in order[start:end]:
            ranks[place] = (start + end + 1) / 2
        start = end
    positives = sum(left)
    rank_sum = sum(rank for rank, churned in zip(ranks, left) if churned)
    return (rank_sum - positives * (positives + 1) / 2) / (positives * (len(left) - positives))


def precision(left, scores):
    """The share of leavers among the highest fifth of the scores."""
    top = sorted(range(len(scores)), key=lambda i: -scores[i])[: round(TOP * len(scores))]
    return sum(left[i] for i in top) / len(top)


def in_band(band, score):
    """Whether a score lies in an interval such as "(0.8, 1]"."""
    opening, low, high, closing = re.fullmatch(r"([\[(])(\S+), (\S+)([\])])", band).groups()
    above = score >= float(low) if opening == "[" else score > float(low)
    return above and (score <= float(high) if closing == "]" else score < float(high))


def readme_curl(readme):
    """The first curl of the first shell block that has one, with its continuation lines."""
    for block in re.findall(r"^```(?:sh|console|bash)\n(.*?)^```", readme, re.MULTILINE | re.DOTALL):
        lines = [re.sub(r"^[$>] ", "", line) for line in block.splitlines()]
        for first, line in enumerate(lines):
            for last in range(first + 1, len(lines) + 1) if line.startswith("curl") else ():
                command = "\n".join(lines[first:last])
                try:
                    shlex.split(command)
                except ValueError:  # a quote is open, or a backslash ends the line
                    continue
                return command
    return None


def prove_readme(checkout, address):
    readme = checkout / "README.md"
    command = readme_curl(readme.read_text(encoding="utf-8")) if readme.is_file() else None
    if not command:
        return claim(False, "README.md: no shell block with a curl")
    command = re.sub(r"(127\.0\.0\.1|localhost):8080", address, command)
    command = command.replace("curl", "curl -sS -w '\\n%{http_code}'", 1)
    done = subprocess.run(["bash", "-c", command], cwd=checkout, capture_output=True, text=True, timeout=60)
    body, _, status = done.stdout.strip().rpartition("\n")
    try:
        decision = json.loads(body)
    except ValueError:
        return claim(False, f"README.md: its first curl was not answered with JSON: {done.stdout}{done.stderr}")
    good = status == "200" and isinstance(decision, dict) and "decision_id" in decision and "score" in decision
    claim(good, f"README.md: its first curl is answered with {status}, score {decision.get('score')}, tier {decision.get('tier')}")


def prove_policy(name, policy):
    """The policy that the server states is the one that was asked for: edges, costs, effectiveness."""
    edges = [round(edge + step, 6) for edge in (0, 0.5, 0.8, 1) for step in (-1e-6, 0, 1e-6) if 0 <= edge + step <= 1]
    good, told = len(policy["tiers"]) == len(TIERS), []
    for tier in policy["tiers"]:
        offer = tier["intervention"]
        law, *facts = TIERS.get(tier["name"], (lambda score: None, None, None))
        good &= all(law(edge) == in_band(tier["score"], edge) for edge in edges)
        good &= facts == [offer["cost"], offer["expected_effectiveness"]]
        told.append(f"{tier['name']} {tier['score']} {offer['action']} {offer['cost']:g} {offer['expected_effectiveness']:g}")
    claim(good, f"{name}: policy: {'; '.join(told)}")


def prove_decisions(name, decisions, ids, policy):
    """The laws that hold for every decision, whatever its score."""
    bands = {tier["name"]: tier["score"] for tier in policy["tiers"]}
    wrong = {"tier": 0, "intervention": 0}
    for decision in decisions:
        score, tier, intervention = decision["score"], decision["tier"], decision["intervention"]
        law, cost, effectiveness = TIERS.get(tier, (lambda score: False, None, None))
        wrong["tier"] += not (law(score) and tier in bands and in_band(bands[tier], score))
        wrong["intervention"] += (intervention["cost"], intervention["expected_effectiveness"]) != (cost, effectiveness)
        ids.append(decision["decision_id"])
    found = ", ".join(f"{sum(d['tier'] == tier for d in decisions)} {tier}" for tier in TIERS)
    text = f"{wrong['tier']} wrong tiers and {wrong['intervention']} wrong interventions among {len(decisions)} ({found})"
    claim(not any(wrong.values()) and decisions, f"{name}: {text}")


def prove_scores(name, checkout, bundle, scores):
    expected = reference(checkout, bundle)
    difference = max(abs(a - b) for a, b in zip(scores, expected))
    good = len(scores) == len(expected) and difference <= DIFFERENCE_MAX
    claim(good, f"{name}: {len(scores)} scores, at most {difference:.1e} from the trainer's (limit {DIFFERENCE_MAX:.0e})")


def prove_quality(name, left, scores, card):
    held = holdout(left)
    for part, rows in (("all rows, of which 4 in 5 were trained on", range(len(left))), ("the rows held out of training", held)):
        some_left, some = [left[i] for i in rows], [scores[i] for i in rows]
        area, top = auc(some_left, some), precision(some_left, some)
        text = f"AUC {area:.4f} (at least {AUC_MIN}), precision at top 20 % {top:.4f} (at least {PRECISION_MIN})"
        claim(area >= AUC_MIN and top >= PRECISION_MIN, f"{name}, {part} ({len(rows)}): {text}")
    told = card["metrics"]["holdout"]["auc"]["value"]
    # Meeting it also proves that these are the rows that the trainer held out.
    claim(abs(area - told) < 1e-4, f"{name}: the card's hold-out AUC is met: {told:.4f} told, {area:.4f} found")


def batches(client, path, rows):
    return [
        answer
        for start in range(0, len(rows), BATCH_ROWS)
        for answer in client.json("POST", path, rows[start : start + BATCH_ROWS])["results"]
    ]


def all_decided(name, answers, rows):
    """The answers if each is a decision, else nothing; each row is answered once, in its place."""
    refused = [answer for answer in answers if "decision_id" not in answer]
    claim(len(answers) == rows and not refused, f"{name}: {len(answers) - len(refused)} of {rows} rows decided{refused[:1] or ''}")
    return [] if refused or len(answers) != rows else answers


def prove_telco(client, data, checkout, ids):
    model = client.json("GET", "/v1/models/telco-churn")
    rows, sent = customers(data / "telco_customer_churn.csv", model["card"], "customerID")
    blanks = sum(customer["features"]["TotalCharges"] is None for customer in sent)
    claim(len(rows) == 7043 and blanks == 11, f"telco-churn: the data has {len(rows)} rows, {blanks} of them without TotalCharges")
    bodies, singles, times_us = [json.dumps(customer).encode() for customer in sent], [], []
    for body in bodies:
        begun = time.perf_counter()
        status, text = client.ask("POST", "/v1/models/telco-churn/score", body)
        times_us.append((time.perf_counter() - begun) * 1e6)
        singles.append(json.loads(text))
    ways = {
        f"one by one over {CONNECTIONS} connections": singles,
        f"JSON batches of {BATCH_ROWS}": batches(client, "/v1/score/batch", sent),
        "one NDJSON stream": client.stream("/v1/score/batch", sent),
    }
    prove_policy("telco-churn", model["policy"])
    scores = []
    for way, answers in ways.items():
        answers = all_decided(f"telco-churn, {way}", answers, len(rows))
        prove_decisions(f"telco-churn, {way}", answers, ids, model["policy"])
        scores.append([answer["score"] for answer in answers])
    claim(all(scores) and scores[0] == scores[1] == scores[2], "telco-churn: the scores of the three ways are equal to the last bit")
    if scores[0]:
        prove_scores("telco-churn", checkout, "telco-churn-1.0.0", scores[0])
        prove_quality("telco-churn", [int(row["Churn"] == "Yes") for row in rows], scores[0], model["card"])
    times_us.sort()
    p50, p99 = times_us[len(times_us) // 2], times_us[len(times_us) * 99 // 100]
    print(f"INFO  one request at a time, client included: p50 {p50:.0f} us, p99 {p99:.0f} us; the measured figures stand in benches/")


def prove_mlc(client, data, checkout, ids):
    model = client.json("GET", "/v1/models/mlc-churn")
    rows, sent = customers(data / "mlc_churn.csv", model["card"], None)
    answers = batches(client, "/v1/models/mlc-churn/score/batch", sent)
    prove_policy("mlc-churn", model["policy"])
    answers = all_decided(f"mlc-churn, JSON batches of {BATCH_ROWS}", answers, len(rows))
    prove_decisions(f"mlc-churn, JSON batches of {BATCH_ROWS}", answers, ids, model["policy"])
    if answers:
        scores = [answer["score"] for answer in answers]
        prove_scores("mlc-churn", checkout, "mlc-churn-1.0.0", scores)
        prove_quality("mlc-churn", [int(row["churn"] == "yes") for row in rows], scores, model["card"])


def prove_ids(ids):
    parsed = [uuid.UUID(text) for text in ids]
    version_7 = sum(one.version == 7 and one.variant == uuid.RFC_4122 for one in parsed)
    claim(len(set(parsed)) == version_7 == len(ids) > 0, f"decision ids: {len(set(parsed))} different ones among {len(ids)}, {version_7} are UUIDs of version 7")


def environment_of_a_stranger(fresh_build):
    """Ours without what would lead `make run` back to this checkout. Compiled dependencies are kept for the next time, but
    in a directory of their own: cargo tells checkouts apart by the times of their files only, so in a shared one the
    clone's server could pass for this checkout's, or the other way round."""
    leads_back = re.compile(r"MAINSTAY__|MAKE|MFLAGS$|CARGO_TARGET_DIR$")
    environment = {key: value for key, value in os.environ.items() if not leads_back.match(key)}
    if not fresh_build:
        target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve()
        environment["CARGO_TARGET_DIR"] = str(target / "show-score")
    return environment


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIRECTORY", help="where the CSVs are")
    parser.add_argument("--fresh-build", action="store_true", help="compile the dependencies again too")
    options = parser.parse_args()
    for name in ("telco_customer_churn.csv", "mlc_churn.csv"):
        if not (options.data / name).is_file():
            parser.error(f"{name} is not in {options.data}; models/train/README.md says where to get it")

    with tempfile.TemporaryDirectory(prefix="mainstay-show-score-") as directory:
        checkout = Path(directory) / "mainstay"
        try:
            subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(checkout)], check=True)
            commit = subprocess.run(["git", "-C", checkout, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
            begun = time.monotonic()
            with running(["make", "run"], checkout, environment_of_a_stranger(options.fresh_build)) as server:
                seconds = time.monotonic() - begun
                claim(True, f"fresh clone of commit {commit.stdout.strip()}: make run is ready after {seconds:.0f} s, {server.ready.get('ready_ms')} ms of them the server's own")
                client, ids = Client(server.http, CONNECTIONS), []
                prove_readme(checkout, server.http)
                prove_telco(client, options.data, checkout, ids)
                prove_mlc(client, options.data, checkout, ids)
                prove_ids(ids)
            stopped = server.event("stopped") or {}
            claim(stopped.get("every_request_answered") is True, "SIGTERM: exit code 0, every request answered")
        except (Failed, OSError, subprocess.CalledProcessError, http.client.HTTPException) as error:
            claim(False, str(error))
    print(f"{len(failures)} claims fell short" if failures else "every claim holds")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
