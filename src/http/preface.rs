//! The first bytes of a connection: read within one deadline until they tell which HTTP is spoken, and put back in front of the stream
//! for whoever serves it. hyper's own look at them has no deadline.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// What a caller of HTTP/2 says first (RFC 9113, section 3.4).
const HTTP2: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Which HTTP a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// How long a caller may take to begin, and when nobody waits for that any more.
pub(super) struct Begin {
    pub(super) timeout: Duration,
    pub(super) stopped: watch::Receiver<bool>,
}

impl Begin {
    /// Reads until it is clear what `stream` speaks; `agreed` is what the handshake agreed on, if there was one. Nothing where the
    /// caller is too slow, goes away, speaks something else than agreed, or where the plane is stopped.
    pub(super) async fn read<S>(mut self, stream: S, agreed: Option<Version>) -> Option<(Version, Begun<S>)>
    where
        S: AsyncRead + Unpin,
    {
        tokio::select! {
            begun = tokio::time::timeout(self.timeout, read(stream, agreed)) => begun.ok().flatten(),
            _ = self.stopped.wait_for(|stopped| *stopped) => None,
        }
    }
}

async fn read<S: AsyncRead + Unpin>(mut stream: S, agreed: Option<Version>) -> Option<(Version, Begun<S>)> {
    let (mut first, mut len) = ([0; HTTP2.len()], 0);
    let version = loop {
        let more = stream.read(&mut first[len..]).await.ok().filter(|more| *more > 0)?;
        len += more;
        let is_prefix = HTTP2.starts_with(&first[..len]);
        match agreed {
            // The head that goes on from here has a deadline of its own.
            Some(Version::Http1) => break Version::Http1,
            Some(Version::Http2) if !is_prefix => return None,
            None if !is_prefix => break Version::Http1,
            _ if len == HTTP2.len() => break Version::Http2,
            _ => {}
        }
    };
    Some((version, Begun { first, at: 0, len, stream }))
}

/// A stream with the bytes in front that were read from it already.
pub(super) struct Begun<S> {
    first: [u8; HTTP2.len()],
    /// Those from here to `len` are still to be read.
    at: usize,
    len: usize,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self;
        if me.at == me.len {
            return Pin::new(&mut me.stream).poll_read(cx, buffer);
        }
        let end = me.len.min(me.at + buffer.remaining());
        buffer.put_slice(&me.first[me.at..end]);
        me.at = end;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
