//! What a decision was worth: by the outcomes that are known of it, as a model expects it, and what another policy's decisions would have
//! been worth by both.

use super::{Intervention, Policy};
use crate::domain::money::Money;
use crate::domain::outcome::Facts;
use crate::domain::score::Score;
use crate::domain::statistics::off_policy::{self, Evaluation, Row};

/// Under so many effective rows the normal intervals of an evaluation are too narrow.
const EFFECTIVE_ROWS_MIN: f64 = 100.0;

/// What a decision brought, by its outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reward {
    /// The value at stake of who stayed, less the cost of what was offered.
    RetainedValue,
    /// 1 of who stayed, 0 of who left.
    Retained,
    /// 1 of who took the offer, 0 of who did not.
    Converted,
    /// What the customer paid.
    Revenue,
    /// What the customer paid, less what it cost to contact him: as stated, or else the cost of what was offered.
    Margin,
}

impl Reward {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::RetainedValue, Self::Retained, Self::Converted, Self::Revenue, Self::Margin];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Reward::RetainedValue => "retained_value",
            Reward::Retained => "retained",
            Reward::Converted => "converted",
            Reward::Revenue => "revenue",
            Reward::Margin => "margin",
        }
    }

    /// Whether it is an amount of money.
    pub fn is_money(self) -> bool {
        matches!(self, Reward::RetainedValue | Reward::Revenue | Reward::Margin)
    }

    /// Whether there is a model of it: score and expected effectiveness say who stays, and nothing says who pays or takes an offer.
    pub fn has_model(self) -> bool {
        matches!(self, Reward::RetainedValue | Reward::Retained)
    }

    /// What `followed` says that a decision brought for which `cost` was paid, with `stake` to lose; `None` where that is not known.
    pub fn of(self, followed: &Followed, cost: Money, stake: Option<f64>) -> Option<f64> {
        let unit = |yes: bool| f64::from(u8::from(yes));
        match self {
            Reward::RetainedValue => Some(unit(!followed.churned?) * stake? - cost.units()),
            Reward::Retained => Some(unit(!followed.churned?)),
            Reward::Converted => Some(unit(followed.converted?)),
            Reward::Revenue => Some(followed.revenue?.units()),
            Reward::Margin => Some(followed.revenue?.units() - followed.contact_cost.unwrap_or(cost).units()),
        }
    }

    /// What is expected of an `intervention` for a customer with this score and `stake`: who stays is `1 - score (1 - effectiveness)`; 0 where
    /// there is no model. Neither the score nor the effectiveness was learnt from the decision that is judged by it.
    pub fn expected(self, intervention: &Intervention, score: Score, stake: Option<f64>) -> f64 {
        let stays = 1.0 - score.value() * (1.0 - intervention.expected_effectiveness);
        match self {
            Reward::RetainedValue => stays * stake.unwrap_or(0.0) - intervention.cost.units(),
            Reward::Retained => stays,
            Reward::Converted | Reward::Revenue | Reward::Margin => 0.0,
        }
    }
}

/// What is known to have followed a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Followed {
    /// Whether the customer left, by what occurred last.
    pub churned: Option<bool>,
    /// Whether the customer ever took the offer.
    pub converted: Option<bool>,
    /// What he paid together.
    pub revenue: Option<Money>,
    /// What it cost to contact him together.
    pub contact_cost: Option<Money>,
}

impl Followed {
    /// What `outcomes` say together, each with the time at which it occurred, in milliseconds.
    pub fn by(outcomes: impl Iterator<Item = (i64, Facts)>) -> Self {
        let (mut followed, mut last_ms) = (Self::default(), i64::MIN);
        let sum = |so_far: Option<Money>, more: Option<Money>| match (so_far, more) {
            (Some(one), Some(other)) => Some(one.plus(other)),
            (one, other) => one.or(other),
        };
        for (at_ms, facts) in outcomes {
            if facts.churned.is_some() && at_ms >= last_ms {
                (followed.churned, last_ms) = (facts.churned, at_ms);
            }
            if let Some(converted) = facts.converted {
                followed.converted = Some(converted || followed.converted == Some(true));
            }
            followed.revenue = sum(followed.revenue, facts.revenue);
            followed.contact_cost = sum(followed.contact_cost, facts.contact_cost);
        }
        followed
    }
}

/// A decision on record whose reward is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Logged<'p> {
    /// What was offered, as the policy of then has it.
    pub intervention: &'p Intervention,
    /// The probability that it had then.
    pub propensity: f64,
    /// The score.
    pub score: Score,
    /// What is lost with the customer.
    pub stake: Option<f64>,
    /// What it brought.
    pub reward: f64,
}

impl Logged<'_> {
    /// It as a row for `policy`, which offers the intervention at the place `chosen` to who is not held out. Who is held out is chance for
    /// both: a policy with a holdout has `none` with its share.
    pub fn row(&self, reward: Reward, policy: &Policy, chosen: usize) -> Row {
        let held_out = policy.holdout().map_or(0.0, |holdout| holdout.share());
        let likely = [(&policy.interventions()[chosen], 1.0 - held_out), (&policy.interventions()[0], held_out)];
        let expected = |intervention: &Intervention| reward.expected(intervention, self.score, self.stake);
        let same = likely.iter().filter(|(known, _)| known.action == self.intervention.action);
        Row {
            propensity: self.propensity,
            agreement: same.map(|(_, share)| share).sum::<f64>().min(1.0),
            reward: self.reward,
            expected_taken: expected(self.intervention),
            expected_candidate: likely.iter().map(|(known, share)| share * expected(known)).sum(),
        }
    }
}

/// What a policy would have brought.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Valuation {
    /// The estimates.
    pub evaluation: Evaluation,
    /// Customers for whom another action was taken without any chance of the policy's: nothing on record says what that would have brought.
    pub without_chance: u64,
    /// Whether every action of the policy had a chance on record, as far as the weights show. Without that `ips` is worth nothing: it
    /// counts the others as 0.
    pub is_supported: bool,
}

impl Valuation {
    /// The value of the policy of `rows` with intervals of level `1 - alpha` (0 to 1); `None` of fewer than two rows.
    pub fn of(rows: &[Row], alpha: f64) -> Option<Self> {
        let evaluation = off_policy::evaluate(rows, alpha).ok()?;
        let without_chance = rows.iter().filter(|row| row.agreement < 1.0 && row.propensity >= 1.0).count() as u64;
        // The mean weight is 1 but for chance where every action had some.
        let count = rows.len() as f64;
        let spread = |row: &Row| (row.agreement / row.propensity - evaluation.weight_mean).powi(2);
        let error = (rows.iter().map(spread).sum::<f64>() / (count * (count - 1.0))).sqrt();
        let is_supported = without_chance == 0 && evaluation.weight_mean + 3.0 * error >= 1.0 - 1e-9;
        Some(Self { evaluation, without_chance, is_supported })
    }

    /// What is to be known before its figures are believed, a sentence each.
    pub fn warnings(&self, reward: Reward) -> Vec<String> {
        let Evaluation { rows, matched, effective_rows, weight_mean, .. } = self.evaluation;
        let mut warnings = Vec::new();
        if self.without_chance > 0 {
            let rests = match reward.has_model() {
                true => "the doubly robust value rests for them on score and expected_effectiveness alone",
                false => "and there is no model of this reward that could stand in",
            };
            warnings.push(format!(
                "no overlap: {} of {rows} customers were given another action with a propensity of 1, so what this policy would have brought with them is not known; snips is that of the {matched} on whom both agree, and {rests}",
                self.without_chance
            ));
        } else if !self.is_supported {
            warnings.push(format!(
                "little overlap: the mean weight is {weight_mean:.3} instead of 1, so about that share of what this policy would do had any chance on record; what the rest would have brought is not known"
            ));
        }
        if effective_rows < EFFECTIVE_ROWS_MIN {
            warnings.push(format!(
                "{effective_rows:.0} effective rows: under {EFFECTIVE_ROWS_MIN} the intervals are too narrow"
            ));
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::policy::document;

    fn policy(holdout: &str) -> Policy {
        let text = include_str!("../../../models/policy/default.toml");
        document::parse(&format!("{text}\n{holdout}"), "v").unwrap_or_else(|problems| panic!("{}", problems.join("\n")))
    }

    #[test]
    fn outcomes_come_together() {
        let amount = |units| Money::from_units(units);
        let churned = |churned| Facts { churned: Some(churned), ..Facts::default() };
        let found = Followed::by(
            [
                (7, churned(false)),
                (5, churned(true)),
                (1, Facts { converted: Some(true), revenue: amount(2.5), ..Facts::default() }),
                (
                    2,
                    Facts {
                        converted: Some(false),
                        revenue: amount(-1.0),
                        contact_cost: amount(0.5),
                        ..Facts::default()
                    },
                ),
            ]
            .into_iter(),
        );
        let expected =
            Followed { churned: Some(false), converted: Some(true), revenue: amount(1.5), contact_cost: amount(0.5) };
        assert_eq!(found, expected);
        let reward = |reward: Reward| reward.of(&found, Money::from_micros(10_000_000), Some(100.0));
        let rewards = Reward::ALL.map(reward);
        assert_eq!(rewards, [Some(90.0), Some(1.0), Some(1.0), Some(1.5), Some(1.0)]);
        assert!(Reward::ALL.iter().all(|reward| reward.of(&Followed::default(), Money::ZERO, None).is_none()));
        assert_eq!(Reward::RetainedValue.of(&found, Money::ZERO, None), None, "nobody knows what was at stake");
    }

    #[test]
    fn a_holdout_is_chance_for_who_is_in_it_and_who_is_not() {
        let policy = policy("[holdout]\nshare = 0.2");
        let score = Score::new(0.9).expect("a score");
        let logged = |place: usize, propensity| Logged {
            intervention: &policy.interventions()[place],
            propensity,
            score,
            stake: Some(100.0),
            reward: 1.0,
        };
        let row = logged(1, 0.8).row(Reward::Retained, &policy, 1);
        assert!((row.agreement / row.propensity - 1.0).abs() < 1e-12, "the same policy has weights of 1: {row:?}");
        let held_out = logged(0, 0.2).row(Reward::Retained, &policy, 1);
        assert!((held_out.agreement / held_out.propensity - 1.0).abs() < 1e-12);
        assert_eq!(logged(2, 0.8).row(Reward::Retained, &policy, 1).agreement, 0.0);
        assert_eq!(logged(0, 1.0).row(Reward::Retained, &policy, 0).agreement, 1.0);
        // 0.9 leave, and 0.4 of them are kept by a call.
        assert!((row.expected_taken - (1.0 - 0.9 * 0.6)).abs() < 1e-12);
        assert!((row.expected_candidate - (0.8 * row.expected_taken + 0.2 * 0.1)).abs() < 1e-12);
    }

    #[test]
    fn where_nothing_was_left_to_chance_it_says_so() {
        let row = |agreement, reward| Row {
            propensity: 1.0,
            agreement,
            reward,
            expected_taken: 0.5,
            expected_candidate: 0.5,
        };
        let rows: Vec<Row> = (0..200).map(|at| row(f64::from(u8::from(at % 2 == 0)), f64::from(at % 2))).collect();
        let found = Valuation::of(&rows, 0.05).expect("rows");
        assert_eq!((found.without_chance, found.is_supported, found.evaluation.matched), (100, false, 100));
        assert!(
            found.warnings(Reward::Retained)[0].contains("100 of 200 customers"),
            "{:?}",
            found.warnings(Reward::Retained)
        );
        let agreed: Vec<Row> = rows.iter().map(|row| Row { agreement: 1.0, ..*row }).collect();
        let found = Valuation::of(&agreed, 0.05).expect("rows");
        assert_eq!((found.is_supported, found.warnings(Reward::Revenue)), (true, Vec::new()));
        // By chance, but never the action that the policy wants.
        let never: Vec<Row> = rows.iter().map(|row| Row { propensity: 0.5, agreement: 0.0, ..*row }).collect();
        let found = Valuation::of(&never, 0.05).expect("rows");
        assert!(!found.is_supported && found.warnings(Reward::Retained)[0].contains("0.000"));
        assert_eq!(Valuation::of(&rows[..1], 0.05), None);
    }
}
