//! A batch that has a budget of its own: all of its rows are scored first, then the budget is spent over them, and only then is anything
//! recorded. How it is spent best is in `domain::policy::allocation`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::account::Reserved;
use super::batch::{BATCH_ROWS, Batch, Chunk, Draft};
use super::capacity::Place;
use super::decide::{Stages, assess};
use super::serving::Serving;
use super::treatment::Choosing;
use super::{Engine, Error};
use crate::domain::decision::Arm;
use crate::domain::money::Money;
use crate::domain::policy::allocation::{self, Offer, VALUE_MAX};
use crate::domain::policy::assessment::{self, Assessment, Choice, Refused};
use crate::domain::record::Record;
use crate::ledger::Receipt;

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
    /// policy says as for any other. It must [know the value](crate::domain::policy::Policy::has_value_at_stake) of a customer: otherwise
    /// nothing is offered to anybody. No experiment may run: the caller sees to it.
    ///
    /// Errors: those of `waits`, which is asked before each run of rows is scored, and before the first is recorded: nothing is spent
    /// or on record then. After that nobody is asked, since what each row gets depends on all others.
    pub fn decide_within<E>(
        &self,
        serving: &Serving,
        records: &[Record],
        inputs: &[Bytes],
        addressed: Option<Arm>,
        budget: Money,
        waits: impl Fn() -> Result<(), E>,
    ) -> Result<Allotted, E> {
        let draw = self.draw(serving, records.len());
        let mut stages = Stages::default();
        let mut chunks: Vec<Chunk> = Vec::with_capacity(records.len().div_ceil(BATCH_ROWS));
        for chunk in records.chunks(BATCH_ROWS) {
            waits()?;
            chunks.push(self.score_chunk(serving, chunk, addressed, &mut stages));
        }
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
        let mut places = take_places(serving, &assessments, now_ms);
        let left = |intervention| places.get(&intervention).map(Vec::len);
        let Spent { choices, value_max } = spend(&assessments, purse.amount, left, serving.shadow_price());
        // To record takes time, and so may reasons: nothing is kept from others meanwhile that is not needed.
        purse.shrink(choices.iter().flatten().fold(Money::ZERO, |sum, choice| sum.plus(choice.cost)));
        for (intervention, places) in &mut places {
            places.truncate(choices.iter().flatten().filter(|choice| choice.intervention == *intervention).count());
        }
        let mut parts = Vec::with_capacity(chunks.len());
        for (part, (mut chunk, records)) in chunks.into_iter().zip(records.chunks(BATCH_ROWS)).enumerate() {
            let from = part * BATCH_ROWS;
            let mut batch = Draft::after(std::mem::take(&mut stages));
            let choosing = |at: usize| {
                Choosing::Together(choices[from + at].map(|choice| {
                    let place = places.get_mut(&choice.intervention).and_then(Vec::pop);
                    (choice, Reserved::with(purse.take(choice.cost), place))
                }))
            };
            chunk.now_ms = now_ms;
            self.conclude(serving, records, chunk, addressed, choosing, &mut batch);
            if part == 0 {
                waits()?;
            }
            let inputs = &inputs[from..from + records.len()];
            // Not more than two parts wait for the ledger at a time: its queue is for all.
            if let Some((_, before)) = parts.len().checked_sub(2).and_then(|at| parts.get_mut(at)) {
                settle(before);
            }
            parts.push((records.len(), self.record_batch(serving, records, inputs, batch, draw)));
        }
        Ok(Allotted { parts, value_max })
    }
}

/// Waits until a part is on record.
fn settle(part: &mut Result<Batch, Error>) {
    let Ok(batch) = part else { return };
    if let Err(error) = std::mem::replace(&mut batch.receipt, Receipt::done()).kept_blocking() {
        *part = Err(error.into());
    }
}

/// The places of the interventions that are only for so many: as many of each as there are, or as there are customers who may have it. What
/// is not needed is free again when this is dropped.
fn take_places(serving: &Serving, assessments: &[Option<Assessment>], at_ms: u64) -> BTreeMap<usize, Vec<Place>> {
    let mut places = BTreeMap::new();
    for (intervention, _) in
        serving.policy.interventions().iter().enumerate().filter(|(_, known)| known.capacity.is_some())
    {
        let may = |assessment: &&Assessment| assessment.offers.iter().any(|offer| offer.intervention == intervention);
        let count = assessments.iter().flatten().filter(may).count();
        let take = |_| serving.capacities.as_ref()?.take(intervention, at_ms).ok().flatten();
        places.insert(intervention, (0..count).map_while(take).collect());
    }
    places
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

    /// Gives back all but `cost`.
    fn shrink(&mut self, cost: Money) {
        self.reserved.iter_mut().for_each(|reserved| reserved.shrink(cost));
    }

    fn take(&mut self, cost: Money) -> Option<Reserved> {
        self.reserved.as_mut().filter(|_| cost > Money::ZERO)?.split(cost)
    }
}

/// How a budget is spent over customers.
struct Spent {
    /// For each customer that can have something.
    choices: Vec<Option<Choice>>,
    /// The value that no choice could be above.
    value_max: f64,
}

/// Spends `amount` over customers, where there are so many `places` of each intervention, or without a bound. Where places are short those
/// keep them who bring most of those who were chosen, and for all others everything is considered anew without it. This is not always
/// the best; the bound is that of places for all, so it holds, and tells how far off the answer can be.
fn spend(
    assessments: &[Option<Assessment>],
    amount: Money,
    places: impl Fn(usize) -> Option<usize>,
    shadow_price: f64,
) -> Spent {
    let wishes = |assessment: &Option<Assessment>| -> Vec<(usize, Offer)> {
        let offers =
            assessment.iter().flat_map(|assessment| &assessment.offers).filter(|offer| offer.intervention != 0);
        let net = |offer: &assessment::Offer| (offer.gain - offer.cost.units()).clamp(-VALUE_MAX, VALUE_MAX);
        offers.map(|offer| (offer.intervention, Offer { cost: offer.cost, value: net(offer) })).collect()
    };
    let mut rows: Vec<Vec<(usize, Offer)>> = assessments.iter().map(wishes).collect();
    let mut struck: Vec<Vec<(usize, Offer)>> = vec![Vec::new(); rows.len()];
    let mut value_max = None;
    let mut chosen: Vec<Option<(usize, Offer)>> = vec![None; rows.len()];
    // An intervention is short of places once at most: after that as many want it as there are. So this ends.
    loop {
        let offers: Vec<Vec<Offer>> = rows.iter().map(|row| row.iter().map(|(_, offer)| *offer).collect()).collect();
        // Costs of a checked policy and these values are legal: there is nothing to refuse.
        let Ok(found) = allocation::allocate(&offers, amount) else { break };
        value_max.get_or_insert(found.bound);
        chosen = rows.iter().zip(found.chosen).map(|(row, at)| row.get(at?).copied()).collect();
        let short = short_of_places(&chosen, &places);
        for (intervention, keepers) in &short {
            for (at, row) in rows.iter_mut().enumerate().filter(|(at, _)| !keepers.contains(at)) {
                struck[at].extend(row.iter().filter(|(wish, _)| wish == intervention));
                row.retain(|(wish, _)| wish != intervention);
            }
        }
        if short.is_empty() {
            break;
        }
    }
    let choice = |(at, assessment): (usize, &Option<Assessment>)| {
        let (place, value) = chosen[at].map_or((0, 0.0), |(intervention, offer)| (intervention, offer.value));
        // What would have brought no more is not what there was no place for.
        let mut full = Refused::default();
        struck[at].iter().filter(|(_, offer)| offer.value > value).for_each(|(wish, _)| full.add(*wish));
        Some(Choice { full, ..assessment.as_ref()?.allocate(place, shadow_price) })
    };
    let choices = assessments.iter().enumerate().map(choice).collect();
    Spent { choices, value_max: value_max.unwrap_or_default() }
}

/// The interventions that were chosen more often than there are places, each with the customers who bring most by it: as many.
fn short_of_places(
    chosen: &[Option<(usize, Offer)>],
    places: &impl Fn(usize) -> Option<usize>,
) -> Vec<(usize, BTreeSet<usize>)> {
    let mut by_intervention: BTreeMap<usize, Vec<(usize, f64)>> = BTreeMap::new();
    for (at, choice) in chosen.iter().enumerate() {
        if let Some((intervention, offer)) = choice {
            by_intervention.entry(*intervention).or_default().push((at, offer.value));
        }
    }
    let short = |(intervention, mut customers): (usize, Vec<(usize, f64)>)| {
        let places = places(intervention).filter(|places| *places < customers.len())?;
        customers.sort_by(|one, other| other.1.total_cmp(&one.1).then(one.0.cmp(&other.0)));
        Some((intervention, customers.into_iter().take(places).map(|(at, _)| at).collect()))
    };
    by_intervention.into_iter().filter_map(short).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::policy::{Policy, document};
    use crate::domain::score::Score;
    use proptest::prelude::*;

    fn policy() -> Policy {
        let mut text = "name = \"p\"\ndescription = \"\"\ncurrency = \"EUR\"\nobjective = \"expected_value\"\nvalue_at_stake = 100\n\
             [[tiers]]\nname = \"all\"\nscore = \"[0, 1]\"\n"
            .to_owned();
        for (action, cost, share) in [("call", 20, 0.6), ("offer", 8, 0.4), ("mail", 1, 0.1)] {
            text += &format!(
                "[interventions.{action}]\ndescription = \"\"\ncost = {cost}\nexpected_effectiveness = {share}\n"
            );
        }
        document::parse(&text, "v").unwrap_or_else(|problems| panic!("{}", problems.join("\n")))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn neither_money_nor_places_run_out(
            scores in prop::collection::vec(0.0..1.0_f64, 0..40), places in prop::collection::vec(prop::option::of(0..9_usize), 3), amount in 0..400_i64,
        ) {
            let policy = policy();
            let assess = |score: &f64| Some(policy.assess(Score::new(*score)?, &[]));
            let mut assessments: Vec<Option<Assessment>> = scores.iter().map(assess).collect();
            if let Some(first) = assessments.first_mut() {
                *first = None;
            }
            let amount = Money::from_micros(amount * 1_000_000);
            let places_of = |intervention: usize| places[intervention - 1];
            let Spent { choices, value_max } = spend(&assessments, amount, places_of, 0.0);
            prop_assert!(choices.iter().zip(&assessments).all(|(choice, assessment)| choice.is_some() == assessment.is_some()));
            let chosen = || choices.iter().flatten();
            prop_assert!(chosen().fold(Money::ZERO, |sum, choice| sum.plus(choice.cost)) <= amount);
            for (at, places) in places.iter().enumerate() {
                let count = chosen().filter(|choice| choice.intervention == at + 1).count();
                prop_assert!(places.is_none_or(|places| count <= places), "{count} of {places:?}");
                let is_refused = chosen().any(|choice| choice.full.contains(at + 1));
                prop_assert!(!is_refused || places.is_some());
            }
            let value: f64 = chosen().filter_map(|choice| choice.expected_value).sum();
            prop_assert!(value <= value_max * (1.0 + 1e-9) + 1e-9 && value >= 0.0, "{value} of {value_max}");
            let unbound = spend(&assessments, amount, |_| None, 0.0);
            prop_assert_eq!(unbound.value_max, value_max);
        }
    }

    #[test]
    fn places_go_to_those_who_bring_most_and_the_others_have_the_next_best() {
        let policy = policy();
        let assessments: Vec<Option<Assessment>> =
            [0.5, 0.9, 0.7].map(|score| Score::new(score).map(|score| policy.assess(score, &[]))).into();
        let amount = Money::from_units(1_000.0).expect("money");
        let spent = spend(&assessments, amount, |intervention| (intervention == 1).then_some(1), 0.0);
        let actions: Vec<(usize, bool)> =
            spent.choices.iter().flatten().map(|choice| (choice.intervention, choice.full.contains(1))).collect();
        // At 0.5 a call is worth 10 and an offer 12.
        assert_eq!(actions, [(2, false), (1, false), (2, true)]);
    }
}
