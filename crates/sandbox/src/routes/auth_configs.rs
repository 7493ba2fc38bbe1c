//! Auth configs: how accounts of a toolkit are connected.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    extract::{Body, Segment},
    fields,
    render::{logo, ok, uuid_of},
};
use crate::{
    error::{ApiError, json_response},
    query::Query,
    state::Shared,
    world::AuthConfig,
};

/// When every auth config is said to have been made.
const MADE_AT: &str = "2025-09-01T00:00:00.000Z";

pub(super) async fn list(State(state): State<Shared>, query: Query) -> Result<Response, ApiError> {
    let toolkits = query.list("toolkit_slug");
    let managed = query.flag("is_composio_managed")?;
    let show_disabled = query.flag("show_disabled")?.unwrap_or(false);
    let search = query.text("search").map(str::to_lowercase);
    let mut found = state.accounts.configs();
    found.retain(|(config, _)| {
        (toolkits.is_empty() || toolkits.contains(&&*config.toolkit))
            && managed.is_none_or(|managed| managed == config.managed)
            && (show_disabled || !config.disabled)
            && search.as_ref().is_none_or(|search| {
                config.name.to_lowercase().contains(search) || config.id.to_lowercase().contains(search)
            })
    });
    let page = query.page(&found, |(config, accounts)| describe(config, *accounts))?;
    Ok(ok(&page))
}

pub(super) async fn get(State(state): State<Shared>, Segment(id): Segment) -> Result<Response, ApiError> {
    let found = state.accounts.configs().into_iter().find(|(config, _)| *config.id == *id);
    let (config, accounts) = found.ok_or_else(|| ApiError::auth_config_not_found(&id))?;
    Ok(ok(&describe(&config, accounts)))
}

#[derive(Debug, Deserialize)]
pub(super) struct CreateRequest {
    toolkit: ToolkitReference,
    auth_config: Option<CreateConfig>,
}

#[derive(Debug, Deserialize)]
struct ToolkitReference {
    slug: String,
}

#[derive(Debug, Deserialize)]
struct CreateConfig {
    #[serde(rename = "type")]
    kind: ConfigKind,
    name: Option<String>,
    #[serde(rename = "authScheme", alias = "auth_scheme")]
    scheme: Option<String>,
    #[serde(flatten)]
    access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ConfigKind {
    UseComposioManagedAuth,
    UseCustomAuth,
}

/// Which tools may be executed, under its current or its old name.
#[derive(Debug, Default, Deserialize)]
struct Access {
    #[serde(default)]
    tool_access_config: ToolAccess,
    restrict_to_following_tools: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
struct ToolAccess {
    tools_available_for_execution: Option<Vec<String>>,
}

impl Access {
    fn tools(self) -> Option<Vec<String>> {
        self.tool_access_config.tools_available_for_execution.or(self.restrict_to_following_tools)
    }
}

pub(super) async fn create(
    State(state): State<Shared>,
    Body(request): Body<CreateRequest>,
) -> Result<Response, ApiError> {
    let slug = &request.toolkit.slug;
    let toolkit = state.world.toolkits.get(slug).ok_or_else(|| ApiError::toolkit_not_found(slug))?;
    let default_scheme = || toolkit.auth_schemes.first().cloned().unwrap_or_else(|| "OAUTH2".to_owned());
    let (managed, name, scheme, tools) = match request.auth_config {
        None => (true, None, None, None),
        Some(CreateConfig { kind, name, scheme, access }) => {
            (kind == ConfigKind::UseComposioManagedAuth, name, scheme, access.tools())
        }
    };
    let config = AuthConfig {
        id: state.new_id("ac").into(),
        toolkit: Arc::clone(&toolkit.slug),
        name: name.unwrap_or_else(|| format!("{slug} auth config")),
        scheme: scheme.unwrap_or_else(default_scheme),
        managed,
        disabled: false,
        allowed_tools: tools.filter(|tools| !tools.is_empty()),
    };
    let answer = json!({
        "toolkit": { "slug": slug },
        "auth_config": {
            "id": &*config.id,
            "auth_scheme": config.scheme,
            "is_composio_managed": config.managed,
            "restrict_to_following_tools": config.allowed_tools.as_deref().unwrap_or_default(),
        },
    });
    state.accounts.add_config(config);
    Ok(json_response(201, answer.to_string()))
}

/// What is changed; credentials and scopes mean nothing here.
#[derive(Debug, Deserialize)]
pub(super) struct UpdateRequest {
    #[serde(rename = "type")]
    _kind: UpdateKind,
    name: Option<String>,
    #[serde(flatten)]
    access: Access,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum UpdateKind {
    Custom,
    Default,
}

pub(super) async fn update(
    State(state): State<Shared>,
    Segment(id): Segment,
    Body(request): Body<UpdateRequest>,
) -> Result<Response, ApiError> {
    change(&state, &id, |config| {
        if let Some(name) = request.name {
            config.name = name;
        }
        // An empty list ends the restriction.
        if let Some(tools) = request.access.tools() {
            config.allowed_tools = Some(tools).filter(|tools| !tools.is_empty());
        }
    })
}

pub(super) async fn enable(State(state): State<Shared>, Segment(id): Segment) -> Result<Response, ApiError> {
    change(&state, &id, |config| config.disabled = false)
}

pub(super) async fn disable(State(state): State<Shared>, Segment(id): Segment) -> Result<Response, ApiError> {
    change(&state, &id, |config| config.disabled = true)
}

pub(super) async fn delete(State(state): State<Shared>, Segment(id): Segment) -> Result<Response, ApiError> {
    match state.accounts.remove_config(&id) {
        true => Ok(ok(&json!({ "success": true, "message": "Auth config deleted" }))),
        false => Err(ApiError::auth_config_not_found(&id)),
    }
}

fn change(state: &Shared, id: &str, change: impl FnOnce(&mut AuthConfig)) -> Result<Response, ApiError> {
    match state.accounts.change_config(id, change) {
        true => Ok(ok(&json!({ "success": true, "message": "Auth config updated" }))),
        false => Err(ApiError::auth_config_not_found(id)),
    }
}

fn describe(config: &AuthConfig, accounts: usize) -> Value {
    let tools = config.allowed_tools.as_deref().unwrap_or_default();
    json!({
        "id": &*config.id,
        "uuid": uuid_of(&config.id),
        "type": if config.managed { "default" } else { "custom" },
        "toolkit": { "slug": &*config.toolkit, "logo": logo(&config.toolkit) },
        "name": config.name,
        "auth_scheme": config.scheme,
        "is_composio_managed": config.managed,
        "status": if config.disabled { "DISABLED" } else { "ENABLED" },
        "no_of_connections": accounts,
        "expected_input_fields": fields::to_connect(&config.scheme),
        "restrict_to_following_tools": tools,
        "tool_access_config": {
            "tools_available_for_execution": tools,
            "tools_for_connected_account_creation": [],
        },
        "deprecated_params": {},
        "created_at": MADE_AT,
        "last_updated_at": MADE_AT,
    })
}
