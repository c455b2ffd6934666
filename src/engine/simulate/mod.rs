//! What-if: a policy made to decide on decisions on record, beside the policy in force and by the same law of budgets, in the order in which
//! they were made; and the check of a policy's compliance before it is applied. Nothing is recorded or changed.

mod way;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::account::Account;
use super::slots::Deck;
use super::{Ask, Engine, Error, shelf};
use crate::domain::bundle::uplift::Uplifts;
use crate::domain::money::Money;
use crate::domain::policy::Policy;
use crate::domain::policy::budget::Budget;
use crate::domain::policy::compliance::Compliance;
use crate::domain::policy::condition::Values;
use crate::domain::policy::fit::{Binding, audit_groups};
use crate::domain::policy::reward::{Followed, Logged, Reward};
use crate::domain::policy::simulation::{Counted, Simulation};
use crate::domain::record::Record;
use crate::domain::score::Score;
use crate::domain::statistics::fairness::{Census, Seen};
use crate::ledger::{Inputs, Recorded};
use crate::model::Model;
use way::{Chosen, Way};

/// Recorded decisions that are in memory at a time.
const PAGE: usize = 500;
/// The level of every interval is one less this.
const ALPHA: f64 = 0.05;

/// What is asked about a policy.
#[derive(Debug, Clone)]
pub struct Question {
    /// Its document.
    pub document: String,
    /// The decisions made in this time, milliseconds since 1970, the end excluded.
    pub span_ms: Range<i64>,
    /// The last so many of them.
    pub last: usize,
    /// Another budget than that of the document.
    pub budget: Option<Budget>,
    /// What its value is measured by; without it the retained value where the document has a value at stake, or else who is retained.
    pub reward: Option<Reward>,
}

/// A customer over all of his decisions: offered something if one of them did, since that is what groups are compared by, and rows of one
/// customer are not independent.
#[derive(Default)]
struct Person {
    groups: Box<[(Box<str>, Box<str>)]>,
    seen: [Seen; 2],
    is_rewarded: bool,
}

impl Engine {
    /// What a policy would have made of decisions on record by `model`, beside the policy in force: both as if they had come into force just
    /// before the first of them. Where both look at the score alone, inputs that are erased or were not kept do not matter. Not for a
    /// thread that answers customers.
    ///
    /// Errors: [`Error::Refused`] with everything that is wrong with the document, or does not fit the models in the slots.
    pub fn simulate(&self, model: &str, question: Question) -> Result<Simulation, Error> {
        let Question { document, span_ms, last, budget, reward } = question;
        let parsed = shelf::parse_policy(&document).map_err(Error::Refused)?;
        let after = match budget {
            Some(budget) => parsed.with_budget(budget),
            None => parsed,
        };
        let (before, bindings, champion) = {
            let held = self.deck(model)?.held();
            held.fit(&after)?;
            let champion = held.in_slot(held.slots.champion()).ok_or_else(|| self.unknown(model))?;
            let bind = |policy: &Policy| policy.bind_to(champion.model.card()).map_err(Error::Refused);
            (held.policy.clone(), [bind(&held.policy)?, bind(&after)?], champion.model.clone())
        };
        let ledger = self.ledger()?;
        let mut run = Run {
            engine: self,
            bindings: &bindings,
            champion: &champion,
            ways: [Way::new(&before), Way::new(&after)],
            is_plain: before.is_plain() && after.is_plain(),
            reward: reward.unwrap_or(match after.has_value_at_stake() {
                true => Reward::RetainedValue,
                false => Reward::Retained,
            }),
            people: BTreeMap::new(),
            policies: HashMap::new(),
            repriced: BTreeMap::new(),
            foreign: 0,
            allotted: 0,
            counted: Counted::default(),
        };
        let mut stretch = ledger.stretch(model, span_ms, last)?;
        loop {
            let page = ledger.advance(&mut stretch, PAGE)?;
            for recorded in &page {
                run.look(model, recorded)?;
            }
            if page.len() < PAGE {
                break;
            }
        }
        Ok(run.end())
    }

    /// The compliance of a policy that is to be put into force by `verb`, on recent decisions.
    ///
    /// Errors: [`Error::Refused`] where the configuration refuses what surely fails.
    pub(super) fn check(
        &self,
        deck: &Deck,
        document: &str,
        verb: &str,
        ask: &Ask,
    ) -> Result<Option<Compliance>, Error> {
        let options = self.options.load();
        let found = match self.compliance(&deck.name, document, options.compliance_last) {
            // What cannot be checked only stands in the way where it must be.
            Err(Error::Ledger(error)) if !options.compliance_refuse => {
                tracing::warn!(model = deck.name, cause = %error, "the compliance of a policy could not be checked");
                None
            }
            found => found?,
        };
        let failures = found.as_ref().filter(|_| options.compliance_refuse).map(Compliance::failures);
        match failures.filter(|failures| !failures.is_empty()) {
            None => Ok(found),
            Some(failures) => {
                self.note_refusal(deck, verb, "the policy", &failures, ask);
                Err(Error::Refused(failures))
            }
        }
    }

    /// Tries a policy on the last `last` decisions of `model` and compares the groups of the audit; `None` without a ledger.
    ///
    /// Errors: as [`simulate`](Self::simulate).
    fn compliance(&self, model: &str, document: &str, last: usize) -> Result<Option<Compliance>, Error> {
        if self.ledger.is_none() || last == 0 {
            return Ok(None);
        }
        let question =
            Question { document: document.to_owned(), span_ms: i64::MIN..i64::MAX, last, budget: None, reward: None };
        Ok(Some(self.simulate(model, question)?.compliance))
    }
}

/// A simulation that goes on.
struct Run<'e, 'p> {
    engine: &'e Engine,
    bindings: &'e [Binding; 2],
    /// What estimates uplifts, where a policy decides by them: as it does now, whoever gave the score.
    champion: &'e Model,
    ways: [Way<'p>; 2],
    /// Whether the score alone decides for both.
    is_plain: bool,
    reward: Reward,
    /// By pseudonym, so that which groups come first is the same again, and up to chance.
    people: BTreeMap<String, Person>,
    /// The policies that decided then, by version.
    policies: HashMap<String, Option<Policy>>,
    /// Actions of the policy that is tried which had another price on record.
    repriced: BTreeMap<String, (Money, Money)>,
    /// Decisions in another currency.
    foreign: u64,
    /// Decisions of which it is not known how probable they were, being of batches with a budget.
    allotted: u64,
    counted: Counted,
}

impl Run<'_, '_> {
    /// What the champion estimates of interventions; `None` where it has to and cannot.
    fn uplifts(&self, record: &Record) -> Option<Uplifts> {
        if !self.bindings.iter().any(Binding::wants_uplifts) {
            return Some(Uplifts::new());
        }
        let mut row = vec![0.0; self.champion.schema().columns()];
        self.champion.schema().vectorize(&record.features, &mut row).ok()?;
        self.champion.uplifts(&row).ok()
    }

    fn look(&mut self, model: &str, recorded: &Recorded) -> Result<(), Error> {
        self.counted.decisions += 1;
        self.counted.by_policy_in_force += u64::from(recorded.policy_version == self.ways[0].policy.version());
        let record: Option<Record> = match &recorded.inputs {
            Inputs::Kept(inputs) => (self.engine.read)(inputs.as_slice()).ok(),
            Inputs::NotKept | Inputs::Erased => None,
        };
        let [first, second] = self.bindings;
        let values: Option<[Values; 2]> = match &record {
            Some(record) => self.uplifts(record).and_then(|uplifts| {
                let [before, after] = [first, second].map(|binding| binding.read_with(record, &uplifts).ok());
                Some([before?, after?])
            }),
            None => self.is_plain.then(Default::default),
        };
        let Some((score, values)) = Score::new(recorded.score).zip(values) else {
            self.skip(recorded);
            return Ok(());
        };
        let at_ms = recorded.decided_at_ms.max(0) as u64;
        match self.counted.made_ms {
            None => {
                for way in &mut self.ways {
                    way.open(Account::as_of(way.policy, model, self.engine.ledger()?, at_ms)?, at_ms);
                }
            }
            Some((_, last_ms)) => self.ways.iter().for_each(|way| way.wait(last_ms.max(0) as u64, at_ms)),
        }
        let (from_ms, to_ms) = self.counted.made_ms.unwrap_or((recorded.decided_at_ms, recorded.decided_at_ms));
        self.counted.made_ms = Some((from_ms.min(recorded.decided_at_ms), to_ms.max(recorded.decided_at_ms)));
        self.counted.usable += 1;
        let customer_id = record.as_ref().map_or("", |record| record.customer_id.as_ref());
        let [before, after] = &mut self.ways;
        let chosen =
            [before.decide(score, &values[0], customer_id, at_ms), after.decide(score, &values[1], customer_id, at_ms)];
        self.compare(&chosen);
        let followed = Followed::by(recorded.outcomes.iter().map(|outcome| (outcome.occurred_at_ms, outcome.facts)));
        let groups = record.iter().flat_map(|record| audit_groups(&record.context));
        let person = self.people.entry(recorded.customer.clone()).or_default();
        if person.groups.is_empty() {
            person.groups = groups.map(|(attribute, group)| (attribute.into(), group.into())).collect();
        }
        for (seen, chosen) in person.seen.iter_mut().zip(&chosen) {
            seen.offered |= chosen.choice.intervention != 0;
            seen.cost = seen.cost.plus(chosen.choice.cost);
            seen.churned = followed.churned.or(seen.churned);
        }
        if !person.is_rewarded {
            self.value(recorded, score, &followed, &chosen);
        }
        Ok(())
    }

    fn skip(&mut self, recorded: &Recorded) {
        match recorded.inputs {
            Inputs::Erased => self.counted.erased += 1,
            Inputs::NotKept => self.counted.not_kept += 1,
            Inputs::Kept(_) => self.counted.unreadable += 1,
        }
    }

    fn compare(&mut self, chosen: &[Chosen; 2]) {
        let names = |what: &dyn Fn(&Policy, &Chosen) -> String| {
            let [before, after] = [0, 1].map(|at| what(self.ways[at].policy, &chosen[at]));
            (before, after)
        };
        let tiers = names(&|policy, chosen| policy.tiers()[chosen.assessment.tier].name.clone());
        let actions = names(&|policy, chosen| policy.interventions()[chosen.choice.intervention].action.clone());
        self.counted.tier_changed += u64::from(tiers.0 != tiers.1);
        self.counted.action_changed += u64::from(actions.0 != actions.1);
        *self.counted.tiers.entry(tiers).or_default() += 1;
        *self.counted.actions.entry(actions).or_default() += 1;
    }

    /// Adds a row to the value of both ways, where what the decision brought is known.
    fn value(&mut self, recorded: &Recorded, score: Score, followed: &Followed, chosen: &[Chosen; 2]) {
        let made_by = self.policies.entry(recorded.policy_version.clone());
        let made_by = made_by.or_insert_with(|| shelf::parse_policy(&recorded.policy_document).ok());
        let Some(made_by) = made_by else { return };
        let Some(intervention) = made_by.interventions().iter().find(|known| known.action == recorded.action) else {
            return;
        };
        // One stake for both, or their values could not be compared.
        let stake = chosen[1].assessment.value_at_stake.or(chosen[0].assessment.value_at_stake);
        let Some(reward) = self.reward.of(followed, intervention.cost, stake) else { return };
        let tried = self.ways[1].policy;
        if self.reward.is_money() && made_by.currency() != tried.currency() {
            self.foreign += 1;
            return;
        }
        let offered = tried.interventions().iter().find(|known| known.action == intervention.action);
        if let Some(offered) = offered.filter(|offered| self.reward.is_money() && offered.cost != intervention.cost) {
            self.repriced.insert(offered.action.clone(), (intervention.cost, offered.cost));
        }
        let Some(propensity) = recorded.extra.known_propensity() else {
            self.allotted += 1;
            return;
        };
        let logged = Logged { intervention, propensity, score, stake, reward };
        for (way, chosen) in self.ways.iter_mut().zip(chosen) {
            way.rows.push(logged.row(self.reward, way.policy, chosen.place));
        }
        self.counted.rewarded += 1;
        if let Some(person) = self.people.get_mut(&recorded.customer) {
            person.is_rewarded = true;
        }
    }

    fn warnings(&self) -> Vec<String> {
        let Counted { decisions, usable, by_policy_in_force, rewarded, .. } = &self.counted;
        let mut warnings = Vec::new();
        if usable < decisions {
            let what = if self.ways.iter().any(|way| way.has_account()) { ", and spend nothing here" } else { "" };
            warnings.push(format!("{} of {decisions} decisions could not be made again{what}", decisions - usable));
        }
        if by_policy_in_force < decisions {
            let others = decisions - by_policy_in_force;
            warnings.push(format!(
                "{others} of {decisions} decisions were made by other policies than the one in force: `before` is what the one in force makes of them"
            ));
        }
        let reward = self.reward.name();
        if self.reward == Reward::RetainedValue && !self.ways.iter().any(|way| way.policy.has_value_at_stake()) {
            warnings.push(format!("no value: neither policy says what is at stake, which {reward} is made of"));
        } else if *rewarded < 2 {
            warnings.push(format!("no value: of fewer than two customers {reward} is known by outcomes"));
        }
        if self.foreign > 0 {
            warnings.push(format!("{} outcomes are in another currency, and left out", self.foreign));
        }
        if self.allotted > 0 {
            let count = self.allotted;
            warnings.push(format!("{count} outcomes are of batches with a budget, where it is not known how probable an action was, and left out"));
        }
        for (action, (then, now)) in &self.repriced {
            warnings.push(format!("\"{action}\" cost {then} when it was offered, and costs {now} in this policy: its value counts what it cost"));
        }
        warnings
    }

    fn end(self) -> Simulation {
        let mut warnings = self.warnings();
        let mut census = [Census::default(), Census::default()];
        for person in self.people.values() {
            for (census, seen) in census.iter_mut().zip(&person.seen) {
                census.add(person.groups.iter().map(|(attribute, group)| (&**attribute, &**group)), seen);
            }
        }
        let [first, second] = census.map(|census| census.compare(ALPHA));
        let customers = self.people.len() as u64;
        let compliance = Compliance::of(&first, &second, customers, ALPHA);
        let [before, after] = self.ways;
        let (before, after) = (before.end(first, ALPHA), after.end(second, ALPHA));
        warnings.extend(after.value.iter().flat_map(|value| value.warnings(self.reward)));
        Simulation { counted: self.counted, customers, reward: self.reward, before, after, compliance, warnings }
    }
}
