//! What keeps the store in order beside the flow of jobs.

pub mod gauges;
pub mod rescue;
pub mod verify;
