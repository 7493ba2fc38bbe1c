//! The schemas of jobs as JSON, made of the types that are serialized, so that a field is described where it is.

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Object, RefOr, Schema},
};

use super::{JobJson, more::MoreJson};

/// The keys of a job that a list leaves out.
const LEFT_OUT_OF_LISTS: [&str; 4] = ["result", "attempts", "history", "known_as"];

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
        described(job, "A job with its result, its attempts and its history, without its input.")
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
        described(job, "A job in a list, without its result and its past.")
    }
}

impl ToSchema for JobSummary {
    fn schemas(schemas: &mut Named) {
        JobJson::schemas(schemas);
    }
}

/// Every key is always there, `null` where nothing is known.
fn described(mut object: Object, description: &str) -> RefOr<Schema> {
    object.required = object.properties.keys().cloned().collect();
    object.description = Some(description.to_owned());
    Schema::Object(object).into()
}

fn object(schema: RefOr<Schema>) -> Object {
    match schema {
        RefOr::T(Schema::Object(object)) => object,
        // What derives its schema from a struct is an object.
        _ => Object::new(),
    }
}
