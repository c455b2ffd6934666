//! Strict JSON (RFC 8259) into plain values: the order and the repetition of keys are kept for the reader to judge, depth is
//! bounded, and strings are borrowed from the body. And back, for records that came in another form. What the values mean is not known here.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::domain::record::{Entries, Record, Value};

/// Why a text is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Error {
    /// It is not JSON; where and why, without a piece of the text.
    Malformed(String),
    /// It has more levels than allowed.
    TooDeep,
    /// It is something else than an array.
    NoArray,
}

/// Reads `text`, which may have `depth_max` levels of arrays and objects.
pub(super) fn parse(text: &[u8], depth_max: usize) -> Result<Value<'_>, Error> {
    let too_deep = Cell::new(false);
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Seed { level: 0, depth_max, too_deep: &too_deep }.deserialize(&mut deserializer);
    value.and_then(|value| deserializer.end().map(|()| value)).map_err(|error| match too_deep.get() {
        true => Error::TooDeep,
        false => malformed(&error),
    })
}

/// The rows of the array that `text` is, each as it was written; `None` where there are more than `rows_max`. No more than these are ever
/// held: a row may be two bytes, and what is kept of it is sixteen.
pub(super) fn rows(text: &[u8], rows_max: usize) -> Result<Option<Vec<&RawValue>>, Error> {
    let too_many = Cell::new(false);
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let rows = deserializer.deserialize_seq(Rows { rows_max, too_many: &too_many });
    match rows.and_then(|rows| deserializer.end().map(|()| rows)) {
        Ok(rows) => Ok(Some(rows)),
        Err(_) if too_many.get() => Ok(None),
        Err(error) if error.is_data() => Err(Error::NoArray),
        Err(error) => Err(malformed(&error)),
    }
}

/// The error's reason and place. Only syntax errors can come here, and their text quotes nothing of the input.
fn malformed(error: &serde_json::Error) -> Error {
    Error::Malformed(error.to_string())
}

/// Writes `record` as the body of a request that says the same.
pub(super) fn write(record: &Record, text: &mut Vec<u8>) {
    text.extend_from_slice(b"{\"customer_id\":");
    write_text(&record.customer_id, text);
    text.extend_from_slice(b",\"features\":");
    write_entries(&record.features, text);
    if !record.context.is_empty() {
        text.extend_from_slice(b",\"context\":");
        write_entries(&record.context, text);
    }
    text.push(b'}');
}

fn write_entries(entries: &Entries, text: &mut Vec<u8>) {
    text.push(b'{');
    for (position, (name, value)) in entries.iter().enumerate() {
        if position > 0 {
            text.push(b',');
        }
        write_text(name, text);
        text.push(b':');
        write_value(value, text);
    }
    text.push(b'}');
}

fn write_value(value: &Value, text: &mut Vec<u8>) {
    match value {
        Value::Null => text.extend_from_slice(b"null"),
        Value::Bool(flag) => text.extend_from_slice(if *flag { b"true" } else { b"false" }),
        Value::Number(number) => write_number(*number, text),
        Value::Text(words) => write_text(words, text),
        Value::List(values) => {
            text.push(b'[');
            for (position, value) in values.iter().enumerate() {
                if position > 0 {
                    text.push(b',');
                }
                write_value(value, text);
            }
            text.push(b']');
        }
        Value::Map(entries) => write_entries(entries, text),
    }
}

/// Plain data: writing it into memory cannot fail.
fn write_text(words: &str, text: &mut Vec<u8>) {
    let _ = serde_json::to_writer(text, words);
}

fn write_number(number: f64, text: &mut Vec<u8>) {
    let _ = match is_small_whole(number) {
        true => serde_json::to_writer(text, &(number as i64)),
        false => serde_json::to_writer(text, &number),
    };
}

fn is_small_whole(number: f64) -> bool {
    number.fract() == 0.0 && number.abs() < EXACT && !(number == 0.0 && number.is_sign_negative())
}

/// Whole numbers below this are exact.
const EXACT: f64 = (1_u64 << 53) as f64;

/// How often a number is read again until it stays the same.
const REREADS_MAX: usize = 4;

/// The number that is read where `number` is written: the reader is a last digit off in one of many with more than fifteen digits. What
/// is to be decided on as it is recorded has to be this one. Numbers from 1e22 on, which no feature has, may keep being read as another.
pub(super) fn as_written(number: f64) -> f64 {
    let micros = number * 1e6;
    // With so few digits both ways are exact.
    if is_small_whole(number) || (micros.abs() < EXACT && micros.round() / 1e6 == number) || !number.is_finite() {
        return number;
    }
    let mut number = number;
    for _ in 0..REREADS_MAX {
        let mut text = Vec::with_capacity(32);
        write_number(number, &mut text);
        let read = serde_json::from_slice(&text).unwrap_or(number);
        if read == number {
            return number;
        }
        number = read;
    }
    // So many digits are read exactly.
    format!("{number:.14e}").parse().unwrap_or(number)
}

#[derive(Clone, Copy)]
struct Seed<'s> {
    level: usize,
    depth_max: usize,
    too_deep: &'s Cell<bool>,
}

impl Seed<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.level == self.depth_max {
            self.too_deep.set(true);
            return Err(E::custom("too deep"));
        }
        Ok(Self { level: self.level + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value<'de>, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value<'de>, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value<'de>, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value<'de>, E> {
        if value.is_finite() { Ok(Value::Number(value)) } else { Err(E::custom("number out of range")) }
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value<'de>, A::Error> {
        let inner = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
        let inner = self.deeper()?;
        // The envelope has three entries, the features below it some dozens: one allocation each.
        let mut entries = Vec::with_capacity(if self.level == 1 { 32 } else { 4 });
        while let Some(key) = map.next_key_seed(Key)? {
            entries.push((key, map.next_value_seed(inner)?));
        }
        Ok(Value::Map(entries))
    }
}

struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// Reads the rows of an array, and gives up at the first one too many.
struct Rows<'s> {
    rows_max: usize,
    too_many: &'s Cell<bool>,
}

impl<'de> Visitor<'de> for Rows<'_> {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut rows = Vec::new();
        while let Some(row) = sequence.next_element()? {
            if rows.len() == self.rows_max {
                self.too_many.set(true);
                return Err(serde::de::Error::custom("too many rows"));
            }
            rows.push(row);
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keeps_order_and_repetition() {
        let value = parse(br#"{"b": 1, "a": null, "b": "x\n"}"#, 4).expect("JSON");
        let Value::Map(entries) = value else { panic!("an object") };
        let keys: Vec<_> = entries.iter().map(|(key, value)| (key.as_ref(), value.kind())).collect();
        assert_eq!(keys, [("b", "a number"), ("a", "null"), ("b", "a string")]);
    }

    #[test]
    fn refuses_what_is_not_json() {
        for text in [
            "",
            "{",
            "NaN",
            "[Infinity]",
            "1e999",
            "{\"a\":1,}",
            "'a'",
            "{} {}",
            "[1 2]",
            "\"\\ud800\"",
            "01",
            "{a: 1}",
        ] {
            assert!(matches!(parse(text.as_bytes(), 4), Err(Error::Malformed(_))), "{text}");
        }
        assert!(matches!(parse(b"\"\xff\"", 4), Err(Error::Malformed(_))));
    }

    #[test]
    fn depth_is_bounded_before_the_stack_is() {
        assert!(parse(b"[[[[]]]]", 4).is_ok());
        assert_eq!(parse(b"[[[[[]]]]]", 4), Err(Error::TooDeep));
        assert_eq!(parse("[".repeat(1_000_000).as_bytes(), 4), Err(Error::TooDeep));
    }

    #[test]
    fn no_more_rows_are_held_than_there_may_be() {
        let count = |text: &str, rows_max| rows(text.as_bytes(), rows_max).map(|rows| rows.map(|rows| rows.len()));
        assert_eq!((count("[]", 1), count("[1, {\"a\": [2]}, \"x\"]", 3)), (Ok(Some(0)), Ok(Some(3))));
        assert_eq!(count("[1, 2, 3]", 2), Ok(None));
        // What stands behind the row that is one too many is not looked at.
        assert_eq!(count("[1, 2, 3 and whatever", 2), Ok(None));
        for text in ["{}", "7", "null", "\"x\""] {
            assert_eq!(count(text, 2), Err(Error::NoArray), "{text}");
        }
        for text in ["", "[", "[1 2]", "[1,]", "[1] [2]", "[{]"] {
            assert!(matches!(count(text, 9), Err(Error::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn a_message_quotes_nothing_of_the_text() {
        let Err(Error::Malformed(message)) = parse(br#"{"customer_id": "secret-name" oops}"#, 4) else {
            panic!("malformed")
        };
        assert!(!message.contains("secret") && !message.contains("oops"), "{message}");
        assert!(message.contains("line 1 column"), "{message}");
    }

    /// What is written of `record` as a request, read again.
    fn read_again(record: &Record) -> Value<'static> {
        let mut text = Vec::new();
        write(record, &mut text);
        let text: &'static [u8] = text.leak();
        parse(text, 8).expect("JSON")
    }

    proptest! {
        /// A number is decided on as it will be read from the record, and that is the number or its neighbour.
        #[test]
        fn a_number_is_read_as_it_was_decided_on(number in prop_oneof![-1e15..1e15, -1e3..1e3, -1.0..1.0]) {
            let written = as_written(number);
            prop_assert_eq!(as_written(written).to_bits(), written.to_bits());
            prop_assert!((written - number).abs() <= number.abs() * 1e-14);
            for number in [written, as_written((number * 100.0).trunc() / 100.0), as_written(f64::from(number as f32)), number.trunc()] {
                let number = as_written(number);
                let mut text = Vec::new();
                write_number(number, &mut text);
                let Ok(Value::Number(again)) = parse(&text, 1) else { panic!("a number") };
                prop_assert_eq!(again.to_bits(), number.to_bits());
            }
        }

        /// A record is read as what was written, whatever its texts are.
        #[test]
        fn a_record_is_read_as_it_was_written(id in ".{0,20}", name in ".{0,20}", text in ".{0,20}", number in -1e9..1e9, flag: bool) {
            let number = as_written(number);
            let values = || vec![
                (Cow::from(name.clone()), Value::Text(text.clone().into())),
                ("n".into(), Value::Number(number)),
                ("z".into(), Value::Null),
                ("list".into(), Value::List(vec![Value::Bool(flag), Value::Map(Vec::new())])),
            ];
            let record = Record { customer_id: id.clone().into(), features: values(), context: values(), reasons: 0, counterfactuals: 0 };
            let expected = Value::Map(vec![
                ("customer_id".into(), Value::Text(id.into())),
                ("features".into(), Value::Map(values())),
                ("context".into(), Value::Map(values())),
            ]);
            prop_assert_eq!(read_again(&record), expected);
        }

        #[test]
        fn agrees_with_serde_json(text in "[\\[\\]{}:,\"a0 1.e-]{0,40}") {
            let ours = parse(text.as_bytes(), 100).is_ok();
            prop_assert_eq!(ours, serde_json::from_str::<serde_json::Value>(&text).is_ok());
        }
    }
}
