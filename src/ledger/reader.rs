//! Reading the ledger: decisions by id, by customer and time, the last ones; with their inputs where they still open. Readers
//! have connections of their own and see a moment of the ledger, whatever is written meanwhile.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};

use super::keys::{self, Keys, Pseudonym, hex};
use super::record::{Entry, Extra, Kind, Version};
use super::spending::{DISORDER_MS, first_since};
use super::store;
use super::{Error, outcomes, verify};
use crate::domain::id::DecisionId;

/// Connections that are kept for the next reader.
const IDLE_MAX: usize = 8;

/// Connections for reading.
#[derive(Debug)]
pub(super) struct Pool {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Pool {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, idle: Mutex::new(Vec::new()) }
    }

    /// Lends a connection to `work`.
    pub(super) fn with<T>(&self, work: impl FnOnce(&Connection) -> Result<T, Error>) -> Result<T, Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let database = match idle {
            Some(database) => database,
            None => store::open_for_reading(&self.path)?,
        };
        let result = work(&database);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if result.is_ok() && idle.len() < IDLE_MAX {
            idle.push(database);
        }
        result
    }
}

/// Which of a customer's decisions.
#[derive(Debug, Clone)]
pub struct Page {
    /// Made at or after, milliseconds since 1970.
    pub from_ms: i64,
    /// Made before.
    pub to_ms: i64,
    /// Recorded before the entry of this number.
    pub before: i64,
    /// At most so many.
    pub limit: usize,
}

/// What has become of the inputs of a decision.
#[derive(Debug, Clone, PartialEq)]
pub enum Inputs {
    /// They were not kept.
    NotKept,
    /// They do not open any more: the customer was erased.
    Erased,
    /// As they were sent.
    Kept(Vec<u8>),
}

/// A decision as it was recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// The number of its entry.
    pub seq: i64,
    /// Its id.
    pub id: DecisionId,
    /// When it was made, milliseconds since 1970.
    pub decided_at_ms: i64,
    /// The pseudonym of the customer, hexadecimal.
    pub customer: String,
    /// The score.
    pub score: f64,
    /// The tier.
    pub tier: String,
    /// The action.
    pub action: String,
    /// The arm.
    pub arm: String,
    /// What it says beyond these, where there was something.
    pub extra: Extra,
    /// Name of the model.
    pub model: String,
    /// Version of the model.
    pub model_version: String,
    /// Digest of the model's bundle.
    pub model_digest: String,
    /// Name of the policy.
    pub policy: String,
    /// Version of the policy.
    pub policy_version: String,
    /// The policy document itself.
    pub policy_document: String,
    /// Digest of the configuration.
    pub config_digest: String,
    /// Keyed digest of the inputs, hexadecimal.
    pub input_digest: String,
    /// The inputs.
    pub inputs: Inputs,
    /// The first 16 digits of its link.
    pub link: String,
    /// What followed it, in the order of the record; empty where it was not asked for.
    pub outcomes: Vec<super::RecordedOutcome>,
}

/// The first 16 hexadecimal digits of `bytes`.
pub(super) fn digits(bytes: &[u8]) -> String {
    hex(bytes).chars().take(16).collect()
}

/// A decision by its id.
pub(super) fn decision(database: &Connection, keys: &Keys, id: DecisionId) -> Result<Option<Recorded>, Error> {
    let sql = format!(
        "SELECT {} FROM entry e LEFT JOIN version v USING (version) WHERE e.id = ?1 AND e.kind = 'decision'",
        store::COLUMNS
    );
    let found = database.prepare_cached(&sql)?.query_row([id.bytes().as_slice()], store::read_entry).optional()?;
    found.map(|found| recorded(database, keys, found)).transpose()
}

/// The last `count` decisions before the entry `before`, of one `model` or all, the newest first.
pub(super) fn last(
    database: &Connection,
    keys: &Keys,
    model: Option<&str>,
    before: i64,
    count: usize,
) -> Result<Vec<Recorded>, Error> {
    let sql = format!(
        "SELECT {} FROM entry e LEFT JOIN version v USING (version)
         WHERE e.kind = 'decision' AND e.seq < ?3 AND (?2 IS NULL OR v.model = ?2) ORDER BY e.seq DESC LIMIT ?1",
        store::COLUMNS
    );
    let mut statement = database.prepare(&sql)?;
    let rows = statement.query_map(params![count as i64, model, before], store::read_entry)?;
    rows.map(|row| recorded(database, keys, row?)).collect()
}

/// A stretch of the decisions by a model, in the order of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    model: String,
    /// When they were made, milliseconds since 1970, the end excluded.
    span_ms: Range<i64>,
    /// The numbers of their entries, the end excluded.
    seqs: Range<i64>,
}

impl super::Ledger {
    /// The last `count` decisions by `model` that were made in `span_ms` (milliseconds since 1970, the end excluded).
    pub fn stretch(&self, model: &str, span_ms: Range<i64>, count: usize) -> Result<Stretch, Error> {
        self.readers.with(|database| {
            let snapshot = database.unchecked_transaction()?;
            let first: Option<i64> = snapshot.query_row("SELECT min(seq) FROM entry", [], |row| row.get(0))?;
            let at = |ms: i64| first.map_or(Ok(0), |first| first_since(&snapshot, first, ms));
            let (from, to) = (
                at(span_ms.start.saturating_sub(DISORDER_MS))?,
                at(span_ms.end.saturating_add(DISORDER_MS))?,
            );
            let sql = "SELECT min(seq) FROM (
                 SELECT e.seq FROM entry e JOIN version v USING (version)
                 WHERE e.kind = 'decision' AND e.seq >= ?1 AND e.seq < ?2 AND e.at_ms >= ?3 AND e.at_ms < ?4 AND v.model = ?5
                 ORDER BY e.seq DESC LIMIT ?6)";
            let bounds = params![from, to, span_ms.start, span_ms.end, model, count as i64];
            let begin: Option<i64> = snapshot.prepare_cached(sql)?.query_row(bounds, |row| row.get(0))?;
            let seqs = begin.map_or(to..to, |begin| begin..to);
            Ok(Stretch { model: model.to_owned(), span_ms: span_ms.clone(), seqs })
        })
    }

    /// The first `count` decisions of what is left of `stretch`, with their inputs and outcomes where they are there; they are taken off it.
    pub fn advance(&self, stretch: &mut Stretch, count: usize) -> Result<Vec<Recorded>, Error> {
        let found = self.readers.with(|database| {
            let snapshot = database.unchecked_transaction()?;
            let sql = format!(
                "SELECT {} FROM entry e LEFT JOIN version v USING (version)
                 WHERE e.kind = 'decision' AND e.seq >= ?1 AND e.seq < ?2 AND e.at_ms >= ?3 AND e.at_ms < ?4 AND v.model = ?5
                 ORDER BY e.seq LIMIT ?6",
                store::COLUMNS
            );
            let Stretch { model, span_ms, seqs } = &*stretch;
            let bounds = params![seqs.start, seqs.end, span_ms.start, span_ms.end, model, count as i64];
            let keys = self.keys.load();
            let mut statement = snapshot.prepare_cached(&sql)?;
            let rows = statement.query_map(bounds, store::read_entry)?;
            let mut found =
                rows.map(|row| recorded(&snapshot, &keys, row?)).collect::<Result<Vec<Recorded>, Error>>()?;
            outcomes::attach(&snapshot, &mut found)?;
            Ok(found)
        })?;
        stretch.seqs.start = found.last().map_or(stretch.seqs.end, |last| last.seq + 1);
        Ok(found)
    }
}

/// The decisions on a customer, under every pseudonym that it had, the newest first.
pub(super) fn of_customer(
    database: &Connection,
    keys: &Keys,
    customer_id: &str,
    page: &Page,
) -> Result<Vec<Recorded>, Error> {
    let snapshot = database.unchecked_transaction()?;
    let database = &*snapshot;
    let indexed = store::meta_number(database, "indexed")?;
    let mut found = Vec::new();
    for pseudonym in keys.pseudonyms(customer_id) {
        // What the index does not have yet, and what it has: two parts of one list.
        for part in [
            "SELECT seq FROM entry WHERE seq > ?5 AND customer = ?1",
            "WITH RECURSIVE part(segment) AS (
                 SELECT min(segment) FROM customer_entry
                 UNION ALL SELECT segment + 1 FROM part WHERE segment < ?5 >> 16
             ) SELECT c.seq FROM part CROSS JOIN customer_entry c ON c.segment = part.segment AND c.customer = ?1 WHERE c.seq <= ?5",
        ] {
            let sql = format!(
                "SELECT {} FROM entry e LEFT JOIN version v USING (version)
                 WHERE e.seq IN ({part}) AND e.kind = 'decision' AND e.seq < ?2 AND e.at_ms >= ?3 AND e.at_ms < ?4
                 ORDER BY e.seq DESC LIMIT ?6",
                store::COLUMNS
            );
            let mut statement = database.prepare_cached(&sql)?;
            let bounds = params![
                pseudonym.as_slice(),
                page.before,
                page.from_ms,
                page.to_ms,
                indexed,
                page.limit as i64
            ];
            for row in statement.query_map(bounds, store::read_entry)? {
                found.push(row?);
            }
        }
    }
    found.sort_by_key(|(entry, _, _)| std::cmp::Reverse(entry.seq));
    found.truncate(page.limit);
    found.into_iter().map(|found| recorded(database, keys, found)).collect()
}

fn recorded(
    database: &Connection,
    keys: &Keys,
    (entry, link, version): (Entry<'_>, Vec<u8>, Option<Version>),
) -> Result<Recorded, Error> {
    let incomplete = || Error::Broken(format!("entry {} is no {}", entry.seq, Kind::Decision.name()));
    let (answer, version) = (entry.answer.as_ref().ok_or_else(incomplete)?, version.ok_or_else(incomplete)?);
    let id: [u8; 16] = entry.id.as_ref().try_into().map_err(|_| incomplete())?;
    let customer: Pseudonym =
        entry.customer.as_deref().and_then(|bytes| bytes.try_into().ok()).ok_or_else(incomplete)?;
    let inputs = match &entry.sealed {
        None => Inputs::NotKept,
        Some(sealed) => {
            let mut statement =
                database.prepare_cached("SELECT key_version, wrapped FROM customer WHERE customer = ?1")?;
            let found: Option<(u32, Option<Vec<u8>>)> =
                statement.query_row([customer.as_slice()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            let opened = found.and_then(|(version, wrapped)| {
                let key = keys.unwrap(version, &customer, wrapped.as_deref()?).ok()?;
                keys::open_inputs(&key, &id, sealed).ok()
            });
            opened.map_or(Inputs::Erased, Inputs::Kept)
        }
    };
    Ok(Recorded {
        seq: entry.seq,
        id: DecisionId::from_bytes(id),
        decided_at_ms: entry.at_ms,
        customer: hex(&customer),
        score: answer.score,
        tier: answer.tier.to_string(),
        action: answer.action.to_string(),
        arm: answer.arm.to_string(),
        extra: serde_json::from_str(&entry.body).map_err(|_| incomplete())?,
        model: version.model,
        model_version: version.model_version,
        model_digest: version.model_digest,
        policy: version.policy,
        policy_version: version.policy_version,
        policy_document: version.policy_document,
        config_digest: version.config_digest,
        input_digest: entry.digest.as_deref().map(hex).unwrap_or_default(),
        inputs,
        link: link.as_slice().try_into().map(|link| verify::short(&link)).unwrap_or_default(),
        outcomes: Vec::new(),
    })
}
