//! Claims, and what is bound under them.

use std::{collections::HashSet, sync::Arc, time::Duration};

use errand::{
    job::{AttemptOutcome, Binding, ErrorKind, Fence, HeldReason, JobId, Principal, State, Stop, WorkerId},
    store::{Bind, Claim, ClaimReceipt, Claimed, Conflict, Decided, Force, Repeated},
};
use serde_json::json;

use super::{
    LEASE, OPERATOR, RunningJob, TestStore, binding, claim, error, in_hours, job, job_with_reply,
    on_every_backend, one, renamed, retry, running,
};

on_every_backend!(an_unknown_job_is_inserted_and_claimed_in_one_step, async |t| {
    let spec = job(json!({}));
    let offered = Claim { binding: Some(binding("1")), ..claim(&spec) };
    let receipt = running(t.claim(&offered).await);
    assert_eq!((receipt.fence, receipt.attempt, receipt.spent), (Fence(1), 1, 0));
    assert_eq!(receipt.binding, Some(binding("1")));
    let view = t.view(spec.id).await;
    assert_eq!(view.state, State::Running);
    assert_eq!(view.created_at, receipt.created_at);
    assert_eq!(view.binding, Some(binding("1")));
    assert_eq!((view.attempt, view.spent, view.due_at), (1, 0, None));
    assert!(view.started_at.is_some());
    assert!(t.store.claim(t.worker, &[]).await.unwrap().is_empty());
});

on_every_backend!(a_claim_repeated_gets_its_first_answer, async |t| {
    let specs: Vec<_> = (0..4).map(|n| job(json!({"priority": n}))).collect();
    let later = job(json!({"run_at": in_hours(1)}));
    t.insert(&specs[1]).await;
    let batch = [
        Claim { binding: Some(binding("1")), ..claim(&specs[0]) },
        Claim { from_store: true, ..claim(&specs[1]) },
        Claim { stop: Some(Stop::Fail { error: error(ErrorKind::InvalidJob) }), ..claim(&specs[2]) },
        Claim {
            stop: Some(Stop::Hold {
                reason: HeldReason::Connection,
                error: error(ErrorKind::NeedsConnection),
            }),
            ..claim(&specs[3])
        },
        claim(&later),
    ];
    let first = t.store.claim(t.worker, &batch).await.unwrap();
    let second = t.store.claim(t.worker, &batch).await.unwrap();
    for (first, second) in first.iter().zip(&second) {
        match (first, second) {
            (Claimed::Running(first), Claimed::Running(second)) => {
                assert!(second.age >= first.age);
                assert_eq!(*first, ClaimReceipt { age: first.age, ..second.clone() });
            }
            (first, second) => assert_eq!(format!("{first:?}"), format!("{second:?}")),
        }
    }
    assert!(matches!(first[2], Claimed::Ended { state: State::Failed, kind: ErrorKind::InvalidJob }));
    assert!(matches!(first[3], Claimed::Ended { state: State::Held, kind: ErrorKind::NeedsConnection }));
    assert!(matches!(first[4], Claimed::Scheduled));

    // The same request ID in the hands of another worker is not the same claim.
    let other = one(t.store.claim(WorkerId::new(), &batch[..1]).await.unwrap());
    assert!(matches!(other, Claimed::Duplicate(Repeated { state: Some(State::Running), .. })));
});

on_every_backend!(a_known_job_is_claimed_with_the_next_fence_and_attempt, async |t| {
    let spec = job(json!({}));
    t.insert(&spec).await;
    let first = t.run(&spec).await;
    assert_eq!((first.receipt.fence, first.receipt.attempt), (Fence(1), 1));
    t.finish(&first.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed)).await;
    t.publish().await;
    let relayed = Claim { from_store: true, ..claim(&spec) };
    let second = running(t.claim(&relayed).await);
    assert_eq!((second.fence, second.attempt, second.spent), (Fence(2), 2, 1));
    assert_eq!(second.created_at, first.receipt.created_at);
    assert!(second.age > Duration::ZERO);
    assert_eq!(t.view(spec.id).await.error.map(|error| error.kind()), Some(ErrorKind::ToolFailed));
});

on_every_backend!(a_claim_of_another_meaning_is_a_conflict, async |t| {
    let spec = job(json!({}));
    t.insert(&spec).await;
    let body = claim(&job(json!({"id": spec.id.to_string(), "tool": "OTHER"})));
    let owner = claim(&job(json!({"id": spec.id.to_string(), "user_id": "u-2"})));
    for known in [false, true] {
        let answer = t.claim(&Claim { from_store: known, ..body.clone() }).await;
        assert!(matches!(answer, Claimed::Conflict(Conflict::Body)), "{answer:?}");
        let answer = t.claim(&Claim { from_store: known, ..owner.clone() }).await;
        assert!(matches!(answer, Claimed::Conflict(Conflict::Owner)), "{answer:?}");
    }
    assert_eq!(t.state(spec.id).await, State::Available);
});

on_every_backend!(a_claim_with_a_used_idempotency_key_is_a_duplicate_or_a_conflict, async |t| {
    let spec = job(json!({"idempotency_key": "k"}));
    t.run(&spec).await;
    let answer = t.claim(&claim(&renamed(&spec))).await;
    assert!(matches!(answer, Claimed::Duplicate(Repeated { state: Some(State::Running), .. })), "{answer:?}");
    let other = job(json!({"idempotency_key": "k", "tool": "OTHER"}));
    let answer = t.claim(&claim(&other)).await;
    assert!(matches!(answer, Claimed::Conflict(Conflict::Key { .. })), "{answer:?}");
    assert!(t.store.job(&Principal::Operator, other.id).await.unwrap().is_none());
});

on_every_backend!(a_job_that_is_not_available_is_a_duplicate, async |t| {
    for state in State::ALL.iter().copied().filter(|state| *state != State::Available) {
        let id = t.in_state(state).await;
        let spec = t.view(id).await.spec;
        let before = format!("{:?}", t.view(id).await);
        for known in [false, true] {
            let answer = t.claim(&Claim { from_store: known, ..claim(&spec) }).await;
            assert!(
                matches!(answer, Claimed::Duplicate(Repeated { state: is, .. }) if is == Some(state)),
                "{state}: {answer:?}"
            );
        }
        assert_eq!(format!("{:?}", t.view(id).await), before);
    }
});

on_every_backend!(a_relayed_job_that_was_removed_is_gone, async |t| {
    let spec = job(json!({}));
    let answer = t.claim(&Claim { from_store: true, ..claim(&spec) }).await;
    assert!(matches!(answer, Claimed::Gone), "{answer:?}");
    assert!(t.store.job(&Principal::Operator, spec.id).await.unwrap().is_none());
});

on_every_backend!(a_claim_before_its_time_is_scheduled_and_one_after_its_time_fails, async |t| {
    let later = job(json!({"run_at": in_hours(1)}));
    assert!(matches!(t.claim(&claim(&later)).await, Claimed::Scheduled));
    let view = t.view(later.id).await;
    assert_eq!((view.state, view.due_at, view.attempt), (State::Scheduled, later.run_at, 0));

    let expired = job_with_reply(json!({"expires_at": in_hours(-1)}), Some("replies"));
    let known = renamed(&expired);
    t.insert(&known).await;
    for spec in [expired, known] {
        let offered = Claim { binding: Some(binding("1")), ..claim(&spec) };
        let answer = t.claim(&offered).await;
        assert!(
            matches!(answer, Claimed::Ended { state: State::Failed, kind: ErrorKind::Expired }),
            "{answer:?}"
        );
        let view = t.view(spec.id).await;
        assert_eq!((view.state, view.attempt, view.binding), (State::Failed, 0, None));
        assert_eq!(view.error.map(|error| error.kind()), Some(ErrorKind::Expired));
        assert!(view.finished_at.is_some());
    }
    assert_eq!(t.store.take_replies(10, LEASE).await.unwrap().len(), 2, "its app is told");
});

on_every_backend!(a_job_made_due_by_a_person_runs_before_its_time, async |t| {
    let spec = job(json!({"run_at": in_hours(1)}));
    t.insert(&spec).await;
    assert_eq!(
        t.store
            .restart(&Principal::Operator, spec.id, OPERATOR, Force { effect: false, early: true })
            .await
            .unwrap(),
        Decided::Now(State::Available)
    );
    t.publish().await;
    running(t.claim(&Claim { from_store: true, ..claim(&spec) }).await);
});

on_every_backend!(a_refused_job_fails_and_a_held_job_is_parked, async |t| {
    let refuse = Stop::Fail { error: error(ErrorKind::OwnerRefused) };
    let hold = Stop::Hold { reason: HeldReason::Unidentified, error: error(ErrorKind::UnknownOutcome) };
    for known in [false, true] {
        for (stop, state) in [(&refuse, State::Failed), (&hold, State::Held)] {
            // The stop comes before schedule and expiry.
            let spec = job_with_reply(json!({"expires_at": in_hours(-1)}), Some("replies"));
            if known {
                t.insert(&spec).await;
            }
            let judged = Claim { stop: Some(stop.clone()), from_store: known, ..claim(&spec) };
            let answer = t.claim(&judged).await;
            assert!(matches!(answer, Claimed::Ended { state: is, .. } if is == state), "{answer:?}");
            let view = t.view(spec.id).await;
            assert_eq!((view.state, view.attempt, view.due_at), (state, 0, None));
            assert_eq!(view.error.unwrap().code(), Some(4711));
            assert_eq!(view.held_reason, (state == State::Held).then_some(HeldReason::Unidentified));
            let replies = t.store.take_replies(10, LEASE).await.unwrap();
            assert_eq!(replies.len(), usize::from(state == State::Failed));
        }
    }
});

on_every_backend!(a_job_that_is_bound_or_was_tried_is_stopped_by_no_message, async |t| {
    let refuse = Stop::Fail { error: error(ErrorKind::Unpinned) };
    let connect = Stop::Connect { toolkit: "github".into(), error: error(ErrorKind::NeedsConnection) };
    for stop in [refuse, connect] {
        for bound in [true, false] {
            let spec = job(json!({}));
            let first = Claim { binding: bound.then(|| binding("1")), ..claim(&spec) };
            let receipt = running(t.claim(&first).await);
            let run = RunningJob { id: spec.id, request_id: first.request_id, receipt };
            t.finish(&run.end(retry(Duration::ZERO), AttemptOutcome::Throttled)).await;
            t.publish().await;
            // The app publishes its message once more, or the relay's comes, and the rules have changed since.
            let stopped = Claim { stop: Some(stop.clone()), from_store: bound, ..claim(&spec) };
            let receipt = running(t.claim(&stopped).await);
            assert_eq!((receipt.attempt, receipt.binding.is_some()), (2, bound));
            let view = t.view(spec.id).await;
            assert_eq!((view.held_reason, view.state), (None, State::Running));
        }
    }
    let expired = job(json!({"expires_at": in_hours(-1)}));
    t.insert(&expired).await;
    let answer = t.claim(&Claim { from_store: true, ..claim(&expired) }).await;
    assert!(matches!(answer, Claimed::Ended { kind: ErrorKind::Expired, .. }), "time counts all the same");
});

on_every_backend!(what_was_bound_first_wins, async |t| {
    let spec = job(json!({}));
    let first = Claim { binding: Some(binding("1")), ..claim(&spec) };
    let receipt = running(t.claim(&first).await);
    let run = RunningJob { id: spec.id, request_id: first.request_id, receipt };
    t.finish(&run.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed)).await;
    t.publish().await;
    let second = Claim { binding: Some(binding("2")), from_store: true, ..claim(&spec) };
    assert_eq!(running(t.claim(&second).await).binding, Some(binding("1")));

    let spec = job(json!({}));
    t.insert(&spec).await;
    let offered = Claim { binding: Some(binding("3")), ..claim(&spec) };
    assert_eq!(running(t.claim(&offered).await).binding, Some(binding("3")), "nothing was frozen before");
});

on_every_backend!(the_first_claim_of_a_batch_wins, async |t| {
    let (new, known) = (job(json!({})), job(json!({})));
    t.insert(&known).await;
    let other = job(json!({"id": new.id.to_string(), "tool": "OTHER"}));
    let first = claim(&new);
    let batch = [first.clone(), claim(&known), claim(&new), claim(&known), first.clone(), claim(&other)];
    let answers = t.store.claim(t.worker, &batch).await.unwrap();
    assert_eq!(running(answers[0].clone()).fence, Fence(1));
    assert_eq!(running(answers[1].clone()).fence, Fence(1));
    for answer in &answers[2..5] {
        assert!(
            matches!(answer, Claimed::Duplicate(Repeated { state: Some(State::Running), .. })),
            "{answer:?}"
        );
    }
    assert!(matches!(answers[5], Claimed::Conflict(Conflict::Body)), "{:?}", answers[5]);
});

on_every_backend!(exactly_one_of_concurrent_claims_wins, async |t| {
    for known in [false, true] {
        let specs: Vec<_> = (0..40).map(|_| job(json!({}))).collect();
        if known {
            t.store.insert(&specs, Duration::ZERO).await.unwrap();
        }
        let tasks: Vec<_> = (0..4)
            .map(|n| {
                let store = Arc::clone(if n % 2 == 0 { &t.store } else { &t.other });
                let mut batch: Vec<Claim> = specs.iter().map(claim).collect();
                if n >= 2 {
                    batch.reverse();
                }
                tokio::spawn(async move {
                    let answers = store.claim(WorkerId::new(), &batch).await.unwrap();
                    let won = batch.iter().zip(answers).filter(|(_, answer)| match answer {
                        Claimed::Running(_) => true,
                        Claimed::Duplicate(Repeated { state: Some(State::Running), .. }) => false,
                        other => panic!("{other:?}"),
                    });
                    won.map(|(claim, _)| claim.spec.id).collect::<Vec<_>>()
                })
            })
            .collect();
        let mut won = Vec::new();
        for task in tasks {
            won.extend(task.await.unwrap());
        }
        assert_eq!(won.len(), specs.len());
        assert_eq!(won.iter().collect::<HashSet<_>>().len(), specs.len());
    }
});

on_every_backend!(a_freeze_counts_only_under_the_current_fence, async |t| {
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    let bind = run.bind(&binding("1"));
    let stale = Bind { fence: Fence(0), ..bind.clone() };
    let unknown = Bind { id: JobId::new(), ..bind.clone() };
    let answers = t.store.bind(&[stale, bind.clone(), unknown]).await.unwrap();
    assert_eq!(answers, [false, true, false]);
    assert_eq!(t.view(spec.id).await.binding, Some(binding("1")));
    assert_eq!(t.store.bind(&[bind]).await.unwrap(), [true], "a repetition gets the same answer");
    assert_eq!(t.store.bind(&[run.bind(&binding("2"))]).await.unwrap(), [false], "it never changes");
    assert_eq!(t.view(spec.id).await.binding, Some(binding("1")));
    let bare = Binding { account: None, ..binding("1") };
    let run = t.run(&job(json!({}))).await;
    assert_eq!(t.store.bind(&[run.bind(&bare), run.bind(&bare)]).await.unwrap(), [true, true]);
    t.finish(&run.end(retry(Duration::ZERO), AttemptOutcome::NotSent)).await;
    assert_eq!(t.store.bind(&[run.bind(&bare)]).await.unwrap(), [false], "it is not run any more");
    assert!(t.store.bind(&[]).await.unwrap().is_empty());
});
