//! Guardrails of what came of a rollout's decisions: whether more customers leave, and whether groups of audits are offered less. Who is
//! counted, and when, is known above; the guardrails of requests are in `guardrail`.

use super::guardrail::{GUARDRAILS, Limits, Reading, Verdict};
use crate::domain::statistics::fairness::{Attribute, PARITY_MIN, REFERENCE_SHARE_MIN, Ratio};
use crate::domain::statistics::sequential::{RateTest, ratio_interval};

/// Customers of one arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Labels {
    /// Of whom it is known whether they left.
    pub known: u64,
    /// Those who left.
    pub left: u64,
}

/// Customers who came first in one step, while an equal share of all was the challenger's.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stratum {
    /// The challenger's share, 0 to 1.
    pub share: f64,
    /// Of the champion and of the challenger.
    pub labels: [Labels; 2],
}

/// What came of the canary of a rollout so far. A customer counts once, for the step and the arm of the first decision in it: chance
/// made that one, and not what an arm did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Effect {
    /// By the step of the first decision.
    pub strata: Vec<Stratum>,
    /// Who was offered something, by groups of audits, by the champion and by the challenger.
    pub groups: [Vec<Attribute>; 2],
}

/// Judges the challenger by what came of it. What nothing is known of has no reading, and so keeps nothing from passing, unless
/// `outcomes_min` asks for outcomes.
pub fn judge(limits: &Limits, effect: &Effect) -> Vec<Reading> {
    [churn(limits, &effect.strata), fairness(limits, &effect.groups)].into_iter().flatten().collect()
}

/// Fails when customers of the challenger leave surely more often than those of the champion and the margin.
///
/// Who belongs to which arm is a draw with a known chance, the share of the step. So whenever somebody leaves, that it is a customer of
/// the challenger has this chance as long as both arms are alike, however late outcomes come and however many are missing: a coin for
/// each who left, and [`RateTest`] says at every look whether it is fair. With the margin as the odds ratio that is allowed, the
/// chance is that of a challenger at the margin. Each step has a share of its own, so that a time in which many leave weighs nothing.
fn churn(limits: &Limits, strata: &[Stratum]) -> Option<Reading> {
    let mut test = RateTest::default();
    let mut sums = [Labels::default(); 2];
    // A step without a champion has nothing to compare with.
    for Stratum { share, labels } in strata.iter().filter(|stratum| stratum.share > 0.0 && stratum.share < 1.0) {
        let allowed = (1.0 + limits.churn_margin) * share;
        test.add(labels[1].left, labels[0].left, allowed / (allowed + 1.0 - share));
        for (sum, labels) in sums.iter_mut().zip(labels) {
            sum.known += labels.known;
            sum.left += labels.left;
        }
    }
    let [usual, own] = sums;
    let known = usual.known.min(own.known);
    if usual.known + own.known == 0 && limits.outcomes_min == 0 {
        return None;
    }
    let (alpha, e_value) = (limits.alpha / GUARDRAILS, test.e_value());
    let verdict = match () {
        () if e_value >= 1.0 / alpha => Verdict::Fail,
        () if known < limits.outcomes_min => Verdict::Hold,
        () => Verdict::Pass,
    };
    let figures = format!(
        "{} of {} customers left, {} of {} of the champion's; e-value of more than {:.2} times as many {e_value:.3}, fails at {:.0}; needs {} of each arm of whom it is known",
        own.left,
        own.known,
        usual.left,
        usual.known,
        1.0 + limits.churn_margin,
        1.0 / alpha,
        limits.outcomes_min,
    );
    Some(Reading::new("churn", verdict, figures))
}

/// Fails when the least parity ratio is surely under four fifths, and surely under the champion's by more than the margin. It holds where
/// it looks so and is not sure yet.
fn fairness(limits: &Limits, groups: &[Vec<Attribute>; 2]) -> Option<Reading> {
    let count = groups.iter().flatten().map(|attribute| judged(attribute).count()).sum::<usize>();
    // The intervals of all groups hold at once, so it does not matter which ones are the least.
    let alpha = limits.alpha / GUARDRAILS / count.max(1) as f64;
    let (usual, _) = least(&groups[0], alpha)?;
    let (own, whose) = least(&groups[1], alpha)?;
    let is_worse = |own: f64, usual: f64| own < PARITY_MIN && own < usual - limits.fairness_margin;
    let verdict = match () {
        () if is_worse(own.high, usual.low) => Verdict::Fail,
        () if is_worse(own.value, usual.value) => Verdict::Hold,
        () => Verdict::Pass,
    };
    let figures = format!(
        "the least parity ratio is {:.3} ({:.3} to {:.3}, by {whose}), the champion's {:.3} ({:.3} to {:.3}); fails surely under {PARITY_MIN} and {} under that",
        own.value, own.low, own.high, usual.value, usual.low, usual.high, limits.fairness_margin,
    );
    Some(Reading::new("fairness", verdict, figures))
}

/// The groups that are large enough to be judged by themselves, each with those who are offered something and all.
fn judged(attribute: &Attribute) -> impl Iterator<Item = (u64, u64)> + Clone {
    let known = attribute.groups.iter().map(|group| group.counts.customers).sum::<u64>() + attribute.rest.customers;
    let is_large = move |counts: &(u64, u64)| counts.1 as f64 >= REFERENCE_SHARE_MIN * known as f64;
    attribute.groups.iter().map(|group| (group.counts.offered, group.counts.customers)).filter(is_large)
}

/// The least ratio of the selection rates of two groups, with the name of their attribute. An end of its interval is the least of those of
/// all pairs: whichever is the highest truly, no ratio to another one is under that to it.
fn least(attributes: &[Attribute], alpha: f64) -> Option<(Ratio, &str)> {
    let of_attribute = |attribute| {
        let groups = judged(attribute);
        let pairs = groups.clone().enumerate().flat_map(move |(at, first)| {
            let others = groups.clone().enumerate().filter(move |(other, _)| *other != at);
            others.map(move |(_, second)| (first, second))
        });
        let ratios = pairs.filter(|(first, _)| first.0 > 0).map(|(first, second)| {
            let (low, high) = ratio_interval(first, second, alpha);
            Ratio { value: second.0 as f64 / second.1 as f64 / (first.0 as f64 / first.1 as f64), low, high }
        });
        ratios.reduce(|one, other| Ratio {
            value: one.value.min(other.value),
            low: one.low.min(other.low),
            high: one.high.min(other.high),
        })
    };
    let found = attributes.iter().filter_map(|attribute| Some((of_attribute(attribute)?, attribute.name.as_str())));
    found.min_by(|(one, _), (other, _)| one.value.total_cmp(&other.value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::money::Money;
    use crate::domain::rollout::guardrail::tests::limits;
    use crate::domain::statistics::fairness::{Census, Seen};

    const RUNS: usize = 400;

    fn loose() -> Limits {
        // A twentieth for each guardrail, to have something to count.
        Limits { alpha: 0.05 * GUARDRAILS, ..limits() }
    }

    fn verdict_of(readings: &[Reading], name: &str) -> Option<Verdict> {
        readings.iter().find(|reading| reading.guardrail == name).map(|reading| reading.verdict)
    }

    /// The share of canaries that fail at one of 60 looks, while the churn rates are such and the share grows on the way. In the second
    /// step three times as many leave, whoever answers them.
    fn failing(champion: f64, challenger: f64) -> f64 {
        let mut random = fastrand::Rng::with_seed(5);
        let fails = (0..RUNS).filter(|_| {
            let mut strata = [0.1, 0.5].map(|share| Stratum { share, ..Stratum::default() });
            (0..60).any(|look| {
                let (step, season) = if look < 30 { (0, 0.33) } else { (1, 1.0) };
                for _ in 0..50 {
                    let arm = usize::from(random.f64() < strata[step].share);
                    let labels = &mut strata[step].labels[arm];
                    labels.known += 1;
                    labels.left += u64::from(random.f64() < season * [champion, challenger][arm]);
                }
                let effect = Effect { strata: strata.to_vec(), ..Effect::default() };
                verdict_of(&judge(&loose(), &effect), "churn") == Some(Verdict::Fail)
            })
        });
        fails.count() as f64 / RUNS as f64
    }

    #[test]
    fn equal_churn_fails_rarely_however_often_it_is_looked_at_and_harm_is_found() {
        let (equal, margin) = (failing(0.3, 0.3), failing(0.3, 0.33));
        assert!(equal <= 0.03, "equal: {equal}");
        assert!(margin <= 0.05, "at the margin: {margin}");
        assert_eq!(failing(0.3, 0.2), 0.0, "a better one never fails");
        let harm = failing(0.3, 0.6);
        assert!(harm > 0.95, "twice as many leave: {harm}");
    }

    #[test]
    fn without_outcomes_there_is_no_verdict_unless_they_are_asked_for() {
        let strict = Limits { outcomes_min: 20, ..limits() };
        assert_eq!(judge(&limits(), &Effect::default()), []);
        assert_eq!(verdict_of(&judge(&strict, &Effect::default()), "churn"), Some(Verdict::Hold));
        let of = |known| {
            let labels = [Labels { known: 500, left: 50 }, Labels { known, left: known / 10 }];
            Effect { strata: vec![Stratum { share: 0.1, labels }], ..Effect::default() }
        };
        assert_eq!(verdict_of(&judge(&strict, &of(19)), "churn"), Some(Verdict::Hold));
        assert_eq!(verdict_of(&judge(&strict, &of(20)), "churn"), Some(Verdict::Pass));
        assert_eq!(verdict_of(&judge(&limits(), &of(1)), "churn"), Some(Verdict::Pass));
        let labels = [Labels::default(), Labels { known: 500, left: 500 }];
        let alone = Effect { strata: vec![Stratum { share: 1.0, labels }], ..Effect::default() };
        assert_eq!(
            judge(&limits(), &alone),
            [],
            "all customers are the challenger's: there is nothing to compare with"
        );
    }

    /// Groups of two arms, each by the rates of its two groups, as they grow: the verdicts at 25 looks.
    fn looks(random: &mut fastrand::Rng, champion: [f64; 2], challenger: [f64; 2]) -> Vec<Option<Verdict>> {
        let mut censuses = [Census::default(), Census::default()];
        let look = |_| {
            for (census, rates) in censuses.iter_mut().zip([champion, challenger]) {
                for (group, rate) in ["f", "m"].into_iter().zip(rates) {
                    for _ in 0..20 {
                        let offered = random.f64() < rate;
                        census.add([("sex", group)], &Seen { offered, cost: Money::ZERO, churned: None });
                    }
                }
            }
            let groups = [censuses[0].compare(0.05), censuses[1].compare(0.05)];
            verdict_of(&judge(&loose(), &Effect { groups, ..Effect::default() }), "fairness")
        };
        (0..25).map(look).collect()
    }

    #[test]
    fn unfairness_is_found_where_the_challenger_brings_it() {
        let mut random = fastrand::Rng::with_seed(9);
        let mut failing = |champion, challenger| {
            let fails = |_: &usize| looks(&mut random, champion, challenger).contains(&Some(Verdict::Fail));
            (0..100).filter(fails).count()
        };
        assert!(failing([0.4, 0.4], [0.4, 0.4]) <= 2, "both are fair");
        assert!(failing([0.5, 0.25], [0.5, 0.25]) <= 2, "the champion is no better");
        assert!(failing([0.4, 0.5], [0.4, 0.5]) <= 2, "at four fifths");
        assert!(failing([0.4, 0.4], [0.6, 0.2]) >= 95, "a third as often");
    }

    #[test]
    fn what_only_looks_unfair_holds_and_what_has_no_groups_says_nothing() {
        let census = |rates: [u64; 2], count: u64| {
            let mut census = Census::default();
            for (group, offered) in ["f", "m"].into_iter().zip(rates) {
                for at in 0..count {
                    census.add([("sex", group)], &Seen { offered: at < offered, cost: Money::ZERO, churned: None });
                }
            }
            census.compare(0.05)
        };
        let verdict = |champion, challenger| {
            let effect = Effect { groups: [champion, challenger], ..Effect::default() };
            verdict_of(&judge(&limits(), &effect), "fairness")
        };
        assert_eq!(verdict(census([10, 10], 20), census([5, 10], 20)), Some(Verdict::Hold));
        assert_eq!(verdict(census([5, 10], 20), census([5, 10], 20)), Some(Verdict::Pass), "no worse");
        assert_eq!(verdict(census([10, 10], 20), census([9, 10], 20)), Some(Verdict::Pass));
        let (half, quarter) = (census([2_000, 4_000], 8_000), census([1_000, 4_000], 8_000));
        assert_eq!(verdict(half, quarter), Some(Verdict::Fail), "worse yet");
        assert_eq!(verdict(census([0, 0], 20), census([5, 10], 20)), None, "the champion offers nothing");
        assert_eq!(verdict(Vec::new(), Vec::new()), None);
    }
}
