//! The description of the API as a page to read. It is one file without scripts, fonts or images, so that it needs nothing
//! but itself.

use std::fmt::{self, Display, Write as _};

use serde_json::Value;

/// What the page may load: nothing. Its style is in it.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
                                 frame-ancestors 'none'";

const STYLE: &str = include_str!("docs_page.css");

/// The text of a page about an OpenAPI document, of an API that is reached at `base`.
pub(super) fn render(document: &Value, base: &str) -> Result<String, fmt::Error> {
    let mut page = Page { html: String::new(), base };
    page.write(document)?;
    Ok(page.html)
}

/// Text, with what HTML would read otherwise replaced.
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            c => f.write_char(c),
        })
    }
}

/// The text of a value, with what stands between backticks as code.
struct Prose<'a>(&'a Value);

impl Display for Prose<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, part) in text(self.0).split('`').enumerate() {
            match at % 2 {
                0 => write!(f, "{}", Text(part))?,
                _ => write!(f, "<code>{}</code>", Text(part))?,
            }
        }
        Ok(())
    }
}

/// The type that a schema means, in a few words.
struct Type<'a>(&'a Value);

impl Display for Type<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schema = self.0;
        if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
            let name = Text(name);
            return write!(f, "<a href=\"#{name}\">{name}</a>");
        }
        if let Some(words) = schema["enum"].as_array() {
            return between_all(f, ", ", words, |f, word| write!(f, "<code>{}</code>", Text(&plain(word))));
        }
        if let Some(items) = schema.get("items") {
            return write!(f, "list of {}", Type(items));
        }
        match &schema["type"] {
            Value::Array(types) => between_all(f, " or ", types, |f, one| write!(f, "{}", Text(text(one))))?,
            Value::String(one) => write!(f, "{}", Text(one))?,
            _ => return choices(f, schema),
        }
        // How wide an integer is matters to nobody who reads.
        if let Some(format) = schema["format"].as_str().filter(|format| !format.starts_with("int")) {
            write!(f, " ({})", Text(format))?;
        }
        if let (Some(least), Some(most)) = (schema["minimum"].as_i64(), schema["maximum"].as_i64()) {
            write!(f, " from {least} to {most}")?;
        }
        Ok(())
    }
}

fn choices(f: &mut fmt::Formatter<'_>, schema: &Value) -> fmt::Result {
    if let Some(all) = schema["oneOf"].as_array() {
        return between_all(f, " or ", all, |f, one| write!(f, "{}", Type(one)));
    }
    // What a named schema has to be besides is said in words.
    match list(&schema["allOf"]).find(|part| part.get("$ref").is_some()) {
        Some(named) => write!(f, "{}", Type(named)),
        None => f.write_str("anything"),
    }
}

fn between_all(
    f: &mut fmt::Formatter<'_>,
    between: &str,
    all: &[Value],
    one: impl Fn(&mut fmt::Formatter<'_>, &Value) -> fmt::Result,
) -> fmt::Result {
    for (at, value) in all.iter().enumerate() {
        if at > 0 {
            f.write_str(between)?;
        }
        one(f, value)?;
    }
    Ok(())
}

/// The description of a property, which stands beside its type where it may be `null`, too.
fn description(property: &Value) -> &Value {
    let inner = || list(&property["oneOf"]).find_map(|one| one.get("description"));
    property.get("description").or_else(inner).unwrap_or(&Value::Null)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A value without the quotation marks of JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

struct Page<'a> {
    html: String,
    base: &'a str,
}

impl Page<'_> {
    fn write(&mut self, document: &Value) -> fmt::Result {
        let info = &document["info"];
        let title = format!("{} {}", text(&info["title"]), text(&info["version"]));
        write!(
            self.html,
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
             content=\"width=device-width\"><title>{0}</title><style>{STYLE}</style><h1>{0}</h1><p>{1}</p>\
             <p>The same for programs: <a href=\"/openapi.json\">/openapi.json</a></p><nav><ul>",
            Text(&title),
            Prose(&info["description"]),
        )?;
        // What the API is for comes before its description.
        let mut operations: Vec<_> = entries(&document["paths"])
            .flat_map(|(path, item)| entries(item).map(move |(method, operation)| (path, method, operation)))
            .collect();
        operations.sort_by_key(|(path, ..)| !path.starts_with("/v1/"));
        for (path, method, operation) in &operations {
            write!(
                self.html,
                "<li><a href=\"#{}\"><b>{}</b> {}</a> {}",
                Text(text(&operation["operationId"])),
                Text(&method.to_uppercase()),
                Text(path),
                Prose(&operation["summary"]),
            )?;
        }
        self.html.push_str("</ul></nav>");
        for (path, method, operation) in operations {
            self.operation(document, path, method, operation)?;
        }
        self.html.push_str("<h2>Schemas</h2>");
        for (name, schema) in entries(&document["components"]["schemas"]) {
            self.schema(name, schema)?;
        }
        Ok(())
    }

    fn operation(&mut self, document: &Value, path: &str, method: &str, operation: &Value) -> fmt::Result {
        write!(
            self.html,
            "<section id=\"{}\"><h2><b>{}</b> {}</h2><p><strong>{}.</strong> {}</p>",
            Text(text(&operation["operationId"])),
            Text(&method.to_uppercase()),
            Text(path),
            Prose(&operation["summary"]),
            Prose(&operation["description"]),
        )?;
        self.scopes(&operation["security"])?;
        let body = &operation["requestBody"]["content"]["application/json"];
        self.table("Parameters", list(&operation["parameters"]), |html, parameter| {
            write!(
                html,
                "<td><code>{}</code> <i>{}</i><td>{}<td>{}",
                Text(text(&parameter["name"])),
                Text(text(&parameter["in"])),
                Type(&parameter["schema"]),
                Prose(&parameter["description"]),
            )
        })?;
        if !body.is_null() {
            write!(self.html, "<h3>Body</h3><p>JSON: {}</p>", Type(&body["schema"]))?;
            self.parts(&body["schema"])?;
        }
        self.table("Answers", entries(&operation["responses"]), |html, (status, answer)| {
            write!(html, "<td><b>{}</b><td>{}<td>", Text(status), Prose(&answer["description"]))?;
            for (media_type, content) in entries(&answer["content"]) {
                write!(html, "<code>{}</code> {}", Text(media_type), Type(&content["schema"]))?;
            }
            for (name, _) in entries(&answer["headers"]) {
                write!(html, " <i>{}</i>", Text(name))?;
            }
            Ok(())
        })?;
        let example = example(document, body);
        write!(self.html, "<pre>{}</pre></section>", Text(&curl(self.base, path, method, operation, example)))
    }

    /// What a key has to allow.
    fn scopes(&mut self, security: &Value) -> fmt::Result {
        let scopes: Vec<_> = list(security).flat_map(|needs| list(&needs["bearer"])).collect();
        if scopes.is_empty() {
            return Ok(());
        }
        self.html.push_str("<p>A key needs the scope");
        for scope in scopes {
            write!(self.html, " <code>{}</code>", Text(text(scope)))?;
        }
        self.html.push_str(".</p>");
        Ok(())
    }

    fn schema(&mut self, name: &str, schema: &Value) -> fmt::Result {
        write!(
            self.html,
            "<section id=\"{0}\"><h3>{0}</h3><p>{1}</p>",
            Text(name),
            Prose(&schema["description"])
        )?;
        self.parts(schema)?;
        if schema.get("enum").is_some() {
            write!(self.html, "<p>{}</p>", Type(schema))?;
        }
        self.html.push_str("</section>");
        Ok(())
    }

    /// The properties of a schema and of those that it is made of.
    fn parts(&mut self, schema: &Value) -> fmt::Result {
        self.properties(schema)?;
        for part in ["allOf", "oneOf"].into_iter().flat_map(|parts| list(&schema[parts])) {
            if part.get("$ref").is_some() {
                write!(self.html, "<p>And {}.</p>", Type(part))?;
            }
            if let Some(title) = part["title"].as_str() {
                write!(self.html, "<p>{}:</p>", Text(title))?;
            }
            self.properties(part)?;
        }
        Ok(())
    }

    fn properties(&mut self, schema: &Value) -> fmt::Result {
        self.table("", entries(&schema["properties"]), |html, (key, property)| {
            let choices: Vec<_> = list(&property["oneOf"]).filter(|one| one.get("enum").is_some()).collect();
            write!(html, "<td><code>{}</code><td>", Text(key))?;
            if choices.is_empty() {
                return write!(html, "{}<td>{}", Type(property), Prose(description(property)));
            }
            write!(html, "text<td>{}<ul>", Prose(&property["description"]))?;
            for choice in choices {
                write!(html, "<li>{} {}", Type(choice), Prose(&choice["description"]))?;
            }
            html.push_str("</ul>");
            Ok(())
        })
    }

    /// A table with a heading, unless it has no rows.
    fn table<T>(
        &mut self,
        heading: &str,
        rows: impl Iterator<Item = T>,
        row: impl Fn(&mut String, T) -> fmt::Result,
    ) -> fmt::Result {
        let mut rows = rows.peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        if !heading.is_empty() {
            write!(self.html, "<h3>{heading}</h3>")?;
        }
        self.html.push_str("<table>");
        for one in rows {
            self.html.push_str("<tr>");
            row(&mut self.html, one)?;
        }
        self.html.push_str("</table>");
        Ok(())
    }
}

/// An example of a body: of the media type, or the first of its schema.
fn example<'a>(document: &'a Value, body: &'a Value) -> Option<&'a Value> {
    let schema = text(&body["schema"]["$ref"]).strip_prefix('#').and_then(|path| document.pointer(path));
    body.get("example").or_else(|| schema?["examples"].get(0))
}

/// A request to copy into a shell.
fn curl(base: &str, path: &str, method: &str, operation: &Value, body: Option<&Value>) -> String {
    let mut url = format!("{base}{path}");
    for parameter in list(&operation["parameters"]) {
        let place = format!("{{{}}}", text(&parameter["name"]));
        url = url.replace(&place, &plain(&parameter["example"]));
    }
    let mut command = format!("curl -s {url}");
    // What it is without being told.
    if method != if body.is_some() { "post" } else { "get" } {
        command.push_str(&format!(" -X {}", method.to_uppercase()));
    }
    if let Some(body) = body {
        let json = body.to_string().replace('\'', r"'\''");
        command.push_str(&format!(" -H 'Content-Type: application/json' \\\n  -d '{json}'"));
    }
    command
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_of_a_document_is_read_as_html() {
        let evil = "<script>alert('1')</script>\"&";
        let schema = json!({"type": evil, "format": evil, "description": evil, "enum": [evil]});
        let object = json!({"description": evil, "properties": {evil: schema}, "examples": [{evil: evil}]});
        let document = json!({
            "info": {"title": evil, "version": evil, "description": evil},
            "paths": {evil: {evil: {
                "operationId": evil, "summary": evil, "description": evil,
                "parameters": [{"name": evil, "in": evil, "schema": schema, "description": evil, "example": evil}],
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/X"}}}},
                "responses": {evil: {
                    "description": evil, "headers": {evil: {}}, "content": {evil: {"schema": {"type": evil}}},
                }},
            }}},
            "components": {"schemas": {"X": object, evil: object}},
        });
        let page = render(&document, "http://127.0.0.1:1").unwrap();
        assert!(!page.contains("<script") && !page.contains("alert('"), "{page}");
        assert!(page.contains("&lt;script&gt;alert(&#39;1&#39;)"), "{page}");
    }

    #[test]
    fn a_request_to_copy_survives_its_shell() {
        let operation = json!({"parameters": [{"name": "id", "example": "1"}]});
        let body = json!({"a": "it's"});
        let command = curl("http://h", "/x/{id}", "post", &operation, Some(&body));
        assert_eq!(
            command,
            "curl -s http://h/x/1 -H 'Content-Type: application/json' \\\n  -d '{\"a\":\"it'\\''s\"}'"
        );
        assert_eq!(curl("http://h", "/x", "get", &json!({}), None), "curl -s http://h/x");
        assert_eq!(curl("http://h", "/x", "delete", &json!({}), None), "curl -s http://h/x -X DELETE");
        let patch = curl("http://h", "/x", "patch", &json!({}), Some(&json!({})));
        assert!(patch.starts_with("curl -s http://h/x -X PATCH -H"), "{patch}");
    }
}
