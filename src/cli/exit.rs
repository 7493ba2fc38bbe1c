//! How a command ends: one line for people and one code for programs.

use std::{any::Any, io::ErrorKind, panic::PanicHookInfo, process::ExitCode};

use crate::{
    cli::{
        output,
        server::{Away, Refused},
    },
    config::{AllMissing, ConfigErrors, ContextError, Missing},
    failure::chain,
    maintenance::ledger::NotALedger,
    queue::{QueueError, QueueErrorKind},
    store::{StoreError, StoreErrorKind},
    tool::ToolError,
};

pub const HELP: &str = "\
Exit codes:
   0  done
   1  the command ran and the answer is no (a job failed, something was not found or was refused)
   2  the command line is wrong
   3  the configuration is wrong or incomplete
   4  a service (database, broker, tool API, server) is unreachable or not usable
  70  errand itself failed

Settings come from errand.toml and the environment: `errand config default` is their manual, and
`errand config show --origins` prints those in effect.";

/// The exit codes, which `docs/cli.md` and [`HELP`] explain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Success = 0,
    Negative = 1,
    Usage = 2,
    Configuration = 3,
    Unreachable = 4,
    Internal = 70,
}

impl Exit {
    /// Success, or a negative answer.
    #[must_use]
    pub fn negative_if(negative: bool) -> Self {
        if negative { Self::Negative } else { Self::Success }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        (exit as u8).into()
    }
}

/// An error whose exit code is known where it happens.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Failure {
    exit: Exit,
    message: String,
}

pub(super) fn negative(message: impl Into<String>) -> anyhow::Error {
    Failure { exit: Exit::Negative, message: message.into() }.into()
}

/// The command line is wrong in a way that its grammar cannot express.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Failure { exit: Exit::Usage, message: message.into() }.into()
}

/// What the environment says beside the settings cannot be used.
pub(super) fn configuration(message: impl Into<String>) -> anyhow::Error {
    Failure { exit: Exit::Configuration, message: message.into() }.into()
}

/// A server cannot be reached, or does not answer as errand does.
pub(super) fn unreachable(message: impl Into<String>) -> anyhow::Error {
    Failure { exit: Exit::Unreachable, message: message.into() }.into()
}

/// Prints an error as one line, unless the reader of the output has simply gone away.
pub(super) fn report(error: &anyhow::Error) -> Exit {
    let closed = error.downcast_ref::<output::Closed>();
    if closed.is_some_and(|closed| closed.0.kind() == ErrorKind::BrokenPipe) {
        return Exit::Success;
    }
    let mut line = format!("error: {}", chain(&**error));
    if let Some(hint) = error.chain().find_map(|cause| verdict(cause)?.1) {
        line = format!("{line}; {hint}");
    }
    output::note(output::clean_lines(&line));
    error.chain().find_map(exit_of).unwrap_or(Exit::Internal)
}

fn exit_of(error: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    verdict(error).map(|(exit, _)| exit)
}

/// How a command ends that a server refuses something.
pub(super) fn of_refusal(refused: &Refused) -> Exit {
    if !refused.is_of_errand() {
        return Exit::Unreachable;
    }
    match refused.status.as_u16() {
        400 | 413 | 415 => Exit::Usage,
        // The key is not accepted, the network is too slow for the body, or it is too much for now.
        401 | 408 | 429 => Exit::Unreachable,
        402..=499 => Exit::Negative,
        _ => Exit::Unreachable,
    }
}

/// The exit code of an error, if it has one, and what to do about it where its message cannot know the command line.
fn verdict(error: &(dyn std::error::Error + 'static)) -> Option<(Exit, Option<&'static str>)> {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return Some((failure.exit, None));
    }
    if error.is::<Away>() {
        return Some((Exit::Unreachable, None));
    }
    if let Some(refused) = error.downcast_ref::<Refused>() {
        return Some((of_refusal(refused), None));
    }
    if error.is::<ContextError>()
        || error.is::<ConfigErrors>()
        || error.is::<Missing>()
        || error.is::<AllMissing>()
    {
        return Some((Exit::Configuration, None));
    }
    if let Some(error) = error.downcast_ref::<StoreError>() {
        return Some(match error.kind() {
            StoreErrorKind::Schema => (Exit::Unreachable, Some("run `errand migrate`")),
            // Its message says what to do.
            StoreErrorKind::Access => (Exit::Unreachable, None),
            StoreErrorKind::Unavailable => {
                (Exit::Unreachable, Some("check DATABASE_URL and the database, or run `errand doctor`"))
            }
            StoreErrorKind::Locked => (Exit::Unreachable, Some("try again when that session has ended")),
            StoreErrorKind::Data => (Exit::Negative, None),
            StoreErrorKind::Corrupt => (Exit::Unreachable, Some("run `errand doctor` and `errand audit`")),
        });
    }
    if let Some(error) = error.downcast_ref::<QueueError>() {
        use QueueErrorKind as Kind;
        return Some(match error.kind() {
            Kind::Unavailable | Kind::Access => {
                (Exit::Unreachable, Some("check AMQP_URL and the broker, or run `errand doctor`"))
            }
            Kind::Unconfirmed | Kind::Stuck | Kind::Full | Kind::Topology => (Exit::Unreachable, None),
            Kind::Unroutable | Kind::Refused | Kind::TooLarge => (Exit::Negative, None),
        });
    }
    if let Some(error) = error.downcast_ref::<ToolError>() {
        return Some(match error {
            ToolError::NotFound(_) | ToolError::Refused { .. } => (Exit::Negative, None),
            ToolError::Credentials { .. } => (Exit::Unreachable, Some("check COMPOSIO_API_KEY")),
            ToolError::Throttled { .. } => (Exit::Unreachable, Some("try again later")),
            ToolError::Unavailable(_) => {
                (Exit::Unreachable, Some("check COMPOSIO_BASE_URL, or run `errand doctor`"))
            }
        });
    }
    if error.is::<NotALedger>() {
        return Some((Exit::Unreachable, None));
    }
    if let Some(error) = error.downcast_ref::<reqwest::Error>() {
        return Some((if error.is_builder() { Exit::Usage } else { Exit::Unreachable }, None));
    }
    // An address that cannot be listened on, and a file that may not be used, were chosen by a setting or a flag.
    let kind = error.downcast_ref::<std::io::Error>()?.kind();
    let chosen = [
        ErrorKind::AddrInUse,
        ErrorKind::AddrNotAvailable,
        ErrorKind::PermissionDenied,
        ErrorKind::ReadOnlyFilesystem,
        ErrorKind::NotADirectory,
    ];
    chosen.contains(&kind).then_some((Exit::Configuration, None))
}

/// Says in one line that there is a bug, without a backtrace, also for tasks, whose panics do not end the process.
pub(super) fn report_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
    if tracing::dispatcher::has_been_set() {
        let message = loggable(panic.payload());
        tracing::error!("errand has a bug: panicked{place}: {message}");
    } else {
        let message = panic.payload_as_str().unwrap_or("no message");
        output::note(format_args!("error: errand has a bug: panicked{place}: {message}"));
    }
}

/// A message that was put together may quote a customer's text, as that of a cut between the bytes of a character does.
fn loggable(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .unwrap_or(&"what it said is not logged, because it may quote somebody's data")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_comes_from_the_cause_whatever_is_said_around_it() {
        for (error, exit) in [
            (negative("no"), Some(Exit::Negative)),
            (usage("what"), Some(Exit::Usage)),
            (Missing::Store.into(), Some(Exit::Configuration)),
            (StoreError::new(StoreErrorKind::Unavailable, "away").into(), Some(Exit::Unreachable)),
            (QueueError::new(QueueErrorKind::Access, "no").into(), Some(Exit::Unreachable)),
            (std::io::Error::from(ErrorKind::AddrInUse).into(), Some(Exit::Configuration)),
            (anyhow::anyhow!("who knows"), None),
        ] {
            assert_eq!(error.context("around it").chain().find_map(exit_of), exit);
        }
    }

    #[test]
    fn an_error_of_a_role_has_no_advice_beside_its_own() {
        let hint = |kind| verdict(&StoreError::new(kind, "as a superuser, `create role`")).unwrap().1;
        assert_eq!(hint(StoreErrorKind::Access), None);
        assert!(hint(StoreErrorKind::Unavailable).unwrap().contains("DATABASE_URL"));
    }

    #[test]
    fn what_a_server_answers_has_the_code_of_the_table() {
        let refused = |status: u16, kind: &str| Refused {
            status: reqwest::StatusCode::from_u16(status).unwrap(),
            kind: kind.to_owned(),
            message: String::new(),
            items: Vec::new(),
        };
        for (status, kind, exit) in [
            (400, "bad-request", Exit::Usage),
            (401, "unauthorized", Exit::Unreachable),
            (403, "forbidden", Exit::Negative),
            (404, "not-found", Exit::Negative),
            (409, "wrong-state", Exit::Negative),
            (413, "too-large", Exit::Usage),
            (422, "invalid-job", Exit::Negative),
            (429, "too-many-requests", Exit::Unreachable),
            (500, "internal", Exit::Unreachable),
            (503, "unavailable", Exit::Unreachable),
            // Not errand's: something else has the address.
            (302, "", Exit::Unreachable),
            (400, "", Exit::Unreachable),
            (403, "", Exit::Unreachable),
            (404, "", Exit::Unreachable),
        ] {
            assert_eq!(of_refusal(&refused(status, kind)), exit, "{status} {kind}");
        }
    }

    #[test]
    fn a_panic_that_quotes_a_text_is_logged_without_it() {
        let panic = |work: fn(&str) -> usize| std::panic::catch_unwind(|| work("sécret")).unwrap_err();
        let quoting = panic(|text| text[..2].len());
        assert!(quoting.downcast_ref::<String>().unwrap().contains("sécret"));
        assert!(!loggable(&*quoting).contains("sécret"));
        let literal = panic(|text| text.find('x').unwrap());
        assert_eq!(Some(&loggable(&*literal)), literal.downcast_ref());
    }
}
