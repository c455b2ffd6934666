//! The score and its calibration: how a model's raw probability becomes a calibrated one.

/// A calibrated churn probability, 0 to 1, never NaN.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Score(f64);

impl Score {
    /// The score of `probability`, or `None` when it is not within 0 to 1.
    pub fn new(probability: f64) -> Option<Self> {
        (0.0..=1.0).contains(&probability).then_some(Self(probability))
    }

    /// The probability, 0 to 1.
    pub fn value(self) -> f64 {
        self.0
    }
}

/// Platt scaling on the log-odds: `score = sigmoid(a * logit(p) + b)`.
///
/// J. Platt, "Probabilistic outputs for support vector machines" (1999), with the log-odds as the margin. With `a > 0` it
/// keeps the ranking, and contributions on the log-odds scale by `a`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Platt {
    /// Slope, over 0.
    pub a: f64,
    /// Intercept.
    pub b: f64,
}

impl Platt {
    /// The calibrated score of a model's `probability`; `None` when that is no probability (NaN, or outside 0 to 1).
    pub fn calibrate(&self, probability: f32) -> Option<Score> {
        if !(0.0..=1.0).contains(&probability) {
            return None;
        }
        // In f64 the odds of any f32 are exact enough; 0 and 1 give infinite log-odds and come back as 0 and 1.
        let p = f64::from(probability);
        let log_odds = (p / (1.0 - p)).ln();
        Score::new(self.of_log_odds(log_odds))
    }

    /// The calibrated probability of a model's `log_odds`.
    pub fn of_log_odds(&self, log_odds: f64) -> f64 {
        1.0 / (1.0 + (-(self.a * log_odds + self.b)).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn identity_parameters_change_nothing_and_the_ends_stay() {
        let identity = Platt { a: 1.0, b: 0.0 };
        for p in [0.0_f32, 1e-7, 0.25, 0.5, 0.999_999, 1.0] {
            let score = identity.calibrate(p).expect("a probability").value();
            assert!((score - f64::from(p)).abs() < 1e-12, "{p} became {score}");
        }
        for bad in [f32::NAN, f32::INFINITY, -0.1, 1.1] {
            assert_eq!(identity.calibrate(bad), None);
        }
    }

    proptest! {
        #[test]
        fn keeps_the_ranking(a in 0.01_f64..5.0, b in -3.0_f64..3.0, p in 0.0_f32..=1.0, q in 0.0_f32..=1.0) {
            let platt = Platt { a, b };
            let (low, high) = if p <= q { (p, q) } else { (q, p) };
            prop_assert!(platt.calibrate(low) <= platt.calibrate(high));
        }
    }
}
