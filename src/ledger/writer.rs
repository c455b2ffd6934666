//! The one thread that writes the ledger: it takes what waits as a group, commits it, and only then keeps the promises. A group
//! that fails is rolled back and refused as a whole; the next one is tried all the same, so recovery needs no restart.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use tokio::sync::oneshot;

use super::keys::{self, Cache, CustomerKey, Keys, Nonces, Pseudonym, hex};
use super::record::{Answer, Draft, Entry, Kind, Version};
use super::store::{self, Head};
use super::{Action, Error, Options, Promise, State};
use crate::domain::decision::{Decision, ModelId};
use crate::domain::id::DecisionId;
use crate::domain::policy::Policy;

/// Records of one commit.
const GROUP_MAX: usize = 4_096;
/// How long to wait for work when there is nothing else to do, before looking again.
pub(super) const IDLE: Duration = Duration::from_millis(100);
/// How long nothing has to come before a chore is done, and how often one is done although something comes.
const LULL: Duration = Duration::from_millis(3);
const CHORE_EVERY: Duration = Duration::from_millis(100);
/// How far the index of customers may fall behind before it is filled under load too.
const INDEX_LAG_MAX: i64 = 1_000_000;
/// How long to wait before a group is tried again that must not be lost.
const RETRY: Duration = Duration::from_millis(100);

/// Rows of `version` that are kept in mind: as many as there are models in service, and some that just left.
const VERSIONS_MAX: usize = 64;

/// A row of `version` that is there, with its digest.
struct Known {
    model: Arc<ModelId>,
    policy: Arc<Policy>,
    row: i64,
    digest: [u8; 32],
}

/// Where somebody waits for a record.
type Reply = oneshot::Sender<Result<(), String>>;

/// What the writer is asked to do.
pub(super) enum Command {
    Append { drafts: Vec<Draft>, reply: Option<Reply> },
    Act { action: Action, reply: SyncSender<Result<(), Error>> },
    Erase { customers: Vec<Pseudonym>, reply: SyncSender<Result<bool, Error>> },
    RotateKeys { reply: SyncSender<Result<u32, Error>> },
    Close,
}

pub(super) struct Writer {
    pub(super) database: Connection,
    /// A key was destroyed, but its last copy may still stand in the write-ahead log.
    pub(super) scrub: bool,
    /// How far the index of customers goes.
    pub(super) indexed: i64,
    pub(super) desk: Desk,
}

/// All that the writer has besides the database, so that a transaction can borrow that and work with this.
pub(super) struct Desk {
    pub(super) keys: Arc<ArcSwap<Keys>>,
    pub(super) head: Head,
    pub(super) state: Arc<State>,
    pub(super) options: Options,
    config_digest: String,
    clock: fn() -> SystemTime,
    cache: Cache,
    nonces: Nonces,
    /// Rows of `version` that are known to be there.
    versions: Vec<Known>,
    committed: Instant,
    /// Held for as long as the writer lives.
    _lock: std::fs::File,
}

impl Writer {
    #[expect(clippy::too_many_arguments, reason = "made in one place, of parts that have nothing else in common")]
    pub(super) fn new(
        database: Connection,
        keys: Arc<ArcSwap<Keys>>,
        head: Head,
        state: Arc<State>,
        options: Options,
        config_digest: &str,
        clock: fn() -> SystemTime,
        lock: std::fs::File,
    ) -> Self {
        let desk = Desk {
            keys,
            head,
            state,
            options,
            config_digest: config_digest.to_owned(),
            clock,
            cache: Cache::default(),
            nonces: Nonces::new(),
            versions: Vec::new(),
            committed: Instant::now(),
            _lock: lock,
        };
        let indexed = store::meta_number(&database, "indexed").unwrap_or(0);
        Self { database, scrub: true, indexed, desk }
    }

    /// Writes until it is told to close.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        let interval = Duration::from_micros(self.desk.options.commit_interval_us);
        // Whether there may be work to do when nothing waits.
        let mut chores = true;
        let mut last_chore = Instant::now();
        loop {
            if chores && last_chore.elapsed() > CHORE_EVERY {
                chores = self.chore().unwrap_or(false);
                last_chore = Instant::now();
            }
            let patience = if chores { LULL } else { IDLE };
            let mut next = match commands.recv_timeout(patience) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => {
                    self.try_again();
                    // A chore that fails is tried again; what it was for still works without it.
                    chores = self.chore().unwrap_or(false);
                    last_chore = Instant::now();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            chores = true;
            if matches!(next, Some(Command::Append { .. })) {
                // A lone record is written at once; under load groups are given time to grow, as a commit costs the same
                // for one record as for some dozens.
                let since = self.desk.committed.elapsed();
                if since < interval {
                    std::thread::sleep(interval - since);
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
                self.restart_log();
                self.write(group, count);
                if self.desk.head.seq - self.indexed > INDEX_LAG_MAX {
                    let _ = self.index();
                }
            }
            match next {
                Some(Command::Act { action, reply }) => drop(reply.send(self.act(&action))),
                Some(Command::Erase { customers, reply }) => drop(reply.send(self.erase(&customers))),
                Some(Command::RotateKeys { reply }) => drop(reply.send(self.rotate_keys())),
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
    fn write(&mut self, group: Vec<(Vec<Draft>, Option<Reply>)>, count: usize) {
        let (drafts, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let drafts: Vec<Draft> = drafts.into_iter().flatten().collect();
        let mut outcome = self.commit(&drafts);
        // Nobody waits for a buffered record, so nobody could be told: it is tried until it is there. What comes meanwhile
        // finds the queue full.
        while outcome.is_err()
            && self.desk.options.promise == Promise::Buffered
            && !self.desk.state.closing.load(Ordering::Relaxed)
        {
            std::thread::sleep(RETRY);
            outcome = self.commit(&drafts);
        }
        self.desk.state.waiting.fetch_sub(count, Ordering::Relaxed);
        for reply in replies.into_iter().flatten() {
            // Who asked may have given up meanwhile.
            let _ = reply.send(outcome.as_ref().copied().map_err(cause));
        }
    }

    fn commit(&mut self, drafts: &[Draft]) -> Result<(), Error> {
        let result = self.transact(|desk, transaction| {
            let mut head = desk.head;
            let mut fresh = Vec::new();
            for draft in drafts {
                desk.append(transaction, draft, &mut head, &mut fresh)?;
            }
            Ok((head, fresh))
        });
        self.desk.committed = Instant::now();
        match result {
            Ok(fresh) => {
                self.recovered();
                fresh.into_iter().for_each(|(customer, key)| self.desk.cache.insert(customer, key));
                Ok(())
            }
            Err(error) => {
                if !self.desk.state.failing.swap(true, Ordering::Relaxed) {
                    tracing::error!(cause = cause(&error), "the ledger cannot write: nothing is answered until it can");
                }
                // A commit can fail and yet be there (a sync that failed after the write): the database knows where it ends.
                if let Ok(Some(head)) = store::read_mark(&self.database, &self.desk.keys.load(), "head") {
                    self.desk.head = head;
                }
                // What the rolled-back group made is not there.
                self.desk.versions.clear();
                self.desk.state.failed_commits.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    fn recovered(&self) {
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

    fn act(&mut self, action: &Action) -> Result<(), Error> {
        let draft = self.desk.action_draft(action);
        self.commit(&[draft])
    }

    fn erase(&mut self, customers: &[Pseudonym]) -> Result<bool, Error> {
        let now_ms = self.desk.now_ms();
        let draft = self
            .desk
            .action_draft(&Action::Erase { customers: customers.iter().map(|customer| hex(customer)).collect() });
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

    fn rotate_keys(&mut self) -> Result<u32, Error> {
        let path = self.desk.options.dir.join(super::KEYS);
        let mut keys = Keys::open(&path, false)?;
        let version = keys.rotate()?;
        self.desk.keys.store(Arc::new(keys));
        self.act(&Action::RotateKeys { version })?;
        Ok(version)
    }
}

impl Desk {
    /// Adds one entry behind `head`, which moves on.
    pub(super) fn append(
        &mut self,
        transaction: &Transaction,
        draft: &Draft,
        head: &mut Head,
        fresh: &mut Vec<(Pseudonym, CustomerKey)>,
    ) -> Result<(), Error> {
        let keys = self.keys.load_full();
        let (entry, row) = match draft {
            Draft::Decision { decision, pseudonym, inputs } => {
                let (row, version) = self.version(transaction, decision)?;
                let key = self.customer_key(transaction, &keys, pseudonym, fresh)?;
                let id = decision.id.bytes();
                let sealed = keys::seal_inputs(&key, self.nonces.next(), &id, inputs, self.options.inputs)?;
                let tier = decision.tier();
                let answer = Answer {
                    score: decision.score.value(),
                    tier: tier.name.as_str().into(),
                    action: tier.intervention.action.as_str().into(),
                    arm: decision.arm.name().into(),
                };
                let entry = Entry {
                    seq: head.seq + 1,
                    kind: Kind::Decision.name().into(),
                    at_ms: decision.decided_at_ms as i64,
                    id: id.to_vec().into(),
                    customer: Some(pseudonym.as_slice().into()),
                    version: Some(version.to_vec().into()),
                    answer: Some(answer),
                    body: "{}".into(),
                    digest: Some(sealed.digest.to_vec().into()),
                    sealed: sealed.ciphertext.map(Cow::Owned),
                    key_version: keys.version(),
                };
                (entry, Some(row))
            }
            Draft::Action { id, at_ms, body } => {
                let entry = Entry {
                    seq: head.seq + 1,
                    kind: Kind::Action.name().into(),
                    at_ms: *at_ms as i64,
                    id: id.bytes().to_vec().into(),
                    customer: None,
                    version: None,
                    answer: None,
                    body: body.as_str().into(),
                    digest: None,
                    sealed: None,
                    key_version: keys.version(),
                };
                (entry, None)
            }
        };
        let link = entry.link(&keys, &head.link).ok_or(Error::Sealed)?;
        store::insert(transaction, &entry, row, &link)?;
        *head = Head { seq: entry.seq, link };
        Ok(())
    }

    /// The row of `version` that a decision refers to, with its digest: made with the first decision by those versions.
    fn version(&mut self, transaction: &Transaction, decision: &Decision) -> Result<(i64, [u8; 32]), Error> {
        let same =
            |known: &&Known| Arc::ptr_eq(&known.model, &decision.model) && Arc::ptr_eq(&known.policy, &decision.policy);
        if let Some(known) = self.versions.iter().find(same) {
            return Ok((known.row, known.digest));
        }
        let version = Version::new(&decision.model, &decision.policy, &self.config_digest);
        let (row, digest) = (store::version_row(transaction, &version)?, version.digest());
        if self.versions.len() == VERSIONS_MAX {
            self.versions.clear();
        }
        self.versions.push(Known { model: decision.model.clone(), policy: decision.policy.clone(), row, digest });
        Ok((row, digest))
    }

    /// The key of a customer: known, stored, or made with its first record, or its first after it was erased.
    fn customer_key(
        &mut self,
        transaction: &Transaction,
        keys: &Keys,
        customer: &Pseudonym,
        fresh: &mut Vec<(Pseudonym, CustomerKey)>,
    ) -> Result<CustomerKey, Error> {
        if let Some(key) = self.cache.get(customer) {
            return Ok(key);
        }
        let mut statement =
            transaction.prepare_cached("SELECT key_version, wrapped FROM customer WHERE customer = ?1")?;
        let found: Option<(u32, Option<Vec<u8>>)> =
            statement.query_row([customer.as_slice()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let key = match found {
            Some((version, Some(wrapped))) => keys.unwrap(version, customer, &wrapped)?,
            Some((_, None)) | None => {
                let (key, wrapped) = keys.new_customer_key(customer)?;
                let mut statement = transaction.prepare_cached(
                    "INSERT INTO customer (customer, key_version, wrapped) VALUES (?1, ?2, ?3)
                     ON CONFLICT (customer) DO UPDATE SET key_version = excluded.key_version, wrapped = excluded.wrapped",
                )?;
                statement.execute(params![customer.as_slice(), keys.version(), wrapped])?;
                key
            }
        };
        fresh.push((*customer, key));
        Ok(key)
    }

    pub(super) fn action_draft(&self, action: &Action) -> Draft {
        let at_ms = self.now_ms();
        let mut random = [0; 10];
        fastrand::fill(&mut random);
        let body = serde_json::to_string(action).unwrap_or_default();
        Draft::Action { id: DecisionId::new(at_ms, random), at_ms, body }
    }

    pub(super) fn now_ms(&self) -> u64 {
        (self.clock)().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }
}

fn cause(error: &Error) -> String {
    match error {
        Error::Database(cause) => cause.to_string(),
        other => other.to_string(),
    }
}
