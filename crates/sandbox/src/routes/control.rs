//! What the real API does not have: the ledger, faults, the clock, log settings, and a page that
//! stands for the consent screen. None of these routes asks for a key.

use axum::{
    Router,
    extract::State,
    http::{HeaderValue, header},
    response::Response,
    routing::get,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    extract::{Body, Segment},
    render::ok,
};
use crate::{
    accounts::Outcome,
    error::ApiError,
    fault::{Rule, RuleSpec},
    ledger::{EFFECTS_KEPT, Filter},
    query::Query,
    state::Shared,
    world::{LogSettings, Status},
};

/// The page sizes of the list of effects.
const EFFECTS_PAGE_MAX: usize = 10_000;
const EFFECTS_PAGE_DEFAULT: usize = 100;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/health", get(health))
        .route("/clock", get(read_clock).post(advance_clock))
        .route("/faults", get(list_faults).put(replace_faults).delete(remove_faults))
        .route("/logs", get(read_log_settings).put(replace_log_settings))
        .route("/ledger", get(ledger).delete(clear_ledger))
        .route("/ledger/effects", get(effects))
        .route("/connect/{token}", get(connect))
        .fallback(async || ApiError::no_such_route())
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
}

async fn health(State(state): State<Shared>) -> Response {
    ok(&json!({
        "status": "ok",
        "seed": state.seed,
        "tools": state.world.tools.len(),
        "toolkits": state.world.toolkits.len(),
        "fault_rules": state.faults.rules().len(),
    }))
}

async fn read_clock(State(state): State<Shared>) -> Response {
    ok(&clock(&state))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    seconds: f64,
}

async fn advance_clock(
    State(state): State<Shared>,
    Body(advance): Body<Advance>,
) -> Result<Response, ApiError> {
    let ms = advance.seconds * 1000.0;
    if !(0.0..=f64::from(u32::MAX)).contains(&ms) {
        return Err(ApiError::bad_request("seconds must be at least 0 and at most 4294967"));
    }
    state.clock.advance(ms as u32);
    Ok(ok(&clock(&state)))
}

fn clock(state: &Shared) -> Value {
    json!({ "now": format!("{:.3}", state.now()), "ahead_seconds": state.clock.ahead_ms() as f64 / 1000.0 })
}

async fn list_faults(State(state): State<Shared>) -> Response {
    let rules: Vec<Value> = state
        .faults
        .rules()
        .iter()
        .map(|rule| json!({ "rule": rule.spec(), "applied": rule.applied() }))
        .collect();
    ok(&json!({ "faults": rules }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultList {
    faults: Vec<RuleSpec>,
}

async fn replace_faults(
    State(state): State<Shared>,
    Body(list): Body<FaultList>,
) -> Result<Response, ApiError> {
    let mut rules = Vec::new();
    let mut mistakes = Vec::new();
    for (index, spec) in list.faults.into_iter().enumerate() {
        if spec.tool != "*" && !state.world.tools.contains_key(&spec.tool) {
            mistakes.push(format!("faults[{index}]: tool \"{}\" does not exist", spec.tool));
        }
        match Rule::new(spec) {
            Ok(rule) => rules.push(rule),
            Err(found) => {
                mistakes.extend(found.into_iter().map(|mistake| format!("faults[{index}]: {mistake}")));
            }
        }
    }
    if !mistakes.is_empty() {
        return Err(ApiError::invalid_fields("Invalid fault rules", mistakes));
    }
    state.faults.replace(rules);
    Ok(list_faults(State(state)).await)
}

async fn remove_faults(State(state): State<Shared>) -> Response {
    state.faults.replace(Vec::new());
    list_faults(State(state)).await
}

async fn read_log_settings(State(state): State<Shared>) -> Response {
    ok(&json!(state.logs.settings()))
}

async fn replace_log_settings(
    State(state): State<Shared>,
    Body(settings): Body<LogSettings>,
) -> Result<Response, ApiError> {
    settings.check().map_err(ApiError::bad_request)?;
    state.logs.set(settings);
    Ok(read_log_settings(State(state)).await)
}

async fn ledger(State(state): State<Shared>, query: Query) -> Response {
    if let Some(job) = query.text("job") {
        let counts = state.ledger.job(job);
        let filter = Filter { job: Some(job), ..Filter::default() };
        let (entries, _) = state.ledger.entries(&filter, EFFECTS_PAGE_DEFAULT);
        return ok(&json!({
            "job": job,
            "calls": counts.calls,
            "effects": counts.effects,
            "effects_once": counts.effects_once,
            "entries": entries,
        }));
    }
    if let Some(tool) = query.text("tool") {
        return ok(&json!({ "tool": tool, "effects": state.ledger.tool_effects(tool) }));
    }
    ok(&json!(state.ledger.summary()))
}

async fn clear_ledger(State(state): State<Shared>) -> Response {
    state.ledger.clear();
    ok(&json!(state.ledger.summary()))
}

async fn effects(State(state): State<Shared>, query: Query) -> Result<Response, ApiError> {
    let limit = query.number("limit")?.unwrap_or(EFFECTS_PAGE_DEFAULT).clamp(1, EFFECTS_PAGE_MAX);
    let filter = Filter {
        tool: query.text("tool"),
        job: query.text("job"),
        request_id: query.text("request_id"),
        after: query.number("cursor")?.unwrap_or(0) as u64,
    };
    let (entries, more) = state.ledger.entries(&filter, limit);
    let next = entries.last().filter(|_| more).map(|entry| entry.number.to_string());
    Ok(ok(&json!({ "items": entries, "next_cursor": next, "kept_at_most": EFFECTS_KEPT })))
}

/// Completes a connection, as the user's consent would; `?outcome=failed` refuses it instead.
async fn connect(
    State(state): State<Shared>,
    Segment(token): Segment,
    query: Query,
) -> Result<Response, ApiError> {
    let outcome = match query.text("outcome") {
        Some("failed") => Outcome::Failed,
        _ => Outcome::Connected,
    };
    let account = state
        .accounts
        .complete(&token, outcome, state.now())
        .ok_or_else(|| ApiError::new(404, 10404, "HTTP_NotFound", "There is no such link"))?;
    let callback = account.link.as_ref().and_then(|link| link.callback_url.as_deref());
    let callback = callback.and_then(|callback| url::Url::parse(callback).ok());
    if let Some(mut callback) = callback {
        let status = if account.status == Status::Active { "success" } else { "failed" };
        callback
            .query_pairs_mut()
            .append_pair("status", status)
            .append_pair("connected_account_id", &account.id);
        if let Ok(location) = HeaderValue::try_from(callback.as_str()) {
            let mut response = crate::error::json_response(302, "");
            response.headers_mut().insert(header::LOCATION, location);
            return Ok(response);
        }
    }
    Ok(ok(&json!({ "connected_account_id": &*account.id, "status": account.status })))
}
