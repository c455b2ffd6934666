//! Where a running service is called, and how it is known to be the right one: by a CA that is named, or else by the very
//! certificate that the configuration gives the service; and as whom: by an API key, a client certificate, or both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::Configured;
use crate::config::Plane;
use crate::http;

/// How a running service is called.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Called {
    /// Speak TLS and trust the CAs of this PEM file [default: as configured, trusting only the configured certificate]
    #[arg(long, value_name = "FILE", env = "MAINSTAY_CA")]
    ca: Option<PathBuf>,
    /// The name expected in the certificate [default: the address]
    #[arg(long, value_name = "NAME", env = "MAINSTAY_SERVER_NAME", requires = "ca")]
    server_name: Option<String>,
    /// Show this client certificate, a PEM file
    #[arg(long, value_name = "FILE", env = "MAINSTAY_CERT", requires = "cert_key")]
    cert: Option<PathBuf>,
    /// The private key of the client certificate, a PEM file
    #[arg(long, value_name = "FILE", env = "MAINSTAY_CERT_KEY", requires = "cert")]
    cert_key: Option<PathBuf>,
    /// The file with the API key, where the service asks for one [default: the key in MAINSTAY_API_KEY]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    configured: Configured,
}

/// A plane of a running service, and as whom it is called.
pub(super) struct Door {
    pub(super) address: SocketAddr,
    pub(super) tls: Option<(ServerName<'static>, Arc<ClientConfig>)>,
    /// The API key, so that the service knows who calls. Only characters that cannot end a header.
    pub(super) key: Option<String>,
}

impl Called {
    /// The admin plane.
    pub(super) fn admin(self) -> anyhow::Result<Door> {
        let config = self.configured.clone().load()?;
        self.door(&config.admin)
    }

    /// The data plane.
    pub(super) fn data(self) -> anyhow::Result<Door> {
        let config = self.configured.clone().load()?;
        self.door(&config.http)
    }

    fn door(self, plane: &Plane) -> anyhow::Result<Door> {
        let key = self.api_key()?;
        let mut address = plane.listen;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        if self.ca.is_none() && !plane.tls.is_on() {
            return Ok(Door { address, tls: None, key });
        }
        let name = match self.server_name {
            Some(name) => ServerName::try_from(name).context("--server-name: expected a DNS name or an address")?,
            None => ServerName::IpAddress(IpAddr::into(address.ip())),
        };
        let provider = http::provider();
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = match &self.ca {
            Some(ca) => builder.with_root_certificates(http::authorities(ca)?),
            None => {
                let certificate = http::certificates(&plane.tls.certificate)?.swap_remove(0);
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { certificate, provider }))
            }
        };
        let mut config = match (&self.cert, &self.cert_key) {
            (Some(cert), Some(key)) => {
                builder.with_client_auth_cert(http::certificates(cert)?, http::private_key(key)?)?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Door { address, tls: Some((name, Arc::new(config))), key })
    }

    fn api_key(&self) -> anyhow::Result<Option<String>> {
        let key = match &self.key_file {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                Some(text.trim().to_owned())
            }
            // No argument of clap's: `--help` would show the value of one.
            None => std::env::var("MAINSTAY_API_KEY").ok().filter(|key| !key.is_empty()),
        };
        match key {
            Some(key) if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) => {
                anyhow::bail!("the API key is empty, or has characters that none has")
            }
            key => Ok(key),
        }
    }
}

/// Trusts one certificate, whatever name it is for and whoever signed it.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *end_entity == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
