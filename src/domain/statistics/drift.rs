//! Drift: the distance between two histograms, with how far it moves by chance alone.

/// The population stability index of two histograms over the same bins, each count smoothed by one half so that an empty bin is no
/// infinity: `sum (p - q) ln(p / q)`, 0 or more. 0 where one of them is empty.
pub fn psi(before: &[u64], after: &[u64]) -> f64 {
    let (n, m) = (before.iter().sum::<u64>() as f64, after.iter().sum::<u64>() as f64);
    if n == 0.0 || m == 0.0 {
        return 0.0;
    }
    let half = 0.5 * before.len() as f64;
    before.iter().zip(after).fold(0.0, |sum, (before, after)| {
        let p = (*before as f64 + 0.5) / (n + half);
        let q = (*after as f64 + 0.5) / (m + half);
        sum + (p - q) * (p / q).ln()
    })
}

/// The PSI of `bins` bins over `n` and `m` values that chance alone exceeds with the probability of a standard normal above `z`:
/// without drift it is about `(1/n + 1/m) chi2(bins - 1)` (Yurdakul and Naranjo 2020); the quantile is Wilson and Hilferty's.
pub fn psi_critical(n: u64, m: u64, bins: usize, z: f64) -> f64 {
    if n == 0 || m == 0 || bins < 2 {
        return f64::INFINITY;
    }
    let k = (bins - 1) as f64;
    let spread = 2.0 / (9.0 * k);
    (1.0 / n as f64 + 1.0 / m as f64) * k * (1.0 - spread + z * spread.sqrt()).powi(3)
}

/// The value that a standard normal exceeds with probability `alpha`, 0 to 1 (both excluded), by bisection of its distribution.
pub fn normal_quantile(alpha: f64) -> f64 {
    let (mut low, mut high) = (-40.0, 40.0);
    for _ in 0..80 {
        let middle = (low + high) / 2.0;
        let above = 0.5 * libm::erfc(middle / std::f64::consts::SQRT_2);
        if above > alpha { low = middle } else { high = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_critical_value_is_the_known_one_and_is_kept() {
        let z = normal_quantile(0.05);
        assert!((z - 1.644_854).abs() < 1e-5 && (normal_quantile(1e-4) - 3.719_016).abs() < 1e-5);
        // Simulated values of the level .05 at ten bins.
        for (n, m, expected) in [(100, 50_000, 0.170), (1_000, 1_000, 0.034), (10_000, 50_000, 0.002)] {
            assert!((psi_critical(n, m, 10, z) - expected).abs() < 0.0015, "{n} {m}");
        }
        let mut random = fastrand::Rng::with_seed(3);
        let mut draw = || {
            let mut bins = [0; 10];
            (0..500).for_each(|_| bins[random.usize(..10)] += 1);
            bins
        };
        let over = (0..2_000).filter(|_| psi(&draw(), &draw()) > psi_critical(500, 500, 10, z)).count();
        assert!(over < 140, "{over} of 2,000 at a level of .05");
    }

    #[test]
    fn a_shift_is_found_and_no_data_is_no_drift() {
        assert!(psi(&[90, 10, 0, 0], &[10, 90, 0, 0]) > 1.0);
        assert_eq!(psi(&[0, 0], &[5, 5]), 0.0);
        assert_eq!(psi(&[7, 3], &[7, 3]), 0.0);
        assert_eq!(psi_critical(0, 5, 10, 1.6), f64::INFINITY);
    }
}
