//! Access keys: make, list, rotate and revoke them.

use std::time::Duration;

use axum::{
    Json,
    extract::{Extension, Path, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{
        Object, RefOr, Schema,
        path::{Parameter, ParameterIn},
    },
};
use uuid::Uuid;

use super::{
    caller::Caller,
    decisions::Nothing,
    described::{
        OfAnyRequest, OfItsBody, OfItsContent, OfOne, OfTheState, cursor, example_id, number, optional,
    },
    problem::{Kind, Problem},
    request::{MAX_LIMIT, Parameters, optional_json, parsed},
    shared::Shared,
};
use crate::{
    access::{AccessKey, KeyJson, NewKey, Scope, Scopes},
    bounds::{MAX_KEYS, MAX_OVERLAP},
    cursor::KeyCursor,
    job::{Owner, OwnerKind, Principal},
    store::AddedKey,
};

/// How long a key that is rotated stays valid beside the new one, unless said otherwise: a day.
const OVERLAP_SECS: u32 = 86_400;

/// Which key is to be made. Of `user_id`, `org_id` and `operator` there is one, or none for the owner of the key in use.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Wanted {
    user_id: Option<String>,
    org_id: Option<String>,
    #[serde(default)]
    operator: bool,
    #[serde(default)]
    scopes: Vec<Scope>,
    /// Without it the key is valid for ever.
    #[schema(value_type = Option<u64>)]
    expires_in_secs: Option<u32>,
}

/// How long a key stays valid beside the one that takes its place.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Rotate {
    /// A day without it, and 90 at most.
    #[schema(maximum = 7_776_000)]
    overlap_secs: Option<u32>,
}

/// The schema of a key without its secret.
#[derive(Debug)]
pub(super) struct Key;

impl ToSchema for Key {}

impl PartialSchema for Key {
    fn schema() -> RefOr<Schema> {
        let RefOr::T(Schema::Object(mut key)) = KeyJson::schema() else { return Object::new().into() };
        key.description = Some("An access key, without its secret.".to_owned());
        key.properties.remove("secret");
        Schema::Object(key).into()
    }
}

/// A page of keys, the newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct KeyPage<'a> {
    #[schema(value_type = Vec<Key>)]
    items: Vec<KeyJson<'a>>,
    /// The `cursor` of the next page, and `null` where there is none.
    next: Option<String>,
}

/// The parameters of a page of keys.
#[derive(Debug)]
struct Page;

impl IntoParams for Page {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![
            optional(
                ParameterIn::Query,
                "cursor",
                cursor(KeyCursor::pattern()),
                "Where to go on: the `next` of the page before.",
            ),
            optional(
                ParameterIn::Query,
                "limit",
                number(1, MAX_LIMIT),
                "The most keys of the page. 50 without it.",
            ),
        ]
    }
}

impl Wanted {
    /// Whose key it is to be: the caller's own, where nobody is named.
    fn principal(&self, caller: &Principal) -> Result<Principal, Problem> {
        let owner = |kind, id: &String| {
            Owner::new(kind, id)
                .map(Principal::Owner)
                .map_err(|error| Problem::new(Kind::BadRequest, format!("the owner's ID {error}")))
        };
        match (&self.user_id, &self.org_id, self.operator) {
            (Some(id), None, false) => owner(OwnerKind::User, id),
            (None, Some(id), false) => owner(OwnerKind::Org, id),
            (None, None, true) => Ok(Principal::Operator),
            (None, None, false) if *caller != Principal::Operator => Ok(caller.clone()),
            _ => Err(Problem::new(
                Kind::BadRequest,
                "say whose key it is by one of `user_id`, `org_id` and `\"operator\": true`",
            )),
        }
    }
}

/// Makes an access key
#[utoipa::path(
    post, path = "/v1/keys", operation_id = "createKey", security(("bearer" = ["manage"])),
    request_body(content = inline(Wanted), content_type = "application/json",
        example = json!({"org_id": "org-7", "scopes": ["enqueue", "read"]})),
    responses((status = 201, description = "The key. Its secret is told this once.", body = KeyJson),
        OfAnyRequest, OfItsContent, OfItsBody, OfTheState)
)]
pub(super) async fn create(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let principal = caller.may(Scope::Manage)?;
    let wanted: Wanted = optional_json(request).await?;
    let owner = wanted.principal(principal)?;
    let scopes = Scopes::new(wanted.scopes)
        .map_err(|error| Problem::new(Kind::BadRequest, format!("`scopes`: {error}")))?;
    caller.may_pass_on(&scopes)?;
    let valid_for = caller.may_last(wanted.expires_in_secs.map(seconds), None, shared.parts.clock.now());
    let (key, secret) = generate(owner, scopes, valid_for)?;
    match shared.parts.store.add_key(principal, &key, caller.decider()).await? {
        AddedKey::Added(key) => Ok(created(&key, &secret)),
        AddedKey::TooMany => Err(Problem::new(
            Kind::WrongState,
            format!("there are {MAX_KEYS} valid keys of this owner; revoke one first"),
        )),
        AddedKey::Foreign => Err(Problem::new(Kind::Forbidden, "this key makes keys of its own owner only")),
    }
}

/// Lists access keys, without secrets, the newest first
#[utoipa::path(
    get, path = "/v1/keys", operation_id = "listKeys", security(("bearer" = ["manage"])),
    params(Page),
    responses((status = 200, description = "A page of the list.", body = KeyPage), OfAnyRequest, OfItsContent)
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let principal = caller.may(Scope::Manage)?;
    let mut parameters = Parameters::of(&request);
    let limit = parameters.limit()?;
    let before = parameters.one("cursor", parsed)?.map(|cursor: KeyCursor| cursor.0);
    parameters.end()?;
    let keys = shared.parts.store.keys(principal, before, limit).await?;
    let next =
        (keys.len() == limit).then(|| keys.last().map(|key| KeyCursor::of(key.id).to_string())).flatten();
    Ok(Json(KeyPage { items: keys.iter().map(AccessKey::json).collect(), next }).into_response())
}

/// Reads an access key, without its secret
#[utoipa::path(
    get, path = "/v1/keys/{id}", operation_id = "showKey", security(("bearer" = ["manage"])),
    params(("id" = Uuid, Path, description = "The ID of the key.", example = example_id)),
    responses((status = 200, description = "The key.", body = Key), OfAnyRequest, OfItsContent, OfOne)
)]
pub(super) async fn show(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    Parameters::of(&request).end()?;
    let key = find(&shared, caller.may(Scope::Manage)?, &id).await?;
    Ok(Json(key.json()).into_response())
}

/// Makes a key that takes another's place
#[utoipa::path(
    post, path = "/v1/keys/{id}/rotate", operation_id = "rotateKey", security(("bearer" = ["manage"])),
    params(("id" = Uuid, Path, description = "The ID of the key.", example = example_id)),
    request_body(content = inline(Option<Rotate>), content_type = "application/json"),
    responses((status = 201, description = "The new key. Its secret is told this once.", body = KeyJson),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne, OfTheState)
)]
pub(super) async fn rotate(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let principal = caller.may(Scope::Manage)?;
    Parameters::of(&request).end()?;
    let Rotate { overlap_secs } = optional_json(request).await?;
    let old = find(&shared, principal, &id).await?;
    caller.may_pass_on(&old.scopes)?;
    let overlap = seconds(overlap_secs.unwrap_or(OVERLAP_SECS));
    if overlap > MAX_OVERLAP {
        let detail = format!("`overlap_secs` may be {} at most", MAX_OVERLAP.as_secs());
        return Err(Problem::new(Kind::BadRequest, detail));
    }
    let valid_for = caller.may_last(old.valid_for(), Some(old.id), shared.parts.clock.now());
    let (key, secret) = generate(old.principal.clone(), old.scopes.clone(), valid_for)?;
    match shared.parts.store.rotate_key(principal, old.id, &key, overlap, caller.decider()).await? {
        Some(key) => Ok(created(&key, &secret)),
        None => Err(Problem::new(
            Kind::WrongState,
            "the key has ended, or was replaced before, or there are too many; create a new one, or revoke some",
        )),
    }
}

/// Ends a key at once
#[utoipa::path(
    post, path = "/v1/keys/{id}/revoke", operation_id = "revokeKey", security(("bearer" = ["manage"])),
    params(("id" = Uuid, Path, description = "The ID of the key.", example = example_id)),
    request_body(content = inline(Option<Nothing>), content_type = "application/json"),
    responses((status = 200, description = "The key, which has ended.", body = Key),
        OfAnyRequest, OfItsContent, OfItsBody, OfOne)
)]
pub(super) async fn revoke(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let principal = caller.may(Scope::Manage)?;
    Parameters::of(&request).end()?;
    let Nothing {} = optional_json(request).await?;
    let key = find(&shared, principal, &id).await?;
    caller.may_pass_on(&key.scopes)?;
    let revoked =
        shared.parts.store.revoke_key(principal, key.id, caller.decider()).await?.ok_or_else(no_key)?;
    Ok(Json(revoked.json()).into_response())
}

async fn find(shared: &Shared, principal: &Principal, id: &str) -> Result<AccessKey, Problem> {
    // What is no ID is no key's.
    let id = Uuid::try_parse(id).map_err(|_| no_key())?;
    shared.parts.store.key(principal, id).await?.ok_or_else(no_key)
}

fn no_key() -> Problem {
    Problem::new(Kind::NotFound, "there is no key with this ID, or it ended long ago")
}

fn generate(
    principal: Principal,
    scopes: Scopes,
    valid_for: Option<Duration>,
) -> Result<(NewKey, SecretString), Problem> {
    NewKey::generate(principal, scopes, valid_for)
        .map_err(|_| Problem::new(Kind::Internal, "the operating system gives no random bytes"))
}

fn created(key: &AccessKey, secret: &SecretString) -> Response {
    let json = KeyJson { secret: Some(secret), ..key.json() };
    (StatusCode::CREATED, Json(json)).into_response()
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}
