//! From the bytes of a body to a record: media type, size, time, JSON, and the envelope `{customer_id, features, context?, explain?}`.
//! Whether the features are legal is the model's business.

use std::collections::HashSet;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::Shared;
use super::problem::{Code, Problem};
use crate::domain::decision::Arm;
use crate::domain::freshness::features_at;
use crate::domain::nearest::nearest;
use crate::domain::policy::fit::audit_violations;
use crate::domain::reason::{REASONS_DEFAULT, REASONS_MAX};
use crate::domain::record::{Entries, Record, Value};
use crate::domain::violation::{self, LISTED_MAX, Violation, pointer};

/// The media type of one JSON document.
pub(super) const JSON: &str = "application/json";
/// The media type of one JSON document a line.
pub(super) const NDJSON: &str = "application/x-ndjson";

/// The longest customer id, in characters.
pub(super) const CUSTOMER_ID_MAX: usize = 128;
/// The most entries of a context.
pub(super) const CONTEXT_MAX: usize = 64;

/// Which of `known` the body is, by its header; parameters such as `charset=utf-8` are allowed and mean nothing.
pub(super) fn media_type(headers: &HeaderMap, known: &[&'static str]) -> Result<&'static str, Problem> {
    let unsupported = || {
        let known = known.join(" or ");
        Problem::new(
            Code::UnsupportedMediaType,
            format!("expected the header content-type: {known}, without content-encoding"),
        )
    };
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(unsupported());
    }
    let stated = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = stated.split(';').next().unwrap_or_default().trim();
    known.iter().find(|known| known.eq_ignore_ascii_case(essence)).copied().ok_or_else(unsupported)
}

/// The whole body, if it comes within `timeout` and has at most `bytes_max` bytes.
pub(super) async fn whole(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    timeout: Duration,
) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(Code::BodyTooLarge, format!("the body may have {bytes_max} bytes"));
    let stated = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if stated.is_some_and(|length| length > bytes_max) {
        return Err(too_large());
    }
    let collected = tokio::time::timeout(timeout, Limited::new(body, bytes_max).collect());
    match collected.await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => Err(too_large()),
        Ok(Err(_)) => Err(Problem::new(Code::IncompleteBody, "the connection ended before the body did")),
        Err(_) => Err(Problem::new(Code::RequestTimeout, format!("the body has {} ms to arrive", timeout.as_millis()))),
    }
}

/// The record in a body, with the reasons that the address asks for by `top`, or the body by `explain`. Where the envelope is broken, `check` is asked for the violations of the features that could be
/// read, so that everything is told at once.
pub(super) fn record<'a>(
    value: Value<'a>,
    top: Option<usize>,
    check: impl FnOnce(&Record<'a>) -> Vec<Violation>,
) -> Result<Record<'a>, Vec<Violation>> {
    let mut violations = Vec::new();
    let (mut customer_id, mut features, mut context, mut explain) = (None, None, None, None);
    match value {
        Value::Map(entries) => {
            for (key, value) in entries {
                let place = match key.as_ref() {
                    "customer_id" => &mut customer_id,
                    "features" => &mut features,
                    "context" => &mut context,
                    "explain" => &mut explain,
                    unknown => {
                        if violations.len() < LISTED_MAX {
                            let meant = nearest(unknown, ["customer_id", "features", "context", "explain"]);
                            let known = "customer_id, features, context or explain";
                            let violation = Violation::new(pointer("", unknown), violation::Code::UnknownName, known);
                            violations.push(violation.or_nearest(meant));
                        }
                        continue;
                    }
                };
                if place.replace(value).is_some() && violations.len() < LISTED_MAX {
                    violations.push(Violation::new(pointer("", &key), violation::Code::Duplicate, "one value"));
                }
            }
        }
        _ => return Err(vec![Violation::new("", violation::Code::WrongType, "an object")]),
    }
    let readable = matches!(features, Some(Value::Map(_)));
    let customer_id = match customer_id {
        Some(Value::Text(text)) if (1..=CUSTOMER_ID_MAX).contains(&text.chars().count()) => text,
        other => {
            let code = match other {
                None | Some(Value::Null) => violation::Code::Missing,
                Some(Value::Text(_)) => violation::Code::OutOfRange,
                Some(_) => violation::Code::WrongType,
            };
            let expected = format!("a string of 1 to {CUSTOMER_ID_MAX} characters");
            violations.push(Violation::new("/customer_id", code, expected));
            "".into()
        }
    };
    let features = entries(features, "/features", true, &mut violations);
    let context = entries(context, "/context", false, &mut violations);
    if context.len() > CONTEXT_MAX {
        let expected = format!("at most {CONTEXT_MAX} entries");
        violations.push(Violation::new("/context", violation::Code::TooMany, expected));
    } else {
        repeated(&context, "/context", &mut violations);
        violations.extend(audit_violations(&context));
        violations.extend(features_at(&context).err());
    }
    let explain = match explain {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(_) => {
            violations.push(Violation::new("/explain", violation::Code::WrongType, "true or false"));
            false
        }
    };
    let reasons = if explain { top.unwrap_or(REASONS_DEFAULT) } else { top.unwrap_or(0) };
    let record = Record { customer_id, features, context, reasons };
    if violations.is_empty() {
        return Ok(record);
    }
    if readable {
        violations.extend(check(&record));
        violations.truncate(LISTED_MAX);
    }
    Err(violations)
}

fn entries<'a>(value: Option<Value<'a>>, place: &str, required: bool, violations: &mut Vec<Violation>) -> Entries<'a> {
    let code = match value {
        Some(Value::Map(entries)) => return entries,
        None | Some(Value::Null) if !required => return Entries::new(),
        None | Some(Value::Null) => violation::Code::Missing,
        Some(_) => violation::Code::WrongType,
    };
    violations.push(Violation::new(place, code, "an object"));
    Entries::new()
}

/// Tells of every repeated key of `entries` and of the objects in them; the features are judged by their schema.
fn repeated(entries: &Entries, place: &str, violations: &mut Vec<Violation>) {
    let mut seen = HashSet::new();
    for (key, value) in entries {
        let here = pointer(place, key);
        if let Value::Map(inner) = value {
            repeated(inner, &here, violations);
        }
        if !seen.insert(key) && violations.len() < LISTED_MAX {
            violations.push(Violation::new(here, violation::Code::Duplicate, "one value"));
        }
    }
}

/// The query of `POST /v1/score` and of batches.
#[derive(Debug, Clone, Copy, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// How many reasons to give for each score. Without it: 3 where the body says `explain: true`, else none.
    #[param(required = false, nullable = false, minimum = 1, maximum = 50)]
    top: Option<usize>,
}

/// The query as axum gives it to a handler.
pub(super) type Query = Result<axum::extract::Query<Asked>, QueryRejection>;

/// How many reasons the address asks for.
pub(super) fn top(query: Query) -> Result<Option<usize>, Problem> {
    let axum::extract::Query(asked) = query?;
    match asked.top {
        Some(top) if !(1..=REASONS_MAX).contains(&top) => {
            let expected = format!("a whole number from 1 to {REASONS_MAX}");
            Err(Problem::invalid(vec![Violation::new("/top", violation::Code::OutOfRange, expected)]))
        }
        top => Ok(top),
    }
}

/// The arm that the caller addresses by the header `x-mainstay-arm`, where the configuration lets callers do that.
pub(super) fn arm(shared: &Shared, headers: &HeaderMap) -> Result<Option<Arm>, Problem> {
    let Some(value) = headers.get("x-mainstay-arm") else { return Ok(None) };
    if !shared.engine.options().arm_header {
        return Err(Problem::new(Code::ArmNotAddressable, "the setting rollouts.arm_header is off"));
    }
    match value.as_bytes() {
        b"champion" => Ok(Some(Arm::Champion)),
        b"challenger" => Ok(Some(Arm::Challenger)),
        _ => {
            let expected = "\"champion\" or \"challenger\"";
            Err(Problem::invalid(vec![Violation::new("/x-mainstay-arm", violation::Code::UnknownCategory, expected)]))
        }
    }
}
