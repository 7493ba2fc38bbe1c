//! Named contexts: the servers whose HTTP API commands use instead of this host's database.
//!
//! They are in a file of the user, `errand/contexts.toml` in `XDG_CONFIG_HOME` or `~/.config`, which only its owner may read
//! where a key is in it.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use super::Sources;
use crate::secret_file;

/// The name that stands for the database of this host. No context has it.
pub const LOCAL: &str = "local";

/// The most bytes of a name.
const MAX_NAME_BYTES: usize = 64;

/// A context cannot be used, written or chosen. The message says what to do, and quotes no key.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ContextError(String);

/// All contexts of a user, as they are in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Contexts {
    /// The one that is used where none is named; none is this host's database.
    pub current: Option<String>,
    pub contexts: BTreeMap<String, NamedServer>,
}

/// A server that has a name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedServer {
    /// The address of its HTTP API.
    pub server: String,
    /// The access key. Where there is none, and no file with one, it is `ERRAND_API_KEY`.
    #[serde(default)]
    pub api_key: Option<SecretString>,
    #[serde(default)]
    pub api_key_file: Option<PathBuf>,
    /// Whether commands ask before they change anything.
    #[serde(default)]
    pub production: bool,
}

/// The server that a command uses.
#[derive(Debug)]
pub struct Target {
    /// The name of its context, if it has one.
    pub name: Option<String>,
    pub server: String,
    pub api_key: Option<SecretString>,
    /// Whether commands ask before they change anything.
    pub production: bool,
}

impl Contexts {
    /// The file of this user's contexts.
    ///
    /// # Errors
    /// The environment names no home.
    pub fn file(sources: &Sources) -> Result<PathBuf, ContextError> {
        let folder = |name: &str| sources.env.get(name).filter(|path| Path::new(path).is_absolute());
        let base = match (folder("XDG_CONFIG_HOME"), folder("HOME")) {
            (Some(base), _) => PathBuf::from(base),
            (None, Some(home)) => Path::new(home).join(".config"),
            (None, None) => {
                return Err(ContextError(
                    "there is no place for contexts: set HOME, or use --server and ERRAND_API_KEY".into(),
                ));
            }
        };
        Ok(base.join("errand/contexts.toml"))
    }

    /// The contexts in a file, of which there are none where there is no file.
    ///
    /// # Errors
    /// The file cannot be read, others may read a key in it, or it is not as it should be.
    pub fn load(file: &Path) -> Result<Self, ContextError> {
        let named = |what: String| ContextError(format!("{}: {what}", file.display()));
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(named(error.to_string())),
        };
        // What a parser says quotes the line, in which there may be a key.
        let contexts: Self = toml::from_str(&text).map_err(|error: toml::de::Error| {
            let line =
                error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            named(format!("line {line} cannot be read: {}", error.message()))
        })?;
        let mode = fs::metadata(file).map_err(|error| named(error.to_string()))?.permissions().mode();
        if mode & 0o077 != 0 && contexts.contexts.values().any(|context| context.api_key.is_some()) {
            return Err(named("others may read the key in it; run `chmod 600` on it".into()));
        }
        Ok(contexts)
    }

    /// Writes the file whole, for its owner only.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, file: &Path) -> Result<(), ContextError> {
        self.write(file)
            .map_err(|error| ContextError(format!("{} cannot be written: {error}", file.display())))
    }

    fn write(&self, file: &Path) -> io::Result<()> {
        let text = toml::to_string(&Written::of(self)).map_err(io::Error::other)?;
        let folder = file.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let owner_only = Permissions::from_mode(0o600);
        let mut new = tempfile::Builder::new().permissions(owner_only).tempfile_in(folder)?;
        new.write_all(text.as_bytes())?;
        new.as_file().sync_all()?;
        new.persist(file).map(drop).map_err(|error| error.error)
    }

    /// The context of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, name: &str) -> Result<&NamedServer, ContextError> {
        self.contexts.get(name).ok_or_else(|| {
            let known: Vec<_> = self.contexts.keys().map(String::as_str).chain([LOCAL]).collect();
            let known = known.join(", ");
            ContextError(format!("there is no context `{name}`, but {known}; `errand context set` makes one"))
        })
    }
}

impl NamedServer {
    /// What a command uses that names this context.
    ///
    /// # Errors
    /// The file of its key cannot be read.
    pub fn target(&self, name: &str, sources: &Sources) -> Result<Target, ContextError> {
        let of_file = |file: &PathBuf| {
            let unread =
                |error| ContextError(format!("the key of the context `{name}`: {} {error}", file.display()));
            secret_file::read(file).map(SecretString::from).map_err(unread)
        };
        let own = self
            .api_key
            .clone()
            .map_or_else(|| self.api_key_file.as_ref().map(of_file).transpose(), |key| Ok(Some(key)))?;
        Ok(Target {
            name: Some(name.to_owned()),
            server: self.server.clone(),
            api_key: own.or_else(|| key_of_environment(sources)),
            production: self.production,
        })
    }
}

/// Which server a command uses: that of `--server`, of the named context, or of the current one. `None` is this host's
/// database.
///
/// # Errors
/// There is no such context, or its file cannot be used.
pub fn target(
    sources: &Sources,
    server: Option<String>,
    context: Option<String>,
) -> Result<Option<Target>, ContextError> {
    if let Some(server) = server {
        let api_key = key_of_environment(sources);
        return Ok(Some(Target { name: None, server, api_key, production: false }));
    }
    let of_environment = || sources.env.get("ERRAND_CONTEXT").filter(|name| !name.is_empty()).cloned();
    let named = context.or_else(of_environment);
    if named.as_deref() == Some(LOCAL) {
        return Ok(None);
    }
    let contexts = match (Contexts::file(sources), &named) {
        (Ok(file), _) => Contexts::load(&file)?,
        (Err(error), Some(_)) => return Err(error),
        // Without a home there is no current context.
        (Err(_), None) => return Ok(None),
    };
    let Some(name) = named.as_ref().or(contexts.current.as_ref()).filter(|name| *name != LOCAL) else {
        return Ok(None);
    };
    contexts.find(name)?.target(name, sources).map(Some)
}

fn key_of_environment(sources: &Sources) -> Option<SecretString> {
    let key = sources.env.get("ERRAND_API_KEY").map(|key| key.trim()).filter(|key| !key.is_empty());
    key.map(SecretString::from)
}

/// Why a context cannot have this name.
///
/// # Errors
/// A sentence.
pub fn check_context_name(name: &str) -> Result<(), String> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if name == LOCAL {
        return Err("`local` stands for the database of this host".to_owned());
    }
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(is_plain) {
        return Err(format!("use 1 to {MAX_NAME_BYTES} letters, digits, dots, hyphens and underscores"));
    }
    Ok(())
}

/// The file as it is written, keys included.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<&'a str>,
    contexts: BTreeMap<&'a str, WrittenServer<'a>>,
}

#[derive(Serialize)]
struct WrittenServer<'a> {
    server: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_file: Option<&'a Path>,
    production: bool,
}

impl<'a> Written<'a> {
    fn of(contexts: &'a Contexts) -> Self {
        let server = |context: &'a NamedServer| WrittenServer {
            server: &context.server,
            api_key: context.api_key.as_ref().map(|key| key.expose_secret()),
            api_key_file: context.api_key_file.as_deref(),
            production: context.production,
        };
        Self {
            current: contexts.current.as_deref(),
            contexts: contexts
                .contexts
                .iter()
                .map(|(name, context)| (name.as_str(), server(context)))
                .collect(),
        }
    }
}
