//! Access keys.

use std::{collections::BTreeSet, time::Duration};

use errand::{
    access::{AccessKey, NewKey, RANDOM_BYTES, Scopes, Shown},
    bounds::MAX_KEYS,
    job::{Owner, Principal},
    store::{AddedKey, SharedStore, UsedKey},
};
use futures_util::future::join_all;
use secrecy::ExposeSecret as _;
use uuid::Uuid;

use super::{OPERATOR as DECIDER, TestStore, on_every_backend};

const OPERATOR: Principal = Principal::Operator;

fn owner(owner: &str) -> Principal {
    Principal::Owner(owner.parse().unwrap())
}

fn new_key(principal: &Principal, valid_for: Option<Duration>) -> (NewKey, Shown) {
    let (key, secret) =
        NewKey::generate(principal.clone(), "enqueue,read".parse().unwrap(), valid_for).unwrap();
    (key, Shown::read(secret.expose_secret()).unwrap())
}

async fn add(store: &SharedStore, principal: &Principal, valid_for: Option<Duration>) -> (AccessKey, Shown) {
    let (key, shown) = new_key(principal, valid_for);
    match store.add_key(&OPERATOR, &key, DECIDER).await.unwrap() {
        AddedKey::Added(key) => (key, shown),
        other => panic!("{other:?}"),
    }
}

async fn is_valid(t: &TestStore, shown: &Shown) -> bool {
    matches!(t.store.use_key(shown).await.unwrap(), UsedKey::Valid(_))
}

async fn ids(store: &SharedStore, principal: &Principal) -> Vec<Uuid> {
    store.keys(principal, None, 1000).await.unwrap().iter().map(|key| key.id).collect()
}

on_every_backend!(a_key_is_found_by_its_secret_until_it_ends, async |t| {
    assert!(!t.store.has_keys().await.unwrap());
    for principal in [OPERATOR, owner("org:a"), owner("user:a")] {
        let (key, shown) = add(&t.store, &principal, None).await;
        assert!(t.other.has_keys().await.unwrap());
        assert_eq!((&key.principal, key.last_used_at, key.expires_at), (&principal, None, None));
        assert_eq!(t.other.use_key(&shown).await.unwrap(), UsedKey::Valid(key.clone()));
        let used = t.store.key(&OPERATOR, key.id).await.unwrap().unwrap().last_used_at;
        assert!(used.is_some_and(|used| used >= key.created_at));
        assert!(is_valid(&t, &shown).await);
        let again = t.store.key(&OPERATOR, key.id).await.unwrap().unwrap().last_used_at;
        assert_eq!(again, used, "it is written once in a while");

        let (_, other) = new_key(&principal, None);
        for wrong in [other, Shown { id: key.id, ..other }, Shown { id: other.id, ..shown }] {
            assert_eq!(t.store.use_key(&wrong).await.unwrap(), UsedKey::Unknown);
        }
        assert_eq!(t.other.valid_key(key.id).await.unwrap().map(|valid| valid.id), Some(key.id));
        assert_eq!(t.other.valid_key(other.id).await.unwrap(), None);
        let revoked = t.store.revoke_key(&OPERATOR, key.id, DECIDER).await.unwrap().unwrap();
        assert!(revoked.revoked_at.is_some());
        assert_eq!(t.store.revoke_key(&OPERATOR, key.id, DECIDER).await.unwrap(), Some(revoked), "once");
        assert_eq!(t.other.use_key(&shown).await.unwrap(), UsedKey::Ended);
        assert_eq!(t.other.valid_key(key.id).await.unwrap(), None);

        let (expired, shown) = add(&t.store, &principal, Some(Duration::ZERO)).await;
        assert_eq!(expired.expires_at, Some(expired.created_at));
        assert_eq!(t.store.use_key(&shown).await.unwrap(), UsedKey::Ended);
        assert_eq!(t.store.valid_key(expired.id).await.unwrap(), None);
    }
});

on_every_backend!(the_first_secret_for_seals_is_that_of_everybody_for_good, async |t| {
    let news: Vec<[u8; RANDOM_BYTES]> = (1..=8).map(|byte| [byte; RANDOM_BYTES]).collect();
    let asked = news.iter().zip([&t.store, &t.other].into_iter().cycle());
    let told = join_all(asked.map(|(new, store)| store.sealing_secret(*new))).await;
    let told: BTreeSet<Vec<u8>> = told.into_iter().map(Result::unwrap).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(news.iter().any(|new| told.contains(new.as_slice())), "{told:?}");
});

on_every_backend!(a_rotated_key_stays_valid_beside_the_new_one_for_a_while, and behind the lock, async |t| {
    const DAY: Duration = Duration::from_secs(86_400);
    let org = owner("org:a");
    let (old, old_shown) = add(&t.store, &org, Some(DAY)).await;
    assert_eq!(old.valid_for(), Some(DAY));
    let (new, new_shown) = new_key(&org, old.valid_for());
    let rotated = t.store.rotate_key(&org, old.id, &new, DAY / 2, DECIDER).await.unwrap().unwrap();
    assert_eq!((rotated.id, rotated.valid_for()), (new.id, Some(DAY)));
    for shown in [old_shown, new_shown] {
        assert!(is_valid(&t, &shown).await);
    }
    let replaced = t.store.key(&org, old.id).await.unwrap().unwrap();
    let until = rotated.created_at + DAY / 2;
    assert_eq!((replaced.replaced_by, replaced.expires_at), (Some(new.id), Some(until)));

    let (again, _) = new_key(&org, None);
    assert_eq!(
        t.store.rotate_key(&org, old.id, &again, DAY, DECIDER).await.unwrap(),
        None,
        "it was replaced before"
    );

    let (last, _) = new_key(&org, None);
    assert!(t.store.rotate_key(&org, new.id, &last, Duration::ZERO, DECIDER).await.unwrap().is_some());
    assert!(!is_valid(&t, &new_shown).await, "without an overlap it ends at once");
    let (after, _) = new_key(&org, None);
    assert_eq!(t.store.rotate_key(&org, new.id, &after, DAY, DECIDER).await.unwrap(), None, "it has ended");
    assert_eq!(t.store.rotate_key(&org, Uuid::now_v7(), &after, DAY, DECIDER).await.unwrap(), None);
    assert_eq!(t.store.key(&org, after.id).await.unwrap(), None);
});

on_every_backend!(an_owner_sees_and_changes_its_own_keys_only, and behind the lock, async |t| {
    let owners = ["user:a", "org:a", "user:b"].map(owner);
    let mut keys = Vec::new();
    for principal in owners.iter().chain([&OPERATOR]) {
        keys.push(add(&t.store, principal, None).await);
    }
    let all: Vec<Uuid> = keys.iter().rev().map(|(key, _)| key.id).collect();
    assert_eq!(ids(&t.store, &OPERATOR).await, all, "the newest first");
    let first = t.store.keys(&OPERATOR, None, 2).await.unwrap();
    let rest = t.store.keys(&OPERATOR, Some(first[1].id), 10).await.unwrap();
    assert!(first.iter().chain(&rest).map(|key| key.id).eq(all));
    for (place, who) in owners.iter().enumerate() {
        assert_eq!(ids(&t.store, who).await, [keys[place].0.id]);
        for (other, shown) in keys.iter().enumerate().filter(|(at, _)| *at != place).map(|(_, key)| key) {
            let (new, _) = new_key(who, None);
            assert_eq!(t.store.key(who, other.id).await.unwrap(), None);
            assert_eq!(t.store.revoke_key(who, other.id, DECIDER).await.unwrap(), None);
            assert_eq!(t.store.rotate_key(who, other.id, &new, Duration::ZERO, DECIDER).await.unwrap(), None);
            let (foreign, _) = new_key(&other.principal, None);
            assert_eq!(t.store.add_key(who, &foreign, DECIDER).await.unwrap(), AddedKey::Foreign);
            assert_eq!(
                t.store.rotate_key(who, keys[place].0.id, &foreign, Duration::ZERO, DECIDER).await.unwrap(),
                None
            );
            assert!(is_valid(&t, shown).await, "nothing is changed");
        }
        let (own, _) = new_key(who, None);
        assert!(matches!(t.store.add_key(who, &own, DECIDER).await.unwrap(), AddedKey::Added(_)));
        assert!(t.store.revoke_key(who, own.id, DECIDER).await.unwrap().is_some());
    }
});

on_every_backend!(keys_are_bounded_and_go_some_time_after_their_end, async |t| {
    let (org, user) = (owner("org:a"), owner("user:a"));
    let mut kept = Vec::new();
    for _ in 0..MAX_KEYS {
        kept.push(add(&t.store, &org, None).await.0.id);
    }
    let (more, _) = new_key(&org, None);
    assert_eq!(t.store.add_key(&org, &more, DECIDER).await.unwrap(), AddedKey::TooMany);
    add(&t.store, &user, None).await;
    t.store.revoke_key(&org, kept[0], DECIDER).await.unwrap();
    assert!(matches!(t.store.add_key(&org, &more, DECIDER).await.unwrap(), AddedKey::Added(_)));

    let ago = |days: u32| {
        if t.is_postgres() {
            format!("now() - interval '{days} days'")
        } else {
            format!("(unixepoch() - {days} * 86400) * 1000000")
        }
    };
    for (place, column, days) in [(0, "revoked_at", 31), (1, "expires_at", 31), (2, "expires_at", 29)] {
        let id = if t.is_postgres() {
            format!("'{}'", kept[place])
        } else {
            format!("x'{}'", kept[place].simple())
        };
        t.execute(&format!("update access_keys set {column} = {} where id = {id}", ago(days))).await;
    }
    add(&t.store, &user, None).await;
    let left = ids(&t.store, &org).await;
    assert!(!left.contains(&kept[0]) && !left.contains(&kept[1]) && left.contains(&kept[2]));

    let a: Owner = "org:a".parse().unwrap();
    assert_eq!(t.store.remove_keys(&a).await.unwrap(), left.len() as u64);
    assert_eq!((ids(&t.store, &org).await.len(), ids(&t.store, &user).await.len()), (0, 2));
    t.store.remove_keys(&"user:a".parse().unwrap()).await.unwrap();
    assert!(ids(&t.store, &OPERATOR).await.is_empty());
    assert!(t.store.has_keys().await.unwrap(), "that there has been a key is never forgotten");
});

on_every_backend!(a_scope_of_a_newer_version_allows_nothing, async |t| {
    let (key, shown) = add(&t.store, &OPERATOR, None).await;
    t.execute("update access_keys set scopes = 'read,audit'").await;
    let UsedKey::Valid(found) = t.store.use_key(&shown).await.unwrap() else { panic!("it is valid") };
    assert_eq!((found.id, found.scopes), (key.id, "read".parse::<Scopes>().unwrap()));
});

on_every_backend!(keys_that_are_rotated_again_and_again_are_bounded_too, and behind the lock, async |t| {
    const DAY: Duration = Duration::from_secs(86_400);
    let org = owner("org:a");
    let mut newest = add(&t.store, &org, None).await.0.id;
    let mut rotated = 0;
    loop {
        let (new, _) = new_key(&org, None);
        let Some(key) = t.store.rotate_key(&org, newest, &new, DAY, DECIDER).await.unwrap() else { break };
        (newest, rotated) = (key.id, rotated + 1);
    }
    assert_eq!(rotated, 2 * MAX_KEYS - 1);
});
