//! Floor 0, the law: pure values and functions. No async, no clock, no randomness, no input or output lives here,
//! so everything on this floor can be tested as arithmetic.

pub mod access;
pub mod assignment;
pub mod bundle;
pub mod compiled;
pub mod decision;
pub mod evaluator;
pub mod forest;
pub mod freshness;
pub mod id;
pub mod insight;
pub mod interval;
pub mod money;
pub mod nearest;
pub mod outcome;
pub mod policy;
pub mod reason;
pub mod record;
pub mod retraining;
pub mod rollout;
pub mod score;
pub mod statistics;
pub mod violation;
