//! One integration binary.

#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

mod behaviour;
mod bench;
mod coded_vectors;
mod faults;
mod not_modelled;
mod row;
mod tables;
