//! Floor 1, the ledger: the durable, hash-chained record of decisions, outcomes and actions, and the one home of state that must
//! last. An embedded SQLite database in WAL mode; one thread writes it in groups, any number read.

mod chores;
mod courier;
mod desk;
mod error;
mod events;
mod export;
mod exposure;
mod journal;
mod keys;
mod options;
mod outcomes;
mod reader;
mod receipt;
mod record;
mod retraining;
mod spending;
mod store;
mod verify;
mod writer;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

pub use courier::courier;
pub use error::Error;
pub use events::{Decided, Event, Events, Followed, Maker, Said, Ticket};
pub use exposure::Exposed;
#[cfg(test)]
pub(crate) use journal::Patience;
pub use journal::{Answered, Change, Kept, Pending, Recalled};
pub use options::{Options, Promise};
pub use outcomes::{Fate, OF_DECISION_MAX, RecordedOutcome};
pub use reader::{Inputs, Page, Recorded, Stretch};
pub use receipt::Receipt;
pub use record::{Action, Extra, Kind, Part, Reason};
pub use retraining::{Asked, Delivery, Remembered};
pub use spending::{Offered, Spending};
pub use store::Head;
pub use verify::Verified;

use crate::domain::decision::Decision;
use crate::domain::id::DecisionId;
use courier::Reply;
use desk::Desk;
use keys::Keys;
use record::Draft;
use writer::{Command, Writer};

const DATABASE: &str = "ledger.db";
const KEYS: &str = "ledger.keys";
const LOCK: &str = "ledger.lock";

/// How the ledger fares.
#[derive(Debug, Default)]
pub struct State {
    waiting: AtomicUsize,
    failed_commits: AtomicUsize,
    seq: AtomicUsize,
    /// The write-ahead log is large and nearly all of it was copied: the writer shall copy the rest, so that it starts anew.
    log_full: AtomicBool,
    /// How long the last commit took, in microseconds.
    commit_us: AtomicUsize,
    failing: AtomicBool,
    closing: AtomicBool,
}

impl State {
    /// Records that wait to be written.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How long the last commit took.
    pub fn commit(&self) -> Duration {
        Duration::from_micros(self.commit_us.load(Ordering::Relaxed) as u64)
    }

    /// Groups that could not be written.
    pub fn failed_commits(&self) -> usize {
        self.failed_commits.load(Ordering::Relaxed)
    }

    /// Whether the last group could not be written; tried again until it can, with traffic or without.
    pub fn failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// The number of the last record.
    pub fn seq(&self) -> usize {
        self.seq.load(Ordering::Relaxed)
    }
}

/// The open ledger.
#[derive(Debug)]
pub struct Ledger {
    options: Options,
    keys: Arc<ArcSwap<Keys>>,
    queue: SyncSender<Command>,
    state: Arc<State>,
    readers: reader::Pool,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stop_checkpoints: std::sync::mpsc::Sender<()>,
    /// How long changes are waited for.
    pub(crate) patience: journal::Patience,
}

impl Ledger {
    /// Opens, or makes, the ledger in `options.dir` and starts its threads. `config_digest` is recorded with each decision.
    ///
    /// Errors: whatever keeps it from being written; [`Error::Broken`] when its end is not what was written last.
    pub fn open(options: &Options, config_digest: &str, clock: fn() -> SystemTime) -> Result<Self, Error> {
        let dir = &options.dir;
        std::fs::create_dir_all(dir).map_err(|source| Error::File { path: dir.clone(), source })?;
        let lock = lock(dir)?;
        let path = dir.join(DATABASE);
        let is_new = !path.exists();
        let keys = Arc::new(ArcSwap::from_pointee(Keys::open(&dir.join(KEYS), is_new)?));
        let database = store::open(&path, options.promise)?;
        let head = verify::end(&database, &keys.load())?;
        let state = Arc::new(State::default());
        state.seq.store(head.seq as usize, Ordering::Relaxed);
        // As many places as records: a group of a batch is one message, so this is never the tighter bound.
        let (queue, commands) = sync_channel(options.queue_max);
        let desk = Desk::new(keys.clone(), head, state.clone(), options.clone(), config_digest, clock, lock);
        let writer = Writer::new(database, desk);
        let (stop_checkpoints, stopped) = std::sync::mpsc::channel();
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
            thread.map_err(|source| Error::File { path: path.clone(), source })
        };
        let for_checkpoints = state.clone();
        let checkpoints = store::open(&path, options.promise)?;
        let threads = Mutex::new(vec![
            spawn("mainstay-ledger", Box::new(move || writer.run(&commands)))?,
            spawn(
                "mainstay-checkpoint",
                Box::new(move || chores::checkpoints(&checkpoints, &for_checkpoints, &stopped)),
            )?,
        ]);
        let readers = reader::Pool::new(path);
        let (options, patience) = (options.clone(), journal::Patience::USUAL);
        Ok(Self { options, keys, queue, state, readers, threads, stop_checkpoints, patience })
    }

    /// How it fares.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Records `decision` on the customer who sent `inputs`.
    ///
    /// Errors: [`Error::Busy`] when too much waits: then the decision must not be answered.
    pub fn record(&self, decision: &Decision, customer_id: &str, inputs: bytes::Bytes) -> Result<Receipt, Error> {
        let pseudonym = self.keys.load().pseudonym(customer_id);
        self.append(vec![Draft::Decision { decision: decision.clone(), pseudonym, inputs }], false)
    }

    /// Records many decisions as one group.
    pub fn record_all<'r>(
        &self,
        decisions: impl Iterator<Item = (&'r Decision, &'r str, bytes::Bytes)>,
    ) -> Result<Receipt, Error> {
        let keys = self.keys.load();
        let drafts = decisions.map(|(decision, customer_id, inputs)| Draft::Decision {
            decision: decision.clone(),
            pseudonym: keys.pseudonym(customer_id),
            inputs,
        });
        self.append(drafts.collect(), false)
    }

    /// Hands `drafts` to the writer as one group. With `told` the receipt is of their commit, whatever is promised.
    fn append(&self, drafts: Vec<Draft>, told: bool) -> Result<Receipt, Error> {
        let count = drafts.len();
        if count == 0 {
            return Ok(Receipt::done());
        }
        let before = self.state.waiting.fetch_add(count, Ordering::Relaxed);
        let refuse = |error| {
            self.state.waiting.fetch_sub(count, Ordering::Relaxed);
            Err(error)
        };
        // A single group may be larger than the queue: it then has it for itself.
        if before > 0 && before + count > self.options.queue_max {
            return refuse(Error::Busy);
        }
        let (reply, pending) = match self.options.promise {
            Promise::Off | Promise::Buffered if !told => (None, None),
            _ => {
                let (reply, pending) = Reply::new();
                (Some(reply), Some(pending))
            }
        };
        match self.queue.try_send(Command::Append { drafts, reply }) {
            Ok(()) => Ok(Receipt { pending, wait: Duration::from_millis(self.options.wait_ms_max) }),
            Err(TrySendError::Full(_)) => refuse(Error::Busy),
            Err(TrySendError::Disconnected(_)) => refuse(Error::Closed),
        }
    }

    /// Records an action of the service or an operator, and waits for it.
    pub fn act(&self, action: Action) -> Result<(), Error> {
        self.ask(|reply| Command::Act { action, reply })
    }

    /// Destroys the key of a customer: every input recorded so far becomes unreadable. The records stay, and the chain still
    /// verifies. Backups made before still hold the key, wrapped: they are to be let go in their time. Whether there was
    /// such a customer.
    pub fn erase(&self, customer_id: &str, by: Option<&str>) -> Result<bool, Error> {
        let customers = self.keys.load().pseudonyms(customer_id);
        self.ask(|reply| Command::Erase { customers, by: by.map(str::to_owned), reply })
    }

    /// Adds a new master secret, which writes from now on; customers' keys are wrapped anew in idle time. Its version.
    pub fn rotate_keys(&self, by: Option<&str>) -> Result<u32, Error> {
        self.ask(|reply| Command::RotateKeys { by: by.map(str::to_owned), reply })
    }

    /// Copies the database, as of now, into a new file at `path`, while the service goes on. The key file is not copied.
    ///
    /// Errors: [`Error::File`] where the file is there already or its directory is not; the database.
    pub fn backup(&self, path: &Path, by: Option<&str>) -> Result<(), Error> {
        let has_place = path.parent().is_some_and(|parent| parent.as_os_str().is_empty() || parent.is_dir());
        if path.exists() || !has_place {
            let why = if has_place { std::io::ErrorKind::AlreadyExists } else { std::io::ErrorKind::NotFound };
            return Err(Error::File { path: path.to_owned(), source: why.into() });
        }
        self.act(Action::Backup { by: by.map(str::to_owned) })?;
        self.readers.with(|database| {
            database.execute("VACUUM INTO ?1", [path.to_string_lossy()])?;
            Ok(())
        })
    }

    /// A decision by its id.
    pub fn decision(&self, id: DecisionId) -> Result<Option<Recorded>, Error> {
        self.readers.with(|database| {
            let mut found = reader::decision(database, &self.keys.load(), id)?;
            outcomes::attach(database, found.as_mut_slice())?;
            Ok(found)
        })
    }

    /// The decisions on a customer, the newest first.
    pub fn decisions_of(&self, customer_id: &str, page: &Page) -> Result<Vec<Recorded>, Error> {
        self.readers.with(|database| {
            let mut found = reader::of_customer(database, &self.keys.load(), customer_id, page)?;
            outcomes::attach(database, &mut found)?;
            Ok(found)
        })
    }

    /// Writes what waits and ends the threads; what comes later is refused.
    pub fn close(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        if threads.is_empty() {
            return;
        }
        self.state.closing.store(true, Ordering::Relaxed);
        let _ = self.act(Action::Stop);
        let _ = self.queue.send(Command::Close);
        let _ = self.stop_checkpoints.send(());
        for thread in threads {
            let _ = thread.join();
        }
    }

    fn ask<T>(
        &self,
        command: impl FnOnce(std::sync::mpsc::SyncSender<Result<T, Error>>) -> Command,
    ) -> Result<T, Error> {
        let (reply, answer) = sync_channel(1);
        self.queue.send(command(reply)).map_err(|_| Error::Closed)?;
        answer.recv().map_err(|_| Error::Closed)?
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.close();
    }
}

/// A ledger that is looked at while nobody, or another process, writes it.
#[derive(Debug)]
pub struct Reading {
    keys: Keys,
    database: rusqlite::Connection,
}

impl Reading {
    /// Opens the ledger in `dir`.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(DATABASE);
        std::fs::metadata(&path).map_err(|source| Error::File { path: path.clone(), source })?;
        Ok(Self { keys: Keys::open(&dir.join(KEYS), false)?, database: store::open_for_reading(&path)? })
    }

    /// Checks every record: see [`Verified`]. `expected` is a head that was noted outside.
    pub fn verify(&self, expected: Option<&str>) -> Result<Verified, Error> {
        verify::whole(&self.database, &self.keys, expected)
    }

    /// A decision with its inputs.
    pub fn decision(&self, id: DecisionId) -> Result<Option<Recorded>, Error> {
        reader::decision(&self.database, &self.keys, id)
    }

    /// The last `count` decisions, each with its inputs where they are there, the newest first.
    pub fn last_decisions(&self, count: usize) -> Result<Vec<Recorded>, Error> {
        reader::last(&self.database, &self.keys, None, i64::MAX, count)
    }

    /// A document that is kept, by its digest.
    pub fn document(&self, kept: Kept, digest: &str) -> Result<Option<String>, Error> {
        journal::document(&self.database, &self.keys, kept, digest)
    }

    /// Writes the decisions from `from_ms` until before `to_ms` into a Parquet file: how many.
    pub fn export(&self, path: &Path, from_ms: i64, to_ms: i64) -> Result<usize, Error> {
        export::decisions(&self.database, path, from_ms, to_ms)
    }
}

/// Verifies the backup at `path` with the keys of the ledger in `dir`, and puts it in that ledger's place; what stood there is
/// kept beside it, renamed. With problems nothing is changed.
///
/// Errors: [`Error::InUse`] while a service runs on it.
pub fn restore(path: &Path, dir: &Path) -> Result<Verified, Error> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { path, source }
    };
    let _lock = lock(dir)?;
    let keys = Keys::open(&dir.join(KEYS), false)?;
    std::fs::metadata(path).map_err(file(path))?;
    let found = verify::whole(&store::open_for_reading(path)?, &keys, None)?;
    if !found.problems.is_empty() {
        return Ok(found);
    }
    let database = dir.join(DATABASE);
    let coming = dir.join("ledger.db.coming");
    std::fs::copy(path, &coming).map_err(file(&coming))?;
    std::fs::File::open(&coming).and_then(|copy| copy.sync_all()).map_err(file(&coming))?;
    let suffix = format!("before-restore-{}", jiff::Timestamp::now().as_second());
    // The log first: without its database it means nothing, and a log of one database must never meet another.
    for name in ["ledger.db-wal", "ledger.db-shm", DATABASE] {
        let old = dir.join(name);
        if old.exists() {
            std::fs::rename(&old, dir.join(format!("{name}.{suffix}"))).map_err(file(&old))?;
        }
    }
    std::fs::rename(&coming, &database).map_err(file(&database))?;
    Ok(found)
}

/// Takes the lock of the ledger in `dir` for as long as the file is open.
fn lock(dir: &Path) -> Result<std::fs::File, Error> {
    let path = dir.join(LOCK);
    let file = std::fs::File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| Error::File { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::InUse { path: dir.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(Error::File { path, source }),
    }
}
