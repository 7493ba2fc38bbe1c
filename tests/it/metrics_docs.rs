//! `docs/metrics.md` and the catalogue of metrics say the same.

use std::collections::{BTreeMap, BTreeSet};

use errand::health::Phase;
use errand::job::{AttemptOutcome, EnvelopeReason, ErrorKind, HeldReason, State};
use errand::maintenance::prune::Excess;
use errand::store::{ActionKind, FindingKind, Skip};
use errand::telemetry::metrics::{CATALOGUE, Kind};

use crate::dashboards::{self, between};
use crate::promql;

const DOCS: &str = include_str!("../../docs/metrics.md");

#[test]
fn the_documentation_and_the_catalogue_list_the_same_metrics() {
    let documented = rows();
    let declared: BTreeSet<&str> = CATALOGUE.iter().map(|metric| metric.name).collect();
    assert_eq!(documented.keys().copied().collect::<BTreeSet<_>>(), declared);
    for metric in CATALOGUE {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "-".to_owned() } else { labels.join(", ") };
        let expected = [kind, metric.unit.as_str(), &labels, metric.help];
        assert_eq!(documented[metric.name], expected, "{}", metric.name);
    }
}

#[test]
fn the_documentation_lists_every_value_of_the_closed_choices() {
    let (finals, not_final): (Vec<State>, Vec<State>) = State::ALL.iter().partition(|state| state.is_final());
    let ended = [State::Succeeded, State::Failed, State::Retryable, State::Held, State::Cancelled];
    for (label, words) in [
        ("`outcome` of `errand_jobs_finished_total`", ended.map(State::as_str).to_vec()),
        (
            "`outcome` of `errand_attempt_duration_seconds`",
            AttemptOutcome::ALL.iter().map(|outcome| outcome.as_str()).collect(),
        ),
        ("`cause`", ErrorKind::ALL.iter().map(|kind| kind.as_str()).collect()),
        ("`phase`", Phase::ALL.iter().map(|phase| phase.as_str()).collect()),
        ("`state` of `errand_jobs`", not_final.iter().map(|state| state.as_str()).collect()),
        ("`state` of `errand_pruned_jobs_total`", finals.iter().map(|state| state.as_str()).collect()),
        (
            "`by` of `errand_pruned_rejected_messages_total`",
            Excess::ALL.iter().map(|excess| excess.as_str()).collect(),
        ),
        (
            "`kind` of `errand_actions` and `errand_action_jobs_total`",
            ActionKind::ALL.iter().map(|kind| kind.as_str()).collect(),
        ),
        (
            "`result` of `errand_action_jobs_total`",
            ["done"].into_iter().chain(Skip::ALL.iter().map(|why| why.as_str())).collect(),
        ),
        ("`reason` of `errand_held_jobs`", HeldReason::ALL.iter().map(|reason| reason.as_str()).collect()),
        (
            "`kind` of `errand_audit_findings` and `errand_audit_repairs_total`",
            FindingKind::ALL.iter().map(|kind| kind.as_str()).collect(),
        ),
        (
            "`reason` of `errand_rejected_messages_total`",
            EnvelopeReason::ALL.iter().map(|reason| reason.as_str()).collect(),
        ),
    ] {
        let row = DOCS.lines().find_map(|line| line.strip_prefix(&format!("| {label} | ")));
        let row = row.unwrap_or_else(|| panic!("no row for {label}"));
        assert_eq!(row.split('`').skip(1).step_by(2).collect::<Vec<_>>(), words, "{label}");
    }
}

#[test]
fn the_queries_of_the_documentation_use_the_catalogue() {
    let queries = between(DOCS, "```promql\n", "\n```");
    assert!(!queries.is_empty());
    for query in queries {
        promql::check("docs/metrics.md", query);
    }
}

#[test]
fn the_documentation_explains_every_alert_and_no_other() {
    let words = DOCS.split(|c: char| !c.is_ascii_alphanumeric());
    let explained: BTreeSet<&str> = words.filter(|word| word.starts_with("Errand")).collect();
    let alerts = dashboards::alerts();
    assert_eq!(explained, alerts.iter().map(|alert| alert.name.as_str()).collect());
}

/// The rows of the tables of metrics: for each name its kind, unit, labels and help.
fn rows() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut rows = BTreeMap::new();
    for line in DOCS.lines().filter(|line| line.starts_with("| `errand_")) {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let name = cells.next().unwrap().trim_matches('`');
        assert!(rows.insert(name, cells.collect()).is_none(), "{name} is documented twice");
    }
    rows
}
