//! One call of a tool, made once: no retry, no redirect, no replay on another connection.

use std::{
    io,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::stream;
use reqwest::{
    Body as HttpBody, Method, Request, Response,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue},
};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use super::{
    Composio, NOT_SLUGS, X_API_KEY,
    response::{DEPRECATED, Unread, chain, collect, header},
    retry_after::retry_after,
};
use crate::{
    sync::lock,
    tool::{
        Answer, Body, Call, Reply,
        decode::{decode, empty_object},
    },
};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_ERRAND_JOB_ID: HeaderName = HeaderName::from_static("x-errand-job-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

impl Composio {
    pub(super) async fn call(&self, call: &Call) -> Reply {
        let deadline = Instant::now() + call.timeout;
        let (request, body) = match self.call_request(call) {
            Ok(request) => request,
            Err(cause) => return Reply::NotSent(cause),
        };
        let checkout = self.clients.checkout();
        match timeout_at(deadline, checkout.client().execute(request)).await {
            Ok(Ok(response)) => Reply::Answered(self.read_answer(response, deadline).await),
            Ok(Err(error)) if error.is_connect() || error.is_builder() || was_refused(&error) => {
                Reply::NotSent(self.key.scrub(chain(error)))
            }
            Ok(Err(error)) => Reply::NoAnswer(self.key.scrub(chain(error))),
            // The connection was never ready for the body, and now it cannot have it any more.
            Err(_) if lock(&body).take().is_some() => {
                Reply::NotSent(format!("no connection within {} ms", call.timeout.as_millis()))
            }
            Err(_) => Reply::NoAnswer(format!("no answer within {} ms", call.timeout.as_millis())),
        }
    }

    /// Builds a call. The HTTP client takes the body only on an open connection, and before it sends anything.
    fn call_request(&self, call: &Call) -> Result<(Request, Untaken), String> {
        let spec = &*call.spec;
        if NOT_SLUGS.contains(&spec.tool.as_str()) {
            return Err("this slug is not a tool's".into());
        }
        let none = (spec.arguments.is_none() && spec.text.is_none()).then(empty_object);
        let body = ExecuteBody {
            user_id: spec.owner.id(),
            version: &call.version,
            connected_account_id: call.account.as_deref(),
            arguments: spec.arguments.as_deref().or(none.as_deref()),
            text: spec.text.as_deref(),
        };
        let body = serde_json::to_vec(&body).map_err(|_| "the body cannot be encoded".to_owned())?;
        let mut request = Request::new(Method::POST, self.url(&["tools", "execute", &spec.tool]));
        let headers = request.headers_mut();
        headers.insert(X_API_KEY, self.key.header());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        let id = |id: String| HeaderValue::from_str(&id).map_err(|_| "an ID is no header value".to_owned());
        headers.insert(X_REQUEST_ID, id(call.request_id.to_string())?);
        headers.insert(X_ERRAND_JOB_ID, id(call.job.to_string())?);
        if let Some(parent) = spec.traceparent.as_deref().and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(TRACEPARENT, parent);
        }
        let body: Untaken = Arc::new(Mutex::new(Some(body.into())));
        let taken = body.clone();
        *request.body_mut() = Some(HttpBody::wrap_stream(stream::once(async move {
            lock(&taken).take().ok_or_else(|| io::Error::other("the call was given up"))
        })));
        Ok((request, body))
    }

    async fn read_answer(&self, mut response: Response, deadline: Instant) -> Answer {
        let status = response.status().as_u16();
        let headers = response.headers();
        let deprecated = header(headers, &DEPRECATED);
        let retry_after = retry_after(headers, self.clock.now());
        let body = match timeout_at(deadline, collect(&mut response, self.max_response_bytes)).await {
            Err(_) => Body::Broken("the body did not arrive in time".into()),
            Ok(Err(Unread::Broken(cause))) => Body::Broken(self.key.scrub(cause)),
            Ok(Err(Unread::TooLarge)) => Body::TooLarge,
            Ok(Ok(bytes)) => match decode(status, &bytes) {
                Body::Error(error) => Body::Error(self.key.scrub_error(error)),
                Body::Result(mut result) => {
                    result.error = result.error.map(|text| self.key.scrub(text));
                    Body::Result(result)
                }
                other => other,
            },
        };
        Answer { status, retry_after, deprecated, body }
    }
}

/// A body until it is taken, once: to be sent, or by whoever says that nothing was sent.
type Untaken = Arc<Mutex<Option<Bytes>>>;

/// The body of a call. `arguments` goes out as it came in, so that no number loses digits.
#[derive(Serialize)]
struct ExecuteBody<'a> {
    user_id: &'a str,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    connected_account_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

/// Whether the server refused the stream, by which it says that it has processed nothing of it
/// (<https://www.rfc-editor.org/rfc/rfc9113#section-8.7>).
fn was_refused(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            return error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        source = cause.source();
    }
    false
}
