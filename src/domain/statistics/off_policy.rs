//! Off-policy estimates: what a policy would have brought that was not in force, from decisions that another one made by chance, with
//! the probability of each on record.

use super::drift::normal_quantile;

/// One decision with what came of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// The probability that the policy in force had for the action that it took, over 0 to 1.
    pub propensity: f64,
    /// The probability that the candidate has for that same action: 1 or 0 where it leaves nothing to chance.
    pub agreement: f64,
    /// What the decision brought, in any unit.
    pub reward: f64,
    /// What a model expects the action taken to bring; 0 without a model. The model must not have been trained on this row.
    pub expected_taken: f64,
    /// What that model expects of the candidate: the mean over its actions, by its probabilities; 0 without a model.
    pub expected_candidate: f64,
}

/// What is wrong with the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There are fewer than two rows.
    #[error("expected two rows at least")]
    Rows,
    /// The level is not within 0 to 1.
    #[error("expected an alpha over 0 and under 1")]
    Alpha,
    /// A row has a propensity that is not over 0 to 1, an agreement that is not 0 to 1, or a number that is not finite.
    #[error("expected a propensity over 0 to 1, an agreement of 0 to 1 and finite numbers: row {0}")]
    Row(usize),
}

/// A value per decision, with an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The estimate, in the unit of the rewards.
    pub value: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// What is known of a candidate.
///
/// What its figures rest on: rows are independent (one for each customer, not one for each request), propensities are those that
/// chance really had, and every action of the candidate had some. Where it had none, nothing shows it but a `weight_mean` under 1:
/// its values are then missing, not estimated. Intervals are for one look, not for many, and normal: they are too narrow while
/// `effective_rows` is small (under about 100), or while few rows with great weights or great rewards decide.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// How many rows there are.
    pub rows: usize,
    /// How many of them have an action that the candidate could take.
    pub matched: usize,
    /// How many rows of equal weight would tell as much: `(sum w)^2 / sum w^2` (Kish 1965); 0 when none match.
    pub effective_rows: f64,
    /// The mean weight, which is 1 but for chance.
    pub weight_mean: f64,
    /// The greatest weight.
    pub weight_max: f64,
    /// What the policy in force brought.
    pub logged: Estimate,
    /// By inverse propensity: without bias, and the widest.
    pub ips: Estimate,
    /// The same with weights that are made to sum to one: a small bias, within the range of the rewards, mostly narrower. `None`
    /// when no row matches.
    pub snips: Option<Estimate>,
    /// Doubly robust: without bias by the propensities alone, and the narrower the better the model. Without a model as `ips`.
    pub doubly_robust: Estimate,
    /// The doubly robust estimate less what the policy in force brought, on the same rows.
    pub lift: Estimate,
}

/// What the candidate of `rows` would have brought, with intervals of level `1 - alpha` (0 to 1).
///
/// With weights `w = agreement / propensity` and n rows: IPS `mean(w r)` (Horvitz and Thompson 1952), SNIPS `sum w r / sum w`
/// (Swaminathan and Joachims, NeurIPS 2015), doubly robust `mean(q_candidate + w (r - q_taken))` (Dudik, Langford and Li, ICML 2011).
/// Intervals are normal, on the influence values: of a mean its terms, of SNIPS `w (r - value) / mean(w)` by the delta method.
///
/// Errors: what is out of its range, the first row of it.
pub fn evaluate(rows: &[Row], alpha: f64) -> Result<Evaluation, Error> {
    if rows.len() < 2 {
        return Err(Error::Rows);
    }
    if !(alpha > 0.0 && alpha < 1.0) {
        return Err(Error::Alpha);
    }
    // Written so that NaN is out of every range.
    let legal = |row: &Row| {
        let finite = [row.reward, row.expected_taken, row.expected_candidate].iter().all(|value| value.is_finite());
        finite && row.propensity > 0.0 && row.propensity <= 1.0 && row.agreement >= 0.0 && row.agreement <= 1.0
    };
    if let Some(at) = rows.iter().position(|row| !legal(row)) {
        return Err(Error::Row(at));
    }
    let z = normal_quantile(alpha / 2.0);
    let count = rows.len() as f64;
    let weight = |row: &Row| row.agreement / row.propensity;
    let sum = |of: &dyn Fn(&Row) -> f64| rows.iter().map(of).sum::<f64>();
    let estimate = |value: f64, influence: &dyn Fn(&Row) -> f64| {
        let standard_error = (sum(&|row| influence(row).powi(2)) / (count * (count - 1.0))).sqrt();
        Estimate { value, standard_error, low: value - z * standard_error, high: value + z * standard_error }
    };
    let mean = |term: &dyn Fn(&Row) -> f64| {
        let value = sum(term) / count;
        estimate(value, &|row| term(row) - value)
    };
    let robust = |row: &Row| row.expected_candidate + weight(row) * (row.reward - row.expected_taken);
    let weights = sum(&weight);
    let weight_mean = weights / count;
    Ok(Evaluation {
        rows: rows.len(),
        matched: rows.iter().filter(|row| row.agreement > 0.0).count(),
        effective_rows: if weights > 0.0 { weights.powi(2) / sum(&|row| weight(row).powi(2)) } else { 0.0 },
        weight_mean,
        weight_max: rows.iter().map(weight).fold(0.0, f64::max),
        logged: mean(&|row| row.reward),
        ips: mean(&|row| weight(row) * row.reward),
        snips: (weights > 0.0).then(|| {
            let value = sum(&|row| weight(row) * row.reward) / weights;
            estimate(value, &|row| weight(row) * (row.reward - value) / weight_mean)
        }),
        doubly_robust: mean(&robust),
        lift: mean(&|row| robust(row) - row.reward),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIONS: usize = 3;

    /// What an action brings a customer, on average.
    fn expected(customer: f64, action: usize) -> f64 {
        [0.3, 0.2 + 0.5 * customer, 0.7 - 0.4 * customer][action]
    }

    /// The policy in force: mostly one action, with chance.
    fn propensity(customer: f64, action: usize) -> f64 {
        if action == usize::from(customer > 0.4) { 0.8 } else { 0.1 }
    }

    /// The candidate: the better of two actions, or all by chance.
    fn agreement(customer: f64, action: usize, by_chance: bool) -> f64 {
        match by_chance {
            true => 1.0 / ACTIONS as f64,
            false => f64::from(u8::from(action == if customer > 0.6 { 1 } else { 2 })),
        }
    }

    /// Rows of the policy in force, with a model that is `wrong` from 0.
    fn sample(random: &mut fastrand::Rng, count: usize, by_chance: bool, wrong: f64) -> Vec<Row> {
        let model =
            |customer: f64, action: usize| expected(customer, action) + wrong * (0.5 - customer * action as f64);
        let row = |random: &mut fastrand::Rng| {
            let (customer, mut at) = (random.f64(), random.f64());
            let taken = (0..ACTIONS - 1).find(|action| {
                at -= propensity(customer, *action);
                at < 0.0
            });
            let taken = taken.unwrap_or(ACTIONS - 1);
            let reward = f64::from(u8::from(random.f64() < expected(customer, taken)));
            let of_candidate = |action| agreement(customer, action, by_chance) * model(customer, action);
            Row {
                propensity: propensity(customer, taken),
                agreement: agreement(customer, taken, by_chance),
                reward,
                expected_taken: model(customer, taken),
                expected_candidate: (0..ACTIONS).map(of_candidate).sum(),
            }
        };
        (0..count).map(|_| row(random)).collect()
    }

    fn truth(value: impl Fn(f64, usize) -> f64) -> f64 {
        let customers = (0..10_000).map(|at| (f64::from(at) + 0.5) / 10_000.0);
        customers.map(|customer| (0..ACTIONS).map(|action| value(customer, action)).sum::<f64>()).sum::<f64>()
            / 10_000.0
    }

    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        const RUNS: usize = 400;
        for (by_chance, wrong) in [(false, 0.0), (false, 1.0), (true, 0.3)] {
            let mut random = fastrand::Rng::with_seed(23);
            let candidate =
                truth(|customer, action| agreement(customer, action, by_chance) * expected(customer, action));
            let logged = truth(|customer, action| propensity(customer, action) * expected(customer, action));
            let mut held = [0; 5];
            let (mut errors, mut deviations) = ([0.0; 5], [0.0; 5]);
            for _ in 0..RUNS {
                let found = evaluate(&sample(&mut random, 800, by_chance, wrong), 0.05).expect("legal");
                let estimates = [
                    (found.logged, logged),
                    (found.ips, candidate),
                    (found.snips.expect("matched"), candidate),
                    (found.doubly_robust, candidate),
                    (found.lift, candidate - logged),
                ];
                for (at, (estimate, truth)) in estimates.into_iter().enumerate() {
                    held[at] += usize::from((estimate.low..=estimate.high).contains(&truth));
                    errors[at] += estimate.value - truth;
                    deviations[at] += estimate.standard_error;
                }
            }
            let coverage = held.map(|held| held as f64 / RUNS as f64);
            let bias: Vec<f64> = errors.iter().zip(deviations).map(|(error, deviation)| error / deviation).collect();
            println!(
                "by chance {by_chance}, model wrong {wrong}: coverage of logged, ips, snips, dr, lift {coverage:?}, bias {bias:.3?}"
            );
            // Three standard deviations of a share of 400 runs.
            assert!(coverage.iter().all(|share| *share >= 0.95 - 0.033), "{coverage:?}");
            assert!(bias.iter().all(|bias| bias.abs() < 0.2), "in standard errors: {bias:?}");
        }
    }

    #[test]
    fn a_model_narrows_and_a_wrong_one_only_widens() {
        let width = |wrong: f64| {
            let rows = sample(&mut fastrand::Rng::with_seed(1), 20_000, false, wrong);
            let found = evaluate(&rows, 0.05).expect("legal");
            assert!((found.weight_mean - 1.0).abs() < 0.05 && found.weight_max == 10.0, "{found:?}");
            assert!(found.matched < found.rows && found.effective_rows < found.matched as f64);
            (found.ips.standard_error, found.snips.expect("matched").standard_error, found.doubly_robust.standard_error)
        };
        let (ips, snips, robust) = width(0.0);
        assert!(robust < ips && snips < ips, "{ips} {snips} {robust}");
        assert!(width(2.0).2 > robust);
    }

    #[test]
    fn the_policy_in_force_gets_what_it_brought() {
        let row =
            |reward| Row { propensity: 1.0, agreement: 1.0, reward, expected_taken: 0.0, expected_candidate: 0.0 };
        let rows = [1.0, 2.0, 6.0].map(row);
        let found = evaluate(&rows, 0.05).expect("legal");
        assert_eq!([found.logged, found.ips, found.doubly_robust, found.snips.expect("matched")], [found.logged; 4]);
        assert_eq!((found.logged.value, found.effective_rows, found.matched), (3.0, 3.0, 3));
        // The deviation of 1, 2 and 6 is the root of 7.
        assert!((found.logged.standard_error - (7.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!((found.logged.high - 3.0 - 1.959_964 * found.logged.standard_error).abs() < 1e-5);
        assert_eq!((found.lift.value, found.lift.low, found.lift.high), (0.0, 0.0, 0.0));
    }

    #[test]
    fn what_never_matches_and_what_is_out_of_range() {
        let row = Row { propensity: 0.5, agreement: 0.0, reward: 1.0, expected_taken: 0.5, expected_candidate: 0.7 };
        let found = evaluate(&[row; 3], 0.05).expect("legal");
        assert_eq!((found.snips, found.ips.value, found.effective_rows, found.weight_mean), (None, 0.0, 0.0, 0.0));
        assert!((found.doubly_robust.value - 0.7).abs() < 1e-12, "the model alone");
        assert_eq!(evaluate(&[row], 0.05), Err(Error::Rows));
        assert_eq!(evaluate(&[row; 2], 0.0), Err(Error::Alpha));
        for bad in [
            Row { propensity: 0.0, ..row },
            Row { propensity: 1.1, ..row },
            Row { agreement: -0.1, ..row },
            Row { agreement: f64::NAN, ..row },
            Row { reward: f64::INFINITY, ..row },
        ] {
            assert_eq!(evaluate(&[row, bad], 0.05), Err(Error::Row(1)), "{bad:?}");
        }
    }
}
