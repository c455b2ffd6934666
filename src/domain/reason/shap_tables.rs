//! SHAP values by looking them up: what a group of leaves gives to each feature depends only on which of their conditions a row
//! meets, so all that it can give is computed once, when a model is loaded. Exact as `shap` says; only float32 rounding is added.
//!
//! A row costs one binary search a column, one vector addition a column (the place in every table at once), one look-up a group.

use smallvec::{SmallVec, smallvec};

use super::shap::{Leaf, shapley};

/// Values of one table while leaves are added to it. Larger tables mean fewer look-ups a row, but more misses of the cache.
const TABLE_SOFT: usize = 2_048;
/// Values of one table at most: a place in it is a `u16`.
const TABLE_MAX: usize = u16::MAX as usize;
/// Values of all tables (32 MiB), and of all steps (32 MiB), at most.
const VALUES_MAX: usize = 8 << 20;
const STEPS_MAX: usize = 16 << 20;
/// Leaves of one table at most: a set of them is a `u64`.
const LEAVES_MAX: usize = 64;

/// The tables of one forest.
#[derive(Debug)]
pub(super) struct Tables {
    columns: Vec<Column>,
    /// For each rank of each column: what it adds to the place in each table, `groups.len()` values.
    steps: Vec<u16>,
    groups: Vec<Group>,
    /// The features of the groups, one after the other.
    slots: Vec<u16>,
    values: Vec<f32>,
}

/// A column that the forest looks at.
#[derive(Debug)]
struct Column {
    column: usize,
    /// All its bounds, rising. A value has as its rank the number of bounds that it reaches; a NaN comes behind the last rank.
    bounds: Box<[f32]>,
    /// The place of rank 0 in `steps`, in units of `groups.len()`.
    first: usize,
}

/// Leaves with a table of their own.
#[derive(Debug)]
struct Group {
    values: usize,
    width: usize,
}

/// A group before it is filled: for each column that it looks at, the classes of ranks that no leaf of it can tell apart.
struct Plan {
    columns: Vec<Classes>,
    cells: usize,
    slots: Vec<u16>,
}

struct Classes {
    column: u32,
    /// Of each class the leaves that it does not rule out.
    masks: Vec<u64>,
    /// Where the class changes: the least value of each piece, and its class. Values below the first are of class 0.
    pieces: Vec<(f32, usize)>,
    nan: usize,
}

impl Tables {
    /// The tables of `leaves`, whose columns belong to the features `owners`; `None` where they would be too large.
    pub(super) fn new(leaves: &[Leaf], owners: &[u16]) -> Option<Self> {
        let mut plans: Vec<(&[Leaf], Plan)> = Vec::new();
        let (mut begin, mut open) = (0, None);
        for end in 1..=leaves.len() {
            // As many leaves in a row as fit into one table; neighbours share most of their conditions.
            let plan = Plan::new(&leaves[begin..end], owners, TABLE_SOFT);
            match (plan, open.take()) {
                (Some(plan), _) => open = Some(plan),
                (None, before) => {
                    if let Some(plan) = before {
                        plans.push((&leaves[begin..end - 1], plan));
                        begin = end - 1;
                    }
                    // A lone leaf may have a larger one.
                    open = Some(Plan::new(&leaves[begin..end], owners, TABLE_MAX)?);
                }
            }
        }
        plans.extend(open.map(|plan| (&leaves[begin..], plan)));
        let values = plans.iter().map(|(_, plan)| plan.cells * plan.slots.len()).sum();
        if values > VALUES_MAX {
            return None;
        }

        let columns = columns(leaves);
        let ranks: usize = columns.iter().map(|column| column.bounds.len() + 2).sum();
        if ranks * plans.len() > STEPS_MAX {
            return None;
        }
        let mut tables = Self {
            steps: vec![0; ranks * plans.len()],
            groups: Vec::with_capacity(plans.len()),
            slots: Vec::with_capacity(plans.iter().map(|(_, plan)| plan.slots.len()).sum()),
            // Megabytes, which are kept: none of them too many.
            values: Vec::with_capacity(values),
            columns,
        };
        for (at, (leaves, plan)) in plans.iter().enumerate() {
            tables.add_steps(plan, at, plans.len());
            let (values, width) = (tables.values.len(), plan.slots.len());
            plan.fill(leaves, owners, &mut tables.values);
            tables.groups.push(Group { values, width });
            tables.slots.extend(&plan.slots);
        }
        Some(tables)
    }

    fn add_steps(&mut self, plan: &Plan, group: usize, groups: usize) {
        let mut stride = plan.slots.len();
        for classes in &plan.columns {
            let of_all = self.columns.iter().find(|column| column.column == classes.column as usize);
            let Some(Column { bounds, first, .. }) = of_all else { continue };
            // Rank 0 is below every bound; the last one is a NaN.
            let least = std::iter::once(f32::NEG_INFINITY).chain(bounds.iter().copied());
            let ranks = least.map(|value| classes.of(value)).chain([classes.nan]);
            for (rank, class) in ranks.enumerate() {
                self.steps[(first + rank) * groups + group] = (class * stride) as u16;
            }
            stride *= classes.masks.len();
        }
    }

    /// Adds the contribution of each feature for `row` to its place of `out`.
    pub(super) fn explain(&self, row: &[f32], out: &mut [f64]) {
        let mut places: SmallVec<[u16; 2_048]> = smallvec![0; self.groups.len()];
        for Column { column, bounds, first } in &self.columns {
            let value = row[*column];
            let rank = if value.is_nan() { bounds.len() + 1 } else { bounds.partition_point(|bound| *bound <= value) };
            let steps = &self.steps[(first + rank) * self.groups.len()..][..self.groups.len()];
            places.iter_mut().zip(steps).for_each(|(place, step)| *place = place.wrapping_add(*step));
        }
        let mut slots = self.slots.as_slice();
        for (group, place) in self.groups.iter().zip(&places) {
            let (here, rest) = slots.split_at(group.width);
            slots = rest;
            let values = &self.values[group.values + usize::from(*place)..][..group.width];
            for (slot, value) in here.iter().zip(values) {
                out[usize::from(*slot)] += f64::from(*value);
            }
        }
    }
}

/// Every column of `leaves` with all its bounds.
fn columns(leaves: &[Leaf]) -> Vec<Column> {
    let mut bounds: Vec<(u32, f32)> = Vec::new();
    for player in leaves.iter().flat_map(|leaf| &leaf.players) {
        bounds.push((player.column, f32::NEG_INFINITY));
        bounds.extend([player.low, player.high].iter().filter(|bound| !bound.is_nan()).map(|b| (player.column, *b)));
    }
    bounds.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    bounds.dedup();
    let mut first = 0;
    bounds
        .chunk_by(|a, b| a.0 == b.0)
        .map(|of_column| {
            // Minus infinity, which stands for "no bound", is reached by all.
            let bounds: Box<[f32]> = of_column.iter().map(|(_, bound)| *bound).skip(1).collect();
            let here = first;
            first += bounds.len() + 2;
            Column { column: of_column[0].0 as usize, bounds, first: here }
        })
        .collect()
}

impl Plan {
    /// The plan of a table for `leaves`; `None` when it would have more than `values_max` values.
    fn new(leaves: &[Leaf], owners: &[u16], values_max: usize) -> Option<Self> {
        if leaves.len() > LEAVES_MAX {
            return None;
        }
        let mut used: Vec<u32> = leaves.iter().flat_map(|leaf| &leaf.players).map(|player| player.column).collect();
        used.sort_unstable();
        used.dedup();
        let mut slots: Vec<u16> = used.iter().map(|column| owners[*column as usize]).collect();
        slots.sort_unstable();
        slots.dedup();
        let (mut cells, mut columns) = (1_usize, Vec::with_capacity(used.len()));
        for column in used {
            let classes = Classes::new(leaves, column);
            cells = cells.checked_mul(classes.masks.len())?;
            if cells.checked_mul(slots.len())? > values_max {
                return None;
            }
            columns.push(classes);
        }
        Some(Self { columns, cells, slots })
    }

    /// Computes what every cell gives to each slot, and adds that to `values`.
    fn fill(&self, leaves: &[Leaf], owners: &[u16], values: &mut Vec<f32>) {
        let width = self.slots.len();
        let mut sums = vec![0.0_f64; self.cells * width];
        for (at, leaf) in leaves.iter().enumerate() {
            let count = leaf.players.len();
            let mut given = vec![0.0; count << count];
            for (follows, given) in given.chunks_exact_mut(count.max(1)).enumerate() {
                shapley(leaf, follows as u64, given);
            }
            // Of each player: its slot, and for each class of its column whether that follows.
            let place = |column: u32| self.columns.iter().position(|classes| classes.column == column).unwrap_or(0);
            let slot = |column: u32| self.slots.binary_search(&owners[column as usize]).unwrap_or(0);
            let players: Vec<(usize, usize)> =
                leaf.players.iter().map(|player| (place(player.column), slot(player.column))).collect();
            let mut digits = vec![0_usize; self.columns.len()];
            for cell in sums.chunks_exact_mut(width.max(1)) {
                let mut follows = 0;
                for (bit, (place, _)) in players.iter().enumerate() {
                    let mask = self.columns[*place].masks[digits[*place]];
                    follows |= (mask >> at & 1) as usize * (1 << bit);
                }
                for ((_, slot), given) in players.iter().zip(&given[follows * count..]) {
                    cell[*slot] += given;
                }
                for (digit, classes) in digits.iter_mut().zip(&self.columns) {
                    *digit += 1;
                    if *digit < classes.masks.len() {
                        break;
                    }
                    *digit = 0;
                }
            }
        }
        values.extend(sums.iter().map(|sum| *sum as f32));
    }
}

impl Classes {
    fn new(leaves: &[Leaf], column: u32) -> Self {
        let players: Vec<(usize, &super::shap::Player)> = leaves
            .iter()
            .enumerate()
            .filter_map(|(at, leaf)| Some((at, leaf.players.iter().find(|player| player.column == column)?)))
            .collect();
        let mask = |follows: &dyn Fn(&super::shap::Player) -> bool| {
            players.iter().filter(|(_, player)| follows(player)).fold(0_u64, |mask, (at, _)| mask | 1 << at)
        };
        let mut bounds: Vec<f32> =
            players.iter().flat_map(|(_, p)| [p.low, p.high]).filter(|bound| !bound.is_nan()).collect();
        bounds.push(f32::NEG_INFINITY);
        bounds.sort_by(f32::total_cmp);
        bounds.dedup();
        let mut masks: Vec<u64> = Vec::new();
        let mut class_of = |mask: u64| match masks.iter().position(|known| *known == mask) {
            Some(class) => class,
            None => {
                masks.push(mask);
                masks.len() - 1
            }
        };
        // `high` is a NaN where there is none: nothing reaches that.
        let reaches = |bound: f32, high: f32| bound >= high;
        let pieces: Vec<(f32, usize)> = bounds
            .iter()
            .map(|bound| (*bound, class_of(mask(&|p| p.low <= *bound && !reaches(*bound, p.high)))))
            .collect();
        let nan = class_of(mask(&|player| player.nan));
        Self { column, masks, pieces, nan }
    }

    fn of(&self, value: f32) -> usize {
        let piece = self.pieces.partition_point(|(least, _)| *least <= value);
        self.pieces[piece.saturating_sub(1)].1
    }
}
