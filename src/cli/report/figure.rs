//! Figures with their intervals as people read them.

use serde_json::Value;

/// What is said instead of a figure that is not known.
pub(super) const MISSING: &str = "not enough customers yet";

/// A figure with its interval. An end that is not known is infinite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figure {
    pub(super) value: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// How many customers it is of, where that is told.
    pub(super) n: Option<u64>,
}

/// What a figure counts.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Unit {
    /// 0 to 1, written in percent.
    Share,
    /// With the currency, where it is known.
    Money(String),
    /// Whole customers.
    Customers,
    /// A number without a unit.
    Number,
}

impl Figure {
    /// The figure in an answer of the service. `None` where it is not known, or of nobody: a figure of nobody would read as a zero.
    pub(super) fn of(answer: &Value) -> Option<Self> {
        let n = answer["n"].as_u64();
        let value = answer["value"].as_f64().filter(|_| n != Some(0))?;
        let low = answer["low"].as_f64().unwrap_or(f64::NEG_INFINITY);
        let high = answer["high"].as_f64().unwrap_or(f64::INFINITY);
        Some(Self { value, low, high, n })
    }

    /// Without an interval, since nothing of it is left to chance.
    pub(super) fn exact(value: f64) -> Self {
        Self { value, low: value, high: value, n: None }
    }

    /// Whether `other` is as good as the value, as far as is known.
    pub(super) fn may_be(&self, other: f64) -> bool {
        self.low <= other && other <= self.high
    }
}

impl Unit {
    /// A number in this unit.
    pub(super) fn write(&self, number: f64) -> String {
        if !number.is_finite() {
            return "no bound".to_owned();
        }
        match self {
            Unit::Share => format!("{}%", grouped(number * 100.0, 1)),
            Unit::Money(currency) => {
                let decimals = if number.abs() < 1_000.0 { 2 } else { 0 };
                format!("{} {currency}", grouped(number, decimals)).trim_end().to_owned()
            }
            Unit::Customers => grouped(number, 0),
            Unit::Number => grouped(number, 3),
        }
    }

    /// A figure with its interval, such as `12.0% (9.5% to 14.1%)`.
    pub(super) fn write_whole(&self, figure: &Figure) -> String {
        let value = self.write(figure.value);
        if figure.low == figure.high {
            return value;
        }
        // The currency once: a line has to hold all of it.
        let ends = match self {
            Unit::Money(_) => Unit::Money(String::new()),
            other => other.clone(),
        };
        format!("{value} ({} to {})", ends.write(figure.low), ends.write(figure.high))
    }
}

/// `number` with a comma between thousands. No minus before a zero.
pub(super) fn grouped(number: f64, decimals: usize) -> String {
    let plain = format!("{:.decimals$}", number.abs());
    let (whole, rest) =
        plain.split_once('.').map_or((plain.as_str(), String::new()), |(whole, rest)| (whole, format!(".{rest}")));
    let mut out = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    let is_zero = plain.chars().all(|character| matches!(character, '0' | '.'));
    let sign = if number < 0.0 && !is_zero { "\u{2212}" } else { "" };
    format!("{sign}{out}{rest}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_are_written_for_people() {
        let figure = Figure { value: -1_234_567.8, low: -2_000_000.0, high: f64::INFINITY, n: None };
        assert_eq!(
            Unit::Money("EUR".into()).write_whole(&figure),
            "\u{2212}1,234,568 EUR (\u{2212}2,000,000 to no bound)"
        );
        assert_eq!(Unit::Share.write(0.1234), "12.3%");
        assert_eq!(Unit::Share.write(-0.0001), "0.0%");
        assert_eq!(Unit::Customers.write(999.6), "1,000");
        assert_eq!(Unit::Money(String::new()).write_whole(&Figure::exact(3.5)), "3.50");
    }

    #[test]
    fn a_figure_of_nobody_is_none() {
        assert_eq!(Figure::of(&Value::Null), None);
        assert_eq!(Figure::of(&json!({"value": 0.0, "low": 0.0, "high": 0.0, "n": 0})), None);
        assert!(Figure::of(&json!({"value": 0.0, "low": 0.0, "high": 0.1, "n": 7})).is_some());
    }
}
