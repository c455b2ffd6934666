//! What bounds a policy: its budget, the customers whom it leaves alone, and how many reasons a tier wants.

use super::super::Period;
use super::super::budget::Budget;
use super::super::holdout::Holdout;
use super::table::{Item, Reader, Table};
use crate::domain::money::Money;
use crate::domain::reason::REASONS_MAX;

impl Reader {
    pub(super) fn budget(&mut self, root: &Table) -> Option<Budget> {
        let item = self.get(root, "budget")?;
        let table = self.table(&item)?;
        self.only(&table, &["amount", "period"]);
        let amount = self.need(&table, "amount").and_then(|item| {
            let units = self.number(&item)?;
            // The bound keeps every sum of costs exact as a double.
            let money = Money::from_units(units).filter(|_| (0.0..=1e9).contains(&units));
            if money.is_none() {
                self.problem(&item.at, "expected 0 to 1000000000, with at most six decimals");
            }
            money
        });
        let period = self.need(&table, "period").and_then(|item| self.period(&item));
        Some(Budget { amount: amount?, period: period? })
    }

    /// How many reasons the decisions of a tier have: `explain = 3`.
    pub(super) fn explain(&mut self, tier: &Table) -> usize {
        let Some(item) = self.get(tier, "explain") else { return 0 };
        let found =
            self.number(&item).filter(|count| (1.0..=REASONS_MAX as f64).contains(count) && count.fract() == 0.0);
        if found.is_none() {
            self.problem(&item.at, format_args!("expected how many reasons: a whole number from 1 to {REASONS_MAX}"));
        }
        found.unwrap_or_default() as usize
    }

    pub(super) fn period(&mut self, item: &Item) -> Option<Period> {
        let text = self.text(item)?;
        let found = [Period::Day, Period::Week, Period::Month].into_iter().find(|period| period.name() == text);
        if found.is_none() {
            self.problem(&item.at, "expected \"day\", \"week\" or \"month\"");
        }
        found
    }

    pub(super) fn holdout(&mut self, root: &Table, name: &str) -> Option<Holdout> {
        let item = self.get(root, "holdout")?;
        let table = self.table(&item)?;
        self.only(&table, &["share", "salt"]);
        let share = self.need(&table, "share").and_then(|item| {
            let share = self.number(&item)?;
            if !(0.0..=1.0).contains(&share) {
                self.problem(&item.at, "expected a share from 0 to 1");
            }
            Some(share)
        });
        let salt = match self.get(&table, "salt") {
            Some(item) => self.text(&item)?,
            None => name.to_owned(),
        };
        Some(Holdout::new(share?, &salt))
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    const DEFAULT: &str = include_str!("../../../../models/policy/default.toml");

    #[test]
    fn a_budget_and_a_holdout_are_read_and_checked() {
        let with = |text: &str| parse(&format!("{DEFAULT}\n{text}"), "v");
        let policy = with("[budget]\namount = 50000.5\nperiod = \"week\"\n[holdout]\nshare = 0.05").expect("legal");
        let budget = policy.budget().expect("a budget");
        assert_eq!((budget.amount.micros(), budget.period.name()), (50_000_500_000, "week"));
        assert_eq!(policy.holdout().map(|holdout| holdout.share()), Some(0.05));
        assert!(!policy.is_plain());
        let salted = with("[holdout]\nshare = 0.5\nsalt = \"other\"").expect("legal");
        let named = with("[holdout]\nshare = 0.5").expect("legal");
        let differs = (0..100).any(|at| salted.holds_out(&at.to_string()) != named.holds_out(&at.to_string()));
        assert!(differs);
        let problems = with("[budget]\namount = -1\nperiod = \"year\"\ncolour = 1\n[holdout]\nshare = 1.5\nsalt = 2");
        let problems = problems.expect_err("illegal").join("\n");
        for told in ["budget.amount: expected 0", "budget.period: expected \"day\"", "colour", "holdout.share", "salt"]
        {
            assert!(problems.contains(told), "{told} in {problems}");
        }
    }

    #[test]
    fn a_tier_says_how_many_reasons_it_wants() {
        let with = |explain: &str| {
            let text = format!("score = \"(0.8, 1]\"\nexplain = {explain}");
            parse(&DEFAULT.replacen("score = \"(0.8, 1]\"", &text, 1), "v")
        };
        let policy = with("3").expect("legal");
        assert_eq!(policy.tiers().iter().map(|tier| tier.explain).collect::<Vec<_>>(), [3, 0, 0]);
        assert!(policy.explains() && policy.is_plain() && !parse(DEFAULT, "v").expect("legal").explains());
        for illegal in ["0", "51", "2.5", "true"] {
            let problems = with(illegal).expect_err("illegal").join("\n");
            assert!(problems.contains("tiers[0].explain: expected"), "{problems}");
        }
    }
}
