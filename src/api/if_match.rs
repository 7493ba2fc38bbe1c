//! The header `If-Match`, which makes a request one about a job as it was read.

use axum::http::{HeaderMap, header};
use utoipa::{
    IntoParams,
    openapi::path::{Parameter, ParameterIn},
};

use super::{
    described::{line, optional},
    known::etag,
    problem::{Kind, Problem},
    request::text,
};
use crate::store::JobView;

/// The tags of the header, one of which has to be that of the job, where there is one.
#[derive(Debug)]
pub(super) struct IfMatch(Option<Vec<String>>);

impl IntoParams for IfMatch {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let tag = line().pattern(Some(r#"^(\*|"[0-9a-f]{32}")$"#));
        let what = "The `ETag` with which the job was read. A job that is another one by now stays as it is, with 412.";
        vec![optional(ParameterIn::Header, "If-Match", tag, what)]
    }
}

impl IfMatch {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(tags) = text(headers, header::IF_MATCH)? else { return Ok(Self(None)) };
        let tags: Vec<String> = tags.split(',').map(|tag| tag.trim().to_owned()).collect();
        // A weak one, such as `W/"1"`, matches nothing.
        let is_tag =
            |tag: &String| tag == "*" || tag.ends_with('"') && tag.trim_end_matches('"').contains('"');
        if tags.iter().all(is_tag) {
            return Ok(Self(Some(tags)));
        }
        Err(Problem::new(
            Kind::BadRequest,
            "the header `If-Match` must be the `ETag` with which the job was read",
        ))
    }

    /// Whether the request may be about this job.
    pub(super) fn is_of(&self, job: &JobView) -> bool {
        self.0.as_ref().is_none_or(|tags| tags.iter().any(|tag| tag == "*" || *tag == etag(job)))
    }

    /// Whether the request is about certain forms of the job: `*` is any.
    pub(super) fn names_forms(&self) -> bool {
        self.0.as_ref().is_some_and(|tags| tags.iter().all(|tag| tag != "*"))
    }

    /// The answer where the job is not the one that was read.
    pub(super) fn is_another() -> Problem {
        Problem::new(
            Kind::EditedMeanwhile,
            "the job is not as it was read with this `ETag`: it was changed, claimed or decided about; read it again",
        )
    }
}
