//! Floor 2, the engine: the one hallway between the doors above and the rooms below. A record goes down it once, a decision
//! comes up once, and both see one snapshot of what is in service.

mod error;
mod past;
mod serving;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

pub use error::Error;
pub use serving::{Catalogue, Serving};

use crate::domain::decision::{Arm, Decision};
use crate::domain::id::DecisionId;
use crate::domain::nearest::nearest;
use crate::domain::record::Record;
use crate::domain::score::Score;
use crate::domain::violation::Violation;
use crate::ledger::{Ledger, Receipt};

/// To be spawned on every thread that awaits receipts: see `ledger::courier`.
pub use crate::ledger::courier;
use crate::telemetry::Metrics;

/// Rows that are scored as one run of a graph: enough to gain from it, few enough to stay in the cache.
const BATCH_ROWS: usize = 512;

/// The churn decision engine.
#[derive(Debug)]
pub struct Engine {
    catalogue: ArcSwap<Catalogue>,
    ledger: Option<Ledger>,
    metrics: Arc<Metrics>,
    clock: fn() -> SystemTime,
}

/// Decisions on many records.
#[derive(Debug)]
pub struct Batch {
    /// One for each record, in its place.
    pub decisions: Vec<Result<Decision, Error>>,
    /// How long all of them took.
    pub stages: Stages,
    /// To be kept before any of them is answered.
    pub receipt: Receipt,
}

/// How long the stages of a decision took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stages {
    /// Record to vector.
    pub encode: Duration,
    /// Vector to score.
    pub infer: Duration,
    /// Score to tier and intervention.
    pub policy: Duration,
}

impl Engine {
    /// An engine with `catalogue` in service, that records in `ledger` and tells the time by `clock`.
    pub fn new(catalogue: Catalogue, ledger: Option<Ledger>, metrics: Arc<Metrics>, clock: fn() -> SystemTime) -> Self {
        Self { catalogue: ArcSwap::from_pointee(catalogue), ledger, metrics, clock }
    }

    /// The metrics that everything above records into too.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Everything in service, as of now.
    pub fn catalogue(&self) -> Arc<Catalogue> {
        self.catalogue.load_full()
    }

    /// What serves the model called `name`, or the default one: one snapshot, to be used for a whole request.
    ///
    /// Errors: [`Error::UnknownModel`].
    pub fn serving(&self, name: Option<&str>) -> Result<Arc<Serving>, Error> {
        let catalogue = self.catalogue.load();
        match name {
            None => Ok(catalogue.default_serving().clone()),
            Some(name) => catalogue.get(name).cloned().ok_or_else(|| Error::UnknownModel {
                nearest: nearest(name, catalogue.names()).map(str::to_owned),
                known: catalogue.names().map(str::to_owned).collect(),
            }),
        }
    }

    /// Decides on one record, which was read from `inputs`, on the calling thread: no await, no lock held across another.
    /// The decision may be answered once its receipt is kept.
    ///
    /// Errors: [`Error::Invalid`] with every violation; [`Error::Model`]; [`Error::Ledger`] when it cannot be recorded.
    pub fn decide(
        &self,
        serving: &Serving,
        record: &Record,
        inputs: &[u8],
    ) -> Result<(Decision, Stages, Receipt), Error> {
        let begun = Instant::now();
        let mut row: SmallVec<[f32; 64]> = smallvec![0.0; serving.model.schema().columns()];
        serving.model.schema().vectorize(&record.features, &mut row).map_err(Error::Invalid)?;
        let encoded = Instant::now();
        let score = serving.model.score(&row)?;
        let inferred = Instant::now();
        let decision = self.decision(serving, score, self.now_ms());
        let stages = Stages { encode: encoded - begun, infer: inferred - encoded, policy: inferred.elapsed() };
        let receipt = match &self.ledger {
            Some(ledger) => ledger.record(&decision, &record.customer_id, Bytes::copy_from_slice(inputs))?,
            None => Receipt::done(),
        };
        self.count(serving, &decision);
        Ok((decision, stages, receipt))
    }

    /// Every violation of `record`, without deciding on it.
    pub fn violations(&self, serving: &Serving, record: &Record) -> Vec<Violation> {
        let mut row = vec![0.0; serving.model.schema().columns()];
        serving.model.schema().vectorize(&record.features, &mut row).err().unwrap_or_default()
    }

    /// Decides on many records, each read from its place of `inputs`, scored as real batches; each is answered in its place,
    /// whatever the others are. Their receipt is for all of them.
    ///
    /// Errors: [`Error::Ledger`] when they cannot be recorded.
    pub fn decide_batch(&self, serving: &Serving, records: &[Record], inputs: &[Bytes]) -> Result<Batch, Error> {
        let (decisions, stages) = self.score_batch(serving, records);
        let receipt = match &self.ledger {
            Some(ledger) => {
                let rows = decisions.iter().zip(records).zip(inputs);
                ledger.record_all(rows.filter_map(|((decision, record), inputs)| {
                    Some((decision.as_ref().ok()?, record.customer_id.as_ref(), inputs.clone()))
                }))?
            }
            None => Receipt::done(),
        };
        decisions.iter().flatten().for_each(|decision| self.count(serving, decision));
        Ok(Batch { decisions, stages, receipt })
    }

    fn score_batch(&self, serving: &Serving, records: &[Record]) -> (Vec<Result<Decision, Error>>, Stages) {
        let mut decisions = Vec::with_capacity(records.len());
        let mut stages = Stages::default();
        let columns = serving.model.schema().columns();
        let mut rows = Vec::with_capacity(records.len().min(BATCH_ROWS) * columns);
        for chunk in records.chunks(BATCH_ROWS) {
            let begun = Instant::now();
            rows.clear();
            let mut violations = Vec::with_capacity(chunk.len());
            for record in chunk {
                let end = rows.len();
                rows.resize(end + columns, 0.0);
                let result = serving.model.schema().vectorize(&record.features, &mut rows[end..]);
                if result.is_err() {
                    rows.truncate(end);
                }
                violations.push(result);
            }
            let encoded = Instant::now();
            let mut scores = match rows.is_empty() {
                true => Ok(Vec::new()),
                false => serving.model.score_batch(&rows),
            }
            .map(Vec::into_iter);
            let inferred = Instant::now();
            let now_ms = self.now_ms();
            decisions.extend(violations.into_iter().map(|violation| {
                violation.map_err(Error::Invalid)?;
                match &mut scores {
                    Ok(scores) => match scores.next().flatten() {
                        Some(score) => Ok(self.decision(serving, score, now_ms)),
                        None => Err(Error::Model(crate::model::Error::NotAProbability)),
                    },
                    Err(error) => Err(Error::Model(crate::model::Error::Runtime(error.to_string()))),
                }
            }));
            stages.encode += encoded - begun;
            stages.infer += inferred - encoded;
            stages.policy += inferred.elapsed();
        }
        (decisions, stages)
    }

    fn decision(&self, serving: &Serving, score: Score, decided_at_ms: u64) -> Decision {
        let tier = serving.policy.tier_of(score);
        let mut random = [0; 10];
        fastrand::fill(&mut random);
        Decision {
            id: DecisionId::new(decided_at_ms, random),
            decided_at_ms,
            score,
            model: serving.model.id().clone(),
            arm: Arm::Champion,
            policy: serving.policy.clone(),
            tier,
        }
    }

    fn count(&self, serving: &Serving, decision: &Decision) {
        serving.decided[decision.tier].increment(1);
    }

    /// The time, milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        (self.clock)().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }
}
