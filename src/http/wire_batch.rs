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

/// Items as they are written, each behind the one before: those of `{"results": […]}`, or one a line.
pub(super) struct Items {
    text: Vec<u8>,
    end: u8,
}

impl Items {
    /// The items of an array, which will take some `bytes`.
    pub(super) fn array(bytes: usize) -> Self {
        let mut text = Vec::with_capacity(32 + bytes);
        text.extend_from_slice(b"{\"results\":[");
        Self { text, end: b',' }
    }

    /// Items that are a line each, which will take some `bytes`.
    pub(super) fn lines(bytes: usize) -> Self {
        Self { text: Vec::with_capacity(bytes), end: b'\n' }
    }

    /// Writes one more. Items are plain data: writing them into memory cannot fail.
    pub(super) fn push(&mut self, item: &impl Serialize) {
        let _ = serde_json::to_writer(&mut self.text, item);
        self.text.push(self.end);
    }

    /// All of it.
    pub(super) fn end(self) -> Vec<u8> {
        self.end_with(None)
    }

    /// All of it; behind an array, how a budget was spent over it.
    pub(super) fn end_with(mut self, allocation: Option<&Allocation>) -> Vec<u8> {
        if self.end == b',' {
            if self.text.ends_with(b",") {
                self.text.pop();
            }
            self.text.push(b']');
            if let Some(allocation) = allocation {
                self.text.extend_from_slice(b",\"allocation\":");
                let _ = serde_json::to_writer(&mut self.text, allocation);
            }
            self.text.push(b'}');
        }
        self.text
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
