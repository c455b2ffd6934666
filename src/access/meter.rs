//! How often one caller may call: a token bucket (GCRA, by `governor`), one atomic word of state, with what the caller is told of it.

use std::num::NonZeroU32;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use serde::{Deserialize, Serialize};

/// The highest rate and burst: the bucket counts whole nanoseconds, which is within 0.1 % up to here.
pub(super) const RATE_MAX: u32 = 1_000_000;

/// How often a caller may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Requests a second that are answered for ever.
    pub per_sec: u32,
    /// Requests at once that are answered after a pause; 0 is as many as in a second.
    #[serde(default)]
    pub burst: u32,
}

impl Rate {
    /// The rate that `per_sec` and `burst` say; 0 a second is no bound.
    pub fn new(per_sec: u32, burst: u32) -> Option<Self> {
        (per_sec > 0).then_some(Self { per_sec, burst })
    }

    /// Whether both are in their range.
    pub fn is_legal(&self) -> bool {
        (1..=RATE_MAX).contains(&self.per_sec) && self.burst <= RATE_MAX
    }

    /// How many requests the full bucket holds.
    pub fn quota(&self) -> u32 {
        if self.burst == 0 { self.per_sec } else { self.burst }
    }

    /// In how many seconds, rounded up, the empty bucket is full.
    pub fn window_secs(&self) -> u32 {
        self.secs(self.quota())
    }

    /// How many seconds, rounded up, it takes to fill up `requests`.
    fn secs(&self, requests: u32) -> u32 {
        requests.div_ceil(self.per_sec.max(1))
    }
}

/// What is left of a caller's rate after a request was taken from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// The rate.
    pub rate: Rate,
    /// Requests that would be answered now.
    pub requests: u32,
    /// In how many seconds it is all there again.
    pub reset_secs: u32,
}

/// The time since the process began to count, which does not go back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time(pub(super) fn() -> Duration);

impl Time {
    /// That of this machine.
    pub(super) const OF_PROCESS: Self = Self(|| {
        static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
        BEGUN.elapsed()
    });
}

impl Clock for Time {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0()
    }
}

/// The bucket of one caller.
#[derive(Debug)]
pub(super) struct Meter {
    rate: Rate,
    bucket: RateLimiter<NotKeyed, InMemoryState, Time, StateInformationMiddleware>,
}

impl Meter {
    /// A full bucket.
    pub(super) fn new(rate: Rate, time: Time) -> Self {
        let at_least_one = |count: u32| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(at_least_one(rate.per_sec)).allow_burst(at_least_one(rate.quota()));
        let bucket = RateLimiter::direct_with_clock(quota, time).with_middleware::<StateInformationMiddleware>();
        Self { rate, bucket }
    }

    /// The rate that it keeps to.
    pub(super) fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one request: what is left.
    ///
    /// Errors: the bucket is empty, and for how long.
    pub(super) fn take(&self) -> Result<Left, Duration> {
        let left = self.bucket.check().map_err(|not_until| not_until.wait_time_from(self.bucket.clock().now()))?;
        let requests = left.remaining_burst_capacity();
        let reset_secs = self.rate.secs(self.rate.quota().saturating_sub(requests));
        Ok(Left { rate: self.rate, requests, reset_secs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    thread_local!(static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) });

    fn meter(rate: Rate) -> Meter {
        NOW.set(Duration::ZERO);
        Meter::new(rate, Time(|| NOW.get()))
    }

    #[test]
    fn a_caller_is_told_what_is_left_and_when_to_come_again() {
        let meter = meter(Rate { per_sec: 2, burst: 3 });
        assert_eq!((meter.rate().quota(), meter.rate().window_secs()), (3, 2));
        let left: Vec<_> = (0..3).map(|_| meter.take().map(|left| (left.requests, left.reset_secs))).collect();
        assert_eq!(left, [Ok((2, 1)), Ok((1, 1)), Ok((0, 2))]);
        assert_eq!(meter.take(), Err(Duration::from_millis(500)));
        NOW.set(Duration::from_millis(499));
        assert_eq!(meter.take(), Err(Duration::from_millis(1)));
        NOW.set(Duration::from_millis(500));
        assert!(meter.take().is_ok());
    }

    /// Demand of twice the rate, for five seconds, by a thousand callers each with a rate of its own.
    #[test]
    fn a_thousand_rates_are_exact() {
        for number in 0..1_000_u32 {
            let rate = Rate { per_sec: 1 + number * 7 % 997, burst: 1 + number % 50 };
            let meter = meter(rate);
            let asked = rate.per_sec * 2 * 5;
            let taken = (0..asked).filter(|at| {
                NOW.set(Duration::from_secs(5) * *at / asked);
                meter.take().is_ok()
            });
            // A large bucket of a slow rate is not even emptied.
            let (taken, expected) = (taken.count() as f64, f64::from(asked.min(rate.per_sec * 5 + rate.quota())));
            assert!((taken - expected).abs() <= 1.0 + expected * 0.001, "{rate:?}: {taken} of {expected}");
        }
    }

    proptest! {
        /// Whatever comes when: in no stretch of time more than the bucket and what flows into it.
        #[test]
        fn never_more_than_burst_and_rate(per_sec in 1..2_000_u32, burst in 0..100_u32, gaps in prop::collection::vec(0..5_000_u64, 1..150)) {
            let rate = Rate { per_sec, burst };
            let meter = meter(rate);
            let mut now = Duration::ZERO;
            let mut taken = Vec::new();
            for gap in gaps {
                now += Duration::from_micros(gap);
                NOW.set(now);
                if meter.take().is_ok() {
                    taken.push(now);
                }
            }
            for from in 0..taken.len() {
                for to in from..taken.len() {
                    let span = (taken[to] - taken[from]).as_secs_f64();
                    let most = f64::from(rate.quota()) + span * f64::from(per_sec) * 1.001 + 1e-6;
                    prop_assert!((to - from + 1) as f64 <= most, "{} in {span} s", to - from + 1);
                }
            }
        }
    }
}
