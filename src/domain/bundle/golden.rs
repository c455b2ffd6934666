//! Golden rows: synthetic customers with the score that the trainer computed. The probe, which runs them, is in `model`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::feature::Scalar;
use super::schema::Schema;
use crate::domain::record::Value;

/// How far a served score may be from the trainer's, in probability.
pub const TOLERANCE: f64 = 1e-5;
/// The number of golden rows, at least and at most.
pub const ROWS: std::ops::RangeInclusive<usize> = 32..=1_024;

/// `golden.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// The rows.
    pub rows: Vec<Row>,
}

/// One synthetic customer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Feature values; `None` is a missing one.
    pub features: BTreeMap<String, Option<Scalar>>,
    /// The trainer's score, 0 to 1.
    pub score: f64,
    /// The trainer's uplifts, where the card has any, each -1 to 1 and in its order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplift: Option<Vec<f64>>,
}

impl Golden {
    /// The input vectors of all rows, one after the other, row by row.
    ///
    /// Errors: every row that is not a legal record of `schema`, or has not as many uplifts as the card says, as sentences.
    pub fn vectors(&self, schema: &Schema, uplifts: usize) -> Result<Vec<f32>, Vec<String>> {
        let mut problems = Vec::new();
        if !ROWS.contains(&self.rows.len()) {
            problems.push(format!(
                "golden: expected {} to {} rows, found {}",
                ROWS.start(),
                ROWS.end(),
                self.rows.len()
            ));
        }
        let mut vectors = vec![0.0; self.rows.len() * schema.columns()];
        for (position, (row, vector)) in self.rows.iter().zip(vectors.chunks_exact_mut(schema.columns())).enumerate() {
            if !(0.0..=1.0).contains(&row.score) {
                problems.push(format!("golden: row {position}: the score is not within 0 to 1"));
            }
            let given = row.uplift.as_deref().unwrap_or_default();
            if given.len() != uplifts || row.uplift.is_some() != (uplifts > 0) {
                problems.push(format!("golden: row {position}: expected {uplifts} uplifts, found {}", given.len()));
            } else if !given.iter().all(|uplift| (-1.0..=1.0).contains(uplift)) {
                problems.push(format!("golden: row {position}: an uplift is not within -1 to 1"));
            }
            let features: Vec<(&str, Value)> =
                row.features.iter().map(|(name, value)| (name.as_str(), value_of(value))).collect();
            if let Err(violations) = schema.vectorize(&features, vector) {
                problems
                    .extend(violations.iter().map(|v| format!("golden: row {position}: {} {}", v.pointer, v.detail())));
            }
        }
        if problems.is_empty() { Ok(vectors) } else { Err(problems) }
    }
}

fn value_of(scalar: &Option<Scalar>) -> Value<'_> {
    match scalar {
        None => Value::Null,
        Some(Scalar::Number(number)) => Value::Number(*number),
        Some(Scalar::Text(text)) => Value::Text(text.as_str().into()),
    }
}
