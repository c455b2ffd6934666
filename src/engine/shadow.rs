//! The shadow: scores a sample of the champion's customers with the challenger, on a thread of its own that gives way to everything
//! else. Nobody waits for it; what it has no time for is dropped and counted.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use smallvec::SmallVec;

use super::serving::{Candidate, Trial, Who};
use crate::domain::decision::Arm;
use crate::domain::rollout::Exposure;

/// How often to look whether the service ends.
const PATIENCE: Duration = Duration::from_millis(100);

/// A row of the model's input.
pub(super) type Row = SmallVec<[f32; 64]>;

/// One customer, to be scored by both models.
#[derive(Debug)]
struct Job {
    trial: Arc<Trial>,
    who: Who,
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

    /// Offers a customer; never waits.
    pub(super) fn offer(&self, trial: &Arc<Trial>, who: Who, row: Row, own: Option<Row>) {
        if self.queue.try_send(Job { trial: trial.clone(), who, row, own }).is_err() {
            trial.watches.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Scores what comes until `is_closing`. Only one thread does.
    pub(super) fn run(&self, is_closing: impl Fn() -> bool) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut turn = false;
        while !is_closing() {
            let job = match jobs.recv_timeout(PATIENCE) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // Both here, in turn: a time measured on a thread that answers customers could not be compared with one of this.
            turn = !turn;
            for arm in if turn { [Arm::Champion, Arm::Challenger] } else { [Arm::Challenger, Arm::Champion] } {
                score(&job, arm);
            }
        }
    }
}

/// Scores and times. Time is that of the processor, not of the wall: on a busy machine the wall's is mostly that of others. In a canary
/// the customers are answered elsewhere, and only the time counts: there the models are not called alike, and the one that
/// is called rarely finds its data gone from the cache.
fn score(job: &Job, arm: Arm) {
    let (Candidate { model, .. }, row) = match arm {
        Arm::Champion => (&job.trial.champion, &job.row),
        Arm::Challenger => (&job.trial.challenger, job.own.as_ref().unwrap_or(&job.row)),
    };
    let is_counted = job.trial.exposure == Exposure::Shadow;
    if is_counted {
        job.trial.started(arm);
    }
    let begun = processor_time();
    let result = model.score(row);
    let took = processor_time().saturating_sub(begun);
    if result.is_ok() {
        job.trial.timed(arm, took);
    }
    match result {
        Ok(score) if is_counted => job.trial.scored(arm, score, job.who),
        Err(error) if is_counted => job.trial.failed(arm, Some(&error), job.who),
        Ok(_) | Err(_) => {}
    }
}

/// What this thread has used of a processor.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
