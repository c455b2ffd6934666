//! Floor 3, HTTP: translate in, call the engine, translate out. This file holds the routes of both planes and the one list of
//! layers that every request passes.

mod access;
mod admin;
mod admission;
mod arrow;
mod ask_experiments;
mod batch;
mod deadline;
mod decisions;
mod experiments;
mod extract;
mod handshakes;
mod health;
mod incoming;
mod insight;
mod json;
mod layers;
mod limits;
mod lines;
mod models;
mod openapi;
mod outcomes;
mod preface;
mod problem;
mod protocols;
mod rows;
mod score;
mod server;
mod simulate;
mod slots;
mod tls;
mod trace;
mod wire;
mod wire_batch;
mod wire_experiments;
mod wire_fairness;
mod wire_groups;
mod wire_insight;
mod wire_models;
mod wire_problem;
mod wire_reasons;
mod wire_records;
mod wire_retraining;
mod wire_simulation;
mod wire_slots;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::error_handling::HandleErrorLayer;
use axum::http::Method;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::routes;

pub use access::Door;
pub use limits::Limits;
pub use server::{Listener, Options as ServerOptions, Server, give_way};
pub use tls::{
    ClientAuth, Error as TlsError, Options as TlsOptions, Tls, authorities, certificates, private_key, provider,
};

use crate::access::Access;
use crate::domain::access::{Needs, Scope};
use crate::engine::Engine;
use access::{Doors, Gate};
use deadline::{Caller, Deadline};
use problem::{Code, Problem};

/// Long pieces of operators' work at a time.
pub const LONG_MAX: usize = 2;
/// How long who wants something measured waits for others.
const MEASURE_WAIT_MAX: Duration = Duration::from_secs(10);
/// How far they give way to those that answer customers.
const LONG_NICE: i32 = 10;

/// What the handlers of both planes share.
#[derive(Clone)]
pub struct Shared(Arc<Inner>);

/// See [`Shared`].
pub struct Inner {
    engine: Arc<Engine>,
    limits: Limits,
    /// The bits of an `f64`, which may change at run time.
    request_share: AtomicU64,
    onnxruntime: &'static str,
    batches: Arc<Semaphore>,
    /// A place for each byte of batches that may be held.
    intake: Arc<Semaphore>,
    in_flight: Arc<Semaphore>,
    readings: Arc<Semaphore>,
    long: Arc<Semaphore>,
    measures: Arc<Semaphore>,
    draining: AtomicBool,
    contract: utoipa::openapi::OpenApi,
    written: openapi::Written,
    /// Where credentials are asked for.
    gate: Option<Gate>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl std::ops::Deref for Shared {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Shared {
    /// What the handlers share: the `engine`, the `limits`, the share of requests that are logged, and what ONNX Runtime says
    /// of itself. With `access`, callers have to have credentials.
    pub fn new(
        engine: Arc<Engine>,
        limits: Limits,
        request_share: f64,
        onnxruntime: &'static str,
        access: Option<Arc<Access>>,
    ) -> Self {
        Self(Arc::new(Inner {
            engine,
            request_share: AtomicU64::new(request_share.to_bits()),
            onnxruntime,
            batches: Arc::new(Semaphore::new(limits.batches_max)),
            intake: Arc::new(Semaphore::new(limits.intake_bytes_max)),
            in_flight: Arc::new(Semaphore::new(limits.in_flight_max)),
            readings: Arc::new(Semaphore::new(limits.readings_max)),
            long: Arc::new(Semaphore::new(LONG_MAX)),
            measures: Arc::new(Semaphore::new(1)),
            limits,
            draining: AtomicBool::new(false),
            contract: if access.is_some() { contract() } else { access::open(contract()) },
            written: openapi::Written::default(),
            gate: access.map(|access| Gate::new(access, doors().concat())),
        }))
    }

    /// The share of requests that get a line in the log, 0 to 1.
    fn request_share(&self) -> f64 {
        f64::from_bits(self.request_share.load(Ordering::Relaxed))
    }

    /// Logs another share of requests from now on.
    pub fn set_request_share(&self, share: f64) {
        self.request_share.store(share.to_bits(), Ordering::Relaxed);
    }

    /// From now on the service is not ready for traffic.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }
}

/// The contract as it is committed: without models.
pub fn contract() -> utoipa::openapi::OpenApi {
    routes().contract()
}

fn admin_contract() -> utoipa::openapi::OpenApi {
    operating().merge(measuring()).merge(health()).contract()
}

/// The contract as the text of `openapi/mainstay.yaml`, or that of the admin plane as `openapi/admin.yaml`.
pub fn contract_yaml(admin: bool) -> String {
    let head = "# Generated from the code by `make openapi`; a test compares it. Do not edit.\n";
    let contract = if admin { admin_contract() } else { contract() };
    format!("{head}{}", contract.to_yaml().unwrap_or_default())
}

/// The record in a body that was accepted once.
///
/// Errors: why it is none, without a piece of it.
pub fn read_record(body: &[u8]) -> Result<crate::domain::record::Record<'_>, String> {
    let value = json::parse(body, 64).map_err(|_| "its inputs are not JSON".to_owned())?;
    extract::record(value, extract::Wanted::default(), |_| Vec::new())
        .map_err(|_| "its inputs are no customer".to_owned())
}

/// Every route of the data plane and of the admin plane, with what it needs: what the gate and the test of all routes read.
pub fn doors() -> [Vec<Door>; 2] {
    [data_doors(scoring()), admin_doors()].map(|doors| doors.into_parts().1)
}

/// Every route of the data plane that the contract tells of.
fn routes() -> Doors {
    scoring().merge(reading()).merge(health())
}

/// The routes that are shed under load.
fn scoring() -> Doors {
    Doors::new(openapi::Base::openapi())
        .with(Needs::Scope(Scope::Score), routes!(score::score))
        .with(Needs::Scope(Scope::Score), routes!(score::score_with_model))
        .with(Needs::Scope(Scope::Score), routes!(batch::score_batch))
        .with(Needs::Scope(Scope::Score), routes!(batch::score_batch_with_model))
}

/// The routes that decide nothing: answered whatever the load. Those that wait for a disk have a bound of their own.
fn reading() -> Doors {
    Doors::new(openapi::Nothing::openapi())
        .with(Needs::Credentials, routes!(models::models))
        .with(Needs::Credentials, routes!(models::model))
        .with(Needs::Scope(Scope::Read), routes!(decisions::decisions))
        .with(Needs::Scope(Scope::Read), routes!(decisions::decision))
        .with(Needs::Scope(Scope::Read), routes!(decisions::customer))
        .with(Needs::Scope(Scope::Admin), routes!(decisions::erase))
        .with(Needs::Scope(Scope::Outcomes), routes!(outcomes::record))
}

/// The routes of both planes.
fn health() -> Doors {
    Doors::new(openapi::Nothing::openapi())
        .with(Needs::Nothing, routes!(health::livez))
        .with(Needs::Nothing, routes!(health::readyz))
        .with(Needs::Nothing, routes!(health::version))
}

/// The routes that move models and experiments, copy the ledger and change its keys: of the admin plane alone.
fn operating() -> Doors {
    Doors::new(openapi::Admin::openapi())
        .with(Needs::Scope(Scope::Read), routes!(slots::slots))
        .with(Needs::Scope(Scope::Read), routes!(slots::slots_of))
        .with(Needs::Scope(Scope::Read), routes!(slots::history))
        // It tells what groups of customers are offered.
        .with(Needs::Scope(Scope::Operate), routes!(simulate::simulate))
        .with(Needs::Scope(Scope::Operate), routes!(slots::act))
        .with(Needs::Scope(Scope::Read), routes!(experiments::experiments))
        .with(Needs::Scope(Scope::Operate), routes!(experiments::create))
        .with(Needs::Scope(Scope::Read), routes!(experiments::experiment))
        .with(Needs::Scope(Scope::Operate), routes!(experiments::act))
        .with(Needs::Scope(Scope::Admin), routes!(admin::backup))
        .with(Needs::Scope(Scope::Admin), routes!(admin::rotate_keys))
}

/// The routes that tell what was measured: of the admin plane alone.
fn measuring() -> Doors {
    Doors::new(openapi::Nothing::openapi())
        .with(Needs::Scope(Scope::Read), routes!(insight::kpis))
        .with(Needs::Scope(Scope::Read), routes!(insight::quality))
        .with(Needs::Scope(Scope::Read), routes!(insight::drift))
        .with(Needs::Scope(Scope::Read), routes!(insight::fairness))
        .with(Needs::Scope(Scope::Read), routes!(insight::retraining))
}

/// The data plane: what product backends call.
pub fn data_plane(shared: &Shared) -> Router {
    let shed = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(layers::overloaded))
        .load_shed()
        .layer(GlobalConcurrencyLimitLayer::with_semaphore(shared.in_flight.clone()));
    finish(data_doors(scoring().layered(|routes| routes.layer(shed))), shared)
}

fn data_doors(scoring: Doors) -> Doors {
    let page = utoipa_swagger_ui::SwaggerUi::new("/docs").config(utoipa_swagger_ui::Config::from("/openapi.json"));
    scoring
        .merge(reading())
        .merge(health())
        .plain(Needs::Contract, Method::GET, "/openapi.json", openapi::openapi)
        .page(Needs::Contract, page.into(), &["/docs", "/docs/", "/docs/{*rest}"])
}

/// The admin plane: what operators and their tools call.
pub fn admin_plane(shared: &Shared) -> Router {
    finish(admin_doors(), shared)
}

fn admin_doors() -> Doors {
    health()
        .merge(operating())
        .merge(measuring())
        .plain(Needs::Contract, Method::GET, "/openapi.json", openapi::admin)
        .plain(Needs::Metrics, Method::GET, "/metrics", admin::metrics)
}

/// Runs `work` on the threads for batches and other long work.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    blocking_for(Deadline::default(), move |_| work()).await
}

/// The same for a caller who waits until `deadline`. When its turn comes and nobody waits any more, it is not begun.
async fn blocking_for<T: Send + 'static>(
    deadline: Deadline,
    work: impl FnOnce(&Caller) -> T + Send + 'static,
) -> Result<T, Problem> {
    let (caller, _presence) = Caller::new(deadline);
    match tokio::task::spawn_blocking(move || caller.waits().map(|()| work(&caller))).await {
        Ok(done) => done,
        // As if it had come about here: the layer for panics ends the request, and counts.
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(Problem::new(Code::Internal, "the request could not be answered").caused_by(error)),
    }
}

/// Runs long work of operators, such as loading a model, on a low-priority thread of its own, so that the short verbs never stand
/// behind it; so much at a time.
async fn long<T: Send + 'static>(shared: &Shared, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    let permit = shared.long.clone().try_acquire_owned();
    let permit = permit.map_err(|_| {
        Problem::new(
            Code::Overloaded,
            "other models are being loaded, or decisions made again; try again after a second",
        )
    })?;
    apart(shared, permit, work).await
}

/// Carries out a verb of an operator. One that takes long must not keep a thread of those for short work, of which there are few: what goes back
/// waits for one of them.
async fn operate<T: Send + 'static>(
    shared: &Shared,
    is_long: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    if is_long { long(shared, work).await } else { blocking(work).await }
}

/// Measures on a thread of its own too, one after the other, since most of it reads one sample, and all of it the ledger. Who comes meanwhile waits, for so long.
async fn measure<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let permit = tokio::time::timeout(MEASURE_WAIT_MAX, shared.measures.clone().acquire_owned()).await;
    let busy = || Problem::new(Code::Overloaded, "too much is being measured; try again after a second");
    apart(shared, permit.map_err(|_| busy())?.map_err(|_| busy())?, work).await?
}

/// Runs `work` on a low-priority thread of its own, with its `permit`.
async fn apart<T: Send + 'static>(
    shared: &Shared,
    permit: OwnedSemaphorePermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    let failed = || Problem::new(Code::Internal, "the request could not be answered");
    let (reply, answer) = tokio::sync::oneshot::channel();
    let nice = shared.limits.nice(LONG_NICE);
    let thread = std::thread::Builder::new().name("mainstay-long".to_owned()).spawn(move || {
        give_way(nice);
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // Before the answer: who has it may ask for the next.
        drop(permit);
        // Who asked may have gone away meanwhile.
        let _ = reply.send(done);
    });
    thread.map_err(|error| failed().caused_by(error))?;
    let done = answer.await.map_err(|error| failed().caused_by(error))?;
    done.map_err(|panic| std::panic::resume_unwind(panic))
}

/// What every request passes, from the outside in.
fn finish(doors: Doors, shared: &Shared) -> Router {
    let (router, _) = doors.into_parts();
    let for_panics = shared.clone();
    let stack = ServiceBuilder::new()
        // Ids, measurement, credentials, the body of a problem.
        .layer(axum::middleware::from_fn_with_state(shared.clone(), layers::observe))
        // A panic ends one request, not the thread.
        .layer(CatchPanicLayer::custom(move |_| layers::panicked(&for_panics)));
    router
        .fallback(|| async { Problem::new(Code::NotFound, access::NO_SUCH_PATH) })
        .method_not_allowed_fallback(|| async {
            Problem::new(Code::MethodNotAllowed, "the header `allow` lists the methods that this path knows")
        })
        .layer(stack)
        .with_state(shared.clone())
}
