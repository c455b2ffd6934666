//! How long the caller waits, by the header `x-request-timeout-ms`, and whether it is there at all. Work that nobody waits for is not
//! begun, and long work looks again between its parts. What is on record is answered, however late. The server's own bounds are elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use utoipa::IntoParams;

use super::admission;
use super::problem::{Code, Problem};
use crate::domain::violation::{self, Violation};

const TIMEOUT_MS: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// The longest wait that a caller can state, in milliseconds: an hour.
const TIMEOUT_MS_MAX: u64 = 3_600_000;

/// The header, for the contract.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "the contract; the header is read by `Deadline`")]
pub(super) struct Stated {
    /// How long you wait for the answer, in milliseconds from when the request is sent. Work that cannot start in that time is not started:
    /// you get `deadline_exceeded`, and nothing was decided or recorded. Whatever is already recorded is answered, even late. The service's
    /// own limits hold besides: whichever is sooner. An array of outcomes may be cut short: send all of it again.
    #[param(rename = "x-request-timeout-ms", required = false, nullable = false, minimum = 1, maximum = 3_600_000)]
    timeout_ms: Option<u64>,
}

/// When the caller stops waiting, if it said so.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Deadline(Option<Instant>);

impl Deadline {
    /// What the `headers` say. Errors: a time that is none.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(stated) = headers.get(TIMEOUT_MS) else { return Ok(Self(None)) };
        let digits = stated.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let ms = digits.and_then(|text| text.parse().ok()).filter(|ms| (1..=TIMEOUT_MS_MAX).contains(ms));
        let Some(ms) = ms else {
            let expected = format!("a whole number of milliseconds from 1 to {TIMEOUT_MS_MAX}");
            let violation = Violation::new("/x-request-timeout-ms", violation::Code::OutOfRange, expected);
            return Err(Problem::invalid(vec![violation]));
        };
        // A part of it went by before anybody here looked at the request.
        let left = Duration::from_millis(ms).saturating_sub(admission::lag());
        Ok(Self(Some(Instant::now() + left)))
    }

    /// Errors: the caller does not wait any more.
    fn is_to_come(self) -> Result<(), Problem> {
        match self.0 {
            Some(deadline) if Instant::now() >= deadline => Err(late()),
            _ => Ok(()),
        }
    }

    /// When that is.
    pub(super) fn at(self) -> Option<Instant> {
        self.0
    }

    /// What is left of `duration` until then, or all of it.
    pub(super) fn left(self, duration: Duration) -> Duration {
        self.0.map_or(duration, |deadline| deadline.saturating_duration_since(Instant::now()).min(duration))
    }

    /// What `work` gives, if the caller waits until then.
    pub(super) async fn within<T>(self, work: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
        let Some(deadline) = self.0 else { return work.await };
        let done = tokio::time::timeout_at(deadline.into(), work).await.map_err(|_| late())??;
        self.is_to_come()?;
        Ok(done)
    }
}

impl<S: Sync> FromRequestParts<S> for Deadline {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::of(&parts.headers)
    }
}

/// The caller, as a thread sees it that works for it.
#[derive(Debug)]
pub(super) struct Caller {
    deadline: Deadline,
    gone: Arc<AtomicBool>,
}

impl Caller {
    /// A caller who waits until `deadline`, or until what is given besides is dropped: hyper drops the answer to come of who goes away.
    pub(super) fn new(deadline: Deadline) -> (Self, Presence) {
        let gone = Arc::new(AtomicBool::new(false));
        (Self { deadline, gone: gone.clone() }, Presence(gone))
    }

    /// Errors: the caller has gone away. Nobody reads this.
    pub(super) fn is_there(&self) -> Result<(), Problem> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(Problem::new(Code::DeadlineExceeded, "the caller has gone away"));
        }
        Ok(())
    }

    /// Errors: the caller has gone away, or does not wait any more.
    pub(super) fn waits(&self) -> Result<(), Problem> {
        self.is_there()?;
        self.deadline.is_to_come()
    }
}

/// As long as this is there, the caller is.
pub(super) struct Presence(Arc<AtomicBool>);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn late() -> Problem {
    Problem::new(Code::DeadlineExceeded, "x-request-timeout-ms elapsed before the work was started")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stated(text: &'static str) -> Result<Deadline, Problem> {
        Deadline::of(&HeaderMap::from_iter([(TIMEOUT_MS, axum::http::HeaderValue::from_static(text))]))
    }

    #[test]
    fn a_timeout_is_a_whole_number_of_milliseconds() {
        for text in ["1", "250", "3600000", "007"] {
            assert!(stated(text).is_ok_and(|deadline| deadline.0.is_some()), "{text}");
        }
        for text in ["", "0", "-1", "+1", "1.5", "1e3", "3600001", "18446744073709551616", "soon"] {
            assert!(stated(text).is_err(), "{text}");
        }
        assert!(Deadline::of(&HeaderMap::new()).is_ok_and(|deadline| deadline.0.is_none()));
    }

    #[test]
    fn who_has_gone_does_not_wait_and_neither_does_who_is_late() {
        let (caller, presence) = Caller::new(Deadline(None));
        assert!(caller.waits().is_ok());
        drop(presence);
        assert!(caller.is_there().is_err() && caller.waits().is_err());
        let (caller, _presence) = Caller::new(Deadline(Some(Instant::now())));
        assert!(caller.is_there().is_ok() && caller.waits().is_err());
    }
}
