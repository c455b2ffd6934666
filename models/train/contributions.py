"""Reference contributions for the server's test: TreeSHAP of the golden rows by the libraries themselves.

What lives here: the command. What does not: any algorithm; golden rows are synthetic, so the file may be committed.

    python -m train.contributions --data <directory of the CSVs> --models models --out tests/data/treeshap.json [--check]
"""

import argparse
import json
import sys
from pathlib import Path

from train.catalogue import RECIPES, SEED
from train.data import encode, load
from train.learners import Logistic
from train.train import split

ROWS = 40  # the last ones: they stand on thresholds, and have what may be missing missing


def columns_of(dictionary: list[dict]) -> list[str]:
    """The feature of every column."""
    return [f["name"] for f in dictionary for _ in next(iter(f.get("categories", {"": [0]}).values()))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="train.contributions", description="TreeSHAP of the golden rows.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    bundles = {}
    for recipe in (recipe for recipe in RECIPES if recipe.learner is not Logistic):
        label = f"{recipe.name}/{recipe.version}"
        data = load(recipe.source, recipe.dictionary, arguments.data)
        x, y = encode(recipe.dictionary, data.rows), data.left
        train, _ = split(y)
        learner = recipe.learner(recipe.parameters, SEED).fit(x[train], y[train])
        card = json.loads((arguments.models / label / "manifest.json").read_bytes())
        golden = json.loads((arguments.models / label / "golden.json").read_bytes())["rows"]
        rows = range(len(golden) - ROWS, len(golden))
        a, b = card["calibration"]["a"], card["calibration"]["b"]
        found = []
        for row, shap in zip(rows, learner.explain(encode(recipe.dictionary, [golden[r]["features"] for r in rows]))):
            sums = {f["name"]: 0.0 for f in recipe.dictionary}
            for name, value in zip(columns_of(recipe.dictionary), shap[:-1], strict=True):
                sums[name] += a * float(value)
            values = {name: round(value, 7) for name, value in sums.items()}
            found.append({"row": row, "base": round(a * float(shap[-1]) + b, 7), "values": values})
        bundles[label] = found
    lines = [
        f"{json.dumps(label)}: [\n" + ",\n".join("  " + json.dumps(row) for row in found) + "\n]"
        for label, found in bundles.items()
    ]
    content = ("{\n" + ",\n".join(lines) + "\n}\n").encode()
    if arguments.check:
        return 0 if arguments.out.read_bytes() == content else 1
    arguments.out.write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
