//! Scoring many customers in columns: what is answered as of any batch, what is refused, and that no stream, however broken, does more.

use std::sync::Arc;

use arrow_array::builder::{Float64Builder, StringDictionaryBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int8Type};
use arrow_array::{Array, ArrayRef, BooleanArray, Float32Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema};
use proptest::prelude::*;
use reqwest::Method;
use serde_json::{Value, json};

use crate::service::{Service, customer, golden, shared};

const ARROW: &str = "application/vnd.apache.arrow.stream";

/// The answer to a stream: its rows, each as an object of what is not null.
struct Answer {
    status: u16,
    rows: Vec<Value>,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect("JSON")
    }

    fn pointers(&self) -> Vec<String> {
        let errors = self.json()["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().filter_map(|error| Some(error["pointer"].as_str()?.to_owned())).collect()
    }

    fn problem(&self, row: usize) -> Value {
        serde_json::from_str(self.rows[row]["problem"].as_str().expect("a problem")).expect("JSON")
    }
}

async fn post(service: &Service, path: &str, body: Vec<u8>) -> Answer {
    let url = format!("http://{}{path}", service.data);
    let request = reqwest::Client::new().request(Method::POST, url).header("content-type", ARROW).body(body);
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    let is_arrow = response.headers()["content-type"] == ARROW;
    let bytes = response.bytes().await.expect("a whole answer");
    if !is_arrow {
        return Answer { status, rows: Vec::new(), text: String::from_utf8_lossy(&bytes).into_owned() };
    }
    let reader = StreamReader::try_new(&bytes[..], None).expect("a stream");
    let rows = reader.flat_map(|batch| rows_of(&batch.expect("a record batch"))).collect();
    Answer { status, rows, text: String::new() }
}

fn rows_of(batch: &RecordBatch) -> Vec<Value> {
    let cell = |column: &ArrayRef, row: usize| match column.data_type() {
        _ if column.is_null(row) => Value::Null,
        DataType::Utf8 => json!(column.as_string::<i32>().value(row)),
        DataType::Float64 => json!(column.as_primitive::<Float64Type>().value(row)),
        DataType::Boolean => json!(column.as_boolean().value(row)),
        _ => json!("a time"),
    };
    let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
    let row = |row| names.iter().zip(batch.columns()).map(|(name, column)| (name.clone(), cell(column, row))).collect();
    (0..batch.num_rows()).map(|at| Value::Object(row(at))).collect()
}

/// `customers` as columns: numbers as float64, texts as utf8.
fn columns(customers: &[Value]) -> Vec<(String, ArrayRef)> {
    let ids: StringArray = customers.iter().map(|customer| customer["customer_id"].as_str()).collect();
    let mut columns: Vec<(String, ArrayRef)> = vec![("customer_id".to_owned(), Arc::new(ids))];
    for name in customers[0]["features"].as_object().expect("features").keys() {
        let values: Vec<&Value> = customers.iter().map(|customer| &customer["features"][name]).collect();
        let array: ArrayRef = match values.iter().any(|value| value.is_string()) {
            true => Arc::new(values.iter().map(|value| value.as_str()).collect::<StringArray>()),
            false => {
                let mut numbers = Float64Builder::new();
                values.iter().for_each(|value| numbers.append_option(value.as_f64()));
                Arc::new(numbers.finish())
            }
        };
        columns.push((name.clone(), array));
    }
    columns
}

fn batch(columns: Vec<(String, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(name, array.data_type().clone(), true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, array)| array).collect())
        .expect("columns of one length")
}

fn stream(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batches[0].schema()).expect("a stream");
    batches.iter().for_each(|batch| writer.write(batch).expect("written"));
    writer.finish().expect("ended");
    writer.into_inner().expect("bytes")
}

/// One customer as columns, with `changes`: another array, one more, or none.
fn changed(changes: &[(&str, Option<ArrayRef>)]) -> Vec<u8> {
    let mut columns = columns(&[customer()]);
    for (name, array) in changes {
        let at = columns.iter().position(|(known, _)| known == name);
        match (at, array) {
            (Some(at), Some(array)) => columns[at].1 = array.clone(),
            (Some(at), None) => drop(columns.remove(at)),
            (None, Some(array)) => columns.push(((*name).to_owned(), array.clone())),
            (None, None) => {}
        }
    }
    stream(&[batch(columns)])
}

fn texts(values: &[Option<&str>]) -> Option<ArrayRef> {
    Some(Arc::new(StringArray::from(values.to_vec())))
}

#[tokio::test]
async fn columns_score_as_rows_do() {
    let golden = golden("mlc-churn/1.0.0");
    let customers: Vec<Value> = golden.iter().map(|(customer, _)| customer.clone()).cycle().take(1_300).collect();
    let all = batch(columns(&customers));
    // Batches of one run, of several, and of none.
    let parts = [all.slice(0, 200), all.slice(200, 0), all.slice(200, 1_100)];
    let answer = post(shared(), "/v1/models/mlc-churn/score/batch", stream(&parts)).await;
    assert_eq!((answer.status, answer.rows.len()), (200, 1_300), "{}", answer.text);
    let alone = shared().post("/v1/models/mlc-churn/score/batch", &json!(customers[..100])).await.json();
    for (at, (row, (_, score))) in answer.rows.iter().zip(golden.iter().cycle()).enumerate() {
        assert!((row["score"].as_f64().expect("a score") - score).abs() <= 1e-5 && row["problem"].is_null(), "{row}");
        if let Some(item) = alone["results"].get(at) {
            // Its text, which our own reader may get a last digit wrong.
            assert_eq!(row["score"].to_string().get(..15), item["score"].to_string().get(..15));
            assert_eq!((&row["tier"], &row["action"]), (&item["tier"], &item["intervention"]["action"]));
            assert_eq!((&row["cost"], &row["arm"]), (&item["intervention"]["cost"], &item["model"]["arm"]));
        }
    }
}

#[tokio::test]
async fn a_stream_of_pyarrow_is_read() {
    let answer = post(shared(), "/v1/score/batch", include_bytes!("../data/customers.arrow").to_vec()).await;
    let alone = shared().post("/v1/score", &customer()).await.json();
    assert_eq!((answer.rows.len(), &answer.rows[1]["score"]), (2, &alone["score"]), "{}", answer.text);
}

#[tokio::test]
async fn every_usual_type_is_read() {
    let mut codes = StringDictionaryBuilder::<Int8Type>::new();
    codes.append_value("Month-to-month");
    let features = &customer()["features"];
    let (tenure, charges) = (features["tenure"].as_i64().expect("a number"), features["MonthlyCharges"].as_f64());
    let plain = post(shared(), "/v1/score/batch", changed(&[])).await;
    assert_eq!(plain.rows.len(), 1, "{}", plain.text);
    for change in [
        ("tenure", Arc::new(Int64Array::from(vec![tenure])) as ArrayRef),
        ("tenure", Arc::new(Int32Array::from(vec![tenure as i32]))),
        ("MonthlyCharges", Arc::new(Float32Array::from(vec![charges.expect("a number") as f32]))),
        ("Contract", Arc::new(codes.finish())),
        ("Contract", Arc::new(arrow_array::LargeStringArray::from(vec!["Month-to-month"]))),
        ("Contract", Arc::new(arrow_array::StringViewArray::from(vec!["Month-to-month"]))),
        ("context.opt_out", Arc::new(BooleanArray::from(vec![true]))),
        ("context.region", Arc::new(arrow_array::NullArray::new(1))),
        ("context.audit.gender", Arc::new(StringArray::from(vec!["female"]))),
    ] {
        let answer = post(shared(), "/v1/score/batch", changed(&[(change.0, Some(change.1.clone()))])).await;
        assert_eq!(answer.rows.len(), 1, "{change:?} {}", answer.text);
        assert_eq!(answer.rows[0]["score"], plain.rows[0]["score"], "{change:?}");
    }
}

#[tokio::test]
async fn null_and_nan_are_missing() {
    let score = |array: Option<ArrayRef>| async move {
        let answer = post(shared(), "/v1/score/batch", changed(&[("TotalCharges", array)])).await;
        answer.rows[0]["score"].clone()
    };
    let absent = score(None).await;
    assert!(absent.is_number());
    assert_eq!(score(Some(Arc::new(arrow_array::Float64Array::from(vec![None])))).await, absent);
    assert_eq!(score(Some(Arc::new(arrow_array::Float64Array::from(vec![f64::NAN])))).await, absent);
    assert_eq!(score(Some(Arc::new(arrow_array::NullArray::new(1)))).await, absent);
}

#[tokio::test]
async fn a_bad_row_has_its_own_problem_and_does_not_spoil_the_others() {
    let mut customers = vec![customer(); 6];
    customers[1]["features"]["Contract"] = json!("One yaer");
    customers[2]["customer_id"] = Value::Null;
    customers[3]["features"]["tenure"] = json!(1e300);
    customers[4]["features"]["Contract"] = json!("x".repeat(5_000));
    let mut columns = columns(&customers);
    let infinite = Arc::new(arrow_array::Float64Array::from(vec![0.0, 0.0, 0.0, 0.0, 0.0, f64::INFINITY]));
    columns.push(("context.clv".to_owned(), infinite));
    let answer = post(shared(), "/v1/score/batch", stream(&[batch(columns)])).await;
    assert!(answer.rows[0]["decision_id"].is_string() && answer.rows[0]["problem"].is_null());
    for (row, place) in [
        (1, "/features/Contract"),
        (2, "/customer_id"),
        (3, "/features/tenure"),
        (4, "/features/Contract"),
        (5, "/context/clv"),
    ] {
        let problem = answer.problem(row);
        assert_eq!((&problem["status"], &problem["errors"][0]["pointer"]), (&json!(422), &json!(place)), "{problem}");
        assert!(answer.rows[row]["score"].is_null() && answer.rows[row]["decision_id"].is_null());
    }
    assert_eq!(answer.problem(1)["errors"][0]["nearest"], "One year");
}

#[tokio::test]
async fn columns_are_judged_before_their_rows() {
    let number: Option<ArrayRef> = Some(Arc::new(Int32Array::from(vec![1])));
    let date: Option<ArrayRef> = Some(Arc::new(arrow_array::Date32Array::from(vec![1])));
    let body = changed(&[
        ("Contract", number.clone()),
        ("tenure", texts(&[Some("2")])),
        ("MonthlyCharges", None),
        ("customer_id", None),
        ("Contrat", texts(&[None])),
        ("context.since", date),
        ("context.audit.gender", number),
    ]);
    let answer = post(shared(), "/v1/score/batch", body).await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (422, Some("invalid_request")), "{}", answer.text);
    let mut pointers = answer.pointers();
    pointers.sort();
    let expected = [
        "/Contrat",
        "/context/audit/gender",
        "/context/since",
        "/customer_id",
        "/features/Contract",
        "/features/MonthlyCharges",
        "/features/tenure",
    ];
    assert_eq!(pointers, expected);
    assert!(answer.text.contains("did you mean \\\"Contract\\\"?") && answer.text.contains("this one is of Date32"));
}

#[tokio::test]
async fn reasons_and_budgets_are_not_for_columns() {
    for (query, place) in [("top=2", "/top"), ("counterfactuals=1", "/counterfactuals")] {
        let answer = post(shared(), &format!("/v1/score/batch?{query}"), changed(&[])).await;
        assert_eq!((answer.status, answer.pointers()), (422, vec![place.to_owned()]));
        let expected = "is not allowed here: expected JSON or NDJSON, as answers in Arrow have no column for it";
        assert_eq!(answer.json()["errors"][0]["detail"], expected);
    }
    let answer = post(shared(), "/v1/score/batch?budget=10", changed(&[])).await;
    assert_eq!(answer.status, 415, "{}", answer.text);
}

#[tokio::test]
async fn rows_and_bytes_of_a_record_batch_are_bounded() {
    let service = Service::start(&["limits.batch_rows_max=3", "limits.batch_body_bytes_max=20000"]);
    let rows = batch(columns(&vec![customer(); 4]));
    let answer = post(&service, "/v1/score/batch", stream(&[rows.slice(0, 3), rows.slice(0, 2)])).await;
    assert_eq!(answer.rows.iter().filter(|row| row["score"].is_number()).count(), 5, "a stream has no end that we set");
    let answer = post(&service, "/v1/score/batch", stream(&[rows.slice(0, 1), rows])).await;
    assert_eq!((answer.rows.len(), answer.problem(1)["code"].as_str()), (2, Some("too_many_rows")));
    let long = "x".repeat(30_000);
    let answer = post(&service, "/v1/score/batch", changed(&[("context.note", texts(&[Some(&long)]))])).await;
    assert_eq!(answer.problem(0)["code"], "body_too_large");
    // Of a row, and of what is recorded of all of them, as JSON.
    let notes: Vec<(String, Option<ArrayRef>)> =
        (0..20).map(|at| (format!("context.n{at}"), texts(&[Some(&long[..1_000])]))).collect();
    let notes: Vec<(&str, Option<ArrayRef>)> = notes.iter().map(|(name, note)| (name.as_str(), note.clone())).collect();
    let small = Service::start(&["limits.body_bytes_max=10000"]);
    assert_eq!(post(&small, "/v1/score/batch", changed(&notes)).await.problem(0)["code"], "body_too_large");
    let few = Service::start(&["limits.batch_body_bytes_max=25000"]);
    let rows = vec![customer(); 100];
    let answer = post(&few, "/v1/score/batch", stream(&[batch(columns(&rows[..30])), batch(columns(&rows))])).await;
    assert_eq!((answer.rows.len(), answer.problem(30)["code"].as_str()), (31, Some("body_too_large")));
}

/// A stream whose next record batch is yet to come has no place that others need.
#[tokio::test]
async fn a_stream_that_is_slow_keeps_nobody_out() {
    let service = Service::start(&["limits.batches_max=1"]);
    let whole = changed(&[]);
    let begun = &whole[..whole.len() - 8];
    let mut stream = service.connect();
    let head = format!(
        "POST /v1/score/batch HTTP/1.1\r\nhost: x\r\ncontent-type: {ARROW}\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let chunk = [format!("{head}{:x}\r\n", begun.len()).as_bytes(), begun, b"\r\n"].concat();
    std::io::Write::write_all(&mut stream, &chunk).expect("written");
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while !text.contains("champion") {
        let count = std::io::Read::read(&mut stream, &mut buffer).expect("the answer to what came");
        assert!(count > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert_eq!(service.post("/v1/score/batch", &json!([customer()])).await.status, 200);
    assert_eq!(post(&service, "/v1/score/batch", whole).await.rows.len(), 1);
}

#[tokio::test]
async fn columns_are_bounded_before_anything_is_held_of_them() {
    for (prefix, place) in [("context.audit.", "/context/audit"), ("context.", "/context")] {
        let many: Vec<String> = (0..3_000).map(|at| format!("{prefix}a{at}")).collect();
        let many: Vec<(&str, Option<ArrayRef>)> =
            many.iter().map(|name| (name.as_str(), texts(&[Some("x")]))).collect();
        let answer = post(shared(), "/v1/score/batch", changed(&many)).await;
        assert_eq!((answer.status, answer.pointers()), (422, vec![place.to_owned()]), "{}", answer.text);
    }
}

#[tokio::test]
async fn what_is_recorded_of_columns_is_replayed_to_the_last_bit() {
    let service = Service::start(&[]);
    // Numbers of every length, some of which a reader of JSON gets a last digit wrong.
    let customers: Vec<Value> = (0..700)
        .map(|number| {
            let mut customer = customer();
            customer["customer_id"] = json!(format!("C-{number}"));
            customer["features"]["MonthlyCharges"] = json!(20.0 + f64::from(number) / 7.0);
            customer
        })
        .collect();
    let mut columns = columns(&customers);
    let quoted: StringArray = customers.iter().map(|_| Some("\"\u{7}é")).collect();
    columns.push(("context.audit.gender".to_owned(), Arc::new(quoted)));
    let answer = post(&service, "/v1/score/batch", stream(&[batch(columns)])).await;
    assert!(answer.rows.iter().all(|row| row["score"].is_number()));
    let id = answer.rows[7]["decision_id"].as_str().expect("an id");
    let record = service.get(&format!("/v1/decisions/{id}")).await.json();
    assert_eq!((&record["tier"], &record["inputs"]), (&answer.rows[7]["tier"], &json!("sealed")), "{record}");
    let customer = customers[7]["customer_id"].as_str().expect("an id");
    let seen = service.get(&format!("/v1/customers/{customer}")).await;
    assert!(seen.text.contains("\"MonthlyCharges\":21,"), "{}", seen.text.chars().take(2_000).collect::<String>());
    let (code, text) = crate::ledger::mainstay(&service.ledger, &["replay", "--last", "700"]);
    assert!(code == 0 && text.contains("700 of 700 decisions came out the same to the last bit"), "{text}");
}

#[tokio::test]
async fn what_is_no_stream_is_refused() {
    let good = changed(&[]);
    for (body, code) in [
        (Vec::new(), "malformed_arrow"),
        (b"[{}]".repeat(20), "malformed_arrow"),
        (good[..200].to_vec(), "incomplete_body"),
        // A head of 2 GiB, and one that is nothing.
        ([&[0xff; 4][..], &0x7fff_fff0_u32.to_le_bytes(), &[0; 64]].concat(), "malformed_arrow"),
        ([&[0xff; 4][..], &64_u32.to_le_bytes(), &[0; 64]].concat(), "malformed_arrow"),
    ] {
        let answer = post(shared(), "/v1/score/batch", body).await;
        assert_eq!((answer.status, answer.json()["code"].as_str()), (400, Some(code)), "{}", answer.text);
    }
    let answer = post(shared(), "/v1/score/batch", good[..good.len() - 300].to_vec()).await;
    assert_eq!(answer.problem(0)["code"], "incomplete_body");
    let behind = [&good[..], &[0; 9]].concat();
    assert_eq!(post(shared(), "/v1/score/batch", behind).await.problem(1)["code"], "malformed_arrow");
}

/// Wrong bytes, anywhere, one to eight of them: each is refused or read as something else, and nothing panics or takes much memory.
#[test]
fn broken_streams_are_refused_or_read() {
    let mut codes = StringDictionaryBuilder::<Int8Type>::new();
    for value in ["Month-to-month", "Two year", "One year"] {
        codes.append_value(value);
    }
    let mut columns = columns(&vec![customer(); 3]);
    let views = arrow_array::StringViewArray::from(vec![Some("a longer text than fits"), None, Some("b")]);
    columns.retain(|(name, _)| name != "Contract");
    columns.push(("Contract".to_owned(), Arc::new(codes.finish())));
    columns.push(("context.note".to_owned(), Arc::new(views)));
    columns.push(("context.opt_out".to_owned(), Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))));
    let good = stream(&[batch(columns)]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let service = Service::start(&["ledger.promise=off"]);
    let wrong = prop::collection::vec((0..good.len(), any::<u8>()), 1..8);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 400, ..Default::default() });
    let outcome = runner.run(&wrong, |wrong| {
        let mut body = good.clone();
        for (at, byte) in wrong {
            body[at] = byte;
        }
        let answer = runtime.block_on(post(&service, "/v1/score/batch", body));
        prop_assert!(matches!(answer.status, 200 | 400 | 408 | 413 | 422), "{} {}", answer.status, answer.text);
        Ok(())
    });
    outcome.expect("no stream is answered otherwise");
    let metrics = runtime.block_on(service.get_admin("/metrics")).text;
    let panics = metrics.lines().find(|line| line.starts_with("mainstay_panics_total"));
    assert!(panics.is_none_or(|line| line.ends_with(" 0")), "{panics:?}");
}
