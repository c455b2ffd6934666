//! The way of one decision below HTTP: record to row (`encode`), row to score (`infer`), and all of it (`decide`).
//! What HTTP adds is in `handler`; what a network and other callers add is in `load.py`.

mod customers;

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use mainstay::domain::record::{Record, Value};

/// Rows of one run, as `Engine::decide_batch` takes them.
const BATCH_ROWS: usize = 512;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let service = customers::Service::start();
    for name in customers::BUNDLES {
        measure(&mut criterion, &service, name);
    }
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
            service.engine.decide(&serving, black_box(record), b"", None).expect("a decision")
        });
    });

    // The same with three reasons.
    criterion.benchmark_group("decide-explained").bench_function(name, |bencher| {
        let asking = records.iter().cloned().map(|record| Record { reasons: 3, ..record }).collect::<Vec<_>>();
        let mut records = asking.iter().cycle();
        bencher.iter(|| {
            let record = records.next().expect("a cycle");
            service.engine.decide(&serving, black_box(record), b"", None).expect("a decision")
        });
    });
}
