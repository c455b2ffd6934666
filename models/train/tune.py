"""How the parameters in `catalogue.py` were found: a small grid, by cross-validation on the training part only.

What lives here: the grid and its table. What does not: the choice, which a person makes and writes into the catalogue.
The hold-out is not looked at, so that its figures stay honest.

    python -m train.tune --data <directory of the CSVs>
"""

import argparse
from pathlib import Path

from train.catalogue import RECIPES, Recipe
from train.data import encode, load
from train.measure import METRICS
from train.train import cross_validate, split

GRIDS = {
    "telco-churn/1.0.0": [
        {"max_depth": 4, "eta": 0.05, "min_child_weight": 1, "lambda": 1},
        {"max_depth": 3, "eta": 0.03, "min_child_weight": 5, "lambda": 1},
        {"max_depth": 4, "eta": 0.03, "min_child_weight": 10, "lambda": 5},
        {"max_depth": 4, "eta": 0.02, "min_child_weight": 20, "lambda": 10},
        {"max_depth": 5, "eta": 0.02, "min_child_weight": 10, "lambda": 5},
    ],
    "telco-churn/1.1.0": [
        {"num_leaves": 15, "learning_rate": 0.03, "min_data_in_leaf": 40, "lambda_l2": 5},
        {"num_leaves": 8, "learning_rate": 0.05, "min_data_in_leaf": 40, "lambda_l2": 5},
        {"num_leaves": 8, "learning_rate": 0.03, "min_data_in_leaf": 40, "lambda_l2": 5},
        {"num_leaves": 12, "learning_rate": 0.02, "min_data_in_leaf": 60, "lambda_l2": 10},
    ],
    "telco-churn/1.2.0": [{"C": c} for c in (0.01, 0.1, 0.3, 1.0)],
    "mlc-churn/1.0.0": [
        {"max_depth": 4, "eta": 0.05},
        {"max_depth": 5, "eta": 0.05},
        {"max_depth": 5, "eta": 0.02},
        {"max_depth": 5, "eta": 0.1},
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="train.tune", description="Cross-validate a small grid for every bundle.")
    parser.add_argument("--data", type=Path, required=True, help="directory of the CSVs")
    options = parser.parse_args()
    for recipe in RECIPES:
        label = f"{recipe.name}/{recipe.version}"
        data = load(recipe.source, recipe.dictionary, options.data)
        x, y = encode(recipe.dictionary, data.rows), data.left
        train, _ = split(y)
        for point in GRIDS[label]:
            tried = Recipe(**{**vars(recipe), "parameters": recipe.parameters | point})
            metrics, _, _ = cross_validate(tried, x[train], y[train])
            figures = "  ".join(f"{name} {metrics[name]['value']:.4f}" for name in METRICS)
            print(f"{label}  {figures}  {point}", flush=True)


if __name__ == "__main__":
    main()
