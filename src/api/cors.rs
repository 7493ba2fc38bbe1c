//! Web pages of other sites that may use the API (`api.cors_origins`), by what browsers ask and are told.
//!
//! A page shows a key like any other app. Nothing is allowed that a browser adds by itself, such as cookies, of which the API
//! has none.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

/// What pages may send and read, beyond what every page may.
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST");
const HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, idempotency-key, last-event-id, prefer, traceparent",
);
const EXPOSED: HeaderValue = HeaderValue::from_static("location, retry-after");

/// How long a browser remembers the answer, in seconds.
const REMEMBERED: HeaderValue = HeaderValue::from_static("600");

/// Every origin, where it is written instead of one.
pub const ANY: &str = "*";

/// The origins that are allowed.
#[derive(Debug, Clone)]
pub(super) struct Origins(Arc<[String]>);

impl Origins {
    /// `None` where there are none.
    pub(super) fn new(origins: Vec<String>) -> Option<Self> {
        (!origins.is_empty()).then(|| Self(origins.into()))
    }

    /// What a browser is told for a page that may use the API.
    fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        if self.0.iter().any(|allowed| allowed == ANY) {
            return Some(HeaderValue::from_static(ANY));
        }
        self.0.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
    }
}

/// Answers what browsers ask before a request, which shows no key, and tells them which pages may read an answer.
pub(super) async fn tell_browsers(State(origins): State<Origins>, request: Request, next: Next) -> Response {
    let allowed = origins.allowed(request.headers());
    let asks_first = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut answer = match &allowed {
        Some(_) if asks_first => preflight(),
        Some(_) | None => next.run(request).await,
    };
    let headers = answer.headers_mut();
    // Whatever stands between must not give the answer for one page to another.
    headers.append(header::VARY, HeaderValue::from(HeaderName::from_static("origin")));
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
    answer
}

fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
        (header::ACCESS_CONTROL_MAX_AGE, REMEMBERED),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}
