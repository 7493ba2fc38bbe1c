//! The schema by which arguments are checked, made of the one that the tool API gives: what the vendor's rule says that
//! plain JSON Schema does not is written into it, references are replaced with what they mean, and of the keywords only
//! those stay that say whether a value fits.
//!
//! The rule: an object schema that names properties and says nothing about further ones refuses those. One that names none
//! is open. Where several schemas apply to the same object, each names its own part of it, so these stay open.

use serde_json::{Map, Value, json};

/// The largest schema that is used, in bytes.
pub const MAX_SCHEMA_BYTES: usize = 64 * 1024;

/// Most schemas in it once references are replaced, which bounds the memory and the time of following it.
const MAX_PARTS: usize = 10_000;

/// The deepest nesting of schemas, once references are replaced.
const MAX_DEPTH: usize = 48;

/// The words that say whether a value fits by itself, without another schema.
const ASSERTIONS: [&str; 17] = [
    "type",
    "enum",
    "const",
    "multipleOf",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "maxProperties",
    "minProperties",
    "required",
];

/// A schema that can be followed within bounds.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) schema: Value,
    /// How many schemas it is made of, with the values of its lists.
    pub(super) parts: usize,
}

/// Why a schema is not used, for the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unusable(pub(super) &'static str);

const TOO_LARGE: Unusable = Unusable("it is too large");
const NO_SCHEMA: Unusable = Unusable("a part of it is neither an object nor true or false");
const RECURSIVE: Unusable = Unusable("it refers to itself where only the whole of it says what fits");

/// What is done with the objects that a schema is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Objects {
    /// The vendor's rule holds.
    Closed,
    /// Other schemas are about the same object.
    Open,
}

pub(super) fn prepare(schema: &str) -> Result<Prepared, Unusable> {
    if schema.len() > MAX_SCHEMA_BYTES {
        return Err(TOO_LARGE);
    }
    let root: Value = serde_json::from_str(schema).map_err(|_| Unusable("it is no JSON that can be read"))?;
    let mut maker = Maker { root: &root, parts: 0, refers: Vec::new(), cut: false, exact: false };
    let schema = maker.make(&root, Objects::Closed, 0)?;
    // Beyond a reference that leads back, everything is taken to fit. That must not make anything else unfit.
    if maker.cut && maker.exact {
        return Err(RECURSIVE);
    }
    Ok(Prepared { schema, parts: maker.parts })
}

struct Maker<'a> {
    root: &'a Value,
    parts: usize,
    /// The references that are being replaced, from the outermost on.
    refers: Vec<&'a str>,
    /// Whether one led back into itself and was cut off.
    cut: bool,
    /// Whether a schema counts what does not fit (`not`, `oneOf`, `if`).
    exact: bool,
}

impl<'a> Maker<'a> {
    fn make(&mut self, schema: &'a Value, objects: Objects, depth: usize) -> Result<Value, Unusable> {
        self.count(1)?;
        if depth > MAX_DEPTH {
            return Err(Unusable("it is nested too deeply"));
        }
        let schema = match schema {
            Value::Bool(open) => return Ok(Value::Bool(*open)),
            Value::Object(schema) => schema,
            Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) => return Err(NO_SCHEMA),
        };
        // Its neighbours mean nothing in Draft 7.
        if let Some(target) = schema.get("$ref") {
            return self.refer(target, objects, depth);
        }
        if depth > 0 && schema.contains_key("$id") {
            return Err(Unusable("a part of it has an `$id` of its own"));
        }
        let mut made = Map::new();
        for word in ASSERTIONS {
            if let Some(value) = schema.get(word) {
                self.count(value.as_array().map_or(0, Vec::len))?;
                made.insert(word.to_owned(), value.clone());
            }
        }
        self.of_members(schema, &mut made, depth)?;
        self.of_items(schema, &mut made, depth)?;
        let others = self.of_the_same_value(schema, objects, &mut made, depth)?;
        if objects == Objects::Closed
            && others == Others::NameNothing
            && names_properties(schema)
            && !schema.contains_key("additionalProperties")
        {
            made.insert("additionalProperties".to_owned(), Value::Bool(false));
        }
        Ok(or_null(schema, made))
    }

    fn count(&mut self, parts: usize) -> Result<(), Unusable> {
        self.parts = self.parts.saturating_add(parts);
        if self.parts > MAX_PARTS { Err(TOO_LARGE) } else { Ok(()) }
    }

    fn refer(&mut self, target: &'a Value, objects: Objects, depth: usize) -> Result<Value, Unusable> {
        const ELSEWHERE: Unusable = Unusable("it refers to something outside of itself");
        let target = target.as_str().ok_or(NO_SCHEMA)?;
        if self.refers.contains(&target) {
            self.cut = true;
            return Ok(Value::Bool(true));
        }
        let pointer = target.strip_prefix('#').ok_or(ELSEWHERE)?;
        let found = self.root.pointer(&unescaped(pointer).ok_or(ELSEWHERE)?).ok_or(ELSEWHERE)?;
        self.refers.push(target);
        let made = self.make(found, objects, depth + 1);
        self.refers.pop();
        made
    }

    /// The schemas of the members of an object.
    fn of_members(
        &mut self,
        schema: &'a Map<String, Value>,
        made: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), Unusable> {
        for word in ["properties", "patternProperties"] {
            if let Some(named) = schema.get(word) {
                let named = self.map(named, Objects::Closed, depth)?;
                made.insert(word.to_owned(), named);
            }
        }
        for word in ["additionalProperties", "propertyNames"] {
            if let Some(inner) = schema.get(word) {
                let inner = self.make(inner, Objects::Closed, depth + 1)?;
                made.insert(word.to_owned(), inner);
            }
        }
        Ok(())
    }

    /// The schemas of the items of a list.
    fn of_items(
        &mut self,
        schema: &'a Map<String, Value>,
        made: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), Unusable> {
        for word in ["items", "additionalItems"] {
            let inner = match schema.get(word) {
                None => continue,
                Some(Value::Array(each)) => self.list(each, Objects::Closed, depth)?,
                Some(every) => self.make(every, Objects::Closed, depth + 1)?,
            };
            made.insert(word.to_owned(), inner);
        }
        if let Some(inner) = schema.get("contains") {
            let inner = self.make(inner, Objects::Open, depth + 1)?;
            made.insert("contains".to_owned(), inner);
        }
        Ok(())
    }

    /// The schemas that are about the same value. Says whether they name properties, too.
    fn of_the_same_value(
        &mut self,
        schema: &'a Map<String, Value>,
        objects: Objects,
        made: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<Others, Unusable> {
        const LISTS: [&str; 3] = ["anyOf", "oneOf", "allOf"];
        const SINGLE: [&str; 4] = ["not", "if", "then", "else"];
        let is_combined = |word: &&str| schema.contains_key(*word);
        let combined =
            LISTS.iter().chain(&SINGLE).chain(&["dependencies"]).filter(|word| is_combined(word)).count();
        for word in LISTS {
            let Some(inner) = schema.get(word) else { continue };
            let inner = inner.as_array().ok_or(NO_SCHEMA)?;
            self.exact |= word == "oneOf";
            // A choice between schemas, or a list of one, is the only one to name what the object has.
            let is_whole = objects == Objects::Closed
                && combined == 1
                && !names_properties(schema)
                && (word != "allOf" || inner.len() == 1);
            let objects = if is_whole { Objects::Closed } else { Objects::Open };
            let inner = self.list(inner, objects, depth)?;
            made.insert(word.to_owned(), inner);
        }
        for word in SINGLE {
            let Some(inner) = schema.get(word) else { continue };
            self.exact |= word == "not" || word == "if";
            let inner = self.make(inner, Objects::Open, depth + 1)?;
            made.insert(word.to_owned(), inner);
        }
        if let Some(inner) = schema.get("dependencies") {
            let inner = self.map(inner, Objects::Open, depth)?;
            made.insert("dependencies".to_owned(), inner);
        }
        // What is between them has to be looked for in depth; what was made has no references any more.
        let words = LISTS.iter().chain(&SINGLE).chain(&["dependencies"]);
        let names = words.filter_map(|word| made.get(*word)).any(mentions_properties);
        Ok(if names { Others::NameProperties } else { Others::NameNothing })
    }

    fn list(&mut self, each: &'a [Value], objects: Objects, depth: usize) -> Result<Value, Unusable> {
        let made: Result<Vec<Value>, _> = each.iter().map(|one| self.make(one, objects, depth + 1)).collect();
        Ok(Value::Array(made?))
    }

    /// Schemas by name. A list of names, as `dependencies` has them, stays as it is.
    fn map(&mut self, named: &'a Value, objects: Objects, depth: usize) -> Result<Value, Unusable> {
        let named = named.as_object().ok_or(NO_SCHEMA)?;
        let made: Result<Map<String, Value>, Unusable> = named
            .iter()
            .map(|(name, schema)| {
                let made = match schema {
                    Value::Array(_) => {
                        self.count(1)?;
                        schema.clone()
                    }
                    schema => self.make(schema, objects, depth + 1)?,
                };
                Ok((name.clone(), made))
            })
            .collect();
        Ok(Value::Object(made?))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    NameNothing,
    NameProperties,
}

fn names_properties(schema: &Map<String, Value>) -> bool {
    schema.get("properties").and_then(Value::as_object).is_some_and(|named| !named.is_empty())
}

/// Whether a schema that was made, or one that it combines, names properties of the same value.
fn mentions_properties(made: &Value) -> bool {
    match made {
        Value::Array(each) => each.iter().any(mentions_properties),
        Value::Object(made) => {
            names_properties(made)
                || made.iter().any(|(word, inner)| match word.as_str() {
                    "anyOf" | "oneOf" | "allOf" | "not" | "if" | "then" | "else" => {
                        mentions_properties(inner)
                    }
                    "dependencies" => {
                        inner.as_object().is_some_and(|map| map.values().any(mentions_properties))
                    }
                    _ => false,
                })
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Descriptions of before 2026 say by `nullable`, or by a `default`, that a value may be null.
fn or_null(schema: &Map<String, Value>, made: Map<String, Value>) -> Value {
    let is_nullable = schema.get("nullable") == Some(&Value::Bool(true));
    if made.is_empty() || !(is_nullable || schema.get("default") == Some(&Value::Null)) {
        return Value::Object(made);
    }
    json!({ "anyOf": [Value::Object(made), { "type": "null" }] })
}

/// A fragment of a URI as a JSON pointer. `None` for what is neither.
fn unescaped(fragment: &str) -> Option<String> {
    if !fragment.is_empty() && !fragment.starts_with('/') {
        return None;
    }
    if !fragment.contains('%') {
        return Some(fragment.to_owned());
    }
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                bytes.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
                rest = after;
            }
            (other, _) => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).ok()
}
