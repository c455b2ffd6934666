//! How good the scores of a model turned out to be. On customers who were held out where there are any, since an intervention changes
//! what a score foretold.

use super::{Cohorts, Customer, z};
use crate::domain::statistics::Estimate;
use crate::domain::statistics::quality::{self, Calibration, Delays, Labelled};

/// The share of customers at the top whose precision is told.
pub const TOP: f64 = 0.2;

/// The quality of the scores of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Quality {
    /// Whether all of it is of customers who were held out. If not, what was done for customers has changed the labels.
    pub on_holdout: bool,
    /// Customers of whom it is known whether they left, and those who did.
    pub labelled: u64,
    /// See `labelled`.
    pub churned: u64,
    /// Area under the ROC curve.
    pub auc: Option<Estimate>,
    /// The share who left of the top.
    pub precision: Option<Estimate>,
    /// That of the customers decided on lately, with what is not known yet made up for.
    pub precision_delay_corrected: Option<Estimate>,
    /// That of the same as the scores foretell it, without any label.
    pub precision_expected: Option<Estimate>,
    /// Brier score.
    pub brier: Option<Estimate>,
    /// Calibration.
    pub calibration: Option<Calibration>,
}

/// The quality of the scores that `cohorts` had.
pub fn quality(cohorts: &Cohorts) -> Quality {
    let on_holdout = has_holdout(cohorts);
    let labelled = labelled(cohorts);
    let recent: Vec<&Customer> = cohorts.recent.iter().filter(|customer| counts(on_holdout, customer)).collect();
    let scores: Vec<f64> = recent.iter().map(|customer| customer.score).collect();
    let top = quality::threshold(scores.iter().copied(), TOP).unwrap_or(f64::INFINITY);
    let known: Vec<(bool, u64)> = recent
        .iter()
        .filter(|customer| customer.score >= top)
        .map(|customer| (customer.left_after_ms.is_some(), customer.age_ms))
        .collect();
    Quality {
        on_holdout,
        labelled: labelled.len() as u64,
        churned: labelled.iter().filter(|row| row.churned).count() as u64,
        auc: quality::auc(&labelled, z()),
        precision: quality::precision_at(&labelled, TOP, z()),
        precision_delay_corrected: delays(cohorts).and_then(|delays| quality::delay_corrected(&known, &delays, z())),
        precision_expected: quality::expected_precision_at(&scores, TOP, z()),
        brier: quality::brier(&labelled, z()),
        calibration: quality::calibration(&labelled, z()),
    }
}

fn has_holdout(cohorts: &Cohorts) -> bool {
    cohorts.matured.iter().chain(&cohorts.recent).any(|customer| customer.holdout == Some(true))
}

fn counts(on_holdout: bool, customer: &Customer) -> bool {
    !on_holdout || customer.holdout == Some(true)
}

/// Who counts, with what came of it.
fn labelled(cohorts: &Cohorts) -> Vec<Labelled> {
    let on_holdout = has_holdout(cohorts);
    let label =
        |customer: &Customer| Some(Labelled { score: customer.score, churned: customer.churned(cohorts.maturity_ms)? });
    cohorts.matured.iter().filter(|customer| counts(on_holdout, customer)).filter_map(label).collect()
}

/// The share who left of the top: see [`Quality::precision`].
pub(super) fn precision(cohorts: &Cohorts) -> Option<Estimate> {
    quality::precision_at(&labelled(cohorts), TOP, z())
}

/// How late it was known that customers left, of all who are old enough: who is late does not depend on the score.
pub(super) fn delays(cohorts: &Cohorts) -> Option<Delays> {
    Delays::new(cohorts.matured.iter().filter_map(|customer| customer.left_after_ms).collect())
}
