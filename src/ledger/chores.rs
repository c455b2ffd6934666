//! What the writer does when nothing waits, a step at a time: the index of customers, keys wrapped anew, retention, destroyed
//! keys overwritten. And the thread that brings the write-ahead log into the database.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::keys::{Pseudonym, hex};
use super::store::{self, Head};
use super::writer::{IDLE, Writer, cause};
use super::{Action, Error, State};

/// Rows of one step: few, as somebody may come.
const STEP: i64 = 512;
/// The size of what is to be copied of the write-ahead log from which that is done, in bytes.
const CHECKPOINT_BYTES: i64 = 16 << 20;
/// The size from which it is started anew. Under a load that never pauses some of it is always still to be copied, so that
/// it would only grow: then the writer copies the rest itself, which is little.
const LOG_BYTES_MAX: i64 = 96 << 20;

impl Writer {
    /// One step of each thing that can wait: whether there may be more. One that fails does not keep the others. The index waits
    /// until there is `time`: one step of it dirties pages all over, as many as thousands of records do.
    pub(super) fn chore(&mut self, time: bool) -> bool {
        let mut more = false;
        let mut failed = None;
        let scrubbed = self.scrub().map(|()| false);
        let indexed = if time { self.index(STEP) } else { Ok(true) };
        for (what, step) in
            [("scrub", scrubbed), ("index", indexed), ("rewrap", self.rewrap()), ("forget", self.forget())]
        {
            match step {
                Ok(rest) => more |= rest,
                Err(error) => failed = Some((what, error)),
            }
        }
        // Told when it begins, not ten times a second.
        if let (Some((what, error)), false) = (&failed, self.chores_fail) {
            tracing::warn!(what, cause = cause(error), "the ledger cannot be kept in order; tried again");
        }
        self.chores_fail = failed.is_some();
        more
    }

    /// Copies the rest of a large write-ahead log, so that the next commit begins it anew.
    pub(super) fn restart_log(&mut self) {
        if self.desk.state.log_full.swap(false, Ordering::Relaxed) {
            // Where it fails, or a reader is in the way, it is asked for again.
            let _ = checkpoint(&self.database, "PASSIVE");
        }
    }

    /// Brings the index of customers up to date, by `step` entries of one segment. A row of it may go to any page of its segment, so a
    /// few together cost a page each and many share them: the index is not written with the record, but behind it.
    pub(super) fn index(&mut self, step: i64) -> Result<bool, Error> {
        let indexed = self.indexed;
        if indexed >= self.desk.head.seq {
            return Ok(false);
        }
        let segment = (indexed + 1) >> store::SEGMENT_BITS;
        let end_of_segment = ((segment + 1) << store::SEGMENT_BITS) - 1;
        let through = (indexed + step).min(self.desk.head.seq).min(end_of_segment);
        let transaction = self.database.transaction()?;
        let mut statement = transaction.prepare_cached(
            "INSERT OR IGNORE INTO customer_entry SELECT seq >> ?3, customer, seq FROM entry
             WHERE seq > ?1 AND seq <= ?2 AND customer IS NOT NULL ORDER BY customer, seq",
        )?;
        statement.execute(params![indexed, through, store::SEGMENT_BITS])?;
        drop(statement);
        store::set_meta(&transaction, "indexed", &through.to_le_bytes())?;
        transaction.commit()?;
        self.indexed = through;
        Ok(true)
    }

    /// Wraps keys of customers under the newest master secret.
    fn rewrap(&mut self) -> Result<bool, Error> {
        let keys = self.desk.keys.load_full();
        let found: Vec<(Vec<u8>, u32, Vec<u8>)> = {
            if keys.version() == 1 {
                return Ok(false);
            }
            let mut statement = self
                .database
                .prepare_cached("SELECT customer, key_version, wrapped FROM customer WHERE key_version < ?1 AND wrapped IS NOT NULL LIMIT ?2")?;
            let rows = statement
                .query_map(params![keys.version(), STEP], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            rows.collect::<Result<_, _>>()?
        };
        let transaction = self.database.transaction()?;
        for (customer, version, wrapped) in &found {
            let pseudonym: Pseudonym = customer.as_slice().try_into().map_err(|_| Error::Sealed)?;
            let wrapped = keys.wrap(&pseudonym, &keys.unwrap(*version, &pseudonym, wrapped)?)?;
            transaction.execute(
                "UPDATE customer SET key_version = ?2, wrapped = ?3 WHERE customer = ?1",
                params![customer, keys.version(), wrapped],
            )?;
        }
        transaction.commit()?;
        Ok(!found.is_empty())
    }

    /// Removes the oldest records where time or size ask for it, and records that it did.
    fn forget(&mut self) -> Result<bool, Error> {
        let first: Option<(i64, i64)> = self
            .database
            .prepare_cached("SELECT seq, at_ms FROM entry ORDER BY seq LIMIT 1")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((first, first_ms)) = first else { return Ok(false) };
        let keep_ms = i64::from(self.desk.options.retention_days) * 86_400_000;
        let oldest_ms = self.desk.now_ms() as i64 - keep_ms;
        let pragma = |name: &str| self.database.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let through = if keep_ms > 0 && first_ms < oldest_ms {
            let mut statement = self.database.prepare_cached(
                "SELECT max(seq) FROM (SELECT seq, at_ms FROM entry WHERE seq >= ?1 ORDER BY seq LIMIT ?2) WHERE at_ms < ?3",
            )?;
            statement.query_row(params![first, STEP, oldest_ms], |row| row.get(0))?
        } else if self.desk.options.bytes_max > 0
            && (pragma("page_count")? - pragma("freelist_count")?) * pragma("page_size")?
                > self.desk.options.bytes_max as i64
        {
            Some(first + STEP)
        } else {
            None
        };
        // The last record stays: the chain goes on from it.
        let Some(through) =
            through.map(|through: i64| through.min(self.desk.head.seq - 1)).filter(|through| *through >= first)
        else {
            return Ok(false);
        };
        let link: Vec<u8> =
            self.database.query_row("SELECT link FROM entry WHERE seq = ?1", [through], |row| row.get(0))?;
        let mark = Head {
            seq: through,
            link: link.as_slice().try_into().map_err(|_| Error::Broken("a link is cut".to_owned()))?,
        };
        let draft = self.desk.action_draft(&Action::Retention { through, link: hex(&link) });
        self.transact(|desk, transaction| {
            store::write_mark(transaction, &desk.keys.load(), "first", &mark)?;
            transaction.execute(
                "DELETE FROM customer_entry WHERE (segment, customer, seq) IN
                 (SELECT seq >> ?2, customer, seq FROM entry WHERE seq <= ?1 AND customer IS NOT NULL)",
                [through, store::SEGMENT_BITS],
            )?;
            transaction.execute("DELETE FROM entry WHERE seq <= ?1", [through])?;
            let mut head = desk.head;
            desk.append(transaction, &draft, &mut head, &mut Vec::new())?;
            Ok((head, ()))
        })?;
        Ok(true)
    }

    /// Ends the copies of destroyed keys in the write-ahead log: `secure_delete` overwrites their places, the checkpoint brings
    /// that into the database file, and truncating the log ends it there. A reader from before is in the way: it is not waited
    /// for, as nothing would be recorded meanwhile, but tried again.
    pub(super) fn scrub(&mut self) -> Result<(), Error> {
        if self.scrub {
            self.database.busy_timeout(Duration::ZERO)?;
            let done =
                self.database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| Ok(row.get::<_, i64>(0)? == 0));
            self.database.busy_timeout(store::BUSY)?;
            self.scrub = !done.unwrap_or(false);
        }
        Ok(())
    }
}

/// Copies the write-ahead log into the database from time to time, until `stopped`. On a thread of its own: it waits for the
/// disk, which no commit should.
pub(super) fn checkpoints(database: &Connection, state: &State, stopped: &Receiver<()>) {
    while stopped.recv_timeout(IDLE) == Err(RecvTimeoutError::Timeout) {
        let mut rest = checkpoint(database, "NOOP").unwrap_or_default();
        if rest.left * store::PAGE_BYTES < CHECKPOINT_BYTES && rest.pages * store::PAGE_BYTES <= LOG_BYTES_MAX {
            continue;
        }
        // What comes during one pass is little for the next one.
        for _ in 0..3 {
            rest = checkpoint(database, "PASSIVE").unwrap_or_default();
            if rest.left == 0 {
                break;
            }
        }
        // All copied is not enough: a commit that came just now is behind it, and the log is only begun anew by one that finds
        // nothing left.
        if rest.pages * store::PAGE_BYTES > LOG_BYTES_MAX {
            state.log_full.store(true, Ordering::Relaxed);
        }
    }
}

/// The write-ahead log after a checkpoint.
#[derive(Default)]
struct Rest {
    /// Pages in it.
    pages: i64,
    /// Pages of it that still have to be copied.
    left: i64,
}

/// Copies what nobody reads any more, with the mode PASSIVE; with NOOP it only tells.
fn checkpoint(database: &Connection, mode: &str) -> Result<Rest, Error> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    let (pages, copied): (i64, i64) = database.query_row(&sql, [], |row| Ok((row.get(1)?, row.get(2)?)))?;
    Ok(Rest { pages, left: pages - copied })
}
