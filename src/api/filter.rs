//! Which jobs a list is about, as the parameters of a query.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use utoipa::{
    IntoParams, ToSchema,
    openapi::{
        ArrayBuilder, KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat,
        path::{Parameter, ParameterIn},
        schema::Type,
    },
};

use super::{
    described::{cursor, line, number, optional, text as any_text, words},
    problem::{Kind, Problem},
    request::{MAX_LIMIT, Parameters, parsed},
};
use crate::{
    job::{Effect, ErrorKind, HeldReason, Owner, State},
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
#[derive(Debug, Serialize, ToSchema)]
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
            batch: query.one("batch", parsed)?,
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

impl IntoParams for Wanted {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let moment = || any_text().format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)));
        let flag = ObjectBuilder::new().schema_type(Type::Boolean);
        let tag =
            any_text().pattern(Some(r"^[^=\u0000-\u001f\u007f-\u009f]*=[^\u0000-\u001f\u007f-\u009f]*$"));
        let owner = any_text().pattern(Some(r"^(user|org):(?=.*\S)[^\u0000-\u001f\u007f-\u009f]{1,256}$"));
        let query = |name, schema: RefOr<Schema>, description| {
            optional(ParameterIn::Query, name, schema, description)
        };
        // Only words that this version knows, unlike what it may read from rows of a newer one.
        vec![
            query("state", words(State::WORDS).into(), "In this state."),
            query("owner", owner.into(), "Of this owner: `user:ID` or `org:ID`."),
            query("tool", line().into(), "Of this tool."),
            query("toolkit", line().into(), "Of this toolkit."),
            query("queue", any_text().pattern(Some("^[a-z0-9_.-]{1,64}$")).into(), "In this queue."),
            query(
                "tag",
                ArrayBuilder::new().items(tag).into(),
                "With this tag, `NAME=VALUE`; may be there more than once.",
            ),
            query("since", moment().into(), "Created then or later. Seven days ago without it."),
            query("until", moment().into(), "Created before then."),
            query("error_kind", words(ErrorKind::WORDS).into(), "With an error of this kind."),
            query("held_reason", words(HeldReason::WORDS).into(), "Held for this reason."),
            query("outcome_unknown", flag.into(), "Only those with an unknown outcome, with `true`."),
            query("version", line().into(), "Bound to this version of the toolkit."),
            query("effect", words(Effect::WORDS).into(), "With this effect."),
            query(
                "batch",
                any_text().format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid))).into(),
                "Enqueued by this batch.",
            ),
            query("cursor", cursor().into(), "Where to go on: the `next` of the page before."),
            query("limit", number(1, MAX_LIMIT).into(), "The most jobs of the page. 50 without it."),
        ]
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
