//! What answers for a model: the native evaluator, where `proof` has shown that it is ONNX Runtime's equal, and else ONNX Runtime.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::lanes::Lanes;
use super::session::Runtime;
use super::trees::Additive;
use super::{Bundle, Error, proof};
use crate::domain::compiled::Compiled;
use crate::domain::evaluator;
use crate::domain::score::Platt;

/// What may answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// The native evaluator, where it is shown to be equal, and else ONNX Runtime.
    #[default]
    Auto,
    /// ONNX Runtime.
    OnnxRuntime,
}

/// How ONNX Runtime is called.
pub const ONNX_RUNTIME: &str = "onnxruntime";

/// What answers.
#[derive(Debug)]
pub(super) enum Evaluator {
    Native(evaluator::Evaluator),
    OnnxRuntime(Lanes),
}

impl Evaluator {
    /// What answers for `bundle`, whose graph was read as `read`, and why; for one thread at a time, until it has grown.
    ///
    /// Errors: those of loading the graph; that of running golden rows is left to the probe.
    pub(super) fn choose(
        runtime: &Runtime,
        bundle: &Bundle,
        read: Option<&Additive>,
        platt: Platt,
        choice: Choice,
    ) -> Result<(Self, String), Error> {
        // The reference: one lane is enough for the proof, and is gone behind it where it is not needed.
        let lanes = Lanes::new(runtime, bundle, &bundle.card.graph)?;
        let native = match (choice, read) {
            (Choice::OnnxRuntime, _) => Err("models.evaluator says so".to_owned()),
            (Choice::Auto, None) => Err("the graph is no sum of trees or columns that could be read".to_owned()),
            (Choice::Auto, Some(read)) => compile(read)
                .and_then(|native| proof::prove(bundle, read, &native, &lanes, platt).map(|proof| (native, proof))),
        };
        Ok(match native {
            Ok((native, proof)) => (Self::Native(native), proof.to_string()),
            Err(reason) => (Self::OnnxRuntime(lanes), reason),
        })
    }

    /// Lets `count` threads use it at the same time.
    ///
    /// Errors: those of loading the graph.
    pub(super) fn grow(&mut self, runtime: &Runtime, bundle: &Bundle, count: usize) -> Result<(), Error> {
        match self {
            Self::Native(_) => Ok(()),
            Self::OnnxRuntime(lanes) => lanes.grow(runtime, bundle, &bundle.card.graph, count),
        }
    }

    /// The same for `count` threads of their own, which never wait for those that use this one.
    ///
    /// Errors: those of loading the graph.
    pub(super) fn apart(
        self: &Arc<Self>,
        runtime: &Runtime,
        bundle: &Bundle,
        count: usize,
    ) -> Result<Arc<Self>, Error> {
        match &**self {
            Self::Native(_) => Ok(self.clone()),
            Self::OnnxRuntime(_) => {
                let mut lanes = Lanes::new(runtime, bundle, &bundle.card.graph)?;
                lanes.grow(runtime, bundle, &bundle.card.graph, count)?;
                Ok(Arc::new(Self::OnnxRuntime(lanes)))
            }
        }
    }

    /// How it is called: `native` or `onnxruntime`.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Native(_) => "native",
            Self::OnnxRuntime(_) => ONNX_RUNTIME,
        }
    }

    /// Gives `each` the raw probability of every one of `rows`, row-major, in order, on the calling thread.
    pub(super) fn run(&self, rows: &[f32], mut each: impl FnMut(f32)) -> Result<(), Error> {
        match self {
            Self::Native(native) => native.probabilities(rows, each),
            Self::OnnxRuntime(lanes) => lanes.run(rows, &mut each)?,
        }
        Ok(())
    }

    /// The raw probability of one `row`.
    pub(super) fn run_one(&self, row: &[f32]) -> Result<f32, Error> {
        match self {
            Self::Native(native) => Ok(native.probability(row)),
            Self::OnnxRuntime(lanes) => {
                let mut probability = f32::NAN;
                lanes.run(row, |found| probability = found)?;
                Ok(probability)
            }
        }
    }

    /// What it takes of memory at least, in bytes: a graph of `graph_bytes` for each lane, or the compiled form.
    pub(super) fn bytes(&self, graph_bytes: usize) -> usize {
        match self {
            Self::Native(native) => native.bytes(),
            Self::OnnxRuntime(lanes) => lanes.count() * graph_bytes,
        }
    }
}

fn compile(read: &Additive) -> Result<evaluator::Evaluator, String> {
    match read {
        Additive::Forest(forest) => Ok(evaluator::Evaluator::Forest(Compiled::new(forest)?)),
        Additive::Linear(linear) => Ok(evaluator::Evaluator::Linear(linear.clone())),
    }
}
