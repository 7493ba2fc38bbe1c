//! HTTP: what operators read of a worker, and the API by which apps enqueue jobs and follow them.
//!
//! [`Monitoring`] and [`Api`] are two listeners with an address of their own, because who scrapes metrics need not be able
//! to enqueue jobs, and the other way round.

mod actions;
mod around;
mod audit_log;
mod batches;
mod browser;
mod callbacks;
mod caller;
mod connections;
mod cors;
mod decisions;
mod described;
mod desk;
mod docs_page;
mod document;
mod dry_run;
mod edit;
mod events;
mod filter;
mod follower;
mod guesses;
mod if_match;
mod jobs;
mod keys;
mod known;
mod limits;
mod monitoring;
mod pins;
mod problem;
mod queues;
mod rejected;
mod request;
mod sealing;
mod server;
mod shared;
mod slow_reader;
mod streams;
mod tls;
mod together;
mod token;
mod tokens;
mod waiters;

pub use cors::ANY as ANY_ORIGIN;
pub use monitoring::{Monitoring, metrics_maintenance};
pub use server::{Api, Options};
pub use shared::Parts;
pub use tls::TlsFiles;
