//! The metrics of what came of decisions: key figures, quality, drift, fairness and experiments as gauges, made every minute or so. Their labels are
//! names of models, versions and features, never what a caller names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use metrics::{describe_gauge, gauge};

use super::Metrics;
use crate::domain::insight::kpis::Standing;
use crate::domain::statistics::Estimate;
use crate::domain::statistics::drift::Distance;

const KPI: &str = "mainstay_kpi";
const KPI_STANDING: &str = "mainstay_kpi_standing";
const QUALITY: &str = "mainstay_quality";
const DRIFT_PSI: &str = "mainstay_drift_psi";
const DRIFT_LEVEL: &str = "mainstay_drift_level";
const STALE: &str = "mainstay_features_stale_share";
const PARITY: &str = "mainstay_fairness_parity_min";
const UNFAIR: &str = "mainstay_fairness_groups_failed";
const MISMATCHED: &str = "mainstay_experiments_mismatched";

pub(super) fn describe() {
    describe_gauge!(KPI, "Key figure of a model, by name, with the ends of its interval; NaN where nothing is known");
    describe_gauge!(
        KPI_STANDING,
        "How a key figure stands to its target: 1 met, 0 unresolved, -1 surely missed; NaN where nothing is known"
    );
    describe_gauge!(QUALITY, "Quality of the scores of a version, by metric, with the ends of its interval");
    describe_gauge!(DRIFT_PSI, "Distance of a feature, or the score, from its baseline");
    describe_gauge!(DRIFT_LEVEL, "What is to be made of it: 0 ok, 1 too few to tell, 2 warn, 3 alarm");
    describe_gauge!(STALE, "Share of requests with features over a day old, of those that say how old they are");
    describe_gauge!(PARITY, "Least parity ratio of the groups of audits, by model");
    describe_gauge!(UNFAIR, "Groups of audits whose parity ratio is surely under 0.8, by model");
    describe_gauge!(MISMATCHED, "Running experiments whose customers surely do not come in the shares of their groups");
}

/// What was told of each version: a series cannot be taken back, only set to what no alert goes by.
#[derive(Default)]
pub(super) struct Told {
    /// Models with the versions and features whose drift was told.
    drift: BTreeMap<String, BTreeSet<(String, String)>>,
    /// Models with the versions and metrics whose quality was told.
    quality: BTreeMap<String, BTreeSet<(String, &'static str)>>,
    /// The key figures with a target, by model.
    standings: BTreeSet<(String, &'static str)>,
}

impl Metrics {
    /// A key figure of `model`, and how it stands to its target, where it has one.
    pub fn kpi(&self, model: &str, kpi: &'static str, estimate: Option<&Estimate>, standing: Option<Standing>) {
        let labels = [("model", model.to_owned()), ("kpi", kpi.to_owned())];
        self.estimate(KPI, &labels, estimate);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (model.to_owned(), kpi);
        if standing.is_some() || told.standings.contains(&place) {
            let level = match standing {
                Some(Standing::Met) => 1.0,
                Some(Standing::Unresolved) => 0.0,
                Some(Standing::Missed) => -1.0,
                None => f64::NAN,
            };
            told.standings.insert(place);
            self.register(|| gauge!(KPI_STANDING, labels.as_slice()).set(level));
        }
    }

    /// The quality of the scores of a version, by one metric.
    pub fn quality(&self, model: &str, version: &str, metric: &'static str, estimate: Option<&Estimate>) {
        let labels = [("model", model.to_owned()), ("version", version.to_owned()), ("metric", metric.to_owned())];
        self.estimate(QUALITY, &labels, estimate);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.quality.entry(model.to_owned()).or_default().insert((version.to_owned(), metric));
    }

    /// Only `versions` of `model` have a quality still: nothing is known of the others any more.
    pub fn only_quality(&self, model: &str, versions: &[&str]) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = told.quality.get_mut(model) else { return };
        known.retain(|(version, metric)| {
            let stays = versions.contains(&version.as_str());
            if !stays {
                let labels =
                    [("model", model.to_owned()), ("version", version.clone()), ("metric", (*metric).to_owned())];
                self.estimate(QUALITY, &labels, None);
            }
            stays
        });
    }

    fn estimate(&self, name: &'static str, labels: &[(&'static str, String)], estimate: Option<&Estimate>) {
        let ends = estimate.map_or([f64::NAN; 3], |found| [found.value, found.low, found.high]);
        self.register(|| {
            for (bound, end) in ["value", "low", "high"].into_iter().zip(ends) {
                let labels = [labels, &[("bound", bound.to_owned())]].concat();
                gauge!(name, labels.as_slice()).set(end);
            }
        });
    }

    /// How far a feature of a version has drifted. The names are those of the dictionary.
    pub fn drift(&self, model: &str, version: &str, feature: &str, distance: &Distance) {
        let labels = [("model", model.to_owned()), ("version", version.to_owned()), ("feature", feature.to_owned())];
        self.register(|| {
            gauge!(DRIFT_PSI, labels.as_slice()).set(distance.psi);
            gauge!(DRIFT_LEVEL, labels.as_slice()).set(f64::from(distance.verdict as u8));
        });
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.drift.entry(model.to_owned()).or_default().insert((version.to_owned(), feature.to_owned()));
    }

    /// Only `versions` of `model` are loaded still: the others neither drift nor have stale features, and what watches them is to calm down.
    pub fn only_drift(&self, model: &str, versions: &[&str]) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = told.drift.get_mut(model) else { return };
        known.retain(|(version, feature)| {
            let stays = versions.contains(&version.as_str());
            if !stays {
                let labels = [("model", model.to_owned()), ("version", version.clone()), ("feature", feature.clone())];
                self.register(|| {
                    gauge!(DRIFT_PSI, labels.as_slice()).set(f64::NAN);
                    gauge!(DRIFT_LEVEL, labels.as_slice()).set(0.0);
                });
                self.stale(model, version, f64::NAN);
            }
            stays
        });
    }

    /// The share of requests with stale features, NaN where none says how old they are.
    pub fn stale(&self, model: &str, version: &str, share: f64) {
        self.register(|| gauge!(STALE, "model" => model.to_owned(), "version" => version.to_owned()).set(share));
    }

    /// The least parity ratio of the groups of `model`, and how many of them fail. Groups are no labels: callers name them.
    pub fn fairness(&self, model: &str, parity_min: Option<f64>, failed: usize) {
        self.register(|| {
            gauge!(PARITY, "model" => model.to_owned()).set(parity_min.unwrap_or(f64::NAN));
            gauge!(UNFAIR, "model" => model.to_owned()).set(failed as f64);
        });
    }

    /// How many of the experiments that run on `model` must not be trusted. Their names are no labels: there will be ever more of them.
    pub fn experiments_mismatched(&self, model: &str, count: usize) {
        self.register(|| gauge!(MISMATCHED, "model" => model.to_owned()).set(count as f64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::statistics::drift::Verdict;

    #[test]
    fn what_is_gone_alarms_nobody() {
        let metrics = Metrics::new();
        let estimate = Estimate { value: 0.5, low: 0.4, high: 0.6, n: 100 };
        let distance = Distance { psi: 1.0, critical: 0.1, n: 500, verdict: Verdict::Alarm };
        for version in ["1.0.0", "2.0.0"] {
            metrics.drift("m", version, "tenure", &distance);
            metrics.stale("m", version, 0.5);
            metrics.quality("m", version, "auc", Some(&estimate));
        }
        metrics.kpi("m", "churn_reduction", Some(&estimate), Some(Standing::Missed));
        metrics.kpi("m", "spend", Some(&estimate), None);
        metrics.only_drift("m", &["2.0.0"]);
        metrics.only_quality("m", &["2.0.0"]);
        metrics.kpi("m", "churn_reduction", None, None);
        let text = metrics.render();
        for line in [
            "mainstay_drift_level{model=\"m\",version=\"1.0.0\",feature=\"tenure\"} 0",
            "mainstay_drift_level{model=\"m\",version=\"2.0.0\",feature=\"tenure\"} 3",
            "mainstay_features_stale_share{model=\"m\",version=\"1.0.0\"} NaN",
            "mainstay_features_stale_share{model=\"m\",version=\"2.0.0\"} 0.5",
            "mainstay_quality{model=\"m\",version=\"1.0.0\",metric=\"auc\",bound=\"low\"} NaN",
            "mainstay_quality{model=\"m\",version=\"2.0.0\",metric=\"auc\",bound=\"low\"} 0.4",
            "mainstay_kpi_standing{model=\"m\",kpi=\"churn_reduction\"} NaN",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
        }
        assert!(
            !text.contains("mainstay_kpi_standing{model=\"m\",kpi=\"spend\"}"),
            "what has no target stands nowhere"
        );
    }
}
