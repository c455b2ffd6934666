//! What a model estimates of interventions: it decides what is worth offering, stands on record, comes out the same again, and is probed
//! like the score. The bundle 9.0.5-uplift says `0.3 tanh(w (1 - tenure / 24))`, w being 1 of an e-mail and -0.5 of an offer.

use serde_json::{Value, json};

use sha2::{Digest, Sha256};

use crate::ledger::mainstay;
use crate::service::{Service, customer_with, until};
use crate::slots::{done, models, slots, stage};

const VALUE: &str = include_str!("../../models/policy/value.toml");
const NO_BUDGET: &str = "[budget]";

/// A customer of so many months, whose lifetime value is 1,000. The new ones were contacted too lately for more than an e-mail.
fn customer(tenure: u32) -> Value {
    let mut customer = customer_with("tenure", json!(tenure));
    customer["customer_id"] = json!(format!("C-{tenure}"));
    customer["context"] =
        json!({"clv": 1000, "region": "EU", "days_since_contact": if tenure < 24 { 20 } else { 100 }});
    customer
}

/// A service under the value policy without its budget, whose champion is `version`.
fn start(models: &std::path::Path, version: &str) -> Service {
    start_with(models, version, &[])
}

fn start_with(models: &std::path::Path, version: &str, more: &[&str]) -> Service {
    let policy = models.join("value.toml");
    std::fs::write(&policy, VALUE.split_once(NO_BUDGET).expect("a budget").0).expect("written");
    let serve = format!(
        "models.serve=[{{ name = \"telco-churn\", version = \"{version}\", policy = {:?} }}]",
        policy.display().to_string()
    );
    let dir = format!("models.dir={}", models.display());
    Service::start(&[&[dir.as_str(), &serve, "rollouts.arm_header=true"], more].concat())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// What is best for a customer by the estimates of the two interventions that the model knows, and by score x effectiveness of the others.
fn best(decision: &Value, tenure: u32) -> (&'static str, f64) {
    let (score, new) = (number(&decision["score"]), 1.0 - f64::from(tenure) / 24.0);
    let worth = [
        ("none", 0.0),
        ("account_manager_call", 1000.0 * 0.4 * score - 50.0),
        ("retention_offer", 1000.0 * 0.3 * (-0.5 * new).tanh() - 25.0),
        ("discount_email", 1000.0 * 0.3 * new.tanh() - 10.0),
        ("engagement_email", 1000.0 * 0.05 * score - 0.5),
    ];
    let may = |action: &str| tenure >= 24 || !["account_manager_call", "retention_offer"].contains(&action);
    worth.into_iter().filter(|(action, _)| may(action)).max_by(|one, other| one.1.total_cmp(&other.1)).expect("some")
}

fn check(decision: &Value, tenure: u32) {
    let (action, worth) = best(decision, tenure);
    let offer = &decision["intervention"];
    assert_eq!(offer["action"], action, "{tenure}: {decision}");
    assert!((number(&offer["expected_value"]) - worth).abs() < 1e-3, "{tenure}: {worth}: {decision}");
    let is_estimated = ["retention_offer", "discount_email"].contains(&action);
    assert_eq!(offer.get("uplift").is_some(), is_estimated, "{decision}");
    let rule = format!("uplift:{action}");
    let has_rule = decision["rules"].as_array().expect("rules").iter().any(|one| *one == json!(rule));
    assert_eq!(has_rule, is_estimated, "{decision}");
}

#[tokio::test]
async fn a_slow_model_estimates_in_its_turn() {
    let models = models();
    let service = start_with(models.path(), "9.0.5-uplift", &["models.inline_row_us_max=0"]);
    assert_eq!(service.get("/v1/models/telco-churn").await.json()["scoring"]["way"], "turns");
    for tenure in [1, 20, 72] {
        check(&service.post("/v1/score", &customer(tenure)).await.json(), tenure);
    }
}

#[tokio::test]
async fn an_estimate_stands_for_score_times_effectiveness() {
    let models = models();
    let service = start(models.path(), "9.0.5-uplift");
    let (mut actions, mut sum) = (std::collections::BTreeSet::new(), 0.0);
    for tenure in [1, 6, 12, 20, 40, 60, 72] {
        let decision = service.post("/v1/score", &customer(tenure)).await.json();
        check(&decision, tenure);
        sum += number(&decision["intervention"]["expected_value"]);
        actions.insert(decision["intervention"]["action"].as_str().expect("an action").to_owned());
        let id = decision["decision_id"].as_str().expect("an id");
        let recorded = service.get(&format!("/v1/decisions/{id}")).await.json();
        let answered = decision["intervention"].get("uplift").cloned().unwrap_or_default();
        assert_eq!((&recorded["uplift"], &recorded["rules"]), (&answered, &decision["rules"]));
    }
    assert!(actions.contains("discount_email") && actions.contains("retention_offer"), "{actions:?}");
    // Rows of a batch are decided on alike, and all of it comes out the same again.
    let rows: Vec<Value> = (0..40).map(|at| customer(at * 7 % 73)).collect();
    let answer = service.post("/v1/score/batch", &json!(rows)).await.json();
    for (at, decision) in answer["results"].as_array().expect("results").iter().enumerate() {
        check(decision, at as u32 * 7 % 73);
        sum += number(&decision["intervention"]["expected_value"]);
    }
    let dir = format!("models.dir={}", models.path().display());
    let (code, text) = mainstay(&service.ledger, &["replay", "--last", "47", "--set", &dir]);
    // ONNX Runtime rounds rows of a batch otherwise; but for that, all of it is the same.
    let count = |words: &str| {
        text.lines().find(|line| line.contains(words)).and_then(|line| line.split(' ').next()?.parse::<u32>().ok())
    };
    let (same, rounded) = (count("to the last bit"), count("from the score on record"));
    assert!(code == 0 && same.is_some_and(|same| same >= 7), "{text}");
    assert_eq!(same.unwrap_or_default() + rounded.unwrap_or_default(), 47, "{text}");
    // What-if asks the model for its estimates too: the same policy does the same.
    let body = json!({"model": "telco-churn", "document": VALUE.split_once(NO_BUDGET).expect("a budget").0});
    let told = service.post_admin("/v1/policies:simulate", &[], &body).await.json();
    assert_eq!(told["before"]["expected_value"], told["after"]["expected_value"], "{told}");
    assert!((number(&told["after"]["expected_value"]) - sum).abs() < 1e-6, "{sum}: {told}");
}

#[tokio::test]
async fn each_model_estimates_by_itself() {
    let models = models();
    let service = start(models.path(), "1.0.0");
    stage(&service, "9.0.5-uplift").await;
    for (arm, is_estimated) in [("champion", false), ("challenger", true)] {
        let headers = [("content-type", "application/json"), ("x-mainstay-arm", arm)];
        let decision = service.post_raw("/v1/score", &headers, customer(2).to_string()).await.json();
        let offer = &decision["intervention"];
        assert_eq!(offer.get("uplift").is_some(), is_estimated, "{arm}: {decision}");
        if is_estimated {
            check(&decision, 2);
        }
    }
}

/// Writes 9.0.6-wide: the same with 1.05 for 0.3, which is no difference of probabilities for who has been here for 69 months.
fn make_wide(models: &std::path::Path) {
    let (from, to) = (models.join("telco-churn/9.0.5-uplift"), models.join("telco-churn/9.0.6-wide"));
    let read = |file: &str| std::fs::read(from.join(file)).expect("a file of the bundle");
    let parse = |file: &str| -> Value { serde_json::from_slice(&read(file)).expect("JSON") };
    let (mut graph, usual, wide) = (read("model.onnx"), 0.3_f32.to_le_bytes(), 1.05_f32.to_le_bytes());
    let at = graph.windows(4).position(|bytes| bytes == usual).expect("0.3");
    graph[at..at + 4].copy_from_slice(&wide);
    let mut golden = parse("golden.json");
    let rows = golden["rows"].as_array_mut().expect("rows");
    rows.retain(|row| row["features"]["tenure"].as_u64() < Some(69));
    for uplift in rows.iter_mut().flat_map(|row| row["uplift"].as_array_mut().expect("uplifts")) {
        *uplift = json!(number(uplift) * 3.5);
    }
    let mut card = parse("manifest.json");
    card["version"] = json!("9.0.6-wide");
    std::fs::create_dir(&to).expect("a directory");
    let files =
        [("model.onnx", graph), ("golden.json", golden.to_string().into()), ("baseline.json", read("baseline.json"))];
    for (file, bytes) in files {
        let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        card["files"][file] = json!({"bytes": bytes.len(), "sha256": sha256});
        std::fs::write(to.join(file), bytes).expect("written");
    }
    std::fs::write(to.join("manifest.json"), card.to_string()).expect("written");
}

#[tokio::test]
async fn a_customer_whose_estimate_fails_counts_as_failed_once_alone_and_in_a_batch() {
    let models = models();
    make_wide(models.path());
    let service = start(models.path(), "9.0.6-wide");
    stage(&service, "9.0.5-uplift").await;
    done(&service, "start", json!({"steps": [{"exposure": "canary", "share": 0.5, "bake_secs": 3600}]})).await;
    let rows: Vec<Value> = (0..40)
        .map(|number| {
            let mut customer = customer(72);
            customer["customer_id"] = json!(format!("C-{number}"));
            customer
        })
        .collect();
    let answers = service.post("/v1/score/batch", &json!(rows)).await.json()["results"].clone();
    let answers = answers.as_array().expect("results");
    let own = answers.iter().filter(|answer| answer["model"]["arm"] == "challenger").count();
    let failed = answers.iter().filter(|answer| answer["decision_id"].is_null()).count();
    assert!(own > 0 && own + failed == rows.len() && failed > 0, "{own} and {failed}");
    let counts = |failed: usize| format!("0 of {own} customers failed, {failed} of {failed} of the champion's");
    let told = async |counts: String| {
        let slots = slots(&service).await;
        slots["rollout"]["guardrails"][0]["figures"].as_str().is_some_and(|figures| figures.starts_with(&counts))
    };
    until(async || told(counts(failed)).await).await;
    // One more of the champion's, alone.
    for number in 40.. {
        let mut customer = customer(72);
        customer["customer_id"] = json!(format!("C-{number}"));
        let answer = service.post("/v1/score", &customer).await;
        if answer.status != 200 {
            break;
        }
    }
    let one_more = format!("{} of {} of the champion's", failed + 1, failed + 1);
    until(async || {
        slots(&service).await["rollout"]["guardrails"][0]["figures"]
            .as_str()
            .is_some_and(|figures| figures.contains(&one_more))
    })
    .await;
}
