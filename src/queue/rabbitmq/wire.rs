//! Messages and properties in AMQP, and how they are translated.

use std::fmt::Write as _;

use jiff::Timestamp;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};

use super::frame_filter::UNREADABLE_HEADER;
use crate::{
    bounds::MAX_PRIORITY,
    job::{QueueName, RESERVED_PREFIX},
    queue::{Address, FROM_STORE_HEADER, Message, Properties, QueueError, QueueErrorKind},
};

pub(super) const EXCHANGE: &str = "errand";
pub(super) const EVENT_EXCHANGE: &str = "errand.events";

/// The most entries of [`Properties::other`]; a publisher could send thousands.
const MAX_OTHER_ENTRIES: usize = 64;

/// The longest value of [`Properties::other`], in bytes.
const MAX_OTHER_BYTES: usize = 1024;

/// The deepest nesting of a header that is shown.
const MAX_OTHER_DEPTH: usize = 8;

/// The largest body that RabbitMQ 4 takes by default. A larger one would close the channel under other messages.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;

/// In which queues a message died, and why.
const DEATHS_HEADER: &str = "x-death";

const TRACEPARENT_HEADER: &str = "traceparent";
const CONTENT_TYPE: &str = "application/json";
const PERSISTENT: u8 = 2;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Route {
    pub(super) exchange: ShortString,
    pub(super) key: ShortString,
}

/// What RabbitMQ puts into `reply_to` for apps that wait on their own connection instead of a queue.
const DIRECT_REPLY_PREFIX: &str = "amq.rabbitmq.reply-to.";

impl Route {
    /// Whether somebody must get the message, as far as the broker can tell. It returns every message for a waiting connection,
    /// even when it delivers it, so such a reply is not mandatory: when the connection is gone, nobody wants it. Whoever wants
    /// events binds a queue for them.
    pub(super) fn is_mandatory(&self) -> bool {
        match self.exchange.as_str() {
            "" => !self.key.as_str().starts_with(DIRECT_REPLY_PREFIX),
            exchange => exchange != EVENT_EXCHANGE,
        }
    }
}

/// How the names of the queues of lanes begin.
const LANE_PREFIX: &str = RESERVED_PREFIX;

pub(super) fn queue_name(lane: &str) -> String {
    format!("{LANE_PREFIX}{lane}")
}

/// Translates an address. A name that AMQP cannot carry names no queue, so it is `Unroutable`.
pub(super) fn route(to: &Address) -> Result<Route, QueueError> {
    let (exchange, key) = match to {
        Address::Lane(lane) => (EXCHANGE, lane.as_str()),
        Address::Reply(queue) => ("", queue.as_str()),
        Address::Events(key) => (EVENT_EXCHANGE, key.as_str()),
    };
    Ok(Route { exchange: exchange.into(), key: short("routing key", key)? })
}

/// Translates what goes with a message. A property or body that the broker would not take is an error.
pub(super) fn to_amqp(message: &Message) -> Result<BasicProperties, QueueError> {
    if message.body.len() > MAX_BODY_BYTES {
        let bytes = message.body.len();
        let sentence = format!("a message of {bytes} bytes is larger than RabbitMQ takes ({MAX_BODY_BYTES})");
        return Err(QueueError::new(QueueErrorKind::TooLarge, sentence));
    }
    let Properties {
        message_id,
        correlation_id,
        reply_to,
        user_id: _,
        content_type,
        traceparent,
        kind,
        timestamp,
        died_in: _,
        from_store,
        unreadable: _,
        other: _,
    } = &message.properties;
    let content_type = content_type.as_deref().unwrap_or(CONTENT_TYPE);
    let mut amqp = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_priority(message.priority.min(MAX_PRIORITY))
        .with_content_type(short("content_type", content_type)?);
    if let Some(timestamp) = timestamp.or_else(|| u64::try_from(Timestamp::now().as_second()).ok()) {
        amqp = amqp.with_timestamp(timestamp);
    }
    if let Some(id) = message_id {
        amqp = amqp.with_message_id(short("message_id", id)?);
    }
    if let Some(id) = correlation_id {
        amqp = amqp.with_correlation_id(short("correlation_id", id)?);
    }
    if let Some(kind) = kind {
        amqp = amqp.with_type(short("type", kind)?);
    }
    if let Some(queue) = reply_to {
        amqp = amqp.with_reply_to(short("reply_to", queue)?);
    }
    if traceparent.is_some() || *from_store {
        let mut headers = FieldTable::default();
        if let Some(traceparent) = traceparent {
            headers.insert(TRACEPARENT_HEADER.into(), AMQPValue::LongString(traceparent.as_str().into()));
        }
        if *from_store {
            headers.insert(FROM_STORE_HEADER.into(), AMQPValue::Boolean(true));
        }
        amqp = amqp.with_headers(headers);
    }
    Ok(amqp)
}

/// Translates what came with a message. Whatever errand does not know is kept as text.
pub(super) fn from_amqp(amqp: &BasicProperties) -> Properties {
    let text = |value: &Option<ShortString>| value.as_ref().map(|value| value.as_str().to_owned());
    let mut properties = Properties {
        message_id: text(amqp.message_id()),
        correlation_id: text(amqp.correlation_id()),
        reply_to: text(amqp.reply_to()),
        user_id: text(amqp.user_id()),
        content_type: text(amqp.content_type()),
        timestamp: *amqp.timestamp(),
        ..Properties::default()
    };
    let named = [
        ("content_encoding", amqp.content_encoding()),
        ("expiration", amqp.expiration()),
        ("type", amqp.kind()),
        ("app_id", amqp.app_id()),
        ("cluster_id", amqp.cluster_id()),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            keep(&mut properties, name, value.as_str());
        }
    }
    let numbers = [
        // Persistent and without priority is what nearly every message says.
        ("delivery_mode", amqp.delivery_mode().filter(|mode| *mode != PERSISTENT).map(u64::from)),
        ("priority", amqp.priority().filter(|priority| *priority != 0).map(u64::from)),
    ];
    for (name, value) in numbers {
        if let Some(value) = value {
            keep(&mut properties, name, &value.to_string());
        }
    }
    for (name, value) in amqp.headers().iter().flatten() {
        if name.as_str() == DEATHS_HEADER {
            properties.died_in = died_in(value);
        }
        match (name.as_str(), value) {
            (FROM_STORE_HEADER, AMQPValue::Boolean(true)) => properties.from_store = true,
            (UNREADABLE_HEADER, AMQPValue::LongString(value)) => {
                // One frame bounds it.
                properties.unreadable = Some(value.as_bytes().escape_ascii().to_string());
            }
            (UNREADABLE_HEADER, value) => properties.unreadable = Some(described(value)),
            (TRACEPARENT_HEADER, AMQPValue::LongString(value)) => {
                properties.traceparent = Some(value.to_string());
            }
            (TRACEPARENT_HEADER, AMQPValue::ShortString(value)) => {
                properties.traceparent = Some(value.to_string());
            }
            (name, value) => {
                let text = described(value);
                // A header may have the name of a property.
                let taken = properties.other.contains_key(name);
                keep(&mut properties, if taken { format!("header.{name}") } else { name.to_owned() }, &text);
            }
        }
    }
    properties
}

/// The lane in which a message died last, by the list that the broker makes of its deaths, the last one first.
fn died_in(deaths: &AMQPValue) -> Option<String> {
    let AMQPValue::FieldArray(deaths) = deaths else { return None };
    let lane = |death: &AMQPValue| {
        let AMQPValue::FieldTable(death) = death else { return None };
        let queue = match death.inner().get("queue")? {
            AMQPValue::LongString(queue) => queue.to_string(),
            AMQPValue::ShortString(queue) => queue.to_string(),
            _ => return None,
        };
        queue.strip_prefix(LANE_PREFIX).filter(|lane| *lane != QueueName::DEAD).map(str::to_owned)
    };
    deaths.as_slice().iter().find_map(lane)
}

fn keep(properties: &mut Properties, name: impl Into<String>, value: &str) {
    if properties.other.len() < MAX_OTHER_ENTRIES {
        let end = value.floor_char_boundary(MAX_OTHER_BYTES.min(value.len()));
        properties.other.insert(name.into(), value[..end].to_owned());
    }
}

/// A header's value as a person would read it, and no more of it than will be kept.
fn described(value: &AMQPValue) -> String {
    let mut text = String::new();
    describe(value, 0, &mut text);
    text
}

fn describe(value: &AMQPValue, depth: usize, out: &mut String) {
    if out.len() > MAX_OTHER_BYTES {
        return;
    }
    let written = match value {
        AMQPValue::Boolean(value) => write!(out, "{value}"),
        AMQPValue::ShortShortInt(value) => write!(out, "{value}"),
        AMQPValue::ShortShortUInt(value) => write!(out, "{value}"),
        AMQPValue::ShortInt(value) => write!(out, "{value}"),
        AMQPValue::ShortUInt(value) => write!(out, "{value}"),
        AMQPValue::LongInt(value) => write!(out, "{value}"),
        AMQPValue::LongUInt(value) => write!(out, "{value}"),
        AMQPValue::LongLongInt(value) => write!(out, "{value}"),
        AMQPValue::Float(value) => write!(out, "{value}"),
        AMQPValue::Double(value) => write!(out, "{value}"),
        AMQPValue::DecimalValue(value) => write!(out, "{}e-{}", value.value, value.scale),
        AMQPValue::Timestamp(value) => write!(out, "{value}"),
        AMQPValue::ShortString(value) => write!(out, "{value}"),
        AMQPValue::LongString(value) => {
            let bytes = value.as_bytes();
            let shown = &bytes[..bytes.len().min(MAX_OTHER_BYTES)];
            write!(out, "{}", String::from_utf8_lossy(shown))
        }
        AMQPValue::ByteArray(value) => write!(out, "<{} bytes>", value.len()),
        AMQPValue::Void => write!(out, "null"),
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) if depth >= MAX_OTHER_DEPTH => write!(out, "..."),
        AMQPValue::FieldArray(values) => {
            let values = values.as_slice().iter().map(|value| (None, value));
            return describe_all(values, depth, '[', ']', out);
        }
        AMQPValue::FieldTable(values) => {
            let values = values.into_iter().map(|(name, value)| (Some(name.as_str()), value));
            return describe_all(values, depth, '{', '}', out);
        }
    };
    written.expect("writing to a string does not fail");
}

fn describe_all<'a>(
    values: impl Iterator<Item = (Option<&'a str>, &'a AMQPValue)>,
    depth: usize,
    open: char,
    close: char,
    out: &mut String,
) {
    out.push(open);
    for (index, (name, value)) in values.enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        if let Some(name) = name {
            out.push_str(name);
            out.push_str(": ");
        }
        describe(value, depth + 1, out);
        if out.len() > MAX_OTHER_BYTES {
            return;
        }
    }
    out.push(close);
}

/// AMQP's short strings hold 255 bytes.
fn short(what: &str, value: &str) -> Result<ShortString, QueueError> {
    ShortString::try_new(value)
        .map_err(|error| unroutable(format!("the {what} is too long")).with_source(error))
}

fn unroutable(message: String) -> QueueError {
    QueueError::new(QueueErrorKind::Unroutable, message)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(properties: Properties) -> Message {
        let to = Address::Lane("default".parse().unwrap());
        Message { to, body: Bytes::from_static(b"{}"), properties, priority: 0 }
    }

    fn read(headers: impl IntoIterator<Item = (String, AMQPValue)>) -> Properties {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert(name.into(), value);
        }
        from_amqp(&BasicProperties::default().with_headers(table))
    }

    #[test]
    fn only_a_true_flag_marks_a_known_job() {
        for value in [AMQPValue::Boolean(false), AMQPValue::LongString("true".into()), AMQPValue::LongInt(1)]
        {
            let properties = read([(FROM_STORE_HEADER.to_owned(), value)]);
            assert!(!properties.from_store);
            assert!(properties.other.contains_key(FROM_STORE_HEADER));
        }
    }

    #[test]
    fn the_header_of_unreadable_properties_is_kept_whole() {
        let bytes = [&b"a\\\x00\xff"[..], &[0xfe; 10_000]].concat();
        for (value, text) in [
            (AMQPValue::LongString(bytes.into()), format!(r"a\\\x00\xff{}", r"\xfe".repeat(10_000))),
            (AMQPValue::Boolean(true), "true".to_owned()),
        ] {
            assert_eq!(read([(UNREADABLE_HEADER.to_owned(), value)]).unreadable, Some(text));
        }
    }

    #[test]
    fn foreign_headers_are_bounded() {
        let mut nested = AMQPValue::LongInt(1);
        for _ in 0..1_000 {
            let mut table = FieldTable::default();
            table.insert("k".into(), nested);
            nested = AMQPValue::FieldTable(table);
        }
        let long = AMQPValue::LongString("ä".repeat(5_000).into());
        let many = (0..500).map(|index| (format!("h{index}"), AMQPValue::Void));
        let headers = [("0-nested".to_owned(), nested), ("0-umlauts".to_owned(), long)];
        let properties = read(headers.into_iter().chain(many));
        assert_eq!(properties.other.len(), MAX_OTHER_ENTRIES);
        assert!(properties.other.values().all(|value| value.len() <= MAX_OTHER_BYTES));
        assert!(properties.other["0-nested"].starts_with("{k: {k: "));
        assert!(properties.other["0-umlauts"].starts_with("ää"));
    }

    #[test]
    fn a_header_does_not_hide_a_property_of_the_same_name() {
        let mut headers = FieldTable::default();
        headers.insert("app_id".into(), AMQPValue::LongString("header".into()));
        let amqp = BasicProperties::default().with_app_id("property".into()).with_headers(headers);
        let other = from_amqp(&amqp).other;
        assert_eq!((other["app_id"].as_str(), other["header.app_id"].as_str()), ("property", "header"));
    }

    #[test]
    fn what_amqp_cannot_carry_is_an_error_and_not_a_panic() {
        let long = "x".repeat(256);
        let properties = Properties { correlation_id: Some(long.clone()), ..Properties::default() };
        assert_eq!(to_amqp(&message(properties)).unwrap_err().kind(), QueueErrorKind::Unroutable);
        assert_eq!(route(&Address::Reply(long)).unwrap_err().kind(), QueueErrorKind::Unroutable);
    }
}
