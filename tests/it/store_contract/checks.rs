//! Checks of unknown outcomes.

use std::time::Duration;

use errand::{
    job::{Attempt, AttemptOutcome, Ending, ErrorKind, Fence, HeldReason, LookResult, Release, State},
    store::{Claim, Finish, Finished, PutOff},
};
use serde_json::json;

use super::{
    LEASE, OPERATOR, RunningJob, TestStore, binding, claim, error, job, on_every_backend, one, running,
    succeed,
};

fn verify(after: Duration) -> Ending {
    Ending::Verify { after, error: error(ErrorKind::UnknownOutcome) }
}

on_every_backend!(an_unknown_outcome_is_looked_up_until_it_is_told_or_a_person_decides, async |t| {
    let (now, later) = (t.run(&job(json!({}))).await, t.run(&job(json!({}))).await);
    t.finish(&now.end(verify(Duration::ZERO), AttemptOutcome::Unknown)).await;
    t.finish(&later.end(verify(LEASE), AttemptOutcome::Unknown)).await;
    assert_eq!(t.view(now.id).await.held_reason, Some(HeldReason::UnknownOutcome));

    let check = one(t.store.take_checks(10, LEASE).await.unwrap());
    assert_eq!((check.job.spec.id, check.request_id), (now.id, now.request_id));
    assert_eq!((check.fence, check.checks, check.job.attempt), (now.receipt.fence, 0, 1));
    assert!(t.store.take_checks(10, LEASE).await.unwrap().is_empty(), "it is taken");

    let put_off = |checks, again_after| PutOff {
        id: now.id,
        fence: now.receipt.fence,
        checks,
        again_after,
        look: LookResult::Unclear,
        detail: None,
    };
    assert!(!t.store.put_off(&PutOff { fence: Fence(9), ..put_off(0, None) }).await.unwrap());
    assert!(t.store.put_off(&put_off(0, Some(Duration::ZERO))).await.unwrap());
    assert!(!t.store.put_off(&put_off(0, Some(Duration::ZERO))).await.unwrap(), "it is recorded already");
    assert_eq!(one(t.store.take_checks(10, LEASE).await.unwrap()).checks, 1);
    assert!(t.store.put_off(&put_off(1, None)).await.unwrap());
    assert!(!t.store.put_off(&put_off(2, Some(Duration::ZERO))).await.unwrap(), "a person decides now");
    assert!(t.store.take_checks(10, LEASE).await.unwrap().is_empty());
    assert_eq!(t.state(now.id).await, State::Held);

    // What the log told is a late result of the same claim.
    let told = Attempt { http_status: None, ..later.end(succeed("1"), AttemptOutcome::Succeeded).attempt };
    let told = Finish { attempt: told, ..later.end(succeed("1"), AttemptOutcome::Succeeded) };
    let answer = Finished::Applied { state: State::Succeeded, late: true };
    assert_eq!(t.finish(&told).await, answer);
    assert_eq!(t.finish(&told).await, answer, "a repetition gets the same answer");
    let view = t.view(later.id).await;
    assert_eq!((view.state, view.spent, view.held_reason), (State::Succeeded, 1, None));
    assert_eq!(t.outcomes(later.id).await, [Some(AttemptOutcome::Succeeded)]);
});

on_every_backend!(a_log_is_judged_by_a_call_that_succeeded_and_was_sent_later, async |t| {
    let succeeded = async || {
        let spec = job(json!({}));
        let offered = Claim { binding: Some(binding("20260101_00")), ..claim(&spec) };
        let receipt = running(t.claim(&offered).await);
        let run = RunningJob { id: spec.id, request_id: offered.request_id, receipt };
        t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await;
        run.request_id
    };
    succeeded().await;
    let run = t.run(&job(json!({}))).await;
    t.finish(&run.end(verify(Duration::ZERO), AttemptOutcome::Unknown)).await;
    let unknown_since = t.view(run.id).await.unknown_since.unwrap();
    assert_eq!(t.store.known_success(unknown_since).await.unwrap(), None, "older ones prove nothing");
    let later = succeeded().await;
    assert_eq!(t.store.known_success(unknown_since).await.unwrap(), Some(later));
});

on_every_backend!(a_decision_ends_the_looking_up, async |t| {
    let unknown = async || {
        let run = t.run(&job(json!({}))).await;
        t.finish(&run.end(verify(Duration::ZERO), AttemptOutcome::Unknown)).await;
        run.id
    };
    t.store.release(unknown().await, Release::Retry, OPERATOR).await.unwrap();
    t.store.release(unknown().await, Release::Succeeded, OPERATOR).await.unwrap();
    t.store.release(unknown().await, Release::Failed, OPERATOR).await.unwrap();
    t.store.cancel(unknown().await, OPERATOR).await.unwrap();
    assert!(t.store.take_checks(10, LEASE).await.unwrap().is_empty());

    // A job that somebody called off while it ran is not looked up either.
    let run = t.run(&job(json!({}))).await;
    t.store.cancel(run.id, OPERATOR).await.unwrap();
    t.finish(&run.end(verify(Duration::ZERO), AttemptOutcome::Unknown)).await;
    assert_eq!(t.state(run.id).await, State::Cancelled);
    assert!(t.store.take_checks(10, LEASE).await.unwrap().is_empty());
});
