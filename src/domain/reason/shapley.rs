//! Shapley values of any function by sampling: permutations of the features, each walked from a customer of the background to the
//! one in question (Castro et al., 2009), in both directions (antithetic: Mitchell et al., 2022), with the standard error. Who
//! runs the function, and where, is the caller's business.

use std::ops::Range;

/// Pairs of permutations, at least and at most, and the rows that all of them may take.
const PAIRS: Range<usize> = 16..256;
const ROWS_MAX: usize = 16_384;

/// An estimate. `base` and `values` sum up to what the function says of the row, whatever was sampled.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// The mean of the function over the background as it was sampled.
    pub base: f64,
    /// What each feature adds to it.
    pub values: Vec<f64>,
    /// The standard error of each value.
    pub errors: Vec<f64>,
}

/// Estimates what each feature, with its columns at `spans`, adds to `evaluate` at `row`, against the rows of `background`. `evaluate` gives
/// a number for each of the rows that it gets, row-major. The same question always has the same answer.
pub fn estimate<E>(
    row: &[f32],
    background: &[f32],
    spans: &[Range<usize>],
    mut evaluate: impl FnMut(&[f32]) -> Result<Vec<f64>, E>,
) -> Result<Estimate, E> {
    let (features, columns) = (spans.len(), row.len());
    let pairs = (ROWS_MAX / (2 * features + 2)).clamp(PAIRS.start, PAIRS.end);
    let (mut sums, mut squares, mut base) = (vec![0.0; features], vec![0.0; features], 0.0);
    let mut order: Vec<usize> = (0..features).collect();
    let mut state = 0x6d61_696e_7374_6179;
    let mut rows = Vec::with_capacity((2 * features + 2) * columns);
    for from in background.chunks_exact(columns).cycle().take(pairs) {
        for last in (1..features).rev() {
            order.swap(last, (next(&mut state) % (last as u64 + 1)) as usize);
        }
        rows.clear();
        let mut walk = |order: &mut dyn Iterator<Item = &usize>| {
            let mut here = from.to_vec();
            rows.extend_from_slice(&here);
            for feature in order {
                here[spans[*feature].clone()].copy_from_slice(&row[spans[*feature].clone()]);
                rows.extend_from_slice(&here);
            }
        };
        walk(&mut order.iter());
        walk(&mut order.iter().rev());
        let found = evaluate(&rows)?;
        let (there, back) = found.split_at(features + 1);
        for (at, feature) in order.iter().enumerate() {
            let mirrored = features - 1 - at;
            let step = ((there[at + 1] - there[at]) + (back[mirrored + 1] - back[mirrored])) / 2.0;
            sums[*feature] += step;
            squares[*feature] += step * step;
        }
        base += there[0];
    }
    let n = pairs as f64;
    let error = |(sum, square): (&f64, &f64)| ((square - sum * sum / n).max(0.0) / (n - 1.0) / n).sqrt();
    Ok(Estimate {
        base: base / n,
        errors: sums.iter().zip(&squares).map(error).collect(),
        values: sums.iter().map(|sum| sum / n).collect(),
    })
}

/// SplitMix64 (Steele et al., 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// Of a product of two features against a background at 0 each has half; a third that is added has itself, without error.
    #[test]
    fn finds_what_is_known_and_sums_up() {
        let function = |rows: &[f32]| -> Result<Vec<f64>, Infallible> {
            Ok(rows.chunks_exact(4).map(|row| f64::from(row[0] * row[1] + row[2] + row[3])).collect())
        };
        let background: Vec<f32> = (0..32).flat_map(|at| [0.0, 0.0, (at % 2) as f32, 0.0]).collect();
        let spans = [0..1, 1..2, 2..4];
        let found = estimate(&[2.0, 3.0, 5.0, 7.0], &background, &spans, function).expect("it cannot fail");
        for (found, expected) in found.values.iter().zip([3.0, 3.0, 11.5]) {
            assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
        }
        assert!((found.base + found.values.iter().sum::<f64>() - 18.0).abs() < 1e-9);
        assert!(found.errors[0] < 1e-9 && found.errors[2] > 0.01, "{:?}", found.errors);
    }

    #[test]
    fn many_features_are_bounded() {
        let spans: Vec<Range<usize>> = (0..1_024).map(|at| at..at + 1).collect();
        let mut rows = 0;
        let count = |seen: &[f32]| -> Result<Vec<f64>, Infallible> {
            rows += seen.len() / 1_024;
            Ok(vec![0.0; seen.len() / 1_024])
        };
        estimate(&vec![1.0; 1_024], &vec![0.0; 1_024], &spans, count).expect("it cannot fail");
        assert_eq!(rows, PAIRS.start * 2 * 1_025);
    }
}
