//! One integration binary.

#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

mod bench;
mod bench_api;
mod chaos;
mod corpus;

use std::process::{Command, Output, Stdio};

/// Runs `errand-lab` to its end with nothing in its environment.
fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_errand-lab"));
    command.args(args).env_clear().stdin(Stdio::null());
    // A folder without an errand.toml, so that nobody's own settings leak into a test.
    command.current_dir(std::env::temp_dir()).output().unwrap()
}
