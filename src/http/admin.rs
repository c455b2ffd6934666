//! `/metrics` on the admin plane.

use axum::extract::State;
use axum::http::HeaderName;
use axum::http::header::CONTENT_TYPE;

use super::Shared;

/// The exposition in the Prometheus text format 0.0.4.
pub(super) async fn metrics(State(shared): State<Shared>) -> ([(HeaderName, &'static str); 1], String) {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shared.engine.metrics().render())
}
