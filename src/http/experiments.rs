//! `/v1/experiments` of the admin plane: which experiments there are and how they stand, and the verbs that create, start, change and
//! stop them. How they are read is in `ask_experiments`, and how they are
//! written in `wire_experiments`.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use serde::Deserialize;
use utoipa::IntoParams;

use super::access::Who;
use super::ask_experiments::{Asked, Changing, Creating};
use super::problem::{Code, Problem};
use super::slots::{Plain, asked, key};
use super::wire_experiments::{Done, Experiment, Experiments};
use super::wire_problem;
use super::{Shared, blocking, extract, json, measure, operate};
use crate::domain::policy::{document, registry};
use crate::engine::{Error, Trial};

/// The largest body: some policy documents.
const BODY_BYTES_MAX: usize = 8 * document::BYTES_MAX;
/// The most levels of a body.
const DEPTH_MAX: usize = 8;

/// Which experiments.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Those of this model; without it all
    #[param(nullable = false)]
    model: Option<String>,
}

/// List the experiments
#[utoipa::path(get, path = "/v1/experiments", tag = "experiments", operation_id = "experiments", params(Which),
    responses((status = 200, description = "In the order in which they were created", body = Experiments), wire_problem::Moving))]
pub(super) async fn experiments(
    State(shared): State<Shared>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Experiments>, Problem> {
    let (engine, Query(which)) = (shared.engine.clone(), which?);
    let found = blocking(move || engine.experiments(which.model.as_deref())).await??;
    Ok(Json(Experiments { experiments: found.into_iter().map(Experiment::from).collect() }))
}

/// Show an experiment
///
/// With its customers by group, each once, since the groups have the shares that they have, and whether they came in other shares than they
/// were assigned. These are counted in the ledger: seconds where millions of decisions are on record.
#[utoipa::path(get, path = "/v1/experiments/{name}", tag = "experiments", operation_id = "experiment",
    params(("name" = String, Path, description = "The name of an experiment")),
    responses((status = 200, description = "How it stands", body = Experiment), wire_problem::Moving, wire_problem::Failing))]
pub(super) async fn experiment(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Experiment>, Problem> {
    let (engine, name) = (shared.engine.clone(), name?.0);
    Ok(Json(measure(&shared, move || Ok(engine.examine(&name)?)).await?.into()))
}

/// Create an experiment
///
/// It treats nobody before it is started: by somebody, at the time `from`, or with `starts_after` once a rollout of its model
/// has ended in a promotion. Everything that is wrong with it is told at once. With the header `idempotency-key` the same request
/// is done once, as long as it is among the last thousand with a key.
#[utoipa::path(post, path = "/v1/experiments", tag = "experiments", operation_id = "create_experiment",
    params(("idempotency-key" = Option<String>, Header, description = "A key of your choice, at most 128 characters")),
    request_body(content = Creating, content_type = "application/json"),
    responses((status = 200, description = "It is created", body = Done), wire_problem::Moving, wire_problem::Refused))]
pub(super) async fn create(
    State(shared): State<Shared>,
    who: Who,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Done>, Problem> {
    shared.engine.needs_ledger()?;
    who.may_move(&shared, "create", None)?;
    let body = read(&shared, &headers, body).await?;
    let key = key(&headers, ["/v1/experiments", "create"], &body, &who)?;
    let Asked { said, model, draft, .. } = Asked::read(json::parse(&body, DEPTH_MAX)?, &["model"], &who)?;
    let ask = asked(said, key, &who)?;
    let engine = shared.engine.clone();
    let is_long = engine.tries_arms(&draft);
    let done = operate(&shared, is_long, move || -> Result<_, Error> {
        let name = draft.experiment.name.clone();
        let moved = engine.create_experiment(model.as_deref(), draft, &ask)?;
        // Created before, it may have been stopped and forgotten since.
        Ok(Done::new(moved, engine.experiment(&name).ok()))
    });
    Ok(Json(done.await??))
}

/// Start, stop or change an experiment
///
/// The body has `by` and `why`; for `change` also the whole `experiment` that takes its place, and maybe `force`. While it runs, only
/// what moves no customer can be changed: the texts, the end, a holdout that grows, arms that all grow by one factor. With the
/// header `idempotency-key` the same request is done once, as long as it is among the last thousand with a key.
#[utoipa::path(post, path = "/v1/experiments/{name}/{verb}", tag = "experiments", operation_id = "move_experiment",
    params(
        ("name" = String, Path, description = "The name of an experiment"),
        ("verb" = String, Path, description = "`start`, `stop`, `change`"),
        ("idempotency-key" = Option<String>, Header, description = "A key of your choice, at most 128 characters"),
    ),
    request_body(content((Plain = "application/json"), (Changing = "application/json"))),
    responses((status = 200, description = "It was done", body = Done), wire_problem::Moving, wire_problem::Refused))]
pub(super) async fn act(
    State(shared): State<Shared>,
    path: Result<Path<(String, String)>, PathRejection>,
    who: Who,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Done>, Problem> {
    let Path((name, verb)) = path?;
    if !registry::VERBS.contains(&&*verb) {
        return Err(Problem::new(Code::NotFound, format!("no such verb; there are {}", registry::VERBS.join(", "))));
    }
    shared.engine.needs_ledger()?;
    who.may_move(&shared, &verb, None)?;
    let body = read(&shared, &headers, body).await?;
    let key = key(&headers, [&format!("/v1/experiments/{name}"), &verb], &body, &who)?;
    let value = json::parse(&body, DEPTH_MAX)?;
    let (trial, said) = match &*verb {
        "change" => {
            let Asked { said, force, draft, .. } = Asked::read(value, &["force"], &who)?;
            (Trial::Change { draft: Box::new(draft), force }, said)
        }
        verb => (if verb == "start" { Trial::Start } else { Trial::Stop }, Asked::plain(value, &who)?),
    };
    let ask = asked(said, key, &who)?;
    let engine = shared.engine.clone();
    let is_long = matches!(&trial, Trial::Change { draft, .. } if engine.tries_arms(draft));
    let done = operate(&shared, is_long, move || -> Result<_, Error> {
        let moved = engine.try_experiment(&name, trial, &ask)?;
        Ok(Done::new(moved, engine.experiment(&name).ok()))
    });
    Ok(Json(done.await??))
}

async fn read(shared: &Shared, headers: &HeaderMap, body: Body) -> Result<Vec<u8>, Problem> {
    extract::media_type(headers, &[extract::JSON])?;
    Ok(extract::whole(headers, body, BODY_BYTES_MAX, shared.limits.body_timeout()).await?.to_vec())
}
