//! What is in service: an immutable snapshot per model name, all of them behind one pointer, so that nobody ever sees a new
//! model with an old policy. What may follow which is decided in `slots`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::watch::Watch;
use crate::domain::assignment;
use crate::domain::decision::Arm;
use crate::domain::guardrail::Observed;
use crate::domain::policy::Policy;
use crate::domain::rollout::Exposure;
use crate::domain::score::Score;
use crate::model::{self, Model};
use crate::telemetry::{Counter, Metrics};

/// A model that can answer, with what is counted about it.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    /// The model.
    pub(super) model: Arc<Model>,
    /// The counter of each tier, by its place in the policy.
    decided: Arc<[Counter]>,
    /// Decisions that it made since it was loaded.
    requests: Arc<AtomicU64>,
}

impl Candidate {
    /// `model` under `policy`, counted in `metrics` and in `requests`.
    pub(super) fn new(model: Arc<Model>, policy: &Policy, metrics: &Metrics, requests: Arc<AtomicU64>) -> Self {
        let id = model.id();
        let decided = policy.tiers().iter().map(|tier| metrics.decisions(&id.name, &id.version, &tier.name)).collect();
        Self { model, decided, requests }
    }

    pub(super) fn count(&self, tier: usize) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(counter) = self.decided.get(tier) {
            counter.increment(1);
        }
    }
}

/// What serves one model name.
#[derive(Debug)]
pub struct Serving {
    /// The champion's model.
    pub model: Arc<Model>,
    /// The policy that every score goes through.
    pub policy: Arc<Policy>,
    pub(super) champion: Candidate,
    /// The model in the other slot, for who addresses it.
    pub(super) idle: Option<Candidate>,
    /// The trial of the model in the other slot.
    pub(super) trial: Option<Arc<Trial>>,
}

impl Serving {
    /// `champion` under `policy`, with the model of the other slot and its trial.
    pub(super) fn new(
        champion: Candidate,
        policy: Arc<Policy>,
        idle: Option<Candidate>,
        trial: Option<Arc<Trial>>,
    ) -> Self {
        Self { model: champion.model.clone(), policy, champion, idle, trial }
    }

    /// Whether there is a second model that can be addressed.
    pub fn has_challenger(&self) -> bool {
        self.idle.is_some()
    }

    /// Whether every model here explains itself in microseconds; one that does not is not to be asked on the thread of a request.
    pub fn explains_quickly(&self) -> bool {
        self.model.explains_quickly() && self.idle.as_ref().is_none_or(|idle| idle.model.explains_quickly())
    }

    /// Whether the challenger is known to read the row of the champion.
    pub(super) fn reads_same_row(&self) -> bool {
        self.trial.as_ref().is_some_and(|trial| trial.same_row)
    }

    /// The arm that answers a customer: the one addressed, or the one that the customer is assigned to.
    pub(super) fn arm_of(&self, customer_id: &str, addressed: Option<Arm>) -> Arm {
        match (&addressed, &self.trial) {
            (Some(arm), _) => *arm,
            (None, Some(trial)) if trial.takes(customer_id) => Arm::Challenger,
            (None, _) => Arm::Champion,
        }
    }

    /// The trial as far as it watches a request that was, or was not, addressed: those would bias it.
    pub(super) fn canary(&self, addressed: Option<Arm>) -> Option<&Trial> {
        let trial = self.trial.as_deref()?;
        (addressed.is_none() && trial.exposure == Exposure::Canary).then_some(trial)
    }

    /// The trial, where this request is one of the sample that the challenger scores in the shadow.
    pub(super) fn shadow(&self, addressed: Option<Arm>) -> Option<&Arc<Trial>> {
        let trial = self.trial.as_ref()?;
        let is_sampled = || trial.share >= 1.0 || fastrand::f64() < trial.share;
        (addressed.is_none() && trial.exposure == Exposure::Shadow && is_sampled()).then_some(trial)
    }
}

/// The trial of a challenger, as far as requests take part in it.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) exposure: Exposure,
    pub(super) share: f64,
    /// The id of the rollout salts the assignment, so that it is not always the same customers who try what is new.
    pub(super) salt: String,
    pub(super) champion: Candidate,
    pub(super) challenger: Candidate,
    pub(super) policy: Arc<Policy>,
    /// Whether both models read the same row.
    pub(super) same_row: bool,
    pub(super) watches: Arc<Watches>,
}

/// The watches on both arms, which go on from step to step.
#[derive(Debug)]
pub(super) struct Watches {
    champion: Watch,
    challenger: Watch,
    /// Samples that the shadow had no time for.
    pub(super) dropped: AtomicU64,
    /// Answers that the champion gave because the challenger could not.
    pub(super) fallbacks: AtomicU64,
    /// Since when the shadow is at one run, milliseconds of the engine's clock; 0 when it is at none.
    pub(super) busy_since_ms: AtomicU64,
}

impl Watches {
    pub(super) fn new(champion: &Model, policy: &Policy) -> Self {
        let watch = || Watch::new(champion.baseline().score.counts.len(), policy.tiers().len());
        Self {
            champion: watch(),
            challenger: watch(),
            dropped: AtomicU64::new(0),
            fallbacks: AtomicU64::new(0),
            busy_since_ms: AtomicU64::new(0),
        }
    }

    fn of(&self, arm: Arm) -> &Watch {
        match arm {
            Arm::Champion => &self.champion,
            Arm::Challenger => &self.challenger,
        }
    }

    /// What both arms did: the champion, the challenger.
    pub(super) fn observed(&self) -> (Observed, Observed) {
        (self.champion.observed(), self.challenger.observed())
    }
}

impl Trial {
    /// What assigns a customer in this rollout.
    pub(super) fn ticket(&self, customer_id: &str) -> u64 {
        assignment::ticket(&self.salt, customer_id)
    }

    fn takes(&self, customer_id: &str) -> bool {
        self.exposure == Exposure::Canary
            && (self.share >= 1.0 || assignment::place(self.ticket(customer_id)) < self.share)
    }

    pub(super) fn scored(&self, arm: Arm, took: Option<Duration>, score: Score, ticket: u64) {
        let edges = &self.champion.model.baseline().score.edges;
        self.watches.of(arm).scored(took, score, edges, self.policy.tier_of(score), ticket);
    }

    pub(super) fn failed(&self, arm: Arm, error: Option<&model::Error>) {
        self.watches.of(arm).failed(error);
    }
}

/// Everything in service, by model name, in the order of the configuration.
#[derive(Debug, Clone)]
pub struct Catalogue {
    servings: Vec<Arc<Serving>>,
    index: Arc<HashMap<String, usize>>,
}

impl Catalogue {
    /// Nothing, while an engine opens.
    pub(super) fn none() -> Self {
        Self { servings: Vec::new(), index: Arc::default() }
    }

    /// The catalogue of `servings`, the first of which is the default.
    pub(super) fn new(servings: Vec<Serving>) -> Self {
        let index: HashMap<String, usize> =
            servings.iter().enumerate().map(|(at, serving)| (serving.model.id().name.clone(), at)).collect();
        Self { servings: servings.into_iter().map(Arc::new).collect(), index: Arc::new(index) }
    }

    /// The same with another serving at its place.
    pub(super) fn with(&self, serving: Arc<Serving>) -> Self {
        let mut next = self.clone();
        if let Some(at) = next.index.get(&serving.model.id().name) {
            next.servings[*at] = serving;
        }
        next
    }

    /// What answers when no model is named; the configuration made sure that there is one.
    pub fn default_serving(&self) -> &Arc<Serving> {
        &self.servings[0]
    }

    /// What serves the model called `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<Serving>> {
        self.index.get(name).map(|at| &self.servings[*at])
    }

    /// Everything, the default first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Serving>> {
        self.servings.iter()
    }

    /// The names of the models, the default first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.servings.iter().map(|serving| serving.model.id().name.as_str())
    }
}
