//! Lists of jobs by each filter, and the other lists, among many jobs that have ended.

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::{Plan, client::Client, fill::OLD_BATCH, server::Api, spread};
use crate::bench::{child::this_program, environment::Environment, statistics::Spread};

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Lists {
    pub(super) finished: u64,
    /// The newest jobs by a bare statement, in milliseconds.
    pub(super) statement: Spread,
    pub(super) lists: Vec<List>,
}

/// One list, read again and again.
#[derive(Debug, Serialize)]
pub(super) struct List {
    pub(super) path: String,
    /// What the first page has.
    pub(super) items: usize,
    pub(super) has_next: bool,
    /// In milliseconds.
    pub(super) time: Spread,
    /// The median divided by that of the bare statement.
    pub(super) ratio: f64,
}

pub(super) async fn measure(
    environment: &Environment,
    plan: &Plan,
    progress: &impl Fn(&str),
) -> Result<Lists> {
    environment.run(&this_program()?, &["migrate"]).await?;
    let filled = |jobs| progress(&format!("lists: {jobs} of {} jobs are there", plan.finished));
    environment.store.fill(plan.finished, filled).await?;
    progress("lists: reading them");
    let api = Api::start(environment, false).await?;
    let mut client = Client::connect(api.host, 0).await?;
    let paths = paths();
    let (mut statement, mut times) = (Vec::new(), vec![Vec::new(); paths.len()]);
    let mut pages = vec![(0, false); paths.len()];
    // In turn, so that a host that becomes slower harms all alike.
    for _ in 0..plan.reads {
        let begun = Instant::now();
        environment.store.newest().await?;
        statement.push(begun.elapsed().as_secs_f64() * 1000.0);
        for (place, path) in paths.iter().enumerate() {
            let begun = Instant::now();
            let answer = client.get(path).await?.expect(200)?;
            times[place].push(begun.elapsed().as_secs_f64() * 1000.0);
            let page: Value = serde_json::from_slice(&answer.body)?;
            pages[place] = (page["items"].as_array().map_or(0, Vec::len), page["next"].is_string());
        }
    }
    api.stop().await?;
    let statement = spread(statement)?;
    let lists = paths.into_iter().zip(times).zip(pages).map(|((path, times), (items, has_next))| {
        let time = spread(times)?;
        Ok(List { path, items, has_next, time, ratio: time.median / statement.median })
    });
    Ok(Lists { finished: plan.finished, statement, lists: lists.collect::<Result<_>>()? })
}

/// Each filter by itself: for what there is much of, for what only very old jobs are, and for what nothing is.
fn paths() -> Vec<String> {
    let old_batch = OLD_BATCH.to_string();
    let ago = |days: i64| Timestamp::now() - SignedDuration::from_hours(24 * days);
    let long_ago = format!("since={}&", ago(60));
    let mut filters = vec![String::new()];
    for (name, values) in [
        ("state", &["succeeded", "failed", "cancelled", "held", "running"][..]),
        ("owner", &["user:owner-7", "user:old", "user:nobody"]),
        ("tool", &["BENCH_TOOL_7", "OLD_TOOL", "NO_TOOL"]),
        ("toolkit", &["toolkit-3", "old", "none"]),
        ("queue", &["default", "bulk", "old", "none"]),
        ("tag", &["team=team-7", "era=old", "era=none"]),
        (
            "batch",
            &["cfcd2084-95d5-65ef-66e7-dff9f98764da", &old_batch, "00000000-0000-7000-8000-000000000000"],
        ),
        ("error_kind", &["tool_failed", "expired", "internal"]),
        ("held_reason", &["connection", "credentials"]),
        ("outcome_unknown", &["true"]),
        ("version", &["20250101_00", "20200101_00", "none"]),
        ("effect", &["once"]),
    ] {
        for value in values {
            let value: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
            filters.push(format!("{name}={value}"));
            filters.push(format!("{long_ago}{name}={value}"));
        }
    }
    filters.push(format!("since={}", ago(1)));
    filters.push(format!("{long_ago}until={}", ago(29)));
    filters.push(format!("until={}&since={}", ago(40), ago(60)));
    let mut paths: Vec<String> = filters.into_iter().map(|filter| format!("/v1/jobs?{filter}")).collect();
    let others =
        ["batches", "actions", "queues", "stats", "workers", "rejected", "audit-log", "keys", "pins"];
    paths.extend(others.map(|name| format!("/v1/{name}")));
    paths
}
