//! What customers did and what was decided about them, in the order of the record, a page at a time: what measures are made of. Only of
//! a share of the customers where that is asked for, so that it stays bounded. What is made of it is known above.

use rusqlite::{Connection, OptionalExtension, params};
use serde::Deserialize;

use super::keys::{self, Keys, Pseudonym};
use super::record::Part;
use super::{Error, Inputs, Kind, outcomes, spending};
use crate::domain::outcome::Facts;

/// Entries of one page: a reader that takes long keeps the write-ahead log from starting anew.
const PAGE: i64 = 1_024;

/// A number that stands for a customer while the key that writes is the same: the first 64 bits of the pseudonym, which is as good as
/// random, so that all numbers up to some limit are a fair share of the customers.
pub type Ticket = u64;

/// Something on record.
#[derive(Debug)]
pub enum Event {
    /// A customer was decided on.
    Decided(Box<Decided>),
    /// A customer did something.
    Followed(Followed),
    /// Customers were erased.
    Erased(Vec<Ticket>),
}

/// A decision, as far as measures are concerned.
#[derive(Debug)]
pub struct Decided {
    /// Its id.
    pub id: [u8; 16],
    /// When it was made, milliseconds since 1970.
    pub at_ms: i64,
    /// On whom.
    pub customer: Ticket,
    /// By what: see [`Ledger::maker`](super::Ledger::maker).
    pub maker: i64,
    /// The score.
    pub score: f64,
    /// The tier.
    pub tier: String,
    /// The action.
    pub action: String,
    /// The arm.
    pub arm: String,
    /// What it says beyond these.
    pub said: Said,
    /// The inputs, where they were wanted.
    pub inputs: Inputs,
}

/// What a decision says beyond its columns, as far as measures are concerned. What else it says is left out: older and newer records
/// say other things.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Said {
    /// Whether the customer was kept from intervention; `None` where nobody is.
    #[serde(default)]
    pub holdout: Option<bool>,
    /// What the action cost; `None` where only the policy says it.
    #[serde(default)]
    pub cost: Option<f64>,
    /// What is lost with the customer.
    #[serde(default)]
    pub value_at_stake: Option<f64>,
    /// The rules that fired.
    #[serde(default)]
    pub rules: Vec<String>,
    /// The experiments that the customer was part of, each with the arm.
    #[serde(default)]
    pub experiments: Vec<Part>,
}

/// An outcome.
#[derive(Debug)]
pub struct Followed {
    /// The id of its decision.
    pub decision: [u8; 16],
    /// Of whom.
    pub customer: Ticket,
    /// When it was recorded, milliseconds since 1970.
    pub recorded_at_ms: i64,
    /// When it occurred, milliseconds since 1970.
    pub occurred_at_ms: i64,
    /// What it states.
    pub facts: Facts,
}

/// A page of events.
#[derive(Debug)]
pub struct Events {
    /// In the order of the record, each with the number of its entry.
    pub events: Vec<(i64, Event)>,
    /// The number of the last entry that was looked at.
    pub through: i64,
    /// Whether there was none behind it.
    pub is_end: bool,
}

/// What decisions are made by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maker {
    /// Name of the model.
    pub model: String,
    /// Its version.
    pub model_version: String,
    /// Name of the policy.
    pub policy: String,
    /// Its version.
    pub policy_version: String,
    /// The policy itself.
    pub policy_document: String,
}

fn ticket(pseudonym: &[u8]) -> Option<Ticket> {
    pseudonym.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes))
}

fn page(database: &Connection, keys: &Keys, after: i64, customers: Ticket, inputs: bool) -> Result<Events, Error> {
    let snapshot = database.unchecked_transaction()?;
    let last: i64 = snapshot.query_row("SELECT coalesce(max(seq), 0) FROM entry", [], |row| row.get(0))?;
    let through = last.min(after.saturating_add(PAGE));
    let mut statement = snapshot.prepare_cached(
        "SELECT kind, at_ms, id, customer, version, score, tier, action, arm, body, CASE WHEN ?4 THEN sealed END, sealed IS NOT NULL, seq
         FROM entry WHERE seq > ?1 AND seq <= ?2 AND (customer IS NULL OR substr(customer, 1, 8) <= ?3) ORDER BY seq",
    )?;
    let mut rows = statement.query(params![after, through, customers.to_be_bytes().as_slice(), inputs])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        // What is broken is for `verify` to tell of: it does not keep the rest from being measured.
        let seq: i64 = row.get(12)?;
        events.extend(event(&snapshot, keys, row)?.map(|event| (seq, event)));
    }
    Ok(Events { events, through, is_end: through == last })
}

fn event(database: &Connection, keys: &Keys, row: &rusqlite::Row) -> Result<Option<Event>, Error> {
    let kind: String = row.get(0)?;
    let body: String = row.get(9)?;
    let customer: Option<Vec<u8>> = row.get(3)?;
    let pseudonym: Option<Pseudonym> = customer.and_then(|customer| customer.try_into().ok());
    let of = pseudonym.as_ref().and_then(|pseudonym| ticket(pseudonym));
    if kind == Kind::Action.name() {
        return Ok(erased(&body).map(Event::Erased));
    }
    let (Some(customer), Some(pseudonym)) = (of, pseudonym) else { return Ok(None) };
    if kind == Kind::Outcome.name() {
        let Some((decision, occurred_at_ms, facts)) = outcomes::told(&body) else { return Ok(None) };
        let recorded_at_ms = row.get(1)?;
        return Ok(Some(Event::Followed(Followed { decision, customer, recorded_at_ms, occurred_at_ms, facts })));
    }
    let (id, maker): (Option<[u8; 16]>, Option<i64>) = (row.get::<_, Vec<u8>>(2)?.try_into().ok(), row.get(4)?);
    let (Some(id), Some(maker), Ok(said)) = (id, maker, serde_json::from_str(&body)) else { return Ok(None) };
    let sealed: Option<Vec<u8>> = row.get(10)?;
    let inputs = match (sealed, row.get::<_, bool>(11)?) {
        (Some(sealed), _) => opened(database, keys, &pseudonym, &id, &sealed)?.map_or(Inputs::Erased, Inputs::Kept),
        (None, _) => Inputs::NotKept,
    };
    Ok(Some(Event::Decided(Box::new(Decided {
        id,
        at_ms: row.get(1)?,
        customer,
        maker,
        score: row.get(5)?,
        tier: row.get(6)?,
        action: row.get(7)?,
        arm: row.get(8)?,
        said,
        inputs,
    }))))
}

fn opened(
    database: &Connection,
    keys: &Keys,
    customer: &Pseudonym,
    id: &[u8; 16],
    sealed: &[u8],
) -> Result<Option<Vec<u8>>, Error> {
    let mut statement = database.prepare_cached("SELECT key_version, wrapped FROM customer WHERE customer = ?1")?;
    let found: Option<(u32, Option<Vec<u8>>)> =
        statement.query_row([customer.as_slice()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    Ok(found.and_then(|(version, wrapped)| {
        let key = keys.unwrap(version, customer, wrapped.as_deref()?).ok()?;
        keys::open_inputs(&key, id, sealed).ok()
    }))
}

/// The customers that an action erased, if it is one that did.
fn erased(body: &str) -> Option<Vec<Ticket>> {
    #[derive(Deserialize)]
    struct Erase {
        what: String,
        #[serde(default)]
        customers: Vec<String>,
    }
    let erase: Erase = serde_json::from_str(body).ok().filter(|erase: &Erase| erase.what == "erase")?;
    Some(erase.customers.iter().filter_map(|hex| u64::from_str_radix(hex.get(..16)?, 16).ok()).collect())
}

impl super::Ledger {
    /// The events behind the entry `after`, of the customers whose tickets are up to `customers`; with their `inputs`, where they are
    /// wanted and still open.
    pub fn events(&self, after: i64, customers: Ticket, inputs: bool) -> Result<Events, Error> {
        self.readers.with(|database| page(database, &self.keys.load(), after, customers, inputs))
    }

    /// The number of an entry before which no entry is of `from_ms` or later.
    pub fn before(&self, from_ms: i64) -> Result<i64, Error> {
        self.readers.with(|database| Ok(spending::first_of(database, from_ms)?.saturating_sub(1)))
    }

    /// What the decisions that name it were made by.
    pub fn maker(&self, maker: i64) -> Result<Option<Maker>, Error> {
        self.readers.with(|database| {
            let sql =
                "SELECT model, model_version, policy, policy_version, policy_document FROM version WHERE version = ?1";
            let found = database.prepare_cached(sql)?.query_row([maker], |row| {
                Ok(Maker {
                    model: row.get(0)?,
                    model_version: row.get(1)?,
                    policy: row.get(2)?,
                    policy_version: row.get(3)?,
                    policy_document: row.get(4)?,
                })
            });
            Ok(found.optional()?)
        })
    }
}
