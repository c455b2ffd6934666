//! Why a model gives a score: exactly, where its log-odds are a sum over trees or columns, and else as an estimate that runs the graph.

use std::ops::Range;

use super::evaluator::Evaluator;
use super::trees::Additive;
use super::{Bundle, Error};
use crate::domain::bundle::golden::TOLERANCE;
use crate::domain::reason::linear::{Linear, means};
use crate::domain::reason::shap::Attribution;
use crate::domain::reason::shapley;
use crate::domain::reason::{Contributions, Method};
use crate::domain::score::Platt;

/// Golden rows that an estimate has as its background, at most.
const BACKGROUND_MAX: usize = 64;
/// The least distance of a probability from 0 and 1 in an estimate: what float32 can tell apart.
const EPSILON: f64 = 1e-7;

/// What explains one model.
#[derive(Debug)]
pub(super) struct Explainer {
    way: Way,
    platt: Platt,
}

#[derive(Debug)]
enum Way {
    Trees(Box<Attribution>),
    Linear {
        linear: Linear,
        means: Vec<f64>,
        owners: Vec<u16>,
        features: usize,
    },
    /// Golden rows are drawn feature by feature from the training data: a background in which features are independent.
    Sampled {
        background: Vec<f32>,
        spans: Vec<Range<usize>>,
    },
}

impl Explainer {
    /// What explains the model of `bundle`: exactly where its graph could be `read`, and gives by that reading what the trainer
    /// computed for every golden row.
    pub(super) fn new(bundle: &Bundle, read: Option<Additive>, platt: Platt) -> Self {
        let columns = bundle.schema.columns();
        let spans: Vec<Range<usize>> = bundle.schema.spans().collect();
        let features = spans.len();
        // At most 1,024 features: their places fit.
        let owners: Vec<u16> =
            spans.iter().enumerate().flat_map(|(at, span)| span.clone().map(move |_| at as u16)).collect();
        let golden = || bundle.golden_vectors.chunks_exact(columns).zip(&bundle.golden.rows);
        let is_right = |read: &Additive| {
            golden().all(|(vector, row)| {
                let score = platt.of_log_odds(read.margin(vector));
                (score - row.score).abs() <= TOLERANCE
            })
        };
        let way = match read.filter(is_right) {
            Some(Additive::Forest(forest)) => {
                Attribution::new(forest, &owners, features).map(|trees| Way::Trees(Box::new(trees)))
            }
            Some(Additive::Linear(linear)) => {
                let means = means(&bundle.card.features, &bundle.baseline);
                // A NaN has no place in a sum.
                let is_finite = bundle.golden_vectors.iter().all(|value| value.is_finite());
                is_finite.then_some(Way::Linear { linear, means, owners, features })
            }
            None => None,
        };
        let sampled = || {
            let rows = bundle.golden.rows.len().min(BACKGROUND_MAX);
            Way::Sampled { background: bundle.golden_vectors[..rows * columns].to_vec(), spans }
        };
        Self { way: way.unwrap_or_else(sampled), platt }
    }

    /// How contributions are found.
    pub(super) fn method(&self) -> Method {
        match self.way {
            Way::Trees(_) => Method::TreeShap,
            Way::Linear { .. } => Method::LinearShap,
            Way::Sampled { .. } => Method::SampledShapley,
        }
    }

    /// Whether an explanation is a matter of microseconds.
    pub(super) fn is_quick(&self) -> bool {
        match &self.way {
            Way::Trees(trees) => trees.is_tabulated(),
            Way::Linear { .. } => true,
            Way::Sampled { .. } => false,
        }
    }

    /// What each feature adds to the score of `row`, on its log-odds; only an estimate runs the graph.
    pub(super) fn explain(&self, row: &[f32], evaluator: &Evaluator) -> Result<Contributions, Error> {
        let Platt { a, b } = self.platt;
        let (base, mut values, errors) = match &self.way {
            Way::Trees(trees) => (trees.base(), trees.explain(row), None),
            Way::Linear { linear, means, owners, features } => {
                let (base, values) = linear.explain(row, means, owners, *features);
                (base, values, None)
            }
            Way::Sampled { background, spans } => {
                let found = shapley::estimate(row, background, spans, |rows| {
                    let mut log_odds = Vec::with_capacity(rows.len() / row.len());
                    evaluator.run(rows, |p| {
                        let p = f64::from(p).clamp(EPSILON, 1.0 - EPSILON);
                        log_odds.push((p / (1.0 - p)).ln());
                    })?;
                    if log_odds.iter().all(|value| value.is_finite()) {
                        Ok(log_odds)
                    } else {
                        Err(Error::NotAProbability)
                    }
                })?;
                (found.base, found.values, Some(found.errors))
            }
        };
        // Platt scaling is linear on the log-odds, and so are the contributions.
        values.iter_mut().for_each(|value| *value *= a);
        let errors = errors.map(|errors| errors.into_iter().map(|error| error * a).collect());
        Ok(Contributions { base: a * base + b, values, errors, method: self.method() })
    }
}
