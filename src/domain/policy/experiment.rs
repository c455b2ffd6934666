//! Experiments: who is kept from intervention, and who gets which of some ways to treat customers, by salted hash: sticky without a
//! store, and independent of every other experiment and of the arm of a rollout. Which of them run is in `registry`, what some at a
//! time do to one customer in `layers`, and what the records of one are worth for policies that were not tried in `off_policy`.

use libm::lgamma;
use serde::{Deserialize, Serialize};

use super::Policy;
use crate::domain::assignment::{place, ticket_of};
use crate::domain::rollout::slots::PolicyRef;

/// The most arms of one experiment.
pub const ARMS_MAX: usize = 16;
/// The longest name of an experiment or an arm, in characters.
pub const NAME_MAX: usize = 64;
/// The longest sentence of an experiment, in characters.
pub const TEXT_MAX: usize = 2_000;
/// The name that the holdout has among the arms.
pub const HOLDOUT: &str = "holdout";

/// How far shares that are given as decimals may be off in binary.
const ROUNDING: f64 = 1e-9;
/// The e-value of a [`mismatch`] from which on an experiment must not be trusted: wrongly so in one of a thousand.
pub const MISMATCH_FOUND: f64 = 1_000.0;

/// How many customers the expectation of a [`mismatch`] is worth beforehand.
const EXPECTED_WEIGHT: f64 = 10.0;

/// What is done to the customers of an arm.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Treatment {
    /// What is done to everybody: the policy in force decides.
    #[default]
    Control,
    /// This action of the policy in force comes before all others; who may not have it, or when there is no money for it, gets what
    /// everybody would.
    Intervention(String),
    /// Another policy decides.
    Policy(PolicyRef),
}

/// One of the ways to treat customers that are compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Its name: lower case letters, digits, `-` and `_`; not `holdout`.
    pub name: String,
    /// The share of all customers that are in it, over 0 to 1.
    pub share: f64,
    /// What is done to them, for people.
    #[serde(default)]
    pub description: String,
    /// What is done to them.
    #[serde(default)]
    pub treatment: Treatment,
}

/// A trial with customers, with what it is for. One without arms is a holdout alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Its name: lower case letters, digits, `-` and `_`.
    pub name: String,
    /// What is expected to be found, written down before.
    pub hypothesis: String,
    /// Who answers for it.
    pub owner: String,
    /// What is compared, in a fixed order.
    pub arms: Vec<Arm>,
    /// The share of all customers who are kept from intervention, 0 to 1.
    pub holdout: f64,
    /// When it begins, milliseconds since 1970.
    pub from_ms: u64,
    /// When it ends, excluded.
    pub to_ms: u64,
    /// What makes its assignment its own: 8 to 128 characters that no other experiment has.
    pub salt: String,
}

/// Where a customer belongs in one experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// Kept from intervention.
    Holdout,
    /// In the arm at this place of the list.
    Arm(usize),
    /// Not part of it.
    Outside,
}

/// Where a customer belongs, and how probable that was: what is to be recorded with the decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Assignment {
    /// The group.
    pub group: Group,
    /// The share of all customers that are in it, over 0 to 1.
    pub propensity: f64,
}

impl Experiment {
    /// Every value that breaks a law, as (JSON pointer, sentence).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut wrong = |pointer: &str, text: String| problems.push((pointer.to_owned(), text));
        let name_rule = || format!("expected 1 to {NAME_MAX} of a-z, 0-9, - and _");
        if !is_name(&self.name) {
            wrong("/name", name_rule());
        }
        for (pointer, text) in [("/hypothesis", &self.hypothesis), ("/owner", &self.owner)] {
            if text.trim().is_empty() || text.chars().count() > TEXT_MAX {
                wrong(pointer, format!("expected 1 to {TEXT_MAX} characters"));
            }
        }
        if !(8..=128).contains(&self.salt.chars().count()) {
            wrong("/salt", "expected 8 to 128 characters".to_owned());
        }
        if self.from_ms >= self.to_ms {
            wrong("/to_ms", "expected a time after from_ms".to_owned());
        }
        // Written so that NaN is out of every range.
        if !(self.holdout >= 0.0 && self.holdout <= 1.0) {
            wrong("/holdout", "expected 0 to 1".to_owned());
        }
        if self.arms.len() > ARMS_MAX || (self.arms.is_empty() && self.holdout == 0.0) {
            wrong("/arms", format!("expected 1 to {ARMS_MAX} arms, or none and a holdout"));
        }
        for (at, arm) in self.arms.iter().enumerate() {
            let named = self.arms[..at].iter().any(|before| before.name == arm.name);
            if !is_name(&arm.name) || arm.name == HOLDOUT {
                wrong(&format!("/arms/{at}/name"), format!("{}, and not {HOLDOUT}", name_rule()));
            } else if named {
                wrong(&format!("/arms/{at}/name"), "expected a name that no other arm has".to_owned());
            }
            if !(arm.share > 0.0 && arm.share <= 1.0) {
                wrong(&format!("/arms/{at}/share"), "expected over 0, to 1".to_owned());
            }
            if arm.description.chars().count() > TEXT_MAX {
                wrong(&format!("/arms/{at}/description"), format!("expected at most {TEXT_MAX} characters"));
            }
        }
        if self.exposed() + self.holdout > 1.0 + ROUNDING {
            wrong("/arms", "expected shares that sum to at most 1, the holdout included".to_owned());
        }
        problems
    }

    /// What of its arms cannot be done under the policy in force, as (JSON pointer, sentence); `policy_of` gives the policy of an arm by
    /// the sha256 of its document. A policy of an arm has neither a budget nor a holdout: the money is that of the policy in force, and
    /// who is held out is said by that one and by the experiment, so that each has one home.
    pub fn misfits<'p>(
        &self,
        in_force: &Policy,
        policy_of: impl Fn(&str) -> Option<&'p Policy>,
    ) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        for (at, arm) in self.arms.iter().enumerate() {
            let mut wrong = |what: &str, text: String| problems.push((format!("/arms/{at}/{what}"), text));
            match &arm.treatment {
                Treatment::Control => {}
                Treatment::Intervention(action) => {
                    let known: Vec<&str> = in_force.interventions().iter().map(|known| known.action.as_str()).collect();
                    if !known.contains(&action.as_str()) {
                        wrong("intervention", format!("expected one of those in force: {}", known.join(", ")));
                    }
                }
                Treatment::Policy(reference) => match policy_of(&reference.digest) {
                    None => wrong("policy", "expected a policy that is on record".to_owned()),
                    Some(policy) => {
                        if policy.budget().is_some() || policy.holdout().is_some() {
                            let text = "expected a policy without [budget] and [holdout]: the budget of the policy in force counts, and \
                                        who is held out is said by that one and by the experiment";
                            wrong("policy", text.to_owned());
                        }
                        for own in policy.interventions().iter().filter(|own| own.capacity.is_some()) {
                            let same = in_force.interventions().iter().find(|known| known.action == own.action);
                            if same.map(|known| known.capacity) != Some(own.capacity) {
                                let text = "expected no capacity, or that which the policy in force has: places are counted for all together";
                                wrong("policy", format!("interventions.{}.capacity: {text}", own.action));
                            }
                        }
                        if policy.currency() != in_force.currency() {
                            wrong("policy", format!("expected the currency in force, {}", in_force.currency()));
                        }
                    }
                },
            }
        }
        problems
    }

    /// What would move customers from one group to another, or do something else to them, if this took the place of `before` while it
    /// is running, as (JSON pointer, sentence). The holdout may grow, and all arms may grow by one factor: that only takes in customers from outside.
    /// More freedom is not to be had: with three groups that grow one by one, some customer has to move.
    pub fn moves_customers(&self, before: &Experiment) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut wrong = |pointer: String, text: &str| problems.push((pointer, text.to_owned()));
        if self.salt != before.salt {
            wrong("/salt".to_owned(), "expected the salt that it has");
        }
        if self.holdout < before.holdout {
            wrong("/holdout".to_owned(), "expected at least the share that it has");
        }
        let names = |experiment: &Experiment| experiment.arms.iter().map(|arm| arm.name.clone()).collect::<Vec<_>>();
        if names(self) != names(before) {
            wrong("/arms".to_owned(), "expected the arms that it has, in their order");
            return problems;
        }
        for (at, (arm, before)) in self.arms.iter().zip(&before.arms).enumerate() {
            if arm.treatment != before.treatment {
                wrong(format!("/arms/{at}"), "expected the policy or intervention that it has");
            }
        }
        let factor = self.exposed() / before.exposed();
        for (at, (arm, before)) in self.arms.iter().zip(&before.arms).enumerate() {
            if arm.share < before.share || (arm.share - before.share * factor).abs() > ROUNDING {
                wrong(
                    format!("/arms/{at}/share"),
                    "expected at least the share that it has, and the same growth in all arms",
                );
            }
        }
        problems
    }

    /// Whether it runs at `now_ms`.
    pub fn runs_at(&self, now_ms: u64) -> bool {
        (self.from_ms..self.to_ms).contains(&now_ms)
    }

    /// Where a customer belongs, whatever the time: the same on every replica, and independent of any other experiment and of the
    /// arm of a rollout, as the salt is its own.
    ///
    /// The holdout grows from the lower end of the places, all arms together from the upper; a second ticket says which arm.
    pub fn assign(&self, customer_id: &str) -> Assignment {
        let exposed = self.exposed();
        let own = |purpose: &str| place(ticket_of(&[purpose, &self.salt], customer_id));
        let at = own("experiment/part/");
        let group = if at < self.holdout {
            Group::Holdout
        } else if exposed > 0.0 && at >= 1.0 - exposed {
            let at = own("experiment/arm/") * exposed;
            let mut end = 0.0;
            let arm = self.arms.iter().position(|arm| {
                end += arm.share;
                at < end
            });
            // The last one, where the sum was rounded down.
            Group::Arm(arm.unwrap_or(self.arms.len() - 1))
        } else {
            Group::Outside
        };
        Assignment { group, propensity: self.share(group) }
    }

    /// The share of all customers that belong to `group`, 0 to 1. Panics for an arm that is not there.
    pub fn share(&self, group: Group) -> f64 {
        match group {
            Group::Holdout => self.holdout,
            Group::Arm(at) => self.arms[at].share,
            Group::Outside => (1.0 - self.exposed() - self.holdout).max(0.0),
        }
    }

    /// The share of all customers that are in its arms.
    pub fn exposed(&self) -> f64 {
        self.arms.iter().map(|arm| arm.share).sum()
    }
}

/// What experiments must not have in common, as (JSON pointer into the list, sentence): names, and salts, which would give the same
/// customers to both.
pub fn problems_together(experiments: &[Experiment]) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    for (at, experiment) in experiments.iter().enumerate() {
        let before = &experiments[..at];
        if before.iter().any(|other| other.name == experiment.name) {
            problems.push((format!("/{at}/name"), "expected a name that no other experiment has".to_owned()));
        }
        if before.iter().any(|other| other.salt == experiment.salt) {
            problems.push((format!("/{at}/salt"), "expected a salt that no other experiment has".to_owned()));
        }
    }
    problems
}

/// Whether customers came to the groups in other shares than they were assigned (sample ratio mismatch): an e-value that may be
/// looked at any time. At `1 / alpha` something loses or adds customers of one group, wrongly so in at most `alpha` of all
/// experiments; what they show must then not be trusted.
///
/// `groups`: customers seen so far, and the share (0 or more, any sum) that they were to have. Each customer must count once, as
/// repeated ones are not independent, and shares must not have changed: the e-values of two stretches with shares of their own, of
/// different customers, are multiplied. With no customers, or a single group, it is 1; a customer in a group without a share makes
/// it infinite, as does a ratio too large for a number.
///
/// The ratio of a Dirichlet-multinomial likelihood, centred on the shares with the weight of 10 customers, to the multinomial one:
/// a test martingale under the shares (Lindon and Malek, arXiv 2011.03567).
pub fn mismatch(groups: &[(u64, f64)]) -> f64 {
    let sum: f64 = groups.iter().map(|(_, share)| share.max(0.0)).sum();
    if groups.iter().any(|(count, share)| *count > 0 && (share.is_nan() || *share <= 0.0)) {
        return f64::INFINITY;
    }
    let seen: u64 = groups.iter().map(|(count, _)| count).sum();
    let log_e: f64 = groups
        .iter()
        .filter(|(_, share)| *share > 0.0)
        .map(|(count, share)| {
            let (count, share) = (*count as f64, share / sum);
            let prior = EXPECTED_WEIGHT * share;
            lgamma(prior + count) - lgamma(prior) - count * share.ln()
        })
        .sum();
    if seen == 0 { 1.0 } else { (log_e + lgamma(EXPECTED_WEIGHT) - lgamma(EXPECTED_WEIGHT + seen as f64)).exp() }
}

fn is_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::assignment::ticket;
    use crate::domain::policy::document;
    use proptest::prelude::*;

    fn control() -> Arm {
        Arm { name: String::new(), share: 0.0, description: String::new(), treatment: Treatment::Control }
    }

    fn experiment(salt: &str, shares: &[f64], holdout: f64) -> Experiment {
        let arm = |(at, share): (usize, &f64)| Arm { name: format!("arm-{at}"), share: *share, ..control() };
        Experiment {
            name: format!("trial-{salt}"),
            hypothesis: "A call keeps more customers than an e-mail.".to_owned(),
            owner: "retention@example.com".to_owned(),
            arms: shares.iter().enumerate().map(arm).collect(),
            holdout,
            from_ms: 1_000,
            to_ms: 2_000,
            salt: format!("salt-of-{salt}"),
        }
    }

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("C-{number}")).collect()
    }

    fn groups(experiment: &Experiment) -> Vec<Group> {
        let arms = (0..experiment.arms.len()).map(Group::Arm);
        [Group::Holdout].into_iter().chain(arms).chain([Group::Outside]).collect()
    }

    /// Pearson's statistic of a table against independence, over its degrees of freedom, as about a standard normal quantile
    /// (Wilson and Hilferty 1931).
    fn dependence(table: &[Vec<f64>]) -> f64 {
        let rows: Vec<f64> = table.iter().map(|row| row.iter().sum()).collect();
        let columns: Vec<f64> = (0..table[0].len()).map(|at| table.iter().map(|row| row[at]).sum()).collect();
        let all: f64 = rows.iter().sum();
        let cells = rows.iter().zip(table).flat_map(|(row, cells)| {
            cells
                .iter()
                .zip(&columns)
                .map(move |(cell, column)| (cell - row * column / all).powi(2) * all / (row * column))
        });
        normal(cells.sum(), ((rows.len() - 1) * (columns.len() - 1)) as f64)
    }

    fn normal(chi2: f64, freedom: f64) -> f64 {
        ((chi2 / freedom).cbrt() - 1.0 + 2.0 / (9.0 * freedom)) / (2.0 / (9.0 * freedom)).sqrt()
    }

    #[test]
    fn shares_are_what_they_say() {
        for (salt, shares, holdout) in [
            ("a", vec![0.3, 0.2], 0.1),
            ("b", vec![0.5, 0.5], 0.0),
            ("c", vec![], 0.05),
            ("d", vec![0.1, 0.2, 0.6], 0.1),
        ] {
            let experiment = experiment(salt, &shares, holdout);
            assert_eq!(experiment.problems(), []);
            let assigned: Vec<Assignment> = ids(10_000).iter().map(|id| experiment.assign(id)).collect();
            let groups = groups(&experiment).into_iter().filter(|group| experiment.share(*group) > 1e-6);
            let (mut chi2, mut freedom) = (0.0, -1.0);
            for group in groups {
                let expected = 10_000.0 * experiment.share(group);
                let count = assigned.iter().filter(|assigned| assigned.group == group).count() as f64;
                chi2 += (count - expected).powi(2) / expected;
                freedom += 1.0;
            }
            assert!(normal(chi2, freedom) < 3.7, "{salt}: {chi2} on {freedom}");
            assert!(assigned.iter().all(|assigned| assigned.propensity == experiment.share(assigned.group)));
        }
    }

    #[test]
    fn it_depends_on_no_other_experiment_and_on_no_rollout() {
        let one = experiment("one", &[0.3, 0.3], 0.1);
        let table = |columns: usize, column: &dyn Fn(&str) -> usize| {
            let mut table = vec![vec![0.0; columns]; 4];
            for id in ids(10_000) {
                let row = groups(&one).iter().position(|group| *group == one.assign(&id).group).expect("a group");
                table[row][column(&id)] += 1.0;
            }
            table
        };
        let other = experiment("two", &[0.3, 0.3], 0.1);
        let of_other =
            |id: &str| groups(&other).iter().position(|group| *group == other.assign(id).group).expect("a group");
        let z = dependence(&table(4, &of_other));
        assert!(z < 3.7, "another experiment: {z}");
        // Even where a rollout has the salt as its id.
        for id in ["0199-a-rollout", one.salt.as_str()] {
            let z = dependence(&table(2, &|customer| usize::from(place(ticket(id, customer)) < 0.25)));
            assert!(z < 3.7, "the canary {id}: {z}");
        }
        // And the statistic would see it.
        let own = |id: &str| usize::from(one.assign(id).group == Group::Holdout);
        assert!(dependence(&table(2, &own)) > 15.0);
    }

    proptest! {
        #[test]
        fn who_is_in_stays_where_it_is_as_shares_grow(
            shares in prop::collection::vec(0.01_f64..0.1, 1..5),
            holdout in 0.0_f64..0.2,
            factor in 1.0_f64..2.0,
            more in 0.0_f64..0.1,
            salt in "[a-z]{6}",
        ) {
            let before = experiment(&salt, &shares, holdout);
            let grown: Vec<f64> = shares.iter().map(|share| share * factor).collect();
            let after = experiment(&salt, &grown, holdout + more);
            prop_assert_eq!(after.problems(), []);
            prop_assert_eq!(after.moves_customers(&before), []);
            for id in ids(200) {
                let group = before.assign(&id).group;
                prop_assert!(group == Group::Outside || group == after.assign(&id).group, "{}", id);
            }
        }
    }

    #[test]
    fn what_would_move_customers_is_told() {
        let before = experiment("a", &[0.1, 0.2], 0.1);
        let pointers = |after: &Experiment| {
            after.moves_customers(&before).into_iter().map(|(pointer, _)| pointer).collect::<Vec<_>>()
        };
        assert_eq!(pointers(&experiment("a", &[0.2, 0.4], 0.1)), [""; 0]);
        assert_eq!(pointers(&experiment("a", &[0.2, 0.2], 0.1)), ["/arms/0/share", "/arms/1/share"]);
        assert_eq!(pointers(&experiment("a", &[0.05, 0.1], 0.0)), ["/holdout", "/arms/0/share", "/arms/1/share"]);
        assert_eq!(pointers(&experiment("b", &[0.1], 0.1)), ["/salt", "/arms"]);
        let mut treated = before.clone();
        treated.arms[1].treatment = Treatment::Intervention("call".to_owned());
        assert_eq!(pointers(&treated), ["/arms/1"]);
        let holdout = experiment("h", &[], 0.05);
        assert_eq!(Experiment { holdout: 0.1, ..holdout.clone() }.moves_customers(&holdout), []);
    }

    #[test]
    fn every_problem_is_told() {
        let mut bad = experiment("a", &[0.6, 0.5, f64::NAN], -0.1);
        bad.name = "A name".to_owned();
        bad.hypothesis = " ".to_owned();
        bad.owner = String::new();
        bad.salt = "short".to_owned();
        bad.to_ms = bad.from_ms;
        bad.arms[0].name = HOLDOUT.to_owned();
        bad.arms[1].name = "arm-2".to_owned();
        let pointers: Vec<String> = bad.problems().into_iter().map(|(pointer, _)| pointer).collect();
        let expected = [
            "/name",
            "/hypothesis",
            "/owner",
            "/salt",
            "/to_ms",
            "/holdout",
            "/arms/0/name",
            "/arms/2/name",
            "/arms/2/share",
        ];
        assert_eq!(pointers, expected);
        let sole = |shares: &[f64], holdout| {
            let problems = experiment("b", shares, holdout).problems();
            problems.into_iter().map(|(pointer, _)| pointer).collect::<Vec<_>>()
        };
        assert_eq!(sole(&[0.6, 0.5], 0.0), ["/arms"]);
        assert_eq!(sole(&[0.9], 0.2), ["/arms"]);
        assert_eq!(sole(&[], 0.0), ["/arms"]);
        assert_eq!(sole(&[0.01; 17], 0.0), ["/arms"]);
        assert_eq!(sole(&[0.1; 10], 0.0), [""; 0], "ten tenths are one");
        let (one, two) = (experiment("a", &[0.5], 0.0), experiment("b", &[0.5], 0.0));
        assert_eq!(problems_together(&[one.clone(), two.clone()]), []);
        let pointers: Vec<String> =
            problems_together(&[one.clone(), two, one]).into_iter().map(|(pointer, _)| pointer).collect();
        assert_eq!(pointers, ["/2/name", "/2/salt"]);
    }

    #[test]
    fn what_the_policy_in_force_cannot_do_is_told() {
        let policy = |more: &str| {
            let text = include_str!("../../../models/policy/default.toml");
            document::parse(&format!("{text}\n{more}"), "v")
                .unwrap_or_else(|problems| panic!("{}", problems.join("\n")))
        };
        let in_force = policy("[budget]\namount = 5\nperiod = \"day\"");
        let others = [
            ("fits", policy("")),
            ("spends", policy("[budget]\namount = 5\nperiod = \"day\"")),
            ("holds", policy("[holdout]\nshare = 0.5")),
        ];
        let told = |treatment: Treatment| {
            let mut experiment = experiment("a", &[0.1, 0.2], 0.1);
            experiment.arms[1].treatment = treatment;
            let policy_of = |digest: &str| others.iter().find(|(name, _)| *name == digest).map(|(_, policy)| policy);
            experiment.misfits(&in_force, policy_of).into_iter().map(|(pointer, _)| pointer).collect::<Vec<_>>()
        };
        let by = |digest: &str| Treatment::Policy(PolicyRef { name: "p".to_owned(), digest: digest.to_owned() });
        assert_eq!(told(Treatment::Control), [""; 0]);
        assert_eq!(told(Treatment::Intervention("discount_email".to_owned())), [""; 0]);
        assert_eq!(told(Treatment::Intervention("a_yacht".to_owned())), ["/arms/1/intervention"]);
        assert_eq!(told(by("fits")), [""; 0]);
        for digest in ["spends", "holds", "nobody knows"] {
            assert_eq!(told(by(digest)), ["/arms/1/policy"]);
        }
    }

    #[test]
    fn it_runs_from_its_begin_to_before_its_end_and_reads_back() {
        let experiment = experiment("a", &[0.5], 0.1);
        assert_eq!([999, 1_000, 1_999, 2_000].map(|now_ms| experiment.runs_at(now_ms)), [false, true, true, false]);
        let text = serde_json::to_string(&experiment).expect("JSON");
        assert_eq!(serde_json::from_str::<Experiment>(&text).expect("an experiment"), experiment);
        assert!(serde_json::from_str::<Experiment>(&text.replace("\"owner\"", "\"owners\"")).is_err());
    }

    /// The share of trials that are found to be mismatched at one of 100 looks, when `kept` of the first group get through.
    fn found(shares: [f64; 3], kept: f64) -> f64 {
        let mut random = fastrand::Rng::with_seed(17);
        let runs = 400;
        let hits = (0..runs).filter(|_| {
            let mut counts = [0_u64; 3];
            (0..100).any(|_| {
                for _ in 0..20 {
                    let at = random.f64();
                    let group = if at < shares[0] { 0 } else { 1 + usize::from(at >= shares[0] + shares[1]) };
                    counts[group] += u64::from(group != 0 || random.f64() < kept);
                }
                mismatch(&[(counts[0], shares[0]), (counts[1], shares[1]), (counts[2], shares[2])]) >= 20.0
            })
        });
        hits.count() as f64 / f64::from(runs)
    }

    #[test]
    fn a_mismatch_is_found_and_rarely_invented() {
        for shares in [[0.4, 0.4, 0.2], [0.9, 0.05, 0.05]] {
            let wrongly = found(shares, 1.0);
            println!("mismatch {shares:?}: invented in {wrongly}");
            assert!(wrongly <= 0.05, "{wrongly}");
        }
        let rightly = found([0.4, 0.4, 0.2], 0.7);
        println!("mismatch: found in {rightly}");
        assert!(rightly >= 0.95, "{rightly}");
    }

    #[test]
    fn the_ends_of_a_mismatch() {
        assert_eq!(mismatch(&[]), 1.0);
        assert_eq!(mismatch(&[(0, 0.5), (0, 0.5)]), 1.0);
        assert!((mismatch(&[(1_000, 0.2)]) - 1.0).abs() < 1e-9, "one group has all");
        assert_eq!(mismatch(&[(1, 0.0), (5, 1.0)]), f64::INFINITY);
        assert_eq!(mismatch(&[(0, 0.0), (5, 1.0)]).round(), 1.0);
        assert!(mismatch(&[(1_000_000, 0.5), (0, 0.5)]) > 1e300);
        let (parts, percent) = (mismatch(&[(60, 1.0), (40, 1.0)]), mismatch(&[(60, 0.5), (40, 0.5)]));
        assert!((parts - percent).abs() < 1e-12, "shares of any sum");
    }
}
