//! Up to where those were given all events to whom errand gives them by itself.

use std::{collections::BTreeSet, sync::Arc};

use errand::store::{EventListener, Heard};

use super::{
    TestStore,
    event_readers::positions,
    events::{WHO, all, page},
    on_every_backend,
};

const EXCHANGE: EventListener = EventListener::Exchange;

impl TestStore {
    /// Up to where it was given all, which every process says alike.
    async fn heard(&self) -> u64 {
        let [heard, other] = [&self.store, &self.other].map(|store| store.heard(EXCHANGE));
        let (heard, other) = (heard.await.unwrap(), other.await.unwrap());
        assert_eq!(heard, other);
        heard.up_to
    }
}

on_every_backend!(a_listener_begins_behind_the_events_that_there_are_when_it_is_first_asked_for, async |t| {
    for earlier in [0, 3] {
        t.execute("delete from event_listeners").await;
        // Nobody has read them, so that they may have no positions yet.
        t.call_off(earlier).await;
        let begin = t.store.heard(EXCHANGE).await.unwrap().up_to;
        t.call_off(2).await;
        assert_eq!(t.heard().await, begin, "it is not asked for the first time any more");
        let events = all(&t).await;
        assert_eq!(page(&t.store, WHO, begin, 10).await, events[events.len() - 2..]);
        assert_eq!(t.heard().await, begin);
    }
});

on_every_backend!(a_listener_goes_forward_only_whoever_notes_how_far_it_has_come, async |t| {
    t.call_off(4).await;
    let at = positions(&all(&t).await);
    // It has not begun, so there is nothing from which it has come.
    t.store.note_heard(EXCHANGE, at[0]).await.unwrap();
    assert_eq!(t.heard().await, at[3]);
    t.call_off(3).await;
    let at = positions(&all(&t).await);
    let notes = [(at[5], at[5]), (at[4], at[5]), (at[5], at[5]), (0, at[5]), (at[6], at[6]), (at[0], at[6])];
    for (place, (up_to, heard)) in notes.into_iter().enumerate() {
        let store = if place % 2 == 0 { &t.store } else { &t.other };
        store.note_heard(EXCHANGE, up_to).await.unwrap();
        assert_eq!(t.heard().await, heard, "after {up_to}");
    }
    t.call_off(1).await;
    let ahead = Heard { up_to: at[6], last: at[6] + 1 };
    assert_eq!(t.other.heard(EXCHANGE).await.unwrap(), ahead, "one that nobody has read is told of, too");
    assert_eq!(positions(&all(&t).await)[..7], at);
});

on_every_backend!(processes_that_begin_or_note_at_once_agree, async |t| {
    t.call_off(2).await;
    let one_of = |n: usize| Arc::clone(if n.is_multiple_of(2) { &t.store } else { &t.other });
    let asked: Vec<_> = (0..8)
        .map(|n| {
            let store = one_of(n);
            tokio::spawn(async move { store.heard(EXCHANGE).await.unwrap().up_to })
        })
        .collect();
    // Meanwhile more happens.
    t.call_off(5).await;
    let mut told = BTreeSet::new();
    for asked in asked {
        told.insert(asked.await.unwrap());
    }
    let at = positions(&all(&t).await);
    let begin = t.heard().await;
    assert_eq!(told, [begin].into());
    assert!((at[1]..=at[6]).contains(&begin), "{begin} among {at:?}");

    let noted: Vec<_> = at
        .iter()
        .rev()
        .enumerate()
        .map(|(n, position)| {
            let (store, position) = (one_of(n), *position);
            tokio::spawn(async move { store.note_heard(EXCHANGE, position).await.unwrap() })
        })
        .collect();
    for noted in noted {
        noted.await.unwrap();
    }
    assert_eq!(t.heard().await, at[6]);
});
