//! Configuration files, and the environment beside them.

use std::collections::BTreeMap;

use errand::config::{ConfigErrors, Loaded, load_text};
use toml::{Table, Value};

use super::text::CANARY;

/// Begins a line that sets an environment variable. To TOML it is a comment, so that one file holds
/// both.
const ENV_LINE: &str = "#env ";

/// What cannot end well after any text: a password in the middle of a mistake.
const BROKEN_SECRETS: [&str; 3] = [
    "\n[store]\nurl = \"postgres://u:CANARY@h",
    "\nurl = postgres://u:CANARY@h\n",
    "\n\"api_key\" = 'CANARY\n",
];

/// Takes the bytes as a file, whose lines that begin with `#env ` are the environment. Returns
/// `loaded` or `refused`.
///
/// # Panics
/// A property does not hold.
pub fn config(bytes: &[u8]) -> &'static str {
    let text = String::from_utf8_lossy(bytes);
    if text.contains(CANARY) {
        // What the text says itself is no secret where it is not in the place of one.
        return "skipped";
    }
    let env = environment(&text);
    let outcome = load_text(&text, &env);
    match &outcome {
        Ok(loaded) => assert_shown_loads_again(loaded),
        Err(errors) => assert_told(errors),
    }
    for secrets in secrets() {
        let env = env.clone().into_iter().chain(secrets).collect();
        assert_no_canary(&everything_said(&load_text(&text, &env)));
    }
    if let Err(errors) = load_text(&with_marks(&text), &marked(&env)) {
        assert_no_canary(&errors.to_string());
    }
    for broken in BROKEN_SECRETS {
        let text = format!("{text}{}", broken.replace("CANARY", &CANARY.replace(' ', "%20")));
        if let Err(errors) = load_text(&text, &env) {
            assert_no_canary(&errors.to_string());
        }
    }
    match outcome {
        Ok(_) => "loaded",
        Err(_) => "refused",
    }
}

fn environment(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.strip_prefix(ENV_LINE)?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Environments that hold secrets in every place that is meant for one.
fn secrets() -> [[(String, String); 3]; 2] {
    let canary = CANARY.replace(' ', "%20");
    let of = |store: String, amqp: String| {
        [
            ("DATABASE_URL".to_owned(), store),
            ("AMQP_URL".to_owned(), amqp),
            ("COMPOSIO_API_KEY".to_owned(), canary.clone()),
        ]
    };
    [
        of(format!("postgres://errand:{canary}@db/errand"), format!("amqps://errand:{canary}@broker/%2f")),
        of(format!("postgres://db/errand?password={canary}"), format!("amqp://broker?auth_token={canary}")),
    ]
}

/// A person has to find each mistake.
fn assert_told(errors: &ConfigErrors) {
    assert!(!errors.0.is_empty());
    for mistake in &errors.0 {
        let names_key = mistake.message.matches('`').count() >= 2;
        assert!(names_key || mistake.origin.is_some(), "says not where: {mistake}");
        assert!(!mistake.message.trim().is_empty());
    }
}

/// What is shown is a configuration, and the same one but for its secrets.
fn assert_shown_loads_again(loaded: &Loaded) {
    let shown = loaded.to_toml(false);
    match load_text(&shown, &BTreeMap::new()) {
        Ok(again) => {
            let mut before = loaded.to_json(false);
            if let Some(settings) = before.as_object_mut() {
                settings.retain(|name, _| !name.starts_with("env_pins."));
            }
            assert_eq!(before, again.to_json(false));
        }
        Err(errors) => panic!("what is shown does not load: {errors}\n{shown}"),
    }
}

fn everything_said(outcome: &Result<Loaded, ConfigErrors>) -> String {
    match outcome {
        Ok(loaded) => format!("{loaded:?}{}{}", loaded.to_toml(true), loaded.to_json(true)),
        Err(errors) => format!("{errors}{errors:?}"),
    }
}

/// No part of the canary is enough, because the secrets carry it percent-encoded.
fn assert_no_canary(text: &str) {
    assert!(!text.contains("4711!") && !text.contains("Canary"), "tells a secret: {text}");
}

/// The same file with the canary at the end of every text in it; as it is when it is not TOML.
fn with_marks(text: &str) -> String {
    let marked = text.parse::<Table>().map(|table| mark(Value::Table(table)));
    marked.ok().and_then(|table| toml::to_string(&table).ok()).unwrap_or_else(|| text.to_owned())
}

fn mark(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(format!("{text}{CANARY}")),
        Value::Array(items) => Value::Array(items.into_iter().map(mark).collect()),
        Value::Table(table) => {
            Value::Table(table.into_iter().map(|(key, value)| (key, mark(value))).collect())
        }
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => value,
    }
}

fn marked(env: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    env.iter().map(|(name, value)| (name.clone(), format!("{value}{CANARY}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use errand::config::Mistake;

    #[test]
    fn the_environment_is_in_the_comments() {
        let env = environment("#env A=b=c\n# env X=y\n[log]\nlevel = \"#env N=o\"\n#env A\n");
        assert_eq!(env, BTreeMap::from([("A".to_owned(), "b=c".to_owned())]));
    }

    #[test]
    #[should_panic(expected = "says not where")]
    fn a_mistake_that_nobody_finds_is_noticed() {
        let message = "the settings cannot be read".to_owned();
        assert_told(&ConfigErrors(vec![Mistake { message, origin: None }]));
    }

    #[test]
    #[should_panic(expected = "tells a secret")]
    fn a_secret_that_is_told_is_noticed() {
        assert_no_canary(&format!("the password {} is wrong", CANARY.replace(' ', "%20")));
    }

    #[test]
    fn secrets_are_planted_where_they_are_read() {
        use secrecy::ExposeSecret as _;
        for secrets in secrets() {
            let config = load_text("", &BTreeMap::from(secrets)).unwrap().config;
            for secret in [config.store.url, config.amqp.url, config.composio.api_key] {
                assert!(secret.expose_secret().contains("4711!"));
            }
        }
    }

    #[test]
    fn every_text_of_a_file_is_marked() {
        let marked = with_marks("[log]\nlevel = \"info\"\n[worker]\nqueues = [\"a\"]\n");
        assert_eq!(marked.matches(CANARY).count(), 2);
        assert_eq!(with_marks("= 1"), "= 1");
    }
}
