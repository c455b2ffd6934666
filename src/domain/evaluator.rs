//! What a graph's probability is computed by without ONNX Runtime: the compiled forest or the linear margin that was read from it, and
//! the logistic function. Whether that may serve is for `model::proof` to say.

use super::compiled::Compiled;
use super::reason::linear::Linear;

/// An evaluator of one graph.
#[derive(Debug)]
pub enum Evaluator {
    /// A sum over trees.
    Forest(Compiled),
    /// A sum over columns.
    Linear(Linear),
}

impl Evaluator {
    /// The raw probability of one `row`, 0 to 1; a NaN where the margin is one. Allocates nothing.
    pub fn probability(&self, row: &[f32]) -> f32 {
        match self {
            Evaluator::Forest(forest) => logistic(forest.margin(row)),
            Evaluator::Linear(linear) => logistic(linear.margin(row) as f32),
        }
    }

    /// Gives `each` the raw probabilities of `rows`, row-major, in order.
    pub fn probabilities(&self, rows: &[f32], mut each: impl FnMut(f32)) {
        match self {
            Evaluator::Forest(forest) => forest.margins(rows, |margin| each(logistic(margin))),
            Evaluator::Linear(linear) => {
                rows.chunks_exact(linear.weights.len()).for_each(|row| each(logistic(linear.margin(row) as f32)));
            }
        }
    }

    /// Its size, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Evaluator::Forest(forest) => forest.bytes(),
            Evaluator::Linear(linear) => size_of_val(&*linear.weights),
        }
    }
}

/// The logistic function in float32, rounded where ONNX Runtime rounds (`ComputeLogistic` of its `ml_common.h`).
fn logistic(margin: f32) -> f32 {
    let probability = 1.0 / (1.0 + (-margin.abs()).exp());
    if margin < 0.0 { 1.0 - probability } else { probability }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logistic_has_its_ends_its_middle_and_its_symmetry() {
        assert_eq!((logistic(0.0), logistic(200.0), logistic(-200.0)), (0.5, 1.0, 0.0));
        assert!(logistic(f32::NAN).is_nan());
        for at in -80..80 {
            let margin = at as f32 / 5.0;
            assert!((logistic(margin) + logistic(-margin) - 1.0).abs() <= f32::EPSILON);
            assert!((f64::from(logistic(margin)) - 1.0 / (1.0 + (-f64::from(margin)).exp())).abs() < 1e-7);
        }
    }

    #[test]
    fn a_linear_model_alone_and_together() {
        let linear = Evaluator::Linear(Linear { weights: vec![2.0, -1.0], intercept: 0.5 });
        let rows = [1.0, 2.5, 0.0, f32::NAN, 3.0, 0.0];
        let mut together = Vec::new();
        linear.probabilities(&rows, |probability| together.push(probability.to_bits()));
        let alone: Vec<u32> = rows.chunks(2).map(|row| linear.probability(row).to_bits()).collect();
        assert_eq!(together, alone);
        assert_eq!(together[0], 0.5_f32.to_bits());
    }
}
