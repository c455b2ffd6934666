//! Admission under load: each worker measures how long requests wait in it, and for their records, and when that stands over the target, it
//! refuses as large a share of what comes as brings it back. One thread-local cell is read for each request: no lock, no allocation.

use std::cell::{Cell, OnceCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::deadline::Deadline;
use crate::telemetry::Metrics;

/// How often a worker looks, while requests come.
const BEAT: Duration = Duration::from_millis(5);
/// Requests between two looks that make a queue. With fewer a delay is somebody else's: a machine that is busy with other things.
const QUEUE_MIN: u32 = 8;
/// In what time a delay that is over the target is to be worked off.
const HORIZON_SECS: f64 = 0.2;
/// How much the share may change from one look to the next, down and up.
const CHANGE: (f64, f64) = (0.2, 1.2);
/// The growth of the delay that is believed, in seconds a second.
const GROWTH: (f64, f64) = (-0.5, 4.0);
/// The share of its time in which a worker computes that is behind because more comes than it can do; the rest is its neighbours' on the same
/// processors.
const BUSY: f64 = 0.4;
/// Some are always admitted, or nobody would learn that it is over.
const SHARE_MIN: f64 = 0.02;
/// Where thousands come at once they all stand before the next look, and the last of them would be answered when nobody waits any more. So
/// the clock is glanced at after so many requests, and whoever stands before a look that is late by the target is refused. Of the time
/// between two glances no more counts than this: in a longer one the worker was held up, and may be done with them in a moment.
const GLANCE: u32 = 16;
const GLANCE_MAX: Duration = Duration::from_millis(8);

/// A refusal is held back for about so long, since a caller who waits for it does not ask again on that connection; else refusing callers
/// who come again at once would be most of what is done. Who has gone by then is not answered at all.
const REFUSAL: Duration = Duration::from_millis(100);
/// The more are held back, the longer, so that one worker gives about so many refusals a second, as far as the next bound lets it. This
/// slows those who wait for their answer before they ask again.
const REFUSALS_PER_SEC: u32 = 4_000;
/// The longest that a refusal is held back.
const REFUSAL_MAX: Duration = Duration::from_millis(500);
/// Refusals held back at a time, of one worker; with more they are given at once.
const HELD_MAX: u32 = 32_768;

thread_local! {
    static GATE: Gate = const { Gate::new() };
}

/// The gate of one worker.
struct Gate {
    /// The share of requests that is admitted, 0 to 1.
    share: Cell<f64>,
    /// How long what came last waited before it was looked at.
    lag: Cell<Duration>,
    /// How long they may wait. Zero where nobody looks.
    target: Cell<Duration>,
    /// Requests since the last look.
    came: Cell<u32>,
    /// The last glance since then, and the time between glances.
    glanced: Cell<Option<Instant>>,
    stood: Cell<Duration>,
    /// Records that were waited for since then, and how long all of them together.
    records: Cell<u32>,
    waited: Cell<Duration>,
    /// Refusals that are held back.
    held: Cell<u32>,
    /// Tells that requests come again.
    bell: OnceCell<Arc<Notify>>,
}

impl Gate {
    const fn new() -> Self {
        Self {
            share: Cell::new(1.0),
            lag: Cell::new(Duration::ZERO),
            target: Cell::new(Duration::ZERO),
            came: Cell::new(0),
            glanced: Cell::new(None),
            stood: Cell::new(Duration::ZERO),
            records: Cell::new(0),
            waited: Cell::new(Duration::ZERO),
            held: Cell::new(0),
            bell: OnceCell::new(),
        }
    }

    /// Counts the time since the glance before; with the first one after a look it begins.
    fn glance(&self, now: Instant) {
        let gap = self.glanced.replace(Some(now)).map(|before| now.saturating_duration_since(before));
        self.stood.set(self.stood.get() + gap.unwrap_or_default().min(GLANCE_MAX));
    }

    /// Whether the next look is so late that what stands before it has waited too long: it waits once more, for the record and behind all others.
    fn is_overdue(&self) -> bool {
        let target = self.target.get();
        !target.is_zero() && self.stood.get() > BEAT + target
    }

    /// The next look: how many came since the last one.
    fn look(&self) -> u32 {
        self.glanced.set(None);
        self.stood.set(Duration::ZERO);
        self.came.take()
    }
}

/// Whether a request that came to this worker is to be answered.
pub(super) fn admits() -> bool {
    GATE.with(|gate| {
        let came = gate.came.get();
        gate.came.set(came.wrapping_add(1));
        if came == 0 {
            gate.bell.get().into_iter().for_each(|bell| bell.notify_one());
        }
        if came.is_multiple_of(GLANCE) {
            gate.glance(Instant::now());
        }
        let share = gate.share.get();
        !gate.is_overdue() && (share >= 1.0 || fastrand::f64() < share)
    })
}

/// Holds a refusal back, for half of what the caller still waits at most: the rest is for another replica.
pub(super) async fn hold_back(deadline: Deadline) {
    let held = GATE.with(|gate| gate.held.get());
    if held < HELD_MAX {
        GATE.with(|gate| gate.held.set(held + 1));
        let _held = Held;
        tokio::time::sleep(deadline.left(held_for(held, fastrand::f64()) * 2) / 2).await;
    }
}

/// How long a refusal is held back beside so many others; `chance`, 0 to 1, spreads those that came together, or they would come again
/// together.
fn held_for(others: u32, chance: f64) -> Duration {
    let even = (Duration::from_secs(1) * others / REFUSALS_PER_SEC).max(REFUSAL);
    even.mul_f64(0.75 + 0.5 * chance).min(REFUSAL_MAX)
}

/// A refusal that is held back, on the thread where it began.
struct Held;

impl Drop for Held {
    fn drop(&mut self) {
        GATE.with(|gate| gate.held.set(gate.held.get().saturating_sub(1)));
    }
}

/// A request of this worker waited so long for its record because of those before it.
pub(super) fn waited(duration: Duration) {
    GATE.with(|gate| {
        gate.records.set(gate.records.get() + 1);
        gate.waited.set(gate.waited.get() + duration);
    });
}

/// How long requests waited lately before this worker looked at them. Zero on any other thread.
pub(super) fn lag() -> Duration {
    GATE.with(|gate| gate.lag.get())
}

/// Measures this worker, the one of this `number`, for as long as its runtime runs, and keeps what is waited in it near `target`. While
/// nothing comes it sleeps.
///
/// A task that is late was behind all that was ready before it: so late are requests too that come now.
pub(super) async fn watch(number: usize, target: Duration, metrics: Arc<Metrics>) {
    let bell = Arc::new(Notify::new());
    GATE.with(|gate| {
        gate.target.set(target);
        drop(gate.bell.set(bell.clone()));
    });
    let [shares, delays] = metrics.admission(number);
    let mut law = Law::new(target.as_secs_f64());
    let mut last = Instant::now();
    let mut for_records = Duration::ZERO;
    let mut worked = thread_time();
    let mut quiet = true;
    loop {
        if quiet {
            bell.notified().await;
        }
        let due = Instant::now() + BEAT;
        tokio::time::sleep_until(due.into()).await;
        let lag = due.elapsed();
        let since = last.elapsed();
        last = Instant::now();
        let before = std::mem::replace(&mut worked, thread_time());
        let is_busy = (worked - before).as_secs_f64() > BUSY * since.as_secs_f64();
        GATE.with(|gate| {
            let (came, records, waited) = (gate.look(), gate.records.take(), gate.waited.take());
            // Between two commits nothing is heard of: then it is as it was.
            for_records = match waited.checked_div(records) {
                None if came == 0 => Duration::ZERO,
                mean => mean.unwrap_or(for_records),
            };
            let delay = lag + for_records;
            // What came last is looked at once more, so that nothing of it stays.
            quiet = came == 0;
            let share = law.look(delay.as_secs_f64(), since.as_secs_f64(), came, is_busy);
            gate.share.set(share);
            gate.lag.set(if came < QUEUE_MIN { Duration::ZERO } else { lag });
            shares.set(share);
            delays.set(delay.as_secs_f64());
        });
    }
}

/// The processor time of this thread.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// How the share follows from the delay. While a queue grows by `g` seconds a second, `1 + g` times as much comes as is done: the share is
/// divided by that at once, before the queue is long. What it is over the target is worked off within [`HORIZON_SECS`].
///
/// Why not by CoDel (RFC 8289) or PIE (RFC 8033): both take a second or so to find the share where three times too much comes at once, as senders
/// there are expected to slow down by themselves. By then everything that waits is too late.
struct Law {
    target_secs: f64,
    share: f64,
    delay_secs: f64,
    /// Whether the look before found too long a queue.
    was_long: bool,
}

impl Law {
    fn new(target_secs: f64) -> Self {
        Self { target_secs, share: 1.0, delay_secs: 0.0, was_long: false }
    }

    /// The share to admit from now on, when requests are delayed by `delay_secs`, and `came` have come in the last `since_secs`. A worker that
    /// was not busy in that time was held up by something else, a disk or a neighbour, and may be done with what stands before it in a moment:
    /// there a queue has to be found twice.
    fn look(&mut self, delay_secs: f64, since_secs: f64, came: u32, is_busy: bool) -> f64 {
        let before = std::mem::replace(&mut self.delay_secs, delay_secs);
        if came < QUEUE_MIN {
            (self.share, self.was_long) = (1.0, false);
            return self.share;
        }
        let beat = BEAT.as_secs_f64();
        let growth = ((delay_secs - before) / since_secs.max(beat)).clamp(GROWTH.0, GROWTH.1);
        let change = (1.0 + (self.target_secs - delay_secs) / HORIZON_SECS) / (1.0 + growth);
        // Whoever looks waits in the queue too: so long is it until the next look.
        let next_secs = delay_secs + growth * delay_secs.max(beat);
        let (down, up) = CHANGE;
        let is_long = next_secs > self.target_secs;
        let was_long = std::mem::replace(&mut self.was_long, is_long);
        self.share *= match is_long {
            true if is_busy || was_long => change.clamp(down, 1.0),
            true => 1.0,
            false => change.clamp(1.0, up),
        };
        self.share = self.share.clamp(SHARE_MIN, 1.0);
        self.share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What came of a worker: the share of its time in which it answered, and the greatest and the mean delay after the first 300 ms.
    struct Seen {
        goodput: f64,
        delay_secs_max: f64,
        delay_secs: f64,
    }

    /// A worker that could answer `capacity` requests a second, and is sent `load` times as many, for five seconds; to refuse one costs
    /// `refusal` of what it costs to answer it.
    fn run(load: f64, capacity: f64, refusal: f64) -> Seen {
        let mut law = Law::new(0.04);
        let (mut waiting_secs, mut answered, mut now) = (0.0_f64, 0.0, 0.0);
        let (mut most, mut sum, mut looks) = (0.0_f64, 0.0, 0.0);
        while now < 5.0 {
            // Who looks waits in the same queue.
            let since = BEAT.as_secs_f64().max(waiting_secs);
            let came = load * capacity * since;
            let work = came * (law.share + (1.0 - law.share) * refusal) / capacity;
            let done = since.min(waiting_secs + work);
            answered += done * law.share / (law.share + (1.0 - law.share) * refusal);
            waiting_secs = waiting_secs + work - done;
            law.look(waiting_secs, since, came as u32, true);
            now += since;
            if now > 0.3 {
                (most, sum, looks) = (most.max(waiting_secs), sum + waiting_secs, looks + 1.0);
            }
        }
        Seen { goodput: answered / now, delay_secs_max: most, delay_secs: sum / looks }
    }

    #[test]
    fn three_times_too_much_is_held_at_the_target_without_idling() {
        for capacity in [1_000.0, 40_000.0] {
            let Seen { goodput, delay_secs_max, delay_secs } = run(3.0, capacity, 0.0);
            assert!(goodput > 0.97, "{goodput}");
            assert!(delay_secs_max < 0.06 && (0.02..0.06).contains(&delay_secs), "{delay_secs_max} {delay_secs}");
        }
    }

    /// To refuse costs something too, and that cannot be given to answers.
    #[test]
    fn refusing_costs_what_it_costs_and_no_more() {
        let Seen { goodput, delay_secs_max, .. } = run(3.0, 20_000.0, 0.04);
        assert!(goodput > 0.9 && delay_secs_max < 0.06, "{goodput} {delay_secs_max}");
    }

    /// However many there are to refuse, a worker does not do much else than answer.
    #[test]
    fn the_more_are_refused_the_longer_they_wait() {
        assert_eq!(held_for(0, 0.5), REFUSAL);
        assert_eq!(held_for(1_000, 0.5), Duration::from_millis(250), "4,000 a second");
        assert_eq!(held_for(HELD_MAX, 1.0), REFUSAL_MAX);
        assert_eq!((held_for(0, 0.0), held_for(0, 1.0)), (REFUSAL * 3 / 4, REFUSAL * 5 / 4), "not all at once");
    }

    /// Thousands that come at once stand before the next look of their worker.
    #[test]
    fn whoever_stands_before_an_overdue_look_is_refused() {
        let began = Instant::now();
        let after = |gap_ms: u64, target_ms: u64| {
            let gate = Gate::new();
            gate.target.set(Duration::from_millis(target_ms));
            (0..100).find(|at: &u64| {
                gate.glance(began + Duration::from_millis(gap_ms * at));
                gate.is_overdue()
            })
        };
        assert_eq!(after(2, 40), Some(23), "the look was due after 5 ms, and may be 40 ms late");
        assert_eq!(after(500, 40), Some(6), "whatever held it up");
        assert_eq!(after(500, 0), None, "nobody looks");
        let gate = Gate::new();
        gate.target.set(Duration::from_millis(1));
        (0..2).for_each(|at| gate.glance(began + GLANCE_MAX * at));
        assert!(gate.is_overdue());
        gate.look();
        gate.glance(began + GLANCE_MAX * 9);
        assert!(!gate.is_overdue(), "with each look it begins anew");
    }

    #[test]
    fn what_can_be_answered_is() {
        let mut law = Law::new(0.04);
        for at in 0..1_000 {
            let delay_secs = 0.03 * f64::from(at) / 1_000.0;
            assert_eq!(law.look(delay_secs, 0.005, 1_000, true), 1.0, "{delay_secs}");
        }
    }

    #[test]
    fn a_burst_and_a_busy_machine_are_no_overload() {
        let mut law = Law::new(0.04);
        assert_eq!(law.look(0.012, 0.012, 1_000, true), 1.0, "what is over at the next look");
        for _ in 0..100 {
            assert_eq!(law.look(0.5, 0.5, QUEUE_MIN - 1, true), 1.0, "few are no queue");
        }
        assert!(law.look(0.6, 0.6, 1_000, true) < 0.5, "many are");
        assert_eq!(law.look(0.0, 0.005, 0, true), 1.0, "nobody is there any more");
        // A worker that did next to nothing was held up, and is done with what came meanwhile before it looks again.
        assert_eq!(law.look(0.1, 0.1, 200, false), 1.0);
        assert_eq!(law.look(0.0, 0.005, 10, false), 1.0);
        assert_eq!(law.look(0.1, 0.1, 200, false), 1.0);
        assert!(law.look(0.1, 0.1, 200, false) < 1.0, "what stays is a queue, whoever made it");
    }
}
