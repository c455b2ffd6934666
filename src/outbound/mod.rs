//! Floor 1, outbound: calls that this service makes by itself. Which address may be called, what its certificate is held to, and the rules
//! of every call: a time, no redirects, no proxy for this machine, a bounded answer. When it calls, and what follows, is decided above.

pub mod webhook;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use ureq::Agent;
use ureq::http::Uri;
use ureq::tls::{PemItem, RootCerts, TlsConfig};

/// How long reading a document may take.
const READ: Duration = Duration::from_secs(10);
/// The largest file of authorities: more than all public ones together take.
const CA_BYTES_MAX: u64 = 1 << 20;
/// What an address has to be.
const EXPECTED: &str = "expected https, or http on this machine";

/// What is wrong with the address of one setting and with the file of another, the certificates that vouch for it, as (key, sentence).
/// Either may be empty: then there is nothing to be wrong. `danger` is what others could do on the way.
pub fn problems(
    (url_key, url): (&'static str, &str),
    (ca_key, ca): (&'static str, &Path),
    danger: &str,
) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    if !ca.as_os_str().is_empty() {
        if !is_https(url) {
            problems.push((ca_key, format!("is for a {url_key} with https")));
        }
        problems.extend(trust(ca).err().map(|problem| (ca_key, problem)));
    }
    if !url.is_empty() && !is_safe(url) {
        problems.push((url_key, format!("{EXPECTED}: {danger}")));
    }
    problems
}

/// The document at `url`, of `bytes_max` bytes at most, within ten seconds. The certificates in the file `ca` vouch for it, or where that is
/// empty the roots that are compiled in.
///
/// Errors: any answer but a 200, or none, as a phrase for a log.
pub fn read(url: &str, ca: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let mut answer = agent(url, ca, READ)?.get(url).call().map_err(|error| error.to_string())?;
    if answer.status() != 200 {
        return Err(format!("it answered {}", answer.status().as_u16()));
    }
    // A body has to be shorter than this limit.
    answer.body_mut().with_config().limit(bytes_max + 1).read_to_vec().map_err(|error| match error {
        ureq::Error::BodyExceedsLimit(_) => format!("it is larger than {bytes_max} bytes"),
        other => other.to_string(),
    })
}

/// What makes one call to `url`. The file `ca` is read for each: who renews an authority need not restart the service.
fn agent(url: &str, ca: &Path, timeout: Duration) -> Result<Agent, String> {
    if !is_safe(url) {
        return Err(EXPECTED.to_owned());
    }
    let config = Agent::config_builder()
        .timeout_global(Some(timeout))
        // The address in the configuration is the one that is trusted.
        .max_redirects(0)
        // What follows from a status is for who calls to say.
        .http_status_as_error(false)
        .user_agent(concat!("mainstay/", env!("CARGO_PKG_VERSION")));
    // What is on this machine is not behind a proxy.
    let config = if is_here(url) { config.proxy(None) } else { config };
    let config = if ca.as_os_str().is_empty() { config } else { config.tls_config(trust(ca)?) };
    Ok(config.build().into())
}

/// Whether nobody in between can read or change what goes to and from `url`.
fn is_safe(url: &str) -> bool {
    url.parse::<Uri>().is_ok_and(|parsed| match parsed.scheme_str() {
        Some("https") => true,
        Some("http") => is_here(url),
        _ => false,
    })
}

fn is_https(url: &str) -> bool {
    url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
}

/// By its name alone: what a name leads to can change between a look and the call.
fn is_here(url: &str) -> bool {
    url.parse::<Uri>().is_ok_and(|url| matches!(url.host(), Some("127.0.0.1" | "localhost" | "[::1]")))
}

/// Trust in the certificates of a PEM file, and in no other.
fn trust(ca: &Path) -> Result<TlsConfig, String> {
    let told = |error: &dyn std::fmt::Display| format!("{} cannot be used: {error}", ca.display());
    let mut pem = Vec::new();
    File::open(ca).and_then(|file| file.take(CA_BYTES_MAX + 1).read_to_end(&mut pem)).map_err(|error| told(&error))?;
    if pem.len() as u64 > CA_BYTES_MAX {
        return Err(told(&format!("it is larger than {CA_BYTES_MAX} bytes")));
    }
    let parsed: Result<Vec<PemItem>, _> = ureq::tls::parse_pem(&pem).collect();
    let is_certificate = |item| match item {
        PemItem::Certificate(certificate) => Some(certificate),
        _ => None,
    };
    let certificates: Vec<_> = parsed.map_err(|error| told(&error))?.into_iter().filter_map(is_certificate).collect();
    if certificates.is_empty() {
        return Err(told(&"it holds no certificate"));
    }
    // The client drops what is no certificate, and would then trust nobody.
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(CertificateDer::from(certificate.der())).map_err(|error| told(&error))?;
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::from(certificates)).build())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;

    /// An address on this machine where one call is answered with `answer`.
    pub(super) fn once(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/x", listener.local_addr().expect("an address"));
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut reader = BufReader::new(&stream);
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).expect("a line") > 2 {
                let header = line.to_ascii_lowercase();
                if let Some(value) = header.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
                line.clear();
            }
            reader.read_exact(&mut vec![0; length]).expect("a body");
            let _ = stream.write_all(answer.as_bytes());
        });
        url
    }

    #[test]
    fn only_what_nobody_reads_on_its_way_is_an_address() {
        let problems = |url| problems(("url", url), ("ca", Path::new("")), "others read it");
        for url in
            ["https://example.com/x", "HTTPS://x", "http://127.0.0.1:9/x", "http://[::1]:9", "http://localhost/", ""]
        {
            assert_eq!(problems(url), [], "{url}");
        }
        let others = ["http://127.0.0.1.example.com/", "http://127.0.0.1:80@example.com/"];
        for url in ["http://example.com", "ftp://x", "x", "https://"].into_iter().chain(others) {
            let told = "expected https, or http on this machine: others read it";
            assert_eq!(problems(url), [("url", told.to_owned())], "{url}");
            assert_eq!(read(url, Path::new(""), 9), Err(EXPECTED.to_owned()), "{url}");
        }
    }

    #[test]
    fn a_file_of_authorities_is_for_https_and_holds_some() {
        let told = |url, ca| problems(("url", url), ("ca", Path::new(ca)), "others read it");
        let none = "Cargo.toml cannot be used: it holds no certificate".to_owned();
        assert_eq!(told("https://x", "Cargo.toml"), [("ca", none.clone())]);
        assert_eq!(
            told("http://localhost", "Cargo.toml"),
            [("ca", "is for a url with https".to_owned()), ("ca", none)]
        );
        let damaged = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&damaged, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").expect("a file");
        let [(_, problem)] = &told("https://x", damaged.path().to_str().expect("a name"))[..] else { panic!("taken") };
        assert!(problem.contains("cannot be used"), "{problem}");
        let missing = told("https://x", "nowhere.pem");
        assert_eq!(missing, [("ca", "nowhere.pem cannot be used: No such file or directory (os error 2)".to_owned())]);
        assert_eq!(
            read("https://x", Path::new("nowhere.pem"), 9),
            Err(missing[0].1.clone()),
            "it is read for each call"
        );
    }

    #[test]
    fn a_document_is_read_within_its_bound_and_from_nowhere_else() {
        let answered = |answer, bytes_max| read(&once(answer), Path::new(""), bytes_max);
        let found = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nkeys";
        assert_eq!(answered(found, 4), Ok(b"keys".to_vec()));
        assert_eq!(answered(found, 3), Err("it is larger than 3 bytes".to_owned()));
        let moved =
            "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        assert_eq!(answered(moved, 4), Err("it answered 302".to_owned()));
        let down = "HTTP/1.1 503 Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        assert_eq!(answered(down, 4), Err("it answered 503".to_owned()));
    }
}
