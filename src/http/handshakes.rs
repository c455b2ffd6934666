//! TLS handshakes of one worker, bounded in time and in number. When there are too many, the slowest gives way: a caller who
//! means it is done within some round trips, and one who dribbles bytes must not keep others out.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::{Error, PeerIncompatible, ProtocolVersion};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::tls::Tls;
use crate::telemetry::tls::{Failure, Version};

/// How long a handshake is left alone, however many there are. A burst of callers waits for its turn.
const GRACE: Duration = Duration::from_millis(500);

/// The handshakes of one worker that go on.
pub(super) struct Handshakes {
    tls: Arc<Tls>,
    timeout: Duration,
    max: usize,
    /// The oldest first; some may be done.
    running: VecDeque<(Instant, AbortHandle)>,
    done: Arc<Notify>,
    stopped: watch::Receiver<bool>,
}

impl Handshakes {
    /// At most `max` at a time, each for `timeout` at most, and none after the plane is `stopped`.
    pub(super) fn new(tls: Arc<Tls>, timeout: Duration, max: usize, stopped: watch::Receiver<bool>) -> Self {
        Self { tls, timeout, max, running: VecDeque::new(), done: Arc::default(), stopped }
    }

    /// Done when there is room for one more: at once, when one is done, or when the oldest has had its grace and gives way.
    pub(super) async fn room(&mut self) {
        while self.running.front().is_some_and(|(_, handle)| handle.is_finished()) {
            self.running.pop_front();
        }
        while self.running.len() >= self.max {
            self.running.retain(|(_, handle)| !handle.is_finished());
            let Some((begun, oldest)) = self.running.front() else { return };
            if self.running.len() < self.max {
                return;
            }
            if begun.elapsed() >= GRACE {
                oldest.abort();
                self.running.pop_front();
                self.tls.metrics().handshake_failed(self.tls.plane(), Failure::CrowdedOut);
                return;
            }
            // One that was done since the look above has left its word in `done`.
            let _ = tokio::time::timeout_at(*begun + GRACE, self.done.notified()).await;
        }
    }

    /// Begins a handshake with whoever is at the other end of `stream`, on this thread; `then` goes on with what comes of it.
    pub(super) fn begin(&mut self, stream: TcpStream, then: impl FnOnce(TlsStream<TcpStream>) + Send + 'static) {
        let (tls, done, timeout) = (self.tls.clone(), self.done.clone(), self.timeout);
        let mut stopped = self.stopped.clone();
        let task = tokio::spawn(async move {
            let accepted = tokio::select! {
                accepted = tokio::time::timeout(timeout, tls.acceptor().accept(stream)) => accepted,
                // Who has asked for nothing yet is owed nothing.
                _ = stopped.wait_for(|stopped| *stopped) => return,
            };
            match accepted {
                Ok(Ok(stream)) => {
                    let version = match stream.get_ref().1.protocol_version() {
                        Some(ProtocolVersion::TLSv1_2) => Version::Tls12,
                        _ => Version::Tls13,
                    };
                    tls.metrics().handshake(tls.plane(), version);
                    then(stream);
                }
                Ok(Err(error)) => tls.metrics().handshake_failed(tls.plane(), failure(&error)),
                Err(_) => tls.metrics().handshake_failed(tls.plane(), Failure::Timeout),
            }
            done.notify_one();
        });
        self.running.push_back((Instant::now(), task.abort_handle()));
    }
}

fn failure(error: &io::Error) -> Failure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidMessage(_)) => Failure::NotTls,
        Some(Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired // which came with TLS 1.2
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        )) => Failure::Version,
        Some(Error::PeerIncompatible(_) | Error::NoApplicationProtocol) => Failure::Terms,
        Some(Error::NoCertificatesPresented) => Failure::NoCertificate,
        Some(Error::InvalidCertificate(_)) => Failure::Certificate,
        Some(Error::AlertReceived(_)) => Failure::RefusedByCaller,
        Some(_) => Failure::Other,
        None => match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Failure::Closed
            }
            _ => Failure::Other,
        },
    }
}
