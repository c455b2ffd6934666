//! Key figures of who runs the service: from what interventions did to what that was worth, each with the figures that it is made of.

use super::{ALPHA, Cohorts, Customer, quality, z};
use crate::domain::policy::experiment::mismatch;
use crate::domain::statistics::lift::{self, Lift, Unit};
use crate::domain::statistics::{Estimate, quality as methods};

/// The groups of a holdout are not as large as they should be from this e-value on: by chance so in one of a thousand holdouts, however
/// often they are looked at.
pub const MISMATCH: f64 = 1_000.0;

/// What is aimed at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Targets {
    /// The conversion rate must not be under it, 0 to 1; 0 asks for nothing.
    pub conversion_floor: f64,
    /// A decision must not cost more, in currency units; 0 asks for nothing.
    pub cost_ceiling: f64,
    /// By how much of it the churn rate is to be less than without interventions, 0 to 1.
    pub churn_reduction: f64,
}

/// How a figure stands to what is aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// All of its interval is on the right side.
    Met,
    /// All of it is on the wrong side.
    Missed,
    /// It is on both sides: more customers are needed to tell.
    Unresolved,
}

impl Standing {
    /// Its name: `met`, `missed` or `unresolved`.
    pub fn name(self) -> &'static str {
        match self {
            Standing::Met => "met",
            Standing::Missed => "missed",
            Standing::Unresolved => "unresolved",
        }
    }

    fn at_least(estimate: &Estimate, floor: f64) -> Self {
        match (estimate.low >= floor, estimate.high < floor) {
            (true, _) => Self::Met,
            (_, true) => Self::Missed,
            _ => Self::Unresolved,
        }
    }

    fn at_most(estimate: &Estimate, ceiling: f64) -> Self {
        match (estimate.high <= ceiling, estimate.low > ceiling) {
            (true, _) => Self::Met,
            (_, true) => Self::Missed,
            _ => Self::Unresolved,
        }
    }
}

/// One figure of the tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Kpi {
    /// Its name.
    pub name: &'static str,
    /// `share`, `money` or `customers`.
    pub unit: &'static str,
    /// `None` where there is nothing to tell it from.
    pub estimate: Option<Estimate>,
    /// What is aimed at, if anything is, in the unit of the figure: at least so much of a share, at most so much money.
    pub target: Option<f64>,
    /// How it stands to that, where both are known.
    pub standing: Option<Standing>,
    /// The figures that it is made of, by name.
    pub made_of: &'static [&'static str],
}

/// Whether as many customers are held out as should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// Customers who are treated, and who are held out.
    pub treated: u64,
    /// See `treated`.
    pub held_out: u64,
    /// The share that should be held out.
    pub expected: f64,
    /// An e-value that may be looked at any time: from [`MISMATCH`] on something else than chance decides who is held out, and no
    /// comparison can be trusted.
    pub e_value: f64,
}

/// The figures of some customers.
#[derive(Debug, Clone, PartialEq)]
pub struct Kpis {
    /// Customers of the window that ends now, and decisions on them.
    pub customers: u64,
    /// See `customers`.
    pub decisions: u64,
    /// The tree, what is made of others behind them.
    pub tree: Vec<Kpi>,
    /// The share that left of the treated less that of the held out.
    pub churn: Option<Lift>,
    /// What is lost with each of the treated less that with each of the held out, in currency units.
    pub lost: Option<Lift>,
    /// Whether the comparison can be trusted.
    pub ratio: Option<Ratio>,
}

impl Kpis {
    /// A figure of the tree.
    pub fn get(&self, name: &str) -> Option<&Kpi> {
        self.tree.iter().find(|kpi| kpi.name == name)
    }
}

/// The figures of `cohorts`; `holdout` is the share that the policy in force keeps from intervention.
pub fn kpis(cohorts: &Cohorts, targets: &Targets, holdout: Option<f64>) -> Kpis {
    let Cohorts { matured, recent, maturity_ms } = cohorts;
    let compared = || matured.iter().filter(|customer| customer.holdout.is_some());
    let churned = |customer: &Customer| customer.churned(*maturity_ms) == Some(true);
    let units = |held_out: bool, outcome: &dyn Fn(&Customer) -> f64| -> Vec<Unit> {
        let group = compared().filter(|customer| customer.holdout == Some(held_out));
        let unit = |customer: &Customer| Unit {
            outcome: outcome(customer),
            before: [customer.usage_before.unwrap_or(f64::NAN), customer.score],
        };
        group.map(unit).collect()
    };
    let difference =
        |outcome: &dyn Fn(&Customer) -> f64| lift::lift(&units(false, outcome), &units(true, outcome), ALPHA);
    let rate = |customers: &mut dyn Iterator<Item = &Customer>| {
        let (hits, count) = customers.fold((0, 0), |(hits, count), one| (hits + u64::from(churned(one)), count + 1));
        ((hits, count), methods::wilson(hits, count, z()))
    };
    let (_, everybody) = rate(&mut matured.iter());
    let (treated_counts, treated) = rate(&mut compared().filter(|customer| customer.is_treated()));
    let (held_out_counts, held_out) = rate(&mut compared().filter(|customer| !customer.is_treated()));
    let early: Vec<(bool, u64)> =
        recent.iter().map(|customer| (customer.left_after_ms.is_some(), customer.age_ms)).collect();
    let early = quality::delays(cohorts).and_then(|delays| methods::delay_corrected(&early, &delays, z()));
    let reduction = lift::relative_reduction(treated_counts, held_out_counts, ALPHA);
    let churn = difference(&|customer| f64::from(u8::from(churned(customer))));
    // Without a value nothing is known to be lost, and a sum over only some of them would be of nobody in particular.
    let has_values = compared().next().is_some() && compared().all(|customer| customer.value_at_stake.is_some());
    let lost = difference(&|customer| match churned(customer) {
        true => customer.value_at_stake.unwrap_or_default(),
        false => 0.0,
    });
    let lost = lost.filter(|_| has_values);
    let of_treated = treated_counts.1 as f64;
    let treated_cost: f64 =
        compared().filter(|customer| customer.is_treated()).map(|one| one.cost + one.contact_cost).sum();
    let kept = churn.map(|churn| churn.adjusted.times(-of_treated));
    let saved = lost.map(|lost| lost.adjusted.times(-of_treated));

    // Who has not said so by the maturity has not taken it: of those who answered alone it would be the share of the talkative.
    let answers = matured.iter().filter(|customer| customer.offered).map(|customer| customer.converted == Some(true));
    let (taken, offered) = answers.fold((0, 0), |(taken, count), converted| (taken + u64::from(converted), count + 1));
    let conversion = methods::wilson(taken, offered, z());
    let pairs = |pair: fn(&Customer) -> (f64, f64)| recent.iter().map(pair).collect::<Vec<_>>();
    let orders = lift::ratio(&pairs(|customer| (customer.revenue, f64::from(customer.orders))), z());
    let costs =
        lift::ratio(&pairs(|customer| (customer.cost + customer.contact_cost, f64::from(customer.decisions))), z());
    let spend: f64 = recent.iter().map(|customer| customer.cost + customer.contact_cost).sum();
    let counted = |value: f64, n: u64| Some(Estimate { value, low: value, high: value, n });
    let precision = quality::precision(cohorts);

    let kpi = |name, unit, estimate: Option<Estimate>, made_of| Kpi {
        name,
        unit,
        estimate,
        target: None,
        standing: None,
        made_of,
    };
    let aimed = |kpi: Kpi, aim: f64, standing: fn(&Estimate, f64) -> Standing| Kpi {
        target: Some(aim).filter(|aim| *aim > 0.0),
        standing: kpi.estimate.as_ref().filter(|_| aim > 0.0).map(|estimate| standing(estimate, aim)),
        ..kpi
    };
    let tree = vec![
        kpi("precision_at_20", "share", precision, &[]),
        aimed(kpi("conversion_rate", "share", conversion, &[]), targets.conversion_floor, Standing::at_least),
        kpi("churn_rate", "share", everybody, &[]),
        kpi("churn_rate_early", "share", early, &[]),
        kpi("churn_rate_treated", "share", treated, &["precision_at_20", "conversion_rate"]),
        kpi("churn_rate_held_out", "share", held_out, &[]),
        aimed(
            kpi("churn_reduction", "share", reduction, &["churn_rate_treated", "churn_rate_held_out"]),
            targets.churn_reduction,
            Standing::at_least,
        ),
        kpi("customers_kept", "customers", kept, &["churn_reduction"]),
        kpi("value_saved", "money", saved, &["customers_kept"]),
        kpi("cost_of_interventions", "money", lost.and(counted(treated_cost, treated_counts.1)), &[]),
        kpi(
            "net_value_saved",
            "money",
            saved.map(|saved| saved.plus(-treated_cost)),
            &["value_saved", "cost_of_interventions"],
        ),
        kpi("revenue_per_order", "money", orders, &[]),
        aimed(kpi("cost_per_decision", "money", costs, &[]), targets.cost_ceiling, Standing::at_most),
        kpi("spend", "money", counted(spend, recent.len() as u64), &["cost_per_decision"]),
    ];
    let ratio = holdout.filter(|share| *share > 0.0 && *share < 1.0).map(|expected| {
        let held_out = recent.iter().filter(|customer| customer.holdout == Some(true)).count() as u64;
        let treated = recent.iter().filter(|customer| customer.holdout == Some(false)).count() as u64;
        Ratio { treated, held_out, expected, e_value: mismatch(&[(treated, 1.0 - expected), (held_out, expected)]) }
    });
    Kpis {
        customers: recent.len() as u64,
        decisions: recent.iter().map(|customer| u64::from(customer.decisions)).sum(),
        tree,
        churn,
        lost,
        ratio,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400_000;
    const TARGETS: Targets = Targets { conversion_floor: 0.1, cost_ceiling: 5.0, churn_reduction: 0.2 };

    /// A customer who leaves with the probability of the score, or 0.6 times that where treated; worth 100.
    fn customer(random: &mut fastrand::Rng, age_ms: u64) -> Customer {
        let (score, holdout) = (random.f64() * 0.8, random.f64() < 0.3);
        let leaves = random.f64() < if holdout { score } else { 0.6 * score };
        let delay = random.u64(0..20 * DAY);
        Customer {
            score,
            age_ms,
            holdout: Some(holdout),
            offered: !holdout,
            decisions: 2,
            cost: if holdout { 0.0 } else { 6.0 },
            contact_cost: 0.0,
            revenue: 30.0,
            orders: 2,
            value_at_stake: Some(100.0),
            usage_before: Some(score + random.f64()),
            left_after_ms: (leaves && delay <= age_ms).then_some(delay),
            converted: (!holdout).then(|| random.f64() < 0.5),
        }
    }

    #[test]
    fn the_tree_says_what_interventions_were_worth() {
        let mut random = fastrand::Rng::with_seed(8);
        let (mut held, mut missed) = (0, 0);
        for _ in 0..100 {
            let cohorts = Cohorts {
                matured: (0..1_000).map(|_| customer(&mut random, 40 * DAY)).collect(),
                recent: (0..300).map(|at| customer(&mut random, at * 30 * DAY / 300)).collect(),
                maturity_ms: 30 * DAY,
            };
            let found = kpis(&cohorts, &TARGETS, Some(0.3));
            let estimate = |name: &str| found.get(name).and_then(|kpi| kpi.estimate).expect("an estimate");
            let treated = found.get("churn_rate_treated").and_then(|kpi| kpi.estimate).expect("a rate").n as f64;
            // Of 100 treated 0.4 of 40 would-be churners stay, each is worth 100.
            let holds = |name: &str, truth: f64| {
                let found = estimate(name);
                usize::from((found.low..=found.high).contains(&truth))
            };
            held += holds("churn_reduction", 0.4)
                + holds("value_saved", treated * 16.0)
                + holds("net_value_saved", treated * 10.0)
                + holds("churn_rate_early", 0.4 * 0.3 + 0.24 * 0.7);
            missed += usize::from(found.ratio.expect("a ratio").e_value >= MISMATCH);
            assert!(found.churn.expect("a lift").variance_left < 0.95);
            assert_eq!((found.customers, found.decisions), (300, 600));
            assert!((estimate("revenue_per_order").value - 15.0).abs() < 1e-9);
            assert_eq!(found.get("conversion_rate").and_then(|kpi| kpi.standing), Some(Standing::Met));
            assert_eq!(found.get("cost_per_decision").and_then(|kpi| kpi.standing), Some(Standing::Met));
        }
        assert!((365..=395).contains(&held) && missed == 0, "{held} of 400, {missed}");
    }

    #[test]
    fn no_word_of_an_offer_is_no() {
        let mut random = fastrand::Rng::with_seed(8);
        let mut matured: Vec<Customer> = (0..5_000).map(|_| customer(&mut random, 40 * DAY)).collect();
        for (at, customer) in matured.iter_mut().enumerate() {
            (customer.offered, customer.converted) = (true, (at < 50).then_some(true));
        }
        // It is too early to tell of those who are asked only now.
        let recent = matured[..50].to_vec();
        let found = kpis(&Cohorts { matured, recent, maturity_ms: 30 * DAY }, &TARGETS, None);
        let conversion = found.get("conversion_rate").expect("a figure");
        assert_eq!(conversion.estimate.map(|found| (found.value, found.n)), Some((0.01, 5_000)));
        assert_eq!(conversion.standing, Some(Standing::Missed));
    }

    #[test]
    fn where_nobody_is_held_out_nothing_is_compared() {
        let mut random = fastrand::Rng::with_seed(8);
        let mut matured: Vec<Customer> = (0..50).map(|_| customer(&mut random, DAY)).collect();
        matured.iter_mut().for_each(|customer| customer.holdout = None);
        let cohorts = Cohorts { matured, recent: Vec::new(), maturity_ms: DAY };
        let found = kpis(&cohorts, &TARGETS, None);
        let told: Vec<&str> = found.tree.iter().filter(|kpi| kpi.estimate.is_some()).map(|kpi| kpi.name).collect();
        assert_eq!(told, ["precision_at_20", "conversion_rate", "churn_rate", "spend"]);
        assert_eq!((found.churn, found.lost, found.ratio), (None, None, None));
        assert!(!quality::quality(&cohorts).on_holdout);
        assert_eq!(kpis(&Cohorts::default(), &TARGETS, Some(0.1)).ratio.map(|ratio| ratio.e_value), Some(1.0));
    }
}
