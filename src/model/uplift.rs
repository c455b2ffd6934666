//! Estimates of uplift: the output of the graph beside the probability, run by ONNX Runtime and probed like the score. What is said of
//! them in the card is in `domain::bundle::uplift`.

use super::lanes::Lanes;
use super::session::Runtime;
use super::{Bundle, Error};
use crate::domain::bundle::card::GraphShape;
use crate::domain::bundle::golden::TOLERANCE;
use crate::domain::bundle::uplift::{Uplift, Uplifts, is_uplift};

/// Runs the output of uplift, on as many lanes as threads may score at once.
#[derive(Debug)]
pub(super) struct Estimator {
    lanes: Lanes,
}

impl Estimator {
    /// That of a bundle with estimates, whose golden rows it gave within [`TOLERANCE`] of the trainer's, on every lane.
    ///
    /// Errors: those of loading and running the graph. Golden rows that are off go to `problems`.
    pub(super) fn new(
        runtime: &Runtime,
        bundle: &Bundle,
        uplift: &Uplift,
        count: usize,
        problems: &mut Vec<String>,
    ) -> Result<Self, Error> {
        let graph = &bundle.card.graph;
        let shape = GraphShape {
            input: graph.input.clone(),
            output: uplift.output.clone(),
            columns: graph.columns,
            output_column: 0,
            output_columns: uplift.interventions.len(),
        };
        let mut lanes = Lanes::new(runtime, bundle, &shape)?;
        lanes.grow(runtime, bundle, &shape, count)?;
        for mut lane in lanes.each() {
            let mut trained = bundle.golden.rows.iter().enumerate();
            lane.run_rows(&bundle.golden_vectors, |row| {
                let Some((position, golden)) = trained.next() else { return };
                let expected = golden.uplift.iter().flatten();
                for (uplift, (estimated, expected)) in row.iter().zip(uplift.interventions.iter().zip(expected)) {
                    if !is_uplift(*uplift) || (f64::from(*uplift) - expected).abs() > TOLERANCE {
                        let action = &estimated.action;
                        problems.push(format!(
                            "golden row {position}: the uplift of \"{action}\" is {uplift}, the trainer's {expected}"
                        ));
                    }
                }
            })?;
        }
        Ok(Self { lanes })
    }

    /// The uplifts of one `row`, on the calling thread.
    ///
    /// Errors: [`Error::NotAProbability`] where one is no difference of probabilities.
    pub(super) fn run(&self, row: &[f32]) -> Result<Uplifts, Error> {
        let mut found = Uplifts::new();
        self.lanes.run_rows(row, |uplifts| found.extend_from_slice(uplifts))?;
        if found.iter().all(|uplift| is_uplift(*uplift)) { Ok(found) } else { Err(Error::NotAProbability) }
    }

    /// What it takes of memory at least, in bytes.
    pub(super) fn bytes(&self, graph_bytes: usize) -> usize {
        self.lanes.count() * graph_bytes
    }
}
