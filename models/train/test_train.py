"""Tests of the trainer. They are fast and need no customer data: small models are trained on made-up rows, and the
committed bundles are checked against the contract.

What lives here: tests. What does not: the parity of the shipped models with their libraries, which the trainer itself
proves on every run, with the data at hand.
"""

import contextlib
import hashlib
import io
import json
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import onnx

from train import bundle, catalogue, data, export, learners, measure, synthetic, train, treeshap

MODELS = Path(__file__).resolve().parent.parent
LABELS = [(recipe.name, recipe.version) for recipe in catalogue.RECIPES]
PROTECTED = {"gender", "seniorcitizen", "partner", "dependents", "customerid", "age", "state", "area_code"}


def made_up(rows: int = 600, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Three numbers with many values between float32 neighbours, one 0/1 column, and one column with missing values."""
    random = np.random.default_rng(seed)
    x = np.column_stack([random.gamma(2.0, 30.0, rows), random.normal(size=rows), random.random(rows),
                         random.integers(0, 2, rows), random.exponential(size=rows)]).astype(np.float32)  # fmt: skip
    z = x[:, 0] / 60 + x[:, 1] - 2 * x[:, 3] * x[:, 2] + np.minimum(x[:, 4], 2)
    y = (measure.sigmoid(z - 1) > random.random(rows)).astype(np.int64)
    x[random.random(rows) < 0.1, 4] = np.nan
    return x, y


def fitted(kind: type, x, y):
    parameters = {
        learners.Xgboost: {"trees": 40, "max_depth": 4, "eta": 0.2},
        learners.Lightgbm: {"trees": 40, "num_leaves": 12, "learning_rate": 0.2, "min_data_in_leaf": 5},
        learners.Logistic: {"C": 1.0},
    }[kind]
    return kind(parameters, 1).fit(x, y)


class Exporting(unittest.TestCase):
    platt = measure.Platt(0.9, -0.1)

    def test_trees_keep_scores_and_shap_values(self):
        x, y = made_up()
        for kind in (learners.Xgboost, learners.Lightgbm):
            with self.subTest(kind.__name__):
                learner = fitted(kind, x, y)
                model = export.graph(learner.trained(), x.shape[1])
                rows = {"data": x, "threshold": export.on_threshold(model, x, 1)}
                self.assertGreater(len(rows["threshold"]), 1000)
                self.assertLess(max(export.parity(learner, self.platt, model, rows).values()), 1e-5)
                self.assertLess(export.shap_parity(learner, model, x[:20]), 1e-5)

    def test_linear_model_takes_raw_columns(self):
        x, y = made_up()
        x = np.nan_to_num(x)
        learner = fitted(learners.Logistic, x, y)
        model = export.graph(learner.trained(), x.shape[1])
        self.assertLess(export.parity(learner, self.platt, model, {"data": x})["data"], 1e-5)
        self.assertEqual(export.thresholds(model), [])

    def test_parity_check_sees_a_threshold_rounded_to_nearest(self):
        x, y = made_up()
        with mock.patch.object(learners, "round_down", lambda threshold: float(np.float32(threshold))):
            learner = fitted(learners.Lightgbm, x, y)
            model = export.graph(learner.trained(), x.shape[1])
        rows = {"threshold": export.on_threshold(model, x, 1)}
        self.assertRaises(export.ExportError, export.parity, learner, self.platt, model, rows)

    def test_parity_check_sees_a_missing_value_sent_the_wrong_way(self):
        x, y = made_up()
        learner = fitted(learners.Xgboost, x, y)
        forest = learner.trained()
        for root in forest.trees:
            root.missing_is_true = not root.missing_is_true
            for child in (root.true, root.false):
                child.missing_is_true = not child.missing_is_true
        model = export.graph(forest, x.shape[1])
        self.assertRaises(export.ExportError, export.parity, learner, self.platt, model, {"data": x})

    def test_shap_check_sees_missing_covers(self):
        x, y = made_up()
        learner = fitted(learners.Xgboost, x, y)
        model = onnx.load_from_string(export.graph(learner.trained(), x.shape[1]))
        for attribute in model.graph.node[0].attribute:
            if attribute.name == "nodes_hitrates":
                attribute.floats[:] = [1.0] * len(attribute.floats)
        self.assertRaises(export.ExportError, export.shap_parity, learner, model.SerializeToString(), x[:5])

    def test_rounding_down_keeps_every_decision(self):
        random = np.random.default_rng(5)
        for threshold in [*random.normal(scale=1000, size=2000), 0.5, -0.0, 1.5, 1.0000000180025095e-35]:
            rounded = np.float32(learners.round_down(float(threshold)))
            self.assertLessEqual(float(rounded), threshold)
            self.assertGreater(float(np.nextafter(rounded, np.float32(np.inf))), threshold)

    def test_same_model_same_bytes(self):
        x, y = made_up()
        for kind in (learners.Xgboost, learners.Lightgbm):
            first, second = (export.graph(fitted(kind, x, y).trained(), x.shape[1]) for _ in range(2))
            self.assertEqual(first, second)


class Measuring(unittest.TestCase):
    def test_auc_counts_pairs(self):
        left, score = np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8])
        self.assertAlmostEqual(measure.auc(left, score), 3.5 / 4)

    def test_precision_takes_the_top_fifth(self):
        left = np.array([1, 0] + [0] * 8)
        self.assertEqual(measure.precision_at_20(left, np.arange(10, 0, -1) / 10), 0.5)

    def test_ece_of_a_constant_error(self):
        left = np.tile([0, 1], 50)
        score = 0.6 + np.arange(100) * 1e-9
        self.assertAlmostEqual(measure.ece(left, score), 0.1, places=5)

    def test_platt_finds_a_and_b(self):
        random = np.random.default_rng(2)
        z = random.normal(scale=2, size=200_000)
        left = (measure.sigmoid(0.7 * z - 0.4) > random.random(len(z))).astype(int)
        platt = measure.Platt.fit(left, measure.sigmoid(z))
        self.assertAlmostEqual(platt.a, 0.7, delta=0.02)
        self.assertAlmostEqual(platt.b, -0.4, delta=0.02)
        self.assertRaises(ValueError, measure.Platt, -0.1, 0.0)

    def test_intervals_hold_their_value(self):
        random = np.random.default_rng(4)
        score = random.random(400)
        left = (score > random.random(400)).astype(int)
        for metrics in (measure.over_resamples(left, score, 1, 200), measure.over_folds([(left, score)] * 2)):
            for one in metrics.values():
                self.assertTrue(0 <= one["low"] <= one["value"] <= one["high"] <= 1, one)


class Encoding(unittest.TestCase):
    dictionary = [
        data.numeric("integer", "tenure", "a", "b", "c", "months", 120, 24),
        data.numeric("number", "total", "a", "b", "c", "USD", 100, 24, "nan"),
        data.numeric("number", "other", "a", "b", "c", "USD", 100, 24, {"default": 7}),
        data.category("contract", "a", "b", "c", data.one_hot("x", "y"), 24),
        data.category("backup", "a", "b", "c", data.yes_no("Yes", "No", "None"), 24),
    ]
    row = {"tenure": 3, "total": 2.5, "other": 1.0, "contract": "y", "backup": "Yes"}

    def test_columns_stand_in_dictionary_order(self):
        found = data.encode(self.dictionary, [self.row, self.row | {"backup": "None", "contract": "x"}])
        self.assertEqual(found.dtype, np.float32)
        self.assertEqual(found.tolist(), [[3, 2.5, 1, 0, 1, 1], [3, 2.5, 1, 1, 0, 0]])
        self.assertEqual(data.first_columns(self.dictionary)["backup"], 5)

    def test_missing_is_what_the_dictionary_says(self):
        found = data.encode(self.dictionary, [self.row | {"total": None, "other": None}])[0]
        self.assertTrue(np.isnan(found[1]))
        self.assertEqual(found[2], 7)

    def test_illegal_values_are_refused(self):
        illegal = {"tenure": [None, 121, 2.5], "total": [-1], "contract": ["z"], "backup": [None]}
        for name, value in ((name, value) for name, values in illegal.items() for value in values):
            with self.subTest(name, value=value):
                self.assertRaises(data.DataError, data.encode, self.dictionary, [self.row | {name: value}])

    def test_other_data_is_refused(self):
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / data.TELCO.file).write_text("customerID\n")
            self.assertRaisesRegex(
                data.DataError, "sha256", data.load, data.TELCO, self.dictionary, Path(directory)
            )


class Publishing(unittest.TestCase):
    good = {"auc": {"value": 0.85}, "precision_at_20": {"value": 0.66}, "ece": {"value": 0.02}}

    def test_gates(self):
        self.assertTrue(all(gate["passed"] for gate in train.gates("x", self.good)))
        for metric, value in (("auc", 0.7999), ("precision_at_20", 0.5999), ("ece", 0.0501)):
            with self.assertRaisesRegex(train.GateError, f"{metric} is 0"):
                train.gates("x/1.0.0", self.good | {metric: {"value": value}})

    def test_nothing_is_written_when_one_bundle_fails(self):
        built = train.Built(catalogue.RECIPES[0], {"a/1/model.onnx": b""}, {}, {}, None, 0.0)
        results = [built, built, built, train.GateError("mlc-churn/1.0.0: gate failed: auc is 0.7, must be >= 0.80")]
        with (
            tempfile.TemporaryDirectory() as directory,
            mock.patch.object(train, "load"),
            mock.patch.object(train, "report", return_value=""),
            mock.patch.object(train, "build", side_effect=results),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()) as errors,
        ):
            self.assertEqual(train.main(["--data", directory, "--out", directory]), 1)
            self.assertEqual(list(Path(directory).iterdir()), [])
        self.assertIn("gate failed: auc", errors.getvalue())

    def test_writing_replaces_the_whole_directory(self):
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory)
            bundle.write(out, {"m/1/a": b"1", "m/1/b": b"2"})
            bundle.write(out, {"m/1/a": b"3"})
            self.assertEqual([path.name for path in (out / "m" / "1").iterdir()], ["a"])
            self.assertEqual(bundle.differences(out, {"m/1/a": b"3", "m/1/b": b"2"}), ["m/1/b"])
            self.assertEqual([path.name for path in (out / "m").iterdir()], ["1"])

    def test_json_layout_reads_back(self):
        value = {"a": list(range(100)), "b": {"ü": None, "d": [{"e": 1.5, "f": "x" * 90}]}, "g": []}
        self.assertEqual(json.loads(bundle.to_json(value)), value)

    def test_histogram_edges_rise_and_no_number_lies_on_one(self):
        values = np.array([0.0] * 70 + [1.25, 1.5, 2.75] * 10)
        edges = synthetic._edges(values, 2)
        self.assertEqual(edges, [0.625, 1.375, 2.125])
        self.assertEqual(synthetic._counts(values, edges), [70, 10, 10, 10])
        self.assertEqual(synthetic._edges(np.array([1, 1, 2, 3]), None), [2, 3])


class CommittedBundles(unittest.TestCase):
    """What is committed, read the way the server reads it."""

    def each(self):
        for name, version in LABELS:
            directory = MODELS / name / version
            with self.subTest(f"{name}/{version}"):
                files = {path.name: path.read_bytes() for path in directory.iterdir()}
                card, base, golden = (json.loads(files[f"{f}.json"]) for f in ("manifest", "baseline", "golden"))
                yield name, version, files, card, base, golden["rows"]

    def test_card(self):
        for name, version, files, card, _, _ in self.each():
            self.assertEqual(set(files), {"manifest.json", "model.onnx", "baseline.json", "golden.json"})
            self.assertEqual(
                list(card),
                ["format", "name", "version", "created", "title", "description", "intended_use", "limits", "owner",
                 "lineage", "training", "metrics", "calibration", "graph", "features", "waivers", "files"],
            )  # fmt: skip
            self.assertEqual((card["name"], card["version"]), (name, version))
            for file, said in card["files"].items():
                self.assertEqual(said["bytes"], len(files[file]))
                self.assertEqual(said["sha256"], hashlib.sha256(files[file]).hexdigest())
            for part in ("cross_validation", "holdout"):
                for metric in measure.METRICS:
                    one = card["metrics"][part][metric]
                    self.assertTrue(one["low"] <= one["value"] <= one["high"], one)
            self.assertTrue(all(gate["passed"] for gate in card["metrics"]["gates"]))
            self.assertGreater(card["calibration"]["a"], 0)
            features = card["features"]
            self.assertEqual(card["graph"]["columns"], sum(data.width(f) for f in features))
            self.assertFalse(PROTECTED & {f["name"].lower() for f in features})
            for f in features:
                wanted = {"name", "type", "source", "owner", "description", "missing", "freshness_hours", "reason"}
                wanted |= {"categories", "unknown"} if f["type"] == "category" else {"range"}
                self.assertEqual(set(f) - {"unit", "actionable"}, wanted)
                self.assertNotIn("tenure", [f["name"] for f in features if "actionable" in f])

    def test_graph(self):
        for _, _, files, card, _, _ in self.each():
            model = onnx.load_from_string(files["model.onnx"])
            columns = card["graph"]["columns"]
            self.assertEqual((model.ir_version, model.producer_name, model.doc_string), (8, "", ""))
            self.assertLessEqual({node.domain for node in model.graph.node}, {"", "ai.onnx.ml"})
            self.assertEqual(len(model.graph.initializer), 0)
            (graph_input,), (label, output) = model.graph.input, model.graph.output
            self.assertEqual((graph_input.name, label.name, output.name), ("input", "label", "probabilities"))
            shapes = [[d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in (graph_input, output)]
            self.assertEqual(shapes, [["N", columns], ["N", 2]])

    def test_golden_rows(self):
        for _, _, files, card, _, golden in self.each():
            self.assertTrue(64 <= len(golden) <= 1024)
            features = card["features"]
            rows = [row["features"] for row in golden]
            for f in features:
                if f["missing"] != "refuse":
                    self.assertTrue(any(row[f["name"]] is None for row in rows), f["name"])
            x = data.encode(features, rows)
            platt = measure.Platt(card["calibration"]["a"], card["calibration"]["b"])
            scores = platt.score(export.run(files["model.onnx"], x).astype(np.float64))
            self.assertLess(np.abs(scores - [row["score"] for row in golden]).max(), 1e-5)

            splits = export.thresholds(files["model.onnx"])
            if splits:
                numbers = {data.first_columns(features)[f["name"]] for f in features if f["type"] != "category"}
                on = {i for i, row in enumerate(x) for c, t in splits if c in numbers and row[c] == t}
                self.assertLessEqual(set(range(synthetic.DRAWN, len(rows))), on)

    def test_shap_values_add_up_to_the_log_odds(self):
        for _, _, files, card, _, golden in self.each():
            if not export.thresholds(files["model.onnx"]):
                continue
            x = data.encode(card["features"], [row["features"] for row in golden[:8]])
            total = treeshap.shap_values(files["model.onnx"], x).sum(axis=1)
            probability = export.run(files["model.onnx"], x).astype(np.float64)
            self.assertLess(np.abs(measure.sigmoid(total) - probability).max(), 1e-5)

    def test_baseline(self):
        for _, _, _, card, base, _ in self.each():
            self.assertEqual(list(base["features"]), [f["name"] for f in card["features"]])
            for f in card["features"]:
                one = base["features"][f["name"]]
                if f["type"] == "category":
                    self.assertEqual(list(one["categories"]), list(f["categories"]))
                    counts = list(one["categories"].values())
                else:
                    counts = one["counts"]
                    self.assertEqual(len(counts), len(one["edges"]) + 1)
                    self.assertEqual(one["edges"], sorted(set(one["edges"])))
                self.assertEqual(sum(counts) + one["missing"], base["rows"])
            self.assertEqual(sum(base["score"]["counts"]), base["rows"])

    def test_reference_scores(self):
        for recipe in catalogue.RECIPES:
            path = MODELS / "train" / "scores" / f"{recipe.name}-{recipe.version}.csv"
            self.assertEqual(path.is_file(), recipe.publish_scores)
            if recipe.publish_scores:
                lines = path.read_text().splitlines()
                self.assertEqual((lines[0], len(lines) - 1), ("row,score", recipe.source.rows))


if __name__ == "__main__":
    unittest.main()
