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
        problems.extend(is_over(&experiment, stamp.at_ms));
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
        let illegal =
            |why: String, legal: &[&'static str]| Err(Refusal::Illegal(Illegal { why, legal: legal.to_vec() }));
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
        problems.extend(is_over(&experiment, stamp.at_ms));
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
    fn clashes(&self, experiment: &Experiment, but: Option<&str>, others: &[Experiment]) -> Vec<(String, String)> {
        let own = self.experiments.iter().map(|known| &known.experiment).filter(|known| Some(&*known.name) != but);
        let all: Vec<Experiment> = own.chain(others).chain(std::iter::once(experiment)).cloned().collect();
        let last = format!("/{}", all.len() - 1);
        let problems = problems_together(&all).into_iter();
        problems.filter_map(|(pointer, text)| Some((pointer.strip_prefix(&last)?.to_owned(), text))).collect()
    }
}

/// An end that has passed already; one before the beginning is told as that.
fn is_over(experiment: &Experiment, now_ms: u64) -> Option<(String, String)> {
    let is_over = experiment.to_ms <= now_ms && experiment.from_ms < experiment.to_ms;
    is_over.then(|| ("/to_ms".to_owned(), "expected a time that is still to come".to_owned()))
}

fn refuse(problems: Vec<(String, String)>) -> Result<(), Refusal> {
    if problems.is_empty() { Ok(()) } else { Err(Refusal::Wrong(problems)) }
}

#[cfg(test)]
mod tests {
    use super::super::experiment::{Arm, Treatment};
    use super::*;

    fn experiment(name: &str, share: f64) -> Experiment {
        let text = || "text".to_owned();
        let arm = |name: &str| Arm {
            name: name.to_owned(),
            share,
            description: String::new(),
            treatment: Treatment::Control,
        };
        Experiment {
            name: name.to_owned(),
            hypothesis: text(),
            owner: text(),
            arms: vec![arm("a"), arm("b")],
            holdout: 0.0,
            from_ms: 100,
            to_ms: 1_000,
            salt: format!("salt-of-{name}"),
        }
    }

    fn at(at_ms: u64) -> Stamp {
        Stamp { at_ms, by: "ops".to_owned(), why: String::new() }
    }

    fn with(names: &[&str], begin: Begin) -> Registry {
        let create = |registry: Registry, name: &&str| {
            registry.create(experiment(name, 0.1), begin, at(50), &[]).expect("a legal experiment")
        };
        names.iter().fold(Registry::default(), create)
    }

    fn pointers(refusal: Refusal) -> Vec<String> {
        match refusal {
            Refusal::Wrong(problems) => problems.into_iter().map(|(pointer, _)| pointer).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn why(refusal: Refusal) -> (String, Vec<&'static str>) {
        match refusal {
            Refusal::Illegal(Illegal { why, legal }) => (why, legal),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_is_planned_runs_and_ends() {
        let planned = with(&["x"], Begin::ByHand);
        assert_eq!(planned.find("x").map(Registered::state), Some(State::Planned));
        assert_eq!(planned.running(), Vec::<&Registered>::new());
        assert_eq!(planned.due(500, Some(60)), None, "it waits for a hand");
        let running = planned.start("x", at(300)).expect("a start");
        let known = running.find("x").expect("it is there");
        assert_eq!((known.state(), known.experiment.from_ms, known.shares_since_ms), (State::Running, 300, 300));
        assert_eq!(
            why(running.start("x", at(301)).expect_err("twice")),
            ("the experiment \"x\" is running".into(), vec!["stop", "change"])
        );
        assert_eq!(running.due(999, None), None);
        let over = running.due(1_000, None).expect("its end");
        assert_eq!((over.verb, over.why), ("stop", "its time is over"));
        let ended = running.stop("x", at(400)).expect("an end");
        assert_eq!(ended.find("x").map(Registered::state), Some(State::Ended));
        assert_eq!(why(ended.stop("x", at(401)).expect_err("twice")).1, [""; 0]);
        assert_eq!(ended.due(2_000, None), None);
        assert_eq!(ended.start("y", at(1)), Err(Refusal::Unknown(vec!["x".to_owned()])));
        assert!(why(planned.start("x", at(1_000)).expect_err("late")).0.starts_with("its end has passed"));
        assert_eq!(planned.stop("x", at(60)).expect("a plan is dropped").running().len(), 0);
        let text = serde_json::to_string(&running).expect("JSON");
        assert_eq!(serde_json::from_str::<Registry>(&text).expect("a registry"), running);
    }

    #[test]
    fn it_starts_by_itself_when_its_time_has_come_or_a_rollout_ended_well() {
        let timed = with(&["x"], Begin::AtTime);
        assert_eq!((timed.due(99, None), timed.due(100, None).map(|due| due.verb)), (None, Some("start")));
        let after = with(&["x"], Begin::AfterRollout);
        assert_eq!(after.due(500, None), None, "no rollout has ended in a promotion");
        assert_eq!(after.due(500, Some(49)), None, "that one ended before it was created");
        assert_eq!(after.due(99, Some(60)), None, "it is not to begin before its time");
        assert_eq!(after.due(100, Some(60)).map(|due| due.why), Some("the rollout ended in a promotion"));
        assert_eq!(after.due(1_000, None).map(|due| due.verb), Some("stop"), "it waited in vain");
    }

    #[test]
    fn who_is_there_first_keeps_its_customers() {
        let registry = with(&["x", "y", "z"], Begin::ByHand);
        // The clock is set back between: the order is that of the starts all the same.
        let registry = registry.start("z", at(300)).and_then(|next| next.start("x", at(200))).expect("starts");
        let names: Vec<&str> = registry.running().iter().map(|known| &*known.experiment.name).collect();
        assert_eq!(names, ["z", "x"]);
        assert_eq!(registry.find("x").map(|known| known.experiment.from_ms), Some(200));
        let change = |name: &str, share: f64, force| {
            registry.change(experiment(name, share), Begin::ByHand, at(400), force, &[])
        };
        assert_eq!(pointers(change("z", 0.2, false).expect_err("x is behind it")), ["/arms"]);
        let forced = change("z", 0.2, true).expect("by force");
        assert_eq!(forced.find("z").map(|known| known.shares_since_ms), Some(400));
        let grown = change("x", 0.2, false).expect("nobody is behind it");
        let known = grown.find("x").expect("it is there");
        assert_eq!((known.shares_since_ms, known.experiment.from_ms), (400, 200));
        assert_eq!(pointers(change("x", 0.05, false).expect_err("it shrinks")), ["/arms/0/share", "/arms/1/share"]);
        assert!(change("y", 0.3, false).is_ok(), "what is planned has no customers yet");
        let longer = Experiment { to_ms: 2_000, ..experiment("z", 0.1) };
        let longer = registry.change(longer, Begin::ByHand, at(400), false, &[]).expect("nobody moves");
        assert_eq!(longer.find("z").map(|known| known.shares_since_ms), Some(300));
    }

    #[test]
    fn everything_wrong_is_told_and_everything_is_bounded() {
        let registry = with(&["x"], Begin::ByHand);
        let create = |experiment| registry.create(experiment, Begin::ByHand, at(60), &[experiment_of_another()]);
        fn experiment_of_another() -> Experiment {
            experiment("other", 0.1)
        }
        let twin = Experiment { to_ms: 60, salt: "salt-of-other".to_owned(), ..experiment("x", 0.6) };
        let told = pointers(create(twin).expect_err("it is wrong"));
        assert_eq!(told, ["/to_ms", "/arms", "/name", "/salt"]);
        let past = Experiment { from_ms: 10, to_ms: 60, ..experiment("past", 0.1) };
        assert_eq!(pointers(create(past).expect_err("it is over")), ["/to_ms"]);
        let names: Vec<String> = (0..KNOWN_MAX).map(|number| format!("x-{number}")).collect();
        let mut full = with(&names.iter().map(String::as_str).collect::<Vec<_>>(), Begin::ByHand);
        for name in &names[..RUNNING_MAX] {
            full = full.start(name, at(200)).expect("a start");
        }
        assert!(why(full.start(&names[RUNNING_MAX], at(200)).expect_err("full")).0.contains("8 experiments run"));
        assert_eq!(full.due(500, Some(400)), None);
        let more = |registry: &Registry| registry.create(experiment("more", 0.1), Begin::ByHand, at(60), &[]);
        assert!(why(more(&full).expect_err("full")).0.contains("stop one first"));
        let stopped = full.stop("x-3", at(300)).expect("an end");
        let next = more(&stopped).expect("room");
        assert_eq!((next.all().len(), next.find("x-3")), (KNOWN_MAX, None));
    }
}
