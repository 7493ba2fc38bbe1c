//! The fields of a span as the text of a JSON object.
//!
//! A span is made for every attempt, and hardly any of them is ever logged. The subscriber's own formatter for JSON
//! builds a map of values for each, which cost more than the rest of the span.

use std::fmt::{self, Write as _};

use tracing::{
    field::{Field, Visit},
    span::Record,
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, FormattedFields, format::Writer},
};

/// More bytes than the fields of an attempt take.
const CAPACITY: usize = 256;

/// Formats the fields of spans, for a layer that writes JSON.
#[derive(Debug)]
pub(super) struct SpanFields;

impl<'writer> FormatFields<'writer> for SpanFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut object = Object(String::with_capacity(CAPACITY));
        object.0.push('{');
        fields.record(&mut object);
        object.0.push('}');
        // At once, so that the span's own text does not grow piece by piece.
        writer.write_str(&object.0)
    }

    fn add_fields(&self, current: &'writer mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        // Without the closing brace the object goes on. A name that comes twice counts with its last value.
        current.fields.pop();
        let mut object = Object(std::mem::take(&mut current.fields));
        fields.record(&mut object);
        object.0.push('}');
        current.fields = object.0;
        Ok(())
    }
}

/// A JSON object that is being written.
struct Object(String);

impl Object {
    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let comma = if self.0.len() > 1 { "," } else { "" };
        let name = field.name().trim_start_matches("r#");
        write!(self.0, "{comma}\"{name}\":{value}").expect("writing to a string does not fail");
    }
}

impl Visit for Object {
    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.add(field, format_args!("{value}"));
        } else {
            self.add(field, format_args!("null"));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, format_args!("{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, format_args!("\"{}\"", Escaped(format_args!("{value}"))));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("\"{}\"", Escaped(format_args!("{value:?}"))));
    }
}

/// A text as the inside of a JSON string, without a copy where nothing has to be escaped.
struct Escaped<'a>(fmt::Arguments<'a>);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Pieces<'a, 'b>(&'a mut fmt::Formatter<'b>);

        impl fmt::Write for Pieces<'_, '_> {
            fn write_str(&mut self, piece: &str) -> fmt::Result {
                let is_plain = piece.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\');
                if is_plain {
                    return self.0.write_str(piece);
                }
                let quoted = serde_json::Value::from(piece).to_string();
                self.0.write_str(&quoted[1..quoted.len() - 1])
            }
        }

        fmt::write(&mut Pieces(formatter), self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex},
    };

    use serde_json::{Value, json};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_fields_of_a_span_are_a_json_object_whatever_they_contain() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .json()
            .with_current_span(false)
            .fmt_fields(SpanFields)
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let _none = tracing::error_span!("none").entered();
            let text = "a \"quoted\"\n\\ text \u{7f} ü";
            let id = uuid::Uuid::nil();
            let later = tracing::field::Empty;
            let span = tracing::error_span!("some", text, job.id = %id, n = 3, low = -1, yes = true, half = 0.5, later);
            span.record("later", text);
            span.in_scope(|| tracing::error!("a line"));
        });
        let line: Value = serde_json::from_slice(&lines.0.lock().unwrap()).unwrap();
        let text = "a \"quoted\"\n\\ text \u{7f} ü";
        let some = json!({
            "name": "some", "text": text, "job.id": uuid::Uuid::nil(), "n": 3, "low": -1, "yes": true, "half": 0.5,
            "later": text,
        });
        assert_eq!(line["spans"], json!([{"name": "none"}, some]));
    }
}
