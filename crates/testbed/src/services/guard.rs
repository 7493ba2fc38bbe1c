//! Owns the processes and the directory of one service, and gets rid of both whatever happens.
//!
//! Every service is a direct child of this process, in a process group of its own: only a parent can
//! `wait()`, and a killed server that nobody reaped keeps its process id, which makes PostgreSQL refuse to
//! start again. Statics are never dropped and a killed process runs no destructors, so beside each service
//! stands a guard: a shell that reads a pipe whose other end only this process holds. However this process
//! ends, the pipe ends with it, and the guard kills the service and removes its directory.

use std::{
    fs, io,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{machine::Account, place::Place};

const TREE: &str = include_str!("tree.sh");
const GUARD: &str = include_str!("guard.sh");

/// Lists itself before it becomes the service, so that there is no moment in which the service runs and the
/// guard does not know it. The guard closes the directory before it reads the list: either it finds the
/// launcher there, or the launcher finds the directory closed.
const LAUNCH: &str = r#"echo "$$" >"$0/pids/$$" && [ ! -e "$0/closed" ] && exec "$@""#;

/// A service directory with its guard. Dropping it kills what was launched in it, and removes it.
#[derive(Debug)]
pub struct Guard {
    directory: PathBuf,
    account: Option<Account>,
    shell: Child,
    /// The only writing end of the guard's pipe. The standard library marks it close-on-exec, so no child
    /// of this process keeps it open.
    pipe: Option<ChildStdin>,
}

impl Guard {
    /// Makes a directory in the place and sets a guard beside it. Processes launched in it run under
    /// `account`, or under this process's own account.
    ///
    /// # Errors
    /// The directory cannot be made, or there is no shell.
    pub fn new(place: &Place, name: &str, account: Option<Account>) -> Result<Guard> {
        let directory = tempfile::Builder::new()
            .prefix(&format!("errand-{name}-"))
            .tempdir_in(place.base())
            .with_context(|| format!("make a directory in {}", place.base().display()))?;
        fs::create_dir(directory.path().join("pids"))?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700))?;
        if let Some(account) = account {
            for path in [directory.path(), &directory.path().join("pids")] {
                chown(path, Some(account.uid), Some(account.gid)).context("give a directory away")?;
            }
        }
        let mut shell = Command::new("/bin/sh")
            .args(["-c", &format!("{TREE}\n{GUARD}"), "errand-guard"])
            .arg(directory.path())
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("run /bin/sh as the guard of a private server")?;
        let pipe = shell.stdin.take();
        // From here on the guard removes the directory.
        Ok(Guard { directory: directory.keep(), account, shell, pipe })
    }

    /// The directory, in which everything is removed with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts a program in the directory, with the given variables and `PATH` as its only environment, and
    /// its output appended to `output.log`.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn launch(&self, program: &Path, args: &[String], env: &[(&str, String)]) -> Result<Process> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join("output.log"))
            .context("open the log of a private server")?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", LAUNCH])
            .arg(&self.directory)
            .arg(program)
            .args(args)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8")
            .envs(env.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(account) = self.account {
            command.uid(account.uid).gid(account.gid);
        }
        let child = command.spawn().with_context(|| format!("launch {}", program.display()))?;
        let listed = self.directory.join("pids").join(child.id().to_string());
        Ok(Process { child, listed })
    }

    /// The last lines that the launched programs wrote, for the message of a failed start.
    #[must_use]
    pub fn output(&self) -> String {
        let bytes = fs::read(self.directory.join("output.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // A guard that is gone already has nothing left to report.
        drop(self.shell.wait());
    }
}

/// A child process, and everything that it started in turn.
#[derive(Debug)]
pub struct Process {
    child: Child,
    listed: PathBuf,
}

impl Process {
    /// The process id, which is also the id of its process group.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How the process ended, if it has.
    ///
    /// # Errors
    /// The system does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait().context("read the state of a child process")?;
        if status.is_some() {
            self.strike()?;
        }
        Ok(status)
    }

    /// Waits for the end of the process, and kills it and its descendants when the limit has passed.
    ///
    /// # Errors
    /// Its state cannot be read, or it cannot be killed.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            let status = self.ended()?;
            if status.is_some() {
                return Ok(status);
            }
            sleep(Duration::from_millis(5));
        }
        self.kill()?;
        Ok(None)
    }

    /// Waits until `probe` says that the service answers.
    ///
    /// # Errors
    /// The process ends or the limit passes first; it is killed then.
    pub fn wait_ready(&mut self, limit: Duration, probe: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if probe() {
                return Ok(());
            }
            if let Some(status) = self.ended()? {
                bail!("it ended with {status} before it answered");
            }
            if Instant::now() >= deadline {
                self.kill()?;
                bail!("it did not answer within {limit:?}");
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// SIGKILL for the process and its descendants; returns when none of them runs any more.
    ///
    /// # Errors
    /// They cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            run_tree(&format!("kill_trees {}", self.id()))?;
            self.child.wait().context("wait for the end of a killed child process")?;
            self.strike()?;
        }
        Ok(())
    }

    /// Sends a signal, such as `TERM`, to the process alone.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn signal(&mut self, signal: &str) -> Result<()> {
        if self.ended()?.is_none() {
            run_tree(&format!("kill -{signal} {}", self.id()))?;
        }
        Ok(())
    }

    /// Sends a signal, such as `STOP`, to the process and its descendants.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn signal_tree(&mut self, signal: &str) -> Result<()> {
        if self.ended()?.is_none() {
            run_tree(&format!("signal_tree {signal} {}", self.id()))?;
        }
        Ok(())
    }

    /// Takes a reaped process off the guard's list, because its id may soon belong to somebody else.
    fn strike(&self) -> Result<()> {
        match fs::remove_file(&self.listed) {
            // The launcher may have failed before it listed itself, and the guard removes the whole list.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.listed.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Reaps it when the guard has killed it already, which is the usual order.
        drop(self.child.try_wait());
    }
}

fn run_tree(call: &str) -> Result<()> {
    let status = Command::new("/bin/sh")
        .args(["-c", &format!("{TREE}\n{call}")])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("run /bin/sh")?;
    ensure!(status.success(), "`{call}` ended with {status}");
    Ok(())
}
