//! `POST /v1/score`: one customer, decided on the thread that read the request. Only the score of a slow model is waited for.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{HeaderMap, Response};

use super::deadline::{self, Deadline};
use super::layers::Timing;
use super::problem::{self, Problem};
use super::wire::{self, Scratch};
use super::wire_problem;
use super::{Shared, admission, blocking_for, extract, json};
use crate::domain::decision::{Arm, Decision};
use crate::engine::{self, Receipt, Serving, Stages, Turn};

/// Score one customer with the default model
#[utoipa::path(
    post, path = "/v1/score", tag = "score", operation_id = "score",
    params(extract::Asked, deadline::Stated, extract::Addressed),
    request_body(content = wire::Customer, content_type = "application/json"),
    responses(
        (status = 200, description = "The decision", body = wire::Decision, content_type = "application/json"),
        (status = 422, description = "The request breaks the contract; every violation is told", body = problem::Document, content_type = "application/problem+json"),
        wire_problem::Refused,
        wire_problem::Addressing,
    )
)]
pub(super) async fn score(
    state: State<Shared>,
    asked: extract::Query<extract::Asked>,
    headers: HeaderMap,
    deadline: Deadline,
    body: Body,
) -> Result<Response<Body>, Problem> {
    answer(state, None, asked, headers, deadline, body).await
}

/// Score one customer with a model
#[utoipa::path(
    post, path = "/v1/models/{model}/score", tag = "score", operation_id = "score_with_model",
    params(("model" = String, Path, description = "The name of a model in service"), extract::Asked, deadline::Stated, extract::Addressed),
    request_body(content = wire::Customer, content_type = "application/json"),
    responses(
        (status = 200, description = "The decision", body = wire::Decision, content_type = "application/json"),
        (status = 404, description = "No such model is in service", body = problem::Document, content_type = "application/problem+json"),
        (status = 422, description = "The request breaks the contract; every violation is told", body = problem::Document, content_type = "application/problem+json"),
        wire_problem::Refused,
        wire_problem::Addressing,
    )
)]
pub(super) async fn score_with_model(
    state: State<Shared>,
    model: Result<Path<String>, PathRejection>,
    asked: extract::Query<extract::Asked>,
    headers: HeaderMap,
    deadline: Deadline,
    body: Body,
) -> Result<Response<Body>, Problem> {
    answer(state, Some(&model?.0), asked, headers, deadline, body).await
}

async fn answer(
    State(shared): State<Shared>,
    model: Option<&str>,
    asked: extract::Query<extract::Asked>,
    headers: HeaderMap,
    deadline: Deadline,
    body: Body,
) -> Result<Response<Body>, Problem> {
    let serving = shared.engine.serving(model)?;
    extract::media_type(&headers, &[extract::JSON])?;
    let addressed = extract::arm(&shared, &headers)?;
    let wanted = extract::wanted(asked)?;
    // Before anything is read: where far too many come, most of the work would be to read what is then refused.
    serving.room()?;
    let limits = &shared.limits;
    let body = deadline.within(extract::whole(&headers, body, limits.body_bytes_max, limits.body_timeout())).await?;

    let begun = Instant::now();
    let value = json::parse(&body, limits.depth_max)?;
    let record = extract::record(value, wanted, |record| shared.engine.violations(&serving, record))
        .map_err(Problem::invalid)?;
    let parse = begun.elapsed();
    // In a box, so that the future of every other request is no larger for it. Who drops it, gone or late, gives the turn back.
    let turn = match serving.takes_turns() {
        true => {
            let turn = async { Ok(shared.engine.turn(&serving, &record, addressed, deadline.at()).await?) };
            Some(Box::pin(deadline.within(turn)).await?)
        }
        false => None,
    };
    let (decision, stages, receipt) = if shared.engine.takes_long(&serving, &record, addressed, turn.as_ref()) {
        decide_aside(&shared, &serving, &body, (wanted, addressed), turn, deadline).await?
    } else {
        shared.engine.decide(&serving, &record, &body, addressed, turn)?
    };
    // Both stand in the connection's buffer: while they are held over an await, it has to allocate another one to go on.
    drop(record);
    drop((body, headers));
    let waiting = Instant::now();
    let kept = receipt.kept().await;
    let ledger = waiting.elapsed();
    // What a slow disk takes is no queue, and no fewer requests would make it shorter.
    admission::waited(ledger.saturating_sub(shared.engine.record_takes()));
    kept.map_err(engine::Error::from)?;

    let mut text = Vec::with_capacity(512);
    let mut scratch = Scratch::default();
    serde_json::to_writer(&mut text, &wire::Decision::new(&decision, &mut scratch))
        .map_err(|error| Problem::new(problem::Code::Internal, "the decision could not be written").caused_by(error))?;
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(extract::JSON));
    response.extensions_mut().insert(Timing { parse, stages, ledger, single: true });
    Ok(response)
}

/// Decides on the record in `body` on a thread for long work: to explain it slowly, or to look for counterfactuals, takes thousands of
/// rows. As many at a time as there may be batches.
async fn decide_aside(
    shared: &Shared,
    serving: &Arc<Serving>,
    body: &Bytes,
    (wanted, addressed): (extract::Wanted, Option<Arm>),
    turn: Option<Turn>,
    deadline: Deadline,
) -> Result<(Decision, Stages, Receipt), Problem> {
    let permit = shared.long_work()?;
    let (shared, serving, body) = (shared.clone(), serving.clone(), body.clone());
    blocking_for(deadline, move |_| {
        let _permit = permit;
        let value = json::parse(&body, shared.limits.depth_max)?;
        let record = extract::record(value, wanted, |_| Vec::new()).map_err(Problem::invalid)?;
        Ok(shared.engine.decide(&serving, &record, &body, addressed, turn)?)
    })
    .await?
}
