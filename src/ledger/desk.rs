//! The desk of the writer: makes an entry of a draft, with its versions, its customer's key, its seal and its link. When a group is
//! committed, and what then, is decided in `writer`.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use rusqlite::{OptionalExtension, Transaction, params};

use super::keys::{self, Cache, CustomerKey, Keys, Nonces, Pseudonym};
use super::record::{Answer, Draft, Entry, Extra, Kind, Version};
use super::store::{self, Head};
use super::{Action, Error, Options, State};
use crate::domain::decision::{Decision, ModelId};
use crate::domain::id::DecisionId;
use crate::domain::policy::Policy;

/// Rows of `version` that are kept in mind: as many as there are models in service, and some that just left.
const VERSIONS_MAX: usize = 64;

/// A row of `version` that is there, with its digest.
pub(super) struct Known {
    model: Arc<ModelId>,
    policy: Arc<Policy>,
    row: i64,
    digest: [u8; 32],
}

/// All that the writer has besides the database, so that a transaction can borrow that and work with this.
pub(super) struct Desk {
    pub(super) keys: Arc<ArcSwap<Keys>>,
    pub(super) head: Head,
    pub(super) state: Arc<State>,
    pub(super) options: Options,
    pub(super) config_digest: String,
    pub(super) clock: fn() -> SystemTime,
    pub(super) cache: Cache,
    nonces: Nonces,
    /// Rows of `version` that are known to be there.
    pub(super) versions: Vec<Known>,
    pub(super) committed: Instant,
    /// How long the last commit took.
    pub(super) took: Duration,
    /// Held for as long as the writer lives.
    _lock: std::fs::File,
}

impl Desk {
    /// A desk whose next entry goes behind `head`; `lock` is held for as long as it lives.
    pub(super) fn new(
        keys: Arc<ArcSwap<Keys>>,
        head: Head,
        state: Arc<State>,
        options: Options,
        config_digest: &str,
        clock: fn() -> SystemTime,
        lock: std::fs::File,
    ) -> Self {
        Self {
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
            took: Duration::ZERO,
            _lock: lock,
        }
    }

    /// Adds one entry behind `head`, which moves on.
    pub(super) fn append(
        &mut self,
        transaction: &Transaction,
        draft: &Draft,
        head: &mut Head,
        fresh: &mut Vec<(Pseudonym, CustomerKey)>,
    ) -> Result<(), Error> {
        let keys = self.keys.load_full();
        // What an entry borrows.
        let (id, version, digest, extra);
        let (entry, row) = match draft {
            Draft::Decision { decision, pseudonym, inputs } => {
                let row;
                (row, version) = self.version(transaction, decision)?;
                let key = self.customer_key(transaction, &keys, pseudonym, fresh)?;
                id = decision.id.bytes();
                let sealed = keys::seal_inputs(&key, self.nonces.next(), &id, inputs, self.options.inputs)?;
                digest = sealed.digest;
                extra = Extra::text(decision)?;
                let tier = decision.tier();
                let answer = Answer {
                    score: decision.score.value(),
                    tier: tier.name.as_str().into(),
                    action: decision.intervention().action.as_str().into(),
                    arm: decision.arm.name().into(),
                };
                let entry = Entry {
                    seq: head.seq + 1,
                    kind: Kind::Decision.name().into(),
                    at_ms: decision.decided_at_ms as i64,
                    id: id.as_slice().into(),
                    customer: Some(pseudonym.as_slice().into()),
                    version: Some(version.as_slice().into()),
                    answer: Some(answer),
                    body: extra.as_ref().into(),
                    digest: Some(digest.as_slice().into()),
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
            Draft::Outcome(outcome) => match outcome.entry(transaction, head, &keys)? {
                Some(entry) => (entry, None),
                None => return Ok(()),
            },
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
