//! A dense network as a legal bundle, made from a bundle of trees: the same dictionary, baseline and golden customers, another graph
//! and its scores. Its weights are random, so it knows nothing of customers; it costs what such a network costs. No bench is here.

use std::fs;
use std::path::Path;

use mainstay::domain::score::Platt;
use mainstay::model::Bundle;
use prost::Message;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const FLOAT: i32 = 1;
const SEED: u64 = 42;
/// What columns are divided by before a tangent, so that amounts do not drown the rest.
const SCALE: f32 = 8.0;
const BIAS: f32 = 0.02;
/// How much larger the weights of the last layer are, so that customers are told apart.
const SPREAD: f32 = 4.0;
/// The columns of the output.
const CLASSES: usize = 2;

/// Writes the bundle `name` `version` into `models`, made of the one at `base`: `layers` hidden ones of `width`.
pub(crate) fn make(models: &Path, base: &Path, name: &str, version: &str, layers: usize, width: usize) {
    let bundle = Bundle::open(base).expect("a legal bundle");
    let columns = bundle.schema.columns();
    let widths: Vec<usize> = [columns].into_iter().chain(std::iter::repeat_n(width, layers)).chain([CLASSES]).collect();
    let mut network = Network::random(&widths);
    let platt = Platt { a: bundle.card.calibration.a, b: bundle.card.calibration.b };

    let read = |file: &str| fs::read(base.join(file)).expect("a file of the bundle");
    let mut golden: Value = serde_json::from_slice(&read("golden.json")).expect("JSON");
    let rows = golden["rows"].as_array_mut().expect("rows");
    // A wide network takes its time here too.
    rows.truncate(32);
    let customers = bundle.golden_vectors.chunks_exact(columns).take(rows.len());
    let log_odds: Vec<f64> = customers.map(|row| network.log_odds(row)).collect();
    let shift = network.shift(-median(&log_odds));
    for (row, log_odds) in rows.iter_mut().zip(log_odds) {
        row["score"] = platt.of_log_odds(log_odds + shift).into();
    }
    let mut card: Value = serde_json::from_slice(&read("manifest.json")).expect("JSON");
    (card["name"], card["version"]) = (json!(name), json!(version));

    let directory = models.join(name).join(version);
    fs::create_dir_all(&directory).expect("a directory");
    let golden = golden.to_string().into_bytes();
    for (file, bytes) in [
        ("model.onnx", network.graph(&card["graph"])),
        ("golden.json", golden),
        ("baseline.json", read("baseline.json")),
    ] {
        let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        card["files"][file] = json!({"bytes": bytes.len(), "sha256": sha256});
        fs::write(directory.join(file), bytes).expect("written");
    }
    fs::write(directory.join("manifest.json"), card.to_string()).expect("written");
}

/// Layers with a ReLU between them, and a softmax behind the last.
struct Network {
    layers: Vec<Layer>,
}

struct Layer {
    inputs: usize,
    /// A row for each input.
    weights: Vec<f32>,
    biases: Vec<f32>,
}

impl Network {
    fn random(widths: &[usize]) -> Self {
        let mut random = fastrand::Rng::with_seed(SEED);
        let layer = |ends: &[usize]| {
            let (inputs, outputs) = (ends[0], ends[1]);
            // Uniform, so that what comes out of a layer is about as large as what goes in.
            let spread = if outputs == CLASSES { SPREAD } else { 1.0 };
            let reach = (6.0 / inputs as f32).sqrt() * spread;
            let mut numbers = |count: usize, reach: f32| -> Vec<f32> {
                (0..count).map(|_| (random.f32() * 2.0 - 1.0) * reach).collect()
            };
            Layer { inputs, weights: numbers(inputs * outputs, reach), biases: numbers(outputs, BIAS) }
        };
        Self { layers: widths.windows(2).map(layer).collect() }
    }

    /// Moves all log-odds by about `by`; gives by how much it was.
    fn shift(&mut self, by: f64) -> f64 {
        let bias = &mut self.layers.last_mut().expect("a layer").biases[1];
        let before = *bias;
        *bias += by as f32;
        f64::from(*bias) - f64::from(before)
    }

    /// By how much the second class is ahead of the first.
    fn log_odds(&self, row: &[f32]) -> f64 {
        let input = row.iter().map(|value| if value.is_nan() { 0.0 } else { f64::from(value / SCALE).tanh() });
        let mut values: Vec<f64> = input.collect();
        for (at, layer) in self.layers.iter().enumerate() {
            if at > 0 {
                values.iter_mut().for_each(|value| *value = value.max(0.0));
            }
            let mut sums: Vec<f64> = layer.biases.iter().map(|bias| f64::from(*bias)).collect();
            for (value, weights) in values.iter().zip(layer.weights.chunks_exact(sums.len())) {
                sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += value * f64::from(*weight));
            }
            values = sums;
        }
        values[1] - values[0]
    }

    /// The ONNX file, with input and output as the card says.
    fn graph(&self, shape: &Value) -> Vec<u8> {
        let text = |key: &str| shape[key].as_str().expect("a name").to_owned();
        let (input, output) = (text("input"), text("output"));
        let floats = |name: &str, dims: &[usize], numbers: &[f32]| TensorProto {
            dims: dims.iter().map(|dim| *dim as i64).collect(),
            data_type: FLOAT,
            name: name.into(),
            raw_data: numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
        };
        let mut initializer = vec![floats("zero", &[], &[0.0]), floats("scale", &[], &[SCALE])];
        let mut nodes = vec![
            node("IsNaN", &[&input], "missing"),
            node("Where", &["missing", "zero", &input], "filled"),
            node("Div", &["filled", "scale"], "scaled"),
            node("Tanh", &["scaled"], "x0"),
        ];
        for (at, Layer { inputs, weights, biases }) in self.layers.iter().enumerate() {
            let name = |what: &str| format!("{what}{at}");
            initializer.push(floats(&name("w"), &[*inputs, biases.len()], weights));
            initializer.push(floats(&name("b"), &[biases.len()], biases));
            let last = at + 1 == self.layers.len();
            let (y, next) = (name("y"), if last { output.clone() } else { format!("x{}", at + 1) });
            nodes.push(node("Gemm", &[&name("x"), &name("w"), &name("b")], &y));
            // By default over the last axis.
            nodes.push(node(if last { "Softmax" } else { "Relu" }, &[&y], &next));
        }
        let tensor = |name: &str, columns: usize| {
            let dims = [
                Dimension { value: None, name: "N".into() },
                Dimension { value: Some(columns as i64), name: String::new() },
            ];
            let tensor = TensorType { elem_type: FLOAT, shape: Some(Shape { dims: dims.into() }) };
            ValueInfo { name: name.into(), kind: Some(Kind { tensor: Some(tensor) }) }
        };
        let graph = GraphProto {
            nodes,
            name: "churn".into(),
            initializer,
            input: vec![tensor(&input, self.layers[0].inputs)],
            output: vec![tensor(&output, CLASSES)],
        };
        let sets = vec![OperatorSet { version: 15 }];
        ModelProto { ir_version: 8, graph: Some(graph), sets }.encode_to_vec()
    }
}

/// So that there are customers on both sides of one half.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
    let input = inputs.iter().map(|input| (*input).to_owned()).collect();
    NodeProto { input, output: vec![output.to_owned()], op_type: operator.to_owned() }
}

// --- onnx.proto3, as far as it is needed ------------------------------------------------------------------------------

#[derive(Message)]
struct ModelProto {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    sets: Vec<OperatorSet>,
}

#[derive(Message)]
struct OperatorSet {
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
}

#[derive(Message)]
struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "4")]
    op_type: String,
}

#[derive(Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

#[derive(Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<Kind>,
}

#[derive(Message)]
struct Kind {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorType>,
}

#[derive(Message)]
struct TensorType {
    #[prost(int32, tag = "1")]
    elem_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    dims: Vec<Dimension>,
}

#[derive(Message)]
struct Dimension {
    #[prost(int64, optional, tag = "1")]
    value: Option<i64>,
    #[prost(string, tag = "2")]
    name: String,
}
