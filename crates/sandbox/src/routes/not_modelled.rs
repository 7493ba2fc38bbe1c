//! What the real API has and the sandbox does not: a sentence instead of an answer that reads like a typing error.

use axum::{Router, response::IntoResponse, routing::any};

use crate::{error::ApiError, state::Shared};

/// Paths of the real API with all that is below them, and what they are about.
const PREFIXES: [(&str, &str); 26] = [
    ("/tools/execute/proxy", "proxied requests"),
    ("/tools/execute/{slug}/input", "arguments made from words"),
    ("/tools/scopes", "the scopes that tools need"),
    ("/tools/get_scopes_required", "the scopes that tools need"),
    ("/toolkits/changelog", "the changelog of toolkits"),
    ("/toolkits/{slug}/scopes", "the scopes that tools need"),
    ("/connected_accounts/complete_auth", "the verification of callbacks"),
    ("/connected_accounts/{id}/revoke", "the revocation of accounts"),
    ("/tool_router", "sessions, nor the tools in them"),
    ("/labs/tool_router", "sessions, nor the tools in them"),
    ("/session_configs", "sessions, nor the tools in them"),
    ("/files", "files"),
    ("/trigger_instances", "triggers"),
    ("/triggers_types", "triggers"),
    ("/webhook_endpoints", "webhooks"),
    ("/webhook_subscriptions", "webhooks"),
    ("/mcp", "MCP servers"),
    ("/custom", "custom toolkits on the server"),
    ("/internal", "internal routes, except that of one log"),
    ("/migration", "the migration of old IDs"),
    ("/cli", "the vendor's command line"),
    ("/auth", "sessions of the dashboard"),
    ("/org", "organizations and projects"),
    ("/project", "organizations and projects"),
    ("/keyring", "sealed credentials"),
    ("/api_key_revocation", "the revocation of keys"),
];

pub(super) fn routes() -> Router<Shared> {
    PREFIXES.iter().fold(Router::new(), |router, (path, what)| {
        let route = any(async || refuse(what));
        router.route(path, route.clone()).route(&format!("{path}/{{*rest}}"), route)
    })
}

/// The SDKs ask three times unless they are told that it leads nowhere.
pub(super) fn refuse(what: &str) -> impl IntoResponse {
    ([("x-should-retry", "false")], ApiError::not_modelled(what))
}
