//! What a form has to ask for, by auth scheme.

use serde_json::{Value, json};

/// What whoever connects an account is asked for. OAuth asks on its own screen.
pub(super) fn to_connect(scheme: &str) -> Vec<Value> {
    match scheme {
        "API_KEY" => vec![field("generic_api_key", "API Key", true)],
        "BEARER_TOKEN" => vec![field("token", "Bearer Token", true)],
        "BASIC" => vec![field("username", "Username", false), field("password", "Password", true)],
        _ => Vec::new(),
    }
}

/// What whoever brings an OAuth app of their own is asked for.
pub(super) fn to_configure(scheme: &str) -> Vec<Value> {
    match scheme {
        "OAUTH1" | "OAUTH2" => {
            vec![field("client_id", "Client ID", false), field("client_secret", "Client Secret", true)]
        }
        _ => Vec::new(),
    }
}

fn field(name: &str, shown: &str, is_secret: bool) -> Value {
    json!({
        "name": name,
        "displayName": shown,
        "description": shown,
        "type": "string",
        "required": true,
        "is_secret": is_secret,
        "user_visible": true,
    })
}
