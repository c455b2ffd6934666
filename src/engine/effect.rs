//! What came of a rollout, from the sample: who left of whose customers, and which groups were offered something. Measured on the thread of
//! measures, so that the tick only has to take the newest; what is concluded is in `domain::rollout::effect`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, PoisonError};

use super::Engine;
use super::measures::View;
use super::monitor::Window;
use crate::domain::decision::Arm;
use crate::domain::insight::ALPHA;
use crate::domain::money::Money;
use crate::domain::rollout::effect::{Effect, Stratum};
use crate::domain::rollout::{Exposure, Rollout, Step};
use crate::domain::statistics::fairness::{Census, Seen};
use crate::ledger::Ticket;

/// What came of one rollout.
#[derive(Debug)]
pub(super) struct Found {
    /// Its id.
    pub(super) rollout: String,
    pub(super) effect: Effect,
}

/// A customer of a canary, by the first decision in it.
struct Member {
    stratum: usize,
    arm: Arm,
    churned: Option<bool>,
    /// By the decisions of that arm.
    offered: bool,
    groups: u32,
}

impl Engine {
    /// Measures what came of every canary, for the looks at it.
    pub(super) fn tell_effects(&self) {
        for deck in &self.decks {
            let rollout = deck.held().slots.rollout.clone();
            let effect = rollout.and_then(|rollout| {
                let effect = self.effect(&deck.name, &rollout)?;
                Some(Arc::new(Found { rollout: rollout.id, effect }))
            });
            deck.effect.store(effect);
        }
    }

    /// What came of the canary of `rollout`; `None` before it has one.
    fn effect(&self, model: &str, rollout: &Rollout) -> Option<Effect> {
        let canary = |(step, _): &(&Step, u64)| step.exposure == Exposure::Canary;
        let steps: Vec<(&Step, u64)> = rollout.begun().filter(canary).collect();
        let (_, from_ms) = *steps.first()?;
        let sample = self.insight.sample.lock().unwrap_or_else(PoisonError::into_inner);
        let maturity_ms = self.insight.options.maturity_ms();
        let view = View::new(&sample, model, self.now_ms(), Window::Month, maturity_ms);
        let mut members: HashMap<Ticket, Member> = HashMap::new();
        for row in view.rows(from_ms as i64, i64::MAX, &|_| true) {
            let kind = view.kind(row);
            // Who is held out is offered the same by both.
            if kind.is_kept {
                continue;
            }
            let arm = if kind.arm == Arm::Challenger.name() { Arm::Challenger } else { Arm::Champion };
            match members.entry(row.customer) {
                Entry::Vacant(place) => {
                    let begun = steps.partition_point(|(_, since_ms)| *since_ms as i64 <= row.at_ms);
                    place.insert(Member {
                        stratum: begun.saturating_sub(1),
                        arm,
                        churned: view.begin(row).churned(maturity_ms),
                        offered: row.offered,
                        groups: row.groups,
                    });
                }
                // A share that grows takes customers over: what the other arm then did is not this one's.
                Entry::Occupied(mut member) if member.get().arm == arm => {
                    let member = member.get_mut();
                    member.offered |= row.offered;
                    member.groups = if member.groups == 0 { row.groups } else { member.groups };
                }
                Entry::Occupied(_) => {}
            }
        }
        let mut strata: Vec<Stratum> =
            steps.iter().map(|(step, _)| Stratum { share: step.share, ..Stratum::default() }).collect();
        let mut censuses = [Census::default(), Census::default()];
        for member in members.values() {
            let arm = usize::from(member.arm == Arm::Challenger);
            let labels = &mut strata[member.stratum].labels[arm];
            labels.known += u64::from(member.churned.is_some());
            labels.left += u64::from(member.churned == Some(true));
            let groups = &sample.groups.values[member.groups as usize];
            let seen = Seen { offered: member.offered, cost: Money::ZERO, churned: None };
            censuses[arm].add(groups.iter().map(|(attribute, group)| (attribute.as_str(), group.as_str())), &seen);
        }
        Some(Effect { strata, groups: censuses.map(|census| census.compare(ALPHA)) })
    }
}
