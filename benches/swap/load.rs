//! The open load: request n is due n / rate after the start, whatever became of those before it, and its latency counts from then.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use crate::http::{Connection, post};
use crate::report::{self, Sample};

/// How often what is due is given out. A timer of the runtime has turns of 1 ms, which would be all that one sees.
const TURN: Duration = Duration::from_micros(200);
/// An answer later than this is an error.
const PATIENCE: Duration = Duration::from_secs(10);
/// Whose digits are replaced by the number of the customer.
const CUSTOMER: &str = "\"customer_id\":\"C-";
const DIGITS: usize = 9;

/// What an answer says of itself.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    score: &'a RawValue,
    #[serde(borrow)]
    model: Named<'a>,
}

#[derive(Deserialize)]
struct Named<'a> {
    version: &'a str,
}

/// A version with the score of each row, as the server writes it; none where it cannot give one.
struct Known {
    version: String,
    scores: Vec<Option<String>>,
}

/// What came back, told apart.
pub(crate) enum Found {
    /// A score that belongs to the version of this place.
    Good(u8),
    /// A score that does not, or a version that nobody knows.
    Wrong(String),
    /// No decision.
    Failed(String),
}

/// A load on one server.
pub(crate) struct Load {
    address: SocketAddr,
    requests: Vec<Vec<u8>>,
    rate: u64,
    customers: u64,
    known: Vec<Known>,
    connections: RefCell<Vec<Connection>>,
    began: Cell<Instant>,
    began_unix: Cell<Duration>,
    due: Arc<Semaphore>,
    given: Arc<AtomicU64>,
    ending: Arc<AtomicBool>,
    taken: Cell<u64>,
    done: Cell<u64>,
    samples: RefCell<Vec<Sample>>,
    others: RefCell<BTreeMap<String, u64>>,
    marks: RefCell<Vec<(String, u64)>>,
    /// The one version that can answer now, and how many swaps there were; none while one is on its way.
    settled: RefCell<Option<(u64, u8)>>,
    stale: Cell<u64>,
}

impl Load {
    /// A load of `rate` a second with the features of `rows`, under the names of `customers` customers.
    pub(crate) fn new(address: SocketAddr, rows: &[&str], rate: u64, customers: u64) -> Self {
        let numbered = |row: &&str| {
            let (before, after) = row.split_once(CUSTOMER).expect("a customer called C-");
            let (_, after) = after.split_once('"').expect("the end of its name");
            let body = format!("{before}{CUSTOMER}{:0DIGITS$}\"{after}", 0);
            post("/v1/models/telco-churn/score", "", &body)
        };
        let now = Instant::now();
        Self {
            address,
            requests: rows.iter().map(numbered).collect(),
            rate,
            customers,
            known: Vec::new(),
            connections: RefCell::default(),
            began: Cell::new(now),
            began_unix: Cell::default(),
            due: Arc::new(Semaphore::new(0)),
            given: Arc::default(),
            ending: Arc::default(),
            taken: Cell::new(0),
            done: Cell::new(0),
            samples: RefCell::default(),
            others: RefCell::default(),
            marks: RefCell::new(vec![("start".to_owned(), 0)]),
            settled: RefCell::default(),
            stale: Cell::new(0),
        }
    }

    /// Asks both arms for every row: the versions with how many rows each could score, and how many rows both score differently.
    pub(crate) async fn learn(&mut self) -> (Value, u64) {
        let mut connection = Connection::open(self.address).await.expect("a server");
        for arm in ["champion", "challenger"] {
            let mut known = Known { version: String::new(), scores: Vec::new() };
            for request in &self.requests {
                let text = String::from_utf8_lossy(request);
                let (head, rest) = text.split_once("\r\n").expect("a request");
                let request = format!("{head}\r\nx-mainstay-arm: {arm}\r\n{rest}");
                let (status, body) = connection.ask(request.as_bytes()).await.expect("an answer");
                let told = String::from_utf8_lossy(body);
                // A challenger that is made to fail at some rows may; what its name stands on must have a score here.
                let score = (status == 200).then(|| {
                    let answer: Answer = serde_json::from_slice(body).unwrap_or_else(|_| panic!("no decision: {told}"));
                    known.version = answer.model.version.to_owned();
                    answer.score.get().to_owned()
                });
                assert!(score.is_some() || arm == "challenger", "the champion answers {status}: {told}");
                known.scores.push(score);
            }
            self.known.push(known);
        }
        let [one, other] = &self.known[..] else { panic!("two arms") };
        assert!(one.version != other.version, "the other arm answers with {} too", one.version);
        let differing = one.scores.iter().zip(&other.scores).filter(|(one, other)| one != other).count();
        let scored = |known: &Known| (known.version.clone(), known.scores.iter().flatten().count().into());
        (Value::Object(self.known.iter().map(scored).collect()), differing as u64)
    }

    /// Opens the connections.
    pub(crate) async fn open_all(&mut self, count: u64) {
        for _ in 0..count {
            let connection = Connection::open(self.address).await.expect("a connection");
            self.connections.borrow_mut().push(connection);
        }
    }

    /// Begins: at its rate, or with as much as the connections can do.
    pub(crate) fn begin(self: &Rc<Self>, saturate: bool) -> Instant {
        let began = Instant::now();
        self.began.set(began);
        self.began_unix.set(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        for connection in self.connections.take() {
            tokio::task::spawn_local(self.clone().drive(connection));
        }
        let (due, given, ending, rate) = (self.due.clone(), self.given.clone(), self.ending.clone(), self.rate);
        if saturate {
            due.add_permits(usize::MAX >> 4);
            return began;
        }
        std::thread::spawn(move || {
            while !ending.load(Ordering::Acquire) {
                let now = (began.elapsed().as_micros() as u64) * rate / 1_000_000 + 1;
                let more = now - given.swap(now, Ordering::AcqRel);
                due.add_permits(more as usize);
                std::thread::sleep(TURN);
            }
        });
        began
    }

    async fn drive(self: Rc<Self>, mut connection: Connection) {
        let mut request = Vec::new();
        while let Ok(permit) = self.due.acquire().await {
            permit.forget();
            let number = self.taken.get();
            self.taken.set(number + 1);
            let due_us = number * 1_000_000 / self.rate;
            let customer = number % self.customers;
            let row = (customer % self.requests.len() as u64) as usize;
            self.number(&mut request, row, customer);
            let before = *self.settled.borrow();
            let found = match tokio::time::timeout(PATIENCE, connection.ask(&request)).await {
                Ok(Ok((200, body))) => self.judge(row, body),
                Ok(Ok((status, body))) => Found::Failed(format!("{status} {}", code(body))),
                Ok(Err(error)) => Found::Failed(error.kind().to_string()),
                Err(_) => Found::Failed("no answer in time".to_owned()),
            };
            let now_us = self.began.get().elapsed().as_micros() as u64;
            let broken =
                matches!(&found, Found::Failed(text) if !text.starts_with(|first: char| first.is_ascii_digit()));
            if let (Some((swap, version)), Found::Good(given)) = (before, &found) {
                let is_settled = self.settled.borrow().is_some_and(|(now, _)| now == swap);
                self.stale.set(self.stale.get() + u64::from(is_settled && version != *given));
            }
            self.note(due_us, now_us, found);
            if broken && connection.again().await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// The request of a row under the name of a customer.
    fn number(&self, request: &mut Vec<u8>, row: usize, customer: u64) {
        request.clear();
        request.extend_from_slice(&self.requests[row]);
        let marker = CUSTOMER.as_bytes();
        let at = request.windows(marker.len()).position(|bytes| bytes == marker).expect("a customer") + marker.len();
        request[at..at + DIGITS].copy_from_slice(format!("{customer:0DIGITS$}").as_bytes());
    }

    fn judge(&self, row: usize, body: &[u8]) -> Found {
        let Ok(answer) = serde_json::from_slice::<Answer>(body) else {
            return Found::Failed("200 without a decision".to_owned());
        };
        let (version, score) = (answer.model.version, answer.score.get());
        let Some(at) = self.known.iter().position(|known| known.version == version) else {
            return Found::Wrong(format!("row {row}: version {version}"));
        };
        match &self.known[at].scores[row] {
            Some(expected) if expected == score => Found::Good(at as u8),
            expected => Found::Wrong(format!("row {row}: {version} answers {score}, and not {expected:?}")),
        }
    }

    fn note(&self, due_us: u64, now_us: u64, found: Found) {
        let version = match found {
            Found::Good(version) => version,
            Found::Wrong(text) => self.other(report::WRONG, text),
            Found::Failed(text) => self.other(report::FAILED, text),
        };
        self.samples.borrow_mut().push(Sample { due_us, done_us: now_us, version });
        self.done.set(self.done.get() + 1);
    }

    fn other(&self, kind: u8, text: String) -> u8 {
        let mut others = self.others.borrow_mut();
        // Each wrong score has a text of its own: some are enough.
        if kind == report::FAILED || others.len() < 100 {
            *others.entry(text).or_default() += 1;
        }
        kind
    }

    /// Answers so far.
    pub(crate) fn answered(&self) -> u64 {
        self.done.get()
    }

    /// Begins a new part of the report.
    pub(crate) fn mark(&self, name: &str) {
        self.marks.borrow_mut().push((name.to_owned(), self.began.get().elapsed().as_micros() as u64));
    }

    /// From now on only `version` answers, or, with none, one of both.
    pub(crate) fn settle(&self, swap: u64, version: Option<&str>) {
        let place = version.and_then(|version| self.known.iter().position(|known| known.version == version));
        self.settled.replace(place.map(|at| (swap, at as u8)));
    }

    /// Gives out no more, and waits for what is due.
    pub(crate) async fn end(&self) {
        self.ending.store(true, Ordering::Release);
        tokio::time::sleep(TURN * 5).await;
        let end = Instant::now() + 2 * PATIENCE;
        while self.given.load(Ordering::Acquire) > self.done.get() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.due.close();
    }

    /// Everything that was seen.
    pub(crate) fn report(&self) -> Value {
        let names: Vec<&str> = self.known.iter().map(|known| known.version.as_str()).collect();
        let (samples, marks, others) = (self.samples.borrow(), self.marks.borrow(), self.others.borrow());
        let mut told = report::parts(&samples, &marks, &names, self.began_unix.get());
        let unanswered = self.given.load(Ordering::Acquire).saturating_sub(self.done.get());
        for (name, value) in [("unanswered", unanswered), ("stale", self.stale.get())] {
            told[name] = value.into();
        }
        told["others"] = others.iter().map(|(text, count)| (text.clone(), Value::from(*count))).collect();
        told
    }
}

/// The code of a problem document.
fn code(body: &[u8]) -> String {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    problem["code"].as_str().unwrap_or("?").to_owned()
}
