//! The routes, and what answers have in common.

use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    State, calls, log,
    mischief::{garbage, server_error, throttled, up_to},
    wire::{Act, Answer, Request},
    world,
};

/// The longest that a look-up takes, in which nothing else is wrong.
const SLOW: Duration = Duration::from_millis(400);

/// Answers a request.
pub(super) async fn handle(state: &State, request: &Request) -> Act {
    let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
    let ["api", "v3" | "v3.1", path @ ..] = &path[..] else { return not_there(request) };
    match request.header("x-api-key") {
        Some(key) if key == state.options.api_key => {}
        Some(_) => return Act::Answer(error(401, 801, "APIKey_InvalidAPIKey", "Invalid API key")),
        None => return Act::Answer(error(401, 906, "Auth_NoAuthProvided", "No authentication provided")),
    }
    match (&*request.method, path) {
        ("POST", ["tools", "execute", tool]) => calls::execute(state, request, tool).await,
        ("POST", ["logs", "tool_execution"]) => log::search(state, request).await,
        ("GET", ["logs", "tool_execution", id]) => log::entry(state, id).await,
        ("GET", path) => look_up(state, request, path).await,
        _ => not_there(request),
    }
}

fn not_there(request: &Request) -> Act {
    let message = format!("There is no {} /{}", request.method, request.path.join("/"));
    Act::Answer(error(404, 404, "HTTP_NotFound", &message))
}

/// An error in its envelope.
pub(super) fn error(status: u16, code: u64, slug: &str, message: &str) -> Answer {
    let envelope =
        json!({"message": message, "code": code, "slug": slug, "status": status, "suggested_fix": ""});
    Answer::json(status, &json!({"error": envelope}))
}

/// The headers that every answer should have, where it is not its mischief to have others.
pub(super) fn with_usual_headers(answer: Answer, request: &Request) -> Answer {
    let answer = match request.header("x-request-id") {
        Some(id) => answer.with("X-Request-Id", id),
        None => answer,
    };
    answer
        .with("X-RateLimit", "2000")
        .with("X-RateLimit-Remaining", "1999")
        .with("X-RateLimit-Window-Size", "60s")
}

/// Tools, toolkits and accounts.
async fn look_up(state: &State, request: &Request, path: &[&str]) -> Act {
    let subject = format!("look up {}", path.join("/"));
    let nth = state.ledger(|ledger| ledger.ask(&subject));
    if let Some(mut dice) = state.trouble(&subject, nth, state.options.rates.look_up)
        && let Some(act) = is_disturbed(state, &mut dice).await
    {
        return act;
    }
    let answer = match path {
        ["toolkits"] => page(world::TOOLKITS.iter().filter_map(|(slug, _)| world::toolkit(slug)).collect()),
        ["toolkits", slug] => found(world::toolkit(slug), 401, "Toolkit_NotFound", slug),
        ["tools", slug] => {
            let version = request.parameter("version").or_else(|| request.parameter("toolkit_versions"));
            found(world::tool(slug, version), 2401, "Tool_ToolNotFound", slug)
        }
        ["connected_accounts"] => {
            let toolkits = request.list("toolkit_slugs");
            let wanted = |toolkit: &str| toolkits.is_empty() || toolkits.contains(&toolkit);
            let owners = request.list("user_ids").into_iter().filter(|owner| world::is_connected(owner));
            let accounts = owners.flat_map(|owner| {
                let toolkits = world::TOOLKITS.iter().map(|(toolkit, _)| *toolkit);
                toolkits.filter(|toolkit| wanted(toolkit)).map(|toolkit| world::account(owner, toolkit))
            });
            page(accounts.collect())
        }
        ["connected_accounts", id] => {
            let account = world::account_parts(id).map(|(owner, toolkit)| world::account(owner, toolkit));
            found(account, 606, "ConnectedAccount_ResourceNotFound", id)
        }
        _ => return not_there(request),
    };
    Act::Answer(with_usual_headers(answer, request))
}

fn page(items: Vec<Value>) -> Answer {
    let count = items.len();
    Answer::json(
        200,
        &json!({"items": items, "next_cursor": null, "total_pages": 1, "current_page": 1, "total_items": count}),
    )
}

fn found(thing: Option<Value>, code: u64, slug: &str, id: &str) -> Answer {
    match thing {
        Some(thing) => Answer::json(200, &thing),
        None => error(404, code, slug, &format!("{id} not found")),
    }
}

/// What goes wrong with something that only reads; `None` if it is only slow.
pub(super) async fn is_disturbed(state: &State, dice: &mut Rng) -> Option<Act> {
    let (what, act) = match dice.u8(..5) {
        0 => ("look_up_closed", Act::Close),
        1 => ("look_up_error", Act::Answer(server_error(dice, 1_000))),
        2 => ("look_up_throttled", Act::Answer(throttled(dice))),
        3 => ("look_up_garbage", Act::Answer(garbage(dice))),
        _ => {
            state.ledger(|ledger| ledger.count("look_up_slow"));
            sleep(up_to(dice, SLOW)).await;
            return None;
        }
    };
    state.ledger(|ledger| ledger.count(what));
    Some(act)
}
