//! Floor 2, the engine: the one hallway between the doors above and the rooms below. A record goes down it once, a decision
//! comes up once, and both see one snapshot of what is in service.

mod account;
mod allotment;
mod batch;
mod capacity;
mod decide;
mod dry_run;
mod effect;
mod error;
mod examined;
mod experiments;
mod faults;
mod insight;
mod measures;
mod monitor;
mod moves;
mod opening;
mod owed;
mod past;
mod reasons;
mod retraining;
mod rollout;
mod sample;
mod serving;
mod shadow;
mod shelf;
mod simulate;
mod slots;
mod staging;
mod treatment;
mod turn;
mod watch;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

pub use account::Balance;
pub use allotment::Allotted;
pub use batch::{Batch, Draw};
pub use capacity::Occupancy;
pub use decide::Stages;
pub use error::Error;
pub use examined::{Counted, Examined};
pub use experiments::{Draft, Trial};
pub use insight::Options as InsightOptions;
pub use measures::{Drifted, Fairness, Measured, Part};
pub use monitor::{Drift, Window};
pub use moves::{Ask, Moved, Standing, Verb, Warm};
pub use retraining::{Options as RetrainingOptions, Request};
pub use rollout::Options;
pub use serving::{Catalogue, Serving};
pub use shelf::{PolicyError, Shelf, parse_policy, read_policy};
pub use simulate::Question;
pub use turn::Turn;

use crate::domain::nearest::nearest;
use crate::domain::policy::Policy;
use crate::domain::record::Record;
use crate::ledger::Ledger;
use crate::model::Model;

/// A promise to be kept before an answer.
pub use crate::ledger::Receipt;
/// To be spawned on every thread that awaits receipts: see `ledger::courier`.
pub use crate::ledger::courier;
use crate::outbound::webhook::Sender;
use crate::telemetry::Metrics;
use insight::Insight;
use retraining::Retraining;
use shadow::Shadow;
use slots::Deck;

/// How inputs on record are read again; the doors know how they were written.
pub type Read = for<'i> fn(&'i [u8]) -> Result<Record<'i>, String>;

/// The churn decision engine.
#[derive(Debug)]
pub struct Engine {
    catalogue: ArcSwap<Catalogue>,
    decks: Vec<Deck>,
    /// Models that have left their slot, until nobody uses them any more.
    retired: Mutex<Vec<Arc<Model>>>,
    /// Held while an experiment gets its name and its salt, which no other has, of whatever model.
    naming: Mutex<()>,
    shadow: Shadow,
    shelf: Shelf,
    ledger: Option<Ledger>,
    options: ArcSwap<Options>,
    insight: Insight,
    /// Where new models are asked for.
    retraining: Option<Retraining>,
    metrics: Arc<Metrics>,
    clock: fn() -> SystemTime,
    read: Read,
    closing: AtomicBool,
}

/// What an engine is made of.
#[derive(Debug)]
pub struct Setup {
    /// Where models come from.
    pub shelf: Shelf,
    /// The models to be served, the default one first.
    pub entries: Vec<Entry>,
    /// Whether the slots that the ledger remembers count more than the entries.
    pub resume: bool,
    /// Where decisions and moves are recorded.
    pub ledger: Option<Ledger>,
    /// How rollouts go.
    pub options: Options,
    /// What is measured, and how.
    pub insight: InsightOptions,
    /// When a new model is asked for, and what sends that, where it is wanted. Needs a ledger.
    pub retraining: Option<(RetrainingOptions, Sender)>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The clock.
    pub clock: fn() -> SystemTime,
    /// How inputs on record are read again.
    pub read: Read,
}

/// A model to be served, as the configuration names it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// The version that is the first champion.
    pub version: String,
    /// The policy that is the first one in force.
    pub policy: Arc<Policy>,
}

impl Engine {
    /// An engine with everything loaded, probed and in service, as the ledger remembers it or the entries name it.
    ///
    /// Errors: a champion or a policy that cannot be used, or a ledger that cannot be read.
    pub fn open(setup: Setup) -> Result<Self, Error> {
        let Setup { shelf, entries, resume, ledger, options, insight, retraining, metrics, clock, read } = setup;
        let asking = |(options, sender)| Retraining::open(options, sender, ledger.as_ref().ok_or(Error::LedgerOff)?);
        let retraining = retraining.map(asking).transpose()?;
        let mut engine = Self {
            catalogue: ArcSwap::from_pointee(Catalogue::none()),
            decks: Vec::new(),
            retired: Mutex::default(),
            naming: Mutex::default(),
            shadow: Shadow::new(options.shadow_queue_max),
            shelf,
            ledger,
            options: ArcSwap::from_pointee(options),
            insight: Insight::new(insight),
            retraining,
            metrics,
            clock,
            read,
            closing: AtomicBool::new(false),
        };
        for entry in entries {
            let deck = Deck::open(entry, &engine, resume)?;
            engine.decks.push(deck);
        }
        let servings = engine.decks.iter().filter_map(|deck| engine.serving_of(deck)).collect();
        engine.catalogue.store(Arc::new(Catalogue::new(servings)));
        Ok(engine)
    }

    /// The metrics that everything above records into too.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// How rollouts go, as of now.
    pub fn options(&self) -> Arc<Options> {
        self.options.load_full()
    }

    /// Lets rollouts go by other options from now on; those that have begun keep their plan.
    pub fn set_options(&self, options: Options) {
        self.options.store(Arc::new(options));
    }

    /// Everything in service, as of now.
    pub fn catalogue(&self) -> Arc<Catalogue> {
        self.catalogue.load_full()
    }

    /// What serves the model called `name`, or the default one: one snapshot, to be used for a whole request.
    ///
    /// Errors: [`Error::UnknownModel`].
    pub fn serving(&self, name: Option<&str>) -> Result<Arc<Serving>, Error> {
        let catalogue = self.catalogue.load();
        match name {
            None => Ok(catalogue.default_serving().clone()),
            Some(name) => catalogue.get(name).cloned().ok_or_else(|| self.unknown(name)),
        }
    }

    fn unknown(&self, name: &str) -> Error {
        let catalogue = self.catalogue.load();
        Error::UnknownModel {
            nearest: nearest(name, catalogue.names()).map(str::to_owned),
            known: catalogue.names().map(str::to_owned).collect(),
        }
    }

    /// Scores in the shadow until the engine closes. To be called on a thread of its own, of the least priority.
    pub fn run_shadow(&self) {
        self.shadow.run(|| self.is_closing());
    }

    /// Whether the engine closes.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// How long a record has to wait although nothing waits before it: for the commit that is under way, and for its own.
    pub fn record_takes(&self) -> Duration {
        self.ledger.as_ref().map_or(Duration::ZERO, |ledger| 2 * ledger.state().commit())
    }

    /// The time, milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        (self.clock)().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }
}
