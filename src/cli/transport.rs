//! Ways to a service on which passwords, keys and customers' data can be read or changed.

use std::net::IpAddr;

use secrecy::ExposeSecret as _;
use url::{Host, Url};

use crate::config::Config;

/// A service that is reached without protection, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unprotected {
    pub(super) what: &'static str,
    pub(super) message: &'static str,
    pub(super) advice: &'static str,
}

/// The services that are reached without TLS, or without a look at the certificate, and not on this host.
pub(super) fn unprotected(config: &Config) -> Vec<Unprotected> {
    let urls = [
        database(config.store.url.expose_secret()),
        broker(config.amqp.url.expose_secret()),
        tool_api(&config.composio.base_url),
        management(config.amqp.management_url.expose_secret()),
    ];
    urls.into_iter().flatten().collect()
}

fn database(url: &str) -> Option<Unprotected> {
    let url = Url::parse(url).ok()?;
    let parameter = |names: &[&str]| {
        let pairs = url.query_pairs().filter(|(name, _)| names.contains(&&**name));
        pairs.last().map(|(_, value)| value.into_owned())
    };
    let verified =
        matches!(parameter(&["sslmode", "ssl-mode"]).as_deref(), Some("verify-full" | "verify-ca"));
    let here = match parameter(&["host", "hostaddr"]) {
        // A path is that of a socket.
        Some(host) => host.starts_with('/') || is_here(&host),
        None => stays_here(&url),
    };
    let is_postgres = matches!(url.scheme(), "postgres" | "postgresql");
    (is_postgres && !verified && !here).then_some(Unprotected {
        what: "database",
        message: "it is on another host, and nobody looks at its certificate",
        advice: "add `sslmode=verify-full` to DATABASE_URL",
    })
}

fn broker(url: &str) -> Option<Unprotected> {
    let url = Url::parse(url).ok()?;
    (url.scheme() == "amqp" && !stays_here(&url)).then_some(Unprotected {
        what: "broker",
        message: "it is on another host and reached without TLS",
        advice: "use amqps:// in AMQP_URL",
    })
}

fn management(url: &str) -> Option<Unprotected> {
    let url = Url::parse(url).ok()?;
    (url.scheme() == "http" && !stays_here(&url)).then_some(Unprotected {
        what: "broker",
        message: "its management API is on another host and reached without TLS",
        advice: "use https:// in amqp.management_url",
    })
}

fn tool_api(url: &str) -> Option<Unprotected> {
    let url = Url::parse(url).ok()?;
    (url.scheme() == "http" && !stays_here(&url)).then_some(Unprotected {
        what: "tool API",
        message: "it is on another host, and the key is sent to it without TLS",
        advice: "use https:// in COMPOSIO_BASE_URL",
    })
}

/// Whether what is sent to this URL does not leave the host.
pub(super) fn stays_here(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => is_here(name),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => true,
    }
}

fn is_here(name: &str) -> bool {
    // The name of a socket's folder is percent-encoded in a URL.
    let is_socket = name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("%2f"));
    let is_local =
        name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost");
    is_socket || is_local || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leaves_the_host_without_a_checked_certificate_is_unprotected() {
        for (url, unprotected) in [
            ("postgres://u@db/errand", true),
            ("postgres://u@10.0.0.7/errand?sslmode=require", true),
            ("postgresql://u@[2001:db8::1]/errand", true),
            ("postgres://u@db/errand?sslmode=disable", true),
            ("postgres://u@localhost/errand?host=db", true),
            ("postgres://u@db/errand?sslmode=verify-full", false),
            ("postgres://u@db/errand?sslmode=verify-ca&sslrootcert=/ca.pem", false),
            ("postgres://u@localhost:5433/errand", false),
            ("postgres://u@127.0.0.2/errand", false),
            ("postgres://u@[::1]/errand", false),
            ("postgres://u@%2Fvar%2Frun%2Fpostgresql/errand", false),
            ("postgres://u@localhost/errand?host=/var/run/postgresql", false),
            ("sqlite:///var/lib/errand.db", false),
            ("", false),
        ] {
            assert_eq!(database(url).is_some(), unprotected, "{url}");
        }
        for (url, unprotected) in
            [("amqp://u@mq/", true), ("amqps://u@mq/", false), ("amqp://u@127.0.0.1/", false), ("", false)]
        {
            assert_eq!(broker(url).is_some(), unprotected, "{url}");
        }
        for (url, unprotected) in [
            ("http://api.example.com", true),
            ("https://api.example.com", false),
            ("http://127.0.0.1:9000", false),
            ("http://[::1]:9000", false),
            ("http://localhost:9000", false),
        ] {
            assert_eq!(tool_api(url).is_some(), unprotected, "{url}");
        }
    }
}
