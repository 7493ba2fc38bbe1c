//! What this process has last seen of the tool API as a whole: whether it answers at all, and accepts errand's key.
//!
//! Whoever asks the API notes what makes doubt arise, look-ups by way of [`Watched`]. Whether a doubt is right is found
//! out by a look of errand's own (`maintenance/tool_api`), so that no owner's calls decide about those of others.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::{sync::Notify, time::Instant};

use super::{
    Account, AccountList, ApiCheck, Call, Execution, Reply, SharedToolApi, ToolApi, ToolError, ToolInfo,
    ToolkitInfo,
};
use crate::{job::RequestId, sync::lock, telemetry::metrics};

/// The scope in the metrics of circuit breakers.
const SCOPE: &str = "api";

/// How often something is asked all the same while the API is away, because only the look of errand's own may fail.
pub const ASK_WHILE_AWAY: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct ApiStatus {
    is_away: AtomicBool,
    seen: Mutex<Seen>,
    doubted: Notify,
    renewed: Notify,
}

#[derive(Debug, Default)]
struct Seen {
    /// When a look-up was answered, or a call while the API was thought to be away.
    answered: Option<Instant>,
    let_through: Option<Instant>,
    /// When the API refused errand's key, and with which status.
    refused: Option<(Instant, u16)>,
}

impl ApiStatus {
    /// Whether the API answers nothing at present.
    pub fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Relaxed)
    }

    /// Whether a job may look something up now: all may, or one at a time while the API is away.
    pub fn admits_look_up(&self) -> bool {
        if !self.is_away() {
            return true;
        }
        let now = Instant::now();
        let mut seen = lock(&self.seen);
        let admits = seen.let_through.is_none_or(|last| now - last >= ASK_WHILE_AWAY);
        if admits {
            seen.let_through = Some(now);
        } else {
            metrics::CIRCUIT_BREAKER_SNOOZES.add([SCOPE], 1);
        }
        admits
    }

    /// To be told that nothing answered a call or a look-up, or not properly.
    pub fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// To be told that a call was answered. Costs nothing while all is well.
    pub fn answered(&self) {
        if self.is_away() {
            self.look_up_answered();
        }
    }

    /// To be told that the API refused errand's own key.
    pub fn key_refused(&self, status: u16) {
        lock(&self.seen).refused = Some((Instant::now(), status));
        self.doubt();
    }

    /// To be told that another key is used from now on, about which nothing is known.
    pub fn key_renewed(&self) {
        self.forget_refusal();
        self.renewed.notify_one();
    }

    /// Waits for the next key, or for one that nobody has looked after.
    pub async fn renewal(&self) {
        self.renewed.notified().await;
    }

    /// When the API refused the key for the last time, and with which status.
    pub fn refusal(&self) -> Option<(Instant, u16)> {
        lock(&self.seen).refused
    }

    /// Says that the key counts as accepted until it is refused again.
    pub fn forget_refusal(&self) {
        lock(&self.seen).refused = None;
    }

    /// Whether anything was answered since.
    pub fn has_answered_since(&self, moment: Instant) -> bool {
        lock(&self.seen).answered.is_some_and(|answered| answered >= moment)
    }

    /// Waits for the next doubt, or for one that nobody has looked after.
    pub async fn doubted(&self) {
        self.doubted.notified().await;
    }

    pub fn set_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
        metrics::CIRCUIT_BREAKERS_OPEN.set([SCOPE], f64::from(u8::from(is_away)));
    }

    fn look_up_answered(&self) {
        lock(&self.seen).answered = Some(Instant::now());
        if self.is_away() {
            // The watch ends it, and says so.
            self.doubt();
        }
    }

    fn note<T>(&self, answer: Result<T, ToolError>) -> Result<T, ToolError> {
        match &answer {
            Err(ToolError::Unavailable(_)) => self.doubt(),
            Err(ToolError::Credentials { status, .. }) => self.key_refused(*status),
            Ok(_) | Err(ToolError::NotFound(_) | ToolError::Throttled { .. } | ToolError::Refused { .. }) => {
                self.look_up_answered();
            }
        }
        answer
    }
}

/// A tool API whose answers to look-ups are noted. What calls say is noted by whoever makes them, because it depends on
/// what they mean and on how long their jobs wait.
#[derive(Debug)]
pub struct Watched {
    api: SharedToolApi,
    status: Arc<ApiStatus>,
}

impl Watched {
    pub fn new(api: SharedToolApi, status: Arc<ApiStatus>) -> Self {
        status.set_away(false);
        Self { api, status }
    }
}

#[async_trait]
impl ToolApi for Watched {
    fn address(&self) -> String {
        self.api.address()
    }

    // Passed on as it is, because calls are what there is most of.
    fn execute<'a, 'c, 'f>(&'a self, call: &'c Call) -> BoxFuture<'f, Reply>
    where
        'a: 'f,
        'c: 'f,
        Self: 'f,
    {
        self.api.execute(call)
    }

    async fn tool(&self, slug: &str, version: Option<&str>) -> Result<ToolInfo, ToolError> {
        self.status.note(self.api.tool(slug, version).await)
    }

    async fn accounts(&self, owner_ids: &[&str], toolkit: Option<&str>) -> Result<AccountList, ToolError> {
        self.status.note(self.api.accounts(owner_ids, toolkit).await)
    }

    async fn toolkit(&self, slug: &str, version: Option<&str>) -> Result<ToolkitInfo, ToolError> {
        self.status.note(self.api.toolkit(slug, version).await)
    }

    async fn account(&self, id: &str) -> Result<Account, ToolError> {
        self.status.note(self.api.account(id).await)
    }

    async fn execution(&self, request_id: RequestId) -> Result<Option<Execution>, ToolError> {
        match self.api.execution(request_id).await {
            // A key that is good for all that jobs need may lack the permission to read logs.
            Err(error @ ToolError::Credentials { status: 403, .. }) => {
                self.status.look_up_answered();
                Err(error)
            }
            answer => self.status.note(answer),
        }
    }

    async fn renew_key(&self) -> Result<bool, String> {
        self.api.renew_key().await
    }

    /// The look that decides; nothing is noted.
    async fn check(&self) -> Result<ApiCheck, ToolError> {
        self.api.check().await
    }
}
