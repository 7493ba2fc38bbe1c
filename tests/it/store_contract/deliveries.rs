//! Deliveries of events to URLs: which are sent when, and what becomes of them.

use std::{collections::BTreeSet, time::Duration};

use errand::{
    job::{BatchId, JobId, Owner},
    store::{
        CallbackAnswer, Delivery, DeliveryFilter, DeliveryState, DueDelivery, EventKind, NewDelivery,
        NextTry, OwnUrl, Place, Recovery, TriedDelivery,
    },
};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::{
    OPERATOR, TestStore,
    callbacks::{DAY, URL, owner, secret, which},
    events::WHO,
    on_every_backend,
};

pub(super) const HOUR: Duration = Duration::from_secs(3_600);

const OTHER: &str = "https://other.example/";

/// The same job for the same number.
pub(super) fn job_of(n: u128) -> JobId {
    JobId(Uuid::from_u128(n))
}

/// Those of an owner to a URL have the same receiver.
fn receiver(of: &Owner, url: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("{of} {url}").as_bytes())
}

pub(super) fn delivery(of: &Owner, url: &str, job: JobId, position: u64) -> NewDelivery {
    NewDelivery {
        id: Uuid::now_v7(),
        receiver: receiver(of, url),
        owner: of.clone(),
        url: url.to_owned(),
        event_id: Uuid::now_v7(),
        kind: EventKind::JobHeld.as_str(),
        event: json!({"type": "job.held", "sequence": position}).to_string(),
        position,
        job: Some(job),
        batch: None,
        fresh: secret(1),
    }
}

pub(super) fn ids(deliveries: &[NewDelivery]) -> Vec<Uuid> {
    deliveries.iter().map(|delivery| delivery.id).collect()
}

pub(super) async fn seen(t: &TestStore) -> Vec<Delivery> {
    t.other.deliveries(WHO, &DeliveryFilter::default(), None, 1_000).await.unwrap()
}

/// The outcome of a delivery that was tried so often before.
fn tried(id: Uuid, tries: u32, next: NextTry) -> TriedDelivery {
    let (status, error) = match next {
        NextTry::Delivered => (Some(204), None),
        NextTry::After(_) => (Some(500), Some("refused")),
        NextTry::Never => (None, Some("timeout")),
    };
    TriedDelivery { id, next, tries, is_sent: true, status, error }
}

impl TestStore {
    pub(super) async fn add(&self, deliveries: &[NewDelivery]) {
        self.store.add_deliveries(deliveries).await.unwrap();
    }

    /// What is due, but of these receivers none, of each so many, and so many of all.
    async fn due_but(&self, without: &[Uuid], most: usize, limit: usize) -> Vec<DueDelivery> {
        self.other.due_deliveries(without, &[], most, limit).await.unwrap()
    }

    pub(super) async fn due(&self) -> Vec<DueDelivery> {
        self.due_but(&[], 1_000, 1_000).await
    }

    pub(super) async fn is_due(&self, expected: &[&NewDelivery]) {
        let due: BTreeSet<Uuid> = self.due().await.iter().map(|due| due.id).collect();
        let expected: BTreeSet<Uuid> = expected.iter().map(|delivery| delivery.id).collect();
        assert_eq!(due, expected);
    }

    pub(super) async fn note(&self, delivery: &NewDelivery, next: NextTry) {
        let tries = self.delivery(delivery.id).await.tries;
        self.store.note_deliveries(&[tried(delivery.id, tries, next)]).await.unwrap();
    }

    pub(super) async fn give_up(&self, deliveries: &[Uuid]) {
        let tried: Vec<_> = deliveries.iter().map(|id| tried(*id, 0, NextTry::Never)).collect();
        self.store.note_deliveries(&tried).await.unwrap();
    }

    async fn delivery(&self, id: Uuid) -> Delivery {
        seen(self).await.into_iter().find(|delivery| delivery.id == id).unwrap()
    }

    /// Makes a time of the store earlier.
    pub(super) fn earlier(&self, column: &str, seconds: u32) -> String {
        if self.is_postgres() {
            format!("{column} = {column} - interval '{seconds} seconds'")
        } else {
            format!("{column} = {column} - {seconds} * 1000000")
        }
    }

    async fn recover(&self, of: &Owner, recovery: &Recovery, limit: usize) -> (u64, Option<Place>) {
        self.store.recover_deliveries(WHO, of, recovery, limit, OPERATOR).await.unwrap()
    }

    async fn of_state(&self, state: DeliveryState) -> BTreeSet<Uuid> {
        seen(self)
            .await
            .iter()
            .filter(|delivery| delivery.state == state)
            .map(|delivery| delivery.id)
            .collect()
    }
}

fn set(deliveries: &[&NewDelivery]) -> BTreeSet<Uuid> {
    deliveries.iter().map(|delivery| delivery.id).collect()
}

const ALL_OF_THEM: Recovery = Recovery { since: Timestamp::UNIX_EPOCH, before: None, delivered: false };

on_every_backend!(a_delivery_is_due_at_once_and_tells_all_that_is_to_be_sent, async |t| {
    let of = owner("org:acme");
    let of_job = NewDelivery { batch: Some(BatchId(Uuid::from_u128(7))), ..delivery(&of, URL, job_of(1), 3) };
    let of_batch = NewDelivery { job: None, ..NewDelivery { id: Uuid::now_v7(), ..of_job.clone() } };
    let of_owner = NewDelivery { batch: None, id: Uuid::now_v7(), ..of_batch.clone() };
    let before = t.store.now().await.unwrap();
    t.add(&[]).await;
    t.add(&[of_job.clone(), of_batch.clone(), of_owner.clone()]).await;
    let due = t.due().await;
    t.is_due(&[&of_job, &of_batch, &of_owner]).await;
    for added in [&of_job, &of_batch, &of_owner] {
        let due = due.iter().find(|due| due.id == added.id).unwrap();
        assert_eq!((due.receiver, &due.owner, &due.url), (added.receiver, &added.owner, &added.url));
        assert_eq!((due.event_id, &due.event, due.job), (added.event_id, &added.event, added.job));
        assert_eq!((due.tries, which(&due.secrets), due.own), (0, vec![1], None));
        let told = t.delivery(added.id).await;
        assert_eq!((&told.owner, &told.url, told.event_id), (&added.owner, &added.url, added.event_id));
        assert_eq!((&*told.kind, told.job, told.batch), (added.kind, added.job, added.batch));
        assert_eq!((told.state, told.tries, told.last_status), (DeliveryState::Waiting, 0, None));
        assert_eq!((told.last_error, told.tried_at, told.finished_at), (None, None, None));
        assert!((before..=t.store.now().await.unwrap()).contains(&told.created_at));
        assert_eq!(told.due_at, Some(told.created_at));
    }
});

on_every_backend!(deliveries_that_are_added_again_stay_as_they_are, async |t| {
    let [of, other] = ["user:a", "user:b"].map(owner);
    let added: Vec<_> = (1..=4).map(|n| delivery(&of, URL, job_of(n), 1)).collect();
    t.set(&other, None, 5).await;
    let others = delivery(&other, URL, job_of(9), 1);
    let again: Vec<_> = added.iter().map(|one| NewDelivery { fresh: secret(2), ..one.clone() }).collect();
    let all = [again, vec![others]].concat();
    t.add(&added).await;
    t.note(&added[0], NextTry::Delivered).await;
    t.note(&added[1], NextTry::Never).await;
    t.note(&added[2], NextTry::After(HOUR)).await;
    let before: Vec<_> = [0, 1, 2, 3].map(|n| added[n].id).into();
    let state = async || {
        let mut told = Vec::new();
        for id in &before {
            told.push(format!("{:?}", t.delivery(*id).await));
        }
        told
    };
    let told = state().await;
    for store in [&t.store, &t.other] {
        store.add_deliveries(&all).await.unwrap();
        assert_eq!(state().await, told);
    }
    t.is_due(&[&all[3], &all[4]]).await;
    let due = t.due().await;
    let secrets = |id: Uuid| which(&due.iter().find(|due| due.id == id).unwrap().secrets);
    assert_eq!([secrets(all[3].id), secrets(all[4].id)], [[1], [5]], "an owner who has a secret keeps it");
});

on_every_backend!(an_event_waits_for_those_before_it_of_its_job_or_batch_at_the_same_url, async |t| {
    let of = owner("user:a");
    let batch = Some(BatchId(Uuid::from_u128(1_000)));
    for of_batch in [false, true] {
        t.execute("delete from deliveries").await;
        let at = |url, job, sequence| match of_batch {
            false => delivery(&of, url, job_of(job), sequence),
            // Events of its jobs name the batch, and are in the order of their jobs.
            true => NewDelivery { job: None, batch, ..delivery(&of, url, job_of(job), sequence) },
        };
        let [first, second, third] = [1, 2, 3].map(|sequence| at(URL, 1, sequence));
        let [elsewhere, next_there] = [1, 3].map(|sequence| at(OTHER, 1, sequence));
        let of_another = NewDelivery { batch, ..delivery(&of, URL, job_of(2), 9) };
        // In whichever order they are added.
        t.add(&[third.clone(), next_there.clone()]).await;
        t.add(&[second.clone(), first.clone(), elsewhere.clone(), of_another.clone()]).await;
        t.is_due(&[&first, &elsewhere, &of_another]).await;
        t.note(&first, NextTry::After(HOUR)).await;
        t.is_due(&[&elsewhere, &of_another]).await;
        t.note(&elsewhere, NextTry::Delivered).await;
        t.is_due(&[&next_there, &of_another]).await;
        t.execute(&format!("update deliveries set {}", t.earlier("due_at", 3600))).await;
        t.is_due(&[&first, &next_there, &of_another]).await;
        t.note(&first, NextTry::Never).await;
        t.is_due(&[&second, &next_there, &of_another]).await;
        t.note(&second, NextTry::Delivered).await;
        t.note(&of_another, NextTry::Delivered).await;
        t.is_due(&[&third, &next_there]).await;
        // One that is sent once more goes first, too.
        assert_eq!(t.recover(&of, &ALL_OF_THEM, 10).await.0, 1);
        t.is_due(&[&first, &next_there]).await;
    }
});

on_every_backend!(receivers_are_left_out_and_bounded_and_the_oldest_of_each_comes_first, async |t| {
    let [of, other] = ["user:a", "org:a"].map(owner);
    let mut added = Vec::new();
    for (n, (of, url)) in [(&of, URL), (&of, OTHER), (&other, URL)].into_iter().enumerate() {
        for place in 0..5 {
            let one = delivery(of, url, job_of((10 * n + place) as u128), 1);
            // One by one, so that each is due later than the one before it.
            t.add(std::slice::from_ref(&one)).await;
            added.push(one);
        }
    }
    for most in [1, 2, 5, 9] {
        let found: BTreeSet<Uuid> = t.due_but(&[], most, 100).await.iter().map(|due| due.id).collect();
        let expected = added.chunks(5).flat_map(|of_one| &of_one[..most.min(5)]).collect::<Vec<_>>();
        assert_eq!(found, set(&expected), "{most} of each");
    }
    let receivers = [receiver(&of, URL), receiver(&of, OTHER), receiver(&other, URL)];
    for (left_out, expected) in [(&receivers[..1], 10), (&receivers[1..], 5), (&receivers[..], 0)] {
        let found = t.due_but(left_out, 100, 100).await;
        assert_eq!(found.len(), expected);
        assert!(found.iter().all(|due| !left_out.contains(&due.receiver)));
    }
    assert_eq!(t.due_but(&[Uuid::now_v7()], 100, 100).await.len(), 15, "one that has nothing");
    assert_eq!(t.due_but(&[], 0, 100).await.len() + t.due_but(&[], 100, 0).await.len(), 0);
    let first = t.due_but(&receivers[..2], 100, 2).await;
    assert_eq!(first.iter().map(|due| due.id).collect::<Vec<_>>(), [added[10].id, added[11].id]);
});

on_every_backend!(owners_and_their_receivers_take_turns_however_much_waits_for_each, async |t| {
    let owners = ["user:a", "user:b", "user:c"].map(owner);
    let [of, ..] = &owners;
    for n in 0..20 {
        t.add(&[delivery(of, URL, job_of(n), 1)]).await;
    }
    for n in 20..22 {
        t.add(&[delivery(of, OTHER, job_of(n), 1)]).await;
    }
    for (n, of) in (30..).zip(&owners[1..]) {
        t.add(&[delivery(of, URL, job_of(n), 1), delivery(of, URL, job_of(n + 10), 1)]).await;
    }
    // Of each owner, and of the first one to another receiver.
    for (limit, expected) in [(4, [2, 1, 1, 1]), (8, [4, 2, 2, 2]), (100, [22, 2, 2, 2])] {
        let due = t.due_but(&[], 64, limit).await;
        let of = |of: &Owner| due.iter().filter(|due| due.owner == *of).count();
        let [first, second, third] = &owners;
        let elsewhere = due.iter().filter(|due| due.url == OTHER).count();
        assert_eq!([of(first), of(second), of(third), elsewhere], expected, "{limit} together");
    }
});

on_every_backend!(a_delivery_tells_whether_its_url_is_the_owners_and_how_that_is, async |t| {
    let [of, other] = ["user:a", "user:b"].map(owner);
    t.set(&of, Some(URL), 1).await;
    let (own, to_another) = (delivery(&of, URL, job_of(1), 1), delivery(&of, OTHER, job_of(2), 1));
    let of_other = delivery(&other, URL, job_of(3), 1);
    t.add(&[own.clone(), to_another.clone(), of_other.clone()]).await;
    let is_told = async |expected: Option<(bool, bool)>| {
        let due = t.due().await;
        let expected = expected.map(|(is_failing, is_disabled)| OwnUrl { is_failing, is_disabled });
        for (delivery, expected) in [(&own, expected), (&to_another, None), (&of_other, None)] {
            assert_eq!(due.iter().find(|due| due.id == delivery.id).unwrap().own, expected);
        }
    };
    is_told(Some((false, false))).await;
    t.store.note_callback(&of, URL, CallbackAnswer::NotTaken, DAY).await.unwrap();
    is_told(Some((true, false))).await;
    t.store.note_callback(&of, URL, CallbackAnswer::Taken, DAY).await.unwrap();
    is_told(Some((false, false))).await;
    t.store.note_callback(&of, URL, CallbackAnswer::Gone, DAY).await.unwrap();
    let due = t.due().await;
    assert!(due.iter().any(|due| due.own.is_some_and(|own| own.is_disabled)), "{due:?}");
    t.set(&of, Some(URL), 1).await;
    is_told(Some((false, false))).await;
    t.set(&of, Some("https://app.example/"), 1).await;
    is_told(None).await;
    t.set(&of, None, 1).await;
    is_told(None).await;
});

on_every_backend!(a_delivery_is_signed_by_two_secrets_while_one_takes_the_place_of_the_other, async |t| {
    let of = owner("user:a");
    t.add(&[delivery(&of, URL, job_of(1), 1)]).await;
    let signs = async || which(&t.due().await[0].secrets);
    assert_eq!(signs().await, [1]);
    t.store.callback_secrets(WHO, &of, &secret(2), Some(HOUR), OPERATOR).await.unwrap();
    assert_eq!(signs().await, [2, 1]);
    t.execute(&format!("update callbacks set {}", t.earlier("previous_until", 3600))).await;
    assert_eq!(signs().await, [2], "its time is over");
    t.store.callback_secrets(WHO, &of, &secret(3), Some(Duration::ZERO), OPERATOR).await.unwrap();
    assert_eq!(signs().await, [3]);
});

on_every_backend!(what_became_of_a_delivery_is_told_and_what_has_ended_stays_so, async |t| {
    let of = owner("user:a");
    let added: Vec<_> = (1..=3).map(|n| delivery(&of, URL, job_of(n), 1)).collect();
    t.add(&added).await;
    let before = t.store.now().await.unwrap();
    t.note(&added[0], NextTry::After(HOUR)).await;
    let told = t.delivery(added[0].id).await;
    let tried_at = told.tried_at.unwrap();
    assert!((before..=t.store.now().await.unwrap()).contains(&tried_at));
    assert_eq!((told.state, told.tries), (DeliveryState::Waiting, 1));
    assert_eq!((told.due_at, told.finished_at), (Some(tried_at + HOUR), None));
    assert_eq!((told.last_status, told.last_error.as_deref()), (Some(500), Some("refused")));
    t.is_due(&[&added[1], &added[2]]).await;
    for (place, next, state, last) in [
        (0, NextTry::Delivered, DeliveryState::Delivered, (Some(204), None)),
        (1, NextTry::Never, DeliveryState::Failed, (None, Some("timeout"))),
    ] {
        t.note(&added[place], next).await;
        let told = t.delivery(added[place].id).await;
        assert_eq!((told.state, told.tries, told.due_at), (state, if place == 0 { 2 } else { 1 }, None));
        assert_eq!((told.last_status, told.last_error.as_deref()), last);
        assert_eq!(told.finished_at, told.tried_at);
        for other in [NextTry::Delivered, NextTry::Never, NextTry::After(HOUR)] {
            t.note(&added[place], other).await;
            assert_eq!(format!("{:?}", t.delivery(added[place].id).await), format!("{told:?}"));
        }
    }
    t.store.note_deliveries(&[tried(Uuid::now_v7(), 0, NextTry::Delivered)]).await.unwrap();
    t.store.note_deliveries(&[]).await.unwrap();
    t.is_due(&[&added[2]]).await;
});

// The answer to a write may be lost, and then it is sent again.
on_every_backend!(an_outcome_that_is_noted_again_changes_nothing, async |t| {
    let of = owner("user:a");
    let added: Vec<_> = (1..=3).map(|n| delivery(&of, URL, job_of(n), 1)).collect();
    t.add(&added).await;
    let outcomes: Vec<_> = [NextTry::Delivered, NextTry::Never, NextTry::After(HOUR)]
        .into_iter()
        .zip(&added)
        .map(|(next, delivery)| tried(delivery.id, 0, next))
        .collect();
    t.store.note_deliveries(&outcomes).await.unwrap();
    let told = format!("{:?}", seen(&t).await);
    t.store.note_deliveries(&outcomes).await.unwrap();
    assert_eq!(format!("{:?}", seen(&t).await), told);
});

on_every_backend!(deliveries_are_listed_newest_first_page_by_page, async |t| {
    let [of, other] = ["user:a", "org:a"].map(owner);
    let mut added = Vec::new();
    for n in 0..6 {
        let whose = if n % 3 == 2 { &other } else { &of };
        let one = delivery(whose, URL, job_of(n), 1);
        t.add(std::slice::from_ref(&one)).await;
        added.insert(0, one);
    }
    t.note(&added[5], NextTry::Delivered).await;
    t.give_up(&[added[4].id]).await;
    let walk = async |filter: &DeliveryFilter, limit: usize| {
        let (mut all, mut before) = (Vec::new(), None);
        loop {
            let page = t.store.deliveries(WHO, filter, before, limit).await.unwrap();
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { return all };
            before = Some(last.place());
            all.extend(page.iter().map(|delivery| delivery.id));
        }
    };
    let state = |delivery: &NewDelivery| match delivery.id {
        id if id == added[5].id => DeliveryState::Delivered,
        id if id == added[4].id => DeliveryState::Failed,
        _ => DeliveryState::Waiting,
    };
    for whose in [None, Some(&of), Some(&other)] {
        for wanted in [None, Some(DeliveryState::Waiting), Some(DeliveryState::Failed)] {
            let filter = DeliveryFilter { owner: whose.cloned(), state: wanted };
            let fits = |one: &&NewDelivery| {
                whose.is_none_or(|of| *of == one.owner) && wanted.is_none_or(|wanted| wanted == state(one))
            };
            let expected: Vec<_> = added.iter().filter(fits).map(|one| one.id).collect();
            for limit in [1, 2, 100] {
                assert_eq!(walk(&filter, limit).await, expected, "{filter:?}, {limit} a page");
            }
        }
    }
});

on_every_backend!(
    deliveries_that_failed_are_sent_again_and_those_that_were_delivered_where_it_says_so,
    async |t| {
        let [of, other] = ["user:a", "org:a"].map(owner);
        let [first, second, third, delivered, waiting] =
            [1, 2, 3, 4, 5].map(|n| delivery(&of, URL, job_of(n), 1));
        let others = delivery(&other, URL, job_of(6), 1);
        for one in [&first, &second, &third, &delivered, &waiting, &others] {
            t.add(std::slice::from_ref(one)).await;
        }
        t.note(&waiting, NextTry::After(HOUR)).await;
        t.note(&delivered, NextTry::Delivered).await;
        let failed = [&first, &second, &third, &others];
        let give_up = async || t.give_up(&failed.map(|one| one.id)).await;
        give_up().await;

        let since = |one: &Delivery| Recovery { since: one.created_at, ..ALL_OF_THEM };
        assert_eq!(
            t.recover(&of, &Recovery { since: t.store.now().await.unwrap() + HOUR, ..ALL_OF_THEM }, 10).await,
            (0, None)
        );
        let (count, next) = t.recover(&of, &since(&t.delivery(second.id).await), 10).await;
        assert_eq!((count, next), (2, None), "from this time on");
        t.is_due(&[&second, &third]).await;
        let told = t.delivery(second.id).await;
        assert_eq!((told.state, told.tries, told.finished_at), (DeliveryState::Waiting, 0, None));
        assert!(told.due_at.is_some_and(|due| due >= told.created_at));
        assert_eq!(t.recover(&of, &since(&told), 10).await, (0, None), "they wait already");
        give_up().await;

        // The newest first, and where to go on.
        let (count, next) = t.recover(&of, &ALL_OF_THEM, 2).await;
        assert_eq!((count, next), (2, Some(t.delivery(second.id).await.place())));
        t.is_due(&[&second, &third]).await;
        let (count, next) = t.recover(&of, &Recovery { before: next, ..ALL_OF_THEM }, 2).await;
        assert_eq!((count, next), (1, None));
        t.is_due(&[&first, &second, &third]).await;
        give_up().await;

        let (count, next) = t.recover(&of, &Recovery { delivered: true, ..ALL_OF_THEM }, 10).await;
        assert_eq!((count, next), (4, None));
        t.is_due(&[&first, &second, &third, &delivered]).await;
        assert_eq!(t.delivery(waiting.id).await.tries, 1, "what waits goes on as it was");
        assert_eq!(t.of_state(DeliveryState::Failed).await, set(&[&others]), "that of another");
    }
);

on_every_backend!(deliveries_that_ended_long_ago_are_removed, async |t| {
    let of = owner("user:a");
    let added: Vec<_> = (1..=5).map(|n| delivery(&of, URL, job_of(n), 1)).collect();
    t.add(&added).await;
    t.note(&added[0], NextTry::Delivered).await;
    t.give_up(&[added[1].id, added[2].id, added[3].id]).await;
    assert_eq!(t.store.remove_deliveries(HOUR, 10).await.unwrap(), 0);
    t.execute(&format!(
        "update deliveries set {}, {}",
        t.earlier("created_at", 7200),
        t.earlier("due_at", 7200)
    ))
    .await;
    assert_eq!(t.store.remove_deliveries(HOUR, 10).await.unwrap(), 0, "they ended a moment ago");
    t.execute(&format!("update deliveries set {}", t.earlier("finished_at", 7200))).await;
    assert_eq!(t.store.remove_deliveries(DAY, 10).await.unwrap(), 0);
    assert_eq!(t.store.remove_deliveries(HOUR, 3).await.unwrap(), 3);
    assert_eq!(t.store.remove_deliveries(HOUR, 3).await.unwrap(), 1);
    assert_eq!(t.store.remove_deliveries(HOUR, 3).await.unwrap(), 0);
    t.is_due(&[&added[4]]).await;
    assert_eq!(seen(&t).await.len(), 1, "what waits stays, however old it is");
});

on_every_backend!(deliveries_of_an_owner_are_removed_whatever_they_are, async |t| {
    let [of, other] = ["user:a", "org:a"].map(owner);
    let added: Vec<_> = (1..=3).map(|n| delivery(&of, URL, job_of(n), 1)).collect();
    let others = delivery(&other, URL, job_of(4), 1);
    t.add(&added).await;
    t.add(std::slice::from_ref(&others)).await;
    t.note(&added[0], NextTry::Delivered).await;
    t.give_up(&[added[1].id]).await;
    for removed in [2, 1, 0] {
        assert_eq!(t.store.remove_deliveries_of(&of, 2).await.unwrap(), removed);
    }
    t.is_due(&[&others]).await;
});
