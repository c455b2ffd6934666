//! How the contract writes what was measured of a model, and how it is scored.

use serde::Serialize;
use utoipa::ToSchema;

use crate::model::{self, Model};

/// How single customers are scored.
#[derive(Serialize, ToSchema)]
pub(super) struct Scoring<'m> {
    /// `inline`: on the thread that reads the request; `turns`: by threads of the model, for which customers wait. Batches always have
    /// threads of their own.
    #[schema(value_type = String, example = "inline")]
    way: &'static str,
    /// Why that way.
    #[schema(value_type = String)]
    reason: &'m str,
    /// Threads of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1)]
    threads: Option<usize>,
    /// Customers that are scored together, at most; nobody waits for more to come.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1)]
    run_rows: Option<usize>,
    /// Customers that may wait, at most; one more is refused with 503. While runs take longer than at the probe it is fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1)]
    waiting_max: Option<usize>,
}

/// What the probe measured.
#[derive(Serialize, ToSchema)]
pub(super) struct Probe {
    /// Golden rows run.
    golden_rows: usize,
    /// The greatest distance of a score from the trainer's.
    difference_max: f64,
    /// Median time of one row.
    row_p50_us: f64,
    /// 99th percentile of the time of one row.
    row_p99_us: f64,
    /// Median times of runs of one row and of more.
    runs: Vec<Run>,
    /// Whether a row has the same score alone and beside others, to the last bit.
    rows_alike: bool,
}

/// A run of rows.
#[derive(Serialize, ToSchema)]
pub(super) struct Run {
    /// How many.
    #[schema(minimum = 1)]
    rows: usize,
    /// Median time of all of them together.
    p50_us: f64,
}

impl<'m> Scoring<'m> {
    pub(super) fn new(model: &'m Model) -> Self {
        let plan = model.turns();
        Self {
            way: if plan.is_some() { "turns" } else { "inline" },
            reason: model.turns_reason(),
            threads: plan.map(|plan| plan.threads),
            run_rows: plan.map(|plan| plan.run_rows),
            waiting_max: plan.map(|plan| plan.waiting_max),
        }
    }
}

impl Probe {
    pub(super) fn new(probe: &model::Probe) -> Self {
        Self {
            golden_rows: probe.rows,
            difference_max: probe.difference_max,
            row_p50_us: probe.row_p50_us,
            row_p99_us: probe.row_p99_us,
            runs: probe.pace.runs().map(|(rows, p50_us)| Run { rows, p50_us }).collect(),
            rows_alike: probe.pace.rows_alike,
        }
    }
}
