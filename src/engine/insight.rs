//! The sample that measures are made of: decisions with what followed them, read from the ledger in its order, off every request's
//! path. Where there are too many it keeps fewer customers, a fair share of them, each whole. What is concluded is in `measures`.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::monitor::Window;
use super::shelf::parse_policy;
use super::{Engine, Error, Read};
use crate::domain::insight::kpis::Targets;
use crate::domain::money::Money;
use crate::domain::policy::{NONE, Policy, fit};
use crate::domain::record::Value;
use crate::ledger::{Decided, Event, Followed, Inputs, Ledger, Maker, Ticket};

/// The entry of the context that says how much a customer used the service before: in any unit, so that less chance is in comparisons.
const USAGE_BEFORE: &str = "usage_before";
/// Ways in which decisions differ, such as version, arm and segment together, and sets of audit groups: what is over is left out, and
/// counted.
const KINDS_MAX: usize = 16_384;
/// How long an answer may take to catch up with the ledger.
const PATIENCE: Duration = Duration::from_secs(2);
const DAY_MS: f64 = 86_400_000.0;

/// The section `insight` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Options {
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

/// What many decisions have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) maker: Arc<Made>,
    pub(super) arm: String,
    pub(super) segment: Option<String>,
    pub(super) holdout: Option<bool>,
    /// Each experiment with its arm, as `name/arm`.
    pub(super) experiments: Vec<String>,
}

/// What made decisions.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Made {
    pub(super) model: String,
    pub(super) model_version: String,
    pub(super) policy_version: String,
    /// The bits of the share that the policy holds out, if it does.
    pub(super) holdout: Option<u64>,
}

/// One decision with what followed it.
#[derive(Debug, Clone)]
pub(super) struct Row {
    id: [u8; 16],
    pub(super) at_ms: i64,
    pub(super) customer: Ticket,
    pub(super) score: f64,
    pub(super) kind: u32,
    /// The place of its audit groups.
    pub(super) groups: u32,
    pub(super) offered: bool,
    pub(super) cost: Money,
    pub(super) value_at_stake: Option<f64>,
    pub(super) usage_before: Option<f64>,
    /// When the customer left, and when that was recorded.
    pub(super) left_ms: Option<(i64, i64)>,
    pub(super) converted: Option<bool>,
    pub(super) revenue: Money,
    pub(super) orders: u32,
    pub(super) contact_cost: Money,
}

/// Values that are the same for many, each once.
#[derive(Debug)]
pub(super) struct Table<T> {
    pub(super) values: Vec<T>,
    places: HashMap<T, u32>,
}

impl<T: Clone + Eq + Hash> Table<T> {
    fn new() -> Self {
        Self { values: Vec::new(), places: HashMap::new() }
    }

    /// The place of `value`; `None` where there is none left.
    fn place(&mut self, value: T) -> Option<u32> {
        if let Some(place) = self.places.get(&value) {
            return Some(*place);
        }
        if self.values.len() >= KINDS_MAX {
            return None;
        }
        let place = self.values.len() as u32;
        self.values.push(value.clone());
        self.places.insert(value, place);
        Some(place)
    }
}

/// The audit groups of a customer: attribute and group.
pub(super) type Groups = Vec<(String, String)>;

/// Decisions of a time, of a fair share of the customers.
#[derive(Debug)]
pub(super) struct Sample {
    /// The last entry that was read; `None` before the first.
    pub(super) through: Option<i64>,
    /// The highest ticket that is kept.
    pub(super) customers: Ticket,
    /// In the order of the record.
    pub(super) rows: VecDeque<Row>,
    /// How many rows have left at the front.
    gone: u64,
    /// By id, counted from the first row that ever was.
    places: HashMap<[u8; 16], u64>,
    pub(super) kinds: Table<Kind>,
    pub(super) groups: Table<Groups>,
    makers: HashMap<i64, (Arc<Made>, Option<Arc<Policy>>)>,
    /// Decisions that were left out since there was no place for their kind.
    pub(super) left_out: u64,
}

impl Default for Sample {
    fn default() -> Self {
        let mut groups = Table::new();
        // The place 0 is of nobody.
        groups.place(Groups::new());
        Self {
            through: None,
            customers: Ticket::MAX,
            rows: VecDeque::new(),
            gone: 0,
            places: HashMap::new(),
            kinds: Table::new(),
            groups,
            makers: HashMap::new(),
            left_out: 0,
        }
    }
}

impl Sample {
    /// The share of customers that is kept, over 0 to 1.
    pub(super) fn share(&self) -> f64 {
        (self.customers as f64 + 1.0) / (Ticket::MAX as f64 + 1.0)
    }

    fn take(&mut self, event: Event, ledger: &Ledger, read: Read) -> Result<(), Error> {
        match event {
            Event::Decided(decided) => self.decided(*decided, ledger, read)?,
            Event::Followed(followed) => self.followed(&followed),
            // What is known of them by their inputs goes with these.
            Event::Erased(tickets) => {
                for row in self.rows.iter_mut().filter(|row| tickets.contains(&row.customer)) {
                    (row.groups, row.usage_before) = (0, None);
                }
            }
        }
        Ok(())
    }

    fn decided(&mut self, decided: Decided, ledger: &Ledger, read: Read) -> Result<(), Error> {
        let Some((maker, policy)) = self.maker(decided.maker, ledger)? else { return Ok(()) };
        let said = decided.said;
        let segment = said.rules.iter().find_map(|rule| rule.strip_prefix("segment:")).map(str::to_owned);
        let experiments = said.experiments.iter().map(|part| format!("{}/{}", part.name, part.arm)).collect();
        let kind = Kind { maker, arm: decided.arm, segment, holdout: said.holdout, experiments };
        let Some(kind) = self.kinds.place(kind) else {
            self.left_out += 1;
            return Ok(());
        };
        let (groups, usage_before) = match &decided.inputs {
            Inputs::Kept(inputs) => about(inputs, read),
            Inputs::NotKept | Inputs::Erased => (Groups::new(), None),
        };
        // What the record does not say of the cost, its policy does.
        let of_policy = || {
            let offers = policy.as_ref()?.interventions();
            offers.iter().find(|offer| offer.action == decided.action).map(|offer| offer.cost)
        };
        let row = Row {
            id: decided.id,
            at_ms: decided.at_ms,
            customer: decided.customer,
            score: decided.score,
            kind,
            groups: self.groups.place(groups).unwrap_or(0),
            offered: decided.action != NONE,
            cost: said.cost.and_then(Money::from_units).or_else(of_policy).unwrap_or(Money::ZERO),
            value_at_stake: said.value_at_stake,
            usage_before,
            left_ms: None,
            converted: None,
            revenue: Money::ZERO,
            orders: 0,
            contact_cost: Money::ZERO,
        };
        self.places.insert(row.id, self.gone + self.rows.len() as u64);
        self.rows.push_back(row);
        Ok(())
    }

    fn maker(&mut self, maker: i64, ledger: &Ledger) -> Result<Option<(Arc<Made>, Option<Arc<Policy>>)>, Error> {
        if let Some(known) = self.makers.get(&maker) {
            return Ok(Some(known.clone()));
        }
        let Some(found) = ledger.maker(maker)? else { return Ok(None) };
        let Maker { model, model_version, policy_version, policy_document, .. } = found;
        let policy = parse_policy(&policy_document).ok().map(Arc::new);
        let holdout = policy.as_ref().and_then(|policy| policy.holdout()).map(|holdout| holdout.share().to_bits());
        let known = (Arc::new(Made { model, model_version, policy_version, holdout }), policy);
        self.makers.insert(maker, known.clone());
        Ok(Some(known))
    }

    fn followed(&mut self, followed: &Followed) {
        let place = self.places.get(&followed.decision).and_then(|place| place.checked_sub(self.gone));
        let Some(row) = place.and_then(|place| self.rows.get_mut(place as usize)) else { return };
        let facts = followed.facts;
        if facts.churned == Some(true) && row.left_ms.is_none() {
            row.left_ms = Some((followed.occurred_at_ms, followed.recorded_at_ms));
        }
        // Who took it once has taken it, whatever is told besides.
        row.converted =
            facts.converted.map_or(row.converted, |converted| Some(converted || row.converted == Some(true)));
        if let Some(revenue) = facts.revenue {
            row.revenue = row.revenue.plus(revenue);
            row.orders += 1;
        }
        row.contact_cost = row.contact_cost.plus(facts.contact_cost.unwrap_or(Money::ZERO));
    }

    /// Lets go what is from before `from_ms`, and half of the customers as often as there are more than `max` decisions.
    fn trim(&mut self, from_ms: i64, max: usize) {
        while self.rows.front().is_some_and(|row| row.at_ms < from_ms) {
            if let Some(row) = self.rows.pop_front() {
                self.places.remove(&row.id);
                self.gone += 1;
            }
        }
        while self.rows.len() > max && self.customers > 0 {
            self.customers /= 2;
            self.rows.retain(|row| row.customer <= self.customers);
            self.gone = 0;
            self.places = self.rows.iter().enumerate().map(|(place, row)| (row.id, place as u64)).collect();
        }
    }
}

/// The audit groups and the usage before that inputs say.
fn about(inputs: &[u8], read: Read) -> (Groups, Option<f64>) {
    let Ok(record) = read(inputs) else { return (Groups::new(), None) };
    let entry = |name: &str| record.context.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    let groups = match entry(fit::AUDIT) {
        Some(Value::Map(groups)) => groups
            .iter()
            .filter_map(|(attribute, group)| match group {
                Value::Text(group) => Some((attribute.to_string(), group.to_string())),
                _ => None,
            })
            .collect(),
        _ => Groups::new(),
    };
    let usage = match entry(USAGE_BEFORE) {
        Some(Value::Number(usage)) => Some(*usage),
        _ => None,
    };
    (groups, usage)
}

/// The sample, and what it is made by.
#[derive(Debug)]
pub(super) struct Insight {
    pub(super) options: Options,
    pub(super) sample: Mutex<Sample>,
}

impl Insight {
    pub(super) fn new(options: Options) -> Self {
        Self { options, sample: Mutex::default() }
    }

    /// Reads what the ledger has that the sample does not, for as long as `patience` allows: how many entries are left. The sample
    /// is free between two pages.
    fn catch_up(&self, ledger: &Ledger, read: Read, now_ms: u64, patience: Duration) -> Result<i64, Error> {
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
            for event in page.events {
                sample.take(event, ledger, read)?;
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
        self.insight.catch_up(self.ledger()?, self.read, self.now_ms(), PATIENCE)
    }

    /// Measures for the metrics until the engine closes. To be called on a thread of its own, of the least priority; who unparks it
    /// wakes it.
    pub fn run_insight(&self) {
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
                self.tell_measures()
            });
            if let Err(error) = measured {
                tracing::warn!(cause = %error, "nothing could be measured");
            }
            next = Instant::now() + pause;
        }
    }
}
