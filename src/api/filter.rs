//! Which jobs a list is about, as the parameters of a query.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{
    problem::{Kind, Problem},
    request::{Parameters, parsed},
};
use crate::{
    job::Owner,
    store::{JobFilter, Place},
};

/// How far back a list goes that names no `since`.
const WINDOW: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A page of a list.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) filter: JobFilter,
    pub(super) before: Option<Place>,
    pub(super) limit: usize,
}

/// The time that a list is about.
#[derive(Debug, Serialize)]
pub(super) struct Window {
    /// Created then or later.
    since: Option<Timestamp>,
    /// Created before then.
    until: Option<Timestamp>,
}

impl Wanted {
    pub(super) fn of(mut parameters: Parameters, now: Timestamp) -> Result<Self, Problem> {
        let query = &mut parameters;
        let filter = JobFilter {
            state: query.one("state", parsed)?,
            owner: query.one("owner", |owner| owner.parse::<Owner>().map_err(|error| error.to_string()))?,
            tool: query.one("tool", text)?,
            toolkit: query.one("toolkit", text)?,
            queue: query.one("queue", parsed)?,
            tags: tags(&query.all("tag"))?,
            since: Some(query.one("since", moment)?.unwrap_or(now - WINDOW)),
            until: query.one("until", moment)?,
            error_kind: query.one("error_kind", parsed)?,
            held_reason: query.one("held_reason", parsed)?,
            outcome_unknown: query.one("outcome_unknown", parsed)?.unwrap_or(false),
            version: query.one("version", text)?,
            effect: query.one("effect", parsed)?,
        };
        let before = query.one("cursor", parsed)?;
        let limit = query.limit()?;
        parameters.end()?;
        Ok(Self { filter, before, limit })
    }

    pub(super) fn window(&self) -> Window {
        Window { since: self.filter.since, until: self.filter.until }
    }
}

fn text(value: &str) -> Result<String, String> {
    // No job has them, and databases disagree about NUL.
    if value.chars().any(char::is_control) {
        Err("may have no control characters".into())
    } else {
        Ok(value.to_owned())
    }
}

fn moment(value: &str) -> Result<Timestamp, String> {
    value.parse().map_err(|_| "must be a time as in RFC 3339, such as 2026-01-31T12:00:00Z".to_owned())
}

fn tags(given: &[String]) -> Result<BTreeMap<String, String>, Problem> {
    let pair = |tag: &String| {
        let (name, value) = tag.split_once('=').ok_or("must be NAME=VALUE")?;
        Ok((text(name)?, text(value)?))
    };
    let tags: Result<_, String> = given.iter().map(pair).collect();
    tags.map_err(|error| Problem::new(Kind::BadRequest, format!("the parameter `tag`: {error}")))
}
