//! The catalogue: every metric with its unit, its help and its labels, which are enums or come from loaded models, so that
//! no caller can make new series. Handles are registered once; recording is an atomic operation or two.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::domain::outcome::Fact;

const REQUEST_DURATION: &str = "mainstay_http_request_duration_seconds";
const REQUESTS: &str = "mainstay_http_requests_total";
const IN_FLIGHT: &str = "mainstay_http_requests_in_flight";
const CONNECTIONS: &str = "mainstay_http_connections";
const PROBLEMS: &str = "mainstay_problems_total";
const REFUSED: &str = "mainstay_access_refused_total";
const PANICS: &str = "mainstay_panics_total";
const STAGE_DURATION: &str = "mainstay_stage_duration_seconds";
const DECISIONS: &str = "mainstay_decisions_total";
const OUTCOMES: &str = "mainstay_outcomes_total";
const MODEL_INFO: &str = "mainstay_model_info";
const PROBE_ROW: &str = "mainstay_model_probe_row_seconds";
const LEDGER_RECORDS: &str = "mainstay_ledger_records_total";
const LEDGER_FAILED: &str = "mainstay_ledger_commits_failed_total";
const BUDGET_AMOUNT: &str = "mainstay_budget_amount";
const BUDGET_SPENT: &str = "mainstay_budget_spent";
const BUDGET_ELAPSED: &str = "mainstay_budget_elapsed_ratio";
const LEDGER_WAITING: &str = "mainstay_ledger_records_waiting";
const ROLLOUT_SHARE: &str = "mainstay_rollout_share";
const ROLLOUT_GUARDRAIL: &str = "mainstay_rollout_guardrail";
const ROLLOUT_MOVES: &str = "mainstay_rollout_moves_total";
const BUILD_INFO: &str = "mainstay_build_info";

/// Edges of the request histogram in seconds; 0.1 is the SLO and has to be an edge, or its share could not be counted.
const REQUEST_EDGES: [f64; 17] =
    [50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// Edges of the stage histogram in seconds: a stage is some microseconds.
const STAGE_EDGES: [f64; 14] =
    [1e-6, 2e-6, 5e-6, 10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 5e-3, 10e-3, 50e-3, 0.1];

/// The routes, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Route {
    /// Scoring of one customer.
    Score,
    /// Scoring of many.
    Batch,
    /// Model list and cards.
    Models,
    /// Decisions on record, customers.
    Records,
    /// Slots, rollouts, policies.
    Slots,
    /// Experiments.
    Experiments,
    /// The operator's verbs on the ledger.
    Ledger,
    /// Measures.
    Insight,
    /// Outcomes to be put on record.
    Outcomes,
    /// Contract and its page.
    Docs,
    /// Liveness, readiness, version.
    Health,
    /// This catalogue, scraped.
    Metrics,
    /// What was not admitted, wherever it wanted to go: it says nothing of how fast or well that is.
    Refused,
    /// Anything else.
    Other,
}

impl Route {
    const ALL: [(Route, &'static str); 14] = [
        (Route::Score, "score"),
        (Route::Batch, "batch"),
        (Route::Models, "models"),
        (Route::Records, "records"),
        (Route::Slots, "slots"),
        (Route::Experiments, "experiments"),
        (Route::Ledger, "ledger"),
        (Route::Insight, "insight"),
        (Route::Outcomes, "outcomes"),
        (Route::Docs, "docs"),
        (Route::Health, "health"),
        (Route::Metrics, "metrics"),
        (Route::Refused, "refused"),
        (Route::Other, "other"),
    ];
}

/// The stages of one decision, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Stage {
    /// Body to record.
    Parse,
    /// Record to vector.
    Encode,
    /// Vector to score.
    Infer,
    /// Score to tier and intervention.
    Policy,
    /// Waiting for the record.
    Ledger,
}

impl Stage {
    const ALL: [(Stage, &'static str); 5] = [
        (Stage::Parse, "parse"),
        (Stage::Encode, "encode"),
        (Stage::Infer, "infer"),
        (Stage::Policy, "policy"),
        (Stage::Ledger, "ledger"),
    ];
}

/// The statuses that the service answers with; any other is counted under its class.
const STATUSES: [u16; 18] = [200, 303, 400, 401, 403, 404, 405, 406, 408, 409, 413, 415, 422, 429, 500, 503, 504, 0];

/// The metrics of one running service. It owns its recorder: two services in one process do not mix.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: metrics_process::Collector,
    handles: Handles,
    /// Registered when first counted, so that the exposition is not mostly zeros.
    requests: [[OnceLock<Counter>; STATUSES.len()]; Route::ALL.len()],
    /// The roles that each version has had: a series cannot be taken back, only set to 0.
    roles: Mutex<Roles>,
    /// The guardrails that each model has had.
    guardrails: Mutex<BTreeSet<(String, String)>>,
    /// What was told of each version of what came of its decisions.
    pub(super) told: Mutex<super::measures::Told>,
}

type Roles = BTreeMap<(String, String), BTreeSet<&'static str>>;

/// What is always there.
struct Handles {
    durations: [Histogram; Route::ALL.len()],
    stages: [Histogram; Stage::ALL.len()],
    in_flight: Gauge,
    connections: Gauge,
    panics: Counter,
}

impl Handles {
    fn register(recorder: &PrometheusRecorder) -> Self {
        metrics::with_local_recorder(recorder, || Self {
            durations: Route::ALL.map(|(_, route)| histogram!(REQUEST_DURATION, "route" => route)),
            stages: Stage::ALL.map(|(_, stage)| histogram!(STAGE_DURATION, "stage" => stage)),
            in_flight: gauge!(IN_FLIGHT),
            connections: gauge!(CONNECTIONS),
            panics: counter!(PANICS),
        })
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// The catalogue, with nothing counted yet.
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(REQUEST_DURATION.to_owned()), &REQUEST_EDGES)
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full(STAGE_DURATION.to_owned()), &STAGE_EDGES))
            .expect("the edges are not empty")
            .build_recorder();
        let process = metrics_process::Collector::default();
        metrics::with_local_recorder(&recorder, || {
            process.describe();
            describe_histogram!(REQUEST_DURATION, Unit::Seconds, "Time from a request's head to its answer's head");
            describe_counter!(REQUESTS, "Requests answered, by route and status");
            describe_gauge!(IN_FLIGHT, "Requests that are being answered");
            describe_gauge!(CONNECTIONS, "Open connections of both planes");
            describe_counter!(PROBLEMS, "Problems answered, by code; each bad row of a batch counts");
            describe_counter!(REFUSED, "Requests that were not admitted, by reason");
            describe_counter!(PANICS, "Requests that ended in a panic");
            describe_histogram!(STAGE_DURATION, Unit::Seconds, "Time of one stage of a single decision");
            describe_counter!(DECISIONS, "Decisions, by model, version and tier");
            describe_counter!(OUTCOMES, "Facts of outcomes put on record, by fact");
            describe_gauge!(MODEL_INFO, "1 for each loaded model in the role that it has, 0 for one that it had");
            describe_gauge!(
                ROLLOUT_SHARE,
                "Share of requests or customers that a challenger is exposed to, 0 without a rollout"
            );
            describe_gauge!(
                ROLLOUT_GUARDRAIL,
                "1 for a guardrail that passes, 0 for one that holds or has no rollout, -1 for a broken one"
            );
            describe_counter!(ROLLOUT_MOVES, "Moves that rollouts made by themselves, by verb");
            describe_gauge!(PROBE_ROW, Unit::Seconds, "Time of one row, measured by the probe");
            describe_counter!(LEDGER_RECORDS, "Records in the ledger since it began");
            describe_counter!(LEDGER_FAILED, "Groups of records that could not be written");
            describe_gauge!(BUDGET_AMOUNT, "What interventions may cost in this period, 0 where there is no budget");
            describe_gauge!(BUDGET_SPENT, "What they cost in this period");
            describe_gauge!(BUDGET_ELAPSED, "Share of this period that has gone by, 0 to 1");
            describe_gauge!(LEDGER_WAITING, "Records that wait to be written");
            super::tls::describe();
            super::limit::describe();
            super::measures::describe();
            super::retraining::describe();
            describe_gauge!(BUILD_INFO, "1, with the version of this server");
            gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        });
        let handles = Handles::register(&recorder);
        Self {
            handle: recorder.handle(),
            recorder,
            process,
            handles,
            requests: Default::default(),
            roles: Mutex::default(),
            guardrails: Mutex::default(),
            told: Mutex::default(),
        }
    }

    /// A request was answered with `status` after `duration`.
    pub fn request(&self, route: Route, status: u16, duration: Duration) {
        self.handles.durations[route as usize].record(duration);
        let cell = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len() - 1);
        self.requests[route as usize][cell]
            .get_or_init(|| {
                let label = match STATUSES[cell] {
                    0 => "other".to_owned(),
                    status => status.to_string(),
                };
                self.register(|| counter!(REQUESTS, "route" => Route::ALL[route as usize].1, "status" => label))
            })
            .increment(1);
    }

    /// A single decision spent `duration` in `stage`.
    pub fn stage(&self, stage: Stage, duration: Duration) {
        self.handles.stages[stage as usize].record(duration);
    }

    /// Requests that are being answered.
    pub fn in_flight(&self) -> &Gauge {
        &self.handles.in_flight
    }

    /// Open connections.
    pub fn connections(&self) -> &Gauge {
        &self.handles.connections
    }

    /// A request ended in a panic.
    pub fn panicked(&self) {
        self.handles.panics.increment(1);
    }

    /// A problem of `code`, one of a closed set, was answered.
    pub fn problem(&self, code: &'static str) {
        // Problems are rare enough for the registry's own look-up.
        self.register(|| counter!(PROBLEMS, "code" => code)).increment(1);
    }

    /// A request was not admitted, for a `reason`, one of a closed set.
    pub fn refused(&self, reason: &'static str) {
        self.register(|| counter!(REFUSED, "reason" => reason)).increment(1);
    }

    /// The counter of decisions of one model by one tier. Both come from documents that an operator put there.
    pub fn decisions(&self, model: &str, version: &str, tier: &str) -> Counter {
        let (model, version, tier) = (model.to_owned(), version.to_owned(), tier.to_owned());
        self.register(|| counter!(DECISIONS, "model" => model, "version" => version, "tier" => tier))
    }

    /// An outcome that states `fact` was put on record.
    pub fn outcome(&self, fact: Fact) {
        self.register(|| counter!(OUTCOMES, "fact" => fact.name())).increment(1);
    }

    /// A model is loaded in `role`, or not loaded any more; its probe measured a median row of `row_p50_us` and a p99 of
    /// `row_p99_us` microseconds.
    pub fn model(&self, model: &str, version: &str, role: Option<&'static str>, row_p50_us: f64, row_p99_us: f64) {
        let labels = [("model", model.to_owned()), ("version", version.to_owned())];
        let labelled = |name: &'static str, value: &str| [labels.as_slice(), &[(name, value.to_owned())]].concat();
        let mut known = self.roles.lock().unwrap_or_else(PoisonError::into_inner);
        let roles = known.entry((model.to_owned(), version.to_owned())).or_default();
        self.register(|| {
            for earlier in roles.iter().filter(|earlier| Some(**earlier) != role) {
                gauge!(MODEL_INFO, labelled("role", earlier).as_slice()).set(0.0);
            }
            if let Some(role) = role {
                gauge!(MODEL_INFO, labelled("role", role).as_slice()).set(1.0);
                for (percentile, value) in [("50", row_p50_us), ("99", row_p99_us)] {
                    gauge!(PROBE_ROW, labelled("percentile", percentile).as_slice()).set(value / 1e6);
                }
            }
        });
        roles.extend(role);
    }

    /// A challenger of `model` is exposed to `share` of the requests, in the shadow or as a canary.
    pub fn rollout_share(&self, model: &str, exposure: &'static str, share: f64) {
        self.register(|| gauge!(ROLLOUT_SHARE, "model" => model.to_owned(), "exposure" => exposure).set(share));
    }

    /// How the guardrails of a rollout stand: each by its name, with 1, 0 or -1.
    pub fn guardrails<'g>(&self, model: &str, readings: impl Iterator<Item = (&'g str, f64)>) {
        let mut known = self.guardrails.lock().unwrap_or_else(PoisonError::into_inner);
        self.register(|| {
            for (guardrail, value) in readings {
                gauge!(ROLLOUT_GUARDRAIL, "model" => model.to_owned(), "guardrail" => guardrail.to_owned()).set(value);
                known.insert((model.to_owned(), guardrail.to_owned()));
            }
        });
    }

    /// No rollout of `model` goes on: what its guardrails said is over, and what watches them is to calm down.
    pub fn no_guardrails(&self, model: &str) {
        let known = self.guardrails.lock().unwrap_or_else(PoisonError::into_inner);
        self.register(|| {
            for (model, guardrail) in known.iter().filter(|(known, _)| known == model) {
                gauge!(ROLLOUT_GUARDRAIL, "model" => model.clone(), "guardrail" => guardrail.clone()).set(0.0);
            }
        });
    }

    /// A rollout of `model` moved by itself.
    pub fn rollout_moved(&self, model: &str, verb: &'static str) {
        self.register(|| counter!(ROLLOUT_MOVES, "model" => model.to_owned(), "verb" => verb)).increment(1);
    }

    /// What the interventions of `model` may cost in the period that it is, what they do, and the share of it that has gone by.
    pub fn budget(&self, model: &str, amount: f64, spent: f64, elapsed: f64) {
        self.register(|| {
            gauge!(BUDGET_AMOUNT, "model" => model.to_owned()).set(amount);
            gauge!(BUDGET_SPENT, "model" => model.to_owned()).set(spent);
            gauge!(BUDGET_ELAPSED, "model" => model.to_owned()).set(elapsed);
        });
    }

    /// How the ledger fares: records, failed commits, and records in wait.
    pub fn ledger(&self, records: u64, failed: u64, waiting: f64) {
        self.register(|| {
            counter!(LEDGER_RECORDS).absolute(records);
            counter!(LEDGER_FAILED).absolute(failed);
            gauge!(LEDGER_WAITING).set(waiting);
        });
    }

    /// The exposition, in the Prometheus text format.
    pub fn render(&self) -> String {
        self.register(|| self.process.collect());
        self.handle.render()
    }

    /// Folds what was recorded since the last time into the histograms. To be called every second or so, else memory grows
    /// with the traffic.
    pub fn fold(&self) {
        self.handle.run_upkeep();
    }

    pub(super) fn register<T>(&self, registration: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(&self.recorder, registration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposition_has_an_edge_at_the_slo_and_only_known_labels() {
        let metrics = Metrics::new();
        metrics.request(Route::Score, 200, Duration::from_millis(99));
        metrics.request(Route::Score, 200, Duration::from_millis(101));
        metrics.request(Route::Other, 599, Duration::ZERO);
        metrics.stage(Stage::Infer, Duration::from_micros(9));
        metrics.problem("invalid_request");
        metrics.outcome(Fact::Retained);
        metrics.decisions("telco-churn", "1.0.0", "high").increment(3);
        metrics.model("telco-churn", "1.0.0", Some("staged"), 8.0, 9.0);
        metrics.model("telco-churn", "1.0.0", Some("champion"), 8.0, 9.0);
        let text = metrics.render();
        for line in [
            "mainstay_http_request_duration_seconds_bucket{route=\"score\",le=\"0.1\"} 1",
            "mainstay_http_requests_total{route=\"score\",status=\"200\"} 2",
            "mainstay_http_requests_total{route=\"other\",status=\"other\"} 1",
            "mainstay_problems_total{code=\"invalid_request\"} 1",
            "mainstay_outcomes_total{fact=\"retained\"} 1",
            "mainstay_decisions_total{model=\"telco-churn\",version=\"1.0.0\",tier=\"high\"} 3",
            "mainstay_model_info{model=\"telco-churn\",version=\"1.0.0\",role=\"champion\"} 1",
            "mainstay_model_info{model=\"telco-churn\",version=\"1.0.0\",role=\"staged\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
        }
    }
}
