//! Statistics that stay valid however often they are looked at: a test of two rates, and an interval for a share. What they are
//! used to judge is in `guardrail`.

use libm::lgamma;

/// How many times worse the alternatives of [`RateTest`] are, in odds.
const ALTERNATIVES: [f64; 8] = [1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0];

/// Whether events of the challenger are more frequent than the champion's: an e-value that may be looked at any time.
///
/// Given an event, and `share` of the requests since the last look being the challenger's, the event is the challenger's with
/// probability `share` under equal rates (Lindon and Malek, arXiv 2011.03567), and with odds `r` times those when its rate is `r`
/// times as high. The mixture of likelihood ratios over rates that are higher is a test martingale under any rate that is equal or
/// lower (Ville 1939; Wald's mixture), whatever becomes of the shares: one-sided, so that a better challenger never fails.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RateTest {
    log_ratios: [f64; ALTERNATIVES.len()],
}

impl RateTest {
    /// Adds what was seen since the last look: `challenger` and `champion` events, while `share` (0 to 1) of the requests were the
    /// challenger's. A look at which one of them had no requests says nothing.
    pub fn add(&mut self, challenger: u64, champion: u64, share: f64) {
        if !(share > 0.0 && share < 1.0) {
            return;
        }
        for (log_ratio, odds) in self.log_ratios.iter_mut().zip(ALTERNATIVES) {
            let worse = odds * share / (odds * share + 1.0 - share);
            *log_ratio +=
                challenger as f64 * (worse / share).ln() + champion as f64 * ((1.0 - worse) / (1.0 - share)).ln();
        }
    }

    /// The e-value, 0 or more: at `1 / alpha` the rates are not equal, wrongly so in at most `alpha` of all trials.
    pub fn e_value(&self) -> f64 {
        self.log_ratios.iter().map(|ratio| ratio.exp()).sum::<f64>() / ALTERNATIVES.len() as f64
    }
}

/// An interval for the share behind `hits` of `count`, that holds at every look at once with probability `1 - alpha`: every share
/// `p` with `B(a + x, b + n - x) / (B(a, b) p^x (1 - p)^(n - x)) < 1 / alpha`, a = b = 1/2 (Robbins 1970; Howard et al.,
/// arXiv 1810.08240). Without a count it is (0, 1).
pub fn share_interval(hits: u64, count: u64, alpha: f64) -> (f64, f64) {
    let (x, n) = (hits.min(count) as f64, count as f64);
    if count == 0 {
        return (0.0, 1.0);
    }
    let log_beta = |a: f64, b: f64| lgamma(a) + lgamma(b) - lgamma(a + b);
    let mixture = log_beta(0.5 + x, 0.5 + n - x) - log_beta(0.5, 0.5);
    let log_e = |p: f64| {
        let term = |count: f64, share: f64| if count == 0.0 { 0.0 } else { count * share.ln() };
        mixture - term(x, p) - term(n - x, 1.0 - p)
    };
    let limit = -alpha.ln();
    // Convex with its least value at x / n, so each end is found by bisection between that and 0 or 1.
    let end = |mut outside: f64| {
        let mut inside = x / n;
        if log_e(outside) < limit {
            return outside;
        }
        for _ in 0..60 {
            let middle = (inside + outside) / 2.0;
            if log_e(middle) < limit { inside = middle } else { outside = middle }
        }
        outside
    };
    (end(0.0), end(1.0))
}

/// An interval for the difference of two shares, the second minus the first: from the intervals of both, whose distances from the
/// estimates add up as those of independent errors do (MOVER: Zou and Donner, Statistics in Medicine 27, 2008).
pub fn difference_interval(first: (u64, u64), second: (u64, u64), alpha: f64) -> (f64, f64) {
    let estimate = |(hits, count): (u64, u64)| if count == 0 { 0.5 } else { hits as f64 / count as f64 };
    let (p, q) = (estimate(first), estimate(second));
    let (first_low, first_high) = share_interval(first.0, first.1, alpha);
    let (second_low, second_high) = share_interval(second.0, second.1, alpha);
    (q - p - (q - second_low).hypot(first_high - p), q - p + (second_high - q).hypot(p - first_low))
}

/// An interval for the ratio of two shares, the second by the first: as that of the difference, of their logarithms. Where the second
/// has no hits it is from the ends of both; where the first has none there is no upper end.
pub fn ratio_interval(first: (u64, u64), second: (u64, u64), alpha: f64) -> (f64, f64) {
    let (first_low, first_high) = share_interval(first.0, first.1, alpha);
    let (second_low, second_high) = share_interval(second.0, second.1, alpha);
    if first.0 == 0 || second.0 == 0 {
        return (second_low / first_high, second_high / first_low);
    }
    let log = |(hits, count): (u64, u64)| (hits as f64 / count as f64).ln();
    let (p, q) = (log(first), log(second));
    let low = (q - second_low.ln()).hypot(first_high.ln() - p);
    let high = (second_high.ln() - q).hypot(p - first_low.ln());
    ((q - p - low).exp(), (q - p + high).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: usize = 1_000;

    /// The share of runs in which `looks` sees something at one of 200 looks.
    fn share_of_runs(mut seen: impl FnMut(&mut fastrand::Rng) -> bool) -> f64 {
        let mut random = fastrand::Rng::with_seed(7);
        (0..RUNS).filter(|_| seen(&mut random)).count() as f64 / RUNS as f64
    }

    fn binomial(random: &mut fastrand::Rng, count: u64, share: f64) -> u64 {
        (0..count).filter(|_| random.f64() < share).count() as u64
    }

    fn crosses(random: &mut fastrand::Rng, challenger: f64, champion: f64) -> bool {
        let mut test = RateTest::default();
        // The share grows on the way, as that of a canary does.
        (0..100).any(|look| {
            let (mine, theirs) = if look < 50 { (5, 95) } else { (50, 50) };
            test.add(binomial(random, mine, challenger), binomial(random, theirs, champion), mine as f64 / 100.0);
            test.e_value() >= 20.0
        })
    }

    #[test]
    fn equal_rates_cross_in_at_most_alpha_of_the_runs_and_better_ones_never() {
        let equal = share_of_runs(|random| crosses(random, 0.05, 0.05));
        assert!(equal <= 0.05, "{equal}");
        assert!(share_of_runs(|random| crosses(random, 0.01, 0.05)) <= 0.002);
    }

    #[test]
    fn a_rate_that_is_higher_is_found() {
        assert!(share_of_runs(|random| crosses(random, 0.05, 0.01)) > 0.95);
        let mut test = RateTest::default();
        test.add(3, 0, 0.05);
        assert!(test.e_value() > 100.0, "three errors of an arm that has a twentieth of the traffic");
    }

    #[test]
    fn the_interval_holds_at_every_look() {
        for share in [0.01, 0.2, 0.5] {
            let left = share_of_runs(|random| {
                let (mut hits, mut count) = (0, 0);
                (0..100).any(|_| {
                    hits += binomial(random, 10, share);
                    count += 10;
                    let (low, high) = share_interval(hits, count, 0.05);
                    !(low..=high).contains(&share)
                })
            });
            assert!(left <= 0.05, "{share}: left in {left}");
        }
        let left = share_of_runs(|random| {
            let (mut first, mut second, mut count) = (0, 0, 0);
            (0..100).any(|_| {
                first += binomial(random, 10, 0.3);
                second += binomial(random, 10, 0.4);
                count += 10;
                let (low, high) = difference_interval((first, count), (second, count), 0.05);
                !(low..=high).contains(&0.1)
            })
        });
        assert!(left <= 0.05, "the difference left in {left}");
        let left = share_of_runs(|random| {
            let (mut first, mut second, mut count) = (0, 0, 0);
            (0..50).any(|_| {
                first += binomial(random, 10, 0.4);
                second += binomial(random, 10, 0.3);
                count += 10;
                let (low, high) = ratio_interval((first, count), (second, count), 0.05);
                !(low..=high).contains(&0.75)
            })
        });
        assert!(left <= 0.05, "the ratio left in {left}");
        assert_eq!(ratio_interval((0, 10), (3, 10), 0.05).1, f64::INFINITY);
        let (low, high) = ratio_interval((200, 400), (0, 400), 0.05);
        assert!(low == 0.0 && high < 0.1, "{high}");
        assert_eq!(share_interval(0, 0, 0.05), (0.0, 1.0));
        let (low, high) = share_interval(0, 1_000, 0.01);
        assert!(low == 0.0 && high < 0.01, "{high}");
        assert_eq!(share_interval(5, 5, 0.05).1, 1.0);
    }
}
