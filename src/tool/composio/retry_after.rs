//! `Retry-After` and `Date`: when the tool API wants to be asked again.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};

/// The longest `Retry-After` that is passed on. Whoever waits has a much lower limit; this one only
/// keeps arithmetic on the value harmless.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(366 * 24 * 3600);

/// Finer than `Retry-After`, and preferred to it, as in the API's own clients.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// The wait that an answer asks for: `retry-after-ms`, else seconds or an HTTP date. A date is
/// compared with the answer's own `Date`, else with `now`, so that a skewed clock does not shift it.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(millis) = text(&RETRY_AFTER_MS).and_then(decimal) {
        return Some(seconds(millis / 1000.0));
    }
    let asked = text(&RETRY_AFTER)?;
    if let Some(count) = decimal(asked) {
        return Some(seconds(count));
    }
    let until = httpdate::parse_http_date(asked).ok()?;
    let from = date(headers).map_or(SystemTime::from(now), SystemTime::from);
    Some(until.duration_since(from).unwrap_or(Duration::ZERO).min(MAX_RETRY_AFTER))
}

pub fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = headers.get(DATE)?.to_str().ok()?;
    Timestamp::try_from(httpdate::parse_http_date(text.trim()).ok()?).ok()
}

/// A plain decimal number; signs, exponents, `inf` and `nan` are not what servers mean.
fn decimal(text: &str) -> Option<f64> {
    if !text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

fn seconds(count: f64) -> Duration {
    Duration::try_from_secs_f64(count).unwrap_or(MAX_RETRY_AFTER).min(MAX_RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_every_form_and_garbage_is_none() {
        let now: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
        let read = |pairs: &[(&'static str, &str)]| {
            let headers = pairs
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
                .collect();
            retry_after(&headers, now).map(|wait| wait.as_secs_f64())
        };
        let longest = MAX_RETRY_AFTER.as_secs_f64();
        for (headers, wait) in [
            (&[][..], None),
            (&[("retry-after", "7")], Some(7.0)),
            (&[("retry-after", " 1.5 ")], Some(1.5)),
            (&[("retry-after-ms", "250"), ("retry-after", "9")], Some(0.25)),
            (&[("retry-after-ms", "soon"), ("retry-after", "9")], Some(9.0)),
            (&[("retry-after", "Sun, 01 Mar 2026 00:00:30 GMT")], Some(30.0)),
            (
                &[
                    ("retry-after", "Sun, 01 Mar 2026 00:00:30 GMT"),
                    ("date", "Sun, 01 Mar 2026 00:00:20 GMT"),
                ],
                Some(10.0),
            ),
            (&[("retry-after", "Sun, 01 Mar 2020 00:00:30 GMT")], Some(0.0)),
            (&[("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")], Some(longest)),
            (&[("retry-after", "99999999999999999999999999")], Some(longest)),
            (&[("retry-after", "5"), ("date", "Fri, 31 Dec 9999 23:59:59 GMT")], Some(5.0)),
        ] {
            assert_eq!(read(headers), wait, "{headers:?}");
        }
        for garbage in ["", "-1", "soon", "inf", "nan", "1e9", "0x10", "..", "1 2", "Sun, 99 Foo 2026"] {
            assert_eq!(read(&[("retry-after", garbage)]), None, "{garbage}");
        }
    }
}
