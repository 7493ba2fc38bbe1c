//! Pins.

use errand::job::{Pin, Principal};

use super::{OPERATOR, TestStore, on_every_backend};

on_every_backend!(pins_are_set_replaced_and_removed, async |t| {
    let pin = |owner: Option<&str>, toolkit: &str, version: &str| Pin {
        owner: owner.map(|owner| owner.parse().unwrap()),
        toolkit: toolkit.into(),
        version: version.into(),
    };
    let pins = [
        pin(Some("user:a"), "github", "3"),
        pin(None, "slack", "2"),
        pin(Some("org:a"), "github", "4"),
        pin(None, "github", "1"),
    ];
    for pin in &pins {
        t.store.set_pin(&Principal::Operator, pin, OPERATOR).await.unwrap();
    }
    let [user, slack, org, github] = pins;
    assert_eq!(t.store.pins().await.unwrap(), [github, slack, org.clone(), user.clone()]);
    t.store.set_pin(&Principal::Operator, &pin(None, "github", "9"), OPERATOR).await.unwrap();
    assert_eq!(t.store.pins().await.unwrap()[0].version, "9");
    assert_eq!(t.store.pins().await.unwrap().len(), 4);
    assert!(t.store.unset_pin(&Principal::Operator, None, "github", OPERATOR).await.unwrap());
    assert!(!t.store.unset_pin(&Principal::Operator, None, "github", OPERATOR).await.unwrap());
    assert!(t.store.unset_pin(&Principal::Operator, user.owner.as_ref(), "github", OPERATOR).await.unwrap());
    assert_eq!(t.store.pins().await.unwrap().len(), 2);
});

on_every_backend!(an_owner_pins_for_itself_only, and behind the lock, async |t| {
    let pin = |owner: Option<&str>, toolkit: &str, version: &str| Pin {
        owner: owner.map(|owner| owner.parse().unwrap()),
        toolkit: toolkit.into(),
        version: version.into(),
    };
    // One for everybody, and those of three owners, of whom two have the same ID.
    let whose = [None, Some("org:a"), Some("user:a"), Some("user:b")];
    for owner in whose {
        t.store.set_pin(&Principal::Operator, &pin(owner, "github", "1"), OPERATOR).await.unwrap();
    }
    let all = async || t.store.pins_of(&Principal::Operator).await.unwrap();
    let entries = async || t.count("select count(*) from changes").await;
    let before = (all().await, entries().await);
    assert_eq!(before.0.len(), 4);
    for own in whose.into_iter().flatten() {
        let who = Principal::Owner(own.parse().unwrap());
        assert_eq!(t.store.pins_of(&who).await.unwrap(), [pin(Some(own), "github", "1")]);
        for other in whose.into_iter().filter(|other| *other != Some(own)) {
            for toolkit in ["github", "slack"] {
                let foreign = pin(other, toolkit, "2");
                drop(t.store.set_pin(&who, &foreign, OPERATOR).await);
                drop(t.store.unset_pin(&who, foreign.owner.as_ref(), toolkit, OPERATOR).await);
                assert_eq!((all().await, entries().await), before, "{own} changes what is of {other:?}");
            }
        }
    }
    for own in whose.into_iter().flatten() {
        let (who, new) = (Principal::Owner(own.parse().unwrap()), pin(Some(own), "slack", "2"));
        t.store.set_pin(&who, &new, OPERATOR).await.unwrap();
        assert!(all().await.contains(&new), "{own}");
        assert!(t.store.unset_pin(&who, new.owner.as_ref(), "slack", OPERATOR).await.unwrap(), "{own}");
        assert_eq!(all().await, before.0, "{own}");
    }
});
