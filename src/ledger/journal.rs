//! The journal of operators: every move on slots and experiments with the state that it led to, in one transaction with its entry in
//! the chain. Also the policies and experiments that were in force, and the answers to requests that may come twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::keys::Keys;
use super::writer::Writer;
use super::{Action, Error};
use crate::domain::policy::registry::Registry;
use crate::domain::rollout::slots::Slots;

/// Answers that are kept for requests that come again.
const ANSWERS_MAX: i64 = 1_000;
/// How long a change may wait for its turn, and then for the disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) turn: Duration,
    pub(crate) disk: Duration,
}

impl Patience {
    pub(super) const USUAL: Self = Self { turn: Duration::from_secs(2), disk: Duration::from_secs(10) };
}

/// Whose turn a change is: it waits, the writer has taken it, or who asked for it has withdrawn it.
const WAITS: u8 = 0;
const TAKEN: u8 = 1;
const WITHDRAWN: u8 = 2;

/// A document that outlives what it was written for, by its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// A policy that was in force, or decided for an arm of an experiment.
    Policy,
    /// The experiments that ran at a time: a `Layout`.
    Layout,
}

impl Kept {
    fn name(self) -> &'static str {
        match self {
            Kept::Policy => "policy",
            Kept::Layout => "layout",
        }
    }
}

/// What somebody did, or tried to do, to the slots or the experiments of a model.
#[derive(Debug, Clone, Serialize)]
pub struct Change {
    /// The model.
    pub model: String,
    /// The move, such as `promote`.
    pub verb: String,
    /// Who asked for it; `mainstay` is the service itself.
    pub by: String,
    /// Why, in that one's words.
    pub why: String,
    /// What became of it, as a sentence.
    pub result: String,
    /// The slots after it; `None` when nothing changed.
    pub slots: Option<Slots>,
    /// The experiments after it; `None` when nothing changed about them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experiments: Option<Registry>,
    /// Documents that were not in use before: what each is, its digest, its text.
    #[serde(skip)]
    pub documents: Vec<(Kept, String, String)>,
    /// The request that asked for it, to be answered the same when it comes again.
    #[serde(skip)]
    pub request: Option<Answered>,
}

/// A request with a key of its caller's choice, and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// The key.
    pub key: String,
    /// The hash of what was asked for.
    pub fingerprint: String,
    /// The answer.
    pub answer: String,
}

/// An action on record.
#[derive(Debug, Clone, PartialEq)]
pub struct Recalled {
    /// The number of its entry.
    pub seq: i64,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// What: an object with `what`.
    pub body: Value,
}

/// A change on its way into the journal.
#[derive(Debug)]
pub struct Pending {
    answer: Receiver<Result<i64, Error>>,
    turn: Arc<AtomicU8>,
    patience: Patience,
}

impl Pending {
    /// What became of it, if that is known: the number of its entry.
    pub fn poll(&self) -> Option<Result<i64, Error>> {
        match self.answer.try_recv() {
            Ok(answer) => Some(answer),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(Error::Closed)),
        }
    }

    /// Waits for it. What has not had its turn in time is withdrawn, and will not be recorded later.
    ///
    /// Errors: whatever kept it from being written, or [`Error::Late`]: then it may be written still, where it had its turn. Asked again, it
    /// tells what became of it.
    pub fn wait(&self) -> Result<i64, Error> {
        let Patience { turn, disk } = self.patience;
        let late = |error| match error {
            RecvTimeoutError::Timeout => Error::Late,
            RecvTimeoutError::Disconnected => Error::Closed,
        };
        match self.answer.recv_timeout(turn) {
            Ok(answer) => answer,
            Err(error) => match self.turn.compare_exchange(WAITS, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) | Err(WITHDRAWN) => Err(late(error)),
                Err(_) => self.answer.recv_timeout(disk).map_err(late)?,
            },
        }
    }

    /// Whether it has had its turn: then one that is late may be written still.
    pub fn is_taken(&self) -> bool {
        self.turn.load(Ordering::Acquire) == TAKEN
    }
}

/// A change that waits for the writer.
pub(super) struct Waiting {
    change: Change,
    turn: Arc<AtomicU8>,
    reply: SyncSender<Result<i64, Error>>,
}

impl Writer {
    /// Records a change that waits, unless it was withdrawn.
    pub(super) fn take(&mut self, waiting: &Waiting) {
        let turn = waiting.turn.compare_exchange(WAITS, TAKEN, Ordering::AcqRel, Ordering::Acquire);
        if turn.is_ok() {
            let _ = waiting.reply.send(self.change(&waiting.change));
        }
    }

    /// Records a change together with the state that it led to.
    fn change(&mut self, change: &Change) -> Result<i64, Error> {
        let before = self.desk.head.seq;
        let draft = self.desk.action_draft(&Action::Slots(Box::new(change.clone())));
        let result = self.transact(|desk, transaction| {
            let mut head = desk.head;
            desk.append(transaction, &draft, &mut head, &mut Vec::new())?;
            let keys = desk.keys.load();
            if let Some(slots) = &change.slots {
                let document = serde_json::to_string(slots).unwrap_or_default();
                write_state(transaction, &keys, "slots", &change.model, head.seq, &document)?;
            }
            if let Some(experiments) = &change.experiments {
                let document = serde_json::to_string(experiments).unwrap_or_default();
                write_state(transaction, &keys, "experiments", &change.model, head.seq, &document)?;
            }
            for (kept, digest, document) in &change.documents {
                write_state(transaction, &keys, kept.name(), digest, head.seq, document)?;
            }
            if let Some(Answered { key, fingerprint, answer }) = &change.request {
                transaction.execute(
                    "INSERT OR REPLACE INTO answered (key, seq, fingerprint, answer) VALUES (?1, ?2, ?3, ?4)",
                    params![key, head.seq, fingerprint, answer],
                )?;
                transaction.execute(
                    "DELETE FROM answered WHERE seq <= (SELECT seq FROM answered ORDER BY seq DESC LIMIT 1 OFFSET ?1)",
                    [ANSWERS_MAX],
                )?;
            }
            Ok((head, head.seq))
        });
        self.ended(before, result)
    }
}

pub(super) fn write_state(
    transaction: &Transaction,
    keys: &Keys,
    kind: &str,
    name: &str,
    seq: i64,
    document: &str,
) -> Result<(), Error> {
    let version = keys.version();
    let tag = tag_of(keys, version, kind, name, seq, document).ok_or(Error::Sealed)?;
    transaction.execute(
        "INSERT OR REPLACE INTO state (kind, name, seq, document, key_version, tag) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![kind, name, seq, document, version, tag.as_slice()],
    )?;
    Ok(())
}

/// An HMAC over a row of `state`, so that it cannot be set by who has no key.
fn tag_of(keys: &Keys, version: u32, kind: &str, name: &str, seq: i64, document: &str) -> Option<[u8; 32]> {
    use hmac::Mac;
    let mut mac = keys.chain(version)?.chain_update(b"state").chain_update(seq.to_le_bytes());
    for field in [kind, name, document] {
        mac.update(&(field.len() as u64).to_le_bytes());
        mac.update(field.as_bytes());
    }
    Some(mac.finalize().into_bytes().into())
}

/// The document of a state, as it was written.
///
/// Errors: [`Error::Broken`] when it was changed.
pub(super) fn state(database: &Connection, keys: &Keys, kind: &str, name: &str) -> Result<Option<String>, Error> {
    let mut statement =
        database.prepare_cached("SELECT seq, document, key_version, tag FROM state WHERE kind = ?1 AND name = ?2")?;
    let found: Option<(i64, String, u32, Vec<u8>)> =
        statement.query_row([kind, name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).optional()?;
    let Some((seq, document, version, tag)) = found else { return Ok(None) };
    let expected = tag_of(keys, version, kind, name, seq, &document);
    if expected.map(|expected| expected.to_vec()) != Some(tag) {
        return Err(Error::Broken(format!("the {kind} of \"{name}\" were changed, or the key file is another one")));
    }
    Ok(Some(document))
}

/// The slots of a model.
pub(super) fn slots(database: &Connection, keys: &Keys, model: &str) -> Result<Option<Slots>, Error> {
    let slots: Option<Slots> = last_state(database, keys, "slots", model)?;
    match slots.as_ref().and_then(|slots| slots.problems().first().copied()) {
        Some(problem) => Err(Error::Broken(format!("the slots of \"{model}\": {problem}"))),
        None => Ok(slots),
    }
}

/// The state of `kind`, `slots` or `experiments`, that the last move on a model led to.
fn last_state<T: DeserializeOwned>(
    database: &Connection,
    keys: &Keys,
    kind: &str,
    model: &str,
) -> Result<Option<T>, Error> {
    let Some(document) = state(database, keys, kind, model)? else { return Ok(None) };
    let read: T = serde_json::from_str(&document)
        .map_err(|error| Error::Broken(format!("the {kind} of \"{model}\" cannot be read: {error}")))?;
    // An older state in its place would carry a tag of its own: the chain knows which one was the last.
    let (seq, last): (i64, Option<i64>) = database.query_row(
        "SELECT seq, (SELECT max(seq) FROM entry WHERE kind = 'action' AND json_extract(body, '$.what') = 'slots'
                      AND json_extract(body, '$.model') = ?1 AND json_extract(body, '$.' || ?2) IS NOT NULL)
         FROM state WHERE kind = ?2 AND name = ?1",
        [model, kind],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    match last {
        Some(last) if last != seq => Err(Error::Broken(format!(
            "the {kind} of \"{model}\" are those of entry {seq}, but entry {last} changed them"
        ))),
        _ => Ok(Some(read)),
    }
}

/// A document by its digest.
pub(super) fn document(database: &Connection, keys: &Keys, kept: Kept, digest: &str) -> Result<Option<String>, Error> {
    state(database, keys, kept.name(), digest)
}

/// The answer to a request with `key`.
pub(super) fn answered(database: &Connection, key: &str) -> Result<Option<Answered>, Error> {
    let mut statement = database.prepare_cached("SELECT fingerprint, answer FROM answered WHERE key = ?1")?;
    let found = statement
        .query_row([key], |row| Ok(Answered { key: key.to_owned(), fingerprint: row.get(0)?, answer: row.get(1)? }));
    Ok(found.optional()?)
}

/// Actions on the slots of `model` that were recorded before the entry `before`, the newest first.
pub(super) fn history(database: &Connection, model: &str, before: i64, limit: usize) -> Result<Vec<Recalled>, Error> {
    let mut statement = database.prepare_cached(
        "SELECT seq, at_ms, body FROM entry WHERE kind = 'action' AND seq < ?2
         AND json_extract(body, '$.what') = 'slots' AND json_extract(body, '$.model') = ?1 ORDER BY seq DESC LIMIT ?3",
    )?;
    let rows = statement.query_map(params![model, before, limit as i64], |row| {
        let body: String = row.get(2)?;
        Ok(Recalled { seq: row.get(0)?, at_ms: row.get(1)?, body: serde_json::from_str(&body).unwrap_or_default() })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// States that are not what the chain says, as sentences. What retention has taken from the chain is only held to its tag.
pub(super) fn problems(database: &Connection, keys: &Keys) -> Result<Vec<String>, Error> {
    let mut problems = Vec::new();
    if database.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? < 2 {
        // An older ledger, which has no states yet.
        return Ok(problems);
    }
    let rows: Vec<(String, String, i64, String)> = database
        .prepare("SELECT kind, name, seq, document FROM state")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<Result<_, _>>()?;
    for (kind, name, _, _) in &rows {
        if let Err(error) = state(database, keys, kind, name) {
            problems.push(error.to_string());
        }
    }
    // What a start looks for; what cannot be read is told above.
    for (_, name, _, document) in rows.iter().filter(|(kind, ..)| kind == "slots") {
        let slots: Option<Slots> = serde_json::from_str(document).ok();
        let policies = slots.into_iter().flat_map(|slots| [Some(slots.policy), slots.policy_before]).flatten();
        for policy in policies.filter(|policy| !rows.iter().any(|row| row.0 == "policy" && row.1 == policy.digest)) {
            problems.push(format!("the policy {} of \"{name}\" is missing", policy.digest));
        }
    }
    let mut statement = database.prepare(
        "SELECT json_extract(body, '$.model'), max(seq), body FROM entry
         WHERE kind = 'action' AND json_extract(body, '$.what') = 'slots' AND json_extract(body, '$.' || ?1) IS NOT NULL GROUP BY 1",
    )?;
    for kind in ["slots", "experiments"] {
        let last: Vec<(String, i64, String)> = statement
            .query_map([kind], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        for (model, seq, body) in last {
            let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
            let row = rows.iter().find(|(own, name, _, _)| own == kind && *name == model);
            if !row.is_some_and(|(_, _, at, document)| *at == seq && parse(document) == parse(&body)[kind]) {
                problems.push(format!("the {kind} of \"{model}\" are not those of entry {seq}"));
            }
        }
    }
    Ok(problems)
}

impl super::Ledger {
    /// Records a change, with the state that it led to, and waits for it, some seconds at most: the number of its entry.
    ///
    /// Errors: whatever keeps it from being written; then nothing has changed.
    pub fn change(&self, change: Change) -> Result<i64, Error> {
        self.change_later(change)?.wait()
    }

    /// The same without waiting.
    pub fn change_later(&self, change: Change) -> Result<Pending, Error> {
        let (reply, answer) = sync_channel(1);
        let turn = Arc::new(AtomicU8::new(WAITS));
        let waiting = Waiting { change, turn: turn.clone(), reply };
        match self.queue.try_send(super::Command::Change(Box::new(waiting))) {
            Ok(()) => Ok(Pending { answer, turn, patience: self.patience }),
            Err(TrySendError::Full(_)) => Err(Error::Busy),
            Err(TrySendError::Disconnected(_)) => Err(Error::Closed),
        }
    }

    /// The slots of a model, as they were recorded last.
    pub fn slots(&self, model: &str) -> Result<Option<Slots>, Error> {
        self.readers.with(|database| slots(database, &self.keys.load(), model))
    }

    /// The experiments of a model, as they were recorded last.
    pub fn experiments(&self, model: &str) -> Result<Option<Registry>, Error> {
        self.readers.with(|database| last_state(database, &self.keys.load(), "experiments", model))
    }

    /// A document that is kept, by its digest.
    pub fn document(&self, kept: Kept, digest: &str) -> Result<Option<String>, Error> {
        self.readers.with(|database| document(database, &self.keys.load(), kept, digest))
    }

    /// The answer that was given to the request with `key`, if it was one of the last.
    pub fn answered(&self, key: &str) -> Result<Option<Answered>, Error> {
        self.readers.with(|database| answered(database, key))
    }

    /// What was done to the slots and experiments of `model`, the newest first.
    pub fn history(&self, model: &str, before: i64, limit: usize) -> Result<Vec<Recalled>, Error> {
        self.readers.with(|database| history(database, model, before, limit))
    }

    /// The last `count` decisions by `model` that were recorded before the entry `before`, with their inputs where they are there, the
    /// newest first.
    pub fn last_decisions(&self, model: &str, before: i64, count: usize) -> Result<Vec<super::Recorded>, Error> {
        self.readers.with(|database| super::reader::last(database, &self.keys.load(), Some(model), before, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_is_late_can_be_asked_again_what_became_of_it() {
        let pending = |turn, disk| {
            let (reply, answer) = sync_channel(1);
            let patience = Patience { turn: Duration::from_millis(1), disk };
            (reply, Pending { answer, turn: Arc::new(AtomicU8::new(turn)), patience })
        };
        let (writer, taken) = pending(TAKEN, Duration::from_millis(1));
        assert!(matches!(taken.wait(), Err(Error::Late)));
        assert!(taken.is_taken() && taken.poll().is_none(), "it may be written still");
        writer.send(Ok(7)).expect("somebody who asks");
        assert!(matches!(taken.wait(), Ok(7)));

        let (writer, waiting) = pending(WAITS, Duration::from_secs(600));
        assert!(matches!(waiting.wait(), Err(Error::Late)));
        // It was withdrawn: the disk is not waited for, and it is over once the writer has seen that.
        assert!(matches!(waiting.wait(), Err(Error::Late)) && !waiting.is_taken());
        drop(writer);
        assert!(matches!(waiting.poll(), Some(Err(Error::Closed))));
    }
}
