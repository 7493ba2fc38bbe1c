//! Processes of the benchmark: starting them, watching what they use, ending them.
//!
//! A child ends when its standard input does, so that none outlives the benchmark, however that ends.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    time::timeout,
};

/// The part that a process of the benchmark plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// The stub of the tool API.
    Stub,
    /// The worker.
    Worker,
    /// The bare loop.
    Bare,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Stub => "stub",
            Self::Worker => "worker",
            Self::Bare => "bare",
        }
    }
}

/// How long a child may take to end after it was asked to.
const END: Duration = Duration::from_secs(40);

/// The unit of processor times in `/proc`: the kernel reports them to programs in hundredths of a
/// second on every platform.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running child.
#[derive(Debug)]
pub(super) struct Process {
    role: Role,
    child: Child,
    stdin: ChildStdin,
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// User and system time.
    pub(super) cpu_seconds: f64,
    /// The most memory that was resident at any time.
    pub(super) peak_bytes: u64,
}

impl Process {
    /// Starts this program again in a role. It sees no other environment than `variables`, so that
    /// the settings of a person's shell do not change what is measured.
    pub(super) fn start(role: Role, arguments: &[String], variables: &[(&str, &str)]) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command
            .args(["bench-child", role.name()])
            .args(arguments)
            .env_clear()
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
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
        let id = self.child.id().context("a child ended before it was measured")?;
        let folder = Path::new("/proc").join(id.to_string());
        let stat = std::fs::read_to_string(folder.join("stat"))?;
        let status = std::fs::read_to_string(folder.join("status"))?;
        Ok(Usage {
            cpu_seconds: cpu_seconds(&stat).context("/proc/PID/stat cannot be read")?,
            peak_bytes: peak_bytes(&status).context("/proc/PID/status cannot be read")?,
        })
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

/// Returns when the standard input ends: the sign to end for a child.
pub(super) async fn parent_is_gone() {
    let (mut stdin, mut buffer) = (tokio::io::stdin(), [0; 64]);
    while matches!(stdin.read(&mut buffer).await, Ok(1..)) {}
}

/// The fields behind the name of the program, which may contain anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

fn peak_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_times_and_memory_are_read() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 900 0 0 0 150 75 0 0 20 0 5 0 1 2 3";
        assert_eq!(cpu_seconds(stat), Some(2.25));
        assert_eq!(peak_bytes("VmPeak:\t 9 kB\nVmHWM:\t    2048 kB\n"), Some(2 * 1024 * 1024));
    }
}
