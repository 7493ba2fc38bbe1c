//! Processes of the benchmark: starting them, watching what they use, ending them.
//!
//! A child ends when its standard input does, so that none outlives the benchmark, however that ends.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    time::timeout,
};

use crate::child::Usage;

/// What a process of the benchmark is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// The stub of the tool API.
    Stub,
    /// The worker.
    Worker,
    /// The baseline.
    Baseline,
    /// The HTTP API.
    Api,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Stub => "stub",
            Self::Worker => "worker",
            Self::Baseline => "baseline",
            Self::Api => "api",
        }
    }
}

/// The file of this program, which is started again for every part of the benchmark.
pub(super) fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

/// Makes sure that the program of another build can be measured.
///
/// # Errors
/// It cannot be run, or it is another program.
pub(super) async fn check_program(program: &Path) -> Result<()> {
    let mut command = command(program, &[]);
    let asked = command.args(["bench-child", "--help"]).stdin(Stdio::null()).output().await;
    let answer = asked.with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(
        answer.status.success() && String::from_utf8_lossy(&answer.stdout).contains("bench-child"),
        "{} has no worker to measure: name an errand-lab, or an errand that still has the command `bench`",
        program.display()
    );
    Ok(())
}

/// Runs a program to its end.
///
/// # Errors
/// It fails; it has told the reason.
pub(super) async fn run(program: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    let mut command = command(program, variables);
    let status = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).status().await;
    let what = || format!("{} {}", program.display(), arguments.first().unwrap_or(&""));
    let status = status.with_context(|| format!("cannot run {}", what()))?;
    ensure!(status.success(), "{} failed: {status}", what());
    Ok(())
}

/// A program that sees no other environment than `variables`, so that the settings of a person's shell do not
/// change what is measured.
fn command(program: &Path, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(variables.iter().copied()).kill_on_drop(true);
    command
}

/// How long a child may take to end after it was asked to.
const END: Duration = Duration::from_secs(40);

/// A running child.
#[derive(Debug)]
pub(super) struct Process {
    role: Role,
    child: Child,
    stdin: ChildStdin,
}

impl Process {
    /// Starts a program in a role.
    pub(super) fn start(
        program: &Path,
        role: Role,
        arguments: &[String],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let mut command = command(program, variables);
        command
            .args(["bench-child", role.name()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("cannot start the {} of the benchmark", role.name()))?;
        let stdin = child.stdin.take().context("a child has no standard input")?;
        Ok(Self { role, child, stdin })
    }

    /// The first line that the child prints.
    pub(super) async fn first_line(&mut self) -> Result<String> {
        let stdout = self.child.stdout.take().context("a child has no standard output")?;
        let mut line = String::new();
        timeout(END, BufReader::new(stdout).read_line(&mut line)).await.context("a child says nothing")??;
        Ok(line.trim().to_owned())
    }

    /// Fails when the child has ended by itself.
    pub(super) fn ensure_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the {} of the benchmark ended too early: {status}", self.role.name()),
        }
    }

    /// What the child has used.
    pub(super) fn usage(&self) -> Result<Usage> {
        Usage::of(self.child.id().context("a child ended before it was measured")?)
    }

    /// Asks the child to end and waits for it.
    pub(super) async fn stop(self) -> Result<()> {
        let Self { role, mut child, stdin } = self;
        drop(stdin);
        match timeout(END, child.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
            Ok(status) => bail!("the {} of the benchmark failed: {}", role.name(), status?),
            Err(_) => {
                child.kill().await?;
                bail!("the {} of the benchmark did not end within {} s", role.name(), END.as_secs())
            }
        }
    }
}
