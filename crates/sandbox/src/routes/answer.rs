//! What a call that was run tells its client, well-formed or not.

use std::{io, sync::Arc};

use axum::{
    body::{Body, Bytes},
    http::{HeaderName, HeaderValue, header},
    response::Response,
};
use futures_util::stream;
use serde_json::json;

use crate::{
    error::{json_response, status_code},
    fault::Malformed,
    world::{Toolkit, Version},
};

pub(super) const DEPRECATED_TOOLKITS: HeaderName = HeaderName::from_static("composio-deprecated-toolkits");

/// Members that clients have to accept: one that is rare, and one that nobody has seen before.
const EXTRA_FIELDS: &str =
    r#","session_info":{"id":"session_1","expires_at":null},"x_unknown":[1,{"deep":true}]"#;

/// What large answers repeat: a number that no double holds, several scripts, null, and nesting.
const LARGE_ROW: &str = concat!(
    r#"{"id":9007199254740993123,"text":"zażółć 日本語 🦀 \"quoted\"","none":null,"#,
    r#""nested":{"list":[1,[2,[3]]],"empty":{}}}"#,
);

/// Why a tool failed although the API worked.
pub(super) struct Failure {
    /// The provider's status; `None` if the failure was not an HTTP one.
    pub(super) status: Option<u16>,
    pub(super) message: String,
    http_error: Option<String>,
    /// Whether to report it the way it was before failures had data.
    pub(super) legacy: bool,
}

impl Failure {
    pub(super) fn of_provider(status: Option<u16>, message: Option<String>, legacy: bool) -> Self {
        let http_error = status.map(|status| {
            let class = if status < 500 { "Client" } else { "Server" };
            let reason = status_code(status).canonical_reason().unwrap_or("Unknown");
            format!("{status} {class} Error: {reason} for the provider's URL")
        });
        let message = message.or_else(|| http_error.clone());
        let message = message.unwrap_or_else(|| "The tool failed before it reached the provider".to_owned());
        Self { status, message, http_error, legacy }
    }

    pub(super) fn of_missing(names: &[&str]) -> Self {
        let message = format!("Invalid request data provided. Missing required fields: {}", names.join(", "));
        Self { status: None, message, http_error: None, legacy: false }
    }

    pub(super) fn data(&self) -> String {
        let mut data = json!({ "status_code": self.status, "message": self.message });
        if let Some(http_error) = &self.http_error {
            data["http_error"] = json!(http_error);
        }
        data.to_string()
    }
}

/// A call that was run, and what there is to tell of it.
pub(super) struct Done {
    pub(super) data: Vec<u8>,
    /// The provider's status; `None` if there was none.
    pub(super) http_status: Option<u16>,
    pub(super) error: Option<String>,
    pub(super) log_id: Arc<str>,
    pub(super) deprecation: Option<HeaderValue>,
}

impl Done {
    pub(super) fn respond(self) -> Response {
        let body = self.body(&self.data, true, self.error.is_none(), self.error.as_deref(), "");
        self.answer(body)
    }

    pub(super) fn respond_malformed(self, how: Malformed) -> Response {
        let body = match how {
            Malformed::NotJson => b"upstream connect error or disconnect/reset before headers".to_vec(),
            Malformed::Empty => Vec::new(),
            Malformed::NoLogId => self.body(&self.data, false, true, None, ""),
            Malformed::ExtraFields => self.body(&self.data, true, true, None, EXTRA_FIELDS),
            Malformed::ErrorText => {
                let error = "The provider reported a problem after all";
                self.body(&self.data, true, true, Some(error), "")
            }
            Malformed::TruncatedJson | Malformed::TruncatedBody => {
                self.body(&self.data, true, true, None, "")
            }
        };
        let half = body.len() / 2;
        match how {
            Malformed::TruncatedJson => self.answer(body[..half].to_vec()),
            Malformed::TruncatedBody => {
                let length = HeaderValue::from(body.len());
                let part = Bytes::copy_from_slice(&body[..half]);
                let cut_short = io::Error::from(io::ErrorKind::ConnectionReset);
                let mut response = self.answer(Body::from_stream(stream::iter([Ok(part), Err(cut_short)])));
                response.headers_mut().insert(header::CONTENT_LENGTH, length);
                response
            }
            Malformed::NotJson
            | Malformed::Empty
            | Malformed::NoLogId
            | Malformed::ExtraFields
            | Malformed::ErrorText => self.answer(body),
        }
    }

    pub(super) fn respond_large(self, bytes: usize) -> Response {
        let mut data = Vec::with_capacity(bytes + 2 * LARGE_ROW.len());
        data.extend(b"{\"rows\":[");
        data.extend(LARGE_ROW.as_bytes());
        while data.len() < bytes {
            data.push(b',');
            data.extend(LARGE_ROW.as_bytes());
        }
        data.extend(b"]}");
        let body = self.body(&data, true, true, None, "");
        self.answer(body)
    }

    /// The answer's JSON. It is put together by hand because the data is JSON text already.
    fn body(&self, data: &[u8], log_id: bool, successful: bool, error: Option<&str>, extra: &str) -> Vec<u8> {
        let mut body = Vec::with_capacity(data.len() + extra.len() + 128);
        body.extend(b"{\"data\":");
        body.extend(data);
        body.extend(b",\"error\":");
        match error {
            Some(error) => body.extend(json!(error).to_string().as_bytes()),
            None => body.extend(b"null"),
        }
        body.extend(if successful { &b",\"successful\":true"[..] } else { b",\"successful\":false" });
        if log_id {
            body.extend(b",\"log_id\":\"");
            body.extend(self.log_id.as_bytes());
            body.push(b'"');
        }
        body.extend(extra.as_bytes());
        body.push(b'}');
        body
    }

    fn answer(self, body: impl Into<Body>) -> Response {
        let mut response = json_response(200, body);
        if let Some(notice) = self.deprecation {
            response.headers_mut().insert(DEPRECATED_TOOLKITS, notice);
        }
        response
    }
}

/// The notice about a deprecated version, as a structured-field list.
pub(super) fn deprecation(toolkit: &Toolkit, version: &Version) -> Option<HeaderValue> {
    let deprecated = version.deprecated_at?.as_second();
    let mut notice = format!(
        "\"{}\";version=\"{}\";deprecated=@{deprecated}",
        toolkit.slug.to_uppercase(),
        version.version
    );
    if let Some(sunset) = version.sunset_at {
        notice += &format!(";sunset=@{}", sunset.as_second());
    }
    notice += &format!(";reason=\"{}\"", version.reason);
    HeaderValue::try_from(notice).ok()
}
