//! The contract. The committed one, `openapi/mainstay.yaml`, is generated from the handlers and knows no model; the one that a
//! running server gives also has a path and a schema for every model in service, so that a client can be generated from it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::Response;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::{Shared, access};
use crate::domain::bundle::card::Card;
use crate::domain::bundle::feature::{Feature, Kind, Missing, Scalar, Unknown};
use crate::domain::policy::condition::{self, Domain};
use crate::engine::Catalogue;
use crate::model::Model;

/// Title, tags and what else belongs to no handler.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Mainstay",
        description = "Churn decisions: a calibrated score, a risk tier and the intervention that is worth making.\n\nEvery answer carries `x-request-id`, `traceparent` and, where something was decided, `server-timing`. Every error is `application/problem+json` (RFC 9457).",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    tags(
        (name = "score", description = "Decisions on customers"),
        (name = "models", description = "Models in service"),
        (name = "records", description = "Decisions on record; access and erasure"),
        (name = "health", description = "Liveness, readiness, version"),
    )
)]
pub(super) struct Base;

/// The same for the admin plane.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Mainstay: the admin plane",
        description = "Models in slots, rollouts, rollback, policies, experiments, the ledger. Every error is `application/problem+json` (RFC 9457).",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    tags(
        (name = "policies", description = "What a policy would have done"),
        (name = "slots", description = "What stands where, and the verbs that move it"),
        (name = "experiments", description = "Policies or interventions compared on shares of the customers"),
        (name = "insight", description = "What came of decisions: key figures, quality, drift, fairness"),
        (name = "ledger", description = "Copies and keys of the record"),
        (name = "health", description = "Liveness, readiness, version"),
    )
)]
pub(super) struct Admin;

/// What says nothing of the whole.
#[derive(OpenApi)]
#[openapi()]
pub(super) struct Nothing;

/// Both contracts as text. To write one takes longer than many decisions, and anybody may ask for it.
#[derive(Default)]
pub(super) struct Written {
    /// That of the data plane, and what was in service when it was written.
    data: Mutex<Option<(Weak<Catalogue>, Bytes)>>,
    /// That of the admin plane: nothing in it changes while the service runs.
    admin: OnceLock<Bytes>,
}

impl Written {
    /// The text for `catalogue`, written now if it is of another one. It does not keep models in memory.
    fn of(&self, catalogue: &Arc<Catalogue>, write: impl FnOnce() -> Vec<u8>) -> Bytes {
        let mut written = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        match &*written {
            Some((of, text)) if std::ptr::eq(of.as_ptr(), Arc::as_ptr(catalogue)) => text.clone(),
            _ => {
                let text = Bytes::from(write());
                *written = Some((Arc::downgrade(catalogue), text.clone()));
                text
            }
        }
    }
}

/// `GET /openapi.json`: the contract of this server as it stands.
pub(super) async fn openapi(State(shared): State<Shared>) -> Response<Body> {
    let catalogue = shared.engine.catalogue();
    answer(shared.written.of(&catalogue, || with_models(&shared.contract, &catalogue).to_string().into_bytes()))
}

/// `GET /openapi.json` of the admin plane.
pub(super) async fn admin(State(shared): State<Shared>) -> Response<Body> {
    let write = || {
        let contract = super::admin_contract();
        let contract = if shared.gate.is_some() { contract } else { access::open(contract) };
        Bytes::from(serde_json::to_vec(&contract).unwrap_or_default())
    };
    answer(shared.written.admin.get_or_init(write).clone())
}

fn answer(text: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(super::extract::JSON));
    response
}

/// `contract` with a path and a schema for every model in service.
fn with_models(contract: &utoipa::openapi::OpenApi, catalogue: &Catalogue) -> Value {
    let mut document = serde_json::to_value(contract).unwrap_or_default();
    for (position, serving) in catalogue.iter().enumerate() {
        let id = serving.model.id();
        let (customer, features) = (format!("Customer.{}", id.name), format!("Features.{}", id.name));
        let mut schema = document["components"]["schemas"]["Customer"].clone();
        schema["properties"]["features"] = json!({"$ref": format!("#/components/schemas/{features}")});
        schema["examples"] = json!([example(&serving.model)]);
        declare_context(&mut schema, serving.context());
        document["components"]["schemas"][&customer] = schema;
        document["components"]["schemas"][&features] = features_schema(serving.model.card());
        let one = json!({"$ref": format!("#/components/schemas/{customer}")});
        for (generic, path, body) in [
            ("/v1/models/{model}/score", format!("/v1/models/{}/score", id.name), one.clone()),
            (
                "/v1/models/{model}/score/batch",
                format!("/v1/models/{}/score/batch", id.name),
                json!({"type": "array", "items": one}),
            ),
        ] {
            let mut operation = document["paths"][generic]["post"].clone();
            operation["operationId"] = format!(
                "{}_{}",
                operation["operationId"].as_str().unwrap_or_default(),
                id.name.replace(['-', '.'], "_")
            )
            .into();
            // The model is in service: it is no parameter, and the path cannot be unknown.
            if let Some(parameters) = operation["parameters"].as_array_mut() {
                parameters.retain(|parameter| parameter["name"] != "model");
            }
            operation["responses"].as_object_mut().and_then(|responses| responses.remove("404"));
            operation["requestBody"]["content"]["application/json"]["schema"] = body.clone();
            if position == 0 {
                let default = path.replace(&format!("/models/{}", id.name), "");
                document["paths"][&default]["post"]["requestBody"]["content"]["application/json"]["schema"] = body;
            }
            document["paths"][path]["post"] = operation;
        }
    }
    document
}

/// The JSON Schema of the features of one model, by its dictionary.
fn features_schema(card: &Card) -> Value {
    let properties: Map<String, Value> =
        card.features.iter().map(|feature| (feature.name.clone(), feature_schema(feature))).collect();
    let required: Vec<&str> = card
        .features
        .iter()
        .filter(|feature| feature.missing == Missing::Refuse)
        .map(|feature| feature.name.as_str())
        .collect();
    json!({"type": "object", "title": card.title, "properties": properties, "required": required, "additionalProperties": false})
}

fn feature_schema(feature: &Feature) -> Value {
    let nullable = feature.missing != Missing::Refuse;
    let kind = match feature.kind {
        Kind::Number => "number",
        Kind::Integer => "integer",
        Kind::Category => "string",
    };
    let unit = feature.unit.as_ref().map_or(String::new(), |unit| format!(" ({unit})"));
    let mut schema = json!({"description": format!("{}{unit}", feature.description)});
    schema["type"] = if nullable { json!([kind, "null"]) } else { json!(kind) };
    if let Some(range) = feature.range {
        schema["minimum"] = json!(range.min);
        schema["maximum"] = json!(range.max);
    }
    if let (Some(categories), None | Some(Unknown::Refuse)) = (&feature.categories, &feature.unknown) {
        let mut values: Vec<Value> = categories.keys().map(|category| json!(category)).collect();
        if nullable {
            values.push(Value::Null);
        }
        schema["enum"] = json!(values);
    }
    schema
}

/// Adds what the policy declares of the context to the `schema` of a customer.
fn declare_context<'d>(schema: &mut Value, declared: impl Iterator<Item = (&'d str, &'d Domain)>) {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for (name, domain) in declared {
        let refuses = domain.missing == condition::Missing::Refuse;
        let mut entry = json!({"description": format!("The policy reads it: {}.", domain.expected())});
        let kind = match &domain.kind {
            condition::Kind::Number { min, max, whole } => {
                entry["minimum"] = json!(min);
                entry["maximum"] = json!(max);
                if *whole { "integer" } else { "number" }
            }
            condition::Kind::Category { known, unknown } => {
                if unknown.is_none() {
                    let null = (!refuses).then_some(Value::Null);
                    entry["enum"] = known.iter().map(|category| json!(category)).chain(null).collect();
                }
                "string"
            }
            condition::Kind::Boolean => "boolean",
        };
        entry["type"] = if refuses { json!(kind) } else { json!([kind, "null"]) };
        properties.insert(name.to_owned(), entry);
        if refuses {
            required.push(name);
        }
    }
    if properties.is_empty() {
        return;
    }
    let context = &mut schema["properties"]["context"];
    context["properties"] = properties.into();
    if !required.is_empty() {
        context["required"] = json!(required);
        context["type"] = json!("object");
        if let Some(list) = schema["required"].as_array_mut() {
            list.push(json!("context"));
        }
    }
}

fn example(model: &Model) -> Value {
    let features: Map<String, Value> =
        model.example().iter().map(|(name, value)| (name.clone(), plain(value))).collect();
    json!({"customer_id": "C-1001", "features": features})
}

/// A whole number as one: `58`, not `58.0`.
fn plain(value: &Option<Scalar>) -> Value {
    match value {
        Some(Scalar::Number(number)) if number.fract() == 0.0 && number.abs() < 1e15 => json!(*number as i64),
        other => json!(other),
    }
}
