//! Jobs: enqueue one, read it, list them, and decide about one.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Extension, Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{
    caller::Caller,
    described::{
        Envelope, JobOrDryRun, JobOrId, OfANewJob, OfAnyRequest, OfItsBody, OfItsContent, OfOne,
        OfRunningAgain, OfTheState, example_id,
    },
    dry_run::dry_run,
    filter::{Wanted, Window},
    problem::{Kind, Problem},
    request::{
        AboutANewJob, Parameters, Waiting, idempotency_key, json_body, optional_json, parsed, preferred_wait,
        text,
    },
    shared::Shared,
    waiters::Subject,
};
use crate::{
    access::Scope,
    admission::Enqueued,
    job::{Arrival, JobId, JobSpec, Principal, Release, decode, named_queue},
    job_json::{Job, JobSummary, KnownJob, job_summary_json},
    store::{Decided, Force},
};

/// When to ask again for a job that is not final.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("1");

/// A page of jobs, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct JobPage {
    #[schema(value_type = Vec<JobSummary>)]
    items: Vec<Box<RawValue>>,
    /// The `cursor` of the next page, and `null` where there is none. A page may have few items or none, and yet a next.
    next: Option<String>,
    window: Window,
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
    let is_dry_run = parameters.one("dry_run", parsed)?.unwrap_or(false);
    parameters.end()?;
    // Who may enqueue and not read is no error: the answer has the job's ID and not its result.
    let reader = caller.may(Scope::Read).ok();
    let wait = preferred_wait(&headers)?
        .map(|wait| caller.may(Scope::Read).map(|reader| (reader, wait)))
        .transpose()?;
    let spec = Arc::new(spec(&shared, &headers, &json_body(request).await?)?);
    caller.may_enqueue(&spec)?;
    if is_dry_run {
        return dry_run(&shared, caller.may(Scope::Read)?, &spec).await;
    }
    let answer = admit(&shared, spec).await?;
    let (id, is_new) = match answer {
        Some(Enqueued::New(id)) => (id, true),
        Some(Enqueued::Duplicate(id)) => (id, false),
        Some(Enqueued::Refused(error)) => return Err(Problem::new(Kind::InvalidJob, error.message())),
        Some(Enqueued::Conflict(conflict)) => return Err(conflict.into()),
        None => return Err(Problem::new(Kind::Internal, "the store gave no answer")),
    };
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let mut answer = match (wait, reader) {
        (Some((reader, wait)), _) => waited_for(&shared, reader, id, wait).await?,
        (None, Some(reader)) => (status, known(&shared, reader, id).await?.2).into_response(),
        (None, None) => (status, Json(json!({"id": id}))).into_response(),
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
    params(("id" = JobId, Path, description = "The ID of the job.", example = example_id), Waiting),
    responses(
        (status = 200, description = "The job. After waiting, it is final.", body = Job),
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
    parameters.end()?;
    let reader = caller.may(Scope::Read)?;
    match wait {
        Some(wait) => waited_for(&shared, reader, id, wait).await,
        None => Ok(known(&shared, reader, id).await?.2.into_response()),
    }
}

/// Lists jobs, newest first
///
/// A page of those jobs that fit all parameters, without their results and their past. Go on with the same parameters and
/// `cursor` until `next` is `null`.
#[utoipa::path(
    get, path = "/v1/jobs", operation_id = "listJobs", security(("bearer" = ["read"])),
    params(Wanted),
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
    let items = page.items.iter().map(|job| shown(&job_summary_json(job))).collect::<Result<_, _>>()?;
    let next = page.next.map(|place| place.to_string());
    Ok(Json(JobPage { items, next, window: wanted.window() }).into_response())
}

/// What calling a job off or revoking a key needs.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// Calls a job off
///
/// A call that is under way is not interrupted, but it is not repeated.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/cancel", operation_id = "cancelJob", security(("bearer" = ["manage"])),
    params(("id" = JobId, Path, description = "The ID of the job.", example = example_id)),
    request_body(content = inline(Option<Nothing>), content_type = "application/json"),
    responses((status = 200, description = "The job as it is now.", body = JobOrId),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne, OfTheState)
)]
pub(super) async fn cancel(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let manager = caller.may(Scope::Manage)?;
    let (id, Nothing {}) = (job_id(&id)?, optional_json(request).await?);
    let decided = shared.parts.store.cancel(manager, id, caller.name()).await?;
    decided_about(&shared, &caller, id, decided).await
}

/// How a job is run again.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct Retry {
    /// Although its last call may have had its effect, which this would repeat.
    force: bool,
    /// Although its `run_at` is still to come.
    now: bool,
}

/// Runs a job again
///
/// A failed or cancelled job gets a fresh budget of attempts, and one that waits is due now.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/retry", operation_id = "retryJob", security(("bearer" = ["manage"])),
    params(("id" = JobId, Path, description = "The ID of the job.", example = example_id)),
    request_body(content = inline(Option<Retry>), content_type = "application/json"),
    responses((status = 200, description = "The job as it is now.", body = JobOrId),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne, OfRunningAgain)
)]
pub(super) async fn retry(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let manager = caller.may(Scope::Manage)?;
    let (id, Retry { force, now }) = (job_id(&id)?, optional_json(request).await?);
    let force = Force { effect: force, early: now };
    let decided = shared.parts.store.restart(manager, id, caller.name(), force).await?;
    decided_about(&shared, &caller, id, decided).await
}

/// What is known of the call of a held job.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct How {
    /// `retry` makes the call again, `succeeded` and `failed` say how it ended.
    #[schema(value_type = Release, inline)]
    how: Option<String>,
}

/// Lets a held job go
///
/// The body says what is known of its call.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/release", operation_id = "releaseJob", security(("bearer" = ["manage"])),
    params(("id" = JobId, Path, description = "The ID of the job.", example = example_id)),
    request_body(content = inline(How), content_type = "application/json", example = json!({"how": "retry"})),
    responses((status = 200, description = "The job as it is now.", body = JobOrId),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne, OfTheState)
)]
pub(super) async fn release(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let manager = caller.may(Scope::Manage)?;
    let (id, How { how }) = (job_id(&id)?, optional_json(request).await?);
    let release = how.as_deref().and_then(|how| how.parse::<Release>().ok()).ok_or_else(|| {
        let detail = "say what is known of the call: {\"how\": \"retry\"} makes it again, \"succeeded\" and \"failed\" do not";
        Problem::new(Kind::BadRequest, detail)
    })?;
    let decided = shared.parts.store.release(manager, id, release, caller.name()).await?;
    decided_about(&shared, &caller, id, decided).await
}

/// Enqueues a job. What is begun is finished although nobody waits for the answer any more: a job that is stored is handed
/// over, and not only found by the relay later.
async fn admit(shared: &Shared, spec: Arc<JobSpec>) -> Result<Option<Enqueued>, Problem> {
    let admission = shared.parts.admission.clone();
    let admitting = tokio::spawn(async move { admission.enqueue(std::slice::from_ref(&spec)).await });
    let answers =
        admitting.await.map_err(|_| Problem::new(Kind::Internal, "errand failed; its log says where"))?;
    Ok(answers?.into_iter().next())
}

async fn decided_about(
    shared: &Shared,
    caller: &Caller,
    id: JobId,
    decided: Decided,
) -> Result<Response, Problem> {
    if decided == Decided::Unknown
        && let Some(first) = shared.parts.store.job_known_as(caller.may(Scope::Manage)?, id).await?
    {
        // Nothing is done to it before it is named, because there may be more to it.
        let detail = format!("it is another ID of the job {first}; name that one");
        return Err(Problem::new(Kind::NotFound, detail));
    }
    if let Some(problem) = Problem::undecided(decided) {
        return Err(problem);
    }
    match caller.may(Scope::Read) {
        Ok(reader) => Ok(known(shared, reader, id).await?.2.into_response()),
        Err(_) => Ok(Json(json!({"id": id})).into_response()),
    }
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
    shared.has_lane(&spec)?;
    Ok(spec)
}

/// The answer to who waits: 200 with a final job, else 202.
async fn waited_for(
    shared: &Shared,
    reader: &Principal,
    id: JobId,
    wait: Duration,
) -> Result<Response, Problem> {
    let until = Instant::now() + wait;
    // By another ID of it, it is waited for by its own.
    let (id, mut is_final, mut json) = known(shared, reader, id).await?;
    if !is_final {
        shared.waiters.wait(Subject::Job(id), until).await;
        (_, is_final, json) = known(shared, reader, id).await?;
    }
    if is_final {
        return Ok(json.into_response());
    }
    Ok((StatusCode::ACCEPTED, [(header::RETRY_AFTER, ASK_AGAIN)], json).into_response())
}

/// A job's own ID, whether it is final, and its JSON.
async fn known(
    shared: &Shared,
    reader: &Principal,
    id: JobId,
) -> Result<(JobId, bool, Json<Box<RawValue>>), Problem> {
    let known = KnownJob::find(&shared.parts.store, reader, id).await?.ok_or_else(Problem::no_job)?;
    Ok((known.job.spec.id, known.job.state.is_final(), Json(shown(&known.json(false))?)))
}

fn shown(job: &impl Serialize) -> Result<Box<RawValue>, Problem> {
    to_raw_value(job).map_err(|_| Problem::new(Kind::Internal, "the job cannot be shown"))
}

fn job_id(text: &str) -> Result<JobId, Problem> {
    // What is no ID is no job's.
    text.parse().map_err(|_| Problem::no_job())
}
