//! Private real services for the tests: PostgreSQL, RabbitMQ and Prometheus, started on loopback ports of
//! their own, and stopped whatever happens to the process that started them.
//!
//! `postgres::shared()` and `rabbitmq::shared()` start one server for the whole test process when the first
//! test asks; each test gets a database or a virtual host of its own. A test that kills or pauses a server
//! starts a private one with `Postgres::start` or `RabbitMq::start`.
//!
//! Nothing here ends a process by its name, uses a server that somebody else runs, or listens anywhere but
//! on loopback.

#![allow(dead_code, reason = "the tests and the example program each use a part of this")]
#![allow(unused_imports, reason = "the re-exports are for whichever test needs them")]

pub(crate) mod guard;
pub(crate) mod http;
pub(crate) mod machine;
pub(crate) mod postgres;
pub(crate) mod prometheus;
pub(crate) mod proxy;
pub(crate) mod rabbitmq;
pub(crate) mod wait;

pub(crate) use postgres::Postgres;
pub(crate) use prometheus::Prometheus;
pub(crate) use proxy::Proxy;
pub(crate) use rabbitmq::RabbitMq;
