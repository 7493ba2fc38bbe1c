//! The audit log.

use std::{borrow::Cow, collections::BTreeSet, time::Duration};

use errand::{
    access::NewKey,
    job::{BatchId, Digest, Edit, EnvelopeReason, JobId, Owner, Pin, Principal, Release},
    store::{
        ActionDecision, AddedKey, COMMAND_LINE, Change, ChangeFilter, ChangeKind, Decided, Decider, Edited,
        Force, JobFilter, NewAction, NewBatch, ObjectKind, Rejected, SharedStore, StoreErrorKind,
    },
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{FORCE, TestStore, fail, hold, job, on_every_backend};

const WHO: &Principal = &Principal::Operator;

fn ann() -> Decider {
    Decider { by: Cow::Borrowed("ann"), origin: Cow::Borrowed("192.0.2.7") }
}

async fn all(store: &SharedStore) -> Vec<Change> {
    store.changes(WHO, &ChangeFilter::default(), None, 1_000).await.unwrap()
}

/// What an entry says but for its time: what, whose, object, before and after.
fn told(change: &Change) -> Value {
    let json = serde_json::to_value(change.json()).unwrap();
    json!([json["what"], json["owner"]["id"], json["object"], json["before"], json["after"]])
}

async fn newest(t: &TestStore) -> Value {
    told(&all(&t.store).await[0])
}

async fn key(t: &TestStore, owner: &Owner, by: &Decider) -> Uuid {
    let scopes = "enqueue,read".parse().unwrap();
    let (key, _) = NewKey::generate(Principal::Owner(owner.clone()), scopes, None).unwrap();
    assert!(matches!(t.store.add_key(WHO, &key, by).await.unwrap(), AddedKey::Added(_)));
    key.id
}

/// A job of this owner that is held, one that failed, and one that runs.
async fn jobs(t: &TestStore, owner: &Owner) -> [JobId; 3] {
    let fields = json!({owner.kind().field(): owner.id(), "tool": "GITHUB_GET_REPO"});
    let (held, failed) = (t.run_bound(fields.clone()).await, t.run_bound(fields.clone()).await);
    t.finish(&held.end(hold(), errand::job::AttemptOutcome::Unknown)).await;
    t.finish(&failed.end(fail(), errand::job::AttemptOutcome::ToolFailed)).await;
    [held.id, failed.id, t.run_bound(fields).await.id]
}

on_every_backend!(what_is_decided_about_many_jobs_and_about_queues_has_its_entry, async |t| {
    let (owner, by): (Owner, _) = ("user:user-1".parse().unwrap(), &ann());
    let who = &Principal::Owner(owner.clone());
    let batch = NewBatch {
        id: BatchId::new(),
        principal: who.clone(),
        digest: Digest([1; 16]),
        is_sealed: true,
        deadline: None,
        stop: None,
        follow_up: None,
        callback: None,
    };
    let waiting = job(json!({"user_id": "user-1"}));
    t.store.add_batch(&batch, std::slice::from_ref(&waiting)).await.unwrap();
    for _ in 0..2 {
        t.store.cancel_batch(who, batch.id, by).await.unwrap();
        assert_eq!(newest(&t).await, json!(["batch.cancelled", "user-1", batch.id, null, null]), "once");
    }
    let action = NewAction {
        id: Uuid::now_v7(),
        decision: ActionDecision::Cancel,
        filter: JobFilter {
            tool: Some("GITHUB_GET_REPO".into()),
            tags: [("team".to_owned(), "a".to_owned())].into(),
            outcome_unknown: true,
            ..JobFilter::default()
        },
        until: None,
        force: Force::default(),
        preview: None,
        by: "ann".to_owned(),
    };
    t.store.make_action(who, &action, Duration::from_secs(60)).await.unwrap();
    for _ in 0..2 {
        t.store.confirm_action(who, action.id, by, false).await.unwrap();
        // Only the entry stays of which jobs were meant, when the action is removed. Tags are customers' data.
        let filter = json!({"tool": "GITHUB_GET_REPO", "outcome_unknown": true});
        let what = json!({"action": "cancel", "force": false, "filter": filter});
        assert_eq!(newest(&t).await, json!(["action.confirmed", "user-1", action.id, null, what]));
    }
    for _ in 0..2 {
        t.store.abort_action(who, action.id, by).await.unwrap();
        let what = json!({"action": "cancel"});
        assert_eq!(newest(&t).await, json!(["action.aborted", "user-1", action.id, null, what]));
    }
    let (queue, why) = ("bulk".parse().unwrap(), json!({"reason": "repair"}));
    for _ in 0..2 {
        t.store.pause_queue(&queue, by, "repair").await.unwrap();
        assert_eq!(newest(&t).await, json!(["queue.paused", null, "bulk", null, why]));
    }
    for _ in 0..2 {
        t.store.resume_queue(&queue, by).await.unwrap();
        assert_eq!(newest(&t).await, json!(["queue.resumed", null, "bulk", why, null]));
    }
    let entries = all(&t.store).await;
    assert_eq!(entries.len(), 5, "what changes nothing has none: {entries:?}");
    assert!(entries.iter().all(|entry| (&*entry.by, &*entry.origin) == ("ann", "192.0.2.7")));
    let edited = t.view(waiting.id).await;
    let after = edited.spec.edited(&Edit { priority: Some(7), ..Edit::default() }).unwrap();
    let edited = Edited::new(&edited, after, t.store.now().await.unwrap());
    assert!(matches!(t.store.edit(who, &edited, by).await.unwrap(), Decided::Now(_)));
    let told = newest(&t).await;
    assert_eq!((&told[0], &told[2]), (&json!("job.edited"), &json!(waiting.id)), "{told}");
    assert!(told[4]["changes"].as_str().unwrap().contains('7'), "{told}");
});

on_every_backend!(every_change_of_a_person_or_a_key_has_its_entry, and behind the lock, async |t| {
    let (owner, by): (Owner, _) = ("org:acme".parse().unwrap(), &ann());
    let before = t.count("select count(*) from changes").await;
    assert_eq!(before, 0, "what errand does by itself has none");

    let made = key(&t, &owner, by).await;
    let scopes = json!({"scopes": "enqueue,read", "expires_in_secs": null});
    assert_eq!(newest(&t).await, json!(["key.created", "acme", made, null, scopes]));
    let (new, _) = NewKey::generate(Principal::Owner(owner.clone()), "read".parse().unwrap(), None).unwrap();
    t.store.rotate_key(WHO, made, &new, Duration::from_secs(60), by).await.unwrap().unwrap();
    let replaced = json!({"replaced_by": new.id, "overlap_secs": 60});
    assert_eq!(newest(&t).await, json!(["key.rotated", "acme", made, null, replaced]));
    t.store.revoke_key(WHO, new.id, by).await.unwrap().unwrap();
    assert_eq!(newest(&t).await, json!(["key.revoked", "acme", new.id, null, null]));

    let [held, failed, running] = jobs(&t, &owner).await;
    let state = |word: &str| json!({ "state": word });
    t.store.release(WHO, held, Release::Succeeded, by).await.unwrap();
    assert_eq!(newest(&t).await, json!(["job.released", "acme", held, state("held"), state("succeeded")]));
    t.store.restart(WHO, failed, by, FORCE).await.unwrap();
    assert_eq!(newest(&t).await, json!(["job.retried", "acme", failed, state("failed"), state("available")]));
    t.store.cancel(WHO, running, by).await.unwrap();
    assert_eq!(
        newest(&t).await,
        json!(["job.cancelled", "acme", running, state("running"), state("running")])
    );

    let pin =
        |version: &str| Pin { owner: Some(owner.clone()), toolkit: "github".into(), version: version.into() };
    let version = |version: &str| json!({ "version": version });
    t.store.set_pin(&Principal::Operator, &pin("1"), by).await.unwrap();
    assert_eq!(newest(&t).await, json!(["pin.set", "acme", "github", null, version("1")]));
    t.store.set_pin(&Principal::Operator, &pin("2"), by).await.unwrap();
    assert_eq!(newest(&t).await, json!(["pin.set", "acme", "github", version("1"), version("2")]));
    t.store.unset_pin(&Principal::Operator, Some(&owner), "github", by).await.unwrap();
    assert_eq!(newest(&t).await, json!(["pin.removed", "acme", "github", version("2"), null]));
    t.store.set_pin(&Principal::Operator, &Pin { owner: None, ..pin("3") }, by).await.unwrap();
    assert_eq!(newest(&t).await, json!(["pin.set", null, "github", null, version("3")]));

    let message = Rejected {
        id: Uuid::now_v7(),
        queue: "default".parse().unwrap(),
        reason: EnvelopeReason::BadValue,
        message: "`priority` is wrong".into(),
        body: br#"{"user_id": "secret"}"#.to_vec(),
        properties: "{}".into(),
        job: None,
        asked: None,
    };
    t.store.reject(std::slice::from_ref(&message)).await.unwrap();
    t.store.mark_requeued(WHO, message.id, by, Some(b"{}".to_vec())).await.unwrap();
    let (reason, corrected) = (json!({"reason": "bad_value"}), json!({"corrected": true}));
    assert_eq!(newest(&t).await, json!(["rejected.requeued", null, message.id, reason, corrected]));

    let entries = all(&t.store).await;
    assert_eq!(entries.len(), 11);
    for entry in &entries {
        assert_eq!((&*entry.by, &*entry.origin, entry.as_operator), ("ann", "192.0.2.7", true));
    }
    let in_order = entries.windows(2).all(|pair| pair[0].place() > pair[1].place());
    assert!(in_order, "newest first");
});

on_every_backend!(what_changes_nothing_has_no_entry, and behind the lock, async |t| {
    let (owner, by): (Owner, _) = ("user:a".parse().unwrap(), &ann());
    let made = key(&t, &owner, by).await;
    t.store.revoke_key(WHO, made, by).await.unwrap().unwrap();
    let [held, failed, running] = jobs(&t, &owner).await;
    t.store.cancel(WHO, running, by).await.unwrap();
    let pin = Pin { owner: None, toolkit: "github".into(), version: "1".into() };
    t.store.set_pin(&Principal::Operator, &pin, by).await.unwrap();
    let entries = all(&t.store).await.len();

    t.store.revoke_key(WHO, made, by).await.unwrap().unwrap();
    let (new, _) = NewKey::generate(Principal::Owner(owner.clone()), "read".parse().unwrap(), None).unwrap();
    assert_eq!(t.store.rotate_key(WHO, made, &new, Duration::ZERO, by).await.unwrap(), None);
    t.store.cancel(WHO, running, by).await.unwrap();
    t.store.set_pin(&Principal::Operator, &pin, by).await.unwrap();
    assert!(!t.store.unset_pin(&Principal::Operator, Some(&owner), "github", by).await.unwrap());
    assert!(matches!(t.store.restart(WHO, held, by, FORCE).await.unwrap(), Decided::Illegal(_)));
    assert!(matches!(t.store.release(WHO, failed, Release::Retry, by).await.unwrap(), Decided::Illegal(_)));
    let other = Principal::Owner("user:b".parse().unwrap());
    assert_eq!(t.store.cancel(&other, held, by).await.unwrap(), Decided::Unknown);
    assert!(!t.store.mark_requeued(WHO, Uuid::now_v7(), by, None).await.unwrap());
    assert_eq!(all(&t.store).await.len(), entries);

    let nameless = Decider { by: Cow::Borrowed(""), ..ann() };
    let (foreign, _) = NewKey::generate(Principal::Operator, "read".parse().unwrap(), None).unwrap();
    for refused in [
        t.store.add_key(WHO, &foreign, &nameless).await.map(drop),
        t.store.revoke_key(WHO, made, &nameless).await.map(drop),
        t.store.set_pin(&Principal::Operator, &Pin { version: "2".into(), ..pin.clone() }, &nameless).await,
        t.store.unset_pin(&Principal::Operator, None, "github", &nameless).await.map(drop),
        t.store.note_erasure(&owner, &nameless).await,
    ] {
        assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::Data);
    }
    assert_eq!(t.store.pins().await.unwrap(), [pin]);
    assert_eq!(all(&t.store).await.len(), entries);
});

on_every_backend!(an_owner_reads_what_is_about_it_and_filters_leave_the_rest_out, and behind the lock, async |t| {
    let owners: [Owner; 3] = ["user:a", "org:a", "user:b"].map(|owner| owner.parse().unwrap());
    for owner in &owners {
        let [held, ..] = jobs(&t, owner).await;
        let own = Decider { by: Cow::Owned(format!("key {}", Uuid::now_v7())), ..ann() };
        t.store.cancel(&Principal::Owner(owner.clone()), held, &own).await.unwrap();
        key(&t, owner, &ann()).await;
    }
    let pin = |owner| Pin { owner, toolkit: "github".into(), version: "1".into() };
    t.store.set_pin(&Principal::Operator, &pin(None), &ann()).await.unwrap();
    for owner in &owners {
        let who = Principal::Owner(owner.clone());
        let seen = t.store.changes(&who, &ChangeFilter::default(), None, 100).await.unwrap();
        let seen: Vec<_> =
            seen.iter().map(|change| (change.what, change.owner.as_ref(), change.as_operator)).collect();
        let expected =
            [(ChangeKind::KeyCreated, Some(owner), true), (ChangeKind::JobCancelled, Some(owner), false)];
        assert_eq!(seen, expected);
        let other = ChangeFilter { owner: Some(owners[2].clone()), ..ChangeFilter::default() };
        let found = t.store.changes(&who, &other, None, 100).await.unwrap().len();
        assert_eq!(found, if *owner == owners[2] { 2 } else { 0 });
    }
    let entries = all(&t.store).await;
    let some = &entries[3];
    let none = ChangeFilter::default;
    for (filter, expected) in [
        (ChangeFilter { kind: Some(ObjectKind::Job), ..none() }, 3),
        (ChangeFilter { kind: Some(ObjectKind::Rejected), ..none() }, 0),
        (ChangeFilter { object: some.object.clone(), ..none() }, 1),
        (ChangeFilter { by: Some("ann".into()), ..none() }, 4),
        (ChangeFilter { since: Some(some.at), until: Some(entries[2].at), ..none() }, 1),
        (ChangeFilter { until: Some(some.at), ..none() }, 3),
        (ChangeFilter { kind: Some(ObjectKind::Key), owner: Some(owners[0].clone()), ..none() }, 1),
    ] {
        assert_eq!(t.store.changes(WHO, &filter, None, 100).await.unwrap().len(), expected, "{filter:?}");
    }
    // Page by page the same.
    let (mut walked, mut before) = (BTreeSet::new(), None);
    loop {
        let page = t.store.changes(WHO, &none(), before, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.place());
        walked.extend(page.iter().map(|change| change.id));
    }
    assert_eq!(walked.len(), entries.len());

    // Whoever pins by an owner's key does so as this owner, also in what the owner reads.
    let own = Principal::Owner(owners[0].clone());
    t.store.set_pin(&own, &pin(Some(owners[0].clone())), &ann()).await.unwrap();
    assert!(t.store.unset_pin(&own, Some(&owners[0]), "github", &ann()).await.unwrap());
    let pinned = t.store.changes(&own, &none(), None, 2).await.unwrap();
    let pinned: Vec<_> = pinned.iter().map(|change| (change.what, change.as_operator)).collect();
    assert_eq!(pinned, [(ChangeKind::PinRemoved, false), (ChangeKind::PinSet, false)]);
});

on_every_backend!(an_erasure_is_kept_and_the_owner_is_forgotten, async |t| {
    let [owner, other]: [Owner; 2] = ["user:erased", "user:stays"].map(|owner| owner.parse().unwrap());
    for owner in [&owner, &other] {
        let [held, ..] = jobs(&t, owner).await;
        let own = Decider { by: Cow::Owned(format!("key {}", Uuid::now_v7())), ..ann() };
        t.store.cancel(&Principal::Owner(owner.clone()), held, &own).await.unwrap();
        key(&t, owner, &ann()).await;
    }
    t.store.note_erasure(&owner, &Decider::at_command_line("ben")).await.unwrap();
    assert_eq!(t.store.forget_owner(&owner, 1).await.unwrap(), 1);
    assert_eq!(t.store.forget_owner(&owner, 100).await.unwrap(), 1);
    assert_eq!(t.store.forget_owner(&owner, 100).await.unwrap(), 0);
    let entries = all(&t.store).await;
    assert_eq!(entries.len(), 5);
    assert_eq!(
        (entries[0].what, &*entries[0].by, &*entries[0].origin),
        (ChangeKind::OwnerErased, "ben", COMMAND_LINE)
    );
    assert!(!format!("{entries:?}").contains("erased\""), "{entries:?}");
    let of_owner: Vec<&Change> = entries.iter().filter(|entry| entry.owner.is_none()).skip(1).collect();
    assert_eq!(of_owner.len(), 2);
    for entry in of_owner {
        assert_eq!(entry.object, None, "the ID of a job is theirs");
        assert_eq!(
            entry.origin,
            if entry.as_operator { "192.0.2.7" } else { "" },
            "where they were is theirs"
        );
    }
    let stays = t.store.changes(&Principal::Owner(other), &ChangeFilter::default(), None, 10).await.unwrap();
    assert!(stays.len() == 2 && stays.iter().all(|entry| entry.origin == "192.0.2.7"));
});

on_every_backend!(
    an_action_of_the_operator_does_not_tell_whose_jobs_it_was_about_once_they_are_erased,
    async |t| {
        let [owner, other]: [Owner; 2] = ["user:erased", "user:stays"].map(|owner| owner.parse().unwrap());
        for owner in [&owner, &other] {
            let action = NewAction {
                id: Uuid::now_v7(),
                decision: ActionDecision::Cancel,
                filter: JobFilter { owner: Some(owner.clone()), ..JobFilter::default() },
                until: None,
                force: Force::default(),
                preview: None,
                by: "ann".to_owned(),
            };
            t.store.make_action(&Principal::Operator, &action, Duration::from_secs(60)).await.unwrap();
            t.store.confirm_action(&Principal::Operator, action.id, &ann(), false).await.unwrap();
        }
        assert_eq!(t.store.forget_owner(&owner, 10).await.unwrap(), 1);
        assert_eq!(t.store.forget_owner(&owner, 10).await.unwrap(), 0);
        let told: Vec<Value> = all(&t.store).await.iter().map(|entry| json!(entry.after)).collect();
        let without = json!({"action": "cancel", "force": false});
        let with = json!({"action": "cancel", "force": false, "filter": {"owner": "user:stays"}});
        assert_eq!(told, [with, without], "the newest first");
    }
);

on_every_backend!(old_entries_are_removed_and_young_ones_stay, async |t| {
    for version in ["1", "2", "3"] {
        let pin = Pin { owner: None, toolkit: "github".into(), version: version.into() };
        t.store.set_pin(&Principal::Operator, &pin, &ann()).await.unwrap();
    }
    let hour = Duration::from_secs(3_600);
    assert_eq!(t.store.remove_changes(hour, 10).await.unwrap(), 0);
    let earlier = if t.is_postgres() { "at - interval '2 hours'" } else { "at - 7200000000" };
    t.execute(&format!("update changes set at = {earlier} where after_value not like '%3%'")).await;
    assert_eq!(t.store.remove_changes(hour, 1).await.unwrap(), 1);
    assert_eq!(t.store.remove_changes(hour, 10).await.unwrap(), 1);
    assert_eq!(all(&t.store).await.len(), 1);
});
