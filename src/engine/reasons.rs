//! Why a decision is what it is: reasons, as many as the caller or the tier wants, and whether that takes longer than the thread of a
//! request has time for. How they are found is the business of the model.

use std::borrow::Cow;
use std::sync::Arc;

use smallvec::smallvec;

use super::decide::{candidate, encode, score_by};
use super::serving::{Candidate, Serving};
use super::shadow::Row;
use super::{Engine, Error};
use crate::domain::decision::{Arm, Decision};
use crate::domain::policy::condition::Known;
use crate::domain::record::Record;
use crate::domain::score::Score;

impl Engine {
    /// Whether to decide on `record` takes longer than the thread of a request has time for, so that it belongs on one for long work.
    /// Where it is the tier that wants reasons of a model that explains slowly, this has to score: what is decided is not changed by
    /// that.
    pub fn takes_long(&self, serving: &Serving, record: &Record, addressed: Option<Arm>) -> bool {
        if serving.explains_quickly() {
            return false;
        }
        record.reasons > 0 || (serving.policy.explains() && tier_explains(serving, record, addressed))
    }
}

/// Whether the tier of `record` wants reasons. Where a model fails it may: the answer then depends on who stands in for it.
fn tier_explains(serving: &Serving, record: &Record, addressed: Option<Arm>) -> bool {
    let mut row: Row = smallvec![0.0; serving.model.schema().columns()];
    // What is invalid is refused at once, wherever that is.
    let Ok(values) = encode(serving, record, &mut row) else { return false };
    let arm = serving.arm_of(serving.who(&record.customer_id, &values), addressed);
    let score = match (arm, &serving.idle) {
        (Arm::Challenger, Some(challenger)) => score_by(challenger, serving, record, &row),
        _ => serving.model.score(&row).map_err(Error::Model),
    };
    score.map_or(true, |score| {
        let tier = tier_of(serving, candidate(serving, arm), record, &values, score);
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

/// Adds the reasons that are wanted: by the caller or by the tier, the more of the two.
pub(super) fn explain(serving: &Serving, record: &Record, row: &[f32], decision: &mut Decision) -> Result<(), Error> {
    let wanted = record.reasons.max(decision.tier().explain);
    if wanted == 0 {
        return Ok(());
    }
    let model = &candidate(serving, decision.arm).model;
    let found = model.explain(&own_row(serving, record, row, decision.arm)?)?;
    decision.explanation = Some(Arc::new(model.book().explain(&found, &record.features, wanted)));
    Ok(())
}

/// The row of `record` for the model of `arm`; `row` is the champion's.
fn own_row<'r>(serving: &Serving, record: &Record, row: &'r [f32], arm: Arm) -> Result<Cow<'r, [f32]>, Error> {
    if arm == Arm::Champion || serving.reads_same_row() {
        return Ok(row.into());
    }
    let schema = candidate(serving, arm).model.schema();
    let mut own = vec![0.0; schema.columns()];
    schema.vectorize(&record.features, &mut own).map_err(Error::Invalid)?;
    Ok(own.into())
}
