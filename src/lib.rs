//! Mainstay: self-hosted, low-latency churn decisions. The floors of the house, from the bottom up; imports only go down:
//! `domain` (the law) < `model`, `ledger`, `telemetry`, `access`, `outbound` (rooms with machines) < `engine` (the hallway) < `http` (the door) <
//! `config`, `app`, `cli` (composition). ARCHITECTURE.md is the plan, `tests/tidy.rs` holds it.

pub mod access;
pub mod app;
pub mod cli;
pub mod config;
pub mod domain;
pub mod engine;
pub mod http;
pub mod ledger;
pub mod model;
pub mod outbound;
pub mod replay;
pub mod telemetry;
