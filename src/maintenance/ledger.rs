//! Compares the store with the ledger of a sandbox, which knows what really had its effect.
//!
//! For tests and rehearsals. The ledger must be as old as the database, and the tool API of nobody else's jobs.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, de::DeserializeOwned};
use url::Url;

use crate::{
    http_client::client_builder,
    job::{AttemptOutcome, Effect, JobId, Principal},
    store::{AttemptView, JobView, SharedStore},
    string_enum::string_enum,
};

/// How long one page of the ledger may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Effects per page, and the most bytes of a page.
const PAGE: usize = 1_000;
const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;

/// More effects than any sandbox keeps.
const MAX_EFFECTS: usize = 1_000_000;

/// Jobs per page of the store, and how many jobs are looked up at once.
const STORE_PAGE: usize = 1_000;
const AT_ONCE: usize = 4;

string_enum! {
    /// A contradiction between store and ledger.
    Contradiction {
        /// The tool ran for an unknown job or request ID, or in an attempt of which errand says that nothing ran.
        EffectWithoutRecord = "effect_without_record",
        /// The job succeeded by a call, and the tool has not run.
        SuccessWithoutEffect = "success_without_effect",
        /// The tool ran more than once for a job that must run once.
        RepeatedEffect = "repeated_effect",
    }
}

impl Contradiction {
    pub fn advice(self) -> &'static str {
        match self {
            Self::EffectWithoutRecord => {
                "errand does not know that this ran: compare `errand jobs show` with the ledger's entry of the job"
            }
            Self::SuccessWithoutEffect => "errand believes in a call that did nothing: see the job's log ID",
            Self::RepeatedEffect => {
                "if no person released the job with --retry, errand has broken its promise"
            }
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// Effects that the ledger has kept.
    pub effects: u64,
    /// Those of them that name no job, so that they are nobody's or somebody else's.
    pub without_job: u64,
    /// Whether the ledger has kept every effect. If not, nobody can tell which jobs had none.
    pub complete: bool,
    /// How many jobs contradict, and the first of them, in the ledger's spelling.
    pub found: BTreeMap<Contradiction, (u64, Vec<String>)>,
}

/// What answers is no ledger of a sandbox.
#[derive(Debug, thiserror::Error)]
#[error("{base} is no sandbox: {what}")]
pub struct NotALedger {
    base: Url,
    what: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Entry {
    request_id: String,
    effect: Effect,
    job: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Page {
    items: Vec<Entry>,
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Summary {
    effects: u64,
    effects_kept: u64,
}

/// Compares all jobs of the store with the ledger of the sandbox at `base`; names up to `named` jobs of each kind.
pub async fn compare(store: &SharedStore, base: &Url, named: usize) -> Result<Comparison> {
    // An effect comes after its claim and before its success, so in this order only what is wrong contradicts.
    let succeeded = succeeded(store).await?;
    let ledger = Ledger::new(base)?;
    let summary: Summary = ledger.read("_sandbox/ledger").await?;
    let (effects, without_job) = ledger.effects().await?;
    let mut comparison = Comparison {
        effects: effects.values().map(|effects| effects.len() as u64).sum::<u64>() + without_job,
        without_job,
        complete: summary.effects == summary.effects_kept,
        found: BTreeMap::new(),
    };
    let mut add = |kind: Contradiction, job: &str| {
        let (count, jobs) = comparison.found.entry(kind).or_default();
        *count += 1;
        if jobs.len() < named {
            jobs.push(job.to_owned());
        }
    };
    if comparison.complete {
        for job in succeeded.iter().map(JobId::to_string).filter(|job| !effects.contains_key(job)) {
            add(Contradiction::SuccessWithoutEffect, &job);
        }
    }
    let compared: Vec<(&String, Vec<Contradiction>)> = stream::iter(&effects)
        .map(|(job, effects)| async move { anyhow::Ok((job, contradictions_of(store, job, effects).await?)) })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    for (job, kinds) in compared {
        for kind in kinds {
            add(kind, job);
        }
    }
    Ok(comparison)
}

async fn succeeded(store: &SharedStore) -> Result<Vec<JobId>> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let page = store.succeeded_by_call(after, STORE_PAGE).await?;
        all.extend(page.items);
        match page.last {
            Some(last) => after = Some(last),
            None => return Ok(all),
        }
    }
}

async fn contradictions_of(store: &SharedStore, job: &str, effects: &[Entry]) -> Result<Vec<Contradiction>> {
    let Ok(id) = job.parse::<JobId>() else { return Ok(contradictions(None, &[], effects)) };
    let Some(view) = store.job(&Principal::Operator, id).await? else {
        return Ok(contradictions(None, &[], effects));
    };
    let attempts = store.attempts(&Principal::Operator, id).await?;
    Ok(contradictions(Some(&view), &attempts, effects))
}

/// What contradicts between a job and its effects, of which there is at least one.
fn contradictions(job: Option<&JobView>, attempts: &[AttemptView], effects: &[Entry]) -> Vec<Contradiction> {
    let mut found = Vec::new();
    if job.is_none() || effects.iter().any(|effect| !is_recorded(attempts, effect)) {
        found.push(Contradiction::EffectWithoutRecord);
    }
    // What the job was run as counts, which may be other than what the tool says of itself.
    let once = match job.and_then(|job| job.binding.as_ref()) {
        Some(binding) => binding.effect == Effect::Once,
        None => effects.iter().any(|effect| effect.effect == Effect::Once),
    };
    if once && effects.len() > 1 {
        found.push(Contradiction::RepeatedEffect);
    }
    found
}

/// Whether an attempt with the request ID of the effect says that the tool ran, or may have run.
fn is_recorded(attempts: &[AttemptView], effect: &Entry) -> bool {
    attempts
        .iter()
        .filter(|attempt| attempt.request_id.to_string() == effect.request_id)
        .any(|attempt| attempt.outcome.is_none_or(may_have_run))
}

fn may_have_run(outcome: AttemptOutcome) -> bool {
    match outcome {
        AttemptOutcome::Succeeded
        | AttemptOutcome::ToolFailed
        | AttemptOutcome::Unknown
        | AttemptOutcome::Lost
        | AttemptOutcome::Unrecognized => true,
        AttemptOutcome::Refused
        | AttemptOutcome::Throttled
        | AttemptOutcome::NotSent
        | AttemptOutcome::Interrupted => false,
    }
}

struct Ledger {
    client: reqwest::Client,
    base: Url,
}

impl Ledger {
    fn new(base: &Url) -> Result<Self> {
        let mut base = base.clone();
        // A path without a slash at its end would be replaced by what is joined.
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let client = client_builder(base.scheme() == "https").no_proxy().timeout(TIMEOUT).build()?;
        Ok(Self { client, base })
    }

    /// The effects of each job, and how many name none.
    async fn effects(&self) -> Result<(HashMap<String, Vec<Entry>>, u64)> {
        let (mut effects, mut without_job, mut read) = (HashMap::<String, Vec<Entry>>::new(), 0, 0);
        let mut cursor = "0".to_owned();
        loop {
            let path = format!("_sandbox/ledger/effects?limit={PAGE}&cursor={cursor}");
            let page: Page = self.read(&path).await?;
            read += page.items.len();
            if read > MAX_EFFECTS {
                return Err(self.not_a_ledger(format!("it lists more than {MAX_EFFECTS} effects")));
            }
            for entry in page.items {
                match &entry.job {
                    Some(job) => effects.entry(job.clone()).or_default().push(entry),
                    None => without_job += 1,
                }
            }
            match page.next_cursor {
                Some(next) if next != cursor => cursor = next,
                _ => return Ok((effects, without_job)),
            }
        }
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let url = self.base.join(path).context("the address of the ledger cannot be used")?;
        let mut answer =
            self.client.get(url).send().await.map_err(reqwest::Error::without_url).with_context(|| {
                format!("{} does not answer; name the base URL of a running sandbox", self.base)
            })?;
        let status = answer.status();
        if !status.is_success() {
            return Err(self.not_a_ledger(format!("it answers {path} with HTTP {status}")));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.context("the sandbox's answer broke off")? {
            if body.len() + chunk.len() > MAX_PAGE_BYTES {
                return Err(self.not_a_ledger("its answer is larger than a page of a ledger".to_owned()));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body)
            .map_err(|_| self.not_a_ledger("its answer is not that of a ledger".to_owned()))
    }

    fn not_a_ledger(&self, what: String) -> anyhow::Error {
        NotALedger { base: self.base.clone(), what }.into()
    }
}
