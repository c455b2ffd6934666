//! A batch that has a budget of its own: all of its rows are scored first, then the budget is spent over them, and only then is anything
//! recorded. How it is spent best is in `domain::policy::allocation`.

use bytes::Bytes;

use super::account::Reserved;
use super::batch::{BATCH_ROWS, Batch, Chunk, Draft};
use super::decide::{Stages, assess};
use super::serving::Serving;
use super::{Engine, Error};
use crate::domain::decision::Arm;
use crate::domain::money::Money;
use crate::domain::policy::allocation::{self, Offer, VALUE_MAX};
use crate::domain::policy::assessment::{Assessment, Choice};
use crate::domain::record::Record;

/// Decisions on many records that share a budget.
#[derive(Debug)]
pub struct Allotted {
    /// Consecutive parts: how many records each has, and their decisions with a receipt of their own, or why they could not be recorded:
    /// then nothing is spent on them.
    pub parts: Vec<(usize, Result<Batch, Error>)>,
    /// The expected value that no way to spend the budget over these rows could have been above.
    pub value_max: f64,
}

impl Engine {
    /// Decides on many records, each read from its place of `inputs`, so that their interventions together cost at most `budget`, and at
    /// most what the budget of the policy has left, and are expected to be worth most. Who may have what, and who is held out, the
    /// policy says as for any other. It must [know the value](crate::domain::policy::Policy::knows_value) of a customer: otherwise
    /// nothing is offered to anybody.
    pub fn decide_within(
        &self,
        serving: &Serving,
        records: &[Record],
        inputs: &[Bytes],
        addressed: Option<Arm>,
        budget: Money,
    ) -> Allotted {
        let mut stages = Stages::default();
        let chunks: Vec<Chunk> =
            records.chunks(BATCH_ROWS).map(|chunk| self.score_chunk(serving, chunk, addressed, &mut stages)).collect();
        // All of them are of one period.
        let now_ms = self.now_ms();
        let assessments: Vec<Option<Assessment>> = chunks
            .iter()
            .flat_map(|chunk| &chunk.scored)
            .zip(records)
            .map(|(scored, record)| {
                let (scored, values) = scored.as_ref().ok()?;
                let is_free = !serving.policy.holds_out(&record.customer_id);
                is_free.then(|| assess(serving, record, values, scored))
            })
            .collect();
        let mut purse = serving.set_aside(budget, now_ms);
        let (choices, value_max) = spend(&assessments, &purse, serving.shadow_price());
        let mut parts = Vec::with_capacity(chunks.len());
        for (part, (mut chunk, records)) in chunks.into_iter().zip(records.chunks(BATCH_ROWS)).enumerate() {
            let from = part * BATCH_ROWS;
            let mut batch = Draft::after(std::mem::take(&mut stages));
            let allotted = |at: usize| {
                let choice = choices[from + at]?;
                Some((choice, purse.take(choice.cost)))
            };
            chunk.now_ms = now_ms;
            self.conclude(serving, records, chunk, addressed, allotted, &mut batch);
            let inputs = &inputs[from..from + records.len()];
            parts.push((records.len(), self.record_batch(serving, records, inputs, batch)));
        }
        Allotted { parts, value_max }
    }
}

/// What a batch may spend; what it does not goes back when this is dropped.
pub(super) struct Purse {
    amount: Money,
    /// The part of the policy's own budget, where it has one.
    reserved: Option<Reserved>,
}

impl Purse {
    /// At most `budget`, or what was `reserved` of the policy's own.
    pub(super) fn new(budget: Money, reserved: Option<Reserved>) -> Self {
        Self { amount: reserved.as_ref().map_or(budget, Reserved::amount), reserved }
    }

    /// Nothing.
    pub(super) fn empty() -> Self {
        Self { amount: Money::ZERO, reserved: None }
    }

    fn take(&mut self, cost: Money) -> Option<Reserved> {
        self.reserved.as_mut().filter(|_| cost > Money::ZERO)?.split(cost)
    }
}

/// The choice for each customer that can have one, and the value that no choice could be above.
fn spend(assessments: &[Option<Assessment>], purse: &Purse, shadow_price: f64) -> (Vec<Option<Choice>>, f64) {
    let places = |assessment: &Option<Assessment>| -> Vec<usize> {
        let offers = assessment.iter().flat_map(|assessment| &assessment.offers);
        offers.map(|offer| offer.intervention).filter(|place| *place != 0).collect()
    };
    let offers = |assessment: &Option<Assessment>| -> Vec<Offer> {
        let offers =
            assessment.iter().flat_map(|assessment| &assessment.offers).filter(|offer| offer.intervention != 0);
        let net = |gain: f64, cost: Money| (gain - cost.units()).clamp(-VALUE_MAX, VALUE_MAX);
        offers.map(|offer| Offer { cost: offer.cost, value: net(offer.gain, offer.cost) }).collect()
    };
    let rows: Vec<Vec<Offer>> = assessments.iter().map(offers).collect();
    // Costs of a checked policy and these values are legal: there is nothing to refuse.
    let found = allocation::allocate(&rows, purse.amount);
    let (chosen, value_max) = found.map_or((vec![None; rows.len()], 0.0), |found| (found.chosen, found.bound));
    let choice = |(assessment, chosen): (&Option<Assessment>, Option<usize>)| {
        let place = chosen.and_then(|at| places(assessment).get(at).copied()).unwrap_or_default();
        Some(assessment.as_ref()?.allocate(place, shadow_price))
    };
    (assessments.iter().zip(chosen).map(choice).collect(), value_max)
}
