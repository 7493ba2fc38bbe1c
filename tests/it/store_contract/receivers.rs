//! Receivers of callbacks: when they are looked at, and which are left alone.

use std::time::Duration;

use errand::store::{DeliveryState, NextTry};

use super::{
    OPERATOR, TestStore,
    callbacks::{DAY, URL, owner, secret},
    deliveries::{HOUR, delivery, job_of, seen},
    events::WHO,
    on_every_backend,
};

on_every_backend!(a_receiver_that_fails_is_left_alone_for_ever_longer_until_it_works, async |t| {
    let of = owner("user:a");
    let added: Vec<_> = (1..=3).map(|n| delivery(&of, URL, job_of(n), n as u64)).collect();
    let other = delivery(&owner("user:b"), URL, job_of(9), 9);
    t.add(&added).await;
    t.add(std::slice::from_ref(&other)).await;
    let receiver = added[0].receiver;
    let passes = async |seconds: u32| {
        let earlier = t.earlier("next_at", seconds);
        t.execute(&format!("update receivers set {earlier}")).await;
    };
    for wait in [1, 2, 4, 8] {
        assert_eq!(t.due().await.len(), 4, "before a wait of {wait} s");
        t.store.note_receivers(&[(receiver, false)]).await.unwrap();
        t.is_due(&[&other]).await;
        passes(wait - 1).await;
        t.is_due(&[&other]).await;
        passes(1).await;
    }
    let due = t.due().await;
    let of_receiver = due.iter().find(|due| due.receiver == receiver).unwrap();
    assert_eq!((of_receiver.failures, of_receiver.is_proven), (4, false));
    // Neither what is added for it nor what is to be tried again changes that.
    t.store.note_receivers(&[(receiver, false)]).await.unwrap();
    t.add(&[delivery(&of, URL, job_of(4), 4)]).await;
    t.note(&added[0], NextTry::After(Duration::ZERO)).await;
    t.is_due(&[&other]).await;
    t.store.note_receivers(&[(receiver, true)]).await.unwrap();
    let due = t.due().await;
    assert_eq!(due.len(), 5);
    assert!(due.iter().filter(|due| due.receiver == receiver).all(|due| due.failures == 0 && due.is_proven));
    // However often it fails, five minutes later it is tried.
    for _ in 0..40 {
        t.store.note_receivers(&[(receiver, false)]).await.unwrap();
    }
    t.is_due(&[&other]).await;
    passes(301).await;
    assert_eq!(t.due().await.len(), 5);
});

on_every_backend!(
    what_is_being_sent_is_given_to_nobody_and_is_due_again_when_its_sender_is_gone,
    async |t| {
        let of = owner("user:a");
        let added = [1, 2].map(|n| delivery(&of, URL, job_of(n), n as u64));
        t.add(&added).await;
        let open: Vec<_> = added.iter().map(|delivery| delivery.id).collect();
        let others = async |open: &[_]| {
            let due = t.store.due_deliveries(&[], open, 10, 10).await.unwrap();
            due.iter().map(|due| due.id).collect::<Vec<_>>()
        };
        assert_eq!(others(&open[..1]).await, [open[1]]);
        assert!(others(&open).await.is_empty());
        assert!(others(&open).await.is_empty(), "it is not looked at again soon");
        // Whoever sends them has them in mind; the next one has not, and looks soon.
        let later = t.earlier("next_at", 31);
        t.execute(&format!("update receivers set {later}")).await;
        assert_eq!(others(&[]).await.len(), 2);
        // One that is to be sent again is looked at when it is due.
        assert!(others(&open).await.is_empty());
        t.note(&added[0], NextTry::After(Duration::ZERO)).await;
        assert_eq!(others(&open[1..]).await, [open[0]]);
    }
);

on_every_backend!(what_comes_after_one_that_waits_waits_as_long, async |t| {
    let of = owner("user:a");
    let added: Vec<_> = (1..=3).map(|n| delivery(&of, URL, job_of(1), n)).collect();
    t.add(&added[..2]).await;
    t.note(&added[0], NextTry::After(HOUR)).await;
    t.add(&added[2..]).await;
    let due: Vec<_> = seen(&t).await.iter().map(|delivery| delivery.due_at.unwrap()).collect();
    assert!(due.iter().all(|at| *at == due[0]), "{due:?}");
    t.note(&added[0], NextTry::Never).await;
    let earlier = t.earlier("due_at", 3_601);
    t.execute(&format!("update deliveries set {earlier} where state = 'waiting'")).await;
    let earlier = t.earlier("next_at", 3_601);
    t.execute(&format!("update receivers set {earlier}")).await;
    t.is_due(&[&added[1]]).await;
});

on_every_backend!(what_has_waited_for_too_long_is_given_up_and_may_be_asked_for_again, async |t| {
    let of = owner("user:a");
    let added = [1, 2, 3].map(|n| delivery(&of, URL, job_of(n), n as u64));
    t.add(&added).await;
    t.note(&added[2], NextTry::Delivered).await;
    assert_eq!(t.store.expire_deliveries(DAY, 10).await.unwrap(), 0);
    let earlier = t.earlier("waiting_since", 86_401);
    t.execute(&format!("update deliveries set {earlier}")).await;
    assert_eq!(t.store.expire_deliveries(DAY, 1).await.unwrap(), 1);
    assert_eq!(t.store.expire_deliveries(DAY, 10).await.unwrap(), 1);
    let told = seen(&t).await;
    let expired = told.iter().filter(|told| told.last_error.as_deref() == Some("expired"));
    assert!(expired.clone().all(|told| told.state == DeliveryState::Failed && told.finished_at.is_some()));
    assert_eq!(expired.count(), 2);
    t.is_due(&[]).await;
    let all = errand::store::Recovery { since: jiff::Timestamp::UNIX_EPOCH, before: None, delivered: false };
    assert_eq!(t.store.recover_deliveries(WHO, &of, &all, 10, OPERATOR).await.unwrap().0, 2);
    t.is_due(&[&added[0], &added[1]]).await;
    assert_eq!(t.store.expire_deliveries(DAY, 10).await.unwrap(), 0, "it waits anew");
});

on_every_backend!(what_comes_for_a_url_that_is_disabled_has_failed_at_once, async |t| {
    let of = owner("user:a");
    t.store.set_callback(WHO, &of, Some(URL.parse().unwrap()), &secret(1), OPERATOR).await.unwrap();
    let gone = errand::store::CallbackAnswer::Gone;
    assert!(t.store.note_callback(&of, URL, gone, HOUR).await.unwrap());
    let to_it = delivery(&of, URL, job_of(1), 1);
    let to_another = delivery(&of, "https://job.example/", job_of(1), 1);
    t.add(&[to_it.clone(), to_another.clone()]).await;
    t.is_due(&[&to_another]).await;
    let told = seen(&t).await.into_iter().find(|told| told.id == to_it.id).unwrap();
    assert_eq!(
        (told.state, told.tries, told.last_error.as_deref()),
        (DeliveryState::Failed, 0, Some("disabled"))
    );
});
