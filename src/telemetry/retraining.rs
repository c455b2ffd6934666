//! The metrics of requests for a new model: tries by how they ended, and causes that have not arrived.

use metrics::{counter, describe_counter, describe_gauge, gauge};

use super::Metrics;

const TRIES: &str = "mainstay_retraining_tries_total";
const UNDELIVERED: &str = "mainstay_retraining_undelivered";

pub(super) fn describe() {
    describe_counter!(TRIES, "Tries to send a request for a new model, by result");
    describe_gauge!(
        UNDELIVERED,
        "Causes for a new model that have not arrived: still tried (pending), only once an hour by now (given_up), or not any more (refused, since the start)"
    );
}

impl Metrics {
    /// A request for a new model was sent, and arrived or not.
    pub fn retraining_tried(&self, has_arrived: bool) {
        let result = if has_arrived { "delivered" } else { "failed" };
        self.register(|| counter!(TRIES, "result" => result)).increment(1);
    }

    /// Causes that have not arrived: those that are tried, those that are given up and tried seldom, and those that the receiver refused.
    pub fn retraining_undelivered(&self, pending: usize, given_up: usize, refused: usize) {
        self.register(|| {
            gauge!(UNDELIVERED, "state" => "pending").set(pending as f64);
            gauge!(UNDELIVERED, "state" => "given_up").set(given_up as f64);
            gauge!(UNDELIVERED, "state" => "refused").set(refused as f64);
        });
    }
}
