//! `/livez`, `/readyz`, `/version`: on both planes, for whatever watches the service.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::Shared;

/// Whether the service is alive or ready.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`, `draining` or `ledger_unavailable`.
    #[schema(value_type = String, example = "ok")]
    status: &'static str,
}

/// What is running.
#[derive(Serialize, ToSchema)]
pub(super) struct Version {
    /// The name of the product.
    #[schema(value_type = String, example = "mainstay")]
    name: &'static str,
    /// The version of the product.
    #[schema(value_type = String)]
    version: &'static str,
    /// What ONNX Runtime says of its own build.
    #[schema(value_type = String)]
    onnxruntime: &'static str,
}

/// Is the process alive?
#[utoipa::path(
    get, path = "/livez", tag = "health", operation_id = "livez",
    responses((status = 200, description = "It is", body = Health))
)]
pub(super) async fn livez() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// May traffic be sent here?
///
/// Yes from the moment every model has passed its probe until the service is told to stop, while decisions can be recorded.
#[utoipa::path(
    get, path = "/readyz", tag = "health", operation_id = "readyz",
    responses(
        (status = 200, description = "It may", body = Health),
        (status = 503, description = "The service is stopping, or cannot record decisions", body = Health),
    )
)]
pub(super) async fn readyz(State(shared): State<Shared>) -> (StatusCode, Json<Health>) {
    let status = match (shared.draining.load(Ordering::Acquire), shared.engine.records()) {
        (true, _) => "draining",
        (false, false) => "ledger_unavailable",
        (false, true) => return (StatusCode::OK, Json(Health { status: "ok" })),
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(Health { status }))
}

/// Show what is running
#[utoipa::path(
    get, path = "/version", tag = "health", operation_id = "version",
    responses((status = 200, description = "The version", body = Version))
)]
pub(super) async fn version(State(shared): State<Shared>) -> Json<Version> {
    Json(Version { name: "mainstay", version: env!("CARGO_PKG_VERSION"), onnxruntime: shared.onnxruntime })
}
