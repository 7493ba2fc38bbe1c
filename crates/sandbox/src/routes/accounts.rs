//! Connected accounts: reading them, and the few ways to change them.

use std::{cmp::Reverse, sync::Arc};

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::Response,
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    extract::{Body, Segment},
    render::{ok, time, uuid_of},
};
use crate::{
    accounts::Account,
    error::{ApiError, json_response},
    query::Query,
    state::Shared,
    world::{AuthConfig, Status},
};

pub(super) async fn list(State(state): State<Shared>, query: Query) -> Result<Response, ApiError> {
    let users = query.list("user_ids");
    let toolkits = query.list("toolkit_slugs");
    let statuses = query.list("statuses");
    let configs = query.list("auth_config_ids");
    let ids = query.list("connected_account_ids");
    let kind = query.text("account_type").unwrap_or("PRIVATE");
    let passes = |wanted: &[&str], found: &str| wanted.is_empty() || wanted.contains(&found);
    let mut found: Vec<Account> = state
        .accounts
        .all(state.now())
        .into_iter()
        .filter(|account| {
            passes(&users, &account.user)
                && passes(&toolkits, &account.toolkit)
                && passes(&statuses, account.status.as_str())
                && passes(&configs, &account.auth_config)
                && passes(&ids, &account.id)
                && (kind == "ALL" || account.shared_with.is_some() == (kind == "SHARED"))
        })
        .collect();
    let by_update = query.text("order_by") == Some("updated_at");
    let key = |account: &Account| {
        let time = if by_update { account.updated_at } else { account.created_at };
        (time, Arc::clone(&account.id))
    };
    match query.text("order_direction") {
        Some("asc") => found.sort_by_cached_key(key),
        _ => found.sort_by_cached_key(|account| Reverse(key(account))),
    }
    let page = query.page(&found, |account| describe(&state, account))?;
    Ok(ok(&page))
}

pub(super) async fn get(State(state): State<Shared>, Segment(id): Segment) -> Result<Response, ApiError> {
    let account = find(&state, &id)?;
    let mut described = describe(&state, &account);
    described["params"] = json!({});
    Ok(ok(&described))
}

#[derive(Debug, Deserialize)]
pub(super) struct LinkRequest {
    auth_config_id: String,
    user_id: String,
    callback_url: Option<String>,
}

pub(super) async fn link(
    State(state): State<Shared>,
    headers: HeaderMap,
    Body(request): Body<LinkRequest>,
) -> Result<Response, ApiError> {
    if request.user_id.is_empty() {
        let errors = vec!["user_id: expected at least 1 character".to_owned()];
        return Err(ApiError::invalid_fields("Invalid request body", errors));
    }
    let config = config_to_connect(&state, &request.auth_config_id)?;
    let now = state.now();
    let token = state.new_id("lk");
    let mut account = new_account(&state, &config, &request.user_id, now);
    account.start_link(token.clone(), request.callback_url, now, state.world.behaviour.link_ttl_seconds);
    let expires_at = account.link.as_ref().map_or(now, |link| link.expires_at);
    let answer = json!({
        "redirect_url": redirect_url(&headers, &token),
        "link_token": token,
        "expires_at": time(expires_at),
        "connected_account_id": &*account.id,
    });
    state.accounts.add(account);
    Ok(json_response(201, answer.to_string()))
}

#[derive(Debug, Deserialize)]
pub(super) struct CreateRequest {
    auth_config: ConfigReference,
    #[serde(default)]
    connection: Connection,
}

#[derive(Debug, Deserialize)]
struct ConfigReference {
    id: String,
}

#[derive(Debug, Default, Deserialize)]
struct Connection {
    user_id: Option<String>,
    callback_url: Option<String>,
    /// Credentials, of which only the status matters here.
    #[serde(default)]
    state: Value,
}

pub(super) async fn create(
    State(state): State<Shared>,
    headers: HeaderMap,
    Body(request): Body<CreateRequest>,
) -> Result<Response, ApiError> {
    let config = config_to_connect(&state, &request.auth_config.id)?;
    let behaviour = &state.world.behaviour;
    if config.managed && config.is_oauth() && !behaviour.legacy_initiate {
        return Err(ApiError::managed_account_creation());
    }
    let Connection { user_id, callback_url, state: credentials } = request.connection;
    // This is the trap that the API sets: an account without a user silently gets this one.
    let user = user_id.as_deref().unwrap_or("default");
    let now = state.now();
    let mut account = new_account(&state, &config, user, now);
    let mut redirect = None;
    if config.is_oauth() && credentials.pointer("/val/status") != Some(&json!(Status::Active)) {
        let token = state.new_id("lk");
        redirect = Some(redirect_url(&headers, &token));
        account.start_link(token, callback_url, now, behaviour.link_ttl_seconds);
    }
    let mut value = json!({ "status": account.status });
    if let Some(url) = &redirect {
        value["redirectUrl"] = json!(url);
    }
    let answer = json!({
        "id": &*account.id,
        "connectionData": { "authScheme": config.scheme, "val": value },
        "status": account.status,
        "redirect_url": redirect,
        "redirect_uri": redirect,
        "deprecated": { "uuid": uuid_of(&account.id), "authConfigUuid": uuid_of(&config.id) },
    });
    state.accounts.add(account);
    Ok(json_response(201, answer.to_string()))
}

#[derive(Debug, Deserialize)]
pub(super) struct StatusRequest {
    enabled: bool,
}

pub(super) async fn set_status(
    State(state): State<Shared>,
    Segment(id): Segment,
    Body(request): Body<StatusRequest>,
) -> Result<Response, ApiError> {
    let changed = state.accounts.change(&id, state.now(), |account| {
        (account.status, account.status_reason) = match request.enabled {
            true => (Status::Active, None),
            false => (Status::Inactive, Some("The status was changed by the user")),
        };
    });
    changed.ok_or_else(|| ApiError::account_resource_not_found(&id))?;
    Ok(ok(&json!({ "success": true })))
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RefreshRequest {
    redirect_url: Option<String>,
}

/// Starts connecting again. An account that worked does not work any more after this, as in the
/// real API.
pub(super) async fn refresh(
    State(state): State<Shared>,
    Segment(id): Segment,
    query: Query,
    headers: HeaderMap,
    Body(request): Body<RefreshRequest>,
) -> Result<Response, ApiError> {
    let callback = request.redirect_url.or_else(|| query.text("redirect_url").map(str::to_owned));
    let now = state.now();
    let token = state.new_id("lk");
    let ttl = state.world.behaviour.link_ttl_seconds;
    let status = state.accounts.change(&id, now, |account| {
        account.start_link(token.clone(), callback, now, ttl);
        account.status
    });
    let status = status.ok_or_else(|| ApiError::account_resource_not_found(&id))?;
    Ok(ok(&json!({ "id": id, "status": status, "redirect_url": redirect_url(&headers, &token) })))
}

pub(super) async fn delete(State(state): State<Shared>, Segment(id): Segment) -> Result<Response, ApiError> {
    match state.accounts.remove(&id) {
        true => Ok(ok(&json!({ "success": true }))),
        false => Err(ApiError::account_resource_not_found(&id)),
    }
}

fn config_to_connect(state: &Shared, id: &str) -> Result<AuthConfig, ApiError> {
    let config = state.accounts.config(id).ok_or_else(|| ApiError::auth_config_not_found(id))?;
    if config.disabled { Err(ApiError::auth_config_disabled(id)) } else { Ok(config) }
}

fn find(state: &Shared, id: &str) -> Result<Account, ApiError> {
    state.accounts.get(id, state.now()).ok_or_else(|| ApiError::account_resource_not_found(id))
}

fn new_account(state: &Shared, config: &AuthConfig, user: &str, now: Timestamp) -> Account {
    Account {
        id: state.new_id("ca").into(),
        user: user.into(),
        toolkit: Arc::clone(&config.toolkit),
        auth_config: Arc::clone(&config.id),
        status: Status::Active,
        status_reason: None,
        created_at: now,
        updated_at: now,
        shared_with: None,
        link: None,
    }
}

/// The page that stands for the consent screen; opening it completes the connection.
fn redirect_url(headers: &HeaderMap, token: &str) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("127.0.0.1");
    format!("http://{host}/_sandbox/connect/{token}")
}

fn describe(state: &Shared, account: &Account) -> Value {
    let config = state.accounts.config(&account.auth_config);
    let scheme = config.as_ref().map(|config| &*config.scheme);
    let mut state_value = json!({ "status": account.status });
    if account.status == Status::Active {
        // Masked, as the real API masks them: four characters of a secret and no more.
        state_value["access_token"] = json!("sbx_...");
    }
    let mut described = json!({
        "id": &*account.id,
        "user_id": &*account.user,
        "status": account.status,
        "status_reason": account.status_reason,
        "is_disabled": account.status == Status::Inactive,
        "created_at": time(account.created_at),
        "updated_at": time(account.updated_at),
        "toolkit": { "slug": &*account.toolkit },
        "auth_config": {
            "id": &*account.auth_config,
            "auth_scheme": scheme,
            "is_composio_managed": config.as_ref().is_some_and(|config| config.managed),
            "is_disabled": config.as_ref().is_some_and(|config| config.disabled),
            "deprecated": { "uuid": uuid_of(&account.auth_config) },
        },
        "state": { "authScheme": scheme, "val": state_value },
        "data": state_value,
        "deprecated": { "labels": [], "uuid": uuid_of(&account.id) },
    });
    if let Some(users) = &account.shared_with {
        described["experimental"] = json!({
            "account_type": "SHARED",
            "acl_config_for_shared": { "allowed_user_ids": users },
        });
    }
    described
}
