//! How groups fare, as it goes over the wire. Translation only.

use serde::Serialize;
use utoipa::ToSchema;

use super::wire_fairness::Attribute;
use super::wire_insight::Basis;
use crate::domain::statistics::fairness;
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
    offers: Vec<Attribute>,
    /// The same of the window that ended a maturity ago, with who left.
    matured: Vec<Attribute>,
}

impl From<engine::Fairness> for Fairness {
    fn from(found: engine::Fairness) -> Self {
        let attributes = |found: Vec<fairness::Attribute>| found.into_iter().map(Attribute::from).collect();
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
