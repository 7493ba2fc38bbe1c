//! The real binary, in an empty environment and an empty folder.

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Output, Stdio},
};

use errand::{
    app,
    config::{self, Sources},
    store::SharedStore,
};
use errand_sandbox::{Options, Sandbox, World};
use serde_json::Value;
use tempfile::TempDir;

mod actions;
mod callbacks;
pub(crate) mod decisions;
mod desk;
mod enqueue;
mod events;
mod keys;
mod listen;
mod services;
mod tools;
mod usage;

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
