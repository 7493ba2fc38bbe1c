//! Log lines, to standard error.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// lapin reports every orderly end of a connection as an error; what matters reaches the log through
/// our own queue. `log.level = "info,lapin=debug"` shows it all the same.
const UNLESS_ASKED: &str = "lapin=off";

/// Rules that no setting overrides: lapin logs returned messages with their bodies, which are
/// customers' data, and sqlx passes on what PostgreSQL remarks about migrations that are in place.
const ALWAYS: [&str; 2] = ["lapin::returned_messages=off", "sqlx::postgres::notice=warn"];

/// Starts logging for the whole process. A second call changes nothing.
///
/// # Errors
/// The level is not a filter, which the configuration has checked.
pub fn init(log: &Log) -> Result<()> {
    let rules = format!("{UNLESS_ASKED},{}", log.level);
    let mut filter = EnvFilter::try_new(rules).context("`log.level` is not a filter")?;
    for rule in ALWAYS {
        filter = filter.add_directive(rule.parse()?);
    }
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => lines.with_ansi(log.colors && std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    Ok(())
}
