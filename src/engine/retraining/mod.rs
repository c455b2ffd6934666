//! Asking for a new model: each cause is put on record and then sent, on a thread of its own, until it arrives or is refused.
//! What calls for one is in `evidence`, how far each has come in `request`, the law in `domain::retraining`, the message on its way in `outbound::webhook`.

mod evidence;
mod request;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::measures::Part;
use super::monitor::Window;
use super::slots::Deck;
use super::{Engine, Error};
use crate::domain::insight::quality::Quality;
use crate::domain::policy::Period;
use crate::domain::retraining::{Cause, Kind, PAUSE_MS_MAX, pause_ms};
use crate::ledger::{Delivery, Ledger, Remembered};
use crate::outbound;
use crate::outbound::webhook::Sender;
use evidence::Seen;
pub use request::Request;
use request::forgettable;

/// Causes that are known at a time; with more, the first of those that may be are forgotten.
const CAUSES_MAX: usize = 512;
/// How long nothing is looked at where nothing waits; who has something wakes the thread.
const IDLE: Duration = Duration::from_secs(60);
/// The key figures that a target can be set for.
const KPIS: [&str; 3] = ["churn_reduction", "conversion_rate", "cost_per_decision"];

/// The section `retraining` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Options {
    pub url: String,
    pub ca: PathBuf,
    pub secret_file: PathBuf,
    pub causes: Vec<Kind>,
    pub schedule: String,
    pub drift_window: String,
    pub drift_requests_min: u64,
    pub auc_floor: f64,
    pub auc_fall: f64,
    pub kpis: Vec<String>,
    pub cool_down_hours: f64,
    pub tries_max: u32,
    pub backoff_ms: u64,
    pub timeout_ms: u64,
    pub links: String,
}

impl Options {
    /// Whether new models are asked for.
    pub fn is_on(&self) -> bool {
        !self.url.is_empty()
    }

    /// Every value that is out of its range, as (key, sentence).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut within = |key, value: f64, min: f64, max: f64| {
            // Written so that NaN is out of every range.
            if !(value >= min && value <= max) {
                problems.push((key, format!("expected {min} to {max}")));
            }
        };
        within("drift_requests_min", self.drift_requests_min as f64, 1.0, 1e9);
        within("auc_floor", self.auc_floor, 0.0, 1.0);
        within("auc_fall", self.auc_fall, 0.0, 1.0);
        within("cool_down_hours", self.cool_down_hours, 0.0, 8_784.0);
        within("tries_max", f64::from(self.tries_max), 1.0, 100.0);
        within("backoff_ms", self.backoff_ms as f64, 1.0, PAUSE_MS_MAX as f64);
        within("timeout_ms", self.timeout_ms as f64, 1.0, 60_000.0);
        let mut wrong = |is_wrong: bool, key, text: &str| {
            if is_wrong {
                problems.push((key, text.to_owned()));
            }
        };
        wrong(
            Window::named(&self.drift_window).is_none(),
            "drift_window",
            "expected \"1h\", \"24h\", \"7d\" or \"30d\"",
        );
        wrong(
            !["off", "week", "month"].contains(&self.schedule.as_str()),
            "schedule",
            "expected \"off\", \"week\" or \"month\"",
        );
        let is_known = |kpi: &String| KPIS.contains(&kpi.as_str());
        wrong(!self.kpis.iter().all(is_known), "kpis", &format!("expected some of {}", KPIS.join(", ")));
        wrong(self.causes.is_empty(), "causes", "expected at least one; nothing is asked for without a url");
        let is_link = |url: &str| url.starts_with("https://") || url.starts_with("http://");
        wrong(
            !self.links.is_empty() && !is_link(&self.links),
            "links",
            "expected what an address begins with, such as https://mainstay.example.com",
        );
        if self.is_on() {
            let danger = "the messages tell figures of the business";
            problems.extend(outbound::problems(("url", &self.url), ("ca", &self.ca), danger));
        }
        problems
    }

    /// How long one try may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    fn period(&self) -> Option<Period> {
        match self.schedule.as_str() {
            "week" => Some(Period::Week),
            "month" => Some(Period::Month),
            _ => None,
        }
    }

    fn cool_down_ms(&self) -> u64 {
        (self.cool_down_hours * 3_600_000.0) as u64
    }
}

/// The causes that are known, and what sends them.
#[derive(Debug)]
pub(super) struct Retraining {
    options: Options,
    sender: Sender,
    requests: Mutex<Vec<Request>>,
    /// The thread that sends, once there is one.
    thread: OnceLock<Thread>,
    stopping: AtomicBool,
}

impl Retraining {
    /// With what the ledger remembers: what did not arrive is tried at once.
    pub(super) fn open(options: Options, sender: Sender, ledger: &Ledger) -> Result<Self, Error> {
        let remembered = ledger.asked(CAUSES_MAX)?;
        let requests = Mutex::new(remembered.into_iter().map(|known| Request::new(known, true)).collect());
        let (thread, stopping) = (OnceLock::new(), AtomicBool::new(false));
        Ok(Self { options, sender, requests, thread, stopping })
    }

    fn requests(&self) -> MutexGuard<'_, Vec<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes those of `causes` that are new, all of one look, each with its message.
    fn take(&self, causes: Vec<Cause>, now_ms: u64, message: impl Fn(&Cause) -> Arc<str>) {
        if causes.is_empty() {
            return;
        }
        let mut requests = self.requests();
        let told: Vec<(Cause, u64)> =
            requests.iter().map(|request| (request.remembered.cause.clone(), request.remembered.at_ms)).collect();
        let is_new = |cause: &Cause| {
            let told = told.iter().map(|(cause, at_ms)| (cause, *at_ms));
            cause.is_new(told, now_ms, self.options.cool_down_ms())
        };
        for cause in causes.into_iter().filter(is_new) {
            if requests.len() >= CAUSES_MAX {
                // Nothing arrives: one more would not either, and it is seen again.
                let Some(place) = forgettable(&requests, &cause) else { break };
                requests.remove(place);
            }
            let message = message(&cause);
            let remembered = Remembered { cause, at_ms: now_ms, delivery: Delivery::Due, delivery_ms: now_ms, message };
            requests.push(Request::new(remembered, false));
        }
        drop(requests);
        self.wake();
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// What is to be done at `now`: the first one that is due, or how long there is nothing.
    fn next(&self, now: Instant) -> Result<Request, Duration> {
        let requests = self.requests();
        let waiting = requests.iter().filter_map(|request| Some((request.waits_until()?, request)));
        let Some((due, first)) = waiting.min_by_key(|(due, _)| *due) else { return Err(IDLE) };
        let pause = due.saturating_duration_since(now);
        if pause.is_zero() { Ok(first.clone()) } else { Err(pause.min(IDLE)) }
    }

    /// Changes what is known of a cause.
    fn change(&self, cause: &Cause, change: impl FnOnce(&mut Request)) {
        if let Some(request) = self.requests().iter_mut().find(|request| request.remembered.cause == *cause) {
            change(request);
        }
    }
}

impl Engine {
    /// The causes for which a new model was asked, the newest first; `None` where that is off.
    pub fn retraining(&self) -> Option<Vec<Request>> {
        self.retraining.as_ref().map(|retraining| retraining.requests().iter().rev().cloned().collect())
    }

    /// Looks at the champion of a deck, with the quality of each version that was just measured. It waits for no receiver, and for the writer only
    /// behind a move of that deck, which keeps the deck until it is on record.
    pub(super) fn look_for_causes(&self, deck: &Deck, versions: &[Part<Quality>]) -> Result<(), Error> {
        let Some(retraining) = &self.retraining else { return Ok(()) };
        let options = &retraining.options;
        let window = Window::named(&options.drift_window).unwrap_or(Window::Day);
        let drifted = self.drift(&deck.name, window)?;
        let champion = {
            let held = deck.held();
            let colour = held.slots.champion();
            held.in_slot(colour)
                .zip(held.slots.placed(colour))
                .map(|(loaded, placed)| (loaded.model.clone(), placed.since_ms))
        };
        let Some((model, since_ms)) = champion else { return Ok(()) };
        let version = model.id().version.as_str();
        // It may have changed since the drift was measured.
        let Some(drifted) = drifted.iter().find(|found| found.model.version == version) else { return Ok(()) };
        let over = Window::named(&self.insight.options.window).unwrap_or(Window::Month);
        let kpis = self.kpis_of_version(&deck.name, version, over)?;
        let is_own = |part: &&Part<Quality>| part.dimension == "version" && part.value == version;
        let seen = Seen {
            model: &deck.name,
            version,
            digest: model.digest(),
            since_ms,
            card_auc: model.card().metrics.holdout.auc.value,
            kpis: &kpis,
            quality: versions.iter().find(is_own).map(|part| &part.figures),
            drift: &drifted.drift,
            window: over,
            now_ms: self.now_ms(),
        };
        retraining.take(seen.causes(options), seen.now_ms, |cause| seen.message(cause, options));
        Ok(())
    }

    /// Puts causes on record and sends them until it is to stop. To be called on a thread of its own.
    pub fn run_retraining(&self) {
        let Some(retraining) = &self.retraining else { return };
        let _ = retraining.thread.set(std::thread::current());
        self.tell_requests(retraining);
        while !retraining.stopping.load(Ordering::Relaxed) {
            match retraining.next(Instant::now()) {
                Ok(request) if !request.is_recorded => self.record_request(retraining, &request),
                Ok(request) => self.send_request(retraining, request),
                Err(pause) => std::thread::park_timeout(pause),
            }
            self.tell_requests(retraining);
        }
    }

    /// Sends nothing more. What is on its way ends within the time of a try.
    pub fn stop_retraining(&self) {
        if let Some(retraining) = &self.retraining {
            retraining.stopping.store(true, Ordering::Relaxed);
            retraining.wake();
        }
    }

    fn record_request(&self, retraining: &Retraining, request: &Request) {
        let Remembered { cause, delivery, .. } = &request.remembered;
        let is_new = *delivery == Delivery::Due;
        let recorded = self.ledger().and_then(|ledger| Ok(ledger.remember(&request.remembered, request.tries)?));
        match recorded {
            Ok(()) => {
                if is_new {
                    tracing::info!(model = cause.model, kind = cause.kind.name(), cause = %cause, "a new model is asked for");
                }
                retraining.change(cause, |request| request.is_recorded = true);
            }
            Err(error) if is_new => {
                // What is not on record is not sent. It is seen again.
                tracing::warn!(model = cause.model, cause = %error, "a request for a new model cannot be recorded");
                retraining.requests().retain(|request| request.remembered.cause != *cause);
            }
            Err(error) => {
                tracing::warn!(model = cause.model, cause = %error, "what became of a request for a new model cannot be recorded; tried again");
                let pause = Duration::from_millis(pause_ms(1, retraining.options.backoff_ms, fastrand::f64()));
                retraining.change(cause, |request| request.record_due = Instant::now() + pause);
            }
        }
    }

    fn send_request(&self, retraining: &Retraining, mut request: Request) {
        let Remembered { cause, message, .. } = &request.remembered;
        let sent = retraining.sender.send(&cause.id(), self.now_ms() / 1_000, message.as_bytes());
        self.metrics.retraining_tried(sent.is_ok());
        request.tried(sent, &retraining.options, self.now_ms());
        let Request { remembered: Remembered { cause, delivery, .. }, is_recorded, tries, failure, .. } = &request;
        if let Some(failure) = failure {
            match delivery {
                _ if *is_recorded => tracing::warn!(
                    model = cause.model,
                    cause = failure,
                    tries,
                    "a request for a new model did not arrive"
                ),
                Delivery::Refused => tracing::error!(
                    model = cause.model,
                    cause = failure,
                    tries,
                    "a request for a new model is refused, and not sent again"
                ),
                _ => tracing::error!(
                    model = cause.model,
                    cause = failure,
                    tries,
                    "a request for a new model is given up: it is tried once an hour"
                ),
            }
        }
        retraining.change(cause, |known| *known = request.clone());
        if !is_recorded {
            self.record_request(retraining, &request);
        }
    }

    fn tell_requests(&self, retraining: &Retraining) {
        let requests = retraining.requests();
        let count = |delivery| requests.iter().filter(|request| request.remembered.delivery == delivery).count();
        // Somebody has to look at it, and has by the next start.
        let is_refused = |request: &&Request| request.remembered.delivery == Delivery::Refused && request.tries > 0;
        let refused = requests.iter().filter(is_refused).count();
        self.metrics.retraining_undelivered(count(Delivery::Due), count(Delivery::GivenUp), refused);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Sources};
    use crate::outbound::webhook::Failure;

    const HOUR: Duration = Duration::from_millis(PAUSE_MS_MAX);

    fn retraining(requests: Vec<Request>) -> Retraining {
        let options = Config::load(&Sources::of_process(None, Vec::new())).expect("a configuration").retraining;
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned();
        let no = Path::new("");
        let sender = Sender::open(("https://x", no), no, Some(secret), Duration::from_secs(1)).expect("a sender");
        let (thread, stopping) = (OnceLock::new(), AtomicBool::new(false));
        Retraining { options, sender, requests: Mutex::new(requests), thread, stopping }
    }

    fn request(version: &str, of: usize, delivery: Delivery) -> Request {
        let of = vec![of.to_string()];
        let cause = Cause { model: "m".to_owned(), version: version.to_owned(), kind: Kind::Kpi, of };
        Request::new(Remembered { cause, at_ms: 0, delivery, delivery_ms: 0, message: "{}".into() }, true)
    }

    fn failed(is_final: bool) -> Result<(), Failure> {
        Err(Failure { text: "it answered so".to_owned(), is_final, wait: None })
    }

    #[test]
    fn what_is_given_up_is_tried_once_an_hour_until_it_arrives_or_is_refused() {
        let options = retraining(Vec::new()).options;
        let mut one = request("1.0.0", 0, Delivery::Due);
        for tries in 1..options.tries_max {
            one.tried(failed(false), &options, 1);
            assert_eq!((one.tries, one.remembered.delivery, one.is_recorded), (tries, Delivery::Due, true));
        }
        one.tried(failed(false), &options, 2);
        assert_eq!(
            (one.remembered.delivery, one.remembered.delivery_ms, one.is_recorded),
            (Delivery::GivenUp, 2, false)
        );
        assert!(retraining(vec![one.clone()]).next(Instant::now()).is_ok(), "it is put on record at once");
        for (tries, known) in [(options.tries_max, one.clone()), (0, request("1.0.0", 0, Delivery::GivenUp))] {
            // The other one is as after a restart: it is tried at once.
            let mut one = Request { is_recorded: true, ..known };
            let is_tried = |one: &Request, now: Instant| retraining(vec![one.clone()]).next(now).is_ok();
            assert_eq!(is_tried(&one, Instant::now()), tries == 0);
            one.tried(failed(false), &options, 3);
            assert!(one.remembered.delivery == Delivery::GivenUp && one.is_recorded, "nothing is new");
            assert!(!is_tried(&one, Instant::now()) && is_tried(&one, Instant::now() + HOUR));
            let (mut arrived, mut refused) = (one.clone(), one);
            arrived.tried(Ok(()), &options, 4);
            refused.tried(failed(true), &options, 4);
            for (one, delivery) in [(arrived, Delivery::Delivered), (refused, Delivery::Refused)] {
                assert_eq!((one.remembered.delivery, one.remembered.delivery_ms), (delivery, 4));
                assert!(is_tried(&one, Instant::now()), "that is put on record");
                assert!(!is_tried(&Request { is_recorded: true, ..one }, Instant::now() + 24 * HOUR));
            }
        }
    }

    #[test]
    fn a_receiver_is_left_alone_as_long_as_it_wants_and_for_an_hour_at_most() {
        let options = retraining(Vec::new()).options;
        for (wait, pause) in [(HOUR * 5 / 6, HOUR * 5 / 6), (HOUR * 24 * 365, HOUR)] {
            let (mut one, before) = (request("1.0.0", 0, Delivery::Due), Instant::now());
            one.tried(Err(Failure { wait: Some(wait), ..failed(false).expect_err("a failure") }), &options, 1);
            assert!((before + pause..=Instant::now() + pause).contains(&one.due), "{wait:?}");
        }
    }

    #[test]
    fn what_cannot_come_up_again_makes_room_first_and_what_finds_none_does_not_keep_the_others() {
        let causes = |count: usize| -> Vec<Cause> {
            (0..count).map(|at| request("2.0.0", 10_000 + at, Delivery::Due).remembered.cause).collect()
        };
        let mut held: Vec<Request> = (0..CAUSES_MAX).map(|at| request("2.0.0", at, Delivery::GivenUp)).collect();
        held[7] = request("2.0.0", 7, Delivery::Delivered);
        held[8] = request("1.0.0", 8, Delivery::Refused);
        held[9] = request("1.0.0", 9, Delivery::GivenUp);
        held[10] = Request { is_recorded: false, ..request("1.0.0", 10, Delivery::GivenUp) };
        let retraining = Retraining {
            options: Options { cool_down_hours: 0.0, ..retraining(Vec::new()).options },
            ..retraining(held)
        };
        retraining.thread.set(std::thread::current()).expect("the first one");
        let has = |of: usize| retraining.requests().iter().any(|known| known.remembered.cause.of == [of.to_string()]);
        for (round, gone) in [9, 8, 7].into_iter().enumerate() {
            retraining.take(causes(round + 1), 1, |_| "{}".into());
            assert!(!has(gone) && has(10_000 + round) && retraining.requests().len() == CAUSES_MAX, "{gone}");
        }
        retraining.take(causes(9), 1, |_| "{}".into());
        assert!(!has(10_003) && has(0), "nothing may be forgotten any more");

        // One place for two: who sends is told of the one.
        retraining.requests().remove(0);
        std::thread::park_timeout(Duration::ZERO);
        retraining.take(causes(9), 1, |_| "{}".into());
        assert!(has(10_003) && !has(10_004));
        let begun = Instant::now();
        std::thread::park_timeout(Duration::from_secs(20));
        assert!(begun.elapsed() < Duration::from_secs(10), "it was not woken");
    }
}
