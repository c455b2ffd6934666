//! The feature dictionary as a card writes it, and its laws. How a record becomes a vector by it is in `schema`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::protected::why_protected;

/// The most features that one model may have.
pub const FEATURES_MAX: usize = 1_024;
/// The most columns that one model's input may have.
pub const COLUMNS_MAX: usize = 4_096;
/// The most categories of one feature.
pub const CATEGORIES_MAX: usize = 1_024;

/// One entry of the feature dictionary: a value as the caller sends it, and what it means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// The name, as the data writes it; 1 to 64 characters.
    pub name: String,
    /// What its values are.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The system and table that the value comes from.
    pub source: String,
    /// The team that answers for it.
    pub owner: String,
    /// What it means, for people.
    pub description: String,
    /// Its unit of measure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Numbers only: the values allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<Range>,
    /// Categories only: each value and the columns that it becomes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub categories: Option<BTreeMap<String, Vec<f32>>>,
    /// Categories only: what a value outside `categories` means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<Unknown>,
    /// What an absent or null value means.
    pub missing: Missing,
    /// The age in hours from which the value counts as stale.
    pub freshness_hours: u32,
    /// What can be changed about it for a customer's good; without it, nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actionable: Option<Actionable>,
    /// How it is told as a reason; without it, by its name and description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// How a feature is told as a reason of a score.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// The stable code: `[a-z][a-z0-9_]{0,62}`.
    pub code: String,
    /// The sentence where the value raises the score; 1 to 200 characters.
    pub raises: String,
    /// The sentence where it lowers the score; 1 to 200 characters.
    pub lowers: String,
}

/// How a feature can be changed for a customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Actionable {
    /// To any other legal value.
    Any,
    /// Numbers only: to a lower one.
    Lower,
    /// Numbers only: to a higher one.
    Raise,
    /// Categories only: from any of these, two at least, to any other of these. Who has another one keeps it.
    Between(Vec<String>),
    /// The same, where each is a step from the one before: what lies between two of them counts.
    Steps(Vec<String>),
}

/// The type of a feature's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A finite number.
    Number,
    /// A whole number.
    Integer,
    /// One of the listed strings.
    Category,
}

/// The numbers allowed, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

/// What a value outside the categories means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unknown {
    /// The request is refused.
    Refuse,
    /// It counts as this category.
    As(String),
}

/// What an absent or null value means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// The request is refused.
    Refuse,
    /// The model gets a NaN, as it did in training.
    Nan,
    /// It counts as this value.
    Default(Scalar),
}

/// A default value: a number or a category.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// For `number` and `integer`.
    Number(f64),
    /// For `category`.
    Text(String),
}

impl Feature {
    /// How many columns of the model's input it fills. 0 for a category without categories, which breaks the laws.
    pub fn width(&self) -> usize {
        match (&self.kind, &self.categories) {
            (Kind::Category, Some(categories)) => categories.values().next().map_or(0, Vec::len),
            (Kind::Category, None) => 0,
            (Kind::Number | Kind::Integer, _) => 1,
        }
    }

    /// Whether `number` is a legal value of this numeric feature.
    pub fn allows_number(&self, number: f64) -> bool {
        self.range.is_some_and(|range| (range.min..=range.max).contains(&number))
            && (self.kind != Kind::Integer || number.fract() == 0.0)
    }

    /// Every law of the dictionary that this entry breaks, as sentences that begin with its name.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let name = &self.name;
        let mut broken = |text: String| problems.push(format!("feature \"{name}\": {text}"));
        if name.is_empty() || name.chars().count() > 64 || name.chars().any(char::is_control) {
            broken("a name has 1 to 64 characters, none of them a control character".to_owned());
        }
        if let Some(reason) = &self.reason {
            let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            let begins = reason.code.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
            if !begins || reason.code.len() > 63 || !reason.code.bytes().all(legal) {
                broken("`reason.code` has 1 to 63 of a-z, 0-9 and '_', and begins with a letter".to_owned());
            }
            for text in [&reason.raises, &reason.lowers] {
                if !(1..=200).contains(&text.chars().count()) || text.chars().any(char::is_control) {
                    broken("`reason.raises` and `reason.lowers` are sentences of 1 to 200 characters".to_owned());
                }
            }
        }
        if let Some(actionable) = &self.actionable {
            let known = |name: &String| self.categories.as_ref().is_some_and(|known| known.contains_key(name));
            let is_legal = match (actionable, self.kind) {
                (Actionable::Any, _) => true,
                (Actionable::Lower | Actionable::Raise, kind) => kind != Kind::Category,
                (Actionable::Between(names) | Actionable::Steps(names), kind) => {
                    let is_repeated = |at: usize| names[..at].contains(&names[at]);
                    kind == Kind::Category
                        && names.len() >= 2
                        && names.iter().all(known)
                        && !(0..names.len()).any(is_repeated)
                }
            };
            if !is_legal {
                broken(
                    "`actionable` is \"any\"; for numbers also \"lower\" or \"raise\"; for categories also {\"between\": […]} or {\"steps\": […]} with at least two of them"
                        .to_owned(),
                );
            }
            if let Some(why) = why_protected(name) {
                broken(format!("is {why}: it is not `actionable`, with a waiver or without"));
            }
        }
        match self.kind {
            Kind::Number | Kind::Integer => {
                match self.range {
                    None => broken("a number needs a `range`".to_owned()),
                    // A float32 holds these exactly enough to be compared with what training saw.
                    Some(Range { min, max }) if !(min < max && min.abs() <= 1e15 && max.abs() <= 1e15) => {
                        broken("`range` needs min < max, both within -1e15 and 1e15".to_owned());
                    }
                    Some(_) => {}
                }
                if self.categories.is_some() || self.unknown.is_some() {
                    broken("`categories` and `unknown` are for categories only".to_owned());
                }
                match &self.missing {
                    Missing::Default(Scalar::Number(value)) if self.allows_number(*value) => {}
                    Missing::Default(_) => broken("`missing.default` is not a legal value of this feature".to_owned()),
                    Missing::Refuse | Missing::Nan => {}
                }
            }
            Kind::Category => {
                let empty = BTreeMap::new();
                let categories = self.categories.as_ref().unwrap_or(&empty);
                let width = self.width();
                if categories.is_empty() || categories.len() > CATEGORIES_MAX {
                    broken(format!("a category needs 1 to {CATEGORIES_MAX} `categories`"));
                } else if width == 0 || categories.values().any(|columns| columns.len() != width) {
                    broken("every category becomes the same number of columns, at least one".to_owned());
                }
                if categories.values().flatten().any(|column| !column.is_finite()) {
                    broken("a column value is not finite".to_owned());
                }
                if self.range.is_some() {
                    broken("`range` is for numbers only".to_owned());
                }
                match &self.unknown {
                    None => broken("a category needs `unknown`: \"refuse\" or {\"as\": …}".to_owned()),
                    Some(Unknown::As(category)) if !categories.contains_key(category) => {
                        broken("`unknown.as` is none of the categories".to_owned());
                    }
                    Some(_) => {}
                }
                match &self.missing {
                    Missing::Nan => broken("`missing`: \"nan\" is for numbers only".to_owned()),
                    Missing::Default(Scalar::Text(value)) if categories.contains_key(value) => {}
                    Missing::Default(_) => broken("`missing.default` is none of the categories".to_owned()),
                    Missing::Refuse => {}
                }
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_changed_fits_the_type_and_is_never_protected() {
        let dictionary: Vec<Feature> =
            serde_json::from_str(include_str!("../../../tests/data/dictionary.json")).expect("a legal dictionary");
        let with = |name: &str, way: &str| {
            let feature = dictionary.iter().find(|feature| feature.name == name).expect("a feature");
            let actionable: Option<Actionable> = serde_json::from_str(way).expect("a way");
            Feature { actionable, ..feature.clone() }.problems().len()
        };
        for (name, way) in [("tenure", "\"raise\""), ("Charges", "\"lower\""), ("Contract", "\"any\"")] {
            assert_eq!(with(name, way), 0, "{name} {way}");
        }
        assert_eq!(with("Contract", r#"{"between": ["One year", "Two year"]}"#), 0);
        assert_eq!(with("Contract", r#"{"steps": ["Month-to-month", "One year", "Two year"]}"#), 0);
        for (name, way) in [
            ("Contract", "\"lower\""),
            ("tenure", r#"{"between": ["One year", "Two year"]}"#),
            ("Contract", r#"{"steps": ["One year"]}"#),
            ("Contract", r#"{"between": ["One year", "One year"]}"#),
            ("Contract", r#"{"between": ["One year", "Three years"]}"#),
        ] {
            assert_eq!(with(name, way), 1, "{name} {way}");
        }
        let protected = Feature { name: "age".to_owned(), actionable: Some(Actionable::Any), ..dictionary[0].clone() };
        assert_eq!(
            protected.problems(),
            ["feature \"age\": is a protected attribute: it is not `actionable`, with a waiver or without"]
        );
    }
}
