#!/usr/bin/env python3
"""Prints the medians that `cargo bench` left behind, and what they come to beside the bound.

    cargo bench && python3 benches/medians.py

Every figure of benches/README.md that is about one thread comes from here. Nothing is measured here.
"""

import json
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CRITERION = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "criterion"
BUNDLES = ("telco-churn", "mlc-churn")
BATCH_ROWS = 512


def median_us(bench: str, bundle: str) -> float:
    estimates = json.loads((CRITERION / bench / bundle / "new" / "estimates.json").read_text())
    return estimates["median"]["point_estimate"] / 1e3


def main() -> int:
    try:
        found = {
            (bench, bundle): median_us(bench, bundle)
            for bench in ("encode", "infer", "infer-batch-512", "decide", "handler", "bound")
            for bundle in BUNDLES
        }
    except FileNotFoundError as missing:
        print(f"medians: {missing.filename} is not there; run `cargo bench` first", file=sys.stderr)
        return 2
    print(f"{'median, us':<28}" + "".join(f"{bundle:>14}" for bundle in BUNDLES))

    def line(what: str, value) -> None:
        print(f"{what:<28}" + "".join(f"{value(bundle):>14.2f}" for bundle in BUNDLES))

    line("encode", lambda bundle: found["encode", bundle])
    line("infer", lambda bundle: found["infer", bundle])
    line("infer, a row of 512", lambda bundle: found["infer-batch-512", bundle] / BATCH_ROWS)
    line("decide", lambda bundle: found["decide", bundle])
    line("handler", lambda bundle: found["handler", bundle])
    line("bound", lambda bundle: found["bound", bundle])
    print("\nratios")
    line("infer / decide", lambda bundle: found["infer", bundle] / found["decide", bundle])
    line("infer / a row of 512", lambda bundle: found["infer", bundle] * BATCH_ROWS / found["infer-batch-512", bundle])
    line("decide / handler", lambda bundle: found["decide", bundle] / found["handler", bundle])
    line("handler / bound", lambda bundle: found["handler", bundle] / found["bound", bundle])
    return 0


if __name__ == "__main__":
    sys.exit(main())
