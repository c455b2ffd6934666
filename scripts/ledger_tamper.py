"""Tampering with a ledger, each way on a copy of its own: every one has to be found, by the entry where it begins."""

import json
import re
import shutil
import time
import uuid

from evidence import Client, claim, info
from ledger_load import database, one

FALLS = 65  # the exit code of a check that found something


def prepared(place):
    """A small ledger of a stopped server; with an older mark of its end, and a decision on one who came back after erasure."""
    ledger = place.fresh()
    singles = [body.replace('"C-', '"T-', 1).encode() for body in place.bodies["telco-churn"][:30]]
    with place.serve(ledger) as server:
        client = Client(server.http)
        for body in singles[:10] * 2:
            client.ask("POST", "/v1/score", body)
        with database(ledger) as connection:
            older = one(connection, "SELECT value FROM meta WHERE key = 'head'")
            older_seq = one(connection, "SELECT max(seq) FROM entry")
        for body in singles[10:]:
            client.ask("POST", "/v1/score", body)
            time.sleep(0.002)  # so that no two neighbours have the same time
        # The first customer is erased, and comes back.
        client.json("DELETE", "/v1/customers/T-000000")
        returned = uuid.UUID(client.json("POST", "/v1/score", json.loads(singles[0]))["decision_id"]).bytes
        client.ask("POST", "/v1/score", singles[1])
    return ledger, older, older_seq, returned


def swap(connection, left, right):
    for before, after in ((left, -1), (right, left), (-1, right)):
        connection.execute("UPDATE entry SET seq = ? WHERE seq = ?", (after, before))


def copy_entry(connection, source, target):
    columns = [row[1] for row in connection.execute("PRAGMA table_info(entry)") if row[1] != "seq"]
    names = ", ".join(columns)
    connection.execute(f"INSERT INTO entry (seq, {names}) SELECT ?, {names} FROM entry WHERE seq = ?", (target, source))


def insert(connection, seq):
    """A copy of another entry between two that are there; all that follow move up."""
    connection.execute("UPDATE entry SET seq = -seq WHERE seq >= ?", (seq,))
    connection.execute("UPDATE entry SET seq = 1 - seq WHERE seq < 0")
    copy_entry(connection, seq - 3, seq)


def truncate(connection, last, head=None):
    connection.execute("DELETE FROM entry WHERE seq > ?", (last,))
    connection.execute("DELETE FROM customer_entry WHERE seq > ?", (last,))
    connection.execute("UPDATE meta SET value = min(value, ?) WHERE key = 'indexed'", (last.to_bytes(8, "little"),))
    if head:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'head'", (head,))


def mark_moved(head, seq, link):
    """The mark of the end, set back by one who has no key."""
    return seq.to_bytes(8, "little") + link + head[40:]


def attempts(connection, older, older_seq, returned):
    """Every way: (name, what to do to a copy, what the report must say, whether it needs a noted head)."""
    last = one(connection, "SELECT max(seq) FROM entry")
    back, of_back = connection.execute("SELECT seq, customer FROM entry WHERE id = ?", (returned,)).fetchone()
    middle, customer = connection.execute("SELECT seq, customer FROM entry WHERE kind = 'decision' AND seq > 14").fetchone()
    other = one(connection, "SELECT customer FROM customer WHERE customer != ?", customer)
    head = one(connection, "SELECT value FROM meta WHERE key = 'head'")
    before_last = one(connection, "SELECT link FROM entry WHERE seq = ?", last - 1)
    at = rf"entry {middle}:"

    def sql(text, *values):
        return lambda copy: copy.execute(text, values)

    def change(column):
        return sql(f"UPDATE entry SET {column} WHERE seq = ?", middle)

    def all_of(*steps):
        return lambda copy: [step(copy) for step in steps]

    no_mark = sql("DELETE FROM meta WHERE key = 'head'")
    cut = lambda copy: truncate(copy, last - 1)
    yield "score changed by 1e-15", change("score = score + 1e-15"), at, False
    yield "score of a decision nulled", change("score = NULL"), at, False
    yield "tier changed", change("tier = 'other'"), at, False
    yield "action changed", change("action = 'other'"), at, False
    yield "body changed", change("body = '{\"holdout\":true}'"), at, False
    yield "a sealed bit changed", change("sealed = flip(sealed)"), at, False
    yield "sealed inputs removed", change("sealed = NULL"), at, False
    yield "a bit of the link changed", change("link = flip(link)"), at, False
    yield "time moved by 1 ms", change("at_ms = at_ms + 1"), at, False
    yield "id changed", change("id = randomblob(16)"), at, False
    yield "kind changed", change("kind = 'outcome'"), at, False
    yield "pseudonym changed", sql("UPDATE entry SET customer = ? WHERE seq = ?", other, middle), at, False
    yield "key version changed", change("key_version = 2"), at, False
    yield "policy document changed", sql("UPDATE version SET policy_document = policy_document || ' '"), r"entry \d+:", False
    yield "version row removed", sql("DELETE FROM version"), r"entry \d+:", False
    yield "entry removed", sql("DELETE FROM entry WHERE seq = ?", middle), rf"entries {middle} to {middle} are missing|{at}", False
    yield "first entry removed", sql("DELETE FROM entry WHERE seq = 1"), r"entries 1 to 1 are missing", False
    yield "two entries swapped", lambda copy: swap(copy, middle, middle + 1), at, False
    yield "entry inserted", lambda copy: insert(copy, middle), at, False
    yield "last entry again at the end", lambda copy: copy_entry(copy, last, last + 1), rf"entry {last + 1}:", False
    yield "last entry removed", cut, rf"{last}\b", False
    yield "… and the mark of the end too", all_of(cut, no_mark), r"mark", False
    yield "… and the mark set back", lambda copy: truncate(copy, last - 1, mark_moved(head, last - 1, before_last)), r"mark", False
    yield "mark of the end removed", no_mark, r"mark", False
    yield "customer's key nulled", sql("UPDATE customer SET wrapped = NULL WHERE customer = ?", customer), r"entry \d+:", False
    yield "… of one back after erasure", sql("UPDATE customer SET wrapped = NULL WHERE customer = ?", of_back), rf"entry {back}:", False
    theirs = "UPDATE customer SET wrapped = (SELECT wrapped FROM customer WHERE customer = ?) WHERE customer = ?"
    yield "customer's key swapped", sql(theirs, other, customer), r"entry \d+:", False
    yield "customer's row removed", sql("DELETE FROM customer WHERE customer = ?", customer), r"entry \d+:", False
    hidden = sql("DELETE FROM customer_entry WHERE customer = ?", customer)
    yield "customer hidden from the index", hidden, r"index|entry \d+", False
    yield "rolled back with its old mark", lambda copy: truncate(copy, older_seq, older), rf"{last}:", True
    emptied = [sql(f"DELETE FROM {table}") for table in ("entry", "customer_entry", "customer", "version", "meta")]
    yield "emptied as if new", all_of(*emptied), rf"{last}:", True


def step(place):
    ledger, older, older_seq, returned = prepared(place)
    code, told = place.verify(ledger)
    head = (re.search(r"head (\d+:[0-9a-f]+)", told) or [None, ""])[1]
    claim(code == 0 and head, f"tampering: the untouched ledger verifies with exit code {code}")
    code, told = place.verify(ledger, "--expect", head)
    claim(code == 0, f"tampering: and with its noted head {head[:24]}… too: exit code {code}")
    with database(ledger) as connection:
        ways = list(attempts(connection, older, older_seq, returned))
    found = 0
    for name, tamper, expected, needs_head in ways:
        copy = place.fresh()
        for path in ledger.iterdir():
            shutil.copy2(path, copy)
        with database(copy, write=True) as connection:
            connection.create_function("flip", 1, lambda blob: bytes([*blob[:20], blob[20] ^ 1, *blob[21:]]))
            connection.execute("BEGIN")
            tamper(connection)
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        code, told = place.verify(copy, *(["--expect", head] if needs_head else []))
        lines = [line.strip(" -") for line in told.splitlines() if re.search(expected, line)]
        good = code == FALLS and lines
        found += bool(good)
        print(f"      {'found ' if good else 'MISSED'}  {code:3}  {name:32} {(lines or told.splitlines()[-1:])[0]}", flush=True)
        shutil.rmtree(copy)
    alone = sum(not needs_head for *_, needs_head in ways)
    info(f"tampering: {len(ways) - alone} of the ways put an older state back as a whole: only a head noted elsewhere shows that")
    claim(found == len(ways), f"tampering: {found} of {len(ways)} ways are found with exit code {FALLS}, and named")
