//! The probe: golden rows, warm-up and latency, before a model may see a customer. What follows for how it is scored is in `turns`.

use std::time::{Duration, Instant};

use super::evaluator::Evaluator;
use super::{Bundle, Error};
use crate::domain::bundle::golden::TOLERANCE;
use crate::domain::decision::ModelId;
use crate::domain::score::Platt;

/// Single rows run on what answers, and on each lane, to warm it up and to measure it.
const ROUNDS: usize = 256;
/// As many at least, and then no more than fit into [`ROUNDS_TIME`]: a slow model is not to take minutes.
const ROUNDS_MIN: usize = 32;
const ROUNDS_TIME: Duration = Duration::from_millis(100);
/// Rows of the runs that are timed.
const RUNS: [usize; 3] = [1, 8, 32];
/// How often each, at least and at most, and the time for it.
const RUN_ROUNDS: std::ops::Range<usize> = 5..33;
const RUN_TIME: Duration = Duration::from_millis(50);
/// Rows of the runs in which a row is held against itself alone: kernels differ by how many rows there are.
const ALIKE: [usize; 7] = [2, 3, 5, 8, 13, 21, 32];

/// What the probe measured.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Probe {
    /// Golden rows run.
    pub rows: usize,
    /// The greatest distance of a score from the trainer's, in probability.
    pub difference_max: f64,
    /// Median time of one row, microseconds.
    pub row_p50_us: f64,
    /// 99th percentile of the time of one row, microseconds.
    pub row_p99_us: f64,
    /// How long runs of more rows take.
    pub pace: Pace,
}

/// What one thread makes of a row, and of some together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pace {
    /// Median time of a run of 1, of 8 and of 32 rows, microseconds.
    pub(super) runs_us: [f64; RUNS.len()],
    /// Whether a row has the same score alone and beside others, to the last bit: replay makes every decision again alone.
    pub rows_alike: bool,
}

impl Pace {
    /// Counts what every row takes besides, alone or in a run, in microseconds.
    pub(super) fn add_to_each_row(&mut self, us: f64) {
        for (rows, run_us) in RUNS.into_iter().zip(&mut self.runs_us) {
            *run_us += rows as f64 * us;
        }
    }

    /// Rows of a run, and the median time that it takes, in microseconds.
    pub fn runs(&self) -> impl Iterator<Item = (usize, f64)> {
        RUNS.into_iter().zip(self.runs_us)
    }
}

/// Measures single rows and runs on what answers.
pub(super) fn pace(bundle: &Bundle, evaluator: &Evaluator) -> Result<Pace, Error> {
    Ok(Pace { runs_us: time_runs(bundle, evaluator)?, rows_alike: are_alike(bundle, evaluator)? })
}

/// Runs every golden row through what answers, each lane of it, one by one and as one batch, and measures single rows.
pub(super) fn probe(
    id: &ModelId,
    bundle: &Bundle,
    evaluators: &[&Evaluator],
    pace: Pace,
    platt: Platt,
    row_p99_us_max: u64,
) -> Result<Probe, Error> {
    let mut look = Look { bundle, platt, problems: Vec::new(), times: Vec::new(), difference_max: 0.0 };
    for evaluator in evaluators {
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
    }
    let Look { mut problems, mut times, difference_max, .. } = look;
    let measured = Probe {
        rows: bundle.golden.rows.len(),
        difference_max,
        row_p50_us: quantile_us(&mut times, 0.5),
        row_p99_us: quantile_us(&mut times, 0.99),
        pace,
    };
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

/// The value of `times`, in nanoseconds, under which `share` of them are, in microseconds.
fn quantile_us(times: &mut [u64], share: f64) -> f64 {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share) as usize] as f64 / 1e3
}

/// Median times of the runs of [`RUNS`], in microseconds. Opening the bundle made sure that there are as many golden rows.
fn time_runs(bundle: &Bundle, evaluator: &Evaluator) -> Result<[f64; RUNS.len()], Error> {
    let columns = bundle.schema.columns();
    let mut medians = [0.0; RUNS.len()];
    for (median, count) in medians.iter_mut().zip(RUNS) {
        let mut times = Vec::with_capacity(RUN_ROUNDS.end);
        let begun = Instant::now();
        let mut runs = bundle.golden_vectors.chunks_exact(count * columns).cycle();
        while times.len() < RUN_ROUNDS.start || (times.len() < RUN_ROUNDS.end && begun.elapsed() < RUN_TIME) {
            let Some(rows) = runs.next() else { break };
            let begun = Instant::now();
            match count {
                1 => drop(evaluator.run_one(rows).map_err(told)?),
                _ => evaluator.run(rows, |_| {}).map_err(told)?,
            }
            times.push(begun.elapsed().as_nanos() as u64);
        }
        *median = quantile_us(&mut times, 0.5);
    }
    Ok(medians)
}

/// Whether golden rows come out of runs of [`ALIKE`] as they do alone.
fn are_alike(bundle: &Bundle, evaluator: &Evaluator) -> Result<bool, Error> {
    let columns = bundle.schema.columns();
    let most = ALIKE.into_iter().max().unwrap_or_default();
    let rows = bundle.golden_vectors.chunks_exact(columns).take(most);
    let alone: Vec<u32> =
        rows.map(|row| evaluator.run_one(row).map(f32::to_bits)).collect::<Result<_, Error>>().map_err(told)?;
    for count in ALIKE {
        let mut expected = alone.iter();
        let mut are_alike = true;
        let rows = &bundle.golden_vectors[..count.min(alone.len()) * columns];
        evaluator.run(rows, |found| are_alike &= expected.next() == Some(&found.to_bits())).map_err(told)?;
        if !are_alike {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Golden rows are nobody's, so what ONNX Runtime says of them may be told.
fn told(error: Error) -> Error {
    match error {
        Error::Run { detail, .. } => Error::Runtime(detail),
        error => error,
    }
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
        let all = Instant::now();
        for (round, row) in vectors.chunks_exact(columns).cycle().take(ROUNDS).enumerate() {
            if round >= ROUNDS_MIN && all.elapsed() > ROUNDS_TIME {
                break;
            }
            let begun = Instant::now();
            run(row, &mut |_| {}).map_err(told)?;
            self.times.push(begun.elapsed().as_nanos() as u64);
        }
        Ok(())
    }
}
