//! The ONNX reader: a graph that may say anything, to what it adds up to, and to its compiled form. The first byte of an input is how many
//! columns the card says, the second how many outputs.

use mainstay::domain::bundle::card::GraphShape;
use mainstay::model::{Additive, read_graph};

use super::forest::is_the_walk;

pub(super) fn run(input: &[u8]) {
    let [columns, outputs, graph @ ..] = input else { return };
    let (columns, output_columns) = (usize::from(columns % 32) + 1, usize::from(outputs % 3) + 1);
    let output_column = output_columns - 1;
    let shape =
        GraphShape { input: "input".into(), output: "probabilities".into(), columns, output_column, output_columns };
    let read = match read_graph(graph, &shape) {
        Ok(read) => read,
        Err(problems) => {
            assert!(!problems.is_empty() && problems.iter().all(|problem| problem.starts_with("model.onnx: ")));
            return;
        }
    };
    let odd = [0.0, -0.0, 1.0, -1.0, 2.0, f32::MAX, f32::MIN, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.5];
    let rows: Vec<Vec<f32>> = (0..odd.len() * 3)
        .map(|row| (0..columns).map(|column| odd[(row + column * (row + 1)) % odd.len()]).collect())
        .collect();
    match read {
        Some(Additive::Forest(forest)) => {
            assert_eq!(forest.columns(), columns, "a forest is of the columns that the card says");
            // A byte is the least that a node takes in the file.
            assert!(forest.nodes().len() <= graph.len(), "{} nodes of {} bytes", forest.nodes().len(), graph.len());
            is_the_walk(&forest, &rows);
        }
        Some(Additive::Linear(linear)) => {
            assert_eq!(linear.weights.len(), columns);
            rows.iter().for_each(|row| {
                assert!(
                    linear.margin(row).is_finite() || row.iter().any(|value| value.abs() >= f32::MAX || value.is_nan())
                )
            });
        }
        None => {}
    }
}
