//! How the groups of an audit compare, and which are flagged, as it goes over the wire. Translation only.

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::policy::compliance;
use crate::domain::statistics::fairness;

/// The groups of an attribute.
#[derive(Serialize, ToSchema)]
pub(super) struct Attribute {
    attribute: String,
    /// The largest first.
    groups: Vec<Group>,
    /// Customers of groups of fewer than 5, or of more groups than are counted.
    rest: u64,
    /// Customers of whom no group is known.
    unknown: u64,
}

/// A group beside the reference, which is the group with the highest selection rate among those with 2 % of the customers at least.
#[derive(Serialize, ToSchema)]
pub(super) struct Group {
    group: String,
    customers: u64,
    /// The share that is offered anything but `none`, 0 to 1.
    selection_rate: Option<f64>,
    /// What a customer costs on average.
    cost_mean: Option<f64>,
    reference: bool,
    /// The selection rate by that of the reference; null of the reference, and where nobody is offered anything.
    parity: Option<Ratio>,
    /// `pass`, `fail` or `unresolved`: whether all of the interval, none of it or a part of it is 0.8 or more.
    verdict: Option<&'static str>,
    /// Whether the ratio itself is under 0.8.
    flagged: bool,
    /// Customers of whom it is known whether they left.
    known: u64,
    /// The share of those that left.
    base_rate: Option<f64>,
    /// The same by that of the reference.
    base_rate_ratio: Option<Ratio>,
    /// The share of those who left that is offered something.
    true_positive_rate: Option<f64>,
    /// The same by that of the reference.
    true_positive_rate_ratio: Option<Ratio>,
}

/// A ratio with its interval: those of all groups of an attribute hold together, at 95 %.
#[derive(Serialize, ToSchema)]
pub(super) struct Ratio {
    value: f64,
    low: f64,
    high: f64,
}

/// Which groups a policy puts at a disadvantage, on recent decisions.
#[derive(Serialize, ToSchema)]
pub(super) struct Compliance {
    /// Customers of those decisions.
    customers: u64,
    /// Attributes of `context.audit` whose groups could be compared.
    attributes: Vec<String>,
    /// Groups with a parity ratio under 0.8, the lowest first.
    flagged: Vec<Flag>,
}

/// A group that is offered something less than four fifths as often as the reference.
#[derive(Serialize, ToSchema)]
pub(super) struct Flag {
    attribute: String,
    group: String,
    /// The group that it is compared with.
    reference: String,
    customers: u64,
    parity: Ratio,
    /// `fail`, or `unresolved` while the interval holds 0.8.
    verdict: &'static str,
    /// The same ratio of the same two groups under the policy in force.
    parity_before: Option<Ratio>,
}

impl From<fairness::Attribute> for Attribute {
    fn from(found: fairness::Attribute) -> Self {
        let groups = found.groups.into_iter().map(|group| Group {
            customers: group.counts.customers,
            selection_rate: group.counts.selection_rate(),
            cost_mean: group.counts.cost_mean(),
            reference: group.is_reference,
            parity: group.parity.map(Ratio::from),
            verdict: group.parity.map(|ratio| ratio.verdict().name()),
            flagged: group.parity.is_some_and(|ratio| ratio.is_flagged()),
            known: group.counts.known,
            base_rate: group.counts.base_rate(),
            base_rate_ratio: group.base_rate.map(Ratio::from),
            true_positive_rate: group.counts.true_positive_rate(),
            true_positive_rate_ratio: group.true_positive_rate.map(Ratio::from),
            group: group.name,
        });
        Self { attribute: found.name, groups: groups.collect(), rest: found.rest.customers, unknown: found.unknown }
    }
}

impl From<fairness::Ratio> for Ratio {
    fn from(fairness::Ratio { value, low, high }: fairness::Ratio) -> Self {
        Self { value, low, high }
    }
}

impl From<compliance::Compliance> for Compliance {
    fn from(found: compliance::Compliance) -> Self {
        let flag = |flag: compliance::Flag| Flag {
            attribute: flag.attribute,
            group: flag.group,
            reference: flag.reference,
            customers: flag.customers,
            parity: flag.parity.into(),
            verdict: flag.verdict.name(),
            parity_before: flag.parity_before.map(Ratio::from),
        };
        Self {
            customers: found.customers,
            attributes: found.attributes,
            flagged: found.flagged.into_iter().map(flag).collect(),
        }
    }
}
