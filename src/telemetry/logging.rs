//! Log lines, to standard error.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer as _, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use super::span_fields::SpanFields;
use crate::string_enum::string_enum;

/// lapin reports every orderly end of a connection as an error; what matters reaches the log through
/// our own queue. `log.level = "info,lapin=debug"` shows it all the same.
const UNLESS_ASKED: &str = "lapin=off";

/// Rules that no setting overrides: lapin logs returned messages with their bodies, which are
/// customers' data, and sqlx passes on what PostgreSQL remarks about migrations that are in place.
const ALWAYS: [(&str, LevelFilter); 2] =
    [("lapin::returned_messages", LevelFilter::OFF), ("sqlx::postgres::notice", LevelFilter::WARN)];

string_enum! {
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}

/// Starts logging for the whole process. A second call changes nothing. `level` is a filter of `tracing`, such as
/// `info,errand=debug`; `colors` are used where standard error is a terminal.
///
/// # Errors
/// The level is not a filter, which the configuration has checked.
pub fn init(format: LogFormat, level: &str, colors: bool) -> Result<()> {
    let rules = format!("{UNLESS_ASKED},{level}");
    let filter: Targets = rules.parse().context("`log.level` is not a filter")?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(colors && std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => {
            lines.json().flatten_event(true).with_current_span(false).fmt_fields(SpanFields).boxed()
        }
    };
    let started = tracing_subscriber::registry().with(filter.with_targets(ALWAYS)).with(lines).try_init();
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    Ok(())
}
