//! The one thread that writes the ledger: it takes what waits as a group, commits it, and only then keeps the promises. A group
//! that fails is rolled back and refused as a whole; the next one is tried all the same, so recovery needs no restart.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, params};

use super::courier::{self, Reply, Sent};
use super::desk::Desk;
use super::journal::Waiting;
use super::keys::{Keys, Pseudonym, hex};
use super::record::Draft;
use super::store::{self, Head};
use super::{Action, Error, Promise};

/// Records of one commit.
const GROUP_MAX: usize = 4_096;
/// Records that are worth a commit: with more it costs hardly less for each.
const GROUP_WORTH: usize = 64;
/// How many times as long as it took a commit is followed by a pause, where more than one record came to it: so commits have a quarter of
/// the time, and groups grow with what comes and with the disk.
const PAUSES: u32 = 3;
/// How long to wait for work when there is nothing else to do, before looking again.
pub(super) const IDLE: Duration = Duration::from_millis(100);
/// How long nothing has to come before a chore is done, and how often one is done although something comes.
const LULL: Duration = Duration::from_millis(3);
const CHORE_EVERY: Duration = Duration::from_millis(100);
/// How far the index of customers may fall behind before it is filled under load too, and then by how many entries at a time: it
/// has to go on faster than entries come.
const INDEX_LAG_MAX: i64 = 500_000;
const INDEX_STEP: i64 = 4_096;
/// How long to wait before a group is tried again that must not be lost.
const RETRY: Duration = Duration::from_millis(100);

/// What the writer is asked to do.
pub(super) enum Command {
    Append { drafts: Vec<Draft>, reply: Option<Reply> },
    Act { action: Action, reply: SyncSender<Result<(), Error>> },
    Erase { customers: Vec<Pseudonym>, by: Option<String>, reply: SyncSender<Result<bool, Error>> },
    RotateKeys { by: Option<String>, reply: SyncSender<Result<u32, Error>> },
    Change(Box<Waiting>),
    Close,
}

pub(super) struct Writer {
    pub(super) database: Connection,
    /// A key was destroyed, but its last copy may still stand in the write-ahead log.
    pub(super) scrub: bool,
    /// Whether the last chores failed.
    pub(super) chores_fail: bool,
    /// How far the index of customers goes.
    pub(super) indexed: i64,
    pub(super) desk: Desk,
}

impl Writer {
    /// A writer of `database`.
    pub(super) fn new(database: Connection, desk: Desk) -> Self {
        let indexed = store::meta_number(&database, "indexed").unwrap_or(0);
        Self { database, scrub: true, chores_fail: false, indexed, desk }
    }

    /// Writes until it is told to close.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        let interval = Duration::from_micros(self.desk.options.commit_interval_us);
        // Whether there may be work to do when nothing waits.
        let mut chores = true;
        let mut last_chore = Instant::now();
        let mut last_count = 0;
        loop {
            if chores && last_chore.elapsed() > CHORE_EVERY {
                chores = self.chore(last_count < GROUP_WORTH / 4);
                last_chore = Instant::now();
            }
            let patience = if chores { LULL } else { IDLE };
            let mut next = match commands.recv_timeout(patience) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => {
                    self.try_again();
                    chores = self.chore(true);
                    last_chore = Instant::now();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            chores = true;
            if matches!(next, Some(Command::Append { .. })) {
                // Under load groups are given time to grow, as a commit costs the same for one record as for some dozens. Where
                // these are there half-way, they need not wait for more.
                let pause = pause(interval, self.desk.took, last_count);
                let mut since = self.desk.committed.elapsed();
                while since < pause && self.desk.state.waiting() < GROUP_WORTH {
                    std::thread::sleep((pause - since).min(pause / 2));
                    since = self.desk.committed.elapsed();
                }
            }
            let mut group = Vec::new();
            let mut count = 0;
            while let Some(Command::Append { drafts, reply }) = next {
                count += drafts.len();
                group.push((drafts, reply));
                next = if count < GROUP_MAX { commands.try_recv().ok() } else { None };
            }
            if !group.is_empty() {
                last_count = count;
                self.restart_log();
                self.write(group, count);
                // By the step that it is over: less would write the pages of a segment for a handful of rows.
                if self.desk.head.seq - self.indexed > INDEX_LAG_MAX + INDEX_STEP {
                    let _ = self.index(INDEX_STEP);
                }
            }
            match next {
                Some(Command::Act { action, reply }) => drop(reply.send(self.act(&action))),
                Some(Command::Erase { customers, by, reply }) => drop(reply.send(self.erase(&customers, by))),
                Some(Command::RotateKeys { by, reply }) => drop(reply.send(self.rotate_keys(by))),
                Some(Command::Change(waiting)) => self.take(&waiting),
                Some(Command::Close) => {
                    // So that the database file is whole by itself, for who copies it.
                    self.scrub = true;
                    let _ = self.scrub();
                    return;
                }
                Some(Command::Append { .. }) | None => {}
            }
        }
    }

    /// Commits a group and keeps its promises.
    fn write(&mut self, group: Vec<Sent>, count: usize) {
        let mut outcome = self.commit(&group);
        // Nobody waits for a buffered record, so nobody could be told: it is tried until it is there. What comes meanwhile
        // finds the queue full.
        while outcome.is_err()
            && self.desk.options.promise == Promise::Buffered
            && !self.desk.state.closing.load(Ordering::Relaxed)
        {
            std::thread::sleep(RETRY);
            outcome = self.commit(&group);
        }
        self.desk.state.waiting.fetch_sub(count, Ordering::Relaxed);
        courier::deliver(group, &outcome.map_err(|error| cause(&error)));
    }

    fn commit(&mut self, group: &[Sent]) -> Result<(), Error> {
        let begun = Instant::now();
        let result = self.transact(|desk, transaction| {
            let mut head = desk.head;
            let mut fresh = Vec::new();
            for draft in group.iter().flat_map(|(drafts, _)| drafts) {
                desk.append(transaction, draft, &mut head, &mut fresh)?;
            }
            Ok((head, fresh))
        });
        self.desk.committed = Instant::now();
        self.desk.took = self.desk.committed - begun;
        self.desk.state.commit_us.store(self.desk.took.as_micros() as usize, Ordering::Relaxed);
        match result {
            Ok(fresh) => {
                self.recovered();
                fresh.into_iter().for_each(|(customer, key)| self.desk.cache.insert(customer, key));
                Ok(())
            }
            Err(error) => {
                self.failed(&error);
                Err(error)
            }
        }
    }

    /// After a group that could not be written.
    pub(super) fn failed(&mut self, error: &Error) {
        if !self.desk.state.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(cause = cause(error), "the ledger cannot write: nothing is answered until it can");
        }
        // A commit can fail and yet be there (a sync that failed after the write): the database knows where it ends.
        if let Ok(Some(head)) = store::read_mark(&self.database, &self.desk.keys.load(), "head") {
            self.desk.head = head;
        }
        // What the rolled-back group made is not there.
        self.desk.versions.clear();
        self.desk.state.failed_commits.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn recovered(&self) {
        if self.desk.state.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("the ledger writes again");
        }
    }

    /// Where groups could not be written, whether one could be now: nobody may send one, since the service is not ready.
    pub(super) fn try_again(&mut self) {
        if self.desk.state.failing.load(Ordering::Relaxed) && self.transact(|desk, _| Ok((desk.head, ()))).is_ok() {
            self.recovered();
        }
    }

    /// Runs `work` as one transaction that ends at the head it gives; the head is ours only once that is committed.
    pub(super) fn transact<T>(
        &mut self,
        work: impl FnOnce(&mut Desk, &Transaction) -> Result<(Head, T), Error>,
    ) -> Result<T, Error> {
        let transaction = self.database.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let (head, value) = work(&mut self.desk, &transaction)?;
        store::write_mark(&transaction, &self.desk.keys.load(), "head", &head)?;
        transaction.commit()?;
        self.desk.head = head;
        self.desk.state.seq.store(head.seq as usize, Ordering::Relaxed);
        Ok(value)
    }

    /// After a transaction of one entry, which began behind the entry `before`: the number of it.
    pub(super) fn ended(&mut self, before: i64, result: Result<i64, Error>) -> Result<i64, Error> {
        match result {
            Ok(seq) => {
                self.recovered();
                Ok(seq)
            }
            Err(error) => {
                self.failed(&error);
                // It may be there all the same: then what it led to is in force.
                if self.desk.head.seq > before { Ok(self.desk.head.seq) } else { Err(error) }
            }
        }
    }

    fn act(&mut self, action: &Action) -> Result<(), Error> {
        let draft = self.desk.action_draft(action);
        match action {
            Action::Retraining(asked) => self.ask(&draft, asked),
            _ => self.commit(&[(vec![draft], None)]),
        }
    }

    fn erase(&mut self, customers: &[Pseudonym], by: Option<String>) -> Result<bool, Error> {
        let now_ms = self.desk.now_ms();
        let pseudonyms = customers.iter().map(|customer| hex(customer)).collect();
        let draft = self.desk.action_draft(&Action::Erase { customers: pseudonyms, by });
        let erased = self.transact(|desk, transaction| {
            let mut erased = 0;
            for customer in customers {
                erased += transaction.execute(
                    "UPDATE customer SET wrapped = NULL, erased_ms = ?2 WHERE customer = ?1 AND wrapped IS NOT NULL",
                    params![customer.as_slice(), now_ms as i64],
                )?;
            }
            let mut head = desk.head;
            if erased > 0 {
                desk.append(transaction, &draft, &mut head, &mut Vec::new())?;
            }
            Ok((head, erased > 0))
        })?;
        customers.iter().for_each(|customer| self.desk.cache.remove(customer));
        self.scrub |= erased;
        // Before it is said to be done; where a reader is in the way, it is done as soon as that has ended.
        let _ = self.scrub();
        Ok(erased)
    }

    fn rotate_keys(&mut self, by: Option<String>) -> Result<u32, Error> {
        let path = self.desk.options.dir.join(super::KEYS);
        let mut keys = Keys::open(&path, false)?;
        let version = keys.rotate()?;
        self.desk.keys.store(Arc::new(keys));
        self.act(&Action::RotateKeys { version, by })?;
        Ok(version)
    }
}

/// How long behind a commit that `took` so long for a group of `count` the next one waits for records. Who comes alone, one record after
/// the other, would wait for nobody: the next record only comes when the last is answered.
fn pause(interval: Duration, took: Duration, count: usize) -> Duration {
    if count > 1 { interval.min(took * PAUSES) } else { Duration::ZERO }
}

pub(super) fn cause(error: &Error) -> String {
    match error {
        Error::Database(cause) => cause.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_alone_waits_for_nobody() {
        let (interval, took) = (Duration::from_millis(1), Duration::from_micros(100));
        assert_eq!(pause(interval, took, 1), Duration::ZERO);
        assert_eq!(pause(interval, took, 2), took * PAUSES);
        assert_eq!(pause(interval, Duration::from_secs(1), 4_096), interval, "a slow disk does not make it longer");
    }
}
