//! The verbs of the command line about the ledger: verify, replay, export, backup, restore, rotate-keys. Verify, replay and export
//! only read, and do so beside a running service; backup and rotate-keys ask it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};

use super::door::Called;
use super::{Configured, Falls, client, write_out};
use crate::domain::id::DecisionId;
use crate::ledger::{self, Reading};
use crate::model::{LoadOptions, Runtime};
use crate::replay::{Outcome, ROUNDING, Replay};

#[derive(Debug, Args)]
pub(super) struct ReplayArguments {
    /// The decision id
    #[arg(required_unless_present = "last")]
    id: Option<String>,
    /// Replay this many of the last decisions
    #[arg(long, conflicts_with = "id")]
    last: Option<usize>,
    #[command(flatten)]
    configured: Configured,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum What {
    Decisions,
    Outcomes,
}

#[derive(Debug, Subcommand)]
pub(super) enum LedgerCommand {
    /// Write decisions, or outcomes, into a Parquet file
    Export {
        /// The new file
        path: PathBuf,
        /// What to export
        #[arg(long, value_enum, default_value_t = What::Decisions)]
        what: What,
        /// Recorded at or after this time, RFC 3339
        #[arg(long)]
        from: Option<jiff::Timestamp>,
        /// Recorded before this time
        #[arg(long)]
        to: Option<jiff::Timestamp>,
        #[command(flatten)]
        configured: Configured,
    },
    /// Copy the ledger of the running service into a new file; the key file is not copied
    Backup {
        /// The new file, as the service sees it
        path: PathBuf,
        #[command(flatten)]
        called: Called,
    },
    /// Put a backup, once it is verified, in the place of the ledger; the service must not run
    Restore {
        /// The backup
        path: PathBuf,
        #[command(flatten)]
        configured: Configured,
    },
    /// Let the running service write with a new master secret from now on
    RotateKeys {
        #[command(flatten)]
        called: Called,
    },
}

/// `mainstay verify ledger`.
pub(super) fn verify(configured: Configured, expect: Option<&str>) -> anyhow::Result<()> {
    let config = configured.load()?;
    let found = Reading::open(&config.ledger.dir)?.verify(expect)?;
    let text = format!(
        "{} records, {} of them decisions ({} with inputs erased), {} outcomes; head {}\n",
        found.entries, found.decisions, found.erased, found.outcomes, found.head
    );
    write_out(&text)?;
    if found.problems.is_empty() {
        return write_out("every record is as it was written, and where it was written\n");
    }
    Err(Falls(format!("the ledger is not what was written:{}", list(&found.problems))).into())
}

/// `mainstay replay`.
pub(super) fn replay(arguments: ReplayArguments) -> anyhow::Result<()> {
    let config = arguments.configured.load()?;
    let reading = Reading::open(&config.ledger.dir)?;
    let recorded = match (&arguments.id, arguments.last) {
        (Some(id), _) => {
            let id = DecisionId::parse(id).with_context(|| format!("{id} is no decision id"))?;
            vec![reading.decision(id)?.with_context(|| format!("no decision {id} is on record"))?]
        }
        (None, last) => reading.last_decisions(last.unwrap_or(1))?,
    };
    let runtime = Runtime::load(&config.runtime.library)?;
    let (row_p99_us_max, evaluator) = (config.models.probe_row_p99_us_max, config.models.evaluator);
    let options = LoadOptions { lanes: 1, row_p99_us_max, evaluator, turns: None };
    let mut replay = Replay::new(runtime, config.models.dir.clone(), options);
    let (mut same, mut rounded, mut given, mut impossible, mut problems) = (0, 0, 0, 0, Vec::new());
    for decision in &recorded {
        match replay.run(decision, &reading) {
            Outcome::Same => same += 1,
            Outcome::Rounded => rounded += 1,
            Outcome::Given => given += 1,
            Outcome::Different(how) => problems.push(format!("{}: {how}", decision.id)),
            Outcome::Impossible(why) => {
                impossible += 1;
                problems.push(format!("{}: cannot be replayed: {why}", decision.id));
            }
        }
    }
    if let ([decision], 1) = (recorded.as_slice(), same + given + rounded) {
        let answer = format!("score {}, tier {}, action {}", decision.score, decision.tier, decision.action);
        write_out(&format!("{}: {answer}, by {} {}\n", decision.id, decision.model, decision.model_version))?;
    }
    write_out(&format!(
        "{same} of {} decisions came out the same to the last bit, {impossible} could not be replayed\n",
        recorded.len()
    ))?;
    if rounded > 0 {
        write_out(&format!(
            "{rounded} more came out the same from the score on record, which is within {ROUNDING:e}: ONNX Runtime rounds otherwise in batches\n"
        ))?;
    }
    if given > 0 {
        write_out(&format!(
            "{given} more came out the same but for the choice, which an allocation over a batch had made: it is taken from the record\n"
        ))?;
    }
    problems.truncate(20);
    if problems.is_empty() { Ok(()) } else { Err(Falls(format!("not as recorded:{}", list(&problems))).into()) }
}

impl LedgerCommand {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            LedgerCommand::Export { path, what, from, to, configured } => {
                let ms = |time: Option<jiff::Timestamp>, or| time.map_or(or, jiff::Timestamp::as_millisecond);
                let reading = Reading::open(&configured.load()?.ledger.dir)?;
                let (from_ms, to_ms) = (ms(from, i64::MIN), ms(to, i64::MAX));
                let (rows, what) = match what {
                    What::Decisions => (reading.export(&path, from_ms, to_ms)?, "decisions"),
                    What::Outcomes => (reading.export_outcomes(&path, from_ms, to_ms)?, "outcomes"),
                };
                write_out(&format!("{rows} {what} in {}\n", path.display()))
            }
            LedgerCommand::Backup { path, called } => {
                let path = std::path::absolute(&path).context("the path cannot be made absolute")?;
                let body = serde_json::json!({ "path": path }).to_string();
                client::post(&called.admin()?, "/v1/ledger/backup", &body, None)?;
                write_out(&format!("a copy of the ledger is in {}\n", path.display()))
            }
            LedgerCommand::RotateKeys { called } => {
                let answer = client::post(&called.admin()?, "/v1/ledger/rotate-keys", "{}", None)?;
                write_out(&format!("{}\n", answer.trim()))
            }
            LedgerCommand::Restore { path, configured } => {
                let dir = configured.load()?.ledger.dir;
                restore(&path, &dir)
            }
        }
    }
}

fn restore(backup: &Path, dir: &Path) -> anyhow::Result<()> {
    let found = ledger::restore(backup, dir)?;
    if !found.problems.is_empty() {
        return Err(Falls(format!(
            "the backup is not what was written, and nothing was changed:{}",
            list(&found.problems)
        ))
        .into());
    }
    write_out(&format!(
        "{} records restored; head {}; what stood there before was kept beside it\n",
        found.entries, found.head
    ))
}

fn list(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("\n  - {problem}")).collect()
}
