//! One integration binary.

#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

mod services;
mod store_contract;
mod support;
