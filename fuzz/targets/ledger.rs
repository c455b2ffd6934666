//! The ledger as it lies on a disk that others can write: some cells of its tables are changed, by hand as it were, or bytes of its file
//! are. What was changed in the record is found; nothing that is read of it panics. An input is a list of changes of six bytes each.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use mainstay::domain::decision::{Arm, Decision, ModelId};
use mainstay::domain::id::DecisionId;
use mainstay::domain::outcome::{Facts, Outcome};
use mainstay::domain::rollout::slots::{PolicyRef, Slots};
use mainstay::domain::score::Score;
use mainstay::engine::parse_policy;
use mainstay::ledger::{Change, Kept, Ledger, Options, Page, Promise, Reading};
use rusqlite::Connection;
use rusqlite::types::Value;

use super::Bytes;

/// Changes that are made at a time.
const CHANGES_MAX: usize = 6;
/// The tables that are changed; those of which every cell is vouched for come first.
const TABLES: [&str; 6] = ["entry", "state", "version", "meta", "customer", "customer_entry"];
const VOUCHED: usize = 3;

pub(super) fn run(input: &[u8]) {
    let directory = super::directory();
    for (name, bytes) in &SEED.files {
        let path = directory.path().join(name);
        fs::write(&path, bytes).expect("a copy");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
    }
    let mut bytes = Bytes::new(input);
    let mut raw = Vec::new();
    let path = directory.path().join("ledger.db");
    let database = Connection::open(&path).expect("the database");
    for _ in 0..CHANGES_MAX {
        if bytes.is_empty() {
            break;
        }
        let [what, table, row, column] = [bytes.u8(), bytes.u8(), bytes.u8(), bytes.u8()];
        let value = bytes.u16();
        match what % 8 {
            7 => raw.push((u32::from_le_bytes([table, row, column, 0]), value)),
            what => change(&database, what, TABLES[usize::from(table) % TABLES.len()], row, column, value),
        }
    }
    let changed = dump(&database) != SEED.dump;
    database.close().expect("closed");
    if !raw.is_empty() {
        let mut file = fs::read(&path).expect("the database");
        for (at, value) in &raw {
            let at = *at as usize % file.len();
            file[at] = file[at].wrapping_add(value.to_le_bytes()[0] | 1);
        }
        fs::write(&path, file).expect("written");
    }
    let found = Reading::open(directory.path()).and_then(|reading| {
        let found = reading.verify(Some(&SEED.head))?;
        // Whatever comes of it: nothing may end the process.
        let _ = reading.last_decisions(100).map(|decisions| decisions.len());
        let _ = reading.decision(SEED.decision);
        let _ = reading.document(Kept::Policy, "d1");
        let _ = reading.export(&directory.path().join("export.parquet"), i64::MIN, i64::MAX);
        Ok(found)
    });
    if raw.is_empty() {
        let is_clean = found.as_ref().is_ok_and(|found| found.problems.is_empty());
        assert!(!changed || !is_clean, "what was changed is not found");
        // Indexes and marks are no record, but the file as it was written has nothing wrong.
        assert!(!input.is_empty() || is_clean, "nothing was changed, and something is found: {found:?}");
    }
    if input.first().is_some_and(|first| first & 0xc0 == 0xc0) {
        // A service that starts on it is told, or goes on behind it.
        if let Ok(ledger) = Ledger::open(&options(directory.path()), "fuzz", || clock(0)) {
            let _ = ledger.slots("m");
            let _ = ledger.decisions_of("c-1", &Page { from_ms: 0, to_ms: i64::MAX, before: i64::MAX, limit: 10 });
        }
    }
}

/// Changes one cell, or a whole row. What the database itself refuses is not made.
fn change(database: &Connection, what: u8, table: &str, row: u8, column: u8, value: u16) {
    let columns: Vec<String> = names(database, table);
    let column = &columns[usize::from(column) % columns.len()];
    let keys: i64 =
        database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("a count");
    if keys == 0 {
        return;
    }
    let key = key(table);
    let at = i64::from(row) % keys;
    let place = format!("({key}) = (SELECT {key} FROM {table} ORDER BY {key} LIMIT 1 OFFSET {at})");
    let other = (at + 1 + i64::from(value >> 8)) % keys;
    let sql = match what {
        0 => format!("DELETE FROM {table} WHERE {place}"),
        1 => format!("UPDATE {table} SET {column} = NULL WHERE {place}"),
        2 => format!(
            "UPDATE {table} SET {column} = (SELECT {column} FROM {table} ORDER BY {key} LIMIT 1 OFFSET {other}) WHERE {place}"
        ),
        _ => {
            let read = database.query_row(&format!("SELECT {column} FROM {table} WHERE {place}"), [], |row| row.get(0));
            let Ok(found): Result<Value, _> = read else { return };
            let changed = other_value(found, what, value);
            let _ = database.execute(&format!("UPDATE {table} SET {column} = ?1 WHERE {place}"), [changed]);
            return;
        }
    };
    let _ = database.execute(&sql, []);
}

fn other_value(found: Value, what: u8, value: u16) -> Value {
    let flip = |mut bytes: Vec<u8>| {
        let at = usize::from(value >> 3) % bytes.len().max(1);
        match (what, bytes.get_mut(at)) {
            (3, _) => bytes.truncate(at),
            (4, Some(byte)) => *byte ^= 1 << (value & 7),
            (_, Some(_)) => bytes.insert(at, value as u8),
            (_, None) => bytes.push(value as u8),
        }
        bytes
    };
    match found {
        Value::Null => Value::Integer(i64::from(value)),
        Value::Integer(number) if what == 3 => Value::Integer(i64::from(value) - number),
        Value::Integer(number) if what == 4 => Value::Integer(number ^ (1 << (value & 63))),
        Value::Integer(number) => Value::Integer(number.wrapping_add(i64::from(value as i16))),
        Value::Real(_) if what == 3 => Value::Real(f64::from_bits(u64::from(value) << 48)),
        Value::Real(number) => Value::Real(f64::from_bits(number.to_bits() ^ (1 << (value & 63)))),
        Value::Text(text) => Value::Text(String::from_utf8_lossy(&flip(text.into_bytes())).into_owned()),
        Value::Blob(bytes) => Value::Blob(flip(bytes)),
    }
}

fn names(database: &Connection, table: &str) -> Vec<String> {
    let mut statement = database.prepare(&format!("SELECT name FROM pragma_table_info('{table}')")).expect("a table");
    let names = statement.query_map([], |row| row.get(0)).expect("columns");
    names.collect::<Result<_, _>>().expect("names")
}

fn key(table: &str) -> &'static str {
    match table {
        "entry" => "seq",
        "state" => "kind, name",
        "version" => "version",
        "meta" => "key",
        "customer" => "customer",
        _ => "segment, customer, seq",
    }
}

/// Everything that is vouched for.
fn dump(database: &Connection) -> Vec<Vec<Value>> {
    let mut rows = Vec::new();
    for table in &TABLES[..VOUCHED] {
        let mut statement =
            database.prepare(&format!("SELECT * FROM {table} ORDER BY {}", key(table))).expect("a table");
        let count = statement.column_count();
        let found = statement.query_map([], |row| (0..count).map(|at| row.get(at)).collect()).expect("rows");
        rows.extend(found.map(|row: Result<Vec<Value>, _>| row.expect("a row")));
    }
    rows
}

/// A small ledger with every kind of entry.
struct Seed {
    files: Vec<(String, Vec<u8>)>,
    dump: Vec<Vec<Value>>,
    head: String,
    decision: DecisionId,
}

static SEED: LazyLock<Seed> = LazyLock::new(Seed::new);

fn clock(more_ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_000 + more_ms)
}

fn options(dir: &Path) -> Options {
    Options {
        dir: dir.to_owned(),
        promise: Promise::Committed,
        inputs: true,
        queue_max: 64,
        wait_ms_max: 10_000,
        commit_interval_us: 0,
        retention_days: 0,
        bytes_max: 0,
    }
}

impl Seed {
    fn new() -> Self {
        let directory = super::directory();
        let ledger = Ledger::open(&options(directory.path()), "fuzz", || clock(0)).expect("a ledger");
        let document = include_str!("../../models/policy/default.toml");
        let policy = Arc::new(parse_policy(document).expect("a policy"));
        let reference = PolicyRef { name: "default".to_owned(), digest: "d1".to_owned() };
        let change = |verb: &str, version: &str| Change {
            model: "m".to_owned(),
            verb: verb.to_owned(),
            by: "ops".to_owned(),
            why: "to be read".to_owned(),
            result: "done".to_owned(),
            slots: Some(Slots::new(version.to_owned(), "b1".to_owned(), reference.clone(), 1)),
            experiments: None,
            documents: vec![(Kept::Policy, "d1".to_owned(), document.to_owned())],
            request: None,
        };
        ledger.change(change("begin", "1")).expect("recorded");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let _inside = runtime.enter();
        let id = |number: u8| DecisionId::new(1_790_000_000_000, [number; 10]);
        for number in 0..6 {
            let score = Score::new(f64::from(number) / 6.0).expect("a score");
            let (assessment, choice) = policy.decide(score, &[]);
            let decision = Decision {
                id: id(number),
                decided_at_ms: 1_790_000_000_000,
                score,
                model: Arc::new(ModelId {
                    name: "m".to_owned(),
                    version: (number / 3).to_string(),
                    digest: "b1".to_owned(),
                }),
                arm: if number == 2 { Arm::Challenger } else { Arm::Champion },
                policy: policy.clone(),
                tier: assessment.tier,
                choice,
                value_at_stake: assessment.value_at_stake,
                trace: assessment.trace,
                chance: None,
                features_age_ms: None,
                explanation: None,
                counterfactuals: None,
            };
            let inputs = format!("{{\"customer_id\":\"c-{number}\"}}").into_bytes();
            let receipt = ledger.record(&decision, &format!("c-{number}"), inputs.into()).expect("taken");
            receipt.kept_blocking().expect("recorded");
        }
        let outcome = Outcome {
            decision_id: id(1),
            occurred_at_ms: 1_790_000_000_000,
            facts: Facts { churned: Some(true), ..Facts::default() },
            source_id: None,
        };
        ledger.record_outcomes(&[outcome], 1_790_000_000_000).expect("recorded");
        ledger.change(change("promote", "2")).expect("recorded");
        assert!(ledger.erase("c-3", None).expect("erased"));
        drop(ledger);
        let database = Connection::open(directory.path().join("ledger.db")).expect("the database");
        let dump = dump(&database);
        database.close().expect("closed");
        let head = Reading::open(directory.path()).expect("a ledger").verify(None).expect("a verification").head;
        let files = ["ledger.db", "ledger.keys"]
            .map(|name| (name.to_owned(), fs::read(directory.path().join(name)).expect("a file")));
        Self { files: files.into(), dump, head, decision: id(1) }
    }
}
