//! Export of decisions and of outcomes to Parquet, for analysis elsewhere. Pseudonyms, never ids; answers, never inputs.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use rusqlite::{Connection, params};

use super::{Error, outcomes};
use crate::domain::id::DecisionId;
use crate::domain::money::Money;

/// The schema of a file of decisions: one row a decision, in the order of the ledger.
const DECISIONS: &str = "
    message decision {
        REQUIRED INT64 seq;
        REQUIRED BYTE_ARRAY decision_id (UTF8);
        REQUIRED INT64 decided_at (TIMESTAMP(MILLIS,true));
        REQUIRED BYTE_ARRAY customer (UTF8);
        REQUIRED BYTE_ARRAY model (UTF8);
        REQUIRED BYTE_ARRAY model_version (UTF8);
        REQUIRED BYTE_ARRAY policy (UTF8);
        REQUIRED BYTE_ARRAY policy_version (UTF8);
        REQUIRED DOUBLE score;
        REQUIRED BYTE_ARRAY tier (UTF8);
        REQUIRED BYTE_ARRAY action (UTF8);
        REQUIRED BYTE_ARRAY arm (UTF8);
        REQUIRED BYTE_ARRAY extra (JSON);
    }";

/// The schema of a file of outcomes: one row an outcome, in the order of the ledger. Amounts are exact.
const OUTCOMES: &str = "
    message outcome {
        REQUIRED INT64 seq;
        REQUIRED BYTE_ARRAY outcome_id (UTF8);
        REQUIRED INT64 recorded_at (TIMESTAMP(MILLIS,true));
        REQUIRED INT64 occurred_at (TIMESTAMP(MILLIS,true));
        REQUIRED BYTE_ARRAY decision_id (UTF8);
        REQUIRED BYTE_ARRAY customer (UTF8);
        OPTIONAL BOOLEAN churned;
        OPTIONAL BOOLEAN converted;
        OPTIONAL INT64 revenue (DECIMAL(18,6));
        OPTIONAL INT64 contact_cost (DECIMAL(18,6));
    }";

/// Rows of one row group.
const GROUP: usize = 65_536;

#[derive(Default)]
struct Columns {
    seq: Vec<i64>,
    decided_at: Vec<i64>,
    score: Vec<f64>,
    /// id, customer, model, model_version, policy, policy_version, tier, action, arm, extra
    texts: [Vec<ByteArray>; 10],
}

/// A new file of `schema`.
fn create(path: &Path, schema: &str) -> Result<SerializedFileWriter<File>, Error> {
    let file = File::create_new(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    let schema = Arc::new(parse_message_type(schema).map_err(|error| failed(path, error))?);
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    SerializedFileWriter::new(file, schema, Arc::new(properties)).map_err(|error| failed(path, error))
}

fn failed(path: &Path, error: parquet::errors::ParquetError) -> Error {
    Error::File { path: path.to_owned(), source: std::io::Error::other(error.to_string()) }
}

/// Writes the decisions from `from_ms` until before `to_ms` to a new file: how many.
pub(super) fn decisions(database: &Connection, path: &Path, from_ms: i64, to_ms: i64) -> Result<usize, Error> {
    let mut writer = create(path, DECISIONS)?;
    let mut statement = database.prepare(
        "SELECT e.seq, e.at_ms, e.score, e.id, e.customer, v.model, v.model_version, v.policy, v.policy_version, e.tier, e.action, e.arm, e.body
         FROM entry e JOIN version v USING (version) WHERE e.kind = 'decision' AND e.at_ms >= ?1 AND e.at_ms < ?2 ORDER BY e.seq",
    )?;
    let mut rows = statement.query(params![from_ms, to_ms])?;
    let mut total = 0;
    loop {
        let mut columns = Columns::default();
        while columns.seq.len() < GROUP
            && let Some(row) = rows.next()?
        {
            columns.seq.push(row.get(0)?);
            columns.decided_at.push(row.get(1)?);
            columns.score.push(row.get(2)?);
            columns.texts[0].push(DecisionId::from_bytes(row.get(3)?).to_string().as_str().into());
            columns.texts[1].push(super::keys::hex(&row.get::<_, Vec<u8>>(4)?).as_str().into());
            for (at, texts) in columns.texts.iter_mut().enumerate().skip(2) {
                texts.push(row.get::<_, String>(at + 3)?.as_str().into());
            }
        }
        if columns.seq.is_empty() {
            break;
        }
        total += columns.seq.len();
        let mut group = writer.next_row_group().map_err(|error| failed(path, error))?;
        write_group(&mut group, &columns).map_err(|error| failed(path, error))?;
        group.close().map_err(|error| failed(path, error))?;
    }
    writer.close().map_err(|error| failed(path, error))?;
    Ok(total)
}

/// The columns in the order of the schema.
fn write_group(group: &mut SerializedRowGroupWriter<'_, File>, columns: &Columns) -> parquet::errors::Result<()> {
    let mut texts = columns.texts.iter();
    for position in 0.. {
        let Some(mut column) = group.next_column()? else { break };
        match position {
            0 => column.typed::<Int64Type>().write_batch(&columns.seq, None, None)?,
            2 => column.typed::<Int64Type>().write_batch(&columns.decided_at, None, None)?,
            8 => column.typed::<DoubleType>().write_batch(&columns.score, None, None)?,
            _ => {
                column.typed::<ByteArrayType>().write_batch(texts.next().map_or(&[][..], Vec::as_slice), None, None)?
            }
        };
        column.close()?;
    }
    Ok(())
}

#[derive(Default)]
struct OutcomeColumns {
    seq: Vec<i64>,
    recorded_at: Vec<i64>,
    occurred_at: Vec<i64>,
    /// id, decision, customer
    texts: [Vec<ByteArray>; 3],
    /// churned, converted
    flags: [Optional<bool>; 2],
    /// revenue, contact_cost
    amounts: [Optional<i64>; 2],
}

/// The values of an optional column, and for each row whether it has one.
#[derive(Default)]
struct Optional<T> {
    values: Vec<T>,
    levels: Vec<i16>,
}

impl<T> Optional<T> {
    fn push(&mut self, value: Option<T>) {
        self.levels.push(i16::from(value.is_some()));
        self.values.extend(value);
    }
}

/// Writes the outcomes recorded from `from_ms` until before `to_ms` to a new file: how many.
pub(super) fn outcomes(database: &Connection, path: &Path, from_ms: i64, to_ms: i64) -> Result<usize, Error> {
    let mut writer = create(path, OUTCOMES)?;
    let mut total = 0;
    let mut after = 0;
    loop {
        let mut columns = OutcomeColumns::default();
        for (decision, customer, outcome) in outcomes::page(database, from_ms, to_ms, after, GROUP)? {
            after = outcome.seq;
            columns.seq.push(outcome.seq);
            columns.recorded_at.push(outcome.recorded_at_ms);
            columns.occurred_at.push(outcome.occurred_at_ms);
            for (texts, text) in columns.texts.iter_mut().zip([outcome.id.to_string(), decision, customer]) {
                texts.push(text.as_str().into());
            }
            let facts = outcome.facts;
            columns.flags.iter_mut().zip([facts.churned, facts.converted]).for_each(|(flags, flag)| flags.push(flag));
            let amounts = [facts.revenue, facts.contact_cost].map(|amount| amount.map(Money::micros));
            columns.amounts.iter_mut().zip(amounts).for_each(|(amounts, amount)| amounts.push(amount));
        }
        if columns.seq.is_empty() {
            break;
        }
        total += columns.seq.len();
        let mut group = writer.next_row_group().map_err(|error| failed(path, error))?;
        write_outcomes(&mut group, &columns).map_err(|error| failed(path, error))?;
        group.close().map_err(|error| failed(path, error))?;
    }
    writer.close().map_err(|error| failed(path, error))?;
    Ok(total)
}

/// The columns in the order of the schema.
fn write_outcomes(
    group: &mut SerializedRowGroupWriter<'_, File>,
    columns: &OutcomeColumns,
) -> parquet::errors::Result<()> {
    let OutcomeColumns { seq, recorded_at, occurred_at, texts, flags, amounts } = columns;
    for position in 0.. {
        let Some(mut column) = group.next_column()? else { break };
        match position {
            0 => column.typed::<Int64Type>().write_batch(seq, None, None)?,
            2 => column.typed::<Int64Type>().write_batch(recorded_at, None, None)?,
            3 => column.typed::<Int64Type>().write_batch(occurred_at, None, None)?,
            1 => column.typed::<ByteArrayType>().write_batch(&texts[0], None, None)?,
            4 | 5 => column.typed::<ByteArrayType>().write_batch(&texts[position - 3], None, None)?,
            6 | 7 => {
                let flags = &flags[position - 6];
                column.typed::<BoolType>().write_batch(&flags.values, Some(&flags.levels), None)?
            }
            _ => {
                let amounts = &amounts[position - 8];
                column.typed::<Int64Type>().write_batch(&amounts.values, Some(&amounts.levels), None)?
            }
        };
        column.close()?;
    }
    Ok(())
}
