//! Drift: the distance between two histograms, how far it moves by chance alone, and what is to be made of it.

/// From here on a distance is worth a look, where it is more than chance.
pub const WARN: f64 = 0.1;
/// From here on it is an alarm.
pub const ALARM: f64 = 0.25;

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

/// The probability that chance alone makes a PSI of `psi` or more, by the same law as [`psi_critical`]: 0 to 1; 1 without values.
pub fn psi_p_value(psi: f64, n: u64, m: u64, bins: usize) -> f64 {
    if n == 0 || m == 0 || bins < 2 {
        return 1.0;
    }
    let k = (bins - 1) as f64;
    let spread = 2.0 / (9.0 * k);
    let chi2 = psi.max(0.0) / (1.0 / n as f64 + 1.0 / m as f64);
    let z = ((chi2 / k).cbrt() - (1.0 - spread)) / spread.sqrt();
    0.5 * libm::erfc(z / std::f64::consts::SQRT_2)
}

/// The level that each of some tests is to be held to, so that of those that find something only a share of `level` is expected to be
/// wrong (Benjamini and Hochberg 1995): the greatest `level k / count` that k of `p_values` are within; `level / count` where there
/// is none.
pub fn false_discovery_level(p_values: &[f64], level: f64) -> f64 {
    let count = p_values.len().max(1) as f64;
    let mut sorted = p_values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = sorted.iter().enumerate().rev().find(|(at, p)| **p <= level * (at + 1) as f64 / count);
    level * rank.map_or(1, |(at, _)| at + 1) as f64 / count
}

/// What is to be made of a distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It is small, and there are enough values to say so.
    Ok,
    /// It may be chance, or there are too few values to tell.
    Grey,
    /// It is [`WARN`] or more, and more than chance.
    Warn,
    /// It is [`ALARM`] or more, and more than chance.
    Alarm,
}

impl Verdict {
    /// Its name: `ok`, `grey`, `warn` or `alarm`.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Grey => "grey",
            Verdict::Warn => "warn",
            Verdict::Alarm => "alarm",
        }
    }

    /// The verdict on a distance that chance alone seldom takes over `critical`.
    pub fn of(psi: f64, critical: f64) -> Self {
        match psi > critical {
            true if psi > ALARM => Self::Alarm,
            true if psi > WARN => Self::Warn,
            _ if psi <= WARN && critical <= WARN => Self::Ok,
            _ => Self::Grey,
        }
    }
}

/// How far one histogram has drifted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distance {
    /// The population stability index.
    pub psi: f64,
    /// What chance alone seldom exceeds.
    pub critical: f64,
    /// The recent values that it rests on.
    pub n: u64,
    /// What is to be made of it.
    pub verdict: Verdict,
}

/// The distances of several pairs of histograms, before and now, looked at together at the level `alpha`: each is more than chance
/// where Benjamini and Hochberg say so. Bins that are empty in both say nothing and do not count.
pub fn distances(pairs: &[(&[u64], &[u64])], alpha: f64) -> Vec<Distance> {
    let measured: Vec<(f64, u64, u64, usize)> = pairs
        .iter()
        .map(|(before, now)| {
            let used: Vec<(u64, u64)> =
                before.iter().copied().zip(now.iter().copied()).filter(|(before, now)| before + now > 0).collect();
            let (before, now): (Vec<u64>, Vec<u64>) = used.into_iter().unzip();
            (psi(&before, &now), before.iter().sum(), now.iter().sum(), before.len())
        })
        .collect();
    let p_values: Vec<f64> = measured.iter().map(|(psi, n, m, bins)| psi_p_value(*psi, *n, *m, *bins)).collect();
    let z = normal_quantile(false_discovery_level(&p_values, alpha));
    let distance = |(psi, n, m, bins): (f64, u64, u64, usize)| {
        // One bin that has everything, then as now: there is no distance, however few the values are.
        let critical = if bins == 1 && n > 0 && m > 0 { 0.0 } else { psi_critical(n, m, bins, z) };
        Distance { psi, critical, n: m, verdict: Verdict::of(psi, critical) }
    };
    measured.into_iter().map(distance).collect()
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
    fn few_alarms_are_false_and_a_verdict_needs_values() {
        // Twenty features, of which three have drifted; windows of 200.
        let mut random = fastrand::Rng::with_seed(4);
        let mut draw = |share: f64| {
            let mut bins = [0; 10];
            (0..200).for_each(|_| bins[if random.f64() < share { 0 } else { random.usize(..10) }] += 1);
            bins
        };
        let (mut found, mut wrong, mut missed) = (0, 0, 0);
        for _ in 0..200 {
            let distances: Vec<f64> =
                (0..20).map(|at| psi(&[500; 10], &draw(if at < 3 { 0.25 } else { 0.0 }))).collect();
            let p_values: Vec<f64> = distances.iter().map(|psi| psi_p_value(*psi, 5_000, 200, 10)).collect();
            let level = false_discovery_level(&p_values, 0.05);
            let critical = psi_critical(5_000, 200, 10, normal_quantile(level));
            found += distances.iter().filter(|psi| **psi > critical).count();
            wrong += distances[3..].iter().filter(|psi| **psi > critical).count();
            missed += distances[..3].iter().filter(|psi| **psi <= critical).count();
        }
        assert!((wrong as f64) < 0.06 * found as f64 && missed < 10, "{wrong} of {found}, {missed} missed");
        assert_eq!(false_discovery_level(&[0.5, 0.9], 0.05), 0.025);
        let verdicts =
            [(0.02, 0.01), (0.05, 0.3), (0.2, 0.3), (0.4, 0.5), (0.2, 0.1), (0.3, 0.26), (0.3, f64::INFINITY)];
        use Verdict::{Alarm, Grey, Ok, Warn};
        assert_eq!(
            verdicts.map(|(psi, critical)| Verdict::of(psi, critical)),
            [Ok, Grey, Grey, Grey, Warn, Alarm, Grey]
        );
        let found = distances(&[(&[500, 500, 0], &[5, 95, 0]), (&[500, 500], &[3, 4]), (&[9, 0], &[7, 0])], 0.05);
        assert_eq!(found.iter().map(|found| found.verdict).collect::<Vec<_>>(), [Alarm, Grey, Ok]);
        assert_eq!((found[1].n, found[2].psi), (7, 0.0));
        for psi in [0.05, 0.2] {
            let p = psi_p_value(psi, 300, 900, 8);
            assert!((psi_critical(300, 900, 8, normal_quantile(p)) - psi).abs() < 1e-6, "one law");
        }
    }

    #[test]
    fn a_shift_is_found_and_no_data_is_no_drift() {
        assert!(psi(&[90, 10, 0, 0], &[10, 90, 0, 0]) > 1.0);
        assert_eq!(psi(&[0, 0], &[5, 5]), 0.0);
        assert_eq!(psi(&[7, 3], &[7, 3]), 0.0);
        assert_eq!(psi_critical(0, 5, 10, 1.6), f64::INFINITY);
    }
}
