//! The pool of HTTP clients, and with it of connections, to the tool API.
//!
//! Over HTTP/1.1 every call in flight has a connection of its own. Over HTTP/2 calls share
//! connections, and the HTTP client keeps a single one for each host, whose stream limit (often 100)
//! would quietly become the limit of the whole worker, and whose loss would make the outcome of every
//! call unknown at once. So there are as many clients as it takes to keep a few calls on each: a
//! connection that is lost takes no more than [`CALLS_PER_CONNECTION`] calls with it.

use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::{Client, ClientBuilder};

use super::HttpVersion;

/// Calls that share one connection over HTTP/2. Servers that limit streams allow at least 100
/// (<https://www.rfc-editor.org/rfc/rfc9113#section-6.5.2>).
pub const CALLS_PER_CONNECTION: usize = 100;

/// A lost HTTP/2 connection is noticed by a ping that is not answered.
const PING_EVERY: std::time::Duration = std::time::Duration::from_secs(15);
const PING_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

#[derive(Debug)]
pub struct ClientPool(Vec<PooledClient>);

#[derive(Debug)]
struct PooledClient {
    client: Client,
    calls: AtomicUsize,
}

/// A client that counts this call among its own until this is dropped.
#[derive(Debug)]
pub struct Checkout<'a>(&'a PooledClient);

impl ClientPool {
    /// Clients for `max_calls` calls at once, each built by `build`.
    pub fn new(
        version: HttpVersion,
        max_calls: usize,
        build: impl Fn() -> ClientBuilder,
    ) -> reqwest::Result<Self> {
        let count = match version {
            HttpVersion::Http1 => 1,
            HttpVersion::Http2 => max_calls.div_ceil(CALLS_PER_CONNECTION).max(1),
        };
        let client = || match version {
            HttpVersion::Http1 => build().http1_only().pool_max_idle_per_host(max_calls).build(),
            HttpVersion::Http2 => build()
                .http2_prior_knowledge()
                .http2_keep_alive_interval(PING_EVERY)
                .http2_keep_alive_timeout(PING_TIMEOUT)
                .build(),
        };
        let pooled = || Ok(PooledClient { client: client()?, calls: AtomicUsize::new(0) });
        Ok(Self((0..count).map(|_| pooled()).collect::<reqwest::Result<_>>()?))
    }

    /// A client for one more call: the first whose connection has room, so that few calls use few connections,
    /// or else the one with the fewest calls.
    pub fn checkout(&self) -> Checkout<'_> {
        if let [only] = &self.0[..] {
            return only.take();
        }
        let calls = |client: &PooledClient| client.calls.load(Ordering::Relaxed);
        let free = self.0.iter().find(|client| calls(client) < CALLS_PER_CONNECTION);
        match free.or_else(|| self.0.iter().min_by_key(|client| calls(client))) {
            Some(client) => client.take(),
            None => unreachable!("there is always a client"),
        }
    }
}

impl PooledClient {
    fn take(&self) -> Checkout<'_> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Checkout(self)
    }
}

impl Checkout<'_> {
    pub fn client(&self) -> &Client {
        &self.0.client
    }
}

impl Drop for Checkout<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_client_with_room_is_taken_and_given_back() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let clients = ClientPool::new(HttpVersion::Http2, 150, || Client::builder().no_proxy()).unwrap();
        assert_eq!(clients.0.len(), 2);
        let calls =
            || clients.0.iter().map(|client| client.calls.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let mut checkouts: Vec<_> = (0..150).map(|_| clients.checkout()).collect();
        assert_eq!(calls(), [100, 50]);
        checkouts.truncate(90);
        assert_eq!(calls(), [90, 0]);
        checkouts.extend((0..120).map(|_| clients.checkout()));
        assert_eq!(calls(), [105, 105], "what no connection has room for goes where the fewest are");
        drop(checkouts);
        assert_eq!(calls(), [0, 0]);
    }

    #[test]
    fn over_http_1_there_is_one_client_with_a_pool() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let clients = ClientPool::new(HttpVersion::Http1, 5_000, || Client::builder().no_proxy()).unwrap();
        assert_eq!(clients.0.len(), 1);
    }
}
