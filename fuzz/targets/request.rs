//! What a caller sends, through the real handlers and every layer above them: the first byte of an input says by which door (`1` one
//! customer, `a` an array, `n` NDJSON, `o` outcomes), the rest is the body.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use mainstay::app::setup;
use mainstay::config::{Config, Sources};
use mainstay::engine::Engine;
use mainstay::http::{Shared, data_plane};
use mainstay::ledger::Ledger;
use mainstay::model::Runtime;
use mainstay::telemetry::Metrics;
use serde_json::Value;
use tower::ServiceExt;

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";
/// What an input says where it means a decision that is on record.
const KNOWN: &str = "00000000-0000-7000-8000-0000000000aa";
/// The most violations that one body is told of.
const LISTED_MAX: usize = 100;

pub(super) fn run(input: &[u8]) {
    let Some((door, body)) = input.split_first() else { return };
    match door {
        b'1' => one(body),
        b'a' => many(SERVICE.post("/v1/score/batch", JSON, body)),
        b'n' => streamed(body),
        b'o' => told(body),
        _ => {}
    }
}

/// One customer: a decision, or every violation by its place; and by every door the same.
fn one(body: &[u8]) {
    let alone = SERVICE.post("/v1/score", JSON, body);
    let document: Option<Value> = serde_json::from_slice(body).ok();
    match alone.status {
        200 => decided(&alone.json()),
        422 => violated(&alone.json(), document.as_ref()),
        _ => return refused(&alone, &[400, 413]),
    }
    let rows = SERVICE.post("/v1/score/batch", JSON, &[b"[", body, b"]"].concat());
    if rows.status == 200 {
        let rows = rows.json();
        assert_eq!(rows["results"].as_array().map(Vec::len), Some(1), "one row is one answer");
        same(&alone.json(), &rows["results"][0]);
    } else {
        // An array reads its rows twice, the first time as serde_json does.
        refused(&rows, &[400, 413]);
    }
    if !body.iter().any(|byte| b"\r\n".contains(byte)) && !body.is_empty() {
        let lines = SERVICE.post("/v1/score/batch", NDJSON, body);
        assert_eq!(lines.status, 200);
        same(&alone.json(), &lines.json());
    }
    // Written anew, as another client would write it.
    if let Some(document) = document.filter(|_| alone.status == 200) {
        let again = SERVICE.post("/v1/score", JSON, document.to_string().as_bytes());
        assert_eq!(again.status, 200, "written anew it is refused: {}", again.text());
        let [one, other] = [alone.json(), again.json()].map(|answer| answer["score"].as_f64().expect("a score"));
        // A number may lose its last bit on its way through another writer.
        assert!((one - other).abs() < 1e-6, "{one} is {other} when it is written anew");
    }
}

fn streamed(body: &[u8]) {
    let answer = SERVICE.post("/v1/score/batch", NDJSON, body);
    assert_eq!(answer.status, 200, "a stream is answered before its end is known");
    let rows = body.split(|byte| *byte == b'\n').filter(|line| !line.iter().all(|byte| b" \t\r".contains(byte)));
    let items: Vec<&[u8]> = answer.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    assert_eq!(items.len(), rows.count(), "each line has one answer");
    for item in items {
        row(&serde_json::from_slice(item).expect("an answer is JSON"));
    }
}

fn many(answer: Answer) {
    if answer.status != 200 {
        return refused(&answer, &[400, 413, 422]);
    }
    answer.json()["results"].as_array().expect("results").iter().for_each(row);
}

/// Outcomes: on record, or refused by their place.
fn told(body: &[u8]) {
    let text = String::from_utf8_lossy(body).replace(KNOWN, &SERVICE.decision);
    let answer = SERVICE.post("/v1/outcomes", JSON, text.as_bytes());
    match answer.status {
        200 => match answer.json()["results"].as_array() {
            Some(items) => items.iter().filter(|item| item.get("status").is_some()).for_each(problem),
            None => assert!(answer.json()["outcome_id"].is_string()),
        },
        422 => violated(&answer.json(), serde_json::from_str(&text).ok().as_ref()),
        _ => refused(&answer, &[400, 404, 409, 413]),
    }
}

fn row(item: &Value) {
    if item.get("status").is_some() { problem(item) } else { decided(item) }
}

fn decided(decision: &Value) {
    let score = decision["score"].as_f64().expect("a score");
    assert!((0.0..=1.0).contains(&score), "{score} is no probability");
    assert!(decision["tier"].is_string() && decision["intervention"]["action"].is_string(), "{decision}");
}

/// The same answer to the same row, but for what is of the request.
fn same(alone: &Value, row: &Value) {
    for field in ["score", "tier", "status", "code", "errors", "reasons", "value_at_stake"] {
        assert_eq!(alone.get(field), row.get(field), "{field} alone, and as a row");
    }
}

/// One of the documents that may come, by its own status.
fn problem(document: &Value) {
    let status = document["status"].as_u64().expect("a status");
    assert!([400, 404, 409, 413, 422].contains(&status), "{document}");
    let code = document["code"].as_str().expect("a code");
    assert_eq!(document["type"], format!("urn:mainstay:problem:{code}"));
    assert!(document["request_id"].is_string() && document["title"].is_string());
}

fn refused(answer: &Answer, statuses: &[u16]) {
    assert!(statuses.contains(&answer.status), "{}: {}", answer.status, answer.text());
    problem(&answer.json());
    assert_eq!(answer.json()["status"], answer.status);
}

/// Each violation names a place of the document, or one that is missing below such a place.
fn violated(answer: &Value, document: Option<&Value>) {
    problem(answer);
    let errors = answer["errors"].as_array().expect("errors");
    assert!(!errors.is_empty() && errors.len() <= LISTED_MAX, "{} violations", errors.len());
    for error in errors {
        let pointer = error["pointer"].as_str().expect("a pointer");
        assert!(pointer.is_empty() || pointer.starts_with('/'), "{pointer} is no pointer");
        assert!(error["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
        let parent = pointer.rsplit_once('/').map_or("", |(parent, _)| parent);
        // Of a repeated key serde_json keeps the last value alone.
        let repeated = errors.iter().any(|error| error["code"] == "duplicate");
        if let Some(document) = document.filter(|_| !repeated) {
            assert!(document.pointer(parent).is_some(), "{pointer} is nowhere in {document}");
        }
    }
}

/// The service without its sockets, with a ledger, and one decision on record.
struct Service {
    plane: Router,
    runtime: tokio::runtime::Runtime,
    decision: String,
    _directory: tempfile::TempDir,
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

static SERVICE: LazyLock<Service> = LazyLock::new(Service::start);

impl Service {
    /// The small model with the policy that asks most of a request.
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
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
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut service =
            Self { plane: data_plane(&shared), runtime, decision: String::new(), _directory: directory };
        let answer = service.post("/v1/score", JSON, include_bytes!("../../tests/data/customer.json"));
        service.decision = answer.json()["decision_id"].as_str().expect("a decision").to_owned();
        service
    }

    fn post(&self, path: &str, media: &str, body: &[u8]) -> Answer {
        let request = Request::post(path).header("content-type", media).header("content-length", body.len());
        let request = request.body(Body::from(body.to_vec())).expect("a request");
        let answer = async {
            let response = self.plane.clone().oneshot(request).await.expect("a router cannot fail");
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.expect("a whole body").to_bytes().to_vec();
            Answer { status, body }
        };
        let answer = self.runtime.block_on(answer);
        assert!(answer.status < 500, "{}: {}", answer.status, answer.text());
        answer
    }
}
