//! Changes of a job that waits: when, where and until when it runs.

use axum::{
    extract::{Extension, Path, Request, State},
    response::Response,
};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use super::{
    caller::Caller,
    decisions::decided_about,
    described::{JobOrId, OfAnEdit, OfAnyRequest, OfItsBody, OfItsContent, OfOne, example_id},
    if_match::IfMatch,
    known::job_id,
    problem::{Kind, Problem},
    request::{Parameters, moment_in_json, optional_json},
    shared::Shared,
};
use crate::{
    access::Scope,
    admission::EditAnswer,
    job::{Edit, JobId, QueueName},
};

/// What is to be changed; what is left out stays.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    /// Not before; `null` takes it away, so that the job is due now.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<Timestamp>)]
    run_at: Option<Option<Timestamp>>,
    queue: Option<String>,
    #[schema(minimum = 0, maximum = 9)]
    priority: Option<i32>,
    /// Not after; `null` takes it away.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<Timestamp>)]
    expires_at: Option<Option<Timestamp>>,
}

/// A value that is there, as opposed to one that is left out.
fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<Timestamp>>, D::Error> {
    moment_in_json(value).map(Some)
}

/// Changes when, where and until when a job runs
///
/// As long as it waits: for its `run_at`, for a worker, for another try, or held; a held job has no `run_at` to change, as it
/// goes on when it is released. With another `run_at` it is due then, or now without one. What was asked for stays what the
/// same request again is compared with.
#[utoipa::path(
    patch, path = "/v1/jobs/{id}", operation_id = "editJob", security(("bearer" = ["manage"])),
    params(("id" = JobId, Path, description = "The ID of the job.", example = example_id), IfMatch),
    request_body(content = inline(Wanted), content_type = "application/json", example = json!({"priority": 9})),
    responses((status = 200, description = "The job as it is now.", body = JobOrId,
            headers(("ETag" = String, description = "Of the job as it is now."))),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne, OfAnEdit)
)]
pub(super) async fn edit(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let manager = caller.may(Scope::Manage)?;
    Parameters::of(&request).end()?;
    let id = job_id(&id)?;
    let if_match = IfMatch::of(request.headers())?;
    let Wanted { run_at, queue, priority, expires_at } = optional_json(request).await?;
    let queue = queue.map(|name| lane(&shared, &name)).transpose()?;
    if run_at.is_none() && queue.is_none() && priority.is_none() && expires_at.is_none() {
        let detail = "say what to change: `run_at`, `queue`, `priority` or `expires_at`";
        return Err(Problem::new(Kind::BadRequest, detail));
    }
    let edit = Edit { run_at, queue, priority: priority.map(i128::from), expires_at };
    let admission = &shared.parts.admission;
    match admission.edit(manager, id, &edit, caller.decider(), |job| if_match.is_of(job)).await? {
        EditAnswer::Decided(decided) => decided_about(&shared, &caller, id, decided).await,
        EditAnswer::Refused(unfit) => Err(unfit.into()),
        EditAnswer::Unexpected => Err(IfMatch::is_another()),
    }
}

/// A queue that jobs can be in.
pub(super) fn lane(shared: &Shared, name: &str) -> Result<QueueName, Problem> {
    let known = shared.parts.lanes.iter().find(|lane| lane.as_str() == name).cloned();
    known.ok_or_else(|| {
        let known: Vec<_> = shared.parts.lanes.iter().map(QueueName::as_str).collect();
        let detail = format!("there is no queue of this name; use one of {}", known.join(", "));
        Problem::new(Kind::InvalidJob, detail).about(Some("queue"))
    })
}
