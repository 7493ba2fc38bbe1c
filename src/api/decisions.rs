//! What somebody decides about a job: call it off, run it again, let it go. With `If-Match` it is about the job as it was read,
//! so that a decision whose answer was lost can be sent again.

use axum::{
    Json,
    extract::{Extension, Path, Request, State},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{
    caller::Caller,
    described::{
        JobOrId, OfADecision, OfAnyRequest, OfItsBody, OfItsContent, OfOne, OfRunningAgain, example_id,
    },
    if_match::IfMatch,
    known::{job_id, known},
    problem::{Kind, Problem},
    request::{Parameters, optional_json},
    shared::Shared,
};
use crate::{
    access::Scope,
    job::{JobId, Principal, Release},
    job_json::Fields,
    store::{AsRead, Decided, Force, JobDecision},
};

/// What calling a job off or revoking a key needs.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// Calls a job off
///
/// A call that is under way is not interrupted, but it is not repeated.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/cancel", operation_id = "cancelJob", security(("bearer" = ["manage"])),
    params(("id" = JobId, Path, description = "The ID of the job.", example = example_id), IfMatch),
    request_body(content = inline(Option<Nothing>), content_type = "application/json"),
    responses((status = 200, description = "The job as it is now.", body = JobOrId,
            headers(("ETag" = String, description = "Of the job as it is now."))),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne, OfADecision)
)]
pub(super) async fn cancel(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let manager = caller.may(Scope::Manage)?;
    Parameters::of(&request).end()?;
    let (id, if_match) = (job_id(&id)?, IfMatch::of(request.headers())?);
    let Nothing {} = optional_json(request).await?;
    decide(&shared, &caller, manager, id, JobDecision::Cancel, &if_match).await
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
    params(("id" = JobId, Path, description = "The ID of the job.", example = example_id), IfMatch),
    request_body(content = inline(Option<Retry>), content_type = "application/json"),
    responses((status = 200, description = "The job as it is now.", body = JobOrId,
            headers(("ETag" = String, description = "Of the job as it is now."))),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne, OfRunningAgain)
)]
pub(super) async fn retry(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let manager = caller.may(Scope::Manage)?;
    Parameters::of(&request).end()?;
    let (id, if_match) = (job_id(&id)?, IfMatch::of(request.headers())?);
    let Retry { force, now } = optional_json(request).await?;
    let decision = JobDecision::Restart(Force { effect: force, early: now });
    decide(&shared, &caller, manager, id, decision, &if_match).await
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
    params(("id" = JobId, Path, description = "The ID of the job.", example = example_id), IfMatch),
    request_body(content = inline(How), content_type = "application/json", example = json!({"how": "retry"})),
    responses((status = 200, description = "The job as it is now.", body = JobOrId,
            headers(("ETag" = String, description = "Of the job as it is now."))),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne, OfADecision)
)]
pub(super) async fn release(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let manager = caller.may(Scope::Manage)?;
    Parameters::of(&request).end()?;
    let (id, if_match) = (job_id(&id)?, IfMatch::of(request.headers())?);
    let How { how } = optional_json(request).await?;
    let release = how.as_deref().and_then(|how| how.parse::<Release>().ok()).ok_or_else(|| {
        let detail = "say what is known of the call: {\"how\": \"retry\"} makes it again, \"succeeded\" and \"failed\" do not";
        Problem::new(Kind::BadRequest, detail)
    })?;
    decide(&shared, &caller, manager, id, JobDecision::Release(release), &if_match).await
}

async fn decide(
    shared: &Shared,
    caller: &Caller,
    manager: &Principal,
    id: JobId,
    decision: JobDecision,
    if_match: &IfMatch,
) -> Result<Response, Problem> {
    let as_read = if if_match.names_forms() {
        let Some(job) = shared.parts.store.job(manager, id).await? else {
            return decided_about(shared, caller, id, Decided::Unknown).await;
        };
        if !if_match.is_of(&job) {
            return Err(IfMatch::is_another());
        }
        Some(AsRead::of(&job))
    } else {
        None
    };
    match shared.parts.store.decide(manager, id, decision, as_read.as_ref(), caller.decider()).await? {
        Decided::Changed => Err(IfMatch::is_another()),
        decided => decided_about(shared, caller, id, decided).await,
    }
}

pub(super) async fn decided_about(
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
        Ok(reader) => Ok(known(shared, reader, id, Fields::NONE).await?.into_response()),
        Err(_) => Ok(Json(json!({"id": id})).into_response()),
    }
}
