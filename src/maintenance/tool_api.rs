//! Watches the tool API as a whole: looks at it once at the start, whenever somebody got no answer or the key was refused,
//! and again and again until that is over. So its absence is told once when it begins and once when it ends, with its
//! cause and whether or not there are jobs that would notice.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::RECONNECT,
    clock::{SharedClock, millis},
    health::{Health, Service},
    services::Services,
    telemetry::metrics,
    tool::{ApiStatus, SharedToolApi, ToolError},
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
    api: SharedToolApi,
    status: Arc<ApiStatus>,
    clock: SharedClock,
    health: Arc<Health>,
    away: Option<Away>,
    /// Since when the key is refused.
    refused: Option<Instant>,
    /// Whether a look was ever answered with what it asked for.
    may_look: bool,
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
        let Services { api, api_status: status, clock, .. } = services.clone();
        Self { api, status, clock, health, away: None, refused: None, may_look: false }
    }

    /// Looks until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let status = self.status.clone();
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
            let pause = async {
                tokio::select! {
                    biased;
                    () = status.renewal() => true,
                    () = pause => false,
                }
            };
            match stop.run_until_cancelled(pause).await {
                None => return,
                // What the key before it was good for says nothing of this one.
                Some(true) => self.may_look = false,
                Some(false) => {}
            }
        }
    }

    /// Looks at the API once.
    async fn look(&mut self) -> Next {
        let began = Instant::now();
        let late = |_| Err(ToolError::Unavailable(format!("no answer within {} s", LOOK_TIMEOUT.as_secs())));
        match timeout(LOOK_TIMEOUT, self.api.check()).await.unwrap_or_else(late) {
            Err(ToolError::Unavailable(cause)) => self.unanswered(&cause, began),
            answer => {
                self.is_there();
                self.may_look |= answer.is_ok();
                // A key that is good for all that jobs need may have lacked the permission for this look all the time.
                if let Err(ToolError::Credentials { status, .. }) = answer
                    && (status == 401 || self.may_look && self.refused.is_some())
                {
                    self.status.key_refused(status);
                }
                self.judge_key()
            }
        }
    }

    fn unanswered(&mut self, why: &str, began: Instant) -> Next {
        let status = &self.status;
        if status.has_answered_since(self.away.as_ref().map_or(began, |away| away.since)) {
            // So it is there for others, and what fails is this look.
            self.is_there();
            if self.status.refusal().is_some() {
                // What is to be said of the key, the next look says.
                return Next::After(DISTRUST);
            }
            // Answers that others got meanwhile are no doubt.
            let _known = self.status.doubted().now_or_never();
            return Next::OnDoubt(DISTRUST);
        }
        let is_news = self.away.is_none();
        let away = self.away.get_or_insert(Away { since: Instant::now(), looks: 0 });
        away.looks += 1;
        let wait = RECONNECT.wait(away.looks, fastrand::f64());
        let (api, wait_ms) = (self.api.address(), millis(wait));
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
        let next = self.clock.now().saturating_add(wait).unwrap_or(Timestamp::MAX);
        metrics::TOOL_API_NEXT_LOOK.set([], next.as_millisecond() as f64 / 1e3);
        Next::AfterOrAnswer(wait)
    }

    fn is_there(&mut self) {
        if let Some(away) = self.away.take() {
            let lasted_ms = millis(away.since.elapsed());
            tracing::info!(api = self.api.address(), lasted_ms, "the tool API answers again");
            self.status.set_away(false);
            metrics::TOOL_API_NEXT_LOOK.set([], 0.0);
        }
    }

    /// What follows from the last refusal of the key, by this look or by others.
    fn judge_key(&mut self) -> Next {
        let api = self.api.address();
        match (self.status.refusal(), self.refused) {
            (None, None) => Next::OnDoubt(LEAST_PAUSE),
            // Of a key that has taken its place, nobody was refused.
            (None, Some(since)) => self.key_works(since),
            (Some((last, _)), Some(since)) if last.elapsed() >= RETRY_KEY => self.key_works(since),
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
                     start the workers anew, or put it into the file of COMPOSIO_API_KEY_FILE, which needs no restart"
                );
                self.health.fails(Service::ApiKey, reason);
                Next::After(RETRY_KEY)
            }
        }
    }

    fn key_works(&mut self, since: Instant) -> Next {
        self.refused = None;
        self.status.forget_refusal();
        self.health.works(Service::ApiKey);
        metrics::API_KEY_REFUSED.set([], 0.0);
        tracing::info!(
            api = self.api.address(),
            lasted_ms = millis(since.elapsed()),
            "the tool API accepts errand's key again: release the held jobs (`errand jobs release --reason credentials --retry`)"
        );
        Next::OnDoubt(LEAST_PAUSE)
    }
}

/// Waits until somebody is answered.
async fn answered(status: &ApiStatus) {
    let began = Instant::now();
    while !status.has_answered_since(began) {
        status.doubted().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    };

    use async_trait::async_trait;
    use tokio::time::sleep;

    use super::*;
    use crate::{
        clock,
        job::RequestId,
        sync::lock,
        tool::{Account, AccountList, ApiCheck, Call, Execution, Reply, ToolApi, ToolInfo, ToolkitInfo},
    };

    #[derive(Debug, Clone, Copy)]
    enum Answer {
        Good,
        Refused,
        /// The key lacks the permission for a look.
        Forbidden,
        None,
    }

    /// An API that is only looked at.
    #[derive(Debug)]
    struct Api {
        answer: Mutex<Answer>,
        looks: AtomicU32,
    }

    #[async_trait]
    impl ToolApi for Api {
        fn address(&self) -> String {
            "api.example:443".to_owned()
        }

        async fn execute(&self, _: &Call) -> Reply {
            unreachable!("nobody calls")
        }

        async fn tool(&self, _: &str, _: Option<&str>) -> Result<ToolInfo, ToolError> {
            unreachable!("nobody looks up")
        }

        async fn accounts(&self, _: &[&str], _: Option<&str>) -> Result<AccountList, ToolError> {
            unreachable!("nobody looks up")
        }

        async fn toolkit(&self, _: &str, _: Option<&str>) -> Result<ToolkitInfo, ToolError> {
            unreachable!("nobody looks up")
        }

        async fn account(&self, _: &str) -> Result<Account, ToolError> {
            unreachable!("nobody looks up")
        }

        async fn execution(&self, _: RequestId) -> Result<Option<Execution>, ToolError> {
            unreachable!("nobody looks up")
        }

        async fn check(&self) -> Result<ApiCheck, ToolError> {
            self.looks.fetch_add(1, Ordering::Relaxed);
            match *lock(&self.answer) {
                Answer::Good => Ok(ApiCheck { date: None, took: Duration::ZERO }),
                Answer::Refused => Err(ToolError::Credentials { status: 401, error: Box::default() }),
                Answer::Forbidden => Err(ToolError::Credentials { status: 403, error: Box::default() }),
                Answer::None => Err(ToolError::Unavailable("connection refused".to_owned())),
            }
        }
    }

    struct Scene {
        api: Arc<Api>,
        status: Arc<ApiStatus>,
        health: Arc<Health>,
    }

    impl Scene {
        /// A watch that has looked for the first time.
        async fn new(answer: Answer) -> Self {
            let api = Arc::new(Api { answer: Mutex::new(answer), looks: AtomicU32::new(0) });
            let (status, health) =
                (Arc::<ApiStatus>::default(), Arc::new(Health::new(vec![], String::new())));
            let (shared, clock): (SharedToolApi, _) = (api.clone(), clock::system());
            let watch = ToolApiWatch {
                api: shared,
                status: status.clone(),
                clock,
                health: health.clone(),
                away: None,
                refused: None,
                may_look: false,
            };
            tokio::spawn(watch.run(CancellationToken::new()));
            let scene = Self { api, status, health };
            scene.after(0).await;
            scene
        }

        /// Lets so many seconds pass.
        async fn after(&self, seconds: u64) -> &Self {
            sleep(Duration::from_secs(seconds) + Duration::from_millis(1)).await;
            self
        }

        fn answers(&self, answer: Answer) {
            *lock(&self.api.answer) = answer;
        }

        fn key_is_accepted(&self) -> bool {
            self.health.readiness().api_key
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_counts_as_refused_until_nobody_was_refused_for_a_while() {
        let scene = Scene::new(Answer::Refused).await;
        assert!(!scene.key_is_accepted());
        assert!(scene.health.readiness().reasons["api_key"].contains("api.example:443"));
        scene.answers(Answer::Good);
        assert!(!scene.after(20).await.key_is_accepted());
        assert!(scene.after(20).await.key_is_accepted());
        // It is good enough for looks, and not for what jobs want.
        for _ in 0..20 {
            scene.status.key_refused(403);
            assert!(!scene.after(10).await.key_is_accepted());
        }
        assert!(scene.after(70).await.key_is_accepted());
        assert!(!scene.status.is_away(), "it has answered all the time");
    }

    #[tokio::test(start_paused = true)]
    async fn another_key_is_looked_at_at_once() {
        let scene = Scene::new(Answer::Refused).await;
        assert!(!scene.key_is_accepted());
        scene.status.key_renewed();
        assert!(!scene.after(1).await.key_is_accepted(), "it is no better");
        scene.answers(Answer::Good);
        scene.status.key_renewed();
        assert!(scene.after(1).await.key_is_accepted());
        // One that may not look is as good as any until somebody is refused.
        scene.answers(Answer::Forbidden);
        scene.status.key_renewed();
        assert!(scene.after(60).await.key_is_accepted());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_lacks_the_permission_for_looks_is_no_refused_key() {
        let scene = Scene::new(Answer::Forbidden).await;
        assert!(scene.key_is_accepted() && !scene.status.is_away());
        scene.status.key_refused(401);
        assert!(!scene.after(10).await.key_is_accepted());
        assert!(scene.after(110).await.key_is_accepted(), "nobody else was refused since");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_refused_everywhere_since_a_moment_stays_refused() {
        let scene = Scene::new(Answer::Good).await;
        scene.answers(Answer::Forbidden);
        scene.status.key_refused(403);
        for _ in 0..20 {
            assert!(!scene.after(30).await.key_is_accepted());
        }
        scene.answers(Answer::Good);
        assert!(scene.after(70).await.key_is_accepted());
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_is_away_from_the_first_look_without_an_answer_to_the_first_with_one() {
        let scene = Scene::new(Answer::None).await;
        assert!(scene.status.is_away() && scene.key_is_accepted());
        // One look-up at a time is let through.
        let admitted = (0..10).filter(|_| scene.status.admits_look_up()).count();
        assert_eq!(admitted, 1);
        assert!(scene.after(5).await.status.admits_look_up());
        let looks = scene.api.looks.load(Ordering::Relaxed);
        scene.after(600).await;
        let looks = scene.api.looks.load(Ordering::Relaxed) - looks;
        assert!((30..=70).contains(&looks), "{looks} looks in ten minutes");
        scene.answers(Answer::Good);
        assert!(!scene.after(20).await.status.is_away());
        assert!((0..10).all(|_| scene.status.admits_look_up()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_that_answers_others_is_not_away_although_looks_fail() {
        let scene = Scene::new(Answer::None).await;
        assert!(scene.status.is_away());
        for _ in 0..3 {
            scene.status.answered();
        }
        assert!(!scene.after(0).await.status.is_away());
        assert!(!scene.after(600).await.status.is_away(), "nobody has a doubt");
        scene.status.doubt();
        assert!(scene.after(0).await.status.is_away());
    }

    #[tokio::test(start_paused = true)]
    async fn many_doubts_cause_few_looks() {
        let scene = Scene::new(Answer::Good).await;
        for _ in 0..600 {
            scene.status.doubt();
            sleep(Duration::from_millis(100)).await;
        }
        let looks = scene.api.looks.load(Ordering::Relaxed);
        assert!((10..=14).contains(&looks), "{looks} looks in a minute");
        assert!(!scene.status.is_away());
    }
}
