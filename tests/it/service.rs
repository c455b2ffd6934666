//! A running service to test against, and how to speak to it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::thread::JoinHandle;
use std::time::Duration;

use mainstay::app::App;
use mainstay::config::{Config, Sources};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// A service with both bundled models.
pub(crate) struct Service {
    pub(crate) data: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// The directory of its ledger.
    pub(crate) ledger: std::path::PathBuf,
    _directory: Option<tempfile::TempDir>,
    pub(crate) reload: tokio::sync::mpsc::Sender<Config>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The service that tests share which change nothing about it.
pub(crate) fn shared() -> &'static Service {
    static SERVICE: LazyLock<Service> = LazyLock::new(|| Service::start(&[]));
    &SERVICE
}

/// The configuration of the tests: defaults, the environment, free ports, nothing that follows from what else the machine does, and `overrides`
/// as `KEY=VALUE`.
pub(crate) fn config(overrides: &[&str]) -> Result<Config, mainstay::config::Error> {
    let own = [
        "http.listen=127.0.0.1:0",
        "admin.listen=127.0.0.1:0",
        // A machine that is busy with other tests is no overload: who tests that says so.
        "server.queue_target_ms=0",
        // The shadow and the measures, for which tests wait, would get a hundredth of a processor beside those.
        "limits.nice_max=0",
        // And a row may have to wait for its turn.
        "models.probe_row_p99_us_max=30000000",
    ];
    let flags = own.iter().chain(overrides).map(|flag| (*flag).to_owned()).collect();
    Config::load(&Sources::of_process(None, flags))
}

impl Service {
    /// A service of its own, for a test that changes it or needs other settings.
    pub(crate) fn start(overrides: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut service = Self::start_in(directory.path(), overrides);
        service._directory = Some(directory);
        service
    }

    /// The same with its ledger in `ledger`, which outlives it.
    pub(crate) fn start_in(ledger: &std::path::Path, overrides: &[&str]) -> Self {
        let dir = format!("ledger.dir={}", ledger.display());
        let overrides = [&[dir.as_str()], overrides].concat();
        let app = App::start(config(&overrides).expect("a legal configuration")).expect("a service");
        let (data, admin) = (app.data_address(), app.admin_address());
        let (stop, stopped) = oneshot::channel::<()>();
        let (reload, reloads) = tokio::sync::mpsc::channel(1);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let stop = async {
                let _ = stopped.await;
            };
            runtime.block_on(app.run(stop, reloads));
        });
        Self {
            data,
            admin,
            ledger: ledger.to_owned(),
            _directory: None,
            reload,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Tells the service to stop, as SIGTERM does, and goes on at once.
    pub(crate) fn begin_stop(&mut self) {
        self.stop.take();
    }

    /// Waits until the service has stopped.
    pub(crate) fn wait(&mut self) {
        self.begin_stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a clean stop");
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(Method::GET, format!("http://{}{path}", self.data), &[], Vec::new()).await
    }

    pub(crate) async fn get_admin(&self, path: &str) -> Answer {
        send(Method::GET, format!("http://{}{path}", self.admin), &[], Vec::new()).await
    }

    pub(crate) async fn post_admin(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let headers = [&[("content-type", "application/json")], headers].concat();
        send(Method::POST, format!("http://{}{path}", self.admin), &headers, body.to_string().into()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_raw(path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub(crate) async fn post_raw(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
        send(Method::POST, format!("http://{}{path}", self.data), headers, body.into()).await
    }

    pub(crate) async fn call(&self, method: Method, path: &str) -> Answer {
        send(method, format!("http://{}{path}", self.data), &[], Vec::new()).await
    }

    /// Waits until the service is answering `count` requests, besides the one that asks.
    pub(crate) async fn wait_in_flight(&self, count: usize) {
        let line = format!("mainstay_http_requests_in_flight {}", count + 1);
        until(async || self.get_admin("/metrics").await.text.lines().any(|found| found == line)).await;
    }

    /// A connection to write on by hand.
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.data).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        stream
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.wait();
    }
}

/// An answer, read to its end.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// The stable code of a problem, after a check of what every problem has.
    pub(crate) fn code(&self) -> String {
        let problem = self.json();
        assert_eq!(self.header("content-type"), "application/problem+json", "{problem}");
        assert_eq!(problem["status"], self.status, "{problem}");
        assert_eq!(problem["request_id"], self.header("x-request-id"), "{problem}");
        let code = problem["code"].as_str().expect("a code").to_owned();
        assert_eq!(problem["type"], format!("urn:mainstay:problem:{code}"));
        code
    }
}

pub(crate) async fn send(method: Method, url: String, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().expect("a client");
    let request =
        headers.iter().fold(client.request(method, url), |request, (name, value)| request.header(*name, *value));
    let response = request.body(body).send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, text: response.text().await.expect("text") }
}

/// Asks until the answer is yes; fails after two minutes, which a busy machine may need, so that a wrong answer is not a test that hangs.
pub(crate) async fn until(condition: impl AsyncFn() -> bool) {
    let asked = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), asked).await.expect("it did not come about");
}

/// Writes `text` on a fresh connection and reads until the other side closes it.
pub(crate) fn raw(service: &Service, text: &[u8]) -> String {
    let mut stream = service.connect();
    stream.write_all(text).expect("written");
    read_to_end(&mut stream)
}

/// Everything until the other side closes.
pub(crate) fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("read");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A legal customer of telco-churn.
pub(crate) fn customer() -> Value {
    serde_json::from_str(include_str!("../data/customer.json")).expect("JSON")
}

/// The same with one feature changed; `Null` for a missing one.
pub(crate) fn customer_with(feature: &str, value: Value) -> Value {
    let mut customer = customer();
    customer["features"][feature] = value;
    customer
}

/// The golden rows of a bundle, as (customer, score).
pub(crate) fn golden(bundle: &str) -> Vec<(Value, f64)> {
    let text = std::fs::read_to_string(format!("models/{bundle}/golden.json")).expect("golden rows");
    let golden: Value = serde_json::from_str(&text).expect("JSON");
    let rows = golden["rows"].as_array().expect("rows").iter().enumerate();
    rows.map(|(at, row)| {
        (
            json!({"customer_id": format!("G-{at}"), "features": row["features"]}),
            row["score"].as_f64().expect("a score"),
        )
    })
    .collect()
}
