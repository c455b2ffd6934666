//! Turns: single rows of a slow model wait here for threads of its own, which take as many together as wait (never for more to come),
//! so that no request's thread is held and a run is shared. Which models are slow, `Plan` says by what the probe measured.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Error;
use super::evaluator::Evaluator;
use super::probe::Pace;
use super::uplift::Estimator;
use crate::domain::bundle::uplift::Uplifts;

/// Larger runs have to make a row cheaper by a tenth at least: all of them wait for the whole run.
const WORTHWHILE: f64 = 0.9;

/// When single rows wait for their turn, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Threads of one slow model. At least 1.
    pub threads: usize,
    /// The longest median time of a lone row, in microseconds, for which the thread of a request may be held.
    pub inline_row_us_max: u64,
    /// How long the last one in the queue may have to wait by what whole runs take now, in milliseconds.
    pub wait_ms_max: u64,
    /// Rows that may wait, whatever the pace. At least 1.
    pub waiting_max: usize,
    /// How far the threads give way to those that answer by other models, as a niceness.
    pub nice: i32,
}

/// How single rows of a slow model are scored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// Threads of its own.
    pub threads: usize,
    /// Rows of one run, at most.
    pub run_rows: usize,
    /// Rows that may wait while runs take what they took at the probe; one more is refused. While runs take longer it is fewer.
    pub waiting_max: usize,
    /// What such a run took at the probe, in microseconds.
    pub run_us: f64,
    /// How long the last one in the queue may have to wait, in microseconds.
    pub wait_us_max: f64,
    /// How far its threads give way, as a niceness.
    pub nice: i32,
}

impl Plan {
    /// How single rows are scored at this `pace`, and why; with none on the thread that asks.
    pub(super) fn choose(pace: &Pace, options: Option<Options>) -> (Option<Self>, String) {
        let Some(Options { threads, inline_row_us_max, wait_ms_max, waiting_max, nice }) = options else {
            return (None, "nobody else waits for the thread that asks".to_owned());
        };
        let alone = pace.runs_us[0];
        if alone <= inline_row_us_max as f64 {
            let why =
                format!("a row alone takes {alone:.1} us, and may take {inline_row_us_max} (models.inline_row_us_max)");
            return (None, why);
        }
        let (mut run_rows, mut row_us) = (1, alone);
        for (rows, run_us) in pace.runs() {
            let each = run_us / rows as f64;
            if pace.rows_alike && each < row_us * WORTHWHILE {
                (run_rows, row_us) = (rows, each);
            }
        }
        let mut plan = Self {
            threads,
            run_rows,
            waiting_max,
            run_us: row_us * run_rows as f64,
            wait_us_max: wait_ms_max as f64 * 1e3,
            nice,
        };
        plan.waiting_max = plan.in_time(plan.run_us);
        let gain = match run_rows {
            1 if !pace.rows_alike => {
                "the bits of a score depend on the rows beside it, so each is scored alone".to_owned()
            }
            1 => "more together gain nothing".to_owned(),
            rows => format!("{rows} together take {row_us:.1} us each"),
        };
        let why =
            format!("a row alone takes {alone:.1} us, over {inline_row_us_max} (models.inline_row_us_max); {gain}");
        (Some(plan), why)
    }

    /// Rows that may wait when whole runs take `run_us`, so that the last one has its turn in time: a run at least, or threads would wait
    /// for callers.
    fn in_time(&self, run_us: f64) -> usize {
        let rows = self.wait_us_max / run_us * (self.threads * self.run_rows) as f64;
        (rows as usize).min(self.waiting_max).max(self.run_rows)
    }
}

/// The threads of one slow model, and who waits for them. They end with it.
#[derive(Debug)]
pub(super) struct Turns {
    queue: Arc<Queue>,
    plan: Plan,
    evaluator: Arc<Evaluator>,
    threads: Vec<JoinHandle<()>>,
}

impl Turns {
    /// Starts the threads of `plan`, which score by `evaluator`, their own, and estimate uplifts where there is an `estimator`.
    ///
    /// Errors: a thread that cannot be made.
    pub(super) fn start(
        evaluator: Arc<Evaluator>,
        estimator: Option<Arc<Estimator>>,
        plan: Plan,
    ) -> Result<Self, Error> {
        let (queue, threads) = (Arc::new(Queue::new(plan)), Vec::with_capacity(plan.threads));
        let mut turns = Self { queue, plan, evaluator, threads };
        for number in 0..plan.threads {
            let (queue, evaluator, estimator) = (turns.queue.clone(), turns.evaluator.clone(), estimator.clone());
            let thread = std::thread::Builder::new().name(format!("mainstay-turn-{number}"));
            let thread = thread.spawn(move || {
                if plan.nice > 0 {
                    // On failure it is just as right.
                    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), plan.nice);
                }
                while let Some(rows) = queue.take() {
                    let (begun, is_whole) = (Instant::now(), rows.len() == plan.run_rows);
                    // Who waits for a run that panics is told by its reply being gone; the next ones have a thread all the same.
                    let _ = catch_unwind(AssertUnwindSafe(|| run(&evaluator, estimator.as_deref(), rows)));
                    if is_whole {
                        queue.took(begun.elapsed());
                    }
                }
            });
            let failed = |error| Error::Runtime(format!("no thread for a slow model: {error}"));
            turns.threads.push(thread.map_err(failed)?);
        }
        Ok(turns)
    }

    /// How it goes.
    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What it takes of memory beside what answers elsewhere, in bytes, where a session takes a graph of `graph_bytes`.
    pub(super) fn bytes(&self, graph_bytes: usize) -> usize {
        match &*self.evaluator {
            // There is one for all.
            Evaluator::Native(_) => 0,
            Evaluator::OnnxRuntime(_) => self.evaluator.bytes(graph_bytes),
        }
    }

    /// Errors: [`Error::Full`], where a row that came now would be refused.
    pub(super) fn room(&self) -> Result<(), Error> {
        self.queue.room().map(drop)
    }

    /// The raw probability of one `row`, once it had its turn, with its uplifts if they are wanted. When this is dropped before, the row is not scored any more.
    ///
    /// Errors: [`Error::Full`], at once; those of a run.
    pub(super) async fn run_one(&self, row: &[f32], wants_uplifts: bool) -> Result<Judged, Error> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(Row { values: row.into(), wants_uplifts, reply })?;
        answer.await.unwrap_or_else(|_| Err(Error::Runtime("a run ended without an answer".to_owned())))
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        self.queue.waiting().is_closed = true;
        self.queue.came.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The raw probability of a row, and what is estimated of interventions.
type Judged = (f32, Uplifts);

/// A row, and who waits for it.
#[derive(Debug)]
struct Row {
    values: Box<[f32]>,
    wants_uplifts: bool,
    reply: oneshot::Sender<Result<Judged, Error>>,
}

impl Row {
    fn is_gone(&self) -> bool {
        self.reply.is_closed()
    }

    fn answer(self, probability: Result<f32, Error>, estimator: Option<&Estimator>) {
        let uplifts = || match estimator {
            Some(estimator) if self.wants_uplifts => estimator.run(&self.values),
            _ => Ok(Uplifts::new()),
        };
        let judged = probability.and_then(|probability| Ok((probability, uplifts()?)));
        // Who asked may have gone meanwhile.
        let _ = self.reply.send(judged);
    }
}

#[derive(Debug)]
struct Queue {
    plan: Plan,
    waiting: Mutex<Waiting>,
    came: Condvar,
}

#[derive(Debug)]
struct Waiting {
    rows: VecDeque<Row>,
    is_closed: bool,
    /// What a whole run takes now, in microseconds: with neighbours on the processors it is more than at the probe.
    run_us: f64,
    /// How many were refused since it was last looked for rows of which nobody waits any more.
    refused: usize,
}

impl Queue {
    /// How much the last run tells of the next ones.
    const NEWS: f64 = 0.125;
    /// For so many rows that are looked at one has been refused: looking at all for each would be most of the work when many come.
    const LOOKED_AT: usize = 8;

    fn new(plan: Plan) -> Self {
        let waiting = Waiting { rows: VecDeque::new(), is_closed: false, run_us: plan.run_us, refused: 0 };
        Self { plan, waiting: Mutex::new(waiting), came: Condvar::new() }
    }

    /// Nothing that could be spoilt by a panic is done under the lock.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `row` behind those that wait, unless too many do.
    fn push(&self, row: Row) -> Result<(), Error> {
        let mut waiting = self.room()?;
        waiting.rows.push_back(row);
        drop(waiting);
        self.came.notify_one();
        Ok(())
    }

    /// Those that wait, where one more may. Errors: too many do.
    fn room(&self) -> Result<MutexGuard<'_, Waiting>, Error> {
        let mut waiting = self.waiting();
        let max = self.plan.in_time(waiting.run_us);
        if waiting.rows.len() >= max {
            // Whoever has gone keeps out an eighth of the queue at most.
            if waiting.refused >= waiting.rows.len() / Self::LOOKED_AT {
                waiting.refused = 0;
                waiting.rows.retain(|row| !row.is_gone());
            }
            if waiting.rows.len() >= max {
                waiting.refused += 1;
                return Err(Error::Full);
            }
        }
        Ok(waiting)
    }

    /// A whole run took so long.
    fn took(&self, run: Duration) {
        let mut waiting = self.waiting();
        waiting.run_us += Self::NEWS * (run.as_secs_f64() * 1e6 - waiting.run_us);
    }

    /// The next rows that somebody waits for, at most a run; waits for the first one, and for no other. `None` at the end.
    fn take(&self) -> Option<Vec<Row>> {
        let mut waiting = self.waiting();
        let mut taken = Vec::new();
        loop {
            while taken.len() < self.plan.run_rows {
                let Some(row) = waiting.rows.pop_front() else { break };
                if !row.is_gone() {
                    taken.push(row);
                }
            }
            if !taken.is_empty() {
                return Some(taken);
            }
            if waiting.is_closed {
                return None;
            }
            waiting = self.came.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Scores `rows` as one run; where that fails, one by one, so that one bad row is one failure. Uplifts are estimated one by one.
fn run(evaluator: &Evaluator, estimator: Option<&Estimator>, rows: Vec<Row>) {
    if rows.len() > 1 {
        let values: Vec<f32> = rows.iter().flat_map(|row| row.values.iter().copied()).collect();
        let mut found = Vec::with_capacity(rows.len());
        if evaluator.run(&values, |probability| found.push(probability)).is_ok() {
            return rows.into_iter().zip(found).for_each(|(row, probability)| row.answer(Ok(probability), estimator));
        }
    }
    for row in rows {
        let probability = evaluator.run_one(&row.values);
        row.answer(probability, estimator);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::domain::evaluator;
    use crate::domain::reason::linear::Linear;

    const OPTIONS: Options =
        Options { threads: 2, inline_row_us_max: 250, wait_ms_max: 100, waiting_max: 4_096, nice: 0 };

    const PLAN: Plan = Plan { threads: 2, run_rows: 8, waiting_max: 8, run_us: 1.0, wait_us_max: 1e6, nice: 0 };

    fn plan(runs_us: [f64; 3], rows_alike: bool) -> (Option<Plan>, String) {
        Plan::choose(&Pace { runs_us, rows_alike }, Some(OPTIONS))
    }

    #[test]
    fn what_is_slow_waits_and_shares_runs_where_that_gains() {
        let of = |runs_us| plan(runs_us, true).0.map(|plan| (plan.run_rows, plan.waiting_max));
        assert_eq!(of([250.0, 2_000.0, 8_000.0]), None, "a request's thread may be held so long");
        assert_eq!(of([3_000.0, 6_000.0, 12_800.0]), Some((32, 500)), "100 ms of two threads at .4 ms a row");
        assert_eq!(of([3_000.0, 6_000.0, 24_000.0]), Some((8, 266)), "32 are no better than 8");
        assert_eq!(of([3_000.0, 24_000.0, 96_000.0]), Some((1, 66)));
        assert_eq!(of([1e6, 8e6, 3.2e7]), Some((1, 1)), "somebody may always wait");
        assert_eq!(of([251.0, 251.0, 251.0]), Some((32, OPTIONS.waiting_max)));
        let (plan, why) = plan([3_000.0, 6_000.0, 12_800.0], false);
        assert_eq!(plan.map(|plan| plan.run_rows), Some(1), "replay would find other bits");
        assert!(why.contains("alone"), "{why}");
        assert_eq!(Plan::choose(&Pace { runs_us: [1e6; 3], rows_alike: true }, None).0, None);
    }

    fn row(value: f32) -> (Row, oneshot::Receiver<Result<Judged, Error>>) {
        let (reply, answer) = oneshot::channel();
        (Row { values: [value].into(), wants_uplifts: false, reply }, answer)
    }

    #[test]
    fn the_queue_has_a_bound_and_forgets_who_has_gone() {
        let queue = Queue::new(Plan { run_rows: 2, waiting_max: 4, ..PLAN });
        let (rows, mut answers): (Vec<Row>, Vec<_>) = (0..4).map(|at| row(at as f32)).unzip();
        for row in rows {
            queue.push(row).expect("room");
        }
        assert!(matches!(queue.push(row(4.0).0), Err(Error::Full)));
        drop(answers.remove(1));
        let (late, _waits) = row(5.0);
        queue.push(late).expect("the place of the one who has gone");
        drop(answers.remove(0));
        let values = |rows: Vec<Row>| rows.iter().map(|row| row.values[0]).collect::<Vec<f32>>();
        assert_eq!(queue.take().map(values), Some(vec![2.0, 3.0]), "in their order, but for those who have gone");
        assert_eq!(queue.take().map(values), Some(vec![5.0]), "it waits for no second one");
        queue.waiting().is_closed = true;
        assert!(queue.take().is_none());
    }

    #[test]
    fn who_has_gone_keeps_out_an_eighth_of_the_queue_at_most() {
        let queue = Queue::new(Plan { run_rows: 2, waiting_max: 64, ..PLAN });
        (0..64).for_each(|at| queue.push(row(at as f32).0).expect("room"));
        for refused in 0..8 {
            assert!(matches!(queue.push(row(64.0).0), Err(Error::Full)), "{refused}: nobody has looked yet");
        }
        queue.push(row(64.0).0).expect("the places of all who have gone");
        assert_eq!(queue.waiting().rows.len(), 1);
    }

    /// As many may wait as are scored in time at the pace of now.
    #[test]
    fn the_queue_is_shorter_while_runs_take_longer() {
        let plan = Plan { threads: 2, run_rows: 4, waiting_max: 80, run_us: 10_000.0, wait_us_max: 100_000.0, ..PLAN };
        let queue = Queue::new(plan);
        let admitted = || {
            let (rows, _answers): (Vec<Row>, Vec<_>) = (0..200).map(|at| row(at as f32)).unzip();
            let admitted = rows.into_iter().filter_map(|row| queue.push(row).ok()).count();
            queue.waiting().rows.clear();
            admitted
        };
        assert_eq!(admitted(), 80);
        queue.took(Duration::from_millis(18));
        assert_eq!(admitted(), 72, "a run of 11 ms: nine of two threads in 100 ms");
        (0..100).for_each(|_| queue.took(Duration::from_millis(200)));
        assert_eq!(admitted(), 4, "a run may always wait");
        (0..100).for_each(|_| queue.took(Duration::from_millis(1)));
        assert_eq!(admitted(), 80, "no more than by the probe");
    }

    #[test]
    fn whoever_waits_is_answered_and_whoever_drops_is_not_scored() {
        let linear = Linear { weights: vec![1.0], intercept: 0.0 };
        let evaluator = Arc::new(Evaluator::Native(evaluator::Evaluator::Linear(linear)));
        // Without threads, so that what waits does.
        let turns = Turns::start(evaluator.clone(), None, Plan { threads: 0, run_rows: 8, waiting_max: 8, ..PLAN })
            .expect("a queue");
        let mut context = Context::from_waker(Waker::noop());
        let mut first = pin!(turns.run_one(&[1.0], false));
        assert!(first.as_mut().poll(&mut context).is_pending());
        {
            let mut second = pin!(turns.run_one(&[2.0], true));
            assert!(second.as_mut().poll(&mut context).is_pending());
            assert_eq!(turns.queue.waiting().rows.len(), 2);
        }
        let rows = turns.queue.take().expect("the first");
        assert_eq!(rows.len(), 1, "the second has gone");
        run(&evaluator, None, rows);
        let Poll::Ready(Ok((probability, _))) = first.poll(&mut context) else { panic!("no answer") };
        assert_eq!(probability, evaluator.run_one(&[1.0]).expect("a probability"));
    }
}
