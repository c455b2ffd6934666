//! What the engine can refuse or fail at; `http::problem` turns it into a status.

use crate::domain::violation::Violation;
use crate::{ledger, model};

/// Why there is no decision.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No model of that name is in service.
    #[error("no such model")]
    UnknownModel {
        /// The name that was probably meant.
        nearest: Option<String>,
        /// The names in service.
        known: Vec<String>,
    },
    /// The record breaks the model's dictionary.
    #[error("the record breaks the model's dictionary")]
    Invalid(Vec<Violation>),
    /// The decision could not be recorded, so that it must not be answered; or the ledger could not be read.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// There is no ledger to ask.
    #[error("the ledger is off")]
    LedgerOff,
    /// The model failed.
    #[error(transparent)]
    Model(#[from] model::Error),
}
