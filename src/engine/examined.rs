//! How experiments stand, for whoever looks: as they are registered, and with their customers, which are counted in the ledger, now and then
//! for the metrics too. What is done with them is in `experiments`.

use std::time::{Duration, Instant};

use super::slots::Deck;
use super::{Engine, Error};
use crate::domain::policy::experiment::{self, Experiment, Group, HOLDOUT, MISMATCH_FOUND};
use crate::domain::policy::registry::Registered;
use crate::ledger::Exposed;

/// How many times as long as counting took there is none for the metrics: it reads up to millions of records.
const REST: u32 = 100;

/// How an experiment stands.
#[derive(Debug, Clone)]
pub struct Examined {
    /// The model whose customers it treats.
    pub model: String,
    /// The experiment with what became of it.
    pub registered: Registered,
    /// Its customers, where they were counted.
    pub counted: Option<Counted>,
}

/// The customers of an experiment, each once, since its groups have the shares that they have.
#[derive(Debug, Clone)]
pub struct Counted {
    /// For each arm, in their order, and last for the holdout.
    pub customers: Vec<u64>,
    /// The e-value of a sample ratio mismatch: see [`experiment::mismatch`].
    pub mismatch: f64,
    /// Whether everything since then was looked at.
    pub is_whole: bool,
}

impl Engine {
    /// How every experiment stands, of one model or of all, without counting customers.
    pub fn experiments(&self, model: Option<&str>) -> Result<Vec<Examined>, Error> {
        if let Some(model) = model {
            self.deck(model)?;
        }
        let decks = self.decks.iter().filter(|deck| model.is_none_or(|model| deck.name == model));
        let of = |deck: &Deck| -> Vec<Examined> {
            let all = deck.held().experiments.all().to_vec().into_iter();
            all.map(|registered| Examined { model: deck.name.clone(), registered, counted: None }).collect()
        };
        Ok(decks.flat_map(of).collect())
    }

    /// How one experiment stands, without counting customers.
    pub fn experiment(&self, name: &str) -> Result<Examined, Error> {
        let deck = self.deck_of(name)?;
        let found = deck.held().experiments.find(name).cloned();
        let registered = found.ok_or_else(|| self.unknown_experiment(name))?;
        Ok(Examined { model: deck.name.clone(), registered, counted: None })
    }

    /// The same with its customers. Reads what is on record since its shares are what they are: seconds, where that is much.
    pub fn examine(&self, name: &str) -> Result<Examined, Error> {
        let examined = self.experiment(name)?;
        let counted = self.counted(&examined.model, &examined.registered)?;
        Ok(Examined { counted, ..examined })
    }

    /// The customers of an experiment of `model` that has begun, where there is a ledger. Reads what is on record since its shares are what
    /// they are.
    fn counted(&self, model: &str, registered: &Registered) -> Result<Option<Counted>, Error> {
        let Some((ledger, _)) = self.ledger.as_ref().zip(registered.started.as_ref()) else { return Ok(None) };
        let exposed = ledger.exposed(model, &registered.experiment.name, registered.shares_since_ms as i64)?;
        Ok(Some(Counted::new(&registered.experiment, &exposed)))
    }

    /// Puts into the metrics how many of the experiments that run on each model must not be trusted: how long to leave it at that.
    pub(super) fn tell_shares(&self) -> Result<Duration, Error> {
        let begun = Instant::now();
        for deck in &self.decks {
            let running: Vec<Registered> = deck.held().experiments.running().into_iter().cloned().collect();
            let mut mismatched = 0;
            for registered in running {
                // A stop does not wait for the rest.
                if self.is_closing() {
                    return Ok(Duration::ZERO);
                }
                let counted = self.counted(&deck.name, &registered)?;
                mismatched += usize::from(counted.is_some_and(|counted| counted.is_mismatched()));
            }
            self.metrics.experiments_mismatched(&deck.name, mismatched);
        }
        Ok(begun.elapsed() * REST)
    }
}

impl Counted {
    fn new(experiment: &Experiment, exposed: &Exposed) -> Self {
        let names = experiment.arms.iter().map(|arm| arm.name.as_str()).chain([HOLDOUT]);
        let of = |name: &str| exposed.groups.iter().find(|(group, _)| group == name).map_or(0, |(_, count)| *count);
        let customers: Vec<u64> = names.map(of).collect();
        let shares = (0..experiment.arms.len()).map(Group::Arm).chain([Group::Holdout]);
        let groups: Vec<(u64, f64)> =
            customers.iter().copied().zip(shares.map(|group| experiment.share(group))).collect();
        Self { mismatch: experiment::mismatch(&groups), customers, is_whole: exposed.is_whole }
    }

    /// Whether what the experiment shows must not be trusted.
    pub fn is_mismatched(&self) -> bool {
        self.mismatch >= MISMATCH_FOUND
    }
}
