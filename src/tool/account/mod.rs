//! The connected account that a job uses: the one it names, or its owner's most recently connected
//! one for the tool's toolkit.
//!
//! The tool API has a single namespace of user IDs: a user `x` and an organization `x` share
//! accounts there, and errand cannot tell them apart. Give organizations IDs that no user has. The
//! cache keeps the two apart all the same.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::time::Instant;

pub use self::error::{AccountError, needs_connection, needs_reconnection};
use self::{
    breaker::AccountBreaker,
    choice::{DefaultAccount, check_named, default_or_error, newest_usable},
};
use super::{Account, SharedToolApi, ToolApi, ToolError, single_flight::SingleFlightCache};
use crate::{
    backoff::Intervals,
    job::{Owner, OwnerKind},
};

mod breaker;
mod choice;
mod error;

/// About how many owners' defaults, and as many named accounts, are remembered.
const CAPACITY: usize = 10_000;

/// How long it is remembered at first that there is no usable account. Short, because people connect accounts
/// and expect their jobs to run.
const NEGATIVE_TTL: Duration = Duration::from_secs(2);

/// How long accounts are remembered.
#[derive(Debug, Clone, Copy)]
pub struct AccountOptions {
    /// About how many owners' defaults, and as many named accounts, are remembered.
    pub capacity: usize,
    /// How long a usable account is remembered. Until then a disconnection is not noticed here, but
    /// the API notices it with every call.
    pub ttl: Duration,
    /// How long it is remembered at first that there is no usable account; doubles up to `ttl` while there is
    /// still none.
    pub negative_ttl: Duration,
}

impl AccountOptions {
    /// Usable accounts are remembered for `ttl`.
    pub fn new(ttl: Duration) -> Self {
        Self { capacity: CAPACITY, ttl, negative_ttl: NEGATIVE_TTL }
    }

    /// The times for which it is remembered that there is no usable account, and for which nobody calls with
    /// one that was refused.
    fn retries(&self) -> Intervals {
        Intervals::doubling(self.negative_ttl, self.ttl.max(self.negative_ttl))
    }
}

/// The account that jobs of this owner and toolkit would use, asked of the API anew. `None` while there
/// is none or the named one is not active. A named account that can never be used counts as found: its
/// jobs find out what is wrong with it.
pub async fn active(
    api: &dyn ToolApi,
    owner: &Owner,
    toolkit: &str,
    explicit: Option<&str>,
) -> Result<Option<String>, ToolError> {
    let Some(id) = explicit else {
        let accounts = api.accounts(owner.id(), Some(toolkit)).await?;
        return Ok(newest_usable(owner.id(), toolkit, &accounts).ok().map(|id| id.to_string()));
    };
    let account = match api.account(id).await {
        Ok(account) => Some(account),
        Err(ToolError::NotFound(_)) => None,
        Err(error) => return Err(error),
    };
    let waits =
        matches!(check_named(owner, toolkit, id, account.as_ref()), Err(AccountError::NotActive { .. }));
    Ok((!waits).then(|| id.to_owned()))
}

type DefaultKey = (OwnerKind, Arc<str>, Arc<str>);

/// What a look-up found, and how often in a row it was nothing usable.
#[derive(Debug, Clone)]
struct Lookup<T> {
    found: T,
    misses: u32,
    asked_at: Instant,
}

impl<T> Lookup<T> {
    /// Whether this may be told to a job that was claimed at `since`.
    fn counts_since(&self, since: Instant) -> bool {
        self.misses == 0 || self.asked_at >= since
    }

    /// How long it is remembered.
    fn ttl(&self, options: &AccountOptions) -> Duration {
        if self.misses == 0 { options.ttl } else { options.retries().interval(self.misses) }
    }
}

/// Accounts by owner and toolkit, remembered for a short time.
#[derive(Debug)]
pub struct Accounts {
    api: SharedToolApi,
    options: AccountOptions,
    defaults: SingleFlightCache<DefaultKey, Lookup<DefaultAccount>>,
    named: SingleFlightCache<String, Lookup<Option<Arc<Account>>>>,
    breaker: AccountBreaker,
}

impl Accounts {
    /// Remembers nothing yet.
    pub fn new(api: SharedToolApi, options: AccountOptions) -> Self {
        Self {
            api,
            options,
            defaults: SingleFlightCache::new(options.capacity),
            named: SingleFlightCache::new(options.capacity),
            breaker: AccountBreaker::new(options.retries()),
        }
    }

    /// The account to use, if it is known without asking the API. Never waits.
    pub fn resolve_cached(
        &self,
        owner: &Owner,
        toolkit: &str,
        explicit: Option<&str>,
    ) -> Option<Result<String, AccountError>> {
        let account = match explicit {
            Some(id) => check_named(owner, toolkit, id, self.named.fresh(&id.to_owned())?.found.as_deref()),
            None => default_or_error(owner, toolkit, self.defaults.fresh(&key(owner, toolkit))?.found),
        };
        Some(account.and_then(|id| {
            if self.breaker.is_open(owner, &id, Instant::now()) {
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
            Some(id) => check_named(owner, toolkit, id, self.named(id).await?.found.as_deref()),
            None => default_or_error(owner, toolkit, self.default(owner, toolkit).await?.found),
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
                    let lookup = self.named(id).await?;
                    if lookup.counts_since(since) {
                        return check_named(owner, toolkit, id, lookup.found.as_deref());
                    }
                    self.named.expire(&id.to_owned());
                }
                None => {
                    let lookup = self.default(owner, toolkit).await?;
                    if lookup.counts_since(since) {
                        return default_or_error(owner, toolkit, lookup.found);
                    }
                    self.defaults.expire(&key(owner, toolkit));
                }
            }
        }
    }

    /// To be asked right before a call with this account.
    ///
    /// # Errors
    /// Calls with it were refused a moment ago, and this one is not the probe.
    pub fn admit(&self, owner: &Owner, toolkit: &str, account: &str) -> Result<(), AccountError> {
        if self.breaker.try_call(owner, account, Instant::now()) {
            return Ok(());
        }
        Err(AccountError::Refused { owner: owner.clone(), toolkit: toolkit.to_owned() })
    }

    /// To be called when a call with this account was refused because of the account.
    pub fn refused(&self, owner: &Owner, account: &str) {
        self.breaker.record_refusal(owner, account, Instant::now());
    }

    /// To be called when a call with this account was answered otherwise.
    pub fn accepted(&self, owner: &Owner, account: &str) {
        self.breaker.close(owner, account);
    }

    /// To be called when a call says that the owner's account is gone or unusable.
    pub fn forget(&self, owner: &Owner, toolkit: &str) {
        self.defaults.forget(&key(owner, toolkit));
    }

    /// The same for an account that the job named.
    pub fn forget_account(&self, id: &str) {
        self.named.forget(&id.to_owned());
    }

    async fn default(&self, owner: &Owner, toolkit: &str) -> Result<Lookup<DefaultAccount>, ToolError> {
        let key = key(owner, toolkit);
        let (api, user, slug) = (self.api.clone(), key.1.clone(), key.2.clone());
        let options = self.options;
        let ttl = move |lookup: &Lookup<DefaultAccount>| lookup.ttl(&options);
        let misses = self.defaults.stale(&key).map_or(0, |lookup| lookup.misses);
        let fetch = move || {
            let asked_at = Instant::now();
            async move {
                let accounts = api.accounts(&user, Some(&slug)).await?;
                let found = newest_usable(&user, &slug, &accounts);
                let misses = if found.is_ok() { 0 } else { misses.saturating_add(1) };
                Ok(Lookup { found, misses, asked_at })
            }
            .boxed()
        };
        self.defaults.get_or_fetch(key, ttl, fetch).await
    }

    async fn named(&self, id: &str) -> Result<Lookup<Option<Arc<Account>>>, ToolError> {
        let (api, wanted) = (self.api.clone(), id.to_owned());
        let options = self.options;
        let ttl = move |lookup: &Lookup<Option<Arc<Account>>>| lookup.ttl(&options);
        let misses = self.named.stale(&wanted).map_or(0, |lookup| lookup.misses);
        let fetch = move || {
            let asked_at = Instant::now();
            async move {
                let found = match api.account(&wanted).await {
                    Ok(account) => Some(Arc::new(account)),
                    Err(ToolError::NotFound(_)) => None,
                    Err(error) => return Err(error),
                };
                let usable = found.as_ref().is_some_and(|account| account.is_active());
                let misses = if usable { 0 } else { misses.saturating_add(1) };
                Ok(Lookup { found, misses, asked_at })
            }
            .boxed()
        };
        self.named.get_or_fetch(id.to_owned(), ttl, fetch).await
    }
}

fn key(owner: &Owner, toolkit: &str) -> DefaultKey {
    (owner.kind(), Arc::from(owner.id()), Arc::from(toolkit))
}
