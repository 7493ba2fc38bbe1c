//! Judges addresses at the moment in which they are connected to.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    task_local,
    time::timeout,
};

use super::address::AddressRules;
use crate::{job::Owner, sync::lock};

/// The most look-ups at a time. Each holds a thread, for as long as the server of a customer's names takes, which may be longer
/// than anybody waits for it.
const MAX_LOOKUPS: usize = 256;

/// The most of one owner, whose names may all be slow.
pub(super) const MAX_LOOKUPS_OF_OWNER: usize = 16;

/// The most addresses of a host that are tried.
const MAX_ADDRESSES: usize = 8;

task_local! {
    /// For whom a request is sent. A connector asks for addresses in the task of the request, and gives nothing but the name.
    pub(super) static WHOSE: Owner;
}

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
    on_threads(|host| match (host, 0).to_socket_addrs() {
        Ok(addresses) => Ok(addresses.map(|address| address.ip()).collect()),
        // Where it can open no socket to ask, it may say that there is no such name.
        Err(error) => Err(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).err().unwrap_or(error)),
    })
}

/// Looks up on threads, of which one owner does not take all.
pub(super) fn on_threads(
    look: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Clone + Send + Sync + 'static,
) -> Lookup {
    let lookups = Arc::new(Lookups::default());
    Arc::new(move |host| {
        let (lookups, look) = (Arc::clone(&lookups), look.clone());
        Box::pin(async move {
            let permits = lookups.begin().await?;
            let lookup = spawn_blocking(move || {
                // The thread is held until the system answers, though nobody may wait for it any longer.
                let _permits = permits;
                look(&host)
            });
            lookup.await.map_err(io::Error::other)?
        })
    })
}

/// Who looks something up.
struct Lookups {
    all: Arc<Semaphore>,
    /// Of owners who do.
    of_owners: Mutex<HashMap<Owner, Weak<Semaphore>>>,
}

impl Default for Lookups {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(MAX_LOOKUPS)), of_owners: Mutex::default() }
    }
}

impl Lookups {
    /// Waits for a place among those of its owner, and then among all.
    async fn begin(&self) -> io::Result<[OwnedSemaphorePermit; 2]> {
        let owner = WHOSE.try_with(Owner::clone).map_err(io::Error::other)?;
        let own = self.of(owner).acquire_owned().await.map_err(io::Error::other)?;
        let place = Arc::clone(&self.all).acquire_owned().await.map_err(io::Error::other)?;
        Ok([own, place])
    }

    fn of(&self, owner: Owner) -> Arc<Semaphore> {
        let mut of_owners = lock(&self.of_owners);
        if let Some(own) = of_owners.get(&owner).and_then(Weak::upgrade) {
            return own;
        }
        of_owners.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(MAX_LOOKUPS_OF_OWNER));
        of_owners.insert(owner, Arc::downgrade(&own));
        own
    }
}
