//! What a caller sends, through the real handlers and every layer above them: the first byte of an input says by which door (`1` one
//! customer, `a` an array, `n` NDJSON, `o` outcomes), the rest is the body.

use serde_json::Value;

use super::service::{Answer, SERVICE};

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
        b'a' => many(post("/v1/score/batch", JSON, body)),
        b'n' => streamed(body),
        b'o' => told(body),
        _ => {}
    }
}

/// One customer: a decision, or every violation by its place; and by every door the same.
fn one(body: &[u8]) {
    let alone = post("/v1/score", JSON, body);
    let document: Option<Value> = serde_json::from_slice(body).ok();
    match alone.status {
        200 => decided(&alone.json()),
        422 => violated(&alone.json(), document.as_ref()),
        _ => return refused(&alone, &[400, 413]),
    }
    let rows = post("/v1/score/batch", JSON, &[b"[", body, b"]"].concat());
    if rows.status == 200 {
        let rows = rows.json();
        assert_eq!(rows["results"].as_array().map(Vec::len), Some(1), "one row is one answer");
        same(&alone.json(), &rows["results"][0]);
    } else {
        // An array reads its rows twice, the first time as serde_json does.
        refused(&rows, &[400, 413]);
    }
    if !body.iter().any(|byte| b"\r\n".contains(byte)) && !body.is_empty() {
        let lines = post("/v1/score/batch", NDJSON, body);
        assert_eq!(lines.status, 200);
        same(&alone.json(), &lines.json());
    }
    // Written anew, as another client would write it.
    if let Some(document) = document.filter(|_| alone.status == 200) {
        let again = post("/v1/score", JSON, document.to_string().as_bytes());
        assert_eq!(again.status, 200, "written anew it is refused: {}", again.text());
        let [one, other] = [alone.json(), again.json()].map(|answer| answer["score"].as_f64().expect("a score"));
        // A number may lose its last bit on its way through another writer.
        assert!((one - other).abs() < 1e-6, "{one} is {other} when it is written anew");
    }
}

fn post(path: &str, media: &str, body: &[u8]) -> Answer {
    let answer = SERVICE.post(path, media, body);
    assert!(answer.status < 500, "{}: {}", answer.status, answer.text());
    answer
}

fn streamed(body: &[u8]) {
    let answer = post("/v1/score/batch", NDJSON, body);
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
    let answer = post("/v1/outcomes", JSON, text.as_bytes());
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
