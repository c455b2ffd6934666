"""A Mainstay server for a check: started on free ports, with a ledger of its own, waited for until it is ready, stopped the way an
orchestrator does.

As a command it runs another command beside a server of its own and ends with that command's exit code:

    python3 scripts/server.py COMMAND...       COMMAND finds the planes in MAINSTAY_URL and MAINSTAY_ADMIN_URL

The server is target/release/mainstay of this checkout, built first: a check of a stale binary proves nothing.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = "mainstay"
READY_SECS = 1800  # a cold build stands before the first line
STOP_SECS = 30


class Failed(Exception):
    """The server did not start, or did not stop, as it should. The text says what to do."""


class Server:
    """A server process, possibly below `make` and `cargo`. Its ledger is in the directory `ledger`, or in one that goes with it."""

    def __init__(self, command, cwd=ROOT, environment=None, ledger=None):
        environment = dict(os.environ if environment is None else environment)
        self._own_ledger = None if ledger else tempfile.TemporaryDirectory(prefix="mainstay-ledger-")
        self.ledger = Path(ledger or self._own_ledger.name)
        environment["MAINSTAY__LEDGER__DIR"] = str(self.ledger)
        environment |= {"MAINSTAY__HTTP__LISTEN": "127.0.0.1:0", "MAINSTAY__ADMIN__LISTEN": "127.0.0.1:0"}
        environment |= {"MAINSTAY__LOG__FORMAT": "json", "MAINSTAY__LOG__LEVEL": "info"}
        # A session of its own, so that what stands between us and the server can be found, and cleared away on failure.
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stderr=subprocess.PIPE, stdout=sys.stderr, text=True, start_new_session=True
        )
        self.output, self.events = [], []
        self._news = threading.Condition()
        # Read to the end by a thread: a full pipe would stop the server.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.ready = self._wait_for("ready", READY_SECS)
        except BaseException:
            self.kill()
            raise
        self.http, self.admin = self.ready["http"], self.ready["admin"]

    def _read(self):
        for line in self.process.stderr:
            with self._news:
                self.output.append(line)
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        self.events.append(event)
                self._news.notify_all()
        with self._news:
            self.output.append("")  # the end
            self._news.notify_all()

    def event(self, message):
        """The first line of the log with `message`, if there is one."""
        return next((event for event in self.events if event.get("message") == message), None)

    def _wait_for(self, message, seconds):
        with self._news:
            self._news.wait_for(lambda: self.event(message) or self.output[-1:] == [""], timeout=seconds)
            found = self.event(message)
        if not found:
            raise Failed(f"no line \"{message}\" from the server; its last lines:\n" + "".join(self.output[-15:]))
        return found

    def stop(self):
        """SIGTERM to the server itself: `make` would die of one by itself and hide the server's exit code, so it is left to
        pass that on. Returns the exit code of what was started."""
        for process in list(_members(self.process.pid)) or [self.process.pid]:
            os.kill(process, signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"the server did not stop within {STOP_SECS} s of SIGTERM") from None
        self._reader.join(STOP_SECS)
        self._clear()
        return code

    def kill(self):
        """Ends whatever is left of the session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._clear()

    def _clear(self):
        if self._own_ledger:
            self._own_ledger.cleanup()


def _members(session):
    """The server processes of a session."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it may end while it is looked at
            head, _, rest = status.read_text().rpartition(")")
            if head.partition("(")[2] == PROGRAM and int(rest.split()[3]) == session:
                yield int(status.parent.name)


@contextlib.contextmanager
def running(command, cwd=ROOT, environment=None, ledger=None):
    """A server for the length of a `with` block; one that does not stop cleanly is an error."""
    server = Server(command, cwd, environment, ledger)
    try:
        yield server
    except BaseException:
        server.kill()
        raise
    code = server.stop()
    if code != 0:
        raise Failed(f"the server ended with exit code {code}; its last lines:\n" + "".join(server.output[-15:]))


def built():
    """The server of this checkout, built, as a command."""
    subprocess.run([ROOT / "scripts/fetch-onnxruntime.sh"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    return [target / "release" / PROGRAM, "serve"]


def main(command):
    if not command:
        sys.exit(__doc__)
    try:
        with running(built()) as server:
            urls = {"MAINSTAY_URL": f"http://{server.http}", "MAINSTAY_ADMIN_URL": f"http://{server.admin}"}
            code = subprocess.run(command, env=os.environ | urls).returncode
    except (Failed, subprocess.CalledProcessError) as error:
        sys.exit(f"server: {error}")
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
