//! What is wrong with a configuration, all of it at once.

use std::{fmt, path::PathBuf, sync::Arc};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `default.toml`.
    Default,
    File {
        path: Arc<PathBuf>,
        /// Counts from 1.
        line: usize,
    },
    Env {
        name: String,
    },
    /// A secret in a file, which a setting or a variable names.
    SecretFile {
        path: PathBuf,
        named_by: Box<Origin>,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Env { name } => write!(f, "environment variable {name}"),
            Self::SecretFile { path, named_by } => write!(f, "the file {}, by {named_by}", path.display()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// One sentence that names the setting and says what it must be. Never quotes a text value.
    pub message: String,
    /// Where the value came from, when there is one place.
    pub origin: Option<Origin>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.origin {
            Some(origin) => write!(f, " ({origin})"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a configuration; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Mistake>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "the configuration has a mistake: {one}"),
            all => {
                write!(f, "the configuration has {} mistakes:", all.len())?;
                all.iter().try_for_each(|mistake| write!(f, "\n  - {mistake}"))
            }
        }
    }
}

impl std::error::Error for ConfigErrors {}

/// Everything that a command needs and that is not set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllMissing(pub Vec<Missing>);

impl fmt::Display for AllMissing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => one.fmt(f),
            all => {
                write!(f, "{} settings are missing:", all.len())?;
                all.iter().try_for_each(|missing| write!(f, "\n  - {missing}"))
            }
        }
    }
}

impl std::error::Error for AllMissing {}

/// A setting that has no default and that this command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    #[error(
        "no database is configured: set DATABASE_URL, for example to postgres://user:password@host/database or sqlite:///path/to/file (setting `store.url`)"
    )]
    Store,
    #[error(
        "no broker is configured: set AMQP_URL, for example to amqp://user:password@host:5672/%2f (setting `amqp.url`)"
    )]
    Amqp,
    #[error("no key for the tool API is configured: set COMPOSIO_API_KEY (setting `composio.api_key`)")]
    ApiKey,
}
