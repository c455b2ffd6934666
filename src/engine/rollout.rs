//! The look at a rollout: what its watches saw becomes evidence, a verdict, and what follows from it. The moves themselves are made
//! in `slots`, by a person or from here.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::effect::Found;
use super::serving::Watches;
use super::slots::{Deck, Delivery, Held};
use super::{Ask, Engine, Error, Moved};
use crate::domain::access::SERVICE;
use crate::domain::rollout::effect::{self, Effect};
use crate::domain::rollout::guardrail::{self, Limits, Reading, Verdict, verdict};
use crate::domain::rollout::moves::Move;
use crate::domain::rollout::slots::Slots;
use crate::domain::rollout::{End, Exposure, Next, Plan, Rollout, Step};
use crate::domain::statistics::sequential::RateTest;

/// How long a challenger may owe scores without giving any before it counts as dead.
const ANSWER_MAX: Duration = Duration::from_secs(2);

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
    pub compliance_last: usize,
    pub compliance_refuse: bool,
}

impl Options {
    /// Every value that is out of its range, as (key, sentence).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut plan = |key, steps: Vec<Step>| {
            let plan = Plan { steps, limits: self.limits, promote: self.promote };
            problems
                .extend(plan.problems().into_iter().map(|(place, text)| (key, format!("{place}: expected {text}"))));
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
        if !(1..=1_000_000).contains(&self.replay_rows_max) {
            problems.push(("replay_rows_max", "expected 1 to 1000000".to_owned()));
        }
        if self.compliance_last > 1_000_000 {
            problems.push(("compliance_last", "expected 0 to 1000000".to_owned()));
        }
        if self.approvals.len() > 8 || self.approvals.iter().any(|role| role.is_empty() || role.len() > 64) {
            problems.push(("approvals", "expected at most 8 roles of 1 to 64 characters".to_owned()));
        }
        problems
    }
}

/// What the looks at one step of a rollout have found so far. It is not kept over a restart: a rollout that goes on collects it anew,
/// and holds until it has enough. What came of its decisions is not in it: that is in the ledger.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    errors: RateTest,
    /// Customers, and those that failed, of the champion and the challenger at the last look that both had new ones.
    before: [(u64, u64); 2],
    /// Since when the challenger owes scores and gives none, and how many it had given then.
    silent: Option<(Instant, u64)>,
    /// A move that it asks for could not be made.
    is_stuck: bool,
    /// The guardrails at the last look.
    pub(super) readings: Vec<Reading>,
}

impl Evidence {
    /// Looks at `watches`, and at what came of the rollout, if that is measured: the verdict.
    fn look(&mut self, rollout: &Rollout, watches: &Watches, found: Option<&Found>) -> Verdict {
        let (champion, challenger) = watches.observed();
        let now = [(champion.customers, champion.failed), (challenger.customers, challenger.failed)];
        let since =
            |arm: usize| (now[arm].0.saturating_sub(self.before[arm].0), now[arm].1.saturating_sub(self.before[arm].1));
        let ((usual, usual_failed), (own, own_failed)) = (since(0), since(1));
        // Failures of one arm say nothing as long as the other one had no customers: they wait for those. When that is depends on
        // who comes, not on who fails, so the test stays valid.
        if usual > 0 && own > 0 {
            self.errors.add(own_failed, usual_failed, own as f64 / (usual + own) as f64);
            self.before = now;
        }
        // Each step is a trial of its own.
        let alpha = rollout.plan.limits.alpha / rollout.plan.steps.len().max(1) as f64;
        let limits = Limits { alpha, ..rollout.plan.limits };
        let is_alone = rollout.at().exposure == Exposure::Canary && rollout.at().share >= 1.0;
        self.readings = guardrail::judge(&limits, is_alone, &self.errors, &champion, &challenger);
        let answers = self.answers(watches);
        self.readings.extend(answers);
        // Nobody is answered by a shadow, so nothing comes of it. The rest is evidence of all steps together.
        if rollout.at().exposure == Exposure::Canary {
            let none = Effect::default();
            let effect = found.filter(|found| found.rollout == rollout.id).map_or(&none, |found| &found.effect);
            self.readings.extend(effect::judge(&rollout.plan.limits, effect));
        }
        guardrail::verdict(&self.readings)
    }

    /// A reading that fails where the challenger does not answer at all: what never ends is neither a request nor an error.
    fn answers(&mut self, watches: &Watches) -> Option<Reading> {
        let (owed, given) = watches.unanswered();
        if owed == 0 || self.silent.is_some_and(|(_, before)| before != given) {
            self.silent = None;
        }
        if owed == 0 {
            return None;
        }
        let (since, _) = *self.silent.get_or_insert((Instant::now(), given));
        let figures = || format!("{owed} scores are owed, and none has come for {} s", ANSWER_MAX.as_secs());
        (since.elapsed() > ANSWER_MAX).then(|| Reading::new("answers", Verdict::Fail, figures()))
    }
}

impl Engine {
    /// One look at every rollout, and what follows from it. To be called several times a second, by one thread that may wait.
    pub fn tick(&self) {
        // Sessions take their time to end: here, once the last request that began with them is answered.
        self.retired.lock().unwrap_or_else(PoisonError::into_inner).retain(|model| Arc::strong_count(model) > 1);
        for deck in &self.decks {
            // A move that waits for the ledger keeps its own deck alone, whose guardrails wait with it; the others are looked at all the same.
            let Some(mut held) = deck.try_held() else { continue };
            held.loaded.iter().flatten().for_each(|loaded| loaded.monitor.turn(self.now_ms()));
            if let Some(account) = &held.account {
                let now_ms = self.now_ms();
                account.pace(now_ms);
                let balance = account.balance(now_ms);
                let (amount, spent) = (balance.budget.amount.units(), balance.spent.units());
                self.metrics.budget(&deck.name, amount, spent, balance.elapsed(now_ms));
            }
            self.settle(deck, &mut held);
            self.look(deck, &mut held);
            self.run_due(deck, &mut held);
        }
    }

    fn look(&self, deck: &Deck, held: &mut Held) {
        let now_ms = self.now_ms();
        let Held { slots, evidence, watches, .. } = held;
        let Some((rollout, watches)) = slots.rollout.as_ref().zip(watches.as_ref()) else { return };
        let found = evidence.look(rollout, watches, deck.effect.load().as_deref());
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
            Err(error) => {
                // Tried again at every look, told once.
                if !std::mem::replace(&mut held.evidence.is_stuck, true) {
                    tracing::warn!(model = deck.name, verb, cause = %error, "the rollout could not be moved");
                }
            }
        }
    }

    /// Whether the guardrails of a rollout let it be promoted: passed, baked, at its last step.
    pub(super) fn has_passed(&self, held: &Held) -> bool {
        held.slots.rollout.as_ref().is_none_or(|rollout| {
            let plan = Plan { promote: true, ..rollout.plan.clone() };
            let whole = Rollout { plan, paused: false, ..rollout.clone() };
            whole.next(self.now_ms(), verdict(&held.evidence.readings)) == Next::Promote
        })
    }
}

/// When the last rollout ended, if that was in a promotion.
pub(super) fn promoted_ms(slots: &Slots) -> Option<u64> {
    slots.last_rollout.as_ref().filter(|ended| ended.end == End::Promoted).map(|ended| ended.at_ms)
}

/// A verdict as a number that falls when it gets worse.
fn level(verdict: Verdict) -> f64 {
    match verdict {
        Verdict::Pass => 1.0,
        Verdict::Hold => 0.0,
        Verdict::Fail => -1.0,
    }
}
