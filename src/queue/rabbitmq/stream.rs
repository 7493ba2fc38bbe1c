//! The stream that the client library reads from: the broker's, decrypted, through the sieve.

use std::{
    fmt,
    io::{self, IoSlice, Read, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, traits::Reactor, util::RuntimeParts};
use bytes::{Buf as _, BytesMut};
use futures_util::Stream;
use lapin::{
    AsyncTcpStream,
    uri::{AMQPScheme, AMQPUri},
};
use rustls::{ClientConfig, pki_types::ServerName};
use rustls_platform_verifier::ConfigVerifierExt as _;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

use super::sieve::Sieve;

/// Tokio, with streams that are sieved.
pub(super) type SievedRuntime = Runtime<RuntimeParts<Tokio, SievedReactor>>;

/// A plain or TLS stream to the broker.
type BrokerStream = Either<TcpStream, TlsStream<TcpStream>>;

/// The runtime of the caller, which must be in one.
pub(super) fn runtime() -> SievedRuntime {
    Runtime::new(RuntimeParts::new(Tokio::current(), SievedReactor(Tokio::current())))
}

/// Connects to the broker, with TLS if the URL says so. Needs a Tokio runtime.
pub(super) async fn connect(uri: &AMQPUri) -> io::Result<AsyncTcpStream<Sieved<BrokerStream>>> {
    let host = &*uri.authority.host;
    let plain = TcpStream::connect((host, uri.authority.port)).await?;
    plain.set_nodelay(true)?;
    let stream = match uri.scheme {
        AMQPScheme::AMQP => Either::Left(plain),
        AMQPScheme::AMQPS => Either::Right(encrypt(host, plain).await?),
    };
    // For the library this is a plain stream, because what it reads is decrypted.
    Ok(AsyncTcpStream::Plain(Sieved::new(stream)))
}

/// Makes sure that the other side is who the URL names, for an authority that this host trusts.
async fn encrypt(host: &str, plain: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    // Reads the certificates anew, which may have been renewed since the last connection.
    let config = ClientConfig::with_platform_verifier().map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(name, plain).await
}

/// A stream of which everything that is read goes through the sieve.
pub(super) struct Sieved<S> {
    stream: S,
    sieve: Sieve,
    /// What came from the stream and the sieve has not looked at.
    rest: BytesMut,
}

impl<S> Sieved<S> {
    fn new(stream: S) -> Self {
        Self { stream, sieve: Sieve::default(), rest: BytesMut::new() }
    }
}

impl<S: AsyncRead + Unpin> futures_util::io::AsyncRead for Sieved<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, sieve, rest } = self.get_mut();
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            let ready = sieve.take_ready(buffer);
            if ready > 0 {
                return Poll::Ready(Ok(ready));
            }
            let passed = if rest.is_empty() {
                let limit = buffer.len().min(sieve.wanted());
                let mut chunk = ReadBuf::new(&mut buffer[..limit]);
                ready!(Pin::new(&mut *stream).poll_read(context, &mut chunk))?;
                let chunk = chunk.filled();
                if chunk.is_empty() {
                    // The start of a frame that never ends is of no use to anybody.
                    return Poll::Ready(Ok(0));
                }
                let sifted = sieve.sift(chunk);
                rest.extend_from_slice(&chunk[sifted.taken..]);
                sifted.passed
            } else {
                let sifted = sieve.sift(&rest[..rest.len().min(buffer.len())]);
                buffer[..sifted.passed].copy_from_slice(&rest[..sifted.passed]);
                rest.advance(sifted.taken);
                sifted.passed
            };
            if passed > 0 {
                return Poll::Ready(Ok(passed));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> futures_util::io::AsyncWrite for Sieved<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

impl<S> fmt::Debug for Sieved<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sieved").finish_non_exhaustive()
    }
}

/// Tokio's reactor but for the streams, which are sieved.
#[derive(Debug, Clone)]
pub(super) struct SievedReactor(Tokio);

impl Reactor for SievedReactor {
    type TcpStream = Sieved<BrokerStream>;
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
        async { Ok(Sieved::new(Either::Left(connecting.await?.into_inner()))) }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, io::AsyncReadExt as _};

    use super::*;

    /// A content header whose message ID is not UTF-8, and a heartbeat.
    const FRAMES: &[u8] =
        b"\x02\0\x01\0\0\0\x11\0\x3c\0\0\0\0\0\0\0\0\0\x05\0\x80\x02\xff\xfe\xce\x08\0\0\0\0\0\0\xce";

    fn read_through(bytes: &[u8], buffer: usize) -> Vec<u8> {
        let mut stream = Sieved::new(bytes);
        let (mut buffer, mut out) = (vec![0; buffer], Vec::new());
        loop {
            match stream.read(&mut buffer).now_or_never().unwrap().unwrap() {
                0 => return out,
                length => out.extend_from_slice(&buffer[..length]),
            }
        }
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
