//! What is to be measured, and the way from the ledger into the sample: in the order of the record, off every request's path. The sample
//! itself is in `sample`, what is concluded in `measures`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::monitor::Window;
use super::sample::{Sample, Source};
use super::shelf::Loaded;
use super::slots::Deck;
use super::{Engine, Error};
use crate::domain::insight::kpis::Targets;

/// How long an answer may take to catch up with the ledger.
const PATIENCE: Duration = Duration::from_secs(2);
const DAY_MS: f64 = 86_400_000.0;

/// The section `insight` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Options {
    pub enabled: bool,
    pub conversion_floor: f64,
    pub cost_ceiling: f64,
    pub churn_reduction: f64,
    pub maturity_days: f64,
    pub window: String,
    pub drift_window: String,
    pub decisions_max: usize,
    pub refresh_secs: u64,
}

impl Options {
    /// Every value that is out of its range, as (key, sentence).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut within = |key, value: f64, min: f64, max: f64| {
            // Written so that NaN is out of every range.
            if !(value >= min && value <= max) {
                problems.push((key, format!("expected {min} to {max}")));
            }
        };
        within("conversion_floor", self.conversion_floor, 0.0, 1.0);
        within("cost_ceiling", self.cost_ceiling, 0.0, 1e9);
        within("churn_reduction", self.churn_reduction, 0.0, 1.0);
        within("maturity_days", self.maturity_days, 0.0, 400.0);
        within("decisions_max", self.decisions_max as f64, 1_000.0, 1e7);
        within("refresh_secs", self.refresh_secs as f64, 1.0, 86_400.0);
        for (key, name) in [("window", &self.window), ("drift_window", &self.drift_window)] {
            if Window::named(name).is_none() {
                problems.push((key, "expected \"1h\", \"24h\", \"7d\" or \"30d\"".to_owned()));
            }
        }
        problems
    }

    /// After this no word of a customer means that the customer stayed, in milliseconds.
    pub(super) fn maturity_ms(&self) -> u64 {
        (self.maturity_days * DAY_MS) as u64
    }

    pub(super) fn targets(&self) -> Targets {
        let Self { conversion_floor, cost_ceiling, churn_reduction, .. } = *self;
        Targets { conversion_floor, cost_ceiling, churn_reduction }
    }
}

/// The sample, and what it is made by.
#[derive(Debug)]
pub(super) struct Insight {
    pub(super) options: Options,
    pub(super) sample: Mutex<Sample>,
}

impl Insight {
    pub(super) fn new(options: Options) -> Self {
        let room = if options.enabled { options.decisions_max } else { 0 };
        Self { options, sample: Mutex::new(Sample::new(room)) }
    }

    /// Whether anything is measured. Errors: [`Error::InsightOff`].
    pub(super) fn is_on(&self) -> Result<(), Error> {
        if self.options.enabled { Ok(()) } else { Err(Error::InsightOff) }
    }

    /// Reads what the ledger has that the sample does not, for as long as `patience` allows: how many entries are left. The sample
    /// is free between two pages.
    fn catch_up(&self, source: &Source, now_ms: u64, patience: Duration) -> Result<i64, Error> {
        let ledger = source.ledger;
        let begun = Instant::now();
        let kept_ms = Window::Month.ms() + self.options.maturity_ms();
        let from_ms = (now_ms as i64).saturating_sub(kept_ms as i64);
        loop {
            let mut sample = self.sample.lock().unwrap_or_else(PoisonError::into_inner);
            let after = match sample.through {
                Some(through) => through,
                None => ledger.before(from_ms)?,
            };
            let page = ledger.events(after, sample.customers, true)?;
            for (seq, event) in page.events {
                sample.take(event, source)?;
                // Where the next one cannot be read this one is not to be counted again.
                sample.through = Some(seq);
            }
            sample.through = Some(page.through);
            sample.trim(from_ms, self.options.decisions_max);
            if page.is_end {
                return Ok(0);
            }
            if begun.elapsed() > patience {
                return Ok((ledger.state().seq() as i64).saturating_sub(page.through).max(1));
            }
        }
    }
}

impl Engine {
    /// Brings the sample up to date, as far as that can be done while somebody waits: how many records it is behind.
    ///
    /// Errors: [`Error::LedgerOff`], or a ledger that cannot be read.
    pub(super) fn catch_up(&self) -> Result<i64, Error> {
        let loaded = |deck: &Deck| {
            let of = |loaded: &Loaded| (loaded.model.clone(), loaded.monitor.clone());
            deck.held().loaded.iter().flatten().map(of).collect::<Vec<_>>()
        };
        let monitors = self.decks.iter().flat_map(loaded).collect();
        let source = Source { ledger: self.ledger()?, read: self.read, monitors };
        self.insight.catch_up(&source, self.now_ms(), PATIENCE)
    }

    /// Measures for the metrics until the engine closes. To be called on a thread of its own, of the least priority; who unparks it
    /// wakes it.
    pub fn run_insight(&self) {
        if !self.insight.options.enabled {
            while !self.is_closing() {
                std::thread::park();
            }
            return;
        }
        let pause = Duration::from_secs(self.insight.options.refresh_secs);
        let mut next = Instant::now() + pause.min(Duration::from_secs(10));
        while !self.is_closing() {
            std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
            if self.is_closing() || Instant::now() < next {
                continue;
            }
            self.tell_drift();
            let measured = self.ledger.as_ref().map_or(Ok(()), |_| {
                while self.catch_up()? > 0 && !self.is_closing() {}
                self.tell_effects();
                self.tell_measures()
            });
            if let Err(error) = measured {
                tracing::warn!(cause = %error, "nothing could be measured");
            }
            next = Instant::now() + pause;
        }
    }
}
