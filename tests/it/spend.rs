//! Budgets, capacities and holdouts over HTTP: never more is spent than there is, whoever asks at once and whenever the service starts again;
//! who is held out stays held out; and all of it is on record and comes out the same again.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::ledger::{decide, mainstay, named};
use crate::service::{Service, until};

const VALUE: &str = include_str!("../../models/policy/value.toml");

/// Everybody is called, or else written to.
pub(crate) const CALL: &str = r#"
name = "call"
description = "Everybody is called"
currency = "USD"
[[tiers]]
name = "all"
score = "[0, 1]"
intervention = "call"
fallback = ["mail"]
[interventions.call]
description = "A call"
cost = 20.1
expected_effectiveness = 0.4
[interventions.mail]
description = "A letter"
cost = 1.25
expected_effectiveness = 0.1
"#;

fn write(directory: &Path, document: &str) -> PathBuf {
    let path = directory.join("policy.toml");
    std::fs::write(&path, document).expect("written");
    path
}

fn start(directory: &Path, overrides: &[&str]) -> Service {
    let policy = directory.join("policy.toml");
    let serve =
        format!("models.serve=[{{ name = \"telco-churn\", version = \"1.0.0\", policy = \"{}\" }}]", policy.display());
    Service::start_in(directory, &[&[serve.as_str()], overrides].concat())
}

async fn budget(service: &Service) -> Value {
    service.get_admin("/v1/slots/telco-churn").await.json()["budget"].clone()
}

/// What the ledger says that all decisions cost, in millionths.
fn spent(ledger: &Path) -> i64 {
    let database = rusqlite::Connection::open(ledger.join("ledger.db")).expect("a ledger");
    let sql = "SELECT coalesce(sum(CAST(round(json_extract(body, '$.cost') * 1e6) AS INTEGER)), 0) FROM entry WHERE kind = 'decision'";
    database.query_row(sql, [], |row| row.get(0)).expect("a sum")
}

/// Decides on `count` customers at once, one by one and in batches: the decisions.
async fn decide_at_once(service: &Arc<Service>, count: usize) -> Vec<Value> {
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..count {
        let service = service.clone();
        tasks.spawn(async move {
            if at % 4 > 0 {
                return vec![decide(&service, &named(&format!("C-{at}"))).await];
            }
            let rows: Vec<Value> = (0..5).map(|row| named(&format!("C-{at}-{row}"))).collect();
            // Only so many batches are taken at a time.
            loop {
                let answer = service.post("/v1/score/batch", &json!(rows)).await;
                if answer.status != 503 {
                    break answer.json()["results"].as_array().expect("results").clone();
                }
            }
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

#[tokio::test]
async fn never_more_is_spent_than_there_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let amount: f64 = 30.0 * 20.1 + 3.0 * 1.25 + 0.5;
    write(directory.path(), &format!("{CALL}\n[budget]\namount = {amount}\nperiod = \"month\""));
    let mut decisions = Vec::new();
    let service = Arc::new(start(directory.path(), &[]));
    let begun = budget(&service).await;
    assert_eq!(
        (&begun["amount"], &begun["currency"], &begun["period"]),
        (&json!(amount), &json!("USD"), &json!("month"))
    );
    assert_eq!((&begun["spent"], &begun["left"], &begun["shadow_price"]), (&json!(0.0), &json!(amount), &json!(0.0)));
    decisions.extend(decide_at_once(&service, 10).await);
    let before = budget(&service).await;
    drop(service);

    let service = Arc::new(start(directory.path(), &[]));
    assert_eq!(budget(&service).await, before, "what was spent is on record");
    assert_eq!(spent(directory.path()) as f64 / 1e6, before["spent"].as_f64().expect("a number"));
    decisions.extend(decide_at_once(&service, 20).await);
    let offered = |action: &str| decisions.iter().filter(|one| one["intervention"]["action"] == action).count();
    assert_eq!((decisions.len(), offered("call"), offered("mail")), (22 + 40, 30, 3));
    assert_eq!(budget(&service).await["left"], 0.5);
    let stepped_down = decisions.iter().find(|one| one["intervention"]["action"] == "mail").expect("a letter");
    assert_eq!(stepped_down["rules"], json!(["budget:refused:call", "fallback:mail", "objective:tier"]));
    let id = stepped_down["decision_id"].as_str().expect("an id");
    let recorded = service.get(&format!("/v1/decisions/{id}")).await.json();
    assert_eq!((&recorded["rules"], &recorded["cost"]), (&stepped_down["rules"], &json!(1.25)));
    assert_eq!((&recorded["shadow_price"], &recorded["holdout"]), (&json!(0.0), &Value::Null));
    until(async || {
        let text = service.get_admin("/metrics").await.text;
        text.contains(&format!("mainstay_budget_spent{{model=\"telco-churn\"}} {}", amount - 0.5))
    })
    .await;
    assert_eq!(spent(directory.path()), ((amount - 0.5) * 1e6).round() as i64);
    let (code, text) = mainstay(&service.ledger, &["replay", "--last", "62"]);
    assert!(code == 0 && text.contains("62 of 62 decisions came out the same to the last bit"), "{text}");

    // More money, the same period: it goes on where it stood. Another period begins with what is on record of it.
    for (period, left) in [("month", 20.6), ("day", 20.6)] {
        let document = format!("{CALL}\n[budget]\namount = {}\nperiod = \"{period}\"", amount + 20.1);
        let body = json!({"by": "ops", "document": document});
        let applied = service.post_admin("/v1/slots/telco-churn/apply_policy", &[], &body).await;
        assert_eq!(applied.status, 200, "{}", applied.text);
        let now = &applied.json()["slots"]["budget"];
        assert_eq!((&now["period"], &now["left"]), (&json!(period), &json!(left)));
    }
    assert_eq!(decide(&service, &named("C-1")).await["intervention"]["action"], "call");
    let body = json!({"by": "ops", "document": CALL});
    service.post_admin("/v1/slots/telco-churn/apply_policy", &[], &body).await;
    assert_eq!(budget(&service).await, Value::Null);
    assert_eq!(decide(&service, &named("C-1")).await["intervention"]["action"], "call");
}

#[tokio::test]
async fn what_the_ledger_refuses_is_not_spent() {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), &format!("{CALL}\n[budget]\namount = 100\nperiod = \"month\""));
    let service = start(directory.path(), &["ledger.queue_max=4", "ledger.wait_ms_max=50"]);
    let blocker = rusqlite::Connection::open(directory.path().join("ledger.db")).expect("a ledger");
    blocker.execute_batch("BEGIN IMMEDIATE").expect("a lock");
    // The first one waits for the disk: it may be written yet, so its money is gone. The others find no place behind it.
    let late = service.post("/v1/score", &named("C-1")).await;
    assert_eq!((late.status, late.code().as_str()), (503, "ledger_unavailable"));
    let rows: Vec<Value> = (0..4).map(|at| named(&format!("C-{at}"))).collect();
    let refused = service.post("/v1/score/batch", &json!(rows)).await;
    let results = refused.json()["results"].as_array().expect("results").clone();
    assert!(results.iter().all(|result| result["status"] == 503), "{}", refused.text);
    assert_eq!(budget(&service).await["spent"], 20.1);
    blocker.execute_batch("ROLLBACK").expect("released");
    until(async || spent(directory.path()) == 20_100_000).await;
    assert_eq!(budget(&service).await["spent"], 20.1);
}

#[tokio::test]
async fn what_money_was_worth_is_on_record() {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), &VALUE.replace("amount = 50000.00", "amount = 120"));
    let service = start(directory.path(), &[]);
    let customer = |at: usize| {
        let mut customer = named(&format!("C-{at}"));
        customer["context"] = json!({"clv": 5000 - at, "region": "EU"});
        customer
    };
    for at in 0..5 {
        decide(&service, &customer(at)).await;
    }
    until(async || budget(&service).await["shadow_price"].as_f64().expect("a price") > 0.0).await;
    let mut last = Value::Null;
    for at in 5..10 {
        last = decide(&service, &customer(at)).await;
    }
    let id = last["decision_id"].as_str().expect("an id");
    let recorded = service.get(&format!("/v1/decisions/{id}")).await.json();
    assert!(recorded["shadow_price"].as_f64().expect("a price") > 0.0, "{recorded}");
    assert!(recorded["rules"].to_string().contains("budget:refused:"), "{recorded}");
    let (code, text) = mainstay(&service.ledger, &["replay", "--last", "10"]);
    assert!(code == 0 && text.contains("10 of 10 decisions came out the same to the last bit"), "{text}");
    drop(service);
    let service = start(directory.path(), &[]);
    assert!(
        budget(&service).await["shadow_price"].as_f64().expect("a price") > 0.0,
        "the price is that of the last one"
    );
    assert!(spent(directory.path()) <= 120_000_000);
}

#[tokio::test]
async fn who_is_held_out_is_offered_nothing_and_stays_held_out() {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), &format!("{CALL}\n[budget]\namount = 1e6\nperiod = \"week\"\n[holdout]\nshare = 0.3"));
    let rows: Vec<Value> = (0..100).map(|at| named(&format!("C-{at}"))).collect();
    let mut seen: Vec<HashSet<usize>> = Vec::new();
    for _ in 0..2 {
        let service = start(directory.path(), &[]);
        let answer = service.post("/v1/score/batch", &json!(rows)).await.json();
        let mut held_out = HashSet::new();
        for (at, decision) in answer["results"].as_array().expect("results").iter().enumerate() {
            let is_held_out = decision.get("holdout").is_some();
            let id = decision["decision_id"].as_str().expect("an id");
            let recorded = service.get(&format!("/v1/decisions/{id}")).await.json();
            let propensity = if is_held_out { 0.3 } else { 0.7 };
            assert_eq!((&recorded["holdout"], &recorded["propensity"]), (&json!(is_held_out), &json!(propensity)));
            if is_held_out {
                held_out.insert(at);
                assert_eq!(decision["holdout"], true);
                assert_eq!(decision["rules"], json!(["holdout", "objective:tier"]));
            }
            let action = if is_held_out { "none" } else { "call" };
            assert_eq!(decision["intervention"]["action"], action);
        }
        let called = (100 - held_out.len()) as f64 * (seen.len() + 1) as f64;
        assert!((budget(&service).await["spent"].as_f64().expect("a number") - called * 20.1).abs() < 1e-6);
        let (code, text) = mainstay(&service.ledger, &["replay", "--last", "100"]);
        assert!(code == 0 && text.contains("100 of 100 decisions came out the same to the last bit"), "{text}");
        seen.push(held_out);
    }
    assert_eq!(seen[0], seen[1]);
    assert!((15..=45).contains(&seen[0].len()), "{}", seen[0].len());
}

#[tokio::test]
async fn never_more_customers_have_an_intervention_than_its_capacity() {
    let directory = tempfile::tempdir().expect("a directory");
    let capped = CALL.replace("cost = 20.1", "cost = 20.1\ncapacity = { count = 25, per = \"month\" }");
    write(directory.path(), &capped);
    let taken = async |service: &Service| service.get_admin("/v1/slots/telco-churn").await.json()["capacities"].clone();
    let mut decisions = Vec::new();
    for (count, called) in [(5, 13), (20, 25)] {
        let service = Arc::new(start(directory.path(), &[]));
        decisions.extend(decide_at_once(&service, count).await);
        let offered = |action: &str| decisions.iter().filter(|one| one["intervention"]["action"] == action).count();
        assert_eq!((offered("call"), offered("mail")), (called, decisions.len() - called));
        let stands = &taken(&service).await[0];
        assert_eq!(
            (&stands["action"], &stands["count"], &stands["per"]),
            (&json!("call"), &json!(25), &json!("month"))
        );
        assert_eq!(stands["taken"], called, "also after a restart");
    }
    let service = start(directory.path(), &[]);
    let late = decisions.iter().find(|one| one["intervention"]["action"] == "mail").expect("a letter");
    assert_eq!(late["rules"], json!(["capacity:refused:call", "fallback:mail", "objective:tier"]));
    let count = decisions.len().to_string();
    let (code, text) = mainstay(&service.ledger, &["replay", "--last", &count]);
    assert!(code == 0 && text.contains(&format!("{count} of {count} decisions came out the same")), "{text}");
    // A wider one goes on where the last one stood.
    let wider = json!({"by": "ops", "document": capped.replace("count = 25", "count = 26")});
    assert_eq!(service.post_admin("/v1/slots/telco-churn/apply_policy", &[], &wider).await.status, 200);
    let actions = [decide(&service, &named("D-1")).await, decide(&service, &named("D-2")).await];
    assert_eq!(actions.map(|one| one["intervention"]["action"].clone()), [json!("call"), json!("mail")]);
}

/// Once nobody can be called any more all are offered the same, held out or not, and that is certain.
#[tokio::test]
async fn what_is_full_is_offered_to_nobody_so_its_propensity_is_none() {
    let directory = tempfile::tempdir().expect("a directory");
    let capped = CALL.replace("cost = 20.1", "cost = 20.1\ncapacity = { count = 1, per = \"month\" }");
    write(directory.path(), &format!("{}\n[holdout]\nshare = 0.3", capped.replace("fallback = [\"mail\"]", "")));
    let service = start(directory.path(), &[]);
    let rows: Vec<Value> = (0..40).map(|at| named(&format!("C-{at}"))).collect();
    let answer = service.post("/v1/score/batch", &json!(rows)).await.json();
    let (mut is_full, mut held_out) = (false, [0; 2]);
    for decision in answer["results"].as_array().expect("results") {
        let id = decision["decision_id"].as_str().expect("an id");
        let recorded = service.get(&format!("/v1/decisions/{id}")).await.json();
        let (action, is_held_out) = (decision["intervention"]["action"].as_str(), decision["holdout"] == true);
        let expected = match (is_full, is_held_out) {
            (true, _) => 1.0,
            (false, true) => 0.3,
            (false, false) => 0.7,
        };
        assert_eq!(recorded["propensity"], json!(expected), "{recorded}");
        assert_eq!(action == Some("call"), !is_full && !is_held_out, "{recorded}");
        held_out[usize::from(is_full)] += usize::from(is_held_out);
        is_full |= action == Some("call");
    }
    assert!(held_out[1] > 3, "{held_out:?}");
    let (code, text) = mainstay(&service.ledger, &["replay", "--last", "40"]);
    assert!(code == 0 && text.contains("40 of 40 decisions came out the same to the last bit"), "{text}");
}

#[tokio::test]
async fn a_batch_with_a_budget_takes_no_more_places_than_there_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let valued = CALL
        .replace("cost = 20.1", "cost = 20.1\ncapacity = { count = 3, per = \"week\" }")
        .replace("currency = \"USD\"", "currency = \"USD\"\nvalue_at_stake = 1000");
    write(directory.path(), &format!("{valued}\n[budget]\namount = 100\nperiod = \"week\""));
    let service = start(directory.path(), &[]);
    let rows: Vec<Value> = (0..9).map(|at| named(&format!("C-{at}"))).collect();
    let answer = service.post("/v1/score/batch?budget=98", &json!(rows)).await.json();
    let results = answer["results"].as_array().expect("results");
    let with = |action: &str| results.iter().filter(|one| one["intervention"]["action"] == action).count();
    assert_eq!((with("call"), with("mail")), (3, 6), "{answer}");
    assert_eq!(answer["allocation"]["spent"], 67.8);
    let told = |rule: &str| results.iter().filter(|one| one["rules"].to_string().contains(rule)).count();
    assert_eq!((told("capacity:refused:call"), told("budget:allocation")), (6, 9), "{answer}");
    let stands = service.get_admin("/v1/slots/telco-churn").await.json();
    assert_eq!((&stands["capacities"][0]["taken"], &stands["budget"]["spent"]), (&json!(3), &json!(67.8)));
    let next = decide(&service, &named("C-9")).await;
    assert_eq!(next["rules"], json!(["capacity:refused:call", "fallback:mail", "objective:tier"]));
    let (code, text) = mainstay(&service.ledger, &["replay", "--last", "10"]);
    assert!(code == 0 && text.contains("1 of 10 decisions") && text.contains("9 more came out the same"), "{text}");
}
