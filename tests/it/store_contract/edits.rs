//! Changes of jobs that wait, and queues that are paused.

use errand::{
    job::{Edit, HeldReason, JobId, JobSpec, Principal, State},
    store::{Claim, Claimed, Conflict, Decided, Decider, Edited, HistoryFact, Inserted, Pause},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use std::{sync::Arc, time::Duration};

use super::{OPERATOR, TestStore, claim, connections::park, in_hours, job, on_every_backend, one};

/// An hour from now, as stores keep it.
fn later() -> Timestamp {
    in_hours(1).parse().unwrap()
}

/// Every change there is.
fn every_change() -> Edit {
    let expires_at = later() + SignedDuration::from_hours(1);
    Edit {
        run_at: Some(Some(later())),
        queue: Some("bulk".parse().unwrap()),
        priority: Some(7),
        expires_at: Some(Some(expires_at)),
    }
}

impl TestStore {
    /// What a job would be, as it is read now.
    async fn edited(&self, id: JobId, edit: &Edit) -> Edited {
        let read = self.view(id).await;
        let after = read.spec.edited(edit).unwrap();
        Edited::new(&read, after, self.store.now().await.unwrap())
    }

    async fn edit(&self, id: JobId, edit: &Edit) -> Decided {
        let edited = self.edited(id, edit).await;
        self.store.edit(&Principal::Operator, &edited, OPERATOR).await.unwrap()
    }
}

/// A claim by a message that the relay published of this job.
fn from_relay(spec: &Arc<JobSpec>) -> Claim {
    Claim { from_store: true, ..claim(spec) }
}

on_every_backend!(a_job_is_changed_as_long_as_it_waits_and_not_otherwise, async |t| {
    let plain = Edit { queue: "bulk".parse().ok(), priority: Some(7), ..Edit::default() };
    for edit in [plain, Edit { run_at: Some(Some(later())), ..Edit::default() }, every_change()] {
        for from in State::ALL.iter().copied() {
            let id = t.in_state(from).await;
            let before = t.view(id).await;
            let edited = t.edited(id, &edit).await;
            let answer = t.store.edit(&Principal::Operator, &edited, OPERATOR).await.unwrap();
            let view = t.view(id).await;
            match edited.transition().apply(from) {
                Ok(to) => {
                    assert_eq!(answer, Decided::Now(to), "{edit:?} of a {from} job");
                    assert_eq!((view.state, view.spec.digest), (to, edited.after.digest));
                    assert_eq!(
                        view.spec.queue.as_str(),
                        edit.queue.as_ref().map_or("default", |q| q.as_str())
                    );
                    assert_eq!(view.spec.run_at, edit.run_at.unwrap_or(before.spec.run_at));
                    assert_eq!(view.spec.expires_at, edit.expires_at.unwrap_or(None));
                    assert_eq!(view.asked, Some(before.spec.digest));
                    if let Some(Some(at)) = edit.run_at {
                        assert_eq!(view.due_at, Some(at), "it is due then");
                    }
                    let history = t.store.history(&Principal::Operator, id).await.unwrap();
                    let changes = before.spec.changes(&view.spec);
                    let told = history.last().unwrap();
                    assert_eq!((&*told.by, &told.fact), (&*OPERATOR.by, &HistoryFact::Edited { changes }));
                    let again = t.store.edit(&Principal::Operator, &edited, OPERATOR).await.unwrap();
                    assert_eq!(again, Decided::Changed, "it is another one than was read");
                }
                Err(illegal) => {
                    assert_eq!(answer, Decided::Illegal(illegal));
                    assert_eq!(format!("{view:?}"), format!("{before:?}"));
                }
            }
        }
    }
    let mut gone = t.edited(t.in_state(State::Available).await, &every_change()).await;
    gone.before = job(json!({}));
    assert_eq!(t.store.edit(&Principal::Operator, &gone, OPERATOR).await.unwrap(), Decided::Unknown);
});

on_every_backend!(a_message_from_before_a_change_is_none_of_the_job_any_more, async |t| {
    let spec = job(json!({}));
    t.insert(&spec).await;
    let published = one(t.store.take_due(10, Duration::from_secs(60)).await.unwrap()).spec;
    // Moved to another queue, and published there before it is moved once more.
    assert_eq!(
        t.edit(spec.id, &Edit { queue: "bulk".parse().ok(), ..Edit::default() }).await,
        Decided::Now(State::Available)
    );
    let moved = one(t.store.take_due(10, Duration::from_secs(60)).await.unwrap()).spec;
    assert_eq!(moved.queue.as_str(), "bulk", "the relay publishes it anew at once");
    assert_eq!(
        t.edit(spec.id, &Edit { run_at: Some(Some(later())), ..Edit::default() }).await,
        Decided::Now(State::Scheduled)
    );
    assert!(t.store.take_due(10, Duration::from_secs(60)).await.unwrap().is_empty(), "it is due later");

    for from_app in [claim(&spec), Claim { request_id: claim(&spec).request_id, ..claim(&spec) }] {
        let answer = t.claim(&from_app).await;
        assert!(matches!(&answer, Claimed::Duplicate(known) if known.id == spec.id), "{answer:?}");
    }
    for stale in [from_relay(&spec), from_relay(&published), from_relay(&moved)] {
        let answer = t.claim(&stale).await;
        assert!(matches!(answer, Claimed::Duplicate(_)), "{answer:?}");
    }
    // Due now: it is still none of the messages from before.
    assert_eq!(
        t.edit(spec.id, &Edit { run_at: Some(None), priority: Some(3), ..Edit::default() }).await,
        Decided::Now(State::Available)
    );
    let now = one(t.store.take_due(10, Duration::from_secs(60)).await.unwrap()).spec;
    for stale in [claim(&spec), from_relay(&spec), from_relay(&moved)] {
        let answer = t.claim(&stale).await;
        assert!(matches!(answer, Claimed::Duplicate(_)), "{answer:?}");
    }
    assert_eq!(t.view(spec.id).await.attempt, 0);
    t.run(&now).await;
    let answer = t.claim(&from_relay(&now)).await;
    assert!(matches!(answer, Claimed::Duplicate(_)), "it runs once: {answer:?}");
});

on_every_backend!(a_changed_job_is_the_job_that_was_asked_for_and_no_other_one_is, async |t| {
    let spec = job(json!({"idempotency_key": "key"}));
    t.insert(&spec).await;
    assert_eq!(t.edit(spec.id, &every_change()).await, Decided::Now(State::Scheduled));
    let now = t.view(spec.id).await.spec;
    for same in [&spec, &now] {
        assert!(matches!(t.insert(same).await, Inserted::Duplicate(known) if known.id == spec.id));
        assert!(t.view(spec.id).await.is_asked_by(same));
        let renamed = Arc::new(JobSpec { id: JobId::new(), ..(**same).clone() });
        assert!(
            matches!(t.insert(&renamed).await, Inserted::Duplicate(known) if known.id == spec.id),
            "by its key"
        );
    }
    let other = Arc::new(spec.edited(&Edit { priority: Some(1), ..Edit::default() }).unwrap());
    assert_eq!(t.insert(&other).await, Inserted::Conflict(Conflict::Body));
    assert!(matches!(t.claim(&claim(&other)).await, Claimed::Conflict(Conflict::Body)));
    let renamed = Arc::new(JobSpec { id: JobId::new(), ..(*other).clone() });
    assert_eq!(t.insert(&renamed).await, Inserted::Conflict(Conflict::Key { first: Some(spec.id) }));
    // Changed back, it is as it was asked for.
    let back =
        Edit { run_at: Some(None), queue: "default".parse().ok(), priority: Some(0), expires_at: Some(None) };
    assert_eq!(t.edit(spec.id, &back).await, Decided::Now(State::Available));
    assert_eq!(t.view(spec.id).await.spec.digest, spec.digest);
    t.run(&spec).await;
});

on_every_backend!(a_job_that_waits_for_a_connection_gives_up_when_it_expires_by_now, async |t| {
    let spec = job(json!({"expires_at": in_hours(2)}));
    t.claim(&park(&spec, "github")).await;
    let soon =
        Timestamp::from_microsecond((Timestamp::now() + SignedDuration::from_millis(1)).as_microsecond())
            .unwrap();
    assert_eq!(t.store.expire_awaiting(10).await.unwrap(), 0);
    let edit = Edit { expires_at: Some(Some(soon)), ..Edit::default() };
    assert_eq!(t.edit(spec.id, &edit).await, Decided::Now(State::Held));
    assert_eq!(t.view(spec.id).await.held_reason, Some(HeldReason::Connection));
    crate::support::wait::until("it has given up", crate::harness::PATIENCE, async || {
        (t.store.expire_awaiting(10).await.unwrap() == 1).then_some(())
    })
    .await;
    assert_eq!(t.state(spec.id).await, State::Failed);
});

on_every_backend!(a_queue_is_paused_by_the_first_until_it_is_resumed, async |t| {
    let queue = "bulk".parse().unwrap();
    assert!(t.store.paused_queues().await.unwrap().is_empty());
    assert!(t.store.pause_queue(&queue, OPERATOR, "a reason").await.unwrap());
    assert!(
        !t.store.pause_queue(&queue, &Decider::at_command_line("another"), "another reason").await.unwrap()
    );
    for (by, reason) in
        [("", "a reason"), (&*OPERATOR.by, " "), (&*OPERATOR.by, "a\nb"), (&*OPERATOR.by, &"x".repeat(501))]
    {
        let by = Decider::at_command_line(by.to_owned());
        assert!(t.store.pause_queue(&"other".parse().unwrap(), &by, reason).await.is_err(), "{reason}");
    }
    let paused = one(t.other.paused_queues().await.unwrap());
    let Pause { by, reason, since } = paused.pause;
    assert_eq!((paused.queue, &*by, &*reason), (queue.clone(), &*OPERATOR.by, "a reason"));
    assert!((since.as_second() - t.store.now().await.unwrap().as_second()).abs() < 600);
    assert!(t.store.resume_queue(&queue, OPERATOR).await.unwrap());
    assert!(!t.store.resume_queue(&queue, OPERATOR).await.unwrap());
    assert!(t.store.paused_queues().await.unwrap().is_empty());
});
