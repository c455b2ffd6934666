//! Batches in columns: an Arrow IPC stream is read, decided on and answered by another, a record batch at a time. What is decided, and how
//! it is recorded, is as of any other batch.

mod answers;
mod columns;
mod messages;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use futures_util::{FutureExt, stream};

use super::batch::Job;
use super::deadline::{Caller, Deadline};
use super::incoming::Incoming;
use super::layers::Timing;
use super::lines::row_too_large;
use super::problem::{Code, Problem};
use super::rows::{AHEAD, Decided, ROWS, Read};
use super::{blocking, extract, json};
use answers::Answers;
use columns::{Columns, Table};
use messages::{Decoder, Message, Messages, malformed};

/// The answer to a stream of columns: its record batches are decided on and answered before more is read, so a reader that is slow
/// slows its own sender and nothing grows. A body that says its length and is no longer than a whole batch may be is read first: many a
/// client only reads once it has sent everything.
///
/// Errors: what is wrong with the schema. What is wrong later is told as the problem of one more row, which ends the answer.
pub(super) async fn stream(job: Job, headers: &HeaderMap, body: Body, deadline: Deadline) -> Result<Body, Problem> {
    let limits = &job.shared.limits;
    let mut incoming = Incoming::new(job.shared.intake.clone(), body)?;
    if extract::stated_length(headers).is_some_and(|length| length <= limits.batch_body_bytes_max) {
        deadline.within(incoming.fill(limits)).await?;
    }
    let mut messages = Messages::new(incoming);
    let first =
        deadline.within(messages.next(limits)).await?.ok_or_else(|| malformed(&"it is empty: expected a schema"))?;
    let decoder = Decoder::new(&first)?;
    let columns = Columns::new(decoder.schema(), job.serving.model.card()).map_err(Problem::invalid)?;
    let answers = Answers::new().map_err(|error| malformed(&error))?;
    let work = Work { decoder, columns: Arc::new(columns), answers };
    let state = State { job, messages, work };
    Ok(Body::from_stream(stream::unfold(Some(state), move |state| async move {
        let mut state = state?;
        let next = async {
            let Some(message) = state.messages.next(&state.job.shared.limits).await? else { return Ok(None) };
            Ok(Some((message, state.job.shared.turn_in_stream().await?)))
        };
        let problem = match deadline.within(next).await {
            Ok(Some((mut message, turn))) => {
                // A stream has no end: it must not hold on to a model that has lost its customers.
                let (job, mut work) = (state.job.of_now(), state.work);
                let (caller, presence) = Caller::new(deadline);
                let answering = blocking(move || {
                    // Work that goes on when its caller has gone keeps its turn until it ends.
                    let _turn = turn;
                    (work.answer(&job, &mut message, &caller), work)
                });
                let answered = AssertUnwindSafe(answering).catch_unwind().await;
                drop(presence);
                if answered.is_err() {
                    state.job.shared.engine.metrics().panicked();
                }
                // The answer has begun, and what writes it is gone: all that can be done about a panic is to end it early.
                let Ok(Ok((answered, work))) = answered else { return Some((Err(failed("a panic")), None)) };
                state.work = work;
                match answered {
                    Ok(text) => {
                        return Some((Ok(state.job.shared.answering(text)), Some(state)));
                    }
                    Err(problem) => Some(problem),
                }
            }
            Ok(None) => None,
            Err(problem) => Some(problem),
        };
        let told = match problem {
            Some(problem) => state.work.answers.write(&state.job, std::iter::once(Err(problem))),
            None => Ok(()),
        };
        Some((told.and_then(|()| state.work.answers.end()).map_err(failed), None))
    })))
}

fn failed(cause: impl std::fmt::Display) -> io::Error {
    io::Error::other(cause.to_string())
}

/// A stream on its way.
struct State {
    job: Job,
    messages: Messages,
    work: Work,
}

/// What messages are answered with, on the threads for long work.
struct Work {
    decoder: Decoder,
    columns: Arc<Columns>,
    answers: Answers,
}

impl Work {
    /// The answer to a message: record batches of at most [`ROWS`] rows, or nothing to a dictionary.
    ///
    /// Errors: a message that cannot be read.
    fn answer(&mut self, job: &Job, message: &mut Message, caller: &Caller) -> Result<Bytes, Problem> {
        let Some(batch) = self.decoder.rows(message, &job.shared.limits)? else { return Ok(Bytes::new()) };
        let columns = self.columns.clone();
        let table = columns.table(&batch);
        let engine = &job.shared.engine;
        let draw = engine.draw(&job.serving, batch.num_rows());
        let mut timing = Timing::default();
        let mut ahead = VecDeque::with_capacity(AHEAD + 1);
        let (mut kept, bytes_max) = (0, job.shared.limits.batch_body_bytes_max);
        for from in (0..batch.num_rows()).step_by(ROWS) {
            let rows = from..batch.num_rows().min(from + ROWS);
            caller.is_there()?;
            ahead.push_back(match caller.waits() {
                Ok(()) => {
                    let (read, bytes) = read(job, &table, rows);
                    kept += bytes;
                    if kept > bytes_max {
                        let detail = format!("the rows of a record batch may have {bytes_max} bytes as JSON, which is what is recorded of them");
                        return Err(Problem::new(Code::BodyTooLarge, detail));
                    }
                    read.decide(engine, &job.serving, job.addressed, draw)
                }
                // What was decided so far is on record, and answered.
                Err(late) => Decided::refused(&late, rows.len()),
            });
            if ahead.len() > AHEAD
                && let Some(decided) = ahead.pop_front()
            {
                self.write(job, decided, &mut timing)?;
            }
        }
        for decided in ahead {
            self.write(job, decided, &mut timing)?;
        }
        Ok(self.answers.take())
    }

    fn write(&mut self, job: &Job, decided: Decided, timing: &mut Timing) -> Result<(), Problem> {
        let cannot = |error| Problem::new(Code::Internal, "the answer could not be written").caused_by(error);
        self.answers.write(job, decided.kept(timing)).map_err(cannot)
    }
}

/// The records of `rows`, each with the JSON that is kept of it where anything is, and how long that is in all.
fn read<'b>(job: &Job, table: &'b Table, rows: Range<usize>) -> (Read<'b>, usize) {
    let engine = &job.shared.engine;
    let is_recorded = engine.needs_ledger().is_ok();
    let row_bytes_max = job.shared.limits.body_bytes_max;
    let mut text = Vec::new();
    let mut ends = Vec::with_capacity(rows.len());
    let mut records = Vec::with_capacity(rows.len());
    for row in rows {
        let mut record = table.record(row, |record| engine.violations(&job.serving, record)).map_err(Problem::invalid);
        let begin = text.len();
        if let (Ok(known), true) = (&record, is_recorded) {
            json::write(known, &mut text);
            if text.len() - begin > row_bytes_max {
                text.truncate(begin);
                record = Err(row_too_large(row_bytes_max));
            }
        }
        ends.push(text.len());
        records.push(record);
    }
    // One piece of memory for all of them.
    let text = Bytes::from(text);
    let bytes = text.len();
    let mut read = Read::default();
    let mut begin = 0;
    for (record, end) in records.into_iter().zip(ends) {
        read.push(record.map(|record| (record, text.slice(begin..end))));
        begin = end;
    }
    (read, bytes)
}
