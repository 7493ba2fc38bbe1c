//! Decisions by filters, as the actions that they are.

use errand::job::JobId;
use serde_json::json;

use super::{NOBODY, Place};

#[test]
fn a_decision_by_filters_is_an_action_that_can_be_looked_at_afterwards() {
    let place = Place::with_database();
    assert_eq!(place.run(&["actions", "list"]).succeeds().err, "there are no actions\n");
    for _ in 0..3 {
        place.enqueue(&["--tag", "batch=7"]);
    }
    let other = place.enqueue(&[]);
    let ran =
        place.run(&["jobs", "cancel", "--tag", "batch=7", "--yes", "--by", "alice", "--json"]).succeeds();
    assert!(ran.err.contains("no worker is alive, so this command carries it out by itself"), "{ran:?}");
    let told = ran.json();
    assert_eq!((&told["cancelled"], &told["left"]), (&json!(3), &json!({})));
    let id = told["action"].as_str().unwrap().to_owned();

    let shown = place.run(&["actions", "show", &id, "--json"]).succeeds().json();
    assert_eq!((&shown["action"], &shown["status"]), (&json!("cancel"), &json!("done")));
    assert_eq!((&shown["made_by"], &shown["confirmed_by"]), (&json!("alice"), &json!("alice")));
    assert_eq!(shown["filter"]["tag"], json!(["batch=7"]));
    assert_eq!(shown["progress"], json!({"looked_at": 3, "done": 3, "running": 0, "skipped": {}}));
    assert_eq!(shown["preview"]["by_state"], json!({"available": 3}));
    let listed = place.run(&["actions", "list", "--json"]).succeeds().json_lines();
    assert_eq!(listed, [shown]);
    let table = place.run(&["actions", "list"]).succeeds().out;
    assert!(table.contains("cancel") && table.contains("alice") && table.contains(&id), "{table}");
    let text = place.run(&["actions", "show", &id]).succeeds().out;
    assert!(text.contains("tag=[\"batch=7\"]") && text.contains("3 of 3 looked at"), "{text}");
    assert_eq!(place.run(&["actions", "abort", &id]).succeeds().out, format!("{id} is done\n"));
    for command in ["show", "abort"] {
        place.run(&["actions", command, NOBODY]).fails(1, "there is no action");
    }
    let shown = place.run(&["jobs", "show", &other, "--json"]).succeeds().json();
    assert_eq!(shown["state"], "available");
    // What is only counted, or means nothing, is no action.
    place.run(&["jobs", "cancel", "--tag", "batch=7", "--dry-run"]).succeeds();
    assert_eq!(place.run(&["jobs", "cancel", "--tag", "x=y", "--yes"]).succeeds().out, "0 jobs cancelled\n");
    assert_eq!(place.run(&["actions", "list", "--json"]).succeeds().json_lines().len(), 1);
}

#[test]
fn jobs_are_removed_by_filters_however_long_they_are_kept() {
    let place = Place::with_database();
    let ids: Vec<String> = (0..3).map(|n| place.enqueue(&["--tag", &format!("n={n}")])).collect();
    for id in &ids[..2] {
        place.run(&["jobs", "cancel", id]).succeeds();
    }
    let prune = |more: &[&str]| place.run(&[&["prune"], more].concat());
    assert_eq!(prune(&["--dry-run", "--json"]).succeeds().json()["jobs"]["cancelled"], 0, "not yet over");
    let preview = prune(&["--owner", "user:u-alice", "--dry-run"]).succeeds().out;
    assert_eq!(preview, "2 jobs match\n        2  cancelled, effect not known yet, no call ended\n");
    prune(&["--owner", "user:u-alice"]).fails(2, "add --yes");
    prune(&["--yes"]).fails(2, "--yes is for removal by filters");
    prune(&["--state", "available", "--yes"]).fails(2, "jobs that are available are not final");
    let done = prune(&["--tag", "n=0", "--yes", "--json"]).succeeds().json();
    assert_eq!((&done["removed"], &done["matching"]), (&json!(1), &json!(1)));
    assert_eq!(prune(&["--owner", "user:u-alice", "--yes"]).succeeds().out, "1 job removed\n");
    for (id, exit) in ids.iter().zip([1, 1, 0]) {
        assert!(id.parse::<JobId>().is_ok());
        place.run(&["jobs", "show", id]).exits(exit);
    }
}
