//! errand runs tool calls on behalf of users and organizations, durably.
//!
//! Read `ARCHITECTURE.md` first: it has the code map and the order in which to read these modules.

pub mod access;
pub mod actions;
pub mod admission;
pub mod api;
pub mod app;
pub mod backoff;
pub mod bounds;
pub mod callback;
pub mod cli;
pub mod clock;
pub mod config;
pub mod cursor;
pub mod desk_json;
pub mod failure;
pub mod health;
pub(crate) mod http_client;
pub mod in_flight;
pub mod job;
pub mod job_json;
pub mod lane_head;
pub mod lane_view;
pub mod maintenance;
pub mod queue;
pub mod rejected;
pub mod relay;
pub mod resolver;
pub mod seal;
pub mod secret_file;
pub mod services;
pub mod shutdown;
pub mod store;
pub(crate) mod string_enum;
pub mod supervisor;
pub(crate) mod sync;
pub(crate) mod task_lease;
pub mod telemetry;
pub mod tool;
pub mod worker;
