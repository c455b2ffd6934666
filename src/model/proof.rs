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
            let passes = |value: f32| if value.is_nan() { may_miss } else { value >= low && !(value >= high) };
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

    use super::super::session::Runtime;
    use super::super::trees;
    use super::*;
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
        let lanes = Lanes::new(runtime, &bundle).expect("a lane");
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
}
