//! Reasons: which features moved a score most, with the customer's value, the typical one, a stable code and a sentence. The numbers
//! come from `shap`, `linear` or `shapley`; the words from the feature dictionary.

pub mod counterfactual;
pub mod linear;
pub mod shap;
mod shap_tables;
pub mod shapley;

use std::sync::Arc;

use crate::domain::bundle::baseline::{Baseline, Histogram, Numbers};
use crate::domain::bundle::feature::{Feature, Scalar};
use crate::domain::record::{Entries, Value};

/// The most reasons of one decision.
pub const REASONS_MAX: usize = 50;
/// The reasons of a decision where the caller does not say how many.
pub const REASONS_DEFAULT: usize = 3;

/// What each feature adds to one score, on its log-odds: `base` and all of `values` sum up to them.
#[derive(Debug, Clone, PartialEq)]
pub struct Contributions {
    /// The log-odds of a customer of whom nothing is known.
    pub base: f64,
    /// The contribution of each feature, in dictionary order.
    pub values: Vec<f64>,
    /// The standard error of each contribution, where they are estimates.
    pub errors: Option<Vec<f64>>,
    /// How they were found.
    pub method: Method,
}

/// How contributions were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Exactly, from the trees and their covers: path-dependent TreeSHAP.
    TreeShap,
    /// Exactly, from the weights: the reference is the mean of the training data.
    LinearShap,
    /// As an estimate, from samples of the golden rows.
    SampledShapley,
}

/// The words of one feature.
#[derive(Debug, Clone, PartialEq)]
pub struct Words {
    /// The name of the feature.
    pub feature: String,
    /// The stable code.
    pub code: String,
    /// The sentence where the value raises the score.
    pub raises: String,
    /// The sentence where it lowers it.
    pub lowers: String,
    /// The median of the training data, or its most frequent category.
    pub typical: Option<Scalar>,
}

/// The words of every feature, in dictionary order.
#[derive(Debug, Clone, PartialEq)]
pub struct Book(Vec<Words>);

/// Why one score is what it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The words of the model that gave the score.
    pub book: Arc<Book>,
    /// The log-odds of a customer of whom nothing is known.
    pub base: f64,
    /// How the contributions were found.
    pub method: Method,
    /// What moved the score most, the greatest first.
    pub reasons: Vec<Reason>,
}

/// One feature's part in a score.
#[derive(Debug, Clone, PartialEq)]
pub struct Reason {
    /// The place of the feature in the book.
    pub feature: usize,
    /// What it adds to the log-odds.
    pub log_odds: f64,
    /// The same in percentage points of probability; those of all features sum up to score less base.
    pub points: f64,
    /// The standard error of `log_odds`, where that is an estimate.
    pub error: Option<f64>,
    /// The customer's value; `None` where it is missing.
    pub value: Option<Scalar>,
}

impl Reason {
    /// Whether it raises the score.
    pub fn raises(&self) -> bool {
        self.log_odds >= 0.0
    }
}

impl Book {
    /// The words of `dictionary`, with typical values from `baseline`.
    pub fn new(dictionary: &[Feature], baseline: &Baseline) -> Self {
        let words = |feature: &Feature| {
            let own = feature.reason.as_ref();
            let about = feature.description.trim_end_matches('.');
            Words {
                feature: feature.name.clone(),
                code: own.map_or_else(|| code_of(&feature.name), |own| own.code.clone()),
                raises: own.map_or_else(|| format!("{about}: this raises the risk."), |own| own.raises.clone()),
                lowers: own.map_or_else(|| format!("{about}: this lowers the risk."), |own| own.lowers.clone()),
                typical: baseline.features.get(&feature.name).and_then(typical),
            }
        };
        Self(dictionary.iter().map(words).collect())
    }

    /// The words of the feature at a place of the dictionary.
    pub fn words(&self, feature: usize) -> &Words {
        &self.0[feature]
    }

    /// The `count` features that moved a score most by `found`, for a customer with these `features`. Equal ones keep the order of
    /// the dictionary, so the same customer always has the same reasons.
    pub fn explain(self: &Arc<Self>, found: &Contributions, features: &Entries, count: usize) -> Explanation {
        let mut order: Vec<usize> = (0..found.values.len()).collect();
        order.sort_by(|a, b| found.values[*b].abs().total_cmp(&found.values[*a].abs()));
        order.truncate(count.min(REASONS_MAX));
        let log_odds = found.base + found.values.iter().sum::<f64>();
        let points = 100.0 * slope(found.base, log_odds);
        let reason = |feature: usize| Reason {
            feature,
            log_odds: found.values[feature],
            points: points * found.values[feature],
            error: found.errors.as_ref().map(|errors| errors[feature]),
            value: value_of(features, &self.0[feature].feature),
        };
        let reasons = order.into_iter().map(reason).collect();
        Explanation { book: self.clone(), base: found.base, method: found.method, reasons }
    }
}

/// The probability of `log_odds`.
pub fn probability(log_odds: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-log_odds))
}

/// Probability gained for each unit of log-odds on the whole way from `base` to `log_odds`: so shared out, the parts of the features
/// sum up, and keep their order.
fn slope(base: f64, log_odds: f64) -> f64 {
    let (way, p) = (log_odds - base, probability(base));
    if way.abs() < 1e-6 { p * (1.0 - p) } else { (probability(log_odds) - p) / way }
}

fn value_of(features: &Entries, name: &str) -> Option<Scalar> {
    match &features.iter().find(|(known, _)| known == name)?.1 {
        Value::Number(number) => Some(Scalar::Number(*number)),
        Value::Text(text) => Some(Scalar::Text(text.clone().into_owned())),
        _ => None,
    }
}

/// `MonthlyCharges` and `Monthly charges` become `monthly_charges`.
fn code_of(name: &str) -> String {
    let mut code = String::new();
    let mut before = '_';
    for c in name.chars() {
        let begins = c.is_uppercase() && (before.is_lowercase() || before.is_ascii_digit());
        if (begins || !c.is_alphanumeric()) && !code.is_empty() && !code.ends_with('_') {
            code.push('_');
        }
        if c.is_alphanumeric() {
            code.extend(c.to_lowercase());
        }
        before = c;
    }
    code.trim_end_matches('_').to_owned()
}

/// The median of a number, as the histogram has it, or the most frequent category.
fn typical(histogram: &Histogram) -> Option<Scalar> {
    match histogram {
        Histogram::Number(numbers) => Some(Scalar::Number(median(numbers))),
        Histogram::Category(counted) => {
            // The first of equals, by name.
            let most = counted.categories.iter().rev().max_by_key(|(_, count)| **count)?;
            Some(Scalar::Text(most.0.clone()))
        }
    }
}

/// The median, on a straight line through its bin, rounded to three digits: a histogram knows no more. The outer bins have no end.
fn median(numbers: &Numbers) -> f64 {
    let (edges, half) = (&numbers.edges, numbers.counts.iter().sum::<u64>() as f64 / 2.0);
    let mut below = 0.0;
    for (bin, count) in numbers.counts.iter().enumerate() {
        let count = *count as f64;
        if below + count >= half && count > 0.0 {
            if bin == 0 || bin == edges.len() {
                return edges[bin.min(edges.len() - 1)];
            }
            let exact = edges[bin - 1] + (edges[bin] - edges[bin - 1]) * (half - below) / count;
            let digits = 2 - exact.abs().max(1e-9).log10().floor() as i32;
            let scale = 10_f64.powi(digits.clamp(-12, 12));
            return (exact * scale).round() / scale;
        }
        below += count;
    }
    edges[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn book(features: usize) -> Arc<Book> {
        let words = |at: usize| Words {
            feature: format!("f{at}"),
            code: format!("f{at}"),
            raises: "up".into(),
            lowers: "down".into(),
            typical: None,
        };
        Arc::new(Book((0..features).map(words).collect()))
    }

    #[test]
    fn codes_are_made_of_names() {
        let codes = ["MonthlyCharges", "tenure", "total_day_minutes", "StreamingTV", "Area code (new)"].map(code_of);
        assert_eq!(codes, ["monthly_charges", "tenure", "total_day_minutes", "streaming_tv", "area_code_new"]);
    }

    #[test]
    fn the_typical_value_is_the_median_or_the_most_frequent_category() {
        let numbers = Numbers { edges: vec![10.0, 20.0, 30.0], counts: vec![2, 4, 2, 0], missing: 9 };
        assert_eq!(typical(&Histogram::Number(numbers)), Some(Scalar::Number(15.0)));
        let outer = Numbers { edges: vec![10.0], counts: vec![9, 1], missing: 0 };
        assert_eq!(median(&outer), 10.0);
        let categories = [("a".to_owned(), 3), ("b".to_owned(), 7), ("c".to_owned(), 7)].into();
        let counted = crate::domain::bundle::baseline::Categories { categories, missing: 0 };
        assert_eq!(typical(&Histogram::Category(counted)), Some(Scalar::Text("b".into())));
    }

    #[test]
    fn the_greatest_come_first_with_the_value_of_the_customer() {
        let found = Contributions { base: -1.0, values: vec![0.1, -2.0, 0.5], errors: None, method: Method::TreeShap };
        let features: Entries = vec![("f1".into(), Value::Number(7.0)), ("f2".into(), Value::Null)];
        let explanation = book(3).explain(&found, &features, 2);
        let told: Vec<_> =
            explanation.reasons.iter().map(|reason| (reason.feature, reason.raises(), reason.value.clone())).collect();
        assert_eq!(told, [(1, false, Some(Scalar::Number(7.0))), (2, true, None)]);
    }

    proptest! {
        #[test]
        fn points_sum_up_to_score_less_base(base in -4.0_f64..4.0, values in prop::collection::vec(-2.0_f64..2.0, 1..9)) {
            let log_odds = base + values.iter().sum::<f64>();
            let count = values.len();
            let found = Contributions { base, values, errors: None, method: Method::TreeShap };
            let explanation = book(count).explain(&found, &Vec::new(), count);
            let points: f64 = explanation.reasons.iter().map(|reason| reason.points).sum();
            prop_assert!((points / 100.0 - (probability(log_odds) - probability(base))).abs() < 1e-6);
        }
    }
}
