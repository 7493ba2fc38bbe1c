//! The JSON of look-ups. Decoding is lenient, because an unknown word or a missing field of one
//! item must not hide the others; what errand cannot do without makes the whole answer unreadable.
//!
//! Credentials (`state`, `data`, `params` of an account) are never decoded, so they cannot leak.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::{
    bounds::MAX_SHORT_TEXT_BYTES,
    tool::{
        Account, ToolInfo,
        pin::{LATEST, is_version},
    },
};

#[derive(Deserialize)]
struct Tool {
    slug: String,
    #[serde(default, deserialize_with = "lenient")]
    name: String,
    #[serde(default, deserialize_with = "lenient")]
    description: String,
    toolkit: Slug,
    #[serde(default, deserialize_with = "lenient")]
    version: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    available_versions: Vec<String>,
    #[serde(default, deserialize_with = "lenient")]
    tags: Vec<String>,
    #[serde(default, deserialize_with = "lenient")]
    no_auth: bool,
    #[serde(default, deserialize_with = "lenient")]
    is_deprecated: bool,
    #[serde(default, deserialize_with = "lenient")]
    deprecated: Deprecated,
}

#[derive(Deserialize)]
struct Slug {
    slug: String,
}

/// The older place of the flag.
#[derive(Default, Deserialize)]
struct Deprecated {
    #[serde(default, deserialize_with = "lenient")]
    is_deprecated: bool,
}

#[derive(Deserialize)]
struct Toolkit {
    meta: Meta,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(default, deserialize_with = "lenient")]
    version: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    available_versions: Vec<String>,
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
    #[serde(default, deserialize_with = "lenient")]
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct WireAccount {
    id: String,
    #[serde(default, deserialize_with = "lenient")]
    user_id: Option<String>,
    toolkit: Slug,
    status: String,
    #[serde(default, deserialize_with = "lenient")]
    status_reason: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    is_disabled: bool,
    #[serde(default, deserialize_with = "lenient")]
    created_at: Option<String>,
}

/// One page of accounts.
pub(crate) struct Accounts {
    /// Those that could be decoded.
    pub(crate) accounts: Vec<Account>,
    /// Where the next page begins, if there is one.
    pub(crate) next_cursor: Option<String>,
}

/// A tool's description; `asked` stands in for a version that the answer leaves out.
pub(crate) fn tool(body: &[u8], asked: Option<&str>) -> Option<ToolInfo> {
    let tool: Tool = serde_json::from_slice(body).ok()?;
    let available_versions = newest_first(tool.available_versions);
    let version = tool.version.filter(|version| is_fit(version));
    let version =
        version.or_else(|| asked.map(Into::into)).or_else(|| available_versions.first().cloned())?;
    Some(ToolInfo {
        slug: tool.slug,
        name: tool.name,
        description: tool.description,
        toolkit: slug(tool.toolkit)?,
        version,
        available_versions,
        tags: tool.tags,
        no_auth: tool.no_auth,
        deprecated: tool.is_deprecated || tool.deprecated.is_deprecated,
    })
}

/// A toolkit's versions, newest first.
pub(crate) fn versions(body: &[u8]) -> Option<Vec<String>> {
    let meta = serde_json::from_slice::<Toolkit>(body).ok()?.meta;
    let mut all = meta.available_versions;
    all.extend(meta.version);
    let all = newest_first(all);
    (!all.is_empty()).then_some(all)
}

/// A page of accounts.
pub(crate) fn accounts(body: &[u8]) -> Option<Accounts> {
    let page: Page<'_> = serde_json::from_slice(body).ok()?;
    let accounts = page.items.iter().filter_map(|item| account(item.get().as_bytes())).collect();
    Some(Accounts { accounts, next_cursor: page.next_cursor.filter(|cursor| !cursor.trim().is_empty()) })
}

/// One account.
pub(crate) fn account(body: &[u8]) -> Option<Account> {
    let account: WireAccount = serde_json::from_slice(body).ok()?;
    let created_at = account.created_at.and_then(|text| text.parse().ok());
    Some(Account {
        id: is_fit(&account.id).then_some(account.id)?,
        user_id: account.user_id.filter(|id| !id.is_empty()),
        toolkit: slug(account.toolkit)?,
        status: account.status,
        status_reason: account.status_reason,
        disabled: account.is_disabled,
        // An account of unknown age is never preferred to one of known age.
        created_at: created_at.unwrap_or(Timestamp::UNIX_EPOCH),
    })
}

fn slug(slug: Slug) -> Option<String> {
    let slug = slug.slug.trim().to_lowercase();
    is_fit(&slug).then_some(slug)
}

/// Whether the database keeps a text that becomes part of a decision. One that it refuses would
/// otherwise be decided, refused and decided again for as long as the API says it.
fn is_fit(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= MAX_SHORT_TEXT_BYTES && !text.chars().any(char::is_control)
}

/// Real versions sort by time; `latest`, should it be listed, is none.
fn newest_first(mut versions: Vec<String>) -> Vec<String> {
    versions.retain(|version| is_fit(version) && version != LATEST);
    versions.sort_by(|a, b| (is_version(b), b).cmp(&(is_version(a), a)));
    versions.dedup();
    versions
}

/// A value of the expected type, or the default for any other, `null` included.
fn lenient<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Deserialize<'de> + Default,
    D: Deserializer<'de>,
{
    let raw = <&'de RawValue>::deserialize(deserializer)?;
    Ok(serde_json::from_str(raw.get()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_database_keeps_is_not_decided_on() {
        for unfit in ["", " ", "a\\u0000b", &"x".repeat(MAX_SHORT_TEXT_BYTES + 1)] {
            let account_of = |id: &str, toolkit: &str| {
                account(
                    format!(r#"{{"id":"{id}","toolkit":{{"slug":"{toolkit}"}},"status":"ACTIVE"}}"#)
                        .as_bytes(),
                )
            };
            assert!(account_of("ca_1", "github").is_some());
            assert!(account_of(unfit, "github").is_none());
            assert!(account_of("ca_1", unfit).is_none());
            let body = format!(
                r#"{{"slug":"T","toolkit":{{"slug":"github"}},"version":"{unfit}","available_versions":["{unfit}"]}}"#
            );
            assert_eq!(tool(body.as_bytes(), None), None);
            assert_eq!(
                tool(body.as_bytes(), Some("20251027_00")).map(|tool| tool.version).as_deref(),
                Some("20251027_00")
            );
            assert_eq!(versions(format!(r#"{{"meta":{{"version":"{unfit}"}}}}"#).as_bytes()), None);
        }
    }
}
