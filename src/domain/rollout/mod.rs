//! The rollout: the trial of a challenger, as a pure machine of steps. Shadow and canary are kinds of steps, not features of their
//! own. Where the models stand is in `slots`; how the verdict comes about, in `guardrail`.

pub mod comparison;
pub mod effect;
pub mod guardrail;
pub mod moves;
pub mod slots;

use serde::{Deserialize, Serialize};

use guardrail::{Limits, Reading, Verdict};

/// The most steps of one plan.
pub const STEPS_MAX: usize = 32;

/// What a challenger is exposed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exposure {
    /// It scores a sample beside the champion; customers see nothing of it.
    Shadow,
    /// It answers a share of the customers.
    Canary,
}

/// One step of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What the challenger does in it.
    pub exposure: Exposure,
    /// The share of requests, or customers, over 0 to 1.
    pub share: f64,
    /// How long it lasts at least, in seconds.
    pub bake_secs: u64,
}

/// How a rollout is to go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Under which conditions it may go on.
    pub limits: Limits,
    /// Whether it may end in a promotion without a person.
    pub promote: bool,
}

impl Plan {
    /// Every value that is out of its range, as (JSON pointer, what is expected).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        if !(1..=STEPS_MAX).contains(&self.steps.len()) {
            problems.push(("/steps".to_owned(), format!("1 to {STEPS_MAX} steps")));
        }
        for (at, step) in self.steps.iter().enumerate() {
            if !(step.share > 0.0 && step.share <= 1.0) {
                problems.push((format!("/steps/{at}/share"), "over 0, to 1".to_owned()));
            }
            if step.bake_secs > 366 * 86_400 {
                problems.push((format!("/steps/{at}/bake_secs"), "at most a year".to_owned()));
            }
            let before = at.checked_sub(1).map(|before| self.steps[before]);
            let alone = step.exposure == Exposure::Canary && step.share == 1.0;
            if alone && before.is_none_or(|before| before.exposure == Exposure::Shadow) {
                // A champion without customers is nothing to compare with.
                let text = "a canary of less than all customers before one of all";
                problems.push((format!("/steps/{at}/share"), text.to_owned()));
            }
            if let Some(before) = before {
                let back = before.exposure == Exposure::Canary && step.exposure == Exposure::Shadow;
                if back || (before.exposure == step.exposure && step.share <= before.share) {
                    // A share that shrinks would take customers back and forth between two models.
                    problems.push((format!("/steps/{at}"), "more exposure than the step before".to_owned()));
                }
            }
        }
        let limits = self.limits.problems().into_iter();
        problems.extend(limits.map(|(name, text)| (format!("/limits/{name}"), text)));
        problems
    }
}

/// A rollout that is going on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Its id, which also salts the assignment of customers.
    pub id: String,
    /// How it is to go.
    pub plan: Plan,
    /// The step that it is at.
    pub step: usize,
    /// Since when, milliseconds since 1970.
    pub step_since_ms: u64,
    /// When it began.
    pub since_ms: u64,
    /// When each step before that one began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before_ms: Vec<u64>,
    /// Whether it stays at its step; the guardrails hold all the same.
    pub paused: bool,
}

/// What a rollout does at a look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Hold,
    /// It goes to its next step.
    Advance,
    /// The challenger becomes the champion.
    Promote,
    /// The challenger loses its share.
    RollBack,
}

impl Rollout {
    /// The step that it is at.
    pub fn at(&self) -> &Step {
        // A plan has a step, and no rollout goes behind its last one.
        &self.plan.steps[self.step.min(self.plan.steps.len() - 1)]
    }

    /// Whether there is no further step.
    pub fn is_last(&self) -> bool {
        self.step + 1 >= self.plan.steps.len()
    }

    /// The steps so far, in order, each with when it began. Records of earlier releases do not know that of the steps before this one.
    pub fn begun(&self) -> impl Iterator<Item = (&Step, u64)> {
        let since_ms = self.before_ms.iter().copied().chain([self.step_since_ms]);
        let unknown = (self.step + 1).saturating_sub(self.before_ms.len() + 1);
        self.plan.steps.iter().skip(unknown).zip(since_ms)
    }

    /// What follows from `verdict` at `now_ms`. A broken guardrail ends it at once, paused or not; it goes on only with enough good
    /// data and when its step has lasted long enough.
    pub fn next(&self, now_ms: u64, verdict: Verdict) -> Next {
        let baked = now_ms.saturating_sub(self.step_since_ms) >= self.at().bake_secs.saturating_mul(1_000);
        match verdict {
            Verdict::Fail => Next::RollBack,
            Verdict::Pass if baked && !self.paused => match (self.is_last(), self.plan.promote) {
                (false, _) => Next::Advance,
                (true, true) => Next::Promote,
                (true, false) => Next::Hold,
            },
            Verdict::Pass | Verdict::Hold => Next::Hold,
        }
    }
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The challenger became the champion.
    Promoted,
    /// A person ended it.
    Aborted,
    /// A guardrail was broken.
    RolledBack,
}

/// A rollout that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Its id.
    pub id: String,
    /// The version of the challenger.
    pub version: String,
    /// How it ended.
    pub end: End,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// The step that it was at.
    pub step: usize,
    /// The guardrails as they stood.
    pub readings: Vec<Reading>,
}

#[cfg(test)]
pub(in crate::domain) mod tests {
    use super::*;

    pub(in crate::domain) fn plan(shares: &[f64], promote: bool) -> Plan {
        let limits = Limits { requests_min: 10, ..guardrail::tests::limits() };
        let step = |share: &f64| Step { exposure: Exposure::Canary, share: *share, bake_secs: 60 };
        Plan { steps: shares.iter().map(step).collect(), limits, promote }
    }

    #[test]
    fn goes_on_with_good_data_and_time_only() {
        let mut rollout = Rollout {
            id: "r".to_owned(),
            plan: plan(&[0.1, 1.0], true),
            step: 0,
            step_since_ms: 1_000,
            since_ms: 1_000,
            before_ms: Vec::new(),
            paused: false,
        };
        assert_eq!(rollout.next(60_999, Verdict::Pass), Next::Hold, "not baked");
        assert_eq!(rollout.next(61_000, Verdict::Pass), Next::Advance);
        assert_eq!(rollout.next(9_000_000, Verdict::Hold), Next::Hold, "no data, however long");
        assert_eq!(rollout.next(1_000, Verdict::Fail), Next::RollBack, "at once");
        rollout.paused = true;
        assert_eq!(rollout.next(61_000, Verdict::Pass), Next::Hold);
        assert_eq!(rollout.next(61_000, Verdict::Fail), Next::RollBack, "paused or not");
        (rollout.paused, rollout.step) = (false, 1);
        assert_eq!(rollout.next(61_000, Verdict::Pass), Next::Promote);
        rollout.plan.promote = false;
        assert_eq!(rollout.next(61_000, Verdict::Pass), Next::Hold, "a person promotes");
    }

    #[test]
    fn every_step_so_far_has_its_time_where_that_is_on_record() {
        let mut rollout = Rollout {
            id: "r".to_owned(),
            plan: plan(&[0.1, 0.2, 1.0], true),
            step: 1,
            step_since_ms: 2_000,
            since_ms: 1_000,
            before_ms: vec![1_000],
            paused: false,
        };
        let begun = |rollout: &Rollout| rollout.begun().map(|(step, at_ms)| (step.share, at_ms)).collect::<Vec<_>>();
        assert_eq!(begun(&rollout), [(0.1, 1_000), (0.2, 2_000)]);
        let text = serde_json::to_string(&Rollout { before_ms: Vec::new(), ..rollout.clone() }).expect("JSON");
        rollout = serde_json::from_str(&text).expect("as an earlier release wrote it");
        assert_eq!(begun(&rollout), [(0.2, 2_000)]);
    }

    #[test]
    fn a_plan_only_grows() {
        assert!(plan(&[0.01, 0.05, 1.0], false).problems().is_empty());
        let wrong = plan(&[0.5, 0.5, 0.0, f64::NAN, 2.0], false).problems();
        let places: Vec<&str> = wrong.iter().map(|(place, _)| place.as_str()).collect();
        assert_eq!(places, ["/steps/1", "/steps/2/share", "/steps/2", "/steps/3/share", "/steps/4/share"]);
        assert_eq!(plan(&[], false).problems()[0].0, "/steps");
        assert_eq!(plan(&[1.0], false).problems()[0].0, "/steps/0/share");
    }
}
