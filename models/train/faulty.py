"""Bundles with a fault, for the tests of the rollout: legal by the contract, wrong in a way that only traffic shows.

What lives here: the faults, the graphs that have them, and the proof that each fault is there and that no golden row
fails by it. What does not: training. All are made from the committed bundle telco-churn/1.2.0, so no customer's data is
needed and none is published: golden rows are synthetic ones of 1.2.0, figures of the card are those of 1.2.0.

    python -m train.faulty --models models --out tests/data/bundles [--check] [--data <directory of the CSVs>]

With --data a measurement is printed too: how each row of the CSV fares, against 1.2.0 and in time against 1.0.0.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from train import bundle, export
from train.catalogue import RECIPES, Recipe
from train.data import encode, first_columns, load
from train.learners import Linear
from train.measure import Platt, sigmoid

NAME, BASE, CHAMPION = "telco-churn", "1.2.0", "1.0.0"
GOLDEN_ROWS = 48  # of the 96 of 1.2.0: keeps a bundle under 40 kB
FAULTY_TENURE = (41, 42)  # both ends inclusive; 2 % of the CSV's customers, and no golden row
NUDGE = 0.003  # relative, of every coefficient, up and down in turn
NEAR = 0.005  # how far a good challenger may be from 1.2.0
SHIFT = 0.1
SLOW_WIDTH, SLOW_STEPS = 2048, 144  # sines of one row: some 300,000
# By how much an intervention lowers the probability of churn: RANGE x tanh(weight x (1 - tenure / MONTHS)). So an e-mail is better for the
# new, and drives the loyal away; the offer is the other way round.
UPLIFT, UPLIFT_RANGE, UPLIFT_MONTHS = {"discount_email": 1.0, "retention_offer": -0.5}, 0.3, 24.0


# --- graphs ---------------------------------------------------------------------------------------------------------


class Graph:
    """A graph under construction: the logistic regression of 1.2.0, then what a fault adds.

    The dictionary is that of 1.0.0, where TotalCharges may be NaN; 1.2.0 was trained with zero in its place, so NaN
    becomes zero in front of the regression."""

    def __init__(self, linear: Linear, columns: int):
        self.nodes, self.constants, self.columns = [], [], columns
        filled = self.add("Where", self.add("IsNaN", export.INPUT), self.floats(0.0), export.INPUT)
        [node] = onnx.load_from_string(export.graph(linear, columns)).graph.node
        node.input[0], node.output[1] = filled, "regression"
        self.nodes.append(node)
        self.probability, self.uplift = node.output[1], None

    def add(self, operator: str, *inputs: str, **attributes) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def floats(self, *values: float) -> str:
        return self._constant(TensorProto.FLOAT, values)

    def integers(self, *values: int) -> str:
        return self._constant(TensorProto.INT64, values)

    def _constant(self, kind: int, values: tuple) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(helper.make_tensor(name, kind, [len(values)], values))
        return name

    def tenure(self, dictionary: list[dict]) -> str:
        """The column of tenure, [N, 1]."""
        return self.add("Gather", export.INPUT, self.integers(first_columns(dictionary)["tenure"]), axis=1)

    def bytes(self) -> bytes:
        value = helper.make_tensor_value_info
        finish = [helper.make_node("Identity", [self.probability], [export.OUTPUT])]
        outputs = [value(export.OUTPUT, TensorProto.FLOAT, ["N", 2])]
        if self.uplift:
            finish.append(helper.make_node("Identity", [self.uplift], ["uplift"]))
            outputs.append(value("uplift", TensorProto.FLOAT, ["N", len(UPLIFT)]))
        model = helper.make_model(
            helper.make_graph(
                [*self.nodes, *finish],
                "churn",
                [value(export.INPUT, TensorProto.FLOAT, ["N", self.columns])],
                outputs,
                self.constants,
            ),
            opset_imports=[helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 1)],
            ir_version=8,
        )
        model.producer_name = model.producer_version = ""
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString(deterministic=True)


# --- faults ---------------------------------------------------------------------------------------------------------


def none(graph: Graph, dictionary: list[dict]) -> None:
    pass


def shifted(graph: Graph, dictionary: list[dict]) -> None:
    moved = graph.add("Add", graph.probability, graph.floats(-SHIFT, SHIFT))
    graph.probability = graph.add("Max", graph.add("Min", moved, graph.floats(1.0)), graph.floats(0.0))


def slow(graph: Graph, dictionary: list[dict]) -> None:
    """Adds a zero that takes long, and that no optimiser can know to be zero: a sine is never over 2. The work grows
    with the rows. The wide row of ones exists only in memory, never in the file."""
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    ones = graph.add("ConstantOfShape", graph.integers(1, SLOW_WIDTH), value=one)
    wide = graph.add("Mul", graph.tenure(dictionary), ones)
    for _ in range(SLOW_STEPS):
        wide = graph.add("Sin", wide)
    greatest = graph.add("ReduceMax", wide, axes=[1], keepdims=1)
    zero = graph.add("Relu", graph.add("Sub", greatest, graph.floats(2.0)))
    graph.probability = graph.add("Add", graph.probability, zero)


def erring(graph: Graph, dictionary: list[dict]) -> None:
    """Looks up place 1 in a table of one place. The index is 0 or 1 and nothing of the customer, since ONNX Runtime
    writes it into its error."""
    place = graph.add("Cast", _in_faulty_range(graph, dictionary), to=TensorProto.INT64)
    graph.probability = graph.add("Add", graph.probability, graph.add("Gather", graph.floats(0.0), place))


def nan(graph: Graph, dictionary: list[dict]) -> None:
    """Times and then over 1 for most, 0 for some: 0 / 0."""
    sound = graph.add("Cast", graph.add("Not", _in_faulty_range(graph, dictionary)), to=TensorProto.FLOAT)
    graph.probability = graph.add("Div", graph.add("Mul", graph.probability, sound), sound)


def estimating(graph: Graph, dictionary: list[dict]) -> None:
    new = graph.add("Sub", graph.floats(1.0), graph.add("Div", graph.tenure(dictionary), graph.floats(UPLIFT_MONTHS)))
    bent = graph.add("Tanh", graph.add("Mul", new, graph.floats(*UPLIFT.values())))
    graph.uplift = graph.add("Mul", bent, graph.floats(UPLIFT_RANGE))


def uplift(row: dict) -> list[float]:
    """What that gives for a customer, in float64 and without ONNX Runtime."""
    new = 1 - row["tenure"] / UPLIFT_MONTHS
    return [UPLIFT_RANGE * float(np.tanh(weight * new)) for weight in UPLIFT.values()]


def _in_faulty_range(graph: Graph, dictionary: list[dict]) -> str:
    tenure, (low, high) = graph.tenure(dictionary), FAULTY_TENURE
    above = graph.add("GreaterOrEqual", tenure, graph.floats(low))
    return graph.add("And", above, graph.add("LessOrEqual", tenure, graph.floats(high)))


@dataclass(frozen=True)
class Fault:
    version: str
    what: str  # after "Differs from 1.2.0: "
    add: Callable[[Graph, list[dict]], None]
    nudge: float = 0.0
    shift: float = 0.0
    answer: str = "score"  # in FAULTY_TENURE: score, error or NaN


MONTHS = "customers of {} to {} months".format(*FAULTY_TENURE)
FAULTS = [
    Fault("9.0.0-good", f"each coefficient by {NUDGE:.1%}; no fault, a good challenger", none, nudge=NUDGE),
    Fault("9.0.1-shifted", f"every score is {SHIFT} higher, at most 1", shifted, shift=SHIFT),
    Fault("9.0.2-slow", "one row takes many times as long; the scores are the same", slow),
    Fault("9.0.3-erring", f"the run fails for {MONTHS}; other scores are the same", erring, answer="error"),
    Fault("9.0.4-nan", f"the probability of {MONTHS} is NaN; other scores are the same", nan, answer="NaN"),
    Fault("9.0.5-uplift", "it estimates what two interventions change; the scores are the same", estimating),
]


# --- bundles --------------------------------------------------------------------------------------------------------


class Regression:
    """What a faulty graph should give, in float64 and without ONNX Runtime; the faults of FAULTY_TENURE aside."""

    def __init__(self, linear: Linear, shift: float):
        self.linear, self.shift = linear, shift

    def probability(self, x: np.ndarray) -> np.ndarray:
        filled = np.nan_to_num(x.astype(np.float64))
        odds = (filled * self.linear.weights).sum(axis=1) + self.linear.intercept
        return np.minimum(sigmoid(odds) + self.shift, 1.0)


@dataclass(frozen=True)
class Base:
    """The bundle that all are made from."""

    card: dict
    linear: Linear
    platt: Platt
    golden: list[dict]
    baseline: bytes

    @classmethod
    def read(cls, models: Path) -> "Base":
        directory = models / NAME / BASE
        card = json.loads((directory / "manifest.json").read_bytes())
        [node] = onnx.load(directory / "model.onnx").graph.node
        a = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        weights = np.array(a["coefficients"][card["graph"]["columns"] :], np.float64)
        golden = json.loads((directory / "golden.json").read_bytes())["rows"][:GOLDEN_ROWS]
        return cls(
            card,
            Linear(weights, float(a["intercepts"][1])),
            Platt(card["calibration"]["a"], card["calibration"]["b"]),
            [row["features"] for row in golden],
            (directory / "baseline.json").read_bytes(),
        )


def build(fault: Fault, base: Base, recipe: Recipe) -> dict[str, bytes]:
    """The four files, by path below the output directory; raises when the fault is not as described."""
    x = encode(recipe.dictionary, base.golden)
    signs = np.where(np.arange(x.shape[1]) % 2, -1.0, 1.0)
    linear, platt = Linear(base.linear.weights * (1 + fault.nudge * signs), base.linear.intercept), base.platt
    if fault.shift:
        # A shift of the score is none of the log-odds: the calibration moves into the graph, the card's does nothing.
        linear, platt = Linear(platt.a * linear.weights, platt.a * linear.intercept + platt.b), Platt(1.0, 0.0)
    regression = Regression(linear, fault.shift)
    graph = Graph(linear, x.shape[1])
    fault.add(graph, recipe.dictionary)
    model = graph.bytes()

    scores = platt.score(regression.probability(x))
    expected = base.platt.score(Regression(base.linear, 0.0).probability(x)) + fault.shift
    if np.abs(scores - np.minimum(expected, 1.0)).max() > (NEAR if fault.nudge else export.TOLERANCE):
        raise export.ExportError(f"{fault.version}: golden scores are not those described")
    export.parity(regression, platt, model, {"golden": x})
    in_range = [row | {"tenure": months} for row in base.golden for months in FAULTY_TENURE]
    prove_answer(fault, model, regression, platt, encode(recipe.dictionary, in_range))

    files = {
        "model.onnx": model,
        "baseline.json": base.baseline,
        "golden.json": bundle.golden_json(
            base.golden, scores.tolist(), [uplift(row) for row in base.golden] if graph.uplift else None
        ),
    }
    about = dataclasses.replace(
        recipe,
        version=fault.version,
        title=f"Test article {fault.version}",
        description=f"Made for the tests of the rollout from {BASE}. Differs from {BASE}: {fault.what}.",
        limits=(
            "Not for any decision: a test article.",
            f"Metrics, gates and baseline are copied from {BASE}, not measured.",
        ),
    )
    card = bundle.manifest(
        about,
        training=base.card["training"],
        metrics=base.card["metrics"],
        platt=platt,
        columns=x.shape[1],
        files=files,
    )
    if graph.uplift:
        nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
        card["uplift"] = {
            "output": "uplift",
            "experiment": "none: made up for tests",
            "interventions": [{"action": action, "qini": nothing} for action in UPLIFT],
        }
    card["intended_use"] = "Tests of Mainstay only."
    return {
        f"{NAME}/{fault.version}/{name}": content
        for name, content in ({"manifest.json": bundle.to_json(card)} | files).items()
    }


def prove_answer(fault: Fault, model: bytes, regression: Regression, platt: Platt, x: np.ndarray) -> None:
    """Rows of FAULTY_TENURE, alone, are answered as the fault says."""
    run = runner(model)
    if fault.answer == "score":
        export.parity(regression, platt, model, {"faulty tenure": x})
    elif {answer(run, row) for row in x} != {fault.answer}:
        raise export.ExportError(f"{fault.version}: {MONTHS} do not all give {fault.answer}")


def runner(model: bytes) -> Callable[[np.ndarray], float]:
    """One row to its probability, in one session on one thread, as a lane of the server has it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are expected, and counted
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda row: session.run([export.OUTPUT], {export.INPUT: row[None]})[0][0, 1]


def answer(run: Callable[[np.ndarray], float], row: np.ndarray) -> str | float:
    try:
        probability = run(row)
    except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument:
        return "error"
    return "NaN" if np.isnan(probability) else float(probability)


# --- measurement ----------------------------------------------------------------------------------------------------


def measure(files: dict[str, bytes], models: Path, data: Path, recipe: Recipe) -> None:
    """A line for each bundle: every row of the CSV alone, against 1.2.0 and in time against 1.0.0."""
    x = encode(recipe.dictionary, load(recipe.source, recipe.dictionary, data).rows)

    def read(version: str, name: str) -> bytes:
        made = files.get(f"{NAME}/{version}/{name}")
        return made or (models / NAME / version / name).read_bytes()

    def all_rows(version: str) -> tuple[list, np.ndarray, np.ndarray]:
        """Answers, scores (NaN where there is none) and microseconds."""
        run, answers, times = runner(read(version, "model.onnx")), [], []
        for row in np.nan_to_num(x) if version == BASE else x:  # the dictionary of 1.2.0 has zero for a missing value
            begin = time.perf_counter()
            answers.append(answer(run, row))
            times.append((time.perf_counter() - begin) * 1e6)
        calibration = json.loads(read(version, "manifest.json"))["calibration"]
        probabilities = np.array([np.nan if isinstance(one, str) else one for one in answers])
        return answers, Platt(calibration["a"], calibration["b"]).score(probabilities), np.array(times)

    reference, champion = all_rows(BASE)[1], np.median(all_rows(CHAMPION)[2])
    for version in (BASE, CHAMPION, *(fault.version for fault in FAULTS)):
        answers, scores, times = all_rows(version)
        off = (scores - reference)[np.isfinite(scores)]
        p50, p99 = np.percentile(times, [50, 99])
        print(
            f"{version:14} error {answers.count('error') / len(x):.2%}  NaN {answers.count('NaN') / len(x):.2%}  "
            f"difference min {off.min():+.1e} mean {off.mean():+.1e} max {off.max():+.1e}  "
            f"row p50 {p50:.1f} us p99 {p99:.1f} us, {p50 / champion:.1f} x {CHAMPION}"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="train.faulty", description="Make the faulty bundles of the tests.")
    parser.add_argument("--models", type=Path, required=True, help="directory of the bundles, read only")
    parser.add_argument("--out", type=Path, required=True, help="directory of the faulty bundles")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the bundles in --out differ")
    parser.add_argument("--data", type=Path, help="directory of the CSVs: measure over all rows")
    options = parser.parse_args(arguments)

    recipes = {recipe.version: recipe for recipe in RECIPES if recipe.name == NAME}
    recipe = dataclasses.replace(recipes[BASE], dictionary=recipes[CHAMPION].dictionary)
    base, files = Base.read(options.models), {}
    try:
        with np.errstate(divide="ignore"):  # log-odds of a score that was cut to 1 are infinite, and come back as 1
            for fault in FAULTS:
                files |= build(fault, base, recipe)
    except export.ExportError as error:
        print(f"no bundle written: {error}", file=sys.stderr)
        return 1
    if options.data:
        measure(files, options.models, options.data, recipe)
    return bundle.write_or_check(options.out, files, options.check)


if __name__ == "__main__":
    sys.exit(main())
