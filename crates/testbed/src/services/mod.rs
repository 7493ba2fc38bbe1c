//! Private servers for tests and for `errand-lab chaos`: PostgreSQL, RabbitMQ and TCP proxies on loopback ports
//! of their own, which are gone with their data when their value is dropped, and whatever happens to the
//! process that started them.
//!
//! Nothing here ends a process by its name, uses a server that somebody else runs, listens anywhere but on
//! loopback, or needs root. The servers of the machine's packages are run, so they have to be installed.

pub mod guard;
pub mod machine;
pub mod pgbouncer;
pub mod place;
pub mod postgres;
pub mod proxy;
pub mod rabbitmq;
mod server;

pub use place::Place;
pub use postgres::Postgres;
pub use proxy::Proxy;
pub use rabbitmq::RabbitMq;
