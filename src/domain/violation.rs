//! One thing wrong with one place of an input: where, what was expected, and the way out. Collected, never thrown one at a
//! time; turned into a problem document by `http`.

use std::fmt::Write;

/// How many violations one input can be told of. The rest is counted, not listed, so that an answer stays bounded.
pub const LISTED_MAX: usize = 100;

/// What is wrong, as a stable code for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// A required value is absent or null.
    Missing,
    /// A name that nobody knows.
    UnknownName,
    /// The same name twice in one object.
    Duplicate,
    /// A value of the wrong JSON type.
    WrongType,
    /// A number outside its range, or a string of a wrong length.
    OutOfRange,
    /// A string that is none of the categories.
    UnknownCategory,
    /// More levels or entries than allowed.
    TooMany,
    /// What is known and right by itself, but cannot be had as things stand.
    NotAllowed,
}

/// One violation of the contract by one place of an input.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    /// Where: an RFC 6901 JSON pointer into the body, `""` for the whole.
    pub pointer: String,
    /// What is wrong.
    pub code: Code,
    /// What would have been right, in words.
    pub expected: String,
    /// The known word that was probably meant.
    pub nearest: Option<String>,
}

impl Violation {
    /// A violation at `pointer`.
    pub fn new(pointer: impl Into<String>, code: Code, expected: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), code, expected: expected.into(), nearest: None }
    }

    /// The same, with the word that was probably meant.
    pub fn or_nearest(mut self, nearest: Option<&str>) -> Self {
        self.nearest = nearest.map(str::to_owned);
        self
    }

    /// The violation as a sentence. It names what was expected, never the value that was given.
    pub fn detail(&self) -> String {
        let mut sentence = match self.code {
            Code::Missing => format!("is missing: expected {}", self.expected),
            Code::UnknownName => format!("is not known: expected {}", self.expected),
            Code::Duplicate => "stands more than once: expected it once".to_owned(),
            Code::WrongType => format!("has the wrong type: expected {}", self.expected),
            Code::OutOfRange => format!("is out of range: expected {}", self.expected),
            Code::UnknownCategory => format!("is not a known category: expected {}", self.expected),
            Code::TooMany => format!("is too large: expected {}", self.expected),
            Code::NotAllowed => format!("is not allowed here: expected {}", self.expected),
        };
        if let Some(nearest) = &self.nearest {
            let _ = write!(sentence, "; did you mean \"{nearest}\"?");
        }
        sentence
    }
}

/// The characters that a pointer shows of one name. No name that is known is longer; one that nobody knows may be as long as a body, and
/// must not come back once for each of its violations.
const TOKEN_CHARS_MAX: usize = 128;

/// `parent` with one more token, escaped after RFC 6901, section 3 (`~` is `~0`, `/` is `~1`). Of a token of more than 128 characters it
/// has the first ones, and `…`.
pub fn pointer(parent: &str, token: &str) -> String {
    let mut path = String::with_capacity(parent.len() + token.len().min(TOKEN_CHARS_MAX) + 4);
    path.push_str(parent);
    path.push('/');
    for (at, character) in token.chars().enumerate() {
        match character {
            _ if at == TOKEN_CHARS_MAX => {
                path.push('…');
                break;
            }
            '~' => path.push_str("~0"),
            '/' => path.push_str("~1"),
            other => path.push(other),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_escaped() {
        assert_eq!(pointer("/features", "a/b~c"), "/features/a~1b~0c");
    }

    #[test]
    fn of_a_long_name_the_beginning_is_shown() {
        let name = "ä".repeat(TOKEN_CHARS_MAX);
        assert_eq!(pointer("", &name), format!("/{name}"));
        assert_eq!(pointer("", &format!("{name}{name}")), format!("/{name}…"));
    }
}
