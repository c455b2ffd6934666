//! Strict JSON (RFC 8259) into plain values: the order and the repetition of keys are kept for the reader to judge, depth is
//! bounded, and strings are borrowed from the body. What the values mean is not known here.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::domain::record::Value;

/// Why a text is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Error {
    /// It is not JSON; where and why, without a piece of the text.
    Malformed(String),
    /// It has more levels than allowed.
    TooDeep,
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

/// The error's reason and place. Only syntax errors can come here, and their text quotes nothing of the input.
pub(super) fn malformed(error: &serde_json::Error) -> Error {
    Error::Malformed(error.to_string())
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
    fn a_message_quotes_nothing_of_the_text() {
        let Err(Error::Malformed(message)) = parse(br#"{"customer_id": "secret-name" oops}"#, 4) else {
            panic!("malformed")
        };
        assert!(!message.contains("secret") && !message.contains("oops"), "{message}");
        assert!(message.contains("line 1 column"), "{message}");
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(text in "[\\[\\]{}:,\"a0 1.e-]{0,40}") {
            let ours = parse(text.as_bytes(), 100).is_ok();
            prop_assert_eq!(ours, serde_json::from_str::<serde_json::Value>(&text).is_ok());
        }
    }
}
