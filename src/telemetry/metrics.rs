//! The one catalogue of metrics: every name, unit, label and help text. `docs/metrics.md` is checked
//! against it by a test.
//!
//! Owners and job IDs are never labels. The only label that is not a closed choice is `toolkit`,
//! which is capped: toolkits beyond [`MAX_TOOLKITS`] are counted as `other`.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, OnceLock},
    time::Duration,
};

use metrics::{Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::{job::AttemptOutcome, sync::lock};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// The full name as Prometheus shows it (histograms add `_bucket`, `_sum` and `_count`).
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// Most lanes beside the configured ones that get a label value of their own in gauges; all others are `other`.
pub const MAX_UNKNOWN_LANES: usize = 50;

/// Most toolkits that get a label value of their own.
pub const MAX_TOOLKITS: usize = 200;

macro_rules! catalogue {
    ($($ident:ident = $kind:ident $unit:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $ident: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                unit: Unit::$unit,
                labels: &[$($label),*],
                help: $help,
            };
        )*

        /// Every metric that errand exposes, in the order of the documentation.
        pub const CATALOGUE: &[Metric] = &[$($ident,)*];
    };
}

catalogue! {
    BUILD_INFO = Gauge Count "errand_build_info" ["version"] "Always 1; the label names the running version.";
    WORKER_BUILDS = Gauge Count "errand_worker_builds" [] "Different builds of errand among the workers that live, as the database knows them.";
    JOBS_FINISHED = Counter Count "errand_jobs_finished_total" ["queue", "toolkit", "outcome"] "Attempts that ended, by what became of the job: succeeded, failed, retryable, held or cancelled.";
    ATTEMPT_DURATION = Histogram Seconds "errand_attempt_duration_seconds" ["outcome"] "Time of one call to the tool API, by the outcome of the attempt.";
    JOB_DURATION = Histogram Seconds "errand_job_duration_seconds" ["queue"] "Time from when a job was first due until its final state was recorded.";
    QUEUE_WAIT = Histogram Seconds "errand_queue_wait_seconds" ["queue"] "Time from when a job was due until a worker claimed it.";
    JOBS_IN_FLIGHT = Gauge Count "errand_jobs_in_flight" ["queue"] "Jobs in flight: claimed by this process and not finished.";
    CONCURRENCY = Gauge Count "errand_concurrency_limit" ["queue"] "The most jobs that this process has in flight at once.";
    RETRIES = Counter Count "errand_retries_total" ["cause"] "Attempts that will be repeated, by the kind of error.";
    CLAIMS = Counter Count "errand_claims_total" ["queue", "result"] "Deliveries taken from the queue, by the answer of the store: running, scheduled, ended, duplicate, gone or conflict.";
    TAKEN = Counter Count "errand_taken_messages_total" ["queue"] "Messages of a lane that this process has taken to their end: claimed, known already, or rejected.";
    CLAIM_BATCH = Histogram Count "errand_claim_batch_jobs" [] "Jobs per claim write.";
    CLAIM_DURATION = Histogram Seconds "errand_claim_duration_seconds" [] "Time of one claim write.";
    FINISH_BATCH = Histogram Count "errand_finish_batch_jobs" [] "Attempts per finish write.";
    FINISH_DURATION = Histogram Seconds "errand_finish_duration_seconds" [] "Time of one finish write.";
    FINISH_BACKLOG = Gauge Count "errand_finish_backlog_jobs" [] "Ended attempts that wait to be written.";
    DUPLICATES = Counter Count "errand_duplicate_deliveries_total" ["queue"] "Deliveries of jobs that the store already knew and did not run again.";
    REJECTED = Counter Count "errand_rejected_messages_total" ["reason"] "Messages that are not valid jobs and were kept whole.";
    FENCED = Counter Count "errand_fenced_results_total" [] "Results that came after another worker had claimed the job; each is recorded on its own attempt only.";
    LATE = Counter Count "errand_late_results_total" [] "Results of workers presumed lost that were still accepted.";
    JOBS_WAITING = Gauge Count "errand_jobs" ["queue", "state"] "Jobs in the store that are not in a final state.";
    JOBS_HELD = Gauge Count "errand_held_jobs" ["reason"] "Held jobs, by what they wait for.";
    OLDEST_DUE = Gauge Seconds "errand_oldest_due_age_seconds" ["queue"] "Time that the job has waited that should have run first: in the store, postponed ones included, or at the head of the lane in the broker, where it is partly an estimate.";
    QUEUE_PAUSED = Gauge Count "errand_queue_paused" ["queue"] "1 for a queue that somebody has paused, from which no worker takes jobs, and else 0.";
    QUEUE_DEPTH = Gauge Count "errand_queue_depth_messages" ["queue"] "Messages that wait in the broker, also in lanes that this process does not consume.";
    RELAY_PUBLISHED = Counter Count "errand_relay_published_total" ["from"] "Jobs that the relay put on the queue, by the state they were in.";
    RELAY_FAILED = Counter Count "errand_relay_failed_total" ["kind"] "Publications that the broker did not confirm; the jobs stay due.";
    REPLIES = Counter Count "errand_replies_total" ["reply", "result"] "Replies offered to the app's queue, about jobs that are final, held or known already and about rejected messages: sent, shortened to where the result is because the broker does not take it, dropped because the queue is gone, refused by the broker, given_up after too many refusals, forbidden by replies.allowed, or failed because the broker takes nothing at present.";
    SQL_JOBS = Counter Count "errand_sql_jobs_total" ["result"] "Jobs that apps have enqueued by the SQL function, when they were taken in: new, known already, failed because they may not run, or rejected and kept because no job can be made of them.";
    EVENT_MESSAGES = Counter Count "errand_event_messages_total" ["result"] "Events offered to the exchange of the broker: sent, failed because the broker or a queue bound to the exchange does not take them at present, or passed_over because they were removed for their age before.";
    EVENTS_TO_PUBLISH = Gauge Count "errand_events_to_publish" [] "Events that wait to be published to the exchange of the broker; 0 where another worker publishes them.";
    CALLBACKS = Counter Count "errand_callbacks_total" ["result"] "Callbacks: delivered, failed and to be sent again, given_up for good, passed_over because their events were removed for their age before, or URLs of owners that were disabled.";
    CALLBACK_DURATION = Histogram Seconds "errand_callback_duration_seconds" [] "Time of one callback, from the look-up of the host to the answer or the end of the time.";
    CALLBACK_EVENTS = Gauge Count "errand_callback_events" [] "Events of which it is not known yet whether a callback is to be sent; 0 where another worker sends them.";
    CALLBACKS_SENDING = Gauge Count "errand_callbacks_sending" [] "Callbacks that this worker is sending.";
    RESCUED = Counter Count "errand_rescued_jobs_total" ["to"] "Running jobs of lost workers that were taken over, by the state they were given.";
    VERIFICATIONS = Counter Count "errand_verifications_total" ["result"] "Look-ups of unknown outcomes in the execution log of the tool API: succeeded, failed, never_arrived, again or gave_up.";
    PANICS = Counter Count "errand_panics_total" [] "Panics in errand's own code that a worker survived; each is a bug, and its job was retried, held or failed with an error that says so.";
    AUDIT_FINDINGS = Gauge Count "errand_audit_findings" ["kind"] "Jobs that the last audit found to be wrong and did not repair; 0 where another worker audits.";
    AUDIT_REPAIRS = Counter Count "errand_audit_repairs_total" ["kind"] "Jobs that an audit brought back to the relay or the rescue.";
    AUDIT_COMPLETED = Gauge Seconds "errand_audit_completed_timestamp_seconds" [] "Unix time at which this process last completed an audit; 0 before its first.";
    BATCHES_COMPLETED = Counter Count "errand_batches_completed_total" [] "Batches, and further generations of batches, that were completed.";
    PRUNED_JOBS = Counter Count "errand_pruned_jobs_total" ["state"] "Jobs that were removed because their retention was over, by their final state.";
    PRUNED_MESSAGES = Counter Count "errand_pruned_rejected_messages_total" ["by"] "Rejected messages that were removed: by age, or before their time by count or bytes.";
    PRUNE_STEP = Histogram Seconds "errand_prune_step_duration_seconds" [] "Time of one statement or transaction that looks for what is over or removes it.";
    ACTIONS = Gauge Count "errand_actions" ["kind"] "Actions by filter that are confirmed and not carried out to their end.";
    ACTION_JOBS = Counter Count "errand_action_jobs_total" ["kind", "result"] "Jobs that this process has decided about for an action by filter: done, or why it was left as it is.";
    CONNECTION_LOOKUPS = Counter Count "errand_connection_lookups_total" ["result"] "Look-ups of connections that held jobs wait for: active, missing or failed.";
    CONNECTION_RELEASED = Counter Count "errand_connection_released_jobs_total" [] "Jobs held for a connection that went on because it is active.";
    CONNECTION_EXPIRED = Counter Count "errand_connection_expired_jobs_total" [] "Jobs held for a connection that failed because their time had passed.";
    CIRCUIT_BREAKERS_OPEN = Gauge Count "errand_circuit_breakers_open" ["scope"] "Open circuit breakers of this process, each for an owner and toolkit, for a toolkit, or for all that jobs look up at a tool API that answers nobody; an open one lets one call or look-up through at a time.";
    CIRCUIT_BREAKER_SNOOZES = Counter Count "errand_circuit_breaker_snoozes_total" ["scope"] "Jobs that were given back without a call because a circuit breaker is open.";
    HEARTBEAT_AGE = Gauge Seconds "errand_heartbeat_age_seconds" [] "Time since this worker's last heartbeat in the store; absent until its first.";
    CONSUMING = Gauge Count "errand_consuming" ["queue"] "1 while this process takes jobs from the lane.";
    BROKER_CONNECTED = Gauge Count "errand_broker_connected" [] "1 while this process is connected to the broker.";
    BROKER_RECONNECTS = Counter Count "errand_broker_reconnects_total" [] "Connections to the broker that replaced a lost one.";
    DEAD_LETTERS = Counter Count "errand_dead_letters_total" [] "Messages that the broker dead-lettered and this process took back.";
    BROKER_POLICY_RISKS = Gauge Count "errand_broker_policy_risks" ["kind"] "Ways in which policies let the broker lose confirmed messages; none are known without amqp.management_url.";
    SUBSCRIPTIONS_RENEWED = Counter Count "errand_subscriptions_renewed_total" ["queue"] "Subscriptions that were renewed because no delivery came although the queue should have had one.";
    STORE_REACHABLE = Gauge Count "errand_store_reachable" [] "1 while the store answers.";
    STORE_RECONNECTS = Counter Count "errand_store_reconnects_total" [] "Times that the store answered again after it had been away.";
    STORE_ERRORS = Counter Count "errand_store_errors_total" ["kind"] "Store calls that failed, by kind.";
    TOOL_API_NEXT_LOOK = Gauge Seconds "errand_tool_api_next_look_timestamp_seconds" [] "Unix time at which this process looks for the tool API again that does not answer; 0 while it answers.";
    API_KEY_REFUSED = Gauge Count "errand_api_key_refused" [] "1 while the tool API does not accept errand's key.";
    LOOKUPS = Counter Count "errand_lookups_total" ["what", "result"] "Look-ups of tools and accounts at the tool API, which the cache could not answer.";
    ARGUMENT_CHECKS = Counter Count "errand_argument_checks_total" ["result"] "Checks of arguments by the input schema of their tool (arguments.check): fit, unfit and called all the same, refused, or unchecked because no schema says.";
    API_REQUESTS = Counter Count "errand_api_requests_total" ["method", "route", "status"] "Requests to the HTTP API, by the class of their status, such as 2xx; the route is that of the description, or other.";
    API_DURATION = Histogram Seconds "errand_api_request_duration_seconds" ["method", "route"] "Time of one request to the HTTP API until its answer began, waiting for a job included.";
    API_CONNECTIONS = Gauge Count "errand_api_connections" [] "Connections to the HTTP API that are open.";
    API_EVICTIONS = Counter Count "errand_api_evicted_connections_total" [] "Connections to the HTTP API that were idle for the longest time and made room for a further one, because all were taken.";
    API_WAITERS = Gauge Count "errand_api_waiting_requests" [] "Requests to the HTTP API that wait for a job to end.";
    API_STREAMS = Gauge Count "errand_api_event_streams" [] "Streams of events that the HTTP API has open.";
    DRAINING = Gauge Count "errand_draining" [] "1 while this process shuts down.";
    PHASE = Gauge Count "errand_phase" ["phase"] "1 for the phase that this process is in, and 0 for the others.";
    JOURNAL_RECORDS = Counter Count "errand_journal_records_total" ["result"] "Results that could not be written before a shutdown ended: written to the journal, and later replayed, fenced, or unknown to the store; those `failing` were not taken at the start and are tried again.";
    PINS_STALE = Gauge Count "errand_pins_stale" [] "1 while pins that are set at run time cannot be read and the last known ones stay.";
    UNREADABLE_ROWS = Counter Count "errand_unreadable_rows_total" [] "Rows that were left as they are because this version of errand cannot read them, each time it met one.";
    UNREADABLE_JOURNALS = Counter Count "errand_unreadable_journals_total" [] "Journals that were set aside because they are damaged or of another version of errand.";
}

const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    600.0, 1800.0, 3600.0,
];
const BATCHES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];

/// Installs the recorder of the process. [`PrometheusHandle::run_upkeep`] must be called every few
/// seconds, or samples pile up between scrapes.
///
/// # Errors
/// A recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_batch_jobs".into()), BATCHES)?
        .install_recorder()?;
    for metric in CATALOGUE {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.unit, metric.help),
            Kind::Gauge => describe_gauge!(metric.name, metric.unit, metric.help),
            Kind::Histogram => describe_histogram!(metric.name, metric.unit, metric.help),
        }
        // A counter that is born with its first event hides that event from every rate, so those that
        // can be named beforehand start at zero.
        match metric.kind {
            Kind::Counter if metric.labels.is_empty() => metric.add([], 0),
            Kind::Gauge if metric.labels.is_empty() => metric.set([], 0.0),
            Kind::Counter | Kind::Gauge | Kind::Histogram => {}
        }
    }
    BUILD_INFO.set([env!("CARGO_PKG_VERSION")], 1.0);
    Ok(handle)
}

impl Metric {
    /// The labels with these values, of which there is one for each.
    fn labels<const N: usize>(&self, kind: Kind, values: [&str; N]) -> Vec<Label> {
        debug_assert!(self.kind == kind && self.labels.len() == N, "{}", self.name);
        self.labels.iter().zip(values).map(|(name, value)| Label::new(*name, value.to_owned())).collect()
    }

    pub(crate) fn add<const N: usize>(&self, labels: [&str; N], n: u64) {
        counter!(self.name, self.labels(Kind::Counter, labels)).increment(n);
    }

    pub(crate) fn set<const N: usize>(&self, labels: [&str; N], value: f64) {
        gauge!(self.name, self.labels(Kind::Gauge, labels)).set(value);
    }

    /// Adds to a gauge, or takes away.
    pub(crate) fn change<const N: usize>(&self, labels: [&str; N], by: f64) {
        gauge!(self.name, self.labels(Kind::Gauge, labels)).increment(by);
    }

    /// Counts one in a gauge without labels, until what is returned is dropped.
    pub(crate) fn counted(&'static self) -> Counted {
        self.change([], 1.0);
        Counted(self)
    }

    pub(crate) fn record<const N: usize>(&self, labels: [&str; N], value: f64) {
        histogram!(self.name, self.labels(Kind::Histogram, labels)).record(value);
    }
}

/// One that a gauge counts.
#[derive(Debug)]
pub(crate) struct Counted(&'static Metric);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.change([], -1.0);
    }
}

/// Handles for what every job of a lane touches. Looking a series up by name and labels costs more
/// than everything else about it.
#[derive(Debug)]
pub(crate) struct LaneMetrics {
    pub(crate) in_flight: metrics::Gauge,
    pub(crate) queue_wait: metrics::Histogram,
    pub(crate) job_duration: metrics::Histogram,
    pub(crate) running: metrics::Counter,
    pub(crate) taken: metrics::Counter,
    attempt_succeeded: metrics::Histogram,
    queue: String,
    /// By toolkit and outcome, whose labels are few.
    finished: Mutex<HashMap<(&'static str, &'static str), metrics::Counter>>,
}

impl LaneMetrics {
    pub(crate) fn new(queue: &str) -> Self {
        let label = |metric: &Metric| {
            debug_assert_eq!(metric.labels.first(), Some(&"queue"), "{}", metric.name);
            queue.to_owned()
        };
        // A counter that is born with its first event hides that event from every rate.
        TAKEN.add([queue], 0);
        Self {
            in_flight: gauge!(JOBS_IN_FLIGHT.name, "queue" => label(&JOBS_IN_FLIGHT)),
            queue_wait: histogram!(QUEUE_WAIT.name, "queue" => label(&QUEUE_WAIT)),
            job_duration: histogram!(JOB_DURATION.name, "queue" => label(&JOB_DURATION)),
            running: counter!(CLAIMS.name, "queue" => label(&CLAIMS), "result" => "running"),
            taken: counter!(TAKEN.name, "queue" => label(&TAKEN)),
            attempt_succeeded: histogram!(
                ATTEMPT_DURATION.name,
                ATTEMPT_DURATION.labels[0] => AttemptOutcome::Succeeded.as_str()
            ),
            queue: queue.to_owned(),
            finished: Mutex::default(),
        }
    }

    /// An attempt took so long from the first byte until it was classified.
    pub(crate) fn attempted(&self, outcome: AttemptOutcome, seconds: f64) {
        match outcome {
            AttemptOutcome::Succeeded => self.attempt_succeeded.record(seconds),
            other => ATTEMPT_DURATION.record([other.as_str()], seconds),
        }
    }

    /// Counts what became of a job when an attempt ended.
    pub(crate) fn finished(&self, toolkit: Option<&str>, outcome: &'static str) {
        let toolkit = toolkit.map_or("none", toolkit_label);
        let queue = || self.queue.clone();
        let new =
            || counter!(JOBS_FINISHED.name, "queue" => queue(), "toolkit" => toolkit, "outcome" => outcome);
        lock(&self.finished).entry((toolkit, outcome)).or_insert_with(new).increment(1);
    }
}

/// The label value of a toolkit: itself while there are few, `other` afterwards. A toolkit is
/// interned once and for ever, so the leak is bounded by [`MAX_TOOLKITS`].
fn toolkit_label(toolkit: &str) -> &'static str {
    static SEEN: OnceLock<Mutex<HashSet<&'static str>>> = OnceLock::new();
    let mut seen = lock(SEEN.get_or_init(Mutex::default));
    if let Some(label) = seen.get(toolkit) {
        return label;
    }
    if seen.len() >= MAX_TOOLKITS || toolkit.len() > 64 {
        return "other";
    }
    let label: &'static str = Box::leak(toolkit.to_owned().into_boxed_str());
    seen.insert(label);
    label
}

/// How often [`PrometheusHandle::run_upkeep`] is called.
pub const UPKEEP: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut seen = HashSet::new();
        for metric in CATALOGUE {
            assert!(metric.name.starts_with("errand_"), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            if metric.unit == Unit::Seconds {
                assert!(metric.name.ends_with("_seconds"), "{}", metric.name);
            }
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            assert!(seen.insert(metric.name), "{} is declared twice", metric.name);
        }
    }

    #[test]
    fn toolkits_beyond_the_cap_share_one_label() {
        for n in 0..MAX_TOOLKITS + 10 {
            let _label = toolkit_label(&format!("toolkit-{n}"));
        }
        assert_eq!(toolkit_label("one-more"), "other");
        assert_eq!(toolkit_label("toolkit-0"), "toolkit-0");
    }
}
