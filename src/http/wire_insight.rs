//! What was measured as it goes over the wire. Translation only.

use serde::Serialize;
use utoipa::ToSchema;

use super::wire_records::time;
use super::wire_slots::Budget;
use crate::domain::insight::kpis::{self, MISMATCH};
use crate::domain::insight::quality;
use crate::domain::statistics::{self, drift, lift};
use crate::engine::{self, Balance, Measured, Window};

/// A figure with its interval at 95 %.
#[derive(Serialize, ToSchema)]
pub(super) struct Figure {
    /// The figure.
    value: f64,
    /// The lower end of the interval.
    low: f64,
    /// The upper end.
    high: f64,
    /// How many customers it is of.
    n: u64,
}

impl From<statistics::Estimate> for Figure {
    fn from(statistics::Estimate { value, low, high, n }: statistics::Estimate) -> Self {
        Self { value, low, high, n }
    }
}

fn estimate(found: Option<statistics::Estimate>) -> Option<Figure> {
    found.map(Figure::from)
}

/// What figures rest on.
#[derive(Serialize, ToSchema)]
pub(super) struct Basis {
    /// The window, such as `24h`.
    window: &'static str,
    /// When it ends.
    #[schema(value_type = String, format = DateTime)]
    to: String,
    /// The share of customers that is measured; less than 1 where there are more decisions than `insight.decisions_max`.
    sampled: f64,
    /// Records that are not measured yet.
    records_behind: i64,
    /// Decisions that are not measured, since their segments, versions and arms are too many.
    left_out: u64,
    /// After how many days no word means that a customer stayed.
    maturity_days: f64,
}

impl Basis {
    pub(super) fn of<T>(measured: &Measured<T>) -> Self {
        Self {
            window: measured.window.name(),
            to: time(measured.now_ms as i64),
            sampled: measured.sampled,
            records_behind: measured.behind,
            left_out: measured.left_out,
            maturity_days: measured.maturity_ms as f64 / 86_400_000.0,
        }
    }
}

/// Key figures.
#[derive(Serialize, ToSchema)]
pub(super) struct KpisAnswer {
    basis: Basis,
    /// How the budget stands. Absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    budget: Option<Budget>,
    /// Those of the model.
    overall: Kpis,
    /// Those of its parts, at most 16 of each dimension.
    parts: Vec<KpisPart>,
}

/// Key figures of a part.
#[derive(Serialize, ToSchema)]
pub(super) struct KpisPart {
    /// `version`, `policy`, `arm`, `segment` or `experiment`.
    dimension: &'static str,
    /// Such as `1.0.0`; `name/arm` of an experiment.
    value: String,
    #[serde(flatten)]
    kpis: Kpis,
}

/// Key figures of some customers.
#[derive(Serialize, ToSchema)]
pub(super) struct Kpis {
    /// Customers of the window.
    customers: u64,
    /// Decisions on them.
    decisions: u64,
    /// The figures, what is made of others behind them.
    tree: Vec<Kpi>,
    /// What interventions did to the share that leaves. Null without customers to compare.
    churn_lift: Option<Lift>,
    /// What they did to what is lost with a customer, in money.
    loss_lift: Option<Lift>,
    /// Whether the policy holds out as many customers as it should. Null without a holdout, and for parts other than versions and arms.
    holdout_ratio: Option<HoldoutRatio>,
}

/// One figure.
#[derive(Serialize, ToSchema)]
pub(super) struct Kpi {
    /// Its name.
    #[schema(example = "churn_reduction")]
    name: &'static str,
    /// `share`, `money` or `customers`.
    unit: &'static str,
    /// Null where there is nothing to tell it from.
    estimate: Option<Figure>,
    /// The target, floor or ceiling that is set: at least so much of a share, at most so much money. Absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    target: Option<f64>,
    /// How it stands to that: `met`, `missed` or `unresolved`. Absent without a target or an estimate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    standing: Option<&'static str>,
    /// The figures that it is made of.
    made_of: &'static [&'static str],
}

/// The difference that interventions made: the treated less the held out.
#[derive(Serialize, ToSchema)]
pub(super) struct Lift {
    /// As it is.
    plain: Figure,
    /// With the score and `context.usage_before` taken out (CUPED): as right, and narrower.
    adjusted: Figure,
    /// The adjusted one, with an interval that holds however often it is looked at.
    always_valid: Figure,
    /// The share of the variance that the adjustment left.
    variance_left: f64,
}

impl From<lift::Lift> for Lift {
    fn from(lift::Lift { plain, adjusted, always, variance_left }: lift::Lift) -> Self {
        Self { plain: plain.into(), adjusted: adjusted.into(), always_valid: always.into(), variance_left }
    }
}

/// Whether as many customers are held out as should be.
#[derive(Serialize, ToSchema)]
pub(super) struct HoldoutRatio {
    treated: u64,
    held_out: u64,
    /// The share that should be held out.
    expected: f64,
    /// An e-value that may be looked at any time; null where it is without bound.
    e_value: Option<f64>,
    /// Whether something else than chance decides who is held out: then no comparison can be trusted.
    mismatch: bool,
}

impl From<kpis::Kpis> for Kpis {
    fn from(found: kpis::Kpis) -> Self {
        let kpi = |kpi: kpis::Kpi| Kpi {
            name: kpi.name,
            unit: kpi.unit,
            estimate: estimate(kpi.estimate),
            target: kpi.target,
            standing: kpi.standing.map(kpis::Standing::name),
            made_of: kpi.made_of,
        };
        Self {
            customers: found.customers,
            decisions: found.decisions,
            tree: found.tree.into_iter().map(kpi).collect(),
            churn_lift: found.churn.map(Lift::from),
            loss_lift: found.lost.map(Lift::from),
            holdout_ratio: found.ratio.map(|ratio| HoldoutRatio {
                treated: ratio.treated,
                held_out: ratio.held_out,
                expected: ratio.expected,
                e_value: Some(ratio.e_value).filter(|e_value| e_value.is_finite()),
                mismatch: ratio.e_value >= MISMATCH,
            }),
        }
    }
}

impl KpisAnswer {
    pub(super) fn new(found: Measured<kpis::Kpis>, balance: Option<Balance>) -> Self {
        let basis = Basis::of(&found);
        let part = |part: engine::Part<kpis::Kpis>| KpisPart {
            dimension: part.dimension,
            value: part.value,
            kpis: part.figures.into(),
        };
        let parts = found.parts.into_iter().map(part).collect();
        Self { basis, budget: balance.map(Budget::from), overall: found.overall.into(), parts }
    }
}

/// How good scores were.
#[derive(Serialize, ToSchema)]
pub(super) struct QualityAnswer {
    basis: Basis,
    /// Those of the model.
    overall: Quality,
    /// Those of its parts, at most 16 of each dimension.
    parts: Vec<QualityPart>,
}

/// How good the scores of a part were.
#[derive(Serialize, ToSchema)]
pub(super) struct QualityPart {
    /// `version`, `policy`, `arm`, `segment` or `experiment`.
    dimension: &'static str,
    /// Such as `1.0.0`.
    value: String,
    #[serde(flatten)]
    quality: Quality,
}

/// How good some scores were. Null is what there are too few labels for.
#[derive(Serialize, ToSchema)]
pub(super) struct Quality {
    /// Whether it is of customers who were held out. If not, what was done for customers has changed the labels.
    on_holdout: bool,
    /// Customers of whom it is known whether they left.
    labelled: u64,
    /// Those who did.
    churned: u64,
    /// Area under the ROC curve (interval: DeLong, on the logit).
    auc: Option<Figure>,
    /// The share that left of the 20 % with the highest scores (interval: Wilson).
    precision_at_20: Option<Figure>,
    /// That of the customers of the window that ends now, with labels that are late made up for.
    precision_at_20_delay_corrected: Option<Figure>,
    /// That of the same customers as the scores foretell it, without labels.
    precision_at_20_expected: Option<Figure>,
    /// The mean squared error of the score.
    brier: Option<Figure>,
    /// Expected calibration error over ten bins of equal mass.
    ece: Option<f64>,
    /// 1 at best; under it scores are too extreme.
    calibration_slope: Option<Figure>,
    /// 0 at best; over it too few are expected to leave.
    calibration_intercept: Option<Figure>,
}

impl From<quality::Quality> for Quality {
    fn from(found: quality::Quality) -> Self {
        Self {
            on_holdout: found.on_holdout,
            labelled: found.labelled,
            churned: found.churned,
            auc: estimate(found.auc),
            precision_at_20: estimate(found.precision),
            precision_at_20_delay_corrected: estimate(found.precision_delay_corrected),
            precision_at_20_expected: estimate(found.precision_expected),
            brier: estimate(found.brier),
            ece: found.calibration.map(|found| found.ece),
            calibration_slope: found.calibration.map(|found| found.slope.into()),
            calibration_intercept: found.calibration.map(|found| found.intercept.into()),
        }
    }
}

impl From<Measured<quality::Quality>> for QualityAnswer {
    fn from(found: Measured<quality::Quality>) -> Self {
        let basis = Basis::of(&found);
        let part = |part: engine::Part<quality::Quality>| QualityPart {
            dimension: part.dimension,
            value: part.value,
            quality: part.figures.into(),
        };
        Self { basis, overall: found.overall.into(), parts: found.parts.into_iter().map(part).collect() }
    }
}

/// How far what comes in is from the training time.
#[derive(Serialize, ToSchema)]
pub(super) struct DriftAnswer {
    /// The window, such as `24h`.
    window: &'static str,
    /// Every version that is loaded.
    versions: Vec<VersionDrift>,
}

/// The drift of one version.
#[derive(Serialize, ToSchema)]
pub(super) struct VersionDrift {
    version: String,
    /// What it does, such as `champion`.
    role: &'static str,
    /// Since when there are counts.
    #[schema(value_type = String, format = DateTime)]
    since: String,
    /// Requests that were counted: of more than 500 in a second only some are.
    n: u64,
    /// That of the score.
    score: Distance,
    /// That of each feature, the worst first.
    features: Vec<FeatureDrift>,
    /// The features that warn or alarm, the worst first.
    drifting: Vec<String>,
    /// Requests that say by `context.features_at` how old their features are.
    aged: u64,
    /// Those of them that say over 24 hours.
    stale: u64,
}

/// How far a feature has drifted.
#[derive(Serialize, ToSchema)]
pub(super) struct FeatureDrift {
    feature: String,
    #[serde(flatten)]
    distance: Distance,
}

/// A distance.
#[derive(Serialize, ToSchema)]
pub(super) struct Distance {
    /// The population stability index.
    psi: f64,
    /// What chance alone seldom exceeds, with so many values and features. Null where there are no values.
    critical: Option<f64>,
    /// Values that it rests on.
    n: u64,
    /// `ok`; `grey`, too few values to tell; `warn`, over 0.1 and more than chance; `alarm`, over 0.25 and more than chance.
    verdict: &'static str,
}

impl From<drift::Distance> for Distance {
    fn from(found: drift::Distance) -> Self {
        let critical = Some(found.critical).filter(|critical| critical.is_finite());
        Self { psi: found.psi, critical, n: found.n, verdict: found.verdict.name() }
    }
}

impl DriftAnswer {
    pub(super) fn new(window: Window, found: Vec<engine::Drifted>) -> Self {
        let version = |engine::Drifted { model, role, drift }: engine::Drifted| VersionDrift {
            version: model.version,
            role,
            since: time(drift.since_ms as i64),
            n: drift.n,
            score: drift.score.into(),
            drifting: drift
                .features
                .iter()
                .filter(|(_, distance)| distance.verdict >= drift::Verdict::Warn)
                .map(|(name, _)| name.clone())
                .collect(),
            features: drift
                .features
                .into_iter()
                .map(|(feature, distance)| FeatureDrift { feature, distance: distance.into() })
                .collect(),
            aged: drift.aged,
            stale: drift.stale,
        };
        Self { window: window.name(), versions: found.into_iter().map(version).collect() }
    }
}
