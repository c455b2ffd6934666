//! Integration tests: the real server with the real bundles on port 0, spoken to over TCP. One binary, so that ONNX Runtime
//! is loaded once.

#[path = "../../benches/dense/mod.rs"]
mod dense;

mod access;
mod allocation;
mod arrow;
mod batch;
mod bundle;
mod contract;
mod counterfactuals;
mod deadline;
mod effect;
mod experiments;
mod faults;
mod health;
mod insight;
mod ledger;
mod limits;
mod outcomes;
mod policy;
mod problems;
mod reasons;
mod report;
mod retraining;
mod score;
mod service;
mod simulate;
mod slots;
mod slow;
mod spend;
mod startup;
mod tls;
mod uplift;
