//! The refusals of the API: the one place that knows which status, code and slug each one has.
//!
//! A handler returns an [`ApiError`] without knowing the request ID; the middleware renders the envelope,
//! because it is what gave the request its ID.

use std::borrow::Cow;

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

/// An enveloped error answer.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    pub(super) status: u16,
    pub(super) code: u32,
    pub(super) slug: Cow<'static, str>,
    pub(super) message: String,
    pub(super) suggested_fix: &'static str,
    pub(super) errors: Vec<String>,
}

impl ApiError {
    pub(super) fn new(
        status: u16,
        code: u32,
        slug: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code,
            slug: slug.into(),
            message: message.into(),
            suggested_fix: "",
            errors: Vec::new(),
        }
    }

    fn fix(mut self, suggested_fix: &'static str) -> Self {
        self.suggested_fix = suggested_fix;
        self
    }

    pub(super) fn no_credential() -> Self {
        Self::new(401, 906, "Auth_NoAuthProvided", "No authentication was provided")
            .fix("Send the project's key in the x-api-key header.")
    }

    pub(super) fn several_credentials() -> Self {
        Self::new(401, 10401, "HTTP_Unauthorized", "Multiple authentication modes were provided at once")
            .fix("Send exactly one credential.")
    }

    pub(super) fn wrong_kind_of_credential() -> Self {
        Self::new(401, 902, "Auth_Unauthorized", "This endpoint takes a project key")
            .fix("Send the project's key in the x-api-key header.")
    }

    pub(super) fn bad_user_key() -> Self {
        Self::new(401, 2113, "UserApiKey_Unauthorized", "Invalid user API key")
    }

    pub(super) fn bad_key(key: &str) -> Self {
        let message = format!("Invalid API key: {}", masked(key));
        Self::new(401, 801, "APIKey_InvalidAPIKey", message).fix("Check the key of this project.")
    }

    pub(super) fn expired_key(key: &str) -> Self {
        let message = format!("API key {} has expired", masked(key));
        Self::new(401, 811, "APIKey_APIKeyExpired", message).fix("Make a new key.")
    }

    pub(super) fn key_may_not_execute() -> Self {
        let message = "The API key lacks the permission to execute tools";
        Self::new(403, 812, "APIKey_InsufficientPermissions", message)
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, 10400, "HTTP_BadRequest", message)
    }

    pub(super) fn invalid_fields(message: impl Into<String>, errors: Vec<String>) -> Self {
        Self { errors, ..Self::bad_request(message) }
    }

    pub(super) fn bad_cursor() -> Self {
        Self::new(400, 1901, "Pagination_InvalidCursor", "The cursor is not one that this API gave out")
    }

    pub(super) fn no_such_route() -> Self {
        Self::new(404, 10404, "HTTP_NotFound", "There is no such route")
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(405, 10405, "HTTP_MethodNotAllowed", "The route exists, but not with this method")
    }

    pub(super) fn body_too_large(limit: usize) -> Self {
        Self::new(
            413,
            10413,
            "HTTP_PayloadTooLarge",
            format!("The body is larger than {limit} bytes, or was cut short"),
        )
    }

    pub(super) fn not_modelled(what: &str) -> Self {
        Self::new(501, 10501, "HTTP_NotImplemented", format!("The sandbox does not model {what}."))
    }

    pub(super) fn tool_not_found(tool: &str, version: &str) -> Self {
        let message = format!("Tool {tool} not found at version {version}");
        Self::new(404, 2401, "Tool_ToolNotFound", message)
            .fix("Check the spelling of the slug, and that the tool exists in that toolkit version.")
    }

    pub(super) fn bad_version(version: &str) -> Self {
        let message = format!("Unknown toolkit version {version}");
        Self::invalid_fields(message, vec![format!("version: {version} is not available")])
    }

    pub(super) fn tool_removed(tool: &str) -> Self {
        Self::new(410, 2410, "Tool_ToolRemoved", format!("Tool {tool} was removed"))
            .fix("Use the tool that replaced it.")
    }

    pub(super) fn toolkit_not_found(toolkit: &str) -> Self {
        Self::new(404, 4404, "Toolkit_ToolkitNotFound", format!("Toolkit {toolkit} not found"))
    }

    pub(super) fn user_id_required() -> Self {
        let slug = "ActionExecute_ConnectedAccountEntityIdRequired";
        Self::new(400, 1811, slug, "User ID is required with connected account").fix("Send user_id.")
    }

    pub(super) fn account_of_another_user() -> Self {
        let slug = "ActionExecute_ConnectedAccountEntityIdMismatch";
        Self::new(400, 1812, slug, "The connected account does not belong to the given user ID")
    }

    pub(super) fn unknown_account(status: u16, account: &str) -> Self {
        let slug = "ActionExecute_ConnectedAccountNotFound";
        Self::new(status, 1803, slug, format!("No connected account found with ID {account}"))
            .fix("Check that the account and the key are of the same project.")
    }

    pub(super) fn user_has_no_account(status: u16, user: &str, toolkit: &str) -> Self {
        let slug = "ActionExecute_ConnectedAccountNotFound";
        let message = format!("No connected account found for user ID {user} for toolkit {toolkit}");
        Self::new(status, 1810, slug, message).fix("Connect the toolkit for exactly this user ID.")
    }

    pub(super) fn account_expired(account: &str) -> Self {
        let slug = "ActionExecute_ConnectedAccountExpired";
        Self::new(410, 1820, slug, format!("Connected account {account} is in EXPIRED state"))
            .fix("Ask the user to connect again.")
    }

    pub(super) fn account_state(code: u32, slug: &str, account: &str, state: &str) -> Self {
        let message = format!("Connected account {account} is in {state} state and cannot be used");
        Self::new(422, code, slug.to_owned(), message)
    }

    pub(super) fn account_not_shared(account: &str) -> Self {
        let message = format!("Connected account {account} is not shared with the given user ID");
        Self::new(403, 1802, "ActionExecute_Unauthorized", message)
    }

    pub(super) fn tool_not_allowed(tool: &str, auth_config: &str) -> Self {
        let message = format!("Auth config {auth_config} does not allow tool {tool}");
        Self::new(403, 1802, "ActionExecute_Unauthorized", message)
    }

    pub(super) fn account_resource_not_found(account: &str) -> Self {
        let message = format!("Connected account {account} not found");
        Self::new(404, 606, "ConnectedAccount_ResourceNotFound", message)
    }

    pub(super) fn managed_account_creation() -> Self {
        // The SDKs know this refusal by "no longer supported" and by the path, and raise another error for it.
        let message = "Connecting accounts of a managed OAuth auth config here is no longer supported; use \
                       POST /api/v3/connected_accounts/link";
        Self::new(400, 600, "ConnectedAccount_BadRequest", message)
            .fix("Use POST /api/v3/connected_accounts/link.")
    }

    pub(super) fn auth_config_not_found(auth_config: &str) -> Self {
        let message = format!("Auth config {auth_config} not found");
        Self::new(404, 302, "AuthConfig_ResourceNotFound", message)
    }

    pub(super) fn auth_config_disabled(auth_config: &str) -> Self {
        let message = format!("Auth config {auth_config} is disabled and connects no new accounts");
        Self::new(400, 301, "AuthConfig_BadRequest", message).fix("Enable the auth config.")
    }

    pub(super) fn log_not_found(log: &str) -> Self {
        Self::new(404, 2601, "ToolExecutionLog_NotFound", format!("Log {log} not found"))
    }

    pub(super) fn fault(status: u16) -> Self {
        let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let message = reason.unwrap_or("Injected fault");
        let slug = format!("HTTP_{}", message.replace([' ', '-', '\''], ""));
        Self::new(status, 10_000 + u32::from(status), slug, message)
    }

    /// The envelope, with the ID of the request that it answers.
    pub(super) fn envelope(&self, request_id: &str) -> Value {
        let mut error = json!({
            "message": self.message,
            "code": self.code,
            "slug": self.slug,
            "status": self.status,
            "request_id": request_id,
            "suggested_fix": self.suggested_fix,
        });
        if !self.errors.is_empty() {
            error["errors"] = json!(self.errors);
        }
        json!({ "error": error })
    }

    pub(super) fn render(&self, request_id: &str) -> Response {
        json_response(self.status, self.envelope(request_id).to_string())
    }
}

impl IntoResponse for ApiError {
    /// A bodiless answer that carries the error along for the middleware to render.
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status_code(self.status);
        response.extensions_mut().insert(self);
        response
    }
}

/// A response whose body is JSON already.
pub(super) fn json_response(status: u16, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status_code(status);
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// Any three-digit status; world files and fault rules are checked for it when they are read.
pub(super) fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// A key with all but its last characters hidden, and all of it when it is short.
fn masked(key: &str) -> String {
    let prefix = if key.starts_with("ak_") { "ak_" } else { "" };
    let tail = if key.len() >= 12 { key.get(key.len() - 4..).unwrap_or("") } else { "" };
    format!("{prefix}**{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_key_never_shows_a_short_key() {
        assert_eq!(masked("ak_bad"), "ak_**");
        assert_eq!(masked("ak_1234567890ABCD"), "ak_**ABCD");
    }
}
