//! From an ONNX graph to what can be explained exactly: the forest, or the linear margin, whose log-odds the graph's probability is.
//! Reads TreeEnsembleClassifier, TreeEnsembleRegressor, LinearClassifier and LinearRegressor of `ai.onnx.ml` (versions 1 to 5).
//! TreeEnsemble (version 5) has hit rates for splits only, so there is no telling by them where its leaves' rows came from.

use std::collections::HashMap;

use super::graph::{GraphProto, NodeProto, decode};
use crate::domain::bundle::card::GraphShape;
use crate::domain::forest::{Forest, Node, Split, Step, bound_of_at_most, bound_of_less};
use crate::domain::reason::linear::Linear;

/// `TensorProto.DataType.FLOAT`.
const FLOAT: i64 = 1;
/// Nodes between what adds up and the graph's input or output, at most.
const WAY_MAX: usize = 16;

/// A margin that is a sum.
#[derive(Debug)]
pub enum Additive {
    /// Of leaves.
    Forest(Forest),
    /// Of columns.
    Linear(Linear),
}

impl Additive {
    /// The margin of `row`, in log-odds.
    pub(super) fn margin(&self, row: &[f32]) -> f64 {
        match self {
            Additive::Forest(forest) => forest.margin(row),
            Additive::Linear(linear) => linear.margin(row),
        }
    }
}

/// The margin of the graph in `bytes`, where it is one that adds up. This reads what the operators mean; that it was read rightly is for
/// golden rows to say.
pub(super) fn read(bytes: &[u8], shape: &GraphShape) -> Option<Additive> {
    let graph = decode(bytes)?;
    let mut name = shape.output.as_str();
    let mut sigmoid = false;
    for _ in 0..WAY_MAX {
        let node = graph.node.iter().find(|node| node.output.iter().any(|output| output == name))?;
        let place = node.output.iter().position(|output| output == name)?;
        let attributes = Attributes(node);
        match (node.op_type.as_str(), place) {
            ("Sigmoid", _) if !sigmoid => {
                sigmoid = true;
                name = node.input.first()?;
            }
            ("TreeEnsembleClassifier", 1) | ("TreeEnsembleRegressor", 0) => {
                reads_the_input(&graph, node, shape).then_some(())?;
                return attributes.forest(shape, place == 1, sigmoid).map(Additive::Forest);
            }
            ("LinearClassifier", 1) | ("LinearRegressor", 0) => {
                reads_the_input(&graph, node, shape).then_some(())?;
                return attributes.linear(shape, place == 1, sigmoid).map(Additive::Linear);
            }
            _ => name = unchanged(&graph, node)?,
        }
    }
    None
}

/// The input that `node` passes on as it is.
fn unchanged<'g>(graph: &'g GraphProto, node: &'g NodeProto) -> Option<&'g str> {
    let first = node.input.first()?.as_str();
    match node.op_type.as_str() {
        // Probabilities sum up to 1 already.
        "Identity" | "Normalizer" => Some(first),
        "Cast" => (Attributes(node).int("to") == Some(FLOAT)).then_some(first),
        // LightGBM's converter multiplies by one.
        "Mul" => {
            let is_one = |name: &str| {
                let tensor = graph.initializer.iter().find(|tensor| tensor.name == name);
                tensor.and_then(|tensor| tensor.numbers()).is_some_and(|numbers| numbers == [1.0])
            };
            let second = node.input.get(1)?.as_str();
            if is_one(second) { Some(first) } else { is_one(first).then_some(second) }
        }
        _ => None,
    }
}

/// Whether `node` reads the input of the graph as it is.
fn reads_the_input(graph: &GraphProto, node: &NodeProto, shape: &GraphShape) -> bool {
    let mut name = node.input.first().map(String::as_str);
    for _ in 0..WAY_MAX {
        match name {
            Some(found) if found == shape.input => return true,
            Some(found) => {
                let before = graph.node.iter().find(|node| node.output.iter().any(|output| output == found));
                name = before.filter(|node| node.op_type != "Normalizer").and_then(|node| unchanged(graph, node));
            }
            None => return false,
        }
    }
    false
}

/// How scores become the probability of the column in question: its log-odds are a sum of scores, each with a factor.
enum Link {
    /// One score for two classes.
    Lone(f64),
    /// The score of the column.
    Own,
    /// The score of the column less that of the only other one.
    Difference,
}

impl Link {
    /// The factor of the score at `place`.
    fn factor(&self, place: usize, shape: &GraphShape) -> f64 {
        match self {
            Link::Lone(sign) => *sign,
            Link::Own => f64::from(u8::from(place == shape.output_column)),
            Link::Difference => {
                if place == shape.output_column {
                    1.0
                } else {
                    -1.0
                }
            }
        }
    }
}

struct Attributes<'n>(&'n NodeProto);

impl Attributes<'_> {
    fn find(&self, name: &str) -> Option<&super::graph::AttributeProto> {
        self.0.attribute.iter().find(|attribute| attribute.name == name)
    }

    fn int(&self, name: &str) -> Option<i64> {
        self.find(name).map(|attribute| attribute.i)
    }

    fn text(&self, name: &str) -> &[u8] {
        self.find(name).map_or(b"", |attribute| &attribute.s)
    }

    fn ints(&self, name: &str) -> &[i64] {
        self.find(name).map_or(&[], |attribute| &attribute.ints)
    }

    /// The numbers of an attribute, or of its double of the name `<name>_as_tensor`.
    fn numbers(&self, name: &str) -> Vec<f64> {
        let tensor = self.find(&format!("{name}_as_tensor")).and_then(|attribute| attribute.t.as_ref());
        match tensor.and_then(|tensor| tensor.numbers()) {
            Some(numbers) => numbers,
            None => self.find(name).map_or(Vec::new(), |found| found.floats.iter().map(|f| f64::from(*f)).collect()),
        }
    }

    /// How scores become probabilities. With a lone score for two classes, the second class has the logistic of it.
    fn link(&self, shape: &GraphShape, scores: usize, sigmoid: bool) -> Option<Link> {
        let lone = scores == 1 && shape.output_columns == 2;
        match (self.text("post_transform"), sigmoid) {
            (b"LOGISTIC", false) if lone => Some(Link::Lone(if shape.output_column == 1 { 1.0 } else { -1.0 })),
            (b"LOGISTIC", false) => Some(Link::Own),
            (b"" | b"NONE", true) if !lone => Some(Link::Own),
            (b"SOFTMAX", false) if scores == 2 => Some(Link::Difference),
            _ => None,
        }
    }

    fn linear(&self, shape: &GraphShape, is_classifier: bool, sigmoid: bool) -> Option<Linear> {
        let coefficients = self.numbers("coefficients");
        let mut intercepts = self.numbers("intercepts");
        let scores = coefficients.len().checked_div(shape.columns)?;
        if intercepts.is_empty() {
            intercepts = vec![0.0; scores];
        }
        if scores == 0 || coefficients.len() != scores * shape.columns || intercepts.len() != scores {
            return None;
        }
        if !is_classifier && scores != shape.output_columns {
            return None;
        }
        let link = self.link(shape, scores, sigmoid)?;
        let mut linear = Linear { weights: vec![0.0; shape.columns], intercept: 0.0 };
        for (place, (of_score, intercept)) in coefficients.chunks_exact(shape.columns).zip(&intercepts).enumerate() {
            let factor = link.factor(place, shape);
            linear.intercept += factor * intercept;
            linear.weights.iter_mut().zip(of_score).for_each(|(weight, own)| *weight += factor * own);
        }
        // What is damaged is for ONNX Runtime and the probe to judge, as a forest with such a leaf is.
        let is_finite = linear.weights.iter().chain([&linear.intercept]).all(|number| number.is_finite());
        is_finite.then_some(linear)
    }

    fn forest(&self, shape: &GraphShape, is_classifier: bool, sigmoid: bool) -> Option<Forest> {
        let prefix = if is_classifier { "class" } else { "target" };
        let ints = |name: &str| self.ints(&format!("{prefix}_{name}"));
        let (tree_ids, node_ids, places) = (ints("treeids"), ints("nodeids"), ints("ids"));
        let weights = self.numbers(&format!("{prefix}_weights"));
        let lone = shape.output_columns == 2 && places.iter().all(|place| *place == places[0]);
        let link = self.link(shape, if lone { 1 } else { shape.output_columns }, sigmoid)?;
        let scale = match self.text("aggregate_function") {
            b"" | b"SUM" => 1.0,
            b"AVERAGE" => {
                let mut trees = tree_ids.to_vec();
                trees.sort_unstable();
                trees.dedup();
                1.0 / trees.len() as f64
            }
            _ => return None,
        };
        let bases = self.numbers("base_values");
        let base = match (&link, bases.as_slice()) {
            (Link::Lone(sign), [.., last]) => sign * last,
            (_, bases) => bases.iter().enumerate().map(|(place, base)| link.factor(place, shape) * base).sum(),
        };
        if tree_ids.len() != weights.len() || node_ids.len() != weights.len() || places.len() != weights.len() {
            return None;
        }
        let mut leaves: HashMap<(i64, i64), f64> = HashMap::with_capacity(weights.len());
        for (((tree, node), place), weight) in tree_ids.iter().zip(node_ids).zip(places).zip(&weights) {
            let place = usize::try_from(*place).ok()?;
            *leaves.entry((*tree, *node)).or_default() += scale * link.factor(place, shape) * weight;
        }
        self.grow(shape, base, &leaves)
    }

    /// The trees, with what `leaves` says of each leaf, by tree and node.
    fn grow(&self, shape: &GraphShape, base: f64, leaves: &HashMap<(i64, i64), f64>) -> Option<Forest> {
        let (trees, ids) = (self.ints("nodes_treeids"), self.ints("nodes_nodeids"));
        let (columns, values) = (self.ints("nodes_featureids"), self.numbers("nodes_values"));
        let (yes, no) = (self.ints("nodes_truenodeids"), self.ints("nodes_falsenodeids"));
        let (tracks, covers) = (self.ints("nodes_missing_value_tracks_true"), self.numbers("nodes_hitrates"));
        let modes = self.find("nodes_modes").map_or(&[][..], |attribute| &attribute.strings);
        let count = ids.len();
        if [trees.len(), columns.len(), values.len(), yes.len(), no.len(), modes.len()] != [count; 6] {
            return None;
        }
        let places: HashMap<(i64, i64), usize> = (0..count).map(|at| ((trees[at], ids[at]), at)).collect();
        // What is nobody's child is a root; the law of forests refuses everything else that is wrong.
        let mut is_child = vec![false; count];
        for at in (0..count).filter(|at| modes[*at] != b"LEAF") {
            for child in [yes[at], no[at]] {
                is_child[*places.get(&(trees[at], child))?] = true;
            }
        }
        // Level by level, so that each node stands below its parent.
        let mut order: Vec<usize> = (0..count).filter(|at| !is_child[*at]).collect();
        let roots = (0..order.len() as u32).collect();
        let mut nodes = Vec::with_capacity(count);
        while let Some(at) = order.get(nodes.len()).copied() {
            let cover = covers.get(at).copied().unwrap_or_default();
            let missing_is_true = tracks.get(at).is_some_and(|track| *track == 1);
            let is_below = match modes[at].as_slice() {
                b"LEAF" => {
                    let value = leaves.get(&(trees[at], ids[at])).copied().unwrap_or_default();
                    nodes.push(Node { cover, step: Step::Leaf(value) });
                    continue;
                }
                b"BRANCH_LT" | b"BRANCH_LEQ" => true,
                b"BRANCH_GT" | b"BRANCH_GTE" => false,
                // Equality is no order: no trainer of boosted trees writes it.
                _ => return None,
            };
            let bound = match modes[at].as_slice() {
                b"BRANCH_LT" | b"BRANCH_GTE" => bound_of_less(values[at]),
                _ => bound_of_at_most(values[at]),
            };
            let (below, above) = (order.len() as u32, order.len() as u32 + 1);
            let children = if is_below { [yes[at], no[at]] } else { [no[at], yes[at]] };
            for child in children {
                order.push(*places.get(&(trees[at], child))?);
            }
            if order.len() > count {
                return None;
            }
            let column = u32::try_from(columns[at]).ok()?;
            let split = Split { column, bound, nan_below: missing_is_true == is_below, below, above };
            nodes.push(Node { cover, step: Step::Split(split) });
        }
        Forest::new(shape.columns, base, roots, nodes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::graph::AttributeProto;
    use super::*;
    use crate::domain::reason::shap::Attribution;

    fn shape(output_columns: usize) -> GraphShape {
        let output_column = output_columns - 1;
        GraphShape { input: "input".into(), output: "probabilities".into(), columns: 2, output_column, output_columns }
    }

    fn ints(name: &str, ints: &[i64]) -> AttributeProto {
        AttributeProto { name: name.into(), ints: ints.to_vec(), ..AttributeProto::default() }
    }

    fn floats(name: &str, floats: &[f32]) -> AttributeProto {
        AttributeProto { name: name.into(), floats: floats.to_vec(), ..AttributeProto::default() }
    }

    fn text(name: &str, text: &str) -> AttributeProto {
        AttributeProto { name: name.into(), s: text.into(), ..AttributeProto::default() }
    }

    /// A stump on column 1 at 2 by `mode`: what it is true of goes to a leaf of 10, the rest to one of 20.
    fn stump(mode: &str, missing_is_true: i64, leaves: Vec<AttributeProto>) -> NodeProto {
        let modes = [mode, "LEAF", "LEAF"].map(|mode| mode.as_bytes().to_vec()).to_vec();
        let mut attribute = vec![
            ints("nodes_treeids", &[0, 0, 0]),
            ints("nodes_nodeids", &[0, 1, 2]),
            ints("nodes_featureids", &[1, 0, 0]),
            ints("nodes_truenodeids", &[1, 0, 0]),
            ints("nodes_falsenodeids", &[2, 0, 0]),
            ints("nodes_missing_value_tracks_true", &[missing_is_true, 0, 0]),
            floats("nodes_values", &[2.0, 0.0, 0.0]),
            floats("nodes_hitrates", &[4.0, 1.0, 3.0]),
            AttributeProto { name: "nodes_modes".into(), strings: modes, ..AttributeProto::default() },
        ];
        attribute.extend(leaves);
        NodeProto { attribute, ..NodeProto::default() }
    }

    fn leaves(prefix: &str, post: &str) -> Vec<AttributeProto> {
        vec![
            ints(&format!("{prefix}_treeids"), &[0, 0]),
            ints(&format!("{prefix}_nodeids"), &[1, 2]),
            ints(&format!("{prefix}_ids"), &[0, 0]),
            floats(&format!("{prefix}_weights"), &[10.0, 20.0]),
            floats("base_values", &[1.0]),
            text("post_transform", post),
        ]
    }

    #[test]
    fn every_mode_and_both_tracks_of_a_missing_value() {
        for (mode, at, over) in [
            ("BRANCH_LT", 20.0, 20.0),
            ("BRANCH_LEQ", 10.0, 20.0),
            ("BRANCH_GT", 20.0, 10.0),
            ("BRANCH_GTE", 10.0, 10.0),
        ] {
            for (missing_is_true, missing) in [(0, 20.0), (1, 10.0)] {
                let node = stump(mode, missing_is_true, leaves("class", "LOGISTIC"));
                let forest = Attributes(&node).forest(&shape(2), true, false).expect("a forest");
                let margin = |x: f32| forest.margin(&[0.0, x]) - 1.0;
                assert_eq!((margin(2.0), margin(3.0), margin(f32::NAN)), (at, over, missing), "{mode}");
                assert!(forest.has_covers());
            }
        }
        let node = stump("BRANCH_EQ", 0, leaves("class", "LOGISTIC"));
        assert!(Attributes(&node).forest(&shape(2), true, false).is_none());
    }

    #[test]
    fn a_regressor_needs_a_logistic_and_two_scores_are_a_difference() {
        let forest = |leaves, columns, classifier, sigmoid| {
            Attributes(&stump("BRANCH_LT", 0, leaves)).forest(&shape(columns), classifier, sigmoid)
        };
        assert_eq!(forest(leaves("target", "NONE"), 1, false, true).expect("a forest").margin(&[0.0, 0.0]), 11.0);
        assert!(forest(leaves("target", "NONE"), 1, false, false).is_none());
        assert!(forest(leaves("target", "LOGISTIC"), 1, false, true).is_none());
        let mut two = leaves("class", "SOFTMAX");
        two[2] = ints("class_ids", &[0, 1]);
        two[4] = floats("base_values", &[1.0, 3.0]);
        let forest = forest(two, 2, true, false).expect("a forest");
        assert_eq!((forest.margin(&[0.0, 0.0]), forest.margin(&[0.0, 9.0])), (2.0 - 10.0, 2.0 + 20.0));
    }

    #[test]
    fn linear_scores_of_one_class_or_two() {
        let linear = |coefficients: &[f32], intercepts: &[f32], post| {
            let attribute = vec![
                floats("coefficients", coefficients),
                floats("intercepts", intercepts),
                text("post_transform", post),
            ];
            let node = NodeProto { attribute, ..NodeProto::default() };
            Attributes(&node).linear(&shape(2), true, false).map(|linear| linear.margin(&[1.0, 10.0]))
        };
        assert_eq!(linear(&[1.0, 2.0], &[0.5], "LOGISTIC"), Some(21.5));
        assert_eq!(linear(&[9.0, 9.0, 1.0, 2.0], &[7.0, 0.5], "LOGISTIC"), Some(21.5));
        assert_eq!(linear(&[1.0, 0.0, 1.0, 2.0], &[0.0, 0.5], "SOFTMAX"), Some(20.5));
        assert_eq!(linear(&[1.0], &[0.5], "LOGISTIC"), None);
    }

    /// Real customers stay out of the repository: this runs where the data lies beside it, and says so; `make show-decide` insists.
    /// Synthetic ones are in `tests/it/reasons.rs`.
    #[test]
    fn agrees_with_the_libraries_on_real_customers() {
        let directory = std::path::Path::new("../shared/data/golden");
        let numbers = |line: &str| -> Vec<f64> {
            line.split(',')
                .map(|text| if text.is_empty() { f64::NAN } else { text.parse().expect("a number") })
                .collect()
        };
        for (model, output) in [("telco_xgb", "probabilities"), ("telco_lgb", "probabilities")] {
            let Ok(bytes) = std::fs::read(directory.join(format!("{model}.onnx"))) else {
                return println!("{} is not there: nothing was compared", directory.display());
            };
            let shape = GraphShape { columns: 24, output: output.into(), ..shape(2) };
            let Some(Additive::Forest(forest)) = read(&bytes, &shape) else { panic!("{model} is a forest") };
            let owners: Vec<u16> = (0..24).collect();
            let attribution = Attribution::new(forest, &owners, 24).expect("it has covers");
            assert!(attribution.is_tabulated());
            let text = std::fs::read_to_string(directory.join(format!("{model}_treeshap.csv"))).expect("golden rows");
            let (mut rows, mut worst) = (0, 0.0_f64);
            // row, 24 inputs, prob, margin, bias, 24 contributions
            for line in text.lines().skip(1) {
                let golden = numbers(line);
                let row: Vec<f32> = golden[1..25].iter().map(|value| *value as f32).collect();
                let found = attribution.explain(&row);
                let base = attribution.base();
                let sum = base + found.iter().sum::<f64>();
                let pairs = found.iter().zip(&golden[28..]).chain([(&sum, &golden[26]), (&base, &golden[27])]);
                worst = pairs.map(|(found, expected)| (found - expected).abs()).fold(worst, f64::max);
                rows += 1;
            }
            println!("{model}: {rows} rows, greatest difference {worst:.1e}");
            assert!(rows == 220 && worst <= 1e-5);
        }
    }
}
