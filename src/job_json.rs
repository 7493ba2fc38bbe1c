//! Jobs as JSON, the same wherever they leave errand: the command line and replies to apps.
//!
//! The names here are an interface. Every key is always there, `null` where nothing is known, and a
//! result is passed on verbatim.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    job::{AttemptOutcome, HeldReason, JobError, JobId, Owner, RequestId, State},
    store::{AttemptView, JobView},
};

/// A job with its result and its attempts; `attempts` is `null` where they were not asked for.
pub fn job_json<'a>(job: &'a JobView, attempts: Option<&'a [AttemptView]>) -> impl Serialize + use<'a> {
    JobJson {
        result: Some(job.result.as_deref()),
        attempts: Some(attempts.map(|all| all.iter().map(attempt).collect())),
        ..summary(job)
    }
}

/// A job without the keys `result` and `attempts`, for lists.
pub fn job_summary_json<'a>(job: &'a JobView) -> impl Serialize + use<'a> {
    summary(job)
}

#[derive(Serialize)]
struct JobJson<'a> {
    id: JobId,
    state: State,
    held_reason: Option<HeldReason>,
    owner: OwnerJson<'a>,
    requested_by: Option<&'a str>,
    tool: &'a str,
    toolkit: Option<&'a str>,
    version: Option<&'a str>,
    pinned_by: Option<&'a str>,
    connected_account_id: Option<&'a str>,
    queue: &'a str,
    created_at: Timestamp,
    finished_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Option<&'a RawValue>>,
    error: Option<&'a JobError>,
    log_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<Option<Vec<AttemptJson<'a>>>>,
}

#[derive(Serialize)]
struct OwnerJson<'a> {
    kind: &'static str,
    id: &'a str,
}

#[derive(Serialize)]
struct AttemptJson<'a> {
    number: u32,
    request_id: RequestId,
    outcome: Option<AttemptOutcome>,
    http_status: Option<u16>,
    log_id: Option<&'a str>,
    version: Option<&'a str>,
    started_at: Timestamp,
    finished_at: Option<Timestamp>,
}

fn summary(job: &JobView) -> JobJson<'_> {
    let binding = job.binding.as_ref();
    JobJson {
        id: job.spec.id,
        state: job.state,
        held_reason: job.held_reason,
        owner: owner(&job.spec.owner),
        requested_by: job.spec.requested_by.as_deref(),
        tool: &job.spec.tool,
        toolkit: binding.map(|binding| binding.toolkit.as_str()),
        version: binding.map(|binding| binding.version.as_str()),
        pinned_by: binding.map(|binding| binding.pinned_by.as_str()),
        connected_account_id: match binding {
            Some(binding) => binding.account.as_deref(),
            None => job.spec.connected_account_id.as_deref(),
        },
        queue: job.spec.queue.as_str(),
        created_at: job.created_at,
        finished_at: job.finished_at,
        result: None,
        error: job.error.as_ref(),
        log_id: job.log_id.as_deref(),
        attempts: None,
    }
}

fn owner(owner: &Owner) -> OwnerJson<'_> {
    OwnerJson { kind: owner.kind().as_str(), id: owner.id() }
}

fn attempt(attempt: &AttemptView) -> AttemptJson<'_> {
    AttemptJson {
        number: attempt.number,
        request_id: attempt.request_id,
        outcome: attempt.outcome,
        http_status: attempt.http_status,
        log_id: attempt.log_id.as_deref(),
        version: attempt.version.as_deref(),
        started_at: attempt.started_at,
        finished_at: attempt.finished_at,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::job::{Arrival, Binding, Effect, ErrorKind, PinnedBy, decode};

    const ID: &str = "0190b0a0-0000-7000-8000-000000000001";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_760_000_000 + second).unwrap()
    }

    fn waiting() -> JobView {
        let body = format!(r#"{{"id":"{ID}","org_id":"org-1","tool":"GITHUB_GET_REPO","arguments":{{}}}}"#);
        let queue = "bulk".parse().unwrap();
        let arrival = Arrival::new(&queue);
        JobView {
            spec: Arc::new(decode(body.as_bytes(), &arrival).unwrap()),
            state: State::Available,
            held_reason: None,
            binding: None,
            created_at: at(0),
            due_at: None,
            check_at: None,
            started_at: None,
            finished_at: None,
            result: None,
            error: None,
            log_id: None,
            attempt: 0,
            spent: 0,
            cancel_requested: false,
        }
    }

    fn done() -> JobView {
        JobView {
            state: State::Succeeded,
            binding: Some(Binding {
                toolkit: "github".to_owned(),
                version: "20251027_00".to_owned(),
                pinned_by: PinnedBy::Owner,
                account: Some("ca_1".to_owned()),
                effect: Effect::Once,
            }),
            finished_at: Some(at(9)),
            result: Some(
                RawValue::from_string(r#"{"n": 1.50, "big":123456789012345678901}"#.into()).unwrap().into(),
            ),
            log_id: Some("log_1".to_owned()),
            attempt: 1,
            spent: 1,
            ..waiting()
        }
    }

    #[test]
    fn a_finished_job_has_these_keys_and_its_result_verbatim() {
        let attempts = [AttemptView {
            number: 1,
            request_id: RequestId(ID.parse().unwrap()),
            outcome: Some(AttemptOutcome::Succeeded),
            http_status: Some(200),
            log_id: Some("log_1".to_owned()),
            version: Some("20251027_00".to_owned()),
            error: None,
            started_at: at(1),
            finished_at: Some(at(9)),
        }];
        let json = serde_json::to_string(&job_json(&done(), Some(&attempts))).unwrap();
        insta::assert_snapshot!(json.replace(",\"", ",\n\""), @r#"
        {"id":"0190b0a0-0000-7000-8000-000000000001",
        "state":"succeeded",
        "held_reason":null,
        "owner":{"kind":"org",
        "id":"org-1"},
        "requested_by":null,
        "tool":"GITHUB_GET_REPO",
        "toolkit":"github",
        "version":"20251027_00",
        "pinned_by":"owner",
        "connected_account_id":"ca_1",
        "queue":"bulk",
        "created_at":"2025-10-09T08:53:20Z",
        "finished_at":"2025-10-09T08:53:29Z",
        "result":{"n": 1.50, "big":123456789012345678901},
        "error":null,
        "log_id":"log_1",
        "attempts":[{"number":1,
        "request_id":"0190b0a0-0000-7000-8000-000000000001",
        "outcome":"succeeded",
        "http_status":200,
        "log_id":"log_1",
        "version":"20251027_00",
        "started_at":"2025-10-09T08:53:21Z",
        "finished_at":"2025-10-09T08:53:29Z"}]}
        "#);
    }

    #[test]
    fn a_waiting_job_has_the_same_keys_with_null() {
        let keys = |json: String| {
            let value: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&json).unwrap();
            value.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        let job = waiting();
        let waiting = serde_json::to_string(&job_json(&job, None)).unwrap();
        assert_eq!(
            keys(waiting.clone()),
            keys(serde_json::to_string(&job_json(&done(), Some(&[]))).unwrap())
        );
        insta::assert_snapshot!(waiting.replace(",\"", ",\n\""), @r#"
        {"id":"0190b0a0-0000-7000-8000-000000000001",
        "state":"available",
        "held_reason":null,
        "owner":{"kind":"org",
        "id":"org-1"},
        "requested_by":null,
        "tool":"GITHUB_GET_REPO",
        "toolkit":null,
        "version":null,
        "pinned_by":null,
        "connected_account_id":null,
        "queue":"bulk",
        "created_at":"2025-10-09T08:53:20Z",
        "finished_at":null,
        "result":null,
        "error":null,
        "log_id":null,
        "attempts":null}
        "#);
    }

    #[test]
    fn a_list_leaves_out_results_and_attempts() {
        let mut job = done();
        job.error =
            Some(JobError::new(ErrorKind::ToolFailed, "no").with_code(Some(7), Some("Slug".to_owned())));
        let json = serde_json::to_string(&job_summary_json(&job)).unwrap();
        assert!(!json.contains("\"result\"") && !json.contains("\"attempts\""), "{json}");
        assert!(
            json.contains(r#""error":{"kind":"tool_failed","message":"no","code":7,"slug":"Slug"}"#),
            "{json}"
        );
    }
}
