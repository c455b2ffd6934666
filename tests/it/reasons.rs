//! Reasons: that they are those of the libraries that trained the models, sum up to the score, and are there when they are asked for.

use insta::assert_json_snapshot;
use serde_json::{Value, json};

use crate::ledger::{mainstay, problems};
use crate::service::{Service, customer, customer_with, golden, shared};

fn log_odds(score: f64) -> f64 {
    (score / (1.0 - score)).ln()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number: {value}"))
}

fn explained(mut customer: Value) -> Value {
    customer["explain"] = json!(true);
    customer
}

/// The base and all contributions of `decision` sum up to its score.
fn check_sum(decision: &Value, tolerance: f64) {
    let reasons = decision["reasons"].as_array().expect("reasons");
    let sum: f64 = reasons.iter().map(|reason| number(&reason["log_odds"])).sum();
    let expected = log_odds(number(&decision["score"]));
    let found = number(&decision["base"]["log_odds"]) + sum;
    assert!((found - expected).abs() <= tolerance, "{found} is not {expected}");
    let points: f64 = reasons.iter().map(|reason| number(&reason["points"])).sum();
    let moved = 100.0 * (number(&decision["score"]) - number(&decision["base"]["score"]));
    assert!((points - moved).abs() <= 100.0 * tolerance, "{points} is not {moved}");
}

#[tokio::test]
async fn an_explained_decision_has_its_reasons_on_record() {
    let service = Service::start(&[]);
    let decision = service.post("/v1/score", &explained(customer())).await.json();
    let rounded = insta::rounded_redaction(5);
    assert_json_snapshot!(decision, {
        ".decision_id" => "[uuid]", ".decided_at" => "[time]", ".score" => insta::rounded_redaction(5),
        ".base.*" => insta::dynamic_redaction(round), ".reasons[].log_odds" => rounded, ".reasons[].points" => insta::rounded_redaction(3),
    });
    let id = decision["decision_id"].as_str().expect("an id");
    let recorded = service.get(&format!("/v1/decisions/{id}")).await.json();
    let expected: Vec<Value> = decision["reasons"]
        .as_array()
        .expect("reasons")
        .iter()
        .map(|reason| json!({"code": reason["code"], "shap": reason["log_odds"]}))
        .collect();
    assert_eq!(recorded["reasons"], json!(expected));
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
}

fn round(value: insta::internals::Content, _: insta::internals::ContentPath) -> insta::internals::Content {
    match value.as_f64() {
        Some(number) => insta::internals::Content::F64((number * 1e5).round() / 1e5),
        None => value,
    }
}

#[tokio::test]
async fn nobody_pays_for_reasons_who_did_not_ask() {
    for body in [customer(), {
        let mut body = customer();
        body["explain"] = json!(false);
        body
    }] {
        let decision = shared().post("/v1/score", &body).await.json();
        assert!(decision.get("reasons").is_none() && decision.get("base").is_none(), "{decision}");
    }
}

#[tokio::test]
async fn contributions_are_those_of_the_libraries_that_trained_the_models() {
    let reference: Value = serde_json::from_str(include_str!("../data/treeshap.json")).expect("JSON");
    let challenger = Service::start(&["models.serve=[{ name = \"telco-churn\", version = \"1.1.0\" }]"]);
    for (bundle, rows) in reference.as_object().expect("bundles") {
        let (name, version) = bundle.split_once('/').expect("a name and a version");
        let service = if version == "1.1.0" { &challenger } else { shared() };
        let customers = golden(bundle);
        for row in rows.as_array().expect("rows") {
            let (customer, _) = &customers[row["row"].as_u64().expect("a place") as usize];
            let decision = service.post(&format!("/v1/models/{name}/score?top=50"), customer).await.json();
            assert_eq!(decision["base"]["method"], "tree_shap", "{decision}");
            let mut worst = (number(&decision["base"]["log_odds"]) - number(&row["base"])).abs();
            for reason in decision["reasons"].as_array().expect("reasons") {
                let expected = &row["values"][reason["feature"].as_str().expect("a feature")];
                worst = worst.max((number(&reason["log_odds"]) - number(expected)).abs());
            }
            assert!(worst <= 1e-5, "{bundle}, row {}: {worst}", row["row"]);
            check_sum(&decision, 1e-5);
        }
    }
}

#[tokio::test]
async fn a_linear_model_has_a_closed_form() {
    let service = Service::start(&["models.serve=[{ name = \"telco-churn\", version = \"1.2.0\" }]"]);
    for (customer, _) in golden("telco-churn/1.2.0").into_iter().take(8) {
        let decision = service.post("/v1/score?top=50", &customer).await.json();
        assert_eq!(decision["base"]["method"], "linear_shap", "{decision}");
        check_sum(&decision, 1e-5);
    }
}

#[tokio::test]
async fn any_other_graph_has_an_estimate_with_its_error() {
    // Its score is that of a linear model and a tenth: neither trees nor a sum of columns.
    let serve = "models.serve=[{ name = \"telco-churn\", version = \"9.0.1-shifted\" }]";
    let service = Service::start(&["models.dir=tests/data/bundles", serve]);
    let decision = service.post("/v1/score?top=50", &customer()).await.json();
    assert_eq!(decision["base"]["method"], "sampled_shapley", "{decision}");
    check_sum(&decision, 1e-4);
    let reasons = decision["reasons"].as_array().expect("reasons");
    assert!(reasons.iter().all(|reason| number(&reason["standard_error"]) < 0.3), "{decision}");
    let again = service.post("/v1/score?top=50", &customer()).await.json();
    assert_eq!(again["reasons"], decision["reasons"]);
}

#[tokio::test]
async fn as_many_reasons_as_asked_for_the_greatest_first() {
    let reasons = async |path: &str, body: &Value| {
        let decision = shared().post(path, body).await.json();
        decision["reasons"].as_array().unwrap_or_else(|| panic!("{decision}")).clone()
    };
    assert_eq!(reasons("/v1/score", &explained(customer())).await.len(), 3);
    let all = reasons("/v1/score?top=50", &customer()).await;
    assert_eq!(all.len(), 15);
    assert!(all.is_sorted_by_key(|reason| -(number(&reason["log_odds"]).abs() * 1e9) as i64));
    assert_eq!(reasons("/v1/score?top=2", &explained(customer())).await, all[..2]);
}

#[tokio::test]
async fn every_row_of_a_batch_asks_for_itself() {
    let rows = json!([customer(), explained(customer()), {"customer_id": "x"}]);
    let results = shared().post("/v1/score/batch", &rows).await.json()["results"].clone();
    let counts: Vec<_> = (0..3).map(|at| results[at]["reasons"].as_array().map(Vec::len)).collect();
    assert_eq!(counts, [None, Some(3), None]);
    let alone = shared().post("/v1/score", &explained(customer())).await.json();
    assert_eq!(results[1]["reasons"], alone["reasons"]);
    let results = shared().post("/v1/score/batch?top=1", &json!([customer()])).await.json()["results"].clone();
    assert_eq!(results[0]["reasons"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_missing_value_is_told_as_null_beside_the_typical_one() {
    let decision = shared().post("/v1/score?top=50", &customer_with("TotalCharges", Value::Null)).await.json();
    let reasons = decision["reasons"].as_array().expect("reasons");
    let of = |name: &str| reasons.iter().find(|reason| reason["feature"] == name).expect("its reason").clone();
    assert_eq!(of("TotalCharges")["value"], Value::Null);
    let tenure = of("tenure");
    assert_eq!(number(&tenure["value"]), number(&customer()["features"]["tenure"]));
    assert!((25.0..35.0).contains(&number(&tenure["typical"])), "{tenure}");
    assert_eq!(of("Contract")["typical"], "Month-to-month");
}

#[tokio::test]
async fn what_is_no_request_for_reasons_is_refused() {
    for path in ["/v1/score?top=0", "/v1/score?top=51", "/v1/score?top=x", "/v1/score?topp=3", "/v1/score/batch?top=0"]
    {
        assert_eq!(shared().post(path, &customer()).await.code(), "invalid_request", "{path}");
    }
    let mut body = customer();
    body["explain"] = json!("yes");
    let problem = shared().post("/v1/score", &body).await.json();
    assert_eq!(problem["errors"][0]["pointer"], "/explain", "{problem}");
}

/// A service whose policy wants two reasons for every medium score, and none for the others.
pub(crate) fn explaining(directory: &std::path::Path, overrides: &[&str], version: &str) -> Service {
    let document = include_str!("../../models/policy/default.toml");
    let document = document.replacen("score = \"[0.5, 0.8]\"", "score = \"[0.5, 0.8]\"\nexplain = 2", 1);
    let path = directory.join("explaining.toml");
    std::fs::write(&path, document).expect("written");
    let serve = format!(
        "models.serve=[{{ name = \"telco-churn\", version = \"{version}\", policy = \"{}\" }}]",
        path.display()
    );
    Service::start_in(directory, &[&[serve.as_str()], overrides].concat())
}

#[tokio::test]
async fn a_policy_wants_reasons_for_a_tier_whoever_asks() {
    let directory = tempfile::tempdir().expect("a directory");
    let service = explaining(directory.path(), &[], "1.0.0");
    let customers: Vec<Value> = golden("telco-churn/1.0.0").into_iter().map(|(customer, _)| customer).collect();
    let rows = service.post("/v1/score/batch", &json!(customers)).await.json()["results"].clone();
    let rows = rows.as_array().expect("results");
    let medium = rows.iter().position(|row| row["tier"] == "medium").expect("a medium score");
    for row in rows {
        let wanted = (row["tier"] == "medium").then_some(2);
        assert_eq!(row["reasons"].as_array().map(Vec::len), wanted, "{row}");
    }
    let count = async |path: &str| {
        let decision = service.post(path, &customers[medium]).await.json();
        decision["reasons"].as_array().map(Vec::len)
    };
    assert_eq!(count("/v1/score").await, Some(2));
    assert_eq!(
        (count("/v1/score?top=1").await, count("/v1/score?top=5").await),
        (Some(2), Some(5)),
        "the more of the two"
    );
    let last = (rows.len() + 3).to_string();
    let (code, text) = mainstay(&service.ledger, &["replay", "--last", &last]);
    assert!(code == 0 && text.contains(&format!("{last} of {last} decisions came out the same")), "{text}");
}

#[tokio::test]
async fn a_policy_never_lets_slow_reasons_onto_the_thread_of_a_request() {
    let directory = tempfile::tempdir().expect("a directory");
    let overrides = ["models.dir=tests/data/bundles", "limits.batches_max=1", "limits.batch_wait_ms_max=60000"];
    let service = explaining(directory.path(), &overrides, "9.0.1-shifted");
    let customers = golden("telco-churn/1.2.0");
    let mut seen: [Vec<&serde_json::Value>; 2] = Default::default();
    for (customer, _) in customers.iter().take(40) {
        let decision = service.post("/v1/score", customer).await.json();
        let is_medium = decision["tier"] == "medium";
        assert_eq!(decision.get("reasons").is_some(), is_medium, "{decision}");
        seen[usize::from(is_medium)].push(customer);
    }
    let [plain, explained] = seen;
    assert!(!plain.is_empty() && !explained.is_empty());
    // While all threads for long work are taken, who needs none is answered, and who needs one is told to come again.
    let _batches = crate::limits::hold_long_work(&service, plain[0]).await;
    let mut refused = 0;
    for (customer, _) in customers.iter().take(40) {
        let answer = service.post("/v1/score", customer).await;
        match answer.status {
            200 => assert_ne!(answer.json()["tier"], "medium"),
            status => {
                assert_eq!(status, 503, "{}", answer.text);
                refused += 1;
            }
        }
    }
    assert_eq!(refused, explained.len());
}
