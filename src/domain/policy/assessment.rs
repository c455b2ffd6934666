//! What a policy makes of a customer: the assessment, which says what could be offered and what each would be worth, and the choice among
//! it. The two are apart, so that a budget that makes money dearer can choose otherwise without assessing anew.

use smallvec::SmallVec;

use super::condition::Known;
use super::{Objective, Policy};
use crate::domain::money::Money;
use crate::domain::score::Score;

/// What could be done about a customer.
#[derive(Debug, Clone, PartialEq)]
pub struct Assessment {
    /// The place of the tier in the policy.
    pub tier: usize,
    /// What is lost with the customer, in the policy's currency; `None` where the policy has no say on it.
    pub value_at_stake: Option<f64>,
    /// What the customer may be offered: with the objective `tier` what it prefers first, otherwise in the order of the policy. The
    /// intervention that does nothing is always among it.
    pub offers: SmallVec<[Offer; 8]>,
    /// Which rules fired.
    pub trace: Trace,
    objective: Objective,
    /// The place of what comes before all others, whatever the objective.
    preferred: Option<usize>,
}

/// An intervention that a customer may be offered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Offer {
    /// Its place in the policy.
    pub intervention: usize,
    /// What it costs.
    pub cost: Money,
    /// What it is expected to save, its cost not counted; 0 where no value is at stake.
    pub gain: f64,
    /// By how much the model says that it lowers the probability of churn, -1 to 1; `None` where that is score x effectiveness.
    pub uplift: Option<f64>,
}

/// Which rules fired, small enough to go with every decision.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trace {
    /// The place of the customer's segment.
    pub segment: Option<u8>,
    /// Interventions that the customer may not have.
    pub barred: SmallVec<[Barred; 8]>,
}

/// An intervention that a customer may not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Barred {
    /// Its place in the policy.
    pub intervention: u8,
    /// The first of its conditions that does not hold.
    pub condition: u8,
}

/// What is offered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Its place in the policy.
    pub intervention: usize,
    /// What it costs.
    pub cost: Money,
    /// What it is expected to be worth: what it saves less what it costs. `None` where no value is at stake.
    pub expected_value: Option<f64>,
    /// By how much the model says that it lowers the probability of churn; `None` where it has no estimate, or nothing is at stake.
    pub uplift: Option<f64>,
    /// What would have been chosen, had there been money or a place for it.
    pub refused: Refused,
    /// What of that had no place left.
    pub full: Refused,
    /// By how much a unit of money was dearer than itself.
    pub shadow_price: f64,
    /// Whether something else would have been worth most, had money been no dearer than itself.
    pub priced_out: bool,
    /// Whether the customer is kept from intervention.
    pub holdout: bool,
    /// Whether it was chosen because an experiment offers it before all others.
    pub preferred: bool,
    /// Whether it was chosen with those for all other rows of a batch, to spend one budget over them.
    pub allocated: bool,
}

/// Interventions that there was no money or no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refused(u64);

impl Refused {
    /// Adds one by its place; the one that does nothing is never among them, so that sixty-four bits suffice.
    pub fn add(&mut self, intervention: usize) {
        self.0 |= 1 << (intervention - 1);
    }

    /// Whether an intervention is among them.
    pub fn contains(self, intervention: usize) -> bool {
        intervention > 0 && self.0 >> (intervention - 1) & 1 == 1
    }
}

impl Choice {
    /// Whether something else would have been chosen, had there been money or a place for it.
    pub fn stepped_down(&self) -> bool {
        self.refused != Refused::default()
    }
}

/// The rule that tells of an intervention that there was no money for; its action follows.
pub const REFUSED: &str = "budget:refused:";
/// The rule that tells of an intervention that had no place left in its period; its action follows.
pub const FULL: &str = "capacity:refused:";
/// The rule that tells of a choice that was made for a whole batch, to spend one budget over it.
pub const ALLOCATED: &str = "budget:allocation";

impl Policy {
    /// What could be done about a customer with this score, of whom `values` are known.
    pub fn assess(&self, score: Score, values: &[Known]) -> Assessment {
        let segment = self.segment_of(values);
        let tier = self.tier_of(segment, score);
        let value_at_stake = self.value_at_stake(values);
        let mut trace = Trace { segment: segment.map(|at| at as u8), barred: SmallVec::new() };
        let mut offers = SmallVec::new();
        let mut consider = |place: usize| {
            let intervention = &self.interventions[place];
            match intervention.eligible.iter().position(|condition| !condition.holds(values)) {
                Some(condition) => trace.barred.push(Barred { intervention: place as u8, condition: condition as u8 }),
                None => offers.push(self.offer(place, score, value_at_stake, values)),
            }
        };
        match self.objective {
            Objective::Tier => {
                let preferences = self.preferences(segment, tier);
                preferences.iter().copied().for_each(&mut consider);
                if !preferences.contains(&0) {
                    consider(0);
                }
            }
            Objective::ExpectedValue => match segment.and_then(|at| self.segments[at].offers.as_ref()) {
                Some(only) => std::iter::once(0).chain(only.iter().copied()).for_each(&mut consider),
                None => (0..self.interventions.len()).for_each(&mut consider),
            },
        }
        Assessment { tier, value_at_stake, offers, trace, objective: self.objective, preferred: None }
    }

    /// The same where the intervention at `place` comes before all others, if the customer may have it.
    pub fn assess_preferring(&self, place: usize, score: Score, values: &[Known]) -> Assessment {
        let mut assessment = self.assess(score, values);
        let intervention = &self.interventions[place];
        let own = self.segment_of(values).and_then(|at| self.segments[at].offers.as_ref());
        let is_offered = place == 0 || own.is_none_or(|only| only.contains(&place));
        if let Some(condition) = intervention.eligible.iter().position(|condition| !condition.holds(values)) {
            let barred = Barred { intervention: place as u8, condition: condition as u8 };
            if !assessment.trace.barred.contains(&barred) {
                assessment.trace.barred.push(barred);
            }
        } else if is_offered {
            if !assessment.offers.iter().any(|offer| offer.intervention == place) {
                assessment.offers.push(self.offer(place, score, assessment.value_at_stake, values));
            }
            assessment.preferred = Some(place);
        }
        assessment
    }

    /// The assessment and the choice without a budget.
    pub fn decide(&self, score: Score, values: &[Known]) -> (Assessment, Choice) {
        let assessment = self.assess(score, values);
        let choice = assessment.choose(0.0, |_| true);
        (assessment, choice)
    }

    /// The intervention at `place` as it can be offered. What it is expected to keep is what the model estimates of this very customer,
    /// or else its effectiveness among those who would churn.
    fn offer(&self, place: usize, score: Score, value_at_stake: Option<f64>, values: &[Known]) -> Offer {
        let intervention = &self.interventions[place];
        let uplift = match values.get(self.fields.len() + place) {
            Some(Known::Number(uplift)) if place != 0 => Some(*uplift),
            _ => None,
        };
        let kept_share = uplift.unwrap_or(score.value() * intervention.expected_effectiveness);
        let gain = value_at_stake.map_or(0.0, |value| kept_share * value);
        Offer { intervention: place, cost: intervention.cost, gain, uplift }
    }

    fn value_at_stake(&self, values: &[Known]) -> Option<f64> {
        let stake = self.value_at_stake.as_ref()?;
        match stake.field.and_then(|field| values.get(field)) {
            Some(Known::Number(number)) => Some(number * stake.times),
            _ => stake.default,
        }
    }

    /// The rules that led to a choice, each as a text that says where in the document it stands. Of a policy that only looks at scores
    /// there are none, unless a holdout, an experiment or the budget of another policy had a say: otherwise the tier says it all.
    pub fn rules(&self, tier: usize, trace: &Trace, choice: &Choice) -> Vec<String> {
        if self.is_plain() && !choice.holdout && !choice.preferred && !choice.stepped_down() {
            return Vec::new();
        }
        let segment = trace.segment.map(usize::from);
        let mut rules: Vec<String> = segment
            .and_then(|at| self.segments.get(at))
            .map(|own| format!("segment:{}", own.name))
            .into_iter()
            .collect();
        for barred in &trace.barred {
            let intervention = &self.interventions[usize::from(barred.intervention)];
            let field = &self.fields[intervention.eligible[usize::from(barred.condition)].field];
            rules.push(format!("eligibility:{}:{field}", intervention.action));
        }
        for (place, intervention) in self.interventions.iter().enumerate() {
            if choice.full.contains(place) {
                rules.push(format!("{FULL}{}", intervention.action));
            } else if choice.refused.contains(place) {
                rules.push(format!("{REFUSED}{}", intervention.action));
            }
        }
        if choice.priced_out {
            rules.push("budget:shadow_price".to_owned());
        }
        if choice.uplift.is_some() {
            rules.push(format!("uplift:{}", self.interventions[choice.intervention].action));
        }
        let first = self.preferences(segment, tier).first();
        if choice.holdout {
            rules.push("holdout".to_owned());
        } else if choice.preferred {
            rules.push("experiment".to_owned());
        } else if choice.allocated {
            rules.push(ALLOCATED.to_owned());
        } else if self.objective == Objective::Tier && first.is_some_and(|first| *first != choice.intervention) {
            rules.push(format!("fallback:{}", self.interventions[choice.intervention].action));
        }
        rules.push(format!("objective:{}", self.objective.name()));
        rules
    }
}

impl Assessment {
    /// Chooses among the offers, where each unit of money costs `shadow_price` more than itself because there is too little of it: the
    /// best one that is `affordable`, which is asked from the best one down and not again once it said yes, so that it may set the
    /// money aside. With the objective `tier` the first offer is the best; otherwise the one that is worth most, and of those that are
    /// worth the same the cheapest, then the one that comes first.
    pub fn choose(&self, shadow_price: f64, mut affordable: impl FnMut(&Offer) -> bool) -> Choice {
        let mut refused = Refused::default();
        let chosen = loop {
            match self.best(shadow_price, refused) {
                Some(offer) if offer.intervention != 0 && !affordable(offer) => refused.add(offer.intervention),
                found => break found,
            }
        };
        let best = |shadow_price| self.best(shadow_price, Refused::default()).map(|best| best.intervention);
        Choice {
            refused,
            shadow_price,
            preferred: chosen.is_some_and(|offer| self.preferred == Some(offer.intervention)),
            priced_out: shadow_price > 0.0 && best(shadow_price) != best(0.0),
            ..self.choice(chosen)
        }
    }

    /// The choice for who is kept from intervention: none.
    pub fn hold_out(&self) -> Choice {
        Choice { holdout: true, ..self.choice(None) }
    }

    /// The choice of an allocation over many customers, at the shadow price of that moment: nothing, where this intervention is not
    /// offered or not worth its cost.
    pub fn allocate(&self, intervention: usize, shadow_price: f64) -> Choice {
        let is_it = |offer: &&Offer| offer.intervention == intervention && offer.gain > offer.cost.units();
        Choice { allocated: true, shadow_price, ..self.choice(self.offers.iter().find(is_it)) }
    }

    fn choice(&self, offer: Option<&Offer>) -> Choice {
        let nothing = Offer { intervention: 0, cost: Money::ZERO, gain: 0.0, uplift: None };
        let offer = offer.unwrap_or(&nothing);
        Choice {
            intervention: offer.intervention,
            cost: offer.cost,
            expected_value: self.value_at_stake.map(|_| offer.gain - offer.cost.units()),
            uplift: offer.uplift,
            refused: Refused::default(),
            full: Refused::default(),
            shadow_price: 0.0,
            priced_out: false,
            holdout: false,
            preferred: false,
            allocated: false,
        }
    }

    /// The best offer that is not among the `refused`.
    fn best(&self, shadow_price: f64, refused: Refused) -> Option<&Offer> {
        let worth = |offer: &Offer| offer.gain - (1.0 + shadow_price) * offer.cost.units();
        let better = |one: &Offer, other: &Offer| match self.objective {
            Objective::Tier => false,
            Objective::ExpectedValue => {
                let order = worth(one).total_cmp(&worth(other)).then(other.cost.cmp(&one.cost));
                order.is_gt() || (order.is_eq() && one.intervention < other.intervention)
            }
        };
        let left = self.offers.iter().filter(|offer| !refused.contains(offer.intervention));
        if let Some(offer) = left.clone().find(|offer| self.preferred == Some(offer.intervention)) {
            return Some(offer);
        }
        left.reduce(|best, offer| if better(offer, best) { offer } else { best })
    }
}

#[cfg(test)]
mod tests {
    use super::super::document;
    use super::super::fit::Binding;
    use super::*;
    use crate::domain::bundle::feature::Feature;
    use crate::domain::record::{Record, Value};
    use proptest::prelude::*;

    const VALUE: &str = include_str!("../../../models/policy/value.toml");

    fn policy(text: &str) -> Policy {
        document::parse(text, "v").unwrap_or_else(|problems| panic!("{}", problems.join("\n")))
    }

    fn bound(text: &str) -> (Policy, Binding) {
        let card: serde_json::Value =
            serde_json::from_str(include_str!("../../../models/telco-churn/1.0.0/manifest.json")).expect("JSON");
        let features: Vec<Feature> = serde_json::from_value(card["features"].clone()).expect("a dictionary");
        let policy = policy(text);
        let binding = policy.bind(&features).unwrap_or_else(|problems| panic!("{}", problems.join("\n")));
        (policy, binding)
    }

    fn record<'v>(tenure: f64, contract: &'v str, context: Vec<(&'v str, Value<'v>)>) -> Record<'v> {
        Record {
            customer_id: "c".into(),
            features: vec![("Contract".into(), Value::Text(contract.into())), ("tenure".into(), Value::Number(tenure))],
            context: context.into_iter().map(|(name, value)| (name.into(), value)).collect(),
            reasons: 0,
            counterfactuals: 0,
        }
    }

    fn score(value: f64) -> Score {
        Score::new(value).expect("a score")
    }

    #[test]
    fn a_policy_that_only_looks_at_scores_has_nothing_to_trace() {
        let policy = policy(include_str!("../../../models/policy/default.toml"));
        let (assessment, choice) = policy.decide(score(0.9), &[]);
        assert_eq!(policy.interventions()[choice.intervention].action, "account_manager_call");
        assert_eq!((choice.expected_value, assessment.value_at_stake), (None, None));
        assert_eq!(policy.rules(assessment.tier, &assessment.trace, &choice), Vec::<String>::new());
    }

    #[test]
    fn the_trace_says_which_rules_fired() {
        let (policy, binding) = bound(VALUE);
        let told = |record: &Record, value: f64| {
            let values = binding.read(record).expect("a legal context");
            let (assessment, choice) = policy.decide(score(value), &values);
            let action = &policy.interventions()[choice.intervention].action;
            let tier = &policy.tiers()[assessment.tier].name;
            format!("{tier} {action} {}", policy.rules(assessment.tier, &assessment.trace, &choice).join(" "))
        };
        let clv = |clv: f64| vec![("clv", Value::Number(clv))];
        assert_eq!(
            told(&record(2.0, "Month-to-month", clv(600.0)), 0.75),
            "high account_manager_call segment:new-monthly eligibility:retention_offer:context.region objective:expected_value"
        );
        assert_eq!(
            told(
                &record(60.0, "Two year", [clv(5000.0), vec![("days_since_contact", Value::Number(20.0))]].concat()),
                0.75
            ),
            "medium none segment:loyal-valued eligibility:account_manager_call:context.days_since_contact eligibility:retention_offer:context.days_since_contact objective:expected_value"
        );
        assert_eq!(
            told(&record(60.0, "Two year", clv(100.0)), 0.02),
            "low none eligibility:retention_offer:context.region objective:expected_value"
        );
    }

    const TIERED: &str = r#"
name = "tiered"
description = ""
currency = "EUR"
[[tiers]]
name = "high"
score = "[0.5, 1]"
intervention = "call"
fallback = ["mail"]
[[tiers]]
name = "low"
score = "[0, 0.5)"
intervention = "none"
[[segments]]
name = "valued"
when = { context.clv = "[1000, )" }
interventions = { low = "mail" }
[interventions.call]
description = ""
cost = 20
expected_effectiveness = 0.5
eligible = { context.opt_out = false }
[interventions.mail]
description = ""
cost = 1
expected_effectiveness = 0.1
[context.clv]
type = "number"
missing = { default = 0 }
[context.opt_out]
type = "boolean"
missing = "refuse"
"#;

    #[test]
    fn where_the_tier_decides_its_fallback_is_for_who_may_not_have_it() {
        let policy = policy(TIERED);
        let told = |value: f64, clv: f64, opt_out: bool, money: f64| {
            let assessment = policy.assess(score(value), &[Known::Number(clv), Known::Bool(opt_out)]);
            let choice = assessment.choose(0.0, |offer| offer.cost.units() <= money);
            let rules = policy.rules(assessment.tier, &assessment.trace, &choice).join(" ");
            format!("{} {} {rules}", policy.interventions()[choice.intervention].action, choice.stepped_down())
        };
        assert_eq!(told(0.9, 0.0, false, 100.0), "call false objective:tier");
        assert_eq!(
            told(0.9, 0.0, true, 100.0),
            "mail false eligibility:call:context.opt_out fallback:mail objective:tier"
        );
        assert_eq!(told(0.9, 0.0, false, 10.0), "mail true budget:refused:call fallback:mail objective:tier");
        assert_eq!(
            told(0.9, 0.0, false, 0.0),
            "none true budget:refused:call budget:refused:mail fallback:none objective:tier"
        );
        assert_eq!(told(0.1, 0.0, false, 100.0), "none false objective:tier");
        assert_eq!(told(0.1, 1000.0, false, 100.0), "mail false segment:valued objective:tier");
    }

    #[test]
    fn what_is_preferred_comes_before_all_others_where_it_may_be_had() {
        let policy = policy(TIERED);
        let place = |action: &str| policy.interventions().iter().position(|known| known.action == action).expect("it");
        let told = |preferred: &str, value: f64, opt_out: bool, money: f64| {
            let values = [Known::Number(0.0), Known::Bool(opt_out)];
            let assessment = policy.assess_preferring(place(preferred), score(value), &values);
            let choice = assessment.choose(0.0, |offer| offer.cost.units() <= money);
            let rules = policy.rules(assessment.tier, &assessment.trace, &choice).join(" ");
            format!("{} {rules}", policy.interventions()[choice.intervention].action)
        };
        assert_eq!(told("call", 0.1, false, 100.0), "call experiment objective:tier", "what the tier does not offer");
        assert_eq!(told("mail", 0.9, false, 100.0), "mail experiment objective:tier", "what the tier offers last");
        assert_eq!(told("none", 0.9, false, 100.0), "none experiment objective:tier");
        assert_eq!(told("call", 0.1, true, 100.0), "none eligibility:call:context.opt_out objective:tier");
        assert_eq!(
            told("mail", 0.9, true, 0.5),
            "none eligibility:call:context.opt_out budget:refused:mail fallback:none objective:tier"
        );
        assert_eq!(
            told("mail", 0.9, false, 0.5),
            "none budget:refused:call budget:refused:mail fallback:none objective:tier"
        );
    }

    #[test]
    fn an_estimate_stands_for_score_times_effectiveness() {
        let (policy, binding) = bound(VALUE.split_once("[budget]").expect("a budget").0);
        let record = record(60.0, "Two year", vec![("clv", Value::Number(600.0))]);
        let mut values = binding.read(&record).expect("a legal context");
        let plain = policy.decide(score(0.9), &values).1;
        assert_eq!(plain.uplift, None);
        // Nobody is offered what drives customers away.
        values.extend((0..policy.interventions().len()).map(|_| Known::Number(-0.1)));
        let (assessment, choice) = policy.decide(score(0.9), &values);
        assert_eq!((choice.intervention, choice.uplift), (0, None));
        let best = assessment.offers.last().expect("an offer").intervention;
        values[policy.fields.len() + best] = Known::Number(0.5);
        let (assessment, choice) = policy.decide(score(0.1), &values);
        let stake = assessment.value_at_stake.expect("a stake");
        assert_eq!((choice.intervention, choice.uplift), (best, Some(0.5)));
        assert_eq!(choice.expected_value, Some(0.5 * stake - policy.interventions()[best].cost.units()));
        let action = &policy.interventions()[best].action;
        assert!(policy.rules(assessment.tier, &assessment.trace, &choice).contains(&format!("uplift:{action}")));
    }

    #[test]
    fn of_what_is_worth_the_same_the_cheapest_is_chosen_then_the_first() {
        let offer = |intervention, cost: f64, gain| Offer {
            intervention,
            cost: Money::from_units(cost).expect("money"),
            gain,
            uplift: None,
        };
        let among = |offers: &[Offer]| {
            let assessment = Assessment {
                tier: 0,
                value_at_stake: Some(1.0),
                offers: offers.iter().copied().collect(),
                trace: Trace::default(),
                objective: Objective::ExpectedValue,
                preferred: None,
            };
            assessment.choose(0.0, |_| true).intervention
        };
        assert_eq!(among(&[offer(1, 5.0, 8.0), offer(2, 1.0, 4.0), offer(3, 1.0, 4.0)]), 2);
        assert_eq!(among(&[offer(3, 1.0, 4.0), offer(2, 1.0, 4.0)]), 2);
        assert_eq!(among(&[offer(0, 0.0, 0.0), offer(1, 2.0, 2.0)]), 0);
    }

    fn context() -> impl Strategy<Value = Vec<(&'static str, Value<'static>)>> {
        let clv = prop::option::of(0.0..100_000.0_f64).prop_map(|clv| clv.map(Value::Number));
        let region = prop::option::of(prop::sample::select(vec!["EU", "US", "other", "mars"]));
        let region = region.prop_map(|region| region.map(|region| Value::Text(region.into())));
        let days = prop::option::of(0..200_u16).prop_map(|days| days.map(|days| Value::Number(f64::from(days))));
        let opt_out = prop::option::of(any::<bool>()).prop_map(|opt_out| opt_out.map(Value::Bool));
        (clv, region, days, opt_out).prop_map(|(clv, region, days, opt_out)| {
            let entries = [("clv", clv), ("region", region), ("days_since_contact", days), ("opt_out", opt_out)];
            entries.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
        })
    }

    fn contract() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["Month-to-month", "One year", "Two year"])
    }

    proptest! {
        #[test]
        fn more_risk_is_never_a_lower_tier_and_every_score_has_one(context in context(), contract in contract(), tenure in 0..120_u8, one in 0.0..=1.0_f64, other in 0.0..=1.0_f64) {
            let (policy, binding) = bound(VALUE);
            let record = record(f64::from(tenure), contract, context);
            let values = binding.read(&record).expect("a legal context");
            let segment = policy.segment_of(&values);
            let (low, high) = if one <= other { (one, other) } else { (other, one) };
            prop_assert!(policy.tier_of(segment, score(high)) <= policy.tier_of(segment, score(low)));
            if let Some(own) = segment.map(|at| &policy.segments()[at]).filter(|own| !own.bands.is_empty()) {
                prop_assert_eq!(own.bands.iter().filter(|band| band.contains(one)).count(), 1);
            }
            let fired = policy.segments().iter().filter(|segment| segment.when.iter().all(|condition| condition.holds(&values)));
            prop_assert!(fired.count() <= 1);
        }

        #[test]
        fn what_is_chosen_is_worth_most_and_never_barred(context in context(), contract in contract(), tenure in 0..120_u8, value in 0.0..=1.0_f64, shadow_price in 0.0..3.0_f64, money in 0..60_u8) {
            let (policy, binding) = bound(VALUE);
            let record = record(f64::from(tenure), contract, context);
            let values = binding.read(&record).expect("a legal context");
            let assessment = policy.assess(score(value), &values);
            let money = Money::from_units(f64::from(money)).expect("money");
            let choice = assessment.choose(shadow_price, |offer| offer.cost <= money);
            let stake = assessment.value_at_stake.expect("a value");
            let only = policy.segment_of(&values).and_then(|at| policy.segments()[at].offers.clone());
            let worth = |at: usize| {
                let known = &policy.interventions()[at];
                value * known.expected_effectiveness * stake - (1.0 + shadow_price) * known.cost.units()
            };
            let possible: Vec<usize> = (0..policy.interventions().len())
                .filter(|at| *at == 0 || only.as_ref().is_none_or(|only| only.contains(at)))
                .filter(|at| policy.interventions()[*at].eligible.iter().all(|condition| condition.holds(&values)))
                .collect();
            let offered: Vec<usize> = assessment.offers.iter().map(|offer| offer.intervention).collect();
            prop_assert_eq!(&offered, &possible);
            let best = possible.iter().filter(|at| policy.interventions()[**at].cost <= money).map(|at| worth(*at)).fold(f64::MIN, f64::max);
            prop_assert_eq!(worth(choice.intervention), best);
            prop_assert!(possible.contains(&choice.intervention) && choice.cost <= money);
            let known = &policy.interventions()[choice.intervention];
            prop_assert_eq!(choice.expected_value, Some(value * known.expected_effectiveness * stake - known.cost.units()));
            let without = assessment.choose(shadow_price, |_| true).intervention;
            prop_assert_eq!(choice.stepped_down(), without != choice.intervention);
        }
    }
}
