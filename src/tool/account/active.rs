//! Which accounts there are, asked of the API anew.

use super::{
    choice::{check_named, is_several, lists, newest_usable, newest_usable_of_each},
    error::AccountError,
};
use crate::{
    job::Owner,
    tool::{Account, ToolApi, ToolError},
};

/// The most owners that are asked about with one request. A page of the answer has room for five accounts of each.
pub const TOGETHER: usize = 20;

/// The most bytes of owners' IDs in one request. Escaped they are up to three times as long, and what is in front of an
/// API may refuse a URL of 8 KiB.
const TOGETHER_BYTES: usize = 1_500;

/// What the API said.
#[derive(Debug)]
pub struct Asked<T> {
    pub found: T,
    /// How many requests that took, without those that were repeated because the API failed.
    pub requests: usize,
}

/// The account that jobs of this owner and toolkit would use. `None` while there is none or the named one is not
/// active. A named account that can never be used counts as found: its jobs find out what is wrong with it.
///
/// # Errors
/// The API cannot say.
pub async fn active(
    api: &dyn ToolApi,
    owner: &Owner,
    toolkit: &str,
    explicit: Option<&str>,
) -> Result<Asked<Option<String>>, ToolError> {
    let Some(id) = explicit else {
        let list = api.accounts(&[owner.id()], Some(toolkit)).await?;
        // The other side is the status of one that cannot be used, which is the same here as none.
        let found = newest_usable(owner.id(), toolkit, &list.accounts).ok();
        return Ok(Asked { found: found.map(|id| id.to_string()), requests: list.pages });
    };
    let Asked { found: account, requests } = named(api, owner.id(), id).await?;
    let waits =
        matches!(check_named(owner, toolkit, id, account.as_ref()), Err(AccountError::NotActive { .. }));
    Ok(Asked { found: (!waits).then(|| id.to_owned()), requests })
}

/// The same for each of several owners whose jobs name no account, in their order, with one list. `None` when the list
/// proves nothing: it leaves out whose an account is, or there is more of it than is read. Then each is asked about alone.
///
/// # Errors
/// The API cannot say, or refuses one of the IDs.
pub async fn active_of_each(
    api: &dyn ToolApi,
    owners: &[&Owner],
    toolkit: &str,
) -> Result<Asked<Option<Vec<Option<String>>>>, ToolError> {
    let ids: Vec<&str> = owners.iter().map(|owner| owner.id()).collect();
    let list = api.accounts(&ids, Some(toolkit)).await?;
    let each = if list.is_whole { newest_usable_of_each(&ids, toolkit, &list.accounts) } else { None };
    // As above.
    let found = each.map(|each| each.into_iter().map(|found| found.ok().map(|id| id.to_string())).collect());
    Ok(Asked { found, requests: list.pages })
}

/// How many of these owners, from the first, one request can be about: at least one.
pub fn fitting<'a>(owners: impl IntoIterator<Item = &'a Owner>) -> usize {
    let mut bytes = 0;
    let fits = |owner: &&Owner| {
        bytes += owner.id().len() + 1;
        bytes <= TOGETHER_BYTES && !is_several(owner.id())
    };
    owners.into_iter().take(TOGETHER).take_while(fits).count().max(1)
}

/// The account with this ID, if there is one. Where the API does not say whose it is, which it may leave out, only the
/// list of the owner's own accounts can prove that it is this owner's.
pub(super) async fn named(
    api: &dyn ToolApi,
    owner_id: &str,
    id: &str,
) -> Result<Asked<Option<Account>>, ToolError> {
    let mut account = match api.account(id).await {
        Ok(account) => account,
        Err(ToolError::NotFound(_)) => return Ok(Asked { found: None, requests: 1 }),
        Err(error) => return Err(error),
    };
    let mut requests = 1;
    if account.user_id.is_none() {
        let list = api.accounts(&[owner_id], Some(&account.toolkit)).await?;
        requests += list.pages;
        if lists(owner_id, &list.accounts, &account) {
            account.user_id = Some(owner_id.to_owned());
        }
    }
    Ok(Asked { found: Some(account), requests })
}
