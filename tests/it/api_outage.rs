//! What apps are told by the HTTP API while its database is cut off again and again: each request is carried out whole or
//! not at all, says when it may be sent again, and comes to one thing however often it is sent.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use errand_testbed::factory::{Envelope as _, id, send, spread};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    api::{Api, kind, read_answer},
    harness::{Harness, PATIENCE, port},
    support::{self, wait::until},
};

/// How often the database is cut off.
const CUTS: usize = 8;

/// Items of each batch, and lines of each chunk.
const ITEMS: usize = 20;

/// Apps that enqueue jobs, and one each that makes batches in one request and in several.
const APPS: usize = 6;

/// Sends a request until it is carried out. Whatever else it is told, it is that the database cannot be used now.
async fn persist(
    api: &Api,
    method: Method,
    path: &str,
    with: impl Fn(RequestBuilder) -> RequestBuilder,
) -> Value {
    until(&format!("{method} {path} to be carried out"), PATIENCE, async || {
        let answer = with(api.request(method.clone(), path)).send().await.unwrap();
        let again = answer.headers().get("retry-after").is_some();
        let (status, told) = read_answer(answer).await;
        if status.is_success() {
            return Some(told);
        }
        assert_eq!((status.as_u16(), kind(&told), again), (503, "unavailable", true), "{told}");
        None
    })
    .await
}

fn items() -> Vec<Value> {
    spread(ITEMS, send).into_iter().map(|job| job.nameless()).collect()
}

/// Makes a batch with some items, adds as many, and seals it.
async fn fill(api: &Api) {
    let (key, first) = (id(), json!({"sealed": false, "items": items()}));
    let made = persist(api, Method::POST, "/v1/batches", |request| {
        request.header("idempotency-key", &key).json(&first)
    })
    .await;
    let batch = format!("/v1/batches/{}", made["id"].as_str().unwrap());
    let lines: String = items().iter().map(|item| format!("{item}\n")).collect();
    let chunk =
        |request: RequestBuilder| request.header("content-type", "application/x-ndjson").body(lines.clone());
    let filled = persist(api, Method::POST, &format!("{batch}/items?from={ITEMS}"), chunk).await;
    assert_eq!(filled["total"], 2 * ITEMS, "{filled}");
    let sealed = persist(api, Method::POST, &format!("{batch}/seal"), |request| request).await;
    assert_eq!((&sealed["total"], &sealed["sealed"]), (&json!(2 * ITEMS), &json!(true)), "{sealed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_meets_a_cut_database_is_carried_out_once_or_may_be_sent_again() {
    let harness = Harness::new("api-outage", "").await;
    // The worker has its database all the time.
    let _worker = harness.worker(&[]).await;
    let database = support::start_proxy(port(&harness.database.url)).await;
    let mut env = harness.env();
    env.retain(|(name, _)| name != "DATABASE_URL");
    env.push(("DATABASE_URL".to_owned(), database.url(&harness.database.url).unwrap()));
    let api = &Api::start(&env).await;
    let (cuts, jobs, batches) = (&AtomicUsize::new(0), &AtomicUsize::new(0), &AtomicUsize::new(0));
    let goes_on = || cuts.load(Relaxed) < CUTS;

    let enqueues = async || {
        while goes_on() {
            let job = send("user-1");
            let told = persist(api, Method::POST, "/v1/jobs", |request| request.json(&job)).await;
            assert_eq!(told["id"], job["id"]);
            jobs.fetch_add(1, Relaxed);
        }
    };
    let makes_whole = async {
        while goes_on() {
            let (key, whole) = (id(), json!({"items": items()}));
            let with = |request: RequestBuilder| request.header("idempotency-key", &key).json(&whole);
            let made = persist(api, Method::POST, "/v1/batches", with).await;
            assert_eq!((&made["total"], &made["sealed"]), (&json!(ITEMS), &json!(true)), "{made}");
            jobs.fetch_add(ITEMS, Relaxed);
            batches.fetch_add(1, Relaxed);
        }
    };
    let fills = async {
        while goes_on() {
            fill(api).await;
            jobs.fetch_add(2 * ITEMS, Relaxed);
            batches.fetch_add(1, Relaxed);
        }
    };
    let cutting = async {
        while goes_on() {
            // Each time something has come through before.
            let before = jobs.load(Relaxed);
            until("more jobs", PATIENCE, async || (jobs.load(Relaxed) >= before + 10).then_some(())).await;
            database.cut().await.unwrap();
            let (status, told) = api.get("/v1/jobs").await;
            assert_eq!((status.as_u16(), kind(&told)), (503, "unavailable"), "{told}");
            database.heal().await.unwrap();
            cuts.fetch_add(1, Relaxed);
        }
    };
    let apps = futures_util::future::join_all((0..APPS).map(|_| enqueues()));
    tokio::join!(apps, makes_whole, fills, cutting);

    let (jobs, batches) = (jobs.load(Relaxed) as u64, batches.load(Relaxed) as u64);
    harness.all_ran_once(jobs).await;
    assert_eq!(harness.text("select count(*)::text from batches").await.unwrap(), batches.to_string());
    let empty =
        "select count(*)::text from batches where not exists (select from jobs where batch_id = batches.id)";
    assert_eq!(harness.text(empty).await.unwrap(), "0", "no batch is there without its items");
}
