//! The monitor of one model: counts what comes in, bin by bin of the baseline, and how old it is, in windows. A request only adds to
//! counters, and of many requests a second only some do. The distances themselves are arithmetic of the domain.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::domain::bundle::bins::{Bins, SCORE};
use crate::domain::freshness::{self, STALE_MS};
use crate::domain::record::Record;
use crate::domain::statistics::drift::{self, Distance};

/// Requests that are counted in a second; more would tell no more, and cost.
const COUNTED_MAX: u32 = 500;
/// The share of drift that is found by chance, among all that is found.
const ALPHA: f64 = 0.05;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A time back from now over which is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Window {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// Seven days.
    Week,
    /// Thirty days.
    Month,
}

impl Window {
    /// All of them.
    pub const ALL: [Window; 4] = [Window::Hour, Window::Day, Window::Week, Window::Month];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Window::Hour => "1h",
            Window::Day => "24h",
            Window::Week => "7d",
            Window::Month => "30d",
        }
    }

    /// The window of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|window| window.name() == name)
    }

    /// Its length in milliseconds.
    pub fn ms(self) -> u64 {
        let (ring, slots) = self.ring();
        RINGS[ring].0 * slots
    }

    /// The ring that has it, and how many slots of it.
    fn ring(self) -> (usize, u64) {
        match self {
            Window::Hour => (0, 12),
            Window::Day => (1, 24),
            Window::Week => (2, 7),
            Window::Month => (2, 30),
        }
    }
}

/// The rings: how long a slot of each is, and how many it keeps.
const RINGS: [(u64, u64); 3] = [(5 * MINUTE, 12), (HOUR, 24), (DAY, 30)];

/// What is counted of how old features are: fresh, stale, not said.
const AGES: usize = 3;

/// The counters of one model.
#[derive(Debug)]
pub(super) struct Monitor {
    bins: Bins,
    /// Requests that are counted in a second.
    counted_max: u32,
    /// The second since 1970, and in the low half how many requests were counted in it.
    quota: AtomicU64,
    /// What was counted since it was last put into the rings: the cells of the bins, then the ages.
    cells: Box<[AtomicU32]>,
    /// The five minutes that this is of.
    slot: AtomicU64,
    past: Mutex<Past>,
    began_ms: u64,
}

/// What was counted.
#[derive(Debug)]
struct Past {
    /// By ring, the slots that have anything, in their order: their number since 1970, and counts.
    rings: [VecDeque<(u64, Box<[u32]>)>; RINGS.len()],
    since_ms: u64,
    /// The second that requests on record were last counted of, and how many.
    recalled: (u64, u32),
}

impl Past {
    /// Adds what was counted at `at_ms`, where a window that ends at `now_ms` reaches it.
    fn add(&mut self, at_ms: u64, counted: &[u32], now_ms: u64) {
        for (ring, (length, kept)) in self.rings.iter_mut().zip(RINGS) {
            let slot = at_ms / length;
            if slot + kept <= now_ms / length {
                continue;
            }
            match ring.binary_search_by_key(&slot, |(slot, _)| *slot) {
                Ok(place) => {
                    let sums = ring[place].1.iter_mut();
                    sums.zip(counted).for_each(|(sum, count)| *sum = sum.saturating_add(*count));
                }
                Err(place) => ring.insert(place, (slot, counted.into())),
            }
        }
    }

    /// Lets go what no window reaches any more.
    fn trim(&mut self, now_ms: u64) {
        for (ring, (length, kept)) in self.rings.iter_mut().zip(RINGS) {
            while ring.front().is_some_and(|(slot, _)| slot + kept <= now_ms / length) {
                ring.pop_front();
            }
        }
    }
}

/// What came in over a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Drift {
    /// Since when there are counts, milliseconds since 1970.
    pub since_ms: u64,
    /// Requests that were counted.
    pub n: u64,
    /// Each feature with its distance from the baseline, the greatest first.
    pub features: Vec<(String, Distance)>,
    /// That of the score.
    pub score: Distance,
    /// Requests that say how old their features are, and how many of them say over a day.
    pub aged: u64,
    /// See `aged`.
    pub stale: u64,
}

impl Monitor {
    /// A monitor that counts in `bins` from `now_ms` on, or never counts.
    pub(super) fn new(bins: Bins, now_ms: u64, counts: bool) -> Self {
        let cells = (0..bins.baseline().len() + AGES).map(|_| AtomicU32::new(0)).collect();
        Self {
            bins,
            counted_max: if counts { COUNTED_MAX } else { 0 },
            quota: AtomicU64::new(0),
            cells,
            slot: AtomicU64::new(now_ms / RINGS[0].0),
            past: Mutex::new(Past { rings: Default::default(), since_ms: now_ms, recalled: (0, 0) }),
            began_ms: now_ms,
        }
    }

    /// How many more requests are to be counted in the second of `now_ms`.
    pub(super) fn places(&self, now_ms: u64) -> u32 {
        let quota = self.quota.load(Ordering::Relaxed);
        if quota >> 32 == now_ms / 1_000 { self.counted_max.saturating_sub(quota as u32) } else { self.counted_max }
    }

    /// The share of `rows` that come at `now_ms` for which there are places, 0 to 1.
    pub(super) fn share(&self, now_ms: u64, rows: usize) -> f64 {
        (f64::from(self.places(now_ms)) / rows.max(1) as f64).min(1.0)
    }

    /// Counts a request, if there is a place for it in this second.
    pub(super) fn observe(&self, now_ms: u64, record: &Record, score: f64, age_ms: Option<u64>) {
        let left = self.places(now_ms);
        if left == 0 {
            return;
        }
        // Of two threads at once one may be lost from the quota, which then is a little larger.
        self.quota.store(((now_ms / 1_000) << 32) | u64::from(self.counted_max - left + 1), Ordering::Relaxed);
        let add = |cell: usize| {
            self.cells[cell].fetch_add(1, Ordering::Relaxed);
        };
        self.bins.each(&record.features, score, add);
        add(self.age_cell(age_ms));
    }

    /// Counts a request of before this monitor began, as it stands on record: at most as many a second, where they come in order.
    pub(super) fn recall(&self, at_ms: u64, record: &Record, score: f64) {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let (second, taken) = past.recalled;
        let taken = if second == at_ms / 1_000 { taken } else { 0 };
        if at_ms >= self.began_ms || taken >= COUNTED_MAX {
            return;
        }
        past.recalled = (at_ms / 1_000, taken + 1);
        let mut counted = vec![0; self.cells.len()].into_boxed_slice();
        self.bins.each(&record.features, score, |cell| counted[cell] += 1);
        let age_ms = freshness::age_ms(&record.context, at_ms);
        counted[self.age_cell(age_ms)] += 1;
        past.add(at_ms, &counted, self.began_ms);
        past.since_ms = past.since_ms.min(at_ms);
    }

    fn age_cell(&self, age_ms: Option<u64>) -> usize {
        self.bins.baseline().len() + age_ms.map_or(2, |age| usize::from(age > STALE_MS))
    }

    /// Puts what was counted into the rings, where a slot has ended. To be called several times a minute.
    pub(super) fn turn(&self, now_ms: u64) {
        if self.slot.load(Ordering::Relaxed) != now_ms / RINGS[0].0 {
            self.settle(&mut self.past.lock().unwrap_or_else(PoisonError::into_inner), now_ms);
        }
    }

    fn settle(&self, past: &mut Past, now_ms: u64) {
        let at_ms = self.slot.swap(now_ms / RINGS[0].0, Ordering::Relaxed) * RINGS[0].0;
        let counted: Box<[u32]> = self.cells.iter().map(|cell| cell.swap(0, Ordering::Relaxed)).collect();
        if counted.iter().any(|count| *count > 0) {
            past.add(at_ms, &counted, now_ms);
        }
        past.trim(now_ms);
    }

    /// What came in over `window`, to the slot: of an hour the last 55 to 60 minutes.
    pub(super) fn drift(&self, window: Window, now_ms: u64) -> Drift {
        let (ring, slots) = window.ring();
        let mut sums = vec![0_u64; self.cells.len()];
        let since_ms = {
            let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
            self.settle(&mut past, now_ms);
            let now = now_ms / RINGS[ring].0;
            for (_, counts) in past.rings[ring].iter().filter(|(slot, _)| slot + slots > now) {
                sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += u64::from(*count));
            }
            past.since_ms
        };
        let (cells, ages) = sums.split_at(self.bins.baseline().len());
        let pairs: Vec<(&[u64], &[u64])> =
            self.bins.spans().map(|(_, span)| (&self.bins.baseline()[span.clone()], &cells[span])).collect();
        let found = drift::distances(&pairs, ALPHA);
        let mut features: Vec<(String, Distance)> =
            self.bins.spans().map(|(name, _)| name.to_owned()).zip(found).collect();
        // The score is the last of them.
        let score = features.pop().map_or(NOTHING, |(_, distance)| distance);
        features.sort_by(|(_, a), (_, b)| b.verdict.cmp(&a.verdict).then(b.psi.total_cmp(&a.psi)));
        debug_assert!(self.bins.spans().last().is_some_and(|(name, _)| name == SCORE));
        Drift {
            since_ms,
            n: cells[self.bins.score_cells()].iter().sum(),
            features,
            score,
            aged: ages[0] + ages[1],
            stale: ages[1],
        }
    }
}

const NOTHING: Distance = Distance { psi: 0.0, critical: f64::INFINITY, n: 0, verdict: drift::Verdict::Grey };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::bundle::baseline::Baseline;
    use crate::domain::record::Value;

    const BEGUN: u64 = 20_000 * DAY;

    fn monitor() -> Monitor {
        let baseline: Baseline = serde_json::from_value(serde_json::json!({
            "rows": 200,
            "features": {"n": {"edges": [0.0], "counts": [100, 100], "missing": 0}},
            "score": {"edges": [0.5], "counts": [100, 100]},
        }))
        .expect("a baseline");
        Monitor::new(Bins::new(&baseline, ["n"].into_iter()), BEGUN, true)
    }

    fn record(n: f64, context: &[(&'static str, Value<'static>)]) -> Record<'static> {
        let context = context.iter().map(|(name, value)| ((*name).into(), value.clone())).collect();
        Record {
            customer_id: "c".into(),
            features: vec![("n".into(), Value::Number(n))],
            context,
            reasons: 0,
            counterfactuals: 0,
        }
    }

    fn counted(monitor: &Monitor, now_ms: u64) -> [u64; 4] {
        Window::ALL.map(|window| monitor.drift(window, now_ms).n)
    }

    #[test]
    fn windows_move_on_and_forget() {
        let monitor = monitor();
        for at in 0..100 {
            // One in ten minutes.
            let now_ms = BEGUN + at * 10 * MINUTE;
            monitor.turn(now_ms);
            monitor.observe(now_ms, &record(1.0, &[]), 0.1, (at % 2 == 0).then_some(at * HOUR));
        }
        let last = BEGUN + 99 * 10 * MINUTE;
        assert_eq!(counted(&monitor, last), [6, 100, 100, 100]);
        let found = monitor.drift(Window::Month, last);
        assert_eq!((found.aged, found.stale, found.since_ms), (50, 37, BEGUN));
        assert_eq!((found.features[0].0.as_str(), found.features[0].1.n), ("n", 100));
        assert_eq!(counted(&monitor, last + 5 * HOUR), [0, 100, 100, 100]);
        assert_eq!(counted(&monitor, last + 40 * HOUR), [0, 0, 100, 100]);
        assert_eq!(counted(&monitor, last + 8 * DAY), [0, 0, 0, 100]);
        assert_eq!(counted(&monitor, last + 31 * DAY), [0; 4]);
        let past = monitor.past.lock().expect("no panic");
        assert!(past.rings.iter().all(VecDeque::is_empty), "nothing is kept that nobody can ask for");
    }

    #[test]
    fn of_a_second_only_so_many_count_and_what_came_before_is_added_once() {
        let monitor = monitor();
        for _ in 0..COUNTED_MAX + 50 {
            monitor.observe(BEGUN + 500, &record(1.0, &[]), 0.1, None);
        }
        assert_eq!((monitor.places(BEGUN + 999), monitor.places(BEGUN + 1_000)), (0, COUNTED_MAX));
        assert_eq!(counted(&monitor, BEGUN + 500), [u64::from(COUNTED_MAX); 4]);
        let stale = [("features_at", Value::Text("1970-01-01T00:00:00Z".into()))];
        for before_ms in [40 * DAY, 10 * DAY, 2 * HOUR, MINUTE, 0] {
            monitor.recall(BEGUN - before_ms, &record(-1.0, &stale), 0.9);
        }
        assert_eq!(counted(&monitor, BEGUN + 500), [501, 502, 502, 503]);
        let found = monitor.drift(Window::Month, BEGUN + 500);
        assert_eq!((found.stale, found.since_ms), (3, BEGUN - 40 * DAY));
    }
}
