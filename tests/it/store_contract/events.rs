//! What is an event, and what it tells.

use std::{collections::HashSet, time::Duration};

use errand::{
    job::{
        AttemptOutcome, BatchId, Edit, Ending, ErrorKind, HeldReason, JobError, JobId, LookResult, Owner,
        Principal, Release, State, Stop,
    },
    store::{
        By, Claim, Decided, Edited, Event, EventKind, EventsAfter, EventsOf, Finish, Finished, JobDecision,
        PutOff, SharedStore, StoreErrorKind,
    },
};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::{
    FORCE, LEASE, OPERATOR, RunningJob, TestStore,
    batches::{batch, new, open, specs},
    claim,
    connections::{park, take_all},
    error, fail, hold, in_hours, job, late, on_every_backend, retry, succeed,
};
use crate::support::wait::until;

use EventKind::{
    BatchCancelled, BatchCompleted, BatchRetried, JobCancelRequested, JobCancelled, JobEdited, JobFailed,
    JobHeld, JobReleased, JobRetried, JobSucceeded,
};

pub(super) const WHO: &Principal = &Principal::Operator;

fn verify() -> Ending {
    Ending::Verify { after: Duration::ZERO, error: error(ErrorKind::UnknownOutcome) }
}

fn connect() -> Ending {
    Stop::Connect { toolkit: "github".into(), error: error(ErrorKind::NeedsConnection) }.into()
}

/// A look-up that told nothing, by which the log is asked again or not.
fn looked_up(run: &RunningJob, checks: u32, again_after: Option<Duration>) -> PutOff {
    let (fence, look) = (run.receipt.fence, LookResult::Absent);
    PutOff { id: run.id, fence, checks, again_after, look, detail: None }
}

/// A job with another priority.
pub(super) async fn edited(t: &TestStore, id: JobId) -> Edited {
    let read = t.view(id).await;
    let after = read.spec.edited(&Edit { priority: Some(7), ..Edit::default() }).unwrap();
    Edited::new(&read, after, t.store.now().await.unwrap())
}

pub(super) async fn page(store: &SharedStore, who: &Principal, after: u64, limit: usize) -> Vec<Event> {
    match store.events(who, EventsOf::All, (after > 0).then_some(after), limit).await.unwrap() {
        EventsAfter::Are { events, .. } => events,
        other => panic!("behind {after}: {other:?}"),
    }
}

pub(super) async fn all(t: &TestStore) -> Vec<Event> {
    page(&t.store, WHO, 0, 10_000).await
}

pub(super) async fn of_job(t: &TestStore, id: JobId) -> Vec<Event> {
    all(t).await.into_iter().filter(|event| event.job == Some(id)).collect()
}

pub(super) async fn of_batch(t: &TestStore, id: BatchId) -> Vec<Event> {
    all(t).await.into_iter().filter(|event| event.job.is_none() && event.batch == Some(id)).collect()
}

pub(super) fn kinds(events: &[Event]) -> Vec<EventKind> {
    events.iter().map(|event| event.kind).collect()
}

pub(super) fn sequences(events: &[Event]) -> Vec<u32> {
    events.iter().map(|event| event.sequence).collect()
}

/// Checks that a job has had these events, and that the last of them tells of it as it is now.
pub(super) async fn told(t: &TestStore, id: JobId, expected: &[EventKind]) {
    let events = of_job(t, id).await;
    assert_eq!(kinds(&events), expected);
    let Some(last) = events.last() else { return };
    let view = t.view(id).await;
    let as_it_is = Event {
        position: last.position,
        at: view.finished_at.unwrap_or(last.at),
        kind: last.kind,
        sequence: u32::try_from(events.len()).unwrap(),
        job: Some(id),
        batch: view.batch,
        owner: Some(view.spec.owner.clone()),
        tool: Some(view.spec.tool.clone()),
        toolkit: view.toolkit().map(str::to_owned),
        queue: Some(view.spec.queue.clone()),
        attempt: Some(view.attempt),
        held_reason: view.held_reason,
        error_kind: view.error.as_ref().map(JobError::kind),
    };
    assert_eq!(*last, as_it_is);
    assert!((view.created_at..=t.store.now().await.unwrap()).contains(&last.at), "{last:?}");
}

on_every_backend!(each_end_of_a_job_and_each_hold_is_one_event_that_tells_of_it, async |t| {
    for (ending, outcome, kind) in [
        (succeed("1"), AttemptOutcome::Succeeded, JobSucceeded),
        (fail(), AttemptOutcome::ToolFailed, JobFailed),
        (hold(), AttemptOutcome::Unknown, JobHeld),
        (verify(), AttemptOutcome::Unknown, JobHeld),
        (connect(), AttemptOutcome::Refused, JobHeld),
    ] {
        let bound = t.run_bound(json!({"queue": "bulk"})).await;
        let of_org = t.run(&job(json!({"org_id": "acme"}))).await;
        for run in [bound, of_org] {
            t.finish(&run.end(ending.clone(), outcome)).await;
            told(&t, run.id, &[kind]).await;
        }
    }
    // Claims that do not run their job.
    let refuse = Stop::Fail { error: error(ErrorKind::OwnerRefused) };
    let park = Stop::Connect { toolkit: "github".into(), error: error(ErrorKind::NeedsConnection) };
    let stay = Stop::Hold { reason: HeldReason::Unidentified, error: error(ErrorKind::UnknownOutcome) };
    for (stop, fields, kind) in [
        (Some(refuse), json!({}), JobFailed),
        (Some(park), json!({}), JobHeld),
        (Some(stay), json!({}), JobHeld),
        (None, json!({"expires_at": in_hours(-1)}), JobFailed),
    ] {
        for known in [false, true] {
            let spec = job(fields.clone());
            if known {
                t.insert(&spec).await;
            }
            t.claim(&Claim { stop: stop.clone(), from_store: known, ..claim(&spec) }).await;
            told(&t, spec.id, &[kind]).await;
        }
    }
    for state in [State::Scheduled, State::Available, State::Retryable] {
        let id = t.in_state(state).await;
        t.store.cancel(WHO, id, OPERATOR).await.unwrap();
        told(&t, id, &[JobCancelled]).await;
    }
    let held = t.in_state(State::Held).await;
    t.store.cancel(WHO, held, OPERATOR).await.unwrap();
    told(&t, held, &[JobHeld, JobCancelled]).await;
});

on_every_backend!(a_running_job_that_is_called_off_has_an_event_for_that_and_one_for_its_end, async |t| {
    let snooze = Ending::Snooze { after: LEASE, error: None };
    for (ending, kind) in [
        (retry(LEASE), JobCancelled),
        (snooze, JobCancelled),
        (hold(), JobCancelled),
        (succeed("1"), JobSucceeded),
        (fail(), JobFailed),
    ] {
        let run = t.run(&job(json!({}))).await;
        for _ in 0..2 {
            t.store.cancel(WHO, run.id, OPERATOR).await.unwrap();
            told(&t, run.id, &[JobCancelRequested]).await;
        }
        t.finish(&run.end(ending, AttemptOutcome::Unknown)).await;
        told(&t, run.id, &[JobCancelRequested, kind]).await;
    }
});

on_every_backend!(that_a_job_waits_runs_or_is_tried_again_is_no_event, async |t| {
    for state in [State::Scheduled, State::Available, State::Running, State::Retryable] {
        t.in_state(state).await;
    }
    let rescued = t.run_bound(json!({})).await;
    t.finish(&rescued.rescue(retry(Duration::ZERO))).await;
    for error in [None, Some(error(ErrorKind::Throttled))] {
        let run = t.run_bound(json!({})).await;
        let snooze = Ending::Snooze { after: Duration::ZERO, error };
        t.finish(&run.end(snooze, AttemptOutcome::Throttled)).await;
    }
    t.publish().await;
    assert_eq!(all(&t).await, []);
    assert_eq!(t.store.last_event().await.unwrap(), 0);
});

on_every_backend!(what_somebody_decides_about_a_job_is_an_event, async |t| {
    for (state, before) in [
        (State::Failed, &[JobFailed][..]),
        (State::Cancelled, &[JobCancelled]),
        (State::Retryable, &[]),
        (State::Scheduled, &[]),
    ] {
        let id = t.in_state(state).await;
        t.store.restart(WHO, id, OPERATOR, FORCE).await.unwrap();
        told(&t, id, &[before, &[JobRetried]].concat()).await;
    }
    for (decision, kind) in [
        (JobDecision::Release(Release::Retry), JobReleased),
        (JobDecision::ReleaseToRun(FORCE), JobReleased),
        (JobDecision::Release(Release::Succeeded), JobSucceeded),
        (JobDecision::Release(Release::Failed), JobFailed),
    ] {
        let run = t.run_bound(json!({})).await;
        t.finish(&run.end(hold(), AttemptOutcome::Unknown)).await;
        t.store.decide(WHO, run.id, decision, None, OPERATOR).await.unwrap();
        told(&t, run.id, &[JobHeld, kind]).await;
    }
    for (state, before) in [(State::Available, &[][..]), (State::Held, &[JobHeld])] {
        let id = t.in_state(state).await;
        t.store.edit(WHO, &edited(&t, id).await, OPERATOR).await.unwrap();
        told(&t, id, &[before, &[JobEdited]].concat()).await;
    }
});

on_every_backend!(a_job_that_waited_for_a_connection_has_an_event_when_that_is_over, async |t| {
    let specs = [job(json!({})), job(json!({}))];
    for spec in &specs {
        t.claim(&park(spec, "github")).await;
    }
    for awaited in take_all(&t).await {
        assert_eq!(t.store.release_awaited(&awaited, 10).await.unwrap(), 2);
    }
    for spec in &specs {
        told(&t, spec.id, &[JobHeld, JobReleased]).await;
    }
    let short = job(json!({"max_age_ms": 1}));
    t.claim(&park(&short, "github")).await;
    until("its age has passed", LEASE, async || {
        (t.store.expire_awaiting(10).await.unwrap() == 1).then_some(())
    })
    .await;
    told(&t, short.id, &[JobHeld, JobFailed]).await;
});

on_every_backend!(what_is_learned_late_is_an_event, async |t| {
    let run = t.run(&job(json!({}))).await;
    t.finish(&run.rescue(retry(Duration::ZERO))).await;
    let result = run.end(succeed("1"), AttemptOutcome::Succeeded);
    assert_eq!(t.finish(&result).await, late(State::Succeeded));
    told(&t, run.id, &[JobSucceeded]).await;

    let run = t.run(&job(json!({}))).await;
    t.finish(&run.rescue(verify())).await;
    let found = Finish { by: By::LookUp, ..run.end(fail(), AttemptOutcome::ToolFailed) };
    assert_eq!(t.finish(&found).await, late(State::Failed));
    told(&t, run.id, &[JobHeld, JobFailed]).await;

    let run = t.run(&job(json!({}))).await;
    t.finish(&run.rescue(retry(Duration::ZERO))).await;
    assert_eq!(t.finish(&run.end(connect(), AttemptOutcome::Refused)).await, late(State::Held));
    told(&t, run.id, &[JobHeld]).await;

    // Nobody looks any more, so it is for a person from then on.
    let run = t.run(&job(json!({}))).await;
    t.finish(&run.end(verify(), AttemptOutcome::Unknown)).await;
    assert!(t.store.put_off(&looked_up(&run, 0, Some(LEASE))).await.unwrap());
    told(&t, run.id, &[JobHeld]).await;
    assert!(t.store.put_off(&looked_up(&run, 1, None)).await.unwrap());
    told(&t, run.id, &[JobHeld, JobHeld]).await;
});

on_every_backend!(the_events_of_a_job_are_counted_in_their_order_and_keep_their_ids, async |t| {
    let spec = job(json!({"id": "0190b0a0-0000-7000-8000-000000000001"}));
    for _ in 0..5 {
        let run = t.run(&spec).await;
        t.finish(&run.end(fail(), AttemptOutcome::ToolFailed)).await;
        t.in_state(State::Failed).await;
        t.store.restart(WHO, spec.id, OPERATOR, FORCE).await.unwrap();
    }
    let events = of_job(&t, spec.id).await;
    assert_eq!(sequences(&events), (1..=10).collect::<Vec<u32>>());
    let all = all(&t).await;
    assert!(all.windows(2).all(|pair| pair[0].position < pair[1].position));
    let ids: HashSet<Uuid> = all.iter().map(Event::id).collect();
    assert_eq!((all.len(), ids.len()), (15, 15));
    assert_eq!(page(&t.other, WHO, 0, 100).await, all);
    assert!(page(&t.other, WHO, 0, 100).await.iter().map(Event::id).eq(all.iter().map(Event::id)));
    let fixed = Event {
        job: Some("0190b0a0-0000-7000-8000-000000000001".parse().unwrap()),
        sequence: 3,
        at: Timestamp::from_microsecond(1_760_000_000_000_001).unwrap(),
        ..events[0].clone()
    };
    assert_eq!(fixed.id().to_string(), "5d805e77-3cc3-5828-85f6-d9f4ba3b7508", "it is for ever");
});

on_every_backend!(a_write_that_is_sent_again_adds_no_event, async |t| {
    let refuse = Stop::Fail { error: error(ErrorKind::OwnerRefused) };
    let claims = [Claim { stop: Some(refuse), ..claim(&job(json!({}))) }, park(&job(json!({})), "github")];
    let mut finishes = Vec::new();
    for (ending, outcome) in [
        (succeed("1"), AttemptOutcome::Succeeded),
        (fail(), AttemptOutcome::ToolFailed),
        (hold(), AttemptOutcome::Unknown),
    ] {
        finishes.push(t.run(&job(json!({}))).await.end(ending, outcome));
    }
    let rescued = t.run(&job(json!({}))).await;
    t.finish(&rescued.rescue(retry(LEASE))).await;
    finishes.push(rescued.end(fail(), AttemptOutcome::ToolFailed));
    let doubled: Vec<Finish> = finishes.iter().chain(&finishes).cloned().collect();
    let unknown = t.run(&job(json!({}))).await;
    t.finish(&unknown.end(verify(), AttemptOutcome::Unknown)).await;
    let (waiting, runs) = (t.in_state(State::Available).await, t.in_state(State::Running).await);
    let (failed, held) = (t.in_state(State::Failed).await, t.in_state(State::Held).await);
    let edited = edited(&t, t.in_state(State::Available).await).await;
    assert_eq!(kinds(&all(&t).await), [JobHeld, JobFailed, JobHeld]);

    let mut first: Option<Vec<Event>> = None;
    for _ in 0..2 {
        t.store.claim(t.worker, &claims).await.unwrap();
        t.store.finish(&doubled).await.unwrap();
        t.store.put_off(&looked_up(&unknown, 0, None)).await.unwrap();
        t.store.cancel(WHO, waiting, OPERATOR).await.unwrap();
        t.store.cancel(WHO, runs, OPERATOR).await.unwrap();
        t.store.restart(WHO, failed, OPERATOR, FORCE).await.unwrap();
        t.store.release(WHO, held, Release::Succeeded, OPERATOR).await.unwrap();
        t.store.edit(WHO, &edited, OPERATOR).await.unwrap();
        let events = all(&t).await;
        assert_eq!(events.len(), 3 + 12, "{:?}", kinds(&events));
        assert_eq!(*first.get_or_insert_with(|| events.clone()), events);
    }
});

on_every_backend!(what_is_not_applied_is_no_event, async |t| {
    let (held, unfit) = (t.run(&job(json!({}))).await, t.run(&job(json!({}))).await);
    let mut refused = unfit.end(fail(), AttemptOutcome::ToolFailed);
    refused.attempt.log_id = Some("a\0b".into());
    let finishes = [held.end(hold(), AttemptOutcome::Unknown), refused];
    assert_eq!(t.store.finish(&finishes).await.unwrap_err().kind(), StoreErrorKind::Data);

    let spec = job(json!({}));
    let first = t.run(&spec).await;
    t.finish(&first.rescue(retry(Duration::ZERO))).await;
    t.publish().await;
    let second = t.run(&spec).await;
    assert_eq!(t.finish(&first.end(fail(), AttemptOutcome::ToolFailed)).await, Finished::Fenced);

    let other = Principal::Owner("user:other".parse().unwrap());
    assert_eq!(t.store.cancel(&other, second.id, OPERATOR).await.unwrap(), Decided::Unknown);
    let answer = t.store.release(WHO, second.id, Release::Retry, OPERATOR).await.unwrap();
    assert!(matches!(answer, Decided::Illegal(_)), "{answer:?}");
    assert_eq!(all(&t).await, []);
});

/// Completes a batch whose jobs have ended, twice.
pub(super) async fn complete(t: &TestStore, id: BatchId) {
    let taken = t.store.take_batches(100, LEASE).await.unwrap();
    let taken = taken.into_iter().find(|taken| taken.batch.id == id).unwrap();
    if taken.doing.is_some() {
        t.store.advance_batch(&taken, None).await.unwrap();
    }
    t.store.count_batch(id, 100).await.unwrap();
    for _ in 0..2 {
        assert!(t.store.complete_batch(&taken).await.unwrap());
    }
}

on_every_backend!(a_batch_has_events_of_its_own_and_those_of_its_items_name_it, async |t| {
    let owner: Owner = "user:user-1".parse().unwrap();
    let own = Principal::Owner(owner.clone());
    let (empty, full, items) = (batch(&own), batch(&own), specs(3));
    for _ in 0..2 {
        t.store.add_batch(&empty, &[]).await.unwrap();
        t.store.add_batch(&full, &items).await.unwrap();
    }
    assert_eq!(kinds(&of_batch(&t, empty.id).await), [BatchCompleted]);
    assert_eq!(of_batch(&t, full.id).await, []);
    for (spec, fails) in items.iter().zip([false, true, true]) {
        let run = t.run(spec).await;
        let ending = if fails { fail() } else { succeed("1") };
        t.finish(&run.end(ending, AttemptOutcome::Unknown)).await;
        assert_eq!(t.view(spec.id).await.batch, Some(full.id));
        told(&t, spec.id, &[if fails { JobFailed } else { JobSucceeded }]).await;
    }
    complete(&t, full.id).await;
    for _ in 0..2 {
        t.store.retry_batch(&own, full.id, OPERATOR, true, None).await.unwrap();
    }
    for _ in 0..2 {
        t.store.cancel_batch(&own, full.id, OPERATOR).await.unwrap();
    }
    complete(&t, full.id).await;
    let events = of_batch(&t, full.id).await;
    assert_eq!(kinds(&events), [BatchCompleted, BatchRetried, BatchCancelled, BatchCompleted]);
    assert_eq!(sequences(&events), [1, 2, 3, 4]);
    assert_eq!(Some(events[3].at), t.batch(full.id).await.completed_at);
    for event in &events {
        assert_eq!((event.owner.as_ref(), event.attempt), (Some(&owner), None));
        assert_eq!((&event.tool, &event.toolkit, &event.queue), (&None, &None, &None));
        assert_eq!((event.held_reason, event.error_kind), (None, None));
    }
});

// It has no owner.
on_every_backend!(a_batch_of_the_operator_has_events_and_hides_none_behind_them, async |t| {
    let [empty, full] = [batch(WHO), batch(WHO)];
    new(t.store.add_batch(&empty, &[]).await.unwrap());
    let items = specs(1);
    new(t.store.add_batch(&full, &items).await.unwrap());
    let run = t.run(&items[0]).await;
    t.finish(&run.end(succeed("1"), AttemptOutcome::Succeeded)).await;
    complete(&t, full.id).await;
    told(&t, run.id, &[JobSucceeded]).await;
    let opened = open(WHO);
    new(t.store.add_batch(&opened, &[]).await.unwrap());
    t.store.cancel_batch(WHO, opened.id, OPERATOR).await.unwrap();
    let id = t.in_state(State::Succeeded).await;
    told(&t, id, &[JobSucceeded]).await;
    let expected = [(empty.id, BatchCompleted), (full.id, BatchCompleted), (opened.id, BatchCancelled)];
    for (id, kind) in expected {
        let events = of_batch(&t, id).await;
        assert_eq!((kinds(&events), &events[0].owner), (vec![kind], &None));
    }
});

on_every_backend!(events_of_one_job_or_batch_are_those_of_all_that_are_about_it, and behind the lock, async |t| {
    let owners: [Owner; 2] = ["user:a", "user:b"].map(|owner| owner.parse().unwrap());
    let whose: Vec<_> = owners.iter().cloned().map(Principal::Owner).collect();
    let mut asked = Vec::new();
    for (owner, who) in owners.iter().zip(&whose) {
        let items = [(); 2].map(|()| job(json!({owner.kind().field(): owner.id()})));
        let whole = batch(who);
        new(t.store.add_batch(&whole, &items).await.unwrap());
        for item in &items {
            t.store.cancel(who, item.id, OPERATOR).await.unwrap();
        }
        t.store.restart(who, items[0].id, OPERATOR, FORCE).await.unwrap();
        asked.extend(items.iter().map(|item| EventsOf::Job(item.id)));
        asked.push(EventsOf::Batch(whole.id));
    }
    let all = all(&t).await;
    assert_eq!(all.len(), 6);
    let is_of = |event: &Event, of: EventsOf| match of {
        EventsOf::Job(id) => event.job == Some(id),
        EventsOf::Batch(id) => event.batch == Some(id),
        EventsOf::All => true,
    };
    for (place, of) in asked.iter().enumerate() {
        let own: Vec<Event> = all.iter().filter(|event| is_of(event, *of)).cloned().collect();
        assert!(!own.is_empty());
        for (who, owner) in [WHO, &whose[0], &whose[1]].into_iter().zip([None, Some(0), Some(1)]) {
            let expected = if owner.is_none_or(|owner| owner == place / 3) { own.as_slice() } else { &[] };
            for after in [0].into_iter().chain(own.iter().map(|event| event.position)) {
                let told = t.store.events(who, *of, Some(after), 10).await.unwrap();
                let rest = expected.iter().filter(|event| event.position > after);
                let (events, next) = (rest.cloned().collect(), all[5].position);
                assert_eq!(told, EventsAfter::Are { events, next }, "{of:?} behind {after} by {who:?}");
            }
        }
    }
    assert_eq!(
        t.store.events(WHO, EventsOf::Batch(BatchId::new()), None, 10).await.unwrap(),
        EventsAfter::Are { events: vec![], next: all[5].position }
    );
});

on_every_backend!(an_owner_sees_their_own_events_only, and behind the lock, async |t| {
    let owners: [Owner; 3] = ["user:a", "org:a", "user:b"].map(|owner| owner.parse().unwrap());
    for owner in owners.iter().chain(&owners) {
        let who = Principal::Owner(owner.clone());
        let run = t.run(&job(json!({owner.kind().field(): owner.id()}))).await;
        t.finish(&run.end(hold(), AttemptOutcome::Unknown)).await;
        t.store.release(&who, run.id, Release::Failed, OPERATOR).await.unwrap();
        t.store.restart(&who, run.id, OPERATOR, FORCE).await.unwrap();
        t.store.edit(&who, &edited(&t, run.id).await, OPERATOR).await.unwrap();
        t.store.cancel(&who, run.id, OPERATOR).await.unwrap();
        told(&t, run.id, &[JobHeld, JobFailed, JobRetried, JobEdited, JobCancelled]).await;
        let opened = open(&who);
        new(t.store.add_batch(&opened, &[]).await.unwrap());
        t.store.cancel_batch(&who, opened.id, OPERATOR).await.unwrap();
    }
    let all = all(&t).await;
    assert_eq!(all.len(), 36);
    for owner in &owners {
        let who = Principal::Owner(owner.clone());
        let own = all.iter().filter(|event| event.owner.as_ref() == Some(owner));
        let own: Vec<Event> = own.cloned().collect();
        assert_eq!(own.len(), 12);
        assert_eq!(page(&t.store, &who, 0, 100).await, own);
        assert_eq!(page(&t.store, &who, 0, 5).await, own[..5]);
        for Event { position, .. } in &all {
            let behind = own.iter().filter(|event| event.position > *position);
            assert!(page(&t.store, &who, *position, 100).await.iter().eq(behind), "behind {position}");
        }
    }
    let stranger = Principal::Owner("org:b".parse().unwrap());
    assert_eq!(page(&t.store, &stranger, 0, 100).await, []);
});
