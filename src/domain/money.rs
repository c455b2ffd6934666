//! Amounts of money as whole millionths of a currency unit, so that sums are exact whatever their order.

use std::fmt;

/// An amount in millionths of the policy's currency unit, so 50 USD is `50_000_000`. Range: about ±9.2e12 units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Money(i64);

impl Money {
    /// Nothing.
    pub const ZERO: Money = Money(0);

    /// The amount of `units`, or `None` when it is not finite, over 1e12 units, or finer than a millionth.
    pub fn from_units(units: f64) -> Option<Self> {
        if !units.is_finite() || units.abs() > 1e12 {
            return None;
        }
        let micros = (units * 1e6).round();
        // An amount like 0.1 is not exact in binary: what counts is that it names no more than six decimals.
        ((micros / 1e6 - units).abs() <= units.abs() * f64::EPSILON).then_some(Money(micros as i64))
    }

    /// The amount that `text` names as a decimal number: an optional minus, digits, and with a point at most six more. Exact,
    /// and at most 1e12 units either way.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (whole, fraction) = match digits.split_once('.') {
            Some((whole, fraction)) if (1..=6).contains(&fraction.len()) => (whole, fraction),
            Some(_) => return None,
            None => (digits, ""),
        };
        let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !(1..=13).contains(&whole.len()) || !are_digits(whole) || !are_digits(fraction) {
            return None;
        }
        // Thirteen digits and six more fit.
        let micros: i64 = format!("{whole}{fraction:0<6}").parse().ok()?;
        (micros <= 1_000_000_000_000_000_000).then_some(Money(if negative { -micros } else { micros }))
    }

    /// The amount of `micros` millionths.
    pub fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// The amount in millionths.
    pub fn micros(self) -> i64 {
        self.0
    }

    /// The sum; at the end of the range it stays there.
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What is left when `other` is taken away, 0 at least.
    pub fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0).max(0))
    }

    /// The amount in units, rounded to the nearest double.
    pub fn units(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

/// The exact amount with two decimals, or as many more as it has; [`Money::parse`] reads it back.
impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, micros) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        let fraction = format!("{:06}", micros % 1_000_000);
        let more = fraction[2..].trim_end_matches('0');
        write!(f, "{sign}{}.{}{more}", micros / 1_000_000, &fraction[..2])
    }
}

#[cfg(test)]
mod tests {
    use super::Money;
    use proptest::prelude::*;

    #[test]
    fn keeps_six_decimals_and_refuses_more() {
        assert_eq!(Money::from_units(0.5).map(Money::micros), Some(500_000));
        assert_eq!(Money::from_units(0.1).map(Money::units), Some(0.1));
        assert_eq!(Money::from_units(49.99).map(Money::micros), Some(49_990_000));
        for bad in [0.000_000_1, f64::NAN, f64::INFINITY, 1e300] {
            assert_eq!(Money::from_units(bad), None, "{bad}");
        }
    }

    #[test]
    fn sums_stay_in_range_and_nothing_is_left_below_zero() {
        let [one, two] = [1, 2].map(Money::from_micros);
        assert_eq!((one.plus(one), two.less(one), one.less(two)), (two, one, Money::ZERO));
        let [most, least] = [i64::MAX, i64::MIN].map(Money::from_micros);
        assert_eq!((most.plus(one), most.less(least), least.less(most)), (most, most, Money::ZERO));
    }

    #[test]
    fn text_is_exact_and_nothing_else_is_an_amount() {
        for (text, micros, written) in [
            ("12.50", 12_500_000, "12.50"),
            ("0", 0, "0.00"),
            ("-0.000001", -1, "-0.000001"),
            ("007.1", 7_100_000, "7.10"),
            ("1000000000000", 1_000_000_000_000_000_000, "1000000000000.00"),
        ] {
            let money = Money::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((money.micros(), money.to_string().as_str()), (micros, written));
        }
        for bad in ["", "-", "+1", ".5", "1.", "1e3", "1.0000001", "1,5", " 1", "1000000000000.000001", "١", "1.٥"] {
            assert_eq!(Money::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_amount_reads_back(micros in -1_000_000_000_000_000_000_i64..=1_000_000_000_000_000_000) {
            let money = Money(micros);
            prop_assert_eq!(Money::parse(&money.to_string()), Some(money));
        }

        #[test]
        fn a_number_and_its_text_are_one_amount(micros in -1_000_000_000_000_000_i64..=1_000_000_000_000_000) {
            let money = Money(micros);
            prop_assert_eq!(Money::from_units(money.units()), Some(money));
        }

        #[test]
        fn no_text_is_too_much(text in "\\PC{0,24}") {
            let _ = Money::parse(&text);
        }
    }
}
