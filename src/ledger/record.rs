//! What the ledger records, and how a record is chained: the canonical bytes of an entry, and its link to the one before.
//! Where it is stored is in `store`.

use std::borrow::Cow;

use hmac::Mac;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::journal::Change;
use super::keys::{Keys, Link, Pseudonym};
use super::outcomes::OutcomeDraft;
use crate::domain::decision::{Decision, ModelId};
use crate::domain::id::DecisionId;
use crate::domain::money::Money;
use crate::domain::policy::Policy;
use crate::domain::policy::assessment::{ALLOCATED, Choice, Trace};
use crate::domain::policy::layers::Chance;
use crate::domain::reason;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A customer was decided on.
    Decision,
    /// What a customer then did.
    Outcome,
    /// What an operator, or the service itself, did.
    Action,
}

impl Kind {
    /// Its name in the database.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Decision => "decision",
            Kind::Outcome => "outcome",
            Kind::Action => "action",
        }
    }
}

/// What a service did, or was told to do, to be recorded with the decisions.
#[derive(Debug, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Action {
    /// The service started.
    Start {
        /// The version of the program.
        version: &'static str,
        /// The digest of the configuration.
        config_digest: String,
    },
    /// The service stopped.
    Stop,
    /// A customer was erased.
    Erase {
        /// The pseudonyms of the customer, hexadecimal.
        customers: Vec<String>,
        /// Who asked for it, where that is certain.
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    /// The oldest records were removed.
    Retention {
        /// The number of the last one removed.
        through: i64,
        /// Its link, hexadecimal.
        link: String,
    },
    /// A new master secret writes from now on.
    RotateKeys {
        /// Its version.
        version: u32,
        /// Who asked for it, where that is certain.
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    /// The ledger was copied.
    Backup {
        /// Who asked for it, where that is certain.
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    /// Somebody moved models between slots, or tried to.
    Slots(Box<Change>),
}

/// Something to be recorded. Made on the thread of a request, so it only holds what is there already.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are decisions, and a box for each would be an allocation on the way of a request"
)]
pub(super) enum Draft {
    /// A decision on the customer of `pseudonym`, who sent `inputs`.
    Decision { decision: Decision, pseudonym: Pseudonym, inputs: bytes::Bytes },
    /// An action, as a JSON object that names nobody but by pseudonym.
    Action { id: DecisionId, at_ms: u64, body: String },
    /// What a customer did after a decision; not written if it is on record already.
    Outcome(OutcomeDraft),
}

/// What a decision may say beyond its columns; each has its field ready and is left out while nothing fills it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extra {
    /// Whether the customer was kept from intervention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdout: Option<bool>,
    /// The probability, over the hashes that assign, that this customer is offered this action, 0 to 1: the shares of all groups, of the
    /// holdout and of every experiment that ran, whose treatment leads to it. Score, shadow price, what was left of the
    /// budget and what was full are taken as they were. Where neither a holdout nor an experiment had a say, the action was certain, and this is absent.
    /// It is absent too of a batch with a budget of its own, held out or not: what a row is offered hangs on all others, and is not certain.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "exact")]
    pub propensity: Option<f64>,
    /// The experiment that the customer was part of: one at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experiments: Option<Vec<Part>>,
    /// By what the experiments that ran are found: see `Kept::Layout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<String>,
    /// What the budget had left, in millionths of a unit, where the propensity depends on that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_left_micros: Option<i64>,
    /// The actions that had no place left, where the propensity depends on that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<Vec<String>>,
    /// The reasons of the answer, each with its SHAP value in log-odds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasons: Option<Vec<Reason>>,
    /// What the action is expected to be worth, its cost taken off.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "exact")]
    pub expected_value: Option<f64>,
    /// What the action costs.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "exact")]
    pub cost: Option<f64>,
    /// What is lost with the customer.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "exact")]
    pub value_at_stake: Option<f64>,
    /// By how much the model said that the action lowers the probability of churn, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "exact")]
    pub uplift: Option<f64>,
    /// By how much money was dearer than itself when the action was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "exact")]
    pub shadow_price: Option<f64>,
    /// The rules that fired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<String>>,
}

/// An experiment that a customer was part of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// The arm, or `holdout`.
    pub arm: String,
}

impl Extra {
    /// The probability of the action for who compares policies: 1 where it was certain, `None` where it is not known.
    pub fn known_propensity(&self) -> Option<f64> {
        let is_allocated = self.rules.iter().flatten().any(|rule| rule == ALLOCATED);
        let is_certain = !is_allocated && self.holdout.is_none();
        self.propensity.filter(|_| !is_allocated).or(is_certain.then_some(1.0))
    }

    /// What a decision by `policy` says beyond its columns; nothing where the score alone decided.
    pub fn of(
        policy: &Policy,
        tier: usize,
        value_at_stake: Option<f64>,
        trace: &Trace,
        choice: &Choice,
        chance: Option<&Chance>,
    ) -> Self {
        if policy.is_plain() && chance.is_none() {
            return Self::default();
        }
        // The budget is that of the policy in force, which has not decided where an experiment tries another one.
        let left = chance.and_then(|chance| chance.room.left);
        Self {
            expected_value: choice.expected_value,
            cost: Some(choice.cost.units()),
            value_at_stake,
            uplift: choice.uplift,
            shadow_price: (policy.budget().is_some() || left.is_some()).then_some(choice.shadow_price),
            holdout: chance.map(|_| choice.holdout),
            propensity: chance.and_then(|chance| chance.propensity),
            experiments: chance
                .and_then(Chance::part)
                .map(|(name, arm)| vec![Part { name: name.to_owned(), arm: arm.to_owned() }]),
            layout: chance.and_then(|chance| Some(chance.layers.as_ref()?.digest().to_owned())),
            budget_left_micros: left.map(Money::micros),
            full: chance.map(|chance| chance.room.full.clone()).filter(|full| !full.is_empty()),
            rules: Some(policy.rules(tier, trace, choice)),
            ..Self::default()
        }
    }
}

/// A number as it was written, to the last bit: JSON readers that are made for speed may miss that one.
fn exact<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let text = Box::<serde_json::value::RawValue>::deserialize(deserializer)?;
    match text.get() {
        "null" => Ok(None),
        text => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

/// The same of a number that is always there.
fn exact_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    exact(deserializer)?.ok_or_else(|| serde::de::Error::custom("expected a number"))
}

/// One reason of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// Its stable code.
    pub code: String,
    /// Its contribution in log-odds.
    #[serde(deserialize_with = "exact_number")]
    pub shap: f64,
}

impl Reason {
    /// The reasons of `explanation`, as they are recorded.
    pub fn all(explanation: &reason::Explanation) -> Vec<Self> {
        let one = |reason: &reason::Reason| Self {
            code: explanation.book.words(reason.feature).code.clone(),
            shap: reason.log_odds,
        };
        explanation.reasons.iter().map(one).collect()
    }
}

impl Extra {
    /// What `decision` says beyond its columns, as a JSON object. Most say nothing.
    pub(super) fn text(decision: &Decision) -> Result<Cow<'static, str>, super::Error> {
        let Decision { policy, tier, value_at_stake, trace, choice, chance, explanation, .. } = decision;
        if policy.is_plain() && chance.is_none() && explanation.is_none() {
            return Ok("{}".into());
        }
        let mut extra = Self::of(policy, *tier, *value_at_stake, trace, choice, chance.as_ref());
        extra.reasons = explanation.as_deref().map(Reason::all);
        let text = serde_json::to_string(&extra).map_err(|error| super::Error::Broken(error.to_string()))?;
        Ok(text.into())
    }
}

/// What was answered, in columns of its own so that ordinary tools can count it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer<'e> {
    pub(super) score: f64,
    pub(super) tier: Cow<'e, str>,
    pub(super) action: Cow<'e, str>,
    pub(super) arm: Cow<'e, str>,
}

/// An entry as it stands in the database; on its way there it borrows from its draft.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry<'e> {
    pub(super) seq: i64,
    pub(super) kind: Cow<'e, str>,
    pub(super) at_ms: i64,
    pub(super) id: Cow<'e, [u8]>,
    pub(super) customer: Option<Cow<'e, [u8]>>,
    /// The digest of the row of `version` that it refers to.
    pub(super) version: Option<Cow<'e, [u8]>>,
    pub(super) answer: Option<Answer<'e>>,
    pub(super) body: Cow<'e, str>,
    pub(super) digest: Option<Cow<'e, [u8]>>,
    pub(super) sealed: Option<Cow<'e, [u8]>>,
    pub(super) key_version: u32,
}

impl Entry<'_> {
    /// The link of this entry behind `previous`: HMAC-SHA256 over the link before and every field, each with its length, so
    /// that no two entries have the same bytes. Keyed, so that who can write the file but not read the keys cannot mend a
    /// chain that he broke. `None` when the key is not there.
    pub(super) fn link(&self, keys: &Keys, previous: &Link) -> Option<Link> {
        let mut mac = keys.chain(self.key_version)?;
        mac.update(previous);
        mac.update(&self.seq.to_le_bytes());
        mac.update(&self.at_ms.to_le_bytes());
        mac.update(&self.key_version.to_le_bytes());
        mac.update(&self.answer.as_ref().map_or(u64::MAX, |answer| answer.score.to_bits()).to_le_bytes());
        let answer = self.answer.as_ref();
        for field in [
            Some(self.kind.as_bytes()),
            Some(&self.id),
            self.customer.as_deref(),
            self.version.as_deref(),
            answer.map(|answer| answer.tier.as_bytes()),
            answer.map(|answer| answer.action.as_bytes()),
            answer.map(|answer| answer.arm.as_bytes()),
            Some(self.body.as_bytes()),
            self.digest.as_deref(),
            self.sealed.as_deref(),
        ] {
            // An absent field differs from an empty one.
            mac.update(&field.map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
            mac.update(field.unwrap_or_default());
        }
        Some(mac.finalize().into_bytes().into())
    }
}

/// A row of `version`: everything that an answer was made by.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Version {
    pub(super) model: String,
    pub(super) model_version: String,
    pub(super) model_digest: String,
    pub(super) policy: String,
    pub(super) policy_version: String,
    /// The policy document itself, so that a decision can be replayed when its file is gone.
    pub(super) policy_document: String,
    pub(super) config_digest: String,
}

impl Version {
    pub(super) fn new(model: &ModelId, policy: &Policy, config_digest: &str) -> Self {
        Self {
            model: model.name.clone(),
            model_version: model.version.clone(),
            model_digest: model.digest.clone(),
            policy: policy.name().to_owned(),
            policy_version: policy.version().to_owned(),
            policy_document: policy.document().to_owned(),
            config_digest: config_digest.to_owned(),
        }
    }

    /// The fields, in the order of the columns.
    pub(super) fn fields(&self) -> [&str; 7] {
        [
            &self.model,
            &self.model_version,
            &self.model_digest,
            &self.policy,
            &self.policy_version,
            &self.policy_document,
            &self.config_digest,
        ]
    }

    /// The hash of its fields, each with its length: what an entry's link covers.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for field in self.fields() {
            hash.update((field.len() as u64).to_le_bytes());
            hash.update(field);
        }
        hash.finalize().into()
    }
}
