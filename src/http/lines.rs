//! A body as chunks of whole lines, bounded in size and time. What a line says is not known here.

use axum::body::{Body, Bytes};
use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::Limits;
use super::problem::{Code, Problem};
use super::rows::ROWS;

/// A body as chunks of whole lines.
pub(super) struct Lines {
    body: Body,
    pending: BytesMut,
    ended: bool,
}

impl Lines {
    /// The lines of `body`.
    pub(super) fn new(body: Body) -> Self {
        Self { body, pending: BytesMut::new(), ended: false }
    }

    /// The next whole lines, at most [`ROWS`]; `None` at the end. The next line has the time of a body to end, however often a part
    /// of it comes: a sender that drips would hold its place for long.
    ///
    /// Errors: a line that is too long, a body that stalls or breaks off. What came before has been answered.
    pub(super) async fn next(&mut self, limits: &Limits) -> Result<Option<Bytes>, Problem> {
        let deadline = Instant::now() + limits.body_timeout();
        loop {
            let ends = self.pending.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
            if let Some(end) = ends.take(ROWS).last() {
                return Ok(Some(self.pending.split_to(end).freeze()));
            }
            if self.ended {
                let rest = self.pending.split().freeze();
                return Ok(rest.has_remaining().then_some(rest));
            }
            if self.pending.len() > limits.body_bytes_max {
                return Err(row_too_large(limits.body_bytes_max));
            }
            match timeout_at(deadline, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        self.pending.extend_from_slice(data);
                    }
                }
                Ok(None) => self.ended = true,
                Ok(Some(Err(_))) => {
                    return Err(Problem::new(Code::IncompleteBody, "the connection ended before the body did"));
                }
                Err(_) => {
                    let wait_ms = limits.body_timeout().as_millis();
                    return Err(Problem::new(Code::RequestTimeout, format!("no row came for {wait_ms} ms")));
                }
            }
        }
    }
}

/// Why a row of more than `bytes_max` bytes is not read.
pub(super) fn row_too_large(bytes_max: usize) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("a row may have {bytes_max} bytes"))
}
