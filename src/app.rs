//! The composition: from a configuration to a running service, and back down in order. Nothing here decides about a customer.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::config::{Config, Serve};
use crate::domain::policy::Policy;
use crate::domain::policy_document;
use crate::engine::{Catalogue, Engine, Serving};
use crate::http::{self, Server, ServerOptions, Shared};
use crate::ledger::{Action, Ledger, Promise};
use crate::model::{LoadOptions, Model, Runtime};
use crate::telemetry::Metrics;

/// How often what was recorded is folded into the histograms.
const FOLD: Duration = Duration::from_secs(1);

/// A running service.
#[derive(Debug)]
pub struct App {
    config: Config,
    shared: Shared,
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
    data: Server,
    admin: Server,
}

/// A policy document that breaks its laws.
#[derive(Debug, thiserror::Error)]
#[error("the policy {path} is wrong:{list}", list = problems.iter().map(|problem| format!("\n  - {problem}")).collect::<String>())]
pub struct PolicyError {
    path: String,
    problems: Vec<String>,
}

/// Reads and checks the policy document at `path`.
pub fn read_policy(path: &Path) -> anyhow::Result<Policy> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the policy {}", path.display()))?;
    let digest = Sha256::digest(text.as_bytes());
    let version: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    policy_document::parse(&text, &version)
        .map_err(|problems| PolicyError { path: path.display().to_string(), problems }.into())
}

impl App {
    /// Loads and probes every model, binds both listeners and begins to serve. When this returns, the service is ready.
    ///
    /// Errors: a library, bundle, policy or address that cannot be used, each with the way out.
    pub fn start(config: Config) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let runtime = Runtime::load(&config.runtime.library)?;
        let metrics = Arc::new(Metrics::new());
        let servings: anyhow::Result<Vec<Serving>> =
            config.models.serve.iter().map(|entry| serve(&config, entry, runtime, &metrics)).collect();
        let catalogue = Catalogue::new(servings?).context("models.serve names a model more than once")?;
        let ledger = open_ledger(&config)?;
        let engine = Arc::new(Engine::new(catalogue, ledger, metrics.clone(), SystemTime::now));
        let shared = Shared::new(engine.clone(), config.limits.clone(), config.log.request_share, runtime.build_info());

        let batches = config.limits.batches_max;
        let data = bind("http.listen", config.http.listen)?;
        let admin = bind("admin.listen", config.admin.listen)?;
        // The admin plane answers while the data plane is saturated: a thread and a runtime of its own.
        let alone = ServerOptions { workers: 1, ..config.server.clone() };
        let admin = Server::start("admin", admin, http::admin_plane(&shared), &alone, 1, &metrics)
            .context("cannot start the admin plane")?;
        let data = Server::start("http", data, http::data_plane(&shared), &config.server, batches, &metrics)
            .context("cannot start the data plane")?;
        tracing::info!(
            http = %data.address(),
            admin = %admin.address(),
            workers = config.server.workers(),
            ready_ms = begun.elapsed().as_millis() as u64,
            version = env!("CARGO_PKG_VERSION"),
            "ready"
        );
        Ok(Self { config, shared, engine, metrics, data, admin })
    }

    /// Where the data plane listens.
    pub fn data_address(&self) -> SocketAddr {
        self.data.address()
    }

    /// Where the admin plane listens.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Serves until `stop` is done, then drains: readiness off, no more connections, requests in flight ended, all bounded.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut fold = tokio::time::interval(FOLD);
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                _ = fold.tick() => self.metrics.fold(),
            }
        }
        tracing::info!("draining");
        self.shared.drain();
        tokio::time::sleep(Duration::from_millis(self.config.drain.delay_ms)).await;
        let timeout = Duration::from_millis(self.config.drain.timeout_ms);
        let ended = self.data.stop(timeout);
        self.engine.close();
        self.admin.stop(Duration::from_secs(1));
        tracing::info!(every_request_answered = ended, "stopped");
    }
}

fn open_ledger(config: &Config) -> anyhow::Result<Option<Ledger>> {
    if config.ledger.promise == Promise::Off {
        tracing::warn!("the ledger is off: no decision is recorded");
        return Ok(None);
    }
    let digest = config.digest();
    let ledger = Ledger::open(&config.ledger, &digest, SystemTime::now)?;
    ledger.act(Action::Start { version: env!("CARGO_PKG_VERSION"), config_digest: digest })?;
    tracing::info!(dir = %config.ledger.dir.display(), records = ledger.state().seq(), promise = ?config.ledger.promise, "ledger open");
    Ok(Some(ledger))
}

fn serve(config: &Config, entry: &Serve, runtime: &Runtime, metrics: &Metrics) -> anyhow::Result<Serving> {
    let policy = read_policy(entry.policy.as_deref().unwrap_or(&config.models.policy))?;
    let options = LoadOptions {
        // A lane for every thread that may score at the same time: workers and the batch threads of each.
        lanes: config.server.workers() + config.limits.batches_max,
        row_p99_us_max: config.models.probe_row_p99_us_max,
    };
    let path = config.models.dir.join(&entry.name).join(&entry.version);
    let model = Model::load(runtime, &path, options)
        .with_context(|| format!("cannot serve {} {}", entry.name, entry.version))?;
    let probe = model.probe();
    tracing::info!(
        model = model.id().name,
        version = model.id().version,
        digest = model.digest(),
        policy = policy.name(),
        policy_version = policy.version(),
        golden_rows = probe.rows,
        difference_max = probe.difference_max,
        row_p50_us = probe.row_p50_us,
        row_p99_us = probe.row_p99_us,
        "model in service"
    );
    Ok(Serving::new(Arc::new(model), Arc::new(policy), metrics))
}

fn bind(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| {
        format!("cannot listen on {address}; stop what listens there, or set {key} to another address")
    })
}
