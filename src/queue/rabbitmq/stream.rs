//! The TCP or TLS stream to the broker, which the client library uses through the frame filter.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, traits::Reactor, util::RuntimeParts};
use bytes::{Buf as _, BytesMut};
use futures_util::{FutureExt as _, Stream, io::AsyncReadExt as _};
use lapin::{
    AsyncTcpStream,
    uri::{AMQPScheme, AMQPUri},
};
use rustls::{ClientConfig, pki_types::ServerName};
use rustls_platform_verifier::ConfigVerifierExt as _;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

use super::frame_filter::{ClosedChannels, FrameFilter, MAX_FRAME, Outgoing};
use crate::{queue::BROKER_TIMEOUT, sync::lock};

/// How long connecting to all addresses of a host may take together, which leaves time for handshakes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(BROKER_TIMEOUT.as_secs() / 2);

/// The most bytes that a stream keeps back, beside those of its last read.
pub const MAX_BUFFERED_BYTES: usize = MAX_FRAME;

pub(super) type FilteringRuntime = Runtime<RuntimeParts<Tokio, FilteringReactor>>;

type BrokerStream = Either<TcpStream, TlsStream<TcpStream>>;

/// The runtime of the caller, which must be in one.
pub(super) fn runtime() -> FilteringRuntime {
    Runtime::new(RuntimeParts::new(Tokio::current(), FilteringReactor(Tokio::current())))
}

/// Shuts the socket of a stream down from outside, at the latest when this is dropped. The library waits without a
/// limit for a broker that falls silent in the middle of a handshake or of a close, with a thread and a socket for each.
#[derive(Debug, Default)]
pub(super) struct SocketGuard(Arc<Mutex<Socket>>);

/// The socket of a guard, which the function that connects fills in.
pub(super) type SharedSocket = Arc<Mutex<Socket>>;

#[derive(Debug, Default)]
pub(super) enum Socket {
    #[default]
    NotConnected,
    Open(std::net::TcpStream),
    ShutDown,
}

impl SocketGuard {
    pub(super) fn socket(&self) -> SharedSocket {
        Arc::clone(&self.0)
    }

    /// Shuts the socket down, or has it shut down as soon as it is open.
    pub(super) fn shut_down(&self) {
        if let Socket::Open(socket) = std::mem::replace(&mut *lock(&self.0), Socket::ShutDown) {
            // This fails only for a connection that has ended.
            drop(socket.shutdown(Shutdown::Both));
        }
    }
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Connects to the broker, with TLS if the URL says so. Needs a Tokio runtime.
pub(super) async fn connect(
    uri: &AMQPUri,
    socket: &SharedSocket,
) -> io::Result<AsyncTcpStream<FilteredStream<BrokerStream>>> {
    let host = &*uri.authority.host;
    let plain = connect_to_any((host, uri.authority.port)).await?;
    plain.set_nodelay(true)?;
    {
        let own = plain.as_fd().try_clone_to_owned()?.into();
        let mut socket = lock(socket);
        if matches!(*socket, Socket::ShutDown) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        *socket = Socket::Open(own);
    }
    let stream = match uri.scheme {
        AMQPScheme::AMQP => Either::Left(plain),
        AMQPScheme::AMQPS => Either::Right(encrypt(host, plain).await?),
    };
    // For the library this is a plain stream, because what it reads is decrypted.
    Ok(AsyncTcpStream::Plain(FilteredStream::new(stream, uri.query.frame_max)))
}

/// Tries the addresses of a host in turn. One that does not answer leaves the others their share of the time.
async fn connect_to_any(host: (&str, u16)) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = lookup_host(host).await?.collect();
    let share = CONNECT_TIMEOUT / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(elapsed) => last = elapsed.into(),
        }
    }
    Err(last)
}

/// Starts TLS. The certificate has to name the host of the URL, and this host has to trust its authority.
async fn encrypt(host: &str, plain: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    // This reads the trusted certificates, which may have changed since the last connection.
    let config = ClientConfig::with_platform_verifier().map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(name, plain).await
}

pub(super) struct FilteredStream<S> {
    stream: S,
    filter: FrameFilter,
    /// Bytes that were read and the filter has not consumed.
    rest: BytesMut,
    closed_channels: ClosedChannels,
    /// Bytes that were taken from the library and have to be written next: the start of a frame.
    unwritten: BytesMut,
}

impl<S> FilteredStream<S> {
    /// `frame_max` is what the URL asks for.
    fn new(stream: S, frame_max: Option<u32>) -> Self {
        Self {
            stream,
            filter: FrameFilter::new(frame_max.unwrap_or(0)),
            rest: BytesMut::new(),
            closed_channels: ClosedChannels::default(),
            unwritten: BytesMut::new(),
        }
    }
}

impl<S: AsyncRead + Unpin> futures_util::io::AsyncRead for FilteredStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, filter, rest, .. } = self.get_mut();
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            let output = filter.take_output(buffer);
            if output > 0 {
                return Poll::Ready(Ok(output));
            }
            let passed = if rest.is_empty() {
                let limit = buffer.len().min(filter.next_chunk_limit());
                let mut chunk = ReadBuf::new(&mut buffer[..limit]);
                ready!(Pin::new(&mut *stream).poll_read(context, &mut chunk))?;
                let chunk = chunk.filled();
                if chunk.is_empty() {
                    // The start of a frame whose end will not come is dropped.
                    return Poll::Ready(Ok(0));
                }
                let filtered = filter.filter(chunk);
                rest.extend_from_slice(&chunk[filtered.consumed..]);
                filtered.passed
            } else {
                let filtered = filter.filter(&rest[..rest.len().min(buffer.len())]);
                buffer[..filtered.passed].copy_from_slice(&rest[..filtered.passed]);
                rest.advance(filtered.consumed);
                filtered.passed
            };
            if passed > 0 {
                return Poll::Ready(Ok(passed));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> futures_util::io::AsyncWrite for FilteredStream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, closed_channels, unwritten, .. } = self.get_mut();
        let mut stream = Pin::new(stream);
        while !unwritten.is_empty() {
            let written = ready!(stream.as_mut().poll_write(context, unwritten))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            unwritten.advance(written);
        }
        match closed_channels.judge(bytes) {
            Outgoing::Pass(length) => {
                let written = ready!(stream.poll_write(context, &bytes[..length]))?;
                closed_channels.wrote(written);
                Poll::Ready(Ok(written))
            }
            // The rest of the frame is written by the next call.
            Outgoing::Consumed(length, start) => {
                unwritten.extend_from_slice(&start);
                Poll::Ready(Ok(length))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

impl<S> fmt::Debug for FilteredStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilteredStream").finish_non_exhaustive()
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct FilteredFrames {
    pub bytes: Vec<u8>,
    /// The most bytes that were kept back between two reads.
    pub most_buffered: usize,
}

/// Reads a stream of AMQP frames through the frame filter in reads of these sizes again and again, for tests and fuzzing.
/// `frame_max` is the largest frame that we would ask the broker for; zero means any.
pub fn filter_frames(frames: &[u8], frame_max: u32, read_sizes: &[usize]) -> FilteredFrames {
    let mut stream = FilteredStream::new(frames, Some(frame_max));
    let mut buffer = vec![0; read_sizes.iter().copied().max().unwrap_or(0)];
    let (mut bytes, mut most_buffered) = (Vec::new(), 0);
    for size in read_sizes.iter().cycle() {
        // A slice is always ready and never fails.
        let Some(Ok(length @ 1..)) = stream.read(&mut buffer[..*size]).now_or_never() else { break };
        bytes.extend_from_slice(&buffer[..length]);
        most_buffered = most_buffered.max(stream.rest.len() + stream.filter.buffered());
    }
    FilteredFrames { bytes, most_buffered }
}

#[derive(Debug, Clone)]
pub(super) struct FilteringReactor(Tokio);

impl Reactor for FilteringReactor {
    type TcpStream = FilteredStream<BrokerStream>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl futures_util::io::AsyncRead + futures_util::io::AsyncWrite + Send + Unpin + 'static>
    {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async { Ok(FilteredStream::new(Either::Left(connecting.await?.into_inner()), None)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A content header whose message ID is not UTF-8, and a heartbeat.
    const FRAMES: &[u8] =
        b"\x02\0\x01\0\0\0\x11\0\x3c\0\0\0\0\0\0\0\0\0\x05\0\x80\x02\xff\xfe\xce\x08\0\0\0\0\0\0\xce";

    fn read_through(bytes: &[u8], buffer: usize) -> Vec<u8> {
        filter_frames(bytes, 0, &[buffer]).bytes
    }

    #[test]
    fn the_size_of_the_readers_buffer_changes_nothing() {
        let frames = FRAMES.repeat(3);
        let whole = read_through(&frames, 4_096);
        assert!(whole.ends_with(b"\x08\0\0\0\0\0\0\xce"));
        assert_eq!(whole.windows(19).filter(|window| window == b"x-errand-unreadable").count(), 3);
        for buffer in 1..300 {
            assert_eq!(read_through(&frames, buffer), whole, "{buffer}");
        }
    }

    #[test]
    fn a_stream_that_ends_in_a_frame_ends() {
        for end in 0..25 {
            assert!(read_through(&FRAMES[..end], 10).is_empty());
        }
    }
}
