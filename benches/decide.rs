//! The way of one decision below HTTP: record to row (`encode`), row to score (`infer`), and all of it (`decide`).
//! What HTTP adds is in `handler`; what a network and other callers add is in `load.py`.

mod customers;

use std::hint::black_box;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput};
use mainstay::config::{Config, Sources};
use mainstay::domain::compiled::Compiled;
use mainstay::domain::forest::{Forest, Node, Split, Step};
use mainstay::domain::record::{Record, Value};
use mainstay::model::{Choice, LoadOptions, Model, Runtime};

/// Rows of one run, as `Engine::decide_batch` takes them.
const BATCH_ROWS: usize = 512;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let service = customers::Service::start();
    for name in customers::BUNDLES {
        measure(&mut criterion, &service, name);
        evaluators(&mut criterion, &service, name);
    }
    growth(&mut criterion);
    for name in ["default", "value"] {
        policy(&mut criterion, &service, name);
    }
    criterion.final_summary();
}

/// What a policy makes of a score: reading what its rules ask for, the assessment and the choice.
fn policy(criterion: &mut Criterion, service: &customers::Service, name: &str) {
    let serving = service.serving("telco-churn");
    let document = std::fs::read_to_string(format!("models/policy/{name}.toml")).expect("a policy");
    let policy = mainstay::engine::parse_policy(&document).expect("a legal policy");
    let binding = policy.bind(&serving.model.card().features).expect("it fits");
    let mut records = customers::records(&serving.model);
    for (at, record) in records.iter_mut().enumerate() {
        record.context = vec![
            ("clv".into(), Value::Number((at * 37 % 5_000) as f64)),
            ("region".into(), Value::Text(if at % 2 == 0 { "EU" } else { "US" }.into())),
            ("days_since_contact".into(), Value::Number((at % 60) as f64)),
            ("opt_out".into(), Value::Bool(at % 10 == 0)),
        ];
    }
    let rows = customers::rows(&serving.model, &records);
    let columns = serving.model.schema().columns();
    let scores: Vec<_> = rows.chunks_exact(columns).map(|row| serving.model.score(row).expect("a score")).collect();
    criterion.benchmark_group("policy").bench_function(name, |bencher| {
        let mut customers = records.iter().zip(&scores).cycle();
        bencher.iter(|| {
            let (record, score) = customers.next().expect("a cycle");
            let values = binding.read(black_box(record)).expect("a legal context");
            policy.decide(*score, &values)
        });
    });
}

fn measure(criterion: &mut Criterion, service: &customers::Service, name: &str) {
    let serving = service.serving(name);
    let model = &serving.model;
    let columns = model.schema().columns();
    let records = customers::records(model);
    let rows = customers::rows(model, &records);

    criterion.benchmark_group("encode").bench_function(name, |bencher| {
        let mut records = records.iter().cycle();
        let mut row = vec![0.0; columns];
        bencher.iter(|| {
            let record = records.next().expect("a cycle");
            model.schema().vectorize(black_box(&record.features), black_box(&mut row)).expect("a legal customer");
        });
    });

    criterion.benchmark_group("infer").bench_function(name, |bencher| {
        let mut rows = rows.chunks_exact(columns).cycle();
        bencher.iter(|| model.score(black_box(rows.next().expect("a cycle"))).expect("a score"));
    });

    // What an explanation adds to a decision.
    criterion.benchmark_group("explain").bench_function(name, |bencher| {
        let mut rows = rows.chunks_exact(columns).cycle();
        bencher.iter(|| model.explain(black_box(rows.next().expect("a cycle"))).expect("contributions"));
    });

    let mut batch = criterion.benchmark_group("infer-batch-512");
    batch.throughput(Throughput::Elements(BATCH_ROWS as u64));
    batch.bench_function(name, |bencher| {
        let mut batches = rows.chunks_exact(BATCH_ROWS * columns).cycle();
        bencher.iter(|| model.score_batch(black_box(batches.next().expect("a cycle"))).expect("scores"));
    });
    batch.finish();

    criterion.benchmark_group("decide").bench_function(name, |bencher| {
        let mut records = records.iter().cycle();
        bencher.iter(|| {
            let record = records.next().expect("a cycle");
            service.engine.decide(&serving, black_box(record), b"", None, None).expect("a decision")
        });
    });

    // The same with three reasons.
    criterion.benchmark_group("decide-explained").bench_function(name, |bencher| {
        let asking = records.iter().cloned().map(|record| Record { reasons: 3, ..record }).collect::<Vec<_>>();
        let mut records = asking.iter().cycle();
        bencher.iter(|| {
            let record = records.next().expect("a cycle");
            service.engine.decide(&serving, black_box(record), b"", None, None).expect("a decision")
        });
    });
}

/// Rows of [`evaluators`].
const CUSTOMERS: usize = 1_000;
/// The depth of the trees of [`growth`], and its features and trees where the other ones grow.
const DEPTH: usize = 6;
const FEATURES: u32 = 30;
const TREES: usize = 300;

/// The native evaluator and ONNX Runtime side by side, on the same customers.
fn evaluators(criterion: &mut Criterion, service: &customers::Service, name: &str) {
    let config = Config::load(&Sources::of_process(None, Vec::new())).expect("a legal configuration");
    let runtime = Runtime::load(&config.runtime.library).expect("it is loaded already");
    let id = service.serving(name).model.id().clone();
    let path = Path::new(&config.models.dir).join(&id.name).join(&id.version);
    for evaluator in [Choice::OnnxRuntime, Choice::Auto] {
        let options = LoadOptions { lanes: 1, row_p99_us_max: 1_000_000, evaluator, turns: None };
        let model = Model::load(runtime, &path, options).expect("a legal bundle");
        let columns = model.schema().columns();
        let rows = &customers::rows(&model, &customers::records(&model))[..CUSTOMERS * columns];
        let mut group = criterion.benchmark_group(format!("evaluator/{}", model.evaluator()));
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("single", name), |bencher| {
            let mut rows = rows.chunks_exact(columns).cycle();
            bencher.iter(|| model.score(black_box(rows.next().expect("a cycle"))).expect("a score"));
        });
        group.throughput(Throughput::Elements(BATCH_ROWS as u64));
        group.bench_function(BenchmarkId::new("batch-512", name), |bencher| {
            // Other rows begin each batch.
            let starts: Vec<usize> = (0..CUSTOMERS - BATCH_ROWS).step_by(61).collect();
            let mut starts = starts.iter().cycle();
            bencher.iter(|| {
                let start = starts.next().expect("a cycle") * columns;
                model.score_batch(black_box(&rows[start..start + BATCH_ROWS * columns])).expect("scores")
            });
        });
        group.finish();
    }
}

/// How the native evaluator grows with trees, and with features: generated forests, every split and every leaf at random.
fn growth(criterion: &mut Criterion) {
    let trees = [10, 100, TREES, 1_000, 5_000].map(|trees| ("trees", trees, FEATURES));
    let features = [10, 100, 500].map(|features| ("features", TREES, features));
    for (what, trees, features) in trees.into_iter().chain(features) {
        let mut random = fastrand::Rng::with_seed(42);
        let mut nodes = Vec::new();
        let roots = (0..trees).map(|_| grow(&mut random, features, DEPTH, &mut nodes)).collect();
        let forest = Forest::new(features as usize, 0.0, roots, nodes).expect("a legal forest");
        let compiled = Compiled::new(&forest).expect("no tree is too large");
        let columns = features as usize;
        let rows: Vec<f32> = (0..BATCH_ROWS * columns).map(|_| random.f32()).collect();
        let count = if what == "trees" { trees } else { columns };
        let mut group = criterion.benchmark_group(format!("growth/{what}"));
        group.bench_function(BenchmarkId::new("single", count), |bencher| {
            let mut rows = rows.chunks_exact(columns).cycle();
            bencher.iter(|| compiled.margin(black_box(rows.next().expect("a cycle"))));
        });
        group.throughput(Throughput::Elements(BATCH_ROWS as u64));
        group.bench_function(BenchmarkId::new("batch-512", count), |bencher| {
            bencher.iter(|| {
                compiled.margins(black_box(&rows), |margin| {
                    black_box(margin);
                })
            });
        });
        group.finish();
    }
}

/// A full tree over values from 0 to 1, with as many thresholds as a trainer's histogram has.
fn grow(random: &mut fastrand::Rng, features: u32, depth: usize, nodes: &mut Vec<Node>) -> u32 {
    let at = nodes.len() as u32;
    nodes.push(Node { cover: 1.0, step: Step::Leaf(random.f64() - 0.5) });
    if depth > 0 {
        let below = grow(random, features, depth - 1, nodes);
        let above = grow(random, features, depth - 1, nodes);
        let (column, bound) = (random.u32(..features), f32::from(random.u8(..)) / 256.0);
        nodes[at as usize].step = Step::Split(Split { column, bound, nan_below: false, below, above });
    }
    at
}
