//! Messages and lines that are no jobs.

use std::collections::BTreeMap;

use errand_testbed::factory::{self, Envelope as _, id};
use lapin::{
    BasicProperties,
    types::{AMQPValue, DecimalValue, FieldArray, FieldTable},
};
use serde_json::{Value, json};

use super::{backends::Backends, read};
use crate::{
    harness::{Harness, PATIENCE, python},
    support::wait::until,
};

/// A message that is no job, and what is said about it.
struct Poison {
    body: Vec<u8>,
    reason: &'static str,
    hint: &'static str,
}

fn poison(body: impl Into<Vec<u8>>, reason: &'static str, hint: &'static str) -> Poison {
    Poison { body: body.into(), reason, hint }
}

fn with(field: &str, value: &str) -> String {
    format!(r#"{{"id":"{}","user_id":"u-alice","tool":"GITHUB_GET_REPO","{field}":{value}}}"#, id())
}

fn poisons() -> Vec<Poison> {
    let nested = "[".repeat(100_000);
    let closed = format!("{nested}{}", "]".repeat(100_000));
    let long = format!(r#"{{"text":"{}"}}"#, "x".repeat(1024 * 1024));
    vec![
        poison("", "malformed", "not a valid job"),
        poison(" \n", "malformed", "not a valid job"),
        poison("hello", "malformed", "not a valid job"),
        poison("null", "malformed", "it must be one JSON object"),
        poison("[]", "malformed", "it must be one JSON object"),
        poison("17", "malformed", "it must be one JSON object"),
        poison(&b"\xff\xfe\x00\x80"[..], "malformed", "it is UTF-16"),
        poison(&b"\x1f\x8b\x08\x00not json"[..], "malformed", "compressed with gzip"),
        poison(&b"\x28\xb5\x2f\xfdnot json"[..], "malformed", "compressed with zstd"),
        poison(&b"{\"id\":\"\xc3\x28\"}"[..], "malformed", "not a valid job"),
        poison("\u{feff}{}", "malformed", "begins with a byte order mark"),
        poison(nested.as_str(), "malformed", "not a valid job"),
        poison(closed.as_str(), "malformed", "not a valid job"),
        poison(
            with("arguments", &format!(r#"{{"deep":{closed}}}"#)),
            "bad_value",
            "`arguments` is nested deeper",
        ),
        poison(
            with("tags", &format!(r#"{{"deep":{closed}}}"#)),
            "malformed",
            "`tags` must have a text for each",
        ),
        poison(with("arguments", "[1]"), "bad_value", "`arguments` must be an object"),
        poison(with("arguments", r#""text""#), "bad_value", "`arguments` must be an object"),
        poison(with("priority", "1.5"), "malformed", "`priority` must be a whole number"),
        poison(with("priority", "99999999999999999999"), "bad_value", "`priority` must be 0 to 9"),
        poison(with("priority", "10"), "bad_value", "`priority` must be 0 to 9"),
        poison(with("max_attempts", "-1"), "bad_value", "`max_attempts` must be 1 to"),
        poison(with("max_attempts", "2147483648"), "bad_value", "`max_attempts` must be 1 to"),
        poison(with("timeout_ms", "18446744073709551615"), "bad_value", "`timeout_ms` must be 1 to"),
        poison(with("timeout_ms", "1e400"), "malformed", "`timeout_ms` must be a whole number"),
        poison(with("run_at", r#""tomorrow""#), "malformed", "`run_at` is not a time of RFC 3339"),
        poison(
            with("expires_at", r#""9999-12-31T23:59:59.9999999Z""#),
            "malformed",
            "`expires_at` is out of the range of times, which ends at 9999-12-30T22:00:00Z",
        ),
        poison(with("run_at", r#""-009998-01-02T00:00:00Z""#), "bad_value", "the database refuses the job"),
        poison(with("toll", "1"), "malformed", "unknown field `toll`"),
        poison(with("tool", r#""T""#), "malformed", "duplicate field"),
        poison(with("text", r#""a\u0000b""#), "bad_value", "`text` contains a NUL"),
        poison(with("text", r#""\ud800""#), "malformed", "`text` contains half of a surrogate pair"),
        poison(with("idempotency_key", r#""a\u0000b""#), "bad_value", "`idempotency_key`"),
        poison(with("requested_by", r#""\u0000""#), "bad_value", "`requested_by`"),
        poison(with("connected_account_id", r#""ca\u0000""#), "bad_value", "`connected_account_id`"),
        poison(with("version", r#""\u0000""#), "bad_value", "`version`"),
        poison(with("tags", r#"{"a":"\u0000"}"#), "bad_value", "`tags`"),
        poison(with("tags", r#"{"\u0000":"a"}"#), "bad_value", "`tags`"),
        poison(with("org_id", r#""both""#), "bad_owner", "not both"),
        poison(with("queue", r#""bulk""#), "bad_value", "came through"),
        poison(r#"{"id":"x\u0000","user_id":"u","tool":"T"}"#, "bad_value", "`id` is not a UUID"),
        poison(r#"{"user_id":"u","tool":"T"}"#, "no_id", "give an `id`"),
        poison(read(&id()).replace("u-alice", r"u\u0000x"), "bad_owner", "`user_id`"),
        poison(read(&id()).replace("u-alice", r"u\ud800"), "malformed", "`user_id` contains half"),
        poison(
            read(&id()).replace("u-alice", " default "),
            "bad_owner",
            "`user_id` begins or ends with a blank",
        ),
        poison(read(&id()).replace("u-alice", "de\u{200b}fault"), "bad_owner", "nobody sees"),
        poison(read(&id()).replace("u-alice", &"u".repeat(300)), "bad_owner", "`user_id`"),
        poison(read(&id()).replace("GITHUB_GET_REPO", r"T\u0000"), "bad_value", "`tool`"),
        poison(long, "too_large", "send at most"),
        poison(vec![0; 3 * 1024 * 1024], "too_large", "send at most"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_poison_is_kept_counted_and_explained_and_the_next_job_runs() {
    let harness = Harness::new("poison", "").await;
    let worker = harness.worker(&[]).await;
    let poisons = poisons();
    let bodies: Vec<Vec<u8>> = poisons.iter().map(|poison| poison.body.clone()).collect();
    let good: Vec<String> = (0..3).map(|_| id()).collect();
    for good in &good {
        harness.publish_raw(&bodies, BasicProperties::default().with_delivery_mode(2)).await;
        harness.publish_raw(&[read(good).into_bytes()], BasicProperties::default()).await;
    }
    for good in &good {
        harness.job_in(good, &["succeeded"]).await;
    }
    let kept = format!("{}/{}", poisons.len(), 3 * poisons.len());
    until(&format!("{kept} messages kept"), PATIENCE, async || {
        let sql = "select count(*) || '/' || sum(seen) from rejected";
        (harness.text(sql).await? == kept).then_some(())
    })
    .await;
    let metrics = worker.metrics().await;
    for reason in ["malformed", "bad_value", "bad_owner", "no_id", "too_large"] {
        let count = 3 * poisons.iter().filter(|poison| poison.reason == reason).count();
        let line = format!("errand_rejected_messages_total{{reason=\"{reason}\"}} {count}");
        assert!(metrics.contains(&line), "{line}");
    }
    let listed = harness.errand(&["rejected", "list", "--json", "--limit", "1000"]).stdout;
    let listed: Vec<Value> =
        String::from_utf8(listed).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for Poison { body, reason, hint } in &poisons {
        let start = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        let fits = |row: &&Value| {
            row["size"] == body.len()
                && row["reason"] == *reason
                && row["message"].as_str().unwrap().contains(hint)
        };
        let whole = listed.iter().filter(fits).any(|row| {
            let shown = harness.errand(&["rejected", "show", row["id"].as_str().unwrap(), "--body"]);
            shown.stdout == *body
        });
        assert!(whole, "{reason}, {hint}: {start}\n{listed:#?}");
    }
    assert_eq!(
        harness.text("select count(*)::text from jobs").await.as_deref(),
        Some("3"),
        "no poison is a job"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_content_encoding_that_compresses_is_blamed_and_a_repeated_id_is_told_what_differs() {
    let harness = Harness::new("encodings", "").await;
    let _worker = harness.worker(&[]).await;
    let encoded = |name: &str| BasicProperties::default().with_content_encoding(name.into());
    // Spring and Celery name the charset there; a valid job runs.
    let (charset, empty) = (id(), id());
    harness.publish_raw(&[read(&charset).into_bytes()], encoded("UTF-8")).await;
    let php = format!(
        r#"{{"id":"{empty}","user_id":"u-alice","tool":"GITHUB_GET_REPO","arguments":[],"tags":[]}}"#
    );
    harness.publish_raw(&[php.into_bytes()], BasicProperties::default()).await;
    for job in [&charset, &empty] {
        harness.job_in(job, &["succeeded", "failed"]).await;
    }
    harness.publish_raw(&[b"{\"tool\":".to_vec()], encoded("utf8")).await;
    harness.publish_raw(&[b"\x8b\x03\x80brotli".to_vec()], encoded("br")).await;
    // The same job as another library writes it.
    let reordered = read(&charset).replace(r#"{"owner":"o","repo":"r"}"#, r#"{"repo":"r","owner":"o"}"#);
    harness.publish_raw(&[reordered.into_bytes()], BasicProperties::default()).await;
    until("three are kept", PATIENCE, async || {
        (harness.text("select count(*)::text from rejected").await? == "3").then_some(())
    })
    .await;
    let listed = harness.errand(&["rejected", "list", "--json"]).stdout;
    let listed: Vec<Value> =
        String::from_utf8(listed).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |reason: &str, start: &str| {
        let mut rows = listed.iter().filter(|row| row["reason"] == reason);
        let row = rows.find(|row| {
            let shown = harness.errand(&["rejected", "show", row["id"].as_str().unwrap(), "--body"]);
            String::from_utf8_lossy(&shown.stdout).contains(start)
        });
        row.unwrap_or_else(|| panic!("{reason}, {start}: {listed:#?}"))["message"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let cut = of("malformed", "tool");
    assert!(cut.contains("it is not JSON") && !cut.contains("encoding"), "{cut}");
    assert!(of("malformed", "brotli").contains("its content encoding says that it is compressed"));
    let other = of("body_conflict", "owner");
    assert!(other.contains("known with another body") && other.contains("same bytes"), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_for_a_time_beyond_the_longest_wait_fails_and_says_so() {
    let harness = Harness::new("far", "").await;
    let _worker = harness.worker(&[]).await;
    let far = id();
    let job = factory::read("u-alice").named(&far).with("run_at", "2999-01-01T00:00:00Z");
    harness.publish(&[job]).await;
    let shown = harness.job_in(&far, &["failed", "scheduled"]).await;
    assert_eq!(
        (&shown["state"], &shown["error"]["kind"]),
        (&json!("failed"), &json!("invalid_job")),
        "{shown}"
    );
    assert!(shown["error"]["message"].as_str().unwrap().starts_with("`run_at` is further ahead"), "{shown}");
}

/// Headers of every type that AMQP has, and one that is nested deeper than is shown.
fn odd_headers() -> FieldTable {
    let mut nested = AMQPValue::Void;
    for _ in 0..20 {
        let mut array = FieldArray::default();
        array.push(nested);
        nested = AMQPValue::FieldArray(array);
    }
    let mut headers = FieldTable::default();
    let values = [
        AMQPValue::Boolean(false),
        AMQPValue::ShortShortInt(i8::MIN),
        AMQPValue::ShortShortUInt(u8::MAX),
        AMQPValue::ShortInt(i16::MIN),
        AMQPValue::ShortUInt(u16::MAX),
        AMQPValue::LongInt(i32::MIN),
        AMQPValue::LongUInt(u32::MAX),
        AMQPValue::LongLongInt(i64::MIN),
        // RabbitMQ takes no number that is none.
        AMQPValue::Float(f32::MIN),
        AMQPValue::Double(f64::MIN_POSITIVE),
        AMQPValue::DecimalValue(DecimalValue { scale: 255, value: u32::MAX }),
        AMQPValue::LongString(vec![0xff, 0x00, 0xfe].into()),
        // A client with the usual limits sends no more in one frame.
        AMQPValue::LongString("x".repeat(120_000).into()),
        AMQPValue::Timestamp(u64::MAX),
        AMQPValue::ByteArray(vec![0; 16].into()),
        AMQPValue::Void,
        nested,
    ];
    for (n, value) in values.into_iter().enumerate() {
        headers.insert(format!("h{n}").into(), value);
    }
    // The names that mean something to errand, with values that do not.
    headers.insert("traceparent".into(), AMQPValue::LongLongInt(1));
    headers.insert("x-errand-known".into(), AMQPValue::LongString("yes".into()));
    headers.insert("".into(), AMQPValue::LongString("no name".into()));
    headers.insert("content_type".into(), AMQPValue::Boolean(true));
    headers
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_properties_change_nothing_about_a_job_and_are_kept_with_what_is_none() {
    let harness = Harness::new("odd", "").await;
    let worker = harness.worker(&[]).await;
    let odd = || {
        BasicProperties::default()
            .with_headers(odd_headers())
            .with_content_type("text/plain\u{7}".into())
            .with_content_encoding("gzip".into())
            .with_correlation_id("c-1".into())
            .with_type("\u{0}".into())
            .with_app_id("shop".into())
            .with_timestamp(u64::MAX)
            .with_priority(255)
            .with_expiration("3600000".into())
    };
    let (job, next) = (id(), id());
    let zipped = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03zipped".to_vec();
    for _ in 0..3 {
        harness.publish_raw(&[read(&job).into_bytes(), zipped.clone()], odd()).await;
    }
    // What a reply would be addressed with has to fit into a database.
    let unfit = odd().with_correlation_id("c\u{0}".into());
    harness.publish_raw(&[read(&id()).into_bytes()], unfit).await;
    harness.publish_raw(&[read(&next).into_bytes()], BasicProperties::default()).await;
    for job in [&job, &next] {
        harness.job_in(job, &["succeeded"]).await;
    }
    until("both are kept", PATIENCE, async || {
        let sql = "select string_agg(reason || '=' || seen, ',' order by reason) from rejected";
        (harness.text(sql).await? == "bad_value=1,malformed=3").then_some(())
    })
    .await;
    let metrics = worker.metrics().await;
    assert!(metrics.contains("errand_rejected_messages_total{reason=\"malformed\"} 3"), "{metrics}");
    let listed = harness.errand(&["rejected", "list", "--json"]).stdout;
    let listed: Vec<Value> =
        String::from_utf8(listed).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |reason: &str| listed.iter().find(|row| row["reason"] == reason).unwrap();
    assert!(of("bad_value")["message"].as_str().unwrap().contains("`correlation_id`"));
    let kept = of("malformed");
    assert!(kept["message"].as_str().unwrap().contains("compressed with gzip"), "{kept}");
    let other = &kept["properties"]["other"];
    for (name, value) in [
        ("content_encoding", "gzip"),
        ("type", "\u{0}"),
        ("h0", "false"),
        ("h7", "-9223372036854775808"),
        ("h14", "<16 bytes>"),
        ("traceparent", "1"),
        ("x-errand-known", "yes"),
        ("", "no name"),
    ] {
        assert_eq!(other[name], value, "{name} in {other}");
    }
    let shown = harness.errand(&["rejected", "show", kept["id"].as_str().unwrap(), "--body"]);
    assert_eq!(shown.stdout, zipped);
    assert!(harness.errand(&["rejected", "show", kept["id"].as_str().unwrap()]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_that_cannot_be_read_are_kept_and_stop_nobody() {
    let harness = Harness::new("unreadable", "").await;
    let worker = harness.worker(&[]).await;
    let before = id();
    harness.publish_raw(&[read(&before).into_bytes()], BasicProperties::default()).await;
    harness.job_in(&before, &["succeeded"]).await;
    // Bodies that would be jobs.
    let bodies =
        ["message_id", "header_name", "nested", "imitated", "too_long"].map(|kind| (kind, read(&id())));
    let mut bodies: BTreeMap<_, _> = bodies.into();
    // A routing key says nothing about a job, so this is one.
    let misaddressed = id();
    bodies.insert("routing_key", read(&misaddressed));
    for _ in 0..3 {
        let asked = json!({"url": harness.vhost.amqp_url, "bodies": bodies});
        assert_eq!(python("bad_input/unreadable_client.py", asked).await, bodies.len());
        let (next, elsewhere) = (id(), id());
        harness.publish_raw(&[read(&next).into_bytes()], BasicProperties::default()).await;
        harness.publish_to("bulk", &[read(&elsewhere).into_bytes()], BasicProperties::default()).await;
        for job in [&next, &elsewhere, &misaddressed] {
            harness.job_in(job, &["succeeded"]).await;
        }
    }
    until("all are kept", PATIENCE, async || {
        let sql = "select count(*) || '/' || sum(seen) from rejected";
        (harness.text(sql).await? == "5/15").then_some(())
    })
    .await;
    assert_eq!(harness.text("select count(*)::text from jobs").await.as_deref(), Some("8"));
    // One process and one subscription per lane, from the start to the end.
    let count = worker.metric("errand_rejected_messages_total{reason=\"malformed\"}").await;
    assert!((count - 15.0).abs() < 0.5, "{count}");
    assert_eq!(worker.lines("consuming").len(), 2, "{}", worker.log());
    let listed = harness.errand(&["rejected", "list", "--json"]).stdout;
    let listed: Vec<Value> =
        String::from_utf8(listed).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (kind, kept) in [
        ("message_id", r"\x10\x80\x02\x02\xff\xfe"),
        ("header_name", r"\x02\xff\xfeS\x00\x00\x00\x05value"),
        ("nested", r"A\x00\x00\x00\x05A\x00\x00\x00\x00"),
        ("imitated", "not from errand"),
        ("too_long", r"\x04longS\x00\x01\xff\xe3xxx"),
    ] {
        let has_it = |row: &&Value| {
            row["properties"]["unreadable"].as_str().is_some_and(|unreadable| unreadable.contains(kept))
        };
        let row = listed.iter().find(has_it).unwrap_or_else(|| panic!("{kind}: {listed:#?}"));
        assert_eq!((&row["reason"], &row["queue"]), (&json!("malformed"), &json!("default")), "{kind}");
        assert!(row["message"].as_str().unwrap().contains("is not UTF-8"), "{kind}: {row}");
        let shown = harness.errand(&["rejected", "show", row["id"].as_str().unwrap(), "--body"]);
        assert_eq!(shown.stdout, bodies[kind].as_bytes(), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_are_no_jobs_are_refused_with_a_reason_and_the_others_run() {
    let pair = Backends::embedded("lines", &[]).await;
    let (first, last) = (id(), id());
    let mut lines = vec![read(&first)];
    // A line holds no line break and no other bytes than text.
    let poisons = poisons().into_iter().filter_map(|poison| String::from_utf8(poison.body).ok());
    // SQLite keeps any time; an ID is made for a line that has none.
    let poisons: Vec<String> = poisons
        .filter(|line| {
            !line.trim().is_empty() && !line.contains("-009998") && line != r#"{"user_id":"u","tool":"T"}"#
        })
        .collect();
    lines.extend(poisons.iter().cloned());
    lines.push(read(&last));
    let output = pair.bulk(&lines);
    assert_eq!(output.status.code(), Some(1), "some lines are no jobs");
    let told =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("line 2") && told.contains("not a valid job"), "{told}");
    for good in [&first, &last] {
        pair.job_in(good, &["succeeded"]).await;
    }
}
