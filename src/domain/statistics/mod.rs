//! Methods that are not of one room: what may be concluded from numbers, and how surely.

pub mod drift;
pub mod fairness;
pub mod lift;
pub mod off_policy;
pub mod quality;
pub mod sequential;

/// A figure with what it rests on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The figure itself.
    pub value: f64,
    /// The lower end of its interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// How many customers, or decisions, it is of.
    pub n: u64,
}

impl Estimate {
    /// `value` with a normal interval, `z` standard errors to either side.
    pub fn normal(value: f64, standard_error: f64, z: f64, n: u64) -> Self {
        Self { value, low: value - z * standard_error, high: value + z * standard_error, n }
    }

    /// The same in another unit: `factor` of it make one of this.
    pub fn times(self, factor: f64) -> Self {
        let (low, high) = (self.low * factor, self.high * factor);
        Self { value: self.value * factor, low: low.min(high), high: low.max(high), n: self.n }
    }

    /// The same with `constant` added.
    pub fn plus(self, constant: f64) -> Self {
        Self { value: self.value + constant, low: self.low + constant, high: self.high + constant, n: self.n }
    }
}
