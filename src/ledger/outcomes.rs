//! Outcomes on record: each an entry of the chain that names its decision, written once however often it is sent. What finds them
//! is an index on the entries themselves, so there is no second table that could say something else than the chain.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::keys::{Keys, Pseudonym};
use super::record::{Draft, Entry, Kind};
use super::store::Head;
use super::{Error, Ledger, Reading, Recorded, export};
use crate::domain::id::DecisionId;
use crate::domain::money::Money;
use crate::domain::outcome::{Facts, Outcome};

/// Outcomes of one decision, so that a decision with its outcomes can always be shown whole.
pub const OF_DECISION_MAX: usize = 256;

/// What became of an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is on record under this id.
    Recorded(DecisionId),
    /// It was on record already, under this id.
    Duplicate(DecisionId),
    /// The caller's id of it stands on record with other facts.
    Conflict,
    /// Its decision is not on record.
    UnknownDecision,
    /// It occurred too long before its decision, which was made then, milliseconds since 1970.
    TooEarly(i64),
    /// Its decision has [`OF_DECISION_MAX`] outcomes.
    TooMany,
}

/// An outcome as it was recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedOutcome {
    /// The number of its entry.
    pub seq: i64,
    /// Its id.
    pub id: DecisionId,
    /// When it was recorded, milliseconds since 1970.
    pub recorded_at_ms: i64,
    /// When it occurred, milliseconds since 1970.
    pub occurred_at_ms: i64,
    /// What it states.
    pub facts: Facts,
}

/// An outcome on its way to the writer.
#[derive(Debug)]
pub(super) struct OutcomeDraft {
    id: DecisionId,
    at_ms: i64,
    /// Of the decision.
    decision_id: String,
    /// Of the decision, so that both stand under one pseudonym, whatever key writes by now.
    customer: Pseudonym,
    body: String,
    /// What makes it the same as another of its decision: the first one is written, each is looked for.
    same: Vec<[u8; 16]>,
    /// Its place in `fates`, where the writer says what became of it. That holds once the group is committed.
    place: usize,
    fates: Arc<Mutex<Vec<Fate>>>,
}

/// The body of an entry: canonical JSON, as the order of the fields and the writing of each value are fixed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    decision_id: String,
    occurred_at_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    churned: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    converted: Option<bool>,
    /// Exact, as decimal text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revenue: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    contact_cost: Option<String>,
}

impl Body {
    fn new(outcome: &Outcome) -> Self {
        let Facts { churned, converted, revenue, contact_cost } = outcome.facts;
        Self {
            decision_id: outcome.decision_id.to_string(),
            occurred_at_ms: outcome.occurred_at_ms,
            churned,
            converted,
            revenue: revenue.map(|amount| amount.to_string()),
            contact_cost: contact_cost.map(|amount| amount.to_string()),
        }
    }

    fn facts(&self) -> Option<Facts> {
        let amount = |text: &Option<String>| text.as_deref().map(|text| Money::parse(text).ok_or(())).transpose().ok();
        Some(Facts {
            churned: self.churned,
            converted: self.converted,
            revenue: amount(&self.revenue)?,
            contact_cost: amount(&self.contact_cost)?,
        })
    }
}

impl Ledger {
    /// Records what customers did after decisions, as one group: what became of each outcome, in its place. `now_ms` is the time,
    /// milliseconds since 1970. Reads and waits for a disk, on the calling thread, which may block.
    ///
    /// Errors: [`Error::Busy`], [`Error::Late`], [`Error::Refused`], or the database. They may be on record all the same: sent
    /// again, they are duplicates then.
    pub fn record_outcomes(&self, outcomes: &[Outcome], now_ms: u64) -> Result<Vec<Fate>, Error> {
        let found = self.readers.with(|database| {
            let decisions = outcomes.iter().map(|outcome| decision(database, outcome.decision_id));
            decisions.collect::<Result<Vec<_>, Error>>()
        })?;
        let keys = self.keys.load();
        let fates = found.iter().zip(outcomes).map(|(found, outcome)| match found {
            Some((_, decided_at_ms)) if outcome.too_early(*decided_at_ms).is_some() => Fate::TooEarly(*decided_at_ms),
            _ => Fate::UnknownDecision,
        });
        // What is not handed to the writer keeps its own.
        let fates = Arc::new(Mutex::new(fates.collect::<Vec<_>>()));
        let mut drafts = Vec::with_capacity(outcomes.len());
        for (place, (outcome, found)) in outcomes.iter().zip(found).enumerate() {
            if let Some((customer, decided_at_ms)) = found
                && outcome.too_early(decided_at_ms).is_none()
            {
                drafts.push(Draft::Outcome(OutcomeDraft::new(outcome, customer, now_ms, &keys, place, fates.clone())));
            }
        }
        self.append(drafts, true)?.kept_blocking()?;
        Ok(std::mem::take(&mut *fates.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Reading {
    /// Writes the outcomes recorded from `from_ms` until before `to_ms` into a Parquet file: how many.
    pub fn export_outcomes(&self, path: &Path, from_ms: i64, to_ms: i64) -> Result<usize, Error> {
        export::outcomes(&self.database, path, from_ms, to_ms)
    }
}

impl OutcomeDraft {
    fn new(
        outcome: &Outcome,
        customer: Pseudonym,
        at_ms: u64,
        keys: &Keys,
        place: usize,
        fates: Arc<Mutex<Vec<Fate>>>,
    ) -> Self {
        let mut random = [0; 10];
        fastrand::fill(&mut random);
        let decision_id = outcome.decision_id.to_string();
        // Plain data: writing it cannot fail.
        let body = serde_json::to_string(&Body::new(outcome)).unwrap_or_default();
        let same = match &outcome.source_id {
            // Keyed, since it may say something of a customer; under every key that may have written it.
            Some(source_id) => keys.tokens(&decision_id, source_id),
            None => {
                let mut digest = [0; 16];
                digest.copy_from_slice(&Sha256::digest(&body)[..16]);
                vec![digest]
            }
        };
        let at = at_ms as i64;
        Self { id: DecisionId::new(at_ms, random), at_ms: at, decision_id, customer, body, same, place, fates }
    }

    /// Its entry behind `head`, unless it is not to be written; what becomes of it is said either way.
    pub(super) fn entry(
        &self,
        transaction: &Transaction,
        head: &Head,
        keys: &Keys,
    ) -> Result<Option<Entry<'_>>, Error> {
        let fate = self.judge(transaction)?;
        if let Some(place) = self.fates.lock().unwrap_or_else(PoisonError::into_inner).get_mut(self.place) {
            *place = fate;
        }
        let Fate::Recorded(id) = fate else { return Ok(None) };
        Ok(Some(Entry {
            seq: head.seq + 1,
            kind: Kind::Outcome.name().into(),
            at_ms: self.at_ms,
            id: id.bytes().to_vec().into(),
            customer: Some(self.customer.as_slice().into()),
            version: None,
            answer: None,
            body: self.body.as_str().into(),
            digest: self.same.first().map(|same| same.as_slice().into()),
            sealed: None,
            key_version: keys.version(),
        }))
    }

    /// In the transaction that writes it, so that of two at a time one is the duplicate.
    fn judge(&self, transaction: &Transaction) -> Result<Fate, Error> {
        let mut statement = transaction.prepare_cached(
            "SELECT id, body FROM entry WHERE kind = 'outcome' AND json_extract(body, '$.decision_id') = ?1 AND digest = ?2",
        )?;
        for same in &self.same {
            let found: Option<(Vec<u8>, String)> = statement
                .query_row(params![self.decision_id, same.as_slice()], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            if let Some((id, body)) = found {
                // A broken one is for `verify` to tell of: an error here would refuse the others of the group.
                return Ok(match id.as_slice().try_into() {
                    Ok(id) if body == self.body => Fate::Duplicate(DecisionId::from_bytes(id)),
                    _ => Fate::Conflict,
                });
            }
        }
        let mut statement = transaction.prepare_cached(
            "SELECT count(*) FROM entry WHERE kind = 'outcome' AND json_extract(body, '$.decision_id') = ?1",
        )?;
        let count: i64 = statement.query_row([&self.decision_id], |row| row.get(0))?;
        Ok(if count < OF_DECISION_MAX as i64 { Fate::Recorded(self.id) } else { Fate::TooMany })
    }
}

/// The pseudonym of the customer of a decision, and when it was made.
fn decision(database: &Connection, id: DecisionId) -> Result<Option<(Pseudonym, i64)>, Error> {
    let mut statement =
        database.prepare_cached("SELECT customer, at_ms FROM entry WHERE id = ?1 AND kind = 'decision'")?;
    Ok(statement.query_row([id.bytes().as_slice()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
}

/// The decision that the body of an outcome names, when it occurred, and what it states; `None` of what is no outcome.
pub(super) fn told(body: &str) -> Option<([u8; 16], i64, Facts)> {
    let body: Body = serde_json::from_str(body).ok()?;
    Some((DecisionId::parse(&body.decision_id)?.bytes(), body.occurred_at_ms, body.facts()?))
}

/// The columns of [`read`].
const COLUMNS: &str = "seq, id, at_ms, body, lower(hex(customer))";

/// An outcome as it was recorded, with the ids of its decision and, as a pseudonym, its customer.
type Of = (String, String, RecordedOutcome);

fn read(row: &rusqlite::Row) -> Result<Of, Error> {
    let seq = row.get(0)?;
    let broken = || Error::Broken(format!("entry {seq} is no {}", Kind::Outcome.name()));
    let body: Body = serde_json::from_str(&row.get::<_, String>(3)?).map_err(|_| broken())?;
    let outcome = RecordedOutcome {
        seq,
        id: DecisionId::from_bytes(row.get(1)?),
        recorded_at_ms: row.get(2)?,
        occurred_at_ms: body.occurred_at_ms,
        facts: body.facts().ok_or_else(broken)?,
    };
    Ok((body.decision_id, row.get(4)?, outcome))
}

/// Puts to each of `decisions` what followed it, in the order of the record.
pub(super) fn attach(database: &Connection, decisions: &mut [Recorded]) -> Result<(), Error> {
    let mut statement = database.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM entry WHERE kind = 'outcome' AND json_extract(body, '$.decision_id') = ?1 ORDER BY seq"
    ))?;
    for decision in decisions {
        let mut rows = statement.query([decision.id.to_string()])?;
        while let Some(row) = rows.next()? {
            let (_, _, outcome) = read(row)?;
            decision.outcomes.push(outcome);
        }
    }
    Ok(())
}

/// Outcomes that were recorded from `from_ms` until before `to_ms`, at most `limit` behind the entry `after`, in the order of the
/// record.
pub(super) fn page(
    database: &Connection,
    from_ms: i64,
    to_ms: i64,
    after: i64,
    limit: usize,
) -> Result<Vec<Of>, Error> {
    let mut statement = database.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM entry WHERE kind = 'outcome' AND at_ms >= ?1 AND at_ms < ?2 AND seq > ?3 ORDER BY seq LIMIT ?4"
    ))?;
    let mut rows = statement.query(params![from_ms, to_ms, after, limit as i64])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

/// Whether the index finds an entry of an outcome where it is.
pub(super) fn is_indexed(database: &Connection, entry: &Entry) -> bool {
    let find = || {
        let body: Body = serde_json::from_str(&entry.body).ok()?;
        let mut statement = database
            .prepare_cached(
                "SELECT rowid FROM entry INDEXED BY outcome_once
                 WHERE kind = 'outcome' AND json_extract(body, '$.decision_id') = ?1 AND digest = ?2",
            )
            .ok()?;
        statement.query_row(params![body.decision_id, entry.digest], |row| row.get::<_, i64>(0)).ok()
    };
    find() == Some(entry.seq)
}

/// How many outcomes the index has.
pub(super) fn indexed(database: &Connection) -> Result<usize, Error> {
    let sql =
        "SELECT count(json_extract(body, '$.decision_id')) FROM entry INDEXED BY outcome_once WHERE kind = 'outcome'";
    let count: i64 = database.query_row(sql, [], |row| row.get(0))?;
    Ok(count as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_body_says_what_the_outcome_did(
            occurred_at_ms in any::<i64>(),
            flags in any::<[Option<bool>; 2]>(),
            cents in prop::array::uniform2(prop::option::of(-100_000_000_000..=100_000_000_000_i64)),
        ) {
            let amount = |cents: Option<i64>| cents.and_then(|cents| Money::from_units(cents as f64 / 100.0));
            let facts = Facts {
                churned: flags[0],
                converted: flags[1],
                revenue: amount(cents[0]),
                contact_cost: amount(cents[1]),
            };
            let decision_id = DecisionId::new(1, [7; 10]);
            let outcome = Outcome { decision_id, occurred_at_ms, facts, source_id: Some("never written".to_owned()) };
            let text = serde_json::to_string(&Body::new(&outcome)).expect("JSON");
            prop_assert!(!text.contains("never"));
            let body: Body = serde_json::from_str(&text).expect("a body");
            prop_assert_eq!((body.facts(), body.occurred_at_ms), (Some(facts), occurred_at_ms));
            prop_assert_eq!(body.decision_id, decision_id.to_string());
        }
    }
}
