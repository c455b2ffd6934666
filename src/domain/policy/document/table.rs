//! TOML with the place of everything in it: reads values by their types and collects what is wrong. What they mean is not known here.

use toml::de::{DeArray, DeTable, DeValue};

use super::super::condition::At;
use super::super::fit::told;
use crate::domain::nearest::nearest;

/// The longest text of a document, in bytes.
const TEXT_MAX: usize = 1_024;

/// Collects problems; where something is wrong it goes on with a stand-in, so that one mistake does not hide the next.
pub(super) struct Reader {
    /// Where each line ends.
    ends: Vec<usize>,
    pub(super) problems: Vec<(At, String)>,
}

/// A table of the document.
#[derive(Clone)]
pub(super) struct Table<'t> {
    entries: &'t DeTable<'t>,
    pub(super) at: At,
}

/// A value of the document.
pub(super) struct Item<'t> {
    pub(super) value: &'t DeValue<'t>,
    pub(super) at: At,
}

impl Reader {
    pub(super) fn new(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        Self { ends, problems: Vec::new() }
    }

    fn line(&self, byte: usize) -> u32 {
        self.ends.partition_point(|end| *end < byte) as u32 + 1
    }

    pub(super) fn problem(&mut self, at: &At, text: impl std::fmt::Display) {
        self.problems.push((at.clone(), text.to_string()));
    }

    /// The problems as sentences, in the order of the document.
    pub(super) fn end(self) -> Vec<String> {
        told(self.problems)
    }

    pub(super) fn root<'t>(&self, entries: &'t DeTable<'t>) -> Table<'t> {
        Table { entries, at: At { line: 1, path: String::new() } }
    }

    /// The entries of a table in the order of the document.
    pub(super) fn entries<'t>(&self, table: &Table<'t>) -> Vec<(&'t str, Item<'t>)> {
        let mut found: Vec<_> = table
            .entries
            .iter()
            .map(|(key, value)| {
                let name: &'t str = key.get_ref();
                let at = At { line: self.line(key.span().start), ..table.at.key(name) };
                (key.span().start, name, Item { value: value.get_ref(), at })
            })
            .collect();
        found.sort_by_key(|(start, _, _)| *start);
        found.into_iter().map(|(_, name, item)| (name, item)).collect()
    }

    pub(super) fn get<'t>(&self, table: &Table<'t>, key: &str) -> Option<Item<'t>> {
        self.entries(table).into_iter().find(|(name, _)| *name == key).map(|(_, item)| item)
    }

    /// The value of `key`, which must be there.
    pub(super) fn need<'t>(&mut self, table: &Table<'t>, key: &str) -> Option<Item<'t>> {
        let found = self.get(table, key);
        if found.is_none() {
            self.problem(&table.at.key(key), "is missing");
        }
        found
    }

    /// Tells of every key that is not among `known`.
    pub(super) fn only(&mut self, table: &Table, known: &[&str]) {
        for (key, item) in self.entries(table) {
            if !known.contains(&key) {
                let meant = did_you_mean(key, known.iter().copied());
                let at = At { path: table.at.path.clone(), ..item.at };
                self.problem(&at, format_args!("unknown key \"{key}\"{meant}"));
            }
        }
    }

    pub(super) fn table<'t>(&mut self, item: &Item<'t>) -> Option<Table<'t>> {
        match item.value {
            DeValue::Table(entries) => Some(Table { entries, at: item.at.clone() }),
            _ => {
                self.problem(&item.at, "expected a table");
                None
            }
        }
    }

    /// The items of an array, each with its own line.
    pub(super) fn items<'t>(&self, array: &'t DeArray<'t>, at: &At) -> Vec<Item<'t>> {
        let item = |(place, value): (usize, &'t toml::Spanned<DeValue<'t>>)| Item {
            value: value.get_ref(),
            at: At { line: self.line(value.span().start), path: format!("{}[{place}]", at.path) },
        };
        array.iter().enumerate().map(item).collect()
    }

    pub(super) fn text(&mut self, item: &Item) -> Option<String> {
        match item.value {
            DeValue::String(text) if text.len() <= TEXT_MAX => return Some(text.clone().into_owned()),
            DeValue::String(_) => self.problem(&item.at, format_args!("is longer than {TEXT_MAX} bytes")),
            _ => self.problem(&item.at, "expected a string"),
        }
        None
    }

    /// The text of `key`, which must be there.
    pub(super) fn need_text(&mut self, table: &Table, key: &str) -> Option<String> {
        self.need(table, key).and_then(|item| self.text(&item))
    }

    /// The name in `key`, which must be there.
    pub(super) fn need_word(&mut self, table: &Table, key: &str) -> String {
        let Some(item) = self.need(table, key) else { return String::new() };
        let text = self.text(&item);
        if text.as_deref().is_some_and(|text| !is_word(&text.replace('-', "_"))) {
            self.problem(&item.at, "expected 1 to 64 letters a-z, digits, hyphens and underscores");
        }
        text.unwrap_or_default()
    }

    pub(super) fn number(&mut self, item: &Item) -> Option<f64> {
        let number = number(item.value);
        if number.is_none() {
            self.problem(&item.at, "expected a number");
        }
        number
    }

    pub(super) fn need_number(&mut self, table: &Table, key: &str) -> Option<f64> {
        self.need(table, key).and_then(|item| self.number(&item))
    }

    /// Different texts, at least one and at most `max`.
    pub(super) fn texts(&mut self, item: &Item, max: usize) -> Option<Vec<String>> {
        let array = match item.value {
            DeValue::Array(array) if (1..=max).contains(&array.len()) => array,
            _ => {
                self.problem(&item.at, format_args!("expected a list of 1 to {max} strings"));
                return None;
            }
        };
        let mut texts = Vec::new();
        for item in self.items(array, &item.at) {
            let text = self.text(&item)?;
            if texts.contains(&text) {
                self.problem(&item.at, format_args!("\"{text}\" stands more than once"));
            }
            texts.push(text);
        }
        Some(texts)
    }
}

/// A number, written as a whole one or not.
pub(super) fn number(value: &DeValue) -> Option<f64> {
    match value {
        DeValue::Float(number) => number.as_str().parse().ok(),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(|whole| whole as f64),
        _ => None,
    }
}

/// "; did you mean", where there is something near enough.
pub(super) fn did_you_mean<'c>(word: &str, known: impl IntoIterator<Item = &'c str>) -> String {
    nearest(word, known).map_or(String::new(), |meant| format!("; did you mean \"{meant}\"?"))
}

pub(super) fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
