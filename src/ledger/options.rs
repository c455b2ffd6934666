//! Settings of the ledger, and what they promise.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What an answered decision has survived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Promise {
    /// Nothing is recorded.
    Off,
    /// It waits in memory to be recorded: the end of the process may lose it.
    Buffered,
    /// It is recorded: it survives the end of the process, `kill -9` too.
    Committed,
    /// It is on the disk: it survives the loss of power.
    Fsynced,
}

/// Settings of the ledger.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The directory of the database and its key file.
    pub dir: PathBuf,
    /// What an answered decision has survived.
    pub promise: Promise,
    /// Whether the inputs are kept, encrypted under the customer's key; without them there is no replay.
    pub inputs: bool,
    /// Records that may wait to be written; with more the service answers 503.
    pub queue_max: usize,
    /// How long an answer may wait for its record, in milliseconds; then the service answers 503.
    pub wait_ms_max: u64,
    /// The time between two commits under load, in microseconds, half of it where enough wait by then: longer groups are
    /// cheaper, shorter ones faster.
    pub commit_interval_us: u64,
    /// Records older than this are removed, in days; 0 keeps all.
    pub retention_days: u32,
    /// The oldest records are removed when the database is larger, in bytes; 0 is no bound.
    pub bytes_max: u64,
}

impl Options {
    /// Every value that is out of its range, as (key, sentence).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        for (key, value, min, max) in [
            ("queue_max", self.queue_max as u64, 1, 1 << 20),
            ("wait_ms_max", self.wait_ms_max, 1, 60_000),
            ("commit_interval_us", self.commit_interval_us, 0, 100_000),
            ("retention_days", u64::from(self.retention_days), 0, 36_500),
        ] {
            if !(min..=max).contains(&value) {
                problems.push((key, format!("expected {min} to {max}")));
            }
        }
        if self.bytes_max != 0 && self.bytes_max < 1 << 20 {
            problems.push(("bytes_max", "expected 0, or 1048576 and more".to_owned()));
        }
        problems
    }
}
