//! Access keys on the command line.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{NOBODY, Place};

#[test]
fn a_key_is_made_listed_rotated_and_revoked_and_its_secret_is_shown_once() {
    let place = Place::with_database();
    place.run(&["keys", "list"]).succeeds();
    let made =
        place.run(&["keys", "create", "--org", "org-7", "--scope", "read,enqueue", "--expires-in", "90d"]);
    let made = made.succeeds();
    let secret = made.out.trim();
    assert!(
        secret.starts_with("errand_") && secret.len() == 104,
        "the secret alone is on standard output: {made:?}"
    );
    assert!(made.err.contains("of org:org-7, for enqueue,read, until "), "{made:?}");
    let list = place.run(&["keys", "list", "--json"]).succeeds();
    let key: Value = serde_json::from_str(&list.out).unwrap();
    assert_eq!(key["owner"], json!({"kind": "org", "id": "org-7"}));
    assert_eq!((&key["scopes"], key.get("secret")), (&json!(["enqueue", "read"]), None));
    assert!(!list.out.contains(&secret[40..]), "{list:?}");

    let id = key["id"].as_str().unwrap();
    let rotated = place.run(&["keys", "rotate", id, "--overlap", "1h", "--json"]).succeeds();
    let rotated: Value = serde_json::from_str(&rotated.out).unwrap();
    assert!(rotated["secret"].as_str().unwrap() != secret && rotated["owner"] == key["owner"], "{rotated}");
    let revoked = place.run(&["keys", "revoke", id]).succeeds();
    assert_eq!(revoked.out, format!("the key {id} of org:org-7 is revoked\n"));
    place.run(&["keys", "rotate", id]).fails(1, "make a new one with `errand keys create`");
    let table = place.run(&["keys", "list", "--owner", "org:org-7"]).succeeds();
    assert_eq!(table.out.lines().count(), 3, "{table:?}");
    let none = place.run(&["keys", "list", "--owner", "user:org-7"]).succeeds();
    assert_eq!((none.out.as_str(), none.err.trim()), ("", "there are no keys"));
}

#[test]
fn a_new_key_is_told_as_json_with_these_members_and_no_others() {
    let place = Place::with_database();
    for (args, owner, expires) in [
        (&["--operator"][..], Value::Null, false),
        (&["--user", "u-alice", "--expires-in", "90d"], json!({"kind": "user", "id": "u-alice"}), true),
    ] {
        let args = [&["keys", "create", "--json", "--scope", "manage,read"], args].concat();
        let mut key = place.run(&args).succeeds().json();
        assert!(key["id"].as_str().unwrap().parse::<uuid::Uuid>().is_ok(), "{key}");
        assert!(key["secret"].as_str().unwrap().starts_with("errand_"), "{key}");
        assert!(key["created_at"].as_str().unwrap().parse::<Timestamp>().is_ok(), "{key}");
        let end = key["expires_at"].as_str().map(|at| at.parse::<Timestamp>().unwrap());
        assert_eq!(end.is_some_and(|end| end > Timestamp::now()), expires, "{key}");
        for varies in ["id", "secret", "created_at", "expires_at"] {
            assert!(key.as_object_mut().unwrap().remove(varies).is_some(), "{varies} is not in {key}");
        }
        let same = json!({
            "owner": owner, "scopes": ["read", "manage"], "revoked_at": null, "replaced_by": null, "last_used_at": null
        });
        assert_eq!(key, same);
    }
}

#[test]
fn a_key_that_makes_no_sense_is_refused_before_anything_is_made() {
    let place = Place::with_database();
    for (args, says) in [
        (&["--operator", "--scope", "write"][..], "enqueue, read, manage"),
        (&["--operator", "--scope", ""], "enqueue, read, manage"),
        (&["--operator", "--scope", "read", "--expires-in", "90"], "with its unit"),
        (&["--user", " ", "--scope", "read"], "is empty"),
    ] {
        let ran = place.run(&[&["keys", "create"], args].concat()).exits(2);
        assert!(ran.err.contains(says), "{says:?} is not in {ran:?}");
    }
    for args in [&["--scope", "read"][..], &["--operator"], &["--operator", "--org", "a", "--scope", "read"]]
    {
        place.run(&[&["keys", "create"], args].concat()).exits(2);
    }
    for action in ["rotate", "revoke"] {
        place.run(&["keys", action, NOBODY]).fails(1, "there is no key");
        place.run(&["keys", action, "1"]).exits(2);
    }
    assert_eq!(place.run(&["keys", "list", "--json"]).succeeds().out, "");
}
