#!/usr/bin/env python3
"""Writes bodies of POST /v1/score for synthetic customers, one a line, drawn from a bundle's own baseline.

    python3 benches/customers.py [--bundle DIR] [--count N] [--seed N] > bodies.ndjson

Every feature is drawn by itself, within the range of the dictionary. One repeated customer would flatter every model of
trees: the branch predictor learns the way by heart. benches/customers/ does the same for `cargo bench`.
"""

import argparse
import json
import pathlib
import random
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "models" / "telco-churn" / "1.0.0"
COUNT = 2_000
SEED = 42


def bodies(bundle: pathlib.Path, count: int, seed: int):
    """`count` bodies, the same ones for the same `seed`."""
    dictionary = json.loads((bundle / "manifest.json").read_text())["features"]
    baseline = json.loads((bundle / "baseline.json").read_text())["features"]
    drawn = random.Random(seed)
    for number in range(count):
        features = {feature["name"]: value(drawn, feature, baseline[feature["name"]]) for feature in dictionary}
        yield json.dumps({"customer_id": f"C-{number:06}", "features": features}, separators=(",", ":"))


def value(drawn: random.Random, feature: dict, histogram: dict):
    if "categories" in histogram:
        names, weights = zip(*histogram["categories"].items())
        return drawn.choices(names, weights)[0]
    counts, edges, missing = histogram["counts"], histogram["edges"], histogram["missing"]
    if drawn.randrange(sum(counts) + missing) < missing and feature["missing"] != "refuse":
        return None
    low, high = feature["range"]["min"], feature["range"]["max"]
    # The outer bins have no end: they are taken to reach half the width of all the others together.
    reach = max((edges[-1] - edges[0]) / 2, 1)
    ends = [max(edges[0] - reach, low), *edges, min(edges[-1] + reach, high)]
    chosen = drawn.choices(range(len(counts)), counts)[0]
    number = drawn.uniform(ends[chosen], ends[chosen + 1])
    # Cents, as money and minutes are written.
    number = int(number) if feature["type"] == "integer" else round(number, 2)
    return min(max(number, low), high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=pathlib.Path, default=BUNDLE, help="directory of the bundle")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    asked = parser.parse_args()
    for body in bodies(asked.bundle, asked.count, asked.seed):
        print(body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
