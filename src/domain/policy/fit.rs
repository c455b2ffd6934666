//! A policy bound to the dictionary of the model that it is to serve: every name, type and value that its rules speak of is there, every
//! rule can hold, no two segments can hold at once. What is bound reads the fields of a record for the rules.

use super::condition::{At, Condition, Domain, Field, Kind, Known, Missing, Values, can_meet};
use super::{Policy, Segment, Stake};
use crate::domain::bundle::card::Card;
use crate::domain::bundle::feature::Feature;
use crate::domain::nearest::nearest;
use crate::domain::record::{Entries, Record, Value};
use crate::domain::violation::{Code, LISTED_MAX, Violation, pointer};

/// The greatest value at stake, in currency units.
pub const STAKE_MAX: f64 = 1e9;
/// The entry of the context that nobody decides by.
pub const AUDIT: &str = "audit";
/// The most entries of it.
pub const AUDIT_MAX: usize = 32;
/// The longest of its values, in characters.
pub const AUDIT_VALUE_MAX: usize = 128;

/// Reads what a policy wants to know of a record, as the dictionary of one model means it.
#[derive(Debug, Clone, PartialEq)]
pub struct Binding {
    fields: Box<[Bound]>,
    /// For each intervention the column of the model that estimates its uplift; empty where the policy has no use for any.
    uplifts: Box<[Option<usize>]>,
}

#[derive(Debug, Clone, PartialEq)]
struct Bound {
    name: Box<str>,
    domain: Domain,
    is_context: bool,
    /// Where most callers write it: its place in the dictionary.
    place: usize,
}

impl Policy {
    /// Binds the policy to a model: to its dictionary, and each intervention to the estimate of its uplift, where the model has one.
    ///
    /// Errors: everything that does not fit, each with its line.
    pub fn bind_to(&self, card: &Card) -> Result<Binding, Vec<String>> {
        let binding = self.bind(&card.features)?;
        let Some(uplift) = card.uplift.as_ref().filter(|_| self.has_value_at_stake()) else { return Ok(binding) };
        let uplifts: Box<_> = self.interventions.iter().map(|known| uplift.column(&known.action)).collect();
        let is_used = uplifts.iter().any(Option::is_some);
        Ok(Binding { uplifts: if is_used { uplifts } else { Box::default() }, ..binding })
    }

    /// Binds the policy to the dictionary of a model.
    ///
    /// Errors: everything that does not fit, each with its line.
    pub fn bind(&self, dictionary: &[Feature]) -> Result<Binding, Vec<String>> {
        let mut problems = Vec::new();
        let fields: Vec<Option<Bound>> = self
            .fields
            .iter()
            .map(|field| {
                let bound = |domain, place| Bound {
                    name: field.name.as_str().into(),
                    domain,
                    is_context: field.context.is_some(),
                    place,
                };
                if let Some(domain) = &field.context {
                    return Some(bound(domain.clone(), 0));
                }
                let place = dictionary.iter().position(|feature| feature.name == field.name);
                if place.is_none() {
                    let meant = nearest(&field.name, dictionary.iter().map(|feature| feature.name.as_str()));
                    let meant = meant.map_or(String::new(), |meant| format!("; did you mean \"{meant}\"?"));
                    problems.push((field.at.clone(), format!("\"{}\" is no feature of the model{meant}", field.name)));
                }
                place.map(|place| bound(Domain::of(&dictionary[place]), place))
            })
            .collect();
        let domain_of = |field: usize| fields.get(field)?.as_ref().map(|bound| &bound.domain);
        let features = self.conditions().filter(|condition| self.fields[condition.field].context.is_none());
        problems.extend(strange(features, &self.fields, domain_of));
        if let Some(stake) = &self.value_at_stake {
            problems.extend(stake_problems(stake, &self.fields, domain_of));
        }
        problems.extend(overlaps(&self.segments, domain_of));
        if problems.is_empty() {
            return Ok(Binding { fields: fields.into_iter().flatten().collect(), uplifts: Box::default() });
        }
        Err(told(problems))
    }

    fn conditions(&self) -> impl Iterator<Item = &Condition> {
        let segments = self.segments.iter().flat_map(|segment| &segment.when);
        segments.chain(self.interventions.iter().flat_map(|intervention| &intervention.eligible))
    }
}

/// Problems as sentences, in the order of the document.
pub(super) fn told(mut problems: Vec<(At, String)>) -> Vec<String> {
    problems.sort_by_key(|(at, _)| at.line);
    problems.into_iter().map(|(at, text)| format!("{at}: {text}")).collect()
}

/// Conditions that make no sense for their fields, as far as those are known.
pub(super) fn strange<'c, 'd>(
    conditions: impl Iterator<Item = &'c Condition>,
    fields: &[Field],
    domain_of: impl Fn(usize) -> Option<&'d Domain>,
) -> Vec<(At, String)> {
    conditions
        .filter_map(|condition| {
            let problem = condition.problem(&fields[condition.field], domain_of(condition.field)?)?;
            Some((condition.at.clone(), problem))
        })
        .collect()
}

/// Pairs of segments that one customer could belong to.
pub(super) fn overlaps<'d>(segments: &[Segment], domain_of: impl Fn(usize) -> Option<&'d Domain>) -> Vec<(At, String)> {
    let mut problems = Vec::new();
    for (at, later) in segments.iter().enumerate() {
        for earlier in &segments[..at] {
            if let Some(first) = later.when.first()
                && !earlier.when.is_empty()
                && can_meet(&earlier.when, &later.when, &domain_of)
            {
                let place = At { path: format!("segments[{at}].when"), ..first.at };
                let text = format!(
                    "overlaps with the segment \"{}\": a customer can belong to both, so let a condition keep them apart",
                    earlier.name
                );
                problems.push((place, text));
            }
        }
    }
    problems
}

/// What is wrong with a value at stake, as far as its field is known.
pub(super) fn stake_problems<'d>(
    stake: &Stake,
    fields: &[Field],
    domain_of: impl Fn(usize) -> Option<&'d Domain>,
) -> Option<(At, String)> {
    let at = stake.field?;
    let (domain, field) = (domain_of(at)?, &fields[at]);
    let place = At { path: "value_at_stake.from".to_owned(), line: stake.line };
    match &domain.kind {
        Kind::Number { min, .. } if *min < 0.0 => {
            Some((place, format!("{field} may be below 0: give it a range that begins at 0 or more")))
        }
        Kind::Number { max, .. } if max * stake.times > STAKE_MAX => {
            Some((place, format!("{field} may be over {STAKE_MAX} in all: give it a range that ends before")))
        }
        Kind::Number { .. } if domain.missing == Missing::Unknown && stake.default.is_none() => {
            Some((place, format!("{field} may be missing: give a default")))
        }
        Kind::Number { .. } => None,
        _ => Some((place, format!("{field} is no number"))),
    }
}

impl Binding {
    /// What is known of each field of the policy. The features are taken as the model's dictionary judges them.
    ///
    /// Errors: every entry of the context that is not as the policy declares it.
    pub fn read<'v>(&'v self, record: &'v Record) -> Result<Values<'v>, Vec<Violation>> {
        let mut values = Values::new();
        let mut violations = Vec::new();
        for bound in &self.fields {
            let entries = if bound.is_context { &record.context } else { &record.features };
            let value = bound.find(entries);
            values.push(match bound.domain.read(value) {
                Ok(known) => known,
                Err(code) => {
                    if bound.is_context && violations.len() < LISTED_MAX {
                        violations.push(bound.violation(code, value));
                    }
                    Known::Nothing
                }
            });
        }
        if violations.is_empty() { Ok(values) } else { Err(violations) }
    }

    /// Whether the policy decides by what the model estimates of interventions.
    pub fn wants_uplifts(&self) -> bool {
        !self.uplifts.is_empty()
    }

    /// Adds to what was [read](Self::read) what the model estimates of each intervention of the policy, in its order.
    pub fn add_uplifts(&self, values: &mut Values, uplifts: &[f32]) {
        let known =
            |column: &Option<usize>| column.and_then(|column| uplifts.get(column)).map(|uplift| f64::from(*uplift));
        values.extend(self.uplifts.iter().map(|column| known(column).map_or(Known::Nothing, Known::Number)));
    }

    /// What is known of a record of which the model estimates `uplifts`.
    ///
    /// Errors: those of [`read`](Self::read).
    pub fn read_with<'v>(&'v self, record: &'v Record, uplifts: &[f32]) -> Result<Values<'v>, Vec<Violation>> {
        let mut values = self.read(record)?;
        self.add_uplifts(&mut values, uplifts);
        Ok(values)
    }

    /// The entries of the context that the policy declares: name, legal values, whether it may be missing.
    pub fn declared(&self) -> impl Iterator<Item = (&str, &Domain)> {
        self.fields.iter().filter(|bound| bound.is_context).map(|bound| (&*bound.name, &bound.domain))
    }
}

impl Bound {
    fn find<'v>(&self, entries: &'v Entries) -> Option<&'v Value<'v>> {
        match entries.get(self.place) {
            Some((name, value)) if **name == *self.name => Some(value),
            _ => entries.iter().find(|(name, _)| **name == *self.name).map(|(_, value)| value),
        }
    }

    fn violation(&self, code: Code, value: Option<&Value>) -> Violation {
        let violation = Violation::new(pointer("/context", &self.name), code, self.domain.expected());
        match (&self.domain.kind, value) {
            (Kind::Category { known, .. }, Some(Value::Text(text))) => {
                violation.or_nearest(nearest(text, known.iter().map(String::as_str)))
            }
            _ => violation,
        }
    }
}

/// What is wrong with the groups of a customer that only audits look at: `context.audit`, an object of texts. Nobody decides by it.
pub fn audit_violations(context: &Entries) -> Vec<Violation> {
    let Some((_, audit)) = context.iter().find(|(name, _)| name == AUDIT) else { return Vec::new() };
    let place = || pointer("/context", AUDIT);
    match audit {
        Value::Null => Vec::new(),
        Value::Map(groups) if groups.len() > AUDIT_MAX => {
            vec![Violation::new(place(), Code::TooMany, format!("at most {AUDIT_MAX} entries"))]
        }
        // A name that is too long is told without it: a pointer would have its beginning alone.
        Value::Map(groups) if groups.iter().any(|(name, _)| name.chars().count() > AUDIT_VALUE_MAX) => {
            let expected = format!("names of at most {AUDIT_VALUE_MAX} characters");
            vec![Violation::new(place(), Code::OutOfRange, expected)]
        }
        Value::Map(groups) => groups
            .iter()
            .filter_map(|(name, value)| {
                let code = match value {
                    Value::Text(text) if text.chars().count() <= AUDIT_VALUE_MAX => return None,
                    Value::Text(_) => Code::OutOfRange,
                    _ => Code::WrongType,
                };
                let expected = format!("a string of at most {AUDIT_VALUE_MAX} characters");
                Some(Violation::new(pointer(&place(), name), code, expected))
            })
            .collect(),
        _ => vec![Violation::new(place(), Code::WrongType, "an object of strings")],
    }
}

/// The groups that a customer belongs to, by attribute, as far as they are texts; for audits alone.
pub fn audit_groups<'r>(context: &'r Entries) -> impl Iterator<Item = (&'r str, &'r str)> {
    let audit = context.iter().find(|(name, _)| name == AUDIT);
    let groups = audit.and_then(|(_, audit)| if let Value::Map(groups) = audit { Some(groups) } else { None });
    groups.into_iter().flatten().filter_map(|(name, value)| match value {
        Value::Text(text) => Some((name.as_ref(), text.as_ref())),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::document;
    use super::*;

    fn problems(rules: &str) -> String {
        let text = format!(
            "name = \"p\"\ndescription = \"\"\ncurrency = \"EUR\"\n[[tiers]]\nname = \"all\"\nscore = \"[0, 1]\"\nintervention = \"none\"\n{rules}"
        );
        let dictionary: Vec<Feature> =
            serde_json::from_str(include_str!("../../../tests/data/dictionary.json")).expect("a dictionary");
        let policy = document::parse(&text, "v").unwrap_or_else(|problems| panic!("{}", problems.join("\n")));
        policy.bind(&dictionary).map_or_else(|problems| problems.join("\n"), |_| "fits".to_owned())
    }

    fn segments(when: &[&str]) -> String {
        let segment = |(at, when): (usize, &&str)| {
            format!("[[segments]]\nname = \"s{at}\"\ninterventions = {{ all = \"none\" }}\nwhen = {{ {when} }}\n")
        };
        problems(&when.iter().enumerate().map(segment).collect::<String>())
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_line() {
        insta::assert_snapshot!(
            [
                segments(&["tenur = 1"]),
                segments(&["tenure = [\"x\"]"]),
                segments(&["Contract = [\"One yaer\"]"]),
                segments(&["tenure = \"[121, )\""]),
                segments(&["tenure = \"(11, 12)\""]),
                segments(&["Charges = \"(10.2, 10.8)\"", "Charges = \"(10.5, 11)\""]),
                problems("[value_at_stake]\nfrom = \"Charges\"\n"),
                problems("[value_at_stake]\nfrom = \"Contract\"\n"),
            ]
            .join("\n"),
            @r#"
        line 11: segments[0].when.tenur: "tenur" is no feature of the model; did you mean "tenure"?
        line 11: segments[0].when.tenure: tenure is a number: expected an interval such as "[0, 12)", or one number
        line 11: segments[0].when.Contract: "One yaer" is no value of Contract; did you mean "One year"?
        line 11: segments[0].when.tenure: can never hold: tenure is a whole number from 0 to 120, and none of it is in [121, )
        line 11: segments[0].when.tenure: can never hold: tenure is a whole number from 0 to 120, and none of it is in (11, 12)
        line 15: segments[1].when: overlaps with the segment "s0": a customer can belong to both, so let a condition keep them apart
        line 9: value_at_stake.from: Charges may be missing: give a default
        line 9: value_at_stake.from: Contract is no number
        "#
        );
    }

    #[test]
    fn what_keeps_segments_apart_is_seen() {
        assert_eq!(segments(&["tenure = \"[0, 12)\"", "tenure = \"[12, )\""]), "fits");
        // No whole number of months is in both.
        assert_eq!(segments(&["tenure = \"(10, 11.5)\"", "tenure = \"(11.2, 20)\""]), "fits");
        assert_eq!(segments(&["Contract = [\"One year\"]", "Contract = [\"Two year\"], tenure = 5"]), "fits");
        assert_eq!(problems("[value_at_stake]\nfrom = \"Charges\"\ntimes = 12\ndefault = 600\n"), "fits");
    }

    #[test]
    fn groups_for_audits_are_bounded_texts() {
        let codes = |audit: Value<'static>| -> Vec<(String, Code)> {
            let told = audit_violations(&vec![("audit".into(), audit)]);
            told.into_iter().map(|violation| (violation.pointer, violation.code)).collect()
        };
        let groups = |value: Value<'static>| Value::Map(vec![("g".into(), value)]);
        assert_eq!(codes(groups(Value::Text("f".into()))), []);
        assert_eq!(codes(Value::Null), []);
        assert_eq!(codes(groups(Value::Number(1.0))), [("/context/audit/g".into(), Code::WrongType)]);
        assert_eq!(codes(groups(Value::Text("x".repeat(129).into()))), [("/context/audit/g".into(), Code::OutOfRange)]);
        let long = Value::Map(vec![("x".repeat(129).into(), Value::Text("f".into()))]);
        assert_eq!(codes(long), [("/context/audit".into(), Code::OutOfRange)]);
        assert_eq!(codes(Value::Bool(true)), [("/context/audit".into(), Code::WrongType)]);
        let many = (0..33).map(|at| (at.to_string().into(), Value::Text("f".into()))).collect();
        assert_eq!(codes(Value::Map(many)), [("/context/audit".into(), Code::TooMany)]);
    }
}
