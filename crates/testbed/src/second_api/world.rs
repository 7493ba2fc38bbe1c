//! What there is: two toolkits, their tools, and everybody's accounts.

use serde_json::{Value, json};

/// The toolkits, and the only version of each that calls should name.
pub const TOOLKITS: [(&str, &str); 2] = [("notes", "20260302_01"), ("post", "20260110_00")];

/// The tools. The first only reads, the second can be repeated, the others count every time.
pub const TOOLS: [&str; 4] = ["NOTES_READ_NOTE", "NOTES_PUT_NOTE", "POST_SEND_LETTER", "POST_CHARGE_CARD"];

/// The tools that must run once.
pub const ONCE_TOOLS: [&str; 2] = ["POST_SEND_LETTER", "POST_CHARGE_CARD"];

/// A tool's toolkit.
pub(super) fn toolkit_of(tool: &str) -> Option<&'static str> {
    let place = TOOLS.iter().position(|slug| *slug == tool)?;
    Some(if place < 2 { "notes" } else { "post" })
}

/// The version of a toolkit.
pub(super) fn version_of(toolkit: &str) -> Option<&'static str> {
    TOOLKITS.iter().find(|(slug, _)| *slug == toolkit).map(|(_, version)| *version)
}

/// A tool's description, as `GET /tools/{slug}` gives it.
pub(super) fn tool(slug: &str, asked: Option<&str>) -> Option<Value> {
    let toolkit = toolkit_of(slug)?;
    let version = version_of(toolkit)?;
    if asked.is_some_and(|asked| asked != version && asked != "latest") {
        return None;
    }
    let tags: &[&str] = match slug {
        "NOTES_READ_NOTE" => &["readOnlyHint", "important"],
        "NOTES_PUT_NOTE" => &["updateHint", "idempotentHint"],
        "POST_SEND_LETTER" => &[],
        _ => &["important"],
    };
    Some(json!({
        "slug": slug, "name": slug, "description": "A tool.",
        "toolkit": {"slug": toolkit, "name": toolkit, "logo": "https://example.com/logo.svg"},
        "input_parameters": {"type": "object", "properties": {}, "required": []},
        "output_parameters": {"type": "object", "properties": {}},
        "no_auth": false, "version": version, "available_versions": [version], "scopes": [], "tags": tags,
        "is_deprecated": false,
        "deprecated": {"displayName": slug, "version": version, "available_versions": [version],
                       "is_deprecated": false, "toolkit": {"logo": "https://example.com/logo.svg"}},
    }))
}

/// A toolkit, as `GET /toolkits/{slug}` gives it.
pub(super) fn toolkit(slug: &str) -> Option<Value> {
    let version = version_of(slug)?;
    Some(json!({
        "slug": slug, "name": slug, "enabled": true, "is_local_toolkit": false,
        "composio_managed_auth_schemes": ["OAUTH2"], "auth_config_details": [], "deprecated": {"toolkitId": slug},
        "meta": {"created_at": "2026-01-01T00:00:00.000Z", "updated_at": "2026-01-01T00:00:00.000Z",
                 "description": "A toolkit.", "logo": "https://example.com/logo.svg", "categories": [],
                 "triggers_count": 0, "tools_count": 2, "version": version, "available_versions": [version]},
    }))
}

/// Whose accounts there are.
pub(super) fn is_connected(owner: &str) -> bool {
    owner.starts_with("user-") || owner.starts_with("org-")
}

/// The ID of the owner's account.
pub(super) fn account_id(owner: &str, toolkit: &str) -> String {
    format!("ca_{toolkit}_{owner}")
}

/// The owner and the toolkit of an account.
pub(super) fn account_parts(id: &str) -> Option<(&str, &str)> {
    let (toolkit, owner) = id.strip_prefix("ca_")?.split_once('_')?;
    (version_of(toolkit).is_some() && is_connected(owner)).then_some((owner, toolkit))
}

/// An account, as the API gives it.
pub(super) fn account(owner: &str, toolkit: &str) -> Value {
    json!({
        "id": account_id(owner, toolkit), "user_id": owner, "status": "ACTIVE", "status_reason": null,
        "is_disabled": false, "created_at": "2026-01-02T03:04:05.678Z", "updated_at": "2026-01-02T03:04:05.678Z",
        "toolkit": {"slug": toolkit},
        "auth_config": {"id": format!("ac_{toolkit}"), "auth_scheme": "OAUTH2", "is_composio_managed": true,
                        "is_disabled": false},
        "state": {"authScheme": "OAUTH2", "val": {"status": "ACTIVE", "access_token": "abcd..."}}, "data": {},
    })
}
