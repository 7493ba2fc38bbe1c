//! A TCP relay that breaks on request.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::machine;

/// Forwards connections from a loopback port to a target until it is told not to. It belongs to the runtime
/// of the test that started it, and ends with it.
#[derive(Debug)]
pub(crate) struct Proxy {
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
    pub(crate) async fn start(target_port: u16) -> Proxy {
        let (address, listener) = loop {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, machine::free_port()));
            if let Ok(listener) = TcpListener::bind(address).await {
                break (address, listener);
            }
        };
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, target_port));
        let proxy = Proxy { address, target, stalled: watch::Sender::new(false), relay: Mutex::new(None) };
        proxy.relay(listener);
        proxy
    }

    /// The port that the proxy listens on. It stays the same over `cut` and `heal`.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// The given URL with the port of the proxy instead of the target's.
    pub(crate) fn url(&self, of_target: &str) -> String {
        let mut url = url::Url::parse(of_target).expect("a URL");
        url.set_port(Some(self.port())).expect("a URL with a host");
        url.into()
    }

    /// Closes every connection, and refuses new ones. Both hold when it returns.
    pub(crate) async fn cut(&self) {
        let relay = self.relay.lock().expect("no panic while it is locked").take();
        if let Some(Relay { stop, ended }) = relay {
            drop(stop);
            ended.await.expect("the relay does not panic");
        }
    }

    /// Forwards nothing more, in either direction, and keeps connections open. New connections are accepted
    /// and see the same silence.
    pub(crate) fn stall(&self) {
        self.stalled.send_replace(true);
    }

    /// Goes on after `stall`, with nothing lost, and accepts connections again after `cut`.
    pub(crate) async fn heal(&self) {
        self.stalled.send_replace(false);
        if self.relay.lock().expect("no panic while it is locked").is_none() {
            let listener = TcpListener::bind(self.address).await.expect("listen on the same port again");
            self.relay(listener);
        }
    }

    fn relay(&self, listener: TcpListener) {
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(accept(listener, self.target, self.stalled.subscribe(), stopped));
        *self.relay.lock().expect("no panic while it is locked") = Some(Relay { stop, ended });
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
            accepted = listener.accept() => {
                let (client, _) = accepted.expect("accept a connection");
                connections.spawn(connection(client, target, stalled.clone()));
            }
        }
    }
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
