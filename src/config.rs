//! The configuration: default.toml < file < environment < flags, typed and strict. Every problem is told at once, with the key
//! and where it was set. What a key means stands in default.toml.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use crate::access;
use crate::domain::nearest::nearest;
use crate::engine;
use crate::http::{Limits, ServerOptions, TlsOptions};
use crate::ledger;
use crate::model;
use crate::outbound;
use crate::telemetry::log;

const DEFAULT: &str = include_str!("default.toml");
/// The file that is read when none is named, if it is there.
const FILE: &str = "mainstay.toml";
/// What the environment variables of the configuration begin with.
const PREFIX: &str = "MAINSTAY__";

/// The whole configuration; default.toml is the manual of every key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Config {
    pub runtime: Runtime,
    pub models: Models,
    pub http: Plane,
    pub admin: Plane,
    pub access: access::Options,
    pub server: ServerOptions,
    pub limits: Limits,
    pub drain: Drain,
    pub ledger: ledger::Options,
    pub rollouts: engine::Options,
    pub insight: engine::InsightOptions,
    pub retraining: engine::RetrainingOptions,
    pub log: log::Options,
}

/// The section `runtime`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Runtime {
    pub library: PathBuf,
}

/// The section `models`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Models {
    pub dir: PathBuf,
    pub policy: PathBuf,
    pub serve: Vec<Serve>,
    pub resume: bool,
    pub evaluator: model::Choice,
    pub probe_row_p99_us_max: u64,
    pub inline_row_us_max: u64,
    pub turn_wait_ms_max: u64,
}

/// One entry of `models.serve`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Serve {
    pub name: String,
    pub version: String,
    pub policy: Option<PathBuf>,
}

/// The sections `http` and `admin`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Plane {
    pub listen: SocketAddr,
    pub tls: TlsOptions,
}

/// The section `drain`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Drain {
    pub delay_ms: u64,
    pub timeout_ms: u64,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, PartialEq, thiserror::Error)]
pub struct Error {
    problems: Vec<String>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is wrong:")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  - {problem}"))
    }
}

/// Where values come from, besides the defaults.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file named by the caller; without one `mainstay.toml` is read if it is there.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// `KEY=VALUE` from the command line.
    pub flags: Vec<String>,
}

impl Sources {
    /// The file and the flags of the command line, with the environment of the process.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<String>) -> Self {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self { file, environment: std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect(), flags }
    }
}

impl Config {
    /// The configuration that `sources` give over the defaults.
    ///
    /// Errors: every problem, each a sentence with the key and its source.
    pub fn load(sources: &Sources) -> Result<Self, Error> {
        let mut loader = Loader::new();
        loader.file(sources.file.as_deref());
        for (name, text) in &sources.environment {
            if let Some(key) = name.strip_prefix(PREFIX) {
                let path: Vec<String> = key.split("__").map(str::to_lowercase).collect();
                loader.text(&path, text, &format!("environment variable {name}"));
            }
        }
        for flag in &sources.flags {
            match flag.split_once('=') {
                Some((key, text)) => {
                    let path: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
                    loader.text(&path, text.trim(), &format!("--set {key}"));
                }
                None => loader
                    .problems
                    .push(format!("--set {flag}: expected KEY=VALUE, such as http.listen=127.0.0.1:8080")),
            }
        }
        loader.finish()
    }

    /// The sha256 of the effective configuration, 16 digits: what a decision was made under.
    pub fn digest(&self) -> String {
        let text = toml::to_string(self).unwrap_or_default();
        Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether it may be served: an admin plane that others can reach has to ask who they are. The command line does not care, since
    /// it only asks the one that is there.
    ///
    /// Errors: the problem, as a sentence with the way out.
    pub fn servable(&self) -> Result<(), Error> {
        if self.access.required || self.admin.listen.ip().is_loopback() {
            return Ok(());
        }
        let problem = format!(
            "admin.listen: {} can be reached by others, and whoever reaches it may move models and copy the ledger: set access.required (and make keys by `mainstay key new`), or listen on 127.0.0.1",
            self.admin.listen
        );
        Err(Error { problems: vec![problem] })
    }

    /// The keys whose values differ in `next`.
    pub fn changes(&self, next: &Self) -> Vec<String> {
        let table = |config: &Self| Table::try_from(config).unwrap_or_default();
        let (before, after) = (table(self), table(next));
        let mut all = keys(&before, "");
        all.extend(keys(&after, "").into_iter().filter(|key| !all.contains(key)).collect::<Vec<_>>());
        let at =
            |table: &Table, key: &str| find(table, &key.split('.').map(str::to_owned).collect::<Vec<_>>()).cloned();
        all.retain(|key| at(&before, key) != at(&after, key));
        all
    }

    /// What asking for new models needs of other sections, and lacks.
    fn retraining_needs(&self) -> Vec<(&'static str, String)> {
        let needs = [
            (
                self.ledger.promise == ledger::Promise::Off,
                "needs the ledger, or each restart would ask again: ledger.promise is \"off\"",
            ),
            (!self.insight.enabled, "needs what is measured: insight.enabled is false"),
        ];
        let lacking = needs.into_iter().filter(|(is_lacking, _)| *is_lacking && self.retraining.is_on());
        lacking.map(|(_, text)| ("url", text.to_owned())).collect()
    }

    /// What is wrong with where the keys of an issuer come from: only here both who may call and how one calls are known.
    fn issuer_problems(&self) -> Vec<(&'static str, String)> {
        let jwt = &self.access.jwt;
        if !jwt.is_on() {
            return Vec::new();
        }
        let danger = "who changes the keys on their way can sign";
        outbound::problems(("jwt.jwks_url", &jwt.jwks_url), ("jwt.jwks_ca", &jwt.jwks_ca), danger)
    }

    /// Every value that is legal by itself and wrong in this configuration, as (key, sentence).
    fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut section = |name: &str, found: Vec<(&'static str, String)>| {
            problems.extend(found.into_iter().map(|(key, text)| (format!("{name}.{key}"), text)));
        };
        section("http.tls", self.http.tls.problems());
        section("admin.tls", self.admin.tls.problems());
        section("server", self.server.problems());
        section("limits", self.limits.problems());
        section("access", self.access.problems());
        section("access", self.issuer_problems());
        section("log", self.log.problems());
        section("ledger", self.ledger.problems());
        section("rollouts", self.rollouts.problems());
        section("insight", self.insight.problems());
        if self.rollouts.limits.outcomes_min > 0 && !self.insight.enabled {
            let text = "no canary would ever pass: insight.enabled is false, so outcomes are not counted";
            section("rollouts", vec![("limits.outcomes_min", text.to_owned())]);
        }
        section("retraining", self.retraining.problems());
        section("retraining", self.retraining_needs());
        if self.models.serve.is_empty() {
            section("models", vec![("serve", "expected at least one model".to_owned())]);
        }
        for (at, entry) in self.models.serve.iter().enumerate() {
            if self.models.serve[..at].iter().any(|earlier| earlier.name == entry.name) {
                section("models", vec![("serve", format!("\"{}\" stands more than once", entry.name))]);
            }
            for text in [&entry.name, &entry.version] {
                if !crate::domain::bundle::card::is_identifier(text) {
                    section("models", vec![("serve", format!("\"{text}\" is not the name or version of a bundle"))]);
                }
            }
        }
        if self.models.probe_row_p99_us_max == 0 {
            section("models", vec![("probe_row_p99_us_max", "expected 1 or more".to_owned())]);
        }
        if !(1..=60_000).contains(&self.models.turn_wait_ms_max) {
            section("models", vec![("turn_wait_ms_max", "expected 1 to 60000".to_owned())]);
        }
        if self.http.listen == self.admin.listen && self.http.listen.port() != 0 {
            section("admin", vec![("listen", format!("{} is the address of http.listen", self.admin.listen))]);
        }
        problems
    }
}

/// Lays one source over the other and collects what is wrong.
struct Loader {
    default: Table,
    merged: Table,
    /// The source of each key that is not a default.
    set_by: Vec<(String, String)>,
    problems: Vec<String>,
}

impl Loader {
    fn new() -> Self {
        let default: Table = DEFAULT.parse().expect("default.toml is TOML");
        Self { merged: default.clone(), default, set_by: Vec::new(), problems: Vec::new() }
    }

    fn file(&mut self, named: Option<&Path>) {
        let path = named.unwrap_or(Path::new(FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => return self.problems.push(format!("{}: {error}", path.display())),
        };
        match text.parse::<Table>() {
            Ok(table) => self.table(&mut Vec::new(), table, &path.display().to_string()),
            Err(error) => self.problems.push(format!("{}: {}", path.display(), error.to_string().trim_end())),
        }
    }

    fn table(&mut self, path: &mut Vec<String>, table: Table, source: &str) {
        for (key, value) in table {
            path.push(key);
            match (find(&self.default, path), value) {
                (Some(Value::Table(_)), Value::Table(inner)) => self.table(path, inner, source),
                (_, value) => self.set(path, value, source),
            }
            path.pop();
        }
    }

    /// Sets a key from text, which is read as the default's type would be.
    fn text(&mut self, path: &[String], text: &str, source: &str) {
        let value = match find(&self.default, path) {
            // A string needs no quotes here: nobody writes them in an environment.
            Some(Value::String(_)) => Value::String(text.to_owned()),
            _ => match format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value")) {
                Some(value) => value,
                None => Value::String(text.to_owned()),
            },
        };
        self.set(path, value, source);
    }

    fn set(&mut self, path: &[String], value: Value, source: &str) {
        let key = path.join(".");
        match find(&self.default, path) {
            None => {
                let known = keys(&self.default, "");
                let meant = nearest(&key, known.iter().map(String::as_str));
                let meant = meant.map_or(String::new(), |meant| format!("; did you mean \"{meant}\"?"));
                self.problems.push(format!("{key} ({source}): is not a key of the configuration{meant}"));
            }
            Some(Value::Table(_)) => {
                self.problems.push(format!("{key} ({source}): is a section, expected a key below it"))
            }
            Some(_) => {
                // Alone over the defaults, so that its error is its own.
                let mut alone = self.default.clone();
                replace(&mut alone, path, value.clone());
                match alone.try_into::<Config>() {
                    Err(error) => self.problems.push(format!("{key} ({source}): {}", error.message())),
                    Ok(_) => {
                        replace(&mut self.merged, path, value);
                        self.set_by.retain(|(set, _)| *set != key);
                        self.set_by.push((key, source.to_owned()));
                    }
                }
            }
        }
    }

    fn finish(mut self) -> Result<Config, Error> {
        match self.merged.try_into::<Config>() {
            Ok(config) => {
                for (key, text) in config.problems() {
                    let source =
                        self.set_by.iter().find(|(set, _)| *set == key).map_or("default", |(_, source)| source);
                    self.problems.push(format!("{key} ({source}): {text}"));
                }
                if self.problems.is_empty() { Ok(config) } else { Err(Error { problems: self.problems }) }
            }
            Err(error) => {
                self.problems.push(error.message().to_owned());
                Err(Error { problems: self.problems })
            }
        }
    }
}

fn find<'t>(table: &'t Table, path: &[String]) -> Option<&'t Value> {
    let (last, sections) = path.split_last()?;
    sections.iter().try_fold(table, |table, section| table.get(section)?.as_table())?.get(last)
}

fn replace(table: &mut Table, path: &[String], value: Value) {
    match path {
        [last] => {
            table.insert(last.clone(), value);
        }
        [section, rest @ ..] => {
            if let Some(Value::Table(inner)) = table.get_mut(section) {
                replace(inner, rest, value);
            }
        }
        [] => {}
    }
}

fn keys(table: &Table, prefix: &str) -> Vec<String> {
    let inner = |(key, value): (&String, &Value)| match value {
        Value::Table(section) => keys(section, &format!("{prefix}{key}.")),
        _ => vec![format!("{prefix}{key}")],
    };
    table.iter().flat_map(inner).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> (tempfile::NamedTempFile, Sources) {
        let path = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(&path, file).expect("a written file");
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let sources = Sources { file: Some(path.path().to_owned()), environment, flags };
        (path, sources)
    }

    #[test]
    fn the_defaults_are_legal() {
        let (_file, sources) = sources("", &[], &[]);
        let config = Config::load(&sources).expect("legal defaults");
        assert_eq!(config.http.listen.port(), 8080);
    }

    #[test]
    fn later_sources_win() {
        let file = "[http]\nlisten = \"127.0.0.1:1\"\n[log]\nlevel = \"warn\"\n[limits]\ndepth_max = 5\n";
        let environment =
            [("MAINSTAY__HTTP__LISTEN", "127.0.0.1:2"), ("MAINSTAY__LOG__LEVEL", "error"), ("MAINSTAY_PORT", "x")];
        let (_file, sources) = sources(file, &environment, &["http.listen=127.0.0.1:3"]);
        let config = Config::load(&sources).expect("a legal configuration");
        assert_eq!((config.http.listen.port(), config.log.level, config.limits.depth_max), (3, log::Level::Error, 5));
    }

    #[test]
    fn a_list_can_come_from_the_environment() {
        let serve = "[{ name = \"mlc-churn\", version = \"1.0.0\", policy = \"p.toml\" }]";
        let (_file, sources) = sources("", &[("MAINSTAY__MODELS__SERVE", serve)], &[]);
        assert_eq!(Config::load(&sources).expect("a legal configuration").models.serve.len(), 1);
    }

    #[test]
    fn every_problem_is_told_at_once_with_its_source() {
        let file = "[http]\nlisen = \"127.0.0.1:1\"\n[limits]\ndepth_max = \"deep\"\nin_flight_max = 0\n[log]\nrequest_share = 2.0\n";
        let environment = [("MAINSTAY__SERVER__WORKERS", "many"), ("MAINSTAY__ADMIN__LISTEN", "127.0.0.1:8080")];
        let (path, sources) = sources(file, &environment, &["log.format=xml", "nonsense"]);
        let error = Config::load(&sources).expect_err("eight problems");
        insta::assert_snapshot!(error.to_string().replace(&path.path().display().to_string(), "FILE"), @r#"
        the configuration is wrong:
          - http.lisen (FILE): is not a key of the configuration; did you mean "http.listen"?
          - limits.depth_max (FILE): invalid type: string "deep", expected usize
          - server.workers (environment variable MAINSTAY__SERVER__WORKERS): invalid type: string "many", expected usize
          - log.format (--set log.format): unknown variant `xml`, expected `json` or `text`
          - --set nonsense: expected KEY=VALUE, such as http.listen=127.0.0.1:8080
          - limits.in_flight_max (FILE): expected 1 to 1048576
          - log.request_share (FILE): expected a share from 0 to 1
          - admin.listen (environment variable MAINSTAY__ADMIN__LISTEN): 127.0.0.1:8080 is the address of http.listen
        "#);
    }

    #[test]
    fn what_asking_for_models_needs_is_told() {
        let file = "[retraining]\nurl = \"http://example.com/hook\"\nca = \"Cargo.toml\"\ncauses = []\nschedule = \"daily\"\nkpis = [\"sales\"]\ntries_max = 0\nauc_fall = nan\n\
            [ledger]\npromise = \"off\"\n[insight]\nenabled = false\n[rollouts.limits]\noutcomes_min = 5\n";
        let (_file, sources) = sources(file, &[], &["retraining.causes=[\"mood\"]"]);
        let error = Config::load(&sources).expect_err("eleven problems").to_string();
        let told: Vec<&str> = error.lines().map(|line| line.trim_start_matches("  - ")).collect();
        let sources = |line: &str| {
            line.split_once(" (").map_or(line.to_owned(), |(key, rest)| {
                format!("{key}: {}", rest.split_once("): ").map_or(rest, |(_, text)| text))
            })
        };
        insta::assert_snapshot!(told.into_iter().map(sources).collect::<Vec<_>>().join("\n"), @r#"
        the configuration is wrong:
        retraining.causes: unknown variant `mood`, expected one of `schedule`, `drift`, `quality`, `kpi`
        rollouts.limits.outcomes_min: no canary would ever pass: insight.enabled is false, so outcomes are not counted
        retraining.auc_fall: expected 0 to 1
        retraining.tries_max: expected 1 to 100
        retraining.schedule: expected "off", "week" or "month"
        retraining.kpis: expected some of churn_reduction, conversion_rate, cost_per_decision
        retraining.causes: expected at least one; nothing is asked for without a url
        retraining.ca: is for a url with https
        retraining.ca: Cargo.toml cannot be used: it holds no certificate
        retraining.url: expected https, or http on this machine: the messages tell figures of the business
        retraining.url: needs the ledger, or each restart would ask again: ledger.promise is "off"
        retraining.url: needs what is measured: insight.enabled is false
        "#);
    }

    #[test]
    fn a_missing_file_is_a_problem_only_when_it_was_named() {
        let named = Sources { file: Some("/nowhere/mainstay.toml".into()), ..Sources::default() };
        assert!(Config::load(&named).expect_err("no such file").to_string().contains("/nowhere/mainstay.toml"));
    }
}
