//! When a new model is asked for: what the causes are, which of them were not told yet, and how long to wait between tries. What is
//! measured, recorded and sent is known above.

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::policy::Period;

/// The longest pause between two tries, in milliseconds.
pub const PAUSE_MS_MAX: u64 = 3_600_000;

/// Why a new model is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It is time.
    Schedule,
    /// What comes in is far from what the model was trained on.
    Drift,
    /// The scores order customers worse than they did.
    Quality,
    /// A key figure surely misses its target.
    Kpi,
}

impl Kind {
    /// Its name: `schedule`, `drift`, `quality` or `kpi`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Schedule => "schedule",
            Kind::Drift => "drift",
            Kind::Quality => "quality",
            Kind::Kpi => "kpi",
        }
    }
}

/// One cause. Each is told once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The name of the model.
    pub model: String,
    /// The version that was the champion.
    pub version: String,
    /// Why.
    pub kind: Kind,
    /// What of: the period by its first day, the features that drift in the order of their names, `auc`, or the key figure.
    pub of: Vec<String>,
}

impl Cause {
    /// The id of the message, always the same for the same cause, so that a receiver can tell one that comes again: `msg_` and the first 32
    /// digits of a sha256.
    pub fn id(&self) -> String {
        let mut hash = Sha256::new();
        let fixed = [self.model.as_str(), &self.version, self.kind.name()];
        for field in fixed.into_iter().chain(self.of.iter().map(String::as_str)) {
            hash.update((field.len() as u64).to_le_bytes());
            hash.update(field);
        }
        let digits: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("msg_{digits}")
    }

    fn is_like(&self, other: &Self) -> bool {
        (&self.model, &self.version, self.kind) == (&other.model, &other.version, other.kind)
    }

    /// Whether this is to be told at `now_ms`, after those that were `told`, each with when, milliseconds since 1970. Of drift only a feature
    /// counts that was not told of yet: which of them are over the line changes from look to look. For `cool_down_ms` after one
    /// of its kind it waits.
    pub fn is_new<'c>(
        &self,
        told: impl Iterator<Item = (&'c Cause, u64)> + Clone,
        now_ms: u64,
        cool_down_ms: u64,
    ) -> bool {
        let like = || told.clone().filter(|(cause, _)| self.is_like(cause));
        let is_told = match self.kind {
            Kind::Drift => self.of.iter().all(|feature| like().any(|(cause, _)| cause.of.contains(feature))),
            Kind::Schedule | Kind::Quality | Kind::Kpi => like().any(|(cause, _)| cause.of == self.of),
        };
        !is_told && like().all(|(_, at_ms)| now_ms >= at_ms.saturating_add(cool_down_ms))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = self.of.join(", ");
        let who = format_args!("{} {}", self.model, self.version);
        match self.kind {
            Kind::Schedule => write!(f, "{who} is due to be trained again: the period from {of}"),
            Kind::Drift => write!(f, "what comes in for {who} is far from what it was trained on: {of}"),
            Kind::Quality => write!(f, "the scores of {who} are surely worse than they have to be: {of}"),
            Kind::Kpi => write!(f, "a key figure surely misses its target with {who}: {of}"),
        }
    }
}

/// The period that a new model is due for at `now_ms`, by its first day (UTC, `2026-12-01`): the one that it is, where the champion came into
/// service before it began, at `since_ms`. Times are in milliseconds since 1970.
pub fn due(period: Period, since_ms: u64, now_ms: u64) -> Option<String> {
    let begins_ms = period.around(now_ms).start;
    let begins = Timestamp::from_millisecond(i64::try_from(begins_ms).ok()?).ok()?;
    (since_ms < begins_ms).then(|| begins.to_zoned(TimeZone::UTC).date().to_string())
}

/// How long to wait after the try number `tries` (from 1 up) has failed, in milliseconds: `first_ms`, twice as long after each, at most
/// [`PAUSE_MS_MAX`]; of that a part between a half and all, by `unit` (0 to 1, by chance), so that senders do not come all at once.
pub fn pause_ms(tries: u32, first_ms: u64, unit: f64) -> u64 {
    let doubled = first_ms.saturating_mul(1 << tries.saturating_sub(1).min(32)).min(PAUSE_MS_MAX);
    doubled / 2 + (doubled as f64 / 2.0 * unit.clamp(0.0, 1.0)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn cause(kind: Kind, of: &[&str]) -> Cause {
        let of = of.iter().map(|name| (*name).to_owned()).collect();
        Cause { model: "m".to_owned(), version: "1.0.0".to_owned(), kind, of }
    }

    fn is_new(one: &Cause, told: &[(Cause, u64)], now_ms: u64) -> bool {
        one.is_new(told.iter().map(|(cause, at_ms)| (cause, *at_ms)), now_ms, 24 * HOUR)
    }

    #[test]
    fn each_cause_is_told_once() {
        let told =
            [(cause(Kind::Drift, &["a", "b"]), 0), (cause(Kind::Drift, &["c"]), 0), (cause(Kind::Kpi, &["x"]), 0)];
        let late = 100 * HOUR;
        for of in [&["a"][..], &["b"], &["a", "c"], &["a", "b", "c"]] {
            assert!(!is_new(&cause(Kind::Drift, of), &told, late), "{of:?} was told of");
        }
        assert!(is_new(&cause(Kind::Drift, &["a", "d"]), &told, late));
        assert!(!is_new(&cause(Kind::Kpi, &["x"]), &told, late) && is_new(&cause(Kind::Kpi, &["y"]), &told, late));
        assert!(is_new(&cause(Kind::Quality, &["auc"]), &told, late));
        let next = Cause { version: "1.1.0".to_owned(), ..cause(Kind::Kpi, &["x"]) };
        assert!(is_new(&next, &told, late), "another version is another cause");
    }

    #[test]
    fn after_one_of_a_kind_the_next_waits() {
        let told = [(cause(Kind::Drift, &["a"]), 10 * HOUR)];
        let next = cause(Kind::Drift, &["b"]);
        assert!(!is_new(&next, &told, 34 * HOUR - 1) && is_new(&next, &told, 34 * HOUR));
        assert!(is_new(&cause(Kind::Kpi, &["x"]), &told, 10 * HOUR), "of another kind it does not");
    }

    #[test]
    fn ids_are_of_all_parts() {
        let first = cause(Kind::Drift, &["a", "b"]);
        let others = [cause(Kind::Drift, &["ab"]), cause(Kind::Kpi, &["a", "b"]), cause(Kind::Drift, &["a"])];
        assert_eq!((first.id(), first.id().len()), (first.clone().id(), 36));
        assert!(others.iter().all(|other| other.id() != first.id()));
    }

    #[test]
    fn a_model_is_due_once_a_period_begins_in_its_service() {
        let ms = |text: &str| text.parse::<Timestamp>().expect("a time").as_millisecond() as u64;
        let (since, eve) = (ms("2026-11-22T10:00:00Z"), ms("2026-11-30T23:59:59.999Z"));
        assert_eq!(due(Period::Month, since, eve), None);
        assert_eq!(due(Period::Month, since, eve + 1).as_deref(), Some("2026-12-01"));
        assert_eq!(due(Period::Month, since, ms("2026-12-31T12:00:00Z")).as_deref(), Some("2026-12-01"));
        assert_eq!(due(Period::Month, since, ms("2027-02-03T00:00:00Z")).as_deref(), Some("2027-02-01"));
        assert_eq!(due(Period::Week, since, ms("2026-11-22T23:00:00Z")), None);
        assert_eq!(due(Period::Week, since, ms("2026-11-23T00:00:00Z")).as_deref(), Some("2026-11-23"));
    }

    #[test]
    fn pauses_double_up_to_an_hour() {
        let most: Vec<u64> = (1..=9).map(|tries| pause_ms(tries, 30_000, 1.0) / 1_000).collect();
        assert_eq!(most, [30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600]);
        assert_eq!((pause_ms(1, 30_000, 0.0), pause_ms(u32::MAX, u64::MAX, 0.5)), (15_000, PAUSE_MS_MAX * 3 / 4));
    }
}
