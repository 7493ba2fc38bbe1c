//! The columns of a row as they are bound.

use sqlx::{Sqlite, query::Query, sqlite::SqliteArguments};

use super::{instant, refuse_nul};
use crate::{
    job::{Binding, JobError, JobSpec},
    store::{
        StoreError,
        convert::{tags, to_i32, to_millis},
    },
};

/// The columns of what was asked for, bound by [`bind_spec`].
macro_rules! spec_columns {
    () => {
        "id, digest, owner_kind, owner_id, requested_by, tool, arguments, text, version, \
         connected_account_id, queue, priority, run_at, expires_at, timeout_ms, max_attempts, max_age_ms, \
         effect, idempotency_key, tags, reply_to, correlation_id, traceparent"
    };
}

macro_rules! spec_values {
    () => {
        "?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23"
    };
}

pub(super) use {spec_columns, spec_values};

pub(super) type Bound = Query<'static, Sqlite, SqliteArguments>;

pub(super) fn bind_spec(query: Bound, spec: &JobSpec) -> Result<Bound, StoreError> {
    let tags = tags(spec);
    refuse_nul([
        spec.requested_by.as_deref(),
        Some(&*spec.tool),
        spec.text.as_deref(),
        spec.version.as_deref(),
        spec.connected_account_id.as_deref(),
        spec.idempotency_key.as_deref(),
        spec.reply_to.as_deref(),
        spec.correlation_id.as_deref(),
        spec.traceparent.as_deref(),
    ])?;
    Ok(query
        .bind(spec.id.0)
        .bind(&spec.digest.0[..])
        .bind(spec.owner.kind().as_str())
        .bind(spec.owner.id())
        .bind(spec.requested_by.as_deref())
        .bind(&*spec.tool)
        .bind(spec.arguments.as_deref().map(|raw| raw.get()))
        .bind(spec.text.as_deref())
        .bind(spec.version.as_deref())
        .bind(spec.connected_account_id.as_deref())
        .bind(spec.queue.as_str())
        .bind(spec.priority)
        .bind(spec.run_at.map(instant))
        .bind(spec.expires_at.map(instant))
        .bind(to_millis(spec.timeout))
        .bind(spec.budget.max_attempts.map(to_i32))
        .bind(to_millis(spec.budget.max_age))
        .bind(spec.effect.map(|effect| effect.as_str()))
        .bind(spec.idempotency_key.as_deref())
        .bind(tags)
        .bind(spec.reply_to.as_deref())
        .bind(spec.correlation_id.as_deref())
        .bind(spec.traceparent.as_deref()))
}

pub(super) fn bind_error(query: Bound, error: Option<&JobError>) -> Result<Bound, StoreError> {
    refuse_nul([error.map(JobError::message), error.and_then(JobError::slug)])?;
    Ok(query
        .bind(error.map(|e| e.kind().as_str()))
        .bind(error.map(JobError::message))
        .bind(error.and_then(JobError::code))
        .bind(error.and_then(JobError::slug)))
}

pub(super) fn bind_binding(query: Bound, binding: Option<&Binding>) -> Result<Bound, StoreError> {
    let account = binding.and_then(|f| f.account.as_deref());
    refuse_nul([binding.map(|f| &*f.toolkit), binding.map(|f| &*f.version), account])?;
    Ok(query
        .bind(binding.map(|f| &*f.toolkit))
        .bind(binding.map(|f| &*f.version))
        .bind(binding.map(|f| f.pinned_by.as_str()))
        .bind(account)
        .bind(binding.map(|f| f.effect.as_str())))
}
