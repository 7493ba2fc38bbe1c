//! Waiting at a server for what goes on there whether anybody asks or not.

use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::{Away, Call, Server, is_away};
use crate::cli::output;

/// The pause before a server that did not answer is asked again, beside those between the tries of one request.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest that one request waits at a server.
const ONE_WAIT: Duration = Duration::from_secs(60);

/// How much longer than it is waited the last answer may take.
const GRACE: Duration = Duration::from_secs(10);

/// How long one request waits at a server of the time that is left: whole seconds, and none where less than half of one is
/// left.
pub(in crate::cli) fn one_wait(left: Duration) -> Duration {
    Duration::from_secs(left.min(ONE_WAIT).as_secs_f64().round() as u64)
}

impl Server {
    /// The answer to what is asked in the time that is left until then. A server that gives none is asked again until the
    /// time is over: it may restart meanwhile, and what is asked about goes on there.
    ///
    /// # Errors
    /// As of [`Server::ask`]; that it gives no answer only after that time.
    pub(in crate::cli) async fn keep_asking<T: DeserializeOwned>(
        &self,
        until: Instant,
        call: impl Fn(Duration) -> Call,
    ) -> anyhow::Result<T> {
        let mut is_told = false;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let answer = tokio::time::timeout(left + GRACE, self.ask(call(left))).await;
            let error = match answer {
                Ok(Err(error)) if is_away(&error) => error,
                Ok(answer) => return answer,
                Err(_) => Away(format!("{} does not answer", self.place())).into(),
            };
            if until <= Instant::now() {
                return Err(error);
            }
            if !std::mem::replace(&mut is_told, true) {
                output::note(format_args!("{error}; it is asked again until the time to wait is over"));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_waits_for_what_is_left_in_whole_seconds() {
        for (left, waits) in [(0, 0), (499, 0), (990, 1), (1_990, 2), (59_700, 60), (600_000, 60)] {
            assert_eq!(one_wait(Duration::from_millis(left)), Duration::from_secs(waits), "{left} ms");
        }
    }
}
