//! The registry of a model's experiments: which are planned, which run and since when, which have ended, and what may be done to each.
//! Pure, so that what stands on record is what comes back. What those that run do to a customer is in `layers`.

use serde::{Deserialize, Serialize};

use super::experiment::{Experiment, problems_together};
use crate::domain::rollout::moves::Illegal;

/// The most experiments that run on one model at a time.
pub const RUNNING_MAX: usize = 8;
/// The most that are known of one model; of those that have ended the oldest makes room.
pub const KNOWN_MAX: usize = 64;

/// What can be asked of an experiment that is there.
pub const VERBS: [&str; 3] = ["start", "stop", "change"];

/// How an experiment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It waits for its beginning.
    Planned,
    /// It treats customers.
    Running,
    /// It does not any more.
    Ended,
}

impl State {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            State::Planned => "planned",
            State::Running => "running",
            State::Ended => "ended",
        }
    }
}

/// What an experiment waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Begin {
    /// Somebody who starts it.
    ByHand,
    /// Its time.
    AtTime,
    /// The end of a rollout of its model in a promotion, and its time.
    AfterRollout,
}

/// Who did something, when, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Who; `mainstay` is the service itself.
    pub by: String,
    /// Why, in that one's words.
    pub why: String,
}

/// An experiment with what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registered {
    /// The experiment. Once it runs, its beginning is when it began.
    pub experiment: Experiment,
    /// What it waits for, or waited for.
    pub begin: Begin,
    /// Its creation.
    pub created: Stamp,
    /// Its start, if it was started.
    pub started: Option<Stamp>,
    /// Its last change, if it was changed.
    pub changed: Option<Stamp>,
    /// Its end, if it has ended.
    pub ended: Option<Stamp>,
    /// Since when its groups have the shares that they have, milliseconds since 1970.
    pub shares_since_ms: u64,
}

impl Registered {
    /// How it stands.
    pub fn state(&self) -> State {
        match (&self.started, &self.ended) {
            (_, Some(_)) => State::Ended,
            (Some(_), None) => State::Running,
            (None, None) => State::Planned,
        }
    }

    /// What may be asked of it now, of [`VERBS`].
    pub fn legal(&self) -> Vec<&'static str> {
        match self.state() {
            State::Planned => VERBS.to_vec(),
            State::Running => vec!["stop", "change"],
            State::Ended => Vec::new(),
        }
    }
}

/// Why something is not done to a registry.
#[derive(Debug, Clone, PartialEq)]
pub enum Refusal {
    /// No experiment has this name; the names that there are.
    Unknown(Vec<String>),
    /// It is not to be done now.
    Illegal(Illegal),
    /// The experiment breaks these laws: (JSON pointer, sentence).
    Wrong(Vec<(String, String)>),
}

/// What the clock asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The name of the experiment.
    pub name: String,
    /// `start` or `stop`.
    pub verb: &'static str,
    /// Why.
    pub why: &'static str,
}

/// The experiments of one model, in the order in which they were created.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    experiments: Vec<Registered>,
}

impl Registry {
    /// All of them.
    pub fn all(&self) -> &[Registered] {
        &self.experiments
    }

    /// The one called `name`.
    pub fn find(&self, name: &str) -> Option<&Registered> {
        self.experiments.iter().find(|known| known.experiment.name == name)
    }

    /// Those that run, in the order in which they were started: who was there first keeps its customers.
    pub fn running(&self) -> Vec<&Registered> {
        let mut running: Vec<&Registered> =
            self.experiments.iter().filter(|known| known.state() == State::Running).collect();
        running.sort_by_key(|known| known.started.as_ref().map_or(0, |stamp| stamp.at_ms));
        running
    }

    /// With one more, which waits for `begin`. `others` are experiments of other models.
    pub fn create(
        &self,
        experiment: Experiment,
        begin: Begin,
        stamp: Stamp,
        others: &[Experiment],
    ) -> Result<Self, Refusal> {
        let mut problems = experiment.problems();
        problems.extend(self.clashes(&experiment, None, others));
        if experiment.to_ms <= stamp.at_ms {
            problems.push(("/to_ms".to_owned(), "expected a time that is still to come".to_owned()));
        }
        refuse(problems)?;
        let mut next = self.clone();
        if next.experiments.len() >= KNOWN_MAX {
            let ended = next.experiments.iter().position(|known| known.state() == State::Ended);
            let why = format!("{KNOWN_MAX} experiments of this model have not ended: stop one first");
            let oldest = ended.ok_or(Refusal::Illegal(Illegal { why, legal: Vec::new() }))?;
            next.experiments.remove(oldest);
        }
        let shares_since_ms = stamp.at_ms;
        next.experiments.push(Registered {
            experiment,
            begin,
            created: stamp,
            started: None,
            changed: None,
            ended: None,
            shares_since_ms,
        });
        Ok(next)
    }

    /// With the one called `name` running.
    pub fn start(&self, name: &str, mut stamp: Stamp) -> Result<Self, Refusal> {
        let known = self.known(name, "start")?;
        let illegal = |why: String, legal: &[&'static str]| Err(Refusal::Illegal(Illegal { why, legal: legal.to_vec() }));
        if known.experiment.to_ms <= stamp.at_ms {
            return illegal("its end has passed; give it another one first".to_owned(), &["stop", "change"]);
        }
        if self.running().len() >= RUNNING_MAX {
            return illegal(format!("{RUNNING_MAX} experiments run on this model already"), &["stop", "change"]);
        }
        let from_ms = stamp.at_ms;
        // Behind those that run, though the clock was set back.
        let last = self.running().last().and_then(|last| Some(last.started.as_ref()?.at_ms + 1));
        stamp.at_ms = stamp.at_ms.max(last.unwrap_or(0));
        Ok(self.with(name, |known| {
            known.experiment.from_ms = from_ms;
            known.shares_since_ms = from_ms;
            known.started = Some(stamp);
        }))
    }

    /// With the one called `name` ended, whether it ran or not.
    pub fn stop(&self, name: &str, stamp: Stamp) -> Result<Self, Refusal> {
        self.known(name, "stop")?;
        Ok(self.with(name, |known| known.ended = Some(stamp)))
    }

    /// With `experiment` in the place of the one of its name. While it runs nobody may be moved by that, neither its own customers nor
    /// those of experiments behind it, unless it is forced.
    pub fn change(
        &self,
        mut experiment: Experiment,
        begin: Begin,
        stamp: Stamp,
        force: bool,
        others: &[Experiment],
    ) -> Result<Self, Refusal> {
        let name = experiment.name.clone();
        let before = self.known(&name, "change")?;
        let is_running = before.state() == State::Running;
        if is_running {
            experiment.from_ms = before.experiment.from_ms;
        }
        let mut problems = experiment.problems();
        problems.extend(self.clashes(&experiment, Some(&name), others));
        if experiment.to_ms <= stamp.at_ms {
            problems.push(("/to_ms".to_owned(), "expected a time that is still to come".to_owned()));
        }
        if is_running && !force {
            problems.extend(experiment.moves_customers(&before.experiment));
            let behind = self.running().into_iter().skip_while(|known| known.experiment.name != name).nth(1);
            let size = |experiment: &Experiment| experiment.exposed() + experiment.holdout;
            if let Some(behind) = behind
                && size(&experiment) > size(&before.experiment)
            {
                let text = format!(
                    "expected no more than it has while \"{}\" runs behind it, whose customers it would take",
                    behind.experiment.name
                );
                problems.push(("/arms".to_owned(), text));
            }
        }
        refuse(problems)?;
        let shares = |experiment: &Experiment| {
            let arms = experiment.arms.iter().map(|arm| (arm.name.clone(), arm.share)).collect::<Vec<_>>();
            (experiment.salt.clone(), experiment.holdout, arms)
        };
        Ok(self.with(&name, |known| {
            if shares(&known.experiment) != shares(&experiment) {
                known.shares_since_ms = stamp.at_ms;
            }
            if !is_running {
                known.begin = begin;
            }
            known.experiment = experiment;
            known.changed = Some(stamp);
        }))
    }

    /// What is due at `now_ms`, one thing at a time; `promoted_ms` is when the last rollout of the model ended, if that was in a
    /// promotion. An experiment only waits for a rollout that ends after it was created.
    pub fn due(&self, now_ms: u64, promoted_ms: Option<u64>) -> Option<Due> {
        let is_full = self.running().len() >= RUNNING_MAX;
        self.experiments.iter().filter(|known| known.state() != State::Ended).find_map(|known| {
            let due = |verb, why| Some(Due { name: known.experiment.name.clone(), verb, why });
            let is_promoted = promoted_ms.is_some_and(|at_ms| at_ms >= known.created.at_ms);
            let waits = known.state() == State::Planned && now_ms >= known.experiment.from_ms && !is_full;
            match known.begin {
                _ if now_ms >= known.experiment.to_ms => due("stop", "its time is over"),
                Begin::AtTime if waits => due("start", "its time has come"),
                Begin::AfterRollout if waits && is_promoted => due("start", "the rollout ended in a promotion"),
                _ => None,
            }
        })
    }

    fn known(&self, name: &str, verb: &str) -> Result<&Registered, Refusal> {
        let names = || self.experiments.iter().map(|known| known.experiment.name.clone()).collect();
        let known = self.find(name).ok_or_else(|| Refusal::Unknown(names()))?;
        let legal = known.legal();
        if !legal.contains(&verb) {
            let why = format!("the experiment \"{name}\" is {}", known.state().name());
            return Err(Refusal::Illegal(Illegal { why, legal }));
        }
        Ok(known)
    }

    fn with(&self, name: &str, change: impl FnOnce(&mut Registered)) -> Self {
        let mut next = self.clone();
        if let Some(known) = next.experiments.iter_mut().find(|known| known.experiment.name == name) {
            change(known);
        }
        next
    }

    /// What `experiment` must not have in common with others, of which `but` is not one.
    fn clashes(
        &self,
        experiment: &Experiment,
        but: Option<&str>,
        others: &[Experiment],
    ) -> Vec<(String, String)> {
        let own = self.experiments.iter().map(|known| &known.experiment).filter(|known| Some(&*known.name) != but);
        let all: Vec<Experiment> = own.chain(others).chain(std::iter::once(experiment)).cloned().collect();
        let last = format!("/{}", all.len() - 1);
        let problems = problems_together(&all).into_iter();
        problems.filter_map(|(pointer, text)| Some((pointer.strip_prefix(&last)?.to_owned(), text))).collect()
    }
}

fn refuse(problems: Vec<(String, String)>) -> Result<(), Refusal> {
    if problems.is_empty() { Ok(()) } else { Err(Refusal::Wrong(problems)) }
}
