//! Health, version, models, metrics, and the way down.

use std::io::Write;

use serde_json::json;

use crate::service::{Service, customer, read_to_end, shared, until};

#[tokio::test]
async fn both_planes_say_that_they_are_well() {
    for path in ["/livez", "/readyz", "/version"] {
        assert_eq!((shared().get(path).await.status, shared().get_admin(path).await.status), (200, 200), "{path}");
    }
    let version = shared().get("/version").await.json();
    assert_eq!(
        (version["name"].as_str(), version["version"].as_str()),
        (Some("mainstay"), Some(env!("CARGO_PKG_VERSION")))
    );
}

#[tokio::test]
async fn the_planes_keep_to_themselves() {
    assert_eq!(shared().get("/metrics").await.status, 404);
    assert_eq!(shared().get_admin("/v1/models").await.status, 404);
}

#[tokio::test]
async fn models_show_their_cards() {
    let models = shared().get("/v1/models").await.json();
    let names: Vec<_> = models["models"]
        .as_array()
        .expect("models")
        .iter()
        .map(|model| (model["name"].clone(), model["default"].clone()))
        .collect();
    assert_eq!(names, [(json!("telco-churn"), json!(true)), (json!("mlc-churn"), json!(false))]);
    let model = shared().get("/v1/models/telco-churn").await.json();
    assert_eq!(model["evaluator"], "native", "{model}");
    assert_eq!(model["card"]["features"][0]["name"], "tenure");
    assert_eq!(model["digest"].as_str().map(str::len), Some(64));
    assert!(model["probe"]["difference_max"].as_f64().is_some_and(|difference| difference <= 1e-5));
    assert_eq!(shared().get("/v1/models/nope").await.code(), "unknown_model");
}

#[tokio::test]
async fn metrics_count_what_was_answered() {
    let service = Service::start(&[]);
    for _ in 0..3 {
        service.post("/v1/score", &customer()).await;
    }
    service.post("/v1/score", &json!({})).await;
    let text = service.get_admin("/metrics").await.text;
    for line in [
        "mainstay_http_requests_total{route=\"score\",status=\"200\"} 3",
        "mainstay_http_requests_total{route=\"score\",status=\"422\"} 1",
        "mainstay_http_request_duration_seconds_bucket{route=\"score\",le=\"+Inf\"} 4",
        "mainstay_stage_duration_seconds_count{stage=\"infer\"} 3",
        "mainstay_decisions_total{model=\"telco-churn\",version=\"1.0.0\",tier=\"medium\"} 3",
        "mainstay_problems_total{code=\"invalid_request\"} 1",
        "mainstay_panics_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
    }
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let page = shared().get("/docs/").await;
    assert_eq!(page.status, 200);
    for asset in ["swagger-ui.css", "swagger-ui-bundle.js", "swagger-ui-standalone-preset.js", "swagger-initializer.js"]
    {
        assert!(page.text.contains(asset), "{}", page.text);
        let found = shared().get(&format!("/docs/{asset}")).await;
        assert_eq!(found.status, 200, "{asset}");
    }
    assert!(!page.text.contains("http://") && !page.text.contains("https://"), "{}", page.text);
    assert_eq!(shared().get("/docs").await.header("location"), "/docs/");
}

/// A request whose head and half of whose body have come is in flight: it is answered, although the service is told to stop.
#[tokio::test]
async fn a_stop_lets_requests_in_flight_end() {
    let mut service = Service::start(&["drain.delay_ms=2000"]);
    let body = customer().to_string();
    let (first, second) = body.split_at(body.len() / 2);
    let head = format!(
        "POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = service.connect();
    stream.write_all(format!("{head}{first}").as_bytes()).expect("written");
    service.wait_in_flight(1).await;
    service.begin_stop();
    until(async || service.get("/readyz").await.status == 503).await;
    assert_eq!(service.get_admin("/readyz").await.json()["status"], "draining");
    stream.write_all(second.as_bytes()).expect("written");
    let answer = read_to_end(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("decision_id"), "{answer}");
    service.wait();
}

/// One that never ends does not keep the service from stopping.
#[tokio::test]
async fn a_stop_is_bounded() {
    let mut service = Service::start(&["drain.timeout_ms=100"]);
    let mut stream = service.connect();
    stream
        .write_all(
            b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{",
        )
        .expect("written");
    service.wait_in_flight(1).await;
    service.wait();
}
