//! The policy in force: which tier a score belongs to, which segment a customer, and what there is to offer. How a document becomes a
//! policy is in `document`, how it is bound to a model's dictionary in `fit`, and what it makes of a customer in `assessment`.

pub mod allocation;
pub mod assessment;
pub mod budget;
pub mod compliance;
pub mod condition;
pub mod document;
pub mod experiment;
pub mod fit;
pub mod holdout;
pub mod layers;
pub mod pacing;
pub mod registry;
pub mod reward;
pub mod simulation;

use crate::domain::interval::Interval;
use crate::domain::money::Money;
use crate::domain::score::Score;
use budget::Budget;
use condition::{Condition, Field, Known};
use holdout::Holdout;

/// The action that does nothing and costs nothing; every policy knows it.
pub const NONE: &str = "none";

/// A checked policy: bands that cover 0 to 1 exactly once, rules that can hold and never two segments at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub(super) document: String,
    pub(super) version: String,
    pub(super) name: String,
    pub(super) description: String,
    pub(super) currency: String,
    pub(super) objective: Objective,
    pub(super) value_at_stake: Option<Stake>,
    /// Everything that it reads or declares, each once.
    pub(super) fields: Vec<Field>,
    /// [`NONE`] first, then in the order of the document.
    pub(super) interventions: Vec<Intervention>,
    /// By falling risk.
    pub(super) tiers: Vec<Tier>,
    /// In the order of the document; at most one is a customer's.
    pub(super) segments: Vec<Segment>,
    /// What its interventions may cost together.
    pub(super) budget: Option<Budget>,
    /// Who is kept from all of them.
    pub(super) holdout: Option<Holdout>,
}

/// What decides on the intervention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Objective {
    /// The tier does.
    #[default]
    Tier,
    /// The highest expected value does.
    ExpectedValue,
}

impl Objective {
    /// Its name in documents.
    pub fn name(self) -> &'static str {
        match self {
            Objective::Tier => "tier",
            Objective::ExpectedValue => "expected_value",
        }
    }
}

/// What is lost with a customer, in the policy's currency.
#[derive(Debug, Clone, PartialEq)]
pub struct Stake {
    /// The field that says it, by its place; `None` where it is the same for all.
    pub field: Option<usize>,
    /// What the field is multiplied by.
    pub times: f64,
    /// Where there is no field, or nothing is known of it.
    pub default: Option<f64>,
    /// The line that it stands in.
    pub line: u32,
}

/// A named risk band.
#[derive(Debug, Clone, PartialEq)]
pub struct Tier {
    /// Its name, such as `high`.
    pub name: String,
    /// Its scores.
    pub band: Interval,
    /// What its customers are offered with the objective `tier`: the first of these interventions that a customer may have, by their
    /// places. Empty with another objective.
    pub preferences: Vec<usize>,
    /// How many reasons each of its decisions has, whoever asks; 0 where only the caller says.
    pub explain: usize,
}

/// Customers for whom something is otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Its name.
    pub name: String,
    /// All of them hold for its customers.
    pub when: Vec<Condition>,
    /// The bands of its tiers, in their order; empty where they are the tiers' own.
    pub bands: Vec<Interval>,
    /// What each tier prefers, where that is otherwise; empty where nothing is.
    pub preferences: Vec<Option<Vec<usize>>>,
    /// The only interventions that its customers are offered; `None` where it is all of them.
    pub offers: Option<Vec<usize>>,
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
    /// How many customers can have it; `None` where that has no bound.
    pub capacity: Option<Capacity>,
    /// Who may have it: all of them hold.
    pub eligible: Vec<Condition>,
}

/// How many customers can have an intervention in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// How many, 1 or more.
    pub count: u32,
    /// In which time.
    pub per: Period,
}

/// A time that capacities and budgets are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// A day.
    Day,
    /// A week.
    Week,
    /// A month.
    Month,
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

    /// What decides on the intervention.
    pub fn objective(&self) -> Objective {
        self.objective
    }

    /// Everything that it reads or declares.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The interventions: [`NONE`] first, then in the order of the document.
    pub fn interventions(&self) -> &[Intervention] {
        &self.interventions
    }

    /// The tiers by falling risk.
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// The segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// What its interventions may cost together.
    pub fn budget(&self) -> Option<Budget> {
        self.budget
    }

    /// The same policy with another budget, for a look at what that would do; its version is still that of the document.
    #[must_use]
    pub fn with_budget(self, budget: Budget) -> Self {
        Self { budget: Some(budget), ..self }
    }

    /// Who is kept from all of them.
    pub fn holdout(&self) -> Option<&Holdout> {
        self.holdout.as_ref()
    }

    /// Whether some intervention is only for so many customers in a time.
    pub fn has_capacities(&self) -> bool {
        self.interventions.iter().any(|intervention| intervention.capacity.is_some())
    }

    /// Whether a customer is kept from intervention.
    pub fn holds_out(&self, customer_id: &str) -> bool {
        self.holdout.as_ref().is_some_and(|holdout| holdout.keeps(customer_id))
    }

    /// Whether it says what is lost with a customer.
    pub fn has_value_at_stake(&self) -> bool {
        self.value_at_stake.is_some()
    }

    /// Whether the score alone decides: then there is nothing to trace, and nothing else has to be known to decide again.
    pub fn is_plain(&self) -> bool {
        let is_bound = self.budget.is_some() || self.holdout.is_some() || self.has_capacities();
        self.fields.is_empty() && self.value_at_stake.is_none() && !is_bound
    }

    /// What a tier offers first, where the tier decides.
    pub fn first_of(&self, tier: &Tier) -> Option<&Intervention> {
        tier.preferences.first().and_then(|place| self.interventions.get(*place))
    }

    /// Whether it wants reasons for some of its tiers.
    pub fn explains(&self) -> bool {
        self.tiers.iter().any(|tier| tier.explain > 0)
    }

    /// The place of the one segment that a customer belongs to, if any.
    pub fn segment_of(&self, values: &[Known]) -> Option<usize> {
        self.segments.iter().position(|segment| segment.when.iter().all(|condition| condition.holds(values)))
    }

    /// The place in [`tiers`](Self::tiers) of the one tier that `score` belongs to, for the customers of `segment`.
    pub fn tier_of(&self, segment: Option<usize>, score: Score) -> usize {
        let own = segment.and_then(|at| self.segments.get(at)).filter(|segment| !segment.bands.is_empty());
        // The bands of a checked policy cover every score once, so the last tier is only ever the answer by right.
        let found = match own {
            Some(segment) => segment.bands.iter().position(|band| band.contains(score.value())),
            None => self.tiers.iter().position(|tier| tier.band.contains(score.value())),
        };
        found.unwrap_or(self.tiers.len() - 1)
    }

    /// What the customers of `segment` are offered in `tier`, the first of them first, where the tier decides.
    pub(super) fn preferences(&self, segment: Option<usize>, tier: usize) -> &[usize] {
        let own = segment.and_then(|at| self.segments.get(at)?.preferences.get(tier)?.as_deref());
        own.or(self.tiers.get(tier).map(|tier| tier.preferences.as_slice())).unwrap_or_default()
    }
}
