"""The native libraries: one class for each, with the same three verbs (fit, probability, explain).

What lives here: training parameters' way into the library, and the way out: the trained trees or coefficients as plain
numbers for `export.py`. What does not: calibration, measurement, ONNX.

Every library runs on one thread: sums of gradients in another order give other last bits, hence other bytes.
"""

import json
import math
import warnings
from dataclasses import dataclass, field

import lightgbm as lgb
import numpy as np
import sklearn
import xgboost as xgb
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


@dataclass
class Node:
    """A node of a tree. A leaf has `value` and no children. `cover` is what path-dependent TreeSHAP weighs by."""

    cover: float
    value: float | None = None
    column: int = 0
    threshold: float = 0.0
    missing_is_true: bool = False
    true: "Node | None" = None
    false: "Node | None" = None


@dataclass
class Forest:
    """Trees whose leaves add up to log-odds. `mode` is the ONNX name of the test that leads to the true branch."""

    mode: str
    base: float
    trees: list[Node] = field(default_factory=list)


@dataclass
class Linear:
    """Log-odds = raw columns x weights + intercept (standardisation already multiplied in)."""

    weights: np.ndarray
    intercept: float


class Xgboost:
    framework = f"xgboost {xgb.__version__}"
    algorithm = "gradient boosted trees"

    def __init__(self, parameters: dict, seed: int):
        self.rounds = parameters["trees"]
        self.parameters = {key: value for key, value in parameters.items() if key != "trees"} | {
            "objective": "binary:logistic", "tree_method": "hist", "nthread": 1, "seed": seed,
        }  # fmt: skip

    def fit(self, x: np.ndarray, y: np.ndarray) -> "Xgboost":
        self.booster = xgb.train(self.parameters, xgb.DMatrix(x, y, nthread=1), self.rounds)
        return self

    def probability(self, x: np.ndarray) -> np.ndarray:
        return self.booster.predict(xgb.DMatrix(x, nthread=1)).astype(np.float64)

    def explain(self, x: np.ndarray) -> np.ndarray:
        """SHAP values on the log-odds, one column a feature column, the last one the bias."""
        return self.booster.predict(xgb.DMatrix(x, nthread=1), pred_contribs=True).astype(np.float64)

    def trained(self) -> Forest:
        learner = json.loads(bytes(self.booster.save_raw("json")))["learner"]
        # A list since 3.1 (one value for each target), a bare number before.
        score = float(learner["learner_model_param"]["base_score"].strip("[]"))
        forest = Forest(mode="BRANCH_LT", base=math.log(score / (1 - score)))
        for tree in learner["gradient_booster"]["model"]["trees"]:
            if any(tree["split_type"]):
                raise ValueError("a categorical split: the graph has no such node")
            forest.trees.append(self._node(tree, 0))
        return forest

    def _node(self, tree: dict, at: int) -> Node:
        cover, value = tree["sum_hessian"][at], tree["split_conditions"][at]
        if tree["left_children"][at] == -1:
            return Node(cover, value=value)
        return Node(
            cover,
            column=tree["split_indices"][at],
            threshold=value,
            missing_is_true=bool(tree["default_left"][at]),
            true=self._node(tree, tree["left_children"][at]),
            false=self._node(tree, tree["right_children"][at]),
        )


class Lightgbm:
    framework = f"lightgbm {lgb.__version__}"
    algorithm = "gradient boosted trees"

    def __init__(self, parameters: dict, seed: int):
        self.rounds = parameters["trees"]
        self.parameters = {key: value for key, value in parameters.items() if key != "trees"} | {
            "objective": "binary", "num_threads": 1, "seed": seed, "deterministic": True, "force_row_wise": True,
            "verbosity": -1,
        }  # fmt: skip

    def fit(self, x: np.ndarray, y: np.ndarray) -> "Lightgbm":
        self.booster = lgb.train(self.parameters, lgb.Dataset(x, y), self.rounds)
        return self

    def probability(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.booster.predict(x, num_threads=1))

    def explain(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.booster.predict(x, pred_contrib=True, num_threads=1))

    def trained(self) -> Forest:
        model = self.booster.dump_model()
        return Forest("BRANCH_LEQ", 0.0, [self._node(tree["tree_structure"]) for tree in model["tree_info"]])

    def _node(self, node: dict) -> Node:
        if "leaf_value" in node:
            return Node(float(node["leaf_count"]), value=node["leaf_value"])
        if node["decision_type"] != "<=":
            raise ValueError(f"a split by {node['decision_type']}: the graph has no such node")
        if node["missing_type"] == "NaN":
            missing_is_true = node["default_left"]
        elif node["missing_type"] == "None":
            missing_is_true = 0.0 <= node["threshold"]  # LightGBM then reads NaN as zero
        else:
            raise ValueError("zero counts as missing: the graph has no such node")
        return Node(
            float(node["internal_count"]),
            column=node["split_feature"],
            threshold=round_down(node["threshold"]),
            missing_is_true=missing_is_true,
            true=self._node(node["left_child"]),
            false=self._node(node["right_child"]),
        )


def round_down(threshold: float) -> float:
    """The greatest float32 not above `threshold`. For every float32 x, `x <= threshold` and
    `x <= round_down(threshold)` are then the same; the nearest float32 may lie above the threshold, and an x equal to
    it would take the wrong branch."""
    nearest = np.float32(threshold)
    return float(nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-np.inf)))


class Logistic:
    framework = f"scikit-learn {sklearn.__version__}"
    algorithm = "logistic regression"

    def __init__(self, parameters: dict, seed: int):
        del seed  # convex: the optimum does not depend on one
        self.parameters = parameters

    def fit(self, x: np.ndarray, y: np.ndarray) -> "Logistic":
        regression = LogisticRegression(C=self.parameters["C"], solver="lbfgs", tol=1e-9, max_iter=5000)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # not converged is an error, not a line in a log
            self.pipeline = make_pipeline(StandardScaler(), regression).fit(x.astype(np.float64), y)
        return self

    def probability(self, x: np.ndarray) -> np.ndarray:
        return self.pipeline.predict_proba(x.astype(np.float64))[:, 1]

    def trained(self) -> Linear:
        scaler, regression = self.pipeline[0], self.pipeline[1]
        weights = regression.coef_[0] / scaler.scale_
        return Linear(weights, float(regression.intercept_[0] - weights @ scaler.mean_))
