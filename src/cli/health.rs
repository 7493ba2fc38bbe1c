//! `errand health`: the exit status of a health endpoint, for container images without another HTTP
//! client.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{exit::Exit, output};

/// Asks a health endpoint; the exit status is 0 when it answers 200.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The endpoint
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9464/health/ready")]
    url: String,
}

pub(crate) async fn run(args: Args) -> Result<Exit> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(3)).build()?;
    let answer =
        client.get(&args.url).send().await.map_err(reqwest::Error::without_url).with_context(|| {
            format!("{} does not answer; start a worker, or name its address with --url", args.url)
        })?;
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    output::print_line(text.trim())?;
    Ok(Exit::negative_if(!status.is_success()))
}
