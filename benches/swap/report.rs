//! What was seen, in figures: each part of the load by itself, latency from exact samples.

use std::time::Duration;

use serde_json::{Value, json};

/// In the place of a version: a score that does not belong to the version that it names.
pub(crate) const WRONG: u8 = 254;
/// No decision.
pub(crate) const FAILED: u8 = 255;

/// One request.
pub(crate) struct Sample {
    /// When it was due, in microseconds from the start.
    pub(crate) due_us: u64,
    pub(crate) done_us: u64,
    /// The place of its version, [`WRONG`] or [`FAILED`].
    pub(crate) version: u8,
}

/// The report of all parts; a request belongs to the part in which it was due.
pub(crate) fn parts(samples: &[Sample], marks: &[(String, u64)], names: &[&str], began: Duration) -> Value {
    let ends = marks.iter().skip(1).map(|(_, at)| *at).chain([u64::MAX]);
    let part = |((name, from), to): (&(String, u64), u64)| {
        let within: Vec<&Sample> = samples.iter().filter(|sample| (*from..to).contains(&sample.due_us)).collect();
        let mut told = figures(&within, names, began);
        told["name"] = json!(name);
        told["from_unix_ms"] = json!(unix_ms(began, *from));
        told
    };
    let all: Vec<&Sample> = samples.iter().collect();
    let mut told = figures(&all, names, began);
    told["parts"] = marks.iter().zip(ends).map(part).collect();
    told
}

fn unix_ms(began: Duration, us: u64) -> f64 {
    (began.as_micros() as u64 + us) as f64 / 1e3
}

fn figures(samples: &[&Sample], names: &[&str], began: Duration) -> Value {
    let of = |version: u8| samples.iter().filter(move |sample| sample.version == version);
    let mut latency: Vec<u64> = samples.iter().map(|sample| sample.done_us.saturating_sub(sample.due_us)).collect();
    latency.sort_unstable();
    let quantile = |share: f64| {
        let rank = (share * latency.len() as f64).ceil() as usize;
        latency.get(rank.saturating_sub(1)).map(|us| *us as f64 / 1e3)
    };
    let version = |(at, name): (usize, &&str)| {
        let first = of(at as u8).map(|sample| sample.done_us).min().map(|us| unix_ms(began, us));
        let last = of(at as u8).map(|sample| sample.done_us).max().map(|us| unix_ms(began, us));
        let told = json!({"answers": of(at as u8).count(), "first_unix_ms": first, "last_unix_ms": last});
        (name.to_string(), told)
    };
    json!({
        "requests": samples.len(), "wrong": of(WRONG).count(), "failed": of(FAILED).count(),
        "p50_ms": quantile(0.5), "p99_ms": quantile(0.99), "p999_ms": quantile(0.999), "max_ms": quantile(1.0),
        "versions": names.iter().enumerate().map(version).collect::<serde_json::Map<_, _>>(),
    })
}
