//! The policy in force: which tier a score belongs to and which intervention that tier gets. How a document becomes a
//! policy, and everything that can be wrong with it, is in `policy_document`.

use std::fmt;

use super::money::Money;
use super::score::Score;

/// The action that does nothing and costs nothing; every policy knows it.
pub const NONE: &str = "none";

/// A checked policy: bands that cover 0 to 1 exactly once, each with a known intervention.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub(super) document: String,
    pub(super) version: String,
    pub(super) name: String,
    pub(super) description: String,
    pub(super) currency: String,
    /// By falling risk.
    pub(super) tiers: Vec<Tier>,
}

/// A named risk band.
#[derive(Debug, Clone, PartialEq)]
pub struct Tier {
    /// Its name, such as `high`.
    pub name: String,
    /// Its scores.
    pub band: Band,
    /// What its customers are offered.
    pub intervention: Intervention,
}

/// An action with what it costs and what it is expected to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Intervention {
    /// Its stable name, such as `discount_email`.
    pub action: String,
    /// What it is, for people.
    pub description: String,
    /// Cost per customer, in the policy's currency, 0 or more.
    pub cost: Money,
    /// The share of would-be churners that it keeps, 0 to 1.
    pub expected_effectiveness: f64,
}

/// An interval of scores within 0 to 1, each end in or out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Band {
    /// The lower end.
    pub from: f64,
    /// Whether `from` itself is in.
    pub from_included: bool,
    /// The upper end.
    pub to: f64,
    /// Whether `to` itself is in.
    pub to_included: bool,
}

impl Band {
    /// Whether `value` is in the band.
    pub fn contains(&self, value: f64) -> bool {
        (value > self.from || (self.from_included && value == self.from))
            && (value < self.to || (self.to_included && value == self.to))
    }
}

impl fmt::Display for Band {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = (if self.from_included { '[' } else { '(' }, if self.to_included { ']' } else { ')' });
        write!(f, "{open}{}, {}{close}", self.from, self.to)
    }
}

impl Policy {
    /// The content hash: the first 16 hexadecimal digits of the document's sha256.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The document that it was read from.
    pub fn document(&self) -> &str {
        &self.document
    }

    /// The name that the document gives itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the document says of itself, for people.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The currency of every amount, an ISO 4217 code.
    pub fn currency(&self) -> &str {
        &self.currency
    }

    /// The tiers by falling risk.
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// The place in [`tiers`](Self::tiers) of the one tier that `score` belongs to.
    pub fn tier_of(&self, score: Score) -> usize {
        // The bands of a checked policy cover every score once, so the last tier is only ever the answer by right.
        self.tiers.iter().position(|tier| tier.band.contains(score.value())).unwrap_or(self.tiers.len() - 1)
    }
}
