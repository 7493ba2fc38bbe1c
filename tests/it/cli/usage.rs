//! Help, usage and settings.

use std::process::Stdio;

use insta::assert_snapshot;
use serde_json::json;

use super::{NOBODY, Place, Ran};

#[test]
fn help_lists_the_commands_and_the_exit_codes() {
    let ran = Place::empty().run(&["--help"]).succeeds();
    for command in ["enqueue", "enqueue-bulk", "jobs", "pins", "rejected", "migrate", "config", "doctor"] {
        assert!(ran.out.contains(&format!("\n  {command} ")), "{command}: {ran:?}");
    }
    let codes = ran.out.split_once("Exit codes:\n").unwrap().1;
    assert_snapshot!(codes.lines().map(str::trim).collect::<Vec<_>>().join("\n"), @"
    0  done
    1  the command ran and the answer is no (a job failed, something was not found or was refused)
    2  the command line is wrong
    3  the configuration is wrong or incomplete
    4  a service (database, broker, tool API, server) is unreachable or not usable
    70  errand itself failed

    Settings come from errand.toml and the environment: `errand config default` is their manual, and
    `errand config show --origins` prints those in effect.
    ");
}

#[test]
fn every_command_and_every_exit_code_is_documented() {
    const MANUAL: &str = include_str!("../../../docs/cli.md");
    let help = Place::empty().run(&["--help"]).succeeds().out;
    let commands = help.split_once("Commands:\n").unwrap().1.split_once("\n\n").unwrap().0;
    for line in commands.lines() {
        let command = line.split_whitespace().next().unwrap();
        assert!(command == "help" || MANUAL.contains(&format!("\n| `errand {command}` | ")), "{command}");
    }
    for code in ["0", "1", "2", "3", "4", "70"] {
        assert!(MANUAL.contains(&format!("\n| {code} | ")), "{code}");
    }
}

#[test]
fn every_command_has_help_and_no_line_of_it_is_wrapped_badly() {
    let place = Place::empty();
    for command in [
        &["enqueue"][..],
        &["enqueue-bulk"],
        &["jobs"],
        &["jobs", "list"],
        &["jobs", "release"],
        &["jobs", "retry"],
        &["jobs", "stats"],
        &["jobs", "edit"],
        &["queues"],
        &["queues", "pause"],
        &["workers"],
        &["batches"],
        &["batches", "show"],
        &["context"],
        &["context", "set"],
        &["rejected", "list"],
        &["callbacks"],
        &["callbacks", "set"],
        &["callbacks", "secret"],
        &["callbacks", "deliveries"],
        &["callbacks", "recover"],
        &["listen"],
        &["pins"],
        &["pins", "set"],
        &["tools", "show"],
        &["accounts", "list"],
        &["rejected"],
        &["rejected", "requeue"],
        &["migrate"],
        &["config", "show"],
        &["doctor"],
        &["completions"],
    ] {
        let mut args = command.to_vec();
        args.push("--help");
        let ran = place.run(&args).succeeds();
        assert!(ran.out.contains("Usage: errand"), "{ran:?}");
        assert!(ran.out.lines().all(|line| line.chars().count() <= 100), "{ran:?}");
    }
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    let place = Place::empty();
    for args in [
        &["frobnicate"][..],
        &["jobs"],
        &["jobs", "list", "--state", "asleep"],
        &["jobs", "list", "--owner", "alice"],
        &["jobs", "list", "--limit", "0"],
        &["jobs", "show", "not-a-uuid"],
        &["jobs", "cancel"],
        &["jobs", "release", NOBODY],
        &["jobs", "release", NOBODY, "--retry", "--failed"],
        &["enqueue", "X"],
        &["enqueue", "X", "--user-id", "u", "--org-id", "o"],
        &["enqueue", "X", "--user-id", "u", "--text", "t", "--args", "{}"],
        &["enqueue", "X", "--user-id", "u", "--run-at", "soon"],
        &["enqueue", "X", "--user-id", "u", "--timeout", "10"],
        &["enqueue", "X", "--user-id", "u", "--effect", "sometimes"],
        &["enqueue", "X", "--user-id", "u", "--tag", "novalue"],
        &["pins", "set", "github", "latest"],
        &["pins", "set", "GitHub", "20251027_00"],
        &["accounts", "list"],
        &["audit", "--limit", "0"],
        &["audit", "--ledger", "sandbox"],
        &["audit", "--ledger", "ftp://127.0.0.1:1"],
        &["rejected", "show", "abc"],
        &["rejected", "list", "--limit", "0"],
        &["demo", "--jobs", "0"],
    ] {
        let ran = place.run(args).exits(2);
        assert!(ran.err.contains("error: ") || ran.err.contains("Usage:"), "{ran:?}");
        assert!(ran.out.is_empty(), "{ran:?}");
    }
}

#[test]
fn all_mistakes_in_the_settings_are_reported_at_once_and_exit_with_3() {
    let place = Place::empty()
        .set("DATABASE_URL", "mysql://u:hunter2@h/d")
        .set("COMPOSIO_API_KEY", "hunter2 hunter2")
        .set("ERRAND__RELAY__BATCH", "0");
    place.file("errand.toml", "[worker]\nlease_secs = 16\nheartbeet_secs = 1\n[log]\nlevel = \"inof\"\n");
    let check = place.run(&["config", "check"]).exits(3);
    assert_snapshot!(check.err, @r#"
    error: the configuration has 6 mistakes:
      - `worker.heartbeet_secs` is not a setting; did you mean `worker.heartbeat_secs`? (errand.toml, line 3)
      - `log.level` must be a filter such as "info" or "info,errand=debug" (levels: off, error, warn, info, debug, trace) (errand.toml, line 5)
      - `store.url` must be a URL that starts with postgres: or postgresql: or sqlite:, but has another scheme (environment variable DATABASE_URL)
      - `composio.api_key` must be text of visible ASCII characters, without blanks (environment variable COMPOSIO_API_KEY)
      - `relay.batch` must be a whole number from 1 to 10000, but is 0 (environment variable ERRAND__RELAY__BATCH)
      - `worker.lease_secs` is 16 but must be at least 17 (three times `worker.heartbeat_secs` and 2 more), because otherwise a worker that misses one beat loses its jobs (errand.toml, line 2)
    "#);
    assert_eq!(place.run(&["jobs", "list"]).exits(3).err, check.err);
    assert_eq!(place.run(&["migrate"]).exits(3).err, check.err);
}

#[test]
fn a_valid_configuration_is_called_valid_and_what_a_worker_misses_is_named() {
    let check = Place::empty().run(&["config", "check"]).succeeds();
    assert_eq!(check.out, "configuration is valid\n");
    assert_eq!(check.err, Place::empty().run(&["worker"]).err.replace("error: ", "for a worker, "));
}

#[test]
fn a_worker_names_everything_that_it_misses_at_once() {
    let missing = Place::empty().run(&["worker"]).exits(3);
    let lines: Vec<_> = missing.err.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(
        lines,
        [
            "error",
            "  - no database is configured",
            "  - no broker is configured",
            "  - no key for the tool API is configured"
        ]
    );
    for part in ["3 settings are missing", "set DATABASE_URL", "set AMQP_URL", "set COMPOSIO_API_KEY"] {
        assert!(missing.err.contains(part), "{part}: {missing:?}");
    }
    let one = Place::empty()
        .set("DATABASE_URL", "postgres://errand@127.0.0.1:1/errand")
        .set("AMQP_URL", "amqp://errand@127.0.0.1:1/%2f");
    one.run(&["worker"]).fails(3, "set COMPOSIO_API_KEY");
}

#[test]
fn a_variable_with_too_few_underscores_is_a_mistake_that_names_the_right_one() {
    let check = Place::empty()
        .set("ERRAND_LOG_LEVEL", "debug")
        .set("ERRAND__WORKER_NAME", "w")
        .run(&["config", "check"]);
    for (wrong, right) in
        [("ERRAND_LOG_LEVEL", "ERRAND__LOG__LEVEL"), ("ERRAND__WORKER_NAME", "ERRAND__WORKER__NAME")]
    {
        assert!(
            check.err.contains(&format!("`{wrong}` is not a setting; did you mean `{right}`?")),
            "{check:?}"
        );
    }
    check.exits(3);
    Place::empty().set("ERRAND_PORT", "tcp://10.0.0.1:9464").run(&["config", "check"]).succeeds();
}

#[test]
fn the_manual_of_the_settings_is_printed_and_is_a_configuration_itself() {
    // Also where the settings in effect are mistaken.
    let place = Place::empty().set("ERRAND__RELAY__BATCH", "0");
    let manual = place.run(&["config", "default"]).succeeds().out;
    assert_eq!(manual, include_str!("../../../src/config/default.toml"));
    let place = Place::empty();
    place.file("errand.toml", &manual);
    place.run(&["config", "check"]).succeeds();
}

#[test]
fn a_value_that_is_no_word_or_no_id_is_told_what_it_may_be() {
    let place = Place::empty();
    for (args, told) in [
        (&["jobs", "list", "--state", "asleep"][..], "scheduled, available, running"),
        (&["jobs", "release", "--retry", "--reason", "asleep"], "connection, credentials"),
        (&["enqueue", "X", "--user-id", "u", "--effect", "sometimes"], "safe, idempotent, once"),
        (&["jobs", "show", "abc"], "is not a UUID such as 0190b0a0-0000-7000-8000-000000000001"),
        (&["rejected", "show", "abc"], "is not a UUID such as 0190b0a0-0000-7000-8000-000000000001"),
        (&["jobs", "release", "--retry", "--dry-run"], "--state, --owner, --tool and --since"),
    ] {
        let ran = place.run(args).exits(2);
        assert!(ran.err.contains(told), "{told}: {ran:?}");
    }
    let help = place.run(&["jobs", "release", "--help"]).succeeds();
    for usage in ["<--retry|--succeeded|--failed> <ID>...", "<--retry|--succeeded|--failed> [FILTERS]"] {
        assert!(help.out.contains(&format!("errand jobs release {usage}")), "{help:?}");
    }
    let both = place.run(&["jobs", "release", NOBODY, "--retry", "--dry-run"]).exits(2);
    assert!(both.err.contains("cannot be used with"), "{both:?}");
}

#[test]
fn settings_are_shown_with_their_origins_and_without_secrets() {
    let place = Place::empty()
        .set("DATABASE_URL", "postgres://errand:hunter2@db:5432/errand?password=hunter2")
        .set("AMQP_URL", "amqp://errand:hunter2@mq:5672/%2f")
        .set("COMPOSIO_API_KEY", "hunter2")
        .set("COMPOSIO_TOOLKIT_VERSION_GITHUB", "20251027_00");
    place.file("errand.toml", "[queues.mail]\nconcurrency = 3\n");
    let shown = place.run(&["config", "show", "--origins"]).succeeds().out;
    let lines: Vec<_> =
        shown.lines().filter(|line| line.starts_with('[') || !line.ends_with("# default")).collect();
    assert_snapshot!(lines.join("\n"), @r#"
    [store]
    url = "postgres://errand:***@db:5432/errand?***"  # environment variable DATABASE_URL

    [amqp]
    url = "amqp://errand:***@mq:5672/%2f"  # environment variable AMQP_URL

    [queues.bulk]

    [queues.default]

    [queues.mail]
    concurrency = 3  # errand.toml, line 2

    [worker]

    [relay]

    [replies]

    [rescue]

    [verify]

    [audit]

    [retention]

    [connections]

    [circuit_breaker]

    [retry]

    [composio]
    api_key = "***"  # environment variable COMPOSIO_API_KEY

    [arguments]

    [events]

    [callbacks]

    [pins]

    [owners]

    [api]

    [http]

    [log]

    [runtime]

    # Pins of the environment, which are weaker than [toolkit_versions]:
    # github = "20251027_00"  # environment variable COMPOSIO_TOOLKIT_VERSION_GITHUB
    "#);
    let json = place.run(&["config", "show", "--json", "--origins"]).succeeds().json();
    assert_eq!(json["queues.mail.concurrency"], json!({"value": 3, "origin": "errand.toml, line 2"}));
    let shown = place.run(&["config", "show", "--json"]).succeeds();
    assert_eq!((&shown.json()["relay.batch"], shown.out.lines().count()), (&json!(500), 1));
}

#[test]
fn a_named_file_is_read_instead_and_must_exist() {
    let place = Place::empty();
    place.file("errand.toml", "[relay]\nbatch = 7\n");
    let other = place.file("other.toml", "[relay]\nbatch = 8\n");
    let batch = |ran: Ran| ran.succeeds().json()["relay.batch"].clone();
    assert_eq!(batch(place.run(&["config", "show", "--json"])), 7);
    assert_eq!(batch(place.run(&["--config", &other, "config", "show", "--json"])), 8);
    assert_eq!(batch(place.run(&["config", "show", "--json", "--config", &other])), 8);
    place.run(&["--config", "missing.toml", "config", "show"]).fails(3, "named by --config cannot be read");
    let place = place.set("ERRAND_CONFIG", &other);
    assert_eq!(batch(place.run(&["config", "show", "--json"])), 8);
}

#[test]
fn commands_say_which_setting_they_miss() {
    let place = Place::empty();
    place.run(&["jobs", "list"]).fails(3, "set DATABASE_URL");
    place.run(&["enqueue", "X", "--user-id", "u"]).fails(3, "set DATABASE_URL");
    place.run(&["tools", "show", "X"]).fails(3, "set COMPOSIO_API_KEY");
    place.run(&["accounts", "list", "--org-id", "o"]).fails(3, "set COMPOSIO_API_KEY");
}

#[test]
fn completions_are_printed_for_every_shell_with_the_words_of_closed_choices() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Place::empty().run(&["completions", shell]).succeeds().out;
        for word in ["retryable", "idempotent", "unknown_outcome"] {
            assert!(script.contains(word), "{word} is not in the script for {shell}");
        }
    }
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let ran = Place::empty().run(&["completions", shell]).succeeds();
        assert!(ran.out.contains("errand") && ran.out.contains("enqueue-bulk"), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for args in [&["config", "show"][..], &["completions", "bash"], &["--help"], &["enqueue", "--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Place::empty().command(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(Ran::of(args, output).succeeds().err, "");
    }
}
