//! Lays the file and the environment over the defaults and checks the result.
//!
//! Every mistake is collected, so that a person mends a configuration in one go. A setting that is
//! mistaken is left out of the checks of relations, which would otherwise report it twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
};

use secrecy::ExposeSecret as _;
use serde::Deserialize as _;
use toml::{
    Value,
    de::{DeTable, DeValue},
};

use super::{
    Config,
    error::{ConfigErrors, Missing, Mistake, Origin},
    setting::{ENV_PREFIX, Key, Rule},
};
use crate::{job::QueueName, tool::pin};

/// The defaults, which are also the manual.
pub const DEFAULTS: &str = include_str!("default.toml");

/// The file that is read when none is named.
const USUAL_FILE: &str = "errand.toml";

/// Short environment variables for the settings that every deployment needs.
const SHORT_NAMES: &[(&str, &[&str])] = &[
    ("DATABASE_URL", &["store", "url"]),
    ("AMQP_URL", &["amqp", "url"]),
    ("COMPOSIO_API_KEY", &["composio", "api_key"]),
    ("COMPOSIO_BASE_URL", &["composio", "base_url"]),
];

/// A lease must outlast three heartbeats by this, so that one slow write does not lose a worker.
const LEASE_MARGIN_SECS: i64 = 2;

/// Where settings may come from.
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

/// A valid configuration that knows where each value came from.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    pub(super) settings: Settings,
    pub(super) pin_origins: BTreeMap<String, Origin>,
}

impl Loaded {
    /// Where a setting came from, by its full name such as `store.url`.
    pub fn origin(&self, name: &str) -> Option<&Origin> {
        self.settings.0.iter().find(|(key, _)| key.to_string() == name).map(|(_, setting)| &setting.origin)
    }
}

/// One effective value.
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// The effective values by name.
#[derive(Default)]
pub(super) struct Settings(pub(super) BTreeMap<Key, Setting>);

impl fmt::Debug for Settings {
    /// Some values are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys().map(Key::to_string)).finish()
    }
}

/// Reads all sources, strongest last: the defaults, the file, the short names of the environment,
/// and `ERRAND__SECTION__KEY`.
///
/// # Errors
/// All mistakes of all sources.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let mut loader = Loader::of_defaults();
    loader.read_file(sources);
    loader.finish(&sources.env)
}

/// As [`load`], with the text of the usual file instead of a file. `ERRAND_CONFIG` names none.
///
/// # Errors
/// All mistakes of all sources.
pub fn load_text(text: &str, env: &BTreeMap<String, String>) -> Result<Loaded, ConfigErrors> {
    let mut loader = Loader::of_defaults();
    loader.read_text(text, PathBuf::from(USUAL_FILE));
    loader.finish(env)
}

#[derive(Default)]
struct Loader {
    settings: Settings,
    mistaken: BTreeSet<Key>,
    /// Lanes that a file declares, which must have a concurrency in the end.
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
        self.check_relations();
        let Self { settings, mistakes, .. } = self;
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
        config.log.colors = env.get("NO_COLOR").is_none_or(String::is_empty);
        Ok(Loaded { config, settings, pin_origins })
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
                let by = named_by.map(|by| format!(" named by {by}")).unwrap_or_default();
                self.report(format!("the file {}{by} cannot be read: {error}", path.display()), None);
            }
        }
    }

    fn read_text(&mut self, text: &str, path: PathBuf) {
        let path = Arc::new(path);
        self.read_toml(text, &|line| Origin::File { path: path.clone(), line });
    }

    fn read_toml(&mut self, text: &str, origin: &dyn Fn(usize) -> Origin) {
        let place = |at: usize| origin(1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count());
        let (table, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            self.read_table(&Key(Vec::new()), table.get_ref(), &place);
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
            match (Rule::of(&key), value.get_ref()) {
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

    fn unknown(&mut self, key: &Key, origin: Origin) {
        let meant = key.did_you_mean();
        let (name, meant) = match &origin {
            Origin::Env { name } => (name.clone(), meant.map(|key| key.env_name())),
            Origin::Default | Origin::File { .. } => (key.to_string(), meant.map(|key| key.to_string())),
        };
        let hint = match meant {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "`errand config show` lists all settings".to_owned(),
        };
        self.report(format!("`{name}` is not a setting; {hint}"), Some(origin));
    }

    /// A stronger source wins even where it is mistaken: going on with the weaker value would hide
    /// the mistake from the checks of relations.
    fn set(&mut self, key: Key, value: Result<Value, String>, origin: Origin) {
        let value = check_name(&key).and(value);
        match value {
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
        for (name, path) in SHORT_NAMES {
            let Some(text) = env.get(*name).filter(|text| !text.trim().is_empty()) else { continue };
            let key = Key::new(path);
            let value =
                Rule::of(&key).map_or_else(|| Ok(Value::String(text.clone())), |rule| rule.parse(text));
            self.set(key, value, Origin::Env { name: (*name).to_owned() });
        }
    }

    fn read_env_pins(
        &mut self,
        env: &BTreeMap<String, String>,
    ) -> (BTreeMap<String, String>, BTreeMap<String, Origin>) {
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
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
            let (key, origin) = (Key::from_env(rest), Origin::Env { name: name.clone() });
            match Rule::of(&key) {
                Some(rule) => self.set(key, rule.parse(text), origin),
                None => self.unknown(&key, origin),
            }
        }
    }

    // -----------------------------------------------------------------------------------------
    // Relations

    fn check_relations(&mut self) {
        let whole = |path: [&str; 2]| self.whole(&Key::new(&path));
        let mut found: Vec<(String, [&str; 2])> = Vec::new();

        if let (Some(lease), Some(beat)) =
            (whole(["worker", "lease_secs"]), whole(["worker", "heartbeat_secs"]))
        {
            let least = 3 * beat + LEASE_MARGIN_SECS;
            if lease < least {
                found.push((
                    format!(
                        "`worker.lease_secs` is {lease} but must be at least {least} (three times `worker.heartbeat_secs` and {LEASE_MARGIN_SECS} more), because otherwise a worker that misses one beat loses its jobs"
                    ),
                    ["worker", "lease_secs"],
                ));
            }
        }
        if let (Some(initial), Some(max)) = (whole(["retry", "initial_ms"]), whole(["retry", "max_ms"]))
            && initial > max
        {
            found.push((
                format!("`retry.initial_ms` is {initial} but must not be more than `retry.max_ms` ({max}), the longest wait"),
                ["retry", "initial_ms"],
            ));
        }
        if let (Some(connect), Some(all)) =
            (whole(["composio", "connect_timeout_ms"]), whole(["composio", "timeout_ms"]))
            && connect > all
        {
            found.push((
                format!("`composio.connect_timeout_ms` is {connect} but must not be more than `composio.timeout_ms` ({all}), which includes connecting"),
                ["composio", "connect_timeout_ms"],
            ));
        }
        if let (Some(buffer), Some(response)) =
            (whole(["worker", "max_buffered_bytes"]), whole(["composio", "max_response_bytes"]))
            && buffer < response
        {
            found.push((
                format!("`worker.max_buffered_bytes` is {buffer} but must be at least `composio.max_response_bytes` ({response}), so that one answer of the largest size fits"),
                ["worker", "max_buffered_bytes"],
            ));
        }
        if let (Some(settle), Some(give_up)) =
            (whole(["verify", "settle_secs"]), whole(["verify", "give_up_secs"]))
            && give_up < settle
        {
            found.push((
                format!("`verify.give_up_secs` is {give_up} but must be at least `verify.settle_secs` ({settle}), or no call could be found to have never arrived"),
                ["verify", "give_up_secs"],
            ));
        }
        for (message, path) in found {
            let origin = self.settings.0.get(&Key::new(&path)).map(|setting| setting.origin.clone());
            self.report(message, origin.filter(|origin| *origin != Origin::Default));
        }
        self.check_lanes();
    }

    fn check_lanes(&mut self) {
        for (lane, origin) in std::mem::take(&mut self.lanes) {
            let concurrency = lane.child("concurrency");
            if !self.settings.0.contains_key(&concurrency) && !self.mistaken.contains(&concurrency) {
                self.report(format!("`{concurrency}` is missing; every lane needs one"), Some(origin));
            }
        }
        let key = Key::new(&["worker", "queues"]);
        let Some(setting) = self.settings.0.get(&key).filter(|_| !self.mistaken.contains(&key)) else {
            return;
        };
        let chosen: Vec<String> = setting
            .value
            .as_array()
            .map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            .unwrap_or_default();
        let origin = setting.origin.clone();
        let lanes: BTreeSet<String> = self
            .settings
            .0
            .keys()
            .chain(&self.mistaken)
            .filter(|key| key.0[0] == "queues")
            .filter_map(|key| key.0.get(1).cloned())
            .collect();
        for name in chosen.iter().filter(|name| !lanes.contains(*name)) {
            let known = lanes.iter().cloned().collect::<Vec<_>>().join(", ");
            let message = format!("`worker.queues` names `{name}`, which is not in [queues] ({known})");
            self.report(message, Some(origin.clone()));
        }
    }

    /// A number that is not mistaken.
    fn whole(&self, key: &Key) -> Option<i64> {
        if self.mistaken.contains(key) {
            return None;
        }
        self.settings.0.get(key).and_then(|setting| setting.value.as_integer())
    }
}

impl Settings {
    fn to_table(&self) -> toml::Table {
        // Sections may be empty, and serde wants to see each of them.
        let mut root: toml::Table = ["queues", "toolkit_versions", "toolkits"]
            .map(|section| (section.to_owned(), Value::Table(toml::Table::new())))
            .into_iter()
            .collect();
        for (key, setting) in &self.0 {
            let Some((last, sections)) = key.0.split_last() else { continue };
            let mut table = &mut root;
            for section in sections {
                let entry = table.entry(section.clone()).or_insert_with(|| Value::Table(toml::Table::new()));
                let Value::Table(inner) = entry else { unreachable!("no setting is inside another setting") };
                table = inner;
            }
            table.insert(last.clone(), setting.value.clone());
        }
        root
    }
}

/// Checks the names that people choose.
fn check_name(key: &Key) -> Result<(), String> {
    let slug = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
    };
    match (key.0[0].as_str(), key.0.get(1)) {
        ("queues", Some(name)) => {
            name.parse::<QueueName>().map(drop).map_err(|error| format!("names a queue that {error}"))
        }
        ("toolkit_versions" | "toolkits", Some(name)) if !slug(name) => {
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

impl Config {
    /// # Errors
    /// No database is configured.
    pub fn require_store(&self) -> Result<(), Missing> {
        if self.store.url.expose_secret().is_empty() { Err(Missing::Store) } else { Ok(()) }
    }

    /// # Errors
    /// No broker is configured.
    pub fn require_amqp(&self) -> Result<(), Missing> {
        if self.has_amqp() { Ok(()) } else { Err(Missing::Amqp) }
    }

    /// # Errors
    /// No key for the tool API is configured.
    pub fn require_api_key(&self) -> Result<(), Missing> {
        if self.composio.api_key.expose_secret().is_empty() { Err(Missing::ApiKey) } else { Ok(()) }
    }

    /// Whether a broker is configured.
    pub fn has_amqp(&self) -> bool {
        !self.amqp.url.expose_secret().is_empty()
    }

    /// Whether the store is a SQLite file, which only the processes of one machine share.
    pub fn store_is_sqlite(&self) -> bool {
        self.store.url.expose_secret().starts_with("sqlite://")
    }
}
