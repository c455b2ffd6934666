//! Policies with rules, over HTTP: what they read is checked, what they choose is worth most, what they did is on record and comes
//! out the same again, and none gets into service that does not fit its model.

use insta::assert_json_snapshot;
use serde_json::{Value, json};

use crate::ledger::{decide, mainstay};
use crate::service::{Answer, Service, customer};

const VALUE: &str = include_str!("../../models/policy/value.toml");
const SCHEMA: &str = include_str!("../../models/policy/policy.schema.json");

/// A service under the value policy.
fn start() -> Service {
    Service::start(&[
        "models.serve=[{ name = \"telco-churn\", version = \"1.0.0\", policy = \"models/policy/value.toml\" }]",
    ])
}

fn with_context(context: Value) -> Value {
    let mut customer = customer();
    customer["context"] = context;
    customer
}

async fn act(service: &Service, verb: &str, document: &str) -> Answer {
    let body = json!({"by": "ops", "document": document});
    service.post_admin(&format!("/v1/slots/telco-churn/{verb}"), &[], &body).await
}

#[tokio::test]
async fn a_decision_by_expected_value_says_why() {
    let service = start();
    let context = json!({"clv": 1200, "region": "EU", "days_since_contact": 20, "audit": {"gender": "f"}});
    let decision = decide(&service, &with_context(context)).await;
    assert_json_snapshot!(decision, {".decision_id" => "[id]", ".decided_at" => "[time]", ".policy_version" => "[hash]", ".score" => "[score]", ".intervention.expected_value" => "[value]"});
    let number = |value: &Value| value.as_f64().expect("a number");
    let offer = &decision["intervention"];
    let expected =
        number(&decision["score"]) * number(&offer["expected_effectiveness"]) * 1200.0 - number(&offer["cost"]);
    assert_eq!(number(&offer["expected_value"]), expected);

    let id = decision["decision_id"].as_str().expect("an id");
    let recorded = service.get(&format!("/v1/decisions/{id}")).await.json();
    assert_eq!(recorded["action"], offer["action"]);
    assert_eq!(recorded["expected_value"], offer["expected_value"]);
    assert_eq!(recorded["cost"], offer["cost"]);
    assert_eq!(recorded["value_at_stake"], decision["value_at_stake"]);
    assert_eq!(recorded["rules"], decision["rules"]);
    // Whom nobody may contact is offered nothing, at no cost.
    let left_alone = decide(&service, &with_context(json!({"opt_out": true}))).await;
    assert_eq!(left_alone["intervention"]["action"], "none");
    assert_eq!(
        (&left_alone["intervention"]["expected_value"], &left_alone["intervention"]["cost"]),
        (&json!(0.0), &json!(0.0))
    );
}

#[tokio::test]
async fn a_plain_policy_answers_as_before() {
    let service = Service::start(&[]);
    let context = json!({"clv": "much", "opt_out": 7});
    let decision = decide(&service, &with_context(context)).await;
    for member in ["rules", "value_at_stake"] {
        assert_eq!(decision.get(member), None);
    }
    assert_eq!(decision["intervention"].get("expected_value"), None);
    let id = decision["decision_id"].as_str().expect("an id");
    let recorded = service.get(&format!("/v1/decisions/{id}")).await.json();
    assert_eq!((&recorded["rules"], &recorded["cost"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn a_context_that_breaks_the_policy_is_told_with_the_features() {
    let service = start();
    let mut body = with_context(json!({
        "clv": "500", "region": 7, "days_since_contact": 1.5, "opt_out": "no", "audit": {"gender": 1}, "undeclared": [1]
    }));
    body["features"]["tenure"] = json!(-1);
    let wrong = service.post("/v1/score", &body).await;
    assert_eq!((wrong.status, wrong.code().as_str()), (422, "invalid_request"));
    body["context"]["audit"] = json!({"gender": "f"});
    let without_audit = service.post("/v1/score", &body).await;
    let out_of_range = service.post("/v1/score", &with_context(json!({"clv": -1}))).await;
    let told: Vec<Value> =
        [wrong, without_audit, out_of_range].iter().map(|answer| answer.json()["errors"].clone()).collect();
    assert_json_snapshot!(told);
    // What nobody declares, and a region that nobody knows, are taken.
    let decision = decide(&service, &with_context(json!({"undeclared": [1], "region": "mars", "clv": null}))).await;
    assert_eq!(decision["value_at_stake"], 600.0);
}

#[tokio::test]
async fn every_row_of_a_batch_is_decided_by_its_own_context() {
    let service = start();
    let rows = json!([
        with_context(json!({"clv": 5000})),
        with_context(json!({"clv": 1})),
        with_context(json!({"clv": true}))
    ]);
    let results = service.post("/v1/score/batch", &rows).await.json()["results"].clone();
    assert_eq!(results[0]["intervention"]["action"], "account_manager_call");
    assert_eq!(results[1]["intervention"]["action"], "none");
    assert_eq!(results[2]["errors"][0]["pointer"], "/context/clv");
}

#[tokio::test]
async fn decisions_by_rules_are_replayed_to_the_last_bit() {
    let service = start();
    let rows: Vec<Value> = (0..60)
        .map(|at| {
            let mut row = with_context(json!({"clv": f64::from(at) * 61.7, "days_since_contact": at, "region": "EU"}));
            row["features"]["tenure"] = json!(at);
            row["features"]["MonthlyCharges"] = json!(20.0 + f64::from(at) * 1.3);
            row
        })
        .collect();
    service.post("/v1/score/batch", &json!(rows)).await;
    let (code, text) = mainstay(&service.ledger, &["replay", "--last", "60"]);
    assert!(code == 0 && text.contains("60 of 60 decisions came out the same to the last bit"), "{text}");
}

#[tokio::test]
async fn a_policy_with_rules_is_simulated_on_recorded_inputs_applied_and_undone() {
    let service = Service::start(&[]);
    for clv in [10, 600, 5000] {
        decide(&service, &with_context(json!({"clv": clv, "region": "US"}))).await;
    }
    let tried = service
        .post_admin("/v1/policies:simulate", &[], &json!({"model": "telco-churn", "document": VALUE, "last": 10}))
        .await
        .json();
    assert_eq!((&tried["decisions"]["usable"], &tried["decisions"]["looked_at"]), (&json!(3), &json!(3)), "{tried}");
    assert_eq!(tried["before"]["expected_value"], Value::Null);
    assert!(tried["after"]["expected_value"].as_f64().expect("a value") > 0.0, "{tried}");

    let before = decide(&service, &customer()).await;
    assert_eq!(act(&service, "apply_policy", VALUE).await.status, 200);
    let decision = decide(&service, &customer()).await;
    assert_eq!(decision["value_at_stake"], 600.0);
    assert_eq!(act(&service, "undo_policy", "").await.status, 422, "undo takes no document");
    let undone = service.post_admin("/v1/slots/telco-churn/undo_policy", &[], &json!({"by": "ops"})).await;
    assert_eq!(undone.status, 200, "{}", undone.text);
    assert_eq!(decide(&service, &customer()).await["policy_version"], before["policy_version"]);
}

#[tokio::test]
async fn a_policy_that_does_not_fit_its_model_is_refused_with_every_reason() {
    let service = Service::start(&[]);
    let document =
        VALUE.replace("Contract = [\"Month-to-month\"]", "Contrct = [\"One year\"], PaymentMethod = [\"Cash\"]");
    let mut told = Vec::new();
    for (path, body) in [
        ("/v1/slots/telco-churn/apply_policy", json!({"by": "ops", "document": document})),
        ("/v1/policies:simulate", json!({"model": "telco-churn", "document": document, "last": 10})),
    ] {
        let answer = service.post_admin(path, &[], &body).await;
        assert_eq!((answer.status, answer.code().as_str()), (422, "refused_for_service"), "{path}: {}", answer.text);
        told.push(answer.json()["reasons"].clone());
    }
    assert_eq!(told[0], told[1]);
    assert_json_snapshot!(told[0]);
    assert_eq!(decide(&service, &customer()).await.get("rules"), None, "nothing has changed");

    // The other model has none of these features: neither at the start nor by hand.
    let (code, text) = mainstay(
        &service.ledger.join("other"),
        &[
            "serve",
            "--set",
            "models.serve=[{ name = \"mlc-churn\", version = \"1.0.0\", policy = \"models/policy/value.toml\" }]",
            "--set",
            "http.listen=127.0.0.1:0",
            "--set",
            "admin.listen=127.0.0.1:0",
        ],
    );
    assert!(code == 65 && text.contains("\"tenure\" is no feature of the model"), "{code} {text}");
}

#[test]
fn a_policy_is_verified_with_and_without_a_bundle() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = |arguments: &[&str]| {
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_mainstay")).args(arguments).output().expect("a run");
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (output.status.code().expect("an exit code"), text)
    };
    let verify = |bundle: &[&str]| run(&[&["verify", "policy", "models/policy/value.toml"], bundle].concat());
    assert!(verify(&[]).1.contains("name a bundle"));
    let (code, text) = verify(&["--bundle", "models/telco-churn/1.1.0"]);
    assert!(code == 0 && text.contains("it fits telco-churn 1.1.0"), "{text}");
    let (code, text) = verify(&["--bundle", "models/mlc-churn/1.0.0"]);
    assert!(code == 65 && text.contains("line 29: segments[0].when.tenure"), "{text}");
    let broken = directory.path().join("broken.toml");
    std::fs::write(&broken, VALUE.replace("context.opt_out = false", "context.optout = false")).expect("written");
    let (code, text) = run(&["verify", "policy", broken.to_str().expect("UTF-8")]);
    assert!(code == 65 && text.contains("declares no [context.optout]; did you mean \"opt_out\"?"), "{text}");
}

#[tokio::test]
async fn the_served_contract_says_what_the_policy_reads() {
    let service = start();
    let contract = service.get("/openapi.json").await.json();
    let context = &contract["components"]["schemas"]["Customer.telco-churn"]["properties"]["context"];
    assert_eq!(context["properties"]["clv"]["type"], json!(["number", "null"]));
    assert_eq!(context["properties"]["days_since_contact"]["maximum"], json!(36500.0));
}

/// Whether `value` is as `schema` says, as far as the policy's schema needs it; patterns are left to editors.
fn is_valid(schema: &Value, value: &Value) -> bool {
    let root: Value = serde_json::from_str(SCHEMA).expect("JSON");
    let Value::Object(rules) = schema else { return schema != &json!(false) };
    rules.iter().all(|(keyword, rule)| match keyword.as_str() {
        "$schema" | "$id" | "$defs" | "title" | "description" | "pattern" => true,
        "$ref" => is_valid(root.pointer(&rule.as_str().expect("a reference")[1..]).expect("a definition"), value),
        "type" => match rule {
            Value::Array(kinds) => kinds.iter().any(|kind| is_of(kind, value)),
            kind => is_of(kind, value),
        },
        "enum" => rule.as_array().expect("values").contains(value),
        "oneOf" => rule.as_array().expect("schemas").iter().filter(|schema| is_valid(schema, value)).count() == 1,
        "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().expect("a number")),
        "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().expect("a number")),
        "maxLength" => value.as_str().is_none_or(|text| text.len() as u64 <= rule.as_u64().expect("a length")),
        "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= rule.as_u64().expect("a count")),
        "maxItems" => value.as_array().is_none_or(|items| items.len() as u64 <= rule.as_u64().expect("a count")),
        "minProperties" => {
            value.as_object().is_none_or(|entries| entries.len() as u64 >= rule.as_u64().expect("a count"))
        }
        "maxProperties" => {
            value.as_object().is_none_or(|entries| entries.len() as u64 <= rule.as_u64().expect("a count"))
        }
        "uniqueItems" => {
            value.as_array().is_none_or(|items| (1..items.len()).all(|at| !items[..at].contains(&items[at])))
        }
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| is_valid(rule, item))),
        "required" => value.as_object().is_none_or(|entries| {
            rule.as_array().expect("names").iter().all(|name| entries.contains_key(name.as_str().expect("a name")))
        }),
        "properties" => value.as_object().is_none_or(|entries| {
            entries.iter().all(|(name, value)| rule.get(name).is_none_or(|schema| is_valid(schema, value)))
        }),
        "additionalProperties" => value.as_object().is_none_or(|entries| {
            let others = entries
                .iter()
                .filter(|(name, _)| rules.get("properties").is_none_or(|known| known.get(name).is_none()));
            others.into_iter().all(|(_, value)| is_valid(rule, value))
        }),
        unknown => panic!("the schema says \"{unknown}\", which this test does not know"),
    })
}

fn is_of(kind: &Value, value: &Value) -> bool {
    match kind.as_str().expect("a type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        other => panic!("{other}"),
    }
}

#[test]
fn bundled_documents_are_as_the_schema_says_and_broken_ones_are_not() {
    let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
    let valid = |text: &str| is_valid(&schema, &toml::from_str::<Value>(text).expect("TOML"));
    for name in ["default", "four-bands", "value"] {
        let text = std::fs::read_to_string(format!("models/policy/{name}.toml")).expect("a policy");
        assert!(valid(&text), "{name}");
    }
    let (unbounded, _) = VALUE.split_once("[budget]").expect("a budget");
    let bounded = |text: &str| valid(&format!("{unbounded}\n{text}"));
    assert!(bounded("[budget]\namount = 5\nperiod = \"day\"\n[holdout]\nshare = 0.05\nsalt = \"s\""));
    assert!(!bounded("[budget]\namount = 5\nperiod = \"year\"") && !bounded("[holdout]\nshare = 2"));
    for (from, to) in [
        ("currency = \"USD\"", "currency = \"USD\"\ncolour = 1"),
        ("name = \"value\"", "nmae = \"value\""),
        ("objective = \"expected_value\"", "objective = \"value\""),
        ("score = \"(0.8, 1]\"", "score = 0.8"),
        ("cost = 50.00", "cost = -1"),
        ("cost = 50.00", "cost = \"much\""),
        ("expected_effectiveness = 0.40", "expected_effectiveness = 1.4"),
        ("per = \"week\"", "per = \"year\""),
        ("context.opt_out = false }", "context.opt_out = {} }"),
        ("when = { tenure = \"[0, 12)\", Contract = [\"Month-to-month\"] }", "when = {}"),
        ("[context.clv]", "[context.audit]"),
        ("type = \"number\"", "type = \"float\""),
        ("missing = { default = 600 }", "missing = 600"),
        ("from = \"context.clv\"", "form = \"context.clv\""),
    ] {
        assert!(VALUE.contains(from), "{from}");
        assert!(!valid(&VALUE.replacen(from, to, 1)), "{to}");
    }
}
