//! Rows of requests and of what their answers must hold, read from TOML.

use std::collections::BTreeMap;

use errand_sandbox::DEFAULT_WORLD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::bench::{Answer, Ask, Bench, KEY, PINNED, REPO};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    row: Vec<Row>,
}

/// A fresh sandbox, what is changed about it, and the requests in order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) id: String,
    /// Lines of the default world, and what stands there instead.
    #[serde(default)]
    switch: Vec<[String; 2]>,
    #[serde(default)]
    faults: Vec<Value>,
    step: Vec<Step>,
    /// How many effects there must be in the end.
    effects: Option<u64>,
    /// The account that the last effect must have used.
    uses: Option<String>,
}

/// A request, and what its answer must be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// Method and path.
    #[serde(default = "repo")]
    request: String,
    /// Of a call that does not write out its body.
    #[serde(default = "alice")]
    user: String,
    account: Option<String>,
    #[serde(default = "pinned")]
    version: String,
    /// The whole body instead.
    json: Option<Value>,
    raw: Option<String>,
    /// Empty for none.
    #[serde(default = "key")]
    key: String,
    /// Headers.
    #[serde(default)]
    with: BTreeMap<String, String>,

    #[serde(default = "ok")]
    status: u16,
    /// Values at JSON pointers.
    #[serde(default)]
    at: BTreeMap<String, Value>,
    /// Pointers to null, which TOML cannot write.
    #[serde(default)]
    is_null: Vec<String>,
    /// Pointers to nothing.
    #[serde(default)]
    absent: Vec<String>,
    /// Pointers to equal values.
    #[serde(default)]
    same: Vec<[String; 2]>,
    #[serde(default)]
    types: BTreeMap<String, Type>,
    /// How texts begin.
    #[serde(default)]
    begins: BTreeMap<String, String>,
    /// What arrays have among others.
    #[serde(default)]
    includes: BTreeMap<String, Vec<Value>>,
    /// The IDs of all `items`, in order.
    ids: Option<Vec<String>>,
    #[serde(default)]
    message_contains: Vec<String>,
    #[serde(default)]
    error_contains: Vec<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    has_headers: Vec<String>,
    #[serde(default)]
    lacks_headers: Vec<String>,
    /// What the whole text contains.
    #[serde(default)]
    contains: Vec<String>,
    #[serde(default)]
    lacks: Vec<String>,
    body: Option<Body>,
    #[serde(default)]
    min_bytes: usize,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Type {
    Array,
    Object,
    String,
    /// A string that is not empty.
    Text,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
enum Body {
    #[serde(rename = "empty")]
    Empty,
    #[serde(rename = "not JSON")]
    NotJson,
}

fn repo() -> String {
    format!("POST {REPO}")
}

fn alice() -> String {
    "u-alice".to_owned()
}

fn pinned() -> String {
    PINNED.to_owned()
}

fn key() -> String {
    KEY.to_owned()
}

fn ok() -> u16 {
    200
}

pub(crate) fn rows(table: &str) -> Vec<Row> {
    toml::from_str::<Table>(table).unwrap().row
}

/// Runs every row, and reports all that fail together.
pub(crate) async fn run(rows: Vec<Row>) {
    let mut failed = Vec::new();
    for row in rows {
        let id = row.id.clone();
        // A panic of one row must not hide the rows after it.
        if let Err(error) = tokio::spawn(row.run()).await {
            let panic = error.into_panic();
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked");
            failed.push(format!("{id}: {text}"));
        }
    }
    assert!(failed.is_empty(), "{} row(s) failed:\n{}", failed.len(), failed.join("\n"));
}

impl Row {
    async fn run(self) {
        let bench = Bench::start(&self.world()).await;
        if !self.faults.is_empty() {
            bench.set_faults(json!(self.faults)).await;
        }
        for step in &self.step {
            step.verify(&bench.send(&step.ask()).await.unwrap());
        }
        if let Some(effects) = self.effects {
            assert_eq!(bench.running.ledger_summary().effects, effects, "effects");
        }
        if let Some(account) = &self.uses {
            let effects = bench.get("/_sandbox/ledger/effects").await;
            assert_eq!(effects["items"].as_array().unwrap().last().unwrap()["account"], account.as_str());
        }
        bench.running.stop().await;
    }

    fn world(&self) -> String {
        let mut world = DEFAULT_WORLD.to_owned();
        for [from, to] in &self.switch {
            let line = format!("\n{from}\n");
            assert!(world.contains(&line), "the world has no line {from}");
            world = world.replacen(&line, &format!("\n{to}\n"), 1);
        }
        world
    }
}

impl Step {
    fn ask(&self) -> Ask {
        let (method, path) = self.request.split_once(' ').unwrap();
        let mut ask = Ask::new(method.parse().unwrap(), path);
        ask = ask.key(Some(self.key.as_str()).filter(|key| !key.is_empty()));
        for (name, value) in &self.with {
            ask = ask.with(name, value);
        }
        match (&self.json, &self.raw) {
            (Some(json), _) => ask.json(json.clone()),
            (None, Some(raw)) => ask.raw(raw),
            (None, None) if method == "POST" && path.contains("/tools/execute/") => ask.json(self.call()),
            (None, None) => ask,
        }
    }

    fn call(&self) -> Value {
        let mut call = crate::bench::repo_body(&self.user);
        call["version"] = json!(self.version);
        if let Some(account) = &self.account {
            call["connected_account_id"] = json!(account);
        }
        call
    }

    fn verify(&self, answer: &Answer) {
        let what = &self.request;
        assert_eq!(answer.status, self.status, "{what} answered {}", answer.text());
        self.verify_values(answer);
        for (name, value) in &self.headers {
            let found = answer.headers.get(name).unwrap_or_else(|| panic!("{what} has no header {name}"));
            assert_eq!(found, value, "{what} header {name}");
        }
        for (names, are_there) in [(&self.has_headers, true), (&self.lacks_headers, false)] {
            for name in names {
                assert_eq!(answer.headers.contains_key(name), are_there, "{what} header {name}");
            }
        }
        let text = answer.text();
        for (parts, are_there) in [(&self.contains, true), (&self.lacks, false)] {
            for part in parts {
                assert_eq!(text.contains(part), are_there, "{what}: {part} in {text}");
            }
        }
        assert!(answer.body.len() >= self.min_bytes, "{what}: {} bytes", answer.body.len());
        match self.body {
            None => {}
            Some(Body::Empty) => assert!(answer.body.is_empty(), "{what} answered {text}"),
            Some(Body::NotJson) => {
                assert!(answer.try_json().is_none() && !answer.body.is_empty(), "{what} answered {text}");
            }
        }
    }

    fn verify_values(&self, answer: &Answer) {
        let what = &self.request;
        for (pointer, value) in &self.at {
            assert_eq!(&answer.at(pointer), value, "{what} at {pointer}");
        }
        for pointer in &self.is_null {
            assert_eq!(answer.at(pointer), Value::Null, "{what} at {pointer}");
        }
        for pointer in &self.absent {
            assert_eq!(answer.json().pointer(pointer), None, "{what} at {pointer}");
        }
        for [one, other] in &self.same {
            assert_eq!(answer.at(one), answer.at(other), "{what} at {one} and {other}");
        }
        for (pointer, type_of) in &self.types {
            let found = answer.at(pointer);
            let fits = match type_of {
                Type::Array => found.is_array(),
                Type::Object => found.is_object(),
                Type::String => found.is_string(),
                Type::Text => found.as_str().is_some_and(|text| !text.is_empty()),
            };
            assert!(fits, "{what} at {pointer}: {found} is no {type_of:?}");
        }
        for (pointer, start) in &self.begins {
            let found = answer.at(pointer);
            assert!(
                found.as_str().is_some_and(|text| text.starts_with(start)),
                "{what} at {pointer}: {found}"
            );
        }
        for (pointer, values) in &self.includes {
            let found = answer.at(pointer);
            for value in values {
                assert!(found.as_array().unwrap().contains(value), "{what} at {pointer}: {value} in {found}");
            }
        }
        if let Some(ids) = &self.ids {
            let found = answer.at("/items");
            let found: Vec<&Value> = found.as_array().unwrap().iter().map(|item| &item["id"]).collect();
            assert_eq!(found, ids.iter().collect::<Vec<_>>(), "{what}");
        }
        for (pointer, parts) in [("/error/message", &self.message_contains), ("/error", &self.error_contains)]
        {
            for part in parts {
                let found = answer.at(pointer);
                assert!(
                    found.as_str().is_some_and(|text| text.contains(part)),
                    "{what} at {pointer}: {found}"
                );
            }
        }
    }
}
