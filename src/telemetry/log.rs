//! The log: structured lines on standard error, written by a thread of their own so that a slow disk or terminal never waits
//! on a request's path. What is logged where is decided by the floors above; no input value ever is.

use serde::{Deserialize, Serialize};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

/// Lines that may wait to be written; more are dropped, not waited for.
const LINES_MAX: usize = 16_384;

/// Settings of the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// `json` for machines, `text` for people.
    pub format: Format,
    /// The least severe lines that are written.
    pub level: Level,
    /// The share of requests that get a line of their own, 0 to 1; a 5xx always gets one.
    pub request_share: f64,
}

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// Readable text.
    Text,
}

/// Severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Failures of the service.
    Error,
    /// What an operator should look at.
    Warn,
    /// Start, stop, operator actions, sampled requests.
    Info,
    /// More.
    Debug,
}

impl Options {
    /// Every value that is out of its range, as (key, sentence).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let legal = (0.0..=1.0).contains(&self.request_share);
        (!legal).then(|| ("request_share", "expected a share from 0 to 1".to_owned())).into_iter().collect()
    }
}

/// Starts the log for the process; dropping the guard writes what still waits. A second start is ignored.
pub fn start(options: &Options) -> WorkerGuard {
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).lossy(true).finish(std::io::stderr());
    let level = match options.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_target(false);
    let registry = tracing_subscriber::registry();
    let _ = match options.format {
        Format::Json => registry.with(layer.json().flatten_event(true).with_filter(level)).try_init(),
        Format::Text => registry.with(layer.with_ansi(false).with_filter(level)).try_init(),
    };
    guard
}
