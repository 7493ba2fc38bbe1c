//! Reading PromQL, as far as the checks of the dashboard, the alerts and the documentation need.

use std::collections::BTreeSet;

use errand::telemetry::metrics::{self, CATALOGUE, Kind, Metric};

/// Labels that Prometheus adds to what it scrapes.
pub(crate) const SCRAPE_LABELS: &[&str] = &["job", "instance"];
/// What a query may consist of besides metrics and labels. A word that is not here is a typo, or new.
const PROMQL: &[&str] = &[
    "absent",
    "and",
    "count",
    "histogram_quantile",
    "increase",
    "label_replace",
    "max",
    "min",
    "offset",
    "or",
    "rate",
    "sum",
    "unless",
];
/// Words that are followed by a list of labels.
const GROUPING: &[&str] = &["by", "ignoring", "on", "without"];

/// What RabbitMQ says about each queue, where it is scraped as `deploy/prometheus/prometheus.yml` has it.
pub(crate) const RABBITMQ: &[Metric] = &[
    of_queues("rabbitmq_detailed_queue_messages_ready"),
    of_queues("rabbitmq_detailed_queue_messages_unacked"),
    of_queues("rabbitmq_detailed_queue_consumers"),
];

const fn of_queues(name: &'static str) -> Metric {
    Metric { name, labels: &["vhost", "queue"], ..metrics::QUEUE_DEPTH }
}

/// The metrics of an expression with the labels that are asked of them, and the labels that it groups by.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) uses: Vec<Use>,
    pub(crate) grouping: BTreeSet<String>,
    unknown: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Use {
    pub(crate) metric: String,
    labels: Vec<String>,
}

/// Panics when an expression names a metric or label that the catalogue does not have.
pub(crate) fn check(place: &str, expr: &str) {
    let scan = scan(expr);
    assert!(scan.unknown.is_empty(), "{place}: unknown words {:?} in {expr}", scan.unknown);
    assert!(!scan.uses.is_empty(), "{place}: no metric in {expr}");
    let mut known = BTreeSet::new();
    for Use { metric, labels } in &scan.uses {
        let declared = find(metric).unwrap_or_else(|| panic!("{place}: {metric} is not in the catalogue"));
        let bucket = metric.ends_with("_bucket").then_some("le");
        let all: BTreeSet<&str> =
            declared.labels.iter().chain(SCRAPE_LABELS).copied().chain(bucket).collect();
        for label in labels {
            assert!(all.contains(label.as_str()), "{place}: {metric} has no label {label}");
        }
        known.extend(all);
    }
    for label in &scan.grouping {
        assert!(known.contains(label.as_str()), "{place}: no metric of {expr} has the label {label}");
    }
}

/// The metric of the catalogue behind a name of Prometheus.
pub(crate) fn find(name: &str) -> Option<&'static Metric> {
    CATALOGUE.iter().chain(RABBITMQ).find(|metric| match metric.kind {
        Kind::Counter | Kind::Gauge => metric.name == name,
        Kind::Histogram => {
            name.strip_prefix(metric.name).is_some_and(|end| ["_bucket", "_sum", "_count"].contains(&end))
        }
    })
}

pub(crate) fn scan(expr: &str) -> Scan {
    let mut scan = Scan::default();
    let tokens = tokens(expr);
    let mut tokens = tokens.iter().map(String::as_str).peekable();
    while let Some(token) = tokens.next() {
        if !token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') || PROMQL.contains(&token) {
            continue;
        }
        let opens = tokens.peek().copied();
        let is_word = |token: &&str| token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if GROUPING.contains(&token) && opens == Some("(") {
            let labels = tokens.by_ref().take_while(|token| *token != ")").filter(is_word);
            scan.grouping.extend(labels.map(str::to_owned));
        } else if ["errand_", "rabbitmq_"].iter().any(|ours| token.starts_with(ours)) {
            let mut labels = Vec::new();
            if opens == Some("{") {
                let inside = tokens.by_ref().take_while(|token| *token != "}").filter(is_word);
                labels = inside.map(str::to_owned).collect();
            }
            scan.uses.push(Use { metric: token.to_owned(), labels });
        } else {
            scan.unknown.push(token.to_owned());
        }
    }
    scan
}

/// Words and single characters; texts in quotes, ranges in brackets and spaces are left out.
fn tokens(expr: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut chars = expr.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' => drop(chars.by_ref().find(|c| *c == '"')),
            '[' => drop(chars.by_ref().find(|c| *c == ']')),
            c if c.is_whitespace() => {}
            c if c.is_ascii_alphanumeric() || c == '_' => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || "_:.".contains(*c)) {
                    word.push(c);
                }
                tokens.push(word);
            }
            c => tokens.push(c.to_string()),
        }
    }
    tokens
}

#[test]
fn the_checks_see_through_an_expression() {
    let scan =
        scan(r#"sum by (le, queue) (rate(errand_x_bucket{queue=~"a|b", to!="}"}[5m] offset 1m)) / typo"#);
    assert_eq!(scan.grouping.iter().collect::<Vec<_>>(), ["le", "queue"]);
    assert_eq!(scan.unknown, ["typo"]);
    assert_eq!(scan.uses.len(), 1);
    assert_eq!(
        (scan.uses[0].metric.as_str(), &scan.uses[0].labels[..]),
        ("errand_x_bucket", &["queue", "to"].map(String::from)[..])
    );
}
