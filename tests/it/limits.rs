//! Bounds of load and time: what is over them is told to wait, and the rest is answered.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::service::{Service, customer, raw, read_to_end, until};

const HEAD: &str = "POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 400\r\nconnection: close\r\n\r\n{";

#[tokio::test]
async fn a_request_too_many_is_shed_and_health_still_answers() {
    let service = Service::start(&["limits.in_flight_max=1", "server.workers=1"]);
    let mut slow = service.connect();
    slow.write_all(HEAD.as_bytes()).expect("written");
    service.wait_in_flight(1).await;
    let answer = service.post("/v1/score", &customer()).await;
    assert_eq!((answer.status, answer.code().as_str(), answer.header("retry-after")), (503, "overloaded", "1"));
    assert_eq!((service.get("/livez").await.status, service.get("/readyz").await.status), (200, 200));
    drop(slow);
    until(async || service.post("/v1/score", &customer()).await.status == 200).await;
}

/// Begins to send `content_type` to `path`, and does not go on.
fn stalled(service: &Service, path: &str, content_type: &str) -> TcpStream {
    let mut slow = service.connect();
    let head = HEAD.replace("/v1/score", path).replace("application/json", content_type);
    slow.write_all(head.as_bytes()).expect("written");
    slow
}

/// A stream that has begun to be answered, and of which no row comes.
fn stalled_stream(service: &Service) -> TcpStream {
    let mut slow = stalled(service, "/v1/score/batch", "application/x-ndjson");
    let mut status = [0; 12];
    slow.read_exact(&mut status).expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 200");
    slow
}

/// Batches that are sent until this is dropped.
pub(crate) struct Batches(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Batches {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn send_again(url: String, body: String) {
    let json = [("content-type", "application/json")];
    loop {
        crate::service::send(Method::POST, url.clone(), &json, body.clone().into()).await;
    }
}

/// Keeps the only place for long work of `service` taken by batches of `customer`: of several that wait for it one has it next. They need
/// `limits.batch_wait_ms_max` to wait.
pub(crate) async fn hold_long_work(service: &Service, customer: &Value) -> Batches {
    let url = format!("http://{}/v1/score/batch", service.data);
    let body = json!(vec![customer; 1_000]).to_string();
    let batches = Batches((0..4).map(|_| tokio::spawn(send_again(url.clone(), body.clone()))).collect());
    service.wait_in_flight(4).await;
    until(async || service.post("/v1/score?counterfactuals=1", customer).await.status == 503).await;
    batches
}

#[tokio::test]
async fn a_batch_too_many_is_shed() {
    let service = Service::start(&["limits.batches_max=1", "limits.batch_wait_ms_max=1"]);
    let _batches = hold_long_work(&service, &customer()).await;
    let shed = async {
        loop {
            let answer = service.post("/v1/score/batch", &json!([])).await;
            if answer.status != 200 {
                return answer;
            }
        }
    };
    let answer = tokio::time::timeout(Duration::from_secs(30), shed).await.expect("none was shed");
    assert_eq!((answer.status, answer.code().as_str(), answer.header("retry-after")), (503, "overloaded", "1"));
    assert_eq!(service.post("/v1/score", &customer()).await.status, 200);
}

/// Only who is worked on has a place, and not who sends a row now and then.
#[tokio::test]
async fn who_sends_slowly_keeps_nobody_out() {
    let service = Service::start(&["limits.batches_max=1", "limits.readings_max=1"]);
    let _stream = stalled_stream(&service);
    let _array = stalled(&service, "/v1/score/batch", "application/json");
    let _outcomes = stalled(&service, "/v1/outcomes", "application/json");
    service.wait_in_flight(2).await;
    assert_eq!(service.post("/v1/score/batch", &json!([customer()])).await.status, 200);
    assert_eq!(service.post("/v1/score?counterfactuals=1", &customer()).await.status, 200);
    let line = format!("{}\n", customer());
    let answer = service.post_raw("/v1/score/batch", &[("content-type", "application/x-ndjson")], line).await;
    assert!(answer.text.contains("decision_id"), "{}", answer.text);
    assert_eq!(service.get("/v1/decisions?customer_id=C-1001").await.status, 200);
}

/// Each counts for 64 KiB and what came of it: there is memory for three more of them here, and a byte short of a fourth.
#[tokio::test]
async fn bodies_that_are_open_are_bounded_by_what_they_hold() {
    let service = Service::start(&["limits.batch_body_bytes_max=65536", "limits.intake_bytes_max=262144"]);
    let streams: Vec<TcpStream> = (0..3).map(|_| stalled_stream(&service)).collect();
    // Answers begin before bodies are read.
    until(async || service.post("/v1/score/batch", &json!([])).await.status == 503).await;
    for path in ["/v1/score/batch", "/v1/outcomes"] {
        let answer = service.post(path, &json!([])).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"), "{path}");
    }
    assert_eq!(service.post("/v1/score", &customer()).await.status, 200);
    drop(streams);
    until(async || service.post("/v1/score/batch", &json!([])).await.status == 200).await;
    // What is too little for the largest batch is told before anything is served.
    let told = crate::service::config(&["limits.intake_bytes_max=1000000"]).err().map(|error| error.to_string());
    assert!(told.as_ref().is_some_and(|told| told.contains("33685504, or more")), "{told:?}");
}

#[test]
fn a_body_that_stalls_is_given_up() {
    let service = Service::start(&["limits.body_timeout_ms=50"]);
    let answer = raw(&service, HEAD.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("request_timeout"), "{answer}");
    let answer = raw(
        &service,
        HEAD.replace("/v1/score", "/v1/score/batch").replace("application/json", "application/x-ndjson").as_bytes(),
    );
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("request_timeout"), "{answer}");
}

/// Bytes that come again and again are not yet a row.
#[test]
fn a_stream_that_drips_is_given_up_and_one_of_whole_lines_is_not() {
    let service = Service::start(&["limits.body_timeout_ms=600"]);
    let head = "POST /v1/score/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\ncontent-length: 60\r\nconnection: close\r\n\r\n";
    let drip = |byte: &[u8]| {
        let mut stream = service.connect();
        stream.write_all(head.as_bytes()).expect("written");
        stream.set_read_timeout(Some(Duration::from_millis(20))).expect("set");
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        for _ in 0..60 {
            let _ = stream.write_all(byte);
            // Who waits for an answer in vain has waited long enough for the next byte.
            let count = stream.read(&mut buffer).unwrap_or(0);
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
            if text.contains("request_timeout") {
                break;
            }
        }
        text
    };
    assert!(drip(b"x").contains("request_timeout"), "twice as long as a row may take");
    let text = drip(b"\n");
    assert!(text.starts_with("HTTP/1.1 200 ") && !text.contains("request_timeout"), "{text}");
}

#[test]
fn a_head_that_stalls_or_is_too_large_is_given_up() {
    let service = Service::start(&["server.head_timeout_ms=50"]);
    let answer = raw(&service, b"POST /v1/score HTTP/1.1\r\nhost: x\r\n");
    assert!(!answer.contains("200"), "{answer}");
    let huge = format!("GET /livez HTTP/1.1\r\nhost: x\r\nx-much: {}\r\n\r\n", "x".repeat(40_000));
    let mut stream = service.connect();
    // The other side may close before it has read everything.
    let _ = stream.write_all(huge.as_bytes());
    let answer = std::panic::catch_unwind(move || read_to_end(&mut stream)).unwrap_or_default();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[test]
fn a_connection_that_says_nothing_is_given_up() {
    let service = Service::start(&["server.head_timeout_ms=50"]);
    assert_eq!(raw(&service, b""), "");
}

/// As long as nobody can tell which HTTP it is, nothing of hyper's has a deadline.
#[test]
fn a_beginning_that_fits_both_versions_and_stalls_is_given_up() {
    let service = Service::start(&["server.head_timeout_ms=50"]);
    for address in [service.data, service.admin] {
        for begun in ["P", "PRI * HT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
            let mut stream = TcpStream::connect(address).expect("a connection");
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
            stream.write_all(begun.as_bytes()).expect("written");
            assert_eq!(read_to_end(&mut stream), "", "{begun:?}");
        }
    }
}

#[test]
fn a_beginning_that_stalls_does_not_hold_up_a_stop() {
    let mut service = Service::start(&["drain.timeout_ms=60000"]);
    let mut streams = [service.connect(), service.connect()];
    for (stream, begun) in streams.iter_mut().zip(["P", "PRI * HT"]) {
        stream.write_all(begun.as_bytes()).expect("written");
    }
    let begun = Instant::now();
    service.wait();
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

/// What was read to tell the version is not lost to whoever serves it.
#[test]
fn a_beginning_in_pieces_is_served_by_what_it_says() {
    let service = Service::start(&[]);
    let mut stream = service.connect();
    stream.set_nodelay(true).expect("at once");
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        stream.write_all(&[*byte]).expect("written");
    }
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).expect("a frame");
    assert_eq!(frame[3], 4, "SETTINGS come first");
    let mut stream = service.connect();
    stream.set_nodelay(true).expect("at once");
    for byte in b"PUT /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" {
        stream.write_all(&[*byte]).expect("written");
    }
    let answer = read_to_end(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}

#[test]
fn a_connection_too_many_is_closed() {
    let service = Service::start(&["server.connections_max=1"]);
    let mut first = service.connect();
    first.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").expect("written");
    let mut buffer = [0; 16];
    std::io::Read::read_exact(&mut first, &mut buffer).expect("an answer");
    assert_eq!(&buffer, b"HTTP/1.1 200 OK\r");
    let mut second = service.connect();
    let closed = std::io::Read::read(&mut second, &mut buffer);
    assert!(matches!(closed, Ok(0)) || closed.is_err(), "{closed:?}");
}
