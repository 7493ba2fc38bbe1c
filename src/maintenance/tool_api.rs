//! Watches the tool API as a whole: looks at it once at the start, whenever somebody got no answer or the key was refused,
//! and again and again until that is over. So its absence is told once when it begins and once when it ends, with its
//! cause and whether or not there are jobs that would notice.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::RECONNECT,
    clock::millis,
    health::{Health, Service},
    services::Services,
    telemetry::metrics,
    tool::{ApiStatus, ToolError},
};

/// How long a look may take, whatever the API promises.
const LOOK_TIMEOUT: Duration = Duration::from_secs(15);

/// The shortest time between two looks while all is well.
const LEAST_PAUSE: Duration = Duration::from_secs(5);

/// How long nobody looks after others were answered and the look was not.
const DISTRUST: Duration = Duration::from_secs(10);

/// How often a refused key is tried again, and how long nobody may have been refused before it counts as accepted: it may
/// be good enough for some requests only.
const RETRY_KEY: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct ToolApiWatch {
    services: Services,
    health: Arc<Health>,
    away: Option<Away>,
    /// Since when the key is refused.
    refused: Option<Instant>,
}

#[derive(Debug)]
struct Away {
    since: Instant,
    looks: u32,
}

/// When the next look is.
#[derive(Debug)]
enum Next {
    After(Duration),
    /// Or sooner, when somebody was answered.
    AfterOrAnswer(Duration),
    /// When somebody has a doubt, but not before so long.
    OnDoubt(Duration),
}

impl ToolApiWatch {
    pub fn new(services: &Services, health: Arc<Health>) -> Self {
        Self { services: services.clone(), health, away: None, refused: None }
    }

    /// Looks until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let status = self.services.api_status.clone();
        while let Some(next) = stop.run_until_cancelled(self.look()).await {
            let pause = async {
                match next {
                    Next::After(wait) => tokio::time::sleep(wait).await,
                    Next::AfterOrAnswer(wait) => {
                        let _sooner = timeout(wait, answered(&status)).await;
                    }
                    Next::OnDoubt(least) => {
                        tokio::time::sleep(least).await;
                        status.doubted().await;
                    }
                }
            };
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    /// Looks at the API once.
    async fn look(&mut self) -> Next {
        let began = Instant::now();
        let late = |_| Err(ToolError::Unavailable(format!("no answer within {} s", LOOK_TIMEOUT.as_secs())));
        match timeout(LOOK_TIMEOUT, self.services.api.check()).await.unwrap_or_else(late) {
            Err(ToolError::Unavailable(cause)) => self.unanswered(&cause, began),
            answer => {
                self.is_there();
                if let Err(ToolError::Credentials { status, .. }) = answer {
                    self.services.api_status.key_refused(status);
                }
                self.judge_key()
            }
        }
    }

    fn unanswered(&mut self, why: &str, began: Instant) -> Next {
        let status = &self.services.api_status;
        if status.has_answered_since(self.away.as_ref().map_or(began, |away| away.since)) {
            // So it is there for others, and what fails is this look.
            self.is_there();
            return Next::OnDoubt(DISTRUST);
        }
        let is_news = self.away.is_none();
        let away = self.away.get_or_insert(Away { since: Instant::now(), looks: 0 });
        away.looks += 1;
        let wait = RECONNECT.wait(away.looks, fastrand::f64());
        let (api, wait_ms) = (self.services.api.address(), millis(wait));
        if is_news {
            tracing::warn!(
                api,
                error = why,
                wait_ms,
                "the tool API does not answer: jobs wait until it does, and errand goes on looking"
            );
        } else {
            tracing::debug!(api, error = why, wait_ms, "the tool API still does not answer");
        }
        status.set_away(true);
        let next = self.services.clock.now().saturating_add(wait).unwrap_or(Timestamp::MAX);
        metrics::TOOL_API_NEXT_LOOK.set([], next.as_millisecond() as f64 / 1e3);
        Next::AfterOrAnswer(wait)
    }

    fn is_there(&mut self) {
        if let Some(away) = self.away.take() {
            let lasted_ms = millis(away.since.elapsed());
            tracing::info!(api = self.services.api.address(), lasted_ms, "the tool API answers again");
            self.services.api_status.set_away(false);
            metrics::TOOL_API_NEXT_LOOK.set([], 0.0);
        }
    }

    /// What follows from the last refusal of the key, by this look or by others.
    fn judge_key(&mut self) -> Next {
        let api = self.services.api.address();
        match (self.services.api_status.refusal(), self.refused) {
            (None, _) => Next::OnDoubt(LEAST_PAUSE),
            (Some((last, _)), Some(since)) if last.elapsed() >= RETRY_KEY => {
                self.refused = None;
                self.services.api_status.forget_refusal();
                self.health.works(Service::ApiKey);
                metrics::API_KEY_REFUSED.set([], 0.0);
                tracing::info!(
                    api,
                    lasted_ms = millis(since.elapsed()),
                    "the tool API accepts errand's key again: release the held jobs (`errand jobs release --reason \
                     credentials`)"
                );
                Next::OnDoubt(LEAST_PAUSE)
            }
            (Some(_), Some(_)) => Next::After(RETRY_KEY),
            (Some((_, status)), None) => {
                self.refused = Some(Instant::now());
                let reason = format!("{api} does not accept the key (HTTP {status})");
                metrics::API_KEY_REFUSED.set([], 1.0);
                tracing::warn!(
                    api,
                    http_status = status,
                    error = reason,
                    "the tool API does not accept errand's key, so that jobs are held: set another COMPOSIO_API_KEY and \
                     start the workers anew"
                );
                self.health.fails(Service::ApiKey, reason);
                Next::After(RETRY_KEY)
            }
        }
    }
}

/// Waits until somebody is answered.
async fn answered(status: &ApiStatus) {
    let began = Instant::now();
    while !status.has_answered_since(began) {
        status.doubted().await;
    }
}
