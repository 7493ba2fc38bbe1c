//! Connected accounts: their state, and which one a call uses.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};

use super::{
    error::ApiError,
    world::{AuthConfig, Behaviour, Status, Tool, World},
};

#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) id: Arc<str>,
    pub(super) user: Arc<str>,
    pub(super) toolkit: Arc<str>,
    pub(super) auth_config: Arc<str>,
    pub(super) status: Status,
    pub(super) status_reason: Option<&'static str>,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
    /// Users besides the owner that may use it; `None` for a private account.
    pub(super) shared_with: Option<Vec<String>>,
    /// The link that is to complete it, and until when.
    pub(super) link: Option<Link>,
}

#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) token: String,
    pub(super) callback_url: Option<String>,
    pub(super) expires_at: Timestamp,
}

/// How an attempt to connect ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Connected,
    Failed,
}

/// Who asks for an account, and which one.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) user: Option<&'a str>,
    pub(super) account: Option<&'a str>,
}

/// The account that a call uses.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    pub(super) account: Arc<str>,
    pub(super) auth_config: Arc<str>,
}

#[derive(Debug)]
pub(super) struct Accounts(Mutex<Book>);

impl Accounts {
    pub(super) fn new(world: &World) -> Self {
        let mut book = Book { configs: world.auth_configs.clone(), ..Book::default() };
        for seed in &world.accounts {
            book.add(Account {
                id: Arc::clone(&seed.id),
                user: Arc::clone(&seed.user),
                toolkit: Arc::clone(&seed.toolkit),
                auth_config: Arc::clone(&seed.auth_config),
                status: seed.status,
                status_reason: None,
                created_at: seed.created_at,
                updated_at: seed.created_at,
                shared_with: seed.shared_with.clone(),
                link: None,
            });
        }
        Self(Mutex::new(book))
    }

    /// Resolves the account of a call to `tool`, which needs one.
    pub(super) fn choose(
        &self,
        behaviour: &Behaviour,
        tool: &Tool,
        wanted: &Wanted<'_>,
        now: Timestamp,
    ) -> Result<Chosen, ApiError> {
        let mut book = self.book();
        let account = match (wanted.account, wanted.user) {
            (Some(_), None) | (None, None) => return Err(ApiError::user_id_required()),
            (Some(id), Some(user)) => book.named(behaviour, tool, id, user, now)?,
            (None, Some(user)) => book.newest(behaviour, tool, user, now)?,
        };
        let chosen =
            Chosen { account: Arc::clone(&account.id), auth_config: Arc::clone(&account.auth_config) };
        usable(account, behaviour)?;
        allowed(&book.configs, &chosen.auth_config, tool)?;
        Ok(chosen)
    }

    pub(super) fn config(&self, id: &str) -> Option<AuthConfig> {
        self.book().configs.iter().find(|config| *config.id == *id).cloned()
    }

    /// Every auth config, with how many accounts it has.
    pub(super) fn configs(&self) -> Vec<(AuthConfig, usize)> {
        let book = self.book();
        let accounts_of = |config: &AuthConfig| {
            book.accounts.iter().flatten().filter(|account| account.auth_config == config.id).count()
        };
        book.configs.iter().map(|config| (config.clone(), accounts_of(config))).collect()
    }

    pub(super) fn add_config(&self, config: AuthConfig) {
        self.book().configs.push(config);
    }

    /// Changes an auth config in place; false if there is none.
    pub(super) fn change_config(&self, id: &str, change: impl FnOnce(&mut AuthConfig)) -> bool {
        let mut book = self.book();
        let config = book.configs.iter_mut().find(|config| *config.id == *id);
        config.map(change).is_some()
    }

    /// Removes an auth config and the accounts that were connected through it; false if there is none.
    pub(super) fn remove_config(&self, id: &str) -> bool {
        let mut book = self.book();
        let known = book.configs.len();
        book.configs.retain(|config| *config.id != *id);
        let connected = book.accounts.iter().flatten().filter(|account| *account.auth_config == *id);
        for account in connected.map(|account| Arc::clone(&account.id)).collect::<Vec<_>>() {
            book.remove(&account);
        }
        book.configs.len() < known
    }

    pub(super) fn get(&self, id: &str, now: Timestamp) -> Option<Account> {
        self.book().get(id, now).cloned()
    }

    /// Every account, in no order.
    pub(super) fn all(&self, now: Timestamp) -> Vec<Account> {
        let mut book = self.book();
        for account in book.accounts.iter_mut().flatten() {
            account.settle(now);
        }
        book.accounts.iter().flatten().cloned().collect()
    }

    pub(super) fn add(&self, account: Account) {
        self.book().add(account);
    }

    /// Changes an account in place; `None` if there is none.
    pub(super) fn change<T>(
        &self,
        id: &str,
        now: Timestamp,
        change: impl FnOnce(&mut Account) -> T,
    ) -> Option<T> {
        let mut book = self.book();
        let account = book.get_mut(id, now)?;
        account.updated_at = now;
        Some(change(account))
    }

    pub(super) fn remove(&self, id: &str) -> bool {
        self.book().remove(id)
    }

    /// Completes the account that a link belongs to, and answers with it.
    pub(super) fn complete(&self, token: &str, outcome: Outcome, now: Timestamp) -> Option<Account> {
        let mut book = self.book();
        let account = book
            .accounts
            .iter_mut()
            .flatten()
            .find(|account| account.link.as_ref().is_some_and(|link| link.token == token))?;
        account.settle(now);
        if matches!(account.status, Status::Initializing | Status::Initiated) {
            account.updated_at = now;
            (account.status, account.status_reason) = match outcome {
                Outcome::Connected => (Status::Active, None),
                Outcome::Failed => (Status::Failed, Some("The OAuth callback reported a failure")),
            };
        }
        Some(account.clone())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    /// Lets a link that ran out take its account with it. Accounts that a world declares as pending
    /// have no link and stay as they are.
    fn settle(&mut self, now: Timestamp) {
        let pending = matches!(self.status, Status::Initializing | Status::Initiated);
        if let Some(link) = self.link.as_ref().filter(|link| pending && link.expires_at <= now) {
            self.updated_at = link.expires_at;
            self.status = Status::Expired;
            self.status_reason = Some("The connection was not completed in time");
        }
    }

    /// Starts connecting (again): a fresh link, and an account that waits for it.
    pub(super) fn start_link(
        &mut self,
        token: String,
        callback_url: Option<String>,
        now: Timestamp,
        ttl: u32,
    ) {
        let expires_at = now.saturating_add(SignedDuration::from_secs(i64::from(ttl))).unwrap_or(now);
        self.link = Some(Link { token, callback_url, expires_at });
        self.status = Status::Initiated;
        self.status_reason = None;
    }
}

#[derive(Debug, Default)]
struct Book {
    configs: Vec<AuthConfig>,
    /// A deleted account leaves a gap, so that indices stay valid.
    accounts: Vec<Option<Account>>,
    by_id: HashMap<Arc<str>, usize>,
    by_user: HashMap<Arc<str>, Vec<usize>>,
}

impl Book {
    fn add(&mut self, account: Account) {
        let index = self.accounts.len();
        self.by_id.insert(Arc::clone(&account.id), index);
        self.by_user.entry(Arc::clone(&account.user)).or_default().push(index);
        self.accounts.push(Some(account));
    }

    fn remove(&mut self, id: &str) -> bool {
        let index = self.by_id.remove(id);
        let removed = index.and_then(|index| self.accounts[index].take());
        if let (Some(index), Some(account)) = (index, &removed)
            && let Some(indices) = self.by_user.get_mut(&account.user)
        {
            indices.retain(|kept| *kept != index);
        }
        removed.is_some()
    }

    fn get(&mut self, id: &str, now: Timestamp) -> Option<&Account> {
        self.get_mut(id, now).map(|account| &*account)
    }

    fn get_mut(&mut self, id: &str, now: Timestamp) -> Option<&mut Account> {
        let index = *self.by_id.get(id)?;
        let account = self.accounts[index].as_mut()?;
        account.settle(now);
        Some(account)
    }

    fn named(
        &mut self,
        behaviour: &Behaviour,
        tool: &Tool,
        id: &str,
        user: &str,
        now: Timestamp,
    ) -> Result<&Account, ApiError> {
        let unknown = || ApiError::unknown_account(behaviour.unknown_account_status, id);
        let account = self.get(id, now).ok_or_else(unknown)?;
        if *account.user != *user {
            match &account.shared_with {
                Some(users) if users.iter().any(|shared| shared == user) => {}
                Some(_) => return Err(ApiError::account_not_shared(id)),
                None => return Err(ApiError::account_of_another_user()),
            }
        }
        // An account of another toolkit cannot serve the tool, so for this call it does not exist.
        if account.toolkit != tool.toolkit.slug {
            return Err(unknown());
        }
        Ok(account)
    }

    /// The most recently connected usable account of exactly this user; if none is usable, the most
    /// recently connected one, so that the answer can say what is wrong with it.
    fn newest(
        &mut self,
        behaviour: &Behaviour,
        tool: &Tool,
        user: &str,
        now: Timestamp,
    ) -> Result<&Account, ApiError> {
        let indices = self.by_user.get(user).map_or(&[][..], Vec::as_slice);
        let mut best: Option<(bool, Timestamp, usize)> = None;
        for &index in indices {
            let Some(account) = self.accounts[index].as_mut() else { continue };
            account.settle(now);
            let rank = (usable(account, behaviour).is_ok(), account.created_at, index);
            if account.toolkit == tool.toolkit.slug && best.is_none_or(|best| rank > best) {
                best = Some(rank);
            }
        }
        best.and_then(|(_, _, index)| self.accounts[index].as_ref()).ok_or_else(|| {
            ApiError::user_has_no_account(behaviour.no_account_status, user, &tool.toolkit.slug)
        })
    }
}

fn usable(account: &Account, behaviour: &Behaviour) -> Result<(), ApiError> {
    match account.status {
        Status::Active => Ok(()),
        Status::Inactive if behaviour.inactive_executes => Ok(()),
        Status::Expired => Err(ApiError::account_expired(&account.id)),
        Status::Initializing | Status::Initiated | Status::Failed | Status::Inactive | Status::Revoked => {
            Err(ApiError::account_state(
                behaviour.pending_account_code,
                &behaviour.pending_account_slug,
                &account.id,
                account.status.as_str(),
            ))
        }
    }
}

fn allowed(configs: &[AuthConfig], id: &str, tool: &Tool) -> Result<(), ApiError> {
    let restricted =
        configs.iter().find(|config| *config.id == *id).and_then(|config| config.allowed_tools.as_ref());
    match restricted {
        Some(tools) if !tools.iter().any(|allowed| **allowed == *tool.slug) => {
            Err(ApiError::tool_not_allowed(&tool.slug, id))
        }
        _ => Ok(()),
    }
}
