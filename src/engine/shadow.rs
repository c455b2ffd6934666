//! The shadow: scores a sample of the champion's customers with the challenger, on a thread of its own that gives way to everything
//! else. Nobody waits for it; what it has no time for is dropped and counted.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::serving::{Candidate, Trial};
use crate::domain::decision::Arm;

/// How often to look whether the service ends.
const PATIENCE: Duration = Duration::from_millis(100);

/// A row of the model's input.
pub(super) type Row = SmallVec<[f32; 64]>;

/// One customer, to be scored by both models.
#[derive(Debug)]
struct Job {
    trial: Arc<Trial>,
    ticket: u64,
    segment: Option<usize>,
    /// The champion's row, and the challenger's where that is another one.
    row: Row,
    own: Option<Row>,
}

/// The way into the shadow, and the shadow itself.
#[derive(Debug)]
pub(super) struct Shadow {
    queue: SyncSender<Job>,
    jobs: Mutex<Receiver<Job>>,
}

impl Shadow {
    /// A shadow in which `queue_max` customers may wait.
    pub(super) fn new(queue_max: usize) -> Self {
        let (queue, jobs) = sync_channel(queue_max);
        Self { queue, jobs: Mutex::new(jobs) }
    }

    /// Offers a customer, who is assigned by `ticket` and belongs to `segment`; never waits.
    pub(super) fn offer(&self, trial: &Arc<Trial>, ticket: u64, segment: Option<usize>, row: Row, own: Option<Row>) {
        if self.queue.try_send(Job { trial: trial.clone(), ticket, segment, row, own }).is_err() {
            trial.watches.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Scores what comes until `is_closing`. Only one thread does.
    pub(super) fn run(&self, now_ms: impl Fn() -> u64, is_closing: impl Fn() -> bool) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut turn = false;
        while !is_closing() {
            let job = match jobs.recv_timeout(PATIENCE) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let busy = &job.trial.watches.busy_since_ms;
            busy.store(now_ms(), Ordering::Relaxed);
            // Both here, in turn: a time measured on a thread that answers customers could not be compared with one of this.
            turn = !turn;
            for arm in if turn { [Arm::Champion, Arm::Challenger] } else { [Arm::Challenger, Arm::Champion] } {
                score(&job, arm);
            }
            busy.store(0, Ordering::Relaxed);
        }
    }
}

fn score(job: &Job, arm: Arm) {
    let (Candidate { model, .. }, row) = match arm {
        Arm::Champion => (&job.trial.champion, &job.row),
        Arm::Challenger => (&job.trial.challenger, job.own.as_ref().unwrap_or(&job.row)),
    };
    let begun = Instant::now();
    match model.score(row) {
        Ok(score) => job.trial.scored(arm, Some(begun.elapsed()), score, job.ticket, job.segment),
        Err(error) => job.trial.failed(arm, Some(&error)),
    }
}
