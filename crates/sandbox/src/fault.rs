//! Faults on demand: rules that say which calls go wrong, and how.
//!
//! A rule is written flat ([`RuleSpec`]) in a world file or sent over HTTP, and checked into a
//! [`Fault`]. Rules are tried in order. Every latency that applies is added up; of the others the
//! first that applies wins. Whether a rule applies to a call depends on the seed, the rule's place,
//! and the call's job and attempt (or request ID), never on the order of calls; only `times` counts.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::seeded;

/// The longest time that a rule may make a call wait, and how long a hang without an end lasts.
pub(super) const WAIT_MAX_MS: u64 = 900_000;

/// The most bytes that a rule may make an answer carry.
const LARGE_MAX_BYTES: usize = 256 * 1024 * 1024;

/// A rule as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleSpec {
    pub(super) kind: Kind,
    #[serde(default = "any_tool")]
    pub(super) tool: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    #[serde(default = "always")]
    pub(super) rate: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) times: Option<u64>,

    #[serde(skip_serializing_if = "Option::is_none")]
    fixed_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<BodyForm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after_effect: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    legacy: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    form: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Latency,
    Status,
    ProviderFailure,
    Hang,
    Reset,
    Malformed,
    Large,
    Throttle,
}

/// What the body of a `status` fault looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BodyForm {
    Enveloped,
    Html,
    Empty,
    StringCode,
    StringError,
    MessageOnly,
    NoSlug,
}

/// How a `malformed` answer differs from a good one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Malformed {
    TruncatedJson,
    TruncatedBody,
    NotJson,
    Empty,
    NoLogId,
    ExtraFields,
    ErrorText,
}

/// A rule that was checked, with how often it applied.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    spec: RuleSpec,
    action: Action,
    applied: Arc<AtomicU64>,
}

impl Rule {
    /// # Errors
    /// One sentence for each thing that is missing or does not belong to the rule's kind.
    pub(super) fn new(spec: RuleSpec) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        if !(0.0..=1.0).contains(&spec.rate) {
            mistakes.push(format!("rate is {}; it is a fraction from 0 to 1", spec.rate));
        }
        spec.refuse_foreign_settings(&mut mistakes);
        let action = spec.action(&mut mistakes);
        match action {
            Some(action) if mistakes.is_empty() => Ok(Self { spec, action, applied: Arc::default() }),
            _ => Err(mistakes),
        }
    }

    pub(super) fn spec(&self) -> &RuleSpec {
        &self.spec
    }

    pub(super) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    /// Whether the rule applies to a call; if so it is counted.
    fn applies(&self, index: usize, call: &Subject<'_>) -> bool {
        let spec = &self.spec;
        let matches = (spec.tool == "*" || spec.tool == call.tool)
            && spec.user.as_deref().is_none_or(|user| user == call.user)
            && spec.first.is_none_or(|first| call.ordinal <= first)
            && (spec.rate >= 1.0 || seeded::fraction(call.seed, salt(index, 0), call.key()) < spec.rate);
        matches
            && self
                .applied
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |applied| {
                    spec.times.is_none_or(|times| applied < times).then_some(applied + 1)
                })
                .is_ok()
    }
}

/// What a rule needs to know of a call.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    pub(super) seed: u64,
    pub(super) tool: &'a str,
    pub(super) user: &'a str,
    /// The fingerprint of the call's job, or of its request ID when it names no job.
    pub(super) identity: u128,
    /// Which call with that identity this is, from 1.
    pub(super) ordinal: u32,
}

impl Subject<'_> {
    fn key(&self) -> u128 {
        self.identity ^ u128::from(self.ordinal)
    }
}

/// What is to go wrong with one call.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) latency: Duration,
    pub(super) fault: Option<Fault>,
}

#[derive(Debug, Clone)]
pub(super) enum Fault {
    Status { status: u16, body: BodyForm, headers: Vec<(HeaderName, HeaderValue)>, after_effect: bool },
    Provider { status: Option<u16>, message: Option<String>, legacy: bool },
    Hang { after_effect: bool, ms: Option<u64> },
    Reset { after_effect: bool },
    Malformed(Malformed),
    Large { bytes: usize },
    Throttle { retry_after: Option<String>, edge: bool },
}

/// The rules in force.
#[derive(Debug)]
pub(super) struct Faults {
    rules: RwLock<Arc<Vec<Rule>>>,
}

impl Faults {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        Self { rules: RwLock::new(Arc::new(rules)) }
    }

    pub(super) fn rules(&self) -> Arc<Vec<Rule>> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn replace(&self, rules: Vec<Rule>) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    pub(super) fn plan(&self, call: &Subject<'_>) -> Plan {
        let rules = self.rules();
        let mut plan = Plan::default();
        for (index, rule) in rules.iter().enumerate() {
            match &rule.action {
                Action::Wait(wait) if rule.applies(index, call) => {
                    plan.latency += wait.sample(seeded::fraction(call.seed, salt(index, 1), call.key()));
                }
                Action::Fail(fault) if plan.fault.is_none() && rule.applies(index, call) => {
                    plan.fault = Some(fault.clone());
                }
                Action::Wait(_) | Action::Fail(_) => {}
            }
        }
        plan
    }
}

#[derive(Debug, Clone)]
enum Action {
    Wait(Wait),
    Fail(Fault),
}

#[derive(Debug, Clone, Copy)]
enum Wait {
    Fixed(u64),
    Uniform(u64, u64),
    Exponential(u64),
}

impl Wait {
    /// The wait at a fraction of its distribution.
    fn sample(self, fraction: f64) -> Duration {
        let ms = match self {
            Self::Fixed(ms) => ms as f64,
            Self::Uniform(min, max) => min as f64 + (max - min) as f64 * fraction,
            Self::Exponential(mean) => -(1.0 - fraction).ln() * mean as f64,
        };
        Duration::from_secs_f64(ms.min(WAIT_MAX_MS as f64) / 1000.0)
    }
}

impl RuleSpec {
    fn action(&self, mistakes: &mut Vec<String>) -> Option<Action> {
        match self.kind {
            Kind::Latency => self.wait(mistakes).map(Action::Wait),
            Kind::Status => self.status_fault(mistakes).map(Action::Fail),
            Kind::ProviderFailure => Some(Action::Fail(Fault::Provider {
                status: self.provider_status,
                message: self.message.clone(),
                legacy: self.legacy.unwrap_or(false),
            })),
            Kind::Hang => {
                self.check_wait("ms", self.ms, mistakes);
                Some(Action::Fail(Fault::Hang { after_effect: self.after_effect(mistakes)?, ms: self.ms }))
            }
            Kind::Reset => Some(Action::Fail(Fault::Reset { after_effect: self.after_effect(mistakes)? })),
            Kind::Malformed => self.malformed(mistakes).map(Action::Fail),
            Kind::Large => match self.bytes {
                Some(bytes) if bytes <= LARGE_MAX_BYTES => Some(Action::Fail(Fault::Large { bytes })),
                _ => {
                    mistakes.push(format!("large needs bytes, at most {LARGE_MAX_BYTES}"));
                    None
                }
            },
            Kind::Throttle => self.throttle(mistakes).map(Action::Fail),
        }
    }

    fn wait(&self, mistakes: &mut Vec<String>) -> Option<Wait> {
        for (name, ms) in [("fixed_ms", self.fixed_ms), ("max_ms", self.max_ms), ("mean_ms", self.mean_ms)] {
            self.check_wait(name, ms, mistakes);
        }
        match (self.fixed_ms, self.min_ms, self.max_ms, self.mean_ms) {
            (Some(ms), None, None, None) => Some(Wait::Fixed(ms)),
            (None, min, Some(max), None) if min.unwrap_or(0) <= max => {
                Some(Wait::Uniform(min.unwrap_or(0), max))
            }
            (None, None, None, Some(mean)) => Some(Wait::Exponential(mean)),
            _ => {
                mistakes.push(
                    "latency needs either fixed_ms, or min_ms and a max_ms that is not less, or mean_ms"
                        .to_owned(),
                );
                None
            }
        }
    }

    fn check_wait(&self, name: &str, ms: Option<u64>, mistakes: &mut Vec<String>) {
        if ms.is_some_and(|ms| ms > WAIT_MAX_MS) {
            mistakes.push(format!("{name} is more than {WAIT_MAX_MS}"));
        }
    }

    fn status_fault(&self, mistakes: &mut Vec<String>) -> Option<Fault> {
        let Some(status @ 200..=599) = self.status else {
            mistakes.push("status needs status = a number from 200 to 599".to_owned());
            return None;
        };
        let mut headers = Vec::new();
        for (name, value) in self.headers.iter().flatten() {
            match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                (Ok(name), Ok(value)) => headers.push((name, value)),
                _ => mistakes.push(format!("\"{name}: {value}\" is not a header")),
            }
        }
        Some(Fault::Status {
            status,
            body: self.body.unwrap_or(BodyForm::Enveloped),
            headers,
            after_effect: self.after_effect.unwrap_or(false),
        })
    }

    fn malformed(&self, mistakes: &mut Vec<String>) -> Option<Fault> {
        let form = serde_json::Value::from(self.form.as_deref().unwrap_or(""));
        match Malformed::deserialize(form) {
            Ok(form) => Some(Fault::Malformed(form)),
            Err(e) => {
                mistakes.push(format!("form: {e}"));
                None
            }
        }
    }

    fn throttle(&self, mistakes: &mut Vec<String>) -> Option<Fault> {
        let edge = match self.form.as_deref() {
            None | Some("org") => false,
            Some("edge") => true,
            Some(_) => {
                mistakes.push("throttle needs form = \"org\" (the default) or \"edge\"".to_owned());
                return None;
            }
        };
        if self.retry_after.as_ref().is_some_and(|value| HeaderValue::try_from(value).is_err()) {
            mistakes.push("retry_after has characters that no header can carry".to_owned());
        }
        Some(Fault::Throttle { retry_after: self.retry_after.clone(), edge })
    }

    /// Before or after the effect is the whole point of these kinds, so it has no default.
    fn after_effect(&self, mistakes: &mut Vec<String>) -> Option<bool> {
        if self.after_effect.is_none() {
            mistakes.push("after_effect = true or false is missing".to_owned());
        }
        self.after_effect
    }

    fn refuse_foreign_settings(&self, mistakes: &mut Vec<String>) {
        let settings: [(&str, bool, &[Kind]); 15] = [
            ("fixed_ms", self.fixed_ms.is_some(), &[Kind::Latency]),
            ("min_ms", self.min_ms.is_some(), &[Kind::Latency]),
            ("max_ms", self.max_ms.is_some(), &[Kind::Latency]),
            ("mean_ms", self.mean_ms.is_some(), &[Kind::Latency]),
            ("status", self.status.is_some(), &[Kind::Status]),
            ("body", self.body.is_some(), &[Kind::Status]),
            ("headers", self.headers.is_some(), &[Kind::Status]),
            ("after_effect", self.after_effect.is_some(), &[Kind::Status, Kind::Hang, Kind::Reset]),
            ("provider_status", self.provider_status.is_some(), &[Kind::ProviderFailure]),
            ("message", self.message.is_some(), &[Kind::ProviderFailure]),
            ("legacy", self.legacy.is_some(), &[Kind::ProviderFailure]),
            ("ms", self.ms.is_some(), &[Kind::Hang]),
            ("form", self.form.is_some(), &[Kind::Malformed, Kind::Throttle]),
            ("bytes", self.bytes.is_some(), &[Kind::Large]),
            ("retry_after", self.retry_after.is_some(), &[Kind::Throttle]),
        ];
        for (name, given, kinds) in settings {
            if given && !kinds.contains(&self.kind) {
                mistakes.push(format!("{name} does not belong to a rule of kind {:?}", self.kind));
            }
        }
    }
}

/// A rule's own stream of draws.
fn salt(index: usize, purpose: u64) -> u64 {
    0x000f_a170 + (index as u64) * 2 + purpose
}

fn any_tool() -> String {
    "*".to_owned()
}

fn always() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(json: serde_json::Value) -> Result<Rule, Vec<String>> {
        Rule::new(serde_json::from_value(json).unwrap())
    }

    #[test]
    fn waits_follow_their_distribution() {
        assert_eq!(Wait::Fixed(5).sample(0.9), Duration::from_millis(5));
        assert_eq!(Wait::Uniform(10, 20).sample(0.5), Duration::from_millis(15));
        assert_eq!(Wait::Exponential(100).sample(0.0), Duration::ZERO);
        let median = Wait::Exponential(100).sample(0.5).as_secs_f64();
        assert!((median - 0.0693).abs() < 0.001, "{median}");
    }

    #[test]
    fn a_setting_of_another_kind_is_refused_by_name() {
        let mistakes =
            rule(serde_json::json!({"kind": "reset", "after_effect": true, "status": 500})).unwrap_err();
        assert!(mistakes[0].contains("status does not belong"), "{mistakes:?}");
        assert!(rule(serde_json::json!({"kind": "reset"})).is_err());
        let mistakes = rule(serde_json::json!({"kind": "malformed", "form": "odd"})).unwrap_err();
        assert!(mistakes[0].contains("odd") && mistakes[0].contains("truncated_json"), "{mistakes:?}");
    }
}
