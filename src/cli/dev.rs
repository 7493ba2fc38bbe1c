//! `errand dev`: everything in one process, with data that survives a restart.

use std::{fs::DirBuilder, net::SocketAddr, os::unix::fs::DirBuilderExt as _, path::PathBuf};

use anyhow::{Context as _, Result};
use errand_sandbox::{self as sandbox, Sandbox, World};
use secrecy::ExposeSecret as _;

use super::{exit::Exit, output};
use crate::{
    app::{self, App},
    config::Config,
    shutdown::Shutdown,
    tool::catalog::UnpinnedPolicy,
};

/// The key that the sandbox's default world accepts.
pub(super) const SANDBOX_KEY: &str = "ak_test_good";

/// Runs worker, queue, store and (without COMPOSIO_API_KEY) the sandbox tool API in one process.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder for the data; it is created when missing
    #[arg(long, value_name = "DIR", default_value = "errand-dev")]
    data: PathBuf,
    /// Address for /metrics and /health; overrides http.listen
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Address of the sandbox tool API
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8090")]
    sandbox_listen: SocketAddr,
}

pub(crate) async fn run(args: Args, mut config: Config) -> Result<Exit> {
    // It will hold customers' data.
    let private = DirBuilder::new().recursive(true).mode(0o700).create(&args.data);
    private.with_context(|| {
        format!("cannot create the folder {}; choose another with --data", args.data.display())
    })?;
    let data = args.data.canonicalize().context("cannot resolve the data folder")?;
    let database = embed(&mut config, &data.join("errand.db"));
    config.http.listen = args.listen.or(config.http.listen);

    let sandbox = if config.composio.api_key.expose_secret().is_empty() {
        let running = Sandbox::new(World::default_world(), sandbox::Options::default())
            .bind(args.sandbox_listen)
            .await
            .with_context(|| {
                format!(
                    "cannot listen on {}; choose another address with --sandbox-listen",
                    args.sandbox_listen
                )
            })?;
        config.composio.base_url = running.base_url();
        config.composio.api_key = SANDBOX_KEY.into();
        Some(running)
    } else {
        None
    };

    let tool_api = match &sandbox {
        Some(sandbox) => {
            format!("the sandbox at {} (set COMPOSIO_API_KEY for the real one)", sandbox.base_url())
        }
        None => config.composio.base_url.clone(),
    };
    let listen = config.http.listen.map_or("off".to_owned(), |address| format!("http://{address}"));
    // A closed standard output must not keep the worker from starting.
    let _closed = output::print(&format!(
        "errand dev\n  data      {}\n  tool API  {tool_api}\n  metrics   {listen}/metrics, health {listen}/health/ready\n\n\
         Enqueue a job from another terminal:\n  export DATABASE_URL={database} COMPOSIO_BASE_URL={} COMPOSIO_API_KEY={}\n  \
         errand enqueue GITHUB_GET_REPO --user-id u-alice --args '{{\"owner\":\"o\",\"repo\":\"r\"}}' --wait\n  \
         errand jobs list\n\nCtrl-C ends it; the data stays.\n\n",
        data.display(),
        config.composio.base_url,
        if sandbox.is_some() { SANDBOX_KEY } else { "..." },
    ));

    let metrics = app::install_metrics()?;
    let report = App::new(config)?.run(metrics, Shutdown::on_signals()?).await?;
    if let Some(sandbox) = sandbox {
        sandbox.stop().await;
    }
    Ok(Exit::negative_if(!report.left.is_empty()))
}

/// Switches to the embedded backends on this file and a journal beside it, with the defaults of development: newest
/// versions are bound, and the owner `default` is allowed. Returns the store's URL.
pub(super) fn embed(config: &mut Config, database: &std::path::Path) -> String {
    let url = format!("sqlite://{}", database.display());
    config.store.url = url.clone().into();
    config.store.migrate_at_start = true;
    config.amqp.url = String::new().into();
    config.worker.journal_dir = Some(database.with_file_name("journal"));
    config.pins.unpinned = UnpinnedPolicy::Freeze;
    config.owners.allow_default = true;
    url
}
