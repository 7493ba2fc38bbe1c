//! The JSON of look-ups. Decoding is lenient, because an unknown word or a missing field of one
//! item must not hide the others; what errand cannot do without makes the whole answer unreadable.
//!
//! Credentials (`state`, `data`, `params` of an account) are never decoded, so they cannot leak.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
    bounds::MAX_SHORT_TEXT_BYTES,
    job::RequestId,
    tool::{
        Account, Body, Execution, ToolInfo, ToolResult,
        arguments::MAX_SCHEMA_BYTES,
        decode::decode,
        pin::{LATEST, is_version},
    },
};

#[derive(Deserialize)]
struct Tool {
    slug: String,
    name: Lenient<String>,
    description: Lenient<String>,
    toolkit: Slug,
    version: Lenient<Option<String>>,
    available_versions: Lenient<Vec<String>>,
    tags: Lenient<Vec<String>>,
    input_parameters: Lenient<Option<Box<RawValue>>>,
    no_auth: Lenient<bool>,
    is_deprecated: Lenient<bool>,
    deprecated: Lenient<Deprecated>,
}

#[derive(Deserialize)]
struct Toolkit {
    meta: ToolkitMeta,
}

#[derive(Deserialize)]
struct ToolkitMeta {
    version: Lenient<Option<String>>,
    available_versions: Lenient<Vec<String>>,
}

#[derive(Deserialize)]
struct Slug {
    slug: String,
}

/// The older place of the flag.
#[derive(Default, Deserialize)]
struct Deprecated {
    is_deprecated: Lenient<bool>,
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
    next_cursor: Lenient<Option<String>>,
}

#[derive(Deserialize)]
struct WireExecutions {
    logs: Vec<WireExecution>,
    next_cursor: Lenient<Option<String>>,
}

#[derive(Deserialize)]
struct WireExecution {
    id: String,
    status: Lenient<String>,
    message: Lenient<Option<String>>,
    metadata: Lenient<ExecutionMetadata>,
    context: Lenient<ExecutionContext>,
    data: Lenient<ExecutionData>,
}

#[derive(Default, Deserialize)]
struct ExecutionMetadata {
    tool_slug: Lenient<Option<String>>,
}

#[derive(Default, Deserialize)]
struct ExecutionContext {
    request_id: Lenient<Option<String>>,
}

/// Absent where the project does not store payloads.
#[derive(Default, Deserialize)]
struct ExecutionData {
    response: Lenient<Option<Box<RawValue>>>,
}

#[derive(Deserialize)]
struct WireAccount {
    id: String,
    user_id: Lenient<Option<String>>,
    toolkit: Slug,
    status: String,
    status_reason: Lenient<Option<String>>,
    is_disabled: Lenient<bool>,
    created_at: Lenient<Option<String>>,
}

/// An entry of the execution log.
pub(super) struct LogEntry {
    /// The request ID of its call, if the entry says so. Those of a list may leave it out.
    pub(super) request_id: Option<RequestId>,
    pub(super) execution: Execution,
}

/// One page of a search in the execution log. An entry that cannot be named again is left out, and counts as unreadable.
pub(super) struct LogPage {
    pub(super) entries: Vec<LogEntry>,
    pub(super) next_cursor: Option<String>,
}

pub(super) fn log_page(body: &[u8]) -> Option<LogPage> {
    let page: WireExecutions = object(body)?;
    let entries = page.logs.into_iter().map(log_entry_of).collect::<Option<_>>()?;
    Some(LogPage { entries, next_cursor: cursor(page.next_cursor) })
}

pub(super) fn log_entry(body: &[u8]) -> Option<LogEntry> {
    log_entry_of(object(body)?)
}

fn log_entry_of(entry: WireExecution) -> Option<LogEntry> {
    if !is_fit(&entry.id) {
        return None;
    }
    let request_id = entry.context.0.request_id.0.as_deref().and_then(|id| uuid::Uuid::parse_str(id).ok());
    let successful = match entry.status.0.as_str() {
        "success" | "succeeded" => Some(true),
        "failed" | "failure" | "error" => Some(false),
        _ => None,
    };
    let told = entry.data.0.response.0.map(|response| decode(200, response.get().as_bytes()));
    let result = successful.map(|successful| match told {
        Some(Body::Result(result)) if result.successful == successful => {
            ToolResult { log_id: Some(entry.id.clone()), ..result }
        }
        // The verdict of the entry stands for itself.
        _ => ToolResult {
            data: RawValue::NULL.to_owned().into(),
            successful,
            error: if successful { None } else { entry.message.0 },
            provider_status: None,
            log_id: Some(entry.id.clone()),
        },
    });
    let execution = Execution { log_id: entry.id, tool: entry.metadata.0.tool_slug.0, result };
    Some(LogEntry { request_id: request_id.map(RequestId), execution })
}

#[derive(Debug)]
pub struct Accounts {
    /// Those that could be decoded.
    pub accounts: Vec<Account>,
    pub next_cursor: Option<String>,
}

/// A tool's description; `asked` stands in for a version that the answer leaves out.
pub fn tool(body: &[u8], asked: Option<&str>) -> Option<ToolInfo> {
    let tool: Tool = object(body)?;
    let available_versions = newest_first(tool.available_versions.0);
    let version = tool.version.0.filter(|version| is_fit(version));
    let version =
        version.or_else(|| asked.map(Into::into)).or_else(|| available_versions.first().cloned())?;
    Some(ToolInfo {
        slug: tool.slug,
        name: tool.name.0,
        description: tool.description.0,
        toolkit: slug(tool.toolkit)?,
        version,
        available_versions,
        tags: tool.tags.0,
        input_schema: tool.input_parameters.0.and_then(|schema| input_schema(&schema)),
        no_auth: tool.no_auth.0,
        deprecated: tool.is_deprecated.0 || tool.deprecated.0.is_deprecated.0,
    })
}

/// Longer schemas are not kept: there may be thousands of them.
fn input_schema(schema: &RawValue) -> Option<Arc<str>> {
    (schema.get().len() <= MAX_SCHEMA_BYTES).then(|| schema.get().into())
}

/// All versions of a toolkit, newest first; the one that is described is one of them.
pub(super) fn toolkit_versions(body: &[u8]) -> Option<Vec<String>> {
    let Toolkit { meta } = object(body)?;
    let mut versions = meta.available_versions.0;
    versions.extend(meta.version.0);
    Some(newest_first(versions))
}

pub fn accounts(body: &[u8]) -> Option<Accounts> {
    let page: Page<'_> = object(body)?;
    let accounts = page.items.iter().filter_map(|item| account(item.get().as_bytes())).collect();
    Some(Accounts { accounts, next_cursor: cursor(page.next_cursor) })
}

pub fn account(body: &[u8]) -> Option<Account> {
    let account: WireAccount = object(body)?;
    let created_at = account.created_at.0.and_then(|text| text.parse().ok());
    Some(Account {
        id: is_fit(&account.id).then_some(account.id)?,
        user_id: account.user_id.0.filter(|id| !id.is_empty()),
        toolkit: slug(account.toolkit)?,
        status: account.status,
        status_reason: account.status_reason.0,
        disabled: account.is_disabled.0,
        // An account of unknown age is never preferred to one of known age.
        created_at: created_at.unwrap_or(Timestamp::UNIX_EPOCH),
    })
}

/// Decodes an object. A derived decoder would also take a list for one, with its fields in order, so that
/// `[[]]` were an empty page.
fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    serde_json::from_slice(body).ok()
}

/// A blank cursor is the end, as a missing one.
fn cursor(cursor: Lenient<Option<String>>) -> Option<String> {
    cursor.0.filter(|cursor| !cursor.trim().is_empty())
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

/// A value of the expected type, or the default for any other, and where it is missing or `null`.
#[derive(Default)]
struct Lenient<T>(T);

impl<'de, T: DeserializeOwned + Default> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Option::<&'de RawValue>::deserialize(deserializer)?;
        Ok(Self(raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, request_id: Option<RequestId>, status: &str, data: &str) -> String {
        let context = request_id.map_or("{}".to_owned(), |id| format!(r#"{{"request_id":"{id}"}}"#));
        format!(
            r#"{{"id":"{id}","status":"{status}","message":"boom","metadata":{{"tool_slug":"T"}},"context":{context},"data":{data}}}"#
        )
    }

    fn page(entries: &[String]) -> Option<LogPage> {
        log_page(format!(r#"{{"logs":[{}],"next_cursor":" "}}"#, entries.join(",")).as_bytes())
    }

    #[test]
    fn an_execution_is_told_by_its_entry() {
        let ours = RequestId::new();
        let response = r#"{"response":{"data":{"n":1.50},"error":null,"successful":true}}"#;
        for (status, data, told) in [
            ("success", response, Some((true, r#"{"n":1.50}"#, None))),
            ("failed", "{}", Some((false, "null", Some("boom")))),
            // It does not say how the call ended.
            ("running", "{}", None),
            // The log keeps no payloads.
            ("success", "{}", Some((true, "null", None))),
        ] {
            let entry = entry("l1", Some(ours), status, data);
            let listed = page(std::slice::from_ref(&entry)).unwrap();
            assert!(listed.next_cursor.is_none());
            for found in listed.entries.into_iter().chain(log_entry(entry.as_bytes())) {
                assert_eq!(found.request_id, Some(ours));
                let found = found.execution;
                assert_eq!((found.log_id.as_str(), found.tool.as_deref()), ("l1", Some("T")));
                let result = found.result.as_ref();
                let of = |result: &'_ ToolResult| result.log_id.as_deref() == Some("l1");
                assert!(result.is_none_or(of), "{status}");
                let found =
                    result.map(|result| (result.successful, result.data.get(), result.error.as_deref()));
                assert_eq!(found, told, "{status}");
            }
        }
    }

    #[test]
    fn a_page_of_the_log_is_read_whole_or_not_at_all() {
        let nameless = page(&[entry("l2", None, "success", "{}")]).unwrap().entries;
        assert_eq!((nameless.len(), nameless[0].request_id), (1, None));
        assert!(page(&[]).unwrap().entries.is_empty());
        for unreadable in
            ["<html>", "{}", "[]", "[[]]", r#"{"logs":{}}"#, r#"{"logs":[5]}"#, r#"{"logs":[{"id":""}]}"#]
        {
            assert!(log_page(unreadable.as_bytes()).is_none(), "{unreadable}");
        }
        let more = format!(r#"{{"logs":[{}],"next_cursor":"c"}}"#, entry("l1", None, "failed", "{}"));
        assert_eq!(log_page(more.as_bytes()).unwrap().next_cursor.as_deref(), Some("c"));
    }

    #[test]
    fn a_list_is_no_object() {
        assert!(accounts(b"[[]]").is_none() && accounts(br#"{"items":[]}"#).is_some());
        assert!(account(br#"["ca_1","u",["github"],"ACTIVE"]"#).is_none());
        assert!(tool(br#"["T","","",["github"]]"#, Some("20251027_00")).is_none());
    }

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
        }
    }
}
