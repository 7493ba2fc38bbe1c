//! Jobs as JSON, the same wherever they leave errand: the command line and replies to apps.
//!
//! The names here are an interface. Every key is always there, `null` where nothing is known, and a
//! result is passed on verbatim. A reply has `reply` and `result_at` besides.

mod fields;
mod known;
mod more;
mod rejection;
mod reply;
mod schema;

use std::borrow::Cow;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use self::more::{MoreJson, more};
pub use self::{
    fields::{Field, Fields},
    known::KnownJob,
    rejection::rejection_json,
    reply::{callback_job_json, reply_json, reply_without_result_json},
    schema::{ASKED_FOR, Job, JobSummary},
};
use crate::{
    job::{BatchId, HeldReason, JobError, JobId, LookUps, Owner, State, unknown_outcome},
    store::{AttemptView, HistoryEntry, HistoryFact, JobView},
};

/// What is known of a job beside its row.
#[derive(Debug, Clone, Copy)]
pub struct Past<'a> {
    pub attempts: &'a [AttemptView],
    pub history: &'a [HistoryEntry],
    /// Other IDs under which it was sent.
    pub known_as: &'a [JobId],
}

/// What is known of where a job is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Around<'a> {
    /// The name of the worker that runs it or ran it last.
    pub worker_name: Option<&'a str>,
    /// Since when its queue is paused, while it waits to run.
    pub queue_paused_since: Option<Timestamp>,
}

/// A job with its result and its past, whose keys are `null` where it was not asked for.
pub fn job_json<'a>(job: &'a JobView, past: Option<Past<'a>>) -> impl Serialize + use<'a> {
    whole(job, past)
}

fn whole<'a>(job: &'a JobView, past: Option<Past<'a>>) -> JobJson<'a> {
    JobJson {
        result: Some(job.result.as_deref()),
        error: told_error(job, past.map(|past| past.history).unwrap_or_default()),
        attempts: Some(past.map(|past| past.attempts)),
        history: Some(past.map(|past| past.history)),
        known_as: Some(past.map(|past| past.known_as)),
        ..summary(job)
    }
}

/// A job as the command line shows it: all that is known of it. Its input is left out unless `fields` ask for it.
pub fn whole_job_json<'a>(
    job: &'a JobView,
    past: Past<'a>,
    around: Around<'a>,
    fields: Fields,
) -> impl Serialize + use<'a> {
    WholeJobJson {
        job: whole(job, Some(past)),
        more: Some(more(job, around)),
        attempt: None,
        cancel_requested: None,
        arguments: fields.has(Field::Arguments).then_some(job.spec.arguments.as_deref()),
        text: fields.has(Field::Text).then_some(job.spec.text.as_deref()),
    }
}

/// A job as lists show it, with these fields besides.
pub fn job_fields_json<'a>(job: &'a JobView, fields: Fields) -> impl Serialize + use<'a> {
    let result = fields.has(Field::Result).then_some(job.result.as_deref());
    WholeJobJson {
        job: JobJson { result, ..summary(job) },
        more: None,
        attempt: Some(job.attempt),
        cancel_requested: Some(job.cancel_requested),
        arguments: fields.has(Field::Arguments).then_some(job.spec.arguments.as_deref()),
        text: fields.has(Field::Text).then_some(job.spec.text.as_deref()),
    }
}

/// A job without the keys `result`, `attempts`, `history` and `known_as`, for lists.
pub fn job_summary_json<'a>(job: &'a JobView) -> impl Serialize + use<'a> {
    job_fields_json(job, Fields::NONE)
}

/// The error of a job as a person reads it. That of a cancelled job is of the time before. Where a job is held because nobody knows what became of its call, it
/// says who looks for the call, and what the look-ups found as far as the history is given.
pub fn told_error<'a>(job: &'a JobView, history: &[HistoryEntry]) -> Option<Cow<'a, JobError>> {
    let error = job.error.as_ref()?;
    if job.state == State::Cancelled {
        // It may say what was going to happen.
        let message = format!("cancelled; before that: {}", error.message());
        return Some(Cow::Owned(error.clone().with_message(message)));
    }
    let (Some(HeldReason::UnknownOutcome), Some(request_id)) = (job.held_reason, job.request_id) else {
        return Some(Cow::Borrowed(error));
    };
    let (is_looked_up, look_ups) = (job.check_at.is_some(), look_ups(job, history));
    let sentence = unknown_outcome(error.message(), request_id, is_looked_up, look_ups);
    Some(Cow::Owned(error.clone().with_message(sentence)))
}

/// The look-ups of the job's last call.
fn look_ups<'a>(job: &JobView, history: &'a [HistoryEntry]) -> Option<LookUps<'a>> {
    let unknown_since = job.unknown_since?;
    history.iter().rev().find_map(|entry| match &entry.fact {
        HistoryFact::LookedUp { found, detail } if entry.attempt == Some(job.attempt) => Some(LookUps {
            count: job.checks,
            unknown_for: entry.at.duration_since(unknown_since).try_into().unwrap_or_default(),
            last_at: entry.at,
            last: *found,
            detail: detail.as_deref(),
        }),
        _ => None,
    })
}

#[derive(Serialize, ToSchema)]
struct JobJson<'a> {
    id: JobId,
    state: State,
    held_reason: Option<HeldReason>,
    owner: &'a Owner,
    /// Who asked, when the job acts for an organization.
    requested_by: Option<&'a str>,
    tool: &'a str,
    /// What was decided once: the toolkit, its version, and where that came from.
    toolkit: Option<&'a str>,
    version: Option<&'a str>,
    pinned_by: Option<&'a str>,
    /// The account that is used; before that is decided, the one that was asked for.
    connected_account_id: Option<&'a str>,
    queue: &'a str,
    /// The batch that enqueued the job.
    batch_id: Option<BatchId>,
    created_at: Timestamp,
    /// Since when the job is due, or was before it ran.
    first_due_at: Option<Timestamp>,
    /// While the job waits: when the relay publishes it (again).
    due_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    /// The tool's output, verbatim; `null` unless the job has succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value)]
    result: Option<Option<&'a RawValue>>,
    /// Also while a failed attempt is being retried.
    #[schema(value_type = Option<JobError>)]
    error: Option<Cow<'a, JobError>>,
    /// Names the last call in the tool API's execution log.
    log_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<AttemptView>)]
    attempts: Option<Option<&'a [AttemptView]>>,
    /// The rare decisions, oldest first, up to the newest 1,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<HistoryEntry>)]
    history: Option<Option<&'a [HistoryEntry]>>,
    /// Other IDs under which the job was sent again with its `idempotency_key`, up to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<JobId>)]
    known_as: Option<Option<&'a [JobId]>>,
}

#[derive(Serialize)]
struct WholeJobJson<'a> {
    #[serde(flatten)]
    job: JobJson<'a>,
    #[serde(flatten)]
    more: Option<MoreJson<'a>>,
    /// In a list, what is told of `more`.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel_requested: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<Option<&'a RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Option<&'a str>>,
}

fn summary(job: &JobView) -> JobJson<'_> {
    let binding = job.binding.as_ref();
    JobJson {
        id: job.spec.id,
        state: job.state,
        held_reason: job.held_reason,
        owner: &job.spec.owner,
        requested_by: job.spec.requested_by.as_deref(),
        tool: &job.spec.tool,
        toolkit: job.toolkit(),
        version: binding.map(|binding| binding.version.as_str()),
        pinned_by: binding.map(|binding| binding.pinned_by.as_str()),
        connected_account_id: match binding {
            Some(binding) => binding.account.as_deref(),
            None => job.spec.connected_account_id.as_deref(),
        },
        queue: job.spec.queue.as_str(),
        batch_id: job.batch,
        created_at: job.created_at,
        first_due_at: job.first_due_at,
        due_at: job.due_at,
        finished_at: job.finished_at,
        result: None,
        error: told_error(job, &[]),
        log_id: job.log_id.as_deref(),
        attempts: None,
        history: None,
        known_as: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::job::{
        Arrival, AttemptOutcome, Binding, Effect, ErrorKind, LookResult, PinnedBy, Release, RequestId, decode,
    };

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
            asked: None,
            state: State::Available,
            held_reason: None,
            binding: None,
            created_at: at(0),
            due_at: None,
            first_due_at: None,
            check_at: None,
            unknown_since: None,
            checks: 0,
            request_id: None,
            started_at: None,
            finished_at: None,
            result: None,
            error: None,
            log_id: None,
            attempt: 0,
            spent: 0,
            cancel_requested: false,
            publications: 0,
            waits_for: None,
            batch: None,
            worker: None,
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

    /// The JSON with a line for each key of the job and for each entry of a list.
    fn lines(json: &str) -> String {
        let (mut depth, mut before) = (0, ' ');
        let mut lines = String::new();
        for c in json.chars() {
            depth += i32::from(matches!(c, '{' | '[')) - i32::from(matches!(c, '}' | ']'));
            lines.push(c);
            if c == ',' && (depth == 1 || depth == 2 && before == '}') {
                lines.push('\n');
            }
            before = c;
        }
        lines
    }

    fn closed() -> HistoryFact {
        HistoryFact::LookedUp { found: LookResult::Closed, detail: Some("it says 503".to_owned()) }
    }

    #[test]
    fn a_finished_job_has_these_keys_and_its_result_verbatim() {
        let attempts = [AttemptView {
            number: 1,
            times: 1,
            request_id: RequestId(ID.parse().unwrap()),
            outcome: Some(AttemptOutcome::Succeeded),
            http_status: Some(200),
            log_id: Some("log_1".to_owned()),
            version: Some("20251027_00".to_owned()),
            error: None,
            started_at: at(1),
            finished_at: Some(at(9)),
        }];
        let entry = |second, by: &str, attempt, fact| HistoryEntry {
            at: at(second),
            by: by.to_owned(),
            attempt,
            fact,
        };
        let account = "ca_0".to_owned();
        let outcome = AttemptOutcome::Succeeded;
        let history = [
            entry(2, "errand: worker", Some(1), HistoryFact::Held { reason: HeldReason::Connection }),
            entry(3, "alice", None, HistoryFact::Released { how: Release::Retry }),
            entry(3, "alice", None, HistoryFact::AccountForgotten { account }),
            entry(4, "errand: worker", Some(2), HistoryFact::Unknown),
            entry(5, "errand: look-up", Some(2), closed()),
            entry(6, "errand: look-up", Some(2), HistoryFact::Adopted { outcome }),
            entry(7, "bob", None, HistoryFact::Cancelled),
            entry(8, "bob", None, HistoryFact::Retried),
        ];
        let json = serde_json::to_string(&job_json(
            &done(),
            Some(Past { attempts: &attempts, history: &history, known_as: &[ID.parse().unwrap()] }),
        ))
        .unwrap();
        insta::assert_snapshot!(lines(&json), @r#"
        {"id":"0190b0a0-0000-7000-8000-000000000001",
        "state":"succeeded",
        "held_reason":null,
        "owner":{"kind":"org","id":"org-1"},
        "requested_by":null,
        "tool":"GITHUB_GET_REPO",
        "toolkit":"github",
        "version":"20251027_00",
        "pinned_by":"owner",
        "connected_account_id":"ca_1",
        "queue":"bulk",
        "batch_id":null,
        "created_at":"2025-10-09T08:53:20Z",
        "first_due_at":null,
        "due_at":null,
        "finished_at":"2025-10-09T08:53:29Z",
        "result":{"n": 1.50, "big":123456789012345678901},
        "error":null,
        "log_id":"log_1",
        "attempts":[{"number":1,"times":1,"request_id":"0190b0a0-0000-7000-8000-000000000001","outcome":"succeeded","http_status":200,"log_id":"log_1","version":"20251027_00","error_kind":null,"started_at":"2025-10-09T08:53:21Z","finished_at":"2025-10-09T08:53:29Z"}],
        "history":[{"at":"2025-10-09T08:53:22Z","by":"errand: worker","attempt":1,"kind":"held","reason":"connection"},
        {"at":"2025-10-09T08:53:23Z","by":"alice","attempt":null,"kind":"released","how":"retry"},
        {"at":"2025-10-09T08:53:23Z","by":"alice","attempt":null,"kind":"account_forgotten","account":"ca_0"},
        {"at":"2025-10-09T08:53:24Z","by":"errand: worker","attempt":2,"kind":"unknown"},
        {"at":"2025-10-09T08:53:25Z","by":"errand: look-up","attempt":2,"kind":"looked_up","found":"closed","detail":"it says 503"},
        {"at":"2025-10-09T08:53:26Z","by":"errand: look-up","attempt":2,"kind":"adopted","outcome":"succeeded"},
        {"at":"2025-10-09T08:53:27Z","by":"bob","attempt":null,"kind":"cancelled"},
        {"at":"2025-10-09T08:53:28Z","by":"bob","attempt":null,"kind":"retried"}],
        "known_as":["0190b0a0-0000-7000-8000-000000000001"]}
        "#);
    }

    #[test]
    fn the_schemas_name_the_keys_that_there_are() {
        use utoipa::{
            PartialSchema as _,
            openapi::{RefOr, Schema},
        };
        let keys = |json: &str| {
            let json: serde_json::Map<_, _> = serde_json::from_str(json).unwrap();
            json.keys().cloned().collect::<Vec<_>>()
        };
        let required = |schema| match schema {
            RefOr::T(Schema::Object(object)) => object.required,
            _ => panic!("no object"),
        };
        let job = done();
        let past = Past { attempts: &[], history: &[], known_as: &[] };
        let whole =
            serde_json::to_string(&whole_job_json(&job, past, Around::default(), Fields::NONE)).unwrap();
        assert_eq!(required(Job::schema()), keys(&whole));
        let summary = serde_json::to_string(&job_summary_json(&job)).unwrap();
        assert_eq!(required(JobSummary::schema()), keys(&summary));
    }

    #[test]
    fn the_error_of_a_cancelled_job_is_told_as_one_of_before() {
        let error = JobError::new(ErrorKind::NeedsConnection, "connect it, and the job goes on by itself");
        let job = JobView { state: State::Cancelled, error: Some(error), ..waiting() };
        let told = told_error(&job, &[]).unwrap();
        assert!(told.message().starts_with("cancelled; before that: connect it"), "{told:?}");
    }

    #[test]
    fn a_waiting_job_has_the_same_keys_with_null() {
        let object = |json: String| serde_json::from_str::<serde_json::Map<_, _>>(&json).unwrap();
        let waiting = object(serde_json::to_string(&job_json(&waiting(), None)).unwrap());
        let done = object(
            serde_json::to_string(&job_json(
                &done(),
                Some(Past { attempts: &[], history: &[], known_as: &[] }),
            ))
            .unwrap(),
        );
        assert!(waiting.keys().eq(done.keys()));
        let known = waiting.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key);
        assert_eq!(known.collect::<Vec<_>>(), ["created_at", "id", "owner", "queue", "state", "tool"]);
    }

    #[test]
    fn the_error_of_a_job_with_an_unknown_outcome_says_who_looks_and_what_was_found() {
        let request_id = RequestId(ID.parse().unwrap());
        let mut job = JobView {
            state: State::Held,
            held_reason: Some(HeldReason::UnknownOutcome),
            check_at: Some(at(99)),
            unknown_since: Some(at(0)),
            checks: 3,
            request_id: Some(request_id),
            error: Some(JobError::new(ErrorKind::UnknownOutcome, "no answer").with_code(Some(7), None)),
            attempt: 2,
            ..done()
        };
        let entry = |second, attempt| HistoryEntry {
            at: at(second),
            by: "errand: look-up".to_owned(),
            attempt: Some(attempt),
            fact: closed(),
        };
        let told = |job: &JobView, history: &[HistoryEntry]| {
            let error = told_error(job, history).unwrap().into_owned();
            assert_eq!((error.kind(), error.code()), (ErrorKind::UnknownOutcome, Some(7)));
            error.message().to_owned()
        };
        let before = told(&job, &[entry(9, 1)]);
        assert_eq!(
            before,
            format!(
                "no answer; errand looks for the request ID {ID} in the tool API's log and goes by what it finds"
            )
        );
        let found = "execution log: asked 3 times over 60 s, last at 2025-10-09T08:54:20Z: it could not be read, it says 503";
        let history = [entry(30, 2), entry(60, 2)];
        assert_eq!(told(&job, &history), format!("{before}; {found}; errand looks again"));
        job.check_at = None;
        assert_eq!(
            told(&job, &history),
            format!(
                "no answer; {found}; look there yourself for the request ID {ID}, then release the job with \
                 --succeeded, --failed or --retry"
            )
        );
        job.held_reason = None;
        assert_eq!(told(&job, &history), "no answer");
    }

    #[test]
    fn a_list_leaves_out_results_and_attempts() {
        let mut job = done();
        job.error =
            Some(JobError::new(ErrorKind::ToolFailed, "no").with_code(Some(7), Some("Slug".to_owned())));
        let json = serde_json::to_string(&job_summary_json(&job)).unwrap();
        for key in ["result", "attempts", "history", "known_as", "reply"] {
            assert!(!json.contains(&format!("\"{key}\"")), "{json}");
        }
        assert!(
            json.contains(r#""error":{"kind":"tool_failed","message":"no","code":7,"slug":"Slug"}"#),
            "{json}"
        );
    }
}
