//! From the configuration to the options of each part: the only place that knows both.

use std::time::Duration;

use crate::{
    api,
    backoff::Intervals,
    config::{self, Config},
    job::{OwnerPattern, PublisherRules, QueueName, ReplyRules, RetryPolicy, Rules, WorkerId},
    maintenance::{audit, connections, prune, rescue, verify},
    relay, resolver,
    store::AuditLimits,
    worker,
};

/// Jobs that an audit looks at with one statement, and the time between two of them, for other work of the database.
pub const AUDIT_PAGE: usize = 1_000;
const AUDIT_PAUSE: Duration = Duration::from_millis(20);

/// What rescue, relay and look-ups may take beyond their own times before an audit reports it.
const AUDIT_MARGIN: Duration = Duration::from_secs(60);
const OVERDUE: Duration = Duration::from_secs(10 * 60);

/// An attempt may run so much longer than its timeout: for look-ups, and to write its result while the store is away.
const OVERRUN: Duration = Duration::from_secs(15 * 60);

/// Publications of a job that nobody claims, before an audit reports it. Their waits double from `relay.unclaimed_secs`
/// on, so that these take about a quarter of an hour by default.
const UNCLAIMED_PUBLICATIONS: u32 = 5;

pub fn rules(config: &Config) -> Rules {
    Rules {
        allow_default: config.owners.allow_default,
        refuse_email: config.owners.refuse_email,
        owned_by: config
            .toolkits
            .iter()
            .filter_map(|(slug, toolkit)| toolkit.owned_by.map(|kind| (slug.clone(), kind)))
            .collect(),
        replies: ReplyRules::new(config.replies.allowed.clone()),
        publishers: PublisherRules::new(config.publishers.clone().into_iter().map(patterns).collect()),
        sends_callbacks: config.callbacks.enabled,
    }
}

/// The owners of one publisher. Each was checked when it was read.
fn patterns((publisher, owners): (String, Vec<String>)) -> (String, Vec<OwnerPattern>) {
    (publisher, owners.iter().filter_map(|owner| owner.parse().ok()).collect())
}

pub(super) fn lanes(config: &Config) -> Vec<(QueueName, u32)> {
    let chosen = |name: &QueueName| config.worker.queues.is_empty() || config.worker.queues.contains(name);
    let lanes = config.queues.iter().filter(|(name, _)| chosen(name));
    lanes.map(|(name, lane)| (name.clone(), lane.concurrency)).collect()
}

/// The configured name, or the host's.
pub(super) fn worker_name(config: &Config) -> String {
    if !config.worker.name.is_empty() {
        return config.worker.name.clone();
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    if host.is_empty() { "errand".into() } else { host.into() }
}

fn retry_policy(retry: &config::Retry) -> RetryPolicy {
    RetryPolicy {
        intervals: Intervals {
            initial: Duration::from_millis(retry.initial_ms),
            max: Duration::from_millis(retry.max_ms),
            multiplier: retry.multiplier,
            jitter: retry.jitter,
        },
        max_attempts: retry.max_attempts,
        max_retry_after: Duration::from_secs(retry.max_retry_after_secs),
        max_postponed: Duration::from_secs(retry.max_throttled_secs),
    }
}

pub(super) fn worker(config: &Config, lanes: Vec<(QueueName, u32)>) -> worker::Options {
    worker::Options {
        id: WorkerId::new(),
        name: worker_name(config),
        lanes,
        lease: Duration::from_secs(config.worker.lease_secs),
        heartbeat: Duration::from_secs(config.worker.heartbeat_secs),
        shutdown: Duration::from_secs(config.worker.drain_secs),
        journal_dir: config.worker.journal_dir.clone(),
        accept_unidentified: config.worker.accept_unidentified,
        retry: retry_policy(&config.retry),
        circuit_breaker: worker::CircuitBreakerPolicy {
            after: config.circuit_breaker.after,
            intervals: waits(config.circuit_breaker.first_ms, config.circuit_breaker.max_ms),
            max_retry_after: Duration::from_secs(config.retry.max_retry_after_secs),
        },
        first_check: first_check(config),
        timeout: Duration::from_millis(config.composio.timeout_ms),
        max_buffered_bytes: config.worker.max_buffered_bytes,
        crash: None,
    }
}

pub(super) fn resolver(config: &Config) -> resolver::Options {
    resolver::Options {
        rules: rules(config),
        unpinned: config.pins.unpinned,
        arguments: config.arguments.check,
        config_pins: config.toolkit_versions.clone(),
        env_pins: config.env_pins.clone(),
        tool_ttl: Duration::from_secs(config.composio.tool_cache_secs),
        account_ttl: Duration::from_secs(config.composio.account_cache_secs),
    }
}

pub(super) fn api(config: &Config) -> api::Options {
    let config::Api { cors_origins, requests_per_second, tls_certificate, tls_key, .. } = &config.api;
    let tls = tls_certificate.clone().zip(tls_key.clone());
    api::Options {
        cors_origins: cors_origins.clone(),
        requests_per_second: *requests_per_second,
        tls: tls.map(|(certificate, key)| api::TlsFiles { certificate, key }),
    }
}

pub(super) fn relay(config: &Config) -> relay::Options {
    relay::Options {
        poll: Duration::from_millis(config.relay.poll_ms),
        batch: config.relay.batch,
        unclaimed: Duration::from_secs(config.relay.unclaimed_secs),
        replies: rules(config).replies,
        held: config.replies.held,
    }
}

/// Waits that double from the first to the longest.
fn waits(first_ms: u64, max_ms: u64) -> Intervals {
    Intervals::doubling(Duration::from_millis(first_ms), Duration::from_millis(max_ms)).with_jitter(0.2)
}

/// `None` where a person decides about every unknown outcome.
fn first_check(config: &Config) -> Option<Duration> {
    config.verify.enabled.then(|| Duration::from_millis(config.verify.first_ms))
}

pub(super) fn verify(config: &Config) -> verify::Options {
    let verify = &config.verify;
    verify::Options {
        poll: Duration::from_millis(verify.poll_ms),
        batch: verify.batch,
        policy: verify::Policy {
            intervals: waits(verify.first_ms, verify.max_ms),
            log_delay: Duration::from_secs(verify.log_delay_secs),
            give_up: Duration::from_secs(verify.give_up_secs),
        },
        retry: retry_policy(&config.retry),
        timeout: Duration::from_millis(config.composio.timeout_ms),
    }
}

pub(super) fn audit(config: &Config) -> audit::Options {
    audit::Options {
        page: AUDIT_PAGE,
        pause: AUDIT_PAUSE,
        limits: audit_limits(config),
        repair: config.audit.repair,
        named: audit::NAMED_IN_LOG,
    }
}

/// What is removed when.
pub fn prune(config: &Config) -> prune::Options {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let limit = |limit: u64| (limit > 0).then_some(limit);
    let days = |days: u64| limit(days).map(|days| DAY * u32::try_from(days).unwrap_or(u32::MAX));
    let retention = &config.retention;
    let jobs = prune::JobRetention {
        succeeded: days(retention.succeeded_days),
        failed: days(retention.failed_days),
        cancelled: days(retention.cancelled_days),
    };
    let of_owner = |(owner, own): (&String, &config::OwnerRetention)| {
        let own = prune::JobRetention {
            succeeded: own.succeeded_days.map_or(jobs.succeeded, days),
            failed: own.failed_days.map_or(jobs.failed, days),
            cancelled: own.cancelled_days.map_or(jobs.cancelled, days),
        };
        Some((owner.parse().ok()?, own))
    };
    prune::Options {
        jobs,
        owners: config.owner_retention.iter().filter_map(of_owner).collect(),
        rejected_for: days(retention.rejected_days),
        rejected_count: limit(retention.rejected_count),
        rejected_bytes: limit(retention.rejected_bytes),
        changes_for: days(retention.audit_log_days),
        events_for: days(retention.events_days),
        dry_run: false,
    }
}

/// From when on an audit reports what the flow should have done by itself.
pub fn audit_limits(config: &Config) -> AuditLimits {
    let lease = Duration::from_secs(config.worker.lease_secs);
    AuditLimits {
        lease,
        lost: 2 * Duration::from_secs(config.rescue.poll_secs) + AUDIT_MARGIN,
        timeout: Duration::from_millis(config.composio.timeout_ms),
        overrun: OVERRUN,
        overdue: OVERDUE,
        publications: UNCLAIMED_PUBLICATIONS,
        verified: config.verify.enabled,
    }
}

pub(super) fn connections(config: &Config) -> connections::Options {
    let connections = &config.connections;
    connections::Options {
        enabled: connections.enabled,
        poll: Duration::from_millis(connections.poll_ms),
        batch: connections.batch,
        intervals: waits(connections.first_ms, connections.max_ms).with_jitter(0.3),
    }
}

pub(super) fn rescue(config: &Config) -> rescue::Options {
    rescue::Options {
        poll: Duration::from_secs(config.rescue.poll_secs),
        batch: config.rescue.batch,
        lease: Duration::from_secs(config.worker.lease_secs),
        first_check: first_check(config),
        retry: retry_policy(&config.retry),
    }
}
