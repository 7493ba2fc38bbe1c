//! Private real services for the tests, as `errand::services` starts them, with failures that panic.
//!
//! `postgres::shared()` and `rabbitmq::shared()` start one server for the whole test process when the first
//! test asks; each test gets a database or a virtual host of its own. A test that kills or pauses a server
//! starts a private one with `Postgres::start` or `RabbitMq::start`.

#![allow(dead_code, reason = "a server can do more than the tests of today ask of it")]

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
