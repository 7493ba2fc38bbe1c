//! The blocks of README.md, run as they are printed and in their order.
//!
//! What a test cannot have is set around them: the folder of the program is in `PATH` instead of being installed, the
//! private services are those of the tests, and ports are free ones.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use tempfile::TempDir;

use crate::{
    harness::PATIENCE,
    support::{self, machine, wait::until},
};

const README: &str = include_str!("../../README.md");

/// What is run elsewhere or cannot be run in a test: each is the only line of its block, or begins one.
const NOT_RUN: [&str; 4] =
    ["cargo run --release -- demo", "tests/run", "cargo install --locked --path .", "tests/install-services"];

/// The blocks of a page in this language, in order.
pub(crate) fn blocks_of(page: &'static str, language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    page.split(&fence).skip(1).map(|text| text.split_once("```").unwrap().0).collect()
}

fn blocks(language: &str) -> Vec<&'static str> {
    blocks_of(README, language)
}

/// The blocks of shells that are run here.
fn run_blocks() -> Vec<&'static str> {
    blocks("sh").into_iter().filter(|block| !NOT_RUN.iter().any(|not| block.starts_with(not))).collect()
}

/// A folder for terminals, with an `errand` that uses free ports where it would use those that README names.
pub(crate) struct Desk {
    folder: TempDir,
    pub(crate) sandbox: String,
    pub(crate) env: Vec<(String, String)>,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sandbox = format!("127.0.0.1:{}", machine::free_port());
        let program = env!("CARGO_BIN_EXE_errand");
        let script = format!(
            "#!/bin/sh\ncase \"$1\" in\n  dev) exec {program} \"$@\" --sandbox-listen {sandbox} ;;\n  \
             sandbox) exec {program} \"$@\" --listen {sandbox} ;;\n  *) exec {program} \"$@\" ;;\nesac\n"
        );
        fs::create_dir(folder.path().join("bin")).unwrap();
        let path = folder.path().join("bin/errand");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let bin = folder.path().join("bin");
        let env = vec![
            ("PATH".to_owned(), format!("{}:/usr/bin:/bin", bin.display())),
            ("ERRAND__HTTP__LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
            ("ERRAND__API__LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
        ];
        Self { folder, sandbox, env }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A terminal in which these lines are typed.
    pub(crate) fn terminal(&self, lines: &str) -> Command {
        let lines = lines.replace("127.0.0.1:8090", &self.sandbox);
        let mut shell = Command::new("/bin/sh");
        shell.args(["-e", "-c", &lines]).env_clear().envs(self.env.iter().cloned());
        shell.current_dir(self.path()).stdin(Stdio::null());
        shell
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }
}

/// A command that goes on until the test is over.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn every_block_is_run_or_known_not_to_be() {
    assert_eq!((run_blocks().len(), blocks("python").len()), (4, 2), "the tests below run all of them");
    let unknown = README
        .split("```")
        .skip(1)
        .step_by(2)
        .find(|block| !["sh\n", "python\n"].iter().any(|language| block.starts_with(language)));
    assert_eq!(unknown, None, "a block in another language");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_runs_what_a_second_terminal_enqueues() {
    let all = run_blocks();
    let (dev, enqueue) = (all[0], all[1]);
    let desk = Desk::new();
    let log = fs::File::create(desk.path().join("log")).unwrap();
    let terminal = desk.terminal(&format!("exec {}", dev.trim())).stdout(Stdio::null()).stderr(log).spawn();
    let _dev = Running(terminal.unwrap());
    until("worker ready", PATIENCE, async || desk.log().contains("worker ready").then_some(())).await;
    let output = desk.terminal(enqueue).output().unwrap();
    assert_succeeds(&output, &desk);
    assert_eq!(text(&output).matches("GITHUB_GET_REPO").count(), 2, "shown and listed: {}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn services_workers_and_a_publisher_in_python_work_together() {
    let (database, vhost) = (support::database("readme").await, support::vhost("readme").await);
    let mut desk = Desk::new();
    // The two lines that the private services print.
    desk.env.push(("DATABASE_URL".to_owned(), database.url.clone()));
    desk.env.push(("AMQP_URL".to_owned(), vhost.amqp_url.clone()));
    let all = run_blocks();
    let (start, read) = (all[2], all[3]);
    let program = desk.path().join("app.py");
    fs::write(&program, blocks("python").join("\n")).unwrap();
    let python = std::env::var("ERRAND_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let read = read.replace("--json ID", "--json $(errand jobs list --limit 1 | tail -1 | cut -d' ' -f1)");
    // In a pipe, `jobs` would be asked by another shell.
    let end = "jobs -p > pids\ntrap 'kill $(cat pids); wait' EXIT\n";
    let lines = format!("{start}{end}timeout 100 {python} {}\n{read}", program.display());
    let log = fs::File::create(desk.path().join("log")).unwrap();
    let output = desk.terminal(&lines).stderr(log).output().unwrap();
    assert_succeeds(&output, &desk);
    let out = text(&output);
    for part in ["the exchange and the queues are declared", "order-17 succeeded", "\"state\":\"succeeded\""]
    {
        assert!(out.contains(part), "{part} is not in {out}\n{}", desk.log());
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn assert_succeeds(output: &Output, desk: &Desk) {
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{err}\n{}", text(output), desk.log());
}
