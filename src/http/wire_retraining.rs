//! Requests for a new model as they go over the wire. Translation only.

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::wire_records::time;
use crate::domain::retraining::Cause;
use crate::engine::Request;
use crate::ledger::{Delivery, Remembered};

/// For what a new model was asked.
#[derive(Serialize, ToSchema)]
pub(super) struct RetrainingAnswer {
    /// Whether new models are asked for at all (`retraining.url`).
    enabled: bool,
    /// The causes, the newest first.
    causes: Vec<RetrainingCause>,
}

/// A cause.
#[derive(Serialize, ToSchema)]
pub(super) struct RetrainingCause {
    /// The id of the message (`webhook-id`), the same whenever it is sent.
    id: String,
    model: String,
    version: String,
    /// `schedule`, `drift`, `quality` or `kpi`.
    kind: &'static str,
    /// What of: the first day of the period, the features that drift, `auc`, or the key figure.
    of: Vec<String>,
    /// The cause as a sentence.
    text: String,
    /// When it was seen.
    #[schema(value_type = String, format = DateTime)]
    at: String,
    /// `pending`; `given_up` and tried once an hour; `delivered`; or `refused` by the receiver (410), and not sent again.
    delivery: &'static str,
    /// Since when it is that. Absent while it is pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime, nullable = false)]
    settled_at: Option<String>,
    /// How often it was tried since the service started.
    tries: u32,
    /// How the last of these failed. Absent where none did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    failure: Option<String>,
    /// The message, as it is sent.
    #[schema(value_type = Object)]
    message: Option<Box<RawValue>>,
}

impl RetrainingAnswer {
    pub(super) fn new(requests: Option<Vec<Request>>) -> Self {
        Self {
            enabled: requests.is_some(),
            causes: requests.into_iter().flatten().map(RetrainingCause::from).collect(),
        }
    }
}

impl From<Request> for RetrainingCause {
    fn from(request: Request) -> Self {
        let Remembered { cause, at_ms, delivery, delivery_ms, message } = request.remembered;
        let (id, text) = (cause.id(), cause.to_string());
        let Cause { model, version, kind, of } = cause;
        Self {
            id,
            model,
            version,
            kind: kind.name(),
            of,
            text,
            at: time(at_ms as i64),
            delivery: match delivery {
                Delivery::Due => "pending",
                Delivery::Delivered => "delivered",
                Delivery::GivenUp => "given_up",
                Delivery::Refused => "refused",
            },
            settled_at: (delivery != Delivery::Due).then(|| time(delivery_ms as i64)),
            tries: request.tries,
            failure: request.failure,
            message: RawValue::from_string(message.to_string()).ok(),
        }
    }
}
