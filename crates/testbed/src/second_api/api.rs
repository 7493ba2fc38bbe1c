//! The routes.

use serde_json::{Value, json};

use super::{
    answer::{disturbance, error, with_usual_headers},
    calls, log,
    state::State,
    wire::{Act, Answer, Request},
    world,
};

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

/// Tools, toolkits and accounts.
async fn look_up(state: &State, request: &Request, path: &[&str]) -> Act {
    let subject = format!("look up {}", path.join("/"));
    let nth = state.ledger(|ledger| ledger.ask(&subject));
    if let Some(mut rng) = state.trouble(&subject, nth, state.options.rates.look_up)
        && let Some(act) = disturbance(state, &mut rng).await
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
