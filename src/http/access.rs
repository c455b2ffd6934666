//! Who may pass which door: every route is registered here with what it needs, so that the layer that asks for credentials, the
//! contract and the test of all routes read one list. A path that is not on it is shut.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, MatchedPath, Request};
use axum::handler::Handler;
use axum::http::header::{ALLOW, AUTHORIZATION, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderName, Method, Response};
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

use super::Shared;
use super::problem::{Code, Problem};
use crate::access::{Access, Left, Rate, Refused};
use crate::domain::access::{Caller, Needs, Scope};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// The name of the credentials in the contract.
const SCHEME: &str = "bearer";

/// What is said of a path that no route has.
pub(super) const NO_SUCH_PATH: &str = "no such path; see /openapi.json";

/// How the contract begins to say that a scope is missing.
const LACKS: &str = "The caller lacks the scope";

/// One route, and what it asks of who comes.
#[derive(Debug, Clone)]
pub struct Door {
    /// The method. What GET answers, HEAD does too.
    pub method: Method,
    /// The path, as it is routed.
    pub path: String,
    /// What is needed.
    pub needs: Needs,
}

/// Routes of a plane, each with its [`Door`]. There is no other way to make a plane, so no route is without one.
pub(super) struct Doors {
    router: OpenApiRouter<Shared>,
    list: Vec<Door>,
}

impl Doors {
    /// None yet; what the contract says of the whole comes from `head`.
    pub(super) fn new(head: OpenApi) -> Self {
        Self { router: OpenApiRouter::with_openapi(head), list: Vec::new() }
    }

    /// Adds `routes` that the contract tells of: what they need, and what they answer without, goes into it.
    pub(super) fn with(mut self, needs: Needs, mut routes: UtoipaMethodRouter<Shared>) -> Self {
        for (path, item) in &mut routes.1.paths {
            for (method, operation) in operations(item) {
                declare(operation, needs);
                self.list.push(Door { method, path: path.clone(), needs });
            }
        }
        self.router = self.router.routes(routes);
        self
    }

    /// Adds a route with one method that the contract does not tell of.
    pub(super) fn plain<H: Handler<T, Shared>, T: 'static>(
        mut self,
        needs: Needs,
        method: Method,
        path: &str,
        handler: H,
    ) -> Self {
        let filter = axum::routing::MethodFilter::try_from(method.clone()).expect("a usual method");
        self.router = self.router.route(path, axum::routing::on(filter, handler));
        self.list.push(Door { method, path: path.to_owned(), needs });
        self
    }

    /// Adds a page: a router of somebody else, which answers GET at `paths`.
    pub(super) fn page(mut self, needs: Needs, page: Router<Shared>, paths: &[&str]) -> Self {
        self.router = self.router.merge(page.into());
        self.list.extend(paths.iter().map(|path| Door { method: Method::GET, path: (*path).to_owned(), needs }));
        self
    }

    /// The doors of both.
    pub(super) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.list.extend(other.list);
        self
    }

    /// The same with a layer around all of its routes.
    pub(super) fn layered(mut self, around: impl FnOnce(OpenApiRouter<Shared>) -> OpenApiRouter<Shared>) -> Self {
        self.router = around(self.router);
        self
    }

    /// The contract.
    pub(super) fn contract(self) -> OpenApi {
        let mut contract = self.router.into_openapi();
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("an API key (msk_...) or a JWT");
        let about = "Asked for where the server's setting `access.required` is on. Behind each operation stands the scope that it needs.";
        let components = contract.components.get_or_insert_default();
        components.add_security_scheme(SCHEME, SecurityScheme::Http(scheme.description(Some(about)).build()));
        contract
    }

    /// The router, and the list of what is in it.
    pub(super) fn into_parts(self) -> (Router<Shared>, Vec<Door>) {
        (self.router.into(), self.list)
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    let PathItem { get, put, post, delete, patch, .. } = item;
    let all = [
        (Method::GET, get),
        (Method::PUT, put),
        (Method::POST, post),
        (Method::DELETE, delete),
        (Method::PATCH, patch),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Lets the contract say what an operation needs, and what it answers without.
fn declare(operation: &mut Operation, needs: Needs) {
    let scope: &[&str] = match needs {
        Needs::Nothing | Needs::Metrics | Needs::Contract => return,
        Needs::Credentials => &[],
        Needs::Scope(scope) => &[scope.name()],
    };
    operation.security = Some(vec![SecurityRequirement::new(SCHEME, scope.iter().copied())]);
    let lacks = match needs {
        Needs::Scope(Scope::Operate) => format!("{LACKS} `operate`, or the role that this needs"),
        Needs::Scope(scope) => format!("{LACKS} `{}`", scope.name()),
        _ => String::new(),
    };
    for (status, description) in [
        ("401", "Credentials are missing or not valid; the header `www-authenticate` says which"),
        ("403", &lacks),
        ("429", "The caller's rate is used up; the header `retry-after` says when to try again"),
    ] {
        if description.is_empty() {
            continue;
        }
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response =
            ResponseBuilder::new().description(description).content("application/problem+json", content).build();
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| response.into());
    }
}

/// Takes out of a contract what no server does where credentials are not asked for.
pub(super) fn open(mut contract: OpenApi) -> OpenApi {
    for item in contract.paths.paths.values_mut() {
        for (_, operation) in operations(item) {
            if operation.security.take().is_some() {
                operation.responses.responses.retain(|status, response| match response {
                    RefOr::T(response) if status == "403" => !response.description.starts_with(LACKS),
                    _ => status != "401" && status != "429",
                });
            }
        }
    }
    contract.components.get_or_insert_default().security_schemes.clear();
    contract
}

/// What stands at the doors where credentials are asked for.
pub(super) struct Gate {
    pub(super) access: Arc<Access>,
    doors: BTreeMap<String, Vec<(Method, Needs)>>,
}

impl Gate {
    /// At the doors of `list`.
    pub(super) fn new(access: Arc<Access>, list: Vec<Door>) -> Self {
        let mut doors: BTreeMap<String, Vec<(Method, Needs)>> = BTreeMap::new();
        for Door { method, path, needs } in list {
            doors.entry(path).or_default().push((method, needs));
        }
        Self { access, doors }
    }

    fn needs(&self, path: &str, method: &Method) -> Result<Needs, Problem> {
        let methods = self.doors.get(path).ok_or_else(|| Problem::new(Code::NotFound, NO_SUCH_PATH))?;
        let asked = if method == Method::HEAD { &Method::GET } else { method };
        methods.iter().find(|(known, _)| known == asked).map(|(_, needs)| *needs).ok_or_else(|| {
            let mut known: Vec<&str> = methods.iter().map(|(method, _)| method.as_str()).collect();
            if known.contains(&"GET") {
                known.push("HEAD");
            }
            let problem =
                Problem::new(Code::MethodNotAllowed, "the header `allow` lists the methods that this path knows");
            problem.with_header(ALLOW, &known.join(","))
        })
    }
}

/// Lets a request in, or says why not. What is left of its caller's rate is for [`tell`]; who that is, is for [`Who`].
pub(super) fn admit(shared: &Shared, request: &mut Request) -> Result<Option<Left>, Problem> {
    let Some(gate) = &shared.gate else { return Ok(None) };
    // A path that matches no route is answered by the fallback.
    let Some(path) = request.extensions().get::<MatchedPath>() else { return Ok(None) };
    let needs = gate.needs(path.as_str(), request.method())?;
    let mut given = request.headers().get_all(AUTHORIZATION).iter();
    let admitted = match (given.next(), given.next()) {
        (_, Some(_)) if gate.access.asked(needs) != Needs::Nothing => Err(Refused::Malformed),
        (header, _) => gate.access.admit(header.map(HeaderValue::as_bytes), needs),
    };
    match admitted {
        Ok(None) => Ok(None),
        Ok(Some(admitted)) => {
            // Only what goes on record with a name asks who calls: a score allocates nothing for it.
            if matches!(needs, Needs::Scope(Scope::Operate | Scope::Admin)) {
                request.extensions_mut().insert(admitted.caller);
            }
            Ok(admitted.left)
        }
        Err(refused) => {
            shared.engine.metrics().refused(refused.name());
            Err(refused.into())
        }
    }
}

/// Tells the caller what is left of its rate (draft-ietf-httpapi-ratelimit-headers: RateLimit-Policy, RateLimit).
pub(super) fn tell(response: &mut Response<Body>, left: Option<Left>) {
    if let Some(Left { rate, requests, reset_secs }) = left {
        let (policy, limit) = rate_headers(rate, requests, reset_secs);
        response.headers_mut().insert(RATE_LIMIT_POLICY, policy);
        response.headers_mut().insert(RATE_LIMIT, limit);
    }
}

fn rate_headers(rate: Rate, requests: u32, reset_secs: u32) -> (HeaderValue, HeaderValue) {
    let header = |text: String| HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
    let policy = format!("\"caller\";q={};w={}", rate.quota(), rate.window_secs());
    (header(policy), header(format!("\"caller\";r={requests};t={reset_secs}")))
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let unauthenticated = |detail: String, error: &str| {
            let challenge = format!("Bearer realm=\"mainstay\"{error}");
            Problem::new(Code::Unauthenticated, detail).with_header(WWW_AUTHENTICATE, &challenge)
        };
        match refused {
            Refused::Missing => {
                unauthenticated("expected the header authorization: Bearer, with an API key or a token".to_owned(), "")
            }
            Refused::Malformed => unauthenticated(
                "expected one header authorization: Bearer, with an API key or a token".to_owned(),
                ", error=\"invalid_request\"",
            ),
            Refused::Unknown => {
                unauthenticated("the key or token is not valid".to_owned(), ", error=\"invalid_token\"")
            }
            Refused::Expired => unauthenticated("the key or token has expired".to_owned(), ", error=\"invalid_token\""),
            Refused::Revoked => unauthenticated("the key was revoked".to_owned(), ", error=\"invalid_token\""),
            Refused::Token(why) => {
                unauthenticated(format!("the token is not taken: {why}"), ", error=\"invalid_token\"")
            }
            Refused::Scope(scope) => {
                let name = scope.name();
                let challenge = format!("Bearer realm=\"mainstay\", error=\"insufficient_scope\", scope=\"{name}\"");
                Problem::new(
                    Code::MissingScope,
                    format!("this needs the scope \"{name}\", which the caller does not have"),
                )
                .with_header(WWW_AUTHENTICATE, &challenge)
            }
            Refused::Rate { rate, wait } => {
                let secs = wait.as_millis().div_ceil(1_000).max(1);
                let (policy, limit) = rate_headers(rate, 0, secs.min(u128::from(u32::MAX)) as u32);
                let detail =
                    format!("the caller is limited to {} requests a second; try again after {secs} s", rate.per_sec);
                Problem::new(Code::RateLimited, detail)
                    .with_header(RETRY_AFTER, &secs.to_string())
                    .with_header(RATE_LIMIT_POLICY, policy.to_str().unwrap_or_default())
                    .with_header(RATE_LIMIT, limit.to_str().unwrap_or_default())
            }
        }
    }
}

/// Who calls, where credentials are asked for.
pub(super) struct Who(Option<Arc<Caller>>);

impl FromRequestParts<Shared> for Who {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Infallible> {
        Ok(Self(parts.extensions.get().cloned()))
    }
}

impl Who {
    /// The name that goes on record, if it is known for certain.
    pub(super) fn actor(&self) -> Option<&str> {
        self.0.as_ref().map(|caller| caller.actor.as_str())
    }

    /// Whether the caller may make the move `verb`, an approval in the role `approves`.
    pub(super) fn may_move(&self, shared: &Shared, verb: &str, approves: Option<&str>) -> Result<(), Problem> {
        let (Some(caller), Some(gate)) = (&self.0, &shared.gate) else { return Ok(()) };
        caller.may_move(verb, approves, &gate.access.options().deployers).map_err(|roles| {
            shared.engine.metrics().refused("role");
            let detail = match roles.as_slice() {
                [] => "nobody may do this: access.deployers names no role".to_owned(),
                roles => format!("this needs the role {}, which the caller does not have", roles.join(" or ")),
            };
            Problem::new(Code::MissingRole, detail)
        })
    }
}
