//! What a client gets instead of an answer when a fault says so.

use axum::{
    Extension,
    body::Body,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::middleware::{FromEdge, throttled};
use crate::{
    error::{ApiError, json_response, status_code},
    fault::BodyForm,
    limiter::Standing,
};

/// A 429, from the limiter or from the edge.
pub(super) fn throttle(standing: &Standing, retry_after: Option<String>, edge: bool) -> Response {
    let mut response = if edge {
        let body = json!({ "error": {
            "message": "Too many requests", "code": 10429, "slug": "HTTP_TooManyRequests", "status": 429,
        }});
        from_edge(json_response(429, body.to_string()))
    } else {
        throttled(standing)
    };
    if let Some(value) = retry_after.and_then(|value| HeaderValue::try_from(value).ok()) {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

/// A status with a body as the API, or something in front of it, would write it.
pub(super) fn status(
    status: u16,
    body: BodyForm,
    headers: Vec<(HeaderName, HeaderValue)>,
    request_id: &str,
) -> Response {
    let error = ApiError::fault(status);
    let text = error.message.as_str();
    let mut response = match body {
        BodyForm::Enveloped => error.render(request_id),
        BodyForm::NoSlug => {
            let error = json!({ "message": text, "code": error.code, "status": status, "suggested_fix": "" });
            json_response(status, json!({ "error": error }).to_string())
        }
        BodyForm::MessageOnly => json_response(status, json!({ "message": text }).to_string()),
        BodyForm::StringCode => {
            let error = json!({ "code": status.to_string(), "message": text, "id": request_id });
            from_edge(json_response(status, json!({ "error": error }).to_string()))
        }
        BodyForm::StringError => {
            let tag = text.to_uppercase().replace(' ', "_");
            from_edge(json_response(status, json!({ "error": text, "tag": tag }).to_string()))
        }
        BodyForm::Html => {
            let head = "<!DOCTYPE html>\n<html><head><title>Just a moment...</title></head>";
            let page = format!("{head}<body><h1>{status} {text}</h1></body></html>\n");
            let mut response = from_edge(Response::new(Body::from(page)));
            let html = HeaderValue::from_static("text/html; charset=UTF-8");
            response.headers_mut().insert(header::CONTENT_TYPE, html);
            response
        }
        BodyForm::Empty => from_edge(Response::new(Body::empty())),
    };
    *response.status_mut() = status_code(status);
    response.headers_mut().extend(headers);
    response
}

fn from_edge(response: Response) -> Response {
    (Extension(FromEdge), response).into_response()
}
