//! Compliance: which groups of the audit a policy would put at a disadvantage, as it is told and goes on record.

use serde::{Deserialize, Serialize};

use crate::domain::statistics::fairness::{Attribute, Ratio, Verdict};

/// The most flagged groups that a sentence names.
const NAMED_MAX: usize = 3;

/// What the check of a policy's compliance found, as it goes into the answer and, as a sentence, on record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compliance {
    /// Customers of recent decisions that the policy was tried on.
    pub customers: u64,
    /// Attributes of the audit with two groups at least that were compared.
    pub attributes: Vec<String>,
    /// Groups with a parity ratio under 0.8, the lowest first.
    pub flagged: Vec<Flag>,
}

/// A group that is offered something less than four fifths as often as the reference of its attribute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flag {
    /// The attribute.
    pub attribute: String,
    /// The group.
    pub group: String,
    /// The group with the highest rate.
    pub reference: String,
    /// Customers of the group.
    pub customers: u64,
    /// Its selection rate by that of the reference.
    pub parity: Ratio,
    /// What the interval says.
    pub verdict: Verdict,
    /// The same ratio of the same two groups under the policy in force.
    pub parity_before: Option<Ratio>,
}

impl Compliance {
    /// What `after`, the groups under a policy that was tried on so many `customers`, says of it beside `before`, the same groups under the
    /// policy in force, with intervals of level `1 - alpha` (0 to 1).
    pub fn of(before: &[Attribute], after: &[Attribute], customers: u64, alpha: f64) -> Self {
        let counts_before = |attribute: &str, group: &str| {
            let attribute = before.iter().find(|known| known.name == attribute)?;
            let group = attribute.groups.iter().find(|known| known.name == group)?;
            Some((group.counts.offered, group.counts.customers))
        };
        let mut flagged = Vec::new();
        for attribute in after {
            let Some(reference) = attribute.groups.iter().find(|group| group.is_reference) else { continue };
            for group in &attribute.groups {
                let Some(parity) = group.parity.filter(Ratio::is_flagged) else { continue };
                flagged.push(Flag {
                    attribute: attribute.name.clone(),
                    group: group.name.clone(),
                    reference: reference.name.clone(),
                    customers: group.counts.customers,
                    parity,
                    verdict: parity.verdict(),
                    parity_before: counts_before(&attribute.name, &group.name)
                        .zip(counts_before(&attribute.name, &reference.name))
                        .and_then(|(group, reference)| Ratio::of(group, reference, alpha)),
                });
            }
        }
        flagged.sort_by(|one, other| one.parity.value.total_cmp(&other.parity.value));
        let compared = after.iter().filter(|attribute| attribute.groups.len() > 1);
        Self { customers, attributes: compared.map(|attribute| attribute.name.clone()).collect(), flagged }
    }

    /// What is wrong with it beyond doubt, a sentence each: groups whose whole interval is under 0.8.
    pub fn failures(&self) -> Vec<String> {
        self.flagged.iter().filter(|flag| flag.verdict == Verdict::Fail).map(ToString::to_string).collect()
    }
}

/// The end of a sentence that goes on record, so it is short, and names groups only, never a customer: each has some at least.
impl std::fmt::Display for Compliance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { customers, attributes, flagged } = self;
        match (attributes.as_slice(), flagged.as_slice()) {
            ([], _) => write!(f, "compliance: of {customers} customers no two groups can be compared"),
            (attributes, []) => {
                write!(f, "compliance: no group flagged by {}, {customers} customers", attributes.join(", "))
            }
            (_, flagged) => {
                let named: Vec<String> = flagged.iter().take(NAMED_MAX).map(ToString::to_string).collect();
                write!(f, "compliance: {} flagged: {}", flagged.len(), named.join("; "))?;
                if flagged.len() > NAMED_MAX { write!(f, "; and others") } else { Ok(()) }
            }
        }
    }
}

impl std::fmt::Display for Flag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { attribute, group, reference, customers, parity: Ratio { value, low, high }, verdict, .. } = self;
        write!(
            f,
            "{attribute} \"{}\" ({customers}) is offered something {value:.2} times as often as \"{}\" ({low:.2} to {high:.2}, {})",
            group.escape_debug(),
            reference.escape_debug(),
            verdict.name()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::statistics::fairness::{Census, Seen};

    fn census(rates: [(&str, u64); 3]) -> Vec<Attribute> {
        let mut census = Census::default();
        for (group, offered) in rates {
            (0..100).for_each(|at| census.add([("gender", group)], &Seen { offered: at < offered, ..Seen::default() }));
        }
        census.compare(0.05)
    }

    #[test]
    fn a_flagged_group_is_told_with_how_it_was_before() {
        let (before, after) = (census([("f", 45), ("m", 50), ("x", 50)]), census([("f", 20), ("m", 50), ("x", 38)]));
        let found = Compliance::of(&before, &after, 300, 0.05);
        let flags: Vec<_> = found.flagged.iter().map(|flag| (flag.group.as_str(), flag.verdict)).collect();
        assert_eq!(flags, [("f", Verdict::Fail), ("x", Verdict::Unresolved)]);
        assert_eq!(found.flagged[0].parity_before.expect("compared").value, 0.9);
        assert_eq!(found.failures().len(), 1);
        let told = found.to_string();
        assert!(
            told.starts_with("compliance: 2 flagged: gender \"f\" (100) is offered something 0.40 times"),
            "{told}"
        );
        assert_eq!(
            Compliance::of(&before, &before, 300, 0.05).to_string(),
            "compliance: no group flagged by gender, 300 customers"
        );
        assert!(Compliance::of(&[], &[], 7, 0.05).to_string().contains("no two groups"));
        let kept: Compliance = serde_json::from_str(&serde_json::to_string(&found).expect("JSON")).expect("it again");
        assert_eq!(kept.attributes, found.attributes);
    }
}
