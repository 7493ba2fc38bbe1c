//! `errand api`: the HTTP API as a process of its own.

use std::net::SocketAddr;

use anyhow::Result;

use super::exit::{self, Exit};
use crate::{app, config::Config, shutdown::Shutdown};

/// Serves the HTTP API until SIGTERM, SIGHUP or Ctrl-C.
///
/// Whoever reaches its address may enqueue and read jobs of every owner, so it listens on loopback only. Workers run the
/// jobs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The address to listen on, which must be one of loopback.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
}

pub(crate) async fn run(args: Args, config: Config) -> Result<Exit> {
    config.require_store()?;
    if !args.listen.ip().is_loopback() {
        return Err(exit::usage(
            "--listen must be an address of loopback, such as 127.0.0.1:8080, because whoever reaches it may act for every owner",
        ));
    }
    app::serve_api(&config, args.listen, Shutdown::on_signals()?.stop).await?;
    Ok(Exit::Success)
}
