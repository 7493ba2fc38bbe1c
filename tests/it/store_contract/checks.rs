//! Checks of unknown outcomes.

use std::time::Duration;

use errand::{
    job::{
        Attempt, AttemptOutcome, Ending, ErrorKind, Fence, HeldReason, LookResult, Principal, Release, State,
    },
    store::{By, Claim, Decided, Finish, Finished, Force, HistoryFact, PutOff},
};
use serde_json::json;

use super::{
    LEASE, OPERATOR, RunningJob, TestStore, binding, claim, error, fail, job, job_with_reply,
    on_every_backend, one, retry, running, succeed,
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
    let told = Finish { attempt: told, by: By::LookUp, ..later.end(succeed("1"), AttemptOutcome::Succeeded) };
    let answer = Finished::Applied { state: State::Succeeded, late: true };
    assert_eq!(t.finish(&told).await, answer);
    assert_eq!(t.finish(&told).await, answer, "a repetition gets the same answer");
    let view = t.view(later.id).await;
    assert_eq!((view.state, view.spent, view.held_reason), (State::Succeeded, 1, None));
    assert_eq!(t.outcomes(later.id).await, [Some(AttemptOutcome::Succeeded)]);
});

on_every_backend!(what_has_been_due_for_longest_is_looked_up_first, async |t| {
    let (early, late) = (t.run(&job(json!({}))).await, t.run(&job(json!({}))).await);
    // The one that became unknown first is due last.
    t.finish(&early.end(verify(2 * LEASE), AttemptOutcome::Unknown)).await;
    t.finish(&late.end(verify(Duration::ZERO), AttemptOutcome::Unknown)).await;
    // As an hour later.
    let hour = if t.is_postgres() { "interval '1 hour'" } else { "3600000000" };
    t.execute(&format!("update jobs set check_at = check_at - {hour}")).await;
    let taken = t.store.take_checks(10, LEASE).await.unwrap();
    assert_eq!(taken.iter().map(|check| check.job.spec.id).collect::<Vec<_>>(), [late.id, early.id]);
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
    let first = t.run(&job(json!({}))).await;
    let first_started = t.view(first.id).await.started_at.unwrap();
    assert_eq!(t.store.known_success_before(first_started).await.unwrap(), None);
    succeeded().await;
    let earlier = succeeded().await;
    let run = t.run(&job(json!({}))).await;
    t.finish(&run.end(verify(Duration::ZERO), AttemptOutcome::Unknown)).await;
    let unknown_since = t.view(run.id).await.unknown_since.unwrap();
    assert_eq!(t.store.known_success(unknown_since).await.unwrap(), None, "older ones prove nothing");
    let later = succeeded().await;
    succeeded().await;
    let found = t.store.known_success(unknown_since).await.unwrap();
    assert_eq!(found, Some(later), "the eldest, which had the most time to appear in a log");
    let started = t.view(run.id).await.started_at.unwrap();
    assert_eq!(t.store.known_success_before(started).await.unwrap(), Some(earlier));
});

on_every_backend!(a_decision_ends_the_looking_up, async |t| {
    let unknown = async || {
        let run = t.run(&job(json!({}))).await;
        t.finish(&run.end(verify(Duration::ZERO), AttemptOutcome::Unknown)).await;
        run.id
    };
    t.store.release(&Principal::Operator, unknown().await, Release::Retry, OPERATOR).await.unwrap();
    t.store.release(&Principal::Operator, unknown().await, Release::Succeeded, OPERATOR).await.unwrap();
    t.store.release(&Principal::Operator, unknown().await, Release::Failed, OPERATOR).await.unwrap();
    assert!(t.store.take_checks(10, LEASE).await.unwrap().is_empty());
});

/// A job of which each call counts, in its first attempt.
async fn run_once(t: &TestStore) -> RunningJob {
    let spec = job_with_reply(json!({}), Some("replies"));
    let offered = Claim { binding: Some(binding("20260101_00")), ..claim(&spec) };
    RunningJob { id: spec.id, request_id: offered.request_id, receipt: running(t.claim(&offered).await) }
}

/// The same, called off before or after its outcome became unknown.
async fn cancelled(t: &TestStore, while_it_runs: bool) -> RunningJob {
    let run = run_once(t).await;
    let unknown = run.end(verify(Duration::ZERO), AttemptOutcome::Unknown);
    if while_it_runs {
        t.store.cancel(&Principal::Operator, run.id, OPERATOR).await.unwrap();
        t.finish(&unknown).await;
    } else {
        t.finish(&unknown).await;
        t.store.cancel(&Principal::Operator, run.id, OPERATOR).await.unwrap();
    }
    assert_eq!(t.state(run.id).await, State::Cancelled);
    run
}

/// What the look-up tells, as it is reported.
fn told(run: &RunningJob, ending: Ending, outcome: AttemptOutcome) -> Finish {
    let told = run.end(ending, outcome);
    Finish { by: By::LookUp, attempt: Attempt { http_status: None, ..told.attempt.clone() }, ..told }
}

on_every_backend!(a_cancelled_job_is_still_looked_up_and_stays_cancelled, async |t| {
    let answer = Finished::Applied { state: State::Cancelled, late: true };
    for while_it_runs in [true, false] {
        let run = cancelled(&t, while_it_runs).await;
        assert_eq!(one(t.store.take_checks(10, LEASE).await.unwrap()).job.spec.id, run.id);
        let told = told(&run, succeed("1"), AttemptOutcome::Succeeded);
        for _repeated in 0..2 {
            assert_eq!(t.finish(&told).await, answer);
        }
        let view = t.view(run.id).await;
        assert_eq!((view.state, view.check_at, view.error), (State::Cancelled, None, None));
        assert_eq!((view.result.is_none(), view.log_id), (true, Some("log-succeeded".to_owned())));
        assert_eq!(t.outcomes(run.id).await, [Some(AttemptOutcome::Succeeded)]);
        let adopted = HistoryFact::Adopted { outcome: AttemptOutcome::Succeeded };
        assert_eq!(t.store.history(&Principal::Operator, run.id).await.unwrap().pop().unwrap().fact, adopted);
    }

    // The worker that was presumed dead tells it itself, and nobody looks any more.
    for outcome in [AttemptOutcome::Succeeded, AttemptOutcome::NotSent] {
        let run = cancelled(&t, false).await;
        let ending = if outcome == AttemptOutcome::Succeeded { succeed("1") } else { retry(LEASE) };
        assert_eq!(t.finish(&run.end(ending, outcome)).await, answer);
        assert_eq!((t.outcomes(run.id).await, t.view(run.id).await.check_at), (vec![Some(outcome)], None));
        assert_eq!(t.finish(&told(&run, fail(), AttemptOutcome::ToolFailed)).await, Finished::Fenced);
        assert_eq!(t.outcomes(run.id).await, [Some(outcome)]);
    }

    let run = cancelled(&t, false).await;
    let check = one(t.store.take_checks(10, LEASE).await.unwrap());
    let given_up = PutOff {
        id: run.id,
        fence: check.fence,
        checks: 0,
        again_after: None,
        look: LookResult::Blind,
        detail: None,
    };
    assert!(t.store.put_off(&given_up).await.unwrap());
    let last = t.store.history(&Principal::Operator, run.id).await.unwrap().pop().unwrap().fact;
    assert!(matches!(last, HistoryFact::LookedUp { .. }), "nothing is held: {last:?}");
    assert_eq!((t.state(run.id).await, t.view(run.id).await.check_at), (State::Cancelled, None));
});

on_every_backend!(a_job_that_may_have_acted_is_run_again_only_by_force, async |t| {
    let restart = async |id, effect| {
        t.store.restart(&Principal::Operator, id, OPERATOR, Force { effect, early: false }).await.unwrap()
    };
    for while_it_runs in [true, false] {
        let run = cancelled(&t, while_it_runs).await;
        assert_eq!(restart(run.id, false).await, Decided::MayHaveActed);
        assert_eq!(t.state(run.id).await, State::Cancelled);
        assert_eq!(restart(run.id, true).await, Decided::Now(State::Available));
        assert_eq!(t.view(run.id).await.check_at, None);
    }
    let too_large = run_once(&t).await;
    t.finish(&too_large.end(fail(), AttemptOutcome::Unknown)).await;
    assert_eq!(restart(too_large.id, false).await, Decided::MayHaveActed);

    // It is known by now that it has acted.
    let run = cancelled(&t, true).await;
    t.finish(&told(&run, succeed("1"), AttemptOutcome::Succeeded)).await;
    assert_eq!(restart(run.id, false).await, Decided::MayHaveActed);

    // It is known by now that nothing happened, or a person says so.
    let run = cancelled(&t, true).await;
    t.finish(&told(&run, retry(Duration::ZERO), AttemptOutcome::NotSent)).await;
    assert_eq!(restart(run.id, false).await, Decided::Now(State::Available));
    let run = run_once(&t).await;
    t.finish(&run.end(verify(Duration::ZERO), AttemptOutcome::Unknown)).await;
    t.store.release(&Principal::Operator, run.id, Release::Failed, OPERATOR).await.unwrap();
    assert_eq!(restart(run.id, false).await, Decided::Now(State::Available));

    // A person was mistaken, or did not want the job any more.
    let run = run_once(&t).await;
    t.finish(&run.end(verify(Duration::ZERO), AttemptOutcome::Unknown)).await;
    t.store.release(&Principal::Operator, run.id, Release::Failed, OPERATOR).await.unwrap();
    t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    assert_eq!(t.state(run.id).await, State::Failed);
    assert_eq!(restart(run.id, false).await, Decided::MayHaveActed);

    let refused = run_once(&t).await;
    t.finish(&refused.end(fail(), AttemptOutcome::ToolFailed)).await;
    assert_eq!(restart(refused.id, false).await, Decided::Now(State::Available));
});

on_every_backend!(a_look_up_overrules_no_decision_of_a_person, async |t| {
    for (release, state) in [(Release::Retry, State::Available), (Release::Failed, State::Failed)] {
        let run = run_once(&t).await;
        t.finish(&run.end(verify(Duration::ZERO), AttemptOutcome::Unknown)).await;
        one(t.store.take_checks(10, LEASE).await.unwrap());
        t.store.release(&Principal::Operator, run.id, release, OPERATOR).await.unwrap();
        for late in
            [told(&run, fail(), AttemptOutcome::NotSent), told(&run, succeed("1"), AttemptOutcome::Succeeded)]
        {
            assert_eq!(t.finish(&late).await, Finished::Fenced);
        }
        assert_eq!(t.state(run.id).await, state);
        assert_eq!(t.outcomes(run.id).await, [Some(AttemptOutcome::Unknown)]);
    }
});

on_every_backend!(a_late_result_that_knows_nothing_overrules_no_decision, async |t| {
    let run = run_once(&t).await;
    t.store.retire(t.worker).await.unwrap();
    t.finish(&run.rescue(verify(Duration::ZERO))).await;
    assert_eq!(t.state(run.id).await, State::Held);
    t.store.release(&Principal::Operator, run.id, Release::Retry, OPERATOR).await.unwrap();
    let late = run.end(verify(Duration::ZERO), AttemptOutcome::Unknown);
    assert_eq!(t.finish(&late).await, Finished::Fenced);
    assert_eq!(t.state(run.id).await, State::Available);
});
