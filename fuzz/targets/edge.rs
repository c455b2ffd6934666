//! Any method, address, headers and body, on both planes: what is wrong with a request is told to who sent it, and is nobody's failure. An
//! input is a request as people write it: `data POST /v1/score`, a line for each header, an empty line, the body.

use axum::body::Body;
use axum::http::header::{HeaderName, HeaderValue};
use axum::http::{Method, Request, Uri};

use super::service::SERVICE;

/// Copies the ledger to where the caller says: not to be done at random.
const NOT_ASKED: &str = "backup";

pub(super) fn run(input: &[u8]) {
    let Some((is_admin, request)) = request(input) else { return };
    if request.uri().path().contains(NOT_ASKED) {
        return;
    }
    let asked = format!("{} {}", request.method(), request.uri());
    let answer = SERVICE.send(is_admin, request);
    let id = answer.header("x-request-id");
    assert!(!id.is_empty(), "{asked}: an answer without x-request-id");
    match answer.status {
        503 => assert!(answer.headers.contains_key("retry-after"), "{asked}: when to come again is not told"),
        status => assert!(status < 500, "{asked}: {status}: {}", answer.text()),
    }
    if answer.header("content-type") != "application/problem+json" || answer.body.is_empty() {
        return;
    }
    let problem = answer.json();
    assert_eq!(problem["status"], answer.status, "{asked}");
    assert_eq!(problem["request_id"], id, "{asked}");
    let code = problem["code"].as_str().expect("a code");
    assert_eq!(problem["type"], format!("urn:mainstay:problem:{code}"));
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.len() < 4_096), "{asked}: {problem}");
}

fn request(input: &[u8]) -> Option<(bool, Request<Body>)> {
    let mut lines = input.splitn(2, |byte| *byte == b'\n');
    let mut words = lines.next()?.splitn(3, |byte| *byte == b' ');
    let is_admin = words.next()? == b"admin";
    let method = Method::from_bytes(words.next()?).ok()?;
    let address = String::from_utf8_lossy(words.next()?).replace("DECISION", &SERVICE.decision);
    let uri = Uri::try_from(address).ok().filter(|uri| uri.path().starts_with('/'))?;
    let mut request = Request::builder().method(method).uri(uri);
    let mut rest = lines.next().unwrap_or_default();
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, behind) = (&rest[..end], &rest[end + 1..]);
        rest = behind;
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { break };
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        request = request.header(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
    }
    Some((is_admin, request.body(Body::from(rest.to_vec())).ok()?))
}
