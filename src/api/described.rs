//! Parts of the description of the API that handlers share: parameters, and the problems that a request may meet.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::json;
use utoipa::{
    IntoResponses, PartialSchema, ToSchema,
    openapi::{
        ArrayBuilder, ContentBuilder, HeaderBuilder, KnownFormat, ObjectBuilder, Ref, RefOr, Required,
        Response, ResponseBuilder, Schema, SchemaFormat,
        path::{Parameter, ParameterBuilder, ParameterIn},
        schema::{AdditionalProperties, AllOfBuilder, OneOfBuilder, Type},
    },
};

use super::{
    dry_run::DryRun,
    problem::{FieldError, Kind, PROBLEM_JSON, Problem},
};
use crate::{
    desk_json::BatchJson,
    job::{BatchId, JobId},
    job_json::Job,
};

/// A parameter of a query, or a header, that may be left out.
pub(super) fn optional(
    place: ParameterIn,
    name: &str,
    schema: impl Into<RefOr<Schema>>,
    description: &str,
) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(schema))
        .build()
}

pub(super) fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

/// Text without control characters.
pub(super) fn line() -> ObjectBuilder {
    text().pattern(Some(r"^[^\u0000-\u001f\u007f-\u009f]*$"))
}

/// One of these words.
pub(super) fn words(words: &'static [&'static str]) -> ObjectBuilder {
    text().enum_values(Some(words.iter().copied()))
}

/// The ID of a job or a batch.
pub(super) fn id() -> ObjectBuilder {
    text().format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)))
}

/// A time as in RFC 3339.
pub(super) fn moment() -> ObjectBuilder {
    text().format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
}

/// An owner, as `user:ID` or `org:ID`.
pub(super) fn owner() -> ObjectBuilder {
    text().pattern(Some(r"^(user|org):(?=.*\S)[^\u0000-\u001f\u007f-\u009f]{1,256}$"))
}

pub(super) fn number(least: usize, most: usize) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(least)).maximum(Some(most))
}

/// The place of the published schema of the envelope, which takes it in `document`.
#[derive(Debug, ToSchema)]
pub(super) struct Envelope;

/// A job, or only its ID for who may not read it.
#[derive(Debug)]
pub(super) struct JobOrId;

/// The same, or the answer of a dry run.
#[derive(Debug)]
pub(super) struct JobOrDryRun;

/// A batch, or only its ID for who may not read it.
#[derive(Debug)]
pub(super) struct BatchOrId;

impl ToSchema for BatchOrId {}

impl PartialSchema for BatchOrId {
    fn schema() -> RefOr<Schema> {
        or_id(BatchJson::name(), BatchId::name()).into()
    }
}

impl ToSchema for JobOrId {}

impl PartialSchema for JobOrId {
    fn schema() -> RefOr<Schema> {
        or_id(Job::name(), JobId::name()).into()
    }
}

impl ToSchema for JobOrDryRun {}

impl PartialSchema for JobOrDryRun {
    fn schema() -> RefOr<Schema> {
        or_id(Job::name(), JobId::name()).item(Ref::from_schema_name(DryRun::name())).into()
    }
}

fn or_id(whole: Cow<'static, str>, id: Cow<'static, str>) -> OneOfBuilder {
    let id = ObjectBuilder::new()
        .title(Some("Without the scope `read`"))
        .property("id", Ref::from_schema_name(id))
        .additional_properties(Some(AdditionalProperties::FreeForm(false)));
    OneOfBuilder::new().item(Ref::from_schema_name(whole)).item(id)
}

/// Where a list goes on, by the [pattern](crate::cursor::Cursor::pattern) of its cursors.
pub(super) fn cursor(pattern: String) -> ObjectBuilder {
    text().pattern(Some(pattern))
}

impl ToSchema for Problem {}

impl PartialSchema for Problem {
    fn schema() -> RefOr<Schema> {
        let mut kinds =
            OneOfBuilder::new().description(Some("What went wrong, for programs. These words stay."));
        for kind in Kind::ALL {
            let what = format!("{}: {}", kind.status().as_u16(), kind.title());
            kinds = kinds.item(text().enum_values(Some([kind.urn()])).description(Some(what)));
        }
        let status =
            ObjectBuilder::new().schema_type(Type::Integer).description(Some("The status code again."));
        ObjectBuilder::new()
            .description(Some("Why a request was not carried out (RFC 9457)."))
            .property("type", kinds)
            .property("title", text().description(Some("The same for each `type`.")))
            .property("status", status)
            .property("detail", text().description(Some("What to do, for people.")))
            .into()
    }
}

/// The answers with these problems, one a status.
fn problems(kinds: &[Kind]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status = BTreeMap::<u16, Vec<Kind>>::new();
    for kind in kinds {
        by_status.entry(kind.status().as_u16()).or_default().push(*kind);
    }
    by_status.into_iter().map(|(status, kinds)| (status.to_string(), problem(&kinds).into())).collect()
}

fn problem(kinds: &[Kind]) -> Response {
    let titles: Vec<_> = kinds.iter().map(|kind| format!("`{kind}`: {}", kind.title())).collect();
    let mut these =
        ObjectBuilder::new().property("type", text().enum_values(Some(kinds.iter().map(|kind| kind.urn()))));
    if kinds.iter().any(|kind| kind.may_be_about_fields()) {
        let errors = ArrayBuilder::new()
            .items(Ref::from_schema_name(FieldError::name()))
            .min_items(Some(1))
            .max_items(Some(100))
            .description(Some("What is wrong with which fields, where that is what is wrong."));
        these = these.property("errors", errors);
    }
    let schema = AllOfBuilder::new().item(Ref::from_schema_name(Problem::name())).item(these);
    let mut answer = ResponseBuilder::new()
        .description(titles.join("; "))
        .content(PROBLEM_JSON, ContentBuilder::new().schema(Some(schema)).build());
    if kinds.contains(&Kind::Unavailable) || kinds.contains(&Kind::TooManyRequests) {
        let after = HeaderBuilder::new()
            .schema(number(1, 60))
            .description(Some("When to send it again, in seconds."));
        answer = answer.header("Retry-After", after.build());
    }
    if kinds.contains(&Kind::Unauthorized) {
        answer = answer.header("WWW-Authenticate", HeaderBuilder::new().schema(text()).build());
    }
    answer.build()
}

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident: $($kind:ident)*;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                problems(&[$(Kind::$kind,)*])
            }
        }
    )*};
}

problems! {
    /// What any request may meet.
    OfAnyRequest: Unauthorized Forbidden ForeignOrigin TooManyRequests Busy Internal Unavailable;
    /// What a request may meet that needs no key.
    OfTheDescription: Internal;
    /// What a request may meet that has parameters or a body.
    OfItsContent: BadRequest;
    /// What a request with a body may meet.
    OfItsBody: Timeout TooLarge UnsupportedMediaType;
    /// What a request about one job or one key may meet.
    OfOne: NotFound;
    /// What a new job may meet.
    OfANewJob: InvalidJob IdConflict KeyConflict NoToolApi;
    /// What a request for events may meet.
    OfEvents: NotRecorded EventsRemoved;
    /// What a request may meet that asks for callbacks.
    OfCallbacks: NotRecorded;
    /// What a new batch may meet.
    OfABatch: WrongState NotRecorded;
    /// What the items of a batch may meet.
    OfItsItems: InvalidBatch KeyConflict;
    /// What further items of a batch may meet.
    OfItsOrder: OutOfOrder WrongState;
    /// What a request may meet that shows an idempotency key.
    OfAKey: KeyConflict;
    /// What a request may meet that the state does not allow.
    OfTheState: WrongState;
    /// What a decision about a job may meet.
    OfADecision: WrongState EditedMeanwhile;
    /// What a request may meet that asks the tool API.
    OfTheToolApi: NoToolApi ToolApi;
    /// What a change of a job may meet.
    OfAnEdit: WrongState EditedMeanwhile InvalidJob;
    /// What running a job again may meet.
    OfRunningAgain: WrongState NeedsForce EditedMeanwhile;
}

/// An example of an ID.
pub(super) fn example_id() -> serde_json::Value {
    json!("0190b0a0-0000-7000-8000-000000000001")
}
