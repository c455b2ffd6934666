//! Integration tests: the real server with the real bundles on port 0, spoken to over TCP. One binary, so that ONNX Runtime
//! is loaded once.

mod access;
mod allocation;
mod arrow;
mod batch;
mod bundle;
mod contract;
mod counterfactuals;
mod effect;
mod experiments;
mod health;
mod insight;
mod ledger;
mod limits;
mod outcomes;
mod policy;
mod problems;
mod reasons;
mod report;
mod score;
mod service;
mod simulate;
mod slots;
mod spend;
mod startup;
mod tls;
