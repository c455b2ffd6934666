//! The metrics of what came of decisions: key figures, quality, drift and fairness as gauges, made every minute or so. Their labels are
//! names of models, versions and features, never what a caller names.

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

pub(super) fn describe() {
    describe_gauge!(KPI, "Key figure of a model, by name, with the ends of its interval; NaN where nothing is known");
    describe_gauge!(KPI_STANDING, "How a key figure stands to its target: 1 met, 0 unresolved, -1 surely missed");
    describe_gauge!(QUALITY, "Quality of the scores of a version, by metric, with the ends of its interval");
    describe_gauge!(DRIFT_PSI, "Distance of a feature, or the score, from its baseline");
    describe_gauge!(DRIFT_LEVEL, "What is to be made of it: 0 ok, 1 too few to tell, 2 warn, 3 alarm");
    describe_gauge!(STALE, "Share of requests with features over a day old, of those that say how old they are");
    describe_gauge!(PARITY, "Least parity ratio of the groups of audits, by model");
    describe_gauge!(UNFAIR, "Groups of audits whose parity ratio is surely under 0.8, by model");
}

impl Metrics {
    /// A key figure of `model`, and how it stands to its target, where it has one.
    pub fn kpi(&self, model: &str, kpi: &'static str, estimate: Option<&Estimate>, standing: Option<Standing>) {
        let labels = [("model", model.to_owned()), ("kpi", kpi.to_owned())];
        self.estimate(KPI, &labels, estimate);
        if let Some(standing) = standing {
            let level = match standing {
                Standing::Met => 1.0,
                Standing::Unresolved => 0.0,
                Standing::Missed => -1.0,
            };
            self.register(|| gauge!(KPI_STANDING, labels.as_slice()).set(level));
        }
    }

    /// The quality of the scores of a version, by one metric.
    pub fn quality(&self, model: &str, version: &str, metric: &'static str, estimate: Option<&Estimate>) {
        let labels = [("model", model.to_owned()), ("version", version.to_owned()), ("metric", metric.to_owned())];
        self.estimate(QUALITY, &labels, estimate);
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
}
