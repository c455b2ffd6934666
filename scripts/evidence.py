"""What all checks share: claims with their figures, one connection to a server, directories on a real disk, and the run of the steps
from the first to the verdict. What a check shows is its own."""

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from server import ROOT, Failed, built

TIMEOUT_SECS = 60
failures = []


def claim(holds, text):
    print(f"{'PASS' if holds else 'FAIL'}  {text}", flush=True)
    if not holds:
        failures.append(text)
    return holds


def info(text):
    print(f"INFO  {text}", flush=True)


def environment(settings):
    return os.environ | {f"MAINSTAY__{key.upper()}": str(value) for key, value in settings.items()}


class Place:
    """The program under check, and a directory on a real disk, with new ones in it for whoever asks."""

    def __init__(self, program, directory, quick):
        self.program, self.directory, self.quick = program, directory, quick
        self._made = 0

    def fresh(self):
        """A new directory."""
        self._made += 1
        path = self.directory / f"{self._made:03}"
        path.mkdir()
        return path

    def command(self):
        return [self.program, "serve"]

    def run(self, *words, ledger, **settings):
        """Exit code and text of the program's own command line; settings such as ledger__promise="off"."""
        settings["ledger__dir"] = ledger
        command = [self.program, *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, env=environment(settings), capture_output=True, text=True, timeout=600)
        return done.returncode, (done.stdout + done.stderr).strip()


class Client:
    """One connection that is kept, and made again when it broke."""

    def __init__(self, address):
        self.address = address
        self._connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SECS)

    def ask(self, method, path, body=None, media_type="application/json"):
        """Status, headers and bytes of the answer."""
        response = self.open(method, path, body, media_type)
        return response.status, response.headers, response.read()

    def open(self, method, path, body=None, media_type="application/json"):
        self._connection.request(method, path, body, {"content-type": media_type} if body else {})
        return self._connection.getresponse()

    def json(self, method, path, body=None):
        """The answer where it has to be 200."""
        status, _, text = self.ask(method, path, None if body is None else json.dumps(body).encode())
        if status != 200:
            raise Failed(f"{method} {path} was answered with {status}: {text[:500].decode(errors='replace')}")
        return json.loads(text)

    def close(self):
        self._connection.close()


def main(name, doc, steps, place, more=()):
    """Runs the steps that are asked for and gives the exit code. `place(options, program, directory)` makes what each of them is
    given; `more` are further options as (flag, settings)."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=steps, action="append", help="this step; may be repeated")
    parser.add_argument("--quick", action="store_true", help="smaller numbers, to work on the checks")
    parser.add_argument("--binary", type=Path, help="a program that is built already")
    for flag, settings in more:
        parser.add_argument(flag, **settings)
    options = parser.parse_args()
    # So that whatever was started is ended, and unmounted, when somebody ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"{name}: ended"))
    program = options.binary.resolve() if options.binary else Path(built()[0])
    # Relative to this checkout by default, and the command line is run from there.
    os.environ.setdefault("MAINSTAY__RUNTIME__LIBRARY", str(ROOT / "target" / "onnxruntime" / "libonnxruntime.so"))
    target = ROOT / "target"
    target.mkdir(exist_ok=True)
    # On the disk of the build: a temporary directory is often memory.
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=target) as directory:
        at = place(options, program, Path(directory))
        for step in options.only or steps:
            begun = time.monotonic()
            try:
                steps[step](at)
            except Exception as error:  # whatever it is, the other steps still tell something
                claim(False, f"{step}: {type(error).__name__}: {error}")
            info(f"{step}: {time.monotonic() - begun:.0f} s")
    print(f"{len(failures)} claims fell short" if failures else "every claim holds")
    return 1 if failures else 0
