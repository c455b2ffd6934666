"""ONNX: from trained numbers to a graph, and the proof that the graph gives the same scores.

What lives here: the graph, ONNX Runtime's answer, thresholds read back from the graph, and the two checks that make an
export fail (parity of scores, TreeSHAP from the graph alone). What does not: training, files.

The graph is written node by node from the library's own dump instead of through a converter, so that thresholds, node
covers and the class layout are decided here and nothing has to be repaired afterwards.
"""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from train.learners import Forest, Linear, Node
from train.measure import Platt
from train.treeshap import shap_values

TOLERANCE = 1e-5
INPUT, OUTPUT = "input", "probabilities"


class ExportError(Exception):
    """The graph does not give what the library gives: nothing may be published."""


# --- graph ----------------------------------------------------------------------------------------------------------


def graph(trained: Forest | Linear, columns: int) -> bytes:
    node = _forest(trained) if isinstance(trained, Forest) else _linear(trained)
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            [node],
            "churn",
            [value(INPUT, TensorProto.FLOAT, ["N", columns])],
            [value("label", TensorProto.INT64, ["N"]), value(OUTPUT, TensorProto.FLOAT, ["N", 2])],
        ),
        opset_imports=[helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 1)],
        ir_version=8,
    )
    model.producer_name = model.producer_version = ""
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _linear(linear: Linear) -> onnx.NodeProto:
    """Both classes are written out, so that column 1 is the churn probability without another node."""
    weights, intercept = linear.weights.astype(np.float32), np.float32(linear.intercept)
    return helper.make_node(
        "LinearClassifier",
        [INPUT],
        ["label", OUTPUT],
        domain="ai.onnx.ml",
        classlabels_ints=[0, 1],
        coefficients=[*(-weights).tolist(), *weights.tolist()],
        intercepts=[float(-intercept), float(intercept)],
        multi_class=0,
        post_transform="LOGISTIC",
    )


def _forest(forest: Forest) -> onnx.NodeProto:
    columns = {
        key: []
        for key in (
            "nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_modes", "nodes_values", "nodes_truenodeids",
            "nodes_falsenodeids", "nodes_missing_value_tracks_true", "nodes_hitrates", "class_treeids",
            "class_nodeids", "class_ids", "class_weights",
        )
    }  # fmt: skip
    for tree_id, root in enumerate(forest.trees):
        _add(columns, forest.mode, tree_id, root, 0)
    if forest.base:
        columns["base_values"] = [forest.base]
    return helper.make_node(
        "TreeEnsembleClassifier",
        [INPUT],
        ["label", OUTPUT],
        domain="ai.onnx.ml",
        classlabels_int64s=[0, 1],
        post_transform="LOGISTIC",
        **columns,
    )


def _add(columns: dict, mode: str, tree: int, node: Node, number: int) -> int:
    """Append one subtree in pre-order; returns the next free node number."""
    leaf = node.value is not None
    at = len(columns["nodes_nodeids"])
    columns["nodes_treeids"].append(tree)
    columns["nodes_nodeids"].append(number)
    columns["nodes_featureids"].append(node.column)
    columns["nodes_modes"].append("LEAF" if leaf else mode)
    columns["nodes_values"].append(node.threshold)
    columns["nodes_missing_value_tracks_true"].append(int(node.missing_is_true))
    columns["nodes_hitrates"].append(node.cover)
    columns["nodes_truenodeids"].append(0)
    columns["nodes_falsenodeids"].append(0)
    following = number + 1
    if leaf:
        columns["class_treeids"].append(tree)
        columns["class_nodeids"].append(number)
        columns["class_ids"].append(0)  # one weight a leaf: the binary form, which fills both output columns
        columns["class_weights"].append(node.value)
        return following
    columns["nodes_truenodeids"][at] = following
    following = _add(columns, mode, tree, node.true, following)
    columns["nodes_falsenodeids"][at] = following
    return _add(columns, mode, tree, node.false, following)


def thresholds(model: bytes) -> list[tuple[int, np.float32]]:
    """Every (column, threshold) that the graph splits at, sorted; empty for a linear model."""
    node = onnx.load_from_string(model).graph.node[0]
    if node.op_type != "TreeEnsembleClassifier":
        return []
    a = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    triples = zip(a["nodes_modes"], a["nodes_featureids"], a["nodes_values"], strict=True)
    return sorted({(column, np.float32(value)) for mode, column, value in triples if mode != b"LEAF"})


def run(model: bytes, x: np.ndarray) -> np.ndarray:
    """Churn probabilities by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: x})[0][:, 1]


# --- proof ----------------------------------------------------------------------------------------------------------


def on_threshold(model: bytes, x: np.ndarray, seed: int, copies: int = 4) -> np.ndarray:
    """Rows of `x` with one column put exactly on a threshold, one float32 below and one above it, for every threshold.
    The other columns are those of rows drawn from `x`, so that every part of the forest is reached."""
    random = np.random.default_rng(seed)
    out = []
    for column, threshold in thresholds(model):
        below, above = (np.nextafter(threshold, np.float32(side)) for side in (-np.inf, np.inf))
        for value in (threshold, below, above):
            rows = x[random.integers(0, len(x), copies)].copy()
            rows[:, column] = value
            out.append(rows)
    return np.concatenate(out) if out else x[:0]


def parity(learner, platt: Platt, model: bytes, groups: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest difference of the score, library against graph, for each group of rows. Fails on the first bad group.
    Rows go through the graph as one batch and, the first 64 of each group, one by one: these are other code paths."""
    worst = {}
    for name, x in groups.items():
        if not len(x):
            continue
        native = platt.score(learner.probability(x))
        single = np.concatenate([run(model, x[i : i + 1]) for i in range(min(64, len(x)))])
        found = platt.score(np.concatenate([run(model, x), single]).astype(np.float64))
        difference = np.abs(found - np.concatenate([native, native[: len(single)]]))
        if not np.isfinite(difference).all() or difference.max() > TOLERANCE:
            raise ExportError(f"{name}: parity {np.nanmax(difference):.3g} of the score is worse than {TOLERANCE:g}")
        worst[name] = float(difference.max())
    return worst


def shap_parity(learner, model: bytes, x: np.ndarray) -> float | None:
    """Largest difference of any TreeSHAP value on the log-odds: the library's own against those computed from the graph
    alone (thresholds, branches, leaves and the covers in nodes_hitrates). None for a linear model: closed form."""
    if not isinstance(learner.trained(), Forest):
        return None
    difference = np.abs(shap_values(model, x) - learner.explain(x)).max()
    if not difference <= TOLERANCE:
        raise ExportError(f"TreeSHAP from the graph differs by {difference:.3g} from the library's")
    return float(difference)
