//! What a customer is offered by what is in service: the policy in force, its holdout and budget, and the experiments that run. The law
//! of it is in `domain::policy::layers`; which experiments there are is in `experiments`.

use std::sync::Arc;

use super::account::Reserved;
use super::serving::{Candidate, Serving};
use crate::domain::decision::{Arm, Decision};
use crate::domain::policy::Policy;
use crate::domain::policy::assessment::Assessment;
use crate::domain::policy::condition::Known;
use crate::domain::policy::layers::{self, Case, Chance, Decided, Layers, Way};
use crate::domain::record::Record;
use crate::domain::score::Score;
use crate::telemetry::Metrics;

/// The experiments that run on a model, with the policies of their arms bound to what is in its slots.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) layers: Arc<Layers>,
    /// For each policy of the layers, under the champion and under the idle model.
    arms: Vec<(Candidate, Option<Candidate>)>,
}

impl Running {
    /// `layers` over the models in the slots.
    ///
    /// Errors: what of their policies does not fit the models.
    pub(super) fn new(
        layers: Layers,
        champion: &Candidate,
        idle: Option<&Candidate>,
        metrics: &Metrics,
    ) -> Result<Self, Vec<String>> {
        let arm = |policy: &Arc<Policy>| -> Result<_, Vec<String>> {
            let idle = idle.map(|idle| idle.under(policy, metrics)).transpose()?;
            Ok((champion.under(policy, metrics)?, idle))
        };
        let arms = layers.policies().iter().map(arm).collect::<Result<_, _>>()?;
        Ok(Self { layers: Arc::new(layers), arms })
    }

    fn candidate(&self, at: usize, arm: Arm) -> Option<&Candidate> {
        let (champion, idle) = self.arms.get(at)?;
        match arm {
            Arm::Champion => Some(champion),
            Arm::Challenger => idle.as_ref(),
        }
    }
}

impl Serving {
    /// What a customer with `score` is offered, given by the model in the role `arm`, with the policy that decided and the money that
    /// is set aside. `values` is what the policy in force wants to know.
    pub(super) fn treat(
        &self,
        record: &Record,
        values: &[Known],
        score: Score,
        arm: Arm,
        at_ms: u64,
    ) -> (Decided, Arc<Policy>, Option<Chance>, Option<Reserved>) {
        let running = self.experiments.as_deref();
        let layers = running.map(|running| &*running.layers);
        let account = self.account.as_deref();
        let has_chance = running.is_some() || self.policy.holdout().is_some();
        let left = account.filter(|_| has_chance).map(|account| account.left(at_ms));
        let case = Case { policy: &self.policy, layers, customer_id: &record.customer_id, at_ms, score, values };
        let own = |at: usize| {
            let (running, layers) = running.zip(layers)?;
            let known = running.candidate(at, arm)?.binding.read(record).ok()?;
            Some(layers.policies()[at].assess(score, &known))
        };
        let mut reserved = None;
        let choose = |assessment: &Assessment| match account {
            None => assessment.choose(0.0, |_| true),
            Some(account) => {
                let choice;
                (choice, reserved) = account.choose(assessment, at_ms);
                choice
            }
        };
        let peek = |assessment: &Assessment, price| {
            assessment.choose(price, |offer| left.is_none_or(|left| offer.cost <= left))
        };
        let price = account.map_or(0.0, |account| account.shadow_price());
        let decided = layers::decide(&case, price, own, choose, peek);
        let policy = match (decided.way, layers) {
            (Way::Policy(at), Some(layers)) => &layers.policies()[at],
            _ => &self.policy,
        };
        let chance = decided.propensity.map(|propensity| Chance {
            propensity,
            layers: running.map(|running| running.layers.clone()),
            member: decided.member,
            left,
        });
        let policy = policy.clone();
        (decided, policy, chance, reserved)
    }

    /// Counts a decision that is with the ledger.
    pub(super) fn count(&self, decision: &Decision) {
        let policies = self.experiments.iter().flat_map(|running| running.layers.policies().iter().enumerate());
        let own = policies.filter(|(_, policy)| Arc::ptr_eq(policy, &decision.policy)).find_map(|(at, _)| {
            let candidate = self.experiments.as_ref()?.candidate(at, decision.arm)?;
            (!Arc::ptr_eq(&decision.policy, &self.policy)).then_some(candidate)
        });
        own.unwrap_or_else(|| self.candidate(decision.arm)).count(decision.tier);
    }
}
