//! Events: what became of jobs and batches, as a list and as a stream.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Extension, Request, State},
    http::{HeaderMap, HeaderName, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::{
    IntoParams, ToSchema,
    openapi::path::{Parameter, ParameterIn},
};

use super::{
    batches::no_batch,
    caller::{Admitted, Caller},
    connections::Asking,
    described::{OfAnyRequest, OfEvents, OfItsContent, OfOne, cursor, id, number, optional, owner},
    follower::{Beginning, follow},
    problem::{Kind, Problem},
    request::{MAX_LIMIT, Parameters, named_owner, parsed, plain, text},
    sealing::Cursors,
    shared::Shared,
};
use crate::{
    access::Scope,
    job::{Owner, Principal},
    job_json::KnownJob,
    store::{EventsOf, PlacedEvent},
};

/// Events in their order.
#[derive(Serialize, ToSchema)]
pub(super) struct EventPage<'a> {
    items: Vec<PlacedEvent<'a>>,
    /// Where to go on, now or later: the `after` of the next request. It is always there, and moves on also where there is nothing new.
    next: String,
}

/// The parameters of a list or stream.
#[derive(Debug)]
struct Wanted {
    of: Option<EventsOf>,
    owner: Option<Owner>,
    after: Option<String>,
    limit: usize,
}

impl IntoParams for Wanted {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let told = || cursor(Cursors::pattern());
        let query = |name, schema: utoipa::openapi::ObjectBuilder, description| {
            optional(ParameterIn::Query, name, schema, description)
        };
        vec![
            query("job", id(), "Of this job."),
            query("batch", id(), "Of this batch, and of its jobs."),
            query("owner", owner(), "Of this owner: `user:ID` or `org:ID`."),
            query(
                "after",
                told(),
                "Behind this cursor: the `next` of a page, or the `cursor` of an event. A list without it begins with the oldest event, \
                 a stream of one job or batch, too, and any other stream with the next.",
            ),
            query("limit", number(1, MAX_LIMIT), "The most events of a page. 50 without it."),
            optional(
                ParameterIn::Header,
                "Last-Event-ID",
                told(),
                "The same as `after`, as browsers say it when they connect to a stream again.",
            ),
        ]
    }
}

impl Wanted {
    fn of(mut query: Parameters, headers: &HeaderMap) -> Result<Self, Problem> {
        let bad = |detail: &str| Problem::new(Kind::BadRequest, detail);
        let of = match (query.one("job", parsed)?, query.one("batch", parsed)?) {
            (None, None) => None,
            (Some(job), None) => Some(EventsOf::Job(job)),
            (None, Some(batch)) => Some(EventsOf::Batch(batch)),
            (Some(_), Some(_)) => return Err(bad("ask for the events of a job or of a batch, not of both")),
        };
        let owner = query.one("owner", named_owner)?;
        if of.is_some() && owner.is_some() {
            return Err(bad("a job or a batch has one owner; leave out `owner`"));
        }
        let after = query.one("after", plain)?;
        let limit = query.limit()?;
        // The gate has taken it.
        query.all("token");
        query.end()?;
        let last = text(headers, HeaderName::from_static("last-event-id"))?;
        // A browser that connects again sends both, of which its own is newer.
        let after = last.filter(|last| !last.is_empty()).map(str::to_owned).or(after);
        Ok(Self { of, owner, after, limit })
    }
}

/// One whose events are asked for.
pub(super) struct Subject {
    /// As whom they are read.
    pub(super) whose: Principal,
    pub(super) of: EventsOf,
    /// When it was created, if it is one.
    pub(super) since: Option<Timestamp>,
    /// Whether it has come to an end, so that there may be no more of them.
    pub(super) is_over: bool,
}

/// A job or batch that is there for this reader, or all that they may see.
pub(super) async fn subject(shared: &Shared, reader: &Principal, of: EventsOf) -> Result<Subject, Problem> {
    let store = &shared.parts.store;
    Ok(match of {
        EventsOf::All => Subject { whose: reader.clone(), of, since: None, is_over: false },
        EventsOf::Job(id) => {
            let job = KnownJob::look(store, reader, id).await?.ok_or_else(Problem::no_job)?;
            let whose = Principal::Owner(job.spec.owner.clone());
            Subject {
                whose,
                of: EventsOf::Job(job.spec.id),
                since: Some(job.created_at),
                is_over: job.state.is_final(),
            }
        }
        EventsOf::Batch(id) => {
            let batch = store.batch(reader, id, false).await?.ok_or_else(no_batch)?;
            Subject {
                whose: batch.principal.clone(),
                of,
                since: Some(batch.created_at),
                is_over: batch.completed_at.is_some(),
            }
        }
    })
}

/// Lists events, or follows them
///
/// What ends or holds a job, what somebody decides about a job or batch, and the completion of a batch, in the order in which they
/// happened, the oldest first. Whoever goes on behind the last one that they have read misses none. With `Accept: text/event-stream`
/// they come as they happen, as server-sent events: `id` is the `cursor`, `event` the `type`, and `data` the event as in the list. The stream of one job or batch
/// ends with it; where there is nothing more of it, the answer is 204, after which browsers do not connect again.
#[utoipa::path(
    get, path = "/v1/events", operation_id = "listEvents", security(("bearer" = ["read"]), ("token" = [])),
    params(Wanted),
    responses(
        (status = 200, description = "A page of the list, or the stream.", content(
            (EventPage = "application/json"), (String = "text/event-stream"))),
        (status = 204, description = "Of a stream: it is over, and all was told."),
        OfAnyRequest, OfItsContent, OfOne, OfEvents,
    )
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Extension(admitted): Extension<Arc<Admitted>>,
    Extension(asking): Extension<Arc<Asking>>,
    request: Request,
) -> Result<Response, Problem> {
    let reader = caller.may(Scope::Read)?;
    let wanted = Wanted::of(Parameters::of(&request), request.headers())?;
    let is_stream = accepts_stream(request.headers());
    // It lies in the buffer into which it was read, which nobody keeps who follows.
    drop(request);
    let of = caller.may_follow(wanted.of)?;
    shared.parts.needs_events()?;
    let begin = beginning(&shared, reader, of, &wanted);
    // What reads a job is not carried along by those who follow, of whom there may be ten thousand.
    let beginning = Box::pin(begin).await?;
    if is_stream {
        let seals = shared.sealing.seals().await?.clone();
        return follow(shared.streams, seals, beginning, admitted, asking).await;
    }
    page(&shared, &beginning, wanted.limit).await
}

async fn beginning(
    shared: &Shared,
    reader: &Principal,
    of: EventsOf,
    wanted: &Wanted,
) -> Result<Beginning, Problem> {
    let Subject { whose, of, since, is_over } = subject(shared, reader, of).await?;
    let whose = match &wanted.owner {
        Some(owner) if !reader.may_see(owner) => {
            return Err(Problem::new(Kind::Forbidden, "this key reads the events of its own owner only"));
        }
        Some(owner) => Principal::Owner(owner.clone()),
        None => whose,
    };
    let (cursors, seals) = (Cursors::of(reader), shared.sealing.seals().await?);
    let after = match &wanted.after {
        Some(told) => Some(cursors.read(seals, told).ok_or_else(|| {
            Problem::new(
                Kind::BadRequest,
                "the parameter `after`: it is no cursor of these events; take it as it was told",
            )
        })?),
        None => None,
    };
    Ok(Beginning { whose, of, cursors, after, since, is_over })
}

async fn page(shared: &Shared, from: &Beginning, limit: usize) -> Result<Response, Problem> {
    let (store, seals) = (&shared.parts.store, shared.sealing.seals().await?);
    let Beginning { whose, of, cursors, after, .. } = from;
    let behind = store.events(whose, *of, *after, limit).await?;
    let (events, next) = cursors.readable(seals, behind)?;
    let items = events.iter().map(|event| event.placed(cursors.tell(seals, event.position))).collect();
    Ok(Json(EventPage { items, next: cursors.tell(seals, next) }).into_response())
}

/// Whether a stream is asked for, as event sources of browsers do.
fn accepts_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut types = accepted.flat_map(|value| value.split(',')).filter_map(|said| said.split(';').next());
    types.any(|name| name.trim().eq_ignore_ascii_case("text/event-stream"))
}
