//! What is to be measured, and the way from the ledger into the sample: in the order of the record, off every request's path. The sample
//! itself is in `sample`, what is concluded in `measures`.

use std::sync::{Mutex, MutexGuard, PoisonError};
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
/// How often the sample is begun anew at most, where it has become small: that reads all that is measured once more.
const RENEWAL: Duration = Duration::from_secs(86_400);
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

    fn told(&self) -> MutexGuard<'_, Sample> {
        self.sample.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what the ledger has that the sample does not, for as long as `patience` allows: how many entries are left. The sample
    /// is free between two pages.
    fn catch_up(&self, source: &Source, now_ms: u64, patience: Duration) -> Result<i64, Error> {
        let begun = Instant::now();
        while let Some(through) = self.take_page(&mut self.told(), source, now_ms)? {
            if begun.elapsed() > patience {
                return Ok((source.ledger.state().seq() as i64).saturating_sub(through).max(1));
            }
        }
        Ok(0)
    }

    /// Takes a page of what the ledger has and `sample` does not: the last entry of it; `None` where there is none behind that.
    fn take_page(&self, sample: &mut Sample, source: &Source, now_ms: u64) -> Result<Option<i64>, Error> {
        let kept_ms = Window::Month.ms() + self.options.maturity_ms();
        let from_ms = (now_ms as i64).saturating_sub(kept_ms as i64);
        let after = match sample.through {
            Some(through) => through,
            None => source.ledger.before(from_ms)?,
        };
        let page = source.ledger.events(after, sample.customers, true)?;
        for (seq, event) in page.events {
            sample.take(event, source)?;
            // Where the next one cannot be read this one is not to be counted again.
            sample.through = Some(seq);
        }
        sample.through = Some(page.through);
        sample.trim(from_ms, self.options.decisions_max);
        Ok((!page.is_end).then_some(page.through))
    }

    /// Reads on into `larger`, a sample of more customers beside the one that is told from, for as long as `patience` allows. Once it has all
    /// of them it takes the place of that one: until then nobody sees anything of it, and then nothing is missing. One that has
    /// more customers no longer, since there were too many decisions of theirs, is let go.
    fn renew(
        &self,
        larger: &mut Option<Sample>,
        source: &Source,
        now_ms: u64,
        patience: Duration,
    ) -> Result<(), Error> {
        let begun = Instant::now();
        let Some(sample) = larger else { return Ok(()) };
        while self.take_page(sample, source, now_ms)?.is_some() {
            if begun.elapsed() > patience {
                return Ok(());
            }
        }
        let renewed = larger.take();
        let mut told = self.told();
        if let Some(mut renewed) = renewed.filter(|renewed| renewed.customers > told.customers) {
            std::mem::swap(&mut *told, &mut renewed);
            // Many rows leave here, and nobody is to wait for that.
            drop(told);
        }
        Ok(())
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
        let (mut larger, mut renewed): (Option<Sample>, Option<Instant>) = (None, None);
        let mut next_shares = next;
        while !self.is_closing() {
            match larger {
                None => std::thread::park_timeout(next.saturating_duration_since(Instant::now())),
                // Between the gauges, which are made at their time meanwhile.
                Some(_) => self.renew(&mut larger),
            }
            if self.is_closing() || Instant::now() < next {
                continue;
            }
            self.tell_drift();
            let measured: Result<(), Error> = self.ledger.as_ref().map_or(Ok(()), |_| {
                while self.catch_up()? > 0 && !self.is_closing() {}
                self.tell_effects();
                self.tell_measures()?;
                if Instant::now() >= next_shares {
                    next_shares = Instant::now() + self.tell_shares()?.max(pause);
                }
                Ok(())
            });
            if let Err(error) = measured {
                tracing::warn!(cause = %error, "nothing could be measured");
            }
            next = Instant::now() + pause;
            if larger.is_none() && renewed.is_none_or(|renewed| renewed.elapsed() > RENEWAL) {
                larger = self.insight.told().larger(self.insight.options.decisions_max);
                renewed = larger.is_some().then(Instant::now).or(renewed);
            }
        }
    }

    /// Reads on into the larger sample, as far as that can be done while the gauges wait.
    fn renew(&self, larger: &mut Option<Sample>) {
        let renewed = self.ledger().and_then(|ledger| {
            // What came in before counts for drift once, and was counted.
            let source = Source { ledger, read: self.read, monitors: Vec::new() };
            self.insight.renew(larger, &source, self.now_ms(), PATIENCE)
        });
        if let Err(error) = renewed {
            *larger = None;
            tracing::warn!(cause = %error, "the sample that is measured could not be made anew");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::SystemTime;

    use super::*;
    use crate::config::{Config, Sources};
    use crate::domain::decision::{Arm, Decision, ModelId};
    use crate::domain::id::DecisionId;
    use crate::domain::record::Record;
    use crate::domain::score::Score;
    use crate::engine::shelf::parse_policy;
    use crate::ledger::{self, Ledger};

    const DAY: u64 = 86_400_000;
    const MAX: usize = 1_000;

    static NOW_MS: AtomicU64 = AtomicU64::new(1_795_348_800_000);

    fn clock() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms())
    }

    fn now_ms() -> u64 {
        NOW_MS.load(Ordering::Relaxed)
    }

    fn unread(_: &[u8]) -> Result<Record<'_>, String> {
        Err("nobody asks".to_owned())
    }

    /// Records a decision on each of the customers `numbers`.
    fn decide(ledger: &Ledger, numbers: impl Iterator<Item = usize>) {
        let policy = Arc::new(parse_policy(include_str!("../../models/policy/default.toml")).expect("a policy"));
        let (name, version, digest) = ("m".to_owned(), "1".to_owned(), String::new());
        let model = Arc::new(ModelId { name, version, digest });
        let score = Score::new(0.5).expect("a score");
        let assessment = policy.assess(score, &[]);
        let decision = Decision {
            id: DecisionId::new(now_ms(), [0; 10]),
            decided_at_ms: now_ms(),
            score,
            model,
            arm: Arm::Champion,
            tier: assessment.tier,
            choice: assessment.choose(0.0, |_| true),
            value_at_stake: None,
            trace: assessment.trace,
            policy,
            chance: None,
            features_age_ms: None,
            explanation: None,
            counterfactuals: None,
        };
        let decisions: Vec<(Decision, String)> = numbers
            .map(|number| {
                let id = DecisionId::new(now_ms(), fastrand::u128(..).to_le_bytes()[..10].try_into().expect("ten"));
                (Decision { id, ..decision.clone() }, format!("c-{number}"))
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        for group in decisions.chunks(256) {
            let group = group.iter().map(|(decision, customer)| (decision, customer.as_str(), Default::default()));
            runtime.block_on(ledger.record_all(group).expect("room").kept()).expect("recorded");
        }
    }

    /// (share, decisions) that are told from, once all is read.
    fn told(insight: &Insight, source: &Source) -> (f64, usize) {
        while insight.catch_up(source, now_ms(), PATIENCE).expect("read") > 0 {}
        let told = insight.told();
        (told.share(), told.rows.len())
    }

    #[test]
    fn after_a_busy_day_more_customers_are_measured_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = Config::load(&Sources::of_process(None, Vec::new())).expect("a configuration");
        let dir = directory.path().to_owned();
        let ledger = Ledger::open(&ledger::Options { dir, ..config.ledger }, "", clock).expect("a ledger");
        let insight = Insight::new(Options { decisions_max: MAX, maturity_days: 0.0, ..config.insight });
        let source = Source { ledger: &ledger, read: unread, monitors: Vec::new() };
        decide(&ledger, 0..5_500);
        let (busy, rows) = told(&insight, &source);
        assert!(busy == 0.125 && rows <= MAX, "{busy} {rows}");
        assert!(insight.told().larger(MAX).is_none(), "as many as there is room for");

        // A month later: more than a page of the ledger, and few of them in the share.
        NOW_MS.fetch_add(31 * DAY, Ordering::Relaxed);
        decide(&ledger, 0..1_300);
        let (share, few) = told(&insight, &source);
        assert!(share == busy && (1..MAX / 4).contains(&few), "{share} {few}: it only ever became smaller");
        let mut larger = insight.told().larger(MAX);
        // It takes its time, and what comes meanwhile is told as ever.
        insight.renew(&mut larger, &source, now_ms(), Duration::ZERO).expect("read");
        decide(&ledger, 1_300..1_400);
        let (share, some) = told(&insight, &source);
        assert!(share == busy && (few..MAX / 4).contains(&some) && larger.is_some(), "{share} {some}");
        while larger.is_some() {
            insight.renew(&mut larger, &source, now_ms(), Duration::ZERO).expect("read");
        }
        let (share, more) = told(&insight, &source);
        let mut whole = Sample::new(MAX);
        whole.customers = insight.told().customers;
        while insight.take_page(&mut whole, &source, now_ms()).expect("read").is_some() {}
        assert_eq!(more, whole.rows.len(), "each decision once");
        assert!(share > busy && more >= MAX / 4 && insight.told().larger(MAX).is_none(), "{share} {more}");

        // One that has no more customers, such as where one of them alone is too many, is let go.
        insight.told().left_out = 7;
        insight.renew(&mut Some(whole), &source, now_ms(), PATIENCE).expect("read");
        assert_eq!((told(&insight, &source), insight.told().left_out), ((share, more), 7));
    }
}
