//! What goes over the wire, as the contract writes it. Translation only: nothing is decided here.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::wire_models::{Probe, Scoring};
use super::wire_reasons::{Base, Counterfactual, Reason};
use crate::domain::policy::layers::Chance;
use crate::domain::{decision, freshness, policy};
use crate::engine;

/// One customer to decide on.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the contract of the request; bodies are read by `extract`, which tells every violation")]
pub(super) struct Customer {
    /// Your own id of the customer. It decides nothing by itself and never reaches a log.
    #[schema(min_length = 1, max_length = 128, example = "C-1001")]
    customer_id: String,
    /// Values by the names of the model's feature dictionary, written as the data writes them.
    #[schema(value_type = BTreeMap<String, FeatureValue>)]
    features: BTreeMap<String, FeatureValue>,
    #[schema(schema_with = context, required = false)]
    context: Option<BTreeMap<String, FeatureValue>>,
    /// Whether to give the reasons of the score: 3 of them, or as many as the query says by `top`.
    #[schema(required = false)]
    explain: Option<bool>,
    /// How many counterfactuals to look for, unless the query says it.
    #[schema(required = false, minimum = 0, maximum = 10)]
    counterfactuals: Option<u8>,
}

/// The contract of `context`; a derive has no word for its bound.
fn context() -> utoipa::openapi::Object {
    use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
    let description = "What the policy may look at and the model must not: what it declares is checked, the rest is ignored. `audit`, an object of strings, is for audits; neither looks at it. `features_at`, a time after RFC 3339, says when the features were read.";
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Object, Type::Null]))
        .description(Some(description))
        .max_properties(Some(super::extract::CONTEXT_MAX))
        .build()
}

/// A number, a category, or null where the dictionary allows a missing value.
#[derive(serde::Deserialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "see Customer")]
pub(super) enum FeatureValue {
    /// For `number` and `integer`.
    Number(f64),
    /// For `category`.
    Text(String),
    /// Missing.
    Missing,
}

/// What to do about one customer, and by which versions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Decision<'d> {
    /// UUID version 7: unique, sorted by time.
    #[schema(value_type = String, format = "uuid")]
    decision_id: &'d str,
    /// When the decision was made, UTC, to the millisecond.
    #[schema(value_type = String, format = DateTime)]
    decided_at: &'d str,
    /// Calibrated churn probability.
    #[schema(minimum = 0, maximum = 1)]
    score: f64,
    /// The risk band that the policy puts the score in.
    #[schema(value_type = String, example = "high")]
    tier: &'d str,
    /// What the policy offers to this customer.
    intervention: Intervention<'d>,
    /// What is lost with the customer, in the currency of the intervention. Absent where the policy has no say on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    value_at_stake: Option<f64>,
    /// The rules that led to the intervention: `segment:NAME`, `eligibility:ACTION:FIELD` (not offered, since this condition does not
    /// hold), `budget:refused:ACTION` (there was no money left for it), `budget:shadow_price` (it is not worth it while money is that
    /// dear), `capacity:refused:ACTION` (no place was left in its period), `uplift:ACTION` (the model estimates what it changes),
    /// `budget:allocation` (chosen to spend the budget of a batch), `holdout`, `experiment` (an experiment offers it before all others), `fallback:ACTION`, `objective:NAME`. Absent where the policy only
    /// looks at the score.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false, example = json!(["segment:new-monthly", "objective:expected_value"]))]
    rules: Vec<String>,
    /// True where the customer is kept from intervention, so that what interventions do can be measured. Otherwise absent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    holdout: bool,
    /// The experiment that the customer is part of, one at most. Absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Vec<Part>)]
    experiments: Option<[Part<'d>; 1]>,
    /// Whether the features were over 24 hours old, where `context.features_at` says when they were read. Otherwise absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    features_stale: Option<bool>,
    /// The model that gave the score.
    model: Model<'d>,
    /// The content hash of the policy: the first 16 digits of the document's sha256.
    #[schema(value_type = String)]
    policy_version: &'d str,
    /// What the reasons begin from. Only where reasons were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    base: Option<Base>,
    /// What moved this score most, the greatest first. Only where reasons were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reasons: Option<Vec<Reason<'d>>>,
    /// What would lower the tier: all with the same, least number of changes, the nearest first; empty where nothing was found. Only
    /// where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    counterfactuals: Option<Vec<Counterfactual<'d>>>,
}

/// An action with what it costs and what it is expected to do.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Intervention<'d> {
    /// Its stable name; `none` is one.
    #[schema(value_type = String, example = "account_manager_call")]
    action: &'d str,
    /// Cost per customer.
    #[schema(minimum = 0)]
    cost: f64,
    /// ISO 4217.
    #[schema(value_type = String, example = "USD")]
    currency: &'d str,
    /// The share of would-be churners that it keeps.
    #[schema(minimum = 0, maximum = 1)]
    expected_effectiveness: f64,
    /// What it is expected to be worth, its cost taken off. Absent where the policy knows no value at stake.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    expected_value: Option<f64>,
    /// By how much the model estimates that it lowers this customer's probability of churn; below 0 it drives the customer away. Where it is
    /// there, it stands for score x `expected_effectiveness` in `expected_value`. Absent where the model has no estimate of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = -1, maximum = 1)]
    uplift: Option<f64>,
}

/// The experiment that a customer is part of.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExperimentPart)]
pub(super) struct Part<'d> {
    /// Its name.
    #[schema(value_type = String, example = "call-or-mail")]
    name: &'d str,
    /// The arm, or `holdout`.
    #[schema(value_type = String, example = "call")]
    arm: &'d str,
}

/// Which model, which version, in which role.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Model<'d> {
    /// Its name.
    #[schema(value_type = String, example = "telco-churn")]
    name: &'d str,
    /// Its version.
    #[schema(value_type = String, example = "1.0.0")]
    version: &'d str,
    /// Its role when it answered.
    #[schema(value_type = Arm)]
    arm: decision::Arm,
}

/// `champion` answers customers; `challenger` is under trial.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "the contract's name of domain::decision::Arm")]
pub(super) enum Arm {
    Champion,
    Challenger,
}

/// The models in service.
#[derive(Serialize, ToSchema)]
pub(super) struct Models<'m> {
    /// The default one first.
    pub(super) models: Vec<ModelSummary<'m>>,
}

/// A model in service.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelSummary<'m> {
    /// Its name.
    #[schema(value_type = String)]
    name: &'m str,
    /// Its version.
    #[schema(value_type = String)]
    version: &'m str,
    /// One line for people.
    #[schema(value_type = String)]
    title: &'m str,
    /// Its role.
    #[schema(value_type = Arm)]
    arm: decision::Arm,
    /// Whether it answers when no model is named.
    default: bool,
    /// Features that a customer needs, or may have.
    features: usize,
    /// The policy that its scores go through.
    policy: PolicySummary<'m>,
}

/// A policy in force.
#[derive(Serialize, ToSchema)]
pub(super) struct PolicySummary<'m> {
    /// Its name.
    #[schema(value_type = String)]
    name: &'m str,
    /// What it says of itself.
    #[schema(value_type = String)]
    description: &'m str,
    /// Its content hash.
    #[schema(value_type = String)]
    version: &'m str,
    /// ISO 4217.
    #[schema(value_type = String)]
    currency: &'m str,
    /// By falling risk.
    tiers: Vec<TierSummary<'m>>,
}

/// A tier of a policy.
#[derive(Serialize, ToSchema)]
pub(super) struct TierSummary<'m> {
    /// Its name.
    #[schema(value_type = String)]
    name: &'m str,
    /// Its band of scores in interval notation.
    #[schema(example = "(0.8, 1]")]
    score: String,
    /// What it is offered first. Absent where the policy chooses by expected value.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    intervention: Option<Intervention<'m>>,
}

/// A model in service with its card.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelDetail<'m> {
    #[serde(flatten)]
    summary: ModelSummary<'m>,
    /// The sha256 of the bundle's manifest.
    #[schema(value_type = String)]
    digest: &'m str,
    /// What scores rows: `native`, or `onnxruntime`.
    #[schema(value_type = String, example = "native")]
    evaluator: &'m str,
    /// Why that one.
    #[schema(value_type = String)]
    evaluator_reason: &'m str,
    /// How single customers are scored.
    scoring: Scoring<'m>,
    /// What was measured before the model saw a customer.
    probe: Probe,
    /// The model card: lineage, training, metrics, limits and the feature dictionary, as in the bundle's manifest.
    #[schema(value_type = Object)]
    card: &'m crate::domain::bundle::card::Card,
}

/// Room for the text of an id and a time, so that a decision is written without an allocation for them.
#[derive(Default)]
pub(super) struct Scratch {
    id: IdText,
    time: String,
}

struct IdText([u8; 36]);

impl Default for IdText {
    fn default() -> Self {
        Self([0; 36])
    }
}

impl<'d> Decision<'d> {
    /// `decision` as the contract writes it.
    pub(super) fn new(decision: &'d decision::Decision, scratch: &'d mut Scratch) -> Self {
        use std::fmt::Write;
        let time = jiff::Timestamp::from_millisecond(decision.decided_at_ms as i64).unwrap_or_default();
        scratch.time.clear();
        // Writing into a string cannot fail.
        let _ = write!(scratch.time, "{time:.3}");
        Self {
            decision_id: decision.id.encode(&mut scratch.id.0),
            decided_at: &scratch.time,
            score: decision.score.value(),
            tier: &decision.tier().name,
            intervention: Intervention {
                expected_value: decision.choice.expected_value,
                uplift: decision.choice.uplift,
                ..Intervention::new(&decision.policy, decision.intervention())
            },
            value_at_stake: decision.value_at_stake,
            rules: decision.rules(),
            holdout: decision.choice.holdout,
            experiments: decision.chance.as_ref().and_then(Chance::part).map(|(name, arm)| [Part { name, arm }]),
            features_stale: decision.features_age_ms.map(|age| age > freshness::STALE_MS),
            model: Model { name: &decision.model.name, version: &decision.model.version, arm: decision.arm },
            policy_version: decision.policy.version(),
            base: decision.explanation.as_deref().map(Base::new),
            reasons: decision.explanation.as_deref().map(Reason::all),
            counterfactuals: decision
                .counterfactuals
                .as_deref()
                .map(|found| Counterfactual::all(found, &decision.policy)),
        }
    }
}

impl<'d> Intervention<'d> {
    fn new(policy: &'d policy::Policy, intervention: &'d policy::Intervention) -> Self {
        Self {
            action: &intervention.action,
            cost: intervention.cost.units(),
            currency: policy.currency(),
            expected_effectiveness: intervention.expected_effectiveness,
            expected_value: None,
            uplift: None,
        }
    }
}

impl<'m> ModelSummary<'m> {
    /// What serves one model name.
    pub(super) fn new(serving: &'m engine::Serving, default: bool) -> Self {
        let (model, policy) = (&serving.model, &serving.policy);
        let tiers = policy.tiers().iter().map(|tier| TierSummary {
            name: &tier.name,
            score: tier.band.to_string(),
            intervention: policy.first_of(tier).map(|first| Intervention::new(policy, first)),
        });
        Self {
            name: &model.id().name,
            version: &model.id().version,
            title: &model.card().title,
            arm: decision::Arm::Champion,
            default,
            features: model.card().features.len(),
            policy: PolicySummary {
                name: policy.name(),
                description: policy.description(),
                version: policy.version(),
                currency: policy.currency(),
                tiers: tiers.collect(),
            },
        }
    }
}

impl<'m> ModelDetail<'m> {
    /// What serves one model name, with the card.
    pub(super) fn new(serving: &'m engine::Serving, default: bool) -> Self {
        Self {
            summary: ModelSummary::new(serving, default),
            digest: serving.model.digest(),
            evaluator: serving.model.evaluator(),
            evaluator_reason: serving.model.evaluator_reason(),
            scoring: Scoring::new(&serving.model),
            probe: Probe::new(serving.model.probe()),
            card: serving.model.card(),
        }
    }
}
