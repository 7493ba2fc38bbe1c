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

use super::{
    caller::Caller,
    dry_run::dry_run,
    filter::{Wanted, Window},
    problem::{Kind, Problem},
    request::{Parameters, idempotency_key, json_body, optional_json, parsed, preferred_wait, text},
    shared::Shared,
};
use crate::{
    access::Scope,
    admission::Enqueued,
    job::{Arrival, JobId, JobSpec, Principal, QueueName, Release, decode},
    job_json::{KnownJob, job_summary_json},
    store::{Decided, Force},
};

/// When to ask again for a job that is not final.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("1");

/// `POST /v1/jobs`: one job, in the JSON of an envelope.
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
    // Only who may read is told of a job's result.
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
        (None, Some(reader)) => (status, known(&shared, reader, id).await?.1).into_response(),
        (None, None) => (status, Json(json!({"id": id}))).into_response(),
    };
    let location = HeaderValue::from_str(&format!("/v1/jobs/{id}"));
    answer.headers_mut().extend(location.ok().map(|location| (header::LOCATION, location)));
    Ok(answer)
}

/// `GET /v1/jobs/{id}`, with `wait` until it is settled.
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
        None => Ok(known(&shared, reader, id).await?.1.into_response()),
    }
}

/// `GET /v1/jobs`: a page of jobs, newest first, without their contents.
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct List<T> {
        items: Vec<T>,
        next: Option<String>,
        window: Window,
    }

    let reader = caller.may(Scope::Read)?;
    let wanted = Wanted::of(Parameters::of(&request), shared.parts.clock.now())?;
    let page = shared.parts.store.jobs(reader, &wanted.filter, wanted.before, wanted.limit).await?;
    let items = page.items.iter().map(job_summary_json).collect();
    let next = page.next.map(|place| place.to_string());
    Ok(Json(List { items, next, window: wanted.window() }).into_response())
}

/// `POST /v1/jobs/{id}/cancel`.
pub(super) async fn cancel(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}

    let manager = caller.may(Scope::Manage)?;
    let (id, Nothing {}) = (job_id(&id)?, optional_json(request).await?);
    let decided = shared.parts.store.cancel(manager, id, caller.name()).await?;
    decided_about(&shared, &caller, id, decided).await
}

/// `POST /v1/jobs/{id}/retry`.
pub(super) async fn retry(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Retry {
        force: bool,
        now: bool,
    }

    let manager = caller.may(Scope::Manage)?;
    let (id, Retry { force, now }) = (job_id(&id)?, optional_json(request).await?);
    let force = Force { effect: force, early: now };
    let decided = shared.parts.store.restart(manager, id, caller.name(), force).await?;
    decided_about(&shared, &caller, id, decided).await
}

/// `POST /v1/jobs/{id}/release`.
pub(super) async fn release(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct How {
        how: Option<String>,
    }

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
        Ok(reader) => Ok(known(shared, reader, id).await?.1.into_response()),
        Err(_) => Ok(Json(json!({"id": id})).into_response()),
    }
}

/// The job in a body, through the same decoder as every envelope.
fn spec(shared: &Shared, headers: &HeaderMap, body: &[u8]) -> Result<JobSpec, Problem> {
    #[derive(Deserialize)]
    struct Lane {
        queue: Option<QueueName>,
    }
    // What cannot be read this far is explained by the decoder.
    let named = serde_json::from_slice::<Lane>(body).ok().and_then(|lane| lane.queue);
    let queue = named.unwrap_or_default();
    let arrival = Arrival {
        fallback_id: Some(JobId::new()),
        idempotency_key: idempotency_key(headers)?,
        traceparent: text(headers, HeaderName::from_static("traceparent"))?,
        ..Arrival::new(&queue)
    };
    let spec = decode(body, &arrival)?;
    if !shared.parts.lanes.contains(&spec.queue) {
        let known: Vec<_> = shared.parts.lanes.iter().map(QueueName::as_str).collect();
        let detail = format!("there is no queue of this name; use one of {}", known.join(", "));
        return Err(Problem::new(Kind::InvalidJob, detail));
    }
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
    let (mut is_final, mut json) = known(shared, reader, id).await?;
    if !is_final {
        shared.waiters.wait(id, until).await;
        (is_final, json) = known(shared, reader, id).await?;
    }
    if is_final {
        return Ok(json.into_response());
    }
    Ok((StatusCode::ACCEPTED, [(header::RETRY_AFTER, ASK_AGAIN)], json).into_response())
}

/// Whether a job is final, and its JSON.
async fn known(
    shared: &Shared,
    reader: &Principal,
    id: JobId,
) -> Result<(bool, Json<Box<RawValue>>), Problem> {
    let known = KnownJob::find(&shared.parts.store, reader, id).await?.ok_or_else(Problem::no_job)?;
    let json = to_raw_value(&known.json(false));
    let json = json.map_err(|_| Problem::new(Kind::Internal, "the job cannot be shown"))?;
    Ok((known.job.state.is_final(), Json(json)))
}

fn job_id(text: &str) -> Result<JobId, Problem> {
    // What is no ID is no job's.
    text.parse().map_err(|_| Problem::no_job())
}
