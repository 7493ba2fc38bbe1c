//! What people and apps read about jobs that ended in the store itself, and other fixed words in rows.

use crate::{
    bounds::MAX_ERROR_CHARS,
    job::{ErrorKind, JobError},
};

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "the limit is small")]
pub(super) const MAX_ERROR_LENGTH: i32 = MAX_ERROR_CHARS as i32;

/// The words for who reported the end of an attempt.
pub(super) const HOLDER: &str = "holder";
pub(super) const RESCUER: &str = "rescuer";

/// What a part of errand is called where a person's name would stand, and what all such names begin with.
pub(super) const BY_ERRAND: &str = "errand:";
pub(super) const BY_ADMISSION: &str = "errand: admission";
pub(super) const BY_WORKER: &str = "errand: worker";
pub(super) const BY_RESCUE: &str = "errand: rescue";
pub(super) const BY_LOOK_UP: &str = "errand: look-up";
pub(super) const BY_CONNECTIONS: &str = "errand: connections";

/// The kind of owner in the row of a global pin, whose owner ID is empty.
pub(super) const GLOBAL: &str = "global";

/// What an app reads about a job that a person marked as failed.
pub(super) fn marked_failed() -> JobError {
    JobError::new(ErrorKind::MarkedFailed, "a person marked this job as failed")
}

/// What an app reads first about a job whose time passed while it waited for a connection.
pub(super) const EXPIRED_AWAITING: &str =
    "`expires_at` or `max_age_ms` passed before the account was connected: ";

/// The result of a job that a person marked as succeeded: nobody knows the tool's answer.
pub(super) const NO_RESULT: &str = "null";
