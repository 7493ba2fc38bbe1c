//! A shop that has errand call tools for its users: what an app does with errand, from its first job to events, replies
//! and callbacks. `docs/from-rust.md` says how to run it.

mod api;
mod broker;
mod callbacks;

use std::env;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::Errand;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let variable = |name, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    let errand = Errand::new(variable("ERRAND_URL", "http://127.0.0.1:8080"), env::var("ERRAND_KEY").ok())?;
    let args: Vec<String> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => shop(&errand).await,
        ["events", of] => follow(&errand, of, None).await,
        ["events", of, cursor] => follow(&errand, of, Some(cursor)).await,
        ["callbacks"] => {
            let port = variable("CALLBACK_PORT", "8098").parse().context("CALLBACK_PORT is no port")?;
            callbacks::serve(&env::var("CALLBACK_SECRET").context("CALLBACK_SECRET is missing")?, port).await
        }
        _ => bail!("usage: shop [events (job=ID | batch=ID) [CURSOR] | callbacks]"),
    }
}

async fn shop(errand: &Errand) -> anyhow::Result<()> {
    let job = errand.run(&read_repository("u-alice", "first")).await?;
    let became = if job["result"].is_null() { &job["error"] } else { &job["result"] };
    println!("one job: {} {became}", word(&job["state"]));

    let jobs: Vec<Value> = (0..5).map(|n| read_repository("u-alice", &format!("repo-{n}"))).collect();
    // An app takes a key that it finds again after a crash, such as the number of an order.
    let batch = errand.enqueue_batch(&jobs, &Uuid::new_v4().to_string()).await?;
    let id = word(&batch["id"]);
    follow(errand, &format!("batch={id}"), None).await?;
    println!("batch: {}", errand.get(&format!("/v1/batches/{id}")).await?["counts"]);

    if let Ok(url) = env::var("AMQP_URL") {
        let (order, reply) = broker::run(&url, &read_repository("u-alice", "last")).await?;
        let became = if reply["state"].is_null() { &reply["message"] } else { &reply["state"] };
        println!("reply: {order} {} {}", word(&reply["reply"]), word(became));
    }
    Ok(())
}

/// Prints the events of `job=ID` or `batch=ID`, each with the cursor behind which another run goes on.
async fn follow(errand: &Errand, of: &str, cursor: Option<&str>) -> anyhow::Result<()> {
    let print = async |event: Value| {
        println!("event: {} {} {}", word(&event["type"]), word(&event["job_id"]), word(&event["cursor"]));
        Ok(())
    };
    errand.events(of, cursor.map(str::to_owned), print).await
}

fn read_repository(user: &str, name: &str) -> Value {
    let arguments = json!({"owner": "o", "repo": name});
    json!({"id": Uuid::new_v4(), "user_id": user, "tool": "GITHUB_GET_REPO", "arguments": arguments})
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}
