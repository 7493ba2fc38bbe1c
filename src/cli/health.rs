//! `errand health`: the exit status of a health endpoint, for container images without another HTTP
//! client.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{exit, exit::Exit, output, setup::Setup};
use crate::{config::mask_url, http_client::client_builder};

/// Asks a health endpoint; the exit status is 0 when it answers 200.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The endpoint, /health/ready where it has no path; without it, that of the setting http.listen
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

pub(crate) async fn run(args: Args, setup: &Setup) -> Result<Exit> {
    let url = match args.url {
        Some(url) => endpoint(url),
        None => readiness(setup.config().http.listen).map_err(exit::usage)?,
    };
    let https = reqwest::Url::parse(&url).is_ok_and(|url| url.scheme() == "https");
    let client = client_builder(https).no_proxy().timeout(Duration::from_secs(3)).build()?;
    let answer = client.get(&url).send().await.map_err(reqwest::Error::without_url).with_context(|| {
        format!("{} does not answer; start a worker, or name its address with --url", mask_url(&url))
    })?;
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    match text.trim() {
        "" => output::print_line(format_args!("HTTP {status}, without a word"))?,
        text => output::print_line(text)?,
    }
    Ok(Exit::negative_if(!status.is_success()))
}

/// The endpoint that a URL means: an address alone is that of a worker.
fn endpoint(url: String) -> String {
    match reqwest::Url::parse(&url) {
        Ok(parsed) if parsed.path() == "/" => parsed.join("/health/ready").map_or(url, String::from),
        _ => url,
    }
}

/// The endpoint of a worker on this host that listens there; the error is a sentence.
fn readiness(listen: Option<SocketAddr>) -> Result<String, &'static str> {
    let mut address = listen.ok_or("`http.listen` is empty, so that a worker has no health endpoint")?;
    if address.port() == 0 {
        return Err("`http.listen` leaves the port to the system; name the worker's address with --url");
    }
    // Who listens on all addresses is asked on one.
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    Ok(format!("http://{address}/health/ready"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_alone_is_that_of_a_worker() {
        let asked = |url: &str| endpoint(url.to_owned());
        assert_eq!(asked("http://127.0.0.1:9465"), "http://127.0.0.1:9465/health/ready");
        assert_eq!(asked("http://127.0.0.1:9465/"), "http://127.0.0.1:9465/health/ready");
        for whole in ["http://127.0.0.1:9465/health/live", "http://[::1]:8090/_sandbox/health", "no URL"] {
            assert_eq!(asked(whole), whole);
        }
    }

    #[test]
    fn a_worker_is_asked_where_it_listens() {
        let asked = |listen: &str| readiness(Some(listen.parse().unwrap()));
        assert_eq!(asked("127.0.0.1:9465").as_deref(), Ok("http://127.0.0.1:9465/health/ready"));
        assert_eq!(asked("0.0.0.0:9464").as_deref(), Ok("http://127.0.0.1:9464/health/ready"));
        assert_eq!(asked("[::]:9464").as_deref(), Ok("http://[::1]:9464/health/ready"));
        assert!(asked("127.0.0.1:0").unwrap_err().contains("--url"));
        assert!(readiness(None).unwrap_err().contains("`http.listen`"));
    }
}
