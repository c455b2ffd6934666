//! `GET /v1/models`: what is in service, and the card of each.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::Response;
use axum::response::IntoResponse;

use super::Shared;
use super::problem::{self, Problem};
use super::wire;

/// List the models in service
#[utoipa::path(
    get, path = "/v1/models", tag = "models", operation_id = "models",
    responses((status = 200, description = "The models, the default one first", body = wire::Models))
)]
pub(super) async fn models(State(shared): State<Shared>) -> Response<Body> {
    let catalogue = shared.engine.catalogue();
    let models = catalogue.iter().enumerate().map(|(at, serving)| wire::ModelSummary::new(serving, at == 0)).collect();
    Json(wire::Models { models }).into_response()
}

/// Show a model: its card, its policy, its probe
#[utoipa::path(
    get, path = "/v1/models/{model}", tag = "models", operation_id = "model",
    params(("model" = String, Path, description = "The name of a model in service")),
    responses(
        (status = 200, description = "The model", body = wire::ModelDetail),
        (status = 400, description = "The path is not UTF-8", body = problem::Document, content_type = "application/problem+json"),
        (status = 404, description = "No such model is in service", body = problem::Document, content_type = "application/problem+json"),
    )
)]
pub(super) async fn model(
    State(shared): State<Shared>,
    model: Result<Path<String>, PathRejection>,
) -> Result<Response<Body>, Problem> {
    let serving = shared.engine.serving(Some(&model?.0))?;
    let default = std::sync::Arc::ptr_eq(shared.engine.catalogue().default_serving(), &serving);
    Ok(Json(wire::ModelDetail::new(&serving, default)).into_response())
}
