//! A TCP relay that breaks on request.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
};

use super::place::Place;

/// A pause after a connection could not be accepted, which happens when files run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Forwards connections from a loopback port to a target until it is told not to. It belongs to the runtime
/// in which it was started, and ends with it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    target: SocketAddr,
    stalled: watch::Sender<bool>,
    relay: Mutex<Option<Relay>>,
}

/// The listening socket and its connections. It ends when `stop` is dropped.
#[derive(Debug)]
struct Relay {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port, and forwards to the given port of 127.0.0.1.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(place: &Place, target_port: u16) -> Result<Proxy> {
        let (address, listener) = loop {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, place.free_port()?));
            if let Ok(listener) = TcpListener::bind(address).await {
                break (address, listener);
            }
        };
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, target_port));
        let proxy = Proxy { address, target, stalled: watch::Sender::new(false), relay: Mutex::new(None) };
        proxy.relay(listener);
        Ok(proxy)
    }

    /// The port that the proxy listens on. It stays the same over `cut` and `heal`.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The given URL with the port of the proxy instead of the target's.
    ///
    /// # Errors
    /// It is not a URL, or one without a host.
    pub fn url(&self, of_target: &str) -> Result<String> {
        let mut url = url::Url::parse(of_target).context("not a URL")?;
        url.set_port(Some(self.port())).map_err(|()| anyhow!("a URL without a host"))?;
        Ok(url.into())
    }

    /// Closes every connection, and refuses new ones. Both hold when it returns.
    ///
    /// # Errors
    /// The relay has panicked.
    pub async fn cut(&self) -> Result<()> {
        let relay = self.relay.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Relay { stop, ended }) = relay {
            drop(stop);
            ended.await.context("the relay of a proxy failed")?;
        }
        Ok(())
    }

    /// Forwards nothing more, in either direction, and keeps connections open. New connections are accepted
    /// and see the same silence.
    pub fn stall(&self) {
        self.stalled.send_replace(true);
    }

    /// Goes on after `stall`, with nothing lost, and accepts connections again after `cut`.
    ///
    /// # Errors
    /// The port is taken by now.
    pub async fn heal(&self) -> Result<()> {
        self.stalled.send_replace(false);
        if self.relay.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            let listener =
                TcpListener::bind(self.address).await.context("a proxy cannot listen on its port again")?;
            self.relay(listener);
        }
        Ok(())
    }

    fn relay(&self, listener: TcpListener) {
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(accept(listener, self.target, self.stalled.subscribe(), stopped));
        *self.relay.lock().unwrap_or_else(PoisonError::into_inner) = Some(Relay { stop, ended });
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    stalled: watch::Receiver<bool>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    connections.spawn(connection(client, target, stalled.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
    // A process that is being started at this moment has a copy of the socket until it runs its program, so
    // closing the socket is not enough. An error would mean that it does not listen any more.
    drop(SockRef::from(&listener).shutdown(Shutdown::Both));
    drop(listener);
    connections.shutdown().await;
}

/// Relays one connection. An error of either side closes both, which is all that the other side can see.
async fn connection(client: TcpStream, target: SocketAddr, stalled: watch::Receiver<bool>) -> io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(
        forward(from_client, to_server, stalled.clone()),
        forward(from_server, to_client, stalled)
    )?;
    Ok(())
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut stalled: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        // What was read before the stall is held back as well. The end of the proxy ends the wait.
        if stalled.wait_for(|stalled| !stalled).await.is_err() {
            return Ok(());
        }
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}
