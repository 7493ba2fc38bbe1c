//! What tests and experiments put around errand: private servers and TCP proxies on loopback, and a second,
//! independent stand-in for the tool API.
//!
//! Nothing in production depends on this crate.

pub mod second_api;
pub mod services;
pub mod support;
