//! Callers that wait only so long, and callers that have gone: what nobody waits for is not begun, and what is on record is answered.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::service::{Service, customer, golden, shared, until};

const JSON: (&str, &str) = ("content-type", "application/json");

/// The number behind `name` on /metrics; 0 where it is not there yet.
pub(crate) async fn metric(service: &Service, name: &str) -> f64 {
    let text = service.get_admin("/metrics").await.text;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}

#[tokio::test]
async fn who_waits_long_enough_is_answered() {
    let headers = [JSON, ("x-request-timeout-ms", "60000")];
    assert_eq!(shared().post_raw("/v1/score", &headers, customer().to_string()).await.status, 200);
    let answer = shared().post_raw("/v1/score/batch", &headers, json!([customer()]).to_string()).await;
    assert_eq!((answer.status, answer.json()["results"][0]["status"].clone()), (200, Value::Null));
}

#[tokio::test]
async fn a_time_that_is_none_is_told() {
    for path in ["/v1/score", "/v1/models/mlc-churn/score", "/v1/score/batch", "/v1/outcomes"] {
        let headers = [JSON, ("x-request-timeout-ms", "soon")];
        let answer = shared().post_raw(path, &headers, customer().to_string()).await;
        assert_eq!((answer.status, answer.code().as_str()), (422, "invalid_request"), "{path}");
        assert_eq!(answer.json()["errors"][0]["pointer"], "/x-request-timeout-ms");
    }
}

/// A body that comes too late for its caller is nothing that would have to be decided any more.
#[tokio::test]
async fn what_comes_too_late_is_not_decided() {
    let service = Service::start(&[]);
    for path in ["/v1/score", "/v1/score/batch", "/v1/outcomes"] {
        let mut stream = service.connect();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 400\r\nx-request-timeout-ms: 30\r\nconnection: close\r\n\r\n{{"
        );
        stream.write_all(head.as_bytes()).expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("deadline_exceeded"), "{path}: {answer}");
    }
    assert_eq!(metric(&service, "mainstay_problems_total{code=\"deadline_exceeded\"}").await, 3.0);
    assert_eq!(
        metric(&service, "mainstay_decisions_total{model=\"telco-churn\",version=\"1.0.0\",tier=\"medium\"}").await,
        0.0
    );
}

/// A stream answers what came in time, says that the time is up, and ends.
#[tokio::test]
async fn a_stream_ends_when_its_caller_stops_waiting() {
    let service = Service::start(&[]);
    let mut stream = service.connect();
    let line = customer().to_string();
    let head = format!(
        "POST /v1/score/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\ncontent-length: 100000\r\nx-request-timeout-ms: 700\r\nconnection: close\r\n\r\n{line}\n"
    );
    stream.write_all(head.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("\"decision_id\"") && answer.contains("deadline_exceeded"), "{answer}");
}

/// Customers for a batch that takes its time.
fn many(rows: usize) -> Vec<Value> {
    let known: Vec<Value> = golden("telco-churn/1.0.0").into_iter().map(|(customer, _)| customer).collect();
    (0..rows).map(|at| known[at % known.len()].clone()).collect()
}

async fn recorded(service: &Service) -> f64 {
    metric(service, "mainstay_ledger_records_total").await
}

/// Whatever the moment at which the time is up: rows that were decided on are answered, and no others are on record.
#[tokio::test]
async fn a_batch_is_answered_as_far_as_it_got() {
    let service = Service::start(&[]);
    let rows = 6_000;
    let body = json!(many(rows)).to_string();
    let mut timeout_ms = 20;
    loop {
        let before = recorded(&service).await;
        let headers = [JSON, ("x-request-timeout-ms", &timeout_ms.to_string())];
        let answer = service.post_raw("/v1/score/batch", &headers, body.clone()).await;
        let results = match answer.status {
            504 => Vec::new(),
            _ => answer.json()["results"].as_array().expect("results").clone(),
        };
        let decided = results.iter().take_while(|row| row["decision_id"].is_string()).count();
        let late = results.iter().skip(decided).filter(|row| row["code"] == "deadline_exceeded").count();
        assert!(results.is_empty() || decided + late == rows, "{decided} + {late}");
        assert_eq!(recorded(&service).await - before, decided as f64);
        if decided > 0 {
            assert!(decided.is_multiple_of(512) || decided == rows, "{decided}");
            break;
        }
        timeout_ms += 1 + timeout_ms / 4;
    }
}

#[tokio::test]
async fn work_whose_caller_is_gone_is_dropped_and_counted() {
    let service = Service::start(&["server.workers=1"]);
    let rows = 10_000;
    let body = json!(many(rows)).to_string();
    let before = recorded(&service).await;
    let mut stream = service.connect();
    let head = format!(
        "POST /v1/score/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("written");
    until(async || recorded(&service).await > before).await;
    stream.shutdown(Shutdown::Both).expect("gone");
    until(async || metric(&service, "mainstay_http_requests_abandoned_total").await == 1.0).await;
    // The place for long work is free once the thread has noticed.
    until(async || service.post("/v1/score/batch", &json!([])).await.status == 200).await;
    let after = recorded(&service).await;
    assert!(after - before < rows as f64, "{after} of {rows}: it went on to the end");
}

/// Far more comes than a worker can answer: some of it is refused at once, and whoever asks for health is never.
#[test]
fn overload_is_refused_early_and_health_is_answered() {
    let service = Service::start(&["server.workers=1", "server.queue_target_ms=1", "ledger.promise=off"]);
    let body = customer().to_string();
    let request = format!(
        "POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (stop, refused) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut streams: Vec<_> = (0..64).map(|_| service.connect()).collect();
                let mut buffer = vec![0; 8192];
                while !stop.load(Ordering::Relaxed) {
                    streams.iter_mut().for_each(|stream| stream.write_all(request.as_bytes()).expect("written"));
                    for stream in &mut streams {
                        let count = stream.read(&mut buffer).expect("an answer");
                        let answer = String::from_utf8_lossy(&buffer[..count]);
                        assert!(answer.starts_with("HTTP/1.1 200 ") || answer.starts_with("HTTP/1.1 503 "), "{answer}");
                        if answer.starts_with("HTTP/1.1 503 ") {
                            assert!(answer.contains("overloaded") && answer.contains("retry-after: 1"), "{answer}");
                            refused.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        let seen = runtime.block_on(async {
            let asked = async {
                while !refused.load(Ordering::Relaxed) {
                    assert_eq!((service.get("/livez").await.status, service.get("/readyz").await.status), (200, 200));
                }
            };
            tokio::time::timeout(Duration::from_secs(30), asked).await
        });
        stop.store(true, Ordering::Relaxed);
        seen.expect("nothing was refused");
    });
    // Alone again, everybody is answered.
    runtime.block_on(async {
        until(async || metric(&service, "mainstay_http_admitted_ratio{worker=\"0\"}").await == 1.0).await;
        assert_eq!(service.post("/v1/score", &customer()).await.status, 200);
    });
}
