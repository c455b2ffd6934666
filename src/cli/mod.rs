//! The command line: what can be asked of the binary, and its exit codes. The verbs about the ledger are in `ledger`, those about
//! slots, rollouts and policies in `slots`, those about experiments in `experiments`, those about API keys in `key`, the
//! monthly review in `report`.

mod client;
mod door;
mod experiments;
mod key;
mod ledger;
mod report;
mod slots;
mod table;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use ledger::{LedgerCommand, ReplayArguments};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::access;
use crate::app::App;
use crate::config::{self, Config, Sources};
use crate::engine::{self, PolicyError, read_policy};
use crate::model::{self, Bundle, LoadOptions, Model, Runtime};
use crate::{http, telemetry};

/// The service refused: a move that is not legal now, a bundle or a request that breaks its contract.
const REFUSED: u8 = 1;
/// Bad usage or configuration (EX_USAGE of sysexits.h).
const USAGE: u8 = 64;
/// Data that cannot be used, or is not as it was recorded: bundles, policies, keys of callers, the ledger (EX_DATAERR).
const DATA: u8 = 65;
/// Something that is needed is not there: library, file, address (EX_UNAVAILABLE).
const UNAVAILABLE: u8 = 69;
/// Told to stop for the second time, while it was stopping or starting.
const INTERRUPTED: i32 = 130;

/// Churn decisions: a calibrated score, a risk tier and the intervention that is worth making.
#[derive(Debug, Parser)]
#[command(name = "mainstay", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the models of the configuration
    Serve(Configured),
    /// Check a bundle, a policy or a configuration without serving it
    #[command(subcommand)]
    Verify(Verify),
    /// Make recorded decisions again, and compare them bit for bit
    Replay(ReplayArguments),
    /// Export, back up, restore the ledger; rotate its keys
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Show the slots of the models: what stands in them, in which role, and how a rollout goes
    Slots(slots::Show),
    /// Show who did what to the slots of a model, and why
    History(slots::History),
    /// Load and probe a version into the idle slot
    Stage(slots::Stage),
    /// Empty the idle slot
    Retire(slots::Plain),
    /// Make the idle model the champion
    Promote(slots::Promote),
    /// Go back: end the rollout, or make the champion of before the champion again
    Rollback(slots::Plain),
    /// Put the staged model under trial, and steer that
    #[command(subcommand)]
    Rollout(slots::Rollout),
    /// Try, apply and undo policies
    #[command(subcommand)]
    Policy(slots::Policy),
    /// Compare policies or interventions on shares of the customers
    #[command(subcommand)]
    Experiment(experiments::Experiment),
    /// Write the monthly review of a running service: one HTML file with plots, for readers who are not engineers
    Report(report::Report),
    /// Make, list and revoke API keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Ask a running service whether it is ready: exit code 0 if so
    Health(door::Called),
    /// Print the OpenAPI contract
    Openapi {
        /// The contract of the admin plane
        #[arg(long)]
        admin: bool,
    },
}

/// A check that was made and falls short.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Falls(String);

#[derive(Debug, Clone, Default, Args)]
struct Configured {
    /// The configuration file [default: mainstay.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key of the configuration; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    flags: Vec<String>,
}

impl Configured {
    fn load(self) -> anyhow::Result<Config> {
        Ok(Config::load(&Sources::of_process(self.config, self.flags))?)
    }
}

#[derive(Debug, Subcommand)]
enum Verify {
    /// Open a bundle, load its model and run its probe
    Bundle {
        /// The directory models/<name>/<version>
        path: PathBuf,
        #[command(flatten)]
        configured: Configured,
    },
    /// Check a policy document
    Policy {
        /// The TOML file
        path: PathBuf,
        /// The bundle whose feature dictionary its rules have to fit
        #[arg(long, value_name = "PATH")]
        bundle: Option<PathBuf>,
    },
    /// Check every record of the ledger: changed, missing, inserted, reordered, cut off
    Ledger {
        /// A head noted earlier, which must still be there
        #[arg(long, value_name = "SEQ:LINK")]
        expect: Option<String>,
        #[command(flatten)]
        configured: Configured,
    },
    /// Check a configuration file together with the environment
    Config {
        /// The TOML file
        path: PathBuf,
    },
}

/// Does what `cli` asks for. Errors are written to standard error, as one line or a list of problems.
pub fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Serve(configured) => serve(configured),
        Command::Verify(verify) => verify.run(),
        Command::Replay(arguments) => ledger::replay(arguments),
        Command::Ledger(command) => command.run(),
        Command::Health(called) => health(called),
        Command::Key(command) => command.run(),
        Command::Slots(show) => show.run(),
        Command::History(history) => history.run(),
        Command::Stage(stage) => stage.run(),
        Command::Retire(plain) => plain.run("retire"),
        Command::Promote(promote) => promote.run(),
        Command::Rollback(plain) => plain.run("rollback"),
        Command::Rollout(command) => command.run(),
        Command::Policy(command) => command.run(),
        Command::Experiment(command) => command.run(),
        Command::Report(report) => report.run(),
        Command::Openapi { admin } => write_out(&http::contract_yaml(admin)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With the causes on the same line; a message that is a list keeps its lines.
            let _ = writeln!(std::io::stderr(), "mainstay: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<config::Error>() {
        return USAGE;
    }
    if error.is::<client::Refused>() {
        return REFUSED;
    }
    if matches!(error.downcast_ref(), Some(PolicyError::Wrong { .. }))
        || error.is::<Falls>()
        || matches!(error.downcast_ref(), Some(access::Error::Keys { .. } | access::Error::Jwks { .. }))
        || error.downcast_ref().is_some_and(crate::ledger::Error::is_damage)
    {
        return DATA;
    }
    let model = error.downcast_ref::<model::Error>().or(match error.downcast_ref::<engine::Error>() {
        Some(engine::Error::Unservable { source, .. }) => Some(&**source),
        Some(engine::Error::Refused(_)) => return DATA,
        _ => None,
    });
    match model {
        Some(model::Error::Bundle { .. } | model::Error::Probe { .. } | model::Error::Runtime(_)) => DATA,
        _ => UNAVAILABLE,
    }
}

fn serve(configured: Configured) -> anyhow::Result<()> {
    let config = configured.clone().load()?;
    let log = telemetry::log::start(&config.log);
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        // A text made at run time could hold a customer's value; one that stands in the code cannot.
        let message = panic.payload().downcast_ref::<&'static str>();
        tracing::error!(place, message, "panic");
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let entered = runtime.enter();
    // Before anything else is started: who is told to stop while it starts has to end as well as one that is ready.
    let stop = stop_signal()?;
    let hangups = signal(SignalKind::hangup()).context("cannot listen for signals")?;
    drop(entered);
    let app = App::start(config)?;
    runtime.block_on(async {
        let (sender, reloads) = tokio::sync::mpsc::channel(1);
        let reading = read_again(configured, &log, hangups, sender);
        tokio::select! {
            () = app.run(stop, reloads) => {}
            () = reading => {}
        }
    });
    Ok(())
}

/// Reads the configuration again at every SIGHUP. One that is wrong changes nothing.
async fn read_again(
    configured: Configured,
    log: &telemetry::log::Log,
    mut hangups: Signal,
    reloads: tokio::sync::mpsc::Sender<Config>,
) {
    while hangups.recv().await.is_some() {
        match configured.clone().load() {
            Ok(next) => {
                log.set_level(next.log.level);
                let _ = reloads.send(next).await;
            }
            Err(error) => tracing::error!(cause = %error, "the configuration is wrong, and nothing of it is taken"),
        }
    }
    std::future::pending().await
}

/// Done at the first SIGTERM or SIGINT; a second one ends the process at once. On a thread of its own, since a start and a drain hold up the one
/// that they are made on.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot start")?;
    let entered = runtime.enter();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    drop(entered);
    let (first, told) = tokio::sync::oneshot::channel();
    let wait = async move {
        either(&mut terminate, &mut interrupt).await;
        let _ = first.send(());
        either(&mut terminate, &mut interrupt).await;
        std::process::exit(INTERRUPTED);
    };
    let thread = std::thread::Builder::new().name("mainstay-signals".to_owned());
    thread.spawn(move || runtime.block_on(wait)).context("cannot start a thread")?;
    Ok(async move {
        let _ = told.await;
    })
}

impl Verify {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Verify::Bundle { path, configured } => {
                let config = configured.load()?;
                let runtime = Runtime::load(&config.runtime.library)?;
                let (row_p99_us_max, evaluator) = (config.models.probe_row_p99_us_max, config.models.evaluator);
                let model =
                    Model::load(runtime, &path, LoadOptions { lanes: 1, row_p99_us_max, evaluator, turns: None })?;
                let probe = model.probe();
                write_out(&format!(
                    "{}: a legal bundle, digest {}\n{} golden rows within {:.1e} of the trainer's scores; one row takes {:.1} us (p50), {:.1} us (p99)\n{} answers: {}\n",
                    model.id(),
                    model.digest(),
                    probe.rows,
                    probe.difference_max,
                    probe.row_p50_us,
                    probe.row_p99_us,
                    model.evaluator(),
                    model.evaluator_reason()
                ))
            }
            Verify::Policy { path, bundle } => verify_policy(&path, bundle.as_deref()),
            Verify::Ledger { expect, configured } => ledger::verify(configured, expect.as_deref()),
            Verify::Config { path } => {
                Configured { config: Some(path.clone()), flags: Vec::new() }.load()?.servable()?;
                write_out(&format!("{}: a legal configuration\n", path.display()))
            }
        }
    }
}

fn verify_policy(path: &Path, bundle: Option<&Path>) -> anyhow::Result<()> {
    let policy = read_policy(path)?;
    let mut text = format!("{}: a legal policy, version {}\n", policy.name(), policy.version());
    match bundle.map(Bundle::open).transpose()? {
        Some(bundle) => {
            let path = path.display().to_string();
            policy.bind_to(&bundle.card).map_err(|problems| PolicyError::Wrong { path, problems })?;
            text += &format!("it fits {} {}\n", bundle.card.name, bundle.card.version);
        }
        None if policy.fields().iter().any(|field| field.context.is_none()) => {
            text += "it reads features: name a bundle (--bundle) to check them against its dictionary\n";
        }
        None => {}
    }
    for tier in policy.tiers() {
        let offer = policy.first_of(tier).map_or_else(
            || "by expected value".to_owned(),
            |first| format!("{:<24} {} {}", first.action, first.cost, policy.currency()),
        );
        text += &format!("{:<12} {:<12} {offer}\n", tier.name, tier.band.to_string());
    }
    for segment in policy.segments() {
        text += &format!("segment {}\n", segment.name);
    }
    write_out(&text)
}

/// Asks `/readyz` of the data plane, as a container's health check does.
fn health(called: door::Called) -> anyhow::Result<()> {
    let door = called.data()?;
    let address = door.address;
    let (status, _) = client::call(&door, "GET", "/readyz", "", "", Duration::from_secs(2))?;
    anyhow::ensure!(status == 200, "the service on {address} is not ready");
    write_out("ready\n")
}

fn write_out(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}
