//! Why a decision is what it is, and what would change it: reasons, as many as the caller or the tier wants, counterfactuals, and whether
//! that takes longer than the thread of a request has time for. How reasons are found is the business of the model; what is tried for
//! a counterfactual, that of the law.

use std::borrow::Cow;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::batch::BATCH_ROWS;
use super::decide::{encode, score_by};
use super::serving::{Candidate, Serving};
use super::shadow::Row;
use super::turn::Turn;
use super::{Engine, Error};
use crate::domain::decision::{Arm, Decision};
use crate::domain::policy::Policy;
use crate::domain::policy::condition::Known;
use crate::domain::reason::counterfactual::{FEATURES_MAX, Proposal, Verdict};
use crate::domain::record::Record;
use crate::domain::score::Score;

impl Engine {
    /// Whether to decide on `record` takes longer than the thread of a request has time for, so that it belongs on one for long work.
    /// Where it is the tier that wants reasons of a model that explains slowly, this has to score, if there was no `turn`: what is
    /// decided is not changed by that.
    pub fn takes_long(&self, serving: &Serving, record: &Record, addressed: Option<Arm>, turn: Option<&Turn>) -> bool {
        if record.counterfactuals > 0 {
            return true;
        }
        if serving.explains_quickly() {
            return false;
        }
        // Which policy decides on whom is not asked twice: where that of an arm wants reasons, everybody is sent there.
        let is_wanted = record.reasons > 0 || serving.arms_explain();
        is_wanted || (serving.policy.explains() && tier_explains(serving, record, addressed, turn))
    }
}

/// Whether the tier of `record` wants reasons. Where a model fails it may: the answer then depends on who stands in for it.
fn tier_explains(serving: &Serving, record: &Record, addressed: Option<Arm>, turn: Option<&Turn>) -> bool {
    let mut row: Row = smallvec![0.0; serving.model.schema().columns()];
    // What is invalid is refused at once, wherever that is.
    let Ok(values) = encode(serving, record, &mut row) else { return false };
    let own = serving.arm_of(serving.who(&record.customer_id, &values), addressed);
    let (arm, score) = match (turn, own, &serving.idle) {
        (Some(Turn { scored, .. }), ..) => (scored.arm, Ok(scored.score)),
        (None, Arm::Challenger, Some(challenger)) => (own, score_by(challenger, serving, record, &row)),
        (None, ..) => (own, serving.model.score(&row).map_err(Error::Model)),
    };
    score.map_or(true, |score| {
        let tier = tier_of(serving, serving.candidate(arm), record, &values, score);
        serving.policy.tiers()[tier].explain > 0
    })
}

/// The tier that the policy puts a score of `candidate` in; `values` are those of the champion.
fn tier_of(serving: &Serving, candidate: &Candidate, record: &Record, values: &[Known], score: Score) -> usize {
    let policy = &serving.policy;
    match candidate.binding.read(record) {
        Ok(own) => policy.tier_of(policy.segment_of(&own), score),
        Err(_) => policy.tier_of(policy.segment_of(values), score),
    }
}

/// Adds what is wanted: reasons, by the caller or by the tier, the more of the two; and counterfactuals.
pub(super) fn explain(serving: &Serving, record: &Record, row: &[f32], decision: &mut Decision) -> Result<(), Error> {
    if record.counterfactuals > 0 {
        let candidate = serving.decider(decision);
        let policy = &*decision.policy;
        let mut trial = record.clone();
        let judge = |proposals: &[Proposal]| judge(serving, (candidate, policy), &mut trial, proposals);
        let levers = candidate.model.levers();
        let found = levers.search(&record.features, decision.tier, record.counterfactuals, judge)?;
        decision.counterfactuals = Some(found.into());
    }
    let wanted = record.reasons.max(decision.tier().explain);
    if wanted == 0 {
        return Ok(());
    }
    let model = &serving.candidate(decision.arm).model;
    let found = model.explain(&own_row(serving, record, row, decision.arm)?)?;
    decision.explanation = Some(Arc::new(model.book().explain(&found, &record.features, wanted)));
    Ok(())
}

/// What becomes of the customer in `trial` with each of `proposals` made, by the candidate and the policy that decided: scored as real
/// batches, a lone one as a row by itself.
fn judge(
    serving: &Serving,
    (candidate, policy): (&Candidate, &Policy),
    trial: &mut Record,
    proposals: &[Proposal],
) -> Result<Vec<Option<Verdict>>, Error> {
    let model = &candidate.model;
    // The champion's dictionary stands in where the model's own cannot be read, as in the decision; the policy of an arm has none.
    let stand_in = std::ptr::eq(policy, &*serving.policy).then_some(&serving.champion.binding);
    let columns = model.schema().columns();
    let mut verdicts = Vec::with_capacity(proposals.len());
    for chunk in proposals.chunks(BATCH_ROWS) {
        let mut rows = vec![0.0; chunk.len() * columns];
        // `None` where a proposal makes a customer who is not legal.
        let mut segments: Vec<Option<Option<usize>>> = Vec::with_capacity(chunk.len());
        for (proposal, row) in chunk.iter().zip(rows.chunks_exact_mut(columns)) {
            let before: SmallVec<[_; FEATURES_MAX]> =
                proposal.iter().map(|change| change.make(&mut trial.features)).collect();
            let is_legal = model.schema().vectorize(&trial.features, row).is_ok();
            let values = candidate.binding.read(trial).ok().or_else(|| stand_in?.read(trial).ok());
            segments.push(values.map(|values| policy.segment_of(&values)).filter(|_| is_legal));
            before.into_iter().for_each(|(place, value)| trial.features[place].1 = value);
        }
        let scores = match chunk.len() {
            1 => vec![Some(model.score(&rows)?)],
            _ => model.score_batch(&rows)?,
        };
        verdicts.extend(segments.into_iter().zip(scores).map(|(segment, score)| {
            let score = score?;
            Some(Verdict { score, tier: policy.tier_of(segment?, score) })
        }));
    }
    Ok(verdicts)
}

/// The row of `record` for the model of `arm`; `row` is the champion's.
pub(super) fn own_row<'r>(
    serving: &Serving,
    record: &Record,
    row: &'r [f32],
    arm: Arm,
) -> Result<Cow<'r, [f32]>, Error> {
    if arm == Arm::Champion || serving.reads_same_row() {
        return Ok(row.into());
    }
    let schema = serving.candidate(arm).model.schema();
    let mut own = vec![0.0; schema.columns()];
    schema.vectorize(&record.features, &mut own).map_err(Error::Invalid)?;
    Ok(own.into())
}
