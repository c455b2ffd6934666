//! A holdout: a share of customers who are kept from every intervention, so that what interventions do can be measured. Who they are is
//! a salted hash: sticky without a store, and independent of the arms of a trial.

use crate::domain::assignment;

/// Who is kept from intervention.
#[derive(Debug, Clone, PartialEq)]
pub struct Holdout {
    share: f64,
    salt: String,
}

impl Holdout {
    /// A `share` (0 to 1) of customers; with another `salt` it is others. The salt is used for holdouts only, so that it says nothing
    /// about any other assignment, not even one that is salted with the same words.
    pub fn new(share: f64, salt: &str) -> Self {
        Self { share, salt: format!("holdout:{salt}") }
    }

    /// Whether a customer is kept from intervention. A share that grows keeps those that it had.
    pub fn keeps(&self, customer_id: &str) -> bool {
        assignment::place(assignment::ticket(&self.salt, customer_id)) < self.share
    }

    /// The share of customers, 0 to 1.
    pub fn share(&self) -> f64 {
        self.share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sticky_grows_and_is_independent_of_the_arms() {
        let ids: Vec<String> = (0..10_000).map(|number| format!("C-{number}")).collect();
        for salt in ["retention-2026", "a rollout"] {
            let holdout = Holdout::new(0.2, salt);
            // Rows: held out or not; columns: the challenger's or the champion's, as a canary of 30 % salted with a rollout's id assigns.
            let mut table = [[0.0_f64; 2]; 2];
            for id in &ids {
                let kept = holdout.keeps(id);
                assert_eq!(kept, holdout.keeps(id));
                assert!(!kept || Holdout::new(0.3, salt).keeps(id));
                let challenger = assignment::place(assignment::ticket("a rollout", id)) < 0.3;
                table[usize::from(!kept)][usize::from(!challenger)] += 1.0;
            }
            let all = ids.len() as f64;
            let row = |at: usize| table[at][0] + table[at][1];
            let column = |at: usize| table[0][at] + table[1][at];
            let chi_square: f64 = (0..4)
                .map(|cell| {
                    let expected = row(cell / 2) * column(cell % 2) / all;
                    (table[cell / 2][cell % 2] - expected).powi(2) / expected
                })
                .sum();
            // One degree of freedom: this is exceeded once in a thousand.
            assert!(chi_square < 10.83, "{salt}: {chi_square} of {table:?}");
            assert!((row(0) / all - 0.2).abs() < 4.0 * (0.2 * 0.8 / all).sqrt(), "{table:?}");
        }
        assert!(!Holdout::new(0.0, "s").keeps("C-1") && Holdout::new(1.0, "s").keeps("C-1"));
    }
}
