//! Watches whether policies make the broker lose what it has confirmed, which no test of a message shows before it is
//! too late.

use std::{collections::BTreeSet, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    failure::chain,
    queue::{PolicyRisk, PolicyRiskKind, SharedQueue},
    telemetry::metrics,
};

/// How often the broker is asked.
const EVERY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Policies {
    queue: SharedQueue,
    /// What was last said, so that it is said once.
    told: BTreeSet<String>,
}

impl Policies {
    pub fn new(queue: SharedQueue) -> Self {
        Self { queue, told: BTreeSet::new() }
    }

    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            self.run_once().await;
            stop.run_until_cancelled(tokio::time::sleep(EVERY)).await;
        }
    }

    async fn run_once(&mut self) {
        let mut told = BTreeSet::new();
        match self.queue.policy_risks().await {
            Ok(Some(risks)) => {
                count(&risks);
                for risk in &risks {
                    let sentence = risk.to_string();
                    if !self.told.contains(&sentence) {
                        tracing::warn!(kind = %risk.kind, "the broker can lose confirmed messages: {sentence}; see `errand doctor`");
                    }
                    told.insert(sentence);
                }
            }
            Ok(None) => {
                let sentence =
                    "the policies of the broker are unknown, because amqp.management_url is not set";
                if !self.told.contains(sentence) {
                    tracing::info!("{sentence}");
                }
                told.insert(sentence.to_owned());
            }
            Err(error) => {
                let sentence = chain(&error);
                if !self.told.contains(&sentence) {
                    tracing::warn!(error = %sentence, "the policies of the broker are unknown");
                }
                told.insert(sentence);
            }
        }
        self.told = told;
    }
}

fn count(risks: &[PolicyRisk]) {
    for kind in PolicyRiskKind::ALL {
        let found = risks.iter().filter(|risk| risk.kind == *kind).count();
        metrics::BROKER_POLICY_RISKS.set([kind.as_str()], found as f64);
    }
}
