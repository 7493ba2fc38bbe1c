//! Reading a world file: its shape, and the checks that make a [`World`] of it.
//!
//! Each entry is decoded on its own, so that one mistake does not hide the others.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::{
    AuthConfig, Behaviour, DEFAULT_WORLD, Effect, Key, LogSettings, RateLimit, SeedAccount, Tool, Toolkit,
    World, WorldError,
    entry::{AccountEntry, RangeEntry, ToolEntry},
    template::Template,
};
use crate::fault::{Rule, RuleSpec};

/// The most accounts that one range may declare, so that a typing error does not fill the memory.
const RANGE_MAX: u32 = 100_000;

/// When an account that does not say was connected: 2025-09-01, before anything a file declares.
const LONG_AGO: Timestamp = Timestamp::constant(1_756_684_800, 0);

const HINT_TAGS: [&str; 6] =
    ["readOnlyHint", "idempotentHint", "destructiveHint", "createHint", "updateHint", "openWorldHint"];

const PARAMETER_TYPES: [&str; 6] = ["string", "integer", "number", "boolean", "array", "object"];

impl World {
    /// Reads and checks a world file.
    ///
    /// # Errors
    /// [`WorldError`] lists every mistake in the file, not only the first.
    pub fn from_toml(text: &str) -> Result<Self, WorldError> {
        read(text)
    }

    /// The world of [`DEFAULT_WORLD`].
    pub fn default_world() -> Self {
        Self::from_toml(DEFAULT_WORLD).expect("a test reads the default world")
    }
}

fn read(text: &str) -> Result<World, WorldError> {
    let mut table: Table =
        text.parse().map_err(|e| WorldError { mistakes: vec![format!("it is not valid TOML: {e}")] })?;
    table.iter_mut().for_each(|(_, value)| quote_times(value));
    let mut reader = Reader { mistakes: Vec::new() };

    let behaviour: Behaviour = reader.section(&mut table, "behaviour");
    let rate_limit: RateLimit = reader.section(&mut table, "rate_limit");
    let logs: LogSettings = reader.section(&mut table, "logs");
    let keys: Vec<Key> = reader.entries(&mut table, "key");
    let toolkits: Vec<Toolkit> = reader.entries(&mut table, "toolkit");
    let tools: Vec<ToolEntry> = reader.entries(&mut table, "tool");
    let auth_configs: Vec<AuthConfig> = reader.entries(&mut table, "auth_config");
    let accounts: Vec<AccountEntry> = reader.entries(&mut table, "account");
    let ranges: Vec<RangeEntry> = reader.entries(&mut table, "account_range");
    let faults: Vec<RuleSpec> = reader.entries(&mut table, "fault");
    for unknown in table.keys() {
        reader.mistake(format!(
            "`{unknown}` is not a section; the sections are [behaviour], [rate_limit], [logs], [[key]], \
             [[toolkit]], [[tool]], [[auth_config]], [[account]], [[account_range]] and [[fault]]"
        ));
    }

    reader.check_behaviour(&behaviour, &rate_limit, &logs);
    let keys = reader.keys(keys);
    let toolkits = reader.toolkits(toolkits);
    let tools = reader.tools(tools, &toolkits);
    let auth_configs = reader.auth_configs(auth_configs, &toolkits, &tools);
    let accounts = reader.accounts(accounts, ranges, &toolkits, &auth_configs);
    let faults = reader.faults(faults, &tools);

    if reader.mistakes.is_empty() {
        Ok(World { keys, toolkits, tools, auth_configs, accounts, behaviour, rate_limit, logs, faults })
    } else {
        Err(WorldError { mistakes: reader.mistakes })
    }
}

struct Reader {
    mistakes: Vec<String>,
}

impl Reader {
    fn mistake(&mut self, text: impl Into<String>) {
        self.mistakes.push(text.into());
    }

    fn section<T: DeserializeOwned + Default>(&mut self, table: &mut Table, name: &str) -> T {
        let Some(value) = table.remove(name) else { return T::default() };
        T::deserialize(value).unwrap_or_else(|e| {
            self.mistake(format!("[{name}]: {}", one_line(&e)));
            T::default()
        })
    }

    fn entries<T: DeserializeOwned>(&mut self, table: &mut Table, name: &str) -> Vec<T> {
        let items = match table.remove(name) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => {
                self.mistake(format!("`{name}` must be written as [[{name}]], with two brackets"));
                return Vec::new();
            }
        };
        let mut entries = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let label = item
                .as_table()
                .and_then(|entry| {
                    ["slug", "id", "key", "user", "tool"].iter().find_map(|key| entry.get(*key))
                })
                .map_or(String::new(), |label| format!(" {label}"));
            match T::deserialize(item) {
                Ok(entry) => entries.push(entry),
                Err(e) => self.mistake(format!("[[{name}]] number {}{label}: {}", index + 1, one_line(&e))),
            }
        }
        entries
    }

    fn check_behaviour(&mut self, behaviour: &Behaviour, limit: &RateLimit, logs: &LogSettings) {
        for (name, status) in [
            ("unknown_account_status", behaviour.unknown_account_status),
            ("no_account_status", behaviour.no_account_status),
        ] {
            if status != 400 && status != 404 {
                self.mistake(format!("[behaviour] {name} is {status}; the API answers 400 or 404"));
            }
        }
        if limit.requests == 0 || limit.window_seconds == 0 {
            self.mistake("[rate_limit] requests and window_seconds must be at least 1");
        }
        if let Err(mistake) = logs.check() {
            self.mistake(format!("[logs] {mistake}"));
        }
    }

    fn keys(&mut self, keys: Vec<Key>) -> HashMap<String, Key> {
        if keys.is_empty() {
            self.mistake("there is no [[key]], so no request could be answered");
        }
        let mut known = HashMap::new();
        for key in keys {
            let name = key.key.clone();
            if known.insert(name.clone(), key).is_some() {
                self.mistake(format!("[[key]] {name} is declared twice"));
            }
        }
        known
    }

    fn toolkits(&mut self, toolkits: Vec<Toolkit>) -> BTreeMap<String, Arc<Toolkit>> {
        let mut known = BTreeMap::new();
        for mut toolkit in toolkits {
            let slug = toolkit.slug.to_string();
            if slug.is_empty() || slug.contains(|c: char| c.is_ascii_uppercase() || c.is_whitespace()) {
                self.mistake(format!("[[toolkit]] \"{slug}\": a slug is lower-case and has no spaces"));
            }
            if toolkit.versions.is_empty() {
                self.mistake(format!("[[toolkit]] {slug} has no version"));
            }
            let mut seen = HashSet::new();
            for version in &toolkit.versions {
                if !is_version(&version.version) {
                    let found = &version.version;
                    self.mistake(format!("[[toolkit]] {slug}: version \"{found}\" is not YYYYMMDD_NN"));
                }
                if !seen.insert(version.version.clone()) {
                    self.mistake(format!(
                        "[[toolkit]] {slug}: version {} is declared twice",
                        version.version
                    ));
                }
            }
            toolkit.versions.sort_by(|a, b| a.version.cmp(&b.version));
            if toolkit.name.is_empty() {
                toolkit.name.clone_from(&slug);
            }
            if known.insert(slug.clone(), Arc::new(toolkit)).is_some() {
                self.mistake(format!("[[toolkit]] {slug} is declared twice"));
            }
        }
        known
    }

    fn tools(
        &mut self,
        entries: Vec<ToolEntry>,
        toolkits: &BTreeMap<String, Arc<Toolkit>>,
    ) -> BTreeMap<String, Arc<Tool>> {
        let mut known = BTreeMap::new();
        for entry in entries {
            let slug = entry.slug.to_string();
            let Some(toolkit) = toolkits.get(&entry.toolkit) else {
                self.mistake(format!("[[tool]] {slug}: toolkit \"{}\" does not exist", entry.toolkit));
                continue;
            };
            self.check_tool(&entry, toolkit);
            let Some(result) = self.result(&entry) else { continue };
            let tool = Tool {
                slug: entry.slug,
                toolkit: Arc::clone(toolkit),
                name: if entry.name.is_empty() { slug.clone() } else { entry.name },
                description: entry.description,
                no_auth: entry.no_auth.unwrap_or(toolkit.no_auth),
                since: entry.since,
                until: entry.until,
                removed: entry.removed,
                deprecated: entry.deprecated,
                important: entry.important,
                effect: Effect::from_tags(&entry.tags),
                tags: entry.tags,
                scopes: entry.scopes,
                required: entry.required,
                optional: entry.optional,
                result,
            };
            if known.insert(slug.clone(), Arc::new(tool)).is_some() {
                self.mistake(format!("[[tool]] {slug} is declared twice"));
            }
        }
        known
    }

    fn check_tool(&mut self, entry: &ToolEntry, toolkit: &Toolkit) {
        let slug = &entry.slug;
        let upper_snake = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        if slug.is_empty() || !slug.chars().all(upper_snake) {
            self.mistake(format!("[[tool]] \"{slug}\": a slug is UPPER_SNAKE"));
        }
        for (name, version) in [("since", &entry.since), ("until", &entry.until)] {
            if let Some(version) = version
                && toolkit.versions.iter().all(|known| *known.version != **version)
            {
                let toolkit = &toolkit.slug;
                self.mistake(format!(
                    "[[tool]] {slug}: {name} = \"{version}\" is not a version of toolkit {toolkit}"
                ));
            }
        }
        for (name, kind) in entry.required.iter().chain(&entry.optional) {
            if !PARAMETER_TYPES.contains(&kind.as_str()) {
                let types = PARAMETER_TYPES.join(", ");
                self.mistake(format!(
                    "[[tool]] {slug}: parameter {name} has type \"{kind}\"; the types are {types}"
                ));
            }
        }
        for name in entry.required.keys().filter(|name| entry.optional.contains_key(*name)) {
            self.mistake(format!("[[tool]] {slug}: parameter {name} is both required and optional"));
        }
        // Other tags mean nothing to clients, but a misspelt hint would change what is safe to repeat.
        for tag in entry.tags.iter().filter(|tag| tag.to_lowercase().ends_with("hint")) {
            if !HINT_TAGS.contains(&tag.as_str()) {
                let hints = HINT_TAGS.join(", ");
                self.mistake(format!("[[tool]] {slug}: \"{tag}\" is not a hint; the hints are {hints}"));
            }
        }
    }

    fn result(&mut self, entry: &ToolEntry) -> Option<Template> {
        let is_parameter =
            |name: &str| entry.required.contains_key(name) || entry.optional.contains_key(name);
        let compiled = serde_json::to_value(&entry.result)
            .map_err(|e| vec![e.to_string()])
            .and_then(|result| Template::compile(&result, &is_parameter));
        match compiled {
            Ok(result) => Some(result),
            Err(mistakes) => {
                for mistake in mistakes {
                    self.mistake(format!("[[tool]] {}: result: {mistake}", entry.slug));
                }
                None
            }
        }
    }

    fn auth_configs(
        &mut self,
        mut configs: Vec<AuthConfig>,
        toolkits: &BTreeMap<String, Arc<Toolkit>>,
        tools: &BTreeMap<String, Arc<Tool>>,
    ) -> Vec<AuthConfig> {
        let mut seen = HashSet::new();
        for config in &mut configs {
            let id = Arc::clone(&config.id);
            if !seen.insert(Arc::clone(&id)) {
                self.mistake(format!("[[auth_config]] {id} is declared twice"));
            }
            if !toolkits.contains_key(&*config.toolkit) {
                self.mistake(format!("[[auth_config]] {id}: toolkit \"{}\" does not exist", config.toolkit));
            }
            for tool in config.allowed_tools.iter().flatten() {
                if !tools.contains_key(tool) {
                    self.mistake(format!("[[auth_config]] {id}: tool \"{tool}\" does not exist"));
                }
            }
            if config.name.is_empty() {
                config.name = format!("{} {id}", config.toolkit);
            }
        }
        configs
    }

    fn accounts(
        &mut self,
        accounts: Vec<AccountEntry>,
        ranges: Vec<RangeEntry>,
        toolkits: &BTreeMap<String, Arc<Toolkit>>,
        configs: &[AuthConfig],
    ) -> Vec<SeedAccount> {
        let mut known = Vec::new();
        for entry in accounts {
            let label = format!("[[account]] {}", entry.id);
            if let Some(auth_config) =
                self.auth_config(&label, &entry.toolkit, entry.auth_config, toolkits, configs)
            {
                known.push(SeedAccount {
                    id: entry.id,
                    user: entry.user,
                    toolkit: entry.toolkit,
                    auth_config,
                    status: entry.status,
                    created_at: entry.created_at.unwrap_or(LONG_AGO),
                    shared_with: entry.shared_with,
                });
            }
        }
        for range in ranges {
            let label = format!("[[account_range]] {} for {}", range.user, range.toolkit);
            for (name, pattern) in [("user", Some(&range.user)), ("id", range.id.as_ref())] {
                if pattern.is_some_and(|pattern| !pattern.contains("{n}")) {
                    self.mistake(format!("{label}: {name} must contain {{n}}, which stands for the number"));
                }
            }
            if range.from > range.to || range.to - range.from >= RANGE_MAX {
                self.mistake(format!(
                    "{label}: from = {} to = {} is not a range of 1 to {RANGE_MAX} accounts",
                    range.from, range.to
                ));
                continue;
            }
            let auth_config = self.auth_config(&label, &range.toolkit, range.auth_config, toolkits, configs);
            let Some(auth_config) = auth_config else { continue };
            let start = range.created_at.unwrap_or(LONG_AGO);
            for n in range.from..=range.to {
                let number = n.to_string();
                let user = range.user.replace("{n}", &number);
                let id = match &range.id {
                    Some(pattern) => pattern.replace("{n}", &number),
                    None => format!("ca_{}_{user}", range.toolkit),
                };
                known.push(SeedAccount {
                    id: id.into(),
                    user: user.into(),
                    toolkit: Arc::clone(&range.toolkit),
                    auth_config: Arc::clone(&auth_config),
                    status: range.status,
                    created_at: start
                        .saturating_add(SignedDuration::from_secs(i64::from(n)))
                        .unwrap_or(start),
                    shared_with: None,
                });
            }
        }
        let mut seen = HashSet::new();
        for account in &known {
            if !seen.insert(Arc::clone(&account.id)) {
                self.mistake(format!("account {} is declared twice", account.id));
            }
        }
        known
    }

    /// The auth config that an account names, or the first one of its toolkit.
    fn auth_config(
        &mut self,
        label: &str,
        toolkit: &str,
        named: Option<Arc<str>>,
        toolkits: &BTreeMap<String, Arc<Toolkit>>,
        configs: &[AuthConfig],
    ) -> Option<Arc<str>> {
        if !toolkits.contains_key(toolkit) {
            self.mistake(format!("{label}: toolkit \"{toolkit}\" does not exist"));
            return None;
        }
        let of_toolkit = |config: &&AuthConfig| *config.toolkit == *toolkit;
        match named {
            Some(id) => {
                if !configs.iter().filter(of_toolkit).any(|config| config.id == id) {
                    self.mistake(format!("{label}: toolkit {toolkit} has no auth config \"{id}\""));
                }
                Some(id)
            }
            None => {
                let first = configs.iter().find(of_toolkit);
                if first.is_none() {
                    self.mistake(format!("{label}: toolkit {toolkit} has no [[auth_config]]"));
                }
                first.map(|config| Arc::clone(&config.id))
            }
        }
    }

    fn faults(&mut self, specs: Vec<RuleSpec>, tools: &BTreeMap<String, Arc<Tool>>) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (index, spec) in specs.into_iter().enumerate() {
            let label = format!("[[fault]] number {}", index + 1);
            if spec.tool != "*" && !tools.contains_key(&spec.tool) {
                self.mistake(format!("{label}: tool \"{}\" does not exist", spec.tool));
            }
            match Rule::new(spec) {
                Ok(rule) => rules.push(rule),
                Err(mistakes) => {
                    for mistake in mistakes {
                        self.mistake(format!("{label}: {mistake}"));
                    }
                }
            }
        }
        rules
    }
}

impl LogSettings {
    pub(crate) fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.lose_rate) {
            return Err(format!("lose_rate is {}; it is a fraction from 0 to 1", self.lose_rate));
        }
        if self.refuse_status != 0 && !(400..=599).contains(&self.refuse_status) {
            return Err(format!("refuse_status is {}; it is 0 or from 400 to 599", self.refuse_status));
        }
        Ok(())
    }
}

/// TOML has times of its own, with and without quotes; to the rest of the file they are strings.
fn quote_times(value: &mut Value) {
    match value {
        Value::Datetime(time) => *value = Value::String(time.to_string()),
        Value::Array(items) => items.iter_mut().for_each(quote_times),
        Value::Table(entries) => entries.iter_mut().for_each(|(_, entry)| quote_times(entry)),
        Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => {}
    }
}

fn is_version(text: &str) -> bool {
    let digits = |part: &str, len| part.len() == len && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('_').is_some_and(|(date, number)| digits(date, 8) && digits(number, 2))
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ")
}
