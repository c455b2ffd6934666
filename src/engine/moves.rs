//! What operators can ask for: the verbs on the slots, staging with its replay, policies, and how everything stands.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::account::Balance;
use super::capacity::Occupancy;
use super::shelf;
use super::slots::{Deck, Delivery, Held};
use super::{Engine, Error};
use crate::domain::policy::compliance::Compliance;
use crate::domain::rollout::Plan;
use crate::domain::rollout::comparison::Comparison;
use crate::domain::rollout::guardrail::{Reading, Verdict, verdict};
use crate::domain::rollout::moves::{Illegal, Move};
use crate::domain::rollout::slots::{Colour, Slots};
use crate::ledger::{self, Change, Recalled};

/// Who asks for a move, and why.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// Who.
    pub by: String,
    /// Why, in that one's words.
    pub why: String,
    /// A key of the caller's choice with the hash of the request: the same request with the same key is done once.
    pub key: Option<(String, String)>,
}

/// What can be asked for.
#[derive(Debug, Clone)]
pub enum Verb {
    /// Load and probe a version into the idle slot.
    Stage {
        /// The version.
        version: String,
        /// Whether it may refuse requests that are legal now.
        allow_breaking: bool,
        /// How many of the last decisions are made again by both models.
        replay: usize,
    },
    /// Empty the idle slot.
    Retire,
    /// Make the idle model the champion.
    Promote {
        /// Whether a rollout need not have passed.
        force: bool,
    },
    /// Go back.
    RollBack,
    /// Begin a rollout.
    Start(Box<Plan>),
    /// Keep it at its step.
    Pause,
    /// Let it go on.
    Resume,
    /// Go to its next step, whatever its verdict.
    Advance,
    /// End it.
    Abort,
    /// Agree to a promotion in a role.
    Approve(String),
    /// Put a policy into force: its document.
    ApplyPolicy(String),
    /// Go back to the policy before.
    UndoPolicy,
}

/// What became of a move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// The move.
    pub verb: String,
    /// What became of it, as a sentence.
    pub result: String,
    /// How long the store took that put it into service, in microseconds.
    #[serde(skip)]
    pub flip_us: Option<f64>,
    /// What else is to be known, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// How the two models, or policies, differ on recorded decisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Comparison>,
    /// Which groups a policy that was applied puts at a disadvantage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compliance: Option<Compliance>,
    /// Whether this answers a request that had been answered before.
    #[serde(skip)]
    pub repeated: bool,
}

impl Moved {
    pub(super) fn new(verb: &str, result: String) -> Self {
        let (notes, verb) = (Vec::new(), verb.to_owned());
        Self { verb, result, flip_us: None, notes, replay: None, compliance: None, repeated: false }
    }
}

/// How the slots of one model stand.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The name of the model.
    pub model: String,
    /// The slots.
    pub slots: Slots,
    /// What is loaded in blue and green.
    pub loaded: [Option<Warm>; 2],
    /// Whether a model is being loaded.
    pub staging: bool,
    /// Why the idle model could not be loaded at the start, if it could not.
    pub unloaded: Option<String>,
    /// Whether what is in force is what is on record.
    pub journalled: bool,
    /// The guardrails at the last look.
    pub readings: Vec<Reading>,
    /// What they say together.
    pub verdict: Verdict,
    /// Samples that the shadow had no time for.
    pub dropped: u64,
    /// Answers that the champion gave because the challenger could not.
    pub fallbacks: u64,
    /// How the budget of the policy stands, where it has one.
    pub balance: Option<Balance>,
    /// How many customers have the interventions that are only for so many.
    pub occupancies: Vec<Occupancy>,
    /// The moves that are legal now.
    pub legal: Vec<&'static str>,
    /// Roles that have not agreed to a promotion.
    pub missing: Vec<String>,
}

/// A model that is loaded.
#[derive(Debug, Clone)]
pub struct Warm {
    /// About what it takes, in bytes.
    pub memory_bytes: u64,
    /// Decisions that it made since it was loaded.
    pub requests: u64,
    /// Median time of one row, measured by its probe.
    pub row_p50_us: f64,
    /// 99th percentile.
    pub row_p99_us: f64,
}

impl Engine {
    /// How the slots of every model stand.
    pub fn standings(&self) -> Vec<Standing> {
        self.decks.iter().map(|deck| self.stands(deck, &deck.held())).collect()
    }

    /// How the slots of one model stand.
    pub fn standing(&self, model: &str) -> Result<Standing, Error> {
        let deck = self.deck(model)?;
        Ok(self.stands(deck, &deck.held()))
    }

    fn stands(&self, deck: &Deck, held: &Held) -> Standing {
        let warm = |colour| {
            held.in_slot(colour).map(|loaded| Warm {
                memory_bytes: loaded.memory_bytes,
                requests: loaded.requests.load(Ordering::Relaxed),
                row_p50_us: loaded.model.probe().row_p50_us,
                row_p99_us: loaded.model.probe().row_p99_us,
            })
        };
        let approvals = &self.options.load().approvals;
        let watches = held.watches.as_ref();
        let readings = match &held.slots.rollout {
            Some(_) => held.evidence.readings.clone(),
            None => Vec::new(),
        };
        Standing {
            model: deck.name.clone(),
            slots: held.slots.clone(),
            loaded: Colour::ALL.map(warm),
            staging: deck.is_staging(),
            unloaded: held.unloaded.clone(),
            journalled: held.owed.is_none() && held.late.is_none(),
            verdict: verdict(&readings),
            readings,
            dropped: watches.map_or(0, |watches| watches.dropped.load(Ordering::Relaxed)),
            fallbacks: watches.map_or(0, |watches| watches.fallbacks.load(Ordering::Relaxed)),
            balance: held.account.as_ref().map(|account| account.balance(self.now_ms())),
            occupancies: held.capacities.as_ref().map_or(Vec::new(), |known| known.occupancies(self.now_ms())),
            legal: held.slots.legal(approvals),
            missing: held.slots.missing(approvals),
        }
    }

    /// What was done to the slots of `model`, the newest first.
    pub fn history(&self, model: &str, before: i64, limit: usize) -> Result<Vec<Recalled>, Error> {
        self.deck(model)?;
        Ok(self.ledger()?.history(model, before, limit)?)
    }

    /// Whether a move may take seconds, since it loads a model or makes decisions on record again. What goes back never counts as that: it is not to
    /// stand behind others.
    pub fn move_takes_long(&self, model: &str, verb: &Verb) -> Result<bool, Error> {
        Ok(match verb {
            Verb::Stage { .. } => true,
            Verb::ApplyPolicy(_) => self.options.load().compliance_last > 0,
            Verb::Promote { .. } | Verb::Start(_) | Verb::Resume => verb.needs_loading(&self.deck(model)?.held()),
            _ => false,
        })
    }

    /// Makes a move. Staging loads a model and may take seconds: not for a thread that answers customers.
    ///
    /// Errors: [`Error::Illegal`] with the moves that are legal; [`Error::Refused`] with every reason; [`Error::KeyReused`]; and
    /// [`Error::Ledger`] when it cannot be journalled, in which case nothing has changed; [`Error::Late`] when that is not known yet.
    pub fn act(&self, model: &str, verb: Verb, ask: &Ask) -> Result<Moved, Error> {
        let deck = self.deck(model)?;
        if let Verb::Stage { version, allow_breaking, replay } = &verb {
            return self.stage(deck, version, *allow_breaking, *replay, ask);
        }
        if let Some(moved) = self.answered(ask)? {
            return Ok(moved);
        }
        // Before anything is locked: it reads decisions, or loads a model.
        let (compliance, loaded) = match &verb {
            Verb::ApplyPolicy(document) => (self.check(deck, document, "apply_policy", ask)?, None),
            verb => (None, self.load_idle(deck, verb)?),
        };
        let mut held = self.hold(deck)?;
        if let Some(moved) = self.answered(ask)? {
            return Ok(moved);
        }
        let idle = held.slots.idle().map_or_else(String::new, |placed| placed.version.clone());
        let mut delivery = Delivery::default();
        if verb.needs_loading(&held) {
            self.bring_back(&mut held, loaded)?;
        }
        let (step, verb, result) = match verb {
            Verb::Stage { .. } => return Err(Error::Refused(Vec::new())),
            Verb::Retire => (Move::Retire, "retire", format!("{idle} has left")),
            Verb::Promote { force } => {
                let passed = force || self.has_passed(&held);
                let how = if force { ", by force" } else { "" };
                (Move::Promote { passed }, "promote", format!("{idle} is the champion{how}"))
            }
            Verb::RollBack if held.slots.rollout.is_some() => {
                (Move::RollBack, "rollback", format!("{idle} has lost its share"))
            }
            Verb::RollBack => (Move::RollBack, "rollback", format!("{idle} is the champion again")),
            Verb::Start(plan) => {
                let id = format!("{}-{:x}", self.now_ms(), fastrand::u32(..));
                let steps = plan.steps.len();
                (Move::Start { id, plan: *plan }, "start", format!("{idle} is under trial, step 1 of {steps}"))
            }
            Verb::Pause => (Move::Pause, "pause", "the rollout stays at its step".to_owned()),
            Verb::Resume => (Move::Resume, "resume", "the rollout goes on".to_owned()),
            Verb::Advance => {
                let step = held.slots.rollout.as_ref().map_or(0, |rollout| rollout.step + 2);
                (Move::Advance, "advance", format!("at step {step}, by hand"))
            }
            Verb::Abort => (Move::Abort, "abort", format!("{idle} has lost its share")),
            Verb::Approve(role) => {
                let result = format!("{} agrees as {role}", ask.by);
                (Move::Approve { role }, "approve", result)
            }
            Verb::ApplyPolicy(document) => {
                let policy = shelf::parse_policy(&document).map_err(Error::Refused)?;
                held.fit(&policy)?;
                let reference = shelf::policy_ref(&policy);
                let found = compliance.as_ref().map_or(String::new(), |found| format!("; {found}"));
                let result = format!("{} {} is in force{found}", policy.name(), policy.version());
                delivery.policy = Some(Arc::new(policy));
                (Move::ApplyPolicy(reference), "apply_policy", result)
            }
            Verb::UndoPolicy => {
                if let Some(before) = &held.policy_before {
                    held.fit(before)?;
                }
                delivery.policy = held.policy_before.clone();
                (Move::UndoPolicy, "undo_policy", "the policy before is in force again".to_owned())
            }
        };
        let moved = Moved { compliance, ..Moved::new(verb, result) };
        self.make(deck, &mut held, &step, ask, delivery, moved)
    }

    /// The answer to a request that comes again.
    pub(super) fn answered(&self, ask: &Ask) -> Result<Option<Moved>, Error> {
        let Some((key, fingerprint)) = &ask.key else { return Ok(None) };
        let ledger = self.ledger()?;
        match ledger.answered(key)? {
            None => Ok(None),
            Some(found) if found.fingerprint != *fingerprint => Err(Error::KeyReused),
            Some(found) => {
                let moved: Moved = serde_json::from_str(&found.answer).map_err(|error| {
                    ledger::Error::Broken(format!("an answer that was kept cannot be read: {error}"))
                })?;
                Ok(Some(Moved { repeated: true, ..moved }))
            }
        }
    }

    fn stage(
        &self,
        deck: &Deck,
        version: &str,
        allow_breaking: bool,
        replay: usize,
        ask: &Ask,
    ) -> Result<Moved, Error> {
        let approvals = self.options.load().approvals.clone();
        if replay > 0 {
            self.ledger()?;
        }
        let staging = match deck.staging(ask.key.as_ref().map(|(key, _)| key.as_str())) {
            Ok(staging) => staging,
            // It is asked again, and will have its answer.
            Err(true) => return Err(Error::Busy),
            Err(false) => {
                let mut legal = deck.held().slots.legal(&approvals);
                legal.retain(|verb| *verb != "stage");
                return Err(Illegal { why: "another model is being loaded".to_owned(), legal }.into());
            }
        };
        let (live, policy) = {
            let held = self.hold(deck)?;
            if let Some(moved) = self.answered(ask)? {
                return Ok(moved);
            }
            // Before the work, so that nobody waits for a refusal; and once more behind it.
            let trial = Move::Stage { version: version.to_owned(), digest: String::new() };
            held.slots.apply(&trial, &ask.by, 0, &approvals, &[])?;
            let champion = held.in_slot(held.slots.champion()).map(|loaded| loaded.model.clone());
            (champion.ok_or_else(|| self.unknown(&deck.name))?, held.policy.clone())
        };
        let staged = self.shelf.load(&deck.name, version, self.now_ms()).map_err(|error| shelf::reasons_of(&error));
        let staged = staged.and_then(|loaded| {
            let (notes, breaking) = shelf::differences(live.card(), loaded.model.card());
            let mut reasons = if allow_breaking { Vec::new() } else { breaking.clone() };
            reasons.extend(loaded.fits(&policy).err().unwrap_or_default());
            if reasons.is_empty() { Ok((loaded, [notes, breaking].concat())) } else { Err(reasons) }
        });
        let (loaded, notes) = match staged {
            Ok(staged) => staged,
            Err(reasons) => {
                self.note_refusal(deck, "stage", version, &reasons, ask);
                return Err(Error::Refused(reasons));
            }
        };
        let comparison = match replay {
            0 => None,
            count => Some(self.replay(&deck.name, &live, &loaded.model, &policy, count)?),
        };
        let mut held = self.hold(deck)?;
        if held.in_slot(held.slots.champion()).is_none_or(|loaded| !Arc::ptr_eq(&loaded.model, &live)) {
            // It was compared with another one.
            let legal = held.slots.legal(&approvals);
            return Err(Illegal { why: "the champion has changed meanwhile; stage again".to_owned(), legal }.into());
        }
        // Another policy may have come into force while the model was loaded.
        held.take_in(&loaded)?;
        let colour = held.slots.champion().other().name();
        let probe = loaded.model.probe();
        let result = format!(
            "{version} is ready in {colour}: {} golden rows within {:.1e}, p99 of a row {:.1} us",
            probe.rows, probe.difference_max, probe.row_p99_us
        );
        let step = Move::Stage { version: version.to_owned(), digest: loaded.model.digest().to_owned() };
        let moved = Moved { notes, replay: comparison, ..Moved::new("stage", result) };
        let delivery = Delivery { model: Some(loaded), policy: None };
        let moved = self.make(deck, &mut held, &step, ask, delivery, moved);
        drop(staging);
        moved
    }

    /// Puts a refusal into the history; where that is not possible, the caller is told all the same.
    pub(super) fn note_refusal(&self, deck: &Deck, verb: &str, what: &str, reasons: &[String], ask: &Ask) {
        let Some(ledger) = &self.ledger else { return };
        let refused = ledger.change(Change {
            model: deck.name.clone(),
            verb: verb.to_owned(),
            by: ask.by.clone(),
            why: ask.why.clone(),
            result: format!("{what} refused: {}", reasons.join("; ")),
            slots: None,
            experiments: None,
            documents: Vec::new(),
            request: None,
        });
        if let Err(error) = refused {
            tracing::warn!(model = deck.name, cause = %error, "a refusal could not be journalled");
        }
    }
}
