//! What is wrong with a request, and that it is told: each with its status, its code and the way out.

use insta::assert_json_snapshot;
use reqwest::Method;
use serde_json::{Value, json};

use crate::service::{customer, customer_with, raw, shared};

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// The first violation of the answer to `body`, as (pointer, code, nearest).
async fn violation(body: &Value) -> (String, String, Value) {
    let answer = shared().post("/v1/score", body).await;
    assert_eq!((answer.status, answer.code().as_str()), (422, "invalid_request"), "{}", answer.text);
    let first = answer.json()["errors"][0].clone();
    let text = |key: &str| first[key].as_str().unwrap_or_default().to_owned();
    (text("pointer"), text("code"), first["nearest"].clone())
}

#[tokio::test]
async fn every_violation_is_told_at_once() {
    let mut body = customer();
    body["customer_id"] = json!(7);
    body["featurs"] = json!({});
    let features = body["features"].as_object_mut().expect("features");
    features.insert("tenure".into(), json!(-1));
    features.insert("Contract".into(), json!("Month to month"));
    features.insert("MonthlyCharges".into(), json!("95.5"));
    features.insert("Tenur/e".into(), json!(3));
    features.remove("PaperlessBilling");
    let answer = shared()
        .post_raw("/v1/score", &[("content-type", "application/json"), ("x-request-id", "r-1")], body.to_string())
        .await;
    assert_eq!(answer.code(), "invalid_request");
    assert_json_snapshot!(answer.json());
}

#[tokio::test]
async fn each_wrong_value_has_its_place_and_code() {
    let told = |pointer: &str, code: &str, nearest: Option<&str>| (pointer.to_owned(), code.to_owned(), json!(nearest));
    let cases = [
        (customer_with("tenure", json!("12")), told("/features/tenure", "wrong_type", None)),
        (customer_with("tenure", json!(1.5)), told("/features/tenure", "wrong_type", None)),
        (customer_with("tenure", json!(true)), told("/features/tenure", "wrong_type", None)),
        (customer_with("tenure", json!([])), told("/features/tenure", "wrong_type", None)),
        (customer_with("tenure", json!(121)), told("/features/tenure", "out_of_range", None)),
        (customer_with("tenure", Value::Null), told("/features/tenure", "missing", None)),
        (customer_with("MonthlyCharges", json!(1e300)), told("/features/MonthlyCharges", "out_of_range", None)),
        (
            customer_with("Contract", json!("One yaer")),
            told("/features/Contract", "unknown_category", Some("One year")),
        ),
        (customer_with("Contract", json!("")), told("/features/Contract", "unknown_category", None)),
        (customer_with("Contract", json!(1)), told("/features/Contract", "wrong_type", None)),
        (customer_with("gender", json!("Female")), told("/features/gender", "unknown_name", None)),
        (
            customer_with("monthlycharges", json!(1)),
            told("/features/monthlycharges", "unknown_name", Some("MonthlyCharges")),
        ),
        (json!([customer()]), told("", "wrong_type", None)),
        (json!({"customer_id": "", "features": customer()["features"]}), told("/customer_id", "out_of_range", None)),
        (
            json!({"customer_id": "x".repeat(129), "features": customer()["features"]}),
            told("/customer_id", "out_of_range", None),
        ),
        (json!({"features": customer()["features"]}), told("/customer_id", "missing", None)),
        (json!({"customer_id": "x"}), told("/features", "missing", None)),
        (json!({"customer_id": "x", "features": []}), told("/features", "wrong_type", None)),
        (
            json!({"customer_id": "x", "features": customer()["features"], "context": 1}),
            told("/context", "wrong_type", None),
        ),
    ];
    for (body, expected) in cases {
        assert_eq!(violation(&body).await, expected, "{body}");
    }
}

#[tokio::test]
async fn a_repeated_key_is_told_at_every_level() {
    let text = customer().to_string();
    for (from, to, pointer) in [
        ("\"tenure\":2", "\"tenure\":2,\"tenure\":3", "/features/tenure"),
        ("\"customer_id\":\"C-1001\"", "\"customer_id\":\"a\",\"customer_id\":\"b\"", "/customer_id"),
        ("\"customer_id\":\"C-1001\"", "\"customer_id\":\"a\",\"context\":{\"r\":1,\"r\":2}", "/context/r"),
        ("\"customer_id\":\"C-1001\"", "\"customer_id\":\"a\",\"context\":{\"o\":{\"r\":1,\"r\":2}}", "/context/o/r"),
    ] {
        let body = text.replace(from, to);
        assert_ne!(body, text);
        let answer = shared().post_raw("/v1/score", &JSON, body).await;
        let first = answer.json()["errors"][0].clone();
        assert_eq!(
            (first["pointer"].as_str(), first["code"].as_str()),
            (Some(pointer), Some("duplicate")),
            "{}",
            answer.text
        );
    }
}

/// A name of half a body is not copied for each of thousands of names below it, nor told with each of a hundred violations.
#[tokio::test]
async fn of_a_long_name_only_the_beginning_comes_back() {
    let (name, below) = ("k".repeat(32_000), ["\"\":1"; 5_000].join(","));
    let body = format!("{{\"customer_id\":\"a\",\"features\":{{}},\"context\":{{\"{name}\":{{{below}}}}}}}");
    let answer = shared().post_raw("/v1/score", &JSON, body).await;
    let problem = answer.json();
    let errors = problem["errors"].as_array().expect("errors");
    assert_eq!((answer.status, errors.len()), (422, 100));
    let pointer = errors[0]["pointer"].as_str().expect("a pointer");
    assert!(pointer.starts_with("/context/kkk") && pointer.ends_with("k…/"), "{pointer}");
    assert!(answer.text.len() < 40_000, "{} bytes", answer.text.len());
}

#[tokio::test]
async fn what_is_not_json_is_told_with_its_place() {
    for body in
        ["", "{", "{\"customer_id\": NaN}", "[Infinity]", "{\"a\": 1e999}", "{} trailing", "{'a': 1}", "\u{feff}{}"]
    {
        let answer = shared().post_raw("/v1/score", &JSON, body).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "malformed_json"), "{body}");
        assert!(answer.json()["detail"].as_str().expect("detail").contains("line 1 column"), "{}", answer.text);
    }
    let answer = shared().post_raw("/v1/score", &JSON, b"{\"customer_id\": \"\xff\"}".to_vec()).await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "malformed_json"));
}

#[tokio::test]
async fn depth_and_size_are_bounded() {
    let deep = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));
    let answer = shared().post_raw("/v1/score", &JSON, deep).await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "too_deep"));
    let answer = shared().post_raw("/v1/score", &JSON, vec![b' '; 65_537]).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    // Without a length stated, the limit still holds.
    let chunk = format!("10001\r\n{}\r\n0\r\n\r\n", " ".repeat(65_537));
    let head = "POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    let answer = raw(shared(), format!("{head}{chunk}").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("body_too_large"), "{answer}");
}

#[tokio::test]
async fn only_json_is_taken() {
    for headers in [
        vec![],
        vec![("content-type", "text/plain")],
        vec![("content-type", "application/x-ndjson")],
        vec![("content-type", "application/json"), ("content-encoding", "gzip")],
    ] {
        let answer = shared().post_raw("/v1/score", &headers, customer().to_string()).await;
        assert_eq!((answer.status, answer.code().as_str()), (415, "unsupported_media_type"), "{headers:?}");
    }
}

#[tokio::test]
async fn an_unknown_model_is_told_with_the_nearest_one() {
    let answer = shared().post("/v1/models/telco-chrun/score", &customer()).await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_model"));
    assert_eq!(answer.json()["detail"], "in service: telco-churn, mlc-churn; did you mean \"telco-churn\"?");
    let answer = shared().get("/v1/models/%FF").await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "malformed_path"));
}

#[tokio::test]
async fn a_wrong_method_and_a_wrong_path_are_told() {
    let answer = shared().call(Method::GET, "/v1/score").await;
    assert_eq!((answer.status, answer.code().as_str(), answer.header("allow")), (405, "method_not_allowed", "POST"));
    let answer = shared().call(Method::DELETE, "/v1/models").await;
    assert_eq!((answer.status, answer.code().as_str()), (405, "method_not_allowed"));
    let answer = shared().get("/v2/score").await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"));
}

#[tokio::test]
async fn no_value_is_echoed_in_a_problem_but_its_name() {
    let secret = "very-personal-value";
    for body in [
        customer_with("tenure", json!(secret)),
        customer_with("Contract", json!(secret)),
        json!({"customer_id": [secret]}),
        json!(secret),
    ] {
        let answer = shared().post("/v1/score", &body).await;
        assert_eq!(answer.status, 422);
        assert!(!answer.text.contains(secret), "{}", answer.text);
    }
}
