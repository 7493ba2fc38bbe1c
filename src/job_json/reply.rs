//! A job as apps are answered over AMQP.

use serde::Serialize;

use super::{JobJson, whole};
use crate::{
    job::{JobId, ReplyKind},
    store::JobView,
};

/// What an app is told of a job: the same as everywhere, with the kind of the reply.
#[derive(Serialize)]
struct ReplyJson<'a> {
    reply: ReplyKind,
    #[serde(flatten)]
    job: JobJson<'a>,
    result_at: Option<ResultAt>,
}

/// Where a result is that the broker does not take.
#[derive(Serialize)]
struct ResultAt {
    /// The path of the HTTP API.
    path: String,
    /// How long it is there.
    bytes: usize,
}

impl ResultAt {
    fn new(id: JobId, bytes: usize) -> Self {
        Self { path: format!("/v1/jobs/{id}"), bytes }
    }
}

/// A reply of this kind about a job.
pub fn reply_json(kind: ReplyKind, job: &JobView) -> impl Serialize {
    ReplyJson { reply: kind, job: whole(job, None), result_at: None }
}

/// A job as callbacks tell of it.
#[derive(Serialize)]
struct CallbackJobJson<'a> {
    #[serde(flatten)]
    job: JobJson<'a>,
    result_at: Option<ResultAt>,
}

/// A job as callbacks tell of it: as a reply does, and so with where the result is that was `left_out`, of so many bytes.
pub fn callback_job_json(job: &JobView, left_out: Option<usize>) -> impl Serialize {
    CallbackJobJson {
        job: whole(job, None),
        result_at: left_out.map(|bytes| ResultAt::new(job.spec.id, bytes)),
    }
}

/// The same without the result, with where that is; `None` if there is none.
pub fn reply_without_result_json(kind: ReplyKind, job: &JobView) -> Option<impl Serialize> {
    let bytes = job.result.as_ref()?.get().len();
    let whole = JobJson { result: Some(None), ..whole(job, None) };
    Some(ReplyJson { reply: kind, job: whole, result_at: Some(ResultAt::new(job.spec.id, bytes)) })
}
