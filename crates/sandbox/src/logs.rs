//! Execution logs: what a worker that lost an answer can ask afterwards.
//!
//! The newest executions are kept, bounded by number and by bytes. A log can be made to appear
//! late, to be lost, or to be refused ([`LogSettings`]), because each of these happens.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use axum::body::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::{
    seeded::{fingerprint, fraction},
    world::{LogSettings, LogVisibility, Tool},
};

/// How many executions are kept.
pub(super) const LOGS_KEPT: usize = 100_000;

/// How many bytes of requests and answers are kept in all.
pub(super) const LOG_BYTES_KEPT: usize = 64 * 1024 * 1024;

/// A request or an answer that is larger than this is not kept with its log.
pub(super) const LOG_PAYLOAD_MAX: usize = 16 * 1024;

const LOSE_SALT: u64 = 0x0010_5e00;

#[derive(Debug)]
pub(super) struct Log {
    pub(super) id: Arc<str>,
    pub(super) request_id: Arc<str>,
    pub(super) tool: Arc<Tool>,
    pub(super) version: Arc<str>,
    pub(super) user: Arc<str>,
    pub(super) account: Option<Arc<str>>,
    pub(super) auth_config: Option<Arc<str>>,
    pub(super) successful: bool,
    /// What the provider answered with; `None` if the failure was not an HTTP one.
    pub(super) http_status: Option<u16>,
    pub(super) error: Option<String>,
    pub(super) started: Timestamp,
    pub(super) ended: Timestamp,
    pub(super) visible_from: Timestamp,
    /// The arguments and the true answer, as JSON; `None` if they were too large to keep.
    pub(super) request: Option<Box<str>>,
    pub(super) response: Option<Bytes>,
    /// Whether the project kept arguments, answers and error texts when it ran.
    pub(super) has_data: bool,
}

impl Log {
    fn bytes(&self) -> usize {
        self.request.as_ref().map_or(0, |request| request.len())
            + self.response.as_ref().map_or(0, Bytes::len)
    }

    fn field(&self, field: Field) -> &str {
        match field {
            Field::ToolSlug => &self.tool.slug,
            Field::ToolkitSlug => &self.tool.toolkit.slug,
            Field::ConnectedAccountId => self.account.as_deref().unwrap_or(""),
            Field::AuthConfigId => self.auth_config.as_deref().unwrap_or(""),
            Field::Status => self.status(),
            Field::UserId => &self.user,
            Field::SessionId | Field::SandboxId => "",
            Field::RequestId => &self.request_id,
            Field::LogId => &self.id,
        }
    }

    pub(super) fn status(&self) -> &'static str {
        if self.successful { "success" } else { "failed" }
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Condition {
    pub(super) field: Field,
    pub(super) operator: Operator,
    pub(super) value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Field {
    ToolSlug,
    ToolkitSlug,
    ConnectedAccountId,
    AuthConfigId,
    Status,
    UserId,
    SessionId,
    SandboxId,
    RequestId,
    LogId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Operator {
    #[serde(rename = "==")]
    Equal,
    #[serde(rename = "!=")]
    NotEqual,
    Contains,
    NotContains,
}

impl Condition {
    fn holds(&self, log: &Log) -> bool {
        let found = log.field(self.field);
        match self.operator {
            Operator::Equal => found == self.value,
            Operator::NotEqual => found != self.value,
            Operator::Contains => found.contains(&self.value),
            Operator::NotContains => !found.contains(&self.value),
        }
    }
}

/// What to search for; times are milliseconds since the epoch.
#[derive(Debug, Default)]
pub(super) struct Search {
    pub(super) conditions: Vec<Condition>,
    pub(super) from_ms: Option<i64>,
    pub(super) to_ms: Option<i64>,
    /// Only logs that are older than the one with this number.
    pub(super) before: Option<u64>,
    pub(super) limit: usize,
}

#[derive(Debug)]
pub(super) struct Logs {
    seed: u64,
    settings: RwLock<LogSettings>,
    book: Mutex<Book>,
}

impl Logs {
    pub(super) fn new(seed: u64, settings: LogSettings) -> Self {
        Self { seed, settings: RwLock::new(settings), book: Mutex::default() }
    }

    pub(super) fn settings(&self) -> LogSettings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, settings: LogSettings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    pub(super) fn add(&self, mut log: Log) {
        let settings = self.settings();
        if settings.lose_rate > 0.0
            && fraction(self.seed, LOSE_SALT, fingerprint(&log.request_id)) < settings.lose_rate
        {
            return;
        }
        let delay = SignedDuration::from_millis(i64::from(settings.delay_ms));
        if settings.visibility == LogVisibility::DontStoreData {
            (log.request, log.response, log.error, log.has_data) = (None, None, None, false);
        }
        log.visible_from = log.ended.saturating_add(delay).unwrap_or(log.ended);
        let log = Arc::new(log);
        let mut book = self.book();
        let number = book.forgotten + book.logs.len() as u64;
        book.bytes += log.bytes();
        book.by_id.insert(Arc::clone(&log.id), number);
        book.by_request.entry(Arc::clone(&log.request_id)).or_default().push(number);
        book.logs.push_back(log);
        while book.logs.len() > LOGS_KEPT || book.bytes > LOG_BYTES_KEPT {
            book.forget_oldest();
        }
    }

    pub(super) fn get(&self, id: &str, now: Timestamp) -> Option<Arc<Log>> {
        let book = self.book();
        let number = *book.by_id.get(id)?;
        book.at(number).filter(|log| log.visible_from <= now).cloned()
    }

    /// What matches, newest first, and the number to continue before when there is more.
    pub(super) fn search(&self, search: &Search, now: Timestamp) -> (Vec<Arc<Log>>, Option<u64>) {
        let book = self.book();
        let by_request = search
            .conditions
            .iter()
            .find(|condition| condition.field == Field::RequestId && condition.operator == Operator::Equal);
        let numbers: Box<dyn Iterator<Item = u64>> = match by_request {
            Some(condition) => match book.by_request.get(condition.value.as_str()) {
                Some(numbers) => Box::new(numbers.iter().rev().copied()),
                None => Box::new(std::iter::empty()),
            },
            None => Box::new((book.forgotten..book.forgotten + book.logs.len() as u64).rev()),
        };
        let mut found: Vec<(u64, Arc<Log>)> = numbers
            .filter(|number| search.before.is_none_or(|before| *number < before))
            .filter_map(|number| Some((number, Arc::clone(book.at(number)?))))
            .filter(|(_, log)| {
                let at = log.started.as_millisecond();
                log.visible_from <= now
                    && search.from_ms.is_none_or(|from| at >= from)
                    && search.to_ms.is_none_or(|to| at <= to)
                    && search.conditions.iter().all(|condition| condition.holds(log))
            })
            .take(search.limit + 1)
            .collect();
        let more = found.len() > search.limit;
        found.truncate(search.limit);
        let next = found.last().filter(|_| more).map(|(number, _)| *number);
        (found.into_iter().map(|(_, log)| log).collect(), next)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Book {
    logs: VecDeque<Arc<Log>>,
    /// How many logs are no longer kept; the number of the oldest one that is.
    forgotten: u64,
    bytes: usize,
    by_id: HashMap<Arc<str>, u64>,
    by_request: HashMap<Arc<str>, Vec<u64>>,
}

impl Book {
    fn at(&self, number: u64) -> Option<&Arc<Log>> {
        let index = usize::try_from(number.checked_sub(self.forgotten)?).ok()?;
        self.logs.get(index)
    }

    fn forget_oldest(&mut self) {
        let Some(log) = self.logs.pop_front() else { return };
        let number = self.forgotten;
        self.forgotten += 1;
        self.bytes -= log.bytes();
        self.by_id.remove(&log.id);
        if let Some(numbers) = self.by_request.get_mut(&log.request_id) {
            numbers.retain(|kept| *kept != number);
            if numbers.is_empty() {
                self.by_request.remove(&log.request_id);
            }
        }
    }
}
