//! What requests can be answered with when they are refused, for the contract. Which status a problem has is chosen in `problem`.

use utoipa::IntoResponses;

use super::problem::Document;

/// What every request with a body can be answered with, for the contract.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "the contract; problems are written by `problem::Problem`")]
pub(super) enum Refused {
    /// The body is malformed, too deep or incomplete, or the path is not UTF-8
    #[response(status = 400, content_type = "application/problem+json")]
    Malformed(Document<'static>),
    /// The body did not arrive in time
    #[response(status = 408, content_type = "application/problem+json")]
    Late(Document<'static>),
    /// The body, or the batch, is too large
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(Document<'static>),
    /// The content type is not supported
    #[response(status = 415, content_type = "application/problem+json")]
    MediaType(Document<'static>),
    /// The model or the service failed
    #[response(status = 500, content_type = "application/problem+json")]
    Failed(Document<'static>),
    /// The service is at its limit; the header `retry-after` says when to try again
    #[response(status = 503, content_type = "application/problem+json")]
    Overloaded(Document<'static>),
    /// `x-request-timeout-ms` elapsed before the work was started
    #[response(status = 504, content_type = "application/problem+json")]
    TooLate(Document<'static>),
}

/// What a request that may address an arm can be answered with besides, for the contract.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "the contract; problems are written by `problem::Problem`")]
pub(super) enum Addressing {
    /// `x-mainstay-arm` cannot be used: the setting `rollouts.arm_header` is off, or the other slot is empty. Or, where credentials are asked
    /// for, the caller lacks the scope `score`
    #[response(status = 403, content_type = "application/problem+json")]
    NotAddressable(Document<'static>),
}

/// What every request that needs the ledger can be answered with, for the contract.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "the contract; problems are written by `problem::Problem`")]
pub(super) enum Failing {
    /// The service failed
    #[response(status = 500, content_type = "application/problem+json")]
    Failed(Document<'static>),
    /// The service is at its limit, or the ledger is not there; the header `retry-after` says when to try again
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(Document<'static>),
    /// `x-request-timeout-ms` elapsed before the work was started
    #[response(status = 504, content_type = "application/problem+json")]
    TooLate(Document<'static>),
}

/// What every move on slots or experiments can be answered with, for the contract.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "the contract; problems are written by `problem::Problem`")]
pub(super) enum Moving {
    /// No such model is in service, or no such experiment known
    #[response(status = 404, content_type = "application/problem+json")]
    Unknown(Document<'static>),
    /// This cannot be done as things stand now; `legal` lists what can
    #[response(status = 409, content_type = "application/problem+json")]
    Illegal(Document<'static>),
    /// The request breaks the contract, or what it names must not go into service, for every one of `reasons`
    #[response(status = 422, content_type = "application/problem+json")]
    Refused(Document<'static>),
}

/// What every measure can be answered with, for the contract.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "the contract; problems are written by `problem::Problem`")]
pub(super) enum Measuring {
    /// No such model is in service, or the ledger is off
    #[response(status = 404, content_type = "application/problem+json")]
    Unknown(Document<'static>),
    /// A parameter is not as expected
    #[response(status = 422, content_type = "application/problem+json")]
    Refused(Document<'static>),
    /// The ledger cannot be read, or too much is being asked of it
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(Document<'static>),
}
