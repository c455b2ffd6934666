//! Guardrails: the measured conditions under which a rollout may go on. What was observed of each arm, and the verdict that follows;
//! those of what came of decisions are in `effect`, what follows from the verdict is in `rollout`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::statistics::drift;
use crate::domain::statistics::sequential::{RateTest, difference_interval, share_interval};

/// Bins of the latency histogram.
pub const LATENCY_BINS: usize = 100;
/// The guardrails, each of which gets its part of `alpha`.
pub(super) const GUARDRAILS: f64 = 7.0;
/// The quantiles of latency that are compared.
const QUANTILES: [f64; 3] = [0.5, 0.9, 0.99];
/// The looks that the level of drift, whose statistic is only valid for one, is shared among.
const DRIFT_LOOKS: f64 = 20.0;
/// The share of `psi_max` under which two histograms count as alike: the field's usual words are 0.1 and 0.25.
const PSI_ALIKE: f64 = 0.4;

/// The limits of one rollout.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Requests of each arm before anything passes.
    pub requests_min: u64,
    /// How much the challenger's share of failed requests may be over the champion's, 0 to 1.
    pub error_margin: f64,
    /// How many times as long as the champion the challenger may take, at its median, p90 and p99.
    pub latency_ratio_max: f64,
    /// Latency that is fast enough whatever the champion's, in microseconds.
    pub latency_floor_us: f64,
    /// The greatest distance between the arms' scores, as a PSI.
    pub psi_max: f64,
    /// How much the share of a tier may differ between the arms, 0 to 1.
    pub tier_shift_max: f64,
    /// By how much of the champion's churn rate the challenger's may be over it, 0 or more: 0.1 is a tenth.
    #[serde(default = "churn_margin")]
    pub churn_margin: f64,
    /// By how much the challenger's least parity ratio may be under the champion's, 0 to 1.
    #[serde(default = "fairness_margin")]
    pub fairness_margin: f64,
    /// Customers of each arm of whom it has to be known whether they left, before anything passes; with 0 a lack of outcomes keeps
    /// nothing from passing.
    #[serde(default)]
    pub outcomes_min: u64,
    /// The share of rollouts without any fault that may fail, 0 to 1, however often they are looked at.
    pub alpha: f64,
}

/// Of plans that are older than this limit.
fn churn_margin() -> f64 {
    0.1
}

/// Of plans that are older than this limit.
fn fairness_margin() -> f64 {
    0.05
}

impl Limits {
    /// The longest that a score may take where the champion takes `usual_us`, in microseconds.
    pub fn latency_max_us(&self, usual_us: f64) -> f64 {
        (usual_us * self.latency_ratio_max).max(self.latency_floor_us)
    }

    /// The longest wait for a score of which an arm is not to blame that its caller left, where the champion takes `usual_us`: see [`Wait`].
    pub fn wait_max(&self, usual_us: f64) -> Duration {
        Duration::try_from_secs_f64(self.latency_max_us(usual_us) / 1e6).unwrap_or(Duration::MAX)
    }

    /// Every value that is out of its range, as (name, what is expected).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        for (name, value, min, max) in [
            ("requests_min", self.requests_min as f64, 1.0, 1e9),
            ("error_margin", self.error_margin, 1e-6, 1.0),
            ("latency_ratio_max", self.latency_ratio_max, 1.0, 1e6),
            ("latency_floor_us", self.latency_floor_us, 0.0, 1e9),
            ("psi_max", self.psi_max, 1e-3, 1e3),
            ("tier_shift_max", self.tier_shift_max, 1e-3, 1.0),
            ("churn_margin", self.churn_margin, 0.0, 10.0),
            ("fairness_margin", self.fairness_margin, 0.0, 1.0),
            ("outcomes_min", self.outcomes_min as f64, 0.0, 1e9),
            ("alpha", self.alpha, 1e-9, 0.5),
        ] {
            // Written so that NaN is out of every range.
            if !(value >= min && value <= max) {
                problems.push((name, format!("{min} to {max}")));
            }
        }
        problems
    }
}

/// What was observed of one arm since its step began. Customers count once, however often they are asked for: the arms have other
/// customers, and a few that come again and again would look like a difference of the models.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// Requests whose score came or failed.
    pub requests: u64,
    /// Customers of those, and of callers who gave up.
    pub customers: u64,
    /// Customers that it failed at, for whatever cause.
    pub failed: u64,
    /// Those of them whose caller gave up: see [`Wait`].
    pub given_up: u64,
    /// Requests whose score was no probability.
    pub non_finite: u64,
    /// Processor times of a score, taken of both models by turns on one thread, by [`latency_bin`].
    pub latency: Vec<u64>,
    /// Scores, the first of each customer, by the bins of the champion's baseline.
    pub scores: Vec<u64>,
    /// Customers by tier, in the order of the policy.
    pub tiers: Vec<u64>,
}

/// A wait for a score that ended without one, since the caller left.
///
/// How long it would have been is not known, only that it is longer: it is censored (Kaplan and Meier, Journal of the American Statistical
/// Association 53, 1958). It is evidence all the same where it was too long already. So the arm has failed a caller who waited as long as
/// it had said it would, or longer than the limits let a score take; one who left sooner, for whatever reason, counts as neither failed
/// nor answered. Under equal models both arms fail alike, whatever callers do, since chance gave them their arm; and where no deadline is
/// stated, an arm that keeps the limit fails nobody. Those who left sooner would have been failed more often than those who stayed,
/// as the quicker scores came in time: without them a slow arm looks better than it is, never worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// How long it lasted.
    pub lasted: Duration,
    /// How long the caller had said it would wait, if it had.
    pub stated: Option<Duration>,
}

impl Wait {
    /// Whether the arm has failed this caller, where it may let wait for `wait_max`: [`Limits::wait_max`].
    pub fn is_failure(&self, wait_max: Duration) -> bool {
        self.lasted > wait_max || self.stated.is_some_and(|stated| self.lasted >= stated)
    }
}

/// The bin of a time: four bins to a doubling, from 256 ns.
pub fn latency_bin(nanoseconds: u64) -> usize {
    let exponent = nanoseconds.max(256).ilog2() as usize;
    let quarter = (nanoseconds.max(256) >> (exponent - 2)) as usize & 3;
    ((exponent - 8) * 4 + quarter).min(LATENCY_BINS - 1)
}

/// The upper end of a bin of [`latency_bin`], in microseconds.
pub fn latency_bin_end_us(bin: usize) -> f64 {
    ((bin % 4 + 5) as u64 * (1 << (bin / 4 + 6))) as f64 / 1e3
}

/// Whether a condition holds, is broken, or cannot be told yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It holds, with the data to say so.
    Pass,
    /// Too little was seen.
    Hold,
    /// It is broken.
    Fail,
}

/// One guardrail as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Its name: `error_rate`, `non_finite`, `latency`, `score_drift`, `tier_mix`, `churn`, `fairness`, or of a
    /// later source of evidence.
    pub guardrail: String,
    /// Whether it holds.
    pub verdict: Verdict,
    /// The figures behind that, as a sentence.
    pub figures: String,
}

impl Reading {
    /// A reading of the guardrail called `name`.
    pub fn new(name: &str, verdict: Verdict, figures: String) -> Self {
        Self { guardrail: name.to_owned(), verdict, figures }
    }
}

/// What all readings say together: broken when one is, and good only when all are.
pub fn verdict(readings: &[Reading]) -> Verdict {
    if readings.iter().any(|reading| reading.verdict == Verdict::Fail) {
        Verdict::Fail
    } else if !readings.is_empty() && readings.iter().all(|reading| reading.verdict == Verdict::Pass) {
        Verdict::Pass
    } else {
        Verdict::Hold
    }
}

/// Judges the challenger against the champion; `errors` has followed the failures of both. It `is_alone` where all customers are its own,
/// so that it is not waited for those of the champion.
pub fn judge(
    limits: &Limits,
    is_alone: bool,
    errors: &RateTest,
    champion: &Observed,
    challenger: &Observed,
) -> Vec<Reading> {
    let mut readings = vec![
        error_rate(limits, is_alone, errors, champion, challenger),
        non_finite(limits, challenger),
        latency(limits, champion, challenger),
        score_drift(limits, champion, challenger),
        tier_mix(limits, champion, challenger),
    ];
    if champion.requests.min(challenger.requests) < limits.requests_min {
        // However good they look.
        readings.iter_mut().filter(|reading| reading.verdict == Verdict::Pass).for_each(|reading| {
            reading.verdict = Verdict::Hold;
        });
    }
    readings
}

fn decide(fail: bool, pass: bool) -> Verdict {
    match (fail, pass) {
        (true, _) => Verdict::Fail,
        (false, true) => Verdict::Pass,
        (false, false) => Verdict::Hold,
    }
}

/// Fails when failures are surely more frequent than the champion's, or surely over its rate and the margin: the first finds a small
/// difference, the second also works where the champion has no customers left to compare with.
fn error_rate(
    limits: &Limits,
    is_alone: bool,
    errors: &RateTest,
    champion: &Observed,
    challenger: &Observed,
) -> Reading {
    let alpha = limits.alpha / GUARDRAILS / 2.0;
    let e_value = errors.e_value();
    let (low, high) = share_interval(challenger.failed, challenger.customers, alpha);
    let (_, usual_high) = share_interval(champion.failed, champion.customers, alpha);
    let usual = champion.failed as f64 / champion.customers.max(1) as f64;
    let limit = usual + limits.error_margin;
    // Without a champion to look at, any failure over the margin is too much. One whose customers are still to come may fail as often.
    let limit_surely = if champion.customers == 0 && is_alone { limit } else { usual_high + limits.error_margin };
    let gave_up = match (challenger.given_up, champion.given_up) {
        (0, 0) => String::new(),
        (own, usual) => format!("; their callers gave up on {own} of these, and on {usual} of the champion's"),
    };
    let figures = format!(
        "{} of {} customers failed, {} of {} of the champion's{gave_up}; e-value {e_value:.3}, fails at {:.0}; the share that fails is {low:.4} to {high:.4}, passes under {limit:.4}",
        challenger.failed,
        challenger.customers,
        champion.failed,
        champion.customers,
        1.0 / alpha,
    );
    Reading::new("error_rate", decide(e_value >= 1.0 / alpha || low > limit_surely, high < limit), figures)
}

fn non_finite(limits: &Limits, challenger: &Observed) -> Reading {
    let alpha = limits.alpha / GUARDRAILS;
    let (_, high) = share_interval(challenger.non_finite, challenger.requests, alpha);
    let figures = format!("{} of {} scores were no probability; one fails", challenger.non_finite, challenger.requests);
    Reading::new("non_finite", decide(challenger.non_finite > 0, high < limits.error_margin), figures)
}

/// Compares latency by fixed bins: the challenger is slower when its share over a multiple of the champion's quantile is surely
/// more than it would be at that quantile, and the champion's quantile is surely not higher. At the median this finds a model that
/// is slow always, at p99 one that is slow rarely.
fn latency(limits: &Limits, champion: &Observed, challenger: &Observed) -> Reading {
    let alpha = limits.alpha / GUARDRAILS / QUANTILES.len() as f64 / 2.0;
    let count: u64 = challenger.latency.iter().sum();
    let limit = |usual_us| limits.latency_max_us(usual_us);
    let over = |limit_us: f64| {
        let bins = (0..LATENCY_BINS).filter(|bin| latency_bin_end_us(*bin) > limit_us);
        share_interval(bins.map(|bin| challenger.latency[bin]).sum(), count, alpha)
    };
    let (mut fail, mut pass) = (false, true);
    let mut figures = Vec::new();
    for quantile in QUANTILES {
        let Some((usual_us, own_us)) =
            quantile_us(&champion.latency, quantile).zip(quantile_us(&challenger.latency, quantile))
        else {
            return Reading::new("latency", Verdict::Hold, "nothing was timed yet".to_owned());
        };
        let usual_at_most = quantile_at_most_us(&champion.latency, quantile, alpha);
        fail |= usual_at_most.is_some_and(|usual_us| over(limit(usual_us)).0 > 1.0 - quantile);
        pass &= over(limit(usual_us)).1 < 1.0 - quantile;
        figures.push(format!(
            "p{:.0} {own_us:.1} us, the champion's {usual_us:.1} us, limit {:.1} us",
            quantile * 100.0,
            limit(usual_us)
        ));
    }
    Reading::new("latency", decide(fail, pass), figures.join("; "))
}

fn score_drift(limits: &Limits, champion: &Observed, challenger: &Observed) -> Reading {
    let (n, m) = (champion.scores.iter().sum(), challenger.scores.iter().sum());
    let psi = drift::psi(&champion.scores, &challenger.scores);
    let z = drift::normal_quantile(limits.alpha / GUARDRAILS / DRIFT_LOOKS);
    let critical = drift::psi_critical(n, m, champion.scores.len(), z);
    let (limit, alike) = (critical.max(limits.psi_max), limits.psi_max * PSI_ALIKE);
    let figures = format!(
        "PSI {psi:.4} over {n} and {m} customers; fails over {limit:.3}, passes under {alike:.3} with enough customers"
    );
    // With few scores chance alone moves it that far: then it is not known yet.
    Reading::new("score_drift", decide(psi > limit, psi < alike && critical < alike), figures)
}

fn tier_mix(limits: &Limits, champion: &Observed, challenger: &Observed) -> Reading {
    let tiers = champion.tiers.len().max(1);
    let alpha = limits.alpha / GUARDRAILS / tiers as f64;
    let (n, m) = (champion.tiers.iter().sum::<u64>(), challenger.tiers.iter().sum::<u64>());
    let (mut fail, mut pass, mut shift) = (false, true, 0.0_f64);
    for (usual, own) in champion.tiers.iter().zip(&challenger.tiers) {
        let (low, high) = difference_interval((*usual, n), (*own, m), alpha);
        fail |= low > limits.tier_shift_max || high < -limits.tier_shift_max;
        pass &= low > -limits.tier_shift_max && high < limits.tier_shift_max;
        shift = shift.max((*usual as f64 / n.max(1) as f64 - *own as f64 / m.max(1) as f64).abs());
    }
    let figures = format!(
        "the share of a tier differs by {shift:.4} at most over {n} and {m} customers; limit {}",
        limits.tier_shift_max
    );
    Reading::new("tier_mix", decide(fail, pass), figures)
}

/// A quantile of a latency histogram in microseconds: the end of its bin. `None` when it is empty.
pub fn quantile_us(latency: &[u64], quantile: f64) -> Option<f64> {
    let count: u64 = latency.iter().sum();
    let rank = (quantile * count as f64).ceil() as u64;
    let mut seen = 0;
    let bin = latency.iter().position(|bin| {
        seen += bin;
        *bin > 0 && seen >= rank
    });
    bin.map(latency_bin_end_us)
}

/// What a quantile is at most, with probability `1 - alpha` at every look; `None` while the histogram cannot tell.
fn quantile_at_most_us(latency: &[u64], quantile: f64, alpha: f64) -> Option<f64> {
    let count: u64 = latency.iter().sum();
    let mut below = 0;
    let bin = latency.iter().position(|bin| {
        below += bin;
        // Few bins are tried: those before the estimate cannot hold it.
        below as f64 >= quantile * count as f64 && share_interval(below, count, alpha).0 >= quantile
    });
    bin.map(latency_bin_end_us)
}

#[cfg(test)]
pub(in crate::domain) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::domain) fn limits() -> Limits {
        Limits {
            requests_min: 500,
            error_margin: 0.01,
            latency_ratio_max: 3.0,
            latency_floor_us: 50.0,
            psi_max: 0.25,
            tier_shift_max: 0.1,
            churn_margin: 0.1,
            fairness_margin: 0.05,
            outcomes_min: 0,
            alpha: 0.01,
        }
    }

    /// An arm that saw `count` requests: scores spread by `score`, `microseconds` each.
    fn arm(count: u64, microseconds: impl Fn(u64) -> f64, score: impl Fn(u64) -> f64) -> Observed {
        let mut observed = Observed {
            requests: count,
            customers: count,
            failed: 0,
            given_up: 0,
            non_finite: 0,
            latency: vec![0; LATENCY_BINS],
            scores: vec![0; 10],
            tiers: vec![0; 3],
        };
        for at in 0..count {
            observed.latency[latency_bin((microseconds(at) * 1e3) as u64)] += 1;
            let score = score(at).clamp(0.0, 0.999);
            observed.scores[(score * 10.0) as usize] += 1;
            observed.tiers[(score * 3.0) as usize] += 1;
        }
        observed
    }

    fn usual(count: u64) -> Observed {
        arm(count, |at| 8.0 + (at % 7) as f64 * 0.5, |at| (at * 37 % 1_000) as f64 / 1_000.0)
    }

    fn failed(readings: &[Reading]) -> Vec<&str> {
        let failed = readings.iter().filter(|reading| reading.verdict == Verdict::Fail);
        failed.map(|reading| reading.guardrail.as_str()).collect()
    }

    #[test]
    fn an_equal_challenger_passes_with_data_and_holds_without() {
        let judge = |count| judge(&limits(), false, &RateTest::default(), &usual(10_000), &usual(count));
        assert_eq!(verdict(&judge(10_000)), Verdict::Pass, "{:#?}", judge(10_000));
        assert_eq!(verdict(&judge(100)), Verdict::Hold);
        assert_eq!(verdict(&judge(0)), Verdict::Hold);
        assert_eq!(verdict(&[]), Verdict::Hold, "no evidence is no pass");
    }

    #[test]
    fn each_fault_is_found_by_its_guardrail() {
        let champion = usual(5_000);
        let slow = arm(300, |_| 90.0, |at| (at * 37 % 1_000) as f64 / 1_000.0);
        assert_eq!(failed(&judge(&limits(), false, &RateTest::default(), &champion, &slow)), ["latency"]);
        // Slow only now and then: the median is well, the p99 is not.
        let rarely = arm(5_000, |at| if at % 20 == 0 { 900.0 } else { 9.0 }, |at| (at * 37 % 1_000) as f64 / 1_000.0);
        assert_eq!(failed(&judge(&limits(), false, &RateTest::default(), &champion, &rarely)), ["latency"]);
        let skewed = arm(2_000, |_| 9.0, |at| ((at * 37 % 1_000) as f64 / 1_000.0).powi(3));
        assert_eq!(
            failed(&judge(&limits(), false, &RateTest::default(), &champion, &skewed)),
            ["score_drift", "tier_mix"]
        );
        let mut nan = usual(100);
        (nan.failed, nan.non_finite) = (1, 1);
        assert_eq!(failed(&judge(&limits(), false, &RateTest::default(), &champion, &nan)), ["non_finite"]);
        let mut errors = RateTest::default();
        errors.add(12, 0, 0.2);
        let mut erring = usual(1_000);
        erring.failed = 12;
        assert_eq!(failed(&judge(&limits(), false, &errors, &champion, &erring)), ["error_rate"]);
    }

    #[test]
    fn failures_are_found_without_a_champion_to_compare_with() {
        let mut erring = usual(3_000);
        erring.failed = 84;
        for (is_alone, champion) in [(false, usual(2_000)), (true, usual(0))] {
            let readings = judge(&limits(), is_alone, &RateTest::default(), &champion, &erring);
            assert_eq!(failed(&readings), ["error_rate"]);
        }
        // The first customers of a step may all be the challenger's.
        assert!(failed(&judge(&limits(), false, &RateTest::default(), &usual(0), &erring)).is_empty());
    }

    type Drawn = fn(&mut fastrand::Rng) -> f64;

    /// Customers, half of them the challenger's, whose scores take so many milliseconds in the two arms, and who wait so long for them, or
    /// say so: the verdict on its errors, where 20 ms are fast enough.
    fn verdict_of_waits(
        random: &mut fastrand::Rng,
        count: usize,
        took_ms: [Drawn; 2],
        patience_ms: Drawn,
        is_stated: bool,
    ) -> Verdict {
        let limits = Limits { latency_floor_us: 20_000.0, ..limits() };
        let wait_max = limits.wait_max(1_000.0);
        let (mut arms, mut before, mut errors) = ([usual(0), usual(0)], [(0, 0); 2], RateTest::default());
        for at in 1..=count {
            let is_own = random.bool();
            let arm = &mut arms[usize::from(is_own)];
            let (took, patience) = (took_ms[usize::from(is_own)](random), patience_ms(random));
            let lasted = Duration::from_secs_f64(patience / 1e3);
            let wait = Wait { lasted, stated: is_stated.then_some(lasted) };
            if took <= patience {
                arm.customers += 1;
            } else if wait.is_failure(wait_max) {
                arm.customers += 1;
                arm.failed += 1;
                arm.given_up += 1;
            }
            // Looks are a quarter of a second apart.
            if at % 50 > 0 {
                continue;
            }
            let now = arms.each_ref().map(|arm| (arm.customers, arm.failed));
            let since = |arm: usize| (now[arm].0 - before[arm].0, now[arm].1 - before[arm].1);
            let ((usual, usual_failed), (own, own_failed)) = (since(0), since(1));
            if usual > 0 && own > 0 {
                errors.add(own_failed, usual_failed, own as f64 / (usual + own) as f64);
                before = now;
            }
            let reading = error_rate(&limits, false, &errors, &arms[0], &arms[1]);
            if reading.verdict == Verdict::Fail {
                return Verdict::Fail;
            }
        }
        Verdict::Hold
    }

    #[test]
    fn callers_who_give_up_are_evidence_and_those_who_leave_soon_are_none() {
        let random = &mut fastrand::Rng::with_seed(5);
        // One that takes half a minute: who says 5 ms, and who hangs up after 50, are enough of them soon.
        let stuck: [Drawn; 2] = [|_| 0.01, |_| 30e3];
        assert_eq!(verdict_of_waits(random, 100, stuck, |_| 5.0, true), Verdict::Fail);
        assert_eq!(verdict_of_waits(random, 100, stuck, |_| 50.0, false), Verdict::Fail);
        // One that takes 15 ms is not to blame that a third of the callers leave at once, and others later.
        let in_haste: Drawn = |random| if random.u8(..3) == 0 { 0.5 } else { 40.0 * random.f64() };
        assert_eq!(verdict_of_waits(random, 3_000, [|_| 0.01, |_| 15.0], in_haste, false), Verdict::Hold);
        // Nor is one that is as slow as the champion.
        let slow: Drawn = |random| 200.0 * random.f64();
        for is_stated in [true, false] {
            let mut judged = || verdict_of_waits(random, 1_000, [slow, slow], in_haste, is_stated);
            assert_eq!((0..20).filter(|_| judged() == Verdict::Fail).count(), 0);
        }
    }

    #[test]
    fn equal_latency_is_no_failure_however_few_the_champion_has() {
        let mut random = fastrand::Rng::with_seed(11);
        // Sums of exponentials in the log: a long tail.
        let mut time = || 20.0 * (0.7 * (-random.f64().ln() - random.f64().ln())).exp();
        let alarms = (0..60).filter(|_| {
            let times: Vec<f64> = (0..4_040).map(|_| time()).collect();
            let champion = arm(40, |at| times[at as usize], |_| 0.5);
            (1..=10).any(|part| {
                let challenger = arm(part * 400, |at| times[at as usize + 40], |_| 0.5);
                latency(&limits(), &champion, &challenger).verdict == Verdict::Fail
            })
        });
        assert_eq!(alarms.count(), 0);
    }

    #[test]
    fn limits_out_of_range_are_named() {
        let wrong = Limits { alpha: f64::NAN, requests_min: 0, churn_margin: -0.1, ..limits() };
        let names: Vec<_> = wrong.problems().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["requests_min", "churn_margin", "alpha"]);
        assert!(limits().problems().is_empty());
    }

    proptest! {
        #[test]
        fn who_leaves_in_time_tells_nothing_unless_it_had_said_so(
            usual_us in 0.0..1e6_f64, lasted_us in 0..10_000_000_u64, stated_us in prop::option::of(1..10_000_000_u64),
        ) {
            let stated = stated_us.map(Duration::from_micros);
            let wait = Wait { lasted: Duration::from_micros(lasted_us), stated };
            let is_over = lasted_us as f64 > limits().latency_max_us(usual_us);
            let is_failure = wait.is_failure(limits().wait_max(usual_us));
            prop_assert_eq!(is_failure, is_over || stated_us.is_some_and(|stated_us| lasted_us >= stated_us));
        }

        #[test]
        fn a_time_is_in_the_bin_that_ends_behind_it(nanoseconds in 0..8_000_000_000_u64) {
            let bin = latency_bin(nanoseconds);
            prop_assert!(latency_bin_end_us(bin) * 1e3 > nanoseconds as f64 || bin == LATENCY_BINS - 1);
            prop_assert!(bin == 0 || latency_bin_end_us(bin - 1) * 1e3 <= nanoseconds as f64);
        }

        #[test]
        fn whatever_was_seen_there_is_a_verdict_and_none_without_data(
            requests in 0..5_000_u64, errors in 0..50_u64, slow in 1.0..1e6_f64, low in 0.0..1.0_f64,
        ) {
            let mut challenger = arm(requests, |_| slow, |_| low);
            challenger.failed = errors.min(requests);
            let readings = judge(&limits(), false, &RateTest::default(), &usual(1_000), &challenger);
            prop_assert_eq!(readings.len(), 5);
            if requests < 500 {
                prop_assert!(verdict(&readings) != Verdict::Pass);
            }
        }
    }
}
