//! What the decisions of a model led to since a moment, counted by the database: how often which action was offered by which policy. What
//! that cost is known above.

use std::ops::Range;

use rusqlite::{Connection, OptionalExtension, params};

use super::Error;

/// How far behind the entries before it a time may be: groups wait for the disk, and clocks are set back.
pub(super) const DISORDER_MS: i64 = 3_600_000;

/// What decisions led to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Spending {
    /// By policy and action.
    pub groups: Vec<Offered>,
    /// The shadow price of the last one, if it has any.
    pub shadow_price: Option<f64>,
    /// Whether the ledger still has all of them.
    pub is_whole: bool,
}

/// How often an action was offered.
#[derive(Debug, Clone, PartialEq)]
pub struct Offered {
    /// The document of the policy that offered it.
    pub policy_document: String,
    /// The action.
    pub action: String,
    /// How often.
    pub count: i64,
}

/// What the decisions by `model` made in `span` led to.
fn spending(
    database: &Connection,
    model: &str,
    Range { start: from_ms, end: to_ms }: Range<i64>,
) -> Result<Spending, Error> {
    let snapshot = database.unchecked_transaction()?;
    let first: Option<(i64, i64)> = snapshot
        .prepare_cached("SELECT seq, at_ms FROM entry ORDER BY seq LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((first, first_ms)) = first else { return Ok(Spending { is_whole: true, ..Spending::default() }) };
    let from = first_since(&snapshot, first, from_ms.saturating_sub(DISORDER_MS))?;
    let groups = snapshot
        .prepare_cached(
            "SELECT v.policy_document, e.action, count(*) FROM entry e JOIN version v USING (version)
             WHERE e.seq >= ?1 AND e.kind = 'decision' AND e.at_ms >= ?2 AND v.model = ?3 AND e.at_ms < ?4 GROUP BY e.version, e.action",
        )?
        .query_map(params![from, from_ms, model, to_ms], |row| {
            Ok(Offered { policy_document: row.get(0)?, action: row.get(1)?, count: row.get(2)? })
        })?
        .collect::<Result<_, _>>()?;
    let shadow_price: Option<Option<f64>> = snapshot
        .prepare_cached(
            "SELECT json_extract(e.body, '$.shadow_price') FROM entry e JOIN version v USING (version)
             WHERE e.seq >= ?1 AND e.kind = 'decision' AND v.model = ?2 AND e.at_ms < ?3 ORDER BY e.seq DESC LIMIT 1",
        )?
        .query_row(params![from, model, to_ms], |row| row.get(0))
        .optional()?;
    Ok(Spending { groups, shadow_price: shadow_price.flatten(), is_whole: first <= 1 || first_ms < from_ms })
}

/// The first entry that can be of `from_ms` or later, as far as times rise with numbers; the one behind the last where there is none.
pub(super) fn first_of(database: &Connection, from_ms: i64) -> Result<i64, Error> {
    let snapshot = database.unchecked_transaction()?;
    let first: i64 = snapshot.query_row("SELECT coalesce(min(seq), 1) FROM entry", [], |row| row.get(0))?;
    first_since(&snapshot, first, from_ms.saturating_sub(DISORDER_MS))
}

/// A number before which, from `first` on, no entry is as late as `from_ms`, as far as times rise with numbers.
pub(super) fn first_since(database: &Connection, first: i64, from_ms: i64) -> Result<i64, Error> {
    let last: i64 = database.query_row("SELECT coalesce(max(seq), 0) FROM entry", [], |row| row.get(0))?;
    let mut statement = database.prepare_cached("SELECT at_ms FROM entry WHERE seq >= ?1 ORDER BY seq LIMIT 1")?;
    let (mut low, mut high) = (first, last + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        let at_ms: i64 = statement.query_row([middle], |row| row.get(0))?;
        if at_ms < from_ms {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

impl super::Ledger {
    /// What the decisions by `model` made in `span_ms` (its end excluded; milliseconds since 1970) led to, as far as they are recorded.
    pub fn spending(&self, model: &str, span_ms: Range<i64>) -> Result<Spending, Error> {
        self.readers.with(|database| spending(database, model, span_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Promise, store};
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn add(database: &Connection, seq: i64, at_ms: i64, kind: &str, version: Option<i64>, action: Option<&str>) {
        let body = format!("{{\"shadow_price\":{seq}.5}}");
        let sql = "INSERT INTO entry (seq, kind, at_ms, id, version, action, body, key_version, link)
                   VALUES (?1, ?2, ?3, x'00', ?4, ?5, ?6, 1, x'00')";
        database.execute(sql, params![seq, kind, at_ms, version, action, body]).expect("an entry");
    }

    #[test]
    fn every_decision_since_then_counts_once_though_times_are_not_quite_in_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let database = store::open(&directory.path().join("ledger.db"), Promise::Committed).expect("a database");
        assert_eq!(
            spending(&database, "m", 0..i64::MAX).expect("nothing"),
            Spending { is_whole: true, ..Spending::default() }
        );
        for (version, model, policy) in [(1, "m", "one"), (2, "m", "two"), (3, "other", "one")] {
            let sql = "INSERT INTO version (version, digest, model, model_version, model_digest, policy, policy_version, policy_document, config_digest)
                       VALUES (?1, ?1 || '', ?2, '', '', '', '', ?3, '')";
            let sql = sql.replace("?1 || ''", "CAST(?1 AS BLOB)");
            database.execute(&sql, params![version, model, policy]).expect("a version");
        }
        // An entry every five minutes, each up to half an hour early or late; the first ten are gone.
        let mut seed = 7_u64;
        let mut expected = std::collections::BTreeMap::new();
        let from_ms = 500 * HOUR / 12;
        for seq in 11..=900_i64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at_ms = seq * HOUR / 12 + (seed >> 33) as i64 % HOUR - HOUR / 2;
            let (kind, version, action) = match seq % 5 {
                0 => ("action", None, None),
                1 => ("decision", Some(1), Some("call")),
                2 => ("decision", Some(1), Some("none")),
                3 => ("decision", Some(2), Some("call")),
                _ => ("decision", Some(3), Some("call")),
            };
            add(&database, seq, at_ms, kind, version, action);
            if let (Some(version @ 1..=2), Some(action)) = (version, action)
                && at_ms >= from_ms
            {
                *expected.entry((if version == 1 { "one" } else { "two" }, action)).or_insert(0) += 1;
            }
        }
        let found = spending(&database, "m", from_ms..i64::MAX).expect("spending");
        let groups: std::collections::BTreeMap<(&str, &str), i64> = found
            .groups
            .iter()
            .map(|group| ((group.policy_document.as_str(), group.action.as_str()), group.count))
            .collect();
        assert_eq!(groups, expected);
        assert_eq!((found.is_whole, found.shadow_price), (true, Some(898.5)));
        assert!(
            !spending(&database, "m", HOUR / 12..i64::MAX).expect("spending").is_whole,
            "what is gone is not counted"
        );
        let after = spending(&database, "m", 2_000 * HOUR..i64::MAX).expect("spending");
        assert_eq!((after.groups.len(), after.shadow_price), (0, None));
    }
}
