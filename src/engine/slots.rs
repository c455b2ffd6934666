//! The slots at work: a deck for each model name, with what stands in its slots, loaded and warm. Every move is checked by the law
//! in `domain::rollout::slots`, written to the journal, and only then published, in one store.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use super::account::Account;
use super::capacity::Capacities;
use super::effect::Found;
use super::experiments::ArmPolicies;
use super::owed::{Late, Outcome, Owed};
use super::rollout::Evidence;
use super::serving::{Candidate, Serving, Trial, Watches};
use super::shelf::{self, Loaded};
use super::staging::Asked;
use super::treatment::Running;
use super::{Ask, Engine, Error, Moved};
use crate::domain::policy::Policy;
use crate::domain::policy::registry::Registry;
use crate::domain::rollout::moves::Move;
use crate::domain::rollout::slots::{Colour, Slots};
use crate::domain::rollout::{Exposure, Rollout};
use crate::ledger::{Answered, Change, Kept};

/// The slots of one model name with what stands in them.
#[derive(Debug)]
pub(super) struct Deck {
    pub(super) name: String,
    pub(super) held: Mutex<Held>,
    /// A model is being loaded for the idle slot.
    pub(super) staging: Mutex<Option<Asked>>,
    /// What came of its rollout, as it was measured last.
    pub(super) effect: ArcSwapOption<Found>,
}

/// What a move changes.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) slots: Slots,
    /// What stands in blue and green.
    pub(super) loaded: [Option<Loaded>; 2],
    pub(super) policy: Arc<Policy>,
    pub(super) policy_before: Option<Arc<Policy>>,
    /// Of the budget of the policy, where it has one.
    pub(super) account: Option<Arc<Account>>,
    pub(super) experiments: Registry,
    /// Of the experiments that have not ended.
    pub(super) arm_policies: ArmPolicies,
    /// It was told that what is due of them could not be done.
    pub(super) due_told: bool,
    /// Of the interventions of the policy, where some have a bound.
    pub(super) capacities: Option<Arc<Capacities>>,
    pub(super) watches: Option<Arc<Watches>>,
    pub(super) evidence: Evidence,
    /// Why the idle model could not be loaded at the start, if it could not.
    pub(super) unloaded: Option<String>,
    /// A rollback by the service that the journal has not taken yet.
    pub(super) owed: Option<Owed>,
    /// A move that the journal may have taken, and may not.
    pub(super) late: Option<Late>,
}

/// What comes into a deck from outside with a move.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    pub(super) model: Option<Loaded>,
    pub(super) policy: Option<Arc<Policy>>,
}

pub(super) fn place(colour: Colour) -> usize {
    match colour {
        Colour::Blue => 0,
        Colour::Green => 1,
    }
}

impl Held {
    pub(super) fn new(slots: Slots, loaded: [Option<Loaded>; 2], policy: Arc<Policy>) -> Self {
        let evidence = Evidence::default();
        Self {
            slots,
            loaded,
            policy,
            policy_before: None,
            account: None,
            experiments: Registry::default(),
            arm_policies: ArmPolicies::new(),
            due_told: false,
            capacities: None,
            watches: None,
            evidence,
            unloaded: None,
            owed: None,
            late: None,
        }
    }

    pub(super) fn in_slot(&self, colour: Colour) -> Option<&Loaded> {
        self.loaded[place(colour)].as_ref()
    }

    /// Whether every model in the slots can be served under `policy`, and every experiment go on over it.
    ///
    /// Errors: [`Error::Refused`] with what does not fit.
    pub(super) fn fit(&self, policy: &Policy) -> Result<(), Error> {
        let problems = self.loaded.iter().flatten().filter_map(|loaded| loaded.fits(policy).err());
        let problems: Vec<String> = problems.flatten().chain(self.unfit_experiments(policy)).collect();
        if problems.is_empty() { Ok(()) } else { Err(Error::Refused(problems)) }
    }

    /// Whether a model can be served under the policy in force and those of all arms.
    ///
    /// Errors: [`Error::Refused`] with what does not fit.
    pub(super) fn take_in(&self, loaded: &Loaded) -> Result<(), Error> {
        let policies = std::iter::once(&self.policy).chain(self.arm_policies.values());
        let problems: Vec<String> = policies.filter_map(|policy| loaded.fits(policy).err()).flatten().collect();
        if problems.is_empty() { Ok(()) } else { Err(Error::Refused(problems)) }
    }

    fn candidate(&self, colour: Colour, engine: &Engine) -> Option<Candidate> {
        let Loaded { model, requests, monitor, .. } = self.in_slot(colour)?;
        // Whatever comes into these slots was seen to fit before.
        Candidate::new(model.clone(), &self.policy, &engine.metrics, requests.clone(), monitor.clone()).ok()
    }

    /// What these slots serve.
    fn serving(&self, engine: &Engine) -> Option<Serving> {
        let champion = self.candidate(self.slots.champion(), engine)?;
        let idle = self.candidate(self.slots.champion().other(), engine);
        let trial = self.slots.rollout.as_ref().zip(self.watches.as_ref()).zip(idle.as_ref());
        let trial = trial.map(|((rollout, watches), challenger)| Trial {
            exposure: rollout.at().exposure,
            share: rollout.at().share,
            sample: match rollout.at().exposure {
                Exposure::Shadow => rollout.at().share,
                Exposure::Canary => engine.options.load().shadow.share,
            },
            salt: rollout.id.clone(),
            same_row: champion.model.card().features == challenger.model.card().features,
            wait_max: rollout.plan.limits.wait_max(champion.model.probe().row_p99_us),
            champion: champion.clone(),
            challenger: challenger.clone(),
            policy: self.policy.clone(),
            watches: watches.clone(),
        });
        // Whatever came in was seen to fit. An experiment that does not, all the same, is not worth a customer's answer.
        let running = self.layers().and_then(|layers| {
            layers.map(|layers| Running::new(layers, &champion, idle.as_ref(), &engine.metrics)).transpose()
        });
        let running = running.unwrap_or_else(|problems| {
            tracing::error!(cause = problems.join("; "), "the experiments cannot run");
            None
        });
        let (policy, account, capacities) = (self.policy.clone(), self.account.clone(), self.capacities.clone());
        Some(Serving::new(champion, policy, account, capacities, running.map(Arc::new), idle, trial.map(Arc::new)))
    }

    /// Takes over `next`, with what was delivered for it; what is not needed any more is given back.
    pub(super) fn take_over(&mut self, next: Slots, delivery: Delivery) -> Vec<Loaded> {
        let idle = next.champion().other();
        let mut left = Vec::new();
        if let Some(model) = delivery.model {
            left.extend(self.loaded[place(idle)].replace(model));
            self.unloaded = None;
        }
        if next.placed(idle).is_none() {
            left.extend(self.loaded[place(idle)].take());
            self.unloaded = None;
        }
        if let Some(policy) = delivery.policy {
            let before = std::mem::replace(&mut self.policy, policy);
            self.policy_before = next.policy_before.is_some().then_some(before);
        }
        let kind = |rollout: &Rollout| (rollout.id.clone(), rollout.step);
        let before = std::mem::replace(&mut self.slots, next);
        let (before, now) = (before.rollout.as_ref().map(kind), self.slots.rollout.as_ref().map(kind));
        if before != now {
            // Each step is judged by what is seen in it: a pass before is no pass now.
            self.watch();
        }
        left
    }

    /// Puts the idle model into its slot that could not be loaded at the start.
    pub(super) fn bring_back(&mut self, model: Loaded) {
        self.loaded[place(self.slots.champion().other())] = Some(model);
        self.unloaded = None;
    }

    /// Begins to watch the step that the rollout is at.
    pub(super) fn watch(&mut self) {
        let before = self.watches.take();
        let Some((champion, rollout)) = self.in_slot(self.slots.champion()).zip(self.slots.rollout.as_ref()) else {
            return;
        };
        let is_alone = rollout.at().exposure == Exposure::Canary && rollout.at().share >= 1.0;
        let before = before.as_deref().filter(|_| is_alone);
        self.watches = Some(Arc::new(Watches::new(&champion.model, &self.policy, before)));
        self.evidence = Evidence::default();
    }
}

impl Deck {
    /// The same as [`held`](Self::held), if nobody has it.
    pub(super) fn try_held(&self) -> Option<MutexGuard<'_, Held>> {
        match self.held.try_lock() {
            Ok(held) => Some(held),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        // A panic in the middle of a move leaves the slots as they were: they are taken over last.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    pub(super) fn deck(&self, model: &str) -> Result<&Deck, Error> {
        match self.decks.iter().find(|deck| deck.name == model) {
            Some(deck) => Ok(deck),
            None => Err(self.unknown(model)),
        }
    }

    /// Builds what the deck serves, without publishing it.
    pub(super) fn serving_of(&self, deck: &Deck) -> Option<Serving> {
        let held = deck.held();
        self.tell(deck, &held);
        held.serving(self)
    }

    /// Puts what the slots say into service: how long the store itself took. Requests that began before it end with what they began
    /// with.
    pub(super) fn publish(&self, deck: &Deck, held: &Held) -> Duration {
        self.tell(deck, held);
        let Some(serving) = held.serving(self).map(Arc::new) else { return Duration::ZERO };
        let begun = Instant::now();
        self.catalogue.rcu(|catalogue| catalogue.with(serving.clone()));
        begun.elapsed()
    }

    /// Brings the metrics of the slots up to date.
    fn tell(&self, deck: &Deck, held: &Held) {
        for (colour, loaded) in Colour::ALL.into_iter().zip(&held.loaded) {
            if let Some((Loaded { model, .. }, placed)) = loaded.as_ref().zip(held.slots.placed(colour)) {
                let probe = model.probe();
                let id = model.id();
                self.metrics.model(&id.name, &id.version, Some(placed.role.name()), probe.row_p50_us, probe.row_p99_us);
            }
        }
        let step = held.slots.rollout.as_ref().map(Rollout::at);
        for (exposure, name) in [(Exposure::Shadow, "shadow"), (Exposure::Canary, "canary")] {
            let share = step.filter(|step| step.exposure == exposure).map_or(0.0, |step| step.share);
            self.metrics.rollout_share(&deck.name, name, share);
        }
        if step.is_none() {
            self.metrics.no_guardrails(&deck.name);
        }
    }

    /// The account of the budget of `policy`, which comes after that of `before`. One of which nothing can be known has nothing left.
    pub(super) fn account(&self, deck: &Deck, policy: &Policy, before: Option<&Account>) -> Option<Arc<Account>> {
        let opened = Account::open(policy, &deck.name, self.ledger.as_ref(), self.now_ms(), before);
        let account = opened.unwrap_or_else(|error| {
            tracing::error!(model = deck.name, cause = %error, "what is spent is not known: nothing is affordable");
            Account::closed(policy)
        });
        if account.is_none() && before.is_some() {
            self.metrics.budget(&deck.name, 0.0, 0.0, 0.0);
        }
        account.map(Arc::new)
    }

    /// The capacities of `policy`, which come after those `before`. Where nothing can be known of them, no place is left.
    pub(super) fn capacities(
        &self,
        deck: &Deck,
        policy: &Policy,
        before: Option<&Capacities>,
    ) -> Option<Arc<Capacities>> {
        let opened = Capacities::open(policy, &deck.name, self.ledger.as_ref(), self.now_ms(), before);
        let capacities = opened.unwrap_or_else(|error| {
            tracing::error!(model = deck.name, cause = %error, "who had an intervention is not known: none with a capacity is offered");
            Capacities::closed(policy)
        });
        capacities.map(Arc::new)
    }

    /// Makes a move for a person: checked, journalled, published. Until it is on record, or is not, `held` is kept from the look at guardrails:
    /// as long as a disk may take for it, and for what is owed before it.
    pub(super) fn make(
        &self,
        deck: &Deck,
        held: &mut Held,
        step: &Move,
        ask: &Ask,
        delivery: Delivery,
        moved: Moved,
    ) -> Result<Moved, Error> {
        let options = self.options.load();
        let now_ms = self.now_ms();
        let next = held.slots.apply(step, &ask.by, now_ms, &options.approvals, &held.evidence.readings)?;
        let answer = serde_json::to_string(&moved).unwrap_or_default();
        let request = ask.key.as_ref().map(|(key, fingerprint)| Answered {
            key: key.clone(),
            fingerprint: fingerprint.clone(),
            answer,
        });
        let mut documents = Vec::new();
        if let Some(policy) = &delivery.policy {
            documents.push((Kept::Policy, shelf::policy_ref(policy).digest, policy.document().to_owned()));
            let layout = held.layout(policy, &held.experiments);
            documents.extend(layout.map(|(digest, document)| (Kept::Layout, digest, document)));
        }
        let change = Change {
            model: deck.name.clone(),
            verb: moved.verb.clone(),
            by: ask.by.clone(),
            why: ask.why.clone(),
            result: moved.result.clone(),
            slots: Some(next.clone()),
            experiments: None,
            documents,
            request,
        };
        let outcome = Outcome::Slots(Box::new(next), delivery);
        let flip = match (&self.ledger, step) {
            // A broken challenger loses its customers before that is written down, whether it can be or not.
            (Some(ledger), Move::Fail) => {
                held.owe(change, ledger);
                self.put_into_force(deck, held, outcome)
            }
            _ => self.journal(deck, held, change, outcome)?,
        };
        tracing::info!(model = deck.name, verb = moved.verb, by = ask.by, result = moved.result, "moved");
        Ok(Moved { flip_us: Some(flip.as_nanos() as f64 / 1e3), ..moved })
    }

    /// Keeps what has left a slot until nobody uses it any more.
    pub(super) fn retire(&self, left: Vec<Loaded>) {
        for loaded in left {
            let id = loaded.model.id();
            self.metrics.model(&id.name, &id.version, None, 0.0, 0.0);
            self.retired.lock().unwrap_or_else(PoisonError::into_inner).push(loaded.model);
        }
    }
}
