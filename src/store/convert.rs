//! Conversions between domain types and what databases keep.

use std::time::Duration;

use uuid::Uuid;

use super::{
    By,
    texts::{GLOBAL, HOLDER, RESCUER},
};
use crate::job::{JobId, JobSpec, Owner};

/// Longer waits mean "never" and would leave the range of a timestamp.
const MAX_WAIT: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// A count as databases keep it; none that errand produces comes near the limit.
pub(super) fn to_i32(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

pub(super) fn to_limit(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn tags(spec: &JobSpec) -> String {
    serde_json::to_string(&spec.tags)
        .unwrap_or_else(|error| unreachable!("a map of strings always encodes: {error}"))
}

pub(super) fn uuids(ids: &[JobId]) -> Vec<Uuid> {
    ids.iter().map(|id| id.0).collect()
}

/// A time from now as microseconds.
pub(super) fn micros(wait: Duration) -> i64 {
    i64::try_from(wait.min(MAX_WAIT).as_micros()).unwrap_or(i64::MAX)
}

/// A span between two of the store's instants; a clock that steps back makes it zero, not an error.
pub(super) fn to_duration(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

pub(super) fn to_millis(duration: Option<Duration>) -> Option<i64> {
    duration.map(|d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

pub(super) fn pin_owner(owner: Option<&Owner>) -> (&'static str, &str) {
    owner.map_or((GLOBAL, ""), |owner| (owner.kind().as_str(), owner.id()))
}

/// The word for who reports.
pub(super) fn reporter(by: By) -> &'static str {
    match by {
        By::Holder | By::LookUp => HOLDER,
        By::Rescuer { .. } => RESCUER,
    }
}
