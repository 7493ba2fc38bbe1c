//! What every API request passes: it gets its ID, shows its key, and is counted by the limiter.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    middleware::Next,
    response::Response,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    error::{ApiError, json_response},
    limiter::{Standing, rate_limit_message},
    state::Shared,
    world::{BASE_VERSION, Key, KeyState},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit");
pub(super) const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const WINDOW: HeaderName = HeaderName::from_static("x-ratelimit-window-size");

/// A longer request ID is replaced, so that what is kept of a request stays small.
const REQUEST_ID_MAX: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ApiVersion {
    V3,
    V31,
}

impl ApiVersion {
    /// The toolkit version of a request that names none: the one difference between the two.
    pub(super) fn default_version(self) -> &'static str {
        match self {
            Self::V3 => BASE_VERSION,
            Self::V31 => "latest",
        }
    }
}

/// What the middleware learned of a request.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) request_id: Arc<str>,
    /// Whether the client made up the request ID.
    pub(super) chosen: bool,
    pub(super) api: ApiVersion,
    /// Whether the key may execute tools.
    pub(super) may_execute: bool,
}

/// Marks an answer that something in front of the API gave: it has none of the API's headers.
#[derive(Debug, Clone, Copy)]
pub(super) struct FromEdge;

/// What the middleware of one version of the API works with.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) state: Shared,
    pub(super) version: ApiVersion,
}

/// Identifies, authenticates and counts a request before its handler sees it, and completes the answer.
pub(super) async fn admit(State(context): State<Context>, mut request: Request, next: Next) -> Response {
    let now = context.state.now();
    let (request_id, chosen) = request_id(request.headers());
    let (mut response, standing) = match authenticate(&context.state, request.headers()) {
        Err(error) => (error.render(&request_id), context.state.limiter.untouched(now)),
        Ok(key) => {
            let standing = context.state.limiter.take(&key.org, now);
            if standing.admitted {
                let request_id = Arc::clone(&request_id);
                let call = Call { request_id, chosen, api: context.version, may_execute: key.execute };
                request.extensions_mut().insert(call);
                (next.run(request).await, standing)
            } else {
                (throttled(&standing), standing)
            }
        }
    };
    if let Some(error) = response.extensions().get::<ApiError>() {
        let mut rendered = error.render(&request_id);
        rendered.headers_mut().extend(response.headers().clone());
        response = rendered;
    }
    if response.extensions().get::<FromEdge>().is_none() {
        stamp(response.headers_mut(), &request_id, &standing);
    }
    response
}

/// The limiter's own answer, with the header that only it has.
pub(super) fn throttled(standing: &Standing) -> Response {
    let message = rate_limit_message(standing.limit, standing.window_seconds);
    let mut response = json_response(429, json!({ "message": message }).to_string());
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(standing.reset_seconds));
    response.headers_mut().insert(REMAINING, HeaderValue::from(0));
    response
}

fn request_id(headers: &HeaderMap) -> (Arc<str>, bool) {
    let given = headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| !id.is_empty() && id.len() <= REQUEST_ID_MAX);
    match given {
        Some(id) => (id.into(), true),
        None => (Uuid::new_v4().to_string().into(), false),
    }
}

fn authenticate<'a>(state: &'a Shared, headers: &HeaderMap) -> Result<&'a Key, ApiError> {
    let key = headers.get("x-api-key");
    let user_key = headers.get("x-user-api-key");
    let others = [
        user_key.is_some(),
        headers.contains_key("x-org-api-key"),
        headers
            .get(header::COOKIE)
            .is_some_and(|cookie| cookie.as_bytes().windows(10).any(|part| part == b"authToken=")),
    ];
    let others = others.into_iter().filter(|given| *given).count();
    let Some(key) = key else {
        return Err(match others {
            0 => ApiError::no_credential(),
            1 if user_key.is_some() => ApiError::bad_user_key(),
            1 => ApiError::wrong_kind_of_credential(),
            _ => ApiError::several_credentials(),
        });
    };
    if others > 0 {
        return Err(ApiError::several_credentials());
    }
    let name = key.to_str().unwrap_or("");
    let key = state.world.keys.get(name).ok_or_else(|| ApiError::bad_key(name))?;
    match key.state {
        KeyState::Active => Ok(key),
        KeyState::Expired => Err(ApiError::expired_key(name)),
    }
}

fn stamp(headers: &mut HeaderMap, request_id: &str, standing: &Standing) {
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(LIMIT, HeaderValue::from(standing.limit));
    // A throttled answer has already said that nothing remains.
    headers.entry(REMAINING).or_insert(HeaderValue::from(standing.remaining));
    if let Ok(window) = HeaderValue::try_from(format!("{}s", standing.window_seconds)) {
        headers.insert(WINDOW, window);
    }
}
