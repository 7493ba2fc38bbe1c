//! `errand doctor`: asks every service that errand depends on, and says what to do.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::{
    exit::Exit,
    output::{self, Format},
    setup::Setup,
    transport,
};
use crate::{
    app,
    config::{Missing, mask_url},
    failure::chain,
    job::QueueName,
    queue::{Address, Message, PolicyRisk, Properties, QueueError, QueueErrorKind, SharedQueue},
    store::{Concern, Schema, StoreErrorKind, Weight},
    tool::ToolError,
};

/// The longest that one service may take to answer all its questions.
const PATIENCE: Duration = Duration::from_secs(20);

/// The policy of deploy/rabbitmq/policy.json, as a command. Another policy has to be removed or to contain the same.
const POLICY_ADVICE: &str = r#"have it dead-letter to errand, which runs such jobs: rabbitmqctl set_policy -p VHOST --apply-to queues errand '^errand\.(?!dead$)' '{"dead-letter-exchange":"","dead-letter-routing-key":"errand.dead","dead-letter-strategy":"at-least-once","overflow":"reject-publish"}'; a queue has one policy, so put these keys into the one that it has, and take `expires` out"#;

/// From this on, log lines and `run_at` are confusing. Leases and due times, judged by the store's clock, stay right.
const MAX_SKEW: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    status: Status,
    message: String,
    advice: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, message: impl Into<String>) -> Self {
        Self { what, status: Status::Ok, message: message.into(), advice: None }
    }

    fn warn(what: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, status: Status::Warn, message: message.into(), advice: Some(advice.into()) }
    }

    fn fail(what: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, status: Status::Fail, message: message.into(), advice: Some(advice.into()) }
    }

    /// The sentence of a missing setting says what to do itself.
    fn missing(what: &'static str, status: Status, missing: Missing) -> Self {
        Self { what, status, message: missing.to_string(), advice: None }
    }
}

pub(super) async fn run(args: &Args, setup: &Setup) -> anyhow::Result<Exit> {
    let mut findings = vec![Finding::ok("configuration", "valid")];
    let (database, broker, tool_api) = tokio::join!(
        patiently("database", database(setup)),
        patiently("broker", broker(setup)),
        patiently("tool API", tool_api(setup)),
    );
    findings.extend(database.into_iter().chain(broker).chain(tool_api));
    let unprotected = transport::unprotected(setup.config()).into_iter();
    findings.extend(unprotected.map(|found| Finding::warn(found.what, found.message, found.advice)));
    let failed = findings.iter().any(|finding| finding.status == Status::Fail);
    if args.format.json {
        output::print_json(&json!({"ok": !failed, "checks": findings}))?;
    } else {
        for finding in &findings {
            output::print_line(line(finding))?;
        }
    }
    Ok(Exit::negative_if(failed))
}

fn line(finding: &Finding) -> String {
    let status = match finding.status {
        Status::Ok => "OK  ",
        Status::Warn => "WARN",
        Status::Fail => "FAIL",
    };
    let advice = finding.advice.as_deref().map(|advice| format!("; {advice}")).unwrap_or_default();
    output::clean(&format!("{status}  {:13}  {}{advice}", finding.what, finding.message)).into_owned()
}

/// All findings about a service, or the one that leaves nothing else to ask.
type Answer = Result<Vec<Finding>, Finding>;

async fn patiently(what: &'static str, asking: impl Future<Output = Answer>) -> Vec<Finding> {
    let answer = tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| {
        let message = format!("did not answer within {} s", PATIENCE.as_secs());
        Err(Finding::fail(what, message, "check that it runs and that no firewall drops the connection"))
    });
    answer.unwrap_or_else(|finding| vec![finding])
}

async fn database(setup: &Setup) -> Answer {
    const WHAT: &str = "database";
    let config = setup.config();
    config.require_store().map_err(|missing| Finding::missing(WHAT, Status::Fail, missing))?;
    let place = mask_url(config.store.url.expose_secret());
    let advice = || format!("check DATABASE_URL ({place}) and that the database runs");
    let failed = |error: &dyn Error| Finding::fail(WHAT, chain(error), advice());
    let store = app::open_store(config).map_err(|error| failed(&*error))?;
    let version = store.version().await.map_err(|error| failed(&error))?;
    let mut findings = vec![Finding::ok(WHAT, format!("{} {version} at {place}", store.backend()))];
    match store.inspect().await {
        Ok(concerns) => findings.extend(concerns.into_iter().map(|concern| {
            let Concern { weight, message, advice } = concern;
            match weight {
                Weight::Fine => Finding::ok(WHAT, message),
                Weight::Risk => Finding::warn(WHAT, message, advice),
                Weight::Fault => Finding::fail(WHAT, message, advice),
            }
        })),
        // Its message says what to do.
        Err(error) if error.kind() == StoreErrorKind::Access => {
            findings.push(Finding { what: WHAT, status: Status::Fail, message: chain(&error), advice: None });
        }
        Err(error) => findings.push(failed(&error)),
    }
    findings.push(match store.schema().await {
        Ok(schema) => schema_finding(WHAT, &schema, config.store.migrate_at_start),
        // Its message says what to do.
        Err(error) if error.kind() == StoreErrorKind::Access => {
            Finding { what: WHAT, status: Status::Fail, message: chain(&error), advice: None }
        }
        Err(error) => failed(&error),
    });
    let before = Timestamp::now();
    findings.push(match store.now().await {
        Ok(theirs) => skew(WHAT, before, theirs, Duration::ZERO),
        Err(error) => failed(&error),
    });
    store.close().await;
    Ok(findings)
}

fn schema_finding(what: &'static str, schema: &Schema, migrates_at_start: bool) -> Finding {
    match schema.problem() {
        Some((problem, _)) if migrates_at_start && matches!(schema, Schema::Behind { .. }) => {
            Finding::warn(what, problem, "the next worker that starts applies them, or `errand migrate` does")
        }
        Some((problem, advice)) => Finding::fail(what, problem, advice),
        None if *schema == Schema::Ahead => {
            Finding::ok(what, "the schema is newer than this build, which is fine")
        }
        None => Finding::ok(what, "the schema is up to date"),
    }
}

async fn broker(setup: &Setup) -> Answer {
    const WHAT: &str = "broker";
    let config = setup.config();
    config.require_amqp().map_err(|missing| {
        if config.store_is_sqlite() {
            Finding::ok(WHAT, "not needed: with SQLite, the queue is inside the process that runs jobs")
        } else {
            Finding::missing(WHAT, Status::Warn, missing)
        }
    })?;
    let place = mask_url(config.amqp.url.expose_secret());
    let advice = || format!("check AMQP_URL ({place}) and that the broker runs");
    let failed = |error: &dyn Error| Finding::fail(WHAT, chain(error), advice());
    let queue = app::open_queue(config).map_err(|error| failed(&*error))?;
    let version = queue.check().await.map_err(|error| failed(&error))?;
    let mut findings = vec![Finding::ok(WHAT, format!("{version} at {place}"))];
    for lane in config.queues.keys() {
        findings.push(match queue.depth(lane).await {
            Ok(depth) if depth.consumers == 0 => Finding::warn(
                WHAT,
                format!("queue {lane}: {} and nobody takes any", waiting(depth.ready)),
                "start a worker for it, or more of them if one is there and all its slots are busy (`errand workers`)",
            ),
            Ok(depth) => Finding::ok(
                WHAT,
                format!(
                    "queue {lane}: {}, {}",
                    waiting(depth.ready),
                    output::count(depth.consumers, "consumer", "consumers")
                ),
            ),
            Err(error) => Finding::fail(WHAT, format!("queue {lane}: {}", chain(&error)), advice()),
        });
    }
    if let Ok(depth) = queue.depth(&QueueName::dead()).await
        && depth.ready > 0
        && depth.consumers == 0
    {
        let message = format!("{} dead letters wait, and nobody makes jobs of them", depth.ready);
        findings.push(Finding::warn(WHAT, message, "start a worker"));
    }
    findings.extend(replies(WHAT, &queue).await);
    if config.events.exchange {
        findings.push(match queue.check_events().await {
            Ok(()) => Finding::ok(WHAT, "apps can bind queues to the exchange for events"),
            Err(error) => Finding::fail(WHAT, chain(&error), "events wait until then, and jobs go on"),
        });
    }
    findings.extend(policies(WHAT, queue.policy_risks().await));
    queue.close().await;
    Ok(findings)
}

/// Whether replies can be published, as a reply to a queue that nobody has shows: a broker that lets them pass returns it.
async fn replies(what: &'static str, queue: &SharedQueue) -> Option<Finding> {
    let nobody = format!("errand.doctor.{}", Uuid::new_v4());
    let properties = Properties { message_id: Some(nobody.clone()), ..Properties::default() };
    let probe = Message { to: Address::Reply(nobody), body: Bytes::new(), properties, priority: 0 };
    match queue.publish(vec![probe]).await.pop()? {
        Err(error) if error.kind() != QueueErrorKind::Unroutable => {
            let advice =
                "replies wait, and are given up after some hours; see deploy/rabbitmq/permissions.json";
            Some(Finding::warn(what, chain(&error), advice))
        }
        Ok(()) | Err(_) => None,
    }
}

fn waiting(messages: u64) -> String {
    output::count(messages, "message waits", "messages wait")
}

/// What the policies of the broker do, if that is known.
fn policies(what: &'static str, risks: Result<Option<Vec<PolicyRisk>>, QueueError>) -> Vec<Finding> {
    match risks {
        Ok(Some(risks)) if risks.is_empty() => {
            vec![Finding::ok(what, "no policy makes it drop what it has confirmed")]
        }
        Ok(Some(risks)) => {
            let warn = |risk: &PolicyRisk| Finding::warn(what, risk.to_string(), POLICY_ADVICE);
            risks.iter().map(warn).collect()
        }
        Ok(None) => vec![Finding::warn(
            what,
            "its policies are unknown, and some make it drop what it has confirmed",
            "set amqp.management_url so that they can be looked at",
        )],
        Err(error) => vec![Finding::warn(
            what,
            format!("its policies are unknown: {}", chain(&error)),
            "check amqp.management_url, the user's tag `management`, and that the plugin is enabled",
        )],
    }
}

async fn tool_api(setup: &Setup) -> Answer {
    const WHAT: &str = "tool API";
    let config = setup.config();
    config.require_api_key().map_err(|missing| Finding::missing(WHAT, Status::Fail, missing))?;
    let place = &config.composio.base_url;
    let api = app::open_tool_api(config)
        .map_err(|error| Finding::fail(WHAT, chain(&*error), "check the settings in [composio]"))?;
    let check = api.check().await.map_err(|error| match &error {
        ToolError::Credentials { .. } => Finding::fail(WHAT, chain(&error), "check COMPOSIO_API_KEY"),
        ToolError::Throttled { .. } => {
            Finding::warn(WHAT, chain(&error), "try again later; jobs wait by themselves")
        }
        _ => Finding::fail(WHAT, chain(&error), format!("check COMPOSIO_BASE_URL ({place}) and the network")),
    })?;
    let took = format!("reachable at {place} in {} ms, and the key is accepted", check.took.as_millis());
    let mut findings = vec![Finding::ok(WHAT, took)];
    // A `Date` header has whole seconds and is as old as the answer was long under way.
    let slack = check.took + Duration::from_secs(1);
    findings.extend(check.date.map(|theirs| skew(WHAT, Timestamp::now(), theirs, slack)));
    Ok(findings)
}

fn skew(what: &'static str, ours: Timestamp, theirs: Timestamp, slack: Duration) -> Finding {
    let skew = ours.duration_since(theirs).unsigned_abs();
    if skew > MAX_SKEW + slack {
        let message = format!("its clock and this host's differ by {:.1} s", skew.as_secs_f64());
        Finding::warn(what, message, "synchronize the clocks (NTP)")
    } else {
        Finding::ok(what, "its clock agrees with this host's")
    }
}
