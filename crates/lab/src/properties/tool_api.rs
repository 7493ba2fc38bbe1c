//! Answers of the tool API.

use std::time::Duration;

use errand::{
    backoff::Intervals,
    job::{
        AttemptOutcome, Budget, Effect, ErrorKind, JobError, Owner, OwnerKind, RetryPolicy, Spending, Stop,
    },
    tool::{
        Answer, Body, Reply,
        classify::{Classified, Context, Next, classify},
        composio::{
            lookup::lookup_error,
            retry_after::{MAX_RETRY_AFTER, date, retry_after},
            wire,
        },
        decode::decode,
    },
};
use jiff::Timestamp;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::text::{is_keepable_message, is_short_text};

/// When the answers come. Their dates are compared with it.
const NOW: Timestamp = Timestamp::constant(1_772_323_200, 0);

/// What holds for retries where nothing else is set.
const POLICY: RetryPolicy = RetryPolicy {
    intervals: Intervals {
        initial: Duration::from_secs(1),
        max: Duration::from_secs(600),
        multiplier: 2.0,
        jitter: 0.2,
    },
    max_attempts: 12,
    max_retry_after: Duration::from_secs(3600),
    max_postponed: Duration::from_secs(86_400),
};

/// Takes the bytes as an answer: a line with the status, lines with headers, an empty line, the
/// body. Returns what becomes of a job whose call must not be repeated blindly.
///
/// # Panics
/// A property does not hold.
pub fn tool_api(bytes: &[u8]) -> &'static str {
    let (status, headers, body) = answer(bytes);
    let asked = retry_after(&headers, NOW);
    let _date = date(&headers);
    assert!(asked.is_none_or(|wait| wait <= MAX_RETRY_AFTER));
    let first = Spending {
        budget: Budget::default(),
        attempt: 1,
        spent: 0,
        age: Duration::ZERO,
        postponed_for: Duration::ZERO,
    };
    let wait = POLICY.next(first, asked, 0.999);
    assert!(wait.is_some_and(|wait| wait <= POLICY.max_retry_after.mul_f64(1.2)));

    look_up(status, asked, body);
    for broken in [|| Body::TooLarge, || Body::Broken("the connection was reset".into())] {
        execute(status, asked, b"", broken);
    }
    execute(status, asked, body, || decode(status, body))
}

fn answer(bytes: &[u8]) -> (u16, HeaderMap, &[u8]) {
    let mut headers = HeaderMap::new();
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let mut rest = bytes;
    let mut next = || {
        let line = lines.next()?;
        rest = rest.get(line.len()..)?;
        let line = line.trim_ascii_end();
        (!line.is_empty()).then_some(line)
    };
    let status = next().and_then(|line| std::str::from_utf8(line).ok()?.parse().ok()).unwrap_or(200);
    while let Some(line) = next() {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = parts.next().and_then(|name| HeaderName::from_bytes(name).ok());
        let value = parts.next().and_then(|value| HeaderValue::from_bytes(value.trim_ascii()).ok());
        if let (Some(name), Some(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    (status, headers, rest)
}

fn look_up(status: u16, retry_after: Option<Duration>, body: &[u8]) {
    let not_ready = lookup_error(status, retry_after, body).not_ready("look something up");
    assert_keepable(not_ready.error());
    for asked in [None, Some("20251027_00")] {
        let Some(tool) = wire::tool(body, asked) else { continue };
        assert!(is_short_text(&tool.toolkit) && is_short_text(&tool.version), "{tool:?}");
        assert!(Effect::ALL.contains(&tool.effect()));
        assert_versions(&tool.available_versions);
    }
    let page = wire::accounts(body);
    for account in page.iter().flat_map(|page| &page.accounts).chain(wire::account(body).as_ref()) {
        assert!(is_short_text(&account.id) && is_short_text(&account.toolkit), "{account:?}");
    }
    assert!(page.and_then(|page| page.next_cursor).is_none_or(|cursor| !cursor.trim().is_empty()));
}

fn assert_versions(versions: &[String]) {
    for version in versions {
        assert!(is_short_text(version) && version != "latest", "{version:?} is no version");
        assert_eq!(versions.iter().filter(|other| *other == version).count(), 1);
    }
}

/// Judges the same answer for every effect and every way an account was chosen.
fn execute(status: u16, asked: Option<Duration>, bytes: &[u8], body: impl Fn() -> Body) -> &'static str {
    let Ok(owner) = Owner::new(OwnerKind::User, "u-alice") else { unreachable!("the owner is valid") };
    if let Body::Result(result) = body() {
        // The rest of the body may be no text at all.
        let data = result.data.get();
        assert!(data == "{}" || bytes.windows(data.len()).any(|part| part == data.as_bytes()));
    }
    let mut word = "";
    for (account, explicit_account) in [(None, false), (Some("ca_1"), true), (Some("ca_1"), false)] {
        let mut outcomes = Vec::new();
        for effect in Effect::ALL {
            let context = Context {
                effect: *effect,
                account,
                explicit_account,
                owner: &owner,
                toolkit: "github",
                tool: "GITHUB_GET_REPO",
                version: "20251027_00",
            };
            let answer = Answer { status, retry_after: asked, deprecated: None, body: body() };
            let classified = classify(Reply::Answered(answer), &context);
            assert_judged(&classified, *effect, &body());
            outcomes.push(classified.outcome);
            if *effect == Effect::Once {
                word = next_word(&classified.next);
            }
        }
        outcomes.dedup();
        assert_eq!(outcomes.len(), 1, "what happened does not depend on what a repetition would do");
    }
    word
}

fn assert_judged(classified: &Classified, effect: Effect, body: &Body) {
    let status = classified.http_status.unwrap_or(0);
    if let Some(id) = &classified.log_id {
        assert!(is_keepable_message(id), "cannot be kept: {id:?}");
    }
    if let Some(error) = error(&classified.next) {
        assert_keepable(error);
    }
    assert!(!repeats_blindly(classified, effect, body), "a call that counts is repeated: {classified:?}");
    match &classified.next {
        Next::Succeed { .. } => {
            assert!((200..300).contains(&status), "HTTP {status} is no success");
            assert_eq!(classified.outcome, AttemptOutcome::Succeeded);
        }
        Next::Unknown { error } => {
            assert_eq!(effect, Effect::Once, "what may be repeated is repeated");
            assert_eq!(classified.outcome, AttemptOutcome::Unknown);
            assert_eq!(error.kind(), ErrorKind::UnknownOutcome);
        }
        Next::Stop(_) | Next::Retry { .. } | Next::Throttled { .. } => {
            assert_ne!(classified.outcome, AttemptOutcome::Succeeded);
        }
    }
    if matches!(body, Body::Opaque | Body::Broken(_)) && status >= 500 {
        assert_eq!(classified.outcome, AttemptOutcome::Unknown, "the tool may have run before HTTP {status}");
    }
}

/// Whether a call is made again although each counts and this one may have had its effect.
fn repeats_blindly(classified: &Classified, effect: Effect, body: &Body) -> bool {
    let again = matches!(classified.next, Next::Retry { .. } | Next::Throttled { .. });
    let nothing_happened = match classified.outcome {
        AttemptOutcome::Refused | AttemptOutcome::Throttled | AttemptOutcome::NotSent => true,
        // A provider that counts requests turns one away before it does anything.
        AttemptOutcome::ToolFailed => match body {
            Body::Result(result) => {
                result.provider_status == Some(429)
                    || result.error.as_ref().is_some_and(|text| text.starts_with("429"))
            }
            Body::Error(_) | Body::Opaque | Body::TooLarge | Body::Broken(_) => false,
        },
        AttemptOutcome::Succeeded
        | AttemptOutcome::Unknown
        | AttemptOutcome::Lost
        | AttemptOutcome::Interrupted
        | AttemptOutcome::Unrecognized => false,
    };
    effect == Effect::Once && again && !nothing_happened
}

fn assert_keepable(error: &JobError) {
    assert!(is_keepable_message(error.message()), "cannot be kept: {:?}", error.message());
    assert!(error.slug().is_none_or(is_keepable_message), "cannot be kept: {error:?}");
}

fn error(next: &Next) -> Option<&JobError> {
    match next {
        Next::Succeed { .. } => None,
        Next::Stop(stop) => Some(stop.error()),
        Next::Retry { error, .. } | Next::Throttled { error, .. } | Next::Unknown { error } => Some(error),
    }
}

fn next_word(next: &Next) -> &'static str {
    match next {
        Next::Succeed { .. } => "succeeded",
        Next::Stop(Stop::Fail { .. }) => "failed",
        Next::Stop(Stop::Hold { .. } | Stop::Connect { .. }) => "held",
        Next::Retry { .. } => "retried",
        Next::Throttled { .. } => "throttled",
        Next::Unknown { .. } => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(outcome: AttemptOutcome) -> Classified {
        let error = JobError::new(ErrorKind::UnknownOutcome, "m");
        Classified {
            outcome,
            http_status: Some(500),
            log_id: None,
            deprecated: None,
            next: Next::Retry { error, retry_after: None },
        }
    }

    #[test]
    fn a_blind_repetition_is_noticed() {
        let failed = |status| decode(200, format!(r#"{{"data":{{"status_code":{status}}}}}"#).as_bytes());
        assert!(repeats_blindly(&retry(AttemptOutcome::Unknown), Effect::Once, &Body::Opaque));
        assert!(!repeats_blindly(&retry(AttemptOutcome::Unknown), Effect::Safe, &Body::Opaque));
        assert!(!repeats_blindly(&retry(AttemptOutcome::NotSent), Effect::Once, &Body::Opaque));
        assert!(repeats_blindly(&retry(AttemptOutcome::ToolFailed), Effect::Once, &failed(500)));
        assert!(!repeats_blindly(&retry(AttemptOutcome::ToolFailed), Effect::Once, &failed(429)));
    }

    #[test]
    fn an_answer_is_taken_apart_at_its_empty_line() {
        let (status, headers, body) = answer(b"429\nRetry-After: 7\r\nno header\n\n{}\n\nx");
        assert_eq!((status, body), (429, &b"{}\n\nx"[..]));
        assert_eq!(headers.len(), 1);
        assert_eq!(retry_after(&headers, NOW), Some(Duration::from_secs(7)));
        assert_eq!(answer(b"").0, 200);
    }

    #[test]
    #[should_panic(expected = "is no version")]
    fn a_moving_version_is_noticed() {
        assert_versions(&["20251027_00".to_owned(), "latest".to_owned()]);
    }

    #[test]
    #[should_panic(expected = "cannot be kept")]
    fn a_log_id_that_cannot_be_kept_is_noticed() {
        let classified = Classified { log_id: Some("a\0".into()), ..retry(AttemptOutcome::Unknown) };
        assert_judged(&classified, Effect::Safe, &Body::Opaque);
    }
}
