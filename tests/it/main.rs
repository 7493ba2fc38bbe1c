//! One integration binary.

#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

mod alerts;
mod attempt_span;
mod audit;
mod backup;
mod bad_input;
mod cli;
mod config;
mod connection_rounds;
mod connections;
mod dashboards;
mod database_limits;
mod database_settings;
mod deploy;
mod dev;
mod embedded;
mod envelope_schema;
mod error_logs;
mod expiry;
mod flow;
mod harness;
mod jobs;
mod late;
mod least_privileges;
mod metrics_docs;
mod migrations;
mod model;
mod outage;
mod outage_broker;
mod outage_database;
mod parked;
mod poison;
mod policies;
mod promql;
mod publishers;
mod queue_contract;
mod rabbitmq;
mod readme;
mod refused;
mod relay;
mod retention;
mod second_api;
mod shutdown;
mod simulation;
mod store_contract;
mod tidy;
mod told;
mod tool_api;
mod verify;
mod verify_rounds;
mod workers;

use errand_testbed::support;
