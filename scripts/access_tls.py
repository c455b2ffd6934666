#!/usr/bin/env python3
"""The evidence for TLS: a live server is scanned by sslyze, and its certificates are changed while it answers under load.

    python3 scripts/access_tls.py [--binary PATH] [--seconds N]

One line per claim; exit code 1 if one falls short. Needs openssl for the certificates; sslyze comes from PyPI into target/sslyze on
first use, in the version that stands here.
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from evidence import claim, failures
from server import ROOT, Failed, built, running

SSLYZE = "6.3.1"
VENV = ROOT / "target" / "sslyze"
OLD = ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"]
# Suites of TLS 1.2 that keep what was said secret when the key is lost (ECDHE), and whose encryption is authenticated.
STRONG = ("TLS_ECDHE_ECDSA_WITH_", "TLS_ECDHE_RSA_WITH_")
AUTHENTICATED = ("_GCM_", "_CHACHA20_POLY1305_")
ROTATE_EVERY_SECS = 1.0
CUSTOMER = (ROOT / "tests/data/customer.json").read_bytes()
JSON = {"content-type": "application/json"}


class Authority:
    """A CA for this run, and the files of one server."""

    def __init__(self, directory):
        self.directory = directory
        self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
                      "-subj", "/CN=check", "-keyout", "ca.key", "-out", "ca.pem")
        self.sign("server")
        self.sign("operator")

    def _openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, stderr=subprocess.DEVNULL)

    def sign(self, name):
        """A new pair for `name`, each file put in its place in one step."""
        self._openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost",
                      "-keyout", "new.key", "-out", "new.csr")
        (self.directory / "extensions").write_text(
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\nkeyUsage=digitalSignature\n")
        self._openssl("x509", "-req", "-in", "new.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30",
                      "-extfile", "extensions", "-out", "new.pem")
        for suffix in ("key", "pem"):
            os.replace(self.path(f"new.{suffix}"), self.path(f"{name}.{suffix}"))

    def path(self, name):
        return self.directory / name

    def environment(self):
        """Both planes with TLS; the admin plane asks for a client certificate."""
        found = dict(os.environ)
        for plane in ("HTTP", "ADMIN"):
            found[f"MAINSTAY__{plane}__TLS__CERTIFICATE"] = str(self.path("server.pem"))
            found[f"MAINSTAY__{plane}__TLS__KEY"] = str(self.path("server.key"))
        found["MAINSTAY__ADMIN__TLS__CLIENT_CA"] = str(self.path("ca.pem"))
        found["MAINSTAY__ADMIN__TLS__CLIENT_AUTH"] = "required"
        return found

    def context(self, shows=None):
        context = ssl.create_default_context(cafile=self.path("ca.pem"))
        if shows:
            context.load_cert_chain(self.path(f"{shows}.pem"), self.path(f"{shows}.key"))
        return context


# --- the scan ---------------------------------------------------------------------------------------------------------


def sslyze():
    """The scanner, installed if it is not there."""
    program = VENV / "bin" / "sslyze"
    if not program.exists():
        print(f"access-tls: installing sslyze {SSLYZE} into {VENV}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([VENV / "bin/pip", "install", "--quiet", "--disable-pip-version-check", f"sslyze=={SSLYZE}"], check=True)
    return program


def scan(plane, address, authority, shows=None):
    found = authority.path(f"{plane}.json")
    host, _, port = address.rpartition(":")
    command = [sslyze(), f"localhost:{port}{{{host}}}", "--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3",
               "--compression", "--reneg", "--heartbleed", "--openssl_ccs", "--robot", "--fallback", "--early_data", "--ems",
               "--elliptic_curves", "--mozilla_config=disable", f"--json_out={found}"]
    if shows:
        command += [f"--cert={authority.path(shows + '.pem')}", f"--key={authority.path(shows + '.key')}"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    server = json.loads(found.read_text())["server_scan_results"][0] if found.exists() else {}
    if server.get("scan_status") != "COMPLETED":
        raise Failed(f"sslyze did not scan {plane}:\n{ended.stdout[-2000:]}")
    judge(plane, server["scan_result"])


def judge(plane, result):
    incomplete = [name for name, part in result.items() if part and part["status"] == "ERROR"]
    claim(not incomplete, f"{plane}: every check of the scan was made{': not ' + ', '.join(incomplete) if incomplete else ''}")
    of = lambda name: result[name]["result"] or {}

    def suites(version):
        return [suite["cipher_suite"]["name"] for suite in of(f"{version}_cipher_suites").get("accepted_cipher_suites", [])]

    old = [version for version in OLD if suites(version)]
    claim(not old, f"{plane}: nothing before TLS 1.2 is accepted{': ' + ', '.join(old) if old else ''}")
    for version in ("tls_1_2", "tls_1_3"):
        found = suites(version)
        weak = [name for name in found if version == "tls_1_2" and not (
            name.startswith(STRONG) and any(mode in name for mode in AUTHENTICATED))]
        claim(found and not weak, f"{plane}: {version}: {', '.join(sorted(found))}{'; WEAK: ' + ', '.join(weak) if weak else ''}")
    claim(of("tls_compression").get("supports_compression") is False, f"{plane}: no compression")
    reneg = of("session_renegotiation")
    claim(reneg.get("is_vulnerable_to_client_renegotiation_dos") is False, f"{plane}: no renegotiation by the caller")
    claim(reneg.get("supports_secure_renegotiation") is True, f"{plane}: renegotiation is announced as secure (RFC 5746)")
    claim(of("heartbleed").get("is_vulnerable_to_heartbleed") is False, f"{plane}: no Heartbleed")
    claim(of("openssl_ccs_injection").get("is_vulnerable_to_ccs_injection") is False, f"{plane}: no CCS injection")
    robot = of("robot").get("robot_result", "")
    claim(robot.startswith("NOT_VULNERABLE"), f"{plane}: no ROBOT ({robot})")
    claim(of("tls_1_3_early_data").get("supports_early_data") is False, f"{plane}: no early data, which could be replayed")
    ems = of("tls_extended_master_secret").get("supports_ems_extension")
    claim(ems is True, f"{plane}: extended master secret")
    curves = [curve["name"] for curve in of("elliptic_curves").get("supported_curves") or []]
    claim(curves and set(curves) <= {"X25519", "secp256r1", "secp384r1"}, f"{plane}: groups: {', '.join(sorted(curves))}")


# --- rotation under load ----------------------------------------------------------------------------------------------


class Callers:
    """Some stay on one connection, the others come anew for each call; what each saw."""

    def __init__(self, address, authority, stay, come):
        self.host, _, self.port = address.rpartition(":")
        self.context = authority.context()
        self.over, self.lock = threading.Event(), threading.Lock()
        self.calls, self.failed, self.slowest = 0, [], 0.0
        self.threads = [threading.Thread(target=self._run, args=(number < stay,)) for number in range(stay + come)]

    def _run(self, stays):
        connection = None
        while not self.over.is_set():
            begun = time.monotonic()
            try:
                connection = connection or http.client.HTTPSConnection(self.host, int(self.port), context=self.context, timeout=10)
                connection.request("POST", "/v1/score", CUSTOMER, JSON)
                answer = connection.getresponse()
                answer.read()
                wrong = "" if answer.status == 200 else f"status {answer.status}"
            except (OSError, http.client.HTTPException) as error:
                wrong = repr(error)
            with self.lock:
                self.calls += 1
                self.slowest = max(self.slowest, time.monotonic() - begun)
                if wrong:
                    self.failed.append(wrong)
            if wrong or not stays:
                connection.close()
                connection = None

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()


def shown(address, authority):
    """The serial number of the certificate that a new caller sees."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPSConnection(host, int(port), context=authority.context(), timeout=10)
    with contextlib.closing(connection):
        connection.connect()
        return connection.sock.getpeercert()["serialNumber"]


def rotate(server, authority, seconds):
    seen, signed = [shown(server.http, authority)], 0
    with Callers(server.http, authority, stay=4, come=4) as callers:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            authority.sign("server")
            signed += 1
            # By turns at once, by SIGHUP, and by the look at the files.
            if signed % 2:
                os.kill(server.process.pid, signal.SIGHUP)
            limit = time.monotonic() + 10
            while (serial := shown(server.http, authority)) == seen[-1] and time.monotonic() < limit:
                time.sleep(0.05)
            if serial != seen[-1]:
                seen.append(serial)
            time.sleep(ROTATE_EVERY_SECS)
    taken = len(seen) - 1
    claim(taken == signed and signed > 2, f"rotation: {taken} of {signed} new certificates came into use")
    told = f": {callers.failed[:3]}" if callers.failed else ""
    claim(callers.calls > 100 and not callers.failed,
          f"rotation: {len(callers.failed)} of {callers.calls:,} calls failed, the slowest took {callers.slowest * 1e3:.0f} ms{told}")


def step(program, seconds):
    """The whole check, for a server built as `program`; the number of claims that fell short."""
    before = len(failures)
    os.environ.setdefault("MAINSTAY__RUNTIME__LIBRARY", str(ROOT / "target" / "onnxruntime" / "libonnxruntime.so"))
    with tempfile.TemporaryDirectory(prefix="access-tls-") as directory:
        authority = Authority(Path(directory))
        with running([program, "serve"], environment=authority.environment()) as server:
            scan("http", server.http, authority)
            scan("admin", server.admin, authority, shows="operator")
            host, _, port = server.admin.rpartition(":")
            refused = http.client.HTTPSConnection(host, int(port), context=authority.context(), timeout=10)
            try:
                refused.request("GET", "/metrics")
                claim(False, f"admin: without a client certificate: status {refused.getresponse().status}")
            except (OSError, http.client.HTTPException):
                claim(True, "admin: nobody is let in without a client certificate")
            rotate(server, authority, seconds)
    return len(failures) - before


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, help="a program that is built already")
    parser.add_argument("--seconds", type=float, default=15, help="how long certificates are changed under load")
    options = parser.parse_args()
    try:
        short = step(options.binary.resolve() if options.binary else built()[0], options.seconds)
    except (Failed, subprocess.SubprocessError) as error:
        sys.exit(f"access-tls: {error}")
    print(f"{short} claims fell short" if short else "every claim holds")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
