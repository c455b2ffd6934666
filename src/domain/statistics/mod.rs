//! Methods that are not of one room: what may be concluded from numbers, and how surely.

pub mod drift;
pub mod fairness;
pub mod off_policy;
pub mod sequential;
