//! Requests that a web page of somebody else makes a browser send.
//!
//! Such a page may send requests to loopback, and by a name of its own that it lets point there (DNS rebinding), and
//! browsers do not ask whether it should. They say who asks, though: in `Host`, `Origin` and `Sec-Fetch-Site`.

use axum::http::{HeaderName, header, request::Parts, uri::Authority};

use super::problem::{Kind, Problem};

/// What proxies add to requests.
const PROXIES: [&str; 4] = ["forwarded", "via", "x-forwarded-for", "x-forwarded-host"];

/// An error if a foreign page or a proxy may have made a request that shows no key. No page knows one.
pub(super) fn refuse_foreign_pages(request: &Parts) -> Result<(), Problem> {
    // It may serve others than who is on this machine.
    if PROXIES.iter().any(|name| request.headers.contains_key(*name)) {
        let why = "a proxy passes this on; make an access key with `errand keys create`, which others need";
        return Err(Problem::new(Kind::ForeignOrigin, why));
    }
    let text = |name: HeaderName| request.headers.get(name).and_then(|value| value.to_str().ok());
    let host = request.uri.authority().map(Authority::as_str).or_else(|| text(header::HOST));
    judge(host, text(header::ORIGIN), text(HeaderName::from_static("sec-fetch-site")))
        .map_err(|why| Problem::new(Kind::ForeignOrigin, why))
}

fn judge(host: Option<&str>, origin: Option<&str>, site: Option<&str>) -> Result<(), &'static str> {
    let Some(host) = host.filter(|host| is_loopback(host)) else {
        return Err("without a key, ask for this API by 127.0.0.1, [::1] or localhost");
    };
    let is_own = |origin: &str| {
        let of = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        of.is_some_and(|of| of.eq_ignore_ascii_case(host))
    };
    if origin.is_some_and(|origin| !is_own(origin)) || site.is_some_and(|site| site == "cross-site") {
        return Err(
            "web pages of other sites may not use this API without a key: name theirs in the setting `api.cors_origins`, and \
             make a key with `errand keys create`",
        );
    }
    Ok(())
}

/// Whether a host, perhaps with a port, is a name of loopback that nobody else can take.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_foreign_page_sends_is_refused_and_what_programs_send_is_not() {
        let own = [
            (Some("127.0.0.1:8080"), None, None),
            (Some("localhost"), None, Some("none")),
            (Some("[::1]:8080"), Some("http://[::1]:8080"), Some("same-origin")),
            (Some("LOCALHOST:8080"), Some("http://localhost:8080"), None),
        ];
        for (host, origin, site) in own {
            assert_eq!(judge(host, origin, site), Ok(()), "{host:?} {origin:?} {site:?}");
        }
        let foreign = [
            (None, None, None),
            (Some("rebound.example:8080"), None, None),
            (Some("localhost.example"), None, None),
            (Some("127.0.0.1.example"), None, None),
            (Some("192.0.2.1"), None, None),
            (Some("127.0.0.1:8080"), Some("https://page.example"), None),
            (Some("127.0.0.1:8080"), Some("null"), None),
            (Some("127.0.0.1:8080"), Some("http://127.0.0.1:8081"), None),
            (Some("127.0.0.1:8080"), None, Some("cross-site")),
        ];
        for (host, origin, site) in foreign {
            assert!(judge(host, origin, site).is_err(), "{host:?} {origin:?} {site:?}");
        }
    }
}
