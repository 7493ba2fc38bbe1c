//! The order in which a batch is inserted, and its answers, which come by and by.

use crate::{
    job::{JobId, JobSpec},
    store::{StoreError, StoreErrorKind},
};

/// How often a batch or a decision looks again at jobs that change under it.
pub(super) const MAX_ROUNDS: usize = 8;

/// Where a new job is among those that one statement inserts, so that concurrent batches wait for each other in one
/// direction: by its idempotency key where it has one, because the same key may come under another ID each time, else by its
/// ID.
pub(super) fn place_among_new(spec: &JobSpec) -> (Option<(&str, &str, &str)>, JobId) {
    let key = spec.idempotency_key.as_deref().map(|key| (spec.owner.kind().as_str(), spec.owner.id(), key));
    (key, spec.id)
}

pub(super) fn unanswered<T>(answers: &[Option<T>]) -> Vec<usize> {
    (0..answers.len()).filter(|place| answers[*place].is_none()).collect()
}

/// The answers, once all are there.
pub(super) fn take_complete<T>(answers: &mut Vec<Option<T>>) -> Option<Vec<T>> {
    if answers.iter().any(Option::is_none) {
        return None;
    }
    Some(std::mem::take(answers).into_iter().flatten().collect())
}

pub(super) fn jobs_kept_changing() -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, "the jobs of a batch kept changing while it was written")
}
