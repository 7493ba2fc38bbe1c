//! `errand worker`: RabbitMQ and PostgreSQL.

use std::net::SocketAddr;

use anyhow::Result;

use super::exit::Exit;

use crate::{
    app::{self, App},
    config::Config,
    shutdown::Shutdown,
};

/// Runs a worker until SIGTERM or Ctrl-C, then drains. A second signal ends it at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address for /metrics and /health; overrides http.listen
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

pub(crate) async fn run(args: Args, mut config: Config) -> Result<Exit> {
    if let Some(listen) = args.listen {
        config.http.listen = Some(listen);
    }
    config.require_amqp()?;
    config.require_store()?;
    config.require_api_key()?;
    let metrics = app::install_metrics()?;
    let report = App::new(config)?.run(metrics, Shutdown::on_signals()?).await?;
    Ok(Exit::negative_if(!report.left.is_empty()))
}
