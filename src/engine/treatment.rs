//! What a customer is offered by what is in service: the policy in force, its holdout and budget, and the experiments that run. The law
//! of it is in `domain::policy::layers`; which experiments there are is in `experiments`.

use std::sync::Arc;

use super::account::Reserved;
use super::capacity::{Full, Place};
use super::serving::{Candidate, Scored, Serving};
use crate::domain::decision::{Arm, Decision};
use crate::domain::policy::Policy;
use crate::domain::policy::assessment::{Assessment, Choice, Offer, Refused};
use crate::domain::policy::condition::Known;
use crate::domain::policy::layers::{self, Case, Chance, Decided, Layers, Room, Way};
use crate::domain::record::Record;
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

    /// Whether a policy of theirs decides by what the model in the role `arm` estimates of interventions.
    pub(super) fn want_uplifts(&self, arm: Arm) -> bool {
        (0..self.arms.len()).filter_map(|at| self.candidate(at, arm)).any(|candidate| candidate.binding.wants_uplifts())
    }

    fn candidate(&self, at: usize, arm: Arm) -> Option<&Candidate> {
        let (champion, idle) = self.arms.get(at)?;
        match arm {
            Arm::Champion => Some(champion),
            Arm::Challenger => idle.as_ref(),
        }
    }
}

/// How the choice for a customer is made.
pub(super) enum Choosing {
    /// For this one alone.
    Alone,
    /// With those for all rows of a batch, to spend one budget over them: what was chosen, with the money for it; `None` for who takes no
    /// part, being held out. How probable an action was is known of none of them.
    Together(Option<(Choice, Option<Reserved>)>),
}

/// What a customer is offered, and by whom.
pub(super) struct Treated {
    pub(super) decided: Decided,
    /// The policy that decided.
    pub(super) policy: Arc<Policy>,
    /// What chance had to do with it, where it had.
    pub(super) chance: Option<Chance>,
    /// The money and the place that are set aside.
    pub(super) reserved: Option<Reserved>,
}

impl Serving {
    /// What a customer who was `scored` is offered. `values` is what the policy in force wants to know.
    pub(super) fn treat(
        &self,
        record: &Record,
        values: &[Known],
        scored: &Scored,
        at_ms: u64,
        choosing: Choosing,
    ) -> Treated {
        let Scored { score, arm, ref uplifts } = *scored;
        let running = self.experiments.as_deref();
        let layers = running.map(|running| &*running.layers);
        let account = self.account.as_deref();
        let is_alone = matches!(choosing, Choosing::Alone);
        let has_chance = is_alone && (running.is_some() || self.policy.holdout().is_some());
        let room = Room {
            left: account.filter(|_| has_chance).map(|account| account.left(at_ms)),
            full: self.capacities.as_ref().filter(|_| has_chance).map_or_else(Vec::new, |known| known.full(at_ms)),
        };
        let case = Case { policy: &self.policy, layers, customer_id: &record.customer_id, at_ms, score, values };
        let policy_of = |way: Way| match (way, layers) {
            (Way::Policy(at), Some(layers)) => &layers.policies()[at],
            _ => &self.policy,
        };
        let own = |at: usize| {
            let (running, layers) = running.zip(layers)?;
            let known = running.candidate(at, arm)?.binding.read_with(record, uplifts).ok()?;
            Some(layers.policies()[at].assess(score, &known))
        };
        let mut reserved = None;
        let choose = |way: Way, assessment: &Assessment| {
            let choice;
            (choice, reserved) = match choosing {
                Choosing::Together(Some(chosen)) => chosen,
                _ => self.choose(assessment, policy_of(way), at_ms),
            };
            choice
        };
        let price = account.map_or(0.0, |account| account.shadow_price());
        let decided = layers::decide(&case, price, own, choose, &room);
        let chance = decided.propensity.map(|propensity| Chance {
            propensity: is_alone.then_some(propensity),
            layers: running.map(|running| running.layers.clone()),
            member: decided.member,
            room,
        });
        let policy = policy_of(decided.way).clone();
        Treated { decided, policy, chance, reserved }
    }

    /// What is chosen by `policy`, with the money that is set aside and the place that is taken for it.
    fn choose(&self, assessment: &Assessment, policy: &Policy, at_ms: u64) -> (Choice, Option<Reserved>) {
        let (mut full, mut place) = (Refused::default(), None);
        let has_place = |offer: &Offer| match self.take_place(policy, offer.intervention, at_ms) {
            Ok(taken) => {
                place = taken;
                true
            }
            Err(Full) => {
                full.add(offer.intervention);
                false
            }
        };
        let (choice, money) = match &self.account {
            None => (assessment.choose(0.0, has_place), None),
            Some(account) => account.choose(assessment, at_ms, has_place),
        };
        // What had a place and no money is not what was chosen.
        let place = place.filter(|(intervention, _)| *intervention == choice.intervention).map(|(_, place)| place);
        (Choice { full, ..choice }, Reserved::with(money, place))
    }

    /// Takes a place for a customer, where the intervention of `policy` has a bound: that of the policy in force by the same name, whoever
    /// decides.
    fn take_place(&self, policy: &Policy, intervention: usize, at_ms: u64) -> Result<Option<(usize, Place)>, Full> {
        let Some(capacities) = &self.capacities else { return Ok(None) };
        let bound = match std::ptr::eq(policy, &*self.policy) {
            true => Some(intervention),
            false => {
                let action = &policy.interventions()[intervention].action;
                self.policy.interventions().iter().position(|known| known.action == *action)
            }
        };
        let place = bound.map_or(Ok(None), |bound| capacities.take(bound, at_ms))?;
        Ok(place.map(|place| (intervention, place)))
    }

    /// The model that gave the score of `decision`, bound to the policy that decided: the one in force, or that of an arm.
    pub(super) fn decider(&self, decision: &Decision) -> &Candidate {
        let own = || {
            let running = self.experiments.as_deref().filter(|_| !Arc::ptr_eq(&decision.policy, &self.policy))?;
            let at = running.layers.policies().iter().position(|policy| Arc::ptr_eq(policy, &decision.policy))?;
            running.candidate(at, decision.arm)
        };
        own().unwrap_or_else(|| self.candidate(decision.arm))
    }

    /// Whether the policy of an arm wants reasons of a tier.
    pub(super) fn arms_explain(&self) -> bool {
        self.experiments.iter().flat_map(|running| running.layers.policies()).any(|policy| policy.explains())
    }

    /// Counts a decision that is with the ledger.
    pub(super) fn count(&self, decision: &Decision) {
        self.decider(decision).count(decision.tier);
    }
}
