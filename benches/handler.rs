//! The whole handler of `POST /v1/score`, every layer of the data plane included and the socket left out, next to the bound:
//! the least that axum and serde_json need to read the same body and to answer as many bytes.

mod customers;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use axum::routing::post;
use criterion::{BatchSize, Criterion};
use http_body_util::BodyExt;
use mainstay::http::data_plane;
use tower::ServiceExt;

/// About the size of a decision.
const ANSWER: [u8; 340] = [b' '; 340];

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let service = customers::Service::start();
    // A worker of the server is such a runtime, and clones the router for each request too.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let bound = Router::new().route("/v1/score", post(bound)).route("/v1/models/{model}/score", post(bound));
    let ours = data_plane(&service.shared);
    for name in customers::BUNDLES {
        let path = format!("/v1/models/{name}/score");
        // The default model is asked for as most callers do: without its name.
        let path = if name == customers::BUNDLES[0] { "/v1/score" } else { &path };
        let bodies = customers::bodies(&customers::records(&service.serving(name).model));
        for (what, router) in [("bound", &bound), ("handler", &ours)] {
            let mut bodies = bodies.iter().cycle();
            criterion.benchmark_group(what).bench_function(name, |bencher| {
                bencher.iter_batched(
                    || request(path, bodies.next().expect("a cycle")),
                    |request| runtime.block_on(answer(router.clone(), request)),
                    BatchSize::SmallInput,
                );
            });
        }
    }
    criterion.final_summary();
}

fn request(path: &str, body: &[u8]) -> Request<Body> {
    Request::post(path)
        .header("host", "127.0.0.1:8080")
        .header("content-type", "application/json")
        .header("content-length", body.len())
        .body(Body::from(body.to_vec()))
        .expect("a request")
}

async fn answer(router: Router, request: Request<Body>) -> Bytes {
    let response = router.oneshot(request).await.expect("a router cannot fail");
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body().collect().await.expect("a whole body").to_bytes()
}

async fn bound(body: Bytes) -> Result<Bytes, StatusCode> {
    let value: serde_json::Value = serde_json::from_slice(&body).map_err(|_| StatusCode::BAD_REQUEST)?;
    std::hint::black_box(value);
    Ok(Bytes::from_static(&ANSWER))
}
