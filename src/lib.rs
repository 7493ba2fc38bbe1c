//! errand runs tool calls on behalf of users and organizations, durably.
//!
//! Read `ARCHITECTURE.md` first; the modules below are listed in reading order, and a module
//! imports only from those above it.

pub mod backoff;
pub mod bounds;
pub mod clock;
pub mod job;
pub mod queue;
pub mod sandbox;
pub mod store;
pub mod tool;
pub mod worker;
