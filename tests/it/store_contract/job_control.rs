//! What people and scripts read and decide.

use std::time::Duration;

use errand::{
    job::{
        AttemptOutcome, ErrorKind, Fence, HeldReason, JobId, Owner, QueueName, Release, State, Transition,
    },
    store::{Decided, HeldFilter, JobFilter},
};
use serde_json::{Value, json};

use super::{
    LEASE, OPERATOR, TestStore, connections::park, fail, in_hours, job, on_every_backend, one, retry, succeed,
};

on_every_backend!(held_jobs_are_released_by_a_filter, async |t| {
    let run = async |fields: Value, toolkit: &str| {
        let spec = job(fields);
        t.claim(&park(&spec, toolkit)).await;
        spec.id
    };
    let mine = run(json!({}), "github").await;
    let mail = run(json!({}), "gmail").await;
    let others = run(json!({"org_id": "u-1"}), "github").await;
    let unknown = t.in_state(State::Held).await;
    let filter = |owner: Option<&str>, toolkit: Option<&str>| HeldFilter {
        reason: HeldReason::Connection,
        owner: owner.map(|owner| owner.parse().unwrap()),
        toolkit: toolkit.map(str::to_owned),
    };
    for (filter, matching) in [
        (filter(None, None), 3),
        (filter(Some("user:u-1"), None), 2),
        (filter(None, Some("github")), 2),
        (filter(Some("user:u-1"), Some("github")), 1),
        (filter(Some("user:u-2"), None), 0),
        (HeldFilter { reason: HeldReason::UnknownOutcome, ..filter(None, None) }, 1),
    ] {
        assert_eq!(t.store.count_held(&filter).await.unwrap(), matching, "{filter:?}");
    }
    let one_owner = filter(Some("user:u-1"), None);
    assert_eq!(t.store.release_held(&one_owner, Release::Retry, OPERATOR, 1).await.unwrap(), 1);
    assert_eq!(t.store.release_held(&one_owner, Release::Retry, OPERATOR, 5).await.unwrap(), 1);
    assert_eq!(t.store.release_held(&one_owner, Release::Retry, OPERATOR, 5).await.unwrap(), 0);
    assert_eq!(t.store.take_due(10, LEASE).await.unwrap().len(), 2);
    assert_eq!((t.state(mine).await, t.state(mail).await), (State::Available, State::Available));
    assert_eq!((t.state(others).await, t.state(unknown).await), (State::Held, State::Held));

    let unknown_ones = HeldFilter { reason: HeldReason::UnknownOutcome, ..filter(None, None) };
    t.store.release_held(&unknown_ones, Release::Succeeded, OPERATOR, 5).await.unwrap();
    assert_eq!(t.view(unknown).await.result.unwrap().get(), "null");
    let unknown = t.in_state(State::Held).await;
    t.store.release_held(&unknown_ones, Release::Failed, OPERATOR, 5).await.unwrap();
    assert_eq!(t.view(unknown).await.error.map(|error| error.kind()), Some(ErrorKind::MarkedFailed));
});

on_every_backend!(a_decision_obeys_the_transitions_in_every_state, async |t| {
    let decisions = [
        Transition::Cancel,
        Transition::Restart,
        Transition::Release(Release::Retry),
        Transition::Release(Release::Succeeded),
        Transition::Release(Release::Failed),
    ];
    let decide = async |decision: &Transition, id: JobId| match decision {
        Transition::Cancel => t.store.cancel(id, OPERATOR).await.unwrap(),
        Transition::Restart => t.store.restart(id, OPERATOR, false).await.unwrap(),
        Transition::Release(release) => t.store.release(id, *release, OPERATOR).await.unwrap(),
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

on_every_backend!(a_restarted_job_has_a_fresh_budget, async |t| {
    let spec = job(json!({}));
    let run = t.run(&spec).await;
    t.store.cancel(spec.id, OPERATOR).await.unwrap();
    t.finish(&run.end(fail(), AttemptOutcome::ToolFailed)).await;
    assert_eq!(t.store.restart(spec.id, OPERATOR, false).await.unwrap(), Decided::Now(State::Available));
    let view = t.view(spec.id).await;
    assert_eq!((view.spent, view.attempt, view.cancel_requested), (0, 1, false));
    assert_eq!((view.error, view.result.is_none(), view.finished_at), (None, true, None));
    assert_eq!(one(t.store.take_due(10, LEASE).await.unwrap()).spec.id, spec.id, "it is due now");
    let again = t.run(&spec).await;
    assert_eq!((again.receipt.fence, again.receipt.attempt, again.receipt.spent), (Fence(2), 2, 0));
});

on_every_backend!(a_released_job_shows_what_a_person_decided, async |t| {
    let id = t.in_state(State::Held).await;
    t.store.release(id, Release::Succeeded, OPERATOR).await.unwrap();
    let view = t.view(id).await;
    assert_eq!((view.result.unwrap().get(), view.error, view.held_reason), ("null", None, None));
    let id = t.in_state(State::Held).await;
    t.store.release(id, Release::Failed, OPERATOR).await.unwrap();
    assert_eq!(t.view(id).await.error.map(|error| error.kind()), Some(ErrorKind::MarkedFailed));
    let id = t.in_state(State::Held).await;
    t.store.release(id, Release::Retry, OPERATOR).await.unwrap();
    assert_eq!(one(t.store.take_due(10, LEASE).await.unwrap()).spec.id, id);
    assert_eq!(t.view(id).await.held_reason, None);
});

on_every_backend!(a_running_attempt_is_listed_without_an_outcome, async |t| {
    let spec = job(json!({}));
    let first = t.run(&spec).await;
    t.finish(&first.end(retry(Duration::ZERO), AttemptOutcome::NotSent)).await;
    t.publish().await;
    let second = t.run(&spec).await;
    let attempts = t.store.attempts(spec.id).await.unwrap();
    let seen: Vec<_> = attempts.iter().map(|a| (a.number, a.request_id, a.outcome)).collect();
    assert_eq!(seen, [(1, first.request_id, Some(AttemptOutcome::NotSent)), (2, second.request_id, None)]);
    assert_eq!(Some(attempts[1].started_at), t.view(spec.id).await.started_at);
    assert_eq!(attempts[1].finished_at, None);
    assert!(t.store.attempts(JobId::new()).await.unwrap().is_empty());
});

on_every_backend!(jobs_are_listed_newest_first_by_every_filter, async |t| {
    let specs = [
        job(json!({"tool": "A"})),
        job(json!({"tool": "B"})),
        job(json!({"tool": "A", "org_id": "o"})),
        job(json!({"tool": "B", "org_id": "o"})),
    ];
    for spec in &specs {
        t.insert(spec).await;
    }
    t.finish(&t.run(&specs[0]).await.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    t.run(&specs[2]).await;
    let (user, org): (Owner, Owner) = ("user:u-1".parse().unwrap(), "org:o".parse().unwrap());
    let all = JobFilter { limit: 10, ..JobFilter::default() };
    for (filter, expected) in [
        (all.clone(), vec![3, 2, 1, 0]),
        (JobFilter { limit: 2, ..all.clone() }, vec![3, 2]),
        (JobFilter { state: Some(State::Available), ..all.clone() }, vec![3, 1]),
        (JobFilter { state: Some(State::Held), ..all.clone() }, vec![]),
        (JobFilter { tool: Some("A".into()), ..all.clone() }, vec![2, 0]),
        (JobFilter { owner: Some(user.clone()), ..all.clone() }, vec![1, 0]),
        (
            JobFilter {
                owner: Some(org),
                state: Some(State::Running),
                tool: Some("A".into()),
                ..all.clone()
            },
            vec![2],
        ),
    ] {
        let found = t.store.jobs(&filter).await.unwrap();
        let places: Vec<_> =
            found.iter().map(|view| specs.iter().position(|spec| spec.id == view.spec.id).unwrap()).collect();
        assert_eq!(places, expected, "{filter:?}");
        assert!(found.iter().all(|view| view.result.is_none()), "lists are without results");
    }
});

on_every_backend!(a_census_counts_what_is_not_final, async |t| {
    for state in State::ALL.iter().copied() {
        t.in_state(state).await;
    }
    t.insert(&job(json!({"queue": "bulk", "run_at": in_hours(-2)}))).await;
    t.execute("update jobs set due_at = run_at where queue = 'bulk'").await;
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
