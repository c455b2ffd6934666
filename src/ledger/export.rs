//! Export of decisions to Parquet, for analysis elsewhere. Pseudonyms, never ids; answers, never inputs.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use rusqlite::{Connection, params};

use super::Error;

/// The schema of the file: one row a decision, in the order of the ledger.
pub(super) const SCHEMA: &str = "
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

/// Writes the decisions from `from_ms` until before `to_ms` to a new file: how many.
pub(super) fn parquet(database: &Connection, path: &Path, from_ms: i64, to_ms: i64) -> Result<usize, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::File {
        path: path.to_owned(),
        source: std::io::Error::other(error.to_string()),
    };
    let file = File::create_new(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    let schema = Arc::new(parse_message_type(SCHEMA).map_err(|error| failed(&error))?);
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).map_err(|error| failed(&error))?;

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
            let id: Vec<u8> = row.get(3)?;
            let id = id.as_slice().try_into().map_err(|_| Error::Broken("an id is cut".to_owned()))?;
            columns.texts[0].push(crate::domain::id::DecisionId::from_bytes(id).to_string().as_str().into());
            columns.texts[1].push(super::keys::hex(&row.get::<_, Vec<u8>>(4)?).as_str().into());
            for (at, texts) in columns.texts.iter_mut().enumerate().skip(2) {
                texts.push(row.get::<_, String>(at + 3)?.as_str().into());
            }
        }
        if columns.seq.is_empty() {
            break;
        }
        total += columns.seq.len();
        let mut group = writer.next_row_group().map_err(|error| failed(&error))?;
        write_group(&mut group, &columns).map_err(|error| failed(&error))?;
        group.close().map_err(|error| failed(&error))?;
    }
    writer.close().map_err(|error| failed(&error))?;
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
