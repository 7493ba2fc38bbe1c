//! Writes that end properly even if nobody waits for them any more.

use futures_util::future::BoxFuture;

use super::{Result, StoreError, StoreErrorKind};

/// Runs a write in a task of its own, so that it ends properly when the caller's future is dropped.
pub(super) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    // Boxed, so that the code of a task is compiled once for each kind of answer and not for each write.
    let work: BoxFuture<'static, Result<T>> = Box::pin(work);
    match tokio::spawn(work).await {
        Ok(answer) => answer,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StoreError::new(StoreErrorKind::Unavailable, "the process is ending")),
        },
    }
}
