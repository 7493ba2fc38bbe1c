//! Where the events of owners are sent, as it is set and looked after on the command line.

use errand::{
    callback::Secret,
    job::{JobId, Owner, OwnerKind},
    store::{NewDelivery, NextTry, TriedDelivery},
};
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, SqliteConnection};
use uuid::Uuid;

use super::{NOBODY, Place, Ran, block_on};
use crate::{api::Api, server::Terminal};

const OWNER: [&str; 2] = ["--owner", "org:org-7"];
const URL: &str = "https://app.example.com/hooks/path?a=b";

/// What callbacks need to be sent.
const SENDS: (&str, &str) = ("ERRAND__CALLBACKS__ENABLED", "true");

fn sending() -> Place {
    Place::with_database().set(SENDS.0, SENDS.1)
}

fn callbacks(place: &Place, command: &[&str]) -> Ran {
    place.run(&[&["callbacks"], command].concat())
}

/// A delivery of the owner's with this ID, and of a job with the same.
fn delivery(id: u128) -> NewDelivery {
    let id = Uuid::from_u128(id);
    NewDelivery {
        id,
        receiver: Uuid::from_u128(1),
        owner: Owner::new(OwnerKind::Org, "org-7").unwrap(),
        url: URL.into(),
        event_id: id,
        kind: "job.failed",
        event: r#"{"type":"job.failed"}"#.into(),
        position: 1,
        job: Some(JobId(id)),
        batch: None,
        fresh: Secret::generate().unwrap(),
    }
}

/// Adds a delivery that waits, one that was delivered and one that has failed.
async fn add_deliveries(place: &Place) {
    let store = place.store();
    store.add_deliveries(&[delivery(1), delivery(2), delivery(3)]).await.unwrap();
    let tried = |id, next, status, error| TriedDelivery {
        id: Uuid::from_u128(id),
        next,
        tries: 0,
        is_sent: true,
        status,
        error,
    };
    let delivered = tried(2, NextTry::Delivered, Some(204), None);
    let failed = tried(3, NextTry::Never, Some(503), Some("refused"));
    store.note_deliveries(&[delivered, failed]).await.unwrap();
    store.close().await;
}

fn states(deliveries: &str) -> Vec<String> {
    let state = |line| serde_json::from_str::<Value>(line).unwrap()["state"].as_str().unwrap().to_owned();
    deliveries.lines().map(state).collect()
}

#[test]
fn a_url_is_set_listed_and_taken_back() {
    let place = sending();
    let none = callbacks(&place, &["list"]).succeeds();
    assert_eq!((none.out.as_str(), none.err.trim()), ("", "no owner has set a URL"));
    let set = callbacks(&place, &["set", "--org", "org-7", "--url", URL]).succeeds();
    assert_eq!(set.out, format!("all events of org:org-7 are sent to {URL}\n"));
    assert_eq!(set.err, "");
    let mut json = callbacks(&place, &["list", "--json"]).succeeds().json();
    assert!(json["set_at"].take().is_string(), "{json}");
    let same = json!({
        "owner": {"kind": "org", "id": "org-7"}, "url": URL, "set_at": null, "failing_since": null,
        "disabled_at": null, "disabled_why": null,
    });
    assert_eq!(json, same);
    let table = callbacks(&place, &["list"]).succeeds();
    assert!(table.out.lines().nth(1).unwrap().starts_with(&format!("org:org-7  {URL}  ")), "{table:?}");
    let change = place.run(&["audit-log", "--kind", "callback"]).succeeds();
    assert!(change.out.contains("callback.set") && !change.out.contains("hooks"), "{change:?}");

    let no_url = [&["set"], &OWNER[..], &["--no-url", "--json"]].concat();
    assert_eq!(callbacks(&place, &no_url).succeeds().json()["url"], Value::Null);
    assert_eq!(callbacks(&place, &["list", "--json"]).succeeds().out, "");
}

#[test]
fn where_nothing_is_sent_it_is_said_and_set_all_the_same() {
    let place = Place::with_database();
    let set = callbacks(&place, &[&["set"], &OWNER[..], &["--url", URL]].concat()).succeeds();
    assert!(set.err.contains("callbacks.enabled is false here"), "{set:?}");
    assert_eq!(callbacks(&place, &["list", "--json"]).succeeds().json()["url"], URL);
    let no_url = callbacks(&place, &[&["set"], &OWNER[..], &["--no-url"]].concat()).succeeds();
    assert_eq!(no_url.err, "");
}

#[test]
fn the_secret_alone_is_printed_and_stays_until_it_is_replaced() {
    let place = sending();
    let secret = |more: &[&str]| callbacks(&place, &[&["secret"], &OWNER[..], more].concat()).succeeds();
    let first = secret(&[]);
    assert!(first.out.trim().parse::<Secret>().is_ok(), "the secret alone is on standard output");
    assert!(!first.err.contains("whsec_") && first.err.contains("org:org-7"), "{}", first.err);
    assert_eq!(secret(&[]).out, first.out);

    let second = secret(&["--replace", "--overlap", "48h"]);
    assert!(second.out != first.out && second.err.contains("the one before signs, too"), "{}", second.err);
    let json = secret(&["--json"]).json();
    assert_eq!((&json["owner"]["id"], &json["secret"]), (&json!("org-7"), &json!(second.out.trim())));
    assert!(json["previous_until"].is_string());
    let changes = place.run(&["audit-log", "--kind", "callback"]).succeeds();
    assert!(changes.out.contains("callback.rotated") && !changes.out.contains("whsec_"), "{changes:?}");
    assert_eq!(changes.out.matches("callback.secret_read").count(), 3, "each time it is told: {changes:?}");
}

#[test]
fn what_makes_no_sense_is_refused_and_no_url_is_quoted() {
    let place = sending();
    for (url, why) in [
        ("ftp://example.com/hunter2", "--url is neither http nor https"),
        ("/hunter2", "--url is no URL: relative URL without a base"),
        ("https://hunter2@example.com/", "--url contains a user name or a password"),
        ("https://example.com/#hunter2", "--url contains a fragment"),
        (&format!("https://example.com/hunter2{}", "x".repeat(1_024)), "--url is longer than 1024 bytes"),
    ] {
        callbacks(&place, &[&["set"], &OWNER[..], &["--url", url]].concat()).fails(2, why);
    }
    for (args, says) in [
        (&["set", "--url", URL][..], "--owner"),
        (&["set", "--owner", "org-7", "--url", URL], "write user:ID or org:ID"),
        (&["set", "--owner", "org:org-7"], "--url"),
        (&["set", "--owner", "org:org-7", "--url", URL, "--no-url"], "cannot be used with"),
        (&["secret"], "--owner"),
        (&["secret", "--owner", "org:org-7", "--overlap", "1h"], "--replace"),
        (&["secret", "--owner", "org:org-7", "--replace", "--overlap", "91d"], "it may be 90d at most"),
        (&["deliveries", "--state", "lost"], "waiting, delivered, failed"),
        (&["deliveries", "--limit", "0"], "write a number from 1"),
        (&["deliveries", "--before", "j1"], "--before"),
        (&["recover", "--owner", "org:org-7"], "--since"),
        (&["recover", "--since", "1h"], "--owner"),
        (&["recover", "--owner", "org:org-7", "--since", "2999-01-01T00:00:00Z"], "it is in the future"),
        (&["recover", "--owner", "org:org-7", "--since", "soon"], "a time ago such as 90s"),
    ] {
        let ran = callbacks(&place, args).exits(2);
        assert!(ran.err.contains(says) && ran.out.is_empty(), "{says:?} is not in {ran:?}");
    }
    assert_eq!(callbacks(&place, &["list", "--json"]).succeeds().out, "");
}

#[test]
fn deliveries_are_listed_and_those_that_failed_are_sent_again() {
    let place = sending();
    let none = callbacks(&place, &["deliveries"]).succeeds();
    assert_eq!((none.out.as_str(), none.err.trim()), ("", "there are no such deliveries"));
    block_on(add_deliveries(&place));
    let list = |more: &[&str]| callbacks(&place, &[&["deliveries"], more].concat()).succeeds();
    assert_eq!(states(&list(&["--json"]).out), ["failed", "delivered", "waiting"]);
    assert_eq!(states(&list(&["--json", "--owner", "user:org-7"]).out), Vec::<String>::new());
    let failed = list(&["--org", "org-7", "--state", "failed"]);
    let row = failed.out.lines().nth(1).unwrap();
    for part in
        ["failed", "job.failed", &Uuid::from_u128(3).to_string(), "https://app.example.com:443", "503"]
    {
        assert!(row.contains(part), "{part} is not in {row}");
    }
    assert!(!failed.out.contains("hooks"), "the path may be a secret: {failed:?}");

    let first = list(&["--json", "--limit", "2"]);
    let (_, next) = first.err.trim().split_once("--before ").unwrap();
    assert_eq!(states(&list(&["--json", "--limit", "2", "--before", next]).out), ["waiting"]);

    let recover = [&["recover"], &OWNER[..], &["--since", "1h"]].concat();
    assert_eq!(callbacks(&place, &recover).succeeds().out, "1 delivery is sent again\n");
    assert_eq!(callbacks(&place, &recover).succeeds().out, "0 deliveries are sent again\n");
    let all = callbacks(&place, &[&recover[..], &["--delivered", "--json"]].concat()).succeeds();
    assert_eq!(all.json(), json!({"deliveries": 1}));
    assert_eq!(states(&list(&["--json"]).out), ["waiting"; 3]);
}

#[test]
fn all_owners_are_listed_however_many_there_are() {
    let place = Place::with_database();
    let many = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 1001)
        insert into callbacks (owner_kind, owner_id, url, secret, set_at)
        select 'user', 'u-' || i, 'https://app.example.com/', zeroblob(32), 0 from n";
    block_on(async {
        SqliteConnection::connect(&place.env["DATABASE_URL"]).await.unwrap().execute(many).await.unwrap();
    });
    assert_eq!(callbacks(&place, &["list", "--json"]).succeeds().out.lines().count(), 1_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_is_done_over_the_api() {
    let place = sending();
    let key = |whose: &[&str]| {
        let made = place.run(&[&["keys", "create", "--scope", "manage,read"], whose].concat()).succeeds();
        Terminal::new().with("ERRAND_API_KEY", made.out.trim())
    };
    let (terminal, bob) = (key(&["--operator"]), key(&["--user", "u-bob"]));
    let env: Vec<_> = place.env.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let api = Api::start(&env).await;
    let run = |args: &[&str]| terminal.run(&[&["--server", &api.base, "callbacks"], args].concat());

    let set = [&["set"], &OWNER[..], &["--url", URL]].concat();
    assert_eq!(run(&set), format!("all events of org:org-7 are sent to {URL}\n"));
    assert_eq!(run(&["list"]), callbacks(&place, &["list"]).succeeds().out);
    let secret = [&["secret"], &OWNER[..]].concat();
    assert_eq!(run(&secret), callbacks(&place, &secret).succeeds().out);
    let replaced = run(&[&secret[..], &["--replace", "--overlap", "1h"]].concat());
    assert_eq!(run(&secret), replaced);

    add_deliveries(&place).await;
    let list = ["deliveries", "--state", "failed"];
    assert_eq!(run(&list), callbacks(&place, &list).succeeds().out);
    assert_eq!(states(&run(&["deliveries", "--json", "--limit", "2"])), ["failed", "delivered"]);
    let recover = [&["recover"], &OWNER[..], &["--since", "1h", "--json"]].concat();
    assert_eq!(run(&recover), "{\"deliveries\":1}\n");
    assert_eq!(states(&run(&["deliveries", "--json"])), ["waiting", "delivered", "waiting"]);
    run(&[&["set"], &OWNER[..], &["--no-url"]].concat());
    assert_eq!(run(&["list"]), "");

    // What the command line refuses by itself, and what the key of somebody else may not do.
    terminal.fails(&[&["--server", &api.base, "callbacks"], &set[..], &["--by", "ann"]].concat(), 2, "--by");
    bob.fails(&[&["--server", &api.base, "callbacks"], &secret[..]].concat(), 1, "its own owner only");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_sends_nothing_takes_no_url() {
    let place = Place::with_database();
    let env = [("DATABASE_URL".to_owned(), place.env["DATABASE_URL"].clone())];
    let api = Api::start(&env).await;
    let set = [&["--server", &api.base, "callbacks", "set"], &OWNER[..], &["--url", URL]].concat();
    Terminal::new().fails(&set, 1, "callbacks.enabled is false");
    let missing = ["--server", &api.base, "callbacks", "deliveries", "--owner", NOBODY];
    Terminal::new().fails(&missing, 2, "write user:ID or org:ID");
}
