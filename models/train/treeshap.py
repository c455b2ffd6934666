"""Path-dependent TreeSHAP from an .onnx file alone, as a reference (Lundberg and others, arXiv 1802.03888).

What lives here: a short and slow computation, leaf by leaf, straight from the definition, that shares no code with the
libraries. What does not: the server's explainer, which is written in Rust and is the fast one.
"""

from math import factorial

import numpy as np
import onnx
from onnx import helper

TESTS = {b"BRANCH_LT": np.less, b"BRANCH_LEQ": np.less_equal}


def shap_values(model: bytes, x: np.ndarray) -> np.ndarray:
    """SHAP values on the log-odds, float64, one column a feature column; the last column is the bias."""
    node = onnx.load_from_string(model).graph.node[0]
    a = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    values = np.zeros((len(x), x.shape[1] + 1))
    values[:, -1] = a.get("base_values", [0.0])[0]
    at = {key: i for i, key in enumerate(zip(a["nodes_treeids"], a["nodes_nodeids"], strict=True))}
    weights = dict(zip(zip(a["class_treeids"], a["class_nodeids"], strict=True), a["class_weights"], strict=True))
    for tree in sorted(set(a["nodes_treeids"])):
        # (node, {column: (share of cover that takes this way, whether each row takes it)})
        stack = [(0, {})]
        while stack:
            number, path = stack.pop()
            i = at[tree, number]
            mode = a["nodes_modes"][i]
            if mode == b"LEAF":
                _add_leaf(values, path, weights[tree, number])
                continue
            column = a["nodes_featureids"][i]
            threshold = np.float32(a["nodes_values"][i])
            goes = TESTS[mode](x[:, column], threshold)
            goes[np.isnan(x[:, column])] = a["nodes_missing_value_tracks_true"][i]
            for child, taken in ((a["nodes_truenodeids"][i], goes), (a["nodes_falsenodeids"][i], ~goes)):
                share = a["nodes_hitrates"][at[tree, child]] / a["nodes_hitrates"][i]
                before = path.get(column, (1.0, np.ones(len(x), bool)))
                # A column that is tested twice on the way counts as one player of the game.
                stack.append((child, path | {column: (before[0] * share, before[1] & taken)}))
    return values


def _add_leaf(values: np.ndarray, path: dict, weight: float) -> None:
    """The leaf's game: with the set S of columns known it pays weight x product of `taken` over S x product of `share`
    over the rest. Each column gets its Shapley value of that game."""
    bias = weight
    for share, _ in path.values():
        bias *= share
    values[:, -1] += bias
    size = len(path)
    for column, (share, taken) in path.items():
        # Coefficient k of this polynomial: sum over all sets of k other columns.
        polynomial = [np.ones(len(values))] + [np.zeros(len(values))] * (size - 1)
        for other, (z, o) in path.items():
            if other != column:
                polynomial = [polynomial[0] * z] + [polynomial[k] * z + polynomial[k - 1] * o for k in range(1, size)]
        total = sum(polynomial[k] * (factorial(k) * factorial(size - 1 - k) / factorial(size)) for k in range(size))
        values[:, column] += weight * total * (taken - share)
