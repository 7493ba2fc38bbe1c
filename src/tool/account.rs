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

use tokio::time::Instant;

use super::{Account, SharedToolApi, ToolApi, ToolError, cached::Cached, refusals::Refusals};
use crate::job::{ErrorKind, JobError, NotReady, Owner, OwnerKind, Stop};

/// How long accounts are remembered.
#[derive(Debug, Clone, Copy)]
pub struct AccountOptions {
    /// About how many owners' defaults, and as many named accounts, are remembered.
    pub capacity: usize,
    /// How long a usable account is remembered. Until then a disconnection is not noticed here, but
    /// the API notices it with every call.
    pub ttl: Duration,
    /// How long it is remembered that there is no usable account. Short at first, because people
    /// connect accounts and expect their jobs to run; doubles up to `ttl` while there is still none.
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
    /// The account is listed as active, but calls with it were refused a moment ago.
    #[error("calls with the connected account are refused")]
    Refused {
        /// Whose account it is.
        owner: Owner,
        /// What it is for.
        toolkit: String,
    },
    /// The API could not say.
    #[error(transparent)]
    Api(#[from] ToolError),
}

impl AccountError {
    /// What it means for the job.
    pub fn not_ready(&self) -> NotReady {
        let connect = |toolkit: &str, kind, message| {
            Stop::Connect { toolkit: toolkit.to_owned(), error: JobError::new(kind, message) }.into()
        };
        let fail = |kind, message| Stop::Fail { error: JobError::new(kind, message) }.into();
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
            Self::NotActive { id, status, reason, toolkit } => connect(
                toolkit,
                ErrorKind::NeedsReconnection,
                format!(
                    "the connected account `{id}` is {status}{}; connect it for `{toolkit}` again, {THEN}",
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

/// Tells which owner must connect which toolkit.
pub(crate) fn needs_connection(owner: &Owner, toolkit: &str) -> String {
    format!(
        "`{}` {} has not connected the toolkit `{toolkit}`; connect an account for exactly this ID, {THEN}",
        owner.kind().field(),
        owner.id()
    )
}

/// Tells which owner must connect which toolkit again.
pub(crate) fn needs_reconnection(owner: &Owner, toolkit: &str, why: &str) -> String {
    format!(
        "the account that `{}` {} connected for the toolkit `{toolkit}` {why}; connect it again for exactly \
         this ID, {THEN}",
        owner.kind().field(),
        owner.id()
    )
}

/// What happens after somebody has connected an account.
const THEN: &str = "and the job goes on by itself, or when it is released";

/// The account that jobs of this owner and toolkit would use, asked of the API anew. `None` while there
/// is none or the named one is not active. A named account that can never be used counts as found: its
/// jobs find out what is wrong with it.
pub(crate) async fn active(
    api: &dyn ToolApi,
    owner: &Owner,
    toolkit: &str,
    explicit: Option<&str>,
) -> Result<Option<String>, ToolError> {
    let Some(id) = explicit else {
        let accounts = api.accounts(owner.id(), Some(toolkit)).await?;
        return Ok(choose(owner.id(), toolkit, &accounts).ok().map(|id| id.to_string()));
    };
    let account = match api.account(id).await {
        Ok(account) => Some(account),
        Err(ToolError::NotFound(_)) => None,
        Err(error) => return Err(error),
    };
    let waits = matches!(judge(owner, toolkit, id, account.as_ref()), Err(AccountError::NotActive { .. }));
    Ok((!waits).then(|| id.to_owned()))
}

type DefaultKey = (OwnerKind, Arc<str>, Arc<str>);

/// The default account of an owner, or the status of the newest one that cannot be used.
type Choice = Result<Arc<str>, Option<Arc<str>>>;

/// What was found, and how often in a row it was nothing that can be used.
#[derive(Debug, Clone)]
struct Found<T> {
    what: T,
    misses: u32,
    /// When the API was asked.
    asked_at: Instant,
}

impl<T> Found<T> {
    /// Whether this may be told to a job that was claimed at `since`.
    fn counts(&self, since: Instant) -> bool {
        self.misses == 0 || self.asked_at >= since
    }

    /// How long it is remembered.
    fn ttl(&self, options: AccountOptions) -> Duration {
        match self.misses.checked_sub(1) {
            None => options.ttl,
            Some(doublings) => options
                .negative_ttl
                .saturating_mul(1 << doublings.min(10))
                .min(options.ttl.max(options.negative_ttl)),
        }
    }
}

/// Accounts by owner and toolkit, remembered for a short time.
#[derive(Debug)]
pub struct Accounts {
    api: SharedToolApi,
    options: AccountOptions,
    defaults: Cached<DefaultKey, Found<Choice>>,
    named: Cached<String, Found<Option<Arc<Account>>>>,
    refusals: Refusals,
}

impl Accounts {
    /// Remembers nothing yet.
    pub fn new(api: SharedToolApi, options: AccountOptions) -> Self {
        let AccountOptions { capacity, ttl, negative_ttl } = options;
        Self {
            api,
            options,
            defaults: Cached::new(capacity),
            named: Cached::new(capacity),
            refusals: Refusals::new(negative_ttl, ttl.max(negative_ttl)),
        }
    }

    /// The account to use, if it is known without asking the API. Never waits.
    pub fn resolve_cached(
        &self,
        owner: &Owner,
        toolkit: &str,
        explicit: Option<&str>,
    ) -> Option<Result<String, AccountError>> {
        let found = match explicit {
            Some(id) => judge(owner, toolkit, id, self.named.fresh(&id.to_owned())?.what.as_deref()),
            None => chosen(owner, toolkit, self.defaults.fresh(&key(owner, toolkit))?.what),
        };
        Some(found.and_then(|id| {
            if self.refusals.stands(owner, &id, Instant::now()) {
                return Err(AccountError::Refused { owner: owner.clone(), toolkit: toolkit.to_owned() });
            }
            Ok(id)
        }))
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
            Some(id) => judge(owner, toolkit, id, self.named(id).await?.what.as_deref()),
            None => chosen(owner, toolkit, self.default(owner, toolkit).await?.what),
        }
    }

    /// As [`Self::resolve`], for a job that was claimed at `since` and may have been let go right before
    /// because its owner has connected an account: that there is none counts only when the API was asked
    /// after that.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub async fn resolve_since(
        &self,
        owner: &Owner,
        toolkit: &str,
        explicit: Option<&str>,
        since: Instant,
    ) -> Result<String, AccountError> {
        // Ends, because what is fetched from now on counts.
        loop {
            match explicit {
                Some(id) => {
                    let found = self.named(id).await?;
                    if found.counts(since) {
                        return judge(owner, toolkit, id, found.what.as_deref());
                    }
                    self.named.expire(&id.to_owned());
                }
                None => {
                    let found = self.default(owner, toolkit).await?;
                    if found.counts(since) {
                        return chosen(owner, toolkit, found.what);
                    }
                    self.defaults.expire(&key(owner, toolkit));
                }
            }
        }
    }

    /// To be asked right before a call with this account.
    ///
    /// # Errors
    /// Calls with it were refused a moment ago, and it is not this caller who tries again.
    pub fn admit(&self, owner: &Owner, toolkit: &str, account: &str) -> Result<(), AccountError> {
        if self.refusals.admits(owner, account, Instant::now()) {
            return Ok(());
        }
        Err(AccountError::Refused { owner: owner.clone(), toolkit: toolkit.to_owned() })
    }

    /// To be called when a call with this account was refused because of the account.
    pub fn refused(&self, owner: &Owner, account: &str) {
        self.refusals.note(owner, account, Instant::now());
    }

    /// To be called when a call with this account was answered otherwise.
    pub fn accepted(&self, owner: &Owner, account: &str) {
        self.refusals.clear(owner, account);
    }

    /// To be called when a call says that the owner's account is gone or unusable.
    pub fn forget(&self, owner: &Owner, toolkit: &str) {
        self.defaults.forget(&key(owner, toolkit));
    }

    /// The same for an account that the job named.
    pub fn forget_account(&self, id: &str) {
        self.named.forget(&id.to_owned());
    }

    async fn default(&self, owner: &Owner, toolkit: &str) -> Result<Found<Choice>, ToolError> {
        let key = key(owner, toolkit);
        let (api, user, slug) = (self.api.clone(), key.1.clone(), key.2.clone());
        let options = self.options;
        let keep = move |found: &Found<Choice>| found.ttl(options);
        let misses = self.defaults.stale(&key).map_or(0, |found| found.misses);
        let fetch = move || {
            let asked_at = Instant::now();
            async move {
                let accounts = api.accounts(&user, Some(&slug)).await?;
                let what = choose(&user, &slug, &accounts);
                let misses = if what.is_ok() { 0 } else { misses.saturating_add(1) };
                Ok(Found { what, misses, asked_at })
            }
            .boxed()
        };
        self.defaults.get(key, keep, fetch).await
    }

    async fn named(&self, id: &str) -> Result<Found<Option<Arc<Account>>>, ToolError> {
        let (api, wanted) = (self.api.clone(), id.to_owned());
        let options = self.options;
        let keep = move |found: &Found<Option<Arc<Account>>>| found.ttl(options);
        let misses = self.named.stale(&wanted).map_or(0, |found| found.misses);
        let fetch = move || {
            let asked_at = Instant::now();
            async move {
                let what = match api.account(&wanted).await {
                    Ok(account) => Some(Arc::new(account)),
                    Err(ToolError::NotFound(_)) => None,
                    Err(error) => return Err(error),
                };
                let usable = what.as_ref().is_some_and(|account| account.is_active());
                let misses = if usable { 0 } else { misses.saturating_add(1) };
                Ok(Found { what, misses, asked_at })
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
