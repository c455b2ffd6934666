//! What goes over the wire about decisions on record and their customers. Translation only.

use serde::Serialize;
use utoipa::ToSchema;

use super::problem;
use crate::domain::money::Money;
use crate::domain::outcome::AMOUNT_MAX;
use crate::ledger::{Inputs, Recorded, RecordedOutcome};

/// A time on record, milliseconds since 1970, as every answer writes it: UTC, to the millisecond.
pub(super) fn time(ms: i64) -> String {
    format!("{:.3}", jiff::Timestamp::from_millisecond(ms).unwrap_or_default())
}

/// A decision as it was recorded.
#[derive(Serialize, ToSchema)]
pub(super) struct DecisionRecord {
    /// UUID version 7.
    #[schema(format = "uuid")]
    decision_id: String,
    /// When the decision was made.
    #[schema(value_type = String, format = DateTime)]
    decided_at: String,
    /// The number of its record.
    seq: i64,
    /// The first 16 digits of the record's link in the chain.
    link: String,
    /// The pseudonym of the customer.
    customer: String,
    /// Calibrated churn probability.
    score: f64,
    /// The risk band.
    tier: String,
    /// What was offered.
    action: String,
    /// Whether the customer was kept from intervention; null where there was neither a holdout nor an experiment.
    holdout: Option<bool>,
    /// The probability, over the hashes that assign, that this customer is offered this action: the shares of all groups whose treatment
    /// leads to it. Null where there was neither a holdout nor an experiment: then it was certain.
    propensity: Option<f64>,
    /// The experiment that the customer was part of, one at most; null where there was none.
    #[schema(value_type = Option<Vec<Object>>)]
    experiments: Option<Vec<crate::ledger::Part>>,
    /// The reasons of the answer; null before there are reasons.
    #[schema(value_type = Option<Vec<Object>>)]
    reasons: Option<Vec<crate::ledger::Reason>>,
    /// What the action was expected to be worth, its cost taken off; null where the policy knows no value at stake.
    expected_value: Option<f64>,
    /// What the action costs; null where the policy only looks at the score.
    cost: Option<f64>,
    /// What would be lost with the customer; null where the policy knows no value at stake.
    value_at_stake: Option<f64>,
    /// By how much the model said that the action lowers the probability of churn; null where it had no estimate.
    uplift: Option<f64>,
    /// By how much money was dearer than itself when the action was chosen; null where the policy has no budget.
    shadow_price: Option<f64>,
    /// The rules that fired; null where the policy only looks at the score.
    rules: Option<Vec<String>>,
    /// The model that gave the score.
    model: ModelRecord,
    /// Name of the policy.
    policy: String,
    /// Content hash of the policy.
    policy_version: String,
    /// Digest of the configuration.
    config_digest: String,
    /// Keyed digest of the inputs: equal inputs of one customer have equal ones.
    input_digest: String,
    /// What has become of the inputs.
    inputs: InputsState,
    /// What the customer then did, in the order in which it was put on record.
    outcomes: Vec<OutcomeRecord>,
}

/// What a customer did after a decision, as it was recorded.
#[derive(Serialize, ToSchema)]
pub(super) struct OutcomeRecord {
    /// UUID version 7.
    #[schema(format = "uuid")]
    outcome_id: String,
    /// When it occurred.
    #[schema(value_type = String, format = DateTime)]
    occurred_at: String,
    /// When it was put on record.
    #[schema(value_type = String, format = DateTime)]
    recorded_at: String,
    /// The number of its record.
    seq: i64,
    /// Whether the customer left or stayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    churned: Option<bool>,
    /// Whether the customer took the offer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    converted: Option<bool>,
    /// What the customer paid, in the currency of the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    revenue: Option<f64>,
    /// What it cost to contact the customer, in the currency of the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    contact_cost: Option<f64>,
}

/// What a customer did after a decision: at least one of `churned`, `converted`, `revenue` and `contact_cost`. Null says nothing.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the contract of the request; `domain::outcome` reads it and tells every violation")]
pub(super) struct Outcome {
    /// The decision that it follows.
    #[schema(format = "uuid", example = "01a2019c-a103-7211-a68a-e6ec9bed033f")]
    decision_id: String,
    /// When it occurred: at most 5 minutes from now, at most a day before the decision.
    #[schema(format = DateTime, example = "2026-11-21T17:30:00Z")]
    occurred_at: String,
    /// Whether the customer left (true) or stayed (false).
    churned: Option<bool>,
    /// Whether the customer took the offer.
    converted: Option<bool>,
    #[schema(schema_with = revenue, required = false)]
    revenue: Option<serde_json::Value>,
    #[schema(schema_with = contact_cost, required = false)]
    contact_cost: Option<serde_json::Value>,
    /// Your own id of this outcome: sent again with the same one, it is not recorded again. Without one, that is so for the
    /// same facts of the same time.
    #[schema(min_length = 1, max_length = 128, example = "crm-58213")]
    source_id: Option<String>,
}

/// The contract of an amount from `minimum` on; a derive has no word for a number that may be written as a text.
fn amount(description: &str, minimum: i64, text: &str) -> utoipa::openapi::Object {
    use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Number, Type::String, Type::Null]))
        .description(Some(format!(
            "{description} At most six decimals, as a number or as decimal text; both are exact."
        )))
        .minimum(Some(minimum))
        .maximum(Some(AMOUNT_MAX))
        .pattern(Some(text))
        .examples([serde_json::json!("12.50")])
        .build()
}

fn revenue() -> utoipa::openapi::Object {
    let description =
        "What the customer paid, in the currency of the policy that decided; below zero it was paid back.";
    amount(description, -AMOUNT_MAX, r"^-?[0-9]{1,13}(\.[0-9]{1,6})?$")
}

fn contact_cost() -> utoipa::openapi::Object {
    let description = "What it cost to contact the customer, in the currency of the policy that decided.";
    amount(description, 0, r"^[0-9]{1,13}(\.[0-9]{1,6})?$")
}

/// One outcome, or many.
#[derive(serde::Deserialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "see Outcome")]
pub(super) enum Outcomes {
    /// Answered by itself.
    One(Outcome),
    /// Each answered in its place.
    Many(Vec<Outcome>),
}

/// The answer to one outcome, or to many.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "the contract; `http::outcomes` writes it row by row")]
pub(super) enum OutcomesAnswer<'a> {
    /// To one.
    One(OutcomeReceipt),
    /// To an array.
    Many(OutcomeReceipts<'a>),
}

/// That an outcome is on record.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OutcomeReceipt {
    /// UUID version 7.
    #[schema(format = "uuid")]
    pub(super) outcome_id: String,
    /// Whether it was recorded now; false when it was on record already.
    pub(super) recorded: bool,
}

/// The answer to many outcomes: one item for each, in order.
#[derive(Serialize, ToSchema)]
pub(super) struct OutcomeReceipts<'a> {
    /// That the outcome is on record, or its own problem. The former has an `outcome_id`, a problem has a `status`.
    results: Vec<OutcomeItem<'a>>,
}

/// That an outcome is on record, or its own problem.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = OutcomeItem)]
pub(super) enum OutcomeItem<'a> {
    /// It is on record.
    Receipt(OutcomeReceipt),
    /// It is not, and why.
    Problem(problem::Document<'a>),
}

/// The model of a recorded decision.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelRecord {
    /// Its name.
    name: String,
    /// Its version.
    version: String,
    /// The sha256 of its bundle's manifest.
    digest: String,
    /// Its role when it answered.
    arm: String,
}

/// `sealed` inputs are kept, encrypted under the customer's key; `erased` ones do not open any more.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum InputsState {
    Sealed,
    Erased,
    NotKept,
}

/// A page of decisions on record.
#[derive(Serialize, ToSchema)]
pub(super) struct DecisionRecords {
    /// The newest first.
    pub(super) decisions: Vec<DecisionRecord>,
    /// `before` of the next page; null on the last one.
    pub(super) next_before: Option<i64>,
}

/// A page of everything on record about a customer.
#[derive(Serialize, ToSchema)]
pub(super) struct CustomerRecord {
    /// The newest first.
    pub(super) decisions: Vec<OpenedRecord>,
    /// `before` of the next page; null on the last one.
    pub(super) next_before: Option<i64>,
}

/// A decision on record with the inputs that it was made from.
#[derive(Serialize, ToSchema)]
pub(super) struct OpenedRecord {
    #[serde(flatten)]
    decision: DecisionRecord,
    /// The request as it was sent; null where the inputs were not kept or are erased.
    #[schema(value_type = Option<Object>)]
    request: Option<Box<serde_json::value::RawValue>>,
}

/// What an erasure did.
#[derive(Serialize, ToSchema)]
pub(super) struct Erasure {
    /// Whether there was something to erase. Either way nothing readable is left.
    pub(super) erased: bool,
}

impl From<Recorded> for DecisionRecord {
    fn from(recorded: Recorded) -> Self {
        Self {
            decision_id: recorded.id.to_string(),
            decided_at: time(recorded.decided_at_ms),
            seq: recorded.seq,
            link: recorded.link,
            customer: recorded.customer,
            score: recorded.score,
            tier: recorded.tier,
            action: recorded.action,
            holdout: recorded.extra.holdout,
            propensity: recorded.extra.propensity,
            experiments: recorded.extra.experiments,
            reasons: recorded.extra.reasons,
            expected_value: recorded.extra.expected_value,
            cost: recorded.extra.cost,
            value_at_stake: recorded.extra.value_at_stake,
            uplift: recorded.extra.uplift,
            shadow_price: recorded.extra.shadow_price,
            rules: recorded.extra.rules,
            model: ModelRecord {
                name: recorded.model,
                version: recorded.model_version,
                digest: recorded.model_digest,
                arm: recorded.arm,
            },
            policy: recorded.policy,
            policy_version: recorded.policy_version,
            config_digest: recorded.config_digest,
            input_digest: recorded.input_digest,
            inputs: match recorded.inputs {
                Inputs::NotKept => InputsState::NotKept,
                Inputs::Erased => InputsState::Erased,
                Inputs::Kept(_) => InputsState::Sealed,
            },
            outcomes: recorded.outcomes.into_iter().map(OutcomeRecord::from).collect(),
        }
    }
}

impl From<RecordedOutcome> for OutcomeRecord {
    fn from(recorded: RecordedOutcome) -> Self {
        let facts = recorded.facts;
        Self {
            outcome_id: recorded.id.to_string(),
            occurred_at: time(recorded.occurred_at_ms),
            recorded_at: time(recorded.recorded_at_ms),
            seq: recorded.seq,
            churned: facts.churned,
            converted: facts.converted,
            revenue: facts.revenue.map(Money::units),
            contact_cost: facts.contact_cost.map(Money::units),
        }
    }
}

impl From<Recorded> for OpenedRecord {
    fn from(mut recorded: Recorded) -> Self {
        let request = match &mut recorded.inputs {
            Inputs::Kept(text) => serde_json::from_slice(text).ok(),
            Inputs::NotKept | Inputs::Erased => None,
        };
        Self { decision: recorded.into(), request }
    }
}
