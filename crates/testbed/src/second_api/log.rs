//! `/logs/tool_execution`.

use serde_json::{Value, json};

use super::{
    answer::{disturbance, error},
    ledger::{Call, Entry},
    mischief::rng,
    state::State,
    wire::{Act, Answer, Request},
    world,
};

/// The most entries of a page, and those of a page whose size nobody names.
const MAX_PAGE: u64 = 100;
const PAGE: u64 = 20;

/// A search.
pub(super) async fn search(state: &State, request: &Request) -> Act {
    let Ok(asked) = serde_json::from_slice::<Value>(&request.body) else {
        return Act::Answer(error(400, 400, "HTTP_BadRequest", "The body is no JSON"));
    };
    let filters = asked["filters"].as_array().cloned().unwrap_or_default();
    let subject = format!("log {}", Value::from(filters.clone()));
    let nth = state.ledger(|ledger| ledger.ask(&subject));
    let trouble = state.trouble(&subject, nth, state.options.rates.log);
    // Some of the trouble is an empty page with more to come, which is no trouble at all.
    let pages = trouble.as_ref().is_some_and(|rng| rng.clone().bool());
    if let Some(mut rng) = trouble.filter(|_| !pages)
        && let Some(act) = disturbance(state, &mut rng).await
    {
        return act;
    }
    let limit = asked["limit"].as_u64().unwrap_or(PAGE).clamp(1, MAX_PAGE);
    let cursor =
        asked["cursor"].as_str().and_then(|cursor| cursor.strip_prefix("from-")?.parse::<u64>().ok());
    if pages && cursor.is_none() {
        return Act::Answer(Answer::json(200, &json!({"logs": [], "next_cursor": "from-0"})));
    }
    let from = cursor.unwrap_or(0);
    let found = visible(state, |entry, call| filters.iter().all(|filter| matches(filter, entry, call)));
    let page: Vec<&Value> =
        found.iter().rev().skip(usize::try_from(from).unwrap_or(usize::MAX)).take(limit as usize).collect();
    let more = (from + limit < found.len() as u64).then(|| format!("from-{}", from + limit));
    Act::Answer(Answer::json(200, &json!({"logs": page, "next_cursor": more})))
}

/// One entry.
pub(super) async fn entry(state: &State, id: &str) -> Act {
    match visible(state, |entry, _| entry.log_id == id).first() {
        Some(entry) => Act::Answer(Answer::json(200, entry)),
        None => Act::Answer(error(404, 404, "Log_NotFound", "There is no such log")),
    }
}

/// The entries that can be found now, oldest first.
fn visible(state: &State, wanted: impl Fn(&Entry, &Call) -> bool) -> Vec<Value> {
    if is_blacked_out(state) {
        return Vec::new();
    }
    let (now, late) = (state.now(), state.misbehaves());
    state.ledger(|ledger| {
        let entries = ledger.entries().filter(|(entry, call)| wanted(entry, call));
        entries
            .filter(|(entry, _)| !late || entry.visible <= now)
            .map(|(entry, call)| shown(entry, call))
            .collect()
    })
}

/// Whether the log shows nothing at all just now. The answer is the same for a while.
fn is_blacked_out(state: &State) -> bool {
    let period = state.options.log_blackout.as_millis().max(1);
    let nth = u64::try_from(state.now().as_millis() / period).unwrap_or(u64::MAX);
    state.misbehaves() && rng(state.options.seed, "blackout", nth).f64() < state.options.rates.blackout
}

fn matches(filter: &Value, entry: &Entry, call: &Call) -> bool {
    let value = filter["value"].as_str().unwrap_or_default();
    let field = match filter["field"].as_str().unwrap_or_default() {
        "request_id" => call.request_id.as_str(),
        "tool_slug" => &call.tool,
        "toolkit_slug" => world::toolkit_of(&call.tool).unwrap_or_default(),
        "user_id" => &call.owner,
        "connected_account_id" => call.account.as_deref().unwrap_or_default(),
        "log_id" => &entry.log_id,
        "status" => status(entry),
        _ => return false,
    };
    match filter["operator"].as_str().unwrap_or_default() {
        "==" => field == value,
        "!=" => field != value,
        "contains" => field.contains(value),
        "not_contains" => !field.contains(value),
        _ => false,
    }
}

fn status(entry: &Entry) -> &'static str {
    if entry.successful { "success" } else { "failed" }
}

fn shown(entry: &Entry, call: &Call) -> Value {
    // Some projects do not keep what was sent and answered.
    let keeps = entry.call.is_multiple_of(2);
    let data = if keeps { json!({"response": entry.response}) } else { json!({}) };
    json!({
        "id": entry.log_id, "timestamp": "2026-01-02T03:04:05.678Z", "type": "tool.execution",
        "status": status(entry), "level": if entry.successful { "info" } else { "error" },
        "message": if entry.successful { Value::Null } else { json!("The provider did not like it") },
        "metadata": {"tool_slug": call.tool}, "metrics": {},
        "timings": {"start_time": call.arrived.as_millis() as u64, "end_time": entry.ended.as_millis() as u64},
        "context": {"request_id": call.request_id, "session_id": null}, "source": {"framework": "none"},
        "data": data,
    })
}
