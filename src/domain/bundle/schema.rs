//! From a record to the model's input vector, by the feature dictionary: encoding and every violation at once.
//! This is on the path of every request: a legal record costs one pass and no allocation.

use std::collections::HashMap;

use smallvec::{SmallVec, smallvec};

use super::feature::{Feature, Kind, Missing, Scalar, Unknown};
use crate::domain::nearest::nearest;
use crate::domain::record::Value;
use crate::domain::violation::{Code, LISTED_MAX, Violation, pointer};

/// The compiled feature dictionary of one model.
#[derive(Debug)]
pub struct Schema {
    encoders: Vec<Encoder>,
    index: HashMap<Box<str>, usize>,
    columns: usize,
}

/// What one value becomes.
type Columns = Box<[f32]>;

#[derive(Debug)]
struct Encoder {
    name: Box<str>,
    offset: usize,
    width: usize,
    rule: Rule,
    /// The columns of an absent value; `None` refuses it.
    missing: Option<Columns>,
}

#[derive(Debug)]
enum Rule {
    Number {
        min: f64,
        max: f64,
        whole: bool,
    },
    /// `known` is sorted by name, for the binary search.
    Category {
        known: Box<[(Box<str>, Columns)]>,
        unknown: Option<Columns>,
    },
}

impl Schema {
    /// The schema of a dictionary. Errors: the sentence of every law that the dictionary breaks.
    pub fn new(dictionary: &[Feature]) -> Result<Self, Vec<String>> {
        let mut problems: Vec<String> = dictionary.iter().flat_map(Feature::problems).collect();
        if dictionary.is_empty() || dictionary.len() > super::feature::FEATURES_MAX {
            problems.push(format!("a dictionary has 1 to {} features", super::feature::FEATURES_MAX));
        }
        let columns: usize = dictionary.iter().map(Feature::width).sum();
        if columns > super::feature::COLUMNS_MAX {
            problems.push(format!("{columns} columns are more than {}", super::feature::COLUMNS_MAX));
        }
        let mut index = HashMap::with_capacity(dictionary.len());
        for (position, feature) in dictionary.iter().enumerate() {
            if index.insert(feature.name.as_str().into(), position).is_some() {
                problems.push(format!("feature \"{}\" stands more than once", feature.name));
            }
        }
        let mut codes: Vec<&str> = dictionary.iter().filter_map(|f| Some(f.reason.as_ref()?.code.as_str())).collect();
        codes.sort_unstable();
        for pair in codes.windows(2).filter(|pair| pair[0] == pair[1]) {
            problems.push(format!("the reason code \"{}\" stands more than once", pair[0]));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut offset = 0;
        let encoders = dictionary
            .iter()
            .map(|feature| {
                let encoder = Encoder::new(feature, offset);
                offset += encoder.width;
                encoder
            })
            .collect();
        Ok(Self { encoders, index, columns })
    }

    /// The number of columns of the model's input.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The names of the features, in dictionary order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.encoders.iter().map(|encoder| &*encoder.name)
    }

    /// The columns of each feature, in dictionary order.
    pub fn spans(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        self.encoders.iter().map(|encoder| encoder.offset..encoder.offset + encoder.width)
    }

    /// Writes the input vector of `features` into `row`, which has [`columns`](Self::columns) places.
    ///
    /// Errors: every violation, at most [`LISTED_MAX`] of them, with pointers below `/features`; `row` is then in no
    /// useful state.
    pub fn vectorize<K: AsRef<str>>(&self, features: &[(K, Value)], row: &mut [f32]) -> Result<(), Vec<Violation>> {
        assert_eq!(row.len(), self.columns, "the row has a place for every column");
        let mut violations = Vec::new();
        let mut seen: SmallVec<[bool; 64]> = smallvec![false; self.encoders.len()];
        // Most callers write their features in dictionary order: then the next one is a string comparison away, and
        // the map is not asked.
        let mut expected = 0;
        for (name, value) in features {
            let name = name.as_ref();
            let position = match self.encoders.get(expected) {
                Some(encoder) if *encoder.name == *name => Some(expected),
                _ => self.index.get(name).copied(),
            };
            let Some(position) = position else {
                let known = "a feature of the model's dictionary";
                violations.push(
                    Violation::new(pointer("/features", name), Code::UnknownName, known)
                        .or_nearest(nearest(name, self.names())),
                );
                if violations.len() >= LISTED_MAX {
                    break;
                }
                continue;
            };
            expected = position + 1;
            let encoder = &self.encoders[position];
            if std::mem::replace(&mut seen[position], true) {
                violations.push(Violation::new(pointer("/features", name), Code::Duplicate, "one value"));
                if violations.len() >= LISTED_MAX {
                    break;
                }
                continue;
            }
            if let Err(violation) = encoder.encode(value, &mut row[encoder.offset..encoder.offset + encoder.width]) {
                violations.push(violation);
            }
        }
        for (encoder, seen) in self.encoders.iter().zip(&seen) {
            if !seen
                && let Err(violation) =
                    encoder.encode(&Value::Null, &mut row[encoder.offset..encoder.offset + encoder.width])
            {
                violations.push(violation);
            }
        }
        violations.truncate(LISTED_MAX);
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }
}

impl Encoder {
    fn new(feature: &Feature, offset: usize) -> Self {
        let columns_of = |category: &str| -> Option<Columns> {
            feature.categories.as_ref()?.get(category).map(|columns| columns.as_slice().into())
        };
        let rule = match feature.kind {
            Kind::Number | Kind::Integer => {
                let (min, max) = feature.range.map_or((f64::MIN, f64::MAX), |range| (range.min, range.max));
                Rule::Number { min, max, whole: feature.kind == Kind::Integer }
            }
            Kind::Category => Rule::Category {
                // A BTreeMap gives its keys sorted.
                known: feature
                    .categories
                    .iter()
                    .flatten()
                    .map(|(name, columns)| (name.as_str().into(), columns.as_slice().into()))
                    .collect(),
                unknown: match &feature.unknown {
                    Some(Unknown::As(category)) => columns_of(category),
                    _ => None,
                },
            },
        };
        let missing = match &feature.missing {
            Missing::Refuse => None,
            Missing::Nan => Some([f32::NAN].into()),
            Missing::Default(Scalar::Number(value)) => Some([*value as f32].into()),
            Missing::Default(Scalar::Text(category)) => columns_of(category),
        };
        Self { name: feature.name.as_str().into(), offset, width: feature.width(), rule, missing }
    }

    fn encode(&self, value: &Value, row: &mut [f32]) -> Result<(), Violation> {
        match (&self.rule, value) {
            (Rule::Number { min, max, whole }, Value::Number(number)) => {
                if !(*min..=*max).contains(number) {
                    return Err(self.violation(Code::OutOfRange));
                }
                if *whole && number.fract() != 0.0 {
                    return Err(self.violation(Code::WrongType));
                }
                row[0] = *number as f32;
                Ok(())
            }
            (Rule::Category { known, unknown }, Value::Text(text)) => {
                let found = known.binary_search_by(|(name, _)| (**name).cmp(text)).ok().map(|at| &known[at].1);
                match found.or(unknown.as_ref()) {
                    Some(columns) => {
                        row.copy_from_slice(columns);
                        Ok(())
                    }
                    None => Err(self
                        .violation(Code::UnknownCategory)
                        .or_nearest(nearest(text, known.iter().map(|(name, _)| &**name)))),
                }
            }
            (_, Value::Null) => match &self.missing {
                Some(columns) => {
                    row.copy_from_slice(columns);
                    Ok(())
                }
                None => Err(self.violation(Code::Missing)),
            },
            _ => Err(self.violation(Code::WrongType)),
        }
    }

    fn violation(&self, code: Code) -> Violation {
        Violation::new(pointer("/features", &self.name), code, self.expected())
    }

    /// The legal values in words. At most a dozen categories are named: the whole list stands in the card.
    fn expected(&self) -> String {
        let null = if self.missing.is_some() { ", or null" } else { "" };
        match &self.rule {
            Rule::Number { min, max, whole } => {
                format!("{} from {min} to {max}{null}", if *whole { "a whole number" } else { "a number" })
            }
            Rule::Category { known, .. } => {
                let names: Vec<String> = known.iter().take(12).map(|(name, _)| format!("\"{name}\"")).collect();
                let more = if known.len() > 12 { ", …" } else { "" };
                format!("one of {}{more}{null}", names.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::borrow::Cow;

    fn dictionary() -> Vec<Feature> {
        serde_json::from_str(include_str!("../../../tests/data/dictionary.json")).expect("a legal dictionary")
    }

    fn text(text: &str) -> Value<'_> {
        Value::Text(Cow::Borrowed(text))
    }

    fn encode(features: &[(&str, Value)]) -> Result<Vec<f32>, Vec<Violation>> {
        let schema = Schema::new(&dictionary()).expect("a legal dictionary");
        let mut row = vec![0.0; schema.columns()];
        schema.vectorize(features, &mut row).map(|()| row)
    }

    #[test]
    fn encodes_in_dictionary_order_whatever_the_order_given() {
        let expected = vec![12.0, 0.0, 1.0, 0.0, 29.5];
        let ordered =
            [("tenure", Value::Number(12.0)), ("Contract", text("One year")), ("Charges", Value::Number(29.5))];
        assert_eq!(encode(&ordered), Ok(expected.clone()));
        let reversed: Vec<_> = ordered.iter().cloned().rev().collect();
        assert_eq!(encode(&reversed), Ok(expected));
    }

    #[test]
    fn a_missing_value_means_what_the_dictionary_says() {
        let row =
            encode(&[("tenure", Value::Number(0.0)), ("Contract", text("Two year"))]).expect("Charges may be missing");
        assert!(row[4].is_nan());
        let row = encode(&[("tenure", Value::Number(0.0)), ("Contract", text("Two year")), ("Charges", Value::Null)]);
        assert!(row.expect("null is missing")[4].is_nan());
    }

    #[test]
    fn every_violation_is_told_at_once_with_the_nearest_word() {
        let violations = encode(&[
            ("tenur", Value::Number(1.0)),
            ("Contract", text("one year")),
            ("Charges", text("29.5")),
            ("Charges", Value::Number(1.0)),
        ])
        .expect_err("four things are wrong");
        let told: Vec<_> = violations.iter().map(|v| (v.pointer.as_str(), v.code, v.nearest.as_deref())).collect();
        assert_eq!(
            told,
            [
                ("/features/tenur", Code::UnknownName, Some("tenure")),
                ("/features/Contract", Code::UnknownCategory, Some("One year")),
                ("/features/Charges", Code::WrongType, None),
                ("/features/Charges", Code::Duplicate, None),
                ("/features/tenure", Code::Missing, None),
            ]
        );
    }

    #[test]
    fn numbers_keep_their_range_and_their_kind() {
        let code = |value| {
            encode(&[("tenure", value), ("Contract", text("One year"))]).map_err(|violations| violations[0].code)
        };
        assert!(code(Value::Number(0.0)).is_ok() && code(Value::Number(120.0)).is_ok());
        assert_eq!(code(Value::Number(-1.0)), Err(Code::OutOfRange));
        assert_eq!(code(Value::Number(121.0)), Err(Code::OutOfRange));
        assert_eq!(code(Value::Number(1.5)), Err(Code::WrongType));
        assert_eq!(code(Value::Bool(true)), Err(Code::WrongType));
        assert_eq!(code(Value::Null), Err(Code::Missing));
    }

    #[test]
    fn a_broken_dictionary_says_every_broken_law() {
        let mut features = dictionary();
        features[0].range = None;
        features[1].missing = Missing::Nan;
        features[2].name = "tenure".to_owned();
        let problems = Schema::new(&features).expect_err("three laws are broken");
        assert_eq!(problems.len(), 3, "{problems:#?}");
    }

    proptest! {
        /// Violations stay bounded and nothing panics, whatever names and values come.
        #[test]
        fn any_record_is_encoded_or_refused(entries in prop::collection::vec(("[a-zA-Z~/]{0,12}|tenure|Contract|Charges", 0..4_u8, any::<f64>()), 0..200)) {
            let features: Vec<(&str, Value)> = entries.iter().map(|(name, kind, number)| (name.as_str(), match kind {
                0 => Value::Null,
                1 => Value::Number(if number.is_finite() { *number } else { 0.0 }),
                2 => text("One year"),
                _ => Value::List(vec![]),
            })).collect();
            match encode(&features) {
                Ok(row) => prop_assert_eq!(row.len(), 5),
                Err(violations) => prop_assert!((1..=LISTED_MAX).contains(&violations.len())),
            }
        }
    }
}
