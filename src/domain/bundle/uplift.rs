//! Uplift: what a model says, beside its score, of what interventions would change. The card's part on it and its laws; what is chosen by
//! it is the business of `domain::policy`.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::card::Estimate;

/// The most interventions that a model estimates.
pub const INTERVENTIONS_MAX: usize = 64;

/// The uplift of each intervention that a model estimates, in the order of its card: by how much the intervention lowers this customer's
/// probability of churn, `P(churn | nothing) - P(churn | intervention)`, from -1 to 1; below 0 it drives the customer away.
pub type Uplifts = SmallVec<[f32; 4]>;

/// What a card says of a graph's estimates of uplift.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uplift {
    /// Name of the output, float32 `[N, interventions]`.
    pub output: String,
    /// The randomised experiment that they were learnt from: without one nobody knows what an intervention changes.
    pub experiment: String,
    /// The interventions, in the order of the output's columns.
    pub interventions: Vec<Estimated>,
}

/// An intervention whose uplift a model estimates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimated {
    /// The action, by its name in policies.
    pub action: String,
    /// The Qini coefficient on rows that the model never saw (Radcliffe 2007): how much better than by chance it ranks customers by what
    /// the intervention changes; 0 is chance.
    pub qini: Estimate,
}

impl Uplift {
    /// Every law that is broken, as sentences that begin with their place.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (place, text) in [("output", &self.output), ("experiment", &self.experiment)] {
            if text.trim().is_empty() {
                problems.push(format!("uplift.{place}: is empty"));
            }
        }
        if !(1..=INTERVENTIONS_MAX).contains(&self.interventions.len()) {
            problems.push(format!("uplift.interventions: expected 1 to {INTERVENTIONS_MAX}"));
        }
        for (at, Estimated { action, qini: Estimate { value, low, high } }) in self.interventions.iter().enumerate() {
            if action.trim().is_empty() || action == "none" {
                problems.push(format!("uplift.interventions[{at}].action: expected the name of an action"));
            }
            if self.interventions[..at].iter().any(|other| other.action == *action) {
                problems.push(format!("uplift.interventions[{at}].action: \"{action}\" is there already"));
            }
            // Written so that a NaN fails too.
            if !(low <= value && value <= high) {
                problems.push(format!("uplift.interventions[{at}].qini: expected low <= value <= high"));
            }
        }
        problems
    }

    /// The column of an action.
    pub fn column(&self, action: &str) -> Option<usize> {
        self.interventions.iter().position(|estimated| estimated.action == action)
    }
}

/// Whether a number is a difference of two probabilities.
pub fn is_uplift(number: f32) -> bool {
    (-1.0..=1.0).contains(&number)
}
