//! Errors of the client library, as one sentence for operators and a kind for callers.

use std::{future::Future, time::Duration};

use lapin::{ErrorKind, protocol::AMQPErrorKind};

use crate::queue::{BROKER_TIMEOUT, QueueError, QueueErrorKind};

/// AMQP reply codes that errand tells apart.
pub(super) const ACCESS_REFUSED: u16 = 403;
pub(super) const NOT_FOUND: u16 = 404;
pub(super) const PRECONDITION_FAILED: u16 = 406;
pub(super) const NOT_ALLOWED: u16 = 530;

/// Waits for the broker, up to [`BROKER_TIMEOUT`]. `action` completes "RabbitMQ did not ...".
pub(super) async fn bounded<T>(
    action: &str,
    work: impl Future<Output = lapin::Result<T>>,
) -> Result<T, QueueError> {
    within(BROKER_TIMEOUT, action, work).await
}

pub(super) async fn within<T>(
    limit: Duration,
    action: &str,
    work: impl Future<Output = lapin::Result<T>>,
) -> Result<T, QueueError> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.map_err(|error| failed(action, error)),
        Err(_elapsed) => Err(QueueError::new(
            QueueErrorKind::Unavailable,
            format!("RabbitMQ did not {action} within {} s", limit.as_secs_f32()),
        )),
    }
}

pub(super) fn failed(action: &str, error: lapin::Error) -> QueueError {
    let kind = match reply_code(&error) {
        Some(ACCESS_REFUSED | NOT_ALLOWED) => QueueErrorKind::Access,
        Some(NOT_FOUND) => QueueErrorKind::Unroutable,
        Some(PRECONDITION_FAILED) => QueueErrorKind::Topology,
        Some(_) => QueueErrorKind::Unavailable,
        None if is_bad_certificate(&error) => QueueErrorKind::Access,
        None => QueueErrorKind::Unavailable,
    };
    QueueError::new(kind, format!("RabbitMQ did not {action}")).with_source(error)
}

/// The reply code with which the broker closed the channel or the connection.
pub(super) fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(_) | AMQPErrorKind::Hard(_) => Some(error.get_id()),
        },
        _ => None,
    }
}

/// Whether the broker closed a channel and not the connection. It answers so to no `channel.open`.
pub(super) fn is_about_channel(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Soft(_)))
}

/// rustls reports what it does not trust as invalid data.
pub(super) fn is_bad_certificate(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::IOError(error) if error.kind() == std::io::ErrorKind::InvalidData)
}

/// The same error for each of so many messages.
pub(super) fn repeat(kind: QueueErrorKind, sentence: &str, times: usize) -> Vec<Result<(), QueueError>> {
    (0..times).map(|_| Err(QueueError::new(kind, sentence))).collect()
}

/// Whether the channel or the connection had ended before.
pub(super) fn has_ended(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidConnectionState(_))
}
