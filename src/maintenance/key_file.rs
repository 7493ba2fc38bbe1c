//! Watches the file that the tool API's key came from, so that a new key is used without a restart.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    services::Services,
    tool::{ApiStatus, SharedToolApi},
};

/// How often the file is read. That is cheap, and jobs are held while the key is refused.
const EVERY: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct KeyFile {
    api: SharedToolApi,
    status: Arc<ApiStatus>,
    /// What was last said about a file that cannot be used.
    told: Option<String>,
}

impl KeyFile {
    pub fn new(services: &Services) -> Self {
        Self { api: services.api.clone(), status: services.api_status.clone(), told: None }
    }

    /// Looks again and again until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
            if stop.run_until_cancelled(self.look()).await.is_none() {
                return;
            }
        }
    }

    async fn look(&mut self) {
        match self.api.renew_key().await {
            Ok(true) => {
                self.told = None;
                tracing::info!(
                    api = self.api.address(),
                    "the file of the tool API's key has another key, which is used from now on"
                );
                self.status.key_renewed();
            }
            Ok(false) => self.told = None,
            // As while it is replaced.
            Err(why) if self.told.as_ref() != Some(&why) => {
                tracing::warn!(
                    api = self.api.address(),
                    error = why,
                    "the file of the tool API's key cannot be used, so errand goes on with the key that it has"
                );
                self.told = Some(why);
            }
            // It was told, and is what it was then.
            Err(_) => {}
        }
    }
}
