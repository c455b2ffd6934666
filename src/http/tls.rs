//! TLS of one plane: its files, read and checked as a whole before anything of them is used, and read again when they change.
//! What cannot be used never takes the place of what is in use. The handshakes themselves are in `handshakes`.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode;

use crate::telemetry::Metrics;
use crate::telemetry::tls::Plane;

/// The largest file that is read: a chain, or a bundle of client CAs.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Sessions that may be resumed without a whole handshake; the oldest are forgotten. They end with the files they began with.
const SESSIONS_MAX: usize = 4_096;
/// From how long before its end on a certificate is warned of, and how often.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 86_400);
const WARN_EVERY: Duration = Duration::from_secs(86_400);
/// What is spoken inside, the better one first.
pub(super) const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// The files of one plane; a plane without a certificate is not encrypted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The certificate and those that lead to its CA, in PEM, its own first; empty for no TLS.
    pub certificate: PathBuf,
    /// Its private key, in PEM, not encrypted.
    pub key: PathBuf,
    /// The CAs whose client certificates are accepted, in PEM.
    pub client_ca: PathBuf,
    /// Whether callers have to show a certificate.
    pub client_auth: ClientAuth,
}

/// Whether callers have to show a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// None is asked for.
    #[default]
    Off,
    /// One that is shown has to be of the client CA.
    Optional,
    /// Nobody else is spoken to.
    Required,
}

impl Options {
    /// Everything that does not fit together, as (key, sentence).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let set = |path: &Path| !path.as_os_str().is_empty();
        let mut problems = Vec::new();
        let mut expect = |holds: bool, key: &'static str, text: &str| {
            if !holds {
                problems.push((key, text.to_owned()));
            }
        };
        let certificate = set(&self.certificate);
        expect(!certificate || set(&self.key), "key", "expected the private key of the certificate");
        expect(certificate || !set(&self.key), "certificate", "expected the certificate of the key");
        expect(certificate || !set(&self.client_ca), "certificate", "client_ca needs one: expected a certificate");
        let asks = self.client_auth != ClientAuth::Off;
        expect(!asks || set(&self.client_ca), "client_ca", "expected the CAs whose client certificates are accepted");
        expect(
            asks || !set(&self.client_ca),
            "client_auth",
            "expected \"optional\" or \"required\" beside a client_ca",
        );
        problems
    }

    /// Whether the plane is encrypted.
    pub fn is_on(&self) -> bool {
        !self.certificate.as_os_str().is_empty()
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.certificate, &self.key, &self.client_ca].into_iter().map(PathBuf::as_path).filter(|path| *path != "")
    }
}

/// Why files cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the sentences say it")]
pub enum Error {
    #[error("{} cannot be read: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: std::io::Error },
    #[error("{} is larger than {} bytes, the most that is read of such a file", path.display(), FILE_BYTES_MAX)]
    TooLarge { path: PathBuf },
    #[error("{} holds no {what} in PEM; an encrypted or DER file has to be converted first", path.display())]
    Lacks { path: PathBuf, what: &'static str },
    #[error("{} holds something that is no certificate: {cause}", path.display())]
    NoCertificate { path: PathBuf, cause: x509_cert::der::Error },
    #[error("{} expired at {at}; renew it", path.display())]
    Expired { path: PathBuf, at: Timestamp },
    #[error("{} is not valid before {at}; is the clock right?", path.display())]
    Early { path: PathBuf, at: Timestamp },
    #[error("{} and its key {} cannot be used together: {cause}", path.display(), key.display())]
    Pair { path: PathBuf, key: PathBuf, cause: rustls::Error },
    #[error("{} cannot be used as client CA: {cause}", path.display())]
    ClientCa { path: PathBuf, cause: String },
}

/// TLS of one plane: what is in use, and what its files looked like.
#[derive(Debug)]
pub struct Tls {
    plane: Plane,
    options: Options,
    metrics: Arc<Metrics>,
    current: RwLock<Arc<ServerConfig>>,
    watch: Mutex<Watch>,
}

/// What the look at the files remembers.
#[derive(Debug)]
struct Watch {
    /// The files as they were when they were last read, whether they could be used or not.
    read: Vec<Option<Seen>>,
    /// The files at the last look.
    seen: Vec<Option<Seen>>,
    expires: SystemTime,
    warned: Option<Instant>,
}

/// What tells that a file is another one: time of change in nanoseconds, size, device, inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen(i64, i64, u64, u64, u64);

impl Tls {
    /// TLS of `plane`; none without a certificate.
    ///
    /// Errors: a file that cannot be read or used.
    pub fn open(plane: Plane, options: &Options, metrics: &Arc<Metrics>) -> Result<Option<Arc<Self>>, Error> {
        if !options.is_on() {
            return Ok(None);
        }
        let read = look_at(options);
        let (config, expires) = load(options, SystemTime::now())?;
        let tls = Self {
            plane,
            options: options.clone(),
            metrics: metrics.clone(),
            current: RwLock::new(Arc::new(config)),
            watch: Mutex::new(Watch { seen: read.clone(), read, expires, warned: None }),
        };
        tls.tell(expires);
        Ok(Some(Arc::new(tls)))
    }

    pub(super) fn plane(&self) -> Plane {
        self.plane
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// For the next handshake: what is in use now.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Reads the files again, now. What cannot be used is told, and changes nothing.
    pub fn read_again(&self) {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        self.take(&mut watch, look_at(&self.options));
    }

    /// Looks whether the files have changed, and reads them again once they have stayed the same for one look: certificate and key
    /// are two files, and between the two they do not fit. Warns of a certificate that is about to expire. To be called every second
    /// or so.
    pub fn look(&self) {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = look_at(&self.options);
        let settled = seen == watch.seen;
        watch.seen.clone_from(&seen);
        if settled && seen != watch.read {
            self.take(&mut watch, seen);
        }
        let left = watch.expires.duration_since(SystemTime::now()).unwrap_or_default();
        if left < WARN_BEFORE && watch.warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY) {
            watch.warned = Some(Instant::now());
            let (plane, days) = (self.plane.name(), left.as_secs() / 86_400);
            tracing::warn!(plane, days, file = %self.options.certificate.display(), "the certificate is about to expire");
        }
    }

    fn take(&self, watch: &mut Watch, read: Vec<Option<Seen>>) {
        watch.read = read;
        let plane = self.plane.name();
        match load(&self.options, SystemTime::now()) {
            Ok((config, expires)) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                (watch.expires, watch.warned) = (expires, None);
                self.metrics.certificate_read_again(self.plane, true);
                self.tell(expires);
            }
            Err(error) => {
                self.metrics.certificate_read_again(self.plane, false);
                tracing::error!(plane, cause = %error, "the certificate cannot be used, and the one before stays in use");
            }
        }
    }

    fn tell(&self, expires: SystemTime) {
        let expires_secs = expires.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        self.metrics.certificate(self.plane, expires_secs);
        let (plane, client_auth) = (self.plane.name(), self.options.client_auth);
        tracing::info!(plane, expires = %at(expires), ?client_auth, "certificate in use");
    }
}

/// The one set of cryptography: ring, without what is not safe any more.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

/// The certificates of a PEM file, in their order; one at least.
///
/// Errors: a file that cannot be read, or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let lacks = || Error::Lacks { path: path.to_owned(), what: "certificate" };
    let bytes = read(path)?;
    let found = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>().map_err(|_| lacks())?;
    if found.is_empty() { Err(lacks()) } else { Ok(found) }
}

/// The private key of a PEM file: PKCS#8, PKCS#1 or SEC1.
///
/// Errors: a file that cannot be read, or holds none.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let lacks = |_| Error::Lacks { path: path.to_owned(), what: "private key" };
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(lacks)
}

/// The CAs of a PEM file.
///
/// Errors: a file that cannot be read, or in which one is none.
pub fn authorities(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let broken = |error: rustls::Error| Error::ClientCa { path: path.to_owned(), cause: error.to_string() };
        roots.add(certificate).map_err(broken)?;
    }
    Ok(roots)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    // One more than it may have: a part of a bundle would be a part of its authorities.
    let file = std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    match file {
        Ok(count) if count as u64 > FILE_BYTES_MAX => Err(Error::TooLarge { path: path.to_owned() }),
        Ok(_) => Ok(bytes),
        Err(cause) => Err(Error::Unreadable { path: path.to_owned(), cause }),
    }
}

/// What the files say, and when the first certificate of the chain expires.
fn load(options: &Options, now: SystemTime) -> Result<(ServerConfig, SystemTime), Error> {
    let path = || options.certificate.clone();
    let chain = certificates(&options.certificate)?;
    let mut expires = None;
    for certificate in &chain {
        let read = CertificateInner::<Raw>::from_der(certificate);
        let read = read.map_err(|cause| Error::NoCertificate { path: path(), cause })?;
        let validity = read.tbs_certificate().validity();
        let (begins, ends) = (validity.not_before.to_system_time(), validity.not_after.to_system_time());
        if now > ends {
            return Err(Error::Expired { path: path(), at: at(ends) });
        }
        if now < begins {
            return Err(Error::Early { path: path(), at: at(begins) });
        }
        expires = Some(expires.map_or(ends, |earlier: SystemTime| earlier.min(ends)));
    }
    let key = private_key(&options.key)?;
    let pair = |cause| Error::Pair { path: path(), key: options.key.clone(), cause };
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(pair)?;
    let builder = if options.client_auth == ClientAuth::Off {
        builder.with_no_client_auth()
    } else {
        let roots = Arc::new(authorities(&options.client_ca)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
        let verifier = match options.client_auth {
            ClientAuth::Optional => verifier.allow_unauthenticated(),
            _ => verifier,
        };
        let broken = |error: rustls::server::VerifierBuilderError| Error::ClientCa {
            path: options.client_ca.clone(),
            cause: error.to_string(),
        };
        builder.with_client_cert_verifier(verifier.build().map_err(broken)?)
    };
    let mut config = builder.with_single_cert(chain, key).map_err(pair)?;
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
    Ok((config, expires.unwrap_or(now)))
}

fn look_at(options: &Options) -> Vec<Option<Seen>> {
    let seen = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        Some(Seen(found.mtime(), found.mtime_nsec(), found.size(), found.dev(), found.ino()))
    };
    options.files().map(seen).collect()
}

fn at(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(certificate: &str, key: &str, client_ca: &str, client_auth: ClientAuth) -> Options {
        Options { certificate: certificate.into(), key: key.into(), client_ca: client_ca.into(), client_auth }
    }

    #[test]
    fn what_does_not_fit_together_is_told_by_its_key() {
        let keys = |options: Options| options.problems().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys(Options::default()), [""; 0]);
        assert_eq!(keys(options("c", "k", "a", ClientAuth::Required)), [""; 0]);
        assert_eq!(keys(options("c", "", "", ClientAuth::Off)), ["key"]);
        assert_eq!(keys(options("", "k", "", ClientAuth::Off)), ["certificate"]);
        assert_eq!(keys(options("c", "k", "", ClientAuth::Optional)), ["client_ca"]);
        // A CA that nobody is asked for would look like a lock and be none.
        assert_eq!(keys(options("c", "k", "a", ClientAuth::Off)), ["client_auth"]);
        assert_eq!(keys(options("", "", "", ClientAuth::Required)), ["client_ca"]);
    }

    #[test]
    fn each_file_that_cannot_be_used_says_why() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        std::fs::write(path("c"), made.cert.pem()).expect("written");
        std::fs::write(path("k"), made.signing_key.serialize_pem()).expect("written");
        std::fs::write(path("other"), other.signing_key.serialize_pem()).expect("written");
        std::fs::write(path("text"), "no PEM").expect("written");
        std::fs::write(path("broken"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
            .expect("written");
        // A whole bundle, and one of which the last lines would be behind what is read.
        let (full, comment) = (FILE_BYTES_MAX as usize - made.cert.pem().len(), "#".repeat(FILE_BYTES_MAX as usize));
        std::fs::write(path("full"), format!("{}\n{}", &comment[..full - 1], made.cert.pem())).expect("written");
        std::fs::write(path("large"), format!("{}{comment}", made.cert.pem())).expect("written");
        let told = |certificate: &str, key: &str, client_ca: &str| {
            let auth = if client_ca.is_empty() { ClientAuth::Off } else { ClientAuth::Required };
            let file = |name: &str| if name.is_empty() { PathBuf::new() } else { path(name) };
            let options = Options {
                certificate: file(certificate),
                key: file(key),
                client_ca: file(client_ca),
                client_auth: auth,
            };
            let at = |now| load(&options, now).map(|_| "taken".to_owned()).unwrap_or_else(|error| error.to_string());
            let year = Duration::from_secs(366 * 86_400);
            [at(SystemTime::now()), at(SystemTime::now() + 10_000 * year), at(UNIX_EPOCH)]
        };
        assert_eq!(told("c", "k", "")[0], "taken");
        assert_eq!(told("c", "k", "c")[0], "taken");
        assert_eq!(told("c", "k", "full")[0], "taken");
        for (certificate, key, client_ca, expected) in [
            ("nowhere", "k", "", "cannot be read: No such file"),
            ("text", "k", "", "holds no certificate in PEM"),
            ("broken", "k", "", "holds something that is no certificate"),
            ("large", "k", "", "is larger than 1048576 bytes"),
            ("c", "k", "large", "is larger than 1048576 bytes"),
            ("c", "c", "", "holds no private key in PEM"),
            ("c", "other", "", "cannot be used together"),
            ("c", "k", "text", "holds no certificate in PEM"),
            ("c", "k", "broken", "cannot be used as client CA"),
        ] {
            let told = &told(certificate, key, client_ca)[0];
            assert!(told.contains(expected), "{certificate} {key} {client_ca}: {told}");
        }
        let [_, late, early] = told("c", "k", "");
        assert!(late.contains("expired at") && early.contains("is not valid before"), "{late}, {early}");
    }
}
