//! A forest compiled to be evaluated quickly: float32 sums in the order of the trees, as ONNX Runtime adds, so the bits are the same.
//! What the margin becomes is in `evaluator`.
//!
//! A row becomes ranks first: for each slot (a column, and where its NaN goes) how many of the slot's bounds a value reaches. So a node
//! is a few bytes and knows no NaN. A lone row walks several trees at once without a branch; many rows are decided on together.

mod perfect;
mod ragged;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::forest::{Forest, Split, Step};
use perfect::Perfect;
use ragged::Ragged;

/// Trees that a lone row walks at the same time: no step waits for the one before it.
const WAYS: usize = 8;
/// Rows that are decided on together.
const ROWS: usize = 32;
/// From so many rows on that is faster than walks.
const ROWS_MIN: usize = 12;
/// Places of nodes in a tree: the most that a `u8` tells apart. With 128 leaves a tree fills all but one.
const PLACES: usize = 256;
/// Bounds of one slot at most: ranks are 0 to this, and a NaN has 0 or [`NAN_ABOVE`].
const BOUNDS_MAX: usize = 253;
const NAN_ABOVE: u8 = 254;
/// A rank that no value has.
const NEVER: u8 = 255;
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
#[derive(Debug)]
struct Block {
    slots: Slots,
    trees: Trees,
}

/// In which form the trees of a block take less room, and so are evaluated faster.
#[derive(Debug)]
enum Trees {
    Perfect(Perfect),
    Ragged(Ragged),
}

/// What values are held against.
#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Slot>,
    bounds: Vec<f32>,
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

/// A column with where its NaN goes, and the order of a bound among float32 (`-0.0` is `0.0`).
type Place = (u32, bool);
type Places = BTreeMap<Place, BTreeSet<i32>>;

/// Of each bound its slot, and the rank of what reaches it.
#[derive(Debug, Default)]
struct Ranked(HashMap<(Place, i32), (u16, u8)>);

impl Ranked {
    fn of(&self, split: &Split) -> (u16, u8) {
        self.0[&(place_of(split), order(split.bound))]
    }
}

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
        self.blocks.iter().map(|block| block.slots.bytes() + block.trees.bytes()).sum()
    }

    /// The margin of one `row`. Allocates nothing.
    pub fn margin(&self, row: &[f32]) -> f32 {
        assert_eq!(row.len(), self.columns, "the row has a place for every column");
        let mut sum = 0.0;
        for Block { slots, trees } in &self.blocks {
            sum = match slots.are_few() {
                true => trees.walk(&slots.rank::<NARROW>(row), sum),
                false => trees.walk(&slots.rank::<WIDE>(row), sum),
            };
        }
        sum + self.base
    }

    /// Gives `each` the margins of `rows`, row-major, in order: the same bits as [`margin`](Self::margin) gives.
    pub fn margins(&self, rows: &[f32], mut each: impl FnMut(f32)) {
        let width =
            self.blocks.iter().map(|block| if block.slots.are_few() { NARROW } else { WIDE }).max().unwrap_or(0);
        let mut ranks = Vec::new();
        for rows in rows.chunks(ROWS * self.columns) {
            let count = rows.len() / self.columns;
            if count < ROWS_MIN {
                rows.chunks_exact(self.columns).for_each(|row| each(self.margin(row)));
                continue;
            }
            ranks.resize(width, [0; ROWS]);
            let mut sums = [0.0; ROWS];
            for Block { slots, trees } in &self.blocks {
                slots.rank_rows(rows, self.columns, &mut ranks);
                match slots.are_few() {
                    true => trees.decide(room::<NARROW>(&ranks), &mut sums),
                    false => trees.decide(room::<WIDE>(&ranks), &mut sums),
                }
            }
            sums[..count].iter().for_each(|sum| each(sum + self.base));
        }
    }
}

/// The nodes of one tree, as places of the forest, level by level: two children stand side by side.
struct Listed {
    nodes: Vec<u32>,
    depth: u8,
}

impl Listed {
    fn new(forest: &Forest, root: u32) -> Result<Self, &'static str> {
        let mut listed = Self { nodes: vec![root], depth: 0 };
        let mut level = 0..1;
        loop {
            for at in level.clone() {
                if let Step::Split(split) = forest.node(listed.nodes[at]).step {
                    listed.nodes.extend([split.below, split.above]);
                }
            }
            if listed.nodes.len() >= PLACES {
                return Err("a tree has more than 128 leaves");
            }
            level = level.end..listed.nodes.len();
            if level.is_empty() {
                return Ok(listed);
            }
            // A forest is 64 levels deep at most.
            listed.depth += 1;
        }
    }

    fn root(&self) -> u32 {
        self.nodes[0]
    }

    fn bounds(&self, forest: &Forest) -> impl Iterator<Item = (Place, i32)> {
        self.nodes.iter().filter_map(|at| match &forest.node(*at).step {
            Step::Split(split) => Some((place_of(split), order(split.bound))),
            Step::Leaf(_) => None,
        })
    }
}

fn place_of(split: &Split) -> Place {
    (split.column, split.nan_below)
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

/// As many of `all` as a tree has at most, from `first` on: none of its places has to be held against a length then.
fn window<T>(all: &[T], first: usize) -> &[T; PLACES] {
    all[first..].first_chunk().expect("as many stand behind the last tree")
}

/// The first `N` of `ranks`.
fn room<const N: usize>(ranks: &[[u8; ROWS]]) -> &[[u8; ROWS]; N] {
    ranks.first_chunk().expect("there is room for every slot")
}

impl Block {
    fn new(forest: &Forest, trees: &[Listed], places: &Places) -> Self {
        let (slots, ranked) = Slots::new(places);
        let perfect = Perfect::bytes_for(trees).filter(|_| slots.are_few());
        let trees = match perfect {
            Some(bytes) if bytes <= Ragged::bytes_for(trees) => Trees::Perfect(Perfect::new(forest, trees, &ranked)),
            _ => Trees::Ragged(Ragged::new(forest, trees, &ranked)),
        };
        Self { slots, trees }
    }
}

impl Trees {
    fn bytes(&self) -> usize {
        match self {
            Self::Perfect(trees) => trees.bytes(),
            Self::Ragged(trees) => trees.bytes(),
        }
    }

    /// `sum` and what the trees add, in their order, where slots have these `ranks`.
    fn walk<const N: usize>(&self, ranks: &[u8; N], sum: f32) -> f32 {
        match self {
            Self::Perfect(trees) => trees.walk(ranks, sum),
            Self::Ragged(trees) => trees.walk(ranks, sum),
        }
    }

    /// Adds to `sums` what the trees add for each row of `ranks`, in their order.
    fn decide<const N: usize>(&self, ranks: &[[u8; ROWS]; N], sums: &mut [f32; ROWS]) {
        match self {
            Self::Perfect(trees) => trees.decide(ranks, sums),
            Self::Ragged(trees) => trees.decide(ranks, sums),
        }
    }
}

impl Slots {
    /// Slots for all bounds of `places`.
    fn new(places: &Places) -> (Self, Ranked) {
        let (mut made, mut ranked) = (Self::default(), Ranked::default());
        for (place, bounds) in places {
            let bounds: Vec<i32> = bounds.iter().copied().collect();
            for bounds in bounds.chunks(BOUNDS_MAX) {
                let (first, count) = (made.bounds.len() as u32, bounds.len() as u8);
                let nan = if place.1 { 0 } else { NAN_ABOVE };
                for (bound, rank) in bounds.iter().zip(1..) {
                    ranked.0.insert((*place, *bound), (made.slots.len() as u16, rank));
                    made.bounds.push(unordered(*bound));
                }
                made.slots.push(Slot { column: place.0, first, count, nan });
            }
        }
        (made, ranked)
    }

    fn are_few(&self) -> bool {
        self.slots.len() <= NARROW
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.slots) + size_of_val(&*self.bounds)
    }

    fn bounds_of(&self, slot: &Slot) -> &[f32] {
        &self.bounds[slot.first as usize..][..usize::from(slot.count)]
    }

    /// The rank of each slot, of which there are `N` at most.
    fn rank<const N: usize>(&self, row: &[f32]) -> [u8; N] {
        let mut ranks = [0; N];
        for (slot, rank) in self.slots.iter().zip(&mut ranks) {
            *rank = slot.rank(self.bounds_of(slot), row[slot.column as usize]);
        }
        ranks
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

    /// Full trees need not say where they lead; a chain would be mostly what fills it up.
    #[test]
    fn the_smaller_form_is_taken() {
        let full = |depth: u32| vec![(0, 1.0, false); (1 << depth) - 1];
        for (draws, depth, is_perfect) in [
            (vec![full(5); 3], 5, true),
            (vec![vec![]; 3], 5, true),
            (vec![full(7)], 7, true),
            (vec![vec![(0, 1.0, false); 12]], 12, false),
            (vec![full(2), vec![(1, 1.0, true); 8]], 8, false),
        ] {
            let compiled = Compiled::new(&forest(COLUMNS, &draws, depth)).expect("it can be compiled");
            let found: Vec<bool> =
                compiled.blocks.iter().map(|block| matches!(block.trees, Trees::Perfect(_))).collect();
            assert_eq!(found, [is_perfect], "{draws:?}");
        }
    }

    #[test]
    fn a_tree_that_is_too_large_is_refused() {
        let draws = vec![vec![(0, 1.0, false); 200]];
        assert_eq!(Compiled::new(&forest(1, &draws, 64)).err(), Some("a tree has more than 128 leaves"));
    }
}
