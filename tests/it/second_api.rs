//! A worker on a tool API by somebody else, which misbehaves.

use std::time::Duration;

use errand_testbed::factory;
use errand_testbed::second_api::{Options, Rates, SecondApi, TOOLKITS, TOOLS};
use serde_json::Value;

use crate::{
    harness::{self, Harness},
    support::{machine, wait::until},
};

/// The largest answer that is read, in bytes.
const MAX_RESPONSE: usize = 64 * 1024;

/// As in production, in a hurry.
const HURRY: [(&str, &str); 13] = [
    ("ERRAND__VERIFY__ENABLED", "true"),
    ("ERRAND__VERIFY__POLL_MS", "100"),
    ("ERRAND__VERIFY__FIRST_MS", "200"),
    ("ERRAND__VERIFY__MAX_MS", "1000"),
    ("ERRAND__VERIFY__BATCH", "50"),
    ("ERRAND__VERIFY__LOG_DELAY_SECS", "3"),
    ("ERRAND__VERIFY__GIVE_UP_SECS", "60"),
    ("ERRAND__COMPOSIO__TIMEOUT_MS", "500"),
    ("ERRAND__COMPOSIO__CONNECT_TIMEOUT_MS", "400"),
    ("ERRAND__COMPOSIO__MAX_RESPONSE_BYTES", "65536"),
    ("ERRAND__RETRY__MAX_RETRY_AFTER_SECS", "1"),
    ("ERRAND__TOOLKIT_VERSIONS__NOTES", TOOLKITS[0].1),
    ("ERRAND__TOOLKIT_VERSIONS__POST", TOOLKITS[1].1),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_keeps_its_promises_on_an_api_that_misbehaves() {
    let port = machine::free_port();
    let rates = Rates { connection: 0.03, call: 0.5, look_up: 0.3, log: 0.4, blackout: 0.3 };
    // What is late is so for much less than the log has to settle.
    let (hang, late) = (Duration::from_millis(700), Duration::from_millis(900));
    let options = Options {
        port,
        seed: 8,
        rates,
        hang,
        late,
        log_delay: Duration::from_millis(300),
        log_blackout: Duration::from_secs(5),
        huge: 2 * MAX_RESPONSE,
        ..Options::default()
    };
    let api = SecondApi::bind(options).await.unwrap();
    let harness = Harness::new("second_api", "").await;
    let base_url = api.base_url();
    let mut settings = HURRY.to_vec();
    settings.extend([("COMPOSIO_BASE_URL", &*base_url), ("COMPOSIO_API_KEY", api.api_key())]);
    let worker = harness.worker(&settings).await;
    let jobs: Vec<Value> = (0..210)
        .map(|n| {
            let kind = if n % 3 == 0 { "org" } else { "user" };
            factory::self_naming(&format!("{kind}-{}", n % 20), TOOLS[n % 4])
        })
        .collect();
    let (during, after) = jobs.split_at(200);
    harness.publish(during).await;
    until("half of the jobs were called", harness::PATIENCE, async || {
        (api.summary().jobs > 100).then_some(())
    })
    .await;
    api.go_away().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    api.come_back().await.unwrap();
    tokio::time::sleep(Duration::from_secs(7)).await;
    api.heal();
    // Only a call that is made later shows that the log works.
    until("what became of the last call has been unknown for a while", harness::PATIENCE, async || {
        let sql = "select coalesce(max(unknown_since) < now() - interval '2 seconds', true)::text from jobs";
        (harness.text(sql).await? == "true").then_some(())
    })
    .await;
    harness.publish(after).await;

    let open = "select count(*)::text from jobs where state not in ('succeeded', 'failed') \
                and not (state = 'held' and check_at is null)";
    until("every job is final or waits for a person", harness::PATIENCE, async || {
        let known = harness.text("select count(*)::text from jobs").await?;
        (known == jobs.len().to_string() && harness.text(open).await? == "0").then_some(())
    })
    .await;
    api.idle().await;
    let summary = api.summary();
    let wrong = (summary.repeated_once, summary.repeated_requests, summary.confused, summary.strangers);
    assert_eq!((wrong, summary.unpinned), ((0, 0, 0, 0), 0), "{summary:?}");
    let (mut succeeded, mut held) = (0, 0);
    let shown = "select json_agg(json_build_object('id', id, 'state', state, 'reason', held_reason, \
                 'error', error_message))::text from jobs";
    let shown: Vec<Value> = serde_json::from_str(&harness.text(shown).await.unwrap()).unwrap();
    assert_eq!(shown.len(), jobs.len());
    for job in shown {
        match job["state"].as_str().unwrap() {
            "succeeded" => {
                succeeded += 1;
                assert!(
                    api.effects_of(job["id"].as_str().unwrap()) >= 1,
                    "a success without an effect: {job}"
                );
            }
            "held" => {
                held += 1;
                assert!(job["reason"].is_string() && job["error"].is_string(), "{job}");
            }
            _ => assert!(job["error"].is_string(), "{job}"),
        }
    }
    assert!(succeeded > 150, "{succeeded} succeeded, {held} held; {summary:?}");
    assert_eq!(worker.metric("errand_panics_total").await, 0.0, "{}", worker.log());
}
