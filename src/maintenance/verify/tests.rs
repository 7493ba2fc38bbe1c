use std::sync::Mutex;

use async_trait::async_trait;
use proptest::prelude::*;

use super::*;
use crate::{
    backoff::RECONNECT,
    clock,
    job::{self, Arrival, Attempt, Binding, Effect, JobId, JobSpec, PinnedBy, RequestId, State},
    queue::embedded::EmbeddedQueue,
    store::{
        Admin as _, Claim, Claimed, Claims as _, Finishes as _, JobControl as _,
        sqlite::{SqliteOptions, SqliteStore},
    },
    sync::lock,
    tool::{Account, ApiCheck, Call, ToolApi, ToolInfo},
};

const POLICY: Policy =
    Policy { intervals: RECONNECT, log_delay: Duration::from_secs(900), give_up: Duration::from_secs(3_600) };

fn looks() -> Vec<Look> {
    vec![Look::Unclear, Look::Absent, Look::Blind, Look::Closed("x".into())]
}

#[test]
fn only_a_settled_log_that_shows_our_calls_proves_that_a_call_never_arrived() {
    let next = |look, secs| POLICY.next(look, Duration::from_secs(secs), Duration::ZERO, 3, 0.5);
    assert!(matches!(next(Look::Absent, 899), Step::Again(_)));
    assert!(matches!(next(Look::Absent, 900), Step::NeverArrived));
    for look in [|| Look::Unclear, || Look::Blind, || Look::Closed("x".into())] {
        assert!(matches!(next(look(), 3_599), Step::Again(_)));
        assert!(matches!(next(look(), 3_600), Step::GiveUp), "a person decides");
    }
}

#[test]
fn the_log_settles_only_after_the_last_worker_stopped_waiting() {
    let waited = Duration::from_secs(5_000);
    let next = |look, secs| POLICY.next(look, Duration::from_secs(secs), waited, 3, 0.5);
    assert!(matches!(next(Look::Absent, 900), Step::Again(_)));
    assert!(matches!(next(Look::Absent, 5_899), Step::Again(_)), "even when others would be given up");
    assert!(matches!(next(Look::Absent, 5_900), Step::NeverArrived));
    assert!(matches!(next(Look::Blind, 3_600), Step::GiveUp));
}

/// A log that has an entry for every call, and shows everything or nothing, look after look.
#[derive(Debug)]
struct Flickering(Mutex<Vec<bool>>);

#[async_trait]
impl ToolApi for Flickering {
    async fn execution(&self, request_id: RequestId) -> Result<Option<Execution>, ToolError> {
        let mut looks = lock(&self.0);
        let sees = looks.pop().expect("no more looks than expected");
        Ok(sees.then(|| Execution {
            log_id: format!("log-{request_id}"),
            tool: None,
            result: Some(ToolResult {
                data: RawValue::NULL.to_owned().into(),
                successful: true,
                error: None,
                provider_status: None,
                log_id: None,
            }),
        }))
    }

    async fn execute(&self, _: &Call) -> Reply {
        unreachable!("only the log is asked")
    }
    async fn tool(&self, _: &str, _: Option<&str>) -> Result<ToolInfo, ToolError> {
        unreachable!("only the log is asked")
    }
    async fn accounts(&self, _: &str, _: Option<&str>) -> Result<Vec<Account>, ToolError> {
        unreachable!("only the log is asked")
    }
    async fn account(&self, _: &str) -> Result<Account, ToolError> {
        unreachable!("only the log is asked")
    }
    async fn check(&self) -> Result<ApiCheck, ToolError> {
        unreachable!("only the log is asked")
    }
}

fn spec() -> Arc<JobSpec> {
    let queue = "default".parse().unwrap();
    let arrival = Arrival { fallback_id: Some(JobId::new()), ..Arrival::new(&queue) };
    Arc::new(job::decode(br#"{"user_id":"u","tool":"T","arguments":{}}"#, &arrival).unwrap())
}

/// Runs a new job to the given end of its first attempt.
async fn ended(store: &SqliteStore, outcome: AttemptOutcome, ending: Ending) -> JobId {
    let binding = Binding {
        toolkit: "t".into(),
        version: "20260101_00".into(),
        pinned_by: PinnedBy::Global,
        account: None,
        effect: Effect::Once,
    };
    let (spec, request_id) = (spec(), RequestId::new());
    let claim =
        Claim { spec: spec.clone(), request_id, binding: Some(binding), stop: None, from_store: false };
    let claimed = store.claim(job::WorkerId::new(), &[claim]).await.unwrap().remove(0);
    let Claimed::Running(receipt) = claimed else { panic!("{claimed:?}") };
    let now = clock::system().now();
    let attempt = Attempt {
        number: 1,
        request_id,
        outcome,
        http_status: (outcome == AttemptOutcome::Succeeded).then_some(200),
        log_id: None,
        version: Some("20260101_00".into()),
        error: ending.error().cloned(),
        started_at: now,
        finished_at: now,
    };
    let finish = Finish { id: spec.id, fence: receipt.fence, by: By::Holder, attempt, ending };
    store.finish(&[finish]).await.unwrap();
    spec.id
}

/// The state of a job with an entry after one round in which the log shows everything or nothing.
async fn after_looks(mut looks: Vec<bool>) -> State {
    looks.reverse();
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteOptions { path: folder.path().join("errand.db"), clock: clock::system() };
    let store = Arc::new(SqliteStore::new(options).unwrap());
    store.migrate().await.unwrap();
    let success = Ending::Succeed { result: RawValue::NULL.to_owned().into() };
    ended(&store, AttemptOutcome::Succeeded, success).await;
    let error = JobError::new(ErrorKind::UnknownOutcome, "no answer");
    let unknown = Ending::Verify { after: Duration::ZERO, error };
    let job = ended(&store, AttemptOutcome::Unknown, unknown).await;
    let options = Options {
        poll: Duration::from_secs(1),
        batch: 10,
        policy: Policy { log_delay: Duration::ZERO, ..POLICY },
        retry: RetryPolicy {
            intervals: RECONNECT,
            max_attempts: 5,
            max_retry_after: Duration::from_secs(1),
            max_throttled_age: Duration::from_secs(1),
        },
        timeout: Duration::from_secs(60),
    };
    let api = Arc::new(Flickering(Mutex::new(looks)));
    let queue = Arc::new(EmbeddedQueue::new([], 1));
    let verify = Verify::new(&Services::new(store.clone(), queue, api, clock::system()), options);
    assert_eq!(verify.run_once().await.unwrap(), 1);
    store.job(job).await.unwrap().unwrap().state
}

#[tokio::test]
async fn a_log_that_goes_blind_in_the_middle_of_a_round_proves_nothing() {
    assert_eq!(after_looks(vec![true, true]).await, State::Succeeded);
    assert_eq!(after_looks(vec![true, false, false, false]).await, State::Held, "blind since");
    assert_eq!(after_looks(vec![true, false, true, true]).await, State::Succeeded, "not any more");
    assert_eq!(after_looks(vec![true, false, true, false, false]).await, State::Held, "blind again");
    let absent = vec![true, false, true, false, true];
    assert_eq!(after_looks(absent).await, State::Retryable, "which an absent entry looks like");
}

proptest! {
    /// However the log behaves, nothing is repeated before it had time to settle, and every job ends or is a person's.
    #[test]
    fn a_call_is_never_repeated_early_and_never_looked_for_without_end(
        choices in prop::collection::vec(0usize..4, 1..50), random in 0.0f64..1.0,
    ) {
        let mut unknown_for = POLICY.intervals.wait(1, random);
        for checks in 0.. {
            let look = looks().swap_remove(choices[checks as usize % choices.len()]);
            match POLICY.next(look, unknown_for, Duration::ZERO, checks, random) {
                Step::Again(after) => {
                    prop_assert!(unknown_for < POLICY.give_up && !after.is_zero());
                    unknown_for += after;
                }
                Step::NeverArrived => {
                    prop_assert!(unknown_for >= POLICY.log_delay);
                    break;
                }
                Step::GiveUp | Step::Adopt(..) => break,
            }
        }
    }
}
