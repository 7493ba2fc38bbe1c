//! Look-ups: what can be read any number of times, and is read again quickly when the API fails.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use reqwest::{
    Method, Request,
    header::{CONTENT_TYPE, HeaderValue},
};
use tokio::time::{Instant, timeout};

use super::{
    Composio, NOT_SLUGS, X_API_KEY,
    response::{DEPRECATED, Unread, chain, collect, header},
    retry_after::{date, retry_after},
    wire,
};
use crate::{
    job::RequestId,
    tool::{
        Account, AccountList, ApiCheck, ApiError, Body, Call, Execution, Reply, ToolApi, ToolError, ToolInfo,
        ToolkitInfo, decode::decode,
    },
};

/// The time that one look-up may take, its repetitions included.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The time that a listing may take, over all pages.
const LISTING_TIMEOUT: Duration = Duration::from_secs(30);

/// Pauses before a look-up is repeated. Only look-ups are, because reading twice harms nobody.
const LOOKUP_PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];

/// The largest answer to a look-up, in bytes. Descriptions carry whole schemas.
const MAX_LOOKUP_BYTES: usize = 8 * 1024 * 1024;

/// Accounts per page, and the most pages of one list that are read.
const ACCOUNTS_PER_PAGE: &str = "100";
const MAX_ACCOUNT_PAGES: usize = 20;

/// Entries of the log per page, and the most pages that are read for one request ID. The API does not
/// promise that there is only one entry.
const EXECUTIONS_PER_PAGE: usize = 5;
const MAX_EXECUTION_PAGES: usize = 20;

/// Routes beside those of toolkits.
const NOT_TOOLKITS: [&str; 5] = ["categories", "changelog", "multi", ".", ".."];

#[async_trait]
impl ToolApi for Composio {
    fn address(&self) -> String {
        let (host, port) = (self.root.host_str(), self.root.port_or_known_default());
        format!("{}:{}", host.unwrap_or_default(), port.unwrap_or_default())
    }

    async fn execute(&self, call: &Call) -> Reply {
        self.call(call).await
    }

    async fn renew_key(&self) -> Result<bool, String> {
        self.key.renew().await
    }

    async fn tool(&self, slug: &str, version: Option<&str>) -> Result<ToolInfo, ToolError> {
        if NOT_SLUGS.contains(&slug) {
            return Err(ToolError::NotFound(Box::default()));
        }
        let query = match version {
            Some(version) => ("version", version),
            None => ("toolkit_versions", "latest"),
        };
        let found = self.get(&["tools", slug], &[query]).await?;
        wire::tool(&found.body, version).ok_or_else(|| unreadable("a tool"))
    }

    async fn toolkit(&self, slug: &str, version: Option<&str>) -> Result<ToolkitInfo, ToolError> {
        if NOT_TOOLKITS.contains(&slug) {
            return Err(ToolError::NotFound(Box::default()));
        }
        let query = version.map(|version| ("version", version));
        let found = self.get(&["toolkits", slug], query.as_slice()).await?;
        let available_versions =
            wire::toolkit_versions(&found.body).ok_or_else(|| unreadable("a toolkit"))?;
        Ok(ToolkitInfo { available_versions, deprecated: found.deprecated })
    }

    async fn accounts(&self, owner_ids: &[&str], toolkit: Option<&str>) -> Result<AccountList, ToolError> {
        let owner_ids = owner_ids.join(",");
        let pages = async {
            let mut list = AccountList { accounts: Vec::new(), is_whole: false, pages: 0 };
            let mut cursor: Option<String> = None;
            while list.pages < MAX_ACCOUNT_PAGES {
                let mut query = vec![
                    ("user_ids", owner_ids.as_str()),
                    ("order_by", "created_at"),
                    ("order_direction", "desc"),
                    ("limit", ACCOUNTS_PER_PAGE),
                ];
                query.extend(toolkit.map(|toolkit| ("toolkit_slugs", toolkit)));
                query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
                let found = self.get(&["connected_accounts"], &query).await?;
                let page = wire::accounts(&found.body).ok_or_else(|| unreadable("a list of accounts"))?;
                list.accounts.extend(page.accounts);
                list.pages += 1;
                list.is_whole = page.next_cursor.is_none();
                if list.is_whole || page.next_cursor == cursor {
                    break;
                }
                cursor = page.next_cursor;
            }
            Ok(list)
        };
        let mut list = timeout(LISTING_TIMEOUT, pages)
            .await
            .unwrap_or_else(|_| Err(ToolError::Unavailable("listing accounts took too long".into())))?;
        list.accounts.sort_by_key(|account| std::cmp::Reverse(account.created_at));
        Ok(list)
    }

    async fn account(&self, id: &str) -> Result<Account, ToolError> {
        if matches!(id, "" | "." | ".." | "link") {
            return Err(ToolError::NotFound(Box::default()));
        }
        let found = self.get(&["connected_accounts", id], &[]).await?;
        wire::account(&found.body).ok_or_else(|| unreadable("an account"))
    }

    async fn execution(&self, request_id: RequestId) -> Result<Option<Execution>, ToolError> {
        let pages = async {
            let mut cursor: Option<String> = None;
            for _ in 0..MAX_EXECUTION_PAGES {
                let found = self.executions(request_id, cursor.as_deref()).await?;
                let page = wire::log_page(&found.body).ok_or_else(|| unreadable("a list of executions"))?;
                let (mut ours, mut others) = (Vec::new(), false);
                for entry in page.entries {
                    let entry = match entry.request_id {
                        Some(_) => entry,
                        // What the entry of a list leaves out is in the entry itself.
                        None => self.log_entry(&entry.execution.log_id).await?,
                    };
                    match entry.request_id {
                        Some(id) if id == request_id => ours.push(entry.execution),
                        // Whatever the filter did, it is none of the call's.
                        _ => others = true,
                    }
                }
                // Of several, one that succeeded counts, then one that failed.
                if let Some(found) =
                    ours.into_iter().max_by_key(|found| found.result.as_ref().map(|result| result.successful))
                {
                    return Ok(Some(found));
                }
                // Its own entry may be behind any number of these.
                if others {
                    return Err(ToolError::Unavailable("its log does not filter by request ID".into()));
                }
                // A page may be empty and not the last.
                if page.next_cursor.is_none() {
                    return Ok(None);
                }
                if page.next_cursor == cursor {
                    break;
                }
                cursor = page.next_cursor;
            }
            Err(ToolError::Unavailable("its log has no last page".into()))
        };
        let mut found = timeout(LISTING_TIMEOUT, pages)
            .await
            .unwrap_or_else(|_| Err(ToolError::Unavailable("reading its log took too long".into())))?;
        if let Some(result) = found.as_mut().and_then(|execution| execution.result.as_mut()) {
            result.error = result.error.take().map(|text| self.key.scrub(text));
        }
        Ok(found)
    }

    async fn check(&self) -> Result<ApiCheck, ToolError> {
        let started = Instant::now();
        let found = self.get(&["toolkits"], &[("limit", "1")]).await?;
        if !found.body.trim_ascii_start().starts_with(b"{") {
            return Err(unreadable("a list of toolkits"));
        }
        Ok(ApiCheck { date: found.date, took: started.elapsed() })
    }
}

impl Composio {
    /// One look-up, repeated quickly when the API cannot be reached or fails.
    async fn get(&self, segments: &[&str], query: &[(&str, &str)]) -> Result<Found, ToolError> {
        let mut url = self.url(segments);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.look_up(|| Request::new(Method::GET, url.clone())).await
    }

    async fn look_up(&self, request: impl Fn() -> Request) -> Result<Found, ToolError> {
        let look_up = async {
            for pause in LOOKUP_PAUSES {
                match self.look_up_once(request()).await {
                    Err(ToolError::Unavailable(_)) => tokio::time::sleep(pause).await,
                    definite => return definite,
                }
            }
            self.look_up_once(request()).await
        };
        timeout(LOOKUP_TIMEOUT, look_up).await.unwrap_or_else(|_| {
            Err(ToolError::Unavailable(format!("it gave no answer within {} s", LOOKUP_TIMEOUT.as_secs())))
        })
    }

    async fn look_up_once(&self, mut request: Request) -> Result<Found, ToolError> {
        request.headers_mut().insert(X_API_KEY, self.key.header());
        let unavailable = |error: reqwest::Error| ToolError::Unavailable(self.key.scrub(chain(error)));
        let checkout = self.clients.checkout();
        let mut response = checkout.client().execute(request).await.map_err(unavailable)?;
        let status = response.status();
        let date = date(response.headers());
        let deprecated = header(response.headers(), &DEPRECATED);
        let retry_after = retry_after(response.headers(), self.clock.now());
        let body = collect(&mut response, MAX_LOOKUP_BYTES).await.map_err(|unread| match unread {
            Unread::TooLarge => ToolError::Unavailable("its answer to a look-up is too large".into()),
            Unread::Broken(cause) => ToolError::Unavailable(self.key.scrub(cause)),
        });
        if status.is_success() {
            return Ok(Found { body: body?, date, deprecated });
        }
        let scrub = |error: Box<ApiError>| self.key.scrub_error(*error).into();
        Err(match lookup_error(status.as_u16(), retry_after, &body.unwrap_or_default()) {
            ToolError::NotFound(error) => ToolError::NotFound(scrub(error)),
            ToolError::Credentials { status, error } => {
                ToolError::Credentials { status, error: scrub(error) }
            }
            ToolError::Refused { status, error } => ToolError::Refused { status, error: scrub(error) },
            other @ (ToolError::Throttled { .. } | ToolError::Unavailable(_)) => other,
        })
    }

    async fn log_entry(&self, id: &str) -> Result<wire::LogEntry, ToolError> {
        let found = self.get(&["logs", "tool_execution", id], &[]).await?;
        wire::log_entry(&found.body).ok_or_else(|| unreadable("an entry of its log"))
    }

    async fn executions(&self, request_id: RequestId, cursor: Option<&str>) -> Result<Found, ToolError> {
        let url = self.url(&["logs", "tool_execution"]);
        let mut search = serde_json::json!({
            "limit": EXECUTIONS_PER_PAGE,
            "filters": [{ "field": "request_id", "operator": "==", "value": request_id.to_string() }],
        });
        if let Some(cursor) = cursor {
            search["cursor"] = cursor.into();
        }
        let search = Bytes::from(search.to_string());
        self.look_up(|| {
            let mut request = Request::new(Method::POST, url.clone());
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(search.clone().into());
            request
        })
        .await
    }
}

struct Found {
    body: Vec<u8>,
    date: Option<Timestamp>,
    /// A notice about the version that was asked for, verbatim.
    deprecated: Option<String>,
}

/// What a look-up reports for a status other than 2xx.
pub fn lookup_error(status: u16, retry_after: Option<Duration>, body: &[u8]) -> ToolError {
    let error = match decode(status, body) {
        Body::Error(error) => Some(error),
        Body::Result(result) => Some(ApiError { message: result.error, ..ApiError::default() }),
        Body::Opaque | Body::TooLarge | Body::Broken(_) => None,
    };
    let is_readable = error.is_some();
    let error = Box::new(error.unwrap_or_default());
    match status {
        429 => ToolError::Throttled { retry_after },
        _ if error.is_key_problem(status) => ToolError::Credentials { status, error },
        // Without a word of the API this is a wrong base URL or something in between, and a refusal would fail every job
        // for good.
        403 | 404 | 410 if !error.tells_more_than(status) => ToolError::Unavailable(format!(
            "it answered {status} without an error of the API; check its base URL, and what is in front of it"
        )),
        404 | 410 => ToolError::NotFound(error),
        400..=499 if matches!(error.code, Some(606 | 1800 | 2401)) => ToolError::NotFound(error),
        400..=499 if status == 408 || !is_readable => ToolError::Unavailable(format!("it answered {status}")),
        400..=499 => ToolError::Refused { status, error },
        300..=399 => ToolError::Unavailable(format!(
            "it answered {status}; redirects are not followed, check its base URL"
        )),
        _ => ToolError::Unavailable(format!("it answered {status}")),
    }
}

fn unreadable(what: &str) -> ToolError {
    ToolError::Unavailable(format!("its answer is not {what} as documented; check its base URL"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_ups_tell_the_key_from_the_call_and_the_api_from_what_is_in_front_of_it() {
        let of = |status, body: &str| lookup_error(status, None, body.as_bytes());
        let slug = |slug: &str| format!(r#"{{"error":{{"message":"m","slug":"{slug}"}}}}"#);
        assert!(matches!(of(401, ""), ToolError::Credentials { status: 401, .. }));
        for family in ["APIKey_InsufficientPermissions", "Organization_InsufficientPermissions", "Auth_X"] {
            assert!(matches!(of(403, &slug(family)), ToolError::Credentials { .. }), "{family}");
        }
        assert!(matches!(of(403, &slug("AuthConfig_Forbidden")), ToolError::Refused { status: 403, .. }));
        assert!(matches!(of(404, &slug("Tool_ToolNotFound")), ToolError::NotFound(_)));
        assert!(matches!(of(410, &slug("X")), ToolError::NotFound(_)));
        assert!(matches!(of(400, r#"{"error":{"code":2401}}"#), ToolError::NotFound(_)));
        for (status, body) in [
            (404, "<html>"),
            (403, "<html>Just a moment...</html>"),
            (403, ""),
            (403, r#"{"error":{"code":"403","message":"Forbidden","id":"x"}}"#),
            (403, r#"{"message":"Forbidden"}"#),
            (404, r#"{"error":{"code":10404,"slug":"HTTP_NotFound","message":"no such route"}}"#),
            (404, r#"{"message":"no Route matched with those values"}"#),
            (410, ""),
            (400, "<html>"),
            (422, ""),
        ] {
            assert!(matches!(of(status, body), ToolError::Unavailable(_)), "{status} {body}");
        }
        assert!(matches!(of(400, r#"{"message":"bad"}"#), ToolError::Refused { status: 400, .. }));
        assert!(matches!(of(404, r#"{"error":{"code":2401}}"#), ToolError::NotFound(_)));
        assert!(matches!(of(429, ""), ToolError::Throttled { .. }));
        for status in [301, 408, 500, 502, 503, 599] {
            assert!(matches!(of(status, ""), ToolError::Unavailable(_)), "{status}");
        }
    }
}
