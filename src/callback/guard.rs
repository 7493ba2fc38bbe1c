//! Judges addresses at the moment in which they are connected to.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use super::address::AddressRules;

/// The most look-ups at a time. Each holds a thread, for as long as the server of a customer's names takes.
const MAX_LOOKUPS: usize = 256;

/// The most addresses of a host that are tried.
const MAX_ADDRESSES: usize = 8;

/// Finds the addresses of a host.
pub(super) type Lookup =
    Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync + 'static>;

/// Gives the clients of one scheme addresses that they may connect to, and no others.
///
/// It is asked by the connector itself, which connects to what it is given, so no name can lead elsewhere after it was judged.
/// It is not asked for a host that is an address: that is judged before.
#[derive(Clone)]
pub(super) struct Guard {
    pub(super) rules: Arc<AddressRules>,
    /// Without, only what the operator allows by name is permitted.
    pub(super) https: bool,
    pub(super) lookup: Lookup,
    /// The longest that a look-up takes.
    pub(super) timeout: Duration,
}

impl Guard {
    pub(super) fn permits(&self, ip: IpAddr) -> bool {
        if self.https { self.rules.permits(ip) } else { self.rules.allows(ip) }
    }

    async fn addresses(&self, host: String) -> Result<Vec<SocketAddr>, NoAddress> {
        let found = timeout(self.timeout, (self.lookup)(host)).await;
        let found = found.map_err(|_| NoAddress::Slow)?.map_err(NoAddress::Unknown)?;
        if found.is_empty() {
            return Err(NoAddress::None);
        }
        // The port is the URL's.
        let permitted = found.into_iter().filter(|ip| self.permits(*ip)).map(|ip| SocketAddr::new(ip, 0));
        let permitted: Vec<SocketAddr> = permitted.take(MAX_ADDRESSES).collect();
        if permitted.is_empty() { Err(NoAddress::Refused) } else { Ok(permitted) }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let addresses = guard.addresses(name.as_str().to_owned()).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Why there is no address to connect to. It names none: whoever chose the host learns nothing about the network here.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAddress {
    #[error("the name cannot be looked up")]
    Unknown(#[source] io::Error),
    #[error("the name is not looked up in time")]
    Slow,
    #[error("the name has no address")]
    None,
    #[error("no address is permitted")]
    Refused,
}

/// Asks the operating system, as every program on this host does.
pub(super) fn system_lookup() -> Lookup {
    let lookups = Arc::new(Semaphore::new(MAX_LOOKUPS));
    Arc::new(move |host| {
        let lookups = Arc::clone(&lookups);
        Box::pin(async move {
            let permit = lookups.acquire_owned().await.map_err(io::Error::other)?;
            let lookup = spawn_blocking(move || {
                // The thread is held until the system answers, though nobody may wait for it any longer.
                let _permit = permit;
                let addresses = (host.as_str(), 0).to_socket_addrs()?;
                Ok(addresses.map(|address| address.ip()).collect())
            });
            lookup.await.map_err(io::Error::other)?
        })
    })
}
