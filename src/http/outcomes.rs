//! `POST /v1/outcomes`: what customers did after decisions, one or many. Each is answered in its place; what is on record already is
//! said to be. All work is done off the threads that answer customers.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{HeaderMap, Response};

use super::deadline::{self, Caller, Deadline};
use super::problem::{self, Code, Problem};
use super::trace::REQUEST_ID;
use super::wire_batch::Items;
use super::wire_problem;
use super::wire_records::{OutcomeItem, OutcomeReceipt, Outcomes, OutcomesAnswer};
use super::{Shared, blocking_for, decisions, extract, incoming, json};
use crate::domain::outcome::Outcome;
use crate::ledger::{self, Fate};

/// Outcomes that are written as one group: few, as decisions that come meanwhile wait behind them.
const GROUP_ROWS: usize = 128;

/// Record what customers did after decisions
///
/// One outcome is an object, many are an array, where each is answered in its place: it is on record, or it has a problem of its
/// own. An outcome that is on record already is answered with its id and `"recorded": false`, so that all can be sent again
/// when there was no answer. Outcomes may come late and in any order; a decision may have 256.
#[utoipa::path(
    post, path = "/v1/outcomes", tag = "records", operation_id = "record_outcomes", params(deadline::Stated),
    request_body(content = Outcomes, content_type = "application/json"),
    responses(
        (status = 200, description = "The outcome is on record; for an array, an answer per row, in order", body = OutcomesAnswer, content_type = "application/json"),
        (status = 404, description = "No such decision is on record, or the ledger is off", body = problem::Document, content_type = "application/problem+json"),
        (status = 409, description = "Another outcome is on record by the `source_id`, or the decision has as many outcomes as it may", body = problem::Document, content_type = "application/problem+json"),
        (status = 422, description = "The outcome breaks the contract; every violation is told", body = problem::Document, content_type = "application/problem+json"),
        wire_problem::Refused,
    )
)]
pub(super) async fn record(
    State(shared): State<Shared>,
    headers: HeaderMap,
    deadline: Deadline,
    body: Body,
) -> Result<Response<Body>, Problem> {
    shared.engine.needs_ledger()?;
    extract::media_type(&headers, &[extract::JSON])?;
    let body = incoming::whole(&shared, &headers, body, deadline).await?;
    // Behind the body, so that a slow one keeps nobody from what is on record.
    let permit = decisions::permit(&shared)?;
    // The outermost layer made sure that there is one.
    let request_id = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or("-").to_owned();
    let text = blocking_for(deadline, move |caller| {
        let _permit = permit;
        let job = Job { shared, request_id };
        let first = body.iter().find(|byte| !b" \t\r\n".contains(byte));
        if first == Some(&b'[') { job.many(&body, caller) } else { job.one(&body) }
    })
    .await??;
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(extract::JSON));
    Ok(response)
}

struct Job {
    shared: Shared,
    request_id: String,
}

impl Job {
    fn one(&self, body: &Bytes) -> Result<Vec<u8>, Problem> {
        let outcome = self.read(body)?;
        let fates = self.shared.engine.record_outcomes(std::slice::from_ref(&outcome))?;
        let fate = fates.first().ok_or_else(unanswered)?;
        let answer = OutcomeItem::Receipt(receipt(&outcome, *fate)?);
        // Plain data: writing it into memory cannot fail.
        Ok(serde_json::to_vec(&answer).unwrap_or_default())
    }

    /// Each row in its place. When the ledger fails, or the caller does not wait any more, the whole request does: sent again, what is on
    /// record by then is told as such.
    fn many(&self, body: &Bytes, caller: &Caller) -> Result<Vec<u8>, Problem> {
        let rows_max = self.shared.limits.batch_rows_max;
        let too_many = || Problem::new(Code::TooManyRows, format!("an array may have {rows_max} outcomes"));
        let rows = json::rows(body, rows_max)?.ok_or_else(too_many)?;
        let mut items = Items::array(rows.len() * 80);
        for rows in rows.chunks(GROUP_ROWS) {
            caller.waits()?;
            let mut outcomes = Vec::with_capacity(rows.len());
            // In the order of the rows: `None` stands for the next outcome.
            let mut problems = Vec::with_capacity(rows.len());
            for row in rows {
                match self.read(row.get().as_bytes()) {
                    Ok(outcome) => {
                        outcomes.push(outcome);
                        problems.push(None);
                    }
                    Err(problem) => problems.push(Some(problem)),
                }
            }
            let fates = self.shared.engine.record_outcomes(&outcomes)?;
            let mut answers = outcomes.iter().zip(fates).map(|(outcome, fate)| receipt(outcome, fate));
            for problem in problems {
                let answer = match problem {
                    Some(problem) => Err(problem),
                    None => answers.next().unwrap_or_else(|| Err(unanswered())),
                };
                match answer {
                    Ok(receipt) => items.push(&OutcomeItem::Receipt(receipt)),
                    Err(problem) => {
                        problem.note(&self.request_id, self.shared.engine.metrics());
                        items.push(&OutcomeItem::Problem(problem.document(&self.request_id)));
                    }
                }
            }
        }
        Ok(items.end())
    }

    fn read(&self, row: &[u8]) -> Result<Outcome, Problem> {
        let limits = &self.shared.limits;
        if row.len() > limits.body_bytes_max {
            let bytes_max = limits.body_bytes_max;
            return Err(Problem::new(Code::BodyTooLarge, format!("an outcome may have {bytes_max} bytes")));
        }
        let value = json::parse(row, limits.depth_max)?;
        let time = |text: &str| text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond);
        Outcome::read(value, self.shared.engine.now_ms() as i64, time).map_err(Problem::invalid)
    }
}

/// The answer to `outcome`, by what became of it.
fn receipt(outcome: &Outcome, fate: Fate) -> Result<OutcomeReceipt, Problem> {
    match fate {
        Fate::Recorded(id) => Ok(OutcomeReceipt { outcome_id: id.to_string(), recorded: true }),
        Fate::Duplicate(id) => Ok(OutcomeReceipt { outcome_id: id.to_string(), recorded: false }),
        Fate::Conflict => Err(Problem::new(
            Code::OutcomeConflict,
            "an outcome of this decision with the same source_id and other facts is on record; nothing was recorded",
        )),
        Fate::UnknownDecision => {
            Err(Problem::new(Code::UnknownDecision, "no decision with this id is on record, so nothing can follow it"))
        }
        Fate::TooEarly(decided_at_ms) => Err(Problem::invalid(outcome.too_early(decided_at_ms).into_iter().collect())),
        Fate::TooMany => {
            let max = ledger::OF_DECISION_MAX;
            Err(Problem::new(Code::TooManyOutcomes, format!("a decision may have {max} outcomes")))
        }
    }
}

fn unanswered() -> Problem {
    Problem::new(Code::Internal, "the outcome was not answered").caused_by("fewer answers than outcomes")
}
