//! The composition: from a configuration to a running service, and back down in order. Nothing here decides about a customer. What changes
//! on the way is in `reload`.

mod reload;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use tokio::sync::mpsc;

use crate::access::Access;
use crate::config::{Config, Serve};
use crate::engine::{Engine, Entry, PolicyError, RetrainingOptions, Serving, Setup, Shelf, read_policy};
use crate::http::{self, Listener, Server, ServerOptions, Shared, Tls};
use crate::ledger::{Action, Ledger, Promise};
use crate::model::{LoadOptions, Runtime, TurnOptions};
use crate::outbound;
use crate::outbound::webhook::{self, SECRET_VARIABLE, Sender};
use crate::telemetry::Metrics;
use crate::telemetry::tls::Plane;

/// How often what was recorded is folded into the histograms.
const FOLD: Duration = Duration::from_secs(1);

/// Threads of the admin plane that may wait for a disk or a lock.
const ADMIN_THREADS: usize = 4;
/// Open connections of the admin plane: operators, and what scrapes.
const ADMIN_CONNECTIONS_MAX: usize = 128;
/// Descriptors that are kept for the admin plane, the ledger and its readers, models and files, where there are enough.
const DESCRIPTORS_KEPT: usize = ADMIN_CONNECTIONS_MAX + 128;
/// The niceness of threads that do batches, or score by a slow model: far behind those that answer single customers.
const BATCH_NICE: i32 = 10;
/// The niceness of the shadow: the last of all.
const SHADOW_NICE: i32 = 19;
/// How often rollouts are looked at: a broken guardrail acts within this.
const TICK: Duration = Duration::from_millis(250);
/// How long a stop waits for a request for a new model that is on its way; it is sent again after the next start.
const SENDING: Duration = Duration::from_secs(2);
/// How often it is looked whether certificates, or the keys of callers, have changed.
const LOOK_AT_FILES: Duration = Duration::from_secs(1);

/// A running service.
#[derive(Debug)]
pub struct App {
    config: Config,
    shared: Shared,
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
    access: Option<Arc<Access>>,
    data: Server,
    admin: Server,
    /// TLS of those planes that have it.
    tls: Vec<Arc<Tls>>,
    /// The look at rollouts, the shadow, the measures, and the looks at certificates and at who may call.
    behind: Vec<std::thread::JoinHandle<()>>,
    /// Asks for new models, where that is wanted.
    asking: Option<std::thread::JoinHandle<()>>,
}

impl App {
    /// Loads and probes every model, binds both listeners and begins to serve. When this returns, the service is ready.
    ///
    /// Errors: a library, bundle, policy or address that cannot be used, each with the way out.
    pub fn start(config: Config) -> anyhow::Result<Self> {
        let begun = Instant::now();
        config.servable()?;
        let access = open_access(&config)?;
        let runtime = Runtime::load(&config.runtime.library)?;
        let metrics = Arc::new(Metrics::new());
        let http_tls = Tls::open(Plane::Http, &config.http.tls, &metrics).context("http.tls")?;
        let admin_tls = Tls::open(Plane::Admin, &config.admin.tls, &metrics).context("admin.tls")?;
        let tls: Vec<Arc<Tls>> = http_tls.iter().chain(&admin_tls).cloned().collect();
        let retraining = config.retraining.is_on().then(|| asking(&config)).transpose().context("retraining")?;
        let ledger = open_ledger(&config)?;
        let setup = setup(&config, runtime, metrics.clone(), ledger)?;
        let engine = Arc::new(Engine::open(Setup { retraining, ..setup })?);
        for serving in engine.catalogue().iter() {
            tell(serving);
        }
        let (limits, share) = (config.limits.clone(), config.log.request_share);
        let shared = Shared::new(engine.clone(), limits, share, runtime.build_info(), access.clone());

        let limits = &config.limits;
        let (batches, nice) = (limits.batches_max, limits.nice(BATCH_NICE));
        let data = bind("http.listen", config.http.listen, http_tls)?;
        let admin = bind("admin.listen", config.admin.listen, admin_tls)?;
        // The admin plane answers while the data plane is saturated: a thread and a runtime of its own.
        let alone = ServerOptions {
            workers: 1,
            connections_max: config.server.connections_max.min(ADMIN_CONNECTIONS_MAX),
            // Operators are never told to come back later.
            queue_target_ms: 0,
            ..config.server.clone()
        };
        let many =
            ServerOptions { connections_max: connections(config.server.connections_max), ..config.server.clone() };
        let admin = Server::start("admin", admin, http::admin_plane(&shared), &alone, ADMIN_THREADS, None, &metrics)
            .context("cannot start the admin plane")?;
        let data = Server::start("http", data, http::data_plane(&shared), &many, batches, Some(nice), &metrics)
            .context("cannot start the data plane")?;
        tracing::info!(
            http = %data.address(),
            admin = %admin.address(),
            workers = config.server.workers(),
            ready_ms = begun.elapsed().as_millis() as u64,
            version = env!("CARGO_PKG_VERSION"),
            "ready"
        );
        let nice = limits.nice(SHADOW_NICE);
        let behind = behind(&engine, nice, &tls, access.clone()).context("cannot start a thread")?;
        let asking = config.retraining.is_on().then(|| ask_for_models(&engine, nice)).transpose();
        let asking = asking.context("cannot start a thread")?;
        Ok(Self { config, shared, engine, metrics, access, data, admin, tls, behind, asking })
    }

    /// Where the data plane listens.
    pub fn data_address(&self) -> SocketAddr {
        self.data.address()
    }

    /// Where the admin plane listens.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Serves until `stop` is done, then drains: readiness off, no more connections, requests in flight ended, all bounded. On its
    /// way it takes over what comes from `reloads`, as far as that may change at run time.
    pub async fn run(mut self, stop: impl Future<Output = ()>, mut reloads: mpsc::Receiver<Config>) {
        let mut fold = tokio::time::interval(FOLD);
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                _ = fold.tick() => self.metrics.fold(),
                Some(next) = reloads.recv() => self.reload(next),
            }
        }
        tracing::info!("draining");
        self.shared.drain();
        self.engine.stop_retraining();
        tokio::time::sleep(Duration::from_millis(self.config.drain.delay_ms)).await;
        let timeout = Duration::from_millis(self.config.drain.timeout_ms);
        let ended = self.data.stop(timeout);
        if let Some(asking) = self.asking {
            // While the ledger can still take that it arrived. A receiver that hangs does not hold up the stop.
            let until = Instant::now() + SENDING;
            while !asking.is_finished() && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        self.engine.close();
        for thread in self.behind {
            thread.thread().unpark();
            let _ = thread.join();
        }
        self.admin.stop(Duration::from_secs(1));
        tracing::info!(every_request_answered = ended, "stopped");
    }
}

/// The threads that work behind the answers: one looks at rollouts, one is their shadow, one measures what came of decisions, and one each
/// looks at certificates and at who may call, where there are any: an issuer that takes its time must not hold up a certificate. Shadow and
/// measures give way to everything else, by `nice`.
fn behind(
    engine: &Arc<Engine>,
    nice: i32,
    tls: &[Arc<Tls>],
    access: Option<Arc<Access>>,
) -> std::io::Result<Vec<std::thread::JoinHandle<()>>> {
    let (looks, shadow, insight) = (engine.clone(), engine.clone(), engine.clone());
    let look = every(TICK, "mainstay-rollouts", engine, move || looks.tick())?;
    let shadow = every(Duration::ZERO, "mainstay-shadow", engine, move || {
        http::give_way(nice);
        shadow.run_shadow();
    })?;
    let insight = every(Duration::ZERO, "mainstay-insight", engine, move || {
        http::give_way(nice);
        insight.run_insight();
    })?;
    let mut threads = vec![look, shadow, insight];
    if !tls.is_empty() {
        let tls = tls.to_vec();
        threads.push(every(LOOK_AT_FILES, "mainstay-tls", engine, move || tls.iter().for_each(|tls| tls.look()))?);
    }
    if let Some(access) = access {
        threads.push(every(LOOK_AT_FILES, "mainstay-access", engine, move || access.refresh(false))?);
    }
    Ok(threads)
}

/// The thread that asks for new models. It may wait for a receiver, and so nobody waits for it.
fn ask_for_models(engine: &Arc<Engine>, nice: i32) -> std::io::Result<std::thread::JoinHandle<()>> {
    let engine = engine.clone();
    std::thread::Builder::new().name("mainstay-retraining".to_owned()).spawn(move || {
        http::give_way(nice);
        while !engine.is_closing() {
            let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| engine.run_retraining()));
            if asked.is_ok() {
                return;
            }
            // What ended it may do so again.
            std::thread::park_timeout(LOOK_AT_FILES);
        }
    })
}

/// A thread that looks again and again, until the engine closes.
fn every(
    pause: Duration,
    name: &str,
    engine: &Arc<Engine>,
    look: impl Fn() + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let engine = engine.clone();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        while !engine.is_closing() {
            // Nobody would look any more if one look ended the thread. The panic is logged where it happens.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&look));
            std::thread::park_timeout(pause);
        }
    })
}

/// Who may call, where that is asked; else says who may.
fn open_access(config: &Config) -> anyhow::Result<Option<Arc<Access>>> {
    if config.access.required {
        let access = Access::open(config.access.clone(), SystemTime::now, outbound::read)
            .context("who may call is not known: `mainstay key new` makes a key")?;
        tracing::info!(keys = access.keys(), issuer = config.access.jwt.issuer, "callers need credentials");
        return Ok(Some(Arc::new(access)));
    }
    if config.http.listen.ip().is_loopback() {
        tracing::info!("callers need no credentials: whoever is on this machine may call (access.required)");
    } else if config.http.tls.client_auth == http::ClientAuth::Required {
        tracing::info!("callers need a certificate of http.tls.client_ca, and nothing else (access.required)");
    } else {
        tracing::warn!(
            http = %config.http.listen,
            "ANYBODY WHO REACHES THIS ADDRESS MAY SCORE CUSTOMERS, READ AND ERASE WHAT IS ON RECORD: set access.required, or listen on 127.0.0.1"
        );
    }
    Ok(None)
}

fn open_ledger(config: &Config) -> anyhow::Result<Option<Ledger>> {
    if config.ledger.promise == Promise::Off {
        tracing::warn!("the ledger is off: no decision is recorded");
        return Ok(None);
    }
    let digest = config.digest();
    let ledger = Ledger::open(&config.ledger, &digest, SystemTime::now).map_err(|error| {
        let is_damage = error.is_damage();
        let error = anyhow::Error::from(error);
        if !is_damage {
            return error;
        }
        let dir = config.ledger.dir.display();
        error.context(format!(
            "the ledger in {dir} is damaged: `mainstay ledger restore FILE` puts a backup in its place and keeps what stands there"
        ))
    })?;
    ledger.act(Action::Start { version: env!("CARGO_PKG_VERSION"), config_digest: digest })?;
    tracing::info!(dir = %config.ledger.dir.display(), records = ledger.state().seq(), promise = ?config.ledger.promise, "ledger open");
    Ok(Some(ledger))
}

/// What the engine is made of, as the configuration says, but for what asks for new models.
pub fn setup(
    config: &Config,
    runtime: &'static Runtime,
    metrics: Arc<Metrics>,
    ledger: Option<Ledger>,
) -> anyhow::Result<Setup> {
    let options = LoadOptions {
        // Where ONNX Runtime answers, a lane for every thread that may score at the same time: workers, batches, the shadow, replays.
        lanes: config.server.workers() + config.limits.batches_max + 1 + http::LONG_MAX,
        row_p99_us_max: config.models.probe_row_p99_us_max,
        evaluator: config.models.evaluator,
        turns: Some(TurnOptions {
            threads: config.server.workers(),
            inline_row_us_max: config.models.inline_row_us_max,
            wait_ms_max: config.models.turn_wait_ms_max,
            // Of the places for requests in flight the customers of other models are to have most.
            waiting_max: config.limits.in_flight_max.div_ceil(4),
            nice: config.limits.nice(BATCH_NICE),
        }),
    };
    let entry = |entry: &Serve| -> Result<Entry, PolicyError> {
        let policy = Arc::new(read_policy(entry.policy.as_deref().unwrap_or(&config.models.policy))?);
        Ok(Entry { name: entry.name.clone(), version: entry.version.clone(), policy })
    };
    Ok(Setup {
        shelf: Shelf { runtime, dir: config.models.dir.clone(), options, counts: config.insight.enabled },
        entries: config.models.serve.iter().map(entry).collect::<Result<_, _>>()?,
        resume: config.models.resume,
        ledger,
        options: config.rollouts.clone(),
        insight: config.insight.clone(),
        retraining: None,
        metrics,
        clock: SystemTime::now,
        read: http::read_record,
    })
}

/// When new models are asked for, and what sends that.
fn asking(config: &Config) -> Result<(RetrainingOptions, Sender), webhook::Error> {
    let options = config.retraining.clone();
    let given = std::env::var(SECRET_VARIABLE).ok();
    let sender = Sender::open((&options.url, &options.ca), &options.secret_file, given, options.timeout())?;
    Ok((options, sender))
}

fn tell(serving: &Serving) {
    let (model, policy, probe) = (&serving.model, &serving.policy, serving.model.probe());
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
        evaluator = model.evaluator(),
        evaluator_reason = model.evaluator_reason(),
        scoring_reason = model.turns_reason(),
        "model in service"
    );
}

/// How many connections there may be of those `wanted`, so that descriptors are left for the rest. Before that the process is allowed as many
/// files as it may allow itself: what it is started with is often meant for programs of another kind.
fn connections(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let before = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, ..before });
    // None is no limit.
    let Some(descriptors) = getrlimit(Resource::Nofile).current else { return wanted };
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let possible = descriptors - DESCRIPTORS_KEPT.min(descriptors / 2);
    if possible < wanted {
        tracing::warn!(
            descriptors,
            connections_max = possible,
            "fewer connections than server.connections_max: allow the service more open files (ulimit -n, LimitNOFILE)"
        );
    }
    wanted.min(possible)
}

fn bind(key: &str, address: SocketAddr, tls: Option<Arc<Tls>>) -> anyhow::Result<Listener> {
    let socket = TcpListener::bind(address).with_context(|| {
        format!("cannot listen on {address}; stop what listens there, or set {key} to another address")
    })?;
    Ok(Listener { socket, tls })
}
