//! What can go wrong, drawn by a seed.

use std::time::{Duration, SystemTime};

use fastrand::Rng;
use serde_json::{Value, json};

use super::wire::{Answer, Framing};

/// What can go wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mischief {
    /// The connection ends before anything happened.
    CloseBefore,
    /// The connection ends after the tool ran.
    CloseAfter,
    /// Nothing happens, for long, and then the connection ends.
    HangBefore,
    /// The tool runs, and the answer is long in coming.
    HangAfter,
    /// The tool runs late, perhaps when nobody waits for it any more.
    Late,
    /// An error of the server or of something in front of it, before or after the tool ran.
    ServerError,
    /// Too many requests, and any kind of wish when to come back; nothing ran.
    Throttled,
    /// The tool ran into a failure of its provider, without an effect.
    ToolFails,
    /// The whole truth under a wrong content type.
    WrongType,
    /// The whole truth, with headers that are there twice.
    TwiceTheHeaders,
    /// The truth, and much more.
    Huge,
    /// The answer ends in the middle of its JSON.
    CutJson,
    /// The body stops before its end.
    Stops,
    /// JSON of another shape, before or after the tool ran.
    WrongShape,
    /// The verdict is missing.
    NoVerdict,
    /// Numbers where strings belong, and the other way around.
    WrongKinds,
    /// An error body under HTTP 200, before or after the tool ran.
    ErrorInSuccess,
}

impl Mischief {
    /// Everything.
    pub const ALL: [Self; 17] = [
        Self::CloseBefore,
        Self::CloseAfter,
        Self::HangBefore,
        Self::HangAfter,
        Self::Late,
        Self::ServerError,
        Self::Throttled,
        Self::ToolFails,
        Self::WrongType,
        Self::TwiceTheHeaders,
        Self::Huge,
        Self::CutJson,
        Self::Stops,
        Self::WrongShape,
        Self::NoVerdict,
        Self::WrongKinds,
        Self::ErrorInSuccess,
    ];

    /// As it is called in a summary.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CloseBefore => "close_before",
            Self::CloseAfter => "close_after",
            Self::HangBefore => "hang_before",
            Self::HangAfter => "hang_after",
            Self::Late => "late",
            Self::ServerError => "server_error",
            Self::Throttled => "throttled",
            Self::ToolFails => "tool_fails",
            Self::WrongType => "wrong_type",
            Self::TwiceTheHeaders => "twice_the_headers",
            Self::Huge => "huge",
            Self::CutJson => "cut_json",
            Self::Stops => "stops",
            Self::WrongShape => "wrong_shape",
            Self::NoVerdict => "no_verdict",
            Self::WrongKinds => "wrong_kinds",
            Self::ErrorInSuccess => "error_in_success",
        }
    }
}

/// Random numbers that depend on nothing but these, and not on the order of requests.
pub(super) fn rng(seed: u64, subject: &str, nth: u64) -> Rng {
    // FNV-1a, because the standard library's hash may change from version to version.
    let bytes = subject.bytes().chain(nth.to_le_bytes()).chain(seed.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    Rng::with_seed(hash)
}

/// One of several.
pub(super) fn pick<T: Clone>(rng: &mut Rng, from: &[T], default: T) -> T {
    rng.choice(from).cloned().unwrap_or(default)
}

/// A time up to the given one.
pub(super) fn up_to(rng: &mut Rng, longest: Duration) -> Duration {
    longest.mul_f64(rng.f64())
}

/// An answer that says that the server has failed, in one of many ways.
pub(super) fn server_error(rng: &mut Rng, huge: usize) -> Answer {
    let status = pick(rng, &[408, 500, 500, 502, 502, 503, 503, 504], 500);
    let envelope = json!({"error": {"message": "Something went wrong", "code": status, "status": status, "slug": "HTTP_Error"}});
    let html = "<html><head><title>Just a moment...</title></head></html>";
    let answer = match rng.u8(..8) {
        0 => Answer::of(status, "text/html", html),
        1 => Answer::of(status, "application/json", html),
        2 => Answer::of(status, "application/json", ""),
        3 => Answer::of(status, "application/json", r#"{"error":{"message":"Somethi"#),
        4 => Answer::of(status, "text/plain", envelope.to_string()),
        5 => Answer::of(status, "text/html", vec![b' '; huge]),
        6 => Answer::json(307, &json!({})).with("Location", "/elsewhere"),
        _ => Answer::json(status, &envelope),
    };
    let framing =
        pick(rng, &[Framing::Length, Framing::Chunked, Framing::StopsBetweenChunks], Framing::Length);
    if status == 503 && rng.bool() {
        answer.with("Retry-After", "1").framed(framing)
    } else {
        answer.framed(framing)
    }
}

/// An answer that says that there are too many requests.
pub(super) fn throttled(rng: &mut Rng) -> Answer {
    let body = match rng.u8(..4) {
        0 => json!({"message": "Rate limit exceeded. Limit: 2000 requests per 1 minutes"}).to_string(),
        1 => json!({"error": {"code": 10429, "slug": "HTTP_TooManyRequests", "message": "Slow down"}})
            .to_string(),
        2 => json!({"code": 10429, "slug": "HTTP_TooManyRequests"}).to_string(),
        _ => String::new(),
    };
    let mut answer = Answer::of(429, "application/json", body);
    let date = |offset: i64| {
        let distance = Duration::from_secs(offset.unsigned_abs());
        let now = SystemTime::now();
        httpdate::fmt_http_date(if offset < 0 { now - distance } else { now + distance })
    };
    let wishes: Vec<String> = match rng.u8(..14) {
        0 => vec![],
        1 => vec!["0".into()],
        2 => vec!["0.5".into()],
        3 => vec!["1".into(), "2".into()],
        4 => vec![date(1)],
        5 => vec![date(-3_600)],
        6 => vec!["-1".into()],
        7 => vec!["soon".into()],
        8 => vec![String::new()],
        9 => vec!["99999999999999999999".into()],
        10 => vec!["1e3".into(), "1".into()],
        11 => vec!["Fri, 31 Dec 9999 23:59:59 GMT".into()],
        12 => vec!["Tue, 99 Foo 2026 25:61:61 GMT".into()],
        _ => vec!["1".into()],
    };
    answer.headers.extend(wishes.into_iter().map(|wish| ("Retry-After", wish)));
    if rng.u8(..8) == 0 { answer.with("Retry-After-Ms", "250") } else { answer }
}

/// JSON that is not what was asked for. None of it can be taken for a definite answer to anything.
pub(super) fn wrong_shape(rng: &mut Rng) -> Value {
    pick(
        rng,
        &[
            json!([]),
            json!([[]]),
            json!(null),
            json!(true),
            json!(17),
            json!("ok"),
            json!({}),
            json!({"result": {"successful": true}}),
            json!([{"successful": true}]),
        ],
        json!({}),
    )
}

/// A body for a look-up that cannot be read as what was asked for, under HTTP 200.
pub(super) fn garbage(rng: &mut Rng) -> Answer {
    match rng.u8(..5) {
        0 => Answer::of(200, "text/html", "<html>please log in</html>"),
        1 => Answer::of(200, "application/json", ""),
        2 => Answer::of(200, "application/json", r#"{"items":[{"id":"ca"#),
        3 => Answer::json(
            200,
            &json!({"slug": 1, "toolkit": 2, "meta": [], "items": "none", "id": 3, "status": 4, "logs": {}}),
        ),
        _ => Answer::json(200, &wrong_shape(rng)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same() {
        let draw = |seed, subject, nth| rng(seed, subject, nth).u64(..);
        assert_eq!(draw(1, "job", 0), draw(1, "job", 0));
        let others = [draw(2, "job", 0), draw(1, "jab", 0), draw(1, "job", 1)];
        assert!(!others.contains(&draw(1, "job", 0)));
    }

    #[test]
    fn every_name_is_another() {
        let names: std::collections::BTreeSet<_> = Mischief::ALL.map(Mischief::name).into_iter().collect();
        assert_eq!(names.len(), Mischief::ALL.len());
    }
}
