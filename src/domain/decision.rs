//! The decision: what was answered about one customer, by which versions. How it is written to JSON is in `http::wire`.

use std::sync::Arc;

use crate::domain::id::DecisionId;
use crate::domain::policy::assessment::{Choice, Trace};
use crate::domain::policy::layers::Chance;
use crate::domain::policy::{Intervention, Policy, Tier};
use crate::domain::reason::Explanation;
use crate::domain::reason::counterfactual::Counterfactual;
use crate::domain::score::Score;

/// The role of the model that answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arm {
    /// The model that answers customers.
    Champion,
    /// The model under trial.
    Challenger,
}

impl Arm {
    /// Its name: `champion` or `challenger`.
    pub fn name(self) -> &'static str {
        match self {
            Arm::Champion => "champion",
            Arm::Challenger => "challenger",
        }
    }
}

/// The name and the version of a model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelId {
    /// Its name, such as `telco-churn`.
    pub name: String,
    /// Its version, such as `1.0.0`.
    pub version: String,
    /// The sha256 of its manifest, which holds the hashes of all its files: 64 hexadecimal digits.
    pub digest: String,
}

impl std::fmt::Display for ModelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// One decision on one customer.
#[derive(Debug, Clone)]
pub struct Decision {
    /// Its id, unique and sorted by time.
    pub id: DecisionId,
    /// When it was made, milliseconds since 1970, UTC.
    pub decided_at_ms: u64,
    /// The churn probability.
    pub score: Score,
    /// The model that gave it.
    pub model: Arc<ModelId>,
    /// The role of that model.
    pub arm: Arm,
    /// The policy that turned it into a tier: the one in force, or that of the arm of an experiment.
    pub policy: Arc<Policy>,
    /// The place of the tier in `policy.tiers()`.
    pub tier: usize,
    /// What is offered.
    pub choice: Choice,
    /// What is lost with the customer, in the policy's currency.
    pub value_at_stake: Option<f64>,
    /// Which rules fired.
    pub trace: Trace,
    /// What chance had to do with it; `None` where neither a holdout nor an experiment had a say.
    pub chance: Option<Chance>,
    /// How old the features were, in milliseconds, where the caller said it.
    pub features_age_ms: Option<u64>,
    /// Why the score is what it is, where that was wanted.
    pub explanation: Option<Arc<Explanation>>,
    /// What would have led to a lower tier, where that was wanted. Not recorded: it follows from the inputs.
    pub counterfactuals: Option<Arc<[Counterfactual]>>,
}

impl Decision {
    /// The tier.
    pub fn tier(&self) -> &Tier {
        &self.policy.tiers()[self.tier]
    }

    /// What is offered.
    pub fn intervention(&self) -> &Intervention {
        &self.policy.interventions()[self.choice.intervention]
    }

    /// The rules that led to it; none where the score alone decided.
    pub fn rules(&self) -> Vec<String> {
        self.policy.rules(self.tier, &self.trace, &self.choice)
    }
}
