//! The watch on one arm of a rollout: counters that the hot path only adds to, and a snapshot of them for the guardrails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::guardrail::{LATENCY_BINS, Observed, latency_bin};
use crate::domain::score::Score;
use crate::model;

/// What one arm did since its rollout began. Every field is a sum of its own: a snapshot in the middle of a request is off by one.
#[derive(Debug)]
pub(super) struct Watch {
    requests: AtomicU64,
    errors: AtomicU64,
    non_finite: AtomicU64,
    latency: [AtomicU64; LATENCY_BINS],
    scores: Box<[AtomicU64]>,
    tiers: Box<[AtomicU64]>,
}

fn zeros(count: usize) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

impl Watch {
    /// A watch with `scores` bins and `tiers`.
    pub(super) fn new(scores: usize, tiers: usize) -> Self {
        Self {
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            non_finite: AtomicU64::new(0),
            latency: std::array::from_fn(|_| AtomicU64::new(0)),
            scores: zeros(scores),
            tiers: zeros(tiers),
        }
    }

    /// A score was asked for and given, after `took` where that was measured; `edges` are those of the bins of scores.
    pub(super) fn scored(&self, took: Option<Duration>, score: Score, edges: &[f64], tier: usize) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(took) = took {
            self.latency[latency_bin(took.as_nanos() as u64)].fetch_add(1, Ordering::Relaxed);
        }
        let bin = edges.partition_point(|edge| *edge <= score.value());
        if let Some(bin) = self.scores.get(bin) {
            bin.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(tier) = self.tiers.get(tier) {
            tier.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A score was asked for and not given, because of `error`; `None` is a record that the model's dictionary refuses.
    pub(super) fn failed(&self, error: Option<&model::Error>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.errors.fetch_add(1, Ordering::Relaxed);
        if matches!(error, Some(model::Error::NotAProbability)) {
            self.non_finite.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Everything so far.
    pub(super) fn observed(&self) -> Observed {
        let all = |counters: &[AtomicU64]| counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect();
        Observed {
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            non_finite: self.non_finite.load(Ordering::Relaxed),
            latency: all(&self.latency),
            scores: all(&self.scores),
            tiers: all(&self.tiers),
        }
    }
}
