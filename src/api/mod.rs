//! HTTP: what operators read of a worker, and the API by which apps enqueue jobs and follow them.
//!
//! [`Monitoring`] and [`Api`] are two listeners with an address of their own, because who scrapes metrics need not be able
//! to enqueue jobs, and the other way round.

mod actions;
mod batches;
mod browser;
mod caller;
mod described;
mod docs_page;
mod document;
mod dry_run;
mod filter;
mod jobs;
mod keys;
mod monitoring;
mod problem;
mod request;
mod server;
mod shared;
mod waiters;

pub use monitoring::{Monitoring, metrics_maintenance};
pub use server::Api;
pub use shared::Parts;
