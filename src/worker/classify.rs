//! What an answer of the tool API means for its job. Pure.
//!
//! The question behind every rule is whether the tool may have run. A reply is first turned into
//! one of a closed set of causes: by the API's slug, then by its code, then by the HTTP status,
//! because slugs are unique while codes repeat between families and statuses changed over time.
//!
//! What this module does not do: count attempts, choose waits, look at execution logs. It says
//! [`Next::Retry`] and the budget decides; it says [`Next::Unknown`] and the caller verifies or
//! holds.

use std::{sync::Arc, time::Duration};

use serde_json::value::RawValue;

use crate::{
    job::{AttemptOutcome, Binding, Effect, ErrorKind, HeldReason, JobError, JobSpec, Owner, Stop},
    tool::{
        Answer, ApiError, Body, Reply, ToolResult,
        account::{needs_connection, needs_reconnection},
        decode::failure_texts,
        not_ready::said,
        redact::mask_keys,
    },
};

/// What is known about the call.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// What repeating the call does.
    pub effect: Effect,
    /// The account that was sent along, if any.
    pub account: Option<&'a str>,
    /// The job named that account itself.
    pub explicit_account: bool,
    /// Whose account it is.
    pub owner: &'a Owner,
    /// The tool's toolkit.
    pub toolkit: &'a str,
    /// The tool.
    pub tool: &'a str,
    /// The version that was asked for.
    pub version: &'a str,
}

impl<'a> Context<'a> {
    /// A call of this job with this binding.
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

/// What a reply means.
#[derive(Debug)]
pub struct Classified {
    /// How the attempt ended.
    pub outcome: AttemptOutcome,
    /// The HTTP status, when one was received.
    pub http_status: Option<u16>,
    /// The execution log ID, when the API gave one.
    pub log_id: Option<String>,
    /// The notice that the pinned version will go away, verbatim.
    pub deprecated: Option<String>,
    /// What becomes of the job.
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

/// What becomes of the job after a reply.
#[derive(Debug)]
pub enum Next {
    /// Done.
    Succeed {
        /// The tool's `data`, verbatim.
        result: Arc<RawValue>,
    },
    /// Failed or parked.
    Stop(Stop),
    /// Safe to make again, if the budget allows.
    Retry {
        /// Why the attempt did not succeed.
        error: JobError,
        /// The API's wish, if it said one.
        retry_after: Option<Duration>,
    },
    /// Safe to make again, without spending an attempt.
    Throttled {
        /// Why the attempt did not succeed.
        error: JobError,
        /// The API's wish, if it said one.
        retry_after: Option<Duration>,
    },
    /// Nobody knows whether the tool ran, and it must not run twice: verify, or hold.
    Unknown {
        /// What is known.
        error: JobError,
    },
}

impl From<Stop> for Next {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// Why the API did not run a tool, or why that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Too many requests; nothing ran.
    Throttled,
    /// errand's own key is not accepted; nothing ran.
    Key,
    /// There is no such tool at that version; nothing ran.
    UnknownTool,
    /// The owner has no account for the toolkit; nothing ran.
    NoConnection,
    /// The account is expired or otherwise unusable; nothing ran.
    DeadConnection,
    /// There is no such account; nothing ran.
    UnknownAccount,
    /// The account belongs to somebody else; nothing ran.
    OtherOwner,
    /// Refused for another reason; nothing ran.
    Refused,
    /// Whether anything ran is not known.
    Unknown,
}

/// Says what a reply means.
pub fn classify(reply: Reply, context: &Context<'_>) -> Classified {
    match reply {
        Reply::NotSent(cause) => {
            let message =
                format!("the tool API could not be reached, nothing was sent: {}", mask_keys(&cause));
            let error = JobError::new(ErrorKind::NotSent, message);
            unanswered(AttemptOutcome::NotSent, Next::Retry { error, retry_after: None })
        }
        Reply::NoAnswer(cause) => {
            let next = unknown(context, None, &format!("the call was sent and no answer came: {cause}"));
            unanswered(AttemptOutcome::Unknown, next)
        }
        Reply::Answered(Answer { status, retry_after, request_id: _, deprecated, body }) => {
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
    let said = match body {
        Body::Result(result) if success => return ran(result, retry_after, context),
        // A success that comes with an error status is a contradiction, and then nothing is known.
        Body::Result(result) if result.successful && result.error.is_none() => {
            let what = format!("the tool API answered HTTP {status} with a success in it");
            return (AttemptOutcome::Unknown, unknown(context, retry_after, &what));
        }
        Body::Result(result) => Said::Api(ApiError { message: result.error, ..ApiError::default() }),
        Body::Error(error) => Said::Api(error),
        Body::Opaque => Said::Nothing("without a body that the tool API would send"),
        Body::Broken(_) => Said::Lost,
        Body::TooLarge if success => {
            let error = JobError::new(
                ErrorKind::ResultTooLarge,
                format!(
                    "the tool `{}` ran, but its answer is larger than `composio.max_response_bytes`, so the result is \
                     not kept; the tool API's log has it under the attempt's request ID. Ask for less or raise the \
                     limit, and mind that the tool has run already",
                    context.tool
                ),
            );
            return (AttemptOutcome::Unknown, Stop::Fail { error }.into());
        }
        Body::TooLarge => Said::Nothing("with a body that is larger than the limit"),
    };
    let cause = match &said {
        Said::Api(error) => cause(status, error, context),
        // These statuses mean different things, which only the API's words would tell apart.
        Said::Nothing(_) | Said::Lost if matches!(status, 404 | 410 | 422) => Cause::Refused,
        Said::Nothing(_) | Said::Lost => by_status(status),
    };
    refused(cause, status, said, retry_after, context)
}

/// What came with a status that is no success.
enum Said {
    /// The API's own words.
    Api(ApiError),
    /// Something that the API would not say, so perhaps it was not the API that answered.
    Nothing(&'static str),
    /// A body that was lost on the way.
    Lost,
}

impl Said {
    fn error(&self) -> ApiError {
        match self {
            Self::Api(error) => error.clone(),
            Self::Nothing(_) | Self::Lost => ApiError::default(),
        }
    }

    fn how(&self) -> &'static str {
        match self {
            Self::Api(_) => "with an error",
            Self::Nothing(how) => how,
            Self::Lost => "and its body was lost",
        }
    }
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
            let said_error = ApiError { message: Some(text), ..ApiError::default() };
            let error = said(ErrorKind::NeedsReconnection, sentence, &said_error);
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

fn refused(
    cause: Cause,
    status: u16,
    said_body: Said,
    retry_after: Option<Duration>,
    context: &Context<'_>,
) -> (AttemptOutcome, Next) {
    let Context { owner, toolkit, tool, version, .. } = context;
    let (field, owner_id) = (owner.kind().field(), owner.id());
    let api = said_body.error();
    let fail = |kind, sentence| Stop::Fail { error: said(kind, sentence, &api) }.into();
    let connect = |kind, sentence| {
        Stop::Connect { toolkit: (*toolkit).to_owned(), error: said(kind, sentence, &api) }.into()
    };
    let next = match cause {
        Cause::Throttled => {
            let sentence = "the tool API is throttling; the call is made again later".into();
            let error = said(ErrorKind::Throttled, sentence, &api);
            return (AttemptOutcome::Throttled, Next::Throttled { error, retry_after });
        }
        Cause::Unknown => {
            let what = format!("the tool API answered HTTP {status} {}", said_body.how());
            let next = match unknown_error(&what, &api) {
                error if context.effect.may_repeat() => Next::Retry { error, retry_after },
                error => Next::Unknown { error },
            };
            return (AttemptOutcome::Unknown, next);
        }
        Cause::Key => {
            let sentence = format!(
                "the tool API does not accept errand's API key (HTTP {status}); correct the key, then release the job"
            );
            let error = said(ErrorKind::Credentials, sentence, &api);
            Stop::Hold { reason: HeldReason::Credentials, error }.into()
        }
        Cause::UnknownTool => fail(
            ErrorKind::UnknownTool,
            format!(
                "the tool API has no tool `{tool}` at version `{version}` of `{toolkit}`; pin a version that has it, \
                 or correct the slug"
            ),
        ),
        Cause::UnknownAccount => match context.account {
            None => connect(ErrorKind::NeedsConnection, needs_connection(owner, toolkit)),
            Some(account) if context.explicit_account => fail(
                ErrorKind::AccountNotFound,
                format!(
                    "there is no connected account `{account}`; name an account of this project in \
                     `connected_account_id`, or leave the field out"
                ),
            ),
            Some(account) => fail(
                ErrorKind::AccountNotFound,
                format!(
                    "the connected account `{account}`, which was chosen for this job, no longer exists; enqueue \
                     the job anew to use the account that `{field}` {owner_id} has connected since"
                ),
            ),
        },
        Cause::NoConnection => connect(ErrorKind::NeedsConnection, needs_connection(owner, toolkit)),
        Cause::DeadConnection => {
            connect(ErrorKind::NeedsReconnection, needs_reconnection(owner, toolkit, "can no longer be used"))
        }
        Cause::OtherOwner => fail(
            ErrorKind::AccountMismatch,
            match context.account {
                Some(account) => format!(
                    "the connected account `{account}` does not belong to `{field}` {owner_id}; name one of its \
                     own accounts, or correct `{field}`"
                ),
                None => {
                    format!("the tool API finds that the account does not belong to `{field}` {owner_id}")
                }
            },
        ),
        Cause::Refused => match said_body {
            // Gateways answer like this when they are troubled, and the API was not even asked.
            Said::Nothing(how) if matches!(status, 403 | 404) => Next::Retry {
                error: JobError::new(
                    ErrorKind::Refused,
                    format!(
                        "HTTP {status} came back {how}, so something in front of the tool API refused the call"
                    ),
                ),
                retry_after,
            },
            // Why it was refused is lost, and nothing ran, so asking again is the way to know.
            Said::Lost => Next::Retry {
                error: JobError::new(
                    ErrorKind::Refused,
                    format!(
                        "the tool API refused the call (HTTP {status}) and the reason was lost on the way"
                    ),
                ),
                retry_after,
            },
            Said::Api(_) | Said::Nothing(_) => {
                fail(ErrorKind::Refused, format!("the tool API refused to run `{tool}` (HTTP {status})"))
            }
        },
    };
    (AttemptOutcome::Refused, next)
}

fn unknown(context: &Context<'_>, retry_after: Option<Duration>, what: &str) -> Next {
    let error = unknown_error(what, &ApiError::default());
    if context.effect.may_repeat() { Next::Retry { error, retry_after } } else { Next::Unknown { error } }
}

fn unknown_error(what: &str, api: &ApiError) -> JobError {
    said(ErrorKind::UnknownOutcome, format!("{what}; whether the tool ran is not known"), api)
}

fn cause(status: u16, error: &ApiError, context: &Context<'_>) -> Cause {
    by_slug(error, context)
        .or_else(|| error.is_key_problem(status).then_some(Cause::Key))
        .or_else(|| error.code.and_then(by_code))
        .unwrap_or_else(|| by_status(status))
}

fn by_slug(error: &ApiError, context: &Context<'_>) -> Option<Cause> {
    let cause = match error.slug.as_deref()? {
        "HTTP_TooManyRequests" => Cause::Throttled,
        "Tool_ToolNotFound" | "ActionExecute_ToolNotFound" | "ToolRouterV2_ToolNotFound" => {
            Cause::UnknownTool
        }
        // One slug for two things; the code tells them apart, and without it what was sent does.
        "ActionExecute_ConnectedAccountNotFound" => match error.code {
            Some(1810) => Cause::NoConnection,
            Some(_) => Cause::UnknownAccount,
            None if context.account.is_some() => Cause::UnknownAccount,
            None => Cause::NoConnection,
        },
        "ToolRouterV2_NoActiveConnection" => Cause::NoConnection,
        "ConnectedAccount_ResourceNotFound" | "ToolRouterV2_InvalidConnectedAccountIds" => {
            Cause::UnknownAccount
        }
        "ActionExecute_ConnectedAccountEntityIdRequired"
        | "ActionExecute_ConnectedAccountEntityIdMismatch" => Cause::OtherOwner,
        "ActionExecute_ConnectedAccountExpired" => Cause::DeadConnection,
        _ => return None,
    };
    Some(cause)
}

fn by_code(code: i64) -> Option<Cause> {
    let cause = match code {
        10429 => Cause::Throttled,
        1800 | 2401 | 4301 => Cause::UnknownTool,
        1810 | 4302 => Cause::NoConnection,
        1706 | 1820 => Cause::DeadConnection,
        606 | 1803 | 1806 | 4306 => Cause::UnknownAccount,
        1811 | 1812 => Cause::OtherOwner,
        _ => return None,
    };
    Some(cause)
}

fn by_status(status: u16) -> Cause {
    match status {
        429 => Cause::Throttled,
        401 => Cause::Key,
        404 | 410 => Cause::UnknownTool,
        422 => Cause::DeadConnection,
        408 => Cause::Unknown,
        400..=499 => Cause::Refused,
        _ => Cause::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{job::OwnerKind, tool::decode::decode};

    const ALL: [Effect; 3] = [Effect::Safe, Effect::Idempotent, Effect::Once];

    fn owner() -> Owner {
        Owner::new(OwnerKind::Org, "org_1").unwrap()
    }

    fn context<'a>(
        owner: &'a Owner,
        effect: Effect,
        account: Option<&'a str>,
        explicit: bool,
    ) -> Context<'a> {
        Context {
            effect,
            account,
            explicit_account: explicit,
            owner,
            toolkit: "github",
            tool: "GITHUB_GET_REPO",
            version: "20251027_00",
        }
    }

    fn reply(status: u16, body: &str) -> Reply {
        with_body(status, decode(status, body.as_bytes()))
    }

    fn with_body(status: u16, body: Body) -> Reply {
        Reply::Answered(Answer {
            status,
            retry_after: Some(Duration::from_secs(7)),
            request_id: Some("theirs".into()),
            deprecated: None,
            body,
        })
    }

    /// The verdict as one word and the kind of its error.
    fn verdict(classified: &Classified) -> (&'static str, Option<ErrorKind>) {
        match &classified.next {
            Next::Succeed { .. } => ("succeed", None),
            Next::Stop(Stop::Fail { error }) => ("fail", Some(error.kind())),
            Next::Stop(Stop::Connect { toolkit, error }) if toolkit == "github" => {
                ("connection", Some(error.kind()))
            }
            Next::Stop(Stop::Hold { reason: HeldReason::Credentials, error }) => {
                ("credentials", Some(error.kind()))
            }
            Next::Stop(stop) => ("hold", Some(stop.error().kind())),
            Next::Retry { error, .. } => ("retry", Some(error.kind())),
            Next::Throttled { error, .. } => ("throttled", Some(error.kind())),
            Next::Unknown { error } => ("unknown", Some(error.kind())),
        }
    }

    fn judge(effect: Effect, status: u16, body: &str) -> Classified {
        classify(reply(status, body), &context(&owner(), effect, Some("ca_1"), false))
    }

    fn slug(code: i64, slug: &str) -> String {
        format!(r#"{{"error":{{"message":"m","code":{code},"slug":"{slug}","request_id":"r"}}}}"#)
    }

    #[test]
    fn a_success_needs_status_field_and_silence() {
        let good =
            r#"{"data":{"a":1},"error":null,"successful":true,"log_id":"log_1","session_info":{},"x":1}"#;
        let classified = judge(Effect::Once, 200, good);
        assert_eq!(classified.outcome, AttemptOutcome::Succeeded);
        assert_eq!(classified.log_id.as_deref(), Some("log_1"));
        assert!(matches!(classified.next, Next::Succeed { result } if result.get() == r#"{"a":1}"#));
        assert_eq!(verdict(&judge(Effect::Once, 200, r#"{"successful":true}"#)).0, "succeed");
        assert_eq!(verdict(&judge(Effect::Once, 206, r#"{"successful":true,"error":" "}"#)).0, "succeed");

        assert_eq!(
            verdict(&judge(Effect::Once, 200, r#"{"data":{},"successful":true,"error":"no"}"#)).0,
            "fail"
        );
        assert_eq!(verdict(&judge(Effect::Once, 200, r#"{"data":{},"successfull":true}"#)).0, "fail");
        for status in [300, 400, 404, 429, 500] {
            assert_eq!(verdict(&judge(Effect::Once, status, good)).0, "unknown", "{status}");
        }
    }

    #[test]
    fn a_failed_tool_is_repeated_only_where_the_provider_did_nothing_or_repeating_is_harmless() {
        use ErrorKind::{NeedsReconnection, ToolFailed};
        let run = |data: &str, error: &str| {
            format!(r#"{{"data":{data},"error":"{error}","successful":false,"log_id":"log_1"}}"#)
        };
        let status = |code: &str| run(&format!(r#"{{"status_code":{code},"message":"m"}}"#), "m");
        // The columns are `safe` and `once`; `idempotent` is as `safe`.
        let rows = [
            (status("404"), "fail", "fail", ToolFailed),
            (status("400"), "fail", "fail", ToolFailed),
            (status("null"), "fail", "fail", ToolFailed),
            (status("401"), "fail", "fail", ToolFailed),
            (status("429"), "retry", "retry", ToolFailed),
            (status("500"), "retry", "fail", ToolFailed),
            (status("503"), "retry", "fail", ToolFailed),
            (run("{}", "404 Client Error: Not Found"), "fail", "fail", ToolFailed),
            (run("{}", "429 Client Error: Too Many Requests"), "retry", "retry", ToolFailed),
            (run("{}", "503 Server Error: x"), "retry", "fail", ToolFailed),
            (run("{}", "503 reasons"), "fail", "fail", ToolFailed),
            (run("{}", "Invalid request data: missing `owner`"), "fail", "fail", ToolFailed),
            (run("{}", "oauth: invalid_grant"), "connection", "connection", NeedsReconnection),
            (
                run(r#"{"status_code":401,"message":"x","http_error":"error=token_revoked"}"#, "401"),
                "connection",
                "connection",
                NeedsReconnection,
            ),
            (
                run(r#"{"status_code":400}"#, "Token has been expired or revoked."),
                "connection",
                "connection",
                NeedsReconnection,
            ),
            (run(r#"{"status_code":404}"#, "no issue named invalid_grant"), "fail", "fail", ToolFailed),
        ];
        for (body, safe, once, kind) in rows {
            for (effect, expected) in [(Effect::Safe, safe), (Effect::Idempotent, safe), (Effect::Once, once)]
            {
                let classified = judge(effect, 200, &body);
                assert_eq!(verdict(&classified), (expected, Some(kind)), "{effect} {body}");
                assert_eq!(classified.outcome, AttemptOutcome::ToolFailed);
                assert_eq!(classified.log_id.as_deref(), Some("log_1"));
            }
        }
    }

    #[test]
    fn refusals_go_by_slug_then_code_then_status() {
        use ErrorKind::{
            AccountMismatch, AccountNotFound, Credentials, NeedsConnection, NeedsReconnection, Refused,
            Throttled, UnknownTool,
        };
        let html = "<html>Just a moment...</html>".to_owned();
        let not_found = "ActionExecute_ConnectedAccountNotFound";
        let rows = [
            (401, slug(906, "Auth_NoAuthProvided"), "credentials", Credentials),
            (401, slug(801, "APIKey_InvalidAPIKey"), "credentials", Credentials),
            (401, slug(811, "APIKey_APIKeyExpired"), "credentials", Credentials),
            (403, slug(812, "APIKey_InsufficientPermissions"), "credentials", Credentials),
            (403, slug(2206, "Organization_InsufficientPermissions"), "credentials", Credentials),
            (401, slug(10401, "HTTP_Unauthorized"), "credentials", Credentials),
            (403, r#"{"error":{"code":812}}"#.into(), "credentials", Credentials),
            (401, html.clone(), "credentials", Credentials),
            (403, slug(1, "Something_Else"), "fail", Refused),
            (404, slug(2401, "Tool_ToolNotFound"), "fail", UnknownTool),
            (400, slug(2401, "Tool_ToolNotFound"), "fail", UnknownTool),
            (404, slug(1800, "ActionExecute_ToolNotFound"), "fail", UnknownTool),
            (404, slug(9999, "New_Slug"), "fail", UnknownTool),
            (410, slug(9999, "New_Slug"), "fail", UnknownTool),
            (400, r#"{"error":{"code":"2401"}}"#.into(), "fail", UnknownTool),
            (400, slug(1810, not_found), "connection", NeedsConnection),
            (404, slug(1810, not_found), "connection", NeedsConnection),
            (404, r#"{"error":{"code":1810.0}}"#.into(), "connection", NeedsConnection),
            (410, slug(1820, "ActionExecute_ConnectedAccountExpired"), "connection", NeedsReconnection),
            (410, r#"{"error":{"code":1820}}"#.into(), "connection", NeedsReconnection),
            (422, r#"{"error":{"code":1706,"message":"m"}}"#.into(), "connection", NeedsReconnection),
            (422, r#"{"error":{"message":"m"}}"#.into(), "connection", NeedsReconnection),
            (400, slug(1811, "ActionExecute_ConnectedAccountEntityIdRequired"), "fail", AccountMismatch),
            (400, slug(1812, "ActionExecute_ConnectedAccountEntityIdMismatch"), "fail", AccountMismatch),
            (400, slug(1803, not_found), "fail", AccountNotFound),
            (404, slug(606, "ConnectedAccount_ResourceNotFound"), "fail", AccountNotFound),
            (400, r#"{"error":{"code":1806}}"#.into(), "fail", AccountNotFound),
            (400, r#"{"error":{"message":"bad","errors":["x is missing"]}}"#.into(), "fail", Refused),
            (402, r#"{"error":"pay","tag":"X"}"#.into(), "fail", Refused),
            (409, "{}".into(), "fail", Refused),
            (413, html.clone(), "fail", Refused),
            (422, html.clone(), "fail", Refused),
            (403, r#"{"error":{"code":"403","message":"Forbidden","id":"x"}}"#.into(), "fail", Refused),
            (400, r#"{"data":{},"error":"bad","successful":false}"#.into(), "fail", Refused),
            (403, html.clone(), "retry", Refused),
            (404, html.clone(), "retry", Refused),
            (429, r#"{"message":"Rate limit exceeded."}"#.into(), "throttled", Throttled),
            (429, slug(10429, "HTTP_TooManyRequests"), "throttled", Throttled),
            (429, html, "throttled", Throttled),
            (429, String::new(), "throttled", Throttled),
            (200, slug(1812, "ActionExecute_ConnectedAccountEntityIdMismatch"), "fail", AccountMismatch),
            (500, slug(2401, "Tool_ToolNotFound"), "fail", UnknownTool),
        ];
        for (status, body, expected, kind) in rows {
            for effect in ALL {
                let classified = judge(effect, status, &body);
                assert_eq!(verdict(&classified), (expected, Some(kind)), "{effect} {status} {body}");
                let ran = !matches!(classified.outcome, AttemptOutcome::Refused | AttemptOutcome::Throttled);
                assert!(!ran, "{status} {body} means that nothing ran");
            }
        }
    }

    #[test]
    fn what_is_not_known_is_unknown_for_once_and_repeated_otherwise() {
        let broken = || Body::Broken("cut".into());
        type Make = fn() -> Reply;
        let replies: [(&str, Make); 12] = [
            ("no answer", || Reply::NoAnswer("reset".into())),
            ("500", || reply(500, r#"{"error":{"message":"m","code":10500}}"#)),
            ("502 HTML", || reply(502, "<html>")),
            ("503 empty", || reply(503, "")),
            ("504", || reply(504, "")),
            ("408", || reply(408, "")),
            ("302", || reply(302, "")),
            ("200 empty", || reply(200, "")),
            ("200 cut JSON", || reply(200, r#"{"data":{"#)),
            ("200 other JSON", || reply(200, "[]")),
            ("200 unknown error", || reply(200, r#"{"error":{"message":"m"}}"#)),
            ("500 with a result", || reply(500, r#"{"data":{},"successful":false,"error":"e"}"#)),
        ];
        let lost: [Reply; 2] = [with_body(200, broken()), with_body(500, broken())];
        let all = replies.map(|(name, make)| (name, make())).into_iter().chain(lost.map(|r| ("lost", r)));
        for (name, reply) in all {
            let classified = classify(reply, &context(&owner(), Effect::Once, None, false));
            assert_eq!(verdict(&classified), ("unknown", Some(ErrorKind::UnknownOutcome)), "{name}");
            assert_eq!(classified.outcome, AttemptOutcome::Unknown, "{name}");
        }
        for effect in [Effect::Safe, Effect::Idempotent] {
            for (name, make) in replies {
                let classified = classify(make(), &context(&owner(), effect, None, false));
                assert_eq!(verdict(&classified).0, "retry", "{name}");
                assert_eq!(classified.outcome, AttemptOutcome::Unknown, "{name}");
            }
        }
    }

    #[test]
    fn nothing_sent_is_always_tried_again() {
        for effect in ALL {
            let classified =
                classify(Reply::NotSent("refused".into()), &context(&owner(), effect, None, false));
            assert_eq!(verdict(&classified), ("retry", Some(ErrorKind::NotSent)));
            assert_eq!(classified.outcome, AttemptOutcome::NotSent);
        }
    }

    #[test]
    fn a_lost_refusal_is_asked_for_again_and_an_oversized_success_is_never() {
        for effect in ALL {
            let of = |reply| classify(reply, &context(&owner(), effect, None, false));
            for status in [400, 403, 404, 410, 422] {
                let lost = of(with_body(status, Body::Broken("cut".into())));
                assert_eq!((verdict(&lost).0, lost.outcome), ("retry", AttemptOutcome::Refused), "{status}");
            }
            assert_eq!(
                verdict(&of(with_body(200, Body::TooLarge))),
                ("fail", Some(ErrorKind::ResultTooLarge))
            );
            assert_eq!(verdict(&of(with_body(400, Body::TooLarge))), ("fail", Some(ErrorKind::Refused)));
        }
    }

    #[test]
    fn a_missing_account_waits_for_a_connection_unless_one_was_sent() {
        let owner = owner();
        let body = slug(1803, "ActionExecute_ConnectedAccountNotFound");
        let of = |account, explicit| {
            verdict(&classify(reply(400, &body), &context(&owner, Effect::Once, account, explicit)))
        };
        assert_eq!(of(None, false), ("connection", Some(ErrorKind::NeedsConnection)));
        assert_eq!(of(Some("ca_1"), false), ("fail", Some(ErrorKind::AccountNotFound)));
        assert_eq!(of(Some("ca_1"), true), ("fail", Some(ErrorKind::AccountNotFound)));
    }

    #[test]
    fn errors_say_what_to_change_and_hide_keys() {
        let body = r#"{"error":{"message":"no account, key ak_live_123456","code":1810,
            "slug":"ActionExecute_ConnectedAccountNotFound","suggested_fix":"Connect it."}}"#;
        let classified = judge(Effect::Once, 400, body);
        assert!(classified.account_is_gone());
        let Next::Stop(Stop::Connect { error, .. }) = classified.next else { panic!("not held") };
        for part in ["`org_id` org_1", "`github`", "no account, key ak_***", "suggested fix: Connect it."] {
            assert!(error.message().contains(part), "{part} in {}", error.message());
        }
        assert_eq!(error.code(), Some(1810));
        assert_eq!(error.slug(), Some("ActionExecute_ConnectedAccountNotFound"));
    }

    fn any_reply() -> impl Strategy<Value = Reply> {
        let body = prop_oneof![
            prop::sample::select(vec![
                "",
                "<html>",
                "{}",
                "null",
                "[]",
                r#"{"error":{"message":"m"}}"#,
                r#"{"data":{},"successful":true}"#,
                r#"{"data":{},"successful":false}"#,
                r#"{"data":{"status_code":500},"successful":false}"#,
                r#"{"error":{"code":1810}}"#,
                r#"{"error":{"slug":"HTTP_TooManyRequests"}}"#,
                r#"{"error":{"code":12345,"slug":"X"}}"#,
            ])
            .prop_map(str::to_owned),
            ".{0,40}",
        ];
        prop_oneof![
            1 => Just(()).prop_map(|()| Reply::NotSent("x".into())),
            1 => Just(()).prop_map(|()| Reply::NoAnswer("x".into())),
            8 => (0u16..1000, body).prop_map(|(status, body)| reply(status, &body)),
            1 => (0u16..1000).prop_map(|status| with_body(status, Body::TooLarge)),
            1 => (0u16..1000).prop_map(|status| with_body(status, Body::Broken("x".into()))),
        ]
    }

    proptest! {
        /// The rule that this product stands on.
        #[test]
        fn a_once_call_of_unknown_outcome_is_never_simply_repeated(reply in any_reply(), account in any::<bool>()) {
            let owner = owner();
            let context = context(&owner, Effect::Once, account.then_some("ca_1"), false);
            let classified = classify(reply, &context);
            let repeated = matches!(classified.next, Next::Retry { .. } | Next::Throttled { .. });
            prop_assert!(!(classified.outcome == AttemptOutcome::Unknown && repeated));
            if classified.outcome == AttemptOutcome::Succeeded {
                prop_assert!(matches!(classified.next, Next::Succeed { .. }), "a success is a success");
                prop_assert!(classified.http_status.is_some_and(|status| (200..300).contains(&status)));
            }
        }

        #[test]
        fn no_error_carries_a_key(reply in any_reply()) {
            let reply = match reply {
                Reply::NotSent(_) => Reply::NotSent("ak_0123456789".into()),
                Reply::NoAnswer(_) => Reply::NoAnswer("ak_0123456789".into()),
                Reply::Answered(mut answer) => {
                    answer.body = match answer.body {
                        Body::Error(error) => Body::Error(ApiError {
                            message: Some("ak_0123456789".into()),
                            errors: vec!["ak_0123456789".into()],
                            ..error
                        }),
                        other => other,
                    };
                    Reply::Answered(answer)
                }
            };
            let classified = classify(reply, &context(&owner(), Effect::Once, None, false));
            let shown = format!("{classified:?}");
            prop_assert!(!shown.contains("ak_0123456789"));
        }
    }
}
