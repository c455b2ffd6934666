//! Experiments as they are answered over the wire. Translation only; how they are asked for is in `ask_experiments`.

use serde::Serialize;
use utoipa::ToSchema;

use super::wire_records::time;
use crate::domain::policy::experiment::{self, Treatment};
use crate::domain::policy::registry::{Begin, Stamp};
use crate::engine::{Examined, Moved};

/// All experiments.
#[derive(Serialize, ToSchema)]
pub(super) struct Experiments {
    /// In the order in which they were created, by model.
    pub(super) experiments: Vec<Experiment>,
}

/// How an experiment stands.
#[derive(Serialize, ToSchema)]
pub(super) struct Experiment {
    /// Its name.
    name: String,
    /// The model whose customers it treats.
    model: String,
    /// `planned`, `running` or `ended`.
    state: &'static str,
    /// What is expected to be found.
    hypothesis: String,
    /// Who answers for it.
    owner: String,
    /// What is compared.
    arms: Vec<Arm>,
    /// The share of all customers who are offered nothing.
    holdout: f64,
    /// Customers of the holdout, each once, since `shares_since`. Only where one experiment is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    holdout_customers: Option<u64>,
    /// When it began, or may begin.
    #[schema(format = DateTime)]
    from: String,
    /// When it ends.
    #[schema(format = DateTime)]
    to: String,
    /// What it waits for, or waited for: `by_hand`, `at_time`, `after_rollout`.
    #[schema(value_type = String)]
    begin: Begin,
    /// What makes its assignment its own.
    salt: String,
    /// Its creation.
    created: Stamped,
    /// Its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    started: Option<Stamped>,
    /// Its last change.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    changed: Option<Stamped>,
    /// Its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    ended: Option<Stamped>,
    /// Since when its groups have the shares that they have.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, format = DateTime)]
    shares_since: Option<String>,
    /// Whether customers came to the groups in the shares that they were assigned in. Only where one experiment is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    sample_ratio: Option<SampleRatio>,
    /// What can be asked of it now.
    legal: Vec<&'static str>,
}

/// An arm of an experiment.
#[derive(Serialize, ToSchema)]
#[schema(as = ExperimentArm)]
pub(super) struct Arm {
    /// Its name.
    name: String,
    /// The share of all customers that are in it.
    share: f64,
    /// What is done to them, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    description: String,
    /// The action that comes before all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    intervention: Option<String>,
    /// The policy that decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    policy: Option<ArmPolicy>,
    /// Its customers, each once, since `shares_since`. Only where one experiment is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    customers: Option<u64>,
}

/// The policy of an arm.
#[derive(Serialize, ToSchema)]
pub(super) struct ArmPolicy {
    /// Its name.
    name: String,
    /// Its content hash.
    version: String,
}

/// Who did something, when, and why.
#[derive(Serialize, ToSchema)]
pub(super) struct Stamped {
    /// When.
    #[schema(format = DateTime)]
    at: String,
    /// Who; `mainstay` is the service itself.
    by: String,
    /// Why.
    why: String,
}

/// Whether customers came to the groups in the shares that they were assigned in.
#[derive(Serialize, ToSchema)]
pub(super) struct SampleRatio {
    /// The e-value of a mismatch: over 1000, something loses or adds customers of one group, wrongly so in at most one of a thousand
    /// experiments, however often it is looked at. Null where it is too large for a number.
    #[schema(value_type = Option<f64>)]
    e_value: f64,
    /// Whether it is that large: then the experiment must not be trusted.
    mismatch: bool,
    /// False where some of its decisions have been removed, or there are more than are looked at.
    complete: bool,
}

/// What was done to an experiment.
#[derive(Serialize, ToSchema)]
#[schema(as = ExperimentDone)]
pub(super) struct Done {
    /// The verb.
    verb: String,
    /// What became of it.
    result: String,
    /// Whether this answers a request that had been answered before: nothing was done now.
    repeated: bool,
    /// How it stands. Absent where it is known no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    experiment: Option<Experiment>,
}

impl From<Examined> for Experiment {
    fn from(Examined { model, registered, counted }: Examined) -> Self {
        let legal = registered.legal();
        let state = registered.state().name();
        let stamped = |stamp: Stamp| Stamped { at: time(stamp.at_ms as i64), by: stamp.by, why: stamp.why };
        let experiment = registered.experiment;
        let customers = |at: usize| counted.as_ref().and_then(|counted| counted.customers.get(at).copied());
        let holdout_customers = customers(experiment.arms.len());
        let arm = |(at, arm): (usize, experiment::Arm)| {
            let (intervention, policy) = match arm.treatment {
                Treatment::Control => (None, None),
                Treatment::Intervention(action) => (Some(action), None),
                Treatment::Policy(policy) => {
                    let version = policy.digest.chars().take(16).collect();
                    (None, Some(ArmPolicy { name: policy.name, version }))
                }
            };
            let (name, share, description) = (arm.name, arm.share, arm.description);
            Arm { name, share, description, intervention, policy, customers: customers(at) }
        };
        Self {
            model,
            state,
            legal,
            arms: experiment.arms.into_iter().enumerate().map(arm).collect(),
            name: experiment.name,
            hypothesis: experiment.hypothesis,
            owner: experiment.owner,
            holdout: experiment.holdout,
            holdout_customers,
            from: time(experiment.from_ms as i64),
            to: time(experiment.to_ms as i64),
            begin: registered.begin,
            salt: experiment.salt,
            created: stamped(registered.created),
            shares_since: registered.started.as_ref().map(|_| time(registered.shares_since_ms as i64)),
            started: registered.started.map(stamped),
            changed: registered.changed.map(stamped),
            ended: registered.ended.map(stamped),
            sample_ratio: counted.as_ref().map(|counted| SampleRatio {
                e_value: counted.mismatch,
                mismatch: counted.is_mismatched(),
                complete: counted.is_whole,
            }),
        }
    }
}

impl Done {
    /// What was done, and how the experiment stands since.
    pub(super) fn new(moved: Moved, examined: Option<Examined>) -> Self {
        let Moved { verb, result, repeated, .. } = moved;
        Self { verb, result, repeated, experiment: examined.map(Experiment::from) }
    }
}
