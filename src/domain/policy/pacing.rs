//! Pacing: the shadow price of a budget that is spent over a period as customers come. Pure; what may be spent at all, and who holds it, is
//! the business of the engine.

use crate::domain::money::Money;

/// Milliseconds in a day: the time in which the price moves by [`ETA`].
const DAY_MS: f64 = 86_400_000.0;
/// How fast the price moves: after a day of demand of twice the target it has risen by the factor e^ETA.
const ETA: f64 = 0.5;
/// A price that counts as small, in value per currency unit: well above it the price moves by factors, well below it by amounts, so that it
/// can reach 0 and leave it. Values are amounts of the same currency.
const PRICE_UNIT: f64 = 0.1;
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

/// The price of the budget of one period, and what it follows.
#[derive(Debug, Clone, PartialEq)]
pub struct Pacer {
    /// What may be spent from `from_ms` to `to_ms`, 0 or more.
    budget: Money,
    from_ms: u64,
    to_ms: u64,
    spent: Money,
    /// What was asked for since the last update, granted or not.
    wanted: Money,
    /// Value per currency unit, 0 or more.
    shadow_price: f64,
    /// The first update ever, of this period or one before.
    since_ms: Option<u64>,
    last_update_ms: u64,
}

impl Pacer {
    /// A budget for the time from `from_ms` to `to_ms` (excluded; milliseconds since 1970), of which nothing is spent yet, at `price` (value per
    /// currency unit) as a first guess: 0, or better the multiplier of an allocation of recent rows. A period that has begun before the
    /// first update is met at its even pace from then on, so that the budget suffices for the rest.
    ///
    /// `None` when the budget is below 0, the period is empty, or the price is not 0 to 1e12.
    pub fn new(budget: Money, from_ms: u64, to_ms: u64, price: f64) -> Option<Self> {
        let legal = budget >= Money::ZERO && from_ms < to_ms && (0.0..=PRICE_MAX).contains(&price);
        legal.then_some(Self {
            budget,
            from_ms,
            to_ms,
            spent: Money::ZERO,
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

    /// The period, as milliseconds since 1970, the end excluded.
    pub fn period_ms(&self) -> std::ops::Range<u64> {
        self.from_ms..self.to_ms
    }

    /// The last update, milliseconds since 1970; 0 before the first.
    pub fn updated_ms(&self) -> u64 {
        self.last_update_ms
    }

    /// Takes over what the account of the budget has seen: what was `wanted` since it was last told, granted or not, and what is `spent` of
    /// this period by now.
    pub fn observe(&mut self, wanted: Money, spent: Money) {
        self.wanted = self.wanted.plus(wanted);
        self.spent = spent.clamp(Money::ZERO, self.budget);
    }

    /// The time is `now_ms`: moves the price by what the time since the last update has brought. To be called regularly, from each second to each
    /// hour; how often makes little difference. A clock that goes back, or is outside the period, changes no price.
    ///
    /// Dual descent after Balseiro and Gur (Management Science 65, 2019) and arXiv 2108.13298, in continuous time and with the
    /// entropy of the shifted price as its distance, so that a step is a share of the price:
    /// `price <- max(0, (price + unit) exp(eta (wanted / target - elapsed)) - unit)`, times in days, with the target in budget per
    /// day: what is left of the budget by what is left of the period. To first order it is
    /// `price + eta (price + unit) (rate / target - 1) elapsed`. What counts is demand, granted or not: where more is refused than
    /// granted, the price has to find its level before it has been paid for.
    pub fn update(&mut self, now_ms: u64) {
        if now_ms >= self.to_ms {
            self.last_update_ms = self.last_update_ms.max(self.to_ms);
            return;
        }
        if now_ms < self.from_ms || now_ms <= self.last_update_ms {
            return;
        }
        let first = self.last_update_ms < self.from_ms;
        let before_ms = if first { now_ms } else { self.last_update_ms };
        let (elapsed_ms, left_ms) = ((now_ms - before_ms) as f64, (self.to_ms - before_ms) as f64);
        // Millionths per millisecond. The money is that of now, the time that of before.
        let pace = self.budget.less(self.spent).micros() as f64 / left_ms;
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
        let factor = (ETA * (haste * days).clamp(-STEP_DAYS_MAX, STEP_DAYS_MAX)).exp();
        self.shadow_price = ((self.shadow_price + PRICE_UNIT) * factor - PRICE_UNIT).clamp(0.0, PRICE_MAX);
        self.wanted = Money::ZERO;
        self.last_update_ms = now_ms;
    }

    /// The period that follows at once, to `to_ms`, with `budget`. It starts at the price that this one ended at. `None` when the budget is
    /// below 0 or the end not after the start.
    pub fn next(self, budget: Money, to_ms: u64) -> Option<Self> {
        let next = Self::new(budget, self.to_ms, to_ms, self.shadow_price);
        next.map(|next| Self { since_ms: self.since_ms, ..next })
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
        price: f64,
        multiplier: f64,
    }

    /// One month, spent as the account of the engine does: what the price finds best, while there is money for it.
    fn simulate(traffic: Traffic, seed: u64) -> Report {
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
        let (mut value, mut days, mut spent, mut wanted) = (0.0, vec![0.0; 30], Money::ZERO, Money::ZERO);
        for (tick, customers) in rows.iter().enumerate() {
            let now_ms = begin + tick as u64 * traffic.update_ms;
            pacer.observe(std::mem::replace(&mut wanted, Money::ZERO), spent);
            pacer.update(now_ms);
            let day = ((now_ms - START) / DAY) as usize;
            for offers in customers {
                let Some(chosen) = best(offers, pacer.shadow_price()).map(|at| offers[at]) else { continue };
                wanted = wanted.plus(chosen.cost);
                if spent.plus(chosen.cost) <= budget {
                    spent = spent.plus(chosen.cost);
                    value += chosen.value;
                    days[day] += chosen.cost.units();
                }
            }
        }
        let even = budget.units() / (30 - traffic.begin) as f64;
        Report {
            value: value / hindsight.bound,
            spent: spent.units() / budget.units(),
            day_max: days.iter().fold(0.0, |max: f64, day| max.max(day / even)),
            price: pacer.shadow_price(),
            multiplier: hindsight.multiplier,
        }
    }

    /// The worst of some months: (value, spending, day).
    fn worst(name: &str, traffic: Traffic, months: u64) -> (f64, f64, f64) {
        let reports: Vec<Report> = (0..months).map(|seed| simulate(traffic, seed)).collect();
        let least = |of: fn(&Report) -> f64| reports.iter().map(of).fold(f64::INFINITY, f64::min);
        let day = reports.iter().map(|report| report.day_max).fold(0.0, f64::max);
        let found = (least(|report| report.value), least(|report| report.spent), day);
        println!("{name}: value {:.3}, spent {:.3}, day {:.2}", found.0, found.1, found.2);
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
            let (value, spent, day) = worst(name, traffic, months);
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
        let plenty = simulate(Traffic { scarcity: 2.0, ..TYPICAL }, 1);
        assert!(plenty.value > 0.999 && plenty.price == 0.0, "{plenty:?}");
        let warm = simulate(Traffic { price: 0.8, ..TYPICAL }, 1);
        assert!((warm.price / warm.multiplier).ln().abs() < 0.7, "{warm:?}");
    }

    fn pacer(budget: f64) -> Pacer {
        Pacer::new(units(budget), START, START + 30 * DAY, 1.0).expect("legal")
    }

    proptest! {
        #[test]
        fn the_price_stays_a_price_whatever_is_wanted(
            budget in 0_i64..5_000_000_000,
            price in 0.0..PRICE_MAX,
            moves in prop::collection::vec((-1_000_000_i64..i64::MAX, -1_000_000_i64..6_000_000_000, 0_u64..3 * DAY), 1..120),
        ) {
            let mut pacer = Pacer::new(Money::from_micros(budget), START, START + 30 * DAY, price).expect("legal");
            let mut now_ms = START - DAY;
            for (wanted, spent, pause_ms) in moves {
                now_ms += pause_ms;
                pacer.observe(Money::from_micros(wanted), Money::from_micros(spent));
                pacer.update(now_ms);
                if now_ms >= pacer.period_ms().end {
                    let (price, end) = (pacer.shadow_price(), pacer.period_ms().end);
                    pacer = pacer.next(Money::from_micros(budget), end + 30 * DAY).expect("legal");
                    prop_assert_eq!(pacer.shadow_price(), price);
                }
                prop_assert!((0.0..=PRICE_MAX).contains(&pacer.shadow_price()), "{:?}", pacer);
            }
        }
    }

    #[test]
    fn nothing_outside_the_period() {
        let mut pacer = pacer(3_000.0);
        let price = pacer.shadow_price();
        for now_ms in [START - 1, START + 30 * DAY, START + 60 * DAY, START + DAY] {
            pacer.observe(units(1e6), Money::ZERO);
            pacer.update(now_ms);
            assert_eq!(pacer.shadow_price(), price, "{now_ms}");
        }
        let mut pacer = self::pacer(3_000.0);
        pacer.update(START + DAY);
        for now_ms in [START + DAY, START + DAY / 2] {
            pacer.observe(units(1e6), Money::ZERO);
            pacer.update(now_ms);
            assert_eq!((pacer.shadow_price(), pacer.updated_ms()), (price, START + DAY), "time stands, or goes back");
        }
        pacer.update(START + DAY + 1);
        assert!(pacer.shadow_price() > price, "and what was wanted meanwhile counts then");
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
            let mut pacer = pacer(3_000.0);
            (pacer.since_ms, pacer.last_update_ms) = (Some(START - 60 * DAY), START);
            for tick in 1..=2 * DAY / update_ms {
                pacer.wanted = Money::from_micros((200e6 * update_ms as f64 / DAY as f64) as i64);
                pacer.update(START + tick * update_ms);
            }
            pacer.shadow_price()
        };
        let expected = 1.1 * f64::exp(0.5 * 2.0) - 0.1;
        for update_ms in [1_000 * 60, HOUR, 12 * HOUR] {
            let price = after(update_ms);
            assert!((price / expected).ln().abs() < 0.1, "{price}, not {expected}");
        }
        let mut idle = pacer(3_000.0);
        (0..3_000).for_each(|hour| idle.update(START + hour * HOUR));
        assert_eq!(idle.shadow_price(), 0.0, "nothing is wanted at any price");
    }

    #[test]
    fn a_period_follows_another_at_its_price() {
        let mut first = pacer(3_000.0);
        first.update(START);
        first.observe(units(500.0), units(100.0));
        first.update(START + DAY);
        first.update(START + 30 * DAY);
        let (price, end) = (first.shadow_price(), START + 61 * DAY);
        assert!(price > 1.0);
        let second = first.next(units(3_100.0), end).expect("legal");
        assert_eq!((second.shadow_price(), second.period_ms()), (price, START + 30 * DAY..end));
        assert_eq!(second.since_ms, Some(START), "it is a guess no more");
        assert_eq!(second.next(units(1.0), end), None);
    }
}
