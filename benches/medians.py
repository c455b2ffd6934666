#!/usr/bin/env python3
"""Runs `cargo bench` some times over and prints the least median of each bench, and their ratios.

    python3 benches/medians.py [--rounds N]

The least of several medians, since what other programs do on a shared machine can only add. Every figure of
benches/README.md that is about one thread comes from here.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CRITERION = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "criterion"
COMMAND = ["cargo", "bench", "--bench", "decide", "--bench", "handler", "--"]
COMMAND += ["--warm-up-time", "0.5", "--measurement-time", "1"]
BENCHES = ("encode", "infer", "infer-batch-512", "decide", "handler", "bound")
BUNDLES = ("telco-churn", "mlc-churn")
BATCH_ROWS = 512


def median_us(bench: str, bundle: str) -> float:
    estimates = json.loads((CRITERION / bench / bundle / "new" / "estimates.json").read_text())
    return estimates["median"]["point_estimate"] / 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how many times [default: 5]")
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error("--rounds: expected 1 or more")
    least: dict = {}
    for number in range(1, rounds + 1):
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
        done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"medians: `{' '.join(COMMAND)}` failed\n{done.stderr}", file=sys.stderr)
            return 1
        for bench in BENCHES:
            for bundle in BUNDLES:
                key = bench, bundle
                least[key] = min(least.get(key, float("inf")), median_us(bench, bundle))

    def line(what: str, value) -> None:
        print(f"{what:<28}" + "".join(f"{value(bundle):>14.2f}" for bundle in BUNDLES))

    print(f"{'least median, us':<28}" + "".join(f"{bundle:>14}" for bundle in BUNDLES))
    line("encode", lambda bundle: least["encode", bundle])
    line("infer", lambda bundle: least["infer", bundle])
    line("infer, a row of 512", lambda bundle: least["infer-batch-512", bundle] / BATCH_ROWS)
    line("decide", lambda bundle: least["decide", bundle])
    line("handler", lambda bundle: least["handler", bundle])
    line("bound", lambda bundle: least["bound", bundle])
    print("\nratios")
    line("infer / decide", lambda bundle: least["infer", bundle] / least["decide", bundle])
    line("infer / a row of 512", lambda bundle: least["infer", bundle] * BATCH_ROWS / least["infer-batch-512", bundle])
    line("decide / handler", lambda bundle: least["decide", bundle] / least["handler", bundle])
    line("handler / bound", lambda bundle: least["handler", bundle] / least["bound", bundle])
    return 0


if __name__ == "__main__":
    sys.exit(main())
