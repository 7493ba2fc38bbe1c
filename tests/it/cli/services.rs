//! Services that are away or not as they should be: the doctor, the audit, the schema.

use insta::assert_snapshot;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _};

use super::{NOBODY, Place, SECRET, block_on, with_sandbox};

#[test]
fn an_unreachable_database_exits_with_4_and_shows_no_password() {
    let place = Place::empty().set("DATABASE_URL", "postgres://errand:hunter2@127.0.0.1:1/errand");
    let ran = place.run(&["jobs", "list"]).fails(4, "check DATABASE_URL");
    assert!(ran.err.contains("127.0.0.1:1"), "{ran:?}");
    assert_eq!(ran.err.matches("Connection refused").count(), 1, "{ran:?}");
}

#[test]
fn a_mistyped_path_of_a_database_is_told_and_makes_no_file() {
    let place = Place::empty();
    let path = place.folder.path().join("new.db");
    let url = format!("sqlite://{}", path.display());
    let place = place.set("DATABASE_URL", &url);
    for args in [
        &["jobs", "list"][..],
        &["jobs", "show", NOBODY],
        &["enqueue", "X", "--user-id", "u"],
        &["pins", "list"],
        &["rejected", "list"],
        &["audit"],
        &["migrate", "--check"],
        &["doctor"],
    ] {
        let ran = place.run(args);
        assert!(ran.code == Some(4) || ran.code == Some(1), "{ran:?}");
        let said = format!("the database file {} does not exist", path.display());
        assert!(ran.err.contains(&said) || ran.out.contains(&said) || args[0] == "migrate", "{ran:?}");
        assert_eq!(std::fs::read_dir(place.folder.path()).unwrap().count(), 0, "{ran:?}");
    }
}

#[test]
fn what_is_wrong_with_a_file_is_no_bug_of_errand() {
    let place = Place::empty();
    let none = place.file("text.db", &"this is no database\n".repeat(1_000));
    let nowhere = place.folder.path().join("missing/errand.db").display().to_string();
    for (path, said) in [(&none, "file is not a database"), (&nowhere, "cannot be created")] {
        let place = Place::empty().set("DATABASE_URL", &format!("sqlite://{path}"));
        place.run(&["migrate"]).fails(4, said);
    }
    let file = place.file("file", "");
    place.run(&["dev", "--data", &format!("{file}/data")]).fails(2, "choose another with --data");
}

#[test]
fn a_short_key_does_not_spoil_the_words_of_an_error() {
    let place = Place::empty().set("COMPOSIO_API_KEY", "k").set("COMPOSIO_BASE_URL", "http://127.0.0.1:1");
    let ran = place.run(&["doctor"]).exits(1);
    let tool_api = ran.out.lines().find(|line| line.contains("check COMPOSIO_BASE_URL")).unwrap();
    assert!(!tool_api.contains("***"), "{ran:?}");
    assert_eq!(tool_api.matches("Connection refused").count(), 1, "{ran:?}");
}

#[test]
fn a_database_without_schema_says_how_to_migrate() {
    let place = Place::empty();
    let url = format!("sqlite://{}", place.folder.path().join("errand.db").display());
    let place = place.set("DATABASE_URL", &url);
    place.run(&["jobs", "list"]).fails(4, "run `errand migrate`");
    std::fs::write(place.folder.path().join("errand.db"), "").unwrap();
    place.run(&["jobs", "list"]).fails(4, "run `errand migrate`");
    let check = place.run(&["migrate", "--check"]).exits(1);
    assert!(check.out.contains("missing"), "{check:?}");
    assert!(place.run(&["migrate"]).succeeds().out.contains("applied"));
    assert_eq!(place.run(&["migrate"]).succeeds().out, "the schema is up to date\n");
    assert_eq!(place.run(&["migrate", "--check"]).succeeds().out, "the schema is up to date\n");
}

#[test]
fn a_file_of_another_application_is_named_as_such() {
    let place = Place::empty();
    let url = format!("sqlite://{}", place.folder.path().join("theirs.db").display());
    let place = place.set("DATABASE_URL", &url);
    block_on(async {
        let mut db = sqlx::SqliteConnection::connect(&format!("{url}?mode=rwc")).await.unwrap();
        db.execute("create table jobs (theirs int)").await.unwrap();
    });
    let ran = place.run(&["migrate"]);
    assert!(!ran.err.contains("run `errand migrate`"), "{ran:?}");
    ran.fails(4, "use a file of errand's own");
}

#[test]
fn an_audit_says_what_is_wrong_and_what_to_do() {
    let place = Place::empty();
    place.run(&["audit"]).fails(3, "set DATABASE_URL");
    let place = Place::with_database();
    let clean = place.run(&["audit"]).succeeds();
    assert_snapshot!(clean.out, @"
    0 jobs looked at

    QUEUE    AVAILABLE  MESSAGES  DIFFERENCE
    bulk     0          -         -
    default  0          -         -

    nothing is wrong
    ");

    let job = place.enqueue(&[]);
    block_on(async {
        let url = place.env["DATABASE_URL"].clone();
        let mut db = sqlx::SqliteConnection::connect(&url).await.unwrap();
        db.execute("pragma ignore_check_constraints = on; update jobs set state = 'held', due_at = null")
            .await
            .unwrap();
    });
    let ran = place.run(&["audit", "--repair"]).exits(1);
    assert!(ran.out.contains(&job) && ran.out.contains("errand jobs release"), "{ran:?}");
    let found = ran.out.lines().filter(|line| line.starts_with("held_without_reason  ")).count();
    assert_eq!(found, 1, "{ran:?}");
    let json = place.run(&["audit", "--json"]).exits(1).json();
    assert_eq!((&json["clean"], &json["jobs"], &json["ledger"]), (&json!(false), &json!(1), &Value::Null));
    let finding = &json["findings"][0];
    assert_eq!(finding["kind"], "held_without_reason");
    assert_eq!(
        (&finding["found"], &finding["repaired"], &finding["jobs"]),
        (&json!(1), &json!(0), &json!([job]))
    );
    assert!(finding["advice"].is_string());
    let json = Place::with_database().run(&["audit", "--json"]).succeeds().json();
    assert_eq!(
        json["queues"][0],
        json!({"queue": "bulk", "available": 0, "messages": null, "difference": null})
    );
}

#[test]
fn a_ledger_that_is_none_is_refused() {
    let (place, sandbox) = with_sandbox();
    place.run(&["audit", "--ledger", "http://127.0.0.1:1"]).fails(4, "running sandbox");
    let elsewhere = format!("{}/api", place.env["COMPOSIO_BASE_URL"]);
    place.run(&["audit", "--ledger", &elsewhere]).fails(4, "is no sandbox");
    let ran = place.run(&["audit", "--ledger", &place.env["COMPOSIO_BASE_URL"]]).succeeds();
    assert!(ran.out.contains("0 effects in the ledger"), "{ran:?}");
    drop(sandbox);
}

#[test]
fn the_doctor_names_every_service_that_is_away_and_what_to_check() {
    let place = Place::empty()
        .set("DATABASE_URL", "postgres://errand:hunter2@127.0.0.1:1/errand")
        .set("AMQP_URL", "amqp://errand:hunter2@127.0.0.1:1/%2f")
        .set("COMPOSIO_BASE_URL", "http://127.0.0.1:1")
        .set("COMPOSIO_API_KEY", SECRET);
    let ran = place.run(&["doctor"]).exits(1);
    for expected in ["OK    configuration", "check DATABASE_URL", "check AMQP_URL", "check COMPOSIO_BASE_URL"]
    {
        assert!(ran.out.contains(expected), "{expected}: {ran:?}");
    }
    let json = place.run(&["doctor", "--json"]).exits(1).json();
    assert_eq!(json["ok"], false);
    assert_eq!(
        json["checks"].as_array().unwrap().iter().filter(|check| check["status"] == "fail").count(),
        3
    );
}

#[test]
fn a_password_that_misleads_the_parser_is_named_nowhere() {
    let database = |password: &str| format!("postgres://errand:{password}@127.0.0.1:1/errand");
    let broker = |password: &str| format!("amqp://errand:{password}@127.0.0.1:1/%2f");
    for password in ["hun@hunter2/x", "1/hunter2", "hunter2#x", "1?hunter2&hunter2=1", "x/1@hunter2"] {
        for (name, url) in [("DATABASE_URL", database(password)), ("AMQP_URL", broker(password))] {
            let place =
                Place::empty().set(name, &url).set("ERRAND__LOG__LEVEL", "trace,lapin=trace,sqlx=trace");
            for args in [&["config", "show", "--origins"][..], &["doctor"], &["jobs", "list"], &["worker"]] {
                let ran = place.run(args).fails(3, "percent-encode special characters");
                assert!(!ran.err.contains("127.0.0.1"), "nothing of it is quoted: {ran:?}");
            }
        }
    }
    // What is no part of a password for a parser is none for us, and its parameters are not said either.
    for (name, url) in [
        ("DATABASE_URL", format!("{}?pasword=hunter2&password=a&hunter2", database("h@hunter2"))),
        ("AMQP_URL", format!("{}?hunter2=hunter2", broker("h@hunter2"))),
    ] {
        let place =
            Place::empty().set(name, &url).set("ERRAND__LOG__LEVEL", "trace,lapin=trace,sqlx_postgres=trace");
        for (args, code) in [(&["config", "show"][..], 0), (&["doctor"], 1)] {
            assert_eq!(place.run(args).code, Some(code), "{args:?}");
        }
    }
    let health = ["health", "--url", "http://errand:hunter2@127.0.0.1:1/"];
    Place::empty().run(&health).fails(4, "http://errand:***@127.0.0.1:1/health/ready does not answer");
    Place::with_database()
        .run(&["audit", "--ledger", "http://errand:hunter2@127.0.0.1:1"])
        .fails(2, "--ledger takes");
}

#[test]
fn the_doctor_warns_of_ways_on_which_passwords_and_keys_can_be_read() {
    // Connections to this address reach this host, but it is not one that names it.
    let place = Place::empty()
        .set("DATABASE_URL", "postgres://errand:hunter2@0.0.0.0:1/errand")
        .set("AMQP_URL", "amqp://errand:hunter2@0.0.0.0:1/%2f")
        .set("COMPOSIO_BASE_URL", "http://0.0.0.0:1")
        .set("COMPOSIO_API_KEY", SECRET);
    let doctor = place.run(&["doctor"]).exits(1);
    for advice in ["sslmode=verify-full", "use amqps://", "use https://"] {
        let warned = doctor.out.lines().any(|line| line.starts_with("WARN") && line.contains(advice));
        assert!(warned, "{advice}: {doctor:?}");
    }
}

#[test]
fn health_asks_the_address_that_the_settings_name() {
    let (place, _sandbox) = with_sandbox();
    let sandbox = place.env["COMPOSIO_BASE_URL"].trim_start_matches("http://").to_owned();
    // It has no such path, which shows that it was asked.
    place.set("ERRAND__HTTP__LISTEN", &sandbox).run(&["health"]).exits(1);
    let away = Place::empty().set("ERRAND__HTTP__LISTEN", "127.0.0.1:1");
    away.run(&["health"]).fails(4, "http://127.0.0.1:1/health/ready does not answer");
    Place::empty().set("ERRAND__HTTP__LISTEN", "").run(&["health"]).fails(2, "`http.listen` is empty");
}

#[test]
fn the_doctor_is_content_with_an_embedded_setup() {
    let (place, _sandbox) = with_sandbox();
    let ran = place.run(&["doctor"]).succeeds();
    assert!(ran.out.lines().all(|line| line.starts_with("OK ")), "{ran:?}");
    assert!(ran.out.contains("SQLite") && ran.out.contains("the key is accepted"), "{ran:?}");
    let wrong_key = place.set("COMPOSIO_API_KEY", SECRET).run(&["doctor"]).exits(1);
    assert!(wrong_key.out.contains("check COMPOSIO_API_KEY"), "{wrong_key:?}");
}
