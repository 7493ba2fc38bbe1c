//! `Retry-After`: when a receiver wants to be asked again.

use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};

/// The longest `Retry-After` that is passed on; longer ones are cut to it.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3_600);

/// The wait that an answer asks for, in whole seconds or until a date. The date is compared with the answer's own `Date`, else
/// with `now`, so that a skewed clock does not shift it.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let asked = text(RETRY_AFTER)?;
    if !asked.is_empty() && asked.bytes().all(|byte| byte.is_ascii_digit()) {
        // So many digits that they are no number are longer than a day, too.
        return Some(asked.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs).min(MAX_RETRY_AFTER));
    }
    let until = httpdate::parse_http_date(asked).ok()?;
    let from = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now);
    Some(until.duration_since(from).unwrap_or(Duration::ZERO).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms_and_garbage_is_none() {
        let now = httpdate::parse_http_date("Sun, 01 Mar 2026 00:00:00 GMT").unwrap();
        let read = |pairs: &[(HeaderName, &str)]| {
            let headers = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
            retry_after(&headers, now).map(|wait| wait.as_secs())
        };
        let (day, soon) = (24 * 3_600, "Sun, 01 Mar 2026 00:00:30 GMT");
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[(RETRY_AFTER, soon), (DATE, "Sun, 01 Mar 2026 00:00:20 GMT")]), Some(10));
        assert_eq!(read(&[(RETRY_AFTER, soon), (DATE, "yesterday")]), Some(30));
        for (text, wait) in [
            ("0", Some(0)),
            (" 7 ", Some(7)),
            ("86401", Some(day)),
            ("99999999999999999999999999", Some(day)),
            (soon, Some(30)),
            ("Sun, 01 Mar 2020 00:00:30 GMT", Some(0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(day)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("Sun, 99 Foo 2026", None),
        ] {
            assert_eq!(read(&[(RETRY_AFTER, text)]), wait, "{text}");
        }
    }
}
