//! Estimates of uplift: the output of the graph beside the probability, run by ONNX Runtime and probed like the score. What is said of
//! them in the card is in `domain::bundle::uplift`.

use std::time::Instant;

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
    shape: GraphShape,
}

/// Rows before the first one that is timed.
const WARM_UP: usize = 16;

impl Estimator {
    /// That of a bundle with estimates, with one lane.
    ///
    /// Errors: those of loading the graph.
    pub(super) fn new(runtime: &Runtime, bundle: &Bundle, uplift: &Uplift) -> Result<Self, Error> {
        let graph = &bundle.card.graph;
        let shape = GraphShape {
            input: graph.input.clone(),
            output: uplift.output.clone(),
            columns: graph.columns,
            output_column: 0,
            output_columns: uplift.interventions.len(),
        };
        Ok(Self { lanes: Lanes::new(runtime, bundle, &shape)?, shape })
    }

    /// How long a row takes, in microseconds: the median of the golden ones.
    ///
    /// Errors: those of running the graph.
    pub(super) fn row_us(&self, bundle: &Bundle) -> Result<f64, Error> {
        let rows = || bundle.golden_vectors.chunks_exact(self.shape.columns);
        for row in rows().take(WARM_UP) {
            self.lanes.run_rows(row, |_| {})?;
        }
        let mut times = Vec::with_capacity(bundle.golden.rows.len());
        for row in rows() {
            let begun = Instant::now();
            self.lanes.run_rows(row, |_| {})?;
            times.push(begun.elapsed().as_nanos() as u64);
        }
        times.sort_unstable();
        Ok(times[times.len() / 2] as f64 / 1e3)
    }

    /// As many lanes as `count`, each of which gave the golden rows within [`TOLERANCE`] of the trainer's; which it did not goes to `problems`.
    ///
    /// Errors: those of loading and running the graph.
    pub(super) fn grow(
        &mut self,
        runtime: &Runtime,
        bundle: &Bundle,
        uplift: &Uplift,
        count: usize,
        problems: &mut Vec<String>,
    ) -> Result<(), Error> {
        self.lanes.grow(runtime, bundle, &self.shape, count)?;
        for mut lane in self.lanes.each() {
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
        Ok(())
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
