//! Slow models: customers wait for their turn on threads of the model, and everything else is as it is with any model.

use std::path::Path;
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::dense;
use crate::ledger::mainstay;
use crate::service::{Service, customer, golden, until};

/// Callers who do not wait for their answer.
const GONE: usize = 200;
/// Callers who wait for a challenger at a time.
const CROWD: usize = 128;
const DENSE: &str = "telco-churn/2.0.0";

/// The bundled models beside a small dense network.
fn models() -> tempfile::TempDir {
    let root = crate::slots::models();
    dense::make(root.path(), Path::new("models/telco-churn/1.0.0"), "telco-churn", "2.0.0", 2, 64);
    root
}

/// A service that calls every model slow, and serves the network and a native one; with its models.
fn slow() -> &'static (tempfile::TempDir, Service) {
    static SLOW: LazyLock<(tempfile::TempDir, Service)> = LazyLock::new(|| {
        let models = models();
        let service = crate::slots::start(models.path(), None, "2.0.0", &["models.inline_row_us_max=0"]);
        (models, service)
    });
    &SLOW
}

fn customers() -> Vec<Value> {
    golden("telco-churn/1.0.0").into_iter().take(32).map(|(customer, _)| customer).collect()
}

/// All of `bodies` at once, each on a connection of its own.
async fn at_once(service: &Service, path: &str, bodies: &[Value]) -> Vec<crate::service::Answer> {
    futures_util::future::join_all(bodies.iter().map(|body| service.post(path, body))).await
}

#[tokio::test]
async fn a_slow_model_says_how_it_is_scored() {
    let (_, service) = slow();
    let model = service.get("/v1/models/telco-churn").await.json();
    let scoring = &model["scoring"];
    assert_eq!((&model["evaluator"], &scoring["way"]), (&json!("onnxruntime"), &json!("turns")), "{scoring}");
    assert_eq!(scoring["threads"], 1, "as many as workers");
    assert!(scoring["reason"].as_str().is_some_and(|reason| reason.contains("models.inline_row_us_max")), "{scoring}");
    assert!(scoring["waiting_max"].as_u64() >= scoring["run_rows"].as_u64(), "{scoring}");
    let runs = model["probe"]["runs"].as_array().expect("runs");
    let rows: Vec<&Value> = runs.iter().map(|run| &run["rows"]).collect();
    assert_eq!(rows, [&json!(1), &json!(8), &json!(32)]);
    assert!(runs.iter().all(|run| run["p50_us"].as_f64().is_some_and(|us| us > 0.0)), "{runs:?}");
    // Kernels must not tell a row alone from one beside others, or nothing is scored together.
    assert_eq!(model["probe"]["rows_alike"], true);
    assert!(scoring["run_rows"].as_u64() > Some(1), "{scoring}");

    let quick = crate::service::shared().get("/v1/models/telco-churn").await.json();
    assert_eq!(quick["scoring"]["way"], "inline", "{}", quick["scoring"]);
    assert_eq!(quick["scoring"].get("threads"), None);
}

#[tokio::test]
async fn who_waits_beside_others_has_the_score_of_who_comes_alone_and_replay_finds_it() {
    let (models, service) = slow();
    let customers = customers();
    let together = at_once(service, "/v1/score", &customers).await;
    let batch = service.post("/v1/score/batch", &json!(customers)).await.json();
    let mut different = std::collections::BTreeSet::new();
    for (at, (answer, customer)) in together.iter().zip(&customers).enumerate() {
        assert_eq!(answer.status, 200, "{}", answer.text);
        let decision = answer.json();
        assert_eq!(decision["model"]["version"], "2.0.0");
        assert_eq!(decision["score"], batch["results"][at]["score"], "in a batch");
        assert_eq!(decision["score"], service.post("/v1/score", customer).await.json()["score"], "alone");
        different.insert(decision["score"].to_string());
    }
    assert!(different.len() > customers.len() / 2, "each customer has an answer of its own");
    let dir = format!("models.dir={}", models.path().display());
    let (code, text) = mainstay(&service.ledger, &["replay", "--last", "72", "--set", &dir]);
    assert!(code == 0 && text.contains("72 of 72 decisions came out the same to the last bit"), "{text}");
}

#[tokio::test]
async fn its_golden_rows_come_out_by_every_way() {
    let (models, service) = slow();
    let text = std::fs::read_to_string(models.path().join(DENSE).join("golden.json")).expect("golden rows");
    let golden: Value = serde_json::from_str(&text).expect("JSON");
    for row in golden["rows"].as_array().expect("rows") {
        let body = json!({"customer_id": "G", "features": row["features"]});
        let decision = service.post("/v1/score", &body).await.json();
        let difference = decision["score"].as_f64().expect("a score") - row["score"].as_f64().expect("a score");
        assert!(difference.abs() <= 1e-5, "{decision}");
    }
    // A native model that is called slow takes turns too.
    let (customer, score) = crate::service::golden("mlc-churn/1.0.0").swap_remove(0);
    let decision = service.post("/v1/models/mlc-churn/score", &customer).await.json();
    assert!((decision["score"].as_f64().expect("a score") - score).abs() <= 1e-5, "{decision}");
}

#[tokio::test]
async fn reasons_and_counterfactuals_are_there_as_ever() {
    let (models, service) = slow();
    let plain = service.post("/v1/score", &customer()).await.json();
    let mut body = customer();
    body["counterfactuals"] = json!(1);
    let decision = service.post("/v1/score?top=3", &body).await.json();
    assert_eq!(decision["score"], plain["score"], "{decision}");
    assert_eq!(decision["base"]["method"], "sampled_shapley");
    assert_eq!(decision["reasons"].as_array().map(Vec::len), Some(3), "{decision}");
    assert!(decision["counterfactuals"].is_array(), "{decision}");
    // Where the tier wants reasons, it is known by the score that was waited for.
    let directory = tempfile::tempdir().expect("a directory");
    let dir = format!("models.dir={}", models.path().display());
    let slow = [dir.as_str(), "models.inline_row_us_max=0"];
    let service = crate::reasons::explaining(directory.path(), &slow, "2.0.0");
    let mut tiers = Vec::new();
    for customer in &customers() {
        let decision = service.post("/v1/score", customer).await.json();
        tiers.push((decision["tier"] == "medium", decision["reasons"].as_array().map(Vec::len)));
    }
    assert!(
        tiers.iter().any(|(is_medium, _)| *is_medium) && tiers.iter().any(|(is_medium, _)| !is_medium),
        "{tiers:?}"
    );
    assert!(tiers.iter().all(|(is_medium, reasons)| *reasons == is_medium.then_some(2)), "{tiers:?}");
}

#[tokio::test]
async fn who_comes_when_too_many_wait_is_told_to_come_again() {
    // More together gain nothing there, and few may wait.
    let models = models();
    let service = crate::slots::start(models.path(), None, "9.0.2-slow", &["models.turn_wait_ms_max=1"]);
    let scoring = service.get("/v1/models/telco-churn").await.json()["scoring"].clone();
    assert_eq!(scoring["run_rows"], 1, "{scoring}");
    assert!(scoring["waiting_max"].as_u64() < Some(8), "{scoring}");
    // Streams of one connection come in quicker than rows of this model go out.
    let customers = customers();
    let mut statuses = std::collections::BTreeMap::new();
    {
        let client = reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
        let url = format!("http://{}/v1/score", service.data);
        let streams = (0..128).map(|at| client.post(&url).json(&customers[at % customers.len()]).send());
        for answer in futures_util::future::join_all(streams).await {
            let answer = answer.expect("an answer");
            let status = answer.status().as_u16();
            *statuses.entry(status).or_insert(0) += 1;
            if status == 503 {
                assert_eq!(answer.headers()["retry-after"], "1");
                assert_eq!(answer.json::<Value>().await.expect("a problem")["code"], "overloaded");
            }
        }
    }
    assert_eq!(statuses.keys().collect::<Vec<_>>(), [&200, &503], "{statuses:?}");
    let again = service.post("/v1/score", &customer()).await;
    assert_eq!(again.status, 200, "{}", again.text);
    let quick = service.post("/v1/models/mlc-churn/score", &golden("mlc-churn/1.0.0")[0].0).await;
    assert_eq!(quick.status, 200, "{}", quick.text);
}

#[tokio::test]
async fn a_slow_challenger_takes_turns_and_the_quick_champion_does_not() {
    let models = models();
    let service = crate::slots::start(models.path(), None, "1.0.0", &["rollouts.arm_header=true"]);
    assert_eq!(service.get("/v1/models/telco-churn").await.json()["scoring"]["way"], "inline");
    crate::slots::stage(&service, "9.0.2-slow").await;
    let ask = async |arm: &str| {
        let headers = [("content-type", "application/json"), ("x-mainstay-arm", arm)];
        service.post_raw("/v1/score", &headers, customer().to_string()).await.json()
    };
    let (champion, challenger) = (ask("champion").await, ask("challenger").await);
    assert_eq!((&champion["model"]["version"], &champion["model"]["arm"]), (&json!("1.0.0"), &json!("champion")));
    assert_eq!(
        (&challenger["model"]["version"], &challenger["model"]["arm"]),
        (&json!("9.0.2-slow"), &json!("challenger"))
    );
    assert_ne!(champion["score"], challenger["score"]);
    // And in a canary that nobody addresses.
    let steps = json!([{"exposure": "canary", "share": 0.5, "bake_secs": 3600}]);
    crate::slots::done(&service, "start", json!({"steps": steps})).await;
    let answers = at_once(&service, "/v1/score", &customers()).await;
    let arms: Vec<Value> = answers.iter().map(|answer| answer.json()["model"]["arm"].clone()).collect();
    assert!(arms.contains(&json!("champion")) && arms.contains(&json!("challenger")), "{arms:?}");
}

#[tokio::test]
async fn who_hangs_up_has_left_the_queue() {
    let models = models();
    let service = crate::slots::start(models.path(), None, "9.0.2-slow", &["models.turn_wait_ms_max=60000"]);
    let body = customer().to_string();
    let head = "POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ";
    let request = format!("{head}{}\r\n\r\n{body}", body.len());
    for _ in 0..GONE {
        let mut caller = service.connect();
        std::io::Write::write_all(&mut caller, request.as_bytes()).expect("written");
    }
    // Behind them in the queue, if they were still in it.
    assert_eq!(service.post("/v1/score", &customer()).await.status, 200);
    service.wait_in_flight(0).await;
    let metrics = service.get_admin("/metrics").await.text;
    let of_it = |line: &&str| line.starts_with("mainstay_decisions_total{model=\"telco-churn\"");
    let counts = metrics.lines().filter(of_it).filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
    let decided: usize = counts.sum();
    assert!((1..GONE / 2).contains(&decided), "{decided} were decided on, of {GONE} who had gone");
}

/// A canary whose challenger is slow and right, judged by its errors alone: times are not taken, and what it says may differ.
async fn canary(models: &Path) -> Service {
    let limits = [
        "models.turn_wait_ms_max=60000",
        "rollouts.shadow.share=0.000000001",
        "rollouts.limits.latency_ratio_max=1",
        "rollouts.limits.psi_max=1000",
        "rollouts.limits.tier_shift_max=1",
    ];
    let service = crate::slots::start(models, None, "1.2.0", &limits);
    crate::slots::stage(&service, "9.0.2-slow").await;
    let steps = json!([{"exposure": "canary", "share": 0.5, "bake_secs": 3600}]);
    crate::slots::done(&service, "start", json!({"steps": steps})).await;
    service
}

/// Lets crowds of callers come, each customer once, until the rollout has ended: by what guardrail, and its figures.
async fn rolled_back_by(service: &Service, come: impl AsyncFn(Vec<String>)) -> (String, String) {
    let crowds = std::sync::atomic::AtomicUsize::new(0);
    until(async || {
        let crowd = crowds.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let caller = |number: usize| {
            let mut customer = customer();
            customer["customer_id"] = json!(format!("C-{crowd}-{number}"));
            customer.to_string()
        };
        come((0..CROWD).map(caller).collect()).await;
        crate::slots::slots(service).await["rollout"].is_null()
    })
    .await;
    let last = crate::slots::slots(service).await["last_rollout"].clone();
    assert_eq!(last["end"], "rolled_back", "{last}");
    let readings = last["guardrails"].as_array().expect("guardrails");
    let broken = readings.iter().find(|reading| reading["verdict"] == "fail").expect("a broken one");
    ["guardrail", "figures"].map(|key| broken[key].as_str().expect("text").to_owned()).into()
}

#[tokio::test]
async fn a_challenger_that_is_too_slow_for_what_callers_say_is_rolled_back() {
    let models = models();
    let service = canary(models.path()).await;
    let client = reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
    let url = format!("http://{}/v1/score", service.data);
    let (guardrail, figures) = rolled_back_by(&service, async |bodies: Vec<String>| {
        let ask = |body: String| client.post(&url).header("content-type", "application/json").body(body);
        let answers = bodies.into_iter().map(|body| ask(body).header("x-request-timeout-ms", "5").send());
        futures_util::future::join_all(answers).await;
    })
    .await;
    assert!(guardrail == "error_rate" && figures.contains("their callers gave up on"), "{guardrail}: {figures}");
}

#[tokio::test]
async fn a_challenger_whose_callers_hang_up_is_rolled_back() {
    let models = models();
    let service = canary(models.path()).await;
    let (guardrail, figures) = rolled_back_by(&service, async |bodies: Vec<String>| {
        let ask = |body: String| {
            let mut caller = service.connect();
            let head = "POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ";
            std::io::Write::write_all(&mut caller, format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes())
                .expect("written");
            caller
        };
        let mut callers: Vec<_> = bodies.into_iter().map(ask).collect();
        // Half of them are the challenger's: whoever is still waiting when these have their answers has waited long enough.
        for caller in &mut callers[..20] {
            let mut answer = [0; 12];
            std::io::Read::read_exact(caller, &mut answer).expect("an answer");
            assert_eq!(&answer, b"HTTP/1.1 200");
        }
    })
    .await;
    assert!(guardrail == "error_rate" && figures.contains("their callers gave up on"), "{guardrail}: {figures}");
}
