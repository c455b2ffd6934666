//! Intervals of numbers, each end in or out: the bands of tiers and the conditions of rules, in the notation of ISO 80000-2
//! (2-7.7 to 2-7.10): `[0.5, 0.8)` is 0.5 <= x < 0.8, and an end that is left empty has no bound.

use std::fmt;

/// All numbers between two ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The lower end; minus infinity where there is none.
    pub from: f64,
    /// Whether `from` itself is in.
    pub from_included: bool,
    /// The upper end; infinity where there is none.
    pub to: f64,
    /// Whether `to` itself is in.
    pub to_included: bool,
}

impl Interval {
    /// From `from` to `to`, both in.
    pub fn closed(from: f64, to: f64) -> Self {
        Self { from, from_included: true, to, to_included: true }
    }

    /// The interval that `text` writes, if it writes one. It may be empty.
    pub fn parse(text: &str) -> Option<Self> {
        let trimmed = text.trim();
        let (from_included, to_included) = (trimmed.starts_with('['), trimmed.ends_with(']'));
        let (from, to) = trimmed.strip_prefix(['[', '('])?.strip_suffix([']', ')'])?.split_once(',')?;
        let end = |text: &str, included: bool, none: f64| match text.trim() {
            // No number is so great that it could be in.
            "" => (!included).then_some(none),
            text => text.parse::<f64>().ok().filter(|end| end.is_finite()),
        };
        let (from, to) = (end(from, from_included, f64::NEG_INFINITY)?, end(to, to_included, f64::INFINITY)?);
        Some(Self { from, from_included, to, to_included })
    }

    /// Whether `value` is in.
    pub fn contains(&self, value: f64) -> bool {
        (value > self.from || (self.from_included && value == self.from))
            && (value < self.to || (self.to_included && value == self.to))
    }

    /// What is in both.
    pub fn and(&self, other: &Self) -> Self {
        let (from, from_included) = match self.from.total_cmp(&other.from) {
            std::cmp::Ordering::Less => (other.from, other.from_included),
            std::cmp::Ordering::Greater => (self.from, self.from_included),
            std::cmp::Ordering::Equal => (self.from, self.from_included && other.from_included),
        };
        let (to, to_included) = match self.to.total_cmp(&other.to) {
            std::cmp::Ordering::Less => (self.to, self.to_included),
            std::cmp::Ordering::Greater => (other.to, other.to_included),
            std::cmp::Ordering::Equal => (self.to, self.to_included && other.to_included),
        };
        Self { from, from_included, to, to_included }
    }

    /// Whether no number is in; with `whole`, whether no whole number is.
    pub fn is_empty(&self, whole: bool) -> bool {
        if !whole {
            return self.from > self.to || (self.from == self.to && !(self.from_included && self.to_included));
        }
        let (mut least, mut greatest) = (self.from.ceil(), self.to.floor());
        least += f64::from(u8::from(least == self.from && !self.from_included));
        greatest -= f64::from(u8::from(greatest == self.to && !self.to_included));
        least > greatest
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.from_included { "[" } else { "(" })?;
        if self.from.is_finite() {
            write!(f, "{}", self.from)?;
        }
        f.write_str(", ")?;
        if self.to.is_finite() {
            write!(f, "{}", self.to)?;
        }
        f.write_str(if self.to_included { "]" } else { ")" })
    }
}

#[cfg(test)]
mod tests {
    use super::Interval;
    use proptest::prelude::*;

    #[test]
    fn reads_back_what_it_writes_and_nothing_else() {
        for text in ["[0.5, 0.8)", "(0, 1]", "[500, )", "(, -3)", "(, )", "[2, 2]"] {
            assert_eq!(Interval::parse(text).expect(text).to_string(), text);
        }
        for text in ["", "0..1", "[0 1]", "[, 1]", "[1, ]", "[a, b]", "[0, inf)", "[NaN, 1]", "{0, 1}"] {
            assert_eq!(Interval::parse(text), None, "{text}");
        }
    }

    #[test]
    fn is_empty_as_its_values_are_whole_or_not() {
        let empty = |text: &str| {
            let interval = Interval::parse(text).expect("an interval");
            (interval.is_empty(false), interval.is_empty(true))
        };
        assert_eq!(empty("(11, 12)"), (false, true));
        assert_eq!(empty("[11, 12)"), (false, false));
        assert_eq!(empty("(11, 12]"), (false, false));
        assert_eq!(empty("(2, 2]"), (true, true));
        assert_eq!(empty("[3, 2]"), (true, true));
        assert_eq!(empty("(, )"), (false, false));
    }

    prop_compose! {
        fn interval()(from in -9_i8..9, to in -9_i8..9, from_included in any::<bool>(), to_included in any::<bool>()) -> Interval {
            Interval { from: f64::from(from), from_included, to: f64::from(to), to_included }
        }
    }

    proptest! {
        #[test]
        fn what_is_in_both_is_in_each(one in interval(), other in interval(), halves in -20_i8..20) {
            let value = f64::from(halves) / 2.0;
            prop_assert_eq!(one.and(&other).contains(value), one.contains(value) && other.contains(value));
        }

        #[test]
        fn an_empty_one_has_no_member(one in interval()) {
            let halves = || (-20..=20).map(|halves| f64::from(halves) / 2.0);
            prop_assert_eq!(one.is_empty(false), !halves().any(|value| one.contains(value)));
            prop_assert_eq!(one.is_empty(true), !halves().any(|value| value.fract() == 0.0 && one.contains(value)));
        }
    }
}
