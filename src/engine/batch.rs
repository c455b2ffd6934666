//! Deciding on many records: scored as real batches, concluded row by row, recorded as one group. What is decided for one is in `decide`.

use std::time::Instant;

use bytes::Bytes;

use super::account::Reserved;
use super::decide::{Stages, add_uplifts, encode};
use super::reasons::explain;
use super::serving::{Scored, Serving, Who};
use super::treatment::Choosing;
use super::{Engine, Error};
use crate::domain::decision::{Arm, Decision};
use crate::domain::policy::condition::Values;
use crate::domain::record::Record;
use crate::domain::score::Score;
use crate::ledger::Receipt;
use crate::model;

/// Rows that are scored as one run of a graph: enough to gain from it, few enough to stay in the cache.
pub(super) const BATCH_ROWS: usize = 512;

/// Decisions on many records.
#[derive(Debug)]
pub struct Batch {
    /// One for each record, in its place.
    pub decisions: Vec<Result<Decision, Error>>,
    /// How long all of them took.
    pub stages: Stages,
    /// To be kept before any of them is answered.
    pub receipt: Receipt,
}

/// The rows of an array that the monitors count: a share of all alike, since the first ones may be the least alike the others. The same
/// for all chunks of the array.
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    champion: f64,
    challenger: f64,
}

impl Draw {
    fn takes(self, arm: Arm) -> bool {
        let share = match arm {
            Arm::Champion => self.champion,
            Arm::Challenger => self.challenger,
        };
        share >= 1.0 || fastrand::f64() < share
    }
}

/// Records that are scored.
pub(super) struct Chunk<'r> {
    /// The champion's rows, row-major.
    rows: Vec<f32>,
    whos: Vec<Option<Who>>,
    pub(super) scored: Vec<Result<(Scored, Values<'r>), Error>>,
    /// When they were.
    pub(super) now_ms: u64,
}

/// Decisions that are not recorded yet.
#[derive(Default)]
pub(super) struct Draft {
    decisions: Vec<Result<Decision, Error>>,
    reserved: Vec<Reserved>,
    stages: Stages,
}

impl Draft {
    /// Nothing yet, after what took as long as `stages` say.
    pub(super) fn after(stages: Stages) -> Self {
        Self { stages, ..Self::default() }
    }
}

impl Engine {
    /// What the monitors count of an array of `rows`, as many as they have places for now. To be asked once for all of its chunks.
    pub fn draw(&self, serving: &Serving, rows: usize) -> Draw {
        let now_ms = self.now_ms();
        let share = |arm| serving.candidate(arm).monitor.share(now_ms, rows);
        Draw { champion: share(Arm::Champion), challenger: share(Arm::Challenger) }
    }

    /// Decides on many records, each read from its place of `inputs`, scored as real batches; each is answered in its place,
    /// whatever the others are. Their receipt is for all of them. `draw` is that of the array that they are a part of.
    ///
    /// Errors: [`Error::Ledger`] when they cannot be recorded.
    pub fn decide_batch(
        &self,
        serving: &Serving,
        records: &[Record],
        inputs: &[Bytes],
        addressed: Option<Arm>,
        draw: Draw,
    ) -> Result<Batch, Error> {
        let mut batch = Draft::default();
        for chunk in records.chunks(BATCH_ROWS) {
            let scored = self.score_chunk(serving, chunk, addressed, &mut batch.stages);
            self.conclude(serving, chunk, scored, addressed, |_| Choosing::Alone, &mut batch);
        }
        self.record_batch(serving, records, inputs, batch, draw)
    }

    /// Records what was decided on `records`: the decisions with what is to be kept before they are answered.
    pub(super) fn record_batch(
        &self,
        serving: &Serving,
        records: &[Record],
        inputs: &[Bytes],
        batch: Draft,
        draw: Draw,
    ) -> Result<Batch, Error> {
        let Draft { decisions, reserved, stages } = batch;
        let receipt = match &self.ledger {
            Some(ledger) => {
                let rows = decisions.iter().zip(records).zip(inputs);
                ledger.record_all(rows.filter_map(|((decision, record), inputs)| {
                    Some((decision.as_ref().ok()?, record.customer_id.as_ref(), inputs.clone()))
                }))?
            }
            None => Receipt::done(),
        };
        reserved.into_iter().for_each(Reserved::keep);
        // The second of its places is the one in which a row is counted: since it was decided on others may have begun the next.
        let now_ms = self.now_ms();
        for (decision, record) in decisions.iter().zip(records) {
            let Ok(decision) = decision else { continue };
            serving.count(decision);
            if draw.takes(decision.arm) {
                let (score, age_ms) = (decision.score.value(), decision.features_age_ms);
                serving.candidate(decision.arm).monitor.observe(now_ms, record, score, age_ms);
            }
        }
        Ok(Batch { decisions, stages, receipt })
    }

    /// The scores of at most [`BATCH_ROWS`] records.
    pub(super) fn score_chunk<'r>(
        &self,
        serving: &'r Serving,
        records: &'r [Record],
        addressed: Option<Arm>,
        stages: &mut Stages,
    ) -> Chunk<'r> {
        let begun = Instant::now();
        let columns = serving.model.schema().columns();
        let mut rows = vec![0.0; records.len() * columns];
        let encoded: Vec<Result<Values, Error>> = records
            .iter()
            .zip(rows.chunks_exact_mut(columns))
            .map(|(record, row)| encode(serving, record, row).map_err(Error::Invalid))
            .collect();
        stages.encode += begun.elapsed();
        let begun = Instant::now();
        // Few are the challenger's, and each may have to fall back by itself: those go one by one.
        let whos: Vec<Option<Who>> = records
            .iter()
            .zip(&encoded)
            .map(|(record, values)| serving.who(&record.customer_id, values.as_ref().ok()?))
            .collect();
        let is_champions = |at: &usize| serving.arm_of(whos[*at], addressed) == Arm::Champion;
        let of_champion: Vec<usize> =
            (0..records.len()).filter(|at| encoded[*at].is_ok() && is_champions(at)).collect();
        let mut scores = score_rows(serving, &rows, &of_champion).into_iter();
        let mut of_champion = of_champion.into_iter().peekable();
        let scored: Vec<Result<(Scored, Values), Error>> = encoded
            .into_iter()
            .zip(records.iter().zip(rows.chunks_exact(columns)))
            .enumerate()
            .map(|(at, (encoded, (record, row)))| {
                let mut values = encoded?;
                let is_champions = of_champion.next_if_eq(&at).is_some();
                let known = is_champions.then(|| scores.next().unwrap_or(Err(model::Error::NotAProbability)));
                let scored = self.score(serving, record, row, whos[at], addressed, known)?;
                add_uplifts(serving, &mut values, &scored);
                Ok((scored, values))
            })
            .collect();
        stages.infer += begun.elapsed();
        Chunk { rows, whos, scored, now_ms: self.now_ms() }
    }

    /// Turns scores into decisions. `choosing` says how the choice for a row is made, by its place.
    pub(super) fn conclude(
        &self,
        serving: &Serving,
        records: &[Record],
        chunk: Chunk,
        addressed: Option<Arm>,
        mut choosing: impl FnMut(usize) -> Choosing,
        batch: &mut Draft,
    ) {
        let begun = Instant::now();
        let Chunk { rows, whos, scored, now_ms } = chunk;
        let rows = rows.chunks_exact(serving.model.schema().columns());
        for (at, (((scored, record), row), who)) in scored.into_iter().zip(records).zip(rows).zip(whos).enumerate() {
            if let (Ok(_), Some((trial, who))) = (&scored, serving.shadow(addressed).zip(who)) {
                self.shade(trial, who, record, row.into());
            }
            batch.decisions.push(scored.and_then(|(scored, values)| {
                let (mut decision, money) = self.decision(serving, record, &values, &scored, now_ms, choosing(at));
                explain(serving, record, row, &mut decision)?;
                batch.reserved.extend(money);
                Ok(decision)
            }));
        }
        batch.stages.policy += begun.elapsed();
    }
}

/// The champion's scores of the rows at `places`, as one run; where that fails, row by row, so that one bad row is one failure.
fn score_rows(serving: &Serving, rows: &[f32], places: &[usize]) -> Vec<Result<Score, model::Error>> {
    if places.is_empty() {
        return Vec::new();
    }
    let columns = serving.model.schema().columns();
    let row = |at: usize| &rows[at * columns..(at + 1) * columns];
    let run = match places.len() * columns == rows.len() {
        true => serving.model.score_batch(rows),
        false => serving.model.score_batch(&places.iter().flat_map(|at| row(*at)).copied().collect::<Vec<f32>>()),
    };
    match run {
        Ok(scores) => scores.into_iter().map(|score| score.ok_or(model::Error::NotAProbability)).collect(),
        Err(_) => places.iter().map(|at| serving.model.score(row(*at))).collect(),
    }
}
