//! Answers in columns: decisions and problems as record batches of an Arrow IPC stream. Translation only.

use std::sync::Arc;

use arrow_array::builder::{BooleanBuilder, Float64Builder, StringBuilder, TimestampMillisecondBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};
use axum::body::Bytes;

use super::super::batch::Job;
use super::super::problem::Problem;
use crate::domain::decision::Decision;

/// A stream of answers on its way.
pub(super) struct Answers {
    schema: SchemaRef,
    writer: StreamWriter<Vec<u8>>,
}

impl Answers {
    /// A stream that begins with the schema of answers.
    pub(super) fn new() -> Result<Self, ArrowError> {
        let schema = Arc::new(schema());
        Ok(Self { writer: StreamWriter::try_new(Vec::new(), &schema)?, schema })
    }

    /// Adds a record batch with a row for each of `rows`, counting the problems among them.
    pub(super) fn write(
        &mut self,
        job: &Job,
        rows: impl Iterator<Item = Result<Decision, Problem>>,
    ) -> Result<(), ArrowError> {
        let mut builders = Builders::default();
        for row in rows {
            match row {
                Ok(decision) => builders.decision(&decision),
                // Plain data: writing it into memory cannot fail.
                Err(problem) => builders.problem(&serde_json::to_string(&job.noted(&problem)).unwrap_or_default()),
            }
        }
        self.writer.write(&RecordBatch::try_new(self.schema.clone(), builders.finish())?)
    }

    /// What was written since the last time.
    pub(super) fn take(&mut self) -> Bytes {
        std::mem::take(self.writer.get_mut()).into()
    }

    /// The last of it.
    pub(super) fn end(&mut self) -> Result<Bytes, ArrowError> {
        self.writer.finish()?;
        Ok(self.take())
    }
}

fn schema() -> Schema {
    let field = |name: &str, data_type| Field::new(name, data_type, true);
    Schema::new(vec![
        field("decision_id", DataType::Utf8),
        field("decided_at", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))),
        field("score", DataType::Float64),
        field("tier", DataType::Utf8),
        field("action", DataType::Utf8),
        field("cost", DataType::Float64),
        field("currency", DataType::Utf8),
        field("expected_effectiveness", DataType::Float64),
        field("expected_value", DataType::Float64),
        field("uplift", DataType::Float64),
        field("value_at_stake", DataType::Float64),
        field("holdout", DataType::Boolean),
        field("arm", DataType::Utf8),
        field("model_version", DataType::Utf8),
        field("policy_version", DataType::Utf8),
        field("problem", DataType::Utf8),
    ])
}

/// The columns of a record batch, in the order of the schema.
#[derive(Default)]
struct Builders {
    decision_id: StringBuilder,
    decided_at: TimestampMillisecondBuilder,
    score: Float64Builder,
    tier: StringBuilder,
    action: StringBuilder,
    cost: Float64Builder,
    currency: StringBuilder,
    expected_effectiveness: Float64Builder,
    expected_value: Float64Builder,
    uplift: Float64Builder,
    value_at_stake: Float64Builder,
    holdout: BooleanBuilder,
    arm: StringBuilder,
    model_version: StringBuilder,
    policy_version: StringBuilder,
    problem: StringBuilder,
}

impl Builders {
    fn decision(&mut self, decision: &Decision) {
        let intervention = decision.intervention();
        self.decision_id.append_value(decision.id.encode(&mut [0; 36]));
        self.decided_at.append_value(decision.decided_at_ms as i64);
        self.score.append_value(decision.score.value());
        self.tier.append_value(&decision.tier().name);
        self.action.append_value(&intervention.action);
        self.cost.append_value(intervention.cost.units());
        self.currency.append_value(decision.policy.currency());
        self.expected_effectiveness.append_value(intervention.expected_effectiveness);
        self.expected_value.append_option(decision.choice.expected_value);
        self.uplift.append_option(decision.choice.uplift);
        self.value_at_stake.append_option(decision.value_at_stake);
        self.holdout.append_value(decision.choice.holdout);
        self.arm.append_value(decision.arm.name());
        self.model_version.append_value(&decision.model.version);
        self.policy_version.append_value(decision.policy.version());
        self.problem.append_null();
    }

    fn problem(&mut self, document: &str) {
        self.decided_at.append_null();
        self.holdout.append_null();
        for texts in [
            &mut self.decision_id,
            &mut self.tier,
            &mut self.action,
            &mut self.currency,
            &mut self.arm,
            &mut self.model_version,
            &mut self.policy_version,
        ] {
            texts.append_null();
        }
        for numbers in [
            &mut self.score,
            &mut self.cost,
            &mut self.expected_effectiveness,
            &mut self.expected_value,
            &mut self.uplift,
            &mut self.value_at_stake,
        ] {
            numbers.append_null();
        }
        self.problem.append_value(document);
    }

    fn finish(mut self) -> Vec<ArrayRef> {
        vec![
            Arc::new(self.decision_id.finish()),
            Arc::new(self.decided_at.finish().with_timezone("UTC")),
            Arc::new(self.score.finish()),
            Arc::new(self.tier.finish()),
            Arc::new(self.action.finish()),
            Arc::new(self.cost.finish()),
            Arc::new(self.currency.finish()),
            Arc::new(self.expected_effectiveness.finish()),
            Arc::new(self.expected_value.finish()),
            Arc::new(self.uplift.finish()),
            Arc::new(self.value_at_stake.finish()),
            Arc::new(self.holdout.finish()),
            Arc::new(self.arm.finish()),
            Arc::new(self.model_version.finish()),
            Arc::new(self.policy_version.finish()),
            Arc::new(self.problem.finish()),
        ]
    }
}
