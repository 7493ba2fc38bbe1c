//! Rejected messages, which are no jobs. Only the operator reads them: nobody can vouch for what they say of their owner.

use axum::{
    Json,
    extract::{Extension, Path, Request, State},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{
    IntoParams, ToSchema,
    openapi::{
        KnownFormat, SchemaFormat,
        path::{Parameter, ParameterIn},
    },
};
use uuid::Uuid;

use super::{
    caller::Caller,
    described::{
        OfAnyRequest, OfItsBody, OfItsContent, OfOne, OfTheState, cursor, example_id, number, optional,
        owner, text, words,
    },
    problem::{Kind, Problem},
    request::{MAX_LIMIT, Parameters, flag, moment, named_owner, optional_json, parsed},
    shared::Shared,
};
use crate::{
    access::Scope,
    admission::{Requeue, Requeued},
    cursor::RejectedCursor,
    job::{EnvelopeReason, JobId, Principal},
    rejected::{RejectedJson, Search, WholeRejectedJson},
    store::{RejectedFilter, RejectedView},
};

/// A page of rejected messages, the newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct RejectedPage<'a> {
    items: Vec<RejectedJson<'a>>,
    /// The `cursor` of the next page, and `null` where there is none.
    next: Option<String>,
}

/// Which rejected messages are listed.
#[derive(Debug)]
struct Wanted;

impl IntoParams for Wanted {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let moment = || text().format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)));
        let query = |name, schema, description| optional(ParameterIn::Query, name, schema, description);
        vec![
            query("reason", words(EnvelopeReason::WORDS), "Rejected for this reason."),
            query("queue", text().pattern(Some("^[a-z0-9_.-]{1,64}$")), "From this queue."),
            query(
                "job",
                text().format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid))),
                "That would be this job, as far as its body or properties tell.",
            ),
            query("owner", owner(), "Whose body names this owner."),
            query("since", moment(), "Received then or later."),
            query("until", moment(), "Received before then."),
            query(
                "cursor",
                cursor(RejectedCursor::pattern()),
                "Where to go on: the `next` of the page before.",
            ),
            query("limit", number(1, MAX_LIMIT), "The most messages of the page. 50 without it."),
        ]
    }
}

/// Lists rejected messages that were not requeued, the newest first, without bodies
///
/// Only for keys of the operator. With `job` or `owner` the bodies of up to 1,000 messages are read for a page, which may so
/// be empty although there is a `next` one.
#[utoipa::path(
    get, path = "/v1/rejected", operation_id = "listRejected", security(("bearer" = ["read"])),
    params(Wanted),
    responses((status = 200, description = "A page of the list.", body = RejectedPage), OfAnyRequest, OfItsContent)
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    caller.may_for_all(Scope::Read)?;
    let mut query = Parameters::of(&request);
    let filter = RejectedFilter {
        reason: query.one("reason", parsed)?,
        queue: query.one("queue", parsed)?,
        since: query.one("since", moment)?,
        until: query.one("until", moment)?,
    };
    let search = Search { filter, job: query.one("job", parsed)?, owner: query.one("owner", named_owner)? };
    let before = query.one("cursor", parsed)?.map(|cursor: RejectedCursor| cursor.0);
    let limit = query.limit()?;
    query.end()?;
    let found = search.page(&shared.parts.store, caller.may(Scope::Read)?, before, limit).await?;
    let next = found.next.map(|place| RejectedCursor::of(place).to_string());
    Ok(Json(RejectedPage { items: found.messages.iter().map(RejectedJson::of).collect(), next })
        .into_response())
}

/// Reads a rejected message, without its body
///
/// Only for keys of the operator.
#[utoipa::path(
    get, path = "/v1/rejected/{id}", operation_id = "showRejected", security(("bearer" = ["read"])),
    params(("id" = Uuid, Path, description = "The ID of the message.", example = example_id)),
    responses((status = 200, description = "The message.", body = WholeRejectedJson), OfAnyRequest, OfItsContent, OfOne)
)]
pub(super) async fn show(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    caller.may_for_all(Scope::Read)?;
    Parameters::of(&request).end()?;
    let view = find(&shared, caller.may(Scope::Read)?, &id).await?;
    Ok(Json(WholeRejectedJson::of(&view)).into_response())
}

/// Reads the body of a rejected message, byte for byte
///
/// Only for keys of the operator. It may contain customers' data.
#[utoipa::path(
    get, path = "/v1/rejected/{id}/body", operation_id = "showRejectedBody", security(("bearer" = ["read"])),
    params(
        ("id" = Uuid, Path, description = "The ID of the message.", example = example_id),
        ("corrected" = Option<bool>, Query,
            description = "Whether to read the body that was taken instead of its own when it was requeued."),
    ),
    responses(
        (status = 200, description = "The bytes.", content_type = "application/octet-stream", body = [u8]),
        OfAnyRequest, OfItsContent, OfOne
    )
)]
pub(super) async fn body(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    caller.may_for_all(Scope::Read)?;
    let mut query = Parameters::of(&request);
    let is_corrected = query.one("corrected", flag)?.unwrap_or_default();
    query.end()?;
    let RejectedView { message, corrected, .. } = find(&shared, caller.may(Scope::Read)?, &id).await?;
    let body = if is_corrected {
        corrected.ok_or_else(|| Problem::new(Kind::NotFound, "it was not requeued with another body"))?
    } else {
        message.body
    };
    // The answer is of this media type by itself, which no browser shows.
    Ok(body.into_response())
}

/// How a message is read again.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct How {
    /// Run the job without a reply, for example because its reply queue is not allowed.
    without_reply: bool,
    /// Run the job although its publisher may not publish jobs of its owner.
    any_publisher: bool,
    /// An envelope that is taken instead of the message's own body, and kept beside it.
    #[schema(value_type = Option<Object>)]
    body: Option<Box<RawValue>>,
}

/// The job that a message is.
#[derive(Serialize, ToSchema)]
pub(super) struct RequeuedAs {
    job: JobId,
    /// Whether it is new, and was not there before.
    new: bool,
}

/// Reads a rejected message again and enqueues it
///
/// Only for keys of the operator.
#[utoipa::path(
    post, path = "/v1/rejected/{id}/requeue", operation_id = "requeueRejected", security(("bearer" = ["manage"])),
    params(("id" = Uuid, Path, description = "The ID of the message.", example = example_id)),
    request_body(content = inline(Option<How>), content_type = "application/json"),
    responses((status = 200, description = "The job that it is now.", body = RequeuedAs),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne, OfTheState)
)]
pub(super) async fn requeue(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    caller.may_for_all(Scope::Manage)?;
    Parameters::of(&request).end()?;
    let How { without_reply, any_publisher, body } = optional_json(request).await?;
    let corrected = body.as_deref().map(|body| body.get().as_bytes());
    let view = find(&shared, caller.may(Scope::Manage)?, &id).await?;
    let how = Requeue { without_reply, any_publisher, corrected, by: caller.decider() };
    if !shared.parts.lanes.contains(&how.queue(&view)) {
        let detail = "it stays rejected: its queue is none of the settings any more";
        return Err(Problem::new(Kind::WrongState, detail));
    }
    let (job, new) = match shared.parts.admission.requeue(&view, &how).await? {
        Requeued::New(job) => (job, true),
        Requeued::Known(job) => (job, false),
        Requeued::Before => return Err(Problem::new(Kind::WrongState, "it was requeued before")),
        Requeued::Refused(why) => {
            return Err(Problem::new(Kind::WrongState, format!("it stays rejected: {why}")));
        }
    };
    Ok(Json(RequeuedAs { job, new }).into_response())
}

async fn find(shared: &Shared, principal: &Principal, id: &str) -> Result<RejectedView, Problem> {
    let none = || Problem::new(Kind::NotFound, "there is no rejected message with this ID");
    // What is no ID is no message's.
    let id = Uuid::try_parse(id).map_err(|_| none())?;
    shared.parts.store.rejected_message(principal, id).await?.ok_or_else(none)
}
