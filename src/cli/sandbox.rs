//! `errand sandbox`: a stand-in for the tool API, to develop and test against.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use crate::sandbox::{DEFAULT_WORLD, Options, Sandbox, World};
use tokio_util::sync::CancellationToken;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The address to serve on; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:8090", value_name = "ADDR")]
    listen: SocketAddr,

    /// A world file; the built-in world without it.
    #[arg(long, value_name = "FILE")]
    world: Option<PathBuf>,

    /// What faults and IDs are derived from.
    #[arg(long, default_value_t = Options::DEFAULT_SEED, value_name = "N")]
    seed: u64,

    /// Print the built-in world, to start a world file from, and exit.
    #[arg(long)]
    print_world: bool,
}

pub(crate) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    if args.print_world {
        print!("{DEFAULT_WORLD}");
        return Ok(());
    }
    let world = match &args.world {
        None => World::default_world(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the world file {}", path.display()))?;
            World::from_toml(&text).with_context(|| {
                format!("cannot use {}; `errand sandbox --print-world` shows a valid file", path.display())
            })?
        }
    };
    let key = world.usable_key().unwrap_or("(the world has no key that may execute)").to_owned();
    let sandbox = Sandbox::new(world, Options { seed: args.seed });
    let running = sandbox.bind(args.listen).await.with_context(|| {
        format!("cannot listen on {}; stop what uses that port, or choose another with --listen", args.listen)
    })?;
    let base = running.base_url();
    println!("sandbox listens on {}: base URL {base}, key {key}, ledger {base}/_sandbox/ledger", running.addr);
    stop.cancelled().await;
    running.stop().await;
    Ok(())
}
