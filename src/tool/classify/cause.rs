//! Why the tool API did not run a tool: the causes, how an answer shows them, and what each makes of the job.

use std::time::Duration;

use super::{Context, Next, undecided};
use crate::{
    job::{AttemptOutcome, ErrorKind, HeldReason, JobError, Stop},
    tool::{
        ApiError,
        account::{needs_connection, needs_reconnection},
        not_ready::said,
    },
};

/// The error that came with an answer which is no success, as far as it arrived.
pub(super) enum Reason {
    Told(ApiError),
    /// The result of a tool, so that it was the API that answered.
    Result(ApiError),
    /// Something that the API would not say, so perhaps it was not the API that answered.
    Foreign(&'static str),
    Lost,
}

impl Reason {
    fn how(&self) -> &'static str {
        match self {
            Self::Told(_) | Self::Result(_) => "with an error",
            Self::Foreign(how) => how,
            Self::Lost => "and its body was lost",
        }
    }
}

/// Why the API did not run a tool. Nothing ran, except where that is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Unknown,
    Throttled,
    Key,
    UnknownTool,
    /// The owner has no account for the toolkit.
    NoConnection,
    /// The account is expired or otherwise unusable.
    DeadConnection,
    UnknownAccount,
    OtherOwner,
    /// Gateways answer like this when they are troubled, and the API was not even asked.
    Intercepted,
    /// Why it was refused is lost, so asking again is the way to know.
    ReasonLost,
    /// Refused for another reason.
    Refused,
}

impl Cause {
    pub(super) fn of(status: u16, reason: &Reason, context: &Context<'_>) -> Self {
        let error = match reason {
            Reason::Told(error) => error,
            Reason::Result(_) => return by_status(status),
            Reason::Foreign(_) | Reason::Lost => return by_status_alone(status, reason),
        };
        let cause = by_slug(error, context)
            .or_else(|| error.is_key_problem(status).then_some(Self::Key))
            .or_else(|| error.code.and_then(by_code))
            .unwrap_or_else(|| match by_status(status) {
                Self::Refused | Self::UnknownTool if is_vague(status) && !error.tells_more_than(status) => {
                    Self::Intercepted
                }
                cause => cause,
            });
        match cause {
            Self::UnknownAccount if context.account.is_none() => Self::NoConnection,
            // It was chosen for the job, and another may be chosen when the owner has connected one.
            Self::UnknownAccount if !context.explicit_account => Self::DeadConnection,
            cause => cause,
        }
    }

    /// What the app reads: our own sentence, which says what to change, and the API's words.
    pub(super) fn error(self, status: u16, reason: &Reason, context: &Context<'_>) -> JobError {
        let sentence = self.sentence(status, reason.how(), context);
        match reason {
            Reason::Told(error) | Reason::Result(error) => said(self.kind(), sentence, error),
            Reason::Foreign(_) | Reason::Lost => said(self.kind(), sentence, &ApiError::default()),
        }
    }

    pub(super) fn next(
        self,
        error: JobError,
        retry_after: Option<Duration>,
        context: &Context<'_>,
    ) -> (AttemptOutcome, Next) {
        let next = match self {
            Self::Unknown => return (AttemptOutcome::Unknown, undecided(error, retry_after, context)),
            Self::Throttled => return (AttemptOutcome::Throttled, Next::Throttled { error, retry_after }),
            Self::Intercepted | Self::ReasonLost => Next::Retry { error, retry_after },
            Self::Key => Stop::Hold { reason: HeldReason::Credentials, error }.into(),
            Self::NoConnection | Self::DeadConnection => {
                Stop::Connect { toolkit: context.toolkit.to_owned(), error }.into()
            }
            Self::UnknownTool | Self::UnknownAccount | Self::OtherOwner | Self::Refused => {
                Stop::Fail { error }.into()
            }
        };
        (AttemptOutcome::Refused, next)
    }

    fn kind(self) -> ErrorKind {
        match self {
            Self::Unknown => ErrorKind::UnknownOutcome,
            Self::Throttled => ErrorKind::Throttled,
            Self::Key => ErrorKind::Credentials,
            Self::UnknownTool => ErrorKind::UnknownTool,
            Self::NoConnection => ErrorKind::NeedsConnection,
            Self::DeadConnection => ErrorKind::NeedsReconnection,
            Self::UnknownAccount => ErrorKind::AccountNotFound,
            Self::OtherOwner => ErrorKind::AccountMismatch,
            Self::Intercepted | Self::ReasonLost | Self::Refused => ErrorKind::Refused,
        }
    }

    fn sentence(self, status: u16, how: &str, context: &Context<'_>) -> String {
        let Context { owner, toolkit, tool, version, .. } = *context;
        let (field, owner_id) = (owner.kind().field(), owner.id());
        let account = context.account.unwrap_or_default();
        match self {
            Self::Unknown => {
                format!("the tool API answered HTTP {status} {how}; whether the tool ran is not known")
            }
            Self::Throttled => "the tool API is throttling; the call is made again later".to_owned(),
            Self::Key => format!(
                "the tool API does not accept errand's API key (HTTP {status}); correct the key, then release the job"
            ),
            Self::UnknownTool => format!(
                "the tool API has no tool `{tool}` at version `{version}` of `{toolkit}`; pin a version that has it, \
                 or correct the slug"
            ),
            Self::NoConnection => needs_connection(owner, toolkit),
            Self::DeadConnection => needs_reconnection(owner, toolkit, "can no longer be used"),
            Self::UnknownAccount => format!(
                "there is no connected account `{account}`; name an account of this project in \
                 `connected_account_id`, or leave the field out"
            ),
            Self::OtherOwner if context.account.is_some() => format!(
                "the connected account `{account}` does not belong to `{field}` {owner_id}; name one of its \
                 own accounts, or correct `{field}`"
            ),
            Self::OtherOwner => {
                format!("the tool API finds that the account does not belong to `{field}` {owner_id}")
            }
            Self::Intercepted => format!(
                "HTTP {status} came back {how}, so something in front of the tool API refused the call"
            ),
            Self::ReasonLost => {
                format!("the tool API refused the call (HTTP {status}) and the reason was lost on the way")
            }
            Self::Refused => format!("the tool API refused to run `{tool}` (HTTP {status})"),
        }
    }
}

/// Without the API's words, which tell apart what these statuses mean, some of them say only that it refused.
fn by_status_alone(status: u16, reason: &Reason) -> Cause {
    match (by_status(status), reason) {
        (Cause::Refused | Cause::UnknownTool | Cause::DeadConnection, Reason::Lost) => Cause::ReasonLost,
        (Cause::Refused | Cause::UnknownTool, _) if is_vague(status) => Cause::Intercepted,
        (Cause::UnknownTool | Cause::DeadConnection, _) => Cause::Refused,
        (cause, _) => cause,
    }
}

/// Whether something in front of the API answers with this status too when it is troubled or a path is wrong.
fn is_vague(status: u16) -> bool {
    matches!(status, 403 | 404)
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
