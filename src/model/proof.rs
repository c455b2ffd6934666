//! The proof that the native evaluator is ONNX Runtime's equal on one bundle: both score the same rows, chosen so that every leaf is
//! reached where that can be, by values on the bounds of its splits and one unit in the last place beside them.

use std::fmt;

use fastrand::Rng;

use super::lanes::Lanes;
use super::trees::Additive;
use super::Bundle;
use crate::domain::bundle::baseline::{Baseline, Histogram};
use crate::domain::bundle::feature::{Feature, Missing, Range};
use crate::domain::evaluator::Evaluator;
use crate::domain::forest::{Forest, Step};
use crate::domain::score::Platt;

/// The greatest distance of two scores that are called equal, in calibrated probability.
const TOLERANCE: f64 = 1e-6;
/// Rows drawn from the baseline, and how many more of them with missing values.
const DRAWN: usize = 256;
/// Rows that reach leaves not reached before: at most, and at least. Between them so many that all trees are walked this often.
const REACHING_MAX: usize = 2_048;
const REACHING_MIN: usize = 128;
const WALKS_MAX: usize = 1 << 20;
/// Rows of one run.
const RUN: usize = 512;
const SEED: u64 = 42;

/// What the proof has shown.
pub(super) struct Proof {
    rows: usize,
    difference_max: f64,
    /// Leaves that a row has reached, and all of them.
    leaves: Option<(usize, usize)>,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, difference_max, leaves } = self;
        write!(f, "within {difference_max:.1e} of ONNX Runtime on {rows} rows, on thresholds and with missing values among them")?;
        match leaves {
            Some((reached, all)) => write!(f, ", which reach {reached} of {all} leaves"),
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
    let (rows, leaves) = rows(bundle, read);
    let mut difference_max = 0.0_f64;
    for (run, rows) in rows.chunks(RUN * columns).enumerate() {
        let (mut reference, mut together) = (Vec::with_capacity(RUN), Vec::with_capacity(RUN));
        lanes.run(rows, |p| reference.push(p)).map_err(|error| format!("ONNX Runtime cannot say what is right: {error}"))?;
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
    Ok(Proof { rows: rows.len() / columns, difference_max, leaves })
}

/// The rows of the proof, and how many leaves of how many they reach.
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
    let mut reached = vec![false; forest.nodes().len()];
    rows.chunks_exact(columns).for_each(|row| mark(forest, row, &mut reached));
    let parents = parents(forest);
    let mut left = (WALKS_MAX / forest.roots().len().max(1)).clamp(REACHING_MIN, REACHING_MAX);
    let leaves = || (0..forest.nodes().len()).filter(|at| matches!(forest.nodes()[*at].step, Step::Leaf(_)));
    for leaf in leaves() {
        if reached[leaf] || left == 0 {
            continue;
        }
        left -= 1;
        draw(&mut random, &bundle.card.features, &bundle.baseline, &mut row);
        reach(forest, &parents, leaf, &mut random, &mut row);
        mark(forest, &row, &mut reached);
        rows.extend(&row);
    }
    let counts = (leaves().filter(|leaf| reached[*leaf]).count(), leaves().count());
    (rows, Some(counts))
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

/// The parent of each node; a root is its own.
fn parents(forest: &Forest) -> Vec<u32> {
    let mut parents: Vec<u32> = (0..forest.nodes().len() as u32).collect();
    for (at, node) in forest.nodes().iter().enumerate() {
        if let Step::Split(split) = node.step {
            parents[split.below as usize] = at as u32;
            parents[split.above as usize] = at as u32;
        }
    }
    parents
}

/// Marks the nodes that `row` comes to.
fn mark(forest: &Forest, row: &[f32], reached: &mut [bool]) {
    for root in forest.roots() {
        let mut at = *root;
        reached[at as usize] = true;
        while let Step::Split(split) = forest.node(at).step {
            at = split.next(row[split.column as usize]);
            reached[at as usize] = true;
        }
    }
}

/// Changes `row` so that it comes to `leaf`, by values next to the ends of what is let through, or missing ones.
fn reach(forest: &Forest, parents: &[u32], leaf: usize, random: &mut Rng, row: &mut [f32]) {
    let mut path = Vec::new();
    let mut at = leaf as u32;
    while parents[at as usize] != at {
        let child = at;
        at = parents[at as usize];
        if let Step::Split(split) = forest.node(at).step {
            path.push((split, split.below == child));
        }
    }
    for (of_column, _) in &path {
        let same = || path.iter().filter(|(split, _)| split.column == of_column.column);
        // What is let through: `low <= value`, and `value < high`.
        let low = same().filter(|(_, below)| !below).map(|(split, _)| split.bound).fold(f32::NEG_INFINITY, f32::max);
        let high = same().filter(|(_, below)| *below).map(|(split, _)| split.bound).fold(f32::NAN, f32::min);
        let mut values = vec![high.next_down(), low, low.next_up()];
        values.retain(|value| value.is_finite() && *value >= low && !(*value >= high));
        if same().all(|(split, below)| split.nan_below == *below) && (values.is_empty() || random.u8(..8) == 0) {
            values = vec![f32::NAN];
        }
        if let Some(value) = random.choice(values) {
            row[of_column.column as usize] = value;
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
            let begun = std::time::Instant::now();
            let read = trees::read(&real.bundle.graph, &real.bundle.card.graph).expect("a sum");
            let is_forest = matches!(read, Additive::Forest(_));
            let proof = real.prove(read).unwrap_or_else(|reason| panic!("{name}: {reason}"));
            eprintln!("{name}: {proof} {:?}", begun.elapsed());
            if is_forest {
                assert_eq!(proof.difference_max, 0.0, "{name}: {proof}");
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
        refused("at most for less", altered(forest, |nodes| alter_splits(nodes, |split| split.bound = split.bound.next_up())));
        refused("a missing value's way", altered(forest, |nodes| alter_splits(nodes, |split| split.nan_below ^= true)));
        // One node alone, here and there.
        let places = |wanted: fn(&Step) -> bool| {
            let all: Vec<usize> = (0..forest.nodes().len()).filter(|at| wanted(&forest.nodes()[*at].step)).collect();
            (0..4).map(|part| all[all.len() * (2 * part + 1) / 8]).collect::<Vec<_>>()
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
            refused("a bound", altered(forest, |nodes| alter_splits(&mut nodes[at..=at], |split| split.bound = split.bound.next_down())));
            refused("a missing value's way", altered(forest, |nodes| alter_splits(&mut nodes[at..=at], |split| split.nan_below ^= true)));
        }
    }
}
