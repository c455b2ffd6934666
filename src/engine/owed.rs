//! What is not settled between a deck and the journal: a rollback that is in force and not on record yet, and a move that may be on record
//! and is not in force yet. What moves there are, and when they are legal, is elsewhere.

use std::sync::MutexGuard;
use std::time::Duration;

use super::experiments::ArmPolicies;
use super::slots::{Deck, Delivery, Held};
use super::{Engine, Error};
use crate::domain::policy::registry::Registry;
use crate::domain::rollout::slots::Slots;
use crate::ledger::{self, Change, Ledger, Pending};

/// A change that is in force and not on record yet.
#[derive(Debug)]
pub(super) struct Owed {
    pub(super) change: Change,
    /// The attempt to record it.
    pub(super) pending: Option<Pending>,
}

/// A move that was not on record in time, and may be still: who asked for it was told so. Nothing else is moved until that is known, since
/// it would begin from a state that has passed.
#[derive(Debug)]
pub(super) struct Late {
    pending: Pending,
    verb: String,
    outcome: Outcome,
}

/// What a move leads to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Other slots, with what was delivered for them.
    Slots(Box<Slots>, Delivery),
    /// Other experiments, with the policies of their arms that were not there.
    Experiments(Registry, ArmPolicies),
}

impl Held {
    /// Waits until what is owed to the journal is written, as one entry: an attempt under way is waited for, not made twice.
    ///
    /// Errors: whatever keeps it from being written; it is owed still.
    pub(super) fn pay(&mut self, ledger: &Ledger) -> Result<(), Error> {
        let Some(owed) = self.owed.as_mut() else { return Ok(()) };
        // An attempt that is late may be written still: it is kept, not to be made twice.
        match owed.pending.as_ref().map(Pending::wait) {
            Some(answer @ (Ok(_) | Err(ledger::Error::Late))) => answer?,
            // By what an attempt failed says nothing of now.
            Some(Err(_)) | None => owed.pending.insert(ledger.change_later(owed.change.clone())?).wait()?,
        };
        self.owed = None;
        Ok(())
    }

    /// Puts `change` into force before it is on record. It stands behind a move that is late, and says what the slots are whatever that was.
    pub(super) fn owe(&mut self, change: Change, ledger: &Ledger) {
        let pending = ledger.change_later(change.clone()).ok();
        self.owed = Some(Owed { change, pending });
        self.late.take_if(|late| matches!(late.outcome, Outcome::Slots(..)));
    }
}

impl Engine {
    /// The slots of `deck` for a move, when all that was asked for before is settled.
    ///
    /// Errors: [`Error::Late`]: it is not.
    pub(super) fn hold<'d>(&self, deck: &'d Deck) -> Result<MutexGuard<'d, Held>, Error> {
        let mut held = deck.held();
        self.settle(deck, &mut held);
        if held.late.is_some() { Err(Error::Late) } else { Ok(held) }
    }

    /// The same for whoever only looks at experiments: late slots do not change them.
    ///
    /// Errors: [`Error::Late`].
    pub(super) fn hold_experiments<'d>(&self, deck: &'d Deck) -> Result<MutexGuard<'d, Held>, Error> {
        let mut held = deck.held();
        self.settle(deck, &mut held);
        let is_late = held.late.as_ref().is_some_and(|late| matches!(late.outcome, Outcome::Experiments(..)));
        if is_late { Err(Error::Late) } else { Ok(held) }
    }

    /// Journals a change behind what is owed, if there is a ledger, and then puts its `outcome` into force: how long the store took.
    ///
    /// Errors: whatever keeps it from being written; then nothing has changed. [`Error::Late`]: it may be in force soon all the same.
    pub(super) fn journal(
        &self,
        deck: &Deck,
        held: &mut Held,
        change: Change,
        outcome: Outcome,
    ) -> Result<Duration, Error> {
        if let Some(ledger) = &self.ledger {
            if held.late.is_some() {
                return Err(Error::Late);
            }
            // What is owed stands before this in the history.
            held.pay(ledger)?;
            let verb = change.verb.clone();
            let pending = ledger.change_later(change)?;
            if let Err(error) = pending.wait() {
                if matches!(error, ledger::Error::Late) && pending.is_taken() {
                    tracing::warn!(model = deck.name, verb, "the move is not on record in time, and may be still");
                    held.late = Some(Late { pending, verb, outcome });
                    return Err(Error::Late);
                }
                return Err(error.into());
            }
        }
        Ok(self.put_into_force(deck, held, outcome))
    }

    /// Puts what a move leads to into force: how long the store took.
    pub(super) fn put_into_force(&self, deck: &Deck, held: &mut Held, outcome: Outcome) -> Duration {
        match outcome {
            Outcome::Slots(next, delivery) => {
                if let Some(policy) = &delivery.policy {
                    // Not before the change is on record: everything that was decided by then is, too.
                    held.account = self.account(deck, policy, held.account.as_deref());
                    held.capacities = self.capacities(deck, policy, held.capacities.as_deref());
                }
                let left = held.take_over(*next, delivery);
                let flip = self.publish(deck, held);
                self.retire(left);
                flip
            }
            Outcome::Experiments(next, policies) => {
                held.arm_policies.extend(policies);
                held.experiments = next;
                held.forget();
                self.publish(deck, held)
            }
        }
    }

    /// Journals a rollback that was made before it could be written down, and puts a move into force that was late and is written, without
    /// waiting for either.
    pub(super) fn settle(&self, deck: &Deck, held: &mut Held) {
        let Some(ledger) = &self.ledger else { return };
        if let Some(answer) = held.late.as_ref().and_then(|late| late.pending.poll())
            && let Some(Late { verb, outcome, .. }) = held.late.take()
        {
            match answer {
                Ok(_) => {
                    self.put_into_force(deck, held, outcome);
                    tracing::info!(model = deck.name, verb, "moved, late");
                }
                Err(error) => tracing::info!(model = deck.name, verb, cause = %error, "not moved"),
            }
        }
        let Some(owed) = held.owed.as_mut() else { return };
        match owed.pending.as_ref().map(Pending::poll) {
            Some(None) => {}
            Some(Some(Ok(_))) => held.owed = None,
            Some(Some(Err(_))) | None => owed.pending = ledger.change_later(owed.change.clone()).ok(),
        }
    }
}
