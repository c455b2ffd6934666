//! Slots, rollouts and their history as they go over the wire. Translation only.

use serde::Serialize;
use utoipa::ToSchema;

use super::wire_fairness::Compliance;
use super::wire_records::time;
use crate::domain::money::Money;
use crate::domain::rollout;
use crate::domain::rollout::comparison::Comparison;
use crate::domain::rollout::guardrail::{Reading, Verdict};
use crate::domain::rollout::slots::{Approval, Colour, Role};
use crate::engine::{Balance, Moved, Occupancy, Standing};
use crate::ledger::Recalled;

/// The slots of every model.
#[derive(Serialize, ToSchema)]
pub(super) struct SlotsList {
    /// The default model first.
    pub(super) models: Vec<Slots>,
}

/// The slots of one model.
#[derive(Serialize, ToSchema)]
pub(super) struct Slots {
    /// Its name.
    model: String,
    /// Blue and green.
    slots: Vec<Slot>,
    /// The rollout that is going on.
    #[serde(skip_serializing_if = "Option::is_none")]
    rollout: Option<Rollout>,
    /// The rollout that ended last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, nullable = false)]
    last_rollout: Option<Ended>,
    /// The policy in force.
    policy: PolicyName,
    /// How the budget of the policy stands. Absent where it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    budget: Option<Budget>,
    /// How many customers have the interventions that are only for so many. Absent where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    capacities: Vec<Capacity>,
    /// The moves that are legal now.
    legal: Vec<&'static str>,
    /// Roles that have not agreed to a promotion.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    approvals_missing: Vec<String>,
    /// False while a rollback is in force that the ledger could not take yet, or a move may be on record that is not in force yet.
    journalled: bool,
}

/// How a budget stands.
#[derive(Serialize, ToSchema)]
pub(super) struct Budget {
    /// What interventions may cost in each period.
    amount: f64,
    /// ISO 4217.
    #[schema(example = "USD")]
    currency: String,
    /// `day`, `week` or `month`, of the UTC calendar.
    period: &'static str,
    /// When this period began.
    #[schema(value_type = String, format = DateTime)]
    from: String,
    /// When the next one begins.
    #[schema(value_type = String, format = DateTime)]
    to: String,
    /// What interventions cost since it began.
    spent: f64,
    /// What they may cost yet.
    left: f64,
    /// By how much a unit of money is dearer than itself when an intervention is chosen by expected value, because there is too little
    /// of it.
    shadow_price: f64,
}

impl From<Balance> for Budget {
    fn from(balance: Balance) -> Self {
        let left = balance.budget.amount.less(balance.spent).max(Money::ZERO);
        Self {
            amount: balance.budget.amount.units(),
            currency: balance.currency,
            period: balance.budget.period.name(),
            from: time(balance.period_ms.start as i64),
            to: time(balance.period_ms.end as i64),
            spent: balance.spent.units(),
            left: left.units(),
            shadow_price: balance.shadow_price,
        }
    }
}

/// How an intervention stands that is only for so many customers.
#[derive(Serialize, ToSchema)]
pub(super) struct Capacity {
    /// Its action.
    action: String,
    /// How many customers can have it in each period.
    count: u32,
    /// `day`, `week` or `month`, of the UTC calendar.
    per: &'static str,
    /// When the next one begins.
    #[schema(value_type = String, format = DateTime)]
    to: String,
    /// How often it was offered in this one.
    taken: u32,
}

impl From<Occupancy> for Capacity {
    fn from(occupancy: Occupancy) -> Self {
        let Occupancy { action, capacity, period_ms, taken } = occupancy;
        Self { action, count: capacity.count, per: capacity.per.name(), to: time(period_ms.end as i64), taken }
    }
}

/// One slot.
#[derive(Serialize, ToSchema)]
pub(super) struct Slot {
    /// `blue` or `green`.
    slot: &'static str,
    /// `empty`, `loading`, `ready`, or `failed` when it could not be loaded at the start: the next move that needs it tries again.
    state: &'static str,
    /// Why it could not be loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// `champion`, `challenger`, `standby` or `staged`.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    /// The version that stands in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// The sha256 of its bundle's manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    /// The share of customers that it answers.
    share: f64,
    /// Since when it has its role.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime, nullable = false)]
    since: Option<String>,
    /// About what it takes: by how much resident memory grew while it was loaded, and its graph for each lane at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    /// Decisions that it made since it was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<u64>,
    /// Median time of a row, by its probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    row_p50_us: Option<f64>,
    /// 99th percentile of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    row_p99_us: Option<f64>,
    /// Who agreed to its promotion.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>, required = false)]
    approvals: Vec<Approval>,
}

/// A rollout.
#[derive(Serialize, ToSchema)]
pub(super) struct Rollout {
    /// Its id.
    id: String,
    /// `running` or `paused`.
    state: &'static str,
    /// What the challenger is exposed to: `shadow` or `canary`.
    #[schema(value_type = String)]
    exposure: rollout::Exposure,
    /// The step that it is at, from 1.
    step: usize,
    /// Its steps.
    #[schema(value_type = Vec<Object>)]
    steps: Vec<rollout::Step>,
    /// Since when it is at that step.
    #[schema(value_type = String, format = DateTime)]
    step_since: String,
    /// Since when it goes on.
    #[schema(value_type = String, format = DateTime)]
    since: String,
    /// What the guardrails say together: `pass`, `hold` or `fail`.
    #[schema(value_type = String)]
    verdict: Verdict,
    /// Each guardrail with its figures.
    #[schema(value_type = Vec<Object>)]
    guardrails: Vec<Reading>,
    /// Samples that the shadow had no time for.
    samples_dropped: u64,
    /// Answers that the champion gave because the challenger could not.
    fallbacks: u64,
    /// Whether it is promoted without a person.
    promote: bool,
}

/// A rollout that has ended.
#[derive(Serialize)]
pub(super) struct Ended {
    id: String,
    version: String,
    end: rollout::End,
    at: String,
    step: usize,
    guardrails: Vec<Reading>,
}

/// A policy by its name and hash.
#[derive(Serialize, ToSchema)]
pub(super) struct PolicyName {
    name: String,
    /// The first 16 digits of the document's sha256.
    version: String,
}

/// A move that was made.
#[derive(Serialize, ToSchema)]
pub(super) struct Done {
    /// The verb.
    verb: String,
    /// What became of it.
    result: String,
    /// How long the store took that put it into service, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    flip_us: Option<f64>,
    /// What else is to be known, such as differences of the dictionaries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    notes: Vec<String>,
    /// How both models differ on recorded decisions.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, nullable = false)]
    replay: Option<Comparison>,
    /// Of a policy that was applied: which groups it puts at a disadvantage, on recent decisions.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    compliance: Option<Compliance>,
    /// Whether the same request had been answered before, and nothing was done now.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    repeated: bool,
    /// How the slots stand now.
    slots: Slots,
}

/// What was done to the slots of a model.
#[derive(Serialize, ToSchema)]
pub(super) struct History {
    /// The newest first.
    moves: Vec<Recorded>,
    /// The `before` of the next page, if there may be one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    next_before: Option<i64>,
}

/// A move on record.
#[derive(Serialize, ToSchema)]
pub(super) struct Recorded {
    /// The number of its record.
    seq: i64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    at: String,
    /// The verb.
    verb: String,
    /// Who asked for it; `mainstay` is the service itself.
    by: String,
    /// Why.
    why: String,
    /// What became of it.
    result: String,
}

impl From<Standing> for Slots {
    fn from(standing: Standing) -> Self {
        let Standing {
            model,
            slots,
            loaded,
            staging,
            readings,
            verdict,
            dropped,
            fallbacks,
            balance,
            occupancies,
            legal,
            missing,
            unloaded,
            journalled,
        } = standing;
        let canary = slots.rollout.as_ref().map(rollout::Rollout::at);
        let canary = canary.filter(|step| step.exposure == rollout::Exposure::Canary).map_or(0.0, |step| step.share);
        let is_idle = |colour: Colour| colour != slots.champion();
        let slot = |(colour, warm): (Colour, Option<crate::engine::Warm>)| {
            let placed = slots.placed(colour).cloned();
            Slot {
                slot: colour.name(),
                state: match &placed {
                    _ if staging && is_idle(colour) => "loading",
                    Some(_) if unloaded.is_some() && is_idle(colour) => "failed",
                    Some(_) => "ready",
                    None => "empty",
                },
                problem: unloaded.clone().filter(|_| is_idle(colour)),
                share: match placed.as_ref().map(|placed| placed.role) {
                    Some(Role::Champion) => 1.0 - canary,
                    Some(Role::Challenger) => canary,
                    _ => 0.0,
                },
                role: placed.as_ref().map(|placed| placed.role.name()),
                since: placed.as_ref().map(|placed| time(placed.since_ms as i64)),
                version: placed.as_ref().map(|placed| placed.version.clone()),
                digest: placed.as_ref().map(|placed| placed.digest.clone()),
                approvals: placed.map(|placed| placed.approvals).unwrap_or_default(),
                memory_bytes: warm.as_ref().map(|warm| warm.memory_bytes),
                requests: warm.as_ref().map(|warm| warm.requests),
                row_p50_us: warm.as_ref().map(|warm| warm.row_p50_us),
                row_p99_us: warm.as_ref().map(|warm| warm.row_p99_us),
            }
        };
        let policy =
            PolicyName { name: slots.policy.name.clone(), version: slots.policy.digest.chars().take(16).collect() };
        Self {
            model,
            slots: Colour::ALL.into_iter().zip(loaded).map(slot).collect(),
            rollout: slots.rollout.map(|rollout| Rollout {
                exposure: rollout.at().exposure,
                id: rollout.id,
                state: if rollout.paused { "paused" } else { "running" },
                step: rollout.step + 1,
                steps: rollout.plan.steps,
                step_since: time(rollout.step_since_ms as i64),
                since: time(rollout.since_ms as i64),
                verdict,
                guardrails: readings,
                samples_dropped: dropped,
                fallbacks,
                promote: rollout.plan.promote,
            }),
            last_rollout: slots.last_rollout.map(|ended| Ended {
                id: ended.id,
                version: ended.version,
                end: ended.end,
                at: time(ended.at_ms as i64),
                step: ended.step + 1,
                guardrails: ended.readings,
            }),
            policy,
            budget: balance.map(Budget::from),
            capacities: occupancies.into_iter().map(Capacity::from).collect(),
            legal,
            approvals_missing: missing,
            journalled,
        }
    }
}

impl Done {
    /// What was done, and how the slots stand since.
    pub(super) fn new(moved: Moved, standing: Standing) -> Self {
        let Moved { verb, result, flip_us, notes, replay, compliance, repeated } = moved;
        let compliance = compliance.map(Compliance::from);
        Self { verb, result, flip_us, notes, replay, compliance, repeated, slots: standing.into() }
    }
}

impl History {
    /// A page of at most `limit` moves.
    pub(super) fn new(found: Vec<Recalled>, limit: usize) -> Self {
        let next_before = found.last().filter(|_| found.len() == limit).map(|last| last.seq);
        let moves = found.into_iter().map(|Recalled { seq, at_ms, body }| {
            let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
            Recorded {
                seq,
                at: time(at_ms),
                verb: text("verb"),
                by: text("by"),
                why: text("why"),
                result: text("result"),
            }
        });
        Self { moves: moves.collect(), next_before }
    }
}
