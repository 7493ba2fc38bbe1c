//! One round of look-ups in a log that changes between two looks.

use std::{collections::VecDeque, sync::Arc, sync::Mutex, time::Duration};

use errand::{
    backoff::RECONNECT,
    clock,
    job::{AttemptOutcome, Binding, Effect, Ending, ErrorKind, JobId, RetryPolicy, State},
    maintenance::verify::{Options, Policy, Verify},
    queue::embedded::EmbeddedQueue,
    services::Services,
    store::Claim,
};
use errand_testbed::scripted_api::{Answer, Request, ScriptedApi};
use serde_json::{Value, json};

use crate::{
    jobs::claim,
    store_contract::{RunningJob, TestStore, binding, error, job, running, succeed},
    tool_api::client,
};

const OPTIONS: Options = Options {
    poll: Duration::from_secs(1),
    batch: 10,
    policy: Policy { intervals: RECONNECT, log_delay: Duration::ZERO, give_up: Duration::from_secs(3_600) },
    retry: RetryPolicy {
        intervals: RECONNECT,
        max_attempts: 5,
        max_retry_after: Duration::from_secs(1),
        max_postponed: Duration::from_secs(1),
    },
    timeout: Duration::from_secs(60),
};

/// A log that has an entry for every call, and shows everything or nothing, look after look.
async fn flickering_log(looks: &[bool]) -> ScriptedApi {
    let looks = Mutex::new(VecDeque::from(looks.to_vec()));
    let look = move |request: &Request| {
        let search: Value = serde_json::from_str(&request.body).unwrap();
        let request_id = &search["filters"][0]["value"];
        let entry = json!({"id": "log_1", "status": "success", "context": {"request_id": request_id}});
        let sees = looks.lock().unwrap().pop_front().unwrap_or_default();
        let logs: Vec<Value> = sees.then_some(entry).into_iter().collect();
        Answer::new("200 OK", json!({"logs": logs, "next_cursor": null}).to_string())
    };
    ScriptedApi::responding(look).await
}

/// Runs a new `once` job to this end of its first attempt.
async fn ended(t: &TestStore, outcome: AttemptOutcome, ending: Ending) -> JobId {
    let spec = job(json!({}));
    let binding = Binding { effect: Effect::Once, ..binding("20260101_00") };
    let claim = Claim { binding: Some(binding), ..claim(&spec) };
    let receipt = running(t.claim(&claim).await);
    let run = RunningJob { id: spec.id, request_id: claim.request_id, receipt };
    t.finish(&run.end(ending, outcome)).await;
    spec.id
}

async fn unknown(t: &TestStore, kind: ErrorKind) -> JobId {
    let unknown = Ending::Verify { after: Duration::ZERO, error: error(kind) };
    ended(t, AttemptOutcome::Unknown, unknown).await
}

/// The state of a job with an unknown outcome after one round, in which the log is looked at so often.
async fn after_looks(looks: &[bool]) -> State {
    let t = TestStore::sqlite().await;
    let job = unknown(&t, ErrorKind::UnknownOutcome).await;
    ended(&t, AttemptOutcome::Succeeded, succeed("null")).await;
    round(&t, OPTIONS, looks).await;
    t.state(job).await
}

/// One round about one job, in which the log is looked at so often.
async fn round(t: &TestStore, options: Options, looks: &[bool]) {
    let log = flickering_log(looks).await;
    let queue = Arc::new(EmbeddedQueue::new([], 1));
    let services = Services::new(t.store.clone(), queue, Arc::new(client(&log)), clock::system());
    assert_eq!(Verify::new(&services, options).run_once().await.unwrap(), 1);
    assert_eq!(log.seen().len(), looks.len());
}

#[tokio::test]
async fn a_log_that_goes_blind_in_the_middle_of_a_round_proves_nothing() {
    assert_eq!(after_looks(&[true]).await, State::Succeeded);
    assert_eq!(after_looks(&[false, false]).await, State::Held, "blind");
    assert_eq!(after_looks(&[false, true, true]).await, State::Succeeded, "not any more");
    assert_eq!(after_looks(&[false, true, false, false]).await, State::Held, "blind again");
    let absent = [false, true, false, true];
    assert_eq!(after_looks(&absent).await, State::Retryable, "which an absent entry looks like");
}

/// With the key of another project errand makes calls that its log shows, and not those of before.
#[tokio::test]
async fn a_log_of_another_project_proves_nothing() {
    let t = TestStore::sqlite().await;
    ended(&t, AttemptOutcome::Succeeded, succeed("null")).await;
    let job = unknown(&t, ErrorKind::UnknownOutcome).await;
    ended(&t, AttemptOutcome::Succeeded, succeed("null")).await;
    round(&t, OPTIONS, &[false, false]).await;
    assert_eq!(t.state(job).await, State::Held, "the log does not show the call of before");
    t.execute("update jobs set check_at = 0 * check_at").await;
    round(&t, OPTIONS, &[false, true, true, false, true]).await;
    assert_eq!(t.state(job).await, State::Retryable);
}

/// Full batches follow each other at once, which a log that throttles must not meet with.
#[tokio::test]
async fn a_log_that_throttles_is_not_asked_for_as_long_as_it_wants() {
    let t = TestStore::sqlite().await;
    for _ in 0..3 {
        unknown(&t, ErrorKind::UnknownOutcome).await;
    }
    let throttled = Answer::new("429 Slow Down", "{}").header("retry-after", "9");
    let log = ScriptedApi::responding(move |_| throttled.clone()).await;
    let queue = Arc::new(EmbeddedQueue::new([], 1));
    let services = Services::new(t.store.clone(), queue, Arc::new(client(&log)), clock::system());
    let verify = Verify::new(&services, Options { batch: 1, ..OPTIONS });
    assert_eq!(verify.run_once().await.unwrap(), 1);
    for _ in 0..3 {
        assert_eq!(verify.run_once().await.unwrap(), 0);
    }
    assert_eq!(log.seen().len(), 1);
    let other = Verify::new(&services, OPTIONS);
    assert_eq!(other.run_once().await.unwrap(), 2, "the others are still to be looked up");
}

/// A log that stops right after the call in doubt would have no entry of it, because the call may end later.
#[tokio::test]
async fn a_log_that_stops_before_the_call_must_have_ended_proves_nothing() {
    const HOUR: Duration = Duration::from_secs(3_600);
    let policy = Policy { log_delay: HOUR, give_up: HOUR * 24, ..OPTIONS.policy };
    let options = Options { policy, timeout: HOUR, ..OPTIONS };
    for (kind, minutes) in [(ErrorKind::UnknownOutcome, [29, 32]), (ErrorKind::WorkerLost, [89, 32])] {
        let t = TestStore::sqlite().await;
        let later = async |minutes: u64| {
            let by = minutes * 60_000_000;
            let times =
                "created_at = created_at - @, unknown_since = unknown_since - @, check_at = 0 * check_at";
            t.execute(&format!("update jobs set {}", times.replace('@', &by.to_string()))).await;
        };
        let job = unknown(&t, kind).await;
        later(minutes[0]).await;
        ended(&t, AttemptOutcome::Succeeded, succeed("null")).await;
        later(minutes[1]).await;
        round(&t, options, &[false]).await;
        assert_eq!(t.state(job).await, State::Held, "no success is late enough: {kind}");
        ended(&t, AttemptOutcome::Succeeded, succeed("null")).await;
        later(1).await;
        round(&t, options, &[false, false]).await;
        assert_eq!(t.state(job).await, State::Held, "the log does not show it: {kind}");
        later(1).await;
        round(&t, options, &[false, true, false, true]).await;
        assert_eq!(t.state(job).await, State::Retryable, "the log works, and the call has ended: {kind}");
    }
}
