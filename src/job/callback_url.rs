//! The URL of a receiver.

use std::{fmt, str::FromStr};

use url::{Host, Url};

/// The longest URL, in bytes, as it is given and as it is sent.
pub const MAX_URL_BYTES: usize = 1_024;

/// A URL to which callbacks can be sent: `http` or `https`, with a host, without a user, a password or a fragment. Whether they
/// may be sent there is said by the address, when it is connected to.
///
/// Its path and its query may be secrets. They are in `Display` and [`as_str`](Self::as_str), but not in `Debug`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CallbackUrl(Url);

impl CallbackUrl {
    /// The whole URL as it is sent, in the spelling of the URL standard.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whose it is, for people and logs: `https://host:port`, in lower case, always with the port.
    pub fn origin(&self) -> String {
        let port = self.0.port_or_known_default().unwrap_or_default();
        format!("{}://{}:{port}", self.0.scheme(), self.0.host_str().unwrap_or_default())
    }

    /// Whether what is sent there is encrypted.
    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    pub(crate) fn url(&self) -> &Url {
        &self.0
    }
}

impl FromStr for CallbackUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        if text.len() > MAX_URL_BYTES {
            return Err(BadUrl::TooLong);
        }
        // The standard would leave some of these out.
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(BadUrl::Space);
        }
        let url = Url::parse(text).map_err(BadUrl::Syntax)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(BadUrl::Scheme);
        }
        match url.host() {
            None => return Err(BadUrl::Host),
            // The standard permits more than a request can be sent to.
            Some(Host::Domain(name)) if !name.bytes().all(is_of_name) => return Err(BadUrl::Host),
            Some(Host::Domain(_) | Host::Ipv4(_) | Host::Ipv6(_)) => {}
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BadUrl::User);
        }
        if url.fragment().is_some() {
            return Err(BadUrl::Fragment);
        }
        if url.port() == Some(0) {
            return Err(BadUrl::Port);
        }
        if url.as_str().len() > MAX_URL_BYTES {
            return Err(BadUrl::TooLong);
        }
        Ok(Self(url))
    }
}

/// Whether a byte may be in the name of a host, other letters of which are written in these.
fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_')
}

impl fmt::Display for CallbackUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl fmt::Debug for CallbackUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallbackUrl({}/…)", self.origin())
    }
}

/// Why a text is no URL for callbacks, to be continued from the name of the field: "`url` is longer than …". It never quotes the
/// text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    #[error("is longer than {MAX_URL_BYTES} bytes")]
    TooLong,
    #[error("contains a space or a control character")]
    Space,
    #[error("is no URL: {0}")]
    Syntax(url::ParseError),
    #[error("is neither http nor https")]
    Scheme,
    #[error("has no host, or one that is no name of a host")]
    Host,
    #[error("contains a user name or a password")]
    User,
    #[error("contains a fragment, which is not sent")]
    Fragment,
    #[error("has the port 0, on which nobody listens")]
    Port,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::{Body, Method, Request};

    use super::*;

    #[test]
    fn urls_are_spelled_in_one_way_and_named_by_their_origin() {
        for (text, whole, origin) in [
            ("https://Example.com", "https://example.com/", "https://example.com:443"),
            ("HTTP://example.com:80/A?b=C", "http://example.com/A?b=C", "http://example.com:80"),
            ("https://example.com:8443/", "https://example.com:8443/", "https://example.com:8443"),
            ("https://a_b.example./x", "https://a_b.example./x", "https://a_b.example.:443"),
            (
                "https://bücher.example/ü",
                "https://xn--bcher-kva.example/%C3%BC",
                "https://xn--bcher-kva.example:443",
            ),
            ("http://0x7f.1/", "http://127.0.0.1/", "http://127.0.0.1:80"),
            ("http://2130706433/", "http://127.0.0.1/", "http://127.0.0.1:80"),
            ("http://127.0.0.1./", "http://127.0.0.1/", "http://127.0.0.1:80"),
            ("https://[::FFFF:10.0.0.1]/", "https://[::ffff:a00:1]/", "https://[::ffff:a00:1]:443"),
        ] {
            let url: CallbackUrl = text.parse().unwrap();
            assert_eq!((url.as_str(), url.origin().as_str()), (whole, origin), "{text}");
            assert_eq!(url.to_string(), whole);
            assert_eq!(format!("{url:?}"), format!("CallbackUrl({origin}/…)"));
        }
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_it() {
        let long = |length: usize| format!("https://example.com/{:a<1$}", "", length - 20);
        assert!(long(MAX_URL_BYTES).parse::<CallbackUrl>().is_ok());
        // Each of these letters is sent as nine characters.
        let grows = format!("https://example.com/{}", "€".repeat(200));
        for (text, why) in [
            (&*long(MAX_URL_BYTES + 1), "is longer than 1024 bytes"),
            (&grows, "is longer than 1024 bytes"),
            ("", "is no URL: relative URL without a base"),
            ("/secret", "is no URL: relative URL without a base"),
            ("https://", "is no URL: empty host"),
            ("https://:80/", "is no URL: empty host"),
            ("https://example.com:65536/secret", "is no URL: invalid port number"),
            ("https://1.2.3.256/secret", "is no URL: invalid IPv4 address"),
            ("ftp://example.com/secret", "is neither http nor https"),
            ("mailto:secret@example.com", "is neither http nor https"),
            ("file:///etc/secret", "is neither http nor https"),
            ("https://secret@example.com/", "contains a user name or a password"),
            ("https://:secret@example.com/", "contains a user name or a password"),
            ("https://example.com/#secret", "contains a fragment, which is not sent"),
            ("https://example.com/#", "contains a fragment, which is not sent"),
            ("https://example.com:0/secret", "has the port 0, on which nobody listens"),
            (" https://example.com/", "contains a space or a control character"),
            ("https://exam\tple.com/", "contains a space or a control character"),
            ("https://example.com/a\u{a0}b", "contains a space or a control character"),
            ("https://{secret}/", "has no host, or one that is no name of a host"),
            ("https://a*b/", "has no host, or one that is no name of a host"),
        ] {
            assert_eq!(text.parse::<CallbackUrl>().unwrap_err().to_string(), why, "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_can_be_sent_to_and_read_again(
            text in "https?://[!-~é]{1,12}(:[0-9]{1,6})?(/[ -~€]{0,30})?(\\?[!-~€]{0,30})?",
        ) {
            let Ok(url) = text.parse::<CallbackUrl>() else { return Ok(()) };
            prop_assert_eq!(url.as_str().parse::<CallbackUrl>(), Ok(url.clone()));
            prop_assert!(url.as_str().len() <= MAX_URL_BYTES);
            prop_assert_eq!(url.origin().to_lowercase(), url.origin());
            prop_assert_eq!(url.as_str().starts_with("https://"), url.is_https());
            let request = Request::new(Method::POST, url.url().clone());
            prop_assert!(hyper::Request::<Body>::try_from(request).is_ok(), "{}", url);
        }
    }
}
