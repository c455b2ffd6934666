//! What is seen of a champion that may call for a new model: the causes in it, and the message with the figures that they rest on.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Options;
use crate::domain::bundle::bins::SCORE;
use crate::domain::insight::kpis::{Kpi, Kpis, Standing};
use crate::domain::insight::quality::Quality;
use crate::domain::retraining::{Cause, Kind, due};
use crate::domain::statistics::Estimate;
use crate::domain::statistics::drift::{ALARM, Distance, Verdict};
use crate::engine::Window;
use crate::engine::monitor::Drift;

/// Features that a message tells of, the worst ones.
const FEATURES_MAX: usize = 10;
/// The one metric that quality is judged by.
const AUC: &str = "auc";
/// With fewer customers than this a key figure tells nothing of a version: it is looked at every minute from the first one on.
const CUSTOMERS_MIN: u64 = 100;

/// A champion, and what is known of it at one look.
pub(super) struct Seen<'s> {
    pub(super) model: &'s str,
    pub(super) version: &'s str,
    /// Of its bundle.
    pub(super) digest: &'s str,
    /// Since when it is the champion, milliseconds since 1970.
    pub(super) since_ms: u64,
    /// The AUC of its card, on rows that it was not trained on.
    pub(super) card_auc: f64,
    /// Of what this version decided: by those of all versions a new champion would be asked for the day it came.
    pub(super) kpis: &'s Kpis,
    /// `None` where nobody was decided on by it.
    pub(super) quality: Option<&'s Quality>,
    pub(super) drift: &'s Drift,
    /// That of key figures and quality.
    pub(super) window: Window,
    pub(super) now_ms: u64,
}

impl Seen<'_> {
    /// What of it calls for a new model, told before or not.
    pub(super) fn causes(&self, options: &Options) -> Vec<Cause> {
        let cause = |kind, of| Cause { model: self.model.to_owned(), version: self.version.to_owned(), kind, of };
        let period = options.period().and_then(|period| due(period, self.since_ms, self.now_ms));
        let mut drifting: Vec<String> = self.drifting().map(|(name, _)| name.to_owned()).collect();
        drifting.sort();
        let has_drifted = !drifting.is_empty() && self.drift.n >= options.drift_requests_min;
        let is_worse = self.judged_auc().zip(self.auc_limit(options)).is_some_and(|(auc, limit)| auc.high < limit);
        let missed = self.kpis.tree.iter().filter(|kpi| kpi.standing == Some(Standing::Missed));
        let missed = missed.filter(|kpi| kpi.estimate.is_some_and(|found| found.n >= CUSTOMERS_MIN));
        let missed = missed.filter(|kpi| options.kpis.iter().any(|name| name == kpi.name));

        let mut causes: Vec<Cause> =
            period.map(|first_day| cause(Kind::Schedule, vec![first_day])).into_iter().collect();
        causes.extend(has_drifted.then(|| cause(Kind::Drift, drifting)));
        causes.extend(is_worse.then(|| cause(Kind::Quality, vec![AUC.to_owned()])));
        causes.extend(missed.map(|kpi| cause(Kind::Kpi, vec![kpi.name.to_owned()])));
        causes.retain(|cause| options.causes.contains(&cause.kind));
        causes
    }

    /// The features, and the score, that alarm.
    fn drifting(&self) -> impl Iterator<Item = (&str, &Distance)> {
        self.distances().filter(|(_, distance)| distance.verdict == Verdict::Alarm)
    }

    fn distances(&self) -> impl Iterator<Item = (&str, &Distance)> {
        let features = self.drift.features.iter().map(|(name, distance)| (name.as_str(), distance));
        std::iter::once((SCORE, &self.drift.score)).chain(features)
    }

    /// The AUC where it can be held against that of the card: an intervention changes what a score foretold, so that of the treated is
    /// lower where interventions work.
    fn judged_auc(&self) -> Option<&Estimate> {
        self.quality.filter(|quality| quality.on_holdout)?.auc.as_ref()
    }

    /// What the AUC must not be surely under.
    fn auc_limit(&self, options: &Options) -> Option<f64> {
        let fallen = if options.auc_fall > 0.0 { self.card_auc - options.auc_fall } else { 0.0 };
        Some(fallen.max(options.auc_floor)).filter(|limit| *limit > 0.0)
    }

    /// The message about one cause: always the whole picture, since who trains wants it all.
    pub(super) fn message(&self, cause: &Cause, options: &Options) -> Arc<str> {
        let window = self.window.name();
        let links = |route: &str, window: &str| {
            format!("{}/v1/insight/{route}?model={}&window={window}", options.links.trim_end_matches('/'), self.model)
        };
        let message = json!({
            "type": "model.retraining_due",
            "timestamp": time(self.now_ms),
            "data": {
                "id": cause.id(),
                "text": cause.to_string(),
                "cause": {"kind": cause.kind, "of": cause.of},
                "model": {
                    "name": self.model, "version": self.version, "bundle_digest": self.digest,
                    "champion_since": time(self.since_ms),
                },
                "evidence": {"drift": self.drift_evidence(options), "quality": self.quality_evidence(options), "kpis": self.kpis_evidence()},
                "links": {
                    "drift": links("drift", &options.drift_window), "quality": links("quality", window),
                    "kpis": links("kpis", window), "retraining": format!("{}/v1/insight/retraining", options.links.trim_end_matches('/')),
                },
            },
        });
        message.to_string().into()
    }

    fn drift_evidence(&self, options: &Options) -> Value {
        let mut distances: Vec<(&str, &Distance)> = self.distances().collect();
        distances.sort_by(|(_, a), (_, b)| b.verdict.cmp(&a.verdict).then(b.psi.total_cmp(&a.psi)));
        let features = distances.into_iter().take(FEATURES_MAX).map(|(feature, distance)| {
            let Distance { psi, critical, n, verdict } = distance;
            json!({"feature": feature, "psi": psi, "critical": critical, "n": n, "verdict": verdict.name()})
        });
        json!({
            "window": options.drift_window, "since": time(self.drift.since_ms), "n": self.drift.n, "alarm_over": ALARM,
            "features": features.collect::<Value>(),
        })
    }

    fn quality_evidence(&self, options: &Options) -> Value {
        let Some(quality) = self.quality else { return Value::Null };
        json!({
            "window": self.window.name(), "to": time(self.now_ms), "on_holdout": quality.on_holdout, "labelled": quality.labelled,
            "churned": quality.churned, "auc": figure(quality.auc.as_ref()), "auc_of_card": self.card_auc,
            "auc_limit": self.auc_limit(options), "precision_at_20": figure(quality.precision.as_ref()),
        })
    }

    /// Those that have a target.
    fn kpis_evidence(&self) -> Value {
        let with_target = self.kpis.tree.iter().filter(|kpi| kpi.target.is_some());
        let told = with_target.map(|Kpi { name, estimate, target, standing, .. }| {
            json!({
                "name": name, "window": self.window.name(), "estimate": figure(estimate.as_ref()), "target": target,
                "standing": standing.map(Standing::name),
            })
        });
        told.collect()
    }
}

fn figure(estimate: Option<&Estimate>) -> Value {
    estimate
        .map_or(Value::Null, |found| json!({"value": found.value, "low": found.low, "high": found.high, "n": found.n}))
}

fn time(ms: u64) -> String {
    format!("{:.3}", Timestamp::from_millisecond(ms as i64).unwrap_or_default())
}
