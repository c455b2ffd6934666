//! What becomes of a slow model, and of a quick one beside it: a dense network of some milliseconds, one by one on the threads of
//! requests and in turns on threads of its own, by the real server over TCP. Prints a table; exit code 1 when a claim falls short.
//!
//!     cargo bench --bench slow -- measure [--width 4800] [--seconds 5] [--pairs 7]

#[path = "../customers/mod.rs"]
mod customers;
#[path = "../dense/mod.rs"]
mod dense;
#[allow(dead_code, reason = "nothing here goes on after an error")]
#[path = "../swap/http.rs"]
mod http;

use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mainstay::config::{Config, Sources};
use mainstay::model::{Choice, LoadOptions, Model, Runtime};
use serde_json::Value;
use tokio::sync::Semaphore;

use http::{Connection, post};

const QUICK: &str = "/v1/models/telco-churn/score";
const SLOW: &str = "/v1/models/dense-churn/score";
const BASE: &str = "models/telco-churn/1.0.0";
/// Callers of the slow model; each asks again when it has its answer.
const CALLERS: usize = 64;
/// Connections of those who ask whatever becomes of others, and how many times as much as can be answered they ask.
const CROWD: usize = 1_024;
const OVERLOAD: f64 = 3.0;
/// Requests a second to the quick model, open, and the connections for them.
const QUICK_RATE: u64 = 1_000;
const QUICK_CALLERS: usize = 32;
/// How far the callers of the quick model go before all others.
const CALLER_NICE: i32 = -15;
/// How often what is due is given out.
const TURN: Duration = Duration::from_micros(200);

// What is claimed.
const GAIN_MIN: f64 = 4.0;
const QUICK_P99_MAX: f64 = 1.2;
const QUICK_ANSWERED_MIN: f64 = 0.99;
const GOODPUT_MIN: f64 = 0.9;
/// Of those who ask for too much: how late the answers and the refusals are, by when they were due. An answer may wait for
/// `models.turn_wait_ms_max` (100), and then for the run that it is in.
const ANSWERED_P99_MAX_MS: f64 = 250.0;
const REFUSED_P99_MAX_MS: f64 = 50.0;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if words.first().map(String::as_str) != Some("measure") {
        println!("slow: nothing to do by itself; `make slow` runs it");
        return ExitCode::SUCCESS;
    }
    let number = |name: &str, usual: usize| {
        let at = words.iter().position(|word| word == name);
        at.and_then(|at| words.get(at + 1)).map_or(usual, |text| text.parse().expect("a number"))
    };
    let (width, pairs) = (number("--width", 4_800), number("--pairs", 7));
    let time = Duration::from_secs(number("--seconds", 5) as u64);

    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    dense::make(place.path(), Path::new(BASE), "dense-churn", "1.0.0", 2, width);
    std::fs::create_dir_all(place.path().join("telco-churn")).expect("a directory");
    let base = std::fs::canonicalize(BASE).expect("a bundle");
    std::os::unix::fs::symlink(base, place.path().join("telco-churn/1.0.0")).expect("a link");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let held = tokio::task::LocalSet::new().block_on(&runtime, measure(place.path(), pairs, time));
    println!("{}", if held { "every claim holds" } else { "a claim fell short" });
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn measure(models: &Path, pairs: usize, time: Duration) -> bool {
    let bodies: Arc<[String]> = bodies().into();
    let inline = Server::start(models, "models.inline_row_us_max=60000000");
    let server = Server::start(models, "models.inline_row_us_max=250");
    // Elsewhere callers are on other machines: here they are not to wait for a processor because of what they ask for. Without the right to
    // that they do, and it is counted as the service's. Only now, as servers would inherit it.
    let before = rustix::process::setpriority_process(Some(rustix::thread::gettid()), CALLER_NICE);
    println!(
        "callers of the quick model {}\n",
        if before.is_ok() { "go before all others" } else { "compete with all others" }
    );
    let alone = Load::closed(inline.address, SLOW, &bodies, CALLERS).run(time).await;
    drop(inline);

    let model = server.get("/v1/models/dense-churn").await;
    println!("dense-churn {}", model["scoring"]["reason"].as_str().unwrap_or_default());
    println!("  {}\n", model["scoring"]);
    let turns = Load::closed(server.address, SLOW, &bodies, CALLERS).run(time).await;
    let rate = (OVERLOAD * turns.answered() / time.as_secs_f64()) as u64;
    let crowd = Load::open(server.address, SLOW, &bodies, CROWD, rate).run(time).await;
    println!(
        "{:<34}{:>10}{:>10}{:>10}{:>10}{:>16}{:>8}",
        "dense-churn", "answers/s", "refused/s", "p50 ms", "p99 ms", "refused p99 ms", "errors"
    );
    for (name, seen) in [
        (format!("one by one, {CALLERS} callers"), &alone),
        (format!("in turns, {CALLERS} callers"), &turns),
        (format!("in turns, {rate}/s asked, open"), &crowd),
    ] {
        println!(
            "{name:<34}{:>10.0}{:>10.0}{:>10.2}{:>10.2}{:>16.2}{:>8}",
            seen.answered() / time.as_secs_f64(),
            seen.refused() / time.as_secs_f64(),
            quantile_ms(&seen.answers_us, 0.5),
            quantile_ms(&seen.answers_us, 0.99),
            quantile_ms(&seen.refusals_us, 0.99),
            seen.errors
        );
    }

    println!("\ntelco-churn beside it, {QUICK_RATE}/s, open: p50 and p99 in ms, by pairs");
    let (mut ratios, mut not_answered) = (Vec::new(), 0.0);
    // Answers a second of the quick model, the least of all runs.
    let mut least = f64::INFINITY;
    let mut errors = alone.errors + turns.errors + crowd.errors;
    for pair in 0..pairs {
        let quiet = Load::open(server.address, QUICK, &bodies, QUICK_CALLERS, QUICK_RATE).run(time).await;
        let busy = Crowd::begin(server.address, bodies.clone());
        let loud = Load::open(server.address, QUICK, &bodies, QUICK_CALLERS, QUICK_RATE).run(time).await;
        let busy = busy.end();
        let [quiet_p99, loud_p99] = [&quiet, &loud].map(|seen| quantile_ms(&seen.answers_us, 0.99));
        let ratio = loud_p99 / quiet_p99;
        println!(
            "  {pair}: {:.3} {quiet_p99:.3} alone, {:.3} {loud_p99:.3} beside {:.0} slow answers/s: {ratio:.2}",
            quantile_ms(&quiet.answers_us, 0.5),
            quantile_ms(&loud.answers_us, 0.5),
            busy.answered() / time.as_secs_f64(),
        );
        ratios.push(ratio);
        for seen in [&quiet, &loud] {
            not_answered += seen.refused() + seen.errors as f64;
            least = least.min(seen.answered() / time.as_secs_f64());
        }
        errors += busy.errors;
    }
    ratios.sort_by(f64::total_cmp);
    println!();
    [
        claim(
            turns.answered() / alone.answered(),
            ">=",
            GAIN_MIN,
            "answers in turns, as a multiple of those one by one",
        ),
        claim(
            crowd.answered() / turns.answered(),
            ">=",
            GOODPUT_MIN,
            "answers where three times as much is asked, as a share of the most",
        ),
        claim(
            quantile_ms(&crowd.answers_us, 0.99),
            "<=",
            ANSWERED_P99_MAX_MS,
            "ms to an answer from when it was due, p99, where three times as much is asked",
        ),
        // Of no refusal at all there is no quantile, and the claim falls short.
        claim(
            quantile_ms(&crowd.refusals_us, 0.99),
            "<=",
            REFUSED_P99_MAX_MS,
            "ms to a refusal (503) from when it was due, p99: whoever comes when too many wait is told at once",
        ),
        claim(errors as f64, "<=", 0.0, "requests to the slow model that were neither answered nor refused"),
        claim(
            not_answered,
            "<=",
            0.0,
            "requests to the quick model that were not answered with 200, alone or beside it",
        ),
        claim(
            least / QUICK_RATE as f64,
            ">=",
            QUICK_ANSWERED_MIN,
            "answers of the quick model, as a share of what was due, the least of all runs",
        ),
        claim(
            ratios[ratios.len() / 2],
            "<=",
            QUICK_P99_MAX,
            "p99 of the quick model beside it, as a multiple of that alone, median of the pairs",
        ),
    ]
    .iter()
    .all(|holds| *holds)
}

fn claim(figure: f64, relation: &str, bound: f64, what: &str) -> bool {
    let holds = if relation == ">=" { figure >= bound } else { figure <= bound };
    println!("{}  {figure:.2} {relation} {bound}: {what}", if holds { "PASS" } else { "FAIL" });
    holds
}

/// Bodies of many customers, legal for both models: they have the same dictionary.
fn bodies() -> Vec<String> {
    let config = Config::load(&Sources::of_process(None, Vec::new())).expect("a legal configuration");
    let runtime = Runtime::load(&config.runtime.library).expect("scripts/fetch-onnxruntime.sh was run");
    let options = LoadOptions { lanes: 1, row_p99_us_max: 1_000_000, evaluator: Choice::Auto, turns: None };
    let model = Model::load(runtime, Path::new(BASE), options).expect("a legal bundle");
    let bodies = customers::bodies(&customers::records(&model));
    bodies.into_iter().map(|body| String::from_utf8(body).expect("JSON")).collect()
}

/// A server of its own, which ends with this.
struct Server {
    process: Child,
    address: SocketAddr,
    _ledger: tempfile::TempDir,
}

impl Server {
    fn start(models: &Path, setting: &str) -> Self {
        let ledger = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let serve = "models.serve=[{ name = \"telco-churn\", version = \"1.0.0\" }, { name = \"dense-churn\", version = \"1.0.0\" }]";
        let (models, dir) =
            (format!("models.dir={}", models.display()), format!("ledger.dir={}", ledger.path().display()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.arg("serve").stderr(Stdio::piped());
        for setting in [
            "http.listen=127.0.0.1:0",
            "admin.listen=127.0.0.1:0",
            "limits.batches_max=1",
            serve,
            &models,
            &dir,
            setting,
        ] {
            command.args(["--set", setting]);
        }
        let mut process = command.spawn().expect("a server");
        let mut lines = BufReader::new(process.stderr.take().expect("a pipe")).lines();
        let mut told = Vec::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else { panic!("the server did not start:\n{}", told.join("\n")) };
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            if event["message"] == "ready" || event["fields"]["message"] == "ready" {
                let http = event["http"].as_str().or(event["fields"]["http"].as_str()).expect("an address");
                break http.parse().expect("an address");
            }
            told.push(line);
        };
        // A full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, address, _ledger: ledger }
    }

    async fn get(&self, path: &str) -> Value {
        let mut connection = Connection::open(self.address).await.expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nhost: slow\r\n\r\n");
        let (_, body) = connection.ask(request.as_bytes()).await.expect("an answer");
        serde_json::from_slice(body).expect("JSON")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Callers of one path.
struct Load {
    address: SocketAddr,
    requests: Rc<Vec<Vec<u8>>>,
    callers: usize,
    /// Requests a second, whatever becomes of those before; with none each caller asks again at once.
    rate: Option<u64>,
}

/// Callers of the slow model on a thread of their own: their answers come many at a time, and nobody else is to wait behind those.
struct Crowd {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Crowd {
    fn begin(address: SocketAddr, bodies: Arc<[String]>) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 0);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let load = Load::closed(address, SLOW, &bodies, CALLERS);
                let connections = load.connect().await;
                load.until(connections, told).await
            })
        });
        Self { stop, thread }
    }

    fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a load")
    }
}

/// What they saw: how long it took to answers (200) and to refusals (503).
#[derive(Default)]
struct Seen {
    answers_us: Vec<u64>,
    refusals_us: Vec<u64>,
    /// Whatever else came: another status, or a connection that broke.
    errors: u64,
}

impl Load {
    fn closed(address: SocketAddr, path: &str, bodies: &[String], callers: usize) -> Self {
        let requests = Rc::new(bodies.iter().map(|body| post(path, "", body)).collect());
        Self { address, requests, callers, rate: None }
    }

    fn open(address: SocketAddr, path: &str, bodies: &[String], callers: usize, rate: u64) -> Self {
        Self { rate: Some(rate), ..Self::closed(address, path, bodies, callers) }
    }

    async fn run(self, time: Duration) -> Seen {
        let (stop, connections) = (Arc::<AtomicBool>::default(), self.connect().await);
        let load = tokio::task::spawn_local(self.until(connections, stop.clone()));
        tokio::time::sleep(time).await;
        stop.store(true, Ordering::Relaxed);
        load.await.expect("a load")
    }

    async fn connect(&self) -> Vec<Connection> {
        let mut connections = Vec::new();
        for _ in 0..self.callers {
            connections.push(Connection::open(self.address).await.expect("a connection"));
        }
        connections
    }

    /// Asks until it is told to stop. An open load counts from when a request was due.
    async fn until(self, connections: Vec<Connection>, stop: Arc<AtomicBool>) -> Seen {
        let (due, seen, taken) =
            (Arc::new(Semaphore::new(0)), Rc::new(RefCell::new(Seen::default())), Rc::new(Cell::new(0)));
        let began = Instant::now();
        let callers: Vec<_> = connections
            .into_iter()
            .map(|mut connection| {
                let (requests, rate, stop) = (self.requests.clone(), self.rate, stop.clone());
                let (due, seen, taken) = (due.clone(), seen.clone(), taken.clone());
                tokio::task::spawn_local(async move {
                    while !stop.load(Ordering::Relaxed) {
                        if rate.is_some() {
                            let Ok(permit) = due.acquire().await else { return };
                            permit.forget();
                        }
                        let number: u64 = taken.replace(taken.get() + 1);
                        let from = match rate {
                            Some(rate) => began + Duration::from_micros(number * 1_000_000 / rate),
                            None => Instant::now(),
                        };
                        let request = &requests[number as usize % requests.len()];
                        let status = connection.ask(request).await.map(|(status, _)| status);
                        let mut seen = seen.borrow_mut();
                        match status {
                            Ok(200) => seen.answers_us.push(from.elapsed().as_micros() as u64),
                            Ok(503) => seen.refusals_us.push(from.elapsed().as_micros() as u64),
                            Ok(_) => seen.errors += 1,
                            Err(_) => {
                                seen.errors += 1;
                                // On a broken connection nothing more can be asked.
                                return;
                            }
                        }
                    }
                })
            })
            .collect();
        if let Some(rate) = self.rate {
            let due = due.clone();
            std::thread::spawn(move || {
                let mut given = 0;
                while !due.is_closed() {
                    let now = began.elapsed().as_micros() as u64 * rate / 1_000_000 + 1;
                    due.add_permits((now - given) as usize);
                    given = now;
                    std::thread::sleep(TURN);
                }
            });
        }
        while !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        due.close();
        for caller in callers {
            let _ = caller.await;
        }
        seen.take()
    }
}

impl Seen {
    fn answered(&self) -> f64 {
        self.answers_us.len() as f64
    }

    fn refused(&self) -> f64 {
        self.refusals_us.len() as f64
    }
}

/// A quantile of `times_us`, in milliseconds; NaN of none.
fn quantile_ms(times_us: &[u64], share: f64) -> f64 {
    let mut times = times_us.to_vec();
    times.sort_unstable();
    times.get(((times.len().max(1) - 1) as f64 * share) as usize).map_or(f64::NAN, |us| *us as f64 / 1e3)
}
