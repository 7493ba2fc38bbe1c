//! The address of a server, as people write it.

use reqwest::Url;

use crate::config::mask_url;

/// The address below which the API is.
///
/// # Errors
/// It is none, in a sentence that says how one is written.
pub(super) fn base(server: &str) -> Result<Url, String> {
    let is_web = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    let Some(url) = server.parse().ok().filter(is_web) else {
        let without = format!("https://{server}").parse().ok().filter(is_web);
        return Err(match without.filter(|_| !server.contains("://")) {
            // What is before an `@` is a secret, perhaps.
            Some(url) if url.username().is_empty() && url.password().is_none() => format!(
                "{server} is no address, because it does not say how to reach it: write https://{server}, or http://{server} \
                 where it is served without TLS"
            ),
            // Without a scheme, nobody can tell where in it a password is.
            _ if server.contains('@') && !server.contains("://") => {
                "the server's is no address such as https://errand.example.com".to_owned()
            }
            _ => format!("{} is no address such as https://errand.example.com", mask_url(server)),
        });
    };
    let path = url.path().trim_end_matches('/');
    if path.rsplit('/').next() == Some("v1") {
        let mut above = url.clone();
        above.set_path(path.trim_end_matches("v1"));
        return Err(format!(
            "leave out the `/v1` at the end of the address: write {}",
            mask_url(above.as_str()).trim_end_matches('/')
        ));
    }
    Ok(url)
}

/// What is said besides where a server may be spoken to by the wrong scheme, as far as the error tells.
pub(super) fn other_scheme(scheme: &str, error: &str) -> &'static str {
    // An answer that is no record of TLS, and one that is no HTTP or the end of the connection instead of an answer.
    let [no_tls, no_http] = [
        &["InvalidContentType", "wrong version number"][..],
        &["invalid HTTP version", "connection closed before message completed", "Connection reset by peer"],
    ];
    let says = |words: &[&str]| words.iter().any(|words| error.contains(words));
    match scheme {
        "https" if says(no_tls) => "; what answers there speaks no TLS: use http://",
        "http" if says(no_http) => "; use https:// if it is served with TLS",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_none_is_told_with_one_that_is() {
        for (server, says) in [
            ("errand.example.com", "write https://errand.example.com, or http://errand.example.com where"),
            ("localhost:8080", "write https://localhost:8080, or http://localhost:8080 where"),
            ("127.0.0.1:8080", "or http://127.0.0.1:8080 where"),
            (
                "http://localhost:8080/v1",
                "leave out the `/v1` at the end of the address: write http://localhost:8080",
            ),
            ("https://example.com/errand/v1/", "write https://example.com/errand"),
            ("ftp://example.com", "is no address such as https://errand.example.com"),
            ("http://", "is no address such as https://errand.example.com"),
            ("", "is no address such as https://errand.example.com"),
        ] {
            let error = base(server).unwrap_err();
            assert!(error.contains(says), "{server}: {error}");
        }
        let secret = base("alice:hunter2@example.com").unwrap_err();
        assert!(!secret.contains("hunter2"), "{secret}");
        for good in ["http://localhost:8080", "https://example.com/errand/", "https://v1.example.com/v1x"] {
            assert_eq!(base(good).unwrap().as_str().trim_end_matches('/'), good.trim_end_matches('/'));
        }
    }
}
