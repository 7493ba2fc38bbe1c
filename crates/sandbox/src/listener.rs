//! Connections that a handler can cut.
//!
//! axum hands a handler the request and nothing of the socket below it. Here every accepted
//! connection shares a flag with its handlers: once it is raised, reading and writing fail, the
//! HTTP machinery gives the connection up, and because the socket does not linger the peer sees a
//! reset instead of an orderly end.

use std::{
    fmt,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A TCP listener whose connections can be cut one by one, or all at once when the server stops.
pub(super) struct CuttableListener {
    inner: TcpListener,
    stopped: CancellationToken,
}

impl CuttableListener {
    pub(super) fn new(inner: TcpListener, stopped: CancellationToken) -> Self {
        Self { inner, stopped }
    }
}

impl Listener for CuttableListener {
    type Io = CuttableStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // axum's own implementation logs accept errors and waits them out.
        let (stream, addr) = Listener::accept(&mut self.inner).await;
        // Small answers must not wait for an acknowledgement. A failure costs only time.
        stream.set_nodelay(true).ok();
        let stopped = Box::pin(self.stopped.clone().cancelled_owned());
        (CuttableStream { inner: stream, cut: Cut::default(), stopped }, addr)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}

/// A handler's end of the flag it shares with its connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Cut(Arc<AtomicBool>);

impl Cut {
    /// Cuts the connection before its next byte. The handler must then return any response at all:
    /// the attempt to write it is what notices the flag.
    pub(super) fn now(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_cut(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Connected<IncomingStream<'_, CuttableListener>> for Cut {
    fn connect_info(stream: IncomingStream<'_, CuttableListener>) -> Self {
        stream.io().cut.clone()
    }
}

/// One accepted connection.
pub(super) struct CuttableStream {
    inner: TcpStream,
    cut: Cut,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl fmt::Debug for CuttableStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CuttableStream").field("inner", &self.inner).field("cut", &self.cut).finish()
    }
}

impl CuttableStream {
    fn check(&self) -> io::Result<()> {
        if !self.cut.is_cut() {
            return Ok(());
        }
        // Without lingering, closing discards what was not sent and answers with a reset. If the
        // option cannot be set the peer sees an early end instead, which is as unanswered.
        self.inner.set_zero_linger().ok();
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

impl AsyncRead for CuttableStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        // An idle keep-alive connection waits here, so this is where a stopped server is noticed.
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for CuttableStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
