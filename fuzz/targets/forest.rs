//! A forest, legal or not, and its compiled form: the same bits as the plain walk, alone and in batches.

use mainstay::domain::compiled::Compiled;
use mainstay::domain::forest::{Forest, Node, Split, Step};

use super::Bytes;

/// Enough to fill a block of rows and to begin another.
const ROWS: usize = 40;

pub(super) fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let columns = usize::from(bytes.u8() % 12);
    let (trees, rows) = (bytes.u8() % 24, usize::from(bytes.u8()) % ROWS);
    let base = f64::from(number(&mut bytes));
    let (mut roots, mut nodes) = (Vec::new(), Vec::new());
    for _ in 0..trees {
        roots.push(grow(&mut bytes, 0, &mut nodes));
    }
    // Now and then an edge that is none of a tree: that is refused, never walked for ever.
    if bytes.u8() == 255
        && let Some(node) = nodes.get_mut(usize::from(bytes.u16()))
        && let Step::Split(split) = &mut node.step
    {
        split.below = u32::from(bytes.u16());
    }
    let Ok(forest) = Forest::new(columns, base, roots, nodes) else { return };
    let rows: Vec<Vec<f32>> = (0..rows).map(|_| (0..columns).map(|_| number(&mut bytes)).collect()).collect();
    is_the_walk(&forest, &rows);
}

/// Float32 sums in the order of the trees are what the compiled form gives.
pub(super) fn is_the_walk(forest: &Forest, rows: &[Vec<f32>]) {
    let Ok(compiled) = Compiled::new(forest) else { return };
    if forest.columns() == 0 {
        return;
    }
    let mut together = Vec::new();
    compiled.margins(&rows.concat(), |margin| together.push(margin));
    assert_eq!(together.len(), rows.len());
    for (row, together) in rows.iter().zip(together) {
        let leaf = |root: &u32| {
            let mut at = *root;
            loop {
                match forest.node(at).step {
                    Step::Leaf(value) => return value as f32,
                    Step::Split(split) => at = split.next(row[split.column as usize]),
                }
            }
        };
        let walked = forest.roots().iter().fold(0.0, |sum, root| sum + leaf(root)) + forest.base() as f32;
        let alone = compiled.margin(row);
        // Which NaN comes of infinities is nobody's promise.
        assert!(
            alone.to_bits() == walked.to_bits() || (alone.is_nan() && walked.is_nan()),
            "alone: {alone} for {walked}"
        );
        assert!(
            together.to_bits() == walked.to_bits() || (together.is_nan() && walked.is_nan()),
            "together: {together} for {walked}"
        );
    }
}

fn grow(bytes: &mut Bytes, depth: usize, nodes: &mut Vec<Node>) -> u32 {
    let at = nodes.len() as u32;
    let kind = bytes.u8();
    nodes.push(Node { cover: 1.0, step: Step::Leaf(0.0) });
    let step = if kind.is_multiple_of(3) || bytes.is_empty() || depth > 70 {
        Step::Leaf(f64::from(number(bytes)))
    } else {
        let (column, bound) = (u32::from(bytes.u8() % 12), number(bytes));
        let (below, above) = (grow(bytes, depth + 1, nodes), grow(bytes, depth + 1, nodes));
        Step::Split(Split { column, bound, nan_below: kind & 1 == 0, below, above })
    };
    nodes[at as usize].step = step;
    at
}

/// Few numbers that meet each other, those that are odd, and any other.
fn number(bytes: &mut Bytes) -> f32 {
    let kind = bytes.u8();
    let near = f32::from(kind / 16) - 8.0;
    match kind % 16 {
        0..=6 => near,
        7 => near.next_up(),
        8 => near.next_down(),
        9 => f32::NAN,
        10 => f32::INFINITY,
        11 => f32::NEG_INFINITY,
        12 => -0.0,
        13 => f32::MIN_POSITIVE,
        _ => bytes.f32(),
    }
}
