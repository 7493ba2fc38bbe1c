//! `errand worker`: RabbitMQ and PostgreSQL.

use std::{net::SocketAddr, process::ExitCode};

use anyhow::Result;

use crate::{
    app::{self, App},
    config::Config,
    shutdown::Shutdown,
    telemetry::logging,
};

/// Runs a worker until SIGTERM or Ctrl-C, then drains. A second signal ends it at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address for /metrics and /health; overrides http.listen
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

pub(crate) async fn run(args: Args, mut config: Config) -> Result<ExitCode> {
    if let Some(listen) = args.listen {
        config.http.listen = Some(listen);
    }
    logging::init(&config.log)?;
    let metrics = app::install_metrics()?;
    let report = App::new(config)?.run(metrics, Shutdown::on_signals()?).await?;
    Ok(if report.left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
