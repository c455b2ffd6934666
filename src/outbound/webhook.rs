//! A message to one receiver, signed as the Standard Webhooks specification (1.0.0) has it. When something is sent, and what follows when it
//! does not arrive, is decided above.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What a secret begins with.
const PREFIX: &str = "whsec_";
/// How many bytes a secret may have.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Secrets that sign at a time: two are enough to go from one to the next.
const SECRETS_MAX: usize = 4;
/// The largest file of secrets.
const FILE_BYTES_MAX: u64 = 4_096;
/// The environment variable with the secret, where no file has it.
pub const SECRET_VARIABLE: &str = "MAINSTAY_RETRAINING_SECRET";

/// Why messages cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no secret.
    #[error(
        "there is no secret to sign with: set retraining.secret_file, or the environment variable {SECRET_VARIABLE}"
    )]
    NoSecret,
    /// The file of secrets cannot be read.
    #[error("the secret file {path} cannot be read", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is there is no secret.
    #[error("the secret of {place} {problem}")]
    Secret {
        /// The file, or the environment variable.
        place: String,
        /// What is wrong with it; nothing of the secret is in it.
        problem: String,
    },
}

/// Why a message did not arrive.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What happened, without a word of the receiver's.
    pub text: String,
    /// The receiver wants no more of it (410).
    pub is_final: bool,
    /// How long the receiver wants to be left alone.
    pub wait: Option<Duration>,
}

/// Where secrets come from.
enum Secrets {
    File(PathBuf),
    Given(Vec<Vec<u8>>),
}

/// What sends messages to one receiver.
pub struct Sender {
    url: String,
    ca: PathBuf,
    timeout: Duration,
    secrets: Secrets,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Sender {
    /// What sends to `url`, each try for `timeout` at most. The receiver's certificate is held to those of the file `ca`, or where it is empty
    /// to the roots that are compiled in. The secrets are those of `file`, or where it is empty the one that is `given`. Both files are read
    /// again for each message.
    ///
    /// Errors: there is no secret, or it is none.
    pub fn open(
        (url, ca): (&str, &Path),
        file: &Path,
        given: Option<String>,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let secrets = match (file.as_os_str().is_empty(), given) {
            (false, _) => Secrets::File(file.to_owned()),
            (true, Some(text)) => Secrets::Given(
                parse(&text).map_err(|problem| Error::Secret { place: SECRET_VARIABLE.to_owned(), problem })?,
            ),
            (true, None) => return Err(Error::NoSecret),
        };
        let sender = Self { url: url.to_owned(), ca: ca.to_owned(), timeout, secrets };
        sender.secrets()?;
        Ok(sender)
    }

    fn secrets(&self) -> Result<Vec<Vec<u8>>, Error> {
        match &self.secrets {
            Secrets::Given(secrets) => Ok(secrets.clone()),
            Secrets::File(path) => {
                let failed = |source| Error::File { path: path.clone(), source };
                let wrong = |problem| Error::Secret { place: path.display().to_string(), problem };
                let found = std::fs::metadata(path).map_err(failed)?;
                let mode = found.permissions().mode() & 0o777;
                // A group may read: orchestrators mount secrets that way.
                if mode & 0o027 != 0 {
                    return Err(wrong(format!("is open to others (mode {mode:o}): chmod 600 it")));
                }
                if found.len() > FILE_BYTES_MAX {
                    return Err(wrong(format!("is larger than {FILE_BYTES_MAX} bytes")));
                }
                parse(&std::fs::read_to_string(path).map_err(failed)?).map_err(wrong)
            }
        }
    }

    /// Sends `body`, which is JSON, as the message `id` at `at_secs` (seconds since 1970), once, and waits for the answer.
    ///
    /// Errors: no answer of 2xx within the time.
    pub fn send(&self, id: &str, at_secs: u64, body: &[u8]) -> Result<(), Failure> {
        let failure = |text: String| Failure { text, is_final: false, wait: None };
        let secrets = self.secrets().map_err(|error| failure(error.to_string()))?;
        // Messages are hours apart: a connection that is kept would only be a broken one.
        let agent = super::agent(&self.url, &self.ca, self.timeout).map_err(failure)?;
        let request = agent
            .post(&self.url)
            .config()
            .build()
            .header("content-type", "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", at_secs.to_string())
            .header("webhook-signature", signature(&secrets, id, at_secs, body));
        let answer = request.send(body).map_err(|error| failure(error.to_string()))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let wait = answer.headers().get("retry-after").and_then(|value| wait(value.to_str().ok()?.trim(), at_secs));
        Err(Failure { text: format!("it answered {}", status.as_u16()), is_final: status == 410, wait })
    }
}

/// How long a `retry-after` wants to be waited (RFC 9110, section 10.2.3): so many seconds, or until a date, in any form that section 5.6.7
/// knows. A date is counted from `at_secs`, when it was sent: as long as the answer took it may be later, and it is never earlier.
fn wait(text: &str, at_secs: u64) -> Option<Duration> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than a number holds is for ever.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(date.saturating_sub(Duration::from_secs(at_secs)))
}

/// The secrets in `text`, one in each line.
fn parse(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let secret = |line: &str| {
        let bytes = line.strip_prefix(PREFIX).and_then(|rest| BASE64_STANDARD.decode(rest).ok());
        bytes.filter(|bytes| SECRET_BYTES.contains(&bytes.len())).ok_or_else(|| {
            format!("is none: expected {PREFIX} and 24 to 64 random bytes in base64 (printf '{PREFIX}%s' \"$(openssl rand -base64 32)\")")
        })
    };
    let secrets = lines.map(secret).collect::<Result<Vec<_>, _>>()?;
    match secrets.len() {
        0 => Err("is empty".to_owned()),
        count if count > SECRETS_MAX => Err(format!("has more than {SECRETS_MAX} lines")),
        _ => Ok(secrets),
    }
}

/// The header `webhook-signature`: for each secret `v1,` and the HMAC-SHA256 of id, time and body, in base64.
fn signature(secrets: &[Vec<u8>], id: &str, at_secs: u64, body: &[u8]) -> String {
    let sign = |secret: &Vec<u8>| {
        let mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length");
        let mac = mac.chain_update(format!("{id}.{at_secs}.")).chain_update(body);
        format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
    };
    secrets.iter().map(sign).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::tests::once;

    /// The example of the specification's own libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn signs_as_the_specification_does() {
        let secrets = parse(SECRET).expect("a secret");
        let signed = signature(&secrets, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let two = parse(&format!("{SECRET}\n\n  {PREFIX}{}\n", BASE64_STANDARD.encode([7; 32]))).expect("two");
        assert_eq!(signature(&two, "m", 1, b"{}").split(' ').count(), 2);
    }

    #[test]
    fn what_is_no_secret_is_told_without_it() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let open = |url: &str, path: &Path, given: Option<&str>| {
            Sender::open((url, Path::new("")), path, given.map(str::to_owned), Duration::from_secs(1)).map(drop)
        };
        for text in ["hunter2", "whsec_c2hvcnQ=", "whsec_***", "", &format!("{SECRET}\n").repeat(5)] {
            std::fs::write(file.path(), text).expect("written");
            let error = open("https://x", file.path(), None).expect_err("no secret").to_string();
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
        std::fs::write(file.path(), SECRET).expect("written");
        assert!(open("https://x", file.path(), None).is_ok() && open("https://x", Path::new(""), Some(SECRET)).is_ok());
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).expect("a mode");
        let error = open("https://x", file.path(), None).expect_err("open to others").to_string();
        assert!(error.contains("chmod 600"), "{error}");
        assert!(matches!(open("https://x", Path::new(""), None), Err(Error::NoSecret)));
    }

    #[test]
    fn when_to_come_again_is_seconds_or_a_date() {
        // 37 seconds before the date that RFC 9110 writes in three ways.
        let at_secs = 784_111_740;
        for (text, secs) in [
            ("120", Some(120)),
            ("0", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(37)),
            ("Sun Nov  6 08:49:37 1994", Some(37)),
            ("Sun, 06 Nov 1994 08:48:00 GMT", Some(0)),
            ("soon", None),
            ("99999999999999999999", Some(u64::MAX)),
            ("-1", None),
            ("+5", None),
            ("", None),
        ] {
            assert_eq!(wait(text, at_secs), secs.map(Duration::from_secs), "{text}");
        }
        let url = once(
            "HTTP/1.1 503 Down\r\nretry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        );
        let (no, time) = (Path::new(""), Duration::from_secs(20));
        let sender = Sender::open((&url, no), no, Some(SECRET.to_owned()), time).expect("a sender");
        let failure =
            Failure { text: "it answered 503".to_owned(), is_final: false, wait: Some(Duration::from_secs(37)) };
        assert_eq!(sender.send("m", at_secs, b"{}"), Err(failure));
    }
}
