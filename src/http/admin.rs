//! The admin plane's own routes: `/metrics`, and the operator's verbs on the ledger.

use std::path::PathBuf;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName};
use serde::{Deserialize, Serialize};

use super::access::Who;
use super::problem::{Code, Problem};
use super::{Shared, blocking, extract, long};

/// The exposition in the Prometheus text format 0.0.4.
pub(super) async fn metrics(State(shared): State<Shared>) -> ([(HeaderName, &'static str); 1], String) {
    shared.engine.measure();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shared.engine.metrics().render())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Backup {
    path: PathBuf,
}

/// The version of the master secret that writes.
#[derive(Serialize)]
pub(super) struct Rotated {
    key_version: u32,
}

/// Copies the ledger into a new file at `{"path": …}` of the server's own file system.
pub(super) async fn backup(
    State(shared): State<Shared>,
    who: Who,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<serde_json::Value>, Problem> {
    extract::media_type(&headers, &[extract::JSON])?;
    let body = extract::whole(&headers, body, shared.limits.body_bytes_max, shared.limits.body_timeout()).await?;
    let Backup { path } = serde_json::from_slice(&body)
        .map_err(|_| Problem::new(Code::MalformedJson, "expected {\"path\": \"a new file\"}"))?;
    let engine = shared.engine.clone();
    long(&shared, move || engine.backup(&path, who.actor())).await??;
    Ok(Json(serde_json::json!({})))
}

/// Lets a new master secret write from now on.
pub(super) async fn rotate_keys(State(shared): State<Shared>, who: Who) -> Result<Json<Rotated>, Problem> {
    let engine = shared.engine.clone();
    let key_version = blocking(move || engine.rotate_keys(who.actor())).await??;
    Ok(Json(Rotated { key_version }))
}
