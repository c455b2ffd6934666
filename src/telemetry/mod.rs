//! Floor 1, telemetry: the catalogue of metrics and the log. What is measured where is decided by the floors above.

mod limit;
pub mod log;
mod measures;
mod metrics;
mod retraining;
pub mod tls;

pub use ::metrics::Counter;
pub use metrics::{Metrics, Route, Stage};
