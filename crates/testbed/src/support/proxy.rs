//! A TCP relay that breaks on request.

use crate::services;

use super::machine::place;

/// Forwards connections from a loopback port to a target until it is told not to. It belongs to the runtime
/// of the test that started it, and ends with it.
#[derive(Debug)]
pub struct Proxy(services::Proxy);

impl Proxy {
    /// Listens on a free port, and forwards to the given port of 127.0.0.1.
    pub async fn start(target_port: u16) -> Proxy {
        Proxy(services::Proxy::start(place(), target_port).await.unwrap())
    }

    /// The port that the proxy listens on. It stays the same over `cut` and `heal`.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// The given URL with the port of the proxy instead of the target's.
    pub fn url(&self, of_target: &str) -> String {
        self.0.url(of_target).unwrap()
    }

    /// Closes every connection, and refuses new ones. Both hold when it returns.
    pub async fn cut(&self) {
        self.0.cut().await.unwrap();
    }

    /// Forwards nothing more, in either direction, and keeps connections open. New connections are accepted
    /// and see the same silence.
    pub fn stall(&self) {
        self.0.stall();
    }

    /// Goes on after `stall`, with nothing lost, and accepts connections again after `cut`.
    pub async fn heal(&self) {
        self.0.heal().await.unwrap();
    }
}
