//! Who may call: every route with every scope and every kind of credentials, keys that come and go under load, tokens of an issuer,
//! rates, roles, and whose name goes on record.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use jiff::{SignedDuration, Timestamp};
use mainstay::access::{Editor, Rate};
use mainstay::domain::access::{Needs, Scope};
use mainstay::http::Door;
use reqwest::Method;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256,
    RsaEncoding, RsaKeyPair,
};
use serde_json::{Value, json};

use crate::ledger::mainstay;
use crate::service::{Answer, Service, config, customer, send, until};
use crate::tls::Authority;

/// A file of keys that a service reads.
struct Keys {
    directory: tempfile::TempDir,
}

impl Keys {
    fn new() -> Self {
        let keys = Self { directory: tempfile::tempdir().expect("a directory") };
        keys.add("nobody", &[], &[]);
        keys
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("keys.json")
    }

    fn editor(&self) -> Editor {
        Editor::open(&self.path()).expect("an editor")
    }

    fn made(
        &self,
        actor: &str,
        scopes: &[Scope],
        roles: &[&str],
        days: Option<i64>,
        rate: Option<Rate>,
    ) -> (String, String) {
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        let expires = days.map(|days| Timestamp::now() + SignedDuration::from_hours(24 * days));
        self.editor().add((actor.to_owned(), scopes.to_vec(), roles), expires, rate).expect("a key")
    }

    fn add(&self, actor: &str, scopes: &[Scope], roles: &[&str]) -> String {
        self.made(actor, scopes, roles, None, None).1
    }

    fn service(&self, more: &[&str]) -> Service {
        let file = format!("access.keys_file={}", self.path().display());
        Service::start(&[&["access.required=true", file.as_str(), "server.workers=2"], more].concat())
    }
}

async fn ask(service: &Service, key: Option<&str>, method: Method, path: &str, body: &str) -> Answer {
    let of_admin = ["/v1/slots", "/v1/experiments", "/v1/policies", "/v1/ledger", "/metrics"];
    let is_admin = of_admin.iter().any(|prefix| path.starts_with(prefix));
    let plane = if is_admin { service.admin } else { service.data };
    ask_at(plane, key, method, path, body).await
}

async fn ask_at(plane: std::net::SocketAddr, key: Option<&str>, method: Method, path: &str, body: &str) -> Answer {
    let credentials = key.map(|key| format!("Bearer {key}"));
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(credentials.as_deref().map(|credentials| ("authorization", credentials)));
    send(method, format!("http://{plane}{path}"), &headers, body.as_bytes().to_vec()).await
}

/// A path that the route answers: something in the place of each parameter.
fn filled(path: &str) -> String {
    [
        ("{model}", "telco-churn"),
        ("{verb}", "pause"),
        ("{name}", "call-or-mail"),
        ("{id}", "01a2019c-a103-7211-a68a-e6ec9bed033f"),
        ("{customer_id}", "C-1"),
        ("{*rest}", "index.html"),
    ]
    .iter()
    .fold(path.to_owned(), |path, (name, value)| path.replace(name, value))
}

/// Every route of the code x every scope x no, malformed, unknown, wrong, expired, revoked and right credentials. The routes come from where
/// they are registered, so a new one is in here without anybody's doing.
#[tokio::test]
async fn every_route_opens_for_its_scope_and_for_nothing_else() {
    let keys = Keys::new();
    let one_each = Scope::ALL.map(|scope| (scope, keys.add(scope.name(), &[scope], &["deployer"])));
    let all = keys.add("all", &Scope::ALL, &["deployer"]);
    let none = keys.add("none", &[], &[]);
    let expired = keys.made("expired", &Scope::ALL, &[], Some(-1), None).1;
    let (id, revoked) = keys.made("revoked", &Scope::ALL, &[], None, None);
    keys.editor().revoke(&id).expect("revoked");
    let last = if all.ends_with('a') { 'b' } else { 'a' };
    let wrong = format!("{}{last}", &all[..all.len() - 1]);
    let unknown = format!("msk_aaaaaaaaaa_{}", &all[15..]);
    let bad = [
        (None, ""),
        (Some("msk_"), "invalid_token"),
        (Some(wrong.as_str()), "invalid_token"),
        (Some(unknown.as_str()), "invalid_token"),
        (Some(expired.as_str()), "invalid_token"),
        (Some(revoked.as_str()), "invalid_token"),
        (Some("eyJhbGciOiJub25lIn0.e30."), "invalid_token"),
    ];

    let service = keys.service(&["access.open_contract=false"]);
    let [data, admin] = mainstay::http::doors();
    assert!(data.len() >= 15 && admin.len() >= 15, "{} and {} routes", data.len(), admin.len());
    let mut cells = 0;
    for (plane, doors) in [(service.data, data), (service.admin, admin)] {
        for Door { method, path, needs } in doors {
            let needed = match needs {
                Needs::Metrics | Needs::Contract => Needs::Scope(Scope::Read),
                other => other,
            };
            let path = filled(&path);
            let place = format!("{method} {path} ({needs:?})");
            let asked = async |key| ask_at(plane, key, method.clone(), &path, "{}").await;
            for (key, error) in bad {
                let answer = asked(key).await;
                if needed == Needs::Nothing {
                    assert!(answer.status < 400, "{place}: {}", answer.text);
                } else {
                    assert_eq!(
                        (answer.status, answer.code().as_str()),
                        (401, "unauthenticated"),
                        "{place} with {key:?}"
                    );
                    let challenge = answer.header("www-authenticate");
                    assert!(challenge.starts_with("Bearer ") && challenge.contains(error), "{place}: {challenge}");
                }
                cells += 1;
            }
            let holders = one_each.iter().map(|(scope, key)| (Some(*scope), key)).chain([(None, &none)]);
            for (scope, key) in holders {
                let answer = asked(Some(key)).await;
                match needed {
                    Needs::Scope(needed) if scope != Some(needed) => {
                        assert_eq!(
                            (answer.status, answer.code().as_str()),
                            (403, "missing_scope"),
                            "{place} with {scope:?}"
                        );
                        assert!(answer.json()["detail"].as_str().expect("text").contains(needed.name()), "{place}");
                    }
                    _ => assert!(![401, 403, 429].contains(&answer.status), "{place} with {scope:?}: {}", answer.text),
                }
                cells += 1;
            }
            let answer = asked(Some(&all)).await;
            assert!(![401, 403, 429].contains(&answer.status), "{place} with all scopes: {}", answer.text);
            // What GET needs, HEAD does; another method is no way in.
            if method == Method::GET && needed != Needs::Nothing {
                assert_eq!(ask_at(plane, None, Method::HEAD, &path, "").await.status, 401, "HEAD {path}");
            }
            assert_eq!(
                ask_at(plane, None, Method::PATCH, &path, "{}").await.code(),
                "method_not_allowed",
                "PATCH {path}"
            );
            cells += 1;
        }
    }
    println!("{cells} cells of routes x credentials");
    let metrics = ask(&service, Some(&all), Method::GET, "/metrics", "").await.text;
    for reason in ["missing", "unknown", "expired", "revoked", "scope"] {
        let line = format!("mainstay_access_refused_total{{reason=\"{reason}\"}}");
        assert!(metrics.contains(&line), "no {line}");
    }
    // What is not admitted says nothing of how the routes fare.
    assert!(metrics.contains("mainstay_http_requests_total{route=\"refused\",status=\"401\"}"));
    assert!(!metrics.contains("mainstay_http_requests_total{route=\"score\",status=\"401\"}"));
}

#[tokio::test]
async fn what_is_open_needs_nothing_and_a_wrong_id_looks_like_a_wrong_secret() {
    let keys = Keys::new();
    let key = keys.add("shop", &[Scope::Score], &[]);
    let service = keys.service(&[]);
    for path in ["/livez", "/readyz", "/version", "/openapi.json", "/docs/"] {
        assert_eq!(ask(&service, None, Method::GET, path, "").await.status, 200, "{path}");
        // Nor does a wrong key shut what is open.
        assert_eq!(ask(&service, Some("msk_wrong"), Method::GET, path, "").await.status, 200, "{path}");
    }
    let contract = ask(&service, None, Method::GET, "/openapi.json", "").await.json();
    assert_eq!(contract["paths"]["/v1/score"]["post"]["security"], json!([{"bearer": ["score"]}]));
    assert_eq!(contract["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");

    let told = async |key: &str| {
        let mut answer = ask(&service, Some(key), Method::POST, "/v1/score", "{}").await;
        let mut problem = answer.json();
        problem["request_id"] = Value::Null;
        answer.headers.remove("x-request-id");
        answer.headers.remove("traceparent");
        answer.headers.remove("date");
        (answer.status, problem, answer.headers)
    };
    let last = if key.ends_with('a') { 'b' } else { 'a' };
    let wrong = told(&format!("{}{last}", &key[..key.len() - 1])).await;
    assert_eq!(wrong, told(&format!("msk_aaaaaaaaaa_{}", &key[15..])).await, "an id can be told from a secret");
    assert_eq!(wrong.0, 401);
    insta::assert_json_snapshot!(wrong.1, @r#"
    {
      "type": "urn:mainstay:problem:unauthenticated",
      "title": "The caller is not authenticated",
      "status": 401,
      "code": "unauthenticated",
      "detail": "the key or token is not valid",
      "request_id": null
    }
    "#);

    let body = customer().to_string();
    assert_eq!(ask(&service, Some(&key), Method::POST, "/v1/score", &body).await.status, 200);
    let url = format!("http://{}/v1/score", service.data);
    for (credentials, status) in [(format!("bearer  {key} "), 200), (format!("Basic {key}"), 401), (key.clone(), 401)] {
        let headers = [("content-type", "application/json"), ("authorization", credentials.as_str())];
        assert_eq!(
            send(Method::POST, url.clone(), &headers, body.clone().into()).await.status,
            status,
            "{credentials}"
        );
    }
    let bearer = format!("Bearer {key}");
    let twice = [("content-type", "application/json"), ("authorization", &bearer), ("authorization", &bearer)];
    assert_eq!(send(Method::POST, url, &twice, body.into()).await.status, 401, "two lines of credentials");
}

/// New keys are made and old ones revoked in the middle of traffic: no caller with a valid key is ever refused.
#[tokio::test]
async fn keys_rotate_under_load_without_a_failed_call() {
    let keys = Keys::new();
    let first = keys.made("shop", &[Scope::Score], &[], None, None);
    let service = keys.service(&[]);
    let current = Arc::new(std::sync::Mutex::new(first));
    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (data, body) = (service.data, customer().to_string());
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (current, stop, calls, body) = (current.clone(), stop.clone(), calls.clone(), body.clone());
            tokio::spawn(async move {
                let client = reqwest::Client::new();
                while !stop.load(Ordering::Relaxed) {
                    let key = current.lock().expect("a key").1.clone();
                    let request = client.post(format!("http://{data}/v1/score")).bearer_auth(key);
                    let answer = request.header("content-type", "application/json").body(body.clone()).send().await;
                    assert_eq!(answer.expect("an answer").status(), 200);
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let opens = async |key: &str| ask(&service, Some(key), Method::GET, "/v1/models", "").await.status == 200;
    for _ in 0..3 {
        let next = keys.made("shop", &[Scope::Score], &[], None, None);
        until(async || opens(&next.1).await).await;
        let before = std::mem::replace(&mut *current.lock().expect("a key"), next);
        // Whoever took the old one has its answer by then.
        let seen = calls.load(Ordering::Relaxed);
        until(async || calls.load(Ordering::Relaxed) >= seen + 16).await;
        keys.editor().revoke(&before.0).expect("revoked");
        until(async || !opens(&before.1).await).await;
    }
    // A file that is broken changes nothing.
    std::fs::write(keys.path(), "{").expect("written");
    service.reload.send(config(&[]).expect("a configuration")).await.expect("sent");
    let seen = calls.load(Ordering::Relaxed);
    until(async || calls.load(Ordering::Relaxed) >= seen + 64).await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no call failed");
    }
}

#[tokio::test]
async fn metrics_need_a_key_unless_they_are_left_open() {
    let keys = Keys::new();
    let reader = keys.add("prometheus", &[Scope::Read], &[]);
    let shown = async |service: &Service, key| ask_at(service.admin, key, Method::GET, "/metrics", "").await.status;
    let service = keys.service(&[]);
    assert_eq!((shown(&service, None).await, shown(&service, Some(&reader)).await), (401, 200));
    assert_eq!(shown(&keys.service(&["access.open_metrics=true"]), None).await, 200);
}

#[tokio::test]
async fn a_rate_is_kept_and_told() {
    let keys = Keys::new();
    // One in a while: what flows in during the test does not matter.
    let slow = keys.made("slow", &[Scope::Score], &[], None, Some(Rate { per_sec: 1, burst: 60 })).1;
    let other = keys.add("other", &[Scope::Score], &[]);
    let service = keys.service(&["access.rate_per_sec=1000"]);
    let models = async |key: &str| ask(&service, Some(key), Method::GET, "/v1/models", "").await;
    let first = models(&slow).await;
    assert_eq!(first.header("ratelimit-policy"), "\"caller\";q=60;w=60");
    assert_eq!(first.header("ratelimit"), "\"caller\";r=59;t=1");
    let mut answers = 1;
    let refused = loop {
        let answer = models(&slow).await;
        if answer.status != 200 {
            break answer;
        }
        answers += 1;
        assert!(answers < 100, "no end");
    };
    assert!((60..70).contains(&answers), "{answers}");
    assert_eq!((refused.status, refused.code().as_str()), (429, "rate_limited"));
    assert_eq!((refused.header("retry-after"), refused.header("ratelimit")), ("1", "\"caller\";r=0;t=1"));
    // What a scope refuses was asked all the same.
    assert_eq!(ask(&service, Some(&slow), Method::GET, "/v1/decisions?customer_id=x", "").await.status, 429);
    assert_eq!(models(&other).await.header("ratelimit-policy"), "\"caller\";q=1000;w=1");
}

#[tokio::test]
async fn who_acts_goes_on_record_and_nobody_else() {
    let keys = Keys::new();
    let ann = keys.add("ann@example.com", &[Scope::Operate, Scope::Read], &["deployer", "data_scientist"]);
    let carol = keys.add("carol", &[Scope::Operate], &["data_scientist"]);
    let bob = keys.add("bob", &[Scope::Operate, Scope::Admin, Scope::Read], &[]);
    let service = keys.service(&["rollouts.approvals=[\"data_scientist\"]"]);
    let act = async |key: &str, verb: &str, body: Value| {
        ask(&service, Some(key), Method::POST, &format!("/v1/slots/telco-churn/{verb}"), &body.to_string()).await
    };
    let staged = act(&ann, "stage", json!({"version": "1.1.0", "by": "somebody"})).await;
    assert_eq!((staged.status, staged.json()["errors"][0]["pointer"].clone()), (422, json!("/by")), "{}", staged.text);
    assert!(staged.text.contains("ann@example.com"));
    assert_eq!(act(&bob, "stage", json!({"version": "1.1.0"})).await.code(), "missing_role");
    assert_eq!(act(&ann, "stage", json!({"version": "1.1.0", "by": "ann@example.com"})).await.status, 200);
    let approval = json!({"role": "data_scientist"});
    assert_eq!(act(&bob, "approve", approval.clone()).await.code(), "missing_role");
    assert_eq!(act(&ann, "promote", json!({})).await.status, 409, "nobody agreed");
    // Whoever operates may go back, role or not: there is nothing to go back to, which is another matter.
    assert_eq!(act(&bob, "undo_policy", json!({})).await.code(), "illegal_move");
    // Nor does going back twice bring into service what somebody else took out of it.
    let document = std::fs::read_to_string("models/policy/four-bands.toml").expect("a policy");
    assert_eq!(act(&bob, "apply_policy", json!({"document": document})).await.code(), "missing_role");
    assert_eq!(act(&ann, "apply_policy", json!({"document": document})).await.status, 200);
    assert_eq!(act(&ann, "undo_policy", json!({})).await.status, 200);
    assert_eq!(act(&bob, "undo_policy", json!({})).await.code(), "illegal_move");
    let history = ask(&service, Some(&ann), Method::GET, "/v1/slots/telco-churn/history", "").await.json();
    assert_eq!(
        (&history["moves"][2]["verb"], &history["moves"][0]["by"]),
        (&json!("stage"), &json!("ann@example.com"))
    );

    // The same key of a request is not the same request from somebody else: nobody gets the answer of another one.
    let once = async |key: &str| {
        let bearer = format!("Bearer {key}");
        let headers = [("content-type", "application/json"), ("authorization", &bearer), ("idempotency-key", "k-1")];
        let url = format!("http://{}/v1/slots/telco-churn/rollback", service.admin);
        send(Method::POST, url, &headers, b"{}".to_vec()).await
    };
    assert_eq!(act(&carol, "approve", approval).await.status, 200);
    assert_eq!(act(&ann, "promote", json!({})).await.status, 200);
    assert_eq!(once(&ann).await.status, 200);
    assert_eq!(once(&ann).await.json()["repeated"], true);
    assert_eq!(once(&bob).await.code(), "key_reused");

    let erased = ask(&service, Some(&bob), Method::DELETE, "/v1/customers/C-1", "").await;
    assert_eq!(erased.status, 200);
    let score = keys.add("shop", &[Scope::Score], &[]);
    until(async || ask(&service, Some(&score), Method::POST, "/v1/score", &customer().to_string()).await.status == 200)
        .await;
    let id = customer()["customer_id"].as_str().expect("an id").to_owned();
    assert_eq!(
        ask(&service, Some(&bob), Method::DELETE, &format!("/v1/customers/{id}"), "").await.json()["erased"],
        true
    );
    assert_eq!(ask(&service, Some(&bob), Method::POST, "/v1/ledger/rotate-keys", "{}").await.status, 200);
    let database = rusqlite::Connection::open(service.ledger.join("ledger.db")).expect("a database");
    let by = |what: &str| -> String {
        let sql = "SELECT json_extract(CAST(body AS TEXT), '$.by') FROM entry WHERE json_extract(CAST(body AS TEXT), '$.what') = ?1 ORDER BY seq DESC LIMIT 1";
        database.query_row(sql, [what], |row| row.get(0)).expect("on record")
    };
    assert_eq!((by("erase"), by("rotate_keys")), ("bob".to_owned(), "bob".to_owned()));
}

#[tokio::test]
async fn an_experiment_needs_a_role_to_start_and_none_to_stop() {
    let keys = Keys::new();
    let ann = keys.add("ann", &[Scope::Operate, Scope::Read], &["deployer"]);
    let bob = keys.add("bob", &[Scope::Operate], &[]);
    let service = keys.service(&[]);
    let act = async |key: &str, path: &str, body: Value| {
        ask(&service, Some(key), Method::POST, &format!("/v1/experiments{path}"), &body.to_string()).await
    };
    let arms = json!([{"name": "call", "share": 0.1, "intervention": "account_manager_call"}]);
    let experiment = json!({"name": "calls", "hypothesis": "A call keeps more.", "owner": "retention", "to": "2099-01-01T00:00:00Z", "arms": arms});
    let create = json!({ "experiment": experiment });
    let change = json!({"experiment": experiment, "force": true});

    let mut for_another = create.clone();
    for_another["by"] = json!("bob");
    let refused = act(&ann, "", for_another).await;
    assert_eq!(
        (refused.status, refused.json()["errors"][0]["pointer"].clone()),
        (422, json!("/by")),
        "{}",
        refused.text
    );
    assert_eq!(act(&bob, "", create.clone()).await.code(), "missing_role");
    let created = act(&ann, "", create).await.json();
    assert_eq!(created["experiment"]["created"]["by"], "ann", "{created}");
    assert_eq!(act(&bob, "/calls/start", json!({})).await.code(), "missing_role");
    assert_eq!(act(&bob, "/calls/change", change).await.code(), "missing_role");
    assert_eq!(act(&ann, "/calls/start", json!({"by": " ann "})).await.status, 200);
    let stopped = act(&bob, "/calls/stop", json!({})).await.json();
    assert_eq!(stopped["experiment"]["ended"]["by"], "bob", "{stopped}");
}

#[tokio::test]
async fn the_command_line_makes_keys_and_uses_them() {
    let keys = Keys::new();
    let file = keys.path().display().to_string();
    let (code, key) = mainstay(
        keys.directory.path(),
        &[
            "key",
            "new",
            "--file",
            &file,
            "--actor",
            "ann",
            "--scopes",
            "operate,read",
            "--roles",
            "deployer",
            "--days",
            "90",
        ],
    );
    assert_eq!(code, 0, "{key}");
    let key = key.trim().to_owned();
    let key_file = keys.directory.path().join("key");
    std::fs::write(&key_file, format!("{key}\n")).expect("written");
    let service = keys.service(&[]);
    let admin = format!("admin.listen={}", service.admin);
    let slots = |more: &[&str]| {
        let arguments = [&["slots", "--set", admin.as_str()], more].concat();
        mainstay(&service.ledger, &arguments)
    };
    let (code, told) = slots(&[]);
    assert_eq!(code, 1, "{told}");
    assert!(told.contains("The caller is not authenticated"), "{told}");
    assert_eq!(slots(&["--key-file", key_file.to_str().expect("a path")]).0, 0);
    let (code, told) = mainstay(
        &service.ledger,
        &[
            "policy",
            "apply",
            "telco-churn",
            "models/policy/four-bands.toml",
            "--set",
            &admin,
            "--key-file",
            key_file.to_str().expect("a path"),
        ],
    );
    assert_eq!(code, 0, "{told}");
    let history = ask(&service, Some(&key), Method::GET, "/v1/slots/telco-churn/history", "").await.json();
    assert_eq!(history["moves"][0]["by"], "ann");

    // Every verb that reaches a service knows the key.
    let file_of_key = key_file.to_str().expect("a path");
    let data = format!("http.listen={}", service.data);
    for (verb, expected) in [
        (&["history", "telco-churn"][..], 0),
        (&["experiment", "list"], 0),
        (&["policy", "simulate", "telco-churn", "models/policy/four-bands.toml"], 0),
        (&["health"], 0),
        (&["ledger", "rotate-keys"], 1),
    ] {
        let told =
            mainstay(&service.ledger, &[verb, &["--set", &admin, "--set", &data, "--key-file", file_of_key]].concat());
        assert_eq!(told.0, expected, "{verb:?}: {}", told.1);
        assert!(expected == 0 || told.1.contains("lacks a scope"), "{verb:?}: {}", told.1);
    }

    let (code, list) = mainstay(keys.directory.path(), &["key", "list", "--file", &file]);
    assert!(code == 0 && list.contains("ann") && list.contains("operate,read") && !list.contains(&key[15..]), "{list}");
    assert_eq!(mainstay(keys.directory.path(), &["key", "revoke", &key[4..14], "--file", &file]).0, 0);
    until(async || slots(&["--key-file", key_file.to_str().expect("a path")]).0 == 1).await;
    let (code, told) = mainstay(keys.directory.path(), &["key", "revoke", "aaaaaaaaaa", "--file", &file]);
    assert!(code == 65 && told.contains("mainstay key list"), "{code} {told}");
}

/// An issuer: keys to sign with, and the document that it publishes.
struct Issuer {
    ed: Ed25519KeyPair,
    ec: EcdsaKeyPair,
    /// Of all issuers: it takes seconds to make one.
    rsa: RsaKeyPair,
}

/// A key of nobody (PKCS#8).
const RSA: &[u8] = include_bytes!("../data/issuer.rsa.der");

const ISSUER: &str = "https://issuer.example";

impl Issuer {
    fn new() -> Self {
        let random = ring::rand::SystemRandom::new();
        let ed = Ed25519KeyPair::generate_pkcs8(&random).expect("a key");
        let ec = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
        Self {
            ed: Ed25519KeyPair::from_pkcs8(ed.as_ref()).expect("a key"),
            ec: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, ec.as_ref(), &random).expect("a key"),
            rsa: RsaKeyPair::from_pkcs8(RSA).expect("a key"),
        }
    }

    /// The document, with keys that nothing here can be signed with beside those that can.
    fn publish(&self, path: &Path, name: &str) {
        let (ed, ec) = (self.ed.public_key().as_ref(), self.ec.public_key().as_ref());
        let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(self.rsa.public());
        let document = json!({"keys": [
            {"kty": "RSA", "kid": format!("{name}-rs"), "use": "sig", "n": base64(&n), "e": base64(&e)},
            {"kty": "RSA", "kid": format!("{name}-ps"), "alg": "PS256", "n": base64(&n), "e": base64(&e)},
            {"kty": "OKP", "crv": "Ed25519", "kid": format!("{name}-ed"), "use": "sig", "alg": "EdDSA", "x": base64(ed)},
            {"kty": "EC", "crv": "P-256", "kid": format!("{name}-ec"), "x": base64(&ec[1..33]), "y": base64(&ec[33..])},
            {"kty": "oct", "kid": "shared", "alg": "HS256", "k": base64(b"a secret that everybody knows")},
        ]});
        std::fs::write(path, document.to_string()).expect("written");
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let text = format!("{}.{}", base64(header.to_string().as_bytes()), base64(claims.to_string().as_bytes()));
        let random = ring::rand::SystemRandom::new();
        let signature = match header["alg"].as_str() {
            Some("EdDSA") => self.ed.sign(text.as_bytes()).as_ref().to_vec(),
            Some("ES256") => self.ec.sign(&random, text.as_bytes()).expect("signed").as_ref().to_vec(),
            Some(alg @ ("RS256" | "PS256")) => {
                let padding: &dyn RsaEncoding = if alg == "RS256" { &RSA_PKCS1_SHA256 } else { &RSA_PSS_SHA256 };
                let mut signature = vec![0; self.rsa.public().modulus_len()];
                self.rsa.sign(padding, &random, text.as_bytes(), &mut signature).expect("signed");
                signature
            }
            Some("HS256") => {
                let public = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.ed.public_key().as_ref());
                ring::hmac::sign(&public, text.as_bytes()).as_ref().to_vec()
            }
            _ => Vec::new(),
        };
        format!("{text}.{}", base64(&signature))
    }
}

/// Base64url without padding (RFC 4648, section 5).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let chunk = |chunk: &[u8]| {
        let word = chunk.iter().chain([0, 0].iter()).take(3).fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
        (0..=chunk.len()).map(move |at| char::from(ALPHABET[(word >> (18 - 6 * at) & 63) as usize])).collect::<String>()
    };
    bytes.chunks(3).map(chunk).collect()
}

fn claims(more: Value) -> Value {
    let now = Timestamp::now().as_second();
    let mut claims = json!({"iss": ISSUER, "aud": ["other", "mainstay"], "sub": "ann", "exp": now + 300, "nbf": now - 5,
        "scope": "openid score read", "realm": {"roles": ["deployer"]}});
    for (name, value) in more.as_object().expect("claims") {
        claims[name] = value.clone();
    }
    claims
}

#[tokio::test]
async fn tokens_of_the_issuer_are_taken_and_no_others() {
    let keys = Keys::new();
    let (issuer, other) = (Issuer::new(), Issuer::new());
    let path = keys.directory.path().join("jwks.json");
    issuer.publish(&path, "a");
    let jwks = format!("access.jwt.jwks_file={}", path.display());
    let service = keys.service(&[
        &jwks,
        &format!("access.jwt.issuer={ISSUER}"),
        "access.jwt.audience=mainstay",
        "access.jwt.roles_claim=realm.roles",
        "access.jwt.leeway_secs=0",
        "access.jwt.algorithms=[\"RS256\", \"PS256\", \"ES256\", \"EdDSA\"]",
    ]);
    let opens = async |token: &str| ask(&service, Some(token), Method::GET, "/v1/models", "").await.status == 200;
    let (ed, ec) = (json!({"alg": "EdDSA", "kid": "a-ed"}), json!({"alg": "ES256", "kid": "a-ec"}));
    let (rs, ps) = (json!({"alg": "RS256", "kid": "a-rs"}), json!({"alg": "PS256", "kid": "a-ps"}));
    let right = issuer.token(&ed, &claims(json!({})));
    for header in [&ed, &ed, &ec, &rs, &ps] {
        assert!(opens(&issuer.token(header, &claims(json!({"aud": "mainstay"})))).await, "{header}");
    }
    let now = Timestamp::now().as_second();
    for (what, token) in [
        ("expired", issuer.token(&ed, &claims(json!({"exp": now - 1})))),
        ("not yet", issuer.token(&ed, &claims(json!({"nbf": now + 600})))),
        ("without end", issuer.token(&ed, &claims(json!({"exp": null})))),
        ("for others", issuer.token(&ed, &claims(json!({"aud": "other"})))),
        ("for nobody", issuer.token(&ed, &claims(json!({"aud": null})))),
        ("of others", issuer.token(&ed, &claims(json!({"iss": "https://issuer.example.evil"})))),
        ("of nobody", issuer.token(&ed, &claims(json!({"iss": null})))),
        ("without a name", issuer.token(&ed, &claims(json!({"sub": null})))),
        ("in the name of the service", issuer.token(&ed, &claims(json!({"sub": "mainstay"})))),
        ("signed by another", other.token(&ed, &claims(json!({})))),
        ("of an unknown key", issuer.token(&json!({"alg": "EdDSA", "kid": "z"}), &claims(json!({})))),
        ("of no key", issuer.token(&json!({"alg": "EdDSA"}), &claims(json!({})))),
        ("of another algorithm", issuer.token(&json!({"alg": "ES256", "kid": "a-ed"}), &claims(json!({})))),
        ("of another padding", issuer.token(&json!({"alg": "PS256", "kid": "a-rs"}), &claims(json!({})))),
        (
            "of the padding that its key is not for",
            issuer.token(&json!({"alg": "RS256", "kid": "a-ps"}), &claims(json!({}))),
        ),
        ("not signed", issuer.token(&json!({"alg": "none", "kid": "a-ed"}), &claims(json!({})))),
        ("signed with the public key", issuer.token(&json!({"alg": "HS256", "kid": "a-ed"}), &claims(json!({})))),
        ("signed with a shared secret", issuer.token(&json!({"alg": "HS256", "kid": "shared"}), &claims(json!({})))),
        ("changed", format!("{}A{}", &right[..right.len() / 2], &right[right.len() / 2 + 1..])),
        ("cut", right[..right.len() - 4].to_owned()),
    ] {
        assert_eq!(
            ask(&service, Some(&token), Method::GET, "/v1/models", "").await.code(),
            "unauthenticated",
            "{what}"
        );
    }
    // Scopes and roles are those of the token.
    let body = customer().to_string();
    assert_eq!(ask(&service, Some(&right), Method::POST, "/v1/score", &body).await.status, 200);
    assert_eq!(ask(&service, Some(&right), Method::DELETE, "/v1/customers/C-1", "").await.code(), "missing_scope");
    let operator = issuer.token(&ec, &claims(json!({"scope": ["operate"]})));
    let path_of = "/v1/slots/telco-churn/undo_policy";
    assert_eq!(ask(&service, Some(&operator), Method::POST, path_of, "{}").await.code(), "illegal_move");
    let stage = r#"{"version": "1.1.0"}"#;
    let staged = ask(&service, Some(&operator), Method::POST, "/v1/slots/telco-churn/stage", stage).await;
    assert_eq!(staged.status, 200, "{}", staged.text);

    // The issuer takes other keys: what was signed by the old ones ends with them, remembered or not.
    other.publish(&path, "b");
    let renewed = other.token(&json!({"alg": "EdDSA", "kid": "b-ed"}), &claims(json!({})));
    until(async || opens(&renewed).await).await;
    assert!(!opens(&right).await);

    // It takes them all back, and what is broken changes nothing.
    std::fs::write(&path, "{").expect("written");
    service.reload.send(config(&[]).expect("a configuration")).await.expect("sent");
    assert!(opens(&renewed).await);
    std::fs::write(&path, r#"{"keys": []}"#).expect("written");
    until(async || !opens(&renewed).await).await;
}

/// Answers each request on `listener` with the file at `document`, or says that it is down; over TLS where there is a configuration of it.
/// Ends with the process: it waits for a connection that nobody makes any more.
fn publisher(listener: std::net::TcpListener, document: PathBuf, tls: Option<Arc<rustls::ServerConfig>>) {
    fn answer(mut stream: impl Read + Write, document: &Path) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let answer = match std::fs::read_to_string(document) {
            Ok(text) => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}", text.len()),
            Err(_) => "HTTP/1.1 503 Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
        };
        stream.write_all(answer.as_bytes())
    }
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("a connection");
            // Who does not trust it goes away in the middle.
            let _ = match &tls {
                None => answer(stream, &document),
                Some(tls) => {
                    let connection = rustls::ServerConnection::new(tls.clone()).expect("a connection");
                    answer(rustls::StreamOwned::new(connection, stream), &document)
                }
            };
        }
    });
}

/// The keys of an issuer that is asked over HTTP: it may be down at the start, and change its keys.
#[tokio::test]
async fn an_issuer_is_asked_for_its_keys() {
    let keys = Keys::new();
    let (issuer, path) = (Issuer::new(), keys.directory.path().join("jwks.json"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("access.jwt.jwks_url=http://{}/keys", listener.local_addr().expect("an address"));
    publisher(listener, path.clone(), None);
    let settings = [url.as_str(), "access.jwt.issuer=https://issuer.example", "access.jwt.audience=mainstay"];
    let service = keys.service(&settings);
    let token = issuer.token(&json!({"alg": "EdDSA", "kid": "a-ed"}), &claims(json!({})));
    let opens = async |token: &str| ask(&service, Some(token), Method::GET, "/v1/models", "").await.status == 200;
    assert!(!opens(&token).await, "the issuer is down");
    issuer.publish(&path, "a");
    // As SIGHUP does.
    service.reload.send(config(&settings).expect("a configuration")).await.expect("sent");
    until(async || opens(&token).await).await;
}

/// Who can change the keys on their way can sign: an address is believed when the right authority vouches for it, and else not.
#[tokio::test]
async fn an_issuer_is_believed_when_the_right_authority_vouches_for_it() {
    let keys = Keys::new();
    let (issuer, path) = (Issuer::new(), keys.directory.path().join("jwks.json"));
    issuer.publish(&path, "a");
    let (own, foreign) = (Authority::new(), Authority::new());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url =
        format!("access.jwt.jwks_url=https://127.0.0.1:{}/keys", listener.local_addr().expect("an address").port());
    publisher(listener, path, Some(own.server("server")));
    let token = issuer.token(&json!({"alg": "RS256", "kid": "a-rs"}), &claims(json!({})));
    let ca = |authority: &Authority| format!("access.jwt.jwks_ca={}", authority.path("ca.pem").display());
    for (ca, believed) in [(String::from("access.jwt.jwks_ca="), false), (ca(&foreign), false), (ca(&own), true)] {
        let service =
            keys.service(&[&url, "access.jwt.issuer=https://issuer.example", "access.jwt.audience=mainstay", &ca]);
        let answer = ask(&service, Some(&token), Method::GET, "/v1/models", "").await;
        assert_eq!(answer.status == 200, believed, "{ca}: {}", answer.text);
    }
}

#[test]
fn the_admin_plane_is_not_served_to_strangers() {
    let directory = tempfile::tempdir().expect("a directory");
    let (listen, data) = ("admin.listen=0.0.0.0:0", "http.listen=127.0.0.1:0");
    let (code, told) = mainstay(directory.path(), &["serve", "--set", listen, "--set", data]);
    assert_eq!(code, 64, "{told}");
    assert!(told.contains("admin.listen: 0.0.0.0:0") && told.contains("access.required"), "{told}");
    // With access it would be, if there were keys.
    let file = format!("access.keys_file={}", directory.path().join("none.json").display());
    let required = ["serve", "--set", listen, "--set", data, "--set", "access.required=true", "--set", &file];
    let (code, told) = mainstay(directory.path(), &required);
    assert_eq!(code, 69, "{told}");
    assert!(told.contains("mainstay key new") && told.contains("none.json"), "{told}");
}

#[test]
fn wrong_settings_of_an_issuer_are_told() {
    for (settings, told) in [
        (&["access.jwt.issuer=x", "access.jwt.jwks_file=f"][..], "access.jwt.audience"),
        (&["access.jwt.issuer=x", "access.jwt.audience=a"], "access.jwt.jwks_file"),
        (
            &["access.jwt.issuer=x", "access.jwt.audience=a", "access.jwt.jwks_url=http://issuer.example/keys"],
            "who changes",
        ),
        (
            &[
                "access.jwt.issuer=x",
                "access.jwt.audience=a",
                "access.jwt.jwks_url=http://127.0.0.1:80@issuer.example/",
            ],
            "who changes",
        ),
        (
            &[
                "access.jwt.issuer=x",
                "access.jwt.audience=a",
                "access.jwt.jwks_url=https://issuer.example/",
                "access.jwt.jwks_ca=Cargo.toml",
            ],
            "Cargo.toml cannot be used: it holds no certificate",
        ),
        (
            &[
                "access.jwt.issuer=x",
                "access.jwt.audience=a",
                "access.jwt.jwks_file=f",
                "access.jwt.jwks_ca=Cargo.toml",
            ],
            "is for a jwt.jwks_url with https",
        ),
        (&["access.jwt.algorithms=[\"HS256\"]"], "unknown variant"),
        (&["access.rate_per_sec=2000000"], "at most 1000000"),
    ] {
        let error = config(settings).expect_err(told).to_string();
        assert!(error.contains(told), "{settings:?}: {error}");
    }
    let right = ["access.jwt.issuer=x", "access.jwt.audience=a", "access.jwt.jwks_url=http://127.0.0.1:80/keys"];
    config(&right).expect("a legal configuration");
}
