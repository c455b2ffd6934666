//! `/v1/slots` of the admin plane: how the slots of every model stand, what was done to them, and the verbs that move models.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use utoipa::{IntoParams, ToSchema};

use super::access::Who;
use super::problem::{Code, Problem};
use super::wire_problem;
use super::wire_slots::{Done, History, Slots, SlotsList};
use super::{Shared, blocking, extract, operate};
use crate::domain::access::{NAME_MAX, SERVICE, is_name};
use crate::domain::rollout::guardrail::Limits;
use crate::domain::rollout::{Plan, Step};
use crate::domain::violation::{self, Violation};
use crate::engine::{Ask, Verb};

/// The longest reason.
const WHY_MAX: usize = 1_000;
/// The most entries of one page of the history.
const PAGE_MAX: usize = 1_000;

/// Who asks for a move, and why.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Plain {
    /// Who asks: it stands on record. Where credentials are asked for it is the holder of those, and nobody else may stand here
    #[schema(required = false, nullable = false, min_length = 1, max_length = 128, example = "ops@example.com")]
    by: Option<String>,
    /// Why, in your words: it stands on record
    #[serde(default)]
    #[schema(max_length = 1000)]
    why: String,
}

/// Load a version into the idle slot.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Stage {
    by: Option<String>,
    #[serde(default)]
    why: String,
    /// The version of the bundle
    #[schema(example = "1.1.0")]
    version: String,
    /// Stage it even if it would refuse requests that are accepted now
    #[serde(default)]
    allow_breaking: bool,
    /// Replay this many recent decisions through both models and report the differences
    #[serde(default)]
    replay_last: usize,
}

/// Make the idle model the champion.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Promote {
    by: Option<String>,
    #[serde(default)]
    why: String,
    /// Promote even if its rollout has not passed its last step
    #[serde(default)]
    force: bool,
}

/// Begin a rollout.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Start {
    by: Option<String>,
    #[serde(default)]
    why: String,
    /// `canary` or `shadow`: the steps of the configuration
    #[serde(default)]
    mode: Mode,
    /// Other steps than those
    #[schema(value_type = Option<Vec<Object>>, nullable = false)]
    steps: Option<Vec<Step>>,
    /// Other limits than those of the configuration
    #[schema(value_type = Option<Object>, nullable = false)]
    limits: Option<Limits>,
    /// Whether it is promoted without a person when it has passed to its end
    promote: Option<bool>,
}

/// Which steps of the configuration.
#[derive(Deserialize, ToSchema, Default, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// A sample is scored beside the champion.
    Shadow,
    /// A growing share of customers is answered.
    #[default]
    Canary,
}

/// Agree to a promotion.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Approve {
    by: Option<String>,
    #[serde(default)]
    why: String,
    /// In which role
    #[schema(example = "business_sponsor")]
    role: String,
}

/// Put a policy into force.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ApplyPolicy {
    by: Option<String>,
    #[serde(default)]
    why: String,
    /// The policy document itself, TOML
    document: String,
}

/// Which part of the history.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Part {
    /// Recorded before this number: `next_before` of the page before
    #[param(minimum = 1, nullable = false)]
    before: Option<i64>,
    /// At most so many
    #[param(minimum = 1, maximum = 1000, default = 50, nullable = false)]
    limit: Option<usize>,
}

/// List the slots of every model
#[utoipa::path(get, path = "/v1/slots", tag = "slots", operation_id = "slots",
    responses((status = 200, description = "How they stand", body = SlotsList)))]
pub(super) async fn slots(State(shared): State<Shared>) -> Result<Json<SlotsList>, Problem> {
    let engine = shared.engine.clone();
    let standings = blocking(move || engine.standings()).await?;
    Ok(Json(SlotsList { models: standings.into_iter().map(Slots::from).collect() }))
}

/// Show the slots of a model
#[utoipa::path(get, path = "/v1/slots/{model}", tag = "slots", operation_id = "slots_of_model",
    params(("model" = String, Path, description = "The name of a model in service")),
    responses((status = 200, description = "How they stand", body = Slots), wire_problem::Moving))]
pub(super) async fn slots_of(
    State(shared): State<Shared>,
    model: Result<Path<String>, PathRejection>,
) -> Result<Json<Slots>, Problem> {
    let (engine, model) = (shared.engine.clone(), model?.0);
    let standing = blocking(move || engine.standing(&model)).await??;
    Ok(Json(standing.into()))
}

/// Show what was done to the slots of a model
#[utoipa::path(get, path = "/v1/slots/{model}/history", tag = "slots", operation_id = "history",
    params(("model" = String, Path, description = "The name of a model in service"), Part),
    responses((status = 200, description = "The newest first", body = History), wire_problem::Moving))]
pub(super) async fn history(
    State(shared): State<Shared>,
    model: Result<Path<String>, PathRejection>,
    part: Result<Query<Part>, QueryRejection>,
) -> Result<Json<History>, Problem> {
    let (engine, model, Query(part)) = (shared.engine.clone(), model?.0, part?);
    let limit = part.limit.unwrap_or(50);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(wrong("/limit", format!("1 to {PAGE_MAX}")));
    }
    let before = part.before.unwrap_or(i64::MAX);
    let found = blocking(move || engine.history(&model, before, limit)).await??;
    Ok(Json(History::new(found, limit)))
}

/// Make a move
///
/// The body has `by` and `why`, and what the verb needs: `stage` a `version`, `start` maybe a `mode` or `steps`, `approve` a `role`,
/// `apply_policy` a `document`, which is checked for compliance on recent decisions first. With the header `idempotency-key` the same request is done once, as long as
/// it is among the last thousand with a key.
#[utoipa::path(post, path = "/v1/slots/{model}/{verb}", tag = "slots", operation_id = "move",
    params(
        ("model" = String, Path, description = "The name of a model in service"),
        ("verb" = String, Path, description = "`stage`, `retire`, `promote`, `rollback`, `start`, `pause`, `resume`, `advance`, `abort`, `approve`, `apply_policy`, `undo_policy`"),
        ("idempotency-key" = Option<String>, Header, description = "A key of your choice, at most 128 characters"),
    ),
    request_body(content((Stage = "application/json"), (Promote = "application/json"), (Start = "application/json"),
        (Approve = "application/json"), (ApplyPolicy = "application/json"), (Plain = "application/json"))),
    responses((status = 200, description = "It was done", body = Done), wire_problem::Moving, wire_problem::Refused))]
pub(super) async fn act(
    State(shared): State<Shared>,
    path: Result<Path<(String, String)>, PathRejection>,
    who: Who,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Done>, Problem> {
    let Path((model, verb)) = path?;
    // Before the body is read: what cannot be meant is said first.
    shared.engine.serving(Some(&model))?;
    let body = read(&shared, &headers, body).await?;
    let name = verb;
    let (verb, ask) = parse(&shared, &name, &body)?;
    let approves = if let Verb::Approve(role) = &verb { Some(role.as_str()) } else { None };
    who.may_move(&shared, &name, approves)?;
    let key = key(&headers, [&model, &name], &body, &who)?;
    let ask = asked(ask, key, &who)?;
    let (engine, of) = (shared.engine.clone(), model.clone());
    let (is_long, verb) = blocking(move || engine.move_takes_long(&of, &verb).map(|is_long| (is_long, verb))).await??;
    let engine = shared.engine.clone();
    let work = move || -> Result<_, crate::engine::Error> {
        let moved = engine.act(&model, verb, &ask)?;
        Ok((moved, engine.standing(&model)?))
    };
    let (moved, standing) = operate(&shared, is_long, work).await??;
    Ok(Json(Done::new(moved, standing)))
}

/// The body of an operator's request.
pub(super) async fn read(shared: &Shared, headers: &HeaderMap, body: Body) -> Result<Vec<u8>, Problem> {
    extract::media_type(headers, &[extract::JSON])?;
    // A policy document is the largest thing that is sent here.
    let bytes_max = 2 * crate::domain::policy::document::BYTES_MAX;
    Ok(extract::whole(headers, body, bytes_max, shared.limits.body_timeout()).await?.to_vec())
}

/// What operators write has nothing personal in it, so they are told what is wrong with it in serde's words.
pub(super) fn strict<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| match error.is_data() {
        true => wrong("", error.to_string()),
        false => Problem::new(Code::MalformedJson, error.to_string()),
    })
}

pub(super) fn wrong(pointer: &str, expected: String) -> Problem {
    Problem::invalid(vec![Violation::new(pointer, violation::Code::OutOfRange, expected)])
}

/// Who asks, as far as the body says it, and why.
pub(super) type Said = (Option<String>, String);

/// Who asks is whoever has the credentials. A body that names somebody else is refused, and not put right: on record would stand
/// what the caller did not mean.
pub(super) fn asked((by, why): Said, key: Option<(String, String)>, who: &Who) -> Result<Ask, Problem> {
    let wrong = |code, expected: String| Err(Problem::invalid(vec![Violation::new("/by", code, expected)]));
    let by = match (who.actor(), by) {
        (Some(actor), Some(by)) if by.trim() != actor => {
            return wrong(violation::Code::OutOfRange, format!("\"{actor}\", whose credentials these are, or nothing"));
        }
        (Some(actor), _) => actor.to_owned(),
        (None, Some(by)) => by.trim().to_owned(),
        (None, None) => return wrong(violation::Code::Missing, "who asks".to_owned()),
    };
    let ask = Ask { by, why, key };
    check(&ask)?;
    Ok(ask)
}

fn parse(shared: &Shared, verb: &str, body: &[u8]) -> Result<(Verb, Said), Problem> {
    let plain = |verb: Verb| strict(body).map(|Plain { by, why }| (verb, (by, why)));
    match verb {
        "stage" => {
            let Stage { by, why, version, allow_breaking, replay_last } = strict(body)?;
            let rows_max = shared.engine.options().replay_rows_max;
            if replay_last > rows_max {
                return Err(wrong("/replay_last", format!("at most {rows_max}")));
            }
            if !crate::domain::bundle::card::is_identifier(&version) {
                return Err(wrong("/version", "the version of a bundle".to_owned()));
            }
            Ok((Verb::Stage { version, allow_breaking, replay: replay_last }, (by, why)))
        }
        "promote" => {
            let Promote { by, why, force } = strict(body)?;
            Ok((Verb::Promote { force }, (by, why)))
        }
        "start" => {
            let Start { by, why, mode, steps, limits, promote } = strict(body)?;
            let options = shared.engine.options();
            let usual = match mode {
                Mode::Shadow => vec![options.shadow],
                Mode::Canary => options.canary.clone(),
            };
            let plan = Plan {
                steps: steps.unwrap_or(usual),
                limits: limits.unwrap_or(options.limits),
                promote: promote.unwrap_or(options.promote),
            };
            let problems = plan.problems().into_iter();
            let violations: Vec<Violation> = problems
                .map(|(place, expected)| Violation::new(place, violation::Code::OutOfRange, expected))
                .collect();
            if violations.is_empty() {
                Ok((Verb::Start(Box::new(plan)), (by, why)))
            } else {
                Err(Problem::invalid(violations))
            }
        }
        "approve" => {
            let Approve { by, why, role } = strict(body)?;
            Ok((Verb::Approve(role), (by, why)))
        }
        "apply_policy" => {
            let ApplyPolicy { by, why, document } = strict(body)?;
            Ok((Verb::ApplyPolicy(document), (by, why)))
        }
        "retire" => plain(Verb::Retire),
        "rollback" => plain(Verb::RollBack),
        "pause" => plain(Verb::Pause),
        "resume" => plain(Verb::Resume),
        "advance" => plain(Verb::Advance),
        "abort" => plain(Verb::Abort),
        "undo_policy" => plain(Verb::UndoPolicy),
        _ => {
            let verbs = crate::domain::rollout::moves::VERBS.join(", ");
            Err(Problem::new(Code::NotFound, format!("no such verb; there are {verbs}")))
        }
    }
}

/// Holds who asks, and why, to what may stand on record and on a terminal.
fn check(ask: &Ask) -> Result<(), Problem> {
    let mut violations = Vec::new();
    let is_text = |text: &str| !text.chars().any(char::is_control);
    if !is_name(&ask.by) {
        let expected = format!("who asks: 1 to {NAME_MAX} printable characters, and not \"{SERVICE}\"");
        violations.push(Violation::new("/by", violation::Code::OutOfRange, expected));
    }
    if ask.why.chars().count() > WHY_MAX || !is_text(&ask.why) {
        let expected = format!("at most {WHY_MAX} printable characters on one line");
        violations.push(Violation::new("/why", violation::Code::OutOfRange, expected));
    }
    if violations.is_empty() { Ok(()) } else { Err(Problem::invalid(violations)) }
}

/// The key that the caller gave, with the hash of what was asked for.
pub(super) fn key(
    headers: &HeaderMap,
    [place, verb]: [&str; 2],
    body: &[u8],
    who: &Who,
) -> Result<Option<(String, String)>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| (1..=NAME_MAX).contains(&key.len()));
    let key = key.ok_or_else(|| wrong("/idempotency-key", format!("1 to {NAME_MAX} ASCII characters")))?;
    let mut hash = Sha256::new();
    // Nobody gets the answer that another one got.
    for part in [place.as_bytes(), verb.as_bytes(), body].into_iter().chain(who.actor().map(str::as_bytes)) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let fingerprint: [u8; 32] = hash.finalize().into();
    let fingerprint = fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Some((key.to_owned(), fingerprint)))
}
