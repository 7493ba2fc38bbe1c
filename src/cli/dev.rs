//! `errand dev`: everything in one process, with data that survives a restart.

use std::{
    fs::DirBuilder,
    net::{SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use errand_sandbox::{self as sandbox, Running, Sandbox, World};
use secrecy::ExposeSecret as _;

use super::{
    exit::{self, Exit},
    output,
};
use crate::{
    app::{self, App},
    callback::Network,
    config::Config,
    shutdown::Shutdown,
    store::Recording,
    tool::catalog::UnpinnedPolicy,
};

/// The key that the sandbox's default world accepts.
pub(super) const SANDBOX_KEY: &str = "ak_test_good";

/// What is logged where the settings do not say: also the end of every job.
pub(super) const LOG_LEVEL: &str = "info,errand::worker::record=debug,errand::worker::intake=debug";

/// A job that succeeds in the sandbox, as the arguments of `errand enqueue`.
const SANDBOX_JOB: &str = r#"GITHUB_GET_REPO --owner user:u-alice --args '{"owner":"o","repo":"r"}'"#;

/// A job that succeeds without a connected account.
const REAL_JOB: &str = r#"HACKERNEWS_GET_USER --owner user:u-alice --args '{"username":"pg"}'"#;

/// Runs worker, queue, store and the sandbox tool API in one process.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder for the data; it is created when missing
    #[arg(long, value_name = "DIR", default_value = "errand-dev")]
    data: PathBuf,
    /// Address for /metrics and /health; overrides http.listen
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Address of the HTTP API; overrides api.listen. Without both it is 127.0.0.1:8080
    #[arg(long, value_name = "ADDR")]
    api_listen: Option<SocketAddr>,
    /// Address of the sandbox tool API
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8090")]
    sandbox_listen: SocketAddr,
    /// Call the real tool API with COMPOSIO_API_KEY, and start no sandbox
    #[arg(long, conflicts_with = "sandbox_listen")]
    real: bool,
}

/// Runs until it is told to stop. `path_addition` is the folder of this program where a shell would not find it.
pub(crate) async fn run(args: Args, mut config: Config, path_addition: Option<PathBuf>) -> Result<Exit> {
    if args.real {
        config.require_api_key()?;
    }
    let data = create_folder(&args.data)?;
    let unused = unused(&config, args.real);
    let database = embed(&mut config, &data.join("errand.db"));
    config.http.listen = args.listen.or(config.http.listen);
    if let Some(address) = config.http.listen {
        // What is wrong with it is to be said before anything else is.
        TcpListener::bind(address).with_context(|| app::cannot_listen(address))?;
    }
    let api = args.api_listen.or(config.api.listen).unwrap_or(app::API_ADDRESS);
    config.api.listen = Some(api);
    TcpListener::bind(api).with_context(|| {
        format!("cannot listen on {api}; choose another address with --api-listen or api.listen")
    })?;
    let sandbox = if args.real { None } else { Some(serve_sandbox(&args, &mut config).await?) };
    let welcome = Welcome { data: &data, config: &config, database, unused, path_addition, real: args.real };
    // A closed standard output must not keep the worker from starting.
    let _closed = output::print(&welcome.text());

    let metrics = app::install_metrics()?;
    let report = App::new(config)?.run(metrics, Shutdown::on_signals()?).await?;
    if let Some(sandbox) = sandbox {
        sandbox.stop().await;
    }
    Ok(Exit::negative_if(!report.left.is_empty()))
}

/// Creates the folder, for this user alone, because it will hold customers' data.
fn create_folder(folder: &Path) -> Result<PathBuf> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    created.and_then(|()| folder.canonicalize()).map_err(|error| {
        let folder = folder.display();
        exit::usage(format!("cannot create the folder {folder}; choose another with --data: {error}"))
    })
}

/// Starts the sandbox, and points the configuration at it.
async fn serve_sandbox(args: &Args, config: &mut Config) -> Result<Running> {
    let address = args.sandbox_listen;
    let sandbox = Sandbox::new(World::default_world(), sandbox::Options::default());
    let running = sandbox.bind(address).await.with_context(|| {
        format!("cannot listen on {address}; choose another address with --sandbox-listen")
    })?;
    config.composio.base_url = running.base_url();
    config.composio.api_key = SANDBOX_KEY.into();
    Ok(running)
}

/// What is configured and does not count here.
fn unused(config: &Config, real: bool) -> Vec<&'static str> {
    let set = |secret: &secrecy::SecretString| !secret.expose_secret().is_empty();
    let settings = [
        (set(&config.store.url), "DATABASE_URL"),
        (set(&config.amqp.url), "AMQP_URL"),
        (set(&config.composio.api_key) && !real, "COMPOSIO_API_KEY"),
        (config.events.exchange, "events.exchange"),
    ];
    settings.into_iter().filter(|(unused, _)| *unused).map(|(_, name)| name).collect()
}

/// What is said before the first line of the log.
struct Welcome<'a> {
    data: &'a Path,
    config: &'a Config,
    database: String,
    unused: Vec<&'static str>,
    path_addition: Option<PathBuf>,
    real: bool,
}

impl Welcome<'_> {
    fn text(&self) -> String {
        let base_url = &self.config.composio.base_url;
        let tool_api = match self.real {
            true => base_url.clone(),
            false => format!("the sandbox at {base_url} (--real calls the real one)"),
        };
        let served = match self.config.http.listen {
            Some(address) => format!("http://{address}/metrics, health http://{address}/health/ready"),
            None => "off".to_owned(),
        };
        let api = match self.config.api.listen {
            Some(address) => {
                let scheme = if self.config.api.tls_certificate.is_some() { "https" } else { "http" };
                format!("{scheme}://{address}/v1/jobs, without keys until you make one")
            }
            None => "off".to_owned(),
        };
        let unused = match self.unused.as_slice() {
            [] => String::new(),
            names => format!("  not used  {}: what they name is not touched\n", names.join(", ")),
        };
        let job = if self.real { REAL_JOB } else { SANDBOX_JOB };
        format!(
            "errand dev\n  data      {}\n  tool API  {tool_api}\n  HTTP API  {api}\n  metrics   {served}\n{unused}\n\
             Enqueue a job from another terminal:\n{}  errand enqueue {job} --wait\n  errand jobs list\n\n\
             Each job is logged here when it ends. Ctrl-C ends this; the data stays.\n\n",
            self.data.display(),
            self.exports(),
        )
    }

    /// Lines for the other terminal. A real key is the user's own, and is not printed.
    fn exports(&self) -> String {
        let path = self
            .path_addition
            .as_ref()
            .map(|folder| format!("  export PATH={}:\"$PATH\"\n", quoted(&folder.display().to_string())));
        let sandbox = match self.real {
            true => String::new(),
            false => {
                format!(" COMPOSIO_BASE_URL={} COMPOSIO_API_KEY={SANDBOX_KEY}", self.config.composio.base_url)
            }
        };
        format!("{}  export DATABASE_URL={}{sandbox}\n", path.unwrap_or_default(), quoted(&self.database))
    }
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:._-+=@%,".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Switches to the embedded backends on this file and a journal beside it, with the defaults of development: newest
/// versions are bound, and the owner `default` is allowed. Returns the store's URL.
pub(super) fn embed(config: &mut Config, database: &Path) -> String {
    let url = format!("sqlite://{}", database.display());
    config.store.url = url.clone().into();
    config.store.migrate_at_start = true;
    config.amqp.url = String::new().into();
    config.worker.journal_dir = Some(database.with_file_name("journal"));
    config.pins.unpinned = UnpinnedPolicy::Freeze;
    config.owners.allow_default = true;
    config.events.record = Recording::All;
    config.events.exchange = false;
    config.callbacks.enabled = true;
    config.callbacks.allowed_networks.extend(Network::of_this_host());
    url
}
