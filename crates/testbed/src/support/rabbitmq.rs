//! Private RabbitMQ nodes: one that all tests share, and those that a test breaks.

use std::sync::OnceLock;

pub use crate::services::rabbitmq::Options;
use crate::services::{self, machine::blocking};
use lapin::{Connection, ConnectionProperties};
use serde_json::Value;

use super::http;
use super::machine::place;

/// A virtual host of its own, in a node that lives at least as long as the test. The user is guest/guest.
#[derive(Clone, Debug)]
pub struct Vhost {
    /// The name is percent-encoded in here. It contains a slash, as the default one of RabbitMQ does.
    pub amqp_url: String,
    /// The name, with its slash.
    pub name: String,
    /// The root of the management API, without credentials and without `/api`.
    pub management_url: String,
    inner: services::rabbitmq::Vhost,
}

impl Vhost {
    /// A connection for what the test itself publishes and looks at.
    pub async fn connect(&self) -> Connection {
        Connection::connect(&self.amqp_url, ConnectionProperties::default())
            .await
            .expect("connect to RabbitMQ")
    }

    /// The name as it stands in a path of the management API.
    pub fn encoded_name(&self) -> String {
        self.inner.encoded_name()
    }

    /// Calls the management API; `path` follows `/api/`. Panics unless the call succeeds. An empty answer is
    /// `null`.
    pub async fn manage(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Value {
        self.inner.manage(method, path, body).await.unwrap()
    }
}

/// The node that all tests of this process share. It cannot be stopped or paused.
#[derive(Debug)]
pub struct Shared(RabbitMq);

impl Shared {
    /// Creates an empty virtual host.
    pub async fn vhost(&self, hint: &str) -> Vhost {
        self.0.vhost(hint).await
    }

    /// Runs `rabbitmqctl`, for what concerns a single virtual host.
    pub async fn control(&self, args: &[&str]) {
        self.0.control(args).await;
    }
}

/// Starts the shared node when the first test asks for it.
pub async fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    let start = || {
        let node = services::RabbitMq::start_blocking(place(), &Options::default()).unwrap();
        Shared(RabbitMq(node))
    };
    blocking(move || Ok(SHARED.get_or_init(start))).await.unwrap()
}

/// A node that one test owns. It is gone, with its data, when the value is dropped.
#[derive(Clone, Debug)]
pub struct RabbitMq(services::RabbitMq);

impl RabbitMq {
    /// Starts a node, and returns when it answers.
    pub async fn start(options: Options) -> RabbitMq {
        RabbitMq(services::RabbitMq::start(place(), options).await.unwrap())
    }

    /// The AMQP URL of the default virtual host. It stays the same over restarts.
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// The loopback port of AMQP, for a proxy in front of the node.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// The root of the management API, without credentials and without `/api`.
    pub fn management_url(&self) -> String {
        self.0.management_url()
    }

    /// Where the node's own metrics are, if it was started with the plugin.
    pub fn prometheus_url(&self) -> String {
        self.0.prometheus_url()
    }

    /// Creates an empty virtual host.
    pub async fn vhost(&self, hint: &str) -> Vhost {
        // The management API is called with a client, which needs a provider of TLS.
        drop(http::client());
        let inner = self.0.vhost(hint).await.unwrap();
        let services::rabbitmq::Vhost { amqp_url, name, management_url } = inner.clone();
        Vhost { amqp_url, name, management_url, inner }
    }

    /// Kills the node with SIGKILL, and returns when it is gone.
    pub async fn kill9(&self) {
        self.0.kill9().await.unwrap();
    }

    /// Shuts down cleanly, which takes several seconds.
    pub async fn stop(&self) {
        self.0.stop().await.unwrap();
    }

    /// Starts again on the same data and ports, after a clean stop if the node runs.
    pub async fn restart(&self) {
        self.0.restart().await.unwrap();
    }

    /// Stops all processes of the node where they are; connections stay open and nothing answers.
    pub async fn pause(&self) {
        self.0.pause().await.unwrap();
    }

    /// Lets a paused node go on.
    pub async fn resume(&self) {
        self.0.resume().await.unwrap();
    }

    /// Runs `rabbitmqctl`, for what the management API cannot do.
    pub async fn control(&self, args: &[&str]) {
        self.0.control(args).await.unwrap();
    }
}
