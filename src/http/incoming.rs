//! Bodies of batches as they come in: whole or in parts, what all of them hold of memory together, and whose turn it is once they are there.
//! What they say is not known here.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use bytes::BytesMut;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::deadline::Deadline;
use super::problem::{Code, Problem};
use super::protocols::guarded;
use super::{Limits, Shared, extract};

/// What an open body counts for beside its bytes, for what its connection holds: so their number is bounded too.
pub(super) const OPEN_BYTES: u32 = 1 << 16;

/// A body that is being read. What it holds counts towards `limits.intake_bytes_max`, so that a body costs others what it sends: one that is
/// slow costs next to nothing, and needs no place of those that are worked on.
pub(super) struct Incoming {
    body: Body,
    pending: BytesMut,
    ended: bool,
    intake: Arc<Semaphore>,
    held: OwnedSemaphorePermit,
}

/// What something counts for, as long as it is there.
pub(super) type Held = Option<OwnedSemaphorePermit>;

impl Incoming {
    /// `body`, of which nothing has been read. What it holds is taken from `intake`, a place for each byte.
    ///
    /// Errors: too much is held already.
    pub(super) fn new(intake: Arc<Semaphore>, body: Body) -> Result<Self, Problem> {
        let held = intake.clone().try_acquire_many_owned(OPEN_BYTES).map_err(|_| full())?;
        Ok(Self { body, pending: BytesMut::new(), ended: false, intake, held })
    }

    /// What has come and was not taken.
    pub(super) fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// Waits for more: whether there is any, or the body has ended. Memory is only taken for what has come.
    ///
    /// Errors: the connection breaks off; too much is held already.
    pub(super) async fn more(&mut self) -> Result<bool, Problem> {
        if self.ended {
            return Ok(false);
        }
        match self.body.frame().await {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let bytes = u32::try_from(data.len()).map_err(|_| full())?;
                    self.held.merge(self.intake.clone().try_acquire_many_owned(bytes).map_err(|_| full())?);
                    self.pending.extend_from_slice(data);
                }
            }
            Some(Err(_)) => {
                return Err(Problem::new(Code::IncompleteBody, "the connection ended before the body did"));
            }
            None => self.ended = true,
        }
        Ok(!self.ended)
    }

    /// Reads it to its end, within the time of a body and as large as a batch may be.
    ///
    /// Errors: it is too large or too slow, or what [`more`](Self::more) says.
    pub(super) async fn fill(&mut self, limits: &Limits) -> Result<(), Problem> {
        let bytes_max = limits.batch_body_bytes_max;
        let filled = timeout(limits.body_timeout(), async {
            while self.more().await? {
                if self.pending.len() > bytes_max {
                    return Err(extract::too_large(bytes_max));
                }
            }
            Ok(())
        });
        filled.await.unwrap_or_else(|_| Err(extract::too_late(limits.body_timeout())))
    }

    /// Takes the first `length` bytes of what is pending.
    pub(super) fn take(&mut self, length: usize) -> Part {
        Part { bytes: self.pending.split_to(length).freeze(), held: self.held.split(length) }
    }
}

/// A part of a body. As long as it is there, it counts as held.
pub(super) struct Part {
    bytes: Bytes,
    held: Held,
}

impl Part {
    /// Its bytes, and what they count for.
    pub(super) fn apart(self) -> (Bytes, Held) {
        (self.bytes, self.held)
    }
}

impl Deref for Part {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

/// The whole body of a request with many rows.
///
/// Errors: it is too large or too slow, it breaks off, or too much is held already.
pub(super) async fn whole(
    shared: &Shared,
    headers: &HeaderMap,
    body: Body,
    deadline: Deadline,
) -> Result<Part, Problem> {
    let bytes_max = shared.limits.batch_body_bytes_max;
    if extract::stated_length(headers).is_some_and(|length| length > bytes_max) {
        return Err(extract::too_large(bytes_max));
    }
    let mut incoming = Incoming::new(shared.intake.clone(), body)?;
    deadline.within(incoming.fill(&shared.limits)).await?;
    Ok(incoming.take(incoming.pending.len()))
}

/// Who works on what has come in has one of `limits.batches_max` places until that is done, and nobody has one while more comes.
impl Shared {
    /// A place for the long work of one customer, if one is free and nobody waits: a caller of one does not stand in line behind batches.
    pub(super) fn long_work(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.batches.clone().try_acquire_owned().map_err(|_| busy())
    }

    /// A place for a batch that has come in whole. Who waits has a turn in the order in which all came, so that streams, which come again
    /// for each of their parts, do not keep everybody else out.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.turn_within(self.limits.batch_wait()).await
    }

    /// The same for a part of a stream. It waits for as long as for its next row: the rest of the stream would be lost.
    pub(super) async fn turn_in_stream(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.turn_within(self.limits.body_timeout()).await
    }

    async fn turn_within(&self, wait: Duration) -> Result<OwnedSemaphorePermit, Problem> {
        let turn = timeout(wait, self.batches.clone().acquire_owned()).await;
        let turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        // Answers are not refused, so where there is no memory left nothing is begun that will need some.
        if self.intake.available_permits() == 0 { Err(full()) } else { Ok(turn) }
    }

    /// The answer `text` of a part of a stream, which counts until nobody has it any more, also while it waits to be sent: for as much as there is
    /// beside a whole body, since what is on record is answered, and one slow reader is not to keep all others out.
    pub(super) fn answering(&self, text: Bytes) -> Bytes {
        let spare = self.intake.available_permits().saturating_sub(self.limits.batch_body_bytes_max);
        let bytes = u32::try_from(text.len().min(spare)).unwrap_or(u32::MAX);
        match self.intake.clone().try_acquire_many_owned(bytes) {
            Ok(held) => guarded(text, held),
            Err(_) => text,
        }
    }
}

fn busy() -> Problem {
    Problem::new(Code::Overloaded, "too many batches are being answered; try again after a second")
}

fn full() -> Problem {
    Problem::new(Code::Overloaded, "too many batches are being read; try again after a second")
}
