//! Outcomes: that they are on record once, whatever is sent how often, that each row is answered in its place, and that nothing
//! about them can be changed unseen.

use std::path::Path;

use mainstay::ledger::Reading;
use parquet::file::reader::{FileReader, SerializedFileReader};
use reqwest::Method;
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::ledger::{decide, mainstay, named, problems};
use crate::service::{Answer, Service, customer, shared, until};

/// A decision, and when it was made.
async fn decided(service: &Service, customer_id: &str) -> (Value, String) {
    let decision = decide(service, &named(customer_id)).await;
    (decision["decision_id"].clone(), decision["decided_at"].as_str().expect("a time").to_owned())
}

/// An outcome of the decision `id` with `facts`.
fn outcome((id, at): &(Value, String), facts: Value) -> Value {
    let mut outcome = json!({"decision_id": id, "occurred_at": at});
    let fields = outcome.as_object_mut().expect("an object");
    fields.extend(facts.as_object().expect("facts").clone());
    outcome
}

async fn send(service: &Service, body: &Value) -> Answer {
    service.post("/v1/outcomes", body).await
}

/// Sends what has to be on record afterwards: its id, and whether it was recorded now.
async fn recorded(service: &Service, body: &Value) -> (String, bool) {
    let answer = send(service, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let answer = answer.json();
    (answer["outcome_id"].as_str().expect("an id").to_owned(), answer["recorded"].as_bool().expect("a boolean"))
}

async fn outcomes_of(service: &Service, id: &Value) -> Vec<Value> {
    let record = service.get(&format!("/v1/decisions/{}", id.as_str().expect("an id"))).await.json();
    record["outcomes"].as_array().expect("outcomes").clone()
}

#[tokio::test]
async fn an_outcome_is_on_record_with_its_decision_and_its_customer() {
    let service = Service::start(&[]);
    let decision = decided(&service, "person-4711").await;
    assert_eq!(outcomes_of(&service, &decision.0).await, Vec::<Value>::new());
    let facts = json!({"churned": false, "converted": true, "revenue": "12.50", "contact_cost": 0.4, "source_id": "person-4711/1"});
    let (id, now) = recorded(&service, &outcome(&decision, facts)).await;
    assert!(now);
    let found = outcomes_of(&service, &decision.0).await;
    insta::assert_json_snapshot!(found, {"[].outcome_id" => "[uuid]", "[].occurred_at" => "[time]", "[].recorded_at" => "[time]"});
    assert_eq!((&found[0]["outcome_id"], &found[0]["occurred_at"]), (&json!(id), &json!(decision.1)));
    for path in ["/v1/decisions?customer_id=person-4711", "/v1/customers/person-4711"] {
        assert_eq!(service.get(path).await.json()["decisions"][0]["outcomes"], json!(found), "{path}");
    }
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
    let metrics = service.get_admin("/metrics").await.text;
    for fact in ["retained", "converted", "revenue", "contact_cost"] {
        assert!(metrics.contains(&format!("mainstay_outcomes_total{{fact=\"{fact}\"}} 1")), "{fact}");
    }
    assert!(metrics.contains("mainstay_http_requests_total{route=\"outcomes\",status=\"200\"} 1"));
    // It stands under the pseudonym of the decision, and is there for who asks the database.
    let database = Connection::open(service.ledger.join("ledger.db")).expect("the database");
    let row = "SELECT o.churned, o.converted, o.revenue, o.contact_cost FROM outcomes o JOIN decisions d ON d.id = o.decision AND d.customer = o.customer";
    let row = database.query_row(row, [], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, f64>(2)?, row.get::<_, f64>(3)?))
    });
    assert_eq!(row.expect("an outcome"), (0, 1, 12.5, 0.4));
    drop(database);
    // Erased or not, what is on record of an outcome names nobody; nor does the caller's own id of it stand anywhere.
    assert_eq!(service.call(Method::DELETE, "/v1/customers/person-4711").await.json(), json!({"erased": true}));
    assert_eq!(outcomes_of(&service, &decision.0).await, found);
    for name in ["ledger.db", "ledger.db-wal"] {
        let bytes = std::fs::read(service.ledger.join(name)).expect("a file");
        assert!(!bytes.windows(11).any(|window| window == b"person-4711"), "{name}");
    }
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
}

#[tokio::test]
async fn each_row_is_answered_in_its_place() {
    let service = Service::start(&[]);
    let (one, two) = (decided(&service, "a").await, decided(&service, "b").await);
    let unknown = (json!("00000000-0000-7000-8000-000000000000"), one.1.clone());
    let rows = json!([
        outcome(&one, json!({"churned": true})),
        outcome(&unknown, json!({"churned": true})),
        outcome(&two, json!({"revenue": "nonsense"})),
        7,
        outcome(&one, json!({"churned": true})),
        outcome(&two, json!({"churned": true})),
        null,
        {},
    ]);
    let answer = send(&service, &rows).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let results = answer.json()["results"].as_array().expect("results").clone();
    let told: Vec<(Value, Value)> =
        results.iter().map(|item| (item["recorded"].clone(), item["code"].clone())).collect();
    let (ok, bad) = (|recorded: bool| (json!(recorded), Value::Null), |code: &str| (Value::Null, json!(code)));
    let invalid = || bad("invalid_request");
    assert_eq!(
        told,
        [ok(true), bad("unknown_decision"), invalid(), invalid(), ok(false), ok(true), invalid(), invalid()]
    );
    assert_eq!(results[0]["outcome_id"], results[4]["outcome_id"]);
    assert_eq!(results[1]["request_id"], answer.header("x-request-id"));
    assert_eq!((outcomes_of(&service, &one.0).await.len(), outcomes_of(&service, &two.0).await.len()), (1, 1));
    assert_eq!(send(&service, &json!([])).await.text, "{\"results\":[]}");
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
}

#[tokio::test]
async fn the_same_outcome_is_on_record_once() {
    let service = Service::start(&[]);
    let (one, two) = (decided(&service, "a").await, decided(&service, "b").await);
    // Without an id of the caller's: the same facts of the same time, however they are written.
    let (first, now) = recorded(&service, &outcome(&one, json!({"revenue": "12.50", "churned": false}))).await;
    assert!(now);
    let at: jiff::Timestamp = one.1.parse().expect("a time");
    let mut other = outcome(&one, json!({"churned": false, "converted": null, "revenue": 12.5}));
    other["occurred_at"] = json!(at.to_string().replace('Z', "+00:00"));
    assert_eq!(recorded(&service, &other).await, (first, false));
    other["occurred_at"] = json!((at + jiff::SignedDuration::from_millis(1)).to_string());
    assert!(recorded(&service, &other).await.1, "another time is another outcome");
    // With one: that, and nothing else.
    let with_id = |decision, facts: Value| {
        let mut outcome = outcome(decision, facts);
        outcome["source_id"] = json!("crm-1");
        outcome
    };
    let (first, now) = recorded(&service, &with_id(&one, json!({"churned": true}))).await;
    assert!(now);
    let admin = format!("admin.listen={}", service.admin);
    assert_eq!(mainstay(&service.ledger, &["ledger", "rotate-keys", "--set", &admin]).0, 0);
    assert_eq!(recorded(&service, &with_id(&one, json!({"churned": true}))).await, (first, false), "under a new key");
    let conflict = send(&service, &with_id(&one, json!({"churned": false}))).await;
    assert_eq!((conflict.status, conflict.code().as_str()), (409, "outcome_conflict"));
    assert!(recorded(&service, &with_id(&two, json!({"churned": true}))).await.1, "of another decision");
    assert_eq!((outcomes_of(&service, &one.0).await.len(), outcomes_of(&service, &two.0).await.len()), (3, 1));
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
}

#[tokio::test]
async fn of_many_that_are_sent_at_once_one_is_recorded() {
    let service = Service::start(&["limits.batches_max=8"]);
    let body = outcome(&decided(&service, "a").await, json!({"converted": false, "source_id": "once"}));
    let sent = futures_util::future::join_all((0..12).map(|_| recorded(&service, &body))).await;
    assert_eq!(sent.iter().filter(|(_, recorded)| *recorded).count(), 1);
    assert!(sent.iter().all(|(id, _)| *id == sent[0].0));
}

#[tokio::test]
async fn every_violation_of_an_outcome_is_told() {
    let id = decided(shared(), "a").await.0;
    let mut told = Vec::new();
    for body in [
        json!({}),
        json!({"decision_id": id, "occurred_at": "2026-01-01T00:00:00Z"}),
        json!({"decision_id": "x", "occurred_at": "yesterday", "churned": "yes", "converted": 1, "revenue": "ten", "contact_cost": "-1", "source_id": "", "churn": true}),
        json!({"decision_id": 1, "occurred_at": 1, "revenue": true, "contact_cost": [], "source_id": {}}),
        json!({"decision_id": id, "occurred_at": "2999-01-01T00:00:00Z", "revenue": 1e10, "contact_cost": -0.01, "source_id": "x".repeat(129)}),
        json!({"decision_id": id, "occurred_at": "2026-01-01T00:00:00Z", "revenue": 0.0000001, "contact_cost": "0.0000001"}),
        json!({"decision_id": id, "occurred_at": "2020-01-01T00:00:00Z", "churned": true}),
        json!("text"),
    ] {
        let answer = send(shared(), &body).await;
        assert_eq!((answer.status, answer.code().as_str()), (422, "invalid_request"), "{body}");
        told.push(answer.json()["errors"].clone());
    }
    insta::assert_json_snapshot!(told);
    let twice =
        format!("{{\"decision_id\":{id},\"occurred_at\":\"2026-01-01T00:00:00Z\",\"churned\":true,\"churned\":false}}");
    let answer = shared().post_raw("/v1/outcomes", &[("content-type", "application/json")], twice).await;
    assert_eq!((&answer.json()["errors"][0]["pointer"], answer.status), (&json!("/churned"), 422));
    assert_eq!(outcomes_of(shared(), &id).await, Vec::<Value>::new());
}

#[tokio::test]
async fn what_cannot_be_an_outcome_at_all_is_refused() {
    let now = jiff::Timestamp::now();
    let unknown = (json!("00000000-0000-7000-8000-000000000000"), now.to_string());
    let answer = send(shared(), &outcome(&unknown, json!({"churned": true}))).await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_decision"));
    let json = [("content-type", "application/json")];
    for (text, told) in [("", 400), ("[{}, {]", 400), ("[]]", 400), ("{", 400)] {
        let answer = shared().post_raw("/v1/outcomes", &json, text).await;
        assert_eq!((answer.status, answer.code().as_str()), (told, "malformed_json"), "{text}");
    }
    let answer = shared().post_raw("/v1/outcomes", &[("content-type", "application/x-ndjson")], "{}").await;
    assert_eq!((answer.status, answer.code().as_str()), (415, "unsupported_media_type"));
    let service = Service::start(&["limits.batch_rows_max=2", "limits.body_bytes_max=1000"]);
    assert_eq!(send(&service, &json!([1, 2, 3])).await.code(), "too_many_rows");
    assert_eq!(send(&service, &json!({"source_id": "x".repeat(1_000)})).await.code(), "body_too_large");
    let rows = send(&service, &json!([{"source_id": "x".repeat(1_000)}])).await;
    assert_eq!(rows.json()["results"][0]["code"], "body_too_large");
    let service = Service::start(&["ledger.promise=off"]);
    let answer = send(&service, &json!("whatever it is")).await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"));
}

#[tokio::test]
async fn the_outcomes_of_a_decision_are_bounded() {
    let service = Service::start(&[]);
    let decision = decided(&service, "a").await;
    let row = |number: i32| outcome(&decision, json!({"revenue": number}));
    let rows: Vec<Value> = (0..300).map(row).collect();
    let results = send(&service, &json!(rows)).await.json()["results"].clone();
    let results = results.as_array().expect("results");
    assert!(results[..256].iter().all(|item| item["recorded"] == true));
    assert!(results[256..].iter().all(|item| item["code"] == "too_many_outcomes"));
    let answer = send(&service, &row(300)).await;
    assert_eq!((answer.status, answer.code().as_str()), (409, "too_many_outcomes"));
    assert!(!recorded(&service, &row(0)).await.1, "what is on record is still told");
    assert_eq!(outcomes_of(&service, &decision.0).await.len(), 256);
}

#[tokio::test]
async fn what_cannot_be_written_is_503_and_may_be_sent_again() {
    let service = Service::start(&["ledger.wait_ms_max=100"]);
    let body = outcome(&decided(&service, "a").await, json!({"churned": true}));
    let database = Connection::open(service.ledger.join("ledger.db")).expect("the database");
    database.execute_batch("BEGIN IMMEDIATE").expect("held");
    for body in [body.clone(), json!([body])] {
        let answer = send(&service, &body).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "ledger_unavailable"));
        assert_eq!(answer.header("retry-after"), "1");
    }
    database.execute_batch("ROLLBACK").expect("let go");
    until(async || send(&service, &body).await.status == 200).await;
    assert_eq!(outcomes_of(&service, &body["decision_id"]).await.len(), 1);
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
}

#[tokio::test]
async fn every_promise_but_off_tells_what_became_of_it() {
    for promise in ["buffered", "fsynced"] {
        let service = Service::start(&[&format!("ledger.promise={promise}")]);
        let decision = decided(&service, "a").await;
        until(async || {
            service.get(&format!("/v1/decisions/{}", decision.0.as_str().expect("an id"))).await.status == 200
        })
        .await;
        let body = outcome(&decision, json!({"churned": true}));
        assert!(recorded(&service, &body).await.1);
        assert!(!recorded(&service, &body).await.1);
    }
}

/// A ledger of two decisions, each with two outcomes, and of a service that stopped. Entries: start, the slots of 2 models, 2 decisions,
/// 4 outcomes, stop.
async fn some(ledger: &Path) -> Vec<(Value, String)> {
    let service = Service::start_in(ledger, &[]);
    let decisions = vec![decided(&service, "a").await, decided(&service, "b").await];
    for decision in &decisions {
        recorded(&service, &outcome(decision, json!({"churned": false}))).await;
        recorded(&service, &outcome(decision, json!({"revenue": "7", "source_id": "crm-1"}))).await;
    }
    decisions
}

#[tokio::test]
async fn tampering_with_outcomes_is_found() {
    let directory = tempfile::tempdir().expect("a directory");
    let ledger = directory.path().join("ledger");
    some(&ledger).await;
    assert_eq!(problems(&ledger), Vec::<String>::new());
    assert_eq!(Reading::open(&ledger).expect("a ledger").verify(None).expect("verified").outcomes, 4);
    for (what, sql, told) in [
        ("a changed fact", "UPDATE entry SET body = replace(body, 'false', 'true') WHERE seq = 6", "entry 6: is not what was written"),
        (
            "another decision",
            "UPDATE entry SET body = json_set(body, '$.decision_id', (SELECT json_extract(body, '$.decision_id') FROM entry WHERE seq = 8)), digest = x'00' WHERE seq = 6",
            "entry 6: is not what was written",
        ),
        ("another customer", "UPDATE entry SET customer = (SELECT customer FROM entry WHERE seq = 5) WHERE seq = 6", "entry 6: is not what was written"),
        ("another digest, so that it could be recorded twice", "UPDATE entry SET digest = zeroblob(16) WHERE seq = 6", "entry 6: is not what was written"),
        ("a removed outcome", "DELETE FROM entry WHERE seq = 7", "entries 7 to 7 are missing"),
        (
            "an added outcome",
            "INSERT INTO entry SELECT 11, kind, at_ms, id, customer, version, score, tier, action, arm, replace(body, 'false', 'true'), zeroblob(16), sealed, key_version, link FROM entry WHERE seq = 6",
            "entry 11: is not what was written",
        ),
        ("no index", "DROP INDEX outcome_once", "the index of outcomes has others than the chain"),
        (
            "an index that finds nothing",
            "CREATE INDEX other ON entry(json_extract(body, '$.other'), digest) WHERE kind = 'other';
             PRAGMA writable_schema = 1;
             CREATE TEMP TABLE two AS SELECT name, rootpage FROM sqlite_schema WHERE name IN ('other', 'outcome_once');
             UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM two WHERE two.name <> sqlite_schema.name) WHERE name IN ('other', 'outcome_once')",
            "entry 6: the index of outcomes does not have it as it is",
        ),
        (
            "an index of something else",
            "PRAGMA writable_schema = 1;
             UPDATE sqlite_schema SET sql = replace(sql, '''outcome''', '''other''') WHERE name = 'outcome_once'",
            "entry 6: the index of outcomes does not have it as it is",
        ),
        (
            "an index that finds one too many",
            "INSERT INTO entry SELECT 11, kind, at_ms, id, customer, version, score, tier, action, arm, body, zeroblob(16), sealed, key_version, link FROM entry WHERE seq = 6;
             PRAGMA writable_schema = 1;
             UPDATE sqlite_schema SET sql = replace(sql, '''outcome''', '''other''') WHERE name = 'outcome_once';
             PRAGMA writable_schema = RESET;
             DELETE FROM entry WHERE seq = 11;
             PRAGMA writable_schema = 1;
             UPDATE sqlite_schema SET sql = replace(sql, '''other''', '''outcome''') WHERE name = 'outcome_once'",
            "the index of outcomes has others than the chain",
        ),
    ] {
        let broken = directory.path().join("broken");
        let _ = std::fs::remove_dir_all(&broken);
        std::fs::create_dir(&broken).expect("a directory");
        for name in ["ledger.db", "ledger.keys"] {
            std::fs::copy(ledger.join(name), broken.join(name)).expect("a copy");
        }
        let database = Connection::open(broken.join("ledger.db")).expect("the database");
        database.execute_batch(sql).unwrap_or_else(|error| panic!("{what}: {error}"));
        drop(database);
        let found = problems(&broken).join("\n");
        assert!(found.contains(told), "{what}: {found}");
        assert_eq!(mainstay(&broken, &["verify", "ledger"]).0, 65, "{what}");
    }
}

#[tokio::test]
async fn outcomes_outlive_a_restart_a_backup_and_a_ledger_of_before() {
    let directory = tempfile::tempdir().expect("a directory");
    let ledger = directory.path().join("ledger");
    let decisions = some(&ledger).await;
    let service = Service::start_in(&ledger, &[]);
    let again = outcome(&decisions[0], json!({"revenue": 7, "source_id": "crm-1"}));
    assert!(!recorded(&service, &again).await.1, "it is known after a restart");
    let before = outcomes_of(&service, &decisions[0].0).await;
    assert_eq!(before.len(), 2);
    let (admin, backup) = (format!("admin.listen={}", service.admin), directory.path().join("backup.db"));
    let backup = backup.to_str().expect("a path");
    assert_eq!(mainstay(&ledger, &["ledger", "backup", backup, "--set", &admin]).0, 0);
    recorded(&service, &outcome(&decisions[0], json!({"revenue": 8}))).await;
    drop(service);
    let (code, text) = mainstay(&ledger, &["ledger", "restore", backup]);
    assert_eq!(code, 0, "{text}");
    let service = Service::start_in(&ledger, &[]);
    assert_eq!(outcomes_of(&service, &decisions[0].0).await, before);
    assert!(!recorded(&service, &again).await.1, "it is known after a restore");
    drop(service);

    // As a program wrote it that knew no outcomes.
    let ledger = directory.path().join("older");
    let service = Service::start_in(&ledger, &[]);
    let decision = decided(&service, "a").await;
    drop(service);
    let database = Connection::open(ledger.join("ledger.db")).expect("the database");
    database.execute_batch("DROP VIEW outcomes; DROP INDEX outcome_once; DROP TABLE state; DROP TABLE answered; DROP INDEX entry_actions; PRAGMA user_version = 1").expect("older");
    drop(database);
    assert_eq!(problems(&ledger), Vec::<String>::new());
    let service = Service::start_in(&ledger, &[]);
    assert!(recorded(&service, &outcome(&decision, json!({"churned": true}))).await.1);
    drop(service);
    assert_eq!(problems(&ledger), Vec::<String>::new());
}

#[tokio::test]
async fn outcomes_go_with_the_oldest_records() {
    let service = Service::start(&["ledger.bytes_max=1048576"]);
    let decision = decided(&service, "a").await;
    recorded(&service, &outcome(&decision, json!({"churned": true}))).await;
    let rows: Vec<Value> = (0..2_500).map(|number| named(&format!("c-{number}"))).collect();
    service.post("/v1/score/batch", &json!(rows)).await;
    let database = Connection::open(service.ledger.join("ledger.db")).expect("the database");
    let count = "SELECT count(*) FROM entry INDEXED BY outcome_once WHERE kind = 'outcome'";
    until(async || database.query_row(count, [], |row| row.get::<_, i64>(0)).expect("a count") == 0).await;
    until(async || problems(&service.ledger).is_empty()).await;
    let answer = send(&service, &outcome(&decision, json!({"churned": true}))).await;
    assert_eq!(answer.code(), "unknown_decision");
}

#[tokio::test]
async fn outcomes_are_exported_under_pseudonyms() {
    let directory = tempfile::tempdir().expect("a directory");
    let ledger = directory.path().join("ledger");
    let decisions = some(&ledger).await;
    let path = directory.path().join("out.parquet");
    let path = path.to_str().expect("a path");
    let (code, text) = mainstay(&ledger, &["ledger", "export", path, "--what", "outcomes"]);
    assert!(code == 0 && text.contains("4 outcomes in"), "{text}");
    let file = SerializedFileReader::new(std::fs::File::open(path).expect("the file")).expect("Parquet");
    let rows: Vec<String> = file.get_row_iter(None).expect("rows").map(|row| row.expect("a row").to_string()).collect();
    assert!(
        rows[0].contains("seq: 6") && rows[0].contains("churned: false, converted: null, revenue: null"),
        "{rows:?}"
    );
    assert!(
        rows[1].contains("seq: 7") && rows[1].contains("churned: null, converted: null, revenue: 7.000000"),
        "{rows:?}"
    );
    assert!(rows[3].contains(decisions[1].0.as_str().expect("an id")), "{rows:?}");
    let later = directory.path().join("later.parquet");
    let later =
        ["ledger", "export", later.to_str().expect("a path"), "--what", "outcomes", "--from", "2999-01-01T00:00:00Z"];
    let (code, text) = mainstay(&ledger, &later);
    assert!(code == 0 && text.contains("0 outcomes in"), "{text}");
}

#[tokio::test]
async fn what_finds_outcomes_is_the_index() {
    let service = Service::start(&[]);
    decide(&service, &customer()).await;
    let database = Connection::open(service.ledger.join("ledger.db")).expect("the database");
    for (tail, detail) in [("AND digest = ?2", "(<expr>=? AND digest=?)"), ("ORDER BY seq", "(<expr>=?)")] {
        let sql = format!(
            "EXPLAIN QUERY PLAN SELECT id FROM entry WHERE kind = 'outcome' AND json_extract(body, '$.decision_id') = ?1 {tail}"
        );
        let mut statement = database.prepare(&sql).expect("a statement");
        let count = statement.parameter_count();
        let plan: String =
            statement.query_row(rusqlite::params_from_iter(vec!["x"; count]), |row| row.get(3)).expect("a plan");
        assert_eq!(plan, format!("SEARCH entry USING INDEX outcome_once {detail}"));
    }
}
