//! Asking a process to stop. The token is passed down; there is no global one.

use tokio_util::sync::CancellationToken;

/// The two ways to end: in order, and at once.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Stop taking new work, finish what runs, then end.
    pub stop: CancellationToken,
    /// End now. Nothing is lost, but what runs is left to the rescue.
    pub abort: CancellationToken,
}

impl Shutdown {
    /// Cancels `stop` at the first SIGTERM or SIGINT and `abort` at the second.
    ///
    /// # Errors
    /// The signal handlers could not be installed.
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let shutdown = Self::default();
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let tokens = shutdown.clone();
        tokio::spawn(async move {
            for token in [tokens.stop, tokens.abort] {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                token.cancel();
            }
        });
        Ok(shutdown)
    }
}
