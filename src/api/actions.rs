//! Actions: one decision about all jobs that a filter means, which is previewed, confirmed and followed.

use axum::{
    Json,
    extract::{Extension, Path, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;
use utoipa::{
    IntoParams, ToSchema,
    openapi::path::{Parameter, ParameterIn},
};
use uuid::Uuid;

use super::{
    caller::Caller,
    decisions::Nothing,
    described::{
        OfAKey, OfAnyRequest, OfItsBody, OfItsContent, OfOne, OfRunningAgain, OfTheState, cursor, example_id,
        line, number, optional,
    },
    filter::FilterBody,
    problem::{Kind, Problem},
    request::{MAX_LIMIT, Parameters, Waiting, idempotency_key, optional_json, parsed, preferred_wait},
    shared::Shared,
    waiters::{Subject, not_yet},
};
use crate::{
    access::Scope,
    actions::{ActionJson, CONFIRM_WITHIN, Extent, Nonsense, narrow, preview},
    bounds::{MAX_FILTER_BYTES, MAX_OPEN_ACTIONS, MAX_SHORT_TEXT_BYTES},
    cursor::ActionCursor,
    job::{Principal, Release},
    store::{
        Action, ActionDecision, ActionKind, BadFilter, Confirmed, FilterJson, Force, JobFilter, MadeAction,
        NewAction,
    },
};

/// What is to be done to which jobs.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Wanted {
    #[schema(value_type = ActionKind, inline)]
    action: Option<String>,
    #[schema(value_type = Option<FilterBody>, inline)]
    filter: Option<Box<RawValue>>,
    /// With an empty filter: that all jobs are meant.
    all: bool,
    /// For `release`: `retry` makes the calls again, `succeeded` and `failed` say how they ended.
    #[schema(value_type = Option<Release>, inline)]
    how: Option<String>,
    /// For what makes calls again: also jobs whose last call may have had its effect, which this would repeat.
    force: bool,
    /// For `retry`: also jobs whose `run_at` is still to come.
    now: bool,
}

/// What is confirmed.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct Confirm {
    /// Whether effects may be repeated. Needed where the action was made with `force` and there are such jobs.
    force: bool,
}

/// A page of actions, the newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct ActionPage<'a> {
    #[schema(value_type = Vec<ActionJson>)]
    items: Vec<ActionJson<'a>>,
    /// The `cursor` of the next page, and `null` where there is none.
    next: Option<String>,
}

/// The parameters of a page of actions.
#[derive(Debug)]
struct Page;

impl IntoParams for Page {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let query = |name, schema, what| optional(ParameterIn::Query, name, schema, what);
        vec![
            query(
                "cursor",
                cursor(ActionCursor::pattern()),
                "Where to go on: the `next` of the page before.",
            ),
            query("limit", number(1, MAX_LIMIT), "The most actions of the page. 50 without it."),
        ]
    }
}

/// The header by which an action is recognized that is made again.
#[derive(Debug)]
struct Repeatable;

impl IntoParams for Repeatable {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let key = line().pattern(Some("^[ -~]*$")).max_length(Some(256));
        let what = "Makes the same request again the same action.";
        vec![optional(ParameterIn::Header, "Idempotency-Key", key, what)]
    }
}

impl Wanted {
    fn decision(&self) -> Result<ActionDecision, Problem> {
        let bad = |detail: &str| Problem::new(Kind::BadRequest, detail);
        let kind = self.action.as_deref().and_then(|kind| kind.parse().ok());
        let kind =
            kind.ok_or_else(|| bad("say what to do: `action` is `cancel`, `retry`, `release` or `prune`"))?;
        let how = self.how.as_deref().map(|how| how.parse().map_err(|_| ())).transpose();
        let decision = match (kind, how) {
            (ActionKind::Release, Ok(Some(how))) => ActionDecision::Release(how),
            (ActionKind::Release, _) => {
                return Err(bad(
                    "say what is known of the calls: `how` is `retry`, which makes them again, `succeeded` or `failed`",
                ));
            }
            (_, Ok(Some(_)) | Err(())) => return Err(bad("`how` is for `release` only")),
            (ActionKind::Cancel, Ok(None)) => ActionDecision::Cancel,
            (ActionKind::Retry, Ok(None)) => ActionDecision::Retry,
            (ActionKind::Prune, Ok(None)) => ActionDecision::Prune,
        };
        if self.force && !decision.runs_again() {
            return Err(bad("`force` is for what makes calls again only"));
        }
        if self.now && decision != ActionDecision::Retry {
            return Err(bad("`now` is for `retry` only"));
        }
        Ok(decision)
    }

    fn asked(&self) -> Result<FilterJson, Problem> {
        let bad = |what: &str| Problem::new(Kind::BadRequest, format!("`filter` cannot be read: {what}"));
        match self.filter.as_deref().map(RawValue::get) {
            None => Ok(FilterJson::default()),
            // A list would be read as the fields in their order.
            Some(json) if json.starts_with('{') => {
                serde_json::from_str(json).map_err(|error| bad(&error.to_string()))
            }
            Some(_) => Err(bad("it must be an object")),
        }
    }

    fn filter(&self, decision: ActionDecision) -> Result<JobFilter, Problem> {
        let bad =
            |BadFilter { field, why }| Problem::new(Kind::BadRequest, format!("`filter.{field}`: {why}"));
        let filter = self.asked()?.filter().map_err(bad)?;
        if filter.is_empty() && !self.all {
            let detail = "`filter` is empty, which means all jobs; send {\"all\": true} if that is wanted";
            return Err(Problem::new(Kind::BadRequest, detail));
        }
        let refused = |nonsense| {
            let detail = match nonsense {
                Nonsense::Illegal(illegal) => format!("{illegal}: change `filter.state`"),
                Nonsense::HasNotRun(reason) => format!(
                    "jobs that are held for {reason} have not run, so that they can only be let go to run: {{\"how\": \"retry\"}}; \
                     or name another `filter.held_reason`, which is `connection` where none is named"
                ),
                Nonsense::NotFinal(state) => {
                    format!("a {state} job is not final and cannot be removed: change `filter.state`")
                }
            };
            Problem::new(Kind::BadRequest, detail)
        };
        narrow(decision, filter).map_err(refused)
    }
}

/// Makes an action
///
/// It changes nothing before it is confirmed, which has to be within an hour: the preview counts what it would be about.
/// Only jobs are meant that are there already.
#[utoipa::path(
    post, path = "/v1/actions", operation_id = "createAction", security(("bearer" = ["manage"])),
    params(Repeatable),
    request_body(content = inline(Wanted), content_type = "application/json",
        example = json!({"action": "retry", "filter": {"tool": "GITHUB_GET_REPO", "error_kind": "tool_failed"}})),
    responses(
        (status = 201, description = "The action, with its preview.", body = ActionJson,
            headers(("Location" = String, description = "Where the action is."))),
        (status = 200, description = "It was made before, with this `Idempotency-Key`.", body = ActionJson,
            headers(("Location" = String, description = "Where the action is."))),
        OfAnyRequest, OfItsContent, OfItsBody, OfTheState, OfAKey)
)]
pub(super) async fn create(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let principal = caller.may(Scope::Manage)?;
    Parameters::of(&request).end()?;
    let id = action_id(principal, idempotency_key(request.headers())?)?;
    let wanted: Wanted = optional_json(request).await?;
    let decision = wanted.decision()?;
    let filter = wanted.filter(decision)?;
    if filter.owner.as_ref().is_some_and(|owner| !principal.may_see(owner)) {
        return Err(Problem::new(Kind::Forbidden, "this key decides about jobs of its own owner only"));
    }
    let store = &shared.parts.store;
    let until = store.now().await?;
    let until = filter.until.map_or(until, |asked| asked.min(until));
    let mut new = NewAction {
        id,
        decision,
        filter,
        until: Some(until),
        force: Force { effect: wanted.force, early: wanted.now },
        preview: None,
        by: caller.decider().by.to_string(),
    };
    if new.is_too_large() {
        let detail = format!("the filter may have {MAX_FILTER_BYTES} bytes at most");
        return Err(Problem::new(Kind::BadRequest, detail));
    }
    let meant = JobFilter { until: Some(until), ..new.filter.clone() };
    new.preview = Some(preview(store, principal, decision, &meant, Extent::Bounded).await?);
    let (status, action) = match store.make_action(principal, &new, CONFIRM_WITHIN).await? {
        MadeAction::New(action) => (StatusCode::CREATED, action),
        MadeAction::Known(action) => (StatusCode::OK, action),
        MadeAction::Conflict => {
            return Err(Problem::new(
                Kind::KeyConflict,
                format!(
                    "the action {} was made with this `Idempotency-Key` and another body; send another key",
                    new.id
                ),
            ));
        }
        MadeAction::TooMany => {
            let detail = format!(
                "there are {MAX_OPEN_ACTIONS} actions of this owner that have not ended; confirm or abort some first"
            );
            return Err(Problem::new(Kind::WrongState, detail));
        }
    };
    let mut answer = (status, Json(ActionJson::of(&action))).into_response();
    let location = HeaderValue::from_str(&format!("/v1/actions/{}", action.id));
    answer.headers_mut().extend(location.ok().map(|location| (header::LOCATION, location)));
    Ok(answer)
}

/// Lists actions, the newest first
///
/// Those that have ended are kept for thirty days, up to a thousand of an owner.
#[utoipa::path(
    get, path = "/v1/actions", operation_id = "listActions", security(("bearer" = ["manage"])),
    params(Page),
    responses((status = 200, description = "A page of the list.", body = ActionPage), OfAnyRequest, OfItsContent)
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let principal = caller.may(Scope::Manage)?;
    let mut parameters = Parameters::of(&request);
    let limit = parameters.limit()?;
    let before = parameters.one("cursor", parsed)?.map(|cursor: ActionCursor| cursor.0);
    parameters.end()?;
    let actions = shared.parts.store.actions(principal, before, limit).await?;
    let next = (actions.len() == limit)
        .then(|| actions.last().map(|action| ActionCursor::of(action.place()).to_string()));
    Ok(Json(ActionPage { items: actions.iter().map(ActionJson::of).collect(), next: next.flatten() })
        .into_response())
}

/// Reads an action, with its progress, or waits for its end
#[utoipa::path(
    get, path = "/v1/actions/{id}", operation_id = "showAction", security(("bearer" = ["manage"])),
    params(("id" = Uuid, Path, description = "The ID of the action.", example = example_id), Waiting),
    responses(
        (status = 200, description = "The action. After waiting, it has ended.", body = ActionJson),
        (status = 202, description = "After waiting: it has not ended yet.", body = ActionJson,
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
    let id = uuid(&id)?;
    let mut parameters = Parameters::of(&request);
    let wait = parameters.wait()?.or(preferred_wait(request.headers())?);
    parameters.end()?;
    // It lies in the buffer into which it was read, which nobody keeps who waits.
    drop(request);
    let principal = caller.may(Scope::Manage)?;
    let read = async || shared.parts.store.action(principal, id).await?.ok_or_else(no_action);
    let mut action = read().await?;
    if let Some(wait) = wait
        && !action.has_ended()
    {
        shared.waiters.wait(Subject::Action(id), Instant::now() + wait).await;
        action = read().await?;
    }
    let json = Json(ActionJson::of(&action));
    if wait.is_some() && !action.has_ended() {
        return Ok(not_yet(json));
    }
    Ok(json.into_response())
}

/// Lets an action be carried out
///
/// Workers do that, as whose it is and in the name of who confirms it. The same again changes nothing.
#[utoipa::path(
    post, path = "/v1/actions/{id}/confirm", operation_id = "confirmAction", security(("bearer" = ["manage"])),
    params(("id" = Uuid, Path, description = "The ID of the action.", example = example_id)),
    request_body(content = inline(Option<Confirm>), content_type = "application/json"),
    responses((status = 200, description = "The action, which is carried out.", body = ActionJson),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne, OfRunningAgain)
)]
pub(super) async fn confirm(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let principal = caller.may(Scope::Manage)?;
    Parameters::of(&request).end()?;
    let (id, Confirm { force }) = (uuid(&id)?, optional_json(request).await?);
    match shared.parts.store.confirm_action(principal, id, caller.decider(), force).await? {
        Confirmed::Now(action) => shown(Some(*action)),
        Confirmed::Unknown => Err(no_action()),
        Confirmed::Aborted => Err(Problem::new(Kind::WrongState, "the action was aborted; make another one")),
        Confirmed::Expired => Err(Problem::new(
            Kind::WrongState,
            "the action was not confirmed within an hour, and the jobs may be others by now; make another one",
        )),
        Confirmed::NeedsForce => Err(Problem::new(
            Kind::NeedsForce,
            "the action was made to repeat effects that may be there already, as its preview says; send {\"force\": true} if \
             that is wanted",
        )),
    }
}

/// Ends an action
///
/// What was decided stays. One that has ended stays as it is.
#[utoipa::path(
    post, path = "/v1/actions/{id}/abort", operation_id = "abortAction", security(("bearer" = ["manage"])),
    params(("id" = Uuid, Path, description = "The ID of the action.", example = example_id)),
    request_body(content = inline(Option<Nothing>), content_type = "application/json"),
    responses((status = 200, description = "The action, which has ended.", body = ActionJson),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne)
)]
pub(super) async fn abort(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let principal = caller.may(Scope::Manage)?;
    Parameters::of(&request).end()?;
    let (id, Nothing {}) = (uuid(&id)?, optional_json(request).await?);
    shown(shared.parts.store.abort_action(principal, id, caller.decider()).await?)
}

fn shown(action: Option<Action>) -> Result<Response, Problem> {
    Ok(Json(ActionJson::of(&action.ok_or_else(no_action)?)).into_response())
}

fn no_action() -> Problem {
    Problem::new(Kind::NotFound, "there is no action with this ID, or it ended long ago")
}

fn uuid(id: &str) -> Result<Uuid, Problem> {
    Uuid::try_parse(id).map_err(|_| Problem::no_uuid())
}

/// The ID of a new action, which a key gives the same one again. Keys of several owners are several keys.
fn action_id(principal: &Principal, key: Option<&str>) -> Result<Uuid, Problem> {
    let Some(key) = key else { return Ok(Uuid::now_v7()) };
    if key.len() > MAX_SHORT_TEXT_BYTES {
        let detail = format!("the header `Idempotency-Key` may have 1 to {MAX_SHORT_TEXT_BYTES} characters");
        return Err(Problem::new(Kind::BadRequest, detail));
    }
    // No owner's ID has a line break.
    Ok(Uuid::new_v5(&KEYS_OF_ACTIONS, format!("{principal}\n{key}").as_bytes()))
}

/// What IDs are derived from together with keys.
const KEYS_OF_ACTIONS: Uuid = Uuid::from_u128(0x7d1c_5f0a_9a3e_4b52_8f61_2f6d_0c84_e1b7);
