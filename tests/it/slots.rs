//! Models in slots: staged, tried, promoted, rolled back, by people and by the service itself, with real bundles that are faulty on
//! purpose; and that all of it is still so after a restart.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::ledger::{mainstay, problems};
use crate::service::{Answer, Service, config, customer, customer_with, read_to_end, until};

/// A directory of models with the bundled ones and the faulty ones.
pub(crate) fn models() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a directory");
    for (from, name) in [("models", "telco-churn"), ("models", "mlc-churn"), ("tests/data/bundles", "telco-churn")] {
        let to = root.path().join(name);
        std::fs::create_dir_all(&to).expect("a directory");
        for version in std::fs::read_dir(Path::new(from).join(name)).expect("bundles") {
            let version = version.expect("a bundle");
            let bundle = std::fs::canonicalize(version.path()).expect("a path");
            std::os::unix::fs::symlink(bundle, to.join(version.file_name())).expect("a link");
        }
    }
    root
}

/// A service with all of them; its champion of telco-churn is `version`.
pub(crate) fn start(models: &Path, ledger: Option<&Path>, version: &str, more: &[&str]) -> Service {
    let dir = format!("models.dir={}", models.display());
    let serve = format!(
        "models.serve=[{{name = \"telco-churn\", version = \"{version}\"}}, {{name = \"mlc-churn\", version = \"1.0.0\"}}]"
    );
    // Room for every customer of a batch, or a shadow that gets little of a processor would only ever see the first ones.
    let own = [dir.as_str(), &serve, "server.workers=1", "limits.batches_max=1", "rollouts.shadow_queue_max=8192"];
    let settings = [&own[..], more].concat();
    match ledger {
        Some(ledger) => Service::start_in(ledger, &settings),
        None => Service::start(&settings),
    }
}

/// Asks for a move on telco-churn.
async fn act(service: &Service, verb: &str, mut body: Value) -> Answer {
    body["by"] = json!("ops");
    service.post_admin(&format!("/v1/slots/telco-churn/{verb}"), &[], &body).await
}

pub(crate) async fn done(service: &Service, verb: &str, body: Value) -> Value {
    let answer = act(service, verb, body).await;
    assert_eq!(answer.status, 200, "{verb}: {}", answer.text);
    answer.json()
}

pub(crate) async fn stage(service: &Service, version: &str) -> Value {
    done(service, "stage", json!({"version": version})).await
}

pub(crate) async fn slots(service: &Service) -> Value {
    service.get_admin("/v1/slots/telco-churn").await.json()
}

/// (role, version) of blue and green.
async fn roles(service: &Service) -> [(String, String); 2] {
    let slots = slots(service).await;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    [0, 1].map(|at| (text(&slots["slots"][at]["role"]), text(&slots["slots"][at]["version"])))
}

fn pairs(roles: &[(String, String); 2]) -> [(&str, &str); 2] {
    [0, 1].map(|at| (roles[at].0.as_str(), roles[at].1.as_str()))
}

/// The version and the arm that decide on a customer.
async fn decided(service: &Service, body: &Value) -> (String, String) {
    let answer = service.post("/v1/score", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let model = answer.json()["model"].clone();
    [&model["version"], &model["arm"]].map(|value| value.as_str().expect("text").to_owned()).into()
}

/// Customers of all tenures, the faulty ones among them.
pub(crate) fn customers(count: usize) -> Value {
    let customer = |number: usize| {
        let mut customer = customer_with("tenure", json!(number * 7 % 72));
        customer["customer_id"] = json!(format!("c-{number}"));
        customer["features"]["MonthlyCharges"] = json!(20.0 + (number * 13 % 970) as f64 / 10.0);
        customer
    };
    (0..count).map(customer).collect()
}

#[tokio::test]
async fn blue_green_there_and_back() {
    let service = Service::start(&[]);
    assert_eq!(pairs(&roles(&service).await), [("champion", "1.0.0"), ("", "")]);
    let staged = stage(&service, "1.1.0").await;
    insta::assert_json_snapshot!(staged, {
        ".**.since" => "[time]", ".**.memory_bytes" => "[bytes]", ".**.row_p50_us" => "[us]", ".**.row_p99_us" => "[us]",
        ".flip_us" => "[us]", ".result" => "[sentence]",
    });
    assert_eq!(decided(&service, &customer()).await, ("1.0.0".into(), "champion".into()), "staged is not served");
    let promoted = done(&service, "promote", json!({"why": "it is better"})).await;
    assert!(promoted["flip_us"].as_f64().expect("a time") > 0.0);
    assert_eq!(pairs(&roles(&service).await), [("standby", "1.0.0"), ("champion", "1.1.0")]);
    assert_eq!(decided(&service, &customer()).await, ("1.1.0".into(), "champion".into()));
    done(&service, "rollback", json!({})).await;
    assert_eq!(decided(&service, &customer()).await.0, "1.0.0");
    done(&service, "retire", json!({})).await;
    assert_eq!(pairs(&roles(&service).await), [("champion", "1.0.0"), ("", "")]);

    let history = service.get_admin("/v1/slots/telco-churn/history").await.json();
    let told: Vec<String> = history["moves"]
        .as_array()
        .expect("moves")
        .iter()
        .map(|made| format!("{} by {}: {}", made["verb"], made["by"], made["why"]).replace('"', ""))
        .collect();
    assert_eq!(
        told,
        [
            "retire by ops: ",
            "rollback by ops: ",
            "promote by ops: it is better",
            "stage by ops: ",
            "begin by mainstay: the configuration names it"
        ]
    );
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_not_legal_is_told_with_what_is() {
    let service = Service::start(&[]);
    let answer = act(&service, "promote", json!({})).await;
    assert_eq!((answer.status, answer.code().as_str()), (409, "illegal_move"));
    assert_eq!(answer.json()["legal"], json!(["stage", "apply_policy"]));
    assert_eq!(act(&service, "explode", json!({})).await.code(), "not_found");
    let unknown = service.post_admin("/v1/slots/telco-chrun/promote", &[], &json!({"by": "ops"})).await;
    assert!(unknown.code() == "unknown_model" && unknown.text.contains("did you mean"), "{}", unknown.text);
    assert_eq!(service.post_admin("/v1/slots/telco-churn/promote", &[], &json!({})).await.code(), "invalid_request");
    assert_eq!(act(&service, "promote", json!({"froce": true})).await.code(), "invalid_request");
    assert_eq!(act(&service, "stage", json!({"version": "../1.0.0"})).await.code(), "invalid_request");
    stage(&service, "1.1.0").await;
    let steps = json!([{"exposure": "canary", "share": 0.5, "bake_secs": 1}, {"exposure": "canary", "share": 0.1, "bake_secs": 1}]);
    let answer = act(&service, "start", json!({"steps": steps})).await;
    let wrong = &answer.json()["errors"][0];
    assert_eq!(
        (&wrong["pointer"], &wrong["expected"]),
        (&json!("/steps/1"), &json!("more exposure than the step before"))
    );
    let answer = service.post_admin("/v1/slots/telco-churn/promote", &[], &json!({"by": " "})).await;
    assert_eq!(answer.json()["errors"][0]["pointer"], "/by");
}

#[tokio::test]
async fn a_bundle_that_must_not_serve_changes_nothing() {
    let models = models();
    let service = start(models.path(), None, "1.0.0", &[]);
    let before = slots(&service).await;
    let answer = act(&service, "stage", json!({"version": "7.7.7"})).await;
    assert_eq!((answer.status, answer.code().as_str()), (422, "refused_for_service"));
    assert!(answer.json()["reasons"][0].as_str().expect("a reason").contains("No such file"), "{}", answer.text);

    // A bundle whose dictionary lost a feature would refuse requests that are legal now.
    let other = models.path().join("telco-churn/7.7.7");
    std::fs::create_dir(&other).expect("a directory");
    for entry in std::fs::read_dir("models/mlc-churn/1.0.0").expect("a bundle") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), other.join(entry.file_name())).expect("a copy");
    }
    let text = std::fs::read_to_string(other.join("manifest.json")).expect("a card");
    let mut card: Value = serde_json::from_str(&text).expect("JSON");
    (card["name"], card["version"]) = (json!("telco-churn"), json!("7.7.7"));
    std::fs::write(other.join("manifest.json"), card.to_string()).expect("written");
    let answer = act(&service, "stage", json!({"version": "7.7.7"})).await;
    let reasons = answer.json()["reasons"].to_string();
    assert!(reasons.contains("removed: \\\"Contract\\\"") && reasons.contains("added: "), "{reasons}");

    assert_eq!(slots(&service).await["slots"], before["slots"]);
    assert_eq!(decided(&service, &customer()).await.0, "1.0.0");
    let history = service.get_admin("/v1/slots/telco-churn/history").await.text;
    assert!(history.contains("7.7.7 refused"), "{history}");
    // With a difference that harms nobody it is told and staged; and one by force is staged too.
    let notes = stage(&service, "1.2.0").await["notes"].to_string();
    assert!(notes.contains("how \\\"TotalCharges\\\" is encoded"), "{notes}");
    done(&service, "stage", json!({"version": "7.7.7", "allow_breaking": true})).await;
}

#[tokio::test]
async fn a_request_with_a_key_is_done_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut service = Service::start_in(directory.path(), &[]);
    let key = [("idempotency-key", "k-1")];
    let path = "/v1/slots/telco-churn/stage";
    let body = json!({"by": "ops", "version": "1.1.0"});
    let first = service.post_admin(path, &key, &body).await.json();
    done(&service, "promote", json!({})).await;
    let second = service.post_admin(path, &key, &body).await.json();
    assert_eq!((&second["result"], &second["repeated"]), (&first["result"], &json!(true)));
    let other = service.post_admin(path, &key, &json!({"by": "ops", "version": "1.2.0"})).await;
    assert_eq!((other.status, other.code().as_str()), (422, "key_reused"));
    service.wait();
    let service = Service::start_in(directory.path(), &[]);
    let third = service.post_admin(path, &key, &body).await.json();
    assert_eq!(third["repeated"], true, "after a restart too");
    assert_eq!(pairs(&roles(&service).await), [("standby", "1.0.0"), ("champion", "1.1.0")]);
}

#[tokio::test]
async fn a_canary_keeps_the_customers_that_it_had() {
    let service = Service::start(&["rollouts.arm_header=true"]);
    stage(&service, "1.1.0").await;
    let step = |share: f64| json!({"exposure": "canary", "share": share, "bake_secs": 3600});
    done(&service, "start", json!({"steps": [step(0.1), step(0.4), step(1.0)]})).await;
    let figures = |slots: &Value| slots["rollout"]["guardrails"][0]["figures"].as_str().unwrap_or_default().to_owned();
    // Customers are counted in a set of bits: now and then two share one.
    let counts = |slots: &Value, own: usize, usual: usize| {
        let figures = figures(slots);
        let numbers: Vec<usize> = figures.split(' ').filter_map(|word| word.parse().ok()).collect();
        let near = |found: Option<&usize>, expected: usize| found.is_some_and(|found| found.abs_diff(expected) <= 4);
        near(numbers.get(1), own) && near(numbers.get(3), usual) && figures.starts_with("0 of")
    };
    let mut taken = Vec::new();
    let mut usual = 0;
    for share in [0.1, 0.4, 1.0] {
        let answers = service.post("/v1/score/batch", &customers(1_000)).await.json()["results"].clone();
        let is_taken: Vec<bool> =
            answers.as_array().expect("answers").iter().map(|answer| answer["model"]["arm"] == "challenger").collect();
        for (answer, taken) in answers.as_array().expect("answers").iter().zip(&is_taken) {
            assert_eq!(answer["model"]["version"], if *taken { "1.1.0" } else { "1.0.0" });
        }
        let own = is_taken.iter().filter(|taken| **taken).count();
        assert!((own as f64 / 1_000.0 - share).abs() <= 0.05, "{own} instead of {share}");
        assert!(taken.iter().zip(&is_taken).all(|(before, now): (&bool, &bool)| *now || !before), "somebody fell out");
        taken = is_taken;
        // Each step counts anew, but for a champion who has no customers left: that one is remembered.
        usual = if share < 1.0 { 1_000 - own } else { usual };
        until(async || counts(&slots(&service).await, own, usual)).await;
        if share < 1.0 {
            done(&service, "advance", json!({})).await;
        }
    }
    // One at a time is assigned as in a batch; who is addressed is neither assigned nor evidence.
    let answer = service
        .post_raw(
            "/v1/score",
            &[("content-type", "application/json"), ("x-mainstay-arm", "champion")],
            customer().to_string(),
        )
        .await;
    assert_eq!(answer.json()["model"]["arm"], "champion");
    assert_eq!(decided(&service, &customer()).await.1, "challenger");
    until(async || counts(&slots(&service).await, 1_001, usual)).await;
    let off = Service::start(&[]);
    let answer = off
        .post_raw(
            "/v1/score",
            &[("content-type", "application/json"), ("x-mainstay-arm", "champion")],
            customer().to_string(),
        )
        .await;
    assert_eq!((answer.status, answer.code().as_str()), (403, "arm_not_addressable"));
}

/// Scores customers one by one on one connection; each has to be answered with 200.
fn one_by_one(service: &Service, bodies: &[String]) {
    let mut stream = service.connect();
    let last = bodies.len() - 1;
    for (at, body) in bodies.iter().enumerate() {
        let close = if at == last { "connection: close\r\n" } else { "" };
        let head = format!(
            "POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{close}content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).expect("written");
    }
    let answers = read_to_end(&mut stream);
    assert_eq!(answers.matches("HTTP/1.1 200").count(), bodies.len(), "{answers}");
}

/// A latency that a faultless bundle keeps without optimisation, and the slow one does not.
const FAST: &str = "rollouts.limits.latency_floor_us=200";
/// One that every bundle keeps, however cold the caches of a busy machine are: for tests that are of something else.
const ANY: &str = "rollouts.limits.latency_floor_us=100000";

/// Runs a rollout of `version` against 1.2.0 until it has ended, or has passed to its end: (how, the broken guardrail).
async fn trial(version: &str, exposure: &str, limits: &[&str]) -> (String, String) {
    let models = models();
    let service = start(models.path(), None, "1.2.0", &[&["limits.batch_rows_max=3000"], limits].concat());
    stage(&service, version).await;
    let share = if exposure == "shadow" { 1.0 } else { 0.5 };
    let steps = json!([{"exposure": exposure, "share": share, "bake_secs": 0}]);
    done(&service, "start", json!({"steps": steps})).await;
    let rows = customers(3_000);
    // All of them as a batch, then one by one.
    let answers = service.post("/v1/score/batch", &rows).await.json()["results"].clone();
    let failed = answers.as_array().expect("answers").iter().filter(|answer| answer["score"].is_null()).count();
    assert_eq!(failed, 0, "of 3,000 customers");
    let bodies: Vec<String> = rows.as_array().expect("rows").iter().map(Value::to_string).collect();
    let parts = std::sync::Mutex::new(bodies.chunks(100).cycle());
    until(async || {
        for _ in 0..5 {
            one_by_one(&service, parts.lock().expect("alone").next().expect("a cycle"));
        }
        let slots = slots(&service).await;
        slots["rollout"].is_null() || slots["rollout"]["verdict"] == "pass"
    })
    .await;
    let slots = slots(&service).await;
    if slots["rollout"].is_object() {
        return ("passed".into(), String::new());
    }
    assert_eq!(pairs(&roles(&service).await), [("champion", "1.2.0"), ("staged", version)]);
    let last = &slots["last_rollout"];
    let broken = last["guardrails"].as_array().expect("guardrails").iter().find(|reading| reading["verdict"] == "fail");
    let name = broken.expect("a broken guardrail")["guardrail"].as_str().expect("a name");
    let history = service.get_admin("/v1/slots/telco-churn/history").await.json();
    assert!(history["moves"][0]["result"].as_str().expect("a sentence").contains(name));
    (last["end"].as_str().expect("an end").to_owned(), name.to_owned())
}

#[tokio::test]
async fn every_fault_is_rolled_back_in_the_shadow_and_nobody_notices() {
    for (version, guardrail) in [
        ("9.0.1-shifted", "score_drift"),
        ("9.0.2-slow", "latency"),
        ("9.0.3-erring", "error_rate"),
        ("9.0.4-nan", "non_finite"),
    ] {
        let limit = if guardrail == "latency" { FAST } else { ANY };
        let (end, broken) = trial(version, "shadow", &[limit]).await;
        assert_eq!(end, "rolled_back", "{version}");
        // A score that is no number is a failed request too: whichever is seen first.
        assert!(broken == guardrail || broken == "error_rate", "{version}: {broken}");
    }
}

#[tokio::test]
async fn every_fault_is_rolled_back_in_a_canary_and_the_champion_answers_for_it() {
    for (version, guardrails) in [
        ("9.0.1-shifted", ["score_drift", "tier_mix"]),
        ("9.0.2-slow", ["latency", "latency"]),
        ("9.0.3-erring", ["error_rate", "error_rate"]),
        ("9.0.4-nan", ["non_finite", "error_rate"]),
    ] {
        let limit = if guardrails.contains(&"latency") { FAST } else { ANY };
        let (end, broken) = trial(version, "canary", &[limit]).await;
        assert!(end == "rolled_back" && guardrails.contains(&broken.as_str()), "{version}: {end}, {broken}");
    }
}

#[tokio::test]
async fn a_good_challenger_passes_and_waits_for_a_person() {
    for exposure in ["shadow", "canary"] {
        // Three thousand customers, assigned anew each time, are few for narrower limits.
        assert_eq!(
            trial("9.0.0-good", exposure, &[ANY, "rollouts.limits.tier_shift_max=0.2"]).await.0,
            "passed",
            "{exposure}"
        );
    }
}

#[tokio::test]
async fn without_traffic_nothing_passes_and_with_it_a_rollout_ends_by_itself_where_it_may() {
    let models = models();
    let service = start(models.path(), None, "1.2.0", &["rollouts.promote=true", ANY]);
    stage(&service, "9.0.0-good").await;
    let steps = json!([{"exposure": "shadow", "share": 1.0, "bake_secs": 0}]);
    done(&service, "start", json!({"steps": steps})).await;
    until(async || slots(&service).await["rollout"]["guardrails"].as_array().is_some_and(|all| !all.is_empty())).await;
    let running = slots(&service).await;
    assert_eq!((&running["rollout"]["verdict"], &running["rollout"]["step"]), (&json!("hold"), &json!(1)));
    assert_eq!(act(&service, "promote", json!({})).await.code(), "illegal_move", "without force");
    until(async || {
        service.post("/v1/score/batch", &customers(4_000)).await;
        roles(&service).await[1].0 == "champion"
    })
    .await;
    let slots = slots(&service).await;
    assert_eq!((&slots["last_rollout"]["end"], &slots["slots"][0]["role"]), (&json!("promoted"), &json!("standby")));
    let metrics = service.get_admin("/metrics").await.text;
    assert!(metrics.contains("mainstay_rollout_moves_total{model=\"telco-churn\",verb=\"promote\"} 1"), "{metrics}");
}

#[tokio::test]
async fn slots_rollout_and_policy_come_back_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut service = Service::start_in(directory.path(), &[]);
    stage(&service, "1.1.0").await;
    let document = std::fs::read_to_string("models/policy/four-bands.toml").expect("a policy");
    done(&service, "apply_policy", json!({"document": document})).await;
    let step = |share: f64| json!({"exposure": "canary", "share": share, "bake_secs": 3600});
    done(&service, "start", json!({"steps": [step(0.1), step(0.5)]})).await;
    done(&service, "advance", json!({})).await;
    done(&service, "pause", json!({})).await;
    let arms = async |service: &Service| -> Vec<Value> {
        let answers = service.post("/v1/score/batch", &customers(100)).await.json()["results"].clone();
        answers
            .as_array()
            .expect("answers")
            .iter()
            .map(|a| json!([a["model"]["arm"], a["score"], a["policy_version"]]))
            .collect()
    };
    let (before, arms_before) = (slots(&service).await, arms(&service).await);
    service.wait();
    // The configuration names another version meanwhile: what the ledger remembers counts.
    let serve = "models.serve=[{name = \"telco-churn\", version = \"1.2.0\"}]";
    let mut service = Service::start_in(directory.path(), &[serve]);
    let after = slots(&service).await;
    for place in [
        "/slots/0/version",
        "/slots/0/since",
        "/slots/1/role",
        "/slots/1/since",
        "/policy",
        "/rollout/id",
        "/rollout/step",
        "/rollout/steps",
        "/rollout/step_since",
        "/rollout/state",
        "/legal",
    ] {
        assert_eq!(before.pointer(place), after.pointer(place), "{place}");
    }
    assert_eq!(arms_before, arms(&service).await, "the same customers, scores and policy");
    service.wait();
    let service = Service::start_in(directory.path(), &[serve, "models.resume=false"]);
    assert_eq!(pairs(&roles(&service).await), [("champion", "1.2.0"), ("", "")]);
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
    // Another champion is one since now; the same one, begun with once more, since before.
    let begun = slots(&service).await;
    assert_ne!(begun.pointer("/slots/0/since"), before.pointer("/slots/0/since"));
    drop(service);
    let service = Service::start_in(directory.path(), &[serve, "models.resume=false"]);
    assert_eq!(slots(&service).await.pointer("/slots/0/since"), begun.pointer("/slots/0/since"));
}

#[tokio::test]
async fn a_restart_without_the_bundle_of_the_idle_slot_keeps_its_place() {
    let models = models();
    let directory = tempfile::tempdir().expect("a directory");
    let mut service = start(models.path(), Some(directory.path()), "1.0.0", &[]);
    stage(&service, "1.1.0").await;
    done(&service, "promote", json!({})).await;
    service.wait();
    let standby = models.path().join("telco-churn/1.0.0");
    let bundle = std::fs::read_link(&standby).expect("a link");
    std::fs::remove_file(&standby).expect("removed");
    let mut service = start(models.path(), Some(directory.path()), "1.1.0", &[]);
    assert_eq!(slots(&service).await["slots"][0]["state"], "failed");
    assert_eq!(decided(&service, &customer()).await.0, "1.1.0");
    let refused = act(&service, "rollback", json!({})).await;
    assert!(refused.code() == "refused_for_service" && refused.text.contains("cannot be read"), "{}", refused.text);
    std::os::unix::fs::symlink(&bundle, &standby).expect("a link");
    done(&service, "rollback", json!({})).await;
    assert_eq!(decided(&service, &customer()).await.0, "1.0.0", "it was back, and so is the champion of before");
    service.wait();
    std::fs::remove_file(models.path().join("telco-churn/1.0.0")).expect("removed");
    let settings =
        [format!("models.dir={}", models.path().display()), format!("ledger.dir={}", directory.path().display())];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let failed = mainstay::app::App::start(config(&settings).expect("legal")).expect_err("the champion is not there");
    assert!(format!("{failed:#}").contains("cannot serve telco-churn 1.0.0"), "{failed:#}");
}

/// A rollout ends without its challenger: who goes back does not wait for a bundle.
#[tokio::test]
async fn a_rollout_is_rolled_back_though_the_bundle_of_its_challenger_is_gone() {
    let models = models();
    let directory = tempfile::tempdir().expect("a directory");
    let mut service = start(models.path(), Some(directory.path()), "1.0.0", &[]);
    stage(&service, "1.1.0").await;
    done(&service, "start", json!({"steps": [{"exposure": "canary", "share": 0.5, "bake_secs": 3600}]})).await;
    service.wait();
    std::fs::remove_file(models.path().join("telco-churn/1.1.0")).expect("removed");
    let service = start(models.path(), Some(directory.path()), "1.0.0", &[]);
    assert_eq!(pairs(&roles(&service).await), [("champion", "1.0.0"), ("challenger", "1.1.0")]);
    // What needs the challenger is refused, with why.
    let refused = act(&service, "promote", json!({"force": true})).await;
    assert!(refused.code() == "refused_for_service" && refused.text.contains("cannot be read"), "{}", refused.text);
    done(&service, "rollback", json!({"why": "complaints"})).await;
    assert_eq!(pairs(&roles(&service).await), [("champion", "1.0.0"), ("staged", "1.1.0")]);
    assert_eq!(decided(&service, &customer()).await, ("1.0.0".into(), "champion".into()));
    done(&service, "retire", json!({})).await;
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
}

#[tokio::test]
async fn two_people_have_to_agree_where_two_are_asked_for() {
    let service = Service::start(&["rollouts.approvals=[\"data_scientist\", \"business_sponsor\"]"]);
    stage(&service, "1.1.0").await;
    let refused = act(&service, "promote", json!({})).await;
    assert!(refused.code() == "illegal_move" && refused.text.contains("business_sponsor"), "{}", refused.text);
    let approve = async |by: &str, role: &str| {
        service.post_admin("/v1/slots/telco-churn/approve", &[], &json!({"by": by, "role": role})).await.status
    };
    assert_eq!(approve("ann", "data_scientist").await, 200);
    assert_eq!(approve("ann", "business_sponsor").await, 409, "the same person");
    assert_eq!(approve(" ann ", "business_sponsor").await, 409, "still the same person");
    assert_eq!(approve("Mainstay", "business_sponsor").await, 422, "the service is nobody");
    assert_eq!(approve("bob", "business_sponsor").await, 200);
    done(&service, "promote", json!({})).await;
}

#[tokio::test]
async fn a_policy_is_simulated_applied_and_undone() {
    let service = Service::start(&[]);
    let before = service.post("/v1/score", &customer()).await.json();
    let document = std::fs::read_to_string("models/policy/four-bands.toml").expect("a policy");
    let tried = service
        .post_admin("/v1/policies:simulate", &[], &json!({"model": "telco-churn", "document": document, "last": 10}))
        .await
        .json();
    assert_eq!((&tried["decisions"]["usable"], &tried["tier_changed_share"]), (&json!(1), &json!(1.0)), "{tried}");
    done(&service, "apply_policy", json!({"document": document})).await;
    let applied = service.post("/v1/score", &customer()).await.json();
    assert_eq!(applied["score"], before["score"]);
    assert_ne!((&applied["tier"], &applied["policy_version"]), (&before["tier"], &before["policy_version"]));
    assert_eq!(act(&service, "apply_policy", json!({"document": document})).await.code(), "illegal_move", "twice");
    done(&service, "undo_policy", json!({})).await;
    assert_eq!(service.post("/v1/score", &customer()).await.json()["policy_version"], before["policy_version"]);
    assert_eq!(act(&service, "undo_policy", json!({})).await.code(), "illegal_move", "undone already");
    assert_eq!(service.post("/v1/score", &customer()).await.json()["policy_version"], before["policy_version"]);
    let wrong = act(&service, "apply_policy", json!({"document": "name = 1"})).await;
    assert_eq!(wrong.code(), "refused_for_service");
    assert!(wrong.json()["reasons"].as_array().expect("reasons").len() > 2, "{}", wrong.text);
}

#[tokio::test]
async fn staging_tells_how_recorded_decisions_would_differ() {
    let service = Service::start(&[]);
    service.post("/v1/score/batch", &customers(200)).await;
    let staged = done(&service, "stage", json!({"version": "1.1.0", "replay_last": 150})).await;
    let replay = &staged["replay"];
    assert_eq!((&replay["rows"], &replay["skipped"]), (&json!(150), &json!(0)));
    assert!(replay["score_difference"]["size_max"].as_f64().expect("a number") > 0.0);
    let moved = replay["migration"].as_array().expect("rows").iter().flat_map(|row| row.as_array().expect("a row"));
    assert_eq!(moved.map(|count| count.as_u64().expect("a count")).sum::<u64>(), 150);
}

#[tokio::test]
async fn every_answer_is_of_the_version_that_it_names_whatever_is_swapped() {
    let service = Service::start(&["rollouts.arm_header=true"]);
    stage(&service, "1.1.0").await;
    let bodies: Vec<Value> = customers(20).as_array().expect("customers").clone();
    let mut expected = std::collections::HashMap::new();
    for (arm, version) in [("champion", "1.0.0"), ("challenger", "1.1.0")] {
        for (at, body) in bodies.iter().enumerate() {
            let headers = [("content-type", "application/json"), ("x-mainstay-arm", arm)];
            let answer = service.post_raw("/v1/score", &headers, body.to_string()).await.json();
            assert_eq!(answer["model"]["version"], version);
            expected.insert((at, version.to_owned()), answer["score"].clone());
        }
    }
    let swaps = async {
        for _ in 0..25 {
            done(&service, "promote", json!({})).await;
            done(&service, "rollback", json!({})).await;
        }
    };
    let asks = async {
        let mut versions = std::collections::HashSet::new();
        for at in (0..bodies.len()).cycle().take(600) {
            let answer = service.post("/v1/score", &bodies[at]).await.json();
            let version = answer["model"]["version"].as_str().expect("a version").to_owned();
            assert_eq!(expected[&(at, version.clone())], answer["score"]);
            versions.insert(version);
        }
        versions.len()
    };
    let (versions, ()) = tokio::join!(asks, swaps);
    assert_eq!(versions, 2, "both were in service while they were asked");
}

#[tokio::test]
async fn what_may_change_at_run_time_does_and_the_rest_waits() {
    let service = Service::start(&[]);
    let next = config(&["rollouts.approvals=[\"sponsor\"]", "limits.depth_max=3", "http.listen=127.0.0.1:1"]);
    service.reload.send(next.expect("legal")).await.expect("taken");
    stage(&service, "1.1.0").await;
    until(async || slots(&service).await["approvals_missing"] == json!(["sponsor"])).await;
    assert_eq!(decided(&service, &customer()).await.0, "1.0.0", "still there");
    let deep = service.post("/v1/score", &json!({"customer_id": "c", "features": {"a": [[[1]]]}})).await;
    assert_eq!(deep.code(), "invalid_request", "a depth of 3 would be too_deep: that waits for a restart");
}

#[tokio::test]
async fn the_command_line_is_a_thin_client() {
    let service = Service::start(&[]);
    let admin = format!("admin.listen={}", service.admin);
    let run = |arguments: &[&str]| mainstay(&service.ledger, &[arguments, &["--set", &admin]].concat());
    let (code, text) = run(&["stage", "telco-churn", "1.1.0", "--by", "ops", "--why", "trial"]);
    assert!(code == 0 && text.contains("1.1.0 is ready in green"), "{text}");
    let (code, text) = run(&["rollout", "start", "telco-churn", "--by", "ops", "--steps", "0.01:600,1:600"]);
    assert!(code == 0 && text.contains("canary step 1 of 2"), "{text}");
    let (code, text) = run(&["promote", "telco-churn", "--by", "ops"]);
    assert!(code == 1 && text.contains("has not passed") && text.contains("legal now: rollback"), "{text}");
    assert_eq!(run(&["promote", "telco-churn", "--by", "ops", "--force"]).0, 0);
    let (code, text) = run(&["slots", "telco-churn"]);
    assert!(code == 0 && text.contains("champion  1.1.0") && !text.contains("mlc-churn"), "{text}");
    let (code, text) = run(&["slots", "telco"]);
    assert!(code == 1 && text.contains("telco-churn"), "{text}");
    let (code, text) = run(&["history", "telco-churn", "--json"]);
    assert!(code == 0 && serde_json::from_str::<Value>(&text).is_ok(), "{text}");
    let (code, text) = run(&["policy", "simulate", "telco-churn", "models/policy/four-bands.toml"]);
    assert!(code == 0 && text.contains("could not be made again"), "{text}");
    drop(service);
    assert_eq!(mainstay(Path::new("data"), &["slots", "--set", "admin.listen=127.0.0.1:1"]).0, 69);
}

#[tokio::test]
async fn a_step_is_judged_by_what_is_seen_in_it() {
    let models = models();
    let limits = [ANY, "rollouts.limits.tier_shift_max=0.3", "rollouts.limits.requests_min=200"];
    let service = start(models.path(), None, "1.2.0", &[&["limits.batch_rows_max=3000"], &limits[..]].concat());
    stage(&service, "9.0.0-good").await;
    let step = |exposure: &str, share: f64| json!({"exposure": exposure, "share": share, "bake_secs": 0});
    done(
        &service,
        "start",
        json!({"steps": [step("shadow", 1.0), step("canary", 0.5), step("canary", 1.0)], "promote": true}),
    )
    .await;
    until(async || {
        service.post("/v1/score/batch", &customers(3_000)).await;
        slots(&service).await["rollout"]["step"] == 2
    })
    .await;
    // Nobody comes any more: however often it is looked at, the pass of the step before is no pass of this one.
    let looked = || async { slots(&service).await["rollout"]["guardrails"].as_array().map_or(0, Vec::len) };
    until(async || looked().await > 0).await;
    let now = slots(&service).await;
    assert_eq!((&now["rollout"]["step"], &now["rollout"]["verdict"]), (&json!(2), &json!("hold")), "{now:#}");
}

#[tokio::test]
async fn few_requests_are_enough_to_find_that_all_fail() {
    let models = models();
    let service = start(models.path(), None, "1.2.0", &[]);
    stage(&service, "9.0.3-erring").await;
    done(&service, "start", json!({"steps": [{"exposure": "canary", "share": 0.5, "bake_secs": 3600}]})).await;
    let mut number = 0;
    let ask = std::sync::Mutex::new(|| {
        number += 1;
        let mut customer = customer_with("tenure", json!(41));
        customer["customer_id"] = json!(format!("c-{number}"));
        customer
    });
    // One at a look: each look has one arm's customers only.
    until(async || {
        let body = (ask.lock().expect("alone"))();
        assert_eq!(service.post("/v1/score", &body).await.status, 200);
        for _ in 0..20 {
            slots(&service).await;
        }
        slots(&service).await["last_rollout"]["end"] == "rolled_back"
    })
    .await;
}

#[tokio::test]
async fn a_stream_is_answered_by_who_is_in_service_now() {
    let service = Service::start(&[]);
    stage(&service, "1.1.0").await;
    let line = format!("{}\n", customer());
    let mut stream = service.connect();
    let head = "POST /v1/score/batch HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("{:x}\r\n{line}\r\n", line.len());
    stream.write_all(format!("{head}{chunk}").as_bytes()).expect("written");
    until(async || slots(&service).await["slots"][0]["requests"] == 1).await;
    done(&service, "promote", json!({})).await;
    stream.write_all(format!("{chunk}0\r\n\r\n").as_bytes()).expect("written");
    let answer = read_to_end(&mut stream);
    assert!(answer.contains("\"version\":\"1.0.0\"") && answer.contains("\"version\":\"1.1.0\""), "{answer}");
}

#[tokio::test]
async fn a_broken_challenger_loses_its_customers_though_nothing_can_be_written_down() {
    let models = models();
    let service = start(models.path(), None, "1.2.0", &["ledger.promise=buffered"]);
    stage(&service, "9.0.4-nan").await;
    done(&service, "start", json!({"steps": [{"exposure": "canary", "share": 0.9, "bake_secs": 3600}]})).await;
    // Another process holds the database, as a tool that hangs does.
    let other = rusqlite::Connection::open(service.ledger.join("ledger.db")).expect("the database");
    other.execute_batch("BEGIN IMMEDIATE").expect("a lock");
    let mut rows = customers(300);
    rows.as_array_mut().expect("rows").iter_mut().for_each(|row| row["features"]["tenure"] = json!(41));
    assert_eq!(service.post("/v1/score/batch", &rows).await.status, 200);
    until(async || slots(&service).await["last_rollout"]["end"] == "rolled_back").await;
    assert_eq!(slots(&service).await["journalled"], false);
    assert_eq!(decided(&service, &customer()).await.1, "champion");
    // A verb is refused in bounded time, the plane lives, and nothing has changed.
    let (refused, alive) = tokio::join!(act(&service, "retire", json!({})), service.get_admin("/livez"));
    assert_eq!((refused.code().as_str(), alive.status), ("ledger_unavailable", 200));
    other.execute_batch("ROLLBACK").expect("no lock");
    drop(other);
    until(async || slots(&service).await["journalled"] == true).await;
    let history = service.get_admin("/v1/slots/telco-churn/history").await.json();
    assert!(history["moves"][0]["result"].as_str().expect("a sentence").contains("rolled back"), "{history:#}");
    done(&service, "retire", json!({})).await;
}
