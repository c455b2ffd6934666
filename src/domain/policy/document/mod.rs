//! The policy document (TOML): reading it, and every law that it can break, all told at once, each with its line. The content hash is
//! computed by the caller, so that this stays free of cryptography. What needs a model's dictionary is judged in `fit`.

mod bounds;
mod rules;
mod table;

use toml::de::{DeTable, DeValue};

use super::condition::At;
use super::fit::{overlaps, stake_problems, strange};
use super::{Capacity, Intervention, NONE, Objective, Policy, Tier};
use crate::domain::interval::Interval;
use crate::domain::money::Money;
use rules::Rules;
use table::{Item, Reader, Table, did_you_mean, is_word};

/// The largest document that is read, in bytes.
pub const BYTES_MAX: usize = 256 * 1024;
/// The most tiers of one policy: they are a metric label.
pub const TIERS_MAX: usize = 16;
/// The most interventions of one policy.
pub const INTERVENTIONS_MAX: usize = 64;
/// The most segments of one policy.
pub const SEGMENTS_MAX: usize = 64;
/// The most fields that one policy may read or declare.
pub const FIELDS_MAX: usize = 64;
/// The most categories of a context field, or of a condition.
pub const CATEGORIES_MAX: usize = 256;

/// What a document may say at its top.
const KEYS: &[&str] = &[
    "name",
    "description",
    "currency",
    "objective",
    "value_at_stake",
    "tiers",
    "interventions",
    "segments",
    "context",
    "waivers",
    "budget",
    "holdout",
];

/// Reads the document `text`, whose content hash is `version`.
///
/// Errors: every problem, each a sentence that begins with its place in the document; only a document that is not TOML
/// at all has just one.
pub fn parse(text: &str, version: &str) -> Result<Policy, Vec<String>> {
    if text.len() > BYTES_MAX {
        return Err(vec![format!("the document is larger than {BYTES_MAX} bytes")]);
    }
    let table = DeTable::parse(text).map_err(|error| vec![error.to_string().trim_end().to_owned()])?;
    let mut reader = Reader::new(text);
    let root = reader.root(table.get_ref());
    let policy = Policy { document: text.to_owned(), version: version.to_owned(), ..reader.policy(&root) };
    if reader.problems.is_empty() { Ok(policy) } else { Err(reader.end()) }
}

impl Reader {
    fn policy(&mut self, root: &Table) -> Policy {
        self.only(root, KEYS);
        let name = self.need_word(root, "name");
        let description = self.need_text(root, "description").unwrap_or_default();
        let currency = self.need(root, "currency").and_then(|item| {
            let text = self.text(&item)?;
            if !(text.len() == 3 && text.bytes().all(|b| b.is_ascii_uppercase())) {
                self.problem(&item.at, "expected an ISO 4217 code of three capital letters, such as \"USD\"");
            }
            Some(text)
        });
        let objective = self.objective(root);
        let mut rules = Rules { fields: self.context(root) };
        let interventions = self.interventions(root, &mut rules);
        let tiers = self.tiers(root, &interventions, objective);
        let segments = self.segments(root, &mut rules, &tiers, &interventions, objective);
        let value_at_stake = self.value_at_stake(root, &mut rules, objective);
        self.waivers(root, &rules);
        let budget = self.budget(root);
        let holdout = self.holdout(root, &name);

        let fields = rules.fields;
        let domain_of = |field: usize| fields.get(field)?.context.as_ref();
        let conditions = segments.iter().flat_map(|segment| &segment.when);
        let conditions = conditions.chain(interventions.iter().flat_map(|intervention| &intervention.eligible));
        self.problems.extend(strange(conditions, &fields, domain_of));
        self.problems.extend(overlaps(&segments, domain_of));
        if let Some(stake) = &value_at_stake {
            self.problems.extend(stake_problems(stake, &fields, domain_of));
        }
        Policy {
            document: String::new(),
            version: String::new(),
            name,
            description,
            currency: currency.unwrap_or_default(),
            objective,
            value_at_stake,
            fields,
            interventions,
            tiers,
            segments,
            budget,
            holdout,
        }
    }

    fn objective(&mut self, root: &Table) -> Objective {
        let Some(item) = self.get(root, "objective") else { return Objective::default() };
        let known = [Objective::Tier, Objective::ExpectedValue];
        let text = self.text(&item).unwrap_or_default();
        known.into_iter().find(|known| known.name() == text).unwrap_or_else(|| {
            self.problem(&item.at, "expected \"tier\" or \"expected_value\"");
            Objective::default()
        })
    }

    fn interventions(&mut self, root: &Table, rules: &mut Rules) -> Vec<Intervention> {
        let none = Intervention {
            action: NONE.to_owned(),
            description: "No intervention".to_owned(),
            cost: Money::ZERO,
            expected_effectiveness: 0.0,
            capacity: None,
            eligible: Vec::new(),
        };
        let mut interventions = vec![none];
        let Some(item) = self.get(root, "interventions") else { return interventions };
        let DeValue::Table(_) = item.value else {
            self.problem(&item.at, "expected a table for each action");
            return interventions;
        };
        let Some(table) = self.table(&item) else { return interventions };
        let entries = self.entries(&table);
        if entries.len() > INTERVENTIONS_MAX {
            self.problem(&item.at, format_args!("more than {INTERVENTIONS_MAX}"));
            return interventions;
        }
        for (action, item) in entries {
            if action == NONE {
                self.problem(&item.at, "this action is built in and cannot be defined anew");
            }
            if !is_word(action) {
                self.problem(&item.at, "expected a name of 1 to 64 letters a-z, digits and underscores");
            }
            let Some(entry) = self.table(&item) else { continue };
            self.only(&entry, &["description", "cost", "expected_effectiveness", "capacity", "eligible"]);
            let description = self.need_text(&entry, "description").unwrap_or_default();
            let cost = self.need(&entry, "cost").and_then(|item| {
                let money = Money::from_units(self.number(&item)?).filter(|money| *money >= Money::ZERO);
                if money.is_none() {
                    self.problem(&item.at, "expected 0 or more, with at most six decimals");
                }
                money
            });
            let effectiveness = self.need(&entry, "expected_effectiveness").and_then(|item| {
                let share = self.number(&item)?;
                if !(0.0..=1.0).contains(&share) {
                    self.problem(&item.at, "expected a share from 0 to 1");
                }
                Some(share)
            });
            let capacity = self.get(&entry, "capacity").and_then(|item| self.capacity(&item));
            let eligible = match self.get(&entry, "eligible") {
                Some(item) => self.conditions(&item, rules),
                None => Vec::new(),
            };
            interventions.push(Intervention {
                action: action.to_owned(),
                description,
                cost: cost.unwrap_or_default(),
                expected_effectiveness: effectiveness.unwrap_or_default(),
                capacity,
                eligible,
            });
        }
        interventions
    }

    fn capacity(&mut self, item: &Item) -> Option<Capacity> {
        let table = self.table(item)?;
        self.only(&table, &["count", "per"]);
        let count = self.need(&table, "count").and_then(|item| {
            let count = self.number(&item)?;
            if !(1.0..=1e9).contains(&count) || count.fract() != 0.0 {
                self.problem(&item.at, "expected a whole number of 1 or more");
            }
            Some(count as u32)
        });
        let per = self.need(&table, "per").and_then(|item| self.period(&item));
        Some(Capacity { count: count?, per: per? })
    }

    /// The place of an intervention by its action.
    fn intervention(&mut self, item: &Item, interventions: &[Intervention]) -> Option<usize> {
        let action = self.text(item)?;
        let found = interventions.iter().position(|known| known.action == action);
        if found.is_none() {
            let meant = did_you_mean(&action, interventions.iter().map(|known| known.action.as_str()));
            self.problem(&item.at, format_args!("\"{action}\" is not among the interventions{meant}"));
        }
        found
    }

    /// The places of interventions by a list of their actions.
    fn listed(&mut self, item: &Item, interventions: &[Intervention]) -> Vec<usize> {
        let DeValue::Array(array) = item.value else {
            self.problem(&item.at, "expected a list of interventions");
            return Vec::new();
        };
        let mut places = Vec::new();
        for item in self.items(array, &item.at) {
            let Some(place) = self.intervention(&item, interventions) else { continue };
            if places.contains(&place) {
                self.problem(&item.at, format_args!("\"{}\" stands more than once", interventions[place].action));
            }
            places.push(place);
        }
        places
    }

    fn tiers(&mut self, root: &Table, interventions: &[Intervention], objective: Objective) -> Vec<Tier> {
        let at = root.at.key("tiers");
        let found = self.get(root, "tiers");
        let items = match found.as_ref().map(|item| (item, item.value)) {
            Some((item, DeValue::Array(array))) if (1..=TIERS_MAX).contains(&array.len()) => {
                self.items(array, &item.at)
            }
            _ => {
                let at = found.map_or(at, |item| item.at);
                self.problem(&at, format_args!("expected 1 to {TIERS_MAX} tables [[tiers]]"));
                return Vec::new();
            }
        };
        let mut tiers: Vec<Tier> = Vec::new();
        let problems_before = self.problems.len();
        for item in &items {
            let Some(entry) = self.table(item) else { continue };
            self.only(&entry, &["name", "score", "intervention", "fallback", "explain"]);
            let name = self.need_word(&entry, "name");
            if tiers.iter().any(|tier| tier.name == name) {
                self.problem(&item.at.key("name"), format_args!("\"{name}\" stands more than once"));
            }
            let band = self.need(&entry, "score").and_then(|item| self.band(&item));
            let preferences = self.preferences(&entry, interventions, objective);
            let explain = self.explain(&entry);
            tiers.push(Tier { name, band: band.unwrap_or(Interval::closed(0.0, 1.0)), preferences, explain });
        }
        // Coverage can only be judged when every band was understood.
        if self.problems.len() == problems_before {
            tiers.sort_by(|one, other| falling(&one.band, &other.band));
            let bands: Vec<(&str, Interval)> = tiers.iter().map(|tier| (tier.name.as_str(), tier.band)).collect();
            let at = found.map_or(at, |item| item.at);
            self.coverage(&bands, &at);
        }
        tiers
    }

    /// What a tier offers, the first of it first.
    fn preferences(&mut self, entry: &Table, interventions: &[Intervention], objective: Objective) -> Vec<usize> {
        if objective == Objective::ExpectedValue {
            for key in ["intervention", "fallback"] {
                if let Some(item) = self.get(entry, key) {
                    self.problem(&item.at, "has no effect, since the objective chooses: take it out");
                }
            }
            return Vec::new();
        }
        let first = self.need(entry, "intervention").and_then(|item| self.intervention(&item, interventions));
        let mut preferences = vec![first.unwrap_or_default()];
        if let Some(item) = self.get(entry, "fallback") {
            for place in self.listed(&item, interventions) {
                if preferences.contains(&place) {
                    self.problem(&item.at, format_args!("\"{}\" is offered first", interventions[place].action));
                }
                preferences.push(place);
            }
        }
        preferences
    }

    /// The bands cover 0 to 1 without a gap or an overlap: seen from 1 downwards each begins where the last one ended.
    fn coverage(&mut self, bands: &[(&str, Interval)], at: &At) {
        let (Some((top, highest)), Some((bottom, lowest))) = (bands.first(), bands.last()) else { return };
        if !(highest.to == 1.0 && highest.to_included) {
            self.problem(at, format_args!("no tier has the score 1: the highest band, of \"{top}\", is {highest}"));
        }
        if !(lowest.from == 0.0 && lowest.from_included) {
            self.problem(at, format_args!("no tier has the score 0: the lowest band, of \"{bottom}\", is {lowest}"));
        }
        for pair in bands.windows(2) {
            let ((upper_name, upper), (lower_name, lower)) = (pair[0], pair[1]);
            let shared = match upper.from.total_cmp(&lower.to) {
                std::cmp::Ordering::Greater => Some("a gap"),
                std::cmp::Ordering::Less => Some("an overlap"),
                std::cmp::Ordering::Equal => match (upper.from_included, lower.to_included) {
                    (true, true) => Some("an overlap"),
                    (false, false) => Some("a gap"),
                    _ => None,
                },
            };
            if let Some(what) = shared {
                self.problem(at, format_args!("{what} between \"{lower_name}\" {lower} and \"{upper_name}\" {upper}"));
            }
        }
    }

    /// A band of scores.
    fn band(&mut self, item: &Item) -> Option<Interval> {
        let text = self.text(item)?;
        let within = |end: f64| (0.0..=1.0).contains(&end);
        match Interval::parse(&text).filter(|band| within(band.from) && within(band.to)) {
            Some(band) if band.is_empty(false) => self.problem(&item.at, format_args!("the band {band} is empty")),
            Some(band) => return Some(band),
            None => self.problem(
                &item.at,
                "expected an interval within 0 to 1 such as \"[0.5, 0.8)\": [ and ] include the end, ( and ) leave it out",
            ),
        }
        None
    }
}

/// Orders bands by falling risk.
fn falling(one: &Interval, other: &Interval) -> std::cmp::Ordering {
    other.from.total_cmp(&one.from).then(other.to.total_cmp(&one.to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::score::Score;
    use proptest::prelude::*;

    const DEFAULT: &str = include_str!("../../../../models/policy/default.toml");
    const VALUE: &str = include_str!("../../../../models/policy/value.toml");
    const FOUR_BANDS: &str = include_str!("../../../../models/policy/four-bands.toml");

    fn tier(policy: &Policy, score: f64) -> &str {
        let score = Score::new(score).expect("a probability");
        &policy.tiers()[policy.tier_of(None, score)].name
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
            .filter_map(|tier| policy.first_of(tier))
            .map(|first| (first.cost.units(), first.expected_effectiveness))
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
        line 6: currency: expected an ISO 4217 code of three capital letters, such as "USD"
        line 7: policy: unknown key "colour"
        line 12: tiers[0].intervention: "account_manager_cal" is not among the interventions; did you mean "account_manager_call"?
        line 33: interventions.discount_email.cost: expected 0 or more, with at most six decimals
        line 39: interventions.engagement_email.expected_effectiveness: expected a share from 0 to 1
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

    /// The problems of the value policy with one text put in the place of another.
    fn broken(changes: &[(&str, &str)]) -> String {
        let text = changes.iter().fold(VALUE.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        });
        parse(&text, "v").map_or_else(|problems| problems.join("\n"), |_| "legal".to_owned())
    }

    #[test]
    fn every_problem_of_a_rule_is_told_with_its_line() {
        let top = "objective = \"expected_value\"\n";
        let segment =
            |when: &str| format!("\n[[segments]]\nname = \"more\"\noffers = []\nwhen = {{ {when} }}\n[value_at_stake]");
        let alone = |when: &str| broken(&[("\n[value_at_stake]", &segment(when))]);
        let with = |when: &str| alone(&format!("tenure = \"[12, 24)\", {when}"));
        let cases = [
            ("a wrong objective", broken(&[(top, "objective = \"value\"\n")])),
            ("no value at stake", broken(&[("[value_at_stake]\nfrom = \"context.clv\"", "")])),
            ("a value of a text", broken(&[("from = \"context.clv\"", "from = \"context.region\"")])),
            (
                "a value below zero",
                broken(&[("range = { min = 0, max = 100000 }", "range = { min = -1, max = 100000 }")]),
            ),
            (
                "a value without end",
                broken(&[("range = { min = 0, max = 100000 }", "range = { min = 0, max = 1e12 }")]),
            ),
            ("an undeclared field", with("context.regoin = [\"EU\"]")),
            ("a field for audits", with("\"context.audit\" = [\"f\"]")),
            ("a wrong type of a number", with("context.clv = [\"EU\"]")),
            ("a wrong type of a category", with("context.region = \"[0, 1)\"")),
            ("a wrong type of a boolean", with("context.opt_out = 1")),
            ("an unknown category", with("context.region = [\"EUU\"]")),
            ("an empty interval", with("context.clv = \"(5, 5]\"")),
            ("an interval outside", with("context.clv = \"[-9, 0)\"")),
            ("no interval", with("context.clv = \"high\"")),
            ("no condition", alone("")),
            ("a condition twice", with("\"context.clv\" = 1, context = { clv = 2 }")),
            ("an overlap", alone("Contract = [\"Month-to-month\"]")),
            ("a protected feature", with("gender = [\"f\"]")),
            (
                "a waiver for nothing",
                broken(&[(
                    top,
                    "objective = \"expected_value\"\nwaivers = [{ field = \"age\", reason = \" \", granted_by = \"dpo\", granted_on = \"soon\" }]\n",
                )]),
            ),
            (
                "a segment that changes nothing",
                broken(&[("offers = [\"account_manager_call\", \"retention_offer\"]\n", "")]),
            ),
            (
                "an offer that nobody knows",
                broken(&[("offers = [\"account_manager_call\"", "offers = [\"acount_manager_call\"")]),
            ),
            (
                "a tier that offers",
                broken(&[("score = \"(0.8, 1]\"", "score = \"(0.8, 1]\"\nintervention = \"none\"")]),
            ),
            ("bands with a gap", broken(&[("medium = \"[0.4, 0.7]\"", "medium = \"[0.4, 0.7)\"")])),
            (
                "bands upside down",
                broken(&[(
                    "bands = { high = \"(0.7, 1]\", medium = \"[0.4, 0.7]\", low = \"[0, 0.4)\" }",
                    "bands = { low = \"(0.7, 1]\", medium = \"[0.4, 0.7]\", high = \"[0, 0.4)\" }",
                )]),
            ),
            ("a band of no tier", broken(&[("bands = { high", "bands = { hihg = \"[0, 1]\", high")])),
            (
                "a capacity of nothing",
                broken(&[("capacity = { count = 200, per = \"week\" }", "capacity = { count = 0, per = \"year\" }")]),
            ),
            ("a default out of range", broken(&[("missing = { default = 600 }", "missing = { default = -600 }")])),
            ("a missing that means nothing", broken(&[("missing = { default = 600 }", "missing = \"zero\"")])),
            ("a type that nobody knows", broken(&[("type = \"number\"", "type = \"float\"")])),
            ("a context for audits", broken(&[("[context.clv]", "[context.audit]\n[context.clv]")])),
        ];
        let told: String = cases.iter().map(|(what, problems)| format!("{what}\n{problems}\n\n")).collect();
        insta::assert_snapshot!(told);
    }

    #[test]
    fn a_protected_field_may_be_read_with_a_waiver() {
        let segment = "[[segments]]\nname = \"more\"\noffers = []\nwhen = { gender = [\"f\"], tenure = \"[12, 24)\" }\n[[waivers]]\nfield = \"gender\"\nreason = \"a legal duty\"\ngranted_by = \"dpo\"\ngranted_on = \"2026-11-01\"\n[value_at_stake]";
        assert_eq!(broken(&[("[value_at_stake]", segment)]), "legal");
    }

    #[test]
    fn the_bundled_documents_keep_their_places() {
        let policy = parse(VALUE, "v").expect("a legal policy");
        let actions: Vec<&str> = policy.interventions().iter().map(|known| known.action.as_str()).collect();
        assert_eq!(actions, ["none", "account_manager_call", "retention_offer", "discount_email", "engagement_email"]);
        assert!(!policy.is_plain() && parse(DEFAULT, "v").expect("legal").is_plain());
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
