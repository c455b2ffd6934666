//! What-if: what a policy makes of many decisions, counted, beside another one. Which decisions those are, and who keeps the account of a
//! budget, is not known here.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Policy;
use super::assessment::{Assessment, Choice};
use super::budget::Budget;
use super::compliance::Compliance;
use super::reward::{Reward, Valuation};
use crate::domain::money::Money;
use crate::domain::statistics::fairness::Attribute;

/// The periods of a budget that are told of one by one, the last ones.
pub const PERIODS_MAX: usize = 400;

/// What a policy would have made of decisions on record, beside the policy in force.
#[derive(Debug)]
pub struct Simulation {
    /// The decisions, and how they differ.
    pub counted: Counted,
    /// Customers of the usable ones.
    pub customers: u64,
    /// What the value is measured by.
    pub reward: Reward,
    /// The policy in force.
    pub before: Told,
    /// The policy that is tried.
    pub after: Told,
    /// Which groups the policy that is tried puts at a disadvantage.
    pub compliance: Compliance,
    /// What is to be known before the figures are believed, a sentence each.
    pub warnings: Vec<String>,
}

/// The decisions on record that both policies were to make again.
#[derive(Debug, Default)]
pub struct Counted {
    /// Decisions that were looked at.
    pub decisions: u64,
    /// Those of them that the policy in force had made.
    pub by_policy_in_force: u64,
    /// Those that could be made again, by both policies.
    pub usable: u64,
    /// Those whose customer was erased.
    pub erased: u64,
    /// Those whose inputs were not kept.
    pub not_kept: u64,
    /// Those whose inputs one of the policies cannot read.
    pub unreadable: u64,
    /// When the first and the last of the usable ones were made, milliseconds since 1970.
    pub made_ms: Option<(i64, i64)>,
    /// Usable ones with another tier.
    pub tier_changed: u64,
    /// Usable ones with another action.
    pub action_changed: u64,
    /// Usable ones by the names of the tiers before and after.
    pub tiers: BTreeMap<(String, String), u64>,
    /// Usable ones by the actions before and after.
    pub actions: BTreeMap<(String, String), u64>,
    /// Customers whose reward is known by outcomes.
    pub rewarded: u64,
}

/// What one policy makes of the decisions.
#[derive(Debug)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// ISO 4217.
    pub currency: String,
    /// Decisions by tier, by falling risk.
    pub tiers: Vec<(String, u64)>,
    /// Decisions by action, with what they cost.
    pub interventions: Vec<(String, u64, Money)>,
    /// Decisions by segment; most are in none.
    pub segments: Vec<(String, u64)>,
    /// How often each rule fired.
    pub rules: BTreeMap<String, u64>,
    /// Decisions on who is held out.
    pub held_out: u64,
    /// What the interventions cost together.
    pub cost: Money,
    /// What they are expected to be worth together.
    pub expected_value: Option<f64>,
    /// Decisions in which something else would have been chosen, had there been money for it.
    pub refused: u64,
    /// Decisions in which something else would have been worth most, had money been no dearer than itself.
    pub priced_out: u64,
    /// How its budget was used.
    pub budget: Option<Used>,
    /// How the groups of the audit compare.
    pub fairness: Vec<Attribute>,
    /// What it would have brought, by outcomes.
    pub value: Option<Valuation>,
}

/// How a budget was used.
#[derive(Debug, Clone)]
pub struct Used {
    /// The budget.
    pub budget: Budget,
    /// What was spent of the first period before the first of the decisions, as the ledger has it.
    pub spent_before: Money,
    /// The last [`PERIODS_MAX`] periods with a decision, in order of time.
    pub periods: Vec<Spent>,
    /// How many there are.
    pub periods_count: u64,
    /// By how much a unit of money was dearer than itself at the end.
    pub shadow_price: f64,
}

/// What was spent in a period by the decisions that were made again.
#[derive(Debug, Clone, PartialEq)]
pub struct Spent {
    /// The period, milliseconds since 1970, its end excluded.
    pub ms: Range<u64>,
    /// Decisions.
    pub decisions: u64,
    /// What they cost.
    pub cost: Money,
}

/// What a policy makes of customers, while it is counted.
#[derive(Debug)]
pub struct Side<'p> {
    policy: &'p Policy,
    tiers: Vec<u64>,
    interventions: Vec<u64>,
    segments: Vec<u64>,
    rules: BTreeMap<String, u64>,
    held_out: u64,
    cost: Money,
    expected_value: Option<f64>,
    refused: u64,
    priced_out: u64,
}

impl<'p> Side<'p> {
    /// Nothing counted yet.
    pub fn new(policy: &'p Policy) -> Self {
        Self {
            policy,
            tiers: vec![0; policy.tiers().len()],
            interventions: vec![0; policy.interventions().len()],
            segments: vec![0; policy.segments().len()],
            rules: BTreeMap::new(),
            held_out: 0,
            cost: Money::ZERO,
            expected_value: None,
            refused: 0,
            priced_out: 0,
        }
    }

    /// Counts one decision.
    pub fn add(&mut self, assessment: &Assessment, choice: &Choice) {
        self.tiers[assessment.tier] += 1;
        self.interventions[choice.intervention] += 1;
        if let Some(count) = assessment.trace.segment.and_then(|at| self.segments.get_mut(usize::from(at))) {
            *count += 1;
        }
        for rule in self.policy.rules(assessment.tier, &assessment.trace, choice) {
            *self.rules.entry(rule).or_default() += 1;
        }
        self.held_out += u64::from(choice.holdout);
        self.cost = self.cost.plus(choice.cost);
        if let Some(value) = choice.expected_value {
            *self.expected_value.get_or_insert(0.0) += value;
        }
        self.refused += u64::from(choice.stepped_down());
        self.priced_out += u64::from(choice.priced_out);
    }

    /// What was counted, with how the budget was used, the groups of the audit and the value.
    pub fn end(self, used: Option<Used>, fairness: Vec<Attribute>, value: Option<Valuation>) -> Told {
        let Self { policy, tiers, interventions, segments, rules, held_out, cost, expected_value, refused, priced_out } =
            self;
        let offered = policy.interventions().iter().zip(interventions).map(|(known, count)| {
            let cost = known.cost.micros().saturating_mul(count as i64);
            (known.action.clone(), count, Money::from_micros(cost))
        });
        Told {
            name: policy.name().to_owned(),
            version: policy.version().to_owned(),
            currency: policy.currency().to_owned(),
            tiers: policy.tiers().iter().map(|tier| tier.name.clone()).zip(tiers).collect(),
            interventions: offered.collect(),
            segments: policy.segments().iter().map(|own| own.name.clone()).zip(segments).collect(),
            rules,
            held_out,
            cost,
            expected_value,
            refused,
            priced_out,
            budget: used,
            fairness,
            value,
        }
    }
}
