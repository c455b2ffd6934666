//! One HTTP request to a running service, by hand: the program needs no client otherwise.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context;
use rustls::{ClientConnection, StreamOwned};

use super::door::Door;

/// How long a move may take: a large model with a long replay takes minutes.
const PATIENCE: Duration = Duration::from_secs(600);
/// The largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// What the service refused, in its own words.
#[derive(Debug, thiserror::Error)]
#[error("{title}: {detail}{list}", list = reasons.iter().map(|reason| format!("\n  - {reason}")).collect::<String>())]
pub(super) struct Refused {
    title: String,
    detail: String,
    reasons: Vec<String>,
}

/// Posts `body` to a plane, with a key for a request that is to be done once: the answer.
///
/// Errors: [`Refused`] with what the service says.
pub(super) fn post(door: &Door, path: &str, body: &str, key: Option<&str>) -> anyhow::Result<String> {
    let key = key.map_or(String::new(), |key| format!("idempotency-key: {key}\r\n"));
    checked(call(door, "POST", path, &key, body, PATIENCE)?)
}

/// Gets `path` from a plane.
pub(super) fn get(door: &Door, path: &str) -> anyhow::Result<String> {
    checked(call(door, "GET", path, "", "", PATIENCE)?)
}

fn checked((status, answer): (u16, String)) -> anyhow::Result<String> {
    if status == 200 {
        return Ok(answer);
    }
    let problem: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
    let text = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
    let list = |name: &str| problem[name].as_array().cloned().unwrap_or_default();
    let mut reasons: Vec<String> = list("reasons").iter().filter_map(|reason| Some(reason.as_str()?.into())).collect();
    let told = |error: &serde_json::Value| {
        let [place, detail] = ["pointer", "detail"].map(|name| error[name].as_str().unwrap_or_default());
        format!("{place} {detail}").trim_start().to_owned()
    };
    reasons.extend(list("errors").iter().map(told));
    let title = if problem.is_null() { format!("the service answered {status}") } else { text("title") };
    Err(Refused { title, detail: text("detail"), reasons }.into())
}

/// The status and the body; `headers` are whole lines, and the credentials are those of the door.
pub(super) fn call(
    door: &Door,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
    patience: Duration,
) -> anyhow::Result<(u16, String)> {
    let address = door.address;
    let connect = TcpStream::connect_timeout(&address, Duration::from_secs(2));
    let stream = connect.with_context(|| format!("nothing listens on {address}: does the service run?"))?;
    stream.set_read_timeout(Some(patience))?;
    let credentials = door.key.as_ref().map_or(String::new(), |key| format!("authorization: Bearer {key}\r\n"));
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{credentials}{headers}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = format!("{head}{body}");
    let answer = match &door.tls {
        None => exchange(stream, &request),
        Some((name, config)) => {
            exchange(StreamOwned::new(ClientConnection::new(config.clone(), name.clone())?, stream), &request)
        }
    };
    let answer = answer.with_context(|| format!("no answer from {address}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP from {address}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.with_context(|| format!("no HTTP from {address}"))?, body.to_owned()))
}

/// Writes `request`, and reads until the other side closes.
fn exchange(mut stream: impl Read + Write, request: &str) -> std::io::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}
