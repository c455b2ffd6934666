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

    /// The amount in millionths.
    pub fn micros(self) -> i64 {
        self.0
    }

    /// The amount in units, rounded to the nearest double.
    pub fn units(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}", self.units())
    }
}

#[cfg(test)]
mod tests {
    use super::Money;

    #[test]
    fn keeps_six_decimals_and_refuses_more() {
        assert_eq!(Money::from_units(0.5).map(Money::micros), Some(500_000));
        assert_eq!(Money::from_units(0.1).map(Money::units), Some(0.1));
        assert_eq!(Money::from_units(49.99).map(Money::micros), Some(49_990_000));
        for bad in [0.000_000_1, f64::NAN, f64::INFINITY, 1e300] {
            assert_eq!(Money::from_units(bad), None, "{bad}");
        }
    }
}
