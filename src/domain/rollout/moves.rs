//! The moves that the slots of a model know, by name. Which of them is legal when, and what it leads to, is in `slots`.

use super::Plan;
use super::slots::PolicyRef;

/// A move.
#[derive(Debug, Clone, PartialEq)]
pub enum Move {
    /// Puts a probed model into the idle slot.
    Stage {
        /// Its version.
        version: String,
        /// The digest of its bundle.
        digest: String,
    },
    /// Empties the idle slot.
    Retire,
    /// Makes the idle model the champion. In a rollout that has not passed it has to be forced.
    Promote {
        /// Whether the rollout has passed to its end, or somebody insists.
        passed: bool,
    },
    /// Goes back: ends the rollout, or makes the standby the champion again.
    RollBack,
    /// Begins a rollout.
    Start {
        /// Its id.
        id: String,
        /// How it is to go.
        plan: Plan,
    },
    /// Keeps the rollout at its step.
    Pause,
    /// Lets it go on.
    Resume,
    /// Goes to its next step.
    Advance,
    /// Ends it: the challenger loses its share.
    Abort,
    /// Ends it because a guardrail was broken.
    Fail,
    /// Agrees to a promotion.
    Approve {
        /// In which role.
        role: String,
    },
    /// Puts another policy into force.
    ApplyPolicy(PolicyRef),
    /// Goes back to the policy before.
    UndoPolicy,
}

/// Names of the moves that a caller can ask for.
pub const VERBS: [&str; 12] = [
    "stage",
    "retire",
    "promote",
    "rollback",
    "start",
    "pause",
    "resume",
    "advance",
    "abort",
    "approve",
    "apply_policy",
    "undo_policy",
];

/// Why a move is not made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{why}")]
pub struct Illegal {
    /// Why, as a sentence.
    pub why: String,
    /// The moves that are legal now.
    pub legal: Vec<&'static str>,
}

impl Move {
    /// Its name, as one of [`VERBS`].
    pub fn verb(&self) -> &'static str {
        match self {
            Move::Stage { .. } => "stage",
            Move::Retire => "retire",
            Move::Promote { .. } => "promote",
            Move::RollBack => "rollback",
            Move::Start { .. } => "start",
            Move::Pause => "pause",
            Move::Resume => "resume",
            Move::Advance => "advance",
            Move::Abort | Move::Fail => "abort",
            Move::Approve { .. } => "approve",
            Move::ApplyPolicy(_) => "apply_policy",
            Move::UndoPolicy => "undo_policy",
        }
    }
}
