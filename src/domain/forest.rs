//! A forest: decision trees whose leaves add up to a margin (log-odds), in the one form that every kind of split is turned into
//! (`x < bound`), with the laws that make it safe to walk. Why a margin is what it is, is in `shap`; reading ONNX, in `model::trees`.

/// The most nodes of a forest.
pub const NODES_MAX: usize = 4_000_000;
/// The most splits between a root and a leaf.
pub const DEPTH_MAX: usize = 64;

/// Trees over float32 rows of `columns` values. Nodes stand in one list, each below its parent.
#[derive(Debug, Clone, PartialEq)]
pub struct Forest {
    columns: usize,
    base: f64,
    roots: Vec<u32>,
    nodes: Vec<Node>,
}

/// A node of a tree.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Node {
    /// How much of the training data came here (rows, or the sum of their hessians). 0 where it is not known.
    pub cover: f64,
    /// What becomes of a row that comes here.
    pub step: Step,
}

/// What becomes of a row at a node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// It adds this to the margin.
    Leaf(f64),
    /// It goes on to one of two nodes.
    Split(Split),
}

/// The way on: `below` where `row[column] < bound`, else `above`; a NaN goes where `nan_below` says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Split {
    /// The column that is looked at.
    pub column: u32,
    /// The least value that goes above.
    pub bound: f32,
    /// Whether a missing value (NaN) goes below.
    pub nan_below: bool,
    /// The place of the node below.
    pub below: u32,
    /// The place of the node above.
    pub above: u32,
}

/// The bound of the split `x < threshold`: the least float32 that is not less than it.
pub fn bound_of_less(threshold: f64) -> f32 {
    let nearest = threshold as f32;
    if f64::from(nearest) < threshold { nearest.next_up() } else { nearest }
}

/// The bound of the split `x <= threshold`: the least float32 that is greater.
pub fn bound_of_at_most(threshold: f64) -> f32 {
    let nearest = threshold as f32;
    if f64::from(nearest) > threshold { nearest } else { nearest.next_up() }
}

impl Split {
    /// The node that `value` goes to.
    #[inline]
    pub fn next(&self, value: f32) -> u32 {
        let below = value < self.bound || (self.nan_below && value.is_nan());
        if below { self.below } else { self.above }
    }
}

impl Forest {
    /// A forest whose trees begin at `roots` of `nodes`, and add up to a margin from `base` on.
    ///
    /// Errors: the law that it breaks. A node stands below its parent and has one parent at most, so every walk ends; columns are
    /// within the row; numbers are finite; it is not larger than [`NODES_MAX`] and [`DEPTH_MAX`].
    pub fn new(columns: usize, base: f64, roots: Vec<u32>, nodes: Vec<Node>) -> Result<Self, &'static str> {
        if nodes.len() > NODES_MAX {
            return Err("the forest has too many nodes");
        }
        if !base.is_finite() {
            return Err("a base value is not finite");
        }
        // 0 for a node without a parent, else one more than its depth.
        let mut reached = vec![0_usize; nodes.len()];
        for root in &roots {
            match reached.get_mut(*root as usize) {
                Some(place) if *place == 0 => *place = 1,
                _ => return Err("a tree has no root of its own"),
            }
        }
        for (at, node) in nodes.iter().enumerate() {
            if !(node.cover >= 0.0 && node.cover.is_finite()) {
                return Err("a cover is not a finite number from 0 on");
            }
            match node.step {
                _ if reached[at] == 0 => return Err("a node is reached by no way"),
                Step::Leaf(value) if !value.is_finite() => return Err("a leaf is not finite"),
                Step::Leaf(_) => {}
                Step::Split(split) => {
                    if split.column as usize >= columns || split.bound.is_nan() {
                        return Err("a split looks at no column, or at no number");
                    }
                    if reached[at] > DEPTH_MAX {
                        return Err("a tree is too deep");
                    }
                    for child in [split.below as usize, split.above as usize] {
                        if child <= at || reached.get(child) != Some(&0) {
                            return Err("a node has two parents, or stands before its own");
                        }
                        reached[child] = reached[at] + 1;
                    }
                }
            }
        }
        Ok(Self { columns, base, roots, nodes })
    }

    /// The number of columns of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// What the margin is before any tree.
    pub fn base(&self) -> f64 {
        self.base
    }

    /// The first node of each tree.
    pub fn roots(&self) -> &[u32] {
        &self.roots
    }

    /// The node at a place of the forest.
    pub fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The margin of a `row` of [`columns`](Self::columns) values.
    pub fn margin(&self, row: &[f32]) -> f64 {
        self.base + self.roots.iter().map(|root| self.leaf(*root, row)).sum::<f64>()
    }

    fn leaf(&self, root: u32, row: &[f32]) -> f64 {
        let mut at = root;
        loop {
            match &self.nodes[at as usize].step {
                Step::Leaf(value) => return *value,
                Step::Split(split) => at = split.next(row[split.column as usize]),
            }
        }
    }

    /// Whether the covers can be used: each over 0, and those of two children add up to their parent's (to 1 in 1,000: float32
    /// sums of hessians). Converters leave them out, or write 1 everywhere.
    pub fn has_covers(&self) -> bool {
        self.nodes.iter().all(|node| {
            node.cover > 0.0
                && match node.step {
                    Step::Leaf(_) => true,
                    Step::Split(split) => {
                        let children = self.node(split.below).cover + self.node(split.above).cover;
                        (children - node.cover).abs() <= 1e-3 * node.cover
                    }
                }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leaf(value: f64) -> Node {
        Node { cover: 1.0, step: Step::Leaf(value) }
    }

    fn stump(bound: f32, nan_below: bool, below: u32, above: u32) -> Vec<Node> {
        let split = Split { column: 0, bound, nan_below, below, above };
        vec![Node { cover: 2.0, step: Step::Split(split) }, leaf(-1.0), leaf(1.0)]
    }

    #[test]
    fn a_value_on_the_threshold_and_a_missing_one_go_where_the_split_says() {
        let margin = |bound, nan_below, x: f32| {
            Forest::new(1, 0.0, vec![0], stump(bound, nan_below, 1, 2)).expect("a legal forest").margin(&[x])
        };
        assert_eq!(margin(bound_of_less(2.0), false, 2.0), 1.0);
        assert_eq!(margin(bound_of_at_most(2.0), false, 2.0), -1.0);
        assert_eq!(margin(bound_of_at_most(2.0), false, 2.0_f32.next_up()), 1.0);
        assert_eq!((margin(1.0, false, f32::NAN), margin(1.0, true, f32::NAN)), (1.0, -1.0));
        assert_eq!(margin(bound_of_at_most(0.0), false, -0.0), -1.0);
    }

    #[test]
    fn what_could_not_be_walked_is_refused() {
        let check = |nodes, roots| Forest::new(1, 0.0, roots, nodes).expect_err("a law is broken");
        assert!(check(stump(1.0, false, 0, 2), vec![0]).contains("before its own"));
        assert!(check(stump(1.0, false, 1, 1), vec![0]).contains("two parents"));
        assert!(check(stump(1.0, false, 1, 7), vec![0]).contains("two parents"));
        assert!(check(stump(f32::NAN, false, 1, 2), vec![0]).contains("no number"));
        assert!(check(stump(1.0, false, 1, 2), vec![9]).contains("no root"));
        assert!(check(vec![leaf(f64::NAN)], vec![0]).contains("not finite"));
        assert!(check(vec![leaf(0.0), leaf(0.0)], vec![0]).contains("no way"));
    }

    #[test]
    fn covers_that_are_left_out_or_all_one_are_seen() {
        let with = |cover| {
            let mut nodes = stump(1.0, false, 1, 2);
            nodes.iter_mut().for_each(|node| node.cover = cover);
            Forest::new(1, 0.0, vec![0], nodes).expect("a legal forest").has_covers()
        };
        assert!(!with(0.0) && !with(1.0));
        assert!(Forest::new(1, 0.0, vec![0], stump(1.0, false, 1, 2)).expect("a legal forest").has_covers());
    }

    proptest! {
        /// The bound of float32 rows divides them as the threshold in f64 does.
        #[test]
        fn a_bound_divides_as_its_threshold(x in any::<f32>(), t in -1e30_f64..1e30, near in any::<bool>(), ulps in -1_i64..=1) {
            // Close to a float32 is where a wrong rounding shows.
            let t = if near && x.is_finite() { f64::from_bits(f64::from(x).to_bits().wrapping_add_signed(ulps)) } else { t };
            prop_assume!(t.is_finite() && !x.is_nan());
            prop_assert_eq!(x < bound_of_less(t), f64::from(x) < t);
            prop_assert_eq!(x < bound_of_at_most(t), f64::from(x) <= t);
        }
    }
}
