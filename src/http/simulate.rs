//! `POST /v1/policies:simulate` of the admin plane: what a policy would have made of decisions on record.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::ToSchema;

use super::problem::Problem;
use super::slots::{read, strict, wrong};
use super::wire_problem;
use super::wire_simulation::Simulated;
use super::{Shared, long};
use crate::domain::money::Money;
use crate::domain::policy;
use crate::domain::policy::reward;
use crate::engine::Question;

/// Decisions that are looked at when neither a number nor a time is named.
const LAST: usize = 1_000;

/// A policy to be tried on decisions on record.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Simulate {
    /// The name of a model in service
    #[schema(example = "telco-churn")]
    model: String,
    /// The policy document itself, TOML
    document: String,
    /// On how many of the last decisions, at most `rollouts.replay_rows_max`. Without it 1000, or with `from` or `to` as many as may be
    #[schema(minimum = 1, nullable = false)]
    last: Option<usize>,
    /// Made at or after this time, RFC 3339
    #[schema(value_type = Option<String>, format = DateTime, nullable = false)]
    from: Option<Timestamp>,
    /// Made before this time, RFC 3339
    #[schema(value_type = Option<String>, format = DateTime, nullable = false)]
    to: Option<Timestamp>,
    /// Another budget than that of the document
    #[schema(nullable = false)]
    budget: Option<OtherBudget>,
    /// What the value is measured by: `retained_value` is the value at stake of who stayed less the cost of what was offered, `margin` revenue
    /// less contact cost. Without it `retained_value` where the policy has a value at stake, or else `retained`
    #[schema(nullable = false)]
    reward: Option<Reward>,
}

/// A budget in the currency of the policy.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OtherBudget {
    /// What may be spent in each period, 0 or more
    #[schema(minimum = 0)]
    amount: f64,
    /// Of the UTC calendar
    period: Period,
}

#[derive(Deserialize, ToSchema, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum Period {
    Day,
    Week,
    Month,
}

#[derive(Deserialize, ToSchema, Clone, Copy)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reward {
    RetainedValue,
    Retained,
    Converted,
    Revenue,
    Margin,
}

impl From<Reward> for reward::Reward {
    fn from(asked: Reward) -> Self {
        match asked {
            Reward::RetainedValue => Self::RetainedValue,
            Reward::Retained => Self::Retained,
            Reward::Converted => Self::Converted,
            Reward::Revenue => Self::Revenue,
            Reward::Margin => Self::Margin,
        }
    }
}

impl OtherBudget {
    fn read(self) -> Result<policy::budget::Budget, Problem> {
        let amount = Money::from_units(self.amount).filter(|amount| *amount >= Money::ZERO);
        let expected = || wrong("/budget/amount", "0 or more, with at most six decimals".to_owned());
        let period = match self.period {
            Period::Day => policy::Period::Day,
            Period::Week => policy::Period::Week,
            Period::Month => policy::Period::Month,
        };
        Ok(policy::budget::Budget { amount: amount.ok_or_else(expected)?, period })
    }
}

/// Simulate a policy on decisions on record
///
/// Nothing changes. The policy and the one in force decide again on the same customers, in the order of the record and by the same law of
/// budgets, as if both had come into force just before the first of them: tiers, interventions, holdout, cost, expected value, use of the
/// budget, rules, segments and the groups of the audit; and what each would have brought, where outcomes are known.
#[utoipa::path(post, path = "/v1/policies:simulate", tag = "policies", operation_id = "simulate",
    request_body(content = Simulate, content_type = "application/json"),
    responses((status = 200, description = "What it makes of them", body = Simulated), wire_problem::Moving, wire_problem::Refused))]
pub(super) async fn simulate(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Simulated>, Problem> {
    let body = read(&shared, &headers, body).await?;
    let Simulate { model, document, last, from, to, budget, reward } = strict(&body)?;
    let rows_max = shared.engine.options().replay_rows_max;
    let usual = if from.is_some() || to.is_some() { rows_max } else { LAST.min(rows_max) };
    let last = last.unwrap_or(usual);
    if !(1..=rows_max).contains(&last) {
        return Err(wrong("/last", format!("1 to {rows_max}")));
    }
    let ms = |time: Option<Timestamp>, or: i64| time.map_or(or, Timestamp::as_millisecond);
    let span_ms = ms(from, i64::MIN)..ms(to, i64::MAX);
    if span_ms.is_empty() {
        return Err(wrong("/to", "a time after `from`".to_owned()));
    }
    let budget = budget.map(OtherBudget::read).transpose()?;
    let question = Question { document, span_ms, last, budget, reward: reward.map(Into::into) };
    let engine = shared.engine.clone();
    let name = model.clone();
    let found = long(&shared, move || engine.simulate(&name, question)).await??;
    Ok(Json(Simulated::new(model, found)))
}
