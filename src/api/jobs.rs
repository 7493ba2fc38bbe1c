//! Jobs: enqueue one, read it, and list them.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Extension, Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{json, value::RawValue};
use utoipa::ToSchema;

use super::{
    caller::Caller,
    described::{
        Envelope, JobOrDryRun, JobOrId, OfANewJob, OfAnyRequest, OfItsBody, OfItsContent, OfOne, example_id,
    },
    dry_run::dry_run,
    edit::lane,
    filter::{Asked, Wanted, Window},
    known::{find, job_id, known, shown, told, waited_for},
    problem::{Kind, Problem},
    request::{
        AboutANewJob, Parameters, Waiting, flag, idempotency_key, json_body, parsed, preferred_wait, text,
    },
    shared::Shared,
};
use crate::{
    access::Scope,
    admission::Enqueued,
    bounds::MAX_BATCH_BYTES,
    cursor::JobCursor,
    job::{Arrival, JobId, JobSpec, Principal, decode, named_queue},
    job_json::{Field, Fields, Job, JobSummary, KnownJob, job_fields_json, job_summary_json},
    store::{AttemptView, HistoryEntry, JobView, Looked, Place},
};

/// A page of jobs, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct JobPage {
    #[schema(value_type = Vec<JobSummary>)]
    items: Vec<Box<RawValue>>,
    /// The `cursor` of the next page, and `null` where there is none. A page may have few items or none, and yet a next.
    next: Option<String>,
    window: Window,
}

/// All attempts of a job.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AttemptList {
    items: Vec<AttemptView>,
    /// There is never more.
    next: Option<String>,
}

/// The history of a job.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HistoryList {
    items: Vec<HistoryEntry>,
    /// There is never more.
    next: Option<String>,
}

/// Enqueues a job
///
/// The body is an envelope, as over AMQP. Without an `id` it gets one. The same request again is the same job. To wait, and for
/// a dry run, a key needs the scope `read`, too.
#[utoipa::path(
    post, path = "/v1/jobs", operation_id = "enqueueJob", security(("bearer" = ["enqueue"])),
    params(AboutANewJob),
    request_body(content = Envelope, content_type = "application/json"),
    responses(
        (status = 201, description = "It is new and stored: from now on it is not lost.", body = JobOrId,
            headers(("Location" = String, description = "Where the job is."))),
        (status = 200, description = "It is known, and this is the first job; or, after waiting, it is final; or it was a dry run.",
            body = JobOrDryRun),
        (status = 202, description = "With `Prefer: wait`: it is not final yet.", body = Job,
            headers(("Location" = String, description = "Where the job is."),
                ("Retry-After" = u32, description = "When to ask again, in seconds."))),
        OfAnyRequest, OfItsContent, OfItsBody, OfANewJob,
    )
)]
pub(super) async fn enqueue(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    caller.may(Scope::Enqueue)?;
    let mut parameters = Parameters::of(&request);
    let is_dry_run = parameters.one("dry_run", flag)?.unwrap_or(false);
    parameters.end()?;
    // Who may enqueue and not read is no error: the answer has the job's ID and not its result.
    let reader = caller.may(Scope::Read).ok();
    let wait = preferred_wait(&headers)?
        .map(|wait| caller.may(Scope::Read).map(|reader| (reader, wait)))
        .transpose()?;
    let spec = Arc::new(spec(&shared, &headers, &json_body(request).await?)?);
    // They lie in the buffer into which the request was read, which nobody keeps who waits.
    drop(headers);
    caller.may_enqueue(&spec)?;
    if is_dry_run {
        caller.may(Scope::Read)?;
        return dry_run(&shared, &spec).await;
    }
    let Some(answer) = shared.together.enqueue(spec.clone()).await else {
        return Err(Problem::new(Kind::Internal, "errand failed; its log says where"));
    };
    let (id, new) = match answer? {
        Enqueued::New { id, beginning } => (id, Some(beginning)),
        Enqueued::Duplicate(id) => (id, None),
        Enqueued::Refused(unfit) => return Err(unfit.into()),
        Enqueued::Conflict(conflict) => return Err(conflict.into()),
    };
    let status = if new.is_some() { StatusCode::CREATED } else { StatusCode::OK };
    let mut answer = match (wait, reader, new) {
        (Some((reader, wait)), ..) => waited_for(&shared, reader, id, Fields::NONE, wait).await?,
        (None, Some(_), Some(beginning)) => {
            (status, told(&KnownJob::new(spec, beginning), Fields::NONE)?).into_response()
        }
        (None, Some(reader), None) => {
            (status, known(&shared, reader, id, Fields::NONE).await?).into_response()
        }
        (None, None, _) => (status, Json(json!({"id": id}))).into_response(),
    };
    let location = HeaderValue::from_str(&format!("/v1/jobs/{id}"));
    answer.headers_mut().extend(location.ok().map(|location| (header::LOCATION, location)));
    Ok(answer)
}

/// Reads a job, or waits for it
///
/// With `wait` it answers as soon as the job is final, and else at the end of that time. A job that is held is answered at
/// once. An ID under which the job was sent again finds it, too.
#[utoipa::path(
    get, path = "/v1/jobs/{id}", operation_id = "showJob", security(("bearer" = ["read"])),
    params(("id" = JobId, Path, description = "The ID of the job.", example = example_id), Waiting, Asked),
    responses(
        (status = 200, description = "The job. After waiting, it is final.", body = Job,
            headers(("ETag" = String, description = "Of what can be changed, for `If-Match`."))),
        (status = 202, description = "After waiting: it is not final yet.", body = Job,
            headers(("Retry-After" = u32, description = "When to ask again, in seconds."))),
        OfAnyRequest, OfItsContent, OfOne,
    )
)]
pub(super) async fn show(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let id = job_id(&id)?;
    let mut parameters = Parameters::of(&request);
    let wait = parameters.wait()?.or(preferred_wait(request.headers())?);
    let fields = parameters.one("fields", parsed)?.unwrap_or_default();
    parameters.end()?;
    // It lies in the buffer into which it was read, which nobody keeps who waits.
    drop(request);
    let reader = caller.may(Scope::Read)?;
    match wait {
        Some(wait) => waited_for(&shared, reader, id, fields, wait).await,
        None => Ok(known(&shared, reader, id, fields).await?.into_response()),
    }
}

/// Lists the attempts of a job
///
/// In order, and that of a running job without an outcome. Several in a row that only postponed it are one.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/attempts", operation_id = "listAttempts", security(("bearer" = ["read"])),
    params(("id" = JobId, Path, description = "The ID of the job.", example = example_id)),
    responses((status = 200, description = "All of them.", body = AttemptList), OfAnyRequest, OfItsContent, OfOne)
)]
pub(super) async fn attempts(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    Parameters::of(&request).end()?;
    let known = find(&shared, caller.may(Scope::Read)?, job_id(&id)?).await?;
    Ok(Json(AttemptList { items: known.attempts, next: None }).into_response())
}

/// Lists the history of a job
///
/// The rare decisions about it, oldest first, up to the newest 1,000.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/history", operation_id = "listHistory", security(("bearer" = ["read"])),
    params(("id" = JobId, Path, description = "The ID of the job.", example = example_id)),
    responses((status = 200, description = "All of them.", body = HistoryList), OfAnyRequest, OfItsContent, OfOne)
)]
pub(super) async fn history(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    Parameters::of(&request).end()?;
    let known = find(&shared, caller.may(Scope::Read)?, job_id(&id)?).await?;
    Ok(Json(HistoryList { items: known.history, next: None }).into_response())
}

/// Lists jobs, newest first
///
/// A page of those jobs that fit all parameters, without their past, and without their input and result unless `fields` asks
/// for these. Go on with the same parameters and `cursor` until `next` is `null`.
#[utoipa::path(
    get, path = "/v1/jobs", operation_id = "listJobs", security(("bearer" = ["read"])),
    params(Wanted, Asked),
    responses((status = 200, description = "A page of the list.", body = JobPage), OfAnyRequest, OfItsContent)
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let reader = caller.may(Scope::Read)?;
    let wanted = Wanted::of(Parameters::of(&request), shared.parts.clock.now())?;
    let page = shared.parts.store.jobs(reader, &wanted.filter, wanted.before, wanted.limit).await?;
    let (items, next) = if wanted.fields.is_empty() {
        let items = page.items.iter().map(|job| shown(&job_summary_json(job)));
        (items.collect::<Result<_, _>>()?, page.next)
    } else {
        with_fields(&shared, reader, page, wanted.fields).await?
    };
    let next = next.map(|place| JobCursor::of(place).to_string());
    Ok(Json(JobPage { items, next, window: wanted.window() }).into_response())
}

/// The jobs of a page with what is asked for, up to [`MAX_BATCH_BYTES`] of it; a page that would have more ends before, but
/// has one job at least. Results are read one by one, so that no more of them is in memory than is told.
async fn with_fields(
    shared: &Shared,
    reader: &Principal,
    page: Looked<JobView>,
    fields: Fields,
) -> Result<(Vec<Box<RawValue>>, Option<Place>), Problem> {
    let (mut items, mut bytes, mut last) = (Vec::<Box<RawValue>>::new(), 0, None);
    for found in page.items {
        let place = found.place();
        let job = if fields.has(Field::Result) {
            shared.parts.store.job(reader, found.spec.id).await?
        } else {
            Some(found)
        };
        // It was removed meanwhile.
        let Some(job) = job else { continue };
        let item = shown(&job_fields_json(&job, fields))?;
        bytes += item.get().len();
        if bytes > MAX_BATCH_BYTES && !items.is_empty() {
            return Ok((items, last));
        }
        items.push(item);
        last = Some(place);
    }
    Ok((items, page.next))
}

/// The job in a body, through the same decoder as every envelope.
fn spec(shared: &Shared, headers: &HeaderMap, body: &[u8]) -> Result<JobSpec, Problem> {
    let queue = named_queue(body).unwrap_or_default();
    let arrival = Arrival {
        fallback_id: Some(JobId::new()),
        idempotency_key: idempotency_key(headers)?,
        traceparent: text(headers, HeaderName::from_static("traceparent"))?,
        ..Arrival::new(&queue)
    };
    let spec = decode(body, &arrival)?;
    lane(shared, spec.queue.as_str())?;
    Ok(spec)
}
