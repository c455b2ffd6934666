//! Scoring many customers, as a JSON array and as NDJSON.

use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::service::{Service, customer, customer_with, golden, raw, shared};

const NDJSON: [(&str, &str); 1] = [("content-type", "application/x-ndjson")];

fn results(answer: &crate::service::Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["results"].as_array().expect("results").clone()
}

#[tokio::test]
async fn a_bad_row_does_not_spoil_the_others_and_order_is_kept() {
    let rows = json!([customer(), {"customer_id": "x"}, customer_with("Contract", json!("One yaer")), 7, customer_with("tenure", json!(72)), null]);
    let answer = shared().post("/v1/score/batch", &rows).await;
    let results = results(&answer);
    assert_eq!(results.len(), 6);
    let codes: Vec<Value> = results.iter().map(|item| item["code"].clone()).collect();
    let bad = json!("invalid_request");
    assert_eq!(codes, [Value::Null, bad.clone(), bad.clone(), bad.clone(), Value::Null, bad.clone()]);
    assert_eq!(results[2]["errors"][0]["nearest"], "One year");
    assert_eq!(results[2]["request_id"], answer.header("x-request-id"));
    let alone = shared().post("/v1/score", &customer_with("tenure", json!(72))).await.json();
    assert_eq!(results[4]["score"], alone["score"], "a row scores in a batch as it does alone");
}

#[tokio::test]
async fn a_batch_scores_every_row_as_it_would_alone() {
    let golden = golden("mlc-churn/1.0.0");
    // More rows than one run of the graph takes.
    let rows: Vec<&Value> = golden.iter().map(|(customer, _)| customer).cycle().take(1_100).collect();
    let answer = shared().post("/v1/models/mlc-churn/score/batch", &json!(rows)).await;
    let results = results(&answer);
    assert_eq!(results.len(), 1_100);
    for (result, (_, score)) in results.iter().zip(golden.iter().cycle()) {
        assert!((result["score"].as_f64().expect("a score") - score).abs() <= 1e-5, "{result}");
    }
    assert!(answer.header("server-timing").contains("infer;dur="));
}

#[tokio::test]
async fn an_empty_batch_is_answered_with_none() {
    assert_eq!(shared().post("/v1/score/batch", &json!([])).await.text, "{\"results\":[]}");
    assert_eq!(shared().post_raw("/v1/score/batch", &NDJSON, "").await.text, "");
    assert_eq!(shared().post_raw("/v1/score/batch", &NDJSON, "\n \n\r\n").await.text, "");
}

#[tokio::test]
async fn what_is_no_array_is_refused_as_a_whole() {
    let answer = shared().post("/v1/score/batch", &customer()).await;
    assert_eq!((answer.status, answer.code().as_str()), (422, "invalid_request"));
    let answer = shared().post_raw("/v1/score/batch", &[("content-type", "application/json")], "[{}, {]").await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "malformed_json"));
    let answer = shared().post_raw("/v1/score/batch", &[("content-type", "text/csv")], "a,b").await;
    assert_eq!((answer.status, answer.code().as_str()), (415, "unsupported_media_type"));
}

#[tokio::test]
async fn the_number_of_rows_and_the_size_of_one_are_bounded() {
    let service =
        Service::start(&["limits.batch_rows_max=2", "limits.body_bytes_max=1000", "limits.batch_body_bytes_max=5000"]);
    let answer = service.post("/v1/score/batch", &json!([1, 2, 3])).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "too_many_rows"));
    // The rest of it is not even looked at: rows that are not held cannot be too many to be held.
    for path in ["/v1/score/batch", "/v1/outcomes"] {
        let answer = service.post_raw(path, &[("content-type", "application/json")], "[1,2,3,and so on").await;
        assert_eq!((answer.status, answer.code().as_str()), (413, "too_many_rows"), "{path}");
    }
    let answer = service.post("/v1/score/batch", &json!([{"customer_id": "x".repeat(1_000)}, customer()])).await;
    let results = results(&answer);
    assert_eq!((results[0]["code"].as_str(), results[1]["tier"].as_str()), (Some("body_too_large"), Some("medium")));
    let answer = service.post("/v1/score/batch", &json!(["x".repeat(5_000)])).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
}

#[tokio::test]
async fn ndjson_is_answered_line_by_line() {
    let lines = format!("{}\n{{\"a\":\n\n{}", customer(), customer_with("tenure", json!(72)));
    let answer = shared().post_raw("/v1/score/batch", &NDJSON, lines).await;
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    let items: Vec<Value> = answer.text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(items.len(), 3);
    assert!(items[0]["decision_id"].is_string() && items[2]["decision_id"].is_string());
    assert_eq!(
        (items[1]["code"].as_str(), items[1]["request_id"].as_str()),
        (Some("malformed_json"), Some(answer.header("x-request-id")))
    );
    assert!(answer.text.ends_with('\n'));
}

#[tokio::test]
async fn a_stream_has_no_end_that_we_set() {
    // Far more rows than a JSON batch may have.
    let line = format!("{}\n", customer());
    let answer = shared().post_raw("/v1/score/batch", &NDJSON, line.repeat(12_000)).await;
    assert_eq!(answer.text.lines().filter(|line| line.contains("decision_id")).count(), 12_000);
}

#[test]
fn ndjson_is_answered_while_it_still_comes_in() {
    let mut stream = shared().connect();
    let line = format!("{}\n", customer());
    let chunk = format!("{:x}\r\n{line}\r\n", line.len());
    let head = "POST /v1/score/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    stream.write_all(format!("{head}{chunk}").as_bytes()).expect("written");
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains("decision_id") {
        let count = stream.read(&mut buffer).expect("the first answer before the second row");
        assert!(count > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    stream.write_all(format!("{chunk}0\r\n\r\n").as_bytes()).expect("written");
    text.push_str(&crate::service::read_to_end(&mut stream));
    assert_eq!(text.matches("decision_id").count(), 2, "{text}");
}

#[test]
fn a_row_without_an_end_is_refused_and_ends_the_stream() {
    let long = format!("{{\"customer_id\": \"{}", "x".repeat(70_000));
    let head = format!(
        "POST /v1/score/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        long.len()
    );
    let answer = raw(shared(), format!("{head}{long}").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("body_too_large"), "{answer}");
}
