//! `/v1/insight` of the admin plane: key figures, quality of scores, drift and fairness of a model over a window, each figure with what
//! it rests on; and for what a new model was asked. Everything is measured off the threads that answer customers.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::Deserialize;
use utoipa::IntoParams;

use super::problem::Problem;
use super::wire_groups::FairnessAnswer;
use super::wire_insight::{DriftAnswer, KpisAnswer, QualityAnswer};
use super::wire_problem;
use super::wire_retraining::RetrainingAnswer;
use super::{Shared, measure};
use crate::domain::violation::{self, Violation};
use crate::engine::Window;

/// Of which model, over which window.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Of {
    /// The name of a model in service; the default one without it
    #[param(nullable = false)]
    model: Option<String>,
    /// How far back: `1h`, `24h`, `7d` or `30d`; `24h` without it
    #[param(nullable = false)]
    window: Option<String>,
}

impl Of {
    fn checked(self, shared: &Shared) -> Result<(String, Window), Problem> {
        let serving = shared.engine.serving(self.model.as_deref())?;
        let window = self.window.as_deref().map_or(Some(Window::Day), Window::named).ok_or_else(|| {
            let expected = "1h, 24h, 7d or 30d";
            Problem::invalid(vec![Violation::new("/window", violation::Code::UnknownCategory, expected)])
        })?;
        Ok((serving.model.id().name.clone(), window))
    }
}

/// Show key figures
///
/// From what interventions did to what that was worth: a tree of figures, each with its interval at 95 %, for the model and for each of its
/// versions, policies, arms, segments and experiments. A customer counts once. Churn is that of customers who were decided on a maturity
/// (`insight.maturity_days`) before the window, all else that of the window.
#[utoipa::path(get, path = "/v1/insight/kpis", tag = "insight", operation_id = "insight_kpis", params(Of),
    responses((status = 200, description = "The figures", body = KpisAnswer), wire_problem::Measuring))]
pub(super) async fn kpis(
    State(shared): State<Shared>,
    of: Result<Query<Of>, QueryRejection>,
) -> Result<Json<KpisAnswer>, Problem> {
    let (model, window) = of?.0.checked(&shared)?;
    let engine = shared.engine.clone();
    let (found, balance) = measure(&shared, move || Ok(engine.kpis(&model, window)?)).await?;
    Ok(Json(KpisAnswer::new(found, balance)))
}

/// Show how good the scores were
///
/// Of customers who were held out, where there are any: what is done for a customer changes what a score foretold.
#[utoipa::path(get, path = "/v1/insight/quality", tag = "insight", operation_id = "insight_quality", params(Of),
    responses((status = 200, description = "The quality", body = QualityAnswer), wire_problem::Measuring))]
pub(super) async fn quality(
    State(shared): State<Shared>,
    of: Result<Query<Of>, QueryRejection>,
) -> Result<Json<QualityAnswer>, Problem> {
    let (model, window) = of?.0.checked(&shared)?;
    let engine = shared.engine.clone();
    Ok(Json(measure(&shared, move || Ok(engine.quality(&model, window)?)).await?.into()))
}

/// Show drift
///
/// How far the features and scores of a window are from those of the training time, for every version that is loaded.
#[utoipa::path(get, path = "/v1/insight/drift", tag = "insight", operation_id = "insight_drift", params(Of),
    responses((status = 200, description = "The distances", body = DriftAnswer), wire_problem::Measuring))]
pub(super) async fn drift(
    State(shared): State<Shared>,
    of: Result<Query<Of>, QueryRejection>,
) -> Result<Json<DriftAnswer>, Problem> {
    let (model, window) = of?.0.checked(&shared)?;
    let engine = shared.engine.clone();
    let found = measure(&shared, move || Ok(engine.drift(&model, window)?)).await?;
    Ok(Json(DriftAnswer::new(window, found)))
}

/// Show how groups fare
///
/// The groups are those of `context.audit`. Each is compared with the one that is offered something most often.
#[utoipa::path(get, path = "/v1/insight/fairness", tag = "insight", operation_id = "insight_fairness", params(Of),
    responses((status = 200, description = "The groups", body = FairnessAnswer), wire_problem::Measuring))]
pub(super) async fn fairness(
    State(shared): State<Shared>,
    of: Result<Query<Of>, QueryRejection>,
) -> Result<Json<FairnessAnswer>, Problem> {
    let (model, window) = of?.0.checked(&shared)?;
    let engine = shared.engine.clone();
    Ok(Json(measure(&shared, move || Ok(engine.fairness(&model, window)?)).await?.into()))
}

/// Show for what a new model was asked
///
/// Each cause once, the newest first, with the message about it and whether that arrived.
#[utoipa::path(get, path = "/v1/insight/retraining", tag = "insight", operation_id = "insight_retraining",
    responses((status = 200, description = "The causes", body = RetrainingAnswer)))]
pub(super) async fn retraining(State(shared): State<Shared>) -> Json<RetrainingAnswer> {
    Json(RetrainingAnswer::new(shared.engine.retraining()))
}
