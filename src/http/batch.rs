//! `POST /v1/score/batch`: many customers, as a JSON array or as NDJSON. The work is done on low-priority threads of its own,
//! so that a batch never stands in the way of a single customer.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{HeaderMap, Response};
use futures_util::{FutureExt, StreamExt, stream};
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;

use super::deadline::{self, Caller, Deadline};
use super::layers::Timing;
use super::lines::{Lines, STREAM_ROWS, row_too_large};
use super::problem::{self, Code, Problem};
use super::trace::REQUEST_ID;
use super::wire::{self, Scratch};
use super::wire_batch::{self, Item};
use super::wire_problem;
use super::{Shared, blocking, blocking_for, extract, json};
use crate::domain::decision::{Arm, Decision};
use crate::domain::money::Money;
use crate::domain::record::Record;
use crate::domain::violation::{self, Violation};
use crate::engine::{self, Draw, Serving};

/// Score many customers with the default model
///
/// Each row is answered in its place: a decision, or its own problem. `application/json` is an array that is answered as a
/// whole; `application/x-ndjson` is one customer a line, answered line by line while the request still comes in. At most 100 rows of a
/// batch or stream may ask for counterfactuals; each other that does is answered with a problem at `/counterfactuals`.
#[utoipa::path(
    post, path = "/v1/score/batch", tag = "score", operation_id = "score_batch",
    params(extract::AskedOfMany, deadline::Stated),
    request_body(content((Vec<wire::Customer> = "application/json"), (String = "application/x-ndjson"))),
    responses(
        (status = 200, description = "An answer per row, in order", content((wire_batch::Batch = "application/json"), (String = "application/x-ndjson"))),
        (status = 422, description = "The body is not an array", body = problem::Document, content_type = "application/problem+json"),
        wire_problem::Refused,
    )
)]
pub(super) async fn score_batch(
    state: State<Shared>,
    asked: extract::Query<extract::AskedOfMany>,
    headers: HeaderMap,
    deadline: Deadline,
    body: Body,
) -> Result<Response<Body>, Problem> {
    answer(state, None, asked, headers, deadline, body).await
}

/// Score many customers with a model
///
/// As `/v1/score/batch`.
#[utoipa::path(
    post, path = "/v1/models/{model}/score/batch", tag = "score", operation_id = "score_batch_with_model",
    params(("model" = String, Path, description = "The name of a model in service"), extract::AskedOfMany, deadline::Stated),
    request_body(content((Vec<wire::Customer> = "application/json"), (String = "application/x-ndjson"))),
    responses(
        (status = 200, description = "An answer per row, in order", content((wire_batch::Batch = "application/json"), (String = "application/x-ndjson"))),
        (status = 404, description = "No such model is in service", body = problem::Document, content_type = "application/problem+json"),
        (status = 422, description = "The body is not an array", body = problem::Document, content_type = "application/problem+json"),
        wire_problem::Refused,
    )
)]
pub(super) async fn score_batch_with_model(
    state: State<Shared>,
    model: Result<Path<String>, PathRejection>,
    asked: extract::Query<extract::AskedOfMany>,
    headers: HeaderMap,
    deadline: Deadline,
    body: Body,
) -> Result<Response<Body>, Problem> {
    answer(state, Some(&model?.0), asked, headers, deadline, body).await
}

async fn answer(
    State(shared): State<Shared>,
    model: Option<&str>,
    asked: extract::Query<extract::AskedOfMany>,
    headers: HeaderMap,
    deadline: Deadline,
    body: Body,
) -> Result<Response<Body>, Problem> {
    let serving = shared.engine.serving(model)?;
    let media_type = extract::media_type(&headers, &[extract::JSON, extract::NDJSON])?;
    let addressed = extract::arm(&shared, &headers)?;
    let (wanted, budget) = extract::wanted_of_many(asked)?;
    if budget.is_some() {
        may_have_budget(&serving, media_type)?;
    }
    let permit = shared.long_work()?;
    // The outermost layer made sure that there is one.
    let request_id = headers.get(REQUEST_ID).cloned().unwrap_or_else(|| HeaderValue::from_static("-"));
    let job = Job { request_id, shared, serving, addressed, wanted, asking: Arc::default() };
    let mut response = if media_type == extract::NDJSON {
        Response::new(job.stream(body, permit, deadline))
    } else {
        let limits = &job.shared.limits;
        let body = extract::whole(&headers, body, limits.batch_body_bytes_max, limits.body_timeout());
        let body = deadline.within(body).await?;
        let (text, timing) = blocking_for(deadline, move |caller| {
            let _permit = permit;
            job.array(body, budget, caller)
        })
        .await??;
        let mut response = Response::new(Body::from(text));
        response.extensions_mut().insert(timing);
        response
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    Ok(response)
}

/// Rows of one batch or stream that may ask for counterfactuals, each of which takes thousands of scores: otherwise one
/// request could be work for hours.
const COUNTERFACTUAL_ROWS_MAX: usize = 100;

/// One batch request: a single snapshot of what serves it, for an array whole, for a stream a chunk at a time.
#[derive(Clone)]
struct Job {
    request_id: HeaderValue,
    shared: Shared,
    serving: Arc<Serving>,
    addressed: Option<Arm>,
    /// What the address asks for.
    wanted: extract::Wanted,
    /// Rows that asked for counterfactuals so far.
    asking: Arc<AtomicUsize>,
}

impl Job {
    /// The answer to a whole JSON array.
    fn array(&self, body: Bytes, budget: Option<Money>, caller: &Caller) -> Result<(Vec<u8>, Timing), Problem> {
        let begun = Instant::now();
        let rows: Vec<&RawValue> = serde_json::from_slice(&body).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => {
                Problem::invalid(vec![Violation::new("", violation::Code::WrongType, "an array of customers")])
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
        let bytes = |row: &&RawValue| body.slice_ref(row.get().as_bytes());
        if let Some(budget) = budget {
            let allocation =
                self.decide_within(&rows.iter().map(bytes).collect::<Vec<_>>(), budget, &mut text, &mut timing);
            text.extend_from_slice(b"],\"allocation\":");
            // Plain data: writing it into memory cannot fail.
            let _ = serde_json::to_writer(&mut text, &allocation);
            text.push(b'}');
            return Ok((text, timing));
        }
        let draw = self.shared.engine.draw(&self.serving, rows.len());
        for (position, chunk) in rows.chunks(STREAM_ROWS).enumerate() {
            if position > 0 {
                text.push(b',');
            }
            caller.is_there()?;
            match caller.waits() {
                Ok(()) => self.decide(&chunk.iter().map(bytes).collect::<Vec<_>>(), draw, b",", &mut text, &mut timing),
                // What was decided so far is on record, and answered.
                Err(late) => self.write_items(vec![Some(late); chunk.len()], Vec::new(), b",", &mut text),
            }
        }
        text.extend_from_slice(b"]}");
        Ok((text, timing))
    }

    /// Decides on `rows` and writes an item for each, with `separator` between them, once they are recorded.
    fn decide(&self, rows: &[Bytes], draw: Draw, separator: &[u8], text: &mut Vec<u8>, timing: &mut Timing) {
        let read = self.read(rows, timing);
        let decided = self.shared.engine.decide_batch(&self.serving, &read.records, &read.inputs, self.addressed, draw);
        let mut decisions = Vec::with_capacity(read.records.len());
        keep(read.records.len(), decided, &mut decisions, timing);
        self.write_items(read.problems, decisions, separator, text);
    }

    /// The same for rows that share a budget.
    fn decide_within(
        &self,
        rows: &[Bytes],
        budget: Money,
        text: &mut Vec<u8>,
        timing: &mut Timing,
    ) -> wire_batch::Allocation {
        let read = self.read(rows, timing);
        let engine = &self.shared.engine;
        let allotted = engine.decide_within(&self.serving, &read.records, &read.inputs, self.addressed, budget);
        let mut decisions = Vec::with_capacity(read.records.len());
        for (count, part) in allotted.parts {
            keep(count, part, &mut decisions, timing);
        }
        let chosen = decisions.iter().flatten().map(|decision| &decision.choice).filter(|choice| choice.allocated);
        let allocation = wire_batch::Allocation::new(&self.serving.policy, budget, allotted.value_max, chosen);
        self.write_items(read.problems, decisions, b",", text);
        allocation
    }

    fn read<'b>(&self, rows: &'b [Bytes], timing: &mut Timing) -> Read<'b> {
        let begun = Instant::now();
        let mut read = Read { records: Vec::new(), inputs: Vec::new(), problems: Vec::with_capacity(rows.len()) };
        for row in rows {
            read.problems.push(match self.record(row) {
                Ok(record) => {
                    read.records.push(record);
                    read.inputs.push(row.clone());
                    None
                }
                Err(problem) => Some(problem),
            });
        }
        timing.parse += begun.elapsed();
        read
    }

    /// Writes an item for each row: its own problem, or what became of the next record.
    fn write_items(
        &self,
        problems: Vec<Option<Problem>>,
        decisions: Vec<Result<Decision, Problem>>,
        separator: &[u8],
        text: &mut Vec<u8>,
    ) {
        let mut decisions = decisions.into_iter();
        let mut scratch = Scratch::default();
        for (position, problem) in problems.into_iter().enumerate() {
            if position > 0 {
                text.extend_from_slice(separator);
            }
            let unanswered = || Err(Problem::new(Code::Internal, "the row was not answered"));
            match problem.map_or_else(|| decisions.next().unwrap_or_else(unanswered), Err) {
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
        let check = |record: &Record| self.shared.engine.violations(&self.serving, record);
        let record = extract::record(value, self.wanted, check).map_err(Problem::invalid)?;
        // Rows are read one after the other: only the count has to be right.
        if record.counterfactuals > 0 && self.asking.fetch_add(1, Ordering::Relaxed) >= COUNTERFACTUAL_ROWS_MAX {
            let expected = format!(
                "at most {COUNTERFACTUAL_ROWS_MAX} rows of a batch or stream that ask for them: send this one without, or alone to /v1/score"
            );
            return Err(Problem::invalid(vec![Violation::new("/counterfactuals", violation::Code::TooMany, expected)]));
        }
        Ok(record)
    }

    fn write_problem(&self, text: &mut Vec<u8>, problem: &Problem) {
        let request_id = self.request_id.to_str().unwrap_or_default();
        problem.note(request_id, self.shared.engine.metrics());
        write(text, &Item::Problem(problem.document(request_id)));
    }

    /// The answer to NDJSON: as many whole lines as have come are decided on, written, and only then are more read, so a
    /// reader that is slow slows its own sender and nothing grows.
    fn stream(self, body: Body, permit: OwnedSemaphorePermit, deadline: Deadline) -> Body {
        let lines = Lines::new(body);
        let answers = stream::unfold(Some((self, lines, permit)), move |state| async move {
            let (job, mut lines, permit) = state?;
            match deadline.within(lines.next(&job.shared.limits)).await {
                Ok(None) => None,
                Ok(Some(chunk)) => {
                    // A stream has no end: it must not hold on to a model that has lost its customers.
                    let worker = job.of_now();
                    let text = AssertUnwindSafe(blocking(move || worker.lines(&chunk))).catch_unwind().await;
                    let panicked = |_| {
                        job.shared.engine.metrics().panicked();
                        Err(Problem::new(Code::Internal, "the rows could not be answered"))
                    };
                    match text.unwrap_or_else(panicked) {
                        Ok(text) => Some((text, Some((job, lines, permit)))),
                        Err(problem) => Some((job.problem_line(&problem), None)),
                    }
                }
                Err(problem) => Some((job.problem_line(&problem), None)),
            }
        });
        Body::from_stream(answers.map(Ok::<_, Infallible>))
    }

    /// The last line of an answer that has begun and cannot go on.
    fn problem_line(&self, problem: &Problem) -> Bytes {
        let mut text = Vec::new();
        self.write_problem(&mut text, problem);
        text.push(b'\n');
        text.into()
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
        let lines: Vec<Bytes> = lines.map(|line| chunk.slice_ref(line)).collect();
        let draw = self.shared.engine.draw(&self.serving, lines.len());
        self.decide(&lines, draw, b"\n", &mut text, &mut timing);
        if !text.is_empty() {
            text.push(b'\n');
        }
        text.into()
    }
}

/// Rows that were read.
struct Read<'b> {
    records: Vec<Record<'b>>,
    inputs: Vec<Bytes>,
    /// For each row, in order: `None` is among the records.
    problems: Vec<Option<Problem>>,
}

/// Waits until the decisions on `count` records are kept. What could not be recorded is not answered: all of them have that problem then.
fn keep(
    count: usize,
    decided: Result<engine::Batch, engine::Error>,
    decisions: &mut Vec<Result<Decision, Problem>>,
    timing: &mut Timing,
) {
    let kept = decided.and_then(|batch| {
        let waiting = Instant::now();
        batch.receipt.kept_blocking()?;
        timing.ledger += waiting.elapsed();
        timing.stages.encode += batch.stages.encode;
        timing.stages.infer += batch.stages.infer;
        timing.stages.policy += batch.stages.policy;
        Ok(batch.decisions)
    });
    match kept.map_err(Problem::from) {
        Ok(batch) => decisions.extend(batch.into_iter().map(|decision| decision.map_err(Problem::from))),
        Err(problem) => decisions.extend((0..count).map(|_| Err(problem.clone()))),
    }
}

/// A budget is spent over rows that are all known, by what each is expected to bring.
fn may_have_budget(serving: &Serving, media_type: &str) -> Result<(), Problem> {
    if media_type != extract::JSON {
        return Err(Problem::new(
            Code::UnsupportedMediaType,
            "a budget is spent over all rows at once, and a stream is answered before its end is known: send an array as application/json",
        ));
    }
    if !serving.policy.has_value_at_stake() {
        let known = "no budget: the policy in force has no value_at_stake to spend one by";
        return Err(Problem::invalid(vec![Violation::new("/budget", violation::Code::UnknownName, known)]));
    }
    if serving.has_experiments() {
        let treated = "no budget: an experiment runs on this model, and a budget over many customers would treat its groups in another way";
        return Err(Problem::invalid(vec![Violation::new("/budget", violation::Code::UnknownName, treated)]));
    }
    Ok(())
}

/// Items are plain data: writing them into memory cannot fail.
fn write(text: &mut Vec<u8>, item: &Item) {
    let _ = serde_json::to_writer(text, item);
}
