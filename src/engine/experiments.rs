//! Experiments at work: created, started, changed and stopped by people, or by the service when it is time, each checked by the law in
//! `domain::policy::registry`, journalled, and only then published. What they do to a customer is in `treatment`, how they stand in `examined`.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use super::owed::Outcome;
use super::rollout::promoted_ms;
use super::slots::{Deck, Held};
use super::{Ask, Engine, Error, Moved, shelf};
use crate::domain::access::SERVICE;
use crate::domain::nearest::nearest;
use crate::domain::policy::Policy;
use crate::domain::policy::experiment::{Experiment, Treatment};
use crate::domain::policy::layers::{Layers, Layout};
use crate::domain::policy::registry::{Begin, Refusal, Registry, Stamp, State};
use crate::domain::violation::{Code, LISTED_MAX, Violation};
use crate::ledger::{Answered, Change, Kept};

/// An experiment as somebody asks for it.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The experiment. Its beginning and its salt may be left to the service: 0, and empty.
    pub experiment: Experiment,
    /// What it waits for.
    pub begin: Begin,
    /// For each arm the document of the policy that decides, if one does; its treatment follows from that.
    pub documents: Vec<Option<String>>,
}

/// What can be asked of an experiment that is there.
#[derive(Debug, Clone)]
pub enum Trial {
    /// Begin it.
    Start,
    /// End it.
    Stop,
    /// Put another one of the same name in its place.
    Change {
        /// The other one.
        draft: Box<Draft>,
        /// Whether customers may be moved by that while it runs.
        force: bool,
    },
}

/// The policies of arms, by the sha256 of their documents.
pub(super) type ArmPolicies = HashMap<String, Arc<Policy>>;

impl Held {
    /// The experiments that run over `policy`, as they stand on record: their digest and their document.
    pub(super) fn layout(&self, policy: &Policy, experiments: &Registry) -> Option<(String, String)> {
        let experiments: Vec<Experiment> =
            experiments.running().into_iter().map(|known| known.experiment.clone()).collect();
        let layout = Layout { policy: shelf::policy_ref(policy), experiments };
        (!layout.experiments.is_empty()).then(|| layout.document())
    }

    /// The experiments that run.
    ///
    /// Errors: what does not fit the policy in force.
    pub(super) fn layers(&self) -> Result<Option<Layers>, Vec<String>> {
        let layout = self.layout(&self.policy, &self.experiments);
        let open = |(_, document): (String, String)| {
            Layers::open(&document, &self.policy, |digest| self.arm_policies.get(digest).cloned())
        };
        layout.map(open).transpose()
    }

    /// What of the experiments that have not ended could not be done if `policy` were in force.
    pub(super) fn unfit_experiments(&self, policy: &Policy) -> Vec<String> {
        let lasting = self.experiments.all().iter().filter(|known| known.state() != State::Ended);
        let unfit = lasting.flat_map(|known| {
            let misfits = known.experiment.misfits(policy, |digest| self.arm_policies.get(digest).map(|own| &**own));
            let name = &known.experiment.name;
            misfits.into_iter().map(move |(place, text)| {
                format!("the experiment \"{name}\" does not fit it: {place}: {text}; stop that one first")
            })
        });
        unfit.collect()
    }

    /// Policies of arms that are needed no more leave.
    pub(super) fn forget(&mut self) {
        let lasting = self.experiments.all().iter().filter(|known| known.state() != State::Ended);
        let needed: Vec<String> = lasting.flat_map(|known| digests(&known.experiment)).map(str::to_owned).collect();
        self.arm_policies.retain(|digest, _| needed.contains(digest));
    }
}

/// The digests of the policies of all arms.
pub(super) fn digests(experiment: &Experiment) -> impl Iterator<Item = &str> {
    experiment.arms.iter().filter_map(|arm| match &arm.treatment {
        Treatment::Policy(reference) => Some(reference.digest.as_str()),
        Treatment::Control | Treatment::Intervention(_) => None,
    })
}

impl Engine {
    /// Registers an experiment on the customers of `model`, or of the default one; it then waits for its beginning.
    ///
    /// Errors: [`Error::Invalid`] with everything that is wrong with it; [`Error::Illegal`]; [`Error::KeyReused`]; and
    /// [`Error::Ledger`] when it cannot be journalled, in which case nothing has changed; [`Error::Late`] when that is not known yet.
    pub fn create_experiment(&self, model: Option<&str>, draft: Draft, ask: &Ask) -> Result<Moved, Error> {
        self.ledger()?;
        let deck = match model {
            Some(model) => self.deck(model)?,
            None => self.decks.first().ok_or_else(|| self.unknown(""))?,
        };
        self.check_arms(deck, &draft, "create_experiment", ask)?;
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let others = self.others(deck)?;
        let mut held = self.hold(deck)?;
        if let Some(moved) = self.answered(ask)? {
            return Ok(moved);
        }
        let Draft { mut experiment, begin, documents } = draft;
        let now_ms = self.now_ms();
        if experiment.from_ms == 0 {
            experiment.from_ms = now_ms;
        }
        if experiment.salt.is_empty() {
            experiment.salt = format!("{}-{now_ms:x}-{:08x}", experiment.name, fastrand::u32(..));
        }
        let name = experiment.name.clone();
        let (policies, problems) = held.equip(&mut experiment, documents);
        let waits = match begin {
            Begin::ByHand => "somebody who starts it",
            Begin::AtTime => "its time",
            Begin::AfterRollout => "a rollout of its model to end in a promotion",
        };
        let created = held.experiments.create(experiment, begin, self.stamp(ask), &others);
        let next = settled(created, problems)?;
        self.publish_experiments(
            deck,
            &mut held,
            next,
            policies,
            ask,
            Moved::new("create", format!("{name} waits for {waits}")),
        )
    }

    /// Does something with an experiment.
    ///
    /// Errors: as [`create_experiment`](Self::create_experiment), and [`Error::UnknownExperiment`].
    pub fn try_experiment(&self, name: &str, trial: Trial, ask: &Ask) -> Result<Moved, Error> {
        self.ledger()?;
        if let Trial::Change { draft, .. } = &trial {
            self.check_arms(self.deck_of(name)?, draft, "change_experiment", ask)?;
        }
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let deck = self.deck_of(name)?;
        let others = self.others(deck)?;
        let mut held = self.hold(deck)?;
        if let Some(moved) = self.answered(ask)? {
            return Ok(moved);
        }
        let stamp = self.stamp(ask);
        let mut policies = ArmPolicies::new();
        let (next, verb, result) = match trial {
            Trial::Start => (held.experiments.start(name, stamp), "start", format!("{name} runs")),
            Trial::Stop => (held.experiments.stop(name, stamp), "stop", format!("{name} has ended")),
            Trial::Change { draft, force } => {
                let Draft { mut experiment, begin, documents } = *draft;
                // It was there when its deck was found, and nobody else names meanwhile.
                let unknown = || Error::UnknownExperiment { nearest: None, known: Vec::new() };
                let before = held.experiments.find(name).ok_or_else(unknown)?;
                if experiment.salt.is_empty() {
                    experiment.salt = before.experiment.salt.clone();
                }
                if experiment.from_ms == 0 {
                    experiment.from_ms = before.experiment.from_ms;
                }
                let mut problems;
                (policies, problems) = held.equip(&mut experiment, documents);
                if experiment.name != name {
                    problems.push(("/name".to_owned(), "expected the name that it has".to_owned()));
                    experiment.name = name.to_owned();
                }
                let changed = held.experiments.change(experiment, begin, stamp, force, &others);
                let how = if force { ", by force" } else { "" };
                (Ok(settled(changed, problems)?), "change", format!("{name} is changed{how}"))
            }
        };
        let next = settled(next, Vec::new())?;
        self.publish_experiments(deck, &mut held, next, policies, ask, Moved::new(verb, result))
    }

    /// Whether policies of arms are tried on decisions on record before anything is done, which may take seconds.
    pub fn tries_arms(&self, draft: &Draft) -> bool {
        let options = self.options.load();
        options.compliance_refuse && options.compliance_last > 0 && draft.documents.iter().flatten().next().is_some()
    }

    /// Holds the policies of arms to what an applied one is held to, where something is refused at all. Before anything is locked.
    fn check_arms(&self, deck: &Deck, draft: &Draft, verb: &str, ask: &Ask) -> Result<(), Error> {
        if !self.tries_arms(draft) || self.answered(ask)?.is_some() {
            return Ok(());
        }
        // One that cannot be read is told with its place, with all else that is wrong.
        let mut legal = draft.documents.iter().flatten().filter(|document| shelf::parse_policy(document).is_ok());
        legal.try_for_each(|document| self.check(deck, document, verb, ask).map(|_| ()))
    }

    /// Starts and ends what is due. One experiment at a look: the next one follows a quarter of a second later.
    pub(super) fn run_due(&self, deck: &Deck, held: &mut Held) {
        // What is owed to the journal, and what is late there, stands before this.
        if held.experiments.all().is_empty() || held.owed.is_some() || held.late.is_some() {
            return;
        }
        let Some(due) = held.experiments.due(self.now_ms(), promoted_ms(&held.slots)) else {
            held.due_told = false;
            return;
        };
        let ask = Ask { by: SERVICE.to_owned(), why: due.why.to_owned(), key: None };
        let (next, result) = match due.verb {
            "start" => (held.experiments.start(&due.name, self.stamp(&ask)), "runs"),
            _ => (held.experiments.stop(&due.name, self.stamp(&ask)), "has ended"),
        };
        let Ok(next) = next else { return };
        let moved = Moved::new(due.verb, format!("{} {result}", due.name));
        let done = self.publish_experiments(deck, held, next, ArmPolicies::new(), &ask, moved);
        // Tried again at every look, told once.
        if let Err(error) = done
            && !std::mem::replace(&mut held.due_told, true)
        {
            tracing::warn!(model = deck.name, experiment = due.name, cause = %error, "it could not be moved");
        }
    }

    /// Journals `next`, and then lets it be served.
    fn publish_experiments(
        &self,
        deck: &Deck,
        held: &mut Held,
        next: Registry,
        policies: ArmPolicies,
        ask: &Ask,
        moved: Moved,
    ) -> Result<Moved, Error> {
        let answer = serde_json::to_string(&moved).unwrap_or_default();
        let request = ask.key.clone().map(|(key, fingerprint)| Answered { key, fingerprint, answer });
        let kept = policies.iter().map(|(digest, policy)| (Kept::Policy, digest.clone(), policy.document().to_owned()));
        let layout = held.layout(&held.policy, &next);
        let documents = kept.chain(layout.map(|(digest, document)| (Kept::Layout, digest, document))).collect();
        let change = Change {
            model: deck.name.clone(),
            verb: format!("{}_experiment", moved.verb),
            by: ask.by.clone(),
            why: ask.why.clone(),
            result: moved.result.clone(),
            slots: None,
            experiments: Some(next.clone()),
            documents,
            request,
        };
        let flip = self.journal(deck, held, change, Outcome::Experiments(next, policies))?;
        tracing::info!(model = deck.name, verb = moved.verb, by = ask.by, result = moved.result, "experiment moved");
        Ok(Moved { flip_us: Some(flip.as_nanos() as f64 / 1e3), ..moved })
    }

    fn stamp(&self, ask: &Ask) -> Stamp {
        Stamp { at_ms: self.now_ms(), by: ask.by.clone(), why: ask.why.clone() }
    }

    /// The experiments of all other models: names and salts are one's own among all.
    fn others(&self, but: &Deck) -> Result<Vec<Experiment>, Error> {
        let mut others = Vec::new();
        for deck in self.decks.iter().filter(|deck| deck.name != but.name) {
            let held = self.hold_experiments(deck)?;
            others.extend(held.experiments.all().iter().map(|known| known.experiment.clone()));
        }
        Ok(others)
    }

    /// The deck whose experiment is called `name`.
    pub(super) fn deck_of(&self, name: &str) -> Result<&Deck, Error> {
        let found = self.decks.iter().find(|deck| deck.held().experiments.find(name).is_some());
        found.ok_or_else(|| self.unknown_experiment(name))
    }

    pub(super) fn unknown_experiment(&self, name: &str) -> Error {
        let of = |deck: &Deck| -> Vec<String> {
            deck.held().experiments.all().iter().map(|known| known.experiment.name.clone()).collect()
        };
        let known: Vec<String> = self.decks.iter().flat_map(of).collect();
        Error::UnknownExperiment { nearest: nearest(name, known.iter().map(String::as_str)).map(str::to_owned), known }
    }
}

impl Held {
    /// Gives the arms of `experiment` the policies of `documents`: those policies, and everything that is wrong with them here, as (JSON
    /// pointer, sentence).
    fn equip(
        &self,
        experiment: &mut Experiment,
        documents: Vec<Option<String>>,
    ) -> (ArmPolicies, Vec<(String, String)>) {
        let (mut policies, mut problems) = (ArmPolicies::new(), Vec::new());
        for (at, (arm, document)) in experiment.arms.iter_mut().zip(documents).enumerate() {
            let Some(document) = document else { continue };
            match shelf::parse_policy(&document) {
                Ok(policy) => {
                    let reference = shelf::policy_ref(&policy);
                    let unfit = self.loaded.iter().flatten().filter_map(|loaded| loaded.fits(&policy).err()).flatten();
                    problems.extend(unfit.map(|text| (format!("/arms/{at}/policy"), text)));
                    policies.insert(reference.digest.clone(), Arc::new(policy));
                    arm.treatment = Treatment::Policy(reference);
                }
                Err(wrong) => problems.extend(wrong.into_iter().map(|text| (format!("/arms/{at}/policy"), text))),
            }
        }
        let of_arm = |digest: &str| policies.get(digest).map(|policy| &**policy);
        problems.extend(experiment.misfits(&self.policy, of_arm));
        (policies, problems)
    }
}

/// The registry that follows, if nothing speaks against it.
fn settled(next: Result<Registry, Refusal>, mut problems: Vec<(String, String)>) -> Result<Registry, Error> {
    let next = match next {
        Ok(next) => Some(next),
        Err(Refusal::Wrong(wrong)) => {
            problems.splice(..0, wrong);
            None
        }
        Err(Refusal::Illegal(illegal)) => return Err(illegal.into()),
        Err(Refusal::Unknown(known)) => return Err(Error::UnknownExperiment { nearest: None, known }),
    };
    match next {
        Some(next) if problems.is_empty() => Ok(next),
        _ => {
            let violation = |(place, text): (String, String)| {
                let place = format!("/experiment{}", place.strip_suffix("_ms").unwrap_or(&place));
                Violation::new(place, Code::OutOfRange, text.strip_prefix("expected ").unwrap_or(&text))
            };
            Err(Error::Invalid(problems.into_iter().take(LISTED_MAX).map(violation).collect()))
        }
    }
}
