//! Insertion of jobs.

use std::{sync::Arc, time::Duration};

use errand::{
    job::{Arrival, Digest, JobSpec, Owner, OwnerKind, Principal, State, encode},
    store::{Claim, Conflict, Inserted, JobFilter, JobView, Repeated, StoreErrorKind},
};
use serde_json::json;
use sqlx::Connection as _;

use crate::jobs::{Properties, decode};

use super::{
    LEASE, TestStore, claim, from_json, in_hours, is_new, job, on_every_backend, one, renamed, running,
};

on_every_backend!(an_inserted_job_is_available_or_scheduled_by_the_stores_clock, async |t| {
    for (fields, state) in [
        (json!({}), State::Available),
        (json!({"run_at": in_hours(-1)}), State::Available),
        (json!({"run_at": in_hours(1)}), State::Scheduled),
    ] {
        let spec = job(fields);
        let Inserted::New(beginning) = t.insert(&spec).await else { panic!("it is new") };
        let view = t.view(spec.id).await;
        assert_eq!((beginning.state, view.state), (state, state));
        assert_eq!((view.attempt, view.spent), (0, 0));
        if state == State::Scheduled {
            assert_eq!(view.due_at, spec.run_at);
        } else {
            assert_eq!(view.due_at, Some(view.created_at), "the relay looks at once");
        }
    }
    let spec = job(json!({}));
    let wait = Duration::from_secs(60);
    t.store.insert(std::slice::from_ref(&spec), wait).await.unwrap();
    let view = t.view(spec.id).await;
    assert_eq!(view.due_at, Some(view.created_at + wait));
    assert!(t.store.insert(&[], wait).await.unwrap().is_empty());
});

on_every_backend!(what_an_insert_tells_of_a_new_job_is_what_reading_it_tells, async |t| {
    let whole = json!({
        "run_at": "2040-02-03T04:05:06.123456789+01:00", "expires_at": in_hours(1_000_000),
        "queue": "slow", "priority": 7, "tags": {"b": "1", "a": "2"}, "effect": "safe", "max_attempts": 3,
        "idempotency_key": "k", "arguments": {"n": 12345678901234567890_u64, "a": [1.50, null]},
    });
    for fields in [json!({}), json!({"run_at": in_hours(-1)}), whole] {
        for unclaimed_after in [Duration::ZERO, Duration::from_secs(60)] {
            let mut fields = fields.clone();
            if unclaimed_after.is_zero() && fields.get("idempotency_key").is_some() {
                fields["idempotency_key"] = json!("k2");
            }
            let spec = job(fields);
            let inserted = one(t.store.insert(std::slice::from_ref(&spec), unclaimed_after).await.unwrap());
            let Inserted::New(beginning) = inserted else { panic!("{inserted:?}") };
            let read = t.view(spec.id).await;
            assert_eq!(format!("{:#?}", JobView::new(spec, beginning)), format!("{read:#?}"));
        }
    }
});

on_every_backend!(what_an_insert_would_tell_of_a_known_job_is_told_without_it, async |t| {
    let first = job(json!({"idempotency_key": "k"}));
    assert_eq!(t.store.known(&first).await.unwrap(), None);
    t.insert(&first).await;
    let of_another = JobSpec { owner: "org:other".parse().unwrap(), ..JobSpec::clone(&first) };
    let other_key = job(json!({"idempotency_key": "k2"}));
    let again = [
        Arc::clone(&first),
        renamed(&first),
        Arc::new(of_another),
        Arc::new(JobSpec { digest: Digest([7; 16]), ..JobSpec::clone(&first) }),
        Arc::new(JobSpec { digest: Digest([7; 16]), ..JobSpec::clone(&renamed(&first)) }),
    ];
    for spec in again {
        let known = t.store.known(&spec).await.unwrap();
        assert_eq!(known, Some(t.insert(&spec).await), "{spec:?}");
    }
    assert_eq!(t.store.known(&other_key).await.unwrap(), None);
});

on_every_backend!(an_insert_repeated_changes_nothing, async |t| {
    let spec = job(json!({}));
    let batch = [Arc::clone(&spec), Arc::clone(&spec)];
    let answers = t.store.insert(&batch, Duration::ZERO).await.unwrap();
    let duplicate =
        Inserted::Duplicate(Repeated { id: spec.id, state: Some(State::Available), same_asker: true });
    assert!(is_new(&answers[0], State::Available));
    assert_eq!((answers.len(), &answers[1]), (2, &duplicate));
    let first = t.view(spec.id).await;
    assert_eq!(t.insert(&spec).await, duplicate);
    assert_eq!(t.view(spec.id).await.due_at, first.due_at);
    t.run(&spec).await;
    assert_eq!(
        t.insert(&spec).await,
        Inserted::Duplicate(Repeated { id: spec.id, state: Some(State::Running), same_asker: true })
    );
});

#[tokio::test]
async fn jobs_that_others_have_locked_are_told_from_a_table_that_none_may_write() {
    let t = TestStore::postgres().await;
    let (locked, free) = (job(json!({})), job(json!({})));
    t.store.insert(&[locked.clone(), free.clone()], Duration::ZERO).await.unwrap();
    let ids = [locked.id, free.id, job(json!({})).id];
    assert!(t.store.locked(&ids).await.unwrap().is_empty());
    let keeper = t.lock(&format!("select id from jobs where id = '{}' for update", locked.id)).await;
    assert_eq!(t.store.locked(&ids).await.unwrap(), [locked.id].into());
    keeper.close().await.unwrap();
    // An index that is built, a trigger that is made, and a table that is rewritten.
    for mode in ["share", "share row exclusive", "access exclusive"] {
        let keeper = t.lock(&format!("lock table jobs in {mode} mode")).await;
        assert_eq!(t.store.locked(&ids).await.unwrap_err().kind(), StoreErrorKind::Locked, "{mode}");
        keeper.close().await.unwrap();
    }
    for table in ["attempts", "claims"] {
        let keeper = t.lock(&format!("lock table {table} in share mode")).await;
        assert_eq!(t.store.locked(&ids).await.unwrap_err().kind(), StoreErrorKind::Locked, "{table}");
        keeper.close().await.unwrap();
    }
}

on_every_backend!(an_owner_of_old_stays_readable_and_its_jobs_run, async |t| {
    // Accepted before blanks and invisible characters were refused.
    for id in [" u ", "u\u{200b}", "\u{202e}u"] {
        assert!(Owner::new(OwnerKind::User, id).is_err());
        let owner = Owner::known(OwnerKind::User, id).unwrap();
        let old = job(json!({}));
        let relayed = decode_known(&encode(&JobSpec { owner: owner.clone(), ..JobSpec::clone(&old) }));
        t.insert(&relayed).await;
        assert_eq!(t.view(relayed.id).await.spec.owner, owner);
        running(t.claim(&Claim { from_store: true, ..claim(&relayed) }).await);
        let filter = JobFilter { owner: Some(owner), ..JobFilter::default() };
        assert_eq!(t.store.jobs(&Principal::Operator, &filter, None, 10).await.unwrap().items.len(), 1);
    }
});

/// What a worker makes of a relayed message.
fn decode_known(envelope: &[u8]) -> Arc<JobSpec> {
    let queue = "default".parse().unwrap();
    Arc::new(errand::job::decode(envelope, &Arrival { known: true, ..Arrival::new(&queue) }).unwrap())
}

on_every_backend!(an_insert_with_another_meaning_is_a_conflict, async |t| {
    let spec = job(json!({}));
    t.insert(&spec).await;
    let body = job(json!({"id": spec.id.to_string(), "tool": "OTHER"}));
    let owner = job(json!({"id": spec.id.to_string(), "org_id": "u-1"}));
    assert_eq!(t.insert(&body).await, Inserted::Conflict(Conflict::Body));
    assert_eq!(t.insert(&owner).await, Inserted::Conflict(Conflict::Owner));
    assert_eq!(t.view(spec.id).await.spec.tool, spec.tool);
});

on_every_backend!(an_idempotency_key_belongs_to_one_owner_and_one_body, async |t| {
    let first = job(json!({"idempotency_key": "k"}));
    let same = renamed(&first);
    let other = job(json!({"idempotency_key": "k", "tool": "OTHER"}));
    let org = job(json!({"idempotency_key": "k", "org_id": "u-1"}));
    let mut batch = vec![first.clone(), same.clone(), other.clone(), org];
    let answers = t.store.insert(&batch[..1], Duration::ZERO).await.unwrap();
    assert!(is_new(&answers[0], State::Available));
    let answers = t.store.insert(&batch, Duration::ZERO).await.unwrap();
    let duplicate = |same_asker| {
        Inserted::Duplicate(Repeated { id: first.id, state: Some(State::Available), same_asker })
    };
    assert_eq!(answers[0], duplicate(true));
    assert_eq!(answers[1], duplicate(false), "the first job stands for the second");
    assert_eq!(answers[2], Inserted::Conflict(Conflict::Key { first: Some(first.id) }));
    assert!(is_new(&answers[3], State::Available));
    assert!(t.store.job(&Principal::Operator, same.id).await.unwrap().is_none());
    assert!(t.store.job(&Principal::Operator, other.id).await.unwrap().is_none());

    // Two of one batch, of which neither was known.
    batch = vec![job(json!({"idempotency_key": "k2"}))];
    batch.push(renamed(&batch[0]));
    let answers = t.store.insert(&batch, Duration::ZERO).await.unwrap();
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Inserted::New(_))).count(), 1);
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Inserted::Duplicate(_))).count(), 1);
});

/// All that a job asks for: its envelope, digest, and what came with the message.
fn whole(spec: &JobSpec) -> (String, Digest, [Option<String>; 3]) {
    let with_message = [spec.reply_to.clone(), spec.correlation_id.clone(), spec.traceparent.clone()];
    (String::from_utf8(encode(spec)).unwrap(), spec.digest, with_message)
}

on_every_backend!(what_was_asked_for_comes_back_unchanged, async |t| {
    let arguments = r#"{ "z": 1, "a": 12345678901234567890123456789.000, "nul": "\u0000", "half": "\ud800", "e": 1E400, "z": 2 }"#;
    let envelope = format!(
        r#"{{"org_id": "acme", "requested_by": "bo", "tool": "T", "arguments": {arguments}, "version": "v1",
            "connected_account_id": "ca_9", "queue": "bulk", "priority": 7, "run_at": "2026-01-02T03:04:05.123456Z",
            "expires_at": "2099-01-02T03:04:05.654321Z", "timeout_ms": 1500, "max_attempts": 9,
            "max_age_ms": 3600000, "effect": "safe", "idempotency_key": "k", "tags": {{"b": "ä\"", "a": ""}}}}"#
    );
    let traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let full =
        decode(&envelope, Properties { reply_to: Some("replies"), traceparent }).map(Arc::new).unwrap();
    let text = from_json(r#"{"user_id": "ü", "tool": "T", "text": "do\nit", "queue": "bulk"}"#, None);
    for spec in [full, text] {
        t.insert(&spec).await;
        let view = t.view(spec.id).await;
        assert_eq!(whole(&view.spec), whole(&spec));
        let due = one(t.store.take_due(10, LEASE).await.unwrap());
        assert_eq!(due.was, State::Available);
        assert_eq!(whole(&due.spec), whole(&spec));
        // The worker that gets the relayed message sees the same job.
        let encoded = String::from_utf8(encode(&due.spec)).unwrap();
        let relayed = from_json(&encoded, spec.reply_to.as_deref());
        running(t.claim(&Claim { from_store: true, ..claim(&relayed) }).await);
    }
});
