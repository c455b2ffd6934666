//! The admin plane's own routes: `/metrics`, and the operator's verbs on the ledger.

use std::path::PathBuf;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::Who;
use super::problem::{self, Code, Problem};
use super::wire_problem;
use super::{Shared, blocking, extract, long};
use crate::domain::violation::{self, Violation};
use crate::{engine, ledger};

/// The exposition in the Prometheus text format 0.0.4.
pub(super) async fn metrics(State(shared): State<Shared>) -> ([(HeaderName, &'static str); 1], String) {
    shared.engine.measure();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shared.engine.metrics().render())
}

/// Where the copy goes.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Backup {
    /// A new file of the server's own file system
    #[schema(value_type = String, example = "/safe/place/ledger.db")]
    path: PathBuf,
}

/// The copy is there.
#[derive(Serialize, ToSchema)]
pub(super) struct Copied {}

/// The key that writes from now on.
#[derive(Serialize, ToSchema)]
pub(super) struct Rotated {
    /// The version of the master secret
    key_version: u32,
}

/// Copy the ledger into a new file
///
/// The key file is not copied.
#[utoipa::path(post, path = "/v1/ledger/backup", tag = "ledger", operation_id = "backup_ledger",
    request_body(content = Backup, content_type = "application/json"),
    responses(
        (status = 200, description = "The copy is there", body = Copied),
        (status = 404, description = "The ledger is off", body = problem::Document, content_type = "application/problem+json"),
        (status = 422, description = "The file is there already, or its directory is not", body = problem::Document, content_type = "application/problem+json"),
        wire_problem::Refused,
    ))]
pub(super) async fn backup(
    State(shared): State<Shared>,
    who: Who,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Copied>, Problem> {
    extract::media_type(&headers, &[extract::JSON])?;
    let body = extract::whole(&headers, body, shared.limits.body_bytes_max, shared.limits.body_timeout()).await?;
    let Backup { path } = serde_json::from_slice(&body)
        .map_err(|_| Problem::new(Code::MalformedJson, "expected {\"path\": \"a new file\"}"))?;
    let engine = shared.engine.clone();
    let copied = long(&shared, move || engine.backup(&path, who.actor())).await?;
    copied.map_err(|error| match error {
        engine::Error::Ledger(ledger::Error::File { .. }) => {
            let expected = "a file that is not there yet, in a directory that is";
            Problem::invalid(vec![Violation::new("/path", violation::Code::OutOfRange, expected)])
        }
        error => error.into(),
    })?;
    Ok(Json(Copied {}))
}

/// Let a new master secret write from now on
#[utoipa::path(post, path = "/v1/ledger/rotate-keys", tag = "ledger", operation_id = "rotate_ledger_keys",
    responses(
        (status = 200, description = "It writes", body = Rotated),
        (status = 404, description = "The ledger is off", body = problem::Document, content_type = "application/problem+json"),
        wire_problem::Failing,
    ))]
pub(super) async fn rotate_keys(State(shared): State<Shared>, who: Who) -> Result<Json<Rotated>, Problem> {
    let engine = shared.engine.clone();
    let key_version = blocking(move || engine.rotate_keys(who.actor())).await??;
    Ok(Json(Rotated { key_version }))
}
