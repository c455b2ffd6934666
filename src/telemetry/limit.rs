//! What is counted at the limit: how long requests wait before they are looked at, how many are admitted, callers that went away, and
//! connections that could not be taken.

use metrics::{Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

use super::metrics::Metrics;

const ADMITTED: &str = "mainstay_http_admitted_ratio";
const DELAY: &str = "mainstay_http_queue_delay_seconds";
const ABANDONED: &str = "mainstay_http_requests_abandoned_total";
const ACCEPT_FAILED: &str = "mainstay_http_accepts_failed_total";

/// Puts these metrics into the catalogue.
pub(super) fn describe() {
    describe_gauge!(ADMITTED, "Share of scoring requests that a worker admits, 0 to 1; less than 1 is overload");
    describe_gauge!(DELAY, Unit::Seconds, "How long requests wait in a worker, and for their record");
    describe_counter!(ABANDONED, "Requests whose caller went away before the answer");
    describe_counter!(ACCEPT_FAILED, "Connections that could not be taken, since no descriptor or memory was left");
}

impl Metrics {
    /// For the worker of this `number`: the share of requests that it admits, and how long they wait in it, in seconds.
    pub fn admission(&self, number: usize) -> [Gauge; 2] {
        let worker = number.to_string();
        self.register(|| {
            let admitted = gauge!(ADMITTED, "worker" => worker.clone());
            admitted.set(1.0);
            [admitted, gauge!(DELAY, "worker" => worker)]
        })
    }

    /// A request's caller went away before the answer. Rare enough for the registry's own look-up; so is the next one.
    pub fn abandoned(&self) {
        self.register(|| counter!(ABANDONED)).increment(1);
    }

    /// A connection could not be taken.
    pub fn accept_failed(&self) {
        self.register(|| counter!(ACCEPT_FAILED)).increment(1);
    }
}
