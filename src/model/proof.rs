//! The proof that the native evaluator is ONNX Runtime's equal on one bundle: both score the same rows, chosen so that every leaf is
//! reached, and every split with a value on its bound, with the next one below it and with none, where that can be.

use std::fmt;

use fastrand::Rng;

use super::Bundle;
use super::lanes::Lanes;
use super::trees::Additive;
use crate::domain::bundle::baseline::{Baseline, Histogram};
use crate::domain::bundle::feature::{Feature, Missing, Range};
use crate::domain::evaluator::Evaluator;
use crate::domain::forest::{Forest, Step};
use crate::domain::score::Platt;

/// The greatest distance of two scores that are called equal, in calibrated probability.
const TOLERANCE: f64 = 1e-6;
/// Rows drawn from the baseline, and how many more of them with missing values.
const DRAWN: usize = 128;
/// Rows that go where none has gone before: at most, and at least. Between them so many that all trees are walked this often.
const SEEKING_MAX: usize = 1_024;
const SEEKING_MIN: usize = 64;
const WALKS_MAX: usize = 1 << 19;
/// Rows of one run.
const RUN: usize = 512;
const SEED: u64 = 42;

/// What the proof has shown.
pub(super) struct Proof {
    rows: usize,
    difference_max: f64,
    /// Of a forest: how many of its leaves and of the ways on at its splits (on the bound, next below it, missing) were taken, and all.
    ways: Option<(usize, usize)>,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, difference_max, ways } = self;
        write!(f, "within {difference_max:.1e} of ONNX Runtime on {rows} rows")?;
        match ways {
            Some((taken, all)) => {
                write!(f, ", which take {taken} of {all} ways at thresholds, beside them and for missing values")
            }
            None => Ok(()),
        }
    }
}

/// Holds `native`, which was made from `read`, against ONNX Runtime, alone and in batches. Errors: why it may not serve.
pub(super) fn prove(
    bundle: &Bundle,
    read: &Additive,
    native: &Evaluator,
    lanes: &Lanes,
    platt: Platt,
) -> Result<Proof, String> {
    let columns = bundle.schema.columns();
    let (rows, ways) = rows(bundle, read);
    let mut difference_max = 0.0_f64;
    for (run, rows) in rows.chunks(RUN * columns).enumerate() {
        let (mut reference, mut together) = (Vec::with_capacity(RUN), Vec::with_capacity(RUN));
        lanes
            .run(rows, |p| reference.push(p))
            .map_err(|error| format!("ONNX Runtime cannot say what is right: {error}"))?;
        native.probabilities(rows, |p| together.push(p));
        for (at, row) in rows.chunks_exact(columns).enumerate() {
            let expected = platt.calibrate(reference[at]);
            for (how, found) in [("alone", native.probability(row)), ("in a batch", together[at])] {
                let difference = match (platt.calibrate(found), expected) {
                    (Some(found), Some(expected)) => (found.value() - expected.value()).abs(),
                    // Neither is a probability: a customer is refused by both.
                    (None, None) => 0.0,
                    _ => f64::INFINITY,
                };
                difference_max = difference_max.max(difference);
                if difference > TOLERANCE {
                    let row = run * RUN + at;
                    return Err(format!(
                        "the native evaluator differs by {difference:.1e} from ONNX Runtime on row {row} of the proof, {how}"
                    ));
                }
            }
        }
    }
    Ok(Proof { rows: rows.len() / columns, difference_max, ways })
}

/// The rows of the proof, and how many ways of how many they take.
fn rows(bundle: &Bundle, read: &Additive) -> (Vec<f32>, Option<(usize, usize)>) {
    let columns = bundle.schema.columns();
    let mut random = Rng::with_seed(SEED);
    let mut rows = bundle.golden_vectors.clone();
    for value in [0.0, -0.0, f32::NAN] {
        rows.extend(vec![value; columns]);
    }
    let mut row = vec![0.0; columns];
    for with_missing in [false, true] {
        for at in 0..DRAWN {
            draw(&mut random, &bundle.card.features, &bundle.baseline, &mut row);
            // By turns where the dictionary allows it, which is what customers send, and anywhere.
            for (feature, span) in bundle.card.features.iter().zip(bundle.schema.spans()) {
                if with_missing && (feature.missing == Missing::Nan || at % 2 == 0) && random.u8(..4) == 0 {
                    row[span].fill(f32::NAN);
                }
            }
            rows.extend(&row);
        }
    }
    let Additive::Forest(forest) = read else { return (rows, None) };
    let mut ways = Ways::new(forest);
    rows.chunks_exact(columns).for_each(|row| ways.take(row));
    let mut left = (WALKS_MAX / forest.roots().len().max(1)).clamp(SEEKING_MIN, SEEKING_MAX);
    // Where a way cannot be taken, the row is as good as any other.
    for at in 0..forest.nodes().len() {
        for way in all_ways(&forest.nodes()[at].step).iter().copied() {
            if left > 0 && ways.taken[at] & way == 0 {
                left -= 1;
                draw(&mut random, &bundle.card.features, &bundle.baseline, &mut row);
                ways.seek(at, way, &mut random, &mut row);
                ways.take(&row);
                rows.extend(&row);
            }
        }
    }
    let all = forest.nodes().iter().map(|node| all_ways(&node.step).len()).sum();
    (rows, Some((ways.taken.iter().map(|taken| taken.count_ones() as usize).sum(), all)))
}

/// Ways on at a split: by a value on its bound, by the next one below that, by a missing one. A leaf is one way.
const ON: u8 = 1;
const NEXT_BELOW: u8 = 2;
const MISSING: u8 = 4;

fn all_ways(step: &Step) -> &'static [u8] {
    match step {
        Step::Leaf(_) => &[ON],
        Step::Split(_) => &[ON, NEXT_BELOW, MISSING],
    }
}

/// Which ways rows have taken.
struct Ways<'f> {
    forest: &'f Forest,
    /// The parent of each node; a root is its own.
    parents: Vec<u32>,
    /// The bounds of each column.
    bounds: Vec<Vec<f32>>,
    taken: Vec<u8>,
}

impl<'f> Ways<'f> {
    fn new(forest: &'f Forest) -> Self {
        let nodes = forest.nodes();
        let mut parents: Vec<u32> = (0..nodes.len() as u32).collect();
        let mut bounds = vec![Vec::new(); forest.columns()];
        for (at, node) in nodes.iter().enumerate() {
            if let Step::Split(split) = node.step {
                parents[split.below as usize] = at as u32;
                parents[split.above as usize] = at as u32;
                bounds[split.column as usize].push(split.bound);
            }
        }
        Self { forest, parents, bounds, taken: vec![0; nodes.len()] }
    }

    /// Notes the ways of `row`.
    fn take(&mut self, row: &[f32]) {
        for root in self.forest.roots() {
            let mut at = *root;
            while let Step::Split(split) = self.forest.node(at).step {
                let value = row[split.column as usize];
                self.taken[at as usize] |= match value {
                    value if value == split.bound => ON,
                    value if value == split.bound.next_down() => NEXT_BELOW,
                    value if value.is_nan() => MISSING,
                    _ => 0,
                };
                at = split.next(value);
            }
            self.taken[at as usize] |= ON;
        }
    }

    /// Changes `row` so that it takes `way` at the node `at`, where that can be, and comes on bounds elsewhere.
    fn seek(&self, at: usize, way: u8, random: &mut Rng, row: &mut [f32]) {
        let beside = |bound: f32, random: &mut Rng| if random.bool() { bound } else { bound.next_down() };
        for (value, bounds) in row.iter_mut().zip(&self.bounds) {
            match random.u8(..8) {
                0 => *value = f32::NAN,
                1 => {}
                _ => {
                    if let Some(bound) = random.choice(bounds) {
                        *value = beside(*bound, random);
                    }
                }
            }
        }
        let mut path = Vec::new();
        let mut child = at as u32;
        while self.parents[child as usize] != child {
            let parent = self.parents[child as usize];
            if let Step::Split(split) = self.forest.node(parent).step {
                path.push((split, split.below == child));
            }
            child = parent;
        }
        for (of_column, _) in &path {
            let same = || path.iter().filter(|(split, _)| split.column == of_column.column);
            // What is let through: `low <= value`, and `value < high`.
            let low =
                same().filter(|(_, below)| !below).map(|(split, _)| split.bound).fold(f32::NEG_INFINITY, f32::max);
            let high = same().filter(|(_, below)| *below).map(|(split, _)| split.bound).fold(f32::NAN, f32::min);
            let value = &mut row[of_column.column as usize];
            let may_miss = same().all(|(split, below)| split.nan_below == *below);
            // What stands there already may do.
            let passes =
                |value: f32| if value.is_nan() { may_miss } else { value >= low && (high.is_nan() || value < high) };
            if !passes(*value) {
                let values = [high.next_down(), low, f32::NAN].into_iter().filter(|value| passes(*value));
                *value = random.choice(values.collect::<Vec<_>>()).unwrap_or(*value);
            }
        }
        if let Step::Split(split) = self.forest.nodes()[at].step {
            row[split.column as usize] = match way {
                ON => split.bound,
                NEXT_BELOW => split.bound.next_down(),
                _ => f32::NAN,
            };
        }
    }
}

/// Draws a customer: every feature by itself, each bin and each category as likely as any other, so that the rare ones come too.
fn draw(random: &mut Rng, dictionary: &[Feature], baseline: &Baseline, row: &mut [f32]) {
    let mut rest = row;
    for feature in dictionary {
        let (here, behind) = rest.split_at_mut(feature.width());
        rest = behind;
        match (baseline.features.get(&feature.name), &feature.categories) {
            (_, Some(categories)) => {
                let chosen = random.usize(..categories.len().max(1));
                categories.values().nth(chosen).into_iter().for_each(|columns| here.copy_from_slice(columns));
            }
            (Some(Histogram::Number(numbers)), None) => {
                let Range { min, max } = feature.range.unwrap_or(Range { min: 0.0, max: 1.0 });
                let bin = random.usize(..=numbers.edges.len());
                let low = if bin == 0 { min } else { numbers.edges[bin - 1] };
                let high = numbers.edges.get(bin).copied().unwrap_or(max);
                here.fill((low + random.f64() * (high - low)) as f32);
            }
            _ => here.fill(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::session::{Lane, Runtime};
    use super::super::trees;
    use super::*;
    use crate::domain::bundle::card::GraphShape;
    use crate::domain::compiled::Compiled;
    use crate::domain::forest::{Node, Split};

    const BUNDLES: [&str; 4] = ["telco-churn/1.0.0", "telco-churn/1.1.0", "telco-churn/1.2.0", "mlc-churn/1.0.0"];

    struct Real {
        bundle: Bundle,
        read: Additive,
        lanes: Lanes,
        platt: Platt,
    }

    fn real(name: &str) -> Real {
        let runtime = Runtime::load(Path::new("target/onnxruntime/libonnxruntime.so")).expect("ONNX Runtime");
        let bundle = Bundle::open(&Path::new("models").join(name)).expect("a bundle");
        let read = trees::read(&bundle.graph, &bundle.card.graph).expect("a sum");
        let lanes = Lanes::new(runtime, &bundle, &bundle.card.graph).expect("a lane");
        let platt = Platt { a: bundle.card.calibration.a, b: bundle.card.calibration.b };
        Real { bundle, read, lanes, platt }
    }

    impl Real {
        /// The proof of what the graph would be compiled to, were it read as `read`.
        fn prove(&self, read: Additive) -> Result<Proof, String> {
            let native = match &read {
                Additive::Forest(forest) => Evaluator::Forest(Compiled::new(forest).expect("it can be compiled")),
                Additive::Linear(linear) => Evaluator::Linear(linear.clone()),
            };
            prove(&self.bundle, &read, &native, &self.lanes, self.platt)
        }
    }

    #[test]
    fn every_bundle_is_equal_and_a_forest_to_the_bit() {
        for name in BUNDLES {
            let real = real(name);
            let read = trees::read(&real.bundle.graph, &real.bundle.card.graph).expect("a sum");
            let is_forest = matches!(read, Additive::Forest(_));
            let proof = real.prove(read).unwrap_or_else(|reason| panic!("{name}: {reason}"));

            if is_forest {
                assert_eq!(proof.difference_max, 0.0, "{name}: {proof}");
                // Some cannot be taken: an earlier split on the same column has sent them elsewhere.
                let (taken, all) = proof.ways.expect("a forest");
                assert!(taken as f64 >= 0.8 * all as f64, "{name}: {proof}");
            }
        }
    }

    /// A forest that was read wrongly in one place.
    fn altered(forest: &Forest, alter: impl FnOnce(&mut Vec<Node>)) -> Additive {
        let mut nodes = forest.nodes().to_vec();
        alter(&mut nodes);
        let forest = Forest::new(forest.columns(), forest.base(), forest.roots().to_vec(), nodes);
        Additive::Forest(forest.expect("a legal forest"))
    }

    fn alter_splits(nodes: &mut [Node], alter: impl Fn(&mut Split)) {
        for node in nodes {
            if let Step::Split(split) = &mut node.step {
                alter(split);
            }
        }
    }

    #[test]
    fn what_was_read_wrongly_may_not_serve() {
        let real = real("telco-churn/1.0.0");
        let Additive::Forest(forest) = &real.read else { panic!("it is a forest") };
        let refused = |what: &str, read: Additive| match real.prove(read) {
            Ok(proof) => panic!("{what} was not seen: {proof}"),
            Err(reason) => assert!(reason.contains("differs by"), "{what}: {reason}"),
        };
        refused(
            "at most for less",
            altered(forest, |nodes| alter_splits(nodes, |split| split.bound = split.bound.next_up())),
        );
        refused("a missing value's way", altered(forest, |nodes| alter_splits(nodes, |split| split.nan_below ^= true)));
        // One node alone, here and there.
        let places = |wanted: fn(&Step) -> bool| {
            let all: Vec<usize> = (0..forest.nodes().len()).filter(|at| wanted(&forest.nodes()[*at].step)).collect();
            (0..2).map(|part| all[all.len() * (2 * part + 1) / 4]).collect::<Vec<_>>()
        };
        for at in places(|step| matches!(step, Step::Leaf(_))) {
            let by = |step: &mut Step| {
                if let Step::Leaf(value) = step {
                    *value += 1e-3;
                }
            };
            refused("a leaf", altered(forest, |nodes| by(&mut nodes[at].step)));
        }
        for at in places(|step| matches!(step, Step::Split(_))) {
            refused(
                "a bound",
                altered(forest, |nodes| {
                    alter_splits(&mut nodes[at..=at], |split| split.bound = split.bound.next_down())
                }),
            );
            refused(
                "a missing value's way",
                altered(forest, |nodes| alter_splits(&mut nodes[at..=at], |split| split.nan_below ^= true)),
            );
        }
    }

    /// Just enough protobuf to write a graph.
    mod onnx {
        use crate::domain::forest::{Forest, Step};

        fn varint(out: &mut Vec<u8>, mut value: u64) {
            while value > 127 {
                out.push(value as u8 | 128);
                value >>= 7;
            }
            out.push(value as u8);
        }

        fn int(tag: u64, value: u64) -> Vec<u8> {
            let mut out = Vec::new();
            varint(&mut out, tag << 3);
            varint(&mut out, value);
            out
        }

        fn bytes(tag: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
            let mut out = Vec::new();
            varint(&mut out, tag << 3 | 2);
            varint(&mut out, value.as_ref().len() as u64);
            out.extend(value.as_ref());
            out
        }

        fn attribute(name: &str, kind: u64, values: Vec<u8>) -> Vec<u8> {
            bytes(5, [bytes(1, name), int(20, kind), values].concat())
        }

        fn ints(name: &str, values: impl Iterator<Item = u64>) -> Vec<u8> {
            attribute(name, 7, values.flat_map(|value| int(8, value)).collect())
        }

        fn floats(name: &str, values: impl Iterator<Item = f32>) -> Vec<u8> {
            attribute(name, 6, bytes(7, values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>()))
        }

        fn tensor(tag: u64, name: &str, element: u64, columns: Option<u64>) -> Vec<u8> {
            let dims =
                [bytes(1, bytes(2, "N")), columns.map_or(Vec::new(), |columns| bytes(1, int(1, columns)))].concat();
            bytes(tag, [bytes(1, name), bytes(2, bytes(1, [int(1, element), bytes(2, dims)].concat()))].concat())
        }

        /// A classifier of two classes whose second one's log-odds `forest` gives.
        pub(super) fn classifier(forest: &Forest) -> Vec<u8> {
            // The tree of each node: nodes stand below their parents.
            let mut trees = vec![0_u64; forest.nodes().len()];
            for (tree, root) in forest.roots().iter().enumerate() {
                trees[*root as usize] = tree as u64;
            }
            for at in 0..trees.len() {
                if let Step::Split(split) = forest.nodes()[at].step {
                    trees[split.below as usize] = trees[at];
                    trees[split.above as usize] = trees[at];
                }
            }
            let splits = || {
                forest.nodes().iter().map(|node| if let Step::Split(split) = node.step { Some(split) } else { None })
            };
            let leaves = || {
                forest.nodes().iter().enumerate().filter_map(|(at, node)| {
                    if let Step::Leaf(value) = node.step { Some((at, value as f32)) } else { None }
                })
            };
            let modes =
                splits().flat_map(|split| bytes(9, if split.is_some() { "BRANCH_LT" } else { "LEAF" })).collect();
            let node = [
                bytes(1, "input"),
                bytes(2, "label"),
                bytes(2, "probabilities"),
                bytes(4, "TreeEnsembleClassifier"),
                bytes(7, "ai.onnx.ml"),
                ints("nodes_treeids", trees.iter().copied()),
                ints("nodes_nodeids", 0..trees.len() as u64),
                ints("nodes_featureids", splits().map(|split| split.map_or(0, |split| split.column.into()))),
                ints("nodes_truenodeids", splits().map(|split| split.map_or(0, |split| split.below.into()))),
                ints("nodes_falsenodeids", splits().map(|split| split.map_or(0, |split| split.above.into()))),
                ints(
                    "nodes_missing_value_tracks_true",
                    splits().map(|split| split.is_some_and(|split| split.nan_below).into()),
                ),
                floats("nodes_values", splits().map(|split| split.map_or(0.0, |split| split.bound))),
                attribute("nodes_modes", 8, modes),
                ints("class_treeids", leaves().map(|(at, _)| trees[at])),
                ints("class_nodeids", leaves().map(|(at, _)| at as u64)),
                ints("class_ids", leaves().map(|_| 0)),
                floats("class_weights", leaves().map(|(_, value)| value)),
                floats("base_values", [forest.base() as f32].into_iter()),
                ints("classlabels_int64s", 0..2),
                attribute("post_transform", 3, bytes(4, "LOGISTIC")),
            ];
            let graph = [
                bytes(1, node.concat()),
                bytes(2, "forest"),
                tensor(11, "input", 1, Some(forest.columns() as u64)),
                tensor(12, "label", 7, None),
                tensor(12, "probabilities", 1, Some(2)),
            ];
            let set = |domain, version| bytes(8, [bytes(1, domain), int(2, version)].concat());
            [int(1, 8), bytes(7, graph.concat()), set("", 17), set("ai.onnx.ml", 3)].concat()
        }
    }

    fn grow(random: &mut Rng, columns: u32, depth: u32, nodes: &mut Vec<Node>) -> u32 {
        let at = nodes.len() as u32;
        nodes.push(Node { cover: 0.0, step: Step::Leaf(f64::from(random.f32() - 0.5)) });
        if depth > 0 && random.u8(..6) > 0 {
            let below = grow(random, columns, depth - 1, nodes);
            let above = grow(random, columns, depth - 1, nodes);
            let bound = f32::from(random.i8(-4..5)) / 3.0;
            let (column, nan_below) = (random.u32(..columns), random.bool());
            nodes[at as usize].step = Step::Split(Split { column, bound, nan_below, below, above });
        }
        at
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

        /// The walk, the compiled form and ONNX Runtime are one, for any forest: on bounds, beside them, at both ends and without a value.
        #[test]
        fn any_forest_is_evaluated_as_onnx_runtime_does(seed in proptest::prelude::any::<u64>(), trees in 1_usize..40, columns in 1_u32..9, depth in 0_u32..7) {
            let mut random = Rng::with_seed(seed);
            let mut nodes = Vec::new();
            let mut roots: Vec<u32> = (0..trees).map(|_| grow(&mut random, columns, depth, &mut nodes)).collect();
            // Where no leaf is below 0, ONNX Runtime takes the sum as a probability.
            roots.push(nodes.len() as u32);
            nodes.push(Node { cover: 0.0, step: Step::Leaf(-0.25) });
            let forest = Forest::new(columns as usize, 0.125, roots, nodes).expect("a legal forest");
            let graph = onnx::classifier(&forest);
            let (output_column, output_columns) = (1, 2);
            let shape = GraphShape { input: "input".into(), output: "probabilities".into(), columns: forest.columns(), output_column, output_columns };
            let runtime = Runtime::load(Path::new("target/onnxruntime/libonnxruntime.so")).expect("ONNX Runtime");
            let mut lane = Lane::new(runtime, &graph, &shape).expect("a lane");
            let Some(Additive::Forest(read)) = trees::read(&graph, &shape) else { panic!("it is a forest") };
            let native = Evaluator::Forest(Compiled::new(&read).expect("it can be compiled"));
            let value = |random: &mut Rng| {
                let bound = f32::from(random.i8(-4..5)) / 3.0;
                let others = [bound, bound.next_down(), bound.next_up(), f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
                if random.bool() { bound } else { random.choice(others).unwrap_or(bound) }
            };
            let rows: Vec<f32> = (0..40 * columns).map(|_| value(&mut random)).collect();
            let (mut reference, mut together) = (Vec::new(), Vec::new());
            lane.run(&rows, |p| reference.push(p)).expect("a run");
            native.probabilities(&rows, |p| together.push(p));
            for (at, row) in rows.chunks_exact(columns as usize).enumerate() {
                proptest::prop_assert_eq!(native.probability(row).to_bits(), reference[at].to_bits());
                proptest::prop_assert_eq!(together[at].to_bits(), reference[at].to_bits());
                let walked = 1.0 / (1.0 + (-forest.margin(row)).exp());
                proptest::prop_assert!((walked - f64::from(reference[at])).abs() < 1e-6);
            }
        }
    }
}
