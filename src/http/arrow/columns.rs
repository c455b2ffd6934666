//! The columns of a stream by the feature dictionary, and their rows as records: types are checked once, with the schema; values with
//! each row.

use std::borrow::Cow;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, BooleanArray, LargeStringArray, RecordBatch, StringArray, StringViewArray};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, Schema};

use super::super::extract::{CONTEXT_MAX, context_violations, customer_id};
use super::super::json;
use super::messages::{is_number, is_read, is_text};
use crate::domain::bundle::card::Card;
use crate::domain::bundle::feature::{Feature, Kind, Missing};
use crate::domain::nearest::nearest;
use crate::domain::policy::fit::{AUDIT, AUDIT_MAX};
use crate::domain::record::{Entries, Record, Value};
use crate::domain::violation::{Code, LISTED_MAX, Violation, pointer};

/// The longest text of a cell, in bytes. A dictionary can say one text of the body in every row: without a bound a small body could be
/// hours of work.
const CELL_BYTES_MAX: usize = 1_024;
const CUSTOMER: &str = "customer_id";

/// Which column of a stream is what.
#[derive(Debug)]
pub(super) struct Columns {
    customer: usize,
    /// In the order of the dictionary, since rows are read faster then.
    features: Vec<Column>,
    context: Vec<Column>,
    audit: Vec<Column>,
}

/// A column by its place in the schema.
#[derive(Debug)]
struct Column {
    at: usize,
    name: String,
}

impl Columns {
    /// The columns of `schema` for the model of `card`.
    ///
    /// Errors: every column that is unknown, missing, there twice or of a wrong type, as the place of a row that it would fill.
    pub(super) fn new(schema: &Schema, card: &Card) -> Result<Self, Vec<Violation>> {
        let mut violations = Vec::new();
        let mut customer = None;
        let mut features: Vec<Option<Column>> = card.features.iter().map(|_| None).collect();
        let (mut context, mut audit) = (Vec::<Column>::new(), Vec::<Column>::new());
        for (at, field) in schema.fields().iter().enumerate() {
            // What is looked at, held and filled for each row is bounded before anything is.
            if violations.len() >= LISTED_MAX || context.len() > CONTEXT_MAX || audit.len() > AUDIT_MAX {
                break;
            }
            let name = field.name().as_str();
            let column = |name: &str| Column { at, name: name.to_owned() };
            let known = card.features.iter().position(|feature| feature.name == name);
            let (place, wanted, is_twice) = if name == CUSTOMER {
                ("/customer_id".to_owned(), Wanted::Texts, customer.replace(at).is_some())
            } else if let Some(known) = known {
                let wanted = Wanted::of(&card.features[known]);
                (pointer("/features", name), wanted, features[known].replace(column(name)).is_some())
            } else if let Some(name) = name.strip_prefix("context.audit.") {
                let is_twice = audit.iter().any(|column| column.name == name);
                audit.push(column(name));
                (pointer("/context/audit", name), Wanted::Texts, is_twice)
            } else if let Some(name) = name.strip_prefix("context.").filter(|name| *name != AUDIT) {
                let is_twice = context.iter().any(|column| column.name == name);
                context.push(column(name));
                (pointer("/context", name), Wanted::Any, is_twice)
            } else {
                violations.push(unknown(name, card));
                continue;
            };
            if is_twice {
                violations.push(Violation::new(place, Code::Duplicate, "one column"));
            } else if !wanted.allows(field.data_type()) {
                let expected = format!("{}; this one is of {}", wanted.words(), words(field.data_type()));
                violations.push(Violation::new(place, Code::WrongType, expected));
            }
        }
        if customer.is_none() {
            violations.push(Violation::new("/customer_id", Code::Missing, Wanted::Texts.words()));
        }
        if context.len() + usize::from(!audit.is_empty()) > CONTEXT_MAX {
            violations.push(Violation::new("/context", Code::TooMany, format!("at most {CONTEXT_MAX} columns")));
        }
        if audit.len() > AUDIT_MAX {
            violations.push(Violation::new("/context/audit", Code::TooMany, format!("at most {AUDIT_MAX} columns")));
        }
        let missing = card
            .features
            .iter()
            .zip(&features)
            .filter(|(feature, column)| column.is_none() && matches!(feature.missing, Missing::Refuse));
        violations.extend(missing.map(|(feature, _)| {
            Violation::new(pointer("/features", &feature.name), Code::Missing, Wanted::of(feature).words())
        }));
        violations.truncate(LISTED_MAX);
        match customer {
            Some(customer) if violations.is_empty() => {
                Ok(Self { customer, features: features.into_iter().flatten().collect(), context, audit })
            }
            _ => Err(violations),
        }
    }

    /// The rows of `batch`, which is of the schema.
    pub(super) fn table<'b>(&'b self, batch: &'b RecordBatch) -> Table<'b> {
        let named = |columns: &'b [Column]| -> Vec<(&'b str, Cells<'b>)> {
            columns.iter().map(|column| (column.name.as_str(), Cells::new(batch.column(column.at)))).collect()
        };
        Table {
            customer: Cells::new(batch.column(self.customer)),
            features: named(&self.features),
            context: named(&self.context),
            audit: named(&self.audit),
        }
    }
}

fn unknown(name: &str, card: &Card) -> Violation {
    let known = "customer_id, a feature by its name, context.NAME or context.audit.NAME";
    // A name that is too long is told without it.
    let shown = if name.len() <= CELL_BYTES_MAX { name } else { "" };
    let names = card.features.iter().map(|feature| feature.name.as_str());
    Violation::new(pointer("", shown), Code::UnknownName, known).or_nearest(nearest(shown, names.chain([CUSTOMER])))
}

/// What the cells of a column have to be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wanted {
    Numbers,
    Texts,
    Any,
}

impl Wanted {
    fn of(feature: &Feature) -> Self {
        match feature.kind {
            Kind::Number | Kind::Integer => Wanted::Numbers,
            Kind::Category => Wanted::Texts,
        }
    }

    /// Without values there is nothing to have a type.
    fn allows(self, data_type: &DataType) -> bool {
        match (self, data_type) {
            (_, DataType::Null) => true,
            (Wanted::Numbers, other) => is_number(other),
            (Wanted::Texts, DataType::Dictionary(_, values)) => is_text(values),
            (Wanted::Texts, other) => is_text(other),
            (Wanted::Any, other) => is_read(other),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Wanted::Numbers => "a column of numbers: integers, float32 or float64",
            Wanted::Texts => "a column of texts: utf8, or a dictionary of them",
            Wanted::Any => "a column of numbers, texts or booleans",
        }
    }
}

/// A type by its first word: what is in it could be long.
fn words(data_type: &DataType) -> String {
    let text = data_type.to_string();
    text.split(['(', '<', ' ']).next().unwrap_or_default().chars().take(32).collect()
}

/// The rows of a record batch.
pub(super) struct Table<'b> {
    customer: Cells<'b>,
    features: Vec<(&'b str, Cells<'b>)>,
    context: Vec<(&'b str, Cells<'b>)>,
    audit: Vec<(&'b str, Cells<'b>)>,
}

impl Table<'_> {
    /// The record in a row. Where it is broken, `check` is asked for the violations of the features, so that everything is told at once.
    pub(super) fn record(
        &self,
        row: usize,
        check: impl FnOnce(&Record) -> Vec<Violation>,
    ) -> Result<Record<'_>, Vec<Violation>> {
        let mut violations = Vec::new();
        let id = self.customer.value(row).map_err(|wrong| wrong.at("/customer_id".to_owned()));
        let id = id.and_then(|value| customer_id(Some(value))).unwrap_or_else(|violation| {
            violations.push(violation);
            "".into()
        });
        let mut features = Entries::with_capacity(self.features.len());
        features.extend(entries(&self.features, row, "/features", &mut violations));
        // What a row does not say of the context is not there.
        let is_said = |(_, value): &(Cow<str>, Value)| *value != Value::Null;
        let mut context: Entries = Entries::new();
        context.extend(entries(&self.context, row, "/context", &mut violations).filter(is_said));
        let audit: Entries = entries(&self.audit, row, "/context/audit", &mut violations).filter(is_said).collect();
        if !audit.is_empty() {
            context.push((Cow::Borrowed(AUDIT), Value::Map(audit)));
        }
        context_violations(&context, &mut violations);
        let record = Record { customer_id: id, features, context, reasons: 0, counterfactuals: 0 };
        if violations.is_empty() {
            return Ok(record);
        }
        violations.extend(check(&record));
        violations.truncate(LISTED_MAX);
        Err(violations)
    }
}

fn entries<'t>(
    columns: &'t [(&str, Cells)],
    row: usize,
    place: &str,
    violations: &mut Vec<Violation>,
) -> impl Iterator<Item = (Cow<'t, str>, Value<'t>)> {
    columns.iter().filter_map(move |(name, cells)| match cells.value(row) {
        Ok(value) => Some((Cow::Borrowed(*name), value)),
        Err(wrong) => {
            violations.push(wrong.at(pointer(place, name)));
            None
        }
    })
}

/// Why the value of a cell is not taken.
enum Wrong {
    Infinite,
    TooLong,
}

impl Wrong {
    fn at(self, place: String) -> Violation {
        let expected = match self {
            Wrong::Infinite => "a finite number".to_owned(),
            Wrong::TooLong => format!("a text of at most {CELL_BYTES_MAX} bytes"),
        };
        Violation::new(place, Code::OutOfRange, expected)
    }
}

/// The cells of a column, in the form in which they are read fastest.
enum Cells<'b> {
    Missing,
    Numbers { values: Vec<f64>, nulls: Option<&'b NullBuffer> },
    Flags(&'b BooleanArray),
    Texts(&'b StringArray),
    LargeTexts(&'b LargeStringArray),
    TextViews(&'b StringViewArray),
    Coded { keys: Vec<usize>, nulls: Option<&'b NullBuffer>, texts: Box<Cells<'b>> },
}

impl<'b> Cells<'b> {
    /// Those of `array`. What no column may be is missing throughout: the schema was checked.
    fn new(array: &'b ArrayRef) -> Self {
        match array.data_type() {
            DataType::Boolean => Cells::Flags(array.as_boolean()),
            DataType::Utf8 => Cells::Texts(array.as_string()),
            DataType::LargeUtf8 => Cells::LargeTexts(array.as_string()),
            DataType::Utf8View => Cells::TextViews(array.as_string_view()),
            DataType::Float64 => numbers::<Float64Type>(array, |value| value),
            DataType::Float32 => numbers::<Float32Type>(array, f64::from),
            DataType::Int8 => numbers::<Int8Type>(array, f64::from),
            DataType::Int16 => numbers::<Int16Type>(array, f64::from),
            DataType::Int32 => numbers::<Int32Type>(array, f64::from),
            DataType::Int64 => numbers::<Int64Type>(array, |value| value as f64),
            DataType::UInt8 => numbers::<UInt8Type>(array, f64::from),
            DataType::UInt16 => numbers::<UInt16Type>(array, f64::from),
            DataType::UInt32 => numbers::<UInt32Type>(array, f64::from),
            DataType::UInt64 => numbers::<UInt64Type>(array, |value| value as f64),
            DataType::Dictionary(..) => match array.as_any_dictionary_opt() {
                Some(coded) if !coded.values().is_empty() => Cells::Coded {
                    keys: coded.normalized_keys(),
                    nulls: coded.keys().nulls(),
                    texts: Box::new(Cells::new(coded.values())),
                },
                _ => Cells::Missing,
            },
            _ => Cells::Missing,
        }
    }

    fn value(&self, row: usize) -> Result<Value<'_>, Wrong> {
        let is_null = |nulls: &Option<&NullBuffer>| nulls.is_some_and(|nulls| nulls.is_null(row));
        match self {
            Cells::Missing => Ok(Value::Null),
            Cells::Numbers { values, nulls } => match values[row] {
                // A NaN is how tables of numbers say that there is none.
                value if is_null(nulls) || value.is_nan() => Ok(Value::Null),
                value if value.is_infinite() => Err(Wrong::Infinite),
                value => Ok(Value::Number(value)),
            },
            Cells::Flags(array) => Ok(if array.is_null(row) { Value::Null } else { Value::Bool(array.value(row)) }),
            Cells::Texts(array) => text(array.is_null(row), || array.value(row)),
            Cells::LargeTexts(array) => text(array.is_null(row), || array.value(row)),
            Cells::TextViews(array) => text(array.is_null(row), || array.value(row)),
            Cells::Coded { nulls, .. } if is_null(nulls) => Ok(Value::Null),
            Cells::Coded { keys, texts, .. } => texts.value(keys[row]),
        }
    }
}

fn numbers<T: ArrowPrimitiveType>(array: &ArrayRef, read: impl Fn(T::Native) -> f64) -> Cells<'_> {
    let array = array.as_primitive::<T>();
    Cells::Numbers {
        values: array.values().iter().map(|value| json::as_written(read(*value))).collect(),
        nulls: array.nulls(),
    }
}

fn text<'b>(is_null: bool, read: impl FnOnce() -> &'b str) -> Result<Value<'b>, Wrong> {
    if is_null {
        return Ok(Value::Null);
    }
    match read() {
        text if text.len() > CELL_BYTES_MAX => Err(Wrong::TooLong),
        text => Ok(Value::Text(Cow::Borrowed(text))),
    }
}
