//! Which jobs are meant, as JSON: the body of a request and the row of an action. The names are those of the parameters by
//! which jobs are listed over HTTP, and an interface.

use std::{fmt::Display, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::JobFilter;
use crate::job::Owner;

/// A [`JobFilter`] that nobody has judged yet. `null` and what is left out ask for nothing; a name that does not exist is
/// refused, because a misspelt filter would mean more jobs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = JobFilter, description = "Which jobs are meant: those that fit all that is not `null`.")]
#[serde(deny_unknown_fields, default)]
pub struct FilterJson {
    pub state: Option<String>,
    /// `user:ID` or `org:ID`
    pub owner: Option<String>,
    pub tool: Option<String>,
    pub toolkit: Option<String>,
    pub queue: Option<String>,
    /// Each as `NAME=VALUE`.
    pub tag: Option<Vec<String>>,
    /// Created then or later.
    pub since: Option<String>,
    /// Created before then.
    pub until: Option<String>,
    pub error_kind: Option<String>,
    pub held_reason: Option<String>,
    pub outcome_unknown: Option<bool>,
    pub version: Option<String>,
    pub effect: Option<String>,
    /// Enqueued by this batch.
    pub batch: Option<String>,
}

/// A field of a filter that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFilter {
    pub field: &'static str,
    /// What is wrong with it, to follow its name and a colon.
    pub why: String,
}

impl FilterJson {
    pub fn of(filter: &JobFilter) -> Self {
        let tag = |(name, value): (&String, &String)| format!("{name}={value}");
        Self {
            state: filter.state.map(|state| state.to_string()),
            owner: filter.owner.as_ref().map(Owner::to_string),
            tool: filter.tool.clone(),
            toolkit: filter.toolkit.clone(),
            queue: filter.queue.as_ref().map(ToString::to_string),
            tag: (!filter.tags.is_empty()).then(|| filter.tags.iter().map(tag).collect()),
            since: filter.since.map(|since| since.to_string()),
            until: filter.until.map(|until| until.to_string()),
            error_kind: filter.error_kind.map(|kind| kind.to_string()),
            held_reason: filter.held_reason.map(|reason| reason.to_string()),
            outcome_unknown: filter.outcome_unknown.then_some(true),
            version: filter.version.clone(),
            effect: filter.effect.map(|effect| effect.to_string()),
            batch: filter.batch.map(|batch| batch.to_string()),
        }
    }

    /// # Errors
    /// The first field that cannot be understood.
    pub fn filter(self) -> Result<JobFilter, BadFilter> {
        Ok(JobFilter {
            state: read("state", self.state)?,
            owner: self.owner.map(|owner| whose(&owner)).transpose()?,
            tool: text("tool", self.tool)?,
            toolkit: text("toolkit", self.toolkit)?,
            queue: read("queue", self.queue)?,
            tags: self.tag.unwrap_or_default().iter().map(|tag| pair(tag)).collect::<Result<_, _>>()?,
            since: moment("since", self.since)?,
            until: moment("until", self.until)?,
            error_kind: read("error_kind", self.error_kind)?,
            held_reason: read("held_reason", self.held_reason)?,
            outcome_unknown: self.outcome_unknown.unwrap_or(false),
            version: text("version", self.version)?,
            effect: read("effect", self.effect)?,
            batch: read("batch", self.batch)?,
        })
    }
}

fn whose(owner: &str) -> Result<Owner, BadFilter> {
    let bad = |error| BadFilter { field: "owner", why: format!("{error}; write `user:ID` or `org:ID`") };
    owner.parse().map_err(bad)
}

/// A word of a choice that this version knows, or a name with rules.
fn read<T: FromStr<Err: Display>>(
    field: &'static str,
    value: Option<String>,
) -> Result<Option<T>, BadFilter> {
    let bad = |error: T::Err| BadFilter { field, why: error.to_string() };
    value.map(|value| value.parse().map_err(bad)).transpose()
}

fn text(field: &'static str, value: Option<String>) -> Result<Option<String>, BadFilter> {
    value.map(|value| plain(field, &value)).transpose()
}

/// No job has control characters in what filters ask for, and databases disagree about NUL.
fn plain(field: &'static str, value: &str) -> Result<String, BadFilter> {
    if value.chars().any(char::is_control) {
        Err(BadFilter { field, why: "may have no control characters".into() })
    } else {
        Ok(value.to_owned())
    }
}

fn moment(field: &'static str, value: Option<String>) -> Result<Option<Timestamp>, BadFilter> {
    let why = "must be a time as in RFC 3339, such as 2026-01-31T12:00:00Z";
    let parse = |value: String| value.parse().map_err(|_| BadFilter { field, why: why.into() });
    value.map(parse).transpose()
}

fn pair(tag: &str) -> Result<(String, String), BadFilter> {
    let bad = || BadFilter { field: "tag", why: "must be NAME=VALUE".into() };
    let (name, value) = tag.split_once('=').ok_or_else(bad)?;
    Ok((plain("tag", name)?, plain("tag", value)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Effect, ErrorKind, HeldReason, State};

    #[test]
    fn a_filter_is_the_same_after_its_way_through_json() {
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        let whole = JobFilter {
            state: Some(State::Held),
            owner: Some("org:o:1".parse().unwrap()),
            tool: Some("T".into()),
            toolkit: Some("t".into()),
            queue: Some("bulk".parse().unwrap()),
            tags: [("a".to_owned(), "b=c".to_owned()), ("d".to_owned(), String::new())].into(),
            since: at("2026-01-01T00:00:00.000001Z"),
            until: at("2026-01-02T00:00:00Z"),
            error_kind: Some(ErrorKind::ToolFailed),
            held_reason: Some(HeldReason::Connection),
            outcome_unknown: true,
            version: Some("v".into()),
            effect: Some(Effect::Once),
            batch: Some("0190b0a0-0000-7000-8000-000000000001".parse().unwrap()),
        };
        for filter in [JobFilter::default(), whole] {
            let json = serde_json::to_string(&FilterJson::of(&filter)).unwrap();
            let read: FilterJson = serde_json::from_str(&json).unwrap();
            assert_eq!(read.filter(), Ok(filter), "{json}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        for (json, field) in [
            (r#"{"state": "unrecognized"}"#, "state"),
            (r#"{"held_reason": "unrecognized"}"#, "held_reason"),
            (r#"{"owner": "team:x"}"#, "owner"),
            (r#"{"queue": "No Queue"}"#, "queue"),
            (r#"{"tag": ["x"]}"#, "tag"),
            (r#"{"tool": "a\u0000"}"#, "tool"),
            (r#"{"since": "yesterday"}"#, "since"),
        ] {
            let filter: FilterJson = serde_json::from_str(json).unwrap();
            assert_eq!(filter.filter().map_err(|bad| bad.field), Err(field), "{json}");
        }
        let unknown = serde_json::from_str::<FilterJson>(r#"{"stat": "held"}"#).unwrap_err().to_string();
        assert!(unknown.contains("unknown field `stat`, expected one of `state`, `owner`"), "{unknown}");
    }
}
