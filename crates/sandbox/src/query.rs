//! Query strings as the API's clients write them, and pages.
//!
//! A list arrives with commas, as a repeated name, or with `[]` after the name; a map arrives with
//! its keys in brackets. All forms mean the same.

use std::collections::BTreeMap;

use axum::{extract::FromRequestParts, http::request::Parts};
use serde_json::{Map, Value, json};

use super::error::ApiError;

/// The largest page of tools, toolkits, accounts and auth configs. Clients ask for more.
const PAGE_MAX: usize = 1000;

/// The page size when none is asked for.
const PAGE_DEFAULT: usize = 20;

/// The decoded pairs of a query string, in order.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(Self::parse(parts.uri.query().unwrap_or("")))
    }
}

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        Self(url::form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// What a JSON body asks for, as if it stood in the query.
    pub(super) fn of_body(body: &Map<String, Value>) -> Self {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let pairs = body.iter().flat_map(|(name, value)| {
            let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            values.iter().map(move |value| (name.clone(), text(value)))
        });
        Self(pairs.collect())
    }

    /// The last value given for `name`; an empty one counts as absent.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.values(name).last()
    }

    /// The values given for `name` in any of the list forms.
    pub(super) fn list(&self, name: &str) -> Vec<&str> {
        self.values(name)
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|value| !value.is_empty())
            .collect()
    }

    /// The entries given as `name[key]=value`.
    pub(super) fn map(&self, name: &str) -> BTreeMap<&str, &str> {
        self.0
            .iter()
            .filter_map(|(key, value)| {
                let key = key.strip_prefix(name)?.strip_prefix('[')?.strip_suffix(']')?;
                (!key.is_empty() && !value.is_empty()).then_some((key, value.as_str()))
            })
            .collect()
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<usize>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        // Some clients write every number as a fraction.
        let whole = text.strip_suffix(".0").unwrap_or(text);
        let number = whole.parse().map_err(|_| {
            ApiError::invalid_fields("Invalid query", vec![format!("{name}: expected a whole number")])
        })?;
        Ok(Some(number))
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.text(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(ApiError::invalid_fields(
                "Invalid query",
                vec![format!("{name}: expected true or false")],
            )),
        }
    }

    /// The page of `items` that the query asks for.
    pub(super) fn page<T>(&self, items: &[T], show: impl FnMut(&T) -> Value) -> Result<Value, ApiError> {
        let asked = self.number("limit")?.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
        let (page, limit) = match self.text("cursor") {
            Some(cursor) => read_cursor(cursor).ok_or_else(ApiError::bad_cursor)?,
            None => (1, asked),
        };
        let start = (page - 1).saturating_mul(limit).min(items.len());
        let end = start.saturating_add(limit).min(items.len());
        let next = (end < items.len()).then(|| write_cursor(page + 1, limit));
        Ok(json!({
            "items": items[start..end].iter().map(show).collect::<Vec<_>>(),
            "next_cursor": next,
            "total_pages": items.len().div_ceil(limit),
            "current_page": page,
            "total_items": items.len(),
        }))
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(key, _)| {
                key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest == "[]")
            })
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }
}

/// A cursor has to look like nothing that a client would take apart.
fn write_cursor(page: usize, limit: usize) -> String {
    format!("{page}:{limit}").bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn read_cursor(cursor: &str) -> Option<(usize, usize)> {
    let bytes: Option<Vec<u8>> = cursor
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    let text = String::from_utf8(bytes?).ok()?;
    let (page, limit) = text.split_once(':')?;
    let (page, limit) = (page.parse().ok()?, limit.parse().ok()?);
    (page >= 1 && (1..=PAGE_MAX).contains(&limit)).then_some((page, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_a_list_mean_the_same() {
        for query in ["ids=a,b", "ids=a&ids=b", "ids[]=a&ids[]=b", "ids%5B%5D=a%2Cb", "ids=a&ids[]=b&idsx=c"]
        {
            assert_eq!(Query::parse(query).list("ids"), ["a", "b"], "{query}");
        }
        assert!(Query::parse("ids=").list("ids").is_empty());
    }

    #[test]
    fn maps_are_bracketed() {
        let query = Query::parse("v%5Bgithub%5D=1&v[slack]=2&v=3");
        assert_eq!(query.map("v"), BTreeMap::from([("github", "1"), ("slack", "2")]));
        assert_eq!(query.text("v"), Some("3"));
    }

    #[test]
    fn pages_follow_each_other_to_the_end() {
        let items: Vec<u32> = (0..5).collect();
        let mut cursor = String::new();
        let mut seen = Vec::new();
        loop {
            let query = Query::parse(&format!("limit=2&cursor={cursor}"));
            let page = query.page(&items, |item| json!(item)).unwrap();
            seen.extend(page["items"].as_array().unwrap().clone());
            assert_eq!(page["total_pages"], 3);
            match page["next_cursor"].as_str() {
                Some(next) => next.clone_into(&mut cursor),
                None => break,
            }
        }
        assert_eq!(seen, [0, 1, 2, 3, 4]);
        assert!(Query::parse("cursor=zz").page(&items, |item| json!(item)).is_err());
    }
}
