//! What a value may be: its type and its bounds, and how a person is told.

use std::net::SocketAddr;

use toml::Value;
use tracing_subscriber::filter::Targets;
use url::Url;

use super::mask::hides_password;
use crate::{
    api::ANY_ORIGIN,
    bounds::MAX_SHORT_TEXT_BYTES,
    callback::Network,
    job::{OwnerPattern, QueueName, RESERVED_PREFIX},
    store::postgres::{NoRoleName, NoSchemaName, RoleName, SchemaName},
    tool::pin::{Wanted, wanted},
};

/// What is said about the URL of a service that cannot be read, or not as it was meant.
const ENCODE_PASSWORD: &str = ", but cannot be read; percent-encode special characters in the password \
    (`@` as %40, `/` as %2F, `#` as %23, `?` as %3F, `:` as %3A, `%` as %25)";

/// The type and the bounds of a setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rule {
    Flag,
    /// A whole number within bounds, both included.
    Whole(i64, i64),
    /// A number within bounds, both included.
    Number(f64, f64),
    /// A short printable text, or empty.
    Text,
    Word(&'static [&'static str]),
    /// The URL of a service with one of these schemes, or empty. May hold a password.
    Service(&'static [&'static str]),
    /// The name of a schema of PostgreSQL.
    Schema,
    /// The name of a role of PostgreSQL, or empty.
    Role,
    /// A key of the tool API, or empty. A secret.
    ApiKey,
    /// The http(s) URL of the tool API.
    BaseUrl,
    Path,
    Lanes,
    /// Beginnings of names of reply queues.
    Prefixes,
    /// Origins of web pages, or `*`.
    Origins,
    /// Owners, or the beginnings of their names.
    OwnerPatterns,
    /// Networks by their first address and the length of their prefix, or single addresses.
    Networks,
    /// A literal toolkit version, or blank, by the rule that jobs are read by.
    Version,
    /// Address and port, or empty.
    Address,
    Filter,
}

impl Rule {
    /// Whether the value must not be shown as it is.
    pub(super) fn is_secret(self) -> bool {
        matches!(self, Self::Service(_) | Self::ApiKey)
    }

    /// Reads a value of the environment, which knows only text.
    pub(super) fn parse(self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        let number = text.replace('_', "");
        let value = match self {
            Self::Flag => text.to_ascii_lowercase().parse().ok().map(Value::Boolean),
            Self::Whole(..) => number.parse().ok().map(Value::Integer),
            Self::Number(..) => number.parse().ok().map(Value::Float),
            Self::Lanes | Self::Prefixes | Self::Origins | Self::OwnerPatterns | Self::Networks => {
                let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
                Some(names.map(Value::from).collect::<Vec<_>>().into())
            }
            Self::Text
            | Self::Word(_)
            | Self::Service(_)
            | Self::Schema
            | Self::Role
            | Self::ApiKey
            | Self::BaseUrl
            | Self::Path
            | Self::Version
            | Self::Address
            | Self::Filter => Some(text.into()),
        };
        let value = value.ok_or_else(|| format!("must be {}", self.expected()))?;
        self.accept(value)
    }

    /// Checks a value, and returns it as the configuration reads it. The message continues the name of the setting. It
    /// quotes numbers but never text, which could be a secret that was put in the wrong place.
    pub(super) fn accept(self, value: Value) -> Result<Value, String> {
        let expected = self.expected();
        match (self, value) {
            (Self::Whole(min, max), Value::Integer(number)) if !(min..=max).contains(&number) => {
                Err(format!("must be {expected}, but is {number}"))
            }
            (Self::Number(min, max), Value::Float(number)) if !(min..=max).contains(&number) => {
                Err(format!("must be {expected}, but is {number}"))
            }
            #[expect(clippy::cast_precision_loss, reason = "the bounds are far below 2^53")]
            (Self::Number(..), Value::Integer(number)) => self.accept(Value::Float(number as f64)),
            (Self::Flag, value @ Value::Boolean(_))
            | (Self::Whole(..), value @ Value::Integer(_))
            | (Self::Number(..), value @ Value::Float(_)) => Ok(value),
            (
                Self::Lanes | Self::Prefixes | Self::Origins | Self::OwnerPatterns | Self::Networks,
                Value::Array(items),
            ) => {
                if items.iter().all(|item| item.as_str().is_some_and(|item| self.takes_item(item))) {
                    Ok(Value::Array(items))
                } else {
                    Err(format!("must be {expected}"))
                }
            }
            (
                Self::Flag
                | Self::Whole(..)
                | Self::Number(..)
                | Self::Lanes
                | Self::Prefixes
                | Self::OwnerPatterns
                | Self::Networks,
                other,
            ) => Err(format!("must be {expected}, but is {}", type_name(&other))),
            (_, Value::String(text)) => match self.unfit_text(&text) {
                None if self == Self::Version => Ok(Value::String(text.trim().to_owned())),
                None => Ok(Value::String(text)),
                Some(hint) => Err(format!("must be {expected}{hint}")),
            },
            (_, other) => Err(format!("must be {expected}, but is {}", type_name(&other))),
        }
    }

    /// Whether a text may be in a list.
    fn takes_item(self, item: &str) -> bool {
        match self {
            Self::Lanes => item.parse::<QueueName>().is_ok(),
            Self::Prefixes => is_reply_prefix(item),
            Self::Origins => is_origin(item),
            Self::OwnerPatterns => item.parse::<OwnerPattern>().is_ok(),
            Self::Networks => item.parse::<Network>().is_ok(),
            _ => false,
        }
    }

    /// What is wrong with a text, as a continuation of what was expected; empty where that says it.
    fn unfit_text(self, text: &str) -> Option<&'static str> {
        let fits = match self {
            Self::Text => text.len() <= MAX_SHORT_TEXT_BYTES && !text.chars().any(char::is_control),
            Self::Word(words) => words.contains(&text),
            Self::Service(schemes) => {
                return match Url::parse(text) {
                    _ if text.is_empty() => None,
                    Ok(url) if !schemes.contains(&url.scheme()) => Some(", but has another scheme"),
                    Ok(url) if url.scheme() == "sqlite" => match text.strip_prefix("sqlite://") {
                        Some(path) if !path.is_empty() => None,
                        _ => Some(", and SQLite as sqlite:///path/to/file"),
                    },
                    Ok(_) if hides_password(text) => Some(ENCODE_PASSWORD),
                    Ok(url) if !url.has_host() => Some(" and names a host"),
                    Ok(url) if url.fragment().is_some() => Some(ENCODE_PASSWORD),
                    Ok(_) => None,
                    Err(_) => Some(ENCODE_PASSWORD),
                };
            }
            Self::Schema => text.parse::<SchemaName>().is_ok(),
            Self::Role => text.is_empty() || text.parse::<RoleName>().is_ok(),
            Self::ApiKey => text.bytes().all(|byte| byte.is_ascii_graphic()),
            Self::BaseUrl => {
                return match Url::parse(text) {
                    Ok(url) if !matches!(url.scheme(), "http" | "https") => Some(", but has another scheme"),
                    Ok(url)
                        if !url.username().is_empty() || url.password().is_some() || hides_password(text) =>
                    {
                        Some(" without user and password; the key belongs in `composio.api_key`")
                    }
                    Ok(url) if url.query().is_some() || url.fragment().is_some() => {
                        Some(" without query and fragment")
                    }
                    Ok(_) => None,
                    Err(_) => Some(""),
                };
            }
            Self::Path => {
                text.starts_with('/')
                    && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?' && byte != b'#')
            }
            Self::Version => matches!(wanted(Some(text)), Ok(Wanted::Nothing | Wanted::Exact(_))),
            Self::Address => text.is_empty() || text.parse::<SocketAddr>().is_ok(),
            Self::Filter => is_filter(text),
            Self::Flag
            | Self::Whole(..)
            | Self::Number(..)
            | Self::Lanes
            | Self::Prefixes
            | Self::Origins
            | Self::OwnerPatterns
            | Self::Networks => true,
        };
        if fits { None } else { Some("") }
    }

    fn expected(self) -> String {
        match self {
            Self::Flag => "true or false".to_owned(),
            Self::Whole(min, max) => format!("a whole number from {min} to {max}"),
            Self::Number(min, max) => format!("a number from {min} to {max}"),
            Self::Text => format!("text of at most {MAX_SHORT_TEXT_BYTES} printable bytes"),
            Self::Word(words) => {
                let quoted: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
                quoted.join(" or ")
            }
            Self::Service(schemes) => format!("a URL that starts with {}:", schemes.join(": or ")),
            Self::Schema => NoSchemaName.to_string(),
            Self::Role => format!("{NoRoleName}, or empty"),
            Self::ApiKey => "text of visible ASCII characters, without blanks".to_owned(),
            Self::BaseUrl => "a URL that starts with http: or https:".to_owned(),
            Self::Path => "a path that starts with \"/\", without query".to_owned(),
            Self::Lanes => "a list of queue names (lower-case letters, digits, \"_\", \"-\", \".\")".to_owned(),
            Self::Prefixes => {
                format!("a list of beginnings of queue names, none of them empty or with \"{RESERVED_PREFIX}\" at its head")
            }
            Self::Origins => {
                "a list of origins such as \"https://app.example\", as browsers write them: scheme, host and port, nothing \
                 behind it; or \"*\" for every page"
                    .to_owned()
            }
            Self::OwnerPatterns => {
                "a list of owners such as \"user:ID\" or \"org:ID\", where a \"*\" at the end stands for any rest".to_owned()
            }
            Self::Networks => {
                "a list of networks such as \"10.1.0.0/16\" or \"fd00::/8\", or of single addresses".to_owned()
            }
            Self::Version => "a toolkit version such as \"20251027_00\" or \"00000000_00\"".to_owned(),
            Self::Address => "an address and a port such as \"127.0.0.1:9464\", or empty".to_owned(),
            Self::Filter => {
                "a filter such as \"info\" or \"info,errand=debug\" (levels: off, error, warn, info, debug, trace)"
                    .to_owned()
            }
        }
    }
}

fn is_reply_prefix(prefix: &str) -> bool {
    !prefix.is_empty()
        && prefix.len() <= MAX_SHORT_TEXT_BYTES
        && !prefix.chars().any(char::is_control)
        && !prefix.starts_with(RESERVED_PREFIX)
}

/// Whether a text is an origin exactly as a browser sends it, or stands for all.
fn is_origin(text: &str) -> bool {
    let as_sent =
        |url: Url| matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == text;
    text == ANY_ORIGIN || !text.contains('*') && Url::parse(text).is_ok_and(as_sent)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

/// Whether a text filters log lines. A misspelt level, read as the name of a module, would silently show nothing.
fn is_filter(text: &str) -> bool {
    let is_level = |word: &str| {
        ["off", "error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|level| level.eq_ignore_ascii_case(word))
    };
    let bare_words_are_levels =
        text.split(',').map(str::trim).all(|part| part.contains('=') || part.contains('[') || is_level(part));
    bare_words_are_levels && text.parse::<Targets>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_not_a_filter() {
        for good in ["info", "INFO", "warn,errand=debug", "off", "errand::store=trace,lapin=off"] {
            assert!(is_filter(good), "{good}");
        }
        for bad in ["", "inof", "debug,errand", "errand=loud"] {
            assert!(!is_filter(bad), "{bad}");
        }
    }
}
