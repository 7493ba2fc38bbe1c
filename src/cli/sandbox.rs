//! `errand sandbox`: a stand-in for the tool API, to develop and test against.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::{exit, output};
use errand_sandbox::{DEFAULT_WORLD, Options, Sandbox, World};

/// Serves a stand-in for the tool API, with faults on demand and a ledger of effects.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The address to serve on; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:8090", value_name = "ADDR")]
    listen: SocketAddr,

    /// A world file; the built-in world without it.
    #[arg(long, value_name = "FILE")]
    world: Option<PathBuf>,

    /// What faults are decided by; the same seed decides the same for the same jobs.
    #[arg(long, default_value_t = Options::DEFAULT_SEED, value_name = "N")]
    seed: u64,

    /// Keep no arguments, results and error texts in the execution logs, whatever the world says.
    #[arg(long)]
    zero_data_retention: bool,

    /// Print the built-in world, to start a world file from, and exit.
    #[arg(long)]
    print_world: bool,
}

/// Serves until `stop`. A world file and an address that cannot be used are errors.
pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    if args.print_world {
        return Ok(output::print(DEFAULT_WORLD)?);
    }
    let mut world = args.world.as_deref().map_or_else(|| Ok(World::default_world()), read_world)?;
    if args.zero_data_retention {
        world.retain_no_data();
    }
    let key = world.usable_key().unwrap_or("(none of the world's keys may execute)").to_owned();
    let sandbox = Sandbox::new(world, Options { seed: args.seed });
    let running = sandbox
        .bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}; choose another address with --listen", args.listen))?;
    let base = running.base_url();
    output::print_line(format_args!(
        "sandbox: base URL {base}, API key {key}, ledger {base}/_sandbox/ledger (stop with Ctrl-C)"
    ))?;
    stop.cancelled().await;
    running.stop().await;
    Ok(())
}

fn read_world(path: &Path) -> anyhow::Result<World> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        exit::usage(format!(
            "cannot read the world file {shown} ({error}); `errand sandbox --print-world > {shown}` makes one"
        ))
    })?;
    World::from_toml(&text).map_err(|error| {
        exit::usage(format!(
            "cannot use {shown}; `errand sandbox --print-world` shows a valid world: {error}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run_on(
        listen: SocketAddr,
        world: Option<PathBuf>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        run(Args { listen, world, seed: 1, zero_data_retention: false, print_world: false }, stop).await
    }

    fn any_port() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_told_with_what_to_do() {
        let taken = std::net::TcpListener::bind(any_port()).unwrap();
        let missing = Some(PathBuf::from("/nowhere/world.toml"));
        for (listen, world, told) in [
            (taken.local_addr().unwrap(), None, ["cannot listen on", "--listen"]),
            (any_port(), missing, ["/nowhere/world.toml", "--print-world"]),
        ] {
            let error = run_on(listen, world, CancellationToken::new()).await.unwrap_err().to_string();
            assert!(told.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[tokio::test]
    async fn it_serves_until_it_is_told_to_stop() {
        let stop = CancellationToken::new();
        stop.cancel();
        run_on(any_port(), None, stop).await.unwrap();
    }
}
