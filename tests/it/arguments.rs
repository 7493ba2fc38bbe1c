//! Arguments that do not fit the input schema of their tool, in all three settings.

use errand_testbed::factory::{Envelope as _, read};
use serde_json::{Value, json};

use crate::{api::Api, harness::Harness};

const OFF: [(&str, &str); 1] = [("ERRAND__ARGUMENTS__CHECK", "off")];
const WARN: [(&str, &str); 1] = [("ERRAND__ARGUMENTS__CHECK", "warn")];
const REFUSE: [(&str, &str); 1] = [("ERRAND__ARGUMENTS__CHECK", "refuse")];

/// A value that must not be told to anybody but the app and the tool.
const SECRET: &str = "hunter2-hunter2";

fn unfit() -> Value {
    read("u-alice").with("arguments", json!({"owner": "o", "repo": "r", "token": SECRET, "other": 9}))
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_that_do_not_fit_fail_a_job_before_anything_is_sent() {
    let harness = Harness::new("refuse", "").await;
    let worker = harness.worker(&REFUSE).await;
    let job = unfit();
    harness.publish(std::slice::from_ref(&job)).await;
    let failed = harness.job_in(job.id(), &["failed"]).await;
    let message = failed["error"]["message"].as_str().unwrap();
    assert_eq!(failed["error"]["kind"], "invalid_arguments", "{failed}");
    assert!(message.contains("/token is not known") && message.contains("/other is not known"), "{message}");
    assert!(message.contains("GITHUB_GET_REPO") && message.contains("20251027_00"), "{message}");
    assert!(!message.contains(SECRET), "{message}");
    assert_eq!(harness.sandbox.ledger_summary().calls, 0);

    // The schema is known by now, so that this one is decided as it comes, and what fits runs.
    let (again, fits) = (unfit(), read("u-alice"));
    harness.publish(&[again.clone(), fits.clone()]).await;
    assert_eq!(harness.job_in(again.id(), &["failed"]).await["error"]["kind"], "invalid_arguments");
    harness.job_in(fits.id(), &["succeeded"]).await;
    assert_eq!(harness.sandbox.ledger_summary().calls, 1);
    worker.metric_reaches("errand_argument_checks_total{result=\"refused\"}", 2.0).await;
    worker.metric_reaches("errand_argument_checks_total{result=\"fit\"}", 1.0).await;
    assert!(!worker.log().contains(SECRET));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_warning_the_call_is_made_and_the_log_says_once_which_tool_it_was() {
    let harness = Harness::new("warn", "").await;
    let worker = harness.worker(&WARN).await;
    let jobs = [unfit(), unfit()];
    for job in &jobs {
        harness.publish(std::slice::from_ref(job)).await;
        harness.job_in(job.id(), &["succeeded"]).await;
    }
    worker.metric_reaches("errand_argument_checks_total{result=\"unfit\"}", 2.0).await;
    let told = worker.lines_like("jobs come with arguments");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        (&told[0]["tool"], &told[0]["rules"]),
        (&json!("GITHUB_GET_REPO"), &json!("additionalProperties"))
    );
    assert!(!worker.log().contains(SECRET));
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_beyond_a_double_reach_the_tool_as_they_were_written() {
    let harness = Harness::new("exact", "").await;
    let _worker = harness.worker(&WARN).await;
    // The tool repeats what it was sent.
    let arguments = "{\"owner\":\"o\",\"repo\":\"r\",\"page\":90071992547409930000000000000000000001}";
    let job = read("u-alice").with("tool", "GITHUB_LIST_STARGAZERS");
    let text = job.to_string().replace(&job["arguments"].to_string(), arguments);
    harness.publish_raw(&[text.into_bytes()], lapin::BasicProperties::default().with_delivery_mode(2)).await;
    harness.job_in(job.id(), &["succeeded"]).await;
    let shown = String::from_utf8(harness.errand(&["jobs", "show", job.id(), "--json"]).stdout).unwrap();
    assert!(shown.contains("90071992547409930000000000000000000001"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_lists_what_does_not_fit_with_pointers() {
    let harness = Harness::new("fitdry", "").await;
    assert!(harness.errand(&["migrate"]).status.success());
    let dry = async |extra: &[(&str, &str)], job: &Value| {
        let mut env = harness.env();
        env.extend(extra.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let api = Api::start(&env).await;
        let (status, answer) = api.post("/v1/jobs?dry_run=true", job).await;
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let pointers = |answer: &Value| -> Vec<String> {
        let problems = answer["problems"].as_array().unwrap().iter();
        let mut found: Vec<String> = problems
            .map(|problem| {
                assert_eq!(problem["kind"], "invalid_arguments", "{problem}");
                format!("{} {}", problem["pointer"].as_str().unwrap(), problem["message"].as_str().unwrap())
            })
            .collect();
        found.sort();
        found
    };
    let missing = read("u-alice").with("arguments", json!({"owner": 7}));
    let expected =
        ["/owner must be of type \"string\"", "/repo is required"].map(|text| text.replace('"', ""));
    let refused = dry(&REFUSE, &missing).await;
    assert_eq!((&refused["would"], pointers(&refused)), (&json!("fail"), expected.to_vec()), "{refused}");
    let warned = dry(&WARN, &missing).await;
    assert_eq!((&warned["would"], pointers(&warned)), (&json!("run"), expected.to_vec()), "{warned}");
    assert_eq!(warned["version"], "20251027_00");
    let off = dry(&OFF, &missing).await;
    assert_eq!((&off["would"], &off["problems"]), (&json!("run"), &json!([])), "{off}");
    assert_eq!(harness.sandbox.ledger_summary().calls, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_the_tool_api_has_the_word() {
    let harness = Harness::new("nocheck", "").await;
    let worker = harness.worker(&[]).await;
    let job = unfit();
    harness.publish(std::slice::from_ref(&job)).await;
    harness.job_in(job.id(), &["succeeded"]).await;
    let metrics = worker.metrics().await;
    assert!(!metrics.contains("errand_argument_checks_total{"), "nothing is looked at");
}
