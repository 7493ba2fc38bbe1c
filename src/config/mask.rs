//! URLs without what must not be shown of them.

use url::{Url, form_urlencoded};

/// Stands for what is not shown.
pub(super) const MASK: &str = "***";

/// Parameters of URLs whose values are shown. All others may be a part of a password that was not percent-encoded.
const SHOWN_PARAMETERS: &[&str] = &[
    "application_name",
    "auth_mechanism",
    "channel_max",
    "connection_timeout",
    "dbname",
    "frame_max",
    "heartbeat",
    "host",
    "hostaddr",
    "port",
    "ssl-mode",
    "sslmode",
    "sslrootcert",
    "user",
];

/// A URL without its password, its fragment and the parameters that could be a part of either. Nothing of it is shown
/// where a password may have misled the parser.
pub fn mask_url(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return MASK.to_owned() };
    if hides_password(text) || (url.password().is_some() && url.set_password(Some(MASK)).is_err()) {
        return MASK.to_owned();
    }
    url.set_fragment(None);
    if url.query().is_some() {
        let pairs: Vec<_> = url.query_pairs().into_owned().collect();
        let is_shown = |(name, _): &&(String, String)| SHOWN_PARAMETERS.contains(&&**name);
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(pairs.iter().filter(is_shown));
        if pairs.iter().any(|pair| !is_shown(&pair)) {
            query.append_key_only(MASK);
        }
        url.set_query(Some(&query.finish()));
    }
    url.into()
}

/// Where the service of a URL is: its host and port, or its file. Nothing where a password may have misled the parser.
pub fn place(text: &str) -> Option<String> {
    if let Some(file) = text.strip_prefix("sqlite://") {
        return Some(file.to_owned());
    }
    let url = Url::parse(text).ok().filter(|_| !hides_password(text))?;
    let named = url.query_pairs().find(|(name, _)| name == "host").map(|(_, host)| host.into_owned());
    let host = named.or_else(|| url.host_str().map(str::to_owned))?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    Some(format!("{host}{port}"))
}

/// Whether an `@` stands where no parser takes it for the end of a password: behind a `/`, `?` or `#` that is one of its
/// characters and was not percent-encoded. What the parser then calls host, port or path are parts of the password.
pub(super) fn hides_password(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let ends: &[char] = if scheme.starts_with("http") { &['/', '?', '#', '\\'] } else { &['/', '?', '#'] };
    rest.find(ends).is_some_and(|end| rest[end..].contains('@')) && scheme != "sqlite"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_without_user_and_password() {
        let named = |url: &str| place(url).unwrap_or_default();
        assert_eq!(named("postgres://a:hunter2@db.example:6432/errand?sslmode=require"), "db.example:6432");
        assert_eq!(named("postgres://a:hunter2@localhost/errand?host=/run/postgresql"), "/run/postgresql");
        assert_eq!(named("sqlite:///home/a@b/errand.db"), "/home/a@b/errand.db");
        for misleading in ["postgres://a:1/hunter2@h/d", "not a url", "postgres://a:h@1?hunter2@h/d"] {
            assert_eq!(place(misleading), None, "{misleading}");
        }
    }

    #[test]
    fn urls_lose_their_passwords_and_nothing_else() {
        let url = "postgres://a:hunter2@h:5432/d?sslmode=require&x=1";
        assert_eq!(mask_url(url), "postgres://a:***@h:5432/d?sslmode=require&***");
        assert_eq!(mask_url(&mask_url(url)), mask_url(url));
        assert_eq!(mask_url("amqps://a:hunter2@h/%2f"), "amqps://a:***@h/%2f");
        assert_eq!(mask_url("sqlite:///var/lib/errand.db"), "sqlite:///var/lib/errand.db");
        assert!(!mask_url("postgres://h/d?user=a&password=hunter2").contains("hunter2"));
        assert_eq!(mask_url("not a url with hunter2"), "***");
        // Not percent-encoded: the parser takes parts of the password for other things.
        for password in ["hun@ter2/x", "1/hunter2", "1#hunter2", "1?hunter2", "h@1?hunter2"] {
            assert_eq!(mask_url(&format!("postgres://a:{password}@h/d")), "***", "{password}");
        }
        assert_eq!(mask_url("amqp://h/d?password=a&hunter2=b"), "amqp://h/d?***");
        assert_eq!(mask_url("amqp://h/d?password=a#hunter2"), "amqp://h/d?***");
        assert_eq!(mask_url(r"http://a:1\hunter2@h/"), "***");
        assert_eq!(mask_url("sqlite:///home/a@b/errand.db"), "sqlite:///home/a@b/errand.db");
    }
}
