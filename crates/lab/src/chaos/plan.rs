//! What a run is to do.

use std::{path::PathBuf, time::Duration};

use errand::config::Config;
use tokio::time::Instant;

use super::{backend::Backend, fault::Fault, tool_api::Kind};

/// What to do.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The settings of this process; workers see none of them.
    pub(crate) config: Config,
    /// The services under the workers.
    pub(crate) backend: Backend,
    /// The tool API.
    pub(crate) api: Kind,
    /// Which faults; each has its turn before one comes again.
    pub(crate) faults: Vec<Fault>,
    /// When no more rounds are started.
    pub(crate) until: Until,
    /// Where everything random comes from.
    pub(crate) seed: u64,
    /// Jobs of a round.
    pub(crate) jobs: usize,
    /// Rounds at the same time, as far as their faults do not touch shared services.
    pub(crate) parallel: u32,
    /// Where the logs of rounds that went wrong are kept.
    pub(crate) keep: PathBuf,
}

/// How long to go on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// Rounds are started for this long.
    Elapsed(Duration),
    /// This many rounds are played.
    Rounds(u64),
}

impl Until {
    pub(super) fn is_over(self, started: Instant, rounds: u64) -> bool {
        match self {
            Self::Elapsed(length) => started.elapsed() >= length,
            Self::Rounds(count) => rounds >= count,
        }
    }
}
