//! Starting and stopping the sandbox.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{net::TcpListener, task::JoinHandle};

use super::{
    ledger::LedgerSummary,
    listener::{Cut, CuttableListener},
    routes,
    state::{Shared, State},
    world::World,
};

/// What is not part of the world.
#[derive(Debug, Clone)]
pub struct Options {
    /// What every fault is decided by. IDs are not: no two runs share one.
    pub seed: u64,
}

impl Options {
    /// The seed of runs that do not choose one.
    pub const DEFAULT_SEED: u64 = 7;
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: Self::DEFAULT_SEED }
    }
}

/// A sandbox that does not serve yet.
#[derive(Debug)]
pub struct Sandbox {
    state: Shared,
}

impl Sandbox {
    /// Makes a sandbox of a world; nothing is bound yet.
    pub fn new(world: World, options: Options) -> Self {
        Self { state: Arc::new(State::new(world, options.seed)) }
    }

    /// Binds `addr` (port 0 for any free one) and serves from a task until the answer is stopped or
    /// dropped.
    ///
    /// # Errors
    /// Whatever binding the address fails with, such as a port that is in use.
    pub async fn bind(self, addr: SocketAddr) -> io::Result<Running> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let listener = CuttableListener::new(listener, self.state.stopped.clone());
        let service = routes::router(Arc::clone(&self.state)).into_make_service_with_connect_info::<Cut>();
        let stopped = self.state.stopped.clone();
        let task = tokio::spawn(async move {
            let serving = axum::serve(listener, service).into_future();
            // Serving has no end of its own; it ends with the token, and with it every connection.
            if let Some(Err(error)) = stopped.run_until_cancelled(serving).await {
                tracing::error!(%error, "the sandbox stopped serving");
            }
        });
        Ok(Running { addr, state: self.state, task })
    }
}

/// A sandbox that serves.
#[derive(Debug)]
pub struct Running {
    /// The address that it serves on, with the port that was chosen.
    pub addr: SocketAddr,
    state: Shared,
    task: JoinHandle<()>,
}

impl Running {
    /// What to configure a client with; the API version follows as `/api/v3` or `/api/v3.1`.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What the ledger says now, without a request.
    pub fn ledger_summary(&self) -> LedgerSummary {
        self.state.ledger.summary()
    }

    /// How many effects one job had.
    pub fn job_effects(&self, job: &str) -> u32 {
        self.state.ledger.job(job).effects
    }

    /// Forgets what the ledger holds.
    pub fn clear_ledger(&self) {
        self.state.ledger.clear();
    }

    /// Moves the sandbox's clock forward.
    pub fn advance_clock(&self, by: std::time::Duration) {
        self.state.clock.advance(u32::try_from(by.as_millis()).unwrap_or(u32::MAX));
    }

    /// Stops serving. Open connections are closed, waiting calls are given up.
    pub async fn stop(mut self) {
        self.state.stopped.cancel();
        // A panic in the task was reported when it happened.
        (&mut self.task).await.ok();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.state.stopped.cancel();
    }
}
