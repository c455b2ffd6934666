//! Decisions on record: that they are there, that nothing can be changed unseen, that what is personal stays closed, and that a
//! customer can be erased.

use std::path::{Path, PathBuf};
use std::process::Command;

use mainstay::ledger::{Ledger, Reading};
use reqwest::Method;
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::service::{Service, config, customer, customer_with, until};

/// A customer of another id.
pub(crate) fn named(id: &str) -> Value {
    let mut customer = customer();
    customer["customer_id"] = json!(id);
    customer
}

pub(crate) async fn decide(service: &Service, body: &Value) -> Value {
    let answer = service.post("/v1/score", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

/// The problems that a verification finds.
pub(crate) fn problems(ledger: &Path) -> Vec<String> {
    Reading::open(ledger).expect("a ledger").verify(None).expect("a verification").problems
}

pub(crate) fn mainstay(ledger: &Path, arguments: &[&str]) -> (i32, String) {
    let dir = format!("ledger.dir={}", ledger.display());
    let output =
        Command::new(env!("CARGO_BIN_EXE_mainstay")).args(arguments).args(["--set", &dir]).output().expect("a run");
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.code().expect("an exit code"), text)
}

#[tokio::test]
async fn an_answered_decision_is_on_record() {
    let service = Service::start(&[]);
    let answered = decide(&service, &customer()).await;
    let id = answered["decision_id"].as_str().expect("an id");
    let recorded = service.get(&format!("/v1/decisions/{id}")).await.json();
    for field in ["decision_id", "score", "tier", "policy_version"] {
        assert_eq!(recorded[field], answered[field], "{field}");
    }
    assert_eq!(recorded["action"], answered["intervention"]["action"]);
    assert_eq!(recorded["model"]["version"], answered["model"]["version"]);
    assert_eq!(recorded["inputs"], "sealed");
    assert_eq!(service.get("/v1/decisions/00000000-0000-7000-8000-000000000000").await.code(), "unknown_decision");
    assert_eq!(service.get("/v1/decisions/nonsense").await.code(), "invalid_request");
}

#[tokio::test]
async fn every_row_of_a_batch_is_on_record_and_no_refused_one() {
    let service = Service::start(&[]);
    let rows = json!([named("a"), {"customer_id": "b"}, named("c")]);
    let results = service.post("/v1/score/batch", &rows).await.json()["results"].clone();
    for item in results.as_array().expect("results").iter().filter(|item| item["decision_id"].is_string()) {
        let id = item["decision_id"].as_str().expect("an id");
        assert_eq!(service.get(&format!("/v1/decisions/{id}")).await.json()["score"], item["score"]);
    }
    let list = service.get("/v1/decisions?customer_id=b").await.json();
    assert_eq!(list, json!({"decisions": [], "next_before": null}));
}

#[tokio::test]
async fn the_decisions_on_a_customer_come_in_pages_the_newest_first() {
    let service = Service::start(&[]);
    let mut ids = Vec::new();
    for tenure in 1..=5 {
        decide(&service, &named("somebody else")).await;
        ids.insert(0, decide(&service, &customer_with("tenure", json!(tenure))).await["decision_id"].clone());
    }
    let mut found = Vec::new();
    let mut path = "/v1/decisions?customer_id=C-1001&limit=2".to_owned();
    loop {
        let page = service.get(&path).await.json();
        found.extend(
            page["decisions"].as_array().expect("decisions").iter().map(|decision| decision["decision_id"].clone()),
        );
        match page["next_before"].as_i64() {
            Some(before) => path = format!("/v1/decisions?customer_id=C-1001&limit=2&before={before}"),
            None => break,
        }
    }
    assert_eq!(found, ids);
    let later = service.get("/v1/decisions?customer_id=C-1001&from=2999-01-01T00:00:00Z").await.json();
    assert_eq!(later["decisions"], json!([]));
    assert_eq!(service.get("/v1/decisions?customer_id=").await.code(), "invalid_request");
    for wrong in ["limit=0", "limit=1001", "before=0", "from=yesterday", "colour=red"] {
        let answer = service.get(&format!("/v1/decisions?customer_id=x&{wrong}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (422, "invalid_request"), "{wrong}");
    }
}

#[tokio::test]
async fn a_customer_can_see_everything_and_be_erased_and_the_chain_still_verifies() {
    let service = Service::start(&[]);
    let id = decide(&service, &named("person-4711")).await["decision_id"].as_str().expect("an id").to_owned();
    decide(&service, &named("another")).await;
    let seen = service.get("/v1/customers/person-4711").await.json();
    assert_eq!(seen["decisions"][0]["request"], named("person-4711"));

    let database = Connection::open(service.ledger.join("ledger.db")).expect("the database");
    let key: Vec<u8> = database
        .query_row("SELECT c.wrapped FROM customer c JOIN entry USING (customer) ORDER BY seq LIMIT 1", [], |row| {
            row.get(0)
        })
        .expect("a key");
    drop(database);
    let erased = service.call(Method::DELETE, "/v1/customers/person-4711").await;
    assert_eq!(erased.json(), json!({"erased": true}));
    assert_eq!(service.call(Method::DELETE, "/v1/customers/person-4711").await.json(), json!({"erased": false}));
    let seen = service.get("/v1/customers/person-4711").await.json();
    assert_eq!((&seen["decisions"][0]["request"], &seen["decisions"][0]["inputs"]), (&Value::Null, &json!("erased")));
    assert_eq!(service.get("/v1/customers/another").await.json()["decisions"][0]["request"], named("another"));
    // The destroyed key stands nowhere any more, and a customer's id never did.
    for name in ["ledger.db", "ledger.db-wal"] {
        let bytes = std::fs::read(service.ledger.join(name)).expect("a file");
        let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(!holds(&key) && !holds(b"person-4711"), "{name}");
    }
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
    let (code, text) = mainstay(&service.ledger, &["replay", &id]);
    assert!(code == 65 && text.contains("its inputs were erased"), "{text}");
    // A customer who comes back is a new one.
    decide(&service, &named("person-4711")).await;
    let seen = service.get("/v1/customers/person-4711").await.json();
    assert_eq!(
        (&seen["decisions"][0]["inputs"], &seen["decisions"][1]["inputs"]),
        (&json!("sealed"), &json!("erased"))
    );
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
}

#[tokio::test]
async fn who_asks_one_after_the_other_does_not_wait_for_company() {
    let service = Service::start(&["ledger.commit_interval_us=100000"]);
    decide(&service, &customer()).await;
    // Each would wait for a tenth of a second; on a busy machine some take as long by themselves.
    let mut quickest = std::time::Duration::MAX;
    for _ in 0..30 {
        let begun = std::time::Instant::now();
        decide(&service, &customer()).await;
        quickest = quickest.min(begun.elapsed());
    }
    assert!(quickest < std::time::Duration::from_millis(100), "{quickest:?}");
}

#[tokio::test]
async fn a_decision_is_replayed_to_the_last_bit() {
    let service = Service::start(&[]);
    let id = decide(&service, &customer()).await["decision_id"].as_str().expect("an id").to_owned();
    let rows: Vec<Value> = (0..40).map(|tenure| customer_with("tenure", json!(tenure))).collect();
    service.post("/v1/score/batch", &json!(rows)).await;
    let (code, text) = mainstay(&service.ledger, &["replay", &id]);
    assert!(code == 0 && text.contains("1 of 1 decisions came out the same"), "{text}");
    let (code, text) = mainstay(&service.ledger, &["replay", "--last", "41"]);
    assert!(code == 0 && text.contains("41 of 41 decisions came out the same to the last bit"), "{text}");
}

/// A ledger of some decisions, and its copy to break.
async fn some() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let ledger = directory.path().join("ledger");
    let service = Service::start_in(&ledger, &[]);
    for number in 0..6 {
        decide(&service, &named(&format!("c-{number}"))).await;
    }
    drop(service);
    (directory, ledger)
}

#[tokio::test]
async fn every_kind_of_tampering_is_found() {
    let (directory, ledger) = some().await;
    assert_eq!(problems(&ledger), Vec::<String>::new());
    let head = Reading::open(&ledger).expect("a ledger").verify(None).expect("verified").head;
    // Entry 1 is the start of the service, 2 and 3 put its models into their slots, 4 to 9 are decisions, 10 is its stop.
    for (what, sql, told) in [
        ("a changed score", "UPDATE entry SET score = score / 2 WHERE seq = 6", "entry 6: is not what was written"),
        ("a changed tier", "UPDATE entry SET tier = 'low' WHERE seq = 6", "entry 6: is not what was written"),
        ("a changed time", "UPDATE entry SET at_ms = at_ms + 1 WHERE seq = 6", "entry 6: is not what was written"),
        (
            "a changed body",
            "UPDATE entry SET body = '{\"holdout\":true}' WHERE seq = 6",
            "entry 6: is not what was written",
        ),
        ("changed inputs", "UPDATE entry SET sealed = zeroblob(100) WHERE seq = 6", "entry 6: is not what was written"),
        ("a changed link", "UPDATE entry SET link = zeroblob(32) WHERE seq = 6", "entry 6: is not what was written"),
        (
            "another customer",
            "UPDATE entry SET customer = (SELECT customer FROM entry WHERE seq = 7) WHERE seq = 6",
            "entry 6",
        ),
        ("a changed policy", "UPDATE version SET policy_document = ''", "the versions that it refers to were changed"),
        ("a removed entry", "DELETE FROM entry WHERE seq = 6", "entries 6 to 6 are missing"),
        ("a cut end", "DELETE FROM entry WHERE seq >= 9", "entries 9 to 10 are missing at the end"),
        ("a cut beginning", "DELETE FROM entry WHERE seq <= 4", "entries 1 to 4 are missing"),
        (
            "a cut end and no mark",
            "DELETE FROM entry WHERE seq >= 9; DELETE FROM meta WHERE key = 'head'",
            "the mark of the end is missing",
        ),
        ("a changed mark", "UPDATE meta SET value = zeroblob(76) WHERE key = 'head'", "the mark \"head\" was changed"),
        (
            "swapped entries",
            "UPDATE entry SET seq = 99 WHERE seq = 6; UPDATE entry SET seq = 6 WHERE seq = 7; UPDATE entry SET seq = 7 WHERE seq = 99",
            "entry 6: is not",
        ),
        (
            "an inserted entry",
            "UPDATE entry SET seq = -seq WHERE seq > 6; UPDATE entry SET seq = 1 - seq WHERE seq < 0; INSERT INTO entry SELECT 7, kind, at_ms, id, customer, version, score, tier, action, arm, body, digest, sealed, key_version, link FROM entry WHERE seq = 6",
            "entry 7: is not",
        ),
        (
            "an appended entry",
            "INSERT INTO entry SELECT 11, kind, at_ms, id, customer, version, score, tier, action, arm, body, digest, sealed, key_version, link FROM entry WHERE seq = 10",
            "entry 11: is not",
        ),
        (
            "a destroyed key",
            "UPDATE customer SET wrapped = NULL",
            "its inputs do not open, and its customer was not erased",
        ),
        (
            "an index that hides",
            "DELETE FROM customer_entry WHERE seq = 6; INSERT OR REPLACE INTO meta VALUES ('indexed', x'0a00000000000000')",
            "entry 6: the index",
        ),
        (
            "changed slots",
            "UPDATE state SET document = replace(document, 'champion', 'standby') WHERE name = 'telco-churn'",
            "the slots of \"telco-churn\" were changed",
        ),
        (
            "slots of another model",
            "UPDATE state SET (seq, document, key_version, tag) = (SELECT seq, document, key_version, tag FROM state WHERE name = 'mlc-churn') WHERE name = 'telco-churn'",
            "the slots of \"telco-churn\" were changed",
        ),
        ("removed slots", "DELETE FROM state WHERE kind = 'slots'", "are not those of entry 2"),
        ("a changed policy in force", "UPDATE state SET document = '' WHERE kind = 'policy'", "the policy of"),
        ("everything removed", "DELETE FROM entry", "entries 1 to 10 are missing at the end"),
        (
            "a wrong type",
            "PRAGMA ignore_check_constraints = 1; UPDATE entry SET id = zeroblob(3) WHERE seq = 6",
            "entry 6: is not",
        ),
    ] {
        let broken = directory.path().join("broken");
        let _ = std::fs::remove_dir_all(&broken);
        std::fs::create_dir(&broken).expect("a directory");
        for name in ["ledger.db", "ledger.keys"] {
            std::fs::copy(ledger.join(name), broken.join(name)).expect("a copy");
        }
        Connection::open(broken.join("ledger.db"))
            .expect("the database")
            .execute_batch(sql)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let found = problems(&broken).join("\n");
        assert!(found.contains(told), "{what}: {found}");
        assert_eq!(mainstay(&broken, &["verify", "ledger"]).0, 65, "{what}");
    }
    // A whole older state is only found by who noted a later head.
    let noted = |head: &str| Reading::open(&ledger).expect("a ledger").verify(Some(head)).expect("verified").problems;
    assert_eq!(noted(&head), Vec::<String>::new());
    assert!(noted("9:0123456789abcdef")[0].contains("is not in this ledger"));
}

#[tokio::test]
async fn a_restart_goes_on_with_the_chain_and_a_broken_end_is_refused() {
    let (_directory, ledger) = some().await;
    let service = Service::start_in(&ledger, &[]);
    decide(&service, &customer()).await;
    drop(service);
    assert_eq!(problems(&ledger), Vec::<String>::new());
    let database = Connection::open(ledger.join("ledger.db")).expect("the database");
    database.execute("DELETE FROM entry WHERE seq = (SELECT max(seq) FROM entry)", []).expect("cut");
    drop(database);
    let dir = format!("ledger.dir={}", ledger.display());
    let options = config(&[&dir]).expect("a configuration").ledger;
    let refused = Ledger::open(&options, "", std::time::SystemTime::now).expect_err("a broken end");
    assert!(refused.to_string().contains("it ends at entry"), "{refused}");
}

#[tokio::test]
async fn a_ledger_that_cannot_be_written_is_refused_with_a_clear_line() {
    let (_directory, ledger) = some().await;
    let dir = format!("ledger.dir={}", ledger.display());
    let options = config(&[&dir]).expect("a configuration").ledger;
    let open = || Ledger::open(&options, "", std::time::SystemTime::now);

    let held = open().expect("a ledger");
    assert!(open().expect_err("two writers").to_string().contains("in use by another process"));
    drop(held);

    let keys = ledger.join("ledger.keys");
    std::fs::rename(&keys, ledger.join("elsewhere")).expect("moved");
    assert!(open().expect_err("no keys").to_string().contains("put it back"));
    std::fs::rename(ledger.join("elsewhere"), &keys).expect("moved");

    let database = Connection::open(ledger.join("ledger.db")).expect("the database");
    database.pragma_update(None, "user_version", 99).expect("set");
    drop(database);
    assert!(open().expect_err("newer").to_string().contains("has schema 99, this program knows 2"));
}

#[tokio::test]
async fn the_oldest_records_go_when_the_ledger_is_too_large_and_the_chain_says_so() {
    let service = Service::start(&["ledger.bytes_max=1048576"]);
    let rows: Vec<Value> = (0..2_500).map(|number| named(&format!("c-{number}"))).collect();
    service.post("/v1/score/batch", &json!(rows)).await;
    let first = || {
        let database = Connection::open(service.ledger.join("ledger.db")).expect("the database");
        database.query_row("SELECT min(seq) FROM entry", [], |row| row.get::<_, i64>(0)).expect("a number")
    };
    until(async || first() > 512).await;
    until(async || problems(&service.ledger).is_empty()).await;
    let list = service.get("/v1/decisions?customer_id=c-0").await.json();
    assert_eq!(list["decisions"], json!([]), "the oldest is gone");
    assert_eq!(
        service.get("/v1/decisions?customer_id=c-2499").await.json()["decisions"].as_array().map(Vec::len),
        Some(1)
    );
}

#[tokio::test]
async fn keys_rotate_and_what_was_before_still_opens() {
    let service = Service::start(&[]);
    decide(&service, &customer()).await;
    let admin = format!("admin.listen={}", service.admin);
    let (code, text) = mainstay(&service.ledger, &["ledger", "rotate-keys", "--set", &admin]);
    assert!(code == 0 && text.contains("\"key_version\":2"), "{text}");
    decide(&service, &customer()).await;
    let seen = service.get("/v1/customers/C-1001").await.json();
    let requests: Vec<&Value> =
        seen["decisions"].as_array().expect("decisions").iter().map(|decision| &decision["request"]).collect();
    assert_eq!(requests, [&customer(), &customer()]);
    assert_ne!(seen["decisions"][0]["customer"], seen["decisions"][1]["customer"], "another pseudonym");
    let database = Connection::open(service.ledger.join("ledger.db")).expect("the database");
    until(async || {
        let old = "SELECT count(*) FROM customer WHERE key_version < 2";
        database.query_row(old, [], |row| row.get::<_, i64>(0)).expect("a count") == 0
    })
    .await;
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
    assert_eq!(service.call(Method::DELETE, "/v1/customers/C-1001").await.json(), json!({"erased": true}));
    let seen = service.get("/v1/customers/C-1001").await.json();
    assert!(seen["decisions"].as_array().expect("decisions").iter().all(|decision| decision["inputs"] == "erased"));
}

#[tokio::test]
async fn a_backup_is_restored_whole_or_not_at_all() {
    let directory = tempfile::tempdir().expect("a directory");
    let ledger = directory.path().join("ledger");
    let mut service = Service::start_in(&ledger, &[]);
    let first = decide(&service, &customer()).await;
    let admin = format!("admin.listen={}", service.admin);
    let backup = directory.path().join("backup.db");
    let backup_path = backup.to_str().expect("a path");
    let (code, text) = mainstay(&ledger, &["ledger", "backup", backup_path, "--set", &admin]);
    assert_eq!(code, 0, "{text}");
    for wrong in [backup_path, &format!("{backup_path}/nowhere.db"), "/"] {
        let (code, text) = mainstay(&ledger, &["ledger", "backup", wrong, "--set", &admin]);
        assert!(
            code == 1 && text.contains("/path is out of range: expected a file that is not there yet"),
            "{wrong}: {text}"
        );
    }
    let second = decide(&service, &customer()).await;
    let (code, text) = mainstay(&ledger, &["ledger", "restore", backup_path]);
    assert!(code != 0 && text.contains("in use"), "{text}");
    service.wait();
    let (code, text) = mainstay(&ledger, &["ledger", "restore", backup_path]);
    assert!(code == 0 && text.contains("records restored"), "{text}");
    let service = Service::start_in(&ledger, &[]);
    let status = async |decision: &Value| {
        service.get(&format!("/v1/decisions/{}", decision["decision_id"].as_str().expect("an id"))).await.status
    };
    assert_eq!((status(&first).await, status(&second).await), (200, 404));
    drop(service);
    let broken = Connection::open(&backup).expect("the backup");
    broken.execute("UPDATE entry SET tier = 'low' WHERE seq = 4", []).expect("changed");
    drop(broken);
    let (code, text) = mainstay(&ledger, &["ledger", "restore", backup_path]);
    assert!(code == 65 && text.contains("nothing was changed"), "{text}");
    assert_eq!(problems(&ledger), Vec::<String>::new());
}

#[tokio::test]
async fn decisions_are_exported_under_pseudonyms() {
    let service = Service::start(&[]);
    decide(&service, &named("person-4711")).await;
    let path = service.ledger.join("out.parquet");
    let (code, text) = mainstay(&service.ledger, &["ledger", "export", path.to_str().expect("a path")]);
    assert!(code == 0 && text.contains("1 decisions in"), "{text}");
    let bytes = std::fs::read(&path).expect("the file");
    assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
    assert!(!bytes.windows(11).any(|window| window == b"person-4711"));
}

#[tokio::test]
async fn inputs_are_kept_only_if_they_shall_be() {
    let service = Service::start(&["ledger.inputs=false"]);
    decide(&service, &customer()).await;
    let seen = service.get("/v1/customers/C-1001").await.json();
    assert_eq!((&seen["decisions"][0]["inputs"], &seen["decisions"][0]["request"]), (&json!("not_kept"), &Value::Null));
    assert_eq!(problems(&service.ledger), Vec::<String>::new());
}

#[tokio::test]
async fn every_promise_records_and_off_records_nothing() {
    for promise in ["buffered", "committed", "fsynced"] {
        let service = Service::start(&[&format!("ledger.promise={promise}")]);
        let id = decide(&service, &customer()).await["decision_id"].as_str().expect("an id").to_owned();
        until(async || service.get(&format!("/v1/decisions/{id}")).await.status == 200).await;
    }
    let service = Service::start(&["ledger.promise=off"]);
    decide(&service, &customer()).await;
    assert_eq!(service.get("/v1/decisions?customer_id=C-1001").await.code(), "not_found");
}
