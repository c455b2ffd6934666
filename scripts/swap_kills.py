"""`kill -9` into the moves of slots and rollouts: what comes back is a legal state, the one in the journal, with every move that was
answered."""

import contextlib
import http.client
import json
import random
import subprocess
import threading
import time
import uuid

from evidence import TIMEOUT_SECS, Client, claim, info
from ledger_load import database
from server import ROOT

KILLS, KILLS_QUICK = 120, 12
# The last one is rolled back by the service itself as soon as it meets such a row.
VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "9.0.4-nan")
SLOTS = "/v1/slots/telco-churn"
KILL_MS_MIN, KILL_MS_MAX = 4, 50
ROWS, ROWS_CHECKED = 40, 10
# Moves that happen by themselves while others are asked for.
STEPS = [{"exposure": "canary", "share": share, "bake_secs": 0} for share in (0.5, 1.0)]
LIMITS = {
    "requests_min": 20, "error_margin": 0.5, "latency_ratio_max": 1e3, "latency_floor_us": 1e6, "psi_max": 100.0,
    "tier_shift_max": 1.0, "alpha": 0.01,
}
WORDS = {"start": ["rollout", "start"], "advance": ["rollout", "advance"], "abort": ["rollout", "abort"]}
WORDS |= {verb: ["rollout", verb] for verb in ("pause", "resume")}


def kills(place):
    count, ledger, chosen = (KILLS_QUICK if place.quick else KILLS), place.fresh(), random.Random(23)
    lines = place.rows.read_text().splitlines()
    # Every fiftieth is one at which the faulty model fails: here one in five.
    rows = [json.loads(line) for line in lines[: ROWS * 4 // 5] + lines[50 : 50 + 10 * ROWS : 50]]
    scores = learn(place, rows)
    seen, wrong, asked, stage_ms = {}, [], None, 300.0

    def count_one(name):
        seen[name] = seen.get(name, 0) + 1

    for kill in range(1, count + 1):
        with place.start("1.0.0", ledger) as running:
            problems, slots = resumed(running, ledger)
            problems += answered_before(running, ledger, asked, count_one) if asked else []
            problems += scored(running, rows, scores)
            asked = Asked(place, running, chosen, slots["legal"])
            with Scoring(running.http, rows, scores) as scoring:
                time.sleep(chosen.uniform(0, 0.4))
                begun = time.monotonic()
                asked.send()
                # Staging takes longer, and a kill should find it at every point too.
                time.sleep(chosen.uniform(0, moment_max_ms(asked.verb, stage_ms, chosen)) / 1e3)
                running.kill()
            if asked.verb == "stage" and asked.status == 200:
                stage_ms = (asked.at - begun) * 1e3
            asked.end()
            problems += scoring.wrong
        code, told = place.run("verify", "ledger", ledger=ledger)
        problems += [f"verify ledger ends with {code}: {told[:300]}"] if code != 0 else []
        wrong += [f"kill {kill} ({asked.verb}): {problem}" for problem in problems]
        count_one("answered" if asked.status == 200 else "refused" if asked.status else "cut off")
        count_one(asked.verb)
        if len(wrong) > 20:
            break
    with place.start("1.0.0", ledger) as running:
        problems, _ = resumed(running, ledger)
        wrong += problems + answered_before(running, ledger, asked, count_one) + scored(running, rows, scores)
        moves = running.history(1_000)
    ways = {name: seen.pop(name, 0) for name in ("answered", "refused", "cut off", "journalled, but cut off", "done anew")}
    text = f"{kill} times kill -9 up to {KILL_MS_MAX} ms (stage: up to its end) behind a move: legal slots, those of the journal"
    claim(not wrong and kill == count, f"kills: {text}; right scores, verify ledger passes; wrong: {wrong[:5] or 'nothing'}")
    text = f"{ways['answered']} answered moves were all there, {ways['cut off']} had no answer"
    text = f"{text}, {ways['journalled, but cut off']} of those were in the journal and not done twice"
    claim(ways["answered"] > 0 and ways["cut off"] > 0, f"kills: {text}; {ways['refused']} were refused")
    by_itself = sum(move["by"] == "mainstay" for move in moves)
    info(f"kills: {len(moves)} moves on record, {by_itself} by the service itself; asked for: {dict(sorted(seen.items()))}")


def moment_max_ms(verb, stage_ms, chosen):
    """How long to wait for the kill at most. Most moves take 1 or 2 ms: half of the kills are aimed at that, the others come behind
    the answer as well, which must not be lost. Staging takes longer, and is to be hit at every point."""
    if verb == "stage":
        return 1.3 * stage_ms
    return chosen.choice([KILL_MS_MIN, KILL_MS_MAX])


def learn(place, rows):
    """The score of each row by each version, from a server of their own; none where it cannot give one."""
    scores = {}
    for version in VERSIONS:
        with place.start(version, place.fresh()) as running:
            client = Client(running.http)
            scores[version] = [score(client, row)[1] for row in rows]
    return scores


def score(client, row):
    """The version and score that answer a row; both none where there is no decision."""
    status, _, text = client.ask("POST", "/v1/models/telco-churn/score", json.dumps(row).encode())
    answer = json.loads(text)
    return (answer["model"]["version"], answer["score"]) if status == 200 else (None, None)


def unlike(slots, answered, scores, at):
    """What is wrong with an answer, if anything is. Only a champion that cannot score a row may leave it without a decision."""
    version, given = answered
    champion = next(slot["version"] for slot in slots["slots"] if slot.get("role") == "champion")
    if version is None:
        return [] if scores[champion][at] is None else [f"row {at}: no decision, and {champion} gives {scores[champion][at]}"]
    placed = {slot.get("version") for slot in slots["slots"]}
    good = given == scores[version][at] and version in placed
    return [] if good else [f"row {at} by {version} ({placed}): {given}, and not {scores[version][at]}"]


# --- what comes back -------------------------------------------------------------------------------------------------


def resumed(running, ledger):
    """What is wrong with the slots as they come back; and the slots."""
    while True:
        # The service moves rollouts by itself: only what stood still can be compared.
        before = journalled(ledger)
        slots = running.slots()
        if before == journalled(ledger):
            break
    entry, state = before
    if entry is None:
        return ["nothing in the journal"], slots
    problems = illegal(entry)
    if entry != state:
        problems.append(f"the table state has {state}, the newest entry {entry}")
    for slot in slots["slots"]:
        placed = entry[slot["slot"]] or {}
        for name in ("version", "digest", "role"):
            if slot.get(name) != placed.get(name):
                problems.append(f"{slot['slot']}: {name} is {slot.get(name)}, in the journal {placed.get(name)}")
        if placed and (slot["state"] != "ready" or not slot["memory_bytes"]):
            problems.append(f"{slot['slot']} is {slot['state']}")
    for name in ("rollout", "last_rollout"):
        ours, theirs = slots.get(name) or {}, entry[name] or {}
        if (ours.get("id"), ours.get("step", 1) - 1) != (theirs.get("id"), theirs.get("step", 0)):
            problems.append(f"{name} is {ours}, in the journal {theirs}")
    if entry["rollout"] and (slots["rollout"]["state"] == "paused") != entry["rollout"]["paused"]:
        problems.append("the rollout is paused in one of both only")
    if slots["policy"]["version"] != entry["policy"]["digest"][:16]:
        problems.append("another policy")
    return problems, slots


def journalled(ledger):
    """The slots of the newest entry that has any, and those of the table of states; read without the product."""
    sql = """SELECT body FROM entry WHERE kind = 'action' AND json_extract(body, '$.what') = 'slots'
             AND json_extract(body, '$.model') = 'telco-churn' AND json_extract(body, '$.slots') IS NOT NULL
             ORDER BY seq DESC LIMIT 1"""
    with database(ledger) as connection:
        entry = connection.execute(sql).fetchone()
        state = connection.execute("SELECT document FROM state WHERE kind = 'slots' AND name = 'telco-churn'").fetchone()
    return entry and json.loads(entry[0])["slots"], state and json.loads(state[0])


def illegal(slots):
    """The law of the slots, written down a second time."""
    placed = [slots[colour] for colour in ("blue", "green") if slots[colour]]
    roles = sorted(one["role"] for one in placed)
    problems = [] if roles.count("champion") == 1 else [f"roles {roles}"]
    if (slots["rollout"] is not None) != ("challenger" in roles):
        problems.append(f"roles {roles} and rollout {slots['rollout']}")
    if slots["rollout"] and slots["rollout"]["step"] >= len(slots["rollout"]["plan"]["steps"]):
        problems.append("behind the last step")
    return problems


def answered_before(running, ledger, asked, count_one):
    """What is wrong with the fate of the move that the kill hit: answered ones are there, and no one is done twice."""
    with database(ledger) as connection:
        found = connection.execute("SELECT seq FROM answered WHERE key = ?", (asked.key,)).fetchone()
        body = found and json.loads(connection.execute("SELECT body FROM entry WHERE seq = ?", found).fetchone()[0])
    problems = []
    if asked.status == 200 and not found:
        problems.append(f"the answered {asked.verb} is not in the journal: {asked.told[:200]}")
    if found and body["verb"] != asked.verb:
        problems.append(f"entry {found[0]} is {body['verb']}, and not {asked.verb}")
    if asked.status not in (200, None) and found:
        problems.append(f"a {asked.verb} that was answered with {asked.status} is in the journal")
    if asked.by_cli:
        # Its body is written by the program, so the same words would have to come from it again.
        status, again = asked.by_command_line(running)
        again = {"repeated": "done before" in again} if status == 200 else {}
    else:
        status, text = keyed(running.server.admin, asked)
        again = json.loads(text)
    if found:
        if asked.status is None:
            count_one("journalled, but cut off")
        if status != 200 or not again.get("repeated"):
            problems.append(f"asked again, {asked.verb} is answered with {status} {again}")
    elif status == 200:
        count_one("done anew")
        if again.get("repeated"):
            problems.append(f"{asked.verb} is said to be done before, and is not in the journal")
    return problems


def scored(running, rows, scores):
    """What is wrong with answers: each has the score of the version that it names, and a version that stands in a slot."""
    client, slots = Client(running.http), running.slots()
    return [text for at in range(ROWS_CHECKED) for text in unlike(slots, score(client, rows[at]), scores, at)]


# --- what is asked for -----------------------------------------------------------------------------------------------


class Asked:
    """A move on its way, over HTTP or by the command line, with a key of its own."""

    def __init__(self, place, running, chosen, legal):
        self.status, self.told, self.at, self.key = None, "", None, str(uuid.uuid4())
        self._place, self._server = place, running.server
        verbs = [verb for verb in legal if verb not in ("apply_policy", "undo_policy", "approve")]
        # Sometimes one that is not legal.
        self.verb = chosen.choice(["start", "promote", "stage"] if chosen.random() < 0.05 or not verbs else verbs)
        # Not too often, so that there is more to hit.
        if self.verb == "retire" and chosen.random() < 0.5:
            self.verb = chosen.choice(verbs)
        self.by_cli = chosen.random() < 0.2
        body = {"by": "show-swap", "why": "a kill is near"}
        if self.verb == "stage":
            body["version"] = chosen.choice(VERSIONS)
        if self.verb == "promote":
            body["force"] = True
        if self.verb == "start":
            body |= {"steps": STEPS, "limits": LIMITS, "promote": chosen.random() < 0.5}
        self.body, self._fields = json.dumps(body), body
        self._thread = threading.Thread(target=self._send, daemon=True)

    def send(self):
        self._thread.start()

    def end(self):
        self._thread.join(30)

    def _send(self):
        if self.by_cli:
            status, self.told = self.by_command_line(None)
            self.status, self.at = status, time.monotonic()
            return
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, self.told = keyed(self._server.admin, self)
            self.status, self.at = status, time.monotonic()

    def by_command_line(self, running):
        """200, or another status, or none where the connection broke; and what it told."""
        fields, words = self._fields, [*WORDS.get(self.verb, [self.verb]), "telco-churn"]
        words += [fields["version"]] if self.verb == "stage" else []
        words += ["--force"] if self.verb == "promote" else []
        words += ["--steps", "0.5:0,1:0"] if self.verb == "start" else []
        words += ["--promote"] if fields.get("promote") else []
        words += ["--by", "show-swap", "--key", self.key]
        address = (running.server if running else self._server).admin
        command = [self._place.program, *words, "--set", f"admin.listen={address}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        told = done.stdout + done.stderr
        if done.returncode == 0:
            return 200, told
        # 1 is a refusal by the service; anything else, or no answer, is neither.
        return (409 if done.returncode == 1 and "not allow" in told else None), told


def keyed(address, asked):
    """Status and text of the answer to a move, asked for with its key."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=TIMEOUT_SECS)) as connection:
        headers = {"content-type": "application/json", "idempotency-key": asked.key}
        connection.request("POST", f"{SLOTS}/{asked.verb}", asked.body.encode(), headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


class Scoring:
    """A customer after the other for a `with` block, each score held against the version that it names."""

    def __init__(self, address, rows, scores):
        self.wrong, self._address, self._rows, self._scores = [], address, rows, scores
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ending.set()
        self._thread.join(30)

    def _run(self):
        client, number = Client(self._address), 0
        with contextlib.suppress(OSError, http.client.HTTPException):
            while not self._ending.is_set():
                at = number % len(self._rows)
                version, given = score(client, self._rows[at] | {"customer_id": f"K-{number % 997}"})
                # Who is the champion changes meanwhile: that one may fail at a row is held against the slots elsewhere.
                if version and given != self._scores[version][at]:
                    self.wrong.append(f"row {at} by {version}: {given}, and not {self._scores[version][at]}")
                number += 1
