//! Lays the file and the environment over the defaults and checks the result.
//!
//! Every mistake is collected, so that a person mends a configuration in one go.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
};

use serde::Deserialize as _;
use toml::{
    Value,
    de::{DeTable, DeValue},
};

use super::{
    error::{ConfigErrors, Mistake, Origin},
    names::{ENV_PREFIX, Key},
    relations,
    rule::Rule,
    secrets::{self, file_variable, given_twice},
    sections::Config,
    values::{Setting, Settings},
};
use crate::{
    bounds::MAX_SHORT_TEXT_BYTES,
    job::{Owner, QueueName},
    tool::pin::{self, VersionMap, is_slug},
};

pub const DEFAULTS: &str = include_str!("default.toml");

/// The file that is read when none is named.
const USUAL_FILE: &str = "errand.toml";

/// Short environment variables for the settings that every deployment needs.
const SHORT_NAMES: &[(&str, &str)] = &[
    ("DATABASE_URL", "store.url"),
    ("AMQP_URL", "amqp.url"),
    ("AMQP_MANAGEMENT_URL", "amqp.management_url"),
    ("COMPOSIO_API_KEY", "composio.api_key"),
    ("COMPOSIO_BASE_URL", "composio.base_url"),
];

#[derive(Default)]
pub struct Sources {
    /// The file that the command line names. It must exist.
    pub file: Option<PathBuf>,
    /// The environment. `ERRAND_CONFIG` names a file that must exist.
    pub env: BTreeMap<String, String>,
}

impl fmt::Debug for Sources {
    /// The environment is full of secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Sources {
    /// The process's own environment, and the file that the command line names.
    pub fn of_process(file: Option<PathBuf>) -> Self {
        let env = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect();
        Self { file, env }
    }
}

impl Sources {
    /// The folder in which this program is called `errand`, where `PATH` leads to another program of that name, or to none.
    /// `None` where it has another name there, too.
    pub fn path_addition(&self) -> Option<PathBuf> {
        let program = std::env::current_exe().ok()?.canonicalize().ok()?;
        let in_folder = |folder: PathBuf| Some(folder.join("errand")).filter(|path| path.is_file());
        let is_program = |path: &PathBuf| path.canonicalize().is_ok_and(|path| path == program);
        let mut folders = self.env.get("PATH").map(std::env::split_paths).into_iter().flatten();
        if folders.find_map(in_folder).is_some_and(|found| is_program(&found)) {
            return None;
        }
        // It may have been started by a link to it.
        let started = std::env::args_os().next().map(PathBuf::from);
        let started = started.and_then(|started| std::path::absolute(started.parent()?).ok());
        let folders = [started, program.parent().map(PathBuf::from)].into_iter().flatten();
        folders.into_iter().find(|folder| is_program(&folder.join("errand")))
    }
}

/// A valid configuration that knows where each value came from.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// The user of the operating system who runs this process, as far as the environment says.
    pub user: Option<String>,
    pub(super) settings: Settings,
    pub(super) pin_origins: BTreeMap<String, Origin>,
}

impl Loaded {
    /// Where a setting came from, by its full name such as `store.url`.
    pub fn origin(&self, name: &str) -> Option<&Origin> {
        self.settings.0.iter().find(|(key, _)| key.to_string() == name).map(|(_, setting)| &setting.origin)
    }
}

/// Reads all sources, strongest last: the defaults, the file, the short names of the environment, and
/// `ERRAND__SECTION__KEY`. The error has all mistakes of all of them.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let mut loader = Loader::of_defaults();
    loader.read_file(sources);
    loader.finish(&sources.env)
}

/// As [`load`], with the text of the usual file instead of a file. `ERRAND_CONFIG` names none.
pub fn load_text(text: &str, env: &BTreeMap<String, String>) -> Result<Loaded, ConfigErrors> {
    let mut loader = Loader::of_defaults();
    loader.read_text(text, PathBuf::from(USUAL_FILE));
    loader.finish(env)
}

/// The name of the user, by the variables of POSIX, of most shells, and of Windows.
fn user(env: &BTreeMap<String, String>) -> Option<String> {
    let names = ["LOGNAME", "USER", "USERNAME"].into_iter().filter_map(|name| env.get(name));
    names.map(|name| name.trim()).find(|name| !name.is_empty()).map(str::to_owned)
}

#[derive(Default)]
struct Loader {
    settings: Settings,
    mistaken: BTreeSet<Key>,
    /// Lanes that a file declares.
    lanes: BTreeMap<Key, Origin>,
    mistakes: Vec<Mistake>,
}

impl Loader {
    fn of_defaults() -> Self {
        let mut loader = Self::default();
        loader.read_toml(DEFAULTS, &|_| Origin::Default);
        loader
    }

    /// Lays the environment over what was read, and checks the whole.
    fn finish(mut self, env: &BTreeMap<String, String>) -> Result<Loaded, ConfigErrors> {
        self.read_short_names(env);
        let (env_pins, pin_origins) = self.read_env_pins(env);
        self.read_prefixed(env);
        let Self { settings, mistaken, lanes, mut mistakes } = self;
        mistakes.extend(relations::check(&settings, &mistaken, &lanes));
        if !mistakes.is_empty() {
            return Err(ConfigErrors(mistakes));
        }
        let mut config = Config::deserialize(Value::Table(settings.to_table())).map_err(|_| {
            // The message of the parser would quote the value, so it is not passed on.
            let message = "the settings are valid one by one but cannot be read together".to_owned();
            ConfigErrors(vec![Mistake { message, origin: None }])
        })?;
        config.toolkit_versions.retain(|_, version| !version.is_empty());
        config.env_pins = env_pins;
        config.api_key_file = match settings.0.get(&Key::new("composio.api_key")).map(|key| &key.origin) {
            Some(Origin::SecretFile { path, .. }) => Some(path.clone()),
            _ => None,
        };
        config.colors = env.get("NO_COLOR").is_none_or(String::is_empty);
        Ok(Loaded { config, user: user(env), settings, pin_origins })
    }

    fn report(&mut self, message: String, origin: Option<Origin>) {
        self.mistakes.push(Mistake { message, origin });
    }

    fn read_file(&mut self, sources: &Sources) {
        let named_by_env = sources.env.get("ERRAND_CONFIG").filter(|path| !path.trim().is_empty());
        let (path, named_by) = match (&sources.file, named_by_env) {
            (Some(path), _) => (path.clone(), Some("--config")),
            (None, Some(path)) => (PathBuf::from(path), Some("ERRAND_CONFIG")),
            (None, None) => (PathBuf::from(USUAL_FILE), None),
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => self.read_text(&text, path),
            Err(error) if named_by.is_none() && error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                // A URL with a password may stand there by mistake, so what was given is not repeated.
                let file = match named_by {
                    Some(by) => format!("named by {by}"),
                    None => path.display().to_string(),
                };
                self.report(format!("the file {file} cannot be read: {error}"), None);
            }
        }
    }

    fn read_text(&mut self, text: &str, path: PathBuf) {
        let path = Arc::new(path);
        let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
        let line = |at| 1 + ends.partition_point(|end| *end < at);
        self.read_toml(text, &|at| Origin::File { path: path.clone(), line: line(at) });
    }

    /// Reads a text, each byte of which is from a `place`.
    fn read_toml(&mut self, text: &str, place: &dyn Fn(usize) -> Origin) {
        let (table, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            self.read_table(&Key(Vec::new()), table.get_ref(), place);
            return;
        }
        for error in errors {
            // Only the message: the whole error quotes the line, which may hold a password.
            let message = format!("the file is not valid TOML: {}", error.message());
            self.report(message, Some(place(error.span().map_or(0, |span| span.start))));
        }
    }

    fn read_table(&mut self, section: &Key, table: &DeTable<'_>, place: &dyn Fn(usize) -> Origin) {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            let (key, origin) = (section.child(name.get_ref()), place(name.span().start));
            if key.rule().is_some_and(Rule::is_secret) || secrets::named_by(&key).is_some() {
                self.read_secret(key, table, value.get_ref(), origin);
                continue;
            }
            match (key.rule(), value.get_ref()) {
                (Some(rule), value) => self.set(key, rule.accept(plain(value)), origin),
                (None, DeValue::Table(table)) if key.is_section() => {
                    if key.0.len() == 2 && key.0[0] == "queues" {
                        self.lanes.insert(key.clone(), origin);
                    }
                    self.read_table(&key, table, place);
                }
                (None, _) if key.is_section() => {
                    self.report(format!("`{key}` must be a section, with settings of its own"), Some(origin));
                }
                (None, _) => self.unknown(&key, origin),
            }
        }
    }

    /// A secret of a section, or the name of a file with one. A blank one is as good as none beside the other.
    fn read_secret(&mut self, key: Key, section: &DeTable<'_>, value: &DeValue<'_>, origin: Origin) {
        let rival = key.0.last().and_then(|name| secrets::rival(section, name));
        let is_blank = value.as_str().is_some_and(|text| text.trim().is_empty());
        match (secrets::named_by(&key), rival, value.as_str()) {
            (Some(_), _, Some(_)) if is_blank => {}
            (None, Some(_), _) if is_blank => {}
            (Some((secret, _)), Some(rival), _) => {
                let given = given_twice(&rival, key.0.last().map_or("", String::as_str));
                self.set(secret, Err(given), origin);
            }
            // Told at the other one.
            (None, Some(_), _) => {}
            (Some((secret, rule)), None, Some(path)) => {
                let (value, origin) = secrets::read(path, rule, origin);
                self.set(secret, value, origin);
            }
            (Some((secret, _)), None, None) => {
                self.set(
                    secret,
                    Err("is to be read from a file, which must be named by text".to_owned()),
                    origin,
                );
            }
            (None, None, _) => {
                let value = key.rule().map_or_else(|| Err(String::new()), |rule| rule.accept(plain(value)));
                self.set(key, value, origin);
            }
        }
    }

    fn unknown(&mut self, key: &Key, origin: Origin) {
        let meant = key.did_you_mean();
        let (name, meant) = match &origin {
            Origin::Env { name } => (name.clone(), Key::by_words(name).or(meant).map(|key| key.env_name())),
            Origin::Default | Origin::File { .. } | Origin::SecretFile { .. } => {
                (key.to_string(), meant.map(|key| key.to_string()))
            }
        };
        let hint = match meant {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "`errand config default` lists all settings".to_owned(),
        };
        self.report(format!("`{name}` is not a setting; {hint}"), Some(origin));
    }

    /// A stronger source wins even where it is mistaken: relations must not be checked with a value that is overridden.
    fn set(&mut self, key: Key, value: Result<Value, String>, origin: Origin) {
        match check_name(&key, &origin).and(value) {
            Ok(value) => {
                self.mistaken.remove(&key);
                self.settings.0.insert(key, Setting { value, origin });
            }
            Err(message) => {
                self.report(format!("`{key}` {message}"), Some(origin));
                self.mistaken.insert(key);
            }
        }
    }

    fn read_short_names(&mut self, env: &BTreeMap<String, String>) {
        let set = |name: &str| env.get(name).filter(|text| !text.trim().is_empty());
        for (name, setting) in SHORT_NAMES {
            let key = Key::new(setting);
            let Some(rule) = key.rule() else { continue };
            let file_name = file_variable(name);
            let origin = |name: &str| Origin::Env { name: name.to_owned() };
            let (value, origin) = match (set(name), set(&file_name).filter(|_| rule.is_secret())) {
                (None, None) => continue,
                (Some(text), None) => (rule.parse(text), origin(name)),
                (None, Some(path)) => secrets::read(path, rule, origin(&file_name)),
                (Some(_), Some(_)) => (Err(given_twice(name, &file_name)), origin(&file_name)),
            };
            self.set(key, value, origin);
        }
    }

    fn read_env_pins(&mut self, env: &BTreeMap<String, String>) -> (VersionMap, BTreeMap<String, Origin>) {
        let (mut pins, mut origins) = (BTreeMap::new(), BTreeMap::new());
        for (name, text) in env {
            // As the tool API's own libraries spell it.
            let Some(toolkit) = pin::env_toolkit(name).filter(|_| !text.trim().is_empty()) else {
                continue;
            };
            let origin = Origin::Env { name: name.clone() };
            match Rule::Version.parse(text) {
                Ok(_) => {
                    pins.insert(toolkit.clone(), text.trim().to_owned());
                    origins.insert(toolkit, origin);
                }
                Err(message) => self.report(format!("the pin of `{toolkit}` {message}"), Some(origin)),
            }
        }
        (pins, origins)
    }

    fn read_prefixed(&mut self, env: &BTreeMap<String, String>) {
        for (name, text) in env {
            let origin = Origin::Env { name: name.clone() };
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else {
                if let Some(meant) = Key::by_words(name).filter(|_| !text.trim().is_empty()) {
                    let message = format!("`{name}` is not a setting; did you mean `{}`?", meant.env_name());
                    self.report(message, Some(origin));
                }
                continue;
            };
            let key = Key::from_env(rest);
            match (key.rule(), secrets::named_by(&key)) {
                (Some(rule), _) => self.set(key, rule.parse(text), origin),
                (None, Some(_)) if text.trim().is_empty() => {}
                (None, Some((secret, rule))) => {
                    let itself = env.iter().find(|(other, text)| {
                        file_variable(other).eq_ignore_ascii_case(name) && !text.trim().is_empty()
                    });
                    let (value, origin) = match itself {
                        Some((other, _)) => (Err(given_twice(other, name)), origin),
                        None => secrets::read(text, rule, origin),
                    };
                    self.set(secret, value, origin);
                }
                (None, None) => self.unknown(&key, origin),
            }
        }
    }
}

fn check_name(key: &Key, origin: &Origin) -> Result<(), String> {
    match (key.0[0].as_str(), key.0.get(1)) {
        ("queues", Some(name)) => {
            name.parse::<QueueName>().map(drop).map_err(|error| format!("names a queue that {error}"))
        }
        ("owner_retention" | "publishers", Some(_)) if matches!(origin, Origin::Env { .. }) => {
            Err("is a setting of a file, because names in the environment do not tell `a` from `A`"
                .to_owned())
        }
        ("owner_retention", Some(name)) => name
            .parse::<Owner>()
            .map(drop)
            .map_err(|error| format!("names an owner that {error}; write \"user:ID\" or \"org:ID\"")),
        ("publishers", Some(name)) if name.is_empty() || name.len() > MAX_SHORT_TEXT_BYTES => {
            Err(format!("names a user of the broker, which has 1 to {MAX_SHORT_TEXT_BYTES} bytes"))
        }
        ("toolkit_versions" | "toolkits", Some(name)) if !is_slug(name) => {
            Err("names a toolkit that must be spelt in lower case, such as `github`".to_owned())
        }
        _ => Ok(()),
    }
}

/// The parser's value without its positions.
fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.clone().into_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::String(String::new()), Value::Integer),
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| Value::String(String::new()), Value::Float)
        }
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(date) => Value::Datetime(*date),
        DeValue::Array(items) => Value::Array(items.iter().map(|item| plain(item.get_ref())).collect()),
        DeValue::Table(_) => Value::Table(toml::Table::new()),
    }
}
