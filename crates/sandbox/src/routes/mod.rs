//! The HTTP surface: which path leads where.

mod accounts;
mod answer;
mod auth_configs;
mod control;
mod execute;
mod gate;
mod logs;
mod mishap;
mod toolkits;
mod tools;

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Request},
    http::request::Parts,
    middleware::{from_fn_with_state, map_response},
    response::Response,
    routing::{get, patch, post},
};
use serde::de::DeserializeOwned;

use super::{
    error::{ApiError, json_response},
    state::Shared,
};
use gate::{ApiVersion, Gate, gate};

/// The largest request body.
const BODY_MAX: usize = 4 * 1024 * 1024;

pub(super) fn router(state: Shared) -> Router {
    let api = |version| {
        let keeper = Gate { state: Shared::clone(&state), version };
        api_routes().layer(DefaultBodyLimit::max(BODY_MAX)).layer(from_fn_with_state(keeper, gate))
    };
    let control = control::routes().layer(map_response(render_plainly));
    Router::new()
        .nest("/api/v3", api(ApiVersion::V3))
        .nest("/api/v3.1", api(ApiVersion::V31))
        .nest("/_sandbox", control)
        .fallback(async || ApiError::no_such_route().render(""))
        .with_state(Shared::clone(&state))
}

fn api_routes() -> Router<Shared> {
    Router::new()
        .route("/tools", get(tools::list))
        .route("/tools/enum", get(tools::slugs))
        .route("/tools/{slug}", get(tools::get))
        .route("/tools/execute/{slug}", post(execute::execute))
        .route("/tools/execute/proxy", post(async || ApiError::not_modelled("proxied requests")))
        .route("/tools/execute/{slug}/input", post(async || ApiError::not_modelled("generated input")))
        .route("/toolkits", get(toolkits::list))
        .route("/toolkits/{slug}", get(toolkits::get))
        .route("/connected_accounts", get(accounts::list).post(accounts::create))
        .route("/connected_accounts/link", post(accounts::link))
        .route("/connected_accounts/{id}", get(accounts::get).delete(accounts::delete))
        .route("/connected_accounts/{id}/status", patch(accounts::set_status))
        .route("/connected_accounts/{id}/refresh", post(accounts::refresh))
        .route("/auth_configs", get(auth_configs::list).post(auth_configs::create))
        .route("/logs/tool_execution", post(logs::search))
        .route("/logs/tool_execution/{id}", get(logs::get))
        .route("/internal/action_execution/log/{id}", get(logs::get_internal))
        .route(
            "/internal/action_execution/logs",
            post(async || ApiError::not_modelled("the internal list of logs")),
        )
        .fallback(async || ApiError::no_such_route())
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
}

/// Renders errors of routes that have no gate.
async fn render_plainly(response: Response) -> Response {
    match response.extensions().get::<ApiError>() {
        Some(error) => error.render(""),
        None => response,
    }
}

fn ok(body: &serde_json::Value) -> Response {
    json_response(200, body.to_string())
}

/// The one path parameter of a route, percent-decoded.
struct Segment(String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let decoded = Path::<String>::from_request_parts(parts, state).await;
        decoded
            .map(|Path(segment)| Self(segment))
            .map_err(|_| ApiError::bad_request("The path is not percent-encoded UTF-8"))
    }
}

/// A body within the limit.
struct Raw(Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, state).await;
        body.map(Self).map_err(|_| ApiError::body_too_large(BODY_MAX))
    }
}

/// A JSON body. An empty one counts as `{}`, because clients send none when they have nothing to say.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Raw(bytes) = Raw::from_request(request, state).await?;
        parse(&bytes).map(Self)
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes)
        .map_err(|e| ApiError::invalid_fields("Invalid request body", vec![e.to_string()]))
}
