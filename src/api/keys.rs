//! Access keys: make, list, rotate and revoke them.

use std::time::Duration;

use axum::{
    Json,
    extract::{Extension, Path, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    caller::Caller,
    problem::{Kind, Problem},
    request::{Parameters, optional_json},
    shared::Shared,
};
use crate::{
    access::{AccessKey, KeyJson, NewKey, Scope, Scopes},
    bounds::MAX_KEYS,
    job::{Owner, OwnerKind, Principal},
    store::AddedKey,
};

/// How long a key that is rotated stays valid beside the new one, unless said otherwise: a day.
const OVERLAP_SECS: u32 = 86_400;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    user_id: Option<String>,
    org_id: Option<String>,
    #[serde(default)]
    operator: bool,
    #[serde(default)]
    scopes: Vec<Scope>,
    expires_in_secs: Option<u32>,
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

/// `POST /v1/keys`.
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
    let (key, secret) = generate(owner, scopes, wanted.expires_in_secs.map(seconds))?;
    match shared.parts.store.add_key(principal, &key).await? {
        AddedKey::Added(key) => Ok(created(&key, &secret)),
        AddedKey::TooMany => Err(Problem::new(
            Kind::WrongState,
            format!("there are {MAX_KEYS} valid keys of this owner; revoke one first"),
        )),
        AddedKey::Foreign => Err(Problem::new(Kind::Forbidden, "this key makes keys of its own owner only")),
    }
}

/// `GET /v1/keys`: the newest first, without secrets.
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct List<'a> {
        items: Vec<KeyJson<'a>>,
        next: Option<Uuid>,
    }

    let principal = caller.may(Scope::Manage)?;
    let mut parameters = Parameters::of(&request);
    let limit = parameters.limit()?;
    let before = parameters.one("cursor", |text| text.parse().map_err(|_| "this is no cursor".to_owned()))?;
    parameters.end()?;
    let keys = shared.parts.store.keys(principal, before, limit).await?;
    let next = (keys.len() == limit).then(|| keys.last().map(|key| key.id)).flatten();
    Ok(Json(List { items: keys.iter().map(AccessKey::json).collect(), next }).into_response())
}

/// `GET /v1/keys/{id}`.
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

/// `POST /v1/keys/{id}/rotate`.
pub(super) async fn rotate(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rotate {
        overlap_secs: Option<u32>,
    }

    let principal = caller.may(Scope::Manage)?;
    Parameters::of(&request).end()?;
    let Rotate { overlap_secs } = optional_json(request).await?;
    let old = find(&shared, principal, &id).await?;
    caller.may_pass_on(&old.scopes)?;
    let overlap = seconds(overlap_secs.unwrap_or(OVERLAP_SECS));
    let (key, secret) = generate(old.principal.clone(), old.scopes.clone(), old.valid_for())?;
    match shared.parts.store.rotate_key(principal, old.id, &key, overlap).await? {
        Some(key) => Ok(created(&key, &secret)),
        None => Err(Problem::new(Kind::WrongState, "the key has ended; create a new one")),
    }
}

/// `POST /v1/keys/{id}/revoke`.
pub(super) async fn revoke(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}

    let principal = caller.may(Scope::Manage)?;
    Parameters::of(&request).end()?;
    let Nothing {} = optional_json(request).await?;
    let key = find(&shared, principal, &id).await?;
    caller.may_pass_on(&key.scopes)?;
    let revoked = shared.parts.store.revoke_key(principal, key.id).await?.ok_or_else(no_key)?;
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
    let json = KeyJson { secret: Some(secret.expose_secret()), ..key.json() };
    (StatusCode::CREATED, Json(json)).into_response()
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}
