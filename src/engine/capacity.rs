//! How often an intervention can still be offered in this day, week or month, whoever it is offered to: a place is taken before it is offered, and given back when
//! the offer could not be recorded. The ledger is the one home of how many had it, as it is of what was spent (`account`).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;

use super::Error;
use crate::domain::policy::{Capacity, Period, Policy};
use crate::ledger::Ledger;

/// The capacities of a policy: never more offers than they allow, whoever asks at the same time.
#[derive(Debug)]
pub(super) struct Capacities {
    /// By the places of the interventions.
    places: Vec<Option<Places>>,
}

/// The places of one intervention.
#[derive(Debug)]
struct Places {
    action: String,
    capacity: Capacity,
    /// Shared with the policy that follows, where that counts the same.
    span: Arc<ArcSwap<Span>>,
}

/// How many places are taken in one period.
#[derive(Debug)]
struct Span {
    ms: Range<u64>,
    taken: AtomicU32,
}

impl Span {
    fn new(ms: Range<u64>, taken: u32) -> Self {
        Self { ms, taken: AtomicU32::new(taken) }
    }
}

/// A place that is taken for a decision; it is free again when this is dropped, unless it was kept.
#[must_use]
#[derive(Debug)]
pub(super) struct Place {
    span: Option<Arc<Span>>,
}

impl Place {
    /// The decision is with the ledger: the place is gone, whatever comes.
    pub(super) fn keep(mut self) {
        self.span = None;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(span) = &self.span {
            span.taken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// How an intervention stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Occupancy {
    /// The action.
    pub action: String,
    /// How many customers can have it.
    pub capacity: Capacity,
    /// The period, as milliseconds since 1970, its end excluded.
    pub period_ms: Range<u64>,
    /// How often it was offered.
    pub taken: u32,
}

impl Capacities {
    /// The capacities of `policy` for the model `name`, if it has some. They go on where those `before` stand, action by action, where
    /// these count the same periods; otherwise as many are taken as the ledger says.
    ///
    /// Errors: a ledger that cannot be read.
    pub(super) fn open(
        policy: &Policy,
        name: &str,
        ledger: Option<&Ledger>,
        now_ms: u64,
        before: Option<&Self>,
    ) -> Result<Option<Self>, Error> {
        if !policy.has_capacities() {
            return Ok(None);
        }
        let mut counted: Vec<(Period, Offered)> = Vec::new();
        let mut places = Vec::with_capacity(policy.interventions().len());
        for intervention in policy.interventions() {
            let Some(capacity) = intervention.capacity else {
                places.push(None);
                continue;
            };
            let action = intervention.action.clone();
            let known = before.and_then(|before| before.span_of(&action, capacity.per));
            let span = match known {
                Some(span) => span,
                None => {
                    if let (Some(ledger), false) = (ledger, counted.iter().any(|(period, _)| *period == capacity.per)) {
                        let from_ms = capacity.per.around(now_ms).start;
                        counted.push((capacity.per, offered(ledger, name, from_ms)?));
                    }
                    let offered = counted.iter().find(|(period, _)| *period == capacity.per).map(|(_, all)| all);
                    let taken = match offered {
                        // Of what cannot be counted it is taken that it was all.
                        Some(None) => i64::from(capacity.count),
                        all => {
                            let all = all.into_iter().flatten().flatten();
                            all.filter(|(known, _)| *known == action).map(|(_, count)| count).sum()
                        }
                    };
                    let taken = u32::try_from(taken).unwrap_or(u32::MAX);
                    Arc::new(ArcSwap::from_pointee(Span::new(capacity.per.around(now_ms), taken)))
                }
            };
            places.push(Some(Places { action, capacity, span }));
        }
        Ok(Some(Self { places }))
    }

    /// Capacities of which it is not known what is left: nothing is, until a policy is applied or the service started again.
    pub(super) fn closed(policy: &Policy) -> Option<Self> {
        let closed = |capacity| Arc::new(ArcSwap::from_pointee(Span::new(0..u64::MAX, capacity)));
        let places = policy.interventions().iter().map(|intervention| {
            let capacity = intervention.capacity?;
            Some(Places { action: intervention.action.clone(), capacity, span: closed(capacity.count) })
        });
        policy.has_capacities().then(|| Self { places: places.collect() })
    }

    fn span_of(&self, action: &str, per: Period) -> Option<Arc<ArcSwap<Span>>> {
        let same = |places: &&Places| places.action == action && places.capacity.per == per;
        let places = self.places.iter().flatten().find(same)?;
        (places.span.load().ms != (0..u64::MAX)).then(|| places.span.clone())
    }

    /// Takes a place for a customer, where the intervention has a bound.
    ///
    /// Errors: [`Full`].
    pub(super) fn take(&self, intervention: usize, at_ms: u64) -> Result<Option<Place>, Full> {
        let Some(places) = self.places.get(intervention).and_then(Option::as_ref) else { return Ok(None) };
        let span = places.span_at(at_ms).ok_or(Full)?;
        let within = |taken: u32| taken.checked_add(1).filter(|taken| *taken <= places.capacity.count);
        // Nothing else is read by what this says: only the count has to be right.
        span.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).map_err(|_| Full)?;
        Ok(Some(Place { span: Some(span) }))
    }

    /// The actions that have no place left at `at_ms`, without taking one.
    pub(super) fn full(&self, at_ms: u64) -> Vec<String> {
        let is_full = |places: &&Places| {
            let span = places.span_at(at_ms);
            span.is_none_or(|span| span.taken.load(Ordering::Relaxed) >= places.capacity.count)
        };
        self.places.iter().flatten().filter(is_full).map(|places| places.action.clone()).collect()
    }

    /// How they stand.
    pub(super) fn occupancies(&self, now_ms: u64) -> Vec<Occupancy> {
        let occupancy = |places: &Places| {
            let span = places.span_at(now_ms).unwrap_or_else(|| places.span.load_full());
            Occupancy {
                action: places.action.clone(),
                capacity: places.capacity,
                period_ms: span.ms.clone(),
                taken: span.taken.load(Ordering::Relaxed),
            }
        };
        self.places.iter().flatten().map(occupancy).collect()
    }
}

/// There is no place left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Places {
    /// The period that `at_ms` is in, which begins with its first decision; what comes late for one that is over finds none.
    fn span_at(&self, at_ms: u64) -> Option<Arc<Span>> {
        let span = self.span.load_full();
        if at_ms < span.ms.end {
            return span.ms.contains(&at_ms).then_some(span);
        }
        let next = Arc::new(Span::new(self.capacity.per.around(at_ms), 0));
        self.span.rcu(|span| if at_ms < span.ms.end { span.clone() } else { next.clone() });
        Some(self.span.load_full()).filter(|span| span.ms.contains(&at_ms))
    }
}

/// How often each action was offered, where that is known.
type Offered = Option<Vec<(String, i64)>>;

/// How often each action was offered by `name` since `from_ms`, whatever policy did it; `None` where that cannot be known any more.
fn offered(ledger: &Ledger, name: &str, from_ms: u64) -> Result<Offered, Error> {
    let spending = ledger.spending(name, from_ms as i64..i64::MAX)?;
    if !spending.is_whole {
        tracing::error!(
            model = name,
            "decisions of this period have been removed by retention, and with them what was offered: no places are left in it"
        );
        return Ok(None);
    }
    Ok(Some(spending.groups.into_iter().map(|group| (group.action, group.count)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::policy::document;
    use std::sync::atomic::AtomicU32;

    const DAY: u64 = 86_400_000;

    fn policy(count: u32, per: &str) -> Policy {
        let document = include_str!("../../models/policy/default.toml");
        let capped = format!("expected_effectiveness = 0.40\ncapacity = {{ count = {count}, per = \"{per}\" }}");
        let document = document.replacen("expected_effectiveness = 0.40", &capped, 1);
        document::parse(&document, "v").unwrap_or_else(|problems| panic!("{}", problems.join("\n")))
    }

    fn open(policy: &Policy, before: Option<&Capacities>) -> Capacities {
        Capacities::open(policy, "m", None, DAY, before).expect("no ledger to fail").expect("a capacity")
    }

    #[test]
    fn sixteen_threads_never_take_more_places_than_there_are() {
        let policy = policy(100, "day");
        let capacities = open(&policy, None);
        let kept = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for thread in 0..16_u64 {
                let (capacities, kept) = (&capacities, &kept);
                scope.spawn(move || {
                    for turn in 0..50_u64 {
                        let place = capacities.take(1, DAY + turn).ok().flatten();
                        assert!(capacities.occupancies(DAY)[0].taken <= 100);
                        // Some are not recorded: their places are free again.
                        if let Some(place) = place.filter(|_| (thread + turn) % 3 > 0) {
                            kept.fetch_add(1, Ordering::Relaxed);
                            place.keep();
                        }
                    }
                });
            }
        });
        assert_eq!(capacities.occupancies(DAY)[0].taken, kept.load(Ordering::Relaxed));
        assert_eq!(kept.load(Ordering::Relaxed), 100);
    }

    #[test]
    fn each_period_has_its_own_places_and_a_policy_goes_on_where_the_last_one_stood() {
        let few = policy(2, "day");
        let capacities = open(&few, None);
        let take =
            |capacities: &Capacities, at_ms| capacities.take(1, at_ms).map(|place| place.map(Place::keep).is_some());
        assert_eq!(capacities.full(DAY), Vec::<String>::new());
        assert_eq!([DAY, DAY + 1, DAY + 2].map(|at| take(&capacities, at)), [Ok(true), Ok(true), Err(Full)]);
        assert_eq!(capacities.full(DAY + 2), [policy(2, "day").interventions()[1].action.clone()]);
        assert_eq!(capacities.take(2, DAY).map(|place| place.is_none()), Ok(true), "no bound, no place");
        let more = open(&policy(3, "day"), Some(&capacities));
        assert_eq!([DAY + 3, DAY + 4].map(|at| take(&more, at)), [Ok(true), Err(Full)]);
        assert_eq!(take(&open(&policy(3, "week"), Some(&more)), DAY), Ok(true), "another period is counted anew");
        assert_eq!(take(&more, 2 * DAY), Ok(true));
        assert_eq!(take(&more, 2 * DAY - 1), Err(Full), "the day before is over");
        let closed = Capacities::closed(&few).expect("a capacity");
        assert_eq!(take(&closed, DAY), Err(Full));
        assert_eq!(take(&open(&few, Some(&closed)), DAY), Ok(true), "what is closed is nothing to go on from");
    }
}
