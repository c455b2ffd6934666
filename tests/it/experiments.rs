//! Named experiments over HTTP: who is in which group stays there, whatever grows and whenever the service starts again; what is offered
//! is on record with its propensity and comes out the same again; and what is wrong is told, by its place.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::ledger::{mainstay, named, problems};
use crate::service::{Answer, Service, until};

/// Everybody is called, or else written to.
const CALL: &str = r#"
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
cost = 20
expected_effectiveness = 0.4
[interventions.mail]
description = "A letter"
cost = 1
expected_effectiveness = 0.1
"#;

/// What `experiment` says beside its name, with what every experiment has to say.
fn experiment(name: &str, mut more: Value) -> Value {
    let known = json!({"name": name, "hypothesis": "A call keeps more customers.", "owner": "retention", "to": "2099-01-01T00:00:00Z"});
    for (key, value) in known.as_object().expect("an object") {
        if more.get(key).is_none() {
            more[key] = value.clone();
        }
    }
    more
}

async fn create(service: &Service, experiment: &Value) -> Answer {
    service.post_admin("/v1/experiments", &[], &json!({"by": "ops", "experiment": experiment})).await
}

async fn act(service: &Service, name: &str, verb: &str, mut body: Value) -> Answer {
    body["by"] = json!("ops");
    service.post_admin(&format!("/v1/experiments/{name}/{verb}"), &[], &body).await
}

fn done(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

async fn show(service: &Service, name: &str) -> Value {
    done(&service.get_admin(&format!("/v1/experiments/{name}")).await)
}

fn pointers(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.code(), "invalid_request", "{}", answer.text);
    let errors = answer.json()["errors"].as_array().cloned().expect("errors");
    errors.iter().map(|error| error["pointer"].as_str().expect("a pointer").to_owned()).collect()
}

/// Decisions on so many customers, by their numbers.
async fn decide(service: &Service, count: usize) -> Vec<Value> {
    let rows: Vec<Value> = (0..count).map(|number| named(&format!("C-{number}"))).collect();
    done(&service.post("/v1/score/batch", &json!(rows)).await)["results"].as_array().cloned().expect("results")
}

/// The arm of a decision; empty for who is in no experiment.
fn arm(decision: &Value) -> String {
    decision["experiments"][0]["arm"].as_str().unwrap_or_default().to_owned()
}

fn arms(decisions: &[Value]) -> Vec<String> {
    decisions.iter().map(arm).collect()
}

fn count(decisions: &[Value], name: &str) -> usize {
    decisions.iter().filter(|decision| arm(decision) == name).count()
}

/// The record of the first decision of each (arm, action).
async fn records(service: &Service, decisions: &[Value]) -> BTreeMap<(String, String), Value> {
    let mut records = BTreeMap::new();
    for decision in decisions {
        let action = decision["intervention"]["action"].as_str().expect("an action").to_owned();
        if let std::collections::btree_map::Entry::Vacant(place) = records.entry((arm(decision), action)) {
            let id = decision["decision_id"].as_str().expect("an id");
            place.insert(service.get(&format!("/v1/decisions/{id}")).await.json());
        }
    }
    records
}

fn replayed(service: &Service, count: usize) {
    let (code, text) = mainstay(&service.ledger, &["replay", "--last", &count.to_string()]);
    assert!(code == 0 && text.contains(&format!("{count} of {count} decisions came out the same")), "{text}");
}

fn call_or_mail(share: f64, holdout: f64) -> Value {
    let arms = json!([{"name": "call", "share": share, "intervention": "account_manager_call"}, {"name": "control", "share": share}]);
    experiment("call-or-mail", json!({"arms": arms, "holdout": holdout}))
}

/// A caller who only sends the members of one arm on: whoever watches the metrics is told, until the experiment is stopped.
#[tokio::test]
async fn a_group_that_loses_its_customers_is_told() {
    let service = Service::start(&["insight.refresh_secs=1"]);
    let mismatched = async |count: usize| {
        let line = format!("mainstay_experiments_mismatched{{model=\"telco-churn\"}} {count}");
        until(async || service.get_admin("/metrics").await.text.lines().any(|found| found == line)).await;
    };
    done(&create(&service, &call_or_mail(0.2, 0.0)).await);
    done(&act(&service, "call-or-mail", "start", json!({"why": "to know"})).await);
    let decisions = decide(&service, 400).await;
    mismatched(0).await;
    // From here on its customers are counted anew, and those that it had are still there.
    let change = json!({"experiment": call_or_mail(0.4, 0.0)});
    done(&act(&service, "call-or-mail", "change", change).await);
    let called: Vec<Value> = decisions
        .iter()
        .enumerate()
        .filter(|(_, decision)| arm(decision) == "call")
        .map(|(number, _)| named(&format!("C-{number}")))
        .collect();
    assert!(called.len() > 30, "{}", called.len());
    assert_eq!(service.post("/v1/score/batch", &json!(called)).await.status, 200);
    mismatched(1).await;
    assert_eq!(show(&service, "call-or-mail").await["sample_ratio"]["mismatch"], true);
    done(&act(&service, "call-or-mail", "stop", json!({})).await);
    mismatched(0).await;
}

#[tokio::test]
async fn groups_are_sticky_nested_on_record_and_come_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut service = Service::start_in(directory.path(), &[]);
    let created = done(&create(&service, &call_or_mail(0.2, 0.1)).await);
    assert_eq!(
        (&created["experiment"]["state"], &created["experiment"]["model"]),
        (&json!("planned"), &json!("telco-churn"))
    );
    let before = decide(&service, 200).await;
    assert!(arms(&before).iter().all(String::is_empty) && before[0].get("experiments").is_none());
    let started = done(&act(&service, "call-or-mail", "start", json!({"why": "to know"})).await);
    assert_eq!(started["experiment"]["started"]["why"], "to know");
    assert_eq!(started["experiment"]["legal"], json!(["stop", "change"]));

    let decisions = decide(&service, 200).await;
    for (decision, usual) in decisions.iter().zip(&before) {
        let action = &decision["intervention"]["action"];
        match &*arm(decision) {
            "call" => assert_eq!(
                (action, &decision["rules"]),
                (&json!("account_manager_call"), &json!(["experiment", "objective:tier"]))
            ),
            "holdout" => assert_eq!((action, &decision["holdout"]), (&json!("none"), &json!(true))),
            _ => assert_eq!((action, decision.get("rules")), (&usual["intervention"]["action"], None)),
        }
    }
    for (name, share) in [("call", 0.2), ("control", 0.2), ("holdout", 0.1), ("", 0.5)] {
        let found = count(&decisions, name) as f64;
        let sd = (200.0_f64 * share * (1.0 - share)).sqrt();
        assert!((found - 200.0 * share).abs() <= 4.0 * sd, "{name}: {found}");
    }
    let records = records(&service, &decisions).await;
    let told: Vec<(&str, &str, f64)> = records
        .iter()
        .map(|((arm, action), record)| (&**arm, &**action, record["propensity"].as_f64().expect("a propensity")))
        .collect();
    let near = |found: f64, expected: f64| (found - expected).abs() < 1e-12;
    assert_eq!(told.len(), 4, "{told:?}");
    for (arm, action, propensity) in told {
        let expected = match action {
            "account_manager_call" => 0.2,
            "none" => 0.1,
            _ => 0.7,
        };
        assert!(near(propensity, expected), "{arm} {action}: {propensity}");
    }
    let call = &records[&("call".to_owned(), "account_manager_call".to_owned())];
    assert_eq!(call["experiments"], json!([{"name": "call-or-mail", "arm": "call"}]));

    service.wait();
    let service = Service::start_in(directory.path(), &[]);
    let again = decide(&service, 200).await;
    assert_eq!(arms(&again), arms(&decisions), "after a restart");
    let shown = show(&service, "call-or-mail").await;
    assert_eq!(shown["arms"][0]["customers"], count(&decisions, "call"), "each customer once");
    assert_eq!(shown["holdout_customers"], count(&decisions, "holdout"));
    assert_eq!((&shown["sample_ratio"]["mismatch"], &shown["sample_ratio"]["complete"]), (&json!(false), &json!(true)));

    // Grown by one factor, everybody stays; otherwise somebody would move.
    let change = |experiment: Value, force| json!({"experiment": experiment, "force": force});
    let refused = act(&service, "call-or-mail", "change", change(call_or_mail(0.1, 0.1), false)).await;
    assert_eq!(pointers(&refused), ["/experiment/arms/0/share", "/experiment/arms/1/share"]);
    done(&act(&service, "call-or-mail", "change", change(call_or_mail(0.3, 0.2), false)).await);
    let grown = arms(&decide(&service, 200).await);
    assert!(arms(&decisions).iter().zip(&grown).all(|(before, now)| before.is_empty() || before == now));
    assert!(grown.iter().filter(|arm| arm.is_empty()).count() < 80, "{grown:?}");
    let forced = done(&act(&service, "call-or-mail", "change", change(call_or_mail(0.1, 0.1), true)).await);
    assert_eq!(forced["result"], "call-or-mail is changed, by force");
    done(&act(&service, "call-or-mail", "stop", json!({})).await);
    assert!(arms(&decide(&service, 200).await).iter().all(String::is_empty));
    assert_eq!(act(&service, "call-or-mail", "start", json!({})).await.code(), "illegal_move");
    let history = service.get_admin("/v1/slots/telco-churn/history").await.json();
    let verbs: Vec<&str> =
        history["moves"].as_array().expect("moves").iter().filter_map(|made| made["verb"].as_str()).collect();
    let expected = ["stop", "change", "change", "start", "create"].map(|verb| format!("{verb}_experiment"));
    assert_eq!(verbs[..5], expected.each_ref().map(String::as_str));
    replayed(&service, 5 * 200);
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
}

fn start_with(directory: &Path, policy: &str, overrides: &[&str]) -> Service {
    let path = directory.join("policy.toml");
    std::fs::write(&path, policy).expect("written");
    let serve =
        format!("models.serve=[{{ name = \"telco-churn\", version = \"1.0.0\", policy = \"{}\" }}]", path.display());
    Service::start_in(directory, &[&[serve.as_str()], overrides].concat())
}

#[tokio::test]
async fn arms_are_policies_and_interventions_and_the_budget_bounds_all_of_them() {
    let directory = tempfile::tempdir().expect("a directory");
    // Enough for some of the calls, and then for no letter.
    let policy = format!("{CALL}\n[budget]\namount = 800.5\nperiod = \"month\"\n[holdout]\nshare = 0.1");
    let mut service = start_with(directory.path(), &policy, &[]);
    // A restart finds the money spent: the file only says how it begins.
    let letters = CALL
        .replace("intervention = \"call\"\nfallback = [\"mail\"]", "intervention = \"mail\"")
        .replace("name = \"call\"", "name = \"letters\"");
    std::fs::write(directory.path().join("letters.toml"), &letters).expect("written");
    let file = directory.path().join("trial.toml");
    let text = "name = \"letters\"\nhypothesis = \"Letters do.\"\nowner = \"retention\"\nmodel = \"telco-churn\"\nto = 2099-01-01T00:00:00Z\n
        [[arms]]\nname = \"policy\"\nshare = 0.2\npolicy_file = \"letters.toml\"\n[[arms]]\nname = \"mail\"\nshare = 0.2\nintervention = \"mail\"\n[[arms]]\nname = \"control\"\nshare = 0.2\n";
    std::fs::write(&file, text).expect("written");
    let admin = format!("admin.listen={}", service.admin);
    let cli = |arguments: &[&str]| mainstay(directory.path(), &[arguments, &["--set", &admin]].concat());
    let (code, told) = cli(&["experiment", "create", file.to_str().expect("UTF-8"), "--by", "ops"]);
    assert!(
        code == 0 && told.contains("letters waits for somebody who starts it") && told.contains("policy letters"),
        "{told}"
    );
    let (code, told) = cli(&["experiment", "start", "letters", "--by", "ops"]);
    assert!(code == 0 && told.contains("letters runs"), "{told}");
    let (code, told) = cli(&["experiment", "start", "letters", "--by", "ops"]);
    assert!(code == 1 && told.contains("is running"), "{told}");
    let (_, told) = cli(&["experiment", "list"]);
    assert!(told.contains("policy 20%, mail 20%, control 20%"), "{told}");

    let decisions = decide(&service, 150).await;
    let action = |decision: &Value| decision["intervention"]["action"].as_str().expect("an action").to_owned();
    let is = |arm_name: &str, name: &str| {
        decisions.iter().any(|decision| arm(decision) == arm_name && action(decision) == name)
    };
    assert!(
        is("policy", "mail") && is("mail", "mail") && is("control", "call") && is("", "call") && !is("policy", "call")
    );
    assert!(is("", "none"), "the money is gone, or the policy holds out");
    let spent: f64 = decisions.iter().filter_map(|decision| decision["intervention"]["cost"].as_f64()).sum();
    assert!(spent <= 800.5 && spent > 700.0, "{spent}");
    let records = records(&service, &decisions).await;
    let propensity =
        |arm: &str, action: &str| records[&(arm.to_owned(), action.to_owned())]["propensity"].as_f64().expect("one");
    for (found, expected) in [
        (propensity("", "call"), 0.9 * 0.6),
        (propensity("control", "call"), 0.9 * 0.6),
        (propensity("mail", "mail"), 0.9 * 0.4),
        (propensity("policy", "mail"), 0.9 * 0.4),
    ] {
        assert!((found - expected).abs() < 1e-12, "{found} instead of {expected}");
    }
    let by_policy = &records[&("policy".to_owned(), "mail".to_owned())];
    assert_eq!((&by_policy["policy"], &by_policy["shadow_price"]), (&json!("letters"), &json!(0.0)));
    replayed(&service, 150);
    service.wait();

    let service = Service::start_in(directory.path(), &[]);
    let budget = service.get_admin("/v1/slots/telco-churn").await.json()["budget"].clone();
    assert!((budget["spent"].as_f64().expect("a sum") - spent).abs() < 1e-6, "{budget}");
    assert_eq!(arms(&decide(&service, 150).await), arms(&decisions));
    // What the experiment needs cannot be taken away from under it.
    let without = CALL.replace("fallback = [\"mail\"]", "").replace("interventions.mail", "interventions.sms");
    let apply = json!({"by": "ops", "document": without});
    let refused = service.post_admin("/v1/slots/telco-churn/apply_policy", &[], &apply).await;
    assert!(
        refused.code() == "refused_for_service" && refused.text.contains("/arms/1/intervention"),
        "{}",
        refused.text
    );
    let apply = json!({"by": "ops", "document": CALL});
    done(&service.post_admin("/v1/slots/telco-churn/apply_policy", &[], &apply).await);
    let after = decide(&service, 150).await;
    let kept = arms(&decisions).into_iter().zip(arms(&after));
    assert!(kept.clone().all(|(before, now)| before.is_empty() || before == now), "who was held out is free now");
    replayed(&service, 300);
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
}

#[tokio::test]
async fn one_starts_after_a_rollout_that_was_promoted_and_is_independent_of_the_next() {
    let service = Service::start(&[]);
    let slots = async |verb: &str, mut body: Value| {
        body["by"] = json!("ops");
        done(&service.post_admin(&format!("/v1/slots/telco-churn/{verb}"), &[], &body).await)
    };
    let half = json!({"steps": [{"exposure": "canary", "share": 0.5, "bake_secs": 3600}]});
    let waits = experiment("after", json!({"holdout": 0.3, "starts_after": "rollout"}));
    let created = done(&create(&service, &waits).await);
    assert_eq!(created["result"], "after waits for a rollout of its model to end in a promotion");
    slots("stage", json!({"version": "1.1.0"})).await;
    slots("start", half.clone()).await;
    slots("abort", json!({})).await;
    assert_eq!(show(&service, "after").await["state"], "planned", "it was aborted");
    slots("start", half.clone()).await;
    slots("promote", json!({"force": true})).await;
    until(async || show(&service, "after").await["state"] == "running").await;
    let started = show(&service, "after").await["started"].clone();
    assert_eq!((&started["by"], &started["why"]), (&json!("mainstay"), &json!("the rollout ended in a promotion")));

    slots("retire", json!({})).await;
    slots("stage", json!({"version": "1.2.0"})).await;
    slots("start", half).await;
    let decisions = decide(&service, 600).await;
    let mut table = [[0.0_f64; 2]; 2];
    for decision in &decisions {
        table[usize::from(arm(decision) == "holdout")][usize::from(decision["model"]["arm"] == "challenger")] += 1.0;
    }
    let (row, column) = (|at: usize| table[at][0] + table[at][1], |at: usize| table[0][at] + table[1][at]);
    let expected = |cell: usize| row(cell / 2) * column(cell % 2) / 600.0;
    let chi_square: f64 =
        (0..4).map(|cell| (table[cell / 2][cell % 2] - expected(cell)).powi(2) / expected(cell)).sum();
    // One degree of freedom: once in ten thousand.
    assert!(chi_square < 15.1 && table.iter().flatten().all(|count| *count > 50.0), "{chi_square} of {table:?}");
    replayed(&service, 600);
}

#[tokio::test]
async fn one_begins_and_ends_at_its_time() {
    let service = Service::start(&[]);
    let soon = |ms: i64| (jiff::Timestamp::now() + jiff::SignedDuration::from_millis(ms)).to_string();
    done(&create(&service, &experiment("brief", json!({"holdout": 1, "from": soon(50)}))).await);
    until(async || show(&service, "brief").await["state"] == "running").await;
    assert_eq!(arms(&decide(&service, 2).await), ["holdout", "holdout"]);
    let shorter = json!({"experiment": experiment("brief", json!({"holdout": 1, "to": soon(1_000)}))});
    done(&act(&service, "brief", "change", shorter).await);
    until(async || show(&service, "brief").await["state"] == "ended").await;
    assert_eq!(arms(&decide(&service, 2).await), ["", ""]);
    assert_eq!(show(&service, "brief").await["ended"]["why"], "its time is over");
}

#[tokio::test]
async fn everything_wrong_with_an_experiment_is_told_by_its_place() {
    let service = Service::start(&[]);
    let told = async |experiment: Value| pointers(&create(&service, &experiment).await);
    let shape = json!({
        "name": 7, "hypotesis": "x", "owner": "o", "to": "tomorrow", "starts_after": "lunch",
        "arms": [{"name": "a", "share": "much"}, {"name": "b", "share": 0.1, "intervention": "x", "policy": "y"}, 5],
    });
    let places = told(shape).await;
    assert!(!places.contains(&"/experiment/arms/2/name".to_owned()), "it is no object: {places:?}");
    for place in ["/name", "/hypotesis", "/hypothesis", "/to", "/starts_after", "/arms/0/share", "/arms/1", "/arms/2"] {
        assert!(places.contains(&format!("/experiment{place}")), "{place} of {places:?}");
    }
    let arms = json!([
        {"name": "holdout", "share": 0.9, "intervention": "a_yacht"},
        {"name": "b", "share": 0.9, "policy": "name = \"p\""},
        {"name": "c", "share": 0.1, "policy": CALL.replace("USD", "EUR")},
        {"name": "d", "share": 0.1, "policy": format!("{CALL}\n[holdout]\nshare = 0.5")},
    ]);
    let law = experiment("x", json!({"arms": arms, "to": "2001-01-01T00:00:00Z", "salt": "short"}));
    let places = told(law).await;
    for place in [
        "/salt",
        "/to",
        "/arms",
        "/arms/0/name",
        "/arms/0/intervention",
        "/arms/1/policy",
        "/arms/2/policy",
        "/arms/3/policy",
    ] {
        assert!(places.contains(&format!("/experiment{place}")), "{place} of {places:?}");
    }
    let no_one = service
        .post_admin(
            "/v1/experiments",
            &[],
            &json!({"by": "mainstay", "experiment": experiment("x", json!({"holdout": 0.1}))}),
        )
        .await;
    assert_eq!(pointers(&no_one), ["/by"]);
    assert_eq!(pointers(&service.post_admin("/v1/experiments", &[], &json!({})).await), ["/by", "/experiment"]);
    let other = json!({"by": "ops", "model": "telco-chrun", "experiment": experiment("x", json!({"holdout": 0.1}))});
    assert_eq!(service.post_admin("/v1/experiments", &[], &other).await.code(), "unknown_model");

    // Names and salts are one's own, whatever the model.
    let first = experiment("x", json!({"holdout": 0.1, "salt": "a salt of mine"}));
    let key = [("idempotency-key", "k-1")];
    let body = json!({"by": "ops", "experiment": first});
    done(&service.post_admin("/v1/experiments", &key, &body).await);
    assert_eq!(done(&service.post_admin("/v1/experiments", &key, &body).await)["repeated"], true);
    let twin = json!({"by": "ops", "model": "mlc-churn", "experiment": first});
    assert_eq!(
        pointers(&service.post_admin("/v1/experiments", &[], &twin).await),
        ["/experiment/name", "/experiment/salt"]
    );
    assert_eq!(service.post_admin("/v1/experiments", &key, &twin).await.code(), "key_reused");
    let unknown = service.get_admin("/v1/experiments/xx").await;
    assert!(unknown.code() == "unknown_experiment" && unknown.text.contains("did you mean"), "{}", unknown.text);
    assert_eq!(act(&service, "x", "explode", json!({})).await.code(), "not_found");
    let renamed = json!({"experiment": experiment("y", json!({"holdout": 0.1}))});
    assert_eq!(pointers(&act(&service, "x", "change", renamed).await), ["/experiment/name"]);
    let listed = service.get_admin("/v1/experiments?model=mlc-churn").await.json();
    assert_eq!(listed, json!({"experiments": []}));
    let listed = service.get_admin("/v1/experiments").await.json();
    insta::assert_json_snapshot!(listed, {".**.at" => "[time]", ".**.from" => "[time]"});
}

#[tokio::test]
async fn counterfactuals_are_those_of_the_policy_that_decides() {
    let directory = tempfile::tempdir().expect("a directory");
    let service = Service::start_in(directory.path(), &[]);
    // Two tiers, where the policy in force has three.
    let own = r#"
name = "two-bands"
description = ""
currency = "USD"
[[tiers]]
name = "risky"
score = "(0.3, 1]"
intervention = "engagement_email"
[[tiers]]
name = "safe"
score = "[0, 0.3]"
intervention = "none"
[interventions.engagement_email]
description = "An e-mail"
cost = 0.5
expected_effectiveness = 0.05
"#;
    let arms = json!([{"name": "own", "share": 1.0, "policy": own}]);
    done(&create(&service, &experiment("two-bands", json!({"arms": arms}))).await);
    done(&act(&service, "two-bands", "start", json!({})).await);
    let customer = named("somebody");
    let decision = service.post("/v1/score?counterfactuals=3", &customer).await;
    assert_eq!(decision.status, 200, "{}", decision.text);
    let decision = decision.json();
    assert_eq!((&decision["tier"], &decision["experiments"][0]["arm"]), (&json!("risky"), &json!("own")));
    for found in decision["counterfactuals"].as_array().expect("a list") {
        let score = found["score"].as_f64().expect("a score");
        assert!(found["tier"] == "safe" && score <= 0.3, "{found}");
    }
}
