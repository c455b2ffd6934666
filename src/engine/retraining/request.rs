//! A cause on its way: what is to be done about it next, what a try makes of it, and which one makes room for another. Who does all of
//! that is above.

use std::time::{Duration, Instant};

use super::Options;
use crate::domain::retraining::{Cause, PAUSE_MS_MAX, pause_ms};
use crate::ledger::{Delivery, Remembered};
use crate::outbound::webhook::Failure;

/// A cause, and how far it has come.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The cause, when it was seen, the message about it, and what became of that.
    pub remembered: Remembered,
    /// Whether all of that is on record: a cause is only sent then, and what became of it is written down until it is.
    pub is_recorded: bool,
    /// How often it was tried since the service started.
    pub tries: u32,
    /// How the last of these failed.
    pub failure: Option<String>,
    /// When it is tried next, where it is.
    pub(super) due: Instant,
    /// When it is put on record, where it is not.
    pub(super) record_due: Instant,
}

impl Request {
    pub(super) fn new(remembered: Remembered, is_recorded: bool) -> Self {
        let now = Instant::now();
        Self { remembered, is_recorded, tries: 0, failure: None, due: now, record_due: now }
    }

    /// When something is to be done about it, if anything is.
    pub(super) fn waits_until(&self) -> Option<Instant> {
        match self.remembered.delivery {
            _ if !self.is_recorded => Some(self.record_due),
            Delivery::Due | Delivery::GivenUp => Some(self.due),
            Delivery::Delivered | Delivery::Refused => None,
        }
    }

    /// After a try that ended as `sent` says.
    pub(super) fn tried(&mut self, sent: Result<(), Failure>, options: &Options, now_ms: u64) {
        self.tries += 1;
        let before = self.remembered.delivery;
        let is_long = before == Delivery::GivenUp || self.tries >= options.tries_max;
        let delivery = match &sent {
            Ok(()) => Delivery::Delivered,
            Err(failure) if failure.is_final => Delivery::Refused,
            Err(_) if is_long => Delivery::GivenUp,
            Err(_) => Delivery::Due,
        };
        let pause = if is_long { PAUSE_MS_MAX } else { pause_ms(self.tries, options.backoff_ms, fastrand::f64()) };
        let failure = sent.err();
        let wait = failure.as_ref().and_then(|failure| failure.wait).unwrap_or_default();
        self.due = Instant::now() + wait.clamp(Duration::from_millis(pause), Duration::from_millis(PAUSE_MS_MAX));
        self.failure = failure.map(|failure| failure.text);
        if delivery != before {
            (self.remembered.delivery, self.remembered.delivery_ms) = (delivery, now_ms);
            (self.is_recorded, self.record_due) = (false, Instant::now());
        }
    }
}

/// The place of the one that makes room for `cause`, if one may. What is of a version that is not the champion any more cannot come up again;
/// of the others one that is settled would be told twice at worst.
pub(super) fn forgettable(requests: &[Request], cause: &Cause) -> Option<usize> {
    let rank = |request: &Request| {
        let Remembered { cause: known, delivery, .. } = &request.remembered;
        let is_over = known.model == cause.model && known.version != cause.version;
        match delivery {
            _ if !request.is_recorded => None,
            Delivery::GivenUp => is_over.then_some(0),
            Delivery::Delivered | Delivery::Refused => Some(if is_over { 1 } else { 2 }),
            Delivery::Due => None,
        }
    };
    let ranked = requests.iter().enumerate().filter_map(|(place, request)| Some((rank(request)?, place)));
    ranked.min().map(|(_, place)| place)
}
