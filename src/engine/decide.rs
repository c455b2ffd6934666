//! Deciding: a record, or many, to decisions, on the thread that calls and on one snapshot of what is in service. What is in service,
//! and who answers whom, is decided elsewhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::smallvec;

use super::account::Reserved;
use super::serving::{Candidate, Serving, Trial, Who};
use super::shadow::Row;
use super::{Engine, Error};
use crate::domain::decision::{Arm, Decision};
use crate::domain::freshness;
use crate::domain::id::DecisionId;
use crate::domain::policy::condition::{Known, Values};
use crate::domain::record::Record;
use crate::domain::rollout::Exposure;
use crate::domain::score::Score;
use crate::domain::violation::{LISTED_MAX, Violation};
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
        let values = encode(serving, record, &mut row).map_err(Error::Invalid)?;
        let encoded = Instant::now();
        let who = serving.who(&record.customer_id, &values);
        let scored = self.score(serving, record, &row, who, addressed)?;
        let inferred = Instant::now();
        let (mut decision, reserved) = self.decision(serving, record, &values, &scored, self.now_ms());
        explain(serving, record, &row, &mut decision)?;
        let stages = Stages { encode: encoded - begun, infer: inferred - encoded, policy: inferred.elapsed() };
        let receipt = match &self.ledger {
            Some(ledger) => ledger.record(&decision, &record.customer_id, Bytes::copy_from_slice(inputs))?,
            None => Receipt::done(),
        };
        // Before this whatever went wrong has given it back.
        reserved.into_iter().for_each(Reserved::keep);
        let decided = candidate(serving, scored.arm);
        decided.count(decision.tier);
        decided.monitor.observe(decision.decided_at_ms, record, decision.score.value(), decision.features_age_ms);
        if let Some((trial, who)) = serving.shadow(addressed).zip(who) {
            self.shade(trial, who, record, row);
        }
        Ok((decision, stages, receipt))
    }

    /// The score of the arm that the customer belongs to. Where a challenger under trial cannot give one, the champion does: its
    /// customers are not to suffer from the trial.
    fn score(
        &self,
        serving: &Serving,
        record: &Record,
        row: &[f32],
        who: Option<Who>,
        addressed: Option<Arm>,
    ) -> Result<Scored, Error> {
        let watched = serving.canary(addressed).zip(who);
        if serving.arm_of(who, addressed) == Arm::Challenger {
            let challenger = serving.idle.as_ref().ok_or(Error::NoChallenger)?;
            if let Some((trial, _)) = watched {
                trial.started(Arm::Challenger);
            }
            match (score_by(challenger, serving, record, row), watched) {
                (Ok(score), watched) => {
                    if let Some((trial, who)) = watched {
                        trial.scored(Arm::Challenger, score, who);
                    }
                    return Ok(Scored { score, arm: Arm::Challenger });
                }
                (Err(error), None) => return Err(error),
                (Err(error), Some((trial, who))) => {
                    fell_back(trial, &error, who);
                    return Ok(Scored { score: serving.model.score(row)?, arm: Arm::Champion });
                }
            }
        }
        let result = serving.model.score(row);
        if let Some((trial, who)) = watched {
            match &result {
                Ok(score) => trial.scored(Arm::Champion, *score, who),
                Err(error) => trial.failed(Arm::Champion, Some(error), who),
            }
        }
        Ok(Scored { score: result?, arm: Arm::Champion })
    }

    /// Gives the shadow a customer that was decided on.
    fn shade(&self, trial: &Arc<Trial>, who: Who, record: &Record, row: Row) {
        let own = match trial.same_row {
            true => None,
            false => {
                let schema = trial.challenger.model.schema();
                let mut own: Row = smallvec![0.0; schema.columns()];
                if schema.vectorize(&record.features, &mut own).is_err() {
                    if trial.exposure == Exposure::Shadow {
                        trial.started(Arm::Challenger);
                        trial.failed(Arm::Challenger, None, who);
                    }
                    return;
                }
                Some(own)
            }
        };
        self.shadow.offer(trial, who, row, own);
    }

    /// Every violation of `record`, without deciding on it.
    pub fn violations(&self, serving: &Serving, record: &Record) -> Vec<Violation> {
        let mut row = vec![0.0; serving.model.schema().columns()];
        encode(serving, record, &mut row).err().unwrap_or_default()
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
        let mut reserved = Vec::new();
        for chunk in records.chunks(BATCH_ROWS) {
            self.decide_chunk(serving, chunk, addressed, &mut decisions, &mut reserved, &mut stages);
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
        reserved.into_iter().for_each(Reserved::keep);
        // Of all rows alike: the first ones of a batch may be the least alike the others.
        let places = serving.champion.monitor.places(self.now_ms());
        let share = f64::from(places) / records.len().max(1) as f64;
        for (decision, record) in decisions.iter().zip(records) {
            let Ok(decision) = decision else { continue };
            let decided = candidate(serving, decision.arm);
            decided.count(decision.tier);
            if share >= 1.0 || fastrand::f64() < share {
                let (score, age_ms) = (decision.score.value(), decision.features_age_ms);
                decided.monitor.observe(decision.decided_at_ms, record, score, age_ms);
            }
        }
        Ok(Batch { decisions, stages, receipt })
    }

    fn decide_chunk(
        &self,
        serving: &Serving,
        records: &[Record],
        addressed: Option<Arm>,
        decisions: &mut Vec<Result<Decision, Error>>,
        reserved: &mut Vec<Reserved>,
        stages: &mut Stages,
    ) {
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
        let mut scores = self.score_rows(serving, &whos, &rows, &of_champion, addressed).into_iter();
        let mut of_champion = of_champion.into_iter().peekable();
        let scored: Vec<Result<(Scored, Values), Error>> = encoded
            .into_iter()
            .zip(records.iter().zip(rows.chunks_exact(columns)))
            .enumerate()
            .map(|(at, (encoded, (record, row)))| {
                let values = encoded?;
                if of_champion.next_if_eq(&at).is_none() {
                    return Ok((self.score(serving, record, row, whos[at], addressed)?, values));
                }
                let score = scores.next().unwrap_or(Err(model::Error::NotAProbability))?;
                Ok((Scored { score, arm: Arm::Champion }, values))
            })
            .collect();
        stages.infer += begun.elapsed();
        let begun = Instant::now();
        let now_ms = self.now_ms();
        for (((scored, record), row), who) in scored.into_iter().zip(records).zip(rows.chunks_exact(columns)).zip(whos)
        {
            if let (Ok(_), Some((trial, who))) = (&scored, serving.shadow(addressed).zip(who)) {
                self.shade(trial, who, record, row.into());
            }
            decisions.push(scored.and_then(|(scored, values)| {
                let (mut decision, money) = self.decision(serving, record, &values, &scored, now_ms);
                explain(serving, record, row, &mut decision)?;
                reserved.extend(money);
                Ok(decision)
            }));
        }
        stages.policy += begun.elapsed();
    }

    /// The champion's scores of the rows at `places`, as one run; where that fails, row by row, so that one bad row is one failure.
    fn score_rows(
        &self,
        serving: &Serving,
        whos: &[Option<Who>],
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
            for (score, who) in scores.iter().zip(places.iter().filter_map(|at| whos[*at])) {
                match score {
                    Ok(score) => trial.scored(Arm::Champion, *score, who),
                    Err(error) => trial.failed(Arm::Champion, Some(error), who),
                }
            }
        }
        scores
    }

    fn decision(
        &self,
        serving: &Serving,
        record: &Record,
        values: &[Known],
        scored: &Scored,
        decided_at_ms: u64,
    ) -> (Decision, Option<Reserved>) {
        let Scored { score, arm } = *scored;
        let candidate = candidate(serving, arm);
        let assessment = match arm {
            Arm::Champion => serving.policy.assess(score, values),
            // What a missing value means, the dictionary of the model says that answers.
            Arm::Challenger => match candidate.binding.read(record) {
                Ok(own) => serving.policy.assess(score, &own),
                Err(_) => serving.policy.assess(score, values),
            },
        };
        let (choice, reserved) = serving.choose(&assessment, &record.customer_id, decided_at_ms);
        let mut random = [0; 10];
        fastrand::fill(&mut random);
        let decision = Decision {
            id: DecisionId::new(decided_at_ms, random),
            decided_at_ms,
            score,
            model: candidate.model.id().clone(),
            arm,
            policy: serving.policy.clone(),
            tier: assessment.tier,
            choice,
            value_at_stake: assessment.value_at_stake,
            trace: assessment.trace,
            features_age_ms: freshness::age_ms(&record.context, decided_at_ms),
            explanation: None,
        };
        (decision, reserved)
    }
}

/// Writes the champion's row of `record`, and gives what the policy wants to know of it.
///
/// Errors: every violation of the dictionary and of what the policy declares.
fn encode<'v>(serving: &'v Serving, record: &'v Record, row: &mut [f32]) -> Result<Values<'v>, Vec<Violation>> {
    let encoded = serving.model.schema().vectorize(&record.features, row);
    match (encoded, serving.champion.binding.read(record)) {
        (Ok(()), Ok(values)) => Ok(values),
        (encoded, read) => {
            let mut violations = encoded.err().unwrap_or_default();
            violations.extend(read.err().unwrap_or_default());
            violations.truncate(LISTED_MAX);
            Err(violations)
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

fn fell_back(trial: &Trial, error: &Error, who: Who) {
    trial.watches.fallbacks.fetch_add(1, Ordering::Relaxed);
    let cause = match error {
        Error::Model(error) => Some(error),
        _ => None,
    };
    trial.failed(Arm::Challenger, cause, who);
}
