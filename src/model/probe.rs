//! The probe: golden rows, warm-up and latency, before a model may see a customer.

use std::time::Instant;

use super::evaluator::Evaluator;
use super::{Bundle, Error};
use crate::domain::bundle::golden::TOLERANCE;
use crate::domain::decision::ModelId;
use crate::domain::score::Platt;

/// Single rows run on what answers, and on each lane, to warm it up and to measure it.
const ROUNDS: usize = 256;

/// What the probe measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Probe {
    /// Golden rows run.
    pub rows: usize,
    /// The greatest distance of a score from the trainer's, in probability.
    pub difference_max: f64,
    /// Median time of one row, microseconds.
    pub row_p50_us: f64,
    /// 99th percentile of the time of one row, microseconds.
    pub row_p99_us: f64,
}

/// Runs every golden row through what answers, each lane of it, one by one and as one batch, and measures single rows.
pub(super) fn probe(
    id: &ModelId,
    bundle: &Bundle,
    evaluator: &Evaluator,
    platt: Platt,
    row_p99_us_max: u64,
) -> Result<Probe, Error> {
    let mut look = Look { bundle, platt, problems: Vec::new(), times: Vec::new(), difference_max: 0.0 };
    match evaluator {
        Evaluator::Native(native) => look.at(|rows, each| {
            match rows.len() == bundle.schema.columns() {
                true => each(native.probability(rows)),
                false => native.probabilities(rows, each),
            }
            Ok(())
        })?,
        Evaluator::OnnxRuntime(lanes) => {
            for mut lane in lanes.each() {
                look.at(|rows, each| lane.run(rows, each))?;
            }
        }
    }
    let Look { mut problems, mut times, difference_max, .. } = look;
    times.sort_unstable();
    let quantile = |share: f64| times[((times.len() - 1) as f64 * share) as usize] as f64 / 1e3;
    let measured =
        Probe { rows: bundle.golden.rows.len(), difference_max, row_p50_us: quantile(0.5), row_p99_us: quantile(0.99) };
    if measured.row_p99_us > row_p99_us_max as f64 {
        problems
            .push(format!("p99 of one row is {:.0} us, over the budget of {row_p99_us_max} us", measured.row_p99_us));
    }
    // A model that is wrong everywhere need not say so a thousand times.
    let more = problems.len().saturating_sub(10);
    if more > 0 {
        problems.truncate(10);
        problems.push(format!("and {more} more"));
    }
    if problems.is_empty() { Ok(measured) } else { Err(Error::Probe { model: id.clone(), problems }) }
}

/// What is seen of one model.
struct Look<'b> {
    bundle: &'b Bundle,
    platt: Platt,
    problems: Vec<String>,
    times: Vec<u64>,
    difference_max: f64,
}

impl Look<'_> {
    /// Looks at what runs rows by `run`.
    fn at(&mut self, mut run: impl FnMut(&[f32], &mut dyn FnMut(f32)) -> Result<(), Error>) -> Result<(), Error> {
        // Golden rows are nobody's, so what ONNX Runtime says of them may be told.
        let told = |error| match error {
            Error::Run { detail, .. } => Error::Runtime(detail),
            error => error,
        };
        let (columns, vectors, platt) = (self.bundle.schema.columns(), &self.bundle.golden_vectors, self.platt);
        let mut single = Vec::with_capacity(self.bundle.golden.rows.len());
        for row in vectors.chunks_exact(columns) {
            run(row, &mut |probability| single.push(platt.calibrate(probability))).map_err(told)?;
        }
        let mut batch = Vec::with_capacity(single.len());
        run(vectors, &mut |probability| batch.push(platt.calibrate(probability))).map_err(told)?;
        for (position, row) in self.bundle.golden.rows.iter().enumerate() {
            for (how, score) in [("alone", single[position]), ("in a batch", batch[position])] {
                let Some(score) = score else {
                    self.problems.push(format!("golden row {position} {how}: the answer is no probability"));
                    continue;
                };
                let difference = (score.value() - row.score).abs();
                self.difference_max = self.difference_max.max(difference);
                if difference > TOLERANCE {
                    self.problems.push(format!(
                        "golden row {position} {how}: the score is {}, the trainer's {}",
                        score.value(),
                        row.score
                    ));
                }
            }
        }
        for row in vectors.chunks_exact(columns).cycle().take(ROUNDS) {
            let begun = Instant::now();
            run(row, &mut |_| {}).map_err(told)?;
            self.times.push(begun.elapsed().as_nanos() as u64);
        }
        Ok(())
    }
}
