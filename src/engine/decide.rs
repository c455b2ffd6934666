//! Deciding: a record to a decision, on the thread that calls and on one snapshot of what is in service. What is in service,
//! and who answers whom, is decided elsewhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::smallvec;

use super::account::Reserved;
use super::reasons::explain;
use super::serving::{Candidate, Scored, Serving, Trial, Who};
use super::shadow::Row;
use super::treatment::{Choosing, Treated};
use super::turn::Turn;
use super::{Engine, Error};
use crate::domain::decision::{Arm, Decision};
use crate::domain::freshness;
use crate::domain::id::DecisionId;
use crate::domain::policy::assessment::Assessment;
use crate::domain::policy::condition::{Known, Values};
use crate::domain::policy::layers::Decided;
use crate::domain::record::Record;
use crate::domain::rollout::Exposure;
use crate::domain::rollout::guardrail::Wait;
use crate::domain::score::Score;
use crate::domain::violation::{LISTED_MAX, Violation};
use crate::ledger::Receipt;
use crate::model;

/// How long the stages of a decision took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stages {
    /// Record to vector.
    pub encode: Duration,
    /// Vector to score; of a slow model the wait for it included.
    pub infer: Duration,
    /// Score to tier and intervention.
    pub policy: Duration,
}

impl Engine {
    /// Decides on one record, which was read from `inputs`, on the calling thread: no await, no lock held across another.
    /// The decision may be answered once its receipt is kept. `addressed` is the arm that the caller insists on, `turn` the score where
    /// that was waited for.
    ///
    /// Errors: [`Error::Invalid`] with every violation; [`Error::NoChallenger`]; [`Error::Model`]; [`Error::Ledger`] when it cannot
    /// be recorded.
    pub fn decide(
        &self,
        serving: &Serving,
        record: &Record,
        inputs: &[u8],
        addressed: Option<Arm>,
        turn: Option<Turn>,
    ) -> Result<(Decision, Stages, Receipt), Error> {
        let begun = Instant::now();
        let mut row: Row = smallvec![0.0; serving.model.schema().columns()];
        let mut values = encode(serving, record, &mut row).map_err(Error::Invalid)?;
        let encoded = Instant::now();
        let who = serving.who(&record.customer_id, &values);
        let waited = turn.as_ref().map_or(Duration::ZERO, |turn| turn.took);
        let scored = match turn {
            Some(turn) => turn.scored,
            None => self.score(serving, record, &row, who, addressed, None)?,
        };
        add_uplifts(serving, &mut values, &scored);
        let inferred = Instant::now();
        let (mut decision, reserved) = self.decision(serving, record, &values, &scored, self.now_ms(), Choosing::Alone);
        explain(serving, record, &row, &mut decision)?;
        let stages =
            Stages { encode: encoded - begun, infer: waited + (inferred - encoded), policy: inferred.elapsed() };
        let receipt = match &self.ledger {
            Some(ledger) => ledger.record(&decision, &record.customer_id, Bytes::copy_from_slice(inputs))?,
            None => Receipt::done(),
        };
        // Before this whatever went wrong has given it back.
        reserved.into_iter().for_each(Reserved::keep);
        serving.count(&decision);
        let monitor = &serving.candidate(scored.arm).monitor;
        monitor.observe(decision.decided_at_ms, record, decision.score.value(), decision.features_age_ms);
        if let Some((trial, who)) = serving.shadow(addressed).zip(who) {
            self.shade(trial, who, record, row);
        }
        Ok((decision, stages, receipt))
    }

    /// The score of the arm that the customer belongs to, on the calling thread. `known` is what the champion has said already, where it was
    /// asked for many at once.
    pub(super) fn score(
        &self,
        serving: &Serving,
        record: &Record,
        row: &[f32],
        who: Option<Who>,
        addressed: Option<Arm>,
        known: Option<Result<Score, model::Error>>,
    ) -> Result<Scored, Error> {
        let asked = Asked::new(serving, who, addressed)?;
        let answer = match (asked.arm, &serving.idle) {
            (Arm::Challenger, Some(challenger)) => {
                let mut own = Row::new();
                row_of(challenger, serving, record, row, &mut own)
                    .and_then(|row| Ok(serving.judge(Arm::Challenger, row)?))
            }
            _ => match known {
                Some(score) => score.and_then(|score| serving.judged(Arm::Champion, score, row)),
                None => serving.judge(Arm::Champion, row),
            }
            .map_err(Error::Model),
        };
        match asked.settle(answer)? {
            Some(scored) => Ok(scored),
            None => Ok(serving.judge(Arm::Champion, row)?),
        }
    }

    /// Gives the shadow a customer that was decided on.
    pub(super) fn shade(&self, trial: &Arc<Trial>, who: Who, record: &Record, row: Row) {
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

    /// What is decided for a score.
    pub(super) fn decision(
        &self,
        serving: &Serving,
        record: &Record,
        values: &[Known],
        scored: &Scored,
        decided_at_ms: u64,
        choosing: Choosing,
    ) -> (Decision, Option<Reserved>) {
        let Scored { score, arm, ref uplifts } = *scored;
        let candidate = serving.candidate(arm);
        let treat = |values: &[Known]| serving.treat(record, values, scored, decided_at_ms, choosing);
        let Treated { decided, policy, chance, reserved } = match arm {
            Arm::Champion => treat(values),
            // What a missing value means, the dictionary of the model says that answers.
            Arm::Challenger => match candidate.binding.read_with(record, uplifts) {
                Ok(own) => treat(&own),
                Err(_) => treat(values),
            },
        };
        let Decided { assessment, choice, .. } = decided;
        let mut random = [0; 10];
        fastrand::fill(&mut random);
        let decision = Decision {
            id: DecisionId::new(decided_at_ms, random),
            decided_at_ms,
            score,
            model: candidate.model.id().clone(),
            arm,
            policy,
            tier: assessment.tier,
            choice,
            value_at_stake: assessment.value_at_stake,
            trace: assessment.trace,
            chance,
            features_age_ms: freshness::age_ms(&record.context, decided_at_ms),
            explanation: None,
            counterfactuals: None,
        };
        (decision, reserved)
    }
}

/// The arm that is asked for a score, and who watches it.
pub(super) struct Asked<'s> {
    pub(super) arm: Arm,
    watched: Option<(&'s Trial, Who)>,
    /// Since when its score is waited for, and until when the caller said it would wait.
    waits: Option<(Instant, Option<Instant>)>,
}

impl<'s> Asked<'s> {
    /// Asks the arm that `who` belongs to, or the one `addressed`.
    ///
    /// Errors: [`Error::NoChallenger`].
    pub(super) fn new(serving: &'s Serving, who: Option<Who>, addressed: Option<Arm>) -> Result<Self, Error> {
        let (arm, watched) = (serving.arm_of(who, addressed), serving.canary(addressed).zip(who));
        if arm == Arm::Challenger {
            serving.idle.as_ref().ok_or(Error::NoChallenger)?;
            watched.iter().for_each(|(trial, _)| trial.started(Arm::Challenger));
        }
        // From here on what was started is settled or withdrawn.
        Ok(Self { arm, watched, waits: None })
    }

    /// The score is waited for since `begun`, by a caller who said it would wait `until` then, if it did.
    pub(super) fn waits(&mut self, begun: Instant, until: Option<Instant>) {
        self.waits = Some((begun, until));
    }

    /// What follows from what the arm said. Where a challenger under trial could not give a score that is `None`, and the champion has
    /// to: its customers are not to suffer from the trial.
    pub(super) fn settle(mut self, answer: Result<Scored, Error>) -> Result<Option<Scored>, Error> {
        let arm = self.arm;
        match (&answer, self.watched.take()) {
            (Ok(scored), Some((trial, who))) => trial.scored(arm, scored.score, who),
            (Err(error), Some((trial, who))) if arm == Arm::Challenger => {
                fell_back(trial, error, who);
                return Ok(None);
            }
            (Err(error), Some((trial, who))) => trial.failed(arm, error.of_model(), who),
            (_, None) => {}
        }
        answer.map(Some)
    }
}

impl Drop for Asked<'_> {
    /// Whoever has gone before the arm said anything is owed nothing, and may have waited for too long.
    fn drop(&mut self) {
        let Some((trial, who)) = self.watched else { return };
        if self.arm == Arm::Challenger {
            trial.withdrawn(Arm::Challenger);
        }
        if let Some((begun, until)) = self.waits {
            let stated = until.map(|until| until.saturating_duration_since(begun));
            trial.left(self.arm, Wait { lasted: begun.elapsed(), stated }, who);
        }
    }
}

/// What could be done about a customer with this score; `values` are those that the champion's dictionary gives.
pub(super) fn assess(serving: &Serving, record: &Record, values: &[Known], scored: &Scored) -> Assessment {
    match scored.arm {
        Arm::Champion => serving.policy.assess(scored.score, values),
        // What a missing value means, the dictionary of the model says that answers.
        Arm::Challenger => match serving.candidate(Arm::Challenger).binding.read_with(record, &scored.uplifts) {
            Ok(own) => serving.policy.assess(scored.score, &own),
            Err(_) => serving.policy.assess(scored.score, values),
        },
    }
}

/// Adds what the champion estimates of interventions, where it was the champion that `scored`, to what the policy knows by its dictionary.
pub(super) fn add_uplifts(serving: &Serving, values: &mut Values, scored: &Scored) {
    if scored.arm == Arm::Champion {
        serving.champion.binding.add_uplifts(values, &scored.uplifts);
    }
}

/// Writes the champion's row of `record`, and gives what the policy wants to know of it.
///
/// Errors: every violation of the dictionary and of what the policy declares.
pub(super) fn encode<'v>(
    serving: &'v Serving,
    record: &'v Record,
    row: &mut [f32],
) -> Result<Values<'v>, Vec<Violation>> {
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

/// The challenger's own score: by its own dictionary, where that is another one.
pub(super) fn score_by(
    challenger: &Candidate,
    serving: &Serving,
    record: &Record,
    row: &[f32],
) -> Result<Score, Error> {
    let mut own = Row::new();
    Ok(challenger.model.score(row_of(challenger, serving, record, row, &mut own)?)?)
}

/// The challenger's row of `record`: the champion's, where both read the same, or else `own`.
fn row_of<'r>(
    challenger: &Candidate,
    serving: &Serving,
    record: &Record,
    row: &'r [f32],
    own: &'r mut Row,
) -> Result<&'r [f32], Error> {
    if serving.reads_same_row() {
        return Ok(row);
    }
    let schema = challenger.model.schema();
    own.resize(schema.columns(), 0.0);
    schema.vectorize(&record.features, own).map_err(Error::Invalid)?;
    Ok(own)
}

fn fell_back(trial: &Trial, error: &Error, who: Who) {
    trial.watches.fallbacks.fetch_add(1, Ordering::Relaxed);
    trial.failed(Arm::Challenger, error.of_model(), who);
}
