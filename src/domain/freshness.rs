//! How old the features of a request are, where the caller says it: `context.features_at`.

use crate::domain::record::{Entries, Value};
use crate::domain::violation::{Code, Violation, pointer};

/// The entry of the context that says when the features were read, RFC 3339.
pub const FEATURES_AT: &str = "features_at";
/// Over this age, in milliseconds, features are stale.
pub const STALE_MS: u64 = 24 * 3_600_000;

/// When the features of a request were read, milliseconds since 1970, UTC; `None` where nothing is said.
///
/// Errors: the violation of what is no time.
pub fn features_at(context: &Entries) -> Result<Option<i64>, Violation> {
    match context.iter().find(|(name, _)| name == FEATURES_AT).map(|(_, value)| value) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Text(text)) => match text.parse::<jiff::Timestamp>() {
            Ok(time) => Ok(Some(time.as_millisecond())),
            Err(_) => Err(wrong()),
        },
        Some(_) => Err(wrong()),
    }
}

fn wrong() -> Violation {
    Violation::new(pointer("/context", FEATURES_AT), Code::WrongType, "a time after RFC 3339")
}

/// How old the features of a request are at `now_ms`, in milliseconds; what lies ahead is as fresh as can be, since clocks differ.
pub fn age_ms(context: &Entries, now_ms: u64) -> Option<u64> {
    let at = features_at(context).ok()??;
    Some((now_ms as i64).saturating_sub(at).max(0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_said_or_not_and_nonsense_is_refused() {
        let at = |value: Value<'static>| vec![("region".into(), Value::Null), (FEATURES_AT.into(), value)];
        let time = at(Value::Text("1970-01-02T00:00:01+01:00".into()));
        assert_eq!(features_at(&time), Ok(Some(82_801_000)));
        assert_eq!((age_ms(&time, 82_801_500), age_ms(&time, 5)), (Some(500), Some(0)));
        assert_eq!((features_at(&at(Value::Null)), age_ms(&Vec::new(), 7)), (Ok(None), None));
        for bad in [Value::Text("yesterday".into()), Value::Number(7.0)] {
            assert_eq!(features_at(&at(bad)).map_err(|wrong| wrong.pointer), Err("/context/features_at".to_owned()));
        }
    }
}
