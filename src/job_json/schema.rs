//! The schemas of jobs as JSON, made of the types that are serialized, so that a field is described where it is.

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Object, ObjectBuilder, RefOr, Schema, extensions::Extensions},
};

use super::{Field, JobJson, more::MoreJson};

/// Marks a key that is there only where the parameter of this name asks for it.
pub const ASKED_FOR: &str = "x-asked-for-by";

/// The keys of a job that a list leaves out.
const LEFT_OUT_OF_LISTS: [&str; 4] = ["result", "attempts", "history", "known_as"];

/// What a list tells of what is asked about a job beside its row.
const OF_LISTS_TOO: [&str; 2] = ["attempt", "cancel_requested"];

/// The schema of a job with all that is known of it, but without its input.
#[derive(Debug)]
pub struct Job;

/// The schema of a job in a list.
#[derive(Debug)]
pub struct JobSummary;

type Named = Vec<(String, RefOr<Schema>)>;

impl PartialSchema for Job {
    fn schema() -> RefOr<Schema> {
        let mut job = object(JobJson::schema());
        job.properties.append(&mut object(MoreJson::schema()).properties);
        let mut job = described(job, "A job with its result, its attempts and its history.");
        ask_for(&mut job, &[Field::Arguments, Field::Text]);
        Schema::Object(job).into()
    }
}

impl ToSchema for Job {
    fn schemas(schemas: &mut Named) {
        JobJson::schemas(schemas);
        MoreJson::schemas(schemas);
    }
}

impl PartialSchema for JobSummary {
    fn schema() -> RefOr<Schema> {
        let mut job = object(JobJson::schema());
        job.properties.retain(|key, _| !LEFT_OUT_OF_LISTS.contains(&key.as_str()));
        let more = object(MoreJson::schema()).properties;
        job.properties.extend(more.into_iter().filter(|(key, _)| OF_LISTS_TOO.contains(&key.as_str())));
        let mut job = described(job, "A job in a list, without its past.");
        ask_for(&mut job, Field::ALL);
        Schema::Object(job).into()
    }
}

impl ToSchema for JobSummary {
    fn schemas(schemas: &mut Named) {
        JobJson::schemas(schemas);
    }
}

/// Every key is always there, `null` where nothing is known.
fn described(mut object: Object, description: &str) -> Object {
    object.required = object.properties.keys().cloned().collect();
    object.description = Some(description.to_owned());
    object
}

/// Adds keys that the parameter `fields` asks for, which may be any JSON.
fn ask_for(object: &mut Object, fields: &[Field]) {
    for field in fields {
        let what = match field {
            Field::Arguments => "What the tool is called with, as it was sent.",
            Field::Text => "The same, where it is a text.",
            Field::Result => "The tool's output, verbatim; `null` unless the job has succeeded.",
        };
        let extensions = Extensions::builder().add(ASKED_FOR, "fields").build();
        let any = ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::SchemaType::AnyValue)
            .description(Some(format!("{what} Only where `fields` asks for it.")))
            .extensions(Some(extensions));
        object.properties.insert(field.as_str().to_owned(), any.into());
    }
}

fn object(schema: RefOr<Schema>) -> Object {
    match schema {
        RefOr::T(Schema::Object(object)) => object,
        // What derives its schema from a struct is an object.
        _ => Object::new(),
    }
}
