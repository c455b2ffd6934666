//! Allocation: which row gets which offer, so that a given budget buys the most value: at most one offer for each row, never over
//! the budget, and with a bound that tells how far from the best the answer can be. Spending as customers come is in `pacing`.

use crate::domain::money::Money;

/// The greatest size of a value.
pub const VALUE_MAX: f64 = 1e12;
/// The most rows that are searched exactly behind the greedy fill.
const CORE_ROWS_MAX: usize = 48;
/// The most partial answers that this search keeps.
const STATES_MAX: usize = 512;
/// The distance to the bound, as a share of it, at which there is nothing left to search for.
const GAP_ENOUGH: f64 = 1e-5;

/// What could be done for a row. To do nothing, at no cost and no value, is always possible and never listed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Offer {
    /// What it costs, 0 or more.
    pub cost: Money,
    /// What it is expected to bring, in any unit that is the same for all, within ±[`VALUE_MAX`]. At 0 or below it is never chosen.
    pub value: f64,
}

/// What is wrong with the input of an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The budget is below 0.
    #[error("expected a budget of 0 or more")]
    Budget,
    /// A cost is below 0, or a value is not finite or too large.
    #[error("expected a cost of 0 or more and a value within ±1e12: row {row}, offer {offer}")]
    Offer {
        /// The row, from 0.
        row: usize,
        /// The offer of that row, from 0.
        offer: usize,
    },
}

/// How a budget is spent.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    /// For each row the place of its offer in the list of that row, or `None` for nothing.
    pub chosen: Vec<Option<usize>>,
    /// What they cost together, at most the budget.
    pub spent: Money,
    /// What they bring together.
    pub value: f64,
    /// The multiplier: value per currency unit at which the budget runs out, 0 where it does not. [`best`] at this price gives the
    /// same choices but for a few rows, so it can be the price that later customers are met with. Offers that cost more than the
    /// whole budget are left out of account.
    pub multiplier: f64,
    /// The value that no allocation can be above, at least `value`: the Lagrangian bound, or `value` itself where the search has
    /// ruled out that there is anything better (to within rounding).
    pub bound: f64,
}

/// The offer with the most value over `price` (value per currency unit, 0 or more) times cost, or `None` where none is above 0. Of
/// equal ones the cheapest, of these the first.
pub fn best(offers: &[Offer], price: f64) -> Option<usize> {
    let mut found: Option<(usize, f64, Money)> = None;
    for (at, offer) in offers.iter().enumerate() {
        let surplus = offer.value - price * offer.cost.units();
        let (most, least) = found.map_or((0.0, Money::ZERO), |(_, most, least)| (most, least));
        if surplus > most || (found.is_some() && surplus == most && offer.cost < least) {
            found = Some((at, surplus, offer.cost));
        }
    }
    found.map(|(at, ..)| at)
}

/// Spends `budget` on `rows`, each of which has its own offers.
///
/// Three steps. The Lagrangian relaxation of the multiple-choice knapsack (Sinha and Zoltners, Operations Research 27, 1979): each
/// row is reduced to the upper convex hull of its offers, and the steps along the hulls are taken by falling efficiency until one
/// does not fit. Its efficiency is the least multiplier at which the budget is kept: what bisection would approach, found exactly.
/// Then a greedy fill: of the steps that follow, those that fit. Then a search among the rows for which another offer could still
/// make up the distance to the bound (Pisinger, European Journal of Operational Research 83, 1995), exact as long as its lists
/// suffice.
///
/// After the greedy fill, `bound - value` is at most the value of the one step that did not fit, so it vanishes as rows grow in
/// number. The search makes small inputs exact. Where it had to leave something out, `bound` says what may be missing. Ties go to
/// earlier rows. Takes O(n log n) for n offers, and a bounded time for the search.
///
/// Errors: the first offer that is out of its range, or the budget.
pub fn allocate<R: AsRef<[Offer]>>(rows: &[R], budget: Money) -> Result<Allocation, Error> {
    if budget < Money::ZERO {
        return Err(Error::Budget);
    }
    for (row, offers) in rows.iter().enumerate() {
        let legal = |offer: &Offer| offer.cost >= Money::ZERO && offer.value.abs() <= VALUE_MAX;
        if let Some(offer) = offers.as_ref().iter().position(|offer| !legal(offer)) {
            return Err(Error::Offer { row, offer });
        }
    }
    let budget = budget.micros();
    let hulls = Hulls::new(rows, budget);
    let steps = hulls.steps();

    let mut left = budget;
    let mut levels = vec![0; rows.len()];
    let split = steps.iter().position(|step| {
        let fits = step.cost <= left;
        if fits {
            left -= step.cost;
            levels[step.row] = step.level;
        }
        !fits
    });
    let mut answer: Vec<Point> = (0..rows.len()).map(|row| hulls.of(row)[levels[row]]).collect();
    let total = |answer: &[Point]| answer.iter().map(|point| point.value).sum::<f64>();
    let (mut multiplier, mut bound) = (0.0, total(&answer));
    if let Some(split) = split {
        multiplier = steps[split].slope;
        bound += multiplier * left as f64;
        let relaxed = answer.clone();
        for step in &steps[split..] {
            if step.level == levels[step.row] + 1 && step.cost <= left {
                left -= step.cost;
                levels[step.row] = step.level;
                answer[step.row] = hulls.of(step.row)[step.level];
            }
        }
        if bound - total(&answer) > GAP_ENOUGH * bound {
            let relaxation = Relaxation { relaxed: &relaxed, multiplier, budget, gap: bound - total(&answer) };
            let (better, complete) = search(rows, &relaxation);
            if let Some(better) = better.filter(|better| total(better) > total(&answer)) {
                answer = better;
            }
            if complete {
                bound = total(&answer);
            }
        }
    }
    let value = total(&answer);
    Ok(Allocation {
        spent: answer.iter().fold(Money::ZERO, |sum, point| {
            sum.plus(point.offer.map_or(Money::ZERO, |offer| rows[point.row].as_ref()[offer].cost))
        }),
        chosen: answer.into_iter().map(|point| point.offer).collect(),
        value,
        multiplier: multiplier * 1e6,
        bound: bound.max(value),
    })
}

/// A choice for a row.
#[derive(Debug, Clone, Copy)]
struct Point {
    row: usize,
    offer: Option<usize>,
    /// In millionths.
    cost: i64,
    value: f64,
}

impl Point {
    /// To do nothing, and what can be afforded at all.
    fn all(row: usize, offers: &[Offer], budget: i64) -> impl Iterator<Item = Point> {
        let offers = offers.iter().enumerate();
        let points = offers.map(move |(at, offer)| Point {
            row,
            offer: Some(at),
            cost: offer.cost.micros(),
            value: offer.value,
        });
        std::iter::once(Point { row, offer: None, cost: 0, value: 0.0 })
            .chain(points.filter(move |point| point.cost <= budget))
    }

    /// Value per millionth on the way to a point that costs more.
    fn slope(&self, to: &Point) -> f64 {
        (to.value - self.value) / (to.cost - self.cost) as f64
    }
}

/// One step along the hull of a row: to `level` from the one before.
struct Step {
    slope: f64,
    cost: i64,
    row: usize,
    level: usize,
}

/// The upper convex hulls of all rows: cost and value rise, efficiency falls strictly. The first point costs nothing.
struct Hulls {
    points: Vec<Point>,
    starts: Vec<usize>,
}

impl Hulls {
    fn new<R: AsRef<[Offer]>>(rows: &[R], budget: i64) -> Self {
        let mut hulls = Self { points: Vec::with_capacity(2 * rows.len()), starts: Vec::with_capacity(rows.len() + 1) };
        let mut sorted: Vec<Point> = Vec::new();
        for (row, offers) in rows.iter().enumerate() {
            sorted.clear();
            sorted.extend(Point::all(row, offers.as_ref(), budget));
            // Stable, so that of equal offers the first stays in front, and to do nothing before all.
            sorted.sort_by(|a, b| a.cost.cmp(&b.cost).then(b.value.total_cmp(&a.value)));
            let start = hulls.points.len();
            hulls.starts.push(start);
            for point in &sorted {
                match hulls.points[start..].last() {
                    Some(last) if point.value <= last.value => continue,
                    // Of the points at one cost the most valuable comes first.
                    Some(last) if point.cost == last.cost => continue,
                    _ => {}
                }
                while let [.., before, last] = &hulls.points[start..]
                    && last.slope(point) >= before.slope(last)
                {
                    hulls.points.pop();
                }
                hulls.points.push(*point);
            }
        }
        hulls.starts.push(hulls.points.len());
        hulls
    }

    fn of(&self, row: usize) -> &[Point] {
        &self.points[self.starts[row]..self.starts[row + 1]]
    }

    /// Every step by falling efficiency; those of one row are in their order, as its efficiency falls strictly.
    fn steps(&self) -> Vec<Step> {
        let rows = self.starts.len() - 1;
        let mut steps = Vec::with_capacity(self.points.len() - rows);
        for row in 0..rows {
            steps.extend(self.of(row).windows(2).enumerate().map(|(at, pair)| Step {
                slope: pair[0].slope(&pair[1]),
                cost: pair[1].cost - pair[0].cost,
                row,
                level: at + 1,
            }));
        }
        steps.sort_unstable_by(|a, b| b.slope.total_cmp(&a.slope).then(a.row.cmp(&b.row)).then(a.level.cmp(&b.level)));
        steps
    }
}

/// What the relaxation has found.
struct Relaxation<'a> {
    /// For each row the choice that is best at the multiplier; together within the budget.
    relaxed: &'a [Point],
    /// Value per millionth.
    multiplier: f64,
    budget: i64,
    /// From the best answer so far to the bound.
    gap: f64,
}

impl Relaxation<'_> {
    /// By how much the value over cost at the multiplier falls when the row of `point` gets it. The losses of an answer, and the
    /// multiplier times what it leaves unspent, are its distance to the bound: a better answer has none that is over the gap.
    fn loss(&self, point: &Point) -> f64 {
        let relaxed = &self.relaxed[point.row];
        let loss = (relaxed.value - point.value) - self.multiplier * (relaxed.cost - point.cost) as f64;
        loss.max(0.0)
    }
}

/// A partial answer: the choices for the first rows of the core, as a way back through the lists before.
struct State {
    cost: i64,
    value: f64,
    loss: f64,
    before: usize,
    point: Point,
}

/// Looks for a better answer among the rows that could take part in one; says whether it was complete. A dynamic program over
/// undominated pairs of cost and value (Nemhauser and Ullmann, Management Science 15, 1969), pruned by loss.
fn search<R: AsRef<[Offer]>>(rows: &[R], relaxation: &Relaxation<'_>) -> (Option<Vec<Point>>, bool) {
    let points = |row: usize| Point::all(row, rows[row].as_ref(), relaxation.budget);
    let mut core: Vec<(f64, usize)> = (0..rows.len())
        .filter_map(|row| {
            let others = points(row).filter(|point| point.offer != relaxation.relaxed[row].offer);
            let least = others.map(|point| relaxation.loss(&point)).min_by(f64::total_cmp)?;
            (least < relaxation.gap).then_some((least, row))
        })
        .collect();
    let mut complete = core.len() <= CORE_ROWS_MAX;
    core.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    core.truncate(CORE_ROWS_MAX);
    let cost: i64 = relaxation.relaxed.iter().map(|point| point.cost).sum();
    let capacity = relaxation.budget - cost + core.iter().map(|(_, row)| relaxation.relaxed[*row].cost).sum::<i64>();

    let mut lists: Vec<Vec<State>> = Vec::with_capacity(core.len());
    for (_, row) in &core {
        let mut next: Vec<State> = Vec::new();
        for point in points(*row) {
            let loss = relaxation.loss(&point);
            let mut add = |before: usize, cost: i64, value: f64, sum: f64| {
                if point.cost <= capacity - cost && sum + loss < relaxation.gap {
                    next.push(State {
                        cost: cost + point.cost,
                        value: value + point.value,
                        loss: sum + loss,
                        before,
                        point,
                    });
                }
            };
            match lists.last() {
                None => add(0, 0, 0.0, 0.0),
                Some(list) => {
                    list.iter().enumerate().for_each(|(at, state)| add(at, state.cost, state.value, state.loss));
                }
            }
        }
        next.sort_unstable_by(|a, b| a.cost.cmp(&b.cost).then(b.value.total_cmp(&a.value)));
        let mut most = f64::NEG_INFINITY;
        next.retain(|state| {
            let undominated = state.value > most;
            most = most.max(state.value);
            undominated
        });
        if next.len() > STATES_MAX {
            complete = false;
            next.select_nth_unstable_by(STATES_MAX, |a, b| a.loss.total_cmp(&b.loss));
            next.truncate(STATES_MAX);
        }
        lists.push(next);
    }
    let last = lists.last().and_then(|list| (0..list.len()).max_by(|a, b| list[*a].value.total_cmp(&list[*b].value)));
    let better = last.map(|mut at| {
        let mut answer = relaxation.relaxed.to_vec();
        for list in lists.iter().rev() {
            answer[list[at].point.row] = list[at].point;
            at = list[at].before;
        }
        answer
    });
    (better, complete)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offer(cost: u32, value: f64) -> Offer {
        Offer { cost: Money::from_units(f64::from(cost)).expect("an amount"), value }
    }

    fn units(units: usize) -> Money {
        Money::from_units(units as f64).expect("an amount")
    }

    /// The most value that a budget of whole units can buy where all costs are whole: the exact answer, row by row.
    fn optimum(rows: &[Vec<Offer>], budget: usize) -> f64 {
        let mut most = vec![0.0_f64; budget + 1];
        for offers in rows {
            let offers: Vec<_> = offers.iter().map(|offer| (offer.cost.units() as usize, offer.value)).collect();
            // From the richest down, so that each row is used once.
            for left in (0..=budget).rev() {
                let affordable = offers.iter().filter(|(cost, _)| *cost <= left);
                most[left] = affordable.map(|(cost, value)| most[left - cost] + value).fold(most[left], f64::max);
            }
        }
        most[budget]
    }

    /// The most that all ways to choose can bring.
    fn by_trial(rows: &[Vec<Offer>], left: Money) -> f64 {
        let Some((offers, rest)) = rows.split_first() else { return 0.0 };
        offers.iter().filter(|offer| offer.cost <= left).fold(by_trial(rest, left), |most, offer| {
            let left = left.less(offer.cost);
            most.max(offer.value + by_trial(rest, left))
        })
    }

    /// What holds of every allocation, whatever the input.
    fn check(rows: &[Vec<Offer>], budget: Money) -> Allocation {
        let found = allocate(rows, budget).expect("legal");
        let chosen = || found.chosen.iter().zip(rows).filter_map(|(chosen, offers)| Some(offers[(*chosen)?]));
        assert_eq!(found.chosen.len(), rows.len());
        assert_eq!(found.spent, chosen().fold(Money::ZERO, |sum, offer| sum.plus(offer.cost)));
        assert!((found.value - chosen().map(|offer| offer.value).sum::<f64>()).abs() <= 1e-9 * found.bound.max(1.0));
        assert!(chosen().all(|offer| offer.value > 0.0), "what brings nothing is not bought");
        assert!(found.spent <= budget && found.bound >= found.value && found.multiplier >= 0.0);
        found
    }

    fn small_rows() -> impl Strategy<Value = Vec<Vec<Offer>>> {
        // Whole values of a small range, so that there are ties, equal costs, dominated and worthless offers.
        let offer = (0_u32..9, -4_i32..16).prop_map(|(cost, value)| offer(cost, f64::from(value)));
        prop::collection::vec(prop::collection::vec(offer, 0..5), 0..9)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn small_inputs_are_exact(rows in small_rows(), budget in 0_usize..60) {
            let found = check(&rows, units(budget));
            let optimum = optimum(&rows, budget);
            prop_assert_eq!(found.value, optimum);
            prop_assert!(found.bound >= optimum);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn odd_amounts_are_exact_too(
            rows in prop::collection::vec(prop::collection::vec((0_i64..50_000_000, -5.0..90.0), 0..4), 0..6),
            budget in 0_i64..150_000_000,
        ) {
            let rows: Vec<Vec<Offer>> = rows
                .into_iter()
                .map(|row| row.into_iter().map(|(cost, value)| Offer { cost: Money::from_micros(cost), value }).collect())
                .collect();
            let found = check(&rows, Money::from_micros(budget));
            let optimum = by_trial(&rows, Money::from_micros(budget));
            // To the gap at which the search is not begun.
            prop_assert!((found.value - optimum).abs() <= 1e-5 * optimum, "{} of {}", found.value, optimum);
            prop_assert!(found.bound >= optimum - 1e-9);
        }
    }

    /// Rows as they come: three offers, dearer ones bring more but not in proportion, values with a heavy tail.
    fn realistic(random: &mut fastrand::Rng, rows: usize) -> Vec<Vec<Offer>> {
        let customer = |random: &mut fastrand::Rng| {
            let normal = (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
            let worth = 40.0 * normal.exp() * random.f64();
            let offers = [(1..6, 0.1), (5..20, 0.3), (15..40, 0.5)].map(|(costs, effect)| {
                let noise = 0.5 + random.f64();
                offer(random.u32(costs), worth * effect * noise)
            });
            offers.to_vec()
        };
        (0..rows).map(|_| customer(random)).collect()
    }

    #[test]
    fn large_inputs_are_within_half_a_percent() {
        let mut random = fastrand::Rng::with_seed(11);
        let (mut worst, mut worst_told) = (0.0_f64, 0.0_f64);
        for round in 0..24 {
            let rows = realistic(&mut random, [100, 150, 250][round % 3]);
            let all: f64 = rows.iter().filter_map(|row| row.last()).map(|offer| offer.cost.units()).sum();
            let budget = (all * [0.01, 0.05, 0.2, 0.6][round % 4]) as usize;
            let (found, optimum) = (check(&rows, units(budget)), optimum(&rows, budget));
            assert!(found.bound >= optimum * (1.0 - 1e-12), "{} is no bound of {optimum}", found.bound);
            worst = worst.max(1.0 - found.value / optimum);
            worst_told = worst_told.max(1.0 - found.value / found.bound);
        }
        println!("worst gap {worst:.2e}, worst gap told {worst_told:.2e}");
        assert!(worst <= 0.005, "{worst}");
    }

    #[test]
    fn what_is_all_alike_is_no_trouble() {
        // Everything ties, and the budget is no multiple of a cost.
        for (cost, budget, count) in [(7, 100, 14.0), (7, 98, 14.0), (1, 0, 0.0), (7, 10_000, 300.0), (101, 100, 0.0)] {
            let rows = vec![vec![offer(cost, 3.0), offer(cost, 3.0)]; 300];
            let found = check(&rows, units(budget));
            assert_eq!(found.value, 3.0 * count, "cost {cost}, budget {budget}");
            assert!(found.bound - found.value <= 3.0, "at most one step is missing");
            assert!(found.chosen.iter().all(|chosen| *chosen != Some(1)), "of equal offers the first");
        }
        let mut random = fastrand::Rng::with_seed(5);
        for budget in [1, 50, 333] {
            // Equal efficiency everywhere: a problem of sums, the hardest for a greedy fill.
            let rows: Vec<Vec<Offer>> =
                (0..120).map(|_| random.u32(3..40)).map(|cost| vec![offer(cost, f64::from(cost))]).collect();
            let (found, optimum) = (check(&rows, units(budget)), optimum(&rows, budget));
            assert!(found.value >= 0.995 * optimum, "{} of {optimum}", found.value);
        }
    }

    #[test]
    fn the_ends_of_the_budget() {
        let rows = [vec![offer(0, 2.0), offer(5, 9.0)], vec![offer(3, -1.0)], vec![], vec![offer(4, 0.0)]];
        let none = check(&rows, Money::ZERO);
        assert_eq!((none.chosen, none.value), (vec![Some(0), None, None, None], 2.0));
        let all = check(&rows, units(1_000));
        assert_eq!((all.chosen, all.multiplier, all.bound), (vec![Some(1), None, None, None], 0.0, 9.0));
        assert_eq!(check(&[], units(3)).value, 0.0);
        let greatest = Money::parse("1000000000000").expect("an amount");
        let huge = vec![vec![Offer { cost: greatest, value: VALUE_MAX }]; 20];
        assert_eq!(check(&huge, greatest).spent, greatest, "sums that no i64 holds");
    }

    #[test]
    fn the_multiplier_is_a_price_that_spends_the_budget() {
        let rows = realistic(&mut fastrand::Rng::with_seed(2), 2_000);
        let found = check(&rows, units(3_000));
        let at_price = |row: &Vec<Offer>| best(row, found.multiplier);
        let same = rows.iter().zip(&found.chosen).filter(|(row, chosen)| at_price(row) == **chosen).count();
        assert!(same >= rows.len() - CORE_ROWS_MAX, "{same}");
        let richer = check(&rows, units(4_000));
        assert!(richer.multiplier < found.multiplier && richer.value > found.value);
    }

    #[test]
    fn the_best_at_a_price() {
        let offers = [offer(10, 20.0), offer(20, 35.0), offer(10, 20.0), offer(5, 15.0)];
        assert_eq!(best(&offers, 0.0), Some(1));
        assert_eq!(best(&offers, 1.0), Some(1));
        assert_eq!(best(&offers, 1.6), Some(3));
        assert_eq!(best(&offers, 3.0), None, "nothing over the price is nothing");
        // At a tie the cheapest, and of these the first.
        assert_eq!(best(&[offer(10, 20.0), offer(5, 15.0)], 1.0), Some(1));
        assert_eq!(best(&offers[..1], 2.0), None);
        assert_eq!(best(&[], 0.0), None);
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        let negative = Offer { cost: Money::from_micros(-1), value: 1.0 };
        let rows = |last: Offer| [vec![offer(1, 1.0)], vec![offer(1, 1.0), last]];
        for bad in [negative, offer(1, f64::NAN), offer(1, f64::INFINITY), offer(1, -2e12)] {
            assert_eq!(allocate(&rows(bad), units(1)), Err(Error::Offer { row: 1, offer: 1 }), "{bad:?}");
        }
        assert_eq!(allocate(&rows(offer(1, 1.0)), Money::from_micros(-1)), Err(Error::Budget));
    }
}
