//! Pacing: a budget spent over a period as customers come, by a shadow price that follows the spending. Exact arithmetic: what is
//! spent and what is reserved are never more than the budget together. Pure; making it atomic is the business of who holds it.

use serde::{Deserialize, Serialize};

use crate::domain::money::Money;

/// Milliseconds in a day: the time in which the price moves by [`Settings::eta`].
const DAY_MS: f64 = 86_400_000.0;
/// The least pace that demand is measured by, as a share of the even pace: once a budget has gone, its price would know no end.
const PACE_MIN: f64 = 0.25;
/// How far the price may move at one update, in days of demand over or under the target.
const STEP_DAYS_MAX: f64 = 1.0;
/// How many times as fast the price moves at first, when it is but a guess.
const HASTE: f64 = 24.0;
/// How long it takes until that has fallen to one half, then to a third, and so on until it is 1.
const HASTE_MS: f64 = 6.0 * 3_600_000.0;
/// The greatest price, in value per currency unit.
const PRICE_MAX: f64 = 1e12;

/// How a budget is paced.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How fast the price moves: after a day of demand of twice the target it has risen by the factor e^eta; over 0, to 10.
    pub eta: f64,
    /// A price that counts as small, in value per currency unit, over 0: well above it the price moves by factors, well below it by
    /// amounts, so that it can reach 0 and leave it. Where values are amounts of the same currency, 1 or less.
    pub price_unit: f64,
    /// How many times as fast as the target may be spent at most, whatever the demand, 1 to 100.
    pub overdrive: f64,
    /// How long a quiet time may be made up for at once, in seconds, 60 to 31 days.
    pub burst_secs: u64,
    /// Whether what one period leaves is added to the next.
    pub carry_over: bool,
}

/// A day never takes more than 1.875 times its share of what is left at its start: 1.5 days of even spending and what quiet hours
/// before it have left, at most 6 hours times 1.5.
impl Default for Settings {
    fn default() -> Self {
        Self { eta: 0.5, price_unit: 0.1, overdrive: 1.5, burst_secs: 6 * 3_600, carry_over: false }
    }
}

impl Settings {
    /// Every value that is out of its range, as (name, sentence).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        for (name, value, min, max) in [
            ("eta", self.eta, 1e-3, 10.0),
            ("price_unit", self.price_unit, 1e-9, 1e9),
            ("overdrive", self.overdrive, 1.0, 100.0),
            ("burst_secs", self.burst_secs as f64, 60.0, 31.0 * 86_400.0),
        ] {
            // Written so that NaN is out of every range.
            if !(value >= min && value <= max) {
                problems.push((name, format!("expected {min} to {max}")));
            }
        }
        problems
    }
}

/// An amount that is set aside until it is known what became of it: to be given back to the [`Pacer`] or the [`Lease`] that it came
/// from, once, by `commit`. Not to be cloned, so that it is not given back twice.
#[must_use]
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    /// How much, 0 or more.
    #[serde(with = "micros")]
    amount: Money,
    /// The start of the period that it belongs to.
    from_ms: u64,
}

impl Reservation {
    /// How much, 0 or more.
    pub fn amount(&self) -> Money {
        self.amount
    }
}

/// The budget of one period and how it is going. Law: 0 <= spent + reserved <= released <= budget, at every moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pacer {
    /// What may be spent from `from_ms` to `to_ms`, 0 or more.
    #[serde(with = "micros")]
    budget: Money,
    from_ms: u64,
    to_ms: u64,
    #[serde(with = "micros")]
    spent: Money,
    #[serde(with = "micros")]
    reserved: Money,
    /// The part of the budget that may be spent by now.
    #[serde(with = "micros")]
    released: Money,
    /// What was asked for since the last update, granted or not.
    #[serde(with = "micros")]
    wanted: Money,
    /// Value per currency unit, 0 or more.
    shadow_price: f64,
    /// The first update ever, of this period or one before.
    since_ms: Option<u64>,
    last_update_ms: u64,
}

impl Pacer {
    /// A budget for the time from `from_ms` to `to_ms` (excluded; milliseconds since 1970), of which nothing is spent or released
    /// yet, at `price` (value per currency unit) as a first guess: 0, or better the multiplier of an allocation of recent rows. A
    /// period that has begun before the first update is met at its even pace from then on, so that the budget suffices for the
    /// rest.
    ///
    /// `None` when the budget is below 0, the period is empty, or the price is not 0 to 1e12.
    pub fn new(budget: Money, from_ms: u64, to_ms: u64, price: f64) -> Option<Self> {
        let legal = budget >= Money::ZERO && from_ms < to_ms && (0.0..=PRICE_MAX).contains(&price);
        legal.then_some(Self {
            budget,
            from_ms,
            to_ms,
            spent: Money::ZERO,
            reserved: Money::ZERO,
            released: Money::ZERO,
            wanted: Money::ZERO,
            shadow_price: price,
            since_ms: None,
            last_update_ms: 0,
        })
    }

    /// The price of a unit of budget, in value: an offer is worth it when its value is over this times its cost. What is best at it
    /// is told by `allocation::best`.
    pub fn shadow_price(&self) -> f64 {
        self.shadow_price
    }

    /// The budget of this period.
    pub fn budget(&self) -> Money {
        self.budget
    }

    /// What is known to be spent.
    pub fn spent(&self) -> Money {
        self.spent
    }

    /// What is set aside.
    pub fn reserved(&self) -> Money {
        self.reserved
    }

    /// What may be reserved now.
    pub fn headroom(&self) -> Money {
        self.released.less(self.committed())
    }

    /// The period, as milliseconds since 1970, the end excluded.
    pub fn period_ms(&self) -> std::ops::Range<u64> {
        self.from_ms..self.to_ms
    }

    /// The last update, milliseconds since 1970; 0 before the first.
    pub fn updated_ms(&self) -> u64 {
        self.last_update_ms
    }

    /// Takes over what an account that is kept elsewhere has seen: what was `wanted` since it was last told, granted or not, and what is
    /// `spent` of this period by now. What is spent counts as released.
    pub fn observe(&mut self, wanted: Money, spent: Money) {
        self.wanted = self.wanted.plus(wanted);
        self.spent = spent.min(self.budget.less(self.reserved)).max(Money::ZERO);
        self.released = self.released.max(self.committed());
    }

    /// Sets `cost` aside, where spent and reserved stay within what is released with it; `None` where they do not, or the cost is
    /// below 0. To be asked before an offer is made: refused means that the offer must not be made. Nothing is released before the
    /// first update and after the end of the period.
    ///
    /// Atomically this is one compare-and-swap on the headroom: `headroom >= cost`, then `headroom -= cost`.
    #[must_use]
    pub fn reserve(&mut self, cost: Money) -> Option<Reservation> {
        if cost < Money::ZERO {
            return None;
        }
        self.wanted = self.wanted.plus(cost);
        self.set_aside(cost)
    }

    /// Ends a reservation: `cost` of it was spent (all of it at most, 0 at least), the rest is free again. Of one from an earlier
    /// period nothing changes, as that period has counted all of it.
    pub fn commit(&mut self, reservation: Reservation, cost: Money) {
        if reservation.from_ms == self.from_ms {
            self.reserved = self.reserved.less(reservation.amount);
            self.spent = self.spent.plus(cost.clamp(Money::ZERO, reservation.amount));
        }
    }

    /// The time is `now_ms`: releases what the time since the last update brings, and moves the price. To be called regularly, from
    /// each second to each hour; how often makes little difference. A clock that goes back changes nothing.
    ///
    /// Dual descent after Balseiro and Gur (Management Science 65, 2019) and arXiv 2108.13298, in continuous time and with the
    /// entropy of the shifted price as its distance, so that a step is a share of the price:
    /// `price <- max(0, (price + unit) exp(eta (wanted / target - elapsed)) - unit)`, times in days, with the target in budget per
    /// day: what is left of the budget by what is left of the period. To first order it is
    /// `price + eta (price + unit) (rate / target - 1) elapsed`. What counts is demand, granted or not: where more is refused than
    /// granted, the price has to find its level before it has been paid for.
    pub fn update(&mut self, now_ms: u64, settings: &Settings) {
        if now_ms < self.from_ms {
            return;
        }
        if now_ms >= self.to_ms {
            self.released = self.committed();
            self.last_update_ms = self.last_update_ms.max(self.to_ms);
            return;
        }
        let first = self.last_update_ms < self.from_ms;
        if now_ms <= self.last_update_ms {
            return;
        }
        let before_ms = if first { now_ms } else { self.last_update_ms };
        let (elapsed_ms, left_ms) = ((now_ms - before_ms) as f64, (self.to_ms - before_ms) as f64);
        let left = self.budget.less(self.committed());
        // Millionths per millisecond. The money is that of now, the time that of before, so that the last update releases all.
        let pace = left.micros() as f64 / left_ms;
        let even = self.budget.micros() as f64 / (self.to_ms - self.from_ms) as f64;
        let target = pace.max(PACE_MIN * even);

        let days = if target > 0.0 {
            (self.wanted.micros() as f64 / target - elapsed_ms) / DAY_MS
        } else if self.wanted > Money::ZERO {
            STEP_DAYS_MAX
        } else {
            0.0
        };
        let age_ms = (now_ms - *self.since_ms.get_or_insert(now_ms)) as f64;
        let haste = (HASTE / (1.0 + age_ms / HASTE_MS)).max(1.0);
        let factor = (settings.eta * (haste * days).clamp(-STEP_DAYS_MAX, STEP_DAYS_MAX)).exp();
        let price = (self.shadow_price + settings.price_unit) * factor - settings.price_unit;
        self.shadow_price = price.clamp(0.0, PRICE_MAX);

        // A whole burst at the start: a day that begins must not wait for its money.
        let burst_ms = settings.burst_secs as f64 * 1e3;
        let released_ms = if first { burst_ms } else { elapsed_ms };
        let share = |ms: f64| (pace * settings.overdrive * ms).min(left.micros() as f64) as i64;
        let headroom = self.headroom().micros().saturating_add(share(released_ms)).min(share(burst_ms));
        self.released = self.committed().plus(Money::from_micros(headroom));
        self.wanted = Money::ZERO;
        self.last_update_ms = now_ms;
    }

    /// The period that follows at once, to `to_ms`, with `budget` and, where the setting says so, what this one has left. It starts
    /// at the price that this one ended at. What is reserved counts as spent here, whatever becomes of it, so that neither budget
    /// is exceeded. `None` when the budget is below 0 or the end not after the start.
    pub fn next(self, budget: Money, to_ms: u64, settings: &Settings) -> Option<Self> {
        let kept = if settings.carry_over { self.budget.less(self.committed()) } else { Money::ZERO };
        Self::new(budget, self.to_ms, to_ms, self.shadow_price).map(|next| Self {
            budget: budget.plus(kept),
            since_ms: self.since_ms,
            ..next
        })
    }

    /// A part of the budget for one replica until `until_ms`, at the price of now; `None` where the headroom is less. The part is
    /// reserved here until it [`end`](Self::end)s; of a replica that does not come back, all of it stays reserved and so counts as
    /// spent. Leases do not count as demand: what customers wanted is told when they end.
    #[must_use]
    pub fn lease(&mut self, amount: Money, until_ms: u64) -> Option<Lease> {
        if amount < Money::ZERO {
            return None;
        }
        let until_ms = until_ms.min(self.to_ms);
        let shadow_price = self.shadow_price;
        self.set_aside(amount).map(|reservation| Lease {
            reservation,
            until_ms,
            spent: Money::ZERO,
            reserved: Money::ZERO,
            wanted: Money::ZERO,
            shadow_price,
        })
    }

    /// Takes a lease back: what was spent of it, and what is reserved of it still, is spent; the rest is free again.
    pub fn end(&mut self, lease: Lease) {
        if lease.reservation.from_ms == self.from_ms {
            self.wanted = self.wanted.plus(lease.wanted);
        }
        let cost = lease.spent.plus(lease.reserved);
        self.commit(lease.reservation, cost);
    }

    fn committed(&self) -> Money {
        self.spent.plus(self.reserved)
    }

    fn set_aside(&mut self, amount: Money) -> Option<Reservation> {
        (amount <= self.headroom()).then(|| {
            self.reserved = self.reserved.plus(amount);
            Reservation { amount, from_ms: self.from_ms }
        })
    }
}

/// A part of a budget that one replica spends by itself, without asking for each customer. Law: spent + reserved <= amount.
#[must_use]
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    reservation: Reservation,
    until_ms: u64,
    #[serde(with = "micros")]
    spent: Money,
    #[serde(with = "micros")]
    reserved: Money,
    #[serde(with = "micros")]
    wanted: Money,
    shadow_price: f64,
}

impl Lease {
    /// The price at which it was given, value per currency unit.
    pub fn shadow_price(&self) -> f64 {
        self.shadow_price
    }

    /// Until when it may be reserved from, milliseconds since 1970; never after the end of its period.
    pub fn until_ms(&self) -> u64 {
        self.until_ms
    }

    /// What may be reserved yet.
    pub fn headroom(&self) -> Money {
        self.reservation.amount.less(self.spent.plus(self.reserved))
    }

    /// Sets `cost` aside, as [`Pacer::reserve`] does; `None` also once its time is over.
    #[must_use]
    pub fn reserve(&mut self, cost: Money, now_ms: u64) -> Option<Reservation> {
        if cost < Money::ZERO {
            return None;
        }
        self.wanted = self.wanted.plus(cost);
        (now_ms < self.until_ms && cost <= self.headroom()).then(|| {
            self.reserved = self.reserved.plus(cost);
            Reservation { amount: cost, from_ms: self.reservation.from_ms }
        })
    }

    /// Ends a reservation from this lease, as [`Pacer::commit`] does. One from another lease must not be given to it.
    pub fn commit(&mut self, reservation: Reservation, cost: Money) {
        self.reserved = self.reserved.less(reservation.amount);
        self.spent = self.spent.plus(cost.clamp(Money::ZERO, reservation.amount));
    }
}

/// Amounts as whole millionths, in a state that is kept.
mod micros {
    use super::Money;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(money: &Money, serializer: S) -> Result<S::Ok, S::Error> {
        money.micros().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Money, D::Error> {
        i64::deserialize(deserializer).map(Money::from_micros)
    }
}

#[cfg(test)]
mod tests {
    use super::super::allocation::{Offer, allocate, best};
    use super::*;
    use proptest::prelude::*;

    const DAY: u64 = 86_400_000;
    const HOUR: u64 = 3_600_000;
    /// Some moment in time at which a month begins.
    const START: u64 = 1_790_812_800_000;

    fn units(units: f64) -> Money {
        Money::from_units(units).expect("an amount")
    }

    fn normal(random: &mut fastrand::Rng) -> f64 {
        (0..12).map(|_| random.f64()).sum::<f64>() - 6.0
    }

    /// One month of customers as they may come.
    #[derive(Clone, Copy)]
    struct Traffic {
        /// Customers per hour, on average.
        rate: f64,
        /// The daily cycle: 0 is even, 1 falls to nothing at night.
        cycle: f64,
        /// The spread of a customer's worth, as that of its logarithm.
        tail: f64,
        /// What a customer is worth, about.
        worth: f64,
        /// For a while, this many times the customers.
        burst: f64,
        /// The share of what could be spent on all that there is to spend.
        scarcity: f64,
        /// The day at which the service starts.
        begin: u64,
        /// The first guess at the price.
        price: f64,
        update_ms: u64,
    }

    const TYPICAL: Traffic = Traffic {
        rate: 20.0,
        cycle: 0.8,
        tail: 1.0,
        worth: 60.0,
        burst: 1.0,
        scarcity: 0.15,
        begin: 0,
        price: 0.0,
        update_ms: 10 * 60_000,
    };

    #[derive(Debug)]
    struct Report {
        /// Value, as a share of what no hindsight can be above.
        value: f64,
        spent: f64,
        /// The greatest spending of a day, in even days of the budget.
        day_max: f64,
        /// The same, in even days of what was left as the day began.
        day_left_max: f64,
        price: f64,
        multiplier: f64,
    }

    fn simulate(traffic: Traffic, settings: &Settings, seed: u64) -> Report {
        let mut random = fastrand::Rng::with_seed(seed);
        let (begin, end) = (START + traffic.begin * DAY, START + 30 * DAY);
        let ticks = (end - begin) / traffic.update_ms;
        let mut rows: Vec<Vec<Vec<Offer>>> = Vec::new();
        let mut weather = 0.0;
        for tick in 0..ticks {
            let at_ms = begin + tick * traffic.update_ms;
            weather = 0.98 * weather + 0.06 * normal(&mut random);
            let day = (at_ms % DAY) as f64 / DAY as f64;
            let burst = if (at_ms - START) / HOUR / 3 == 90 { traffic.burst } else { 1.0 };
            let cycle = 1.0 + traffic.cycle * (std::f64::consts::TAU * (day - 0.3)).sin();
            let mean = traffic.rate * cycle * f64::exp(weather) * burst * traffic.update_ms as f64 / HOUR as f64;
            let count = (mean + mean.sqrt() * normal(&mut random)).round().max(0.0) as usize;
            let customer = |random: &mut fastrand::Rng| {
                let worth = traffic.worth * (traffic.tail * normal(random)).exp() * random.f64();
                let noise = 0.5 + random.f64();
                [(5.0, 0.15), (20.0, 0.35), (50.0, 0.5)]
                    .map(|(cost, effect)| Offer { cost: units(cost), value: worth * effect * noise })
                    .to_vec()
            };
            rows.push((0..count).map(|_| customer(&mut random)).collect());
        }
        let all: Vec<&[Offer]> = rows.iter().flatten().map(Vec::as_slice).collect();
        let budget = units((all.len() as f64 * 50.0 * traffic.scarcity).round());
        let hindsight = allocate(&all, budget).expect("legal");

        let mut pacer = Pacer::new(budget, START, end, traffic.price).expect("legal");
        let (mut value, mut days, mut left_at) = (0.0, vec![0.0; 30], vec![0.0; 30]);
        for (tick, customers) in rows.iter().enumerate() {
            let now_ms = begin + tick as u64 * traffic.update_ms;
            pacer.update(now_ms, settings);
            let day = ((now_ms - START) / DAY) as usize;
            if left_at[day] == 0.0 {
                left_at[day] = pacer.budget().less(pacer.committed()).units().max(1e-9);
            }
            for offers in customers {
                let Some(chosen) = best(offers, pacer.shadow_price()).map(|at| offers[at]) else { continue };
                let before = pacer.headroom();
                let Some(reservation) = pacer.reserve(chosen.cost) else {
                    assert!(before < chosen.cost);
                    continue;
                };
                pacer.commit(reservation, chosen.cost);
                value += chosen.value;
                days[day] += chosen.cost.units();
                assert!(pacer.committed() <= pacer.released && pacer.released <= pacer.budget);
            }
        }
        let even = budget.units() / (30 - traffic.begin) as f64;
        let left_even = days
            .iter()
            .zip(&left_at)
            .enumerate()
            .map(|(day, (spent, left))| spent * (30 - day) as f64 / left.max(1e-9));
        Report {
            value: value / hindsight.bound,
            spent: pacer.spent().units() / budget.units(),
            day_max: days.iter().fold(0.0, |max: f64, day| max.max(day / even)),
            day_left_max: left_even.fold(0.0, f64::max),
            price: pacer.shadow_price(),
            multiplier: hindsight.multiplier,
        }
    }

    /// The worst of some months: (value, spending, day, day by what was left).
    fn worst(name: &str, traffic: Traffic, months: u64) -> (f64, f64, f64, f64) {
        let reports: Vec<Report> = (0..months).map(|seed| simulate(traffic, &Settings::default(), seed)).collect();
        let least = |of: fn(&Report) -> f64| reports.iter().map(of).fold(f64::INFINITY, f64::min);
        let most = |of: fn(&Report) -> f64| reports.iter().map(of).fold(0.0, f64::max);
        let found = (least(|r| r.value), least(|r| r.spent), most(|r| r.day_max), most(|r| r.day_left_max));
        println!(
            "{name}: value {:.3}, spent {:.3}, day {:.2}, of what was left {:.2}",
            found.0, found.1, found.2, found.3
        );
        assert!(found.3 <= 2.0, "{name}: a day took {} times its share", found.3);
        found
    }

    #[test]
    fn a_typical_month_brings_nine_tenths_of_what_hindsight_could() {
        for (name, traffic, months) in [
            ("typical", TYPICAL, 2),
            ("quiet nights", Traffic { cycle: 1.0, ..TYPICAL }, 1),
            ("heavy tail", Traffic { tail: 1.6, ..TYPICAL }, 1),
            ("scarce", Traffic { scarcity: 0.02, ..TYPICAL }, 1),
            ("a good first price", Traffic { price: 0.8, ..TYPICAL }, 1),
            ("updated each hour", Traffic { update_ms: HOUR, ..TYPICAL }, 1),
        ] {
            let (value, spent, day, _) = worst(name, traffic, months);
            assert!(value >= 0.9, "{name}: {value}");
            assert!(spent >= 0.95 && day <= 2.0, "{name}: spent {spent}, a day of {day}");
        }
    }

    #[test]
    fn an_odd_month_is_met_too() {
        for (name, traffic, least) in [
            ("a burst of twenty times", Traffic { burst: 20.0, ..TYPICAL }, 0.9),
            ("from the middle", Traffic { begin: 15, ..TYPICAL }, 0.9),
            ("the last three days", Traffic { begin: 27, ..TYPICAL }, 0.85),
            ("values a hundred times as high", Traffic { worth: 6_000.0, ..TYPICAL }, 0.9),
            ("values a hundredth as high", Traffic { worth: 0.6, ..TYPICAL }, 0.85),
            ("a first price far too high", Traffic { price: 50.0, ..TYPICAL }, 0.9),
            ("a hundred offers in all", Traffic { rate: 1.0, ..TYPICAL }, 0.75),
        ] {
            let (value, ..) = worst(name, traffic, 1);
            assert!(value >= least, "{name}: {value}");
        }
        let plenty = simulate(Traffic { scarcity: 2.0, ..TYPICAL }, &Settings::default(), 1);
        assert!(plenty.value > 0.999 && plenty.price == 0.0, "{plenty:?}");
        let warm = simulate(Traffic { price: 0.8, ..TYPICAL }, &Settings::default(), 1);
        assert!((warm.price / warm.multiplier).ln().abs() < 0.7, "{warm:?}");
    }

    fn pacer(budget: f64) -> Pacer {
        Pacer::new(units(budget), START, START + 30 * DAY, 1.0).expect("legal")
    }

    proptest! {
        #[test]
        fn never_more_than_the_budget(
            budget in 0_i64..5_000_000_000,
            moves in prop::collection::vec((0_u8..7, 0_i64..400_000_000, 0_u64..3 * DAY), 1..120),
        ) {
            let settings = Settings { carry_over: budget % 2 == 0, ..Settings::default() };
            let mut budget = Money::from_micros(budget);
            let mut pacer = Pacer::new(budget, START, START + 30 * DAY, 0.0).expect("legal");
            let (mut now_ms, mut open, mut leases) = (START - DAY, Vec::new(), Vec::new());
            // What really went out, whoever had reserved it, since the period began.
            let (mut out, mut period) = (Money::ZERO, START);
            for (kind, amount, pause_ms) in moves {
                let amount = Money::from_micros(amount);
                match kind {
                    0 => open.extend(pacer.reserve(amount)),
                    1 => if let Some(reservation) = open.pop() {
                        if reservation.from_ms == period { out = out.plus(amount.less(Money::ZERO).min(reservation.amount())); }
                        pacer.commit(reservation, amount);
                    },
                    2 => { now_ms += pause_ms; pacer.update(now_ms, &settings); }
                    3 => leases.extend(pacer.lease(amount, now_ms + HOUR)),
                    4 => if let Some(lease) = leases.last_mut() {
                        if let Some(reservation) = Lease::reserve(lease, amount, now_ms) { Lease::commit(lease, reservation, amount) }
                        prop_assert!(lease.spent.plus(lease.reserved) <= lease.reservation.amount());
                    },
                    5 => if let Some(lease) = leases.pop() {
                        if lease.reservation.from_ms == period { out = out.plus(lease.spent); }
                        pacer.end(lease);
                    },
                    _ => if now_ms >= pacer.period_ms().end {
                        let left = if settings.carry_over { pacer.budget.less(pacer.committed()) } else { Money::ZERO };
                        let end = pacer.period_ms().end;
                        pacer = pacer.next(budget, end + 30 * DAY, &settings).expect("legal");
                        prop_assert_eq!(pacer.budget, budget.plus(left));
                        budget = budget.less(Money::from_micros(1));
                        (out, period) = (Money::ZERO, end);
                    },
                }
                prop_assert!(pacer.committed() <= pacer.released && pacer.released <= pacer.budget, "{:?}", pacer);
                prop_assert!(pacer.spent >= Money::ZERO && pacer.reserved >= Money::ZERO && out <= pacer.spent, "{:?}", pacer);
                prop_assert!((0.0..=PRICE_MAX).contains(&pacer.shadow_price));
            }
        }
    }

    #[test]
    fn nothing_outside_the_period() {
        let (mut pacer, settings) = (pacer(3_000.0), Settings::default());
        assert_eq!(pacer.reserve(units(1.0)), None, "before the first update");
        pacer.update(START - 1, &settings);
        assert_eq!(pacer.headroom(), Money::ZERO);
        pacer.update(START, &settings);
        // Six hours at one and a half times the pace of 100 a day.
        assert_eq!(pacer.headroom(), units(37.5));
        let kept = pacer.reserve(units(30.0)).expect("headroom");
        pacer.update(START, &settings);
        assert_eq!(pacer.headroom(), units(7.5), "time stands");
        pacer.update(START - HOUR, &settings);
        assert_eq!(pacer.headroom(), units(7.5), "or goes back");
        pacer.commit(kept, units(10.0));
        assert_eq!((pacer.headroom(), pacer.spent()), (units(27.5), units(10.0)));
        pacer.update(START + 30 * DAY, &settings);
        assert_eq!((pacer.headroom(), pacer.reserve(Money::from_micros(1))), (Money::ZERO, None));
        assert_eq!(pacer.reserve(Money::from_micros(-1)), None);
        for (budget, to_ms, price) in
            [(-1, START + 1, 0.0), (1, START, 0.0), (1, START + 1, -1.0), (1, START + 1, f64::NAN)]
        {
            assert_eq!(Pacer::new(Money::from_micros(budget), START, to_ms, price), None);
        }
    }

    #[test]
    fn the_price_follows_demand_by_days_not_by_updates() {
        // Two days of twice the target, seen in steps of very different length, long after the first guess.
        let after = |update_ms: u64| {
            let (mut pacer, settings) = (pacer(3_000.0), Settings::default());
            (pacer.since_ms, pacer.last_update_ms) = (Some(START - 60 * DAY), START);
            for tick in 1..=2 * DAY / update_ms {
                pacer.wanted = Money::from_micros((200e6 * update_ms as f64 / DAY as f64) as i64);
                pacer.update(START + tick * update_ms, &settings);
            }
            pacer.shadow_price()
        };
        let expected = 1.1 * f64::exp(0.5 * 2.0) - 0.1;
        for update_ms in [1_000 * 60, HOUR, 12 * HOUR] {
            let price = after(update_ms);
            assert!((price / expected).ln().abs() < 0.1, "{price}, not {expected}");
        }
        let mut idle = pacer(3_000.0);
        (0..3_000).for_each(|hour| idle.update(START + hour * HOUR, &Settings::default()));
        assert_eq!(idle.shadow_price(), 0.0, "nothing is wanted at any price");
    }

    #[test]
    fn a_day_never_takes_twice_its_share() {
        // Whatever is to be had is taken, at any price, from some hour of each third day on, or always.
        for (from_hour, every) in [(0, 1), (0, 3), (6, 1), (6, 3), (12, 1), (18, 3)] {
            let (mut pacer, settings) = (pacer(3_000.0), Settings::default());
            for day in 0..30 {
                let left = pacer.budget().less(pacer.committed()).units();
                let (mut spent, share) = (0.0, left / (30 - day) as f64);
                for quarter in 0..96 {
                    pacer.update(START + day * DAY + quarter * HOUR / 4, &settings);
                    if day % every == 0 && quarter / 4 >= from_hour {
                        let reservation = pacer.reserve(pacer.headroom()).expect("headroom");
                        spent += reservation.amount().units();
                        let all = reservation.amount();
                        pacer.commit(reservation, all);
                    }
                }
                assert!(spent <= 1.9 * share, "day {day} from {from_hour}: {spent} of {share}");
            }
        }
    }

    #[test]
    fn a_period_follows_another() {
        let settings = Settings::default();
        let mut first = pacer(3_000.0);
        first.update(START, &settings);
        let late = first.reserve(units(10.0)).expect("headroom");
        let lease = first.lease(units(20.0), START + 60 * DAY).expect("headroom");
        assert_eq!(lease.until_ms(), START + 30 * DAY, "no lease outlives its period");
        first.update(START + 30 * DAY, &settings);
        let price = first.shadow_price();
        let end = START + 61 * DAY;
        let carried =
            first.clone().next(units(3_100.0), end, &Settings { carry_over: true, ..settings }).expect("legal");
        assert_eq!(carried.budget(), units(3_100.0 + 3_000.0 - 30.0));
        let mut second = first.next(units(3_100.0), end, &settings).expect("legal");
        assert_eq!(
            (second.budget(), second.shadow_price(), second.period_ms()),
            (units(3_100.0), price, START + 30 * DAY..end)
        );
        second.update(START + 30 * DAY, &settings);
        let headroom = second.headroom();
        second.commit(late, Money::ZERO);
        second.end(lease);
        assert_eq!((second.headroom(), second.spent()), (headroom, Money::ZERO), "of the first, nothing comes back");
        assert_eq!(second.clone().next(units(1.0), end, &settings), None);
    }

    #[test]
    fn leases_for_replicas() {
        let settings = Settings::default();
        let mut pacer = pacer(3_000.0);
        pacer.update(START, &settings);
        let [mut one, mut two] = [10.0, 20.0].map(|amount| pacer.lease(units(amount), START + HOUR).expect("headroom"));
        assert_eq!((pacer.lease(units(10.0), START + HOUR), pacer.headroom()), (None, units(7.5)));
        assert_eq!(one.shadow_price(), pacer.shadow_price());
        let spent = one.reserve(units(6.0), START).expect("headroom");
        assert_eq!(one.reserve(units(6.0), START), None, "no more than it has");
        one.commit(spent, units(5.0));
        let open = two.reserve(units(8.0), START).expect("headroom");
        assert_eq!(two.reserve(units(1.0), START + HOUR), None, "its time is over");
        assert_eq!((one.headroom(), two.headroom()), (units(5.0), units(12.0)));
        let text = serde_json::to_string(&one).expect("JSON");
        pacer.end(serde_json::from_str(&text).expect("a lease"));
        pacer.end(two);
        drop(open);
        assert_eq!((pacer.spent(), pacer.reserved()), (units(13.0), Money::ZERO), "what is open counts as spent");
        assert_eq!(pacer.wanted, units(21.0), "what customers wanted, not what was leased");
    }

    #[test]
    fn a_state_reads_back_and_settings_have_ranges() {
        let mut pacer = pacer(123.456_789);
        pacer.update(START + 7, &Settings::default());
        let text = serde_json::to_string(&pacer).expect("JSON");
        assert_eq!(serde_json::from_str::<Pacer>(&text).expect("a state"), pacer);
        assert_eq!(Settings::default().problems(), []);
        let bad = Settings { eta: f64::NAN, price_unit: 0.0, overdrive: 0.5, burst_secs: 1, carry_over: false };
        let names: Vec<&str> = bad.problems().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["eta", "price_unit", "overdrive", "burst_secs"]);
    }
}
