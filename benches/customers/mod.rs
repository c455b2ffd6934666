//! What the benches run on: the real bundles in service, and customers drawn from a model's own baseline. One repeated row
//! would teach the branch predictor the way through every tree, so there are thousands. No bench is here.

#![allow(dead_code, reason = "each bench uses its part")]

use std::borrow::Cow;
use std::sync::Arc;

use mainstay::app::setup;
use mainstay::config::{Config, Sources};
use mainstay::domain::bundle::baseline::Histogram;
use mainstay::domain::bundle::feature::{Feature, Kind, Missing};
use mainstay::domain::record::{Record, Value};
use mainstay::engine::{Engine, Serving};
use mainstay::http::Shared;
use mainstay::model::{Model, Runtime};
use mainstay::telemetry::Metrics;

/// The bundles under test.
pub(crate) const BUNDLES: [&str; 2] = ["telco-churn", "mlc-churn"];
/// Customers of each model: few enough to stay in the cache, as a request's bytes do, too many to be learnt by heart.
const COUNT: usize = 2_048;
const SEED: u64 = 42;

/// The service under test, without its sockets: the real configuration, library, bundles and policy.
pub(crate) struct Service {
    pub(crate) engine: Arc<Engine>,
    pub(crate) shared: Shared,
}

impl Service {
    /// Loads and probes both bundles, as `mainstay serve` does.
    pub(crate) fn start() -> Self {
        let config = Config::load(&Sources::of_process(None, Vec::new())).expect("a legal configuration");
        let runtime = Runtime::load(&config.runtime.library).expect("scripts/fetch-onnxruntime.sh was run");
        let metrics = Arc::new(Metrics::new());
        let mut setup = setup(&config, runtime, metrics.clone(), None).expect("a legal policy");
        setup.shelf.options.lanes = 1;
        let engine = Arc::new(Engine::open(setup).expect("legal bundles"));
        let shared = Shared::new(engine.clone(), config.limits, 0.0, runtime.build_info(), None);
        // As the service does: what is recorded and never folded would grow through the whole bench.
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(std::time::Duration::from_secs(1));
                metrics.fold();
            }
        });
        Self { engine, shared }
    }

    pub(crate) fn serving(&self, name: &str) -> Arc<Serving> {
        self.engine.serving(Some(name)).expect("it is in service")
    }
}

/// Customers of `model`: every feature drawn by itself from the baseline's histogram, within the range of the dictionary.
/// Features drawn apart make unusual customers, whose ways through the trees are harder to foresee than real ones.
pub(crate) fn records(model: &Model) -> Vec<Record<'static>> {
    let mut random = fastrand::Rng::with_seed(SEED);
    let record = |number| Record {
        customer_id: Cow::Owned(format!("C-{number:06}")),
        features: model
            .card()
            .features
            .iter()
            .map(|feature| {
                let histogram = model.baseline().features.get(&feature.name).expect("a histogram of each feature");
                (Cow::Owned(feature.name.clone()), draw(&mut random, feature, histogram))
            })
            .collect(),
        context: Vec::new(),
        reasons: 0,
        counterfactuals: 0,
    };
    (0..COUNT).map(record).collect()
}

/// The input rows of `records`, one after the other.
pub(crate) fn rows(model: &Model, records: &[Record]) -> Vec<f32> {
    let columns = model.schema().columns();
    let mut rows = vec![0.0; records.len() * columns];
    for (record, row) in records.iter().zip(rows.chunks_exact_mut(columns)) {
        model.schema().vectorize(&record.features, row).expect("a legal customer");
    }
    rows
}

/// The bodies of `POST /v1/score` for `records`.
pub(crate) fn bodies(records: &[Record]) -> Vec<Vec<u8>> {
    let json = |value: &Value| match value {
        // A whole number is written without a fraction, as callers write it.
        Value::Number(number) if number.fract() == 0.0 => serde_json::json!(*number as i64),
        Value::Number(number) => serde_json::json!(number),
        Value::Text(text) => serde_json::json!(text),
        _ => serde_json::Value::Null,
    };
    let body = |record: &Record| {
        let features: serde_json::Map<_, _> =
            record.features.iter().map(|(name, value)| (name.to_string(), json(value))).collect();
        let body = serde_json::json!({ "customer_id": record.customer_id, "features": features });
        serde_json::to_vec(&body).expect("JSON")
    };
    records.iter().map(body).collect()
}

fn draw(random: &mut fastrand::Rng, feature: &Feature, histogram: &Histogram) -> Value<'static> {
    match histogram {
        Histogram::Category(bins) => {
            let chosen = weighted(random, bins.categories.values().copied());
            bins.categories.keys().nth(chosen).map_or(Value::Null, |name| Value::Text(Cow::Owned(name.clone())))
        }
        Histogram::Number(bins) => {
            let counted: u64 = bins.counts.iter().sum();
            let absent = random.u64(..counted + bins.missing) < bins.missing;
            if absent && !matches!(feature.missing, Missing::Refuse) {
                return Value::Null;
            }
            let range = feature.range.expect("a number has a range");
            let (first, last) = (bins.edges[0], bins.edges[bins.edges.len() - 1]);
            // The outer bins have no end: they are taken to reach half the width of all the others together.
            let reach = ((last - first) / 2.0).max(1.0);
            let bin = weighted(random, bins.counts.iter().copied());
            let low = if bin == 0 { (first - reach).max(range.min) } else { bins.edges[bin - 1] };
            let high = bins.edges.get(bin).copied().unwrap_or((last + reach).min(range.max));
            let value = low + random.f64() * (high - low);
            // Cents, as money and minutes are written.
            let value = if feature.kind == Kind::Integer { value.floor() } else { (value * 100.0).round() / 100.0 };
            Value::Number(value.clamp(range.min, range.max))
        }
    }
}

fn weighted(random: &mut fastrand::Rng, weights: impl Iterator<Item = u64> + Clone) -> usize {
    let mut at = random.u64(..weights.clone().sum::<u64>().max(1));
    weights
        .clone()
        .position(|weight| match at.checked_sub(weight) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        })
        .unwrap_or(0)
}
