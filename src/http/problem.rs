//! Problems: the only place that chooses a status. RFC 9457 `application/problem+json` with a stable code, every violation by
//! JSON pointer, and the request id. The cause of a 500 is logged here, once, and never told to the caller.

use std::borrow::Cow;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use super::json;
use crate::domain::rollout::moves::Illegal;
use crate::domain::violation::{self, Violation};
use crate::engine;
use crate::model;
use crate::telemetry::Metrics;

/// What went wrong, as a stable code for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    MalformedJson,
    MalformedArrow,
    TooDeep,
    IncompleteBody,
    MalformedPath,
    InvalidRequest,
    BodyTooLarge,
    TooManyRows,
    UnsupportedMediaType,
    UnknownModel,
    UnknownDecision,
    UnknownExperiment,
    OutcomeConflict,
    TooManyOutcomes,
    NotFound,
    MethodNotAllowed,
    ArmNotAddressable,
    Unauthenticated,
    MissingScope,
    MissingRole,
    RateLimited,
    IllegalMove,
    RefusedForService,
    KeyReused,
    RequestTimeout,
    DeadlineExceeded,
    Overloaded,
    LedgerUnavailable,
    ModelFailed,
    Internal,
}

impl Code {
    /// The status, the code and the title.
    pub(super) fn facts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Code::MalformedJson => (StatusCode::BAD_REQUEST, "malformed_json", "The body is not JSON"),
            Code::MalformedArrow => {
                (StatusCode::BAD_REQUEST, "malformed_arrow", "The body is not a legal Arrow IPC stream")
            }
            Code::TooDeep => (StatusCode::BAD_REQUEST, "too_deep", "The body has too many levels"),
            Code::IncompleteBody => (StatusCode::BAD_REQUEST, "incomplete_body", "The body ended early"),
            Code::MalformedPath => (StatusCode::BAD_REQUEST, "malformed_path", "The path is not UTF-8"),
            Code::InvalidRequest => {
                (StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", "The request breaks the contract")
            }
            Code::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large"),
            Code::TooManyRows => (StatusCode::PAYLOAD_TOO_LARGE, "too_many_rows", "The batch has too many rows"),
            Code::UnsupportedMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "The content type is not supported")
            }
            Code::UnknownModel => (StatusCode::NOT_FOUND, "unknown_model", "No such model is in service"),
            Code::UnknownDecision => (StatusCode::NOT_FOUND, "unknown_decision", "No such decision is on record"),
            Code::UnknownExperiment => (StatusCode::NOT_FOUND, "unknown_experiment", "No such experiment is known"),
            Code::OutcomeConflict => {
                (StatusCode::CONFLICT, "outcome_conflict", "Another outcome is on record by this id")
            }
            Code::TooManyOutcomes => {
                (StatusCode::CONFLICT, "too_many_outcomes", "The decision has as many outcomes as it may")
            }
            Code::NotFound => (StatusCode::NOT_FOUND, "not_found", "No such resource"),
            Code::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "The resource does not know this method")
            }
            Code::ArmNotAddressable => (StatusCode::FORBIDDEN, "arm_not_addressable", "This arm cannot be addressed"),
            Code::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated", "The caller is not authenticated"),
            Code::MissingScope => (StatusCode::FORBIDDEN, "missing_scope", "The caller lacks a scope"),
            Code::MissingRole => (StatusCode::FORBIDDEN, "missing_role", "The caller lacks a role"),
            Code::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "rate_limited", "The caller's rate is used up"),
            Code::IllegalMove => (StatusCode::CONFLICT, "illegal_move", "This cannot be done as things stand now"),
            Code::RefusedForService => {
                (StatusCode::UNPROCESSABLE_ENTITY, "refused_for_service", "It must not go into service")
            }
            Code::KeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "key_reused", "The key was used for another request"),
            Code::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, "request_timeout", "The body did not arrive in time"),
            Code::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", "The caller's time is up"),
            Code::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "The service is at its limit"),
            Code::LedgerUnavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "ledger_unavailable", "Nothing can be recorded now")
            }
            Code::ModelFailed => (StatusCode::INTERNAL_SERVER_ERROR, "model_failed", "The model failed"),
            Code::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "The service failed"),
        }
    }
}

/// One problem. As a response it is still without a body: the outermost layer writes it, since it knows the request id.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    code: Code,
    detail: Cow<'static, str>,
    violations: Vec<Violation>,
    /// What only the problems of operators have.
    refusal: Option<Box<Refusal>>,
    headers: Vec<(HeaderName, HeaderValue)>,
    cause: Option<String>,
}

/// Why an operator's move was refused, and what could be done instead.
#[derive(Debug, Clone, Default)]
struct Refusal {
    legal: Vec<&'static str>,
    reasons: Vec<String>,
}

impl Problem {
    pub(super) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let detail = detail.into();
        Self { code, detail, violations: Vec::new(), refusal: None, headers: Vec::new(), cause: None }
    }

    pub(super) fn invalid(violations: Vec<Violation>) -> Self {
        let detail = match violations.len() {
            1 => "1 value is not as expected; see errors".to_owned(),
            count => format!("{count} values are not as expected; see errors"),
        };
        Self { violations, ..Self::new(Code::InvalidRequest, detail) }
    }

    /// The same, with what an operator has to know and a caller must not.
    pub(super) fn caused_by(mut self, cause: impl std::fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    /// The same with a header of its own, if `text` can be one.
    pub(super) fn with_header(mut self, name: HeaderName, text: &str) -> Self {
        self.headers.extend(HeaderValue::from_str(text).ok().map(|value| (name, value)));
        self
    }

    pub(super) fn status(&self) -> StatusCode {
        self.code.facts().0
    }

    /// Counts the problem and logs its cause.
    pub(super) fn note(&self, request_id: &str, metrics: &Metrics) {
        let (status, code, _) = self.code.facts();
        metrics.problem(code);
        if let Some(cause) = &self.cause {
            tracing::error!(request_id, status = status.as_u16(), code, cause, "request failed");
        }
    }

    /// The document as it is written, `instance` being the request id.
    pub(super) fn document<'p>(&'p self, request_id: &'p str) -> Document<'p> {
        let (status, code, title) = self.code.facts();
        Document {
            r#type: format!("urn:mainstay:problem:{code}"),
            title,
            status: status.as_u16(),
            code,
            detail: &self.detail,
            request_id,
            errors: self.violations.iter().map(Entry::from).collect(),
            legal: self.refusal.as_ref().map_or(&[], |refusal| &refusal.legal),
            reasons: self.refusal.as_ref().map_or(&[], |refusal| &refusal.reasons),
        }
    }

    /// The whole response.
    pub(super) fn response(&self, request_id: &str) -> Response<Body> {
        let body = serde_json::to_vec(&self.document(request_id)).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response.headers_mut().extend(self.headers.iter().cloned());
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<engine::Error> for Problem {
    fn from(error: engine::Error) -> Self {
        match error {
            engine::Error::UnknownModel { nearest, known } => {
                let meant = nearest.map_or(String::new(), |nearest| format!("; did you mean \"{nearest}\"?"));
                Problem::new(Code::UnknownModel, format!("in service: {}{meant}", known.join(", ")))
            }
            engine::Error::UnknownExperiment { nearest, known } => {
                let meant = nearest.map_or(String::new(), |nearest| format!("; did you mean \"{nearest}\"?"));
                Problem::new(Code::UnknownExperiment, format!("there are: {}{meant}", known.join(", ")))
            }
            engine::Error::Invalid(violations) => Problem::invalid(violations),
            engine::Error::NoChallenger => {
                Problem::new(Code::ArmNotAddressable, "the other slot is empty: only the champion can be addressed")
            }
            engine::Error::Illegal(Illegal { why, legal }) => {
                let detail = match legal.is_empty() {
                    true => why,
                    false => format!("{why}; legal now: {}", legal.join(", ")),
                };
                let refusal = Some(Box::new(Refusal { legal, reasons: Vec::new() }));
                Problem { refusal, ..Problem::new(Code::IllegalMove, detail) }
            }
            engine::Error::Refused(reasons) => {
                let refusal = Some(Box::new(Refusal { legal: Vec::new(), reasons }));
                Problem { refusal, ..Problem::new(Code::RefusedForService, "nothing was changed; see reasons") }
            }
            engine::Error::Busy => {
                Problem::new(Code::Overloaded, "this very request is being carried out; send it again after a second")
            }
            engine::Error::KeyReused => {
                Problem::new(Code::KeyReused, "take another idempotency-key for another request")
            }
            engine::Error::Late => Problem::new(
                Code::LedgerUnavailable,
                "the ledger is slow, and a move may be on record and soon in force; look at the slots and their history before you ask again",
            ),
            engine::Error::LedgerOff => Problem::new(Code::NotFound, "the ledger is off: nothing is recorded"),
            engine::Error::InsightOff => {
                Problem::new(Code::NotFound, "nothing is measured: the setting insight.enabled is false")
            }
            engine::Error::Ledger(cause) => {
                // What is wrong with it is logged where it begins and ends, not with every request that it concerns.
                tracing::debug!(%cause, "refused by the ledger");
                Problem::new(
                    Code::LedgerUnavailable,
                    "the ledger is not available, and nothing goes unrecorded; try again after a second",
                )
            }
            engine::Error::Unservable { source, .. } => {
                Problem::new(Code::Internal, "the model could not be put into service").caused_by(source)
            }
            engine::Error::Model(model::Error::Full) => Problem::new(
                Code::Overloaded,
                "as many customers wait for this model as it can score in time; try again after a second",
            ),
            engine::Error::Model(cause) => {
                Problem::new(Code::ModelFailed, "the model could not score this customer").caused_by(cause)
            }
        }
    }
}

impl From<PathRejection> for Problem {
    fn from(_: PathRejection) -> Self {
        Problem::new(Code::MalformedPath, "percent-encoded bytes of a path have to be UTF-8")
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        // The text of the rejection could quote a value.
        let _ = rejection;
        let expected = "the query parameters that the contract lists, each once and of its type";
        Problem::invalid(vec![Violation::new("", violation::Code::WrongType, expected)])
    }
}

impl From<json::Error> for Problem {
    fn from(error: json::Error) -> Self {
        match error {
            json::Error::Malformed(place) => Problem::new(Code::MalformedJson, place),
            json::Error::TooDeep => {
                Problem::new(Code::TooDeep, "objects and arrays are nested deeper than the contract allows")
            }
            json::Error::NoArray => Problem::invalid(vec![Violation::new("", violation::Code::WrongType, "an array")]),
        }
    }
}

/// A problem document, RFC 9457.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Document<'p> {
    /// `urn:mainstay:problem:` and the code.
    #[schema(example = "urn:mainstay:problem:invalid_request")]
    r#type: String,
    /// The code in words.
    #[schema(value_type = String)]
    title: &'p str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599, example = 422)]
    status: u16,
    /// The stable code.
    #[schema(value_type = String, example = "invalid_request")]
    code: &'p str,
    /// What happened this time.
    #[schema(value_type = String)]
    detail: &'p str,
    /// The id of the request, as in the header `x-request-id`.
    #[schema(value_type = String)]
    request_id: &'p str,
    /// Every violation of the contract.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<Entry<'p>>,
    /// The moves that are legal now.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false, value_type = Vec<String>)]
    legal: &'p [&'static str],
    /// Every reason why something must not go into service.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false, value_type = Vec<String>)]
    reasons: &'p [String],
}

/// One violation of the contract.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Violation)]
pub(super) struct Entry<'p> {
    /// Where: an RFC 6901 JSON pointer into the body, or into the row of a batch.
    #[schema(value_type = String, example = "/features/Contract")]
    pointer: &'p str,
    /// What is wrong: `missing`, `unknown_name`, `duplicate`, `wrong_type`, `out_of_range`, `unknown_category`, `too_many`, `not_allowed`.
    #[schema(value_type = String, example = "unknown_category")]
    code: crate::domain::violation::Code,
    /// The violation as a sentence.
    detail: String,
    /// What would have been right.
    #[schema(value_type = String)]
    expected: &'p str,
    /// The known word that was probably meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false, example = "One year")]
    nearest: Option<&'p str>,
}

impl<'p> From<&'p Violation> for Entry<'p> {
    fn from(violation: &'p Violation) -> Self {
        Self {
            pointer: &violation.pointer,
            code: violation.code,
            detail: violation.detail(),
            expected: &violation.expected,
            nearest: violation.nearest.as_deref(),
        }
    }
}
