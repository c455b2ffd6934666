//! Trees of any shape: each split says where its children are, side by side. For forests that would be larger if their trees were filled up,
//! and for many slots. How values become ranks is in the module above.

use super::{Listed, NEVER, PLACES, ROWS, Ranked, WAYS, window};
use crate::domain::forest::{Forest, Step};

/// Trees with nodes of 4 bytes.
#[derive(Debug)]
pub(super) struct Ragged {
    groups: Vec<[Tree; WAYS]>,
    /// The nodes of all trees; behind the last tree there are [`PLACES`] more. The same for what leaves add.
    nodes: Vec<Node>,
    values: Vec<f32>,
}

/// A tree: where its nodes begin, and its leaves.
#[derive(Debug, Clone, Copy)]
struct Tree {
    nodes: u32,
    values: u32,
    places: u8,
    depth: u8,
}

/// A split goes to `below`, or to the place behind that where the rank of its slot is `rank` at least. A leaf, which is never reached so,
/// goes to itself, and its slot is its number.
#[derive(Debug, Clone, Copy)]
struct Node {
    slot: u16,
    rank: u8,
    below: u8,
}

impl Node {
    fn leaf(number: u16, place: u8) -> Self {
        Self { slot: number, rank: NEVER, below: place }
    }
}

impl Ragged {
    /// What `trees` would take, in bytes.
    pub(super) fn bytes_for(trees: &[Listed]) -> usize {
        let of = |tree: &Listed| {
            let leaves = tree.nodes.len().div_ceil(2);
            tree.nodes.len() * size_of::<Node>() + leaves * size_of::<f32>() + size_of::<Tree>()
        };
        trees.iter().map(of).sum()
    }

    /// Those `trees`.
    pub(super) fn new(forest: &Forest, trees: &[Listed], ranked: &Ranked) -> Self {
        let (mut nodes, mut values) = (Vec::new(), Vec::new());
        let mut listed = Vec::with_capacity(trees.len().next_multiple_of(WAYS));
        for tree in trees {
            let (first, first_value) = (nodes.len(), values.len());
            let places = tree.nodes.len() as u8;
            listed.push(Tree { nodes: first as u32, values: first_value as u32, places, depth: tree.depth });
            // Level by level: what comes next are the children of the splits, in their order. There are 255 nodes at most.
            let mut next = 1_u8;
            for (at, place) in tree.nodes.iter().zip(0_u8..=u8::MAX) {
                nodes.push(match forest.node(*at).step {
                    Step::Leaf(value) => {
                        values.push(value as f32);
                        Node::leaf((values.len() - 1 - first_value) as u16, place)
                    }
                    Step::Split(split) => {
                        let (slot, rank) = ranked.of(&split);
                        let below = next;
                        next += 2;
                        Node { slot, rank, below }
                    }
                });
            }
        }
        // What fills the last group up stands in the rest, a leaf of 0.
        let rest = Tree { nodes: nodes.len() as u32, values: values.len() as u32, places: 1, depth: 0 };
        listed.resize(listed.len().next_multiple_of(WAYS), rest);
        nodes.resize(nodes.len() + PLACES, Node::leaf(0, 0));
        values.resize(values.len() + PLACES, 0.0);
        Self { groups: listed.as_chunks().0.to_vec(), nodes, values }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.groups) + size_of_val(&*self.nodes) + size_of_val(&*self.values)
    }

    fn nodes_of(&self, tree: &Tree) -> &[Node; PLACES] {
        window(&self.nodes, tree.nodes as usize)
    }

    fn values_of(&self, tree: &Tree) -> &[f32; PLACES] {
        window(&self.values, tree.values as usize)
    }

    /// `sum` and what the trees add, in their order, where slots have these `ranks`.
    pub(super) fn walk<const N: usize>(&self, ranks: &[u8; N], mut sum: f32) -> f32 {
        for group in &self.groups {
            let trees: [&[Node; PLACES]; WAYS] = std::array::from_fn(|way| self.nodes_of(&group[way]));
            let depth = group.iter().map(|tree| tree.depth).max().unwrap_or(0);
            let mut at = [0_u8; WAYS];
            for _ in 0..depth {
                for (at, nodes) in at.iter_mut().zip(&trees) {
                    let node = nodes[usize::from(*at)];
                    // No branch: half of all branches here would be foreseen wrongly.
                    *at = node.below + u8::from(ranks[usize::from(node.slot) & (N - 1)] >= node.rank);
                }
            }
            for ((at, nodes), tree) in at.iter().zip(trees).zip(group) {
                let leaf = nodes[usize::from(*at)].slot;
                sum += self.values_of(tree)[usize::from(leaf) % PLACES];
            }
        }
        sum
    }

    /// Adds to `sums` what the trees add for each row of `ranks`: as with [`Perfect`](super::perfect::Perfect).
    pub(super) fn decide<const N: usize>(&self, ranks: &[[u8; ROWS]; N], sums: &mut [f32; ROWS]) {
        let mut found = [[0_u8; ROWS]; PLACES];
        for tree in self.groups.as_flattened() {
            let (nodes, values) = (self.nodes_of(tree), self.values_of(tree));
            for at in (0..usize::from(tree.places)).rev() {
                let Node { slot, rank, below } = nodes[at];
                if rank == NEVER {
                    found[at] = [slot as u8; ROWS];
                    continue;
                }
                let ranks = &ranks[usize::from(slot) & (N - 1)];
                let below = usize::from(below);
                let (below, above) = (found[below], found[below + 1]);
                let found = &mut found[at];
                for row in 0..ROWS {
                    found[row] = if ranks[row] >= rank { above[row] } else { below[row] };
                }
            }
            for (sum, leaf) in sums.iter_mut().zip(&found[0]) {
                *sum += values[usize::from(*leaf)];
            }
        }
    }
}
