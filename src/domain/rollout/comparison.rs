//! The comparison of two ways to decide on the same customers: two models, or two policies. Which customers those are, and who
//! decides twice, is not known here.

use serde::{Deserialize, Serialize};

use crate::domain::money::Money;
use crate::domain::policy::Policy;
use crate::domain::policy::condition::Known;
use crate::domain::score::Score;

/// The quantiles that are told of the differences.
const QUANTILES: [(&str, f64); 7] =
    [("p01", 0.01), ("p05", 0.05), ("p25", 0.25), ("p50", 0.5), ("p75", 0.75), ("p95", 0.95), ("p99", 0.99)];

/// How the second way differs from the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Customers decided on by both.
    pub rows: usize,
    /// Customers that could not be decided on twice, such as those whose inputs were erased.
    pub skipped: usize,
    /// The second score minus the first.
    pub score_difference: Differences,
    /// The tiers of the first way, in order of falling risk.
    pub tiers_before: Vec<String>,
    /// The tiers of the second.
    pub tiers_after: Vec<String>,
    /// Customers by tier before (rows) and after (columns).
    pub migration: Vec<Vec<u64>>,
    /// The share of customers whose tier has another name, 0 to 1.
    pub moved_share: f64,
    /// What the interventions of the first way cost together.
    pub cost_before: f64,
    /// And those of the second.
    pub cost_after: f64,
    /// What the interventions of the first way are expected to be worth together; `None` where its policy has no value at stake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_value_before: Option<f64>,
    /// And those of the second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_value_after: Option<f64>,
    /// ISO 4217.
    pub currency: String,
}

/// The distribution of differences of scores.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Differences {
    /// Their mean.
    pub mean: f64,
    /// The mean of their sizes.
    pub mean_size: f64,
    /// The greatest size.
    pub size_max: f64,
    /// Quantiles by name, `p01` to `p99`.
    pub quantiles: Vec<(String, f64)>,
}

/// Collects a comparison of two policies, customer by customer.
#[derive(Debug)]
pub struct Comparer<'p> {
    before: &'p Policy,
    after: &'p Policy,
    differences: Vec<f64>,
    migration: Vec<Vec<u64>>,
    moved: u64,
    cost: [Money; 2],
    expected_value: [Option<f64>; 2],
    skipped: usize,
}

/// One way to decide on a customer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decided {
    score: Score,
    tier: usize,
    cost: Money,
    expected_value: Option<f64>,
}

impl Decided {
    /// What `policy` makes of a customer with this score, of whom `values` are known; a policy that holds nobody out does not look at
    /// the id. There is money for everything.
    pub fn by(policy: &Policy, score: Score, values: &[Known], customer_id: &str) -> Self {
        let assessment = policy.assess(score, values);
        let choice = match policy.holds_out(customer_id) {
            true => assessment.hold_out(),
            false => assessment.choose(0.0, |_| true),
        };
        Self { score, tier: assessment.tier, cost: choice.cost, expected_value: choice.expected_value }
    }
}

impl<'p> Comparer<'p> {
    /// Nothing compared yet; the policies may be the same.
    pub fn new(before: &'p Policy, after: &'p Policy) -> Self {
        let migration = vec![vec![0; after.tiers().len()]; before.tiers().len()];
        Self {
            before,
            after,
            differences: Vec::new(),
            migration,
            moved: 0,
            cost: [Money::ZERO; 2],
            expected_value: [None; 2],
            skipped: 0,
        }
    }

    /// One customer, decided on both ways.
    pub fn add(&mut self, before: Decided, after: Decided) {
        self.differences.push(after.score.value() - before.score.value());
        self.migration[before.tier][after.tier] += 1;
        let (from, to) = (&self.before.tiers()[before.tier], &self.after.tiers()[after.tier]);
        self.moved += u64::from(from.name != to.name);
        for (at, decided) in [before, after].iter().enumerate() {
            self.cost[at] = self.cost[at].plus(decided.cost);
            if let Some(value) = decided.expected_value {
                *self.expected_value[at].get_or_insert(0.0) += value;
            }
        }
    }

    /// One customer that could not be decided on twice.
    pub fn skip(&mut self) {
        self.skipped += 1;
    }

    /// What came of it.
    pub fn end(mut self) -> Comparison {
        let rows = self.differences.len();
        let mean = |sum: f64| if rows == 0 { 0.0 } else { sum / rows as f64 };
        self.differences.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| self.differences.get(((rows.saturating_sub(1)) as f64 * share).round() as usize);
        let names = |policy: &Policy| policy.tiers().iter().map(|tier| tier.name.clone()).collect();
        Comparison {
            rows,
            skipped: self.skipped,
            score_difference: Differences {
                mean: mean(self.differences.iter().sum()),
                mean_size: mean(self.differences.iter().map(|difference| difference.abs()).sum()),
                size_max: self.differences.iter().fold(0.0, |max, difference| f64::max(max, difference.abs())),
                quantiles: QUANTILES
                    .iter()
                    .filter_map(|(name, share)| Some(((*name).to_owned(), *at(*share)?)))
                    .collect(),
            },
            tiers_before: names(self.before),
            tiers_after: names(self.after),
            migration: self.migration,
            moved_share: mean(self.moved as f64),
            cost_before: self.cost[0].units(),
            cost_after: self.cost[1].units(),
            expected_value_before: self.expected_value[0],
            expected_value_after: self.expected_value[1],
            currency: self.after.currency().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::policy::document;

    #[test]
    fn counts_who_moves_and_what_it_costs() {
        let text = include_str!("../../../models/policy/default.toml");
        let policy = document::parse(text, "v").expect("legal");
        let decided = |value| Decided::by(&policy, Score::new(value).expect("a score"), &[], "");
        let mut comparer = Comparer::new(&policy, &policy);
        comparer.add(decided(0.9), decided(0.9));
        comparer.add(decided(0.9), decided(0.1));
        comparer.skip();
        let found = comparer.end();
        assert_eq!((found.rows, found.skipped, found.moved_share), (2, 1, 0.5));
        assert!((found.score_difference.mean + 0.4).abs() < 1e-12 && found.score_difference.size_max == 0.8);
        assert_eq!(found.migration[0].iter().sum::<u64>(), 2);
        assert_eq!(found.migration[0][policy.tiers().len() - 1], 1);
        let cost = |tier: usize| policy.first_of(&policy.tiers()[tier]).expect("an offer").cost.units();
        assert_eq!(found.cost_before, 2.0 * cost(0));
        assert_eq!(found.cost_after, cost(0) + cost(policy.tiers().len() - 1));
        assert_eq!(Comparer::new(&policy, &policy).end().rows, 0);
    }
}
