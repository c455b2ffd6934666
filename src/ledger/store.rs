//! The database: its schema, its migrations, and the statements that write it. SQLite in WAL mode, so that any tool can read it
//! while the service runs. What is written when is decided in `writer`.

use std::borrow::Cow;
use std::path::Path;

use rusqlite::types::{Type, ValueRef};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};

use super::keys::{Keys, Link};
use super::record::{Answer, Entry, Version};
use super::{Error, Promise};

/// The index of customers is by segments of 2 to the power of this many entries; `reader` has it in its SQL.
pub(super) const SEGMENT_BITS: i64 = 16;
/// The size of a page of a new database.
pub(super) const PAGE_BYTES: i64 = 8_192;
/// The largest write-ahead log that stays as large when it starts anew.
const LOG_BYTES_KEPT: i64 = 192 << 20;
/// How long to wait for another process that holds the database, such as a tool that writes.
pub(super) const BUSY: std::time::Duration = std::time::Duration::from_secs(5);

/// The version of the schema that this binary writes: `PRAGMA user_version`.
pub(super) const SCHEMA: i64 = 2;

/// Each step brings a ledger from the version of its place to the next one.
const MIGRATIONS: [&str; SCHEMA as usize] = ["
    CREATE TABLE entry (
        seq INTEGER PRIMARY KEY,   -- 1, 2, 3, ...: without a gap from the first one that is kept
        kind TEXT NOT NULL,        -- decision, outcome, action
        at_ms INTEGER NOT NULL,    -- milliseconds since 1970, UTC
        id BLOB NOT NULL,          -- UUID version 7
        customer BLOB,             -- keyed pseudonym
        version INTEGER,           -- row of version
        score REAL, tier TEXT, action TEXT, arm TEXT,
        body TEXT NOT NULL,        -- JSON: holdout, propensity, reasons; or what an operator did
        digest BLOB,               -- keyed digest of the inputs
        sealed BLOB,               -- inputs, encrypted under the customer's key
        key_version INTEGER NOT NULL,
        link BLOB NOT NULL         -- HMAC over the link before and this entry
    ) STRICT;
    CREATE INDEX entry_by_id ON entry(id);
    -- Filled when the writer is idle, up to meta 'indexed'; what is behind is scanned.
    CREATE TABLE customer_entry (customer BLOB NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (customer, seq)) STRICT, WITHOUT ROWID;
    CREATE TABLE customer (
        customer BLOB PRIMARY KEY,
        key_version INTEGER NOT NULL,
        wrapped BLOB,              -- the customer's key under the master key; NULL once erased
        erased_ms INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE version (
        version INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE,
        model TEXT NOT NULL, model_version TEXT NOT NULL, model_digest TEXT NOT NULL,
        policy TEXT NOT NULL, policy_version TEXT NOT NULL, policy_document TEXT NOT NULL, config_digest TEXT NOT NULL
    ) STRICT;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
    CREATE VIEW decisions AS
        SELECT e.seq, lower(hex(e.id)) AS id, strftime('%Y-%m-%dT%H:%M:%fZ', e.at_ms / 1000.0, 'unixepoch') AS decided_at,
               lower(hex(e.customer)) AS customer, v.model, v.model_version, v.policy, v.policy_version,
               e.score, e.tier, e.action, e.arm, e.body, e.sealed IS NOT NULL AS inputs_kept
        FROM entry e JOIN version v USING (version) WHERE e.kind = 'decision';
", "
    -- By segment of 65,536 entries first: new places are close together, so that the index keeps up with any load. Filled anew.
    DROP TABLE customer_entry;
    DELETE FROM meta WHERE key = 'indexed';
    CREATE TABLE customer_entry (
        segment INTEGER NOT NULL, customer BLOB NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (segment, customer, seq)
    ) STRICT, WITHOUT ROWID;
    -- What must last besides the records, each as a document that an entry led to: slots by model, policies by sha256.
    CREATE TABLE state (
        kind TEXT NOT NULL, name TEXT NOT NULL, seq INTEGER NOT NULL, document TEXT NOT NULL,
        key_version INTEGER NOT NULL,
        tag BLOB NOT NULL,         -- HMAC over the row
        PRIMARY KEY (kind, name)
    ) STRICT, WITHOUT ROWID;
    -- Requests with a key of their caller's choice, to be answered the same when they come again.
    CREATE TABLE answered (key TEXT PRIMARY KEY, seq INTEGER NOT NULL, fingerprint TEXT NOT NULL, answer TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE INDEX answered_by_seq ON answered(seq);
    -- Few among many decisions: found without reading those.
    CREATE INDEX entry_actions ON entry(seq) WHERE kind = 'action';
    -- Outcomes. Finds those of a decision, and keeps one from standing twice: the digest is of its facts, or of the sender's id of it.
    CREATE UNIQUE INDEX outcome_once ON entry(json_extract(body, '$.decision_id'), digest) WHERE kind = 'outcome';
    CREATE VIEW outcomes AS
        SELECT seq, lower(hex(id)) AS id, replace(json_extract(body, '$.decision_id'), '-', '') AS decision,
               strftime('%Y-%m-%dT%H:%M:%fZ', json_extract(body, '$.occurred_at_ms') / 1000.0, 'unixepoch') AS occurred_at,
               lower(hex(customer)) AS customer, json_extract(body, '$.churned') AS churned, json_extract(body, '$.converted') AS converted,
               CAST(json_extract(body, '$.revenue') AS REAL) AS revenue, CAST(json_extract(body, '$.contact_cost') AS REAL) AS contact_cost
        FROM entry WHERE kind = 'outcome';
    -- End of outcomes.
"];

/// The end of the chain: what a truncated ledger cannot fake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The number of the last entry; 0 when there is none.
    pub seq: i64,
    /// Its link.
    pub link: Link,
}

/// Opens the ledger for writing and brings its schema up to date.
///
/// Errors: [`Error::Newer`] when a newer binary wrote it.
pub(super) fn open(path: &Path, promise: Promise) -> Result<Connection, Error> {
    let mut database = Connection::open(path)?;
    let found: i64 = database.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > SCHEMA {
        return Err(Error::Newer { path: path.to_owned(), found, known: SCHEMA });
    }
    // Larger than usual: a group is some twenty kilobytes, and a page of the log costs two writes, whatever its size.
    database.pragma_update(None, "page_size", PAGE_BYTES)?;
    database.pragma_update(None, "journal_mode", "wal")?;
    // Only a log that somebody who read for long made large is cut when it starts anew: it takes as long as writing it.
    database.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
    // In WAL mode NORMAL keeps every commit over the end of the process, FULL over the loss of power.
    database.pragma_update(None, "synchronous", if promise == Promise::Fsynced { "full" } else { "normal" })?;
    // The place of a key that was destroyed is overwritten, not just given free.
    database.pragma_update(None, "secure_delete", "on")?;
    // In KiB: a segment of the index, which is written all over, fits. It counts as resident memory.
    database.pragma_update(None, "cache_size", -4_096)?;
    // A thread of its own does that, so that no commit waits for it.
    database.pragma_update(None, "wal_autocheckpoint", 0)?;
    database.busy_timeout(BUSY)?;
    let transaction = database.transaction()?;
    for step in &MIGRATIONS[found as usize..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    transaction.commit()?;
    Ok(database)
}

/// Opens the ledger for reading.
pub(super) fn open_for_reading(path: &Path) -> Result<Connection, Error> {
    let database =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    database.busy_timeout(std::time::Duration::from_secs(5))?;
    // In KiB: the way to a record is a few pages, and who reads all of them reads none twice. Several readers are kept.
    database.pragma_update(None, "cache_size", -512)?;
    let found: i64 = database.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > SCHEMA {
        return Err(Error::Newer { path: path.to_owned(), found, known: SCHEMA });
    }
    Ok(database)
}

/// A value of `meta`.
pub(super) fn meta(database: &Connection, key: &str) -> Result<Option<Vec<u8>>, Error> {
    let mut statement = database.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    Ok(statement.query_row([key], |row| row.get(0)).optional()?)
}

/// Sets a value of `meta`.
pub(super) fn set_meta(database: &Connection, key: &str, value: &[u8]) -> Result<(), Error> {
    let mut statement = database
        .prepare_cached("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value")?;
    statement.execute(params![key, value])?;
    Ok(())
}

/// A number of `meta`, 0 when it is not there.
pub(super) fn meta_number(database: &Connection, key: &str) -> Result<i64, Error> {
    let bytes = meta(database, key)?.and_then(|value| value.try_into().ok());
    Ok(bytes.map_or(0, i64::from_le_bytes))
}

/// A position in the chain as it stands in `meta`: its number and link, and an HMAC over both, so that it cannot be set by
/// who has no key.
pub(super) fn read_mark(database: &Connection, keys: &Keys, name: &str) -> Result<Option<Head>, Error> {
    let Some(value) = meta(database, name)? else { return Ok(None) };
    let parsed = (|| {
        let (seq, rest) = value.split_first_chunk::<8>()?;
        let (link, rest) = rest.split_first_chunk::<32>()?;
        let (version, tag) = rest.split_first_chunk::<4>()?;
        let head = Head { seq: i64::from_le_bytes(*seq), link: *link };
        let expected = tag_of(keys, u32::from_le_bytes(*version), name, &head)?;
        (expected == tag).then_some(head)
    })();
    parsed
        .map(Some)
        .ok_or_else(|| Error::Broken(format!("the mark \"{name}\" was changed, or the key file is another one")))
}

/// Sets a position in the chain.
pub(super) fn write_mark(database: &Connection, keys: &Keys, name: &str, head: &Head) -> Result<(), Error> {
    let version = keys.version();
    let tag = tag_of(keys, version, name, head).ok_or(Error::Sealed)?;
    let value = [&head.seq.to_le_bytes()[..], &head.link, &version.to_le_bytes(), &tag].concat();
    set_meta(database, name, &value)
}

fn tag_of(keys: &Keys, version: u32, name: &str, head: &Head) -> Option<[u8; 32]> {
    use hmac::Mac;
    let mac = keys.chain(version)?.chain_update(b"mark").chain_update(name).chain_update(head.seq.to_le_bytes());
    Some(mac.chain_update(head.link).finalize().into_bytes().into())
}

/// Writes one entry.
pub(super) fn insert(transaction: &Transaction, entry: &Entry, version: Option<i64>, link: &Link) -> Result<(), Error> {
    let mut statement = transaction.prepare_cached(
        "INSERT INTO entry (seq, kind, at_ms, id, customer, version, score, tier, action, arm, body, digest, sealed, key_version, link)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
    )?;
    let answer = entry.answer.as_ref();
    statement.execute(params![
        entry.seq,
        entry.kind,
        entry.at_ms,
        entry.id,
        entry.customer,
        version,
        answer.map(|answer| answer.score),
        answer.map(|answer| &answer.tier),
        answer.map(|answer| &answer.action),
        answer.map(|answer| &answer.arm),
        entry.body,
        entry.digest,
        entry.sealed,
        entry.key_version,
        link.as_slice()
    ])?;
    Ok(())
}

/// The number of the row of `version`, made if it is not there.
pub(super) fn version_row(database: &Connection, version: &Version) -> Result<i64, Error> {
    let digest = version.digest();
    let [model, model_version, model_digest, policy, policy_version, policy_document, config_digest] = version.fields();
    database.execute(
        "INSERT OR IGNORE INTO version (digest, model, model_version, model_digest, policy, policy_version, policy_document, config_digest)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![digest.as_slice(), model, model_version, model_digest, policy, policy_version, policy_document, config_digest],
    )?;
    Ok(database.query_row("SELECT version FROM version WHERE digest = ?1", [digest.as_slice()], |row| row.get(0))?)
}

/// The columns of [`read_entry`], from `entry e LEFT JOIN version v USING (version)`.
pub(super) const COLUMNS: &str = "e.seq, e.kind, e.at_ms, e.id, e.customer, v.digest, e.score, e.tier, e.action, e.arm, e.body, e.digest, e.sealed, e.key_version, e.link,
    v.model, v.model_version, v.model_digest, v.policy, v.policy_version, v.policy_document, v.config_digest";

fn text(row: &rusqlite::Row, column: usize) -> rusqlite::Result<Cow<'static, str>> {
    row.get::<_, String>(column).map(Cow::Owned)
}

fn bytes(row: &rusqlite::Row, column: usize) -> rusqlite::Result<Option<Cow<'static, [u8]>>> {
    row.get::<_, Option<Vec<u8>>>(column).map(|bytes| bytes.map(Cow::Owned))
}

/// An entry with its link and what it was made by.
pub(super) fn read_entry(row: &rusqlite::Row) -> rusqlite::Result<(Entry<'static>, Vec<u8>, Option<Version>)> {
    let score: Option<f64> = row.get(6)?;
    let answer = match score {
        Some(score) => Some(Answer { score, tier: text(row, 7)?, action: text(row, 8)?, arm: text(row, 9)? }),
        // An entry that answers nothing is linked without these, so there must be nothing to read in them.
        None => match (7..=9).find(|column| row.get_ref(*column).is_ok_and(|value| value != ValueRef::Null)) {
            Some(column) => {
                let name = "an answer without a score".to_owned();
                return Err(rusqlite::Error::InvalidColumnType(column, name, Type::Text));
            }
            None => None,
        },
    };
    let entry = Entry {
        seq: row.get(0)?,
        kind: text(row, 1)?,
        at_ms: row.get(2)?,
        id: row.get::<_, Vec<u8>>(3)?.into(),
        customer: bytes(row, 4)?,
        version: bytes(row, 5)?,
        answer,
        body: text(row, 10)?,
        digest: bytes(row, 11)?,
        sealed: bytes(row, 12)?,
        key_version: row.get(13)?,
    };
    let version = match row.get::<_, Option<String>>(15)? {
        Some(model) => Some(Version {
            model,
            model_version: row.get(16)?,
            model_digest: row.get(17)?,
            policy: row.get(18)?,
            policy_version: row.get(19)?,
            policy_document: row.get(20)?,
            config_digest: row.get(21)?,
        }),
        None => None,
    };
    Ok((entry, row.get(14)?, version))
}
