//! The service that requests are sent to: the real one without its sockets, with a ledger, and one decision on record.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use http_body_util::BodyExt;
use mainstay::app::setup;
use mainstay::config::{Config, Sources};
use mainstay::engine::Engine;
use mainstay::http::{Shared, admin_plane, data_plane};
use mainstay::ledger::Ledger;
use mainstay::model::Runtime;
use mainstay::telemetry::Metrics;
use serde_json::Value;
use tower::ServiceExt;

pub(super) struct Service {
    data: Router,
    admin: Router,
    runtime: tokio::runtime::Runtime,
    /// The id of a decision that is on record.
    pub(super) decision: String,
    _directory: tempfile::TempDir,
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

pub(super) static SERVICE: LazyLock<Service> = LazyLock::new(Service::start);

impl Service {
    /// The small model with the policy that asks most of a request.
    fn start() -> Self {
        let directory = super::directory();
        let flags = [
            "models.serve=[{name = \"telco-churn\", version = \"1.2.0\", policy = \"models/policy/value.toml\"}]",
            "ledger.bytes_max=4194304",
            "server.workers=1",
        ];
        let flags = flags.iter().map(|flag| (*flag).to_owned());
        let flags = flags.chain([format!("ledger.dir={}", directory.path().display())]).collect();
        let config = Config::load(&Sources::of_process(None, flags)).expect("a legal configuration");
        let runtime = Runtime::load(&config.runtime.library).expect("scripts/fetch-onnxruntime.sh was run");
        let ledger = Ledger::open(&config.ledger, "fuzz", std::time::SystemTime::now).expect("a ledger");
        let setup = setup(&config, runtime, Arc::new(Metrics::new()), Some(ledger)).expect("a legal policy");
        let engine = Arc::new(Engine::open(setup).expect("a legal bundle"));
        let shared = Shared::new(engine, config.limits, 0.0, runtime.build_info(), None);
        let (data, admin) = (data_plane(&shared), admin_plane(&shared));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut service = Self { data, admin, runtime, decision: String::new(), _directory: directory };
        let customer = include_bytes!("../../tests/data/customer.json");
        let answer = service.post("/v1/score", "application/json", customer);
        service.decision = answer.json()["decision_id"].as_str().expect("a decision").to_owned();
        service
    }

    /// Posts `body` to the data plane.
    pub(super) fn post(&self, path: &str, media: &str, body: &[u8]) -> Answer {
        let request = Request::post(path).header("content-type", media).header("content-length", body.len());
        self.send(false, request.body(Body::from(body.to_vec())).expect("a request"))
    }

    /// What the data plane, or the admin plane, answers to `request`.
    pub(super) fn send(&self, is_admin: bool, request: Request<Body>) -> Answer {
        let plane = if is_admin { &self.admin } else { &self.data };
        self.runtime.block_on(async {
            let response = plane.clone().oneshot(request).await.expect("a router cannot fail");
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            // The answer to a stream that breaks the contract ends early.
            let body = response.into_body().collect().await.map(|body| body.to_bytes().to_vec());
            Answer { status, headers, body: body.expect("a whole body") }
        })
    }
}
