//! Describing toolkits and their versions.

use std::collections::BTreeSet;

use axum::{extract::State, response::Response};
use serde_json::{Map, Value, json};

use super::{
    answer::{DEPRECATED_TOOLKITS, deprecation},
    extract::{Body, Segment},
    fields,
    render::{logo, ok},
};
use crate::{
    error::ApiError,
    query::Query,
    state::Shared,
    world::{Behaviour, Toolkit, VersionsOrder, World},
};

/// When every toolkit is said to have been made, and changed last.
const MADE_AT: &str = "2025-05-01T00:00:00.000Z";

pub(super) async fn list(State(state): State<Shared>, query: Query) -> Result<Response, ApiError> {
    find(&state, &query)
}

/// The same as [`list`], asked for with a body, which may also name toolkits.
pub(super) async fn list_named(
    State(state): State<Shared>,
    Body(asked): Body<Map<String, Value>>,
) -> Result<Response, ApiError> {
    find(&state, &Query::of_body(&asked))
}

fn find(state: &Shared, query: &Query) -> Result<Response, ApiError> {
    let slugs = query.list("toolkits");
    let category = query.text("category");
    let managed = query.text("managed_by");
    let include_deprecated = query.flag("include_deprecated")?.unwrap_or(false);
    let search = query.text("search").map(str::to_lowercase);
    if search.as_ref().is_some_and(|search| search.chars().count() < 3) {
        return Err(ApiError::invalid_fields(
            "Invalid query",
            vec!["search: expected at least 3 characters".to_owned()],
        ));
    }
    let mut found: Vec<&Toolkit> = state
        .world
        .toolkits
        .values()
        .map(|toolkit| &**toolkit)
        .filter(|toolkit| {
            (slugs.is_empty() || slugs.contains(&&*toolkit.slug))
                && (include_deprecated || !toolkit.deprecated)
                && category.is_none_or(|category| toolkit.categories.iter().any(|known| known == category))
                // There are no toolkits of the project's own here.
                && managed.is_none_or(|managed| managed != "project")
                && search.as_ref().is_none_or(|search| {
                    toolkit.slug.contains(search) || toolkit.name.to_lowercase().contains(search)
                })
        })
        .collect();
    // By use unless asked otherwise; the number of tools stands for it, and the slug breaks ties.
    if query.text("sort_by") != Some("alphabetically") {
        found.sort_by_key(|toolkit| std::cmp::Reverse(tools_count(&state.world, toolkit)));
    }
    let page = query.page(&found, |toolkit| {
        let categories: Vec<Value> =
            toolkit.categories.iter().map(|name| json!({ "id": name, "name": name })).collect();
        json!({
            "slug": &*toolkit.slug,
            "name": toolkit.name,
            "auth_schemes": auth_schemes(toolkit),
            "composio_managed_auth_schemes": managed_schemes(&state.world, toolkit),
            "is_local_toolkit": false,
            "no_auth": toolkit.no_auth,
            "type": "native",
            "deprecated": { "toolkitId": &*toolkit.slug },
            "meta": meta(&state.world, toolkit, &toolkit.latest().version, categories),
        })
    })?;
    Ok(ok(&page))
}

pub(super) async fn categories(State(state): State<Shared>, query: Query) -> Result<Response, ApiError> {
    let named: BTreeSet<&String> =
        state.world.toolkits.values().flat_map(|toolkit| &toolkit.categories).collect();
    let named: Vec<&String> = named.into_iter().collect();
    let page = query.page(&named, |name| json!({ "id": name, "name": name }))?;
    Ok(ok(&page))
}

pub(super) async fn get(
    State(state): State<Shared>,
    Segment(slug): Segment,
    query: Query,
) -> Result<Response, ApiError> {
    let toolkit = state.world.toolkits.get(&slug).ok_or_else(|| ApiError::toolkit_not_found(&slug))?;
    let asked = query.text("version").unwrap_or("latest");
    let version = toolkit.version(asked).ok_or_else(|| ApiError::toolkit_not_found(&slug))?;
    let categories = toolkit.categories.iter().map(|name| json!({ "name": name, "slug": name })).collect();
    let mut meta = meta(&state.world, toolkit, &version.version, categories);
    meta["available_versions"] = json!(version_names(toolkit, &state.world.behaviour, |_| true));
    let details: Vec<Value> = auth_schemes(toolkit)
        .iter()
        .map(|scheme| {
            let ask = |required: Vec<Value>| json!({ "required": required, "optional": [] });
            json!({
                "mode": scheme,
                "name": format!("{} {scheme}", toolkit.slug),
                "fields": {
                    "auth_config_creation": ask(fields::to_configure(scheme)),
                    "connected_account_initiation": ask(fields::to_connect(scheme)),
                },
                "proxy": { "base_url": toolkit.base_url },
            })
        })
        .collect();
    let managed = managed_schemes(&state.world, toolkit);
    let managed_auth: Vec<Value> =
        managed.iter().map(|scheme| json!({ "mode": scheme, "scopes": { "available": [] } })).collect();
    let mut answer = ok(&json!({
        "slug": &*toolkit.slug,
        "name": toolkit.name,
        "enabled": true,
        "type": "native",
        "composio_managed_auth_schemes": managed,
        "composio_managed_auth": managed_auth,
        "is_local_toolkit": false,
        "no_auth": toolkit.no_auth,
        "auth_config_details": details,
        "base_url": toolkit.base_url,
        "deprecated": { "toolkitId": &*toolkit.slug, "rawProxyInfoByAuthSchemes": [] },
        "meta": meta,
    }));
    if let Some(notice) = deprecation(toolkit, version) {
        answer.headers_mut().insert(DEPRECATED_TOOLKITS, notice);
    }
    Ok(answer)
}

/// The versions of a toolkit that pass, in the order the world asks for: clients must sort.
pub(super) fn version_names<'a>(
    toolkit: &'a Toolkit,
    behaviour: &Behaviour,
    passes: impl Fn(&str) -> bool,
) -> Vec<&'a str> {
    let mut names: Vec<&str> =
        toolkit.versions.iter().map(|version| &*version.version).filter(|version| passes(version)).collect();
    if behaviour.versions_order == VersionsOrder::Descending {
        names.reverse();
    }
    names
}

fn meta(world: &World, toolkit: &Toolkit, version: &str, categories: Vec<Value>) -> Value {
    json!({
        "created_at": MADE_AT,
        "updated_at": MADE_AT,
        "description": toolkit.description,
        "logo": logo(&toolkit.slug),
        "app_url": toolkit.base_url,
        "categories": categories,
        "triggers_count": 0,
        "tools_count": tools_count(world, toolkit),
        "version": version,
    })
}

fn tools_count(world: &World, toolkit: &Toolkit) -> usize {
    world.tools.values().filter(|tool| tool.toolkit.slug == toolkit.slug).count()
}

fn auth_schemes(toolkit: &Toolkit) -> Vec<&str> {
    match toolkit.no_auth {
        true => vec!["NO_AUTH"],
        false => toolkit.auth_schemes.iter().map(String::as_str).collect(),
    }
}

fn managed_schemes<'a>(world: &'a World, toolkit: &Toolkit) -> Vec<&'a str> {
    let configs = world.auth_configs.iter().filter(|config| config.toolkit == toolkit.slug && config.managed);
    let mut schemes: Vec<&str> = configs.map(|config| config.scheme.as_str()).collect();
    schemes.dedup();
    schemes
}
