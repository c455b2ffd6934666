"""The command: CSVs in, four bundles out, all or none.

What lives here: the order of the steps and the gates. What does not: how any step is done.

    python -m train --data <directory of the CSVs> --out <directory of the bundles> [--check]
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedKFold, train_test_split

from train import bundle, export, measure, synthetic
from train.catalogue import FOLDS, GATES, HOLDOUT, RECIPES, SEED, Recipe
from train.data import DataError, Dataset, encode, load
from train.learners import Forest

SPLIT = (
    f"stratified by target, {1 - HOLDOUT:.0%} training and {HOLDOUT:.0%} hold-out, seed {SEED}; cross-validation and "
    "calibration on the training part only, the published model is fitted on the training part only"
)


class GateError(Exception):
    """A gate failed: the model is not good enough to be published."""


@dataclass
class Built:
    recipe: Recipe
    files: dict[str, bytes]  # by path below the output directory
    metrics: dict
    parity: dict[str, float]
    shap: float | None
    seconds: float


def split(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the training part and of the hold-out."""
    train, holdout = train_test_split(np.arange(len(y)), test_size=HOLDOUT, random_state=SEED, stratify=y)
    return np.sort(train), np.sort(holdout)


def cross_validate(recipe: Recipe, x: np.ndarray, y: np.ndarray) -> tuple[dict, np.ndarray, measure.Platt]:
    """Out-of-fold probabilities of the training part, the calibration fitted on them, and the metrics of the calibrated
    score. A fold is measured with a calibration fitted on the other folds only: no row judges itself."""
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(x, y))
    out_of_fold = np.empty(len(y))
    for fit, rest in folds:
        out_of_fold[rest] = recipe.learner(recipe.parameters, SEED).fit(x[fit], y[fit]).probability(x[rest])
    measured = [
        (y[rest], measure.Platt.fit(y[fit], out_of_fold[fit]).score(out_of_fold[rest])) for fit, rest in folds
    ]
    return {"folds": FOLDS} | measure.over_folds(measured), out_of_fold, measure.Platt.fit(y, out_of_fold)


def gates(label: str, holdout: dict) -> list[dict]:
    """Every gate of the hold-out; raises with all that failed."""
    out = []
    for metric, sign, limit in GATES:
        value = holdout[metric]["value"]
        passed = value >= limit if sign == ">=" else value <= limit
        out.append({"metric": metric, "rule": f"{sign} {limit:.2f}", "value": value, "passed": passed})
    failed = [f"{g['metric']} is {g['value']:.4f}, must be {g['rule']}" for g in out if not g["passed"]]
    if failed:
        raise GateError(f"{label}: gate failed: " + "; ".join(failed))
    return out


def build(recipe: Recipe, data: Dataset) -> Built:
    begin = time.perf_counter()
    label = f"{recipe.name}/{recipe.version}"
    x, y = encode(recipe.dictionary, data.rows), data.left
    train, holdout = split(y)
    crossed, out_of_fold, platt = cross_validate(recipe, x[train], y[train])
    learner = recipe.learner(recipe.parameters, SEED).fit(x[train], y[train])
    scores = platt.score(learner.probability(x))
    held = {"rows": len(holdout)} | measure.over_resamples(y[holdout], scores[holdout], SEED)
    metrics = {"cross_validation": crossed, "holdout": held, "gates": gates(label, held)}

    trained = learner.trained()
    model = export.graph(trained, x.shape[1])
    splits = export.thresholds(model)
    drawn = synthetic.draw(recipe.dictionary, data, train, synthetic.DRAWN + synthetic.ON_THRESHOLD, SEED)
    mode = trained.mode if isinstance(trained, Forest) else None
    placed = synthetic.put_on_thresholds(recipe.dictionary, drawn[synthetic.DRAWN:], splits, mode, learner)
    # A linear model has no thresholds: all its rows are plainly drawn ones.
    rows = drawn[: synthetic.DRAWN] + placed if placed else drawn
    golden = bundle.golden_json(rows, platt.score(learner.probability(encode(recipe.dictionary, rows))).tolist())
    if any(row in data.rows for row in rows):
        raise ValueError("a golden row is a customer of the data")
    read_back = [row["features"] for row in json.loads(golden)["rows"]]

    groups = {"data": x, "golden": encode(recipe.dictionary, read_back)}
    groups["threshold"] = export.on_threshold(model, x, SEED)
    groups["missing"] = _with_missing(recipe, data, holdout)
    parity = export.parity(learner, platt, model, groups)
    some = np.concatenate([groups["golden"][-16:], x[holdout[:16]], groups["missing"][:8]])
    shap = export.shap_parity(learner, model, some)

    files = {
        "model.onnx": model,
        "baseline.json": bundle.to_json(
            synthetic.baseline(recipe.dictionary, data, train, platt.score(out_of_fold))
        ),
        "golden.json": golden,
    }
    card = bundle.manifest(
        recipe,
        training={
            "framework": learner.framework,
            "algorithm": learner.algorithm,
            "target": f"{recipe.source.target} = {recipe.source.positive}",
            "seed": SEED,
            "split": SPLIT,
            "hyperparameters": recipe.parameters,
        },
        metrics=metrics,
        platt=platt,
        columns=x.shape[1],
        files=files,
    )
    paths = {f"{label}/{name}": content for name, content in ({"manifest.json": bundle.to_json(card)} | files).items()}
    if recipe.publish_scores:
        paths[f"train/scores/{recipe.name}-{recipe.version}.csv"] = bundle.scores_csv(scores.tolist())
    return Built(recipe, paths, metrics, parity, shap, time.perf_counter() - begin)


def _with_missing(recipe: Recipe, data: Dataset, rows: np.ndarray) -> np.ndarray:
    """The rows again, once for each feature that may be missing, without its value."""
    optional = [f["name"] for f in recipe.dictionary if f["missing"] != "refuse"]
    changed = [data.rows[i] | {name: None} for name in optional for i in rows]
    return encode(recipe.dictionary, changed) if changed else encode(recipe.dictionary, data.rows[:1])[:0]


def report(built: Built) -> str:
    def line(metrics: dict) -> str:
        return "  ".join(
            f"{name} {metrics[name]['value']:.4f} [{metrics[name]['low']:.4f}, {metrics[name]['high']:.4f}]"
            for name in measure.METRICS
        )

    parity = "  ".join(f"{name} {value:.1e}" for name, value in built.parity.items())
    return "\n".join(
        (
            f"{built.recipe.name}/{built.recipe.version}  ({built.seconds:.1f} s)",
            f"  cross-validation  {line(built.metrics['cross_validation'])}",
            f"  hold-out          {line(built.metrics['holdout'])}",
            f"  parity            {parity}  TreeSHAP {'closed form' if built.shap is None else f'{built.shap:.1e}'}",
        )
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="train", description="Train the four bundles from the published CSVs.")
    parser.add_argument("--data", type=Path, required=True, help="directory of the CSVs")
    parser.add_argument("--out", type=Path, required=True, help="directory of the bundles")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the bundles in --out differ")
    options = parser.parse_args(arguments)

    files, failures = {}, []
    for recipe in RECIPES:
        try:
            built = build(recipe, load(recipe.source, recipe.dictionary, options.data))
        except GateError as error:
            failures.append(str(error))
        except (DataError, export.ExportError, ValueError) as error:
            failures.append(f"{recipe.name}/{recipe.version}: {error}")
        else:
            files |= built.files
            print(report(built), flush=True)
    if failures:
        print("\n".join(["no bundle written:", *failures]), file=sys.stderr)
        return 1
    return bundle.write_or_check(options.out, files, options.check)
