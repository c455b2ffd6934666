//! What is measured of a model over a window: the sample divided into cohorts, and these given to the law; drift from the monitors. The
//! same figures go to the doors and to the metrics.

use std::collections::{BTreeMap, HashMap};
use std::sync::PoisonError;

use super::monitor::{Drift, Window};
use super::sample::{Groups, Kind, Row, Sample};
use super::{Balance, Engine, Error};
use crate::domain::bundle::bins::SCORE;
use crate::domain::decision::ModelId;
use crate::domain::insight::kpis::{self, Kpis};
use crate::domain::insight::quality::{self, Quality};
use crate::domain::insight::{ALPHA, Cohorts, Customer};
use crate::domain::money::Money;
use crate::domain::outcome::BEFORE_MS_MAX;
use crate::domain::rollout::slots::Colour;
use crate::domain::statistics::fairness::{Attribute, Census, Seen, Verdict};
use crate::ledger::Ticket;

/// Values of one dimension that are told, the most frequent ones.
const VALUES_MAX: usize = 16;

/// Dimensions of whose every part the policy holds out the same share. Whom it does is part of no experiment, and so has neither the policy
/// of an arm nor its segments.
const HELD_OUT_ALIKE: [&str; 2] = ["version", "arm"];

/// Figures with what they rest on.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured<T> {
    /// The window.
    pub window: Window,
    /// When it ends, milliseconds since 1970.
    pub now_ms: u64,
    /// Records that are not read yet.
    pub behind: i64,
    /// The share of customers that it is measured on, over 0 to 1; sums are of these alone.
    pub sampled: f64,
    /// Decisions that are not measured, since they differ in too many ways: see `sample::KINDS_MAX`.
    pub left_out: u64,
    /// After how many milliseconds no word means that a customer stayed.
    pub maturity_ms: u64,
    /// The figures of the model.
    pub overall: T,
    /// The same of its parts.
    pub parts: Vec<Part<T>>,
}

/// The figures of a part.
#[derive(Debug, Clone, PartialEq)]
pub struct Part<T> {
    /// By what it is divided: `version`, `policy`, `arm`, `segment` or `experiment`.
    pub dimension: &'static str,
    /// The value, such as `1.0.0`; of an experiment its name and the arm.
    pub value: String,
    /// The figures.
    pub figures: T,
}

/// What is measured of the groups of audits.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fairness {
    /// Who was offered what in the window, but for who was held out, by whom nothing was decided.
    pub offers: Vec<Attribute>,
    /// The same of the window that ended a maturity ago, with who left.
    pub matured: Vec<Attribute>,
}

/// The drift of one version.
#[derive(Debug, Clone, PartialEq)]
pub struct Drifted {
    /// The model.
    pub model: ModelId,
    /// What it does, such as `champion`.
    pub role: &'static str,
    /// How far what came in is from its baseline.
    pub drift: Drift,
}

/// When a customer left, and when that was recorded, in milliseconds since 1970.
type Departures = HashMap<Ticket, Vec<(i64, i64)>>;

/// The sample as one model sees it.
pub(super) struct View<'s> {
    sample: &'s Sample,
    model: &'s str,
    now_ms: i64,
    window_ms: i64,
    maturity_ms: i64,
    departures: Departures,
    /// The bits of the share that was held out last: only who was decided on by the same one is compared, or chance would not have
    /// been the same for all.
    share: Option<u64>,
}

impl<'s> View<'s> {
    pub(super) fn new(sample: &'s Sample, model: &'s str, now_ms: u64, window: Window, maturity_ms: u64) -> Self {
        let (now_ms, window_ms, maturity_ms) = (now_ms as i64, window.ms() as i64, maturity_ms as i64);
        let mut departures = Departures::new();
        for row in &sample.rows {
            if let Some(left_ms) = row.after().left_ms {
                departures.entry(row.customer).or_default().push(left_ms);
            }
        }
        let kind = |row: &Row| &sample.kinds.values[row.kind as usize];
        let of_model = |row: &&Row| kind(row).maker.model == model;
        let share = sample.rows.iter().rev().filter(of_model).find_map(|row| kind(row).share);
        Self { sample, model, now_ms, window_ms, maturity_ms, departures, share }
    }

    pub(super) fn kind(&self, row: &Row) -> &Kind {
        &self.sample.kinds.values[row.kind as usize]
    }

    /// The rows of the model that were decided on from `from_ms` until `to_ms`, both included, and of which `is_part` says that they are
    /// meant.
    pub(super) fn rows(&self, from_ms: i64, to_ms: i64, is_part: &dyn Fn(&Kind) -> bool) -> impl Iterator<Item = &Row> {
        // Kinds are few, rows are many.
        let is_meant = |kind: &Kind| kind.maker.model == self.model && is_part(kind);
        let meant: Vec<bool> = self.sample.kinds.values.iter().map(is_meant).collect();
        let within = move |row: &&Row| row.at_ms >= from_ms && row.at_ms <= to_ms && meant[row.kind as usize];
        self.sample.rows.iter().filter(within)
    }

    /// The customers of such rows that `is_part` says are meant, each with the audit groups.
    fn customers(&self, from_ms: i64, to_ms: i64, is_part: &dyn Fn(&Kind) -> bool) -> Vec<(Customer, u32)> {
        let mut places: HashMap<Ticket, usize> = HashMap::new();
        let mut customers: Vec<(Customer, u32)> = Vec::new();
        for row in self.rows(from_ms, to_ms, is_part) {
            let place = *places.entry(row.customer).or_insert_with(|| {
                customers.push((self.begin(row), row.groups));
                customers.len() - 1
            });
            let (customer, groups) = &mut customers[place];
            if *groups == 0 {
                *groups = row.groups;
            }
            customer.offered |= row.offered;
            customer.decisions += 1;
            customer.cost += row.cost.units();
            let after = row.after();
            customer.contact_cost += after.contact_cost.units();
            customer.revenue += after.revenue.units();
            customer.orders += after.orders;
            customer.value_at_stake = customer.value_at_stake.or(row.value_at_stake);
            customer.usage_before = customer.usage_before.or(row.usage_before);
            customer.converted = match (customer.converted, after.converted) {
                (Some(true), _) | (_, None) => customer.converted,
                (_, told) => told,
            };
        }
        customers
    }

    /// A customer as of the first decision, with nothing counted yet.
    pub(super) fn begin(&self, row: &Row) -> Customer {
        let horizon = row.at_ms.saturating_add(self.maturity_ms.max(BEFORE_MS_MAX));
        let left = self.departures.get(&row.customer).into_iter().flatten();
        let left = left.filter(|(at_ms, _)| (row.at_ms - BEFORE_MS_MAX..=horizon).contains(at_ms));
        let known_ms = left.map(|(_, recorded_ms)| *recorded_ms).min();
        let kind = self.kind(row);
        Customer {
            score: row.score,
            age_ms: (self.now_ms - row.at_ms).max(0) as u64,
            holdout: kind.holdout().filter(|_| kind.share == self.share),
            offered: false,
            decisions: 0,
            cost: 0.0,
            contact_cost: 0.0,
            revenue: 0.0,
            orders: 0,
            value_at_stake: None,
            usage_before: None,
            left_after_ms: known_ms.map(|known_ms| (known_ms - row.at_ms).max(0) as u64),
            converted: None,
        }
    }

    fn recent(&self, is_part: &dyn Fn(&Kind) -> bool) -> Vec<(Customer, u32)> {
        self.customers(self.now_ms - self.window_ms, i64::MAX, is_part)
    }

    fn matured(&self, is_part: &dyn Fn(&Kind) -> bool) -> Vec<(Customer, u32)> {
        let to_ms = self.now_ms - self.maturity_ms;
        self.customers(to_ms - self.window_ms, to_ms, is_part)
    }

    fn cohorts(&self, is_part: &dyn Fn(&Kind) -> bool) -> Cohorts {
        let only = |customers: Vec<(Customer, u32)>| customers.into_iter().map(|(customer, _)| customer).collect();
        Cohorts {
            matured: only(self.matured(is_part)),
            recent: only(self.recent(is_part)),
            maturity_ms: self.maturity_ms as u64,
        }
    }

    /// The parts that the model divides into: dimension and value.
    fn parts(&self) -> Vec<(&'static str, String)> {
        let mut counts: BTreeMap<(&'static str, String), u64> = BTreeMap::new();
        let mut by_kind = vec![0_u64; self.sample.kinds.values.len()];
        let from_ms = self.now_ms - self.window_ms - self.maturity_ms;
        self.rows(from_ms, i64::MAX, &|_| true).for_each(|row| by_kind[row.kind as usize] += 1);
        for (kind, count) in self.sample.kinds.values.iter().zip(by_kind).filter(|(_, count)| *count > 0) {
            for (dimension, value) in values(kind) {
                *counts.entry((dimension, value.to_owned())).or_default() += count;
            }
        }
        let mut parts: Vec<((&'static str, String), u64)> = counts.into_iter().collect();
        parts.sort_by(|(a, first), (b, second)| (a.0, second, &a.1).cmp(&(b.0, first, &b.1)));
        let by_dimension = parts.chunk_by(|(a, _), (b, _)| a.0 == b.0);
        by_dimension.flat_map(|parts| parts.iter().take(VALUES_MAX)).map(|(part, _)| part.clone()).collect()
    }

    fn census(&self, customers: &[(Customer, u32)]) -> Vec<Attribute> {
        let mut census = Census::default();
        for (customer, groups) in customers {
            let groups: &Groups = &self.sample.groups.values[*groups as usize];
            // Who is known only for having left would make all of the young leave.
            let churned = (customer.age_ms as i64 >= self.maturity_ms)
                .then(|| customer.churned(self.maturity_ms as u64))
                .flatten();
            let cost = Money::from_micros((customer.cost * 1e6).round() as i64);
            let seen = Seen { offered: customer.offered, cost, churned };
            census.add(groups.iter().map(|(attribute, group)| (attribute.as_str(), group.as_str())), &seen);
        }
        census.compare(ALPHA)
    }
}

/// What a kind is, by dimension.
fn values(kind: &Kind) -> impl Iterator<Item = (&'static str, &str)> {
    let fixed = [
        ("version", Some(kind.maker.model_version.as_str())),
        ("policy", Some(kind.maker.policy_version.as_str())),
        ("arm", Some(kind.arm.as_str())),
        ("segment", kind.segment.as_deref()),
    ];
    let fixed = fixed.into_iter().filter_map(|(dimension, value)| Some((dimension, value?)));
    fixed.chain(kind.experiments.iter().map(|experiment| ("experiment", experiment.as_str())))
}

impl Engine {
    /// Measures the model called `name`, as a whole and in parts.
    fn measured<T>(
        &self,
        name: &str,
        window: Window,
        in_parts: bool,
        figures: impl Fn(&View, &dyn Fn(&Kind) -> bool) -> T,
    ) -> Result<Measured<T>, Error> {
        self.deck(name)?;
        self.insight.is_on()?;
        let behind = self.catch_up()?;
        let (now_ms, maturity_ms) = (self.now_ms(), self.insight.options.maturity_ms());
        let sample = self.insight.sample.lock().unwrap_or_else(PoisonError::into_inner);
        let view = View::new(&sample, name, now_ms, window, maturity_ms);
        let parts = if in_parts { view.parts() } else { Vec::new() };
        Ok(Measured {
            window,
            now_ms,
            behind,
            sampled: sample.share(),
            left_out: sample.left_out,
            maturity_ms,
            overall: figures(&view, &|_| true),
            parts: parts
                .into_iter()
                .map(|(dimension, value)| {
                    let is_part = |kind: &Kind| values(kind).any(|found| found == (dimension, value.as_str()));
                    let figures = figures(&view, &is_part);
                    Part { dimension, value, figures }
                })
                .collect(),
        })
    }

    fn kpis_of(&self, model: &str, window: Window, in_parts: bool) -> Result<Measured<Kpis>, Error> {
        let targets = self.insight.options.targets();
        let mut found = self.measured(model, window, in_parts, |view, is_part| {
            kpis::kpis(&view.cohorts(is_part), &targets, view.share.map(f64::from_bits))
        })?;
        for part in found.parts.iter_mut().filter(|part| !HELD_OUT_ALIKE.contains(&part.dimension)) {
            part.figures.ratio = None;
        }
        Ok(found)
    }

    /// The key figures of a model over `window`, as a whole and in parts, and how its budget stands.
    ///
    /// Errors: [`Error::UnknownModel`], [`Error::LedgerOff`], or a ledger that cannot be read.
    pub fn kpis(&self, model: &str, window: Window) -> Result<(Measured<Kpis>, Option<Balance>), Error> {
        let found = self.kpis_of(model, window, true)?;
        let account = self.deck(model)?.held().account.clone();
        Ok((found, account.map(|account| account.balance(self.now_ms()))))
    }

    /// The key figures of what one version of a model decided.
    pub(super) fn kpis_of_version(&self, model: &str, version: &str, window: Window) -> Result<Kpis, Error> {
        let (targets, is_own) = (self.insight.options.targets(), |kind: &Kind| kind.maker.model_version == version);
        let found = self.measured(model, window, false, |view, _| {
            kpis::kpis(&view.cohorts(&is_own), &targets, view.share.map(f64::from_bits))
        })?;
        Ok(found.overall)
    }

    /// How good the scores of a model were. Errors: as those of [`kpis`](Self::kpis).
    pub fn quality(&self, model: &str, window: Window) -> Result<Measured<Quality>, Error> {
        self.measured(model, window, true, |view, is_part| quality::quality(&view.cohorts(is_part)))
    }

    /// How the groups of audits fare. Errors: as those of [`kpis`](Self::kpis).
    pub fn fairness(&self, model: &str, window: Window) -> Result<Measured<Fairness>, Error> {
        self.fairness_of(model, window, true)
    }

    fn fairness_of(&self, model: &str, window: Window, in_parts: bool) -> Result<Measured<Fairness>, Error> {
        self.measured(model, window, in_parts, |view, is_part| {
            let is_decided = |kind: &Kind| !kind.is_kept && is_part(kind);
            Fairness {
                offers: view.census(&view.recent(&is_decided)),
                matured: view.census(&view.matured(&is_decided)),
            }
        })
    }

    /// How far what came in is from the baselines of the versions that are loaded. What came in before they were is taken from the ledger,
    /// where there is one that keeps inputs.
    ///
    /// Errors: [`Error::UnknownModel`], or a ledger that cannot be read.
    pub fn drift(&self, model: &str, window: Window) -> Result<Vec<Drifted>, Error> {
        self.insight.is_on()?;
        if self.ledger.is_some() {
            self.catch_up()?;
        }
        let now_ms = self.now_ms();
        let held = self.deck(model)?.held();
        let slots = Colour::ALL.into_iter().zip(&held.loaded);
        let drifted = slots.filter_map(|(colour, loaded)| {
            let (loaded, placed) = loaded.as_ref().zip(held.slots.placed(colour))?;
            let model = ModelId::clone(loaded.model.id());
            Some(Drifted { model, role: placed.role.name(), drift: loaded.monitor.drift(window, now_ms) })
        });
        Ok(drifted.collect())
    }

    /// Puts what is measured by the ledger into the metrics.
    pub(super) fn tell_measures(&self) -> Result<(), Error> {
        let options = &self.insight.options;
        let window = Window::named(&options.window).unwrap_or(Window::Month);
        // A stop does not wait for the rest.
        for deck in self.decks.iter().take_while(|_| !self.is_closing()) {
            let name = &deck.name;
            let found = self.kpis_of(name, window, false)?;
            for kpi in &found.overall.tree {
                self.metrics.kpi(name, kpi.name, kpi.estimate.as_ref(), kpi.standing);
            }
            let quality = self.quality(name, window)?;
            let mut versions = Vec::new();
            for part in quality.parts.iter().filter(|part| part.dimension == "version") {
                let Quality { auc, precision, brier, calibration, .. } = &part.figures;
                versions.push(part.value.as_str());
                let slope = calibration.map(|found| found.slope);
                for (metric, estimate) in
                    [("auc", auc), ("precision_at_20", precision), ("brier", brier), ("calibration_slope", &slope)]
                {
                    self.metrics.quality(name, &part.value, metric, estimate.as_ref());
                }
            }
            self.metrics.only_quality(name, &versions);
            self.look_for_causes(deck, &quality.parts)?;
            let fairness = self.fairness_of(name, window, false)?.overall.offers;
            let parities = || fairness.iter().flat_map(|found| &found.groups).filter_map(|group| group.parity);
            let failed = parities().filter(|parity| parity.verdict() == Verdict::Fail).count();
            self.metrics.fairness(name, parities().map(|parity| parity.value).reduce(f64::min), failed);
        }
        Ok(())
    }

    /// Puts drift into the metrics.
    pub(super) fn tell_drift(&self) {
        let window = Window::named(&self.insight.options.drift_window).unwrap_or(Window::Day);
        // Every deck has a name that is known.
        for deck in &self.decks {
            let Ok(drifted) = self.drift(&deck.name, window) else { continue };
            for Drifted { model, drift, .. } in &drifted {
                for (feature, distance) in &drift.features {
                    self.metrics.drift(&model.name, &model.version, feature, distance);
                }
                self.metrics.drift(&model.name, &model.version, SCORE, &drift.score);
                self.metrics.stale(&model.name, &model.version, drift.stale as f64 / drift.aged as f64);
            }
            let versions: Vec<&str> = drifted.iter().map(|found| &*found.model.version).collect();
            self.metrics.only_drift(&deck.name, &versions);
        }
    }
}
