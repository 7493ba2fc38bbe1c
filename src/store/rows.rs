//! Rows as both backends read them, before they become domain types.

use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    AttemptView, JobView, Rejected, RejectedView, StoreError,
    convert::{budget, digest, json, millis, owner_of, parse_column, read_count},
    texts::GLOBAL,
};
use crate::job::{Binding, ErrorKind, JobError, JobId, JobSpec, Pin, RequestId};

/// All columns of a job.
pub(super) struct JobRow {
    pub(super) id: Uuid,
    pub(super) digest: Vec<u8>,
    pub(super) owner_kind: String,
    pub(super) owner_id: String,
    pub(super) requested_by: Option<String>,
    pub(super) tool: String,
    pub(super) arguments: Option<String>,
    pub(super) text: Option<String>,
    pub(super) version: Option<String>,
    pub(super) connected_account_id: Option<String>,
    pub(super) queue: String,
    pub(super) priority: i16,
    pub(super) run_at: Option<Timestamp>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) timeout_ms: Option<i64>,
    pub(super) max_attempts: Option<i32>,
    pub(super) max_age_ms: Option<i64>,
    pub(super) effect: Option<String>,
    pub(super) idempotency_key: Option<String>,
    pub(super) tags: String,
    pub(super) reply_to: Option<String>,
    pub(super) correlation_id: Option<String>,
    pub(super) traceparent: Option<String>,
    pub(super) binding: BindingRow,
    pub(super) state: String,
    pub(super) created_at: Timestamp,
    pub(super) due_at: Option<Timestamp>,
    pub(super) check_at: Option<Timestamp>,
    pub(super) attempt: i32,
    pub(super) spent: i32,
    pub(super) started_at: Option<Timestamp>,
    pub(super) cancel_requested: bool,
    pub(super) held_reason: Option<String>,
    pub(super) error: ErrorRow,
    pub(super) result: Option<String>,
    pub(super) log_id: Option<String>,
    pub(super) finished_at: Option<Timestamp>,
}

/// The columns of what is decided once.
pub(super) struct BindingRow {
    pub(super) toolkit: Option<String>,
    pub(super) version: Option<String>,
    pub(super) pinned_by: Option<String>,
    pub(super) account: Option<String>,
    pub(super) effect: Option<String>,
}

/// The columns of an error.
pub(super) struct ErrorRow {
    pub(super) kind: Option<String>,
    pub(super) message: Option<String>,
    pub(super) code: Option<i64>,
    pub(super) slug: Option<String>,
}

/// The columns of an attempt that people read.
pub(super) struct AttemptRow {
    pub(super) number: i32,
    pub(super) request_id: Uuid,
    pub(super) outcome: Option<String>,
    pub(super) http_status: Option<i32>,
    pub(super) log_id: Option<String>,
    pub(super) version: Option<String>,
    pub(super) error: ErrorRow,
    pub(super) started_at: Timestamp,
    pub(super) finished_at: Option<Timestamp>,
}

/// The columns of a pin.
pub(super) struct PinColumns {
    pub(super) owner_kind: String,
    pub(super) owner_id: String,
    pub(super) toolkit: String,
    pub(super) version: String,
}

/// The columns of a rejected message.
pub(super) struct RejectedRow {
    pub(super) id: Uuid,
    pub(super) queue: String,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) body: Vec<u8>,
    pub(super) properties: String,
    pub(super) size: i64,
    pub(super) seen: i32,
    pub(super) received_at: Timestamp,
    pub(super) requeued_at: Option<Timestamp>,
}

impl JobRow {
    /// The job as people read it.
    pub(super) fn view(self) -> Result<JobView, StoreError> {
        let spec = JobSpec {
            id: JobId(self.id),
            owner: owner_of(&self.owner_kind, self.owner_id)?,
            requested_by: self.requested_by,
            tool: self.tool,
            arguments: self.arguments.map(|text| json("arguments", text)).transpose()?,
            text: self.text,
            version: self.version,
            connected_account_id: self.connected_account_id,
            queue: parse_column("queue", &self.queue)?,
            priority: self.priority,
            run_at: self.run_at,
            expires_at: self.expires_at,
            timeout: millis("timeout_ms", self.timeout_ms)?,
            budget: budget(self.max_attempts, self.max_age_ms)?,
            effect: self.effect.map(|effect| parse_column("effect", &effect)).transpose()?,
            idempotency_key: self.idempotency_key,
            tags: serde_json::from_str(&self.tags).map_err(|_| StoreError::corrupt("tags"))?,
            reply_to: self.reply_to,
            correlation_id: self.correlation_id,
            traceparent: self.traceparent,
            digest: digest(&self.digest)?,
        };
        Ok(JobView {
            spec: Arc::new(spec),
            state: parse_column("state", &self.state)?,
            held_reason: self.held_reason.map(|reason| parse_column("held_reason", &reason)).transpose()?,
            binding: self.binding.binding()?,
            created_at: self.created_at,
            due_at: self.due_at,
            check_at: self.check_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            result: self.result.map(|text| json("result", text)).transpose()?,
            error: self.error.error()?,
            log_id: self.log_id,
            attempt: read_count("attempt", self.attempt)?,
            spent: read_count("spent", self.spent)?,
            cancel_requested: self.cancel_requested,
        })
    }
}

impl BindingRow {
    /// The decision, if it was made.
    pub(super) fn binding(self) -> Result<Option<Binding>, StoreError> {
        let (Some(toolkit), Some(version), Some(pinned_by), Some(effect)) =
            (self.toolkit, self.version, self.pinned_by, self.effect)
        else {
            return Ok(None);
        };
        Ok(Some(Binding {
            toolkit,
            version,
            pinned_by: parse_column("pinned_by", &pinned_by)?,
            account: self.account,
            effect: parse_column("frozen_effect", &effect)?,
        }))
    }
}

impl ErrorRow {
    /// The error, if there is one.
    pub(super) fn error(self) -> Result<Option<JobError>, StoreError> {
        let (Some(kind), Some(message)) = (self.kind, self.message) else { return Ok(None) };
        let kind: ErrorKind = parse_column("error_kind", &kind)?;
        Ok(Some(JobError::new(kind, message).with_code(self.code, self.slug)))
    }
}

impl AttemptRow {
    /// The attempt as people read it.
    pub(super) fn view(self) -> Result<AttemptView, StoreError> {
        Ok(AttemptView {
            number: read_count("number", self.number)?,
            request_id: RequestId(self.request_id),
            outcome: self.outcome.map(|outcome| parse_column("outcome", &outcome)).transpose()?,
            http_status: self
                .http_status
                .map(|status| u16::try_from(status).map_err(|_| StoreError::corrupt("http_status")))
                .transpose()?,
            log_id: self.log_id,
            version: self.version,
            error: self.error.error()?,
            started_at: self.started_at,
            finished_at: self.finished_at,
        })
    }
}

impl PinColumns {
    /// The pin.
    pub(super) fn pin(self) -> Result<Pin, StoreError> {
        let owner =
            if self.owner_kind == GLOBAL { None } else { Some(owner_of(&self.owner_kind, self.owner_id)?) };
        Ok(Pin { owner, toolkit: self.toolkit, version: self.version })
    }
}

impl RejectedRow {
    /// The message as people read it.
    pub(super) fn view(self) -> Result<RejectedView, StoreError> {
        Ok(RejectedView {
            message: Rejected {
                id: self.id,
                queue: parse_column("queue", &self.queue)?,
                reason: parse_column("reason", &self.reason)?,
                message: self.message,
                body: self.body,
                properties: self.properties,
            },
            size: u64::try_from(self.size).map_err(|_| StoreError::corrupt("body"))?,
            seen: read_count("seen", self.seen)?,
            received_at: self.received_at,
            requeued_at: self.requeued_at,
        })
    }
}
/// Reads the columns of a job from a row of either backend; `$time` reads an optional instant.
macro_rules! read_job {
    ($row:expr, $time:path) => {{
        let row = $row;
        $crate::store::rows::JobRow {
            id: row.try_get("id")?,
            digest: row.try_get("digest")?,
            owner_kind: row.try_get("owner_kind")?,
            owner_id: row.try_get("owner_id")?,
            requested_by: row.try_get("requested_by")?,
            tool: row.try_get("tool")?,
            arguments: row.try_get("arguments")?,
            text: row.try_get("text")?,
            version: row.try_get("version")?,
            connected_account_id: row.try_get("connected_account_id")?,
            queue: row.try_get("queue")?,
            priority: row.try_get("priority")?,
            run_at: $time(row, "run_at")?,
            expires_at: $time(row, "expires_at")?,
            timeout_ms: row.try_get("timeout_ms")?,
            max_attempts: row.try_get("max_attempts")?,
            max_age_ms: row.try_get("max_age_ms")?,
            effect: row.try_get("effect")?,
            idempotency_key: row.try_get("idempotency_key")?,
            tags: row.try_get("tags")?,
            reply_to: row.try_get("reply_to")?,
            correlation_id: row.try_get("correlation_id")?,
            traceparent: row.try_get("traceparent")?,
            binding: $crate::store::rows::read_binding!(row),
            state: row.try_get("state")?,
            created_at: $time(row, "created_at")?.unwrap_or_default(),
            due_at: $time(row, "due_at")?,
            check_at: $time(row, "check_at")?,
            attempt: row.try_get("attempt")?,
            spent: row.try_get("spent")?,
            started_at: $time(row, "started_at")?,
            cancel_requested: row.try_get("cancel_requested")?,
            held_reason: row.try_get("held_reason")?,
            error: $crate::store::rows::read_error!(row),
            result: row.try_get("result")?,
            log_id: row.try_get("log_id")?,
            finished_at: $time(row, "finished_at")?,
        }
    }};
}

/// Reads the columns of what is decided once.
macro_rules! read_binding {
    ($row:expr) => {
        $crate::store::rows::BindingRow {
            toolkit: $row.try_get("toolkit")?,
            version: $row.try_get("toolkit_version")?,
            pinned_by: $row.try_get("pinned_by")?,
            account: $row.try_get("account")?,
            effect: $row.try_get("frozen_effect")?,
        }
    };
}

/// Reads the columns of an error.
macro_rules! read_error {
    ($row:expr) => {
        $crate::store::rows::ErrorRow {
            kind: $row.try_get("error_kind")?,
            message: $row.try_get("error_message")?,
            code: $row.try_get("error_code")?,
            slug: $row.try_get("error_slug")?,
        }
    };
}

/// Reads the columns of an attempt.
macro_rules! read_attempt {
    ($row:expr, $time:path) => {{
        let row = $row;
        $crate::store::rows::AttemptRow {
            number: row.try_get("number")?,
            request_id: row.try_get("request_id")?,
            outcome: row.try_get("outcome")?,
            http_status: row.try_get("http_status")?,
            log_id: row.try_get("log_id")?,
            version: row.try_get("version")?,
            error: $crate::store::rows::read_error!(row),
            started_at: $time(row, "started_at")?.unwrap_or_default(),
            finished_at: $time(row, "finished_at")?,
        }
    }};
}

/// Reads the record of an attempt that a finish meets.
macro_rules! read_record {
    ($row:expr) => {{
        let row = $row;
        let outcome: String = row.try_get("outcome")?;
        let ended_as: Option<String> = row.try_get("ended_as")?;
        $crate::store::replay::Record {
            request_id: $crate::job::RequestId(row.try_get("request_id")?),
            outcome: $crate::store::convert::parse_column("outcome", &outcome)?,
            reported_by: row.try_get("reported_by")?,
            ended_as: ended_as
                .map(|state| $crate::store::convert::parse_column("ended_as", &state))
                .transpose()?,
            late: row.try_get("late")?,
            charged: row.try_get("charged")?,
        }
    }};
}

/// Reads a known job that stands in the way; `$age` is its age in microseconds.
macro_rules! read_known {
    ($row:expr, $time:path, $by_key:expr, $age:expr) => {{
        let row = $row;
        let (owner_kind, owner_id): (String, String) = (row.try_get("owner_kind")?, row.try_get("owner_id")?);
        let (digest, state): (Vec<u8>, String) = (row.try_get("digest")?, row.try_get("state")?);
        let error_kind: Option<String> = row.try_get("error_kind")?;
        $crate::store::replay::Known {
            by_key: $by_key,
            id: $crate::job::JobId(row.try_get("id")?),
            owner: $crate::store::convert::owner_of(&owner_kind, owner_id)?,
            digest: $crate::store::convert::digest(&digest)?,
            state: $crate::store::convert::parse_column("state", &state)?,
            error_kind: error_kind
                .map(|kind| $crate::store::convert::parse_column("error_kind", &kind))
                .transpose()?,
            worker_id: row.try_get("worker_id")?,
            request_id: row.try_get("request_id")?,
            settled_by: row.try_get("settled_by")?,
            receipt: $crate::store::rows::read_receipt!(row, $time, $age),
        }
    }};
}

/// Reads what the holder of a claim knows.
macro_rules! read_receipt {
    ($row:expr, $time:path, $age:expr) => {
        $crate::store::ClaimReceipt {
            fence: $crate::job::Fence($row.try_get("fence")?),
            attempt: $crate::store::convert::read_count("attempt", $row.try_get("attempt")?)?,
            spent: $crate::store::convert::read_count("spent", $row.try_get("spent")?)?,
            binding: $crate::store::rows::read_binding!($row).binding()?,
            created_at: $time($row, "created_at")?.unwrap_or_default(),
            age: $crate::store::convert::to_duration($age),
        }
    };
}

/// Reads a job of a lost worker.
macro_rules! read_lost {
    ($row:expr, $time:path, $age:expr) => {{
        let row = $row;
        let receipt = $crate::store::rows::read_receipt!(row, $time, $age);
        $crate::store::LostJob {
            id: $crate::job::JobId(row.try_get("id")?),
            fence: receipt.fence,
            attempt: receipt.attempt,
            spent: receipt.spent,
            request_id: $crate::job::RequestId(row.try_get("request_id")?),
            started_at: $time(row, "started_at")?.unwrap_or_default(),
            binding: receipt.binding,
            budget: $crate::store::convert::budget(row.try_get("max_attempts")?, row.try_get("max_age_ms")?)?,
            age: receipt.age,
        }
    }};
}

/// Reads a rejected message.
macro_rules! read_rejected {
    ($row:expr, $time:path) => {{
        let row = $row;
        $crate::store::rows::RejectedRow {
            id: row.try_get("id")?,
            queue: row.try_get("queue")?,
            reason: row.try_get("reason")?,
            message: row.try_get("message")?,
            body: row.try_get("body")?,
            properties: row.try_get("properties")?,
            size: row.try_get("size")?,
            seen: row.try_get("seen")?,
            received_at: $time(row, "received_at")?.unwrap_or_default(),
            requeued_at: $time(row, "requeued_at")?,
        }
    }};
}

pub(super) use {
    read_attempt, read_binding, read_error, read_job, read_known, read_lost, read_receipt, read_record,
    read_rejected,
};
