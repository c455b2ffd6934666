//! How groups fare, as it goes over the wire. Translation only.

use serde::Serialize;
use utoipa::ToSchema;

use super::wire_insight::Basis;
use crate::domain::statistics::fairness::{Attribute, Ratio};
use crate::engine::{self, Measured};

/// How the groups of audits fare.
#[derive(Serialize, ToSchema)]
pub(super) struct FairnessAnswer {
    basis: Basis,
    /// Those of the model.
    overall: Fairness,
    /// Those of its parts, at most 16 of each dimension.
    parts: Vec<FairnessPart>,
}

/// How the groups of a part fare.
#[derive(Serialize, ToSchema)]
pub(super) struct FairnessPart {
    /// `version`, `policy`, `arm`, `segment` or `experiment`.
    dimension: &'static str,
    /// Such as `1.0.0`.
    value: String,
    #[serde(flatten)]
    fairness: Fairness,
}

/// How groups fare.
#[derive(Serialize, ToSchema)]
pub(super) struct Fairness {
    /// Who was offered something in the window. Who was held out by chance does not count.
    offers: Vec<AuditAttribute>,
    /// The same of the window that ended a maturity ago, with who left.
    matured: Vec<AuditAttribute>,
}

/// An attribute of `context.audit`.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditAttribute {
    attribute: String,
    /// The largest first.
    groups: Vec<AuditGroup>,
    /// Customers of groups that are too small or too many to be told.
    rest: u64,
    /// Customers of whom no group is known.
    unknown: u64,
}

/// A group beside the one that is offered something most often.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditGroup {
    group: String,
    customers: u64,
    /// The share that was offered something.
    selection_rate: Option<f64>,
    /// Whether the others are compared with it.
    is_reference: bool,
    /// Its selection rate by that of the reference.
    parity: Option<GroupRatio>,
    /// `pass`, `fail` or `unresolved`, by whether the parity ratio is 0.8 or more.
    verdict: Option<&'static str>,
    /// The share that left, by that of the reference.
    base_rate_ratio: Option<GroupRatio>,
    /// The share of those who left that was offered something, by that of the reference.
    true_positive_rate_ratio: Option<GroupRatio>,
}

/// A ratio with its interval at 95 %.
#[derive(Serialize, ToSchema)]
pub(super) struct GroupRatio {
    value: f64,
    low: f64,
    high: f64,
}

impl From<Ratio> for GroupRatio {
    fn from(Ratio { value, low, high }: Ratio) -> Self {
        Self { value, low, high }
    }
}

impl From<Attribute> for AuditAttribute {
    fn from(found: Attribute) -> Self {
        let groups = found.groups.into_iter().map(|group| AuditGroup {
            customers: group.counts.customers,
            selection_rate: group.counts.selection_rate(),
            is_reference: group.is_reference,
            verdict: group.parity.map(|parity| parity.verdict().name()),
            parity: group.parity.map(GroupRatio::from),
            base_rate_ratio: group.base_rate.map(GroupRatio::from),
            true_positive_rate_ratio: group.true_positive_rate.map(GroupRatio::from),
            group: group.name,
        });
        let groups = groups.collect();
        Self { attribute: found.name, groups, rest: found.rest.customers, unknown: found.unknown }
    }
}

impl From<engine::Fairness> for Fairness {
    fn from(found: engine::Fairness) -> Self {
        let attributes = |found: Vec<Attribute>| found.into_iter().map(AuditAttribute::from).collect();
        Self { offers: attributes(found.offers), matured: attributes(found.matured) }
    }
}

impl From<Measured<engine::Fairness>> for FairnessAnswer {
    fn from(found: Measured<engine::Fairness>) -> Self {
        let basis = Basis::of(&found);
        let part = |part: engine::Part<engine::Fairness>| FairnessPart {
            dimension: part.dimension,
            value: part.value,
            fairness: part.figures.into(),
        };
        Self { basis, overall: found.overall.into(), parts: found.parts.into_iter().map(part).collect() }
    }
}
