//! What an operator asks about a job beside what its app is told.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::Around;
use crate::{
    job::{Effect, RequestId, WorkerId},
    store::JobView,
};

/// What an operator asks about a job, and an app need not know.
#[derive(Serialize, ToSchema)]
pub(super) struct MoreJson<'a> {
    /// When the last attempt was claimed.
    started_at: Option<Timestamp>,
    run_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    timeout_ms: Option<u64>,
    max_attempts: Option<u32>,
    max_age_ms: Option<u64>,
    priority: i16,
    tags: &'a BTreeMap<String, String>,
    /// What it is bound to.
    effect: Option<Effect>,
    asked_effect: Option<Effect>,
    asked_version: Option<&'a str>,
    asked_connected_account_id: Option<&'a str>,
    idempotency_key: Option<&'a str>,
    worker: Option<WorkerJson<'a>>,
    /// How many attempts there were.
    attempt: u32,
    /// How many of them use up the budget.
    spent: u32,
    /// How often the relay has offered it to the broker since it became due, and nobody claimed it.
    publications: u32,
    /// While the job waits to run: since when nothing is taken from its queue, if that is so.
    queue_paused_since: Option<Timestamp>,
    /// Whether it was called off while it ran.
    cancel_requested: bool,
    /// The last call.
    request_id: Option<RequestId>,
    /// When its call is looked up in the tool API's log.
    check_at: Option<Timestamp>,
    checks: u32,
    unknown_since: Option<Timestamp>,
    reply_to: Option<&'a str>,
    publisher: Option<&'a str>,
    correlation_id: Option<&'a str>,
    message_id: Option<&'a str>,
    traceparent: Option<&'a str>,
    /// Where its events are sent.
    callback: Option<CallbackJson<'a>>,
}

/// Where events are sent.
#[derive(Serialize, ToSchema)]
#[schema(as = CallbackTo)]
struct CallbackJson<'a> {
    url: &'a str,
}

/// The worker that runs a job, or else the last that ended an attempt of it.
#[derive(Serialize, ToSchema)]
#[schema(as = Worker)]
struct WorkerJson<'a> {
    id: WorkerId,
    /// As long as that worker is known.
    name: Option<&'a str>,
}

pub(super) fn more<'a>(job: &'a JobView, around: Around<'a>) -> MoreJson<'a> {
    let spec = &*job.spec;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    MoreJson {
        started_at: job.started_at,
        run_at: spec.run_at,
        expires_at: spec.expires_at,
        timeout_ms: spec.timeout.map(millis),
        max_attempts: spec.budget.max_attempts,
        max_age_ms: spec.budget.max_age.map(millis),
        priority: spec.priority,
        tags: &spec.tags,
        effect: job.binding.as_ref().map(|binding| binding.effect),
        asked_effect: spec.effect,
        asked_version: spec.version.as_deref(),
        asked_connected_account_id: spec.connected_account_id.as_deref(),
        idempotency_key: spec.idempotency_key.as_deref(),
        worker: job.worker.map(|id| WorkerJson { id, name: around.worker_name }),
        attempt: job.attempt,
        spent: job.spent,
        publications: job.publications,
        queue_paused_since: around.queue_paused_since,
        cancel_requested: job.cancel_requested,
        request_id: job.request_id,
        check_at: job.check_at,
        checks: job.checks,
        unknown_since: job.unknown_since,
        reply_to: spec.reply_to.as_deref(),
        publisher: spec.publisher.as_deref(),
        correlation_id: spec.correlation_id.as_deref(),
        message_id: spec.message_id.as_deref(),
        traceparent: spec.traceparent.as_deref(),
        callback: spec.callback.as_ref().map(|url| CallbackJson { url: url.as_str() }),
    }
}
