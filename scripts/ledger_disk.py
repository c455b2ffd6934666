"""The ledger on a disk that is full, and on one that is slow: honest refusals, nothing lost, and well again without a restart."""

import os
import subprocess
import time

from evidence import Client, claim
from ledger_load import BATCH_ROWS, Load, claim_recorded, until
from server import ROOT, running

DISK_MIB, BALLAST_MIB = 6, 2
SLOW_MS, SLOW_WAIT_MS, SLOW_QUEUE, SLACK_SECS = 150, 1_000, 256, 0.5


def full(place):
    if os.geteuid() != 0:
        return claim(False, "full disk: not shown: only root can mount a small file system")
    ledger = place.fresh()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=700", "none", ledger]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode != 0:
        return claim(False, f"full disk: not shown: {mounted.stderr.strip()}")
    try:
        ballast = ledger / "ballast"
        ballast.write_bytes(bytes(BALLAST_MIB << 20))
        with place.serve(ledger) as server, Load(server.http, place.bodies) as drive:
            until(lambda: drive.statuses().get(503, 0) > 200, 60)
            time.sleep(1)
            recent = drive.statuses(since=time.monotonic() - 0.5)
            before = drive.statuses()
            alive = plane(server)
            readable = Client(server.http).ask("GET", f"/v1/decisions/{next(iter(drive.answered))}")[0]
            ballast.unlink()
            freed = time.monotonic()
            until(lambda: drive.statuses(since=freed).get(200, 0) > 100, 30)
            again = next((when for when, status, *_ in list(drive.at) if status == 200 and when > freed), None)
            drive.end()
            text = f"{before.get(200, 0):,} rows answered with 200, then {before.get(503, 0):,} with 503"
            claim(before.get(200) and before.get(503), f"full disk: {DISK_MIB} MiB: {text}; in half a second of it {recent}; {alive}")
            claim(readable == 200, f"full disk: what is on record is still shown: {readable}")
            text = f"{len(drive.unlike)} answers of {len(drive.at):,} are neither 200 nor 503 with retry-after"
            claim(not drive.unlike and not drive.broken, f"full disk: {text} {unlike(drive)}; {drive.broken} connections broke")
            text = f"200 again after {((again or freed) - freed) * 1e3:.0f} ms"
            claim(again, f"full disk: {BALLAST_MIB} MiB were freed without a restart: {text}")
            claim_recorded("full disk, still running", place, ledger, drive.answered)
        subprocess.run(["mount", "-o", f"remount,size={4 * DISK_MIB}m", ledger], check=True)
        claim_recorded("full disk, stopped", place, ledger, drive.answered)
    finally:
        subprocess.run(["umount", "-l", ledger], check=False)


def slow(place):
    ledger, shim = place.fresh(), place.directory / "slowdisk.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, ROOT / "scripts" / "slowdisk.c", "-ldl"], check=True)
    flag = place.directory / "slow"
    slow = {"LD_PRELOAD": str(shim), "SLOWDISK_FLAG": str(flag), "SLOWDISK_MS": str(SLOW_MS)}
    slow |= {"MAINSTAY__LEDGER__WAIT_MS_MAX": str(SLOW_WAIT_MS), "MAINSTAY__LEDGER__QUEUE_MAX": str(SLOW_QUEUE)}
    seconds = 4 if place.quick else 12
    server = running(place.command(), environment=os.environ | slow, ledger=ledger)
    with server as server, Load(server.http, place.bodies, 48) as drive:
        until(lambda: drive.statuses().get(200, 0) > 500, 20)
        begun = time.monotonic()
        flag.touch()
        time.sleep(seconds)
        alive = plane(server)
        flag.unlink()
        lifted = time.monotonic()
        until(lambda: drive.statuses(since=lifted).get(200, 0) > 500, 60)
        again = next((when for when, status, *_ in list(drive.at) if status == 200 and when > lifted), None)
        time.sleep(1)
        drive.end()
    during, limit = drive.statuses(begun, lifted), SLOW_WAIT_MS / 1e3 + SLACK_SECS
    slowest, of_batch = (drive.slowest(kind, begun, lifted + limit) for kind in ("single", "batch"))
    claim(during.get(503), f"slow disk: {SLOW_MS} ms for each write of the log, {seconds} s long: answers {during}; {alive}")
    claim(slowest <= limit, f"slow disk: no single customer waits longer than {slowest:.2f} s (limit {limit:.2f} s)")
    # A stream has no bound as a whole: each of its groups has this one.
    claim(of_batch <= limit, f"slow disk: no batch of {BATCH_ROWS} waits longer than {of_batch:.2f} s (limit {limit:.2f} s)")
    claim(not drive.unlike, f"slow disk: {len(drive.unlike)} answers are neither 200 nor 503 with retry-after {unlike(drive)}")
    text = f"200 after {((again or lifted) - lifted) * 1e3:.0f} ms without a restart"
    claim(again, f"slow disk: once it is fast again, {text}")
    claim_recorded("slow disk", place, ledger, drive.answered)


def unlike(drive):
    return ", ".join(sorted(set(drive.unlike))[:3])


def plane(server):
    """How the health of both planes is answered, for a claim; a failure of it is one of its own."""
    told = {}
    for name, address in (("data", server.http), ("admin", server.admin)):
        for path in ("/livez", "/readyz"):
            begun = time.monotonic()
            told[f"{name} {path}"] = Client(address).ask("GET", path)[0], time.monotonic() - begun
    # It lives; whether it is ready while it can record nothing is its own affair, but it says so at once.
    good = all(status in ((200,) if "livez" in name else (200, 503)) and seconds < 1 for name, (status, seconds) in told.items())
    text = ", ".join(f"{name} {status} in {seconds * 1e3:.0f} ms" for name, (status, seconds) in told.items())
    if not good:
        claim(False, f"health under trouble: {text}")
    return f"/livez 200, /readyz {told['data /readyz'][0]}" if good else "health does not answer"
