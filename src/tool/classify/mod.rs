//! What an answer of the tool API means for its job. Pure.
//!
//! The question behind every rule is whether the tool may have run. A reply is first turned into
//! one of a closed set of causes: by the API's slug, then by its code, then by the HTTP status,
//! because slugs are unique while codes repeat between families and statuses changed over time.
//!
//! What this module does not do: count attempts, choose waits, look at execution logs. It says
//! [`Next::Retry`] and the budget decides; it says [`Next::Unknown`] and the caller verifies or
//! holds.

mod cause;

use std::{sync::Arc, time::Duration};

use serde_json::value::RawValue;

use self::cause::{Cause, Reason};
use super::{
    Answer, ApiError, Body, Reply, ToolResult, account::needs_reconnection, decode::failure_texts,
    not_ready::said, redact::mask_keys,
};
use crate::job::{AttemptOutcome, Binding, Effect, ErrorKind, JobError, JobSpec, Owner, Stop};

#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub effect: Effect,
    /// The account that was sent along, if any.
    pub account: Option<&'a str>,
    /// The job named that account itself.
    pub explicit_account: bool,
    pub owner: &'a Owner,
    pub toolkit: &'a str,
    pub tool: &'a str,
    /// The version that was asked for.
    pub version: &'a str,
}

impl<'a> Context<'a> {
    pub fn new(spec: &'a JobSpec, binding: &'a Binding) -> Self {
        Self {
            effect: binding.effect,
            account: binding.account.as_deref(),
            explicit_account: spec.connected_account_id.is_some(),
            owner: &spec.owner,
            toolkit: &binding.toolkit,
            tool: &spec.tool,
            version: &binding.version,
        }
    }
}

#[derive(Debug)]
pub struct Classified {
    pub outcome: AttemptOutcome,
    pub http_status: Option<u16>,
    pub log_id: Option<String>,
    /// The notice that the pinned version will go away, verbatim.
    pub deprecated: Option<String>,
    pub next: Next,
}

impl Classified {
    /// Whether the API says that the account is gone or unusable, so that what is remembered about the
    /// owner's accounts is outdated.
    pub fn account_is_gone(&self) -> bool {
        match &self.next {
            Next::Stop(Stop::Connect { .. }) => true,
            Next::Stop(Stop::Fail { error }) => error.kind() == ErrorKind::AccountNotFound,
            Next::Stop(Stop::Hold { .. })
            | Next::Succeed { .. }
            | Next::Retry { .. }
            | Next::Throttled { .. }
            | Next::Unknown { .. } => false,
        }
    }
}

#[derive(Debug)]
pub enum Next {
    Succeed {
        result: Arc<RawValue>,
    },
    Stop(Stop),
    /// Safe to make again, if the budget allows.
    Retry {
        error: JobError,
        retry_after: Option<Duration>,
    },
    /// Safe to make again, without spending an attempt.
    Throttled {
        error: JobError,
        retry_after: Option<Duration>,
    },
    /// Nobody knows whether the tool ran, and it must not run twice: verify, or hold.
    Unknown {
        error: JobError,
    },
}

impl From<Stop> for Next {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

pub fn classify(reply: Reply, context: &Context<'_>) -> Classified {
    match reply {
        Reply::NotSent(cause) => {
            let message =
                format!("the tool API could not be reached, nothing was sent: {}", mask_keys(&cause));
            let error = JobError::new(ErrorKind::NotSent, message);
            unanswered(AttemptOutcome::NotSent, Next::Retry { error, retry_after: None })
        }
        Reply::NoAnswer(cause) => {
            let what = format!("the call was sent and no answer came: {cause}");
            unanswered(AttemptOutcome::Unknown, unknown(&what, None, context))
        }
        Reply::Answered(Answer { status, retry_after, deprecated, body }) => {
            let log_id = match &body {
                Body::Result(result) => result.log_id.clone(),
                Body::Error(_) | Body::Opaque | Body::TooLarge | Body::Broken(_) => None,
            };
            let (outcome, next) = answered(status, retry_after, body, context);
            Classified { outcome, http_status: Some(status), log_id, deprecated, next }
        }
    }
}

fn unanswered(outcome: AttemptOutcome, next: Next) -> Classified {
    Classified { outcome, http_status: None, log_id: None, deprecated: None, next }
}

fn answered(
    status: u16,
    retry_after: Option<Duration>,
    body: Body,
    context: &Context<'_>,
) -> (AttemptOutcome, Next) {
    let success = (200..300).contains(&status);
    let reason = match body {
        Body::Result(result) if success => return ran(result, retry_after, context),
        // A success that comes with an error status is a contradiction, and then nothing is known.
        Body::Result(result) if result.successful && result.error.is_none() => {
            let what = format!("the tool API answered HTTP {status} with a success in it");
            return (AttemptOutcome::Unknown, unknown(&what, retry_after, context));
        }
        Body::Result(result) => Reason::Result(ApiError { message: result.error, ..ApiError::default() }),
        Body::Error(error) => Reason::Told(error),
        Body::Opaque => Reason::Foreign("without a body that the tool API would send"),
        Body::Broken(_) => Reason::Lost,
        Body::TooLarge if success => return (AttemptOutcome::Unknown, too_large(context.tool)),
        Body::TooLarge => Reason::Foreign("with a body that is larger than the limit"),
    };
    let cause = Cause::of(status, &reason, context);
    cause.next(cause.error(status, &reason, context), retry_after, context)
}

fn unknown(what: &str, retry_after: Option<Duration>, context: &Context<'_>) -> Next {
    let message = format!("{what}; whether the tool ran is not known");
    undecided(said(ErrorKind::UnknownOutcome, message, &ApiError::default()), retry_after, context)
}

fn undecided(error: JobError, retry_after: Option<Duration>, context: &Context<'_>) -> Next {
    if context.effect.may_repeat() { Next::Retry { error, retry_after } } else { Next::Unknown { error } }
}

fn too_large(tool: &str) -> Next {
    let message = format!(
        "the tool `{tool}` ran, but its answer is larger than `composio.max_response_bytes`, so the result is not \
         kept; the tool API's log has it under the attempt's request ID. Ask for less or raise the limit, and mind \
         that the tool has run already"
    );
    Stop::Fail { error: JobError::new(ErrorKind::ResultTooLarge, message) }.into()
}

/// The tool ran and reported a result.
fn ran(result: ToolResult, retry_after: Option<Duration>, context: &Context<'_>) -> (AttemptOutcome, Next) {
    if result.successful && result.error.is_none() {
        return (AttemptOutcome::Succeeded, Next::Succeed { result: result.data });
    }
    let text = result.error.clone().unwrap_or_default();
    let provider_status = result.provider_status.or_else(|| legacy_status(&text));
    let tool = context.tool;
    let mut message = match provider_status {
        Some(status) => format!("the tool `{tool}` failed, its provider answered {status}"),
        None => format!("the tool `{tool}` failed"),
    };
    if !text.is_empty() {
        message.push_str(": ");
        message.push_str(&mask_keys(&text));
    }
    let error = JobError::new(ErrorKind::ToolFailed, message);
    let next = match provider_status {
        // The provider turned the request away before doing anything.
        Some(429) => Next::Retry { error, retry_after },
        Some(500..) if context.effect.may_repeat() => Next::Retry { error, retry_after },
        None | Some(400 | 401 | 403) if grant_is_gone(&text, &result.data) => {
            let why = "is no longer accepted by the provider";
            let sentence = needs_reconnection(context.owner, context.toolkit, why);
            let api = ApiError { message: Some(text), ..ApiError::default() };
            let error = said(ErrorKind::NeedsReconnection, sentence, &api);
            Stop::Connect { toolkit: context.toolkit.to_owned(), error }.into()
        }
        Some(_) | None => Stop::Fail { error }.into(),
    };
    (AttemptOutcome::ToolFailed, next)
}

/// Runs before the end of 2025 reported the provider's status only in words: `404 Client Error: ...`.
fn legacy_status(text: &str) -> Option<u16> {
    let (status, words) = text.split_at_checked(3)?;
    let status: u16 = status.parse().ok().filter(|status| (400..600).contains(status))?;
    let words = words.trim_start();
    (words.starts_with("Client Error") || words.starts_with("Server Error")).then_some(status)
}

/// Whether a provider says that the grant itself is gone. The API may still call the account
/// active, so these words are the only sign.
fn grant_is_gone(text: &str, data: &RawValue) -> bool {
    const WORDS: [&str; 11] = [
        "invalid_grant",
        "token_revoked",
        "token_expired",
        "invalid_refresh_token",
        "token has been expired or revoked",
        "token has been revoked",
        "refresh token is invalid",
        "refresh token has expired",
        "account_inactive",
        "user_revoked",
        "authorization has been revoked",
    ];
    let says = |text: &str| {
        let text = text.to_lowercase();
        WORDS.iter().any(|words| text.contains(words))
    };
    says(text) || failure_texts(data).iter().any(|text| says(text))
}

#[cfg(test)]
mod tests;
