//! Figures about the API.

use axum::{
    extract::{MatchedPath, Request},
    http::Method,
    middleware::Next,
    response::Response,
};
use tokio::time::Instant;

use crate::telemetry::metrics;

/// What is counted of a path that is no route.
const NO_ROUTE: &str = "other";

/// Counts requests and their times, by what routes there are and not by what is asked for.
pub(super) async fn measure(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or(NO_ROUTE, MatchedPath::as_str);
    let method = known(request.method());
    let begun = Instant::now();
    let answer = next.run(request).await;
    let class = match answer.status().as_u16() {
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    };
    metrics::API_REQUESTS.add([method, route, class], 1);
    metrics::API_DURATION.record([method, route], begun.elapsed().as_secs_f64());
    answer
}

/// Anybody may send any word as a method.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
