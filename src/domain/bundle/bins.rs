//! The bins of a baseline, compiled: which of them each value of a record falls into, without an allocation. Features, with a bin for
//! what is missing, and the score behind them, stand in one row of cells, so that two rows of counts can be added.

use std::ops::Range;

use smallvec::{SmallVec, smallvec};

use super::baseline::{Baseline, Histogram};
use crate::domain::record::Value;

/// The most categories of a feature that have a cell of their own, the most frequent ones; the rest share one.
pub const CATEGORIES_MAX: usize = 32;
/// What the score is called among the features.
pub const SCORE: &str = "score";

/// Where every value is counted.
#[derive(Debug)]
pub struct Bins {
    features: Vec<Feature>,
    /// Edges of the score.
    score: Box<[f64]>,
    score_cells: Range<usize>,
    baseline: Box<[u64]>,
}

#[derive(Debug)]
struct Feature {
    name: Box<str>,
    cells: Range<usize>,
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    /// A cell between the edges, one for what is missing.
    Number(Box<[f64]>),
    /// A cell for each category, by their sorted names, one for any other, one for what is missing.
    Category(Box<[Box<str>]>),
}

impl Bins {
    /// The bins of `baseline` for the features in the order of `names`, all of which it has.
    pub fn new<'n>(baseline: &Baseline, names: impl Iterator<Item = &'n str>) -> Self {
        let mut counts: Vec<u64> = Vec::new();
        let mut features = Vec::new();
        for name in names {
            let Some(histogram) = baseline.features.get(name) else { continue };
            let first = counts.len();
            let rule = match histogram {
                Histogram::Number(numbers) => {
                    counts.extend(&numbers.counts);
                    counts.push(numbers.missing);
                    Rule::Number(numbers.edges.as_slice().into())
                }
                Histogram::Category(counted) => {
                    let mut frequent: Vec<(&String, u64)> =
                        counted.categories.iter().map(|(name, count)| (name, *count)).collect();
                    frequent.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
                    let rest = frequent.split_off(frequent.len().min(CATEGORIES_MAX));
                    frequent.sort();
                    counts.extend(frequent.iter().map(|(_, count)| count));
                    counts.push(rest.iter().map(|(_, count)| count).sum());
                    counts.push(counted.missing);
                    Rule::Category(frequent.into_iter().map(|(name, _)| name.as_str().into()).collect())
                }
            };
            features.push(Feature { name: name.into(), cells: first..counts.len(), rule });
        }
        let first = counts.len();
        counts.extend(&baseline.score.counts);
        let score_cells = first..counts.len();
        Self { features, score: baseline.score.edges.as_slice().into(), score_cells, baseline: counts.into() }
    }

    /// The counts of training time, a cell each.
    pub fn baseline(&self) -> &[u64] {
        &self.baseline
    }

    /// Each feature with its cells, and [`SCORE`] with its own.
    pub fn spans(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        let features = self.features.iter().map(|feature| (&*feature.name, feature.cells.clone()));
        features.chain(std::iter::once((SCORE, self.score_cells.clone())))
    }

    /// The cells of the score: each record is in one of them.
    pub fn score_cells(&self) -> Range<usize> {
        self.score_cells.clone()
    }

    /// Tells `count` the cell of each feature of a record that was accepted, and of its score.
    pub fn each<K: AsRef<str>>(&self, features: &[(K, Value)], score: f64, mut count: impl FnMut(usize)) {
        let mut seen: SmallVec<[bool; 64]> = smallvec![false; self.features.len()];
        // Most callers write their features in the order of the dictionary: then the next one is a comparison away.
        let mut expected = 0;
        for (name, value) in features {
            let name = name.as_ref();
            let at = match self.features.get(expected) {
                Some(feature) if *feature.name == *name => Some(expected),
                _ => self.features.iter().position(|feature| *feature.name == *name),
            };
            let Some(at) = at else { continue };
            expected = at + 1;
            seen[at] = true;
            let Feature { cells, rule, .. } = &self.features[at];
            count(match (rule, value) {
                (Rule::Number(edges), Value::Number(number)) => {
                    cells.start + edges.partition_point(|edge| edge <= number)
                }
                (Rule::Category(known), Value::Text(text)) => {
                    let found = known.binary_search_by(|name| (**name).cmp(text));
                    cells.start + found.unwrap_or(known.len())
                }
                _ => cells.end - 1,
            });
        }
        let unseen = self.features.iter().zip(&seen).filter(|(_, seen)| !**seen);
        unseen.for_each(|(feature, _)| count(feature.cells.end - 1));
        count(self.score_cells.start + self.score.partition_point(|edge| *edge <= score));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_its_cell_and_what_is_absent_is_missing() {
        let categories: serde_json::Map<String, serde_json::Value> =
            (0..40).map(|at| (format!("c{at:02}"), serde_json::json!(if at == 7 { 1 } else { 100 + at }))).collect();
        let baseline = serde_json::json!({
            "rows": 10,
            "features": {
                "n": {"edges": [0.0, 10.0], "counts": [1, 2, 3], "missing": 4},
                "c": {"categories": {"a": 5, "b": 5}, "missing": 0},
                "many": {"categories": categories, "missing": 9},
            },
            "score": {"edges": [0.5], "counts": [6, 4]},
        });
        let baseline: Baseline = serde_json::from_value(baseline).expect("a baseline");
        let bins = Bins::new(&baseline, ["n", "c", "many"].into_iter());
        let spans: Vec<(&str, Range<usize>)> = bins.spans().collect();
        assert_eq!(spans, [("n", 0..4), ("c", 4..8), ("many", 8..42), (SCORE, 42..44)]);
        assert_eq!(bins.baseline()[..8], [1, 2, 3, 4, 5, 5, 0, 0]);
        // Eight of forty share a cell: the least frequent ones.
        assert_eq!(bins.baseline()[40], 1 + (100..107).sum::<u64>());
        let cells = |features: &[(&str, Value)], score: f64| {
            let mut cells = Vec::new();
            bins.each(features, score, |cell| cells.push(cell));
            cells.sort_unstable();
            cells
        };
        let text = |text: &'static str| Value::Text(text.into());
        let record = [("n", Value::Number(10.0)), ("c", text("b")), ("many", text("c07"))];
        assert_eq!(cells(&record, 0.5), [2, 5, 40, 43]);
        let record = [("many", Value::Null), ("c", text("z")), ("n", Value::Number(-1.0))];
        assert_eq!(cells(&record, 0.1), [0, 6, 41, 42]);
        assert_eq!(cells(&[], 0.1), [3, 7, 41, 42]);
    }
}
