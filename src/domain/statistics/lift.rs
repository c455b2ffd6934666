//! What interventions did: customers who were treated against those who were held out by chance. Noise that was there before is taken
//! out, and one of the intervals holds however often it is looked at.

use super::{Estimate, drift::normal_quantile};

/// Things that were known of a customer before: such as usage and the score.
pub const COVARIATES: usize = 2;
/// The always-valid interval is narrowest for its level at about eight times so many customers.
const PRIOR_CUSTOMERS: f64 = 250.0;

/// One customer of a comparison.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unit {
    /// What came of it, in any unit.
    pub outcome: f64,
    /// What was known before the treatment; not finite where it is not known.
    pub before: [f64; COVARIATES],
}

/// The difference that a treatment made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lift {
    /// The mean outcome of the treated less that of the held out, as it is, for one look.
    pub plain: Estimate,
    /// The same with what was known before taken out.
    pub adjusted: Estimate,
    /// The adjusted one with an interval that holds at all looks at once.
    pub always: Estimate,
    /// The share of the variance that was left by the adjustment, 0 to 1.
    pub variance_left: f64,
}

struct Sums {
    count: f64,
    outcome: f64,
    before: [f64; COVARIATES],
}

impl Sums {
    fn means(units: &[Unit], replace: &[f64; COVARIATES]) -> Self {
        let count = units.len() as f64;
        let mut means = Self { count, outcome: 0.0, before: [0.0; COVARIATES] };
        for unit in units {
            means.outcome += unit.outcome / count;
            for (at, mean) in means.before.iter_mut().enumerate() {
                *mean += known(unit, at, replace) / count;
            }
        }
        means
    }
}

fn known(unit: &Unit, at: usize, replace: &[f64; COVARIATES]) -> f64 {
    if unit.before[at].is_finite() { unit.before[at] } else { replace[at] }
}

/// The difference between `treated` and `held_out`, by intervals of level `1 - alpha`; `None` unless both have two customers.
///
/// Adjusted by CUPED (Deng, Xu, Kohavi and Walker, WSDM 2013), with as many covariates as there are: the outcome less its regression on
/// them within the groups, which leaves `1 - corr^2` of the variance and no bias, since chance made the groups. Variances of both
/// groups are their own (Welch). Always valid: [`always_valid`].
pub fn lift(treated: &[Unit], held_out: &[Unit], alpha: f64) -> Option<Lift> {
    if treated.len() < 2 || held_out.len() < 2 {
        return None;
    }
    let everybody = || treated.iter().chain(held_out);
    // What is not known of a customer says nothing: it is put at the mean of the others.
    let replace: [f64; COVARIATES] = std::array::from_fn(|at| {
        let known = everybody().map(|unit| unit.before[at]).filter(|value| value.is_finite());
        let (count, sum) = known.fold((0.0, 0.0), |(count, sum), value| (count + 1.0, sum + value));
        if count > 0.0 { sum / count } else { 0.0 }
    });
    let groups = [treated, held_out].map(|units| (units, Sums::means(units, &replace)));
    let theta = regression(&groups, &replace);
    let difference = |of: &dyn Fn(&Sums) -> f64| of(&groups[0].1) - of(&groups[1].1);
    let variance = |theta: &[f64; COVARIATES]| -> f64 {
        let of_group = |(units, means): &(&[Unit], Sums)| {
            let residual = |unit: &Unit| {
                let by = |at: usize| theta[at] * (known(unit, at, &replace) - means.before[at]);
                unit.outcome - means.outcome - (0..COVARIATES).map(by).sum::<f64>()
            };
            units.iter().map(|unit| residual(unit).powi(2)).sum::<f64>() / (means.count * (means.count - 1.0))
        };
        groups.iter().map(of_group).sum()
    };
    let z = normal_quantile(alpha / 2.0);
    let n = (treated.len() + held_out.len()) as u64;
    let (plain, adjusted) = (variance(&[0.0; COVARIATES]), variance(&theta));
    let moved: f64 = (0..COVARIATES).map(|at| theta[at] * difference(&|means| means.before[at])).sum();
    let value = difference(&|means| means.outcome);
    let radius = always_valid(adjusted.sqrt(), n, alpha);
    Some(Lift {
        plain: Estimate::normal(value, plain.sqrt(), z, n),
        adjusted: Estimate::normal(value - moved, adjusted.sqrt(), z, n),
        always: Estimate::normal(value - moved, radius, 1.0, n),
        variance_left: if plain > 0.0 { (adjusted / plain).min(1.0) } else { 1.0 },
    })
}

/// The regression of the outcome on what was known before, within the groups; 0 for what does not vary.
fn regression(groups: &[(&[Unit], Sums); 2], replace: &[f64; COVARIATES]) -> [f64; COVARIATES] {
    let (mut xx, mut xy) = ([[0.0; COVARIATES]; COVARIATES], [0.0; COVARIATES]);
    for (units, means) in groups {
        for unit in *units {
            let x: [f64; COVARIATES] = std::array::from_fn(|at| known(unit, at, replace) - means.before[at]);
            for row in 0..COVARIATES {
                xy[row] += x[row] * (unit.outcome - means.outcome);
                (0..COVARIATES).for_each(|column| xx[row][column] += x[row] * x[column]);
            }
        }
    }
    let determinant = xx[0][0] * xx[1][1] - xx[0][1] * xx[1][0];
    // Nearly the same twice, or one that does not vary: then the better one by itself.
    if determinant > 1e-9 * xx[0][0] * xx[1][1] {
        return [
            (xx[1][1] * xy[0] - xx[0][1] * xy[1]) / determinant,
            (xx[0][0] * xy[1] - xx[1][0] * xy[0]) / determinant,
        ];
    }
    let alone = |at: usize| if xx[at][at] > 0.0 { xy[at] / xx[at][at] } else { 0.0 };
    if alone(0) * xy[0] >= alone(1) * xy[1] { [alone(0), 0.0] } else { [0.0, alone(1)] }
}

/// How far an estimate over `count` customers with the standard error `standard_error` may be off at any of all looks: the normal-mixture
/// confidence sequence `(1/n) sqrt((V + rho) ln((V + rho) / (rho alpha^2)))`, V = n sigma^2 (Howard et al., arXiv 1810.08240), with
/// the variance estimated, so that it is valid for large counts (Waudby-Smith et al., arXiv 2103.06476).
pub fn always_valid(standard_error: f64, count: u64, alpha: f64) -> f64 {
    let n = count as f64;
    let known = n + PRIOR_CUSTOMERS;
    standard_error * (known / n.max(1.0) * (known / (PRIOR_CUSTOMERS * alpha * alpha)).ln()).sqrt()
}

/// By how much the share of the treated is under that of the held out, of the latter, 1 at best; both as (hits, count). The interval
/// is log-normal (Katz et al. 1978), with a half added to all where one has no hits (Gart). `None` without customers in both.
pub fn relative_reduction(treated: (u64, u64), held_out: (u64, u64), alpha: f64) -> Option<Estimate> {
    let n = treated.1 + held_out.1;
    if treated.1 == 0 || held_out.1 == 0 {
        return None;
    }
    let half = if treated.0 == 0 || held_out.0 == 0 { 0.5 } else { 0.0 };
    let parts = [treated, held_out].map(|(hits, count)| (hits as f64 + half, count as f64 + 2.0 * half));
    let log = (parts[0].0 / parts[0].1).ln() - (parts[1].0 / parts[1].1).ln();
    let error = parts.iter().map(|(hits, count)| 1.0 / hits - 1.0 / count).sum::<f64>().max(0.0).sqrt();
    let z = normal_quantile(alpha / 2.0);
    Some(Estimate {
        value: 1.0 - log.exp(),
        low: 1.0 - (log + z * error).exp(),
        high: 1.0 - (log - z * error).exp(),
        n,
    })
}

/// The sum of the firsts for each one of the seconds, such as revenue by orders, where each pair is of one customer: those are independent,
/// their orders are not. The interval is by the delta method (Deng, Knoblich and Lu, KDD 2018). `None` where the seconds are 0.
pub fn ratio(customers: &[(f64, f64)], z: f64) -> Option<Estimate> {
    let count = customers.len() as f64;
    let (above, below) = customers.iter().fold((0.0, 0.0), |(above, below), pair| (above + pair.0, below + pair.1));
    if below <= 0.0 {
        return None;
    }
    let value = above / below;
    let squares: f64 = customers.iter().map(|(above, below)| (above - value * below).powi(2)).sum();
    let error = (squares * count / (count - 1.0).max(1.0)).sqrt() / below;
    Some(Estimate::normal(value, error, z, customers.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A customer whose outcome is 0 or 1, half of it known before; `effect` is what the treatment does.
    fn customer(random: &mut fastrand::Rng, effect: f64) -> Unit {
        let risk = random.f64() * 0.8 + 0.1;
        let usage = if random.f64() < 0.1 { f64::NAN } else { risk + random.f64() };
        Unit { outcome: f64::from(u8::from(random.f64() < risk + effect)), before: [risk, usage] }
    }

    fn customers(random: &mut fastrand::Rng, count: usize, effect: f64) -> Vec<Unit> {
        (0..count).map(|_| customer(random, effect)).collect()
    }

    #[test]
    fn intervals_hold_the_effect_and_what_was_known_narrows_them() {
        let mut random = fastrand::Rng::with_seed(17);
        let (mut plain, mut adjusted, mut left, mut width) = (0, 0, 0.0, 0.0);
        for _ in 0..400 {
            let (treated, held_out) = (customers(&mut random, 400, -0.08), customers(&mut random, 150, 0.0));
            let found = lift(&treated, &held_out, 0.05).expect("customers");
            let holds = |estimate: Estimate| usize::from((estimate.low..=estimate.high).contains(&-0.08));
            plain += holds(found.plain);
            adjusted += holds(found.adjusted);
            left += found.variance_left / 400.0;
            width += (found.always.high - found.always.low) / (found.adjusted.high - found.adjusted.low) / 400.0;
        }
        for (what, holds) in [("plain", plain), ("adjusted", adjusted)] {
            assert!((367..=393).contains(&holds), "{what}: {holds} of 400");
        }
        assert!(left < 0.9, "{left} of the variance is left");
        assert!(width > 1.2 && width < 2.2, "to look at all times costs a factor {width}");
    }

    #[test]
    fn the_always_valid_interval_holds_at_every_look() {
        let mut random = fastrand::Rng::with_seed(29);
        let missed = |random: &mut fastrand::Rng| {
            let (mut treated, mut held_out) = (Vec::new(), Vec::new());
            let mut once = false;
            let missed = (0..25).any(|_| {
                treated.extend(customers(random, 45, 0.0));
                held_out.extend(customers(random, 15, 0.0));
                let found = lift(&treated, &held_out, 0.05).expect("customers");
                once |= !(found.adjusted.low..=found.adjusted.high).contains(&0.0);
                !(found.always.low..=found.always.high).contains(&0.0)
            });
            (missed, once)
        };
        let runs: Vec<(bool, bool)> = (0..150).map(|_| missed(&mut random)).collect();
        let share = |of: fn(&(bool, bool)) -> bool| runs.iter().filter(|run| of(run)).count() as f64 / 150.0;
        assert!(share(|run| run.0) <= 0.05, "{}", share(|run| run.0));
        assert!(share(|run| run.1) > 0.15, "the other one is for one look: {}", share(|run| run.1));
    }

    #[test]
    fn reductions_and_ratios_hold_the_truth() {
        let mut random = fastrand::Rng::with_seed(3);
        let (mut reductions, mut ratios) = (0, 0);
        for _ in 0..400 {
            let mut hits = |count: u64, share: f64| (0..count).filter(|_| random.f64() < share).count() as u64;
            let (treated, held_out) = ((hits(800, 0.16), 800), (hits(300, 0.2), 300));
            let found = relative_reduction(treated, held_out, 0.05).expect("customers");
            reductions += usize::from((found.low..=found.high).contains(&0.2));
            // Orders of one customer are alike: each pays an amount of its own for all of them.
            let pair = |random: &mut fastrand::Rng| {
                let (orders, amount) = (f64::from(random.u8(0..5)), 10.0 + 20.0 * random.f64());
                (orders * amount, orders)
            };
            let pairs: Vec<(f64, f64)> = (0..200).map(|_| pair(&mut random)).collect();
            let found = ratio(&pairs, 1.96).expect("orders");
            ratios += usize::from((found.low..=found.high).contains(&20.0));
        }
        for (what, holds) in [("reduction", reductions), ("ratio", ratios)] {
            assert!((367..=393).contains(&holds), "{what}: {holds} of 400");
        }
    }

    #[test]
    fn nothing_to_compare_is_no_answer_and_what_does_not_vary_is_no_covariate() {
        let unit = |outcome: f64| Unit { outcome, before: [1.0, f64::NAN] };
        assert_eq!(lift(&[unit(1.0)], &[unit(0.0), unit(1.0)], 0.05), None);
        let found = lift(&[unit(1.0), unit(0.0)], &[unit(0.0), unit(0.0)], 0.05).expect("customers");
        assert_eq!((found.plain, found.variance_left), (found.adjusted, 1.0));
        assert_eq!(relative_reduction((0, 0), (1, 2), 0.05), None);
        let none = relative_reduction((0, 50), (0, 50), 0.05).expect("customers");
        assert!(none.value.abs() < 1e-12 && none.low < -1.0 && none.high < 1.0, "{none:?}");
        assert_eq!(ratio(&[(5.0, 0.0)], 1.96), None);
    }
}
