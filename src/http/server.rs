//! A listener with its threads: one that accepts, and workers that each run a runtime of their own, so that a connection
//! stays on one core from its first byte to its last, its TLS handshake included. Connections go to the worker that has the fewest.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream as Socket;
use tokio::sync::{mpsc, watch};
use tokio_rustls::server::TlsStream;

use super::admission;
use super::handshakes::Handshakes;
use super::preface::Version;
use super::protocols::Protocols;
use super::tls::{HTTP2, Tls};
use crate::engine;
use crate::telemetry::Metrics;

/// Connections that may wait for one worker to take them.
const HANDOVER_MAX: usize = 1_024;
/// Connections that may wait to be accepted, where the system allows so many: the usual 128 are overrun by callers that come together, and who
/// finds no place comes again after a second of silence.
const BACKLOG: i32 = 4_096;
/// How long to wait when no descriptor is left for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How connections are served.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Worker threads; 0 is one for each core.
    pub workers: usize,
    /// Open connections; one more is closed at once.
    pub connections_max: usize,
    /// How long a TLS handshake may take, in milliseconds.
    pub handshake_timeout_ms: u64,
    /// TLS handshakes of one worker at a time; with more the slowest gives way.
    pub handshakes_max: usize,
    /// How long a request's head may take to arrive and a connection may stay idle, in milliseconds.
    pub head_timeout_ms: u64,
    /// The largest head of a request, in bytes.
    pub head_bytes_max: usize,
    /// How long a caller may leave what was sent to it without a sign of life, in milliseconds; then its connection is closed.
    pub unread_timeout_ms: u32,
    /// HTTP/2 streams of one connection at a time.
    pub streams_max: u32,
    /// How long requests may wait in a worker, and for their records, in milliseconds, before some are refused; 0 never refuses.
    pub queue_target_ms: u64,
}

impl Options {
    /// Every value that is out of its range, as (key, sentence).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        for (key, value, min, max) in [
            ("workers", self.workers, 0, 1_024),
            ("connections_max", self.connections_max, 1, 1 << 20),
            ("handshake_timeout_ms", self.handshake_timeout_ms as usize, 1, 3_600_000),
            ("handshakes_max", self.handshakes_max, 1, 65_536),
            ("head_timeout_ms", self.head_timeout_ms as usize, 1, 3_600_000),
            // Less than 8 KiB is more than hyper can promise.
            ("head_bytes_max", self.head_bytes_max, 8_192, 1 << 20),
            ("unread_timeout_ms", self.unread_timeout_ms as usize, 1, 3_600_000),
            ("streams_max", self.streams_max as usize, 1, 65_536),
            ("queue_target_ms", self.queue_target_ms as usize, 0, 60_000),
        ] {
            if !(min..=max).contains(&value) {
                problems.push((key, format!("expected {min} to {max}")));
            }
        }
        problems
    }

    /// The number of worker threads.
    pub fn workers(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        if self.workers == 0 { cores() } else { self.workers }
    }
}

/// A bound socket, and whether what is spoken on it is encrypted.
#[derive(Debug)]
pub struct Listener {
    /// Where callers come in.
    pub socket: TcpListener,
    /// Without it the plane is not encrypted.
    pub tls: Option<Arc<Tls>>,
}

/// A running listener.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    acceptor: JoinHandle<()>,
    workers: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves `router` on `listener` until it is stopped. `batches` is how many threads may do batches, or other work that waits, at a
    /// time, and `nice` how far they give way.
    ///
    /// Errors: a thread or a runtime that cannot be made.
    pub fn start(
        name: &str,
        Listener { socket: listener, tls }: Listener,
        router: Router,
        options: &Options,
        batches: usize,
        nice: Option<i32>,
        metrics: &Arc<Metrics>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        // Of a socket that listens already this changes the number alone.
        rustix::net::listen(&listener, BACKLOG)?;
        let (stop, stopped) = watch::channel(false);
        let mut handovers = Vec::new();
        let mut workers = Vec::new();
        for number in 0..options.workers() {
            let (sender, receiver) = mpsc::channel(HANDOVER_MAX);
            let load = Arc::new(AtomicUsize::new(0));
            handovers.push(Handover { sender, load });
            let (router, tls) = (router.clone(), tls.clone());
            let worker = Worker {
                number,
                router,
                options: options.clone(),
                tls,
                stopped: stopped.clone(),
                metrics: metrics.clone(),
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(batches.max(1))
                .thread_name("mainstay-batch")
                .on_thread_start(move || nice.into_iter().for_each(give_way))
                .build()?;
            let thread = std::thread::Builder::new().name(format!("mainstay-{name}-{number}"));
            workers.push(thread.spawn(move || runtime.block_on(worker.run(receiver)))?);
        }
        let acceptor = Acceptor {
            handovers,
            connections_max: options.connections_max,
            unread_timeout_ms: options.unread_timeout_ms,
            metrics: metrics.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name(format!("mainstay-{name}-accept"));
        let acceptor = thread.spawn(move || runtime.block_on(acceptor.run(listener, stopped)))?;
        Ok(Self { address, stop, acceptor, workers })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, lets requests in flight end, at most for `timeout`, and ends the threads. Whether all
    /// of them ended in time.
    pub fn stop(self, timeout: Duration) -> bool {
        // Every thread looks at this once more before it ends; a failed send means they have all ended.
        let _ = self.stop.send(true);
        let _ = self.acceptor.join();
        let deadline = std::time::Instant::now() + timeout;
        let mut all = true;
        for worker in self.workers {
            while !worker.is_finished() && std::time::Instant::now() < deadline {
                std::thread::park_timeout(Duration::from_millis(2));
            }
            all &= worker.is_finished() && worker.join().is_ok();
        }
        all
    }
}

/// Lets the calling thread give way, to those that answer single customers above all; by 0 it stays as it is. On failure it is just as fast.
pub fn give_way(nice: i32) {
    if nice > 0 {
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), nice);
    }
}

/// An open connection on its way to a worker. Dropping it, wherever that happens, takes it out of the count.
struct Connection {
    stream: TcpStream,
    _counted: Counted,
}

struct Counted {
    load: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl Counted {
    fn new(load: &Arc<AtomicUsize>, metrics: &Arc<Metrics>) -> Self {
        load.fetch_add(1, Ordering::Relaxed);
        metrics.connections().increment(1.0);
        Self { load: load.clone(), metrics: metrics.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
        self.metrics.connections().decrement(1.0);
    }
}

struct Handover {
    sender: mpsc::Sender<Connection>,
    load: Arc<AtomicUsize>,
}

struct Acceptor {
    handovers: Vec<Handover>,
    connections_max: usize,
    unread_timeout_ms: u32,
    metrics: Arc<Metrics>,
}

impl Acceptor {
    async fn run(self, listener: TcpListener, mut stopped: watch::Receiver<bool>) {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stopped.wait_for(|stopped| *stopped) => return,
            };
            match accepted.and_then(|(stream, _)| stream.into_std()) {
                Ok(stream) => self.hand_over(stream),
                // Whoever is being served will give something back. Until then every look would find the same connection in wait.
                Err(error) if is_exhausted(&error) => {
                    self.metrics.accept_failed();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                // One that was gone before it was taken.
                Err(_) => {}
            }
        }
    }

    fn hand_over(&self, stream: TcpStream) {
        let open: usize = self.handovers.iter().map(|handover| handover.load.load(Ordering::Relaxed)).sum();
        if open >= self.connections_max {
            return;
        }
        // A small answer must not wait for the acknowledgement of the one before it.
        let _ = stream.set_nodelay(true);
        // Who does not read what it asked for, or is not there any more: hyper would keep the answer without end.
        let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, self.unread_timeout_ms);
        if let Some(least) = self.handovers.iter().min_by_key(|handover| handover.load.load(Ordering::Relaxed)) {
            let connection = Connection { stream, _counted: Counted::new(&least.load, &self.metrics) };
            // A worker whose queue is full does not get to it in time anyhow: the connection is closed.
            let _ = least.sender.try_send(connection);
        }
    }
}

/// Whether there is nothing left to take a connection with: descriptors or memory.
fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| exhausted.iter().any(|errno| errno.raw_os_error() == code))
}

struct Worker {
    number: usize,
    router: Router,
    options: Options,
    tls: Option<Arc<Tls>>,
    stopped: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
}

impl Worker {
    async fn run(mut self, mut connections: mpsc::Receiver<Connection>) {
        let protocols = Arc::new(Protocols::new(&self.options, self.stopped.clone()));
        let handshake_timeout = Duration::from_millis(self.options.handshake_timeout_ms);
        let mut handshakes = self
            .tls
            .clone()
            .map(|tls| Handshakes::new(tls, handshake_timeout, self.options.handshakes_max, self.stopped.clone()));
        tokio::spawn(engine::courier());
        if self.options.queue_target_ms > 0 {
            let target = Duration::from_millis(self.options.queue_target_ms);
            tokio::spawn(admission::watch(self.number, target, self.metrics.clone()));
        }
        let graceful = GracefulShutdown::new();
        loop {
            let connection = tokio::select! {
                connection = next(&mut connections, handshakes.as_mut()) => connection,
                _ = self.stopped.wait_for(|stopped| *stopped) => None,
            };
            let Some(Connection { stream, _counted }) = connection else { break };
            let Ok(stream) = Socket::from_std(stream) else { continue };
            let service = TowerToHyperService::new(self.router.clone());
            let (protocols, watcher) = (protocols.clone(), graceful.watcher());
            if let Some(handshakes) = &mut handshakes {
                handshakes.begin(stream, |stream| serve_tls(stream, protocols, service, watcher, _counted));
                continue;
            }
            tokio::spawn(async move {
                protocols.serve(stream, None, service, watcher).await;
                drop(_counted);
            });
        }
        graceful.shutdown().await;
    }
}

/// The next connection, once there is room for its handshake.
async fn next(connections: &mut mpsc::Receiver<Connection>, handshakes: Option<&mut Handshakes>) -> Option<Connection> {
    if let Some(handshakes) = handshakes {
        handshakes.room().await;
    }
    connections.recv().await
}

/// Serves what the handshake agreed on, on a task of its own.
fn serve_tls(
    stream: TlsStream<Socket>,
    protocols: Arc<Protocols>,
    service: TowerToHyperService<Router>,
    watcher: Watcher,
    counted: Counted,
) {
    let http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
    let agreed = if http2 { Version::Http2 } else { Version::Http1 };
    tokio::spawn(async move {
        protocols.serve(stream, Some(agreed), service, watcher).await;
        drop(counted);
    });
}
