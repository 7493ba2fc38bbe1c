//! Access keys, by which apps use the HTTP API.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use serde_json::json;
use uuid::Uuid;

use super::{Decider, Result, StoreError, convert::to_limit, read::StoreRow};
use crate::{
    access::{AccessKey, NewKey, RANDOM_BYTES, Scopes, SecretDigest, Shown},
    bounds::MAX_KEYS,
    job::{Owner, Principal},
};

/// How long a key that has ended is still listed.
pub(super) const LISTED_AFTER_END: Duration = Duration::from_secs(30 * 24 * 3600);

/// How old the last use of a key is at least before it is written again.
pub(super) const USED_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Most ended keys that a new one removes.
pub(super) const REMOVED_TOGETHER: i64 = 1000;

/// For an owner it is as if there were only its own keys, and it makes keys for itself only. The [audit log](super::Changes)
/// tells of keys that are made, rotated and revoked.
#[async_trait]
pub trait AccessKeys: fmt::Debug + Send + Sync {
    /// Adds a key, and removes some that ended thirty days ago or earlier.
    async fn add_key(&self, principal: &Principal, key: &NewKey, by: &Decider) -> Result<AddedKey>;

    /// Up to `limit` keys, the newest first, whether they have ended or not. Those that come after `before`, or the first.
    async fn keys(&self, principal: &Principal, before: Option<Uuid>, limit: usize)
    -> Result<Vec<AccessKey>>;

    /// A key.
    async fn key(&self, principal: &Principal, id: Uuid) -> Result<Option<AccessKey>>;

    /// Adds a key that takes the place of a valid one, which ends after `overlap` at the latest. `None` if it is not valid or
    /// was replaced before, or if there are too many.
    async fn rotate_key(
        &self,
        principal: &Principal,
        id: Uuid,
        key: &NewKey,
        overlap: Duration,
        by: &Decider,
    ) -> Result<Option<AccessKey>>;

    /// Ends a key at once; `None` if there is none. One that was revoked before stays as it is.
    async fn revoke_key(&self, principal: &Principal, id: Uuid, by: &Decider) -> Result<Option<AccessKey>>;

    /// Removes all keys of an owner who is erased. Returns how many that were.
    async fn remove_keys(&self, owner: &Owner) -> Result<u64>;

    /// The key of this secret. The use of a valid one is noted.
    async fn use_key(&self, shown: &Shown) -> Result<UsedKey>;

    /// A key, if it is valid.
    async fn valid_key(&self, id: Uuid) -> Result<Option<AccessKey>>;

    /// The secret of what the API seals: the same for every process and for good, the `new` one if there is none yet.
    async fn sealing_secret(&self, new: [u8; RANDOM_BYTES]) -> Result<Vec<u8>>;

    /// Whether there has ever been a key, though all of them may be gone.
    async fn has_keys(&self) -> Result<bool>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsedKey {
    Valid(AccessKey),
    /// It is the secret of a key that has expired or was revoked.
    Ended,
    /// It is the secret of no key.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddedKey {
    Added(AccessKey),
    /// Its owner has [`MAX_KEYS`](crate::bounds::MAX_KEYS) valid keys.
    TooMany,
    /// It would be the key of somebody else.
    Foreign,
}

/// Whether a principal may make this key.
pub(super) fn may_make(principal: &Principal, key: &NewKey) -> bool {
    *principal == Principal::Operator || *principal == key.principal
}

pub(super) fn access_key(row: &impl StoreRow) -> Result<AccessKey> {
    let is_operators = row.read::<Option<String>>("owner_kind")?.is_none();
    let scopes: String = row.read("scopes")?;
    Ok(AccessKey {
        id: row.read("id")?,
        principal: if is_operators { Principal::Operator } else { Principal::Owner(row.owner()?) },
        scopes: readable_scopes(&scopes)?,
        created_at: row.time("created_at")?,
        expires_at: row.time_if_any("expires_at")?,
        revoked_at: row.time_if_any("revoked_at")?,
        replaced_by: row.read("replaced_by")?,
        last_used_at: row.time_if_any("last_used_at")?,
    })
}

/// The scopes that this version knows of those of a key. One that a newer version has added allows nothing here.
fn readable_scopes(text: &str) -> Result<Scopes> {
    let known = text.split(',').filter_map(|word| word.parse().ok()).collect();
    Scopes::new(known).map_err(|_| StoreError::corrupt("scopes"))
}

/// What a row with the ID of this secret says of it.
pub(super) fn used_key(row: Option<&impl StoreRow>, shown: &Shown) -> Result<UsedKey> {
    let Some(row) = row else { return Ok(UsedKey::Unknown) };
    let digest: Vec<u8> = row.read("digest")?;
    let digest = digest.try_into().map_err(|_| StoreError::corrupt("digest"))?;
    if !SecretDigest(digest).is(&shown.digest) {
        return Ok(UsedKey::Unknown);
    }
    Ok(if row.read("is_valid")? { UsedKey::Valid(access_key(row)?) } else { UsedKey::Ended })
}

/// What the audit log says of a new key, and of one that takes another's place.
pub(super) fn created(key: &NewKey) -> String {
    let expires_in_secs = key.valid_for.map(|valid_for| valid_for.as_secs());
    json!({"scopes": key.scopes.to_string(), "expires_in_secs": expires_in_secs}).to_string()
}

pub(super) fn rotated(key: &NewKey, overlap: Duration) -> String {
    json!({"replaced_by": key.id, "overlap_secs": overlap.as_secs()}).to_string()
}

/// How many valid keys an owner has at most when one is rotated. Those that were rotated stay valid for a while.
pub(super) fn most_rotated() -> i64 {
    to_limit(2 * MAX_KEYS)
}
