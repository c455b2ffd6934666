//! The look at a rollout: what its watches saw becomes evidence, a verdict, and what follows from it. The moves themselves are made
//! in `slots`, by a person or from here.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};

use super::serving::Watches;
use super::slots::{Deck, Delivery, Held, SERVICE};
use super::{Ask, Engine, Error, Moved};
use crate::domain::guardrail::{self, Limits, Reading, Verdict, verdict};
use crate::domain::moves::Move;
use crate::domain::rollout::{Exposure, Next, Plan, Rollout, Step};
use crate::domain::sequential::RateTest;

/// How long the shadow may be at one run before the challenger counts as dead, in milliseconds.
const ANSWER_MS_MAX: u64 = 2_000;

/// The section `rollouts` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Options {
    pub arm_header: bool,
    pub approvals: Vec<String>,
    pub promote: bool,
    pub shadow: Step,
    pub canary: Vec<Step>,
    pub limits: Limits,
    pub shadow_queue_max: usize,
    pub replay_rows_max: usize,
}

impl Options {
    /// Every value that is out of its range, as (key, sentence).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut plan = |key, steps: Vec<Step>| {
            let plan = Plan { steps, limits: self.limits, promote: self.promote };
            problems.extend(plan.problems().into_iter().map(|(place, text)| (key, format!("{place}: {text}"))));
        };
        plan("canary", self.canary.clone());
        if self.shadow.exposure != Exposure::Shadow || self.canary.iter().any(|step| step.exposure != Exposure::Canary)
        {
            problems.push(("shadow", "expected exposure \"shadow\" here and \"canary\" in rollouts.canary".to_owned()));
        }
        if !(self.shadow.share > 0.0 && self.shadow.share <= 1.0) {
            problems.push(("shadow", "expected a share over 0, to 1".to_owned()));
        }
        if !(1..=1 << 20).contains(&self.shadow_queue_max) {
            problems.push(("shadow_queue_max", format!("expected 1 to {}", 1 << 20)));
        }
        if !(1..=10_000_000).contains(&self.replay_rows_max) {
            problems.push(("replay_rows_max", "expected 1 to 10000000".to_owned()));
        }
        if self.approvals.len() > 8 || self.approvals.iter().any(|role| role.is_empty() || role.len() > 64) {
            problems.push(("approvals", "expected at most 8 roles of 1 to 64 characters".to_owned()));
        }
        problems
    }
}

/// What the looks at one rollout have found so far. It is not kept over a restart: a rollout that goes on collects it anew, and holds
/// until it has enough.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    errors: RateTest,
    /// Requests and errors of the champion and the challenger at the last look.
    before: [(u64, u64); 2],
    /// The guardrails at the last look.
    pub(super) readings: Vec<Reading>,
}

impl Evidence {
    /// Looks at `watches` at `now_ms`: the verdict.
    pub(super) fn look(&mut self, rollout: &Rollout, watches: &Watches, now_ms: u64) -> Verdict {
        let (champion, challenger) = watches.observed();
        let now = [(champion.requests, champion.errors), (challenger.requests, challenger.errors)];
        let since =
            |arm: usize| (now[arm].0.saturating_sub(self.before[arm].0), now[arm].1.saturating_sub(self.before[arm].1));
        let ((usual, usual_errors), (own, own_errors)) = (since(0), since(1));
        if usual + own > 0 {
            self.errors.add(own_errors, usual_errors, own as f64 / (usual + own) as f64);
        }
        self.before = now;
        self.readings = guardrail::judge(&rollout.plan.limits, &self.errors, &champion, &challenger);
        let busy_since_ms = watches.busy_since_ms.load(Ordering::Relaxed);
        if busy_since_ms > 0 && now_ms.saturating_sub(busy_since_ms) > ANSWER_MS_MAX {
            let figures = format!("one score has taken over {ANSWER_MS_MAX} ms and is not there yet");
            self.readings.push(Reading::new("answers", Verdict::Fail, figures));
        }
        guardrail::verdict(&self.readings)
    }
}

impl Engine {
    /// One look at every rollout, and what follows from it. To be called several times a second, by one thread that may wait.
    pub fn tick(&self) {
        // Sessions take their time to end: here, once the last request that began with them is answered.
        self.retired.lock().unwrap_or_else(PoisonError::into_inner).retain(|model| Arc::strong_count(model) > 1);
        for deck in &self.decks {
            let mut held = deck.held();
            if let Some(change) = held.owed.take()
                && let Some(ledger) = &self.ledger
                && ledger.change(change.clone()).is_err()
            {
                held.owed = Some(change);
            }
            self.look(deck, &mut held);
        }
    }

    fn look(&self, deck: &Deck, held: &mut Held) {
        let now_ms = self.now_ms();
        let Held { slots, evidence, watches, .. } = held;
        let Some((rollout, watches)) = slots.rollout.as_ref().zip(watches.as_ref()) else { return };
        let found = evidence.look(rollout, watches, now_ms);
        self.metrics.guardrails(
            &deck.name,
            evidence.readings.iter().map(|reading| (&*reading.guardrail, level(reading.verdict))),
        );
        let (step, verb, why) = match rollout.next(now_ms, found) {
            Next::Hold => return,
            Next::Advance => (Move::Advance, "advance", "the step has passed"),
            Next::Promote => (Move::Promote { passed: true }, "promote", "the rollout has passed to its end"),
            Next::RollBack => (Move::Fail, "rollback", "a guardrail is broken"),
        };
        let result = match (&step, evidence.readings.iter().find(|reading| reading.verdict == Verdict::Fail)) {
            (Move::Fail, Some(Reading { guardrail, figures, .. })) => {
                format!("rolled back at step {}: {guardrail}: {figures}", rollout.step + 1)
            }
            (Move::Advance, _) => format!("at step {} of {}", rollout.step + 2, rollout.plan.steps.len()),
            _ => "the challenger is the champion".to_owned(),
        };
        let ask = Ask { by: SERVICE.to_owned(), why: why.to_owned(), key: None };
        let moved = Moved::new(verb, result);
        match self.make(deck, held, &step, &ask, Delivery::default(), moved) {
            Ok(_) => self.metrics.rollout_moved(&deck.name, verb),
            // Such as a promotion that lacks an approval: it stays where it is, and is looked at again.
            Err(Error::Illegal(_)) => {}
            Err(error) => tracing::warn!(model = deck.name, verb, cause = %error, "the rollout could not be moved"),
        }
    }

    /// Whether the guardrails of a rollout let it be promoted: passed, baked, at its last step.
    pub(super) fn has_passed(&self, held: &Held) -> bool {
        held.slots.rollout.as_ref().is_none_or(|rollout| {
            let whole = Rollout { plan: Plan { promote: true, ..rollout.plan.clone() }, ..rollout.clone() };
            whole.next(self.now_ms(), verdict(&held.evidence.readings)) == Next::Promote
        })
    }
}

/// A verdict as a number that falls when it gets worse.
fn level(verdict: Verdict) -> f64 {
    match verdict {
        Verdict::Pass => 1.0,
        Verdict::Hold => 0.0,
        Verdict::Fail => -1.0,
    }
}
