//! A new model is asked for: the real service, and a real receiver that checks what it is sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::insight;
use crate::ledger::problems;
use crate::service::{Service, customer_with, golden, until};
use crate::slots;
use crate::tls::Authority;

const SECRET: [u8; 32] = [7; 32];

/// A message as it came.
#[derive(Debug, Clone)]
struct Message {
    id: String,
    at: String,
    signature: String,
    body: String,
}

impl Message {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    fn is_signed(&self) -> bool {
        let mac = Hmac::<Sha256>::new_from_slice(&SECRET).expect("a key");
        let mac = mac.chain_update(format!("{}.{}.{}", self.id, self.at, self.body)).finalize().into_bytes();
        let seconds: i64 = self.at.parse().expect("seconds");
        let is_now = (jiff::Timestamp::now().as_second() - seconds).abs() < 300;
        is_now && self.signature == format!("v1,{}", BASE64_STANDARD.encode(mac))
    }
}

/// A receiver that answers with the statuses in their order, and then with 204. At 0 it says nothing and keeps the connection.
struct Receiver {
    url: String,
    received: Arc<Mutex<Vec<Message>>>,
}

impl Receiver {
    fn start(statuses: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        let received = Arc::new(Mutex::new(Vec::new()));
        let (kept, statuses) = (received.clone(), statuses.to_vec());
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for (at, stream) in listener.incoming().enumerate() {
                let mut stream = stream.expect("a connection");
                let message = read(&mut stream).expect("a message");
                kept.lock().expect("no panic").push(message);
                match statuses.get(at) {
                    Some(0) => open.push(stream),
                    status => answer(&mut stream, *status.unwrap_or(&204)),
                }
            }
        });
        Self { url, received }
    }

    /// One over TLS, whose certificate is of `authority`. It always answers 204.
    fn start_over_tls(authority: &Authority) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("https://{}/hook", listener.local_addr().expect("an address"));
        let received = Arc::new(Mutex::new(Vec::new()));
        let (kept, tls) = (received.clone(), authority.server("server"));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let connection = rustls::ServerConnection::new(tls.clone()).expect("a connection");
                let mut stream = rustls::StreamOwned::new(connection, stream.expect("a connection"));
                // Who does not trust it goes away before there is a message.
                if let Ok(message) = read(&mut stream) {
                    kept.lock().expect("no panic").push(message);
                    answer(&mut stream, 204);
                }
            }
        });
        Self { url, received }
    }

    fn received(&self) -> Vec<Message> {
        self.received.lock().expect("no panic").clone()
    }

    /// Waits until `count` messages came.
    async fn until(&self, count: usize) -> Vec<Message> {
        until(async || self.received().len() >= count).await;
        self.received()
    }
}

fn answer(stream: &mut impl Write, status: u16) {
    let head = format!("HTTP/1.1 {status} x\r\nlocation: /elsewhere\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
}

fn read(stream: &mut impl Read) -> std::io::Result<Message> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    assert_eq!(lines[0], "POST /hook HTTP/1.1", "nothing else is asked of it");
    let header = |name: &str| {
        let found = lines.iter().find_map(|line| line.to_lowercase().strip_prefix(name).map(|_| &line[name.len()..]));
        found.unwrap_or_else(|| panic!("no {name} in {lines:?}")).trim().to_owned()
    };
    let mut body = vec![0; header("content-length:").parse().expect("a length")];
    reader.read_exact(&mut body)?;
    Ok(Message {
        id: header("webhook-id:"),
        at: header("webhook-timestamp:"),
        signature: header("webhook-signature:"),
        body: String::from_utf8(body).expect("UTF-8"),
    })
}

/// The settings that ask `receiver`, with the secret in `directory`.
fn settings(receiver: &Receiver, directory: &Path, more: &[&str]) -> Vec<String> {
    let secret = directory.join("webhook.secret");
    std::fs::write(&secret, format!("whsec_{}\n", BASE64_STANDARD.encode(SECRET))).expect("written");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    let own = [
        format!("retraining.url={}", receiver.url),
        format!("retraining.secret_file={}", secret.display()),
        "retraining.backoff_ms=1".to_owned(),
        "retraining.cool_down_hours=0.0".to_owned(),
        "insight.refresh_secs=1".to_owned(),
    ];
    own.into_iter().chain(more.iter().map(|word| (*word).to_owned())).collect()
}

fn start_in(directory: &Path, settings: &[String]) -> Service {
    Service::start_in(directory, &settings.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Has `count` customers decided on who are all new; of a hundred `paper` have paper bills, as 41 ever had.
async fn drift(service: &Service, name: &str, count: usize, paper: usize) {
    let row = |at: usize| {
        let mut row = customer_with("tenure", json!(at % 3));
        row["customer_id"] = json!(format!("{name}-{at}"));
        row["features"]["PaperlessBilling"] = json!(if at % 100 < paper { "No" } else { "Yes" });
        row
    };
    let rows: Vec<Value> = (0..count).map(row).collect();
    assert_eq!(service.post("/v1/score/batch", &json!(rows)).await.status, 200);
}

async fn causes(service: &Service) -> Vec<Value> {
    let answer = service.get_admin("/v1/insight/retraining").await.json();
    assert_eq!(answer["enabled"], true);
    answer["causes"].as_array().expect("causes").clone()
}

async fn until_settled(service: &Service, count: usize) -> Vec<Value> {
    let is_settled = |cause: &Value| cause["delivery"] != "pending";
    until(async || causes(service).await.iter().filter(|cause| is_settled(cause)).count() >= count).await;
    causes(service).await
}

async fn has_line(service: &Service, line: &str) -> bool {
    service.get_admin("/metrics").await.text.lines().any(|found| found.starts_with(line))
}

#[tokio::test]
async fn a_model_is_asked_for_once_with_a_signature_until_it_arrives_and_not_again_after_a_restart() {
    let (directory, receiver) = (tempfile::tempdir().expect("a directory"), Receiver::start(&[500, 302]));
    let settings = settings(&receiver, directory.path(), &["retraining.drift_requests_min=200"]);
    let service = start_in(directory.path(), &settings);
    drift(&service, "A", 200, 41).await;
    let messages = receiver.until(3).await;
    assert!(messages.iter().all(Message::is_signed), "{messages:?}");
    assert!(messages.iter().all(|message| (&message.id, &message.body) == (&messages[0].id, &messages[0].body)));
    let told = messages[0].json();
    let data = &told["data"];
    assert_eq!((&told["type"], &data["id"]), (&json!("model.retraining_due"), &json!(messages[0].id)));
    assert_eq!((&data["model"]["name"], &data["model"]["version"]), (&json!("telco-churn"), &json!("1.0.0")));
    let of = data["cause"]["of"].as_array().expect("features").clone();
    assert!(data["cause"]["kind"] == "drift" && of.contains(&json!("tenure")), "{data:#}");
    assert!(!of.contains(&json!("PaperlessBilling")), "{data:#}");
    let worst = &data["evidence"]["drift"]["features"][0];
    assert!(of.contains(&worst["feature"]) && worst["verdict"] == "alarm" && worst["n"] == 200, "{worst}");
    assert!(worst["psi"].as_f64().expect("a number") > worst["critical"].as_f64().expect("a number"));
    assert_eq!(data["links"]["drift"], "/v1/insight/drift?model=telco-churn&window=24h");

    let cause = &until_settled(&service, 1).await[0];
    assert_eq!((&cause["delivery"], &cause["tries"], &cause["message"]), (&json!("delivered"), &json!(3), &told));
    until(async || has_line(&service, "mainstay_retraining_undelivered{state=\"pending\"} 0").await).await;
    assert!(has_line(&service, "mainstay_retraining_tries_total{result=\"failed\"} 2").await);
    assert!(has_line(&service, "mainstay_retraining_tries_total{result=\"delivered\"} 1").await);
    drop(service);
    assert_eq!(problems(directory.path()), Vec::<String>::new());

    // What drifted before drifts still. The next message is of what is new.
    let service = start_in(directory.path(), &settings);
    let known = causes(&service).await;
    assert_eq!((known.len(), &known[0]["delivery"], &known[0]["at"]), (1, &json!("delivered"), &cause["at"]));
    until(async || has_line(&service, "mainstay_fairness_groups_failed{model=\"mlc-churn\"}").await).await;
    drift(&service, "B", 450, 100).await;
    let messages = receiver.until(4).await;
    let of = messages[3].json()["data"]["cause"]["of"].as_array().expect("features").clone();
    assert!(of.contains(&json!("PaperlessBilling")) && messages[3].id != messages[0].id, "{of:?}");
}

#[tokio::test]
async fn several_causes_at_one_look_are_a_message_each() {
    let (directory, receiver) = (tempfile::tempdir().expect("a directory"), Receiver::start(&[410]));
    let more =
        ["retraining.causes=[\"quality\", \"kpi\"]", "retraining.auc_floor=0.995", "insight.conversion_floor=0.9"];
    let settings = settings(&receiver, directory.path(), &more);
    let (service, _policy) = insight::start(&settings.iter().map(String::as_str).collect::<Vec<_>>());
    insight::history(&service).await;
    let messages = receiver.until(2).await;
    assert!(messages.iter().all(Message::is_signed) && messages[0].id != messages[1].id);
    let known = until_settled(&service, 2).await;
    // Who says that it is gone is not asked again.
    let of = |kind: &str| known.iter().find(|cause| cause["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"));
    let mut fates: Vec<(&Value, &Value)> = known.iter().map(|cause| (&cause["delivery"], &cause["tries"])).collect();
    fates.sort_by_key(|(delivery, _)| delivery.to_string());
    assert_eq!(fates, [(&json!("delivered"), &json!(1)), (&json!("refused"), &json!(1))]);
    assert_eq!((&of("quality")["of"], &of("kpi")["of"]), (&json!(["auc"]), &json!(["conversion_rate"])));
    let evidence = &of("quality")["message"]["data"]["evidence"];
    let quality = service.get_admin("/v1/insight/quality?window=30d").await.json()["overall"].clone();
    assert_eq!((&evidence["quality"]["auc"], &evidence["quality"]["auc_limit"]), (&quality["auc"], &json!(0.995)));
    let conversion = evidence["kpis"].as_array().expect("figures").iter().find(|kpi| kpi["name"] == "conversion_rate");
    let conversion = conversion.expect("a figure");
    assert_eq!((&conversion["standing"], &conversion["target"]), (&json!("missed"), &json!(0.9)));
    assert!(has_line(&service, "mainstay_retraining_undelivered{state=\"refused\"} 1").await);
    assert_eq!(receiver.received().len(), 2);
}

#[tokio::test]
async fn nothing_is_asked_for_while_nothing_is_wrong_and_a_receiver_that_hangs_holds_up_no_stop() {
    let (directory, receiver) = (tempfile::tempdir().expect("a directory"), Receiver::start(&[0]));
    let more = ["retraining.drift_requests_min=1", "retraining.timeout_ms=60000", "insight.conversion_floor=0.1"];
    let settings = settings(&receiver, directory.path(), &more);
    let service = start_in(directory.path(), &settings);
    let few: Vec<Value> = golden("telco-churn/1.0.0").into_iter().take(8).map(|(customer, _)| customer).collect();
    let answer = service.post("/v1/score/batch", &json!(few)).await.json();
    let costs = answer["results"].as_array().expect("results").iter();
    let spend: f64 = costs.map(|row| row["intervention"]["cost"].as_f64().expect("a cost")).sum();
    let line = format!("mainstay_kpi{{model=\"telco-churn\",kpi=\"spend\",bound=\"value\"}} {spend}");
    until(async || has_line(&service, &line).await).await;
    until(async || has_line(&service, "mainstay_fairness_groups_failed{model=\"mlc-churn\"}").await).await;
    assert_eq!((receiver.received().len(), causes(&service).await.len()), (0, 0));

    drift(&service, "A", 300, 41).await;
    let first = receiver.until(1).await.remove(0);
    let begun = std::time::Instant::now();
    drop(service);
    assert!(begun.elapsed().as_secs() < 20, "it waited for the receiver: {:?}", begun.elapsed());
    // It did not arrive, so it is sent again: the same message.
    let service = start_in(directory.path(), &settings);
    let again = receiver.until(2).await.remove(1);
    assert_eq!((&again.id, &again.body), (&first.id, &first.body));
    assert_eq!(until_settled(&service, 1).await[0]["delivery"], "delivered");
}

#[tokio::test]
async fn a_new_champion_is_not_blamed_for_the_figures_of_the_one_before() {
    let (directory, receiver) = (tempfile::tempdir().expect("a directory"), Receiver::start(&[]));
    let settings =
        settings(&receiver, directory.path(), &["retraining.causes=[\"kpi\"]", "insight.conversion_floor=0.9"]);
    let (service, _policy) = insight::start(&settings.iter().map(String::as_str).collect::<Vec<_>>());
    insight::history(&service).await;
    let told = receiver.until(1).await[0].json();
    assert_eq!(told["data"]["model"]["version"], "1.0.0");
    slots::stage(&service, "1.1.0").await;
    slots::done(&service, "promote", json!({})).await;
    let spend = async || {
        let metrics = service.get_admin("/metrics").await.text;
        let is_it = |line: &&str| line.starts_with("mainstay_kpi{model=\"telco-churn\",kpi=\"spend\",bound=\"value\"}");
        metrics.lines().find(is_it).expect("a line").to_owned()
    };
    // Two looks at few customers of its own: all together miss the target still.
    for look in 0..2 {
        let before = spend().await;
        let rows: Vec<Value> = (0..20).map(|at| insight::row(1_000 + 20 * look + at).0).collect();
        assert_eq!(service.post("/v1/score/batch", &json!(rows)).await.status, 200);
        until(async || spend().await != before).await;
    }
    let overall = service.get_admin("/v1/insight/kpis?window=30d").await.json()["overall"].clone();
    let conversion = |kpis: &Value| {
        let found = kpis.as_array().expect("figures").iter().find(|kpi| kpi["name"] == "conversion_rate");
        found.expect("a figure").clone()
    };
    assert_eq!(conversion(&overall["tree"])["standing"], "missed");
    assert_eq!((causes(&service).await.len(), receiver.received().len()), (1, 1), "the new one has hardly begun");

    insight::history(&service).await;
    let told = receiver.until(2).await[1].json();
    let own = conversion(&told["data"]["evidence"]["kpis"]);
    assert_eq!((&told["data"]["model"]["version"], &own["standing"]), (&json!("1.1.0"), &json!("missed")));
    assert!(own["estimate"]["n"].as_u64() >= Some(100), "{own}");
}

#[tokio::test]
async fn what_became_of_a_message_is_written_down_as_soon_as_that_can_be_and_a_refusal_lasts() {
    let (directory, receiver) = (tempfile::tempdir().expect("a directory"), Receiver::start(&[0, 410]));
    let more = ["retraining.drift_requests_min=1", "retraining.timeout_ms=2000"];
    let settings = settings(&receiver, directory.path(), &more);
    let service = start_in(directory.path(), &settings);
    drift(&service, "A", 200, 41).await;
    receiver.until(1).await;
    // It is on its way. What becomes of it cannot be recorded now.
    let other = rusqlite::Connection::open(service.ledger.join("ledger.db")).expect("the database");
    let full =
        "CREATE TRIGGER full BEFORE INSERT ON entry WHEN NEW.kind = 'action' BEGIN SELECT RAISE(ABORT, 'full'); END";
    other.execute_batch(full).expect("a trigger");
    receiver.until(2).await;
    assert_eq!(until_settled(&service, 1).await[0]["delivery"], "refused");
    let remembered = || {
        let sql = "SELECT document FROM state WHERE kind = 'requests'";
        other.query_row(sql, [], |row| row.get::<_, String>(0)).expect("a document")
    };
    assert!(remembered().contains("\"due\""), "{}", remembered());
    other.execute_batch("DROP TRIGGER full").expect("none");
    until(async || remembered().contains("\"refused\"")).await;
    drop((service, other));
    assert_eq!(problems(directory.path()), Vec::<String>::new());

    let service = start_in(directory.path(), &settings);
    until(async || has_line(&service, "mainstay_fairness_groups_failed{model=\"mlc-churn\"}").await).await;
    let known = causes(&service).await;
    assert_eq!((known.len(), &known[0]["delivery"]), (1, &json!("refused")), "{known:?}");
    assert_eq!(receiver.received().len(), 2, "who does not want it is not asked again");
}

/// What the messages tell is for the receiver that the right authority vouches for.
#[tokio::test]
async fn a_receiver_is_told_when_the_right_authority_vouches_for_it() {
    let (own, foreign) = (Authority::new(), Authority::new());
    let (directory, receiver) = (tempfile::tempdir().expect("a directory"), Receiver::start_over_tls(&own));
    let start = |authority: &Authority| {
        let ca = format!("retraining.ca={}", authority.path("ca.pem").display());
        let more = [ca.as_str(), "retraining.drift_requests_min=200", "retraining.tries_max=1"];
        start_in(directory.path(), &settings(&receiver, directory.path(), &more))
    };
    let service = start(&foreign);
    drift(&service, "A", 200, 41).await;
    let cause = until_settled(&service, 1).await.remove(0);
    let failure = cause["failure"].as_str().expect("a failure");
    assert!(cause["delivery"] == "given_up" && failure.contains("certificate"), "{cause:#}");
    assert!(receiver.received().is_empty(), "it was told to whom another authority vouches for");
    drop(service);

    // What was given up is tried at a start.
    let service = start(&own);
    let told = receiver.until(1).await.remove(0);
    assert!(told.is_signed() && told.id == cause["id"] && told.json() == cause["message"], "{told:?}");
    until(async || causes(&service).await[0]["delivery"] == "delivered").await;
}

#[tokio::test]
async fn without_an_address_nothing_is_asked_for() {
    let answer = crate::service::shared().get_admin("/v1/insight/retraining").await;
    assert_eq!(answer.json(), json!({"enabled": false, "causes": []}));
}

#[tokio::test]
async fn where_nothing_is_measured_that_is_said_and_decisions_are_made() {
    let service = Service::start(&["insight.enabled=false"]);
    drift(&service, "A", 20, 41).await;
    for route in ["kpis", "quality", "drift", "fairness"] {
        let answer = service.get_admin(&format!("/v1/insight/{route}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"), "{route}");
        assert!(answer.text.contains("insight.enabled"), "{}", answer.text);
    }
}
