//! Workers as processes of their own, which can be killed, stopped and told to end.

use std::{
    fs::File,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use errand::{
    app::{self, App},
    config::Config,
    shutdown::Shutdown,
    worker::CrashPlan,
};
use tokio::{
    process::{Child, ChildStdin, Command},
    time::timeout,
};

use crate::child::{Usage, parent_is_gone};

/// A worker that runs.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// The worker ends when this does, so none outlives the run.
    _stdin: ChildStdin,
}

impl Process {
    /// Starts this program again as a worker, with nothing in its environment but `env`, and its log in a file.
    pub(super) fn start(env: &[(String, String)], crash: Option<CrashPlan>, log: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let log = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        // A file that may not grow is an error to the worker, and not its end.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
            .arg(program)
            .arg("chaos-worker")
            .args(crash.map(|plan| format!("--crash-at={plan}")))
            .env_clear()
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        let mut child = command.spawn().context("cannot start a worker")?;
        let stdin = child.stdin.take().context("a worker has no standard input")?;
        Ok(Self { child, _stdin: stdin })
    }

    /// Kills it at once, and returns when it is gone.
    pub(super) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("cannot kill a worker")
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// The most memory that it had at any time, as long as it runs.
    pub(super) fn peak_bytes(&self) -> Option<u64> {
        Usage::of(self.child.id()?).ok().map(|usage| usage.peak_bytes)
    }

    /// Waits for its end; `None` if it takes longer than `limit`.
    pub(super) async fn ended_within(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        match timeout(limit, self.child.wait()).await {
            Ok(status) => Ok(Some(status?)),
            Err(_) => Ok(None),
        }
    }

    /// Lets its files grow to so many bytes only, or as before.
    pub(super) async fn limit_files(&mut self, bytes: Option<u64>) -> Result<()> {
        let Some(id) = self.child.id() else { return Ok(()) };
        let limit = bytes.map_or_else(|| "unlimited".to_owned(), |bytes| bytes.to_string());
        let mut prlimit = Command::new("prlimit");
        prlimit.args([format!("--pid={id}"), format!("--fsize={limit}:unlimited")]);
        let status = prlimit.stdin(Stdio::null()).status().await.context("cannot run prlimit")?;
        ensure!(status.success() || self.has_ended()?, "cannot limit the files of a worker");
        Ok(())
    }

    /// Sends a signal, by the name that the shell has for it. One that has ended gets none.
    pub(super) async fn signal(&mut self, name: &str) -> Result<()> {
        let Some(id) = self.child.id() else { return Ok(()) };
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("kill -{name} {id}")]).stdin(Stdio::null()).stderr(Stdio::null());
        let status = shell.status().await.context("cannot run /bin/sh")?;
        ensure!(status.success() || self.has_ended()?, "cannot send SIG{name} to a worker");
        Ok(())
    }
}

/// The worker from the inside: `errand worker`, on whatever the configuration names, which also ends when
/// its parent does.
///
/// # Errors
/// As for `errand worker`.
pub(crate) async fn play(config: Config, crash: Option<CrashPlan>) -> Result<()> {
    let metrics = app::install_metrics()?;
    let shutdown = Shutdown::on_signals()?;
    tokio::spawn(async {
        parent_is_gone().await;
        std::process::abort();
    });
    App::new(config)?.crashing(crash).run(metrics, shutdown).await?;
    Ok(())
}
