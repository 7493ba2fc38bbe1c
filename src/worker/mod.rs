//! The flow of one job.

pub mod classify;
