//! The services under the workers.

/// The services under the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Backend {
    /// Private RabbitMQ and PostgreSQL servers, and two workers.
    Amqp,
    /// The queue in the process and SQLite, and one worker.
    Embedded,
}
