"""The step `faults` of `make show-limit`: callers that are broken or mean harm, in numbers. Each is got rid of, what it took is given back,
and others are answered meanwhile. tests/it/faults.rs has the same in small."""

import contextlib
import http.client
import os
import socket
import struct
import threading
import time
from pathlib import Path

from evidence import Client, claim, environment, info
from server import ROOT, running

CUSTOMER = (ROOT / "tests/data/customer.json").read_bytes()
HEAD_SECS = 3
# How long after the last fault descriptors and memory may take to come back.
BACK_SECS = 30
MEMORY_BACK_MIB = 24
OTHERS_MAX_SECS = 1.0
# How often others have to have asked for every second that it took: who is not heard of has not fared well.
OTHERS_MIN_PER_SEC = 2
# How long those go on that are got rid of at once, so that others are there meanwhile.
HURTING_SECS = 2
# What stands in place of an answer where there is none.
CLOSED, SILENT = "closed", "neither answered nor closed"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Others:
    """Somebody who asks again and again, each time on a new connection, while something else goes on: for a score, or for `request`, which
    are method, path and body. What became of each is a status, or what went wrong in place of one."""

    def __init__(self, server, request=("POST", "/v1/score", CUSTOMER), pause=0.02):
        self.server, self.answers, self.seconds = server, [], 0.0
        self._request, self._pause, self._stop = request, pause, threading.Event()

    def _ask(self):
        while not self._stop.wait(self._pause) or not self.answers:
            begun, client = time.monotonic(), Client(self.server.http)
            try:
                status = client.ask(*self._request)[0]
            except (OSError, http.client.HTTPException) as error:
                status = repr(error)
            finally:
                client.close()
            self.answers.append((status, time.monotonic() - begun))

    def __enter__(self):
        self._begun = time.monotonic()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.seconds = time.monotonic() - self._begun
        self._stop.set()
        self._thread.join()

    def least(self):
        """How many answers there have to be at least."""
        return max(1, int(self.seconds * OTHERS_MIN_PER_SEC))

    def text(self):
        well = sum(status == 200 for status, _ in self.answers)
        wrong = sorted({str(status) for status, _ in self.answers if status != 200})[:3]
        slowest = max((taken for _, taken in self.answers), default=0) * 1e3
        return f"others: {well} of {len(self.answers)} answered (at least {self.least()} asked), the slowest after {slowest:.0f} ms{', '.join(['', *wrong])}"

    def all_answered(self):
        return len(self.answers) >= self.least() and all(status == 200 for status, _ in self.answers)

    def fared_well(self):
        return self.all_answered() and all(taken < OTHERS_MAX_SECS for _, taken in self.answers)


def address(server):
    host, port = server.http.rsplit(":", 1)
    return host, int(port)


def connect(server):
    return socket.create_connection(address(server), timeout=30)


def gauge(server, name):
    for line in Client(server.admin).ask("GET", "/metrics")[2].decode().splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[-1])
    return 0.0


def taken(server):
    """Descriptors and resident memory in MiB."""
    pid = server.process.pid
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
    return len(os.listdir(f"/proc/{pid}/fd")), resident


def until(condition, seconds=BACK_SECS, pause=0.05):
    """Whether it came to hold within `seconds`."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            return False
        time.sleep(pause)
    return True


def ended(stream):
    """Whether the other side closes within the stream's timeout."""
    try:
        while stream.recv(1 << 20):
            pass
    except socket.timeout:  # TimeoutError is another one before Python 3.10
        return False
    except OSError:
        pass  # a reset is an end too
    return True


def idle(server, count):
    """So many connections that say nothing after one request."""
    streams = []
    for _ in range(count):
        stream = connect(server)
        stream.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        streams.append(stream)
    open_now = gauge(server, "mainstay_http_connections")
    return streams, open_now


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def rapid_reset(server, count):
    """Streams of HTTP/2 begun and reset at once; whether the connection is ended for it."""
    stream, post = connect(server), b"\x83\x86\x04\x09/v1/score\x01\x01x"
    stream.sendall(PREFACE + frame(4, 0, 0))
    with contextlib.suppress(OSError):
        for begin in range(0, count, 100):
            numbers = range(2 * begin + 1, 2 * begin + 201, 2)
            stream.sendall(b"".join(frame(1, 4, number, post) + frame(3, 0, number, b"\0\0\0\x08") for number in numbers))
    with contextlib.closing(stream):
        return ended(stream)


def answer_of(server, request):
    """The first line of the answer; CLOSED, or SILENT where neither an answer nor an end comes within the stream's timeout."""
    with contextlib.closing(connect(server)) as stream:
        with contextlib.suppress(OSError):
            stream.sendall(request)
        try:
            return stream.recv(4096).split(b"\r\n")[0].decode(errors="replace") or CLOSED
        except socket.timeout:
            return SILENT
        except OSError:  # a reset, since not all of the request was read
            return CLOSED


def hurtful(server):
    """Requests that are made to hurt, each with the statuses that it may be answered with; an early end is an answer too."""
    def post(body, more=b""):
        return b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n" + more + b"content-length: %d\r\n\r\n" % len(body) + body
    yield "a head of 1 MiB", b"GET /livez HTTP/1.1\r\nhost: x\r\nx-much: " + b"x" * (1 << 20) + b"\r\n\r\n", ("431",)
    yield "1,000 headers", b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"x-a: 1\r\n" * 1000 + b"\r\n", ("431",)
    yield "a path of 100 KiB", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", ("414", "431")
    yield "JSON 30,000 deep", post(b"[" * 30_000), ("400",)
    yield "JSON of 5,000 keys", post(b"{" + b",".join(b'"k%d":0' % at for at in range(5_000)) + b"}"), ("400", "422")
    yield "a body of 16 MiB", post(b" " * (16 << 20)), ("413",)
    yield "a length that is none", post(b"{}", b"content-length: x\r\n"), ("400",)
    yield "two lengths", post(b"{}", b"content-length: 7\r\n"), ("400",)
    yield "a length and chunks", post(b"0\r\n\r\n", b"transfer-encoding: chunked\r\n"), ("400",)
    yield "garbage", os.urandom(4096), ("400",)
    yield "TLS on a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(64), ("400",)


def faults(place):
    """Slow, silent, greedy and broken callers."""
    small = place.quick
    settings = {
        "server__head_timeout_ms": HEAD_SECS * 1000, "limits__body_timeout_ms": HEAD_SECS * 1000, "server__unread_timeout_ms": 2000,
    }
    with place.serve(**settings) as server:
        for _ in range(200):
            Client(server.http).ask("POST", "/v1/score", CUSTOMER)
        descriptors, resident = taken(server)
        info(f"faults: before them {descriptors} descriptors, {resident:.0f} MiB resident")

        count = 1_000 if small else 10_000
        with Others(server) as others:
            begun = time.monotonic()
            streams, open_now = idle(server, count)
            _, most = taken(server)
            opened = time.monotonic() - begun
            closed = all(ended(stream) for stream in streams)
        # Some of the first may have been closed before the last were there.
        claim(closed and others.fared_well(), f"faults: {count} idle connections, opened in {opened:.1f} s, {open_now:.0f} of them open then with {most:.0f} MiB resident, all closed after {HEAD_SECS} s; {others.text()}")
        del streams

        count = 10_000 if small else 100_000
        with Others(server) as others:
            begun = time.monotonic()
            for _ in range(count):
                stream = socket.socket()
                # A reset at the end, or this machine would soon have no port left.
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                stream.connect(address(server))
                stream.close()
            seconds = time.monotonic() - begun
        claim(others.fared_well(), f"faults: {count} connects in a row, {count / seconds:.0f}/s; {others.text()}")

        count = 200 if small else 2_000
        with Others(server) as others:
            slow = [connect(server) for _ in range(count)]
            for at, stream in enumerate(slow):
                body = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 60000\r\n\r\n{"
                stream.sendall(body if at % 2 else b"POST /v1/score HTTP/1.1\r\nhost: x\r\nx-")
            begun, alive = time.monotonic(), slow
            while alive and time.monotonic() - begun < 10 * HEAD_SECS:
                dripping = []
                for stream in alive:
                    try:
                        stream.sendall(b"a")
                    except socket.timeout:
                        pass  # it is open still
                    except OSError:
                        continue
                    dripping.append(stream)
                alive = dripping
                time.sleep(0.1)
            seconds = time.monotonic() - begun
        claim(not alive and others.fared_well(), f"faults: {count} callers that send a byte now and then, half of them in the head and half in the body: all given up after {seconds:.1f} s (bounds of {HEAD_SECS} s); {others.text()}")

        with Others(server) as others:
            deaf = []
            for _ in range(20 if small else 200):
                stream = connect(server)
                stream.settimeout(0.2)
                with contextlib.suppress(OSError):
                    for _ in range(200):
                        stream.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 20)
                deaf.append(stream)
            _, most = taken(server)
            freed = until(lambda: gauge(server, "mainstay_http_connections") <= 2)
        claim(freed and others.fared_well(), f"faults: {len(deaf)} callers that ask and never read: {most:.0f} MiB resident, then all closed; {others.text()}")
        for stream in deaf:
            stream.close()

        with Others(server) as others:
            begun, rounds, found = time.monotonic(), 0, {}
            while time.monotonic() - begun < HURTING_SECS:
                rounds += 1
                for what, request, statuses in hurtful(server):
                    found.setdefault(what, (statuses, set()))[1].add(answer_of(server, request))
        for what, (statuses, lines) in found.items():
            legal = (line == CLOSED or any(f" {status} " in line for status in statuses) for line in lines)
            claim(all(legal), f"faults: {what}: {', '.join(sorted(lines))}")
        claim(others.fared_well(), f"faults: these {len(found)}, {rounds} times each; {others.text()}")

        count = 10_000 if small else 100_000
        with Others(server) as others:
            begun, told = time.monotonic(), []
            while time.monotonic() - begun < HURTING_SECS:
                told.append(rapid_reset(server, count))
        claim(all(told) and others.fared_well(), f"faults: rapid reset of {count} streams, on {len(told)} connections one after the other: {sum(told)} were ended for it; {others.text()}")

        back = until(lambda: taken(server)[0] <= descriptors + 1 and gauge(server, "mainstay_http_connections") <= 1)
        now, memory = taken(server)
        claim(back, f"faults: {now} descriptors after all of it, {descriptors} before")
        claim(memory <= resident + MEMORY_BACK_MIB, f"faults: {memory:.0f} MiB resident after all of it, {resident:.0f} before (at most {MEMORY_BACK_MIB} more)")
        claim(gauge(server, "mainstay_http_requests_in_flight") <= 1 and gauge(server, "mainstay_panics_total") == 0, "faults: nothing in flight, no panic")
    scarce(place)


def scarce(place):
    """With few descriptors: whoever is too many is closed, and neither the ledger nor operators go without."""
    limit = 256
    command = ["sh", "-c", f'ulimit -n {limit}; exec "$0" "$@"', *map(str, place.command())]
    with running(command, environment=environment({}), ledger=place.fresh()) as server:
        told = server.event("fewer connections than server.connections_max: allow the service more open files (ulimit -n, LimitNOFILE)")
        claim(told, f"faults: with {limit} descriptors the log says that these are enough for {told and told.get('connections_max')} connections only")
        streams = [connect(server) for _ in range(2 * limit)]
        one_of_them = streams[0]
        one_of_them.sendall(b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(CUSTOMER) + CUSTOMER)
        answered = one_of_them.recv(15) == b"HTTP/1.1 200 OK"
        cpu = sum(map(int, Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        time.sleep(1)
        cpu = sum(map(int, Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13])) - cpu
        ready = Client(server.admin).ask("GET", "/readyz")[0]
        claim(answered and ready == 200 and cpu < 50, f"faults: {2 * limit} connections: those that were taken are answered, operators too ({ready}), and {cpu / 100:.2f} s of processor time go by in 1 s")
        for stream in streams:
            stream.close()
        back = until(lambda: answer_of(server, b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").endswith(" 200 OK"))
        claim(back, "faults: and when they have gone, others are served again")
