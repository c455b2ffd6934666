//! The watch on one arm of a rollout: counters that the hot path only adds to, and a snapshot of them for the guardrails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::rollout::guardrail::{LATENCY_BINS, Observed, latency_bin};
use crate::domain::score::Score;
use crate::model;

/// Bits of the set of customers that were counted.
const CUSTOMERS: u64 = 1 << 20;

/// What one arm did since its step began. Every field is a sum of its own: a snapshot in the middle of a request is off by one.
#[derive(Debug)]
pub(super) struct Watch {
    /// Scores that were asked for, whether they came or not.
    started: AtomicU64,
    requests: AtomicU64,
    customers: AtomicU64,
    failed: AtomicU64,
    given_up: AtomicU64,
    non_finite: AtomicU64,
    latency: [AtomicU64; LATENCY_BINS],
    scores: Box<[AtomicU64]>,
    tiers: Box<[AtomicU64]>,
    /// Customers who came, and those who failed, a bit each by their ticket. Two that share a bit count as one, in both arms alike.
    came: Box<[AtomicU64]>,
    fell: Box<[AtomicU64]>,
}

fn zeros(count: usize) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

impl Watch {
    /// A watch with `scores` bins and `tiers`.
    pub(super) fn new(scores: usize, tiers: usize) -> Self {
        Self {
            started: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            customers: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            non_finite: AtomicU64::new(0),
            latency: std::array::from_fn(|_| AtomicU64::new(0)),
            scores: zeros(scores),
            tiers: zeros(tiers),
            came: zeros(CUSTOMERS as usize / 64),
            fell: zeros(CUSTOMERS as usize / 64),
        }
    }

    /// A score is asked for.
    pub(super) fn started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// A score that was asked for is wanted no more.
    pub(super) fn withdrawn(&self) {
        self.started.fetch_sub(1, Ordering::Relaxed);
    }

    /// The caller of the customer of `ticket` gave up waiting for a score. It is no request of which there is a result: a model that gives
    /// none at all is silent, however many give up.
    pub(super) fn given_up(&self, ticket: u64) {
        if is_first(&self.came, ticket) {
            self.customers.fetch_add(1, Ordering::Relaxed);
        }
        if is_first(&self.fell, ticket) {
            self.failed.fetch_add(1, Ordering::Relaxed);
            self.given_up.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Scores that were given, or failed.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Scores that were asked for and have neither come nor failed.
    pub(super) fn unanswered(&self) -> u64 {
        let requests = self.requests();
        self.started.load(Ordering::Relaxed).saturating_sub(requests)
    }

    /// A score took so long.
    pub(super) fn timed(&self, took: Duration) {
        self.latency[latency_bin(took.as_nanos() as u64)].fetch_add(1, Ordering::Relaxed);
    }

    /// A score was given to the customer of `ticket`; `edges` are those of the bins of scores.
    pub(super) fn scored(&self, score: Score, edges: &[f64], tier: usize, ticket: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if !is_first(&self.came, ticket) {
            return;
        }
        self.customers.fetch_add(1, Ordering::Relaxed);
        let bin = edges.partition_point(|edge| *edge <= score.value());
        for counter in [self.scores.get(bin), self.tiers.get(tier)].into_iter().flatten() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A score was not given to the customer of `ticket`, because of `error`; `None` is a record that the model's dictionary refuses.
    pub(super) fn failed(&self, error: Option<&model::Error>, ticket: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if is_first(&self.came, ticket) {
            self.customers.fetch_add(1, Ordering::Relaxed);
        }
        if is_first(&self.fell, ticket) {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        if matches!(error, Some(model::Error::NotAProbability)) {
            self.non_finite.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Everything so far.
    pub(super) fn observed(&self) -> Observed {
        let all = |counters: &[AtomicU64]| counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect();
        Observed {
            requests: self.requests(),
            customers: self.customers.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            given_up: self.given_up.load(Ordering::Relaxed),
            non_finite: self.non_finite.load(Ordering::Relaxed),
            latency: all(&self.latency),
            scores: all(&self.scores),
            tiers: all(&self.tiers),
        }
    }
}

/// Whether the customer of `ticket` is not in `set` yet; now it is. By the low bits: an arm's share of the customers is a range of
/// the high ones.
fn is_first(set: &[AtomicU64], ticket: u64) -> bool {
    let bit = ticket % CUSTOMERS;
    let (word, mask) = (&set[bit as usize / 64], 1 << (bit % 64));
    // Mostly it is there already, and looking is cheaper than writing.
    word.load(Ordering::Relaxed) & mask == 0 && word.fetch_or(mask, Ordering::Relaxed) & mask == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_up_is_a_customer_that_failed_once_and_no_answer() {
        let watch = Watch::new(10, 3);
        watch.scored(Score::new(0.5).expect("a score"), &[], 0, 1);
        // The first has had its score before, the second tries again and again.
        for ticket in [1, 2, 2, 2] {
            watch.started();
            watch.withdrawn();
            watch.given_up(ticket);
        }
        let observed = watch.observed();
        assert_eq!((observed.customers, observed.failed, observed.given_up), (2, 2, 2));
        assert_eq!((watch.requests(), watch.unanswered()), (1, 0));
    }
}
