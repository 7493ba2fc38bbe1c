//! Auth configs: how accounts of a toolkit are connected.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    extract::Body,
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
    let mut found = state.accounts.configs();
    found.retain(|(config, _)| {
        (toolkits.is_empty() || toolkits.contains(&&*config.toolkit))
            && managed.is_none_or(|managed| managed == config.managed)
    });
    let page = query.page(&found, |(config, accounts)| describe(config, *accounts))?;
    Ok(ok(&page))
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ConfigKind {
    UseComposioManagedAuth,
    UseCustomAuth,
}

pub(super) async fn create(
    State(state): State<Shared>,
    Body(request): Body<CreateRequest>,
) -> Result<Response, ApiError> {
    let slug = &request.toolkit.slug;
    let toolkit = state.world.toolkits.get(slug).ok_or_else(|| ApiError::toolkit_not_found(slug))?;
    let default_scheme = || toolkit.auth_schemes.first().cloned().unwrap_or_else(|| "OAUTH2".to_owned());
    let (managed, name, scheme) = match request.auth_config {
        None => (true, None, None),
        Some(config) => (config.kind == ConfigKind::UseComposioManagedAuth, config.name, config.scheme),
    };
    let config = AuthConfig {
        id: state.new_id("ac").into(),
        toolkit: Arc::clone(&toolkit.slug),
        name: name.unwrap_or_else(|| format!("{slug} auth config")),
        scheme: scheme.unwrap_or_else(default_scheme),
        managed,
        allowed_tools: None,
    };
    let answer = json!({
        "toolkit": { "slug": slug },
        "auth_config": {
            "id": &*config.id,
            "auth_scheme": config.scheme,
            "is_composio_managed": config.managed,
            "restrict_to_following_tools": [],
        },
    });
    state.accounts.add_config(config);
    Ok(json_response(201, answer.to_string()))
}

fn describe(config: &AuthConfig, accounts: usize) -> Value {
    json!({
        "id": &*config.id,
        "uuid": uuid_of(&config.id),
        "type": if config.managed { "default" } else { "custom" },
        "toolkit": { "slug": &*config.toolkit, "logo": logo(&config.toolkit) },
        "name": config.name,
        "auth_scheme": config.scheme,
        "is_composio_managed": config.managed,
        "status": "ENABLED",
        "no_of_connections": accounts,
        "restrict_to_following_tools": config.allowed_tools.as_deref().unwrap_or_default(),
        "tool_access_config": {
            "tools_available_for_execution": config.allowed_tools.as_deref().unwrap_or_default(),
            "tools_for_connected_account_creation": [],
        },
        "deprecated_params": {},
        "created_at": MADE_AT,
        "last_updated_at": MADE_AT,
    })
}
