//! The outcome: what a customer did after a decision, as a caller tells of it. Reading it collects every violation; whether its
//! decision is there is the ledger's business.

use crate::domain::id::DecisionId;
use crate::domain::money::Money;
use crate::domain::nearest::nearest;
use crate::domain::record::Value;
use crate::domain::violation::{self, LISTED_MAX, Violation, pointer};

/// The longest id of a caller's own, in characters.
pub const SOURCE_ID_MAX: usize = 128;
/// How far an outcome may lie ahead of the clock: clocks differ.
pub const AHEAD_MS_MAX: i64 = 5 * 60 * 1_000;
/// How long an outcome may lie before its decision: some systems know only the day.
pub const BEFORE_MS_MAX: i64 = 24 * 60 * 60 * 1_000;
/// The largest amount, in units: with six decimals it has no more digits than a JSON number keeps.
pub const AMOUNT_MAX: i64 = 1_000_000_000;

const FIELDS: [&str; 7] =
    ["decision_id", "occurred_at", "churned", "converted", "revenue", "contact_cost", "source_id"];
const KNOWN: &str = "decision_id, occurred_at, churned, converted, revenue, contact_cost or source_id";

/// What a customer did after a decision. Later ones add to earlier ones; none takes another back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The decision that it follows.
    pub decision_id: DecisionId,
    /// When it occurred, milliseconds since 1970, UTC.
    pub occurred_at_ms: i64,
    /// What is told; at least one fact.
    pub facts: Facts,
    /// The caller's own id of it, 1 to [`SOURCE_ID_MAX`] characters: sent again with the same one it is the same outcome. It may
    /// say something of a customer, so it is never kept as it is.
    pub source_id: Option<String>,
}

/// The facts that an outcome may state. Amounts are in the currency of the policy that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts {
    /// Whether the customer left (`true`) or stayed (`false`): the truth that scores are measured by.
    pub churned: Option<bool>,
    /// Whether the customer took the offer.
    pub converted: Option<bool>,
    /// What the customer paid since; below zero it was paid back.
    pub revenue: Option<Money>,
    /// What it cost to contact the customer.
    pub contact_cost: Option<Money>,
}

/// One fact, as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fact {
    /// The customer left.
    Churned,
    /// The customer stayed.
    Retained,
    /// The customer took the offer.
    Converted,
    /// The customer did not take the offer.
    Declined,
    /// The customer paid, or was paid back.
    Revenue,
    /// Contacting the customer had a cost.
    ContactCost,
}

impl Fact {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Fact::Churned => "churned",
            Fact::Retained => "retained",
            Fact::Converted => "converted",
            Fact::Declined => "declined",
            Fact::Revenue => "revenue",
            Fact::ContactCost => "contact_cost",
        }
    }
}

impl Facts {
    /// Each fact that is stated.
    pub fn stated(&self) -> impl Iterator<Item = Fact> {
        let either = |fact: Option<bool>, yes, no| fact.map(|fact| if fact { yes } else { no });
        [
            either(self.churned, Fact::Churned, Fact::Retained),
            either(self.converted, Fact::Converted, Fact::Declined),
            self.revenue.map(|_| Fact::Revenue),
            self.contact_cost.map(|_| Fact::ContactCost),
        ]
        .into_iter()
        .flatten()
    }
}

impl Outcome {
    /// The outcome that `value` tells of at `now_ms`. Times are read by `time`: RFC 3339 to milliseconds since 1970.
    ///
    /// Errors: every violation, by its place.
    pub fn read(
        value: Value<'_>,
        now_ms: i64,
        time: impl FnOnce(&str) -> Option<i64>,
    ) -> Result<Outcome, Vec<Violation>> {
        let Value::Map(entries) = value else {
            return Err(vec![Violation::new("", violation::Code::WrongType, "an object")]);
        };
        let mut violations = Vec::new();
        let mut fields: [Option<Value>; FIELDS.len()] = Default::default();
        for (key, value) in entries {
            let violation = match FIELDS.iter().position(|field| *field == key) {
                None => Violation::new(pointer("", &key), violation::Code::UnknownName, KNOWN)
                    .or_nearest(nearest(&key, FIELDS)),
                Some(at) if fields[at].replace(value).is_some() => {
                    Violation::new(pointer("", &key), violation::Code::Duplicate, "one value")
                }
                Some(_) => continue,
            };
            if violations.len() < LISTED_MAX {
                violations.push(violation);
            }
        }
        let [decision_id, occurred_at, churned, converted, revenue, contact_cost, source_id] =
            fields.map(|field| field.filter(|value| *value != Value::Null));
        let facts_stated = [&churned, &converted, &revenue, &contact_cost].iter().any(|fact| fact.is_some());
        let mut reader = Reader { violations };
        let decision_id = reader.required(decision_id, "/decision_id", "a UUID", DecisionId::parse);
        let occurred_at_ms = reader.required(occurred_at, "/occurred_at", "a time after RFC 3339", time);
        if occurred_at_ms.is_some_and(|occurred_at_ms| occurred_at_ms > now_ms.saturating_add(AHEAD_MS_MAX)) {
            reader.wrong("/occurred_at", violation::Code::OutOfRange, "a time at most 5 minutes from now");
        }
        let facts = Facts {
            churned: reader.flag(churned, "/churned"),
            converted: reader.flag(converted, "/converted"),
            revenue: reader.amount(revenue, "/revenue", -AMOUNT_MAX),
            contact_cost: reader.amount(contact_cost, "/contact_cost", 0),
        };
        let source_id = reader.source_id(source_id);
        if !facts_stated {
            let expected = "at least one of churned, converted, revenue and contact_cost";
            reader.wrong("", violation::Code::Missing, expected);
        }
        let mut violations = reader.violations;
        match (decision_id, occurred_at_ms) {
            (Some(decision_id), Some(occurred_at_ms)) if violations.is_empty() => {
                Ok(Outcome { decision_id, occurred_at_ms, facts, source_id })
            }
            _ => {
                violations.truncate(LISTED_MAX);
                Err(violations)
            }
        }
    }

    /// The violation of an outcome that occurred too long before its decision, which was made at `decided_at_ms`.
    pub fn too_early(&self, decided_at_ms: i64) -> Option<Violation> {
        let expected = "a time at most a day before the decision";
        (self.occurred_at_ms < decided_at_ms.saturating_sub(BEFORE_MS_MAX))
            .then(|| Violation::new("/occurred_at", violation::Code::OutOfRange, expected))
    }
}

/// Reads fields and collects what is wrong with them.
struct Reader {
    violations: Vec<Violation>,
}

impl Reader {
    fn wrong(&mut self, place: &str, code: violation::Code, expected: impl Into<String>) {
        self.violations.push(Violation::new(place, code, expected));
    }

    /// A text that `read` has to understand.
    fn required<T>(
        &mut self,
        value: Option<Value>,
        place: &str,
        expected: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let (code, read) = match value {
            None => (violation::Code::Missing, None),
            Some(Value::Text(text)) => (violation::Code::WrongType, read(&text)),
            Some(_) => (violation::Code::WrongType, None),
        };
        if read.is_none() {
            self.wrong(place, code, expected);
        }
        read
    }

    fn flag(&mut self, value: Option<Value>, place: &str) -> Option<bool> {
        match value? {
            Value::Bool(flag) => Some(flag),
            _ => {
                self.wrong(place, violation::Code::WrongType, "true or false");
                None
            }
        }
    }

    /// An amount as a number, or as a decimal number in a text: systems that care for cents often write the latter.
    fn amount(&mut self, value: Option<Value>, place: &str, units_min: i64) -> Option<Money> {
        let range = units_min * 1_000_000..=AMOUNT_MAX * 1_000_000;
        let (code, money) = match value? {
            Value::Number(units) => (violation::Code::OutOfRange, Money::from_units(units)),
            Value::Text(text) => {
                let money = Money::parse(&text);
                // Whether a text is no number or too fine a one is told by one sentence.
                (if money.is_some() { violation::Code::OutOfRange } else { violation::Code::WrongType }, money)
            }
            _ => (violation::Code::WrongType, None),
        };
        let money = money.filter(|money| range.contains(&money.micros()));
        if money.is_none() {
            let expected =
                format!("an amount from {units_min} to {AMOUNT_MAX} with at most 6 decimals, as a number or a text");
            self.wrong(place, code, expected);
        }
        money
    }

    fn source_id(&mut self, value: Option<Value>) -> Option<String> {
        let code = match value? {
            Value::Text(text) if (1..=SOURCE_ID_MAX).contains(&text.chars().count()) => return Some(text.into_owned()),
            Value::Text(_) => violation::Code::OutOfRange,
            _ => violation::Code::WrongType,
        };
        self.wrong("/source_id", code, format!("a string of 1 to {SOURCE_ID_MAX} characters"));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "01a2019c-a103-7211-a68a-e6ec9bed033f";

    fn entries<'a>(entries: &[(&'a str, Value<'a>)]) -> Value<'a> {
        Value::Map(entries.iter().map(|(key, value)| ((*key).into(), value.clone())).collect())
    }

    fn text(text: &str) -> Value<'_> {
        Value::Text(text.into())
    }

    /// A clock at 1 000 000, and times that are written as milliseconds.
    fn read(value: Value) -> Result<Outcome, Vec<Violation>> {
        Outcome::read(value, 1_000_000, |text| text.parse().ok())
    }

    fn told(value: Value) -> Vec<(String, violation::Code)> {
        let violations = read(value).expect_err("violations");
        violations.into_iter().map(|violation| (violation.pointer, violation.code)).collect()
    }

    #[test]
    fn an_outcome_states_one_fact_or_many() {
        let outcome = read(entries(&[
            ("decision_id", text(ID)),
            ("occurred_at", text("5")),
            ("churned", Value::Bool(false)),
            ("converted", Value::Bool(true)),
            ("revenue", text("12.50")),
            ("contact_cost", Value::Number(0.4)),
            ("source_id", text("crm-1")),
        ]))
        .expect("an outcome");
        assert_eq!(outcome.decision_id.to_string(), ID);
        assert_eq!(
            outcome.facts,
            Facts {
                churned: Some(false),
                converted: Some(true),
                revenue: Money::parse("12.5"),
                contact_cost: Money::from_units(0.4)
            }
        );
        let names: Vec<_> = outcome.facts.stated().map(Fact::name).collect();
        assert_eq!(names, ["retained", "converted", "revenue", "contact_cost"]);
        let one = entries(&[("decision_id", text(ID)), ("occurred_at", text("5")), ("churned", Value::Bool(true))]);
        let stated: Vec<_> = read(one).expect("an outcome").facts.stated().collect();
        assert_eq!(stated, [Fact::Churned]);
    }

    #[test]
    fn null_is_nothing() {
        let base = [("decision_id", text(ID)), ("occurred_at", text("5")), ("churned", Value::Null)];
        assert_eq!(told(entries(&base)), [(String::new(), violation::Code::Missing)]);
        assert_eq!(told(entries(&[])).len(), 3, "id, time and a fact are missing");
    }

    #[test]
    fn the_time_is_bounded_on_both_sides() {
        let at = |ms: i64| {
            let time = ms.to_string();
            let fields = [("decision_id", text(ID)), ("occurred_at", text(&time)), ("churned", Value::Bool(true))];
            read(entries(&fields))
        };
        assert!(at(1_000_000 + AHEAD_MS_MAX).is_ok());
        assert!(at(1_000_000 + AHEAD_MS_MAX + 1).is_err());
        let outcome = at(0).expect("an outcome");
        assert_eq!(outcome.too_early(BEFORE_MS_MAX), None);
        assert_eq!(outcome.too_early(BEFORE_MS_MAX + 1).expect("a violation").pointer, "/occurred_at");
    }

    #[test]
    fn amounts_are_bounded_and_exact() {
        let with = |name: &'static str, value: Value<'static>| {
            read(entries(&[("decision_id", text(ID)), ("occurred_at", text("5")), (name, value)]))
        };
        for legal in ["1000000000", "-1000000000", "0.000001"] {
            assert!(with("revenue", text(legal)).is_ok(), "{legal}");
        }
        for illegal in
            [text("1000000000.000001"), text("ten"), Value::Number(1e10), Value::Number(1e-7), Value::Bool(true)]
        {
            assert!(with("revenue", illegal.clone()).is_err(), "{illegal:?}");
        }
        assert!(with("contact_cost", text("-0.01")).is_err());
    }

    /// Any JSON value of a few levels.
    fn value() -> impl Strategy<Value = Value<'static>> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            (-1e13..1e13_f64).prop_map(Value::Number),
            "\\PC{0,12}".prop_map(|text| Value::Text(text.into())),
            Just(text(ID)),
            Just(text("17")),
        ];
        leaf.prop_recursive(2, 12, 4, |inner| {
            let key = prop_oneof![proptest::sample::select(&FIELDS[..]).prop_map(str::to_owned), "[a-z]{0,6}"];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
                prop::collection::vec((key.prop_map(Into::into), inner), 0..8).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_comes_is_an_outcome_with_a_fact_or_told_what_is_wrong(value in value()) {
            match read(value) {
                Ok(outcome) => prop_assert!(outcome.facts.stated().count() > 0),
                Err(violations) => prop_assert!((1..=LISTED_MAX).contains(&violations.len())),
            }
        }

        #[test]
        fn the_order_of_the_fields_means_nothing(order in Just(vec![0, 1, 2, 3, 4]).prop_shuffle()) {
            let fields = [
                ("decision_id", text(ID)), ("occurred_at", text("5")), ("churned", Value::Bool(true)),
                ("revenue", text("1")), ("source_id", text("s")),
            ];
            let shuffled: Vec<_> = order.into_iter().map(|at| fields[at].clone()).collect();
            prop_assert_eq!(read(entries(&shuffled)), read(entries(&fields)));
        }

        #[test]
        fn an_amount_is_the_same_as_a_number_and_as_a_text(micros in -1_000_000_000_000_000_i64..=1_000_000_000_000_000) {
            let written = Money::parse(&format!("{}{}.{:06}", if micros < 0 { "-" } else { "" }, micros.abs() / 1_000_000, micros.abs() % 1_000_000)).expect("an amount");
            let base = |value| entries(&[("decision_id", text(ID)), ("occurred_at", text("5")), ("revenue", value)]);
            let as_text = written.to_string();
            prop_assert_eq!(read(base(Value::Number(written.units()))), read(base(text(&as_text))));
        }
    }
}
