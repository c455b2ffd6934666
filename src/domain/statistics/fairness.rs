//! Fairness: whether the groups of an audit are offered something at like rates. Arithmetic on counts: whose they are, when they were
//! counted and what follows from a verdict is not known here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::drift::normal_quantile;
use crate::domain::money::Money;

/// The most attributes that are counted, by the order in which they come.
pub const ATTRIBUTES_MAX: usize = 32;
/// The most groups of an attribute that are counted by themselves, by the order in which they come; all others are the rest.
pub const GROUPS_MAX: usize = 32;
/// A group of fewer customers is among the rest: so few say nothing, and a group that is one person is no group.
pub const GROUP_SIZE_MIN: u64 = 5;
/// The least share of the customers of an attribute that a group needs to be the reference.
pub const REFERENCE_SHARE_MIN: f64 = 0.02;
/// Four fifths: a parity ratio under it is flagged.
pub const PARITY_MIN: f64 = 0.8;

/// One customer, as far as fairness is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Seen {
    /// Whether something is offered, anything but `none`.
    pub offered: bool,
    /// What that costs.
    pub cost: Money,
    /// Whether the customer then left, where that is known.
    pub churned: Option<bool>,
}

/// What was counted of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Customers.
    pub customers: u64,
    /// Those of them that are offered something.
    pub offered: u64,
    /// What that costs, in millionths.
    pub cost_micros: i64,
    /// Those of whom it is known whether they left.
    pub known: u64,
    /// Those who left.
    pub churned: u64,
    /// Those who left and are offered something.
    pub reached: u64,
}

impl Counts {
    /// Counts one customer more.
    pub fn add(&mut self, seen: &Seen) {
        self.customers += 1;
        self.offered += u64::from(seen.offered);
        self.cost_micros = self.cost_micros.saturating_add(seen.cost.micros());
        self.known += u64::from(seen.churned.is_some());
        self.churned += u64::from(seen.churned == Some(true));
        self.reached += u64::from(seen.churned == Some(true) && seen.offered);
    }

    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            customers: self.customers + other.customers,
            offered: self.offered + other.offered,
            cost_micros: self.cost_micros.saturating_add(other.cost_micros),
            known: self.known + other.known,
            churned: self.churned + other.churned,
            reached: self.reached + other.reached,
        }
    }

    /// The share of customers that is offered something; `None` of nobody.
    pub fn selection_rate(&self) -> Option<f64> {
        share(self.offered, self.customers)
    }

    /// What a customer costs on average, in currency units; `None` of nobody.
    pub fn cost_mean(&self) -> Option<f64> {
        (self.customers > 0).then(|| Money::from_micros(self.cost_micros).units() / self.customers as f64)
    }

    /// The share that left of those of whom it is known; `None` of nobody.
    pub fn base_rate(&self) -> Option<f64> {
        share(self.churned, self.known)
    }

    /// The share of those who left that is offered something; `None` where nobody left.
    pub fn true_positive_rate(&self) -> Option<f64> {
        share(self.reached, self.churned)
    }
}

fn share(part: u64, of: u64) -> Option<f64> {
    (of > 0).then(|| part as f64 / of as f64)
}

/// A ratio of two shares with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The ratio, 0 or more.
    pub value: f64,
    /// The lower end of its interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// What an interval says about the four fifths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// All of it is 0.8 or more.
    Pass,
    /// All of it is under 0.8.
    Fail,
    /// It holds 0.8: more customers are needed to tell.
    Unresolved,
}

impl Verdict {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Unresolved => "unresolved",
        }
    }
}

impl Ratio {
    /// `x1` of `n1` by `x2` of `n2`, with an interval of level `1 - alpha` (0 to 1); `None` where the second share is 0 or of nobody.
    ///
    /// Log-normal: `ln r +- z sqrt((1-p1)/(n1 p1) + (1-p2)/(n2 p2))` (Katz, Baptista, Azen and Pike, Biometrics 34, 1978). Where a share is 0
    /// or 1 that has no width, as if it were known for sure; then one half is added to every cell first (after Haldane and Anscombe), and
    /// the interval is widened to hold the ratio as it was counted.
    pub fn of((x1, n1): (u64, u64), (x2, n2): (u64, u64), alpha: f64) -> Option<Self> {
        if n1 == 0 || n2 == 0 || x2 == 0 {
            return None;
        }
        let value = (x1 as f64 / n1 as f64) / (x2 as f64 / n2 as f64);
        let is_edge = |x: u64, n: u64| x == 0 || x >= n;
        let added = if is_edge(x1, n1) || is_edge(x2, n2) { 0.5 } else { 0.0 };
        let [(x1, n1), (x2, n2)] = [(x1, n1), (x2, n2)].map(|(x, n)| (x as f64 + added, n as f64 + 2.0 * added));
        // (1-p)/(n p) is 1/x - 1/n.
        let spread = normal_quantile(alpha / 2.0) * (1.0 / x1 - 1.0 / n1 + 1.0 / x2 - 1.0 / n2).max(0.0).sqrt();
        let middle = (x1 / n1).ln() - (x2 / n2).ln();
        Some(Self { value, low: (middle - spread).exp().min(value), high: (middle + spread).exp().max(value) })
    }

    /// What the interval says about [`PARITY_MIN`].
    pub fn verdict(&self) -> Verdict {
        match (self.low >= PARITY_MIN, self.high < PARITY_MIN) {
            (true, _) => Verdict::Pass,
            (_, true) => Verdict::Fail,
            _ => Verdict::Unresolved,
        }
    }

    /// Whether the ratio itself is under [`PARITY_MIN`], however sure that is.
    pub fn is_flagged(&self) -> bool {
        self.value < PARITY_MIN
    }
}

/// A group beside the reference of its attribute.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its name, as callers write it.
    pub name: String,
    /// What was counted of it.
    pub counts: Counts,
    /// Whether the others are compared with it.
    pub is_reference: bool,
    /// Its selection rate by that of the reference; `None` of the reference, and where that is offered nothing.
    pub parity: Option<Ratio>,
    /// The same of its base rate.
    pub base_rate: Option<Ratio>,
    /// The same of its true-positive rate.
    pub true_positive_rate: Option<Ratio>,
}

/// An attribute with its groups.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribute {
    /// Its name, as callers write it.
    pub name: String,
    /// The largest group first.
    pub groups: Vec<Group>,
    /// Customers of groups that are too small or too many. They are compared with nobody, since they have nothing in common.
    pub rest: Counts,
    /// Customers of whom no group is known.
    pub unknown: u64,
}

/// Customers counted by attribute and group, within its bounds whoever is counted.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Census {
    customers: u64,
    attributes: BTreeMap<Box<str>, Groups>,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Groups {
    groups: BTreeMap<Box<str>, Counts>,
    rest: Counts,
}

impl Census {
    /// Counts one customer in the group of each attribute.
    pub fn add<'g>(&mut self, groups: impl IntoIterator<Item = (&'g str, &'g str)>, seen: &Seen) {
        self.customers += 1;
        for (attribute, group) in groups {
            if !self.attributes.contains_key(attribute) {
                if self.attributes.len() == ATTRIBUTES_MAX {
                    continue;
                }
                self.attributes.insert(attribute.into(), Groups::default());
            }
            let Some(known) = self.attributes.get_mut(attribute) else { continue };
            let is_full = known.groups.len() == GROUPS_MAX;
            match known.groups.get_mut(group) {
                Some(counts) => counts.add(seen),
                None if is_full => known.rest.add(seen),
                None => known.groups.entry(group.into()).or_default().add(seen),
            }
        }
    }

    /// How the groups of each attribute compare, with intervals that hold together at the level `1 - alpha` (0 to 1): see [`compare`].
    pub fn compare(&self, alpha: f64) -> Vec<Attribute> {
        let attributes = self.attributes.iter().map(|(name, known)| {
            let groups = known.groups.iter().map(|(name, counts)| (name.to_string(), *counts));
            compare(name, groups, known.rest, self.customers, alpha)
        });
        attributes.collect()
    }
}

/// How the groups of the attribute `name` compare, of `customers` in all, with intervals that hold together at the level `1 - alpha`
/// (0 to 1). What is known of no group is `rest`.
///
/// The reference is the group with the highest selection rate, as the four-fifths rule has it (29 CFR 1607.4 D), not the largest: whoever is
/// favoured shows the others' disadvantage, even a minority. It has to have 2 % of the customers at least, as the same guidelines ask of
/// a group that is judged by itself (1607.15 A 2), or a handful by chance would set the rate. The intervals hold together, for one look: each
/// is of level `1 - alpha / (k - 1)` where k groups are there (Bonferroni). Without that the least of many groups that are alike would
/// often `fail` beside the highest, both being so by chance.
pub fn compare(
    name: &str,
    groups: impl Iterator<Item = (String, Counts)>,
    mut rest: Counts,
    customers: u64,
    alpha: f64,
) -> Attribute {
    let (mut large, small): (Vec<_>, Vec<_>) = groups.partition(|(_, counts)| counts.customers >= GROUP_SIZE_MIN);
    rest = small.iter().fold(rest, |rest, (_, counts)| rest.plus(counts));
    large.sort_by(|(one, first), (other, second)| second.customers.cmp(&first.customers).then(one.cmp(other)));
    let known = large.iter().map(|(_, counts)| counts.customers).sum::<u64>() + rest.customers;
    let judged = |counts: &Counts| counts.customers as f64 >= REFERENCE_SHARE_MIN * known as f64;
    let rate = |counts: &Counts| counts.selection_rate().unwrap_or(0.0);
    // Of equal rates the first, which is the largest group.
    let reference = large
        .iter()
        .enumerate()
        .filter(|(_, (_, counts))| judged(counts))
        .reduce(|best, other| if rate(&other.1.1) > rate(&best.1.1) { other } else { best });
    let reference = reference.map(|(at, (_, counts))| (at, *counts));
    let alpha = alpha / large.len().saturating_sub(1).max(1) as f64;
    let groups = large.into_iter().enumerate().map(|(at, (name, counts))| {
        let ratio = |part: fn(&Counts) -> (u64, u64)| {
            let (_, reference) = reference.filter(|(place, _)| *place != at)?;
            Ratio::of(part(&counts), part(&reference), alpha)
        };
        Group {
            is_reference: reference.is_some_and(|(place, _)| place == at),
            parity: ratio(|counts| (counts.offered, counts.customers)),
            base_rate: ratio(|counts| (counts.churned, counts.known)),
            true_positive_rate: ratio(|counts| (counts.reached, counts.churned)),
            name,
            counts,
        }
    });
    Attribute { name: name.to_owned(), groups: groups.collect(), rest, unknown: customers.saturating_sub(known) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(offered: u64, customers: u64) -> Counts {
        Counts { customers, offered, ..Counts::default() }
    }

    fn attribute(groups: &[(&str, u64, u64)]) -> Attribute {
        let groups = groups.iter().map(|(name, offered, customers)| ((*name).to_owned(), counts(*offered, *customers)));
        compare("a", groups, Counts::default(), 10_000, 0.05)
    }

    fn drawn(random: &mut fastrand::Rng, n: u64, p: f64) -> u64 {
        (0..n).filter(|_| random.f64() < p).count() as u64
    }

    #[test]
    fn a_ratio_is_that_of_the_formula() {
        let ratio = Ratio::of((30, 100), (60, 120), 0.05).expect("a ratio");
        let spread = 1.959_964 * (0.7 / (100.0 * 0.3) + 0.5 / (120.0 * 0.5_f64)).sqrt();
        let expected = [0.6, 0.6 * (-spread).exp(), 0.6 * spread.exp()];
        for (found, expected) in [ratio.value, ratio.low, ratio.high].into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        assert_eq!((ratio.verdict(), ratio.is_flagged()), (Verdict::Unresolved, true));
        assert_eq!(Ratio::of((300, 1_000), (600, 1_200), 0.05).expect("a ratio").verdict(), Verdict::Fail);
        assert_eq!(Ratio::of((490, 1_000), (600, 1_200), 0.05).expect("a ratio").verdict(), Verdict::Pass);
    }

    #[test]
    fn cells_without_anybody_are_not_taken_for_certain() {
        let all = Ratio::of((5, 5), (5, 5), 0.05).expect("a ratio");
        assert_eq!((all.value, all.verdict()), (1.0, Verdict::Unresolved), "{all:?}");
        let nothing = Ratio::of((0, 8), (3, 8), 0.05).expect("a ratio");
        assert_eq!((nothing.value, nothing.low), (0.0, 0.0));
        assert_eq!((nothing.verdict(), nothing.is_flagged()), (Verdict::Unresolved, true), "{nothing:?}");
        assert_eq!(Ratio::of((0, 500), (250, 500), 0.05).expect("a ratio").verdict(), Verdict::Fail);
        for (one, other) in [((0, 5), (0, 5)), ((0, 0), (1, 2)), ((1, 2), (0, 0)), ((1, 2), (0, 2))] {
            assert_eq!(Ratio::of(one, other, 0.05), None, "{one:?} {other:?}");
        }
    }

    #[test]
    fn the_group_with_the_highest_rate_is_the_reference() {
        let found = attribute(&[("few", 40, 50), ("many", 400, 1_000), ("two", 2, 2), ("tiny", 19, 20)]);
        let names: Vec<&str> = found.groups.iter().map(|group| group.name.as_str()).collect();
        assert_eq!((names, found.rest, found.unknown), (vec!["many", "few", "tiny"], counts(2, 2), 10_000 - 1_072));
        let [many, few, tiny] = &found.groups[..] else { panic!("three groups") };
        assert!(few.is_reference && few.parity.is_none());
        assert_eq!(many.parity.expect("compared").value, 0.5);
        assert!(tiny.parity.expect("compared").value > 1.0, "under 2 % of the customers it is no reference");
        let alike = attribute(&[("b", 5, 10), ("c", 10, 20), ("a", 5, 10)]);
        assert!(alike.groups[0].is_reference && alike.groups[0].name == "c");
        let nobody = attribute(&[("a", 0, 10), ("b", 0, 20)]);
        assert!(nobody.groups.iter().all(|group| group.parity.is_none()), "nobody is offered anything");
    }

    #[test]
    fn what_is_counted_is_bounded() {
        let mut census = Census::default();
        let seen = Seen { offered: true, cost: Money::from_micros(1_500_000), churned: Some(true) };
        for at in 0..2_000 {
            let (attribute, group) = (format!("a{}", at % 40), format!("g{at}"));
            census.add([(attribute.as_str(), "one"), ("each", group.as_str())], &seen);
        }
        let found = census.compare(0.05);
        assert_eq!(found.len(), ATTRIBUTES_MAX);
        let each = found.iter().find(|attribute| attribute.name == "each").expect("it came early");
        assert_eq!((each.groups.len(), each.rest.customers), (0, 2_000), "groups of one are nobody's business");
        let one = found.iter().find(|attribute| attribute.name == "a0").expect("it came first");
        let group = &one.groups[0];
        assert_eq!((group.counts.customers, group.counts.reached, one.unknown), (50, 50, 1_950));
        assert_eq!((group.counts.cost_mean(), group.counts.true_positive_rate()), (Some(1.5), Some(1.0)));
    }

    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        const RUNS: usize = 1_000;
        let mut random = fastrand::Rng::with_seed(29);
        let mut told = String::new();
        for ((n1, p1), (n2, p2), least) in [
            ((400, 0.3), (600, 0.5), 0.95),
            ((200, 0.4), (200, 0.5), 0.95),
            ((2_000, 0.02), (3_000, 0.03), 0.95),
            // Cells are often empty here.
            ((10, 0.1), (20, 0.5), 0.95),
            ((8, 0.9), (8, 0.95), 0.95),
        ] {
            let found = (0..RUNS)
                .filter_map(|_| Ratio::of((drawn(&mut random, n1, p1), n1), (drawn(&mut random, n2, p2), n2), 0.05));
            let (held, count) = found.fold((0, 0), |(held, count), ratio| {
                (held + usize::from((ratio.low..=ratio.high).contains(&(p1 / p2))), count + 1)
            });
            let coverage = held as f64 / f64::from(count);
            told += &format!("{p1} of {n1} by {p2} of {n2}: {coverage:.3}\n");
            // Three standard deviations of a share of a thousand runs.
            assert!(coverage >= least - 0.021, "{told}");
        }
        println!("{told}");
    }

    #[test]
    fn verdicts_are_seldom_wrong_even_though_the_reference_is_chosen() {
        const RUNS: usize = 600;
        let mut random = fastrand::Rng::with_seed(31);
        let mut judge = |rates: &[f64], n: u64, verdict: Verdict| {
            let wrong = (0..RUNS).filter(|_| {
                let groups = rates
                    .iter()
                    .enumerate()
                    .map(|(at, rate)| (at.to_string(), counts(drawn(&mut random, n, *rate), n)));
                let groups: Vec<_> = groups.collect();
                let found = compare("a", groups.into_iter(), Counts::default(), 0, 0.05);
                found.groups.iter().any(|group| group.parity.is_some_and(|ratio| ratio.verdict() == verdict))
            });
            wrong.count() as f64 / RUNS as f64
        };
        let alike = judge(&[0.4; 5], 200, Verdict::Fail);
        // The lower the rate, the more chance there is in ratios.
        let many = [8, 30].map(|groups| judge(&vec![0.1; groups], 100, Verdict::Fail));
        let edge = [Verdict::Fail, Verdict::Pass].map(|verdict| judge(&[0.4, 0.5], 400, verdict));
        println!("alike fail, five: {alike:.3}, eight and thirty: {many:.3?}; at the edge fail and pass: {edge:.3?}");
        // Each end of an interval misses in 2.5 % of the cases; three standard deviations of 600 runs.
        assert!(alike <= 0.05 && many.iter().all(|share| *share <= 0.05), "{alike} {many:?}");
        assert!(edge.iter().all(|share| *share <= 0.025 + 0.02), "{edge:?}");
    }

    proptest! {
        #[test]
        fn a_ratio_lies_within_its_interval(x1 in 0_u64..50, m1 in 0_u64..50, x2 in 1_u64..50, m2 in 0_u64..50) {
            let (n1, n2) = (x1 + m1, x2 + m2);
            if let Some(ratio) = Ratio::of((x1, n1), (x2, n2), 0.05) {
                prop_assert!(0.0 <= ratio.low && ratio.low <= ratio.value && ratio.value <= ratio.high && ratio.high.is_finite());
                prop_assert!(ratio.low < ratio.high, "nothing is certain: {ratio:?}");
                prop_assert!(ratio.verdict() != Verdict::Fail || ratio.is_flagged());
                prop_assert!(ratio.verdict() != Verdict::Pass || !ratio.is_flagged());
            }
        }
    }
}
