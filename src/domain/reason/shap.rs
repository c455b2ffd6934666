//! Exact path-dependent SHAP values of a forest (Lundberg et al., "From local explanations to global understanding with
//! explainable AI for trees", 2020): what each feature adds to this margin, where a feature that is not known is averaged over
//! the training data by the covers. Summed up they are `margin - base`. Forests of ordinary size are answered from `shap_tables`.

use super::shap_tables::Tables;
use crate::domain::forest::{Forest, Split, Step};

/// The most players of one leaf: the columns on a path, at most one for each split.
pub(super) const PLAYERS_MAX: usize = crate::domain::forest::DEPTH_MAX;
/// Points of the quadrature that is exact for that many players.
const POINTS_MAX: usize = PLAYERS_MAX / 2;

/// What explains the margins of one forest.
#[derive(Debug)]
pub struct Attribution {
    forest: Forest,
    /// The feature that each column belongs to.
    owners: Box<[u16]>,
    features: usize,
    base: f64,
    tables: Option<Tables>,
}

/// A leaf as a game: each column on its path is a player, who is `in` where its value is known.
///
/// The value of a coalition S is `value * prod(follows, of S) * prod(share, of the others)`.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    pub(super) value: f64,
    pub(super) players: Vec<Player>,
}

/// A column on the path to a leaf, all of its splits on that path taken together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Player {
    pub(super) column: u32,
    /// The share of the training data that these splits let through to the leaf, by the covers.
    pub(super) share: f64,
    /// What follows the path: `low <= x`, and `x < high` where that is no NaN.
    pub(super) low: f32,
    pub(super) high: f32,
    /// Whether a missing value follows.
    pub(super) nan: bool,
}

impl Player {
    /// Narrows to what goes from `split` to its node below, or above.
    fn narrow(&mut self, split: &Split, below: bool, ratio: f64) {
        self.share *= ratio;
        if below {
            self.high = self.high.min(split.bound);
        } else {
            self.low = self.low.max(split.bound);
        }
        self.nan &= split.nan_below == below;
    }
}

impl Attribution {
    /// Explains `forest`, the contributions of each column summed up to its feature: `owners` gives the feature of each column,
    /// below `features`. `None` where the forest has no covers to average by.
    pub fn new(forest: Forest, owners: &[u16], features: usize) -> Option<Self> {
        let fits = owners.len() == forest.columns() && owners.iter().all(|owner| usize::from(*owner) < features);
        if !fits || !forest.has_covers() {
            return None;
        }
        let mut leaves = Vec::new();
        for root in forest.roots() {
            collect(&forest, *root, &mut Vec::new(), &mut leaves);
        }
        let expected = |leaf: &Leaf| leaf.value * leaf.players.iter().map(|player| player.share).product::<f64>();
        let base = forest.base() + leaves.iter().map(expected).sum::<f64>();
        let tables = Tables::new(&leaves, owners);
        Some(Self { forest, owners: owners.into(), features, base, tables })
    }

    /// The margin of a customer of whom nothing is known.
    pub fn base(&self) -> f64 {
        self.base
    }

    /// The forest.
    pub fn forest(&self) -> &Forest {
        &self.forest
    }

    /// Whether answers come from tables: a few microseconds a row, and else some milliseconds for a forest of great size.
    pub fn is_tabulated(&self) -> bool {
        self.tables.is_some()
    }

    /// The contribution of each feature to the margin of `row`, in the unit of the leaves.
    pub fn explain(&self, row: &[f32]) -> Vec<f64> {
        assert_eq!(row.len(), self.forest.columns(), "the row has a place for every column");
        let mut out = vec![0.0; self.features];
        match &self.tables {
            Some(tables) => tables.explain(row, &mut out),
            None => self.walk(row, &mut out),
        }
        out
    }

    /// The same without tables, in time linear in the number of nodes.
    ///
    /// A Shapley value is the integral of the multilinear extension (Owen, 1972): the leaf's term for player j is
    /// `value * (follows_j - share_j) * integral over t in 0..1 of prod over k != j of (share_k + t * (follows_k - share_k))`, a
    /// polynomial in t, so Gauss-Legendre with half as many points as players is exact, and every factor is over 0 at each point.
    /// The walk carries the product down and the sum over the leaves up, as Linear TreeSHAP (Yu et al., arXiv 2209.08192) does
    /// with polynomials, but with nothing to interpolate.
    fn walk(&self, row: &[f32], out: &mut [f64]) {
        let mut depths = vec![0_usize; self.forest.nodes().len()];
        let mut deepest = 0;
        for (at, node) in self.forest.nodes().iter().enumerate() {
            if let Step::Split(split) = node.step {
                depths[split.below as usize] = depths[at] + 1;
                depths[split.above as usize] = depths[at] + 1;
                deepest = deepest.max(depths[at] + 1);
            }
        }
        let (points, weights) = gauss_legendre(deepest.min(self.forest.columns()).div_ceil(2));
        let mut walk = Walk { forest: &self.forest, row, points, weights, known: vec![(1.0, 1.0); row.len()], out };
        for root in self.forest.roots() {
            walk.go(*root, &[1.0; POINTS_MAX], &self.owners);
        }
    }
}

struct Walk<'w> {
    forest: &'w Forest,
    row: &'w [f32],
    points: Vec<f64>,
    weights: Vec<f64>,
    /// Of each column: the share that the splits so far let through, and whether the row follows (1 or 0).
    known: Vec<(f64, f64)>,
    out: &'w mut [f64],
}

impl Walk<'_> {
    /// Adds the contributions of everything below the node at `at`; `product` is that of the factors on the way there, at each
    /// point. Gives the sum of the leaves' values, each times its product.
    fn go(&mut self, at: u32, product: &[f64; POINTS_MAX], owners: &[u16]) -> [f64; POINTS_MAX] {
        let node = self.forest.node(at);
        let split = match node.step {
            Step::Leaf(value) => return product.map(|product| product * value),
            Step::Split(split) => split,
        };
        let column = split.column as usize;
        let (share, follows) = self.known[column];
        let next = split.next(self.row[column]);
        let mut total = [0.0; POINTS_MAX];
        for child in [split.below, split.above] {
            let share_here = share * self.forest.node(child).cover / node.cover;
            let follows_here = if child == next { follows } else { 0.0 };
            self.known[column] = (share_here, follows_here);
            let mut down = *product;
            for (down, t) in down.iter_mut().zip(&self.points) {
                *down *= (share_here + t * (follows_here - share_here)) / (share + t * (follows - share));
            }
            let up = self.go(child, &down, owners);
            // What an earlier split on this column has said of these leaves is taken back: the last one has it all.
            let said = |t: f64, share: f64, follows: f64| (follows - share) / (share + t * (follows - share));
            let mut contribution = 0.0;
            for ((up, t), weight) in up.iter().zip(&self.points).zip(&self.weights) {
                contribution += weight * up * (said(*t, share_here, follows_here) - said(*t, share, follows));
            }
            self.out[usize::from(owners[column])] += contribution;
            total.iter_mut().zip(up).for_each(|(total, up)| *total += up);
        }
        self.known[column] = (share, follows);
        total
    }
}

/// Adds every leaf below the node at `at`; `path` holds the players so far.
fn collect(forest: &Forest, at: u32, path: &mut Vec<Player>, leaves: &mut Vec<Leaf>) {
    let node = forest.node(at);
    let split = match node.step {
        Step::Leaf(value) => return leaves.push(Leaf { value, players: path.clone() }),
        Step::Split(split) => split,
    };
    for (child, below) in [(split.below, true), (split.above, false)] {
        let ratio = forest.node(child).cover / node.cover;
        match path.iter().position(|player| player.column == split.column) {
            Some(place) => {
                let before = path[place];
                path[place].narrow(&split, below, ratio);
                collect(forest, child, path, leaves);
                path[place] = before;
            }
            None => {
                let free =
                    Player { column: split.column, share: 1.0, low: f32::NEG_INFINITY, high: f32::NAN, nan: true };
                path.push(free);
                let place = path.len() - 1;
                path[place].narrow(&split, below, ratio);
                collect(forest, child, path, leaves);
                path.pop();
            }
        }
    }
}

/// The Shapley value of each player of `leaf` where bit `k` of `follows` says whether player `k` follows the path.
pub(super) fn shapley(leaf: &Leaf, follows: u64, out: &mut [f64]) {
    let players = &leaf.players;
    let (points, weights) = gauss_legendre(players.len().div_ceil(2));
    out.fill(0.0);
    let follows = |k: usize| (follows >> k & 1) as f64;
    for (t, weight) in points.iter().zip(&weights) {
        let factor = |k: usize| players[k].share + t * (follows(k) - players[k].share);
        let product: f64 = (0..players.len()).map(factor).product();
        for (k, out) in out.iter_mut().enumerate() {
            *out += weight * leaf.value * (follows(k) - players[k].share) * product / factor(k);
        }
    }
}

/// Points and weights of the Gauss-Legendre quadrature over 0 to 1: exact for polynomials up to degree `2 * count - 1`.
/// Newton's method on the Legendre polynomial from Tricomi's first guess, as in Numerical Recipes, `gauleg`.
fn gauss_legendre(count: usize) -> (Vec<f64>, Vec<f64>) {
    let n = count as f64;
    let rule = (0..count).map(|at| {
        let mut x = libm::cos(std::f64::consts::PI * (at as f64 + 0.75) / (n + 0.5));
        let mut slope = 1.0;
        for _ in 0..100 {
            let (mut last, mut value) = (0.0, 1.0);
            for degree in 0..count {
                let degree = degree as f64;
                (last, value) = (value, ((2.0 * degree + 1.0) * x * value - degree * last) / (degree + 1.0));
            }
            slope = n * (x * value - last) / (x * x - 1.0);
            let step = value / slope;
            x -= step;
            if step.abs() < 1e-15 {
                break;
            }
        }
        ((1.0 - x) / 2.0, 1.0 / ((1.0 - x * x) * slope * slope))
    });
    rule.unzip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::forest::{Node, bound_of_at_most, bound_of_less};
    use proptest::prelude::*;

    /// A random tree: splits are `(column, threshold, at_most, nan_below, share below in percent)`, given out in pre-order.
    type Draw = (u32, i8, bool, bool, u8);

    const COLUMNS: usize = 4;

    fn grow(draws: &mut impl Iterator<Item = Draw>, depth: usize, cover: f64, nodes: &mut Vec<Node>) -> u32 {
        let at = nodes.len() as u32;
        let Some((column, threshold, at_most, nan_below, percent)) = draws.next() else {
            nodes.push(Node { cover, step: Step::Leaf(1.0) });
            return at;
        };
        nodes.push(Node { cover, step: Step::Leaf(f64::from(threshold) + f64::from(percent) / 7.0) });
        if depth > 0 && percent % 5 > 0 {
            let part = cover * f64::from(percent.clamp(1, 99)) / 100.0;
            let below = grow(draws, depth - 1, part, nodes);
            let above = grow(draws, depth - 1, cover - part, nodes);
            let threshold = f64::from(threshold);
            let bound = if at_most { bound_of_at_most(threshold) } else { bound_of_less(threshold) };
            nodes[at as usize].step = Step::Split(Split { column, bound, nan_below, below, above });
        }
        at
    }

    fn forest(draws: &[Vec<Draw>], depth: usize) -> Forest {
        let mut nodes = Vec::new();
        let roots = draws.iter().map(|tree| grow(&mut tree.iter().copied(), depth, 100.0, &mut nodes)).collect();
        Forest::new(COLUMNS, 0.25, roots, nodes).expect("a legal forest")
    }

    /// The value of the coalition `known` by its definition: the covers decide where a column is not known.
    fn value(forest: &Forest, at: u32, row: &[f32], known: u32) -> f64 {
        let node = forest.node(at);
        match node.step {
            Step::Leaf(value) => value,
            Step::Split(split) if known >> split.column & 1 == 1 => {
                value(forest, split.next(row[split.column as usize]), row, known)
            }
            Step::Split(split) => [split.below, split.above]
                .map(|child| forest.node(child).cover / node.cover * value(forest, child, row, known))
                .iter()
                .sum(),
        }
    }

    /// Shapley values by their definition, over all coalitions.
    fn brute_force(forest: &Forest, row: &[f32]) -> Vec<f64> {
        let of = |known: u32| forest.roots().iter().map(|root| value(forest, *root, row, known)).sum::<f64>();
        let factorial = |n: usize| (1..=n).product::<usize>() as f64;
        let mut out = vec![0.0; COLUMNS];
        for known in 0..1_u32 << COLUMNS {
            let size = known.count_ones() as usize;
            for (column, out) in out.iter_mut().enumerate().filter(|(column, _)| known >> column & 1 == 0) {
                let weight = factorial(size) * factorial(COLUMNS - size - 1) / factorial(COLUMNS);
                *out += weight * (of(known | 1 << column) - of(known));
            }
        }
        out
    }

    fn draws() -> impl Strategy<Value = Vec<Vec<Draw>>> {
        let draw = (0..COLUMNS as u32, -3_i8..4, any::<bool>(), any::<bool>(), 0_u8..100);
        prop::collection::vec(prop::collection::vec(draw, 0..24), 0..5)
    }

    fn row() -> impl Strategy<Value = Vec<f32>> {
        // On the thresholds, between them, and missing: where `<` and `<=` and the tracks of a NaN differ.
        let value = prop_oneof![4 => (-4_i8..5).prop_map(f32::from), 2 => -4.0_f32..4.0, 1 => Just(f32::NAN)];
        prop::collection::vec(value, COLUMNS)
    }

    proptest! {
        /// Both ways give what the definition gives, columns on a path twice included, and sum up to the margin.
        #[test]
        fn agrees_with_the_definition(draws in draws(), row in row()) {
            let forest = forest(&draws, 6);
            let expected = brute_force(&forest, &row);
            let margin = forest.margin(&row);
            let mut attribution = Attribution::new(forest, &[0, 1, 2, 3], COLUMNS).expect("it has covers");
            prop_assert!(attribution.is_tabulated());
            let scale = 1.0 + margin.abs() + expected.iter().map(|value| value.abs()).sum::<f64>();
            // Tables hold float32.
            for (tolerance, tables) in [(1e-6, true), (1e-9, false)] {
                if !tables {
                    attribution.tables = None;
                }
                let found = attribution.explain(&row);
                for (found, expected) in found.iter().zip(&expected) {
                    prop_assert!((found - expected).abs() <= tolerance * scale, "{found} is not {expected}");
                }
                let sum = attribution.base() + found.iter().sum::<f64>();
                prop_assert!((sum - margin).abs() <= tolerance * scale, "{sum} is not {margin}");
            }
        }

        /// Columns of one feature are summed up.
        #[test]
        fn columns_are_summed_to_their_feature(draws in draws(), row in row()) {
            let forest = forest(&draws, 5);
            let apart = Attribution::new(forest.clone(), &[0, 1, 2, 3], COLUMNS).expect("it has covers").explain(&row);
            let together = Attribution::new(forest, &[0, 1, 1, 0], 2).expect("it has covers").explain(&row);
            let scale = 1.0 + apart.iter().map(|value| value.abs()).sum::<f64>();
            prop_assert!((together[0] - apart[0] - apart[3]).abs() <= 1e-6 * scale);
            prop_assert!((together[1] - apart[1] - apart[2]).abs() <= 1e-6 * scale);
        }
    }

    #[test]
    fn the_quadrature_is_exact_up_to_its_degree() {
        for count in 1..=POINTS_MAX {
            let (points, weights) = gauss_legendre(count);
            for degree in 0..2 * count {
                let found: f64 = points.iter().zip(&weights).map(|(x, w)| w * x.powi(degree as i32)).sum();
                assert!(
                    (found - 1.0 / (degree as f64 + 1.0)).abs() < 1e-13,
                    "{count} points, degree {degree}: {found}"
                );
            }
        }
    }

    /// 64 different columns on one path are more than any table can hold, and still exact.
    #[test]
    fn a_deep_tree_is_walked() {
        let depth = PLAYERS_MAX as u32;
        let mut nodes = Vec::new();
        for column in 0..depth {
            let split = Split { column, bound: 0.0, nan_below: false, below: 2 * column + 1, above: 2 * column + 2 };
            nodes.push(Node { cover: f64::from(depth + 1 - column), step: Step::Split(split) });
            nodes.push(Node { cover: 1.0, step: Step::Leaf(f64::from(column)) });
        }
        nodes.push(Node { cover: 1.0, step: Step::Leaf(100.0) });
        let forest = Forest::new(depth as usize, 0.0, vec![0], nodes).expect("a legal forest");
        let owners: Vec<u16> = (0..depth as u16).collect();
        let attribution = Attribution::new(forest, &owners, depth as usize).expect("it has covers");
        assert!(!attribution.is_tabulated());
        let row: Vec<f32> = (0..depth).map(|column| if column == 60 { -1.0 } else { 1.0 }).collect();
        let sum = attribution.base() + attribution.explain(&row).iter().sum::<f64>();
        assert!((sum - 60.0).abs() < 1e-9, "{sum} is not the margin");
    }
}
