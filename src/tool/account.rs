//! Which connected account a job uses: the one it names, or its owner's most recently connected
//! one for the tool's toolkit.
//!
//! Isolation is not left to the API's filters: what it lists is checked again for owner and
//! toolkit. There is no fallback to any other owner.
//!
//! The tool API has a single namespace of user IDs: a user `x` and an organization `x` share
//! accounts there, and errand cannot tell them apart. Give organizations IDs that no user has. The
//! cache keeps the two apart all the same.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;

use super::{Account, SharedToolApi, ToolError, cached::Cached, setback::Setback};
use crate::job::{ErrorKind, HeldReason, JobError, Owner, OwnerKind};

/// How long accounts are remembered.
#[derive(Debug, Clone, Copy)]
pub struct AccountOptions {
    /// About how many owners' defaults, and as many named accounts, are remembered.
    pub capacity: usize,
    /// How long a usable account is remembered. Until then a disconnection is not noticed here, but
    /// the API notices it with every call.
    pub ttl: Duration,
    /// How long it is remembered that there is no usable account. Short, because people connect
    /// accounts and expect their jobs to run.
    pub negative_ttl: Duration,
}

impl Default for AccountOptions {
    fn default() -> Self {
        Self { capacity: 10_000, ttl: Duration::from_secs(30), negative_ttl: Duration::from_secs(2) }
    }
}

/// Why no account can be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AccountError {
    /// The named account does not exist.
    #[error("the connected account does not exist")]
    NotFound {
        /// The account.
        id: String,
    },
    /// The named account belongs to another owner. Never retried.
    #[error("the connected account belongs to another owner")]
    OtherOwner {
        /// The account.
        id: String,
        /// The envelope field that names the job's owner.
        field: &'static str,
    },
    /// The named account is one of another toolkit.
    #[error("the connected account is one of another toolkit")]
    WrongToolkit {
        /// The account.
        id: String,
        /// What it is for.
        is: String,
        /// What the tool needs.
        needs: String,
    },
    /// The named account cannot be used now.
    #[error("the connected account is not active")]
    NotActive {
        /// The account.
        id: String,
        /// Its status, or `DISABLED`.
        status: String,
        /// The API's reason.
        reason: Option<String>,
        /// What it is for.
        toolkit: String,
    },
    /// The owner has no account that can be used.
    #[error("the owner has no usable connected account")]
    NoneConnected {
        /// The owner.
        owner: Owner,
        /// What an account is needed for.
        toolkit: String,
        /// The status of the most recently connected account, if there is any: it has to be
        /// connected again.
        latest: Option<String>,
    },
    /// The API could not say.
    #[error(transparent)]
    Api(#[from] ToolError),
}

impl AccountError {
    /// What it means for the job.
    pub fn setback(&self) -> Setback {
        let hold = |kind, message| Setback::Hold(HeldReason::Connection, JobError::new(kind, message));
        let fail = |kind, message| Setback::Fail(JobError::new(kind, message));
        match self {
            Self::NotFound { id } => fail(
                ErrorKind::AccountNotFound,
                format!(
                    "there is no connected account `{id}`; name an account of this project in \
                     `connected_account_id`, or leave the field out"
                ),
            ),
            Self::OtherOwner { id, field } => fail(
                ErrorKind::AccountMismatch,
                format!(
                    "the connected account `{id}` does not belong to this job's `{field}`; name one of \
                     its own accounts, or correct `{field}`"
                ),
            ),
            Self::WrongToolkit { id, is, needs } => fail(
                ErrorKind::InvalidJob,
                format!(
                    "the connected account `{id}` is one of the toolkit `{is}`, but the tool belongs to \
                     `{needs}`; name an account of `{needs}`"
                ),
            ),
            Self::NotActive { id, status, reason, toolkit } => hold(
                ErrorKind::NeedsReconnection,
                format!(
                    "the connected account `{id}` is {status}{}; connect `{toolkit}` again, then release \
                     the job",
                    reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default()
                ),
            ),
            Self::NoneConnected { owner, toolkit, latest: None } => {
                hold(ErrorKind::NeedsConnection, needs_connection(owner, toolkit))
            }
            Self::NoneConnected { owner, toolkit, latest: Some(status) } => hold(
                ErrorKind::NeedsReconnection,
                format!(
                    "the account that `{}` {} connected for the toolkit `{toolkit}` is {status}; connect \
                     it again for exactly this ID, then release the job",
                    owner.kind().field(),
                    owner.id()
                ),
            ),
            Self::Api(error) => error.setback("look the connected account up"),
        }
    }
}

/// Tells which owner must connect which toolkit.
pub(crate) fn needs_connection(owner: &Owner, toolkit: &str) -> String {
    format!(
        "`{}` {} has not connected the toolkit `{toolkit}`; connect an account for exactly this ID, then \
         release the job",
        owner.kind().field(),
        owner.id()
    )
}

type DefaultKey = (OwnerKind, Arc<str>, Arc<str>);

/// The default account of an owner, or the status of the newest one that cannot be used.
type Choice = Result<Arc<str>, Option<Arc<str>>>;

/// Accounts by owner and toolkit, remembered for a short time.
#[derive(Debug)]
pub struct Accounts {
    api: SharedToolApi,
    options: AccountOptions,
    defaults: Cached<DefaultKey, Choice>,
    named: Cached<String, Option<Arc<Account>>>,
}

impl Accounts {
    /// Remembers nothing yet.
    pub fn new(api: SharedToolApi, options: AccountOptions) -> Self {
        let AccountOptions { capacity, .. } = options;
        Self { api, options, defaults: Cached::new(capacity), named: Cached::new(capacity) }
    }

    /// The account to use, if it is known without asking the API. Never waits.
    pub fn resolve_cached(
        &self,
        owner: &Owner,
        toolkit: &str,
        explicit: Option<&str>,
    ) -> Option<Result<String, AccountError>> {
        Some(match explicit {
            Some(id) => judge(owner, toolkit, id, self.named.fresh(&id.to_owned())?.as_deref()),
            None => chosen(owner, toolkit, self.defaults.fresh(&key(owner, toolkit))?),
        })
    }

    /// The account to use. Callers that ask for the same one at the same time share one request.
    ///
    /// # Errors
    /// [`AccountError`] when there is none that may be used, or when the API cannot say.
    pub async fn resolve(
        &self,
        owner: &Owner,
        toolkit: &str,
        explicit: Option<&str>,
    ) -> Result<String, AccountError> {
        match explicit {
            Some(id) => judge(owner, toolkit, id, self.named(id).await?.as_deref()),
            None => chosen(owner, toolkit, self.default(owner, toolkit).await?),
        }
    }

    /// To be called when a call says that the owner's account is gone or unusable.
    pub fn forget(&self, owner: &Owner, toolkit: &str) {
        self.defaults.forget(&key(owner, toolkit));
    }

    /// The same for an account that the job named.
    pub fn forget_account(&self, id: &str) {
        self.named.forget(&id.to_owned());
    }

    async fn default(&self, owner: &Owner, toolkit: &str) -> Result<Choice, ToolError> {
        let key = key(owner, toolkit);
        let (api, user, slug) = (self.api.clone(), key.1.clone(), key.2.clone());
        let AccountOptions { ttl, negative_ttl, .. } = self.options;
        let keep = move |found: &Choice| if found.is_ok() { ttl } else { negative_ttl };
        let fetch = move || {
            async move {
                let accounts = api.accounts(&user, Some(&slug)).await?;
                Ok(choose(&user, &slug, &accounts))
            }
            .boxed()
        };
        self.defaults.get(key, keep, fetch).await
    }

    async fn named(&self, id: &str) -> Result<Option<Arc<Account>>, ToolError> {
        let (api, wanted) = (self.api.clone(), id.to_owned());
        let AccountOptions { ttl, negative_ttl, .. } = self.options;
        let keep = move |found: &Option<Arc<Account>>| match found {
            Some(account) if account.is_active() => ttl,
            _ => negative_ttl,
        };
        let fetch = move || {
            async move {
                match api.account(&wanted).await {
                    Ok(account) => Ok(Some(Arc::new(account))),
                    Err(ToolError::NotFound(_)) => Ok(None),
                    Err(error) => Err(error),
                }
            }
            .boxed()
        };
        self.named.get(id.to_owned(), keep, fetch).await
    }
}

fn key(owner: &Owner, toolkit: &str) -> DefaultKey {
    (owner.kind(), Arc::from(owner.id()), Arc::from(toolkit))
}

/// The most recently connected usable account of exactly this owner and toolkit.
fn choose(user: &str, toolkit: &str, accounts: &[Account]) -> Choice {
    let own = |account: &&Account| {
        let owner_fits = match &account.user_id {
            Some(owner) => owner == user,
            // The API's filter takes lists joined by commas, so for such an ID it proves nothing.
            None => !user.contains(','),
        };
        owner_fits && account.toolkit == toolkit
    };
    let newest = |accounts: &mut dyn Iterator<Item = &Account>| {
        // Of several of the same age the first wins, which is the API's own order.
        accounts.reduce(|best, next| if next.created_at > best.created_at { next } else { best }).cloned()
    };
    match newest(&mut accounts.iter().filter(own).filter(|account| account.is_active())) {
        Some(account) => Ok(Arc::from(account.id)),
        None => Err(newest(&mut accounts.iter().filter(own)).map(|account| Arc::from(status(&account)))),
    }
}

fn chosen(owner: &Owner, toolkit: &str, found: Choice) -> Result<String, AccountError> {
    found.map(|id| id.to_string()).map_err(|latest| AccountError::NoneConnected {
        owner: owner.clone(),
        toolkit: toolkit.to_owned(),
        latest: latest.map(|status| status.to_string()),
    })
}

/// Whether the job may use the account that it names. Ownership comes first, so that nothing about
/// another owner's account is told.
fn judge(owner: &Owner, toolkit: &str, id: &str, found: Option<&Account>) -> Result<String, AccountError> {
    let id = id.to_owned();
    let Some(account) = found else { return Err(AccountError::NotFound { id }) };
    if account.user_id.as_deref().is_some_and(|user| user != owner.id()) {
        return Err(AccountError::OtherOwner { id, field: owner.kind().field() });
    }
    if account.toolkit != toolkit {
        let is = account.toolkit.clone();
        return Err(AccountError::WrongToolkit { id, is, needs: toolkit.to_owned() });
    }
    if !account.is_active() {
        return Err(AccountError::NotActive {
            id,
            status: status(account).to_owned(),
            reason: account.status_reason.clone(),
            toolkit: toolkit.to_owned(),
        });
    }
    Ok(id)
}

fn status(account: &Account) -> &str {
    if account.disabled { "DISABLED" } else { &account.status }
}
