//! From the bytes of a body to a record: media type, size, time, JSON, and the envelope `{customer_id, features, context?, explain?,
//! counterfactuals?}`.
//! Whether the features are legal is the model's business.

use std::borrow::Cow;
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
use crate::domain::money::Money;
use crate::domain::nearest::nearest;
use crate::domain::policy::fit::audit_violations;
use crate::domain::reason::counterfactual::COUNTERFACTUALS_MAX;
use crate::domain::reason::{REASONS_DEFAULT, REASONS_MAX};
use crate::domain::record::{Entries, Record, Value};
use crate::domain::violation::{self, LISTED_MAX, Violation, pointer};

/// The media type of one JSON document.
pub(super) const JSON: &str = "application/json";
/// The media type of one JSON document a line.
pub(super) const NDJSON: &str = "application/x-ndjson";
/// The media type of a stream of columns, by the registry of IANA.
pub(super) const ARROW: &str = "application/vnd.apache.arrow.stream";

/// The longest customer id, in characters.
pub(super) const CUSTOMER_ID_MAX: usize = 128;
/// The greatest budget of a batch, in currency units: as of a policy.
const BUDGET_MAX: f64 = 1e9;
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
    if stated_length(headers).is_some_and(|length| length > bytes_max) {
        return Err(too_large(bytes_max));
    }
    let collected = tokio::time::timeout(timeout, Limited::new(body, bytes_max).collect());
    match collected.await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => Err(too_large(bytes_max)),
        Ok(Err(_)) => Err(Problem::new(Code::IncompleteBody, "the connection ended before the body did")),
        Err(_) => Err(too_late(timeout)),
    }
}

/// How long the body is, where the caller says so.
pub(super) fn stated_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Why a body of more than `bytes_max` bytes is not read.
pub(super) fn too_large(bytes_max: usize) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("the body may have {bytes_max} bytes"))
}

/// Why a body that took longer than `timeout` is not read.
pub(super) fn too_late(timeout: Duration) -> Problem {
    Problem::new(Code::RequestTimeout, format!("the body has {} ms to arrive", timeout.as_millis()))
}

/// The record in a body, with what is asked for in the address, or else in the body. Where the envelope is broken, `check` is asked for
/// the violations of the features that could be read, so that everything is told at once.
pub(super) fn record<'a>(
    value: Value<'a>,
    asked: Wanted,
    check: impl FnOnce(&Record<'a>) -> Vec<Violation>,
) -> Result<Record<'a>, Vec<Violation>> {
    let mut violations = Vec::new();
    let (mut customer_id, mut features, mut context) = (None, None, None);
    let (mut explain, mut counterfactuals) = (None, None);
    match value {
        Value::Map(entries) => {
            for (key, value) in entries {
                let place = match key.as_ref() {
                    "customer_id" => &mut customer_id,
                    "features" => &mut features,
                    "context" => &mut context,
                    "explain" => &mut explain,
                    "counterfactuals" => &mut counterfactuals,
                    unknown => {
                        if violations.len() < LISTED_MAX {
                            let meant =
                                nearest(unknown, ["customer_id", "features", "context", "explain", "counterfactuals"]);
                            let known = "customer_id, features, context, explain or counterfactuals";
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
    let customer_id = self::customer_id(customer_id).unwrap_or_else(|violation| {
        violations.push(violation);
        "".into()
    });
    let features = entries(features, "/features", true, &mut violations);
    let context = entries(context, "/context", false, &mut violations);
    context_violations(&context, &mut violations);
    let explain = match explain {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(_) => {
            violations.push(Violation::new("/explain", violation::Code::WrongType, "true or false"));
            false
        }
    };
    let reasons = asked.top.unwrap_or(if explain { REASONS_DEFAULT } else { 0 });
    let own = match counterfactuals {
        None | Some(Value::Null) => 0,
        Some(Value::Number(count)) if (0.0..=COUNTERFACTUALS_MAX as f64).contains(&count) && count.fract() == 0.0 => {
            count as usize
        }
        other => {
            let code = match other {
                Some(Value::Number(_)) => violation::Code::OutOfRange,
                _ => violation::Code::WrongType,
            };
            let expected = format!("a whole number from 0 to {COUNTERFACTUALS_MAX}");
            violations.push(Violation::new("/counterfactuals", code, expected));
            0
        }
    };
    let counterfactuals = asked.counterfactuals.unwrap_or(own);
    let record = Record { customer_id, features, context, reasons, counterfactuals };
    if violations.is_empty() {
        return Ok(record);
    }
    if readable {
        violations.extend(check(&record));
        violations.truncate(LISTED_MAX);
    }
    Err(violations)
}

/// The id of a customer.
///
/// Errors: what is wrong with it.
pub(super) fn customer_id(value: Option<Value<'_>>) -> Result<Cow<'_, str>, Violation> {
    let code = match value {
        Some(Value::Text(text)) if (1..=CUSTOMER_ID_MAX).contains(&text.chars().count()) => return Ok(text),
        None | Some(Value::Null) => violation::Code::Missing,
        Some(Value::Text(_)) => violation::Code::OutOfRange,
        Some(_) => violation::Code::WrongType,
    };
    Err(Violation::new("/customer_id", code, format!("a string of 1 to {CUSTOMER_ID_MAX} characters")))
}

/// Tells of what no context may be; what of it a policy reads, the policy judges.
pub(super) fn context_violations(context: &Entries, violations: &mut Vec<Violation>) {
    if context.len() > CONTEXT_MAX {
        let expected = format!("at most {CONTEXT_MAX} entries");
        violations.push(Violation::new("/context", violation::Code::TooMany, expected));
        return;
    }
    repeated(context, &|| "/context".to_owned(), violations);
    violations.extend(audit_violations(context));
    violations.extend(features_at(context).err());
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

/// Tells of every repeated key of `entries` and of the objects in them; the features are judged by their schema. `place` is only asked where
/// there is something to tell: a name may be as long as a body, and have thousands of others below it.
fn repeated(entries: &Entries, place: &dyn Fn() -> String, violations: &mut Vec<Violation>) {
    let mut seen = HashSet::new();
    for (key, value) in entries {
        if violations.len() >= LISTED_MAX {
            return;
        }
        let here = || pointer(&place(), key);
        if let Value::Map(inner) = value {
            repeated(inner, &here, violations);
        }
        if !seen.insert(key) {
            violations.push(Violation::new(here(), violation::Code::Duplicate, "one value"));
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
    /// How many counterfactuals to look for: the fewest and smallest changes of what can be changed about the customer that would lower
    /// the tier. Without it: as many as the body says, else none.
    #[param(required = false, nullable = false, minimum = 1, maximum = 10)]
    counterfactuals: Option<usize>,
}

/// The query of batches.
#[derive(Debug, Clone, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AskedOfMany {
    /// As of one customer, for every row.
    #[param(required = false, nullable = false, minimum = 1, maximum = 50)]
    top: Option<usize>,
    /// As of one customer, for every row: of at most 100 rows.
    #[param(required = false, nullable = false, minimum = 1, maximum = 10)]
    counterfactuals: Option<usize>,
    /// What all interventions of this array may cost together, in the currency of the policy: it is spent where it is expected to be worth
    /// most, and never more than the budget of the policy has left. Only for policies that know a value at stake, and not for NDJSON or Arrow.
    #[param(value_type = f64, required = false, nullable = false, minimum = 0, maximum = 1_000_000_000, example = 1000.00)]
    budget: Option<String>,
}

/// The query as axum gives it to a handler.
pub(super) type Query<Q> = Result<axum::extract::Query<Q>, QueryRejection>;

/// What the address asks for beside a decision.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted {
    top: Option<usize>,
    counterfactuals: Option<usize>,
}

/// Answers in columns have no place for what can be asked for beside a decision.
pub(super) fn may_be_in_columns(Wanted { top, counterfactuals }: Wanted) -> Result<(), Problem> {
    let asked = [("/top", top), ("/counterfactuals", counterfactuals)].into_iter().filter(|(_, asked)| asked.is_some());
    let expected = "JSON or NDJSON, as answers in Arrow have no column for it";
    let violations: Vec<Violation> =
        asked.map(|(name, _)| Violation::new(name, violation::Code::NotAllowed, expected)).collect();
    if violations.is_empty() { Ok(()) } else { Err(Problem::invalid(violations)) }
}

/// What the address asks for.
pub(super) fn wanted(query: Query<Asked>) -> Result<Wanted, Problem> {
    let axum::extract::Query(Asked { top, counterfactuals }) = query?;
    legal(top, counterfactuals)
}

/// What the address of a batch asks for, and the budget that it gives.
pub(super) fn wanted_of_many(query: Query<AskedOfMany>) -> Result<(Wanted, Option<Money>), Problem> {
    let axum::extract::Query(AskedOfMany { top, counterfactuals, budget }) = query?;
    let wanted = legal(top, counterfactuals)?;
    let Some(text) = budget else { return Ok((wanted, None)) };
    match Money::parse(&text).filter(|money| (0.0..=BUDGET_MAX).contains(&money.units())) {
        Some(budget) => Ok((wanted, Some(budget))),
        None => {
            let expected = format!("an amount from 0 to {BUDGET_MAX}, with at most six decimals");
            Err(Problem::invalid(vec![Violation::new("/budget", violation::Code::OutOfRange, expected)]))
        }
    }
}

fn legal(top: Option<usize>, counterfactuals: Option<usize>) -> Result<Wanted, Problem> {
    let mut violations = Vec::new();
    for (name, asked, most) in [("/top", top, REASONS_MAX), ("/counterfactuals", counterfactuals, COUNTERFACTUALS_MAX)]
    {
        if asked.is_some_and(|count| !(1..=most).contains(&count)) {
            let expected = format!("a whole number from 1 to {most}");
            violations.push(Violation::new(name, violation::Code::OutOfRange, expected));
        }
    }
    if violations.is_empty() { Ok(Wanted { top, counterfactuals }) } else { Err(Problem::invalid(violations)) }
}

/// The header `x-mainstay-arm`, for the contract.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "the contract; the header is read by `arm`")]
pub(super) struct Addressed {
    /// Which model answers, whatever arm the customer is in: `champion`, or `challenger` for the one in the other slot. For tests, and only
    /// where the setting `rollouts.arm_header` is on.
    #[param(rename = "x-mainstay-arm", required = false, nullable = false, pattern = "^(champion|challenger)$")]
    arm: Option<String>,
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
