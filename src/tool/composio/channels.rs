//! The connections to the tool API.
//!
//! Over HTTP/1.1 every call that runs has a connection of its own. Over HTTP/2 calls share
//! connections, and the HTTP client keeps a single one for each host, whose stream limit (often 100)
//! would quietly become the limit of the whole worker, and whose loss would make the outcome of every
//! call unknown at once. So there are as many clients as it takes to keep a few calls on each: a
//! connection that is lost takes no more than [`CALLS_PER_CONNECTION`] calls with it.

use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::{Client, ClientBuilder};

use crate::config::HttpVersion;

/// Calls that share one connection over HTTP/2. Servers that limit streams allow at least 100
/// (<https://www.rfc-editor.org/rfc/rfc9113#section-6.5.2>).
pub(crate) const CALLS_PER_CONNECTION: usize = 100;

/// A lost HTTP/2 connection is noticed by a ping that is not answered.
const PING_EVERY: std::time::Duration = std::time::Duration::from_secs(15);
const PING_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// The clients, each with connections of its own.
#[derive(Debug)]
pub struct Channels(Vec<Channel>);

#[derive(Debug)]
struct Channel {
    client: Client,
    calls: AtomicUsize,
}

/// A place on a connection, which is free again when this is dropped.
#[derive(Debug)]
pub struct Place<'a>(&'a Channel);

impl Channels {
    /// Clients for `max_calls` calls at once, each built by `build`.
    ///
    /// # Errors
    /// A client cannot be set up.
    pub fn new(
        version: HttpVersion,
        max_calls: usize,
        build: impl Fn() -> ClientBuilder,
    ) -> reqwest::Result<Self> {
        let channels = match version {
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
        let channel = || Ok(Channel { client: client()?, calls: AtomicUsize::new(0) });
        Ok(Self((0..channels).map(|_| channel()).collect::<reqwest::Result<_>>()?))
    }

    /// A place for one more call: on the first connection that has one free, so that few calls use few
    /// connections, or else on the one with the fewest calls.
    pub fn place(&self) -> Place<'_> {
        if let [only] = &self.0[..] {
            return only.take();
        }
        let calls = |channel: &Channel| channel.calls.load(Ordering::Relaxed);
        let free = self.0.iter().find(|channel| calls(channel) < CALLS_PER_CONNECTION);
        match free.or_else(|| self.0.iter().min_by_key(|channel| calls(channel))) {
            Some(channel) => channel.take(),
            None => unreachable!("there is always a client"),
        }
    }
}

impl Channel {
    fn take(&self) -> Place<'_> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Place(self)
    }
}

impl Place<'_> {
    /// The client to use.
    pub fn client(&self) -> &Client {
        &self.0.client
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_in_order_and_found_again() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let channels = Channels::new(HttpVersion::Http2, 150, || Client::builder().no_proxy()).unwrap();
        assert_eq!(channels.0.len(), 2);
        let calls =
            || channels.0.iter().map(|channel| channel.calls.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let mut places: Vec<_> = (0..150).map(|_| channels.place()).collect();
        assert_eq!(calls(), [100, 50]);
        places.truncate(90);
        assert_eq!(calls(), [90, 0]);
        places.extend((0..120).map(|_| channels.place()));
        assert_eq!(calls(), [105, 105], "what no connection has room for goes where the fewest are");
        drop(places);
        assert_eq!(calls(), [0, 0]);
    }

    #[test]
    fn over_http_1_there_is_one_client_with_a_pool() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let channels = Channels::new(HttpVersion::Http1, 5_000, || Client::builder().no_proxy()).unwrap();
        assert_eq!(channels.0.len(), 1);
    }
}
