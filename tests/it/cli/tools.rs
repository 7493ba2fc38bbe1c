//! Tools and accounts, as the tool API knows them.

use serde_json::json;

use super::{Place, SECRET, with_sandbox};

#[test]
fn a_tool_is_shown_with_its_versions_and_what_repeating_it_does() {
    let (place, _sandbox) = with_sandbox();
    let tool = place.run(&["tools", "show", "GITHUB_GET_REPO", "--json"]).succeeds().json();
    assert_eq!((&tool["toolkit"], &tool["effect"]), (&json!("github"), &json!("safe")));
    let version = tool["available_versions"][0].as_str().unwrap();
    let shown = place.run(&["tools", "show", "GITHUB_GET_REPO", "--version", version]).succeeds();
    assert!(shown.out.contains("effect") && shown.out.contains("safe"), "{shown:?}");
    place.run(&["tools", "show", "NO_SUCH_TOOL"]).fails(1, "knows no tool NO_SUCH_TOOL");
    place.set("COMPOSIO_API_KEY", SECRET).run(&["tools", "show", "X"]).fails(4, "check COMPOSIO_API_KEY");
}

#[test]
fn accounts_are_listed_newest_first_and_never_with_credentials() {
    let (place, _sandbox) = with_sandbox();
    let args = ["accounts", "list", "--user-id", "u-alice", "--toolkit", "github"];
    let list = place.run(&args).succeeds();
    let ids: Vec<_> = list.out.lines().skip(1).map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(ids, ["ca_alice_new", "ca_alice_old"]);
    let json = place.run(&[&args[..], &["--json"]].concat()).succeeds().json_lines();
    let keys: Vec<_> = json[0].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["created_at", "disabled", "id", "status", "status_reason", "toolkit", "usable"]);
    let none = place.run(&["accounts", "list", "--org-id", "o-nobody"]).succeeds();
    assert_eq!(none.err, "org:o-nobody has connected nothing that matches\n");
}

#[test]
fn nothing_is_written_outside_the_database() {
    let place = Place::with_database();
    place.enqueue(&[]);
    let names: Vec<_> = std::fs::read_dir(place.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with("errand.db"))
        .collect();
    assert_eq!(names, Vec::<String>::new());
}
