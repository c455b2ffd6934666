//! The log: structured lines on standard error, written by a thread of their own so that a slow disk or terminal never waits
//! on a request's path. What is logged where is decided by the floors above; no input value ever is.

use serde::{Deserialize, Serialize};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::reload;

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
    /// The share of requests that get a line of their own, 0 to 1. The cause of a 500 is always logged.
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

/// The running log; dropping it writes what still waits.
pub struct Log {
    _guard: WorkerGuard,
    set: Box<dyn Fn(LevelFilter) + Send>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

impl Log {
    /// Lets lines of another severity through from now on.
    pub fn set_level(&self, level: Level) {
        (self.set)(filter(level));
    }
}

fn filter(level: Level) -> LevelFilter {
    match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
    }
}

/// Starts the log for the process. A second start is ignored.
pub fn start(options: &Options) -> Log {
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).lossy(true).finish(std::io::stderr());
    let (level, handle) = reload::Layer::new(filter(options.level));
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_target(false);
    let registry = tracing_subscriber::registry();
    let _ = match options.format {
        Format::Json => registry.with(layer.json().flatten_event(true).with_filter(level)).try_init(),
        Format::Text => registry.with(layer.with_ansi(false).with_filter(level)).try_init(),
    };
    // Without a subscriber there is nothing to be set.
    Log { _guard: guard, set: Box::new(move |level| drop(handle.reload(level))) }
}
