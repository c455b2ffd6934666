//! Verifying the ledger: the chain from its first kept entry to its head, what each entry refers to, and that what was sealed still
//! opens unless its customer was erased.

use std::collections::{HashMap, HashSet};

use rusqlite::Connection;

use super::keys::{self, Keys, Link, Pseudonym, hex};
use super::record::Kind;
use super::store::{self, Head};
use super::{Error, outcomes, reader};

/// Problems that are told; more are only counted.
const PROBLEMS_MAX: usize = 20;

/// What a verification found.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// Entries that were checked.
    pub entries: usize,
    /// Of those, decisions.
    pub decisions: usize,
    /// Decisions whose inputs are unreadable because their customer was erased.
    pub erased: usize,
    /// Entries that are outcomes.
    pub outcomes: usize,
    /// The end of the chain, as `SEQ:LINK`: noted outside, it shows later that nothing before it was taken back.
    pub head: String,
    /// What is wrong, at most some dozens.
    pub problems: Vec<String>,
}

/// The end of the chain, if the last entry is the one that was written last. Quick: for every start.
pub(super) fn end(database: &Connection, keys: &Keys) -> Result<Head, Error> {
    let head = store::read_mark(database, keys, "head")?;
    let last: Option<i64> = database.query_row("SELECT max(seq) FROM entry", [], |row| row.get(0))?;
    match (head, last) {
        (None, None) => Ok(Head { seq: 0, link: [0; 32] }),
        (Some(head), Some(last)) if head.seq == last => {
            let link: Vec<u8> =
                database.query_row("SELECT link FROM entry WHERE seq = ?1", [last], |row| row.get(0))?;
            if link == head.link { Ok(head) } else { Err(Error::Broken("the last entry was changed".to_owned())) }
        }
        (head, last) => {
            let (head, last) = (head.map_or(0, |head| head.seq), last.unwrap_or(0));
            Err(Error::Broken(format!(
                "it ends at entry {last}, but {head} were written; see `mainstay verify ledger`"
            )))
        }
    }
}

/// Checks everything. `expected` is a head noted outside, `SEQ:LINK` with at least 16 digits of the link.
pub(super) fn whole(database: &Connection, keys: &Keys, expected: Option<&str>) -> Result<Verified, Error> {
    // One moment of the ledger, whatever is written meanwhile.
    let snapshot = database.unchecked_transaction()?;
    let database = &*snapshot;
    let mut found =
        Verified { entries: 0, decisions: 0, erased: 0, outcomes: 0, head: String::new(), problems: Vec::new() };
    let mut told = 0;
    let mut problem = |problems: &mut Vec<String>, text: String| {
        told += 1;
        if told <= PROBLEMS_MAX {
            problems.push(text);
        }
    };
    let mut mark = |name: &str, problems: &mut Vec<String>| match store::read_mark(database, keys, name) {
        Ok(mark) => mark,
        Err(error) => {
            problem(problems, error.to_string());
            None
        }
    };
    let first = mark("first", &mut found.problems);
    let head = mark("head", &mut found.problems);

    let customers = customers(database)?;
    // Of each erased customer the last entry that says so.
    let mut erasures: HashMap<String, i64> = HashMap::new();
    let mut retentions: HashSet<(i64, String)> = HashSet::new();
    let mut unopened: Vec<(i64, String)> = Vec::new();
    let mut expectation_met = expected.is_none();
    let mut previous = first.unwrap_or(Head { seq: 0, link: [0; 32] });

    let mut statement = database.prepare(&format!(
        "SELECT {}, e.version IS NOT NULL AND v.version IS NULL AS is_dangling
         FROM entry e LEFT JOIN version v ON v.version = e.version ORDER BY e.seq",
        store::COLUMNS
    ))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        // A column of a wrong type is tampering too, and must not end the search.
        let (entry, link, version) = match store::read_entry(row) {
            Ok(read) => read,
            Err(error) => {
                problem(&mut found.problems, format!("entry {}: cannot be read: {error}", previous.seq + 1));
                previous.seq += 1;
                continue;
            }
        };
        let seq = entry.seq;
        if seq != previous.seq + 1 {
            problem(&mut found.problems, format!("entries {} to {} are missing", previous.seq + 1, seq - 1));
        }
        if entry.link(keys, &previous.link).map(|link| link.to_vec()) != Some(link.clone()) {
            problem(&mut found.problems, format!("entry {seq}: is not what was written behind entry {}", seq - 1));
        }
        if row.get("is_dangling")? {
            problem(&mut found.problems, format!("entry {seq}: the versions that it refers to are not there"));
        }
        if let (Some(version), Some(digest)) = (&version, &entry.version)
            && version.digest().as_slice() != digest.as_ref()
        {
            problem(&mut found.problems, format!("entry {seq}: the versions that it refers to were changed"));
        }
        found.entries += 1;
        if entry.kind == Kind::Decision.name() {
            found.decisions += 1;
            if let (Some(customer), Some(sealed)) = (&entry.customer, &entry.sealed)
                && !opens(keys, &customers, customer, &entry.id, sealed)
            {
                unopened.push((seq, hex(customer)));
            }
        } else if entry.kind == Kind::Outcome.name() {
            found.outcomes += 1;
            if !outcomes::is_indexed(database, &entry) {
                problem(&mut found.problems, format!("entry {seq}: the index of outcomes does not have it as it is"));
            }
        } else if let Ok(body) = serde_json::from_str::<serde_json::Value>(&entry.body) {
            match body["what"].as_str() {
                Some("erase") => {
                    let names = body["customers"].as_array().into_iter().flatten();
                    erasures.extend(names.filter_map(|name| Some((name.as_str()?.to_owned(), seq))));
                }
                Some("retention") => {
                    retentions.insert((
                        body["through"].as_i64().unwrap_or(0),
                        body["link"].as_str().unwrap_or_default().to_owned(),
                    ));
                }
                _ => {}
            }
        }
        if expected.is_some_and(|expected| meets(expected, seq, &link)) {
            expectation_met = true;
        }
        // Go on from what is there, so that one changed entry is one problem.
        previous = Head { seq, link: link.as_slice().try_into().unwrap_or([0; 32]) };
    }
    for (seq, customer) in unopened {
        if erasures.get(&customer).is_some_and(|erased| seq < *erased) {
            found.erased += 1;
        } else {
            problem(
                &mut found.problems,
                format!("entry {seq}: its inputs do not open, and its customer was not erased"),
            );
        }
    }
    for text in super::journal::problems(database, keys)? {
        problem(&mut found.problems, text);
    }
    for entry in misindexed(database)? {
        problem(&mut found.problems, format!("entry {entry}: the index of customers does not have it as it is"));
    }
    // A ledger of before there were outcomes has no such index.
    if found.outcomes > 0 && outcomes::indexed(database).ok() != Some(found.outcomes) {
        problem(&mut found.problems, "the index of outcomes has others than the chain".to_owned());
    }
    if let Some(first) = first
        && !retentions.contains(&(first.seq, hex(&first.link)))
    {
        problem(&mut found.problems, format!("entries up to {} were removed, but no entry says so", first.seq));
    }
    match head {
        Some(head) if head.seq > previous.seq => {
            problem(
                &mut found.problems,
                format!("entries {} to {} are missing at the end", previous.seq + 1, head.seq),
            );
        }
        Some(head) if head != previous => {
            problem(
                &mut found.problems,
                format!("the ledger ends at entry {}, but {} were written", previous.seq, head.seq),
            );
        }
        None if found.entries > 0 && !found.problems.iter().any(|problem| problem.contains("the mark")) => {
            problem(&mut found.problems, "the mark of the end is missing".to_owned());
        }
        _ => {}
    }
    if !expectation_met {
        problem(
            &mut found.problems,
            format!("the head {} that was noted is not in this ledger", expected.unwrap_or_default()),
        );
    }
    if told > PROBLEMS_MAX {
        found.problems.push(format!("and {} more", told - PROBLEMS_MAX));
    }
    found.head = format!("{}:{}", previous.seq, hex(&previous.link));
    Ok(found)
}

fn meets(expected: &str, seq: i64, link: &[u8]) -> bool {
    expected.split_once(':').is_some_and(|(number, digits)| {
        number.parse() == Ok(seq) && digits.len() >= 16 && hex(link).starts_with(digits)
    })
}

/// Entries that the index of customers has and should not have, or the other way round, as far as it says that it goes.
fn misindexed(database: &Connection) -> Result<Vec<i64>, Error> {
    let indexed = store::meta_number(database, "indexed")?;
    let last: i64 = database.query_row("SELECT ifnull(max(seq), 0) FROM entry", [], |row| row.get(0))?;
    let entries = "SELECT customer, seq FROM entry WHERE customer IS NOT NULL AND seq <= ?1";
    let index = format!("SELECT customer, seq FROM customer_entry WHERE segment = seq >> {}", store::SEGMENT_BITS);
    let sql = format!(
        "SELECT seq FROM ({entries} EXCEPT {index}) UNION SELECT seq FROM ({index} EXCEPT {entries}) ORDER BY seq LIMIT 100"
    );
    let mut statement = database.prepare(&sql)?;
    let mut found: Vec<i64> = statement.query_map([indexed], |row| row.get(0))?.collect::<Result<_, _>>()?;
    if indexed > last && !found.contains(&indexed) {
        found.push(indexed);
    }
    Ok(found)
}

type Wrapped = HashMap<Vec<u8>, (u32, Option<Vec<u8>>)>;

fn customers(database: &Connection) -> Result<Wrapped, Error> {
    let mut statement = database.prepare("SELECT customer, key_version, wrapped FROM customer")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn opens(keys: &Keys, customers: &Wrapped, customer: &[u8], id: &[u8], sealed: &[u8]) -> bool {
    let open = || {
        let (version, wrapped) = customers.get(customer)?;
        let pseudonym: Pseudonym = customer.try_into().ok()?;
        let key = keys.unwrap(*version, &pseudonym, wrapped.as_ref()?).ok()?;
        keys::open_inputs(&key, id.try_into().ok()?, sealed).ok()
    };
    open().is_some()
}

/// The first 16 digits of a link, as they are shown to people.
pub(super) fn short(link: &Link) -> String {
    reader::digits(link)
}
