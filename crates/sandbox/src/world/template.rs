//! What a tool answers: a JSON value with placeholders, compiled once so that rendering it is
//! little more than copying bytes.
//!
//! A string that is one placeholder and nothing else becomes the placeholder's JSON value; inside a
//! longer string a placeholder becomes text. `{name}` is an argument; the `{@…}` words are listed
//! in [`Source::parse`].

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, value::RawValue};

use crate::seeded::draw;

/// The arguments of one call, each as the JSON text the caller sent.
pub(crate) type Arguments<'a> = BTreeMap<String, &'a RawValue>;

/// What the placeholders of one call stand for.
pub(crate) struct Facts<'a> {
    pub(crate) arguments: &'a Arguments<'a>,
    /// All arguments as they came, or `{}`.
    pub(crate) all_arguments: &'a str,
    pub(crate) user: &'a str,
    pub(crate) account: &'a str,
    pub(crate) version: &'a str,
    pub(crate) now: Timestamp,
    /// Differs for each call.
    pub(crate) unique: u64,
    /// The same for calls of the same tool with the same arguments.
    pub(crate) stable: u64,
}

/// A compiled result.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

impl Template {
    /// Compiles `value`; `Err` names each placeholder that means nothing.
    pub(crate) fn compile(value: &Value, is_parameter: &dyn Fn(&str) -> bool) -> Result<Self, Vec<String>> {
        let mut compiler =
            Compiler { parts: Vec::new(), text: String::new(), unknown: Vec::new(), is_parameter };
        compiler.value(value);
        compiler.flush();
        if compiler.unknown.is_empty() { Ok(Self { parts: compiler.parts }) } else { Err(compiler.unknown) }
    }

    /// Whether a placeholder needs [`Facts::stable`], which costs a pass over the arguments.
    pub(crate) fn uses_stable(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Json(Source::Key) | Part::Text(Source::Key)))
    }

    /// Appends the JSON text of the result.
    pub(crate) fn render(&self, facts: &Facts<'_>, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Verbatim(text) => out.extend_from_slice(text.as_bytes()),
                Part::Json(source) => source.write_json(facts, out),
                Part::Text(source) => source.write_text(facts, out),
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Part {
    Verbatim(Box<str>),
    Json(Source),
    Text(Source),
}

#[derive(Debug, Clone)]
enum Source {
    Argument(Box<str>),
    Arguments,
    User,
    Account,
    Version,
    Now,
    Id,
    Key,
    Null,
}

impl Source {
    fn parse(word: &str, is_parameter: &dyn Fn(&str) -> bool) -> Option<Self> {
        Some(match word {
            "@arguments" => Self::Arguments,
            "@user" => Self::User,
            "@account" => Self::Account,
            "@version" => Self::Version,
            "@now" => Self::Now,
            "@id" => Self::Id,
            "@key" => Self::Key,
            "@null" => Self::Null,
            name if is_parameter(name) => Self::Argument(name.into()),
            _ => return None,
        })
    }

    fn write_json(&self, facts: &Facts<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Argument(name) => {
                let json = facts.arguments.get(&**name).map_or("null", |raw| raw.get());
                out.extend_from_slice(json.as_bytes());
            }
            Self::Arguments => out.extend_from_slice(facts.all_arguments.as_bytes()),
            Self::Id | Self::Key => self.write_text(facts, out),
            Self::Null => out.extend_from_slice(b"null"),
            Self::User | Self::Account | Self::Version | Self::Now => {
                out.push(b'"');
                self.write_text(facts, out);
                out.push(b'"');
            }
        }
    }

    fn write_text(&self, facts: &Facts<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Argument(name) => {
                let json = facts.arguments.get(&**name).map_or("", |raw| raw.get());
                match json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
                    // A JSON string is escaped already.
                    Some(inner) => out.extend_from_slice(inner.as_bytes()),
                    None => escape(json, out),
                }
            }
            Self::Arguments => escape(facts.all_arguments, out),
            Self::User => escape(facts.user, out),
            Self::Account => escape(facts.account, out),
            Self::Version => escape(facts.version, out),
            Self::Now => out.extend_from_slice(format!("{:.3}", facts.now).as_bytes()),
            // Nine digits look like the IDs that providers give, and survive a double.
            Self::Id => number(draw(facts.unique, 1, 0), out),
            Self::Key => number(draw(facts.stable, 2, 0), out),
            Self::Null => {}
        }
    }
}

struct Compiler<'a> {
    parts: Vec<Part>,
    text: String,
    unknown: Vec<String>,
    is_parameter: &'a dyn Fn(&str) -> bool,
}

impl Compiler<'_> {
    fn value(&mut self, value: &Value) {
        match value {
            Value::Object(members) => {
                self.text.push('{');
                for (index, (name, member)) in members.iter().enumerate() {
                    if index > 0 {
                        self.text.push(',');
                    }
                    self.text.push_str(&Value::from(name.as_str()).to_string());
                    self.text.push(':');
                    self.value(member);
                }
                self.text.push('}');
            }
            Value::Array(items) => {
                self.text.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        self.text.push(',');
                    }
                    self.value(item);
                }
                self.text.push(']');
            }
            Value::String(text) => self.string(text),
            Value::Null | Value::Bool(_) | Value::Number(_) => self.text.push_str(&value.to_string()),
        }
    }

    fn string(&mut self, text: &str) {
        if let Some(word) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'))
            && !word.contains(['{', '}'])
        {
            if let Some(source) = self.source(word) {
                self.flush();
                self.parts.push(Part::Json(source));
            }
            return;
        }
        self.text.push('"');
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            self.push_escaped(before);
            let Some((word, after)) = after.split_once('}') else {
                self.unknown.push(format!("`{text}` has a brace that is not closed"));
                return;
            };
            if let Some(source) = self.source(word) {
                self.flush();
                self.parts.push(Part::Text(source));
            }
            rest = after;
        }
        self.push_escaped(rest);
        self.text.push('"');
    }

    fn source(&mut self, word: &str) -> Option<Source> {
        let source = Source::parse(word, self.is_parameter);
        if source.is_none() {
            self.unknown.push(format!("placeholder {{{word}}} is neither a parameter nor a known word"));
        }
        source
    }

    fn push_escaped(&mut self, text: &str) {
        let mut bytes = Vec::new();
        escape(text, &mut bytes);
        self.text.push_str(&String::from_utf8_lossy(&bytes));
    }

    fn flush(&mut self) {
        if !self.text.is_empty() {
            self.parts.push(Part::Verbatim(std::mem::take(&mut self.text).into()));
        }
    }
}

/// Appends `text` as it stands inside a JSON string.
fn escape(text: &str, out: &mut Vec<u8>) {
    let plain = text.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\');
    if plain {
        out.extend_from_slice(text.as_bytes());
    } else {
        let quoted = Value::from(text).to_string();
        out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
    }
}

fn number(bits: u64, out: &mut Vec<u8>) {
    let number = 100_000_000 + bits % 900_000_000;
    out.extend_from_slice(number.to_string().as_bytes());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(template: Value, arguments: &str) -> Value {
        let known = |name: &str| matches!(name, "owner" | "n" | "text");
        let template = Template::compile(&template, &known).unwrap();
        let parsed: Arguments<'_> = serde_json::from_str(arguments).unwrap();
        let facts = Facts {
            arguments: &parsed,
            all_arguments: arguments,
            user: "u\"1",
            account: "ca_1",
            version: "20250101_00",
            now: Timestamp::UNIX_EPOCH,
            unique: 1,
            stable: 2,
        };
        let mut out = Vec::new();
        template.render(&facts, &mut out);
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_lone_placeholder_keeps_its_type_and_an_inner_one_becomes_text() {
        let answer = render(
            json!({"n": "{n}", "url": "https://x/{owner}/{n}", "by": "{@user}", "none": "{text}", "list": ["{@now}"]}),
            r#"{"owner":"a\"b","n":7}"#,
        );
        assert_eq!(
            answer,
            json!({"n": 7, "url": "https://x/a\"b/7", "by": "u\"1", "none": null, "list": ["1970-01-01T00:00:00.000Z"]})
        );
    }

    #[test]
    fn unknown_placeholders_are_all_named() {
        let mistakes = Template::compile(&json!(["{nope}", "a {@what} b"]), &|_| false).unwrap_err();
        assert_eq!(mistakes.len(), 2);
        assert!(mistakes[0].contains("nope") && mistakes[1].contains("@what"));
    }
}
