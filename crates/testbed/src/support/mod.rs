//! Private real services for the tests, as [`services`](crate::services) starts them.
//!
//! `database()` and `vhost()` give each test a database or a virtual host of its own in a server that the whole
//! test process shares. A test that kills or pauses a server starts its own with `start_postgres` or
//! `start_rabbitmq`.

#![allow(clippy::unwrap_used, reason = "a test that cannot have its servers fails, and says why")]

pub mod http;
pub mod machine;
pub mod prometheus;
pub mod servers;
pub mod wait;

pub use crate::services::{Postgres, Proxy, RabbitMq, postgres, rabbitmq};
pub use prometheus::Prometheus;
pub use servers::{
    control, copy_of, database, start_pgbouncer, start_postgres, start_proxy, start_rabbitmq, vhost,
};
