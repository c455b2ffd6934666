//! What a policy makes of decisions on record, as it goes over the wire. Translation only.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::wire_fairness::{Attribute, Compliance};
use super::wire_records::time;
use crate::domain::money::Money;
use crate::domain::policy::reward::{self, Reward};
use crate::domain::policy::simulation::{self, Simulation};
use crate::domain::statistics::off_policy::Estimate as Estimated;

/// What a policy would have made of decisions on record, beside the policy in force.
#[derive(Serialize, ToSchema)]
pub(super) struct Simulated {
    /// The name of the model.
    model: String,
    decisions: Decisions,
    /// What the policy in force makes of them.
    before: Side,
    /// What the policy that is tried makes of them.
    after: Side,
    /// Decisions by tier before and after; pairs without any are left out.
    tier_changes: Vec<Change>,
    /// Decisions by action before and after; pairs without any are left out.
    action_changes: Vec<Change>,
    /// The share of decisions with another tier, 0 to 1; null without any decision.
    tier_changed_share: Option<f64>,
    /// The share of decisions with another action, 0 to 1; null without any decision.
    action_changed_share: Option<f64>,
    /// What `value` is measured by.
    reward: &'static str,
    /// Groups that are flagged under the policy that is tried.
    compliance: Compliance,
    /// What is to be known before the figures are believed.
    warnings: Vec<String>,
}

/// The decisions that were made again.
#[derive(Serialize, ToSchema)]
pub(super) struct Decisions {
    /// Decisions that were looked at.
    looked_at: u64,
    /// Those that both policies could decide on again: everything else counts these alone.
    usable: u64,
    /// Those whose customer was erased since.
    erased: u64,
    /// Those whose inputs were not kept.
    not_kept: u64,
    /// Those whose inputs one of the policies, or the model in service, cannot read.
    unreadable: u64,
    /// Those that the policy in force had made.
    by_policy_in_force: u64,
    /// Customers of the usable ones.
    customers: u64,
    /// When the first usable one was made; null without any.
    #[schema(value_type = Option<String>, format = DateTime)]
    from: Option<String>,
    /// When the last one was made.
    #[schema(value_type = Option<String>, format = DateTime)]
    to: Option<String>,
}

/// What one policy makes of them.
#[derive(Serialize, ToSchema)]
pub(super) struct Side {
    /// The name of the policy.
    policy: String,
    /// Its content hash.
    policy_version: String,
    /// ISO 4217.
    #[schema(example = "USD")]
    currency: String,
    /// Decisions by tier, by falling risk.
    tiers: Vec<InTier>,
    /// Decisions by action.
    interventions: Vec<Offered>,
    /// Decisions by segment; those in none are left out.
    segments: Vec<InSegment>,
    /// How often each rule fired.
    rules: Vec<Fired>,
    /// Decisions on customers who are held out.
    held_out: u64,
    /// What the interventions cost together.
    cost: f64,
    /// What they are expected to be worth together, their cost taken off; null where the policy has no value at stake.
    expected_value: Option<f64>,
    /// How the budget was used; null where the policy has none.
    budget: Option<BudgetUse>,
    /// How the groups of `context.audit` compare, each customer counted once.
    fairness: Vec<Attribute>,
    /// What the policy would have brought; null where the outcomes of fewer than two customers are known.
    value: Option<Value>,
}

/// Decisions of a tier.
#[derive(Serialize, ToSchema)]
pub(super) struct InTier {
    tier: String,
    decisions: u64,
}

/// Decisions with an action.
#[derive(Serialize, ToSchema)]
pub(super) struct Offered {
    action: String,
    decisions: u64,
    /// What it costs for all of them.
    cost: f64,
}

/// Decisions of a segment.
#[derive(Serialize, ToSchema)]
pub(super) struct InSegment {
    segment: String,
    decisions: u64,
}

/// How often a rule fired.
#[derive(Serialize, ToSchema)]
pub(super) struct Fired {
    rule: String,
    decisions: u64,
}

/// How many decisions went from one to the other.
#[derive(Serialize, ToSchema)]
pub(super) struct Change {
    before: String,
    after: String,
    decisions: u64,
}

/// How a budget was used.
#[derive(Serialize, ToSchema)]
pub(super) struct BudgetUse {
    /// What may be spent in each period.
    amount: f64,
    /// `day`, `week` or `month`, of the UTC calendar.
    period: &'static str,
    /// What was spent of the first period before the first of these decisions, as it stands on record. It counts.
    spent_before: f64,
    /// How many periods have a decision.
    periods_count: u64,
    /// Each of them in order of time; of more than 400 the last ones.
    periods: Vec<PeriodUse>,
    /// Decisions for which there was no money for something better.
    refused: u64,
    /// Decisions in which something else would have been worth most, had money been no dearer than itself.
    priced_out: u64,
    /// By how much a unit of money was dearer than itself at the end.
    shadow_price: f64,
}

/// What was spent in a period.
#[derive(Serialize, ToSchema)]
pub(super) struct PeriodUse {
    #[schema(value_type = String, format = DateTime)]
    from: String,
    #[schema(value_type = String, format = DateTime)]
    to: String,
    decisions: u64,
    /// What these decisions spent of it.
    spent: f64,
}

/// What a policy would have brought per customer, by outcomes, one decision of each customer.
#[derive(Serialize, ToSchema)]
pub(super) struct Value {
    /// Customers whose reward is known.
    customers: usize,
    /// Those of them for whom the policy could do what was done.
    matched: usize,
    /// How many rows of equal weight would tell as much.
    effective_rows: f64,
    /// The mean weight: 1 but for chance, where every action of the policy had some.
    weight_mean: f64,
    /// The greatest weight.
    weight_max: f64,
    /// Customers for whom something else was done with a propensity of 1.
    without_chance: u64,
    /// What was really brought.
    recorded: Estimate,
    /// By inverse propensity; null where actions of the policy had no chance on record, since it would count those customers as 0.
    ips: Option<Estimate>,
    /// The same with weights that sum to one: of the customers that match alone. Null when none does.
    snips: Option<Estimate>,
    /// Doubly robust, with score and expected effectiveness as the model; null of a reward without a model.
    doubly_robust: Option<Estimate>,
    /// What it is over what was really brought; null where `doubly_robust` is.
    lift: Option<Estimate>,
}

/// A mean with its 95 % interval.
#[derive(Serialize, ToSchema)]
pub(super) struct Estimate {
    value: f64,
    standard_error: f64,
    low: f64,
    high: f64,
}

impl Simulated {
    /// What came of a simulation for a model.
    pub(super) fn new(model: String, found: Simulation) -> Self {
        let Simulation { counted, customers, reward, before, after, compliance, warnings } = found;
        let share = |count: u64| (counted.usable > 0).then(|| count as f64 / counted.usable as f64);
        let changes = |counts: BTreeMap<(String, String), u64>| {
            counts.into_iter().map(|((before, after), decisions)| Change { before, after, decisions }).collect()
        };
        Self {
            model,
            decisions: Decisions {
                looked_at: counted.decisions,
                usable: counted.usable,
                erased: counted.erased,
                not_kept: counted.not_kept,
                unreadable: counted.unreadable,
                by_policy_in_force: counted.by_policy_in_force,
                customers,
                from: counted.made_ms.map(|(from, _)| time(from)),
                to: counted.made_ms.map(|(_, to)| time(to)),
            },
            tier_changed_share: share(counted.tier_changed),
            action_changed_share: share(counted.action_changed),
            before: Side::new(before, reward),
            after: Side::new(after, reward),
            tier_changes: changes(counted.tiers),
            action_changes: changes(counted.actions),
            reward: reward.name(),
            compliance: compliance.into(),
            warnings,
        }
    }
}

impl Side {
    fn new(told: simulation::Told, reward: Reward) -> Self {
        let offered =
            |(action, decisions, cost): (String, u64, Money)| Offered { action, decisions, cost: cost.units() };
        Self {
            policy: told.name,
            policy_version: told.version,
            currency: told.currency,
            tiers: told.tiers.into_iter().map(|(tier, decisions)| InTier { tier, decisions }).collect(),
            interventions: told.interventions.into_iter().map(offered).collect(),
            segments: told.segments.into_iter().map(|(segment, decisions)| InSegment { segment, decisions }).collect(),
            rules: told.rules.into_iter().map(|(rule, decisions)| Fired { rule, decisions }).collect(),
            held_out: told.held_out,
            cost: told.cost.units(),
            expected_value: told.expected_value,
            budget: told.budget.map(|used| BudgetUse::new(used, told.refused, told.priced_out)),
            fairness: told.fairness.into_iter().map(Attribute::from).collect(),
            value: told.value.map(|value| Value::new(&value, reward)),
        }
    }
}

impl BudgetUse {
    fn new(used: simulation::Used, refused: u64, priced_out: u64) -> Self {
        let period = |spent: simulation::Spent| PeriodUse {
            from: time(spent.ms.start as i64),
            to: time(spent.ms.end as i64),
            decisions: spent.decisions,
            spent: spent.cost.units(),
        };
        Self {
            amount: used.budget.amount.units(),
            period: used.budget.period.name(),
            spent_before: used.spent_before.units(),
            periods_count: used.periods_count,
            periods: used.periods.into_iter().map(period).collect(),
            refused,
            priced_out,
            shadow_price: used.shadow_price,
        }
    }
}

impl Value {
    fn new(found: &reward::Valuation, reward: Reward) -> Self {
        let evaluation = &found.evaluation;
        let modelled = |estimate: Estimated| reward.has_model().then(|| estimate.into());
        Self {
            customers: evaluation.rows,
            matched: evaluation.matched,
            effective_rows: evaluation.effective_rows,
            weight_mean: evaluation.weight_mean,
            weight_max: evaluation.weight_max,
            without_chance: found.without_chance,
            recorded: evaluation.logged.into(),
            ips: found.is_supported.then(|| evaluation.ips.into()),
            snips: evaluation.snips.map(Estimate::from),
            doubly_robust: modelled(evaluation.doubly_robust),
            lift: modelled(evaluation.lift),
        }
    }
}

impl From<Estimated> for Estimate {
    fn from(Estimated { value, standard_error, low, high }: Estimated) -> Self {
        Self { value, standard_error, low, high }
    }
}
