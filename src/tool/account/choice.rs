//! The choice among connected accounts. Pure: the accounts are given.
//!
//! Isolation is not left to the API's filters: what it lists is checked again for owner and
//! toolkit. There is no fallback to any other owner.

use std::sync::Arc;

use super::error::AccountError;
use crate::{job::Owner, tool::Account};

/// The default account of an owner, or the status of the newest one that cannot be used.
pub(super) type DefaultAccount = Result<Arc<str>, Option<Arc<str>>>;

/// Whether an account that the API lists for this owner is the owner's.
fn is_own(user: &str, listed: &Account) -> bool {
    match &listed.user_id {
        Some(owner) => owner == user,
        None => !is_several(user),
    }
}

/// Whether this owner's ID is a list of IDs to the API's filter, which for it proves nothing.
pub(super) fn is_several(user: &str) -> bool {
    user.contains(',')
}

/// Whether the list of this owner's accounts proves that this one is the owner's.
pub(super) fn lists(user: &str, listed: &[Account], account: &Account) -> bool {
    listed.iter().any(|listed| listed.id == account.id && is_own(user, listed))
}

/// The most recently connected usable account of exactly this owner and toolkit.
pub(super) fn newest_usable(user: &str, toolkit: &str, accounts: &[Account]) -> DefaultAccount {
    let own = |account: &&Account| is_own(user, account) && account.toolkit == toolkit;
    let newest = |accounts: &mut dyn Iterator<Item = &Account>| {
        // Of several of the same age the first wins, which is the API's own order.
        accounts.reduce(|best, next| if next.created_at > best.created_at { next } else { best }).cloned()
    };
    match newest(&mut accounts.iter().filter(own).filter(|account| account.is_active())) {
        Some(account) => Ok(Arc::from(account.id)),
        None => Err(newest(&mut accounts.iter().filter(own)).map(|account| Arc::from(status(&account)))),
    }
}

/// The same for each of several owners, of whom one list came. `None` when it proves nothing: where it leaves out whose an
/// account is, or where the API may have taken an ID for several.
pub(super) fn newest_usable_of_each(
    users: &[&str],
    toolkit: &str,
    accounts: &[Account],
) -> Option<Vec<DefaultAccount>> {
    let is_told = accounts.iter().all(|account| account.user_id.is_some());
    let is_list = users.iter().all(|user| !is_several(user));
    (is_told && is_list).then(|| users.iter().map(|user| newest_usable(user, toolkit, accounts)).collect())
}

pub(super) fn default_or_error(
    owner: &Owner,
    toolkit: &str,
    account: DefaultAccount,
) -> Result<String, AccountError> {
    account.map(|id| id.to_string()).map_err(|latest| AccountError::NoneConnected {
        owner: owner.clone(),
        toolkit: toolkit.to_owned(),
        latest: latest.map(|status| status.to_string()),
    })
}

/// Whether the job may use the account that it names. Ownership comes first, so that nothing about
/// another owner's account is told, and must be proven: an account that nobody owns is not used.
pub(super) fn check_named(
    owner: &Owner,
    toolkit: &str,
    id: &str,
    account: Option<&Account>,
) -> Result<String, AccountError> {
    let id = id.to_owned();
    let Some(account) = account.filter(|account| account.user_id.as_deref() == Some(owner.id())) else {
        return Err(AccountError::NotFound { id, field: owner.kind().field() });
    };
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
