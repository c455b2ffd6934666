//! What is in service: an immutable snapshot per model name, all of them behind one pointer, so that nobody ever sees a new
//! model with an old policy. What may follow which is decided in `slots`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Error;
use super::account::Account;
use super::allotment::Purse;
use super::capacity::Capacities;
use super::monitor::Monitor;
use super::treatment::Running;
use super::watch::Watch;
use crate::domain::assignment;
use crate::domain::bundle::uplift::Uplifts;
use crate::domain::decision::Arm;
use crate::domain::money::Money;
use crate::domain::policy::Policy;
use crate::domain::policy::condition::Domain;
use crate::domain::policy::condition::Known;
use crate::domain::policy::fit::Binding;
use crate::domain::rollout::Exposure;
use crate::domain::rollout::guardrail::{Observed, Wait};
use crate::domain::score::Score;
use crate::model::{self, Model};
use crate::telemetry::{Counter, Metrics};

/// A model that can answer, with what is counted about it.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    /// The model.
    pub(super) model: Arc<Model>,
    /// The policy bound to its dictionary.
    pub(super) binding: Arc<Binding>,
    /// The counter of each tier, by its place in the policy.
    decided: Arc<[Counter]>,
    /// Decisions that it made since it was loaded.
    requests: Arc<AtomicU64>,
    /// What came in for it.
    pub(super) monitor: Arc<Monitor>,
}

impl Candidate {
    /// `model` under `policy`, counted in `metrics`, `requests` and `monitor`.
    ///
    /// Errors: what of the policy does not fit the model.
    pub(super) fn new(
        model: Arc<Model>,
        policy: &Policy,
        metrics: &Metrics,
        requests: Arc<AtomicU64>,
        monitor: Arc<Monitor>,
    ) -> Result<Self, Vec<String>> {
        let id = model.id();
        let binding = Arc::new(policy.bind_to(model.card())?);
        let decided = policy.tiers().iter().map(|tier| metrics.decisions(&id.name, &id.version, &tier.name)).collect();
        Ok(Self { model, binding, decided, requests, monitor })
    }

    /// The same model under another policy.
    ///
    /// Errors: what of it does not fit the model.
    pub(super) fn under(&self, policy: &Policy, metrics: &Metrics) -> Result<Self, Vec<String>> {
        Self::new(self.model.clone(), policy, metrics, self.requests.clone(), self.monitor.clone())
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
    /// Of the budget of the policy, where it has one.
    pub(super) account: Option<Arc<Account>>,
    /// The experiments that run.
    pub(super) experiments: Option<Arc<Running>>,
    /// Of the interventions of the policy, where some have a bound.
    pub(super) capacities: Option<Arc<Capacities>>,
    pub(super) champion: Candidate,
    /// The model in the other slot, for who addresses it.
    pub(super) idle: Option<Candidate>,
    /// The trial of the model in the other slot.
    pub(super) trial: Option<Arc<Trial>>,
}

impl Serving {
    /// `champion` under `policy` and its bounds, with the model of the other slot and its trial.
    pub(super) fn new(
        champion: Candidate,
        policy: Arc<Policy>,
        account: Option<Arc<Account>>,
        capacities: Option<Arc<Capacities>>,
        experiments: Option<Arc<Running>>,
        idle: Option<Candidate>,
        trial: Option<Arc<Trial>>,
    ) -> Self {
        Self { model: champion.model.clone(), policy, account, capacities, experiments, champion, idle, trial }
    }

    /// The entries of the context that the policy declares.
    pub fn context(&self) -> impl Iterator<Item = (&str, &Domain)> {
        self.champion.binding.declared()
    }

    /// What answers in the role `arm`.
    pub(super) fn candidate(&self, arm: Arm) -> &Candidate {
        match (arm, &self.idle) {
            (Arm::Challenger, Some(idle)) => idle,
            _ => &self.champion,
        }
    }

    /// Sets `budget` aside for a batch, or what the policy's own has left of it.
    pub(super) fn set_aside(&self, budget: Money, at_ms: u64) -> Purse {
        match &self.account {
            None => Purse::new(budget, None),
            Some(account) => match account.set_aside(budget, at_ms) {
                None => Purse::empty(),
                reserved => Purse::new(budget, reserved),
            },
        }
    }

    /// By how much money of the policy's budget is dearer than itself now.
    pub(super) fn shadow_price(&self) -> f64 {
        self.account.as_ref().map_or(0.0, |account| account.shadow_price())
    }

    /// Whether experiments run, which decide what their customers are offered.
    pub fn has_experiments(&self) -> bool {
        self.experiments.is_some()
    }

    /// Whether every model here explains itself in microseconds; one that does not is not to be asked on the thread of a request.
    pub fn explains_quickly(&self) -> bool {
        self.model.explains_quickly() && self.idle.as_ref().is_none_or(|idle| idle.model.explains_quickly())
    }

    /// Whether a model here is too slow for the thread of a request, so that its score has to be waited for: see `Engine::turn`.
    pub fn takes_turns(&self) -> bool {
        let is_slow = |candidate: &Candidate| candidate.model.turns().is_some();
        is_slow(&self.champion) || self.idle.as_ref().is_some_and(is_slow)
    }

    /// Errors: whoever asks now would be refused, since too many wait for the model. While a challenger is there, that depends on who asks,
    /// and on what is to be learnt of it.
    pub fn room(&self) -> Result<(), Error> {
        if self.idle.is_some() {
            return Ok(());
        }
        Ok(self.model.room()?)
    }

    /// Whether the challenger is known to read the row of the champion.
    pub(super) fn reads_same_row(&self) -> bool {
        self.trial.as_ref().is_some_and(|trial| trial.same_row)
    }

    /// What the model in the role `arm` says of its own `row`. Uplifts are estimated where a policy decides by them.
    pub(super) fn judge(&self, arm: Arm, row: &[f32]) -> Result<Scored, model::Error> {
        let score = self.candidate(arm).model.score(row)?;
        self.judged(arm, score, row)
    }

    /// The same where its score is known already.
    pub(super) fn judged(&self, arm: Arm, score: Score, row: &[f32]) -> Result<Scored, model::Error> {
        Ok(Scored { score, arm, uplifts: self.uplifts(arm, row)? })
    }

    /// The same, but that of a slow model is waited for.
    pub(super) async fn judge_in_turn(&self, arm: Arm, row: &[f32]) -> Result<Scored, model::Error> {
        let (score, uplifts) = self.candidate(arm).model.judge_in_turn(row, self.wants_uplifts(arm)).await?;
        Ok(Scored { score, arm, uplifts })
    }

    /// What the model in the role `arm` estimates of interventions; nothing where no policy decides by it.
    pub(super) fn uplifts(&self, arm: Arm, row: &[f32]) -> Result<Uplifts, model::Error> {
        if self.wants_uplifts(arm) { self.candidate(arm).model.uplifts(row) } else { Ok(Uplifts::new()) }
    }

    fn wants_uplifts(&self, arm: Arm) -> bool {
        let arms = || self.experiments.as_ref().is_some_and(|running| running.want_uplifts(arm));
        self.candidate(arm).binding.wants_uplifts() || arms()
    }

    /// The arm that answers a customer: the one addressed, or the one that the customer is assigned to.
    pub(super) fn arm_of(&self, who: Option<Who>, addressed: Option<Arm>) -> Arm {
        match (addressed, &self.trial, who) {
            (Some(arm), _, _) => arm,
            (None, Some(trial), Some(who)) if trial.takes(who.ticket) => Arm::Challenger,
            (None, _, _) => Arm::Champion,
        }
    }

    /// A customer in the trial, if there is one; `values` are what the rules of the policy read of it.
    pub(super) fn who(&self, customer_id: &str, values: &[Known]) -> Option<Who> {
        let trial = self.trial.as_ref()?;
        let ticket = assignment::ticket(&trial.salt, customer_id);
        Some(Who { ticket, segment: self.policy.segment_of(values) })
    }

    /// The trial as far as it watches a request that was, or was not, addressed: those would bias it.
    pub(super) fn canary(&self, addressed: Option<Arm>) -> Option<&Trial> {
        let trial = self.trial.as_deref()?;
        (addressed.is_none() && trial.exposure == Exposure::Canary).then_some(trial)
    }

    /// The trial, where this request is one of the sample that both models score in the shadow: to be compared, or in a canary only to
    /// be timed.
    pub(super) fn shadow(&self, addressed: Option<Arm>) -> Option<&Arc<Trial>> {
        let trial = self.trial.as_ref()?;
        let is_sampled = || trial.sample >= 1.0 || fastrand::f64() < trial.sample;
        (addressed.is_none() && is_sampled()).then_some(trial)
    }
}

/// What a model said of a customer.
#[derive(Debug)]
pub(super) struct Scored {
    pub(super) score: Score,
    /// The role of the model.
    pub(super) arm: Arm,
    /// What it estimates of interventions.
    pub(super) uplifts: Uplifts,
}

/// A customer, as far as a trial has to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    /// What assigns it.
    pub(super) ticket: u64,
    /// The segment of the policy that it belongs to.
    pub(super) segment: Option<usize>,
}

/// The trial of a challenger, as far as requests take part in it.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) exposure: Exposure,
    pub(super) share: f64,
    /// The share of requests that go into the shadow.
    pub(super) sample: f64,
    /// The id of the rollout salts the assignment, so that it is not always the same customers who try what is new.
    pub(super) salt: String,
    pub(super) champion: Candidate,
    pub(super) challenger: Candidate,
    pub(super) policy: Arc<Policy>,
    /// Whether both models read the same row.
    pub(super) same_row: bool,
    /// The longest wait of which an arm is not to blame that its caller left.
    pub(super) wait_max: Duration,
    pub(super) watches: Arc<Watches>,
}

/// The watches on both arms, anew for each step.
#[derive(Debug)]
pub(super) struct Watches {
    /// Goes on from the step before where all customers are the challenger's: there is nothing else to compare with.
    champion: Arc<Watch>,
    challenger: Watch,
    /// Samples that the shadow had no time for.
    pub(super) dropped: AtomicU64,
    /// Answers that the champion gave because the challenger could not.
    pub(super) fallbacks: AtomicU64,
}

impl Watches {
    /// Watches for a step; `before` are those of the step before, if the champion has no customers in this one.
    pub(super) fn new(champion: &Model, policy: &Policy, before: Option<&Self>) -> Self {
        let watch = || Watch::new(champion.baseline().score.counts.len(), policy.tiers().len());
        Self {
            champion: before.map_or_else(|| Arc::new(watch()), |before| before.champion.clone()),
            challenger: watch(),
            dropped: AtomicU64::new(0),
            fallbacks: AtomicU64::new(0),
        }
    }

    /// Scores of the challenger that were asked for and have neither come nor failed, and those that have.
    pub(super) fn unanswered(&self) -> (u64, u64) {
        (self.challenger.unanswered(), self.challenger.requests())
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
    fn takes(&self, ticket: u64) -> bool {
        self.exposure == Exposure::Canary && (self.share >= 1.0 || assignment::place(ticket) < self.share)
    }

    pub(super) fn scored(&self, arm: Arm, score: Score, who: Who) {
        let edges = &self.champion.model.baseline().score.edges;
        self.watches.of(arm).scored(score, edges, self.policy.tier_of(who.segment, score), who.ticket);
    }

    pub(super) fn timed(&self, arm: Arm, took: Duration) {
        self.watches.of(arm).timed(took);
    }

    pub(super) fn started(&self, arm: Arm) {
        self.watches.of(arm).started();
    }

    pub(super) fn withdrawn(&self, arm: Arm) {
        self.watches.of(arm).withdrawn();
    }

    /// The caller of `who` left after `wait`, without a score of `arm`.
    pub(super) fn left(&self, arm: Arm, wait: Wait, who: Who) {
        if wait.is_failure(self.wait_max) {
            self.watches.of(arm).given_up(who.ticket);
        }
    }

    pub(super) fn failed(&self, arm: Arm, error: Option<&model::Error>, who: Who) {
        self.watches.of(arm).failed(error, who.ticket);
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
