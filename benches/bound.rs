//! What `bound.py` measures the service against: the least that a handler of axum can do with the same requests, on the same runtimes;
//! the native evaluator alone; and bodies in columns. By itself it does nothing.

mod customers;

use std::hint::black_box;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::builder::{Float64Builder, StringBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_ipc::writer::StreamWriter;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::post;
use axum::serve::ListenerExt;
use mainstay::domain::record::Value;

const USAGE: &str = "usage: bound MODE

  serve BYTES            answers POST /v1/score with so many bytes, once it has parsed the body; prints its address
  rows SECONDS           rows a second that the native evaluator scores on every core, in runs of 512
  columns FILE ROWS      writes a stream of Arrow with so many customers as one record batch";

/// Rows of one run, as the service scores them.
const RUN_ROWS: usize = 512;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<usize>().ok()).expect(USAGE);
    match words.first().map(String::as_str) {
        // `cargo bench` runs every bench; this one is run by a script.
        None => println!("bound: nothing to do by itself; benches/bound.py runs it"),
        Some("serve") => serve(number(1)),
        Some("rows") => rows(Duration::from_secs(number(1) as u64)),
        Some("columns") => columns(words.get(1).expect(USAGE), number(2)),
        Some(_) => panic!("{USAGE}"),
    }
}

/// A runtime for each core, as the service has, all of which accept from one socket.
fn serve(bytes: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    println!("{}", listener.local_addr().expect("an address"));
    let router = Router::new().route("/v1/score", post(bound)).with_state(Bytes::from(vec![b' '; bytes]));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let threads: Vec<_> = (0..workers)
        .map(|_| {
            let (listener, router) = (listener.try_clone().expect("a socket"), router.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
                    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
                    axum::serve(listener, router).await.expect("it never ends");
                });
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("it never ends"));
}

async fn bound(State(answer): State<Bytes>, body: Bytes) -> Result<impl IntoResponse, StatusCode> {
    let value: serde_json::Value = serde_json::from_slice(&body).map_err(|_| StatusCode::BAD_REQUEST)?;
    black_box(value);
    Ok(([(CONTENT_TYPE, "application/json")], answer))
}

fn rows(how_long: Duration) {
    let service = customers::Service::start();
    let model = &service.serving(customers::BUNDLES[0]).model;
    let rows = customers::rows(model, &customers::records(model));
    let run = RUN_ROWS * model.schema().columns();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let begun = Instant::now();
    let count: usize = std::thread::scope(|scope| {
        let score = || {
            let mut count = 0;
            while begun.elapsed() < how_long {
                for rows in rows.chunks_exact(run) {
                    count += black_box(model.score_batch(black_box(rows)).expect("scores")).len();
                }
            }
            count
        };
        let scoring: Vec<_> = (0..threads).map(|_| scope.spawn(score)).collect();
        scoring.into_iter().map(|thread| thread.join().expect("scores")).sum()
    });
    println!("{:.0}", count as f64 / begun.elapsed().as_secs_f64());
}

fn columns(path: &str, rows: usize) {
    let service = customers::Service::start();
    let customers = customers::records(&service.serving(customers::BUNDLES[0]).model);
    let customers: Vec<_> = customers.iter().cycle().take(rows).collect();
    let mut ids = StringBuilder::new();
    customers.iter().for_each(|customer| ids.append_value(&customer.customer_id));
    let mut columns: Vec<(&str, ArrayRef)> = vec![("customer_id", Arc::new(ids.finish()))];
    for (at, (name, _)) in customers[0].features.iter().enumerate() {
        let is_text = customers.iter().any(|customer| matches!(customer.features[at].1, Value::Text(_)));
        let (mut texts, mut numbers) = (StringBuilder::new(), Float64Builder::new());
        for customer in &customers {
            match &customer.features[at].1 {
                Value::Text(text) => texts.append_value(text),
                Value::Number(number) => numbers.append_value(*number),
                _ if is_text => texts.append_null(),
                _ => numbers.append_null(),
            }
        }
        columns.push((name, if is_text { Arc::new(texts.finish()) } else { Arc::new(numbers.finish()) }));
    }
    let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a stream");
    writer.write(&batch).and_then(|()| writer.finish()).expect("a stream");
    std::fs::write(path, writer.into_inner().expect("a stream")).expect("a file");
}
