//! Rows of a newer version of errand, whose words this one does not know.

use std::time::Duration;

use errand::{
    job::{
        AttemptOutcome, Effect, Ending, EnvelopeReason, ErrorKind, HeldReason, JobId, Pin, PinnedBy,
        Principal, State, Stop,
    },
    store::{Claim, Claimed, Finished, HistoryFact, JobFilter, Rejected, RejectedFilter},
};
use serde_json::json;
use uuid::Uuid;

use super::{
    LEASE, OPERATOR, RunningJob, TestStore, batches, binding, claim, connections::take_all, error, job,
    job_with_reply, on_every_backend, one, retry, running,
};

/// Lets the database hold any word, as that of a newer version does.
async fn widen(t: &TestStore) {
    if t.is_postgres() {
        for domain in ["owner_kind", "effect", "pin_source", "job_state", "held_reason", "reporter"] {
            t.execute(&format!("alter domain {domain} drop constraint {domain}_check")).await;
        }
        t.execute("alter table job_history drop constraint job_history_kind_check").await;
        t.execute("alter table job_history drop constraint job_history_word_fits").await;
        t.execute("alter table pins drop constraint pins_owner_kind_check").await;
        t.execute("alter table batches drop constraint batches_doing_check").await;
    } else {
        // As if the tables had been built with the word.
        t.execute(
            "pragma writable_schema = on;
             update sqlite_master set sql = replace(replace(replace(replace(replace(sql, 'in (''user''', 'in (''quantum'', ''user'''),
                 'in (''safe''', 'in (''quantum'', ''safe'''), 'in (''job''', 'in (''quantum'', ''job'''),
                 'in (''scheduled'', ''available'', ''running''', 'in (''quantum'', ''scheduled'', ''available'', ''running'''),
                 'in (''unknown_outcome''', 'in (''quantum'', ''unknown_outcome''');
             pragma schema_version = 1000",
        )
        .await;
    }
}

/// Sets a column of one row to a word that no version knows, and what else goes with that by the table's rules.
async fn write_word(t: &TestStore, table: &str, column: &str, condition: &str) {
    let ignore = if t.is_postgres() { "" } else { "pragma ignore_check_constraints = on;" };
    let also = match column {
        "state" => ", due_at = null",
        "held_reason" => ", check_at = null",
        _ => "",
    };
    t.execute(&format!("{ignore} update {table} set {column} = 'quantum'{also} where {condition}")).await;
}

async fn bound(t: &TestStore) -> RunningJob {
    let spec = job_with_reply(json!({"effect": "safe"}), Some("replies"));
    let offered = Claim { binding: Some(binding("20260101_00")), ..claim(&spec) };
    RunningJob { id: spec.id, request_id: offered.request_id, receipt: running(t.claim(&offered).await) }
}

/// A job that is available after a first attempt that failed.
async fn available(t: &TestStore) -> JobId {
    let run = bound(t).await;
    t.finish(&run.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed)).await;
    t.publish().await;
    run.id
}

on_every_backend!(what_only_tells_is_read_as_unrecognized, async |t| {
    widen(&t).await;
    let id = available(&t).await;
    let row = format!("id = {}", t.literal(id));
    for column in ["error_kind", "pinned_by", "frozen_effect", "effect"] {
        write_word(&t, "jobs", column, &row).await;
    }
    for column in ["outcome", "error_kind"] {
        write_word(&t, "attempts", column, &format!("job_id = {}", t.literal(id))).await;
    }
    let view = t.view(id).await;
    let binding = view.binding.clone().unwrap();
    assert_eq!(view.error.unwrap().kind(), ErrorKind::Unrecognized);
    assert_eq!(
        (binding.pinned_by, binding.effect),
        (PinnedBy::Unrecognized, Effect::Once),
        "the most careful"
    );
    assert_eq!(view.spec.effect, Some(Effect::Once));
    let attempt = one(t.store.attempts(&Principal::Operator, id).await.unwrap());
    assert_eq!(attempt.outcome, Some(AttemptOutcome::Unrecognized));
    assert_eq!(attempt.error.unwrap().kind(), ErrorKind::Unrecognized);

    // It runs on, and nothing of what the newer version wrote is lost.
    let claimed = t.claim(&Claim { from_store: true, ..claim(&view.spec) }).await;
    let receipt = running(claimed);
    let run = RunningJob { id, request_id: t.view(id).await.request_id.unwrap(), receipt };
    assert_eq!(t.store.bind(&[run.bind(&binding)]).await.unwrap(), [true]);
    t.finish(&run.end(Ending::Snooze { after: LEASE, error: None }, AttemptOutcome::Interrupted)).await;
    for (column, word) in [("error_kind", 1), ("pinned_by", 1), ("frozen_effect", 1)] {
        let kept = t.count(&format!("select count(*) from jobs where {row} and {column} = 'quantum'")).await;
        assert_eq!(kept, word, "{column}");
    }
});

on_every_backend!(a_row_in_an_unknown_state_or_of_an_unknown_owner_stops_no_other, async |t| {
    widen(&t).await;
    for column in ["state", "owner_kind"] {
        let odd = available(&t).await;
        let spec = t.view(odd).await.spec;
        write_word(&t, "jobs", column, &format!("id = {}", t.literal(odd))).await;
        let good = job(json!({}));
        for from_store in [false, true] {
            let batch = [Claim { from_store, ..claim(&spec) }, claim(&job(json!({})))];
            let answers = t.store.claim(t.worker, &batch).await.unwrap();
            assert!(matches!(answers[0], Claimed::Duplicate(_)), "{column}: {:?}", answers[0]);
            running(answers[1].clone());
        }
        t.insert(&good).await;
        let listed =
            t.store.jobs(&Principal::Operator, &JobFilter::default(), None, 100).await.unwrap().items;
        assert!(listed.iter().any(|job| job.spec.id == good.id), "{column}");
        assert!(t.store.job(&Principal::Operator, odd).await.unwrap_err().to_string().contains(column));
    }
});

on_every_backend!(a_page_leaves_out_what_cannot_be_read_and_nothing_else, async |t| {
    widen(&t).await;
    let verify = || Ending::Verify { after: Duration::ZERO, error: error(ErrorKind::UnknownOutcome) };
    let (odd, good) = (bound(&t).await, bound(&t).await);
    for run in [&odd, &good] {
        t.finish(&run.end(verify(), AttemptOutcome::Unknown)).await;
    }
    write_word(&t, "jobs", "owner_kind", &format!("id = {}", t.literal(odd.id))).await;
    let checks = t.store.take_checks(10, LEASE).await.unwrap();
    assert_eq!(checks.iter().map(|check| check.job.spec.id).collect::<Vec<_>>(), [good.id]);
    assert!(t.store.take_checks(10, LEASE).await.unwrap().is_empty(), "both are taken");

    write_word(&t, "job_history", "kind", &format!("job_id = {}", t.literal(good.id))).await;
    assert!(t.store.history(&Principal::Operator, good.id).await.unwrap().is_empty());
    write_word(&t, "jobs", "held_reason", &format!("id = {}", t.literal(good.id))).await;
    assert_eq!(t.view(good.id).await.held_reason, Some(HeldReason::Unrecognized));
    let census = t.store.census().await.unwrap();
    assert!(census.held.contains(&(HeldReason::Unrecognized, 1)), "{census:?}");
    let filter = JobFilter { held_reason: Some(HeldReason::UnknownOutcome), ..JobFilter::default() };
    assert!(
        t.store.jobs(&Principal::Operator, &filter, None, 10).await.unwrap().items.is_empty(),
        "one is unreadable, the other has another"
    );

    let (odd, good) = (available(&t).await, available(&t).await);
    write_word(&t, "jobs", "owner_kind", &format!("id = {}", t.literal(odd))).await;
    t.store.republish_all().await.unwrap();
    let due = t.store.take_due(10, LEASE).await.unwrap();
    assert_eq!(due.iter().map(|due| due.spec.id).collect::<Vec<_>>(), [good]);
    assert!(t.store.take_due(10, LEASE).await.unwrap().is_empty(), "the odd one waits too");
});

on_every_backend!(an_attempt_that_a_newer_version_recorded_is_answered_for_and_left_as_it_is, async |t| {
    widen(&t).await;
    for column in ["outcome", "reported_by", "ended_as"] {
        let run = bound(&t).await;
        t.finish(&run.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed)).await;
        write_word(&t, "attempts", column, &format!("job_id = {}", t.literal(run.id))).await;
        let other = bound(&t).await;
        let late = run.end(retry(Duration::ZERO), AttemptOutcome::Unknown);
        let batch = [late, other.end(retry(Duration::ZERO), AttemptOutcome::ToolFailed)];
        let answers = t.store.finish(&batch).await.unwrap();
        assert_eq!(answers[1], Finished::Applied { state: State::Retryable, late: false }, "{column}");
        assert_eq!(t.state(run.id).await, State::Retryable, "{column}");
    }
});

on_every_backend!(connections_and_entries_that_cannot_be_read_hide_no_others, async |t| {
    widen(&t).await;
    let connect = || -> Ending {
        Stop::Connect { toolkit: "github".into(), error: error(ErrorKind::NeedsConnection) }.into()
    };
    for owner in ["odd", "good"] {
        let spec = job(json!({"user_id": owner}));
        let run = t.run(&spec).await;
        t.finish(&run.end(connect(), AttemptOutcome::Interrupted)).await;
        if owner == "good" {
            write_word(&t, "job_history", "what", &format!("job_id = {}", t.literal(run.id))).await;
            let held = HistoryFact::Held { reason: HeldReason::Unrecognized };
            assert_eq!(
                t.store.history(&Principal::Operator, run.id).await.unwrap().pop().unwrap().fact,
                held
            );
        }
    }
    write_word(&t, "awaited", "owner_kind", "owner_id = 'odd'").await;
    let taken = take_all(&t).await;
    assert_eq!(taken.iter().map(|awaited| awaited.owner.id()).collect::<Vec<_>>(), ["good"]);
});

on_every_backend!(pins_and_rejected_messages_that_cannot_be_read_hide_no_others, async |t| {
    widen(&t).await;
    let pin = |owner: &str| Pin {
        owner: Some(owner.parse().unwrap()),
        toolkit: "github".into(),
        version: "20260101_00".into(),
    };
    for owner in ["user:odd", "user:good"] {
        t.store.set_pin(&Principal::Operator, &pin(owner), OPERATOR).await.unwrap();
    }
    write_word(&t, "pins", "owner_kind", "owner_id = 'odd'").await;
    assert_eq!(t.store.pins().await.unwrap(), [pin("user:good")]);
    let rejected = Rejected {
        id: Uuid::from_u128(1),
        queue: "default".parse().unwrap(),
        reason: EnvelopeReason::Malformed,
        message: "the envelope is not a valid job".into(),
        body: Vec::new(),
        properties: "{}".into(),
        job: None,
        asked: None,
    };
    t.store.reject(&[rejected]).await.unwrap();
    write_word(&t, "rejected", "reason", "true").await;
    assert_eq!(
        t.store.rejected(&Principal::Operator, &RejectedFilter::default(), None, 10).await.unwrap()[0]
            .message
            .reason
            .as_str(),
        "unrecognized"
    );
    assert_eq!(t.state(available(&t).await).await, State::Available);
});

on_every_backend!(a_batch_that_cannot_be_read_keeps_no_other_waiting, async |t| {
    widen(&t).await;
    let (operator, owner) = (Principal::Operator, Principal::Owner("user:u-1".parse().unwrap()));
    // A batch that is to be called off, and the job of its item.
    let add = async || {
        let (batch, item) = (batches::batch(&owner), job(json!({})));
        batches::new(t.store.add_batch(&batch, std::slice::from_ref(&item)).await.unwrap());
        t.store.cancel_batch(&operator, batch.id, OPERATOR).await.unwrap();
        (batch.id, item.id)
    };
    for column in ["doing", "owner_kind"] {
        let ((odd, _), (good, item)) = (add().await, add().await);
        write_word(&t, "batches", column, &format!("id = {}", t.literal(JobId(odd.0)))).await;
        let taken = one(t.store.take_batches(10, LEASE).await.unwrap());
        assert_eq!(taken.batch.id, good, "{column}");
        assert!(t.store.take_batches(10, LEASE).await.unwrap().is_empty(), "the odd one is taken, too");
        let listed = t.store.batches(&operator, None, 10).await.unwrap();
        assert_eq!(listed.iter().map(|batch| batch.id).collect::<Vec<_>>(), [good], "{column}");
        let told = t.store.batch(&operator, odd, false).await.unwrap_err().to_string();
        assert!(told.contains(column), "{told}");

        // The other comes to its end.
        t.store.cancel(&operator, item, OPERATOR).await.unwrap();
        t.store.advance_batch(&taken, None).await.unwrap();
        t.store.count_batch(good, 10).await.unwrap();
        assert!(t.store.complete_batch(&taken).await.unwrap(), "{column}");
        t.execute("delete from batches").await;
    }
});
