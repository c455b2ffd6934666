//! A forest compiled to be evaluated quickly: float32 sums in the order of the trees, as ONNX Runtime adds, so the bits are the same.
//! What the margin becomes is in `evaluator`.
//!
//! A row becomes ranks first: for each slot (a column, and where its NaN goes) how many of the slot's bounds a value reaches. So a node
//! is 6 bytes and knows no NaN. A lone row walks several trees at once without a branch; many rows are decided on together, node by node.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::forest::{Forest, Step};

/// Trees that a lone row walks at the same time: no step waits for the one before it.
const WAYS: usize = 8;
/// Rows that are decided on together.
const ROWS: usize = 32;
/// From so many rows on that is faster than walks.
const ROWS_MIN: usize = 12;
/// Places of nodes in a tree: the most that a `u8` tells apart.
const PLACES: usize = 256;
/// Leaves of one tree at most: with its splits they fill the places.
const LEAVES_MAX: usize = PLACES / 2;
/// Bounds of one slot at most: ranks are 0 to this, and a NaN has 0 or [`NAN_ABOVE`].
const BOUNDS_MAX: usize = 254;
const NAN_ABOVE: u8 = 255;
/// Slots of a block, in a forest of ordinary size and in any other: powers of two, so that a mask keeps an index inside.
const NARROW: usize = 256;
const WIDE: usize = 8_192;

/// A compiled forest.
#[derive(Debug)]
pub struct Compiled {
    columns: usize,
    base: f32,
    blocks: Vec<Block>,
}

/// Trees in a row that share their slots.
#[derive(Debug, Default)]
struct Block {
    slots: Vec<Slot>,
    bounds: Vec<f32>,
    groups: Vec<[Tree; WAYS]>,
    /// The nodes of all trees and, at the same places, what those that are leaves add. Behind the last tree there are [`PLACES`] more.
    nodes: Vec<Node>,
    values: Vec<f32>,
}

/// A column, as the splits see it that send a NaN the same way.
#[derive(Debug)]
struct Slot {
    column: u32,
    /// Its bounds, rising: so many from here on.
    first: u32,
    count: u8,
    nan: u8,
}

/// A tree: its splits, each above its children, and then its leaves. The default adds 0 and fills a group up.
#[derive(Debug, Clone, Copy, Default)]
struct Tree {
    first: u32,
    splits: u8,
    depth: u8,
}

/// A split goes `above` where the rank of its slot is `rank` at least. A leaf goes to itself.
#[derive(Debug, Clone, Copy, Default)]
struct Node {
    slot: u16,
    rank: u8,
    below: u8,
    above: u8,
}

/// A column with where its NaN goes, and the order of a bound among float32 (`-0.0` is `0.0`).
type Place = (u32, bool);
type Places = BTreeMap<Place, BTreeSet<i32>>;

impl Compiled {
    /// Compiles `forest`, in time that is linear in its nodes but for a logarithm. Errors: why it cannot be compiled.
    pub fn new(forest: &Forest) -> Result<Self, &'static str> {
        let mut blocks = Vec::new();
        let (mut begin, mut places) = (0, Places::new());
        let trees = forest.roots().iter().map(|root| Listed::new(forest, *root)).collect::<Result<Vec<_>, _>>()?;
        for (end, tree) in trees.iter().enumerate() {
            let added: Vec<(Place, i32)> =
                tree.bounds(forest).filter(|(place, bound)| places.entry(*place).or_default().insert(*bound)).collect();
            if places.values().map(|bounds| bounds.len().div_ceil(BOUNDS_MAX)).sum::<usize>() > WIDE {
                for (place, bound) in added {
                    places.get_mut(&place).map(|bounds| bounds.remove(&bound));
                }
                blocks.push(Block::new(forest, &trees[begin..end], &std::mem::take(&mut places)));
                begin = end;
                for (place, bound) in tree.bounds(forest) {
                    places.entry(place).or_default().insert(bound);
                }
            }
        }
        blocks.push(Block::new(forest, &trees[begin..], &places));
        Ok(Self { columns: forest.columns(), base: forest.base() as f32, blocks })
    }

    /// Its size, in bytes.
    pub fn bytes(&self) -> usize {
        let of = |block: &Block| {
            size_of_val(&*block.slots)
                + size_of_val(&*block.bounds)
                + size_of_val(&*block.groups)
                + size_of_val(&*block.nodes)
                + size_of_val(&*block.values)
        };
        self.blocks.iter().map(of).sum()
    }

    /// The margin of one `row`. Allocates nothing.
    pub fn margin(&self, row: &[f32]) -> f32 {
        assert_eq!(row.len(), self.columns, "the row has a place for every column");
        let mut sum = 0.0;
        for block in &self.blocks {
            sum = if block.is_narrow() { block.walk::<NARROW>(row, sum) } else { block.walk::<WIDE>(row, sum) };
        }
        sum + self.base
    }

    /// Gives `each` the margins of `rows`, row-major, in order: the same bits as [`margin`](Self::margin) gives.
    pub fn margins(&self, rows: &[f32], mut each: impl FnMut(f32)) {
        let width = self.blocks.iter().map(|block| if block.is_narrow() { NARROW } else { WIDE }).max().unwrap_or(0);
        let mut ranks = Vec::new();
        for rows in rows.chunks(ROWS * self.columns) {
            let count = rows.len() / self.columns;
            if count < ROWS_MIN {
                rows.chunks_exact(self.columns).for_each(|row| each(self.margin(row)));
                continue;
            }
            ranks.resize(width, [0; ROWS]);
            let mut sums = [0.0; ROWS];
            for block in &self.blocks {
                block.rank_rows(rows, self.columns, &mut ranks);
                match block.is_narrow() {
                    true => block.decide::<NARROW>(&ranks, &mut sums),
                    false => block.decide::<WIDE>(&ranks, &mut sums),
                }
            }
            sums[..count].iter().for_each(|sum| each(sum + self.base));
        }
    }
}

/// The nodes of one tree, as places of the forest: its splits level by level, and its leaves.
struct Listed {
    splits: Vec<u32>,
    leaves: Vec<u32>,
    depth: u8,
}

impl Listed {
    fn new(forest: &Forest, root: u32) -> Result<Self, &'static str> {
        let mut listed = Self { splits: Vec::new(), leaves: Vec::new(), depth: 0 };
        let mut level = vec![root];
        loop {
            let mut next = Vec::new();
            for at in level {
                match forest.node(at).step {
                    Step::Leaf(_) => listed.leaves.push(at),
                    Step::Split(split) => {
                        listed.splits.push(at);
                        next.extend([split.below, split.above]);
                    }
                }
            }
            if listed.splits.len() >= LEAVES_MAX {
                return Err("a tree has more than 128 leaves");
            }
            if next.is_empty() {
                return Ok(listed);
            }
            // A forest is 64 levels deep at most.
            listed.depth += 1;
            level = next;
        }
    }

    fn bounds(&self, forest: &Forest) -> impl Iterator<Item = (Place, i32)> {
        self.splits.iter().filter_map(|at| match forest.node(*at).step {
            Step::Split(split) => Some(((split.column, split.nan_below), order(split.bound))),
            Step::Leaf(_) => None,
        })
    }
}

/// A number that is ordered as `bound` is; the same for both zeros.
fn order(bound: f32) -> i32 {
    let bits = (bound + 0.0).to_bits() as i32;
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

/// The bound of which `order` was taken.
fn unordered(order: i32) -> f32 {
    f32::from_bits((order ^ (((order >> 31) as u32) >> 1) as i32) as u32)
}

impl Block {
    fn new(forest: &Forest, trees: &[Listed], places: &Places) -> Self {
        let mut block = Self::default();
        // Of each bound its slot, and the rank of what reaches it.
        let mut ranked: HashMap<(Place, i32), (u16, u8)> = HashMap::new();
        for (place, bounds) in places {
            let bounds: Vec<i32> = bounds.iter().copied().collect();
            for bounds in bounds.chunks(BOUNDS_MAX) {
                let (first, count) = (block.bounds.len() as u32, bounds.len() as u8);
                let nan = if place.1 { 0 } else { NAN_ABOVE };
                for (bound, rank) in bounds.iter().zip(1..) {
                    ranked.insert((*place, *bound), (block.slots.len() as u16, rank));
                    block.bounds.push(unordered(*bound));
                }
                block.slots.push(Slot { column: place.0, first, count, nan });
            }
        }
        let mut listed = Vec::with_capacity(trees.len().next_multiple_of(WAYS));
        for tree in trees {
            let first = block.nodes.len() as u32;
            listed.push(Tree { first, splits: tree.splits.len() as u8, depth: tree.depth });
            let nodes = || tree.splits.iter().chain(&tree.leaves).zip(0_u8..=u8::MAX);
            let places: HashMap<u32, u8> = nodes().map(|(at, place)| (*at, place)).collect();
            for (at, place) in nodes() {
                let (node, value) = match forest.node(*at).step {
                    Step::Leaf(value) => (Node { below: place, above: place, ..Node::default() }, value as f32),
                    Step::Split(split) => {
                        let (slot, rank) = ranked[&((split.column, split.nan_below), order(split.bound))];
                        (Node { slot, rank, below: places[&split.below], above: places[&split.above] }, 0.0)
                    }
                };
                block.nodes.push(node);
                block.values.push(value);
            }
        }
        // What fills the last group up stands in the rest, whose first node is a leaf of 0.
        let rest = Tree { first: block.nodes.len() as u32, splits: 0, depth: 0 };
        listed.resize(listed.len().next_multiple_of(WAYS), rest);
        block.groups = listed.as_chunks().0.to_vec();
        block.nodes.resize(block.nodes.len() + PLACES, Node::default());
        block.values.resize(block.values.len() + PLACES, 0.0);
        block
    }

    fn is_narrow(&self) -> bool {
        self.slots.len() <= NARROW
    }

    fn bounds_of(&self, slot: &Slot) -> &[f32] {
        &self.bounds[slot.first as usize..][..usize::from(slot.count)]
    }

    fn nodes_of(&self, tree: &Tree) -> &[Node; PLACES] {
        self.nodes[tree.first as usize..].first_chunk().expect("as many nodes stand behind the last tree")
    }

    fn values_of(&self, tree: &Tree) -> &[f32; PLACES] {
        self.values[tree.first as usize..].first_chunk().expect("as many values stand behind the last tree")
    }

    /// `sum` and what the trees add for `row`, in their order; `N` is the number of slots at most.
    fn walk<const N: usize>(&self, row: &[f32], mut sum: f32) -> f32 {
        let mut ranks = [0; N];
        for (slot, rank) in self.slots.iter().zip(&mut ranks) {
            *rank = slot.rank(self.bounds_of(slot), row[slot.column as usize]);
        }
        for group in &self.groups {
            let trees: [&[Node; PLACES]; WAYS] = std::array::from_fn(|way| self.nodes_of(&group[way]));
            let depth = group.iter().map(|tree| tree.depth).max().unwrap_or(0);
            let mut at = [0_u8; WAYS];
            for _ in 0..depth {
                for (at, nodes) in at.iter_mut().zip(&trees) {
                    let node = nodes[usize::from(*at)];
                    let is_above = ranks[usize::from(node.slot) & (N - 1)] >= node.rank;
                    // A shift is no branch: half of all branches here would be foreseen wrongly.
                    let ways = u16::from_le_bytes([node.below, node.above]);
                    *at = (ways >> (u32::from(is_above) * 8)) as u8;
                }
            }
            for (at, tree) in at.iter().zip(group) {
                sum += self.values_of(tree)[usize::from(*at)];
            }
        }
        sum
    }

    /// Writes the rank of each row into its place of each slot.
    fn rank_rows(&self, rows: &[f32], columns: usize, ranks: &mut [[u8; ROWS]]) {
        for (slot, ranks) in self.slots.iter().zip(ranks) {
            let bounds = self.bounds_of(slot);
            for (row, rank) in rows.chunks_exact(columns).zip(ranks) {
                *rank = slot.rank(bounds, row[slot.column as usize]);
            }
        }
    }

    /// Adds to `sums` what the trees add for each row of `ranks`, in their order. From the lowest split of a tree upwards each one takes for
    /// every row the leaf that its child has found: no row has a way of its own, so this becomes vector instructions.
    fn decide<const N: usize>(&self, ranks: &[[u8; ROWS]], sums: &mut [f32; ROWS]) {
        let ranks: &[[u8; ROWS]; N] = ranks.first_chunk().expect("there is room for every slot");
        let mut found = [[0_u8; ROWS]; PLACES];
        for tree in self.groups.as_flattened() {
            let (nodes, values) = (self.nodes_of(tree), self.values_of(tree));
            for leaf in tree.splits..=tree.splits * 2 {
                found[usize::from(leaf)] = [leaf; ROWS];
            }
            for at in (0..tree.splits).rev() {
                let node = nodes[usize::from(at)];
                let (below, above) = (found[usize::from(node.below)], found[usize::from(node.above)]);
                let ranks = &ranks[usize::from(node.slot) & (N - 1)];
                let found = &mut found[usize::from(at)];
                for row in 0..ROWS {
                    found[row] = if ranks[row] >= node.rank { above[row] } else { below[row] };
                }
            }
            for (sum, leaf) in sums.iter_mut().zip(&found[0]) {
                *sum += values[usize::from(*leaf)];
            }
        }
    }
}

impl Slot {
    /// How many of its bounds `value` reaches.
    #[inline]
    fn rank(&self, bounds: &[f32], value: f32) -> u8 {
        match bounds {
            _ if value.is_nan() => self.nan,
            // Most columns are yes or no.
            [bound] => u8::from(*bound <= value),
            bounds => bounds.partition_point(|bound| *bound <= value) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::forest::{Node, Split};
    use proptest::prelude::*;

    /// A random tree: splits are `(column, bound, nan_below)`, given out in pre-order.
    type Draw = (u32, f32, bool);

    const COLUMNS: usize = 5;

    fn grow(draws: &mut impl Iterator<Item = Draw>, depth: usize, nodes: &mut Vec<Node>) -> u32 {
        let at = nodes.len() as u32;
        // Sums that are rounded at every step, so that another order shows.
        nodes.push(Node { cover: 1.0, step: Step::Leaf(f64::from((at as f32 * 0.7).sin())) });
        if depth > 0
            && let Some((column, bound, nan_below)) = draws.next()
        {
            let below = grow(draws, depth - 1, nodes);
            let above = grow(draws, depth - 1, nodes);
            nodes[at as usize].step = Step::Split(Split { column, bound, nan_below, below, above });
        }
        at
    }

    fn forest(columns: usize, draws: &[Vec<Draw>], depth: usize) -> Forest {
        let mut nodes = Vec::new();
        let roots = draws.iter().map(|tree| grow(&mut tree.iter().copied(), depth, &mut nodes)).collect();
        Forest::new(columns, f64::from(0.3_f32), roots, nodes).expect("a legal forest")
    }

    /// What the compiled form has to give: float32 sums in the order of the trees.
    fn expected(forest: &Forest, row: &[f32]) -> f32 {
        let add = |sum: f32, root: &u32| {
            let mut at = *root;
            loop {
                match forest.node(at).step {
                    Step::Leaf(value) => return sum + value as f32,
                    Step::Split(split) => at = split.next(row[split.column as usize]),
                }
            }
        };
        forest.roots().iter().fold(0.0, add) + forest.base() as f32
    }

    fn check(forest: &Forest, rows: &[Vec<f32>]) -> Result<(), TestCaseError> {
        let compiled = Compiled::new(forest).expect("it can be compiled");
        let mut together = Vec::new();
        compiled.margins(&rows.concat(), |margin| together.push(margin));
        prop_assert_eq!(together.len(), rows.len());
        for (row, together) in rows.iter().zip(together) {
            let expected = expected(forest, row);
            prop_assert_eq!(compiled.margin(row).to_bits(), expected.to_bits(), "alone, {:?}", row);
            prop_assert_eq!(together.to_bits(), expected.to_bits(), "together, {:?}", row);
            prop_assert!((f64::from(expected) - forest.margin(row)).abs() <= 1e-4);
        }
        Ok(())
    }

    fn number() -> impl Strategy<Value = f32> {
        let at = (-3_i8..4).prop_map(f32::from);
        let ends =
            prop::sample::select(vec![f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, -0.0, f32::MIN_POSITIVE]);
        let (up, down) = (at.clone().prop_map(f32::next_up), at.clone().prop_map(f32::next_down));
        prop_oneof![6 => at, 2 => up, 2 => down, 2 => ends]
    }

    fn draws() -> impl Strategy<Value = Vec<Vec<Draw>>> {
        prop::collection::vec(prop::collection::vec((0..COLUMNS as u32, number(), any::<bool>()), 0..60), 0..20)
    }

    fn rows() -> impl Strategy<Value = Vec<Vec<f32>>> {
        // On the bounds, one unit in the last place beside them, and missing.
        prop::collection::vec(prop::collection::vec(prop_oneof![5 => number(), 1 => Just(f32::NAN)], COLUMNS), 0..70)
    }

    proptest! {
        /// The same bits as the walk has, alone and together, for any number of rows, equal bounds and missing values.
        #[test]
        fn is_the_forest(draws in draws(), depth in 0_usize..12, rows in rows()) {
            check(&forest(COLUMNS, &draws, depth), &rows)?;
        }
    }

    #[test]
    fn bounds_are_ordered_as_numbers() {
        let rising =
            [f32::NEG_INFINITY, f32::MIN, -1.0, -f32::MIN_POSITIVE, 0.0, f32::MIN_POSITIVE, 1.0, f32::INFINITY];
        assert!(rising.is_sorted_by(|a, b| order(*a) < order(*b)));
        assert!(rising.iter().all(|bound| unordered(order(*bound)) == *bound));
        assert_eq!(order(-0.0), order(0.0));
    }

    /// More bounds than a rank can count, more slots than a small block has, and more than any block has.
    #[test]
    fn a_forest_of_any_size() {
        for (columns, trees) in [(1, 700), (300, 90), (4_096, 420)] {
            let mut random = fastrand::Rng::with_seed(7);
            let draws: Vec<Vec<Draw>> = (0..trees)
                .map(|_| {
                    let mut draw = || (random.u32(..columns as u32), random.f32(), random.bool());
                    (0..40).map(|_| draw()).collect()
                })
                .collect();
            let forest = forest(columns, &draws, 6);
            let rows: Vec<Vec<f32>> = (0..40)
                .map(|_| (0..columns).map(|_| if random.u8(..9) == 0 { f32::NAN } else { random.f32() }).collect())
                .collect();
            check(&forest, &rows).expect("the same bits");
        }
    }

    #[test]
    fn a_tree_that_is_too_large_is_refused() {
        let draws = vec![vec![(0, 1.0, false); 200]];
        assert_eq!(Compiled::new(&forest(1, &draws, 64)).err(), Some("a tree has more than 128 leaves"));
    }
}
