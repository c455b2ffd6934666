//! Conditions of rules: a field and the values of it that they are for. Because a condition is a set of values and nothing else, it can be
//! decided before a policy is applied whether it can ever hold and whether two of them can hold at once.

use std::fmt;

use smallvec::SmallVec;

use crate::domain::bundle::feature::{self, Feature, Scalar, Unknown};
use crate::domain::interval::Interval;
use crate::domain::nearest::nearest;
use crate::domain::record::Value;
use crate::domain::violation::Code;

/// Where something stands in a document.
#[derive(Debug, Clone, PartialEq)]
pub struct At {
    /// Its line, from 1.
    pub line: u32,
    /// Its path, such as `segments[0].when.tenure`.
    pub path: String,
}

impl At {
    /// The place of `key` in the table that stands here, until its own line is known.
    pub fn key(&self, key: &str) -> Self {
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Self { line: self.line, path }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, if self.path.is_empty() { "policy" } else { &self.path })
    }
}

/// Something that a policy reads of a customer: a feature, or an entry of the context.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its name; of an entry of the context without `context.`.
    pub name: String,
    /// What an entry of the context may be; `None` for a feature, which its dictionary judges.
    pub context: Option<Domain>,
    /// Where it is first named.
    pub at: At,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.context.is_some() { "context." } else { "" }, self.name)
    }
}

/// The legal values of a field.
#[derive(Debug, Clone, PartialEq)]
pub struct Domain {
    /// Their type.
    pub kind: Kind,
    /// What an absent or null value means.
    pub missing: Missing,
}

/// The type of a field's values.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Numbers from `min` to `max`.
    Number {
        /// The least.
        min: f64,
        /// The greatest.
        max: f64,
        /// Whether only whole ones are legal.
        whole: bool,
    },
    /// Some strings.
    Category {
        /// Which.
        known: Vec<String>,
        /// The one that any other counts as; `None` refuses others.
        unknown: Option<String>,
    },
    /// True or false.
    Boolean,
}

/// What an absent or null value means.
#[derive(Debug, Clone, PartialEq)]
pub enum Missing {
    /// The request is refused.
    Refuse,
    /// Nothing is known, and no condition on it holds.
    Unknown,
    /// It counts as this value.
    Default(Fixed),
}

/// A value that stands in a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Fixed {
    /// Of a number.
    Number(f64),
    /// Of a category.
    Text(String),
    /// Of a boolean.
    Bool(bool),
}

/// What is known of a field of one customer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Known<'v> {
    /// Nothing.
    Nothing,
    /// A number.
    Number(f64),
    /// A category.
    Text(&'v str),
    /// Whether it is so.
    Bool(bool),
}

/// What is known of each field that a policy reads, in the order of its fields; behind them, where a model estimates uplifts, what it
/// says of each intervention, in the order of the policy.
pub type Values<'v> = SmallVec<[Known<'v>; 8]>;

/// Holds for some values of one field.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// The place of the field among those of the policy.
    pub field: usize,
    /// The values.
    pub test: Test,
    /// Where it stands.
    pub at: At,
}

/// The values that a condition holds for.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// Numbers.
    Within(Interval),
    /// Categories.
    OneOf(Vec<String>),
    /// This boolean.
    Is(bool),
}

impl Domain {
    /// The legal values of a feature.
    pub fn of(feature: &Feature) -> Self {
        let kind = match feature.kind {
            feature::Kind::Number | feature::Kind::Integer => {
                let (min, max) = feature.range.map_or((f64::MIN, f64::MAX), |range| (range.min, range.max));
                Kind::Number { min, max, whole: feature.kind == feature::Kind::Integer }
            }
            feature::Kind::Category => Kind::Category {
                known: feature.categories.iter().flat_map(|categories| categories.keys().cloned()).collect(),
                unknown: match &feature.unknown {
                    Some(Unknown::As(category)) => Some(category.clone()),
                    _ => None,
                },
            },
        };
        let missing = match &feature.missing {
            feature::Missing::Refuse => Missing::Refuse,
            feature::Missing::Nan => Missing::Unknown,
            feature::Missing::Default(Scalar::Number(number)) => Missing::Default(Fixed::Number(*number)),
            feature::Missing::Default(Scalar::Text(text)) => Missing::Default(Fixed::Text(text.clone())),
        };
        Self { kind, missing }
    }

    /// What `value` says. Errors: why it is not legal.
    pub fn read<'v>(&'v self, value: Option<&'v Value>) -> Result<Known<'v>, Code> {
        match (&self.kind, value) {
            (_, None | Some(Value::Null)) => match &self.missing {
                Missing::Refuse => Err(Code::Missing),
                Missing::Unknown => Ok(Known::Nothing),
                Missing::Default(Fixed::Number(number)) => Ok(Known::Number(*number)),
                Missing::Default(Fixed::Text(text)) => Ok(Known::Text(text)),
                Missing::Default(Fixed::Bool(is)) => Ok(Known::Bool(*is)),
            },
            (Kind::Number { min, max, whole }, Some(Value::Number(number))) => {
                if *whole && number.fract() != 0.0 {
                    Err(Code::WrongType)
                } else if (*min..=*max).contains(number) {
                    Ok(Known::Number(*number))
                } else {
                    Err(Code::OutOfRange)
                }
            }
            (Kind::Category { known, unknown }, Some(Value::Text(text))) => match unknown {
                _ if known.iter().any(|known| known == text) => Ok(Known::Text(text)),
                Some(unknown) => Ok(Known::Text(unknown)),
                None => Err(Code::UnknownCategory),
            },
            (Kind::Boolean, Some(Value::Bool(is))) => Ok(Known::Bool(*is)),
            _ => Err(Code::WrongType),
        }
    }

    /// The legal values in words. At most a dozen categories are named: the whole list stands in the policy.
    pub fn expected(&self) -> String {
        let null = if self.missing == Missing::Refuse { "" } else { ", or null" };
        match &self.kind {
            Kind::Number { min, max, whole } => {
                format!("{} from {min} to {max}{null}", if *whole { "a whole number" } else { "a number" })
            }
            Kind::Category { known, .. } => {
                let names: Vec<String> = known.iter().take(12).map(|name| format!("\"{name}\"")).collect();
                format!("one of {}{}{null}", names.join(", "), if known.len() > 12 { ", …" } else { "" })
            }
            Kind::Boolean => format!("true or false{null}"),
        }
    }
}

impl Condition {
    /// Whether it holds for what is known of its field. Of nothing it does not.
    pub fn holds(&self, values: &[Known]) -> bool {
        match (&self.test, values.get(self.field)) {
            (Test::Within(interval), Some(Known::Number(number))) => interval.contains(*number),
            (Test::OneOf(categories), Some(Known::Text(text))) => categories.iter().any(|category| category == text),
            (Test::Is(wanted), Some(Known::Bool(is))) => wanted == is,
            _ => false,
        }
    }

    /// Why it makes no sense for `field`, which has the values of `domain`: a wrong type, an unknown category, or no value at all for
    /// which it holds.
    pub fn problem(&self, field: &Field, domain: &Domain) -> Option<String> {
        match (&self.test, &domain.kind) {
            (Test::Within(interval), Kind::Number { min, max, whole }) => {
                let possible = interval.and(&Interval::closed(*min, *max));
                possible.is_empty(*whole).then(|| {
                    format!("can never hold: {field} is {}, and none of it is in {interval}", domain.expected())
                })
            }
            (Test::OneOf(categories), Kind::Category { known, .. }) => {
                let stranger = categories.iter().find(|category| !known.contains(category))?;
                let meant = nearest(stranger, known.iter().map(String::as_str));
                let meant = meant.map_or(String::new(), |meant| format!("; did you mean \"{meant}\"?"));
                Some(format!("\"{stranger}\" is no value of {field}{meant}"))
            }
            (Test::Is(_), Kind::Boolean) => None,
            (_, Kind::Number { .. }) => {
                Some(format!("{field} is a number: expected an interval such as \"[0, 12)\", or one number"))
            }
            (_, Kind::Category { .. }) => Some(format!("{field} is a category: expected a list such as [\"…\"]")),
            (_, Kind::Boolean) => Some(format!("{field} is a boolean: expected true or false")),
        }
    }

    /// Whether both can hold for one value of the same field. Where its domain is not known yet, only what is certain counts.
    fn meets(&self, other: &Self, domain: Option<&Domain>) -> bool {
        match (&self.test, &other.test) {
            (Test::Within(one), Test::Within(other)) => {
                let both = one.and(other);
                match domain.map(|domain| &domain.kind) {
                    Some(Kind::Number { min, max, whole }) => !both.and(&Interval::closed(*min, *max)).is_empty(*whole),
                    // If a whole number is in both, then both can hold whatever the numbers of this field are.
                    _ => !both.is_empty(true),
                }
            }
            (Test::OneOf(one), Test::OneOf(other)) => one.iter().any(|category| other.contains(category)),
            (Test::Is(one), Test::Is(other)) => one == other,
            _ => false,
        }
    }
}

/// Whether there can be a customer for whom all of `one` and all of `other` hold: no field keeps them apart.
pub fn can_meet<'d>(one: &[Condition], other: &[Condition], domain_of: impl Fn(usize) -> Option<&'d Domain>) -> bool {
    one.iter().all(|condition| {
        let same = other.iter().find(|other| other.field == condition.field);
        same.is_none_or(|other| condition.meets(other, domain_of(condition.field)))
    })
}
