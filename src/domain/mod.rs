//! Floor 0, the law: pure values and functions. No async, no clock, no randomness, no input or output lives here,
//! so everything on this floor can be tested as arithmetic.

pub mod allocation;
pub mod assignment;
pub mod baseline;
pub mod card;
pub mod comparison;
pub mod decision;
pub mod drift;
pub mod experiment;
pub mod feature;
pub mod golden;
pub mod guardrail;
pub mod id;
pub mod money;
pub mod moves;
pub mod nearest;
pub mod off_policy;
pub mod outcome;
pub mod pacing;
pub mod policy;
pub mod policy_document;
pub mod protected;
pub mod record;
pub mod rollout;
pub mod schema;
pub mod score;
pub mod sequential;
pub mod slots;
pub mod violation;
