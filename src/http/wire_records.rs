//! What goes over the wire about decisions on record and their customers. Translation only.

use serde::Serialize;
use utoipa::ToSchema;

use crate::ledger::{Inputs, Recorded};

/// A decision as it was recorded.
#[derive(Serialize, ToSchema)]
pub(super) struct DecisionRecord {
    /// UUID version 7.
    #[schema(format = "uuid")]
    decision_id: String,
    /// When the decision was made.
    #[schema(value_type = String, format = DateTime)]
    decided_at: jiff::Timestamp,
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
    /// Whether the customer was kept from intervention; null before there are holdouts.
    holdout: Option<bool>,
    /// The probability with which the action was chosen; null before there are experiments.
    propensity: Option<f64>,
    /// The reasons of the answer; null before there are reasons.
    #[schema(value_type = Option<Vec<Object>>)]
    reasons: Option<Vec<crate::ledger::Reason>>,
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
            decided_at: jiff::Timestamp::from_millisecond(recorded.decided_at_ms).unwrap_or_default(),
            seq: recorded.seq,
            link: recorded.link,
            customer: recorded.customer,
            score: recorded.score,
            tier: recorded.tier,
            action: recorded.action,
            holdout: recorded.extra.holdout,
            propensity: recorded.extra.propensity,
            reasons: recorded.extra.reasons,
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
