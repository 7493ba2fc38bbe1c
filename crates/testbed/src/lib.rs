//! What tests and experiments put around errand: private servers and TCP proxies on loopback, a second,
//! independent stand-in for the tool API, and one that does what a test tells it.
//!
//! Nothing in production depends on this crate.

pub mod factory;
pub mod scripted_api;
pub mod second_api;
pub mod services;
pub mod support;
