//! Times in which the tool API is not asked.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

use crate::{
    backoff::Intervals,
    sync::lock,
    tool::{ASK_WHILE_AWAY, ApiStatus, ToolError},
};

/// Until when nothing is asked, if anything says so. It is of one process: others find out by themselves.
#[derive(Debug, Default)]
pub(super) struct Quiet(Mutex<Option<Instant>>);

impl Quiet {
    pub(super) fn is_now(&self) -> bool {
        lock(&self.0).is_some_and(|until| Instant::now() < until)
    }

    /// Asks nothing for as long as the API wants, within the first and the longest interval, or else for the first.
    /// Returns how long that is.
    pub(super) fn heed(&self, error: &ToolError, intervals: &Intervals) -> Duration {
        let Intervals { initial, max, .. } = *intervals;
        let wait = match error {
            ToolError::Throttled { retry_after: Some(asked) } => (*asked).clamp(initial.min(max), max),
            _ => initial,
        };
        self.wait(wait);
        wait
    }

    /// Lets this question pass and then few, while the API is away: an answer would show that it is not.
    pub(super) fn spare(&self, api: &ApiStatus) {
        if api.is_away() {
            self.wait(ASK_WHILE_AWAY);
        }
    }

    /// Asks nothing for so long from now on. What was to last longer does.
    pub(super) fn wait(&self, time: Duration) {
        let until = Some(Instant::now() + time);
        let mut quiet = lock(&self.0);
        *quiet = (*quiet).max(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_api_is_not_asked_for_as_long_as_it_wants_within_the_intervals() {
        let secs = Duration::from_secs;
        let intervals = Intervals::doubling(secs(5), secs(60));
        let throttled = |asked| ToolError::Throttled { retry_after: asked };
        for (error, quiet) in [
            (throttled(Some(secs(30))), 30),
            (throttled(Some(secs(1))), 5),
            (throttled(Some(secs(600))), 60),
            (throttled(None), 5),
            (ToolError::Unavailable("it answered 503".into()), 5),
        ] {
            let pause = Quiet::default();
            assert!(!pause.is_now());
            pause.heed(&error, &intervals);
            pause.wait(secs(2));
            tokio::time::advance(secs(quiet) - Duration::from_millis(1)).await;
            assert!(pause.is_now(), "{error:?}");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(!pause.is_now(), "{error:?}");
        }
    }
}
