//! Callbacks: where events are sent, what signs them, and what became of that.

use std::time::Duration;

use axum::{
    Json,
    extract::{Extension, Request, State},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{
    IntoParams, ToSchema,
    openapi::path::{Parameter, ParameterIn},
};

use super::{
    caller::Caller,
    described::{
        OfAnyRequest, OfCallbacks, OfItsBody, OfItsContent, OfTheState, cursor, number, optional, owner,
        words,
    },
    problem::{Kind, Problem},
    request::{MAX_LIMIT, Parameters, moment_in_json, named_owner, optional_json, parsed},
    shared::Shared,
};
use crate::{
    access::Scope,
    bounds::MAX_OVERLAP,
    callback::Secret,
    cursor::{DeliveryCursor, OwnerCursor},
    desk_json::{CallbackJson, CallbackSecretJson, DeliveryJson},
    job::{CallbackUrl, Owner, Principal},
    store::{DeliveryFilter, DeliveryState, Recovery},
};

/// How long a secret that is replaced signs beside the new one, unless said otherwise: a day.
const OVERLAP_SECS: u32 = 86_400;

/// The most deliveries that one request makes due again.
const RECOVERED_TOGETHER: usize = 10_000;

/// Callbacks of owners.
#[derive(Serialize, ToSchema)]
pub(super) struct CallbackPage<'a> {
    items: Vec<CallbackJson<'a>>,
    /// The `cursor` of the next page, and `null` where there is none.
    next: Option<String>,
}

/// Deliveries, the newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct DeliveryPage<'a> {
    items: Vec<DeliveryJson<'a>>,
    /// The `cursor` of the next page, and `null` where there is none.
    next: Option<String>,
}

/// The parameters of a page of callbacks.
#[derive(Debug)]
struct CallbacksWanted;

impl IntoParams for CallbacksWanted {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![
            optional(
                ParameterIn::Query,
                "cursor",
                cursor(OwnerCursor::pattern()),
                "Where to go on: the `next` of the page before.",
            ),
            optional(
                ParameterIn::Query,
                "limit",
                number(1, MAX_LIMIT),
                "The most callbacks of the page. 50 without it.",
            ),
        ]
    }
}

/// The parameters of a page of deliveries.
#[derive(Debug)]
struct DeliveriesWanted;

impl IntoParams for DeliveriesWanted {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let query = |name, schema: utoipa::openapi::ObjectBuilder, description| {
            optional(ParameterIn::Query, name, schema, description)
        };
        vec![
            query("owner", owner(), "Of this owner: `user:ID` or `org:ID`."),
            query("state", words(DeliveryState::WORDS), "In this state."),
            query(
                "cursor",
                cursor(DeliveryCursor::pattern()),
                "Where to go on: the `next` of the page before.",
            ),
            query("limit", number(1, MAX_LIMIT), "The most deliveries of the page. 50 without it."),
        ]
    }
}

/// Whose callback is meant.
#[derive(Debug)]
struct Whose;

impl IntoParams for Whose {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let what = "Whose callback it is, `user:ID` or `org:ID`. Without it that of the key's owner.";
        vec![optional(ParameterIn::Query, "owner", owner(), what)]
    }
}

/// The owner whose callback is meant.
fn whose(principal: &Principal, request: &Request) -> Result<Owner, Problem> {
    let mut parameters = Parameters::of(request);
    let named = parameters.one("owner", named_owner)?;
    parameters.end()?;
    let named = match named {
        // It may be one of before the rules became strict, and callbacks are new.
        Some(named) => Some(Owner::new(named.kind(), named.id()).map_err(|error| {
            Problem::new(Kind::BadRequest, format!("the parameter `owner`: the owner's ID {error}"))
        })?),
        None => None,
    };
    match (principal, named) {
        (Principal::Operator, Some(named)) => Ok(named),
        (Principal::Operator, None) => Err(Problem::new(
            Kind::BadRequest,
            "say whose callback is meant by `owner=user:ID` or `owner=org:ID`",
        )),
        (Principal::Owner(own), None) => Ok(own.clone()),
        (Principal::Owner(own), Some(named)) if *own == named => Ok(named),
        (Principal::Owner(_), Some(_)) => {
            Err(Problem::new(Kind::Forbidden, "this key sees to callbacks of its own owner only"))
        }
    }
}

/// One that nobody can guess.
fn fresh() -> Result<Secret, Problem> {
    Secret::generate().map_err(|_| Problem::new(Kind::Internal, "no secret can be made just now; try again"))
}

/// Lists callbacks
///
/// Owners who have set a URL, in the order of their names: a key of an owner sees its own, and one of the operator all.
#[utoipa::path(
    get, path = "/v1/callbacks", operation_id = "listCallbacks", security(("bearer" = ["read"])),
    params(CallbacksWanted),
    responses((status = 200, description = "A page of the list.", body = CallbackPage), OfAnyRequest, OfItsContent)
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let reader = caller.may(Scope::Read)?;
    let mut query = Parameters::of(&request);
    let behind = query.one("cursor", parsed)?.map(|cursor: OwnerCursor| cursor.0);
    let limit = query.limit()?;
    query.end()?;
    let callbacks = shared.parts.store.callbacks(reader, behind, limit).await?;
    let last = callbacks.last().filter(|_| callbacks.len() == limit);
    let next = last.map(|callback| OwnerCursor::of(callback.owner.clone()).to_string());
    Ok(Json(CallbackPage { items: callbacks.iter().map(CallbackJson::of).collect(), next }).into_response())
}

/// Where events are to be sent.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Up to 1,024 bytes, `http` or `https`.
    #[schema(required = true, value_type = String, example = "https://app.example.com/errand", max_length = 1024)]
    url: Option<String>,
}

/// Sets where all events of an owner are sent
///
/// From now on. What has been disabled is enabled by it. What was not delivered until then is sent by `POST /v1/callbacks/recover`.
#[utoipa::path(
    put, path = "/v1/callbacks", operation_id = "setCallback", security(("bearer" = ["manage"])),
    params(Whose),
    request_body(content = inline(Wanted), content_type = "application/json"),
    responses((status = 200, description = "The callback.", body = CallbackJson), OfAnyRequest, OfItsContent, OfItsBody, OfCallbacks)
)]
pub(super) async fn set(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let manager = caller.may(Scope::Manage)?;
    let owner = whose(manager, &request)?;
    let Wanted { url } = optional_json(request).await?;
    shared.parts.needs_callbacks()?;
    let bad = |what: String| Problem::new(Kind::BadRequest, what);
    let url = url.ok_or_else(|| bad("`url` is missing; DELETE takes it away".to_owned()))?;
    let url: CallbackUrl = url.parse().map_err(|error| bad(format!("`url` {error}")))?;
    let fresh = fresh()?;
    let set = shared.parts.store.set_callback(manager, &owner, Some(url), &fresh, caller.decider());
    let callback = set.await?.ok_or_else(Problem::no_callback)?;
    Ok(Json(CallbackJson::of(&callback)).into_response())
}

/// Sends an owner's events nowhere any more
///
/// But to where jobs and batches name. What waits is still sent.
#[utoipa::path(
    delete, path = "/v1/callbacks", operation_id = "removeCallback", security(("bearer" = ["manage"])),
    params(Whose),
    responses((status = 200, description = "The callback, without a URL.", body = CallbackJson), OfAnyRequest, OfItsContent)
)]
pub(super) async fn remove(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let manager = caller.may(Scope::Manage)?;
    let owner = whose(manager, &request)?;
    let fresh = fresh()?;
    let set = shared.parts.store.set_callback(manager, &owner, None, &fresh, caller.decider());
    let callback = set.await?.ok_or_else(Problem::no_callback)?;
    Ok(Json(CallbackJson::of(&callback)).into_response())
}

/// Whether the secret is to be another one.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Replace {
    /// With `true` it is replaced.
    #[serde(default)]
    replace: bool,
    /// How long the one before signs beside it: a day without it, and 90 at most.
    #[schema(maximum = 7_776_000)]
    overlap_secs: Option<u32>,
}

/// Tells or replaces the secret that signs an owner's callbacks
///
/// All that is sent for the owner is signed by it, also to the URLs that jobs and batches name. The first request makes it.
#[utoipa::path(
    post, path = "/v1/callbacks/secret", operation_id = "callbackSecret", security(("bearer" = ["manage"])),
    params(Whose),
    request_body(content = inline(Option<Replace>), content_type = "application/json"),
    responses((status = 200, description = "The secret.", body = CallbackSecretJson), OfAnyRequest, OfItsContent, OfItsBody, OfTheState)
)]
pub(super) async fn secret(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let manager = caller.may(Scope::Manage)?;
    let owner = whose(manager, &request)?;
    let Replace { replace, overlap_secs } = optional_json(request).await?;
    let overlap = Duration::from_secs(overlap_secs.unwrap_or(OVERLAP_SECS).into());
    if overlap > MAX_OVERLAP {
        return Err(Problem::new(
            Kind::BadRequest,
            "`overlap_secs` may be 7776000 at most, which is 90 days",
        ));
    }
    let replaced = replace.then_some(overlap);
    let fresh = fresh()?;
    let secrets = shared.parts.store.callback_secrets(manager, &owner, &fresh, replaced, caller.decider());
    let secrets = secrets.await?.ok_or_else(Problem::no_callback)?;
    if let Some((_, until)) = secrets.previous.as_ref().filter(|_| replace)
        && secrets.secret.expose_bytes() != fresh.expose_bytes()
    {
        let detail = format!(
            "the secret was replaced before, and the one before it signs until {until}; replace it then, or at once with \
             `\"overlap_secs\": 0`, after which only the new one signs"
        );
        return Err(Problem::new(Kind::WrongState, detail));
    }
    Ok(Json(CallbackSecretJson::of(&owner, &secrets)).into_response())
}

/// Lists deliveries, newest first
///
/// What is sent to whom, how often that was tried, and what the last answer was.
#[utoipa::path(
    get, path = "/v1/deliveries", operation_id = "listDeliveries", security(("bearer" = ["read"])),
    params(DeliveriesWanted),
    responses((status = 200, description = "A page of the list.", body = DeliveryPage), OfAnyRequest, OfItsContent)
)]
pub(super) async fn deliveries(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let reader = caller.may(Scope::Read)?;
    let mut query = Parameters::of(&request);
    let filter =
        DeliveryFilter { owner: query.one("owner", named_owner)?, state: query.one("state", parsed)? };
    let before = query.one("cursor", parsed)?.map(|cursor: DeliveryCursor| cursor.0);
    let limit = query.limit()?;
    query.end()?;
    let deliveries = shared.parts.store.deliveries(reader, &filter, before, limit).await?;
    let last = deliveries.last().filter(|_| deliveries.len() == limit);
    let next = last.map(|delivery| DeliveryCursor::of(delivery.place()).to_string());
    Ok(Json(DeliveryPage { items: deliveries.iter().map(DeliveryJson::of).collect(), next }).into_response())
}

/// Which deliveries are sent again.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Recover {
    /// Those of events since then.
    #[serde(default, deserialize_with = "moment_in_json")]
    #[schema(required = true, value_type = String, format = DateTime, example = "2026-01-31T12:00:00Z")]
    since: Option<Timestamp>,
    /// With `true` also those that were delivered.
    #[serde(default)]
    delivered: bool,
    /// Where to go on: the `next` of the answer before.
    #[schema(value_type = Option<String>)]
    cursor: Option<String>,
}

/// How many deliveries are sent again.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Recovered {
    deliveries: u64,
    /// The `cursor` of the next request, and `null` where there is nothing left.
    next: Option<String>,
}

/// Sends deliveries of an owner again
///
/// Those that failed, the newest first, up to 10,000 with one request. Each has the `webhook-id` that it had.
#[utoipa::path(
    post, path = "/v1/callbacks/recover", operation_id = "recoverCallbacks", security(("bearer" = ["manage"])),
    params(Whose),
    request_body(content = inline(Recover), content_type = "application/json"),
    responses((status = 200, description = "They are due.", body = Recovered), OfAnyRequest, OfItsContent, OfItsBody)
)]
pub(super) async fn recover(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let manager = caller.may(Scope::Manage)?;
    let owner = whose(manager, &request)?;
    let Recover { since, delivered, cursor } = optional_json(request).await?;
    let bad = |detail: String| Problem::new(Kind::BadRequest, detail);
    let since = since.ok_or_else(|| bad("`since` is missing: a time such as 2026-01-31T12:00:00Z".into()))?;
    let before = cursor.map(|cursor| cursor.parse::<DeliveryCursor>()).transpose();
    let before = before.map_err(|error| bad(format!("`cursor`: {error}")))?.map(|cursor| cursor.0);
    let recovery = Recovery { since, before, delivered };
    let (deliveries, next) = shared
        .parts
        .store
        .recover_deliveries(manager, &owner, &recovery, RECOVERED_TOGETHER, caller.decider())
        .await?;
    let next = next.map(|place| DeliveryCursor::of(place).to_string());
    Ok(Json(Recovered { deliveries, next }).into_response())
}
