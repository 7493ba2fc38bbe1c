//! The columns that are written: one list owns the name, the type and the value of each, for both databases.
//!
//! A new field of the envelope is a line in [`Spec`], a line in [`spec_of`], and a migration for each database.

use serde_json::value::RawValue;
use sqlx::{Postgres, Sqlite};

use super::{
    AsRead, Bind, By, Claim, Edited, Finish, JobFilter, Rejected, Repeat, Result, StoreError,
    convert::{micros, reporter, tags, to_i32, to_millis},
    history::Note,
    job_filter::Stretch,
    read::StoreRow,
    sql::{Bound, Columns, Declared, Text, column, sparse_column},
};
use crate::job::{
    self, Asked, Budget, CallbackUrl, Ending, HeldReason, JobError, JobId, JobSpec, Owner, Principal, Stop,
};

/// Makes a list. A line is `name: type = value`, where the type is PostgreSQL's. `or null` marks what most rows do
/// not have. `list` inserts another list, under its own names, or with what precedes its name as a prefix. `asked by`
/// says that the item is who asks.
macro_rules! columns {
    ($(#[$doc:meta])* $list:ident $called:literal of<$life:lifetime> $type:ty as $item:ident $(asked by ($owner:expr))? {
        $($name:ident: $kind:ident $($more:ident)* = $value:expr,)+
    }) => {
        $(#[$doc])*
        pub(in crate::store) struct $list;

        impl Columns for $list {
            type Item<$life> = $type;
            const NAME: &'static str = $called;

            fn declare(prefix: &str, declared: &mut Declared) {
                declared.list(format!("{prefix}{}", Self::NAME), |declared| {
                    $(declare!(declared, prefix, $name, $kind $($more)*);)+
                });
            }

            fn bind_rows(items: &[Self::Item<'_>], query: Bound<Postgres>) -> Bound<Postgres> {
                $(let query = bind_column!(query, items, $item, $value, $kind $($more)*);)+
                query
            }

            fn bind_postgres($item: Self::Item<'_>, query: Bound<Postgres>) -> Bound<Postgres> {
                $(let query = bind_value!(bind_postgres, postgres_value, query, $value, $kind $($more)*);)+
                query
            }

            fn bind_sqlite($item: Self::Item<'_>, query: Bound<Sqlite>) -> Bound<Sqlite> {
                $(let query = bind_value!(bind_sqlite, sqlite_value, query, $value, $kind $($more)*);)+
                query
            }

            $(fn asked_by($item: Self::Item<'_>) -> Option<&Owner> {
                $owner
            })?
        }
    };
}

macro_rules! declare {
    ($declared:ident, $prefix:ident, $name:ident, list $list:ident) => {
        <$list as Columns>::declare(
            &format!("{}{}", $prefix, stringify!($name).trim_end_matches(<$list as Columns>::NAME)),
            $declared,
        )
    };
    ($declared:ident, $prefix:ident, $name:ident, $kind:ident $($more:ident)*) => {
        $declared.column(format!("{}{}", $prefix, stringify!($name)), stringify!($kind))
    };
}

macro_rules! bind_column {
    ($query:expr, $items:ident, $item:ident, $value:expr, list $list:ident) => {
        <$list as Columns>::bind_rows(&column($items, |$item| $value), $query)
    };
    ($query:expr, $items:ident, $item:ident, $value:expr, $kind:ident or null) => {
        $query.bind(sparse_column($items, |$item| postgres_value!($value, $kind or null)))
    };
    ($query:expr, $items:ident, $item:ident, $value:expr, $kind:ident) => {
        $query.bind(column($items, |$item| postgres_value!($value, $kind)))
    };
}

macro_rules! bind_value {
    ($bind:ident, $sent:ident, $query:expr, $value:expr, list $list:ident) => {
        <$list as Columns>::$bind($value, $query)
    };
    ($bind:ident, $sent:ident, $query:expr, $value:expr, $kind:ident $($more:ident)*) => {
        $query.bind($sent!($value, $kind $($more)*))
    };
}

macro_rules! postgres_value {
    ($value:expr, timestamptz) => {
        jiff_sqlx::Timestamp::from($value)
    };
    ($value:expr, timestamptz or null) => {
        $value.map(jiff_sqlx::Timestamp::from)
    };
    ($value:expr, $kind:ident $($more:ident)*) => {
        $value
    };
}

macro_rules! sqlite_value {
    ($value:expr, timestamptz) => {
        $value.as_microsecond()
    };
    ($value:expr, timestamptz or null) => {
        $value.map(jiff::Timestamp::as_microsecond)
    };
    ($value:expr, text) => {
        Text($value)
    };
    ($value:expr, text or null) => {
        $value.map(Text)
    };
    ($value:expr, $kind:ident $($more:ident)*) => {
        $value
    };
}

mod desk;

pub(super) use self::desk::*;

columns! {
    /// What was asked for. But for the fields of an edit, it never changes.
    Spec "spec" of<'a> &'a JobSpec as spec {
        id: uuid = spec.id.0,
        digest: bytea = &spec.digest.0[..],
        owner_kind: text = spec.owner.kind().as_str(),
        owner_id: text = spec.owner.id(),
        requested_by: text or null = spec.requested_by.as_deref(),
        tool: text = &*spec.tool,
        arguments: json or null = spec.arguments.as_deref().map(RawValue::get),
        text: text or null = spec.text.as_deref(),
        version: text or null = spec.version.as_deref(),
        connected_account_id: text or null = spec.connected_account_id.as_deref(),
        queue: text = spec.queue.as_str(),
        priority: smallint = spec.priority,
        run_at: timestamptz or null = spec.run_at,
        expires_at: timestamptz or null = spec.expires_at,
        timeout_ms: bigint or null = to_millis(spec.timeout),
        max_attempts: integer or null = spec.budget.max_attempts.map(to_i32),
        max_age_ms: bigint or null = to_millis(spec.budget.max_age),
        effect: text or null = spec.effect.map(|effect| effect.as_str()),
        idempotency_key: text or null = spec.idempotency_key.as_deref(),
        tags: jsonb = tags(spec),
        reply_to: text or null = spec.reply_to.as_deref(),
        publisher: text or null = spec.publisher.as_deref(),
        correlation_id: text or null = spec.correlation_id.as_deref(),
        message_id: text or null = spec.message_id.as_deref(),
        traceparent: text or null = spec.traceparent.as_deref(),
        callback_url: text or null = spec.callback.as_ref().map(CallbackUrl::as_str),
    }
}

pub(super) fn spec_of(row: &impl StoreRow) -> Result<JobSpec> {
    Ok(JobSpec {
        id: JobId(row.read("id")?),
        is_named: true,
        digest: row.digest()?,
        owner: row.owner()?,
        requested_by: row.read("requested_by")?,
        tool: row.read("tool")?,
        arguments: row.json("arguments")?,
        text: row.read("text")?,
        version: row.read("version")?,
        connected_account_id: row.read("connected_account_id")?,
        queue: row.parse("queue")?,
        priority: row.read("priority")?,
        run_at: row.time_if_any("run_at")?,
        expires_at: row.time_if_any("expires_at")?,
        timeout: row.millis("timeout_ms")?,
        budget: budget_of(row)?,
        effect: row.effect_if_any("effect")?,
        idempotency_key: row.read("idempotency_key")?,
        tags: serde_json::from_str(&row.read::<String>("tags")?).map_err(|_| StoreError::corrupt("tags"))?,
        reply_to: row.read("reply_to")?,
        publisher: row.read("publisher")?,
        correlation_id: row.read("correlation_id")?,
        message_id: row.read("message_id")?,
        traceparent: row.read("traceparent")?,
        callback: row.parse_if_any("callback_url")?,
    })
}

pub(super) fn budget_of(row: &impl StoreRow) -> Result<Budget> {
    Ok(Budget { max_attempts: row.unsigned_if_any("max_attempts")?, max_age: row.millis("max_age_ms")? })
}

columns! {
    /// What is decided once, before anything is sent.
    Binding "binding" of<'a> Option<&'a job::Binding> as binding {
        toolkit: text or null = binding.map(|b| &*b.toolkit),
        toolkit_version: text or null = binding.map(|b| &*b.version),
        pinned_by: text or null = binding.map(|b| b.pinned_by.as_str()),
        account: text or null = binding.and_then(|b| b.account.as_deref()),
        frozen_effect: text or null = binding.map(|b| b.effect.as_str()),
    }
}

columns! {
    Error "error" of<'a> Option<&'a JobError> as error {
        error_kind: text or null = error.map(|e| e.kind().as_str()),
        error_message: text or null = error.map(JobError::message),
        error_code: bigint or null = error.and_then(JobError::code),
        error_slug: text or null = error.and_then(JobError::slug),
    }
}

columns! {
    /// By which a claim finds a known job, and what must be the same.
    Identity "identity" of<'a> &'a Claim as claim {
        id: uuid = claim.spec.id.0,
        owner_kind: text = claim.spec.owner.kind().as_str(),
        owner_id: text = claim.spec.owner.id(),
        digest: bytea = &claim.spec.digest.0[..],
        expires_at: timestamptz or null = claim.spec.expires_at,
    }
}

columns! {
    Start "start" of<'a> &'a Claim as claim {
        request_id: uuid = claim.request_id.0,
        goes_to: text = claim.goes_to().as_str(),
        held_reason: text or null = claim.stop.as_ref().and_then(Stop::held_reason).map(HeldReason::as_str),
        error: list Error = claim.stop.as_ref().map(Stop::error),
        binding: list Binding = claim.binding.as_ref(),
        waits_for: text or null = claim.stop.as_ref().and_then(Stop::waits_for),
        published_at: timestamptz or null = claim.published_at,
    }
}

columns! {
    /// A job as somebody has read it, if they have.
    AsReadColumns "as_read" of<'a> Option<&'a AsRead> as read {
        was_state: text or null = read.map(|read| read.state.as_str()),
        was_attempt: integer or null = read.map(|read| to_i32(read.attempt)),
        was_digest: bytea or null = read.map(|read| &read.digest.0[..]),
        was_first_due_at: timestamptz or null = read.and_then(|read| read.first_due_at),
        was_finished_at: timestamptz or null = read.and_then(|read| read.finished_at),
    }
}

columns! {
    /// What somebody makes of a job that waits, and by what it is known that it is as they read it.
    EditColumns "edit" of<'a> &'a Edited as edited {
        id: uuid = edited.before.id.0,
        as_read: list AsReadColumns = Some(&edited.read),
        digest: bytea = &edited.after.digest.0[..],
        run_at: timestamptz or null = edited.after.run_at,
        queue: text = edited.after.queue.as_str(),
        priority: smallint = edited.after.priority,
        expires_at: timestamptz or null = edited.after.expires_at,
        is_moved: boolean = edited.later.is_some(),
        later: boolean = edited.later == Some(true),
    }
}

columns! {
    /// By which a job is looked for that stands in the way of another.
    Name "name" of<'a> (usize, &'a JobSpec) as named {
        place: integer = i32::try_from(named.0).unwrap_or(i32::MAX),
        id: uuid = named.1.id.0,
        owner_kind: text = named.1.owner.kind().as_str(),
        owner_id: text = named.1.owner.id(),
        idempotency_key: text or null = named.1.idempotency_key.as_deref(),
    }
}

columns! {
    Decision "decision" of<'a> &'a Bind as bind {
        id: uuid = bind.id.0,
        fence: bigint = bind.fence.0,
        binding: list Binding = Some(&bind.binding),
    }
}

columns! {
    /// What the end of an attempt makes of its job. There is a lease if a rescuer reports.
    End "end" of<'a> &'a Finish as finish {
        id: uuid = finish.id.0,
        fence: bigint = finish.fence.0,
        lease: bigint or null = match finish.by {
            By::Holder | By::LookUp => None,
            By::Rescuer { lease } => Some(micros(lease)),
        },
        state: text = finish.ending.state().as_str(),
        after: bigint or null = due_after(&finish.ending),
        charge: integer = i32::from(finish.ending.spends_attempt()),
        held_reason: text or null = finish.ending.held_reason().map(HeldReason::as_str),
        error: list Error = finish.ending.error(),
        result: json or null = result_of(&finish.ending),
        check_after: bigint or null = check_after(&finish.ending),
        waits_for: text or null = finish.ending.waits_for(),
    }
}

columns! {
    Attempt "attempt" of<'a> &'a Finish as finish {
        number: integer = to_i32(finish.attempt.number),
        request_id: uuid = finish.attempt.request_id.0,
        outcome: text = finish.attempt.outcome.as_str(),
        http_status: integer or null = finish.attempt.http_status.map(i32::from),
        log_id: text or null = finish.attempt.log_id.as_deref(),
        version: text or null = finish.attempt.version.as_deref(),
        attempt_error: list Error = finish.attempt.error.as_ref(),
        started_at: timestamptz = finish.attempt.started_at,
        finished_at: timestamptz = finish.attempt.finished_at,
        reported_by: text = reporter(finish.by),
    }
}

columns! {
    Entry "entry" of<'a> &'a Note<'a> as note {
        job_id: uuid = note.job.0,
        kind: text = note.fact.parts().0.as_str(),
        by: text = note.by,
        attempt: integer or null = note.attempt.map(to_i32),
        what: text or null = note.fact.parts().1,
        detail: text or null = note.fact.parts().2,
    }
}

columns! {
    /// A message that is not a job, and how often it came with this batch.
    Rejection "rejection" of<'a> (&'a Rejected, i32) as rejected {
        id: uuid = rejected.0.id,
        queue: text = rejected.0.queue.as_str(),
        reason: text = rejected.0.reason.as_str(),
        message: text = &*rejected.0.message,
        body: bytea = &*rejected.0.body,
        properties: text = &*rejected.0.properties,
        seen: integer = rejected.1,
        job_id: uuid or null = rejected.0.job.map(|job| job.0),
    }
}

columns! {
    /// Who waits for an answer, if somebody does.
    Ask "ask" of<'a> Option<&'a Asked> as asked {
        answer_id: uuid or null = asked.map(|asked| asked.id),
        reply_to: text or null = asked.map(|asked| &*asked.reply_to),
        correlation_id: text or null = asked.and_then(|asked| asked.correlation_id.as_deref()),
        message_id: text or null = asked.and_then(|asked| asked.message_id.as_deref()),
        publisher: text or null = asked.and_then(|asked| asked.publisher.as_deref()),
        redelivered: boolean = asked.is_some_and(|asked| asked.redelivered),
    }
}

columns! {
    /// What repeats a job: its own ID if that is another one, and who waits for an answer.
    Repetition "repetition" of<'a> &'a Repeat as repeat {
        repeated: uuid = repeat.job.0,
        alias: uuid or null = (repeat.id != repeat.job).then_some(repeat.id.0),
        ask: list Ask = repeat.asked.as_ref(),
    }
}

columns! {
    /// Who asks or decides. The operator has no owner.
    PrincipalColumns "principal" of<'a> &'a Principal as principal asked by (principal.owner()) {
        principal_kind: text or null = principal.owner().map(|owner| owner.kind().as_str()),
        principal_id: text or null = principal.owner().map(Owner::id),
    }
}

columns! {
    /// Which jobs are meant; the times of their creation are in the stretch.
    Filter "filter" of<'a> &'a JobFilter as filter {
        state: text or null = filter.state.map(|state| state.as_str()),
        owner_kind: text or null = filter.owner.as_ref().map(|owner| owner.kind().as_str()),
        owner_id: text or null = filter.owner.as_ref().map(Owner::id),
        tool: text or null = filter.tool.as_deref(),
        toolkit: text or null = filter.toolkit.as_deref(),
        queue: text or null = filter.queue.as_ref().map(|queue| queue.as_str()),
        wanted_tags: text or null = wanted_tags(filter),
        error_kind: text or null = filter.error_kind.map(|kind| kind.as_str()),
        held_reason: text or null = filter.held_reason.map(|reason| reason.as_str()),
        outcome_unknown: boolean = filter.outcome_unknown,
        version: text or null = filter.version.as_deref(),
        effect: text or null = filter.effect.map(|effect| effect.as_str()),
        batch: uuid or null = filter.batch.map(|batch| batch.0),
    }
}

columns! {
    StretchColumns "stretch" of<'a> &'a Stretch as stretch {
        before_at: bigint = stretch.before.at,
        before_id: uuid = stretch.before.id,
        end_at: bigint = stretch.end.at,
        end_id: uuid = stretch.end.id,
    }
}

/// The lists that every statement may name.
pub(super) fn common_lists() -> Declared {
    let mut declared = Declared::default();
    Spec::declare("", &mut declared);
    Binding::declare("", &mut declared);
    Error::declare("", &mut declared);
    declared
}

/// The tags that a job must have, if there are any.
fn wanted_tags(filter: &JobFilter) -> Option<String> {
    let encode = || {
        serde_json::to_string(&filter.tags)
            .unwrap_or_else(|error| unreachable!("a map of strings always encodes: {error}"))
    };
    (!filter.tags.is_empty()).then(encode)
}

fn due_after(ending: &Ending) -> Option<i64> {
    match ending {
        Ending::Retry { after, .. } | Ending::Snooze { after, .. } => Some(micros(*after)),
        Ending::Succeed { .. } | Ending::Stop(_) | Ending::Verify { .. } => None,
    }
}

fn check_after(ending: &Ending) -> Option<i64> {
    match ending {
        Ending::Verify { after, .. } => Some(micros(*after)),
        Ending::Succeed { .. } | Ending::Stop(_) | Ending::Retry { .. } | Ending::Snooze { .. } => None,
    }
}

fn result_of(ending: &Ending) -> Option<&str> {
    match ending {
        Ending::Succeed { result } => Some(result.get()),
        Ending::Stop(_) | Ending::Retry { .. } | Ending::Snooze { .. } | Ending::Verify { .. } => None,
    }
}
