//! What people and scripts read and decide.

use std::{collections::HashSet, time::Duration};

use errand::{
    job::{
        AttemptOutcome, Digest, Ending, ErrorKind, Fence, HeldReason, JobId, Principal, QueueName, Release,
        State, Transition,
    },
    store::{AsRead, Claim, Claimed, Decided, Force, JobDecision, JobView},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    FORCE, LEASE, OPERATOR, TestStore, claim, connections::park, error, fail, hold, in_hours, job, late,
    on_every_backend, one, retry, succeed,
};

on_every_backend!(a_decision_obeys_the_transitions_in_every_state, async |t| {
    let decisions = [
        Transition::Cancel,
        Transition::Restart,
        Transition::Release(Release::Retry),
        Transition::Release(Release::Succeeded),
        Transition::Release(Release::Failed),
    ];
    let decide = async |decision: &Transition, id: JobId| match decision {
        Transition::Cancel => t.store.cancel(&Principal::Operator, id, OPERATOR).await.unwrap(),
        Transition::Restart => t.store.restart(&Principal::Operator, id, OPERATOR, FORCE).await.unwrap(),
        Transition::Release(release) => {
            t.store.release(&Principal::Operator, id, *release, OPERATOR).await.unwrap()
        }
        other => panic!("{other:?} is nobody's decision"),
    };
    for decision in &decisions {
        for from in State::ALL.iter().copied() {
            let id = t.in_state(from).await;
            let before = format!("{:?}", t.view(id).await);
            let answer = decide(decision, id).await;
            let view = t.view(id).await;
            match decision.apply(from) {
                Ok(to) => {
                    assert_eq!(answer, Decided::Now(to), "{decision:?} of a {from} job");
                    assert_eq!(view.state, to);
                    assert_eq!(view.finished_at.is_some(), to.is_final());
                    assert_eq!(view.due_at.is_some(), to == State::Available);
                }
                Err(illegal) => {
                    assert_eq!(answer, Decided::Illegal(illegal));
                    assert_eq!(format!("{view:?}"), before, "{decision:?} of a {from} job");
                }
            }
        }
        assert_eq!(decide(decision, JobId::new()).await, Decided::Unknown);
    }
});

on_every_backend!(a_job_that_is_scheduled_is_run_early_only_where_that_is_asked_for, async |t| {
    let id = t.in_state(State::Scheduled).await;
    let due = t.view(id).await.due_at;
    for force in [Force::default(), Force { effect: true, early: false }] {
        assert_eq!(t.store.restart(&Principal::Operator, id, OPERATOR, force).await.unwrap(), Decided::Early);
        assert_eq!((t.state(id).await, t.view(id).await.due_at), (State::Scheduled, due));
    }
    let early = Force { effect: false, early: true };
    assert_eq!(
        t.store.restart(&Principal::Operator, id, OPERATOR, early).await.unwrap(),
        Decided::Now(State::Available)
    );
});

on_every_backend!(a_job_that_has_not_run_is_only_released_to_run, async |t| {
    let spec = job(json!({}));
    t.claim(&park(&spec, "github")).await;
    for release in [Release::Succeeded, Release::Failed] {
        let answer = t.store.release(&Principal::Operator, spec.id, release, OPERATOR).await.unwrap();
        assert_eq!(answer, Decided::HasNotRun(HeldReason::Connection));
        assert_eq!(t.state(spec.id).await, State::Held);
    }
    assert!(
        t.store
            .history(&Principal::Operator, spec.id)
            .await
            .unwrap()
            .iter()
            .all(|entry| entry.by != OPERATOR.by)
    );
    let answer = t.store.release(&Principal::Operator, spec.id, Release::Retry, OPERATOR).await.unwrap();
    assert_eq!(answer, Decided::Now(State::Available));
});

on_every_backend!(a_decision_about_a_job_as_it_was_read_is_none_about_a_later_call_of_it, async |t| {
    let who = &Principal::Operator;
    let held = t.run_bound(json!({})).await;
    t.finish(&held.end(hold(), AttemptOutcome::Unknown)).await;
    let first = AsRead::of(&t.view(held.id).await);
    let release = JobDecision::Release(Release::Retry);
    let decide = async |decision, read: &AsRead| {
        t.store.decide(who, held.id, decision, Some(read), OPERATOR).await.unwrap()
    };
    assert_eq!(decide(release, &first).await, Decided::Now(State::Available));
    // Whose answer was lost sends it again, and it is not held.
    assert!(matches!(decide(release, &first).await, Decided::Illegal(_)));
    let run = t.run(&t.view(held.id).await.spec).await;
    t.finish(&run.end(hold(), AttemptOutcome::Unknown)).await;
    let second = AsRead::of(&t.view(held.id).await);
    for decision in [
        release,
        JobDecision::Release(Release::Succeeded),
        JobDecision::Release(Release::Failed),
        JobDecision::ReleaseToRun(FORCE),
        JobDecision::Cancel,
    ] {
        assert_eq!(decide(decision, &first).await, Decided::Changed, "{decision:?}");
    }
    assert_eq!(t.state(held.id).await, State::Held);
    assert_eq!(decide(JobDecision::Release(Release::Failed), &second).await, Decided::Now(State::Failed));
    let failed = AsRead::of(&t.view(held.id).await);
    let restart = JobDecision::Restart(FORCE);
    let edited = AsRead { digest: Digest([7; 16]), ..failed };
    for other in [first, second, edited] {
        assert_eq!(decide(restart, &other).await, Decided::Changed);
    }
    assert_eq!(decide(restart, &failed).await, Decided::Now(State::Available));
    // Somebody else calls it off and runs it again before the same decision comes once more.
    let available = AsRead::of(&t.view(held.id).await);
    assert_eq!(decide(JobDecision::Cancel, &available).await, Decided::Now(State::Cancelled));
    let cancelled = AsRead::of(&t.view(held.id).await);
    assert_eq!(decide(restart, &cancelled).await, Decided::Now(State::Available));
    assert_eq!(decide(JobDecision::Cancel, &available).await, Decided::Changed);
    t.store.cancel(who, held.id, OPERATOR).await.unwrap();
    assert_eq!(decide(restart, &cancelled).await, Decided::Changed);
});

on_every_backend!(
    a_held_job_whose_call_may_have_acted_goes_on_among_many_only_where_that_is_forced,
    async |t| {
        let release = async |id, force| {
            t.store
                .decide(&Principal::Operator, id, JobDecision::ReleaseToRun(force), None, OPERATOR)
                .await
                .unwrap()
        };
        let unclear = t.run_bound(json!({})).await;
        t.finish(&unclear.end(hold(), AttemptOutcome::Unknown)).await;
        let early = Force { effect: false, early: true };
        assert_eq!(release(unclear.id, early).await, Decided::MayHaveActed);
        assert_eq!(t.state(unclear.id).await, State::Held);
        assert_eq!(release(unclear.id, FORCE).await, Decided::Now(State::Available));
        let spec = job(json!({}));
        t.claim(&park(&spec, "github")).await;
        assert_eq!(release(spec.id, Force::default()).await, Decided::Now(State::Available));
        assert!(matches!(release(spec.id, FORCE).await, Decided::Illegal(_)));
        assert_eq!(release(JobId::new(), FORCE).await, Decided::Unknown);
        let history = t.store.history(&Principal::Operator, spec.id).await.unwrap();
        assert_eq!(history.last().map(|entry| &*entry.by), Some(&*OPERATOR.by));
    }
);

on_every_backend!(a_job_tells_which_worker_has_it_or_had_it_last, async |t| {
    let spec = job(json!({}));
    t.insert(&spec).await;
    assert_eq!(t.view(spec.id).await.worker, None);
    t.publish().await;
    let run = t.run(&spec).await;
    assert_eq!(t.view(spec.id).await.worker, Some(t.worker));
    t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    assert_eq!(t.view(spec.id).await.worker, Some(t.worker));
});

on_every_backend!(a_restarted_job_has_a_fresh_budget, async |t| {
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    t.store.cancel(&Principal::Operator, spec.id, OPERATOR).await.unwrap();
    t.finish(&run.end(fail(), AttemptOutcome::ToolFailed)).await;
    assert_eq!(
        t.store.restart(&Principal::Operator, spec.id, OPERATOR, Force::default()).await.unwrap(),
        Decided::Now(State::Available)
    );
    let view = t.view(spec.id).await;
    assert_eq!((view.spent, view.attempt, view.cancel_requested), (0, 1, false));
    assert_eq!((view.error, view.result.is_none(), view.finished_at), (None, true, None));
    assert_eq!(one(t.store.take_due(10, LEASE).await.unwrap()).spec.id, spec.id, "it is due now");
    let again = t.run(&spec).await;
    assert_eq!((again.receipt.fence, again.receipt.attempt, again.receipt.spent), (Fence(2), 2, 0));
});

on_every_backend!(a_released_job_shows_what_a_person_decided, async |t| {
    let id = t.in_state(State::Held).await;
    t.store.release(&Principal::Operator, id, Release::Succeeded, OPERATOR).await.unwrap();
    let view = t.view(id).await;
    assert_eq!((view.result.unwrap().get(), view.error, view.held_reason), ("null", None, None));
    let id = t.in_state(State::Held).await;
    t.store.release(&Principal::Operator, id, Release::Failed, OPERATOR).await.unwrap();
    assert_eq!(t.view(id).await.error.map(|error| error.kind()), Some(ErrorKind::MarkedFailed));
    let id = t.in_state(State::Held).await;
    t.store.release(&Principal::Operator, id, Release::Retry, OPERATOR).await.unwrap();
    assert_eq!(one(t.store.take_due(10, LEASE).await.unwrap()).spec.id, id);
    assert_eq!(t.view(id).await.held_reason, None);
});

on_every_backend!(a_running_attempt_is_listed_without_an_outcome, async |t| {
    let spec = job(json!({}));
    let first = t.run(&spec).await;
    t.finish(&first.end(retry(Duration::ZERO), AttemptOutcome::NotSent)).await;
    t.publish().await;
    let second = t.run(&spec).await;
    let attempts = t.store.attempts(&Principal::Operator, spec.id).await.unwrap();
    let seen: Vec<_> = attempts.iter().map(|a| (a.number, a.request_id, a.outcome)).collect();
    assert_eq!(seen, [(1, first.request_id, Some(AttemptOutcome::NotSent)), (2, second.request_id, None)]);
    assert_eq!(Some(attempts[1].started_at), t.view(spec.id).await.started_at);
    assert_eq!(attempts[1].finished_at, None);
    assert!(t.store.attempts(&Principal::Operator, JobId::new()).await.unwrap().is_empty());
});

on_every_backend!(a_census_counts_what_is_not_final, async |t| {
    for state in State::ALL.iter().copied() {
        t.in_state(state).await;
    }
    t.insert(&job(json!({"queue": "bulk", "run_at": in_hours(-2)}))).await;
    // It is late although it was published a moment ago, and is published again later.
    t.execute("update jobs set first_due_at = run_at where queue = 'bulk'").await;
    t.publish().await;
    let census = t.store.census().await.unwrap();
    let queue = |name: &str| -> QueueName { name.parse().unwrap() };
    let mut jobs = census.jobs.clone();
    jobs.sort();
    let mut expected = vec![(queue("bulk"), State::Available, 1)];
    for state in State::ALL.iter().copied().filter(|state| !state.is_final()) {
        expected.push((queue("default"), state, 1));
    }
    assert_eq!(jobs, expected);
    assert_eq!(census.held, [(HeldReason::UnknownOutcome, 1)]);
    let oldest = |name| census.oldest_due.iter().find(|(is, _)| *is == queue(name)).unwrap().1;
    assert!(oldest("bulk") >= Duration::from_secs(7200));
    assert!(oldest("default") < LEASE, "what is scheduled does not wait yet");
});

fn snooze(after: Duration) -> Ending {
    Ending::Snooze { after, error: Some(error(ErrorKind::NotSent)) }
}

/// For how long the jobs have waited that should have run, as the gauges see it.
async fn oldest(t: &TestStore) -> Option<Duration> {
    t.store.census().await.unwrap().oldest_due.first().map(|(_, age)| *age)
}

on_every_backend!(being_published_or_postponed_moves_no_first_due_time, async |t| {
    let spec = job(json!({}));
    t.insert(&spec).await;
    let first = t.view(spec.id).await.first_due_at.unwrap();
    let is_late = async |is: &str| {
        let JobView { due_at, first_due_at, .. } = t.view(spec.id).await;
        assert_eq!(first_due_at, Some(first), "{is}");
        assert!(due_at > Some(first + SignedDuration::from_secs(20)), "{is}: it is next looked at later");
        assert!(oldest(&t).await > Some(Duration::ZERO), "{is}");
    };
    t.publish().await;
    is_late("published").await;
    t.store.republish_all().await.unwrap();
    t.publish().await;
    is_late("published again").await;
    assert_eq!(t.view(spec.id).await.publications, 1);
    t.store.defer(&[spec.id], LEASE).await.unwrap();
    is_late("not published after all").await;
    let run = t.run(&spec).await;
    assert_eq!((t.view(spec.id).await.first_due_at, oldest(&t).await), (Some(first), None), "it runs");
    assert_eq!(run.receipt.first_due_at, Some(first));
    t.finish(&run.end(snooze(LEASE), AttemptOutcome::NotSent)).await;
    is_late("postponed").await;
    t.execute("update jobs set due_at = created_at").await;
    t.publish().await;
    is_late("postponed and published").await;
    let run = t.run(&spec).await;
    t.finish(&run.rescue(snooze(LEASE))).await;
    t.finish(&run.end(snooze(LEASE), AttemptOutcome::NotSent)).await;
    is_late("postponed by a late result").await;
});

on_every_backend!(a_job_is_due_first_when_its_wait_is_not_wanted_any_more, async |t| {
    let later = job(json!({"run_at": in_hours(1)}));
    t.insert(&later).await;
    assert_eq!(t.view(later.id).await.first_due_at, later.run_at);
    t.store.cancel(&Principal::Operator, later.id, OPERATOR).await.unwrap();
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    t.finish(&run.end(retry(LEASE), AttemptOutcome::ToolFailed)).await;
    let view = t.view(spec.id).await;
    assert_eq!((view.first_due_at, oldest(&t).await), (view.due_at, None), "an attempt was spent");
    let is_now = async |what: &str, before: Timestamp| {
        let view = t.view(spec.id).await;
        assert_eq!(view.first_due_at, view.due_at, "{what}");
        assert!(view.first_due_at >= Some(before), "{what}");
    };
    let now = async || t.store.now().await.unwrap();
    let before = now().await;
    t.store.restart(&Principal::Operator, spec.id, OPERATOR, FORCE).await.unwrap();
    is_now("a person ran it again", before).await;
    t.finish(&t.run(&spec).await.end(hold(), AttemptOutcome::Unknown)).await;
    let before = now().await;
    t.store.release(&Principal::Operator, spec.id, Release::Retry, OPERATOR).await.unwrap();
    is_now("released", before).await;
    let run = t.run(&spec).await;
    t.finish(&run.rescue(snooze(LEASE))).await;
    assert_eq!(t.finish(&run.end(retry(LEASE), AttemptOutcome::ToolFailed)).await, late(State::Retryable));
    let view = t.view(spec.id).await;
    assert_eq!(view.first_due_at, view.due_at, "a late result spent an attempt");
});

on_every_backend!(a_message_is_due_since_it_was_published_and_not_before_its_time, async |t| {
    // Stores keep microseconds.
    let now = Timestamp::from_microsecond(t.store.now().await.unwrap().as_microsecond()).unwrap();
    let ago = |seconds| now - SignedDuration::from_secs(seconds);
    let due = async |fields: Value, published_at| {
        let spec = job(fields);
        let claimed = t.claim(&Claim { published_at, ..claim(&spec) }).await;
        let view = t.view(spec.id).await;
        if let Claimed::Running(receipt) = claimed {
            assert_eq!(receipt.first_due_at, view.first_due_at);
        }
        (view.first_due_at.unwrap(), view.created_at)
    };
    assert_eq!(due(json!({}), Some(ago(20))).await.0, ago(20));
    let (first, created) = due(json!({}), None).await;
    assert_eq!(first, created);
    let (first, created) = due(json!({}), Some(ago(-3600))).await;
    assert_eq!(first, created, "a clock that is ahead");
    let hour_ago = in_hours(-1);
    assert_eq!(due(json!({"run_at": hour_ago}), Some(ago(7200))).await.0, hour_ago.parse().unwrap());
    let hour = in_hours(1);
    assert_eq!(due(json!({"run_at": hour}), Some(ago(20))).await.0, hour.parse().unwrap());
    // The message of a known job says when the relay published it.
    let spec = job(json!({}));
    t.insert(&spec).await;
    let first = t.view(spec.id).await.first_due_at;
    t.claim(&Claim { published_at: Some(ago(20)), from_store: true, ..claim(&spec) }).await;
    assert_eq!(t.view(spec.id).await.first_due_at, first);
});

on_every_backend!(a_row_of_a_build_without_first_due_times_has_its_next_one, async |t| {
    let spec = job(json!({}));
    t.insert(&spec).await;
    t.execute("update jobs set first_due_at = null").await;
    assert_eq!(t.view(spec.id).await.first_due_at, None);
    assert!(oldest(&t).await.is_some());
    t.publish().await;
    assert_eq!(oldest(&t).await, None);
    let run = t.run(&spec).await;
    t.finish(&run.end(snooze(LEASE), AttemptOutcome::NotSent)).await;
    let view = t.view(spec.id).await;
    assert_eq!(view.first_due_at, view.started_at, "it was due then");
});

on_every_backend!(jobs_that_are_final_or_held_or_gone_are_settled, async |t| {
    let mut expected = HashSet::from([JobId::new()]);
    let mut all: Vec<JobId> = expected.iter().copied().collect();
    for state in State::ALL.iter().copied() {
        let id = t.in_state(state).await;
        all.push(id);
        if state.is_settled() {
            expected.insert(id);
        }
    }
    assert_eq!(expected.len(), 5);
    assert_eq!(t.store.settled(&all).await.unwrap(), expected);
    assert!(t.store.settled(&[]).await.unwrap().is_empty());
});
