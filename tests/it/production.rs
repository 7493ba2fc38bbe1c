//! A context that is production: every command that changes something asks for its name, and no other command does.
//!
//! Which commands there are is read from their help, so that a new one fails the test until it is known here; and what is
//! known here as a command that only reads is judged by what it sends.

use errand_testbed::scripted_api::{Answer, Request, ScriptedApi};
use serde_json::{Value, json};

use crate::{
    harness::python,
    server::{Said, Terminal},
};

/// An ID that nothing has.
const ID: &str = "0190b0a0-0000-7000-8000-00000000dead";

/// Of each command that changes something, the ways in which it does.
const CHANGING: &[&[&str]] = &[
    &["enqueue", "GITHUB_GET_REPO", "--owner", "user:u"],
    &["enqueue-bulk", "-"],
    &["jobs", "cancel", ID],
    &["jobs", "cancel", "--state", "held", "--yes"],
    &["jobs", "retry", ID],
    &["jobs", "retry", "--state", "failed", "--yes"],
    &["jobs", "release", "--retry", ID],
    &["jobs", "release", "--retry", "--reason", "connection", "--yes"],
    &["jobs", "edit", ID, "--priority", "3"],
    &["actions", "abort", ID],
    &["batches", "seal", ID],
    &["batches", "cancel", ID],
    &["batches", "retry", ID],
    &["queues", "pause", "default", "--reason", "repairs"],
    &["queues", "resume", "default"],
    &["pins", "set", "github", "20251027_00"],
    &["pins", "unset", "github"],
    &["keys", "create", "--operator", "--scope", "read"],
    &["keys", "rotate", ID],
    &["keys", "revoke", ID],
    &["callbacks", "set", "--owner", "user:u", "--url", "https://app.example.com/"],
    &["callbacks", "secret", "--owner", "user:u"],
    &["callbacks", "recover", "--owner", "user:u", "--since", "1h"],
    &["rejected", "requeue", ID],
    &["prune", "--state", "failed", "--yes"],
];

/// Of each other command about a server, the ways in which it reads.
const READING: &[&[&str]] = &[
    &["jobs", "list"],
    &["jobs", "list", "--all", "--json"],
    &["jobs", "show", ID],
    &["jobs", "stats", "--by", "tool"],
    &["jobs", "cancel", "--state", "held", "--dry-run"],
    &["jobs", "retry", "--state", "failed", "--dry-run"],
    &["jobs", "release", "--retry", "--reason", "connection", "--dry-run"],
    &["prune", "--state", "failed", "--dry-run"],
    &["actions", "list"],
    &["actions", "show", ID],
    &["batches", "list"],
    &["batches", "show", ID],
    &["batches", "items", ID],
    &["queues"],
    &["workers"],
    &["pins", "list"],
    &["keys", "list"],
    &["callbacks", "list"],
    &["callbacks", "deliveries"],
    &["audit-log"],
    &["events"],
    &["tools", "show", "GITHUB_GET_REPO"],
    &["accounts", "list", "--owner", "user:u"],
    &["rejected", "list"],
    &["rejected", "show", ID],
    &["rejected", "show", ID, "--body"],
];

/// The commands about this host, which use no server.
const OF_THIS_HOST: &[&[&str]] = &[
    &["demo"],
    &["dev"],
    &["worker"],
    &["api"],
    &["audit"],
    &["erase", "--owner", "user:u"],
    &["migrate"],
    &["config", "show"],
    &["config", "check"],
    &["config", "default"],
    &["context", "list"],
    &["context", "set", "other", "http://127.0.0.1:9"],
    &["context", "use", "local"],
    &["context", "remove", "prod"],
    &["doctor"],
    &["health"],
    &["sandbox"],
    &["listen"],
    &["completions", "bash"],
];

/// What a person is asked.
const QUESTION: &str = "Type the name of the context to go on:";

/// A server that has nothing of what is asked for, and previews every action, with two contexts that name it: `prod`, which
/// is production, and `staging`, which is not.
async fn two_contexts() -> (ScriptedApi, Terminal) {
    let server = ScriptedApi::responding(answer).await;
    let terminal = Terminal::new().with("ERRAND_API_KEY", "errand_secret");
    terminal.run(&["context", "set", "prod", &server.url(), "--production"]);
    terminal.run(&["context", "set", "staging", &server.url()]);
    (server, terminal)
}

fn answer(request: &Request) -> Answer {
    if request.line() == "POST /v1/actions" {
        let at = "2026-11-29T00:00:00Z";
        let action = json!({
            "id": ID, "action": "cancel", "force": false, "now": false, "filter": {}, "until": at, "status": "previewed",
            "made_by": "api", "created_at": at, "progress": {},
            "preview": {"total": 1, "needs_force": 0, "at_least": false, "kinds": []},
        });
        return Answer::new("201 Created", action.to_string());
    }
    let problem = json!({
        "type": "urn:errand:problem:not-found", "title": "There is nothing here", "status": 404,
        "detail": "there is nothing of this name here",
    });
    Answer::new("404 Not Found", problem.to_string())
}

/// The requests that came since the last time, as method and path.
fn sent(server: &ScriptedApi) -> Vec<String> {
    server.take_seen().iter().map(|request| request.line().to_owned()).collect()
}

fn says(terminal: &Terminal, before: &[&str], command: &[&str], after: &[&str]) -> Said {
    // What `enqueue-bulk` reads; the others read nothing.
    let line = r#"{"user_id": "u", "tool": "GITHUB_GET_REPO", "arguments": {}}"#;
    terminal.says(&[before, command, after].concat(), line)
}

/// All commands that have none below them, as the help of those above names them.
fn leaves(terminal: &Terminal, path: &[String], found: &mut Vec<Vec<String>>) {
    let args: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
    let help = terminal.run(&args);
    let Some((_, rest)) = help.split_once("\nCommands:\n") else {
        found.push(path.to_vec());
        return;
    };
    let list = rest.split("\n\n").next().unwrap();
    // What is further to the right goes on with the line before.
    let lines = list.lines().filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    for name in lines.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
        leaves(terminal, &[path, &[name.to_owned()]].concat(), found);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_is_known_to_change_something_to_read_or_to_be_about_the_host() {
    let (server, terminal) = two_contexts().await;
    let mut all = Vec::new();
    leaves(&terminal, &[], &mut all);
    assert!(all.len() > 40, "the help is read as it is meant: {all:?}");
    let known = [CHANGING, READING, OF_THIS_HOST].concat();
    let is_known = |leaf: &&Vec<String>| {
        known
            .iter()
            .any(|args| args.len() >= leaf.len() && leaf.iter().zip(*args).all(|(name, arg)| name == arg))
    };
    let unknown: Vec<_> = all.iter().filter(|leaf| !is_known(leaf)).collect();
    assert!(
        unknown.is_empty(),
        "say above what these do, and that those which change something ask: {unknown:?}"
    );

    // Should one of these not be refused, it ends because of its settings.
    let terminal = terminal.with("DATABASE_URL", "mysql://nowhere");
    for command in OF_THIS_HOST {
        let said = says(&terminal, &["--context", "prod"], command, &[]);
        assert_eq!(said.code, Some(2), "{command:?}: {}{}", said.out, said.err);
        assert!(said.err.contains("this command is about this host"), "{command:?}: {}", said.err);
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_production_needs_its_name_before_anything_is_sent() {
    let (server, terminal) = two_contexts().await;
    for command in CHANGING {
        let said = says(&terminal, &["--context", "prod"], command, &[]);
        assert_eq!(said.code, Some(2), "{command:?}: {}{}", said.out, said.err);
        assert!(said.err.contains("add --confirm prod"), "{command:?}: {}", said.err);
        let said = says(&terminal, &["--context", "prod"], command, &["--confirm", "staging"]);
        assert_eq!(said.code, Some(2), "{command:?}: {}{}", said.out, said.err);
        assert!(said.err.contains("the context is prod"), "{command:?}: {}", said.err);
    }
    // A context that is in use is production as well as one that is named.
    terminal.run(&["context", "use", "prod"]);
    terminal.fails(&["jobs", "cancel", ID], 2, "add --confirm prod");
    terminal.run(&["context", "use", "local"]);
    // Connections are accepted in their order, so that by now all would have been.
    assert_eq!(says(&terminal, &["--context", "prod"], &["jobs", "list"], &[]).code, Some(1));
    assert_eq!((server.connections(), sent(&server).len()), (1, 1), "only the list was asked for");

    for command in CHANGING {
        for (context, confirmed) in [("prod", &["--confirm", "prod"][..]), ("staging", &[])] {
            let said = says(&terminal, &["--context", context], command, confirmed);
            let sent = sent(&server);
            assert_eq!(said.code, Some(1), "{command:?} at {context}: {}{}", said.out, said.err);
            assert!(said.err.contains("nothing of this name") || said.out.contains("nothing of this name"));
            assert!(sent.iter().any(|line| !line.starts_with("GET ")), "{command:?} at {context}: {sent:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_reads_production_does_not_ask_and_changes_nothing() {
    let (server, terminal) = two_contexts().await;
    for command in READING {
        let said = says(&terminal, &["--context", "prod"], command, &[]);
        assert_eq!(said.code, Some(1), "{command:?}: {}{}", said.out, said.err);
        assert!(!said.err.contains("--confirm"), "{command:?}: {}", said.err);
        let is_dry = command.contains(&"--dry-run");
        let preview = ["POST /v1/actions".to_owned(), format!("POST /v1/actions/{ID}/abort")];
        let sent = sent(&server);
        assert!(!sent.is_empty(), "{command:?}");
        let changing: Vec<_> = sent.iter().filter(|line| !line.starts_with("GET ")).cloned().collect();
        // An action that nobody confirms changes nothing.
        assert_eq!(changing, if is_dry { preview.to_vec() } else { Vec::new() }, "{command:?}");
    }
}

/// Runs a command at a terminal on which somebody answers the question.
async fn at_terminal(terminal: &Terminal, command: &[&str], answer: &str) -> (i64, String) {
    let args = [&[env!("CARGO_BIN_EXE_errand"), "--context", "prod"], command].concat();
    let asked = json!({
        "args": args, "env": terminal.env, "folder": terminal.home.path().to_str().unwrap(), "question": QUESTION,
        "answer": answer,
    });
    let told: Value = python("at_terminal.py", asked).await;
    (told["code"].as_i64().unwrap(), told["shown"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_terminal_the_name_of_the_context_goes_on_and_any_other_word_does_not() {
    let (server, terminal) = two_contexts().await;
    let two = ["jobs", "cancel", ID, "0190b0a0-0000-7000-8000-00000000beef"];
    for word in ["staging", "y", "PROD", ""] {
        let (code, shown) = at_terminal(&terminal, &two, word).await;
        assert_eq!((code, sent(&server).len()), (1, 0), "{word}: {shown}");
        assert!(shown.contains(&server.url()) && shown.contains("nothing was changed"), "{word}: {shown}");
    }
    let (code, shown) = at_terminal(&terminal, &two, "prod").await;
    assert_eq!((code, sent(&server).len()), (1, 2), "{shown}");
    assert_eq!(shown.matches(QUESTION).count(), 1, "it asks once, whatever it changes: {shown}");
    assert!(shown.contains("nothing of this name") && !shown.contains("nothing was changed"), "{shown}");
}
