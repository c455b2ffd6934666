"""The step `h2` of `make show-limit`: HTTP/1.1 and HTTP/2 are both served, by prior knowledge and by ALPN, and HTTP/2 keeps to RFC 9113
where callers do not: checks in the manner of h2spec, frame by frame. The Python package h2 comes from PyPI into target/h2."""

import contextlib
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections import Counter

from evidence import Client, claim, environment, info
from server import ROOT, running

H2 = "4.4.1"
INSTALLED = ROOT / "target/h2" / H2
CUSTOMER = (ROOT / "tests/data/customer.json").read_bytes()
# Who has said nothing for so long is not taken to have ended the connection.
SILENT_SECS = 5
# How long a connection may have no stream, for the check of that.
IDLE_SECS = 1
# Streams beyond those that are allowed.
TOO_MANY = 10
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
ERRORS = dict(enumerate("NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED FRAME_SIZE_ERROR "
                        "REFUSED_STREAM CANCEL COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM INADEQUATE_SECURITY HTTP_1_1_REQUIRED".split()))


def packages():
    """Python's h2 and hpack, fetched where they are not there."""
    if not INSTALLED.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", INSTALLED, f"h2=={H2}"]
        subprocess.run(pip, check=True)
    sys.path.insert(0, str(INSTALLED))


def frame(kind, flags, stream, payload=b"", length=None):
    return struct.pack(">I", len(payload) if length is None else length)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


class Raw:
    """A connection of HTTP/2 that is spoken by hand."""

    def __init__(self, address, settings=b""):
        import hpack

        self.encoder, self.decoder, self.bytes = hpack.Encoder(), hpack.Decoder(), b""
        host, port = address.rsplit(":", 1)
        self.stream = socket.create_connection((host, int(port)), timeout=SILENT_SECS)
        self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def send(self, data):
        with contextlib.suppress(OSError):
            self.stream.sendall(data)
        return self

    def head(self, stream, flags=END_STREAM | END_HEADERS, fields=(), path="/livez", method="GET", pseudo=None):
        pseudo = pseudo if pseudo is not None else [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x")]
        block = b"".join(_literal(name, value) for name, value in [*pseudo, *fields])
        return self.send(frame(HEADERS, flags, stream, block))

    def score(self, fields=()):
        """A decision that is asked for on stream 1, and whose body is still to come."""
        return self.head(1, END_HEADERS, [("content-type", "application/json"), *fields], "/v1/score", "POST")

    def next(self):
        """Kind, flags, stream and payload of the next frame; nothing at the end. Who neither says anything nor ends it is a `socket.timeout`."""
        try:
            while True:
                if len(self.bytes) >= 9:
                    length = int.from_bytes(self.bytes[:3], "big")
                    if len(self.bytes) >= 9 + length:
                        head, payload, self.bytes = self.bytes[:9], self.bytes[9 : 9 + length], self.bytes[9 + length :]
                        return head[3], head[4], int.from_bytes(head[5:], "big"), payload
                part = self.stream.recv(65536)
                if not part:
                    return None
                self.bytes += part
        except socket.timeout:
            raise
        except OSError:  # a reset is an end too
            return None

    def verdict(self):
        """How the connection, or a stream of it, ends: `GOAWAY error`, `RST_STREAM error`, `answered` with a status, `closed`, or not at all
        within the time of the connection."""
        try:
            return self._verdict()
        except socket.timeout:
            return f"nothing within {SILENT_SECS} s"

    def _verdict(self):
        while got := self.next():
            kind, flags, _, payload = got
            if kind == GOAWAY:
                return f"GOAWAY {ERRORS.get(int.from_bytes(payload[4:8], 'big'))}"
            if kind == RST_STREAM:
                return f"RST_STREAM {ERRORS.get(int.from_bytes(payload[:4], 'big'))}"
            if kind == HEADERS:
                return f"answered {dict(self.decoder.decode(payload)).get(':status')}"
            if kind == PING and flags & ACK:
                return "PING"
        return "closed"


def _literal(name, value):
    """A field without the tables of HPACK, so that also those can be sent that no encoder would."""
    name, value = name.encode(), value.encode()
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def setting(number, value):
    return struct.pack(">HI", number, value)


# What is sent after the handshake, and how it may end; the sections are those of RFC 9113.
CASES = [
    ("3.4 a preface that is none", None, ("GOAWAY PROTOCOL_ERROR", "closed")),
    ("4.1 frames of an unknown kind are ignored", lambda c: c.send(frame(0xFA, 0, 0, b"x") + frame(PING, 0, 0, b"12345678")), ("PING",)),
    ("4.2 a frame larger than was agreed", lambda c: c.score().send(frame(DATA, 0, 1, b"x" * 16385)), ("GOAWAY FRAME_SIZE_ERROR", "RST_STREAM FRAME_SIZE_ERROR")),
    ("4.3 a block that is no HPACK", lambda c: c.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\xff\xff\xff\xff\xff")), ("GOAWAY COMPRESSION_ERROR",)),
    ("5.1 DATA on a stream that nobody began", lambda c: c.send(frame(DATA, END_STREAM, 1, b"x")), ("GOAWAY PROTOCOL_ERROR",)),
    ("5.1 RST_STREAM of one", lambda c: c.send(frame(RST_STREAM, 0, 1, b"\0\0\0\x08")), ("GOAWAY PROTOCOL_ERROR",)),
    ("5.1 WINDOW_UPDATE of one", lambda c: c.send(frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x01")), ("GOAWAY PROTOCOL_ERROR",)),
    ("5.1.1 a stream of an even number", lambda c: c.head(2), ("GOAWAY PROTOCOL_ERROR",)),
    ("5.1.1 a stream of a lower number than the last", lambda c: c.head(5).head(3), ("GOAWAY PROTOCOL_ERROR", "GOAWAY STREAM_CLOSED", "answered 200")),
    ("6.1 DATA on stream 0", lambda c: c.send(frame(DATA, 0, 0, b"x")), ("GOAWAY PROTOCOL_ERROR",)),
    ("6.1 padding longer than the frame", lambda c: c.score().send(frame(DATA, PADDED | END_STREAM, 1, b"\x09x")), ("GOAWAY PROTOCOL_ERROR",)),
    ("6.2 HEADERS on stream 0", lambda c: c.head(0), ("GOAWAY PROTOCOL_ERROR",)),
    ("6.2 something else between HEADERS and CONTINUATION", lambda c: c.head(1, END_STREAM).send(frame(PING, 0, 0, b"12345678")), ("GOAWAY PROTOCOL_ERROR",)),
    ("6.4 RST_STREAM of a wrong length", lambda c: c.score().send(frame(RST_STREAM, 0, 1, b"\0")), ("GOAWAY FRAME_SIZE_ERROR",)),
    ("6.5 SETTINGS of a stream", lambda c: c.send(frame(SETTINGS, 0, 1)), ("GOAWAY PROTOCOL_ERROR",)),
    ("6.5 SETTINGS of a wrong length", lambda c: c.send(frame(SETTINGS, 0, 0, b"\0\0\0")), ("GOAWAY FRAME_SIZE_ERROR",)),
    ("6.5 an acknowledgement with a payload", lambda c: c.send(frame(SETTINGS, ACK, 0, setting(1, 1))), ("GOAWAY FRAME_SIZE_ERROR",)),
    ("6.5.2 ENABLE_PUSH of 2", lambda c: c.send(frame(SETTINGS, 0, 0, setting(2, 2))), ("GOAWAY PROTOCOL_ERROR",)),
    ("6.5.2 a window over 2^31 - 1", lambda c: c.send(frame(SETTINGS, 0, 0, setting(4, 1 << 31))), ("GOAWAY FLOW_CONTROL_ERROR",)),
    ("6.5.2 a frame size of 1", lambda c: c.send(frame(SETTINGS, 0, 0, setting(5, 1))), ("GOAWAY PROTOCOL_ERROR",)),
    ("6.5.2 unknown settings are ignored", lambda c: c.send(frame(SETTINGS, 0, 0, setting(0xFF, 1)) + frame(PING, 0, 0, b"12345678")), ("PING",)),
    ("6.6 a promise by a client", lambda c: c.send(frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\x02")), ("GOAWAY PROTOCOL_ERROR",)),
    ("6.7 PING of a stream", lambda c: c.send(frame(PING, 0, 1, b"12345678")), ("GOAWAY PROTOCOL_ERROR",)),
    ("6.7 PING of a wrong length", lambda c: c.send(frame(PING, 0, 0, b"123")), ("GOAWAY FRAME_SIZE_ERROR",)),
    ("6.9 a window that grows by 0", lambda c: c.send(frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0")), ("GOAWAY PROTOCOL_ERROR",)),
    ("6.9.1 a window that grows over 2^31 - 1", lambda c: c.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", (1 << 31) - 1))), ("GOAWAY FLOW_CONTROL_ERROR",)),
    ("6.10 CONTINUATION of nothing", lambda c: c.send(frame(CONTINUATION, END_HEADERS, 1, b"\x82")), ("GOAWAY PROTOCOL_ERROR",)),
    ("8.1 a length that the body does not have", lambda c: c.score([("content-length", "1")]).send(frame(DATA, END_STREAM, 1, CUSTOMER)), ("RST_STREAM PROTOCOL_ERROR", "answered 400")),
    ("8.2 a name in capitals", lambda c: c.head(1, fields=[("X-A", "1")]), ("RST_STREAM PROTOCOL_ERROR", "GOAWAY PROTOCOL_ERROR")),
    ("8.2.2 connection: close", lambda c: c.head(1, fields=[("connection", "close")]), ("RST_STREAM PROTOCOL_ERROR",)),
    ("8.2.2 te that is not trailers", lambda c: c.head(1, fields=[("te", "gzip")]), ("RST_STREAM PROTOCOL_ERROR",)),
    ("8.3 an unknown pseudo-header", lambda c: c.head(1, pseudo=[(":method", "GET"), (":scheme", "http"), (":path", "/livez"), (":what", "x")]), ("RST_STREAM PROTOCOL_ERROR", "GOAWAY PROTOCOL_ERROR")),
    ("8.3 a pseudo-header behind a field", lambda c: c.head(1, pseudo=[(":method", "GET"), (":scheme", "http")], fields=[("a", "b"), (":path", "/livez")]), ("RST_STREAM PROTOCOL_ERROR",)),
    ("8.3.1 no path", lambda c: c.head(1, pseudo=[(":method", "GET"), (":scheme", "http"), (":authority", "x")]), ("RST_STREAM PROTOCOL_ERROR",)),
    ("8.3.1 an empty path", lambda c: c.head(1, path=""), ("RST_STREAM PROTOCOL_ERROR",)),
    ("8.3.1 two paths", lambda c: c.head(1, fields=(), pseudo=[(":method", "GET"), (":scheme", "http"), (":path", "/livez"), (":path", "/livez")]), ("RST_STREAM PROTOCOL_ERROR",)),
]


def judge(address, case):
    what, send, allowed = case
    connection = Raw(address)
    if send is None:
        connection.stream.close()
        host, port = address.rsplit(":", 1)
        connection.stream = socket.create_connection((host, int(port)), timeout=SILENT_SECS)
        connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX")
    else:
        send(connection)
    verdict = connection.verdict()
    connection.stream.close()
    # HTTP/1.1 is what anything is that is not the preface, and that answers in its own words.
    if verdict in allowed:
        return "kept", verdict
    # The crate h2 ends the connection for some, with the general code where there is a special one.
    expects_end = any(one.startswith("GOAWAY ") for one in allowed)
    return "general" if expects_end and verdict == "GOAWAY PROTOCOL_ERROR" else "wrong", verdict


def windows(address):
    """Flow control: with a window of one byte, an answer comes in frames of one byte, as the window grows."""
    connection = Raw(address, setting(4, 1)).head(1)
    body = b""
    with contextlib.closing(connection.stream), contextlib.suppress(socket.timeout):
        while got := connection.next():
            kind, flags, _, payload = got
            if kind == DATA:
                if len(payload) > 1:
                    return False
                body += payload
                if flags & END_STREAM:
                    return body == b'{"status":"ok"}'
                connection.send(frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x01"))
    return False


def crowd(address, allowed):
    """More streams at a time than are allowed: how those too many ended, and how the others, which get their bodies after that. Each as
    the number of streams by their end."""
    # Room for all answers.
    connection = Raw(address).send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 24)))
    numbers = range(1, 2 * (allowed + TOO_MANY), 2)
    for number in numbers:
        connection.head(number, END_HEADERS, [("content-type", "application/json")], "/v1/score", "POST")
    ends = {}

    def go_on(count):
        while len(ends) < count and (got := connection.next()):
            kind, _, stream, payload = got
            if kind == GOAWAY:
                ends.update({number: "GOAWAY" for number in numbers if number not in ends})
            elif kind == RST_STREAM:
                ends[stream] = ERRORS.get(int.from_bytes(payload[:4], "big"))
            elif kind == HEADERS:
                ends[stream] = dict(connection.decoder.decode(payload)).get(":status")

    with contextlib.closing(connection.stream), contextlib.suppress(socket.timeout):
        go_on(TOO_MANY)
        for number in numbers[:allowed]:
            connection.send(frame(DATA, END_STREAM, number, CUSTOMER))
        go_on(len(numbers))
    return tuple(Counter(ends.get(number, "nothing") for number in part) for part in (numbers[allowed:], numbers[:allowed]))


def unused(address):
    """How a connection ends on which nothing is asked for, though its caller answers every ping: what the server says last, and after how long."""
    begun, connection, last = time.monotonic(), Raw(address), None
    with contextlib.closing(connection.stream), contextlib.suppress(socket.timeout):
        while got := connection.next():
            kind, flags, _, payload = got
            if kind == PING and not flags & ACK:
                connection.send(frame(PING, ACK, 0, payload))
            if kind == GOAWAY:
                last = ERRORS.get(int.from_bytes(payload[4:8], "big"))
        return last, time.monotonic() - begun
    return "not at all", time.monotonic() - begun


def exchange(stream):
    """One GET and one POST by Python's h2: statuses and settings of the server."""
    import h2.config
    import h2.connection
    import h2.events
    import h2.settings

    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    ask = [(":scheme", "https"), (":authority", "localhost")]
    connection.send_headers(1, [(":method", "GET"), (":path", "/livez"), *ask], end_stream=True)
    connection.send_headers(3, [(":method", "POST"), (":path", "/v1/score"), *ask, ("content-type", "application/json")])
    connection.send_data(3, CUSTOMER, end_stream=True)
    stream.sendall(connection.data_to_send())
    statuses, ended = {}, set()
    while len(ended) < 2:
        data = stream.recv(65536)
        if not data:
            break
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                statuses[event.stream_id] = dict(event.headers)[":status"]
            if isinstance(event, h2.events.StreamEnded):
                ended.add(event.stream_id)
        stream.sendall(connection.data_to_send())
    return [statuses.get(1), statuses.get(3)], connection.remote_settings.max_concurrent_streams


def h2(place):
    """Both versions, with and without TLS, and what is against the rules."""
    packages()
    with place.serve(server__streams_max=64) as server:
        first = Client(server.http).ask("POST", "/v1/score", CUSTOMER)[0]
        host, port = server.http.rsplit(":", 1)
        with contextlib.closing(socket.create_connection((host, int(port)), timeout=5)) as stream:
            statuses, streams = exchange(stream)
        claim((first, statuses, streams) == (200, ["200", "200"], 64), f"h2: without TLS: HTTP/1.1 {first}, HTTP/2 by prior knowledge {statuses}, {streams} streams at a time")
        wrong, general = [], []
        for case in CASES:
            outcome, verdict = judge(server.http, case)
            if outcome != "kept":
                list_of = general if outcome == "general" else wrong
                list_of.append(f"{case[0]}: {verdict}, expected {' or '.join(case[2])}")
        for text in [*general, *wrong]:
            info(f"h2: {text}")
        claim(not wrong, f"h2: {len(CASES) - len(wrong)} of {len(CASES)} ways to break RFC 9113 end the stream or the connection as it says, {len(general)} of them with the general error code in place of the special one")
        claim(windows(server.http), "h2: 6.9 an answer is sent in frames of one byte to who has room for one")
        many, others = crowd(server.http, streams)
        claim(many == {"REFUSED_STREAM": TOO_MANY} and others == {"200": streams}, f"h2: 5.1.2 more streams than are allowed: those too many {dict(many)}, the others {dict(others)}")
        claim(Client(server.http).ask("GET", "/readyz")[0] == 200, "h2: and the service is well")
    with place.serve(server__head_timeout_ms=IDLE_SECS * 1000) as server:
        said, secs = unused(server.http)
        claim(said == "NO_ERROR" and IDLE_SECS <= secs < SILENT_SECS, f"h2: 9.1 a connection without a stream is ended after {secs:.1f} s ({IDLE_SECS} s are allowed), though pings are answered: GOAWAY {said}")
    alpn(place)


def alpn(place):
    """With TLS both versions are agreed on by ALPN."""
    directory = place.fresh()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"], cwd=directory, check=True, stderr=subprocess.DEVNULL)
    settings = {"http__tls__certificate": directory / "cert.pem", "http__tls__key": directory / "key.pem"}
    with running(place.command(), environment=environment(settings), ledger=place.fresh()) as server:
        host, port = server.http.rsplit(":", 1)
        agreed = {}
        for offered in (["h2", "http/1.1"], ["http/1.1"]):
            context = ssl.create_default_context(cafile=directory / "cert.pem")
            context.set_alpn_protocols(offered)
            with contextlib.closing(context.wrap_socket(socket.create_connection((host, int(port)), timeout=5), server_hostname="localhost")) as stream:
                chosen = stream.selected_alpn_protocol()
                if chosen == "h2":
                    agreed[chosen] = exchange(stream)[0]
                else:
                    stream.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    agreed[chosen] = [stream.recv(15).decode()]
        claim(agreed == {"h2": ["200", "200"], "http/1.1": ["HTTP/1.1 200 OK"]}, f"h2: with TLS, by ALPN: {agreed}")
