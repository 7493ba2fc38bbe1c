//! Private real services for the tests, as [`services`](crate::services) starts them, with failures that panic.
//!
//! `postgres::shared()` and `rabbitmq::shared()` start one server for the whole test process when the first
//! test asks; each test gets a database or a virtual host of its own. A test that kills or pauses a server
//! starts a private one with `Postgres::start` or `RabbitMq::start`.

#![allow(clippy::unwrap_used, reason = "a test that cannot have its servers fails, and says why")]

pub mod http;
pub mod machine;
pub mod postgres;
pub mod prometheus;
pub mod proxy;
pub mod rabbitmq;
pub mod wait;

pub use postgres::Postgres;
pub use prometheus::Prometheus;
pub use proxy::Proxy;
pub use rabbitmq::RabbitMq;
