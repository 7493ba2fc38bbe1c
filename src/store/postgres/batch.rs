//! Batches: their columns as arrays, and their answers.

use super::Bound;
use super::instant;
use crate::{
    job::{Binding, JobError, JobSpec},
    store::{
        StoreError, StoreErrorKind,
        convert::{tags, to_i32, to_millis},
    },
};

/// The columns of what was asked for, bound by [`Specs`].
macro_rules! spec_columns {
    () => {
        "id, digest, owner_kind, owner_id, requested_by, tool, arguments, text, version, \
         connected_account_id, queue, priority, run_at, expires_at, timeout_ms, max_attempts, max_age_ms, \
         effect, idempotency_key, tags, reply_to, correlation_id, traceparent"
    };
}

macro_rules! spec_values {
    () => {
        "i.id, i.digest, i.owner_kind, i.owner_id, i.requested_by, i.tool, i.arguments::json, i.text, i.version, \
         i.connected_account_id, i.queue, i.priority, i.run_at, i.expires_at, i.timeout_ms, i.max_attempts, \
         i.max_age_ms, i.effect, i.idempotency_key, i.tags::jsonb, i.reply_to, i.correlation_id, i.traceparent"
    };
}

macro_rules! spec_arrays {
    () => {
        "$1::uuid[], $2::bytea[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], \
         $9::text[], $10::text[], $11::text[], $12::smallint[], $13::timestamptz[], $14::timestamptz[], \
         $15::bigint[], $16::integer[], $17::bigint[], $18::text[], $19::text[], $20::text[], $21::text[], \
         $22::text[], $23::text[]"
    };
}

pub(super) use {spec_arrays, spec_columns, spec_values};

/// How often a batch looks again at jobs that change under it.
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

/// One column of a batch.
pub(super) fn column<'a, T, C>(batch: &'a [T], column: impl Fn(&'a T) -> C) -> Vec<C> {
    batch.iter().map(column).collect()
}

/// A column that most batches do not use. One without any value is sent without elements: `unnest`
/// fills it up with nulls to the length of the others, and neither side pays for them.
pub(super) fn sparse_column<'a, T, C>(batch: &'a [T], column: impl Fn(&'a T) -> Option<C>) -> Vec<Option<C>> {
    let mut values = Vec::new();
    for (place, item) in batch.iter().enumerate() {
        let value = column(item);
        if value.is_some() && values.is_empty() {
            values.reserve(batch.len());
            values.extend((0..place).map(|_| None));
        }
        if value.is_some() || !values.is_empty() {
            values.push(value);
        }
    }
    values
}

/// The columns of what was asked for.
pub(super) struct Specs<'a>(Vec<&'a JobSpec>);

impl<'a> Specs<'a> {
    pub(super) fn new(specs: impl Iterator<Item = &'a JobSpec>) -> Self {
        Self(specs.collect())
    }

    pub(super) fn column<C>(&self, value: impl Fn(&'a JobSpec) -> C) -> Vec<C> {
        column(&self.0, |spec| value(spec))
    }

    pub(super) fn sparse_column<C>(&self, value: impl Fn(&'a JobSpec) -> Option<C>) -> Vec<Option<C>> {
        sparse_column(&self.0, |spec| value(spec))
    }

    pub(super) fn bind(&self, query: Bound) -> Bound {
        query
            .bind(self.column(|spec| spec.id.0))
            .bind(self.column(|spec| &spec.digest.0[..]))
            .bind(self.column(|spec| spec.owner.kind().as_str()))
            .bind(self.column(|spec| spec.owner.id()))
            .bind(self.sparse_column(|spec| spec.requested_by.as_deref()))
            .bind(self.column(|spec| &*spec.tool))
            .bind(self.sparse_column(|spec| spec.arguments.as_deref().map(|raw| raw.get())))
            .bind(self.sparse_column(|spec| spec.text.as_deref()))
            .bind(self.sparse_column(|spec| spec.version.as_deref()))
            .bind(self.sparse_column(|spec| spec.connected_account_id.as_deref()))
            .bind(self.column(|spec| spec.queue.as_str()))
            .bind(self.column(|spec| spec.priority))
            .bind(self.sparse_column(|spec| spec.run_at.map(instant)))
            .bind(self.sparse_column(|spec| spec.expires_at.map(instant)))
            .bind(self.sparse_column(|spec| to_millis(spec.timeout)))
            .bind(self.sparse_column(|spec| spec.budget.max_attempts.map(to_i32)))
            .bind(self.sparse_column(|spec| to_millis(spec.budget.max_age)))
            .bind(self.sparse_column(|spec| spec.effect.map(|effect| effect.as_str())))
            .bind(self.sparse_column(|spec| spec.idempotency_key.as_deref()))
            .bind(self.column(tags))
            .bind(self.sparse_column(|spec| spec.reply_to.as_deref()))
            .bind(self.sparse_column(|spec| spec.correlation_id.as_deref()))
            .bind(self.sparse_column(|spec| spec.traceparent.as_deref()))
    }
}

/// The columns of errors.
pub(super) struct ErrorColumns<'a>(pub(super) Vec<Option<&'a JobError>>);

impl ErrorColumns<'_> {
    pub(super) fn bind(&self, query: Bound) -> Bound {
        query
            .bind(sparse_column(&self.0, |error| error.map(|e| e.kind().as_str())))
            .bind(sparse_column(&self.0, |error| error.map(JobError::message)))
            .bind(sparse_column(&self.0, |error| error.and_then(JobError::code)))
            .bind(sparse_column(&self.0, |error| error.and_then(JobError::slug)))
    }
}

/// The columns of what is decided once.
pub(super) struct BindingColumns<'a>(Vec<Option<&'a Binding>>);

impl<'a> BindingColumns<'a> {
    pub(super) fn new(binding: impl Iterator<Item = Option<&'a Binding>>) -> Self {
        Self(binding.collect())
    }

    pub(super) fn bind(&self, query: Bound) -> Bound {
        query
            .bind(sparse_column(&self.0, |binding| binding.map(|f| &*f.toolkit)))
            .bind(sparse_column(&self.0, |binding| binding.map(|f| &*f.version)))
            .bind(sparse_column(&self.0, |binding| binding.map(|f| f.pinned_by.as_str())))
            .bind(sparse_column(&self.0, |binding| binding.and_then(|f| f.account.as_deref())))
            .bind(sparse_column(&self.0, |binding| binding.map(|f| f.effect.as_str())))
    }
}
