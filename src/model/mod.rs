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
mod turns;
mod uplift;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use bundle::Bundle;
pub use evaluator::{Choice, ONNX_RUNTIME};
pub use probe::{Pace, Probe};
pub use session::Runtime;
pub use trees::Additive;
pub use turns::{Options as TurnOptions, Plan};

use crate::domain::bundle::baseline::Baseline;
use crate::domain::bundle::card::{Card, GraphShape};
use crate::domain::bundle::feature::Scalar;
use crate::domain::bundle::golden;
use crate::domain::bundle::schema::Schema;
use crate::domain::bundle::uplift::Uplifts;
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
    /// The model answered with something that is no probability, and no difference of two.
    #[error("the model answered with something that is no probability")]
    NotAProbability,
    /// As many rows wait for a slow model as it can score in time.
    #[error("too many rows wait for the model")]
    Full,
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
    let problems = graph::problems(bytes, shape, None);
    if problems.is_empty() { Ok(trees::read(bytes, shape)) } else { Err(problems) }
}

/// How a model is loaded.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Lanes: how many threads may score at the same time without waiting. At least 1. A slow model has one for each of its threads, and
    /// as many for all others.
    pub lanes: usize,
    /// The greatest p99 of one row that the probe lets pass, in microseconds.
    pub row_p99_us_max: u64,
    /// What may answer.
    pub evaluator: Choice,
    /// When single rows wait for threads of the model; with none they are scored on the thread that asks, however slow they are.
    pub turns: Option<TurnOptions>,
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
    evaluator: Arc<evaluator::Evaluator>,
    evaluator_reason: String,
    graph_bytes: usize,
    probe: Probe,
    /// Where single rows wait, if it is slow.
    turns: Option<turns::Turns>,
    turns_reason: String,
    explainer: explain::Explainer,
    estimator: Option<Arc<uplift::Estimator>>,
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
        let (mut evaluator, evaluator_reason) =
            evaluator::Evaluator::choose(runtime, &bundle, read.as_ref(), platt, options.evaluator)?;
        let uplift = bundle.card.uplift.as_ref();
        let mut estimator = uplift.map(|uplift| uplift::Estimator::new(runtime, &bundle, uplift)).transpose()?;
        let mut pace = probe::pace(&bundle, &evaluator)?;
        if let Some(estimator) = &estimator {
            // Where it is wanted it is a part of the answer, row by row.
            pace.add_to_each_row(estimator.row_us(&bundle)?);
        }
        let (plan, turns_reason) = Plan::choose(&pace, options.turns);
        // No request's thread scores by a slow model itself, and those that do long work may wait for one another: each of its lanes is
        // as large as its graph.
        evaluator.grow(runtime, &bundle, plan.map_or(options.lanes, |plan| plan.threads))?;
        let evaluator = Arc::new(evaluator);
        let own = plan.map(|plan| evaluator.apart(runtime, &bundle, plan.threads)).transpose()?;
        let all: Vec<&evaluator::Evaluator> = [&evaluator].into_iter().chain(&own).map(|each| &**each).collect();
        let probe = probe::probe(&id, &bundle, &all, pace, platt, options.row_p99_us_max)?;
        // Its own threads, and all others.
        let lanes = plan.map_or(options.lanes, |plan| 2 * plan.threads);
        let mut problems = Vec::new();
        if let Some((estimator, uplift)) = estimator.as_mut().zip(bundle.card.uplift.as_ref()) {
            estimator.grow(runtime, &bundle, uplift, lanes, &mut problems)?;
        }
        let estimator = estimator.map(Arc::new);
        if !problems.is_empty() {
            problems.truncate(10);
            return Err(Error::Probe { model: id, problems });
        }
        let start = |(plan, own)| turns::Turns::start(own, estimator.clone(), plan);
        let turns = plan.zip(own).map(start).transpose()?;
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
            turns,
            turns_reason,
            explainer,
            estimator,
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
        let own = self.turns.as_ref().map_or(0, |turns| turns.bytes(self.graph_bytes));
        let estimator = self.estimator.as_ref().map_or(0, |estimator| estimator.bytes(self.graph_bytes));
        self.evaluator.bytes(self.graph_bytes) + own + estimator
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

    /// How single rows wait for threads of its own, where it is slow.
    pub fn turns(&self) -> Option<&Plan> {
        self.turns.as_ref().map(turns::Turns::plan)
    }

    /// Why they do, or do not, for people.
    pub fn turns_reason(&self) -> &str {
        &self.turns_reason
    }

    /// Errors: [`Error::Full`], where a row that has to wait for its turn would be refused now.
    pub fn room(&self) -> Result<(), Error> {
        self.turns.as_ref().map_or(Ok(()), turns::Turns::room)
    }

    /// The score of one `row` of `schema().columns()` values, and what it estimates of interventions if that is wanted: where the model is
    /// quick on the calling thread, and else when its turn has come on a thread of the model. If this is dropped while it waits, the
    /// row is not scored.
    ///
    /// Errors: [`Error::Full`]; [`Error::NotAProbability`]; those of a run.
    pub async fn judge_in_turn(&self, row: &[f32], wants_uplifts: bool) -> Result<(Score, Uplifts), Error> {
        let Some(turns) = &self.turns else {
            let uplifts = if wants_uplifts { self.uplifts(row)? } else { Uplifts::new() };
            return Ok((self.score(row)?, uplifts));
        };
        let (probability, uplifts) = turns.run_one(row, wants_uplifts).await?;
        Ok((self.platt.calibrate(probability).ok_or(Error::NotAProbability)?, uplifts))
    }

    /// The score of one `row` of `schema().columns()` values, on the calling thread.
    pub fn score(&self, row: &[f32]) -> Result<Score, Error> {
        self.platt.calibrate(self.evaluator.run_one(row)?).ok_or(Error::NotAProbability)
    }

    /// What it estimates of interventions for the customer of `row`, on the calling thread; nothing where it does not. Takes a run of
    /// ONNX Runtime, some microseconds.
    pub fn uplifts(&self, row: &[f32]) -> Result<Uplifts, Error> {
        self.estimator.as_ref().map_or_else(|| Ok(Uplifts::new()), |estimator| estimator.run(row))
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
