//! `errand worker`: RabbitMQ and PostgreSQL.

use std::net::SocketAddr;

use anyhow::Result;

use super::exit::Exit;

use crate::{
    app::{self, App},
    config::Config,
    shutdown::Shutdown,
};

/// Runs a worker until SIGTERM, SIGHUP or Ctrl-C, then drains.
///
/// The whole shutdown takes worker.drain_secs at most. Results that the database does not take by then go
/// to a file in worker.journal_dir, which the next worker with this folder writes. A second signal
/// that comes more than a second after the first ends it within about a second, in the same way, as
/// SIGQUIT does. Exits with 1 if jobs were left behind; they are listed by ID.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address for /metrics and /health; overrides http.listen
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

pub(crate) async fn run(args: Args, mut config: Config) -> Result<Exit> {
    config.http.listen = args.listen.or(config.http.listen);
    config.require_worker()?;
    let metrics = app::install_metrics()?;
    let report = App::new(config)?.run(metrics, Shutdown::on_signals()?).await?;
    Ok(Exit::negative_if(!report.left.is_empty()))
}
