//! How good scores are, once it is known what customers did: order (AUC), the precision of the top, and whether the probabilities
//! are right. Intervals are for one look; which customers may be looked at is said elsewhere.

use super::Estimate;

/// Shares of the delay distribution under which a row is left out: it would weigh more than five.
const ARRIVED_MIN: f64 = 0.2;
/// The fewest delays that say when labels come.
const DELAYS_MIN: usize = 20;

/// A score with what the customer then did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Labelled {
    /// The probability, 0 to 1.
    pub score: f64,
    /// Whether the customer left.
    pub churned: bool,
}

/// The share behind `hits` of `count`, with the interval of Wilson (1927), which keeps its level at small counts and shares; `None`
/// without a count. `z` is the normal quantile of the level, 1.96 for 95 %.
pub fn wilson(hits: u64, count: u64, z: f64) -> Option<Estimate> {
    let n = count as f64;
    let share = hits.min(count) as f64 / n;
    let (square, scale) = (z * z / n, 1.0 + z * z / n);
    let middle = (share + square / 2.0) / scale;
    let half = z * (share * (1.0 - share) / n + square / (4.0 * n)).sqrt() / scale;
    (count > 0).then(|| Estimate {
        value: share,
        low: (middle - half).clamp(0.0, share),
        high: (middle + half).clamp(share, 1.0),
        n: count,
    })
}

/// The area under the ROC curve: the probability that who left had the higher score, ties counted half (Mann and Whitney). The variance is
/// that of DeLong, DeLong and Clarke-Pearson (1988), by midranks (Sun and Xu 2014); the interval is on the logit, so that it stays
/// within 0 to 1. Where nothing is out of order it is that of Wilson for as many pairs as can be made. `None` unless there are both.
pub fn auc(rows: &[Labelled], z: f64) -> Option<Estimate> {
    let all = midranks(rows.iter().map(|row| row.score));
    let of = |churned: bool| rows.iter().filter(move |row| row.churned == churned).map(|row| row.score);
    let (left, stayed) = (midranks(of(true)), midranks(of(false)));
    let (m, n) = (left.len() as f64, stayed.len() as f64);
    if left.is_empty() || stayed.is_empty() {
        return None;
    }
    let mut places = [left.iter(), stayed.iter()];
    let (mut of_left, mut of_stayed) = (Vec::new(), Vec::new());
    for (rank, row) in all.iter().zip(rows) {
        let own = places[usize::from(!row.churned)].next().copied().unwrap_or_default();
        // The share of the other kind that lies on the right side.
        if row.churned { of_left.push((rank - own) / n) } else { of_stayed.push(1.0 - (rank - own) / m) }
    }
    let value = of_left.iter().sum::<f64>() / m;
    let variance = |parts: &[f64]| {
        let squares: f64 = parts.iter().map(|part| (part - value).powi(2)).sum();
        squares / (parts.len() as f64 * (parts.len() as f64 - 1.0).max(1.0))
    };
    let error = (variance(&of_left) + variance(&of_stayed)).sqrt();
    let count = rows.len() as u64;
    let pairs = m.min(n);
    if value * (1.0 - value) < 1e-9 || error == 0.0 {
        return wilson((value * pairs).round() as u64, pairs as u64, z).map(|found| Estimate {
            value,
            n: count,
            ..found
        });
    }
    let (middle, half) = ((value / (1.0 - value)).ln(), z * error / (value * (1.0 - value)));
    let back = |logit: f64| 1.0 / (1.0 + (-logit).exp());
    Some(Estimate { value, low: back(middle - half), high: back(middle + half), n: count })
}

/// The rank of each value from 1 up, that of equal ones their mean.
fn midranks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let values: Vec<f64> = values.collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    for ties in order.chunk_by(|a, b| values[*a] == values[*b]).scan(0, |from, ties| {
        let begin = *from;
        *from += ties.len();
        Some((begin, ties))
    }) {
        let rank = ties.0 as f64 + (ties.1.len() + 1) as f64 / 2.0;
        ties.1.iter().for_each(|at| ranks[*at] = rank);
    }
    ranks
}

/// The lowest score of the top `share` (over 0, to 1) of `scores`: who has it or more is in it, so that ties are all in. `None`
/// without scores.
pub fn threshold(scores: impl Iterator<Item = f64>, share: f64) -> Option<f64> {
    let mut scores: Vec<f64> = scores.collect();
    let last = ((scores.len() as f64 * share).ceil() as usize).clamp(1, scores.len().max(1)) - 1;
    (!scores.is_empty()).then(|| *scores.select_nth_unstable_by(last, |a, b| b.total_cmp(a)).1)
}

/// The share of those in the top `share` by score who left, with the interval of Wilson.
pub fn precision_at(rows: &[Labelled], share: f64, z: f64) -> Option<Estimate> {
    let from = threshold(rows.iter().map(|row| row.score), share)?;
    let top = || rows.iter().filter(|row| row.score >= from);
    wilson(top().filter(|row| row.churned).count() as u64, top().count() as u64, z)
}

/// What the precision of the top `share` is expected to be before any label: the mean score of its k customers, with standard
/// deviation `sqrt(sum p (1 - p)) / k` (Poisson's binomial). As right as the calibration is.
pub fn expected_precision_at(scores: &[f64], share: f64, z: f64) -> Option<Estimate> {
    let from = threshold(scores.iter().copied(), share)?;
    let top: Vec<f64> = scores.iter().copied().filter(|score| *score >= from).collect();
    let k = top.len() as f64;
    let error = top.iter().map(|p| p * (1.0 - p)).sum::<f64>().sqrt() / k;
    Some(within_shares(Estimate::normal(top.iter().sum::<f64>() / k, error, z, top.len() as u64)))
}

fn within_shares(estimate: Estimate) -> Estimate {
    Estimate { low: estimate.low.clamp(0.0, 1.0), high: estimate.high.clamp(0.0, 1.0), ..estimate }
}

/// How late it became known that customers left: sorted delays, of decisions so old that all of it is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Delays(Vec<u64>);

impl Delays {
    /// `delays` in any unit of time; `None` when they are too few to say anything.
    pub fn new(mut delays: Vec<u64>) -> Option<Self> {
        delays.sort_unstable();
        (delays.len() >= DELAYS_MIN).then_some(Self(delays))
    }

    /// The share that is known at the age `age`, 0 to 1.
    pub fn arrived(&self, age: u64) -> f64 {
        self.0.partition_point(|delay| *delay <= age) as f64 / self.0.len() as f64
    }
}

/// The share of customers who will have left, though not all of it is known yet: `mean(y / F(age))`, where `rows` says of each whether it
/// is known to have left, and its age, and F is the share that is known at that age: weighting by the inverse probability to be
/// seen (Horvitz and Thompson 1952). The interval has the error of F in it, by its influence values. What is so young that F is
/// under 0.2 is left out. `None` without such rows.
pub fn delay_corrected(rows: &[(bool, u64)], delays: &Delays, z: f64) -> Option<Estimate> {
    let arrived: Vec<(bool, u64, f64)> = rows
        .iter()
        .map(|(churned, age)| (*churned, *age, delays.arrived(*age)))
        .filter(|(.., share)| *share >= ARRIVED_MIN)
        .collect();
    let n = arrived.len() as f64;
    if arrived.len() < 2 {
        return None;
    }
    let weight = |row: &(bool, u64, f64)| if row.0 { 1.0 / row.2 } else { 0.0 };
    let sum: f64 = arrived.iter().map(weight).sum();
    let value = sum / n;
    let of_rows = arrived.iter().map(|row| (weight(row) - value).powi(2)).sum::<f64>() / (n * (n - 1.0));
    // Of F: a delay d adds -(sum of y / F^2 over ages of d or more, less sum of y / F) / n.
    let mut hits: Vec<(u64, f64)> =
        arrived.iter().filter(|row| row.0).map(|row| (row.1, 1.0 / row.2.powi(2))).collect();
    hits.sort_unstable_by_key(|(age, _)| *age);
    let mut above: Vec<f64> = hits.iter().map(|(_, square)| *square).collect();
    (0..above.len().saturating_sub(1)).rev().for_each(|at| above[at] += above[at + 1]);
    let influence = |delay: &u64| {
        let first = hits.partition_point(|(age, _)| age < delay);
        (above.get(first).copied().unwrap_or(0.0) - sum) / n
    };
    let count = delays.0.len() as f64;
    let of_delays = delays.0.iter().map(|delay| influence(delay).powi(2)).sum::<f64>() / (count * count);
    Some(within_shares(Estimate::normal(value, (of_rows + of_delays).sqrt(), z, arrived.len() as u64)))
}

/// The Brier score: the mean squared distance of score and truth, 0 at best (Brier 1950); the interval is normal.
pub fn brier(rows: &[Labelled], z: f64) -> Option<Estimate> {
    let terms: Vec<f64> = rows.iter().map(|row| (row.score - f64::from(u8::from(row.churned))).powi(2)).collect();
    let n = terms.len() as f64;
    let mean = terms.iter().sum::<f64>() / n;
    let error = (terms.iter().map(|term| (term - mean).powi(2)).sum::<f64>() / (n * (n - 1.0).max(1.0))).sqrt();
    (!terms.is_empty()).then(|| within_shares(Estimate::normal(mean, error, z, terms.len() as u64)))
}

/// Whether scores are the probabilities that they claim to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calibration {
    /// Expected calibration error over [`BINS`] bins of equal mass, 0 at best. Never 0 by chance alone.
    pub ece: f64,
    /// The slope of the truth on the log-odds: 1 at best, under it the scores are too extreme.
    pub slope: Estimate,
    /// The intercept beside it: 0 at best, over it too few are expected to leave.
    pub intercept: Estimate,
}

/// Bins of the calibration error.
pub const BINS: usize = 10;

/// The calibration of `rows`: the error over bins of equal mass (Nixon et al., CVPR workshops 2019; equal scores share a bin), and the
/// logistic regression of the truth on the log-odds (Cox 1958) by Newton's method. `None` where that has no finite answer, as
/// where all left or all stayed.
pub fn calibration(rows: &[Labelled], z: f64) -> Option<Calibration> {
    let points: Vec<(f64, f64)> =
        rows.iter().map(|row| (log_odds(row.score), f64::from(u8::from(row.churned)))).collect();
    let (mut a, mut b) = (0.0_f64, 1.0_f64);
    for _ in 0..50 {
        let (mut gradient, mut hessian) = ([0.0; 2], [0.0; 3]);
        for (x, y) in &points {
            let p = 1.0 / (1.0 + (-(a + b * x)).exp());
            let weight = p * (1.0 - p);
            gradient = [gradient[0] + y - p, gradient[1] + (y - p) * x];
            hessian = [hessian[0] + weight, hessian[1] + weight * x, hessian[2] + weight * x * x];
        }
        let determinant = hessian[0] * hessian[2] - hessian[1] * hessian[1];
        if determinant.is_nan() || determinant <= 1e-9 * (1.0 + hessian[0] * hessian[2]) {
            return None;
        }
        let step = [
            (hessian[2] * gradient[0] - hessian[1] * gradient[1]) / determinant,
            (hessian[0] * gradient[1] - hessian[1] * gradient[0]) / determinant,
        ];
        (a, b) = (a + step[0], b + step[1]);
        if a.abs() > 100.0 || b.abs() > 100.0 {
            return None;
        }
        if step[0].abs() + step[1].abs() < 1e-9 {
            let n = rows.len() as u64;
            return Some(Calibration {
                ece: ece(rows),
                slope: Estimate::normal(b, (hessian[0] / determinant).sqrt(), z, n),
                intercept: Estimate::normal(a, (hessian[2] / determinant).sqrt(), z, n),
            });
        }
    }
    None
}

fn log_odds(score: f64) -> f64 {
    let score = score.clamp(1e-9, 1.0 - 1e-9);
    (score / (1.0 - score)).ln()
}

fn ece(rows: &[Labelled]) -> f64 {
    let mut sorted = rows.to_vec();
    sorted.sort_unstable_by(|a, b| a.score.total_cmp(&b.score));
    let mass = (sorted.len() as f64 / BINS as f64).max(1.0);
    let (mut error, mut bin) = (0.0, (0.0, 0.0));
    let mut taken = 0;
    let mut due = mass;
    for ties in sorted.chunk_by(|a, b| a.score == b.score) {
        bin.0 += ties.iter().map(|row| row.score).sum::<f64>();
        bin.1 += ties.iter().filter(|row| row.churned).count() as f64;
        taken += ties.len();
        if taken as f64 + 1e-9 >= due || taken == sorted.len() {
            error += f64::abs(bin.0 - bin.1);
            bin = (0.0, 0.0);
            due = (taken as f64 / mass).floor() * mass + mass;
        }
    }
    error / sorted.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const Z: f64 = 1.959_964;

    fn sample(random: &mut fastrand::Rng, count: usize) -> Vec<Labelled> {
        let row = |random: &mut fastrand::Rng| {
            let score = 1.0 / (1.0 + (2.0 - 4.0 * random.f64()).exp());
            Labelled { score, churned: random.f64() < score }
        };
        (0..count).map(|_| row(random)).collect()
    }

    /// The share of 400 runs whose estimate holds `truth`.
    fn coverage(truth: f64, mut run: impl FnMut(&mut fastrand::Rng) -> Option<Estimate>) -> f64 {
        let mut random = fastrand::Rng::with_seed(11);
        let holds = (0..400).filter(|_| {
            let found = run(&mut random).expect("an estimate");
            (found.low..=found.high).contains(&truth)
        });
        holds.count() as f64 / 400.0
    }

    /// 95 % of 400 runs, three standard deviations to either side.
    fn assert_kept(what: &str, coverage: f64) {
        assert!((0.917..=0.983).contains(&coverage), "{what}: {coverage}");
    }

    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        let mut random = fastrand::Rng::with_seed(5);
        let large = sample(&mut random, 400_000);
        let truth = auc(&large, Z).expect("both").value;
        assert_kept("auc", coverage(truth, |random| auc(&sample(random, 200), Z)));
        let truth = brier(&large, Z).expect("rows").value;
        assert_kept("brier", coverage(truth, |random| brier(&sample(random, 200), Z)));
        let slope = coverage(1.0, |random| calibration(&sample(random, 300), Z).map(|found| found.slope));
        let intercept = coverage(0.0, |random| calibration(&sample(random, 300), Z).map(|found| found.intercept));
        assert_kept("slope", slope);
        assert_kept("intercept", intercept);
        for share in [0.02, 0.3] {
            let hits = |random: &mut fastrand::Rng| (0..150).filter(|_| random.f64() < share).count() as u64;
            let kept = coverage(share, |random| wilson(hits(random), 150, Z));
            assert!(kept >= 0.92, "wilson at {share}: {kept}");
        }
        // What is said before labels come, against what then comes.
        let early = coverage(0.0, |random| {
            let rows = sample(random, 500);
            let scores: Vec<f64> = rows.iter().map(|row| row.score).collect();
            let (early, late) = (expected_precision_at(&scores, 0.2, Z)?, precision_at(&rows, 0.2, Z)?);
            Some(early.plus(-late.value))
        });
        assert_kept("before labels", early);
    }

    #[test]
    fn labels_that_are_late_are_made_up_for() {
        // One in four leaves, after a delay of 30 days on average; decisions are 0 to 60 days old.
        let day = 86_400;
        let delay = |random: &mut fastrand::Rng| (-(1.0 - random.f64()).ln() * 30.0 * day as f64) as u64;
        let mut naive = 0.0;
        let kept = coverage(0.25, |random| {
            let delays = Delays::new((0..200).map(|_| delay(random)).collect())?;
            let rows: Vec<(bool, u64)> = (0..800)
                .map(|_| {
                    let age = random.u64(0..60 * day);
                    (random.f64() < 0.25 && delay(random) <= age, age)
                })
                .collect();
            naive += rows.iter().filter(|row| row.0).count() as f64 / 800.0 / 400.0;
            delay_corrected(&rows, &delays, Z)
        });
        assert!(naive < 0.17, "what is known by then: {naive}");
        assert_kept("delay corrected", kept);
        assert_eq!(Delays::new(vec![1; DELAYS_MIN - 1]), None);
    }

    #[test]
    fn known_values() {
        let rows = |rows: &[(f64, bool)]| -> Vec<Labelled> {
            rows.iter().map(|(score, churned)| Labelled { score: *score, churned: *churned }).collect()
        };
        let some = rows(&[(0.9, true), (0.8, false), (0.7, true), (0.3, false), (0.3, true), (0.1, false)]);
        // Of nine pairs six and a half are in order.
        let found = auc(&some, Z).expect("both");
        assert!((found.value - 6.5 / 9.0).abs() < 1e-12 && found.low < found.value && found.high < 1.0, "{found:?}");
        assert_eq!(auc(&rows(&[(0.9, true)]), Z), None);
        let ordered = auc(&rows(&[(0.9, true), (0.8, true), (0.2, false), (0.1, false)]), Z).expect("both");
        assert!(ordered.value == 1.0 && ordered.high == 1.0 && ordered.low < 0.5, "{ordered:?}");
        let top = precision_at(&some, 0.2, Z).expect("rows");
        assert_eq!((top.value, top.n), (0.5, 2));
        assert_eq!(precision_at(&some, 0.7, Z).expect("rows").n, 5, "ties are all in");
        assert!((brier(&some, Z).expect("rows").value - (0.01 + 0.64 + 0.09 + 0.09 + 0.49 + 0.01) / 6.0).abs() < 1e-12);
        let wilson = wilson(10, 50, Z).expect("a count");
        assert!((wilson.low - 0.112_4).abs() < 1e-4 && (wilson.high - 0.330_4).abs() < 1e-4, "{wilson:?}");
        let off: Vec<Labelled> = (0..100).map(|at| Labelled { score: 0.3, churned: at % 2 == 0 }).collect();
        assert!((ece(&off) - 0.2).abs() < 1e-12, "{}", ece(&off));
        assert_eq!((calibration(&off, Z), calibration(&[], Z), brier(&[], Z)), (None, None, None));
    }
}
