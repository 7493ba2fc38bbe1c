//! The effective settings for people and programs, with every secret masked.

use std::fmt::Write as _;

use serde_json::json;
use toml::Value;

use super::{
    error::Origin,
    load::Loaded,
    mask::{MASK, mask_url},
    names::Key,
    rule::Rule,
    values::Setting,
};

impl Loaded {
    /// The settings as TOML, in the order of the manual. With `origins`, each line says where its value came from.
    pub fn to_toml(&self, origins: bool) -> String {
        let mut out = String::new();
        let mut section: &[String] = &[];
        for (key, setting) in self.in_order() {
            let Some((last, parents)) = key.0.split_last() else { continue };
            if section != parents {
                section = parents;
                let gap = if out.is_empty() { "" } else { "\n" };
                // Writing to a String cannot fail, here and below.
                let _infallible = writeln!(out, "{gap}[{}]", Key(parents.to_vec()));
            }
            let _infallible = write!(out, "{} = {}", Key(vec![last.clone()]), shown(key, setting));
            if origins {
                let _infallible = write!(out, "  # {}", setting.origin);
            }
            out.push('\n');
        }
        if !self.config.env_pins.is_empty() {
            out.push_str("\n# Pins of the environment, which are weaker than [toolkit_versions]:\n");
            for (toolkit, version) in &self.config.env_pins {
                let _infallible = write!(out, "# {toolkit} = \"{version}\"");
                if let Some(origin) = self.pin_origins.get(toolkit).filter(|_| origins) {
                    let _infallible = write!(out, "  # {origin}");
                }
                out.push('\n');
            }
        }
        out
    }

    /// The settings as one JSON object, by their full names. With `origins`, each has its `value` and its `origin`.
    pub fn to_json(&self, origins: bool) -> serde_json::Value {
        let entry = |value: serde_json::Value, origin: Option<&Origin>| match origin.filter(|_| origins) {
            Some(origin) => json!({"value": value, "origin": origin.to_string()}),
            None => value,
        };
        let settings = self.in_order().into_iter().map(|(key, setting)| {
            (key.to_string(), entry(json!(shown(key, setting)), Some(&setting.origin)))
        });
        let pins = self.config.env_pins.iter().map(|(toolkit, version)| {
            (format!("env_pins.{toolkit}"), entry(json!(version), self.pin_origins.get(toolkit)))
        });
        settings.chain(pins).collect::<serde_json::Map<_, _>>().into()
    }

    fn in_order(&self) -> Vec<(&Key, &Setting)> {
        let mut all: Vec<_> = self.settings.0.iter().collect();
        all.sort_by_key(|(key, _)| key.position());
        all
    }
}

fn shown(key: &Key, setting: &Setting) -> Value {
    match (key.rule(), &setting.value) {
        (Some(rule), Value::String(text)) if rule.is_secret() && !text.is_empty() => {
            Value::String(match rule {
                Rule::Service(_) => mask_url(text),
                _ => MASK.to_owned(),
            })
        }
        (_, value) => value.clone(),
    }
}
