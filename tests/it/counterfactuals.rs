//! Counterfactuals over HTTP: what they promise holds when the changed customer is scored, they only touch what can be changed, and no
//! smaller change would do.

use serde_json::{Value, json};

use crate::ledger::problems;
use crate::limits::hold_long_work;
use crate::service::{Service, customer, golden, shared};

/// The dictionary and the baseline of a bundle.
fn bundle(name: &str) -> (Value, Value) {
    let read = |file: &str| {
        let text = std::fs::read_to_string(format!("models/{name}/{file}")).expect("a bundle");
        serde_json::from_str(&text).expect("JSON")
    };
    let manifest: Value = read("manifest.json");
    (manifest["features"].clone(), read("baseline.json"))
}

fn changed(customer: &Value, changes: &Value) -> Value {
    let mut customer = customer.clone();
    for change in changes.as_array().expect("changes") {
        let feature = change["feature"].as_str().expect("a feature");
        assert_eq!(customer["features"][feature].as_f64(), change["from"].as_f64(), "{change}");
        assert_ne!(change["from"], change["to"]);
        customer["features"][feature] = change["to"].clone();
    }
    customer
}

/// Every customer with one change of what can be changed.
fn one_change_each(customer: &Value, bundle: &(Value, Value)) -> Vec<Value> {
    let mut customers = Vec::new();
    for feature in bundle.0.as_array().expect("features") {
        let (name, from) = (
            feature["name"].as_str().expect("a name"),
            &customer["features"][feature["name"].as_str().expect("a name")],
        );
        let ends: Vec<Value> = match &feature["actionable"] {
            Value::Null => continue,
            Value::Object(way) => way.values().next().and_then(Value::as_array).expect("a list").clone(),
            _ if feature["type"] == "category" => {
                feature["categories"].as_object().expect("categories").keys().map(|key| json!(key)).collect()
            }
            _ => bundle.1["features"][name]["edges"].as_array().expect("edges").clone(),
        };
        let is_lower = feature["actionable"] == "lower";
        let is_stuck = feature["actionable"].is_object() && !ends.contains(from);
        for to in ends.into_iter().filter(|to| to != from && !is_stuck && (!is_lower || to.as_f64() < from.as_f64())) {
            let mut customer = customer.clone();
            customer["features"][name] = to;
            customers.push(customer);
        }
    }
    customers
}

/// Asks `service` for counterfactuals of `customer` and checks each of them: how many changes they have.
async fn check(service: &Service, customer: &Value, bundle: &(Value, Value)) -> Option<usize> {
    let decision = service.post("/v1/score?counterfactuals=4", customer).await.json();
    let found = decision["counterfactuals"].as_array().unwrap_or_else(|| panic!("{decision}"));
    let rank = |tier: &Value| ["high", "medium", "low"].iter().position(|known| tier == known).expect("a tier");
    for one in found {
        assert_eq!(one["changes"].as_array().map(Vec::len), found[0]["changes"].as_array().map(Vec::len));
        for change in one["changes"].as_array().expect("changes") {
            let mut features = bundle.0.as_array().expect("features").iter();
            let feature = features.find(|feature| feature["name"] == change["feature"]).expect("a feature");
            assert!(!feature["actionable"].is_null(), "{change}");
        }
        let again = service.post("/v1/score", &changed(customer, &one["changes"])).await.json();
        assert_eq!((&again["tier"], &again["score"]), (&one["tier"], &one["score"]), "{one}");
        assert!(rank(&again["tier"]) > rank(&decision["tier"]), "{one}");
    }
    let count = found.first()?["changes"].as_array().expect("changes").len();
    if count > 1 {
        let results = service.post("/v1/score/batch", &json!(one_change_each(customer, bundle))).await.json();
        for result in results["results"].as_array().expect("results") {
            assert!(rank(&result["tier"]) <= rank(&decision["tier"]), "{result} would do");
        }
    }
    Some(count)
}

#[tokio::test]
async fn what_they_promise_holds_and_nothing_smaller_would_do() {
    let bundle = bundle("telco-churn/1.0.0");
    let mut counts = Vec::new();
    let risky = golden("telco-churn/1.0.0").into_iter().filter(|(_, score)| *score >= 0.5);
    for customer in [customer()].into_iter().chain(risky.map(|(customer, _)| customer)) {
        counts.push(check(shared(), &customer, &bundle).await);
        let [one, two] = [(); 2].map(|()| shared().post("/v1/score?counterfactuals=4", &customer));
        assert_eq!(one.await.json()["counterfactuals"], two.await.json()["counterfactuals"]);
    }
    assert!(counts.iter().any(Option::is_some), "{counts:?}");
}

#[tokio::test]
async fn a_customer_who_is_hard_to_keep_needs_several_and_segments_count() {
    let service = Service::start(&[
        "models.serve=[{ name = \"telco-churn\", version = \"1.2.0\", policy = \"models/policy/value.toml\" }]",
    ]);
    let bundle = bundle("telco-churn/1.2.0");
    let mut counts = [0; 4];
    for (customer, _) in golden("telco-churn/1.2.0").into_iter().filter(|(_, score)| *score >= 0.4) {
        counts[check(&service, &customer, &bundle).await.unwrap_or(0)] += 1;
    }
    assert!(counts[1] > 0 && counts[2] > 0, "{counts:?}");
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
}

#[tokio::test]
async fn nothing_found_is_an_empty_list_and_not_asked_for_is_none() {
    let low = golden("telco-churn/1.0.0").into_iter().find(|(_, score)| *score < 0.5).expect("a low score").0;
    let mut asking = low.clone();
    asking["counterfactuals"] = json!(3);
    assert_eq!(shared().post("/v1/score", &asking).await.json()["counterfactuals"], json!([]));
    let rows = json!([low, asking, customer()]);
    let results = shared().post("/v1/score/batch", &rows).await.json()["results"].clone();
    assert_eq!([0, 1, 2].map(|at| results[at].get("counterfactuals").cloned()), [None, Some(json!([])), None]);
    let results = shared().post("/v1/score/batch?counterfactuals=2", &rows).await.json()["results"].clone();
    assert_eq!(
        results[2]["counterfactuals"],
        shared().post("/v1/score?counterfactuals=2", &customer()).await.json()["counterfactuals"]
    );
    assert!(results[2]["counterfactuals"].as_array().is_some_and(|found| (1..=2).contains(&found.len())), "{results}");
}

/// Each takes thousands of scores: a batch must not be an hour of work.
#[tokio::test]
async fn of_a_batch_or_a_stream_only_so_many_rows_may_ask() {
    let low = golden("telco-churn/1.0.0").into_iter().find(|(_, score)| *score < 0.1).expect("a low score").0;
    let mut asking = low.clone();
    asking["counterfactuals"] = json!(1);
    let mut rows = vec![asking; 101];
    // Who does not ask is none of them.
    rows.insert(50, low.clone());
    let answer = shared().post("/v1/score/batch", &json!(rows)).await.json();
    let results = answer["results"].as_array().expect("results").clone();
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let headers = [("content-type", "application/x-ndjson")];
    let stream = shared().post_raw("/v1/score/batch", &headers, lines).await.text;
    let streamed: Vec<Value> = stream.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let asked_of_all = shared().post("/v1/score/batch?counterfactuals=1", &json!(vec![low; 101])).await.json();
    for results in [&results, &streamed, asked_of_all["results"].as_array().expect("results")] {
        let (last, others) = results.split_last().expect("rows");
        assert!(others.iter().all(|row| row["decision_id"].is_string()), "{others:?}");
        let error = &last["errors"][0];
        assert_eq!((&last["status"], &error["pointer"]), (&json!(422), &json!("/counterfactuals")), "{last}");
        let expected = "is not allowed here: expected at most 100 rows of a batch or stream with counterfactuals; send this one without, or alone to /v1/score";
        assert_eq!(error["detail"], expected);
    }
}

#[tokio::test]
async fn they_are_looked_for_on_the_threads_for_long_work() {
    let service = Service::start(&["limits.batches_max=1", "limits.batch_wait_ms_max=60000"]);
    let _batches = hold_long_work(&service, &customer()).await;
    let answer = service.post("/v1/score?counterfactuals=1", &customer()).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
    assert_eq!(service.post("/v1/score", &customer()).await.status, 200);
}

#[tokio::test]
async fn what_is_no_request_for_counterfactuals_is_refused() {
    for path in ["/v1/score?counterfactuals=0", "/v1/score?counterfactuals=11", "/v1/score/batch?counterfactuals=x"] {
        assert_eq!(shared().post(path, &customer()).await.code(), "invalid_request", "{path}");
    }
    for wrong in [json!(11), json!(-1), json!(1.5), json!("3"), json!(true)] {
        let mut body = customer();
        body["counterfactuals"] = wrong;
        let problem = shared().post("/v1/score", &body).await.json();
        assert_eq!(problem["errors"][0]["pointer"], "/counterfactuals", "{problem}");
    }
}
