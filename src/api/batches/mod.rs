//! Batches: enqueue many jobs together, watch them, and decide about them as a whole.

mod items;
mod json;
mod parameters;

use std::sync::Arc;

use axum::{
    Json,
    extract::{Extension, Path, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use utoipa::ToSchema;

pub(super) use self::json::{BatchPage, ItemPage};
use self::{
    items::{Wanted, not_added, specs, unreadable},
    parameters::{Indexes, Key, Page, Range},
};
use super::{
    caller::Caller,
    decisions::Nothing,
    described::{
        BatchOrId, Envelope, OfABatch, OfAnyRequest, OfItsBody, OfItsContent, OfItsItems, OfItsOrder, OfOne,
        OfRunningAgain, OfTheState, example_id,
    },
    problem::{Kind, Problem},
    request::{Parameters, Waiting, json_body, lines_body, optional_json, parsed, preferred_wait},
    shared::Shared,
    waiters::{Subject, not_yet},
};
use crate::{
    access::Scope,
    bounds::{MAX_BATCH_ITEMS, MAX_CHUNK_ITEMS, MAX_OPEN_BATCHES},
    cursor::BatchCursor,
    desk_json::{BatchItemJson, BatchJson},
    job::{BatchId, JobSpec, Principal},
    store::{Added, BatchDecided},
};

/// Makes a batch
///
/// Its items are enqueued whole or not at all. The same request again, with the same `Idempotency-Key`, is the same batch.
#[utoipa::path(
    post, path = "/v1/batches", operation_id = "createBatch", security(("bearer" = ["enqueue"])),
    params(Key),
    request_body(content = inline(Wanted<'static>), content_type = "application/json",
        example = json!({"items": [{"user_id": "user-1", "tool": "GITHUB_GET_REPO", "arguments": {"owner": "o", "repo": "r"}}]})),
    responses(
        (status = 201, description = "It is new and stored.", body = BatchOrId,
            headers(("Location" = String, description = "Where the batch is."))),
        (status = 200, description = "It is known, and this is it.", body = BatchOrId,
            headers(("Location" = String, description = "Where the batch is."))),
        OfAnyRequest, OfItsContent, OfItsBody, OfItsItems, OfABatch,
    )
)]
pub(super) async fn create(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let principal = caller.may(Scope::Enqueue)?;
    Parameters::of(&request).end()?;
    let headers = request.headers().clone();
    let _turn = shared.turns.take(principal, 1).await?;
    let body = json_body(request).await?;
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(unreadable("it must be an object with `items`"));
    }
    let wanted: Wanted<'_> = serde_json::from_slice(&body).map_err(unreadable)?;
    if wanted.items.len() > MAX_CHUNK_ITEMS {
        return Err(Problem::new(
            Kind::TooLarge,
            format!(
                "`items` may have {MAX_CHUNK_ITEMS} at most; open a batch with {{\"sealed\": false}}, and add them by and by"
            ),
        ));
    }
    let batch = wanted.batch(&shared, principal, &headers)?;
    let items = wanted.items.iter().map(|item| item.get().as_bytes());
    let items = specs(&shared, &batch.principal, batch.id, 0, items)?;
    let added = adding(&shared, {
        let (batch, items) = (batch.clone(), items.clone());
        async move |shared: Shared| Ok(shared.parts.store.add_batch(&batch, &items).await?)
    })
    .await?;
    let mut answer = added_to(&shared, &caller, added, batch.id, &items, None).await?;
    let location = HeaderValue::from_str(&format!("/v1/batches/{}", batch.id));
    answer.headers_mut().extend(location.ok().map(|location| (header::LOCATION, location)));
    Ok(answer)
}

/// Adds items to a batch
///
/// Each line of the body is an envelope, up to 10,000 of them. They are added whole or not at all. The same request again is
/// no error; `total` says where to go on.
#[utoipa::path(
    post, path = "/v1/batches/{id}/items", operation_id = "addBatchItems", security(("bearer" = ["enqueue"])),
    params(("id" = Uuid, Path, description = "The ID of the batch.", example = example_id), Indexes),
    request_body(content = Vec<Envelope>, content_type = "application/x-ndjson", description = "One envelope a line."),
    responses(
        (status = 201, description = "They are new and stored.", body = BatchOrId),
        (status = 200, description = "They were there.", body = BatchOrId),
        OfAnyRequest, OfItsContent, OfItsBody, OfItsItems, OfOne, OfTheState, OfItsOrder,
    )
)]
pub(super) async fn add(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let principal = caller.may(Scope::Enqueue)?;
    let id = batch_id(&id)?;
    let mut parameters = Parameters::of(&request);
    let from = parameters.one("from", index)?.ok_or_else(|| {
        Problem::new(Kind::BadRequest, "say which index the first item has: the parameter `from`, at first 0")
    })?;
    parameters.end()?;
    let _turn = shared.turns.take(principal, 1).await?;
    let batch = shared.parts.store.batch(principal, id, false).await?.ok_or_else(no_batch)?;
    let body = lines_body(request).await?;
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    if lines.clone().take(MAX_CHUNK_ITEMS + 1).count() > MAX_CHUNK_ITEMS {
        return Err(Problem::new(Kind::TooLarge, format!("send {MAX_CHUNK_ITEMS} lines at most at a time")));
    }
    let items = specs(&shared, &batch.principal, id, from, lines)?;
    let added = adding(&shared, {
        let (principal, items) = (principal.clone(), items.clone());
        async move |shared: Shared| Ok(shared.parts.store.add_items(&principal, id, from, &items).await?)
    })
    .await?;
    added_to(&shared, &caller, added, id, &items, Some(from)).await
}

/// Seals a batch
///
/// From then on it takes no more items, and is complete when all of its jobs have ended.
#[utoipa::path(
    post, path = "/v1/batches/{id}/seal", operation_id = "sealBatch", security(("bearer" = ["enqueue"])),
    params(("id" = Uuid, Path, description = "The ID of the batch.", example = example_id)),
    request_body(content = inline(Option<Nothing>), content_type = "application/json"),
    responses((status = 200, description = "The batch, which is sealed.", body = BatchOrId),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne)
)]
pub(super) async fn seal(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let principal = caller.may(Scope::Enqueue)?;
    let id = batch_id(&id)?;
    Parameters::of(&request).end()?;
    let Nothing {} = optional_json(request).await?;
    shared.parts.store.seal_batch(principal, id).await?.ok_or_else(no_batch)?;
    shown(&shared, &caller, principal, id).await
}

/// Reads a batch, or waits for its completion
#[utoipa::path(
    get, path = "/v1/batches/{id}", operation_id = "showBatch", security(("bearer" = ["read"])),
    params(("id" = Uuid, Path, description = "The ID of the batch.", example = example_id), Waiting),
    responses(
        (status = 200, description = "The batch. After waiting, it is complete.", body = BatchJson),
        (status = 202, description = "After waiting: it is not complete yet; or of its jobs only held ones are left.", body = BatchJson,
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
    let id = batch_id(&id)?;
    let mut parameters = Parameters::of(&request);
    let wait = parameters.wait()?.or(preferred_wait(request.headers())?);
    parameters.end()?;
    // It lies in the buffer into which it was read, which nobody keeps who waits.
    drop(request);
    let reader = caller.may(Scope::Read)?;
    let read = async || shared.parts.store.batch(reader, id, true).await?.ok_or_else(no_batch);
    let mut batch = read().await?;
    if let Some(wait) = wait
        && batch.goes_on()
    {
        shared.waiters.wait(Subject::Batch(id), Instant::now() + wait).await;
        batch = read().await?;
    }
    let is_late = wait.is_some() && batch.completed_at.is_none();
    let json = Json(BatchJson::from(batch));
    if is_late {
        return Ok(not_yet(json));
    }
    Ok(json.into_response())
}

/// Lists batches, newest first
#[utoipa::path(
    get, path = "/v1/batches", operation_id = "listBatches", security(("bearer" = ["read"])),
    params(Page),
    responses((status = 200, description = "A page of the list.", body = BatchPage), OfAnyRequest, OfItsContent)
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let reader = caller.may(Scope::Read)?;
    let mut parameters = Parameters::of(&request);
    let limit = parameters.limit()?;
    let before = parameters.one("cursor", parsed)?.map(|cursor: BatchCursor| cursor.0);
    parameters.end()?;
    let batches = shared.parts.store.batches(reader, before, limit).await?;
    let next = batches
        .last()
        .filter(|_| batches.len() == limit)
        .map(|batch| BatchCursor::of(batch.place()).to_string());
    Ok(Json(BatchPage { items: batches.into_iter().map(BatchJson::from).collect(), next }).into_response())
}

/// Lists the items of a batch in their order, with the state of their jobs
#[utoipa::path(
    get, path = "/v1/batches/{id}/items", operation_id = "listBatchItems", security(("bearer" = ["read"])),
    params(("id" = Uuid, Path, description = "The ID of the batch.", example = example_id), Range),
    responses((status = 200, description = "A page of the list.", body = ItemPage), OfAnyRequest, OfItsContent, OfOne)
)]
pub(super) async fn items(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let id = batch_id(&id)?;
    let reader = caller.may(Scope::Read)?;
    let mut parameters = Parameters::of(&request);
    let (from, limit) = (parameters.one("from", index)?.unwrap_or(0), parameters.limit()?);
    parameters.end()?;
    let items = shared.parts.store.batch_items(reader, id, from, limit).await?;
    if items.is_empty() {
        shared.parts.store.batch(reader, id, false).await?.ok_or_else(no_batch)?;
    }
    let next = items.last().filter(|_| items.len() == limit).map(|item| item.index + 1);
    Ok(Json(ItemPage { items: items.into_iter().map(BatchItemJson::from).collect(), next }).into_response())
}

/// Calls off the rest of a batch
///
/// It takes no more items. Those of the jobs that it enqueued and that have not ended are cancelled, one after the other;
/// calls that are under way are not interrupted. A job whose outcome is unknown stays held, and counts as ended.
#[utoipa::path(
    post, path = "/v1/batches/{id}/cancel", operation_id = "cancelBatch", security(("bearer" = ["manage"])),
    params(("id" = Uuid, Path, description = "The ID of the batch.", example = example_id)),
    request_body(content = inline(Option<Nothing>), content_type = "application/json"),
    responses((status = 200, description = "The batch.", body = BatchOrId),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne, OfTheState)
)]
pub(super) async fn cancel(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let principal = caller.may(Scope::Manage)?;
    let id = batch_id(&id)?;
    Parameters::of(&request).end()?;
    let Nothing {} = optional_json(request).await?;
    match shared.parts.store.cancel_batch(principal, id, caller.decider()).await? {
        BatchDecided::Unknown => Err(no_batch()),
        BatchDecided::Unchanged(batch) if batch.completed_at.is_some() => {
            Err(Problem::new(Kind::WrongState, "the batch is complete, so there is nothing to call off"))
        }
        BatchDecided::Begun(_) | BatchDecided::Unchanged(_) => shown(&shared, &caller, principal, id).await,
    }
}

/// How the failed jobs of a batch are run again.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct Retry {
    /// Also those whose last call may have had its effect, which this would repeat.
    force: bool,
    /// The generation whose failed jobs are meant. A batch that is at another one stays as it is, so that a request whose
    /// answer was lost can be sent again.
    #[schema(minimum = 1)]
    generation: Option<u32>,
}

/// Runs the failed jobs of a batch again
///
/// This begins its next generation, which is complete when they have ended. Only jobs that the batch enqueued are run again,
/// and those whose last call may have had its effect only with `force`. Its deadline is forgotten.
#[utoipa::path(
    post, path = "/v1/batches/{id}/retry", operation_id = "retryBatch", security(("bearer" = ["manage"])),
    params(("id" = Uuid, Path, description = "The ID of the batch.", example = example_id)),
    request_body(content = inline(Option<Retry>), content_type = "application/json"),
    responses((status = 200, description = "The batch.", body = BatchOrId),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne, OfRunningAgain)
)]
pub(super) async fn retry(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let principal = caller.may(Scope::Manage)?;
    let id = batch_id(&id)?;
    Parameters::of(&request).end()?;
    let Retry { force, generation } = optional_json(request).await?;
    if generation == Some(0) {
        return Err(Problem::new(Kind::BadRequest, "`generation` must be 1 or more"));
    }
    match shared.parts.store.retry_batch(principal, id, caller.decider(), force, generation).await? {
        BatchDecided::Unknown => Err(no_batch()),
        BatchDecided::Unchanged(batch) if generation.is_some_and(|meant| meant != batch.generation) => {
            let detail = format!("the batch is at generation {} by now", batch.generation);
            Err(Problem::new(Kind::WrongState, detail))
        }
        BatchDecided::Unchanged(batch) if batch.completed_at.is_some() => {
            let detail = format!(
                "no job that it enqueued is failed by now, so there is nothing to run again (a job that it found is retried by \
                 itself), or this owner has {MAX_OPEN_BATCHES} batches that are not complete"
            );
            Err(Problem::new(Kind::WrongState, detail))
        }
        BatchDecided::Unchanged(_) => {
            let detail = "the batch is not complete; wait for that, or cancel its rest first";
            Err(Problem::new(Kind::WrongState, detail))
        }
        BatchDecided::Begun(_) => shown(&shared, &caller, principal, id).await,
    }
}

/// Adds items. What is begun is finished although nobody waits for the answer any more.
async fn adding<F>(shared: &Shared, add: impl FnOnce(Shared) -> F) -> Result<Added, Problem>
where
    F: Future<Output = Result<Added, Problem>> + Send + 'static,
{
    let adding = tokio::spawn(add(shared.clone()));
    adding.await.map_err(|_| Problem::new(Kind::Internal, "errand failed; its log says where"))?
}

/// The answer to who made a batch, or added items, of which the first has the index `from`.
async fn added_to(
    shared: &Shared,
    caller: &Caller,
    added: Added,
    id: BatchId,
    items: &[Arc<JobSpec>],
    from: Option<u64>,
) -> Result<Response, Problem> {
    let (status, batch) = match added {
        Added::New(batch, jobs) => {
            shared.parts.admission.note_other_ids(items, &jobs).await;
            (StatusCode::CREATED, batch)
        }
        Added::Known(batch) => (StatusCode::OK, batch),
        Added::Not(why) => return Err(not_added(why, id, from)),
    };
    let Ok(reader) = caller.may(Scope::Read) else {
        return Ok((status, Json(json!({"id": batch.id}))).into_response());
    };
    let batch = shared.parts.store.batch(reader, batch.id, true).await?.ok_or_else(no_batch)?;
    Ok((status, Json(BatchJson::from(batch))).into_response())
}

/// The batch as it is now, as far as the caller may read it.
async fn shown(
    shared: &Shared,
    caller: &Caller,
    principal: &Principal,
    id: BatchId,
) -> Result<Response, Problem> {
    if caller.may(Scope::Read).is_err() {
        return Ok(Json(json!({"id": id})).into_response());
    }
    let batch = shared.parts.store.batch(principal, id, true).await?.ok_or_else(no_batch)?;
    Ok(Json(BatchJson::from(batch)).into_response())
}

fn batch_id(text: &str) -> Result<BatchId, Problem> {
    text.parse().map_err(|_| Problem::no_uuid())
}

pub(super) fn no_batch() -> Problem {
    Problem::new(
        Kind::NotFound,
        "there is no batch with this ID: it was never here, or it was removed after its retention",
    )
}

/// An index of an item.
fn index(text: &str) -> Result<u64, String> {
    let index = text.parse().ok().filter(|index| *index <= MAX_BATCH_ITEMS);
    index.ok_or_else(|| format!("must be a number from 0 to {MAX_BATCH_ITEMS}"))
}
