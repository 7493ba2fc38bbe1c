//! One integration binary.

#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

mod cli;
mod config;
mod dashboards;
mod deploy;
mod envelope_schema;
mod metrics_docs;
mod queue_contract;
mod sandbox;
mod services;
mod store_contract;
mod support;
