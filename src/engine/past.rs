//! What the ledger remembers, for those above: decisions by id and by customer, outcomes, erasure, keys, copies. Every call reads or writes
//! a disk: none is for a thread that answers customers.

use std::path::Path;

use super::{Engine, Error};
use crate::domain::id::DecisionId;
use crate::domain::outcome::Outcome;
use crate::ledger::{Fate, Ledger, Page, Recorded};

impl Engine {
    pub(super) fn ledger(&self) -> Result<&Ledger, Error> {
        self.ledger.as_ref().ok_or(Error::LedgerOff)
    }

    /// Whether there is a ledger, without asking it anything.
    ///
    /// Errors: [`Error::LedgerOff`].
    pub fn needs_ledger(&self) -> Result<(), Error> {
        self.ledger().map(|_| ())
    }

    /// Records what customers did after decisions, as one group: what became of each outcome, in its place.
    pub fn record_outcomes(&self, outcomes: &[Outcome]) -> Result<Vec<Fate>, Error> {
        let fates = self.ledger()?.record_outcomes(outcomes, self.now_ms())?;
        for (outcome, fate) in outcomes.iter().zip(&fates) {
            if matches!(fate, Fate::Recorded(_)) {
                outcome.facts.stated().for_each(|fact| self.metrics.outcome(fact));
            }
        }
        Ok(fates)
    }

    /// A recorded decision.
    pub fn decision_of_record(&self, id: DecisionId) -> Result<Option<Recorded>, Error> {
        Ok(self.ledger()?.decision(id)?)
    }

    /// The recorded decisions on a customer, the newest first.
    pub fn decisions_of(&self, customer_id: &str, page: &Page) -> Result<Vec<Recorded>, Error> {
        Ok(self.ledger()?.decisions_of(customer_id, page)?)
    }

    /// Makes every recorded input of a customer unreadable for ever; `by` goes on record, if it is certain who asks. Whether there was such a customer.
    pub fn erase(&self, customer_id: &str, by: Option<&str>) -> Result<bool, Error> {
        Ok(self.ledger()?.erase(customer_id, by)?)
    }

    /// Adds a new master secret to the ledger's keys, for `by`: its version.
    pub fn rotate_keys(&self, by: Option<&str>) -> Result<u32, Error> {
        Ok(self.ledger()?.rotate_keys(by)?)
    }

    /// Copies the ledger into a new file, for `by`.
    pub fn backup(&self, path: &Path, by: Option<&str>) -> Result<(), Error> {
        Ok(self.ledger()?.backup(path, by)?)
    }

    /// Whether decisions can be recorded, as far as is known.
    pub fn records(&self) -> bool {
        self.ledger.as_ref().is_none_or(|ledger| !ledger.state().failing())
    }

    /// Brings the metrics of the ledger up to date.
    pub fn measure(&self) {
        if let Some(ledger) = &self.ledger {
            let state = ledger.state();
            self.metrics.ledger(state.seq() as u64, state.failed_commits() as u64, state.waiting() as f64);
        }
    }

    /// Ends the shadow, writes what waits to be recorded and closes the ledger. A move that does not end does not hold it up.
    pub fn close(&self) {
        self.closing.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(ledger) = &self.ledger {
            for deck in &self.decks {
                if let Some(Err(error)) = deck.try_held().map(|mut held| held.pay(ledger)) {
                    tracing::error!(model = deck.name, cause = %error, "a rollback is not on record");
                }
            }
            ledger.close();
        }
    }
}
