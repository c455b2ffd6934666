//! Floor 1, models: from a bundle on disk to a probed model that scores rows. ONNX Runtime is spoken to in `session` only.

mod bundle;
mod elf;
mod evaluator;
mod explain;
mod graph;
mod lanes;
mod probe;
mod proof;
mod session;
mod trees;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use bundle::Bundle;
pub use evaluator::Choice;
pub use probe::Probe;
pub use session::Runtime;
pub use trees::Additive;

use crate::domain::bundle::baseline::Baseline;
use crate::domain::bundle::card::{Card, GraphShape};
use crate::domain::bundle::feature::Scalar;
use crate::domain::bundle::golden;
use crate::domain::bundle::schema::Schema;
use crate::domain::decision::ModelId;
use crate::domain::reason::counterfactual::Levers;
use crate::domain::reason::{Book, Contributions};
use crate::domain::score::{Platt, Score};

/// What can go wrong between a directory and a score.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("{path} cannot be read", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The bundle breaks its contract.
    #[error("the bundle {path} breaks its contract:{list}", path = path.display(), list = listed(problems))]
    Bundle {
        /// The bundle's directory.
        path: PathBuf,
        /// Every problem, a sentence each.
        problems: Vec<String>,
    },
    /// The shared library of ONNX Runtime cannot be used.
    #[error("ONNX Runtime at {path}: {problem}; run `make runtime`, or point runtime.library at libonnxruntime.so", path = path.display())]
    Library {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it cannot be used.
        problem: String,
    },
    /// ONNX Runtime refused a graph.
    #[error("ONNX Runtime: {0}")]
    Runtime(String),
    /// A run of the graph failed.
    #[error("a run of the graph failed: {code}")]
    Run {
        /// The kind of failure, as ONNX Runtime names it.
        code: String,
        /// Its message. It may quote values of the row, so it is not for a log.
        detail: String,
    },
    /// The model answered with something that is no probability.
    #[error("the model answered with something that is no probability")]
    NotAProbability,
    /// The loaded model does not do what its card says.
    #[error("the model {model} failed its probe:{list}", list = listed(problems))]
    Probe {
        /// The model.
        model: ModelId,
        /// Every problem, a sentence each.
        problems: Vec<String>,
    },
}

fn listed(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("\n  - {problem}")).collect()
}

/// What the margin of the ONNX graph in `bytes` is the sum of, without ONNX Runtime; `None` for a graph that is no such sum.
///
/// Errors: every way in which the graph is not what `shape` says or uses what a bundle may not, as sentences.
pub fn read_graph(bytes: &[u8], shape: &GraphShape) -> Result<Option<Additive>, Vec<String>> {
    let problems = graph::problems(bytes, shape);
    if problems.is_empty() { Ok(trees::read(bytes, shape)) } else { Err(problems) }
}

/// How a model is loaded.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Lanes: how many threads may score at the same time without waiting. At least 1.
    pub lanes: usize,
    /// The greatest p99 of one row that the probe lets pass, in microseconds.
    pub row_p99_us_max: u64,
    /// What may answer.
    pub evaluator: Choice,
}

/// A loaded and probed model.
#[derive(Debug)]
pub struct Model {
    id: Arc<ModelId>,
    card: Card,
    baseline: Baseline,
    example: golden::Row,
    schema: Schema,
    platt: Platt,
    evaluator: evaluator::Evaluator,
    evaluator_reason: String,
    graph_bytes: usize,
    probe: Probe,
    explainer: explain::Explainer,
    book: Arc<Book>,
    levers: Levers,
}

impl Model {
    /// Opens, checks, loads and probes the bundle at `path`. Takes some 10 to 100 ms: not for a request's thread.
    pub fn load(runtime: &Runtime, path: &Path, options: LoadOptions) -> Result<Self, Error> {
        let bundle = Bundle::open(path)?;
        let id = ModelId {
            name: bundle.card.name.clone(),
            version: bundle.card.version.clone(),
            digest: bundle.digest.clone(),
        };
        let platt = Platt { a: bundle.card.calibration.a, b: bundle.card.calibration.b };
        let read = trees::read(&bundle.graph, &bundle.card.graph);
        let (evaluator, evaluator_reason) =
            evaluator::Evaluator::choose(runtime, &bundle, read.as_ref(), platt, options.evaluator, options.lanes)?;
        let probe = probe::probe(&id, &bundle, &evaluator, platt, options.row_p99_us_max)?;
        let explainer = explain::Explainer::new(&bundle, read, platt);
        let Bundle { card, baseline, mut golden, schema, graph, .. } = bundle;
        let graph_bytes = graph.len();
        // Opening the bundle made sure that there are some.
        let example = golden.rows.swap_remove(0);
        let book = Arc::new(Book::new(&card.features, &baseline));
        let levers = Levers::new(&card.features, &baseline);
        Ok(Self {
            id: Arc::new(id),
            card,
            baseline,
            example,
            schema,
            platt,
            evaluator,
            evaluator_reason,
            graph_bytes,
            probe,
            explainer,
            book,
            levers,
        })
    }

    /// Its name and version.
    pub fn id(&self) -> &Arc<ModelId> {
        &self.id
    }

    /// The sha256 of its manifest, which holds the hashes of all its files: 64 hexadecimal digits.
    pub fn digest(&self) -> &str {
        &self.id.digest
    }

    /// Its card.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// The histograms that drift is measured against.
    pub fn baseline(&self) -> &Baseline {
        &self.baseline
    }

    /// A synthetic customer, for documentation.
    pub fn example(&self) -> &BTreeMap<String, Option<Scalar>> {
        &self.example.features
    }

    /// How a record becomes a row.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// What its evaluator takes of memory at least, in bytes.
    pub fn evaluator_bytes(&self) -> usize {
        self.evaluator.bytes(self.graph_bytes)
    }

    /// What answers: `native` or `onnxruntime`.
    pub fn evaluator(&self) -> &'static str {
        self.evaluator.name()
    }

    /// Why that one answers, for people.
    pub fn evaluator_reason(&self) -> &str {
        &self.evaluator_reason
    }

    /// What its probe measured.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// The score of one `row` of `schema().columns()` values, on the calling thread.
    pub fn score(&self, row: &[f32]) -> Result<Score, Error> {
        self.platt.calibrate(self.evaluator.run_one(row)?).ok_or(Error::NotAProbability)
    }

    /// What each feature adds to the score of `row`, on the calling thread.
    pub fn explain(&self, row: &[f32]) -> Result<Contributions, Error> {
        self.explainer.explain(row, &self.evaluator)
    }

    /// Whether [`explain`](Self::explain) takes microseconds, so that it can be done on the thread of a request. If not, some 10 ms.
    pub fn explains_quickly(&self) -> bool {
        self.explainer.is_quick()
    }

    /// The words of its features.
    pub fn book(&self) -> &Arc<Book> {
        &self.book
    }

    /// What can be changed about its customers.
    pub fn levers(&self) -> &Levers {
        &self.levers
    }

    /// The scores of `rows`, row-major, as one run; a place is `None` where the answer is no probability.
    pub fn score_batch(&self, rows: &[f32]) -> Result<Vec<Option<Score>>, Error> {
        let mut scores = Vec::with_capacity(rows.len() / self.schema.columns());
        self.evaluator.run(rows, |probability| scores.push(self.platt.calibrate(probability)))?;
        Ok(scores)
    }
}
