//! Deciding: a record, or many, to decisions, on the thread that calls and on one snapshot of what is in service. What is in service,
//! and who answers whom, is decided elsewhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::smallvec;

use super::serving::{Candidate, Serving, Trial};
use super::shadow::Row;
use super::{Engine, Error};
use crate::domain::decision::{Arm, Decision};
use crate::domain::id::DecisionId;
use crate::domain::record::Record;
use crate::domain::score::Score;
use crate::domain::violation::Violation;
use crate::ledger::Receipt;
use crate::model;

/// Rows that are scored as one run of a graph: enough to gain from it, few enough to stay in the cache.
const BATCH_ROWS: usize = 512;

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

/// How long the stages of a decision took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stages {
    /// Record to vector.
    pub encode: Duration,
    /// Vector to score.
    pub infer: Duration,
    /// Score to tier and intervention.
    pub policy: Duration,
}

/// Who gave a score.
struct Scored {
    score: Score,
    arm: Arm,
}

impl Engine {
    /// Decides on one record, which was read from `inputs`, on the calling thread: no await, no lock held across another.
    /// The decision may be answered once its receipt is kept. `addressed` is the arm that the caller insists on.
    ///
    /// Errors: [`Error::Invalid`] with every violation; [`Error::NoChallenger`]; [`Error::Model`]; [`Error::Ledger`] when it cannot
    /// be recorded.
    pub fn decide(
        &self,
        serving: &Serving,
        record: &Record,
        inputs: &[u8],
        addressed: Option<Arm>,
    ) -> Result<(Decision, Stages, Receipt), Error> {
        let begun = Instant::now();
        let mut row: Row = smallvec![0.0; serving.model.schema().columns()];
        serving.model.schema().vectorize(&record.features, &mut row).map_err(Error::Invalid)?;
        let encoded = Instant::now();
        let Scored { score, arm } = self.score(serving, record, &row, addressed, true)?;
        let inferred = Instant::now();
        let mut decision = self.decision(serving, score, arm, self.now_ms());
        explain(serving, record, &row, &mut decision)?;
        let stages = Stages { encode: encoded - begun, infer: inferred - encoded, policy: inferred.elapsed() };
        let receipt = match &self.ledger {
            Some(ledger) => ledger.record(&decision, &record.customer_id, Bytes::copy_from_slice(inputs))?,
            None => Receipt::done(),
        };
        candidate(serving, arm).count(decision.tier);
        if let Some(trial) = serving.shadow(addressed) {
            self.shade(trial, record, row);
        }
        Ok((decision, stages, receipt))
    }

    /// The score of the arm that the customer belongs to. Of a batch no times are kept: a row of a run cannot be compared with one
    /// that runs alone. Where a challenger under trial cannot give one, the champion does: its
    /// customers are not to suffer from the trial.
    fn score(
        &self,
        serving: &Serving,
        record: &Record,
        row: &[f32],
        addressed: Option<Arm>,
        is_timed: bool,
    ) -> Result<Scored, Error> {
        let took = |begun: Instant| is_timed.then(|| begun.elapsed());
        let canary = serving.canary(addressed);
        if serving.arm_of(&record.customer_id, addressed) == Arm::Challenger {
            let challenger = serving.idle.as_ref().ok_or(Error::NoChallenger)?;
            let begun = Instant::now();
            let result = score_by(challenger, serving, record, row);
            match (result, canary) {
                (Ok(score), canary) => {
                    if let Some(trial) = canary {
                        trial.scored(Arm::Challenger, took(begun), score, trial.ticket(&record.customer_id));
                    }
                    return Ok(Scored { score, arm: Arm::Challenger });
                }
                (Err(error), None) => return Err(error),
                (Err(error), Some(trial)) => {
                    fell_back(trial, &error);
                    return Ok(Scored { score: serving.model.score(row)?, arm: Arm::Champion });
                }
            }
        }
        let begun = canary.map(|trial| (trial, Instant::now()));
        let result = serving.model.score(row);
        if let Some((trial, begun)) = begun {
            match &result {
                Ok(score) => trial.scored(Arm::Champion, took(begun), *score, trial.ticket(&record.customer_id)),
                Err(error) => trial.failed(Arm::Champion, Some(error)),
            }
        }
        Ok(Scored { score: result?, arm: Arm::Champion })
    }

    /// Gives the shadow a customer that the champion has decided on.
    fn shade(&self, trial: &Arc<Trial>, record: &Record, row: Row) {
        let own = match trial.same_row {
            true => None,
            false => {
                let schema = trial.challenger.model.schema();
                let mut own: Row = smallvec![0.0; schema.columns()];
                if schema.vectorize(&record.features, &mut own).is_err() {
                    trial.failed(Arm::Challenger, None);
                    return;
                }
                Some(own)
            }
        };
        self.shadow.offer(trial, trial.ticket(&record.customer_id), row, own);
    }

    /// Every violation of `record`, without deciding on it.
    pub fn violations(&self, serving: &Serving, record: &Record) -> Vec<Violation> {
        let mut row = vec![0.0; serving.model.schema().columns()];
        serving.model.schema().vectorize(&record.features, &mut row).err().unwrap_or_default()
    }

    /// Decides on many records, each read from its place of `inputs`, scored as real batches; each is answered in its place,
    /// whatever the others are. Their receipt is for all of them.
    ///
    /// Errors: [`Error::Ledger`] when they cannot be recorded.
    pub fn decide_batch(
        &self,
        serving: &Serving,
        records: &[Record],
        inputs: &[Bytes],
        addressed: Option<Arm>,
    ) -> Result<Batch, Error> {
        let mut decisions = Vec::with_capacity(records.len());
        let mut stages = Stages::default();
        for chunk in records.chunks(BATCH_ROWS) {
            self.decide_chunk(serving, chunk, addressed, &mut decisions, &mut stages);
        }
        let receipt = match &self.ledger {
            Some(ledger) => {
                let rows = decisions.iter().zip(records).zip(inputs);
                ledger.record_all(rows.filter_map(|((decision, record), inputs)| {
                    Some((decision.as_ref().ok()?, record.customer_id.as_ref(), inputs.clone()))
                }))?
            }
            None => Receipt::done(),
        };
        decisions.iter().flatten().for_each(|decision| candidate(serving, decision.arm).count(decision.tier));
        Ok(Batch { decisions, stages, receipt })
    }

    fn decide_chunk(
        &self,
        serving: &Serving,
        records: &[Record],
        addressed: Option<Arm>,
        decisions: &mut Vec<Result<Decision, Error>>,
        stages: &mut Stages,
    ) {
        let begun = Instant::now();
        let columns = serving.model.schema().columns();
        let mut rows = vec![0.0; records.len() * columns];
        let encoded: Vec<Result<(), Error>> = records
            .iter()
            .zip(rows.chunks_exact_mut(columns))
            .map(|(record, row)| serving.model.schema().vectorize(&record.features, row).map_err(Error::Invalid))
            .collect();
        stages.encode += begun.elapsed();
        let begun = Instant::now();
        // Few are the challenger's, and each may have to fall back by itself: those go one by one.
        let is_champions = |record: &Record| serving.arm_of(&record.customer_id, addressed) == Arm::Champion;
        let of_champion: Vec<usize> =
            (0..records.len()).filter(|at| encoded[*at].is_ok() && is_champions(&records[*at])).collect();
        let mut scores = self.score_rows(serving, records, &rows, &of_champion, addressed).into_iter();
        let mut of_champion = of_champion.into_iter().peekable();
        let scored: Vec<Result<Scored, Error>> = encoded
            .into_iter()
            .zip(records.iter().zip(rows.chunks_exact(columns)))
            .enumerate()
            .map(|(at, (encoded, (record, row)))| {
                encoded?;
                if of_champion.next_if_eq(&at).is_none() {
                    return self.score(serving, record, row, addressed, false);
                }
                let score = scores.next().unwrap_or(Err(model::Error::NotAProbability))?;
                Ok(Scored { score, arm: Arm::Champion })
            })
            .collect();
        stages.infer += begun.elapsed();
        let begun = Instant::now();
        let now_ms = self.now_ms();
        for ((scored, record), row) in scored.into_iter().zip(records).zip(rows.chunks_exact(columns)) {
            if let (Ok(_), Some(trial)) = (&scored, serving.shadow(addressed)) {
                self.shade(trial, record, row.into());
            }
            decisions.push(scored.and_then(|Scored { score, arm }| {
                let mut decision = self.decision(serving, score, arm, now_ms);
                explain(serving, record, row, &mut decision).map(|()| decision)
            }));
        }
        stages.policy += begun.elapsed();
    }

    /// The champion's scores of the rows at `places`, as one run; where that fails, row by row, so that one bad row is one failure.
    fn score_rows(
        &self,
        serving: &Serving,
        records: &[Record],
        rows: &[f32],
        places: &[usize],
        addressed: Option<Arm>,
    ) -> Vec<Result<Score, model::Error>> {
        if places.is_empty() {
            return Vec::new();
        }
        let columns = serving.model.schema().columns();
        let row = |at: usize| &rows[at * columns..(at + 1) * columns];
        let run = match places.len() * columns == rows.len() {
            true => serving.model.score_batch(rows),
            false => serving.model.score_batch(&places.iter().flat_map(|at| row(*at)).copied().collect::<Vec<f32>>()),
        };
        let scores: Vec<Result<Score, model::Error>> = match run {
            Ok(scores) => scores.into_iter().map(|score| score.ok_or(model::Error::NotAProbability)).collect(),
            Err(_) => places.iter().map(|at| serving.model.score(row(*at))).collect(),
        };
        if let Some(trial) = serving.canary(addressed) {
            scores.iter().zip(places).for_each(|(score, at)| match score {
                Ok(score) => {
                    trial.scored(Arm::Champion, None, *score, trial.ticket(&records[*at].customer_id));
                }
                Err(error) => trial.failed(Arm::Champion, Some(error)),
            });
        }
        scores
    }

    fn decision(&self, serving: &Serving, score: Score, arm: Arm, decided_at_ms: u64) -> Decision {
        let mut random = [0; 10];
        fastrand::fill(&mut random);
        Decision {
            id: DecisionId::new(decided_at_ms, random),
            decided_at_ms,
            score,
            model: candidate(serving, arm).model.id().clone(),
            arm,
            policy: serving.policy.clone(),
            tier: serving.policy.tier_of(score),
            explanation: None,
        }
    }
}

fn candidate(serving: &Serving, arm: Arm) -> &Candidate {
    match (arm, &serving.idle) {
        (Arm::Challenger, Some(idle)) => idle,
        _ => &serving.champion,
    }
}

/// Adds the reasons that are wanted: by the caller. A policy that wants some for its tiers is to be asked here.
fn explain(serving: &Serving, record: &Record, row: &[f32], decision: &mut Decision) -> Result<(), Error> {
    let wanted = record.reasons;
    if wanted == 0 {
        return Ok(());
    }
    let model = &candidate(serving, decision.arm).model;
    let found = match decision.arm {
        Arm::Challenger if !serving.reads_same_row() => {
            let mut own: Row = smallvec![0.0; model.schema().columns()];
            model.schema().vectorize(&record.features, &mut own).map_err(Error::Invalid)?;
            model.explain(&own)?
        }
        _ => model.explain(row)?,
    };
    decision.explanation = Some(Arc::new(model.book().explain(&found, &record.features, wanted)));
    Ok(())
}

/// The challenger's own score: by its own dictionary, where that is another one.
fn score_by(challenger: &Candidate, serving: &Serving, record: &Record, row: &[f32]) -> Result<Score, Error> {
    if serving.reads_same_row() {
        return Ok(challenger.model.score(row)?);
    }
    let schema = challenger.model.schema();
    let mut own: Row = smallvec![0.0; schema.columns()];
    schema.vectorize(&record.features, &mut own).map_err(Error::Invalid)?;
    Ok(challenger.model.score(&own)?)
}

fn fell_back(trial: &Trial, error: &Error) {
    trial.watches.fallbacks.fetch_add(1, Ordering::Relaxed);
    let cause = match error {
        Error::Model(error) => Some(error),
        _ => None,
    };
    trial.failed(Arm::Challenger, cause);
}
