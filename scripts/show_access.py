#!/usr/bin/env python3
"""The evidence for who may call: every route is shut but to the right key, keys rotate under load without a failed call, rates are
exact, the time of an answer tells nothing of a key, TLS is what a scanner wants, and every crate is allowed. `make show-access` runs it.

    python3 scripts/show_access.py [--quick] [--only STEP] [--binary PATH] [--profile NAME]

One line per claim with its figure; exit code 1 if one falls short. Steps: matrix, rotation, rates, timing, tls, deny. Standard library and
cargo; `tls` and `deny` say in access_tls.py and supply.sh what they need.
"""

import gc
import hashlib
import json
import math
import random
import re
import secrets
import socket
import statistics
import subprocess
import sys
import threading
import time

import access_tls
import evidence
from evidence import claim, info
from server import ROOT, running

ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
MATRIX = "access::every_route_opens_for_its_scope_and_for_nothing_else"
ROTATIONS, CALLERS = 10, 4
RATE_KEYS, RATE_PER_SEC, RATE_BURST, RATE_SECS, RATE_MAX = 1_000, 2, 2, 30, 0.01
OFFERED = 1.6  # times the rate: a bucket never gets full
TIMES = 12_000
TLS_SECS = 15
# How far two kinds of keys may be apart, with the whole interval of 99.9 %. In the process: less than any network lets through.
Z = 3.29
WRONG_NS_MAX, RIGHT_NS_MAX, HTTP_NS_MAX, ADMIT_NS_MAX = 50, 100, 1_000, 1_000


class Place(evidence.Place):
    """The same, and how cargo builds what goes with the program."""

    def __init__(self, program, profile, directory, quick):
        super().__init__(program, directory, quick)
        self.profile = profile

    def serve(self, name, keys, **settings):
        """A server for a `with` block, with a file of `keys`."""
        file = self.directory / f"{name}.json"
        write_keys(file, keys)
        settings |= {"access__required": "true", "access__keys_file": file}
        return file, running(self.command(), environment=evidence.environment(settings))


class Key:
    """A key with its line in the file."""

    def __init__(self, actor, scopes, rate=None):
        self.id = "".join(secrets.choice(ALPHABET) for _ in range(10))
        self.text = f"msk_{self.id}_" + "".join(secrets.choice(ALPHABET) for _ in range(32))
        sha256 = hashlib.sha256(self.text.encode()).hexdigest()
        self.line = {"id": self.id, "sha256": sha256, "actor": actor, "scopes": scopes, "created": "2026-01-01T00:00:00Z"}
        if rate:
            self.line["rate"] = rate


def write_keys(file, keys):
    """As the command line does: in the place of the file before, as a whole."""
    beside = file.with_suffix(".beside")
    beside.touch(0o600)
    beside.write_text(json.dumps({"keys": [key.line for key in keys]}))
    beside.replace(file)


class Connection:
    """HTTP/1.1 on one socket; many requests at once."""

    HEAD = re.compile(rb"content-length: (\d+)", re.IGNORECASE)

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self.address = address
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""

    def request(self, path, key, body=None):
        """The bytes of a request."""
        head = f"host: {self.address}\r\nauthorization: Bearer {key}\r\n"
        if body is None:
            return f"GET {path} HTTP/1.1\r\n{head}\r\n".encode()
        return f"POST {path} HTTP/1.1\r\n{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body

    def ask(self, requests):
        """The statuses, in order."""
        self.socket.sendall(b"".join(requests))
        return [self._answer() for _ in requests]

    def _answer(self):
        while (end := self.rest.find(b"\r\n\r\n")) < 0:
            self._more()
        head = self.rest[:end]
        whole = end + 4 + int(self.HEAD.search(head)[1])
        while len(self.rest) < whole:
            self._more()
        self.rest = self.rest[whole:]
        return int(head[9:12])

    def _more(self):
        more = self.socket.recv(1 << 16)
        if not more:
            raise ConnectionError("the server closed the connection")
        self.rest += more

    def close(self):
        self.socket.close()


# --- matrix ----------------------------------------------------------------------------------------------------------


def matrix(place):
    """The test that reads the routes where they are registered."""
    profile = [] if place.profile == "dev" else ["--profile", place.profile]
    command = ["cargo", "test", "--quiet", "--locked", *profile, "--test", "it", "--", "--exact", MATRIX, "--nocapture"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    cells = re.search(r"(\d+) cells", done.stdout)
    told = f"{cells[1]} cells of routes x credentials" if cells else done.stdout[-500:] + done.stderr[-500:]
    claim(done.returncode == 0 and bool(cells), f"matrix: {MATRIX}: {told}")


# --- rotation --------------------------------------------------------------------------------------------------------


def rotation(place):
    body = (ROOT / "tests" / "data" / "customer.json").read_bytes()
    keys = [Key("shop", ["score"])]
    file, server = place.serve("rotation", keys)
    statuses, stop, current = [{} for _ in range(CALLERS)], threading.Event(), [keys[0]]
    with server as served:

        def call(mine):
            connection = Connection(served.http)
            while not stop.is_set():
                for status in connection.ask([connection.request("/v1/score", current[0].text, body)] * 8):
                    mine[status] = mine.get(status, 0) + 1
            connection.close()

        threads = [threading.Thread(target=call, args=(mine,)) for mine in statuses]
        [thread.start() for thread in threads]
        probe, taken, shut = Connection(served.http), [], []

        def wait(key, status):
            begun = time.monotonic()
            while probe.ask([probe.request("/v1/models", key.text)]) != [status]:
                if time.monotonic() - begun > 30:
                    raise TimeoutError(f"no {status} within 30 s")
                time.sleep(0.01)
            return time.monotonic() - begun

        try:
            rotations = 3 if place.quick else ROTATIONS
            for number in range(rotations):
                new, old = Key("shop", ["score"]), current[0]
                write_keys(file, [old, new])
                taken.append(wait(new, 200))
                current[0] = new
                # Whoever took the old one has its answer by then.
                time.sleep(0.5)
                if number % 2:
                    old.line["revoked"] = "2026-01-02T00:00:00Z"
                write_keys(file, [old, new] if number % 2 else [new])
                shut.append(wait(old, 401))
        finally:
            stop.set()
            [thread.join() for thread in threads]
    total = {}
    for mine in statuses:
        for status, count in mine.items():
            total[status] = total.get(status, 0) + count
    failed = sum(count for status, count in total.items() if status != 200)
    answered = total.get(200, 0)
    claim(len(shut) == rotations and failed == 0 and answered > 0,
          f"rotation: {rotations} keys changed under load: {failed} of {answered + failed} calls with a valid key failed")
    text = f"a new key opens after {max(taken):.2f} s at most, a revoked one is shut after {max(shut):.2f} s"
    claim(max(taken + shut) <= 2, f"rotation: {text}; at most 2")


# --- rates -----------------------------------------------------------------------------------------------------------


def rates(place):
    seconds = 10 if place.quick else RATE_SECS
    keys = [Key(f"caller-{number}", ["score"], {"per_sec": RATE_PER_SEC, "burst": RATE_BURST}) for number in range(RATE_KEYS)]
    _, server = place.serve("rates", keys)
    period = 1 / (RATE_PER_SEC * OFFERED)
    taken, first, last, others = [0] * RATE_KEYS, [0.0] * RATE_KEYS, [0.0] * RATE_KEYS, set()
    with server as served:
        connection = Connection(served.http)
        requests = [connection.request("/v1/models", key.text) for key in keys]
        begun, rounds, late = time.monotonic(), 0, 0.0
        while (now := time.monotonic()) < begun + seconds:
            for at in range(0, RATE_KEYS, 50):
                sent = time.monotonic()
                for offset, status in enumerate(connection.ask(requests[at : at + 50])):
                    number = at + offset
                    first[number] = first[number] or sent
                    last[number] = sent
                    if status == 200:
                        taken[number] += 1
                    elif status != 429:
                        others.add(status)
            rounds += 1
            late = max(late, time.monotonic() - now)
            time.sleep(max(0.0, begun + rounds * period - time.monotonic()))
    # A gap that fills the bucket would lose requests that were never made.
    carried = late < RATE_BURST / RATE_PER_SEC
    # What is whole is let in.
    expected = [math.floor(RATE_BURST + RATE_PER_SEC * (end - start)) for start, end in zip(first, last)]
    off = sum(taken) / sum(expected) - 1
    worst = max(abs(count - whole) for count, whole in zip(taken, expected))
    info(f"rates: {RATE_KEYS} keys asked {rounds} times in {seconds} s, a round took {late:.2f} s at most")
    claim(carried and not others, f"rates: every answer was 200 or 429, and no caller was left alone too long {others or ''}")
    claim(abs(off) <= RATE_MAX, f"rates: {sum(taken)} of {sum(expected)} expected were let in: {off:+.3%} (at most {RATE_MAX:.0%})")
    claim(worst <= 1, f"rates: no key is further off than {worst} request (at most 1)")


# --- timing ----------------------------------------------------------------------------------------------------------


def timing(place):
    profile = [] if place.profile == "release" else ["--profile", place.profile]
    command = ["cargo", "bench", "--quiet", "--locked", *profile, "--bench", "access"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    medians = found["median_ns"]
    slowest = max(medians["right"], medians["right_with_rate"])
    text = ", ".join(f"{name} {value:.0f}" for name, value in medians.items())
    claim(slowest <= ADMIT_NS_MAX, f"timing: one request is admitted in {slowest:.0f} ns at the median (at most {ADMIT_NS_MAX}); in ns: {text}")
    for apart in found["differences"]:
        one, other = apart["between"]
        most = RIGHT_NS_MAX if "right" in (one, other) else WRONG_NS_MAX
        claim_near("in the process", one, other, apart["mean_ns"], apart["error_ns"], most)
    over_http(place)


def over_http(place):
    """The same through the socket, for wrong keys alone: that a right one was right is in the answer itself."""
    key = Key("shop", ["score"])
    other = lambda at: key.text[:at] + ("b" if key.text[at] == "a" else "a") + key.text[at + 1 :]
    kinds = {"wrong_first": other(15), "wrong_last": other(46), "unknown_id": f"msk_{'a' * 10}{key.text[14:]}"}
    _, server = place.serve("timing", [key] + [Key("filler", []) for _ in range(999)])
    samples = {kind: [] for kind in kinds}
    with server as served:
        connection = Connection(served.http)
        requests = {kind: [connection.request("/v1/models", text)] for kind, text in kinds.items()}
        names = list(kinds) * ((2_000 if place.quick else TIMES))
        random.Random(17).shuffle(names)
        gc.disable()
        for name in names:
            begun = time.perf_counter_ns()
            statuses = connection.ask(requests[name])
            samples[name].append(time.perf_counter_ns() - begun)
            assert statuses == [401], statuses
        gc.enable()
    trimmed = {kind: sorted(values)[: len(values) * 9 // 10] for kind, values in samples.items()}
    for one, two in (("wrong_first", "wrong_last"), ("wrong_first", "unknown_id"), ("wrong_last", "unknown_id")):
        mean = statistics.fmean(trimmed[one]) - statistics.fmean(trimmed[two])
        error = sum(statistics.variance(trimmed[kind]) / len(trimmed[kind]) for kind in (one, two)) ** 0.5
        claim_near("over HTTP", one, two, mean, error, HTTP_NS_MAX)


def claim_near(where, one, other, mean, error, most):
    edge = abs(mean) + Z * error
    text = f"{one} and {other} are {mean:+.1f} ns apart, standard error {error:.1f}: within {edge:.0f} (at most {most})"
    claim(edge <= most, f"timing: {where} {text}")


# --- TLS, and what it is built of ------------------------------------------------------------------------------------


def tls(place):
    access_tls.step(place.program, 5 if place.quick else TLS_SECS)


def deny(place):
    done = subprocess.run([ROOT / "scripts" / "supply.sh", "deny"], cwd=ROOT, capture_output=True, text=True)
    for line in (done.stdout + done.stderr).splitlines():
        if line.startswith("supply:"):
            info(line)
    told = "" if done.returncode == 0 else f": {(done.stdout + done.stderr)[-500:]}"
    claim(done.returncode == 0, f"deny: scripts/supply.sh deny ends with {done.returncode}{told}")


STEPS = {"matrix": matrix, "rotation": rotation, "rates": rates, "timing": timing, "tls": tls, "deny": deny}


def place(options, program, directory):
    return Place(program, options.profile, directory, options.quick)


if __name__ == "__main__":
    more = [("--profile", {"default": "release", "help": "how cargo builds the test and the bench"})]
    sys.exit(evidence.main("show-access", __doc__, STEPS, place, more))
