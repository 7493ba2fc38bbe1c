//! Which jobs a list is about, as the parameters of a query.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{
        ArrayBuilder, KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat,
        path::{Parameter, ParameterIn},
        schema::{AdditionalProperties, AllOfBuilder, Type},
    },
};

use super::{
    described::{cursor, line, moment as any_moment, number, optional, owner, text as any_text, words},
    problem::{Kind, Problem},
    request::{MAX_LIMIT, Parameters, flag, parsed},
};
use crate::{
    cursor::JobCursor,
    job::{Effect, ErrorKind, HeldReason, State},
    job_json::{Field, Fields},
    store::{BadFilter, FilterJson, JobFilter, Place},
};

/// How far back a list goes that names no `since`.
const WINDOW: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A page of a list.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) filter: JobFilter,
    pub(super) before: Option<Place>,
    pub(super) limit: usize,
    pub(super) fields: Fields,
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
        let text = |value: &str| Ok(value.to_owned());
        let asked = FilterJson {
            state: query.one("state", text)?,
            owner: query.one("owner", text)?,
            tool: query.one("tool", text)?,
            toolkit: query.one("toolkit", text)?,
            queue: query.one("queue", text)?,
            tag: Some(query.all("tag")),
            since: query.one("since", text)?,
            until: query.one("until", text)?,
            error_kind: query.one("error_kind", text)?,
            held_reason: query.one("held_reason", text)?,
            outcome_unknown: query.one("outcome_unknown", flag)?,
            version: query.one("version", text)?,
            effect: query.one("effect", text)?,
            batch: query.one("batch", text)?,
        };
        let bad = |BadFilter { field, why }| {
            Problem::new(Kind::BadRequest, format!("the parameter `{field}`: {why}"))
        };
        let mut filter = asked.filter().map_err(bad)?;
        filter.since.get_or_insert(now - WINDOW);
        let before = query.one("cursor", parsed)?.map(|cursor: JobCursor| cursor.0);
        let limit = query.limit()?;
        let fields = query.one("fields", parsed)?.unwrap_or_default();
        parameters.end()?;
        Ok(Self { filter, before, limit, fields })
    }

    pub(super) fn window(&self) -> Window {
        Window { since: self.filter.since, until: self.filter.until }
    }
}

/// The fields of a filter: their names, what they may be, and what jobs they mean.
fn fields() -> Vec<(&'static str, RefOr<Schema>, &'static str)> {
    let flag = ObjectBuilder::new().schema_type(Type::Boolean);
    let tag = any_text().pattern(Some(r"^[^=\u0000-\u001f\u007f-\u009f]*=[^\u0000-\u001f\u007f-\u009f]*$"));
    // Only words that this version knows, unlike what it may read from rows of a newer one.
    vec![
        ("state", words(State::WORDS).into(), "In this state."),
        ("owner", owner().into(), "Of this owner: `user:ID` or `org:ID`."),
        ("tool", line().into(), "Of this tool."),
        ("toolkit", line().into(), "Of this toolkit."),
        ("queue", any_text().pattern(Some("^[a-z0-9_.-]{1,64}$")).into(), "In this queue."),
        (
            "tag",
            ArrayBuilder::new().items(tag).into(),
            "With this tag, `NAME=VALUE`; may be there more than once.",
        ),
        ("since", any_moment().into(), "Created then or later. A list without it goes back seven days."),
        ("until", any_moment().into(), "Created before then."),
        ("error_kind", words(ErrorKind::WORDS).into(), "With an error of this kind."),
        ("held_reason", words(HeldReason::WORDS).into(), "Held for this reason."),
        ("outcome_unknown", flag.into(), "Only those with an unknown outcome, with `true`."),
        ("version", line().into(), "Bound to this version of the toolkit."),
        ("effect", words(Effect::WORDS).into(), "With this effect."),
        (
            "batch",
            any_text().format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid))).into(),
            "Enqueued by this batch.",
        ),
    ]
}

impl IntoParams for Wanted {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let query = |(name, schema, description)| optional(ParameterIn::Query, name, schema, description);
        let mut parameters: Vec<_> = fields().into_iter().map(query).collect();
        parameters.push(query((
            "cursor",
            cursor(JobCursor::pattern()).into(),
            "Where to go on: the `next` of the page before.",
        )));
        parameters.push(query((
            "limit",
            number(1, MAX_LIMIT).into(),
            "The most jobs of the page. 50 without it.",
        )));
        parameters
    }
}

/// The schema of a filter in a body.
#[derive(Debug)]
pub(super) struct FilterBody;

impl ToSchema for FilterBody {}

impl PartialSchema for FilterBody {
    fn schema() -> RefOr<Schema> {
        let described =
            |schema, description: &str| AllOfBuilder::new().item(schema).description(Some(description));
        let mut body = ObjectBuilder::new()
            .description(Some(
                "Which jobs are meant. The fields are those of the parameters of `GET /v1/jobs`.",
            ))
            .additional_properties(Some(AdditionalProperties::FreeForm(false)));
        for (name, schema, description) in fields() {
            body = body.property(name, described(schema, description));
        }
        body.into()
    }
}

/// The parameter that asks for what is left out otherwise.
#[derive(Debug)]
pub(super) struct Asked;

impl IntoParams for Asked {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let words = Field::WORDS.join("|");
        let fields = any_text().pattern(Some(format!("^({words})(,({words}))*$")));
        let what = "What to tell besides, with commas between: `arguments`, `text`, `result`. A page of a list that would be \
                    too large by that ends before, with a `next`.";
        vec![optional(ParameterIn::Query, "fields", fields, what)]
    }
}
