//! One job as it is told.

use std::time::Duration;

use axum::{
    Json,
    http::header,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{
    problem::{Kind, Problem},
    shared::Shared,
    waiters::{Subject, not_yet},
};
use crate::{
    job::{JobId, Principal},
    job_json::{Fields, KnownJob},
    store::JobView,
};

/// So many bytes tell the forms of one job apart.
const ETAG_BYTES: usize = 16;

/// A job that is told.
pub(super) struct Known {
    is_final: bool,
    etag: String,
    json: Box<RawValue>,
}

impl IntoResponse for Known {
    fn into_response(self) -> Response {
        ([(header::ETAG, self.etag)], Json(self.json)).into_response()
    }
}

/// Says whether a job is as it was read: what it is to do, when and where, its state, how often it was claimed, since when it is
/// due, and when it ended.
pub(super) fn etag(job: &JobView) -> String {
    let JobView { spec, state, attempt, cancel_requested, first_due_at, finished_at, .. } = job;
    let mut hash = Sha256::new();
    hash.update(spec.digest.0);
    hash.update(format!("{state} {attempt} {cancel_requested} {first_due_at:?} {finished_at:?}"));
    let hex: String = hash.finalize()[..ETAG_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

/// The answer to who waits: 200 with a final job, else 202.
pub(super) async fn waited_for(
    shared: &Shared,
    reader: &Principal,
    id: JobId,
    fields: Fields,
    wait: Duration,
) -> Result<Response, Problem> {
    let until = Instant::now() + wait;
    let store = &shared.parts.store;
    // What reads a job is not carried along by those who wait, of whom there may be ten thousand. Of a job that ends later
    // nothing else is read before, and by another ID of it, it is waited for by its own.
    let waits_for = async {
        let job = KnownJob::look(store, reader, id).await?.ok_or_else(Problem::no_job)?;
        Ok::<_, Problem>((job.spec.id, job.state.is_final()))
    };
    let (id, is_final) = Box::pin(waits_for).await?;
    if !is_final {
        shared.waiters.wait(Subject::Job(id), until).await;
    }
    let job = Box::pin(known(shared, reader, id, fields)).await?;
    if job.is_final {
        return Ok(job.into_response());
    }
    Ok(not_yet(job))
}

pub(super) async fn known(
    shared: &Shared,
    reader: &Principal,
    id: JobId,
    fields: Fields,
) -> Result<Known, Problem> {
    told(&find(shared, reader, id).await?, fields)
}

pub(super) fn told(known: &KnownJob, fields: Fields) -> Result<Known, Problem> {
    let json = shown(&known.json(fields))?;
    let KnownJob { job, .. } = known;
    Ok(Known { is_final: job.state.is_final(), etag: etag(job), json })
}

/// The job with this ID, or the one that was sent under it once more.
pub(super) async fn find(shared: &Shared, reader: &Principal, id: JobId) -> Result<KnownJob, Problem> {
    KnownJob::find(&shared.parts.store, reader, id).await?.ok_or_else(Problem::no_job)
}

pub(super) fn shown(job: &impl Serialize) -> Result<Box<RawValue>, Problem> {
    to_raw_value(job).map_err(|_| Problem::new(Kind::Internal, "the job cannot be shown"))
}

pub(super) fn job_id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|_| Problem::no_uuid())
}
