//! What goes over the wire about a batch. Translation only.

use serde::Serialize;
use utoipa::ToSchema;

use super::problem;
use super::wire::Decision;
use crate::domain::money::Money;
use crate::domain::policy;

/// The answer to a batch: one item per row, in order.
#[derive(Serialize, ToSchema)]
#[schema(as = Batch)]
pub(super) struct Batch<'d> {
    /// A decision, or the row's own problem. A decision has a `decision_id`, a problem has a `status`.
    results: Vec<Item<'d>>,
    /// How the budget of the request was spent. Only where it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    allocation: Option<Allocation>,
}

/// An Arrow IPC stream.
#[derive(ToSchema)]
#[schema(as = ArrowStream, value_type = String, format = Binary)]
#[expect(dead_code, reason = "the contract; streams are read and written by `arrow`")]
pub(super) struct Columns(Vec<u8>);

/// How a budget was spent over a batch.
#[derive(Serialize, ToSchema)]
pub(super) struct Allocation {
    /// What could be spent, in the currency of the policy; the budget of the policy may have had less.
    budget: f64,
    /// ISO 4217.
    currency: String,
    /// What the interventions that were answered cost together.
    spent: f64,
    /// What they are expected to be worth together, their cost taken off.
    expected_value: f64,
    /// What no way to spend the budget over these rows is expected to be worth more than.
    upper_bound: f64,
    /// How far `expected_value` is below `upper_bound` at most, as a share of it.
    #[schema(minimum = 0, maximum = 1)]
    gap: f64,
}

impl Allocation {
    /// Of a `budget` that was spent on what was `chosen`, and could not have been worth more than `value_max`.
    pub(super) fn new<'c>(
        policy: &policy::Policy,
        budget: Money,
        value_max: f64,
        chosen: impl Iterator<Item = &'c policy::assessment::Choice>,
    ) -> Self {
        let sum = |(spent, value): (Money, f64), choice: &policy::assessment::Choice| {
            (spent.plus(choice.cost), value + choice.expected_value.unwrap_or_default())
        };
        let (spent, value) = chosen.fold((Money::ZERO, 0.0), sum);
        let upper_bound = value_max.max(value);
        Self {
            budget: budget.units(),
            currency: policy.currency().to_owned(),
            spent: spent.units(),
            expected_value: value,
            upper_bound,
            gap: if upper_bound > 0.0 { (upper_bound - value) / upper_bound } else { 0.0 },
        }
    }
}

/// A decision, or the row's own problem.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = Item)]
pub(super) enum Item<'d> {
    /// The row was decided on.
    Decision(Decision<'d>),
    /// It was not, and why.
    Problem(problem::Document<'d>),
}
