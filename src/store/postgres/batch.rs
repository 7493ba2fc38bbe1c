//! The answers to a batch, which come by and by.

use crate::store::{StoreError, StoreErrorKind};

/// How often a batch or a decision looks again at jobs that change under it.
pub(super) const MAX_ROUNDS: usize = 8;

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
