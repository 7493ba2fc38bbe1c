//! Describing tools, at a version.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use axum::{Extension, extract::State, response::Response};
use serde_json::{Value, json};

use super::{
    extract::Segment,
    middleware::{ApiVersion, Call},
    render::{logo, ok},
    toolkits::version_names,
};
use crate::{
    error::ApiError,
    query::Query,
    state::Shared,
    world::{Behaviour, Tool, Toolkit, UnknownVersion, Version},
};

pub(super) async fn list(
    State(state): State<Shared>,
    Extension(call): Extension<Call>,
    query: Query,
) -> Result<Response, ApiError> {
    let asked = AskedVersions::read(&query, call.api);
    let include_deprecated = query.flag("include_deprecated")?.unwrap_or(true);
    let important = query.flag("important")?.unwrap_or(false);
    let slugs = query.list("tool_slugs");
    let mut toolkits = query.list("toolkit_slug");
    let configs = query.list("auth_config_ids");
    if !configs.is_empty() {
        let named = state.world.auth_configs.iter().filter(|config| configs.contains(&&*config.id));
        toolkits.extend(named.map(|config| &*config.toolkit));
    }
    let tags = query.list("tags");
    let scopes = query.list("scopes");
    let searched = query.text("query").or(query.text("search")).unwrap_or("").to_lowercase();
    let words: Vec<&str> = searched.split_whitespace().collect();

    let wanted = |tool: &Tool| {
        // A list of slugs overrides every other filter.
        if !slugs.is_empty() {
            return slugs.contains(&&*tool.slug);
        }
        (toolkits.is_empty() && configs.is_empty() || toolkits.contains(&&*tool.toolkit.slug))
            && (include_deprecated || !(tool.deprecated || tool.removed))
            && (!important || tool.important)
            && tags.iter().all(|tag| tool.tags.iter().any(|found| found == tag))
            && (scopes.is_empty() || tool.scopes.iter().any(|scope| scopes.contains(&&**scope)))
            && (words.is_empty() || hits(tool, &words) > 0)
    };
    let mut found: Vec<(&Arc<Tool>, &Version)> = state
        .world
        .tools
        .values()
        .filter(|tool| wanted(tool))
        .filter_map(|tool| {
            let version = tool.toolkit.version(asked.of(&tool.toolkit))?;
            tool.exists_at(&version.version).then_some((tool, version))
        })
        .collect();
    if slugs.is_empty() {
        found.sort_by_cached_key(|(tool, _)| Reverse(hits(tool, &words)));
    }
    let page = query.page(&found, |(tool, version)| describe(tool, version, &state.world.behaviour))?;
    Ok(ok(&page))
}

/// How many of the words are in what a tool is called and described with.
fn hits(tool: &Tool, words: &[&str]) -> usize {
    let text = format!("{} {} {}", tool.slug, tool.name, tool.description).to_lowercase();
    words.iter().filter(|word| text.contains(**word)).count()
}

pub(super) async fn slugs(State(state): State<Shared>) -> Response {
    let slugs: Vec<&str> = state
        .world
        .tools
        .values()
        .filter(|tool| tool.exists_at(&tool.toolkit.latest().version))
        .map(|tool| &*tool.slug)
        .collect();
    ok(&json!(slugs))
}

pub(super) async fn get(
    State(state): State<Shared>,
    Extension(call): Extension<Call>,
    Segment(slug): Segment,
    query: Query,
) -> Result<Response, ApiError> {
    let asked = AskedVersions::read(&query, call.api);
    let tool = state.world.tools.get(&slug);
    let tool = tool
        .ok_or_else(|| ApiError::tool_not_found(&slug, query.text("version").unwrap_or(asked.otherwise)))?;
    let asked = query.text("version").unwrap_or(asked.of(&tool.toolkit));
    let version = tool.toolkit.version(asked).ok_or_else(|| match state.world.behaviour.unknown_version {
        UnknownVersion::NotFound => ApiError::tool_not_found(&slug, asked),
        UnknownVersion::BadRequest => ApiError::bad_version(asked),
    })?;
    if !tool.exists_at(&version.version) {
        return Err(ApiError::tool_not_found(&slug, asked));
    }
    Ok(ok(&describe(tool, version, &state.world.behaviour)))
}

/// The versions that a query asks for: by toolkit, or one for all, or the API's default.
struct AskedVersions<'a> {
    by_toolkit: BTreeMap<&'a str, &'a str>,
    otherwise: &'a str,
}

impl<'a> AskedVersions<'a> {
    fn read(query: &'a Query, api: ApiVersion) -> Self {
        Self {
            by_toolkit: query.map("toolkit_versions"),
            otherwise: query.text("toolkit_versions").unwrap_or(api.default_version()),
        }
    }

    fn of(&self, toolkit: &Toolkit) -> &'a str {
        self.by_toolkit.get(&*toolkit.slug).copied().unwrap_or(self.otherwise)
    }
}

fn describe(tool: &Tool, version: &Version, behaviour: &Behaviour) -> Value {
    let toolkit = &tool.toolkit;
    let versions = version_names(toolkit, behaviour, |version| tool.exists_at(version));
    let is_deprecated = tool.deprecated || tool.removed;
    json!({
        "slug": &*tool.slug,
        "name": tool.name,
        "description": tool.description,
        "human_description": tool.description,
        "toolkit": { "slug": &*toolkit.slug, "name": toolkit.name, "logo": logo(&toolkit.slug) },
        "input_parameters": input_schema(tool),
        "output_parameters": {
            "type": "object",
            "properties": {
                "data": { "type": "object", "title": "Data" },
                "error": { "anyOf": [{ "type": "string" }, { "type": "null" }], "title": "Error" },
                "successful": { "type": "boolean", "title": "Successful" },
            },
            "required": ["data", "successful"],
        },
        "no_auth": tool.no_auth,
        "version": &*version.version,
        "available_versions": versions,
        "scopes": tool.scopes,
        "tags": tool.tags,
        "is_deprecated": is_deprecated,
        "deprecated": {
            "displayName": tool.name,
            "version": &*version.version,
            "available_versions": versions,
            "is_deprecated": is_deprecated,
            "toolkit": { "logo": logo(&toolkit.slug) },
        },
    })
}

fn input_schema(tool: &Tool) -> Value {
    let required = tool.required.iter().map(|(name, kind)| (name.clone(), json!({ "type": kind })));
    let optional = tool
        .optional
        .iter()
        .map(|(name, kind)| (name.clone(), json!({ "anyOf": [{ "type": kind }, { "type": "null" }] })));
    let properties: serde_json::Map<String, Value> = required.chain(optional).collect();
    json!({
        "type": "object",
        "title": format!("{}Request", tool.slug),
        "properties": properties,
        "required": tool.required.keys().collect::<Vec<_>>(),
    })
}
