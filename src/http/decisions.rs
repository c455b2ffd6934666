//! `GET /v1/decisions`: what stands on record, by id, or by customer and time. `/v1/customers/{id}`: everything on record about one
//! customer, and its erasure.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::IntoParams;

use super::access::Who;
use super::deadline::{self, Deadline};
use super::extract::CUSTOMER_ID_MAX;
use super::problem::{self, Code, Problem};
use super::wire_problem;
use super::wire_records::{CustomerRecord, DecisionRecord, DecisionRecords, Erasure};
use super::{Shared, blocking_for};
use crate::domain::id::DecisionId;
use crate::domain::violation::{self, Violation};
use crate::ledger::{Page, Recorded};

/// The most records of one page.
const PAGE_MAX: usize = 1_000;

/// Which part of a list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Part {
    /// Made at or after this time, RFC 3339
    #[param(value_type = Option<String>, format = DateTime, nullable = false)]
    from: Option<jiff::Timestamp>,
    /// Made before this time, RFC 3339
    #[param(value_type = Option<String>, format = DateTime, nullable = false)]
    to: Option<jiff::Timestamp>,
    /// Recorded before this number: `next_before` of the page before
    #[param(minimum = 1, nullable = false)]
    before: Option<i64>,
    /// At most so many
    #[param(minimum = 1, maximum = 1000, default = 100, nullable = false)]
    limit: Option<usize>,
}

/// Of whom, and which part. The fields of [`Part`] stand here again: serde cannot flatten numbers out of a query string and
/// refuse unknown names at the same time.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Of {
    /// Your own id of the customer
    #[param(min_length = 1, max_length = 128)]
    customer_id: String,
    /// Made at or after this time, RFC 3339
    #[param(value_type = Option<String>, format = DateTime, nullable = false)]
    from: Option<jiff::Timestamp>,
    /// Made before this time, RFC 3339
    #[param(value_type = Option<String>, format = DateTime, nullable = false)]
    to: Option<jiff::Timestamp>,
    /// Recorded before this number: `next_before` of the page before
    #[param(minimum = 1, nullable = false)]
    before: Option<i64>,
    /// At most so many
    #[param(minimum = 1, maximum = 1000, default = 100, nullable = false)]
    limit: Option<usize>,
}

impl Part {
    fn page(&self) -> Result<Page, Problem> {
        let wrong = |name: &str, expected: String| {
            let violation = Violation::new(format!("/{name}"), violation::Code::OutOfRange, expected);
            Err(Problem::invalid(vec![violation]))
        };
        let limit = self.limit.unwrap_or(100);
        if !(1..=PAGE_MAX).contains(&limit) {
            return wrong("limit", format!("1 to {PAGE_MAX}"));
        }
        if self.before.is_some_and(|before| before < 1) {
            return wrong("before", "1 or more".to_owned());
        }
        let ms = |time: Option<jiff::Timestamp>, or: i64| time.map_or(or, jiff::Timestamp::as_millisecond);
        Ok(Page {
            from_ms: ms(self.from, i64::MIN),
            to_ms: ms(self.to, i64::MAX),
            before: self.before.unwrap_or(i64::MAX),
            limit,
        })
    }
}

/// Show a decision as it was recorded
#[utoipa::path(
    get, path = "/v1/decisions/{id}", tag = "records", operation_id = "decision",
    params(("id" = String, Path, description = "The decision id", format = "uuid"), deadline::Stated),
    responses(
        (status = 200, description = "The decision", body = DecisionRecord),
        (status = 404, description = "No such decision is on record, or the ledger is off", body = problem::Document, content_type = "application/problem+json"),
        (status = 422, description = "The id is no UUID", body = problem::Document, content_type = "application/problem+json"),
        wire_problem::Failing,
    )
)]
pub(super) async fn decision(
    State(shared): State<Shared>,
    deadline: Deadline,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<DecisionRecord>, Problem> {
    let expected = || vec![Violation::new("/id", violation::Code::WrongType, "a UUID")];
    let id = DecisionId::parse(&id?.0).ok_or_else(|| Problem::invalid(expected()))?;
    let engine = shared.engine.clone();
    let found = reading(&shared, deadline, move || Ok(engine.decision_of_record(id)?)).await?;
    found
        .map(|found| Json(DecisionRecord::from(found)))
        .ok_or_else(|| Problem::new(Code::UnknownDecision, "no decision with this id is on record"))
}

/// List the decisions on a customer
///
/// The newest first, a page at a time.
#[utoipa::path(
    get, path = "/v1/decisions", tag = "records", operation_id = "decisions", params(Of, deadline::Stated),
    responses(
        (status = 200, description = "A page of decisions", body = DecisionRecords),
        (status = 404, description = "The ledger is off", body = problem::Document, content_type = "application/problem+json"),
        (status = 422, description = "A parameter is not as expected", body = problem::Document, content_type = "application/problem+json"),
        wire_problem::Failing,
    )
)]
pub(super) async fn decisions(
    State(shared): State<Shared>,
    deadline: Deadline,
    of: Result<Query<Of>, QueryRejection>,
) -> Result<Json<DecisionRecords>, Problem> {
    let Query(Of { customer_id, from, to, before, limit }) = of?;
    let page = Part { from, to, before, limit }.page()?;
    if !(1..=CUSTOMER_ID_MAX).contains(&customer_id.chars().count()) {
        let expected = format!("1 to {CUSTOMER_ID_MAX} characters");
        return Err(Problem::invalid(vec![Violation::new("/customer_id", violation::Code::OutOfRange, expected)]));
    }
    let found = page_of(&shared, deadline, customer_id, page.clone()).await?;
    let next_before = next(&found, &page);
    Ok(Json(DecisionRecords { decisions: found.into_iter().map(DecisionRecord::from).collect(), next_before }))
}

/// Show everything on record about a customer
///
/// The decisions with their inputs as they were sent, the newest first, a page at a time: the right of access.
#[utoipa::path(
    get, path = "/v1/customers/{customer_id}", tag = "records", operation_id = "customer",
    params(("customer_id" = String, Path, description = "Your own id of the customer"), Part, deadline::Stated),
    responses(
        (status = 200, description = "A page of what is on record", body = CustomerRecord),
        (status = 400, description = "The path is not UTF-8", body = problem::Document, content_type = "application/problem+json"),
        (status = 404, description = "The ledger is off", body = problem::Document, content_type = "application/problem+json"),
        (status = 422, description = "A parameter is not as expected", body = problem::Document, content_type = "application/problem+json"),
        wire_problem::Failing,
    )
)]
pub(super) async fn customer(
    State(shared): State<Shared>,
    deadline: Deadline,
    customer_id: Result<Path<String>, PathRejection>,
    part: Result<Query<Part>, QueryRejection>,
) -> Result<Json<CustomerRecord>, Problem> {
    let (Path(customer_id), page) = (customer_id?, part?.page()?);
    let found = page_of(&shared, deadline, customer_id, page.clone()).await?;
    let next_before = next(&found, &page);
    Ok(Json(CustomerRecord { decisions: found.into_iter().map(Into::into).collect(), next_before }))
}

/// Erase a customer
///
/// Destroys the customer's key: every input on record becomes unreadable for ever. The decisions stay, under a pseudonym, and
/// the chain still verifies: the right to erasure.
#[utoipa::path(
    delete, path = "/v1/customers/{customer_id}", tag = "records", operation_id = "erase_customer",
    params(("customer_id" = String, Path, description = "Your own id of the customer"), deadline::Stated),
    responses(
        (status = 200, description = "Nothing readable is on record any more", body = Erasure),
        (status = 400, description = "The path is not UTF-8", body = problem::Document, content_type = "application/problem+json"),
        (status = 404, description = "The ledger is off", body = problem::Document, content_type = "application/problem+json"),
        (status = 422, description = "x-request-timeout-ms is not as expected", body = problem::Document, content_type = "application/problem+json"),
        wire_problem::Failing,
    )
)]
pub(super) async fn erase(
    State(shared): State<Shared>,
    who: Who,
    deadline: Deadline,
    customer_id: Result<Path<String>, PathRejection>,
) -> Result<Json<Erasure>, Problem> {
    let Path(customer_id) = customer_id?;
    let engine = shared.engine.clone();
    let erased = reading(&shared, deadline, move || Ok(engine.erase(&customer_id, who.actor())?)).await?;
    Ok(Json(Erasure { erased }))
}

async fn page_of(
    shared: &Shared,
    deadline: Deadline,
    customer_id: String,
    page: Page,
) -> Result<Vec<Recorded>, Problem> {
    let engine = shared.engine.clone();
    reading(shared, deadline, move || Ok(engine.decisions_of(&customer_id, &page)?)).await
}

/// A page that is full may have another one behind it.
fn next(found: &[Recorded], page: &Page) -> Option<i64> {
    found.last().filter(|_| found.len() == page.limit).map(|last| last.seq)
}

/// One of the requests that may wait for a disk at a time.
pub(super) fn permit(shared: &Shared) -> Result<OwnedSemaphorePermit, Problem> {
    let permit = shared.readings.clone().try_acquire_owned();
    permit.map_err(|_| Problem::new(Code::Overloaded, "too many records are being asked for; try again after a second"))
}

/// Runs `work`, which waits for a disk, off the threads that answer customers; so many at a time.
async fn reading<T: Send + 'static>(
    shared: &Shared,
    deadline: Deadline,
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let permit = permit(shared)?;
    blocking_for(deadline, move |_| {
        let _permit = permit;
        work()
    })
    .await?
}
