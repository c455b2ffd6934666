//! The watch on one arm of a rollout: counters that the hot path only adds to, and a snapshot of them for the guardrails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::guardrail::{LATENCY_BINS, Observed, latency_bin};
use crate::domain::score::Score;
use crate::model;

/// Bits of the set of customers that were counted.
const CUSTOMERS: u64 = 1 << 20;

/// What one arm did since its rollout began. Every field is a sum of its own: a snapshot in the middle of a request is off by one.
#[derive(Debug)]
pub(super) struct Watch {
    requests: AtomicU64,
    errors: AtomicU64,
    non_finite: AtomicU64,
    latency: [AtomicU64; LATENCY_BINS],
    scores: Box<[AtomicU64]>,
    tiers: Box<[AtomicU64]>,
    /// Customers whose score was counted, a bit each by their ticket. Two that share a bit count as one, which is fair to both arms.
    counted: Box<[AtomicU64]>,
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
            counted: zeros(CUSTOMERS as usize / 64),
        }
    }

    /// A score was asked for and given, after `took` where that was measured; `edges` are those of the bins of scores. The score and
    /// the tier count once for each customer: the arms have other customers, and the same few asked for again and again would
    /// look like a difference of the models.
    pub(super) fn scored(&self, took: Option<Duration>, score: Score, edges: &[f64], tier: usize, ticket: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(took) = took {
            self.latency[latency_bin(took.as_nanos() as u64)].fetch_add(1, Ordering::Relaxed);
        }
        // The low bits: an arm's share of the customers is a range of the high ones.
        let bit = ticket % CUSTOMERS;
        let (word, mask) = (&self.counted[bit as usize / 64], 1 << (bit % 64));
        if word.load(Ordering::Relaxed) & mask != 0 || word.fetch_or(mask, Ordering::Relaxed) & mask != 0 {
            return;
        }
        let bin = edges.partition_point(|edge| *edge <= score.value());
        for counter in [self.scores.get(bin), self.tiers.get(tier)].into_iter().flatten() {
            counter.fetch_add(1, Ordering::Relaxed);
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
