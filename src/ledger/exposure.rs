//! Who was part of an experiment, counted by the database: customers by group, each once. What that says is known above.

use rusqlite::{Connection, params};

use super::Error;
use super::spending::{DISORDER_MS, first_since};

/// Entries that are looked at, the newest ones: more would take longer than somebody waits.
const ENTRIES_MAX: i64 = 2_000_000;

/// The customers of an experiment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exposed {
    /// Customers by the name of their group. One that was in two, such as after a change by force, counts in both; one whose
    /// pseudonym has changed with the keys, twice.
    pub groups: Vec<(String, u64)>,
    /// Whether all decisions since then were looked at.
    pub is_whole: bool,
}

fn exposed(database: &Connection, model: &str, experiment: &str, from_ms: i64) -> Result<Exposed, Error> {
    let snapshot = database.unchecked_transaction()?;
    let ends: (Option<i64>, Option<i64>) =
        snapshot.query_row("SELECT min(seq), max(seq) FROM entry", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (Some(first), Some(last)) = ends else { return Ok(Exposed { is_whole: true, ..Exposed::default() }) };
    let since = first_since(&snapshot, first, from_ms.saturating_sub(DISORDER_MS))?;
    let from = since.max(last - ENTRIES_MAX);
    let groups = snapshot
        .prepare_cached(
            "SELECT json_extract(e.body, '$.experiments[0].arm'), count(DISTINCT e.customer)
             FROM entry e JOIN version v USING (version)
             WHERE e.seq >= ?1 AND e.kind = 'decision' AND e.at_ms >= ?2 AND v.model = ?3
             AND json_extract(e.body, '$.experiments[0].name') = ?4 GROUP BY 1",
        )?
        .query_map(params![from, from_ms, model, experiment], |row| {
            Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs()))
        })?
        .collect::<Result<_, _>>()?;
    // Where it was not removed, what came before the first one of interest is there too.
    Ok(Exposed { groups, is_whole: from == since && (first <= 1 || since > first) })
}

impl super::Ledger {
    /// The customers who were part of `experiment` of `model` at or after `from_ms`, as far as they are recorded.
    pub fn exposed(&self, model: &str, experiment: &str, from_ms: i64) -> Result<Exposed, Error> {
        self.readers.with(|database| exposed(database, model, experiment, from_ms))
    }
}
