//! Conversions between domain types and what databases keep.

use std::{sync::Arc, time::Duration};

use serde_json::value::RawValue;

use super::{StoreError, texts::GLOBAL};
use crate::job::{Budget, Digest, JobSpec, Owner, OwnerKind};

/// Longer waits mean "never" and would leave the range of a timestamp.
const MAX_WAIT: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// A word of a closed choice, or a name with rules.
pub(super) fn parse_column<T: std::str::FromStr>(column: &str, text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::corrupt(column))
}

/// A count, which databases keep signed.
pub(super) fn read_count(column: &str, value: i32) -> Result<u32, StoreError> {
    u32::try_from(value).map_err(|_| StoreError::corrupt(column))
}

/// A count of rows.
pub(super) fn to_u64(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A count as databases keep it; none that errand produces comes near the limit.
pub(super) fn to_i32(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// A limit as databases take it.
pub(super) fn to_limit(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What a job may spend.
pub(super) fn budget(max_attempts: Option<i32>, max_age_ms: Option<i64>) -> Result<Budget, StoreError> {
    Ok(Budget {
        max_attempts: max_attempts.map(|n| read_count("max_attempts", n)).transpose()?,
        max_age: millis("max_age_ms", max_age_ms)?,
    })
}

/// The digest of a job.
pub(super) fn digest(bytes: &[u8]) -> Result<Digest, StoreError> {
    bytes.try_into().map(Digest).map_err(|_| StoreError::corrupt("digest"))
}

/// The tags of a job, as JSON.
pub(super) fn tags(spec: &JobSpec) -> String {
    serde_json::to_string(&spec.tags)
        .unwrap_or_else(|error| unreachable!("a map of strings always encodes: {error}"))
}

/// A time from now as microseconds.
pub(super) fn micros(wait: Duration) -> i64 {
    i64::try_from(wait.min(MAX_WAIT).as_micros()).unwrap_or(i64::MAX)
}

/// A span between two of the store's instants; a clock that steps back makes it zero, not an error.
pub(super) fn to_duration(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// A duration of the envelope as milliseconds.
pub(super) fn to_millis(duration: Option<Duration>) -> Option<i64> {
    duration.map(|d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

pub(super) fn millis(column: &str, value: Option<i64>) -> Result<Option<Duration>, StoreError> {
    value
        .map(|ms| u64::try_from(ms).map(Duration::from_millis).map_err(|_| StoreError::corrupt(column)))
        .transpose()
}

pub(super) fn json(column: &str, text: String) -> Result<Arc<RawValue>, StoreError> {
    RawValue::from_string(text).map(Arc::from).map_err(|_| StoreError::corrupt(column))
}

/// The owner columns of a pin.
pub(super) fn pin_owner(owner: Option<&Owner>) -> (&'static str, &str) {
    owner.map_or((GLOBAL, ""), |owner| (owner.kind().as_str(), owner.id()))
}

/// The kind of owner as a filter column; both backends use the same words.
pub(super) fn owner_columns(owner: Option<&Owner>) -> (Option<&'static str>, Option<&str>) {
    (owner.map(|o| o.kind().as_str()), owner.map(Owner::id))
}

/// Rebuilds an owner from its columns.
pub(super) fn owner_of(kind: &str, id: String) -> Result<Owner, StoreError> {
    let kind: OwnerKind = kind.parse().map_err(|_| StoreError::corrupt("owner_kind"))?;
    Owner::new(kind, id).map_err(|_| StoreError::corrupt("owner_id"))
}
