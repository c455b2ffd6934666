//! The settings `limits.*`: what one request may be, how many may be answered at a time, and how far work gives way. Whoever is bound by one
//! enforces it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::incoming::OPEN_BYTES;

/// Bounds of what one request may be, how many may be answered at a time, and how far work gives way.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Scoring requests answered at a time; one more is shed with 503.
    pub in_flight_max: usize,
    /// The largest body of one customer, and row of a batch, in bytes.
    pub body_bytes_max: usize,
    /// The most levels of a body.
    pub depth_max: usize,
    /// How long a body may take to arrive, and the next whole row of a stream, in milliseconds.
    pub body_timeout_ms: u64,
    /// Batches, and parts of streams, that are worked on at a time, each on a thread of its own.
    pub batches_max: usize,
    /// How long a batch that has come in waits for its turn before it is shed with 503, in milliseconds.
    pub batch_wait_ms_max: u64,
    /// Requests for records, or to record outcomes, answered at a time; one more is shed with 503.
    pub readings_max: usize,
    /// The most rows of a JSON batch, and of one record batch in columns. A stream has no end.
    pub batch_rows_max: usize,
    /// The largest body of a JSON batch, message in columns, and all dictionaries of a stream, in bytes.
    pub batch_body_bytes_max: usize,
    /// What all batches, streams and arrays of outcomes together may hold of their bodies, in bytes, 64 KiB of each at least; one more is
    /// shed with 503.
    pub intake_bytes_max: usize,
    /// The most by which a thread gives way to others of the machine, as a niceness of 0 to 19.
    pub nice_max: i32,
}

impl Limits {
    /// Every value that is out of its range, as (key, sentence).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        for (key, value, max) in [
            ("in_flight_max", self.in_flight_max, 1 << 20),
            ("body_bytes_max", self.body_bytes_max, 16 << 20),
            ("depth_max", self.depth_max, 64),
            ("body_timeout_ms", self.body_timeout_ms as usize, 3_600_000),
            ("batches_max", self.batches_max, 256),
            ("batch_wait_ms_max", self.batch_wait_ms_max as usize, 60_000),
            ("readings_max", self.readings_max, 256),
            ("batch_rows_max", self.batch_rows_max, 1_000_000),
            ("batch_body_bytes_max", self.batch_body_bytes_max, 1 << 30),
            ("intake_bytes_max", self.intake_bytes_max, 1 << 40),
        ] {
            if !(1..=max).contains(&value) {
                problems.push((key, format!("expected 1 to {max}")));
            }
        }
        if !(0..=19).contains(&self.nice_max) {
            problems.push(("nice_max", "expected 0 to 19".to_owned()));
        }
        // A stream in columns holds a message and its dictionaries, and no body may be too large for all there is.
        let least = 2 * (self.batch_body_bytes_max.min(1 << 30) + OPEN_BYTES as usize);
        if (1..least).contains(&self.intake_bytes_max) {
            problems.push((
                "intake_bytes_max",
                format!("expected twice batch_body_bytes_max and 128 KiB, {least}, or more"),
            ));
        }
        problems
    }

    /// How far a thread gives way that would by a niceness of `nice`.
    pub fn nice(&self, nice: i32) -> i32 {
        nice.min(self.nice_max)
    }

    /// How long a batch that has come in waits for its turn.
    pub(super) fn batch_wait(&self) -> Duration {
        Duration::from_millis(self.batch_wait_ms_max)
    }

    /// How long a body may take to arrive, and the next whole row of a stream.
    pub(super) fn body_timeout(&self) -> Duration {
        Duration::from_millis(self.body_timeout_ms)
    }
}
