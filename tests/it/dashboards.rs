//! The dashboard and the alert rules, checked against the catalogue of metrics and a real Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::{Router, extract::State, routing::get};
use errand::telemetry::metrics::{self, CATALOGUE, Kind, Metric};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::promql::{RABBITMQ, SCRAPE_LABELS, check, find, scan};
use crate::support::wait::until;
use crate::support::{Prometheus, http};

const DASHBOARD: &str = include_str!("../../deploy/grafana/overview.json");
pub(crate) const ALERTS: &str = include_str!("../../deploy/prometheus/alerts.yml");
const ALERTS_TEST: &str = include_str!("../../deploy/prometheus/alerts_test.yml");

/// Panel types that current Grafana versions keep.
const PANEL_TYPES: &[&str] = &["timeseries", "stat", "table", "bargauge"];

/// Every query of the dashboard, with the title of its panel, as Prometheus can run it: the variables
/// of Grafana are replaced as Grafana would replace them on a board that shows everything.
pub(crate) fn queries() -> Vec<(String, String)> {
    raw_queries()
        .into_iter()
        .map(|query| {
            let expr = query
                .expr
                .replace("$__rate_interval", "1m")
                .replace("$__range", "1h")
                .replace("$queue", ".*");
            assert!(!expr.contains('$'), "{}: an unknown variable in {expr}", query.panel);
            (query.panel, expr)
        })
        .collect()
}

/// Starts a Prometheus that scrapes the `/metrics` of this address, and the plugin of RabbitMQ at this port, and waits
/// until every query of the dashboard returns data. Panics with the queries that do not.
pub(crate) async fn every_query_returns_data(metrics: SocketAddr, rabbitmq: u16) {
    returns_data(metrics, Some(rabbitmq), &queries(), Duration::from_secs(120)).await;
}

async fn returns_data(
    metrics: SocketAddr,
    rabbitmq: Option<u16>,
    queries: &[(String, String)],
    limit: Duration,
) {
    let rabbitmq = rabbitmq.map_or_else(String::new, |port| {
        format!(
            "- job_name: rabbitmq-queues\n  metrics_path: /metrics/detailed\n  params: {{family: \
             [queue_coarse_metrics, queue_consumer_count]}}\n  static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
        )
    });
    // A rate needs two scrapes within its interval, so they come soon after each other.
    let prometheus = Prometheus::start(&format!(
        "global: {{scrape_interval: 500ms, scrape_timeout: 400ms}}\n\
         scrape_configs:\n- job_name: errand\n  static_configs: [{{targets: ['{metrics}']}}]\n{rabbitmq}"
    ))
    .await;
    let client = http::client();
    let mut empty: Vec<_> = queries.to_vec();
    let deadline = tokio::time::Instant::now() + limit;
    while !empty.is_empty() && tokio::time::Instant::now() < deadline {
        let mut still = Vec::new();
        for (panel, expr) in empty {
            if samples(&client, &prometheus, &expr).await == 0 {
                still.push((panel, expr));
            }
        }
        empty = still;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(empty.is_empty(), "queries without data:\n{empty:#?}");
}

/// How many samples an instant query returns.
pub(crate) async fn samples(client: &reqwest::Client, prometheus: &Prometheus, expr: &str) -> usize {
    let address = format!("{}/api/v1/query", prometheus.url());
    let address = url::Url::parse_with_params(&address, [("query", expr)]).unwrap();
    let answer = client.get(address).send().await.unwrap().text().await.unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["status"], "success", "{expr}: {answer}");
    answer["data"]["result"].as_array().map_or(0, Vec::len)
}

#[test]
fn the_dashboard_has_what_grafana_needs_to_find_and_refresh_it() {
    let board = dashboard();
    assert_eq!(board["uid"], "errand-overview");
    assert_eq!(board["id"], Value::Null, "an id of some Grafana must not be kept");
    assert_eq!(board["refresh"], "10s");
    assert!(board["schemaVersion"].as_u64() >= Some(39));
    assert!(!board["tags"].as_array().unwrap().is_empty());
    let variables = board["templating"]["list"].as_array().unwrap();
    assert!(variables.iter().any(|v| v["name"] == "datasource" && v["type"] == "datasource"));
    for panel in panels() {
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
}

#[test]
fn every_panel_is_described_and_has_a_unit_and_a_lasting_type() {
    for panel in panels() {
        let title = panel["title"].as_str().unwrap();
        assert!(!title.is_empty(), "panel {} has no title", panel["id"]);
        assert!(panel["description"].as_str().unwrap_or_default().ends_with('.'), "{title}: no description");
        assert!(!panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or_default().is_empty(), "{title}");
        assert!(PANEL_TYPES.contains(&panel["type"].as_str().unwrap()), "{title}: {}", panel["type"]);
    }
}

#[test]
fn ids_and_titles_are_unique_and_panels_do_not_overlap() {
    let board = dashboard();
    let (mut ids, mut titles, mut cells) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    for panel in board["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is taken");
        assert!(titles.insert(title), "two panels are called {title}");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(w > 0 && h > 0 && x + w <= 24, "{title} is not inside the grid");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            if let Some(other) = cells.insert(cell, title) {
                panic!("{title} covers {other}");
            }
        }
    }
}

#[test]
fn every_query_uses_metrics_and_labels_of_the_catalogue() {
    for (panel, expr) in queries() {
        check(&panel, &expr);
    }
}

#[test]
fn every_alert_uses_metrics_and_labels_of_the_catalogue() {
    for alert in alerts() {
        check(&alert.name, &alert.expr);
    }
}

#[test]
fn every_metric_is_on_the_dashboard() {
    let shown: BTreeSet<&str> = queries()
        .iter()
        .flat_map(|(_, expr)| scan(expr).uses)
        .filter_map(|used| find(&used.metric).map(|metric| metric.name))
        .collect();
    for metric in CATALOGUE {
        assert!(shown.contains(metric.name), "no panel shows {}", metric.name);
    }
}

#[test]
fn legends_name_only_labels_that_the_query_keeps() {
    for Query { panel, expr, legend } in raw_queries() {
        let kept = scan(&expr).grouping;
        for label in between(&legend, "{{", "}}") {
            assert!(kept.contains(label), "{panel}: {{{{{label}}}}} is not in {expr}");
        }
    }
}

#[test]
fn every_alert_has_a_severity_a_test_and_texts_whose_labels_exist() {
    let alerts = alerts();
    assert!(!alerts.is_empty());
    for Alert { name, expr, text } in alerts {
        let severity = between(&text, "severity: ", "\n");
        assert!(matches!(severity[..], ["critical" | "warning"]), "{name}: {severity:?}");
        for part in ["summary: ", "description: "] {
            assert!(text.contains(part), "{name} has no {part}");
        }
        let mut labels = scan(&expr).grouping;
        labels.extend(scan(&expr).uses.iter().filter_map(|used| find(&used.metric)).flat_map(|metric| {
            metric.labels.iter().chain(SCRAPE_LABELS).map(|label| (*label).to_owned()).collect::<Vec<_>>()
        }));
        for used in between(&text, "{{ $labels.", " }}") {
            assert!(labels.contains(used), "{name}: no label {used}");
        }
        assert!(ALERTS_TEST.contains(&name), "{name} is not tested in alerts_test.yml");
    }
}

/// What an uneventful run shows: only successes, and none of the metrics that an incident gives birth to.
#[tokio::test]
async fn after_an_uneventful_run_every_query_returns_data() {
    let eventful = [
        metrics::RETRIES,
        metrics::DUPLICATES,
        metrics::REJECTED,
        metrics::FENCED,
        metrics::LATE,
        metrics::JOBS_WAITING,
        metrics::JOBS_HELD,
        metrics::OLDEST_DUE,
        metrics::QUEUE_DEPTH,
        metrics::FINISH_BACKLOG,
        metrics::RELAY_PUBLISHED,
        metrics::RELAY_FAILED,
        metrics::REPLIES,
        metrics::RESCUED,
        metrics::BROKER_RECONNECTS,
        metrics::STORE_RECONNECTS,
        metrics::STORE_ERRORS,
        metrics::LOOKUPS,
        metrics::AUDIT_FINDINGS,
        metrics::AUDIT_REPAIRS,
        metrics::CONNECTION_LOOKUPS,
        metrics::CIRCUIT_BREAKERS_OPEN,
        metrics::CIRCUIT_BREAKER_SNOOZES,
        metrics::CONNECTION_RELEASED,
        metrics::CONNECTION_EXPIRED,
        metrics::DRAINING,
    ]
    .map(|metric| metric.name);
    let shown = CATALOGUE.iter().chain(RABBITMQ).filter(|metric| !eventful.contains(&metric.name));
    let address = serve(shown.copied().collect(), &["succeeded"]).await;
    returns_data(address, None, &queries(), Duration::from_secs(120)).await;
}

/// Without the metric that the fallbacks to zero are made of, each query has to find what it asks for.
#[tokio::test]
async fn no_query_hides_a_mistake_behind_its_fallback() {
    let build = metrics::BUILD_INFO.name;
    let shown = CATALOGUE.iter().chain(RABBITMQ).filter(|metric| metric.name != build).copied().collect();
    let outcomes = &["succeeded", "failed", "retryable", "held", "cancelled"];
    let mut queries = queries();
    for (_, expr) in &mut queries {
        // These two compare a part with the whole by adding zero times the whole, which is no fallback.
        if let Some((first, _)) = expr.split_once(" or 0 * sum by") {
            *expr = first.trim_start_matches('(').to_owned();
        }
    }
    queries.retain(|(panel, _)| panel != "Version");
    returns_data(serve(shown, outcomes).await, None, &queries, Duration::from_secs(120)).await;
}

#[tokio::test]
async fn a_query_without_data_is_noticed() {
    let address = serve(vec![metrics::BUILD_INFO], &[]).await;
    let failed = tokio::spawn(async move {
        let query = ("None".to_owned(), "errand_jobs".to_owned());
        returns_data(address, None, &[query], Duration::from_secs(2)).await;
    });
    assert!(failed.await.unwrap_err().is_panic());
}

/// Serves a page with the given metrics, whose counters grow with every scrape.
async fn serve(metrics: Vec<Metric>, outcomes: &'static [&'static str]) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let scrapes = Arc::new(AtomicU64::new(0));
    let page = async move |State(scrapes): State<Arc<AtomicU64>>| {
        let scrape = scrapes.fetch_add(1, Ordering::Relaxed) + 1;
        metrics.iter().map(|metric| lines(metric, outcomes, scrape)).collect::<String>()
    };
    let router = Router::new().route("/metrics", get(page)).with_state(scrapes);
    // The runtime of the test ends the task.
    drop(tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }));
    until("the page is served", Duration::from_secs(60), async || {
        http::client().get(format!("http://{address}/metrics")).send().await.ok()
    })
    .await;
    address
}

/// The lines of one metric in Prometheus' text format.
fn lines(metric: &Metric, outcomes: &[&str], scrape: u64) -> String {
    let outcomes = if metric.labels.contains(&"outcome") { outcomes } else { &[""] };
    let mut page = String::new();
    for outcome in outcomes {
        let labels = |more: &str| {
            let labels = metric.labels.iter().map(|label| match *label {
                "outcome" => format!("outcome=\"{outcome}\","),
                "reason" if metric.name == metrics::JOBS_HELD.name => {
                    "reason=\"unknown_outcome\",".to_owned()
                }
                "queue" if metric.name.starts_with("rabbitmq_") => "queue=\"errand.x\",".to_owned(),
                label => format!("{label}=\"x\","),
            });
            format!("{{{}{more}}}", labels.collect::<String>())
        };
        let name = metric.name;
        page += &match metric.kind {
            Kind::Counter => format!("{name}{} {scrape}\n", labels("")),
            Kind::Gauge => format!("{name}{} 1\n", labels("")),
            Kind::Histogram => {
                let buckets = ["0.1", "1", "+Inf"]
                    .map(|le| format!("{name}_bucket{} {scrape}\n", labels(&format!("le=\"{le}\""))));
                let ends = ["sum", "count"].map(|end| format!("{name}_{end}{} {scrape}\n", labels("")));
                buckets.concat() + &ends.concat()
            }
        };
    }
    page
}

// ---------------------------------------------------------------------------------------------
// Reading the files.

fn dashboard() -> Value {
    serde_json::from_str(DASHBOARD).expect("the dashboard is JSON")
}

/// The panels that show something, without the rows between them.
fn panels() -> Vec<Value> {
    let mut board = dashboard();
    let Value::Array(mut panels) = board["panels"].take() else { panic!("no panels") };
    panels.retain(|panel| panel["type"] != "row");
    panels
}

struct Query {
    panel: String,
    expr: String,
    legend: String,
}

fn raw_queries() -> Vec<Query> {
    let mut queries = Vec::new();
    for panel in panels() {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        for target in panel["targets"].as_array().unwrap() {
            queries.push(Query {
                panel: text(&panel["title"]),
                expr: text(&target["expr"]),
                legend: text(&target["legendFormat"]),
            });
        }
    }
    assert!(!queries.is_empty());
    queries
}

pub(crate) struct Alert {
    pub(crate) name: String,
    expr: String,
    /// Everything below the name, as it is written.
    pub(crate) text: String,
}

/// Reads the rules without a YAML parser: each starts with `- alert:`, and its `expr:` is one line or a
/// folded block. `promtool` reads the same file in another test.
pub(crate) fn alerts() -> Vec<Alert> {
    let parts = ALERTS.split("- alert: ").skip(1);
    parts
        .map(|part| {
            let (name, text) = part.split_once('\n').unwrap();
            let mut rest = text.lines().skip_while(|line| !line.trim_start().starts_with("expr:"));
            let first = rest.next().unwrap_or_else(|| panic!("{name} has no expr"));
            let depth = |line: &str| line.len() - line.trim_start().len();
            let mut expr = first.trim_start().trim_start_matches("expr:").trim().to_owned();
            if expr.starts_with('>') {
                let block = rest.take_while(|line| depth(line) > depth(first)).map(str::trim);
                expr = block.collect::<Vec<_>>().join(" ");
            }
            assert!(!expr.is_empty(), "{name} has no expr");
            Alert { name: name.trim().to_owned(), expr, text: text.to_owned() }
        })
        .collect()
}

/// The texts between two marks.
pub(crate) fn between<'a>(text: &'a str, open: &str, close: &str) -> Vec<&'a str> {
    text.split(open).skip(1).filter_map(|part| Some(part.split_once(close)?.0)).collect()
}
