"""What the checks of the ledger share: load that remembers every answer, and the ledger's files read without the product."""

import contextlib
import http.client
import json
import random
import sqlite3
import subprocess
import sys
import threading
import time
import uuid

import evidence
from evidence import TIMEOUT_SECS, Client, claim, environment
from server import ROOT, Failed, running

sys.path.insert(0, str(ROOT / "benches"))
import customers
import load

MODELS = {"telco-churn": "models/telco-churn/1.0.0", "mlc-churn": "models/mlc-churn/1.0.0"}
BATCH_ROWS = 40


class Place(evidence.Place):
    """With a load generator, the bodies that it sends, and how often to kill."""

    def __init__(self, program, oha, directory, quick, kills):
        super().__init__(program, directory, quick)
        self.oha, self.kills = oha, kills
        self.bodies = {name: list(customers.bodies(ROOT / path, 2_000, 7)) for name, path in MODELS.items()}

    def serve(self, ledger, **settings):
        """A server for a `with` block on `ledger`; settings such as ledger__promise="off"."""
        return running(self.command(), environment=environment(settings), ledger=ledger)

    def verify(self, ledger, *words):
        return self.run("verify", "ledger", *words, ledger=ledger)


class Load:
    """A closed loop of singles, JSON batches and NDJSON streams of both models. Remembers the score of every decision that was
    answered, and how everything else was."""

    def __init__(self, address, bodies, connections=16, pause=0.0):
        self.address, self._bodies, self._pause = address, bodies, pause
        self.answered = {}  # decision id: score
        self.at = []  # (time, status, seconds, kind) of each single answer, and of each row of a batch or stream
        self.unlike = []  # what is neither a decision nor an honest 503
        self.broken = 0  # connections
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._drive, args=(number,), daemon=True) for number in range(connections)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        self._ending.set()
        for thread in self._threads:
            thread.join(TIMEOUT_SECS)

    def statuses(self, since=0.0, until=float("inf")):
        counts = {}
        for when, status, _, _ in list(self.at):
            if since <= when < until:
                counts[status] = counts.get(status, 0) + 1
        return counts

    def slowest(self, kind, since=0.0, until=float("inf")):
        return max((seconds for when, _, seconds, one in list(self.at) if one == kind and since <= when < until), default=0.0)

    def _drive(self, number):
        kind = {0: "batch", 1: "stream"}.get(number % 8, "single")
        chosen, client = random.Random(number), Client(self.address)
        while not self._ending.is_set():
            model = chosen.choice(list(MODELS))
            begun = time.monotonic()
            try:
                getattr(self, f"_{kind}")(client, model, chosen, begun)
            except (OSError, http.client.HTTPException):
                self.broken += 1
                client.close()
                self._ending.wait(0.01)
            if self._pause:
                self._ending.wait(self._pause)
        client.close()

    def _single(self, client, model, chosen, begun):
        status, headers, text = client.ask("POST", f"/v1/models/{model}/score", chosen.choice(self._bodies[model]).encode())
        self._note(json.loads(text), status, begun, "single", headers.get("retry-after"))

    def _batch(self, client, model, chosen, begun):
        body = f"[{','.join(chosen.choices(self._bodies[model], k=BATCH_ROWS))}]"
        status, headers, text = client.ask("POST", f"/v1/models/{model}/score/batch", body.encode())
        answer = json.loads(text)
        for item in answer["results"] if status == 200 else [answer]:
            self._note(item, item.get("status", status), begun, "batch", headers.get("retry-after") or status == 200)

    def _stream(self, client, model, chosen, begun):
        body = "\n".join(chosen.choices(self._bodies[model], k=BATCH_ROWS)).encode()
        response = client.open("POST", f"/v1/models/{model}/score/batch", body, "application/x-ndjson")
        if response.status != 200:
            return self._note(json.loads(response.read()), response.status, begun, "stream", response.headers.get("retry-after"))
        # A line counts as answered as soon as it is here, whatever becomes of the others.
        for line in response:
            if line.endswith(b"\n"):
                item = json.loads(line)
                self._note(item, item.get("status", 200), begun, "stream", True)

    def _note(self, item, status, begun, kind, retry_after):
        now = time.monotonic()
        self.at.append((now, status, now - begun, kind))
        if status == 200 and "decision_id" in item:
            self.answered[item["decision_id"]] = item["score"]
        elif not (status == 503 and item.get("code") in ("ledger_unavailable", "overloaded") and retry_after):
            self.unlike.append(f"{status} {item.get('code')}")


def until(condition, seconds):
    """Waits for a condition; whether it came is for the claims that follow."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


@contextlib.contextmanager
def hammer(place, address, connections=32):
    """More load than Python can make, of answers that nobody notes."""
    path = place.directory / "hammer.ndjson"
    path.write_text("".join(f"{body}\n" for body in place.bodies["telco-churn"]))
    command = [place.oha, "--no-tui", "-m", "POST", "-T", "application/json", "-Z", path, "-c", str(connections), "-z", "600s"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, f"http://{address}/v1/score"], **quiet)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def database(ledger, write=False):
    """The database of a ledger, without the product: `write` for those that tamper."""
    connection = sqlite3.connect(f"file:{ledger / 'ledger.db'}?mode={'rw' if write else 'ro'}", uri=True, timeout=10)
    connection.isolation_level = None
    return contextlib.closing(connection)


def one(connection, sql, *values):
    return connection.execute(sql, values).fetchone()[0]


def differing(ledger, answered):
    """How many of the answered decisions are missing on record, and how many have another score; and how many are on record."""
    missing = other = 0
    with database(ledger) as connection:
        for text, score in answered.items():
            sql = "SELECT score FROM entry WHERE id = ? AND kind = 'decision'"
            rows = connection.execute(sql, (uuid.UUID(text).bytes,)).fetchall()
            missing += not rows
            other += bool(rows) and rows != [(score,)]
        return missing, other, one(connection, "SELECT count(*) FROM entry WHERE kind = 'decision'")


def claim_recorded(step, place, ledger, answered):
    """Every answered decision is on record, and the chain verifies."""
    missing, other, recorded = differing(ledger, answered)
    text = f"{missing} missing and {other} with another score among {len(answered):,} answered ({recorded:,} on record)"
    claim(answered and not missing and not other, f"{step}: {text}")
    code, told = place.verify(ledger)
    claim(code == 0, f"{step}: verify ledger ends with {code}: {' / '.join(told.splitlines()[:3])}")


def claim_same_through_the_door(step, client, answered, sample):
    """GET of the last answered ones gives the same scores."""
    asked = list(answered.items())[-sample:]
    wrong = [text for text, score in asked if client.json("GET", f"/v1/decisions/{text}")["score"] != score]
    claim(asked and not wrong, f"{step}: GET /v1/decisions/ID gives the same score for the last {len(asked)}")


def oha(place, address, seconds, connections=64, rate=None, bodies=None):
    """What oha measured: open at `rate`, else a closed loop."""
    how = ["-z", f"{seconds}s", "-w"] if rate is None else ["-q", str(rate), "-n", str(rate * seconds), "--latency-correction"]
    found = load.measure(place.oha, f"http://{address}/v1/score", bodies, connections, how, timeout=3 * seconds + 30)
    if not found:
        raise Failed(f"oha was not done after {3 * seconds + 30} s")
    good, failed = load.outcomes(found)
    return found, good, failed
