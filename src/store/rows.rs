//! What rows mean, whichever database they come from.

use std::sync::Arc;

use uuid::Uuid;

use super::{
    About, Answer, AttemptView, Awaited, Check, ClaimReceipt, Glance, HistoryEntry, HistoryFact, HistoryKind,
    JobView, LostJob, Rejected, RejectedView, Result, SeenJob,
    columns::{budget_of, spec_of},
    job_filter::place_of,
    read::StoreRow,
    replay::{FoundJob, RecordedAttempt, Standing},
    texts::GLOBAL,
};
use crate::job::{
    Asked, BatchId, Binding, ErrorKind, Fence, JobError, JobId, Pin, ReplyKind, RequestId, WorkerId,
};

/// Since when a waiting job is due. A row of a build that did not note it has its next time only.
pub(super) const FIRST_DUE: &str = "coalesce(first_due_at, due_at)";

/// All columns of a job that people and apps read, but for `result`.
pub(super) const JOB: &str = "{read spec}, {beside_spec}";

/// The same without what the job was given, which callbacks do not tell.
pub(super) const CALLED_JOB: &str = "{read spec but arguments, text}, {beside_spec}";

/// What is read of a job beside what was asked for.
pub(super) const BESIDE_SPEC: &str =
    "{binding}, state, created_at, due_at, first_due_at, check_at, unknown_since, checks,
    request_id, attempt, spent, started_at, published, waits_for, coalesce(worker_id, ran_by) as ran_by,
    cancel_requested, held_reason, {error}, log_id, finished_at, batch_id, asked_digest";

/// A job with the columns [`JOB`] and `result`.
pub(super) fn job(row: &impl StoreRow) -> Result<JobView> {
    Ok(JobView {
        spec: Arc::new(spec_of(row)?),
        asked: row.digest_if_any("asked_digest")?,
        state: row.parse("state")?,
        held_reason: row.word_if_any("held_reason")?,
        binding: binding(row)?,
        created_at: row.time("created_at")?,
        due_at: row.time_if_any("due_at")?,
        first_due_at: row.time_if_any("first_due_at")?,
        check_at: row.time_if_any("check_at")?,
        unknown_since: row.time_if_any("unknown_since")?,
        checks: row.count("checks")?,
        request_id: row.read::<Option<_>>("request_id")?.map(RequestId),
        started_at: row.time_if_any("started_at")?,
        finished_at: row.time_if_any("finished_at")?,
        result: row.json("result")?,
        error: error(row)?,
        log_id: row.read("log_id")?,
        batch: row.read::<Option<_>>("batch_id")?.map(BatchId),
        attempt: row.count("attempt")?,
        spent: row.count("spent")?,
        cancel_requested: row.read("cancel_requested")?,
        publications: row.count("published")?,
        waits_for: row.read("waits_for")?,
        worker: row.read::<Option<_>>("ran_by")?.map(WorkerId),
    })
}

pub(super) fn glance(row: &impl StoreRow) -> Result<Glance> {
    let id = JobId(row.read("id")?);
    Ok(Glance {
        id,
        place: place_of(row)?,
        state: row.parse("state")?,
        held_reason: row.word_if_any("held_reason")?,
        owner: row.owner()?,
        queue: row.parse("queue")?,
        tool: row.read("tool")?,
        version: row.read("toolkit_version")?,
        effect: row.effect_if_any("effect")?,
        error_kind: row.word_if_any("error_kind")?,
        finished_for: row.span_if_any("finished_for")?,
        seen: SeenJob { id, finished_at: row.read("finished_micros")? },
        last_outcome: row.word_if_any("last_outcome")?,
        may_have_acted: row.read("may_have_acted")?,
    })
}

pub(super) fn binding(row: &impl StoreRow) -> Result<Option<Binding>> {
    let (toolkit, version): (Option<String>, Option<String>) =
        (row.read("toolkit")?, row.read("toolkit_version")?);
    let (Some(toolkit), Some(version), Some(pinned_by), Some(effect)) =
        (toolkit, version, row.word_if_any("pinned_by")?, row.effect_if_any("frozen_effect")?)
    else {
        return Ok(None);
    };
    Ok(Some(Binding { toolkit, version, pinned_by, account: row.read("account")?, effect }))
}

fn error(row: &impl StoreRow) -> Result<Option<JobError>> {
    let (kind, message): (Option<ErrorKind>, Option<String>) =
        (row.word_if_any("error_kind")?, row.read("error_message")?);
    let (Some(kind), Some(message)) = (kind, message) else { return Ok(None) };
    Ok(Some(JobError::new(kind, message).with_code(row.read("error_code")?, row.read("error_slug")?)))
}

pub(super) fn attempt(row: &impl StoreRow) -> Result<AttemptView> {
    Ok(AttemptView {
        number: row.count("number")?,
        times: row.count("times")?,
        request_id: RequestId(row.read("request_id")?),
        outcome: row.word_if_any("outcome")?,
        http_status: row.unsigned_if_any("http_status")?,
        log_id: row.read("log_id")?,
        version: row.read("version")?,
        error: error(row)?,
        started_at: row.time("started_at")?,
        finished_at: row.time_if_any("finished_at")?,
    })
}

pub(super) fn standing(row: &impl StoreRow) -> Result<Standing> {
    Ok(Standing {
        state: row.read::<String>("state")?.parse().ok(),
        fence: Fence(row.read("fence")?),
        is_looked_up: row.read("is_looked_up")?,
    })
}

pub(super) fn recorded(row: &impl StoreRow) -> Result<RecordedAttempt> {
    Ok(RecordedAttempt {
        request_id: RequestId(row.read("request_id")?),
        outcome: row.word("outcome")?,
        reported_by: row.read("reported_by")?,
        ended_as: row.read::<Option<String>>("ended_as")?.and_then(|state| state.parse().ok()),
        late: row.read("late")?,
        charged: row.read("charged")?,
    })
}

pub(super) fn found(row: &impl StoreRow, by_key: bool) -> Result<FoundJob> {
    Ok(FoundJob {
        by_key,
        id: JobId(row.read("id")?),
        identity: row.owner().ok().zip(row.digest().ok()),
        asked: row.digest_if_any("asked_digest")?,
        state: row.read::<String>("state")?.parse().ok(),
        error_kind: row.word_if_any("error_kind")?,
        worker_id: row.read("worker_id")?,
        request_id: row.read("request_id")?,
        ended_by: row.read("ended_by")?,
        reply_to: row.read("reply_to")?,
        correlation_id: row.read("correlation_id")?,
        message_id: row.read("message_id")?,
        receipt: receipt(row)?,
    })
}

pub(super) fn receipt(row: &impl StoreRow) -> Result<ClaimReceipt> {
    Ok(ClaimReceipt {
        fence: Fence(row.read("fence")?),
        attempt: row.count("attempt")?,
        spent: row.count("spent")?,
        binding: binding(row)?,
        created_at: row.time("created_at")?,
        first_due_at: row.time_if_any("first_due_at")?,
        age: row.span("age")?,
        postponed_for: row.span_if_any("postponed_for")?,
    })
}

pub(super) fn lost(row: &impl StoreRow) -> Result<LostJob> {
    Ok(LostJob {
        id: JobId(row.read("id")?),
        request_id: RequestId(row.read("request_id")?),
        started_at: row.time("started_at")?,
        budget: budget_of(row)?,
        receipt: receipt(row)?,
    })
}

pub(super) fn check(row: &impl StoreRow) -> Result<Check> {
    Ok(Check {
        job: job(row)?,
        fence: Fence(row.read("fence")?),
        request_id: RequestId(row.read("request_id")?),
        checks: row.count("checks")?,
        unknown_for: row.span("unknown_for")?,
        age: row.span("age")?,
    })
}

pub(super) fn entry(row: &impl StoreRow) -> Result<HistoryEntry> {
    let fact = match row.parse("kind")? {
        HistoryKind::Unknown => HistoryFact::Unknown,
        HistoryKind::LookedUp => {
            HistoryFact::LookedUp { found: row.parse("what")?, detail: row.read("detail")? }
        }
        HistoryKind::Adopted => HistoryFact::Adopted { outcome: row.word("what")? },
        HistoryKind::Held => HistoryFact::Held { reason: row.word("what")? },
        HistoryKind::Released => HistoryFact::Released { how: row.parse("what")? },
        HistoryKind::Cancelled => HistoryFact::Cancelled,
        HistoryKind::Retried => HistoryFact::Retried,
        HistoryKind::AccountForgotten => HistoryFact::AccountForgotten { account: row.read("detail")? },
        HistoryKind::Edited => HistoryFact::Edited { changes: row.read("detail")? },
    };
    let attempt = row.unsigned_if_any("attempt")?;
    Ok(HistoryEntry { at: row.time("at")?, by: row.read("by")?, attempt, fact })
}

pub(super) fn awaited(row: &impl StoreRow) -> Result<Awaited> {
    let account: String = row.read("account")?;
    Ok(Awaited {
        owner: row.owner()?,
        toolkit: row.read("toolkit")?,
        account: (!account.is_empty()).then_some(account),
        doubted: row.read("doubted")?,
        lookups: row.count("lookups")?,
        id: row.read("id")?,
        parked: row.read("parked")?,
        due_since: row.time("due_since")?,
    })
}

pub(super) fn pin(row: &impl StoreRow) -> Result<Pin> {
    let owner = if row.read::<String>("owner_kind")? == GLOBAL { None } else { Some(row.owner()?) };
    Ok(Pin { owner, toolkit: row.read("toolkit")?, version: row.read("version")? })
}

pub(super) fn rejected(row: &impl StoreRow) -> Result<RejectedView> {
    Ok(RejectedView {
        message: Rejected {
            id: row.read("id")?,
            queue: row.parse("queue")?,
            reason: row.word("reason")?,
            message: row.read("message")?,
            body: row.read("body")?,
            properties: row.read("properties")?,
            job: row.read::<Option<_>>("job_id")?.map(JobId),
            asked: None,
        },
        size: row.total("size")?,
        seen: row.count("seen")?,
        received_at: row.time("received_at")?,
        requeued_at: row.time_if_any("requeued_at")?,
        requeued_by: row.read("requeued_by")?,
        corrected: row.read("corrected")?,
    })
}

/// An answer with the columns that `take` of the answers returns.
pub(super) fn answer(row: &impl StoreRow) -> Result<Answer> {
    let kind = row.parse("answer_kind")?;
    let about = match kind {
        ReplyKind::Rejected => match row.read::<Option<String>>("rejected_message")? {
            Some(message) => About::Message {
                id: row.read("answer_rejected_id")?,
                job: row.read::<Option<_>>("rejected_job")?.map(JobId),
                reason: row.word("rejected_reason")?,
                message,
            },
            None => About::Nothing,
        },
        ReplyKind::Final | ReplyKind::Held | ReplyKind::Duplicate => match row.read::<Option<Uuid>>("id")? {
            Some(_) => About::Job(Box::new(job(row)?)),
            None => About::Nothing,
        },
    };
    let asked = Asked {
        id: row.read("answer_id")?,
        reply_to: row.read("answer_reply_to")?,
        correlation_id: row.read("answer_correlation_id")?,
        message_id: row.read("answer_message_id")?,
        publisher: row.read("answer_publisher")?,
        redelivered: false,
    };
    Ok(Answer { asked, kind, about })
}
