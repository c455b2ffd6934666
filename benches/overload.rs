//! The load behind `make show-limit`: callers with a bounded pool of connections, as product backends have. Request n is due n / rate after the
//! start, whatever became of those before it, and its latency counts from then; one that gets no connection within the callers' patience is
//! given up, as a pool's own timeout does it. `scripts/show_limit.py` runs this; by itself it does nothing.

#[path = "swap/http.rs"]
mod http;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::{Connection, post};
use serde_json::{Value, json};
use tokio::sync::Notify;

const USAGE: &str =
    "usage: overload --http ADDRESS --bodies FILE [--rate N] [--connections N] [--seconds N] [--patience-ms N]

  Without --rate each connection asks again at once: what that gives is the peak.";
/// How often what is due is given out. To wait for less would take the processor from the server.
const TURN: Duration = Duration::from_millis(1);
/// An answer later than this is a failure.
const LATEST: Duration = Duration::from_secs(10);

/// What was asked for on the command line.
struct Asked(Vec<String>);

impl Asked {
    fn text(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|word| word == name)?;
        self.0.get(at + 1).map(String::as_str)
    }

    fn number(&self, name: &str, usual: u64) -> u64 {
        self.text(name)
            .map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name} {text}: expected a number")))
    }
}

/// What all connections share. Everything is on one thread.
struct Load {
    requests: Vec<Vec<u8>>,
    /// When what waits for a connection was due, the oldest first; nothing where each connection asks again at once.
    due: Option<RefCell<VecDeque<Instant>>>,
    patience: Duration,
    /// Told when something is due.
    bell: Notify,
    ended: Cell<bool>,
    next: Cell<usize>,
    answered: RefCell<Vec<Duration>>,
    refused: RefCell<Vec<Duration>>,
    given_up: Cell<u64>,
    failed: RefCell<Vec<String>>,
}

impl Load {
    /// When the next request that is still of use was due.
    async fn next_due(&self) -> Option<Instant> {
        let Some(queue) = &self.due else { return (!self.ended.get()).then(Instant::now) };
        loop {
            while let Some(due) = queue.borrow_mut().pop_front() {
                if due.elapsed() < self.patience {
                    return Some(due);
                }
                self.given_up.set(self.given_up.get() + 1);
            }
            if self.ended.get() {
                return None;
            }
            self.bell.notified().await;
        }
    }

    async fn run(&self, mut connection: Connection) {
        while let Some(due) = self.next_due().await {
            let request = &self.requests[self.next.replace(self.next.get() + 1) % self.requests.len()];
            let answer = tokio::time::timeout(LATEST, connection.ask(request)).await;
            let taken = due.elapsed();
            match answer.map(|answer| answer.map(|(status, _)| status)) {
                Ok(Ok(200)) => self.answered.borrow_mut().push(taken),
                Ok(Ok(503)) => self.refused.borrow_mut().push(taken),
                other => {
                    self.failed.borrow_mut().push(format!("{other:?}"));
                    if !matches!(other, Ok(Ok(_))) && connection.again().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Gives out what is due at `rate` a second until `end`.
    async fn give_out(&self, rate: u64, begun: Instant, seconds: u64) {
        let Some(queue) = &self.due else {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            self.ended.set(true);
            return;
        };
        let mut turns = tokio::time::interval(TURN);
        let mut given = 0;
        while given < rate * seconds {
            turns.tick().await;
            let due = ((begun.elapsed().as_secs_f64() * rate as f64) as u64).min(rate * seconds);
            for number in given..due {
                queue.borrow_mut().push_back(begun + Duration::from_secs_f64(number as f64 / rate as f64));
                self.bell.notify_one();
            }
            given = due;
            // What nobody will ask any more must not grow.
            while queue.borrow().front().is_some_and(|due| due.elapsed() >= self.patience) {
                queue.borrow_mut().pop_front();
                self.given_up.set(self.given_up.get() + 1);
            }
        }
        self.ended.set(true);
        self.bell.notify_waiters();
    }

    fn report(&self, seconds: f64) -> Value {
        let per_sec = |count: usize| (count as f64 / seconds).round();
        let failed = self.failed.borrow();
        json!({
            "answered_per_sec": per_sec(self.answered.borrow().len()),
            "refused_per_sec": per_sec(self.refused.borrow().len()),
            "given_up_per_sec": per_sec(self.given_up.get() as usize),
            "answered_ms": percentiles(&mut self.answered.borrow_mut()),
            "refused_ms": percentiles(&mut self.refused.borrow_mut()),
            "failed": failed.len(),
            "failures": failed.iter().take(3).collect::<Vec<_>>(),
        })
    }
}

/// Percentiles in milliseconds, `null` of nothing.
fn percentiles(times: &mut [Duration]) -> Value {
    times.sort_unstable();
    let at = |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().wrapping_sub(1)));
    let ms = |share| at(share).map(|time| (time.as_secs_f64() * 1e5).round() / 100.0);
    json!({"p50": ms(0.5), "p99": ms(0.99), "p999": ms(0.999), "max": ms(1.0)})
}

fn main() {
    let asked = Asked(std::env::args().skip(1).filter(|word| word != "--bench").collect());
    let Some(address) = asked.text("--http") else {
        // `cargo bench` runs every bench; this one needs a server.
        println!("overload: nothing to do by itself; `make show-limit` runs it\n{USAGE}");
        return;
    };
    let address: SocketAddr = address.parse().expect("--http: an address and a port");
    let bodies = std::fs::read_to_string(asked.text("--bodies").expect(USAGE)).expect("--bodies: a file");
    let requests = bodies.lines().map(|body| post("/v1/score", "", body)).collect();
    let (rate, seconds) = (asked.number("--rate", 0), asked.number("--seconds", 10));
    let load = Rc::new(Load {
        requests,
        due: (rate > 0).then(RefCell::default),
        patience: Duration::from_millis(asked.number("--patience-ms", 25)),
        bell: Notify::new(),
        ended: Cell::new(false),
        next: Cell::new(0),
        answered: RefCell::default(),
        refused: RefCell::default(),
        given_up: Cell::new(0),
        failed: RefCell::default(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let set = tokio::task::LocalSet::new();
    let report = set.block_on(&runtime, async {
        let mut tasks = Vec::new();
        let mut connections = Vec::new();
        for _ in 0..asked.number("--connections", 512) {
            connections.push(Connection::open(address).await.expect("a connection"));
        }
        let begun = Instant::now();
        for connection in connections {
            let load = load.clone();
            tasks.push(tokio::task::spawn_local(async move { load.run(connection).await }));
        }
        load.give_out(rate, begun, seconds).await;
        let seconds = begun.elapsed().as_secs_f64();
        for task in tasks {
            task.await.expect("a connection's task");
        }
        load.report(seconds)
    });
    println!("{report}");
}
