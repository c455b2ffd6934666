"""How long the `shap` package takes for what `Model::explain` does: path-dependent TreeSHAP of the trees of a bundle, one row at a
time, on one thread. Prints JSON; `show_decide.py` runs it in a Python of its own.

    python shap_reference.py BUNDLE
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import shap
from onnx import helper

ROWS = 2_000


def trees(graph):
    """The trees in the form that the package reads, and the bias."""
    a = {attribute.name: helper.get_attribute_value(attribute) for attribute in graph.node[0].attribute}
    weights = dict(zip(zip(a["class_treeids"], a["class_nodeids"]), a["class_weights"]))
    found = []
    for tree in sorted(set(a["nodes_treeids"])):
        places = [at for at, owner in enumerate(a["nodes_treeids"]) if owner == tree]
        number = {a["nodes_nodeids"][at]: new for new, at in enumerate(places)}
        leaf = [a["nodes_modes"][at] == b"LEAF" for at in places]
        true = [-1 if end else number[a["nodes_truenodeids"][at]] for at, end in zip(places, leaf)]
        false = [-1 if end else number[a["nodes_falsenodeids"][at]] for at, end in zip(places, leaf)]
        tracks = [a["nodes_missing_value_tracks_true"][at] for at in places]
        # The package goes left at `<=`: just under the threshold is the same as `<`.
        below = [np.nextafter(np.float32(a["nodes_values"][at]), np.float32(-np.inf)) for at in places]
        found.append({
            "children_left": np.array(true), "children_right": np.array(false),
            "children_default": np.array([left if track else right for left, right, track in zip(true, false, tracks)]),
            "features": np.array([-2 if end else a["nodes_featureids"][at] for at, end in zip(places, leaf)]),
            "thresholds": np.array(below, dtype=np.float64),
            "values": np.array([[weights.get((tree, a["nodes_nodeids"][at]), 0.0)] for at in places]),
            "node_sample_weight": np.array([a["nodes_hitrates"][at] for at in places]),
        })
    return found, a.get("base_values", [0.0])[0]


def main(bundle):
    graph = onnx.load(bundle / "model.onnx").graph
    forest, bias = trees(graph)
    model = {"internal_dtype": np.float64, "input_dtype": np.float32, "objective": "binary_crossentropy",
             "tree_output": "log_odds", "base_offset": bias, "trees": forest}
    explainer = shap.TreeExplainer(model, feature_perturbation="tree_path_dependent")
    columns = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    random = np.random.default_rng(7)
    # Every column over the range of its thresholds, so that rows take different ways.
    spans = [[value for tree in forest for feature, value in zip(tree["features"], tree["thresholds"]) if feature == column] or [0.0]
             for column in range(columns)]
    rows = np.column_stack([random.uniform(min(span) - 1, max(span) + 1, ROWS) for span in spans]).astype(np.float32)
    explainer.shap_values(rows[:50], check_additivity=False)
    begun = time.perf_counter()
    explainer.shap_values(rows, check_additivity=False)
    took = time.perf_counter() - begun
    print(json.dumps({"us": took / ROWS * 1e6, "trees": len(forest)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
