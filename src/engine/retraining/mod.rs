//! Asking for a new model: each cause is put on record and then sent, on a thread of its own, until it arrives or was tried often enough.
//! What calls for one is in `evidence`, the law in `domain::retraining`, the message on its way in `webhook`.

mod evidence;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::measures::Part;
use super::monitor::Window;
use super::slots::Deck;
use super::{Engine, Error};
use crate::domain::insight::kpis::Kpis;
use crate::domain::insight::quality::Quality;
use crate::domain::policy::Period;
use crate::domain::retraining::{Cause, Kind, PAUSE_MS_MAX, pause_ms};
use crate::ledger::{Action, Asked, Delivery, Ledger, Remembered};
use crate::webhook::{self, Sender};
use evidence::Seen;

/// Causes that are known at a time; with more, those that arrived first are forgotten.
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
        if let Some(problem) = webhook::problem(&self.url).filter(|_| self.is_on()) {
            problems.push(("url", problem.to_owned()));
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

/// A cause, and how far it has come.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The cause, when it was seen, the message about it, and what became of that.
    pub remembered: Remembered,
    /// Whether it is on record: only then it is sent.
    pub is_recorded: bool,
    /// How often it was tried since the service started.
    pub tries: u32,
    /// How the last of these failed.
    pub failure: Option<String>,
    /// When it is tried next, where it is.
    due: Instant,
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
    /// With what the ledger remembers: what did not arrive is tried again.
    pub(super) fn open(options: Options, sender: Sender, ledger: &Ledger) -> Result<Self, Error> {
        let request = |mut remembered: Remembered| {
            if remembered.delivery == Delivery::GivenUp {
                remembered.delivery = Delivery::Due;
            }
            Request { remembered, is_recorded: true, tries: 0, failure: None, due: Instant::now() }
        };
        let requests = ledger.asked(CAUSES_MAX)?.into_iter().map(request).collect();
        let (thread, stopping) = (OnceLock::new(), AtomicBool::new(false));
        Ok(Self { options, sender, requests: Mutex::new(requests), thread, stopping })
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
            let is_full = requests.len() >= CAUSES_MAX;
            match requests.iter().position(|request| request.remembered.delivery == Delivery::Delivered) {
                Some(first) if is_full => drop(requests.remove(first)),
                // Nothing arrives: one more would not either, and it is seen again.
                None if is_full => return,
                _ => {}
            }
            let message = message(&cause);
            let remembered = Remembered { cause, at_ms: now_ms, delivery: Delivery::Due, delivery_ms: now_ms, message };
            let due = Instant::now();
            requests.push(Request { remembered, is_recorded: false, tries: 0, failure: None, due });
        }
        drop(requests);
        self.wake();
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// What is to be done next: the first one that is due, or how long there is nothing.
    fn next(&self) -> Result<Request, Duration> {
        let requests = self.requests();
        let waiting = requests.iter().filter(|request| request.remembered.delivery == Delivery::Due);
        let Some(first) = waiting.min_by_key(|request| request.due) else { return Err(IDLE) };
        let pause = first.due.saturating_duration_since(Instant::now());
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

    /// Looks at the champion of a deck, by figures that were just measured. Neither waits for the ledger nor for a receiver.
    pub(super) fn look_for_causes(&self, deck: &Deck, kpis: &Kpis, versions: &[Part<Quality>]) -> Result<(), Error> {
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
        let is_own = |part: &&Part<Quality>| part.dimension == "version" && part.value == version;
        let seen = Seen {
            model: &deck.name,
            version,
            digest: model.digest(),
            since_ms,
            card_auc: model.card().metrics.holdout.auc.value,
            kpis,
            quality: versions.iter().find(is_own).map(|part| &part.figures),
            drift: &drifted.drift,
            window: Window::named(&self.insight.options.window).unwrap_or(Window::Month),
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
            match retraining.next() {
                Ok(request) if !request.is_recorded => self.record_request(retraining, &request),
                Ok(request) => self.send_request(retraining, &request),
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
        let Remembered { cause, at_ms, message, .. } = &request.remembered;
        let message = RawValue::from_string(message.to_string()).ok();
        match self.note(Asked { cause: cause.clone(), at_ms: *at_ms, delivery: Delivery::Due, tries: 0, message }) {
            Ok(()) => {
                tracing::info!(model = cause.model, kind = cause.kind.name(), cause = %cause, "a new model is asked for");
                retraining.change(cause, |request| request.is_recorded = true);
            }
            Err(error) => {
                // What is not on record is not sent. It is seen again.
                tracing::warn!(model = cause.model, cause = %error, "a request for a new model cannot be recorded");
                retraining.requests().retain(|request| request.remembered.cause != *cause);
            }
        }
    }

    fn send_request(&self, retraining: &Retraining, request: &Request) {
        let Remembered { cause, message, .. } = &request.remembered;
        let sent = retraining.sender.send(&cause.id(), self.now_ms() / 1_000, message.as_bytes());
        self.metrics.retraining_tried(sent.is_ok());
        let tries = request.tries + 1;
        let (delivery, failure, wait) = match sent {
            Ok(()) => (Delivery::Delivered, None, None),
            Err(failure) if failure.is_final || tries >= retraining.options.tries_max => {
                tracing::error!(
                    model = cause.model,
                    cause = failure.text,
                    tries,
                    "a request for a new model is given up"
                );
                (Delivery::GivenUp, Some(failure.text), None)
            }
            Err(failure) => {
                tracing::warn!(
                    model = cause.model,
                    cause = failure.text,
                    tries,
                    "a request for a new model did not arrive"
                );
                (Delivery::Due, Some(failure.text), failure.wait)
            }
        };
        let pause = Duration::from_millis(pause_ms(tries, retraining.options.backoff_ms, fastrand::f64()));
        let wait = wait.unwrap_or_default().min(Duration::from_millis(PAUSE_MS_MAX));
        let now_ms = self.now_ms();
        retraining.change(cause, |request| {
            (request.tries, request.failure) = (tries, failure);
            (request.remembered.delivery, request.remembered.delivery_ms) = (delivery, now_ms);
            request.due = Instant::now() + pause.max(wait);
        });
        if delivery != Delivery::Due
            && let Err(error) = self.note(Asked { cause: cause.clone(), at_ms: now_ms, delivery, tries, message: None })
        {
            tracing::warn!(model = cause.model, cause = %error, "that a request for a new model was sent is not on record");
        }
    }

    fn note(&self, asked: Asked) -> Result<(), Error> {
        Ok(self.ledger()?.act(Action::Retraining(Box::new(asked)))?)
    }

    fn tell_requests(&self, retraining: &Retraining) {
        let requests = retraining.requests();
        let count = |delivery| requests.iter().filter(|request| request.remembered.delivery == delivery).count();
        self.metrics.retraining_undelivered(count(Delivery::Due), count(Delivery::GivenUp));
    }
}
