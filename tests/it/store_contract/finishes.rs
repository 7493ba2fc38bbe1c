//! The ends of attempts.

use std::{sync::Arc, time::Duration};

use errand::{
    job::{AttemptOutcome, Ending, ErrorKind, HeldReason, JobId, JobSpec, Principal, Release, State},
    store::{By, Claim, Decided, Finish, Finished, Force},
};
use jiff::SignedDuration;
use serde_json::json;

use super::{
    LEASE, OPERATOR, RunningJob, TestStore, applied, audit::PATIENT, binding, claim, error, fail, hold, job,
    job_with_reply, late, on_every_backend, one, retry, running, succeed,
};

use crate::support;

on_every_backend!(a_first_attempt_that_succeeds_is_an_attempt_like_any_other, async |t| {
    let spec = job(json!({}));
    let offered = Claim { binding: Some(binding("20260101_00")), ..claim(&spec) };
    let run =
        RunningJob { id: spec.id, request_id: offered.request_id, receipt: running(t.claim(&offered).await) };
    let finish = run.end(succeed("1"), AttemptOutcome::Succeeded);
    for _ in 0..2 {
        assert_eq!(t.finish(&finish).await, applied(State::Succeeded), "a repetition gets the same answer");
    }
    assert_eq!(t.finish(&run.rescue(retry(LEASE))).await, Finished::Fenced);
    let other = run.end(fail(), AttemptOutcome::ToolFailed);
    assert_eq!(t.finish(&other).await, Finished::Fenced, "it was definite");
    let view = t.view(spec.id).await;
    assert_eq!((view.state, view.spent, view.attempt), (State::Succeeded, 1, 1));
    let attempt = one(t.store.attempts(&Principal::Operator, spec.id).await.unwrap());
    assert_eq!((attempt.number, attempt.request_id), (1, run.request_id));
    assert_eq!((attempt.outcome, attempt.http_status), (Some(AttemptOutcome::Succeeded), Some(200)));
    assert_eq!((attempt.log_id, attempt.version), (finish.attempt.log_id, finish.attempt.version));
    assert_eq!((attempt.error, attempt.finished_at), (None, view.finished_at));
});

on_every_backend!(an_ending_leads_to_its_state, async |t| {
    let minute = Duration::from_secs(60);
    let endings = [
        (succeed(r#"{"b":1,"a":1e400}"#), AttemptOutcome::Succeeded),
        (fail(), AttemptOutcome::ToolFailed),
        (retry(minute), AttemptOutcome::NotSent),
        (Ending::Snooze { after: minute, error: None }, AttemptOutcome::Throttled),
        (hold(), AttemptOutcome::Unknown),
    ];
    let mut batch = Vec::new();
    for (ending, outcome) in &endings {
        let spec = job_with_reply(json!({}), Some("replies"));
        batch.push(t.run(&spec).await.end(ending.clone(), *outcome));
    }
    let answers = t.store.finish(&batch).await.unwrap();
    for (finish, answer) in batch.iter().zip(answers) {
        let (view, state) = (t.view(finish.id).await, finish.ending.state());
        assert_eq!(answer, applied(state));
        assert_eq!(view.state, state);
        assert_eq!(view.spent, u32::from(finish.ending.spends_attempt()));
        assert_eq!(view.finished_at.is_some(), state.is_final());
        assert_eq!(view.error.as_ref(), finish.ending.error());
        assert_eq!(view.log_id, finish.attempt.log_id);
        assert_eq!(view.held_reason, (state == State::Held).then_some(HeldReason::UnknownOutcome));
        assert_eq!(view.due_at.is_some(), state == State::Retryable);
        if let Some(due_at) = view.due_at {
            let wait = due_at.duration_since(t.store.now().await.unwrap());
            assert!(
                wait > SignedDuration::from_secs(50) && wait <= SignedDuration::from_secs(60),
                "{wait:?}"
            );
        }
        let result = view.result.as_ref().map(|result| result.get());
        assert_eq!(result, (state == State::Succeeded).then_some(r#"{"b":1,"a":1e400}"#));
        let attempt = one(t.store.attempts(&Principal::Operator, finish.id).await.unwrap());
        assert_eq!(attempt.outcome, Some(finish.attempt.outcome));
        assert_eq!(attempt.request_id, finish.attempt.request_id);
        assert_eq!((attempt.number, attempt.http_status), (1, Some(200)));
        assert_eq!(
            (attempt.log_id, attempt.version),
            (finish.attempt.log_id.clone(), finish.attempt.version.clone())
        );
        assert_eq!(attempt.error, finish.attempt.error);
        assert_eq!(
            attempt.finished_at.unwrap().as_millisecond(),
            finish.attempt.finished_at.as_millisecond()
        );
    }
    assert_eq!(t.store.take_replies(10, LEASE).await.unwrap().len(), 2);

    // A snooze that tells nothing leaves what the attempt before it told.
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    t.finish(&run.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed)).await;
    t.publish().await;
    let run = t.run(&spec).await;
    t.finish(&run.end(Ending::Snooze { after: minute, error: None }, AttemptOutcome::Throttled)).await;
    let view = t.view(spec.id).await;
    assert_eq!((view.spent, view.attempt), (1, 2));
    assert_eq!(view.error, Some(error(ErrorKind::ToolFailed)));
    assert!(t.store.finish(&[]).await.unwrap().is_empty());
});

on_every_backend!(a_finish_repeated_gets_its_first_answer, async |t| {
    let endings = [
        (succeed("{}"), AttemptOutcome::Succeeded),
        (fail(), AttemptOutcome::ToolFailed),
        (retry(Duration::ZERO), AttemptOutcome::NotSent),
        (hold(), AttemptOutcome::Unknown),
    ];
    let mut batch = Vec::new();
    for (ending, outcome) in endings {
        batch.push(t.run(&job(json!({}))).await.end(ending, outcome));
    }
    // Within a batch and in the next one, and after the relay has seen it.
    let doubled: Vec<_> = batch.iter().chain(&batch).cloned().collect();
    let answers = t.store.finish(&doubled).await.unwrap();
    assert_eq!(answers[..4], answers[4..]);
    t.publish().await;
    assert_eq!(t.store.finish(&batch).await.unwrap(), answers[..4]);
    for finish in &batch {
        let view = t.view(finish.id).await;
        assert_eq!(view.spent, u32::from(finish.ending.spends_attempt()));
        assert_eq!(t.outcomes(finish.id).await.len(), 1);
    }
    assert_eq!(t.state(batch[2].id).await, State::Available, "it was not put back by the repetition");
});

on_every_backend!(a_finish_under_an_old_fence_only_records_its_attempt, async |t| {
    let spec = job(json!({}));
    let first = t.run(&spec).await;
    assert_eq!(t.finish(&first.rescue(retry(Duration::ZERO))).await, applied(State::Retryable));
    t.publish().await;
    let second = t.run(&spec).await;
    let result = first.end(succeed("1"), AttemptOutcome::Succeeded);
    assert_eq!(t.finish(&result).await, Finished::Fenced);
    assert_eq!(t.finish(&result).await, Finished::Fenced, "again");
    assert_eq!(t.outcomes(spec.id).await, [Some(AttemptOutcome::Succeeded), None]);
    let view = t.view(spec.id).await;
    assert_eq!((view.state, view.attempt, view.log_id.as_deref()), (State::Running, 2, Some("log-lost")));
    // What is definite stays.
    let other = first.end(fail(), AttemptOutcome::ToolFailed);
    assert_eq!(t.finish(&other).await, Finished::Fenced);
    assert_eq!(t.outcomes(spec.id).await, [Some(AttemptOutcome::Succeeded), None]);
    assert_eq!(
        t.finish(&second.end(succeed("2"), AttemptOutcome::Succeeded)).await,
        applied(State::Succeeded)
    );
    assert_eq!(t.view(spec.id).await.result.unwrap().get(), "2");

    // A job that nobody knows has no attempts.
    let unknown = Finish { id: JobId::new(), ..result };
    assert_eq!(t.finish(&unknown).await, Finished::Fenced);
    assert!(t.outcomes(unknown.id).await.is_empty());
});

on_every_backend!(a_late_result_counts_while_nobody_has_claimed_since, async |t| {
    let rescues = [retry(LEASE), retry(Duration::ZERO), hold()];
    for (n, rescue) in rescues.into_iter().enumerate() {
        let endings =
            [succeed("1"), fail(), retry(LEASE), Ending::Snooze { after: LEASE, error: None }, hold()];
        for ending in endings {
            let spec = job_with_reply(json!({}), Some("replies"));
            let run = t.run(&spec).await;
            t.finish(&run.rescue(rescue.clone())).await;
            if n == 1 {
                t.publish().await;
                assert_eq!(t.state(spec.id).await, State::Available);
            }
            let finish = run.end(ending.clone(), AttemptOutcome::Succeeded);
            assert_eq!(t.finish(&finish).await, late(ending.state()));
            assert_eq!(t.finish(&finish).await, late(ending.state()), "again");
            let view = t.view(spec.id).await;
            assert_eq!((view.state, view.attempt), (ending.state(), 1));
            assert_eq!(view.log_id.as_deref(), Some("log-succeeded"));
            assert_eq!(
                t.outcomes(spec.id).await,
                [Some(AttemptOutcome::Succeeded)],
                "the record is replaced"
            );
            let replies = t.store.take_replies(10, LEASE).await.unwrap();
            assert_eq!(replies.len(), usize::from(ending.state().is_final()));
        }
    }
    // An answer that verification finds for a held job is such a result too.
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    t.finish(&run.end(hold(), AttemptOutcome::Unknown)).await;
    assert_eq!(t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await, late(State::Succeeded));
});

on_every_backend!(a_late_result_is_not_charged_twice, async |t| {
    for (rescue, ending, spent) in [
        (retry(LEASE), succeed("1"), 1),
        (retry(LEASE), Ending::Snooze { after: LEASE, error: None }, 0),
        (hold(), fail(), 1),
        (hold(), hold(), 0),
    ] {
        let spec = job(json!({}));
        let run = t.run(&spec).await;
        t.finish(&run.rescue(rescue)).await;
        t.finish(&run.end(ending, AttemptOutcome::Throttled)).await;
        assert_eq!(t.view(spec.id).await.spent, spent);
    }
    // A person has forgiven what the rescue charged.
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    t.finish(&run.rescue(fail())).await;
    t.store.restart(&Principal::Operator, spec.id, OPERATOR, Force::default()).await.unwrap();
    t.finish(&run.end(retry(LEASE), AttemptOutcome::ToolFailed)).await;
    assert_eq!((t.state(spec.id).await, t.view(spec.id).await.spent), (State::Retryable, 0));
});

/// An ending that postpones a job because of what it tells.
fn postponed() -> Ending {
    Ending::Snooze { after: Duration::ZERO, error: Some(error(ErrorKind::Throttled)) }
}

/// One that gives a job back and tells nothing.
fn given_back() -> Ending {
    Ending::Snooze { after: Duration::ZERO, error: None }
}

/// Ends the attempt, and claims the job again; tells for how long it has been postponed by then.
async fn again(t: &TestStore, run: &mut RunningJob, spec: &Arc<JobSpec>, ending: Ending) -> Option<Duration> {
    t.finish(&run.end(ending, AttemptOutcome::Throttled)).await;
    t.publish().await;
    *run = t.run(spec).await;
    run.receipt.postponed_for
}

on_every_backend!(how_long_a_job_is_postponed_counts_from_the_first_snooze_in_a_row, async |t| {
    let spec = job(json!({}));
    let mut run = t.run(&spec).await;
    let now = async || t.store.now().await.unwrap();
    assert_eq!(run.receipt.postponed_for, None);
    assert_eq!(again(&t, &mut run, &spec, given_back()).await, None, "it was only given back");
    let before = now().await;
    let first = again(&t, &mut run, &spec, postponed()).await.unwrap();
    let after = now().await;
    let second = again(&t, &mut run, &spec, postponed()).await.unwrap();
    let third = again(&t, &mut run, &spec, given_back()).await.unwrap();
    assert!(first < second && second < third, "{first:?} {second:?} {third:?}");
    assert!(third <= now().await.duration_since(before).unsigned_abs(), "it counts from the first");
    assert!(first <= after.duration_since(before).unsigned_abs(), "and not from when the job was created");
    assert_eq!(t.view(spec.id).await.spent, 0);
    let claimed_again = t.store.running_jobs(t.worker, 10).await.unwrap();
    assert!(one(claimed_again).receipt.postponed_for >= Some(third), "the rescue is told the same");

    assert_eq!(again(&t, &mut run, &spec, retry(Duration::ZERO)).await, None, "an attempt was spent");
    again(&t, &mut run, &spec, postponed()).await.unwrap();
    t.finish(&run.end(hold(), AttemptOutcome::Interrupted)).await;
    t.store.release(&Principal::Operator, spec.id, Release::Retry, OPERATOR).await.unwrap();
    t.publish().await;
    run = t.run(&spec).await;
    assert_eq!(run.receipt.postponed_for, None, "it was held");
    again(&t, &mut run, &spec, postponed()).await.unwrap();
    t.finish(&run.end(postponed(), AttemptOutcome::Throttled)).await;
    t.store.restart(&Principal::Operator, spec.id, OPERATOR, Force::default()).await.unwrap();
    t.publish().await;
    run = t.run(&spec).await;
    assert_eq!(run.receipt.postponed_for, None, "a person ran it again");
});

on_every_backend!(a_job_that_is_released_starts_to_be_postponed_anew, async |t| {
    // A build that does not know the column holds a job without clearing it.
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    t.finish(&run.end(hold(), AttemptOutcome::Unknown)).await;
    t.execute("update jobs set postponed_since = created_at").await;
    t.store.release(&Principal::Operator, spec.id, Release::Retry, OPERATOR).await.unwrap();
    t.publish().await;
    assert_eq!(t.run(&spec).await.receipt.postponed_for, None);
});

on_every_backend!(a_late_snooze_postpones_like_any_other, async |t| {
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    t.finish(&run.rescue(retry(Duration::ZERO))).await;
    assert_eq!(t.finish(&run.end(postponed(), AttemptOutcome::Throttled)).await, late(State::Retryable));
    t.publish().await;
    let run = t.run(&spec).await;
    assert!(run.receipt.postponed_for.is_some());
    t.finish(&run.rescue(retry(Duration::ZERO))).await;
    t.publish().await;
    assert_eq!(t.run(&spec).await.receipt.postponed_for, None, "the rescue spent an attempt");
});

on_every_backend!(a_late_result_of_a_cancelled_job_is_fenced, async |t| {
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    t.finish(&run.rescue(retry(LEASE))).await;
    t.store.cancel(&Principal::Operator, spec.id, OPERATOR).await.unwrap();
    assert_eq!(t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await, Finished::Fenced);
    assert_eq!(t.state(spec.id).await, State::Cancelled);
    assert_eq!(t.outcomes(spec.id).await, [Some(AttemptOutcome::Succeeded)], "what the tool did is known");
});

on_every_backend!(a_rescue_leaves_living_workers_alone, async |t| {
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    t.store.beat(t.worker, "w", LEASE).await.unwrap();
    assert_eq!(t.finish(&run.rescue(retry(LEASE))).await, Finished::Fenced);
    assert_eq!(t.state(spec.id).await, State::Running);
    assert_eq!(t.outcomes(spec.id).await, [None], "nothing is recorded about an attempt that runs");
    assert_eq!(t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await, applied(State::Succeeded));
    assert_eq!(t.outcomes(spec.id).await, [Some(AttemptOutcome::Succeeded)]);
});

// The rescuer saw a job that was not bound, of which nothing can have been sent; then its worker came back.
on_every_backend!(a_rescue_that_missed_the_freeze_changes_nothing, async |t| {
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    let nothing_sent = |run: &RunningJob| {
        let ending = Ending::Snooze { after: Duration::ZERO, error: None };
        Finish { by: By::Rescuer { lease: LEASE }, ..run.end(ending, AttemptOutcome::Interrupted) }
    };
    let too_late = nothing_sent(&run);
    assert_eq!(t.store.bind(&[run.bind(&binding("20260101_00"))]).await.unwrap(), [true]);
    assert_eq!(t.finish(&too_late).await, Finished::Fenced);
    assert_eq!(t.state(spec.id).await, State::Running);
    assert_eq!(t.outcomes(spec.id).await, [None]);
    assert_eq!(t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await, applied(State::Succeeded));

    let spec = job(json!({}));
    let run = t.run(&spec).await;
    assert_eq!(t.finish(&nothing_sent(&run)).await, applied(State::Retryable));
    assert_eq!(
        t.store.bind(&[run.bind(&binding("20260101_00"))]).await.unwrap(),
        [false],
        "nothing is sent now"
    );
});

on_every_backend!(a_rescue_that_comes_after_the_result_changes_nothing, async |t| {
    for ending in [succeed("1"), retry(Duration::ZERO), hold()] {
        let spec = job(json!({}));
        let run = t.run(&spec).await;
        t.finish(&run.end(ending.clone(), AttemptOutcome::ToolFailed)).await;
        assert_eq!(t.finish(&run.rescue(retry(LEASE))).await, Finished::Fenced);
        assert_eq!(t.state(spec.id).await, ending.state());
        assert_eq!(t.outcomes(spec.id).await, [Some(AttemptOutcome::ToolFailed)]);
    }
});

on_every_backend!(a_running_job_that_was_cancelled_does_not_run_again, async |t| {
    let snooze = Ending::Snooze { after: LEASE, error: None };
    for (ending, state) in [
        (retry(LEASE), State::Cancelled),
        (snooze, State::Cancelled),
        (hold(), State::Cancelled),
        (succeed("1"), State::Succeeded),
        (fail(), State::Failed),
    ] {
        let spec = job_with_reply(json!({}), Some("replies"));
        let run = t.run(&spec).await;
        assert_eq!(
            t.store.cancel(&Principal::Operator, spec.id, OPERATOR).await.unwrap(),
            Decided::Now(State::Running)
        );
        assert!(t.view(spec.id).await.cancel_requested);
        assert_eq!(t.finish(&run.end(ending, AttemptOutcome::Unknown)).await, applied(state));
        let view = t.view(spec.id).await;
        assert_eq!((view.state, view.due_at, view.held_reason), (state, None, None));
        assert!(view.finished_at.is_some());
        assert_eq!(t.store.take_replies(10, LEASE).await.unwrap().len(), 1);
    }
});

on_every_backend!(a_batch_of_512_large_results_is_finished_at_once, async |t| {
    let specs: Vec<_> = (0..512).map(|_| job(json!({}))).collect();
    let claims: Vec<_> = specs.iter().map(claim).collect();
    let answers = t.store.claim(t.worker, &claims).await.unwrap();
    let result = format!("\"{}\"", "x".repeat(30_000));
    let batch: Vec<_> = claims
        .iter()
        .zip(answers)
        .map(|(claim, answer)| {
            let run =
                RunningJob { id: claim.spec.id, request_id: claim.request_id, receipt: running(answer) };
            run.end(succeed(&result), AttemptOutcome::Succeeded)
        })
        .collect();
    let answers = t.store.finish(&batch).await.unwrap();
    assert!(answers.iter().all(|answer| *answer == applied(State::Succeeded)));
    assert_eq!(t.view(specs[511].id).await.result.unwrap().get(), result);
});

on_every_backend!(snoozes_in_a_row_for_one_cause_are_one_record, async |t| {
    let spec = job(json!({}));
    t.insert(&spec).await;
    let snooze = |kind| Ending::Snooze { after: Duration::ZERO, error: Some(error(kind)) };
    let end = async |ending: Ending, outcome| {
        t.publish().await;
        let finish = t.run(&spec).await.end(ending, outcome);
        assert_eq!(t.finish(&finish).await, applied(State::Retryable));
        finish
    };
    let told = async || {
        let attempts = t.store.attempts(&Principal::Operator, spec.id).await.unwrap();
        attempts.iter().map(|attempt| (attempt.number, attempt.times)).collect::<Vec<_>>()
    };
    let throttled = AttemptOutcome::Throttled;
    let first = end(snooze(ErrorKind::Throttled), throttled).await;
    let mut last = first.clone();
    for n in 2..=5 {
        last = end(snooze(ErrorKind::Throttled), throttled).await;
        assert_eq!(told().await, [(n, n)]);
        assert_eq!(t.audit(&PATIENT).await, []);
    }
    let record = one(t.store.attempts(&Principal::Operator, spec.id).await.unwrap());
    assert_eq!((record.request_id, record.log_id), (last.attempt.request_id, last.attempt.log_id.clone()));
    assert_eq!(record.started_at.as_microsecond(), first.attempt.started_at.as_microsecond());
    assert_eq!(record.finished_at.unwrap().as_microsecond(), last.attempt.finished_at.as_microsecond());
    // What is sent again adds nothing, whether its record is there or another stands for it.
    assert_eq!(t.finish(&last).await, applied(State::Retryable));
    assert_eq!(t.finish(&first).await, Finished::Fenced);
    assert_eq!(told().await, [(5, 5)]);

    // Another cause, an attempt that counts, and what follows on them.
    end(snooze(ErrorKind::NotSent), AttemptOutcome::NotSent).await;
    end(snooze(ErrorKind::NotSent), AttemptOutcome::NotSent).await;
    end(retry(Duration::ZERO), AttemptOutcome::ToolFailed).await;
    end(retry(Duration::ZERO), AttemptOutcome::ToolFailed).await;
    end(snooze(ErrorKind::ToolFailed), AttemptOutcome::ToolFailed).await;
    assert_eq!(told().await, [(5, 5), (7, 2), (8, 1), (9, 1), (10, 1)]);
    // In one batch with jobs of other kinds.
    let (other, good) = (job(json!({})), job(json!({})));
    t.publish().await;
    let runs = [t.run(&spec).await, t.run(&other).await, t.run(&good).await];
    let batch = [
        runs[0].end(snooze(ErrorKind::ToolFailed), AttemptOutcome::ToolFailed),
        runs[1].end(snooze(ErrorKind::ToolFailed), AttemptOutcome::ToolFailed),
        runs[2].end(succeed("1"), AttemptOutcome::Succeeded),
    ];
    t.store.finish(&batch).await.unwrap();
    assert_eq!(told().await, [(5, 5), (7, 2), (8, 1), (9, 1), (11, 2)]);
    assert_eq!(t.outcomes(other.id).await.len(), 1);
    // One that is taken over is none of them, and neither is one that is called off.
    t.publish().await;
    let rescued = t.run(&spec).await;
    let free = Ending::Snooze { after: Duration::ZERO, error: Some(error(ErrorKind::ToolFailed)) };
    assert_eq!(t.finish(&rescued.rescue(free.clone())).await, applied(State::Retryable));
    t.publish().await;
    let called_off = t.run(&spec).await;
    t.store.cancel(&Principal::Operator, spec.id, OPERATOR).await.unwrap();
    assert_eq!(t.finish(&called_off.end(free, AttemptOutcome::ToolFailed)).await, applied(State::Cancelled));
    assert_eq!(told().await[4..], [(11, 2), (12, 1), (13, 1)]);
    assert_eq!(t.audit(&PATIENT).await, []);
});

/// What every job does costs one version of its row in its page, and no entry of an index.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_succeeds_at_first_changes_no_index() {
    let t = TestStore::postgres().await;
    let run = t.run(&job(json!({}))).await;
    t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    // PostgreSQL counts when a session has been idle for a moment.
    support::wait::until("the update is counted", Duration::from_secs(30), async || {
        let counted = "select n_tup_upd from pg_stat_user_tables where relname = 'jobs'";
        (t.count(counted).await > 0).then_some(())
    })
    .await;
    let others = "select n_tup_upd - n_tup_hot_upd from pg_stat_user_tables where relname = 'jobs'";
    assert_eq!(t.count(others).await, 0);
}
