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
