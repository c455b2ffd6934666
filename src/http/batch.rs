//! `POST /v1/score/batch`: many customers, as a JSON array, as NDJSON, or in columns (`arrow`). The work is done on low-priority threads
//! of its own, so that a batch never stands in the way of a single customer.

use std::collections::VecDeque;
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

use super::deadline::{self, Caller, Deadline};
use super::incoming::{self, Incoming, Part};
use super::layers::Timing;
use super::lines::{Lines, row_too_large};
use super::problem::{self, Code, Problem};
use super::rows::{AHEAD, Decided, ROWS, Read};
use super::trace::REQUEST_ID;
use super::wire::{self, Scratch};
use super::wire_batch::{self, Item, Items};
use super::wire_problem;
use super::{Shared, arrow, blocking_for, extract, json};
use crate::domain::decision::{Arm, Decision};
use crate::domain::money::Money;
use crate::domain::record::Record;
use crate::domain::violation::{self, Violation};
use crate::engine::{Draw, Serving};

/// Score many customers with the default model
///
/// Each row is answered in its place: a decision, or its own problem. `application/json` is an array that is answered as a
/// whole; `application/x-ndjson` is one customer a line, answered line by line while the request still comes in. At most 100 rows of a
/// batch or stream may ask for counterfactuals; each other that does is answered with a problem at `/counterfactuals`.
///
/// `application/vnd.apache.arrow.stream` is an Arrow IPC stream, answered by another: columns `customer_id`, one for each feature by
/// its name, `context.NAME` and `context.audit.NAME`. Answers have `decision_id`, `decided_at`, `score`, `tier`, `action`, `cost`,
/// `currency`, `expected_effectiveness`, `expected_value`, `uplift`, `value_at_stake`, `holdout`, `arm`, `model_version`, `policy_version`, and
/// `problem`: the document of the row's own problem, as JSON, where it has one; then all others are null. Reasons and counterfactuals
/// cannot be asked for.
#[utoipa::path(
    post, path = "/v1/score/batch", tag = "score", operation_id = "score_batch",
    params(extract::AskedOfMany, deadline::Stated, extract::Addressed),
    request_body(content((Vec<wire::Customer> = "application/json"), (String = "application/x-ndjson"), (wire_batch::Columns = "application/vnd.apache.arrow.stream"))),
    responses(
        (status = 200, description = "An answer per row, in order", content((wire_batch::Batch = "application/json"), (String = "application/x-ndjson"), (wire_batch::Columns = "application/vnd.apache.arrow.stream"))),
        (status = 422, description = "The body is not an array", body = problem::Document, content_type = "application/problem+json"),
        wire_problem::Refused,
        wire_problem::Addressing,
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
    params(("model" = String, Path, description = "The name of a model in service"), extract::AskedOfMany, deadline::Stated, extract::Addressed),
    request_body(content((Vec<wire::Customer> = "application/json"), (String = "application/x-ndjson"), (wire_batch::Columns = "application/vnd.apache.arrow.stream"))),
    responses(
        (status = 200, description = "An answer per row, in order", content((wire_batch::Batch = "application/json"), (String = "application/x-ndjson"), (wire_batch::Columns = "application/vnd.apache.arrow.stream"))),
        (status = 404, description = "No such model is in service", body = problem::Document, content_type = "application/problem+json"),
        (status = 422, description = "The body is not an array", body = problem::Document, content_type = "application/problem+json"),
        wire_problem::Refused,
        wire_problem::Addressing,
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
    let media_type = extract::media_type(&headers, &[extract::JSON, extract::NDJSON, extract::ARROW])?;
    let addressed = extract::arm(&shared, &headers)?;
    let (wanted, budget) = extract::wanted_of_many(asked)?;
    if budget.is_some() {
        may_have_budget(&serving, media_type)?;
    }
    if media_type == extract::ARROW {
        extract::may_be_in_columns(wanted)?;
    }
    // The outermost layer made sure that there is one.
    let request_id = headers.get(REQUEST_ID).cloned().unwrap_or_else(|| HeaderValue::from_static("-"));
    let job = Job { request_id, shared, serving, addressed, wanted, asking: Arc::default() };
    let mut response = if media_type == extract::NDJSON {
        Response::new(job.stream(body, deadline)?)
    } else if media_type == extract::ARROW {
        Response::new(arrow::stream(job, &headers, body, deadline).await?)
    } else {
        let body = incoming::whole(&job.shared, &headers, body, deadline).await?;
        let turn = deadline.within(job.shared.turn()).await?;
        let (text, timing) = blocking_for(deadline, move |caller| {
            let _turn = turn;
            job.array(&body, budget, caller)
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
pub(super) struct Job {
    request_id: HeaderValue,
    pub(super) shared: Shared,
    pub(super) serving: Arc<Serving>,
    pub(super) addressed: Option<Arm>,
    /// What the address asks for.
    wanted: extract::Wanted,
    /// Rows that asked for counterfactuals so far.
    asking: Arc<AtomicUsize>,
}

impl Job {
    /// The answer to a whole JSON array.
    fn array(&self, body: &Bytes, budget: Option<Money>, caller: &Caller) -> Result<(Vec<u8>, Timing), Problem> {
        let begun = Instant::now();
        let rows_max = self.shared.limits.batch_rows_max;
        let too_many = || {
            let detail = format!("a batch may have {rows_max} rows; send more as NDJSON");
            Problem::new(Code::TooManyRows, detail)
        };
        let rows = json::rows(body, rows_max)?.ok_or_else(too_many)?;
        let mut timing = Timing { parse: begun.elapsed(), ..Timing::default() };
        let mut items = Items::array(rows.len() * 448);
        let bytes = |row: &&RawValue| body.slice_ref(row.get().as_bytes());
        if let Some(budget) = budget {
            let rows: Vec<Bytes> = rows.iter().map(bytes).collect();
            let allocation = self.decide_within(&rows, budget, caller, &mut items, &mut timing)?;
            return Ok((items.end_with(Some(&allocation)), timing));
        }
        let draw = self.shared.engine.draw(&self.serving, rows.len());
        let mut ahead = VecDeque::with_capacity(AHEAD + 1);
        for chunk in rows.chunks(ROWS) {
            caller.is_there()?;
            ahead.push_back(match caller.waits() {
                Ok(()) => self.decide(chunk.iter().map(bytes), draw, &mut timing),
                // What was decided so far is on record, and answered.
                Err(late) => Decided::refused(&late, chunk.len()),
            });
            if ahead.len() > AHEAD {
                self.write_kept(ahead.pop_front(), &mut items, &mut timing);
            }
        }
        while !ahead.is_empty() {
            self.write_kept(ahead.pop_front(), &mut items, &mut timing);
        }
        Ok((items.end(), timing))
    }

    /// Decides on `rows`; what became of them can be written once it is recorded.
    fn decide(&self, rows: impl Iterator<Item = Bytes>, draw: Draw, timing: &mut Timing) -> Decided {
        let rows: Vec<Bytes> = rows.collect();
        self.read(&rows, timing).decide(&self.shared.engine, &self.serving, self.addressed, draw)
    }

    /// Waits until `decided` is recorded, and writes an item for each row.
    fn write_kept(&self, decided: Option<Decided>, items: &mut Items, timing: &mut Timing) {
        let mut scratch = Scratch::default();
        for row in decided.into_iter().flat_map(|decided| decided.kept(timing)) {
            self.write_row(row, &mut scratch, items);
        }
    }

    /// The same for rows that share a budget. Nothing of them is on record before all are decided on, so until then it can be left.
    fn decide_within(
        &self,
        rows: &[Bytes],
        budget: Money,
        caller: &Caller,
        items: &mut Items,
        timing: &mut Timing,
    ) -> Result<wire_batch::Allocation, Problem> {
        let read = self.read(rows, timing);
        let (engine, waits) = (&self.shared.engine, || caller.waits());
        let allotted =
            engine.decide_within(&self.serving, &read.records, &read.inputs, self.addressed, budget, waits)?;
        let answers: Vec<Result<Decision, Problem>> = read.decided(allotted.parts).kept(timing).collect();
        let chosen = answers.iter().flatten().map(|decision| &decision.choice).filter(|choice| choice.allocated);
        let allocation = wire_batch::Allocation::new(&self.serving.policy, budget, allotted.value_max, chosen);
        let mut scratch = Scratch::default();
        for answer in answers {
            self.write_row(answer, &mut scratch, items);
        }
        Ok(allocation)
    }

    fn read<'b>(&self, rows: &'b [Bytes], timing: &mut Timing) -> Read<'b> {
        let begun = Instant::now();
        let mut read = Read::default();
        for row in rows {
            read.push(self.record(row).map(|record| (record, row.clone())));
        }
        timing.parse += begun.elapsed();
        read
    }

    /// Writes what became of a row.
    fn write_row(&self, row: Result<Decision, Problem>, scratch: &mut Scratch, items: &mut Items) {
        match row {
            Ok(decision) => items.push(&Item::Decision(wire::Decision::new(&decision, scratch))),
            Err(problem) => items.push(&self.noted(&problem)),
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
                "at most {COUNTERFACTUAL_ROWS_MAX} rows of a batch or stream with counterfactuals; send this one without, or alone to /v1/score"
            );
            let violation = Violation::new("/counterfactuals", violation::Code::NotAllowed, expected);
            return Err(Problem::invalid(vec![violation]));
        }
        Ok(record)
    }

    /// The document of `problem`, which is counted.
    pub(super) fn noted<'p>(&'p self, problem: &'p Problem) -> Item<'p> {
        let request_id = self.request_id.to_str().unwrap_or_default();
        problem.note(request_id, self.shared.engine.metrics());
        Item::Problem(problem.document(request_id))
    }

    /// The answer to NDJSON: as many whole lines as have come are decided on, written, and only then are more read, so a
    /// reader that is slow slows its own sender and nothing grows.
    fn stream(self, body: Body, deadline: Deadline) -> Result<Body, Problem> {
        let lines = Lines::new(Incoming::new(self.shared.intake.clone(), body)?);
        let answers = stream::unfold(Some((self, lines)), move |state| async move {
            let (job, mut lines) = state?;
            let answered = match deadline.within(lines.next(&job.shared.limits)).await {
                Ok(None) => return None,
                Ok(Some(chunk)) => job.chunk(chunk, deadline).await,
                Err(problem) => Err(problem),
            };
            match answered {
                Ok(text) => {
                    let text = job.shared.answering(text);
                    Some((text, Some((job, lines))))
                }
                // The last line of an answer that has begun and cannot go on.
                Err(problem) => {
                    let mut items = Items::lines(0);
                    items.push(&job.noted(&problem));
                    Some((items.end().into(), None))
                }
            }
        });
        Ok(Body::from_stream(answers.map(Ok::<_, Infallible>)))
    }

    /// The answer to whole lines. They have a turn of their own, and the stream has none while it waits for the next ones: whoever sends
    /// slowly keeps nobody out. Work that goes on when its caller has gone keeps its turn until it ends.
    async fn chunk(&self, chunk: Part, deadline: Deadline) -> Result<Bytes, Problem> {
        let turn = deadline.within(self.shared.turn_in_stream()).await?;
        // A stream has no end: it must not hold on to a model that has lost its customers.
        let worker = self.of_now();
        let work = blocking_for(deadline, move |_| {
            let _turn = turn;
            worker.lines(&chunk)
        });
        let panicked = |_| {
            self.shared.engine.metrics().panicked();
            Err(Problem::new(Code::Internal, "the rows could not be answered"))
        };
        AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(panicked)
    }

    /// The same with what is in service now.
    pub(super) fn of_now(&self) -> Self {
        let serving = self.shared.engine.serving(Some(&self.serving.model.id().name));
        Self { serving: serving.unwrap_or_else(|_| self.serving.clone()), ..self.clone() }
    }

    fn lines(&self, chunk: &Bytes) -> Bytes {
        let mut items = Items::lines(chunk.len() + 448);
        let mut timing = Timing::default();
        let lines = chunk.split(|byte| *byte == b'\n').filter(|line| !line.iter().all(|byte| b" \t\r".contains(byte)));
        let lines: Vec<Bytes> = lines.map(|line| chunk.slice_ref(line)).collect();
        let draw = self.shared.engine.draw(&self.serving, lines.len());
        let decided = self.decide(lines.into_iter(), draw, &mut timing);
        self.write_kept(Some(decided), &mut items, &mut timing);
        items.end().into()
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
    let not_allowed =
        |expected| Err(Problem::invalid(vec![Violation::new("/budget", violation::Code::NotAllowed, expected)]));
    if !serving.policy.has_value_at_stake() {
        return not_allowed("a policy in force with value_at_stake, by which a budget is spent");
    }
    if serving.has_experiments() {
        return not_allowed(
            "a model without a running experiment, whose groups a budget over many customers would treat in another way",
        );
    }
    Ok(())
}
