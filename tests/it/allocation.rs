//! A batch with a budget of its own: spent where it brings most, never over what there is, and on record.

use serde_json::{Value, json};

use crate::ledger::{mainstay, problems};
use crate::service::{Service, golden, shared, until};

const VALUE: &str = include_str!("../../models/policy/value.toml");

fn start(directory: &std::path::Path, more: &str) -> Service {
    start_with(directory, more, "limits.batches_max=4")
}

fn start_with(directory: &std::path::Path, more: &str, setting: &str) -> Service {
    let path = directory.join("policy.toml");
    let (unbounded, _) = VALUE.split_once("[budget]").expect("a budget");
    std::fs::write(&path, format!("{unbounded}\n{more}")).expect("written");
    let serve =
        format!("models.serve=[{{ name = \"telco-churn\", version = \"1.0.0\", policy = \"{}\" }}]", path.display());
    Service::start_in(directory, &[&serve, setting])
}

/// Customers of whom some are worth much, who may have anything.
fn customers() -> Vec<Value> {
    let customer = |(at, (mut customer, _)): (usize, (Value, f64))| {
        customer["context"] = json!({"clv": 20 + (at * 7919) % 1500, "region": "EU"});
        customer
    };
    golden("telco-churn/1.0.0").into_iter().take(40).enumerate().map(customer).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number: {value}"))
}

/// Costs in half units and shares kept, of what the value policy knows.
const OFFERS: [(usize, f64); 4] = [(100, 0.4), (50, 0.3), (20, 0.2), (1, 0.05)];

/// The most that a budget of so many half units can be expected to bring: exactly, row by row.
fn optimum(results: &[Value], budget: usize) -> f64 {
    let mut most = vec![0.0_f64; budget + 1];
    for row in results {
        let stake = number(&row["score"]) * number(&row["value_at_stake"]);
        for left in (0..=budget).rev() {
            let affordable = OFFERS.iter().filter(|(cost, _)| *cost <= left);
            let worth = |(cost, share): &(usize, f64)| most[left - cost] + share * stake - *cost as f64 / 2.0;
            most[left] = affordable.map(worth).fold(most[left], f64::max);
        }
    }
    most[budget]
}

#[tokio::test]
async fn a_budget_is_spent_where_it_brings_most() {
    let directory = tempfile::tempdir().expect("a directory");
    let service = start(directory.path(), "");
    let mut rows = customers();
    rows.insert(7, json!({"customer_id": "x"}));
    for budget in [0.0, 20.5, 120.0, 100_000.0] {
        let answer = service.post(&format!("/v1/score/batch?budget={budget:.2}"), &json!(rows)).await.json();
        let (mut results, allocation) = (answer["results"].as_array().expect("results").clone(), &answer["allocation"]);
        assert_eq!(results.remove(7)["status"], 422);
        let sum = |key: &str| results.iter().map(|row| number(&row["intervention"][key])).sum::<f64>();
        assert_eq!((number(&allocation["spent"]), &allocation["currency"]), (sum("cost"), &json!("USD")));
        assert!(number(&allocation["spent"]) <= budget, "{allocation}");
        let value = number(&allocation["expected_value"]);
        assert!((value - sum("expected_value")).abs() < 1e-9);
        let optimum = optimum(&results, (2.0 * budget.min(2_000.0)) as usize);
        assert!(value >= optimum * (1.0 - 1e-5) - 1e-9, "{value} of {optimum}");
        assert!(
            number(&allocation["upper_bound"]) >= optimum - 1e-9 && (0.0..0.05).contains(&number(&allocation["gap"]))
        );
        for row in &results {
            let rules = row["rules"].as_array().expect("rules");
            assert!(rules.contains(&json!("budget:allocation")), "{row}");
            assert!(number(&row["intervention"]["expected_value"]) >= 0.0, "{row}");
        }
    }
    let (code, text) = mainstay(&service.ledger, &["replay", "--last", "40"]);
    assert!(code == 0 && text.contains("40 more came out the same but for the choice"), "{text}");
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
}

#[tokio::test]
async fn the_budget_of_the_policy_and_the_holdout_still_hold() {
    let directory = tempfile::tempdir().expect("a directory");
    let more = "[budget]\namount = 150\nperiod = \"month\"\n[holdout]\nshare = 0.4";
    let service = start(directory.path(), more);
    let body = json!(customers());
    // Two at once are what there may be.
    let (one, two) = tokio::join!(
        service.post("/v1/score/batch?budget=100", &body),
        service.post("/v1/score/batch?budget=100", &body)
    );
    let mut spent = 0.0;
    for answer in [one, two].into_iter().filter(|answer| answer.status == 200) {
        let answer = answer.json();
        assert!(number(&answer["allocation"]["spent"]) <= 100.0);
        spent += number(&answer["allocation"]["spent"]);
        let held_out = answer["results"].as_array().expect("results").iter().filter(|row| row["holdout"] == true);
        for row in held_out.clone() {
            assert_eq!(row["intervention"]["action"], "none");
            assert!(!row["rules"].to_string().contains("budget:allocation"), "{row}");
        }
        assert!((5..=30).contains(&held_out.count()));
    }
    let stands =
        async |service: &Service| number(&service.get_admin("/v1/slots/telco-churn").await.json()["budget"]["spent"]);
    assert_eq!(stands(&service).await, spent, "what was not spent went back");
    assert!(spent > 0.0 && spent <= 150.0);
    drop(service);
    let service = start(directory.path(), more);
    assert_eq!(stands(&service).await, spent, "what was spent is on record");
    let rest = service.post("/v1/score/batch?budget=100000", &body).await.json();
    assert!(spent + number(&rest["allocation"]["spent"]) <= 150.0, "{}", rest["allocation"]);
    assert_eq!(number(&rest["allocation"]["budget"]), 100_000.0);
}

/// What a customer is offered hangs on all the others, so nobody knows how probable it was.
#[tokio::test]
async fn what_was_chosen_for_a_batch_has_no_propensity() {
    let directory = tempfile::tempdir().expect("a directory");
    let service = start(directory.path(), "[budget]\namount = 150\nperiod = \"month\"\n[holdout]\nshare = 0.4");
    let answer = service.post("/v1/score/batch?budget=0", &json!(customers())).await.json();
    let mut counts = [0; 2];
    for decision in answer["results"].as_array().expect("results") {
        let id = decision["decision_id"].as_str().expect("an id");
        let recorded = service.get(&format!("/v1/decisions/{id}")).await.json();
        let is_held_out = decision["holdout"] == true;
        assert_eq!(
            (&recorded["action"], &recorded["holdout"], &recorded["propensity"]),
            (&json!("none"), &json!(is_held_out), &Value::Null)
        );
        counts[usize::from(is_held_out)] += 1;
    }
    assert!(counts.iter().all(|count| *count > 4), "{counts:?}");
    let (code, text) = mainstay(&service.ledger, &["replay", "--last", "40"]);
    let told = format!("{} more came out the same but for the choice", counts[0]);
    assert!(code == 0 && text.contains(&format!("{} of 40 decisions", counts[1])) && text.contains(&told), "{text}");
}

/// Nothing of a batch with a budget is on record before all of it is decided on: whoever leaves before that leaves nothing.
#[tokio::test]
async fn a_budget_is_not_spent_for_who_has_gone() {
    let directory = tempfile::tempdir().expect("a directory");
    let service = start_with(directory.path(), "", "limits.batches_max=1");
    let customers = customers();
    let body = json!(customers.iter().cycle().take(10_000).collect::<Vec<_>>()).to_string();
    let head = format!(
        "POST /v1/score/batch?budget=1000 HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = service.connect();
    std::io::Write::write_all(&mut stream, format!("{head}{body}").as_bytes()).expect("written");
    // It is worked on from when it has its place.
    let is_busy = async || service.post("/v1/score?counterfactuals=1", &customers[0]).await.status == 503;
    until(is_busy).await;
    stream.shutdown(std::net::Shutdown::Both).expect("gone");
    until(async || crate::deadline::metric(&service, "mainstay_http_requests_abandoned_total").await == 1.0).await;
    until(async || service.post("/v1/score/batch", &json!([])).await.status == 200).await;
    let database = rusqlite::Connection::open(service.ledger.join("ledger.db")).expect("a ledger");
    let sql = "SELECT count(*) FROM entry WHERE kind = 'decision' AND instr(body, 'budget:allocation') > 0";
    let spent: i64 = database.query_row(sql, [], |row| row.get(0)).expect("a count");
    assert_eq!(spent, 0, "it went on to the end");
}

#[tokio::test]
async fn a_budget_that_cannot_be_spent_so_is_refused() {
    let body = json!(customers());
    let problem = shared().post("/v1/score/batch?budget=100", &body).await;
    assert_eq!((problem.status, problem.code().as_str()), (422, "invalid_request"));
    let error = &problem.json()["errors"][0];
    assert_eq!((&error["pointer"], &error["code"]), (&json!("/budget"), &json!("not_allowed")));
    let expected = "is not allowed here: expected a policy in force with value_at_stake, by which a budget is spent";
    assert_eq!(error["detail"], expected);
    let headers = [("content-type", "application/x-ndjson")];
    let stream = shared().post_raw("/v1/score/batch?budget=100", &headers, "{}\n").await;
    assert_eq!((stream.status, stream.code().as_str()), (415, "unsupported_media_type"));
    assert!(stream.text.contains("before its end is known"), "{}", stream.text);
    for budget in ["-1", "x", "1.1234567", "1e3", "2000000000", ""] {
        let answer = shared().post(&format!("/v1/score/batch?budget={budget}"), &body).await;
        assert_eq!(answer.code(), "invalid_request", "{budget}");
    }
    assert_eq!(shared().post("/v1/score?budget=5", &body[0]).await.code(), "invalid_request");
}
