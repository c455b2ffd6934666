//! The slots at work: a deck for each model name, with what stands in its slots, loaded and warm. Every move is checked by the law
//! in `domain::slots`, written to the journal, and only then published, in one store.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::rollout::Evidence;
use super::serving::{Candidate, Serving, Trial, Watches};
use super::shelf::{self, Loaded};
use super::{Ask, Engine, Entry, Error, Moved};
use crate::domain::moves::Move;
use crate::domain::policy::Policy;
use crate::domain::rollout::Rollout;
use crate::domain::slots::{Colour, Slots};
use crate::ledger::{self, Answered, Change, Ledger};

/// Who moves when no person does.
pub(super) const SERVICE: &str = "mainstay";

/// The slots of one model name with what stands in them.
#[derive(Debug)]
pub(super) struct Deck {
    pub(super) name: String,
    held: Mutex<Held>,
    /// A model is being loaded for the idle slot.
    staging: AtomicBool,
}

/// What a move changes.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) slots: Slots,
    /// What stands in blue and green.
    pub(super) loaded: [Option<Loaded>; 2],
    pub(super) policy: Arc<Policy>,
    pub(super) watches: Option<Arc<Watches>>,
    pub(super) evidence: Evidence,
    /// A rollback by the service that the journal could not take yet.
    pub(super) owed: Option<Change>,
}

/// What comes into a deck from outside with a move.
#[derive(Default)]
pub(super) struct Delivery {
    pub(super) model: Option<Loaded>,
    pub(super) policy: Option<Arc<Policy>>,
}

fn place(colour: Colour) -> usize {
    match colour {
        Colour::Blue => 0,
        Colour::Green => 1,
    }
}

impl Held {
    pub(super) fn in_slot(&self, colour: Colour) -> Option<&Loaded> {
        self.loaded[place(colour)].as_ref()
    }

    /// Whether every model in the slots can be served under `policy`.
    ///
    /// Errors: [`Error::Refused`] with what does not fit.
    pub(super) fn fit(&self, policy: &Policy) -> Result<(), Error> {
        let problems = self.loaded.iter().flatten().filter_map(|loaded| loaded.fits(policy).err());
        let problems: Vec<String> = problems.flatten().collect();
        if problems.is_empty() { Ok(()) } else { Err(Error::Refused(problems)) }
    }

    fn candidate(&self, colour: Colour, engine: &Engine) -> Option<Candidate> {
        let Loaded { model, requests, .. } = self.in_slot(colour)?;
        // Whatever comes into these slots was seen to fit before.
        Candidate::new(model.clone(), &self.policy, &engine.metrics, requests.clone()).ok()
    }

    /// What these slots serve.
    fn serving(&self, engine: &Engine) -> Option<Serving> {
        let champion = self.candidate(self.slots.champion(), engine)?;
        let idle = self.candidate(self.slots.champion().other(), engine);
        let trial = self.slots.rollout.as_ref().zip(self.watches.as_ref()).zip(idle.as_ref());
        let trial = trial.map(|((rollout, watches), challenger)| Trial {
            exposure: rollout.at().exposure,
            share: rollout.at().share,
            salt: rollout.id.clone(),
            same_row: champion.model.card().features == challenger.model.card().features,
            champion: champion.clone(),
            challenger: challenger.clone(),
            policy: self.policy.clone(),
            watches: watches.clone(),
        });
        Some(Serving::new(champion, self.policy.clone(), idle, trial.map(Arc::new)))
    }

    /// Takes over `next`, with what was delivered for it; what is not needed any more is given back.
    fn take_over(&mut self, next: Slots, delivery: Delivery) -> Vec<Loaded> {
        let idle = next.champion().other();
        let mut left = Vec::new();
        if let Some(model) = delivery.model {
            left.extend(self.loaded[place(idle)].replace(model));
        }
        if next.placed(idle).is_none() {
            left.extend(self.loaded[place(idle)].take());
        }
        if let Some(policy) = delivery.policy {
            self.policy = policy;
        }
        let kind = |rollout: &Rollout| (rollout.id.clone(), rollout.at().exposure);
        let before = std::mem::replace(&mut self.slots, next);
        let (before, now) = (before.rollout.as_ref().map(kind), self.slots.rollout.as_ref().map(kind));
        if before != now {
            // What was seen in the shadow, on another thread, says nothing about the latency of a canary.
            self.watch();
        }
        left
    }

    fn watch(&mut self) {
        let champion = self.in_slot(self.slots.champion()).zip(self.slots.rollout.as_ref());
        self.watches = champion.map(|(champion, _)| Arc::new(Watches::new(&champion.model, &self.policy)));
        if self.watches.is_some() {
            self.evidence = Evidence::default();
        }
    }
}

impl Deck {
    /// The deck of `entry`: as the ledger has its slots, or, where it has none or `resume` is off, with the model and policy of the
    /// configuration.
    ///
    /// Errors: a champion that cannot be loaded as it was. An idle model that cannot is left out, and said so.
    pub(super) fn open(entry: Entry, engine: &Engine, resume: bool) -> Result<Self, Error> {
        let Entry { name, version, policy } = entry;
        let known = match &engine.ledger {
            Some(ledger) if resume => ledger.slots(&name)?.map(|slots| (slots, ledger)),
            _ => None,
        };
        let held = match known {
            Some((slots, ledger)) => {
                warn_of_differences(&name, &version, &policy, &slots);
                Self::resume(&name, slots, ledger, engine)?
            }
            None => Self::begin(&name, &version, policy, engine)?,
        };
        Ok(Self { name, held: Mutex::new(held), staging: AtomicBool::new(false) })
    }

    fn begin(name: &str, version: &str, policy: Arc<Policy>, engine: &Engine) -> Result<Held, Error> {
        let model = engine.shelf.load(name, version).map_err(|source| unservable(name, version, source))?;
        model.fits(&policy).map_err(Error::Refused)?;
        let digest = model.model.digest().to_owned();
        let reference = shelf::policy_ref(&policy);
        let slots = Slots::new(version.to_owned(), digest, reference.clone(), engine.now_ms());
        if let Some(ledger) = &engine.ledger {
            ledger.change(Change {
                model: name.to_owned(),
                verb: "begin".to_owned(),
                by: SERVICE.to_owned(),
                why: "the configuration names it".to_owned(),
                result: format!("{version} is the champion"),
                slots: Some(slots.clone()),
                policy: Some((reference.digest, policy.document().to_owned())),
                request: None,
            })?;
        }
        let loaded = [Some(model), None];
        Ok(Held { slots, loaded, policy, watches: None, evidence: Evidence::default(), owed: None })
    }

    fn resume(name: &str, mut slots: Slots, ledger: &Ledger, engine: &Engine) -> Result<Held, Error> {
        let mut loaded = [None, None];
        let policy = Arc::new(policy_of_record(ledger, &slots.policy.digest)?);
        let champion = slots.champion();
        for colour in Colour::ALL {
            let Some(placed) = slots.placed(colour).cloned() else { continue };
            let model = engine.shelf.load(name, &placed.version).and_then(|loaded| {
                let path = engine.shelf.dir.join(name).join(&placed.version);
                if loaded.model.digest() == placed.digest {
                    return match loaded.fits(&policy) {
                        Ok(()) => Ok(loaded),
                        Err(problems) => Err(crate::model::Error::Bundle { path, problems }),
                    };
                }
                let problem = "it is not the bundle that went into service: bring that one back, or begin anew with models.resume = false";
                Err(crate::model::Error::Bundle { path, problems: vec![problem.to_owned()] })
            });
            match model {
                Ok(model) => loaded[place(colour)] = Some(model),
                Err(error) if colour == champion => return Err(unservable(name, &placed.version, error)),
                Err(error) => {
                    tracing::error!(model = name, version = placed.version, cause = %error, "the idle slot stays empty");
                    let at_ms = engine.now_ms();
                    if slots.rollout.is_some() {
                        slots = slots.apply(&Move::Fail, SERVICE, at_ms, &[], &[])?;
                    }
                    slots = slots.apply(&Move::Retire, SERVICE, at_ms, &[], &[])?;
                    ledger.change(Change {
                        model: name.to_owned(),
                        verb: "retire".to_owned(),
                        by: SERVICE.to_owned(),
                        why: "it could not be loaded again".to_owned(),
                        result: error.to_string(),
                        slots: Some(slots.clone()),
                        policy: None,
                        request: None,
                    })?;
                }
            }
        }
        let mut held = Held { slots, loaded, policy, watches: None, evidence: Evidence::default(), owed: None };
        held.watch();
        Ok(held)
    }

    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        // A panic in the middle of a move leaves the slots as they were: they are taken over last.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the one place for staging.
    pub(super) fn staging(&self) -> Option<Staging<'_>> {
        (!self.staging.swap(true, Ordering::Acquire)).then_some(Staging(&self.staging))
    }

    pub(super) fn is_staging(&self) -> bool {
        self.staging.load(Ordering::Relaxed)
    }
}

/// The one place for staging, given back when it is dropped.
pub(super) struct Staging<'d>(&'d AtomicBool);

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn unservable(name: &str, version: &str, source: crate::model::Error) -> Error {
    Error::Unservable { name: name.to_owned(), version: version.to_owned(), source: Box::new(source) }
}

fn warn_of_differences(name: &str, version: &str, policy: &Policy, slots: &Slots) {
    let champion = slots.placed(slots.champion()).map_or("", |placed| &placed.version);
    if champion != version {
        tracing::warn!(
            model = name,
            champion,
            configured = version,
            "the slots of the ledger count, not the configuration"
        );
    }
    if slots.policy != shelf::policy_ref(policy) {
        tracing::warn!(
            model = name,
            in_force = slots.policy.digest,
            "the policy of the ledger counts, not the file; apply that one to change it"
        );
    }
}

/// The policy that was in force under `digest`.
pub(super) fn policy_of_record(ledger: &Ledger, digest: &str) -> Result<Policy, Error> {
    let document = ledger
        .policy(digest)?
        .ok_or_else(|| ledger::Error::Broken(format!("the policy {digest} that is in force is not there")))?;
    shelf::parse_policy(&document).map_err(Error::Refused)
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
    fn publish(&self, deck: &Deck, held: &Held) -> Duration {
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
        let canary = held.slots.rollout.as_ref().map(Rollout::at);
        self.metrics.rollout_share(&deck.name, canary.map_or(0.0, |step| step.share));
    }

    /// Makes a move for a person: checked, journalled, published.
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
        let policy =
            delivery.policy.as_ref().map(|policy| (shelf::policy_ref(policy).digest, policy.document().into()));
        let change = Change {
            model: deck.name.clone(),
            verb: moved.verb.clone(),
            by: ask.by.clone(),
            why: ask.why.clone(),
            result: moved.result.clone(),
            slots: Some(next.clone()),
            policy,
            request,
        };
        if let Some(ledger) = &self.ledger {
            match (ledger.change(change.clone()), step) {
                (Ok(_), _) => held.owed = None,
                // A broken challenger loses its customers whether that can be written down or not.
                (Err(_), Move::Fail) => held.owed = Some(change),
                (Err(error), _) => return Err(error.into()),
            }
        }
        let left = held.take_over(next, delivery);
        let flip = self.publish(deck, held);
        self.retire(left);
        tracing::info!(model = deck.name, verb = moved.verb, by = ask.by, result = moved.result, "moved");
        Ok(Moved { flip_us: Some(flip.as_nanos() as f64 / 1e3), ..moved })
    }

    /// Keeps what has left a slot until nobody uses it any more.
    fn retire(&self, left: Vec<Loaded>) {
        for loaded in left {
            let id = loaded.model.id();
            self.metrics.model(&id.name, &id.version, None, 0.0, 0.0);
            self.retired.lock().unwrap_or_else(PoisonError::into_inner).push(loaded.model);
        }
    }
}
