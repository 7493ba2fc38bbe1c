//! Execution logs, in the public form and in the older internal one.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    extract::{Body, Segment},
    render::{ok, time},
};
use crate::{
    error::ApiError,
    logs::{Condition, Log, Search},
    state::Shared,
};

/// The most logs of one answer, and how many when none are asked for.
const LIMIT_MAX: usize = 100;
const LIMIT_DEFAULT: usize = 20;

pub(super) async fn get(State(state): State<Shared>, Segment(id): Segment) -> Result<Response, ApiError> {
    Ok(ok(&describe(&*find(&state, &id)?)))
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct SearchRequest {
    limit: Option<usize>,
    cursor: Option<String>,
    #[serde(default)]
    filters: Vec<Condition>,
    #[serde(default)]
    time_range: TimeRange,
}

#[derive(Debug, Default, Deserialize)]
struct TimeRange {
    from: Option<f64>,
    to: Option<f64>,
}

pub(super) async fn search(
    State(state): State<Shared>,
    Body(request): Body<SearchRequest>,
) -> Result<Response, ApiError> {
    check_refusal(&state)?;
    let limit = request.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        let errors = vec![format!("limit: expected a number from 1 to {LIMIT_MAX}")];
        return Err(ApiError::invalid_fields("Invalid request body", errors));
    }
    let before = match request.cursor.as_deref().filter(|cursor| !cursor.is_empty()) {
        None => None,
        Some(cursor) => {
            let number = cursor.strip_prefix("lc_").and_then(|hex| u64::from_str_radix(hex, 16).ok());
            Some(number.ok_or_else(ApiError::bad_cursor)?)
        }
    };
    let search = Search {
        conditions: request.filters,
        from_ms: request.time_range.from.map(|ms| ms as i64),
        to_ms: request.time_range.to.map(|ms| ms as i64),
        before,
        limit,
    };
    let (found, next) = state.logs.search(&search, state.now());
    let is_brief = state.logs.settings().brief_search;
    let logs = found.iter().map(|log| describe(log));
    let logs: Vec<Value> = if is_brief { logs.map(head).collect() } else { logs.collect() };
    Ok(ok(&json!({ "logs": logs, "next_cursor": next.map(|number| format!("lc_{number:x}")) })))
}

pub(super) async fn get_internal(
    State(state): State<Shared>,
    Segment(id): Segment,
) -> Result<Response, ApiError> {
    Ok(ok(&describe_internally(&*find(&state, &id)?)))
}

fn find(state: &Shared, id: &str) -> Result<Arc<Log>, ApiError> {
    check_refusal(state)?;
    state.logs.get(id, state.now()).ok_or_else(|| ApiError::log_not_found(id))
}

fn check_refusal(state: &Shared) -> Result<(), ApiError> {
    match state.logs.settings().refuse_status {
        0 => Ok(()),
        status => Err(ApiError::fault(status)),
    }
}

fn describe(log: &Log) -> Value {
    let (started, ended) = (log.started.as_millisecond(), log.ended.as_millisecond());
    let mut described = json!({
        "id": &*log.id,
        "timestamp": time(log.started),
        "type": "tool.execution",
        "status": log.status(),
        "level": if log.successful { "info" } else { "error" },
        "metadata": {
            "tool_slug": &*log.tool.slug,
            "toolkit_slug": &*log.tool.toolkit.slug,
            "toolkit_version": &*log.version,
            "user_id": &*log.user,
            "connected_account_id": log.account.as_deref(),
            "auth_config_id": log.auth_config.as_deref(),
            "http_status": log.http_status,
            "is_error": !log.successful,
        },
        "metrics": { "duration_ms": ended - started },
        "parent": null,
        "timings": { "start_time": started, "end_time": ended },
        "context": { "request_id": &*log.request_id },
        "source": { "host": "sandbox" },
        "data": {},
    });
    if log.has_data {
        described["data"] = json!({ "request": request(log), "response": response(log) });
    }
    if let Some(error) = &log.error {
        described["message"] = json!(error);
    }
    described
}

/// What a search shows of a log where it shows little.
fn head(mut log: Value) -> Value {
    if let Some(log) = log.as_object_mut() {
        log.remove("context");
        log.remove("data");
    }
    log
}

fn describe_internally(log: &Log) -> Value {
    let (started, ended) = (log.started.as_millisecond(), log.ended.as_millisecond());
    let status = if log.successful { "success" } else { "error" };
    let error = match &log.error {
        Some(message) => json!({ "message": message }),
        None => json!({}),
    };
    json!({
        "actionId": &*log.tool.slug,
        "actionLogId": &*log.id,
        "app": { "uniqueId": &*log.tool.toolkit.slug, "name": log.tool.toolkit.name, "icon": "" },
        "connection": { "id": log.account.as_deref().unwrap_or(""), "entity": &*log.user },
        "startTime": started,
        "endTime": ended,
        "totalDuration": format!("{}ms", ended - started),
        "status": status,
        "version": &*log.version,
        "payloadReceived": request(log),
        "response": if log.has_data { response(log) } else { json!({}) },
        "error": error,
        "session": {},
        "executionMetadata": { "requestId": &*log.request_id },
        "steps": [{
            "type": "tool_execution",
            "status": status,
            "startTime": started,
            "endTime": ended,
            "totalDuration": ended - started,
            "message": log.error.as_deref().unwrap_or(if log.successful { "Executed" } else { "Failed" }),
        }],
    })
}

fn request(log: &Log) -> Value {
    log.request.as_deref().and_then(|request| serde_json::from_str(request).ok()).unwrap_or_else(|| json!({}))
}

/// The answer as the API meant it, whatever a fault made of it afterwards.
fn response(log: &Log) -> Value {
    let data = log.response.as_deref().and_then(|data| serde_json::from_slice::<Value>(data).ok());
    json!({ "data": data, "error": log.error, "successful": log.successful, "log_id": &*log.id })
}
