//! What requests bring along: bodies, headers and parameters, read within bounds.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes, HttpBody as _, to_bytes},
    extract::Request,
    http::{HeaderMap, header},
};
use jiff::Timestamp;
use serde::{
    Deserialize as _, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use utoipa::{
    IntoParams,
    openapi::{
        ObjectBuilder,
        path::{Parameter, ParameterIn},
        schema::Type,
    },
};

use super::{
    described::{line, number, optional},
    limits::{Room, Taken},
    problem::{Kind, Problem},
};
use crate::{
    bounds::{MAX_CHUNK_BYTES, MAX_ENVELOPE_BYTES},
    job::{Owner, Principal},
};

/// How long the body of a request may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest wait that a request may ask for. Longer ones are cut to it, because what stands between does not keep
/// connections open for ever.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// How many items the page of a list has, where nothing is asked, and at most.
const DEFAULT_LIMIT: usize = 50;
pub(super) const MAX_LIMIT: usize = 500;

/// The JSON body of a request, undecoded.
pub(super) async fn json_body(request: Request) -> Result<Bytes, Problem> {
    is_json(request.headers())?;
    in_memory(request.into_body()).await
}

/// A body of one JSON text a line, undecoded.
pub(super) async fn lines_body(request: Request) -> Result<Bytes, Problem> {
    let media_type = media_type(request.headers())?;
    if !["application/x-ndjson", "application/jsonl"]
        .iter()
        .any(|known| media_type.eq_ignore_ascii_case(known))
    {
        let detail = "send one JSON object a line, with the header `Content-Type: application/x-ndjson`";
        return Err(Problem::new(Kind::UnsupportedMediaType, detail));
    }
    in_memory(request.into_body()).await
}

/// The JSON body of a request, or the default where there is none or only `null`.
pub(super) async fn optional_json<T: DeserializeOwned + Default>(request: Request) -> Result<T, Problem> {
    let is_json = is_json(request.headers());
    let body = in_memory(request.into_body()).await?;
    if body.is_empty() {
        return Ok(T::default());
    }
    is_json?;
    // A list would be read as the fields in their order.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(Problem::new(
            Kind::BadRequest,
            "the body cannot be read: it must be an object, not a list",
        ));
    }
    // In envelopes, too, `null` counts as absent.
    serde_json::from_slice::<Option<T>>(&body)
        .map(Option::unwrap_or_default)
        .map_err(|error| Problem::new(Kind::BadRequest, format!("the body cannot be read: {error}")))
}

/// A body that was read before by [`whole_body`].
async fn in_memory(body: Body) -> Result<Bytes, Problem> {
    to_bytes(body, MAX_CHUNK_BYTES)
        .await
        .map_err(|_| Problem::new(Kind::Internal, "errand lost the body of this request"))
}

/// The body of a request, read within bounds, and the room that it takes.
pub(super) async fn whole_body(
    room: &Arc<Room>,
    whose: &Principal,
    path: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Bytes, Option<Taken>), Problem> {
    let most = if path.starts_with("/v1/batches") { MAX_CHUNK_BYTES } else { MAX_ENVELOPE_BYTES };
    let too_large = || {
        let detail = format!(
            "the body may have {most} bytes at most; larger inputs belong in a file store, and more items in another request"
        );
        Problem::new(Kind::TooLarge, detail)
    };
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > most as u64) {
        return Err(too_large());
    }
    if body.is_end_stream() {
        return Ok((Bytes::new(), None));
    }
    let announced = announced.and_then(|length| usize::try_from(length).ok());
    let mut taken = room.take_bytes(whose, announced.unwrap_or(most).min(most)).await?;
    match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, most)).await {
        Err(_) => {
            Err(Problem::new(Kind::Timeout, format!("send the body within {} s", BODY_TIMEOUT.as_secs())))
        }
        Ok(Ok(body)) => {
            taken.keep_bytes(body.len());
            Ok((body, Some(taken)))
        }
        // Where the client went away nobody reads this.
        Ok(Err(_)) => Err(too_large()),
    }
}

/// Whether the body says that it is JSON, as no form of a web page can say without asking first.
fn is_json(headers: &HeaderMap) -> Result<(), Problem> {
    if media_type(headers)?.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Problem::new(
        Kind::UnsupportedMediaType,
        "send JSON, with the header `Content-Type: application/json`",
    ))
}

fn media_type(headers: &HeaderMap) -> Result<&str, Problem> {
    let said = text(headers, header::CONTENT_TYPE)?.unwrap_or_default();
    Ok(said.split(';').next().unwrap_or_default().trim())
}

/// The value of a header; an error where it is not text or is there more than once.
pub(super) fn text(headers: &HeaderMap, name: header::HeaderName) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(&name).iter();
    let bad = |what: &str| Problem::new(Kind::BadRequest, format!("the header `{name}` {what}"));
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(bad("is there more than once"));
    }
    value.to_str().map(Some).map_err(|_| bad("must be ASCII"))
}

/// The `Idempotency-Key`, with or without the quotation marks that structured headers have.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let key = text(headers, header::HeaderName::from_static("idempotency-key"))?.map(str::trim);
    let key = key.map(|key| key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key));
    if key.is_some_and(str::is_empty) {
        // As from a variable that is not set: without a key, what is sent again would be done again.
        let detail =
            "the header `Idempotency-Key` is empty; give it a value of the request's own, or leave it out";
        return Err(Problem::new(Kind::BadRequest, detail));
    }
    Ok(key)
}

/// The parameter and the header that make a request wait.
#[derive(Debug)]
pub(super) struct Waiting;

/// What a request about a new job may bring besides the job.
#[derive(Debug)]
pub(super) struct AboutANewJob;

fn prefer() -> Parameter {
    let wait = line().pattern(Some("^wait=[0-9]{1,9}$"));
    let what = "`wait=SECONDS`: to be answered as soon as the job is final, or else after this time, which is a minute at most.";
    optional(ParameterIn::Header, "Prefer", wait, what)
}

impl IntoParams for Waiting {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let what = "The same as `Prefer`, in seconds.";
        vec![optional(ParameterIn::Query, "wait", number(0, 999_999_999), what), prefer()]
    }
}

impl IntoParams for AboutANewJob {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let what = "The same as `idempotency_key` in the body, with or without quotation marks.";
        let key = line().pattern(Some("^[ -~]*$")).max_length(Some(256));
        let trace = "The trace that the job belongs to, as in W3C Trace Context.";
        let dry_run = ObjectBuilder::new().schema_type(Type::Boolean);
        let only = "With `true` nothing is stored: the answer says what would become of the job.";
        vec![
            optional(ParameterIn::Query, "dry_run", dry_run, only),
            prefer(),
            optional(ParameterIn::Header, "Idempotency-Key", key, what),
            optional(ParameterIn::Header, "traceparent", line().pattern(Some("^[ -~]*$")), trace),
        ]
    }
}

/// How long a request wants to wait by `Prefer: wait=SECONDS`.
pub(super) fn preferred_wait(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    for value in headers.get_all("prefer") {
        for preference in value.to_str().unwrap_or_default().split([',', ';']) {
            if let Some((name, seconds)) = preference.split_once('=')
                && name.trim().eq_ignore_ascii_case("wait")
            {
                return seconds_of("the header `Prefer: wait`", seconds.trim().trim_matches('"')).map(Some);
            }
        }
    }
    Ok(None)
}

fn seconds_of(what: &str, text: &str) -> Result<Duration, Problem> {
    let seconds: u32 = text
        .parse()
        .map_err(|_| Problem::new(Kind::BadRequest, format!("{what} must be a number of seconds")))?;
    Ok(Duration::from_secs(seconds.into()).min(MAX_WAIT))
}

/// The parameters of a query, each of which is taken once. A name that nobody takes is refused: a misspelt filter would
/// mean all jobs.
#[derive(Debug)]
pub(super) struct Parameters {
    left: BTreeMap<String, Vec<String>>,
    /// The names that were asked for, whether they were there or not.
    taken: Vec<String>,
}

impl Parameters {
    pub(super) fn of(request: &Request) -> Self {
        let mut parameters = BTreeMap::<_, Vec<_>>::new();
        for (name, value) in url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
        {
            parameters.entry(name.into_owned()).or_default().push(value.into_owned());
        }
        Self { left: parameters, taken: Vec::new() }
    }

    /// All values of a parameter.
    pub(super) fn all(&mut self, name: &str) -> Vec<String> {
        self.taken.push(name.to_owned());
        self.left.remove(name).unwrap_or_default()
    }

    /// The value of a parameter that may be there once.
    pub(super) fn one<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Problem> {
        let bad = |what: &str| Problem::new(Kind::BadRequest, format!("the parameter `{name}`: {what}"));
        match self.all(name).as_slice() {
            [] => Ok(None),
            [value] => read(value).map(Some).map_err(|error| bad(&error)),
            _ => Err(bad("may be there once")),
        }
    }

    pub(super) fn wait(&mut self) -> Result<Option<Duration>, Problem> {
        match self.all("wait").as_slice() {
            [] => Ok(None),
            [seconds] => seconds_of("the parameter `wait`", seconds).map(Some),
            _ => Err(Problem::new(Kind::BadRequest, "the parameter `wait` may be there once")),
        }
    }

    /// How many items a page of a list has at most.
    pub(super) fn limit(&mut self) -> Result<usize, Problem> {
        let read = |value: &str| {
            let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
            limit.ok_or_else(|| format!("must be a number from 1 to {MAX_LIMIT}"))
        };
        Ok(self.one("limit", read)?.unwrap_or(DEFAULT_LIMIT))
    }

    /// An error if something is left that nobody takes.
    pub(super) fn end(self) -> Result<(), Problem> {
        let Self { left, taken } = self;
        let Some(name) = left.keys().next() else { return Ok(()) };
        let name: String = name.chars().take(64).collect();
        let others = match taken.as_slice() {
            [] => ", and no other".to_owned(),
            names => format!("; there are `{}`", names.join("`, `")),
        };
        let detail = format!("there is no parameter `{}` here{others}", name.escape_default());
        Err(Problem::new(Kind::BadRequest, detail))
    }
}

/// A value of a parameter, by the rules of its type.
pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|error: T::Err| error.to_string())
}

/// What is on or off.
pub(super) fn flag(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "must be `true` or `false`".to_owned())
}

/// An owner, who may be one of the time before the rules became strict.
pub(super) fn named_owner(value: &str) -> Result<Owner, String> {
    value.parse().map_err(|error| format!("{error}; write `user:ID` or `org:ID`"))
}

/// A text of a parameter.
pub(super) fn plain(value: &str) -> Result<String, String> {
    // Nothing has them that is looked for, and databases disagree about NUL.
    if value.chars().any(char::is_control) {
        Err("may have no control characters".into())
    } else {
        Ok(value.to_owned())
    }
}

pub(super) fn moment(value: &str) -> Result<Timestamp, String> {
    value.parse().map_err(|_| format!("must be a time {RFC_3339}"))
}

/// How a time is written.
const RFC_3339: &str = "as in RFC 3339, such as 2026-01-31T12:00:00Z";

/// A time in a body, or `null`. The name of its field is not known here, and where it is in the body follows the error.
pub(super) fn moment_in_json<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Timestamp>, D::Error> {
    let value = Option::<String>::deserialize(value)?;
    let read = |value: String| value.parse().map_err(|_| D::Error::custom(format!("write times {RFC_3339}")));
    value.map(read).transpose()
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;
    use futures_util::stream;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_in_the_middle_is_given_up_with_its_room() {
        let (room, whose, headers) = (Room::for_bodies(), Principal::Operator, HeaderMap::new());
        let begun = Instant::now();
        let stopped = || {
            let first = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"{"))]);
            Body::from_stream(futures_util::StreamExt::chain(first, stream::pending()))
        };
        // Each takes the room of a body of which nobody knows how long it is; together they take more than there is.
        for given_up in 1..=20 {
            let read = whole_body(&room, &whose, "/v1/batches", &headers, stopped());
            let problem = read.await.unwrap_err();
            assert_eq!(problem.into_response().status(), 408);
            assert_eq!(begun.elapsed(), BODY_TIMEOUT * given_up);
        }
    }

    #[test]
    fn no_request_waits_for_longer_than_a_minute() {
        let asked = |preference: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", preference.parse().unwrap());
            preferred_wait(&headers).map_err(|problem| problem.into_response().status().as_u16())
        };
        assert_eq!(asked("respond-async, wait=30"), Ok(Some(Duration::from_secs(30))));
        for long in ["wait=60", "wait=61", "wait=4294967295"] {
            assert_eq!(asked(long), Ok(Some(MAX_WAIT)), "{long}");
        }
        assert_eq!(asked("respond-async"), Ok(None));
        for bad in ["wait=soon", "wait=-1", "wait=99999999999"] {
            assert_eq!(asked(bad), Err(400), "{bad}");
        }
    }
}
