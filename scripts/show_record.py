#!/usr/bin/env python3
"""The evidence for the ledger: nothing that was answered is lost, changed unseen, or readable once it is erased.
`make show-record` runs it.

    python3 scripts/show_record.py [--quick] [--kills N] [--only STEP]

One line per claim with its figure; exit code 1 if one falls short. Steps: kills, tampering, full-disk, slow-disk, rate, cost,
replay, erasure, backup, refusals. Standard library, a C compiler and oha, which is built on first use; the full disk needs root.
"""

import contextlib
import http.client
import json
import random
import shutil
import statistics
import sys
import threading
import time
from pathlib import Path

import evidence
import ledger_disk
import ledger_tamper
from evidence import Client, claim, info
from ledger_load import (
    MODELS, Load, Place, claim_recorded, claim_same_through_the_door, customers, database, differing, hammer, load, oha, one, until,
)
from server import Failed, Server

KILLS_MIN, KILL_SECS = 50, (0.2, 1.5)
RATE, RATE_SECS, RATE_MIN = 20_000, 20, 0.99
P99_MAX_MS, LOG_MAX = 100, 256 << 20
PAIRS, PAIR_SECS, COST_MIN = 5, 6, 0.85
REPLAYED = 10_000


# --- nothing is lost -------------------------------------------------------------------------------------------------


def kills(place):
    kills, ledger, chosen = place.kills, place.fresh(), random.Random(11)
    answered, last, wrong, starts_ms, verified = {}, {}, [], [], 0
    for kill in range(1, kills + 1):
        server = Server(place.command(), ledger=ledger)
        try:
            starts_ms.append(server.ready["ready_ms"])
            wrong += [f"before kill {kill}: {text}" for text in unlike_record(server, ledger, last)]
            with Load(server.http, place.bodies) as drive, hammer(place, server.http):
                if kill % 5 == 0:
                    threading.Thread(target=meddle, args=(server, chosen.uniform(*KILL_SECS)), daemon=True).start()
                time.sleep(chosen.uniform(*KILL_SECS))
                server.kill()
        finally:
            server.kill()
        last = drive.answered
        answered |= last
        wrong += drive.unlike
        if kill % 10 == 0:
            code, told = place.verify(ledger)
            verified += code == 0
            wrong += [f"after kill {kill}: {told[:300]}"] if code != 0 else []
    often = place.quick or kills >= KILLS_MIN
    text = f"{kills} times kill -9 at full load, {KILL_SECS[0]} to {KILL_SECS[1]} s after the start"
    claim(often and not wrong, f"kills: {text}; wrong: {wrong[:3] or 'nothing'}")
    text = f"the chain was verified {verified} times right after a kill"
    claim(verified == kills // 10, f"kills: {text}; the slowest start took {max(starts_ms)} ms")
    claim_recorded("kills", place, ledger, answered)
    with place.serve(ledger) as server:
        claim_same_through_the_door("kills", Client(server.http), answered, 1_000)


def unlike_record(server, ledger, answered):
    """What is wrong with the answers of before: all of them in the file, the last ones through the door."""
    client, wrong = Client(server.http), []
    for text, score in list(answered.items())[-20:]:
        status, _, found = client.ask("GET", f"/v1/decisions/{text}")
        if status != 200 or json.loads(found)["score"] != score:
            wrong.append(f"{text} is answered with {status}: {found[:200]}")
    missing, other, _ = differing(ledger, answered)
    return wrong + ([f"{missing} missing, {other} with another score"] if missing or other else [])


def meddle(server, seconds):
    """What operators do, so that a kill may hit that as well."""
    time.sleep(seconds / 2)
    with contextlib.suppress(OSError, http.client.HTTPException):
        Client(server.admin).ask("POST", "/v1/ledger/rotate-keys", b"{}")
        Client(server.http).ask("DELETE", "/v1/customers/C-000001")


# --- fast ------------------------------------------------------------------------------------------------------------


def rate(place):
    seconds = 5 if place.quick else RATE_SECS
    ledger, bodies = place.fresh(), place.directory / "rate.ndjson"
    bodies.write_text("".join(f"{body}\n" for body in customers.bodies(customers.BUNDLE, 20_000, 3)))
    with place.serve(ledger) as server, Watch(ledger) as watch:
        oha(place, server.http, 2, 8, 500, bodies)
        before = on_record(ledger)
        found, good, failed = oha(place, server.http, seconds, 64, RATE, bodies)
        recorded, asked = on_record(ledger) - before, RATE * seconds
        achieved = good / found["summary"]["total"]
        p50, p99 = (found["latencyPercentiles"][name] * 1e3 for name in ("p50", "p99"))
        text = f"{achieved:,.0f}/s of {RATE:,}/s for {seconds} s, {asked - good} of {asked:,} not answered{failed}"
        text = f"{text}; p50 {p50:.2f} ms, p99 {p99:.2f} ms from when it was due"
        claim(achieved >= RATE * RATE_MIN and good == asked, f"rate: {text}")
        claim(p99 < P99_MAX_MS, f"rate: the p99 of {p99:.2f} ms is below {P99_MAX_MS} ms")
        claim(recorded == good, f"rate: {recorded:,} decisions on record for {good:,} answers")
        before = on_record(ledger)
        found, good, failed = oha(place, server.http, seconds, 64, None, bodies)
        recorded = on_record(ledger) - before
        text = f"at most {good / found['summary']['total']:,.0f}/s on 64 connections, closed loop"
        claim(recorded >= good and not failed, f"rate: {text}; {recorded:,} on record for {good:,} answers{failed}")
        size = (ledger / "ledger.db").stat().st_size / one_of(ledger, "SELECT max(seq) FROM entry")
    text = f"the write-ahead log grew to {watch.most >> 20} MiB at most (limit {LOG_MAX >> 20} MiB)"
    claim(watch.most <= LOG_MAX, f"rate: {text}: it is emptied under load too")
    info(f"rate: a record takes {size:,.0f} bytes of the database")
    code, told = place.verify(ledger)
    claim(code == 0, f"rate: verify ledger ends with {code}: {told.splitlines()[0]}")


class Watch:
    """The most bytes of the write-ahead log, looked at while a `with` block runs."""

    def __init__(self, ledger):
        self.most, self._log, self._ending = 0, ledger / "ledger.db-wal", threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ending.set()
        self._thread.join()

    def _look(self):
        while not self._ending.wait(0.1):
            self.most = max(self.most, self._log.stat().st_size if self._log.exists() else 0)


def one_of(ledger, sql):
    with database(ledger) as connection:
        return one(connection, sql)


def on_record(ledger):
    return one_of(ledger, "SELECT count(*) FROM entry WHERE kind = 'decision'")


def cost(place):
    pairs, seconds = (2, 3) if place.quick else (PAIRS, PAIR_SECS)
    bodies = place.directory / "cost.ndjson"
    bodies.write_text("".join(f"{body}\n" for body in customers.bodies(customers.BUNDLE, 2_000, 5)))

    def saturated(promise):
        ledger = place.fresh()
        with place.serve(ledger, ledger__promise=promise) as server:
            # What is measured is the steady state: a new ledger first grows its log to size and makes a key for every customer.
            oha(place, server.http, 2 if place.quick else 4, 128, None, bodies)
            # Enough connections to keep both cores busy while some wait for a commit: with 64 the wait is what is measured.
            found, good, failed = oha(place, server.http, seconds, 128, None, bodies)
        shutil.rmtree(ledger)
        if failed:
            raise Failed(f"promise {promise}: {failed}")
        return good / found["summary"]["total"]

    ratios = []
    for pair in range(pairs):
        # By turns, so that whatever the machine does in time is on both sides.
        order = ("committed", "off") if pair % 2 else ("off", "committed")
        found = {promise: saturated(promise) for promise in order}
        with_ledger, without = found["committed"], found["off"]
        ratios.append(with_ledger / without)
        info(f"cost: committed {with_ledger:,.0f}/s, off {without:,.0f}/s: {ratios[-1]:.3f}")
    median = statistics.median(ratios)
    text = f"{median:.3f} of the saturation without it, median of {pairs} pairs (at least {COST_MIN})"
    claim(median >= COST_MIN, f"cost: with the ledger {text}")


# --- made again, erased, copied --------------------------------------------------------------------------------------


def replay(place):
    wanted, ledger = (1_000 if place.quick else REPLAYED), place.fresh()
    with place.serve(ledger) as server:
        client, decided = Client(server.http), 0
        for name, bodies in place.bodies.items():
            for body in bodies[: wanted // 10]:
                decided += client.ask("POST", f"/v1/models/{name}/score", body.encode())[0] == 200
        while decided < wanted:
            for name, bodies in place.bodies.items():
                answer = client.json("POST", f"/v1/models/{name}/score/batch", [json.loads(body) for body in bodies[:1_000]])
                decided += sum("decision_id" in item for item in answer["results"])
    begun = time.monotonic()
    code, told = place.run("replay", "--last", wanted, ledger=ledger)
    good = code == 0 and f"{wanted} of {wanted} decisions came out the same to the last bit" in told
    text = f"{told.splitlines()[-1]} (singles and batches of {' and '.join(MODELS)})"
    claim(good, f"replay: exit code {code} after {time.monotonic() - begun:.1f} s: {text}")


def raw(ledger):
    """Every byte of the ledger's files, but for the keys."""
    return b"".join(path.read_bytes() for path in ledger.glob("ledger.db*"))


def erasure(place):
    ledger, others = place.fresh(), (500 if place.quick else 4_000)
    settings = {"ledger__dir": ledger, "log__request_share": 1.0}
    template = json.loads(place.bodies["telco-churn"][0])
    marker = "MARKER-subject-5f3a"

    def decide(client, customer):
        body = json.dumps({**template, "customer_id": customer, "features": {**template["features"], "MonthlyCharges": 98.76}})
        return client.ask("POST", "/v1/score", body.encode())[0]

    with place.serve(ledger, **settings) as server:
        client, admin = Client(server.http), Client(server.admin)
        # Many customers, so that the pages with their keys are split and merged; a new master secret half-way wraps them anew.
        for number in range(others):
            decide(client, f"other-{number}")
            if number in (others // 4, others // 2):
                claim(decide(client, marker) == 200, f"erasure: decided on the customer after {number} others")
            if number == others // 3:
                admin.json("POST", "/v1/ledger/rotate-keys", {})
        record = client.json("GET", f"/v1/customers/{marker}")["decisions"]
        opened = [decision for decision in record if decision["request"] and decision["request"]["customer_id"] == marker]
        claim(len(opened) == len(record) == 2, f"erasure: {len(opened)} of {len(record)} records on the customer open before")
        # What goes wrong is logged too, and must not name anybody either.
        for path in (f"/v1/customers/{marker}?limit=0", f"/v1/decisions?customer_id={marker}&limit=0", f"/v1/nowhere/{marker}"):
            client.ask("GET", path)
        client.ask("POST", "/v1/score", json.dumps({"customer_id": marker, "features": {marker: 1}}).encode())
        told = "".join(server.output) + admin.ask("GET", "/metrics")[2].decode()
        present = raw(ledger)
        claim(marker.encode() not in present, f"erasure: the id is nowhere in {len(present):,} bytes of the ledger's files")
        claim(marker not in told, f"erasure: nor in {len(told):,} bytes of /metrics and of a log with every request")

        erased = [marker, *(f"other-{number}" for number in range(0, others, 20))]
        keys, inputs = sealed_of(ledger, client, erased)
        present = raw(ledger)
        seen = sum(key in present for key in keys)
        text = f"{seen} of {len(keys)} wrapped keys of {len(erased)} customers stand in the files before"
        claim(seen == len(keys), f"erasure: {text}")
        gone = sum(client.json("DELETE", f"/v1/customers/{customer}")["erased"] for customer in erased)
        present = raw(ledger)
        left = sum(key in present for key in keys)
        text = f"{gone} of {len(erased)} customers erased; {left} of {len(keys)} wrapped keys are left in the files"
        claim(gone == len(erased) and not left, f"erasure: {text}")
        claim(not any(text in present for text in inputs), "erasure: no input stands in the files in the clear")
        record = client.json("GET", f"/v1/customers/{marker}")["decisions"]
        closed = [decision for decision in record if decision["request"] is None and decision["inputs"] == "erased"]
        text = f"{len(closed)} of {len(record)} records on the customer say that the inputs are erased"
        claim(len(closed) == len(record) == 2, f"erasure: {text}")
        again = client.json("DELETE", f"/v1/customers/{marker}")["erased"]
        claim(again is False, f"erasure: a second DELETE erases nothing: {again}")
        other = client.json("GET", "/v1/customers/other-1")["decisions"]
        claim(other and other[0]["request"], "erasure: another customer still opens")
        with_a_reader_in_the_way(ledger, client, decide)
    code, told = place.run("replay", closed[0]["decision_id"], ledger=ledger)
    claim(code != 0 and "erased" in told, f"erasure: replay of an erased one refuses with {code}: {told.splitlines()[-1].strip()}")
    code, told = place.run("replay", other[0]["decision_id"], ledger=ledger)
    claim(code == 0, f"erasure: replay of another one: {told.splitlines()[-1]}")
    code, told = place.verify(ledger)
    claim(code == 0, f"erasure: verify ledger ends with {code}: {told.splitlines()[0]}")
    present = raw(ledger)
    claim(not any(key in present for key in keys), "erasure: nothing of the keys is left after the stop either")


def sealed_of(ledger, client, customers_erased):
    """The wrapped keys of customers as they stand, found by the pseudonyms that the service tells; and a piece of their inputs."""
    with database(ledger) as connection:
        keys = [
            one(connection, "SELECT wrapped FROM customer WHERE customer = ?", bytes.fromhex(pseudonym))
            for customer in customers_erased
            for pseudonym in {decision["customer"] for decision in client.json("GET", f"/v1/customers/{customer}")["decisions"]}
        ]
    return keys, [b"MonthlyCharges", b"98.76"]


def with_a_reader_in_the_way(ledger, client, decide):
    """An erasure while somebody reads for long must not stop the service: a reader stands in the way of the log's end."""
    with database(ledger) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM meta").fetchone()
        decide(client, "in-the-way")
        eraser = threading.Thread(target=lambda: Client(client.address).ask("DELETE", "/v1/customers/in-the-way"))
        eraser.start()
        slowest, statuses, end = 0.0, set(), time.monotonic() + 3
        while time.monotonic() < end:
            begun = time.monotonic()
            statuses.add(decide(client, "passer-by"))
            slowest = max(slowest, time.monotonic() - begun)
        reader.execute("COMMIT")
        eraser.join()
    text = f"decisions are answered with {sorted(statuses)}, the slowest after {slowest * 1e3:.0f} ms"
    claim(statuses == {200} and slowest < 1, f"erasure: while a long reader stands in the way, {text}")


def backup(place):
    ledger, copy, restored = place.fresh(), place.fresh() / "copy.db", place.fresh()
    customer = json.loads(place.bodies["telco-churn"][0])["customer_id"]
    with place.serve(ledger) as server:
        Client(server.http).ask("POST", "/v1/score", place.bodies["telco-churn"][0].encode())
        with Load(server.http, place.bodies) as drive:
            until(lambda: len(drive.answered) > 2_000, 30)
            before = dict(drive.answered)
            code, told = place.run("ledger", "backup", copy, ledger=ledger, admin__listen=server.admin)
            text = f"exit code {code}, {len(drive.answered) - len(before):,} decisions were answered meanwhile"
            claim(code == 0 and copy.exists(), f"backup: copied under load: {text}")
            code, told = place.run("ledger", "rotate-keys", ledger=ledger, admin__listen=server.admin)
            rotated = time.monotonic()
            until(lambda: drive.statuses(since=rotated).get(200, 0) > 2_000, 30)
            drive.end()
            refused = {status: count for status, count in drive.statuses().items() if status != 200}
            text = f"of {len(drive.at):,} answers not 200: {refused or 'none'}, {drive.broken} connections broke"
            claim(code == 0 and not refused and not drive.broken, f"backup: keys rotated under load ({told}); {text}")
        client = Client(server.http)
        client.ask("POST", "/v1/score", place.bodies["telco-churn"][0].encode())
        found = client.json("GET", f"/v1/customers/{customer}?limit=1000")["decisions"]
        pseudonyms = {decision["customer"] for decision in found}
        opened = sum(bool(decision["request"]) for decision in found)
        text = f"{len(found)} records on a customer under {len(pseudonyms)} pseudonyms, before and after the rotation"
        claim(len(pseudonyms) == 2 and opened == len(found), f"backup: {text}; {opened} open")
    claim_recorded("backup, the ledger itself", place, ledger, drive.answered)
    # The key file goes its own way, and may be newer than the copy.
    shutil.copy2(ledger / "ledger.keys", restored)
    code, told = place.run("ledger", "restore", copy, ledger=restored)
    claim(code == 0, f"backup: restored into another place, exit code {code}: {told.splitlines()[0]}")
    claim_recorded("backup, restored", place, restored, before)
    with place.serve(restored) as server:
        claim_same_through_the_door("backup, restored and served", Client(server.http), before, 200)


def refusals(place):
    def start(name, ledger, expected):
        """Must end at once, with one line that says why."""
        code, told = place.run("serve", ledger=ledger, http__listen="127.0.0.1:0", admin__listen="127.0.0.1:0")
        lines = [line for line in told.splitlines() if '"level":"INFO"' not in line.replace(" ", "")]
        good = code not in (0, 101, 139) and len(lines) == 1 and expected in lines[0]
        text = " / ".join(lines)[:300].replace(str(ledger), "DIR")
        claim(good, f"refusals: {name}: exit code {code}, {len(lines)} line(s): {text}")

    ledger, body = place.fresh(), place.bodies["telco-churn"][0].encode()
    with place.serve(ledger) as server:
        Client(server.http).ask("POST", "/v1/score", body)
        start("a second server on the same ledger", ledger, "in use")
        status = Client(server.http).ask("POST", "/v1/score", body)[0]
        claim(status == 200, f"refusals: the first server still answers with {status}")
    newer = place.fresh()
    shutil.copytree(ledger, newer, dirs_exist_ok=True)
    with database(newer, write=True) as connection:
        connection.execute("PRAGMA user_version = 99")
    start("a ledger with schema 99", newer, "schema 99")
    code, told = place.verify(newer)
    claim(code != 0 and "schema 99" in told, f"refusals: verify of schema 99 ends with {code}")
    keys = ledger / "ledger.keys"
    text = keys.read_bytes()
    keys.unlink()
    start("the key file is missing", ledger, "missing")
    claim(not keys.exists(), "refusals: no new key file is made in its place")
    keys.write_bytes(text)
    keys.chmod(0o644)
    start("the key file may be read by others", ledger, "chmod 600")
    keys.chmod(0o600)
    keys.write_text('{"keys": [{"version": 1, "created": "2026-01-01T00:00:00Z", "secret": "' + "ab" * 32 + '"}]}')
    start("another key file", ledger, "key file is another one")
    keys.write_bytes(text)
    with database(ledger, write=True) as connection:
        connection.execute("DELETE FROM entry WHERE seq = (SELECT max(seq) FROM entry)")
    start("a ledger that was cut off", ledger, "it ends at entry")


STEPS = {
    "kills": kills, "tampering": ledger_tamper.step, "full-disk": ledger_disk.full, "slow-disk": ledger_disk.slow,
    "rate": rate, "cost": cost, "replay": replay, "erasure": erasure, "backup": backup, "refusals": refusals,
}


def place(options, program, directory):
    kills_asked = options.kills or (5 if options.quick else KILLS_MIN)
    return Place(program, options.oha or load.load_generator(), directory, options.quick, kills_asked)


if __name__ == "__main__":
    more = [
        ("--kills", {"type": int, "help": f"how often the server is killed (default {KILLS_MIN})"}),
        ("--oha", {"type": Path, "help": "an oha that is built already"}),
    ]
    sys.exit(evidence.main("show-record", __doc__, STEPS, place, more))
