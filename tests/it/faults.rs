//! Callers that are broken or mean harm: each is got rid of within its bound, what it took is given back, and meanwhile others are answered.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use mainstay::engine::Engine;
use mainstay::http::{self, Listener, Server, Shared};
use mainstay::model::Runtime;
use mainstay::telemetry::Metrics;
use reqwest::Method;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

use crate::deadline::metric;
use crate::service::{Service, config, customer, raw, read_to_end, send, shared, until};

const GET: &[u8] = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";

/// Until so many connections are open, besides the one that asks.
async fn connections(service: &Service, count: f64) {
    until(async || metric(service, "mainstay_http_connections").await == count + 1.0).await;
}

#[tokio::test]
async fn slow_heads_are_closed_and_others_are_answered_meanwhile() {
    let service = Service::start(&["server.head_timeout_ms=1500"]);
    let mut slow: Vec<TcpStream> = (0..200).map(|_| service.connect()).collect();
    for stream in &mut slow {
        stream.write_all(b"POST /v1/score HTTP/1.1\r\nhost: x\r\nx-").expect("written");
    }
    connections(&service, 200.0).await;
    // Each byte is a sign of life, and none is a head.
    let mut drips = 0;
    while slow.iter_mut().all(|stream| stream.write_all(b"a").is_ok()) {
        assert_eq!(service.post("/v1/score", &customer()).await.status, 200);
        drips += 1;
        assert!(drips < 10_000, "they may go on for ever");
    }
    connections(&service, 0.0).await;
}

#[tokio::test]
async fn slow_bodies_are_given_up_and_others_are_answered_meanwhile() {
    let service = Service::start(&["limits.body_timeout_ms=1500", "server.workers=1"]);
    let head = "POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 60000\r\nconnection: close\r\n\r\n{";
    let mut slow: Vec<TcpStream> = (0..100).map(|_| service.connect()).collect();
    for stream in &mut slow {
        stream.write_all(head.as_bytes()).expect("written");
    }
    service.wait_in_flight(100).await;
    assert_eq!(service.post("/v1/score", &customer()).await.status, 200);
    for stream in &mut slow {
        let answer = read_to_end(stream);
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    connections(&service, 0.0).await;
}

#[tokio::test]
async fn a_connection_that_is_kept_and_not_used_is_closed() {
    let service = Service::start(&["server.head_timeout_ms=200"]);
    let mut stream = service.connect();
    stream.write_all(GET).expect("written");
    let answer = read_to_end(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    connections(&service, 0.0).await;
}

/// HTTP/2 keeps connections by pings, which a client answers by itself: for as long as a request is there, and not for longer.
#[tokio::test]
async fn an_http2_connection_without_a_stream_is_closed_and_one_with_a_stream_is_not() {
    let service = Service::start(&["server.head_timeout_ms=300", "limits.body_timeout_ms=60000"]);
    let client = || reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
    // A row that comes much later than a connection may stay idle.
    let (row, rows) = tokio::sync::mpsc::channel::<Result<String, std::convert::Infallible>>(1);
    let rows = futures_util::stream::unfold(rows, async |mut rows| rows.recv().await.map(|row| (row, rows)));
    let url = format!("http://{}/v1/score/batch", service.data);
    let request = client().post(url).header("content-type", "application/x-ndjson");
    let answer = tokio::spawn(request.body(reqwest::Body::wrap_stream(rows)).send());
    connections(&service, 1.0).await;
    let idle = client();
    let ask = async || idle.get(format!("http://{}/livez", service.data)).send().await.expect("an answer").status();
    for _ in 0..3 {
        assert_eq!(ask().await, 200, "on a connection of its own, whenever the one before was closed");
        connections(&service, 1.0).await;
    }
    row.send(Ok(format!("{}\n", customer()))).await.expect("taken");
    drop(row);
    let answer = answer.await.expect("asked").expect("an answer");
    assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_2));
    assert!(answer.text().await.expect("a row").contains("decision_id"));
    connections(&service, 0.0).await;
}

/// Answers that nobody reads fill the buffers of the kernel, and then would wait in ours without end.
#[tokio::test]
async fn who_asks_and_does_not_read_is_closed() {
    let service = Service::start(&["server.unread_timeout_ms=500", "server.workers=1"]);
    let mut stream = service.connect();
    stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    // Until the answers are in the way of the requests.
    let asked = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(50);
    while stream.write_all(&asked).is_ok() {}
    assert_eq!(service.get("/livez").await.status, 200);
    connections(&service, 0.0).await;
    assert_eq!(metric(&service, "mainstay_http_requests_in_flight").await, 1.0, "only who asks");
}

#[tokio::test]
async fn garbage_in_a_pipeline_ends_its_connection_alone() {
    let good = String::from_utf8_lossy(GET);
    for garbage in [
        "\u{0}\u{1}\u{2}\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "\u{16}\u{3}\u{1}\r\n\r\n",
        "POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-length: 1, 2\r\n\r\n",
    ] {
        let answer = raw(shared(), format!("{good}{good}{garbage}{good}").as_bytes());
        let count = |status: &str| answer.matches(&format!("HTTP/1.1 {status} ")).count();
        assert_eq!((count("200"), count("400")), (2, 1), "{garbage:?}: {answer}");
    }
    // Two lengths in disagreement are how requests are smuggled.
    let both = "POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}";
    assert!(raw(shared(), both.as_bytes()).starts_with("HTTP/1.1 400 "));
    let many: String = (0..200).map(|at| format!("x-{at}: 1\r\n")).collect();
    let answer = raw(shared(), format!("GET /livez HTTP/1.1\r\nhost: x\r\n{many}\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(shared().get("/livez").await.status, 200);
}

#[tokio::test]
async fn json_that_is_made_to_hurt_is_refused() {
    let json = [("content-type", "application/json")];
    let keys: String = (0..9_000).map(|at| format!("\"{at}\":0,")).collect();
    let number = "9".repeat(60_000);
    for (body, status) in [
        ("[".repeat(60_000), 400),
        ("{\"a\":".repeat(10_000), 400),
        (format!("{{{keys}\"z\":0}}"), 413),
        (format!("{{{}\"z\":0}}", &keys[..keys.len() / 2]), 400),
        (format!("{{\"customer_id\":{number}}}"), 400),
        (format!("\"{}", "\\u0000".repeat(10_000)), 400),
    ] {
        let answer = shared().post_raw("/v1/score", &json, body).await;
        assert!(answer.status == status || answer.status == 422, "{}: {}", answer.status, answer.text);
        assert!(answer.text.len() < 16_384, "an answer is bounded: {}", answer.text.len());
    }
}

#[tokio::test]
async fn connects_in_a_row_leave_nothing_behind() {
    let service = Service::start(&[]);
    for _ in 0..1_000 {
        drop(service.connect());
    }
    let idle: Vec<TcpStream> = (0..300).map(|_| service.connect()).collect();
    connections(&service, 300.0).await;
    assert_eq!(service.post("/v1/score", &customer()).await.status, 200);
    drop(idle);
    connections(&service, 0.0).await;
}

/// One frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// `POST /v1/score` over http, in HPACK without a table.
const POST_SCORE: &[u8] = b"\x83\x86\x04\x09/v1/score\x01\x01x";

/// Whether a GOAWAY comes before the end.
fn is_told_to_go(stream: &mut TcpStream) -> bool {
    let mut bytes = Vec::new();
    // It may end with a reset.
    let _ = stream.read_to_end(&mut bytes);
    let mut rest = &bytes[..];
    while rest.len() >= 9 {
        let len = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        if rest[3] == GOAWAY {
            return true;
        }
        rest = rest.get(9 + len..).unwrap_or_default();
    }
    false
}

#[tokio::test]
async fn rapid_resets_end_their_connection_and_leave_nothing_behind() {
    let service = Service::start(&["server.workers=1"]);
    let mut stream = service.connect();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).expect("written");
    let attack: Vec<u8> = (0..10_000)
        .flat_map(|at| {
            let number = 2 * at + 1;
            let reset = frame(RST_STREAM, 0, number, &8_u32.to_be_bytes());
            [frame(HEADERS, END_HEADERS, number, POST_SCORE), reset].concat()
        })
        .collect();
    // It is closed in the middle.
    let _ = stream.write_all(&attack);
    assert_eq!(service.post("/v1/score", &customer()).await.status, 200);
    assert!(is_told_to_go(&mut stream), "it may go on for ever");
    drop(stream);
    connections(&service, 0.0).await;
    assert_eq!(metric(&service, "mainstay_http_requests_in_flight").await, 1.0, "only who asks");
}

#[tokio::test]
async fn headers_without_end_are_refused() {
    let service = Service::start(&["server.workers=1"]);
    let mut stream = service.connect();
    let begun = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 0, 1, POST_SCORE)].concat();
    stream.write_all(&begun).expect("written");
    let more =
        frame(CONTINUATION, 0, 1, &b"\x00\x01a\x7f\x81\x00".iter().copied().chain([b'x'; 256]).collect::<Vec<_>>());
    for _ in 0..100_000 {
        if stream.write_all(&more).is_err() {
            break;
        }
    }
    let _ = is_told_to_go(&mut stream);
    drop(stream);
    connections(&service, 0.0).await;
    assert_eq!(service.get("/livez").await.status, 200);
}

#[tokio::test]
async fn both_versions_are_served_without_tls() {
    let url = format!("http://{}/v1/score", shared().data);
    for (client, version) in [
        (reqwest::Client::builder().http1_only(), reqwest::Version::HTTP_11),
        (reqwest::Client::builder().http2_prior_knowledge(), reqwest::Version::HTTP_2),
    ] {
        let request = client.build().expect("a client").post(&url).json(&customer());
        let answer = request.send().await.expect("an answer");
        assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
        assert!(answer.headers().contains_key("x-request-id"));
    }
}

/// The program itself, in a process whose descriptors can be counted and bounded.
struct Process {
    child: Child,
    data: SocketAddr,
    admin: SocketAddr,
    logged: String,
    _ledger: tempfile::TempDir,
}

impl Process {
    /// Started with at most so many descriptors.
    fn start(descriptors: usize) -> Self {
        let ledger = tempfile::tempdir().expect("a directory");
        let dir = format!("ledger.dir={}", ledger.path().display());
        let line = format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &line, env!("CARGO_BIN_EXE_mainstay"), "serve", "--set", &dir]);
        command.args(["--set", "http.listen=127.0.0.1:0", "--set", "admin.listen=127.0.0.1:0"]);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a start");
        let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
        let mut logged = String::new();
        let ready = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it did not start: {logged}")).expect("text");
            logged += &line;
            match serde_json::from_str::<Value>(&line) {
                Ok(line) if line["message"] == "ready" => break line,
                _ => {}
            }
        };
        // A full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        let address = |key: &str| ready[key].as_str().and_then(|text| text.parse().ok()).expect("an address");
        Self { data: address("http"), admin: address("admin"), child, logged, _ledger: ledger }
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("a process").count()
    }

    /// Processor time so far, in ticks of 10 ms.
    fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("a process");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
    }

    async fn is_ready(&self) -> bool {
        send(Method::GET, format!("http://{}/readyz", self.data), &[], Vec::new()).await.status == 200
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn callers_cannot_take_the_descriptors_of_the_ledger_and_the_operators() {
    let process = Process::start(128);
    assert!(process.logged.contains("fewer connections than server.connections_max"), "{}", process.logged);
    let before = process.descriptors();
    let mut open: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(process.data).expect("a connection")).collect();
    // Who is one too many is told by a closed connection, and does not wait in vain.
    let last = open.last_mut().expect("a connection");
    last.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    assert!(matches!(last.read(&mut [0; 1]), Ok(0) | Err(_)));
    assert_eq!(send(Method::GET, format!("http://{}/readyz", process.admin), &[], Vec::new()).await.status, 200);
    drop(open);
    until(async || process.descriptors() <= before + 1).await;
    assert!(process.is_ready().await);
}

#[tokio::test]
async fn without_a_descriptor_the_service_waits_and_does_not_spin() {
    let process = Process::start(1024);
    assert!(process.is_ready().await);
    let child = Pid::from_raw(process.child.id() as i32).expect("a process");
    let scarce = Rlimit { current: Some(process.descriptors() as u64 + 8), maximum: Some(1024) };
    let before = prlimit(Some(child), Resource::Nofile, scarce).expect("bounded");
    let mut admin = TcpStream::connect(process.admin).expect("a connection");
    admin.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let failed = |admin: &mut TcpStream| {
        admin.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").expect("written");
        let mut text = String::new();
        let mut buffer = [0; 65_536];
        while !text.contains("mainstay_build_info{") {
            let count = admin.read(&mut buffer).expect("an answer");
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        text.contains("mainstay_http_accepts_failed_total ")
    };
    assert!(!failed(&mut admin));
    let open: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(process.data).expect("a connection")).collect();
    let begun = Instant::now();
    while !failed(&mut admin) {
        assert!(begun.elapsed() < Duration::from_secs(30), "nothing was refused");
    }
    let (begun, ticks) = (Instant::now(), process.ticks());
    while begun.elapsed() < Duration::from_millis(300) {
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let spent = process.ticks() - ticks;
    assert!(spent < 15, "{spent} ticks of processor time in 30: it spins");
    drop(open);
    prlimit(Some(child), Resource::Nofile, before).expect("as before");
    until(async || process.is_ready().await).await;
}

static FAILS: AtomicBool = AtomicBool::new(false);

/// A clock that fails once it is told to.
fn clock() -> SystemTime {
    assert!(!FAILS.load(Ordering::Relaxed), "a fault in the middle of a request");
    SystemTime::now()
}

#[tokio::test]
async fn a_panic_ends_one_request_and_is_counted() {
    let config = config(&["ledger.promise=off"]).expect("a legal configuration");
    let runtime = Runtime::load(&config.runtime.library).expect("the library");
    let metrics = Arc::new(Metrics::new());
    let mut setup = mainstay::app::setup(&config, runtime, metrics.clone(), None).expect("a setup");
    setup.clock = clock;
    let engine = Arc::new(Engine::open(setup).expect("legal bundles"));
    let shared = Shared::new(engine, config.limits.clone(), 0.0, runtime.build_info(), None);
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let router = http::data_plane(&shared);
    let listener = Listener { socket, tls: None };
    let server = Server::start("http", listener, router, &config.server, 1, None, &metrics).expect("a server");
    let url = format!("http://{}/v1/score", server.address());
    // All over one connection: it survives too.
    let client = reqwest::Client::new();
    let ask = async |body: &Value| {
        let answer = client.post(&url).json(body).send().await.expect("an answer");
        (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON"))
    };
    assert_eq!(ask(&customer()).await.0, 200);
    FAILS.store(true, Ordering::Relaxed);
    let (status, problem) = ask(&customer()).await;
    assert_eq!((status, problem["code"].as_str()), (500, Some("internal")));
    assert!(!problem.to_string().contains("a fault"), "{problem}");
    let batch = client.post(format!("{url}/batch")).json(&json!([customer()])).send().await.expect("an answer");
    assert_eq!(batch.status().as_u16(), 500, "on a thread for long work too");
    let lines = client.post(format!("{url}/batch")).header("content-type", "application/x-ndjson");
    let lines = lines.body(customer().to_string()).send().await.expect("a head").text().await.expect("an end");
    assert!(
        lines.contains("\"internal\"") && lines.ends_with('\n'),
        "a stream that has begun says so and ends: {lines}"
    );
    FAILS.store(false, Ordering::Relaxed);
    assert_eq!(ask(&customer()).await.0, 200);
    let text = metrics.render();
    assert!(text.lines().any(|line| line == "mainstay_panics_total 3"), "{text}");
    server.stop(Duration::from_secs(5));
}
