//! What the private servers have in common: a process that can be struck and started again on the same data.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, Ordering},
};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{guard::Process, machine};

/// What stays the same over restarts: the data, the ports and how to run the server on them.
pub(super) trait Installation: Send + Sync + 'static {
    /// The server's name, for errors.
    const SERVICE: &'static str;
    /// The signal that asks for a clean shutdown.
    const STOP_SIGNAL: &'static str;
    /// What has not ended after this is killed.
    const STOP_LIMIT: Duration;

    /// Starts the server, and returns when it answers.
    fn run(&self) -> Result<Process>;
}

/// A server that is gone, with its data, when the last clone is dropped.
#[derive(Debug)]
pub(super) struct Server<I>(Arc<Inner<I>>);

#[derive(Debug)]
struct Inner<I> {
    /// Dropped first, so that the process is dead when it is reaped.
    installation: I,
    process: Mutex<Process>,
    /// How many databases or virtual hosts were made.
    made: AtomicU32,
}

impl<I> Clone for Server<I> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<I: Installation> Server<I> {
    pub(super) fn start(installation: I) -> Result<Self> {
        let process = Mutex::new(installation.run()?);
        Ok(Self(Arc::new(Inner { installation, process, made: AtomicU32::new(0) })))
    }

    pub(super) fn installation(&self) -> &I {
        &self.0.installation
    }

    /// A name that no other database or virtual host of this server has.
    pub(super) fn name(&self, hint: &str) -> String {
        machine::name(hint, self.0.made.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(super) async fn kill9(&self) -> Result<()> {
        self.with(|server| server.process().kill()).await
    }

    pub(super) async fn stop(&self) -> Result<()> {
        self.with(|server| {
            let mut process = server.process();
            process.signal(I::STOP_SIGNAL)?;
            // A paused server would never notice.
            process.signal_tree("CONT")?;
            process.wait(I::STOP_LIMIT).map(drop)
        })
        .await
    }

    pub(super) async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.with(|server| {
            let process =
                server.installation().run().with_context(|| format!("{} does not restart", I::SERVICE))?;
            *server.process() = process;
            Ok(())
        })
        .await
    }

    pub(super) async fn pause(&self) -> Result<()> {
        self.with(|server| server.process().signal_tree("STOP")).await
    }

    pub(super) async fn resume(&self) -> Result<()> {
        self.with(|server| server.process().signal_tree("CONT")).await
    }

    /// Works on the server on a thread that may wait.
    pub(super) async fn with(&self, work: impl FnOnce(&Self) -> Result<()> + Send + 'static) -> Result<()> {
        let server = self.clone();
        machine::blocking(move || work(&server)).await
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.0.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
