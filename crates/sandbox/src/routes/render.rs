//! What several answers have in common.

use axum::response::Response;
use jiff::Timestamp;
use uuid::Uuid;

use crate::error::json_response;

/// An answer with status 200.
pub(super) fn ok(body: &serde_json::Value) -> Response {
    json_response(200, body.to_string())
}

/// Times as the API writes them.
pub(super) fn time(at: Timestamp) -> String {
    format!("{at:.3}")
}

/// A legacy UUID that belongs to an ID.
pub(super) fn uuid_of(id: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, id.as_bytes())
}

/// The address of a toolkit's logo.
pub(super) fn logo(slug: &str) -> String {
    format!("https://logos.example/{slug}.svg")
}
