//! The policy document (TOML): reading it, and every law that it can break, all told at once. The content hash is computed by
//! the caller, so that this stays free of cryptography.

use toml::{Table, Value};

use super::money::Money;
use super::nearest::nearest;
use super::policy::{Band, Intervention, NONE, Policy, Tier};

/// The largest document that is read, in bytes.
pub const BYTES_MAX: usize = 256 * 1024;
/// The most tiers of one policy: they are a metric label.
pub const TIERS_MAX: usize = 16;
/// The most interventions of one policy.
pub const INTERVENTIONS_MAX: usize = 64;

/// Reads the document `text`, whose content hash is `version`.
///
/// Errors: every problem, each a sentence that begins with its place in the document; only a document that is not TOML
/// at all has just one.
pub fn parse(text: &str, version: &str) -> Result<Policy, Vec<String>> {
    if text.len() > BYTES_MAX {
        return Err(vec![format!("the document is larger than {BYTES_MAX} bytes")]);
    }
    let table: Table = text.parse().map_err(|error: toml::de::Error| vec![error.to_string().trim_end().to_owned()])?;
    let mut reader = Reader { problems: Vec::new() };
    let policy = Policy { document: text.to_owned(), ..reader.policy(&table, version) };
    if reader.problems.is_empty() { Ok(policy) } else { Err(reader.problems) }
}

/// Walks the document and collects problems; where something is wrong it goes on with a stand-in, so that one mistake
/// does not hide the next.
struct Reader {
    problems: Vec<String>,
}

impl Reader {
    fn problem(&mut self, place: &str, text: impl std::fmt::Display) {
        self.problems.push(format!("{place}: {text}"));
    }

    fn policy(&mut self, table: &Table, version: &str) -> Policy {
        self.only(table, "policy", &["name", "description", "currency", "tiers", "interventions"]);
        let name = self.word(table, "", "name");
        let description = self.text(table, "", "description").unwrap_or_default();
        let currency = self.text(table, "", "currency").unwrap_or_default();
        if table.contains_key("currency") && !(currency.len() == 3 && currency.bytes().all(|b| b.is_ascii_uppercase()))
        {
            self.problem("currency", "expected an ISO 4217 code of three capital letters, such as \"USD\"");
        }
        let interventions = self.interventions(table);
        let tiers = self.tiers(table, &interventions);
        Policy { document: String::new(), version: version.to_owned(), name, description, currency, tiers }
    }

    fn interventions(&mut self, table: &Table) -> Vec<Intervention> {
        let none = Intervention {
            action: NONE.to_owned(),
            description: "No intervention".to_owned(),
            cost: Money::ZERO,
            expected_effectiveness: 0.0,
        };
        let mut interventions = vec![none];
        let entries = match table.get("interventions") {
            None => return interventions,
            Some(Value::Table(entries)) => entries,
            Some(_) => {
                self.problem("interventions", "expected a table for each action");
                return interventions;
            }
        };
        if entries.len() > INTERVENTIONS_MAX {
            self.problem("interventions", format_args!("more than {INTERVENTIONS_MAX}"));
        }
        for (action, entry) in entries {
            let place = format!("interventions.{action}");
            if action == NONE {
                self.problem(&place, "this action is built in and cannot be defined anew");
            }
            if !is_word(action) {
                self.problem(&place, "expected a name of 1 to 64 letters a-z, digits and underscores");
            }
            let Value::Table(entry) = entry else {
                self.problem(&place, "expected a table");
                continue;
            };
            self.only(entry, &place, &["description", "cost", "expected_effectiveness"]);
            let description = self.text(entry, &place, "description").unwrap_or_default();
            let cost = self.number(entry, &place, "cost").unwrap_or(0.0);
            let money = Money::from_units(cost).filter(|money| *money >= Money::ZERO);
            if money.is_none() {
                self.problem(&format!("{place}.cost"), "expected 0 or more, with at most six decimals");
            }
            let effectiveness = self.number(entry, &place, "expected_effectiveness").unwrap_or(0.0);
            if !(0.0..=1.0).contains(&effectiveness) {
                self.problem(&format!("{place}.expected_effectiveness"), "expected a share from 0 to 1");
            }
            interventions.push(Intervention {
                action: action.clone(),
                description,
                cost: money.unwrap_or_default(),
                expected_effectiveness: effectiveness,
            });
        }
        interventions
    }

    fn tiers(&mut self, table: &Table, interventions: &[Intervention]) -> Vec<Tier> {
        let entries = match table.get("tiers") {
            Some(Value::Array(entries)) if (1..=TIERS_MAX).contains(&entries.len()) => entries,
            _ => {
                self.problem("tiers", format_args!("expected 1 to {TIERS_MAX} tables [[tiers]]"));
                return Vec::new();
            }
        };
        let mut tiers: Vec<Tier> = Vec::new();
        let problems_before = self.problems.len();
        for (position, entry) in entries.iter().enumerate() {
            let place = format!("tiers[{position}]");
            let Value::Table(entry) = entry else {
                self.problem(&place, "expected a table");
                continue;
            };
            self.only(entry, &place, &["name", "score", "intervention"]);
            let name = self.word(entry, &place, "name");
            if tiers.iter().any(|tier| tier.name == name) {
                self.problem(&format!("{place}.name"), format_args!("\"{name}\" stands more than once"));
            }
            let band = self.text(entry, &place, "score").and_then(|text| match band(&text) {
                Ok(band) => Some(band),
                Err(problem) => {
                    self.problem(&format!("{place}.score"), problem);
                    None
                }
            });
            let action = self.text(entry, &place, "intervention").unwrap_or_else(|| NONE.to_owned());
            let known = interventions.iter().find(|known| known.action == action);
            if known.is_none() {
                let meant = nearest(&action, interventions.iter().map(|known| known.action.as_str()))
                    .map_or(String::new(), |nearest| format!("; did you mean \"{nearest}\"?"));
                self.problem(
                    &format!("{place}.intervention"),
                    format_args!("\"{action}\" is not among the interventions{meant}"),
                );
            }
            if let (Some(band), Some(intervention)) = (band, known) {
                tiers.push(Tier { name, band, intervention: intervention.clone() });
            }
        }
        // Coverage can only be judged when every band was understood.
        if self.problems.len() == problems_before {
            tiers.sort_by(|one, other| {
                other.band.from.total_cmp(&one.band.from).then(other.band.to.total_cmp(&one.band.to))
            });
            self.coverage(&tiers);
        }
        tiers
    }

    /// The bands cover 0 to 1 without a gap or an overlap: seen from 1 downwards each begins where the last one ended.
    fn coverage(&mut self, tiers: &[Tier]) {
        let (Some(top), Some(bottom)) = (tiers.first(), tiers.last()) else { return };
        if !(top.band.to == 1.0 && top.band.to_included) {
            self.problem(
                "tiers",
                format_args!("no tier has the score 1: the highest band, of \"{}\", is {}", top.name, top.band),
            );
        }
        if !(bottom.band.from == 0.0 && bottom.band.from_included) {
            self.problem(
                "tiers",
                format_args!("no tier has the score 0: the lowest band, of \"{}\", is {}", bottom.name, bottom.band),
            );
        }
        for pair in tiers.windows(2) {
            let (upper, lower) = (&pair[0], &pair[1]);
            let (start, end) = (upper.band.from, lower.band.to);
            let shared = match start.total_cmp(&end) {
                std::cmp::Ordering::Greater => Some("a gap"),
                std::cmp::Ordering::Less => Some("an overlap"),
                std::cmp::Ordering::Equal => match (upper.band.from_included, lower.band.to_included) {
                    (true, true) => Some("an overlap"),
                    (false, false) => Some("a gap"),
                    _ => None,
                },
            };
            if let Some(what) = shared {
                self.problem(
                    "tiers",
                    format_args!(
                        "{what} between \"{}\" {} and \"{}\" {}",
                        lower.name, lower.band, upper.name, upper.band
                    ),
                );
            }
        }
    }

    fn only(&mut self, table: &Table, place: &str, known: &[&str]) {
        for key in table.keys().filter(|key| !known.contains(&key.as_str())) {
            let meant = nearest(key, known.iter().copied())
                .map_or(String::new(), |nearest| format!("; did you mean \"{nearest}\"?"));
            self.problem(place, format_args!("unknown key \"{key}\"{meant}"));
        }
    }

    fn text(&mut self, table: &Table, place: &str, key: &str) -> Option<String> {
        match table.get(key) {
            Some(Value::String(text)) if text.len() <= 1_024 => return Some(text.clone()),
            Some(Value::String(_)) => self.problem(&at(place, key), "is longer than 1024 bytes"),
            Some(_) => self.problem(&at(place, key), "expected a string"),
            None => self.problem(&at(place, key), "is missing"),
        }
        None
    }

    fn word(&mut self, table: &Table, place: &str, key: &str) -> String {
        let text = self.text(table, place, key);
        if text.as_deref().is_some_and(|text| !is_word(&text.replace('-', "_"))) {
            self.problem(&at(place, key), "expected 1 to 64 letters a-z, digits, hyphens and underscores");
        }
        text.unwrap_or_default()
    }

    fn number(&mut self, table: &Table, place: &str, key: &str) -> Option<f64> {
        match table.get(key) {
            Some(Value::Float(number)) => return Some(*number),
            Some(Value::Integer(number)) => return Some(*number as f64),
            Some(_) => self.problem(&at(place, key), "expected a number"),
            None => self.problem(&at(place, key), "is missing"),
        }
        None
    }
}

fn at(place: &str, key: &str) -> String {
    if place.is_empty() { key.to_owned() } else { format!("{place}.{key}") }
}

fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// A band in interval notation (ISO 80000-2, 2-7.7 to 2-7.10): `[0.5, 0.8)` is 0.5 <= score < 0.8.
fn band(text: &str) -> Result<Band, String> {
    const FORM: &str =
        "expected an interval within 0 to 1 such as \"[0.5, 0.8)\": [ and ] include the end, ( and ) leave it out";
    let trimmed = text.trim();
    let from_included = trimmed.starts_with('[');
    let to_included = trimmed.ends_with(']');
    let inner = trimmed
        .strip_prefix(['[', '('])
        .and_then(|rest| rest.strip_suffix([']', ')']))
        .and_then(|inner| inner.split_once(','))
        .ok_or(FORM)?;
    let from: f64 = inner.0.trim().parse().map_err(|_| FORM)?;
    let to: f64 = inner.1.trim().parse().map_err(|_| FORM)?;
    let band = Band { from, from_included, to, to_included };
    let empty = from > to || (from == to && !(from_included && to_included));
    if !(0.0..=1.0).contains(&from) || !(0.0..=1.0).contains(&to) {
        Err(FORM.to_owned())
    } else if empty {
        Err(format!("the band {band} is empty"))
    } else {
        Ok(band)
    }
}

#[cfg(test)]
mod tests {
    use super::super::score::Score;
    use super::*;
    use proptest::prelude::*;

    const DEFAULT: &str = include_str!("../../models/policy/default.toml");
    const FOUR_BANDS: &str = include_str!("../../models/policy/four-bands.toml");

    fn tier(policy: &Policy, score: f64) -> &str {
        let score = Score::new(score).expect("a probability");
        &policy.tiers()[policy.tier_of(score)].name
    }

    #[test]
    fn the_default_policy_has_its_edges_where_they_were_asked_for() {
        let policy = parse(DEFAULT, "v").expect("a legal policy");
        let at = |score| tier(&policy, score);
        assert_eq!(
            [at(0.0), at(0.499_999), at(0.5), at(0.8), at(0.800_001), at(1.0)],
            ["low", "low", "medium", "medium", "high", "high"]
        );
        let offers: Vec<_> = policy
            .tiers()
            .iter()
            .map(|t| (t.intervention.cost.units(), t.intervention.expected_effectiveness))
            .collect();
        assert_eq!(offers, [(50.0, 0.4), (10.0, 0.2), (0.5, 0.05)]);
    }

    #[test]
    fn the_four_band_policy_has_its_edges_where_they_were_asked_for() {
        let policy = parse(FOUR_BANDS, "v").expect("a legal policy");
        let at = |score| tier(&policy, score);
        assert_eq!(
            [at(0.9), at(0.899), at(0.7), at(0.699), at(0.5), at(0.499)],
            ["critical", "high", "high", "medium", "medium", "low"]
        );
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let broken = DEFAULT
            .replace("currency = \"USD\"", "currency = \"dollars\"\ncolour = 1")
            .replace("cost = 10.00", "cost = -1")
            .replace("expected_effectiveness = 0.05", "expected_effectiveness = 1.5")
            .replace("intervention = \"account_manager_call\"", "intervention = \"account_manager_cal\"");
        insta::assert_snapshot!(parse(&broken, "v").expect_err("five things are wrong").join("\n"), @r#"
        policy: unknown key "colour"
        currency: expected an ISO 4217 code of three capital letters, such as "USD"
        interventions.discount_email.cost: expected 0 or more, with at most six decimals
        interventions.engagement_email.expected_effectiveness: expected a share from 0 to 1
        tiers[0].intervention: "account_manager_cal" is not among the interventions; did you mean "account_manager_call"?
        "#);
    }

    #[test]
    fn gaps_and_overlaps_are_named() {
        let one = |from: &str, to: &str| parse(&DEFAULT.replace(from, to), "v").expect_err("not covered").join("\n");
        assert!(one("[0.5, 0.8]", "[0.5, 0.8)").contains("a gap between \"medium\" [0.5, 0.8) and \"high\" (0.8, 1]"));
        assert!(one("(0.8, 1]", "[0.8, 1]").contains("an overlap between"));
        assert!(one("(0.8, 1]", "(0.7, 1]").contains("an overlap between"));
        assert!(one("(0.8, 1]", "(0.8, 1)").contains("no tier has the score 1"));
        assert!(one("[0, 0.5)", "(0, 0.5)").contains("no tier has the score 0"));
        assert!(one("[0, 0.5)", "[0.5, 0)").contains("empty"));
        assert!(one("[0, 0.5)", "[-1, 0.5)").contains("within 0 to 1"));
        assert!(one("[0, 0.5)", "0..0.5").contains("expected an interval"));
    }

    #[test]
    fn what_is_not_toml_is_one_clear_problem() {
        let problems = parse("name = ", "v").expect_err("not TOML");
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("line 1"), "{problems:?}");
    }

    proptest! {
        /// Every accepted policy puts every score into exactly one tier.
        #[test]
        fn every_score_has_exactly_one_tier(cut in 0.01_f64..0.99, inclusive in any::<bool>(), score in 0.0_f64..=1.0) {
            let (upper, lower) = if inclusive { ('[', ')') } else { ('(', ']') };
            let text = format!("name = \"p\"\ndescription = \"\"\ncurrency = \"EUR\"\n[[tiers]]\nname = \"a\"\nscore = \"{upper}{cut}, 1]\"\nintervention = \"none\"\n[[tiers]]\nname = \"b\"\nscore = \"[0, {cut}{lower}\"\nintervention = \"none\"\n");
            let policy = parse(&text, "v").expect("a legal policy");
            for value in [score, cut, 0.0, 1.0] {
                prop_assert_eq!(policy.tiers().iter().filter(|tier| tier.band.contains(value)).count(), 1);
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = parse(&text, "v");
        }
    }
}
