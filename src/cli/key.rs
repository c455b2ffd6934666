//! The verbs of the command line about API keys: they edit the file of keys, which a running service reads again by itself.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::table::{aligned, row};
use super::{Configured, write_out};
use crate::access::{Editor, Rate};
use crate::domain::access::Scope;

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make a key: it is written to standard output, once, and only its hash is kept
    New(New),
    /// List the keys
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Revoke a key
    Revoke {
        /// Its id, as `mainstay key list` shows it
        id: String,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, Args)]
pub(super) struct New {
    /// The holder's name, recorded with whatever is done with the key
    #[arg(long)]
    actor: String,
    /// Its scopes, of score, outcomes, read, operate, admin
    #[arg(long, value_delimiter = ',', required = true, value_parser = scope)]
    scopes: Vec<Scope>,
    /// The roles of its holder
    #[arg(long, value_delimiter = ',')]
    roles: Vec<String>,
    /// Days until it expires [default: never]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: Option<u32>,
    /// Requests allowed a second [default: access.rate_per_sec]
    #[arg(long)]
    rate: Option<u32>,
    /// Burst: requests allowed at once after a pause [default: one second's worth]
    #[arg(long, requires = "rate", default_value_t = 0, hide_default_value = true)]
    burst: u32,
    #[command(flatten)]
    place: Place,
}

/// Which file.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The file of keys [default: access.keys_file of the configuration]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    configured: Configured,
}

impl Place {
    fn open(self) -> anyhow::Result<Editor> {
        let path = match self.file {
            Some(path) => path,
            None => self.configured.load()?.access.keys_file,
        };
        Ok(Editor::open(&path)?)
    }
}

fn scope(text: &str) -> Result<Scope, String> {
    let known = Scope::ALL.into_iter().find(|scope| scope.name() == text);
    known.ok_or_else(|| format!("expected one of {}", Scope::ALL.map(Scope::name).join(", ")))
}

impl KeyCommand {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            KeyCommand::New(new) => new.run(),
            KeyCommand::List { place } => list(&place.open()?),
            KeyCommand::Revoke { id, place } => {
                let was_open = place.open()?.revoke(&id)?;
                let before = if was_open { "" } else { " was revoked before, and" };
                write_out(&format!("{id}{before} opens nothing any more\n"))
            }
        }
    }
}

impl New {
    fn run(self) -> anyhow::Result<()> {
        let days = |days| Timestamp::now().checked_add(jiff::SignedDuration::from_hours(24 * i64::from(days)));
        let expires = self.days.map(days).transpose().context("--days goes beyond the calendar")?;
        let rate = self.rate.map(|per_sec| Rate { per_sec, burst: self.burst });
        let (_, text) = self.place.open()?.add((self.actor, self.scopes, self.roles), expires, rate)?;
        // Alone, so that it can be put into a file or a secret store as it is.
        write_out(&format!("{text}\n"))
    }
}

fn list(editor: &Editor) -> anyhow::Result<()> {
    let now = Timestamp::now();
    let head = row(&["id", "actor", "scopes", "roles", "rate", "created", "expires", "state"]);
    let lines = editor.keys().iter().map(|key| {
        let scopes = key.scopes.iter().map(|scope| scope.name()).collect::<Vec<_>>().join(",");
        let rate = key.rate.map_or(String::new(), |rate| format!("{}/s burst {}", rate.per_sec, rate.quota()));
        let day = |at: Timestamp| at.strftime("%F").to_string();
        let state = match (key.revoked, key.expires) {
            (Some(at), _) => format!("revoked {}", day(at)),
            (_, Some(at)) if at <= now => "expired".to_owned(),
            _ => "open".to_owned(),
        };
        let expires = key.expires.map_or(String::new(), day);
        row(&[&key.id, &key.actor, &scopes, &key.roles.join(","), &rate, &day(key.created), &expires, &state])
    });
    write_out(&aligned(std::iter::once(head).chain(lines).collect()))
}
