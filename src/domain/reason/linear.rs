//! A linear margin: a weight for each column and an intercept. Its SHAP values have a closed form.

use crate::domain::bundle::baseline::{Baseline, Histogram, Numbers};
use crate::domain::bundle::feature::{Feature, Missing, Scalar};

/// `margin = intercept + sum(weight * value)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// The weight of each column.
    pub weights: Vec<f64>,
    /// What the margin is where every value is 0.
    pub intercept: f64,
}

impl Linear {
    /// The margin of `row`.
    pub fn margin(&self, row: &[f32]) -> f64 {
        // Four sums instead of one: an addition need not wait for the one before it.
        let (weights, last_weights) = self.weights.as_chunks::<4>();
        let (values, last_values) = row.as_chunks::<4>();
        let mut sums = [0.0; 4];
        for (weights, values) in weights.iter().zip(values) {
            for at in 0..4 {
                sums[at] += weights[at] * f64::from(values[at]);
            }
        }
        let last = last_weights.iter().zip(last_values).map(|(weight, value)| weight * f64::from(*value)).sum::<f64>();
        self.intercept + sums.iter().sum::<f64>() + last
    }

    /// The margin at `means`, and what each feature adds for `row`: `weight * (value - mean)`, summed up over the columns of a
    /// feature, which `owners` names, below `features`. Exact for independent features: Lundberg and Lee, "A unified approach to
    /// interpreting model predictions" (2017), corollary 1.
    pub fn explain(&self, row: &[f32], means: &[f64], owners: &[u16], features: usize) -> (f64, Vec<f64>) {
        let base = self.intercept + self.weights.iter().zip(means).map(|(weight, mean)| weight * mean).sum::<f64>();
        let mut out = vec![0.0; features];
        for (((weight, value), mean), owner) in self.weights.iter().zip(row).zip(means).zip(owners) {
            out[usize::from(*owner)] += weight * (f64::from(*value) - mean);
        }
        (base, out)
    }
}

/// The mean of each column over the training data, from its `baseline`: exact for categories; for numbers each bin counts as its
/// middle, as a histogram says no more. The values stay exact for that reference, and still sum up to the score.
pub fn means(dictionary: &[Feature], baseline: &Baseline) -> Vec<f64> {
    let mut means = Vec::new();
    for feature in dictionary {
        let from = means.len();
        means.resize(from + feature.width(), 0.0);
        let here = &mut means[from..];
        match (baseline.features.get(&feature.name), &feature.categories) {
            (Some(Histogram::Category(counted)), Some(categories)) => {
                let missing = match &feature.missing {
                    Missing::Default(Scalar::Text(category)) => Some((category, &counted.missing)),
                    _ => None,
                };
                let rows = counted.categories.values().sum::<u64>() + missing.map_or(0, |(_, rows)| *rows);
                for (category, count) in counted.categories.iter().chain(missing) {
                    for (mean, column) in here.iter_mut().zip(categories.get(category).into_iter().flatten()) {
                        *mean += f64::from(*column) * *count as f64 / rows.max(1) as f64;
                    }
                }
            }
            (Some(Histogram::Number(numbers)), _) => {
                let default = match feature.missing {
                    Missing::Default(Scalar::Number(value)) => Some(value),
                    _ => None,
                };
                here.fill(mean(numbers, default));
            }
            _ => {}
        }
    }
    means
}

/// The mean of a histogram. The outer bins have no end: each is taken to be as wide as its neighbour.
fn mean(numbers: &Numbers, default: Option<f64>) -> f64 {
    let (edges, last) = (&numbers.edges, numbers.edges.len() - 1);
    let middle = |bin: usize| match bin {
        _ if last == 0 => edges[0],
        0 => edges[0] - (edges[1] - edges[0]) / 2.0,
        bin if bin > last => edges[last] + (edges[last] - edges[last - 1]) / 2.0,
        bin => (edges[bin - 1] + edges[bin]) / 2.0,
    };
    let missing = if default.is_some() { numbers.missing } else { 0 };
    let rows = numbers.counts.iter().sum::<u64>() + missing;
    let sum: f64 = numbers.counts.iter().enumerate().map(|(bin, count)| *count as f64 * middle(bin)).sum();
    (sum + default.unwrap_or_default() * missing as f64) / rows.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contributions_and_base_sum_up_to_the_margin() {
        let linear = Linear { weights: vec![2.0, -1.0, 0.5], intercept: 0.25 };
        let row = [3.0, 1.0, -2.0];
        let (base, values) = linear.explain(&row, &[1.0, 0.5, 0.25], &[0, 1, 1], 2);
        assert_eq!(values, [4.0, -0.5 - 1.125]);
        assert!((base + values.iter().sum::<f64>() - linear.margin(&row)).abs() < 1e-12);
    }

    #[test]
    fn a_mean_takes_each_bin_as_its_middle() {
        let numbers = Numbers { edges: vec![10.0, 20.0], counts: vec![1, 2, 1], missing: 4 };
        assert_eq!(mean(&numbers, None), (5.0 + 2.0 * 15.0 + 25.0) / 4.0);
        assert_eq!(mean(&numbers, Some(0.0)), 60.0 / 8.0);
    }
}
