//! The baseline: training-time histograms of every feature and of the score. What is measured against it comes elsewhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::feature::{Feature, Kind};

/// `baseline.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// Rows counted.
    pub rows: u64,
    /// A histogram per feature of the dictionary.
    pub features: BTreeMap<String, Histogram>,
    /// The scores of the same rows.
    pub score: Bins,
}

/// The histogram of one feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Histogram {
    /// Of a number.
    Number(Numbers),
    /// Of a category.
    Category(Categories),
}

/// The histogram of a number: `counts` has one more entry than `edges`, as the bins are (-inf, e0), [e0, e1), ..., [ek, inf).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Numbers {
    /// Bin edges, strictly rising.
    pub edges: Vec<f64>,
    /// Rows per bin.
    pub counts: Vec<u64>,
    /// Rows without a value.
    pub missing: u64,
}

/// The histogram of a category.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Categories {
    /// Rows per category.
    pub categories: BTreeMap<String, u64>,
    /// Rows without a value.
    pub missing: u64,
}

/// The histogram of a value that is never missing; bins as in [`Numbers`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bins {
    /// Bin edges, strictly rising.
    pub edges: Vec<f64>,
    /// Rows per bin.
    pub counts: Vec<u64>,
}

impl Baseline {
    /// Every way in which the baseline does not fit `dictionary`, as sentences.
    pub fn problems(&self, dictionary: &[Feature]) -> Vec<String> {
        let mut problems = Vec::new();
        if self.rows == 0 {
            problems.push("baseline: has no rows".to_owned());
        }
        for name in self.features.keys().filter(|name| !dictionary.iter().any(|feature| feature.name == **name)) {
            problems.push(format!("baseline: \"{name}\" is not in the dictionary"));
        }
        for feature in dictionary {
            let name = &feature.name;
            let total = match (self.features.get(name), feature.kind) {
                (None, _) => {
                    problems.push(format!("baseline: \"{name}\" is missing"));
                    continue;
                }
                (Some(Histogram::Number(numbers)), Kind::Number | Kind::Integer) => {
                    if !well_formed(&numbers.edges, &numbers.counts) {
                        problems.push(format!(
                            "baseline: \"{name}\": edges rise strictly and counts are one more than edges"
                        ));
                    }
                    total(&numbers.counts, numbers.missing)
                }
                (Some(Histogram::Category(counted)), Kind::Category) => {
                    let known = feature.categories.as_ref();
                    for category in counted
                        .categories
                        .keys()
                        .filter(|category| !known.is_some_and(|known| known.contains_key(*category)))
                    {
                        problems.push(format!("baseline: \"{name}\": \"{category}\" is not in the dictionary"));
                    }
                    total(counted.categories.values(), counted.missing)
                }
                (Some(_), _) => {
                    problems.push(format!("baseline: \"{name}\": the histogram is not of the feature's type"));
                    continue;
                }
            };
            if total != Some(self.rows) {
                problems.push(format!("baseline: \"{name}\": counts and missing do not add up to {} rows", self.rows));
            }
        }
        if !well_formed(&self.score.edges, &self.score.counts) || total(&self.score.counts, 0) != Some(self.rows) {
            problems.push(format!(
                "baseline: score: edges rise strictly, counts are one more and add up to {} rows",
                self.rows
            ));
        }
        problems
    }
}

fn well_formed(edges: &[f64], counts: &[u64]) -> bool {
    !edges.is_empty()
        && counts.len() == edges.len() + 1
        && edges.iter().all(|edge| edge.is_finite())
        && edges.windows(2).all(|pair| pair[0] < pair[1])
}

fn total<'c>(counts: impl IntoIterator<Item = &'c u64>, missing: u64) -> Option<u64> {
    counts.into_iter().try_fold(missing, |sum, count| sum.checked_add(*count))
}
