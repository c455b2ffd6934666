//! What is counted of TLS, by plane: handshakes, why they failed, certificates that were read again, and when one expires.
//! Every label is an enum here, so that no caller can make new series.

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use super::metrics::Metrics;

const HANDSHAKES: &str = "mainstay_tls_handshakes_total";
const FAILED: &str = "mainstay_tls_handshakes_failed_total";
const RELOADS: &str = "mainstay_tls_reloads_total";
const EXPIRY: &str = "mainstay_tls_certificate_expiry_timestamp_seconds";

/// The planes, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plane {
    /// What product backends call.
    Http,
    /// What operators call.
    Admin,
}

impl Plane {
    /// As it is called in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Plane::Http => "http",
            Plane::Admin => "admin",
        }
    }
}

/// The versions of TLS that are spoken, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// Why a handshake came to nothing, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It took longer than `server.handshake_timeout_ms`.
    Timeout,
    /// It was the slowest of too many at a time.
    CrowdedOut,
    /// What came is not TLS, such as plain HTTP.
    NotTls,
    /// The caller speaks only versions before TLS 1.2.
    Version,
    /// No cipher suite, group, signature or protocol in common.
    Terms,
    /// A client certificate is required, and none came.
    NoCertificate,
    /// The client certificate is not of the client CA, or not valid now.
    Certificate,
    /// The caller broke off with an alert: most often it does not trust the certificate.
    RefusedByCaller,
    /// The caller went away.
    Closed,
    /// Anything else.
    Other,
}

impl Failure {
    fn name(self) -> &'static str {
        match self {
            Failure::Timeout => "timeout",
            Failure::CrowdedOut => "crowded_out",
            Failure::NotTls => "not_tls",
            Failure::Version => "version",
            Failure::Terms => "terms",
            Failure::NoCertificate => "no_certificate",
            Failure::Certificate => "certificate",
            Failure::RefusedByCaller => "refused_by_caller",
            Failure::Closed => "closed",
            Failure::Other => "other",
        }
    }
}

/// Puts the metrics of TLS into the catalogue.
pub(super) fn describe() {
    describe_counter!(HANDSHAKES, "TLS handshakes done, by plane and version");
    describe_counter!(FAILED, "TLS handshakes that came to nothing, by plane and reason");
    describe_counter!(RELOADS, "Certificates read again, by plane and whether they were taken or refused");
    describe_gauge!(EXPIRY, Unit::Seconds, "When the first certificate of the chain in use expires, in Unix time");
}

impl Metrics {
    /// A handshake is done. Rare enough, and dear enough, for the registry's own look-up; so are the others here.
    pub fn handshake(&self, plane: Plane, version: Version) {
        let version = match version {
            Version::Tls12 => "1.2",
            Version::Tls13 => "1.3",
        };
        self.register(|| counter!(HANDSHAKES, "plane" => plane.name(), "version" => version)).increment(1);
    }

    /// A handshake came to nothing.
    pub fn handshake_failed(&self, plane: Plane, failure: Failure) {
        self.register(|| counter!(FAILED, "plane" => plane.name(), "reason" => failure.name())).increment(1);
    }

    /// The files of a plane were read again, and taken or not.
    pub fn certificate_read_again(&self, plane: Plane, taken: bool) {
        let result = if taken { "taken" } else { "refused" };
        self.register(|| counter!(RELOADS, "plane" => plane.name(), "result" => result)).increment(1);
    }

    /// The chain in use is valid until `expires_secs`, in Unix time.
    pub fn certificate(&self, plane: Plane, expires_secs: i64) {
        self.register(|| gauge!(EXPIRY, "plane" => plane.name())).set(expires_secs as f64);
    }
}
