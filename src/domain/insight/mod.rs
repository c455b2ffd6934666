//! What came of decisions: customers of a window as they are counted, each once. What is concluded from them is in `kpis` and `quality`;
//! how they are collected is known above.

pub mod kpis;
pub mod quality;

use crate::domain::statistics::drift::normal_quantile;

/// One less the level of every interval here.
pub const ALPHA: f64 = 0.05;

/// The normal quantile of the level of every interval here.
pub fn z() -> f64 {
    normal_quantile(ALPHA / 2.0)
}

/// One customer over a window, by the first decision in it and everything that followed. Amounts are in currency units, times in
/// milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Customer {
    /// The score of the first decision.
    pub score: f64,
    /// How long ago that was.
    pub age_ms: u64,
    /// Whether the customer was kept from intervention; `None` where the policy keeps nobody.
    pub holdout: Option<bool>,
    /// Whether any intervention was offered.
    pub offered: bool,
    /// Decisions.
    pub decisions: u32,
    /// What the offers cost.
    pub cost: f64,
    /// What it cost to contact the customer.
    pub contact_cost: f64,
    /// What the customer paid.
    pub revenue: f64,
    /// In how many outcomes.
    pub orders: u32,
    /// What is lost with the customer, where that is on record.
    pub value_at_stake: Option<f64>,
    /// What the customer used before, where the caller said it.
    pub usage_before: Option<f64>,
    /// How long after the decision it was known that the customer had left, where that happened within the maturity.
    pub left_after_ms: Option<u64>,
    /// Whether the customer took an offer, where that is told.
    pub converted: Option<bool>,
}

impl Customer {
    /// Whether the customer left within `maturity_ms` of the decision: once that is over, no word means no. `None` where it is not known yet.
    pub fn churned(&self, maturity_ms: u64) -> Option<bool> {
        match self.left_after_ms {
            Some(_) => Some(true),
            None => (self.age_ms >= maturity_ms).then_some(false),
        }
    }

    /// Whether interventions may have changed what the customer did.
    pub fn is_treated(&self) -> bool {
        self.holdout != Some(true)
    }
}

/// Two views of the same customers: those of a window that ended a maturity ago, of whom it is known what they did, and those of a window
/// that ends now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cohorts {
    /// Decided on so long ago that it is known who left.
    pub matured: Vec<Customer>,
    /// Decided on lately.
    pub recent: Vec<Customer>,
    /// How long it takes until it is known, in milliseconds.
    pub maturity_ms: u64,
}
