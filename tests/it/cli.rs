//! The real binary, in an empty environment and an empty folder.

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Output, Stdio},
};

use errand::{
    app,
    config::{self, Sources},
    job::{EnvelopeReason, ErrorKind, HeldReason, JobError, State, Stop, WorkerId},
    store::{Claim, Claimed, Rejected, SharedStore},
};
use errand_sandbox::{Options, Sandbox, World};
use errand_testbed::factory;
use insta::assert_snapshot;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _};
use tempfile::TempDir;

use crate::{
    jobs::{claim, spec},
    support::{self},
};

/// An ID that no job has.
const NOBODY: &str = "0190b0a0-0000-7000-8000-00000000dead";

/// What no output may contain.
const SECRET: &str = "hunter2";

/// A folder to run in, and the environment of the runs.
struct Place {
    folder: TempDir,
    env: BTreeMap<&'static str, String>,
}

impl Place {
    fn empty() -> Self {
        Self { folder: TempDir::new().unwrap(), env: BTreeMap::new() }
    }

    /// With an empty SQLite database.
    fn with_database() -> Self {
        let mut place = Self::empty();
        let url = format!("sqlite://{}", place.folder.path().join("errand.db").display());
        place.env.insert("DATABASE_URL", url);
        place.run(&["migrate"]).succeeds();
        place
    }

    fn set(mut self, name: &'static str, value: &str) -> Self {
        self.env.insert(name, value.to_owned());
        self
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_errand"));
        command.args(args).env_clear().envs(&self.env).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        Ran::of(args, self.command(args).output().unwrap())
    }

    fn run_with_input(&self, args: &[&str], input: &str) -> Ran {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Ran::of(args, child.wait_with_output().unwrap())
    }

    /// The same store, opened by the test itself.
    fn store(&self) -> SharedStore {
        let env = self.env.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        app::open_store(&config::load(&Sources { file: None, env }).unwrap().config).unwrap()
    }

    fn enqueue(&self, more: &[&str]) -> String {
        let mut args = vec!["enqueue", "GITHUB_GET_REPO", "--user-id", "u-alice"];
        args.extend(more);
        self.run(&args).succeeds().out.trim().to_owned()
    }
}

/// What a run left behind.
#[derive(Debug)]
struct Ran {
    #[expect(dead_code, reason = "a failed assertion shows it")]
    args: String,
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    fn of(args: &[&str], output: Output) -> Self {
        let ran = Self {
            args: args.join(" "),
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(!ran.out.contains(SECRET) && !ran.err.contains(SECRET), "leaks a secret: {ran:?}");
        assert!(!ran.err.contains("panicked") && !ran.err.contains("RUST_BACKTRACE"), "{ran:?}");
        assert!(!ran.out.contains('\u{1b}') && !ran.err.contains('\u{1b}'), "steers a terminal: {ran:?}");
        ran
    }

    #[track_caller]
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    #[track_caller]
    fn succeeds(self) -> Self {
        self.exits(0)
    }

    /// Ends with this code and one line that starts with `error: ` and contains `expected`.
    #[track_caller]
    fn fails(self, code: i32, expected: &str) -> Self {
        let ran = self.exits(code);
        let last = ran.err.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: ") && last.contains(expected), "{expected:?} is not in {ran:?}");
        ran
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn json_lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

// ---------------------------------------------------------------------------------------------
// Help, usage and settings

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
    4  a service (database, broker, tool API) is unreachable or not usable
    70  errand itself failed

    Settings come from errand.toml and the environment; `errand config show --origins` prints them.
    ");
}

#[test]
fn every_command_and_every_exit_code_is_documented() {
    const MANUAL: &str = include_str!("../../docs/cli.md");
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
fn a_valid_configuration_is_called_valid() {
    assert_eq!(Place::empty().run(&["config", "check"]).succeeds().out, "configuration is valid\n");
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
    url = "postgres://errand:***@db:5432/errand?password=***"  # environment variable DATABASE_URL

    [amqp]
    url = "amqp://errand:***@mq:5672/%2f"  # environment variable AMQP_URL

    [queues.bulk]

    [queues.default]

    [queues.mail]
    concurrency = 3  # errand.toml, line 2

    [worker]

    [relay]

    [rescue]

    [verify]

    [audit]

    [connections]

    [circuit_breaker]

    [retry]

    [composio]
    api_key = "***"  # environment variable COMPOSIO_API_KEY

    [pins]

    [owners]

    [http]

    [log]

    [runtime]

    # Pins of the environment, which are weaker than [toolkit_versions]:
    # github = "20251027_00"  # environment variable COMPOSIO_TOOLKIT_VERSION_GITHUB
    "#);
    let json = place.run(&["config", "show", "--json", "--origins"]).succeeds().json();
    assert_eq!(json["queues.mail.concurrency"], json!({"value": 3, "origin": "errand.toml, line 2"}));
    assert_eq!(place.run(&["config", "show", "--json"]).succeeds().json()["relay.batch"], 500);
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
fn completions_are_printed_for_every_shell() {
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

// ---------------------------------------------------------------------------------------------
// Services that are away

#[test]
fn an_unreachable_database_exits_with_4_and_shows_no_password() {
    let place = Place::empty().set("DATABASE_URL", "postgres://errand:hunter2@127.0.0.1:1/errand");
    place.run(&["jobs", "list"]).fails(4, "check DATABASE_URL");
}

#[test]
fn a_database_without_schema_says_how_to_migrate() {
    let place = Place::empty();
    let url = format!("sqlite://{}", place.folder.path().join("errand.db").display());
    let place = place.set("DATABASE_URL", &url);
    place.run(&["jobs", "list"]).fails(4, "run `errand migrate`");
    let check = place.run(&["migrate", "--check"]).exits(1);
    assert!(check.out.contains("missing"), "{check:?}");
    assert!(place.run(&["migrate"]).succeeds().out.contains("applied"));
    assert_eq!(place.run(&["migrate"]).succeeds().out, "the schema is up to date\n");
    assert_eq!(place.run(&["migrate", "--check"]).succeeds().out, "the schema is up to date\n");
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
fn the_doctor_is_content_with_an_embedded_setup() {
    let (place, _sandbox) = with_sandbox();
    let ran = place.run(&["doctor"]).succeeds();
    assert!(ran.out.lines().all(|line| line.starts_with("OK ")), "{ran:?}");
    assert!(ran.out.contains("SQLite") && ran.out.contains("the key is accepted"), "{ran:?}");
    let wrong_key = place.set("COMPOSIO_API_KEY", SECRET).run(&["doctor"]).exits(1);
    assert!(wrong_key.out.contains("check COMPOSIO_API_KEY"), "{wrong_key:?}");
}

// ---------------------------------------------------------------------------------------------
// Enqueue

#[test]
fn an_enqueued_job_can_be_listed_and_shown() {
    let place = Place::with_database();
    let id =
        place.enqueue(&["--args", r#"{"owner":"o", "n":1.50}"#, "--tag", "team=core", "--run-at", "+10m"]);
    let shown = place.run(&["jobs", "show", &id]).succeeds().out;
    let stable: Vec<_> = shown
        .lines()
        .filter(|line| !["job", "created", "due"].contains(&line.split(' ').next().unwrap()))
        .collect();
    assert_snapshot!(stable.join("\n"), @"
    state         scheduled
    owner         user:u-alice
    tool          GITHUB_GET_REPO
    queue         default
    tags          team=core
    attempts      0, of which 0 count
    ");
    let list = place.run(&["jobs", "list"]).succeeds();
    assert!(list.out.starts_with("ID  ") && list.out.contains(&id), "{list:?}");
    let line = &place.run(&["jobs", "list", "--json", "--owner", "user:u-alice"]).succeeds().json_lines()[0];
    assert_eq!((&line["id"], &line["state"]), (&json!(id), &json!("scheduled")));
    assert!(line.get("result").is_none() && line.get("attempts").is_none());
    for filter in [&["--state", "held"][..], &["--owner", "org:u-alice"], &["--tool", "OTHER"]] {
        let none = place.run(&[&["jobs", "list"], filter].concat()).succeeds();
        assert_eq!((none.out.as_str(), none.err.as_str()), ("", "no jobs match\n"));
    }
}

#[test]
fn a_job_as_json_has_exactly_the_documented_keys() {
    let place = Place::with_database();
    let id = place.enqueue(&[]);
    let ran = place.run(&["jobs", "show", &id, "--json"]).succeeds();
    let keys: Vec<_> = ran.out.split(",\"").map(|part| part.split('"').next().unwrap().to_owned()).collect();
    assert!(ran.out.starts_with("{\"id\":"), "{ran:?}");
    assert_eq!(
        keys[1..].join(" "),
        "state held_reason owner id requested_by tool toolkit version pinned_by connected_account_id queue \
         created_at finished_at result error log_id attempts history"
    );
}

#[test]
fn arguments_come_from_the_command_line_a_file_or_standard_input() {
    let place = Place::with_database();
    let file = place.file("args.json", "{\"from\": \"file\"}\n");
    place.enqueue(&["--args", &format!("@{file}")]);
    place
        .run_with_input(&["enqueue", "X", "--org-id", "o", "--args", "-"], "{\"from\": \"stdin\"}\n")
        .succeeds();
    place
        .run(&["enqueue", "X", "--org-id", "o", "--args", "@missing.json"])
        .fails(2, "cannot read @missing.json");
    place.run(&["enqueue", "X", "--org-id", "o", "--args", "{\"a\""]).fails(2, "not valid JSON");
    place.run(&["enqueue", "X", "--org-id", "o", "--args", "[1]"]).fails(1, "`arguments` must be an object");
}

#[test]
fn an_id_or_an_idempotency_key_makes_one_job_of_two() {
    let place = Place::with_database();
    let first = place.enqueue(&["--idempotency-key", "k", "--args", "{}"]);
    assert_eq!(place.enqueue(&["--idempotency-key", "k", "--args", "{ }"]), first);
    assert_eq!(place.enqueue(&["--id", &first, "--idempotency-key", "k", "--args", "{}"]), first);
    let again =
        ["enqueue", "GITHUB_GET_REPO", "--user-id", "u-alice", "--args", "{}", "--idempotency-key", "k"];
    let json = place.run(&[&again[..], &["--json"]].concat()).succeeds().json();
    assert_eq!(json, json!({"id": first, "duplicate": true}));
    let other = ["enqueue", "OTHER", "--user-id", "u-alice", "--idempotency-key", "k"];
    place.run(&other).fails(1, "`idempotency_key` was already used with another body");
    place
        .run(&["enqueue", "OTHER", "--user-id", "u-alice", "--id", &first])
        .fails(1, "already used by another job");
}

#[test]
fn a_job_that_may_not_run_is_refused_with_the_reason() {
    let place = Place::with_database();
    place.run(&["enqueue", "X", "--user-id", "default"]).fails(1, "could expose other people's data");
    place.run(&["enqueue", "X", "--user-id", "u", "--queue", "nope"]).fails(1, "use one of bulk, default");
    place.run(&["enqueue", "X", "--user-id", "u", "--queue", "No Pe"]).fails(2, "--queue must have");
    place.run(&["enqueue", "X", "--user-id", "u", "--priority", "10"]).fails(1, "`priority` must be 0 to 9");
    place.run(&["enqueue", "X", "--user-id", " "]).fails(1, "`user_id` is empty");
}

#[test]
fn waiting_ends_with_the_job_or_with_the_time() {
    let place = Place::with_database();
    let ran = place
        .run(&["enqueue", "X", "--user-id", "u", "--wait=1", "--json"])
        .fails(1, "is still available after 1 s");
    assert_eq!(ran.json()["state"], "available");
    let id = place.enqueue(&["--id", NOBODY]);
    place.run(&["jobs", "cancel", &id]).succeeds();
    let ended = ["enqueue", "GITHUB_GET_REPO", "--user-id", "u-alice", "--id", NOBODY, "--wait", "--json"];
    assert_eq!(place.run(&ended).exits(1).json()["state"], "cancelled");
}

#[test]
fn with_a_broker_jobs_are_handed_over_at_once_and_without_it_they_are_kept() {
    let services = tokio::runtime::Runtime::new().unwrap();
    let (database, vhost) =
        services.block_on(async { (support::database("cli").await, support::vhost("cli").await) });
    let place = Place::empty().set("DATABASE_URL", &database.url).set("AMQP_URL", &vhost.amqp_url);
    place.run(&["migrate"]).succeeds();
    place.enqueue(&[]);
    let file = place.file("jobs.jsonl", &"{\"user_id\":\"u\",\"tool\":\"X\"}\n".repeat(1_000));
    assert_eq!(
        place.run(&["enqueue-bulk", &file]).succeeds().out,
        "1000 new, 0 duplicate, 0 refused, 0 invalid\n"
    );
    let doctor = place.run(&["doctor"]).exits(1);
    assert!(doctor.out.contains("queue default: 1001 messages wait and nobody consumes"), "{doctor:?}");
    assert!(doctor.out.contains("OK    database       PostgreSQL"), "{doctor:?}");

    let place = place.set("AMQP_URL", "amqp://errand:hunter2@127.0.0.1:1/%2f");
    let id = place.enqueue(&[]);
    assert_eq!(place.run(&["jobs", "show", &id, "--json"]).succeeds().json()["state"], "available");
}

#[test]
fn bulk_counts_every_line_and_bad_ones_stop_nobody() {
    let place = Place::with_database();
    let mut lines: Vec<String> = (0..1_200)
        .map(|n| {
            let id = uuid::Uuid::from_u128(n + 1);
            json!({"id": id, "user_id": format!("u-{n}"), "tool": "X", "arguments": {"n": n}}).to_string()
        })
        .collect();
    lines.insert(3, r#"{"user_id": "u", "tool": "X", "toll": 1}"#.to_owned());
    lines.insert(4, String::new());
    lines.insert(700, r#"{"user_id": "default", "tool": "X"}"#.to_owned());
    lines.insert(701, r#"{"user_id": "u", "tool": "X", "queue": "nope"}"#.to_owned());
    lines.push(r#"{"user_id": "u", "tool": "X", "queue": "bulk"}"#.to_owned());
    let file = place.file("jobs.jsonl", &lines.join("\n"));
    let ran = place.run(&["enqueue-bulk", &file]).exits(1);
    assert_eq!(ran.out, "1201 new, 0 duplicate, 1 refused, 2 invalid\n");
    assert_snapshot!(ran.err, @"
    line 4: the envelope is not a valid job: unknown field `toll`, expected one of `id`, `user_id`, `org_id`, `requested_by`, `tool`, `arguments`, `text`, `version`, `connected_account_id`, `queue`, `priority`, `run_at`, `expires_at`, `timeout_ms`, `max_attempts`, `max_age_ms`, `effect`, `idempotency_key`, `tags`, at column 36
    line 701: the owner `default` is refused because it could expose other people's data; send the real `user_id`
    line 702: there is no queue of this name in [queues]; use one of bulk, default
    ");
    let again = place.run_with_input(&["enqueue-bulk", "-", "--json"], &lines[..3].join("\n")).succeeds();
    assert_eq!(again.json(), json!({"new": 0, "duplicate": 3, "refused": 0, "invalid": 0, "problems": []}));
    place.run(&["enqueue-bulk", "missing.jsonl"]).fails(2, "cannot read missing.jsonl");
}

// ---------------------------------------------------------------------------------------------
// Decisions

#[test]
fn decisions_say_what_became_of_each_job() {
    let place = Place::with_database();
    let id = place.enqueue(&[]);
    let ran = place.run(&["jobs", "cancel", &id, NOBODY]).exits(1);
    assert_eq!(ran.out, format!("{id} is cancelled now\n{NOBODY} unchanged: there is no such job\n"));
    let ran = place.run(&["jobs", "cancel", &id, "--json"]).exits(1);
    assert_eq!(
        ran.json(),
        json!({"id": id, "done": false, "state": "cancelled",
               "message": "unchanged: it is cancelled and cannot be cancelled"})
    );
    assert_eq!(place.run(&["jobs", "retry", &id]).succeeds().out, format!("{id} is available now\n"));
    place.run(&["jobs", "release", &id, "--retry"]).exits(1);
    place.run(&["jobs", "show", NOBODY]).fails(1, "there is no job");
}

#[test]
fn the_history_of_a_job_says_who_decided() {
    let place = Place::with_database().set("LOGNAME", "operator");
    let id = place.enqueue(&[]);
    place.run(&["jobs", "cancel", &id, "--by", "alice"]).succeeds();
    place.run(&["jobs", "retry", &id]).succeeds();
    let shown = place.run(&["jobs", "show", &id, "--json"]).succeeds().json();
    let decided = |n: usize| (shown["history"][n]["kind"].as_str(), shown["history"][n]["by"].as_str());
    assert_eq!(decided(0), (Some("cancelled"), Some("alice")));
    assert_eq!(decided(1), (Some("retried"), Some("operator")));
    let table = place.run(&["jobs", "show", &id]).succeeds().out;
    assert!(table.contains("cancelled") && table.contains("alice"), "{table}");
    let refused = place.run(&["jobs", "cancel", &id, "--by", "errand: worker"]).exits(2);
    assert!(refused.err.contains("stands for errand itself"), "{refused:?}");
}

#[test]
fn a_held_job_is_shown_with_its_reason_and_can_be_released() {
    let place = Place::with_database();
    let id = hold(&place.store(), "X");
    let list = place.run(&["jobs", "list", "--state", "held"]).succeeds();
    assert!(list.out.contains("held (connection)"), "{list:?}");
    let shown = place.run(&["jobs", "show", &id]).succeeds();
    assert!(
        shown.out.contains("needs_connection: connect it \u{fffd}[31m first"),
        "control characters are masked: {shown:?}"
    );
    assert_eq!(place.run(&["jobs", "show", &id, "--json"]).succeeds().json()["held_reason"], "connection");
    let ran = place.run(&["jobs", "release", &id, "--succeeded"]).succeeds();
    assert_eq!(ran.out, format!("{id} is succeeded now\n"));
}

#[test]
fn held_jobs_are_released_by_reason_owner_and_toolkit() {
    let place = Place::with_database();
    let ids = [hold(&place.store(), "X"), hold(&place.store(), "Y")];
    let by = |args: &[&str]| place.run(&[&["jobs", "release"], args].concat());
    assert_eq!(by(&["--retry", "--owner", "user:u", "--dry-run"]).succeeds().out, "2 jobs match\n");
    for nothing in [["--owner", "org:u"], ["--toolkit", "github"], ["--reason", "credentials"]] {
        assert_eq!(by(&[&["--retry", "--dry-run"][..], &nothing].concat()).succeeds().out, "0 jobs match\n");
    }
    by(&["--retry", "--owner", "user:u"]).fails(2, "add --yes");
    by(&["--failed", "--owner", "user:u", "--yes"]).fails(2, "have not run");
    for wrong in
        [&["--retry", "--yes"][..], &["--retry", &ids[0], "--owner", "user:u"], &["--owner", "user:u"]]
    {
        by(wrong).exits(2);
    }
    let ran = by(&["--retry", "--owner", "user:u", "--reason", "connection", "--yes", "--json"]).succeeds();
    assert_eq!(ran.json(), json!({"matching": 2, "released": 2}));
    for id in &ids {
        assert_eq!(place.run(&["jobs", "show", id, "--json"]).succeeds().json()["state"], "available");
    }
}

/// A job that admission parked, with an error that tries to steer the terminal.
fn hold(store: &SharedStore, tool: &str) -> String {
    let spec = spec(&factory::job("u", tool, &json!({})));
    let id = spec.id.to_string();
    let error = JobError::new(ErrorKind::NeedsConnection, "connect it\n\u{1b}[31m first");
    let stop = Some(Stop::Hold { reason: HeldReason::Connection, error });
    let claim = Claim { stop, ..claim(&spec) };
    let worker = WorkerId::new();
    block_on(async {
        store.beat(worker, "test").await.unwrap();
        let claimed = store.claim(worker, &[claim]).await.unwrap();
        assert!(matches!(claimed[0], Claimed::Ended { state: State::Held, .. }), "{claimed:?}");
        store.close().await;
    });
    id
}

// ---------------------------------------------------------------------------------------------
// Pins, rejected messages

#[test]
fn pins_of_all_places_are_listed_in_the_order_in_which_they_win() {
    let place = Place::with_database().set("COMPOSIO_TOOLKIT_VERSION_GITHUB", "20250101_00");
    place.file("errand.toml", "[toolkit_versions]\ngithub = \"20250202_00\"\n");
    let set = place.run(&["pins", "set", "github", "20250303_00"]).succeeds();
    assert_eq!(set.out, "github is pinned to 20250303_00 for everybody\n");
    place.run(&["pins", "set", "github", "20250404_00", "--owner", "org:org-7"]).succeeds();
    assert_snapshot!(place.run(&["pins", "list"]).succeeds().out, @"
    TOOLKIT  VERSION      FOR        PINNED BY
    github   20250404_00  org:org-7  owner
    github   20250303_00  everybody  global
    github   20250202_00  everybody  config
    github   20250101_00  everybody  env
    ");
    let first = &place.run(&["pins", "list", "--json"]).succeeds().json_lines()[0];
    assert_eq!(first["owner"], json!({"kind": "org", "id": "org-7"}));
    place.run(&["pins", "unset", "github", "--owner", "org:org-7"]).succeeds();
    place
        .run(&["pins", "unset", "github", "--owner", "org:org-7"])
        .fails(1, "github was not pinned for org:org-7");
}

#[test]
fn a_rejected_message_can_be_read_and_requeued_once_it_is_a_job() {
    let place = Place::with_database();
    let fit = reject(&place.store(), br#"{"user_id":"u","tool":"X"}"#, EnvelopeReason::NoId);
    let unfit = reject(&place.store(), b"{\"nonsense\":1", EnvelopeReason::Malformed);

    let list = place.run(&["rejected", "list"]).succeeds();
    assert!(list.out.contains("no_id") && list.out.contains("malformed"), "{list:?}");
    assert_eq!(place.run(&["rejected", "list", "--json"]).succeeds().json_lines().len(), 2);
    let shown = place.run(&["rejected", "show", &unfit]).succeeds();
    assert!(shown.out.contains("13 bytes") && !shown.out.contains("nonsense"), "{shown:?}");
    assert_eq!(place.run(&["rejected", "show", &unfit, "--body"]).succeeds().out, "{\"nonsense\":1");
    place.run(&["rejected", "show", NOBODY]).fails(1, "there is no rejected message");

    let ran = place.run(&["rejected", "requeue", &fit, &unfit]).exits(1);
    assert!(ran.out.starts_with(&format!("{fit} is job {fit} now\n{unfit} stays rejected: ")), "{ran:?}");
    assert_eq!(place.run(&["jobs", "show", &fit, "--json"]).succeeds().json()["state"], "available");
    let left = place.run(&["rejected", "list", "--json"]).succeeds().json_lines();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["id"], json!(unfit));
    let again = place.run(&["rejected", "requeue", &fit]).exits(1);
    assert!(again.out.contains("was requeued before"), "{again:?}");
}

fn reject(store: &SharedStore, body: &[u8], reason: EnvelopeReason) -> String {
    let message = Rejected {
        id: uuid::Uuid::now_v7(),
        queue: "default".parse().unwrap(),
        reason,
        message: "it is not a job".to_owned(),
        body: body.to_vec(),
        properties: "{}".to_owned(),
    };
    let id = message.id.to_string();
    block_on(async {
        store.reject(&[message]).await.unwrap();
        store.close().await;
    });
    id
}

// ---------------------------------------------------------------------------------------------
// The tool API

/// A database and a sandbox that serves while the second value lives.
fn with_sandbox() -> (Place, tokio::runtime::Runtime) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let world = World::default_world();
    let key = world.usable_key().unwrap().to_owned();
    let sandbox = Sandbox::new(world, Options::default());
    let running = runtime.block_on(sandbox.bind(([127, 0, 0, 1], 0).into())).unwrap();
    let place =
        Place::with_database().set("COMPOSIO_BASE_URL", &running.base_url()).set("COMPOSIO_API_KEY", &key);
    // The sandbox serves until its handle is dropped.
    runtime.spawn(async move {
        std::future::pending::<()>().await;
        drop(running);
    });
    (place, runtime)
}

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
