//! The lanes of one model: as many sessions as threads may score at once, so that none waits for another. A run needs its
//! session alone, and one mutex around one session would line the whole service up behind it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::session::{Lane, Runtime};
use super::{Bundle, Error};
use crate::domain::bundle::card::GraphShape;

#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Vec<Mutex<Lane>>,
}

/// Threads are numbered as they come, so that each one finds its own lane free.
static THREADS: AtomicUsize = AtomicUsize::new(0);
thread_local! {
    static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
}

impl Lanes {
    /// One lane that gives the output of `shape`.
    pub(super) fn new(runtime: &Runtime, bundle: &Bundle, shape: &GraphShape) -> Result<Self, Error> {
        let mut lanes = Self { lanes: Vec::new() };
        lanes.grow(runtime, bundle, shape, 1)?;
        Ok(lanes)
    }

    /// Adds lanes until there are `count`.
    pub(super) fn grow(
        &mut self,
        runtime: &Runtime,
        bundle: &Bundle,
        shape: &GraphShape,
        count: usize,
    ) -> Result<(), Error> {
        while self.lanes.len() < count {
            self.lanes.push(Mutex::new(Lane::new(runtime, &bundle.graph, shape)?));
        }
        Ok(())
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lanes.len()
    }

    /// Runs the graph over `rows` on a free lane; waits for one only when there are more threads than lanes.
    pub(super) fn run(&self, rows: &[f32], each: impl FnMut(f32)) -> Result<(), Error> {
        self.free().run(rows, each)
    }

    /// The same with all columns of the output of every row.
    pub(super) fn run_rows(&self, rows: &[f32], each: impl FnMut(&[f32])) -> Result<(), Error> {
        self.free().run_rows(rows, each)
    }

    fn free(&self) -> MutexGuard<'_, Lane> {
        let own = THREAD.with(|number| *number) % self.lanes.len();
        let (before, after) = self.lanes.split_at(own);
        for lane in after.iter().chain(before) {
            match lane.try_lock() {
                Ok(lane) => return lane,
                // A lane has no state between runs that a panic could spoil.
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        self.lanes[own].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every lane in turn, for the probe: a lane that never ran is slow on its first customer.
    pub(super) fn each(&self) -> impl Iterator<Item = MutexGuard<'_, Lane>> {
        self.lanes.iter().map(|lane| lane.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
