//! What-if over HTTP: a policy made to decide on decisions on record, beside the policy in force, with every figure computed again here; and
//! the check of a policy's compliance before it is applied.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use crate::ledger::{decide, mainstay, named};
use crate::service::{Answer, Service};
use crate::spend::CALL;

/// It looks at how customers pay, and at nothing that is protected.
const PROXY: &str = r#"
name = "proxy"
description = "Who pays by cheque is offered nothing"
currency = "USD"
[[tiers]]
name = "all"
score = "[0, 1]"
intervention = "discount_email"
[interventions.discount_email]
description = "A discount"
cost = 10.0
expected_effectiveness = 0.2
eligible = { PaymentMethod = ["Bank transfer (automatic)", "Credit card (automatic)"] }
"#;

const Z: f64 = 1.959_963_985;

async fn simulate(service: &Service, document: &str, more: Value) -> Answer {
    let mut body = json!({"model": "telco-churn", "document": document});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    service.post_admin("/v1/policies:simulate", &[], &body).await
}

async fn simulated(service: &Service, document: &str, more: Value) -> Value {
    let answer = simulate(service, document, more).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn close(found: &Value, expected: f64) {
    assert!((number(found) - expected).abs() < 1e-9 * expected.abs().max(1.0), "{found} instead of {expected}");
}

/// A customer of a group, who pays by cheque or not.
fn customer(at: usize, group: &str, by_cheque: bool) -> Value {
    let mut customer = named(&format!("C-{at}"));
    customer["context"] = json!({"audit": {"gender": group}});
    let method = if by_cheque { "Electronic check" } else { "Credit card (automatic)" };
    customer["features"]["PaymentMethod"] = json!(method);
    customer
}

/// 60 of group f, of whom 24 do not pay by cheque, and 40 of group m, of whom 32 do not: (customer, group, by cheque).
fn population() -> Vec<(Value, &'static str, bool)> {
    (0..100)
        .map(|at| {
            let (group, by_cheque) = if at < 60 { ("f", at % 5 >= 2) } else { ("m", at % 5 == 0) };
            (customer(at, group, by_cheque), group, by_cheque)
        })
        .collect()
}

/// The decisions on `rows`.
async fn decided(service: &Service, rows: Vec<Value>) -> Vec<Value> {
    let answer = service.post("/v1/score/batch", &json!(rows)).await;
    let results = answer.json()["results"].as_array().expect("results").clone();
    assert!(results.iter().all(|result| result["decision_id"].is_string()), "{}", answer.text);
    results
}

/// Tells of each decision what followed: every third customer left.
async fn follow(service: &Service, decisions: &[Value]) {
    let outcome = |(at, decision): (usize, &Value)| json!({"decision_id": decision["decision_id"], "occurred_at": decision["decided_at"], "churned": at % 3 == 0, "revenue": "7.5"});
    let outcomes: Vec<Value> = decisions.iter().enumerate().map(outcome).collect();
    let answer = service.post("/v1/outcomes", &json!(outcomes)).await;
    assert!(answer.status == 200 && !answer.text.contains("\"status\""), "{}", answer.text);
}

/// The mean of `terms` with the ends of its interval.
fn estimate(terms: &[f64]) -> [f64; 3] {
    let count = terms.len() as f64;
    let mean = terms.iter().sum::<f64>() / count;
    let error = (terms.iter().map(|term| (term - mean).powi(2)).sum::<f64>() / (count * (count - 1.0))).sqrt();
    [mean, mean - Z * error, mean + Z * error]
}

fn is_estimate(found: &Value, expected: [f64; 3]) {
    for (name, expected) in ["value", "low", "high"].into_iter().zip(expected) {
        assert!((number(&found[name]) - expected).abs() < 1e-6, "{name}: {found} instead of {expected}");
    }
}

#[tokio::test]
async fn a_policy_is_simulated_beside_the_one_in_force() {
    let service = Service::start(&[]);
    let population = population();
    let decisions = decided(&service, population.iter().map(|(customer, ..)| customer.clone()).collect()).await;
    follow(&service, &decisions).await;
    let found = simulated(&service, PROXY, json!({})).await;
    let made = &found["decisions"];
    assert_eq!(
        (&made["usable"], &made["customers"], &made["by_policy_in_force"]),
        (&json!(100), &json!(100), &json!(100))
    );
    let (before, after) = (&found["before"], &found["after"]);
    let action = |decision: &Value| decision["intervention"]["action"].as_str().expect("an action").to_owned();
    let mut expected: BTreeMap<(String, String), u64> = BTreeMap::new();
    for (decision, (.., by_cheque)) in decisions.iter().zip(&population) {
        let after = if *by_cheque { "none" } else { "discount_email" };
        *expected.entry((action(decision), after.to_owned())).or_default() += 1;
    }
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let changes = found["action_changes"].as_array().expect("changes").iter();
    let changes =
        changes.map(|one| ((text(&one["before"]), text(&one["after"])), one["decisions"].as_u64().expect("a count")));
    assert_eq!(changes.collect::<BTreeMap<_, _>>(), expected);
    let cost: f64 = decisions.iter().map(|decision| number(&decision["intervention"]["cost"])).sum();
    close(&before["cost"], cost);
    close(&after["cost"], 56.0 * 10.0);
    let rule = json!({"rule": "eligibility:discount_email:PaymentMethod", "decisions": 44});
    assert!(after["rules"].as_array().expect("rules").contains(&rule), "{}", after["rules"]);

    // 24 of 60 and 32 of 40.
    let [f, m] = [0, 1].map(|at| after["fairness"][0]["groups"][at].clone());
    assert_eq!(
        (&f["group"], &f["customers"], &m["group"], &m["reference"]),
        (&json!("f"), &json!(60), &json!("m"), &json!(true))
    );
    let spread: f64 = Z * ((1.0 - 0.4) / (60.0 * 0.4) + (1.0 - 0.8) / (40.0 * 0.8_f64)).sqrt();
    for (name, expected) in [("value", 0.5), ("low", 0.5 * (-spread).exp()), ("high", 0.5 * spread.exp())] {
        assert!((number(&f["parity"][name]) - expected).abs() < 1e-8, "{f}");
    }
    assert_eq!((&f["verdict"], &f["flagged"], &m["flagged"]), (&json!("fail"), &json!(true), &json!(false)));
    close(&f["cost_mean"], 4.0);
    close(&f["base_rate"], 20.0 / 60.0);
    let reached = |group: &str, all: bool| {
        let left = population.iter().enumerate().filter(|(at, (_, known, _))| at % 3 == 0 && *known == group);
        left.filter(|(_, (.., by_cheque))| all || !by_cheque).count() as f64
    };
    close(&f["true_positive_rate"], reached("f", false) / reached("f", true));
    let ratio = reached("f", false) / reached("f", true) / (reached("m", false) / reached("m", true));
    close(&f["true_positive_rate_ratio"]["value"], ratio);
    let flag = &found["compliance"]["flagged"][0];
    assert_eq!(
        (&flag["attribute"], &flag["group"], &flag["parity_before"]["value"]),
        (&json!("gender"), &json!("f"), &json!(1.0))
    );

    // Nothing was left to chance, so only those are known on whom both agree; score and effectiveness stand in for the others.
    assert_eq!(found["reward"], "retained");
    let effectiveness = |action: &str| match action {
        "none" => 0.0,
        "discount_email" => 0.2,
        _ => number(
            &decisions.iter().find(|one| action == one["intervention"]["action"]).expect("known")["intervention"]["expected_effectiveness"],
        ),
    };
    let (mut robust, mut stayed, mut agreed) = (Vec::new(), Vec::new(), Vec::new());
    for (at, (decision, (.., by_cheque))) in decisions.iter().zip(&population).enumerate() {
        let (taken, candidate) = (action(decision), if *by_cheque { "none" } else { "discount_email" });
        let stays = |action: &str| 1.0 - number(&decision["score"]) * (1.0 - effectiveness(action));
        let reward = f64::from(u8::from(at % 3 != 0));
        let weight = f64::from(u8::from(taken == candidate));
        robust.push(stays(candidate) + weight * (reward - stays(&taken)));
        stayed.push(reward);
        if taken == candidate {
            agreed.push(reward);
        }
    }
    let value = &after["value"];
    assert!(!agreed.is_empty() && agreed.len() < 100, "{}", agreed.len());
    assert_eq!((&value["matched"], &value["without_chance"]), (&json!(agreed.len()), &json!(100 - agreed.len())));
    assert_eq!((&value["ips"], number(&value["weight_mean"])), (&Value::Null, agreed.len() as f64 / 100.0));
    is_estimate(&value["doubly_robust"], estimate(&robust));
    is_estimate(&value["recorded"], estimate(&stayed));
    close(&value["snips"]["value"], agreed.iter().sum::<f64>() / agreed.len() as f64);
    is_estimate(&before["value"]["ips"], estimate(&stayed));
    let warnings = found["warnings"].to_string();
    assert!(warnings.contains(&format!("no overlap: {} of 100", 100 - agreed.len())), "{warnings}");
    let paid = simulated(&service, PROXY, json!({"reward": "revenue"})).await;
    assert_eq!(
        (&paid["after"]["value"]["recorded"]["value"], &paid["after"]["value"]["doubly_robust"]),
        (&json!(7.5), &Value::Null)
    );

    // Who is erased cannot be decided on again by a policy that reads inputs.
    for at in 0..7 {
        service.call(Method::DELETE, &format!("/v1/customers/C-{at}")).await;
    }
    let found = simulated(&service, PROXY, json!({})).await;
    assert_eq!((&found["decisions"]["usable"], &found["decisions"]["erased"]), (&json!(93), &json!(7)));
    assert_eq!(found["after"]["fairness"][0]["groups"][0]["customers"], 53);
    assert!(
        found["warnings"].to_string().contains("7 of 100 decisions could not be made again"),
        "{}",
        found["warnings"]
    );
    let last = simulated(&service, PROXY, json!({"last": 10})).await;
    assert_eq!((&last["decisions"]["looked_at"], &last["after"]["tiers"][0]["decisions"]), (&json!(10), &json!(10)));
}

#[tokio::test]
async fn a_budget_is_kept_in_every_period() {
    let service = Service::start(&[]);
    let decisions = decided(&service, (0..60).map(|at| named(&format!("C-{at}"))).collect()).await;
    const DAY: i64 = 86_400_000;
    const STEP: i64 = 2 * 3_600_000;
    let begun = 20_000 * DAY;
    // As if they had been made over five days: two hours apart, the first one at midnight.
    let database = rusqlite::Connection::open(service.ledger.join("ledger.db")).expect("a ledger");
    let first: i64 = database
        .query_row("SELECT min(seq) FROM entry WHERE kind = 'decision'", [], |row| row.get(0))
        .expect("a number");
    database.execute("UPDATE entry SET at_ms = ?1 + (seq - ?2) * ?3", [begun, first, STEP]).expect("moved");
    let time = |ms: i64| jiff::Timestamp::from_millisecond(ms).expect("a time").to_string();
    let amount = 7.0 * 20.1 + 2.0 * 1.25 + 0.6;
    let budget = json!({"amount": amount, "period": "day"});
    let found = simulated(&service, CALL, json!({"budget": budget, "last": 60})).await;
    let used = &found["after"]["budget"];
    assert_eq!(
        (&used["periods_count"], &used["spent_before"], &found["before"]["budget"]),
        (&json!(5), &json!(0.0), &Value::Null)
    );
    for (at, period) in used["periods"].as_array().expect("periods").iter().enumerate() {
        assert_eq!(
            (&period["from"], &period["decisions"]),
            (
                &json!(format!("{:.3}", jiff::Timestamp::from_millisecond(begun + at as i64 * DAY).expect("a time"))),
                &json!(12)
            )
        );
        // Seven are called, two are written to, three get nothing.
        close(&period["spent"], 7.0 * 20.1 + 2.0 * 1.25);
    }
    let counts: Vec<&Value> =
        found["after"]["interventions"].as_array().expect("actions").iter().map(|one| &one["decisions"]).collect();
    assert_eq!((counts, &used["refused"]), (vec![&json!(15), &json!(35), &json!(10)], &json!(25)));
    close(&found["after"]["cost"], 5.0 * (7.0 * 20.1 + 2.0 * 1.25));

    // From the middle of the second day: what was really spent that day is gone.
    let spent_before: f64 = (12..18).map(|at| number(&decisions[at]["intervention"]["cost"])).sum();
    let amount = spent_before + 21.0;
    let more = json!({"budget": {"amount": amount, "period": "day"}, "from": time(begun + DAY + DAY / 2), "to": time(begun + 2 * DAY)});
    let found = simulated(&service, CALL, more).await;
    let used = &found["after"]["budget"];
    close(&used["spent_before"], spent_before);
    assert_eq!((&found["decisions"]["looked_at"], &used["periods"][0]["spent"]), (&json!(6), &json!(20.1)));

    // By expected value a price follows demand, and never more is spent than there is.
    let worth = CALL
        .replace("currency = \"USD\"", "currency = \"USD\"\nobjective = \"expected_value\"\nvalue_at_stake = 1000")
        .replace("intervention = \"call\"\nfallback = [\"mail\"]", "");
    for amount in [0.0, 1.0, 20.1, 100.0, 1e6] {
        let found = simulated(&service, &worth, json!({"budget": {"amount": amount, "period": "day"}})).await;
        let used = &found["after"]["budget"];
        let periods = used["periods"].as_array().expect("periods");
        assert!(periods.iter().all(|period| number(&period["spent"]) <= amount), "{used}");
        let is_short = amount < 1e6;
        assert_eq!(number(&used["shadow_price"]) > 0.0, is_short, "{used}");
    }
}

#[tokio::test]
async fn a_holdout_is_valued_by_the_chances_on_record() {
    let directory = tempfile::tempdir().expect("a directory");
    let document = format!("{CALL}\n[holdout]\nshare = 0.4");
    let path = directory.path().join("policy.toml");
    std::fs::write(&path, &document).expect("written");
    let serve =
        format!("models.serve=[{{ name = \"telco-churn\", version = \"1.0.0\", policy = \"{}\" }}]", path.display());
    let service = Service::start_in(directory.path(), &[&serve]);
    let decisions = decided(&service, (0..80).map(|at| named(&format!("C-{at}"))).collect()).await;
    follow(&service, &decisions).await;
    let found = simulated(&service, &document, json!({})).await;
    let held_out = decisions.iter().filter(|decision| decision["holdout"] == true).count();
    assert_eq!((&found["after"]["held_out"], &found["action_changed_share"]), (&json!(held_out), &json!(0.0)));
    assert_eq!(found["before"]["interventions"], found["after"]["interventions"]);
    let mut terms = Vec::new();
    for (at, decision) in decisions.iter().enumerate() {
        let id = decision["decision_id"].as_str().expect("an id");
        let recorded = service.get(&format!("/v1/decisions/{id}")).await.json();
        let chance = if recorded["action"] == "none" { 0.4 } else { 0.6 };
        terms.push(chance / number(&recorded["propensity"]) * f64::from(u8::from(at % 3 != 0)));
    }
    let value = &found["after"]["value"];
    match value["ips"].is_null() {
        true => assert!(number(&value["without_chance"]) > 0.0, "{value}"),
        false => is_estimate(&value["ips"], estimate(&terms)),
    }
    // A policy that calls everybody is supported by the chance on record.
    let called = simulated(&service, CALL, json!({"reward": "revenue"})).await;
    assert_eq!(called["after"]["held_out"], 0);
    assert_eq!(called["after"]["value"]["matched"], decisions.len() - held_out);
}

#[tokio::test]
async fn a_batch_with_a_budget_is_left_out_of_the_value() {
    let directory = tempfile::tempdir().expect("a directory");
    let valued = CALL.replace("currency = \"USD\"", "currency = \"USD\"\nvalue_at_stake = 1000");
    let document = format!("{valued}\n[holdout]\nshare = 0.4");
    let path = directory.path().join("policy.toml");
    std::fs::write(&path, &document).expect("written");
    let serve =
        format!("models.serve=[{{ name = \"telco-churn\", version = \"1.0.0\", policy = \"{}\" }}]", path.display());
    let service = Service::start_in(directory.path(), &[&serve]);
    let rows: Vec<Value> = (0..20).map(|at| named(&format!("B-{at}"))).collect();
    let answer = service.post("/v1/score/batch?budget=0", &json!(rows)).await.json();
    follow(&service, answer["results"].as_array().expect("results")).await;
    let found = simulated(&service, &document, json!({})).await;
    assert_eq!(found["after"]["value"], Value::Null, "{found}");
    assert!(found["warnings"].to_string().contains("20 outcomes are of batches with a budget"), "{found}");
    // Of others it is known as ever.
    let decisions = decided(&service, (0..10).map(|at| named(&format!("C-{at}"))).collect()).await;
    follow(&service, &decisions).await;
    let found = simulated(&service, &document, json!({})).await;
    assert_eq!(found["after"]["value"]["customers"], 10, "{found}");
}

#[tokio::test]
async fn a_policy_is_checked_before_it_is_applied() {
    let service = Service::start(&[]);
    decided(&service, population().into_iter().map(|(customer, ..)| customer).collect()).await;
    let apply = async |service: &Service| {
        service.post_admin("/v1/slots/telco-churn/apply_policy", &[], &json!({"by": "ops", "document": PROXY})).await
    };
    let applied = apply(&service).await;
    assert_eq!(applied.status, 200, "{}", applied.text);
    let compliance = &applied.json()["compliance"];
    assert_eq!((&compliance["customers"], &compliance["attributes"]), (&json!(100), &json!(["gender"])));
    assert_eq!(
        (&compliance["flagged"][0]["group"], &compliance["flagged"][0]["verdict"]),
        (&json!("f"), &json!("fail"))
    );
    let history = service.get_admin("/v1/slots/telco-churn/history").await.json();
    let told = history["moves"][0]["result"].as_str().expect("a sentence");
    assert!(
        told.contains("compliance: 1 flagged: gender \"f\" (60) is offered something 0.50 times as often as \"m\""),
        "{told}"
    );
    // Who goes back is not asked.
    let undone = service.post_admin("/v1/slots/telco-churn/undo_policy", &[], &json!({"by": "ops"})).await;
    assert_eq!(undone.json().get("compliance"), None, "{}", undone.text);

    let service = Service::start(&["rollouts.compliance_refuse=true"]);
    let before = decided(&service, population().into_iter().map(|(customer, ..)| customer).collect()).await;
    let refused = apply(&service).await;
    assert_eq!((refused.status, refused.code().as_str()), (422, "refused_for_service"));
    assert!(refused.json()["reasons"][0].as_str().expect("a reason").starts_with("gender \"f\""), "{}", refused.text);
    assert_eq!(
        decide(&service, &named("C-1")).await["policy_version"],
        before[0]["policy_version"],
        "nothing has changed"
    );
    let history = service.get_admin("/v1/slots/telco-churn/history").await.text;
    assert!(history.contains("the policy refused: gender"), "{history}");
    let service = Service::start(&["rollouts.compliance_last=0"]);
    assert_eq!(apply(&service).await.json().get("compliance"), None);
}

/// Checks of policies are long work, some at a time; they leave the threads of short work to what goes back.
#[tokio::test]
async fn checks_of_policies_leave_threads_to_what_goes_back() {
    let service = Service::start(&["rollouts.compliance_refuse=true"]);
    decided(&service, (0..6_000).map(|at| customer(at, "f", false)).collect()).await;
    let slots = "/v1/slots/telco-churn";
    let (path, body) = (format!("{slots}/apply_policy"), json!({"by": "ops", "document": PROXY}));
    let arm = json!([{"name": "proxy", "share": 0.1, "policy": PROXY}]);
    let draft = json!({"name": "proxy", "hypothesis": "It is better.", "owner": "ops", "to": "2099-01-01T00:00:00Z", "arms": arm});
    let draft = json!({"by": "ops", "experiment": draft});
    let apply = async || service.post_admin(&path, &[], &body).await.status;
    let create = async || service.post_admin("/v1/experiments", &[], &draft).await.status;
    let back = async || service.post_admin(&format!("{slots}/rollback"), &[], &json!({"by": "ops"})).await.code();
    // The first two are at work when the others come; all of them would be, or wait for it, on the threads of short work.
    let (a, b, c, d, e, f, back) = tokio::join!(apply(), apply(), apply(), create(), create(), create(), back());
    let statuses = [a, b, c, d, e, f];
    assert!(statuses.contains(&503), "{statuses:?}");
    assert_eq!(back, "illegal_move", "it was not told to come back later");
}

#[tokio::test]
async fn groups_of_an_audit_reach_neither_model_nor_rule() {
    let service = Service::start(&[]);
    let rows = ["f", "m"].map(|group| customer(1, group, false));
    let [one, other] = &decided(&service, rows.to_vec()).await[..] else { panic!("two decisions") };
    for member in ["score", "tier", "intervention"] {
        assert_eq!(one[member], other[member], "{member}");
    }
    let reads = PROXY.replace(
        "PaymentMethod = [\"Bank transfer (automatic)\", \"Credit card (automatic)\"]",
        "context.audit = [\"f\"]",
    );
    let answer = simulate(&service, &reads, json!({})).await;
    assert_eq!((answer.status, answer.code().as_str()), (422, "refused_for_service"));
    assert!(answer.text.contains("groups for audits are not for a policy"), "{}", answer.text);
    // Both are the same customer, and no group of one is told.
    let found = simulated(&service, PROXY, json!({})).await;
    assert_eq!(found["after"]["fairness"], json!([{"attribute": "gender", "groups": [], "rest": 1, "unknown": 0}]));
}

#[tokio::test]
async fn every_decision_counts_once_however_many_there_are() {
    let service = Service::start(&[]);
    let decisions = decided(&service, (0..1_001).map(|at| named(&format!("C-{}", at % 900))).collect()).await;
    // A later decision of another model is not one of these.
    let other =
        service.get("/openapi.json").await.json()["components"]["schemas"]["Customer.mlc-churn"]["examples"][0].clone();
    assert_eq!(service.post("/v1/models/mlc-churn/score", &other).await.status, 200);
    for (last, customers) in [(1_001, 900), (1_000, 900), (500, 500), (1, 1)] {
        let found = simulated(&service, PROXY, json!({"last": last})).await;
        let made = &found["decisions"];
        assert_eq!(
            (&made["looked_at"], &made["usable"], &made["customers"]),
            (&json!(last), &json!(last), &json!(customers))
        );
        let [first, end] = [decisions.len() - last, 1_000].map(|at| &decisions[at]["decided_at"]);
        assert_eq!((&made["from"], &made["to"]), (first, end));
    }
}

#[tokio::test]
async fn what_cannot_be_asked_is_told_by_its_place() {
    let service = Service::start(&[]);
    let nothing = simulated(&service, PROXY, json!({})).await;
    assert_eq!(
        (&nothing["decisions"]["looked_at"], &nothing["after"]["value"], &nothing["tier_changed_share"]),
        (&json!(0), &Value::Null, &Value::Null)
    );
    for (more, place) in [
        (json!({"last": 0}), "/last"),
        (json!({"last": 100_001}), "/last"),
        (json!({"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}), "/to"),
        (json!({"budget": {"amount": -1, "period": "day"}}), "/budget/amount"),
        (json!({"budget": {"amount": 1, "period": "year"}}), ""),
        (json!({"reward": "fame"}), ""),
        (json!({"lsat": 10}), ""),
    ] {
        let answer = simulate(&service, PROXY, more.clone()).await;
        assert_eq!((answer.status, answer.code().as_str()), (422, "invalid_request"), "{more}: {}", answer.text);
        assert_eq!(answer.json()["errors"][0]["pointer"], place, "{more}");
    }
    assert_eq!(simulate(&service, "name = 1", json!({})).await.code(), "refused_for_service");
    assert_eq!(simulate(&service, PROXY, json!({"model": "telco-chrun"})).await.code(), "unknown_model");
    let off = Service::start(&["ledger.promise=off"]);
    assert_eq!(simulate(&off, PROXY, json!({})).await.status, 404);
}

#[tokio::test]
async fn a_simulation_is_a_table_for_people() {
    let service = Service::start(&[]);
    let decisions = decided(&service, population().into_iter().map(|(customer, ..)| customer).collect()).await;
    follow(&service, &decisions).await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("proxy.toml");
    std::fs::write(&file, PROXY).expect("written");
    let (admin, file) = (format!("admin.listen={}", service.admin), file.display().to_string());
    let arguments =
        ["policy", "simulate", "telco-churn", file.as_str(), "--last", "100", "--budget", "200/month", "--set", &admin];
    let (code, text) = mainstay(&service.ledger, &arguments);
    assert_eq!(code, 0, "{text}");
    for told in [
        "100 decisions on 100 customers",
        "gender f",
        // All of the money has gone to those who came first.
        "gender m (40 customers): 0.00 (0.00 to",
        "reference",
        "200.00 a month, 36 refused",
        "eligibility:discount_email:PaymentMethod",
        "doubly robust",
        "beware: no overlap",
    ] {
        assert!(text.contains(told), "{told}: {text}");
    }
    let (code, text) = mainstay(&service.ledger, &[&arguments[..], &["--json"]].concat());
    let answer: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &answer["after"]["cost"]), (0, &json!(200.0)));
    let (code, text) =
        mainstay(&service.ledger, &["policy", "simulate", "telco-churn", &file, "--budget", "much", "--set", &admin]);
    assert!(code != 0 && text.contains("AMOUNT/PERIOD"), "{text}");
}
