//! A receipt: the promise of a record, to be kept before the decision is answered.

use std::time::Duration;

use tokio::sync::oneshot;

use super::Error;

/// A promise of a record: to be kept before the decision is answered.
#[derive(Debug)]
#[must_use = "a decision may be answered only when its record is there"]
pub struct Receipt {
    pub(super) pending: Option<oneshot::Receiver<Result<(), String>>>,
    pub(super) wait: Duration,
}

impl Receipt {
    /// A record that needs no waiting.
    pub fn done() -> Self {
        Self { pending: None, wait: Duration::ZERO }
    }

    /// Waits until the record has survived what was promised.
    ///
    /// Errors: [`Error::Refused`], [`Error::Late`]: then nothing may be answered.
    pub async fn kept(self) -> Result<(), Error> {
        let Some(pending) = self.pending else { return Ok(()) };
        match tokio::time::timeout(self.wait, pending).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(cause))) => Err(Error::Refused(cause)),
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(Error::Late),
        }
    }

    /// The same on a thread that may block, of a runtime whose other threads turn its clock.
    pub fn kept_blocking(self) -> Result<(), Error> {
        tokio::runtime::Handle::current().block_on(self.kept())
    }
}
