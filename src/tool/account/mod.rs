//! The connected account that a job uses: the one it names, or its owner's most recently connected
//! one for the tool's toolkit.
//!
//! The tool API has a single namespace of user IDs: a user `x` and an organization `x` share
//! accounts there, and errand cannot tell them apart. Give organizations IDs that no user has. The
//! cache keeps the two apart all the same.

use std::{hash::Hash, sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::time::Instant;

use self::{
    active::named,
    breaker::AccountBreaker,
    choice::{DefaultAccount, check_named, default_or_error, newest_usable},
};
pub use self::{
    active::{Asked, TOGETHER, active, active_of_each, fitting},
    error::{AccountError, needs_connection, needs_reconnection},
};
use super::{Account, SharedToolApi, ToolError, single_flight::SingleFlightCache};
use crate::{
    backoff::Intervals,
    job::{Owner, OwnerKind},
};

mod active;
mod breaker;
mod choice;
mod error;

/// About how many owners' defaults, and as many named accounts, are remembered.
const CAPACITY: usize = 10_000;

#[derive(Debug, Clone, Copy)]
pub struct AccountOptions {
    /// How long a usable account is remembered. Until then a disconnection is not noticed here, but
    /// the API notices it with every call.
    pub ttl: Duration,
    /// How long it is remembered at first that there is no usable account; doubles up to `ttl` while there is
    /// still none.
    pub negative_ttl: Duration,
}

impl AccountOptions {
    /// Usable accounts are remembered for `ttl`, and that there is none for a short time at first, because people
    /// connect accounts and expect their jobs to run.
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, negative_ttl: Duration::from_secs(2) }
    }

    /// The times for which it is remembered that there is no usable account, and for which nobody calls with
    /// one that was refused.
    fn retries(&self) -> Intervals {
        Intervals::doubling(self.negative_ttl, self.ttl.max(self.negative_ttl))
    }
}

type DefaultKey = (OwnerKind, Arc<str>, Arc<str>);

/// The ID of the owner who asks, and that of the account.
type NamedKey = (Arc<str>, Arc<str>);

/// What a look-up found, and how often in a row it was nothing usable.
#[derive(Debug, Clone)]
struct Lookup<T> {
    found: T,
    misses: u32,
    asked_at: Instant,
}

/// What is remembered about accounts.
type Remembered<K, T> = SingleFlightCache<K, Lookup<T>>;

/// Accounts by owner and toolkit, remembered for a short time.
#[derive(Debug)]
pub struct Accounts {
    api: SharedToolApi,
    options: AccountOptions,
    defaults: Remembered<DefaultKey, DefaultAccount>,
    named: Remembered<NamedKey, Option<Arc<Account>>>,
    breaker: AccountBreaker,
}

impl Accounts {
    pub fn new(api: SharedToolApi, options: AccountOptions) -> Self {
        Self {
            api,
            options,
            defaults: SingleFlightCache::new(CAPACITY),
            named: SingleFlightCache::new(CAPACITY),
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
            Some(id) => {
                check_named(owner, toolkit, id, self.named.fresh(&named_key(owner, id))?.found.as_deref())
            }
            None => default_or_error(owner, toolkit, self.defaults.fresh(&key(owner, toolkit))?.found),
        };
        Some(account.and_then(|id| {
            if self.breaker.is_open(owner, &id, Instant::now()) {
                Err(refused(owner, toolkit))
            } else {
                Ok(id)
            }
        }))
    }

    /// The account to use. Callers that ask for the same one at the same time share one request. A job that was claimed
    /// at `since` may have been let go right before because its owner has connected an account: for it, that there is
    /// none counts only when the API was asked after that.
    ///
    /// # Errors
    /// [`AccountError`] when there is none that may be used, or when the API cannot say.
    pub async fn resolve(
        &self,
        owner: &Owner,
        toolkit: &str,
        explicit: Option<&str>,
        since: Option<Instant>,
    ) -> Result<String, AccountError> {
        let Some(id) = explicit else {
            let key = key(owner, toolkit);
            let ask = || {
                let (api, (_, user, slug)) = (self.api.clone(), key.clone());
                let ask = async move {
                    let list = api.accounts(&[&user], Some(&slug)).await?;
                    Ok(newest_usable(&user, &slug, &list.accounts))
                };
                ask.boxed()
            };
            let found = self.look_up(&self.defaults, &key, since, ask, Result::is_ok).await?;
            return default_or_error(owner, toolkit, found);
        };
        let key = named_key(owner, id);
        let ask = || {
            let (api, (owner_id, id)) = (self.api.clone(), key.clone());
            async move { Ok(named(&*api, &owner_id, &id).await?.found.map(Arc::new)) }.boxed()
        };
        let is_active =
            |found: &Option<Arc<Account>>| found.as_ref().is_some_and(|account| account.is_active());
        let found = self.look_up(&self.named, &key, since, ask, is_active).await?;
        check_named(owner, toolkit, id, found.as_deref())
    }

    /// To be asked right before a call with this account.
    ///
    /// # Errors
    /// Calls with it were refused a moment ago, and this one is not the probe.
    pub fn admit(&self, owner: &Owner, toolkit: &str, account: &str) -> Result<(), AccountError> {
        if self.breaker.try_call(owner, account, Instant::now()) {
            Ok(())
        } else {
            Err(refused(owner, toolkit))
        }
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
    pub fn forget_account(&self, owner: &Owner, id: &str) {
        self.named.forget(&named_key(owner, id));
    }

    /// What is remembered, or what `ask` finds. With `since`, that it is nothing usable counts only when the API was
    /// asked after that; the loop ends, because what is asked from now on counts.
    async fn look_up<K, T>(
        &self,
        remembered: &Remembered<K, T>,
        key: &K,
        since: Option<Instant>,
        ask: impl Fn() -> BoxFuture<'static, Result<T, ToolError>>,
        is_usable: fn(&T) -> bool,
    ) -> Result<T, ToolError>
    where
        K: Clone + Eq + Hash + Send + Sync + 'static,
        T: Clone + Send + Sync + 'static,
    {
        loop {
            let misses = remembered.stale(key).map_or(0, |lookup| lookup.misses);
            let options = self.options;
            let ttl = move |lookup: &Lookup<T>| match lookup.misses {
                0 => options.ttl,
                misses => options.retries().interval(misses),
            };
            let fetch = || {
                let (asked_at, asked) = (Instant::now(), ask());
                let fetch = async move {
                    let found = asked.await?;
                    let misses = if is_usable(&found) { 0 } else { misses.saturating_add(1) };
                    Ok(Lookup { found, misses, asked_at })
                };
                fetch.boxed()
            };
            let lookup = remembered.get_or_fetch(key.clone(), ttl, fetch).await?;
            if lookup.misses == 0 || since.is_none_or(|since| lookup.asked_at >= since) {
                return Ok(lookup.found);
            }
            remembered.expire(key);
        }
    }
}

fn refused(owner: &Owner, toolkit: &str) -> AccountError {
    AccountError::Refused { owner: owner.clone(), toolkit: toolkit.to_owned() }
}

fn named_key(owner: &Owner, id: &str) -> NamedKey {
    (Arc::from(owner.id()), Arc::from(id))
}

fn key(owner: &Owner, toolkit: &str) -> DefaultKey {
    (owner.kind(), Arc::from(owner.id()), Arc::from(toolkit))
}
