//! Decides what a job is bound to: toolkit, version, account and effect.
//!
//! On the hot path everything is remembered ([`Resolver::decide_cached`]); a job for which something must be looked up
//! is claimed first and decided afterwards ([`Resolver::decide`]), so that a slow tool API never holds a delivery.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    failure::chain,
    health::{ASK_EVERY, Health},
    job::{
        Arrival, Asked, Binding, EnvelopeError, JobError, JobSpec, NotReady, ReplyKind, Rules, Stop,
        looks_like_email,
    },
    store::{SharedStore, StoreError},
    sync,
    telemetry::metrics,
    tool::{
        SharedToolApi,
        account::{AccountOptions, Accounts},
        arguments::{ArgumentCheck, ArgumentProblem, Arguments, Verdict},
        catalog::{Ask, Catalog, CatalogOptions, Known, Resolved, UnpinnedPolicy},
        pin::{PinSources, PinTable, VersionMap},
    },
};

/// So long after a pin was set, every worker whose store answers decides by it: they read pins
/// every second.
pub const PINS_KNOWN_AFTER: Duration = Duration::from_millis(1_500);

/// Most notices that are remembered; further ones are not given.
const MAX_NOTICES: usize = 1_000;

#[derive(Debug)]
pub struct Resolver {
    catalog: Catalog,
    accounts: Accounts,
    rules: Rules,
    policy: UnpinnedPolicy,
    argument_check: ArgumentCheck,
    arguments: Arguments,
    pins: RwLock<PinSources>,
    /// What was said before: each notice is worth one line, not one per job.
    noticed: Mutex<HashSet<String>>,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub rules: Rules,
    pub unpinned: UnpinnedPolicy,
    pub arguments: ArgumentCheck,
    pub config_pins: VersionMap,
    pub env_pins: VersionMap,
    /// How long descriptions of tools, and usable accounts, are remembered.
    pub tool_ttl: Duration,
    pub account_ttl: Duration,
}

impl Resolver {
    /// A resolver without the store's pins, which [`Self::load_pins`] reads.
    pub fn new(api: SharedToolApi, options: Options) -> Self {
        let Options { rules, unpinned, arguments, config_pins, env_pins, tool_ttl, account_ttl } = options;
        let keep_schemas = arguments != ArgumentCheck::Off;
        Self {
            catalog: Catalog::new(
                api.clone(),
                CatalogOptions { keep_schemas, ..CatalogOptions::new(tool_ttl) },
            ),
            accounts: Accounts::new(api, AccountOptions::new(account_ttl)),
            rules,
            noticed: Mutex::default(),
            policy: unpinned,
            argument_check: arguments,
            arguments: Arguments::default(),
            pins: RwLock::new(PinSources {
                table: Arc::default(),
                config: Arc::new(config_pins),
                env: Arc::new(env_pins),
            }),
        }
    }

    /// Checks a job by itself; it fails with the error.
    pub fn check(&self, spec: &JobSpec, now: Timestamp) -> Result<(), JobError> {
        self.rules.check(spec, now)?;
        if looks_like_email(spec.owner.id()) && self.is_news("e-mail") {
            tracing::warn!(
                owner.kind = %spec.owner.kind(),
                "jobs come with e-mail addresses as owner IDs, which change hands; set owners.refuse_email to refuse them"
            );
        }
        Ok(())
    }

    /// Who waits for the answer to a message, if they may have one.
    pub fn asked(
        &self,
        arrival: &Arrival<'_>,
        kind: ReplyKind,
        about: Uuid,
        redelivered: bool,
    ) -> Option<Asked> {
        self.rules.replies.asked(arrival, kind, about, redelivered)
    }

    /// Checks who published the message of a job, and where its result is to be published. What does not pass is rejected.
    pub fn check_message(&self, spec: &JobSpec) -> Result<(), EnvelopeError> {
        self.rules.publishers.check(spec)?;
        self.rules.replies.check(spec)
    }

    /// Passes on the API's notice that a pinned version will go away.
    pub fn note_deprecated(&self, toolkit: &str, version: &str, notice: &str) {
        if self.is_news(&format!("{toolkit} {version}")) {
            tracing::warn!(toolkit, version, notice, "the pinned version will go away");
        }
    }

    fn is_news(&self, what: &str) -> bool {
        let mut noticed = sync::lock(&self.noticed);
        noticed.len() < MAX_NOTICES && noticed.insert(what.to_owned())
    }

    /// The decision, if everything it needs is remembered. Never waits.
    pub fn decide_cached(&self, spec: &JobSpec) -> Option<Result<Binding, NotReady>> {
        let resolved = match self.catalog.resolve_cached(&Ask::from(spec), &self.pins(), self.policy)? {
            Ok(resolved) => resolved,
            Err(error) => return Some(Err(error.not_ready())),
        };
        if let Err(error) = self.rules.check_toolkit(spec, &resolved.toolkit) {
            return Some(Err(Stop::Fail { error }.into()));
        }
        let verdict = self.check_arguments(spec, &resolved);
        if let Err(refused) = self.judge_arguments(spec, &resolved, &verdict) {
            self.tell_arguments(spec, &resolved, &verdict);
            return Some(Err(refused));
        }
        if resolved.no_auth && spec.connected_account_id.is_none() {
            self.tell_arguments(spec, &resolved, &verdict);
            return Some(Ok(binding(resolved, None)));
        }
        let explicit = spec.connected_account_id.as_deref();
        let account = self.accounts.resolve_cached(&spec.owner, &resolved.toolkit, explicit)?;
        self.tell_arguments(spec, &resolved, &verdict);
        Some(account.map(|id| binding(resolved, Some(id))).map_err(|error| error.not_ready()))
    }

    /// The decision for a job that was claimed at `since`, asking the tool API where something is not remembered, within
    /// the client's own timeouts. The error says why the job cannot be called now, and what to do with it.
    pub async fn decide(&self, spec: &JobSpec, since: Instant) -> Result<Binding, NotReady> {
        self.decide_and_tell(spec, since, &mut Vec::new()).await
    }

    /// As [`Self::decide`]; also adds what is wrong with the arguments, whether that stops the job or not.
    pub async fn decide_and_tell(
        &self,
        spec: &JobSpec,
        since: Instant,
        problems: &mut Vec<ArgumentProblem>,
    ) -> Result<Binding, NotReady> {
        let pins = self.pins();
        let resolved = self.catalog.resolve(&Ask::from(spec), &pins, self.policy).await;
        metrics::LOOKUPS.add(["tool", if resolved.is_ok() { "found" } else { "failed" }], 1);
        let resolved = resolved.map_err(|error| error.not_ready())?;
        self.rules.check_toolkit(spec, &resolved.toolkit).map_err(|error| Stop::Fail { error })?;
        let verdict = self.check_arguments(spec, &resolved);
        self.tell_arguments(spec, &resolved, &verdict);
        let judged = self.judge_arguments(spec, &resolved, &verdict);
        if let Verdict::Unfit(found) = verdict {
            problems.extend(found);
        }
        judged?;
        if resolved.no_auth && spec.connected_account_id.is_none() {
            return Ok(binding(resolved, None));
        }
        let explicit = spec.connected_account_id.as_deref();
        let account = self.accounts.resolve(&spec.owner, &resolved.toolkit, explicit, Some(since)).await;
        metrics::LOOKUPS.add(["account", if account.is_ok() { "found" } else { "failed" }], 1);
        account.map(|id| binding(resolved, Some(id))).map_err(|error| error.not_ready())
    }

    fn check_arguments(&self, spec: &JobSpec, resolved: &Resolved) -> Verdict {
        if self.argument_check == ArgumentCheck::Off {
            return Verdict::Unchecked;
        }
        self.arguments.check(spec, &resolved.version, resolved.input_schema.as_deref())
    }

    /// An error if the job must not run with its arguments.
    fn judge_arguments(
        &self,
        spec: &JobSpec,
        resolved: &Resolved,
        verdict: &Verdict,
    ) -> Result<(), NotReady> {
        match verdict {
            Verdict::Unfit(problems) if self.argument_check == ArgumentCheck::Refuse => {
                let error = ArgumentProblem::error(problems, &spec.tool, &resolved.version);
                Err(Stop::Fail { error }.into())
            }
            Verdict::Unfit(_) | Verdict::Fits | Verdict::Unchecked => Ok(()),
        }
    }

    /// Counts a check, and tells once of each tool and version whose arguments did not fit, without what was sent.
    fn tell_arguments(&self, spec: &JobSpec, resolved: &Resolved, verdict: &Verdict) {
        let result = match (self.argument_check, verdict) {
            (ArgumentCheck::Off, _) => return,
            (_, Verdict::Fits) => "fit",
            (_, Verdict::Unchecked) => "unchecked",
            (ArgumentCheck::Warn, Verdict::Unfit(_)) => "unfit",
            (ArgumentCheck::Refuse, Verdict::Unfit(_)) => "refused",
        };
        metrics::ARGUMENT_CHECKS.add([result], 1);
        let Verdict::Unfit(problems) = verdict else { return };
        let (tool, version) = (&spec.tool, &resolved.version);
        if self.argument_check == ArgumentCheck::Warn && self.is_news(&format!("arguments {tool} {version}"))
        {
            let mut rules: Vec<&str> = problems.iter().map(|problem| problem.rule).collect();
            rules.sort_unstable();
            rules.dedup();
            tracing::warn!(
                tool,
                version,
                rules = rules.join(","),
                "jobs come with arguments that do not fit the tool's input schema, and are called all the same; a dry run \
                 of one says what does not fit"
            );
        }
    }

    /// Whether an earlier decision lacks its account, because it waited for a connection. Never waits; yes in doubt.
    pub fn lacks_account(&self, spec: &JobSpec, binding: &Binding) -> bool {
        if binding.account.is_some() {
            return false;
        }
        let needs_none = |known| matches!(known, Known::Found(info) if info.no_auth);
        !self.catalog.get_cached(&spec.tool, Some(&binding.version)).is_some_and(needs_none)
    }

    /// As [`Self::decide`], for a decision of which only the account is missing; the rest of it stays.
    pub async fn decide_account(
        &self,
        spec: &JobSpec,
        binding: Binding,
        since: Instant,
    ) -> Result<Binding, NotReady> {
        let info = self.catalog.get(&spec.tool, Some(&binding.version)).await;
        if info.map_err(|error| error.not_ready("describe the tool"))?.no_auth {
            return Ok(binding);
        }
        let explicit = spec.connected_account_id.as_deref();
        let account = self.accounts.resolve(&spec.owner, &binding.toolkit, explicit, Some(since)).await;
        account.map(|id| Binding { account: Some(id), ..binding }).map_err(|error| error.not_ready())
    }

    /// To be asked right before the call, because since the decision calls with the same account may have been refused. Then
    /// the job has to wait for another account, or for what the one who tries again learns. Never waits.
    pub fn admit_account(&self, spec: &JobSpec, binding: &Binding) -> Result<(), NotReady> {
        match &binding.account {
            Some(account) => {
                self.accounts.admit(&spec.owner, &binding.toolkit, account).map_err(|error| error.not_ready())
            }
            None => Ok(()),
        }
    }

    /// To be told after a call that was refused because of its account.
    pub fn account_refused(&self, spec: &JobSpec, binding: &Binding) {
        if let Some(account) = &binding.account {
            self.accounts.refused(&spec.owner, account);
        }
        self.accounts.forget(&spec.owner, &binding.toolkit);
        if let Some(id) = &spec.connected_account_id {
            self.accounts.forget_account(&spec.owner, id);
        }
    }

    /// To be told after a call in which the tool ran.
    pub fn account_accepted(&self, spec: &JobSpec, binding: &Binding) {
        if let Some(account) = &binding.account {
            self.accounts.accepted(&spec.owner, account);
        }
    }

    /// Reads the store's pins until `stop`, so that a pin that is set at run time takes effect within seconds. It is what
    /// is asked of the store most regularly, so readiness is judged by it.
    pub async fn refresh_pins(
        self: Arc<Self>,
        store: SharedStore,
        health: Arc<Health>,
        stop: CancellationToken,
    ) {
        let mut is_stale = false;
        while !stop.is_cancelled() {
            let loaded = health.asking_store(self.load_pins(&store)).await;
            match &loaded {
                Ok(()) => {
                    health.store_answered();
                    if is_stale {
                        tracing::info!("pins can be read again");
                    }
                }
                Err(error) => {
                    let why = chain(error);
                    if !is_stale {
                        tracing::warn!(error = %why, "pins cannot be read; the last known ones stay");
                    }
                    if error.kind().is_of_the_whole_store() {
                        health.store_failed(why);
                    }
                }
            }
            is_stale = loaded.is_err();
            metrics::PINS_STALE.set([], f64::from(u8::from(is_stale)));
            stop.run_until_cancelled(tokio::time::sleep(ASK_EVERY)).await;
        }
    }

    /// Reads the store's pins once. If the store does not answer, the last known ones stay. Nothing may be decided before
    /// this has succeeded once.
    pub async fn load_pins(&self, store: &SharedStore) -> Result<(), StoreError> {
        let table = Arc::new(PinTable::new(store.pins().await?));
        sync::write(&self.pins).table = table;
        Ok(())
    }

    fn pins(&self) -> PinSources {
        sync::read(&self.pins).clone()
    }
}

fn binding(resolved: Resolved, account: Option<String>) -> Binding {
    let Resolved { toolkit, version, pinned_by, effect, .. } = resolved;
    Binding { toolkit, version, pinned_by, account, effect }
}
