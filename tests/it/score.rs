//! Scoring one customer.

use std::collections::HashSet;

use insta::assert_json_snapshot;
use serde_json::{Value, json};

use crate::service::{Service, customer, customer_with, golden, shared};

#[tokio::test]
async fn a_customer_gets_a_decision() {
    let answer = shared().post("/v1/score", &customer()).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    assert_json_snapshot!(answer.json(), { ".decision_id" => "[uuid]", ".decided_at" => "[time]", ".score" => insta::rounded_redaction(6) });
}

#[tokio::test]
async fn the_default_model_and_the_named_one_agree() {
    let unnamed = shared().post("/v1/score", &customer()).await.json();
    let named = shared().post("/v1/models/telco-churn/score", &customer()).await.json();
    assert_eq!(unnamed["score"], named["score"]);
    assert_ne!(unnamed["decision_id"], named["decision_id"]);
}

#[tokio::test]
async fn golden_rows_score_as_the_trainer_computed_over_http() {
    for (bundle, model) in [("telco-churn/1.0.0", "telco-churn"), ("mlc-churn/1.0.0", "mlc-churn")] {
        for (customer, score) in golden(bundle) {
            let answer = shared().post(&format!("/v1/models/{model}/score"), &customer).await;
            let found = answer.json()["score"].as_f64().unwrap_or_else(|| panic!("{}", answer.text));
            assert!((found - score).abs() <= 1e-5, "{bundle}: {found} is not {score}");
        }
    }
}

#[tokio::test]
async fn a_challenger_bundle_serves_just_as_well() {
    for version in ["1.1.0", "1.2.0"] {
        let serve = format!("models.serve=[{{ name = \"telco-churn\", version = \"{version}\" }}]");
        let service = Service::start(&[&serve]);
        for (customer, score) in golden(&format!("telco-churn/{version}")).into_iter().take(16) {
            let answer = service.post("/v1/score", &customer).await.json();
            assert!((answer["score"].as_f64().expect("a score") - score).abs() <= 1e-5, "{version}: {answer}");
            assert_eq!(answer["model"]["version"], version);
        }
    }
}

#[tokio::test]
async fn the_tier_and_the_intervention_follow_the_policy() {
    let tier_of = |score: f64| match score {
        score if score > 0.8 => json!(["high", "account_manager_call", 50.0, 0.4]),
        score if score >= 0.5 => json!(["medium", "discount_email", 10.0, 0.2]),
        _ => json!(["low", "engagement_email", 0.5, 0.05]),
    };
    let mut tiers = HashSet::new();
    for (customer, _) in golden("telco-churn/1.0.0").into_iter().chain([(likely_to_leave(), 1.0)]) {
        let decision = shared().post("/v1/score", &customer).await.json();
        let offer = &decision["intervention"];
        let found = json!([decision["tier"], offer["action"], offer["cost"], offer["expected_effectiveness"]]);
        assert_eq!(found, tier_of(decision["score"].as_f64().expect("a score")), "{decision}");
        assert_eq!(offer["currency"], "USD");
        tiers.insert(decision["tier"].to_string());
    }
    assert_eq!(tiers.len(), 3, "every tier was seen: {tiers:?}");
}

fn likely_to_leave() -> Value {
    let mut customer = customer();
    customer["features"]["tenure"] = json!(1);
    customer["features"]["MonthlyCharges"] = json!(95.0);
    customer["features"]["TotalCharges"] = json!(95.0);
    customer
}

#[tokio::test]
async fn another_policy_has_other_bands() {
    let service = Service::start(&["models.policy=models/policy/four-bands.toml"]);
    let models = service.get("/v1/models").await.json();
    let tiers: Vec<_> =
        models["models"][0]["policy"]["tiers"].as_array().expect("tiers").iter().map(|t| t["score"].clone()).collect();
    assert_eq!(tiers, ["[0.9, 1]", "[0.7, 0.9)", "[0.5, 0.7)", "[0, 0.5)"]);
    let decision = service.post("/v1/score", &customer()).await.json();
    assert_eq!(
        (decision["tier"].as_str(), decision["intervention"]["action"].as_str()),
        (Some("high"), Some("retention_offer"))
    );
}

#[tokio::test]
async fn a_missing_value_is_absent_or_null_where_the_dictionary_allows_it() {
    let null = shared().post("/v1/score", &customer_with("TotalCharges", Value::Null)).await;
    let mut absent = customer();
    absent["features"].as_object_mut().expect("features").remove("TotalCharges");
    let absent = shared().post("/v1/score", &absent).await;
    assert_eq!((null.status, absent.status), (200, 200));
    assert_eq!(null.json()["score"], absent.json()["score"]);
}

#[tokio::test]
async fn context_is_taken_and_changes_nothing_under_the_bundled_policies() {
    let mut with = customer();
    with["context"] = json!({"region": "EU", "audit": {"gender": "f"}});
    let with = shared().post("/v1/score", &with).await;
    assert_eq!(with.status, 200);
    assert_eq!(with.json()["score"], shared().post("/v1/score", &customer()).await.json()["score"]);
}

#[tokio::test]
async fn the_order_of_the_features_and_escapes_in_their_names_do_not_matter() {
    let straight = shared().post("/v1/score", &customer()).await.json();
    let customer = customer();
    let features = customer["features"].as_object().expect("features");
    let entries: Vec<String> = features.iter().rev().map(|(name, value)| format!("{}: {value}", json!(name))).collect();
    let body = format!("{{\"features\": {{{}}}, \"customer_id\": \"x\"}}", entries.join(", "))
        .replace("\"Contract\"", "\"\\u0043ontract\"");
    let turned = shared().post_raw("/v1/score", &[("content-type", "Application/JSON; charset=utf-8")], body).await;
    assert_eq!(turned.json()["score"], straight["score"]);
}

#[tokio::test]
async fn every_answer_carries_its_ids_and_times() {
    let headers = [
        ("content-type", "application/json"),
        ("x-request-id", "order-4711"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ];
    let answer = shared().post_raw("/v1/score", &headers, customer().to_string()).await;
    assert_eq!(answer.header("x-request-id"), "order-4711");
    assert!(answer.header("traceparent").starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
    assert!(!answer.header("traceparent").contains("00f067aa0ba902b7"));
    let timing = answer.header("server-timing");
    let stages: Vec<&str> = timing.split(", ").map(|stage| stage.split(";dur=").next().unwrap_or_default()).collect();
    assert_eq!(stages, ["parse", "encode", "infer", "policy", "ledger", "total"], "{timing}");
    let duration =
        |stage: &str| -> f64 { stage.split(";dur=").nth(1).and_then(|ms| ms.parse().ok()).expect("a duration") };
    let times: Vec<f64> = timing.split(", ").map(duration).collect();
    assert!(times[..5].iter().sum::<f64>() <= times[5] + 0.006, "{timing}");
}

#[tokio::test]
async fn decision_ids_are_unique_and_sorted_by_time() {
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(
            shared().post("/v1/score", &customer()).await.json()["decision_id"].as_str().expect("an id").to_owned(),
        );
    }
    let unique: HashSet<&String> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len());
    assert!(ids.iter().all(|id| id.len() == 36 && &id[14..15] == "7"), "{ids:?}");
    assert!(ids.is_sorted_by_key(|id| id[..13].to_owned()));
}
