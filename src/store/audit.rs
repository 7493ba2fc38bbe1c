//! What the auditor asks of a store: rows that contradict the rules, page by page.
//!
//! The conditions are one text for both backends, so that both mean the same. A backend adds what
//! only it can say: how instants are computed, and how its rescue finds running jobs.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::{Result, StoreError, read::StoreRow};
use crate::{
    job::{JobId, WorkerId},
    string_enum::string_enum,
};

/// The scan for jobs that the flow would never look at again, and the repairs that are safe.
///
/// The scan reads every job once, in the order of the IDs. Each page is one short statement and sees one
/// moment of the store; nothing is locked, and between two pages jobs go on. A page has no finding about
/// a job that is only under way.
#[async_trait]
pub trait Audit: Send + Sync {
    /// Up to `limit` jobs that come after the job `after`, or the first ones, and what is wrong with
    /// them. Changes nothing. An empty page ([`AuditPage::last`] is `None`) is the end.
    async fn audit(
        &self,
        after: Option<JobId>,
        limit: usize,
        limits: &AuditLimits,
    ) -> Result<AuditPage<Finding>>;

    /// Sees to it that the rescue finds those of these jobs that are running, once their workers are lost.
    /// Returns those that it would not have found. Safe for jobs of living workers, and when repeated.
    async fn make_findable(&self, ids: &[JobId]) -> Result<Vec<JobId>>;

    /// Makes those of these jobs that are `available`, and would be published later, due now, as if they had
    /// never been published. Returns them.
    async fn make_due(&self, ids: &[JobId]) -> Result<Vec<JobId>>;

    /// The living worker that started first, by which several workers agree on who does what only one
    /// needs to do. For a moment two may hold themselves for it, so that what it does must bear that.
    async fn eldest_worker(&self, lease: Duration) -> Result<Option<WorkerId>>;

    /// As [`Self::audit`], those of the page that succeeded by a call, and not because a person said so.
    async fn succeeded_by_call(&self, after: Option<JobId>, limit: usize) -> Result<AuditPage<JobId>>;
}

/// How long the flow may take for what it does by itself. What takes longer is a finding.
#[derive(Debug, Clone, Copy)]
pub struct AuditLimits {
    /// The lease of workers that do not say their own.
    pub lease: Duration,
    /// How long after the end of a worker's lease the rescue must have taken its jobs over.
    pub lost: Duration,
    /// The timeout of attempts whose job names none.
    pub timeout: Duration,
    /// How much longer than its timeout an attempt may run.
    pub overrun: Duration,
    /// How late what is due may be: a publication, a look into the execution log, a reply.
    pub overdue: Duration,
    /// After so many publications without a claim, a job counts as not claimed.
    pub publications: u32,
    /// Whether unknown outcomes are looked up in the execution log.
    pub verified: bool,
}

#[derive(Debug, Clone)]
pub struct AuditPage<T> {
    pub items: Vec<T>,
    /// How many jobs were looked at.
    pub seen: u64,
    /// The last of them, after which the next page begins; `None` when there was none left.
    pub last: Option<JobId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub kind: FindingKind,
    pub id: JobId,
    /// Its lane, as the row says it.
    pub queue: String,
}

string_enum! {
    FindingKind {
        /// Running, but its worker is lost or was never known, and nobody has taken it over.
        RunningWithoutWorker = "running_without_worker",
        /// Running, and the rescue would not find it if its worker disappeared.
        RunningWithoutClaim = "running_without_claim",
        /// Running under a living worker for much longer than its timeout allows.
        RunningTooLong = "running_too_long",
        /// Due for long, and nobody has published it.
        NotPublished = "not_published",
        /// Published again and again, and nobody has claimed it: a row without a message.
        NotClaimed = "not_claimed",
        /// An attempt has ended without a record, or its record contradicts the job.
        AttemptWithoutOutcome = "attempt_without_outcome",
        /// Held without a reason, or with a reason but not held.
        HeldWithoutReason = "held_without_reason",
        /// The row breaks another rule of the table, which the database should have refused.
        BrokenRule = "broken_rule",
        /// Held for an unknown outcome, and nobody asks the execution log in time.
        NotLookedUp = "not_looked_up",
        /// Its reply has not been published for long.
        ReplyOverdue = "reply_overdue",
    }
}

/// The CHECK constraints of the table, so that rows are found that slipped in while one was missing or not
/// valid. The one about `held` has a kind of its own.
pub(super) const RULES: &str =
    "((state in ('scheduled', 'available', 'retryable')) = (due_at is not null))
        and ((state = 'running') = (worker_id is not null))
        and (state <> 'running' or (attempt > 0 and request_id is not null and started_at is not null))
        and ((state in ('succeeded', 'failed', 'cancelled')) = (finished_at is not null))
        and ((state = 'succeeded') = (result is not null))
        and (http_status is null or (state = 'succeeded' and attempt = 1))
        and (case when error_kind is null
            then state not in ('failed', 'held') and error_message is null and error_code is null and error_slug is null
            else state <> 'succeeded' and error_message is not null end)
        and (case when toolkit is null
            then toolkit_version is null and pinned_by is null and account is null and frozen_effect is null
            else toolkit_version is not null and pinned_by is not null and frozen_effect is not null end)
        and (spent between 0 and attempt)
        and (not cancel_requested or state in ('running', 'succeeded', 'failed', 'cancelled'))
        and (check_at is null or (unknown_since is not null
            and (state = 'cancelled' or (held_reason is not null and held_reason = 'unknown_outcome'))))
        and (reply_due_at is null or (reply_to is not null and finished_at is not null))";

/// The statement of one page. What a backend says itself are the fragments `audit_after`, `audit_instants` (the columns
/// `lost_before`, `overdue_before` and `overrun_before`), `audit_alive_after` (the beat after which the lease
/// of the worker `w` has not been over for long), `audit_overran` (whether the attempt is longer than its timeout
/// at `overrun_before`) and `audit_findable` (whether the rescue finds the running job of a lost worker).
///
/// The first row has no kind: it says how many jobs were looked at, and the last of them.
pub(super) const AUDIT: &str = "with l as materialized (select {audit_instants}),
    keys as materialized (select id from jobs where {audit_after} order by id limit +{limit}),
    page as materialized (
        select id, queue, state, due_at, published, held_reason, check_at, checks, reply_due_at, overdue_before,
            state = 'running' and (started_at is null or started_at <= lost_before)
                and not exists (select 1 from workers w where w.id = jobs.worker_id and w.beat_at > {audit_alive_after}) as lost,
            state <> 'running' or ({audit_findable}) as findable,
            state = 'running' and {audit_overran} as overran,
            case when attempt > 0 and http_status is null then (
                select case when coalesce(sum(a.times), 0) >= jobs.attempt - case when jobs.state = 'running' then 1 else 0 end
                    and count(*) = count(*) filter (where a.number <= jobs.attempt
                        and (a.number < jobs.attempt or a.request_id = jobs.request_id)
                        and a.outcome in ('succeeded', 'tool_failed', 'refused', 'throttled', 'not_sent', 'unknown',
                            'lost', 'interrupted'))
                    then 0 else 1 end
                from attempts a where a.job_id = jobs.id) else 0 end as unrecorded,
            not ({rules}) as broken
        from keys join jobs using (id) cross join l)
    select null as kind, (select id from keys order by id desc limit 1) as id, null as queue,
        (select count(*) from keys) as seen
    union all select 'running_without_worker', id, queue, 0 from page where lost
    union all select 'running_without_claim', id, queue, 0 from page where not findable and not lost
    union all select 'running_too_long', id, queue, 0 from page where overran and not lost
    union all select 'not_published', id, queue, 0 from page where due_at < overdue_before
    union all select 'not_claimed', id, queue, 0 from page
        where state = 'available' and published >= {publications} and due_at >= overdue_before
    union all select 'attempt_without_outcome', id, queue, 0 from page where unrecorded = 1
    union all select 'held_without_reason', id, queue, 0 from page
        where (state = 'held') <> (held_reason is not null)
    union all select 'broken_rule', id, queue, 0 from page where broken
    union all select 'not_looked_up', id, queue, 0 from page where check_at < overdue_before
        or (held_reason = 'unknown_outcome' and check_at is null and checks = 0 and {verified})
    union all select 'reply_overdue', id, queue, 0 from page where reply_due_at < overdue_before";

/// The statement of one page of [`Audit::succeeded_by_call`], in the same form.
pub(super) const SUCCEEDED: &str = "with keys as materialized (select id from jobs where {audit_after} order by id limit +{limit})
    select false as succeeded, (select id from keys order by id desc limit 1) as id, (select count(*) from keys) as seen
    union all
    select true, id, 0 from keys join jobs using (id) where state = 'succeeded' and (http_status is not null
        or exists (select 1 from attempts a where a.job_id = jobs.id and a.outcome = 'succeeded'))";

impl AuditPage<Finding> {
    /// Reads the rows of [`AUDIT`].
    pub(super) fn findings(rows: &[impl StoreRow]) -> Result<Self> {
        Self::read(rows, |row, id| match (row.parse_if_any("kind")?, id) {
            (None, _) => Ok(None),
            (Some(kind), Some(id)) => Ok(Some(Finding { kind, id, queue: row.read("queue")? })),
            (Some(_), None) => Err(StoreError::corrupt("id")),
        })
    }
}

impl AuditPage<JobId> {
    /// Reads the rows of [`SUCCEEDED`].
    pub(super) fn succeeded(rows: &[impl StoreRow]) -> Result<Self> {
        Self::read(rows, |row, id| Ok(if row.read("succeeded")? { id } else { None }))
    }
}

impl<T> AuditPage<T> {
    /// Reads rows of which the one that is no item says how many jobs were looked at, and the last of them.
    fn read<R: StoreRow>(rows: &[R], item: impl Fn(&R, Option<JobId>) -> Result<Option<T>>) -> Result<Self> {
        let mut page = Self { items: Vec::new(), seen: 0, last: None };
        for row in rows {
            let id = row.read::<Option<Uuid>>("id")?.map(JobId);
            match item(row, id)? {
                Some(item) => page.items.push(item),
                None => (page.seen, page.last) = (row.total("seen")?, id),
            }
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use super::*;
    use crate::job::AttemptOutcome;

    fn flat(text: &str) -> String {
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_kind_has_one_word_and_one_condition() {
        for kind in FindingKind::ALL {
            assert_eq!(AUDIT.matches(&format!("select '{}',", kind.as_str())).count(), 1, "{kind:?}");
        }
        assert_eq!(AUDIT.matches("union all").count(), FindingKind::ALL.len());
    }

    #[test]
    fn every_outcome_is_known_to_the_scan() {
        for outcome in AttemptOutcome::ALL {
            assert!(AUDIT.contains(&format!("'{outcome}'")), "{outcome}");
        }
    }

    #[test]
    fn every_constraint_of_the_table_is_one_of_the_rules() {
        let rules = flat(RULES);
        for database in ["postgres", "sqlite"] {
            let folder = format!("{}/migrations/{database}", env!("CARGO_MANIFEST_DIR"));
            let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
            files.sort();
            let all: String =
                files.iter().map(|file| flat(&fs::read_to_string(file).unwrap()) + " ").collect();
            // The last definition of a constraint holds.
            let defined = all.split("constraint jobs_").skip(1).filter_map(|text| text.split_once(" check "));
            let constraints: BTreeMap<&str, &str> = defined.collect();
            assert!(constraints.len() > 10);
            for (name, rest) in constraints {
                // What follows is the next constraint, the end of the table or the end of the statement.
                let ends = [" ) ", " );", ", ", " not valid;"];
                let rule = ends.iter().fold(rest, |rule, end| match *end {
                    ", " => rule.trim_end_matches(", "),
                    end => rule.split(end).next().unwrap_or(rule),
                });
                if name != "held_has_reason" {
                    assert!(rules.contains(rule), "{name}: {rule}");
                }
            }
        }
    }
}
