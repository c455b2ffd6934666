"""The evidence that a new model is asked for: a receiver that checks the signature of each message, fails when it is told to, and counts
what comes twice."""

import base64
import bisect
import hashlib
import http.server
import json
import os
import re
import secrets
import shutil
import threading
import time

from effect_month import BUNDLE, Month
from evidence import Client, claim
from server import ROOT, Failed

SECRET = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
DRIFTED = "tenure"
POLICY = ROOT / "models" / "policy" / "default.toml"
CUSTOMERS = 2_000
WAIT_SECS = 60
LOOKS = 4


def shown():
    """The check of a signature that the README shows, as a reader copies it."""
    section = (ROOT / "README.md").read_text().split("## Be told when a new model is due", 1)[1]
    names = {}
    exec(re.search(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[1], names)
    return names["is_genuine"]


class Receiver:
    """Answers with `statuses` in their order, and then with the last of them."""

    def __init__(self, *statuses):
        self.received, self.statuses = [], list(statuses)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                status = outer.statuses.pop(0) if len(outer.statuses) > 1 else outer.statuses[0]
                outer.received.append((dict(self.headers.items()), body, status))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/retrain"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def until(self, count):
        begun = time.monotonic()
        while len(self.received) < count and time.monotonic() - begun < WAIT_SECS:
            time.sleep(0.05)
        return len(self.received) >= count

    def ids(self):
        return [headers["webhook-id"] for headers, _, _ in self.received]


def shift(features, drawn):
    features[DRIFTED] = min(features[DRIFTED] + drawn.randrange(20, 40), 120)


def bundle(place):
    """A directory of models with the bundled one, as if it had been trained on customers as they are drawn here: these have each feature as
    often as real ones, but not together, so they score otherwise. Only the baseline of the score is another."""
    models = place.fresh()
    path = models / "telco-churn" / "1.0.0"
    shutil.copytree(BUNDLE, path)
    baseline, manifest = (json.loads((path / name).read_text()) for name in ("baseline.json", "manifest.json"))
    month, score = Month(2_999, baseline["rows"]), baseline["score"]
    server = place.serve(POLICY.read_text())
    try:
        month.decide(server.http)
    finally:
        server.stop()
    score["counts"] = [0] * len(score["counts"])
    for decision in month.decisions:
        score["counts"][bisect.bisect_right(score["edges"], decision["score"])] += 1
    content = json.dumps(baseline).encode()
    manifest["files"]["baseline.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "baseline.json").write_bytes(content)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return models


def serve(place, models, receiver, ledger):
    settings = {"models.dir": models, "retraining.url": receiver.url, "retraining.backoff_ms": "200", "retraining.drift_requests_min": "400", "insight.refresh_secs": "1"}
    environment = os.environ | {"MAINSTAY_RETRAINING_SECRET": SECRET}
    return place.serve(POLICY.read_text(), ledger, environment, **settings)


def looks(server, count):
    """Waits until the measures of everything that is on record were made, `count` times more; without any measure all that follows from
    it would say nothing."""
    client, begun = Client(server.admin), time.monotonic()
    while True:
        text = client.ask("GET", "/metrics")[2].decode()
        spend = re.search(r'^mainstay_kpi\{model="telco-churn",kpi="spend",bound="value"\} ([\d.]+)$', text, re.MULTILINE)
        if spend and float(spend[1]) > 0:
            break
        if time.monotonic() - begun > WAIT_SECS:
            raise Failed(f"nothing was measured within {WAIT_SECS} s")
        time.sleep(0.1)
    # Each is a second after the other.
    time.sleep(1.5 * count)


def causes(server):
    return Client(server.admin).json("GET", "/v1/insight/retraining")["causes"]


def step(place):
    size, models = 1_200 if place.quick else CUSTOMERS, bundle(place)
    receiver, ledger = Receiver(500, 503, 204), place.fresh()
    server = serve(place, models, receiver, ledger)
    try:
        Month(3_000, size).decide(server.http)
        looks(server, 2)
        claim(not receiver.received, f"retraining: nothing is asked for after {size} customers as ever ({len(receiver.received)} messages)")
        Month(3_001, 2 * size, shift).decide(server.http)
        arrived = receiver.until(3)
        if not receiver.received:
            raise Failed(f"nothing was asked for within {WAIT_SECS} s of a drift")
        data = json.loads(receiver.received[-1][1])["data"]
        worst = data["evidence"]["drift"]["features"][0]
        figures = f"{worst['feature']} PSI {worst['psi']:.2f} of {worst['n']} (by chance {worst['critical']:.3f})"
        claim(arrived and DRIFTED in data["cause"]["of"], f"retraining: after a drift one message, with its evidence: {data['cause']['of']}, {figures}")
        is_genuine = shown()
        signed = [is_genuine(SECRET, headers, body) for headers, body, _ in receiver.received]
        forged = [is_genuine("whsec_" + base64.b64encode(bytes(32)).decode(), headers, body) or is_genuine(SECRET, headers, body + b" ")
                  for headers, body, _ in receiver.received]
        claim(all(signed) and not any(forged), f"retraining: {sum(signed)} of {len(signed)} signatures are right by the code of the README, and none by another secret or of another body")
        bodies, statuses = {body for _, body, _ in receiver.received}, [status for *_, status in receiver.received]
        claim(len(set(receiver.ids())) == len(bodies) == 1 and statuses == [500, 503, 204],
              f"retraining: tried until it arrived ({', '.join(map(str, statuses))}), with one id and the same body")
        looks(server, LOOKS)
        before = [cause for cause in causes(server) if cause["delivery"] == "delivered"]
    finally:
        server.kill()
    server = serve(place, models, receiver, ledger)
    try:
        looks(server, LOOKS)
        known = causes(server)
        claim(len(receiver.received) == 3 and len(before) == 1 and [cause["id"] for cause in known] == [before[0]["id"]],
              f"retraining: {LOOKS} looks on, and {LOOKS} after kill -9 and a new start, {len(receiver.received) - 3} more messages; {len(known)} cause known, {known[0]['delivery']}")
    finally:
        server.stop()
    undelivered(place, models, size)


def undelivered(place, models, size):
    """A message that did not arrive before the process was killed."""
    receiver, ledger = Receiver(500), place.fresh()
    server = serve(place, models, receiver, ledger)
    try:
        Month(3_002, size, shift).decide(server.http)
        if not receiver.until(1):
            raise Failed(f"nothing was asked for within {WAIT_SECS} s of a drift")
    finally:
        server.kill()
    tried, receiver.statuses = len(receiver.received), [204]
    server = serve(place, models, receiver, ledger)
    try:
        receiver.until(tried + 1)
        looks(server, 2)
        delivered = [status for *_, status in receiver.received].count(204)
        claim(tried >= 1 and delivered == 1 and len(set(receiver.ids())) == 1,
              f"retraining: what had not arrived at a kill -9 ({tried} tries) arrives after the next start, {delivered} time, with the same id")
    finally:
        server.stop()
