//! What an owner sets, what signs for them, and when nothing is sent there any more.

use std::{borrow::Cow, time::Duration};

use errand::{
    callback::Secret,
    job::{CallbackUrl, Owner, Principal},
    store::{
        Callback, CallbackAnswer, Change, ChangeFilter, Decider, DeliveryFilter, Event, EventKind,
        EventsAfter, EventsOf, Recovery, Secrets, SharedStore, StoreErrorKind, WhyDisabled,
    },
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    OPERATOR, TestStore,
    deliveries::{HOUR, delivery, ids, job_of, seen},
    events::{WHO, all},
    on_every_backend,
};

use CallbackAnswer::{Gone, NotTaken, Taken};

pub(super) const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Where an owner wants events. Whoever knows the path may write to it.
pub(super) const URL: &str = "https://app.example/hooks/s3cret?token=hidden";

pub(super) fn owner(name: &str) -> Owner {
    name.parse().unwrap()
}

pub(super) fn url(text: &str) -> CallbackUrl {
    text.parse().unwrap()
}

pub(super) fn secret(byte: u8) -> Secret {
    Secret::from_bytes(&[byte; 32]).unwrap()
}

/// Which of the secrets of tests these are, the first one first.
pub(super) fn which<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Vec<u8> {
    secrets.into_iter().map(|secret| secret.expose_bytes()[0]).collect()
}

fn signing(secrets: &Secrets) -> Vec<u8> {
    which([&secrets.secret].into_iter().chain(secrets.previous.as_ref().map(|(secret, _)| secret)))
}

/// What a callback says, but for when it was set.
fn told(callback: &Callback) -> (Owner, Option<&str>, bool, Option<WhyDisabled>) {
    let Callback { owner, url, failing_since, disabled, .. } = callback;
    (owner.clone(), url.as_deref(), failing_since.is_some(), disabled.map(|(why, _)| why))
}

impl TestStore {
    /// Sets it as the operator, with a secret for whom has none.
    pub(super) async fn set(&self, owner: &Owner, to: Option<&str>, fresh: u8) -> Callback {
        let set = self.store.set_callback(WHO, owner, to.map(url), &secret(fresh), OPERATOR).await;
        set.unwrap().unwrap()
    }

    async fn secrets(&self, owner: &Owner, fresh: u8, replaced: Option<Duration>) -> Vec<u8> {
        let secrets = self.store.callback_secrets(WHO, owner, &secret(fresh), replaced, OPERATOR).await;
        signing(&secrets.unwrap().unwrap())
    }

    async fn callback(&self, of: &Owner) -> Callback {
        let all = self.other.callbacks(WHO, None, 100).await.unwrap();
        all.into_iter().find(|callback| callback.owner == *of).unwrap()
    }

    async fn answered(&self, owner: &Owner, url: &str, answer: CallbackAnswer, patience: Duration) -> bool {
        self.store.note_callback(owner, url, answer, patience).await.unwrap()
    }

    /// The events that tell that a callback was disabled.
    async fn disabled_events(&self) -> Vec<Event> {
        let all = all(self).await.into_iter();
        all.filter(|event| event.kind == EventKind::CallbackDisabled).collect()
    }
}

/// The entries of the audit log about callbacks, newest first: what, whose, object, before and after.
async fn entries(store: &SharedStore) -> Vec<Value> {
    let entries = store.changes(WHO, &ChangeFilter::default(), None, 100).await.unwrap();
    let told = |change: &Change| {
        let json = serde_json::to_value(change.json()).unwrap();
        json!([json["what"], json["owner"]["id"], json["object"], json["before"], json["after"]])
    };
    entries.iter().map(told).collect()
}

on_every_backend!(what_an_owner_has_set_is_listed_until_it_is_taken_back, async |t| {
    let owners = ["org:a", "user:a", "user:b"].map(owner);
    assert!(t.store.callbacks(WHO, None, 10).await.unwrap().is_empty());
    for of in owners.iter().rev() {
        let before = t.store.now().await.unwrap();
        let set = t.set(of, Some(URL), 1).await;
        assert_eq!(told(&set), (of.clone(), Some(URL), false, None));
        assert!((before..=t.store.now().await.unwrap()).contains(&set.set_at), "{set:?}");
    }
    let whose = |page: &[Callback]| page.iter().map(|callback| callback.owner.clone()).collect::<Vec<_>>();
    assert_eq!(whose(&t.other.callbacks(WHO, None, 10).await.unwrap()), owners);
    for (place, behind) in [None].into_iter().chain(owners.iter().cloned().map(Some)).enumerate() {
        for limit in [1, 2, 10] {
            let page = t.store.callbacks(WHO, behind.clone(), limit).await.unwrap();
            let rest = &owners[place..];
            assert_eq!(whose(&page), rest[..limit.min(rest.len())], "behind {behind:?}");
        }
    }
    let moved = t.set(&owners[1], Some("https://other.example/"), 1).await;
    assert_eq!(told(&t.callback(&owners[1]).await), told(&moved));
    assert_eq!(told(&t.set(&owners[1], None, 1).await), (owners[1].clone(), None, false, None));
    assert_eq!(
        whose(&t.store.callbacks(WHO, None, 10).await.unwrap()),
        [&owners[0], &owners[2]].map(Owner::clone)
    );
    assert_eq!(t.secrets(&owners[1], 2, None).await, [1], "what signs for the URLs of jobs stays");

    assert!(t.store.remove_callback_of(&owners[2]).await.unwrap());
    assert!(!t.store.remove_callback_of(&owners[2]).await.unwrap());
    assert_eq!(whose(&t.store.callbacks(WHO, None, 10).await.unwrap()), [owners[0].clone()]);
    assert_eq!(t.secrets(&owners[2], 3, None).await, [3], "its secret has gone, too");
    assert_eq!(t.secrets(&owners[0], 3, None).await, [1]);
});

on_every_backend!(a_secret_is_made_once_and_one_that_is_replaced_signs_for_as_long_as_was_said, async |t| {
    let [of, other] = ["user:a", "org:a"].map(owner);
    assert_eq!(t.secrets(&of, 1, None).await, [1]);
    assert_eq!(t.secrets(&of, 2, None).await, [1], "it has one");
    assert_eq!(t.secrets(&other, 9, None).await, [9]);
    let before = t.store.now().await.unwrap();
    let replaced =
        t.store.callback_secrets(WHO, &of, &secret(2), Some(HOUR), OPERATOR).await.unwrap().unwrap();
    assert_eq!(signing(&replaced), [2, 1]);
    let (_, until) = replaced.previous.unwrap();
    assert!((before + HOUR..=t.store.now().await.unwrap() + HOUR).contains(&until), "{until}");
    assert_eq!(t.secrets(&of, 3, None).await, [2, 1]);
    t.set(&of, Some(URL), 3).await;
    t.set(&of, None, 3).await;
    assert_eq!(t.secrets(&of, 3, None).await, [2, 1], "it is not about the URL");
    let over = if t.is_postgres() { "now()" } else { "0" };
    t.execute(&format!("update callbacks set previous_until = {over}")).await;
    assert_eq!(t.secrets(&of, 3, None).await, [2], "its time is over");
    assert_eq!(t.secrets(&of, 3, Some(Duration::ZERO)).await, [3], "at once");
    assert_eq!(t.secrets(&other, 3, None).await, [9], "another's");
});

// Whoever lost the answer asks again with the same one, and the one before goes on to sign.
on_every_backend!(a_secret_that_is_replaced_twice_by_the_same_one_is_replaced_once, async |t| {
    let of = owner("user:a");
    t.secrets(&of, 1, None).await;
    for _ in 0..2 {
        assert_eq!(t.secrets(&of, 2, Some(HOUR)).await, [2, 1]);
    }
    let told: Vec<Value> = entries(&t.store).await.into_iter().map(|entry| entry[0].clone()).collect();
    assert_eq!(told, ["callback.secret_read", "callback.rotated", "callback.secret_read"], "once");
});

on_every_backend!(where_there_is_no_secret_none_signs_beside_the_new_one, async |t| {
    assert_eq!(t.secrets(&owner("user:a"), 1, Some(HOUR)).await, [1]);
    assert_eq!(entries(&t.store).await, [json!(["callback.secret_read", "a", "a", null, null])]);
});

on_every_backend!(that_somebody_is_told_a_secret_has_its_entry_each_time, and behind the lock, async |t| {
    let of = owner("user:a");
    let ann = Decider { by: Cow::Borrowed("ann"), ..OPERATOR.clone() };
    for (principal, byte) in [(WHO, 1), (&Principal::Owner(of.clone()), 2)] {
        let told = t.store.callback_secrets(principal, &of, &secret(byte), None, &ann).await;
        assert_eq!(signing(&told.unwrap().unwrap()), [1]);
    }
    assert_eq!(t.secrets(&of, 3, Some(HOUR)).await, [3, 1]);
    // One that still has another beside it is not replaced, and whoever wanted that is not told it.
    assert_eq!(t.secrets(&of, 4, Some(HOUR)).await, [3, 1]);
    let all = t.store.changes(WHO, &ChangeFilter::default(), None, 100).await.unwrap();
    let told: Vec<_> = all.iter().map(|change| (change.what.as_str(), &*change.by, change.as_operator)).collect();
    assert_eq!(told, [
        ("callback.rotated", &*OPERATOR.by, true),
        ("callback.secret_read", "ann", false),
        ("callback.secret_read", "ann", true),
    ]);
});

on_every_backend!(a_url_that_takes_nothing_is_failing_until_it_takes_something, async |t| {
    let of = owner("user:a");
    t.set(&of, Some(URL), 1).await;
    assert!(!t.answered(&of, URL, Taken, DAY).await);
    assert_eq!(t.callback(&of).await.failing_since, None);
    assert!(!t.answered(&of, URL, NotTaken, DAY).await);
    let since = t.callback(&of).await.failing_since.unwrap();
    for _ in 0..2 {
        assert!(!t.answered(&of, URL, NotTaken, DAY).await);
        assert_eq!(t.callback(&of).await.failing_since, Some(since), "since the first one");
    }
    assert!(!t.answered(&of, URL, Taken, DAY).await);
    assert_eq!(t.callback(&of).await.failing_since, None);
    assert!(!t.answered(&of, URL, NotTaken, DAY).await);
    assert!(t.callback(&of).await.failing_since.unwrap() > since);
    // Setting it begins anew, whatever is set.
    t.set(&of, Some(URL), 1).await;
    assert_eq!(t.callback(&of).await.failing_since, None);
    assert!(t.disabled_events().await.is_empty());
});

on_every_backend!(a_url_that_has_taken_nothing_for_so_long_is_disabled_and_that_is_an_event, async |t| {
    let of = owner("user:a");
    t.set(&of, Some(URL), 1).await;
    assert!(!t.answered(&of, URL, NotTaken, DAY).await);
    let earlier = if t.is_postgres() {
        "failing_since - interval '25 hours'"
    } else {
        "failing_since - 25 * 3600000000"
    };
    t.execute(&format!("update callbacks set failing_since = {earlier}")).await;
    assert!(!t.answered(&of, URL, NotTaken, 2 * DAY).await, "not for so long");
    assert!(t.answered(&of, URL, NotTaken, DAY).await);
    assert!(!t.answered(&of, URL, NotTaken, DAY).await, "it is disabled already");
    assert!(!t.answered(&of, URL, Taken, DAY).await);
    assert_eq!(told(&t.callback(&of).await), (of.clone(), Some(URL), true, Some(WhyDisabled::Failing)));
    assert_eq!(t.disabled_events().await.len(), 1);

    let set = t.set(&of, Some(URL), 1).await;
    assert_eq!(told(&set), (of.clone(), Some(URL), false, None), "it is enabled");
    assert!(!t.answered(&of, URL, NotTaken, DAY).await, "it begins anew");
    // No patience at all.
    assert!(t.answered(&of, URL, NotTaken, Duration::ZERO).await);
    assert_eq!(t.disabled_events().await.len(), 2);
});

on_every_backend!(a_url_that_says_that_it_is_gone_is_disabled_at_once_and_that_is_an_event_once, async |t| {
    let [of, other] = ["user:a", "org:a"].map(owner);
    for of in [&of, &other] {
        t.set(of, Some(URL), 1).await;
    }
    for sequence in 1..=2 {
        let before = t.store.now().await.unwrap();
        assert!(t.answered(&of, URL, Gone, DAY).await);
        for answer in [Gone, NotTaken, Taken] {
            assert!(!t.answered(&of, URL, answer, Duration::ZERO).await);
        }
        let (why, at) = t.callback(&of).await.disabled.unwrap();
        assert_eq!(why, WhyDisabled::Gone);
        assert!((before..=t.store.now().await.unwrap()).contains(&at), "{at}");
        let events = t.disabled_events().await;
        let event = events.last().unwrap();
        assert_eq!((events.len(), event.sequence), (sequence, u32::try_from(sequence).unwrap()));
        let about = (event.owner.clone(), event.job, event.batch, event.attempt, event.tool.clone());
        assert_eq!(about, (Some(of.clone()), None, None, None, None));
        assert_eq!(told(&t.set(&of, Some(URL), 1).await), (of.clone(), Some(URL), false, None));
    }
    let events = t.disabled_events().await;
    assert_ne!(events[0].id(), events[1].id());
    assert_eq!(told(&t.callback(&other).await), (other, Some(URL), false, None), "another's is not");
    let own = Principal::Owner(of);
    let seen = t.store.events(&own, EventsOf::All, None, 10).await.unwrap();
    assert!(matches!(seen, EventsAfter::Are { events: seen, .. } if seen == events));
});

on_every_backend!(how_another_url_answers_than_the_one_that_is_set_changes_nothing, async |t| {
    let [of, without, nobody] = ["user:a", "user:b", "user:c"].map(owner);
    t.set(&of, Some(URL), 1).await;
    t.set(&without, None, 1).await;
    for answer in [NotTaken, Gone, Taken] {
        for (of, url) in [(&of, "https://app.example/hooks"), (&of, ""), (&without, URL), (&nobody, URL)] {
            assert!(!t.answered(of, url, answer, Duration::ZERO).await, "{of} {url}");
        }
    }
    assert_eq!(told(&t.callback(&of).await), (of.clone(), Some(URL), false, None));
    assert_eq!(t.store.callbacks(WHO, None, 10).await.unwrap().len(), 1);
    assert!(t.disabled_events().await.is_empty());
});

on_every_backend!(a_callback_is_disabled_without_an_event_where_none_are_recorded, async |t| {
    let of = owner("user:a");
    t.set(&of, Some(URL), 1).await;
    assert!(t.silent().note_callback(&of, URL, Gone, DAY).await.unwrap());
    assert_eq!(told(&t.callback(&of).await).3, Some(WhyDisabled::Gone));
    assert!(all(&t).await.is_empty());
    // It counts, as all that is not recorded.
    t.set(&of, Some(URL), 1).await;
    assert!(t.answered(&of, URL, Gone, DAY).await);
    assert_eq!(t.disabled_events().await[0].sequence, 2);
});

on_every_backend!(what_is_changed_of_callbacks_has_its_entry_without_what_is_secret, and behind the lock, async |t| {
    let of = owner("user:a");
    t.set(&of, Some(URL), 1).await;
    let to = |origin: Value| json!(["callback.set", "a", "a", null, {"origin": origin}]);
    assert_eq!(entries(&t.store).await, [to(json!("https://app.example:443"))]);
    t.set(&of, Some(URL), 1).await;
    assert_eq!(entries(&t.store).await.len(), 1, "what changes nothing has none");
    t.answered(&of, URL, Gone, DAY).await;
    t.set(&of, Some(URL), 1).await;
    assert_eq!(entries(&t.store).await.len(), 2, "it is enabled, and what errand does by itself has none");

    t.secrets(&of, 2, Some(HOUR)).await;
    assert_eq!(entries(&t.store).await[0], json!(["callback.rotated", "a", "a", null, {"overlap_secs": 3_600}]));
    t.set(&of, None, 1).await;
    assert_eq!(entries(&t.store).await[0], to(Value::Null));

    let deliveries = [1, 2].map(|sequence| delivery(&of, URL, job_of(sequence), 1));
    t.store.add_deliveries(&deliveries).await.unwrap();
    let recovery = Recovery { since: Timestamp::UNIX_EPOCH, before: None, delivered: false };
    t.store.recover_deliveries(WHO, &of, &recovery, 10, OPERATOR).await.unwrap();
    assert_eq!(entries(&t.store).await.len(), 4, "there was nothing to recover");
    t.give_up(&ids(&deliveries)).await;
    t.store.recover_deliveries(WHO, &of, &recovery, 10, OPERATOR).await.unwrap();
    let recovered = json!(["callback.recovered", "a", "a", null, {"deliveries": 2}]);
    assert_eq!(entries(&t.store).await[0], recovered);

    let all = format!("{:?}", t.store.changes(WHO, &ChangeFilter::default(), None, 100).await.unwrap());
    for hidden in ["s3cret", "hidden", "whsec_", "hooks"] {
        assert!(!all.contains(hidden), "{hidden} is in {all}");
    }
    let nameless = Decider { by: Cow::Borrowed(""), ..OPERATOR.clone() };
    for refused in [
        t.store.set_callback(WHO, &of, Some(url(URL)), &secret(5), &nameless).await.map(drop),
        t.store.callback_secrets(WHO, &of, &secret(5), Some(HOUR), &nameless).await.map(drop),
        t.store.recover_deliveries(WHO, &of, &recovery, 10, &nameless).await.map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::Data);
    }
    assert_eq!(entries(&t.store).await.len(), 5);
    assert_eq!(t.secrets(&of, 5, None).await, [2, 1]);
});

on_every_backend!(nothing_that_is_taken_back_where_nothing_was_set_has_no_entry, async |t| {
    t.set(&owner("user:a"), None, 1).await;
    assert_eq!(entries(&t.store).await, [] as [Value; 0]);
});

on_every_backend!(an_owner_sees_and_changes_its_own_callback_and_deliveries_only, and behind the lock, async |t| {
    let owners = ["user:a", "org:a", "user:b"].map(owner);
    let recovery = Recovery { since: Timestamp::UNIX_EPOCH, before: None, delivered: true };
    let everything = DeliveryFilter::default();
    for (of, byte) in owners.iter().zip(1..) {
        let who = Principal::Owner(of.clone());
        let set = t.store.set_callback(&who, of, Some(url(URL)), &secret(byte), OPERATOR).await.unwrap();
        assert_eq!(told(&set.unwrap()), (of.clone(), Some(URL), false, None));
        let added = delivery(of, URL, job_of(byte.into()), 1);
        t.store.add_deliveries(std::slice::from_ref(&added)).await.unwrap();
        t.give_up(&[added.id]).await;
    }
    // What others may not change.
    let state = async || {
        let (callbacks, deliveries) =
            (t.store.callbacks(WHO, None, 10).await, t.store.deliveries(WHO, &everything, None, 10).await);
        let secrets = t.count("select count(*) from callbacks where previous_secret is not null").await;
        format!("{callbacks:?} {deliveries:?} {secrets}")
    };
    let before = state().await;
    let [nobody, stranger] = ["user:nobody", "user:stranger"].map(owner);
    for who in owners.iter().chain([&stranger]) {
        let principal = Principal::Owner(who.clone());
        for other in owners.iter().chain([&nobody]).filter(|other| *other != who) {
            let of = DeliveryFilter { owner: Some(other.clone()), state: None };
            let (store, fresh) = (&t.store, secret(9));
            let set = store.set_callback(&principal, other, None, &fresh, OPERATOR).await.unwrap();
            assert!(set.is_none(), "{who} sets nothing for {other}");
            for replaced in [None, Some(HOUR)] {
                let secrets = store.callback_secrets(&principal, other, &fresh, replaced, OPERATOR).await;
                assert!(secrets.unwrap().is_none(), "{who} learns no secret of {other}");
            }
            assert!(store.deliveries(&principal, &of, None, 10).await.unwrap().is_empty());
            let recovered = store.recover_deliveries(&principal, other, &recovery, 10, OPERATOR).await;
            assert_eq!(recovered.unwrap(), (0, None));
            let behind = store.callbacks(&principal, Some(other.clone()), 10).await.unwrap();
            assert!(behind.iter().all(|callback| callback.owner == *who), "behind {other}: {behind:?}");
        }
        let (own, deliveries) = (
            t.store.callbacks(&principal, None, 10).await.unwrap(),
            t.store.deliveries(&principal, &everything, None, 10).await.unwrap(),
        );
        let expected = owners.iter().filter(|of| *of == who).collect::<Vec<_>>();
        assert!(own.iter().map(|callback| &callback.owner).eq(expected.iter().copied()), "{who}: {own:?}");
        assert!(deliveries.iter().map(|delivery| &delivery.owner).eq(expected), "{who}: {deliveries:?}");
    }
    assert_eq!(state().await, before, "others change nothing");
    assert_eq!(t.count("select count(*) from callbacks").await, 3, "and leave nothing");

    for (who, byte) in owners.iter().zip(1..) {
        let principal = Principal::Owner(who.clone());
        let replaced = Some(HOUR);
        let secrets = t.store.callback_secrets(&principal, who, &secret(9), replaced, OPERATOR).await.unwrap();
        assert_eq!(signing(&secrets.unwrap()), [9, byte]);
        let recovered = t.store.recover_deliveries(&principal, who, &recovery, 10, OPERATOR).await.unwrap();
        assert_eq!(recovered, (1, None));
    }
    assert_eq!(seen(&t).await.len(), 3);
    let by = t.store.changes(WHO, &ChangeFilter::default(), None, 100).await.unwrap();
    assert!(by.len() == 9 && by.iter().all(|change| !change.as_operator), "{by:?}");
});
