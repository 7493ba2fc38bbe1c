//! One integration binary.

#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

mod second_api;
mod services;
