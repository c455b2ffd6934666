//! `POST /v1/score/batch`: many customers, as a JSON array or as NDJSON. The work is done on low-priority threads of its own,
//! so that a batch never stands in the way of a single customer.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{HeaderMap, Response};
use bytes::{Buf, BytesMut};
use futures_util::stream;
use http_body_util::BodyExt;
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;

use super::layers::Timing;
use super::problem::{self, Code, Problem};
use super::trace::REQUEST_ID;
use super::wire::{self, Item, Scratch};
use super::{Shared, blocking, extract, json};
use crate::domain::decision::Arm;
use crate::domain::record::Record;
use crate::engine::Serving;

/// Rows of a stream that are decided on at a time.
const STREAM_ROWS: usize = 512;

/// Score many customers with the default model
///
/// Each row is answered in its place: a decision, or its own problem. `application/json` is an array that is answered as a
/// whole; `application/x-ndjson` is one customer a line, answered line by line while the request still comes in.
#[utoipa::path(
    post, path = "/v1/score/batch", tag = "score", operation_id = "score_batch",
    params(extract::Asked),
    request_body(content((Vec<wire::Customer> = "application/json"), (String = "application/x-ndjson"))),
    responses(
        (status = 200, description = "An answer per row, in order", content((wire::Batch = "application/json"), (String = "application/x-ndjson"))),
        (status = 422, description = "The body is not an array", body = problem::Document, content_type = "application/problem+json"),
        problem::Refused,
    )
)]
pub(super) async fn score_batch(
    state: State<Shared>,
    asked: extract::Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Response<Body>, Problem> {
    answer(state, None, asked, headers, body).await
}

/// Score many customers with a model
///
/// As `/v1/score/batch`.
#[utoipa::path(
    post, path = "/v1/models/{model}/score/batch", tag = "score", operation_id = "score_batch_with_model",
    params(("model" = String, Path, description = "The name of a model in service"), extract::Asked),
    request_body(content((Vec<wire::Customer> = "application/json"), (String = "application/x-ndjson"))),
    responses(
        (status = 200, description = "An answer per row, in order", content((wire::Batch = "application/json"), (String = "application/x-ndjson"))),
        (status = 404, description = "No such model is in service", body = problem::Document, content_type = "application/problem+json"),
        (status = 422, description = "The body is not an array", body = problem::Document, content_type = "application/problem+json"),
        problem::Refused,
    )
)]
pub(super) async fn score_batch_with_model(
    state: State<Shared>,
    model: Result<Path<String>, PathRejection>,
    asked: extract::Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Response<Body>, Problem> {
    answer(state, Some(&model?.0), asked, headers, body).await
}

async fn answer(
    State(shared): State<Shared>,
    model: Option<&str>,
    asked: extract::Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Response<Body>, Problem> {
    let serving = shared.engine.serving(model)?;
    let media_type = extract::media_type(&headers, &[extract::JSON, extract::NDJSON])?;
    let addressed = extract::arm(&shared, &headers)?;
    let wanted = extract::wanted(asked)?;
    let permit = shared.long_work()?;
    // The outermost layer made sure that there is one.
    let request_id = headers.get(REQUEST_ID).cloned().unwrap_or_else(|| HeaderValue::from_static("-"));
    let job = Job { request_id, shared, serving, addressed, wanted };
    let mut response = if media_type == extract::NDJSON {
        Response::new(job.stream(body, permit))
    } else {
        let limits = &job.shared.limits;
        let body = extract::whole(&headers, body, limits.batch_body_bytes_max, limits.body_timeout()).await?;
        let (text, timing) = blocking(move || {
            let _permit = permit;
            job.array(body)
        })
        .await??;
        let mut response = Response::new(Body::from(text));
        response.extensions_mut().insert(timing);
        response
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    Ok(response)
}

/// One batch request: a single snapshot of what serves it, for an array whole, for a stream a chunk at a time.
#[derive(Clone)]
struct Job {
    request_id: HeaderValue,
    shared: Shared,
    serving: Arc<Serving>,
    addressed: Option<Arm>,
    /// What the address asks for.
    wanted: extract::Wanted,
}

impl Job {
    /// The answer to a whole JSON array.
    fn array(&self, body: Bytes) -> Result<(Vec<u8>, Timing), Problem> {
        let begun = Instant::now();
        let rows: Vec<&RawValue> = serde_json::from_slice(&body).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => {
                let code = crate::domain::violation::Code::WrongType;
                Problem::invalid(vec![crate::domain::violation::Violation::new("", code, "an array of customers")])
            }
            _ => json::malformed(&error).into(),
        })?;
        let rows_max = self.shared.limits.batch_rows_max;
        if rows.len() > rows_max {
            return Err(Problem::new(
                Code::TooManyRows,
                format!("a batch may have {rows_max} rows; send more as NDJSON"),
            ));
        }
        let mut timing = Timing { parse: begun.elapsed(), ..Timing::default() };
        let mut text = Vec::with_capacity(32 + rows.len() * 448);
        text.extend_from_slice(b"{\"results\":[");
        for (position, chunk) in rows.chunks(STREAM_ROWS).enumerate() {
            if position > 0 {
                text.push(b',');
            }
            let rows = chunk.iter().map(|row| body.slice_ref(row.get().as_bytes()));
            self.decide(rows.collect(), b",", &mut text, &mut timing);
        }
        text.extend_from_slice(b"]}");
        Ok((text, timing))
    }

    /// Decides on `rows` and writes an item for each, with `separator` between them, once they are recorded.
    fn decide(&self, rows: Vec<Bytes>, separator: &[u8], text: &mut Vec<u8>, timing: &mut Timing) {
        let begun = Instant::now();
        let mut records: Vec<Record> = Vec::with_capacity(rows.len());
        let mut inputs: Vec<Bytes> = Vec::with_capacity(rows.len());
        // In the order of the rows: `None` is decided on with the others.
        let mut problems: Vec<Option<Problem>> = Vec::with_capacity(rows.len());
        for row in &rows {
            problems.push(match self.record(row) {
                Ok(record) => {
                    records.push(record);
                    inputs.push(row.clone());
                    None
                }
                Err(problem) => Some(problem),
            });
        }
        timing.parse += begun.elapsed();
        let decisions =
            self.shared.engine.decide_batch(&self.serving, &records, &inputs, self.addressed).and_then(|batch| {
                let waiting = Instant::now();
                batch.receipt.kept_blocking()?;
                timing.ledger += waiting.elapsed();
                timing.stages.encode += batch.stages.encode;
                timing.stages.infer += batch.stages.infer;
                timing.stages.policy += batch.stages.policy;
                Ok(batch.decisions)
            });
        // What could not be recorded is not answered: every row that was decided on has the same problem then.
        let (decisions, unrecorded) = match decisions {
            Ok(decisions) => (decisions, None),
            Err(error) => (Vec::new(), Some(Problem::from(error))),
        };

        let mut decisions = decisions.into_iter();
        let mut scratch = Scratch::default();
        for (position, problem) in problems.into_iter().enumerate() {
            if position > 0 {
                text.extend_from_slice(separator);
            }
            let decided = match problem.or_else(|| unrecorded.clone()) {
                Some(problem) => Err(problem),
                None => decisions.next().map_or_else(
                    || Err(Problem::new(Code::Internal, "the row was not answered")),
                    |decision| decision.map_err(Problem::from),
                ),
            };
            match decided {
                Ok(decision) => write(text, &Item::Decision(wire::Decision::new(&decision, &mut scratch))),
                Err(problem) => self.write_problem(text, &problem),
            }
        }
    }

    fn record<'b>(&self, row: &'b [u8]) -> Result<Record<'b>, Problem> {
        let limits = &self.shared.limits;
        if row.len() > limits.body_bytes_max {
            return Err(row_too_large(limits.body_bytes_max));
        }
        let value = json::parse(row, limits.depth_max)?;
        extract::record(value, self.wanted, |record| self.shared.engine.violations(&self.serving, record))
            .map_err(Problem::invalid)
    }

    fn write_problem(&self, text: &mut Vec<u8>, problem: &Problem) {
        let request_id = self.request_id.to_str().unwrap_or_default();
        problem.note(request_id, self.shared.engine.metrics());
        write(text, &Item::Problem(problem.document(request_id)));
    }

    /// The answer to NDJSON: as many whole lines as have come are decided on, written, and only then are more read, so a
    /// reader that is slow slows its own sender and nothing grows.
    fn stream(self, body: Body, permit: OwnedSemaphorePermit) -> Body {
        let lines = Lines { body, pending: BytesMut::new(), ended: false };
        Body::from_stream(stream::unfold(Some((self, lines, permit)), |state| async move {
            let (job, mut lines, permit) = state?;
            let next = lines.next(&job).await;
            match next {
                Ok(None) => None,
                Ok(Some(chunk)) => {
                    // A stream has no end: it must not hold on to a model that has lost its customers.
                    let worker = job.of_now();
                    let text = blocking(move || worker.lines(&chunk)).await;
                    // The answer has begun: all that can be done about a failure now is to end it early.
                    Some((text.map_err(|_| std::io::Error::other("failed")), Some((job, lines, permit))))
                }
                Err(problem) => {
                    let mut text = Vec::new();
                    job.write_problem(&mut text, &problem);
                    text.push(b'\n');
                    Some((Ok(Bytes::from(text)), None))
                }
            }
        }))
    }

    /// The same with what is in service now.
    fn of_now(&self) -> Self {
        let serving = self.shared.engine.serving(Some(&self.serving.model.id().name));
        Self { serving: serving.unwrap_or_else(|_| self.serving.clone()), ..self.clone() }
    }

    fn lines(&self, chunk: &Bytes) -> Bytes {
        let mut text = Vec::with_capacity(chunk.len() + 448);
        let mut timing = Timing::default();
        let lines = chunk.split(|byte| *byte == b'\n').filter(|line| !line.iter().all(|byte| b" \t\r".contains(byte)));
        let lines = lines.map(|line| chunk.slice_ref(line)).collect();
        self.decide(lines, b"\n", &mut text, &mut timing);
        if !text.is_empty() {
            text.push(b'\n');
        }
        text.into()
    }
}

/// A body as chunks of whole lines.
struct Lines {
    body: Body,
    pending: BytesMut,
    ended: bool,
}

impl Lines {
    /// The next whole lines, at most [`STREAM_ROWS`]; `None` at the end.
    ///
    /// Errors: a line that is too long, a body that stalls or breaks off. What came before has been answered.
    async fn next(&mut self, job: &Job) -> Result<Option<Bytes>, Problem> {
        let limits = &job.shared.limits;
        loop {
            let ends = self.pending.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
            if let Some(end) = ends.take(STREAM_ROWS).last() {
                return Ok(Some(self.pending.split_to(end).freeze()));
            }
            if self.ended {
                let rest = self.pending.split().freeze();
                return Ok(rest.has_remaining().then_some(rest));
            }
            if self.pending.len() > limits.body_bytes_max {
                return Err(row_too_large(limits.body_bytes_max));
            }
            match tokio::time::timeout(limits.body_timeout(), self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        self.pending.extend_from_slice(data);
                    }
                }
                Ok(None) => self.ended = true,
                Ok(Some(Err(_))) => {
                    return Err(Problem::new(Code::IncompleteBody, "the connection ended before the body did"));
                }
                Err(_) => {
                    let wait_ms = limits.body_timeout().as_millis();
                    return Err(Problem::new(Code::RequestTimeout, format!("no row came for {wait_ms} ms")));
                }
            }
        }
    }
}

fn row_too_large(bytes_max: usize) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("a row may have {bytes_max} bytes"))
}

/// Items are plain data: writing them into memory cannot fail.
fn write(text: &mut Vec<u8>, item: &Item) {
    let _ = serde_json::to_writer(text, item);
}
