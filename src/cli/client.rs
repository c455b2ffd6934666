//! One HTTP request to a running service, by hand: the program needs no client otherwise.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::Configured;

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

/// The admin plane of a running service, and as whom it is asked.
#[derive(Debug, Args)]
pub(super) struct Reach {
    /// The file with the API key, where the service asks for one; else it is taken from MAINSTAY_API_KEY
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    configured: Configured,
}

/// The same once the configuration is read.
pub(super) struct Plane {
    address: SocketAddr,
    key: Option<String>,
}

impl Reach {
    pub(super) fn plane(&self) -> anyhow::Result<Plane> {
        let key = match &self.key_file {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                Some(text.trim().to_owned())
            }
            None => std::env::var("MAINSTAY_API_KEY").ok().filter(|key| !key.is_empty()),
        };
        if key.as_ref().is_some_and(|key| !key.bytes().all(|byte| byte.is_ascii_graphic())) {
            anyhow::bail!("the API key has characters that none has");
        }
        Ok(Plane { address: self.configured.clone().load()?.admin.listen, key })
    }
}

impl Plane {
    /// Whether there is a key, so that the service knows who asks.
    pub(super) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Posts `body`, with a key for a request that is to be done once: the answer.
    ///
    /// Errors: [`Refused`] with what the service says.
    pub(super) fn post(&self, path: &str, body: &str, key: Option<&str>) -> anyhow::Result<String> {
        let key = key.map_or(String::new(), |key| format!("idempotency-key: {key}\r\n"));
        checked(call(self.address, "POST", path, &format!("{}{key}", self.credentials()), body, PATIENCE)?)
    }

    /// Gets `path`.
    pub(super) fn get(&self, path: &str) -> anyhow::Result<String> {
        checked(call(self.address, "GET", path, &self.credentials(), "", PATIENCE)?)
    }

    fn credentials(&self) -> String {
        self.key.as_ref().map_or(String::new(), |key| format!("authorization: Bearer {key}\r\n"))
    }
}

fn checked((status, answer): (u16, String)) -> anyhow::Result<String> {
    if status == 200 {
        return Ok(answer);
    }
    let problem: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
    let text = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
    let list = |name: &str| problem[name].as_array().cloned().unwrap_or_default();
    let mut reasons: Vec<String> = list("reasons").iter().filter_map(|reason| Some(reason.as_str()?.into())).collect();
    reasons.extend(list("errors").iter().map(|error| error["detail"].as_str().unwrap_or_default().to_owned()));
    let title = if problem.is_null() { format!("the service answered {status}") } else { text("title") };
    Err(Refused { title, detail: text("detail"), reasons }.into())
}

/// The status and the body; `headers` are whole lines.
pub(super) fn call(
    mut address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
    patience: Duration,
) -> anyhow::Result<(u16, String)> {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let connect = TcpStream::connect_timeout(&address, Duration::from_secs(2));
    let mut stream = connect.with_context(|| format!("nothing listens on {address}: does the service run?"))?;
    stream.set_read_timeout(Some(patience))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).with_context(|| format!("no answer from {address}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP from {address}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.with_context(|| format!("no HTTP from {address}"))?, body.to_owned()))
}
