//! What the engine can refuse or fail at; `http::problem` turns it into a status.

use crate::domain::rollout::moves::Illegal;
use crate::domain::violation::Violation;
use crate::{ledger, model};

/// Why there is no decision, or no move.
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
    /// No experiment of that name is known.
    #[error("no such experiment")]
    UnknownExperiment {
        /// The name that was probably meant.
        nearest: Option<String>,
        /// The names that are known.
        known: Vec<String>,
    },
    /// The record breaks the model's dictionary, or an experiment its laws.
    #[error("it breaks the contract")]
    Invalid(Vec<Violation>),
    /// A challenger was addressed and there is none.
    #[error("no second model stands by")]
    NoChallenger,
    /// The decision could not be recorded, so that it must not be answered; or the ledger could not be read.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// A move was not on record in time, and may be still: then it is in force. Until that is known no other is made.
    #[error("whether a move is on record is not known yet")]
    Late,
    /// There is no ledger to ask.
    #[error("the ledger is off")]
    LedgerOff,
    /// Nothing is measured.
    #[error("insight is off")]
    InsightOff,
    /// The model failed.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// A champion could not be put into service.
    #[error("cannot serve {name} {version}")]
    Unservable {
        /// The name of the model.
        name: String,
        /// Its version.
        version: String,
        /// Why.
        source: Box<model::Error>,
    },
    /// A move that the slots, or the state of an experiment, do not allow now.
    #[error(transparent)]
    Illegal(#[from] Illegal),
    /// A bundle or a policy that must not go into service.
    #[error("it must not go into service:{list}", list = .0.iter().map(|reason| format!("\n  - {reason}")).collect::<String>())]
    Refused(Vec<String>),
    /// The same request is being carried out.
    #[error("the same request is being carried out")]
    Busy,
    /// The key of the request was used for another one.
    #[error("the key was used for another request")]
    KeyReused,
}

impl Error {
    /// What the model said, where it is the model that failed.
    pub(super) fn of_model(&self) -> Option<&model::Error> {
        match self {
            Self::Model(error) => Some(error),
            _ => None,
        }
    }
}
