//! Reading an ONNX graph without ONNX Runtime: just enough of the protobuf (onnx.proto3, ONNX IR 3 to 13) to check what a
//! bundle promises of its tensors before the file is trusted to a C++ library.

use prost::Message;

use crate::domain::bundle::card::GraphShape;
use crate::domain::bundle::uplift::Uplift;

/// The operator sets that a graph may use.
const DOMAINS: [&str; 3] = ["", "ai.onnx", "ai.onnx.ml"];
/// `TensorProto.DataType.FLOAT`.
const FLOAT: i32 = 1;
/// `TensorProto.DataType.DOUBLE`.
const DOUBLE: i32 = 11;
/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;

#[derive(Message)]
struct ModelProto {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSetIdProto>,
    #[prost(message, repeated, tag = "25")]
    functions: Vec<FunctionProto>,
}

#[derive(Message)]
struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    domain: String,
}

#[derive(Message)]
struct FunctionProto {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Message)]
pub(super) struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    pub(super) node: Vec<NodeProto>,
    #[prost(message, repeated, tag = "5")]
    pub(super) initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfoProto>,
}

#[derive(Message)]
pub(super) struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub(super) input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(super) output: Vec<String>,
    #[prost(string, tag = "4")]
    pub(super) op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub(super) attribute: Vec<AttributeProto>,
    #[prost(string, tag = "7")]
    pub(super) domain: String,
}

#[derive(Message)]
pub(super) struct AttributeProto {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(int64, tag = "3")]
    pub(super) i: i64,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) s: Vec<u8>,
    #[prost(message, optional, tag = "5")]
    pub(super) t: Option<TensorProto>,
    #[prost(message, optional, tag = "6")]
    pub(super) g: Option<GraphProto>,
    #[prost(float, repeated, tag = "7")]
    pub(super) floats: Vec<f32>,
    #[prost(int64, repeated, tag = "8")]
    pub(super) ints: Vec<i64>,
    #[prost(bytes = "vec", repeated, tag = "9")]
    pub(super) strings: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "10")]
    pub(super) tensors: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub(super) graphs: Vec<GraphProto>,
}

#[derive(Message)]
pub(super) struct TensorProto {
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(float, repeated, tag = "4")]
    float_data: Vec<f32>,
    #[prost(string, tag = "8")]
    pub(super) name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
    #[prost(double, repeated, tag = "10")]
    double_data: Vec<f64>,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringStringEntryProto>,
    #[prost(int32, tag = "14")]
    data_location: i32,
}

impl TensorProto {
    /// Its numbers, where they are float32 or float64.
    pub(super) fn numbers(&self) -> Option<Vec<f64>> {
        let raw = &self.raw_data;
        match self.data_type {
            FLOAT if raw.is_empty() => Some(self.float_data.iter().map(|number| f64::from(*number)).collect()),
            FLOAT => Some(raw.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()),
            DOUBLE if raw.is_empty() => Some(self.double_data.clone()),
            DOUBLE => Some(raw.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()),
            _ => None,
        }
    }
}

#[derive(Message)]
struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    key: String,
}

#[derive(Message)]
struct ValueInfoProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    r#type: Option<TypeProto>,
}

#[derive(Message)]
struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor_type: Option<TensorTypeProto>,
}

#[derive(Message)]
struct TensorTypeProto {
    #[prost(int32, tag = "1")]
    elem_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<TensorShapeProto>,
}

#[derive(Message)]
struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<DimensionProto>,
}

#[derive(Message)]
struct DimensionProto {
    /// Absent for a free dimension.
    #[prost(int64, optional, tag = "1")]
    dim_value: Option<i64>,
}

/// The graph in `bytes`, which [`problems`] has judged.
pub(super) fn decode(bytes: &[u8]) -> Option<GraphProto> {
    ModelProto::decode(bytes).ok()?.graph
}

/// Every way in which the graph in `bytes` is not what `shape` and `uplift` say or uses what a bundle may not, as sentences.
pub(super) fn problems(bytes: &[u8], shape: &GraphShape, uplift: Option<&Uplift>) -> Vec<String> {
    let graph = match ModelProto::decode(bytes) {
        Err(_) => return vec!["model.onnx: is not an ONNX file".to_owned()],
        Ok(ModelProto { graph: None, .. }) => return vec!["model.onnx: holds no graph".to_owned()],
        Ok(ModelProto { graph: Some(graph), opset_import, functions }) => {
            let mut problems = Vec::new();
            for set in opset_import.iter().filter(|set| !DOMAINS.contains(&set.domain.as_str())) {
                problems.push(format!("model.onnx: the operator set \"{}\" is not standard", set.domain));
            }
            if let Some(function) = functions.first() {
                problems.push(format!("model.onnx: defines functions of its own, such as \"{}\"", function.name));
            }
            if !problems.is_empty() {
                return problems;
            }
            graph
        }
    };
    let mut problems = Vec::new();
    walk(&graph, &mut problems);
    match graph.input.as_slice() {
        [input] => problems.extend(mismatch("input", input, &shape.input, shape.columns)),
        inputs => problems.push(format!("model.onnx: has {} inputs, expected one, \"{}\"", inputs.len(), shape.input)),
    }
    let uplift = uplift.map(|uplift| (&uplift.output, uplift.interventions.len()));
    for (name, columns) in std::iter::once((&shape.output, shape.output_columns)).chain(uplift) {
        match graph.output.iter().find(|output| output.name == *name) {
            Some(output) => problems.extend(mismatch("output", output, name, columns)),
            None => problems.push(format!("model.onnx: has no output \"{name}\"")),
        }
    }
    problems
}

fn walk(graph: &GraphProto, problems: &mut Vec<String>) {
    let mut tensors: Vec<&TensorProto> = graph.initializer.iter().collect();
    for node in &graph.node {
        if !DOMAINS.contains(&node.domain.as_str()) {
            problems.push(format!("model.onnx: the operator \"{}.{}\" is not standard", node.domain, node.op_type));
        }
        for attribute in &node.attribute {
            tensors.extend(attribute.t.iter().chain(&attribute.tensors));
            attribute.g.iter().chain(&attribute.graphs).for_each(|inner| walk(inner, problems));
        }
    }
    if tensors.iter().any(|tensor| tensor.data_location == EXTERNAL || !tensor.external_data.is_empty()) {
        problems.push("model.onnx: refers to data in another file".to_owned());
    }
}

/// How `value` differs from a float32 tensor `[N, columns]` called `name`.
fn mismatch(role: &str, value: &ValueInfoProto, name: &str, columns: usize) -> Option<String> {
    let tensor = value.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
    let dims: Option<Vec<Option<i64>>> = tensor
        .and_then(|tensor| tensor.shape.as_ref())
        .map(|shape| shape.dim.iter().map(|dim| dim.dim_value).collect());
    let right = value.name == name
        && tensor.is_some_and(|tensor| tensor.elem_type == FLOAT)
        && dims == Some(vec![None, Some(columns as i64)]);
    (!right).then(|| {
        let shown = dims.map_or("of unknown shape".to_owned(), |dims| {
            let dims: Vec<String> = dims.iter().map(|dim| dim.map_or("N".to_owned(), |dim| dim.to_string())).collect();
            format!("[{}]", dims.join(", "))
        });
        let float = if tensor.is_some_and(|tensor| tensor.elem_type == FLOAT) { "float32" } else { "not float32" };
        format!(
            "model.onnx: the {role} is \"{}\" {shown}, {float}; expected \"{name}\" [N, {columns}], float32",
            value.name
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape() -> GraphShape {
        GraphShape { input: "input".into(), output: "p".into(), columns: 3, output_column: 1, output_columns: 2 }
    }

    fn tensor(name: &str, elem_type: i32, columns: i64) -> ValueInfoProto {
        let dim = vec![DimensionProto { dim_value: None }, DimensionProto { dim_value: Some(columns) }];
        let tensor_type = Some(TensorTypeProto { elem_type, shape: Some(TensorShapeProto { dim }) });
        ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
    }

    fn model(input: ValueInfoProto, node: NodeProto, initializer: Vec<TensorProto>) -> Vec<u8> {
        let graph =
            GraphProto { node: vec![node], initializer, input: vec![input], output: vec![tensor("p", FLOAT, 2)] };
        let set = OperatorSetIdProto { domain: "ai.onnx.ml".into() };
        ModelProto { graph: Some(graph), opset_import: vec![set], functions: vec![] }.encode_to_vec()
    }

    fn node(domain: &str) -> NodeProto {
        NodeProto { op_type: "Op".into(), domain: domain.into(), ..NodeProto::default() }
    }

    #[test]
    fn accepts_what_the_card_says_and_names_what_differs() {
        let check = |bytes: Vec<u8>| problems(&bytes, &shape(), None).join("; ");
        assert_eq!(check(model(tensor("input", FLOAT, 3), node("ai.onnx.ml"), vec![])), "");
        assert!(
            check(model(tensor("input", FLOAT, 4), node(""), vec![]))
                .contains("[N, 4], float32; expected \"input\" [N, 3]")
        );
        assert!(check(model(tensor("input", 8, 3), node(""), vec![])).contains("not float32"));
        assert!(check(model(tensor("x", FLOAT, 3), node(""), vec![])).contains("\"x\""));
        assert!(check(model(tensor("input", FLOAT, 3), node("com.evil"), vec![])).contains("com.evil.Op"));
        let external = TensorProto { data_location: EXTERNAL, ..TensorProto::default() };
        assert!(check(model(tensor("input", FLOAT, 3), node(""), vec![external])).contains("another file"));
        assert!(check(b"{}".to_vec()).contains("not an ONNX file"));
        assert!(check(vec![]).contains("holds no graph"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = problems(&bytes, &shape(), None);
        }
    }
}
