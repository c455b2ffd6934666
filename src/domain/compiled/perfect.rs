//! Trees whose leaves all lie at one depth, filled up where they do not: no split has to say where it leads, so it is two bytes, and the
//! splits that a walk comes by share their lines of the cache. How values become ranks is in the module above.

use super::{Listed, NEVER, PLACES, ROWS, Ranked, WAYS, window};
use crate::domain::forest::{Forest, Step};

/// The depth at most: so that a `u8` tells all places apart.
const DEPTH_MAX: u8 = 7;

/// Trees of one depth. Each has its splits from place 1 on, the children of `i` at `2 i` and `2 i + 1`; below the last ones are the leaves.
#[derive(Debug)]
pub(super) struct Perfect {
    depth: u8,
    /// Of each tree a power of two, the first of which is never looked at; behind the last one there are [`PLACES`] more.
    splits: Vec<Split>,
    /// What leaves add, from below to above: as many.
    values: Vec<f32>,
    trees: usize,
}

/// Goes above where the rank of its slot is `rank` at least. The default never does.
#[derive(Debug, Clone, Copy)]
struct Split {
    slot: u8,
    rank: u8,
}

impl Default for Split {
    fn default() -> Self {
        Self { slot: 0, rank: NEVER }
    }
}

impl Perfect {
    /// What `trees` would take, in bytes; `None` where they are too deep.
    pub(super) fn bytes_for(trees: &[Listed]) -> Option<usize> {
        let depth = trees.iter().map(|tree| tree.depth).max().unwrap_or(0);
        (depth <= DEPTH_MAX).then(|| (trees.len() << depth) * (size_of::<Split>() + size_of::<f32>()))
    }

    /// Those `trees`, of 256 slots at most.
    pub(super) fn new(forest: &Forest, trees: &[Listed], ranked: &Ranked) -> Self {
        let depth = trees.iter().map(|tree| tree.depth).max().unwrap_or(0);
        let stride = 1 << depth;
        // What fills the last group up adds 0.
        let places = trees.len().next_multiple_of(WAYS) * stride + PLACES;
        let (mut splits, mut values) = (vec![Split::default(); places], vec![0.0; places]);
        for (number, tree) in trees.iter().enumerate() {
            let first = number * stride;
            let mut left = vec![(tree.root(), 1)];
            while let Some((node, at)) = left.pop() {
                match forest.node(node).step {
                    Step::Split(split) => {
                        let (slot, rank) = ranked.of(&split);
                        splits[first + at] = Split { slot: slot as u8, rank };
                        left.extend([(split.below, at * 2), (split.above, at * 2 + 1)]);
                    }
                    Step::Leaf(value) if at >= stride => values[first + at - stride] = value as f32,
                    // Filled up by splits of which nothing goes above.
                    Step::Leaf(_) => left.push((node, at * 2)),
                }
            }
        }
        Self { depth, splits, values, trees: trees.len() }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.splits) + size_of_val(&*self.values)
    }

    /// `sum` and what the trees add, in their order, where slots have these `ranks`.
    pub(super) fn walk<const N: usize>(&self, ranks: &[u8; N], mut sum: f32) -> f32 {
        let stride = 1 << self.depth;
        for group in (0..self.trees).step_by(WAYS) {
            let splits: [&[Split; PLACES]; WAYS] =
                std::array::from_fn(|way| window(&self.splits, (group + way) * stride));
            let mut at = [1_u8; WAYS];
            for _ in 0..self.depth {
                for (at, splits) in at.iter_mut().zip(&splits) {
                    let split = splits[usize::from(*at)];
                    // No branch: half of all branches here would be foreseen wrongly.
                    *at = *at * 2 + u8::from(ranks[usize::from(split.slot) & (N - 1)] >= split.rank);
                }
            }
            for (way, at) in at.iter().enumerate() {
                let values: &[f32; PLACES] = window(&self.values, (group + way) * stride);
                sum += values[usize::from(*at) & (stride - 1)];
            }
        }
        sum
    }

    /// Adds to `sums` what the trees add for each row of `ranks`, in their order. From the lowest split of a tree upwards each one takes for
    /// every row the leaf that its child has found: no row has a way of its own, so this becomes vector instructions.
    pub(super) fn decide<const N: usize>(&self, ranks: &[[u8; ROWS]; N], sums: &mut [f32; ROWS]) {
        let stride = 1 << self.depth;
        let mut found = [[0_u8; ROWS]; PLACES / 2];
        for tree in 0..self.trees {
            let splits: &[Split; PLACES] = window(&self.splits, tree * stride);
            let values: &[f32; PLACES] = window(&self.values, tree * stride);
            for at in (stride / 2).max(1)..stride {
                let Split { slot, rank } = splits[at];
                let ranks = &ranks[usize::from(slot) & (N - 1)];
                let leaf = (at * 2 - stride) as u8;
                let found = &mut found[at];
                for row in 0..ROWS {
                    found[row] = leaf + u8::from(ranks[row] >= rank);
                }
            }
            for at in (1..stride / 2).rev() {
                let Split { slot, rank } = splits[at];
                let ranks = &ranks[usize::from(slot) & (N - 1)];
                let (below, above) = (found[at * 2], found[at * 2 + 1]);
                let found = &mut found[at];
                for row in 0..ROWS {
                    found[row] = if ranks[row] >= rank { above[row] } else { below[row] };
                }
            }
            for (sum, leaf) in sums.iter_mut().zip(&found[1]) {
                *sum += values[usize::from(*leaf)];
            }
        }
    }
}
