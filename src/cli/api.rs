//! `errand api`: the HTTP API as a process of its own.

use std::net::SocketAddr;

use anyhow::Result;

use super::exit::{self, Exit};
use crate::{app, config::Config, shutdown::Shutdown};

/// Serves the HTTP API until SIGTERM, SIGHUP or Ctrl-C.
///
/// Requests need an access key (`errand keys create`). As long as none was made, whoever reaches its address may enqueue and
/// read jobs of every owner, so it listens on loopback only. Workers run the jobs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The address to listen on, instead of api.listen; of loopback only, as long as there are no access keys. Without
    /// both it is 127.0.0.1:8080.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Serve the metrics of this process at /metrics of this address. Without it they are not served.
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
}

pub(crate) async fn run(args: Args, config: Config) -> Result<Exit> {
    config.require_store()?;
    let listen = args.listen.or(config.api.listen).unwrap_or(app::API_ADDRESS);
    if !listen.ip().is_loopback() {
        let store = app::open_store(&config)?;
        let has_keys = store.has_keys().await?;
        store.close().await;
        if !has_keys {
            return Err(exit::usage(
                "there are no access keys, so --listen must be an address of loopback, such as 127.0.0.1:8080; make a key with \
                 `errand keys create` to serve others",
            ));
        }
    }
    app::serve_api(&config, listen, args.metrics, Shutdown::on_signals()?.stop).await?;
    Ok(Exit::Success)
}
