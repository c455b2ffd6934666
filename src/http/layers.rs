//! What every request passes on its way in and out, in order: ids, measurement, credentials, panic, load. No route knows of it.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Response};
use axum::middleware::Next;
use axum::response::IntoResponse;

use super::deadline::Deadline;
use super::problem::{Code, Problem};
use super::{Shared, access, admission, trace};
use crate::engine::Stages;
use crate::telemetry::{Route, Stage};

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The times of one decision, left in a response by its handler for [`observe`] to report.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Timing {
    /// Body to record.
    pub(super) parse: Duration,
    /// The rest of the way.
    pub(super) stages: Stages,
    /// Waiting for the record.
    pub(super) ledger: Duration,
    /// Whether it was one decision, which is what the stage histograms are of.
    pub(super) single: bool,
}

/// The outermost layer: gives the request its ids, measures it, asks for credentials, writes the body of a problem and the headers of every answer.
pub(super) async fn observe(State(shared): State<Shared>, mut request: Request, next: Next) -> Response<Body> {
    let begun = Instant::now();
    let metrics = shared.engine.metrics();
    let request_id = trace::request_id(request.headers());
    let traceparent = trace::traceparent(request.headers());
    let route = request.extensions().get::<MatchedPath>().map_or(Route::Other, |path| route_of(path.as_str()));
    // Handlers that write problems of their own find it there.
    request.headers_mut().insert(trace::REQUEST_ID, request_id.clone());
    let in_flight = InFlight::enter(&shared);

    // Before anything is done for it, its credentials included: under load what is refused must cost next to nothing.
    let admitted = if matches!(route, Route::Score | Route::Batch) && !admission::admits() {
        admission::hold_back(Deadline::of(request.headers()).unwrap_or_default()).await;
        Err(Problem::new(Code::Overloaded, "more requests come than can be answered; try again after a second"))
    } else {
        access::admit(&shared, &mut request)
    };
    let (route, (mut response, left)) = match admitted {
        Ok(left) => (route, (next.run(request).await, left)),
        // The objectives of a route are of what it answered.
        Err(problem) => (Route::Refused, (problem.into_response(), None)),
    };
    in_flight.answered();

    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let id = request_id.to_str().unwrap_or_default();
        problem.note(id, metrics);
        let allow = response.headers_mut().remove(axum::http::header::ALLOW);
        response = problem.response(id);
        if let Some(allow) = allow {
            response.headers_mut().insert(axum::http::header::ALLOW, allow);
        }
    }
    let total = begun.elapsed();
    if let Some(timing) = response.extensions_mut().remove::<Timing>() {
        let Timing { parse, stages, ledger, single } = timing;
        if single {
            metrics.stage(Stage::Parse, parse);
            metrics.stage(Stage::Encode, stages.encode);
            metrics.stage(Stage::Infer, stages.infer);
            metrics.stage(Stage::Policy, stages.policy);
            metrics.stage(Stage::Ledger, ledger);
        }
        response.headers_mut().insert(SERVER_TIMING, server_timing(&timing, total));
    }
    let status = response.status().as_u16();
    metrics.request(route, status, total);
    let request_share = shared.request_share();
    if request_share > 0.0 && fastrand::f64() < request_share {
        let request_id = request_id.to_str().unwrap_or_default();
        tracing::info!(request_id, ?route, status, total_us = total.as_micros() as u64, "request");
    }
    response.headers_mut().insert(trace::REQUEST_ID, request_id);
    response.headers_mut().insert(trace::TRACEPARENT, traceparent);
    access::tell(&mut response, left);
    response
}

/// The problem of a request that panicked. The panic itself was logged by the hook that `app` sets.
pub(super) fn panicked(shared: &Shared) -> Response<Body> {
    shared.engine.metrics().panicked();
    Problem::new(Code::Internal, "the request could not be answered").into_response()
}

/// The problem of a request that came when too many were being answered.
pub(super) async fn overloaded(_: axum::BoxError) -> Problem {
    Problem::new(Code::Overloaded, "too many requests are being answered; try again after a second")
}

/// Counts a request while it is being answered. One that is dropped before it is has no caller any more.
struct InFlight<'s> {
    shared: &'s Shared,
    is_answered: bool,
}

impl<'s> InFlight<'s> {
    fn enter(shared: &'s Shared) -> Self {
        shared.engine.metrics().in_flight().increment(1.0);
        Self { shared, is_answered: false }
    }

    fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let metrics = self.shared.engine.metrics();
        metrics.in_flight().decrement(1.0);
        if !self.is_answered {
            metrics.abandoned();
        }
    }
}

fn route_of(path: &str) -> Route {
    match path {
        "/v1/score" | "/v1/models/{model}/score" => Route::Score,
        "/v1/score/batch" | "/v1/models/{model}/score/batch" => Route::Batch,
        "/v1/models" | "/v1/models/{model}" => Route::Models,
        "/v1/decisions" | "/v1/decisions/{id}" | "/v1/customers/{customer_id}" => Route::Records,
        path if path.starts_with("/v1/slots") || path.starts_with("/v1/policies") => Route::Slots,
        path if path.starts_with("/v1/experiments") => Route::Experiments,
        path if path.starts_with("/v1/ledger/") => Route::Ledger,
        path if path.starts_with("/v1/insight") => Route::Insight,
        "/v1/outcomes" => Route::Outcomes,
        "/livez" | "/readyz" | "/version" => Route::Health,
        "/metrics" => Route::Metrics,
        path if path.starts_with("/docs") || path == "/openapi.json" => Route::Docs,
        _ => Route::Other,
    }
}

/// Server-Timing (W3C), durations in milliseconds.
fn server_timing(timing: &Timing, total: Duration) -> HeaderValue {
    use std::fmt::Write;
    let mut text = String::with_capacity(128);
    let stages = timing.stages;
    for (name, duration) in [
        ("parse", timing.parse),
        ("encode", stages.encode),
        ("infer", stages.infer),
        ("policy", stages.policy),
        ("ledger", timing.ledger),
        ("total", total),
    ] {
        let separator = if text.is_empty() { "" } else { ", " };
        let us = duration.as_micros();
        // Whole microseconds as a decimal fraction of milliseconds, without floating point. Writing cannot fail.
        let _ = write!(text, "{separator}{name};dur={}.{:03}", us / 1_000, us % 1_000);
    }
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("total"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Labels tell who is slow or fails: nothing that can be asked for is counted with what does not exist.
    #[test]
    fn every_route_has_a_label() {
        for door in crate::http::doors().iter().flatten() {
            assert_ne!(route_of(&door.path), Route::Other, "{}", door.path);
        }
        assert_eq!(route_of("/nowhere"), Route::Other);
    }
}
