//! Log lines, to standard error.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer as _,
    filter::{ParseError, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::span_fields::SpanFields;
use crate::string_enum::string_enum;

/// Our own lines: the beginning of the names of errand's crates.
const OURS: &str = "errand";

/// Libraries whose warnings say again, without the context, what reaches the log through our own store and queue:
/// lapin reports every orderly end of a connection as an error, and sqlx every connection that PostgreSQL ended, and
/// what PostgreSQL remarks, in its words. `log.level = "info,lapin=debug"` shows them all the same.
const UNLESS_ASKED: [(&str, LevelFilter); 5] = [
    ("lapin", LevelFilter::OFF),
    ("sqlx_core", LevelFilter::OFF),
    ("sqlx_postgres", LevelFilter::OFF),
    ("sqlx_sqlite", LevelFilter::OFF),
    ("sqlx::postgres::notice", LevelFilter::OFF),
];

/// Lines that no setting lets through: lapin logs returned messages with their bodies, which are customers' data, and
/// sqlx quotes parameters of the URL that it does not know, and lines of `.pgpass`.
const NEVER: [(&str, LevelFilter); 2] =
    [("lapin::returned_messages", LevelFilter::OFF), ("sqlx_postgres::options", LevelFilter::OFF)];

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
    let filter = filter(level).context("`log.level` is not a filter")?;
    // A line that cannot be written, on a full disk for example, is given up: to say so would panic.
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(colors && std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => {
            lines.json().flatten_event(true).with_current_span(false).fmt_fields(SpanFields).boxed()
        }
    };
    let started = tracing_subscriber::registry().with(filter).with(lines).try_init();
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    Ok(())
}

/// What a level lets through. A level without a target is one for our own lines, of libraries it lets warnings through at
/// most. Where a library is named, it is down to `debug`: at `trace`, some write what they send, passwords included.
fn filter(level: &str) -> Result<Targets, ParseError> {
    let asked: Targets = level.parse()?;
    let default = asked.default_level().unwrap_or(LevelFilter::OFF);
    let never = |target: &str| NEVER.iter().any(|(never, _)| target.starts_with(never));
    let named = asked.iter().filter(|(target, _)| !never(target)).map(|(target, level)| {
        (target.to_owned(), if target.starts_with(OURS) { level } else { level.min(LevelFilter::DEBUG) })
    });
    Ok(Targets::new()
        .with_default(default.min(LevelFilter::WARN))
        .with_targets(UNLESS_ASKED)
        .with_target(OURS, default)
        .with_targets(named)
        .with_targets(NEVER))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn libraries_say_what_they_are_asked_for_and_never_what_they_send() {
        let passes = |level: &str, target: &str, of: Level| filter(level).unwrap().would_enable(target, &of);
        for (level, target, of, passed) in [
            ("info", "errand::worker", Level::INFO, true),
            ("info", "errand::worker", Level::DEBUG, false),
            ("debug", "errand::worker", Level::DEBUG, true),
            ("trace", "errand::worker", Level::TRACE, true),
            ("info", "errand_sandbox", Level::INFO, true),
            ("error", "errand", Level::WARN, false),
            ("debug", "hyper_util::client", Level::DEBUG, false),
            ("debug", "rustls::client", Level::WARN, true),
            ("error", "rustls::client", Level::WARN, false),
            ("info", "sqlx::query", Level::WARN, true),
            ("info", "sqlx::postgres::notice", Level::WARN, false),
            ("info", "sqlx_core::pool::connection", Level::WARN, false),
            ("info", "lapin::channel", Level::ERROR, false),
            ("info,lapin=debug", "lapin::channel", Level::DEBUG, true),
            ("info,lapin=trace", "lapin::channel", Level::TRACE, false),
            ("trace", "lapin::channel", Level::TRACE, false),
            ("trace,lapin=trace", "lapin::returned_messages", Level::WARN, false),
            ("info,sqlx_postgres=debug", "sqlx_postgres::options::parse", Level::WARN, false),
            ("info,sqlx_postgres::options::parse=warn", "sqlx_postgres::options::parse", Level::WARN, false),
            ("info,sqlx_core=debug", "sqlx_core::pool::inner", Level::DEBUG, true),
            ("errand=debug", "errand::cli", Level::DEBUG, true),
            ("errand=debug", "rustls::client", Level::WARN, false),
        ] {
            assert_eq!(passes(level, target, of), passed, "{level}: {target} at {of}");
        }
    }
}
