//! The flags that name a server, the same for every command.

use super::Server;
use crate::config::{self, Sources};

/// Which server a command uses.
#[derive(Debug, Clone, Default, clap::Args)]
pub(in crate::cli) struct ServerFlags {
    /// Use the HTTP API at this address instead of this host's database, with the key in ERRAND_API_KEY.
    #[arg(long, global = true, value_name = "URL", help_heading = "Server", conflicts_with = "context")]
    server: Option<String>,
    /// Use the server of this context (`errand context`), or with `local` this host's database (also: ERRAND_CONTEXT).
    #[arg(long, global = true, value_name = "NAME", help_heading = "Server")]
    context: Option<String>,
    /// Change this context without asking, although it is production.
    #[arg(long, global = true, value_name = "NAME", help_heading = "Server")]
    confirm: Option<String>,
}

impl ServerFlags {
    /// Whether a server is named on the command line.
    pub(in crate::cli) fn names_one(&self) -> bool {
        self.server.is_some() || self.context.as_deref().is_some_and(|name| name != config::LOCAL)
    }

    /// The server; `None` is this host's database.
    ///
    /// # Errors
    /// There is no such context, or the address is none.
    pub(in crate::cli) fn server(self, sources: &Sources) -> anyhow::Result<Option<Server>> {
        let target = config::target(sources, self.server, self.context)?;
        target.map(|target| Server::new(target, self.confirm)).transpose()
    }
}
