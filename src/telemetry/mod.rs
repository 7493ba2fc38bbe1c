//! Logs and metrics.

pub mod logging;
pub mod metrics;
pub mod seldom;

mod span_fields;
