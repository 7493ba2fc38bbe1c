//! What is done around every request: it is counted, one that panics is answered, too, and nobody keeps its answer.

use std::panic::AssertUnwindSafe;

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::problem::{Kind, Problem};
use crate::telemetry::metrics;

/// What is counted of a path that is no route.
const NO_ROUTE: &str = "other";

/// Answers a request, whatever becomes of it. Requests and their times are counted by what routes there are and not by what
/// is asked for.
pub(super) async fn around(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or(NO_ROUTE, MatchedPath::as_str);
    let method = known(request.method());
    let begun = Instant::now();
    let mut answer = AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
        metrics::PANICS.add([], 1);
        Problem::new(Kind::Internal, "errand failed at this request; its log says where").into_response()
    });
    let class = match answer.status().as_u16() {
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    };
    metrics::API_REQUESTS.add([method, route, class], 1);
    metrics::API_DURATION.record([method, route], begun.elapsed().as_secs_f64());
    // Jobs are nobody's but who asked.
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// Anybody may send any word as a method.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
