//! What goes over the wire about the reasons of a score, and what would change it. Translation only.

use serde::Serialize;
use utoipa::ToSchema;

use super::wire::FeatureValue;
use crate::domain::bundle::feature::Scalar;
use crate::domain::policy::Policy;
use crate::domain::reason::{self, Explanation, counterfactual};

/// A customer of whom nothing is known: this and the contributions of all features sum up to the score.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Base {
    /// As log-odds.
    log_odds: f64,
    /// As a probability.
    #[schema(minimum = 0, maximum = 1)]
    score: f64,
    /// How contributions were found.
    #[schema(value_type = Method)]
    method: reason::Method,
}

/// `tree_shap` and `linear_shap` are exact; `sampled_shapley` is an estimate with a standard error.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "the contract's name of domain::reason::Method")]
pub(super) enum Method {
    TreeShap,
    LinearShap,
    SampledShapley,
}

/// One feature's part in a score.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Reason<'d> {
    /// Its stable code, for your own words.
    #[schema(value_type = String, example = "month_to_month")]
    code: &'d str,
    /// The feature.
    #[schema(value_type = String, example = "Contract")]
    feature: &'d str,
    /// A sentence for people.
    #[schema(value_type = String)]
    text: &'d str,
    /// What it adds to the log-odds of the score; below zero it lowers the score.
    log_odds: f64,
    /// The same in percentage points of probability: those of all features sum up to score less base.
    points: f64,
    /// The standard error of `log_odds`, where that is an estimate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    standard_error: Option<f64>,
    /// The value of this customer; null where it is missing.
    #[schema(value_type = FeatureValue)]
    value: Option<&'d Scalar>,
    /// The median of the training data, or its most frequent category.
    #[schema(value_type = FeatureValue)]
    typical: Option<&'d Scalar>,
}

/// Changes that would lower the tier of this customer, by the model: what it has seen of others, not what would follow for sure.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Counterfactual<'d> {
    /// One for each feature that is changed, at most three.
    changes: Vec<Change<'d>>,
    /// The score with them.
    #[schema(minimum = 0, maximum = 1)]
    score: f64,
    /// The tier with them.
    #[schema(value_type = String, example = "low")]
    tier: &'d str,
}

/// A change of one feature.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Change<'d> {
    /// The feature.
    #[schema(value_type = String, example = "Contract")]
    feature: &'d str,
    /// The value of this customer.
    #[schema(value_type = FeatureValue)]
    from: &'d Scalar,
    /// What it is changed to.
    #[schema(value_type = FeatureValue)]
    to: &'d Scalar,
    /// A sentence for people.
    #[schema(value_type = String)]
    text: &'d str,
}

impl<'d> Counterfactual<'d> {
    /// All that were `found`, under the policy that decided.
    pub(super) fn all(found: &'d [counterfactual::Counterfactual], policy: &'d Policy) -> Vec<Self> {
        let change = |told: &'d counterfactual::Told| Change {
            feature: &told.feature,
            from: &told.from,
            to: &told.to,
            text: &told.text,
        };
        let one = |one: &'d counterfactual::Counterfactual| Self {
            changes: one.changes.iter().map(change).collect(),
            score: one.verdict.score.value(),
            tier: &policy.tiers()[one.verdict.tier].name,
        };
        found.iter().map(one).collect()
    }
}

impl Base {
    /// What the reasons of `explanation` begin from.
    pub(super) fn new(explanation: &Explanation) -> Self {
        Self { log_odds: explanation.base, score: reason::probability(explanation.base), method: explanation.method }
    }
}

impl<'d> Reason<'d> {
    /// Every reason of `explanation`.
    pub(super) fn all(explanation: &'d Explanation) -> Vec<Self> {
        explanation.reasons.iter().map(|reason| Self::new(&explanation.book, reason)).collect()
    }

    fn new(book: &'d reason::Book, reason: &'d reason::Reason) -> Self {
        let words = book.words(reason.feature);
        Self {
            code: &words.code,
            feature: &words.feature,
            text: if reason.raises() { &words.raises } else { &words.lowers },
            log_odds: reason.log_odds,
            points: reason.points,
            standard_error: reason.error,
            value: reason.value.as_ref(),
            typical: words.typical.as_ref(),
        }
    }
}
