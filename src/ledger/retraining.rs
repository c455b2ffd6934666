//! Requests for a new model on record: each cause before it is sent, with the very message, and later what became of it; and what is
//! remembered of each, which retention does not take. When one is made is decided above.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::journal::{state, write_state};
use super::keys::Keys;
use super::record::Draft;
use super::writer::Writer;
use super::{Action, Error};
use crate::domain::retraining::Cause;

/// The kind of their states.
const STATE: &str = "requests";
/// Causes that are remembered; with more, those that were longest without news are forgotten.
const REMEMBERED_MAX: usize = 1_024;

/// What is said of a cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// It is to be sent.
    Due,
    /// It was sent, and its receipt confirmed.
    Delivered,
    /// It was tried as often as it should have needed; it is tried on, but seldom.
    GivenUp,
    /// The receiver wants no more of it: it is not sent again.
    Refused,
}

/// One entry about a cause.
#[derive(Debug, Serialize, Deserialize)]
pub struct Asked {
    cause: Cause,
    /// When it was seen, or what is said of it known, milliseconds since 1970.
    at_ms: u64,
    delivery: Delivery,
    /// How often it was tried since the service started.
    tries: u32,
    /// The message, as it is sent each time; of the first entry alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<Box<RawValue>>,
    /// What is remembered of it from now on: the document of its state.
    #[serde(skip)]
    document: String,
}

/// A cause as the ledger remembers it.
#[derive(Debug, Clone, PartialEq)]
pub struct Remembered {
    /// The cause.
    pub cause: Cause,
    /// When it was seen, milliseconds since 1970.
    pub at_ms: u64,
    /// What became of it.
    pub delivery: Delivery,
    /// When that was known, milliseconds since 1970.
    pub delivery_ms: u64,
    /// The message.
    pub message: Arc<str>,
}

/// The same as it is written.
#[derive(Serialize, Deserialize)]
struct Document {
    cause: Cause,
    at_ms: u64,
    delivery: Delivery,
    delivery_ms: u64,
    message: Box<RawValue>,
}

impl Writer {
    /// Writes an entry about a cause together with what is remembered of it.
    pub(super) fn ask(&mut self, draft: &Draft, asked: &Asked) -> Result<(), Error> {
        let before = self.desk.head.seq;
        let result = self.transact(|desk, transaction| {
            let mut head = desk.head;
            desk.append(transaction, draft, &mut head, &mut Vec::new())?;
            write_state(transaction, &desk.keys.load(), STATE, &asked.cause.id(), head.seq, &asked.document)?;
            transaction.execute(
                "DELETE FROM state WHERE kind = ?1
                 AND seq <= (SELECT seq FROM state WHERE kind = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
                params![STATE, REMEMBERED_MAX as i64],
            )?;
            Ok((head, head.seq))
        });
        self.ended(before, result).map(drop)
    }
}

impl super::Ledger {
    /// Puts on record what is known of a cause, which was tried `tries` times since the service started, and waits for that.
    ///
    /// Errors: whatever keeps it from being written.
    pub fn remember(&self, known: &Remembered, tries: u32) -> Result<(), Error> {
        let Remembered { cause, at_ms, delivery, delivery_ms, message } = known.clone();
        let broken = |error| Error::Broken(format!("a message about retraining is no JSON: {error}"));
        let message = RawValue::from_string(message.to_string()).map_err(broken)?;
        let first = (delivery == Delivery::Due).then(|| message.clone());
        let document = Document { cause: cause.clone(), at_ms, delivery, delivery_ms, message };
        let document = serde_json::to_string(&document).map_err(broken)?;
        self.act(Action::Retraining(Box::new(Asked {
            cause,
            at_ms: delivery_ms,
            delivery,
            tries,
            message: first,
            document,
        })))
    }

    /// The causes that are remembered, the oldest first, `count` of the last ones at most.
    ///
    /// Errors: the ledger cannot be read, or what it remembers was changed.
    pub fn asked(&self, count: usize) -> Result<Vec<Remembered>, Error> {
        let mut found = self.readers.with(|database| {
            let mut found = remembered(database, &self.keys.load())?;
            add_entries(database, &mut found, count)?;
            Ok(found)
        })?;
        found.sort_by_key(|known| known.at_ms);
        found.drain(..found.len().saturating_sub(count));
        Ok(found)
    }
}

/// The causes that have a state.
fn remembered(database: &Connection, keys: &Keys) -> Result<Vec<Remembered>, Error> {
    let mut statement = database.prepare_cached("SELECT name FROM state WHERE kind = ?1 ORDER BY seq")?;
    let names: Vec<String> = statement.query_map([STATE], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let documents = names.iter().filter_map(|name| state(database, keys, STATE, name).transpose());
    let read = |document: Result<String, Error>| {
        let Document { cause, at_ms, delivery, delivery_ms, message } = serde_json::from_str(&document?)
            .map_err(|error| Error::Broken(format!("a request for a new model cannot be read: {error}")))?;
        Ok(Remembered { cause, at_ms, delivery, delivery_ms, message: message.get().into() })
    };
    documents.map(read).collect()
}

/// Adds causes that have entries alone, as an older program wrote them, until there are `count`.
fn add_entries(database: &Connection, found: &mut Vec<Remembered>, count: usize) -> Result<(), Error> {
    let known: HashSet<String> = found.iter().map(|known| known.cause.id()).collect();
    let mut fates: HashMap<String, (Delivery, u64)> = HashMap::new();
    let mut statement = database.prepare_cached(
        "SELECT body FROM entry WHERE kind = 'action' AND json_extract(body, '$.what') = 'retraining' ORDER BY seq DESC",
    )?;
    let mut rows = statement.query([])?;
    // The last entry about a cause comes first, and its message last.
    while found.len() < count {
        let Some(row) = rows.next()? else { break };
        let Asked { cause, at_ms, delivery, message, .. } = serde_json::from_str(&row.get::<_, String>(0)?)
            .map_err(|error| Error::Broken(format!("an entry about retraining cannot be read: {error}")))?;
        let id = cause.id();
        if known.contains(&id) {
            continue;
        }
        match message {
            Some(message) => {
                let (delivery, delivery_ms) = fates.remove(&id).unwrap_or((delivery, at_ms));
                let message = message.get().into();
                found.push(Remembered { cause, at_ms, delivery, delivery_ms, message });
            }
            // Where retention has taken the beginning, nothing comes of it.
            None => drop(fates.entry(id).or_insert((delivery, at_ms))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant, SystemTime};

    use super::*;
    use crate::domain::retraining::Kind;
    use crate::ledger::{DATABASE, Ledger, Options, Promise};

    const DAY_MS: u64 = 86_400_000;

    /// Milliseconds since 1970.
    static NOW: AtomicU64 = AtomicU64::new(1_795_348_800_000);

    fn clock() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(NOW.load(Ordering::Relaxed))
    }

    fn open(dir: &std::path::Path) -> Ledger {
        let options = Options {
            dir: dir.to_owned(),
            promise: Promise::Committed,
            inputs: true,
            queue_max: 64,
            wait_ms_max: 1_000,
            commit_interval_us: 0,
            retention_days: 1,
            bytes_max: 0,
        };
        Ledger::open(&options, "", clock).expect("a ledger")
    }

    fn known(of: &str, at_ms: u64) -> Remembered {
        let cause =
            Cause { model: "m".to_owned(), version: "1.0.0".to_owned(), kind: Kind::Kpi, of: vec![of.to_owned()] };
        let message = format!(r#"{{"type": "x",  "of": "{of}"}}"#).into();
        Remembered { cause, at_ms, delivery: Delivery::Due, delivery_ms: at_ms, message }
    }

    #[test]
    fn what_was_asked_outlives_its_entries() {
        let directory = tempfile::tempdir().expect("a directory");
        let ledger = open(directory.path());
        let now = NOW.load(Ordering::Relaxed);
        let mut all = [known("a", now), known("b", now + 1), known("c", now + 2)];
        all.iter().for_each(|known| ledger.remember(known, 0).expect("written"));
        for (known, delivery) in all.iter_mut().zip([Delivery::Delivered, Delivery::GivenUp]) {
            (known.delivery, known.delivery_ms) = (delivery, now + 5);
            ledger.remember(known, 3).expect("written");
        }
        assert_eq!(ledger.asked(9).expect("readable"), all);
        assert_eq!(ledger.asked(2).expect("readable"), all[1..]);

        // As an older program left them: with entries alone.
        let database = Connection::open(directory.path().join(DATABASE)).expect("the database");
        database.execute_batch("CREATE TABLE aside AS SELECT * FROM state; DELETE FROM state").expect("done");
        assert_eq!(ledger.asked(9).expect("readable"), all);
        // Many entries of one push out none of the others.
        for tries in 4..24 {
            ledger.remember(&all[1], tries).expect("written");
        }
        database.execute_batch("DELETE FROM state").expect("done");
        assert_eq!(ledger.asked(3).expect("readable"), all);
        database.execute_batch("INSERT INTO state SELECT * FROM aside; DROP TABLE aside").expect("done");

        NOW.fetch_add(2 * DAY_MS, Ordering::Relaxed);
        let begun = Instant::now();
        let entries = || {
            let sql = "SELECT count(*) FROM entry WHERE json_extract(body, '$.what') = 'retraining'";
            database.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a number")
        };
        ledger.act(Action::Stop).expect("written");
        while entries() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "retention takes nothing");
            std::thread::yield_now();
        }
        assert_eq!(ledger.asked(9).expect("readable"), all);
        drop(ledger);
        assert_eq!(open(directory.path()).asked(9).expect("readable"), all);

        database.execute("UPDATE state SET document = replace(document, 'due', 'delivered')", []).expect("done");
        let error = open(directory.path()).asked(9).expect_err("changed").to_string();
        assert!(error.contains("were changed"), "{error}");
    }
}
