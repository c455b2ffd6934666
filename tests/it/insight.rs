//! What came of decisions, measured through the real server: each figure is the one that can be counted by hand from what was sent and
//! answered.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::service::{Service, customer_with, shared, until};

const VALUE: &str = include_str!("../../models/policy/value.toml");
const CUSTOMERS: usize = 400;

/// A customer with all that was sent and answered.
#[derive(Debug)]
pub(crate) struct Sent {
    held_out: bool,
    score: f64,
    /// Of each decision.
    costs: Vec<f64>,
    offered: bool,
    clv: f64,
    group: &'static str,
    churned: bool,
    converted: Option<bool>,
    revenues: Vec<f64>,
}

pub(crate) fn start(overrides: &[&str]) -> (Service, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let policy = directory.path().join("policy.toml");
    std::fs::write(&policy, format!("{VALUE}\n[holdout]\nshare = 0.4")).expect("written");
    let serve =
        format!("models.serve=[{{ name = \"telco-churn\", version = \"1.0.0\", policy = \"{}\" }}]", policy.display());
    let service =
        Service::start_in(directory.path(), &[&[serve.as_str(), "insight.maturity_days=0"], overrides].concat());
    (service, directory)
}

/// What is measured at `path` of all that is on record: an answer does not wait for long, and says how much it is behind.
async fn measured(service: &Service, path: &str) -> Value {
    let found = std::cell::RefCell::new(Value::Null);
    until(async || {
        let answer = service.get_admin(path).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        *found.borrow_mut() = answer.json();
        found.borrow()["basis"]["records_behind"] == 0
    })
    .await;
    found.into_inner()
}

pub(crate) fn row(at: usize) -> (Value, f64, &'static str) {
    let contract = ["Month-to-month", "One year", "Two year"][at % 3];
    let mut row = customer_with("Contract", json!(contract));
    row["customer_id"] = json!(format!("C-{at}"));
    row["features"]["tenure"] = json!(1 + at % 70);
    row["features"]["MonthlyCharges"] = json!(20 + at * 7 % 90);
    let (clv, group) = ((200 + at * 37 % 3_000) as f64, if at % 5 < 2 { "f" } else { "m" });
    row["context"] = json!({"clv": clv, "region": "EU", "usage_before": at % 11, "audit": {"sex": group}});
    (row, clv, group)
}

/// Decides on customers, some of them twice, and says what they then did.
pub(crate) async fn history(service: &Service) -> Vec<Sent> {
    let rows: Vec<(Value, f64, &str)> = (0..CUSTOMERS).map(row).collect();
    let again: Vec<Value> = rows.iter().step_by(4).map(|(row, ..)| row.clone()).collect();
    let first: Vec<Value> = rows.iter().map(|(row, ..)| row.clone()).collect();
    let mut decisions = Vec::new();
    for rows in [first, again] {
        let answer = service.post("/v1/score/batch", &json!(rows)).await.json();
        decisions.push(answer["results"].as_array().expect("results").clone());
    }
    let mut outcomes = Vec::new();
    let mut sent = Vec::new();
    for (at, (decision, (_, clv, group))) in decisions[0].iter().zip(&rows).enumerate() {
        let later = (at % 4 == 0).then(|| &decisions[1][at / 4]);
        let (held_out, score) = (decision["holdout"] == true, decision["score"].as_f64().expect("a score"));
        let offered = decision["intervention"]["action"] != "none";
        // As often as the score says, less often where something is offered.
        let place = (at as f64 * 0.618_034) % 1.0;
        let churned = place < if offered { 0.7 * score } else { score };
        let mut one = Sent {
            held_out,
            score,
            costs: [Some(decision), later]
                .into_iter()
                .flatten()
                .map(|one| one["intervention"]["cost"].as_f64().expect("a cost"))
                .collect(),
            offered,
            clv: *clv,
            group,
            churned,
            converted: offered.then_some(at % 3 == 0).filter(|_| at % 10 > 0),
            revenues: (0..at % 3).map(|order| (10 + at % 17 + order) as f64).collect(),
        };
        let outcome = |decision: &Value, facts: Value| {
            let mut outcome = json!({"decision_id": decision["decision_id"], "occurred_at": decision["decided_at"]});
            outcome.as_object_mut().expect("an object").extend(facts.as_object().expect("facts").clone());
            outcome
        };
        // It is told of the last decision, and belongs to the customer.
        let last = later.unwrap_or(decision);
        if churned || at % 2 == 0 {
            outcomes.push(outcome(last, json!({"churned": churned, "contact_cost": 0.25})));
            one.costs[0] += 0.25;
        }
        if let Some(converted) = one.converted {
            outcomes.push(outcome(decision, json!({"converted": converted})));
        }
        for (order, revenue) in one.revenues.iter().enumerate() {
            outcomes.push(outcome(decision, json!({"revenue": revenue, "source_id": format!("{at}/{order}")})));
        }
        sent.push(one);
    }
    for outcomes in outcomes.chunks(500) {
        let answer = service.post("/v1/outcomes", &json!(outcomes)).await.json();
        let results = answer["results"].as_array().expect("results").clone();
        assert!(results.iter().all(|result| result["recorded"] == true), "{results:?}");
    }
    sent
}

fn figure<'a>(kpis: &'a Value, name: &str) -> &'a Value {
    let tree = kpis["tree"].as_array().expect("a tree");
    tree.iter().find(|kpi| kpi["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

fn near(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap_or_else(|| panic!("{found} is no number"));
    assert!((found - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{found} is not {expected}");
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

#[tokio::test]
async fn figures_are_those_that_can_be_counted_by_hand() {
    let (service, _directory) = start(&["insight.conversion_floor=0.9", "insight.cost_ceiling=1000.0"]);
    let sent = history(&service).await;
    let found = measured(&service, "/v1/insight/kpis?window=1h").await;
    assert_eq!(found["basis"]["sampled"], 1.0);
    let overall = &found["overall"];
    assert_eq!((&overall["customers"], &overall["decisions"]), (&json!(CUSTOMERS), &json!(CUSTOMERS + CUSTOMERS / 4)));

    // Churn, and what it costs.
    let group = |held_out: bool| sent.iter().filter(move |one| one.held_out == held_out);
    let churn = |held_out: bool| mean(group(held_out).map(|one| f64::from(u8::from(one.churned))));
    let rates = ["churn_rate_treated", "churn_rate_held_out"].map(|name| &figure(overall, name)["estimate"]);
    near(&rates[0]["value"], churn(false));
    near(&rates[1]["value"], churn(true));
    assert_eq!(rates[1]["n"], group(true).count());
    let (p, n, z) = (churn(true), group(true).count() as f64, 1.959_963_984_540_054_f64);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt() / (1.0 + z * z / n);
    let middle = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    assert!((rates[1]["low"].as_f64().expect("an end") - (middle - half)).abs() < 1e-7);
    let reduction = &figure(overall, "churn_reduction");
    near(&reduction["estimate"]["value"], 1.0 - churn(false) / churn(true));
    assert!(["met", "unresolved"].contains(&reduction["standing"].as_str().expect("a standing")), "{reduction}");
    let lost = |held_out: bool| mean(group(held_out).map(|one| if one.churned { one.clv } else { 0.0 }));
    near(&overall["loss_lift"]["plain"]["value"], lost(false) - lost(true));
    near(&overall["churn_lift"]["plain"]["value"], churn(false) - churn(true));
    let left = overall["churn_lift"]["variance_left"].as_f64().expect("a share");
    assert!(left < 0.95, "the score says something of who leaves: {left}");
    let (adjusted, always) = (&overall["churn_lift"]["adjusted"], &overall["churn_lift"]["always_valid"]);
    assert!(always["low"].as_f64() < adjusted["low"].as_f64() && always["high"].as_f64() > adjusted["high"].as_f64());
    let treated = group(false).count() as f64;
    let cost: f64 = group(false).flat_map(|one| &one.costs).sum();
    near(
        &figure(overall, "net_value_saved")["estimate"]["value"],
        -treated * overall["loss_lift"]["adjusted"]["value"].as_f64().expect("a number") - cost,
    );
    let ratio = &overall["holdout_ratio"];
    assert_eq!(
        (&ratio["held_out"], &ratio["expected"], &ratio["mismatch"]),
        (&json!(n as u64), &json!(0.4), &json!(false))
    );

    // Money and offers.
    let spend: f64 = sent.iter().flat_map(|one| &one.costs).sum();
    near(&figure(overall, "spend")["estimate"]["value"], spend);
    near(&figure(overall, "cost_per_decision")["estimate"]["value"], spend / (CUSTOMERS + CUSTOMERS / 4) as f64);
    assert_eq!(figure(overall, "cost_per_decision")["standing"], "met");
    near(
        &figure(overall, "revenue_per_order")["estimate"]["value"],
        mean(sent.iter().flat_map(|one| one.revenues.clone())),
    );
    let taken = sent.iter().filter(|one| one.offered).map(|one| f64::from(u8::from(one.converted == Some(true))));
    near(&figure(overall, "conversion_rate")["estimate"]["value"], mean(taken));
    assert_eq!(figure(overall, "conversion_rate")["standing"], "missed");

    // Every part is of the whole.
    let parts = found["parts"].as_array().expect("parts");
    let mut dimensions: BTreeMap<&str, u64> = BTreeMap::new();
    for part in parts {
        *dimensions.entry(part["dimension"].as_str().expect("a name")).or_default() +=
            part["customers"].as_u64().expect("a count");
    }
    assert_eq!((dimensions["version"], dimensions["arm"], dimensions["policy"]), (400, 400, 400));
    assert!(dimensions["segment"] > 20 && dimensions["segment"] < 400, "{dimensions:?}");

    // How good the scores were, on who was held out.
    let found = service.get_admin("/v1/insight/quality?model=telco-churn&window=1h").await.json();
    let quality = &found["overall"];
    let rows: Vec<&Sent> = group(true).collect();
    assert_eq!((&quality["on_holdout"], &quality["labelled"]), (&json!(true), &json!(rows.len())));
    let order = |one: &Sent, other: &Sent| match one.score.total_cmp(&other.score) {
        std::cmp::Ordering::Greater => 1.0,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Less => 0.0,
    };
    let pairs = rows
        .iter()
        .filter(|one| one.churned)
        .flat_map(|one| rows.iter().filter(|other| !other.churned).map(|other| order(one, other)).collect::<Vec<_>>());
    near(&quality["auc"]["value"], mean(pairs));
    near(
        &quality["brier"]["value"],
        mean(rows.iter().map(|one| (one.score - f64::from(u8::from(one.churned))).powi(2))),
    );
    let mut scores: Vec<f64> = rows.iter().map(|one| one.score).collect();
    scores.sort_by(|a, b| b.total_cmp(a));
    let threshold = scores[(scores.len() as f64 * 0.2).ceil() as usize - 1];
    let top = || rows.iter().filter(|one| one.score >= threshold);
    near(&quality["precision_at_20"]["value"], mean(top().map(|one| f64::from(u8::from(one.churned)))));
    near(&quality["precision_at_20_expected"]["value"], mean(top().map(|one| one.score)));
    let slope = &quality["calibration_slope"];
    assert!(slope["low"].as_f64() < Some(1.0) && slope["high"].as_f64() > Some(1.0), "{slope}");
    let part = found["parts"]
        .as_array()
        .expect("parts")
        .iter()
        .find(|part| part["dimension"] == "version")
        .expect("a version");
    assert_eq!((&part["value"], &part["auc"]), (&json!("1.0.0"), &quality["auc"]));

    // Groups, of who was not held out.
    let found = service.get_admin("/v1/insight/fairness?window=1h").await.json();
    let of = |name: &str| group(false).filter(move |one| one.group == name).collect::<Vec<_>>();
    let rate = |name: &str| mean(of(name).iter().map(|one| f64::from(u8::from(one.offered))));
    let groups = found["overall"]["offers"][0]["groups"].as_array().expect("groups");
    assert_eq!((found["overall"]["offers"][0]["attribute"].as_str(), groups.len()), (Some("sex"), 2));
    let reference = if rate("f") > rate("m") { "f" } else { "m" };
    for one in groups {
        let name = one["group"].as_str().expect("a name");
        near(&one["selection_rate"], rate(name));
        assert_eq!((&one["customers"], &one["reference"]), (&json!(of(name).len()), &json!(name == reference)));
        if name != reference {
            near(&one["parity"]["value"], rate(name) / rate(reference));
            assert!(["pass", "unresolved"].contains(&one["verdict"].as_str().expect("a verdict")), "{one}");
        }
    }
    let left = |name: &str| mean(of(name).iter().map(|one| f64::from(u8::from(one.churned))));
    let matured = found["overall"]["matured"][0]["groups"].as_array().expect("groups");
    let other = matured.iter().find(|one| one["reference"] == false).expect("a group");
    let name = other["group"].as_str().expect("a name");
    near(&other["base_rate_ratio"]["value"], left(name) / left(reference));

    let version = &found["parts"].as_array().expect("parts").last().expect("a version");
    assert_eq!((&version["dimension"], &version["offers"]), (&json!("version"), &found["overall"]["offers"]));

    // Who is erased is in no group any more, and still counts.
    assert_eq!(service.call(reqwest::Method::DELETE, "/v1/customers/C-1").await.status, 200);
    let found = service.get_admin("/v1/insight/fairness?window=1h").await.json();
    let before = u64::from(sent[1].held_out);
    assert_eq!(found["overall"]["offers"][0]["unknown"], json!(1 - before));
    let found = service.get_admin("/v1/insight/kpis?window=1h").await.json();
    assert_eq!(found["overall"]["customers"], CUSTOMERS);
}

/// The policy of an arm.
const CREDIT: &str = r#"
name = "credit"
description = "Everybody gets a credit"
currency = "USD"
[[tiers]]
name = "all"
score = "[0, 1]"
intervention = "credit"
[interventions.credit]
description = "A credit"
cost = 5
expected_effectiveness = 0.2
"#;

#[tokio::test]
async fn whom_an_experiment_keeps_is_not_held_out_by_the_policy() {
    let (service, _directory) = start(&[]);
    let arms = json!([{"name": "credit", "share": 0.3, "policy": CREDIT}, {"name": "control", "share": 0.3}]);
    let experiment = json!({
        "name": "credit", "hypothesis": "Credit keeps more customers.", "owner": "retention",
        "to": "2099-01-01T00:00:00Z", "arms": arms, "holdout": 0.4,
    });
    let created = service.post_admin("/v1/experiments", &[], &json!({"by": "ops", "experiment": experiment})).await;
    assert_eq!(created.status, 200, "{}", created.text);
    let rows: Vec<Value> = (0..CUSTOMERS).map(|at| row(at).0).collect();
    // Before the experiment runs the policy in force is seen to decide.
    assert_eq!(service.post("/v1/score", &rows[0]).await.status, 200);
    let started =
        service.post_admin("/v1/experiments/credit/start", &[], &json!({"by": "ops", "why": "to know"})).await;
    assert_eq!(started.status, 200, "{}", started.text);
    let answer = service.post("/v1/score/batch", &json!(rows)).await.json();
    let decisions = answer["results"].as_array().expect("results");
    let arm = |decision: &Value| decision["experiments"][0]["arm"].as_str().unwrap_or_default().to_owned();
    let held_out = decisions.iter().filter(|one| one["holdout"] == true && arm(one).is_empty()).count();
    // The first was decided on before, and so not kept from all of it.
    let kept = decisions.iter().skip(1).filter(|one| arm(one) == "holdout").count();
    assert!(held_out > 100 && kept > 50, "{held_out} {kept}");
    // The newest decision is by the policy of an arm, which holds out nobody.
    let by_arm = decisions.iter().position(|one| arm(one) == "credit").expect("a member");
    assert_eq!(service.post("/v1/score", &rows[by_arm]).await.json()["experiments"][0]["arm"], "credit");

    let found = measured(&service, "/v1/insight/kpis?window=1h").await;
    let overall = &found["overall"];
    let ratio = &overall["holdout_ratio"];
    assert_eq!(
        (&ratio["held_out"], &ratio["treated"], &ratio["expected"], &ratio["mismatch"]),
        (&json!(held_out), &json!(CUSTOMERS - held_out), &json!(0.4), &json!(false))
    );
    assert_eq!(figure(overall, "churn_rate_held_out")["estimate"]["n"], held_out);
    for part in found["parts"].as_array().expect("parts") {
        let is_alike = ["version", "arm"].contains(&part["dimension"].as_str().expect("a name"));
        assert_eq!(part["holdout_ratio"].is_object(), is_alike, "{part}");
    }
    // Nothing was decided for whom anything kept from it.
    let fairness = service.get_admin("/v1/insight/fairness?window=1h").await.json();
    let groups = fairness["overall"]["offers"][0]["groups"].as_array().expect("groups").clone();
    let counted: u64 = groups.iter().map(|group| group["customers"].as_u64().expect("a count")).sum();
    assert_eq!(counted as usize, CUSTOMERS - held_out - kept);
}

#[tokio::test]
async fn the_same_is_measured_after_a_restart_and_fewer_customers_where_there_are_too_many() {
    let (service, directory) = start(&[]);
    history(&service).await;
    let before = measured(&service, "/v1/insight/kpis?window=24h").await;
    let drift = service.get_admin("/v1/insight/drift?window=24h").await.json();
    assert_eq!(drift["versions"][0]["n"], CUSTOMERS + CUSTOMERS / 4);
    drop(service);
    let policy = directory.path().join("policy.toml");
    let serve =
        format!("models.serve=[{{ name = \"telco-churn\", version = \"1.0.0\", policy = \"{}\" }}]", policy.display());
    let settings = [serve.as_str(), "insight.maturity_days=0", "insight.refresh_secs=1"];
    let service = Service::start_in(directory.path(), &settings);
    let after = measured(&service, "/v1/insight/kpis?window=24h").await;
    assert_eq!((&after["overall"], &after["parts"]), (&before["overall"], &before["parts"]));
    let again = service.get_admin("/v1/insight/drift?window=24h").await.json();
    for field in ["n", "score", "features"] {
        assert_eq!(again["versions"][0][field], drift["versions"][0][field], "{field}");
    }
    // The same stands on /metrics, without anybody asking.
    let spend = figure(&before["overall"], "spend")["estimate"]["value"].as_f64().expect("a number");
    let line = format!("mainstay_kpi{{model=\"telco-churn\",kpi=\"spend\",bound=\"value\"}} {spend}");
    let lines = [
        line.as_str(),
        "mainstay_quality{model=\"telco-churn\",version=\"1.0.0\",metric=\"auc\",bound=\"low\"} 0.",
        "mainstay_fairness_groups_failed{model=\"telco-churn\"} 0",
    ];
    until(async || {
        let metrics = service.get_admin("/metrics").await.text;
        lines.iter().all(|line| metrics.lines().any(|found| found.starts_with(line)))
    })
    .await;

    for _ in 0..5 {
        let rows: Vec<Value> = (0..CUSTOMERS).map(|at| row(at).0).collect();
        let answer = service.post("/v1/score/batch", &json!(rows)).await;
        assert!(answer.status == 200 && !answer.text.contains("\"problem\""), "{}", answer.text);
    }
    drop(service);
    let service = Service::start_in(directory.path(), &[&settings[..2], &["insight.decisions_max=1000"]].concat());
    let sampled = measured(&service, "/v1/insight/kpis?window=24h").await;
    let share = sampled["basis"]["sampled"].as_f64().expect("a share");
    let (customers, decisions) = (&sampled["overall"]["customers"], &sampled["overall"]["decisions"]);
    assert!(share == 0.25 || share == 0.125, "{share}");
    let (customers, decisions) = (customers.as_u64().expect("a count"), decisions.as_u64().expect("a count"));
    assert!(decisions <= 1_000 && decisions >= customers * 6, "{customers} {decisions}: each of them whole");
}

/// The population stability index, as its formula has it.
fn psi(before: &[f64], now: &[f64]) -> f64 {
    let bins: Vec<(f64, f64)> =
        before.iter().copied().zip(now.iter().copied()).filter(|(before, now)| before + now > 0.0).collect();
    let (n, m) = bins.iter().fold((0.0, 0.0), |(n, m), (before, now)| (n + before, m + now));
    let half = 0.5 * bins.len() as f64;
    let term = |(before, now): &(f64, f64)| {
        let (p, q) = ((before + 0.5) / (n + half), (now + 0.5) / (m + half));
        (p - q) * (p / q).ln()
    };
    bins.iter().map(term).sum()
}

#[tokio::test]
async fn drift_is_found_and_named_and_stale_features_are_flagged() {
    let (service, _directory) = start(&["insight.refresh_secs=1"]);
    // All of them new, on one contract; as many of them with paper bills as there ever were.
    let rows: Vec<Value> = (0..200)
        .map(|at| {
            let mut row = customer_with("tenure", json!(at % 3));
            row["customer_id"] = json!(format!("C-{at}"));
            row["features"]["PaperlessBilling"] = json!(if at % 100 < 41 { "No" } else { "Yes" });
            row["context"] =
                json!({"features_at": if at < 50 { "2020-01-01T00:00:00Z" } else { "2100-01-01T00:00:00+02:00" }});
            row
        })
        .collect();
    let answers = service.post("/v1/score/batch", &json!(rows)).await.json();
    let stale = |at: usize| answers["results"][at]["features_stale"].clone();
    assert_eq!((stale(0), stale(60)), (json!(true), json!(false)));
    let found = service.get_admin("/v1/insight/drift?window=1h").await.json();
    let version = &found["versions"][0];
    assert_eq!(
        (&version["version"], &version["role"], &version["n"]),
        (&json!("1.0.0"), &json!("champion"), &json!(200))
    );
    assert_eq!((&version["aged"], &version["stale"]), (&json!(200), &json!(50)));
    let of = |name: &str| {
        version["features"]
            .as_array()
            .expect("features")
            .iter()
            .find(|one| one["feature"] == name)
            .expect("a feature")
            .clone()
    };
    let text = std::fs::read_to_string("models/telco-churn/1.0.0/baseline.json").expect("a baseline");
    let baseline: Value = serde_json::from_str(&text).expect("JSON");
    let counts = |value: &Value| value.as_f64().expect("a count");
    let tenure: Vec<f64> =
        baseline["features"]["tenure"]["counts"].as_array().expect("counts").iter().map(counts).collect();
    let mut now = vec![0.0; tenure.len()];
    now[0] = 200.0;
    near(&of("tenure")["psi"], psi(&tenure, &now));
    let contract = ["Month-to-month", "One year", "Two year"];
    let contract = contract.map(|name| counts(&baseline["features"]["Contract"]["categories"][name]));
    near(&of("Contract")["psi"], psi(&contract, &[200.0, 0.0, 0.0]));
    assert_eq!((of("tenure")["verdict"].as_str(), of("tenure")["n"].as_u64()), (Some("alarm"), Some(200)));
    let drifting = version["drifting"].as_array().expect("names");
    assert!(drifting.contains(&json!("tenure")) && !drifting.contains(&json!("PaperlessBilling")), "{drifting:?}");
    assert_eq!(drifting[0], version["features"][0]["feature"]);
    until(async || {
        let metrics = service.get_admin("/metrics").await.text;
        let has = |line: &str| metrics.lines().any(|found| found == line);
        has("mainstay_drift_level{model=\"telco-churn\",version=\"1.0.0\",feature=\"tenure\"} 3")
            && has("mainstay_features_stale_share{model=\"telco-churn\",version=\"1.0.0\"} 0.25")
    })
    .await;
    let mut wrong = customer_with("tenure", json!(1));
    wrong["context"] = json!({"features_at": "yesterday"});
    let refused = service.post("/v1/score", &wrong).await;
    assert_eq!((refused.status, &refused.json()["errors"][0]["pointer"]), (422, &json!("/context/features_at")));
}

#[tokio::test]
async fn of_a_long_array_all_rows_are_counted_alike() {
    let service = Service::start(&["insight.refresh_secs=1"]);
    let rows: Vec<Value> = (0..2_560)
        .map(|at| {
            let mut row = customer_with("Contract", json!(if at < 512 { "Month-to-month" } else { "Two year" }));
            row["customer_id"] = json!(format!("C-{at}"));
            row
        })
        .collect();
    assert_eq!(service.post("/v1/score/batch", &json!(rows)).await.status, 200);
    let found = service.get_admin("/v1/insight/drift?window=1h").await.json();
    let version = &found["versions"][0];
    // 500 are wanted of them, drawn one by one.
    let counted = version["n"].as_f64().expect("a count");
    assert!((400.0..=600.0).contains(&counted), "{counted}");
    let text = std::fs::read_to_string("models/telco-churn/1.0.0/baseline.json").expect("a baseline");
    let baseline: Value = serde_json::from_str(&text).expect("JSON");
    let categories = &baseline["features"]["Contract"]["categories"];
    let contract = ["Month-to-month", "One year", "Two year"].map(|name| categories[name].as_f64().expect("a count"));
    let features = version["features"].as_array().expect("features");
    let of_contract = features.iter().find(|one| one["feature"] == "Contract").expect("a feature");
    let found = of_contract["psi"].as_f64().expect("a number");
    // A fifth of the rows are of the first chunk, and so is a fifth of what is counted, within five standard errors.
    let with = |share: f64| psi(&contract, &[share * counted, 0.0, (1.0 - share) * counted]);
    let (most, least) = (with(0.11), with(0.29));
    assert!((least..=most).contains(&found), "{found} is not of {least} to {most}");
}

#[tokio::test]
async fn what_cannot_be_measured_is_said() {
    let service = shared();
    for (path, status, code) in [
        ("/v1/insight/kpis?window=2h", 422, "invalid_request"),
        ("/v1/insight/quality?windo=1h", 422, "invalid_request"),
        ("/v1/insight/drift?model=telco-chrn", 404, "unknown_model"),
        ("/v1/insight/fairness?model=telco-chrn", 404, "unknown_model"),
    ] {
        let answer = service.get_admin(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{path}");
    }
    // Nothing is known of a model that nobody was decided on by, and nothing is claimed.
    let nothing = Service::start(&[]);
    let found = nothing.get_admin("/v1/insight/kpis?model=mlc-churn&window=30d").await.json();
    assert!(
        found["overall"]["tree"]
            .as_array()
            .expect("a tree")
            .iter()
            .all(|kpi| { kpi["estimate"].is_null() || kpi["estimate"]["n"] == 0 })
    );
    assert_eq!(nothing.get_admin("/v1/insight/fairness").await.json()["overall"]["offers"], json!([]));
    let drift = nothing.get_admin("/v1/insight/drift").await.json();
    assert_eq!(
        (&drift["versions"][0]["score"]["verdict"], &drift["versions"][0]["drifting"]),
        (&json!("grey"), &json!([]))
    );
    drop(nothing);
    let off = Service::start(&["ledger.promise=off"]);
    assert_eq!(off.get_admin("/v1/insight/kpis").await.status, 404);
    assert_eq!(off.get_admin("/v1/insight/drift").await.status, 200);
}
