//! The servers of the tests: those that all share, and those that one test owns and breaks.

use std::sync::OnceLock;

use super::{http, machine::place};
use crate::services::{
    Postgres, Proxy, RabbitMq,
    machine::blocking,
    pgbouncer::PgBouncer,
    postgres::{self, Database},
    rabbitmq::{self, Vhost},
};

/// An empty database in the server that all tests of this process share, which therefore nobody stops. It is
/// started when the first test asks for it.
pub async fn database(hint: &str) -> Database {
    shared_server().await.database(hint).await.unwrap()
}

/// A copy of one of these to which nobody is connected.
pub async fn copy_of(original: &Database, hint: &str) -> Database {
    shared_server().await.copy_of(&original.name, hint).await.unwrap()
}

async fn shared_server() -> &'static Postgres {
    static SHARED: OnceLock<Postgres> = OnceLock::new();
    let start = || Postgres::start_blocking(place(), &postgres::Options::default()).unwrap();
    blocking(move || Ok(SHARED.get_or_init(start))).await.unwrap()
}

/// An empty virtual host in the node that all tests of this process share, which therefore nobody stops. It is
/// started when the first test asks for it.
pub async fn vhost(hint: &str) -> Vhost {
    shared_node().await.vhost(hint).await.unwrap()
}

/// Runs `rabbitmqctl` on the shared node, for what concerns a single virtual host.
pub async fn control(args: &[&str]) {
    shared_node().await.control(args).await.unwrap();
}

async fn shared_node() -> &'static RabbitMq {
    static SHARED: OnceLock<RabbitMq> = OnceLock::new();
    prepare_management();
    let start = || RabbitMq::start_blocking(place(), &rabbitmq::Options::default()).unwrap();
    blocking(move || Ok(SHARED.get_or_init(start))).await.unwrap()
}

/// A database server that one test owns.
pub async fn start_postgres(options: postgres::Options) -> Postgres {
    Postgres::start(place(), options).await.unwrap()
}

/// A pooler before the server of a database, with settings such as `pool_mode=session`.
pub async fn start_pgbouncer(database: &Database, settings: &[&str]) -> PgBouncer {
    let port = url::Url::parse(&database.url).unwrap().port().unwrap();
    PgBouncer::start(place(), port, settings).await.unwrap()
}

/// A node that one test owns.
pub async fn start_rabbitmq(options: rabbitmq::Options) -> RabbitMq {
    prepare_management();
    RabbitMq::start(place(), options).await.unwrap()
}

/// A proxy in front of a port of 127.0.0.1.
pub async fn start_proxy(target_port: u16) -> Proxy {
    Proxy::start(place(), target_port).await.unwrap()
}

/// The management API is called with a client, which needs a provider of TLS.
fn prepare_management() {
    drop(http::client());
}
