//! TLS of both planes: what is spoken, who is let in, how certificates change, and what bounds a handshake. Every certificate is
//! made here.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use hyper_util::rt::{TokioExecutor, TokioIo};
use mainstay::access::Editor;
use mainstay::domain::access::Scope;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, StreamOwned, SupportedProtocolVersion};

use crate::service::{Service, config, customer, until};

/// A CA, and the files that it has signed.
pub(crate) struct Authority {
    directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).expect("written");
        let authority = Self { directory, issuer };
        authority.sign("server", 2040);
        authority
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes NAME.pem and NAME.key, each in one step: a certificate for localhost that ends when `year` begins.
    pub(crate) fn sign(&self, name: &str, year: i32) -> CertificateDer<'static> {
        let until = SystemTime::from(date_time_ymd(year, 1, 1));
        self.sign_until(name, until)
    }

    /// The same for one that ends at `until`.
    fn sign_until(&self, name: &str, until: SystemTime) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("names");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = until.into();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        for (file, text) in [("key", key.serialize_pem()), ("pem", certificate.pem())] {
            let (new, path) = (self.path("new"), self.path(&format!("{name}.{file}")));
            std::fs::write(&new, text).expect("written");
            std::fs::rename(new, path).expect("in place");
        }
        certificate.der().clone()
    }

    /// What a server of its own shows: NAME.pem.
    pub(crate) fn server(&self, name: &str) -> Arc<rustls::ServerConfig> {
        let chain = CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            rustls::ServerConfig::builder_with_provider(provider).with_protocol_versions(ALL).expect("versions");
        Arc::new(builder.with_no_client_auth().with_single_cert(vec![chain], key).expect("a pair"))
    }

    /// The settings of `plane` with the certificate of this CA.
    fn settings(&self, plane: &str) -> Vec<String> {
        let file = |key: &str, name: &str| format!("{plane}.tls.{key}={}", self.path(name).display());
        vec![file("certificate", "server.pem"), file("key", "server.key")]
    }

    /// The same with client certificates.
    fn asking(&self, plane: &str, client_auth: &str) -> Vec<String> {
        let more = [
            format!("{plane}.tls.client_ca={}", self.path("ca.pem").display()),
            format!("{plane}.tls.client_auth={client_auth}"),
        ];
        [self.settings(plane), more.to_vec()].concat()
    }

    /// A client that trusts this CA and shows the certificate `client` of `of`.
    fn client(&self, versions: &[&'static SupportedProtocolVersion], client: Option<(&Authority, &str)>) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a CA");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).expect("versions");
        let builder = builder.with_root_certificates(roots);
        Client(Arc::new(match client {
            None => builder.with_no_client_auth(),
            Some((of, name)) => {
                let chain = CertificateDer::from_pem_file(of.path(&format!("{name}.pem"))).expect("a certificate");
                let key = PrivateKeyDer::from_pem_file(of.path(&format!("{name}.key"))).expect("a key");
                builder.with_client_auth_cert(vec![chain], key).expect("a pair")
            }
        }))
    }
}

const ALL: &[&SupportedProtocolVersion] = rustls::ALL_VERSIONS;

struct Client(Arc<ClientConfig>);
type Stream = StreamOwned<ClientConnection, TcpStream>;

impl Client {
    /// A connection, its handshake done.
    fn connect(&self, address: SocketAddr) -> io::Result<Stream> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        let name = ServerName::try_from("localhost").expect("a name");
        let mut connection = ClientConnection::new(self.0.clone(), name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(StreamOwned::new(connection, socket))
    }

    /// The status of /readyz, on a connection of its own.
    fn ready(&self, address: SocketAddr) -> io::Result<u16> {
        ask(&mut self.connect(address)?, "GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
    }

    /// The certificate that the service shows.
    fn shown(&self, address: SocketAddr) -> CertificateDer<'static> {
        let stream = self.connect(address).expect("a connection");
        stream.conn.peer_certificates().expect("a certificate")[0].clone().into_owned()
    }
}

/// Writes a request and reads one whole answer: its status. The connection stays open.
fn ask(stream: &mut (impl Read + Write), request: &str) -> io::Result<u16> {
    stream.write_all(request.as_bytes())?;
    answer(stream)
}

fn answer(stream: &mut impl Read) -> io::Result<u16> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).and_then(|text| text.parse().ok());
    stream.read_exact(&mut vec![0; length.expect("a length")])?;
    Ok(head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"))
}

fn score() -> String {
    let body = customer().to_string();
    let head = "POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length";
    format!("{head}: {}\r\n\r\n{body}", body.len())
}

fn start(settings: &[Vec<String>]) -> Service {
    Service::start(&settings.iter().flatten().map(String::as_str).collect::<Vec<_>>())
}

/// The value of one line of the metrics, asked of a plain admin plane.
async fn metric(service: &Service, line: &str) -> u64 {
    let text = service.get_admin("/metrics").await.text;
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse::<f64>().expect("a number") as u64)
}

async fn failed(service: &Service, reason: &str) -> u64 {
    metric(service, &format!("mainstay_tls_handshakes_failed_total{{plane=\"http\",reason=\"{reason}\"}}")).await
}

#[tokio::test]
async fn both_versions_of_tls_and_of_http_are_spoken() {
    let authority = Authority::new();
    let service = start(&[authority.settings("http")]);
    for (version, number) in
        [(&rustls::version::TLS12, ProtocolVersion::TLSv1_2), (&rustls::version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        let client = authority.client(&[version], None);
        let mut stream = client.connect(service.data).expect("a connection");
        assert_eq!(stream.conn.protocol_version(), Some(number));
        assert_eq!(ask(&mut stream, &score()).expect("an answer"), 200);
        assert_eq!(ask(&mut stream, &score()).expect("another one, on the same connection"), 200);
    }
    for (offered, chosen) in
        [(vec!["h2", "http/1.1"], "h2"), (vec!["http/1.1", "h2"], "h2"), (vec!["http/1.1"], "http/1.1")]
    {
        let mut client = Arc::unwrap_or_clone(authority.client(ALL, None).0);
        client.alpn_protocols = offered.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let stream = Client(Arc::new(client)).connect(service.data).expect("a connection");
        assert_eq!(stream.conn.alpn_protocol(), Some(chosen.as_bytes()));
    }
    let mut client = Arc::unwrap_or_clone(authority.client(ALL, None).0);
    client.alpn_protocols = vec![b"h2".to_vec()];
    let socket = tokio::net::TcpStream::connect(service.data).await.expect("a connection");
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, socket).await.expect("a handshake");
    let http2 = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = http2.expect("HTTP/2");
    let driven = tokio::spawn(connection);
    for _ in 0..3 {
        let request = hyper::Request::post("https://localhost/v1/score").header("content-type", "application/json");
        let request = request.body(customer().to_string()).expect("a request");
        assert_eq!(sender.send_request(request).await.expect("an answer").status(), 200);
    }
    driven.abort();
    assert_eq!(metric(&service, "mainstay_tls_handshakes_total{plane=\"http\",version=\"1.2\"}").await, 1);
    assert_eq!(metric(&service, "mainstay_tls_handshakes_total{plane=\"http\",version=\"1.3\"}").await, 5);
    // 2040-01-01, as the certificate says.
    let expiry = "mainstay_tls_certificate_expiry_timestamp_seconds{plane=\"http\"}";
    assert_eq!(metric(&service, expiry).await, 2_208_988_800);
}

#[tokio::test]
async fn old_versions_and_what_is_no_tls_are_refused() {
    let authority = Authority::new();
    let service = start(&[authority.settings("http")]);
    let told = |bytes: &[u8]| {
        let mut stream = service.connect();
        stream.write_all(bytes).expect("written");
        let mut answer = Vec::new();
        // What has not been read here when the other side closes may turn the end into an error.
        let _ = stream.read_to_end(&mut answer);
        answer
    };
    // A hello of TLS 1.1 with two of its cipher suites.
    let mut hello = vec![1, 0, 0, 43, 3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 4, 0, 0x2f, 0xc0, 0x13, 1, 0]);
    hello[3] = hello.len() as u8 - 4;
    let record = [&[22, 3, 1, 0, hello.len() as u8], hello.as_slice()].concat();
    let answer = told(&record);
    assert!(answer.len() == 7 && answer[0] == 21 && answer[5] == 2, "a fatal alert and no more: {answer:?}");
    until(async || failed(&service, "version").await == 1).await;
    let answer = told(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    until(async || failed(&service, "not_tls").await == 1).await;
    // Who trusts another CA breaks off, and is counted as such.
    let stranger = Authority::new().client(ALL, None);
    assert!(stranger.connect(service.data).is_err());
    until(async || failed(&service, "refused_by_caller").await == 1).await;
    drop(service.connect());
    until(async || failed(&service, "closed").await == 1).await;
}

#[tokio::test]
async fn client_certificates_are_asked_for_as_configured() {
    let (authority, other) = (Authority::new(), Authority::new());
    authority.sign("backend", 2040);
    authority.sign("expired", 2021);
    other.sign("backend", 2040);
    let nobody = authority.client(ALL, None);
    let backend = authority.client(ALL, Some((&authority, "backend")));
    let expired = authority.client(ALL, Some((&authority, "expired")));
    let stranger = authority.client(ALL, Some((&other, "backend")));

    let service = start(&[authority.asking("http", "required")]);
    assert_eq!(backend.ready(service.data).expect("an answer"), 200);
    for (client, reason, count) in
        [(&nobody, "no_certificate", 1), (&stranger, "certificate", 1), (&expired, "certificate", 2)]
    {
        assert!(client.ready(service.data).is_err(), "{reason}");
        until(async || failed(&service, reason).await == count).await;
    }
    let service = start(&[authority.asking("http", "optional")]);
    assert_eq!(nobody.ready(service.data).expect("an answer"), 200);
    assert_eq!(backend.ready(service.data).expect("an answer"), 200);
    assert!(stranger.ready(service.data).is_err());
}

/// New certificates by SIGHUP and by the look at the files, while callers come and go and others stay: none of them fails.
#[test]
fn certificates_change_under_load_and_no_call_fails() {
    let authority = Authority::new();
    let service = start(&[authority.settings("http")]);
    let (over, calls, failures) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let client = authority.client(ALL, None);
    let mut held = client.connect(service.data).expect("a connection");
    let call = |done: io::Result<u16>| {
        calls.fetch_add(1, Ordering::Relaxed);
        if !matches!(done, Ok(200)) {
            failures.fetch_add(1, Ordering::Relaxed);
        }
    };
    let settings = authority.settings("http");
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let (service, client, over, authority) = (&service, &client, &over, &authority);
    std::thread::scope(|scope| {
        for stays in [true, false] {
            scope.spawn(move || {
                let mut stream = stays.then(|| client.connect(service.data).expect("a connection"));
                while !over.load(Ordering::Relaxed) {
                    match &mut stream {
                        Some(stream) => call(ask(stream, &score())),
                        None => call(client.ready(service.data)),
                    }
                }
            });
        }
        let shown = |expected: CertificateDer<'static>| {
            let deadline = Instant::now() + Duration::from_secs(30);
            while client.shown(service.data) != expected {
                assert!(Instant::now() < deadline, "the new certificate was never shown");
            }
        };
        // However it ends, the callers are to end.
        let rotated = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..5 {
                let signed = authority.sign("server", 2040);
                service.reload.blocking_send(config(&settings).expect("a configuration")).expect("a reload");
                shown(signed);
            }
            shown(authority.sign("server", 2041));
        }));
        over.store(true, Ordering::Relaxed);
        rotated.expect("six new certificates");
    });
    assert_eq!(ask(&mut held, &score()).expect("the first connection still answers"), 200);
    let (calls, failures) = (calls.load(Ordering::Relaxed), failures.load(Ordering::Relaxed));
    assert!(calls > 20 && failures == 0, "{failures} of {calls} calls failed");
}

#[tokio::test]
async fn files_that_cannot_be_used_change_nothing() {
    let authority = Authority::new();
    let service = start(&[authority.settings("http")]);
    let client = authority.client(ALL, None);
    let first = client.shown(service.data);
    let settings = authority.settings("http");
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let again = async || service.reload.send(config(&settings).expect("a configuration")).await.expect("a reload");
    let count = async |result: &str| {
        metric(&service, &format!("mainstay_tls_reloads_total{{plane=\"http\",result=\"{result}\"}}")).await
    };
    authority.sign("server", 2021);
    again().await;
    until(async || count("refused").await == 1).await;
    assert_eq!(client.shown(service.data), first, "an expired certificate took the place of a good one");
    std::fs::write(authority.path("server.key"), "cut off").expect("written");
    again().await;
    until(async || count("refused").await >= 2).await;
    assert_eq!(client.ready(service.data).expect("an answer"), 200);
    let signed = authority.sign("server", 2040);
    again().await;
    until(async || count("taken").await >= 1).await;
    assert_eq!(client.shown(service.data), signed);
}

#[test]
fn a_certificate_that_is_about_to_expire_is_told() {
    let authority = Authority::new();
    authority.sign_until("server", SystemTime::now() + Duration::from_secs(10 * 86_400));
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    let ports = ["http.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0", "ledger.promise=off"].map(str::to_owned);
    let settings = [authority.settings("http"), ports.to_vec()].concat();
    command.arg("serve").args(settings.iter().flat_map(|setting| ["--set", setting]));
    let mut process = command.stderr(Stdio::piped()).spawn().expect("a start");
    let mut lines = BufReader::new(process.stderr.take().expect("its log")).lines();
    // The end of the log, which is the end of the process, would be the failure.
    let told = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("the certificate is about to expire")));
    process.kill().expect("an end");
    process.wait().expect("an end");
    let told = told.expect("a warning").expect("text");
    assert!(told.contains("\"days\":9") && told.contains("WARN") && told.contains("server.pem"), "{told}");
}

#[tokio::test]
async fn a_slow_handshake_is_cut_and_hurts_nobody() {
    let authority = Authority::new();
    let limits = ["server.handshake_timeout_ms=1500".to_owned(), "server.workers=1".to_owned()];
    let service = start(&[authority.settings("http"), limits.to_vec()]);
    let client = authority.client(ALL, None);
    let slow: Vec<TcpStream> = (0..8).map(|_| service.connect()).collect();
    // The head of a record that never ends, a byte at a time: each byte is progress, and the bound holds all the same.
    let (hello, sent) = ([22, 3, 1, 63, 240, 1, 0, 63, 236], std::cell::Cell::new(0));
    until(async || {
        let byte = hello.get(sent.replace(sent.get() + 1)).copied().unwrap_or_default();
        for mut stream in &slow {
            let _ = stream.write_all(&[byte]);
        }
        assert_eq!(client.ready(service.data).expect("an answer beside the slow ones"), 200);
        failed(&service, "timeout").await == 8
    })
    .await;
    for mut stream in slow {
        assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn of_too_many_handshakes_the_slowest_gives_way() {
    let authority = Authority::new();
    let limits =
        ["server.handshakes_max=2", "server.handshake_timeout_ms=60000", "server.workers=1"].map(str::to_owned);
    let service = start(&[authority.settings("http"), limits.to_vec()]);
    let silent: Vec<TcpStream> = (0..4).map(|_| service.connect()).collect();
    assert_eq!(authority.client(ALL, None).ready(service.data).expect("an answer beside silent ones"), 200);
    assert!(failed(&service, "crowded_out").await >= 2);
    drop(silent);
}

#[tokio::test]
async fn a_stop_lets_encrypted_requests_end() {
    let authority = Authority::new();
    let mut service = start(&[authority.settings("http"), vec!["drain.timeout_ms=60000".to_owned()]]);
    let client = authority.client(ALL, None);
    let mut stream = client.connect(service.data).expect("a connection");
    let request = score();
    let (first, second) = request.split_at(request.len() - 20);
    stream.write_all(first.as_bytes()).expect("written");
    service.wait_in_flight(1).await;
    // Nobody who has asked for nothing holds the stop up: not an open connection, not a handshake.
    let (idle, shaking) = (client.connect(service.data).expect("a connection"), service.connect());
    service.begin_stop();
    let begun = Instant::now();
    until(async || service.get_admin("/readyz").await.status == 503).await;
    stream.write_all(second.as_bytes()).expect("written");
    assert_eq!(answer(&mut stream).expect("an answer"), 200);
    assert_eq!(stream.read(&mut [0; 8]).expect("a clean end of TLS, not a cut one"), 0);
    service.wait();
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    drop((idle, shaking));
}

#[test]
fn a_beginning_that_stalls_behind_a_handshake_is_given_up() {
    let authority = Authority::new();
    let service = start(&[authority.settings("http"), vec!["server.head_timeout_ms=50".to_owned()]]);
    for (offered, begun) in [("h2", ""), ("h2", "P"), ("h2", "PRI * HT"), ("h2", "GET /"), ("http/1.1", "P"), ("", "P")]
    {
        let mut client = Arc::unwrap_or_clone(authority.client(ALL, None).0);
        client.alpn_protocols =
            [offered].iter().filter(|name| !name.is_empty()).map(|name| name.as_bytes().to_vec()).collect();
        let mut stream = Client(Arc::new(client)).connect(service.data).expect("a connection");
        stream.sock.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        stream.write_all(begun.as_bytes()).expect("written");
        let late = |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        let read = stream.read_to_end(&mut Vec::new());
        assert!(!read.as_ref().is_err_and(late), "{offered} {begun:?}: {read:?}");
    }
}

#[test]
fn the_command_line_speaks_tls_to_both_planes() {
    let (authority, other) = (Authority::new(), Authority::new());
    authority.sign("operator", 2040);
    // With an API key beside the certificate, where both are asked for.
    let (keys, key_file) = (authority.path("keys.json"), authority.path("key"));
    let made =
        Editor::open(&keys).and_then(|mut keys| keys.add(("ann".to_owned(), vec![Scope::Read], vec![]), None, None));
    std::fs::write(&key_file, made.expect("a key").1).expect("written");
    let access = ["access.required=true".to_owned(), format!("access.keys_file={}", keys.display())];
    let settings = [authority.settings("http"), authority.asking("admin", "required"), access.to_vec()];
    let service = start(&settings);
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.args(arguments).args(["--set", &format!("http.listen={}", service.data)]);
        let output = command.args(["--set", &format!("admin.listen={}", service.admin)]).output().expect("a run");
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let path = |authority: &Authority, name: &str| authority.path(name).display().to_string();
    let (ca, wrong) = (path(&authority, "ca.pem"), path(&other, "ca.pem"));
    let shown = ["--cert", &path(&authority, "operator.pem"), "--cert-key", &path(&authority, "operator.key")];
    // As a health check in a container: the configuration of the service is all that there is.
    let configured: Vec<&str> = settings[0].iter().flat_map(|setting| ["--set", setting]).collect();
    assert_eq!(run(&[&["health"], configured.as_slice()].concat()), (Some(0), "ready\n".to_owned()));
    assert_eq!(run(&["health", "--ca", &ca]), (Some(0), "ready\n".to_owned()));
    let (code, text) = run(&["health", "--ca", &wrong]);
    assert!(code == Some(69) && text.contains("invalid peer certificate"), "{text}");
    let (code, text) = run(&["health", "--ca", &ca, "--server-name", "elsewhere"]);
    assert!(code == Some(69) && text.contains("not valid for name"), "{text}");
    // Another certificate than the configured one.
    let (code, text) = run(&[
        "health",
        "--set",
        &format!("http.tls.certificate={}", path(&authority, "operator.pem")),
        "--set",
        &format!("http.tls.key={}", path(&authority, "operator.key")),
    ]);
    assert!(code == Some(69) && text.contains("no answer from"), "{text}");

    let with_certificate = [["slots", "--ca", &ca].as_slice(), &shown].concat();
    let (code, text) = run(&[with_certificate.as_slice(), &["--key-file", &key_file.display().to_string()]].concat());
    assert!(code == Some(0) && text.contains("telco-churn"), "{text}");
    let (code, text) = run(&with_certificate);
    assert!(code == Some(1) && text.contains("The caller is not authenticated"), "{text}");
    assert_eq!(run(&["slots", "--ca", &ca]).0, Some(69), "without a client certificate");
    assert_eq!(run(&["slots"]).0, Some(69), "without TLS");
}
