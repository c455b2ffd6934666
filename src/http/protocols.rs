//! What is spoken on a connection: its version is read from its first bytes, and then it is served, within the bounds of each. Of HTTP/2 the
//! streams are counted: a connection without any is ended in time, where hyper would keep it for as long as its caller answers pings.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::Watcher;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::ServerOptions;
use super::preface::{Begin, Begun, Version};

/// How the connections of a worker are served.
pub(super) struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    /// How long a connection may take to begin, and stay without a request.
    timeout: Duration,
    stopped: watch::Receiver<bool>,
}

impl Protocols {
    /// As `options` say, until the plane is `stopped`.
    pub(super) fn new(options: &ServerOptions, stopped: watch::Receiver<bool>) -> Self {
        let timeout = Duration::from_millis(options.head_timeout_ms);
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(timeout).max_buf_size(options.head_bytes_max);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(timeout)
            .max_header_list_size(options.head_bytes_max as u32)
            .max_concurrent_streams(options.streams_max);
        Self { http1, http2, timeout, stopped }
    }

    /// Serves `stream` by `service` until it ends; `agreed` is what its handshake agreed on, if there was one. Whoever stops the plane waits for
    /// `watcher`.
    pub(super) async fn serve<S>(
        &self,
        stream: S,
        agreed: Option<Version>,
        service: TowerToHyperService<Router>,
        watcher: Watcher,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let begin = Begin { timeout: self.timeout, stopped: self.stopped.clone() };
        // A connection that breaks is its caller's business.
        match begin.read(stream, agreed).await {
            Some((Version::Http1, stream)) => {
                let _ = watcher.watch(self.http1.serve_connection(TokioIo::new(stream), service)).await;
            }
            // In a place of its own, or the many connections of HTTP/1 would have room for it.
            Some((Version::Http2, stream)) => Box::pin(self.serve_http2(stream, service, watcher)).await,
            None => {}
        }
    }

    async fn serve_http2<S>(&self, stream: Begun<S>, service: TowerToHyperService<Router>, _watched: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let streams = Arc::new(Streams::new());
        let counted = counted(streams.clone(), service);
        let mut connection = pin!(self.http2.serve_connection(TokioIo::new(stream), counted));
        let mut stopped = self.stopped.clone();
        tokio::select! {
            _ = connection.as_mut() => return,
            () = streams.unused(self.timeout) => {}
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
        // Says so (GOAWAY), takes what was asked for meanwhile, and lets streams end.
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            _ = connection => {}
            // A caller who does not say that it has understood.
            () = streams.unused(self.timeout) => {}
        }
    }
}

/// `service`, with every request counted among `streams` until its answer has been sent, or nobody wants it any more.
fn counted(
    streams: Arc<Streams>,
    service: TowerToHyperService<Router>,
) -> impl Service<
    Request<Incoming>,
    Response = Response<Answer>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Answer>, Infallible>> + Send + 'static,
> {
    service_fn(move |request| {
        let open = Arc::new(Open::new(&streams));
        let answer = service.call(request);
        async move { Ok(answer.await?.map(|body| Answer { body, open })) }
    })
}

/// The streams of one connection.
struct Streams {
    begun: Instant,
    open: AtomicUsize,
    /// When the last one ended that was open, in microseconds since `begun`.
    ended_us: AtomicU64,
}

impl Streams {
    fn new() -> Self {
        Self { begun: Instant::now(), open: AtomicUsize::new(0), ended_us: AtomicU64::new(0) }
    }

    /// Waits until there has been no stream for `timeout` from now on. It looks once in that time, however many come and go.
    async fn unused(&self, timeout: Duration) {
        let mut rest = timeout;
        while !rest.is_zero() {
            tokio::time::sleep(rest).await;
            rest = match self.open.load(Ordering::Relaxed) {
                0 => {
                    let ended = Duration::from_micros(self.ended_us.load(Ordering::Relaxed));
                    (ended + timeout).saturating_sub(self.begun.elapsed())
                }
                _ => timeout,
            };
        }
    }
}

/// One of the streams that are open, for as long as it lives.
struct Open(Arc<Streams>);

impl Open {
    fn new(streams: &Arc<Streams>) -> Self {
        streams.open.fetch_add(1, Ordering::Relaxed);
        Self(streams.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.ended_us.store(self.0.begun.elapsed().as_micros() as u64, Ordering::Relaxed);
        }
    }
}

/// The body of an answer. While it is there, or anything of it waits to be sent, its stream is open.
struct Answer {
    body: Body,
    open: Arc<Open>,
}

/// `bytes` of an answer with a `guard` that lives as long as they do: hyper keeps them until the caller has taken them.
pub(super) fn guarded(bytes: Bytes, guard: impl Send + 'static) -> Bytes {
    Bytes::from_owner(Guarded { bytes, _guard: guard })
}

struct Guarded<G> {
    bytes: Bytes,
    _guard: G,
}

impl<G> AsRef<[u8]> for Guarded<G> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let counted = |bytes| guarded(bytes, self.open.clone());
        polled.map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(counted))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use hyper::body::Body as _;

    use super::*;

    /// hyper lets the body go once it has the last of it, which may be long before the caller has it.
    #[test]
    fn a_stream_is_open_until_its_answer_was_taken() {
        let streams = Arc::new(Streams::new());
        let is_open = || streams.open.load(Ordering::Relaxed) == 1;
        let mut answer = Answer { body: Body::from("a decision"), open: Arc::new(Open::new(&streams)) };
        let polled = Pin::new(&mut answer).poll_frame(&mut Context::from_waker(Waker::noop()));
        drop(answer);
        let Poll::Ready(Some(Ok(frame))) = polled else { panic!("no frame") };
        assert!(is_open());
        let bytes = frame.into_data().expect("data");
        let rest = bytes.slice(2..);
        drop(bytes);
        assert!(is_open() && rest == "decision", "as long as any of it waits");
        drop(rest);
        assert!(!is_open());
    }
}
