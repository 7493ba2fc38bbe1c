//! Why a job has no connected account to use, and what its app or its owner can do about it.

use crate::{
    job::{ErrorKind, JobError, NotReady, Owner, Stop},
    tool::ToolError,
};

#[derive(Debug, Clone, thiserror::Error)]
pub enum AccountError {
    /// The named account does not exist, or is not known to be the owner's. Which of the two is told to nobody: it would say
    /// what others have. Never retried.
    #[error("the owner has no such connected account")]
    NotFound {
        id: String,
        /// The envelope field that names the job's owner.
        field: &'static str,
    },
    #[error("the connected account is one of another toolkit")]
    WrongToolkit { id: String, is: String, needs: String },
    #[error("the connected account is not active")]
    NotActive {
        id: String,
        /// Its status, or `DISABLED`.
        status: String,
        reason: Option<String>,
        toolkit: String,
    },
    #[error("the owner has no usable connected account")]
    NoneConnected {
        owner: Owner,
        toolkit: String,
        /// The status of the most recently connected account, if there is any: it has to be
        /// connected again.
        latest: Option<String>,
    },
    /// The account is listed as active, but calls with it were refused a moment ago.
    #[error("calls with the connected account are refused")]
    Refused { owner: Owner, toolkit: String },
    #[error(transparent)]
    Api(#[from] ToolError),
}

impl AccountError {
    pub fn not_ready(&self) -> NotReady {
        let connect = |toolkit: &str, kind, message| {
            Stop::Connect { toolkit: toolkit.to_owned(), error: JobError::new(kind, message) }.into()
        };
        let fail = |kind, message| Stop::Fail { error: JobError::new(kind, message) }.into();
        match self {
            Self::NotFound { id, field } => fail(
                ErrorKind::AccountNotFound,
                format!(
                    "this job's `{field}` has no connected account `{id}`; name one of its own accounts in \
                     `connected_account_id`, leave that out, or correct `{field}`"
                ),
            ),
            Self::WrongToolkit { id, is, needs } => fail(
                ErrorKind::InvalidJob,
                format!(
                    "the connected account `{id}` is one of the toolkit `{is}`, but the tool belongs to \
                     `{needs}`; name an account of `{needs}`"
                ),
            ),
            Self::NotActive { id, status, reason, toolkit } => connect(
                toolkit,
                ErrorKind::NeedsReconnection,
                format!(
                    "the connected account `{id}` is {status}{}; connect it for `{toolkit}` again, {RESUMES}",
                    reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default()
                ),
            ),
            Self::NoneConnected { owner, toolkit, latest: None } => {
                connect(toolkit, ErrorKind::NeedsConnection, needs_connection(owner, toolkit))
            }
            Self::NoneConnected { owner, toolkit, latest: Some(status) } => connect(
                toolkit,
                ErrorKind::NeedsReconnection,
                needs_reconnection(owner, toolkit, &format!("is {status}")),
            ),
            Self::Refused { owner, toolkit } => connect(
                toolkit,
                ErrorKind::NeedsReconnection,
                needs_reconnection(owner, toolkit, "was refused a moment ago"),
            ),
            Self::Api(error) => error.not_ready("look the connected account up"),
        }
    }
}

pub fn needs_connection(owner: &Owner, toolkit: &str) -> String {
    format!(
        "`{}` {:?} has not connected the toolkit `{toolkit}`; connect an account for exactly this ID, {RESUMES}",
        owner.kind().field(),
        owner.id()
    )
}

pub fn needs_reconnection(owner: &Owner, toolkit: &str, why: &str) -> String {
    format!(
        "the account that `{}` {:?} connected for the toolkit `{toolkit}` {why}; connect it again for exactly \
         this ID, {RESUMES}",
        owner.kind().field(),
        owner.id()
    )
}

/// What happens after somebody has connected an account.
const RESUMES: &str = "and the job goes on by itself, or when it is released";
