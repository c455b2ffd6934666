//! The rules of a policy document: the context that it declares, conditions, segments, the value at stake, and who allowed a rule to look
//! at what is protected.

use toml::de::DeValue;

use super::super::condition::{Condition, Domain, Field, Fixed, Kind, Missing, Test};
use super::super::fit::AUDIT;
use super::super::{Intervention, Objective, Segment, Stake, Tier};
use super::table::{Item, Reader, Table, did_you_mean, is_word, number};
use super::{CATEGORIES_MAX, FIELDS_MAX, Interval, SEGMENTS_MAX, falling};
use crate::domain::bundle::protected::why_protected;

/// What the rules read so far.
pub(super) struct Rules {
    pub(super) fields: Vec<Field>,
}

impl Reader {
    /// The declarations of the context.
    pub(super) fn context(&mut self, root: &Table) -> Vec<Field> {
        let mut fields = Vec::new();
        let Some(table) = self.get(root, "context").and_then(|item| self.table(&item)) else { return fields };
        for (name, item) in self.entries(&table) {
            if name == AUDIT {
                self.problem(&item.at, "groups for audits are not for a policy: no condition reads them");
                continue;
            }
            if !is_word(name) {
                self.problem(&item.at, "expected a name of 1 to 64 letters a-z, digits and underscores");
            }
            let Some(entry) = self.table(&item) else { continue };
            let domain = self.domain(&entry);
            fields.push(Field { name: name.to_owned(), context: Some(domain), at: item.at.clone() });
        }
        if fields.len() > FIELDS_MAX {
            self.problem(&table.at, format_args!("more than {FIELDS_MAX} fields"));
            fields.truncate(FIELDS_MAX);
        }
        fields
    }

    fn domain(&mut self, entry: &Table) -> Domain {
        let kind = match self.need_text(entry, "type").as_deref() {
            Some(kind @ ("number" | "integer")) => {
                self.only(entry, &["type", "description", "range", "missing"]);
                let (min, max) = self.get(entry, "range").and_then(|item| self.range(&item)).unwrap_or((-1e15, 1e15));
                Kind::Number { min, max, whole: kind == "integer" }
            }
            Some("category") => {
                self.only(entry, &["type", "description", "categories", "unknown", "missing"]);
                let known = self.need(entry, "categories").and_then(|item| self.texts(&item, CATEGORIES_MAX));
                let known = known.unwrap_or_default();
                Kind::Category { unknown: self.unknown(entry, &known), known }
            }
            Some("boolean") => {
                self.only(entry, &["type", "description", "missing"]);
                Kind::Boolean
            }
            other => {
                if other.is_some() {
                    let expected = "expected \"number\", \"integer\", \"category\" or \"boolean\"";
                    self.problem(&entry.at.key("type"), expected);
                }
                Kind::Boolean
            }
        };
        if let Some(item) = self.get(entry, "description") {
            self.text(&item);
        }
        let missing = self.missing(entry, &kind);
        Domain { kind, missing }
    }

    fn range(&mut self, item: &Item) -> Option<(f64, f64)> {
        let table = self.table(item)?;
        self.only(&table, &["min", "max"]);
        let (min, max) = (self.need_number(&table, "min")?, self.need_number(&table, "max")?);
        if !(min < max && min.abs() <= 1e15 && max.abs() <= 1e15) {
            self.problem(&item.at, "needs min < max, both within -1e15 and 1e15");
        }
        Some((min, max))
    }

    /// What a value outside `known` counts as: `unknown = { as = "…" }`.
    fn unknown(&mut self, entry: &Table, known: &[String]) -> Option<String> {
        let item = self.get(entry, "unknown")?;
        if matches!(item.value, DeValue::String(text) if text == "refuse") {
            return None;
        }
        let table = self.table(&item)?;
        self.only(&table, &["as"]);
        let text = self.need_text(&table, "as")?;
        if !known.contains(&text) {
            self.problem(&item.at, "`as` is none of the categories");
        }
        Some(text)
    }

    /// What an absent value means: `missing = "refuse"` or `missing = { default = … }`.
    fn missing(&mut self, entry: &Table, kind: &Kind) -> Missing {
        let Some(item) = self.need(entry, "missing") else { return Missing::Refuse };
        let default = match item.value {
            DeValue::String(text) if text == "refuse" => return Missing::Refuse,
            DeValue::Table(_) => self.table(&item).and_then(|table| {
                self.only(&table, &["default"]);
                self.need(&table, "default")
            }),
            _ => {
                self.problem(&item.at, "expected \"refuse\" or { default = … }");
                return Missing::Refuse;
            }
        };
        let Some(default) = default else { return Missing::Refuse };
        let fixed = match (kind, default.value) {
            (Kind::Number { min, max, whole }, value) => number(value)
                .filter(|number| (*min..=*max).contains(number) && !(*whole && number.fract() != 0.0))
                .map(Fixed::Number),
            (Kind::Category { known, .. }, DeValue::String(text)) => {
                known.iter().find(|known| *known == text).cloned().map(Fixed::Text)
            }
            (Kind::Boolean, DeValue::Boolean(is)) => Some(Fixed::Bool(*is)),
            _ => None,
        };
        match fixed {
            Some(fixed) => Missing::Default(fixed),
            None => {
                self.problem(&default.at, "is not a legal value of this field");
                Missing::Refuse
            }
        }
    }

    /// Conditions by field. `"context.clv" = …` and `context.clv = …` are the same.
    pub(super) fn conditions(&mut self, item: &Item, rules: &mut Rules) -> Vec<Condition> {
        let Some(table) = self.table(item) else { return Vec::new() };
        let mut conditions: Vec<Condition> = Vec::new();
        for (name, item) in self.entries(&table) {
            if let ("context", DeValue::Table(_)) = (name, item.value) {
                let inner = self.table(&item).map(|inner| self.entries(&inner)).unwrap_or_default();
                for (name, item) in inner {
                    let condition = self.condition(&format!("context.{name}"), &item, rules);
                    self.add(condition, &mut conditions);
                }
            } else {
                let condition = self.condition(name, &item, rules);
                self.add(condition, &mut conditions);
            }
        }
        if table_is_empty(item) {
            self.problem(&item.at, "expected at least one condition");
        }
        conditions
    }

    fn add(&mut self, condition: Option<Condition>, conditions: &mut Vec<Condition>) {
        let Some(condition) = condition else { return };
        if conditions.iter().any(|other| other.field == condition.field) {
            self.problem(&condition.at, "stands more than once");
        }
        conditions.push(condition);
    }

    fn condition(&mut self, name: &str, item: &Item, rules: &mut Rules) -> Option<Condition> {
        let field = self.field(name, item, rules);
        let test = match item.value {
            DeValue::Boolean(is) => Test::Is(*is),
            DeValue::Array(_) => Test::OneOf(self.texts(item, CATEGORIES_MAX)?),
            DeValue::String(text) => match Interval::parse(text) {
                Some(interval) if interval.is_empty(false) => {
                    self.problem(&item.at, format_args!("can never hold: {interval} is empty"));
                    return None;
                }
                Some(interval) => Test::Within(interval),
                None => {
                    let form = "an interval such as \"[0, 12)\" or \"[500, )\", a list such as [\"EU\"], true or false";
                    self.problem(&item.at, format_args!("expected {form}"));
                    return None;
                }
            },
            value => match number(value).filter(|number| number.is_finite()) {
                Some(number) => Test::Within(Interval::closed(number, number)),
                None => {
                    self.problem(&item.at, "expected an interval, a number, a list, true or false");
                    return None;
                }
            },
        };
        Some(Condition { field: field?, test, at: item.at.clone() })
    }

    /// The place of the field called `name`: a feature, or `context.` and an entry that is declared.
    fn field(&mut self, name: &str, item: &Item, rules: &mut Rules) -> Option<usize> {
        let Rules { fields } = rules;
        if let Some(entry) = name.strip_prefix("context.") {
            if entry == AUDIT || entry.starts_with("audit.") {
                self.problem(&item.at, "groups for audits are not for a policy: no condition reads them");
                return None;
            }
            let found = fields.iter().position(|field| field.context.is_some() && field.name == entry);
            if found.is_none() {
                let declared = fields.iter().filter(|field| field.context.is_some());
                let meant = did_you_mean(entry, declared.map(|field| field.name.as_str()));
                self.problem(&item.at, format_args!("the document declares no [context.{entry}]{meant}"));
            }
            return found;
        }
        let known = fields.iter().position(|field| field.context.is_none() && field.name == name);
        if known.is_none() && fields.len() == FIELDS_MAX {
            self.problem(&item.at, format_args!("more than {FIELDS_MAX} fields are read"));
            return None;
        }
        known.or_else(|| {
            fields.push(Field { name: name.to_owned(), context: None, at: item.at.clone() });
            Some(fields.len() - 1)
        })
    }

    pub(super) fn segments(
        &mut self,
        root: &Table,
        rules: &mut Rules,
        tiers: &[Tier],
        interventions: &[Intervention],
        objective: Objective,
    ) -> Vec<Segment> {
        let Some(found) = self.get(root, "segments") else { return Vec::new() };
        let items = match found.value {
            DeValue::Array(array) if (1..=SEGMENTS_MAX).contains(&array.len()) => self.items(array, &found.at),
            _ => {
                self.problem(&found.at, format_args!("expected at most {SEGMENTS_MAX} tables [[segments]]"));
                return Vec::new();
            }
        };
        let mut segments: Vec<Segment> = Vec::new();
        for item in &items {
            let Some(entry) = self.table(item) else { continue };
            self.only(&entry, &["name", "when", "bands", "interventions", "offers"]);
            let name = self.need_word(&entry, "name");
            if segments.iter().any(|segment| segment.name == name) {
                self.problem(&item.at.key("name"), format_args!("\"{name}\" stands more than once"));
            }
            let when = self.need(&entry, "when").map(|item| self.conditions(&item, rules)).unwrap_or_default();
            let [bands, own, offers] = ["bands", "interventions", "offers"].map(|key| self.get(&entry, key));
            if bands.is_none() && own.is_none() && offers.is_none() {
                self.problem(&item.at, "changes nothing: expected bands, interventions or offers");
            }
            for (item, is_for) in [(&own, Objective::Tier), (&offers, Objective::ExpectedValue)] {
                if let Some(item) = item
                    && objective != is_for
                {
                    let text = format!("has no effect with the objective \"{}\": take it out", objective.name());
                    self.problem(&item.at, text);
                }
            }
            segments.push(Segment {
                name,
                when,
                bands: bands.map(|item| self.bands(&item, tiers)).unwrap_or_default(),
                preferences: own.map(|item| self.own(&item, tiers, interventions)).unwrap_or_default(),
                offers: offers.map(|item| self.listed(&item, interventions)).map(|mut offers| {
                    // It is always offered.
                    offers.retain(|place| *place != 0);
                    offers
                }),
            });
        }
        segments
    }

    /// The bands of a segment: one for each tier, in the order of the tiers, covering 0 to 1 once.
    fn bands(&mut self, item: &Item, tiers: &[Tier]) -> Vec<Interval> {
        let Some(table) = self.table(item) else { return Vec::new() };
        let problems_before = self.problems.len();
        self.tier_names(&table, tiers);
        let bands: Vec<Interval> =
            tiers.iter().filter_map(|tier| self.need(&table, &tier.name).and_then(|item| self.band(&item))).collect();
        if self.problems.len() == problems_before {
            let named: Vec<(&str, Interval)> =
                tiers.iter().map(|tier| tier.name.as_str()).zip(bands.iter().copied()).collect();
            if bands.is_sorted_by(|one, other| falling(one, other).is_le()) {
                self.coverage(&named, &item.at);
            } else {
                self.problem(&item.at, "are in another order than the tiers: more risk is never a lower tier");
            }
        }
        bands
    }

    /// What the tiers offer in a segment: the one intervention, or a list of which the first that is possible is offered.
    fn own(&mut self, item: &Item, tiers: &[Tier], interventions: &[Intervention]) -> Vec<Option<Vec<usize>>> {
        let Some(table) = self.table(item) else { return Vec::new() };
        self.tier_names(&table, tiers);
        let mut preferences = Vec::new();
        for tier in tiers {
            preferences.push(self.get(&table, &tier.name).map(|item| match item.value {
                DeValue::Array(_) => self.listed(&item, interventions),
                _ => self.intervention(&item, interventions).into_iter().collect(),
            }));
        }
        preferences
    }

    fn tier_names(&mut self, table: &Table, tiers: &[Tier]) {
        for (name, item) in self.entries(table) {
            if !tiers.iter().any(|tier| tier.name == name) {
                let meant = did_you_mean(name, tiers.iter().map(|tier| tier.name.as_str()));
                self.problem(&item.at, format_args!("no tier has this name{meant}"));
            }
        }
    }

    pub(super) fn value_at_stake(&mut self, root: &Table, rules: &mut Rules, objective: Objective) -> Option<Stake> {
        let Some(item) = self.get(root, "value_at_stake") else {
            if objective == Objective::ExpectedValue {
                self.problem(&root.at.key("value_at_stake"), "is missing: the objective needs it");
            }
            return None;
        };
        let amount = |reader: &mut Self, item: &Item| {
            let number = reader.number(item)?;
            if !(0.0..=super::super::fit::STAKE_MAX).contains(&number) {
                reader.problem(&item.at, "expected 0 or more, at most 1e9");
            }
            Some(number)
        };
        if number(item.value).is_some() {
            let default = amount(self, &item);
            return Some(Stake { field: None, times: 1.0, default, line: item.at.line });
        }
        let DeValue::Table(_) = item.value else {
            self.problem(&item.at, "expected an amount, or { from = \"context.…\" }");
            return None;
        };
        let table = self.table(&item)?;
        self.only(&table, &["from", "times", "default"]);
        let default = self.get(&table, "default").and_then(|item| amount(self, &item));
        let times = self.get(&table, "times").and_then(|item| amount(self, &item)).unwrap_or(1.0);
        let from = self.need(&table, "from")?;
        let name = self.text(&from)?;
        let field = self.field(&name, &from, rules)?;
        Some(Stake { field: Some(field), times, default, line: from.at.line })
    }

    /// Fields that are protected need a waiver, as features of a bundle do; and a waiver is for a field that is read.
    pub(super) fn waivers(&mut self, root: &Table, rules: &Rules) {
        let mut waived = Vec::new();
        if let Some(found) = self.get(root, "waivers") {
            let items = match found.value {
                DeValue::Array(array) => self.items(array, &found.at),
                _ => {
                    self.problem(&found.at, "expected tables [[waivers]]");
                    Vec::new()
                }
            };
            for item in &items {
                let Some(entry) = self.table(item) else { continue };
                self.only(&entry, &["field", "reason", "granted_by", "granted_on"]);
                for key in ["reason", "granted_by"] {
                    if self.need_text(&entry, key).is_some_and(|text| text.trim().is_empty()) {
                        self.problem(&item.at.key(key), "is empty");
                    }
                }
                if self.need_text(&entry, "granted_on").is_some_and(|day| day.parse::<jiff::civil::Date>().is_err()) {
                    self.problem(&item.at.key("granted_on"), "expected a day such as \"2026-11-01\"");
                }
                let Some(field) = self.need_text(&entry, "field") else { continue };
                if !rules.fields.iter().any(|known| known.to_string() == field) {
                    self.problem(&item.at.key("field"), "is not read by this policy");
                }
                waived.push(field);
            }
        }
        for field in &rules.fields {
            if let Some(why) = why_protected(&field.name)
                && !waived.contains(&field.to_string())
            {
                let text = format!("\"{field}\" is {why}: a policy may look at it only with one of [[waivers]]");
                self.problem(&field.at, text);
            }
        }
    }
}

fn table_is_empty(item: &Item) -> bool {
    matches!(item.value, DeValue::Table(entries) if entries.is_empty())
}
