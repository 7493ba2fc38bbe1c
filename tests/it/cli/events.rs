//! What became of jobs and batches, as it is listed and followed.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, SqliteConnection};

use super::{Place, Ran, block_on};

fn lines(ran: &Ran) -> Vec<Value> {
    ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn events_are_listed_from_a_position_on() {
    let place = Place::with_database().set("ERRAND__EVENTS__RECORD", "all");
    let id = place.enqueue(&[]);
    place.run(&["jobs", "cancel", &id]).succeeds();
    place.run(&["jobs", "retry", &id]).succeeds();
    let all = lines(&place.run(&["events", "--json"]).succeeds());
    let told: Vec<_> =
        all.iter().map(|event| (&event["type"], &event["sequence"], &event["job_id"])).collect();
    let id = json!(id);
    assert_eq!(told, [(&json!("job.cancelled"), &json!(1), &id), (&json!("job.retried"), &json!(2), &id)]);
    assert_eq!(all[0]["owner"], json!({"kind": "user", "id": "u-alice"}));
    assert_eq!((&all[0]["tool"], &all[0]["queue"]), (&json!("GITHUB_GET_REPO"), &json!("default")));

    let first = place.run(&["events", "--limit", "1"]).succeeds();
    assert!(first.out.contains("job.cancelled") && !first.out.contains("job.retried"), "{first:?}");
    let position = all[0]["cursor"].as_str().unwrap();
    assert!(first.err.contains(&format!("go on with --after {position}")), "{first:?}");
    let rest = lines(&place.run(&["events", "--after", position, "--json"]).succeeds());
    assert_eq!(rest, all[1..]);
    let none = place.run(&["events", "--owner", "user:u-bob"]).succeeds();
    assert!(none.out.is_empty() && none.err.contains("there are no such events"), "{none:?}");
}

#[test]
fn a_position_that_nothing_has_had_or_that_was_removed_is_refused() {
    let place = Place::with_database().set("ERRAND__EVENTS__RECORD", "all");
    place.run(&["events", "--after", "9"]).fails(2, "no event has had this cursor yet");
    place.run(&["events", "--after", "x"]).exits(2);
}

#[test]
fn events_go_after_their_days_and_whoever_missed_some_is_told() {
    let place = Place::with_database().set("ERRAND__EVENTS__RECORD", "all");
    for _ in 0..3 {
        let id = place.enqueue(&[]);
        place.run(&["jobs", "cancel", &id]).succeeds();
    }
    let all = lines(&place.run(&["events", "--json"]).succeeds());
    // Times are microseconds; the last one is younger than the default of seven days.
    let age = "update events set at = at - case when position < 3 then 8 else 6 end * 86400000000";
    block_on(async {
        SqliteConnection::connect(&place.env["DATABASE_URL"]).await.unwrap().execute(age).await.unwrap();
    });
    assert_eq!(place.run(&["prune", "--dry-run", "--json"]).succeeds().json()["events"], json!(null));
    assert_eq!(lines(&place.run(&["events", "--json"]).succeeds()).len(), 3);
    assert_eq!(place.run(&["prune", "--json"]).succeeds().json()["events"], json!(2));
    let left = lines(&place.run(&["events", "--json"]).succeeds());
    assert_eq!((left.len(), &left[0]["job_id"]), (1, &all[2]["job_id"]));
    place.run(&["events", "--after", "1"]).fails(2, "behind this cursor were removed");
    assert_eq!(lines(&place.run(&["events", "--after", "2", "--json"]).succeeds()), left);
}

#[test]
fn where_nothing_is_recorded_it_is_said() {
    let place = Place::with_database();
    let id = place.enqueue(&[]);
    place.run(&["jobs", "cancel", &id]).succeeds();
    let ran = place.run(&["events"]).succeeds();
    assert!(ran.err.contains("no events are recorded here"), "{ran:?}");
    assert!(ran.out.is_empty(), "{ran:?}");
}

#[test]
fn events_are_printed_as_they_happen() {
    let place = Place::with_database().set("ERRAND__EVENTS__RECORD", "all");
    let before = place.enqueue(&[]);
    place.run(&["jobs", "cancel", &before]).succeeds();
    let all = lines(&place.run(&["events", "--json"]).succeeds());
    let last = all[0]["cursor"].as_str().unwrap();
    let mut follower = place
        .command(&["events", "--follow", "--after", last, "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut printed = BufReader::new(follower.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let id = place.enqueue(&[]);
        place.run(&["jobs", "cancel", &id]).succeeds();
        let event: Value = serde_json::from_str(&printed.next().unwrap().unwrap()).unwrap();
        assert_eq!((&event["type"], &event["job_id"]), (&json!("job.cancelled"), &json!(id)));
    }
    follower.kill().unwrap();
    follower.wait().unwrap();
}
