//! The sample that measures are made of: decisions with what followed them. Where there are too many it keeps fewer customers, a fair
//! share of them, each whole. Where they come from is known in `insight`, what is concluded in `measures`.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use super::monitor::Monitor;
use super::shelf::parse_policy;
use super::{Error, Read};
use crate::domain::money::Money;
use crate::domain::policy::{NONE, Policy, fit};
use crate::domain::record::{Record, Value};
use crate::ledger::{Decided, Event, Followed, Inputs, Ledger, Maker, Ticket};
use crate::model::Model;

/// The entry of the context that says how much a customer used the service before: in any unit, so that less chance is in comparisons.
const USAGE_BEFORE: &str = "usage_before";
/// Ways in which decisions differ, such as version, arm and segment together, and sets of audit groups, of those that are held: what is over is
/// left out, and counted.
const KINDS_MAX: usize = 16_384;

/// What many decisions have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) maker: Arc<Made>,
    pub(super) arm: String,
    pub(super) segment: Option<String>,
    /// Whether the customer was kept from intervention, be it by the policy or by an experiment.
    pub(super) is_kept: bool,
    /// The bits of the share that the policy in force holds out, if it does; the policy of an arm never does.
    pub(super) share: Option<u64>,
    /// Each experiment with its arm, as `name/arm`.
    pub(super) experiments: Vec<String>,
}

impl Kind {
    /// Whether the policy in force held the customer out; `None` where it holds out nobody. Whom it does is part of no experiment, so
    /// nobody whom an experiment keeps from intervention is among them.
    pub(super) fn holdout(&self) -> Option<bool> {
        self.share.map(|_| self.is_kept && self.experiments.is_empty())
    }
}

/// What made decisions.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Made {
    pub(super) model: String,
    pub(super) model_version: String,
    pub(super) policy_version: String,
    /// The bits of the share that the policy holds out, if it does.
    pub(super) holdout: Option<u64>,
}

/// What made decisions, with the policy where its document can be read.
type Known = (Arc<Made>, Option<Arc<Policy>>);

/// One decision with what followed it.
#[derive(Debug, Clone)]
pub(super) struct Row {
    id: [u8; 16],
    pub(super) at_ms: i64,
    pub(super) customer: Ticket,
    pub(super) score: f64,
    pub(super) kind: u32,
    /// The place of its audit groups.
    pub(super) groups: u32,
    pub(super) offered: bool,
    pub(super) cost: Money,
    pub(super) value_at_stake: Option<f64>,
    pub(super) usage_before: Option<f64>,
    /// What came of it. Of most decisions nothing is told, and they are many: these cost a place of eight bytes.
    after: Option<Box<After>>,
}

impl Row {
    /// What came of it; nothing, where nothing was told.
    pub(super) fn after(&self) -> &After {
        self.after.as_deref().unwrap_or(&After::NOTHING)
    }
}

/// What was told after a decision.
#[derive(Debug, Clone)]
pub(super) struct After {
    /// When the customer left, and when that was recorded.
    pub(super) left_ms: Option<(i64, i64)>,
    pub(super) converted: Option<bool>,
    pub(super) revenue: Money,
    pub(super) orders: u32,
    pub(super) contact_cost: Money,
}

impl After {
    const NOTHING: Self =
        Self { left_ms: None, converted: None, revenue: Money::ZERO, orders: 0, contact_cost: Money::ZERO };
}

/// Values that are the same for many rows, each once. Where no place is left, values that no row has any more make room.
#[derive(Debug)]
pub(super) struct Table<T> {
    pub(super) values: Vec<T>,
    places: HashMap<T, u32>,
    /// So many of the first values stay, whether a row has them or not.
    always: usize,
    /// How many rows came since it was last looked for values that no row has any more.
    since_room: usize,
}

impl<T: Clone + Eq + Hash> Table<T> {
    fn new(always: &[T]) -> Self {
        let mut table =
            Self { values: Vec::new(), places: HashMap::new(), always: always.len(), since_room: KINDS_MAX };
        for value in always {
            table.place(value);
        }
        table
    }

    /// The place of `value`; `None` where there is none left.
    fn place(&mut self, value: &T) -> Option<u32> {
        if let Some(place) = self.places.get(value) {
            return Some(*place);
        }
        if self.values.len() >= KINDS_MAX {
            return None;
        }
        let place = self.values.len() as u32;
        self.values.push(value.clone());
        self.places.insert(value.clone(), place);
        Some(place)
    }

    /// The same for one more of `rows`, which have their places at `of`. To make room takes as long as there are rows, so it is not done for each
    /// of them.
    fn place_among(&mut self, value: &T, rows: &mut VecDeque<Row>, of: fn(&mut Row) -> &mut u32) -> Option<u32> {
        self.since_room += 1;
        let found = self.place(value);
        if found.is_some() || self.since_room < KINDS_MAX / 4 {
            return found;
        }
        let mut kept = Self { since_room: 0, ..Self::new(&self.values[..self.always]) };
        for row in rows {
            let place = of(row);
            // Each of them had a place, so each finds one.
            *place = kept.place(&self.values[*place as usize]).unwrap_or(0);
        }
        *self = kept;
        self.place(value)
    }
}

/// The audit groups of a customer: attribute and group.
pub(super) type Groups = Vec<(String, String)>;

/// Decisions of a time, of a fair share of the customers.
#[derive(Debug)]
pub(super) struct Sample {
    /// The last entry that was read; `None` before the first.
    pub(super) through: Option<i64>,
    /// The highest ticket that is kept.
    pub(super) customers: Ticket,
    /// In the order of the record.
    pub(super) rows: VecDeque<Row>,
    /// How many rows have left at the front.
    gone: u64,
    /// By id, counted from the first row that ever was.
    places: HashMap<[u8; 16], u64>,
    pub(super) kinds: Table<Kind>,
    /// The place 0 is of nobody.
    pub(super) groups: Table<Groups>,
    makers: HashMap<i64, Known>,
    /// By model, what the policy in force held out when it was last seen to decide: see `Kind::share`.
    shares: HashMap<String, Option<u64>>,
    /// Decisions that were left out since there was no place for their kind.
    pub(super) left_out: u64,
}

impl Sample {
    /// Decisions for which there is room from the start, and rows take as much of the machine's memory as is written to. What grows by
    /// doubling leaves behind what it has left.
    const ROOM_MAX: usize = 131_072;

    /// One of `max` decisions, and some more until it is trimmed.
    pub(super) fn new(max: usize) -> Self {
        let room = (max + max / 32).min(Self::ROOM_MAX);
        Self {
            through: None,
            customers: Ticket::MAX,
            rows: VecDeque::with_capacity(room),
            gone: 0,
            places: HashMap::new(),
            kinds: Table::new(&[]),
            groups: Table::new(&[Groups::new()]),
            makers: HashMap::new(),
            shares: HashMap::new(),
            left_out: 0,
        }
    }

    /// The share of customers that is kept, over 0 to 1.
    pub(super) fn share(&self) -> f64 {
        (self.customers as f64 + 1.0) / (Ticket::MAX as f64 + 1.0)
    }

    /// An empty sample of as many more customers as there is room for: where fewer than a quarter of `max` decisions are left, it is to have a
    /// quarter to half of them, by what this one has.
    pub(super) fn larger(&self, max: usize) -> Option<Self> {
        if self.customers == Ticket::MAX || self.rows.len() >= max / 4 {
            return None;
        }
        let (mut customers, mut rows) = (self.customers, self.rows.len());
        while customers < Ticket::MAX && rows < max / 4 {
            // The reverse of halving.
            (customers, rows) = (customers.saturating_mul(2).saturating_add(1), rows * 2);
        }
        Some(Self { customers, ..Self::new(max) })
    }

    /// Takes over what is on record.
    pub(super) fn take(&mut self, event: Event, source: &Source) -> Result<(), Error> {
        match event {
            Event::Decided(decided) => self.decided(*decided, source)?,
            Event::Followed(followed) => self.followed(&followed),
            // What is known of them by their inputs goes with these.
            Event::Erased(tickets) => {
                for row in self.rows.iter_mut().filter(|row| tickets.contains(&row.customer)) {
                    (row.groups, row.usage_before) = (0, None);
                }
            }
        }
        Ok(())
    }

    fn decided(&mut self, decided: Decided, source: &Source) -> Result<(), Error> {
        let Some((maker, policy)) = self.maker(decided.maker, source.ledger)? else { return Ok(()) };
        let said = &decided.said;
        let segment = said.rules.iter().find_map(|rule| rule.strip_prefix("segment:")).map(str::to_owned);
        let experiments: Vec<String> =
            said.experiments.iter().map(|part| format!("{}/{}", part.name, part.arm)).collect();
        let (groups, usage_before) = match &decided.inputs {
            Inputs::Kept(inputs) => match (source.read)(inputs) {
                Ok(record) => {
                    source.recall(&maker, &decided, &record);
                    about(&record)
                }
                Err(_) => (Groups::new(), None),
            },
            Inputs::NotKept | Inputs::Erased => (Groups::new(), None),
        };
        let share = self.share_in_force(&maker, !experiments.is_empty());
        let is_kept = said.holdout == Some(true);
        let kind = Kind { maker, arm: decided.arm, segment, is_kept, share, experiments };
        let Some(kind) = self.kinds.place_among(&kind, &mut self.rows, |row| &mut row.kind) else {
            self.left_out += 1;
            return Ok(());
        };
        // What the record does not say of the cost, its policy does.
        let of_policy = || {
            let offers = policy.as_ref()?.interventions();
            offers.iter().find(|offer| offer.action == decided.action).map(|offer| offer.cost)
        };
        let row = Row {
            id: decided.id,
            at_ms: decided.at_ms,
            customer: decided.customer,
            score: decided.score,
            kind,
            // Who finds no place is unknown, and counted so.
            groups: self.groups.place_among(&groups, &mut self.rows, |row| &mut row.groups).unwrap_or(0),
            offered: decided.action != NONE,
            cost: said.cost.and_then(Money::from_units).or_else(of_policy).unwrap_or(Money::ZERO),
            value_at_stake: said.value_at_stake,
            usage_before,
            after: None,
        };
        self.places.insert(row.id, self.gone + self.rows.len() as u64);
        self.rows.push_back(row);
        Ok(())
    }

    /// What the policy in force holds out when `maker` decides. For a member of an experiment the policy of an arm may have decided, and
    /// its document does not say.
    fn share_in_force(&mut self, maker: &Made, is_member: bool) -> Option<u64> {
        if is_member && maker.holdout.is_none() {
            return self.shares.get(&maker.model).copied().flatten();
        }
        if self.shares.get(&maker.model) != Some(&maker.holdout) {
            self.shares.insert(maker.model.clone(), maker.holdout);
        }
        maker.holdout
    }

    fn maker(&mut self, maker: i64, ledger: &Ledger) -> Result<Option<Known>, Error> {
        if let Some(known) = self.makers.get(&maker) {
            return Ok(Some(known.clone()));
        }
        let Some(found) = ledger.maker(maker)? else { return Ok(None) };
        let Maker { model, model_version, policy_version, policy_document, .. } = found;
        let policy = parse_policy(&policy_document).ok().map(Arc::new);
        let holdout = policy.as_ref().and_then(|policy| policy.holdout()).map(|holdout| holdout.share().to_bits());
        if self.makers.len() >= KINDS_MAX {
            // One of no kind is read again, should it come again.
            self.makers.retain(|_, (made, _)| Arc::strong_count(made) > 1);
        }
        let known = (Arc::new(Made { model, model_version, policy_version, holdout }), policy);
        self.makers.insert(maker, known.clone());
        Ok(Some(known))
    }

    fn followed(&mut self, followed: &Followed) {
        let place = self.places.get(&followed.decision).and_then(|place| place.checked_sub(self.gone));
        let Some(row) = place.and_then(|place| self.rows.get_mut(place as usize)) else { return };
        let after = row.after.get_or_insert_with(|| Box::new(After::NOTHING));
        let facts = followed.facts;
        if facts.churned == Some(true) && after.left_ms.is_none() {
            after.left_ms = Some((followed.occurred_at_ms, followed.recorded_at_ms));
        }
        // Who took it once has taken it, whatever is told besides.
        after.converted =
            facts.converted.map_or(after.converted, |converted| Some(converted || after.converted == Some(true)));
        if let Some(revenue) = facts.revenue {
            after.revenue = after.revenue.plus(revenue);
            after.orders += 1;
        }
        after.contact_cost = after.contact_cost.plus(facts.contact_cost.unwrap_or(Money::ZERO));
    }

    /// Lets go what is from before `from_ms`, and half of the customers as often as there are more than `max` decisions.
    pub(super) fn trim(&mut self, from_ms: i64, max: usize) {
        while self.rows.front().is_some_and(|row| row.at_ms < from_ms) {
            if let Some(row) = self.rows.pop_front() {
                self.places.remove(&row.id);
                self.gone += 1;
            }
        }
        while self.rows.len() > max && self.customers > 0 {
            self.customers /= 2;
            self.rows.retain(|row| row.customer <= self.customers);
            self.gone = 0;
            self.places.clear();
            self.places.extend(self.rows.iter().enumerate().map(|(place, row)| (row.id, place as u64)));
        }
    }
}

/// Where events come from, and who else wants to know of them.
pub(super) struct Source<'e> {
    pub(super) ledger: &'e Ledger,
    pub(super) read: Read,
    /// Of the models that are loaded.
    pub(super) monitors: Vec<(Arc<Model>, Arc<Monitor>)>,
}

impl Source<'_> {
    /// Lets the monitor of the model know what came in before it began.
    fn recall(&self, maker: &Made, decided: &Decided, record: &Record) {
        let is_maker = |model: &Model| model.id().name == maker.model && model.id().version == maker.model_version;
        if let Some((_, monitor)) = self.monitors.iter().find(|(model, _)| is_maker(model)) {
            monitor.recall(decided.at_ms.max(0) as u64, record, decided.score);
        }
    }
}

/// The audit groups and the usage before that a record says.
fn about(record: &Record) -> (Groups, Option<f64>) {
    let entry = |name: &str| record.context.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    let groups = match entry(fit::AUDIT) {
        Some(Value::Map(groups)) => groups
            .iter()
            .filter_map(|(attribute, group)| match group {
                Value::Text(group) => Some((attribute.to_string(), group.to_string())),
                _ => None,
            })
            .collect(),
        _ => Groups::new(),
    };
    let usage = match entry(USAGE_BEFORE) {
        Some(Value::Number(usage)) => Some(*usage),
        _ => None,
    };
    (groups, usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: [fn(&mut Row) -> &mut u32; 2] = [|row| &mut row.kind, |row| &mut row.groups];

    /// Adds a row of the kind and with the groups of a number, where there is a place for its kind.
    fn add(sample: &mut Sample, at: usize) {
        let made = |policy_version: String| {
            let (model, model_version) = ("m".to_owned(), "1".to_owned());
            Arc::new(Made { model, model_version, policy_version, holdout: None })
        };
        let (maker, arm) = (made(at.to_string()), "champion".to_owned());
        let kind = Kind { maker, arm, segment: None, is_kept: false, share: None, experiments: Vec::new() };
        let groups = vec![("postcode".to_owned(), at.to_string())];
        let groups = sample.groups.place_among(&groups, &mut sample.rows, PLACES[1]).unwrap_or(0);
        let Some(kind) = sample.kinds.place_among(&kind, &mut sample.rows, PLACES[0]) else { return };
        let (id, at_ms, customer, score, offered) = ([0; 16], 0, Ticket::MAX, 0.5, false);
        let (cost, value_at_stake, usage_before, after) = (Money::ZERO, None, None, None);
        let row = Row { id, at_ms, customer, score, kind, groups, offered, cost, value_at_stake, usage_before, after };
        sample.rows.push_back(row);
    }

    #[test]
    fn kinds_and_groups_that_nobody_has_any_more_make_room_for_others() {
        let mut sample = Sample::new(0);
        let kept = 1_000;
        for at in 0..2 * KINDS_MAX {
            add(&mut sample, at);
            if sample.rows.len() > kept {
                sample.rows.pop_front();
            }
        }
        let kinds = sample.rows.iter().map(|row| &sample.kinds.values[row.kind as usize].maker.policy_version);
        let groups = sample.rows.iter().map(|row| &sample.groups.values[row.groups as usize][0].1);
        let expected: Vec<String> = (2 * KINDS_MAX - kept..2 * KINDS_MAX).map(|at| at.to_string()).collect();
        assert!(kinds.eq(&expected) && groups.eq(&expected));
        assert!(sample.kinds.values.len() <= KINDS_MAX && sample.groups.values.len() <= KINDS_MAX);
        // Where all of them are in use, one more is unknown, or left out.
        let mut full = Sample::new(0);
        (0..KINDS_MAX + 10).for_each(|at| add(&mut full, at));
        let unknown = full.rows.iter().filter(|row| row.groups == 0).count();
        assert_eq!((full.rows.len(), full.kinds.values.len()), (KINDS_MAX, KINDS_MAX));
        assert_eq!((unknown, full.groups.values.len()), (1, KINDS_MAX), "one place is of nobody");
    }

    #[test]
    fn a_decision_takes_as_much_as_the_manual_says() {
        // With its place in the index, which is grown by doubling.
        assert!(std::mem::size_of::<Row>() + 2 * std::mem::size_of::<([u8; 16], u64)>() <= 208);
    }
}
