//! Queues: what is in them, and pauses.

use axum::{
    Json,
    extract::{Extension, Path, Request, State},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    caller::Caller,
    decisions::Nothing,
    described::{OfAnyRequest, OfItsBody, OfItsContent, OfOne, OfTheState},
    problem::{Kind, Problem},
    request::{Parameters, optional_json},
    shared::Shared,
};
use crate::{
    access::Scope,
    job::{QueueName, State as JobState},
    lane_view::{Counts, LaneJson, LaneViews, counts},
    store::{Pause, check_reason},
};

/// Windows of jobs that are looked at for the rates.
const WINDOWS: usize = 4;

/// All queues.
#[derive(Serialize, ToSchema)]
pub(super) struct QueueList<'a> {
    items: Vec<LaneJson<'a>>,
    /// There is never more.
    next: Option<String>,
}

/// Lists queues: what waits, runs and is held, and how many jobs end
///
/// Every queue of the settings is there, with zeros where it is empty, and each other one in which there are jobs. Only for
/// keys of the operator.
#[utoipa::path(
    get, path = "/v1/queues", operation_id = "listQueues", security(("bearer" = ["read"])),
    responses((status = 200, description = "All of them.", body = QueueList), OfAnyRequest, OfItsContent)
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    caller.may_for_all(Scope::Read)?;
    Parameters::of(&request).end()?;
    let parts = &shared.parts;
    let views = LaneViews::look(&parts.store, parts.queue.as_ref(), parts.lanes.clone(), WINDOWS).await?;
    Ok(Json(QueueList { items: views.json().collect(), next: None }).into_response())
}

/// How many jobs there are.
#[derive(Serialize, ToSchema)]
pub(super) struct Stats {
    queues: Vec<QueueStats>,
}

/// How many jobs of a queue are in each state that is not final.
#[derive(Serialize, ToSchema)]
struct QueueStats {
    #[schema(value_type = String)]
    queue: QueueName,
    paused: bool,
    /// Those that wait for a worker or for their time: scheduled, available or retryable.
    waiting: u64,
    #[schema(value_type = Counts)]
    states: std::collections::BTreeMap<JobState, u64>,
    oldest_due_ms: Option<u64>,
}

/// Counts the jobs of each queue by state
///
/// For autoscalers: one look at the database answers all who ask within a second. Queues are there as in the list of queues.
/// Only for keys of the operator.
#[utoipa::path(
    get, path = "/v1/stats", operation_id = "showStats", security(("bearer" = ["read"])),
    responses((status = 200, description = "The counts.", body = Stats), OfAnyRequest, OfItsContent)
)]
pub(super) async fn stats(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    caller.may_for_all(Scope::Read)?;
    Parameters::of(&request).end()?;
    let views = shared.glimpse.look(&shared.parts).await?;
    let of = |(name, lane): (&QueueName, &crate::lane_view::LaneView)| QueueStats {
        queue: name.clone(),
        paused: lane.pause.is_some(),
        waiting: lane.waiting(),
        states: counts(&lane.by_state),
        oldest_due_ms: lane.oldest_due.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
    };
    Ok(Json(Stats { queues: views.lanes.iter().map(of).collect() }).into_response())
}

/// Why a queue is paused.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Why {
    /// A line of up to 500 characters.
    reason: Option<String>,
}

/// A queue, and whether it is paused.
#[derive(Serialize, ToSchema)]
pub(super) struct QueueState {
    #[schema(value_type = String)]
    queue: QueueName,
    paused: Option<Pause>,
}

/// Pauses a queue
///
/// Within a few seconds no worker takes jobs from it. What runs goes on, what waits stays where it is, and new jobs are taken
/// in. It stays paused until it is resumed. Only for keys of the operator.
#[utoipa::path(
    post, path = "/v1/queues/{name}/pause", operation_id = "pauseQueue", security(("bearer" = ["manage"])),
    params(("name" = String, Path, description = "The name of the queue.", example = "bulk")),
    request_body(content = inline(Why), content_type = "application/json",
        example = json!({"reason": "the tool API is being repaired"})),
    responses((status = 200, description = "The queue, which is paused.", body = QueueState),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne, OfTheState)
)]
pub(super) async fn pause(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    caller.may_for_all(Scope::Manage)?;
    Parameters::of(&request).end()?;
    let Why { reason } = optional_json(request).await?;
    let queue = named(&shared, &name)?;
    let reason = reason.unwrap_or_default();
    check_reason(&reason).map_err(|why| Problem::new(Kind::BadRequest, format!("`reason`: {why}")))?;
    if !shared.parts.store.pause_queue(&queue, caller.decider(), &reason).await? {
        let detail = "the queue is paused already; GET /v1/queues says by whom and why";
        return Err(Problem::new(Kind::WrongState, detail));
    }
    state(&shared, queue).await
}

/// Lets a queue go on that is paused
///
/// Only for keys of the operator.
#[utoipa::path(
    post, path = "/v1/queues/{name}/resume", operation_id = "resumeQueue", security(("bearer" = ["manage"])),
    params(("name" = String, Path, description = "The name of the queue.", example = "bulk")),
    request_body(content = inline(Option<Nothing>), content_type = "application/json"),
    responses((status = 200, description = "The queue, which is not paused.", body = QueueState),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne, OfTheState)
)]
pub(super) async fn resume(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    caller.may_for_all(Scope::Manage)?;
    Parameters::of(&request).end()?;
    let Nothing {} = optional_json(request).await?;
    let queue = named(&shared, &name)?;
    if !shared.parts.store.resume_queue(&queue, caller.decider()).await? {
        return Err(Problem::new(Kind::WrongState, "the queue is not paused"));
    }
    state(&shared, queue).await
}

async fn state(shared: &Shared, queue: QueueName) -> Result<Response, Problem> {
    let paused = shared.parts.store.paused_queues().await?.into_iter().find(|paused| paused.queue == queue);
    Ok(Json(QueueState { queue, paused: paused.map(|paused| paused.pause) }).into_response())
}

/// A queue of the settings.
fn named(shared: &Shared, name: &str) -> Result<QueueName, Problem> {
    let known = shared.parts.lanes.iter().find(|lane| lane.as_str() == name).cloned();
    known.ok_or_else(|| {
        let known: Vec<_> = shared.parts.lanes.iter().map(QueueName::as_str).collect();
        Problem::new(Kind::NotFound, format!("there is no queue of this name, but {}", known.join(", ")))
    })
}
