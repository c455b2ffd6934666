//! Rows of a batch on their way: read, decided on together, recorded, and answered each in its place. What they were written in is not
//! known here.

use std::time::Instant;

use axum::body::Bytes;

use super::layers::Timing;
use super::problem::{Code, Problem};
use crate::domain::decision::{Arm, Decision};
use crate::domain::record::Record;
use crate::engine::{self, Draw, Engine, Serving};

/// Rows that are decided on at a time.
pub(super) const ROWS: usize = 512;
/// Chunks of one batch that may wait for their record while the next is decided on: so the writer of the ledger has work while we do
/// ours. Each takes places of its queue.
pub(super) const AHEAD: usize = 1;

/// Rows that were read.
#[derive(Default)]
pub(super) struct Read<'b> {
    pub(super) records: Vec<Record<'b>>,
    pub(super) inputs: Vec<Bytes>,
    /// For each row, in order: `None` is among the records.
    problems: Vec<Option<Problem>>,
}

impl<'b> Read<'b> {
    /// The next row: a record with the bytes that are kept of it, or why it is none.
    pub(super) fn push(&mut self, row: Result<(Record<'b>, Bytes), Problem>) {
        self.problems.push(match row {
            Ok((record, inputs)) => {
                self.records.push(record);
                self.inputs.push(inputs);
                None
            }
            Err(problem) => Some(problem),
        });
    }

    /// Decides on the records; what that led to is handed to the ledger and not waited for.
    pub(super) fn decide(self, engine: &Engine, serving: &Serving, addressed: Option<Arm>, draw: Draw) -> Decided {
        let batch = engine.decide_batch(serving, &self.records, &self.inputs, addressed, draw);
        Decided { problems: self.problems, parts: vec![(self.records.len(), batch)] }
    }

    /// The same, where the engine has decided already: `parts` of as many records each.
    pub(super) fn decided(self, parts: Vec<(usize, Result<engine::Batch, engine::Error>)>) -> Decided {
        Decided { problems: self.problems, parts }
    }
}

/// Rows that were decided on, and may be answered once they are recorded.
pub(super) struct Decided {
    problems: Vec<Option<Problem>>,
    parts: Vec<(usize, Result<engine::Batch, engine::Error>)>,
}

impl Decided {
    /// `count` rows that nothing was decided on, because of `problem`.
    pub(super) fn refused(problem: &Problem, count: usize) -> Self {
        Self { problems: vec![Some(problem.clone()); count], parts: Vec::new() }
    }

    /// Waits until all are recorded: for each row its decision, or its problem. What could not be recorded is not answered: all rows of
    /// that part have that problem then.
    pub(super) fn kept(self, timing: &mut Timing) -> impl Iterator<Item = Result<Decision, Problem>> + use<> {
        let mut decisions = Vec::with_capacity(self.problems.len());
        for (count, part) in self.parts {
            keep(count, part, &mut decisions, timing);
        }
        let mut decisions = decisions.into_iter();
        self.problems.into_iter().map(move |problem| {
            let unanswered =
                || Err(Problem::new(Code::Internal, "the row was not answered").caused_by("fewer decisions than rows"));
            problem.map_or_else(|| decisions.next().unwrap_or_else(unanswered), Err)
        })
    }
}

/// Waits until the decisions on `count` records are kept.
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
