//! What asking for credentials costs, and whether its time tells a right key from a wrong one: `Access::admit` as a request calls it, with
//! a thousand keys. Prints one JSON object: nanoseconds by kind of key, and how far kinds are apart, with the standard error.

use std::hint::black_box;
use std::time::{Instant, SystemTime};

use mainstay::access::{Access, Editor, Options, Rate};
use mainstay::domain::access::{Needs, Scope};
use serde_json::{Map, Value, json};

const KEYS: usize = 1_000;
/// Calls of one sample: the clock itself takes some of them.
const CALLS: u32 = 64;
const SAMPLES: usize = 20_000;

fn options(file: &std::path::Path) -> Options {
    let text = include_str!("../src/default.toml");
    let all: toml::Table = text.parse().expect("TOML");
    let mut options: Options = all["access"].clone().try_into().expect("the section access");
    options.keys_file = file.to_owned();
    options
}

/// The samples without the slowest tenth, which is of whoever else runs here.
fn trimmed(mut samples: Vec<f64>) -> Vec<f64> {
    samples.sort_by(f64::total_cmp);
    samples.truncate(samples.len() * 9 / 10);
    samples
}

fn moments(samples: &[f64]) -> (f64, f64) {
    let mean = samples.iter().sum::<f64>() / samples.len() as f64;
    let square = samples.iter().map(|sample| (sample - mean).powi(2)).sum::<f64>();
    (mean, square / (samples.len() - 1) as f64)
}

/// How far the means are apart, and the standard error of that (Welch).
fn apart(one: &[f64], other: &[f64]) -> (f64, f64) {
    let ((mean, variance), (mean2, variance2)) = (moments(one), moments(other));
    (mean - mean2, (variance / one.len() as f64 + variance2 / other.len() as f64).sqrt())
}

fn main() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("keys.json");
    let mut editor = Editor::open(&file).expect("an editor");
    let mut add = |rate| {
        let caller = ("bench".to_owned(), vec![Scope::Score], Vec::new());
        editor.add(caller, None, rate).expect("a key").1
    };
    let plain = add(None);
    let limited = add(Some(Rate { per_sec: 1_000_000, burst: 1_000_000 }));
    (2..KEYS).for_each(|_| drop(add(None)));
    drop(editor);
    let access =
        Access::open(options(&file), SystemTime::now, |_, _, _| Err("there is no issuer".to_owned())).expect("access");

    let other = |key: &str, at: usize| {
        let mut bytes = key.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'a' { b'b' } else { b'a' };
        String::from_utf8(bytes).expect("ASCII")
    };
    let kinds = [
        ("right", plain.clone()),
        ("right_with_rate", limited),
        ("wrong_first", other(&plain, 15)),
        ("wrong_last", other(&plain, 46)),
        ("unknown_id", format!("msk_aaaaaaaaaa{}", &plain[14..])),
    ];
    let headers = kinds.clone().map(|(_, key)| format!("Bearer {key}"));
    let mut samples = kinds.clone().map(|_| Vec::with_capacity(SAMPLES));
    let mut random = fastrand::Rng::with_seed(17);
    for _ in 0..SAMPLES * kinds.len() {
        // In no order, so that no kind always comes after another.
        let kind = random.usize(..kinds.len());
        let begun = Instant::now();
        for _ in 0..CALLS {
            let admitted = access.admit(Some(black_box(headers[kind].as_bytes())), Needs::Scope(Scope::Score));
            let _ = black_box(admitted);
        }
        samples[kind].push(begun.elapsed().as_nanos() as f64 / f64::from(CALLS));
    }
    let samples = samples.map(trimmed);
    let mut ns = Map::new();
    for ((name, _), samples) in kinds.iter().zip(&samples) {
        ns.insert((*name).to_owned(), json!(samples[samples.len() * 5 / 9]));
    }
    let against = |one: usize, other: usize| {
        let (mean_ns, error_ns) = apart(&samples[one], &samples[other]);
        json!({"between": [kinds[one].0, kinds[other].0], "mean_ns": mean_ns, "error_ns": error_ns})
    };
    let found: Vec<Value> = vec![against(2, 3), against(2, 4), against(3, 4), against(0, 2)];
    println!("{}", json!({"median_ns": ns, "differences": found, "samples": SAMPLES, "keys": KEYS}));
}
