//! A body as chunks of whole lines, bounded in size and time. What a line says is not known here.

use tokio::time::timeout;

use super::Limits;
use super::incoming::{Incoming, Part};
use super::problem::{Code, Problem};
use super::rows::ROWS;

/// A body as chunks of whole lines.
pub(super) struct Lines {
    incoming: Incoming,
    /// So much of what is pending has no end of a line.
    searched: usize,
}

impl Lines {
    /// The lines of a body.
    pub(super) fn new(incoming: Incoming) -> Self {
        Self { incoming, searched: 0 }
    }

    /// The next whole lines, at most [`ROWS`]; `None` at the end. The next line has the time of a body to end, however often a part
    /// of it comes: a sender that drips would be there for long.
    ///
    /// Errors: a line that is too long, a body that stalls or breaks off. What came before has been answered.
    pub(super) async fn next(&mut self, limits: &Limits) -> Result<Option<Part>, Problem> {
        timeout(limits.body_timeout(), self.read(limits)).await.unwrap_or_else(|_| {
            let wait_ms = limits.body_timeout().as_millis();
            Err(Problem::new(Code::RequestTimeout, format!("no row came for {wait_ms} ms")))
        })
    }

    async fn read(&mut self, limits: &Limits) -> Result<Option<Part>, Problem> {
        loop {
            if let Some(end) = self.search() {
                self.searched = 0;
                return Ok(Some(self.incoming.take(end)));
            }
            if self.searched > limits.body_bytes_max {
                return Err(row_too_large(limits.body_bytes_max));
            }
            if !self.incoming.more().await? {
                let rest = std::mem::take(&mut self.searched);
                return Ok((rest > 0).then(|| self.incoming.take(rest)));
            }
        }
    }

    /// Where the whole lines end that have come, [`ROWS`] of them at most. A line may come byte by byte: none of them is looked at twice.
    fn search(&mut self) -> Option<usize> {
        let (searched, pending) = (self.searched, self.incoming.pending());
        let new = pending[searched..].iter().enumerate();
        let ends = new.filter(|(_, byte)| **byte == b'\n').map(|(at, _)| searched + at + 1);
        let end = ends.take(ROWS).last();
        self.searched = pending.len();
        end
    }
}

/// Why a row of more than `bytes_max` bytes is not read.
pub(super) fn row_too_large(bytes_max: usize) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("a row may have {bytes_max} bytes"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::{Body, Bytes};
    use futures_util::stream;
    use tokio::sync::Semaphore;

    use super::*;

    const LIMITS: Limits = Limits {
        in_flight_max: 1,
        body_bytes_max: 65_536,
        depth_max: 1,
        body_timeout_ms: 60_000,
        batches_max: 1,
        batch_wait_ms_max: 1,
        readings_max: 1,
        batch_rows_max: 1,
        batch_body_bytes_max: 1,
        intake_bytes_max: 1 << 20,
        nice_max: 0,
    };

    /// What comes of a body in `frames`.
    async fn read(intake: &Arc<Semaphore>, frames: impl IntoIterator<Item = String>) -> Vec<Result<String, Problem>> {
        let frames: Vec<_> = frames.into_iter().map(|frame| Ok::<_, std::io::Error>(Bytes::from(frame))).collect();
        let body = Body::from_stream(stream::iter(frames));
        let mut lines = Lines::new(Incoming::new(intake.clone(), body).expect("a place"));
        let mut read = Vec::new();
        while let Some(part) = lines.next(&LIMITS).await.transpose() {
            let is_end = part.is_err();
            read.push(part.map(|part| String::from_utf8_lossy(&part).into_owned()));
            if is_end {
                break;
            }
        }
        read
    }

    #[tokio::test]
    async fn whole_lines_come_as_they_are_whole() {
        let intake = Arc::new(Semaphore::new(LIMITS.intake_bytes_max));
        let frames = ["a", "b\nc\nd", "", "e", "\n\nf"].map(str::to_owned);
        let read = read(&intake, frames).await;
        let read: Vec<&str> = read.iter().map(|part| part.as_deref().expect("lines")).collect();
        assert_eq!(read, ["ab\nc\n", "de\n\n", "f"]);
        let many = "x\n".repeat(2 * ROWS + 1);
        let read = self::read(&intake, [many]).await;
        let counts: Vec<usize> =
            read.iter().map(|part| part.as_deref().map_or(0, |text| text.lines().count())).collect();
        assert_eq!(counts, [ROWS, ROWS, 1]);
        assert_eq!(intake.available_permits(), LIMITS.intake_bytes_max, "what was read and let go is not held");
    }

    /// A line of 64 KiB in pieces of one byte was two thousand million steps.
    #[tokio::test]
    async fn a_line_byte_by_byte_is_searched_once() {
        let intake = Arc::new(Semaphore::new(LIMITS.intake_bytes_max));
        let body = Body::from_stream(stream::iter(["a\n", "b", "c\n"].map(Ok::<_, std::io::Error>)));
        let mut lines = Lines::new(Incoming::new(intake, body).expect("a place"));
        assert!(lines.incoming.more().await.expect("the first"));
        assert_eq!((lines.search(), lines.searched), (Some(2), 2));
        // What was searched is not looked at again, whatever stands there.
        assert!(lines.incoming.more().await.expect("the second"));
        assert_eq!((lines.search(), lines.searched), (None, 3));
        assert!(lines.incoming.more().await.expect("the third"));
        assert_eq!((lines.search(), lines.searched), (Some(5), 5));
    }

    #[tokio::test]
    async fn bodies_hold_no_more_than_they_may_together() {
        let intake = Arc::new(Semaphore::new(100_000));
        let first = Incoming::new(intake.clone(), Body::empty()).expect("a place");
        assert!(Incoming::new(intake.clone(), Body::empty()).is_err(), "each counts for 64 KiB");
        drop(first);
        let read = read(&intake, (0..10).map(|_| "x".repeat(4_096))).await;
        assert!(matches!(&read[..], [Err(problem)] if problem.status() == 503), "ten pages are more than what is left");
        assert_eq!(intake.available_permits(), 100_000);
    }
}
